/* cpu.c - the CPU lane of this machine for the profiler: products, attention, rows and reading, over memory larger than the caches where there is as
 * much.
 *
 * Products are those of the engine: FFNs of whole cut units, packed and laid out as its slabs are, in slices and token tiles of its size, by its pool. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cpu/pack.h"
#include "cpu/slices.h"
#include "profiler/membw.h"
#include "profiler/profile.h"
#include "src/base/clock.h"

enum {
    MAX_SLICES = 16384,
    MAX_BENCHES = 2 + 16,                       /* huge pages, small pages, nodes */
    MAX_STAGES = 1 + 2 * YK_PROFILE_ROW_STAGES, /* the meeting, then what is measured */
    MEET_NS = 200000,                           /* a worker waits so long for the others */
    AWAY_NS = 20000,                            /* it may be away from its processor so long, */
    AWAY_PART = 50,                             /* or this part of a pass */
    UNIT = 256,                                 /* intermediate units of a cut unit (src/model/cut.h) */
    PART_UNITS = 8, /* cut units of an FFN unless told; more of them are several FFNs, as experts are */
    RESULTS = YK_TOKEN_TILE * 2 * YK_ROWS_MAX, /* floats of a slice's results */
    ROW_STAGES = YK_PROFILE_ROW_STAGES,
    KV_BLOCK = 16,
    MAX_DEPTH = 16384,
    GROUP = YK_PROFILE_HEADS / YK_PROFILE_KV_HEADS,
    SCORES = GROUP * MAX_DEPTH,
    TABLES = MAX_DEPTH / KV_BLOCK,
    FILL_BYTES = 1 << 20,
    FILL_SLICES = 32,          /* between looks at the clock */
    FILL_QUICK_NS = 250000000, /* filling takes so long, but for the least area */
    FILL_NS = 1000000000,
    LEAST_AREA = 64 << 20,
    SMALL_PAGE = 4096,
    HUGE_PAGE = 2 << 20
};

_Static_assert((int)YK_TOKEN_TILE == (int)YK_PROMPT_TILE, "machine.h tells the planner how many tokens meet at a time");

typedef struct scratch {
    float y[RESULTS], h[YK_TOKEN_TILE * YK_ROWS_MAX], scores[SCORES];
    const void *k[TABLES], *v[TABLES];
} scratch;

/* A worker when it leaves the meeting: its clock of processor time, and both clocks. Written by itself. */
typedef struct leaving {
    _Alignas(64) _Atomic(uint64_t) pass; /* the meeting it was in */
    _Atomic(uint64_t) now_ns, cpu_ns;
    _Atomic(clockid_t) clock;
} leaving;

struct yk_cpu_bench {
    const yk_ops *ops;
    yk_pool *pool;
    yk_arena weights;
    uint64_t size;    /* of the weights, filled */
    float *x, *y, *z; /* [YK_PROFILE_TOKENS][YK_PROFILE_COLS] */
    yk_q8 q8;         /* of x */
    yk_q8 rows_q8;    /* what token stages round */
    _Atomic(uint64_t) *owners, *claims, *done_ns;
    uint64_t at; /* where in the weights the next pass begins */
    yk_read_bench *benches[MAX_BENCHES];
    uint8_t bench_of[YK_MAX_READS]; /* of a way to read */
    uint32_t threads_of[YK_MAX_READS];
    uint32_t n_benches;
    uint32_t n_workers;
    uint64_t passes;
    _Atomic(uint32_t) arrived; /* of this pass's meeting */
    leaving left[YK_MAX_WORKERS];
};

/* ---- a pass: stages between which no worker sleeps, as within a step ------------------------------------------------------------------ */

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    return clock_gettime(clock, &t) == 0 ? (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec : 0;
}

/* One slice for each worker, which waits a while for the others: so all are awake. */
static void run_meet(const yk_stage *stage, uint32_t slice, yk_worker *worker)
{
    (void)slice;
    yk_cpu_bench *b = stage->arg;
    leaving *l = &b->left[worker->index];
    clockid_t clock;
    const uint64_t begin = yk_now_ns();
    atomic_fetch_add(&b->arrived, 1);
    while (atomic_load(&b->arrived) < b->n_workers && yk_now_ns() - begin < MEET_NS)
        ;
    if (pthread_getcpuclockid(pthread_self(), &clock) != 0)
        return;
    atomic_store(&l->clock, clock);
    atomic_store(&l->now_ns, yk_now_ns());
    atomic_store(&l->cpu_ns, clock_ns(clock));
    atomic_store(&l->pass, b->passes);
}

/* Did all workers have their processors from the meeting until now? Asked at once after a pass, before they sleep. */
static yk_company company_of(const yk_cpu_bench *b, uint64_t pass_ns)
{
    const uint64_t most = pass_ns / AWAY_PART > AWAY_NS ? pass_ns / AWAY_PART : AWAY_NS;
    for (uint32_t i = 0; i < b->n_workers; i++) {
        const leaving *l = &b->left[i];
        if (atomic_load(&l->pass) != b->passes)
            return YK_COMPANY_OTHERS;
        const uint64_t cpu = clock_ns(atomic_load(&l->clock)) - atomic_load(&l->cpu_ns),
                       all = yk_now_ns() - atomic_load(&l->now_ns);
        if (all > cpu && all - cpu > most)
            return YK_COMPANY_OTHERS;
    }
    return YK_COMPANY_NONE;
}

static yk_status run_stages(yk_cpu_bench *b, const yk_stage *stages, uint32_t n, yk_pass *out, yk_error *err)
{
    yk_stage all[MAX_STAGES] = {{.name = "meet", .run = run_meet, .arg = b, .max_slices = b->n_workers}};
    yk_job job = {.stages = all, .n_stages = 1 + n, .owners = b->owners, .claims = b->claims, .done_ns = b->done_ns};
    for (uint32_t i = 0; i < n; i++) {
        all[1 + i] = stages[i];
        all[1 + i].first_owner = (1 + i) * MAX_SLICES;
    }
    b->passes++;
    atomic_store(&b->arrived, 0);
    const yk_status st = yk_pool_run(b->pool, &job, err);
    out->begin_ns = atomic_load(&b->done_ns[0]);
    out->end_ns = atomic_load(&b->done_ns[n]);
    out->company = company_of(b, out->end_ns - out->begin_ns);
    yk_pool_wait_job(b->pool, &job);
    return st;
}

/* ---- products -------------------------------------------------------------------------------------------------------------------------- */

/* FFNs of up to part_units cut units each for all tokens. `cols` is the width of gate's and up's rows and the height of down. */
typedef struct product {
    const yk_cpu_bench *b;
    yk_type type;
    const uint8_t *w;
    uint32_t n_tokens, cols, n_units, part_units;
    uint32_t units_slice, rows_slice; /* intermediate units of a gate_up slice, rows of a down slice */
    uint64_t panel, tile;             /* bytes of 16 rows of gate, of 16 rows of a tile of down */
    uint64_t down_at, unit_bytes;     /* in a cut unit */
} product;

static void multiply(const product *p, yk_matmul_packed m, uint32_t t0)
{
    const uint32_t left = p->n_tokens - t0;
    const yk_q8 q = {p->b->q8.q + (size_t)t0 * YK_PROFILE_COLS, p->b->q8.scale + (size_t)t0 * (YK_PROFILE_COLS / 32),
                     p->b->q8.sum + (size_t)t0 * (YK_PROFILE_COLS / 16), p->b->q8.n_blocks};
    m.x = p->b->x + (size_t)t0 * YK_PROFILE_COLS;
    m.x_stride = YK_PROFILE_COLS;
    m.xq = &q;
    m.n_tokens = left < YK_TOKEN_TILE ? left : YK_TOKEN_TILE;
    p->b->ops->matmul_packed[p->type](&m);
}

static void run_gate_up(const yk_stage *stage, uint32_t slice, yk_worker *worker)
{
    const product *p = stage->arg;
    const uint32_t per_unit = UNIT / p->units_slice, n_rows = 2 * p->units_slice;
    const uint8_t *w = p->w + slice / per_unit * p->unit_bytes + slice % per_unit * (n_rows / YK_TILE_ROWS) * p->panel;
    scratch *s = worker->scratch;
    for (uint32_t t0 = 0; t0 < p->n_tokens; t0 += YK_TOKEN_TILE) {
        multiply(p,
                 (yk_matmul_packed){
                     .w = w, .panel_bytes = p->panel, .n_rows = n_rows, .n_cols = p->cols, .y = s->y, .y_stride = n_rows},
                 t0);
        for (uint32_t t = 0; t < p->n_tokens - t0 && t < YK_TOKEN_TILE; t++)
            for (uint32_t u = 0; u < p->units_slice; u += YK_TILE_ROWS) {
                const float *gate = s->y + (size_t)t * n_rows + 2 * u;
                p->b->ops->glu(gate, gate + YK_TILE_ROWS, YK_TILE_ROWS, YK_GLU_SILU, s->h + (size_t)t * p->units_slice + u);
            }
    }
}

static void run_down(const yk_stage *stage, uint32_t slice, yk_worker *worker)
{
    const product *p = stage->arg;
    const uint32_t r0 = slice * p->rows_slice, n_rows = p->cols - r0 < p->rows_slice ? p->cols - r0 : p->rows_slice;
    scratch *s = worker->scratch;
    for (uint32_t t = 0; t < p->n_tokens; t++)
        memset(p->b->y + (size_t)t * YK_PROFILE_COLS + r0, 0, n_rows * sizeof *s->y);
    for (uint32_t u = 0; u < p->n_units; u += p->part_units) {
        const uint32_t units = p->n_units - u < p->part_units ? p->n_units - u : p->part_units;
        const uint8_t *w = p->w + u * p->unit_bytes + p->down_at + r0 / YK_TILE_ROWS * p->tile;
        for (uint32_t t0 = 0; t0 < p->n_tokens; t0 += YK_TOKEN_TILE) {
            multiply(p,
                     (yk_matmul_packed){.w = w,
                                        .panel_bytes = p->tile,
                                        .tile_stride = p->unit_bytes,
                                        .n_rows = n_rows,
                                        .n_cols = UNIT * units,
                                        .y = s->y,
                                        .y_stride = n_rows},
                     t0);
            for (uint32_t t = 0; t < p->n_tokens - t0 && t < YK_TOKEN_TILE; t++)
                p->b->ops->add_scaled(s->y + (size_t)t * n_rows, 1, n_rows, p->b->y + (size_t)(t0 + t) * YK_PROFILE_COLS + r0);
        }
    }
}

static bool cpu_has(void *self, yk_type type)
{
    const yk_cpu_bench *b = self;
    return yk_type_get(type) && yk_pack_has(type) && b->ops->matmul_packed[type] && yk_panel_bytes(type, YK_PROFILE_COLS) > 0;
}

static uint64_t unit_bytes(yk_type type, uint32_t cols)
{
    return 2 * UNIT / YK_TILE_ROWS * yk_panel_bytes(type, cols) + cols / YK_TILE_ROWS * yk_panel_bytes(type, UNIT);
}

static uint64_t cpu_unit_bytes(void *self, yk_type type)
{
    (void)self;
    return unit_bytes(type, YK_PROFILE_COLS);
}

/* Less than a cut unit has narrower rows; more than one is whole units. */
static void size_product(const yk_cpu_bench *b, product *p, uint64_t bytes, uint32_t step_tokens)
{
    const uint64_t unit = unit_bytes(p->type, YK_PROFILE_COLS);
    uint64_t n = (bytes + unit / 2) / unit, row = 0, down_row = 0;
    p->cols = YK_PROFILE_COLS;
    if (!n)
        p->cols = (uint32_t)((bytes * (YK_PROFILE_COLS / UNIT) + unit - 1) / unit) * UNIT;
    p->cols = p->cols < UNIT ? UNIT : p->cols > YK_PROFILE_COLS ? YK_PROFILE_COLS : p->cols;
    p->panel = yk_panel_bytes(p->type, p->cols);
    p->tile = yk_panel_bytes(p->type, UNIT);
    p->down_at = 2 * UNIT / YK_TILE_ROWS * p->panel;
    p->unit_bytes = unit_bytes(p->type, p->cols);
    n = n < 1 ? 1 : n > MAX_SLICES * YK_UNITS_MULTIPLE / UNIT ? MAX_SLICES * YK_UNITS_MULTIPLE / UNIT : n;
    p->n_units = (uint32_t)(n * p->unit_bytes > b->size ? b->size / p->unit_bytes : n);
    if (!yk_type_row_bytes(p->type, p->cols, &row) ||
        !yk_type_row_bytes(p->type, UNIT * (p->n_units < p->part_units ? p->n_units : p->part_units), &down_row))
        row = down_row = 0; /* cpu_has has seen that both can be */
    p->units_slice = yk_units_per_slice(2 * row, step_tokens, UNIT);
    p->rows_slice = yk_rows_per_slice(down_row, step_tokens, YK_ROWS_MULTIPLE);
}

/* The next weights, which no cache has any more. */
static void take_weights(yk_cpu_bench *b, product *p)
{
    const uint64_t all = p->n_units * p->unit_bytes;
    if (b->at + all > b->size)
        b->at = 0;
    p->w = b->weights.base + b->at;
    b->at += (all + 63) / 64 * 64;
}

static yk_stage gate_up_stage(product *p)
{
    return (yk_stage){.name = "gate_up", .run = run_gate_up, .arg = p, .max_slices = p->n_units * (UNIT / p->units_slice)};
}

static yk_status cpu_product(void *self, const yk_profile_work *work, uint64_t bytes, yk_pass *out, yk_error *err)
{
    yk_cpu_bench *b = self;
    product p = {
        .b = b, .type = work->type, .n_tokens = work->n_tokens, .part_units = work->down_units ? work->down_units : PART_UNITS};
    size_product(b, &p, bytes, work->step_tokens);
    take_weights(b, &p);
    out->x = (double)(p.n_units * (work->down_units ? p.unit_bytes - p.down_at : p.down_at));
    yk_stage stage = gate_up_stage(&p);
    if (work->down_units)
        stage = (yk_stage){.name = "down", .run = run_down, .arg = &p, .max_slices = yk_ceil_div(p.cols, p.rows_slice)};
    return run_stages(b, &stage, 1, out, err);
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */

typedef struct rows {
    const yk_cpu_bench *b;
    uint32_t n_tokens;
} rows;

/* What a stage between products does with the rows of 16 tokens: gather, add, norm, round. */
static void run_rows(const yk_stage *stage, uint32_t slice, yk_worker *worker)
{
    enum { TOKENS = 16, PIECE = YK_ROWS_MANY };
    (void)worker;
    const rows *r = stage->arg;
    const yk_cpu_bench *b = r->b;
    for (uint32_t t = TOKENS * slice; t < TOKENS * slice + TOKENS && t < r->n_tokens; t++) {
        const size_t row = (size_t)t * YK_PROFILE_COLS;
        yk_q8 q = b->rows_q8;
        for (uint32_t c = 0; c < YK_PROFILE_COLS; c += PIECE)
            memcpy(b->z + row + c, b->y + row + c, PIECE * sizeof *b->z);
        b->ops->add(b->x + row, YK_PROFILE_COLS, b->z + row);
        b->ops->rms_norm(b->z + row, NULL, NULL, YK_PROFILE_COLS, 1e-5f, b->y + row);
        b->ops->quantise(b->y + row, YK_PROFILE_COLS, &q, t);
    }
}

/* One token: each stage behind a product that has filled the caches with weights, as in a step; only the stages' own time. */
static yk_status stages_of_a_token(yk_cpu_bench *b, rows *r, yk_pass *out, yk_error *err)
{
    product p[ROW_STAGES];
    yk_stage stages[2 * ROW_STAGES];
    for (int i = 0; i < ROW_STAGES; i++) {
        p[i] = (product){.b = b, .type = YK_TYPE_Q8_0, .n_tokens = 1, .part_units = PART_UNITS};
        size_product(b, &p[i], unit_bytes(YK_TYPE_Q8_0, YK_PROFILE_COLS), 1);
        take_weights(b, &p[i]);
        stages[2 * i] = gate_up_stage(&p[i]);
        stages[2 * i + 1] = (yk_stage){.name = "rows", .run = run_rows, .arg = r, .max_slices = 1};
    }
    YK_TRY(run_stages(b, stages, 2 * ROW_STAGES, out, err));
    out->end_ns = out->begin_ns;
    for (int i = 0; i < ROW_STAGES; i++)
        out->end_ns += atomic_load(&b->done_ns[2 + 2 * i]) - atomic_load(&b->done_ns[1 + 2 * i]);
    return YK_OK;
}

static yk_status cpu_rows(void *self, uint32_t n_tokens, yk_pass *out, yk_error *err)
{
    yk_cpu_bench *b = self;
    rows r = {b, n_tokens};
    yk_stage stages[ROW_STAGES];
    out->x = (double)ROW_STAGES * n_tokens * YK_PROFILE_COLS * sizeof *b->x;
    if (n_tokens == 1 && cpu_has(b, YK_TYPE_Q8_0))
        return stages_of_a_token(b, &r, out, err);
    for (int i = 0; i < ROW_STAGES; i++)
        stages[i] = (yk_stage){.name = "rows", .run = run_rows, .arg = &r, .max_slices = yk_ceil_div(n_tokens, 16)};
    return run_stages(b, stages, ROW_STAGES, out, err);
}

/* ---- attention ------------------------------------------------------------------------------------------------------------------------- */

typedef struct attention {
    const yk_cpu_bench *b;
    const uint8_t *kv;
    uint32_t n_tokens, depth, head_dim;
    uint32_t head_bytes; /* of a block of K or V */
} attention;

/* A slice: one head of K and V, at most 16 tokens. */
static void run_attention(const yk_stage *stage, uint32_t slice, yk_worker *worker)
{
    const attention *a = stage->arg;
    scratch *s = worker->scratch;
    const uint32_t head = slice % YK_PROFILE_KV_HEADS, first = slice / YK_PROFILE_KV_HEADS * KV_BLOCK;
    for (uint32_t i = 0; i < (a->depth + KV_BLOCK - 1) / KV_BLOCK; i++) {
        s->k[i] = a->kv + ((uint64_t)i * 2 * YK_PROFILE_KV_HEADS + head) * a->head_bytes;
        s->v[i] = (const uint8_t *)s->k[i] + YK_PROFILE_KV_HEADS * a->head_bytes;
    }
    a->b->ops->attention(&(yk_attention){.q = a->b->x + (size_t)first * YK_PROFILE_COLS + head * GROUP * a->head_dim,
                                         .k_blocks = s->k,
                                         .v_blocks = s->v,
                                         .kv_stride = a->head_dim,
                                         .n_heads = GROUP,
                                         .head_dim = a->head_dim,
                                         .end = a->depth,
                                         .scale = 0.0884f,
                                         .kv_f16 = true,
                                         .scores = s->scores,
                                         .out = s->y,
                                         .n_tokens = a->n_tokens - first < KV_BLOCK ? a->n_tokens - first : KV_BLOCK,
                                         .q_stride = YK_PROFILE_COLS,
                                         .out_stride = GROUP * a->head_dim});
}

static yk_status cpu_attention(void *self, uint32_t n_tokens, uint32_t depth, uint32_t head_dim, yk_pass *out, yk_error *err)
{
    yk_cpu_bench *b = self;
    const uint32_t head_bytes = KV_BLOCK * head_dim * 2,
                   block = 2 * YK_PROFILE_KV_HEADS * head_bytes; /* K of all heads, then V */
    const uint64_t most = b->size / block * KV_BLOCK;
    depth = depth > MAX_DEPTH ? MAX_DEPTH : depth;
    depth = depth > most ? (uint32_t)most : depth;
    attention a = {.b = b, .n_tokens = n_tokens, .depth = depth, .head_dim = head_dim, .head_bytes = head_bytes};
    const uint64_t bytes = (depth + KV_BLOCK - 1ull) / KV_BLOCK * block;
    b->at = (b->at + 63) / 64 * 64;
    if (b->at + bytes > b->size)
        b->at = 0;
    a.kv = b->weights.base + b->at;
    b->at += bytes;
    out->x = n_tokens == 1 ? (double)depth * block / KV_BLOCK : 4.0 * n_tokens * depth * YK_PROFILE_HEADS * head_dim;
    yk_stage stage = {.name = "attention",
                      .run = run_attention,
                      .arg = &a,
                      .max_slices = (n_tokens + KV_BLOCK - 1) / KV_BLOCK * YK_PROFILE_KV_HEADS};
    return run_stages(b, &stage, 1, out, err);
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
        .cpus = cpus, .n_cpus = n, .bytes = b->size, .base = info->n_numa > 1 ? NULL : b->weights.base, .huge = true};
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
    all.bytes = b->size;
    if (info->n_numa > 1)
        st = open_nodes(b, lane, &all, info->n_numa, err);
out:
    yk_free(cpus);
    return st;
}

/* ---- the lane -------------------------------------------------------------------------------------------------------------------------- */

/* Bytes whose bits are ordinary numbers in every weight format: scales of f16 are 0.06 to 0.24, floats small but not denormal. The first slice is made,
 * the others are like it. Filled by all workers, so that each node holds some. */
static void run_fill(const yk_stage *stage, uint32_t slice, yk_worker *worker)
{
    (void)worker;
    const yk_cpu_bench *b = stage->arg;
    const uint64_t from = ((uint64_t)stage->layer + slice) * FILL_BYTES, left = b->weights.size - from;
    const uint64_t n = left < FILL_BYTES ? left : FILL_BYTES;
    if (from) {
        memcpy(b->weights.base + from, b->weights.base, n);
        return;
    }
    uint64_t z[8], bytes[8];
    for (int i = 0; i < 8; i++)
        z[i] = (uint64_t)i * 0x9e3779b97f4a7c15u + 1;
    for (uint64_t at = 0; at + 64 <= n; at += 64) {
        for (int i = 0; i < 8; i++) {
            z[i] = z[i] * 6364136223846793005u + 1442695040888963407u;
            bytes[i] = 0x2c2c2c2c2c2c2c2cu + ((z[i] ^ z[i] >> 29) & 0x0707070707070707u);
        }
        memcpy(b->weights.base + at, bytes, 64);
    }
}

/* The area, as far as the time goes: where memory is slow to come, a smaller one leaves time to measure. */
static yk_status fill_weights(yk_cpu_bench *b, uint64_t most_ns, yk_error *err)
{
    const uint64_t begin = yk_now_ns();
    yk_stage fill = {.name = "fill", .run = run_fill, .arg = b, .max_slices = 1};
    while (b->size < b->weights.size && (b->size < LEAST_AREA || yk_now_ns() - begin < most_ns)) {
        yk_pass ignored;
        const uint64_t left = (b->weights.size - b->size + FILL_BYTES - 1) / FILL_BYTES;
        fill.layer = (uint32_t)(b->size / FILL_BYTES); /* its first slice */
        fill.max_slices = b->size == 0 ? 1 : left < FILL_SLICES ? (uint32_t)left : FILL_SLICES;
        YK_TRY(run_stages(b, &fill, 1, &ignored, err));
        b->size += (uint64_t)fill.max_slices * FILL_BYTES;
    }
    b->size = b->size < b->weights.size ? b->size : b->weights.size;
    return YK_OK;
}

/* Twice the last cache, 64 MiB to 1 GiB, at most an eighth of what is free: a model does not stay in a cache between tokens. */
static uint64_t weights_bytes(const yk_cpu_info *cpu)
{
    const uint64_t least = LEAST_AREA, most = 1ull << 30, twice = 2 * cpu->cache_bytes[2];
    uint64_t bytes = cpu->cache_bytes[2] < most ? (twice < least ? least : twice > most ? most : twice) : most;
    if (cpu->memory_available_bytes && bytes > cpu->memory_available_bytes / 8)
        bytes = cpu->memory_available_bytes / 8;
    return (bytes > 8ull << 20 ? bytes : 8ull << 20) / 4096 * 4096;
}

static void close_q8(yk_q8 *q)
{
    yk_free(q->q);
    yk_free(q->scale);
    yk_free(q->sum);
}

/* Rounded rows for all tokens; false: no memory. */
static bool open_q8(yk_q8 *q)
{
    const size_t n = (size_t)YK_PROFILE_TOKENS * YK_PROFILE_COLS;
    *q = (yk_q8){yk_alloc(YK_MEM_RUNTIME, n, 1), yk_alloc(YK_MEM_RUNTIME, n / 32, sizeof *q->scale),
                 yk_alloc(YK_MEM_RUNTIME, n / 16, sizeof *q->sum), YK_PROFILE_COLS / 32};
    return q->q && q->scale && q->sum;
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
    yk_free(b->y);
    yk_free(b->z);
    close_q8(&b->q8);
    close_q8(&b->rows_q8);
    yk_free((void *)b->owners);
    yk_free((void *)b->claims);
    yk_free((void *)b->done_ns);
    yk_free(b);
}

static yk_status open_activations(yk_cpu_bench *b, yk_error *err)
{
    const size_t n = (size_t)YK_PROFILE_TOKENS * YK_PROFILE_COLS;
    const bool q8 = open_q8(&b->q8) && open_q8(&b->rows_q8);
    b->x = yk_alloc(YK_MEM_RUNTIME, n, sizeof *b->x);
    b->y = yk_alloc(YK_MEM_RUNTIME, n, sizeof *b->y);
    b->z = yk_alloc(YK_MEM_RUNTIME, n, sizeof *b->z);
    b->owners = yk_alloc(YK_MEM_RUNTIME, MAX_STAGES * MAX_SLICES, sizeof *b->owners);
    b->claims = yk_alloc(YK_MEM_RUNTIME, MAX_STAGES, sizeof *b->claims);
    b->done_ns = yk_alloc(YK_MEM_RUNTIME, MAX_STAGES, sizeof *b->done_ns);
    if (!q8 || !b->x || !b->y || !b->z || !b->owners || !b->claims || !b->done_ns)
        return yk_fail_memory(err, n * 15 + MAX_STAGES * MAX_SLICES * sizeof *b->owners, "measuring the CPU");
    for (size_t i = 0; i < n; i++)
        b->x[i] = b->y[i] = (float)((int)(i * 2654435761u >> 16 & 0xff) - 128) / 128;
    for (uint32_t t = 0; t < YK_PROFILE_TOKENS; t++)
        b->ops->quantise(b->x + (size_t)t * YK_PROFILE_COLS, YK_PROFILE_COLS, &b->q8, t);
    return YK_OK;
}

yk_status yk_cpu_bench_open(yk_cpu_bench **out, yk_profile_cpu *lane, const yk_profile_opts *o, uint64_t bytes, yk_error *err)
{
    yk_cpu_info info;
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
                             .attention = cpu_attention,
                             .rows = cpu_rows};
    const yk_pool_opts po = {.n_workers = o->threads, .scratch_bytes = sizeof(scratch), .pin = true};
    yk_status st = open_activations(b, err);
    if (st == YK_OK)
        st = yk_arena_open(&b->weights, YK_MEM_RUNTIME, small ? bytes : weights_bytes(&info), true, err);
    if (st == YK_OK)
        st = yk_pool_open(&b->pool, &po, err);
    if (st == YK_OK) {
        b->n_workers = yk_pool_size(b->pool);
        st = fill_weights(b, o->quick ? FILL_QUICK_NS : FILL_NS, err);
    }
    if (st == YK_OK && !small)
        st = open_reads(b, lane, o, &info, err);
    if (st != YK_OK)
        yk_cpu_bench_close(&b);
    *out = b;
    return st;
}
