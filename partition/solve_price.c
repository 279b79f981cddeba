/* Kinds of layers, what they can choose, and what that costs. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "partition/solve_in.h"

/* Up to so many ways of copying are tried one by one; among more the time falls, then rises. */
enum { TRY_ALL = 16 };
/* Of a layer's time; copies for nothing are not worth less. */
#define AHEAD_GAIN 0.005

/* ---- price of a kind of layer ---- */

/* What the shared expert adds. */
static yk_load shared_load(const yk_price *p, yk_kind kind)
{
    yk_load load = {0};
    if (p->shared && kind == YK_KIND_GG) {
        load.gg_s = p->shared_gpu.cg_s;
        load.gpu_bytes = p->shared_gpu.gpu_bytes;
    } else if (p->shared)
        load = kind == YK_KIND_CC ? p->shared_cpu : p->shared_gpu;
    return load;
}

static void make_tables(yk_price *p, const yk_shape_layer *y)
{
    p->spread = p->experts && !p->step.prefill;
    if (!p->spread)
        return;
    p->chosen.n[YK_KIND_CC] = p->n;
    yk_cost_experts(p->cost, &p->chosen, y, &p->step);
    p->exact = yk_spread_chosen(&p->chosen);
    for (int side = 0; side < 1 + p->cost->has_device && p->exact; side++)
        for (int kind = 0; kind < (p->shared ? 3 : 1); kind++) {
            const yk_load sure = shared_load(p, (yk_kind)kind);
            yk_spread_table(p->at[side][kind], p->cost, &p->step, &p->attn[side], &sure, &p->chosen);
        }
}

void yk_price_make(yk_price *p, const yk_solver *s, const yk_class *k, const yk_step_kind *step)
{
    const yk_shape_layer *y = &s->shape->layers[k->layer];
    const yk_shape_part *part = &y->part[k->main];
    double tokens;
    memset(p, 0, offsetof(yk_price, at)); /* tables are filled when there are any */
    p->cost = &s->cost;
    p->step = *step;
    p->n = k->n;
    p->experts = k->main == YK_PART_EXP;
    p->active = yk_cost_active(s->shape, k->main, step->n, &tokens);
    for (int a = 0; a < (s->cost.has_device ? YK_ATTN_N : 1); a++)
        p->attn[a] =
            yk_cost_side_of(&s->cost, k->layer, step, step->prefill || a != YK_ATTN_COPIED ? (yk_attn)a : YK_ATTN_HOST);
    for (int kind = YK_KIND_CC; kind <= YK_KIND_CG; kind++) {
        if (kind == YK_KIND_CG && !s->cost.has_device)
            continue;
        yk_use one = {k->main, (yk_kind)kind, 0, p->experts ? part->cut.n : 1, 1};
        yk_cost_add(&s->cost, kind == YK_KIND_CC ? &p->cpu : &p->gpu, y, step, &one);
        one.unit0 = p->experts ? 0 : part->cut.n - 1;
        yk_cost_add(&s->cost, kind == YK_KIND_CC ? &p->cpu_last : &p->gpu_last, y, step, &one);
        if (!y->part[YK_PART_SHEXP].n)
            continue;
        p->shared = true;
        const yk_use all = {YK_PART_SHEXP, (yk_kind)kind, 0, y->part[YK_PART_SHEXP].cut.n, 1};
        yk_cost_add(&s->cost, kind == YK_KIND_CC ? &p->shared_cpu : &p->shared_gpu, y, step, &all);
    }
    p->early = !p->experts || step->prefill;
    make_tables(p, y);
}

static void add(yk_load *load, const yk_load *unit, const yk_load *last_unit, uint32_t n, bool last)
{
    const double k = (double)(n - last), z = last;
    load->cpu_s += k * unit->cpu_s + z * last_unit->cpu_s;
    load->cpu_bytes += k * unit->cpu_bytes + z * last_unit->cpu_bytes;
    load->cg_s += k * unit->cg_s + z * last_unit->cg_s;
    load->gpu_bytes += k * unit->gpu_bytes + z * last_unit->gpu_bytes;
    load->early_bytes += k * unit->early_bytes + z * last_unit->early_bytes;
    load->late_bytes += k * unit->late_bytes + z * last_unit->late_bytes;
}

double yk_price_layer(const yk_price *p, const yk_option *o, yk_copied c)
{
    const uint32_t cpu = p->n - o->resident - c.n;
    const yk_kind shared = !p->shared || o->shared ? YK_KIND_GG : c.shared ? YK_KIND_CG : YK_KIND_CC;
    const uint32_t n[3] = {[YK_KIND_GG] = o->resident, [YK_KIND_CC] = cpu, [YK_KIND_CG] = c.n};
    if (p->exact)
        return yk_spread_mean(p->at[o->attn == YK_ATTN_DEVICE][shared], p->exact, n);
    yk_load load = shared_load(p, shared);
    if (p->spread) {
        yk_experts e = p->chosen;
        memcpy(e.n, n, sizeof n);
        e.ahead = c.ahead;
        return yk_cost_spread(p->cost, &p->step, &p->attn[o->attn], &load, &e, NULL);
    }
    if (o->resident) {
        const double last = o->resident == p->n, others = o->resident - last;
        load.gg_s += others * p->gpu.cg_s + last * p->gpu_last.cg_s;
        load.gpu_bytes += others * p->gpu.gpu_bytes + last * p->gpu_last.gpu_bytes;
    }
    if (c.n) {
        add(&load, &p->gpu, &p->gpu_last, c.n, cpu == 0);
        const double copies = p->experts ? c.n * p->active : 1;
        *(p->early ? &load.early_copies : &load.late_copies) += copies;
    }
    if (cpu)
        add(&load, &p->cpu, &p->cpu_last, cpu, true);
    return yk_cost_join(p->cost, &p->step, &p->attn[o->attn], &load, NULL);
}

static uint64_t main_bytes(const yk_shape_part *p, bool experts, uint32_t from, uint32_t n)
{
    return experts ? n * yk_shape_units_bytes(p, 0, p->cut.n) : yk_shape_units_bytes(p, from, n);
}

/* Units or experts of the main part that one staging slot lets be copied at a time. An expert is copied whole or not at all. */
static uint32_t most_copied(const yk_solver *s, const yk_class *k, uint32_t left)
{
    const yk_shape_part *p = &s->shape->layers[k->layer].part[k->main];
    if (!left || p->host_only || !s->slot.bytes)
        return 0;
    if (k->main == YK_PART_EXP)
        return main_bytes(p, true, 0, 1) <= s->slot.bytes ? left : 0;
    if (main_bytes(p, false, k->n - left, left) <= s->slot.bytes)
        return left;
    const uint64_t n = s->slot.bytes / main_bytes(p, false, 0, 1);
    return n < left ? (uint32_t)n : left - 1;
}

/* The first copy also costs latency, so "none" is compared as well. */
static void try_number(const yk_price *p, const yk_option *o, yk_copied c, yk_copied *best, double *seconds)
{
    const double t = yk_price_layer(p, o, c);
    if (t < *seconds) {
        *seconds = t;
        *best = c;
    }
}

/* *best is replaced when one of these is better: n from 1, `how` for the rest. */
static void best_number(const yk_price *p, const yk_option *o, uint32_t most, yk_copied how, yk_copied *best, double *seconds)
{
    yk_copied a = how, b = how;
    uint32_t low = 1, high = most;
    for (a.n = 1; a.n <= most && most <= TRY_ALL; a.n++)
        try_number(p, o, a, best, seconds);
    if (most <= TRY_ALL)
        return;
    while (low < high) {
        a.n = low + (high - low) / 2;
        b.n = a.n + 1;
        if (yk_price_layer(p, o, b) < yk_price_layer(p, o, a))
            low = b.n;
        else
            high = a.n;
    }
    a.n = low;
    b.n = most;
    try_number(p, o, a, best, seconds);
    try_number(p, o, b, best, seconds);
}

/* Copies that begin before the router has chosen are tried when at least every second one is of use; what they take of the
 * link for nothing has to pay. A device on the same memory gains nothing by them: it would be slowed, too. */
static void best_copied(const yk_price *p, const yk_option *o, uint32_t most, bool shared, yk_copied *best, double *seconds)
{
    yk_copied c = {.n = 0};
    try_number(p, o, (yk_copied){.shared = shared}, best, seconds);
    best_number(p, o, most, (yk_copied){.shared = shared}, best, seconds);
    double t = *seconds * (1 - AHEAD_GAIN);
    if (p->spread && !p->exact && p->active >= 0.5 && !(p->cost->same_memory_rate > 0))
        best_number(p, o, most, (yk_copied){.shared = shared, .ahead = true}, &c, &t);
    if (c.n) {
        *best = c;
        *seconds = t;
    }
}

yk_copied yk_price_copied(const yk_solver *s, const yk_class *k, const yk_price *p, const yk_option *o, double *seconds)
{
    const uint32_t most = most_copied(s, k, k->n - o->resident);
    const yk_shape_part *sh = &s->shape->layers[k->layer].part[YK_PART_SHEXP];
    yk_copied c = {0};
    *seconds = INFINITY;
    best_copied(p, o, most, false, &c, seconds);
    if (sh->n && !o->shared && !sh->host_only && s->slot.bytes && k->shared_bytes <= s->slot.bytes)
        best_copied(p, o, most, true, &c, seconds);
    return c;
}

static uint64_t option_bytes(const yk_solver *s, const yk_class *k, const yk_option *o)
{
    const yk_shape_layer *y = &s->shape->layers[k->layer];
    return (o->attn == YK_ATTN_DEVICE ? k->attn_bytes : 0) + (o->shared ? k->shared_bytes : 0) +
           main_bytes(&y->part[k->main], k->main == YK_PART_EXP, 0, o->resident);
}

void yk_price_option(const yk_solver *s, const yk_class *k, yk_option *o)
{
    double dec, pre;
    yk_price_copied(s, k, &k->decode, o, &dec);
    yk_price_copied(s, k, &k->prefill, o, &pre);
    o->seconds = s->n_decode * dec + s->n_prefill * pre;
    o->bytes = option_bytes(s, k, o);
}

yk_option yk_option_all(const yk_solver *s, const yk_class *k)
{
    const yk_shape_layer *y = &s->shape->layers[k->layer];
    return (yk_option){.attn = y->host_only ? YK_ATTN_HOST : YK_ATTN_DEVICE,
                       .shared = y->part[YK_PART_SHEXP].n > 0 && !y->part[YK_PART_SHEXP].host_only,
                       .resident = y->part[k->main].host_only ? 0 : k->n};
}

/* ---- options ---- */

static int by_bytes(const void *pa, const void *pb)
{
    const yk_option *a = pa, *b = pb;
    if (a->bytes != b->bytes)
        return a->bytes < b->bytes ? -1 : 1;
    if (a->seconds != b->seconds)
        return a->seconds < b->seconds ? -1 : 1;
    if (a->resident != b->resident)
        return a->resident < b->resident ? -1 : 1;
    return a->shared - b->shared;
}

/* Lower convex hull of time over bytes: the moves with falling gain per byte. */
static void make_hull(yk_class *k, int side)
{
    const yk_option *o = k->options[side];
    uint32_t *h = k->hull[side], n = 0;
    for (uint32_t i = 0; i < k->n_options[side]; i++) {
        while (n >= 2) {
            const yk_option *a = &o[h[n - 2]], *b = &o[h[n - 1]];
            const double ab = (a->seconds - b->seconds) / (double)(b->bytes - a->bytes);
            const double bo = (b->seconds - o[i].seconds) / (double)(o[i].bytes - b->bytes);
            if (ab > bo)
                break;
            n--;
        }
        h[n++] = i;
    }
    k->n_hull[side] = n;
}

/* Without what another option beats in bytes and seconds. */
static void drop_dominated(yk_class *k, int attn)
{
    yk_option *list = k->options[attn];
    uint32_t kept = 0;
    qsort(list, k->n_options[attn], sizeof *list, by_bytes);
    for (uint32_t i = 0; i < k->n_options[attn]; i++)
        if (!kept || list[i].seconds < list[kept - 1].seconds)
            list[kept++] = list[i];
    k->n_options[attn] = kept;
}

static bool may_choose(const yk_solver *s, const yk_class *k, yk_attn attn)
{
    const yk_shape_layer *y = &s->shape->layers[k->layer];
    if (attn != YK_ATTN_HOST && y->host_only)
        return false;
    if (attn == YK_ATTN_COPIED && (!s->slot.attn || !s->cost.has_device || yk_shape_attn_bytes(y) > s->slot.bytes))
        return false;
    return k->rule.attn.sides & (attn == YK_ATTN_DEVICE ? YK_ON_DEVICE : YK_ON_HOST);
}

enum { PRICED = 2 + YK_ATTN_N };

static void forget_prices(yk_class *k)
{
    for (int i = 0; i < PRICED; i++)
        for (uint32_t o = 0; o < 2 * (k->n + 1); o++)
            k->priced[i][o] = NAN;
}

/* What the slots let a layer copy of its FFN: prices are the same while that is. */
static uint32_t slot_holds(const yk_solver *s, const yk_class *k)
{
    const uint32_t whole = k->shared_bytes <= s->slot.bytes;
    return (most_copied(s, k, k->n) << 1 | whole) << 1 | (s->slot.bytes > 0);
}

static double priced(const yk_solver *s, yk_class *k, int phase, int side, const yk_option *o)
{
    double *t = &k->priced[2 * phase + side][(uint32_t)o->shared * (k->n + 1) + o->resident];
    if (isnan(*t))
        yk_price_copied(s, k, phase ? &k->prefill : &k->decode, o, t);
    return *t;
}

static void make_options(const yk_solver *s, yk_class *k, uint64_t room)
{
    const yk_option all = yk_option_all(s, k);
    const yk_layer_rule *r = &k->rule;
    bool may[YK_ATTN_N];
    const uint32_t holds = slot_holds(s, k);
    if (holds != k->holds)
        forget_prices(k);
    k->holds = holds;
    for (int a = 0; a < YK_ATTN_N; a++) {
        may[a] = may_choose(s, k, (yk_attn)a);
        k->n_options[a] = k->n_hull[a] = 0;
    }
    for (int shared = 0; shared < 1 + all.shared; shared++)
        for (uint32_t i = r->least;
             i <= r->most && i <= all.resident && (r->shared.sides & (shared ? YK_ON_DEVICE : YK_ON_HOST)); i++)
            for (int a = 0; a < YK_ATTN_N; a++) {
                yk_option o = {.attn = (uint8_t)a, .shared = shared, .resident = i};
                if (!may[a] || (o.bytes = option_bytes(s, k, &o)) > room)
                    continue;
                o.seconds = s->n_decode * priced(s, k, 0, a == YK_ATTN_DEVICE, &o) + s->n_prefill * priced(s, k, 1, a, &o);
                k->options[a][k->n_options[a]++] = o;
            }
    for (int a = 0; a < YK_ATTN_N; a++) {
        drop_dominated(k, a);
        make_hull(k, a);
    }
}

void yk_solver_set_slot(yk_solver *s, yk_slot slot, uint64_t room)
{
    s->slot = slot;
    for (uint32_t i = 0; i < s->n_classes; i++)
        make_options(s, &s->classes[i], room);
}

uint64_t yk_solver_staging(const yk_solver *s, yk_slot slot)
{
    return 2 * slot.bytes + (slot.attn ? s->kv_bytes : 0);
}

void yk_solver_set_cost(yk_solver *s, const yk_cost *cost)
{
    s->cost = *cost;
    for (uint32_t i = 0; i < s->n_classes; i++) {
        yk_class *k = &s->classes[i];
        yk_price_make(&k->decode, s, k, &s->decode);
        yk_price_make(&k->prefill, s, k, &s->prefill);
        forget_prices(k);
    }
}

/* ---- sizes of slots ---- */

static int by_size(const void *pa, const void *pb)
{
    const yk_slot *a = pa, *b = pb;
    return a->bytes != b->bytes ? (a->bytes < b->bytes ? -1 : 1) : a->attn - b->attn;
}

static uint32_t sort_sizes(yk_slot *slots, uint32_t n)
{
    uint32_t kept = 0;
    qsort(slots, n, sizeof *slots, by_size);
    for (uint32_t i = 0; i < n; i++)
        if (!kept || by_size(&slots[i], &slots[kept - 1]) != 0)
            slots[kept++] = slots[i];
    return kept;
}

/* Of dense layers 1 to 8 units, then a quarter more each time, then all; of experts one; the shared expert. The same with
 * attention where it fits, and attention alone. */
uint32_t yk_solver_slots(const yk_solver *s, yk_slot slots[YK_MAX_SLOTS])
{
    enum { SIZES = YK_MAX_SLOTS / 2 };
    uint32_t n = 0;
    uint64_t least = UINT64_MAX;
    slots[n++] = (yk_slot){0};
    for (uint32_t i = 0; i < s->n_classes; i++) {
        const yk_class *k = &s->classes[i];
        const yk_shape_layer *y = &s->shape->layers[k->layer];
        const yk_shape_part *p = &y->part[k->main];
        const bool experts = k->main == YK_PART_EXP;
        for (uint32_t u = 1; u <= (experts ? 1 : k->n) && n < SIZES; u = u < 8 ? u + 1 : u + u / 4)
            slots[n++] = (yk_slot){main_bytes(p, experts, 0, u), false};
        const uint64_t whole[2] = {experts ? 0 : main_bytes(p, false, 0, k->n), k->shared_bytes};
        for (int w = 0; w < 2 && n < SIZES; w++)
            slots[n++] = (yk_slot){whole[w], false};
        if (!y->host_only && (k->rule.attn.sides & YK_ON_HOST) && yk_shape_attn_bytes(y) < least)
            least = yk_shape_attn_bytes(y);
        n = sort_sizes(slots, n);
    }
    for (uint32_t i = 0, m = n; i < m && least < UINT64_MAX; i++)
        if (slots[i].bytes > least)
            slots[n++] = (yk_slot){slots[i].bytes, true};
    for (uint32_t i = 0; i < s->n_classes && n < YK_MAX_SLOTS; i++) {
        const yk_class *k = &s->classes[i];
        const yk_shape_layer *y = &s->shape->layers[k->layer];
        if (!y->host_only && (k->rule.attn.sides & YK_ON_HOST))
            slots[n++] = (yk_slot){yk_shape_attn_bytes(y), true};
    }
    return sort_sizes(slots, n);
}

/* ---- totals ---- */

double yk_solver_head(const yk_solver *s, bool on_device)
{
    return s->n_decode * yk_cost_head(&s->cost, &s->decode, on_device) +
           s->n_prefill * yk_cost_head(&s->cost, &s->prefill, on_device);
}

double yk_solver_cross(const yk_solver *s, int from, int to)
{
    double sum = 0;
    if ((from == YK_ATTN_DEVICE) != (to == YK_ATTN_DEVICE))
        sum += s->n_decode * yk_cost_cross(&s->cost, &s->decode);
    if ((from == YK_ATTN_HOST) != (to == YK_ATTN_HOST))
        sum += s->n_prefill * yk_cost_cross(&s->cost, &s->prefill);
    return sum;
}

double yk_solver_total(const yk_solver *s, const yk_option *choice, bool head)
{
    double sum = yk_solver_head(s, head);
    int side = YK_ATTN_HOST;
    for (uint32_t l = 0; l <= s->shape->n_layers; l++) {
        const int next = l < s->shape->n_layers ? choice[l].attn : head ? YK_ATTN_DEVICE : YK_ATTN_HOST;
        sum += next != side ? yk_solver_cross(s, side, next) : 0;
        side = next;
        if (l < s->shape->n_layers)
            sum += choice[l].seconds;
    }
    return sum;
}

void yk_solver_speed(yk_solver *s, const yk_option *choice, bool head, double *decode_tps, double *prefill_tps)
{
    for (int phase = 0; phase < 2; phase++) {
        const yk_step_kind step = {
            .prefill = phase, .n = phase ? s->limits->batch : 1, .kv_elem_bytes = s->limits->kv_elem_bytes};
        double sum = yk_cost_head(&s->cost, &step, head), last = 0;
        bool side = false;
        yk_price price;
        for (uint32_t l = 0; l <= s->shape->n_layers; l++) {
            const bool dev = l == s->shape->n_layers ? head
                             : phase                 ? choice[l].attn != YK_ATTN_HOST
                                                     : choice[l].attn == YK_ATTN_DEVICE;
            sum += dev != side ? yk_cost_cross(&s->cost, &step) : 0;
            side = dev;
            if (l == s->shape->n_layers)
                break;
            const yk_class *k = &s->classes[s->class_of[l]];
            const bool same = l && s->class_of[l - 1] == s->class_of[l];
            if (!same)
                yk_price_make(&price, s, k, &step);
            if (!same || choice[l].attn != choice[l - 1].attn || choice[l].shared != choice[l - 1].shared ||
                choice[l].resident != choice[l - 1].resident)
                yk_price_copied(s, k, &price, &choice[l], &last);
            sum += last;
        }
        *(phase ? prefill_tps : decode_tps) = step.n / sum;
    }
}

/* ---- setting up ---- */

static bool same_rule(const yk_layer_rule *a, const yk_layer_rule *b)
{
    return a->attn.sides == b->attn.sides && a->shared.sides == b->shared.sides && a->least == b->least && a->most == b->most;
}

static yk_status open_class(yk_solver *s, yk_class *k, uint32_t layer, yk_error *err)
{
    const yk_shape_layer *y = &s->shape->layers[layer];
    const yk_shape_part *shared = &y->part[YK_PART_SHEXP];
    k->layer = layer;
    k->main = yk_main_part(y);
    k->n = yk_main_units(y);
    k->rule = s->rules->layers[layer];
    k->attn_bytes = yk_shape_attn_bytes(y) + s->kv_bytes;
    k->shared_bytes = shared->n ? yk_shape_units_bytes(shared, 0, shared->cut.n) : 0;
    const size_t m = 2 * ((size_t)k->n + 1);
    for (int side = 0; side < YK_ATTN_N; side++) {
        k->options[side] = yk_alloc(YK_MEM_PLAN, m, sizeof *k->options[side]);
        k->hull[side] = yk_alloc(YK_MEM_PLAN, m, sizeof *k->hull[side]);
        k->near[side] = yk_alloc(YK_MEM_PLAN, m, sizeof *k->near[side]);
        if (!k->options[side] || !k->hull[side] || !k->near[side])
            return yk_fail_memory(err, m * (sizeof(yk_option) + 8), "the planner");
    }
    for (int i = 0; i < PRICED; i++) {
        k->priced[i] = yk_alloc(YK_MEM_PLAN, m, sizeof *k->priced[i]);
        if (!k->priced[i])
            return yk_fail_memory(err, m * sizeof *k->priced[i], "the planner");
    }
    return YK_OK;
}

void yk_solver_close(yk_solver *s)
{
    for (uint32_t i = 0; s->classes && i < s->n_classes; i++) {
        yk_class *k = &s->classes[i];
        for (int side = 0; side < YK_ATTN_N; side++) {
            yk_free(k->options[side]);
            yk_free(k->hull[side]);
            yk_free(k->near[side]);
        }
        for (int p = 0; p < PRICED; p++)
            yk_free(k->priced[p]);
    }
    yk_search_close(s);
    yk_free(s->classes);
    yk_free(s->class_of);
    yk_free(s->choice);
}

yk_status yk_solver_open(yk_solver *s, const yk_shape *shape, const yk_plan_limits *limits, const yk_rules *rules,
                         yk_error *err)
{
    const uint32_t n = shape->n_layers;
    const uint32_t prompt = limits->prompt_tokens ? limits->prompt_tokens : 512,
                   gen = limits->gen_tokens ? limits->gen_tokens : 128;
    const uint32_t seqs = limits->max_seqs < yk_bucket_tokens(YK_B_32) ? limits->max_seqs : yk_bucket_tokens(YK_B_32);
    const uint32_t chunk = limits->batch < prompt ? limits->batch : prompt;
    const uint64_t tokens = limits->kv_tokens ? limits->kv_tokens : (uint64_t)limits->context * limits->max_seqs;
    *s = (yk_solver){.shape = shape, .limits = limits, .rules = rules};
    s->kv_bytes = (tokens + 15) / 16 * 16 * yk_shape_kv_bytes(shape, limits->kv_elem_bytes);
    s->decode = (yk_step_kind){.n = seqs, .depth = limits->context / 2, .kv_elem_bytes = limits->kv_elem_bytes};
    s->prefill =
        (yk_step_kind){.prefill = true, .n = chunk, .depth = (prompt - chunk) / 2, .kv_elem_bytes = limits->kv_elem_bytes};
    s->n_decode = (double)gen * limits->max_seqs / seqs;
    s->n_prefill = (double)prompt * limits->max_seqs / chunk;
    s->classes = yk_alloc(YK_MEM_PLAN, n, sizeof *s->classes);
    s->class_of = yk_alloc(YK_MEM_PLAN, n, sizeof *s->class_of);
    s->choice = yk_alloc(YK_MEM_PLAN, n, sizeof *s->choice);
    if (!s->classes || !s->class_of || !s->choice)
        return yk_fail_memory(err, n * (sizeof(yk_class) + sizeof(yk_option) + 4), "the planner");
    for (uint32_t l = 0; l < n; l++) {
        uint32_t i = 0;
        while (i < s->n_classes && (!yk_cost_same_layer(&shape->layers[s->classes[i].layer], &shape->layers[l]) ||
                                    !same_rule(&s->classes[i].rule, &rules->layers[l])))
            i++;
        s->class_of[l] = i;
        if (i < s->n_classes)
            continue;
        YK_TRY(open_class(s, &s->classes[s->n_classes++], l, err));
    }
    return yk_search_open(s, err);
}
