/* norm.c - RMS norm and vector additions. Contract: docs/kernels/norm.md. */
#include <math.h>

#include "cpu/ref/ref.h"

YK_CLONES static void rms_norm_ref(const float *x, const float *w, const float *b, uint32_t n, float eps, float *y)
{
    yk_v8 acc[2] = {{0}};
    uint32_t i = 0;
    for (; n - i >= YK_LANES; i += YK_LANES)
        yk_ref_mul_add16(x + i, x + i, acc);
    const float sum = yk_ref_finish16(x + i, x + i, n - i, acc);
    const float r = 1.0f / sqrtf(sum / (float)n + eps);
    for (i = 0; i < n; i++) {
        float v = x[i] * r;
        if (w)
            v = v * w[i];
        if (b)
            v = v + b[i];
        y[i] = v;
    }
}

YK_CLONES static void add_ref(const float *x, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] += x[i];
}

YK_CLONES static void add_scaled_ref(const float *x, float a, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

void yk_ref_fill_norm(yk_ops *ops)
{
    ops->rms_norm = rms_norm_ref;
    ops->add = add_ref;
    ops->add_scaled = add_scaled_ref;
}
