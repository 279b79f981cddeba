/* layout_expand.h - AVX-512 pieces shared by the kernels: loads of scales, codes to bytes, a whole tile to bytes. */
#ifndef YK_BENCH_LAYOUT_EXPAND_H
#define YK_BENCH_LAYOUT_EXPAND_H

#include <immintrin.h>

#include "bench/layout.h"

#define INLINE static inline __attribute__((always_inline))

typedef struct yk_lay_expanded {
    uint8_t q[4096];      /* [64 groups][16 rows][4]: codes + offset (unsigned) or signed values */
    float scale[16 * 16]; /* [block][16 rows]; Q6_K [half block][16 rows]: d * sc, exact in f32 */
    float min[8 * 16];    /* Q4_K: dmin * m, exact */
} yk_lay_expanded;

typedef struct yk_lay_scratch {
    yk_lay_expanded e;
    int32_t c[4][256];               /* AMX results on their way to AVX-512 */
    uint16_t b16[8 * 512];           /* a tile in bf16 */
    float y[YK_LAY_MAX_TOKENS * 16]; /* sums of one panel */
} yk_lay_scratch;

INLINE __m512 halves(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)p));
}

INLINE __m512 bytes_u(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(const void *)p)));
}

INLINE __m512 bytes_s(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)(const void *)p)));
}

/* 6-bit codes of groups j (u) and j + 4 (v) of a block. */
INLINE void six_bits(const uint8_t *low, const uint8_t *high, int j, __m512i *u, __m512i *v)
{
    const __m512i m = _mm512_set1_epi8(15), top = _mm512_set1_epi8(0x30);
    const __m512i c = _mm512_load_si512(low + 64 * j), h0 = _mm512_load_si512(high), h1 = _mm512_load_si512(high + 64);
    const __m512i s0 = j < 2 ? _mm512_slli_epi16(h0, 4 - 2 * j) : j == 2 ? h0 : _mm512_srli_epi16(h0, 2);
    const __m512i s1 = j < 2 ? _mm512_slli_epi16(h1, 4 - 2 * j) : j == 2 ? h1 : _mm512_srli_epi16(h1, 2);
    *u = _mm512_ternarylogic_epi32(s0, top, _mm512_and_si512(c, m), 0xea); /* s0 & top | c & m */
    *v = _mm512_ternarylogic_epi32(s1, top, _mm512_and_si512(_mm512_srli_epi16(c, 4), m), 0xea);
}

/* A tile to bytes. is_signed: values as int8 (Q4_0: code - 8, ...; Q4_K has no offset and stays 0..15); else codes as uint8. */
INLINE void expand(yk_lay type, const uint8_t *w, uint32_t blocks, int is_signed, yk_lay_expanded *e)
{
    const yk_lay_tile g = yk_lay_geometry(type, blocks);
    const __m512i m = _mm512_set1_epi8(15);
    const __m512i off = _mm512_set1_epi8(type == YK_LAY_Q4_0 ? 8 : type == YK_LAY_Q6_K ? 32 : 0);
    for (uint32_t b = 0; b < blocks; b++) {
        uint8_t *q = e->q + 512 * b;
        for (int j = 0; j < 4; j++) {
            __m512i u, v;
            if (type == YK_LAY_Q8_0) {
                u = _mm512_load_si512(w + 512 * b + 64 * j), v = _mm512_load_si512(w + 512 * b + 64 * j + 256);
                if (!is_signed) {
                    const __m512i flip = _mm512_set1_epi8((char)0x80);
                    u = _mm512_xor_si512(u, flip), v = _mm512_xor_si512(v, flip);
                }
            } else if (type == YK_LAY_Q6_K) {
                six_bits(w + 256 * b, w + g.high + 128 * b, j, &u, &v);
            } else {
                const __m512i c = _mm512_load_si512(w + 256 * b + 64 * j);
                u = _mm512_and_si512(c, m), v = _mm512_and_si512(_mm512_srli_epi16(c, 4), m);
            }
            if (is_signed && (type == YK_LAY_Q4_0 || type == YK_LAY_Q6_K))
                u = _mm512_sub_epi8(u, off), v = _mm512_sub_epi8(v, off);
            _mm512_store_si512(q + 64 * j, u);
            _mm512_store_si512(q + 64 * j + 256, v);
        }
        if (type == YK_LAY_Q4_0 || type == YK_LAY_Q8_0)
            _mm512_store_ps(e->scale + 16 * b, halves(w + g.scale + 32 * b));
    }
    if (type == YK_LAY_Q4_K) {
        const __m512 d = halves(w + g.scale), dmin = halves(w + g.scale + 32);
        for (uint32_t b = 0; b < 8; b++) {
            _mm512_store_ps(e->scale + 16 * b, _mm512_mul_ps(d, bytes_u(w + g.sub + 16 * b)));
            _mm512_store_ps(e->min + 16 * b, _mm512_mul_ps(dmin, bytes_u(w + g.sub_min + 16 * b)));
        }
    }
    if (type == YK_LAY_Q6_K) {
        const __m512 d = halves(w + g.scale);
        for (uint32_t b = 0; b < 16; b++)
            _mm512_store_ps(e->scale + 16 * b, _mm512_mul_ps(d, bytes_s(w + g.sub + 16 * b)));
    }
}

#endif
