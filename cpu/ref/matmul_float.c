/* matmul_float.c - F32, F16 and BF16 weights times f32 activations. Contract: docs/kernels/matmul.md.
 *
 * Sixteen partial sums a token (column i goes to sum i % 16), reduced by yk_ref_sum16. Up to four tokens share a converted
 * weight. */
#include "cpu/ref/ref.h"

enum { TILE = 4 };

/* Sixteen weights at w, converted. */
typedef void (*load16)(const uint8_t *w, float *f);

/* Halves at any address. Copies through an array would be cut into pieces whose stores a wider load has to wait for. */
typedef uint16_t loose_u16 __attribute__((aligned(1), may_alias));
typedef float loose_f32 __attribute__((aligned(1), may_alias));

YK_INLINE void load_f32(const uint8_t *w, float *f)
{
    const loose_f32 *p = (const loose_f32 *)w;
    YK_KEEP_LOOP
    for (int i = 0; i < YK_LANES; i++)
        f[i] = p[i];
}

YK_INLINE void load_f16(const uint8_t *w, float *f)
{
    const loose_u16 *p = (const loose_u16 *)w;
    YK_KEEP_LOOP
    for (int i = 0; i < YK_LANES; i++)
        f[i] = yk_f16_to_f32(p[i]);
}

YK_INLINE void load_bf16(const uint8_t *w, float *f)
{
    const loose_u16 *p = (const loose_u16 *)w;
    YK_KEEP_LOOP
    for (int i = 0; i < YK_LANES; i++)
        f[i] = yk_bf16_to_f32(p[i]);
}

/* nt tokens, a constant at each call. */
YK_INLINE void row_tokens(const uint8_t *w, uint32_t n_cols, const float *const *x, uint32_t nt, float *y, size_t y_stride,
                          load16 load, uint32_t elem_bytes)
{
    yk_v8 acc[TILE][2] = {{{0}}};
    float f[YK_LANES];
    uint32_t c = 0;
    for (; n_cols - c >= YK_LANES; c += YK_LANES) {
        load(w + (size_t)c * elem_bytes, f);
        for (uint32_t t = 0; t < nt; t++)
            yk_ref_mul_add16(f, x[t] + c, acc[t]);
    }
    if (c < n_cols) {
        uint8_t last[4 * YK_LANES] = {0};
        memcpy(last, w + (size_t)c * elem_bytes, (size_t)(n_cols - c) * elem_bytes);
        load(last, f);
    }
    for (uint32_t t = 0; t < nt; t++)
        y[t * y_stride] = yk_ref_finish16(f, x[t] + c, n_cols - c, acc[t]);
}

YK_INLINE void matmul_rows(const yk_matmul *m, load16 load, uint32_t elem_bytes)
{
    for (uint32_t t0 = 0; t0 < m->n_tokens; t0 += TILE) {
        const uint32_t nt = m->n_tokens - t0 < TILE ? m->n_tokens - t0 : TILE;
        const float *x[TILE];
        for (uint32_t t = 0; t < nt; t++)
            x[t] = m->x + (size_t)(m->rows ? m->rows[t0 + t] : t0 + t) * m->x_stride;
        float *y = m->y + (size_t)t0 * m->y_stride;
        for (uint32_t r = 0; r < m->n_rows; r++) {
            const uint8_t *w = m->w + r * m->row_bytes;
            if (nt == TILE) {
                row_tokens(w, m->n_cols, x, TILE, y + r, m->y_stride, load, elem_bytes);
                continue;
            }
            for (uint32_t t = 0; t < nt; t++)
                row_tokens(w, m->n_cols, x + t, 1, y + t * m->y_stride + r, m->y_stride, load, elem_bytes);
        }
    }
}

YK_CLONES static void matmul_f32_ref(const yk_matmul *m)
{
    matmul_rows(m, load_f32, 4);
}

YK_CLONES static void matmul_f16_f32_ref(const yk_matmul *m)
{
    matmul_rows(m, load_f16, 2);
}

YK_CLONES static void matmul_bf16_f32_ref(const yk_matmul *m)
{
    matmul_rows(m, load_bf16, 2);
}

void yk_ref_fill_matmul_float(yk_ops *ops)
{
    ops->matmul[YK_TYPE_F32] = matmul_f32_ref;
    ops->matmul[YK_TYPE_F16] = matmul_f16_f32_ref;
    ops->matmul[YK_TYPE_BF16] = matmul_bf16_f32_ref;
}
