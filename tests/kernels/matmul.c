/* matmul.c - checks of dequant and matmul for every weight type. */
#include <math.h>
#include <stdlib.h>

#include "tests/kernels/check.h"

/* ---- dequant ---- */

void check_dequant(check *c, yk_type type)
{
    const yk_type_traits *t = yk_type_get(type);
    rng r = {c->seed};
    static const uint32_t counts[] = {1, 2, 7, 8, 9, 15, 16, 17, 33};
    for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
        const uint64_t n = (uint64_t)counts[k] * t->block_elems;
        set_params(c, "%u blocks", counts[k]);
        /* Weights end where the allocation's guard begins, at an odd address: nothing may be read as aligned words. */
        uint8_t *w = guarded_new((size_t)counts[k] * t->block_bytes, t->block_elems > 1 ? 1 : t->block_bytes);
        float *y = guarded_new(n * sizeof *y, 4), *want = guarded_new(n * sizeof *want, 0);
        random_weights(&r, type, w, n);
        for (uint64_t i = 0; i < n; i++) {
            double scaled, min;
            weight_at(type, w, i, &scaled, &min);
            /* Scale times integer and the minimum are exact in double; each is rounded once, then their difference. */
            const float a = (float)scaled;
            want[i] = a - (float)min;
        }
        c->ops->dequant[type](w, n, y);
        compare_bits(c, "values", y, want, n * sizeof *y);
        guarded_free(w);
        guarded_free(y);
        guarded_free(want);
    }
}

/* ---- matmul ---- */

typedef struct shape {
    uint32_t n_rows, n_cols, n_tokens;
    bool chosen_rows; /* tokens use activation rows in another order, some twice */
    fill how;
} shape;

/* What a case needs: n_x activation rows, weights with a gap between rows, outputs with a gap between tokens. */
typedef struct data {
    yk_matmul m;
    yk_q8 q8;
    uint8_t *w;
    float *x, *y;
    uint32_t rows[64];
    uint32_t n_x;
} data;

static void data_open(data *d, const yk_ops *ops, yk_type type, const shape *s, rng *r)
{
    const yk_type_traits *t = yk_type_get(type);
    const size_t gap = t->quantised ? 3 : 8, x_gap = t->quantised ? 0 : 5;
    uint64_t row_bytes = 0;
    yk_type_row_bytes(type, s->n_cols, &row_bytes);
    d->n_x = s->n_tokens + 2;
    d->w = guarded_new((row_bytes + gap) * s->n_rows, t->quantised ? 1 : 4);
    d->x = guarded_new(d->n_x * (s->n_cols + x_gap) * sizeof *d->x, 4);
    d->y = guarded_new(s->n_tokens * (size_t)(s->n_rows + 3) * sizeof *d->y, 4);
    for (uint32_t i = 0; i < s->n_rows; i++)
        random_weights(r, type, d->w + i * (row_bytes + gap), s->n_cols);
    for (uint32_t i = 0; i < d->n_x; i++)
        fill_f32(r, s->how, d->x + i * (s->n_cols + x_gap), s->n_cols);
    for (uint32_t i = 0; i < s->n_tokens; i++)
        d->rows[i] = rng_below(r, d->n_x);
    d->q8 = (yk_q8){.n_blocks = (s->n_cols + 31) / 32 + 1}; /* one block more than needed: a wider buffer is allowed */
    d->q8.q = guarded_new((size_t)d->n_x * d->q8.n_blocks * 32, 0);
    d->q8.scale = guarded_new((size_t)d->n_x * d->q8.n_blocks * sizeof(float), 4);
    d->q8.sum = guarded_new((size_t)d->n_x * d->q8.n_blocks * 2 * sizeof(int16_t), 2);
    for (uint32_t i = 0; i < d->n_x; i++)
        ops->quantise(d->x + i * (s->n_cols + x_gap), s->n_cols, &d->q8, i);
    d->m = (yk_matmul){.w = d->w,
                       .row_bytes = row_bytes + gap,
                       .n_rows = s->n_rows,
                       .n_cols = s->n_cols,
                       .n_tokens = s->n_tokens,
                       .rows = s->chosen_rows ? d->rows : NULL,
                       .y = d->y,
                       .y_stride = s->n_rows + 3};
    if (t->quantised) {
        d->m.xq = &d->q8;
    } else {
        d->m.x = d->x;
        d->m.x_stride = s->n_cols + x_gap;
    }
}

static void data_close(data *d)
{
    guarded_free(d->w);
    guarded_free(d->x);
    guarded_free(d->y);
    guarded_free(d->q8.q);
    guarded_free(d->q8.scale);
    guarded_free(d->q8.sum);
}

static void reference(const data *d, yk_type type, uint32_t t, uint32_t row, double *sum, double *size)
{
    const yk_matmul *m = &d->m;
    const uint32_t at = m->rows ? m->rows[t] : t;
    *sum = *size = 0;
    for (uint32_t i = 0; i < m->n_cols; i++) {
        double scaled, min, x;
        const double w = weight_at(type, m->w + row * m->row_bytes, i, &scaled, &min);
        if (yk_type_get(type)->quantised)
            x = d->q8.q[(size_t)at * d->q8.n_blocks * 32 + i] * (double)d->q8.scale[(size_t)at * d->q8.n_blocks + i / 32];
        else
            x = (double)m->x[at * m->x_stride + i];
        *sum += w * x;
        /* A product below 2^-126 is rounded to a multiple of 2^-149, whatever its size. */
        *size += (fabs(scaled) + fabs(min)) * fabs(x) + 0x1p-130;
    }
}

/* The same bits when rows and tokens are computed one by one, and in two uneven parts. */
static void check_splits(check *c, yk_type type, const data *d)
{
    const yk_matmul *m = &d->m;
    const size_t n = (size_t)m->n_tokens * m->y_stride;
    uint32_t rows[64];
    float *y = guarded_new(n * sizeof *y, 4);
    for (int how = 0; how < 2; how++) {
        const uint32_t row_step = how ? (m->n_rows + 2) / 3 : 1, token_step = how ? (2 * m->n_tokens + 2) / 3 : 1;
        memset(y, 0xa5, n * sizeof *y);
        for (uint32_t t = 0; t < m->n_tokens; t += token_step) {
            for (uint32_t r = 0; r < m->n_rows; r += row_step) {
                yk_matmul part = *m;
                part.n_tokens = m->n_tokens - t < token_step ? m->n_tokens - t : token_step;
                part.n_rows = m->n_rows - r < row_step ? m->n_rows - r : row_step;
                for (uint32_t i = 0; i < part.n_tokens; i++)
                    rows[i] = m->rows ? m->rows[t + i] : t + i;
                part.rows = rows;
                part.w = m->w + r * m->row_bytes;
                part.y = y + t * m->y_stride + r;
                c->ops->matmul[type](&part);
            }
        }
        /* The gaps between tokens hold the guard byte in both. */
        compare_bits(c, how ? "split in parts" : "one row and token at a time", y, d->y, n * sizeof *y);
    }
    guarded_free(y);
}

static void check_shape(check *c, yk_type type, const shape *s, rng *r)
{
    const yk_tolerance *tol = yk_tolerance_find("matmul", yk_type_get(type)->name);
    data d;
    set_params(c, "rows %u cols %u tokens %u%s %s", s->n_rows, s->n_cols, s->n_tokens, s->chosen_rows ? " chosen" : "",
               fill_name(s->how));
    data_open(&d, c->ops, type, s, r);
    c->ops->matmul[type](&d.m);
    double *want = malloc(2 * s->n_rows * sizeof *want);
    if (!want) {
        fail_check(c, "out of memory");
        data_close(&d);
        return;
    }
    for (uint32_t t = 0; t < s->n_tokens; t++) {
        for (uint32_t i = 0; i < s->n_rows; i++)
            reference(&d, type, t, i, want + i, want + s->n_rows + i);
        const float *y = d.y + t * d.m.y_stride;
        compare_f32(c, tol, y, want, want + s->n_rows, s->n_rows);
        for (uint32_t i = s->n_rows; i < d.m.y_stride; i++)
            if (yk_f32_bits(y[i]) != 0xa5a5a5a5u)
                fail_check(c, "token %u: the gap behind its outputs was written", t);
    }
    free(want);
    check_splits(c, type, &d);
    data_close(&d);
}

/* A row of activations with a NaN must show in every output. */
static void check_nan(check *c, yk_type type)
{
    rng r = {c->seed + 7};
    const shape s = {3, 512, 2, false, FILL_PLAIN};
    data d;
    set_params(c, "a NaN in token 1");
    data_open(&d, c->ops, type, &s, &r);
    float *x = d.x + (d.m.x ? d.m.x_stride : s.n_cols);
    x[300] = NAN;
    c->ops->quantise(x, s.n_cols, &d.q8, 1);
    c->ops->matmul[type](&d.m);
    c->n_compared += 6;
    for (uint32_t i = 0; i < 3; i++) {
        if (is_nan_bits(d.y[i]))
            fail_check(c, "row %u of token 0 is NaN", i);
        if (!is_nan_bits(d.y[d.m.y_stride + i]))
            fail_check(c, "row %u of token 1 is %g", i, (double)d.y[d.m.y_stride + i]);
    }
    data_close(&d);
}

void check_matmul(check *c, yk_type type)
{
    static const uint32_t tokens[] = {1, 2, 3, 4, 5, 7, 8, 9, 17};
    static const uint32_t blocks[] = {1, 2, 7, 8, 9, 16, 17, 136};
    static const uint32_t floats[] = {1, 3, 8, 15, 16, 17, 31, 172, 256, 4352};
    const yk_type_traits *t = yk_type_get(type);
    rng r = {c->seed};
    const size_t n_sizes = t->block_elems == 1 ? sizeof floats / sizeof *floats : sizeof blocks / sizeof *blocks;
    for (size_t k = 0; k < n_sizes; k++) {
        uint32_t cols = t->block_elems == 1 ? floats[k] : blocks[k] * t->block_elems;
        if (cols > 4352)
            cols = 17 * t->block_elems; /* 136 blocks are for the types of 32 */
        for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
            const shape s = {1 + rng_below(&r, 5), cols, tokens[i], rng_below(&r, 2) != 0, (fill)((i + k) % FILL_N)};
            if (cols < 4096 || tokens[i] < 8)
                check_shape(c, type, &s, &r);
        }
    }
    check_nan(c, type);
}

/* ---- bench ---- */

static void call_matmul(void *arg)
{
    const data *d = ((void **)arg)[0];
    const yk_ops *ops = ((void **)arg)[1];
    ops->matmul[*(yk_type *)((void **)arg)[2]](&d->m);
}

static void bench_tokens(const yk_ops *ops, yk_type type, uint32_t n_rows, uint32_t n_tokens)
{
    const shape s = {n_rows, 4096, n_tokens, false, FILL_PLAIN};
    rng r = {1};
    data d;
    static check c = {.slot = "bench"};
    char what[64], name[32];
    void *arg[3] = {&d, (void *)(uintptr_t)ops, &type};
    c.ops = ops;
    running = &c;
    data_open(&d, ops, type, &s, &r);
    snprintf(name, sizeof name, "matmul-%s", yk_type_get(type)->name);
    snprintf(what, sizeof what, "%ux%u tokens %u", n_rows, s.n_cols, n_tokens);
    const double weights = (double)n_rows * s.n_cols;
    bench_run(name, what, call_matmul, arg, (double)d.m.row_bytes * n_rows, 2 * weights * n_tokens);
    data_close(&d);
}

void bench_matmul(const yk_ops *ops, yk_type type)
{
    bench_tokens(ops, type, 4096, 1);
    bench_tokens(ops, type, 256, 62);
}

typedef struct dequant_arg {
    const yk_ops *ops;
    yk_type type;
    uint8_t *w;
    float *y;
    uint64_t n;
} dequant_arg;

static void call_dequant(void *arg)
{
    const dequant_arg *a = arg;
    a->ops->dequant[a->type](a->w, a->n, a->y);
}

void bench_dequant(const yk_ops *ops, yk_type type)
{
    dequant_arg a = {.ops = ops, .type = type, .n = 65536};
    uint64_t bytes = 0;
    static check c = {.slot = "bench"};
    rng r = {1};
    char name[32];
    c.ops = ops;
    running = &c;
    yk_type_row_bytes(type, a.n, &bytes);
    a.w = guarded_new(bytes, 0);
    a.y = guarded_new(a.n * sizeof *a.y, 0);
    random_weights(&r, type, a.w, a.n);
    snprintf(name, sizeof name, "dequant-%s", yk_type_get(type)->name);
    bench_run(name, "65536", call_dequant, &a, (double)bytes + 4.0 * (double)a.n, (double)a.n);
    guarded_free(a.w);
    guarded_free(a.y);
}
