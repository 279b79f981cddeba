/* attention.c - attention of one kv head by AVX-512. Contract and order of sums: docs/kernels/attention.md.
 *
 * A row is one query head of one token; all rows of a call meet a block of keys or values while it lies in L1, so K and
 * V are read once. Keys: a block of 16 positions is turned once so that lanes are positions, in pairs of dimensions: two
 * registers hold dimensions d and d + 1 of 16 positions, an 8-byte broadcast of the query meets both, and nothing is
 * added across lanes until the end. Values: lanes are dimensions. The softmax is online over spans of 256 positions, so
 * scores stay small. What is done to a row does not depend on the other rows. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "cpu/ops.h"

/* The rest of this file, and nothing else, is compiled for this level; ops.c asks the CPU before it uses it. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl")
#endif

#include "cpu/avx512/exp.h"

#define INLINE static inline __attribute__((always_inline))
#define ALONE  static __attribute__((noinline)) /* registers of its own */

enum { GROUP = 8 }; /* rows whose sums are in registers */

#include "cpu/attention.h"

/* Mask of a register when n elements are left. */
INLINE __mmask16 lanes_of(uint32_t n)
{
    return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffffu);
}

/* ---- scores ---- */

/* n of 16 rows of a square of 16 bytes each, in lanes of one register; the elements of the mask, or all when it is 0. */
INLINE __m512i lanes(const uint8_t *p, size_t stride_bytes, __mmask16 m)
{
    __m128i r[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        const void *at = p + i * stride_bytes;
        r[i] = m ? _mm_maskz_loadu_epi8(m, at) : _mm_loadu_si128(at);
    }
    const __m512i v = _mm512_inserti32x4(_mm512_castsi128_si512(r[0]), r[1], 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(v, r[2], 2), r[3], 3);
}

/* 16 bytes of each of 16 positions, dimensions in pairs, to out[pair][positions 0-7, 8-15]: four pairs of f16 or two of f32. */
INLINE void turn_f16(const uint8_t *k, size_t pitch, __mmask16 m, float *out)
{
    __m512i r[4], t[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++)
        r[i] = lanes(k + i * pitch, 4 * pitch, m);
    t[0] = _mm512_unpacklo_epi32(r[0], r[1]), t[1] = _mm512_unpacklo_epi32(r[2], r[3]);
    t[2] = _mm512_unpackhi_epi32(r[0], r[1]), t[3] = _mm512_unpackhi_epi32(r[2], r[3]);
    r[0] = _mm512_unpacklo_epi64(t[0], t[1]), r[1] = _mm512_unpackhi_epi64(t[0], t[1]);
    r[2] = _mm512_unpacklo_epi64(t[2], t[3]), r[3] = _mm512_unpackhi_epi64(t[2], t[3]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        _mm512_store_ps(out + 32 * i, _mm512_cvtph_ps(_mm512_castsi512_si256(r[i])));
        _mm512_store_ps(out + 32 * i + 16, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(r[i], 1)));
    }
}

INLINE void turn_f32(const uint8_t *k, size_t pitch, __mmask16 m, float *out)
{
#pragma GCC unroll 2
    for (size_t i = 0; i < 2; i++) {
        const __m512i a = lanes(k + 8 * i * pitch, 2 * pitch, m), b = lanes(k + (8 * i + 1) * pitch, 2 * pitch, m);
        _mm512_store_si512(out + 16 * i, _mm512_unpacklo_epi64(a, b));
        _mm512_store_si512(out + 16 * i + 32, _mm512_unpackhi_epi64(a, b));
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
            turn_f16(k, pitch, 0, out);
        else
            turn_f32(k, pitch, 0, out);
        for (uint32_t l = 0; l < each; l++, near += 64)
            _mm_prefetch(near, _MM_HINT_T0);
    }
    if (left) {
        const __mmask16 m = (__mmask16)((1u << left * elem) - 1);
        if (f16)
            turn_f16(k, pitch, m, out);
        else
            turn_f32(k, pitch, m, out);
    }
}

INLINE __m512 pair(const float *q)
{
    double v;
    memcpy(&v, q, sizeof v);
    return _mm512_castpd_ps(_mm512_set1_pd(v));
}

/* acc[row][positions 0-7, 8-15] += keys x queries of n rows from row r on; n_dims dimensions from d0 on. */
typedef void (*score_fn)(const pass *p, uint32_t r, uint32_t d0, uint32_t n_dims, ahead *f, __m512 (*acc)[2]);

INLINE void score_rows(int n, const pass *p, uint32_t r, uint32_t d0, uint32_t n_dims, ahead *f, __m512 (*acc)[2])
{
    const float *q[GROUP];
    __m512 s[GROUP][2];
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        q[t] = p->rows[r + (uint32_t)t].q + d0, s[t][0] = acc[t][0], s[t][1] = acc[t][1];
    const char *far = f->far;
    for (uint32_t i = 0; i < n_dims / 2; i++, far += f->far_line) {
        _mm_prefetch(far, _MM_HINT_T1);
        const __m512 k0 = _mm512_load_ps(p->k[i][0]), k1 = _mm512_load_ps(p->k[i][1]);
#pragma GCC unroll 8
        for (int t = 0; t < n; t++) {
            const __m512 v = pair(q[t] + 2 * i);
            s[t][0] = _mm512_fmadd_ps(k0, v, s[t][0]);
            s[t][1] = _mm512_fmadd_ps(k1, v, s[t][1]);
        }
    }
    if (n_dims % 2) {
        const uint32_t i = n_dims / 2;
        const __m512 k0 = _mm512_load_ps(p->k[i][0]), k1 = _mm512_load_ps(p->k[i][1]);
#pragma GCC unroll 8
        for (int t = 0; t < n; t++) {
            const __m512 v = _mm512_maskz_mov_ps(0x5555, _mm512_set1_ps(q[t][2 * i]));
            s[t][0] = _mm512_fmadd_ps(k0, v, s[t][0]);
            s[t][1] = _mm512_fmadd_ps(k1, v, s[t][1]);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        acc[t][0] = s[t][0], acc[t][1] = s[t][1];
}

/* Lanes first .. end - 1 of 16 positions from `at` on. */
INLINE __mmask16 seen_lanes(const row *r, uint32_t at)
{
    if (r->first <= at && r->end >= at + BLOCK)
        return 0xffff;
    const uint32_t lo = r->first > at ? r->first - at : 0, hi = r->end > at ? r->end - at : 0;
    const uint32_t below_lo = lo < BLOCK ? (1u << lo) - 1 : 0xffff, below_hi = hi < BLOCK ? (1u << hi) - 1 : 0xffff;
    return (__mmask16)(below_hi & ~below_lo);
}

static const score_fn score_fns[GROUP + 1];

/* Scores of all rows with one block of keys; positions a row does not see get minus infinity. */
ALONE void score_block(pass *p, uint32_t block)
{
    const yk_attention *a = p->a;
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    ahead f = ahead_of(p, block, false);
    for (uint32_t r = 0; r < p->n; r += GROUP) {
        const uint32_t n = p->n - r < GROUP ? p->n - r : GROUP;
        __m512 acc[GROUP][2];
        for (uint32_t t = 0; t < n; t++)
            acc[t][0] = acc[t][1] = _mm512_setzero_ps();
        for (uint32_t d0 = 0; d0 < a->head_dim; d0 += PIECE) {
            const uint32_t dims = a->head_dim - d0 < PIECE ? a->head_dim - d0 : PIECE;
            if (r == 0 || a->head_dim > PIECE)
                turn(p, a->k_blocks[block], d0, dims, &f);
            score_fns[n](p, r, d0, dims, &f, acc);
            f.far_line = 0;
        }
        for (uint32_t t = 0; t < n; t++) {
            const __m512 s = _mm512_add_ps(_mm512_permutex2var_ps(acc[t][0], even, acc[t][1]),
                                           _mm512_permutex2var_ps(acc[t][0], odd, acc[t][1]));
            const __m512 out = _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), seen_lanes(&p->rows[r + t], block * BLOCK), s,
                                                  _mm512_set1_ps(a->scale));
            _mm512_store_ps(p->s[r + t] + block * BLOCK % SPAN, out);
        }
    }
}

/* ---- weights ---- */

INLINE __m512 halves_added(__m512 v, bool max)
{
    __m512 o = _mm512_shuffle_f32x4(v, v, 0x4e);
    v = max ? _mm512_max_ps(o, v) : _mm512_add_ps(v, o);
    o = _mm512_shuffle_f32x4(v, v, 0xb1);
    v = max ? _mm512_max_ps(o, v) : _mm512_add_ps(v, o);
    o = _mm512_permute_ps(v, 0x4e);
    v = max ? _mm512_max_ps(o, v) : _mm512_add_ps(v, o);
    o = _mm512_permute_ps(v, 0xb1);
    return max ? _mm512_max_ps(o, v) : _mm512_add_ps(v, o);
}

/* out *= by, or out /= by */
static void scale_out(const row *r, uint32_t n, float by, bool divide)
{
    const __m512 f = _mm512_set1_ps(by);
    for (uint32_t i = 0; i < n; i += 16) {
        const __mmask16 m = lanes_of(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(m, r->out + i);
        _mm512_mask_storeu_ps(r->out + i, m, divide ? _mm512_maskz_div_ps(m, v, f) : _mm512_mul_ps(v, f));
    }
}

/* Scores of positions lo .. hi - 1, which are of one span, become weights. */
ALONE void weigh(pass *p, uint32_t i, uint32_t lo, uint32_t hi)
{
    row *r = &p->rows[i];
    const uint32_t n = (hi - lo / BLOCK * BLOCK + BLOCK - 1) / BLOCK;
    float *s = p->s[i] + lo / BLOCK * BLOCK % SPAN;
    __m512 max = _mm512_set1_ps(r->max), total = _mm512_setzero_ps();
    for (uint32_t j = 0; j < n; j++) /* a NaN leaves the maximum as it was and shows in its weight */
        max = _mm512_max_ps(_mm512_load_ps(s + BLOCK * j), max);
    max = halves_added(max, true);
    for (uint32_t j = 0; j < n; j++) {
        const __m512 e = yk_avx512_exp(_mm512_sub_ps(_mm512_load_ps(s + BLOCK * j), max));
        _mm512_store_ps(s + BLOCK * j, e);
        total = _mm512_add_ps(total, e);
    }
    const float c = _mm512_cvtss_f32(yk_avx512_exp(_mm512_sub_ps(_mm512_set1_ps(r->max), max)));
    r->max = _mm512_cvtss_f32(max);
    r->total = r->total * c + _mm512_cvtss_f32(halves_added(total, false));
    if (!(c == 1.0f))
        scale_out(r, p->a->head_dim, c, false);
}

/* ---- values ---- */

INLINE __m512 load_value(bool f16, __mmask16 m, const void *v, int i)
{
    if (f16)
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, (const uint16_t *)v + 16 * i));
    return _mm512_maskz_loadu_ps(m, (const float *)v + 16 * i);
}

/* n rows x c registers; m: lanes of the last register. out and v: from the first dimension on. */
INLINE void value_strip(bool f16, int n, int c, float *const *out, const uint8_t *v, const float *w, const part *at, ahead *f)
{
    const __mmask16 m = c == 1 ? lanes_of(at->n_dims) : 0xffff;
    const size_t pitch = at->pitch * (f16 ? 2 : 4);
    const char *near = f->near, *far = f->far;
    __m512 acc[GROUP][4];
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
#pragma GCC unroll 4
        for (int i = 0; i < c; i++)
            acc[t][i] = _mm512_maskz_loadu_ps(m, out[t] + 16 * i);
    for (const float *last = w + at->n_pos; w < last; w++, v += pitch) {
        __m512 x[4];
#pragma GCC unroll 4
        for (int i = 0; i < c; i++) {
            if (i % 2 || !f16)
                _mm_prefetch(near, _MM_HINT_T0), near += f->near_line;
            if (i % 2)
                _mm_prefetch(far, _MM_HINT_T1), far += f->far_line;
            x[i] = load_value(f16, m, v, i);
        }
#pragma GCC unroll 8
        for (int t = 0; t < n; t++) {
            const __m512 b = _mm512_set1_ps(w[t * S_ROW]);
#pragma GCC unroll 4
            for (int i = 0; i < c; i++)
                acc[t][i] = _mm512_fmadd_ps(b, x[i], acc[t][i]);
        }
    }
    f->near = near, f->far = far;
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
#pragma GCC unroll 4
        for (int i = 0; i < c; i++)
            _mm512_mask_storeu_ps(out[t] + 16 * i, m, acc[t][i]);
}

INLINE void value_rows(bool f16, int n, const pass *p, const part *all, ahead *f)
{
    const uint32_t wide = n <= 4 ? 4 : 2;
    const float *w = p->s[all->r] + all->pos % SPAN;
    const uint8_t *v = all->v;
    float *out[GROUP];
    part at = *all; /* n_dims: what is left */
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        out[t] = p->rows[at.r + (uint32_t)t].out + at.d0;
    while (at.n_dims) {
        const uint32_t step = at.n_dims >= 16 * wide ? 16 * wide : at.n_dims >= 16 ? 16 : at.n_dims;
        if (step == 16 * wide)
            value_strip(f16, n, (int)wide, out, v, w, &at, f);
        else
            value_strip(f16, n, 1, out, v, w, &at, f);
        at.n_dims -= step;
        v += step * (f16 ? 2 : 4);
#pragma GCC unroll 8
        for (int t = 0; t < n; t++)
            out[t] += step;
    }
}

#define ROWS_OF(n)                                                                                                             \
    static void score_##n(const pass *p, uint32_t r, uint32_t d0, uint32_t n_dims, ahead *f, __m512(*acc)[2])                  \
    {                                                                                                                          \
        score_rows(n, p, r, d0, n_dims, f, acc);                                                                               \
    }                                                                                                                          \
    static void value_##n(const pass *p, const part *at, ahead *f)                                                             \
    {                                                                                                                          \
        value_rows(false, n, p, at, f);                                                                                        \
    }                                                                                                                          \
    static void value_f16_##n(const pass *p, const part *at, ahead *f)                                                         \
    {                                                                                                                          \
        value_rows(true, n, p, at, f);                                                                                         \
    }

ROWS_OF(1)
ROWS_OF(2)
ROWS_OF(3)
ROWS_OF(4)
ROWS_OF(5)
ROWS_OF(6)
ROWS_OF(7)
ROWS_OF(8)

static const score_fn score_fns[GROUP + 1] = {NULL, score_1, score_2, score_3, score_4, score_5, score_6, score_7, score_8};
static const value_fn value_fns[GROUP + 1] = {NULL, value_1, value_2, value_3, value_4, value_5, value_6, value_7, value_8};
static const value_fn value_f16_fns[GROUP + 1] = {NULL,        value_f16_1, value_f16_2, value_f16_3, value_f16_4,
                                                  value_f16_5, value_f16_6, value_f16_7, value_f16_8};

/* n_dims elements of 16 positions to p->v, for more rows than one group. */
ALONE void convert(pass *p, const uint16_t *block, uint32_t d0, uint32_t n_dims, const ahead *f)
{
    const uint32_t full = n_dims & ~15u;
    const __mmask16 m = (__mmask16)((1u << (n_dims - full)) - 1);
    const char *near = f->near;
    const uint32_t each = (f->lines + BLOCK - 1) / BLOCK;
    for (uint32_t j = 0; j < BLOCK; j++) {
        const uint16_t *v = block + j * p->a->kv_stride + d0;
        for (uint32_t d = 0; d < full; d += 16)
            _mm512_store_ps(p->v[j] + d, load_value(true, 0xffff, v + d, 0));
        if (m)
            _mm512_store_ps(p->v[j] + full, load_value(true, m, v + full, 0));
        for (uint32_t l = 0; l < each; l++, near += 64)
            _mm_prefetch(near, _MM_HINT_T0);
    }
}

ALONE void value_block(pass *p, uint32_t block)
{
    const yk_attention *a = p->a;
    const uint32_t at = block * BLOCK;
    const bool converted = a->kv_f16 && p->n > GROUP, direct = a->kv_f16 && !converted;
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
            for (; n < GROUP && r + n < p->n; n++) {
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

static float exp_of(float x)
{
    return _mm512_cvtss_f32(yk_avx512_exp(_mm512_set1_ps(x)));
}

static void attention_avx512(const yk_attention *a)
{
    static const level here = {score_block, weigh, value_block, scale_out, exp_of};
    attention_rows(a, &here);
}

void yk_ops_fill_avx512_attention(yk_ops *ops)
{
    ops->attention = attention_avx512;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
