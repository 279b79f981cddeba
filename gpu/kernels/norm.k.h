/* norm.k.h - residual addition, RMS norm, rounding to int8. Contract: docs/kernels/gpu.md, arguments: gpu/kernels.h. */

/* Group (t): x[rows[t]] += sum of y's n_y rows of t, in their order, + y2[t]; out[t] = x / sqrt(mean x^2 + eps) * w + b, and its rounded form. */
YK_KERNEL(add_norm)(YK_OUT(x), YK_IN(y), YK_IN(y2), YK_IN(rows), YK_IN(w), YK_IN(b), YK_OUT(out), YK_OUT(q), YK_OUT(scale), YK_OUT(sum),
                    const u32 n_cols, const u32 x_stride, const u32 y_stride, const u32 y2_stride, const u32 out_stride, const u32 n_y,
                    const f32 eps)
{
    YK_SHARED(f32, stage, YK_STAGE_SIZE);
    YK_SHARED(f32, part, YK_GROUP);
    const u32 t = yk_group(0), n_blocks = (n_cols + 31u) / 32u;
    YK_GLOBAL const u32 *row = YK_CPTR(u32, rows);
    YK_GLOBAL f32 *xr = YK_PTR(f32, x) + (u64)(row ? row[t] : t) * x_stride;
    YK_GLOBAL const f32 *ya = YK_CPTR(f32, y), *yb = YK_CPTR(f32, y2), *wv = YK_CPTR(f32, w), *bv = YK_CPTR(f32, b);
    YK_GLOBAL f32 *o = YK_PTR(f32, out);
    YK_GLOBAL u8 *qv = YK_PTR(u8, q);

    yk_items(i)
    {
        f32 acc = 0.0f;
        for (u32 c = i; c < n_cols; c += YK_GROUP) {
            f32 v = xr[c];
            if (ya) {
                f32 sum_y = ya[(u64)t * n_y * y_stride + c];
                for (u32 k = 1; k < n_y; k++)
                    sum_y += ya[((u64)t * n_y + k) * y_stride + c];
                v += sum_y;
            }
            if (yb)
                v += yb[(u64)t * y2_stride + c];
            if (ya || yb)
                xr[c] = v;
            acc += v * v;
        }
        part[i] = acc;
    }
    const f32 r = 1.0f / yk_sqrt(yk_group_sum(part) / (f32)n_cols + eps);
    for (u32 c0 = 0; c0 < n_cols; c0 += YK_STAGE_COLS) {
        yk_items(i)
        {
            for (u32 j = i; j < YK_STAGE_COLS; j += YK_GROUP) {
                const u32 c = c0 + j;
                f32 v = 0.0f;
                if (c < n_cols) {
                    v = xr[c] * r;
                    if (wv)
                        v = v * wv[c];
                    if (bv)
                        v = v + bv[c];
                    if (o)
                        o[(u64)t * out_stride + c] = v;
                }
                stage[yk_stage_at(j)] = v;
            }
        }
        if (qv) {
            yk_barrier();
            yk_items(i)
            {
                if (c0 / 32u + i < n_blocks)
                    yk_stage_quantise(stage, c0 / 32u + i, i, (u64)t * n_blocks, qv, YK_PTR(f32, scale), YK_PTR(i16, sum));
            }
            yk_barrier();
        }
    }
}

/* Group (64 blocks, t): row rows[t] of x to row t of q, scale, sum. */
YK_KERNEL(quantise)(YK_IN(x), YK_IN(rows), YK_OUT(q), YK_OUT(scale), YK_OUT(sum), const u32 n_cols, const u32 x_stride)
{
    YK_SHARED(f32, stage, YK_STAGE_SIZE);
    const u32 c0 = yk_group(0) * YK_STAGE_COLS, t = yk_group(1), n_blocks = (n_cols + 31u) / 32u;
    YK_GLOBAL const u32 *row = YK_CPTR(u32, rows);
    YK_GLOBAL const f32 *xr = YK_CPTR(f32, x) + (u64)(row ? row[t] : t) * x_stride;

    yk_items(i)
    {
        for (u32 j = i; j < YK_STAGE_COLS; j += YK_GROUP)
            stage[yk_stage_at(j)] = c0 + j < n_cols ? xr[c0 + j] : 0.0f;
    }
    yk_barrier();
    yk_items(i)
    {
        if (c0 / 32u + i < n_blocks)
            yk_stage_quantise(stage, c0 / 32u + i, i, (u64)t * n_blocks, YK_PTR(u8, q), YK_PTR(f32, scale), YK_PTR(i16, sum));
    }
}

/* Group (64 blocks, t): out[t] = glu(gate[t] + gate_b, up[t] + up_b), and its rounded form. kind 0: silu, 1: clamped. Without up, gate holds 16
 * columns of gate and 16 of up in turn. With ids, row t is of part ids[t]: it has that part's columns, biases from row ids[t] on. */
YK_KERNEL(glu)(YK_IN(gate), YK_IN(up), YK_IN(gate_b), YK_IN(up_b), YK_IN(ids), YK_IN(parts), YK_OUT(out), YK_OUT(q), YK_OUT(scale), YK_OUT(sum),
               const u32 n_cols, const u32 gate_stride, const u32 up_stride, const u32 out_stride, const u32 kind)
{
    YK_SHARED(f32, stage, YK_STAGE_SIZE);
    const u32 c0 = yk_group(0) * YK_STAGE_COLS, t = yk_group(1), row_blocks = (n_cols + 31u) / 32u, id = ids_base ? YK_CPTR(u32, ids)[t] : 0u;
    const u32 cols = ids_base ? yk_part_cols(YK_CPTR(u32, parts) + (u64)id * YK_PART_WORDS) : n_cols, n_blocks = (cols + 31u) / 32u;
    YK_GLOBAL const f32 *g_row = YK_CPTR(f32, gate) + (u64)t * gate_stride, *u_row = YK_CPTR(f32, up);
    YK_GLOBAL const f32 *gb = YK_CPTR(f32, gate_b), *ub = YK_CPTR(f32, up_b);
    YK_GLOBAL f32 *o = YK_PTR(f32, out);
    YK_GLOBAL u8 *qv = YK_PTR(u8, q);

    yk_items(i)
    {
        for (u32 j = i; j < YK_STAGE_COLS; j += YK_GROUP) {
            const u32 c = c0 + j;
            f32 v = 0.0f;
            if (c < cols) {
                const u32 at = c / 16u * 32u + c % 16u;
                f32 g = u_row ? g_row[c] : g_row[at], u = u_row ? u_row[(u64)t * up_stride + c] : g_row[at + 16u];
                if (gb)
                    g += gb[(u64)id * cols + c];
                if (ub)
                    u += ub[(u64)id * cols + c];
                if (kind == 0) {
                    v = g / (1.0f + yk_exp(-g)) * u;
                } else { /* written so that a NaN passes through */
                    g = g > 7.0f ? 7.0f : g;
                    u = u > 7.0f ? 7.0f : u;
                    u = u < -7.0f ? -7.0f : u;
                    v = g / (1.0f + yk_exp(-1.702f * g)) * (u + 1.0f);
                }
                if (o)
                    o[(u64)t * out_stride + c] = v;
            }
            stage[yk_stage_at(j)] = v;
        }
    }
    if (qv) {
        yk_barrier();
        yk_items(i)
        {
            if (c0 / 32u + i < n_blocks)
                yk_stage_quantise(stage, c0 / 32u + i, i, (u64)t * row_blocks, qv, YK_PTR(f32, scale), YK_PTR(i16, sum));
        }
    }
}

/* Group (1024 columns, t): copy, gather, scatter, narrowing to f16, weighted addition of rows.
 * flags 1: add to y, 2: y is f16 (then nothing is added). */
YK_KERNEL(move_rows)(YK_IN(x), YK_IN(rows), YK_IN(weights), YK_OUT(y), YK_IN(y_rows), const u32 n_cols, const u32 x_stride,
                     const u32 y_stride, const u32 flags)
{
    const u32 c0 = yk_group(0) * 1024u, t = yk_group(1);
    YK_GLOBAL const u32 *from = YK_CPTR(u32, rows), *to = YK_CPTR(u32, y_rows);
    YK_GLOBAL const f32 *xr = YK_CPTR(f32, x) + (u64)(from ? from[t] : t) * x_stride, *wt = YK_CPTR(f32, weights);
    const u64 y0 = (u64)(to ? to[t] : t) * y_stride;

    yk_items(i)
    {
        for (u32 c = c0 + i; c < yk_min(n_cols, c0 + 1024u); c += YK_GROUP) {
            f32 v = xr[c];
            if (wt)
                v = wt[t] * v;
            if (flags & 2u)
                yk_store_half(YK_PTR(u16, y), y0 + c, v);
            else if (flags & 1u)
                YK_PTR(f32, y)[y0 + c] += v;
            else
                YK_PTR(f32, y)[y0 + c] = v;
        }
    }
}

/* Group (1024 elements): y = 1 / (1 + e^-x). */
YK_KERNEL(sigmoid)(YK_IN(x), YK_OUT(y), const u32 n)
{
    const u32 c0 = yk_group(0) * 1024u;
    yk_items(i)
    {
        for (u32 c = c0 + i; c < yk_min(n, c0 + 1024u); c += YK_GROUP)
            YK_PTR(f32, y)[c] = 1.0f / (1.0f + yk_exp(-YK_CPTR(f32, x)[c]));
    }
}
