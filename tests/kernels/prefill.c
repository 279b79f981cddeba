/* prefill.c - matmul_packed for many tokens at levels above AVX-512: the same bits as AVX-512 gives token by token. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/ops.h"
#include "cpu/pack.h"

enum { MAX_TOKENS = 512, MAX_ROWS = 300, GAP = 3 };

/* File blocks of random bytes with f16 scales of sane size at these bytes. */
static const struct form {
    yk_type type;
    uint32_t bytes, elems, n_scales, scale[2];
} forms[] = {
    {YK_TYPE_Q4_0, 18, 32, 1, {0}},     {YK_TYPE_Q4_1, 20, 32, 2, {0, 2}},   {YK_TYPE_Q5_0, 22, 32, 1, {0}},
    {YK_TYPE_Q5_1, 24, 32, 2, {0, 2}},  {YK_TYPE_Q8_0, 34, 32, 1, {0}},      {YK_TYPE_Q2_K, 84, 256, 2, {80, 82}},
    {YK_TYPE_Q3_K, 110, 256, 1, {108}}, {YK_TYPE_Q4_K, 144, 256, 2, {0, 2}}, {YK_TYPE_Q5_K, 176, 256, 2, {0, 2}},
    {YK_TYPE_Q6_K, 210, 256, 1, {208}}, {YK_TYPE_IQ4_NL, 18, 32, 1, {0}},    {YK_TYPE_IQ4_XS, 136, 256, 1, {0}},
    {YK_TYPE_MXFP4, 17, 32, 0, {0}},
};

static uint32_t state = 1;

static uint32_t next(void)
{
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

typedef struct data {
    uint8_t *file, *w;
    float *x, *want, *got;
    yk_q8 q8;
    uint32_t rows[MAX_TOKENS];
} data;

static void *take(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return p;
}

static void open_data(data *d, const struct form *f, uint32_t n_rows, uint32_t n_cols, const yk_ops *ops)
{
    const uint64_t n_blocks = (uint64_t)n_rows * (n_cols / f->elems);
    d->file = take(n_blocks * f->bytes);
    for (uint64_t i = 0; i < n_blocks * f->bytes; i++)
        d->file[i] = (uint8_t)next();
    for (uint64_t i = 0; i < n_blocks; i++)
        for (uint32_t k = 0; k < f->n_scales; k++) {
            const uint16_t half = (uint16_t)(0x2000 + next() % 0x1000 + (next() & 0x8000));
            memcpy(d->file + i * f->bytes + f->scale[k], &half, sizeof half);
        }
    if (f->type == YK_TYPE_MXFP4) /* exponents: mostly sane, some that need denormals, some of NaN */
        for (uint64_t i = 0; i < n_blocks; i++)
            d->file[i * f->bytes] = (uint8_t)(i % 61 == 7 ? next() % 3 : i % 4001 == 11 ? 255 : 110 + next() % 20);
    d->w = take(yk_packed_bytes(f->type, n_rows, n_cols));
    yk_pack(f->type, d->file, (uint64_t)(n_cols / f->elems) * f->bytes, n_rows, 0, n_cols, d->w);
    d->x = take((size_t)MAX_TOKENS * n_cols * sizeof *d->x);
    d->want = take((size_t)MAX_TOKENS * (n_rows + GAP) * sizeof *d->want);
    d->got = take((size_t)MAX_TOKENS * (n_rows + GAP) * sizeof *d->got);
    d->q8 = (yk_q8){.q = take((size_t)MAX_TOKENS * n_cols),
                    .scale = take((size_t)MAX_TOKENS * n_cols / 8),
                    .sum = take((size_t)MAX_TOKENS * n_cols / 8),
                    .n_blocks = n_cols / 32};
    for (uint32_t t = 0; t < MAX_TOKENS; t++) {
        float *x = d->x + (size_t)t * n_cols;
        for (uint32_t i = 0; i < n_cols; i++)
            x[i] = (float)((int)(next() % 2001) - 1000) * (next() % 97 ? 1e-3f : 1.0f) *
                   (t % 5 == 4 && i / 32 % 3 == 1 ? 0.0f : 1.0f);
        ops->quantise(x, n_cols, &d->q8, t);
        d->rows[t] = next() % MAX_TOKENS;
    }
}

static void close_data(data *d)
{
    free(d->file);
    free(d->w);
    free(d->x);
    free(d->want);
    free(d->got);
    free(d->q8.q);
    free(d->q8.scale);
    free(d->q8.sum);
}

/* One call of the level for n tokens against single tokens of AVX-512, among them the gap behind each token's rows. */
static int compare(const yk_ops *ops, const struct form *f, data *d, const yk_matmul_packed *m)
{
    const size_t bytes = m->n_tokens * m->y_stride * sizeof(float);
    yk_matmul_packed one = *m;
    memset(d->want, 0xa5, bytes);
    memset(d->got, 0xa5, bytes);
    one.n_tokens = 1;
    for (uint32_t t = 0; t < m->n_tokens; t++) {
        const uint32_t row = m->rows ? m->rows[t] : t;
        one.rows = &row;
        one.y = d->want + t * m->y_stride;
        yk_ops_get(YK_ISA_AVX512)->matmul_packed[f->type](&one);
    }
    one = *m;
    one.y = d->got;
    ops->matmul_packed[f->type](&one);
    for (size_t i = 0; i < bytes; i++)
        if (((uint8_t *)d->got)[i] != ((uint8_t *)d->want)[i]) {
            fprintf(stderr, "FAIL %s [%s] rows %u cols %u tokens %u%s: byte %zu of %zu (row %zu of token %zu) differs\n",
                    yk_type_get(f->type)->name, yk_isa_name(ops->isa), m->n_rows, m->n_cols, m->n_tokens,
                    m->rows ? " chosen" : "", i, bytes, i / 4 % m->y_stride, i / 4 / m->y_stride);
            return 1;
        }
    return 0;
}

static int check_form(const yk_ops *ops, const struct form *f, int *n_run)
{
    static const uint32_t tokens[] = {128, 129, 143, 200, 257, MAX_TOKENS}, rows[] = {64, 80, 65, 79, MAX_ROWS};
    const uint32_t cols[] = {256, 768, f->elems == 32 ? 288 : 512, f->elems == 32 ? 96 : 256};
    int bad = 0;
    for (uint32_t k = 0; k < 4; k++) {
        data d;
        open_data(&d, f, MAX_ROWS, cols[k], yk_ops_get(YK_ISA_AVX512));
        for (uint32_t i = 0; i < 76; i++) {
            const uint32_t n = i < 70 ? i + 1 : tokens[i - 70], n_rows = rows[(i + k) % 5];
            const yk_matmul_packed m = {.w = d.w,
                                        .panel_bytes = yk_panel_bytes(f->type, cols[k]),
                                        .n_rows = n_rows,
                                        .n_cols = cols[k],
                                        .xq = &d.q8,
                                        .rows = (i + k) % 2 ? d.rows : NULL,
                                        .n_tokens = n,
                                        .y_stride = n_rows + GAP};
            if (i % 4 != k && i < 70)
                continue;
            bad += compare(ops, f, &d, &m);
            ++*n_run;
        }
        close_data(&d);
    }
    return bad;
}

int main(void)
{
    int bad = 0, n_run = 0;
    const yk_isa best = yk_isa_best();
    if (best <= YK_ISA_AVX512) {
        printf("skipped: the best level here is %s, and none above avx512 can be compared with it\n", yk_isa_name(best));
        return 77;
    }
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        bad += check_form(yk_ops_get(best), forms + i, &n_run);
    printf("%d comparisons at level %s, %d failed\n", n_run, yk_isa_name(best), bad);
    return bad || n_run == 0;
}
