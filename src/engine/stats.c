#include "src/engine/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "src/base/clock.h"
#include "src/engine/auto.h"

const char *yk_work_name(uint32_t kind)
{
    static const char *const names[YK_N_WORK] = {"1", "2-4", "5-8", "9-16", "17-32", "33-", "prompt"};
    return kind < YK_N_WORK ? names[kind] : NULL;
}

/* ---- bytes and experts ---------------------------------------------------------------------------------------------------------------- */

static uint64_t mat_bytes(const yk_weight *w)
{
    return w->data || w->mats ? w->row_bytes * w->n_rows : 0;
}

void yk_stats_units(const yk_step *step, uint32_t layer, uint32_t part, uint32_t all, uint64_t units[3])
{
    const yk_bucket b = step->bucket;
    units[YK_KIND_GG] = units[YK_KIND_CG] = 0;
    units[YK_KIND_CC] = all;
    if (!step->engine->places)
        return;
    const yk_part_place *pp = &step->engine->places[layer].parts[part];
    units[YK_KIND_CC] = 0;
    for (uint32_t i = 0; i < pp->n_pieces[b]; i++)
        units[YK_KIND_CC] += pp->pieces[b][i].n;
    for (uint32_t i = 0; i < pp->n_slabs[b]; i++) {
        const yk_slab *s = &pp->slabs[b][i];
        units[s->host ? YK_KIND_CG : YK_KIND_GG] += (uint64_t)s->unit * s->n_units;
    }
}

/* Bytes that the CPU reads for so many units of a part. */
static uint64_t units_bytes(const yk_weight *gate, const yk_weight *up, const yk_weight *down, uint64_t units)
{
    return units * (gate->row_bytes + up->row_bytes) + (down->n_cols ? mat_bytes(down) * units / down->n_cols : 0);
}

static void count_part(yk_layer_work *lw, const yk_step *step, uint32_t layer, uint32_t part, uint32_t tokens)
{
    const yk_layer *w = &step->engine->model->layers[layer];
    const bool shared = w->moe && part >= w->gate.n_mats;
    const yk_weight *gate = shared ? &w->sh_gate : &w->gate, *up = shared ? &w->sh_up : &w->up,
                    *down = shared ? &w->sh_down : &w->down;
    uint64_t units[3];
    yk_stats_units(step, layer, part, gate->n_rows, units);
    for (int k = 0; k < 3; k++)
        atomic_fetch_add_explicit(&lw->units[k], units[k], memory_order_relaxed);
    atomic_fetch_add_explicit(&lw->host_bytes, units_bytes(gate, up, down, units[YK_KIND_CC]), memory_order_relaxed);
    if (!w->moe || shared)
        return;
    const bool resident = !units[YK_KIND_CC] && !units[YK_KIND_CG];
    atomic_fetch_add_explicit(&lw->choices, tokens, memory_order_relaxed);
    atomic_fetch_add_explicit(&lw->resident, resident ? tokens : 0, memory_order_relaxed);
}

void yk_stats_group(const yk_step *step, uint32_t layer, const yk_group *g)
{
    yk_layer_work *lw = &step->work[layer];
    if (atomic_exchange_explicit(&lw->known, true, memory_order_relaxed))
        return;
    for (uint32_t a = 0; a < g->n_active; a++)
        count_part(lw, step, layer, g->part[a], g->slot0[a + 1] - g->slot0[a]);
}

/* K and V that the CPU's attention of a layer reads. */
static uint64_t kv_bytes(const yk_step *step, uint32_t layer)
{
    const yk_engine *e = step->engine;
    const uint32_t window = e->model->arch->flags & YK_ARCH_WINDOW_EVEN && layer % 2 == 0 ? e->model->hp.window : 0;
    uint64_t positions = 0;
    for (uint32_t i = 0; i < step->n_runs; i++) {
        const uint64_t end = (uint64_t)step->runs[i].pos + step->runs[i].n, seen = window + step->runs[i].n - 1ull;
        positions += window && end > seen ? seen : end;
    }
    return positions * (2 * e->d.kv_half / YK_KV_BLOCK);
}

/* A layer's work in a step that is done; to the totals of the step. */
static void add_layer(yk_work *w, const yk_step *step, uint32_t layer, uint64_t units[3])
{
    const yk_engine *e = step->engine;
    const yk_layer *l = &e->model->layers[layer];
    yk_layer_work *lw = &step->work[layer];
    if (!l->moe) {
        count_part(lw, step, layer, 0, step->n_tokens);
    } else if (yk_list_on_device(step, layer)) {
        w->experts += (uint64_t)step->n_tokens * e->model->hp.n_used;
        w->experts_resident += (uint64_t)step->n_tokens * e->model->hp.n_used;
        units[YK_KIND_GG] += (uint64_t)step->n_tokens * e->model->hp.n_used * l->gate.n_rows;
    }
    for (int k = 0; k < 3; k++)
        units[k] += atomic_load_explicit(&lw->units[k], memory_order_relaxed);
    w->experts += atomic_load_explicit(&lw->choices, memory_order_relaxed);
    w->experts_resident += atomic_load_explicit(&lw->resident, memory_order_relaxed);
    w->host_bytes += atomic_load_explicit(&lw->host_bytes, memory_order_relaxed);
    if (!yk_attn_on_device(step, layer))
        w->host_bytes += mat_bytes(&l->q) + mat_bytes(&l->k) + mat_bytes(&l->v) + mat_bytes(&l->o) + mat_bytes(&l->router) +
                         mat_bytes(&l->sh_router) + kv_bytes(step, layer);
}

/* ---- a step ------------------------------------------------------------------------------------------------------------------------------ */

static uint32_t kind_of(const yk_step *step)
{
    if (step->n_runs != step->n_tokens)
        return YK_WORK_PROMPT;
    return (uint32_t)step->bucket; /* YK_B_PREFILL: more than 32 sequences */
}

void yk_stats_begin(yk_stats *s, yk_step *step)
{
    const yk_engine *e = s->e;
    for (uint32_t i = 0; i < e->model->hp.n_layers; i++) {
        yk_layer_work *lw = &step->work[i];
        atomic_store_explicit(&lw->known, false, memory_order_relaxed);
        atomic_store_explicit(&lw->choices, 0, memory_order_relaxed);
        atomic_store_explicit(&lw->resident, 0, memory_order_relaxed);
        for (int k = 0; k < 3; k++)
            atomic_store_explicit(&lw->units[k], 0, memory_order_relaxed);
        atomic_store_explicit(&lw->host_bytes, 0, memory_order_relaxed);
    }
    s->kind = kind_of(step);
    s->sampled = false;
    s->whole = false;
    s->cpu_ns = s->wait_ns = s->record_ns = s->gpu_ns = s->link_ns = 0;
    s->weights_ns = s->weights_bytes = s->n_weights = 0;
    if (e->lane) {
        s->launched = e->lane->launched_bytes;
        s->up = e->lane->up_bytes;
        s->down = e->lane->down_bytes;
        s->sampled = s->left[s->kind] == 0;
        s->left[s->kind] -= !s->sampled;
    }
    s->start_ns = yk_now_ns();
}

/* When to record again, so that it takes its share of the time at most. */
static void plan_sample(yk_stats *s, uint64_t ns)
{
    const uint64_t every = ns ? s->record_ns * YK_STATS_SHARE / ns + 1 : YK_STATS_EVERY;
    s->left[s->kind] = every > YK_STATS_SELDOM ? YK_STATS_SELDOM : every > YK_STATS_EVERY ? (uint32_t)every : YK_STATS_EVERY;
}

static void add_sample(yk_stats *s, yk_work *w, uint64_t ns)
{
    if (!s->warm[s->kind]) {
        s->warm[s->kind] = true;
        s->left[s->kind] = 1;
        s->whole = false;
        return;
    }
    plan_sample(s, ns);
    if (!s->whole)
        return;
    w->n_sampled++;
    w->sampled_ns += ns;
    w->gpu_ns += s->gpu_ns;
    w->link_ns += s->link_ns;
}

void yk_stats_end(yk_stats *s, const yk_step *step, bool ok)
{
    const uint64_t ns = yk_now_ns() - s->start_ns;
    const yk_engine *e = s->e;
    yk_work w = {.n_steps = 1, .n_tokens = step->n_tokens, .ns = ns, .wait_ns = s->wait_ns};
    if (!ok)
        return;
    memset(s->units, 0, sizeof s->units);
    for (uint32_t i = 0; i < e->model->hp.n_layers; i++)
        add_layer(&w, step, i, s->units);
    if (!e->head_dev && step->n_logits)
        w.host_bytes += mat_bytes(&e->model->output);
    w.cpu_ns = e->lane ? s->cpu_ns : ns;
    if (e->lane) {
        w.device_bytes = e->lane->launched_bytes - s->launched;
        w.up_bytes = e->lane->up_bytes - s->up;
        w.down_bytes = e->lane->down_bytes - s->down;
        if (s->sampled)
            add_sample(s, &w, ns);
    }
    const double roof =
        fmax(fmax((double)w.host_bytes * s->host_s, (double)w.device_bytes * s->device_s), (double)w.up_bytes * s->up_s);
    w.roof_ns = (uint64_t)(1e9 * roof);
    const double predicted = yk_stats_predict(s, step);
    if (predicted > 0) {
        w.predicted_ns = (uint64_t)(1e9 * predicted);
        w.predicted_of_ns = ns;
    }
    uint64_t *sum = (uint64_t *)&s->work[s->kind];
    const uint64_t *more = (const uint64_t *)&w;
    _Static_assert(sizeof w % sizeof *sum == 0, "yk_work consists of counters");
    for (size_t i = 0; i < sizeof w / sizeof *sum; i++)
        sum[i] += more[i];
}

/* ---- device events ----------------------------------------------------------------------------------------------------------------------- */

static int by_start(const void *a, const void *b)
{
    const yk_trace_rec *x = *(const yk_trace_rec *const *)a, *y = *(const yk_trace_rec *const *)b;
    return x->start_ns < y->start_ns ? -1 : x->start_ns > y->start_ns;
}

/* Time in which at least one of the tasks was under way. */
static uint64_t time_of(const yk_trace_rec **tasks, uint32_t n)
{
    uint64_t sum = 0, until = 0;
    qsort(tasks, n, sizeof *tasks, by_start);
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t end = tasks[i]->start_ns + tasks[i]->dur_ns;
        const uint64_t from = tasks[i]->start_ns > until ? tasks[i]->start_ns : until;
        sum += end > from ? end - from : 0;
        until = end > until ? end : until;
    }
    return sum;
}

void yk_stats_tasks(yk_stats *s, const yk_lane_mark *marks, uint32_t n, bool whole)
{
    for (int lane = YK_TRACE_GPU; lane <= YK_TRACE_UP; lane++) {
        uint32_t k = 0;
        for (uint32_t i = 0; i < n; i++) {
            const yk_trace_rec *r = &marks[i].rec;
            if ((int)r->lane != lane)
                continue;
            s->tasks[k++] = r;
            if (lane == YK_TRACE_UP && (strcmp(r->op, "weights") == 0 || strcmp(r->op, "attn") == 0)) {
                s->weights_ns += r->dur_ns;
                s->weights_bytes += r->bytes;
                s->n_weights++;
            }
        }
        *(lane == YK_TRACE_GPU ? &s->gpu_ns : &s->link_ns) = time_of(s->tasks, k);
    }
    s->whole = whole;
}

/* ---- prediction --------------------------------------------------------------------------------------------------------------------------- */

static double price(yk_stats *s, uint32_t n, bool prefill, uint32_t depth)
{
    const yk_step_kind kind = {.prefill = prefill, .n = n, .depth = depth, .kv_elem_bytes = (uint32_t)s->e->d.kv_elem};
    return yk_digest_step(&s->digest, &s->cost, &kind, NULL);
}

double yk_stats_predict(yk_stats *s, const yk_step *step)
{
    const bool prefill = step->bucket == YK_B_PREFILL;
    const uint32_t n = step->n_tokens;
    if (!s->priced)
        return 0;
    yk_stats_price *p = prefill ? NULL : &s->decode[n];
    for (uint32_t i = 0; prefill && !p && i < YK_STATS_CHUNKS; i++)
        p = s->chunk[i].n == n ? &s->chunk[i] : NULL;
    if (!p)
        p = &s->chunk[s->next_chunk++ % YK_STATS_CHUNKS];
    if (p->n != n) {
        p->n = n;
        p->s[0] = price(s, n, prefill, 0);
        p->s[1] = price(s, n, prefill, s->e->context);
    }
    double depth = 0;
    for (uint32_t i = 0; i < step->n_runs; i++)
        depth += (double)step->runs[i].pos * step->runs[i].n / n;
    return p->s[0] + (p->s[1] - p->s[0]) * depth / s->e->context;
}

/* ---- open, close ----------------------------------------------------------------------------------------------------------------------------- */

/* A plan of the CPU alone. */
static yk_status plan_cpu(yk_plan *plan, const yk_shape *shape, yk_error *err)
{
    YK_TRY(yk_plan_init(plan, shape->n_layers, err));
    plan->head_home = plan->embd_home = YK_HOST;
    for (uint32_t l = 0; l < shape->n_layers; l++) {
        plan->layers[l].attn_home = YK_HOST;
        for (uint32_t g = 0; g < YK_PART_N; g++)
            for (uint32_t i = 0; i < shape->layers[l].part[g].n; i++) {
                yk_slice s = {.group = (uint8_t)g, .home = YK_HOST, .expert = i, .units = shape->layers[l].part[g].cut.n};
                memset(s.kind, YK_KIND_CC, sizeof s.kind);
                YK_TRY(yk_plan_add(plan, l, &s, err));
            }
    }
    return YK_OK;
}

static yk_status open_prices(yk_stats *s, const yk_plan *plan, const yk_machine *machine, yk_error *err)
{
    s->machine = yk_alloc(YK_MEM_PLAN, 1, sizeof *s->machine);
    if (!s->machine)
        return yk_fail_memory(err, sizeof *s->machine, "the machine");
    *s->machine = *machine;
    YK_TRY(yk_auto_shape(&s->shape, s->e->model, err));
    s->has_shape = true;
    YK_TRY(plan ? yk_plan_copy(&s->plan, plan, err) : plan_cpu(&s->plan, &s->shape, err));
    s->device = plan && plan->n_devices ? yk_machine_find(machine, plan->devices[0]) : -1;
    if (plan && plan->n_devices && s->device < 0)
        return YK_OK; /* the machine is another one */
    yk_cost_init(&s->cost, s->machine, s->device, &s->shape);
    YK_TRY(yk_digest_make(&s->digest, &s->plan, &s->shape, err));
    s->host_s = s->cost.cpu.read_s_per_byte;
    if (s->device >= 0) {
        s->device_s = s->cost.gpu.read_s_per_byte;
        s->up_s = s->cost.link_s_per_byte;
    }
    s->priced = true;
    return YK_OK;
}

yk_status yk_stats_open(yk_stats **out, yk_engine *e, const yk_plan *plan, const yk_machine *machine, yk_error *err)
{
    yk_stats *s = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *s);
    *out = s;
    if (!s)
        return yk_fail_memory(err, sizeof *s, "statistics");
    s->e = e;
    s->device = -1;
    if (e->lane && !(s->tasks = yk_alloc(YK_MEM_RUNTIME, YK_LANE_MARKS, sizeof *s->tasks)))
        return yk_fail_memory(err, YK_LANE_MARKS * sizeof *s->tasks, "statistics");
    return machine ? open_prices(s, plan, machine, err) : YK_OK;
}

void yk_stats_close(yk_stats **stats)
{
    yk_stats *s = *stats;
    if (!s)
        return;
    yk_free(s->digest.layers);
    yk_plan_clear(&s->plan);
    if (s->has_shape)
        yk_shape_close(&s->shape);
    yk_free(s->machine);
    yk_free(s->tasks);
    yk_free(s);
    *stats = NULL;
}
