/* matvec.k.h - packed weights times activations. Contract: docs/kernels/gpu.md, arguments: gpu/kernels.h.
 *
 * A group computes 16 rows (one panel) for one token or for up to 8. Work-item i has row i % 16 and the blocks of 32 columns whose number is
 * i / 16 modulo 4: sixteen neighbours read 64 neighbouring bytes. A block's integer product is exact; the f32 terms of a work-item are added
 * in the order of columns, the four parts of a row as (0 + 1) + (2 + 3). The result of a token does not depend on the others. */

#define YK_MV_TOKENS 8u
#define YK_MV_PARTS 4u
#define YK_MV_SHARED 512u /* YK_MV_TOKENS * YK_GROUP */

/* Tile j of panel p lies at w + (p / group_panels) * group_stride + (p % group_panels) * panel_stride + j * col_stride. */
typedef struct yk_mv {
    YK_GLOBAL const u8 *panel;      /* first tile of this group's panel */
    YK_GLOBAL const f32 *x, *scale; /* float types: activations; else scales of rounded ones */
    YK_GLOBAL const u32 *q;
    YK_GLOBAL const i16 *sum;
    YK_GLOBAL const u32 *rows;
    u32 n_cols, x_stride, col_stride, t0, n; /* x_stride: floats, or blocks of a rounded row */
} yk_mv;

/* Row of activations for token k of this group; tokens that do not exist repeat the last one, so that nothing branches. */
YK_FN u32 yk_mv_row(const yk_mv *m, const u32 k)
{
    const u32 t = m->t0 + yk_min(k, m->n - 1u);
    return m->rows ? m->rows[t] : t;
}

/* Sums of one work-item over its blocks of rounded activations; nt is a constant at each call. */
YK_FN void yk_mv_rounded(const u32 type, const yk_mv *m, const u32 nt, const u32 i, f32 *acc)
{
    const u32 r = i % 16u, n_blocks = m->n_cols / 32u;
    for (u32 b = i / 16u; b < n_blocks; b += YK_MV_PARTS) {
        u32 c[8];
        f32 s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        YK_GLOBAL const u8 *tile = m->panel + (u64)(b / 8u) * m->col_stride;
        const u32 blocks = yk_min(8u, n_blocks - b / 8u * 8u); /* of this tile */
        yk_tile_codes(type, tile, blocks, b % 8u, r, c);
        yk_tile_scales(type, tile, blocks, b % 8u, r, s);
        YK_UNROLL
        for (u32 k = 0; k < nt; k++) {
            const u64 at = (u64)yk_mv_row(m, k) * m->x_stride + b;
            acc[k] += m->scale[at] * yk_tile_dot(type, c, s, m->q + 8u * at, m->sum + 2u * at);
        }
    }
}

/* The same for float weights and activations; a block is summed first. */
YK_FN void yk_mv_float(const u32 type, const yk_mv *m, const u32 nt, const u32 i, f32 *acc)
{
    const u32 r = i % 16u;
    for (u32 k0 = i / 16u * 32u; k0 < m->n_cols; k0 += 32u * YK_MV_PARTS) {
        YK_GLOBAL const u8 *tile = m->panel + (u64)(k0 / 256u) * m->col_stride;
        f32 block[YK_MV_TOKENS];
        YK_UNROLL
        for (u32 k = 0; k < nt; k++)
            block[k] = 0.0f;
        for (u32 j = 0; j < yk_min(32u, m->n_cols - k0); j++) {
            const f32 w = yk_tile_float(type, tile, k0 % 256u + j, r);
            YK_UNROLL
            for (u32 k = 0; k < nt; k++)
                block[k] += w * m->x[(u64)yk_mv_row(m, k) * m->x_stride + k0 + j];
        }
        YK_UNROLL
        for (u32 k = 0; k < nt; k++)
            acc[k] += block[k];
    }
}

YK_FN void yk_mv_part(const u32 type, const yk_mv *m, const u32 nt, const u32 i, YK_LOCAL f32 *part)
{
    f32 acc[YK_MV_TOKENS];
    YK_UNROLL
    for (u32 k = 0; k < nt; k++)
        acc[k] = 0.0f;
    if (yk_is_float_type(type))
        yk_mv_float(type, m, nt, i, acc);
    else
        yk_mv_rounded(type, m, nt, i, acc);
    YK_UNROLL
    for (u32 k = 0; k < nt; k++)
        part[k * YK_GROUP + i] = acc[k];
}

/* Where results go: y[y_rows[t]][row] = or += weights[t] * (sum + bias[row]). */
typedef struct yk_mv_out {
    YK_GLOBAL f32 *y;
    YK_GLOBAL const f32 *bias, *weights;
    YK_GLOBAL const u32 *y_rows;
    u32 n_rows, y_stride, flags; /* flags 1: add to y */
} yk_mv_out;

YK_FN void yk_mv_store(const yk_mv *m, const yk_mv_out *o, const u32 i, YK_LOCAL const f32 *part)
{
    for (u32 e = i; e < 16u * m->n; e += YK_GROUP) {
        const u32 k = e / 16u, t = m->t0 + k, row = 16u * yk_group(0) + e % 16u;
        YK_LOCAL const f32 *p = part + k * YK_GROUP + e % 16u;
        if (row < o->n_rows) {
            f32 v = (p[0] + p[16]) + (p[32] + p[48]);
            if (o->bias)
                v += o->bias[row];
            if (o->weights)
                v = o->weights[t] * v;
            YK_GLOBAL f32 *y = o->y + (u64)(o->y_rows ? o->y_rows[t] : t) * o->y_stride + row;
            *y = o->flags & 1u ? *y + v : v;
        }
    }
}

YK_FN void yk_mv_group(const u32 type, const yk_mv *m, const yk_mv_out *o, YK_LOCAL f32 *part)
{
    if (m->n == 1u) {
        yk_items(i)
        {
            yk_mv_part(type, m, 1u, i, part);
        }
    } else {
        yk_items(i)
        {
            yk_mv_part(type, m, YK_MV_TOKENS, i, part);
        }
    }
    yk_barrier();
    yk_items(i)
    {
        yk_mv_store(m, o, i, part);
    }
}

/* Group (panel, eight tokens). x: f32 activations (float weights) or int8 (others); scale, sum: of rounded activations. */
#define YK_MATVEC_ARGS                                                                                                                \
    YK_IN(w), YK_IN(x), YK_IN(scale), YK_IN(sum), YK_IN(rows), YK_IN(bias), YK_IN(weights), YK_OUT(y), YK_IN(y_rows), const u32 n_rows, \
        const u32 n_cols, const u32 n_tokens, const u32 x_stride, const u32 y_stride, const u32 panel_stride, const u32 col_stride,      \
        const u32 group_panels, const u32 group_stride, const u32 flags

#define YK_MATVEC_BODY(type)                                                                                                          \
    YK_SHARED(f32, part, YK_MV_SHARED);                                                                                               \
    const u32 p = yk_group(0), t0 = yk_group(1) * YK_MV_TOKENS;                                                                       \
    yk_mv m;                                                                                                                          \
    yk_mv_out o;                                                                                                                      \
    m.panel = YK_CPTR(u8, w) + (u64)(p / group_panels) * group_stride + (u64)(p % group_panels) * panel_stride;                       \
    m.x = YK_CPTR(f32, x);                                                                                                            \
    m.q = YK_CPTR(u32, x);                                                                                                            \
    m.scale = YK_CPTR(f32, scale);                                                                                                    \
    m.sum = YK_CPTR(i16, sum);                                                                                                        \
    m.rows = YK_CPTR(u32, rows);                                                                                                      \
    m.n_cols = n_cols;                                                                                                                \
    m.x_stride = x_stride;                                                                                                            \
    m.col_stride = col_stride;                                                                                                        \
    m.t0 = t0;                                                                                                                        \
    m.n = yk_min(YK_MV_TOKENS, n_tokens - t0);                                                                                        \
    o.y = YK_PTR(f32, y);                                                                                                             \
    o.bias = YK_CPTR(f32, bias);                                                                                                      \
    o.weights = YK_CPTR(f32, weights);                                                                                                \
    o.y_rows = YK_CPTR(u32, y_rows);                                                                                                  \
    o.n_rows = n_rows;                                                                                                                \
    o.y_stride = y_stride;                                                                                                            \
    o.flags = flags;                                                                                                                  \
    yk_mv_group(type, &m, &o, part);

#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_F32
YK_KERNEL(matvec_f32)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_F32) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_F16
YK_KERNEL(matvec_f16)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_F16) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_BF16
YK_KERNEL(matvec_bf16)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_BF16) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_0
YK_KERNEL(matvec_q4_0)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_Q4_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_1
YK_KERNEL(matvec_q4_1)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_Q4_1) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_0
YK_KERNEL(matvec_q5_0)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_Q5_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_1
YK_KERNEL(matvec_q5_1)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_Q5_1) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q8_0
YK_KERNEL(matvec_q8_0)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_Q8_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q2_K
YK_KERNEL(matvec_q2_k)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_Q2_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q3_K
YK_KERNEL(matvec_q3_k)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_Q3_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_K
YK_KERNEL(matvec_q4_k)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_Q4_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_K
YK_KERNEL(matvec_q5_k)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_Q5_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q6_K
YK_KERNEL(matvec_q6_k)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_Q6_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_IQ4_NL
YK_KERNEL(matvec_iq4_nl)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_IQ4_NL) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_IQ4_XS
YK_KERNEL(matvec_iq4_xs)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_IQ4_XS) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_MXFP4
YK_KERNEL(matvec_mxfp4)(YK_MATVEC_ARGS) { YK_MATVEC_BODY(YK_W_MXFP4) }
#endif
