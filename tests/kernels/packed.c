/* packed.c - checks of matmul_packed: the file's weights in double against the kernels' result on the packed form. */
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "cpu/pack.h"
#include "src/base/clock.h"
#include "tests/kernels/check.h"

enum { MAX_TOKENS = 150 };

typedef struct shape {
    uint32_t n_rows, n_cols, n_tokens;
    uint32_t more_rows; /* of the matrix behind those computed: the last panel is then used in part */
    bool chosen_rows;   /* tokens use activation rows in another order, some twice */
    fill how;
} shape;

/* Panels lie 64 bytes further apart than they must, outputs three floats. */
typedef struct data {
    yk_matmul_packed m;
    yk_q8 q8;
    uint64_t row_bytes;
    uint8_t *file, *w;
    float *x, *y;
    uint32_t rows[MAX_TOKENS], n_x;
} data;

static void pack_with_gaps(data *d, yk_type type, uint32_t n_rows, uint32_t n_cols)
{
    for (uint32_t r = 0; r < n_rows; r += YK_TILE_ROWS)
        yk_pack(type, d->file + r * d->row_bytes, d->row_bytes, n_rows - r < YK_TILE_ROWS ? n_rows - r : YK_TILE_ROWS, 0,
                n_cols, d->w + r / YK_TILE_ROWS * d->m.panel_bytes);
}

static void data_open(data *d, const yk_ops *ops, yk_type type, const shape *s, rng *r)
{
    const bool quantised = yk_type_get(type)->quantised;
    const uint32_t n_rows = s->n_rows + s->more_rows, n_panels = (n_rows + YK_TILE_ROWS - 1) / YK_TILE_ROWS;
    const size_t x_stride = s->n_cols + (quantised ? 0 : 5);
    yk_type_row_bytes(type, s->n_cols, &d->row_bytes);
    d->n_x = s->n_tokens + 2;
    d->file = guarded_new(d->row_bytes * n_rows, 0);
    d->x = guarded_new(d->n_x * x_stride * sizeof *d->x, 4);
    d->y = guarded_new(s->n_tokens * (size_t)(s->n_rows + 3) * sizeof *d->y, 4);
    for (uint32_t i = 0; i < n_rows; i++)
        random_weights(r, type, d->file + i * d->row_bytes, s->n_cols);
    for (uint32_t i = 0; i < d->n_x; i++)
        fill_f32(r, s->how, d->x + i * x_stride, s->n_cols);
    for (uint32_t i = 0; i < s->n_tokens; i++)
        d->rows[i] = rng_below(r, d->n_x);
    d->q8 = (yk_q8){.n_blocks = (s->n_cols + 31) / 32 + 1}; /* one block more than needed: a wider buffer is allowed */
    d->q8.q = guarded_new((size_t)d->n_x * d->q8.n_blocks * 32, 0);
    d->q8.scale = guarded_new((size_t)d->n_x * d->q8.n_blocks * sizeof(float), 4);
    d->q8.sum = guarded_new((size_t)d->n_x * d->q8.n_blocks * 2 * sizeof(int16_t), 2);
    for (uint32_t i = 0; i < d->n_x; i++)
        ops->quantise(d->x + i * x_stride, s->n_cols, &d->q8, i);
    d->m = (yk_matmul_packed){.panel_bytes = yk_panel_bytes(type, s->n_cols) + 64,
                              .n_rows = s->n_rows,
                              .n_cols = s->n_cols,
                              .n_tokens = s->n_tokens,
                              .rows = s->chosen_rows ? d->rows : NULL,
                              .y = d->y,
                              .y_stride = s->n_rows + 3};
    /* The last panel ends where the guard begins; guard bytes read as weights would be large. */
    d->m.w = d->w = guarded_new(n_panels * d->m.panel_bytes - 64, 0);
    pack_with_gaps(d, type, n_rows, s->n_cols);
    if (quantised) {
        d->m.xq = &d->q8;
    } else {
        d->m.x = d->x;
        d->m.x_stride = x_stride;
    }
}

static void data_close(data *d)
{
    guarded_free(d->file);
    guarded_free(d->w);
    guarded_free(d->x);
    guarded_free(d->y);
    guarded_free(d->q8.q);
    guarded_free(d->q8.scale);
    guarded_free(d->q8.sum);
}

static void reference(const data *d, yk_type type, uint32_t t, const double *value, const double *magnitude, double *sum,
                      double *size)
{
    const yk_matmul_packed *m = &d->m;
    const uint32_t at = m->rows ? m->rows[t] : t;
    *sum = *size = 0;
    for (uint32_t i = 0; i < m->n_cols; i++) {
        double x;
        if (yk_type_get(type)->quantised)
            x = d->q8.q[(size_t)at * d->q8.n_blocks * 32 + i] * (double)d->q8.scale[(size_t)at * d->q8.n_blocks + i / 32];
        else
            x = (double)m->x[at * m->x_stride + i];
        *sum += value[i] * x;
        /* A product below 2^-126 is rounded to a multiple of 2^-149, whatever its size. */
        *size += magnitude[i] * fabs(x) + 0x1p-130;
    }
}

static void compare_all(check *c, yk_type type, const data *d)
{
    const yk_tolerance *tol = yk_tolerance_find("matmul_packed", yk_type_get(type)->name);
    const yk_matmul_packed *m = &d->m;
    double *value = malloc(2 * m->n_cols * sizeof *value), *want = malloc(2 * sizeof *want * m->n_rows * m->n_tokens);
    if (!value || !want || !tol) {
        fail_check(c, "out of memory, or no tolerance");
        free(value);
        free(want);
        return;
    }
    double *size = want + (size_t)m->n_rows * m->n_tokens;
    for (uint32_t r = 0; r < m->n_rows; r++) {
        for (uint32_t i = 0; i < m->n_cols; i++) {
            double scaled, min;
            value[i] = weight_at(type, d->file + r * d->row_bytes, i, &scaled, &min);
            value[m->n_cols + i] = fabs(scaled) + fabs(min);
        }
        for (uint32_t t = 0; t < m->n_tokens; t++)
            reference(d, type, t, value, value + m->n_cols, want + (size_t)t * m->n_rows + r, size + (size_t)t * m->n_rows + r);
    }
    for (uint32_t t = 0; t < m->n_tokens; t++) {
        const float *y = d->y + t * m->y_stride;
        compare_f32(c, tol, y, want + (size_t)t * m->n_rows, size + (size_t)t * m->n_rows, m->n_rows);
        for (uint32_t i = m->n_rows; i < m->y_stride; i++)
            if (yk_f32_bits(y[i]) != 0xa5a5a5a5u)
                fail_check(c, "token %u: the gap behind its outputs was written", t);
    }
    free(value);
    free(want);
}

/* The same bits when panels and tokens are computed one by one, and in uneven parts. */
static void check_splits(check *c, yk_type type, const data *d)
{
    static const uint32_t token_steps[] = {1, 3, 8, 11}, panel_steps[] = {1, 2, 1, 3};
    const yk_matmul_packed *m = &d->m;
    const size_t n = (size_t)m->n_tokens * m->y_stride;
    uint32_t rows[MAX_TOKENS];
    float *y = guarded_new(n * sizeof *y, 4);
    for (int how = 0; how < 4; how++) {
        const uint32_t token_step = token_steps[how], row_step = YK_TILE_ROWS * panel_steps[how];
        memset(y, 0xa5, n * sizeof *y);
        for (uint32_t t = 0; t < m->n_tokens; t += token_step) {
            for (uint32_t r = 0; r < m->n_rows; r += row_step) {
                yk_matmul_packed part = *m;
                part.n_tokens = m->n_tokens - t < token_step ? m->n_tokens - t : token_step;
                part.n_rows = m->n_rows - r < row_step ? m->n_rows - r : row_step;
                for (uint32_t i = 0; i < part.n_tokens; i++)
                    rows[i] = m->rows ? m->rows[t + i] : t + i;
                part.rows = rows;
                part.w = m->w + r / YK_TILE_ROWS * m->panel_bytes;
                part.y = y + t * m->y_stride + r;
                c->ops->matmul_packed[type](&part);
            }
        }
        /* The gaps between tokens hold the guard byte in both. */
        compare_bits(c, "split", y, d->y, n * sizeof *y);
    }
    guarded_free(y);
}

static void check_shape(check *c, yk_type type, const shape *s, rng *r)
{
    data d;
    set_params(c, "rows %u of %u cols %u tokens %u%s %s", s->n_rows, s->n_rows + s->more_rows, s->n_cols, s->n_tokens,
               s->chosen_rows ? " chosen" : "", fill_name(s->how));
    data_open(&d, c->ops, type, s, r);
    c->ops->matmul_packed[type](&d.m);
    compare_all(c, type, &d);
    check_splits(c, type, &d);
    data_close(&d);
}

/* A row of activations with a NaN must show in every output of its token and in no other. */
static void check_nan(check *c, yk_type type)
{
    rng r = {c->seed + 7};
    const shape s = {18, 512, 5, 0, false, FILL_PLAIN};
    data d;
    set_params(c, "a NaN in token 1");
    data_open(&d, c->ops, type, &s, &r);
    float *x = d.x + (d.m.x ? d.m.x_stride : s.n_cols);
    x[300] = NAN;
    c->ops->quantise(x, s.n_cols, &d.q8, 1);
    c->ops->matmul_packed[type](&d.m);
    for (uint32_t t = 0; t < s.n_tokens; t++) {
        for (uint32_t i = 0; i < s.n_rows; i++) {
            c->n_compared++;
            if (is_nan_bits(d.y[t * d.m.y_stride + i]) != (t == 1))
                fail_check(c, "row %u of token %u is %g", i, t, (double)d.y[t * d.m.y_stride + i]);
        }
    }
    data_close(&d);
}

/* A block whose scale is NaN makes its row NaN, and no other. */
static void check_nan_scale(check *c, yk_type type)
{
    rng r = {c->seed + 8};
    const shape s = {21, 512, 9, 0, false, FILL_PLAIN};
    const uint32_t row = 19, at = 7; /* byte of the block 288 columns in */
    data d;
    set_params(c, "a NaN in row %u", row);
    data_open(&d, c->ops, type, &s, &r);
    if (type == YK_TYPE_MXFP4) {
        d.file[row * d.row_bytes + 17 * (at + 2)] = 255;
    } else {
        uint64_t skip = 0;
        yk_type_row_bytes(type, 256, &skip);
        skip += type == YK_TYPE_Q2_K ? 80 : type == YK_TYPE_Q3_K ? 108 : type == YK_TYPE_Q6_K ? 208 : 0;
        memcpy(d.file + row * d.row_bytes + skip, type == YK_TYPE_F32 ? "\0\0\xc0\x7f" : "\xc0\x7f",
               type == YK_TYPE_F32 ? 4 : 2);
    }
    pack_with_gaps(&d, type, s.n_rows, s.n_cols);
    c->ops->matmul_packed[type](&d.m);
    for (uint32_t t = 0; t < s.n_tokens; t++) {
        for (uint32_t i = 0; i < s.n_rows; i++) {
            c->n_compared++;
            if (is_nan_bits(d.y[t * d.m.y_stride + i]) != (i == row))
                fail_check(c, "row %u of token %u is %g", i, t, (double)d.y[t * d.m.y_stride + i]);
        }
    }
    data_close(&d);
}

/* Tiles further apart than they must be: `down` as it lies in cut units. */
static void check_tile_stride(check *c, yk_type type)
{
    const uint32_t n_cols = yk_type_get(type)->block_elems == 256 ? 1024 : 864,
                   n_tiles = (n_cols + YK_TILE_COLS - 1) / YK_TILE_COLS;
    const uint64_t tile = yk_tile_bytes(type, YK_TILE_COLS), stride = tile + 192;
    rng r = {c->seed + 9};
    const shape s = {40, n_cols, 11, 0, true, FILL_PLAIN};
    data d;
    set_params(c, "tiles %u bytes apart", (unsigned)stride);
    data_open(&d, c->ops, type, &s, &r);
    c->ops->matmul_packed[type](&d.m);
    const uint64_t panel = n_tiles * stride;
    uint8_t *w = guarded_new(3 * panel, 0);
    float *y = guarded_new(s.n_tokens * d.m.y_stride * sizeof *y, 4);
    memset(w, 0xff, 3 * panel);
    memset(y, 0xa5, s.n_tokens * d.m.y_stride * sizeof *y);
    for (uint32_t p = 0; p < 3; p++)
        for (uint32_t i = 0; i < n_tiles; i++) {
            const uint32_t cols = n_cols - i * YK_TILE_COLS < YK_TILE_COLS ? n_cols - i * YK_TILE_COLS : YK_TILE_COLS;
            memcpy(w + p * panel + i * stride, d.w + p * d.m.panel_bytes + i * tile, yk_tile_bytes(type, cols));
        }
    yk_matmul_packed m = d.m;
    m.w = w, m.panel_bytes = panel, m.tile_stride = stride, m.y = y;
    c->ops->matmul_packed[type](&m);
    compare_bits(c, "tile stride", y, d.y, s.n_tokens * d.m.y_stride * sizeof *y);
    guarded_free(w);
    guarded_free(y);
    data_close(&d);
}

void check_matmul_packed(check *c, yk_type type)
{
    static const uint32_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 31};
    static const uint32_t blocks[] = {1, 2, 7, 8, 9, 17, 90};
    static const uint32_t floats[] = {1, 3, 16, 33, 96, 172, 256, 257, 2880};
    static const uint32_t rows[] = {1, 15, 16, 17, 40};
    const yk_type_traits *t = yk_type_get(type);
    rng r = {c->seed};
    const size_t n_sizes = t->block_elems == 1 ? sizeof floats / sizeof *floats : sizeof blocks / sizeof *blocks;
    for (size_t k = 0; k < n_sizes; k++) {
        uint32_t cols = t->block_elems == 1 ? floats[k] : blocks[k] * t->block_elems;
        if (cols > 2880)
            cols = 11 * t->block_elems;
        for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
            const shape s = {rows[(i + k) % 5],       cols, tokens[i], rng_below(&r, 2) * 9, rng_below(&r, 2) != 0,
                             (fill)((i + k) % FILL_N)};
            if (cols < 1024 || i % 3 == k % 3)
                check_shape(c, type, &s, &r);
        }
    }
    check_shape(c, type, &(shape){20, 512, MAX_TOKENS - 2, 0, true, FILL_PLAIN}, &r);
    check_nan(c, type);
    check_nan_scale(c, type);
    check_tile_stride(c, type);
}

/* ---- bench ---- */

typedef struct packed_arg {
    data d;
    const yk_ops *ops;
    yk_type type;
} packed_arg;

static void call_matmul_packed(void *arg)
{
    const packed_arg *a = arg;
    a->ops->matmul_packed[a->type](&a->d.m);
}

static void bench_tokens(const yk_ops *ops, yk_type type, uint32_t n_rows, uint32_t n_tokens)
{
    const shape s = {n_rows, 4096, n_tokens, 0, false, FILL_PLAIN};
    static packed_arg a;
    static check c = {.slot = "bench"};
    rng r = {1};
    char what[64], name[32];
    a.ops = c.ops = ops;
    a.type = type;
    running = &c;
    data_open(&a.d, ops, type, &s, &r);
    snprintf(name, sizeof name, "matmul_packed-%s", yk_type_get(type)->name);
    snprintf(what, sizeof what, "%ux%u tokens %u", n_rows, s.n_cols, n_tokens);
    const double weights = (double)n_rows * s.n_cols;
    bench_run(name, what, call_matmul_packed, &a, (double)yk_packed_bytes(type, n_rows, s.n_cols), 2 * weights * n_tokens);
    data_close(&a.d);
}

/* ---- share of the read rate: weights larger than the caches, read and multiplied by turns ---- */

enum { SHARE_BYTES = 192 << 20, SHARE_ROUNDS = 5, HUGE_PAGE = 2 << 20 };
typedef uint64_t line64 __attribute__((vector_size(64)));

/* Sum of all words, with the kernels' prefetch. */
static uint64_t read_all(const uint8_t *p, size_t n)
{
    line64 a = {0}, b = {0};
    for (size_t i = 0; i + 128 <= n; i += 128) {
        __builtin_prefetch(p + i + 2048);
        __builtin_prefetch(p + i + 2048 + 64);
        __builtin_prefetch(p + i + 16384, 0, 2);
        __builtin_prefetch(p + i + 16384 + 64, 0, 2);
        a += *(const line64 *)(const void *)(p + i);
        b += *(const line64 *)(const void *)(p + i + 64);
    }
    a += b;
    return a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void bench_share(const yk_ops *ops, yk_type type)
{
    static const uint32_t tokens[] = {1, 2, 4, 8, 16};
    static check c = {.slot = "bench"};
    rng r = {1};
    data d;
    double rate[1 + 5][SHARE_ROUNDS];
    volatile uint64_t sink = 0;
    c.ops = ops;
    running = &c;
    data_open(&d, ops, type, &(shape){16, 4096, 16, 0, false, FILL_PLAIN}, &r);
    const uint64_t panel = yk_panel_bytes(type, 4096);
    const uint32_t n_panels = (uint32_t)(SHARE_BYTES / panel), n_rows = n_panels * YK_TILE_ROWS;
    const uint64_t bytes = n_panels * panel;
    uint8_t *map = mmap(NULL, SHARE_BYTES + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    float *y = malloc((size_t)n_rows * 16 * sizeof *y);
    if (map != MAP_FAILED && y) {
        uint8_t *w = (uint8_t *)(((uintptr_t)map + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
        madvise(w, SHARE_BYTES, MADV_HUGEPAGE);
        memset(y, 0, (size_t)n_rows * 16 * sizeof *y);
        for (uint32_t p = 0; p < n_panels; p++)
            memcpy(w + p * panel, d.w, panel);
        yk_matmul_packed m = d.m;
        m.w = w, m.panel_bytes = panel, m.n_rows = n_rows, m.y = y, m.y_stride = n_rows;
        for (int i = 0; i < SHARE_ROUNDS; i++) {
            for (int k = 0; k < 6; k++) {
                const uint64_t start = yk_now_ns();
                if (k == 0)
                    sink = sink + read_all(w, bytes);
                m.n_tokens = tokens[k ? k - 1 : 0];
                if (k)
                    ops->matmul_packed[type](&m);
                rate[k][i] = (double)bytes / (double)(yk_now_ns() - start);
            }
        }
        for (int k = 0; k < 6; k++)
            qsort(rate[k], SHARE_ROUNDS, sizeof(double), by_size);
        const double read = rate[0][SHARE_ROUNDS / 2];
        printf("matmul_packed-%-6s from memory: read %5.1f GB/s; share of it with", yk_type_get(type)->name, read);
        for (int k = 1; k < 6; k++)
            printf(" %2u tokens %3.0f %%%s", tokens[k - 1], 100 * rate[k][SHARE_ROUNDS / 2] / read, k < 5 ? "," : "\n");
    }
    if (map != MAP_FAILED)
        munmap(map, SHARE_BYTES + HUGE_PAGE);
    free(y);
    data_close(&d);
}

void bench_matmul_packed(const yk_ops *ops, yk_type type)
{
    bench_tokens(ops, type, 4096, 1);
    bench_tokens(ops, type, 4096, 4);
    bench_tokens(ops, type, 256, 8);
    bench_tokens(ops, type, 256, 64);
    bench_share(ops, type);
}
