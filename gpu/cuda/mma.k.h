/* mma.k.h - packed weights times rounded activations of many tokens by integer matrix units (docs/kernels/mma.md). Arguments and bits of matmul_TYPE.
 *
 * A group of 4 warps computes 64 rows (a panel of 16 each) for 64 tokens. It goes over the four parts of the blocks one after the other, two blocks a
 * stage: what a stage needs is brought to shared memory two stages ahead. A warp's block is A of an mma, 16 rows by 32 columns, as the packed layout has
 * it: lane 4 g + i needs the words of rows g and g + 8 of column groups i and i + 4. B are 8 tokens.
 *
 * The integer sums start at the bits of 1.5 * 2^23, less what the offset of the codes adds: with that the sum, read as a float, is 1.5 * 2^23 plus the
 * product, exactly, since products of a block lie below 2^22; a subtraction gives the product as a float, where a conversion would cost more. */

#undef YK_THREADS
#define YK_THREADS 128
#undef YK_MIN_GROUPS
#define YK_MIN_GROUPS 2

#define YK_MMA_TOKENS 64u
#define YK_MMA_PANELS 4u
#define YK_MMA_DEPTH  2u /* blocks of a stage */
#define YK_MMA_STAGES 3u
#define YK_MMA_MAGIC  12582912.0f
#define YK_MMA_BITS   0x4b400000

/* What a block of a panel has in shared memory, one behind the other: codes, high bits, scales, minima, and the f16 scales of its tile. */
#define yk_mma_codes(t)    ((t) == YK_W_Q8_0 ? 512u : (t) == YK_W_Q2_K || (t) == YK_W_Q3_K ? 128u : 256u)
#define yk_mma_high(t)     ((t) == YK_W_Q6_K ? 128u : yk_has_fifth_bit(t) || (t) == YK_W_Q3_K ? 64u : 0u)
#define yk_mma_nested(t)   ((t) == YK_W_Q4_K || (t) == YK_W_Q5_K) /* 8-bit scales and minima */
#define yk_mma_scales(t)   ((t) == YK_W_MXFP4 || (t) == YK_W_IQ4_XS || yk_mma_nested(t) ? 16u : 32u)
#define yk_mma_minima(t)   (yk_has_block_min(t) ? 32u : yk_mma_nested(t) ? 16u : 0u)
#define yk_mma_top(t)      (yk_mma_nested(t) || (t) == YK_W_Q2_K ? 64u : yk_has_halves(t) || (t) == YK_W_IQ4_XS ? 32u : 0u)
#define yk_mma_high_at(t)  yk_mma_codes(t)
#define yk_mma_scale_at(t) (yk_mma_high_at(t) + yk_mma_high(t))
#define yk_mma_min_at(t)   (yk_mma_scale_at(t) + yk_mma_scales(t))
#define yk_mma_top_at(t)   (yk_mma_min_at(t) + yk_mma_minima(t))
#define yk_mma_slab(t)     (yk_mma_top_at(t) + yk_mma_top(t))

/* Activations of a block: 64 tokens of 32 bytes, their scales, the sums of both halves. */
#define YK_MMA_X_SCALE  (32u * YK_MMA_TOKENS)
#define YK_MMA_X_SUM    (36u * YK_MMA_TOKENS)
#define YK_MMA_X        (40u * YK_MMA_TOKENS)
#define yk_mma_step(t)  (YK_MMA_X + YK_MMA_PANELS * yk_mma_slab(t))
#define yk_mma_stage(t) (YK_MMA_DEPTH * yk_mma_step(t))

/* What a thread of the group loads: a piece of 16 bytes of a token's activations, the scale or the sums of a token, and pieces of its warp's panel. */
typedef struct yk_mma_loads {
    const u8 *panel; /* of the warp; null: it has none */
    const u32 *q;    /* null: nothing */
    const u32 *pair; /* scale or sums */
    u32 q_to, pair_to, lane, n_blocks, col_stride;
} yk_mma_loads;

/* Two pieces of 16 bytes of a token change places for every other four tokens, and pieces of four rows likewise for every other two groups of columns, so
 * that what a warp reads by one instruction lies in different banks. */
YK_FN u32 yk_mma_x_at(const u32 token, const u32 half_)
{
    return 32u * token + 16u * (half_ ^ (token >> 2 & 1u));
}

YK_FN u32 yk_mma_swizzle(const u32 type, const u32 at)
{
    return yk_mma_codes(type) >= 256u && at < yk_mma_codes(type) ? at ^ (at >> 7 & 1u) << 5 : at;
}

/* Where the piece `at` of a block's slab lies in its tile of n blocks. */
YK_FN u32 yk_mma_from(const u32 type, const u32 at, const u32 b, const u32 n)
{
    const u32 scale_at = type == YK_W_Q2_K                          ? 1024u
                         : type == YK_W_Q3_K                        ? 1536u
                         : type == YK_W_Q5_K                        ? 2560u
                         : type == YK_W_Q6_K                        ? 3072u
                         : type == YK_W_Q4_K || type == YK_W_IQ4_XS ? 2048u
                                                                    : (yk_mma_codes(type) + yk_mma_high(type)) * n;
    if (at < yk_mma_high_at(type))
        return yk_mma_codes(type) * b + at;
    if (at < yk_mma_scale_at(type))
        return (type == YK_W_Q3_K                        ? 1024u
                : type == YK_W_Q5_K || type == YK_W_Q6_K ? 2048u
                                                         : 256u * n) +
               yk_mma_high(type) * b + at - yk_mma_high_at(type);
    if (at < yk_mma_min_at(type))
        return scale_at + yk_mma_scales(type) * b + at - yk_mma_scale_at(type);
    if (at < yk_mma_top_at(type))
        return scale_at + (yk_has_block_min(type) ? 32u * n : 128u) + yk_mma_minima(type) * b + at - yk_mma_min_at(type);
    return scale_at + (type == YK_W_IQ4_XS ? 128u : 256u) + at - yk_mma_top_at(type);
}

/* Blocks p + 8 i and p + 8 i + 4 to a stage. */
YK_FN void yk_mma_load(const u32 type, const yk_mma_loads *l, u8 *stage, const u32 warp, const u32 first)
{
    YK_UNROLL
    for (u32 d = 0; d < YK_MMA_DEPTH; d++) {
        const u32 b = first + YK_PARTS * d;
        u8 *to = stage + d * yk_mma_step(type);
        if (b >= l->n_blocks)
            break;
        if (l->q)
            yk_cp_async16(to + l->q_to, l->q + 8u * b);
        if (l->pair)
            yk_cp_async4(to + l->pair_to, l->pair + b);
        if (l->panel) {
            const u8 *tile = l->panel + (u64)(b / 8u) * l->col_stride;
            u8 *slab = to + YK_MMA_X + warp * yk_mma_slab(type);
            const u32 n = yk_min(8u, l->n_blocks - b / 8u * 8u);
            YK_UNROLL
            for (u32 at = 16u * l->lane; at < yk_mma_slab(type); at += 512u)
                yk_cp_async16(slab + yk_mma_swizzle(type, at), tile + yk_mma_from(type, at, b % 8u, n));
        }
    }
}

YK_FN u32 yk_mma_word(const u8 *p)
{
    return *(const u32 *)(const void *)p;
}

/* A of a block: a[h] rows g + 8 h of columns 4 i.., a[2 + h] of columns 16 + 4 i.. */
YK_FN void yk_mma_a(const u32 type, const u8 *slab, const u32 g, const u32 i, u32 *a)
{
    const u8 *high = slab + yk_mma_high_at(type);
    YK_UNROLL
    for (u32 h = 0; h < 2; h++) {
        const u32 r = g + 8u * h;
        u32 lo, hi;
        if (yk_mma_codes(type) == 128u) {
            lo = yk_mma_word(slab + 4u * r) >> 2u * i & 0x03030303u;
            hi = yk_mma_word(slab + 64u + 4u * r) >> 2u * i & 0x03030303u;
        } else {
            const u8 *at = slab + yk_mma_swizzle(type, 64u * i + 4u * r);
            const u32 w = yk_mma_word(at);
            lo = type == YK_W_Q8_0 ? w : w & 0x0f0f0f0fu;
            hi = type == YK_W_Q8_0 ? yk_mma_word(at + 256u) : w >> 4 & 0x0f0f0f0fu;
        }
        if (type == YK_W_Q6_K) {
            lo |= (yk_mma_word(high + 4u * r) >> 2u * i & 0x03030303u) << 4;
            hi |= (yk_mma_word(high + 64u + 4u * r) >> 2u * i & 0x03030303u) << 4;
        } else if (yk_mma_high(type)) {
            const u32 w = yk_mma_word(high + 4u * r) >> i, shift = type == YK_W_Q3_K ? 2u : 4u;
            lo |= (w & 0x01010101u) << shift;
            hi |= (w >> 4 & 0x01010101u) << shift;
        }
        a[h] = yk_is_table_type(type) ? yk_tile_values(type, lo) : lo;
        a[2 + h] = yk_is_table_type(type) ? yk_tile_values(type, hi) : hi;
    }
}

/* As yk_tile_scales, of a slab. */
YK_FN void yk_mma_s(const u32 type, const u8 *slab, const u32 r, f32 *s)
{
    const u8 *scale = slab + yk_mma_scale_at(type), *min = slab + yk_mma_min_at(type), *top = slab + yk_mma_top_at(type);
    if (type == YK_W_MXFP4) {
        s[0] = yk_tile_exponent(scale[r]);
    } else if (type == YK_W_IQ4_XS) {
        s[0] = yk_tile_half(top + 2u * r) * (f32)(i8)scale[r];
    } else if (yk_mma_nested(type)) {
        s[0] = yk_tile_half(top + 2u * r) * (f32)scale[r];
        s[2] = yk_tile_half(top + 32u + 2u * r) * (f32)min[r];
    } else if (yk_has_halves(type)) {
        const f32 d = yk_tile_half(top + 2u * r), dmin = type == YK_W_Q2_K ? yk_tile_half(top + 32u + 2u * r) : 0.0f;
        YK_UNROLL
        for (u32 h = 0; h < 2; h++) {
            const u32 v = scale[16u * h + r];
            s[h] = d * (type == YK_W_Q2_K ? (f32)(v & 15u) : (f32)(i8)v);
            s[2 + h] = dmin * (f32)(v >> 4);
        }
    } else {
        s[0] = yk_tile_half(scale + 2u * r);
        if (yk_has_block_min(type))
            s[2] = -yk_tile_half(min + 2u * r);
    }
}

YK_FN f32 yk_mma_float(const i32 sum)
{
    return yk_float((u32)sum) - YK_MMA_MAGIC;
}

/* acc[4] += the block's terms for 8 tokens: elements 0, 1 of row g, 2, 3 of row g + 8, tokens 2 i and 2 i + 1; x: their scales and sums. */
YK_FN void yk_mma_tile(const u32 type, const u32 *a, const u32 *b, const f32 s[2][4], const u8 *x, f32 *acc)
{
    const i32 offset = yk_code_offset(type);
    f32 scale[2], v[4];
    i32 sum[2][2], lo[4], hi[4];
    YK_UNROLL
    for (u32 t = 0; t < 2; t++) {
        const u32 both = yk_mma_word(x + YK_MMA_X_SUM + 4u * t);
        scale[t] = yk_float(yk_mma_word(x + YK_MMA_X_SCALE + 4u * t));
        sum[t][0] = (i16)(both & 65535u);
        sum[t][1] = (i16)(both >> 16);
        lo[t] = lo[t + 2] = YK_MMA_BITS - offset * (yk_has_halves(type) ? sum[t][0] : sum[t][0] + sum[t][1]);
        hi[t] = hi[t + 2] = YK_MMA_BITS - offset * sum[t][1];
    }
    if (yk_has_halves(type)) {
        yk_mma_s8_k16(lo, a, b[0]);
        yk_mma_s8_k16(hi, a + 2, b[1]);
    } else {
        yk_mma_s8_k32(lo, a, b);
    }
    YK_UNROLL
    for (u32 e = 0; e < 4; e++) {
        const u32 h = e / 2u, t = e % 2u;
        if (yk_has_halves(type)) {
            v[e] = s[h][0] * yk_mma_float(lo[e]) + s[h][1] * yk_mma_float(hi[e]);
            if (type == YK_W_Q2_K)
                v[e] = v[e] - (s[h][2] * (f32)sum[t][0] + s[h][3] * (f32)sum[t][1]);
        } else if (yk_mma_nested(type) || yk_has_block_min(type)) {
            v[e] = s[h][0] * yk_mma_float(lo[e]) - s[h][2] * (f32)(sum[t][0] + sum[t][1]);
        } else {
            v[e] = s[h][0] * yk_mma_float(lo[e]);
        }
        acc[e] += scale[t] * v[e];
    }
}

/* The blocks of a stage for the warp's panel; n: tokens of the group. */
YK_FN void yk_mma_use(const u32 type, const u8 *stage, const u32 warp, const u32 lane, const u32 blocks, const u32 n,
                      f32 acc[8][4])
{
    const u32 g = lane / 4u, i = lane % 4u;
    for (u32 d = 0; d < blocks; d++) {
        const u8 *x = stage + d * yk_mma_step(type), *slab = x + YK_MMA_X + warp * yk_mma_slab(type);
        u32 a[4];
        f32 s[2][4];
        yk_mma_a(type, slab, g, i, a);
        yk_mma_s(type, slab, g, s[0]);
        yk_mma_s(type, slab, g + 8u, s[1]);
        YK_UNROLL
        for (u32 j = 0; j < 4; j++) {
            u32 b[4]; /* columns 0 to 15 and 16 to 31 of 8 tokens, then of the next 8 */
            if (16u * j < n) {
                yk_ldmatrix4(b, x + yk_mma_x_at(16u * j + lane / 16u * 8u + lane % 8u, lane / 8u % 2u));
                yk_mma_tile(type, a, b, s, x + 4u * (16u * j + 2u * i), acc[2 * j]);
                yk_mma_tile(type, a, b + 2, s, x + 4u * (16u * j + 8u + 2u * i), acc[2 * j + 1]);
            }
        }
    }
}

/* The stage that is loaded next: blocks first and first + 4 of a part. */
typedef struct yk_mma_next {
    u32 first, part, slot;
} yk_mma_next;

YK_FN void yk_mma_advance(const u32 type, yk_mma_next *n, const yk_mma_loads *l, u8 *stages, const u32 warp)
{
    if (n->part < YK_PARTS &&
        n->first >= l->n_blocks) /* the part is over; the next one may be empty, and then all after it are */
        n->first = ++n->part;
    if (n->part < YK_PARTS)
        yk_mma_load(type, l, stages + n->slot * yk_mma_stage(type), warp, n->first);
    yk_cp_commit();
    n->first += YK_PARTS * YK_MMA_DEPTH;
    n->slot = n->slot == YK_MMA_STAGES - 1u ? 0u : n->slot + 1u;
}

YK_FN void yk_mma_loads_of(yk_mma_loads *l, const yk_product *m, const u32 thread, const bool mine)
{
    const u32 token = thread / 2u, other = thread % 64u,
              last = (m->n + 15u) / 16u * 16u; /* tokens behind it are not looked at */
    l->panel = mine ? m->panel : 0;
    l->q = token < last ? m->q + 8u * (u64)yk_pr_row(m, token) * m->x_stride + 4u * (thread % 2u) : 0;
    l->pair = other >= last  ? 0
              : thread < 64u ? (const u32 *)(const void *)m->scale + (u64)yk_pr_row(m, other) * m->x_stride
                             : (const u32 *)(const void *)m->sum + (u64)yk_pr_row(m, other) * m->x_stride;
    l->q_to = yk_mma_x_at(token, thread % 2u);
    l->pair_to = (thread < 64u ? YK_MMA_X_SCALE : YK_MMA_X_SUM) + 4u * other;
    l->lane = thread % 32u;
    l->n_blocks = m->n_cols / 32u;
    l->col_stride = m->col_stride;
}

/* Element e of total[j]: row lane / 4 + 8 (e / 2) of the warp's panel, if it is there (mine), token 8 j + 2 (lane % 4) + e % 2 of the group. */
YK_FN void yk_mma_sums(const u32 type, const yk_product *m, const bool mine, u8 *stages, f32 total[8][4])
{
    const u32 thread = yk_thread(), warp = thread / 32u, lane = thread % 32u;
    f32 acc[8][4], pair[8][4]; /* total: parts 0 + 1; pair: part 2 */
    yk_mma_loads l;
    yk_mma_next next = {0, 0, 0};
    u32 slot = 0;
    yk_mma_loads_of(&l, m, thread, mine);
    yk_mma_advance(type, &next, &l, stages, warp);
    yk_mma_advance(type, &next, &l, stages, warp);
    for (u32 p = 0; p < YK_PARTS; p++) {
        YK_UNROLL
        for (u32 k = 0; k < 32; k++)
            acc[k / 4][k % 4] = 0.0f;
        for (u32 first = p; first < l.n_blocks; first += YK_PARTS * YK_MMA_DEPTH) {
            yk_cp_wait(1);
            yk_barrier(); /* what all threads brought is there, and the stage that is written next was read by all */
            yk_mma_advance(type, &next, &l, stages, warp);
            if (mine)
                yk_mma_use(type, stages + slot * yk_mma_stage(type), warp, lane, first + YK_PARTS < l.n_blocks ? 2u : 1u, m->n,
                           acc);
            slot = slot == YK_MMA_STAGES - 1u ? 0u : slot + 1u;
        }
        YK_UNROLL
        for (u32 k = 0; k < 32; k++) {
            const f32 v = acc[k / 4][k % 4];
            if (p == 2u)
                pair[k / 4][k % 4] = v;
            else
                total[k / 4][k % 4] = p == 0u   ? v
                                      : p == 1u ? total[k / 4][k % 4] + v
                                                : total[k / 4][k % 4] + (pair[k / 4][k % 4] + v);
        }
    }
}

YK_FN void yk_mma_put(const yk_product *m, const yk_product_out *o, const u32 panel, f32 total[8][4])
{
    const u32 lane = yk_thread() % 32u;
    YK_UNROLL
    for (u32 k = 0; k < 32; k++) {
        const u32 token = k / 4u * 8u + lane % 4u * 2u + k % 2u;
        if (token < m->n)
            yk_pr_put(o, m->t0 + token, 16u * panel + lane / 4u + k % 4u / 2u * 8u, total[k / 4][k % 4]);
    }
}

/* Panels behind the last one have no weights: their warps help with the activations. Twice the same setup, so that what only the end needs takes no
 * registers before. */
#define YK_MMA_BODY(type)                                                                                                      \
    YK_SHARED_BYTES(stages, YK_MMA_STAGES *yk_mma_stage(type));                                                                \
    f32 total[8][4];                                                                                                           \
    const u32 panel = YK_MMA_PANELS * yk_group(0) + yk_thread() / 32u;                                                         \
    {                                                                                                                          \
        YK_PRODUCT_SETUP(YK_MMA_TOKENS)                                                                                        \
        m.panel = YK_CPTR(u8, w) + (u64)(panel / group_panels) * group_stride + (u64)(panel % group_panels) * panel_stride;    \
        yk_mma_sums(type, &m, 16u * panel < o.n_rows, stages, total);                                                          \
    }                                                                                                                          \
    {                                                                                                                          \
        YK_PRODUCT_SETUP(YK_MMA_TOKENS)                                                                                        \
        yk_mma_put(&m, &o, panel, total);                                                                                      \
    }

/* clang-format off */
YK_KERNEL(mma_q4_0)(YK_PRODUCT_ARGS) { YK_MMA_BODY(YK_W_Q4_0) }
YK_KERNEL(mma_q4_1)(YK_PRODUCT_ARGS) { YK_MMA_BODY(YK_W_Q4_1) }
YK_KERNEL(mma_q5_0)(YK_PRODUCT_ARGS) { YK_MMA_BODY(YK_W_Q5_0) }
YK_KERNEL(mma_q5_1)(YK_PRODUCT_ARGS) { YK_MMA_BODY(YK_W_Q5_1) }
YK_KERNEL(mma_q8_0)(YK_PRODUCT_ARGS) { YK_MMA_BODY(YK_W_Q8_0) }
YK_KERNEL(mma_q2_k)(YK_PRODUCT_ARGS) { YK_MMA_BODY(YK_W_Q2_K) }
YK_KERNEL(mma_q3_k)(YK_PRODUCT_ARGS) { YK_MMA_BODY(YK_W_Q3_K) }
YK_KERNEL(mma_q4_k)(YK_PRODUCT_ARGS) { YK_MMA_BODY(YK_W_Q4_K) }
YK_KERNEL(mma_q5_k)(YK_PRODUCT_ARGS) { YK_MMA_BODY(YK_W_Q5_K) }
YK_KERNEL(mma_q6_k)(YK_PRODUCT_ARGS) { YK_MMA_BODY(YK_W_Q6_K) }
YK_KERNEL(mma_iq4_nl)(YK_PRODUCT_ARGS) { YK_MMA_BODY(YK_W_IQ4_NL) }
YK_KERNEL(mma_iq4_xs)(YK_PRODUCT_ARGS) { YK_MMA_BODY(YK_W_IQ4_XS) }
YK_KERNEL(mma_mxfp4)(YK_PRODUCT_ARGS) { YK_MMA_BODY(YK_W_MXFP4) }
/* clang-format on */
