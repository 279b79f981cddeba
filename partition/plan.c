#include "partition/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *const kind_names[] = {"GG", "CC", "CG"};

const char *yk_kind_name(yk_kind kind)
{
    return kind_names[kind];
}

static const char *const chunk_names[YK_N_CHUNKS] = {"33-128", "129-512", "513-2048", "2049-"};
static const uint32_t chunk_tokens[YK_N_CHUNKS] = {128, 512, 2048, 8192};

const char *yk_chunk_name(yk_chunk c)
{
    return chunk_names[c];
}

yk_chunk yk_chunk_of(uint32_t n_tokens)
{
    int c = 0;
    while (c < YK_C_MORE && n_tokens > chunk_tokens[c])
        c++;
    return (yk_chunk)c;
}

uint32_t yk_chunk_tokens(yk_chunk c)
{
    return chunk_tokens[c];
}

bool yk_plan_attn_on_device(const yk_plan_layer *layer, bool prefill, uint32_t n)
{
    return layer->attn_home != YK_HOST || (prefill && layer->attn_chunk[yk_chunk_of(n)] == 1 + YK_KIND_CG);
}

bool yk_plan_ahead(const yk_plan_layer *layer, bool prefill, uint32_t n)
{
    const yk_bucket b = yk_bucket_of(n);
    return !prefill && b < YK_B_PREFILL && layer->ahead[b];
}

yk_kind yk_slice_kind(const yk_slice *s, bool prefill, uint32_t n)
{
    if (!prefill)
        return (yk_kind)s->kind[yk_bucket_of(n)];
    const uint8_t k = s->chunk[yk_chunk_of(n)];
    return (yk_kind)(k ? k - 1 : s->kind[YK_B_PREFILL]);
}

yk_status yk_plan_init(yk_plan *plan, uint32_t n_layers, yk_error *err)
{
    *plan = (yk_plan){.n_layers = n_layers, .head_home = YK_HOST, .embd_home = YK_HOST};
    for (int p = 0; p <= YK_MAX_DEVICES; p++)
        for (int c = 0; c < YK_MEM_N_CLASSES; c++)
            plan->memory[p][c] = YK_PLAN_NO_CEILING;
    plan->layers = yk_alloc(YK_MEM_PLAN, n_layers, sizeof *plan->layers);
    if (!plan->layers) {
        plan->n_layers = 0;
        return yk_fail_memory(err, (uint64_t)n_layers * sizeof *plan->layers, "a plan");
    }
    for (uint32_t l = 0; l < n_layers; l++)
        plan->layers[l].attn_home = YK_HOST;
    return YK_OK;
}

void yk_plan_clear(yk_plan *plan)
{
    for (uint32_t l = 0; plan->layers && l < plan->n_layers; l++)
        yk_free(plan->layers[l].slices);
    yk_free(plan->layers);
    *plan = (yk_plan){0};
}

yk_status yk_plan_copy(yk_plan *out, const yk_plan *from, yk_error *err)
{
    yk_plan_layer *layers = yk_alloc(YK_MEM_PLAN, from->n_layers, sizeof *layers);
    *out = (yk_plan){0};
    if (!layers)
        return yk_fail_memory(err, (uint64_t)from->n_layers * sizeof *layers, "a plan");
    *out = *from;
    out->layers = layers;
    for (uint32_t l = 0; l < from->n_layers; l++) {
        const yk_plan_layer *y = &from->layers[l];
        layers[l] = *y;
        layers[l].slices = NULL;
        layers[l].n_slices = 0;
        for (uint32_t i = 0; i < y->n_slices; i++) {
            const yk_status st = yk_plan_add(out, l, &y->slices[i], err);
            if (st != YK_OK) {
                yk_plan_clear(out);
                return st;
            }
        }
    }
    return YK_OK;
}

/* Capacity is the next power of two: slices are added one by one. */
yk_status yk_plan_add(yk_plan *plan, uint32_t layer, const yk_slice *slice, yk_error *err)
{
    yk_plan_layer *y = &plan->layers[layer];
    if ((y->n_slices & (y->n_slices - 1)) == 0) {
        const uint32_t cap = y->n_slices ? 2 * y->n_slices : 1;
        yk_slice *s = cap > y->n_slices ? yk_realloc(YK_MEM_PLAN, y->slices, cap, sizeof *s) : NULL;
        if (!s)
            return yk_fail_memory(err, (uint64_t)cap * sizeof *s, "slices of a plan");
        y->slices = s;
    }
    y->slices[y->n_slices++] = *slice;
    return YK_OK;
}

int yk_plan_device(yk_plan *plan, const char *name)
{
    for (uint32_t i = 0; i < plan->n_devices; i++)
        if (strcmp(plan->devices[i], name) == 0)
            return (int)i;
    if (plan->n_devices == YK_MAX_DEVICES)
        return -2;
    snprintf(plan->devices[plan->n_devices], YK_DEVICE_NAME, "%s", name);
    return (int)plan->n_devices++;
}

const char *yk_plan_home_name(const yk_plan *plan, int home)
{
    return home == YK_HOST ? "host" : plan->devices[home];
}

static uint64_t hash_bytes(uint64_t h, const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)p)[i]) * 0x100000001b3u;
    return h;
}

static uint64_t hash_home(uint64_t h, const yk_plan *plan, int home)
{
    const char *name = yk_plan_home_name(plan, home);
    return hash_bytes(h, name, strlen(name) + 1);
}

static bool any_ahead(const yk_plan_layer *y)
{
    bool any = false;
    for (int b = 0; b < YK_B_PREFILL; b++)
        any = any || y->ahead[b];
    return any;
}

static bool chunks_given(const uint8_t chunk[YK_N_CHUNKS])
{
    bool any = false;
    for (int c = 0; c < YK_N_CHUNKS; c++)
        any = any || chunk[c];
    return any;
}

void yk_plan_set_id(yk_plan *plan)
{
    uint64_t h = hash_bytes(0xcbf29ce484222325u, plan->shape_id, strlen(plan->shape_id) + 1);
    h = hash_home(hash_home(h, plan, plan->head_home), plan, plan->embd_home);
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        const yk_plan_layer *y = &plan->layers[l];
        h = hash_home(h, plan, y->attn_home);
        if (chunks_given(y->attn_chunk))
            h = hash_bytes(hash_bytes(h, "attn_chunks", 11), y->attn_chunk, sizeof y->attn_chunk);
        if (any_ahead(y))
            h = hash_bytes(hash_bytes(h, "ahead", 5), y->ahead, sizeof y->ahead);
        for (uint32_t i = 0; i < y->n_slices; i++) {
            const yk_slice *s = &y->slices[i];
            const uint32_t place[] = {s->group, s->expert, s->unit0, s->units};
            h = hash_bytes(h, place, sizeof place);
            h = hash_home(h, plan, s->home);
            h = hash_bytes(h, s->kind, sizeof s->kind);
            if (chunks_given(s->chunk)) /* plans without them keep the id they had before there were any */
                h = hash_bytes(h, s->chunk, sizeof s->chunk);
        }
        h = hash_bytes(h, "|", 1);
    }
    snprintf(plan->plan_id, sizeof plan->plan_id, "%016" PRIx64, h);
}

/* ---- memory ---- */

uint64_t yk_plan_activation_bytes(const yk_shape *s, const yk_plan_limits *limits)
{
    const uint64_t q = (uint64_t)s->n_heads * s->head_dim, kv = (uint64_t)s->n_kv_heads * s->head_dim;
    uint64_t units = 0;
    for (uint32_t l = 0; l < s->n_layers; l++) {
        const yk_shape_part *p = s->layers[l].part;
        const uint64_t u = (p[YK_PART_FFN].n ? p[YK_PART_FFN].cut.width : 0) + (uint64_t)s->n_used * p[YK_PART_EXP].cut.width +
                           p[YK_PART_SHEXP].cut.width;
        units = u > units ? u : units;
    }
    const uint64_t row = 4 * (4ull * s->n_embd + 2 * q + 2 * kv + 2 * units);
    return (row + row / 4) * limits->batch + 4ull * s->n_vocab * limits->max_seqs;
}

int yk_plan_cg_device(const yk_plan *plan, uint32_t layer)
{
    const int home = plan->layers[layer].attn_home;
    return home != YK_HOST ? home : plan->n_devices ? 0 : YK_HOST;
}

/* Of one layer. */
static uint64_t kv_bytes(const yk_shape *shape, const yk_plan_limits *limits)
{
    const uint64_t tokens = limits->kv_tokens ? limits->kv_tokens : (uint64_t)limits->context * limits->max_seqs;
    return (tokens + 15) / 16 * 16 * yk_shape_kv_bytes(shape, limits->kv_elem_bytes);
}

static bool same_instance(const yk_slice *a, const yk_slice *b)
{
    return a->group == b->group && a->expert == b->expert;
}

enum { N_KINDS = YK_N_BUCKETS + YK_N_CHUNKS };

/* Add what is CG of slices [from, to) that belong to the instance of slice `from`, by bucket and chunk. */
static void add_copies(const yk_plan_layer *y, const yk_shape_layer *sl, uint32_t from, uint32_t to, uint64_t sum[N_KINDS])
{
    for (uint32_t i = from; i < to; i++) {
        const yk_slice *s = &y->slices[i];
        if (!same_instance(s, &y->slices[from]))
            continue;
        if (s->home != YK_HOST) /* GG */
            continue;
        const uint64_t bytes = yk_shape_units_bytes(&sl->part[s->group], s->unit0, s->units);
        for (int b = 0; b < N_KINDS; b++) {
            const uint8_t chunk = b < YK_N_BUCKETS ? 0 : s->chunk[b - YK_N_BUCKETS];
            const int kind = b < YK_N_BUCKETS ? s->kind[b] : chunk ? chunk - 1 : s->kind[YK_B_PREFILL];
            sum[b] += kind == YK_KIND_CG ? bytes : 0;
        }
    }
}

/* Largest copy of a layer: bytes that are CG in one bucket, of one instance of one part. Plans list the instances in order;
 * in one written by hand an instance may come back later, then all slices are looked through for each. */
static uint64_t largest_copy(const yk_plan_layer *y, const yk_shape_layer *sl)
{
    uint64_t largest = 0;
    bool in_order = true;
    for (uint32_t i = 1; i < y->n_slices; i++) {
        const yk_slice *a = &y->slices[i - 1], *b = a + 1;
        in_order = in_order && (a->group < b->group || (a->group == b->group && a->expert <= b->expert));
    }
    for (uint32_t i = 0, end; i < y->n_slices; i = end) {
        uint64_t sum[N_KINDS] = {0};
        for (end = i + 1; end < y->n_slices && same_instance(&y->slices[end], &y->slices[i]);)
            end++;
        add_copies(y, sl, i, in_order ? end : y->n_slices, sum);
        for (int b = 0; b < N_KINDS; b++)
            largest = sum[b] > largest ? sum[b] : largest;
    }
    return largest;
}

static void add_devices(const yk_plan *plan, const yk_shape *shape, const yk_plan_limits *limits, const bool *used,
                        uint64_t memory[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES])
{
    for (uint32_t i = 0; i < plan->n_devices; i++) {
        uint64_t *m = memory[1 + i];
        if (!used[i])
            continue;
        m[YK_MEM_ACTIVATION] = yk_plan_activation_bytes(shape, limits);
        for (uint32_t d = 0; d < limits->n_devices; d++) {
            if (strcmp(limits->devices[d].name, plan->devices[i]) != 0)
                continue;
            m[YK_MEM_RUNTIME] = limits->devices[d].runtime_bytes;
            if (limits->devices[d].activation_bytes)
                m[YK_MEM_ACTIVATION] = limits->devices[d].activation_bytes;
        }
    }
}

void yk_plan_memory(const yk_plan *plan, const yk_shape *shape, const yk_plan_limits *limits,
                    uint64_t memory[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES])
{
    uint64_t copy[YK_MAX_DEVICES] = {0}, kv_scratch[YK_MAX_DEVICES] = {0};
    bool used[1 + YK_MAX_DEVICES] = {false};
    memset(memory, 0, sizeof(uint64_t[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES]));
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        const yk_plan_layer *y = &plan->layers[l];
        const yk_shape_layer *sl = &shape->layers[l];
        used[1 + y->attn_home] = true;
        memory[1 + y->attn_home][YK_MEM_WEIGHTS] += yk_shape_attn_bytes(sl);
        memory[1 + y->attn_home][YK_MEM_KV] += kv_bytes(shape, limits);
        for (uint32_t i = 0; i < y->n_slices; i++) {
            const yk_slice *s = &y->slices[i];
            used[1 + s->home] = true;
            memory[1 + s->home][YK_MEM_WEIGHTS] += yk_shape_units_bytes(&sl->part[s->group], s->unit0, s->units);
        }
        const int device = yk_plan_cg_device(plan, l);
        uint64_t c = device == YK_HOST ? 0 : largest_copy(y, sl);
        if (device != YK_HOST && chunks_given(y->attn_chunk)) {
            c = yk_shape_attn_bytes(sl) > c ? yk_shape_attn_bytes(sl) : c;
            kv_scratch[device] = kv_bytes(shape, limits);
        }
        if (c) {
            used[1 + device] = true;
            copy[device] = c > copy[device] ? c : copy[device];
        }
    }
    used[1 + plan->head_home] = used[1 + plan->embd_home] = true;
    memory[1 + plan->embd_home][YK_MEM_WEIGHTS] += shape->embd.bytes;
    if (!shape->tied || plan->head_home != plan->embd_home)
        memory[1 + plan->head_home][YK_MEM_WEIGHTS] += shape->head.bytes;
    for (uint32_t i = 0; i < plan->n_devices; i++)
        memory[1 + i][YK_MEM_STAGING] = 2 * copy[i] + kv_scratch[i];
    add_devices(plan, shape, limits, used + 1, memory);
}
