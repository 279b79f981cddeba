/* attention.k.h - rotation and KV append, attention over KV blocks. Contract: docs/kernels/gpu.md, arguments: gpu/kernels.h.
 *
 * A KV block holds 16 positions, K at the block's start, V v_off bytes on: [n_kv_heads][16][head_dim], f16 or f32. Position p of run r is in
 * block table[r * table_stride + p / 16], block_stride bytes apart. */

#undef YK_MIN_GROUPS
#define YK_MIN_GROUPS 10

/* One head of a q, k or v vector. */
typedef struct yk_head {
    YK_GLOBAL const f32 *vec, *bias, *norm, *angle; /* vec: the whole vector; the others may be null: bias, norm, cos and sin of the position */
    u32 head, n_heads, head_dim, n_rot, flags;
    f32 eps;
} yk_head;

/* v = the head with bias, norm and rotation; part is scratch. flags 1: pairs (i, i + n_rot/2), else (2i, 2i + 1); 4: norm over the whole
 * vector, else over each head. */
YK_FN void yk_head_make(const yk_head *a, YK_LOCAL f32 *v, YK_LOCAL f32 *part)
{
    const u32 head_dim = a->head_dim, h0 = a->head * head_dim, full = a->flags & 4u;
    YK_GLOBAL const f32 *vec = a->vec, *bias = a->bias;

    yk_items(i)
    {
        for (u32 d = i; d < head_dim; d += YK_GROUP)
            v[d] = vec[h0 + d] + (bias ? bias[h0 + d] : 0.0f);
    }
    yk_barrier();
    if (a->norm || YK_EVEN) {
        const u32 n = !a->norm ? 0u : full ? a->n_heads * head_dim : head_dim, n0 = full ? 0 : h0;
        yk_items(i)
        {
            f32 acc = 0.0f;
            for (u32 d = i; d < n; d += YK_GROUP) {
                const f32 x = vec[n0 + d] + (bias ? bias[n0 + d] : 0.0f);
                acc += x * x;
            }
            part[i] = acc;
        }
        const f32 r = 1.0f / yk_sqrt(yk_group_sum(part) / (f32)n + a->eps);
        yk_items(i)
        {
            for (u32 d = i; d < head_dim && a->norm; d += YK_GROUP)
                v[d] = v[d] * r * a->norm[(full ? h0 : 0u) + d];
        }
        yk_barrier();
    }
    if (a->angle || YK_EVEN) {
        const u32 n_pairs = a->angle ? a->n_rot / 2u : 0u, step = a->flags & 1u ? 1u : 2u, other = a->flags & 1u ? n_pairs : 1u;
        yk_items(i)
        {
            for (u32 k = i; k < n_pairs; k += YK_GROUP) {
                const f32 c = a->angle[2u * k], s = a->angle[2u * k + 1u], x = v[step * k], y = v[step * k + other];
                v[step * k] = x * c - y * s;
                v[step * k + other] = x * s + y * c;
            }
        }
        yk_barrier();
    }
}

/* Row of K or V at element `at` of a KV block. */
YK_FN void yk_kv_put(YK_GLOBAL u8 *to, const u64 at, const u32 f16, YK_LOCAL const f32 *v, const u32 head_dim)
{
    yk_items(i)
    {
        for (u32 d = i; d < head_dim; d += YK_GROUP) {
            if (f16)
                yk_store_half((YK_GLOBAL u16 *)to, at + d, v[d]);
            else
                ((YK_GLOBAL f32 *)to)[at + d] = v[d];
        }
    }
}

/* Group (head, t); heads: query heads, then K heads, then V heads. flags as yk_head_make; 2: KV is f16. */
YK_KERNEL(rope_kv)(YK_IN(qkv), YK_IN(q_b), YK_IN(k_b), YK_IN(v_b), YK_IN(q_norm), YK_IN(k_norm), YK_IN(cs), YK_IN(pos),
                   YK_IN(run), YK_IN(table), YK_OUT(q_out), YK_OUT(kv), const u32 qkv_stride, const u32 q_stride,
                   const u32 n_heads, const u32 n_kv_heads, const u32 head_dim, const u32 n_rot, const f32 eps,
                   const u32 block_stride, const u32 v_off, const u32 table_stride, const u32 flags)
{
    YK_SHARED(f32, v, YK_MAX_HEAD);
    YK_SHARED(f32, part, YK_GROUP);
    const u32 g = yk_group(0), t = yk_group(1), kind = g < n_heads ? 0u : g < n_heads + n_kv_heads ? 1u : 2u, p = YK_CPTR(u32, pos)[t];
    yk_head a;
    a.head = kind == 0 ? g : kind == 1 ? g - n_heads : g - n_heads - n_kv_heads;
    a.n_heads = kind == 0 ? n_heads : n_kv_heads;
    a.vec = YK_CPTR(f32, qkv) + (u64)t * qkv_stride + (u64)(g - a.head) * head_dim;
    a.bias = kind == 0 ? YK_CPTR(f32, q_b) : kind == 1 ? YK_CPTR(f32, k_b) : YK_CPTR(f32, v_b);
    a.norm = kind == 0 ? YK_CPTR(f32, q_norm) : kind == 1 ? YK_CPTR(f32, k_norm) : (YK_GLOBAL const f32 *)0;
    a.angle = kind < 2u ? YK_CPTR(f32, cs) + (u64)p * n_rot : (YK_GLOBAL const f32 *)0;
    a.head_dim = head_dim;
    a.n_rot = n_rot;
    a.flags = flags;
    a.eps = eps;
    yk_head_make(&a, v, part);
    if (kind == 0) {
        yk_items(i)
        {
            for (u32 d = i; d < head_dim; d += YK_GROUP)
                YK_PTR(f32, q_out)[(u64)t * q_stride + a.head * head_dim + d] = v[d];
        }
    } else {
        const u32 block = YK_CPTR(u32, table)[(u64)YK_CPTR(u32, run)[t] * table_stride + p / 16u];
        yk_kv_put(YK_PTR(u8, kv) + (u64)block * block_stride + (kind == 1u ? 0u : v_off), ((u64)a.head * 16u + p % 16u) * head_dim, flags & 2u,
                  v, head_dim);
    }
}

/* ---- attention
 * -------------------------------------------------------------------------------------------------------------------------
 *
 * A tile is up to 16 rows of queries that read the same K and V: the query heads of a KV head, of one token or of several that
 * follow each other in a sequence. Its positions come to local memory in chunks, first K, then V, once for all rows. Work-item
 * i of a chunk has position i mod chunk and four rows at a time (scores), a row and a quarter of the positions (maxima,
 * weights), then four dimensions and four rows at a time (values). Chunks begin at multiples of their length whatever the tile
 * is, and a position that a row does not see has weight 0: a row's bits do not depend on the others. Dimensions are padded with
 * zeros to a multiple of four, so that local memory is read in fours; rows of K and V lie an odd number of fours apart, rows of
 * weights 36 floats: no bank conflicts. */
#define YK_ATT_ROWS      16u   /* of a tile, at most */
#define YK_ATT_VALUES    2048u /* rows x dimensions */
#define YK_ATTEND_ROWS   8u    /* likewise in `attend` */
#define YK_ATTEND_VALUES 1024u
#define YK_ATT_KV        4224u /* positions x their distance */
#define YK_ATT_W         36u
#define YK_ATT_STATE     (4u * YK_ATT_ROWS + 2u * YK_GROUP)
#define YK_ATT_SPLIT     128u /* positions of a split, at least */
#define YK_ATT_SPLITS    32u

typedef struct yk_att {
    YK_GLOBAL const u8 *base;
    YK_GLOBAL const u32 *blocks; /* of the sequence */
    u64 h0;                      /* element of the KV head in a block */
    u32 head_dim, dims, stride, chunk, rows; /* dims: padded; stride: of positions in kv */
    u32 block_stride, v_off, f16;
    u32 first, end; /* positions first <= p < end of the tile */
    u32 stored;     /* end, or end - 1: the last one is not in its block but in k_own and v_own */
    u32 from, to;   /* of this split; from is a multiple of chunk */
    f32 scale;
    YK_LOCAL const f32 *k_own, *v_own;
    YK_LOCAL f32 *q, *acc, *kv, *w, *state; /* [rows][dims] twice, [chunk][stride], [rows][YK_ATT_W] */
    YK_LOCAL u32 *see;                      /* [rows][2]: row r sees positions see[2r] <= p < see[2r + 1] */
} yk_att;

/* state: of each row maximum and sum so far, factor for what was before this chunk, maximum with it; then maxima and sums of
 * quarters */
#define YK_ATT_TOP   0u
#define YK_ATT_TOTAL YK_ATT_ROWS
#define YK_ATT_FADE  (2u * YK_ATT_ROWS)
#define YK_ATT_NEXT  (3u * YK_ATT_ROWS)
#define YK_ATT_MOST  (4u * YK_ATT_ROWS)
#define YK_ATT_SUM   (4u * YK_ATT_ROWS + YK_GROUP)

/* What follows from head_dim. */
YK_FN void yk_att_shape(yk_att *a, const u32 head_dim)
{
    a->head_dim = head_dim;
    a->dims = (head_dim + 3u) / 4u * 4u;
    a->stride = (a->dims / 4u | 1u) * 4u;
    a->chunk = a->dims <= 128u ? 32u : a->dims <= 256u ? 16u : 8u;
}

/* Positions of a split, for `n` that are seen: YK_ATT_SPLIT, or as many more as make at most YK_ATT_SPLITS splits. */
YK_FN u32 yk_att_split(const u32 n)
{
    u32 len = YK_ATT_SPLIT;
    while (len * YK_ATT_SPLITS < n)
        len *= 2u;
    return len;
}

/* from and to of split number `split`: how many splits there are. Splits begin at multiples of the chunk. */
YK_FN u32 yk_att_range(yk_att *a, const u32 split, const u32 splits)
{
    const u32 begin = a->first / a->chunk * a->chunk, n = a->end - begin, len = splits ? yk_att_split(n) : n;
    const u32 count = (n + len - 1u) / len;
    a->from = begin + (split < count ? split * len : n);
    a->to = split < count ? yk_min(a->end, a->from + len) : a->from;
    return count;
}

/* Rows and padding begin with zeros. */
YK_FN void yk_att_clear(const yk_att *a)
{
    yk_items(i)
    {
        const u32 pad = a->stride - a->head_dim;
        for (u32 j = i; j < a->rows * a->dims; j += YK_GROUP)
            a->acc[j] = 0.0f;
        for (u32 j = i; j < a->chunk * pad; j += YK_GROUP)
            a->kv[j / pad * a->stride + a->head_dim + j % pad] = 0.0f;
        if (i < a->rows) {
            a->state[YK_ATT_TOP + i] = -INFINITY;
            a->state[YK_ATT_TOTAL + i] = 0.0f;
        }
    }
}

/* Query of row r, from head_dim floats. */
YK_FN void yk_att_query(const yk_att *a, const u32 r, YK_GLOBAL const f32 *from)
{
    yk_items(i)
    {
        for (u32 d = i; d < a->dims; d += YK_GROUP)
            a->q[r * a->dims + d] = d < a->head_dim ? from[d] : 0.0f;
    }
}

/* K or V of the chunk from p0 on; zeros where no row sees. Blocks are read four elements at a time: 16 positions of a head are
 * one piece. */
YK_FN void yk_att_stage(const yk_att *a, const u32 p0, const u32 v)
{
    const u32 per = yk_min(a->chunk, 16u), hd = a->head_dim, n = per * hd;
    YK_LOCAL const f32 *own = v ? a->v_own : a->k_own;
    for (u32 b = 0; b < a->chunk; b += per) {
        const u32 p = p0 + b, there = p < a->stored && p + per > a->first;
        YK_GLOBAL const u8 *from = a->base + (u64)a->blocks[(there ? p : p0) / 16u] * a->block_stride + (v ? a->v_off : 0u);
        const u64 at = a->h0 + (u64)(p % 16u) * hd;
        yk_items(i)
        {
            YK_UNROLL_4
            for (u32 e = 4u * i; e < n; e += 4u * YK_GROUP) {
                f32 x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                u32 row = e / hd, d = e % hd;
                if (there && a->f16)
                    yk_load_half4((YK_GLOBAL const u16 *)from + at + e, x);
                else if (there)
                    yk_load_f32x4((YK_GLOBAL const f32 *)from + at + e, x);
                if (hd % 4u == 0) {
                    const u32 seen = p + row >= a->first && p + row < a->stored;
                    YK_UNROLL
                    for (u32 j = 0; j < 4u; j++)
                        x[j] = seen ? x[j] : 0.0f;
                    if (own && p + row == a->stored)
                        yk_local_load4(own + d, x);
                    yk_local_store4(a->kv + (b + row) * a->stride + d, x);
                } else {
                    YK_UNROLL
                    for (u32 j = 0; j < 4u; j++) {
                        const u32 seen = p + row >= a->first && p + row < a->stored;
                        a->kv[(b + row) * a->stride + d] = own && p + row == a->stored ? own[d] : seen ? x[j] : 0.0f;
                        row += d + 1u == hd ? 1u : 0u;
                        d = d + 1u == hd ? 0u : d + 1u;
                    }
                }
            }
        }
    }
}

/* w = scale q K of the chunk, -inf where a row does not see. */
YK_FN void yk_att_scores(const yk_att *a, const u32 p0)
{
    const u32 dims = a->dims, rows = a->rows;
    yk_items(i)
    {
        const u32 p = i % a->chunk;
        YK_LOCAL const f32 *k = a->kv + p * a->stride;
        for (u32 r = i / a->chunk * 4u; r < rows; r += YK_GROUP / a->chunk * 4u) {
            f32 s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            YK_LOCAL const f32 *q0 = a->q + r * dims, *q1 = a->q + yk_min(r + 1u, rows - 1u) * dims,
                               *q2 = a->q + yk_min(r + 2u, rows - 1u) * dims, *q3 = a->q + yk_min(r + 3u, rows - 1u) * dims;
            for (u32 d = 0; d < dims; d += 4u) {
                f32 x[4], y0[4], y1[4], y2[4], y3[4];
                yk_local_load4(k + d, x);
                yk_local_load4(q0 + d, y0);
                yk_local_load4(q1 + d, y1);
                yk_local_load4(q2 + d, y2);
                yk_local_load4(q3 + d, y3);
                YK_UNROLL
                for (u32 j = 0; j < 4u; j++) {
                    s[0] += y0[j] * x[j];
                    s[1] += y1[j] * x[j];
                    s[2] += y2[j] * x[j];
                    s[3] += y3[j] * x[j];
                }
            }
            YK_UNROLL
            for (u32 j = 0; j < 4u; j++) {
                const u32 n = yk_min(r + j, rows - 1u), seen = a->see[2u * n] <= p0 + p && p0 + p < a->see[2u * n + 1u];
                if (r + j < rows)
                    a->w[n * YK_ATT_W + p] = seen ? a->scale * s[j] : -INFINITY;
            }
        }
    }
}

/* Maxima of the quarters of each row's scores; NaN is never chosen. */
YK_FN void yk_att_maxima(const yk_att *a)
{
    yk_items(i)
    {
        f32 m = -INFINITY;
        for (u32 p = i % 4u; p < a->chunk && i / 4u < a->rows; p += 4u) {
            const f32 s = a->w[i / 4u * YK_ATT_W + p];
            m = s > m ? s : m;
        }
        a->state[YK_ATT_MOST + i] = m;
    }
}

/* w = e^(score - maximum so far), and sums of the quarters. */
YK_FN void yk_att_weights(const yk_att *a)
{
    yk_items(i)
    {
        const u32 r = i / 4u;
        if (r < a->rows) {
            f32 m = a->state[YK_ATT_TOP + r], sum = 0.0f;
            const f32 top = m;
            for (u32 k = 4u * r; k < 4u * r + 4u; k++)
                m = a->state[YK_ATT_MOST + k] > m ? a->state[YK_ATT_MOST + k] : m;
            for (u32 p = i % 4u; p < a->chunk; p += 4u) {
                const f32 s = a->w[r * YK_ATT_W + p], e = s == -INFINITY ? 0.0f : yk_exp(s - m);
                a->w[r * YK_ATT_W + p] = e;
                sum += e;
            }
            a->state[YK_ATT_SUM + i] = sum;
            if (i % 4u == 0) {
                a->state[YK_ATT_NEXT + r] = m;
                a->state[YK_ATT_FADE + r] = m > top ? yk_exp(top - m) : 1.0f;
            }
        }
    }
}

/* acc = acc fade + w V; sums and maxima of the rows likewise. */
YK_FN void yk_att_values(const yk_att *a)
{
    const u32 dims = a->dims, rows = a->rows, fours = dims / 4u;
    yk_items(i)
    {
        for (u32 u = i; u < (rows + 3u) / 4u * fours; u += YK_GROUP) {
            const u32 r = u / fours * 4u, d = u % fours * 4u;
            f32 s[4][4];
            u32 at[4]; /* rows */
            YK_UNROLL
            for (u32 j = 0; j < 4u; j++) {
                at[j] = yk_min(r + j, rows - 1u);
                const f32 fade = a->state[YK_ATT_FADE + at[j]];
                yk_local_load4(a->acc + at[j] * dims + d, s[j]);
                YK_UNROLL
                for (u32 k = 0; k < 4u; k++)
                    s[j][k] *= fade;
            }
            for (u32 p = 0; p < a->chunk; p += 4u) {
                f32 w[4][4];
                YK_UNROLL
                for (u32 j = 0; j < 4u; j++)
                    yk_local_load4(a->w + at[j] * YK_ATT_W + p, w[j]);
                YK_UNROLL
                for (u32 m = 0; m < 4u; m++) {
                    f32 x[4];
                    yk_local_load4(a->kv + (p + m) * a->stride + d, x);
                    YK_UNROLL
                    for (u32 j = 0; j < 4u; j++) {
                        YK_UNROLL
                        for (u32 k = 0; k < 4u; k++)
                            s[j][k] += w[j][m] * x[k];
                    }
                }
            }
            YK_UNROLL
            for (u32 j = 0; j < 4u; j++)
                if (r + j < rows)
                    yk_local_store4(a->acc + at[j] * dims + d, s[j]);
        }
        if (i < rows) {
            YK_LOCAL const f32 *sum = a->state + YK_ATT_SUM + 4u * i;
            a->state[YK_ATT_TOTAL + i] =
                a->state[YK_ATT_TOTAL + i] * a->state[YK_ATT_FADE + i] + ((sum[0] + sum[1]) + (sum[2] + sum[3]));
            a->state[YK_ATT_TOP + i] = a->state[YK_ATT_NEXT + i];
        }
    }
}

/* Positions from .. to of the tile. */
YK_FN void yk_att_scan(const yk_att *a)
{
    for (u32 p0 = a->from; p0 < a->to; p0 += a->chunk) {
        yk_barrier();
        yk_att_stage(a, p0, 0);
        yk_barrier();
        yk_att_scores(a, p0);
        yk_barrier();
        yk_att_maxima(a);
        yk_att_stage(a, p0, 1u);
        yk_barrier();
        yk_att_weights(a);
        yk_barrier();
        yk_att_values(a);
    }
    yk_barrier();
}

/* The group's own split of `count`; group: number of the tile's groups. Is this group the last one of its tile? Then acc and
 * sums of splits are in part, and those of all are seen; with one split they stay where they are. Slot s of part: [rows][dims +
 * 4] floats: values, maximum, sum. */
YK_FN u32 yk_att_hand_in(const yk_att *a, YK_GLOBAL f32 *part, YK_GLOBAL u32 *arrived, const u32 split, const u32 count,
                         YK_LOCAL u32 *flag)
{
    const u32 hands = count > 1u && split < count;
    yk_items(i)
    {
        YK_GLOBAL f32 *to = hands ? part + (u64)split * a->rows * (a->dims + 4u) : part;
        for (u32 j = i; j < a->rows * a->dims && hands; j += YK_GROUP)
            to[j / a->dims * (a->dims + 4u) + j % a->dims] = a->acc[j];
        if (i < a->rows && hands) {
            to[i * (a->dims + 4u) + a->dims] = a->state[YK_ATT_TOP + i];
            to[i * (a->dims + 4u) + a->dims + 1u] = a->state[YK_ATT_TOTAL + i];
        }
        if (hands)
            yk_publish();
        flag[i] = 0;
    }
    yk_barrier();
    yk_items(i)
    {
        if (i == 0) {
            u32 before = split < count ? count - 1u : 0u;
            if (hands)
                before = yk_arrive(arrived);
            if (hands && before == count - 1u)
                *arrived = 0; /* for the next launch */
            flag[0] = split < count && before == count - 1u;
        }
    }
    yk_barrier();
    return flag[0];
}

/* acc = the rows' results from all splits, in their order; sinks: of the first row's head, or null; rows are n_heads heads of
 * tokens. */
YK_FN void yk_att_join(const yk_att *a, YK_GLOBAL const f32 *part, const u32 count, const u32 last, YK_GLOBAL const f32 *sinks,
                       const u32 n_heads)
{
    const u32 step = a->dims + 4u, fours = a->dims / 4u, n = last && count > 1u ? count : 0u;
    YK_LOCAL f32 *share = a->kv; /* [rows][YK_ATT_SPLITS], then 1 / sum of each */
    YK_LOCAL f32 *sums = a->kv + YK_ATT_ROWS * YK_ATT_SPLITS;
    yk_items(i)
    {
        if (i < a->rows) {
            f32 x[4], top = sinks ? sinks[i % n_heads] : -INFINITY, m;
            for (u32 s = 0; s < n; s++) {
                yk_peek4(part + ((u64)s * a->rows + i) * step + a->dims, x);
                top = x[0] > top ? x[0] : top;
            }
            m = a->state[YK_ATT_TOP + i];
            if (n == 0)
                top = m > top ? m : top;
            f32 sum = sinks ? yk_exp(sinks[i % n_heads] - top) : 0.0f;
            for (u32 s = 0; s < n; s++) {
                yk_peek4(part + ((u64)s * a->rows + i) * step + a->dims, x);
                share[i * YK_ATT_SPLITS + s] = yk_exp(x[0] - top);
                sum += x[1] * share[i * YK_ATT_SPLITS + s];
            }
            if (n == 0) {
                share[i * YK_ATT_SPLITS] = yk_exp(m - top);
                sum += a->state[YK_ATT_TOTAL + i] * share[i * YK_ATT_SPLITS];
            }
            sums[i] = sum;
        }
    }
    yk_barrier();
    yk_items(i)
    {
        for (u32 u = i; u < a->rows * fours; u += YK_GROUP) {
            const u32 r = u / fours, d = u % fours * 4u;
            f32 x[4], y[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            YK_UNROLL_4
            for (u32 s = 0; s < n; s++) {
                const f32 f = share[r * YK_ATT_SPLITS + s];
                yk_peek4(part + ((u64)s * a->rows + r) * step + d, x);
                YK_UNROLL
                for (u32 k = 0; k < 4u; k++)
                    y[k] += x[k] * f;
            }
            if (n == 0) {
                const f32 f = share[r * YK_ATT_SPLITS];
                yk_local_load4(a->acc + r * a->dims + d, x);
                YK_UNROLL
                for (u32 k = 0; k < 4u; k++)
                    y[k] = x[k] * f;
            }
            YK_UNROLL
            for (u32 k = 0; k < 4u; k++)
                y[k] /= sums[r];
            yk_local_store4(a->acc + r * a->dims + d, y);
        }
    }
    yk_barrier();
}

/* Which heads group x has: `heads` of a KV head's, or what is left of them. The number of the first; *n: how many. */
YK_FN u32 yk_att_heads(const u32 x, const u32 heads, const u32 share, u32 *n)
{
    const u32 pieces = (share + heads - 1u) / heads, first = x % pieces * heads;
    *n = yk_min(heads, share - first);
    return x / pieces * share + first;
}

/* Group (heads of a KV head, tile, split): softmax(scale q K) V. Tile i is the tokens tiles[2i] .. + tiles[2i + 1], consecutive
 * ones of a sequence; a token sees the positions max(0, pos + 1 - window) <= p <= pos. flags 2: KV is f16; 8: a tile of one
 * token is split, as many groups as the longest has splits. */
YK_KERNEL(attention)(YK_IN(q), YK_IN(kv), YK_IN(pos), YK_IN(run), YK_IN(table), YK_IN(sinks), YK_IN(tiles), YK_OUT(out),
                     YK_OUT(part), YK_OUT(arrived), const u32 q_stride, const u32 out_stride, const u32 n_heads,
                     const u32 n_kv_heads, const u32 head_dim, const u32 window, const u32 block_stride, const u32 v_off,
                     const u32 table_stride, const u32 flags, const u32 heads, const f32 scale)
{
    YK_SHARED(f32, q_rows, YK_ATT_VALUES);
    YK_SHARED(f32, acc, YK_ATT_VALUES);
    YK_SHARED(f32, kv_chunk, YK_ATT_KV);
    YK_SHARED(f32, weight, YK_ATT_ROWS * YK_ATT_W);
    YK_SHARED(f32, state, YK_ATT_STATE);
    YK_SHARED(u32, see, 2u * YK_ATT_ROWS);
    YK_SHARED(u32, flag, YK_GROUP);
    const u32 x = yk_group(0), tile = yk_group(1), share = n_heads / n_kv_heads;
    const u32 t0 = YK_CPTR(u32, tiles)[2u * tile], n = YK_CPTR(u32, tiles)[2u * tile + 1u];
    YK_GLOBAL const u32 *at = YK_CPTR(u32, pos) + t0;
    YK_GLOBAL const f32 *sinks = YK_CPTR(f32, sinks);
    u32 mine;
    const u32 h0 = yk_att_heads(x, heads, share, &mine);
    yk_att a;
    yk_att_shape(&a, head_dim);
    a.base = YK_CPTR(u8, kv);
    a.blocks = YK_CPTR(u32, table) + (u64)YK_CPTR(u32, run)[t0] * table_stride;
    a.h0 = (u64)(h0 / share) * 16u * head_dim;
    a.rows = n * mine;
    a.block_stride = block_stride;
    a.v_off = v_off;
    a.f16 = flags & 2u;
    a.first = window && at[0] + 1u > window ? at[0] + 1u - window : 0u;
    a.end = at[n - 1u] + 1u;
    a.stored = a.end;
    a.scale = scale;
    a.k_own = 0;
    a.v_own = 0;
    a.q = q_rows;
    a.acc = acc;
    a.kv = kv_chunk;
    a.w = weight;
    a.state = state;
    a.see = see;
    const u32 count = yk_att_range(&a, yk_group(2), flags & 8u && n == 1u);
    for (u32 r = 0; r < a.rows; r++)
        yk_att_query(&a, r, YK_CPTR(f32, q) + (u64)(t0 + r / mine) * q_stride + (u64)(h0 + r % mine) * head_dim);
    yk_items(i)
    {
        if (i < a.rows) {
            const u32 end = at[i / mine] + 1u;
            see[2u * i] = window && end > window ? end - window : 0u;
            see[2u * i + 1u] = end;
        }
    }
    yk_att_clear(&a);
    yk_att_scan(&a);
    const u64 place = (u64)tile * yk_groups(0) + x;
    YK_GLOBAL f32 *parts = count > 1u ? YK_PTR(f32, part) + place * yk_groups(2) * heads * (a.dims + 4u) : (YK_GLOBAL f32 *)0;
    const u32 last =
        yk_att_hand_in(&a, parts, count > 1u ? YK_PTR(u32, arrived) + place : (YK_GLOBAL u32 *)0, yk_group(2), count, flag);
    yk_att_join(&a, parts, count, last, sinks ? sinks + h0 : sinks, mine);
    yk_items(i)
    {
        for (u32 j = i; j < a.rows * head_dim && last; j += YK_GROUP) {
            const u32 r = j / head_dim, d = j % head_dim;
            YK_PTR(f32, out)[(u64)(t0 + r / mine) * out_stride + (u64)(h0 + r % mine) * head_dim + d] = acc[r * a.dims + d];
        }
    }
}

/* Group (heads of a KV head, t, split): rope_kv and attention in one, for tokens of different sequences: the same bits. Each
 * group makes q, K and V of its heads for itself; the one with the KV head's first heads and the last position appends K and V,
 * no group reads them. Also the rounded result, where head_dim is a multiple of 32. */
YK_KERNEL(attend)(YK_IN(qkv), YK_IN(q_b), YK_IN(k_b), YK_IN(v_b), YK_IN(q_norm), YK_IN(k_norm), YK_IN(cs), YK_IN(pos),
                  YK_IN(run), YK_IN(table), YK_IN(sinks), YK_OUT(kv), YK_OUT(out), YK_OUT(o_q), YK_OUT(o_scale), YK_OUT(o_sum),
                  YK_OUT(part), YK_OUT(arrived), const u32 qkv_stride, const u32 out_stride, const u32 n_heads,
                  const u32 n_kv_heads, const u32 head_dim, const u32 n_rot, const f32 eps, const u32 window,
                  const u32 block_stride, const u32 v_off, const u32 table_stride, const u32 flags, const u32 heads,
                  const f32 scale)
{
    YK_SHARED(f32, q_rows, YK_ATTEND_VALUES);
    YK_SHARED(f32, acc, YK_ATTEND_VALUES);
    YK_SHARED(f32, kv_chunk, YK_ATT_KV);
    YK_SHARED(f32, weight, YK_ATTEND_ROWS * YK_ATT_W);
    YK_SHARED(f32, state, YK_ATT_STATE);
    YK_SHARED(f32, ks, YK_MAX_HEAD);
    YK_SHARED(f32, vs, YK_MAX_HEAD);
    YK_SHARED(f32, red, YK_GROUP);
    YK_SHARED(u32, see, 2u * YK_ATTEND_ROWS);
    YK_SHARED(u32, flag, YK_GROUP);
    const u32 x = yk_group(0), t = yk_group(1), share = n_heads / n_kv_heads, p = YK_CPTR(u32, pos)[t];
    YK_GLOBAL const f32 *row = YK_CPTR(f32, qkv) + (u64)t * qkv_stride, *sinks = YK_CPTR(f32, sinks);
    yk_head head;
    yk_att a;
    yk_att_shape(&a, head_dim);
    const u32 h0 = yk_att_heads(x, heads, share, &a.rows);
    a.q = q_rows;
    head.head_dim = head_dim;
    head.n_rot = n_rot;
    head.flags = flags;
    head.eps = eps;
    head.n_heads = n_heads;
    head.vec = row;
    head.bias = YK_CPTR(f32, q_b);
    head.norm = YK_CPTR(f32, q_norm);
    head.angle = YK_CPTR(f32, cs) + (u64)p * n_rot;
    for (u32 r = 0; r < a.rows; r++) {
        head.head = h0 + r;
        yk_head_make(&head, q_rows + r * a.dims, red);
        yk_items(i)
        {
            if (i < a.dims - head_dim)
                q_rows[r * a.dims + head_dim + i] = 0.0f;
        }
    }
    head.head = h0 / share;
    head.n_heads = n_kv_heads;
    head.vec = row + (u64)n_heads * head_dim;
    head.bias = YK_CPTR(f32, k_b);
    head.norm = YK_CPTR(f32, k_norm);
    yk_head_make(&head, ks, red);
    head.vec = row + (u64)(n_heads + n_kv_heads) * head_dim;
    head.bias = YK_CPTR(f32, v_b);
    head.norm = (YK_GLOBAL const f32 *)0;
    head.angle = (YK_GLOBAL const f32 *)0;
    yk_head_make(&head, vs, red);

    a.base = YK_PTR(u8, kv);
    a.blocks = YK_CPTR(u32, table) + (u64)YK_CPTR(u32, run)[t] * table_stride;
    a.h0 = (u64)head.head * 16u * head_dim;
    a.block_stride = block_stride;
    a.v_off = v_off;
    a.f16 = flags & 2u;
    a.first = window && p + 1u > window ? p + 1u - window : 0u;
    a.end = p + 1u;
    a.stored = p;
    a.scale = scale;
    a.k_own = ks;
    a.v_own = vs;
    a.acc = acc;
    a.kv = kv_chunk;
    a.w = weight;
    a.state = state;
    a.see = see;
    const u32 split = yk_group(2), count = yk_att_range(&a, split, 1u);
    if (h0 % share == 0 && split == count - 1u) {
        YK_GLOBAL u8 *to = YK_PTR(u8, kv) + (u64)a.blocks[p / 16u] * block_stride;
        const u64 at = a.h0 + (u64)(p % 16u) * head_dim;
        yk_kv_put(to, at, a.f16, ks, head_dim);
        yk_kv_put(to + v_off, at, a.f16, vs, head_dim);
    }
    yk_barrier();
    yk_items(i)
    {
        for (u32 d = i; d < head_dim && a.f16; d += YK_GROUP) {
            ks[d] = yk_round_half(ks[d]);
            vs[d] = yk_round_half(vs[d]);
        }
        if (i < a.rows) {
            see[2u * i] = a.first;
            see[2u * i + 1u] = a.end;
        }
    }
    yk_att_clear(&a);
    yk_att_scan(&a);
    const u64 place = (u64)t * yk_groups(0) + x;
    YK_GLOBAL f32 *parts = count > 1u ? YK_PTR(f32, part) + place * yk_groups(2) * heads * (a.dims + 4u) : (YK_GLOBAL f32 *)0;
    const u32 last =
        yk_att_hand_in(&a, parts, count > 1u ? YK_PTR(u32, arrived) + place : (YK_GLOBAL u32 *)0, split, count, flag);
    yk_att_join(&a, parts, count, last, sinks ? sinks + h0 : sinks, a.rows);
    yk_items(i)
    {
        for (u32 j = i; j < a.rows * head_dim && last; j += YK_GROUP)
            YK_PTR(f32, out)[(u64)t * out_stride + (u64)h0 * head_dim + j] = acc[j / head_dim * a.dims + j % head_dim];
        for (u32 b = i; b < a.rows * (head_dim / 32u) && last && o_q_base; b += YK_GROUP) {
            const u64 at = ((u64)t * n_heads + h0) * (head_dim / 32u) + b;
            yk_quantise_block(acc + 32u * b, (YK_GLOBAL u32 *)(YK_PTR(u8, o_q) + 32u * at), YK_PTR(f32, o_scale) + at,
                              YK_PTR(i16, o_sum) + 2u * at);
        }
    }
}
