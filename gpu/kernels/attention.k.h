/* attention.k.h - rotation and KV append, attention over KV blocks. Contract: docs/kernels/gpu.md, arguments: gpu/kernels.h.
 *
 * A KV block holds 16 positions, K at the block's start, V v_off bytes on: [n_kv_heads][16][head_dim], f16 or f32. Position p of run r is in
 * block table[r * table_stride + p / 16], block_stride bytes apart. */

/* Group (head, t); heads: query heads, then K heads, then V heads. flags 1: pairs (i, i + n_rot/2), else (2i, 2i + 1); 2: KV is f16;
 * 4: norm over the whole vector, else over each head. */
YK_KERNEL(rope_kv)(YK_IN(qkv), YK_IN(q_b), YK_IN(k_b), YK_IN(v_b), YK_IN(q_norm), YK_IN(k_norm), YK_IN(cs), YK_IN(pos), YK_IN(run),
                   YK_IN(table), YK_OUT(q_out), YK_OUT(kv), const u32 qkv_stride, const u32 q_stride, const u32 n_heads,
                   const u32 n_kv_heads, const u32 head_dim, const u32 n_rot, const f32 eps, const u32 block_stride, const u32 v_off,
                   const u32 table_stride, const u32 flags)
{
    YK_SHARED(f32, v, YK_MAX_HEAD);
    YK_SHARED(f32, part, YK_GROUP);
    const u32 g = yk_group(0), t = yk_group(1), kind = g < n_heads ? 0u : g < n_heads + n_kv_heads ? 1u : 2u;
    const u32 head = kind == 0 ? g : kind == 1 ? g - n_heads : g - n_heads - n_kv_heads;
    YK_GLOBAL const f32 *bias = kind == 0 ? YK_CPTR(f32, q_b) : kind == 1 ? YK_CPTR(f32, k_b) : YK_CPTR(f32, v_b);
    YK_GLOBAL const f32 *norm = kind == 0 ? YK_CPTR(f32, q_norm) : kind == 1 ? YK_CPTR(f32, k_norm) : (YK_GLOBAL const f32 *)0;
    YK_GLOBAL const f32 *vec = YK_CPTR(f32, qkv) + (u64)t * qkv_stride + (u64)(g - head) * head_dim; /* the whole q, k or v */
    const u32 h0 = head * head_dim, p = YK_CPTR(u32, pos)[t];

    yk_items(i)
    {
        for (u32 d = i; d < head_dim; d += YK_GROUP)
            v[d] = vec[h0 + d] + (bias ? bias[h0 + d] : 0.0f);
    }
    yk_barrier();
    if (norm) {
        const u32 n = flags & 4u ? (kind == 0 ? n_heads : n_kv_heads) * head_dim : head_dim, n0 = flags & 4u ? 0 : h0;
        yk_items(i)
        {
            f32 acc = 0.0f;
            for (u32 d = i; d < n; d += YK_GROUP) {
                const f32 x = vec[n0 + d] + (bias ? bias[n0 + d] : 0.0f);
                acc += x * x;
            }
            part[i] = acc;
        }
        const f32 r = 1.0f / yk_sqrt(yk_group_sum(part) / (f32)n + eps);
        yk_items(i)
        {
            for (u32 d = i; d < head_dim; d += YK_GROUP)
                v[d] = v[d] * r * norm[(flags & 4u ? h0 : 0u) + d];
        }
        yk_barrier();
    }
    if (kind < 2u) {
        YK_GLOBAL const f32 *angle = YK_CPTR(f32, cs) + (u64)p * n_rot;
        const u32 n_pairs = n_rot / 2u, step = flags & 1u ? 1u : 2u, other = flags & 1u ? n_pairs : 1u;
        yk_items(i)
        {
            for (u32 k = i; k < n_pairs; k += YK_GROUP) {
                const f32 c = angle[2u * k], s = angle[2u * k + 1u], a = v[step * k], b = v[step * k + other];
                v[step * k] = a * c - b * s;
                v[step * k + other] = a * s + b * c;
            }
        }
        yk_barrier();
    }
    if (kind == 0) {
        yk_items(i)
        {
            for (u32 d = i; d < head_dim; d += YK_GROUP)
                YK_PTR(f32, q_out)[(u64)t * q_stride + h0 + d] = v[d];
        }
    } else {
        const u32 block = YK_CPTR(u32, table)[(u64)YK_CPTR(u32, run)[t] * table_stride + p / 16u];
        YK_GLOBAL u8 *to = YK_PTR(u8, kv) + (u64)block * block_stride + (kind == 1u ? 0u : v_off);
        const u64 at = ((u64)head * 16u + p % 16u) * head_dim;
        yk_items(i)
        {
            for (u32 d = i; d < head_dim; d += YK_GROUP) {
                if (flags & 2u)
                    yk_store_half((YK_GLOBAL u16 *)to, at + d, v[d]);
                else
                    ((YK_GLOBAL f32 *)to)[at + d] = v[d];
            }
        }
    }
}

YK_FN f32 yk_kv_load(YK_GLOBAL const u8 *p, const u64 i, const u32 f16)
{
    return f16 ? yk_load_half((YK_GLOBAL const u16 *)p, i) : ((YK_GLOBAL const f32 *)p)[i];
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
    const u32 h = yk_group(0), t = yk_group(1), split = yk_group(2), n_splits = yk_groups(2), f16 = flags & 2u;
    const u32 end = YK_CPTR(u32, pos)[t] + 1u, first = window && end > window ? end - window : 0u;
    const u32 n_chunks = (end - first + YK_GROUP - 1u) / YK_GROUP, per = (n_chunks + n_splits - 1u) / n_splits;
    YK_GLOBAL const u32 *blocks = YK_CPTR(u32, table) + (u64)YK_CPTR(u32, run)[t] * table_stride;
    YK_GLOBAL const f32 *qr = YK_CPTR(f32, q) + (u64)t * q_stride + (u64)h * head_dim;
    YK_GLOBAL const u8 *base = YK_CPTR(u8, kv);
    const u64 h0 = (u64)(h / (n_heads / n_kv_heads)) * 16u * head_dim;
    f32 top = -INFINITY, total = 0.0f;

    yk_items(i)
    {
        for (u32 d = i; d < head_dim; d += YK_GROUP) {
            qs[d] = qr[d];
            acc[d] = 0.0f;
        }
    }
    for (u32 c = split * per; c < yk_min(n_chunks, (split + 1u) * per); c++) {
        const u32 p0 = first + c * YK_GROUP, n = yk_min(end - p0, YK_GROUP);
        yk_barrier();
        yk_items(i)
        {
            f32 s = -INFINITY;
            if (i < n) {
                const u32 p = p0 + i;
                YK_GLOBAL const u8 *k = base + (u64)blocks[p / 16u] * block_stride;
                const u64 at = h0 + (u64)(p % 16u) * head_dim;
                s = 0.0f;
                for (u32 d = 0; d < head_dim; d++)
                    s += qs[d] * yk_kv_load(k, at + d, f16);
                s = scale * s;
            }
            weight[i] = s;
            red[i] = s;
        }
        const f32 chunk_top = yk_group_max(red), new_top = chunk_top > top ? chunk_top : top, fade = yk_exp(top - new_top);
        yk_items(i)
        {
            const f32 e = i < n ? yk_exp(weight[i] - new_top) : 0.0f;
            weight[i] = e;
            red[i] = e;
        }
        total = total * fade + yk_group_sum(red);
        yk_items(i)
        {
            for (u32 d = i; d < head_dim; d += YK_GROUP) {
                f32 a = acc[d] * fade;
                for (u32 j = 0; j < n; j++) {
                    const u32 p = p0 + j;
                    a += weight[j] * yk_kv_load(base + (u64)blocks[p / 16u] * block_stride + v_off, h0 + (u64)(p % 16u) * head_dim + d, f16);
                }
                acc[d] = a;
            }
        }
        top = new_top;
    }
    yk_barrier();
    if (n_splits > 1u) {
        YK_GLOBAL f32 *to = YK_PTR(f32, part) + (((u64)t * n_heads + h) * n_splits + split) * (head_dim + 2u);
        yk_items(i)
        {
            if (i == 0) {
                to[0] = top;
                to[1] = total;
            }
            for (u32 d = i; d < head_dim; d += YK_GROUP)
                to[2u + d] = acc[d];
        }
        return;
    }
    YK_GLOBAL const f32 *sink = YK_CPTR(f32, sinks);
    const f32 last = sink && sink[h] > top ? sink[h] : top, keep = yk_exp(top - last);
    const f32 sum = total * keep + (sink ? yk_exp(sink[h] - last) : 0.0f);
    yk_items(i)
    {
        for (u32 d = i; d < head_dim; d += YK_GROUP)
            YK_PTR(f32, out)[(u64)t * out_stride + (u64)h * head_dim + d] = acc[d] * keep / sum;
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
