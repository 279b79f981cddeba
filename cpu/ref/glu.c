/* glu.c - gated activations. Contract: docs/kernels/glu.md. */
#include "cpu/ref/exp.h"

YK_CLONES static void glu_ref(const float *gate, const float *up, uint32_t n, yk_glu kind, float *y)
{
    if (kind == YK_GLU_SILU) {
        for (uint32_t i = 0; i < n; i++) {
            const float g = gate[i];
            y[i] = g / (1.0f + yk_ref_exp(-g)) * up[i];
        }
        return;
    }
    /* Comparisons are written so that a NaN passes through. */
    for (uint32_t i = 0; i < n; i++) {
        const float g = gate[i] > 7.0f ? 7.0f : gate[i];
        float u = up[i] > 7.0f ? 7.0f : up[i];
        u = u < -7.0f ? -7.0f : u;
        y[i] = g / (1.0f + yk_ref_exp(-1.702f * g)) * (u + 1.0f);
    }
}

void yk_ref_fill_glu(yk_ops *ops)
{
    ops->glu = glu_ref;
}
