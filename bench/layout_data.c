/* layout_data.c - random weights as a GGUF file would hold them, activations in every form the kernels want, exact references.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/layout_data.h"
#include "src/base/half.h"

uint32_t yk_lay_random(uint64_t *state)
{
    *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
    return (uint32_t)(*state >> 32);
}

static void put_half(uint8_t *p, float x)
{
    const uint16_t h = yk_f32_to_f16(x);
    memcpy(p, &h, 2);
}

/* Every bit pattern of codes and 6-bit scales occurs; f16 scales are around 0.01 of either sign. */
void yk_lay_random_rows(yk_lay type, uint32_t rows, uint32_t cols, uint64_t *state, uint8_t *out)
{
    const yk_lay_traits *t = &yk_lay_types[type];
    const size_t blocks = (size_t)rows * cols / t->block_elems;
    for (size_t i = 0; i < blocks * t->block_bytes; i++)
        out[i] = (uint8_t)yk_lay_random(state);
    for (size_t i = 0; i < blocks; i++) {
        uint8_t *w = out + i * t->block_bytes;
        const float d = (float)(int32_t)yk_lay_random(state) * 0x1p-31f;
        switch (type) {
        case YK_LAY_F16:
            put_half(w, d * 0.1f);
            break;
        case YK_LAY_Q4_K:
            put_half(w, d * 0.01f), put_half(w + 2, d * 0.02f);
            break;
        case YK_LAY_Q6_K:
            put_half(w + 208, d * 0.01f);
            break;
        default:
            put_half(w, d * 0.01f);
            break;
        }
    }
}

static void *take(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (p)
        memset(p, 0, (bytes + 63) & ~(size_t)63);
    return p;
}

void yk_lay_act_free(yk_lay_act *a)
{
    void *all[] = {a->x, a->q, a->scale, a->sum, a->off, a->fsum, a->q_blk, a->scale_blk, a->fsum_blk, a->off_blk, a->xb_blk};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    memset(a, 0, sizeof *a);
}

static void fill_block(yk_lay_act *a, yk_lay type, uint32_t t, uint32_t b)
{
    const size_t i = (size_t)t * (a->cols / 32) + b, blk = yk_lay_blk(b, t, a->n), second = yk_lay_entries(a->n, a->cols);
    const float *x = a->x + 32 * i;
    float top = 0;
    int32_t sum[2] = {0, 0};
    for (int k = 0; k < 32; k++)
        top = fmaxf(top, fabsf(x[k]));
    a->scale[i] = top / 127;
    for (int k = 0; k < 32; k++) {
        const int8_t v = (int8_t)(top > 0 ? roundf(x[k] / a->scale[i]) : 0);
        a->q[32 * i + k] = a->q_blk[32 * blk + k] = v;
        a->xb_blk[32 * blk + k] = yk_f32_to_bf16(x[k]);
        sum[k / 16] += v;
    }
    a->sum[i] = sum[0] + sum[1];
    a->fsum[i] = a->fsum_blk[blk] = a->scale[i] * (float)a->sum[i];
    a->scale_blk[blk] = a->scale[i];
    if (type == YK_LAY_Q6_K)
        for (uint32_t p = 0; p < 2; p++)
            a->off[2 * i + p] = a->off_blk[p * second + blk] = -32 * sum[p];
    else
        a->off[i] = a->off_blk[blk] = (type == YK_LAY_Q8_0 ? -128 : -8) * a->sum[i];
}

int yk_lay_act_make(yk_lay_act *a, yk_lay type, uint32_t n, uint32_t cols, uint64_t *state)
{
    const size_t e = (size_t)n * cols, e16 = 32 * yk_lay_entries(n, cols);
    *a = (yk_lay_act){.n = n, .cols = cols};
    a->x = take(4 * e), a->q = take(e), a->scale = take(e / 8), a->sum = take(e / 8), a->off = take(e / 4),
    a->fsum = take(e / 8);
    a->q_blk = take(e16), a->scale_blk = take(e16 / 8), a->fsum_blk = take(e16 / 8), a->xb_blk = take(2 * e16);
    a->off_blk = take(e16 / 4);
    if (!a->x || !a->q || !a->scale || !a->sum || !a->off || !a->fsum || !a->q_blk || !a->scale_blk || !a->fsum_blk ||
        !a->off_blk || !a->xb_blk) {
        yk_lay_act_free(a);
        return 0;
    }
    for (size_t i = 0; i < e; i++) /* an outlier now and then */
        a->x[i] = (float)(int32_t)yk_lay_random(state) * 0x1p-31f * (i % 251 == 0 ? 20 : 1);
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t b = 0; b < cols / 32; b++)
            fill_block(a, type, t, b);
    return 1;
}

void yk_lay_reference(yk_lay type, const uint8_t *row, const yk_lay_act *a, uint32_t t, double *w, double *y, double *size)
{
    yk_lay_dequant(type, row, a->cols, w);
    *y = *size = 0;
    for (uint32_t k = 0; k < a->cols; k++) {
        const size_t i = (size_t)t * a->cols + k;
        const double x = type == YK_LAY_F16 ? (double)a->x[i] : (double)a->scale[i / 32] * a->q[i];
        *y += w[k] * x;
        *size += fabs(w[k] * x);
    }
}
