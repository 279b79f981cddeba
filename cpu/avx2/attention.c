/* attention.c - attention of one kv head by AVX2, with the bits of cpu/avx512/attention.c. Contract and order of sums: docs/kernels/attention.md.
 *
 * As there: a row is one query head of one token, all rows of a call meet a block while it lies in L1, keys are turned once so that lanes are positions in
 * pairs of dimensions (four registers for 16 positions), values have lanes of dimensions. With 16 registers, two or three rows share a step of scores (12
 * sums) and up to six one of values. What is done to a row does not depend on the other rows. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "cpu/ops.h"

/* The rest of this file, and nothing else, is compiled for this level; ops.c asks the CPU before it uses it. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "cpu/avx2/exp.h"

#define INLINE static inline __attribute__((always_inline))
#define ALONE  static __attribute__((noinline)) /* registers of its own */

#include "cpu/attention.h"

enum {
    LANES = 8,
    REGS = BLOCK / 4, /* of turned keys: four positions, two dimensions */
    SCORES = 3,       /* rows of a step */
    VALUES = 6
};

/* All ones in the first n lanes. */
INLINE __m256i lanes_of(uint32_t n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n < LANES ? n : LANES)), lane);
}

/* ---- scores ---- */

/* 16 bytes each of two rows. */
INLINE __m256i two(const uint8_t *a, const uint8_t *b)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)a)),
                                   _mm_loadu_si128((const __m128i *)(const void *)b), 1);
}

/* 16 bytes of each of 16 positions, dimensions in pairs, to out[pair][positions]: four pairs of f16 or two of f32. */
INLINE void turn_f16(const uint8_t *k, size_t pitch, float *out)
{
#pragma GCC unroll 2
    for (size_t h = 0; h < 2; h++, k += 8 * pitch) {
        __m256i r[4], t[4];
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++)
            r[i] = two(k + i * pitch, k + (i + 4) * pitch);
        t[0] = _mm256_unpacklo_epi32(r[0], r[1]), t[1] = _mm256_unpacklo_epi32(r[2], r[3]);
        t[2] = _mm256_unpackhi_epi32(r[0], r[1]), t[3] = _mm256_unpackhi_epi32(r[2], r[3]);
        r[0] = _mm256_unpacklo_epi64(t[0], t[1]), r[1] = _mm256_unpackhi_epi64(t[0], t[1]);
        r[2] = _mm256_unpacklo_epi64(t[2], t[3]), r[3] = _mm256_unpackhi_epi64(t[2], t[3]);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            _mm256_store_ps(out + 32 * i + 16 * h, _mm256_cvtph_ps(_mm256_castsi256_si128(r[i])));
            _mm256_store_ps(out + 32 * i + 16 * h + LANES, _mm256_cvtph_ps(_mm256_extracti128_si256(r[i], 1)));
        }
    }
}

INLINE void turn_f32(const uint8_t *k, size_t pitch, float *out)
{
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++, k += 4 * pitch) {
        const __m256i a = two(k, k + 2 * pitch), b = two(k + pitch, k + 3 * pitch);
        _mm256_store_si256((__m256i *)(void *)(out + LANES * i), _mm256_unpacklo_epi64(a, b));
        _mm256_store_si256((__m256i *)(void *)(out + LANES * i + 32), _mm256_unpackhi_epi64(a, b));
    }
}

/* Dimensions d0 .. d0 + n - 1 of a block of keys to p->k; missing ones are zeros. */
ALONE void turn(pass *p, const void *block, uint32_t d0, uint32_t n, const ahead *f)
{
    const bool f16 = p->a->kv_f16;
    const uint32_t elem = f16 ? 2 : 4, step = 16 / elem, full = n / step, left = n % step;
    const size_t pitch = p->a->kv_stride * elem;
    const uint8_t *k = (const uint8_t *)block + d0 * elem;
    float *out = p->k[0][0];
    const char *near = f->near;
    const uint32_t each = full ? (f->lines + full - 1) / full : 0;
    for (uint32_t i = 0; i < full; i++, k += 16, out += BLOCK * step) {
        if (f16)
            turn_f16(k, pitch, out);
        else
            turn_f32(k, pitch, out);
        for (uint32_t l = 0; l < each; l++, near += 64)
            _mm_prefetch(near, _MM_HINT_T0);
    }
    if (left) {
        uint8_t padded[BLOCK][16] = {{0}};
        for (uint32_t i = 0; i < BLOCK; i++)
            memcpy(padded[i], k + i * pitch, left * elem);
        if (f16)
            turn_f16(padded[0], 16, out);
        else
            turn_f32(padded[0], 16, out);
    }
}

INLINE __m256 pair(const float *q)
{
    double v;
    memcpy(&v, q, sizeof v);
    return _mm256_castpd_ps(_mm256_set1_pd(v));
}

/* acc[row][positions 0-3, 4-7, 8-11, 12-15] += keys x queries of n rows from row r on; n_dims dimensions from d0 on. */
typedef void (*score_fn)(const pass *p, uint32_t r, uint32_t d0, uint32_t n_dims, ahead *f, __m256 (*acc)[REGS]);

INLINE void score_rows(int n, const pass *p, uint32_t r, uint32_t d0, uint32_t n_dims, ahead *f, __m256 (*acc)[REGS])
{
    const float *q[SCORES];
    __m256 s[SCORES][REGS];
#pragma GCC unroll 3
    for (int t = 0; t < n; t++) {
        q[t] = p->rows[r + (uint32_t)t].q + d0;
#pragma GCC unroll 4
        for (int i = 0; i < REGS; i++)
            s[t][i] = acc[t][i];
    }
    const char *far = f->far;
    const uint32_t n_pairs = (n_dims + 1) / 2;
    for (uint32_t j = 0; j < n_pairs; j++, far += f->far_line) {
        const float *k = p->k[j][0];
        __m256 v[SCORES];
        _mm_prefetch(far, _MM_HINT_T1);
#pragma GCC unroll 3
        for (int t = 0; t < n; t++)
            v[t] = j < n_dims / 2 ? pair(q[t] + 2 * j) : pair((const float[2]){q[t][2 * j], 0.0f});
#pragma GCC unroll 4
        for (int i = 0; i < REGS; i++) {
            const __m256 x = _mm256_load_ps(k + LANES * i);
#pragma GCC unroll 3
            for (int t = 0; t < n; t++)
                s[t][i] = _mm256_fmadd_ps(x, v[t], s[t][i]);
        }
    }
#pragma GCC unroll 3
    for (int t = 0; t < n; t++)
#pragma GCC unroll 4
        for (int i = 0; i < REGS; i++)
            acc[t][i] = s[t][i];
}

/* Even and odd dimensions of 8 positions added, times scale; minus infinity where the row does not see. */
INLINE __m256 scores_of(const row *r, uint32_t at, __m256 a, __m256 b, float scale)
{
    const __m256 both = _mm256_hadd_ps(a, b); /* positions 0 1 4 5 2 3 6 7 */
    const __m256 s =
        _mm256_mul_ps(_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(both), 0xd8)), _mm256_set1_ps(scale));
    if (r->first <= at && r->end >= at + LANES)
        return s;
    const __m256i below_end = lanes_of(r->end > at ? r->end - at : 0),
                  below_first = lanes_of(r->first > at ? r->first - at : 0);
    return _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), s, _mm256_castsi256_ps(_mm256_andnot_si256(below_first, below_end)));
}

static const score_fn score_fns[SCORES + 1];

ALONE void score_block(pass *p, uint32_t block)
{
    const yk_attention *a = p->a;
    ahead f = ahead_of(p, block, false);
    for (uint32_t r = 0, n; r < p->n; r += n) {
        n = p->n - r == SCORES + 1 ? 2 : p->n - r < SCORES ? p->n - r : SCORES;
        __m256 acc[SCORES][REGS];
        for (uint32_t t = 0; t < n; t++)
            for (int i = 0; i < REGS; i++)
                acc[t][i] = _mm256_setzero_ps();
        for (uint32_t d0 = 0; d0 < a->head_dim; d0 += PIECE) {
            const uint32_t dims = a->head_dim - d0 < PIECE ? a->head_dim - d0 : PIECE;
            if (r == 0 || a->head_dim > PIECE)
                turn(p, a->k_blocks[block], d0, dims, &f);
            score_fns[n](p, r, d0, dims, &f, acc);
            f.far_line = 0;
        }
        for (uint32_t t = 0; t < n; t++) {
            float *s = p->s[r + t] + block * BLOCK % SPAN;
            for (uint32_t i = 0; i < 2; i++)
                _mm256_store_ps(s + LANES * i, scores_of(&p->rows[r + t], block * BLOCK + LANES * i, acc[t][2 * i],
                                                         acc[t][2 * i + 1], a->scale));
        }
    }
}

/* ---- weights ---- */

INLINE float halves_added(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_permute_ps(s, 0x4e));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

INLINE __m256 largest(__m256 v)
{
    v = _mm256_max_ps(_mm256_permute2f128_ps(v, v, 1), v);
    v = _mm256_max_ps(_mm256_permute_ps(v, 0x4e), v);
    return _mm256_max_ps(_mm256_permute_ps(v, 0xb1), v);
}

static float exp_of(float x)
{
    return _mm256_cvtss_f32(yk_avx2_exp(_mm256_set1_ps(x)));
}

static void scale_out(const row *r, uint32_t n, float by, bool divide)
{
    const __m256 f = _mm256_set1_ps(by);
    for (uint32_t i = 0; i < n; i += LANES) {
        const __m256i m = lanes_of(n - i);
        const __m256 v = _mm256_maskload_ps(r->out + i, m);
        _mm256_maskstore_ps(r->out + i, m, divide ? _mm256_div_ps(v, f) : _mm256_mul_ps(v, f));
    }
}

ALONE void weigh(pass *p, uint32_t i, uint32_t lo, uint32_t hi)
{
    row *r = &p->rows[i];
    const uint32_t n = 2 * ((hi - lo / BLOCK * BLOCK + BLOCK - 1) / BLOCK);
    float *s = p->s[i] + lo / BLOCK * BLOCK % SPAN;
    __m256 max = _mm256_set1_ps(r->max), total[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (uint32_t j = 0; j < n; j++) /* a NaN leaves the maximum as it was and shows in its weight */
        max = _mm256_max_ps(_mm256_load_ps(s + LANES * j), max);
    max = largest(max);
    for (uint32_t j = 0; j < n; j += 2) {
#pragma GCC unroll 2
        for (uint32_t h = 0; h < 2; h++) {
            const __m256 e = yk_avx2_exp(_mm256_sub_ps(_mm256_load_ps(s + LANES * (j + h)), max));
            _mm256_store_ps(s + LANES * (j + h), e);
            total[h] = _mm256_add_ps(total[h], e);
        }
    }
    const float c = _mm256_cvtss_f32(yk_avx2_exp(_mm256_sub_ps(_mm256_set1_ps(r->max), max)));
    r->max = _mm256_cvtss_f32(max);
    r->total = r->total * c + halves_added(_mm256_add_ps(total[0], total[1]));
    if (!(c == 1.0f))
        scale_out(r, p->a->head_dim, c, false);
}

/* ---- values ---- */

/* Register i; with `left` below 8 lanes only so many elements are read. */
INLINE __m256 load_value(bool f16, uint32_t left, const uint8_t *v, int i)
{
    if (!f16)
        return left < LANES ? _mm256_maskload_ps((const float *)(const void *)v + LANES * i, lanes_of(left))
                            : _mm256_loadu_ps((const float *)(const void *)v + LANES * i);
    if (left >= LANES)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(v + 16 * i)));
    uint16_t some[LANES] = {0};
    memcpy(some, v + 16 * i, 2 * left);
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)some));
}

/* n rows x c registers; a single one may have fewer than 8 dimensions. out and v: from the first dimension on. */
INLINE void value_strip(bool f16, int n, int c, float *const *out, const uint8_t *v, const float *w, const part *at, ahead *f)
{
    const uint32_t left = c == 1 ? at->n_dims : LANES;
    const __m256i m = lanes_of(left);
    const size_t pitch = at->pitch * (f16 ? 2 : 4), bytes = (size_t)c * LANES * (f16 ? 2 : 4);
    const char *near = f->near, *far = f->far;
    const size_t near_by = f->near_line ? bytes : 0, far_by = f->far_line ? bytes : 0;
    __m256 acc[VALUES][8];
#pragma GCC unroll 6
    for (int t = 0; t < n; t++)
#pragma GCC unroll 8
        for (int i = 0; i < c; i++)
            acc[t][i] = _mm256_maskload_ps(out[t] + LANES * i, m);
    for (const float *last = w + at->n_pos; w < last; w++, v += pitch) {
        __m256 b[VALUES];
#pragma GCC unroll 4
        for (size_t l = 0; l < bytes; l += 64) {
            _mm_prefetch(near + l, _MM_HINT_T0);
            _mm_prefetch(far + l, _MM_HINT_T1);
        }
        near += near_by, far += far_by;
#pragma GCC unroll 6
        for (int t = 0; t < n; t++)
            b[t] = _mm256_broadcast_ss(w + t * S_ROW);
#pragma GCC unroll 8
        for (int i = 0; i < c; i++) {
            const __m256 x = load_value(f16, left, v, i);
#pragma GCC unroll 6
            for (int t = 0; t < n; t++)
                acc[t][i] = _mm256_fmadd_ps(b[t], x, acc[t][i]);
        }
    }
    f->near = near, f->far = far;
#pragma GCC unroll 6
    for (int t = 0; t < n; t++)
#pragma GCC unroll 8
        for (int i = 0; i < c; i++)
            _mm256_maskstore_ps(out[t] + LANES * i, m, acc[t][i]);
}

INLINE void value_rows(bool f16, int n, const pass *p, const part *all, ahead *f)
{
    const uint32_t wide = n == 1 ? 8 : n <= 3 ? 4 : 2;
    const float *w = p->s[all->r] + all->pos % SPAN;
    const uint8_t *v = all->v;
    float *out[VALUES];
    part at = *all; /* n_dims: what is left */
#pragma GCC unroll 6
    for (int t = 0; t < n; t++)
        out[t] = p->rows[all->r + (uint32_t)t].out + all->d0;
    while (at.n_dims) {
        const uint32_t step = at.n_dims >= LANES * wide ? LANES * wide : at.n_dims >= LANES ? LANES : at.n_dims;
        if (step == LANES * wide)
            value_strip(f16, n, (int)wide, out, v, w, &at, f);
        else
            value_strip(f16, n, 1, out, v, w, &at, f);
        at.n_dims -= step;
        v += step * (f16 ? 2 : 4);
#pragma GCC unroll 6
        for (int t = 0; t < n; t++)
            out[t] += step;
    }
}

#define SCORES_OF(n)                                                                                                           \
    static void score_##n(const pass *p, uint32_t r, uint32_t d0, uint32_t n_dims, ahead *f, __m256(*acc)[REGS])               \
    {                                                                                                                          \
        score_rows(n, p, r, d0, n_dims, f, acc);                                                                               \
    }
#define VALUES_OF(n)                                                                                                           \
    static void value_##n(const pass *p, const part *at, ahead *f)                                                             \
    {                                                                                                                          \
        value_rows(false, n, p, at, f);                                                                                        \
    }                                                                                                                          \
    static void value_f16_##n(const pass *p, const part *at, ahead *f)                                                         \
    {                                                                                                                          \
        value_rows(true, n, p, at, f);                                                                                         \
    }

SCORES_OF(1)
SCORES_OF(2)
SCORES_OF(3)
VALUES_OF(1)
VALUES_OF(2)
VALUES_OF(3)
VALUES_OF(4)
VALUES_OF(5)
VALUES_OF(6)

static const score_fn score_fns[SCORES + 1] = {NULL, score_1, score_2, score_3};
static const value_fn value_fns[VALUES + 1] = {NULL, value_1, value_2, value_3, value_4, value_5, value_6};
static const value_fn value_f16_fns[VALUES + 1] = {NULL,        value_f16_1, value_f16_2, value_f16_3,
                                                   value_f16_4, value_f16_5, value_f16_6};

/* n_dims elements of 16 positions to p->v, for more rows than two groups. */
ALONE void convert(pass *p, const uint16_t *block, uint32_t d0, uint32_t n_dims, const ahead *f)
{
    const uint32_t full = n_dims / LANES * LANES;
    const char *near = f->near;
    const uint32_t each = (f->lines + BLOCK - 1) / BLOCK;
    for (uint32_t j = 0; j < BLOCK; j++) {
        const uint8_t *v = (const uint8_t *)(block + j * p->a->kv_stride + d0);
        for (uint32_t d = 0; d < full; d += LANES)
            _mm256_store_ps(p->v[j] + d, load_value(true, LANES, v + 2 * d, 0));
        if (full < n_dims)
            _mm256_store_ps(p->v[j] + full, load_value(true, n_dims - full, v + 2 * full, 0));
        for (uint32_t l = 0; l < each; l++, near += 64)
            _mm_prefetch(near, _MM_HINT_T0);
    }
}

ALONE void value_block(pass *p, uint32_t block)
{
    const yk_attention *a = p->a;
    const uint32_t at = block * BLOCK;
    const bool converted = a->kv_f16 && p->n > 2 * VALUES, direct = a->kv_f16 && !converted;
    const void *v = a->v_blocks[block];
    ahead f = ahead_of(p, block, true);
    for (uint32_t d0 = 0; d0 < a->head_dim; d0 += PIECE) {
        const uint32_t dims = a->head_dim - d0 < PIECE ? a->head_dim - d0 : PIECE;
        if (converted) {
            convert(p, v, d0, dims, &f);
            f.near_line = 0;
        }
        for (uint32_t r = 0; r < p->n;) {
            /* Rows that see the same part of the block go together. What a row does not see may be anything: it is not
             * multiplied. */
            uint32_t lo, hi, n = 1, lo1, hi1;
            range_of(&p->rows[r], at, &lo, &hi);
            const uint32_t left = p->n - r,
                           most = left > VALUES && left <= VALUES + 2 ? 4 : VALUES; /* 7 and 8: two of about 4 */
            for (; n < most && r + n < p->n; n++) {
                range_of(&p->rows[r + n], at, &lo1, &hi1);
                if (lo1 != lo || hi1 != hi)
                    break;
            }
            if (lo < hi) {
                part x = {.r = r, .d0 = d0, .n_dims = dims, .pos = at + lo, .n_pos = hi - lo, .v = p->v[lo], .pitch = V_ROW};
                if (!converted) {
                    x.v = (const uint8_t *)v + (lo * a->kv_stride + d0) * (direct ? 2 : 4);
                    x.pitch = a->kv_stride;
                }
                (direct ? value_f16_fns : value_fns)[n](p, &x, &f);
            }
            f.near_line = f.far_line = 0;
            r += n;
        }
    }
}

static void attention_avx2(const yk_attention *a)
{
    static const level here = {score_block, weigh, value_block, scale_out, exp_of};
    attention_rows(a, &here);
}

void yk_ops_fill_avx2_attention(yk_ops *ops)
{
    ops->attention = attention_avx2;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
