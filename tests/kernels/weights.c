/* weights.c - one weight at a time from the drawings in docs/kernels/matmul.md, in double: slow, and shares nothing with the
 * kernels. */
#include <math.h>

#include "tests/kernels/check.h"

static double half_at(const uint8_t *p)
{
    const uint32_t h = (uint32_t)p[0] | (uint32_t)p[1] << 8, e = h >> 10 & 31, m = h & 1023;
    const double v = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024.0 + m, (int)e - 25) : ldexp(m, -24);
    return h & 0x8000 ? -v : v;
}

/* Nibble of weight i of a block of 32: low nibbles are weights 0..15. */
static int nibble32(const uint8_t *q, uint32_t i)
{
    return i < 16 ? q[i] & 15 : q[i - 16] >> 4;
}

static int bit_of(const uint8_t *bits, uint32_t i)
{
    return bits[i / 8] >> (i % 8) & 1;
}

/* Nibble of weight i of 256: 32 bytes hold 64 weights, the low nibbles first. */
static int nibble256(const uint8_t *q, uint32_t i)
{
    return i % 64 < 32 ? q[i / 64 * 32 + i % 32] & 15 : q[i / 64 * 32 + i % 32] >> 4;
}

/* Two bits of weight i of 256: 32 bytes hold 128 weights, bits 0-1 the first 32. */
static int pair256(const uint8_t *q, uint32_t i)
{
    return q[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}

static int iq4_value(int code)
{
    static const int values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    return values[code];
}

/* 6-bit scale (which 0) or minimum (which 1) of block j of 8, Q4_K and Q5_K. */
static int k_scale(const uint8_t *s, uint32_t j, int which)
{
    const uint8_t *low =
        s + 4 * which; /* bytes 0-3 scales, 4-7 minima: 6 bits of blocks 0-3, and on top 2 bits of blocks 4-7 */
    if (j < 4)
        return low[j] & 63;
    const int four = which ? s[8 + j - 4] >> 4 : s[8 + j - 4] & 15;
    return four | (low[j - 4] >> 6) << 4;
}

static int q3_scale(const uint8_t *s, uint32_t k)
{
    const int low = k < 8 ? s[k] & 15 : s[k - 8] >> 4;
    return (low | (s[8 + k % 4] >> (k / 4 * 2) & 3) << 4) - 32;
}

double weight_at(yk_type type, const uint8_t *w, uint64_t at, double *scaled, double *min)
{
    static const double fp4[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    const yk_type_traits *t = yk_type_get(type);
    const uint8_t *b = w + at / t->block_elems * t->block_bytes;
    const uint32_t i = (uint32_t)(at % t->block_elems), j = i / 32, k = i / 16;
    uint32_t bits;
    float f;
    double v = NAN, m = 0;
    switch (type) {
    case YK_TYPE_F32:
        memcpy(&f, b, sizeof f);
        v = (double)f;
        break;
    case YK_TYPE_F16:
        v = half_at(b);
        break;
    case YK_TYPE_BF16:
        bits = (uint32_t)b[0] << 16 | (uint32_t)b[1] << 24;
        memcpy(&f, &bits, sizeof f);
        v = (double)f;
        break;
    case YK_TYPE_Q4_0:
        v = (nibble32(b + 2, i) - 8) * half_at(b);
        break;
    case YK_TYPE_Q4_1:
        v = nibble32(b + 4, i) * half_at(b);
        m = -half_at(b + 2);
        break;
    case YK_TYPE_Q5_0:
        v = (nibble32(b + 6, i) + 16 * bit_of(b + 2, i) - 16) * half_at(b);
        break;
    case YK_TYPE_Q5_1:
        v = (nibble32(b + 8, i) + 16 * bit_of(b + 4, i)) * half_at(b);
        m = -half_at(b + 2);
        break;
    case YK_TYPE_Q8_0:
        v = (int8_t)b[2 + i] * half_at(b);
        break;
    case YK_TYPE_Q2_K:
        v = half_at(b + 80) * (b[k] & 15) * pair256(b + 16, i);
        m = half_at(b + 82) * (b[k] >> 4);
        break;
    case YK_TYPE_Q3_K:
        v = half_at(b + 108) * q3_scale(b + 96, k) * (pair256(b + 32, i) - ((b[i % 32] >> j & 1) ? 0 : 4));
        break;
    case YK_TYPE_Q4_K:
        v = half_at(b) * k_scale(b + 4, j, 0) * nibble256(b + 16, i);
        m = half_at(b + 2) * k_scale(b + 4, j, 1);
        break;
    case YK_TYPE_Q5_K:
        v = half_at(b) * k_scale(b + 4, j, 0) * (nibble256(b + 48, i) + 16 * (b[16 + i % 32] >> j & 1));
        m = half_at(b + 2) * k_scale(b + 4, j, 1);
        break;
    case YK_TYPE_Q6_K: {
        const uint32_t in = i % 128; /* of a half: 64 bytes of low nibbles, 32 bytes of high pairs */
        const uint8_t low = b[i / 128 * 64 + in % 64];
        v = half_at(b + 208) * (int8_t)b[192 + k] * ((in < 64 ? low & 15 : low >> 4) + 16 * pair256(b + 128, i) - 32);
        break;
    }
    case YK_TYPE_IQ4_NL:
        v = iq4_value(nibble32(b + 2, i)) * half_at(b);
        break;
    case YK_TYPE_IQ4_XS: {
        const int low = j % 2 ? b[4 + j / 2] >> 4 : b[4 + j / 2] & 15, top = b[2 + j / 4] >> (j % 4 * 2) & 3;
        v = half_at(b) * (low + 16 * top - 32) * iq4_value(nibble32(b + 8 + 16 * j, i % 32));
        break;
    }
    case YK_TYPE_MXFP4: {
        const int c = nibble32(b + 1, i);
        v = b[0] == 255 ? NAN : ldexp((c & 8) ? -fp4[c & 7] : fp4[c & 7], b[0] - 127);
        break;
    }
    default:
        break;
    }
    *scaled = v;
    *min = m;
    return v - m;
}

/* Offsets of f16 scales in a block, -1: none. */
static void half_offsets(yk_type type, int *first, int *second)
{
    *first = 0;
    *second = -1;
    switch (type) {
    case YK_TYPE_Q4_1:
    case YK_TYPE_Q5_1:
    case YK_TYPE_Q4_K:
    case YK_TYPE_Q5_K:
        *second = 2;
        break;
    case YK_TYPE_Q2_K:
        *first = 80;
        *second = 82;
        break;
    case YK_TYPE_Q3_K:
        *first = 108;
        break;
    case YK_TYPE_Q6_K:
        *first = 208;
        break;
    case YK_TYPE_MXFP4:
        *first = -1;
        break;
    default:
        break;
    }
}

static void put_half(rng *r, uint8_t *p)
{
    const uint32_t kind = rng_below(r, 16);
    /* 2^-9 to 1 either sign; sometimes zero or a denormal half. */
    uint32_t h = (6 + rng_below(r, 9)) << 10 | rng_below(r, 1024) | rng_below(r, 2) << 15;
    if (kind == 0)
        h = 0;
    else if (kind == 1)
        h = rng_below(r, 1024);
    p[0] = (uint8_t)h;
    p[1] = (uint8_t)(h >> 8);
}

void random_weights(rng *r, yk_type type, uint8_t *w, uint64_t n_elems)
{
    const yk_type_traits *t = yk_type_get(type);
    for (uint64_t b = 0; b < n_elems / t->block_elems; b++, w += t->block_bytes) {
        float f = rng_unit(r) + rng_unit(r);
        if (type == YK_TYPE_F32) {
            memcpy(w, &f, 4);
        } else if (type == YK_TYPE_F16) {
            put_half(r, w);
        } else if (type == YK_TYPE_BF16) {
            const uint32_t bits = yk_f32_bits(f);
            w[0] = (uint8_t)(bits >> 16);
            w[1] = (uint8_t)(bits >> 24);
        } else {
            int first, second;
            for (uint32_t i = 0; i < t->block_bytes; i++)
                w[i] = (uint8_t)(rng_next(r) >> 56);
            half_offsets(type, &first, &second);
            if (first >= 0)
                put_half(r, w + first);
            if (second >= 0)
                put_half(r, w + second);
            if (type == YK_TYPE_MXFP4)
                w[0] = (uint8_t)(rng_below(r, 8) ? 118 + rng_below(r, 12) : rng_below(r, 3));
        }
    }
}
