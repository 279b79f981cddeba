/* vector.h - what the vector levels share of quantise and route: the walk over a row, and the weights of chosen experts. Included
 * after the target of the file is set, so that it is compiled for the level. Contracts: docs/kernels/{quantise,route}.md. */
#ifndef YK_CPU_VECTOR_H
#define YK_CPU_VECTOR_H

#include <string.h>

#include "cpu/ops.h"

enum { YK_Q_BLOCK = 32, YK_Q_GROUP = 8 };

/* Eight blocks: codes, scales, sums of half blocks. */
typedef void (*yk_quantise_group)(const float *x, int8_t *q, float *scale, int16_t *sum);

/* Row `row` of dst from n floats; the last group is filled with zeros, and only its own blocks are written. `group` is a constant. */
static inline __attribute__((always_inline)) void yk_quantise_row(const float *x, uint32_t n, yk_q8 *dst, uint32_t row,
                                                                  yk_quantise_group group)
{
    const size_t at = (size_t)row * dst->n_blocks;
    const uint32_t size = YK_Q_BLOCK * YK_Q_GROUP, full = n / size, left = n % size;
    int8_t *q = dst->q + YK_Q_BLOCK * at;
    float *scale = dst->scale + at;
    int16_t *sum = dst->sum + 2 * at;
    for (uint32_t i = 0; i < full; i++, x += size, q += size, scale += YK_Q_GROUP, sum += 2 * YK_Q_GROUP)
        group(x, q, scale, sum);
    if (left) {
        float padded[YK_Q_BLOCK * YK_Q_GROUP] = {0}, scales[YK_Q_GROUP];
        int8_t codes[YK_Q_BLOCK * YK_Q_GROUP];
        int16_t sums[2 * YK_Q_GROUP];
        const uint32_t n_blocks = (left + YK_Q_BLOCK - 1) / YK_Q_BLOCK;
        memcpy(padded, x, left * sizeof *x);
        group(padded, codes, scales, sums);
        memcpy(q, codes, (size_t)YK_Q_BLOCK * n_blocks);
        memcpy(scale, scales, n_blocks * sizeof *scales);
        memcpy(sum, sums, 2 * n_blocks * sizeof *sums);
    }
}

/* Of weights that fall, from the smallest on. */
static inline __attribute__((always_inline)) float yk_route_sum(const float *w, uint32_t k)
{
    float s = 0.0f;
    for (uint32_t j = k; j > 0; j--)
        s += w[j - 1];
    return s;
}

/* Exponentials of the k chosen logits to weights: over `total`, and then over their own sum where that is asked for. */
static inline __attribute__((always_inline)) void yk_route_weights(float *w, uint32_t k, float total, bool renorm)
{
    for (uint32_t j = 0; j < k; j++)
        w[j] /= total;
    if (!renorm)
        return;
    const float chosen = yk_route_sum(w, k);
    for (uint32_t j = 0; j < k; j++)
        w[j] /= chosen;
}

#endif
