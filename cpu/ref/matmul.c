/* matmul.c - low-bit weights times int8 activations. Contract and order of sums: docs/kernels/matmul.md.
 *
 * A group of 256 weights is unpacked once and meets up to TILE tokens; per token it costs 256 integer products and eight f32
 * terms, one for each block of 32, which go to eight partial sums. Nothing depends on the tile, so results do not depend on
 * how rows and tokens are split over calls. */
#include "cpu/ref/unpack.h"

enum { TILE = 8 };

/* One token's activations under a group. */
typedef struct act {
    const int8_t *q;    /* [256] */
    const float *scale; /* [8] */
    const int16_t *sum; /* [16] */
} act;

YK_INLINE int32_t dot16(const int8_t *a, const int8_t *b)
{
    int32_t s = 0;
    YK_KEEP_LOOP
    for (int i = 0; i < 16; i++)
        s += a[i] * b[i];
    return s;
}

YK_INLINE int32_t dot32(const int8_t *a, const int8_t *b)
{
    int32_t s = 0;
    for (int i = 0; i < 32; i++)
        s += a[i] * b[i];
    return s;
}

/* acc[b] += xscale * (scale0 * dot0 + scale1 * dot1 - (min0 * sum0 + min1 * sum1)), or with one scale and min a block. */
YK_INLINE void group_dot(const yk_ref_group *g, const act *x, float *acc, bool halves, bool mins)
{
    int32_t dot[2][8];
    float v[8];
    if (halves) {
        for (int b = 0; b < 8; b++) {
            dot[0][b] = dot16(g->q + 32 * b, x->q + 32 * b);
            dot[1][b] = dot16(g->q + 32 * b + 16, x->q + 32 * b + 16);
        }
        for (int b = 0; b < 8; b++)
            v[b] = g->scale[0][b] * (float)dot[0][b] + g->scale[1][b] * (float)dot[1][b];
        if (mins)
            for (int b = 0; b < 8; b++)
                v[b] -= g->min[0][b] * (float)x->sum[2 * b] + g->min[1][b] * (float)x->sum[2 * b + 1];
    } else {
        for (int b = 0; b < 8; b++)
            dot[0][b] = dot32(g->q + 32 * b, x->q + 32 * b);
        for (int b = 0; b < 8; b++)
            v[b] = g->scale[0][b] * (float)dot[0][b];
        if (mins)
            for (int b = 0; b < 8; b++)
                v[b] -= g->min[0][b] * (float)(x->sum[2 * b] + x->sum[2 * b + 1]);
    }
    for (int b = 0; b < 8; b++)
        acc[b] += x->scale[b] * v[b];
}

/* The last group of a row whose blocks are no multiple of eight: missing blocks count as zeros. */
YK_INLINE void tail_dot(yk_ref_group *g, uint32_t n, const act *x, float *acc, bool mins)
{
    int8_t q[256] = {0};
    float scale[8] = {0};
    int16_t sum[16] = {0};
    memcpy(q, x->q, (size_t)32 * n);
    memcpy(scale, x->scale, n * sizeof *scale);
    memcpy(sum, x->sum, (size_t)2 * n * sizeof *sum);
    memset(g->q + (size_t)32 * n, 0, (size_t)32 * (8 - n));
    for (uint32_t b = n; b < 8; b++)
        g->scale[0][b] = g->min[0][b] = 0.0f;
    group_dot(g, &(act){q, scale, sum}, acc, false, mins);
}

/* Types with halves have blocks of 256, so a tail never has them. */
YK_INLINE void matmul_blocks(const yk_matmul *m, yk_ref_unpack unpack, bool halves, bool mins, uint32_t block_bytes,
                             uint32_t per_group)
{
    const yk_q8 *xq = m->xq;
    const uint32_t n_blocks = m->n_cols / 32, n_full = n_blocks / 8, n_tail = n_blocks % 8;
    for (uint32_t t0 = 0; t0 < m->n_tokens; t0 += TILE) {
        const uint32_t nt = m->n_tokens - t0 < TILE ? m->n_tokens - t0 : TILE;
        act base[TILE];
        for (uint32_t t = 0; t < nt; t++) {
            const size_t at = (size_t)(m->rows ? m->rows[t0 + t] : t0 + t) * xq->n_blocks;
            base[t] = (act){xq->q + 32 * at, xq->scale + at, xq->sum + 2 * at};
        }
        for (uint32_t r = 0; r < m->n_rows; r++) {
            const uint8_t *w = m->w + r * m->row_bytes;
            float acc[TILE][8] = {{0}};
            yk_ref_group g;
            for (size_t i = 0; i < n_full; i++) {
                unpack(w, 8, &g);
                for (uint32_t t = 0; t < nt; t++) {
                    const act x = {base[t].q + 256 * i, base[t].scale + 8 * i, base[t].sum + 16 * i};
                    group_dot(&g, &x, acc[t], halves, mins);
                }
                w += (size_t)block_bytes * per_group;
            }
            if (n_tail && !halves) {
                const size_t i = n_full;
                unpack(w, n_tail, &g);
                for (uint32_t t = 0; t < nt; t++) {
                    const act x = {base[t].q + 256 * i, base[t].scale + 8 * i, base[t].sum + 16 * i};
                    tail_dot(&g, n_tail, &x, acc[t], mins);
                }
            }
            for (uint32_t t = 0; t < nt; t++) {
                const float *a = acc[t];
                m->y[(t0 + t) * m->y_stride + r] = ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
            }
        }
    }
}

YK_CLONES static void matmul_q4_0_q8_ref(const yk_matmul *m)
{
    matmul_blocks(m, yk_ref_unpack_q4_0, false, false, 18, 8);
}

YK_CLONES static void matmul_q4_1_q8_ref(const yk_matmul *m)
{
    matmul_blocks(m, yk_ref_unpack_q4_1, false, true, 20, 8);
}

YK_CLONES static void matmul_q5_0_q8_ref(const yk_matmul *m)
{
    matmul_blocks(m, yk_ref_unpack_q5_0, false, false, 22, 8);
}

YK_CLONES static void matmul_q5_1_q8_ref(const yk_matmul *m)
{
    matmul_blocks(m, yk_ref_unpack_q5_1, false, true, 24, 8);
}

YK_CLONES static void matmul_q8_0_q8_ref(const yk_matmul *m)
{
    matmul_blocks(m, yk_ref_unpack_q8_0, false, false, 34, 8);
}

YK_CLONES static void matmul_iq4_nl_q8_ref(const yk_matmul *m)
{
    matmul_blocks(m, yk_ref_unpack_iq4_nl, false, false, 18, 8);
}

YK_CLONES static void matmul_mxfp4_q8_ref(const yk_matmul *m)
{
    matmul_blocks(m, yk_ref_unpack_mxfp4, false, false, 17, 8);
}

YK_CLONES static void matmul_q2_k_q8_ref(const yk_matmul *m)
{
    matmul_blocks(m, yk_ref_unpack_q2_k, true, true, 84, 1);
}

YK_CLONES static void matmul_q3_k_q8_ref(const yk_matmul *m)
{
    matmul_blocks(m, yk_ref_unpack_q3_k, true, false, 110, 1);
}

YK_CLONES static void matmul_q4_k_q8_ref(const yk_matmul *m)
{
    matmul_blocks(m, yk_ref_unpack_q4_k, false, true, 144, 1);
}

YK_CLONES static void matmul_q5_k_q8_ref(const yk_matmul *m)
{
    matmul_blocks(m, yk_ref_unpack_q5_k, false, true, 176, 1);
}

YK_CLONES static void matmul_q6_k_q8_ref(const yk_matmul *m)
{
    matmul_blocks(m, yk_ref_unpack_q6_k, true, false, 210, 1);
}

YK_CLONES static void matmul_iq4_xs_q8_ref(const yk_matmul *m)
{
    matmul_blocks(m, yk_ref_unpack_iq4_xs, false, false, 136, 1);
}

void yk_ref_fill_matmul(yk_ops *ops)
{
    ops->matmul[YK_TYPE_Q4_0] = matmul_q4_0_q8_ref;
    ops->matmul[YK_TYPE_Q4_1] = matmul_q4_1_q8_ref;
    ops->matmul[YK_TYPE_Q5_0] = matmul_q5_0_q8_ref;
    ops->matmul[YK_TYPE_Q5_1] = matmul_q5_1_q8_ref;
    ops->matmul[YK_TYPE_Q8_0] = matmul_q8_0_q8_ref;
    ops->matmul[YK_TYPE_Q2_K] = matmul_q2_k_q8_ref;
    ops->matmul[YK_TYPE_Q3_K] = matmul_q3_k_q8_ref;
    ops->matmul[YK_TYPE_Q4_K] = matmul_q4_k_q8_ref;
    ops->matmul[YK_TYPE_Q5_K] = matmul_q5_k_q8_ref;
    ops->matmul[YK_TYPE_Q6_K] = matmul_q6_k_q8_ref;
    ops->matmul[YK_TYPE_IQ4_NL] = matmul_iq4_nl_q8_ref;
    ops->matmul[YK_TYPE_IQ4_XS] = matmul_iq4_xs_q8_ref;
    ops->matmul[YK_TYPE_MXFP4] = matmul_mxfp4_q8_ref;
}
