/* Whole layers on a device against the CPU alone.
 *
 *   test_device_layers launches BACKEND 1 [NAME]   everything on the device: kernel launches per layer of decode steps, printed, and their limits
 *   test_device_layers split BACKEND N [NAME]      N times a random -ngl for one of the models; only those with NAME in their path
 *
 * Logits within the rows logits-lane of tests/tolerance.h, which says why and how much (tests/test_hybrid.c: models with quantised weights run with plain
 * C); the ids that greedy decoding gives are compared up to the first step whose two best logits of the CPU are nearer than that. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "partition/machine.h"
#include "src/engine/lane.h"
#include "tests/backend.h"
#include "tests/tolerance.h"
#include "yoke/yoke.h"

/* Tokens of each sequence in the steps: prompts, one token of one, of two, of all sequences. */
static const uint32_t steps[][5] = {{20, 7, 3, 9, 2}, {1}, {1}, {1}, {0, 1}, {1, 1}, {1, 1, 0, 1, 0}, {1, 1, 1, 0, 1},
                                    {1, 1, 1, 1, 1},  {1}};
enum { N_STEPS = sizeof steps / sizeof *steps, N_SEQS = 5, N_TOKENS = 64, N_ROWS = 24, CONTEXT = 64, GREEDY = 12 };

static const struct {
    const char *path; /* below YOKE_FIXTURES, or "models/" below YOKE_SOURCE */
    bool quantised;
} models[] = {
    {"w256-llama-f16.gguf", false},         {"w256-llama-q4_k_m.gguf", true},
    {"w128-qwen2-f16.gguf", false},         {"w128-qwen3-f16.gguf", false},
    {"w128-phi3-f16.gguf", false},          {"w256-mixtral-4x2-f16.gguf", false},
    {"w256-mixtral-4x2-q4_k_m.gguf", true}, {"models/yoke-tiny-mixtral-q4_k_m.gguf", true},
    {"w64-qwen3moe-4x2-f16.gguf", false},   {"w64-qwen2moe-8x4-f16.gguf", false},
    {"w64-qwen2moe-8x4-q4_k_m.gguf", true}, {"w128-olmoe-4x2-f16.gguf", false},
    {"w128-phimoe-4x2-f16.gguf", false},    {"w64-gpt-oss-4x2-f16.gguf", false},
    {"stories260K-f32.gguf", false},        {"w256-llama-q8_0.gguf", true},
    {"w256-llama-iq4_xs.gguf", true},
};
enum { N_MODELS = sizeof models / sizeof *models };

static int fail(const char *what, const char *text)
{
    printf("FAILED: %s: %s\n", what, text);
    return 1;
}

/* What a run gives: rows of logits; launches of a layer by the number of tokens of a step; greedy ids. */
typedef struct result {
    float *logits; /* [N_ROWS + GREEDY][n_vocab] */
    double launches[N_SEQS + 1];
    uint32_t resident; /* layers on the device, the head counts as one */
    int32_t ids[GREEDY];
} result;

static void count(const yk_engine *e, uint32_t n, uint64_t launches, uint64_t head, result *out)
{
    const yk_gpulane *l = e->lane;
    const double now = (double)(l->n_launches - launches - (l->n_head_launches - head)) / e->model->hp.n_layers;
    out->launches[n] = now > out->launches[n] ? now : out->launches[n];
}

/* The steps above, then greedy decoding of sequence 0. */
static int compute(yk_engine *e, const int32_t *tokens, uint32_t n_vocab, result *out)
{
    yk_error err = {0};
    yk_seq *seqs[N_SEQS] = {NULL};
    uint32_t row = 0;
    int bad = 0;
    for (int i = 0; !bad && i < N_SEQS; i++)
        bad = yk_seq_open(&seqs[i], e, &err) != YK_OK;
    for (int s = 0; !bad && s < N_STEPS; s++) {
        yk_batch_entry entries[N_SEQS];
        uint32_t n = 0, n_tokens = 0;
        const uint64_t launches = e->lane ? e->lane->n_launches : 0, head = e->lane ? e->lane->n_head_launches : 0;
        for (uint32_t q = 0; q < N_SEQS; n_tokens += steps[s][q++])
            if (steps[s][q])
                entries[n++] = (yk_batch_entry){seqs[q], tokens + yk_seq_length(seqs[q]) + 5 * q, steps[s][q], YK_LOGITS_LAST};
        bad = yk_decode(e, entries, n, &err) != YK_OK;
        if (!bad && e->lane && s)
            count(e, n_tokens, launches, head, out);
        for (uint32_t i = 0; !bad && i < n; i++)
            memcpy(out->logits + (size_t)row++ * n_vocab, yk_logits(e, i, 0), n_vocab * sizeof(float));
    }
    if (!bad && row != N_ROWS)
        bad = fail("the steps", "other rows than N_ROWS");
    const float *last = out->logits + (size_t)(N_ROWS - 1) * n_vocab;
    for (int i = 0; !bad && i < GREEDY; i++) {
        int32_t best = 0;
        for (uint32_t v = 1; v < n_vocab; v++)
            best = last[v] > last[best] ? (int32_t)v : best;
        out->ids[i] = best;
        const yk_batch_entry one = {seqs[0], &best, 1, YK_LOGITS_LAST};
        bad = yk_decode(e, &one, 1, &err) != YK_OK;
        if (!bad)
            memcpy(out->logits + (size_t)(N_ROWS + i) * n_vocab, yk_logits(e, 0, 0), n_vocab * sizeof(float));
        last = out->logits + (size_t)(N_ROWS + i) * n_vocab;
    }
    for (int i = 0; i < N_SEQS; i++)
        yk_seq_close(&seqs[i]);
    return bad && err.text[0] ? fail("yk_decode", err.text) : bad;
}

static int run(yk_model *m, yk_engine_opts o, const int32_t *tokens, result *out)
{
    yk_error err = {0};
    yk_engine *e;
    yk_model_info info;
    yk_model_get_info(m, &info);
    o.threads = 2;
    o.context = CONTEXT;
    o.max_seqs = N_SEQS;
    o.batch = 64;
    memset(out->launches, 0, sizeof out->launches);
    if (yk_engine_open(&e, m, &o, &err) != YK_OK)
        return fail("yk_engine_open", err.text);
    out->resident = e->head_dev;
    for (uint32_t i = 0; e->places && i < m->hp.n_layers; i++)
        out->resident += e->places[i].attn_dev && !e->places[i].cpu_part[0];
    const int bad = compute(e, tokens, info.n_vocab, out);
    yk_engine_close(&e);
    return bad;
}

typedef struct tally {
    int compared, ids;
    double most[2];
} tally;

/* Logits of the steps, and greedy decoding as long as both give the same ids. */
static int compare(const result *want, const result *got, uint32_t n_vocab, bool quantised, const char *what, tally *t)
{
    const double limit = yk_tolerance_find("logits-lane", quantised ? "quantised" : "float")->rel;
    for (int row = 0; row < N_ROWS + GREEDY; row++) {
        const float *w = want->logits + (size_t)row * n_vocab, *g = got->logits + (size_t)row * n_vocab;
        const double d = yk_largest_difference(w, g, n_vocab);
        t->most[quantised] = d <= t->most[quantised] ? t->most[quantised] : d;
        if (!(d <= limit)) {
            printf("FAILED: %s: row %d differs by %g, allowed %g\n", what, row, d, limit);
            return 1;
        }
        const int i = row - N_ROWS + 1; /* the id that this row decides */
        if (i < 0 || i == GREEDY)
            continue;
        t->ids++;
        if (want->ids[i] != got->ids[i]) {
            const double gap = fabs((double)w[want->ids[i]] - w[got->ids[i]]);
            if (gap <= 2 * limit) /* both may come first: what follows is of other texts */
                return 0;
            printf("FAILED: %s: step %d gives id %d, the CPU %d, %g apart\n", what, i, got->ids[i], want->ids[i], gap);
            return 1;
        }
        t->compared++;
    }
    return 0;
}

/* NULL and a line when the fixtures are not there. */
static yk_model *open_model(size_t index, int *bad)
{
    char path[4096];
    const char *fixtures = getenv("YOKE_FIXTURES"), *source = getenv("YOKE_SOURCE");
    const bool own = strncmp(models[index].path, "models/", 7) == 0;
    yk_error err = {0};
    yk_model *m;
    snprintf(path, sizeof path, "%s/%s", own ? (source ? source : ".") : (fixtures ? fixtures : "../shared/models"),
             models[index].path);
    if (yk_model_open(&m, path, NULL, &err) == YK_OK)
        return m;
    if (own)
        *bad = fail("yk_model_open", err.text);
    else
        printf("skipped: %s\n", err.text);
    return NULL;
}

static void make_tokens(const yk_model_info *info, int32_t *tokens)
{
    uint32_t z = 4711;
    for (int i = 0; i < N_TOKENS; i++) {
        z = z * 1664525u + 1013904223u;
        tokens[i] = i ? (int32_t)(260 + (z >> 8) % (info->n_vocab - 260)) : info->bos;
    }
}

static yk_engine_opts options(size_t model, const char *device)
{
    yk_engine_opts o;
    yk_engine_opts_init(&o);
    o.device = device;
    o.kv_type = YK_KV_F32;
    o.isa = models[model].quantised ? "ref" : NULL;
    return o;
}

static int test_launches(size_t index, const char *backend, tally *t)
{
    int bad = 0;
    int32_t tokens[N_TOKENS];
    yk_model_info info;
    yk_model *m = open_model(index, &bad);
    if (!m)
        return bad;
    yk_model_get_info(m, &info);
    make_tokens(&info, tokens);
    result r[3];
    for (int i = 0; i < 3; i++)
        r[i].logits = calloc((size_t)(N_ROWS + GREEDY) * info.n_vocab, sizeof(float));
    yk_engine_opts o = options(index, "cpu");
    bad = run(m, o, tokens, &r[0]);
    o.device = backend;
    o.auto_partition = false;
    bad = bad || run(m, o, tokens, &r[1]) || run(m, o, tokens, &r[2]) ||
          compare(&r[0], &r[1], info.n_vocab, models[index].quantised, models[index].path, t);
    if (!bad && memcmp(r[1].logits, r[2].logits, (size_t)(N_ROWS + GREEDY) * info.n_vocab * sizeof(float)) != 0)
        bad = fail(models[index].path, "other bits the second time");
    const bool moe = m->layers[0].moe;
    /* One more where the norm of q and k spans the whole vector, and where o takes int8 and blocks of 32 span heads (no model but small fixtures). */
    const int limit = (moe ? 11 : 9) + (m->arch->qk_norm == YK_QK_NORM_FULL) +
                      (yk_type_get(m->layers[0].o.type)->quantised && m->hp.head_dim % 32);
    printf("%-40s %-5s %6.1f %6.1f %6.1f %6.1f %6.1f   limit %d\n", models[index].path, moe ? "MoE" : "dense", r[1].launches[1],
           r[1].launches[2], r[1].launches[3], r[1].launches[4], r[1].launches[5], limit);
    for (int n = 1; !bad && n <= YK_LIST_TOKENS; n++)
        if (!(r[1].launches[n] > 0 && r[1].launches[n] <= limit))
            bad = fail(models[index].path, "more launches in a layer than allowed, or none");
    for (int i = 0; i < 3; i++)
        free(r[i].logits);
    yk_model_close(&m);
    return bad;
}

/* A card of the shelf under the name of the backend's device, for the planner, which decides nothing here but checks. */
static int open_machine(yk_machine **out, const char *backend)
{
    char path[4096];
    yk_error err = {0};
    const char *source = getenv("YOKE_SOURCE");
    snprintf(path, sizeof path, "%s/partition/machines/rtx-3060-ddr4.json", source ? source : ".");
    if (yk_machine_load(out, path, &err) != YK_OK)
        return fail("yk_machine_load", err.text);
    snprintf((*out)->devices[0].name, sizeof(*out)->devices[0].name, "%s:0", backend);
    return 0;
}

static int test_splits(size_t index, const char *backend, yk_machine *machine, int n, uint32_t *seed, tally *t)
{
    int bad = 0;
    char what[300];
    int32_t tokens[N_TOKENS];
    yk_model_info info;
    yk_model *m = open_model(index, &bad);
    if (!m)
        return bad;
    yk_model_get_info(m, &info);
    make_tokens(&info, tokens);
    result want = {.logits = calloc((size_t)(N_ROWS + GREEDY) * info.n_vocab, sizeof(float))},
           got = {.logits = calloc((size_t)(N_ROWS + GREEDY) * info.n_vocab, sizeof(float))};
    yk_engine_opts o = options(index, "cpu");
    bad = run(m, o, tokens, &want);
    o.device = backend;
    o.machine = machine;
    o.gpu_layers_given = true;
    for (int i = 0; !bad && i < n; i++) {
        *seed = *seed * 1664525u + 1013904223u;
        o.gpu_layers = (*seed >> 8) % (m->hp.n_layers + 2); /* the head counts as one */
        snprintf(what, sizeof what, "%s, -ngl %u of %u", models[index].path, o.gpu_layers, m->hp.n_layers + 1);
        bad = run(m, o, tokens, &got) || compare(&want, &got, info.n_vocab, models[index].quantised, what, t);
        if (!bad && got.resident != o.gpu_layers)
            bad = fail(what, "another number of layers is on the device");
        printf("%s\n", what);
    }
    free(want.logits);
    free(got.logits);
    yk_model_close(&m);
    return bad;
}

int main(int argc, char **argv)
{
    const bool split = argc > 3 && strcmp(argv[1], "split") == 0;
    const char *backend = argc > 2 ? argv[2] : "null";
    const int missing = yk_test_backend(backend);
    if (missing)
        return missing;
    yk_machine *machine = NULL;
    tally t = {0};
    uint32_t seed = 1;
    if (split && open_machine(&machine, backend))
        return 1;
    if (!split)
        printf("launches of a layer, by tokens of the step: %20s %6d %6d %6d %6d\n", "1", 2, 3, 4, 5);
    for (size_t i = 0; i < N_MODELS; i++)
        if (argc > 4 && !strstr(models[i].path, argv[4]))
            continue;
        else if (split ? test_splits(i, backend, machine, (atoi(argv[3]) + (int)(N_MODELS - 1 - i)) / N_MODELS, &seed, &t)
                       : test_launches(i, backend, &t))
            return 1;
    yk_machine_close(&machine);
    printf("%s: %d of %d greedy ids compared, largest difference of logits %.2g (float weights), %.2g (quantised)\n", backend,
           t.compared, t.ids, t.most[0], t.most[1]);
    if (!t.ids || t.compared < 0.6 * t.ids)
        return fail("greedy ids", "fewer than 60 % could be compared");
    return 0;
}
