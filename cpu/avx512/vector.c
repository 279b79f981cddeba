/* vector.c - vector operations by AVX-512. Contracts: docs/kernels/{quantise,rope,glu,route}.md. quantise, to_f16 and
 * rope give the bits of plain C; glu and the router's weights use the exponential of exp.h. Norms and sums stay plain C,
 * which compilers make as fast (docs/SPEED.md). */
#include <immintrin.h>
#include <math.h>

#include "cpu/ops.h"

/* The rest of this file, and nothing else, is compiled for this level; ops.c asks the CPU before it uses it. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni")
#endif

#include "cpu/avx512/exp.h"
#include "cpu/vector.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16 };

/* Mask of the next lanes when `left` elements are left. */
INLINE __mmask16 lanes_of(uint32_t left)
{
    return (__mmask16)(left < LANES ? (1u << left) - 1 : 0xffffu);
}

/* The order of docs/kernels/matmul.md: halves are added until one is left. */
INLINE float sum_lanes(__m512 v)
{
    v = _mm512_add_ps(v, _mm512_shuffle_f32x4(v, v, 0x4e));
    v = _mm512_add_ps(v, _mm512_shuffle_f32x4(v, v, 0xb1));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4e));
    return _mm512_cvtss_f32(_mm512_add_ps(v, _mm512_permute_ps(v, 0xb1)));
}

/* ---- quantise, to_f16 ---- */

/* Largest of the 16 unsigned integers of each of eight registers. */
INLINE __m256i max_of_each(__m512i *m)
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        m[i] = _mm512_max_epu32(_mm512_shuffle_i64x2(m[2 * i], m[2 * i + 1], 0x44),
                                _mm512_shuffle_i64x2(m[2 * i], m[2 * i + 1], 0xee));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) /* one 128-bit lane for each of four */
        m[i] = _mm512_max_epu32(_mm512_shuffle_i64x2(m[2 * i], m[2 * i + 1], 0x88),
                                _mm512_shuffle_i64x2(m[2 * i], m[2 * i + 1], 0xdd));
    __m512i v = _mm512_max_epu32(_mm512_unpacklo_epi32(m[0], m[1]), _mm512_unpackhi_epi32(m[0], m[1]));
    v = _mm512_max_epu32(v, _mm512_shuffle_epi32(v, _MM_PERM_BADC));
    return _mm512_castsi512_si256(
        _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0), v));
}

/* Eight blocks. */
INLINE void quantise_group(const float *x, int8_t *q, float *scale, int16_t *sum)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    _Alignas(32) float inv[YK_Q_GROUP];
    __m512i m[YK_Q_GROUP];
#pragma GCC unroll 8
    for (int b = 0; b < YK_Q_GROUP; b++)
        m[b] = _mm512_max_epu32(_mm512_and_si512(_mm512_loadu_si512(x + YK_Q_BLOCK * b), magnitude),
                                _mm512_and_si512(_mm512_loadu_si512(x + YK_Q_BLOCK * b + LANES), magnitude));
    const __m256i top = max_of_each(m);
    const __mmask8 small = _mm256_cmplt_epu32_mask(top, _mm256_set1_epi32(0x0f800000)),
                   odd = _mm256_cmpge_epu32_mask(top, _mm256_set1_epi32(0x7f800000));
    const __m256 max = _mm256_castsi256_ps(top), by = _mm256_set1_ps(127.0f);
    const __m256 s = _mm256_mask_blend_ps(odd, _mm256_div_ps(max, by), _mm256_set1_ps(NAN));
    _mm256_storeu_ps(scale, _mm256_maskz_mov_ps((__mmask8)~small, s));
    _mm256_store_ps(inv, _mm256_maskz_div_ps((__mmask8) ~(small | odd), by, max));
    /* Away from zero at halves: truncate(v + (1/2 - 2^-25) with the sign of v) is the same for all |v| < 2^22. Infinity
     * and NaN times zero convert to 0x80000000, whose low byte is zero. */
    const __m512i sign = _mm512_set1_epi32((int32_t)0x80000000),
                  below_half = _mm512_castps_si512(_mm512_set1_ps(0x0.ffffffp-1f));
#pragma GCC unroll 16
    for (int i = 0; i < 2 * YK_Q_GROUP; i++) {
        const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + LANES * i), _mm512_set1_ps(inv[i / 2]));
        const __m512i add = _mm512_ternarylogic_epi32(_mm512_castps_si512(v), sign, below_half, 0xea);
        const __m512i n = _mm512_cvttps_epi32(_mm512_add_ps(v, _mm512_castsi512_ps(add)));
        _mm_storeu_si128((__m128i *)(void *)(q + LANES * i), _mm512_cvtepi32_epi8(n));
    }
    __m512i d[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        d[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), _mm512_loadu_si512(q + 64 * i));
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(d[0], d[1]), _mm512_unpackhi_epi32(d[0], d[1])),
                  b = _mm512_add_epi32(_mm512_unpacklo_epi32(d[2], d[3]), _mm512_unpackhi_epi32(d[2], d[3]));
    const __m512i lanes =
        _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)); /* lane l: half l of registers 0 to 3 */
    const __m512i in_order =
        _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), lanes);
    _mm256_storeu_si256((__m256i *)(void *)sum, _mm512_cvtepi32_epi16(in_order));
}

static void quantise_q8_avx512(const float *x, uint32_t n, yk_q8 *dst, uint32_t row)
{
    yk_quantise_row(x, n, dst, row, quantise_group);
}

static void to_f16_avx512(const float *x, uint32_t n, uint16_t *y)
{
    for (uint32_t i = 0; i < n; i += LANES) {
        const __mmask16 m = lanes_of(n - i);
        _mm256_mask_storeu_epi16(
            y + i, m, _mm512_cvtps_ph(_mm512_maskz_loadu_ps(m, x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
}

/* ---- rope ---- */

/* Pairs beside each other: eight in a register. */
INLINE void rope_adjacent(float *x, uint32_t n_rot, const float *cs)
{
    for (uint32_t i = 0; i < n_rot; i += LANES) {
        const __mmask16 m = lanes_of(n_rot - i);
        const __m512 v = _mm512_maskz_loadu_ps(m, x + i), f = _mm512_maskz_loadu_ps(m, cs + i);
        const __m512 c = _mm512_mul_ps(v, _mm512_moveldup_ps(f)),
                     s = _mm512_mul_ps(_mm512_permute_ps(v, 0xb1), _mm512_movehdup_ps(f));
        _mm512_mask_storeu_ps(x + i, m, _mm512_mask_sub_ps(_mm512_add_ps(s, c), 0x5555, c, s));
    }
}

static void rope_avx512(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot, const float *cs, yk_rope_pairing pairing)
{
    if (pairing == YK_ROPE_ADJACENT) {
        for (uint32_t h = 0; h < n_heads; h++)
            rope_adjacent(x + (size_t)h * head_dim, n_rot, cs);
        return;
    }
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
                  odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const uint32_t n_pairs = n_rot / 2;
    for (uint32_t i = 0; i < n_pairs; i += LANES) {
        const uint32_t left = n_pairs - i;
        const __mmask16 m = lanes_of(left);
        const __m512 f0 = _mm512_maskz_loadu_ps(lanes_of(2 * left), cs + 2 * i),
                     f1 =
                         left > 8 ? _mm512_maskz_loadu_ps(lanes_of(2 * left - LANES), cs + 2 * i + LANES) : _mm512_setzero_ps();
        const __m512 c = _mm512_permutex2var_ps(f0, even, f1), s = _mm512_permutex2var_ps(f0, odd, f1);
        float *at = x + i;
        for (uint32_t h = 0; h < n_heads; h++, at += head_dim) {
            const __m512 a = _mm512_maskz_loadu_ps(m, at), b = _mm512_maskz_loadu_ps(m, at + n_pairs);
            _mm512_mask_storeu_ps(at, m, _mm512_sub_ps(_mm512_mul_ps(a, c), _mm512_mul_ps(b, s)));
            _mm512_mask_storeu_ps(at + n_pairs, m, _mm512_add_ps(_mm512_mul_ps(a, s), _mm512_mul_ps(b, c)));
        }
    }
}

/* ---- glu ---- */

static void glu_avx512(const float *gate, const float *up, uint32_t n, yk_glu kind, float *y)
{
    const __m512 one = _mm512_set1_ps(1.0f), seven = _mm512_set1_ps(7.0f);
    const bool clamped = kind == YK_GLU_CLAMPED;
    const __m512 factor = _mm512_set1_ps(clamped ? -1.702f : -1.0f);
    for (uint32_t i = 0; i < n; i += LANES) {
        const __mmask16 m = lanes_of(n - i);
        __m512 g = _mm512_maskz_loadu_ps(m, gate + i), u = _mm512_maskz_loadu_ps(m, up + i);
        if (clamped) { /* the second operand comes through when one is NaN */
            g = _mm512_min_ps(seven, g);
            u = _mm512_max_ps(_mm512_set1_ps(-7.0f), _mm512_min_ps(seven, u));
            u = _mm512_add_ps(u, one);
        }
        const __m512 d = _mm512_add_ps(one, yk_avx512_exp(_mm512_mul_ps(factor, g)));
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(_mm512_div_ps(g, d), u));
    }
}

/* ---- route ---- */

enum { MOST = 1024 }; /* experts; more are left to the level below */

typedef void (*route_fn)(const float *logits, uint32_t n, uint32_t k, yk_router kind, bool renorm, uint32_t *ids,
                         float *weights);
static route_fn route_below;

/* Integers in the order of the logits: both zeros are 0, NaN is lowest. GONE is lower still. */
#define GONE INT32_MIN
INLINE __m512i keys_of(__m512 v)
{
    const __m512i b = _mm512_castps_si512(v);
    const __m512i k =
        _mm512_mask_xor_epi32(b, _mm512_cmplt_epi32_mask(b, _mm512_setzero_si512()), b, _mm512_set1_epi32(INT32_MAX));
    const __m512i z = _mm512_mask_mov_epi32(k, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_EQ_OQ), _mm512_setzero_si512());
    return _mm512_mask_mov_epi32(z, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(GONE + 1));
}

/* The k best, each search over all keys; the first of equal ones is taken. */
static void choose(const float *logits, uint32_t n, uint32_t k, uint32_t *ids)
{
    _Alignas(64) int32_t keys[MOST];
    for (uint32_t i = 0; i < n; i += LANES) {
        const __mmask16 m = lanes_of(n - i);
        _mm512_store_si512(keys + i,
                           _mm512_mask_mov_epi32(_mm512_set1_epi32(GONE), m, keys_of(_mm512_maskz_loadu_ps(m, logits + i))));
    }
    for (uint32_t j = 0; j < k; j++) {
        __m512i best = _mm512_load_si512(keys);
        for (uint32_t i = LANES; i < n; i += LANES)
            best = _mm512_max_epi32(best, _mm512_load_si512(keys + i));
        best = _mm512_set1_epi32(_mm512_reduce_max_epi32(best));
        uint32_t i = 0, found;
        while (!(found = _mm512_cmpeq_epi32_mask(best, _mm512_load_si512(keys + i))))
            i += LANES;
        ids[j] = i + (uint32_t)__builtin_ctz(found);
        keys[ids[j]] = GONE;
    }
}

static void route_avx512(const float *logits, uint32_t n, uint32_t k, yk_router kind, bool renorm, uint32_t *ids,
                         float *weights)
{
    if (n > MOST) {
        route_below(logits, n, k, kind, renorm, ids, weights);
        return;
    }
    choose(logits, n, k, ids);
    const __m512 max = _mm512_set1_ps(logits[ids[0]]);
    for (uint32_t j = 0; j < k; j++)
        weights[j] = logits[ids[j]];
    for (uint32_t j = 0; j < k; j += LANES) {
        const __mmask16 m = lanes_of(k - j);
        _mm512_mask_storeu_ps(weights + j, m, yk_avx512_exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, weights + j), max)));
    }
    float total = 0.0f;
    if (kind == YK_ROUTER_TOPK_SOFTMAX) {
        total = yk_route_sum(weights, k);
    } else {
        __m512 acc = _mm512_setzero_ps();
        for (uint32_t i = 0; i < n; i += LANES) {
            const __mmask16 m = lanes_of(n - i);
            acc = _mm512_mask_add_ps(acc, m, acc, yk_avx512_exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, logits + i), max)));
        }
        total = sum_lanes(acc);
    }
    yk_route_weights(weights, k, total, renorm);
}

void yk_ops_fill_avx512_vector(yk_ops *ops)
{
    ops->quantise = quantise_q8_avx512;
    ops->to_f16 = to_f16_avx512;
    ops->rope = rope_avx512;
    ops->glu = glu_avx512;
    route_below = ops->route;
    ops->route = route_avx512;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
