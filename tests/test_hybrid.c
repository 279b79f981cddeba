/* Random plans on both lanes: text and logits as the CPU alone gives them, the same bits on repetition.
 *
 *   test_hybrid BACKEND N_PLANS [NAME]     "null" (computes on the host) or "opencl"; N_PLANS random plans, spread over all models; only
 *                                          those whose path has NAME in it are run
 *
 * Hybrid runs differ from the CPU in the order of f32 sums only: tests/tolerance.h, rows logits-lane. The models with float weights
 * make the sharp test, with the CPU's best kernels; with int8 activations a difference in the last bit may turn into another int8 and that into another
 * expert. So models with quantised weights run with plain C, whose order of sums is nearest to a device's: w256-mixtral-4x2-q4_0 has steps where
 * attention that is one unit in the last place away, on the CPU alone, moves logits by 0.49.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/engine/lane.h"
#include "src/model/cut.h"
#include "tests/backend.h"
#include "tests/tolerance.h"
#include "yoke/yoke.h"

/* Tokens of sequences a, b and of c, a fork of a, in each step. More than 32 are prefill: at depth 0, then with a and its fork,
 * which share a block that both write to, then with b and c. Decode steps between read what the prefill left. */
static const uint32_t steps[][3] = {{45, 1}, {1, 1}, {1},         {1, 1},    {1, 1},      {1},      {1, 1},
                                    {1, 1},  {1},    {20, 0, 17}, {1, 1, 1}, {0, 24, 18}, {1, 1, 1}};
enum { N_STEPS = sizeof steps / sizeof *steps, N_SEQS = 3, N_TOKENS = 128, N_ROWS = 25, CONTEXT = 96 };

static const struct {
    const char *path; /* below YOKE_FIXTURES, or "models/" below YOKE_SOURCE */
    bool quantised;
    uint32_t width; /* float weights: FFN widened to this (several cut units and a narrower last one); 0: as the file says */
} models[] = {
    {"models/yoke-tiny-mixtral-q4_k_m.gguf", true},
    {"w256-mixtral-4x2-f16.gguf", false},
    {"w256-mixtral-4x2-q4_0.gguf", true},
    {"w256-llama-f16.gguf", false},
    {"w64-qwen3moe-4x2-f16.gguf", false},
    {"w256-llama-q4_k_m.gguf", true},
    {"w64-qwen2moe-8x4-f16.gguf", false},
    {"w256-llama-q8_0.gguf", true},
    {"w256-mixtral-4x2-q8_0.gguf", true},
    {"stories260K-f32.gguf", false},
    {"w128-llama-ropefreqs-f16.gguf", false},
    {"w128-qwen2-f16.gguf", false},
    {"w128-olmoe-4x2-f16.gguf", false},
    {"w128-phi3-f16.gguf", false},
    {"w128-phimoe-4x2-f16.gguf", false},
    {"w64-gpt-oss-4x2-f16.gguf", false},
    {"w256-llama-q5_k_m.gguf", true},
    {"w128-llama-ropefreqs-mxfp4-q8_0.gguf", true},
    {"w256-llama-iq4_xs.gguf", true},
    {"w256-llama-iq4_nl.gguf", true},
    {"w256-llama-q3_k_m.gguf", true},
    {"w256-llama-q2_k.gguf", true},
    {"w256-llama-q5_1.gguf", true},
    {"w256-llama-q5_0.gguf", true},
    {"w256-llama-q4_1.gguf", true},
    {"stories260K-bf16.gguf", false},
    {"w64-gpt-oss-4x2-f16.gguf", false, 600},
    {"w128-phi3-f16.gguf", false, 600},
    {"stories260K-f32.gguf", false, 700},
};
enum { N_MODELS = sizeof models / sizeof *models };

static int fail(const char *what, const char *text)
{
    printf("FAILED: %s: %s\n", what, text);
    return 1;
}

/* Rows or columns of a float matrix repeated in their order until there are n. */
static bool widen_matrix(yk_model *m, yk_weight *w, bool columns, uint32_t n)
{
    const size_t elem = yk_type_get((uint32_t)w->type)->block_bytes;
    const uint32_t rows = columns ? w->n_rows : n, cols = columns ? n : w->n_cols;
    uint8_t *all = yk_model_own(m, YK_MEM_WEIGHTS, (uint64_t)w->n_mats * rows, cols * elem), *to = all;
    for (uint32_t i = 0; all && i < w->n_mats; i++)
        for (uint32_t r = 0; r < rows; r++)
            for (uint32_t k = 0; k < cols; k++, to += elem)
                memcpy(to, yk_weight_row(w, i, r % w->n_rows) + k % w->n_cols * elem, elem);
    *w = (yk_weight){.data = all,
                     .type = w->type,
                     .n_rows = rows,
                     .n_cols = cols,
                     .n_mats = w->n_mats,
                     .row_bytes = cols * elem,
                     .mat_bytes = rows * cols * elem};
    return all;
}

static bool widen_bias(yk_model *m, const float **b, uint32_t n_mats, uint32_t old, uint32_t n)
{
    float *to = *b ? yk_model_own(m, YK_MEM_WEIGHTS, (uint64_t)n_mats * n, sizeof *to) : NULL;
    for (uint32_t i = 0; to && i < n_mats * n; i++)
        to[i] = (*b)[i / n * old + i % n % old];
    const bool ok = to || !*b;
    *b = to;
    return ok;
}

/* No fixture with float weights is wider than one cut unit. A wider model is made of one whose width does not divide 256, so that no
 * two of its cut units are alike. */
static bool widen(yk_model *m, uint32_t n)
{
    bool ok = true;
    for (uint32_t i = 0; ok && i < m->hp.n_layers; i++) {
        yk_layer *l = &m->layers[i];
        const uint32_t old = l->gate.n_rows, e = l->gate.n_mats;
        ok = YK_CUT_UNIT % old && widen_matrix(m, &l->gate, false, n) && widen_matrix(m, &l->up, false, n) &&
             widen_matrix(m, &l->down, true, n) && widen_bias(m, &l->gate_b, e, old, n) && widen_bias(m, &l->up_b, e, old, n);
    }
    *(m->hp.n_experts ? &m->hp.n_expert_ff : &m->hp.n_ff) = n;
    return ok;
}

/* Staging is what the plan says, but for alignment: 64 bytes for each matrix and vector of attention. */
static int check_staging(const yk_engine *e, const yk_plan *plan)
{
    uint64_t used[YK_MEM_N_CLASSES], budget;
    if (!e->lane)
        return 0;
    e->lane->t->mem_used(e->lane->gpu, used, &budget);
    if (used[YK_MEM_STAGING] <= plan->memory[1][YK_MEM_STAGING] + YK_LANE_SLOTS * (18 * 64 + YK_LANE_ALIGN))
        return 0;
    printf("FAILED: staging takes %llu bytes, the plan says %llu\n", (unsigned long long)used[YK_MEM_STAGING],
           (unsigned long long)plan->memory[1][YK_MEM_STAGING]);
    return 1;
}

/* The steps above: logits of the last token of each sequence in each step, [N_ROWS][n_vocab]. */
static int run(yk_model *m, const yk_plan *plan, const char *isa, const int32_t *tokens, float *logits, char *device)
{
    yk_error err = {0};
    yk_engine_opts o;
    yk_engine *e;
    yk_seq *seqs[N_SEQS] = {NULL};
    yk_model_info info;
    yk_model_get_info(m, &info);
    yk_engine_opts_init(&o);
    o.plan = plan;
    o.device = plan ? NULL : "cpu"; /* what the plans are compared with */
    o.device = plan ? NULL : "cpu"; /* on a machine with a card, the default is to use it */
    o.isa = isa;
    o.threads = 2;
    o.context = CONTEXT;
    o.max_seqs = N_SEQS;
    o.batch = 64;
    o.kv_type = YK_KV_F32;
    if (yk_engine_open(&e, m, &o, &err) != YK_OK)
        return fail("yk_engine_open", err.text);
    yk_engine_stats st;
    yk_engine_get_stats(e, &st);
    strcpy(device, st.device);
    int bad = yk_seq_open(&seqs[0], e, &err) || yk_seq_open(&seqs[1], e, &err);
    uint32_t row = 0;
    for (int s = 0; !bad && s < N_STEPS; s++) {
        yk_batch_entry entries[N_SEQS];
        uint32_t n = 0;
        bad = steps[s][2] && !seqs[2] && yk_seq_fork(&seqs[2], seqs[0], &err) != YK_OK;
        for (uint32_t q = 0; !bad && q < N_SEQS; q++)
            if (steps[s][q]) /* other tokens in the fork, and in b */
                entries[n++] = (yk_batch_entry){seqs[q], tokens + yk_seq_length(seqs[q]) + 13 * q, steps[s][q], YK_LOGITS_LAST};
        bad = bad || yk_decode(e, entries, n, &err) != YK_OK;
        for (uint32_t i = 0; !bad && i < n; i++)
            memcpy(logits + (size_t)row++ * info.n_vocab, yk_logits(e, i, 0), info.n_vocab * sizeof *logits);
    }
    bad = bad             ? fail("yk_decode", err.text)
          : row != N_ROWS ? fail("the steps", "other rows than N_ROWS")
                          : check_staging(e, plan);
    for (uint32_t q = 0; q < N_SEQS; q++)
        yk_seq_close(&seqs[q]);
    yk_engine_close(&e);
    return bad;
}

typedef struct tally {
    int plans, rows, same, kinds[3]; /* same: rows within 1e-3 */
    int attn_copied;                 /* layers */
    double most[2];                  /* largest difference: float, quantised weights */
} tally;

/* Every row within the row of another lane. */
static int compare(const float *want, const float *got, uint32_t n_vocab, bool quantised, const char *what, tally *t)
{
    const double limit = yk_tolerance_find("logits-lane", quantised ? "quantised" : "float")->rel;
    for (int s = 0; s < N_ROWS; s++) {
        const double d = yk_largest_difference(want + (size_t)s * n_vocab, got + (size_t)s * n_vocab, n_vocab);
        t->rows++;
        t->same += d <= 1e-3;
        t->most[quantised] = d <= t->most[quantised] ? t->most[quantised] : d;
        if (!(d <= limit)) {
            printf("FAILED: %s: row %d differs by %g, allowed %g\n", what, s, d, limit);
            return 1;
        }
    }
    return 0;
}

static int test_model(size_t index, const char *backend, uint64_t seed0, int n_plans, tally *t)
{
    char path[4096], what[300], device[64];
    const char *fixtures = getenv("YOKE_FIXTURES"), *source = getenv("YOKE_SOURCE");
    const bool own = strncmp(models[index].path, "models/", 7) == 0;
    snprintf(path, sizeof path, "%s/%s", own ? (source ? source : ".") : (fixtures ? fixtures : "../shared/models"),
             models[index].path);
    yk_error err = {0};
    yk_model *m;
    if (yk_model_open(&m, path, NULL, &err) != YK_OK) {
        if (own)
            return fail("yk_model_open", err.text);
        printf("skipped: %s\n", err.text);
        return 0;
    }
    if (models[index].width && !widen(m, models[index].width))
        return fail("widening", path);
    yk_model_info info;
    yk_model_get_info(m, &info);
    int32_t tokens[N_TOKENS];
    uint32_t z = 777;
    for (int i = 0; i < N_TOKENS; i++) {
        z = z * 1664525u + 1013904223u;
        tokens[i] = i ? (int32_t)(260 + (z >> 8) % (info.n_vocab - 260)) : info.bos;
    }
    const char *isa = models[index].quantised ? "ref" : NULL; /* see the top */
    yk_shape shape;
    float *want = calloc((size_t)N_ROWS * info.n_vocab, sizeof *want),
          *got = calloc((size_t)N_ROWS * info.n_vocab, sizeof *got),
          *again = calloc((size_t)N_ROWS * info.n_vocab, sizeof *again);
    int bad = yk_shape_from_model(&shape, m, &(yk_shape_opts){.bytes = yk_place_bytes}, &err) != YK_OK ||
              run(m, NULL, isa, tokens, want, device);
    yk_plan_limits limits = {.context = CONTEXT, .max_seqs = N_SEQS, .batch = 64, .kv_elem_bytes = 4, .n_devices = 1};
    snprintf(limits.devices[0].name, sizeof limits.devices[0].name, "%s:0", backend);
    limits.devices[0].budget_bytes = 1ull << 30;
    for (int i = 0; !bad && i < n_plans; i++) {
        yk_plan plan;
        snprintf(what, sizeof what, "%s (width %u), %s, plan of seed %llu", models[index].path, models[index].width, backend,
                 (unsigned long long)(seed0 + (uint64_t)i));
        if (yk_plan_random(&plan, seed0 + (uint64_t)i, &shape, &limits, &err) != YK_OK)
            return fail(what, err.text);
        if (plan.n_devices) {
            bad = run(m, &plan, isa, tokens, got, device) || compare(want, got, info.n_vocab, models[index].quantised, what, t);
            if (!bad && i == 0) {
                bad = run(m, &plan, isa, tokens, again, device);
                if (!bad && memcmp(got, again, (size_t)N_ROWS * info.n_vocab * sizeof *got) != 0)
                    bad = fail(what, "the same plan gave other bits the second time");
            }
            if (!bad && !strstr(device, backend))
                bad = fail(what, "the device was not used");
            t->plans++;
        }
        for (uint32_t l = 0; l < plan.n_layers; l++) {
            t->attn_copied +=
                plan.layers[l].attn_home == YK_HOST && yk_plan_attn_on_device(&plan.layers[l], true, steps[0][0] + steps[0][1]);
            for (uint32_t s = 0; s < plan.layers[l].n_slices; s++)
                t->kinds[plan.layers[l].slices[s].kind[0]]++;
        }
        yk_plan_clear(&plan);
    }
    if (bad && err.text[0])
        printf("%s: %s\n", models[index].path, err.text);
    free(want);
    free(got);
    free(again);
    yk_shape_close(&shape);
    yk_model_close(&m);
    return bad;
}

int main(int argc, char **argv)
{
    const char *backend = argc > 1 ? argv[1] : "null";
    const int n = argc > 2 ? atoi(argv[2]) : 20;
    const int missing = yk_test_backend(backend);
    if (missing)
        return missing;
    tally t = {0};
    for (size_t i = 0; i < N_MODELS; i++)
        if ((argc < 4 || strstr(models[i].path, argv[3])) &&
            test_model(i, backend, 1000 * i, (n + (int)(N_MODELS - 1 - i)) / N_MODELS, &t))
            return 1;
    printf("%s: %d plans, %d slices GG, %d CC, %d CG, attention copied in %d layers, %d rows, %d within 1e-3, largest "
           "difference %.2g "
           "(float weights), %.2g (quantised)\n",
           backend, t.plans, t.kinds[YK_KIND_GG], t.kinds[YK_KIND_CC], t.kinds[YK_KIND_CG], t.attn_copied, t.rows, t.same,
           t.most[0], t.most[1]);
    if (argc < 4 && !t.attn_copied)
        return fail("the run as a whole", "attention was never copied");
    if (!t.plans || !t.kinds[YK_KIND_GG] || !t.kinds[YK_KIND_CC] || !t.kinds[YK_KIND_CG])
        return fail("the run as a whole", "a kind of slice was not used");
    return 0;
}
