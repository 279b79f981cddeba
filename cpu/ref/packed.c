/* packed.c - packed weights (docs/kernels/layout.md) times activations. Contract and order of sums: docs/kernels/packed.md.
 *
 * A tile is expanded once to bytes and f32 scales and meets all tokens of a pass. Products of bytes are made in 16-bit lanes: a word of four
 * codes of one row gives its even and its odd bytes, each pair meets a broadcast pair of activations, and the sums of all 16 rows grow side
 * by side. They are widened before they could overflow. Nothing depends on the number of tokens or rows of a call. */
#include "cpu/ref/unpack.h"
#include "cpu/tile.h"

enum { PASS = 32 }; /* tokens */

/* One tile, ready for products: value = (code + offset) * scale - min, codes signed. */
typedef struct expanded {
    _Alignas(64) int8_t q[64 * 64]; /* [group of 4 columns][16 rows][4] */
    float scale[8][YK_TILE_ROWS];   /* [block][row]; types with d of a tile: the 8-bit scale alone */
    float min[8][YK_TILE_ROWS];     /* Q4_1, Q5_1: what is added; Q4_K, Q5_K: the 8-bit minimum alone */
    int32_t part[16][YK_TILE_ROWS]; /* scales of half blocks */
    int32_t part_min[16][YK_TILE_ROWS];
    float d[YK_TILE_ROWS], dmin[YK_TILE_ROWS];
} expanded;

/* The tokens of a pass. */
typedef struct pass {
    uint32_t n;
    const int8_t *q[PASS];
    const float *scale[PASS], *x[PASS];
    const int16_t *sum[PASS];
    float y[PASS][YK_TILE_ROWS]; /* sums of one panel */
} pass;

/* Types differ in these; constants at each call. */
typedef struct kind {
    yk_type type;
    int offset;               /* what a code is too large by */
    uint32_t flush;           /* groups whose 16-bit sums cannot overflow: 2 * |code| * 127 * flush < 2^15 */
    bool halves, mins, super; /* scales of half blocks; minima; d (and dmin) of a tile */
    bool whole;               /* halves meet as integers */
} kind;

/* ---- expanding ---- */

YK_INLINE void halves_to_f32(const uint8_t *p, float *y)
{
    YK_KEEP_LOOP
    for (int i = 0; i < YK_TILE_ROWS; i++)
        y[i] = yk_ref_half(p + 2 * i);
}

/* Two-bit fields of groups of 16 columns. */
YK_INLINE void expand_pairs(const uint8_t *w, uint32_t blocks, int shift, int8_t *q)
{
    for (uint32_t i = 0; i < 8 * blocks; i++) {
        const uint8_t *h = w + 64 * (i / 4);
        for (int j = 0; j < 64; j++)
            q[64 * i + j] = (int8_t)(q[64 * i + j] | (h[j] >> 2 * (i % 4) & 3) << shift);
    }
}

/* One bit of each group of a block. */
YK_INLINE void expand_bits(const uint8_t *w, uint32_t blocks, int shift, int8_t *q)
{
    for (uint32_t i = 0; i < 8 * blocks; i++) {
        const uint8_t *h = w + 64 * (i / 8);
        for (int j = 0; j < 64; j++)
            q[64 * i + j] = (int8_t)(q[64 * i + j] | (h[j] >> (i % 8) & 1) << shift);
    }
}

YK_INLINE void expand_codes(yk_type type, const uint8_t *w, const yk_tile *g, uint32_t blocks, int8_t *q)
{
    const size_t n = (size_t)512 * blocks;
    if (type == YK_TYPE_Q8_0) {
        memcpy(q, w, n);
        return;
    }
    if (type == YK_TYPE_Q2_K || type == YK_TYPE_Q3_K) {
        memset(q, 0, n);
        expand_pairs(w, blocks, 0, q);
        if (type == YK_TYPE_Q3_K)
            expand_bits(w + g->high, blocks, 2, q);
        return;
    }
    for (size_t b = 0; b < blocks; b++) {
        for (int i = 0; i < 256; i++) {
            q[512 * b + i] = (int8_t)(w[256 * b + i] & 15);
            q[512 * b + i + 256] = (int8_t)(w[256 * b + i] >> 4);
        }
    }
    if (type == YK_TYPE_Q5_0 || type == YK_TYPE_Q5_1 || type == YK_TYPE_Q5_K)
        expand_bits(w + g->high, blocks, 4, q);
    if (type == YK_TYPE_Q6_K)
        expand_pairs(w + g->high, blocks, 4, q);
    if (type == YK_TYPE_IQ4_NL || type == YK_TYPE_IQ4_XS)
        for (size_t i = 0; i < n; i++)
            q[i] = yk_ref_iq4((uint8_t)q[i]);
    if (type == YK_TYPE_MXFP4)
        for (size_t i = 0; i < n; i++)
            q[i] = yk_ref_fp4x2((uint8_t)q[i]);
}

/* Scales and minima of half blocks, as integers. */
YK_INLINE void expand_halves(const kind *k, const uint8_t *sub, expanded *e)
{
    for (uint32_t i = 0; i < 16; i++)
        for (uint32_t r = 0; r < YK_TILE_ROWS; r++) {
            const uint8_t s = sub[YK_TILE_ROWS * i + r];
            e->part[i][r] = k->mins ? s & 15 : (int8_t)s;
            e->part_min[i][r] = s >> 4;
        }
}

YK_INLINE void expand(const kind *k, const uint8_t *w, uint32_t blocks, expanded *e)
{
    const yk_tile g = yk_tile_of(k->type, 32 * blocks);
    expand_codes(k->type, w, &g, blocks, e->q);
    if (!k->super) {
        for (uint32_t b = 0; b < blocks; b++) {
            if (g.scale)
                halves_to_f32(w + g.scale + 32 * b, e->scale[b]);
            else
                for (uint32_t r = 0; r < YK_TILE_ROWS; r++)
                    e->scale[b][r] = yk_ref_e8m0_half(w[g.sub + YK_TILE_ROWS * b + r]);
            if (k->mins)
                halves_to_f32(w + g.min + 32 * b, e->min[b]);
        }
        return;
    }
    halves_to_f32(w + g.scale, e->d);
    if (k->mins)
        halves_to_f32(w + g.scale + 32, e->dmin);
    if (k->halves) {
        expand_halves(k, w + g.sub, e);
        return;
    }
    for (uint32_t i = 0; i < 8; i++)
        for (uint32_t r = 0; r < YK_TILE_ROWS; r++) {
            const uint8_t s = w[g.sub + YK_TILE_ROWS * i + r];
            e->scale[i][r] = k->mins ? (float)s : (float)(int8_t)s;
            if (k->mins)
                e->min[i][r] = (float)w[g.sub_min + YK_TILE_ROWS * i + r];
        }
}

/* ---- products ---- */

typedef int16_t v16 __attribute__((vector_size(32), may_alias));
typedef uint16_t u16 __attribute__((vector_size(32), may_alias));
typedef int32_t v8 __attribute__((vector_size(32), may_alias));
typedef uint32_t u8 __attribute__((vector_size(32), may_alias));

/* sum[r] += codes of n groups x activations, 16 rows; at most `flush` groups between two widenings. */
YK_INLINE void dot_groups(const int8_t *w, const int8_t *q, uint32_t n, uint32_t flush, int32_t *sum)
{
    for (int half = 0; half < 2; half++) {
        v8 wide = {0};
        for (uint32_t g0 = 0; g0 < n; g0 += flush) {
            v16 acc = {0};
            for (uint32_t g = g0; g < g0 + flush; g++) {
                const int8_t *a = q + 4 * g;
                const int16_t a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3];
                const v16 even = {a0, a2, a0, a2, a0, a2, a0, a2, a0, a2, a0, a2, a0, a2, a0, a2};
                const v16 odd = {a1, a3, a1, a3, a1, a3, a1, a3, a1, a3, a1, a3, a1, a3, a1, a3};
                v16 v;
                memcpy(&v, w + 64 * g + 32 * half, sizeof v);
                acc += ((v16)((u16)v << 8) >> 8) * even + (v >> 8) * odd;
            }
            const v8 pairs = (v8)acc;
            wide += (pairs >> 16) + ((v8)((u8)pairs << 16) >> 16);
        }
        memcpy(sum + 8 * half, &wide, sizeof wide);
    }
}

/* A block of half blocks. `whole`: the scaled halves meet as integers, which is exact, and a block is one term; else each is a term. */
YK_INLINE void halves_terms(const kind *k, const expanded *e, uint32_t b, const int8_t *q, float scale, const int16_t *sum,
                            float *s, float *m)
{
    int32_t dot[2][YK_TILE_ROWS];
    for (int h = 0; h < 2; h++) {
        dot_groups(e->q + 512 * b + 256 * h, q + 16 * h, 4, k->flush, dot[h]);
        for (int r = 0; r < YK_TILE_ROWS; r++)
            dot[h][r] -= k->offset * sum[h];
        for (int r = 0; !k->whole && r < YK_TILE_ROWS; r++)
            s[r] += (float)dot[h][r] * scale * (float)e->part[2 * b + h][r];
    }
    for (int r = 0; k->whole && r < YK_TILE_ROWS; r++)
        s[r] += (float)(dot[0][r] * e->part[2 * b][r] + dot[1][r] * e->part[2 * b + 1][r]) * scale;
    for (int r = 0; k->mins && r < YK_TILE_ROWS; r++)
        m[r] += (float)(sum[0] * e->part_min[2 * b][r] + sum[1] * e->part_min[2 * b + 1][r]) * scale;
}

/* Block b of a tile for one token: the terms go to s, which is y for types without d of a tile, and to m. */
YK_INLINE void block_terms(const kind *k, const expanded *e, uint32_t b, const int8_t *q, float scale, const int16_t *sum,
                           float *s, float *m)
{
    int32_t dot[YK_TILE_ROWS];
    if (k->halves) {
        halves_terms(k, e, b, q, scale, sum, s, m);
        return;
    }
    const int32_t both = sum[0] + sum[1];
    dot_groups(e->q + 512 * b, q, 8, k->flush, dot);
    for (int r = 0; r < YK_TILE_ROWS; r++)
        s[r] += (float)(dot[r] - k->offset * both) * scale * e->scale[b][r];
    if (k->mins) {
        const float fsum = scale * (float)both;
        for (int r = 0; r < YK_TILE_ROWS; r++)
            m[r] += e->min[b][r] * fsum;
    }
}

YK_INLINE void tile_tokens(const kind *k, const expanded *e, uint32_t blocks, uint32_t b0, pass *p)
{
    for (uint32_t t = 0; t < p->n; t++) {
        float s[YK_TILE_ROWS] = {0}, m[YK_TILE_ROWS] = {0}, *y = p->y[t];
        for (uint32_t b = 0; b < blocks; b++) {
            const size_t i = b0 + b;
            block_terms(k, e, b, p->q[t] + 32 * i, p->scale[t][i], p->sum[t] + 2 * i, k->super ? s : y, k->super ? m : y);
        }
        if (k->super)
            for (int r = 0; r < YK_TILE_ROWS; r++)
                y[r] += e->d[r] * s[r];
        if (k->super && k->mins)
            for (int r = 0; r < YK_TILE_ROWS; r++)
                y[r] -= e->dmin[r] * m[r];
    }
}

/* F32 and F16, [k][16 rows], BF16, [k/2][16 rows][2]: even and odd columns of a tile are summed apart. */
YK_INLINE void tile_floats(yk_type type, const uint8_t *w, uint32_t n_cols, uint32_t k0, pass *p)
{
    float f[YK_TILE_COLS * YK_TILE_ROWS];
    if (type == YK_TYPE_F32)
        memcpy(f, w, (size_t)64 * n_cols);
    else if (type == YK_TYPE_BF16)
        for (uint32_t k = 0; k < n_cols; k++)
            for (uint32_t r = 0; r < YK_TILE_ROWS; r++)
                f[YK_TILE_ROWS * k + r] = yk_bf16_to_f32((uint16_t)yk_ref_u16(w + 64 * (k / 2) + 4 * r + 2 * (k % 2)));
    else
        for (uint32_t k = 0; k < n_cols; k++)
            halves_to_f32(w + 32 * k, f + YK_TILE_ROWS * k);
    for (uint32_t t = 0; t < p->n; t++) {
        yk_v8 s[2][2] = {{{0}}};
        const float *x = p->x[t] + k0;
        for (uint32_t k = 0; k < n_cols; k++)
            yk_ref_scale_add16(x[k], f + YK_TILE_ROWS * k, s[k % 2]);
        yk_v8 y[2];
        memcpy(y, p->y[t], sizeof y);
        y[0] += s[0][0] + s[1][0];
        y[1] += s[0][1] + s[1][1];
        memcpy(p->y[t], y, sizeof y);
    }
}

/* ---- the walk over tokens, panels and tiles ---- */

YK_INLINE void matmul_packed(const yk_matmul_packed *m, const kind *k)
{
    const bool quantised = k->flush != 0;
    pass p;
    expanded e;
    for (uint32_t t0 = 0; t0 < m->n_tokens; t0 += PASS) {
        p.n = m->n_tokens - t0 < PASS ? m->n_tokens - t0 : PASS;
        for (uint32_t t = 0; t < p.n; t++) {
            const size_t row = m->rows ? m->rows[t0 + t] : t0 + t;
            if (quantised) {
                const size_t at = row * m->xq->n_blocks;
                p.q[t] = m->xq->q + 32 * at, p.scale[t] = m->xq->scale + at, p.sum[t] = m->xq->sum + 2 * at;
            } else {
                p.x[t] = m->x + row * m->x_stride;
            }
        }
        for (uint32_t r = 0; r < m->n_rows; r += YK_TILE_ROWS) {
            const uint8_t *w = m->w + r / YK_TILE_ROWS * m->panel_bytes;
            const uint32_t n = m->n_rows - r < YK_TILE_ROWS ? m->n_rows - r : YK_TILE_ROWS;
            memset(p.y, 0, p.n * sizeof p.y[0]);
            for (uint32_t c = 0; c < m->n_cols; c += YK_TILE_COLS) {
                const uint32_t cols = m->n_cols - c < YK_TILE_COLS ? m->n_cols - c : YK_TILE_COLS;
                if (quantised) {
                    expand(k, w, cols / 32, &e);
                    tile_tokens(k, &e, cols / 32, c / 32, &p);
                } else {
                    tile_floats(k->type, w, cols, c, &p);
                }
                w += m->tile_stride ? m->tile_stride : yk_tile_of(k->type, cols).bytes;
            }
            for (uint32_t t = 0; t < p.n; t++)
                memcpy(m->y + (t0 + t) * m->y_stride + r, p.y[t], n * sizeof(float));
        }
    }
}

YK_CLONES static void matmul_packed_f32_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_F32});
}

YK_CLONES static void matmul_packed_f16_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_F16});
}

YK_CLONES static void matmul_packed_bf16_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_BF16});
}

YK_CLONES static void matmul_packed_q4_0_q8_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_Q4_0, .offset = 8, .flush = 8});
}

YK_CLONES static void matmul_packed_q4_1_q8_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_Q4_1, .flush = 8, .mins = true});
}

YK_CLONES static void matmul_packed_q5_0_q8_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_Q5_0, .offset = 16, .flush = 4});
}

YK_CLONES static void matmul_packed_q5_1_q8_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_Q5_1, .flush = 4, .mins = true});
}

YK_CLONES static void matmul_packed_q8_0_q8_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_Q8_0, .flush = 1});
}

YK_CLONES static void matmul_packed_q2_k_q8_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_Q2_K, .flush = 4, .halves = true, .mins = true, .super = true, .whole = true});
}

YK_CLONES static void matmul_packed_q3_k_q8_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_Q3_K, .offset = 4, .flush = 4, .halves = true, .super = true, .whole = true});
}

YK_CLONES static void matmul_packed_q4_k_q8_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_Q4_K, .flush = 8, .mins = true, .super = true});
}

YK_CLONES static void matmul_packed_q5_k_q8_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_Q5_K, .flush = 4, .mins = true, .super = true});
}

YK_CLONES static void matmul_packed_q6_k_q8_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_Q6_K, .offset = 32, .flush = 2, .halves = true, .super = true});
}

YK_CLONES static void matmul_packed_iq4_nl_q8_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_IQ4_NL, .flush = 1});
}

YK_CLONES static void matmul_packed_iq4_xs_q8_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_IQ4_XS, .flush = 1, .super = true});
}

YK_CLONES static void matmul_packed_mxfp4_q8_ref(const yk_matmul_packed *m)
{
    matmul_packed(m, &(kind){.type = YK_TYPE_MXFP4, .flush = 8});
}

void yk_ref_fill_packed(yk_ops *ops)
{
    ops->matmul_packed[YK_TYPE_F32] = matmul_packed_f32_ref;
    ops->matmul_packed[YK_TYPE_F16] = matmul_packed_f16_ref;
    ops->matmul_packed[YK_TYPE_BF16] = matmul_packed_bf16_ref;
    ops->matmul_packed[YK_TYPE_Q4_0] = matmul_packed_q4_0_q8_ref;
    ops->matmul_packed[YK_TYPE_Q4_1] = matmul_packed_q4_1_q8_ref;
    ops->matmul_packed[YK_TYPE_Q5_0] = matmul_packed_q5_0_q8_ref;
    ops->matmul_packed[YK_TYPE_Q5_1] = matmul_packed_q5_1_q8_ref;
    ops->matmul_packed[YK_TYPE_Q8_0] = matmul_packed_q8_0_q8_ref;
    ops->matmul_packed[YK_TYPE_Q2_K] = matmul_packed_q2_k_q8_ref;
    ops->matmul_packed[YK_TYPE_Q3_K] = matmul_packed_q3_k_q8_ref;
    ops->matmul_packed[YK_TYPE_Q4_K] = matmul_packed_q4_k_q8_ref;
    ops->matmul_packed[YK_TYPE_Q5_K] = matmul_packed_q5_k_q8_ref;
    ops->matmul_packed[YK_TYPE_Q6_K] = matmul_packed_q6_k_q8_ref;
    ops->matmul_packed[YK_TYPE_IQ4_NL] = matmul_packed_iq4_nl_q8_ref;
    ops->matmul_packed[YK_TYPE_IQ4_XS] = matmul_packed_iq4_xs_q8_ref;
    ops->matmul_packed[YK_TYPE_MXFP4] = matmul_packed_mxfp4_q8_ref;
}
