/* quantise.c - activations to int8, and f32 to f16. Contract with the exact operations: docs/kernels/quantise.md. */
#include "cpu/ref/ref.h"

enum { BLOCK = 32 };

/* Round to the nearest integer, halves away from zero; |v| < 2^31. */
YK_INLINE int32_t round_away(float v)
{
    const int32_t t = (int32_t)v;
    const float rest = v - (float)t; /* exact */
    return t + (rest >= 0.5f) - (rest <= -0.5f);
}

YK_INLINE void quantise_block(const float *x, int8_t *q, float *scale, int16_t *sum)
{
    uint32_t top = 0; /* largest magnitude; as bits, so that NaN wins and the order does not matter */
    for (int i = 0; i < BLOCK; i++) {
        const uint32_t a = yk_f32_bits(x[i]) & 0x7fffffffu;
        top = a > top ? a : top;
    }
    if (top < 0x0f800000u || top >= 0x7f800000u) { /* below 2^-96, or infinity or NaN among them */
        memset(q, 0, BLOCK);
        *scale = top < 0x0f800000u ? 0.0f : yk_bits_f32(0x7fc00000u);
        sum[0] = sum[1] = 0;
        return;
    }
    const float max = yk_bits_f32(top), inv = 127.0f / max;
    *scale = max / 127.0f;
    int32_t v[BLOCK];
    for (int i = 0; i < BLOCK; i++)
        v[i] = round_away(x[i] * inv);
    int32_t s0 = 0, s1 = 0;
    for (int i = 0; i < BLOCK; i++)
        q[i] = (int8_t)v[i];
    for (int i = 0; i < BLOCK / 2; i++) {
        s0 += v[i];
        s1 += v[i + BLOCK / 2];
    }
    sum[0] = (int16_t)s0;
    sum[1] = (int16_t)s1;
}

YK_CLONES static void quantise_q8_ref(const float *x, uint32_t n, yk_q8 *dst, uint32_t row)
{
    const size_t at = (size_t)row * dst->n_blocks;
    const uint32_t n_blocks = n / BLOCK + (n % BLOCK != 0); /* no more: dst may be a view from the middle of wider rows */
    for (uint32_t b = 0; b < n_blocks; b++) {
        const uint32_t c = b * BLOCK;
        float padded[BLOCK] = {0};
        const float *from = x + c;
        if (n < BLOCK || c > n - BLOCK) {
            for (uint32_t i = 0; i < BLOCK && c + i < n; i++)
                padded[i] = x[c + i];
            from = padded;
        }
        quantise_block(from, dst->q + BLOCK * (at + b), dst->scale + at + b, dst->sum + 2 * (at + b));
    }
}

YK_CLONES static void to_f16_ref(const float *x, uint32_t n, uint16_t *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = yk_f32_to_f16(x[i]);
}

void yk_ref_fill_quantise(yk_ops *ops)
{
    ops->quantise = quantise_q8_ref;
    ops->to_f16 = to_f16_ref;
}
