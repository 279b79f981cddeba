/* matvec.k.h - packed weights times the activations of one token, or of up to 8 (rows.k.h). */

#undef YK_MIN_GROUPS
#define YK_MIN_GROUPS 10 /* 96 registers; with 80 some types spill */

#define YK_MATVEC_BODY(type)                                                                                                          \
    YK_SHARED(f32, part, YK_MV_SHARED);                                                                                               \
    YK_PRODUCT_SETUP(YK_MV_TOKENS)                                                                                                    \
    yk_mv_group(type, &m, &o, part);

#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_F32
YK_KERNEL(matvec_f32)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_F32) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_F16
YK_KERNEL(matvec_f16)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_F16) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_BF16
YK_KERNEL(matvec_bf16)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_BF16) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_0
YK_KERNEL(matvec_q4_0)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_Q4_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_1
YK_KERNEL(matvec_q4_1)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_Q4_1) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_0
YK_KERNEL(matvec_q5_0)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_Q5_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_1
YK_KERNEL(matvec_q5_1)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_Q5_1) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q8_0
YK_KERNEL(matvec_q8_0)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_Q8_0) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q2_K
YK_KERNEL(matvec_q2_k)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_Q2_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q3_K
YK_KERNEL(matvec_q3_k)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_Q3_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q4_K
YK_KERNEL(matvec_q4_k)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_Q4_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q5_K
YK_KERNEL(matvec_q5_k)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_Q5_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_Q6_K
YK_KERNEL(matvec_q6_k)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_Q6_K) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_IQ4_NL
YK_KERNEL(matvec_iq4_nl)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_IQ4_NL) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_IQ4_XS
YK_KERNEL(matvec_iq4_xs)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_IQ4_XS) }
#endif
#if YK_ONLY == YK_W_ALL || YK_ONLY == YK_W_MXFP4
YK_KERNEL(matvec_mxfp4)(YK_PRODUCT_ARGS) { YK_MATVEC_BODY(YK_W_MXFP4) }
#endif
