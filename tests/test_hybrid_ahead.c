/* Experts that the plan has copied ahead of the router: the copies begin with the layer, the results have the same bits, and
 * what was copied for an expert that nobody chose is forgotten.
 *
 *   test_hybrid_ahead WORK_FOLDER    traces are written there */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/engine/lane.h"

/* Copies and kernels long enough to be told apart: attention of a layer takes some ms, an expert is copied in about one. */
#define TIME_OPTIONS "null:time,d=1,link=200e6,launch=5e-4,copy=1e-4,mem=16e9,vram=1e9"

enum { N_SEQS = 2, N_STEPS = 12, N_CG = 5, MAX_COPIES = 64 };

static int fail(const char *what, const char *text)
{
    printf("FAILED: %s: %s\n", what, text);
    return 1;
}

typedef struct test_run {
    const char *name, *device, *trace;
    bool attn, ahead; /* attention on the device */
    float *logits;    /* [N_STEPS][N_SEQS][n_vocab]; NULL: in modelled time */
    uint32_t copies;  /* of weights */
    uint32_t early;   /* in modelled time: those that began before it was known which experts are chosen */
} test_run;

/* All experts of the host; the first ones are copied when decoding two sequences, the others computed by the CPU. */
static yk_status make_plan(yk_plan *p, const yk_shape *s, const test_run *t, yk_error *err)
{
    YK_TRY(yk_plan_init(p, s->n_layers, err));
    memset(p->memory, 0xff, sizeof p->memory);
    yk_plan_device(p, "null:0");
    p->head_home = 0;
    for (uint32_t l = 0; l < s->n_layers; l++) {
        const yk_shape_part *part = &s->layers[l].part[YK_PART_EXP];
        p->layers[l].attn_home = t->attn ? 0 : YK_HOST;
        p->layers[l].ahead[YK_B_4] = t->ahead;
        for (uint32_t e = 0; e < part->n; e++) {
            yk_slice sl = {.group = YK_PART_EXP, .home = YK_HOST, .expert = e, .units = part->cut.n};
            memset(sl.kind, e < N_CG ? YK_KIND_CG : YK_KIND_CC, sizeof sl.kind);
            YK_TRY(yk_plan_add(p, l, &sl, err));
        }
    }
    return YK_OK;
}

/* When it is known in a layer which experts are chosen: behind the router on the device; otherwise when rows go up. */
static uint64_t known_ns(const yk_trace *t, uint32_t step, uint32_t layer, bool attn)
{
    for (uint32_t i = 0; i < yk_trace_count(t); i++) {
        const yk_trace_rec *r = yk_trace_get(t, i);
        if (r->step != step || r->layer != layer)
            continue;
        if (attn && r->lane == YK_TRACE_GPU && strcmp(r->op, "route") == 0)
            return r->start_ns + r->dur_ns;
        if (!attn && r->lane == YK_TRACE_UP && strcmp(r->op, "rows") == 0)
            return r->start_ns;
    }
    return 0;
}

/* The copies of a step; in modelled time, that no more begin early in a layer than the plan lets them. */
static int look_at(test_run *t, const yk_trace *trace, uint32_t step, uint32_t n_layers)
{
    for (uint32_t l = 0; l < n_layers; l++) {
        const uint64_t known = known_ns(trace, step, l, t->attn);
        uint32_t n[2] = {0};
        for (uint32_t i = 0; i < yk_trace_count(trace); i++) {
            const yk_trace_rec *r = yk_trace_get(trace, i);
            if (r->step == step && r->layer == l && r->lane == YK_TRACE_UP && strcmp(r->op, "weights") == 0)
                n[r->start_ns >= known]++;
        }
        t->copies += n[0] + n[1];
        t->early += n[0];
        if (!t->logits && (!known || n[0] > (t->ahead ? YK_LANE_SLOTS : 0) || n[0] + n[1] > N_CG)) {
            printf("%s: step %u, layer %u: %u copies begin before the choice is known, %u behind it\n", t->name, step, l, n[0],
                   n[1]);
            return fail(t->name, "copies do not begin when the plan says");
        }
    }
    return 0;
}

static int run(const yk_model *m, test_run *t)
{
    yk_error err = {0};
    yk_shape s;
    yk_plan plan;
    yk_engine *e;
    yk_engine_opts o;
    yk_model_info info;
    yk_seq *seqs[N_SEQS] = {NULL};
    yk_model_get_info(m, &info);
    if (yk_shape_from_model(&s, m, &(yk_shape_opts){.bytes = yk_place_bytes}, &err) != YK_OK ||
        make_plan(&plan, &s, t, &err) != YK_OK)
        return fail(t->name, err.text);
    yk_engine_opts_init(&o);
    o.plan = &plan;
    o.device = t->device;
    o.threads = 2;
    o.context = 64;
    o.max_seqs = N_SEQS;
    o.batch = 64;
    o.trace_path = t->trace;
    if (yk_engine_open(&e, m, &o, &err) != YK_OK)
        return fail(t->name, err.text);
    if (!t->logits)
        e->lane->cpu_rate = 40e6;
    int bad = 0;
    for (uint32_t q = 0; !bad && q < N_SEQS; q++)
        bad = yk_seq_open(&seqs[q], e, &err) != YK_OK;
    for (uint32_t i = 0; !bad && i < N_STEPS; i++) {
        const int32_t tokens[N_SEQS] = {(int32_t)(300 + 17 * i), (int32_t)(500 + 29 * i)};
        const yk_batch_entry b[N_SEQS] = {{seqs[0], &tokens[0], 1, YK_LOGITS_LAST}, {seqs[1], &tokens[1], 1, YK_LOGITS_LAST}};
        bad = yk_decode(e, b, N_SEQS, &err) != YK_OK;
        for (uint32_t q = 0; !bad && t->logits && q < N_SEQS; q++)
            memcpy(t->logits + ((size_t)i * N_SEQS + q) * info.n_vocab, yk_logits(e, q, 0), info.n_vocab * sizeof(float));
        if (!bad && i && look_at(t, e->trace, i, info.n_layers)) /* the first step opens the trace's events */
            return 1;
    }
    for (uint32_t q = 0; q < N_SEQS; q++)
        yk_seq_close(&seqs[q]);
    yk_engine_close(&e);
    yk_plan_clear(&plan);
    yk_shape_close(&s);
    return bad ? fail(t->name, err.text) : 0;
}

int main(int argc, char **argv)
{
    yk_error err = {0};
    yk_model *m;
    yk_model_info info;
    char path[4096], trace[4096];
    const char *source = getenv("YOKE_SOURCE");
    snprintf(path, sizeof path, "%s/models/yoke-tiny-mixtral-q4_k_m.gguf", source ? source : ".");
    snprintf(trace, sizeof trace, "%s/trace-ahead.json", argc > 1 ? argv[1] : ".");
    if (yk_model_open(&m, path, NULL, &err) != YK_OK)
        return fail(path, err.text);
    yk_model_get_info(m, &info);
    const size_t n = (size_t)N_STEPS * N_SEQS * info.n_vocab;
    float *want = calloc(n, sizeof *want), *got = calloc(n, sizeof *got);
    int bad = !want || !got;
    for (int attn = 0; !bad && attn < 2; attn++) {
        test_run plain = {
            attn ? "attention on the device" : "attention on the host", "null:compute", trace, attn, false, want, 0};
        test_run ahead = plain;
        ahead.ahead = true;
        ahead.logits = got;
        bad = run(m, &plain) || run(m, &ahead);
        if (!bad && memcmp(want, got, n * sizeof *got) != 0)
            bad = fail(plain.name, "experts copied ahead change the bits of the results");
        const uint32_t two = YK_LANE_SLOTS * (N_STEPS - 1) * info.n_layers;
        printf("%s: %u copies behind the router; with %u of them ahead %u\n", plain.name, plain.copies, two, ahead.copies);
        /* Some were copied for nothing, else this shows nothing of those; the others were copied once. */
        if (!bad && !(ahead.copies > plain.copies && ahead.copies < plain.copies + two))
            bad = fail(plain.name, "other copies than the chosen ones and two ahead in each layer");
        plain.logits = ahead.logits = NULL;
        plain.device = ahead.device = TIME_OPTIONS;
        plain.early = ahead.early = 0;
        bad = bad || run(m, &plain) || run(m, &ahead);
        printf("%s, modelled time: %u of %u begin before the choice is known\n", plain.name, ahead.early, two);
        if (!bad && ahead.early < two - two / 4) /* other programs delay some */
            bad = fail(plain.name, "copies ahead do not begin with the layer");
    }
    free(want);
    free(got);
    yk_model_close(&m);
    return bad;
}
