/* packed.c - checks of matmul_packed: the file's weights in double against the kernels' result on the packed form. */
#include <math.h>
#include <stdlib.h>

#include "cpu/pack.h"
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

void bench_matmul_packed(const yk_ops *ops, yk_type type)
{
    bench_tokens(ops, type, 4096, 1);
    bench_tokens(ops, type, 4096, 4);
    bench_tokens(ops, type, 256, 8);
    bench_tokens(ops, type, 256, 64);
}
