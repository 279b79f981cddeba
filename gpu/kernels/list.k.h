/* list.k.h - products of the chosen FFN parts of each token, one launch for all of them (rows.k.h). Contract: docs/kernels/gpu.md, arguments:
 * gpu/kernels.h.
 *
 * Group (panel, j): slot j % used of token j / used, part ids[j]. Gate and up: panels of gate and up in turn, activations of the token, row j of y. Down (flags 1): row j
 * of the activations, row j of y = weights[j] * (sum + bias[part]). Terms are added as in the other products (product.k.h). */

#undef YK_MIN_GROUPS
#define YK_MIN_GROUPS 10

#define YK_LIST_ARGS                                                                                                                        \
    YK_IN(w), YK_IN(parts), YK_IN(ids), YK_IN(x), YK_IN(scale), YK_IN(sum), YK_IN(bias), YK_IN(weights), YK_OUT(y), const u32 used,         \
        const u32 n_rows, const u32 n_cols, const u32 x_stride, const u32 y_stride, const u32 panel_stride, const u32 col_stride, const u32 flags

/* The panel of this group, and where its tiles are, to m; 0 when the part has no such panel. */
YK_FN u32 yk_list_panel(yk_product *m, YK_GLOBAL const u8 *w, YK_GLOBAL const u32 *part, const u32 panel_stride, const u32 down)
{
    const u32 p = yk_group(0), n = part[YK_PART_UNITS], tail_unit = part[YK_PART_TAIL_UNIT];
    YK_GLOBAL const u8 *first = w + 256u * (u64)part[YK_PART_AT], *tail = w + 256u * (u64)part[YK_PART_TAIL_AT];
    if (down) {
        m->panel = first + part[YK_PART_DOWN] + (u64)p * part[YK_PART_TILE];
        m->col_stride = part[YK_PART_BYTES];
        m->tail = tail + part[YK_PART_TAIL_DOWN] + (u64)p * part[YK_PART_TAIL_TILE];
        m->tail_tile = tail_unit ? n : YK_NO_TILE;
        m->n_cols = yk_part_cols(part);
        return 1u;
    }
    const u32 pairs = (part[YK_PART_UNIT] + 15u) / 16u, q = p / 2u;
    if (q < n * pairs) {
        m->panel = first + (u64)(q / pairs) * part[YK_PART_BYTES] + (u64)(2u * (q % pairs) + p % 2u) * panel_stride;
        return 1u;
    }
    m->panel = tail + (u64)(2u * (q - n * pairs) + p % 2u) * panel_stride;
    return 16u * (q - n * pairs) < tail_unit ? 1u : 0u;
}

#define YK_LIST_BODY(type)                                                                                                                  \
    YK_SHARED(f32, partial, YK_MV_SHARED);                                                                                                  \
    const u32 j = yk_group(1), id = YK_CPTR(u32, ids)[j], down = flags & 1u;                                                                \
    const u64 row = down ? j : j / used;                                                                                                    \
    YK_GLOBAL const u32 *part = YK_CPTR(u32, parts) + (u64)id * YK_PART_WORDS;                                                              \
    yk_product m;                                                                                                                           \
    yk_product_out o;                                                                                                                       \
    m.x = YK_CPTR(f32, x) + row * x_stride;                                                                                                 \
    m.q = YK_CPTR(u32, x) + 8u * row * x_stride;                                                                                            \
    m.scale = scale_base ? YK_CPTR(f32, scale) + row * x_stride : (YK_GLOBAL const f32 *)0;                                                 \
    m.sum = sum_base ? YK_CPTR(i16, sum) + 2u * row * x_stride : (YK_GLOBAL const i16 *)0;                                                  \
    m.rows = (YK_GLOBAL const u32 *)0;                                                                                                      \
    m.n_cols = n_cols;                                                                                                                      \
    m.x_stride = x_stride;                                                                                                                  \
    m.col_stride = col_stride;                                                                                                              \
    m.t0 = 0;                                                                                                                               \
    m.n = 1u;                                                                                                                               \
    m.tail = m.panel = YK_CPTR(u8, w);                                                                                                      \
    m.tail_tile = YK_NO_TILE;                                                                                                               \
    o.y = YK_PTR(f32, y) + (u64)j * y_stride;                                                                                               \
    o.bias = bias_base ? YK_CPTR(f32, bias) + (u64)id * n_rows : (YK_GLOBAL const f32 *)0;                                                  \
    o.weights = weights_base ? YK_CPTR(f32, weights) + j : (YK_GLOBAL const f32 *)0;                                                        \
    o.y_rows = (YK_GLOBAL const u32 *)0;                                                                                                    \
    o.n_rows = n_rows;                                                                                                                      \
    o.y_stride = y_stride;                                                                                                                  \
    o.flags = 0;                                                                                                                            \
    if (!yk_list_panel(&m, YK_CPTR(u8, w), part, panel_stride, down)) /* nothing to do; barriers stay in uniform flow */                    \
        m.n_cols = o.n_rows = 0;                                                                                                            \
    yk_mv_one(type, &m, &o, partial);

#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_F32
YK_KERNEL(list_f32)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_F32) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_F16
YK_KERNEL(list_f16)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_F16) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_BF16
YK_KERNEL(list_bf16)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_BF16) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_0
YK_KERNEL(list_q4_0)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_Q4_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_1
YK_KERNEL(list_q4_1)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_Q4_1) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_0
YK_KERNEL(list_q5_0)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_Q5_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_1
YK_KERNEL(list_q5_1)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_Q5_1) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q8_0
YK_KERNEL(list_q8_0)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_Q8_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q2_K
YK_KERNEL(list_q2_k)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_Q2_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q3_K
YK_KERNEL(list_q3_k)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_Q3_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_K
YK_KERNEL(list_q4_k)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_Q4_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_K
YK_KERNEL(list_q5_k)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_Q5_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q6_K
YK_KERNEL(list_q6_k)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_Q6_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_IQ4_NL
YK_KERNEL(list_iq4_nl)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_IQ4_NL) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_IQ4_XS
YK_KERNEL(list_iq4_xs)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_IQ4_XS) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_MXFP4
YK_KERNEL(list_mxfp4)(YK_LIST_ARGS) { YK_LIST_BODY(YK_W_MXFP4) }
#endif
