/* cpu.c - the CPU lane of this machine for the profiler: products, attention and reading, over memory larger than the caches where there is as much.
 *
 * Products are those of the engine: on packed weights where the type has a packed form, in slices of the engine's size, by its pool. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/pack.h"
#include "profiler/membw.h"
#include "profiler/profile.h"
#include "src/base/clock.h"

enum {
    MAX_SLICES = 16384,
    MAX_BENCHES = 2 + 16, /* huge pages, small pages, nodes */
    ROWS_MULTIPLE = 16,
    ROWS_MAX = 256,
    RESULTS = 64 << 10, /* floats of a slice's results */
    KV_BLOCK = 16,
    MAX_DEPTH = 16384,
    GROUP = YK_PROFILE_HEADS / YK_PROFILE_KV_HEADS,
    HEAD_BYTES = KV_BLOCK * YK_PROFILE_HEAD_DIM * 2,
    BLOCK_BYTES = 2 * YK_PROFILE_KV_HEADS * HEAD_BYTES, /* K of all heads, then V */
    SCORES = GROUP * MAX_DEPTH,
    TABLES = MAX_DEPTH / KV_BLOCK,
    FILL_BYTES = 1 << 20,
    SMALL_PAGE = 4096,
    HUGE_PAGE = 2 << 20
};

typedef struct scratch {
    float y[RESULTS], scores[SCORES];
    const void *k[TABLES], *v[TABLES];
} scratch;

struct yk_cpu_bench {
    const yk_ops *ops;
    yk_pool *pool;
    yk_arena weights;
    float *x; /* [YK_PROFILE_TOKENS][YK_PROFILE_COLS] */
    yk_q8 q8;
    _Atomic(uint64_t) *owners, *claims;
    uint64_t at; /* where in the weights the next pass begins */
    yk_read_bench *benches[MAX_BENCHES];
    uint8_t bench_of[YK_MAX_READS]; /* of a way to read */
    uint32_t threads_of[YK_MAX_READS];
    uint32_t n_benches;
};

static yk_status run_stage(yk_cpu_bench *b, yk_stage *stage, yk_pass *out, yk_error *err)
{
    yk_job job = {.stages = stage, .n_stages = 1, .owners = b->owners, .claims = b->claims};
    out->begin_ns = yk_now_ns();
    const yk_status st = yk_pool_run(b->pool, &job, err);
    out->end_ns = yk_now_ns();
    yk_pool_wait_job(b->pool, &job);
    return st;
}

/* ---- products -------------------------------------------------------------------------------------------------------------------------- */

typedef struct product {
    const yk_cpu_bench *b;
    yk_type type;
    bool packed;
    const uint8_t *w;
    uint64_t row_bytes; /* of a panel, when packed */
    uint32_t rows, slice_rows, n_tokens;
} product;

static void run_product(const yk_stage *stage, uint32_t slice, yk_worker *worker)
{
    const product *p = stage->arg;
    const uint32_t from = slice * p->slice_rows, left = p->rows - from, n_rows = left < p->slice_rows ? left : p->slice_rows;
    scratch *s = worker->scratch;
    if (p->packed)
        p->b->ops->matmul_packed[p->type](&(yk_matmul_packed){.w = p->w + from / YK_TILE_ROWS * p->row_bytes,
                                                              .panel_bytes = p->row_bytes,
                                                              .n_rows = n_rows,
                                                              .n_cols = YK_PROFILE_COLS,
                                                              .x = p->b->x,
                                                              .x_stride = YK_PROFILE_COLS,
                                                              .xq = &p->b->q8,
                                                              .n_tokens = p->n_tokens,
                                                              .y = s->y,
                                                              .y_stride = p->slice_rows});
    else
        p->b->ops->matmul[p->type](&(yk_matmul){.w = p->w + from * p->row_bytes,
                                                .row_bytes = p->row_bytes,
                                                .n_rows = n_rows,
                                                .n_cols = YK_PROFILE_COLS,
                                                .x = p->b->x,
                                                .x_stride = YK_PROFILE_COLS,
                                                .xq = &p->b->q8,
                                                .n_tokens = p->n_tokens,
                                                .y = s->y,
                                                .y_stride = p->slice_rows});
}

static bool is_packed(const yk_cpu_bench *b, yk_type type)
{
    return yk_pack_has(type) && b->ops->matmul_packed[type];
}

/* Bytes of 16 rows. */
static uint64_t panel_bytes(const yk_cpu_bench *b, yk_type type)
{
    uint64_t row = 0;
    if (is_packed(b, type))
        return yk_panel_bytes(type, YK_PROFILE_COLS);
    return yk_type_row_bytes(type, YK_PROFILE_COLS, &row) ? ROWS_MULTIPLE * row : 0;
}

static bool cpu_has(void *self, yk_type type)
{
    const yk_cpu_bench *b = self;
    return yk_type_get(type) && (b->ops->matmul[type] || is_packed(b, type)) && panel_bytes(b, type) > 0;
}

static uint64_t cpu_unit_bytes(void *self, yk_type type)
{
    return 3 * 256 / ROWS_MULTIPLE * panel_bytes(self, type);
}

static yk_status cpu_product(void *self, yk_type type, uint32_t n_tokens, uint64_t bytes, yk_pass *out, yk_error *err)
{
    yk_cpu_bench *b = self;
    const uint64_t panel = panel_bytes(b, type), fits = b->weights.size / panel;
    product p = {.b = b, .type = type, .packed = is_packed(b, type), .n_tokens = n_tokens};
    p.row_bytes = p.packed ? panel : panel / ROWS_MULTIPLE;
    /* As the engine cuts its products. */
    uint64_t rows = (128u << 10) / (1 + n_tokens / 4) / (panel / ROWS_MULTIPLE);
    rows = rows < ROWS_MULTIPLE ? ROWS_MULTIPLE : rows > ROWS_MAX ? ROWS_MAX : rows / ROWS_MULTIPLE * ROWS_MULTIPLE;
    while (rows > ROWS_MULTIPLE && rows * n_tokens > RESULTS)
        rows -= ROWS_MULTIPLE;
    p.slice_rows = (uint32_t)rows;
    uint64_t panels = (bytes + panel - 1) / panel;
    const uint64_t most = (uint64_t)MAX_SLICES * rows / ROWS_MULTIPLE;
    panels = panels < yk_pool_size(b->pool) ? yk_pool_size(b->pool) : panels;
    panels = panels > most ? most : panels;
    panels = panels > fits ? fits : panels;
    if (b->at + panels * panel > b->weights.size)
        b->at = 0;
    p.w = b->weights.base + b->at;
    p.rows = (uint32_t)(panels * ROWS_MULTIPLE);
    b->at += (panels * panel + 63) / 64 * 64;
    out->x = (double)(panels * panel);
    yk_stage stage = {
        .name = "product", .run = run_product, .arg = &p, .max_slices = (p.rows + p.slice_rows - 1) / p.slice_rows};
    return run_stage(b, &stage, out, err);
}

/* ---- attention ------------------------------------------------------------------------------------------------------------------------- */

typedef struct attention {
    const yk_cpu_bench *b;
    const uint8_t *kv;
    uint32_t n_tokens, depth;
} attention;

/* A slice: one head of K and V, at most 16 tokens. */
static void run_attention(const yk_stage *stage, uint32_t slice, yk_worker *worker)
{
    const attention *a = stage->arg;
    scratch *s = worker->scratch;
    const uint32_t head = slice % YK_PROFILE_KV_HEADS, first = slice / YK_PROFILE_KV_HEADS * KV_BLOCK;
    for (uint32_t i = 0; i < (a->depth + KV_BLOCK - 1) / KV_BLOCK; i++) {
        s->k[i] = a->kv + (uint64_t)i * BLOCK_BYTES + head * HEAD_BYTES;
        s->v[i] = (const uint8_t *)s->k[i] + YK_PROFILE_KV_HEADS * HEAD_BYTES;
    }
    a->b->ops->attention(&(yk_attention){.q = a->b->x + (size_t)first * YK_PROFILE_COLS + head * GROUP * YK_PROFILE_HEAD_DIM,
                                         .k_blocks = s->k,
                                         .v_blocks = s->v,
                                         .kv_stride = YK_PROFILE_HEAD_DIM,
                                         .n_heads = GROUP,
                                         .head_dim = YK_PROFILE_HEAD_DIM,
                                         .end = a->depth,
                                         .scale = 0.0884f,
                                         .kv_f16 = true,
                                         .scores = s->scores,
                                         .out = s->y,
                                         .n_tokens = a->n_tokens - first < KV_BLOCK ? a->n_tokens - first : KV_BLOCK,
                                         .q_stride = YK_PROFILE_COLS,
                                         .out_stride = GROUP * YK_PROFILE_HEAD_DIM});
}

static yk_status cpu_attention(void *self, uint32_t n_tokens, uint32_t depth, yk_pass *out, yk_error *err)
{
    yk_cpu_bench *b = self;
    const uint64_t most = b->weights.size / BLOCK_BYTES * KV_BLOCK;
    depth = depth > MAX_DEPTH ? MAX_DEPTH : depth;
    depth = depth > most ? (uint32_t)most : depth;
    attention a = {.b = b, .n_tokens = n_tokens, .depth = depth};
    const uint64_t bytes = (depth + KV_BLOCK - 1ull) / KV_BLOCK * BLOCK_BYTES;
    b->at = (b->at + 63) / 64 * 64;
    if (b->at + bytes > b->weights.size)
        b->at = 0;
    a.kv = b->weights.base + b->at;
    b->at += bytes;
    out->x = n_tokens == 1 ? (double)depth * BLOCK_BYTES / KV_BLOCK
                           : 4.0 * n_tokens * depth * YK_PROFILE_HEADS * YK_PROFILE_HEAD_DIM;
    yk_stage stage = {.name = "attention",
                      .run = run_attention,
                      .arg = &a,
                      .max_slices = (n_tokens + KV_BLOCK - 1) / KV_BLOCK * YK_PROFILE_KV_HEADS};
    return run_stage(b, &stage, out, err);
}

/* ---- reading --------------------------------------------------------------------------------------------------------------------------- */

uint32_t yk_cpu_list_parse(const char *text, uint32_t *cpus, uint32_t capacity)
{
    uint32_t n = 0;
    uint64_t next = 0;
    for (const char *p = text; *p && *p != '\n';) {
        char *end;
        if (*p < '0' || *p > '9')
            return UINT32_MAX;
        const uint64_t from = strtoul(p, &end, 10);
        uint64_t to = from;
        p = end;
        if (*p == '-') {
            if (p[1] < '0' || p[1] > '9')
                return UINT32_MAX;
            to = strtoul(p + 1, &end, 10);
            p = end;
        }
        if (from < next || to < from || to >= 1u << 20 || (*p && *p != ',' && *p != '\n') || (*p == ',' && !p[1]))
            return UINT32_MAX;
        for (uint64_t c = from; c <= to && n < capacity; c++)
            cpus[n++] = (uint32_t)c;
        next = to + 1;
        p += *p == ',';
    }
    return n;
}

static yk_status cpu_read(void *self, uint32_t which, yk_pass *out, yk_error *err)
{
    (void)err;
    yk_cpu_bench *b = self;
    uint64_t bytes;
    yk_read_bench_pass(b->benches[b->bench_of[which]], b->threads_of[which], &out->begin_ns, &out->end_ns, &bytes);
    out->x = (double)bytes;
    return YK_OK;
}

/* A way to read: the first `threads` of a bench. */
static void add_way(yk_cpu_bench *b, yk_profile_cpu *lane, uint32_t threads, uint32_t node, uint64_t page)
{
    if (lane->n_reads == YK_MAX_READS)
        return;
    b->bench_of[lane->n_reads] = (uint8_t)(b->n_benches - 1);
    b->threads_of[lane->n_reads] = threads;
    lane->reads[lane->n_reads++] = (yk_read_rate){.threads = threads, .node = node, .page_bytes = page};
}

static yk_status add_bench(yk_cpu_bench *b, const yk_read_bench_opts *o, yk_error *err)
{
    YK_TRY(yk_read_bench_open(&b->benches[b->n_benches], o, err));
    b->n_benches++;
    return YK_OK;
}

/* Those of cpus[0..n) that belong to a node. */
static uint32_t cpus_of_node(uint32_t node, const uint32_t *cpus, uint32_t n, uint32_t *out)
{
    char path[80], text[4096];
    uint32_t *list = yk_alloc(YK_MEM_RUNTIME, YK_MAX_CORES, sizeof *list), found = 0;
    snprintf(path, sizeof path, "/sys/devices/system/node/node%u/cpulist", node);
    FILE *f = list ? fopen(path, "r") : NULL;
    const uint32_t n_list = f && fgets(text, sizeof text, f) ? yk_cpu_list_parse(text, list, YK_MAX_CORES) : 0;
    for (uint32_t i = 0; i < n && n_list != UINT32_MAX; i++)
        for (uint32_t k = 0; k < n_list; k++)
            if (list[k] == cpus[i])
                out[found++] = cpus[i];
    if (f)
        fclose(f);
    yk_free(list);
    return found;
}

static yk_status open_nodes(yk_cpu_bench *b, yk_profile_cpu *lane, const yk_read_bench_opts *all, uint32_t n_numa,
                            yk_error *err)
{
    uint32_t *cpus = yk_alloc(YK_MEM_RUNTIME, all->n_cpus, sizeof *cpus);
    if (!cpus)
        return yk_fail_memory(err, all->n_cpus * sizeof *cpus, "the list of cores");
    yk_status st = YK_OK;
    for (uint32_t node = 0, seen = 0; st == YK_OK && seen < n_numa && node < 1024 && b->n_benches < MAX_BENCHES; node++) {
        const uint32_t n = cpus_of_node(node, all->cpus, all->n_cpus, cpus);
        if (!n)
            continue;
        seen++;
        const yk_read_bench_opts o = {.cpus = cpus, .n_cpus = n, .bytes = all->bytes / n_numa, .huge = true};
        if ((st = add_bench(b, &o, err)) == YK_OK)
            add_way(b, lane, n, node, HUGE_PAGE);
    }
    yk_free(cpus);
    return st;
}

static yk_status open_reads(yk_cpu_bench *b, yk_profile_cpu *lane, const yk_profile_opts *o, const yk_cpu_info *info,
                            yk_error *err)
{
    uint32_t n_cores = 0, *cpus = yk_alloc(YK_MEM_RUNTIME, YK_MAX_CORES, sizeof *cpus);
    if (!cpus)
        return yk_fail_memory(err, YK_MAX_CORES * sizeof *cpus, "the list of cores");
    yk_status st;
    YK_TRY_GOTO(yk_topology_cores(cpus, YK_MAX_CORES, &n_cores, err), out);
    n_cores = n_cores < YK_MAX_CORES ? n_cores : YK_MAX_CORES;
    const uint32_t n = o->threads < YK_MAX_CORES ? o->threads : YK_MAX_CORES;
    for (uint32_t i = n_cores; i < n; i++)
        cpus[i] = cpus[i % n_cores];
    yk_read_bench_opts all = {
        .cpus = cpus, .n_cpus = n, .bytes = b->weights.size, .base = info->n_numa > 1 ? NULL : b->weights.base, .huge = true};
    YK_TRY_GOTO(add_bench(b, &all, err), out);
    add_way(b, lane, n, YK_ALL_NODES, HUGE_PAGE);
    for (uint32_t t = 1; t < n; t *= o->quick ? n : 2)
        add_way(b, lane, t, YK_ALL_NODES, HUGE_PAGE);
    all.base = NULL;
    all.huge = false;
    all.bytes = o->quick ? all.bytes / 4 : all.bytes;
    YK_TRY_GOTO(add_bench(b, &all, err), out);
    add_way(b, lane, n, YK_ALL_NODES, SMALL_PAGE);
    for (uint32_t t = 1; t < n; t *= o->quick ? n : 2)
        add_way(b, lane, t, YK_ALL_NODES, SMALL_PAGE);
    all.bytes = b->weights.size;
    if (info->n_numa > 1)
        st = open_nodes(b, lane, &all, info->n_numa, err);
out:
    yk_free(cpus);
    return st;
}

/* ---- the lane -------------------------------------------------------------------------------------------------------------------------- */

/* Bytes whose bits are ordinary numbers in every weight format: scales of f16 are 0.06 to 0.24, floats small but not denormal. Filled by all workers,
 * so that each node holds some. */
static void run_fill(const yk_stage *stage, uint32_t slice, yk_worker *worker)
{
    (void)worker;
    const yk_cpu_bench *b = stage->arg;
    const uint64_t from = (uint64_t)slice * FILL_BYTES, left = b->weights.size - from;
    uint64_t z[8], bytes[8];
    for (int i = 0; i < 8; i++)
        z[i] = (slice * 8ull + (uint64_t)i) * 0x9e3779b97f4a7c15u + 1;
    for (uint64_t at = from; at + 64 <= from + (left < FILL_BYTES ? left : FILL_BYTES); at += 64) {
        for (int i = 0; i < 8; i++) {
            z[i] = z[i] * 6364136223846793005u + 1442695040888963407u;
            bytes[i] = 0x2c2c2c2c2c2c2c2cu + ((z[i] ^ z[i] >> 29) & 0x0707070707070707u);
        }
        memcpy(b->weights.base + at, bytes, 64);
    }
}

/* Twice the last cache, 64 to 512 MiB (quick: 256), at most an eighth of what is free. */
static uint64_t weights_bytes(const yk_cpu_info *cpu, bool quick)
{
    const uint64_t most = quick ? 256ull << 20 : 512ull << 20;
    uint64_t bytes = cpu->cache_bytes[2] < most ? 2 * cpu->cache_bytes[2] : most;
    bytes = bytes < 64ull << 20 ? 64ull << 20 : bytes > most ? most : bytes;
    if (cpu->memory_available_bytes && bytes > cpu->memory_available_bytes / 8)
        bytes = cpu->memory_available_bytes / 8;
    return (bytes > 8ull << 20 ? bytes : 8ull << 20) / 4096 * 4096;
}

void yk_cpu_bench_close(yk_cpu_bench **bench)
{
    yk_cpu_bench *b = *bench;
    *bench = NULL;
    if (!b)
        return;
    for (uint32_t i = 0; i < b->n_benches; i++)
        yk_read_bench_close(&b->benches[i]);
    yk_pool_close(&b->pool);
    yk_arena_close(&b->weights);
    yk_free(b->x);
    yk_free(b->q8.q);
    yk_free(b->q8.scale);
    yk_free(b->q8.sum);
    yk_free((void *)b->owners);
    yk_free((void *)b->claims);
    yk_free(b);
}

static yk_status open_activations(yk_cpu_bench *b, yk_error *err)
{
    const size_t n = (size_t)YK_PROFILE_TOKENS * YK_PROFILE_COLS;
    b->x = yk_alloc(YK_MEM_RUNTIME, n, sizeof *b->x);
    b->q8.n_blocks = YK_PROFILE_COLS / 32;
    b->q8.q = yk_alloc(YK_MEM_RUNTIME, n, 1);
    b->q8.scale = yk_alloc(YK_MEM_RUNTIME, n / 32, sizeof *b->q8.scale);
    b->q8.sum = yk_alloc(YK_MEM_RUNTIME, n / 16, sizeof *b->q8.sum);
    b->owners = yk_alloc(YK_MEM_RUNTIME, MAX_SLICES, sizeof *b->owners);
    b->claims = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *b->claims);
    if (!b->x || !b->q8.q || !b->q8.scale || !b->q8.sum || !b->owners || !b->claims)
        return yk_fail_memory(err, n * 6 + MAX_SLICES * sizeof *b->owners, "measuring the CPU");
    for (size_t i = 0; i < n; i++)
        b->x[i] = (float)((int)(i * 2654435761u >> 16 & 0xff) - 128) / 128;
    for (uint32_t t = 0; t < YK_PROFILE_TOKENS; t++)
        b->ops->quantise(b->x + (size_t)t * YK_PROFILE_COLS, YK_PROFILE_COLS, &b->q8, t);
    return YK_OK;
}

yk_status yk_cpu_bench_open(yk_cpu_bench **out, yk_profile_cpu *lane, const yk_profile_opts *o, uint64_t bytes, yk_error *err)
{
    yk_cpu_info info;
    yk_pass ignored;
    const bool small = bytes > 0;
    *out = NULL;
    YK_TRY(yk_get_cpu_info(&info, err));
    yk_cpu_bench *b = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *b);
    if (!b)
        return yk_fail_memory(err, sizeof *b, "measuring the CPU");
    b->ops = yk_ops_get(o->isa);
    *lane = (yk_profile_cpu){.self = b,
                             .read = cpu_read,
                             .has = cpu_has,
                             .unit_bytes = cpu_unit_bytes,
                             .product = cpu_product,
                             .attention = cpu_attention};
    const yk_pool_opts po = {.n_workers = o->threads, .scratch_bytes = sizeof(scratch), .pin = true};
    yk_status st = open_activations(b, err);
    if (st == YK_OK)
        st = yk_arena_open(&b->weights, YK_MEM_RUNTIME, small ? bytes : weights_bytes(&info, o->quick), true, err);
    if (st == YK_OK)
        st = yk_pool_open(&b->pool, &po, err);
    if (st == YK_OK) {
        yk_stage fill = {.name = "fill",
                         .run = run_fill,
                         .arg = b,
                         .max_slices = (uint32_t)((b->weights.size + FILL_BYTES - 1) / FILL_BYTES)};
        st = run_stage(b, &fill, &ignored, err);
    }
    if (st == YK_OK && !small)
        st = open_reads(b, lane, o, &info, err);
    if (st != YK_OK)
        yk_cpu_bench_close(&b);
    *out = b;
    return st;
}
