/* exp.h - e^x in plain f32 operations, so that loops vectorise and every machine, compiler and C library gives the same
 * bits.
 *
 * x = n ln 2 + r, |r| <= ln 2 / 2; e^r by a polynomial of degree 6 (the coefficients of Cephes' expf), times 2^n in two
 * steps so that results below 2^-126 round once. Error below 2 units in the last place (the checker tries every 61st float);
 * 0 below -104, infinity above 88.73, NaN for NaN. */
#ifndef YK_CPU_REF_EXP_H
#define YK_CPU_REF_EXP_H

#include "cpu/ref/ref.h"

YK_INLINE float yk_ref_exp(float x)
{
    const float magic = 0x1.8p23f; /* adding it rounds to an integer, in the low bits of the sum */
    float c = x < -104.0f ? -104.0f : x;
    c = c > 89.0f ? 89.0f : c;
    const float t = c * 1.44269504088896341f + magic;
    const float n = t - magic;
    const float r = (c - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * (r * r) + r) + 1.0f;
    const int32_t e = (int32_t)(yk_f32_bits(t) - yk_f32_bits(magic));
    const int32_t e0 = e >> 1, e1 = (int32_t)((uint32_t)e - (uint32_t)e0);
    return (p * yk_bits_f32((uint32_t)(e0 + 127) << 23)) * yk_bits_f32(((uint32_t)e1 + 127u) << 23);
}

#endif
