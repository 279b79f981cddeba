/* vector.c - vector operations by AVX2, with the bits of cpu/avx512/vector.c. Contracts: docs/kernels/{quantise,rope,glu,route}.md. quantise, to_f16 and
 * rope give the bits of plain C; glu and the router's weights use the exponential of exp.h. Norms and sums stay plain C, which is compiled for this
 * instruction set too. */
#include <immintrin.h>
#include <string.h>

#include "cpu/ops.h"

/* The rest of this file, and nothing else, is compiled for this level; ops.c asks the CPU before it uses it. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "cpu/avx2/exp.h"
#include "cpu/vector.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 8 };

/* All ones in the next lanes when `left` elements are left. */
INLINE __m256i lanes_of(uint32_t left)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(left < LANES ? left : LANES)), lane);
}

/* The order of docs/kernels/matmul.md for 16 sums: halves are added until one is left. */
INLINE float sum_lanes(__m256 a, __m256 b)
{
    const __m256 v = _mm256_add_ps(a, b);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_permute_ps(s, 0x4e));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* ---- quantise, to_f16 ---- */

/* Largest of the 8 integers, which are not negative, of each of eight registers. */
INLINE __m256i max_of_each(__m256i *m)
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) /* a 128-bit lane for each */
        m[i] = _mm256_max_epi32(_mm256_permute2x128_si256(m[2 * i], m[2 * i + 1], 0x20),
                                _mm256_permute2x128_si256(m[2 * i], m[2 * i + 1], 0x31));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        m[i] = _mm256_max_epi32(_mm256_unpacklo_epi32(m[2 * i], m[2 * i + 1]), _mm256_unpackhi_epi32(m[2 * i], m[2 * i + 1]));
    const __m256i v =
        _mm256_max_epi32(_mm256_unpacklo_epi64(m[0], m[1]), _mm256_unpackhi_epi64(m[0], m[1])); /* 0 2 4 6 1 3 5 7 */
    return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* One block: codes, and the sums of the pairs of pairs: four lanes for each half. */
INLINE __m256i quantise_block(const float *x, float inv, int32_t keep, int8_t *q)
{
    /* Away from zero at halves: truncate(v + (1/2 - 2^-25) with the sign of v) is the same for all |v| < 2^22. */
    const __m256 sign = _mm256_set1_ps(-0.0f), below_half = _mm256_set1_ps(0x0.ffffffp-1f);
    const __m256 by = _mm256_set1_ps(inv), all = _mm256_castsi256_ps(_mm256_set1_epi32(keep)); /* infinity times zero is not */
    __m256i n[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m256 v = _mm256_and_ps(all, _mm256_mul_ps(_mm256_loadu_ps(x + LANES * i), by));
        n[i] = _mm256_cvttps_epi32(_mm256_add_ps(v, _mm256_or_ps(_mm256_and_ps(v, sign), below_half)));
    }
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
    const __m256i codes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(void *)q, codes);
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), codes), _mm256_set1_epi16(1));
}

/* Eight blocks. */
INLINE void quantise_group(const float *x, int8_t *q, float *scale, int16_t *sum)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    _Alignas(32) float inv[YK_Q_GROUP];
    _Alignas(32) int32_t keep[YK_Q_GROUP];
    __m256i m[YK_Q_GROUP];
#pragma GCC unroll 8
    for (int b = 0; b < YK_Q_GROUP; b++) {
        m[b] = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            m[b] = _mm256_max_epi32(
                m[b], _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(const void *)(x + YK_Q_BLOCK * b + LANES * i)),
                                       magnitude));
    }
    const __m256i top = max_of_each(m);
    const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x0f800000), top),
                  odd = _mm256_cmpgt_epi32(top, _mm256_set1_epi32(0x7f7fffff));
    const __m256 max = _mm256_castsi256_ps(top), by = _mm256_set1_ps(127.0f),
                 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    const __m256 s = _mm256_blendv_ps(_mm256_div_ps(max, by), nan, _mm256_castsi256_ps(odd));
    const __m256i zero = _mm256_or_si256(small, odd);
    _mm256_storeu_ps(scale, _mm256_andnot_ps(_mm256_castsi256_ps(small), s));
    _mm256_store_ps(inv, _mm256_andnot_ps(_mm256_castsi256_ps(zero), _mm256_div_ps(by, max)));
    _mm256_store_si256((__m256i *)(void *)keep, _mm256_andnot_si256(zero, _mm256_set1_epi32(-1)));
#pragma GCC unroll 2
    for (int g = 0; g < YK_Q_GROUP; g += 4) {
        __m256i d[4];
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++)
            d[b] = quantise_block(x + YK_Q_BLOCK * (g + b), inv[g + b], keep[g + b], q + YK_Q_BLOCK * (g + b));
        /* Lane l of each half: that half of block l. */
        const __m256i v = _mm256_hadd_epi32(_mm256_hadd_epi32(d[0], d[1]), _mm256_hadd_epi32(d[2], d[3]));
        const __m128i first = _mm256_castsi256_si128(v), second = _mm256_extracti128_si256(v, 1);
        _mm_storeu_si128((__m128i *)(void *)(sum + 2 * g),
                         _mm_packs_epi32(_mm_unpacklo_epi32(first, second), _mm_unpackhi_epi32(first, second)));
    }
}

static void quantise_q8_avx2(const float *x, uint32_t n, yk_q8 *dst, uint32_t row)
{
    yk_quantise_row(x, n, dst, row, quantise_group);
}

static void to_f16_avx2(const float *x, uint32_t n, uint16_t *y)
{
    const uint32_t full = n / LANES * LANES;
    for (uint32_t i = 0; i < full; i += LANES)
        _mm_storeu_si128((__m128i *)(void *)(y + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    if (full < n) {
        uint16_t last[LANES];
        _mm_storeu_si128((__m128i *)(void *)last, _mm256_cvtps_ph(_mm256_maskload_ps(x + full, lanes_of(n - full)),
                                                                  _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        memcpy(y + full, last, (n - full) * sizeof *y);
    }
}

/* ---- rope ---- */

/* Pairs beside each other: four in a register. */
INLINE void rope_adjacent(float *x, uint32_t n_rot, const float *cs)
{
    for (uint32_t i = 0; i < n_rot; i += LANES) {
        const __m256i m = lanes_of(n_rot - i);
        const __m256 v = _mm256_maskload_ps(x + i, m), f = _mm256_maskload_ps(cs + i, m);
        const __m256 c = _mm256_mul_ps(v, _mm256_moveldup_ps(f)),
                     s = _mm256_mul_ps(_mm256_permute_ps(v, 0xb1), _mm256_movehdup_ps(f));
        _mm256_maskstore_ps(x + i, m, _mm256_addsub_ps(c, s));
    }
}

/* Even (0x88) or odd (0xdd) elements of two registers. */
#define EVERY_OTHER(a, b, which) _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, which)), 0xd8))

static void rope_avx2(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot, const float *cs, yk_rope_pairing pairing)
{
    if (pairing == YK_ROPE_ADJACENT) {
        for (uint32_t h = 0; h < n_heads; h++)
            rope_adjacent(x + (size_t)h * head_dim, n_rot, cs);
        return;
    }
    const uint32_t n_pairs = n_rot / 2;
    for (uint32_t i = 0; i < n_pairs; i += LANES) {
        const uint32_t left = n_pairs - i;
        const __m256i m = lanes_of(left);
        const __m256 f0 = _mm256_maskload_ps(cs + 2 * i, lanes_of(2 * left)),
                     f1 = left > 4 ? _mm256_maskload_ps(cs + 2 * i + LANES, lanes_of(2 * left - LANES)) : _mm256_setzero_ps();
        const __m256 c = EVERY_OTHER(f0, f1, 0x88), s = EVERY_OTHER(f0, f1, 0xdd);
        float *at = x + i;
        for (uint32_t h = 0; h < n_heads; h++, at += head_dim) {
            const __m256 a = _mm256_maskload_ps(at, m), b = _mm256_maskload_ps(at + n_pairs, m);
            _mm256_maskstore_ps(at, m, _mm256_sub_ps(_mm256_mul_ps(a, c), _mm256_mul_ps(b, s)));
            _mm256_maskstore_ps(at + n_pairs, m, _mm256_add_ps(_mm256_mul_ps(a, s), _mm256_mul_ps(b, c)));
        }
    }
}

/* ---- glu ---- */

static void glu_avx2(const float *gate, const float *up, uint32_t n, yk_glu kind, float *y)
{
    const __m256 one = _mm256_set1_ps(1.0f), seven = _mm256_set1_ps(7.0f);
    const bool clamped = kind == YK_GLU_CLAMPED;
    const __m256 factor = _mm256_set1_ps(clamped ? -1.702f : -1.0f);
    for (uint32_t i = 0; i < n; i += LANES) {
        const __m256i m = lanes_of(n - i);
        __m256 g = _mm256_maskload_ps(gate + i, m), u = _mm256_maskload_ps(up + i, m);
        if (clamped) { /* the second operand comes through when one is NaN */
            g = _mm256_min_ps(seven, g);
            u = _mm256_max_ps(_mm256_set1_ps(-7.0f), _mm256_min_ps(seven, u));
            u = _mm256_add_ps(u, one);
        }
        const __m256 d = _mm256_add_ps(one, yk_avx2_exp(_mm256_mul_ps(factor, g)));
        _mm256_maskstore_ps(y + i, m, _mm256_mul_ps(_mm256_div_ps(g, d), u));
    }
}

/* ---- route ---- */

enum { MOST = 1024 }; /* experts; more are left to the level below */

typedef void (*route_fn)(const float *logits, uint32_t n, uint32_t k, yk_router kind, bool renorm, uint32_t *ids,
                         float *weights);
static route_fn route_below;

INLINE __m256i choice(__m256i a, __m256i b, __m256i mask) /* b where the mask is set */
{
    return _mm256_blendv_epi8(a, b, mask);
}

/* Integers in the order of the logits: both zeros are 0, NaN is lowest. GONE is lower still. */
#define GONE INT32_MIN
INLINE __m256i keys_of(__m256 v)
{
    const __m256i b = _mm256_castps_si256(v), zero = _mm256_setzero_si256();
    const __m256i k = _mm256_xor_si256(b, _mm256_and_si256(_mm256_srai_epi32(b, 31), _mm256_set1_epi32(INT32_MAX)));
    const __m256i z = choice(k, zero, _mm256_castps_si256(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_EQ_OQ)));
    return choice(z, _mm256_set1_epi32(GONE + 1), _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
}

INLINE __m256i load_keys(const int32_t *p)
{
    return _mm256_load_si256((const __m256i *)(const void *)p);
}

/* The k best, each search over all keys; the first of equal ones is taken. */
static void choose(const float *logits, uint32_t n, uint32_t k, uint32_t *ids)
{
    _Alignas(32) int32_t keys[MOST];
    for (uint32_t i = 0; i < n; i += LANES) {
        const __m256i m = lanes_of(n - i);
        _mm256_store_si256((__m256i *)(void *)(keys + i),
                           choice(_mm256_set1_epi32(GONE), keys_of(_mm256_maskload_ps(logits + i, m)), m));
    }
    for (uint32_t j = 0; j < k; j++) {
        __m256i best = load_keys(keys);
        for (uint32_t i = LANES; i < n; i += LANES)
            best = _mm256_max_epi32(best, load_keys(keys + i));
        best = _mm256_max_epi32(best, _mm256_permute2x128_si256(best, best, 1));
        best = _mm256_max_epi32(best, _mm256_shuffle_epi32(best, 0x4e));
        best = _mm256_max_epi32(best, _mm256_shuffle_epi32(best, 0xb1));
        uint32_t i = 0, found;
        while (!(found = (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(best, load_keys(keys + i))))))
            i += LANES;
        ids[j] = i + (uint32_t)__builtin_ctz(found);
        keys[ids[j]] = GONE;
    }
}

/* Sum of e^(logit - max): expert i goes to partial sum i % 16. */
INLINE float sum_exp(const float *logits, uint32_t n, __m256 max)
{
    __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (uint32_t i = 0; i < n; i += LANES) {
        const __m256i m = lanes_of(n - i);
        const __m256 e = yk_avx2_exp(_mm256_sub_ps(_mm256_maskload_ps(logits + i, m), max));
        acc[i / LANES % 2] = _mm256_add_ps(acc[i / LANES % 2], _mm256_and_ps(_mm256_castsi256_ps(m), e));
    }
    return sum_lanes(acc[0], acc[1]);
}

static void route_avx2(const float *logits, uint32_t n, uint32_t k, yk_router kind, bool renorm, uint32_t *ids, float *weights)
{
    if (n > MOST) {
        route_below(logits, n, k, kind, renorm, ids, weights);
        return;
    }
    choose(logits, n, k, ids);
    const __m256 max = _mm256_set1_ps(logits[ids[0]]);
    for (uint32_t j = 0; j < k; j++)
        weights[j] = logits[ids[j]];
    for (uint32_t j = 0; j < k; j += LANES) {
        const __m256i m = lanes_of(k - j);
        _mm256_maskstore_ps(weights + j, m, yk_avx2_exp(_mm256_sub_ps(_mm256_maskload_ps(weights + j, m), max)));
    }
    const float total = kind == YK_ROUTER_TOPK_SOFTMAX ? yk_route_sum(weights, k) : sum_exp(logits, n, max);
    yk_route_weights(weights, k, total, renorm);
}

void yk_ops_fill_avx2_vector(yk_ops *ops)
{
    ops->quantise = quantise_q8_avx2;
    ops->to_f16 = to_f16_avx2;
    ops->rope = rope_avx2;
    ops->glu = glu_avx2;
    route_below = ops->route;
    ops->route = route_avx2;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
