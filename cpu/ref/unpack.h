/* unpack.h - quantised weights, eight blocks of 32 at a time, into one common form.
 *
 * A group is 256 weights: w = scale * q - min in f32, where scale and min belong to the half block (16 weights) or, for
 * types without halves, to the block. For every type this is the order of operations in which its values are defined, so
 * both dequant and matmul are built on it. Layouts: docs/kernels/matmul.md. All unpackers take whole blocks of their type:
 * the 32-weight types n blocks, 1 <= n <= 8, the K types one block of 256 (n is 8). */
#ifndef YK_CPU_REF_UNPACK_H
#define YK_CPU_REF_UNPACK_H

#include "cpu/ref/ref.h"

typedef struct yk_ref_group {
    int8_t q[256];
    float scale[2][8]; /* [half][block]; without halves only [0] */
    float min[2][8];   /* not written by types without minima */
} yk_ref_group;

typedef void (*yk_ref_unpack)(const uint8_t *w, uint32_t n, yk_ref_group *g);

YK_INLINE uint32_t yk_ref_u16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}
YK_INLINE uint32_t yk_ref_u32(const uint8_t *p)
{
    return yk_ref_u16(p) | yk_ref_u16(p + 2) << 16;
}
YK_INLINE float yk_ref_half(const uint8_t *p)
{
    return yk_f16_to_f32((uint16_t)yk_ref_u16(p));
}

/* Code of IQ4_NL and IQ4_XS to its value. A tree of selections by the bits of the code: eight of them fit a byte vector
 * where a table look-up would be one load for each weight. */
YK_INLINE int8_t yk_ref_iq4(uint8_t c)
{
    const uint8_t b0 = (uint8_t) - (c & 1), b1 = (uint8_t) - ((c >> 1) & 1), b2 = (uint8_t) - ((c >> 2) & 1),
                  b3 = (uint8_t) - ((c >> 3) & 1);
#define PAIR(lo, hi)       ((uint8_t)((uint8_t)(lo) ^ (b0 & (uint8_t)((uint8_t)(lo) ^ (uint8_t)(hi)))))
#define PICK(mask, lo, hi) ((uint8_t)((lo) ^ ((mask) & ((lo) ^ (hi)))))
    const uint8_t p0 = PAIR(-127, -104), p1 = PAIR(-83, -65), p2 = PAIR(-49, -35), p3 = PAIR(-22, -10);
    const uint8_t p4 = PAIR(1, 13), p5 = PAIR(25, 38), p6 = PAIR(53, 69), p7 = PAIR(89, 113);
    const uint8_t r0 = PICK(b1, p0, p1), r1 = PICK(b1, p2, p3), r2 = PICK(b1, p4, p5), r3 = PICK(b1, p6, p7);
    const uint8_t s0 = PICK(b2, r0, r1), s1 = PICK(b2, r2, r3);
    return (int8_t)PICK(b3, s0, s1);
#undef PAIR
#undef PICK
}

/* Twice the value of an FP4 (E2M1) code: 0 1 2 3 4 6 8 12, bit 3 is the sign. */
YK_INLINE int8_t yk_ref_fp4x2(uint8_t c)
{
    const int m = c & 7;
    const int v = m + (m > 4 ? m - 4 : 0) + (m == 7 ? 2 : 0);
    return (int8_t)((c & 8) ? -v : v);
}

/* 2^(e - 128), the scale of FP4 values counted in halves; e 255 is NaN (OCP MX). e 0 and 1 need a denormal. */
YK_INLINE float yk_ref_e8m0_half(uint8_t e)
{
    const uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
    return yk_bits_f32(e == 255 ? 0x7fc00000u : bits);
}

YK_INLINE void yk_ref_unpack_q4_0(const uint8_t *w, uint32_t n, yk_ref_group *g)
{
    for (uint32_t b = 0; b < n; b++, w += 18) {
        int8_t *q = g->q + 32 * b;
        g->scale[0][b] = yk_ref_half(w);
        YK_KEEP_LOOP
        for (int i = 0; i < 16; i++) {
            q[i] = (int8_t)((w[2 + i] & 15) - 8);
            q[i + 16] = (int8_t)((w[2 + i] >> 4) - 8);
        }
    }
}

YK_INLINE void yk_ref_unpack_q4_1(const uint8_t *w, uint32_t n, yk_ref_group *g)
{
    for (uint32_t b = 0; b < n; b++, w += 20) {
        int8_t *q = g->q + 32 * b;
        g->scale[0][b] = yk_ref_half(w);
        g->min[0][b] = -yk_ref_half(w + 2);
        YK_KEEP_LOOP
        for (int i = 0; i < 16; i++) {
            q[i] = (int8_t)(w[4 + i] & 15);
            q[i + 16] = (int8_t)(w[4 + i] >> 4);
        }
    }
}

/* Bit i of the four bytes at u to 16 or 0, for 32 weights. Eight bits at a time: copy the byte to all eight bytes of a word,
 * keep bit i in byte i, carry it to the top of its byte. */
YK_INLINE void yk_ref_fifth_bits(const uint8_t *u, uint8_t *h)
{
    for (int i = 0; i < 4; i++) {
        const uint64_t bit = (u[i] * 0x0101010101010101u) & 0x8040201008040201u;
        const uint64_t sixteen = ((bit + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u) >> 3;
        memcpy(h + 8 * i, &sixteen, 8);
    }
}

YK_INLINE void yk_ref_unpack_q5_0(const uint8_t *w, uint32_t n, yk_ref_group *g)
{
    for (uint32_t b = 0; b < n; b++, w += 22) {
        int8_t *q = g->q + 32 * b;
        uint8_t h[32];
        g->scale[0][b] = yk_ref_half(w);
        yk_ref_fifth_bits(w + 2, h);
        YK_KEEP_LOOP
        for (int i = 0; i < 16; i++) {
            q[i] = (int8_t)(((w[6 + i] & 15) | h[i]) - 16);
            q[i + 16] = (int8_t)(((w[6 + i] >> 4) | h[i + 16]) - 16);
        }
    }
}

YK_INLINE void yk_ref_unpack_q5_1(const uint8_t *w, uint32_t n, yk_ref_group *g)
{
    for (uint32_t b = 0; b < n; b++, w += 24) {
        int8_t *q = g->q + 32 * b;
        uint8_t h[32];
        g->scale[0][b] = yk_ref_half(w);
        g->min[0][b] = -yk_ref_half(w + 2);
        yk_ref_fifth_bits(w + 4, h);
        YK_KEEP_LOOP
        for (int i = 0; i < 16; i++) {
            q[i] = (int8_t)((w[8 + i] & 15) | h[i]);
            q[i + 16] = (int8_t)((w[8 + i] >> 4) | h[i + 16]);
        }
    }
}

YK_INLINE void yk_ref_unpack_q8_0(const uint8_t *w, uint32_t n, yk_ref_group *g)
{
    for (uint32_t b = 0; b < n; b++, w += 34) {
        g->scale[0][b] = yk_ref_half(w);
        memcpy(g->q + 32 * b, w + 2, 32);
    }
}

YK_INLINE void yk_ref_unpack_iq4_nl(const uint8_t *w, uint32_t n, yk_ref_group *g)
{
    for (uint32_t b = 0; b < n; b++, w += 18) {
        int8_t *q = g->q + 32 * b;
        g->scale[0][b] = yk_ref_half(w);
        YK_KEEP_LOOP
        for (int i = 0; i < 16; i++) {
            q[i] = yk_ref_iq4(w[2 + i] & 15);
            q[i + 16] = yk_ref_iq4(w[2 + i] >> 4);
        }
    }
}

YK_INLINE void yk_ref_unpack_mxfp4(const uint8_t *w, uint32_t n, yk_ref_group *g)
{
    for (uint32_t b = 0; b < n; b++, w += 17) {
        int8_t *q = g->q + 32 * b;
        g->scale[0][b] = yk_ref_e8m0_half(w[0]);
        YK_KEEP_LOOP
        for (int i = 0; i < 16; i++) {
            q[i] = yk_ref_fp4x2(w[1 + i] & 15);
            q[i + 16] = yk_ref_fp4x2(w[1 + i] >> 4);
        }
    }
}

/* Eight 6-bit scales and minima of Q4_K and Q5_K out of 12 bytes, times d and dmin. */
YK_INLINE void yk_ref_k_scales(const uint8_t *w, yk_ref_group *g)
{
    const float d = yk_ref_half(w), dmin = yk_ref_half(w + 2);
    const uint8_t *s = w + 4;
    uint8_t sc[8], mn[8];
    for (int j = 0; j < 4; j++) {
        sc[j] = s[j] & 63;
        mn[j] = s[j + 4] & 63;
        sc[j + 4] = (uint8_t)((s[j + 8] & 15) | (s[j] >> 6) << 4);
        mn[j + 4] = (uint8_t)((s[j + 8] >> 4) | (s[j + 4] >> 6) << 4);
    }
    for (int j = 0; j < 8; j++) {
        g->scale[0][j] = d * (float)sc[j];
        g->min[0][j] = dmin * (float)mn[j];
    }
}

YK_INLINE void yk_ref_unpack_q4_k(const uint8_t *w, uint32_t n, yk_ref_group *g)
{
    (void)n;
    yk_ref_k_scales(w, g);
    for (int c = 0; c < 4; c++) {
        for (int i = 0; i < 32; i++) {
            g->q[64 * c + i] = (int8_t)(w[16 + 32 * c + i] & 15);
            g->q[64 * c + 32 + i] = (int8_t)(w[16 + 32 * c + i] >> 4);
        }
    }
}

YK_INLINE void yk_ref_unpack_q5_k(const uint8_t *w, uint32_t n, yk_ref_group *g)
{
    (void)n;
    yk_ref_k_scales(w, g);
    for (int c = 0; c < 4; c++) {
        for (int i = 0; i < 32; i++) {
            const uint8_t l = w[48 + 32 * c + i], h = (uint8_t)(w[16 + i] >> (2 * c));
            g->q[64 * c + i] = (int8_t)((l & 15) | (h & 1) << 4);
            g->q[64 * c + 32 + i] = (int8_t)((l >> 4) | (h & 2) << 3);
        }
    }
}

YK_INLINE void yk_ref_unpack_q2_k(const uint8_t *w, uint32_t n, yk_ref_group *g)
{
    (void)n;
    const float d = yk_ref_half(w + 80), dmin = yk_ref_half(w + 82);
    for (int b = 0; b < 8; b++) {
        for (int h = 0; h < 2; h++) {
            g->scale[h][b] = d * (float)(w[2 * b + h] & 15);
            g->min[h][b] = dmin * (float)(w[2 * b + h] >> 4);
        }
    }
    for (int c = 0; c < 2; c++)
        for (int s = 0; s < 4; s++)
            for (int i = 0; i < 32; i++)
                g->q[128 * c + 32 * s + i] = (int8_t)((w[16 + 32 * c + i] >> (2 * s)) & 3);
}

YK_INLINE void yk_ref_unpack_q3_k(const uint8_t *w, uint32_t n, yk_ref_group *g)
{
    (void)n;
    const float d = yk_ref_half(w + 108);
    const uint8_t *s = w + 96;
    for (int k = 0; k < 16; k++) {
        const int low = k < 8 ? s[k] & 15 : s[k - 8] >> 4;
        const int top = (s[8 + k % 4] >> (2 * (k / 4))) & 3;
        g->scale[k & 1][k >> 1] = d * (float)((low | top << 4) - 32);
    }
    for (int c = 0; c < 2; c++) {
        for (int k = 0; k < 4; k++) {
            for (int i = 0; i < 32; i++) {
                const uint8_t two = (w[32 + 32 * c + i] >> (2 * k)) & 3, third = (uint8_t)(w[i] >> (4 * c + k)) & 1;
                g->q[128 * c + 32 * k + i] = (int8_t)((two | third << 2) - 4);
            }
        }
    }
}

YK_INLINE void yk_ref_unpack_q6_k(const uint8_t *w, uint32_t n, yk_ref_group *g)
{
    (void)n;
    const float d = yk_ref_half(w + 208);
    for (int b = 0; b < 8; b++)
        for (int h = 0; h < 2; h++)
            g->scale[h][b] = d * (float)(int8_t)w[192 + 2 * b + h];
    for (int c = 0; c < 2; c++) {
        for (int i = 0; i < 32; i++) {
            const uint8_t l0 = w[64 * c + i], l1 = w[64 * c + 32 + i], h = w[128 + 32 * c + i];
            int8_t *q = g->q + 128 * c + i;
            q[0] = (int8_t)(((l0 & 15) | (h & 3) << 4) - 32);
            q[32] = (int8_t)(((l1 & 15) | (h & 12) << 2) - 32);
            q[64] = (int8_t)(((l0 >> 4) | (h & 48)) - 32);
            q[96] = (int8_t)(((l1 >> 4) | (h & 192) >> 2) - 32);
        }
    }
}

YK_INLINE void yk_ref_unpack_iq4_xs(const uint8_t *w, uint32_t n, yk_ref_group *g)
{
    (void)n;
    const float d = yk_ref_half(w);
    const uint32_t tops = yk_ref_u16(w + 2), lows = yk_ref_u32(w + 4);
    for (int b = 0; b < 8; b++) {
        const int sc = (int)((lows >> (4 * b) & 15) | (tops >> (2 * b) & 3) << 4) - 32;
        g->scale[0][b] = d * (float)sc;
        YK_KEEP_LOOP
        for (int i = 0; i < 16; i++) {
            g->q[32 * b + i] = yk_ref_iq4(w[8 + 16 * b + i] & 15);
            g->q[32 * b + 16 + i] = yk_ref_iq4(w[8 + 16 * b + i] >> 4);
        }
    }
}

#endif
