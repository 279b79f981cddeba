/* yk_engine_stats.work against what is known otherwise: sizes of the model, the trace's tasks of the same steps, the planner's formula.
 *
 *   test_stats WORK_FOLDER    traces are written there */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/base/clock.h"
#include "src/engine/auto.h"
#include "src/engine/stats.h"

#define TIME_OPTIONS "null:time,d=1,link=200e6,launch=2e-4,copy=1e-4,mem=16e9,vram=2e9"

enum { N_PROMPT = 40, N_STEPS = 48, N_GG = 3, N_CG = 2 };

static int fail(const char *what, const char *text)
{
    printf("FAILED: %s: %s\n", what, text);
    return 1;
}

static int differ(const char *what, const char *field, double got, double want)
{
    printf("FAILED: %s: %s is %.17g, expected %.17g\n", what, field, got, want);
    return 1;
}

#define SAME(what, field, got, want)                                                                                           \
    do {                                                                                                                       \
        if ((uint64_t)(got) != (uint64_t)(want))                                                                               \
            return differ(what, field, (double)(got), (double)(want));                                                         \
    } while (0)
#define NEAR(what, field, got, want, share)                                                                                    \
    do {                                                                                                                       \
        if (!(fabs((double)(got) - (double)(want)) <= (share)*fabs((double)(want))))                                           \
            return differ(what, field, (double)(got), (double)(want));                                                         \
    } while (0)

typedef struct test_engine {
    const yk_model *m;
    yk_engine *e;
    yk_seq *seq;
    yk_engine_stats stats;
} test_engine;

static int decode(test_engine *t, uint32_t n)
{
    yk_error err = {0};
    int32_t tokens[N_PROMPT];
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(300 + (yk_seq_length(t->seq) * 37 + i * 91) % 900);
    const yk_batch_entry b = {t->seq, tokens, n, YK_LOGITS_LAST};
    if (yk_decode(t->e, &b, 1, &err) != YK_OK)
        return fail("decode", err.text);
    yk_engine_get_stats(t->e, &t->stats);
    return 0;
}

static int open_engine(test_engine *t, const yk_model *m, const yk_engine_opts *o)
{
    yk_error err = {0};
    *t = (test_engine){.m = m};
    if (yk_engine_open(&t->e, m, o, &err) != YK_OK || yk_seq_open(&t->seq, t->e, &err) != YK_OK)
        return fail("open", err.text);
    return 0;
}

static void close_engine(test_engine *t)
{
    yk_seq_close(&t->seq);
    yk_engine_close(&t->e);
}

static double layer_kv(const test_engine *t)
{
    return (double)t->stats.kv_bytes_per_token;
}

/* ---- the CPU alone ------------------------------------------------------------------------------------------------------------------- */

static int cpu_alone(const yk_model *m)
{
    test_engine t;
    yk_engine_opts o;
    yk_engine_opts_init(&o);
    o.device = "cpu";
    o.threads = 2;
    o.context = 128;
    if (open_engine(&t, m, &o) || decode(&t, N_PROMPT))
        return 1;
    const yk_hparams *hp = &m->hp;
    SAME("prompt", "n_steps", t.stats.work[YK_WORK_PROMPT].n_steps, 1);
    SAME("prompt", "n_tokens", t.stats.work[YK_WORK_PROMPT].n_tokens, N_PROMPT);
    SAME("prompt", "experts", t.stats.work[YK_WORK_PROMPT].experts, N_PROMPT * hp->n_layers * hp->n_used);
    for (uint32_t i = 0; i < N_STEPS; i++) {
        const yk_work before = t.stats.work[0];
        if (decode(&t, 1))
            return 1;
        const yk_work *w = &t.stats.work[0];
        const double kv = layer_kv(&t) * (N_PROMPT + i + 1);
        SAME("decode", "n_steps", w->n_steps, i + 1);
        SAME("decode", "host_bytes", w->host_bytes - before.host_bytes, (double)t.stats.weight_bytes_per_token + kv);
        SAME("decode", "experts", w->experts - before.experts, hp->n_layers * hp->n_used);
    }
    const yk_work *w = &t.stats.work[0];
    SAME("decode", "experts_resident", w->experts_resident, 0);
    SAME("decode", "device_bytes", w->device_bytes + w->up_bytes + w->down_bytes + w->n_sampled, 0);
    SAME("decode", "cpu_ns", w->cpu_ns, w->ns);
    SAME("decode", "predicted_ns", w->predicted_ns + w->roof_ns, 0);
    uint64_t tokens = 0, steps = 0;
    for (uint32_t k = 0; k < YK_N_WORK; k++) {
        tokens += t.stats.work[k].n_tokens;
        steps += t.stats.work[k].n_steps;
    }
    SAME("all", "n_tokens", tokens, t.stats.n_tokens);
    SAME("all", "n_steps", steps, t.stats.n_steps);
    close_engine(&t);
    return 0;
}

/* What the counters take, beside the step that they count: the best of many of each, so that other programs do not matter. */
static int cheap(const yk_model *m)
{
    test_engine t;
    yk_engine_opts o;
    uint64_t best = UINT64_MAX, least = UINT64_MAX;
    yk_engine_opts_init(&o);
    o.device = "cpu";
    o.threads = 1;
    o.context = 128;
    if (open_engine(&t, m, &o) || decode(&t, N_PROMPT))
        return 1;
    for (uint32_t i = 0; i < N_STEPS; i++) {
        const uint64_t before = t.stats.work[0].ns;
        if (decode(&t, 1))
            return 1;
        const uint64_t ns = t.stats.work[0].ns - before;
        best = ns < best ? ns : best;
    }
    yk_step *step = &t.e->steps[(t.e->next_step + YK_N_STEPS - 1) % YK_N_STEPS];
    const uint32_t n_layers = m->hp.n_layers, k = m->hp.n_used;
    uint32_t part[16] = {1, 3}, slot0[17];
    for (uint32_t a = 0; a < 17; a++)
        slot0[a] = a;
    const yk_group g = {.part = part, .slot0 = slot0, .n_active = k};
    for (uint32_t i = 0; i < 2000; i++) {
        const uint64_t from = yk_now_ns();
        yk_stats_begin(t.e->stats, step);
        for (uint32_t l = 0; l < n_layers; l++)
            yk_stats_group(step, l, &g);
        yk_stats_end(t.e->stats, step, true);
        const uint64_t ns = yk_now_ns() - from;
        least = ns < least ? ns : least;
    }
    printf("counters: %llu ns of a step of %llu: %.3f %%\n", (unsigned long long)least, (unsigned long long)best,
           100 * (double)least / (double)best);
    if (!((double)least < 0.005 * (double)best))
        return differ("counters", "ns", (double)least, 0.005 * (double)best);
    close_engine(&t);
    return 0;
}

/* ---- both lanes ------------------------------------------------------------------------------------------------------------------------- */

/* Attention, head and the first experts on the device; the next ones are copied, the rest is the CPU's. */
static yk_status make_plan(yk_plan *p, const yk_shape *s, yk_error *err)
{
    YK_TRY(yk_plan_init(p, s->n_layers, err));
    yk_plan_device(p, "null:0");
    p->head_home = 0;
    for (uint32_t l = 0; l < s->n_layers; l++) {
        const yk_shape_part *part = &s->layers[l].part[YK_PART_EXP];
        p->layers[l].attn_home = 0;
        for (uint32_t e = 0; e < part->n; e++) {
            yk_slice sl = {.group = YK_PART_EXP, .home = e < N_GG ? 0 : YK_HOST, .expert = e, .units = part->cut.n};
            memset(sl.kind, e < N_GG ? YK_KIND_GG : e < N_GG + N_CG ? YK_KIND_CG : YK_KIND_CC, sizeof sl.kind);
            YK_TRY(yk_plan_add(p, l, &sl, err));
        }
    }
    return YK_OK;
}

static void make_machine(yk_machine *m, const yk_shape *s)
{
    *m = (yk_machine){.threads = 2, .memory_bytes = 8ull << 30, .n_devices = 1};
    m->rates.read_bytes_per_s = 5e9;
    yk_machine_device *d = &m->devices[0];
    *d = (yk_machine_device){.name = "null:0",
                             .memory_bytes = 16ull << 30,
                             .launch_ns = 2e5,
                             .hand_off_ns = 1e5,
                             .to_device_bytes_per_s = 200e6,
                             .to_device_ns = 1e5,
                             .to_host_bytes_per_s = 200e6};
    d->rates.read_bytes_per_s = 2e9;
    for (uint32_t b = 0; b < YK_N_BUCKETS; b++) {
        m->rates.product[s->head.type][b] = 4e9;
        d->rates.product[s->head.type][b] = 2e9;
    }
}

typedef struct sums {
    uint64_t up, down, gpu, gg, weights;
    uint64_t gpu_ns;
} sums;

/* Tasks of a step; gpu_ns: in which any of the device's was under way (they are in order, on one stream). */
static sums of_step(const yk_trace *t, uint32_t step)
{
    sums s = {0};
    uint64_t until = 0;
    for (uint32_t i = 0; i < yk_trace_count(t); i++) {
        const yk_trace_rec *r = yk_trace_get(t, i);
        if (r->step != step)
            continue;
        s.up += r->lane == YK_TRACE_UP ? r->bytes : 0;
        s.down += r->lane == YK_TRACE_DOWN ? r->bytes : 0;
        s.weights += r->lane == YK_TRACE_UP && strcmp(r->op, "weights") == 0;
        if (r->lane != YK_TRACE_GPU)
            continue;
        const uint64_t from = r->start_ns > until ? r->start_ns : until, end = r->start_ns + r->dur_ns;
        s.gpu += r->bytes;
        s.gg += strcmp(r->op, "ffn GG") == 0;
        s.gpu_ns += end > from ? end - from : 0;
        until = end > until ? end : until;
    }
    return s;
}

/* The planner's seconds and the roofline of a step of one token. */
static int check_prices(const test_engine *t, const yk_machine *machine, const yk_plan *plan, const yk_shape *shape,
                        const yk_work *d, uint32_t depth)
{
    yk_cost cost;
    yk_cost_init(&cost, machine, 0, shape);
    const yk_step_kind kind = {.n = 1, .depth = depth, .kv_elem_bytes = (uint32_t)t->e->d.kv_elem};
    NEAR("decode", "predicted_ns", d->predicted_ns, 1e9 * yk_cost_plan(&cost, plan, &kind, NULL), 1e-3);
    SAME("decode", "predicted_of_ns", d->predicted_of_ns, d->ns);
    const double roof = fmax(fmax((double)d->host_bytes / 5e9, (double)d->device_bytes / 2e9), (double)d->up_bytes / 200e6);
    NEAR("decode", "roof_ns", d->roof_ns, 1e9 * roof, 1e-6);
    return 0;
}

/* What one step added, against its tasks in the trace. */
static int check_step(const test_engine *t, const yk_work *before, const yk_work *now, uint32_t step, uint32_t slabs)
{
    const sums s = of_step(t->e->trace, step);
    const uint64_t experts = now->experts - before->experts, hits = now->experts_resident - before->experts_resident;
    SAME("step", "experts", experts, t->m->hp.n_layers * t->m->hp.n_used);
    SAME("step", "experts_resident", hits, s.gg / slabs);
    SAME("step", "up_bytes", now->up_bytes - before->up_bytes, s.up);
    SAME("step", "down_bytes", now->down_bytes - before->down_bytes, s.down);
    const double device = (double)(now->device_bytes - before->device_bytes);
    if (!(device >= (double)s.gpu && device <= 1.05 * (double)s.gpu))
        return differ("step", "device_bytes", device, (double)s.gpu);
    if (now->cpu_ns - before->cpu_ns + (now->wait_ns - before->wait_ns) > now->ns - before->ns)
        return fail("step", "the pool's time and the host's waits are longer than the step");
    if (now->n_sampled == before->n_sampled)
        return 0;
    SAME("step", "sampled_ns", now->sampled_ns - before->sampled_ns, now->ns - before->ns);
    SAME("step", "gpu_ns", now->gpu_ns - before->gpu_ns, s.gpu_ns);
    if (!(now->link_ns > before->link_ns && now->link_ns - before->link_ns < now->ns - before->ns))
        return fail("step", "the link was busy all the time, or never");
    return 0;
}

static int both(const yk_model *m, const char *device, const char *trace, bool with_trace)
{
    yk_error err = {0};
    yk_shape shape;
    yk_plan plan;
    yk_engine_opts o;
    test_engine t;
    yk_machine *machine = calloc(1, sizeof *machine);
    yk_engine_opts_init(&o);
    if (!machine || yk_auto_shape(&shape, m, &err) != YK_OK || make_plan(&plan, &shape, &err) != YK_OK)
        return fail("plan", err.text);
    make_machine(machine, &shape);
    o.plan = &plan;
    o.machine = machine;
    o.device = device;
    o.threads = 2;
    o.context = 128;
    o.trace_path = with_trace ? trace : NULL;
    if (open_engine(&t, m, &o))
        return 1;
    const bool modelled = strstr(device, "time");
    t.e->lane->cpu_rate = modelled ? 1e9 : 0;
    const uint32_t slabs = t.e->places[0].parts[0].n_slabs[0];
    if (decode(&t, N_PROMPT))
        return 1;
    SAME("prompt", "n_tokens", t.stats.work[YK_WORK_PROMPT].n_tokens, N_PROMPT);
    for (uint32_t i = 0; i < N_STEPS; i++) {
        const yk_work before = t.stats.work[0];
        if (decode(&t, 1))
            return 1;
        const yk_work *now = &t.stats.work[0];
        yk_work d = {.ns = now->ns - before.ns,
                     .host_bytes = now->host_bytes - before.host_bytes,
                     .device_bytes = now->device_bytes - before.device_bytes,
                     .up_bytes = now->up_bytes - before.up_bytes,
                     .predicted_ns = now->predicted_ns - before.predicted_ns,
                     .predicted_of_ns = now->predicted_of_ns - before.predicted_of_ns,
                     .roof_ns = now->roof_ns - before.roof_ns};
        if (with_trace && check_step(&t, &before, now, 1 + i, slabs))
            return 1;
        if (check_prices(&t, machine, &plan, &shape, &d, N_PROMPT + i))
            return 1;
    }
    const yk_work *w = &t.stats.work[0];
    /* How seldom depends on the time that recording takes, and so on what else the machine does. */
    if (modelled && !(w->n_sampled >= 1 && w->n_sampled <= N_STEPS / YK_STATS_EVERY))
        return differ("decode", "n_sampled", (double)w->n_sampled, 1);
    printf("%s: %.1f %% of %llu experts resident, %llu steps looked at, gpu busy %.0f %%, link %.0f %%, cpu %.0f %%\n", device,
           100 * (double)w->experts_resident / (double)w->experts, (unsigned long long)w->experts,
           (unsigned long long)w->n_sampled, w->sampled_ns ? 100 * (double)w->gpu_ns / (double)w->sampled_ns : 0.0,
           w->sampled_ns ? 100 * (double)w->link_ns / (double)w->sampled_ns : 0.0, 100 * (double)w->cpu_ns / (double)w->ns);
    if (!(w->experts_resident > 0 && w->experts_resident < w->experts))
        return fail("decode", "all or none of the chosen experts are resident: this shows nothing");
    close_engine(&t);
    yk_plan_clear(&plan);
    yk_shape_close(&shape);
    free(machine);
    return 0;
}

/* A step that fails leaves nothing; steps of several sequences have kinds of their own. */
static int kinds(const yk_model *m)
{
    yk_error err = {0};
    test_engine t;
    yk_seq *second;
    yk_engine_opts o;
    yk_engine_opts_init(&o);
    o.device = "cpu";
    o.threads = 1;
    o.context = 64;
    o.max_seqs = 2;
    if (open_engine(&t, m, &o) || decode(&t, 3) || yk_seq_fork(&second, t.seq, &err) != YK_OK)
        return fail("fork", err.text);
    const int32_t token = 400;
    const yk_batch_entry b[2] = {{t.seq, &token, 1, YK_LOGITS_LAST}, {second, &token, 1, YK_LOGITS_LAST}};
    if (yk_decode(t.e, b, 2, &err) != YK_OK)
        return fail("two", err.text);
    yk_engine_cancel(t.e);
    if (yk_decode(t.e, b, 2, &err) != YK_ERR_CANCELLED)
        return fail("cancel", "not cancelled");
    yk_engine_get_stats(t.e, &t.stats);
    SAME("two", "n_steps", t.stats.work[1].n_steps, 1);
    SAME("two", "n_tokens", t.stats.work[1].n_tokens, 2);
    SAME("two", "experts", t.stats.work[1].experts, 2 * m->hp.n_layers * m->hp.n_used);
    SAME("three", "n_tokens", t.stats.work[YK_WORK_PROMPT].n_tokens, 3);
    if (strcmp(yk_work_name(1), "2-4") != 0 || strcmp(yk_work_name(YK_WORK_PROMPT), "prompt") != 0 || yk_work_name(YK_N_WORK))
        return fail("names", "of kinds of steps");
    yk_seq_close(&second);
    close_engine(&t);
    return 0;
}

int main(int argc, char **argv)
{
    yk_error err = {0};
    yk_model *m;
    char path[4096], trace[4096];
    const char *source = getenv("YOKE_SOURCE");
    snprintf(path, sizeof path, "%s/models/yoke-tiny-mixtral-q4_k_m.gguf", source ? source : ".");
    snprintf(trace, sizeof trace, "%s/trace-stats.json", argc > 1 ? argv[1] : ".");
    if (yk_model_open(&m, path, NULL, &err) != YK_OK)
        return fail(path, err.text);
    const int bad = cpu_alone(m) || cheap(m) || kinds(m) || both(m, "null:compute", trace, true) ||
                    both(m, TIME_OPTIONS, trace, true) || both(m, TIME_OPTIONS, trace, false);
    yk_model_close(&m);
    return bad;
}
