/* The executor's order of work, seen in modelled time: the null device waits for absolute deadlines instead of computing, the CPU lane likewise, and
 * the trace of a step must show the lanes at work at the same time. Nothing of what is measured depends on the machine but how late threads wake up,
 * which the dilation D makes small: all figures are divided by it.
 *
 *   test_hybrid_time WORK_FOLDER [PLAN]    the model (218 MB) and traces are written there, and the model removed at the end
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/base/clock.h"
#include "src/base/file.h"
#include "src/engine/lane.h"

#define D       20
#define OPTIONS "null:time,d=20,link=12e9,launch=5e-6,copy=10e-6,mem=16e9"
#define LIMIT   1.15 /* of the longest lane */

enum { N_LAYERS = 4, N_STEPS = 5, MAX_STEPS = 48 };

/* Rates of machines on which the named lane is the longest one of its plan. */
static const struct plan_case {
    const char *name;
    double vram, cpu; /* bytes/s */
    enum yk_trace_lane longest;
    double cpu_beside_gpu, link_beside_gpu; /* at least this share of the lane's work lies beside the GPU's */
    uint32_t tokens;                        /* of a step; 0: 1, and the sequence grows */
} cases[] = {
    {"mostly-gg", 100e9, 40e9, YK_TRACE_GPU, 0.8, 0},
    {"cc-gg", 100e9, 40e9, YK_TRACE_GPU, 0.8, 0},
    {"cg-prefetch", 300e9, 80e9, YK_TRACE_UP, 0.5, 0.5, 0},
    /* Nothing is on the device: attention, its KV and the FFN are copied. */
    {"attn-prefill", 48e9, 80e9, YK_TRACE_UP, 0, 0.35, 64},
};

static int fail(const char *what, const char *text)
{
    printf("FAILED: %s: %s\n", what, text);
    return 1;
}

/* ---- busy times from a trace ----------------------------------------------------------------------------------------------------------- */

typedef struct span {
    uint64_t from, to;
} span;

typedef struct spans {
    span *s;
    size_t n;
} spans;

static int by_start(const void *a, const void *b)
{
    const span *x = a, *y = b;
    return x->from < y->from ? -1 : x->from > y->from;
}

/* When a lane was busy in a step: disjoint spans in order. */
static spans busy(const yk_trace *t, uint32_t step, enum yk_trace_lane lane)
{
    spans r = {calloc(yk_trace_count(t) + 1, sizeof *r.s), 0};
    for (uint32_t i = 0; i < yk_trace_count(t); i++) {
        const yk_trace_rec *rec = yk_trace_get(t, i);
        if (rec->step == step && rec->lane == lane)
            r.s[r.n++] = (span){rec->start_ns, rec->start_ns + rec->dur_ns};
    }
    qsort(r.s, r.n, sizeof *r.s, by_start);
    size_t n = 0;
    for (size_t i = 0; i < r.n; i++)
        if (n && r.s[i].from <= r.s[n - 1].to)
            r.s[n - 1].to = r.s[i].to > r.s[n - 1].to ? r.s[i].to : r.s[n - 1].to;
        else
            r.s[n++] = r.s[i];
    r.n = n;
    return r;
}

static double length(const spans *a)
{
    double sum = 0;
    for (size_t i = 0; i < a->n; i++)
        sum += (double)(a->s[i].to - a->s[i].from);
    return sum;
}

static double overlap(const spans *a, const spans *b)
{
    double sum = 0;
    for (size_t i = 0, j = 0; i < a->n && j < b->n;) {
        const uint64_t from = a->s[i].from > b->s[j].from ? a->s[i].from : b->s[j].from;
        const uint64_t to = a->s[i].to < b->s[j].to ? a->s[i].to : b->s[j].to;
        sum += to > from ? (double)(to - from) : 0;
        if (a->s[i].to < b->s[j].to)
            i++;
        else
            j++;
    }
    return sum;
}

/* One step of the trace, measured by the caller as well; ratio to the longest lane or -1 when something else is wrong. */
static double look_at(const yk_trace *t, const struct plan_case *c, uint32_t step, double wall_ns)
{
    static const char *const names[] = {"cpu", "gpu", "link", "link 2"};
    spans s[YK_TRACE_LANES];
    double len[YK_TRACE_LANES];
    int longest = 0;
    for (int i = 0; i < YK_TRACE_LANES; i++) {
        s[i] = busy(t, step, (enum yk_trace_lane)i);
        len[i] = length(&s[i]);
        longest = len[i] > len[longest] ? i : longest;
    }
    const double cpu = len[YK_TRACE_CPU] > 0 ? overlap(&s[YK_TRACE_CPU], &s[YK_TRACE_GPU]) / len[YK_TRACE_CPU] : 0;
    const double link = overlap(&s[YK_TRACE_UP], &s[YK_TRACE_GPU]) / len[YK_TRACE_UP], ratio = wall_ns / len[longest];
    printf("%-12s step %u: %.3f ms; cpu %.3f, gpu %.3f, link %.3f, back %.3f ms; %.3f of %s; %.0f %% of cpu and %.0f %% of "
           "link beside gpu\n",
           c->name, step, wall_ns / 1e6 / D, len[0] / 1e6 / D, len[1] / 1e6 / D, len[2] / 1e6 / D, len[3] / 1e6 / D, ratio,
           names[longest], 100 * cpu, 100 * link);
    for (int i = 0; i < YK_TRACE_LANES; i++)
        free(s[i].s);
    if (longest != (int)c->longest || !(cpu >= c->cpu_beside_gpu) || !(link >= c->link_beside_gpu))
        return -1;
    return ratio;
}

/* Copies of a kind in a step. */
static uint32_t copies(const yk_trace *t, uint32_t step, enum yk_trace_lane lane, const char *op)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < yk_trace_count(t); i++) {
        const yk_trace_rec *rec = yk_trace_get(t, i);
        n += rec->step == step && rec->lane == lane && strcmp(rec->op, op) == 0;
    }
    return n;
}

/* ---- a plan ------------------------------------------------------------------------------------------------------------------------------ */

static int steps(yk_engine *e, const struct plan_case *c, uint32_t n_vocab)
{
    yk_error err = {0};
    yk_seq *seq;
    int32_t tokens[64] = {5, 6, 7};
    if (yk_seq_open(&seq, e, &err) != YK_OK)
        return fail(c->name, err.text);
    double best = INFINITY;
    int seen = 0;
    uint32_t i = 0;
    for (; i < N_STEPS || (i < MAX_STEPS && (seen < N_STEPS / 2 || !(best <= LIMIT)));
         i++) { /* other programs only make steps longer */
        const yk_batch_entry b = {seq, tokens, c->tokens ? c->tokens : 1, i ? YK_LOGITS_NONE : YK_LOGITS_LAST};
        if (c->tokens && i > 1 && yk_seq_truncate(seq, c->tokens, &err) != YK_OK) /* always at the same depth */
            return fail(c->name, err.text);
        const uint64_t from = yk_now_ns();
        if (yk_decode(e, &b, 1, &err) != YK_OK)
            return fail(c->name, err.text);
        const double wall = (double)(yk_now_ns() - from), ratio = look_at(e->trace, c, i, wall);
        if (i == 0) { /* opens the trace's events; also the step with the head */
            const float *logits = yk_logits(e, 0, 0);
            for (uint32_t v = 0; v < n_vocab; v++)
                if (!isfinite(logits[v]))
                    return fail(c->name, "logits are not finite");
            continue;
        }
        seen += ratio > 0;
        best = ratio > 0 && ratio < best ? ratio : best;
    }
    yk_seq_close(&seq);
    if (c->tokens &&
        (copies(e->trace, 0, YK_TRACE_UP, "kv") != 0 || copies(e->trace, 1, YK_TRACE_UP, "kv") != N_LAYERS ||
         copies(e->trace, 0, YK_TRACE_DOWN, "kv") != N_LAYERS || copies(e->trace, 1, YK_TRACE_UP, "attn") != N_LAYERS))
        return fail(c->name, "attention and KV are not copied once a layer");
    if (seen < N_STEPS / 2)
        return fail(c->name, "lanes do not overlap as the plan lets them");
    if (!(best <= LIMIT))
        return fail(c->name, "a step takes more than 1.15 of its longest lane");
    printf("%-12s best of %u steps: %.3f of its longest lane\n", c->name, i, best);
    return 0;
}

static int test_plan(const yk_model *m, const struct plan_case *c, const char *folder)
{
    yk_error err = {0};
    char path[4096], device[256], trace[4096];
    char *text;
    size_t n;
    yk_plan plan;
    yk_engine *e;
    yk_engine_opts o;
    yk_model_info info;
    const char *source = getenv("YOKE_SOURCE");
    yk_model_get_info(m, &info);
    snprintf(path, sizeof path, "%s/tests/data/plans/llama-1b-4-%s.json", source ? source : ".", c->name);
    snprintf(trace, sizeof trace, "%s/trace-%s.json", folder, c->name);
    snprintf(device, sizeof device, OPTIONS ",vram=%g", c->vram);
    if (yk_read_file(&text, &n, path, 1 << 20, &err) != YK_OK)
        return fail(path, err.text);
    const yk_status st = yk_plan_read(&plan, text, n, &err);
    yk_free(text);
    if (st != YK_OK)
        return fail(path, err.text);
    yk_engine_opts_init(&o);
    o.plan = &plan;
    o.device = device;
    o.threads = 2;
    o.context = 128;
    o.trace_path = trace;
    if (yk_engine_open(&e, m, &o, &err) != YK_OK)
        return fail(c->name, err.text);
    e->lane->cpu_rate = c->cpu / D;
    const int bad = steps(e, c, info.n_vocab);
    yk_engine_close(&e);
    yk_plan_clear(&plan);
    return bad;
}

int main(int argc, char **argv)
{
    yk_error err = {0};
    yk_model *m;
    char path[4096];
    const char *folder = argc > 1 ? argv[1] : ".";
    snprintf(path, sizeof path, "%s/llama-1b-4-%d.gguf", folder, (int)getpid());
    yk_synth_opts so;
    yk_synth_opts_init(&so);
    so.shape = "llama-1b";
    so.type = "Q4_0";
    so.n_layers = N_LAYERS;
    if (yk_synth(path, &so, &err) != YK_OK)
        return fail("yk_synth", err.text);
    int bad = yk_model_open(&m, path, NULL, &err) != YK_OK;
    unlink(path);
    if (bad)
        return fail(path, err.text);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (argc < 3 || strcmp(argv[2], cases[i].name) == 0)
            bad |= test_plan(m, &cases[i], folder);
    yk_model_close(&m);
    return bad;
}
