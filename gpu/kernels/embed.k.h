/* embed.k.h - rows of the embedding table. Contract: docs/kernels/gpu.md, arguments: gpu/kernels.h. */

/* Group (256 columns, t): row ids[t] as f32, exactly as its type defines it. panel_stride 0: rows in file layout, row_stride bytes apart;
 * else packed, tile j of panel p at w + p * panel_stride + j * row_stride. An id outside the table gives row 0. */
#define YK_EMBED_ARGS                                                                                                                 \
    YK_IN(w), YK_IN(ids), YK_OUT(out), const u32 n_rows, const u32 n_cols, const u32 row_stride, const u32 panel_stride, const u32 out_stride

#define YK_EMBED_BODY(type)                                                                                                           \
    const u32 j = yk_group(0), t = yk_group(1), n_blocks = yk_min(8u, n_cols / 32u - 8u * j);                                         \
    const u32 given = YK_CPTR(u32, ids)[t], id = given < n_rows ? given : 0u;                                                         \
    YK_GLOBAL const u8 *from = YK_CPTR(u8, w);                                                                                        \
    yk_items(i)                                                                                                                       \
    {                                                                                                                                 \
        for (u32 k = i; k < yk_min(256u, n_cols - 256u * j); k += YK_GROUP) {                                                         \
            const f32 v = panel_stride ? yk_tile_value(type, from + (u64)(id / 16u) * panel_stride + (u64)j * row_stride, n_blocks, k, \
                                                       id % 16u)                                                                      \
                                       : yk_file_value(type, from + (u64)id * row_stride, 256u * j + k);                              \
            YK_PTR(f32, out)[(u64)t * out_stride + 256u * j + k] = v;                                                                 \
        }                                                                                                                             \
    }

#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_F32
YK_KERNEL(embed_f32)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_F32) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_F16
YK_KERNEL(embed_f16)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_F16) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_BF16
YK_KERNEL(embed_bf16)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_BF16) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_0
YK_KERNEL(embed_q4_0)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_Q4_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_1
YK_KERNEL(embed_q4_1)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_Q4_1) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_0
YK_KERNEL(embed_q5_0)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_Q5_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_1
YK_KERNEL(embed_q5_1)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_Q5_1) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q8_0
YK_KERNEL(embed_q8_0)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_Q8_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q2_K
YK_KERNEL(embed_q2_k)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_Q2_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q3_K
YK_KERNEL(embed_q3_k)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_Q3_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_K
YK_KERNEL(embed_q4_k)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_Q4_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_K
YK_KERNEL(embed_q5_k)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_Q5_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q6_K
YK_KERNEL(embed_q6_k)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_Q6_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_IQ4_NL
YK_KERNEL(embed_iq4_nl)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_IQ4_NL) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_IQ4_XS
YK_KERNEL(embed_iq4_xs)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_IQ4_XS) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_MXFP4
YK_KERNEL(embed_mxfp4)(YK_EMBED_ARGS) { YK_EMBED_BODY(YK_W_MXFP4) }
#endif
