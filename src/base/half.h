/* half.h - 16-bit floats. Exact integer code without branches, so that loops over it vectorise and give the same bits
 * everywhere; it does not depend on the mode that flushes denormals (results that need a denormal f32 are built without
 * arithmetic on one). */
#ifndef YK_BASE_HALF_H
#define YK_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t yk_f32_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float yk_bits_f32(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* IEEE binary16 to f32, exact; infinity and NaN (with payload) stay what they are. */
static inline float yk_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t m = h & 0x7fffu;
    const uint32_t normal = (m << 13) + ((m >= 0x7c00u ? 224u : 112u) << 23);
    const uint32_t denormal = yk_f32_bits((float)(int32_t)m * 0x1p-24f); /* a normal f32 or zero */
    return yk_bits_f32(sign | (m < 0x400u ? denormal : normal));
}

/* f32 to IEEE binary16, round to nearest even; 65520 and above become infinity; NaN stays NaN (quiet). */
static inline uint16_t yk_f32_to_f16(float x)
{
    const uint32_t b = yk_f32_bits(x);
    const uint32_t sign = (b >> 16) & 0x8000u;
    const uint32_t a = b & 0x7fffffffu;
    /* Below 2^-14 the unit of the result is 2^-24, that of f32 in [0.5, 1): adding 0.5 rounds. */
    const uint32_t denormal = yk_f32_bits(yk_bits_f32(a < 0x38800000u ? a : 0u) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
    const uint32_t special = a > 0x7f800000u ? (0x7e00u | ((a >> 13) & 0x3ffu)) : 0x7c00u;
    const uint32_t finite = a < 0x38800000u ? denormal : normal;
    return (uint16_t)(sign | (a >= 0x477ff000u ? special : finite));
}

static inline float yk_bf16_to_f32(uint16_t h)
{
    return yk_bits_f32((uint32_t)h << 16);
}

/* f32 to bf16, round to nearest even; NaN stays NaN (quiet). */
static inline uint16_t yk_f32_to_bf16(float x)
{
    const uint32_t b = yk_f32_bits(x);
    const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    return (uint16_t)((b & 0x7fffffffu) > 0x7f800000u ? ((b >> 16) | 0x40u) : rounded);
}

#endif
