/* rope.c - rotary positions. Contract: docs/kernels/rope.md. */
#include "cpu/ref/ref.h"

YK_CLONES static void rope_ref(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot, const float *cs,
                               yk_rope_pairing pairing)
{
    const uint32_t n_pairs = n_rot / 2;
    const uint32_t step = pairing == YK_ROPE_ADJACENT ? 2 : 1, other = pairing == YK_ROPE_ADJACENT ? 1 : n_pairs;
    for (uint32_t h = 0; h < n_heads; h++, x += head_dim) {
        for (uint32_t i = 0; i < n_pairs; i++) {
            const float c = cs[2 * i], s = cs[2 * i + 1];
            const float a = x[step * i], b = x[step * i + other];
            x[step * i] = a * c - b * s;
            x[step * i + other] = a * s + b * c;
        }
    }
}

void yk_ref_fill_rope(yk_ops *ops)
{
    ops->rope = rope_ref;
}
