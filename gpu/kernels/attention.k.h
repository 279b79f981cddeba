/* attention.k.h - rotation and KV append, attention over KV blocks. Contract: docs/kernels/gpu.md, arguments: gpu/kernels.h.
 *
 * A KV block holds 16 positions, K at the block's start, V v_off bytes on: [n_kv_heads][16][head_dim], f16 or f32. Position p of run r is in
 * block table[r * table_stride + p / 16], block_stride bytes apart. */

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
    if (a->norm) {
        const u32 n = full ? a->n_heads * head_dim : head_dim, n0 = full ? 0 : h0;
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
            for (u32 d = i; d < head_dim; d += YK_GROUP)
                v[d] = v[d] * r * a->norm[(full ? h0 : 0u) + d];
        }
        yk_barrier();
    }
    if (a->angle) {
        const u32 n_pairs = a->n_rot / 2u, step = a->flags & 1u ? 1u : 2u, other = a->flags & 1u ? n_pairs : 1u;
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
YK_KERNEL(rope_kv)(YK_IN(qkv), YK_IN(q_b), YK_IN(k_b), YK_IN(v_b), YK_IN(q_norm), YK_IN(k_norm), YK_IN(cs), YK_IN(pos), YK_IN(run),
                   YK_IN(table), YK_OUT(q_out), YK_OUT(kv), const u32 qkv_stride, const u32 q_stride, const u32 n_heads,
                   const u32 n_kv_heads, const u32 head_dim, const u32 n_rot, const f32 eps, const u32 block_stride, const u32 v_off,
                   const u32 table_stride, const u32 flags)
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

YK_FN f32 yk_kv_load(YK_GLOBAL const u8 *p, const u64 i, const u32 f16)
{
    return f16 ? yk_load_half((YK_GLOBAL const u16 *)p, i) : ((YK_GLOBAL const f32 *)p)[i];
}

/* One query head over the chunks chunk .. end_chunk of 64 positions, first <= p < end. */
typedef struct yk_scan {
    YK_GLOBAL const u8 *base;
    YK_GLOBAL const u32 *blocks; /* of the sequence */
    u64 h0;                      /* element of the KV head in a block */
    u32 head_dim, block_stride, v_off, f16, first, end, chunk, end_chunk;
    u32 own; /* not 0: K and V of the last position are in k and v, as they read from a block */
    f32 scale;
    f32 top, total; /* maximum and sum so far */
} yk_scan;

/* acc = sum of e^(score - top) V; weight, red: scratch. */
YK_FN void yk_scan_chunks(yk_scan *a, YK_LOCAL const f32 *qs, YK_LOCAL const f32 *k_own, YK_LOCAL const f32 *v_own, YK_LOCAL f32 *acc,
                          YK_LOCAL f32 *weight, YK_LOCAL f32 *red)
{
    const u32 head_dim = a->head_dim, f16 = a->f16;
    a->top = -INFINITY;
    a->total = 0.0f;
    for (u32 c = a->chunk; c < a->end_chunk; c++) {
        const u32 p0 = a->first + c * YK_GROUP, n = yk_min(a->end - p0, YK_GROUP), n_kv = a->own && p0 + n == a->end ? n - 1u : n;
        yk_barrier();
        yk_items(i)
        {
            f32 s = -INFINITY;
            if (i < n_kv) {
                const u32 p = p0 + i;
                YK_GLOBAL const u8 *k = a->base + (u64)a->blocks[p / 16u] * a->block_stride;
                const u64 at = a->h0 + (u64)(p % 16u) * head_dim;
                s = 0.0f;
                for (u32 d = 0; d < head_dim; d++)
                    s += qs[d] * yk_kv_load(k, at + d, f16);
                s = a->scale * s;
            } else if (i < n) {
                s = 0.0f;
                for (u32 d = 0; d < head_dim; d++)
                    s += qs[d] * k_own[d];
                s = a->scale * s;
            }
            weight[i] = s;
            red[i] = s;
        }
        const f32 chunk_top = yk_group_max(red), new_top = chunk_top > a->top ? chunk_top : a->top, fade = yk_exp(a->top - new_top);
        yk_items(i)
        {
            const f32 e = i < n ? yk_exp(weight[i] - new_top) : 0.0f;
            weight[i] = e;
            red[i] = e;
        }
        a->total = a->total * fade + yk_group_sum(red);
        yk_items(i)
        {
            for (u32 d = i; d < head_dim; d += YK_GROUP) {
                f32 s = acc[d] * fade;
                for (u32 j = 0; j < n_kv; j++) {
                    const u32 p = p0 + j;
                    s += weight[j] * yk_kv_load(a->base + (u64)a->blocks[p / 16u] * a->block_stride + a->v_off,
                                                a->h0 + (u64)(p % 16u) * head_dim + d, f16);
                }
                if (n_kv < n)
                    s += weight[n_kv] * v_own[d];
                acc[d] = s;
            }
        }
        a->top = new_top;
    }
    yk_barrier();
}

/* Group (head, t, split): softmax(scale q K) V over the positions first <= p <= pos[t], in chunks of 64 with a running maximum. Split s of
 * n_splits sees a contiguous range of chunks and writes maximum, sum and values to part; without splits the result goes to out.
 * flags 2: KV is f16. */
YK_KERNEL(attention)(YK_IN(q), YK_IN(kv), YK_IN(pos), YK_IN(run), YK_IN(table), YK_IN(sinks), YK_OUT(out), YK_OUT(part), const u32 q_stride,
                     const u32 out_stride, const u32 n_heads, const u32 n_kv_heads, const u32 head_dim, const u32 window,
                     const u32 block_stride, const u32 v_off, const u32 table_stride, const u32 flags, const f32 scale)
{
    YK_SHARED(f32, qs, YK_MAX_HEAD);
    YK_SHARED(f32, acc, YK_MAX_HEAD);
    YK_SHARED(f32, weight, YK_GROUP);
    YK_SHARED(f32, red, YK_GROUP);
    const u32 h = yk_group(0), t = yk_group(1), split = yk_group(2), n_splits = yk_groups(2);
    const u32 end = YK_CPTR(u32, pos)[t] + 1u, first = window && end > window ? end - window : 0u;
    const u32 n_chunks = (end - first + YK_GROUP - 1u) / YK_GROUP, per = (n_chunks + n_splits - 1u) / n_splits;
    YK_GLOBAL const f32 *qr = YK_CPTR(f32, q) + (u64)t * q_stride + (u64)h * head_dim;
    yk_scan a;
    a.base = YK_CPTR(u8, kv);
    a.blocks = YK_CPTR(u32, table) + (u64)YK_CPTR(u32, run)[t] * table_stride;
    a.h0 = (u64)(h / (n_heads / n_kv_heads)) * 16u * head_dim;
    a.head_dim = head_dim;
    a.block_stride = block_stride;
    a.v_off = v_off;
    a.f16 = flags & 2u;
    a.first = first;
    a.end = end;
    a.chunk = split * per;
    a.end_chunk = yk_min(n_chunks, (split + 1u) * per);
    a.own = 0;
    a.scale = scale;

    yk_items(i)
    {
        for (u32 d = i; d < head_dim; d += YK_GROUP) {
            qs[d] = qr[d];
            acc[d] = 0.0f;
        }
    }
    yk_scan_chunks(&a, qs, qs, qs, acc, weight, red);
    if (n_splits > 1u) {
        YK_GLOBAL f32 *to = YK_PTR(f32, part) + (((u64)t * n_heads + h) * n_splits + split) * (head_dim + 2u);
        yk_items(i)
        {
            if (i == 0) {
                to[0] = a.top;
                to[1] = a.total;
            }
            for (u32 d = i; d < head_dim; d += YK_GROUP)
                to[2u + d] = acc[d];
        }
        return;
    }
    YK_GLOBAL const f32 *sink = YK_CPTR(f32, sinks);
    const f32 last = sink && sink[h] > a.top ? sink[h] : a.top, keep = yk_exp(a.top - last);
    const f32 sum = a.total * keep + (sink ? yk_exp(sink[h] - last) : 0.0f);
    yk_items(i)
    {
        for (u32 d = i; d < head_dim; d += YK_GROUP)
            YK_PTR(f32, out)[(u64)t * out_stride + (u64)h * head_dim + d] = acc[d] * keep / sum;
    }
}

/* Group (head, t): rope_kv and attention in one, for tokens of different sequences: the same bits. Each group makes K and V of its token for itself, the first
 * query head of a KV head appends them; no group reads what another one writes. Also the rounded result, where head_dim is a multiple of 32. */
YK_KERNEL(attend)(YK_IN(qkv), YK_IN(q_b), YK_IN(k_b), YK_IN(v_b), YK_IN(q_norm), YK_IN(k_norm), YK_IN(cs), YK_IN(pos), YK_IN(run), YK_IN(table),
                  YK_IN(sinks), YK_OUT(kv), YK_OUT(out), YK_OUT(o_q), YK_OUT(o_scale), YK_OUT(o_sum), const u32 qkv_stride, const u32 out_stride,
                  const u32 n_heads, const u32 n_kv_heads, const u32 head_dim, const u32 n_rot, const f32 eps, const u32 window,
                  const u32 block_stride, const u32 v_off, const u32 table_stride, const u32 flags, const f32 scale)
{
    YK_SHARED(f32, qs, YK_MAX_HEAD);
    YK_SHARED(f32, ks, YK_MAX_HEAD);
    YK_SHARED(f32, vs, YK_MAX_HEAD);
    YK_SHARED(f32, acc, YK_MAX_HEAD);
    YK_SHARED(f32, weight, YK_GROUP);
    YK_SHARED(f32, red, YK_GROUP);
    const u32 h = yk_group(0), t = yk_group(1), share = n_heads / n_kv_heads, p = YK_CPTR(u32, pos)[t], f16 = flags & 2u;
    YK_GLOBAL const f32 *row = YK_CPTR(f32, qkv) + (u64)t * qkv_stride;
    yk_head a;
    yk_scan s;
    a.head_dim = head_dim;
    a.n_rot = n_rot;
    a.flags = flags;
    a.eps = eps;
    a.head = h;
    a.n_heads = n_heads;
    a.vec = row;
    a.bias = YK_CPTR(f32, q_b);
    a.norm = YK_CPTR(f32, q_norm);
    a.angle = YK_CPTR(f32, cs) + (u64)p * n_rot;
    yk_head_make(&a, qs, red);
    a.head = h / share;
    a.n_heads = n_kv_heads;
    a.vec = row + (u64)n_heads * head_dim;
    a.bias = YK_CPTR(f32, k_b);
    a.norm = YK_CPTR(f32, k_norm);
    yk_head_make(&a, ks, red);
    a.vec = row + (u64)(n_heads + n_kv_heads) * head_dim;
    a.bias = YK_CPTR(f32, v_b);
    a.norm = (YK_GLOBAL const f32 *)0;
    a.angle = (YK_GLOBAL const f32 *)0;
    yk_head_make(&a, vs, red);

    s.base = YK_PTR(u8, kv);
    s.blocks = YK_CPTR(u32, table) + (u64)YK_CPTR(u32, run)[t] * table_stride;
    s.h0 = (u64)a.head * 16u * head_dim;
    if (h % share == 0) {
        YK_GLOBAL u8 *to = YK_PTR(u8, kv) + (u64)s.blocks[p / 16u] * block_stride;
        const u64 at = s.h0 + (u64)(p % 16u) * head_dim;
        yk_kv_put(to, at, f16, ks, head_dim);
        yk_kv_put(to + v_off, at, f16, vs, head_dim);
    }
    yk_barrier();
    yk_items(i)
    {
        for (u32 d = i; d < head_dim; d += YK_GROUP) {
            ks[d] = f16 ? yk_round_half(ks[d]) : ks[d];
            vs[d] = f16 ? yk_round_half(vs[d]) : vs[d];
            acc[d] = 0.0f;
        }
    }
    s.head_dim = head_dim;
    s.block_stride = block_stride;
    s.v_off = v_off;
    s.f16 = f16;
    s.end = p + 1u;
    s.first = window && s.end > window ? s.end - window : 0u;
    s.chunk = 0;
    s.end_chunk = (s.end - s.first + YK_GROUP - 1u) / YK_GROUP;
    s.own = 1u;
    s.scale = scale;
    yk_scan_chunks(&s, qs, ks, vs, acc, weight, red);

    YK_GLOBAL const f32 *sink = YK_CPTR(f32, sinks);
    const f32 last = sink && sink[h] > s.top ? sink[h] : s.top, keep = yk_exp(s.top - last);
    const f32 sum = s.total * keep + (sink ? yk_exp(sink[h] - last) : 0.0f);
    yk_items(i)
    {
        for (u32 d = i; d < head_dim; d += YK_GROUP) {
            const f32 v = acc[d] * keep / sum;
            acc[d] = v;
            YK_PTR(f32, out)[(u64)t * out_stride + (u64)h * head_dim + d] = v;
        }
    }
    if (o_q_base) {
        yk_barrier();
        yk_items(i)
        {
            const u64 at = ((u64)t * n_heads + h) * (head_dim / 32u) + i;
            if (i < head_dim / 32u)
                yk_quantise_block(acc + 32u * i, (YK_GLOBAL u32 *)(YK_PTR(u8, o_q) + 32u * at), YK_PTR(f32, o_scale) + at,
                                  YK_PTR(i16, o_sum) + 2u * at);
        }
    }
}

/* Group (head, t): joins the splits of attention, in their order. */
YK_KERNEL(attention_join)(YK_IN(part), YK_IN(sinks), YK_OUT(out), const u32 n_splits, const u32 out_stride, const u32 head_dim)
{
    const u32 h = yk_group(0), t = yk_group(1), n_heads = yk_groups(0);
    YK_GLOBAL const f32 *from = YK_CPTR(f32, part) + ((u64)t * n_heads + h) * n_splits * (head_dim + 2u), *sink = YK_CPTR(f32, sinks);
    f32 top = sink ? sink[h] : from[0];
    for (u32 s = 0; s < n_splits; s++) {
        const f32 m = from[(u64)s * (head_dim + 2u)];
        top = m > top ? m : top;
    }
    f32 sum = sink ? yk_exp(sink[h] - top) : 0.0f;
    for (u32 s = 0; s < n_splits; s++)
        sum += from[(u64)s * (head_dim + 2u) + 1u] * yk_exp(from[(u64)s * (head_dim + 2u)] - top);
    yk_items(i)
    {
        for (u32 d = i; d < head_dim; d += YK_GROUP) {
            f32 a = 0.0f;
            for (u32 s = 0; s < n_splits; s++) {
                YK_GLOBAL const f32 *f = from + (u64)s * (head_dim + 2u);
                a += f[2u + d] * yk_exp(f[0] - top);
            }
            YK_PTR(f32, out)[(u64)t * out_stride + (u64)h * head_dim + d] = a / sum;
        }
    }
}
