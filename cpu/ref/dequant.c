/* dequant.c - weights into f32, exactly as their type defines them. Contract: docs/kernels/matmul.md. */
#include "cpu/ref/unpack.h"

/* halves: scale and min change every 16 weights; mins: the type has minima; block_bytes of the type; per_group: its blocks
 * in 256 weights. */
YK_INLINE void dequant_blocks(const uint8_t *w, uint64_t n_elems, float *y, yk_ref_unpack unpack, bool halves, bool mins,
                              uint32_t block_bytes, uint32_t per_group)
{
    yk_ref_group g;
    for (uint64_t at = 0; at < n_elems; at += 256) {
        const uint32_t n = n_elems - at < 256 ? (uint32_t)((n_elems - at) / 32) : 8;
        unpack(w, n, &g);
        for (uint32_t b = 0; b < n; b++) {
            for (uint32_t h = 0; h < 2; h++) {
                const float scale = g.scale[halves ? h : 0][b], min = mins ? g.min[halves ? h : 0][b] : 0.0f;
                YK_KEEP_LOOP
                for (uint32_t i = 0; i < 16; i++)
                    y[at + 32 * b + 16 * h + i] = scale * (float)g.q[32 * b + 16 * h + i] - min;
            }
        }
        w += (size_t)block_bytes * per_group;
    }
}

YK_CLONES static void dequant_q4_0_ref(const uint8_t *w, uint64_t n, float *y)
{
    dequant_blocks(w, n, y, yk_ref_unpack_q4_0, false, false, 18, 8);
}

YK_CLONES static void dequant_q4_1_ref(const uint8_t *w, uint64_t n, float *y)
{
    dequant_blocks(w, n, y, yk_ref_unpack_q4_1, false, true, 20, 8);
}

YK_CLONES static void dequant_q5_0_ref(const uint8_t *w, uint64_t n, float *y)
{
    dequant_blocks(w, n, y, yk_ref_unpack_q5_0, false, false, 22, 8);
}

YK_CLONES static void dequant_q5_1_ref(const uint8_t *w, uint64_t n, float *y)
{
    dequant_blocks(w, n, y, yk_ref_unpack_q5_1, false, true, 24, 8);
}

YK_CLONES static void dequant_q8_0_ref(const uint8_t *w, uint64_t n, float *y)
{
    dequant_blocks(w, n, y, yk_ref_unpack_q8_0, false, false, 34, 8);
}

YK_CLONES static void dequant_iq4_nl_ref(const uint8_t *w, uint64_t n, float *y)
{
    dequant_blocks(w, n, y, yk_ref_unpack_iq4_nl, false, false, 18, 8);
}

YK_CLONES static void dequant_q2_k_ref(const uint8_t *w, uint64_t n, float *y)
{
    dequant_blocks(w, n, y, yk_ref_unpack_q2_k, true, true, 84, 1);
}

YK_CLONES static void dequant_q3_k_ref(const uint8_t *w, uint64_t n, float *y)
{
    dequant_blocks(w, n, y, yk_ref_unpack_q3_k, true, false, 110, 1);
}

YK_CLONES static void dequant_q4_k_ref(const uint8_t *w, uint64_t n, float *y)
{
    dequant_blocks(w, n, y, yk_ref_unpack_q4_k, false, true, 144, 1);
}

YK_CLONES static void dequant_q5_k_ref(const uint8_t *w, uint64_t n, float *y)
{
    dequant_blocks(w, n, y, yk_ref_unpack_q5_k, false, true, 176, 1);
}

YK_CLONES static void dequant_q6_k_ref(const uint8_t *w, uint64_t n, float *y)
{
    dequant_blocks(w, n, y, yk_ref_unpack_q6_k, true, false, 210, 1);
}

YK_CLONES static void dequant_iq4_xs_ref(const uint8_t *w, uint64_t n, float *y)
{
    dequant_blocks(w, n, y, yk_ref_unpack_iq4_xs, false, false, 136, 1);
}

/* Not through the group: code 8 is a negative zero, which an integer cannot hold. */
YK_CLONES static void dequant_mxfp4_ref(const uint8_t *w, uint64_t n, float *y)
{
    for (uint64_t b = 0; b < n / 32; b++, w += 17, y += 32) {
        const float scale = yk_ref_e8m0_half(w[0]);
        uint8_t codes[32];
        YK_KEEP_LOOP
        for (uint32_t i = 0; i < 16; i++) {
            codes[i] = w[1 + i] & 15;
            codes[i + 16] = w[1 + i] >> 4;
        }
        for (uint32_t i = 0; i < 32; i++) {
            const uint32_t v = yk_f32_bits((float)yk_ref_fp4x2(codes[i] & 7) * scale);
            y[i] = yk_bits_f32(v ^ (uint32_t)(codes[i] & 8) << 28);
        }
    }
}

static void dequant_f32_ref(const uint8_t *w, uint64_t n, float *y)
{
    memcpy(y, w, n * sizeof *y);
}

YK_CLONES static void dequant_f16_ref(const uint8_t *w, uint64_t n, float *y)
{
    for (uint64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, w + 2 * i, sizeof h);
        y[i] = yk_f16_to_f32(h);
    }
}

YK_CLONES static void dequant_bf16_ref(const uint8_t *w, uint64_t n, float *y)
{
    for (uint64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, w + 2 * i, sizeof h);
        y[i] = yk_bf16_to_f32(h);
    }
}

void yk_ref_fill_dequant(yk_ops *ops)
{
    ops->dequant[YK_TYPE_F32] = dequant_f32_ref;
    ops->dequant[YK_TYPE_F16] = dequant_f16_ref;
    ops->dequant[YK_TYPE_BF16] = dequant_bf16_ref;
    ops->dequant[YK_TYPE_Q4_0] = dequant_q4_0_ref;
    ops->dequant[YK_TYPE_Q4_1] = dequant_q4_1_ref;
    ops->dequant[YK_TYPE_Q5_0] = dequant_q5_0_ref;
    ops->dequant[YK_TYPE_Q5_1] = dequant_q5_1_ref;
    ops->dequant[YK_TYPE_Q8_0] = dequant_q8_0_ref;
    ops->dequant[YK_TYPE_Q2_K] = dequant_q2_k_ref;
    ops->dequant[YK_TYPE_Q3_K] = dequant_q3_k_ref;
    ops->dequant[YK_TYPE_Q4_K] = dequant_q4_k_ref;
    ops->dequant[YK_TYPE_Q5_K] = dequant_q5_k_ref;
    ops->dequant[YK_TYPE_Q6_K] = dequant_q6_k_ref;
    ops->dequant[YK_TYPE_IQ4_NL] = dequant_iq4_nl_ref;
    ops->dequant[YK_TYPE_IQ4_XS] = dequant_iq4_xs_ref;
    ops->dequant[YK_TYPE_MXFP4] = dequant_mxfp4_ref;
}
