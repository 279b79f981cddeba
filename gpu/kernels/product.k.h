/* product.k.h - what both products with packed weights share: arguments, activations, where results go. Contract: docs/kernels/gpu.md,
 * arguments: gpu/kernels.h.
 *
 * A block's integer product is exact. The f32 terms of a row are added in four parts, part i the blocks of 32 columns with number i modulo 4, in
 * the order of columns; the row is (0 + 1) + (2 + 3). So every kernel has the same bits, and those of a token do not depend on the others. */

#define YK_PARTS 4u

/* Tile j of panel p lies at w + (p / group_panels) * group_stride + (p % group_panels) * panel_stride + j * col_stride. */
typedef struct yk_product {
    YK_GLOBAL const u8 *panel;      /* first tile of this group's panel */
    YK_GLOBAL const f32 *x, *scale; /* float types: activations; else scales of rounded ones */
    YK_GLOBAL const u32 *q;
    YK_GLOBAL const i16 *sum;
    YK_GLOBAL const u32 *rows;
    u32 n_cols, x_stride, col_stride, t0, n; /* x_stride: floats, or blocks of a rounded row */
    YK_GLOBAL const u8 *tail; /* tile tail_tile, where it is not one of the row */
    u32 tail_tile;            /* YK_NO_TILE: all are */
} yk_product;

#define YK_NO_TILE 0xffffffffu
YK_FN YK_GLOBAL const u8 *yk_pr_tile(const yk_product *m, const u32 j)
{
    return j == m->tail_tile ? m->tail : m->panel + (u64)j * m->col_stride;
}

/* Row of activations for token k of this group; tokens that do not exist repeat the last one, so that nothing branches. */
YK_FN u32 yk_pr_row(const yk_product *m, const u32 k)
{
    const u32 t = m->t0 + yk_min(k, m->n - 1u);
    return m->rows ? m->rows[t] : t;
}

/* What block b of token k's rounded activations has. */
typedef struct yk_acts {
    u32 q[8];
    i32 sum[2];
    f32 scale;
} yk_acts;

YK_FN yk_acts yk_pr_acts(const yk_product *m, const u32 k, const u32 b)
{
    const u64 at = (u64)yk_pr_row(m, k) * m->x_stride + b;
    yk_acts a;
    yk_load4(m->q + 8u * at, a.q);
    yk_load4(m->q + 8u * at + 4u, a.q + 4);
    a.sum[0] = m->sum[2u * at];
    a.sum[1] = m->sum[2u * at + 1u];
    a.scale = m->scale[at];
    return a;
}

/* Where results go: y[y_rows[t]][row] = or += weights[t] * (sum + bias[row]). */
typedef struct yk_product_out {
    YK_GLOBAL f32 *y;
    YK_GLOBAL const f32 *bias, *weights;
    YK_GLOBAL const u32 *y_rows;
    u32 n_rows, y_stride, flags; /* flags 1: add to y */
} yk_product_out;

/* Sum v of row `row` and token t. */
YK_FN void yk_pr_put(const yk_product_out *o, const u32 t, const u32 row, f32 v)
{
    if (row >= o->n_rows)
        return;
    if (o->bias)
        v += o->bias[row];
    if (o->weights)
        v = o->weights[t] * v;
    YK_GLOBAL f32 *y = o->y + (u64)(o->y_rows ? o->y_rows[t] : t) * o->y_stride + row;
    *y = o->flags & 1u ? *y + v : v;
}

/* Group (panel, some tokens). x: f32 activations (float weights) or int8 (others); scale, sum: of rounded activations. */
#define YK_PRODUCT_ARGS                                                                                                                \
    YK_IN(w), YK_IN(x), YK_IN(scale), YK_IN(sum), YK_IN(rows), YK_IN(bias), YK_IN(weights), YK_OUT(y), YK_IN(y_rows), const u32 n_rows, \
        const u32 n_cols, const u32 n_tokens, const u32 x_stride, const u32 y_stride, const u32 panel_stride, const u32 col_stride,      \
        const u32 group_panels, const u32 group_stride, const u32 flags

/* m and o of a group of `tokens` tokens. */
#define YK_PRODUCT_SETUP(tokens)                                                                                                      \
    const u32 p = yk_group(0), t0 = yk_group(1) * (tokens);                                                                           \
    yk_product m;                                                                                                                     \
    yk_product_out o;                                                                                                                 \
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
    m.n = yk_min(tokens, n_tokens - t0);                                                                                              \
    m.tail = m.panel;                                                                                                                 \
    m.tail_tile = YK_NO_TILE;                                                                                                         \
    o.y = YK_PTR(f32, y);                                                                                                             \
    o.bias = YK_CPTR(f32, bias);                                                                                                      \
    o.weights = YK_CPTR(f32, weights);                                                                                                \
    o.y_rows = YK_CPTR(u32, y_rows);                                                                                                  \
    o.n_rows = n_rows;                                                                                                                \
    o.y_stride = y_stride;                                                                                                            \
    o.flags = flags;
