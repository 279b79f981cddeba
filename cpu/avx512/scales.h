/* scales.h - the scales of packed tiles as 16 floats, a lane a row, for the levels with 512-bit registers. Layout: docs/kernels/layout.md. Included after
 * the target of the file is set. */
#ifndef YK_CPU_AVX512_SCALES_H
#define YK_CPU_AVX512_SCALES_H

#include <immintrin.h>

#include "cpu/tile.h"

#define YK_INLINE static inline __attribute__((always_inline))

YK_INLINE __m512 yk_avx512_halves(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)p));
}

YK_INLINE __m512 yk_avx512_bytes_u(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(const void *)p)));
}

YK_INLINE __m512 yk_avx512_bytes_s(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)(const void *)p)));
}

/* 2^(e - 128): exponents 0 and 1 need a denormal, 255 is NaN. */
YK_INLINE __m512 yk_avx512_exponents(const uint8_t *p)
{
    const __m512i e = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(const void *)p));
    __m512i v = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    v = _mm512_mask_sllv_epi32(v, _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(2)), _mm512_set1_epi32(0x00200000), e);
    return _mm512_castsi512_ps(
        _mm512_mask_mov_epi32(v, _mm512_cmpeq_epi32_mask(e, _mm512_set1_epi32(255)), _mm512_set1_epi32(0x7fc00000)));
}

/* Scales of block b of tile w, or of its half `part` (Q6_K); not for Q2_K and Q3_K, whose scales meet integers. */
YK_INLINE __m512 yk_avx512_block_scale(yk_type type, const uint8_t *w, const yk_tile *g, uint32_t b, int part)
{
    switch (type) {
    case YK_TYPE_Q4_K:
    case YK_TYPE_Q5_K:
        return yk_avx512_bytes_u(w + g->sub + 16 * b);
    case YK_TYPE_Q6_K:
        return yk_avx512_bytes_s(w + g->sub + 32 * b + 16 * part);
    case YK_TYPE_IQ4_XS:
        return yk_avx512_bytes_s(w + g->sub + 16 * b);
    case YK_TYPE_MXFP4:
        return yk_avx512_exponents(w + g->sub + 16 * b);
    default:
        return yk_avx512_halves(w + g->scale + 32 * b);
    }
}

#undef YK_INLINE

#endif
