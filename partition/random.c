/* Random valid plans, for tests of the executor: every combination of homes, cuts and kinds should come up. */
#include <string.h>

#include "partition/plan.h"

typedef struct rng {
    uint64_t s;
} rng;

/* splitmix64 */
static uint64_t next(rng *r)
{
    uint64_t z = r->s += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint32_t below(rng *r, uint32_t n)
{
    return (uint32_t)((next(r) >> 32) * n >> 32);
}

/* What most slices are: 0 to 3 percent figures of GG, CC and CG. */
static const uint32_t biases[][2] = {{34, 67}, {34, 67}, {34, 67}, {34, 67}, {90, 95}, {5, 95}, {5, 10}, {0, 50}};

static yk_status random_part(yk_plan *plan, rng *r, const uint32_t *bias, uint32_t layer, yk_part_group g,
                             const yk_shape_part *p, yk_error *err)
{
    for (uint32_t e = 0; e < p->n; e++)
        for (uint32_t u = 0; u < p->cut.n;) {
            yk_slice s = {.group = (uint8_t)g, .expert = e, .unit0 = u};
            s.units = below(r, 3) ? 1 + below(r, p->cut.n - u) : p->cut.n - u;
            const uint32_t x = below(r, 100);
            const bool one_kind = below(r, 3) == 0;
            s.home = plan->n_devices && x < bias[0] ? (int8_t)below(r, plan->n_devices) : YK_HOST;
            s.home = p->host_only ? YK_HOST : s.home;
            uint8_t kind = YK_KIND_CC;
            for (int b = 0; b < YK_N_BUCKETS; b++) {
                if (b == 0 || !one_kind)
                    kind = bias[0] + below(r, 100 - bias[0]) < bias[1] || !plan->n_devices ? YK_KIND_CC : YK_KIND_CG;
                s.kind[b] = s.home != YK_HOST ? YK_KIND_GG : p->host_only ? YK_KIND_CC : kind;
            }
            u += s.units;
            YK_TRY(yk_plan_add(plan, layer, &s, err));
        }
    return YK_OK;
}

/* Attention of some layers of the host is copied in prefill, in about half of the plans. Numbers of their own: what a seed gave
 * before there was this stays. */
static void random_attn_chunks(yk_plan *plan, uint64_t seed, const yk_shape *shape)
{
    rng r = {seed ^ 0x61747463686e6b73u};
    const bool all = below(&r, 3) == 0;
    if (!plan->n_devices || below(&r, 2))
        return;
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        const bool copied = below(&r, 4) || all;
        for (int c = 0; c < YK_N_CHUNKS; c++) {
            const bool here = below(&r, 5) > 0;
            if (copied && here && plan->layers[l].attn_home == YK_HOST && !shape->layers[l].host_only)
                plan->layers[l].attn_chunk[c] = 1 + YK_KIND_CG;
        }
    }
}

/* Copies of experts ahead of the router, in about half of the plans; numbers of their own, too. */
static void random_ahead(yk_plan *plan, uint64_t seed, const yk_shape *shape)
{
    rng r = {seed ^ 0x6168656164u};
    const bool all = below(&r, 3) == 0;
    if (!plan->n_devices || below(&r, 2))
        return;
    for (uint32_t l = 0; l < plan->n_layers; l++)
        for (int b = 0; b < YK_B_PREFILL; b++)
            plan->layers[l].ahead[b] = (below(&r, 2) || all) && shape->layers[l].part[YK_PART_EXP].n;
}

static bool over(const yk_plan *plan, const yk_shape *shape, const yk_plan_limits *limits)
{
    uint64_t m[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES];
    yk_plan_memory(plan, shape, limits, m);
    for (uint32_t i = 0; i < plan->n_devices; i++) {
        uint64_t sum = 0;
        for (int c = 0; c < YK_MEM_N_CLASSES; c++)
            sum += m[1 + i][c];
        if (sum > limits->devices[i].budget_bytes)
            return true;
    }
    return false;
}

/* Take something off the devices: kinds is which slices become CC of the host. */
static void demote(yk_plan_layer *y, uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++) {
        y->slices[i].home = YK_HOST;
        memset(y->slices[i].kind, YK_KIND_CC, sizeof y->slices[i].kind);
    }
}

static void fit(yk_plan *plan, rng *r, const yk_shape *shape, const yk_plan_limits *limits)
{
    for (uint32_t step = 0; step < 16 * plan->n_layers && over(plan, shape, limits); step++) {
        yk_plan_layer *y = &plan->layers[below(r, plan->n_layers)];
        const uint32_t at = y->n_slices ? below(r, y->n_slices) : 0;
        switch (below(r, 4)) {
        case 0:
            y->attn_home = YK_HOST;
            memset(y->attn_chunk, 0, sizeof y->attn_chunk);
            break;
        case 1:
            *(below(r, 2) ? &plan->head_home : &plan->embd_home) = YK_HOST;
            break;
        default:
            demote(y, at, at + (y->n_slices > 0) + below(r, y->n_slices - at));
        }
    }
    for (uint32_t l = 0; l < plan->n_layers && over(plan, shape, limits); l++) {
        plan->head_home = plan->embd_home = plan->layers[l].attn_home = YK_HOST;
        memset(plan->layers[l].attn_chunk, 0, sizeof plan->layers[l].attn_chunk);
        demote(&plan->layers[l], 0, plan->layers[l].n_slices);
    }
}

yk_status yk_plan_random(yk_plan *out, uint64_t seed, const yk_shape *shape, const yk_plan_limits *limits, yk_error *err)
{
    rng r = {seed};
    YK_TRY(yk_plan_init(out, shape->n_layers, err));
    memcpy(out->shape_id, shape->id, sizeof out->shape_id);
    memcpy(out->model_name, shape->name, sizeof out->model_name);
    for (uint32_t i = 0; i < limits->n_devices; i++)
        yk_plan_device(out, limits->devices[i].name);
    const uint32_t *bias = biases[below(&r, sizeof biases / sizeof *biases)];
    const uint32_t attn = 100 * below(&r, 5) / 4; /* per cent of layers with attention on a device */
    const uint32_t n = out->n_devices;
    if (n) {
        out->head_home = below(&r, 2) ? (int8_t)below(&r, n) : YK_HOST;
        out->embd_home = below(&r, 4) ? YK_HOST : (int8_t)below(&r, n);
        out->head_home = shape->head_host_only ? YK_HOST : out->head_home;
    }
    yk_status st = YK_OK;
    for (uint32_t l = 0; l < shape->n_layers && st == YK_OK; l++) {
        out->layers[l].attn_home = n && below(&r, 100) < attn ? (int8_t)below(&r, n) : YK_HOST;
        if (shape->layers[l].host_only)
            out->layers[l].attn_home = YK_HOST;
        for (int g = 0; g < YK_PART_N && st == YK_OK; g++)
            st = random_part(out, &r, bias, l, (yk_part_group)g, &shape->layers[l].part[g], err);
    }
    if (st != YK_OK) {
        yk_plan_clear(out);
        return st;
    }
    random_attn_chunks(out, seed, shape);
    random_ahead(out, seed, shape);
    fit(out, &r, shape, limits);
    out->context = limits->context;
    out->max_seqs = limits->max_seqs;
    out->batch = limits->batch;
    out->kv_elem_bytes = limits->kv_elem_bytes;
    memset(out->memory, 0, sizeof out->memory);
    yk_plan_memory(out, shape, limits, out->memory);
    yk_plan_set_id(out);
    return YK_OK;
}
