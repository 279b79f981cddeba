/* route.k.h - choice of experts. Contract: docs/kernels/gpu.md and docs/kernels/route.md, arguments: gpu/kernels.h. */

/* Logit a of expert i comes before logit b of expert j: NaN is the lowest, among equals the lower id comes first. */
YK_FN u32 yk_before(const f32 a, const u32 i, const f32 b, const u32 j)
{
    const u32 a_nan = a != a, b_nan = b != b;
    if (a_nan != b_nan)
        return b_nan;
    if (a_nan || a == b)
        return i < j;
    return a > b;
}

/* Group (t): the k experts of logits[t][n] that come first, and their weights. flags 1: softmax over the chosen, else over all; 2: divide by
 * the sum of the chosen. The order of operations is the CPU's. k <= n <= YK_MAX_EXPERTS, k <= YK_MAX_USED. Rows of ids and weights have k
 * entries, or with a shared expert one more: n and its weight, flags 4: 1 / (1 + e^-logit n), 8: 1. */
YK_KERNEL(route)(YK_IN(logits), YK_OUT(ids), YK_OUT(weights), const u32 n, const u32 k, const u32 stride, const u32 flags)
{
    YK_SHARED(f32, lg, YK_MAX_EXPERTS);
    YK_SHARED(f32, ex, YK_MAX_EXPERTS);
    YK_SHARED(f32, part, YK_GROUP);
    YK_SHARED(u32, best, YK_GROUP);
    YK_SHARED(u32, chosen, YK_MAX_USED);
    const u32 t = yk_group(0), used = k + (flags & 12u ? 1u : 0u);

    yk_items(i)
    {
        for (u32 e = i; e < n; e += YK_GROUP)
            lg[e] = YK_CPTR(f32, logits)[(u64)t * stride + e];
    }
    yk_barrier();
    for (u32 j = 0; j < k; j++) {
        yk_items(i)
        {
            u32 b = n;
            for (u32 e = i; e < n; e += YK_GROUP) {
                if (j && !yk_before(lg[chosen[j - 1u]], chosen[j - 1u], lg[e], e))
                    continue;
                if (b == n || yk_before(lg[e], e, lg[b], b))
                    b = e;
            }
            best[i] = b;
        }
        for (u32 h = YK_GROUP / 2; h > 0; h >>= 1) {
            yk_barrier();
            yk_items(i)
            {
                if (i < h) {
                    const u32 a = best[i], b = best[i + h];
                    if (a == n || (b != n && yk_before(lg[b], b, lg[a], a)))
                        best[i] = b;
                }
            }
        }
        yk_barrier();
        yk_items(i)
        {
            if (i == 0)
                chosen[j] = best[0];
        }
        yk_barrier();
    }
    const f32 max = lg[chosen[0]];
    yk_items(i)
    {
        for (u32 e = i; e < n; e += YK_GROUP)
            ex[e] = yk_exp(lg[e] - max);
    }
    yk_barrier();
    yk_items(i) /* expert e goes to partial sum e % 16, partial sums are halved until one is left */
    {
        f32 acc = 0.0f;
        if (i < 16u)
            for (u32 e = i; e < n; e += 16u)
                acc += ex[e];
        part[i] = i < 16u ? acc : 0.0f;
    }
    for (u32 h = 8; h > 0; h >>= 1) {
        yk_barrier();
        yk_items(i)
        {
            if (i < h)
                part[i] += part[i + h];
        }
    }
    yk_barrier();
    yk_items(i)
    {
        if (i == 0) { /* the chosen from the smallest on, so that one large weight does not lose the small ones */
            f32 total = part[0], sum = 0.0f;
            if (flags & 1u) {
                total = 0.0f;
                for (u32 j = k; j > 0; j--)
                    total += ex[chosen[j - 1u]];
            }
            for (u32 j = k; j > 0; j--)
                sum += ex[chosen[j - 1u]] / total;
            for (u32 j = 0; j < k; j++) {
                const f32 w = ex[chosen[j]] / total;
                YK_PTR(u32, ids)[(u64)t * used + j] = chosen[j];
                YK_PTR(f32, weights)[(u64)t * used + j] = flags & 2u ? w / sum : w;
            }
            if (used > k) {
                YK_PTR(u32, ids)[(u64)t * used + k] = n;
                YK_PTR(f32, weights)[(u64)t * used + k] =
                    flags & 4u ? 1.0f / (1.0f + yk_exp(-YK_CPTR(f32, logits)[(u64)t * stride + n])) : 1.0f;
            }
        }
    }
}

YK_FN f32 yk_row_weight(YK_GLOBAL const u8 *w, const u64 i, const u32 flags)
{
    if (flags == 0)
        return ((YK_GLOBAL const f32 *)w)[i];
    return flags == 1u ? yk_load_half((YK_GLOBAL const u16 *)w, i) : yk_float((u32)((YK_GLOBAL const u16 *)w)[i] << 16);
}

/* Group (row, t): y[t][row] = w[row] . x[t] + bias[row] for a plain row-major matrix of f32, f16 (flags 1) or bf16 (2). Rows from n_rows on are those of
 * w2, without bias, f32, f16 (flags 4) or bf16 (8). */
YK_KERNEL(rowmat)(YK_IN(w), YK_IN(w2), YK_IN(x), YK_IN(bias), YK_OUT(y), const u32 n_rows, const u32 n_cols, const u32 x_stride,
                  const u32 y_stride, const u32 flags)
{
    YK_SHARED(f32, part, YK_GROUP);
    const u32 r = yk_group(0), t = yk_group(1), second = r >= n_rows ? 1u : 0u, type = second ? flags >> 2 : flags & 3u;
    const u64 w0 = (u64)(second ? r - n_rows : r) * n_cols;
    YK_GLOBAL const u8 *wv = second ? YK_CPTR(u8, w2) : YK_CPTR(u8, w);
    YK_GLOBAL const f32 *xr = YK_CPTR(f32, x) + (u64)t * x_stride;

    yk_items(i)
    {
        f32 acc = 0.0f;
        for (u32 c = i; c < n_cols; c += YK_GROUP)
            acc += yk_row_weight(wv, w0 + c, type) * xr[c];
        part[i] = acc;
    }
    const f32 sum = yk_group_sum(part);
    yk_items(i)
    {
        if (i == 0)
            YK_PTR(f32, y)[(u64)t * y_stride + r] = sum + (bias_base && !second ? YK_CPTR(f32, bias)[r] : 0.0f);
    }
}
