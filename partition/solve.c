#include "partition/solve.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A device is used when it makes the request this much faster; below that the simpler plan wins. */
#define WORTH 0.99
/* The card a device of the same silicon stands for. */
#define REHEARSAL_SPEED 5.0
#define REHEARSAL_LINK  0.5

enum { N_SLOTS = 5, MODES = 3 };

/* What a layer can choose: side of attention, of the shared expert, and how much of its main part (units of the dense FFN,
 * whole experts) is resident. */
typedef struct option {
    bool attn, shared;
    uint32_t resident;
    uint64_t bytes; /* on the device */
    double seconds; /* of a request */
} option;

/* Layers that are alike share their options. */
typedef struct class
{
    uint32_t layer; /* the first one of it */
    yk_part_group main;
    uint32_t n;             /* units or experts of the main part */
    option *options, *hull; /* [2 * 2 * (n + 1)] */
    uint32_t n_options, n_hull;
    option none, all; /* nothing and everything on the device */
} class;

typedef struct solver {
    const yk_shape *shape;
    const yk_plan_limits *limits;
    yk_cost cost;
    yk_step_kind decode, prefill; /* of the request */
    double n_decode, n_prefill;   /* how many of them */
    uint64_t kv_bytes;            /* of a layer */
    uint32_t n_classes;
    class *classes;
    uint32_t *class_of;    /* [n_layers] */
    option *choice, *best; /* [n_layers] */
    uint32_t *hull_at;     /* [n_layers] */
    uint64_t slot_bytes, best_slot;
    bool head, best_head;
    double best_s;
} solver;

static uint64_t kv_of_layer(const yk_shape *shape, const yk_plan_limits *limits)
{
    const uint64_t tokens = limits->kv_tokens ? limits->kv_tokens : (uint64_t)limits->context * limits->max_seqs;
    return (tokens + 15) / 16 * 16 * yk_shape_kv_bytes(shape, limits->kv_elem_bytes);
}

static uint64_t main_bytes(const class *k, const yk_shape_part *p, uint32_t from, uint32_t n)
{
    if (k->main == YK_PART_EXP)
        return n * yk_shape_units_bytes(p, 0, p->cut.n);
    return yk_shape_units_bytes(p, from, n);
}

/* Units or experts of the main part that one staging slot lets be copied at a time. An expert is copied whole or not at all. */
static uint32_t most_copied(const solver *s, const class *k, uint32_t left)
{
    const yk_shape_part *p = &s->shape->layers[k->layer].part[k->main];
    const uint64_t one = main_bytes(k, p, 0, 1);
    if (s->slot_bytes < one || p->host_only)
        return 0;
    if (k->main == YK_PART_EXP)
        return left;
    const uint64_t n = s->slot_bytes / one;
    return n < left ? (uint32_t)n : left;
}

static double layer_seconds(const solver *s, const class *k, const option *o, const yk_step_kind *step, uint32_t copied)
{
    const yk_shape_layer *y = &s->shape->layers[k->layer];
    yk_load load = {0};
    const uint32_t n[3] = {o->resident, copied, k->n - o->resident - copied};
    static const yk_kind kinds[3] = {YK_KIND_GG, YK_KIND_CG, YK_KIND_CC};
    uint32_t from = 0;
    for (int i = 0; i < 3; i++) {
        const yk_use use = k->main == YK_PART_EXP ? (yk_use){k->main, kinds[i], 0, y->part[k->main].cut.n, n[i]}
                                                  : (yk_use){k->main, kinds[i], from, n[i], 1};
        yk_cost_add(&s->cost, &load, y, step, &use);
        from += n[i];
    }
    if (y->part[YK_PART_SHEXP].n) {
        const yk_use use = {YK_PART_SHEXP, o->shared ? YK_KIND_GG : YK_KIND_CC, 0, y->part[YK_PART_SHEXP].cut.n, 1};
        yk_cost_add(&s->cost, &load, y, step, &use);
    }
    return yk_cost_layer(&s->cost, k->layer, step, o->attn, &load, NULL);
}

/* How many of the host's units or experts are best copied: the time falls while the CPU waits for less and rises when the link
 * is the last. The first copy also costs latency, so "none" is compared as well. */
static uint32_t best_copied(const solver *s, const class *k, const option *o, const yk_step_kind *step, double *seconds)
{
    uint32_t low = 1, high = most_copied(s, k, k->n - o->resident);
    *seconds = layer_seconds(s, k, o, step, 0);
    if (high == 0)
        return 0;
    while (low < high) {
        const uint32_t mid = low + (high - low) / 2;
        if (layer_seconds(s, k, o, step, mid + 1) < layer_seconds(s, k, o, step, mid))
            low = mid + 1;
        else
            high = mid;
    }
    const double t = layer_seconds(s, k, o, step, low);
    if (!(t < *seconds))
        return 0;
    *seconds = t;
    return low;
}

static void price(const solver *s, const class *k, option *o)
{
    const yk_shape_layer *y = &s->shape->layers[k->layer];
    double dec, pre;
    best_copied(s, k, o, &s->decode, &dec);
    best_copied(s, k, o, &s->prefill, &pre);
    o->seconds = s->n_decode * dec + s->n_prefill * pre;
    o->bytes = o->attn ? yk_shape_attn_bytes(y) + s->kv_bytes : 0;
    if (o->shared)
        o->bytes += yk_shape_units_bytes(&y->part[YK_PART_SHEXP], 0, y->part[YK_PART_SHEXP].cut.n);
    o->bytes += main_bytes(k, &y->part[k->main], 0, o->resident);
}

static int by_bytes(const void *pa, const void *pb)
{
    const option *a = pa, *b = pb;
    if (a->bytes != b->bytes)
        return a->bytes < b->bytes ? -1 : 1;
    return a->seconds < b->seconds ? -1 : a->seconds > b->seconds;
}

/* mode 0: anything; 1: attention stays on the host; 2: attention is on the device. */
static bool allowed(int mode, const option *o)
{
    return mode == 0 || o->attn == (mode == 2);
}

/* Lower convex hull of time over bytes: the moves with falling gain per byte. */
static void make_hull(class *k, int mode)
{
    k->n_hull = 0;
    for (uint32_t i = 0; i < k->n_options; i++) {
        const option *o = &k->options[i];
        if (!allowed(mode, o) || (k->n_hull && o->seconds >= k->hull[k->n_hull - 1].seconds))
            continue;
        while (k->n_hull >= 2) {
            const option *a = &k->hull[k->n_hull - 2], *b = &k->hull[k->n_hull - 1];
            const double ab = (a->seconds - b->seconds) / (double)(b->bytes - a->bytes);
            const double bo = (b->seconds - o->seconds) / (double)(o->bytes - b->bytes);
            if (ab > bo)
                break;
            k->n_hull--;
        }
        if (k->n_hull == 1 && o->bytes == k->hull[0].bytes)
            k->n_hull = 0;
        k->hull[k->n_hull++] = *o;
    }
}

/* All of a layer that a device can hold. */
static option everything(const solver *s, const class *k)
{
    const yk_shape_layer *y = &s->shape->layers[k->layer];
    return (option){.attn = !y->host_only,
                    .shared = y->part[YK_PART_SHEXP].n > 0 && !y->part[YK_PART_SHEXP].host_only,
                    .resident = y->part[k->main].host_only ? 0 : k->n};
}

static void make_options(const solver *s, class *k)
{
    const option all = everything(s, k);
    k->n_options = 0;
    for (int attn = 0; attn < 1 + all.attn; attn++)
        for (int shared = 0; shared < 1 + all.shared; shared++)
            for (uint32_t r = 0; r <= all.resident; r++) {
                option *o = &k->options[k->n_options++];
                *o = (option){.attn = attn, .shared = shared, .resident = r};
                price(s, k, o);
            }
    qsort(k->options, k->n_options, sizeof *k->options, by_bytes);
}

/* ---- choosing ---- */

static double total_seconds(const solver *s, const option *choice, bool head)
{
    double sum = 0;
    bool side = false;
    for (uint32_t l = 0; l <= s->shape->n_layers; l++) {
        const bool dev = l < s->shape->n_layers ? choice[l].attn : head;
        if (dev != side)
            sum += s->n_decode * yk_cost_cross(&s->cost, &s->decode) + s->n_prefill * yk_cost_cross(&s->cost, &s->prefill);
        side = dev;
        if (l < s->shape->n_layers)
            sum += choice[l].seconds;
    }
    return sum + s->n_decode * yk_cost_head(&s->cost, &s->decode, head) +
           s->n_prefill * yk_cost_head(&s->cost, &s->prefill, head);
}

/* Follow the hulls, steepest move first (later layers first among equals, so that what is on the device is together at the
 * end), then fill what is left with the best single change of a layer. */
static bool choose(solver *s, uint64_t room)
{
    const uint32_t n = s->shape->n_layers;
    for (uint32_t l = 0; l < n; l++) {
        const class *k = &s->classes[s->class_of[l]];
        if (k->n_hull == 0 || k->hull[0].bytes > room)
            return false;
        room -= k->hull[0].bytes;
        s->choice[l] = k->hull[0];
        s->hull_at[l] = 0;
    }
    for (;;) {
        uint32_t at = n;
        double best = 0;
        for (uint32_t l = n; l-- > 0;) {
            const class *k = &s->classes[s->class_of[l]];
            if (s->hull_at[l] + 1 >= k->n_hull)
                continue;
            const option *a = &k->hull[s->hull_at[l]], *b = a + 1;
            const double slope = (a->seconds - b->seconds) / (double)(b->bytes - a->bytes);
            if (b->bytes - a->bytes <= room && slope > best) {
                best = slope;
                at = l;
            }
        }
        if (at == n)
            break;
        const option *hull = s->classes[s->class_of[at]].hull;
        s->hull_at[at]++;
        room -= hull[s->hull_at[at]].bytes - s->choice[at].bytes;
        s->choice[at] = hull[s->hull_at[at]];
    }
    return true;
}

static void fill(solver *s, uint64_t room, int mode)
{
    const uint32_t n = s->shape->n_layers;
    for (uint32_t l = 0; l < n; l++)
        room -= s->choice[l].bytes;
    for (uint32_t round = 0; round < n; round++) {
        const option *to = NULL;
        uint32_t at = n;
        double best = 0;
        for (uint32_t l = n; l-- > 0;) {
            const class *k = &s->classes[s->class_of[l]];
            for (uint32_t i = 0; i < k->n_options; i++) {
                const option *o = &k->options[i];
                const double gain = s->choice[l].seconds - o->seconds;
                if (o->bytes > s->choice[l].bytes + room)
                    break;
                if (gain > best && allowed(mode, o)) {
                    best = gain;
                    at = l;
                    to = o;
                }
            }
        }
        if (at == n)
            return;
        room = room + s->choice[at].bytes - to->bytes;
        s->choice[at] = *to;
    }
}

static void keep_if_better(solver *s)
{
    const double t = total_seconds(s, s->choice, s->head);
    if (t < s->best_s) {
        s->best_s = t;
        s->best_head = s->head;
        s->best_slot = s->slot_bytes;
        memcpy(s->best, s->choice, s->shape->n_layers * sizeof *s->best);
    }
}

/* The last n layers wholly on the device, the others on the host; what -ngl does. Their bytes. */
static uint64_t whole_layers(const solver *s, option *choice, uint32_t n)
{
    uint64_t bytes = 0;
    for (uint32_t l = 0; l < s->shape->n_layers; l++) {
        const class *k = &s->classes[s->class_of[l]];
        choice[l] = l >= s->shape->n_layers - n ? k->all : k->none;
        bytes += choice[l].bytes;
    }
    return bytes;
}

/* Copies may take slots of so many bytes from now on. */
static void set_slot(solver *s, uint64_t bytes)
{
    s->slot_bytes = bytes;
    for (uint32_t i = 0; i < s->n_classes; i++) {
        class *k = &s->classes[i];
        k->none = (option){0};
        k->all = everything(s, k);
        price(s, k, &k->none);
        price(s, k, &k->all);
    }
}

static void try_budget(solver *s, uint64_t room)
{
    for (int head = 0; head < 2; head++) {
        s->head = head;
        const uint64_t head_bytes = head ? s->shape->head.bytes : 0;
        if (head_bytes > room || (head && s->shape->head_host_only))
            continue;
        for (int mode = 0; mode < MODES; mode++) {
            for (uint32_t i = 0; i < s->n_classes; i++)
                make_hull(&s->classes[i], mode);
            if (!choose(s, room - head_bytes))
                continue;
            fill(s, room - head_bytes, mode);
            keep_if_better(s);
        }
        for (uint32_t n = s->shape->n_layers; n > 0; n--)
            if (whole_layers(s, s->choice, n) <= room - head_bytes) {
                keep_if_better(s);
                break;
            }
    }
}

/* ---- setting up ---- */

static bool same_layer(const yk_shape_layer *a, const yk_shape_layer *b)
{
    bool same = a->host_only == b->host_only && a->window == b->window && a->other_bytes == b->other_bytes && a->router.bytes == b->router.bytes;
    for (int m = 0; m < YK_ATTN_MATS; m++)
        same = same && a->attn[m].type == b->attn[m].type && a->attn[m].bytes == b->attn[m].bytes;
    for (int g = 0; g < YK_PART_N; g++) {
        const yk_shape_part *p = &a->part[g], *q = &b->part[g];
        same = same && p->n == q->n && p->host_only == q->host_only && p->cut.width == q->cut.width && p->cut.unit == q->cut.unit;
        for (int m = 0; m < YK_PART_MATS; m++)
            same = same && p->type[m] == q->type[m] && p->unit_bytes[m] == q->unit_bytes[m];
    }
    return same;
}

static void close_solver(solver *s)
{
    for (uint32_t i = 0; s->classes && i < s->n_classes; i++) {
        yk_free(s->classes[i].options);
        yk_free(s->classes[i].hull);
    }
    yk_free(s->classes);
    yk_free(s->class_of);
    yk_free(s->choice);
    yk_free(s->best);
    yk_free(s->hull_at);
}

static yk_status open_solver(solver *s, const yk_shape *shape, const yk_plan_limits *limits, yk_error *err)
{
    const uint32_t n = shape->n_layers;
    const uint32_t prompt = limits->prompt_tokens ? limits->prompt_tokens : 512,
                   gen = limits->gen_tokens ? limits->gen_tokens : 128;
    const uint32_t seqs = limits->max_seqs < yk_bucket_tokens(YK_B_32) ? limits->max_seqs : yk_bucket_tokens(YK_B_32);
    const uint32_t chunk = limits->batch < prompt ? limits->batch : prompt;
    *s = (solver){.shape = shape, .limits = limits, .best_s = INFINITY, .kv_bytes = kv_of_layer(shape, limits)};
    s->decode = (yk_step_kind){.n = seqs, .depth = limits->context / 2, .kv_elem_bytes = limits->kv_elem_bytes};
    s->prefill = (yk_step_kind){.prefill = true, .n = chunk, .depth = 0, .kv_elem_bytes = limits->kv_elem_bytes};
    s->n_decode = (double)gen * limits->max_seqs / seqs;
    s->n_prefill = (double)prompt * limits->max_seqs / chunk;
    s->classes = yk_alloc(YK_MEM_PLAN, n, sizeof *s->classes);
    s->class_of = yk_alloc(YK_MEM_PLAN, n, sizeof *s->class_of);
    s->choice = yk_alloc(YK_MEM_PLAN, n, sizeof *s->choice);
    s->best = yk_alloc(YK_MEM_PLAN, n, sizeof *s->best);
    s->hull_at = yk_alloc(YK_MEM_PLAN, n, sizeof *s->hull_at);
    if (!s->classes || !s->class_of || !s->choice || !s->best || !s->hull_at)
        return yk_fail_memory(err, n * (sizeof(class) + 2 * sizeof(option) + 8), "the planner");
    for (uint32_t l = 0; l < n; l++) {
        uint32_t i = 0;
        while (i < s->n_classes && !same_layer(&shape->layers[s->classes[i].layer], &shape->layers[l]))
            i++;
        s->class_of[l] = i;
        if (i < s->n_classes)
            continue;
        class *k = &s->classes[s->n_classes++];
        k->layer = l;
        k->main = shape->layers[l].part[YK_PART_EXP].n ? YK_PART_EXP : YK_PART_FFN;
        k->n = k->main == YK_PART_EXP ? shape->layers[l].part[YK_PART_EXP].n : shape->layers[l].part[YK_PART_FFN].cut.n;
        const size_t m = 4 * ((size_t)k->n + 1);
        k->options = yk_alloc(YK_MEM_PLAN, m, sizeof *k->options);
        k->hull = yk_alloc(YK_MEM_PLAN, m, sizeof *k->hull);
        if (!k->options || !k->hull)
            return yk_fail_memory(err, 2 * m * sizeof(option), "the planner");
    }
    return YK_OK;
}

/* Slot sizes worth trying: none, an eighth, a quarter, half and all of the largest dense FFN in whole units; of experts none or
 * one. */
static uint32_t slot_sizes(const solver *s, uint64_t sizes[N_SLOTS])
{
    uint64_t largest_expert = 0, largest_unit = 0, units = 0;
    for (uint32_t i = 0; i < s->n_classes; i++) {
        const class *k = &s->classes[i];
        const yk_shape_part *p = &s->shape->layers[k->layer].part[k->main];
        const uint64_t b = main_bytes(k, p, 0, 1);
        if (k->main == YK_PART_EXP)
            largest_expert = b > largest_expert ? b : largest_expert;
        else {
            largest_unit = b > largest_unit ? b : largest_unit;
            units = k->n > units ? k->n : units;
        }
    }
    uint32_t n = 0;
    sizes[n++] = 0;
    for (uint32_t part = 8; part >= 1 && units; part /= 2) {
        const uint64_t u = units / part * largest_unit;
        if (part == 1 || part == 8 || part == 4 || part == 2) {
            const uint64_t size = u > largest_expert ? u : largest_expert;
            if (size > sizes[n - 1] && n < N_SLOTS)
                sizes[n++] = size;
        }
    }
    if (!units && largest_expert)
        sizes[n++] = largest_expert;
    return n;
}

/* ---- the plan ---- */

/* Host units after the resident ones: the first are CG in the buckets that copy that many, the rest CC. Cut where any bucket
 * changes. */
static yk_status emit_main(const solver *s, yk_plan *plan, uint32_t l, const option *o, yk_error *err)
{
    const class *k = &s->classes[s->class_of[l]];
    const bool exp = k->main == YK_PART_EXP;
    const uint32_t cut_n = s->shape->layers[l].part[k->main].cut.n;
    uint32_t copied[YK_N_BUCKETS] = {0};
    double seconds;
    for (int b = 0; b < YK_N_BUCKETS && s->slot_bytes; b++) {
        yk_step_kind step = b == YK_B_PREFILL ? s->prefill : s->decode;
        if (b != YK_B_PREFILL)
            step.n = yk_bucket_of(s->decode.n) == (yk_bucket)b ? s->decode.n : yk_bucket_tokens((yk_bucket)b);
        copied[b] = best_copied(s, k, o, &step, &seconds);
    }
    for (uint32_t u = 0; u < k->n;) {
        yk_slice sl = {.group = (uint8_t)k->main, .home = u < o->resident ? 0 : YK_HOST};
        uint32_t end = u < o->resident ? o->resident : k->n;
        for (int b = 0; b < YK_N_BUCKETS; b++) {
            const uint32_t to = o->resident + copied[b];
            sl.kind[b] = u < o->resident ? YK_KIND_GG : u < to ? YK_KIND_CG : YK_KIND_CC;
            if (u >= o->resident && u < to && to < end)
                end = to;
        }
        if (exp) {
            sl.expert = u++;
            sl.units = cut_n;
        } else {
            sl.unit0 = u;
            sl.units = end - u;
            u = end;
        }
        YK_TRY(yk_plan_add(plan, l, &sl, err));
    }
    return YK_OK;
}

static yk_status emit(const solver *s, yk_plan *plan, const char *device, const option *choice, bool head, yk_error *err)
{
    YK_TRY(yk_plan_init(plan, s->shape->n_layers, err));
    memcpy(plan->shape_id, s->shape->id, sizeof plan->shape_id);
    memcpy(plan->model_name, s->shape->name, sizeof plan->model_name);
    plan->context = s->limits->context;
    plan->max_seqs = s->limits->max_seqs;
    plan->batch = s->limits->batch;
    plan->kv_elem_bytes = s->limits->kv_elem_bytes;
    if (device)
        yk_plan_device(plan, device);
    plan->head_home = head ? 0 : YK_HOST;
    for (uint32_t l = 0; l < s->shape->n_layers; l++) {
        const yk_shape_part *shared = &s->shape->layers[l].part[YK_PART_SHEXP];
        plan->layers[l].attn_home = choice[l].attn ? 0 : YK_HOST;
        YK_TRY(emit_main(s, plan, l, &choice[l], err));
        if (!shared->n)
            continue;
        yk_slice sl = {.group = YK_PART_SHEXP, .home = choice[l].shared ? 0 : YK_HOST, .units = shared->cut.n};
        memset(sl.kind, choice[l].shared ? YK_KIND_GG : YK_KIND_CC, sizeof sl.kind);
        YK_TRY(yk_plan_add(plan, l, &sl, err));
    }
    memset(plan->memory, 0, sizeof plan->memory);
    yk_plan_memory(plan, s->shape, s->limits, plan->memory);
    yk_plan_set_id(plan);
    return YK_OK;
}

/* ---- prediction ---- */

static void predict(yk_plan *plan, const yk_cost *cost, const yk_plan_limits *limits)
{
    yk_plan_speed *v = &plan->speed;
    const uint32_t depths[] = {0, limits->context / 2, limits->context};
    const uint32_t prompts[] = {limits->batch, limits->context};
    double bound[YK_BOUND_N];
    *v = (yk_plan_speed){0};
    for (uint32_t i = 0; i < sizeof depths / sizeof *depths; i++) {
        if (i && depths[i] == depths[i - 1])
            continue;
        const uint32_t at = v->n_depths++;
        for (int b = 0; b < YK_B_PREFILL; b++) {
            const yk_step_kind step = {
                .n = yk_bucket_tokens((yk_bucket)b), .depth = depths[i], .kv_elem_bytes = limits->kv_elem_bytes};
            const double t = yk_cost_plan(cost, plan, &step, bound);
            v->batch_tps[b][at] = (yk_figure){depths[i], step.n / t};
        }
        v->decode_tps[at] = v->batch_tps[0][at];
    }
    for (int phase = 0; phase < 2; phase++) {
        const yk_step_kind step = {.prefill = phase,
                                   .n = phase ? limits->batch : 1,
                                   .depth = phase ? 0 : limits->context / 2,
                                   .kv_elem_bytes = limits->kv_elem_bytes};
        const double t = yk_cost_plan(cost, plan, &step, bound);
        int most = 0;
        for (int k = 1; k < YK_BOUND_N; k++)
            most = bound[k] > bound[most] ? k : most;
        snprintf(v->bound[phase], sizeof v->bound[phase], "%s", yk_bound_name((yk_bound)most));
        v->bound_share[phase] = bound[most] / t;
        if (phase)
            v->prefill_tps[v->n_chunks++] = (yk_figure){step.n, step.n / t};
    }
    for (uint32_t i = 0; i < 2; i++) {
        if (prompts[i] > limits->context || (i && prompts[1] <= prompts[0]))
            continue;
        double t = 0;
        for (uint32_t at = 0; at < prompts[i]; at += limits->batch) {
            const uint32_t n = prompts[i] - at < limits->batch ? prompts[i] - at : limits->batch;
            const yk_step_kind step = {.prefill = true, .n = n, .depth = at, .kv_elem_bytes = limits->kv_elem_bytes};
            t += yk_cost_plan(cost, plan, &step, NULL);
            if (prompts[i] / limits->batch > 64) { /* long prompts: a middle chunk stands for all */
                const yk_step_kind middle = {
                    .prefill = true, .n = limits->batch, .depth = prompts[i] / 2, .kv_elem_bytes = limits->kv_elem_bytes};
                t = yk_cost_plan(cost, plan, &middle, NULL) * prompts[i] / limits->batch;
                break;
            }
        }
        v->ttft_ms[v->n_prompts++] = (yk_figure){prompts[i], 1e3 * t};
    }
    plan->predicted = true;
}

static int machine_device(const yk_plan *plan, const yk_machine *machine)
{
    return plan->n_devices ? yk_machine_find(machine, plan->devices[0]) : -1;
}

void yk_plan_predict(yk_plan *plan, const yk_machine *machine, const yk_shape *shape, const yk_plan_limits *limits)
{
    yk_cost cost;
    yk_cost_init(&cost, machine, machine_device(plan, machine), shape);
    predict(plan, &cost, limits);
}

static double request_seconds(const yk_plan *plan, const yk_cost *cost, const yk_plan_limits *limits)
{
    const uint32_t prompt = limits->prompt_tokens ? limits->prompt_tokens : 512,
                   gen = limits->gen_tokens ? limits->gen_tokens : 128;
    const uint32_t seqs = limits->max_seqs < yk_bucket_tokens(YK_B_32) ? limits->max_seqs : yk_bucket_tokens(YK_B_32);
    const uint32_t chunk = limits->batch < prompt ? limits->batch : prompt;
    const yk_step_kind dec = {.n = seqs, .depth = limits->context / 2, .kv_elem_bytes = limits->kv_elem_bytes};
    const yk_step_kind pre = {.prefill = true, .n = chunk, .kv_elem_bytes = limits->kv_elem_bytes};
    return (double)gen * limits->max_seqs / seqs * yk_cost_plan(cost, plan, &dec, NULL) +
           (double)prompt * limits->max_seqs / chunk * yk_cost_plan(cost, plan, &pre, NULL);
}

double yk_plan_request_s(const yk_plan *plan, const yk_machine *machine, const yk_shape *shape, const yk_plan_limits *limits)
{
    yk_cost cost;
    yk_cost_init(&cost, machine, machine_device(plan, machine), shape);
    return request_seconds(plan, &cost, limits);
}

/* ---- alternatives ---- */

static yk_status add_alternative(const solver *s, yk_plan *plan, const char *name, const char *device, const option *choice,
                                 bool head, yk_error *err)
{
    yk_plan other;
    yk_alternative *a = &plan->alternatives[plan->n_alternatives++];
    snprintf(a->name, sizeof a->name, "%s", name);
    if (!choice)
        return YK_OK; /* does not fit */
    const yk_status st = emit(s, &other, device, choice, head, err);
    if (st == YK_OK) {
        predict(&other, &s->cost, s->limits);
        a->decode_tps = other.speed.decode_tps[0].value;
        a->prefill_tps = other.speed.prefill_tps[0].value;
    }
    yk_plan_clear(&other);
    return st;
}

/* What people use today, under the same cost model, in the same budget. The solver prices CG never here: slot_bytes is 0. */
static yk_status add_alternatives(solver *s, yk_plan *plan, const char *device, uint64_t room, yk_error *err)
{
    const uint32_t n = s->shape->n_layers;
    char name[40];
    set_slot(s, 0);
    whole_layers(s, s->choice, 0);
    YK_TRY(add_alternative(s, plan, "CPU only", NULL, s->choice, false, err));
    if (!device)
        return YK_OK;
    bool all = whole_layers(s, s->choice, n) + s->shape->head.bytes <= room && !s->shape->head_host_only;
    for (uint32_t i = 0; i < s->n_classes; i++) {
        const class *k = &s->classes[i];
        const yk_shape_layer *y = &s->shape->layers[k->layer];
        all = all && !y->host_only && !y->part[k->main].host_only && !y->part[YK_PART_SHEXP].host_only;
    }
    YK_TRY(add_alternative(s, plan, "all on the device", device, all ? s->choice : NULL, true, err));
    if (!all) {
        uint32_t k = n;
        while (k > 0 && whole_layers(s, s->choice, k) > room)
            k--;
        snprintf(name, sizeof name, "whole layers (-ngl %u)", k);
        YK_TRY(add_alternative(s, plan, name, device, k ? s->choice : NULL, false, err));
    }
    if (!s->shape->n_experts)
        return YK_OK;
    const bool head = !s->shape->head_host_only;
    uint64_t bytes = head ? s->shape->head.bytes : 0;
    for (uint32_t l = 0; l < n; l++) {
        const class *k = &s->classes[s->class_of[l]];
        s->choice[l] = everything(s, k);
        if (k->main == YK_PART_EXP)
            s->choice[l].resident = 0;
        price(s, k, &s->choice[l]);
        bytes += s->choice[l].bytes;
    }
    return add_alternative(s, plan, "all experts on the CPU", device, bytes <= room ? s->choice : NULL, head, err);
}

/* ---- one device, all devices ---- */

/* A card that a device of the same silicon stands for: all rates are the CPU's times five, a link of half the CPU's rate,
 * nothing disturbs anything, no latency. */
static void rehearse(yk_cost *c)
{
    c->gpu = c->cpu;
    for (int t = 0; t < YK_TYPE_LIMIT; t++)
        for (int b = 0; b < YK_N_BUCKETS; b++)
            c->gpu.s_per_byte[t][b] /= REHEARSAL_SPEED;
    c->gpu.read_s_per_byte /= REHEARSAL_SPEED;
    c->gpu.attention_s_per_flop /= REHEARSAL_SPEED;
    c->gpu.fixed_s = c->launch_s = c->hand_s = c->link_s = 0;
    c->link_s_per_byte = c->back_s_per_byte = c->cpu.read_s_per_byte / REHEARSAL_LINK;
    c->overlap_cpu_rate = 1e300;
    c->overlap_link_slow = 1;
}

static uint64_t fixed_bytes(const yk_shape *shape, const yk_plan_limits *limits, const yk_plan_device_limit *d)
{
    return d->runtime_bytes + (d->activation_bytes ? d->activation_bytes : yk_plan_activation_bytes(shape, limits));
}

/* The best plan with device `index` of the limits (NULL: none). forced: use it when anything fits. *used: the plan does. */
static yk_status solve_with(yk_plan *out, const yk_machine *m, const yk_shape *shape, const yk_plan_limits *limits,
                            const yk_plan_device_limit *d, bool forced, yk_error *err)
{
    solver s;
    uint64_t sizes[N_SLOTS];
    const int index = d ? yk_machine_find(m, d->name) : -1;
    const uint64_t fixed = d ? fixed_bytes(shape, limits, d) : 0;
    yk_cost real;
    bool device = false;
    *out = (yk_plan){0};
    yk_status st = open_solver(&s, shape, limits, err);
    if (st != YK_OK) {
        close_solver(&s);
        return st;
    }
    yk_cost_init(&real, m, index, shape);
    s.cost = real;
    if (d && m->devices[index].same_silicon)
        rehearse(&s.cost);
    const uint32_t n_sizes = d && d->budget_bytes > fixed ? slot_sizes(&s, sizes) : 0;
    for (uint32_t i = 0; i < n_sizes; i++) {
        if (2 * sizes[i] > d->budget_bytes - fixed)
            break;
        set_slot(&s, sizes[i]);
        for (uint32_t k = 0; k < s.n_classes; k++)
            make_options(&s, &s.classes[k]);
        try_budget(&s, d->budget_bytes - fixed - 2 * s.slot_bytes);
    }
    const double with_device = s.best_s;
    set_slot(&s, 0);
    whole_layers(&s, s.choice, 0);
    const double cpu_only = total_seconds(&s, s.choice, false);
    device = with_device < INFINITY && (forced || with_device < WORTH * cpu_only);
    if (device)
        s.slot_bytes = s.best_slot;
    st = emit(&s, out, device ? d->name : NULL, device ? s.best : s.choice, device && s.best_head, err);
    s.cost = real;
    if (st == YK_OK) {
        predict(out, &s.cost, limits);
        st = add_alternatives(&s, out, d && d->budget_bytes > fixed ? d->name : NULL,
                              d && d->budget_bytes > fixed ? d->budget_bytes - fixed : 0, err);
    }
    if (st == YK_OK && d && !device && with_device == INFINITY)
        snprintf(out->note, sizeof out->note,
                 "CPU only: the budget of %s, %.1f MiB, holds nothing beside runtime and activations (%.1f MiB)", d->name,
                 (double)d->budget_bytes / 0x1p20, (double)fixed / 0x1p20);
    else if (st == YK_OK && d && !device)
        snprintf(out->note, sizeof out->note, "CPU only: %s would not be faster (a request of %.3g s instead of %.3g s)",
                 d->name, with_device, cpu_only);
    else if (st == YK_OK && device && m->devices[index].same_silicon)
        snprintf(out->note, sizeof out->note,
                 "%s is the CPU itself: used because it was asked for, planned as if it were a card %g times as fast", d->name,
                 REHEARSAL_SPEED);
    else if (st == YK_OK && device)
        snprintf(out->note, sizeof out->note, "%s makes a request %.2f times as fast as the CPU alone", d->name,
                 cpu_only / with_device);
    close_solver(&s);
    if (st != YK_OK)
        yk_plan_clear(out);
    return st;
}

static const yk_plan_device_limit *limit_of(const yk_plan_limits *limits, const char *name)
{
    for (uint32_t i = 0; i < limits->n_devices; i++)
        if (strcmp(limits->devices[i].name, name) == 0)
            return &limits->devices[i];
    return NULL;
}

yk_status yk_plan_solve(yk_plan *out, const yk_machine *machine, const yk_shape *shape, const yk_plan_limits *limits,
                        yk_error *err)
{
    const char *want = *limits->device ? limits->device : "auto";
    *out = (yk_plan){0};
    if (strcmp(want, "auto") != 0 && strcmp(want, "cpu") != 0) {
        const int i = yk_machine_find(machine, want);
        const yk_plan_device_limit *d = i < 0 ? NULL : limit_of(limits, machine->devices[i].name);
        YK_FAIL_IF(!d, err, YK_ERR_USAGE, "device %s: %s", want,
                   i < 0 ? "this machine has none of that name" : "no budget is given for it");
        return solve_with(out, machine, shape, limits, d, true, err);
    }
    YK_TRY(solve_with(out, machine, shape, limits, NULL, false, err));
    double best_s = yk_plan_request_s(out, machine, shape, limits);
    char why[sizeof out->note] = "CPU only: this machine has no other device";
    if (strcmp(want, "cpu") == 0)
        snprintf(why, sizeof why, "CPU only: asked for");
    snprintf(out->note, sizeof out->note, "%s", why);
    bool any = false;
    for (uint32_t i = 0; i < machine->n_devices && strcmp(want, "auto") == 0; i++) {
        const yk_machine_device *md = &machine->devices[i];
        const yk_plan_device_limit *d = limit_of(limits, md->name);
        if (md->same_silicon && !out->n_devices && !any)
            snprintf(out->note, sizeof out->note, "CPU only: %s is the CPU itself; --device %s uses it all the same", md->name,
                     md->backend);
        if (md->same_silicon || !d)
            continue;
        yk_plan other;
        yk_status st = solve_with(&other, machine, shape, limits, d, false, err);
        if (st != YK_OK) {
            yk_plan_clear(out);
            return st;
        }
        const double t = yk_plan_request_s(&other, machine, shape, limits);
        if (t < best_s || !any) { /* the first device's plan explains best why not, too */
            best_s = t;
            yk_plan_clear(out);
            *out = other;
        } else
            yk_plan_clear(&other);
        any = true;
    }
    return YK_OK;
}
