/* matmul.k.h - packed weights times the activations of many tokens (product.k.h).
 *
 * A group computes 16 rows (one panel) for 64 tokens, so the weights are read once for them. Work-item i has rows 2 (i % 8) and the next, and tokens
 * 8 (i / 8) to the seventh behind: a block that is unpacked meets eight tokens, the activations of a block meet two rows. It goes over the four
 * parts of the blocks one after the other. */

#undef YK_MIN_GROUPS
#define YK_MIN_GROUPS 6

#define YK_MM_TOKENS 64u
#define YK_MM_OWN 8u /* tokens of a work-item */

/* acc[row][token] += the terms of part p, for tokens k0.. of the group. */
YK_FN void yk_mm_rounded(const u32 type, const yk_product *m, const u32 r0, const u32 k0, const u32 p, f32 acc[2][8])
{
    const u32 n_blocks = m->n_cols / 32u;
    for (u32 b = p; b < n_blocks; b += YK_PARTS) {
        u32 c[2][8];
        f32 s[2][4] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
        YK_GLOBAL const u8 *tile = m->panel + (u64)(b / 8u) * m->col_stride;
        const u32 blocks = yk_min(8u, n_blocks - b / 8u * 8u); /* of this tile */
        YK_UNROLL
        for (u32 j = 0; j < 2u; j++) {
            yk_tile_codes(type, tile, blocks, b % 8u, r0 + j, c[j]);
            yk_tile_scales(type, tile, blocks, b % 8u, r0 + j, s[j]);
        }
        YK_UNROLL
        for (u32 k = 0; k < YK_MM_OWN; k++) {
            const yk_acts x = yk_pr_acts(m, k0 + k, b);
            acc[0][k] += x.scale * yk_tile_dot(type, c[0], s[0], x.q, x.sum);
            acc[1][k] += x.scale * yk_tile_dot(type, c[1], s[1], x.q, x.sum);
        }
    }
}

/* The same for float weights and activations; a block is summed first. */
YK_FN void yk_mm_float(const u32 type, const yk_product *m, const u32 r0, const u32 k0, const u32 p, f32 acc[2][8])
{
    for (u32 c0 = 32u * p; c0 < m->n_cols; c0 += 32u * YK_PARTS) {
        YK_GLOBAL const u8 *tile = m->panel + (u64)(c0 / 256u) * m->col_stride;
        f32 block[2][8];
        YK_UNROLL
        for (u32 k = 0; k < YK_MM_OWN; k++)
            block[0][k] = block[1][k] = 0.0f;
        for (u32 j = 0; j < yk_min(32u, m->n_cols - c0); j++) {
            const f32 w0 = yk_tile_float(type, tile, c0 % 256u + j, r0), w1 = yk_tile_float(type, tile, c0 % 256u + j, r0 + 1u);
            YK_UNROLL
            for (u32 k = 0; k < YK_MM_OWN; k++) {
                const f32 x = m->x[(u64)yk_pr_row(m, k0 + k) * m->x_stride + c0 + j];
                block[0][k] += w0 * x;
                block[1][k] += w1 * x;
            }
        }
        YK_UNROLL
        for (u32 k = 0; k < YK_MM_OWN; k++) {
            acc[0][k] += block[0][k];
            acc[1][k] += block[1][k];
        }
    }
}

YK_FN void yk_mm_item(const u32 type, const yk_product *m, const yk_product_out *o, const u32 i)
{
    const u32 r0 = 2u * (i % 8u), k0 = YK_MM_OWN * (i / 8u);
    f32 total[2][8], pair[2][8]; /* parts 0 + 1; part 2 */
    if (k0 >= m->n)
        return;
    for (u32 p = 0; p < YK_PARTS; p++) {
        f32 acc[2][8];
        YK_UNROLL
        for (u32 k = 0; k < YK_MM_OWN; k++)
            acc[0][k] = acc[1][k] = 0.0f;
        if (yk_is_float_type(type))
            yk_mm_float(type, m, r0, k0, p, acc);
        else
            yk_mm_rounded(type, m, r0, k0, p, acc);
        YK_UNROLL
        for (u32 k = 0; k < YK_MM_OWN; k++) {
            YK_UNROLL
            for (u32 j = 0; j < 2u; j++) {
                const f32 v = acc[j][k];
                if (p == 2u)
                    pair[j][k] = v;
                else
                    total[j][k] = p == 0u ? v : p == 1u ? total[j][k] + v : total[j][k] + (pair[j][k] + v);
            }
        }
    }
    YK_UNROLL
    for (u32 k = 0; k < YK_MM_OWN; k++) {
        if (k0 + k < m->n) {
            yk_pr_put(o, m->t0 + k0 + k, 16u * yk_group(0) + r0, total[0][k]);
            yk_pr_put(o, m->t0 + k0 + k, 16u * yk_group(0) + r0 + 1u, total[1][k]);
        }
    }
}

#define YK_MATMUL_BODY(type)                                                                                                          \
    YK_PRODUCT_SETUP(YK_MM_TOKENS)                                                                                                    \
    yk_items(i)                                                                                                                       \
    {                                                                                                                                 \
        yk_mm_item(type, &m, &o, i);                                                                                                  \
    }

#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_F32
YK_KERNEL(matmul_f32)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_F32) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_F16
YK_KERNEL(matmul_f16)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_F16) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_BF16
YK_KERNEL(matmul_bf16)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_BF16) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_0
YK_KERNEL(matmul_q4_0)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_Q4_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_1
YK_KERNEL(matmul_q4_1)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_Q4_1) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_0
YK_KERNEL(matmul_q5_0)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_Q5_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_1
YK_KERNEL(matmul_q5_1)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_Q5_1) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q8_0
YK_KERNEL(matmul_q8_0)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_Q8_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q2_K
YK_KERNEL(matmul_q2_k)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_Q2_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q3_K
YK_KERNEL(matmul_q3_k)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_Q3_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_K
YK_KERNEL(matmul_q4_k)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_Q4_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_K
YK_KERNEL(matmul_q5_k)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_Q5_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q6_K
YK_KERNEL(matmul_q6_k)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_Q6_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_IQ4_NL
YK_KERNEL(matmul_iq4_nl)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_IQ4_NL) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_IQ4_XS
YK_KERNEL(matmul_iq4_xs)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_IQ4_XS) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_MXFP4
YK_KERNEL(matmul_mxfp4)(YK_PRODUCT_ARGS) { YK_MATMUL_BODY(YK_W_MXFP4) }
#endif
