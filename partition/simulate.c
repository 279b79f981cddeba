#include "partition/simulate.h"

#include <math.h>
#include <string.h>

#include "partition/events.h"

enum { MAX_SLOTS = 16, IDLE_BACKLOG = 2, LOOK_AHEAD = 512, FIDDLER_CPU = 7, FIDDLER_COPY = 70 };

typedef struct sim {
    const yk_shape *shape;
    const yk_plan *plan;
    const yk_step_kind *step;
    const yk_sim_opts *opts;
    yk_cost cost;
    yk_events ev;
    uint32_t slots;
    uint32_t *count;          /* [n_experts] tokens of each in the layer being built */
    uint8_t *resident;        /* [n_layers][n_experts] */
    uint64_t *stamp;          /* [n_layers][n_experts] last step that used it, or how often it was used */
    uint32_t *next_use;       /* [n_experts] of the oracle */
    uint32_t x[2];            /* tasks that the residual stream waits for */
    uint32_t here[2];         /* what the layer before began with: from there on copies are prefetched */
    uint32_t user[MAX_SLOTS]; /* last task that reads each staging slot */
    uint32_t kv_free;         /* task with which the place for a layer's KV is free again */
    uint32_t n_copies, chain;
    uint64_t token; /* first of the step being built */
    uint64_t hits, misses;
    double link_bytes;
} sim;

/* The FFN of a layer in one step, by lane. */
typedef struct ffn {
    double cpu_s, cpu_bytes, gg_s, gg_bytes;
    uint32_t n_cg;
} ffn;

const char *yk_sim_cache_name(yk_sim_cache c)
{
    static const char *const names[YK_SIM_N_CACHES] = {"static", "lru", "lfu", "oracle"};
    return names[c];
}

static uint32_t add_after(sim *s, yk_ev_lane lane, double work, double reads, const uint32_t after[YK_EV_DEPS])
{
    const uint32_t chain[YK_EV_DEPS] = {s->chain};
    const uint32_t t = yk_events_add(&s->ev, lane, work, reads, s->opts->serial ? chain : after);
    if (s->opts->serial)
        s->chain = t;
    return t;
}

static uint32_t add(sim *s, yk_ev_lane lane, double work, double reads, uint32_t a, uint32_t b, uint32_t c)
{
    return add_after(s, lane, work, reads, (const uint32_t[YK_EV_DEPS]){a, b, c});
}

/* `copies` copies of weights, of so many bytes together. */
static uint32_t add_copy(sim *s, yk_ev_lane lane, double bytes, uint32_t copies, const uint32_t after[3])
{
    const double work = copies * s->cost.link_s + bytes * s->cost.link_s_per_byte;
    s->link_bytes += bytes;
    return add(s, lane, work, bytes / work, after[0], after[1], after[2]);
}

/* ---- seconds ---- */

/* A part as the only FFN of a layer: its product can then be asked for with any number of tokens. */
static void add_part(const sim *s, yk_load *load, const yk_shape_part *part, yk_kind kind, uint32_t unit0, uint32_t units,
                     uint32_t tokens)
{
    yk_shape_layer alone = {0};
    const yk_step_kind step = {.prefill = s->step->prefill, .n = tokens};
    const yk_use use = {YK_PART_FFN, kind, unit0, units, 1};
    alone.part[YK_PART_FFN] = *part;
    yk_cost_add(&s->cost, load, &alone, &step, &use);
}

/* Seconds of attention with everything that stays with it: a layer without an FFN. */
static double attention_s(const sim *s, uint32_t layer, bool device)
{
    const yk_load none = {0};
    return yk_cost_layer(&s->cost, layer, s->step, device, &none, NULL);
}

/* Seconds of the products of attention and router alone. */
static double projections_s(const sim *s, uint32_t layer, bool device)
{
    const yk_shape_layer *y = &s->shape->layers[layer];
    const yk_shape_mat *const mats[2][3] = {{&y->attn[YK_MAT_Q], &y->attn[YK_MAT_K], &y->attn[YK_MAT_V]},
                                            {&y->attn[YK_MAT_O], &y->router, NULL}};
    yk_load load = {0};
    for (int i = 0; i < 2; i++) {
        yk_shape_part p = {.n = 1, .cut = {.n = 1}};
        for (int m = 0; m < YK_PART_MATS; m++) {
            p.type[m] = mats[i][m] ? mats[i][m]->type : YK_TYPE_F32;
            p.unit_bytes[m] = p.last_bytes[m] = mats[i][m] ? mats[i][m]->bytes : 0;
        }
        add_part(s, &load, &p, device ? YK_KIND_GG : YK_KIND_CC, 0, 1, s->step->n);
    }
    return load.cpu_s + load.gg_s;
}

static double rows_bytes(const sim *s)
{
    return 4.0 * s->step->n * s->shape->n_embd;
}

/* ---- which experts are there ---- */

static bool moving(const sim *s)
{
    return s->opts->cache != YK_SIM_STATIC;
}

static bool is_resident(const sim *s, uint32_t layer, const yk_slice *sl)
{
    if (sl->group != YK_PART_EXP || !moving(s))
        return sl->home != YK_HOST;
    return s->resident[(size_t)layer * s->shape->n_experts + sl->expert];
}

/* What becomes of a slice in this step. *tokens: how many it computes, 0: none. */
static yk_kind decide(const sim *s, uint32_t layer, const yk_slice *sl, uint32_t *tokens)
{
    const yk_kind planned = yk_slice_kind(sl, s->step->prefill, s->step->n);
    *tokens = sl->group == YK_PART_EXP ? s->count[sl->expert] : s->step->n;
    if (is_resident(s, layer, sl))
        return YK_KIND_GG;
    if (sl->group != YK_PART_EXP)
        return planned;
    switch (s->opts->miss) {
    case YK_SIM_UPLOAD:
        return YK_KIND_CG;
    case YK_SIM_FIDDLER:
        return *tokens * FIDDLER_CPU < FIDDLER_COPY ? YK_KIND_CC : YK_KIND_CG;
    default:
        return moving(s) || planned == YK_KIND_GG ? YK_KIND_CC : planned;
    }
}

/* When each expert of a layer is needed next after the step being built; LOOK_AHEAD: not soon. */
static void look_ahead(sim *s, uint32_t layer)
{
    const yk_routing *r = s->opts->routing;
    for (uint32_t e = 0; e < s->shape->n_experts; e++)
        s->next_use[e] = LOOK_AHEAD;
    for (uint32_t t = LOOK_AHEAD; t-- > 0;)
        for (uint32_t i = 0; i < r->n_used; i++)
            s->next_use[yk_routing_at(r, s->token + s->step->n + t, layer)[i]] = t;
}

/* The resident expert that the policy gives up, not one that this step uses; n_experts: none. */
static uint32_t victim_of(const sim *s, uint32_t layer)
{
    const uint32_t n = s->shape->n_experts;
    const uint8_t *there = s->resident + (size_t)layer * n;
    const uint64_t *stamp = s->stamp + (size_t)layer * n;
    uint32_t best = n;
    for (uint32_t e = 0; e < n; e++) {
        if (!there[e] || s->count[e])
            continue;
        if (best == n || (s->opts->cache == YK_SIM_ORACLE ? s->next_use[e] > s->next_use[best] : stamp[e] < stamp[best]))
            best = e;
    }
    return best;
}

/* Bring the missed experts of a decode step in. uploaded: they are on the device already; else the link does it when it is free,
 * and what it has no time for is left out. */
static void move_experts(sim *s, uint32_t layer, uint64_t step_index, bool uploaded)
{
    const uint32_t n = s->shape->n_experts;
    uint8_t *there = s->resident + (size_t)layer * n;
    uint64_t *stamp = s->stamp + (size_t)layer * n;
    const yk_shape_part *p = &s->shape->layers[layer].part[YK_PART_EXP];
    if (s->opts->cache == YK_SIM_ORACLE)
        look_ahead(s, layer);
    for (uint32_t e = 0; e < n; e++)
        if (s->count[e])
            stamp[e] = s->opts->cache == YK_SIM_LFU ? stamp[e] + s->count[e] : step_index + 1;
    for (uint32_t e = 0; e < n; e++) {
        if (!s->count[e] || there[e])
            continue;
        const uint32_t v = victim_of(s, layer);
        if (v == n || (s->opts->cache == YK_SIM_ORACLE && s->next_use[v] <= s->next_use[e]))
            continue;
        if (!uploaded) {
            if (yk_events_waiting(&s->ev, YK_EV_IDLE) >= IDLE_BACKLOG)
                return;
            const double bytes = (double)yk_shape_units_bytes(p, 0, p->cut.n);
            add_copy(s, YK_EV_IDLE, bytes, 1, (const uint32_t[3]){0});
        }
        there[v] = 0;
        there[e] = 1;
    }
}

/* ---- a layer ---- */

static void count_tokens(sim *s, uint32_t layer)
{
    const yk_routing *r = s->opts->routing;
    memset(s->count, 0, s->shape->n_experts * sizeof *s->count);
    for (uint32_t t = 0; t < s->step->n; t++)
        for (uint32_t i = 0; i < r->n_used; i++)
            s->count[yk_routing_at(r, s->token + t, layer)[i]]++;
}

/* Copies that begin before the router has chosen; a cache that moves experts has no use for them. */
static uint32_t n_ahead(const sim *s, uint32_t layer)
{
    return !moving(s) && yk_plan_ahead(&s->plan->layers[layer], s->step->prefill, s->step->n) ? s->slots : 0;
}

static ffn sum_ffn(sim *s, uint32_t layer)
{
    const yk_plan_layer *y = &s->plan->layers[layer];
    ffn f = {0};
    for (uint32_t i = 0; i < y->n_slices; i++) {
        const yk_slice *sl = &y->slices[i];
        const yk_shape_part *part = &s->shape->layers[layer].part[sl->group];
        uint32_t tokens;
        const yk_kind kind = decide(s, layer, sl, &tokens);
        if (!tokens) {
            f.n_cg += kind == YK_KIND_CG && n_ahead(s, layer); /* copied for nothing */
            continue;
        }
        if (sl->group == YK_PART_EXP && sl->unit0 == 0)
            *(kind == YK_KIND_GG ? &s->hits : &s->misses) += tokens;
        yk_load load = {0};
        if (kind == YK_KIND_CG)
            f.n_cg++;
        else
            add_part(s, &load, part, kind, sl->unit0, sl->units, tokens);
        f.cpu_s += load.cpu_s;
        f.cpu_bytes += load.cpu_bytes;
        f.gg_s += load.gg_s;
        f.gg_bytes += kind == YK_KIND_GG ? (double)yk_shape_units_bytes(part, sl->unit0, sl->units) : 0;
    }
    return f;
}

/* Copies and their products; those ahead begin with the layer, whether their expert has been chosen or not. known: the task
 * behind which it is clear which experts are needed; rows: the device has the rows. */
static uint32_t add_copies(sim *s, uint32_t layer, uint32_t known, uint32_t rows, uint32_t last)
{
    const yk_plan_layer *y = &s->plan->layers[layer];
    uint32_t ahead = n_ahead(s, layer);
    for (uint32_t i = 0, end; i < y->n_slices; i = end) {
        const yk_slice *sl = &y->slices[i];
        const yk_shape_part *part = &s->shape->layers[layer].part[sl->group];
        uint32_t tokens;
        end = i + 1;
        const bool copied = decide(s, layer, sl, &tokens) == YK_KIND_CG, now = ahead > 0;
        if (!copied || (!tokens && !now))
            continue;
        ahead -= now;
        yk_load load = {0};
        double bytes = 0;
        /* Neighbours of one instance are one copy into one slot, wherever other buckets cut them. */
        for (end = i; end < y->n_slices; end++) {
            const yk_slice *next = &y->slices[end];
            uint32_t same;
            if (next->group != sl->group || next->expert != sl->expert || decide(s, layer, next, &same) != YK_KIND_CG)
                break;
            bytes += (double)yk_shape_units_bytes(part, next->unit0, next->units);
            add_part(s, &load, part, YK_KIND_CG, next->unit0, next->units, tokens);
        }
        const bool early = sl->group != YK_PART_EXP || s->step->prefill;
        const uint32_t slot = s->n_copies++ % s->slots, *from = now ? s->x : s->here;
        const uint32_t copy =
            add_copy(s, YK_EV_UP, bytes, 1,
                     (const uint32_t[3]){s->user[slot], now || early ? from[0] : known, now || early ? from[1] : 0});
        s->user[slot] = copy;
        if (!tokens)
            continue;
        last = s->user[slot] = add(s, YK_EV_GPU, load.cg_s, load.cg_s > 0 ? bytes / load.cg_s : 0, copy, rows, last);
    }
    return last;
}

/* Attention that the plan has copied: weights into a staging slot like any copy that is sure to be needed, KV of the positions
 * before into the one place for it; KV of the chunk's own positions goes down. */
static uint32_t add_copied_attention(sim *s, uint32_t layer)
{
    const yk_cost_side side = yk_cost_side_of(&s->cost, layer, s->step, YK_ATTN_COPIED);
    const uint32_t slot = s->n_copies++ % s->slots;
    uint32_t copy = add_copy(s, YK_EV_UP, side.bytes, 1, (const uint32_t[3]){s->user[slot], s->here[0], s->here[1]});
    if (side.kv_up_s > 0)
        copy = add_copy(s, YK_EV_UP, side.up_bytes - side.bytes, 1, (const uint32_t[3]){copy, s->kv_free});
    const uint32_t attn = add_after(s, YK_EV_GPU, side.s, side.s > 0 ? side.bytes / side.s : 0,
                                    (const uint32_t[YK_EV_DEPS]){s->x[0], s->x[1], copy, s->kv_free});
    s->kv_free = add(s, YK_EV_DOWN, side.kv_down_s, 0, attn, 0, 0);
    s->user[slot] = attn;
    return attn;
}

/* Attention and what stays with it; the task it ends with. Attention weights on the host may be copied in prefill when asked. */
static uint32_t add_attention(sim *s, uint32_t layer, yk_attn where)
{
    const bool device = where == YK_ATTN_DEVICE;
    if (where == YK_ATTN_COPIED)
        return add_copied_attention(s, layer);
    const double ta = attention_s(s, layer, device);
    const double bytes = (double)yk_shape_attn_bytes(&s->shape->layers[layer]);
    const double reads = ta > 0 ? bytes / ta : 0;
    if (!device && s->opts->offload && s->step->prefill && s->cost.has_device) {
        const double move = bytes * s->cost.link_s_per_byte + 4 * s->cost.link_s;
        const double gpu = projections_s(s, layer, true) + 2 * s->cost.gpu.fixed_s;
        const double core = fmax(0, ta - projections_s(s, layer, false));
        const double rows = 2 * s->cost.hand_s + 2 * rows_bytes(s) * (s->cost.link_s_per_byte + s->cost.back_s_per_byte);
        if (move + gpu + core + rows < ta) {
            const uint32_t copy = add_copy(s, YK_EV_UP, bytes, 4, (const uint32_t[3]){s->x[0], s->x[1]});
            const uint32_t products = add(s, YK_EV_GPU, gpu, 0, copy, 0, 0);
            return add(s, YK_EV_CPU, core, 0, add(s, YK_EV_HAND, rows, 0, products, 0, 0), 0, 0);
        }
    }
    return add(s, device ? YK_EV_GPU : YK_EV_CPU, ta, reads, s->x[0], s->x[1], 0);
}

static uint32_t send_rows(sim *s, yk_ev_lane lane, uint32_t after)
{
    const double per_byte = lane == YK_EV_ROWS ? s->cost.link_s_per_byte : s->cost.back_s_per_byte;
    const uint32_t rows = add(s, lane, rows_bytes(s) * per_byte, 0, after, 0, 0);
    return add(s, YK_EV_HAND, s->cost.hand_s / 2, 0, rows, 0, 0);
}

static void add_layer(sim *s, uint32_t layer, uint64_t step_index, bool *side)
{
    enum { LAUNCHES = 4 }; /* of an FFN, as in cost.c */
    const yk_attn where = yk_cost_attn_of(&s->plan->layers[layer], s->step);
    const bool device = where != YK_ATTN_HOST;
    const bool experts = s->shape->layers[layer].part[YK_PART_EXP].n > 0;
    if (device != *side) {
        s->x[0] = add(s, YK_EV_HAND, yk_cost_cross(&s->cost, s->step), 0, s->x[0], s->x[1], 0);
        s->x[1] = 0;
    }
    *side = device;
    const uint32_t begin[2] = {s->x[0], s->x[1]};
    if (experts)
        count_tokens(s, layer);
    const ffn f = sum_ffn(s, layer);
    const uint32_t attn = add_attention(s, layer, where);
    const bool cpu_any = f.cpu_s > 0, gpu_any = f.gg_s > 0 || f.n_cg > 0;
    uint32_t cpu = 0, gpu = 0;
    if (gpu_any) {
        const uint32_t rows = device ? attn : send_rows(s, YK_EV_ROWS, attn);
        /* A copy that depends on the router's choice is started by the host, which must hear of it first. */
        const uint32_t known = device && experts && f.n_cg ? add(s, YK_EV_HAND, s->cost.hand_s / 2, 0, attn, 0, 0) : attn;
        const double fixed = 2 * s->cost.gpu.fixed_s + LAUNCHES * s->cost.launch_s;
        gpu = add(s, YK_EV_GPU, fixed + f.gg_s, f.gg_s > 0 ? f.gg_bytes / (fixed + f.gg_s) : 0, rows, 0, 0);
        gpu = add_copies(s, layer, known, rows, gpu);
        if (!device)
            gpu = send_rows(s, YK_EV_DOWN, gpu);
    }
    if (cpu_any) {
        const double fixed = 2 * s->cost.cpu.fixed_s + s->cost.cpu.stage_s;
        const uint32_t rows = device ? send_rows(s, YK_EV_DOWN, attn) : attn;
        cpu = add(s, YK_EV_CPU, fixed + f.cpu_s, f.cpu_bytes / (fixed + f.cpu_s), rows, 0, 0);
        if (device)
            cpu = send_rows(s, YK_EV_ROWS, cpu);
    }
    memcpy(s->here, begin, sizeof s->here);
    s->x[0] = gpu ? gpu : cpu ? cpu : attn;
    s->x[1] = gpu ? cpu : 0;
    if (experts && moving(s) && !s->step->prefill)
        move_experts(s, layer, step_index, s->opts->miss == YK_SIM_UPLOAD);
}

/* Append a step; the task it ends with. */
static uint32_t add_step(sim *s, uint64_t index)
{
    bool side = s->plan->embd_home != YK_HOST;
    s->token = s->opts->token0 + index * s->step->n;
    for (uint32_t l = 0; l < s->shape->n_layers; l++)
        add_layer(s, l, index, &side);
    const bool device = s->plan->head_home != YK_HOST;
    if (device != side) {
        s->x[0] = add(s, YK_EV_HAND, yk_cost_cross(&s->cost, s->step), 0, s->x[0], s->x[1], 0);
        s->x[1] = 0;
    }
    const double head = yk_cost_head(&s->cost, s->step, device);
    s->x[0] =
        add(s, device ? YK_EV_GPU : YK_EV_CPU, head, head > 0 ? (double)s->shape->head.bytes / head : 0, s->x[0], s->x[1], 0);
    s->x[1] = 0;
    return s->x[0];
}

/* ---- a run ---- */

static void fill_cache(sim *s)
{
    const uint32_t n = s->shape->n_experts;
    for (uint32_t l = 0; l < s->shape->n_layers; l++) {
        const yk_plan_layer *y = &s->plan->layers[l];
        uint32_t there = 0;
        for (uint32_t i = 0; i < y->n_slices; i++)
            if (y->slices[i].group == YK_PART_EXP && y->slices[i].home != YK_HOST && y->slices[i].unit0 == 0)
                s->resident[(size_t)l * n + y->slices[i].expert] = 1;
        for (uint32_t e = 0; e < n; e++)
            there += s->resident[(size_t)l * n + e];
        for (uint32_t e = 0; e < n && s->opts->cache_experts; e++) {
            uint8_t *r = &s->resident[(size_t)l * n + e];
            if (there < s->opts->cache_experts && !*r)
                *r = 1, there++;
            else if (there > s->opts->cache_experts && *r)
                *r = 0, there--;
        }
    }
}

static yk_status open_sim(sim *s, const yk_machine *machine, int device, yk_error *err)
{
    const uint32_t n = s->shape->n_experts;
    const yk_routing *r = s->opts->routing;
    yk_cost_init(&s->cost, machine, device, s->shape);
    s->slots = s->opts->slots ? s->opts->slots : 2;
    YK_FAIL_IF(s->slots > MAX_SLOTS, err, YK_ERR_USAGE, "simulation: %u staging slots, at most %d are possible", s->slots,
               MAX_SLOTS);
    YK_FAIL_IF(n && (!r || r->n_experts != n || r->n_used != s->shape->n_used), err, YK_ERR_USAGE,
               "simulation: %s chooses %u of %u experts, the routing trace %u of %u", s->shape->name, s->shape->n_used, n,
               r ? r->n_used : 0, r ? r->n_experts : 0);
    if (device >= 0) {
        s->ev.pair = s->cost.pair;
        if (machine->devices[device].shared_memory)
            s->ev.shared_read = 1 / fmin(s->cost.cpu.read_s_per_byte, s->cost.gpu.read_s_per_byte);
    }
    if (!n)
        return YK_OK;
    const size_t all = (size_t)n * s->shape->n_layers;
    s->count = yk_alloc(YK_MEM_PLAN, n, sizeof *s->count);
    s->next_use = yk_alloc(YK_MEM_PLAN, n, sizeof *s->next_use);
    s->resident = yk_alloc(YK_MEM_PLAN, all, sizeof *s->resident);
    s->stamp = yk_alloc(YK_MEM_PLAN, all, sizeof *s->stamp);
    if (!s->count || !s->next_use || !s->resident || !s->stamp)
        return yk_fail_memory(err, all * (sizeof *s->resident + sizeof *s->stamp), "a simulation");
    fill_cache(s);
    return YK_OK;
}

static void reset_counters(sim *s)
{
    s->hits = s->misses = 0;
    s->link_bytes = 0;
}

/* A step is appended before the one in front of it has ended, so that its first copies may begin. */
static yk_status run(sim *s, yk_sim_result *out, yk_error *err)
{
    const uint32_t steps = s->opts->steps ? s->opts->steps : 16, warm = 1 + s->opts->warm_steps;
    double begin = 0, busy[YK_EV_LANES] = {0};
    uint32_t end = add_step(s, 0);
    for (uint32_t i = 1; i <= warm + steps; i++) {
        if (i == warm)
            reset_counters(s);
        uint32_t next = i < warm + steps ? add_step(s, i) : 0;
        YK_TRY(yk_events_run(&s->ev, end, err));
        if (i == warm) {
            begin = s->ev.now;
            memcpy(busy, s->ev.busy, sizeof busy);
        }
        end = next;
    }
    const double all = s->ev.now - begin;
    double share[YK_EV_LANES];
    for (int l = 0; l < YK_EV_LANES; l++)
        share[l] = (s->ev.busy[l] - busy[l]) / all;
    *out = (yk_sim_result){.seconds = all / steps, .link_bytes = s->link_bytes / steps, .hits = s->hits, .misses = s->misses};
    out->busy[YK_BOUND_CPU] = share[YK_EV_CPU];
    out->busy[YK_BOUND_GPU] = share[YK_EV_GPU];
    out->busy[YK_BOUND_LINK] = share[YK_EV_UP] + share[YK_EV_IDLE];
    out->busy[YK_BOUND_HAND_OFF] = share[YK_EV_HAND] + share[YK_EV_ROWS] + share[YK_EV_DOWN];
    return YK_OK;
}

yk_status yk_simulate(yk_sim_result *out, const yk_machine *machine, int device, const yk_shape *shape, const yk_plan *plan,
                      const yk_step_kind *step, const yk_sim_opts *opts, yk_error *err)
{
    sim s = {.shape = shape, .plan = plan, .step = step, .opts = opts};
    *out = (yk_sim_result){0};
    yk_events_open(&s.ev);
    yk_status st = open_sim(&s, machine, device, err);
    if (st == YK_OK)
        st = run(&s, out, err);
    yk_events_close(&s.ev);
    yk_free(s.count);
    yk_free(s.next_use);
    yk_free(s.resident);
    yk_free(s.stamp);
    return st;
}
