/* packed.c - packed weights times activations by AVX-512 VNNI. Layout: docs/kernels/layout.md; contract and order of sums: docs/kernels/packed.md.
 *
 * One lane of a 512-bit register is one row, so a broadcast of four activations meets 16 rows and nothing is added across lanes. Codes are
 * used unsigned; what that adds is a multiple of the block's activation sum and is where the accumulator starts. A step is one tile (or the
 * tiles of two panels, which then share each broadcast) and up to six tokens; all groups of tokens meet a tile while it lies in L1. Every step
 * does the same operations in the same order for a (row, token), whatever else it computes. */
#include <immintrin.h>
#include <string.h>

#include "cpu/ops.h"
#include "cpu/tile.h"

/* The rest of this file, and nothing else, is compiled for this level; ops.c asks the CPU before it uses it. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni")
#endif

#define INLINE static inline __attribute__((always_inline))

enum {
    GROUP = 6, /* tokens of a step: with two panels 12 integer and 12 f32 sums, and 4 registers of codes */
    PASS = 60, /* tokens that meet a tile before the next one comes */
    PAIR = 4,  /* from this many tokens on, two panels a step */
    NEAR = 2048,
    FAR = 16384 /* prefetch distances into L1 and L2, measured: docs/SPEED.md */
};

typedef struct group {
    uint32_t at, n; /* tokens at .. at + n - 1 of the pass; a step of more tokens repeats the last */
    const int8_t *q[GROUP];
    const float *scale[GROUP], *x[GROUP];
    const int16_t *sum[GROUP];
} group;

/* One step: y[p][16 t + row] += tile w[p] of n_cols columns x activations from column col on, tokens t of the group, panels p. */
typedef struct step {
    const uint8_t *const *w;
    uint32_t n_cols, col;
    const group *a;
    float *const *y;
    bool fetch;
} step;
typedef void (*step_fn)(const step *s);

/* What a step is compiled for; constants at each call. */
typedef struct form {
    yk_type type;
    int n, panels;
} form;

INLINE __m512i four(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}

INLINE __m512 halves(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)p));
}

INLINE __m512 bytes_u(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(const void *)p)));
}

INLINE __m512 bytes_s(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)(const void *)p)));
}

/* Lines [at, end) of what comes NEAR and FAR behind p. Addresses past the weights are harmless. */
INLINE void prefetch(const uint8_t *p, uint32_t at, uint32_t end, bool far)
{
    for (uint32_t l = at & ~63u; l < (end & ~63u); l += 64) {
        _mm_prefetch((const char *)p + NEAR + l, _MM_HINT_T0);
        if (far)
            _mm_prefetch((const char *)p + FAR + l, _MM_HINT_T1);
    }
}

/* (h shifted so that bit or bits `from` come to 4) & mask | low */
INLINE __m512i put_high(__m512i low, __m512i h, int from, __m512i mask)
{
    const __m512i s = from < 4   ? _mm512_slli_epi16(h, 4 - (unsigned)from)
                      : from > 4 ? _mm512_srli_epi16(h, (unsigned)from - 4)
                                 : h;
    return _mm512_ternarylogic_epi32(s, mask, low, 0xea);
}

/* Unsigned codes of groups j (u) and j + 4 (v) of block b. */
INLINE void codes(yk_type type, const uint8_t *w, const yk_tile *g, uint32_t b, int j, __m512i *u, __m512i *v)
{
    const __m512i low = _mm512_set1_epi8(15);
    if (type == YK_TYPE_Q8_0) {
        const __m512i flip = _mm512_set1_epi8((char)0x80);
        *u = _mm512_xor_si512(_mm512_load_si512(w + 512 * b + 64 * j), flip);
        *v = _mm512_xor_si512(_mm512_load_si512(w + 512 * b + 64 * j + 256), flip);
        return;
    }
    const __m512i c = _mm512_load_si512(w + 256 * b + 64 * j);
    *u = _mm512_and_si512(c, low);
    *v = _mm512_and_si512(_mm512_srli_epi16(c, 4), low);
    if (type == YK_TYPE_Q5_K) {
        const __m512i h = _mm512_load_si512(w + g->high + 64 * b), bit = _mm512_set1_epi8(0x10);
        *u = put_high(*u, h, j, bit);
        *v = put_high(*v, h, j + 4, bit);
    }
    if (type == YK_TYPE_Q6_K) {
        const uint8_t *h = w + g->high + 128 * b;
        const __m512i two = _mm512_set1_epi8(0x30);
        *u = put_high(*u, _mm512_load_si512(h), 2 * j, two);
        *v = put_high(*v, _mm512_load_si512(h + 64), 2 * j, two);
    }
}

/* What a token brings to a tile besides its codes. */
typedef struct start {
    _Alignas(64) int32_t off[GROUP][16]; /* - offset of codes x sum of activations, of each block (or half block) */
    float fsum[GROUP][16];               /* types with minima: scale x sum of each block */
} start;

INLINE void start_from(yk_type type, int n, const group *a, uint32_t b0, uint32_t blocks, start *st)
{
    const __mmask16 m = (__mmask16)((1u << 2 * blocks) - 1);
    for (int t = 0; t < n; t++) {
        const __m256i v = _mm256_maskz_loadu_epi16(m, a->sum[t] + 2 * (size_t)b0);
        if (type == YK_TYPE_Q6_K) {
            const __m512i s = _mm512_slli_epi32(_mm512_cvtepi16_epi32(v), 5);
            _mm512_store_si512(st->off[t], _mm512_sub_epi32(_mm512_setzero_si512(), s));
            continue;
        }
        if (type == YK_TYPE_Q4_0 || type == YK_TYPE_Q8_0) {
            const __m256i by = _mm256_set1_epi16(type == YK_TYPE_Q4_0 ? -8 : -128);
            _mm256_store_si256((__m256i *)(void *)st->off[t], _mm256_madd_epi16(v, by));
            continue;
        }
        const __m256 s = _mm256_cvtepi32_ps(_mm256_madd_epi16(v, _mm256_set1_epi16(1)));
        _mm256_store_ps(st->fsum[t], _mm256_mul_ps(s, _mm256_loadu_ps(a->scale[t] + b0)));
    }
}

/* Integer sums of block b, or of its part 0 or 1 where half blocks have scales, for all panels. */
INLINE void dot_block(const form *f, const uint8_t *const *w, const yk_tile *g, uint32_t b, int part, const int8_t *const *q,
                      __m512i sum[2][GROUP])
{
    const int n = f->n, panels = f->panels, parts = f->type == YK_TYPE_Q6_K ? 2 : 1;
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i u[2], v[2];
#pragma GCC unroll 2
        for (int p = 0; p < panels; p++)
            codes(f->type, w[p], g, b, j, &u[p], &v[p]);
#pragma GCC unroll 6
        for (int t = 0; t < n; t++) {
            if (part == 0)
#pragma GCC unroll 2
                for (int p = 0; p < panels; p++)
                    sum[p][t] = _mm512_dpbusd_epi32(sum[p][t], u[p], four(q[t] + 32 * b + 4 * j));
            if (part == 1 || parts == 1)
#pragma GCC unroll 2
                for (int p = 0; p < panels; p++)
                    sum[p][t] = _mm512_dpbusd_epi32(sum[p][t], v[p], four(q[t] + 32 * b + 4 * j + 16));
        }
    }
}

/* The same for one or two tokens and codes of four bits: high nibbles stay where they are and the sum is shifted instead, exact because
 * every term is a multiple of 16. */
INLINE void dot_nibbles(int n, const uint8_t *w, uint32_t b, const int8_t *const *q, __m512i *sum)
{
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8((char)0xf0);
    __m512i hi[2];
#pragma GCC unroll 6
    for (int t = 0; t < n; t++)
        hi[t] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512i c = _mm512_load_si512(w + 256 * b + 64 * j);
#pragma GCC unroll 6
        for (int t = 0; t < n; t++) {
            sum[t] = _mm512_dpbusd_epi32(sum[t], _mm512_and_si512(c, low), four(q[t] + 32 * b + 4 * j));
            hi[t] = _mm512_dpbusd_epi32(hi[t], _mm512_and_si512(c, high), four(q[t] + 32 * b + 4 * j + 16));
        }
    }
#pragma GCC unroll 6
    for (int t = 0; t < n; t++)
        sum[t] = _mm512_add_epi32(sum[t], _mm512_srai_epi32(hi[t], 4));
}

/* Low-bit types. */
INLINE void step_low(const form *f, const step *s)
{
    const yk_type type = f->type;
    const int n = f->n, panels = f->panels;
    const uint8_t *const *w = s->w;
    const group *a = s->a;
    const bool super = type == YK_TYPE_Q4_K || type == YK_TYPE_Q5_K || type == YK_TYPE_Q6_K,
               mins = super && type != YK_TYPE_Q6_K;
    const int parts = type == YK_TYPE_Q6_K ? 2 : 1;
    const uint32_t blocks = super ? 8 : s->n_cols / 32, b0 = s->col / 32;
    const yk_tile g = yk_tile_of(type, 32 * blocks);
    const int8_t *q[GROUP];
    start st;
    __m512 acc[2][GROUP];
    start_from(type, n, a, b0, blocks, &st);
#pragma GCC unroll 6
    for (int t = 0; t < n; t++)
        q[t] = a->q[t] + s->col;
#pragma GCC unroll 2
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 6
        for (int t = 0; t < n; t++)
            acc[p][t] = super ? _mm512_setzero_ps() : _mm512_load_ps(s->y[p] + YK_TILE_ROWS * (a->at + (uint32_t)t));
    for (uint32_t b = 0; b < blocks; b++) {
        if (s->fetch)
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++)
                prefetch(w[p], b * (g.bytes / blocks), (b + 1) * (g.bytes / blocks), true);
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++) {
            __m512i sum[2][GROUP];
#pragma GCC unroll 6
            for (int t = 0; t < n; t++)
#pragma GCC unroll 2
                for (int p = 0; p < panels; p++)
                    sum[p][t] = mins ? _mm512_setzero_si512() : _mm512_set1_epi32(st.off[t][parts * b + (uint32_t)part]);
            if (n <= 2 && panels == 1 && (type == YK_TYPE_Q4_0 || type == YK_TYPE_Q4_K))
                dot_nibbles(n, w[0], b, q, sum[0]);
            else
                dot_block(f, w, &g, b, part, q, sum);
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++) {
                const __m512 d = !super       ? halves(w[p] + g.scale + 32 * b)
                                 : parts == 1 ? bytes_u(w[p] + g.sub + 16 * b)
                                              : bytes_s(w[p] + g.sub + 32 * b + 16 * part);
#pragma GCC unroll 6
                for (int t = 0; t < n; t++)
                    acc[p][t] = _mm512_fmadd_ps(
                        _mm512_mul_ps(_mm512_cvtepi32_ps(sum[p][t]), _mm512_set1_ps(a->scale[t][b0 + b])), d, acc[p][t]);
            }
        }
    }
#pragma GCC unroll 2
    for (int p = 0; p < panels; p++) {
        if (super) {
            const __m512 d = halves(w[p] + g.scale);
#pragma GCC unroll 6
            for (int t = 0; t < n; t++)
                acc[p][t] = _mm512_fmadd_ps(d, acc[p][t], _mm512_load_ps(s->y[p] + YK_TILE_ROWS * (a->at + (uint32_t)t)));
        }
        if (mins) {
            const __m512 dmin = halves(w[p] + g.scale + 32);
            __m512 m[GROUP];
#pragma GCC unroll 6
            for (int t = 0; t < n; t++)
                m[t] = _mm512_setzero_ps();
#pragma GCC unroll 1
            for (uint32_t b = 0; b < 8; b++) { /* unrolled, all its broadcasts would wait in registers for the second panel */
                const __m512 mn = bytes_u(w[p] + g.sub_min + 16 * b);
#pragma GCC unroll 6
                for (int t = 0; t < n; t++)
                    m[t] = _mm512_fmadd_ps(mn, _mm512_set1_ps(st.fsum[t][b]), m[t]);
            }
#pragma GCC unroll 6
            for (int t = 0; t < n; t++)
                acc[p][t] = _mm512_fnmadd_ps(dmin, m[t], acc[p][t]);
        }
#pragma GCC unroll 6
        for (int t = 0; t < n; t++)
            _mm512_store_ps(s->y[p] + YK_TILE_ROWS * (a->at + (uint32_t)t), acc[p][t]);
    }
}

/* F32 and F16: one column of 16 rows meets one broadcast activation; even and odd columns are summed apart. */
INLINE void step_float(const form *f, const step *s)
{
    const yk_type type = f->type;
    const int n = f->n, panels = f->panels;
    const uint8_t *const *w = s->w;
    const group *a = s->a;
    const uint32_t bytes = type == YK_TYPE_F32 ? 64 : 32; /* bytes of a column */
    const float *x[GROUP];
    __m512 acc[2][2][GROUP];
#pragma GCC unroll 6
    for (int t = 0; t < n; t++)
        x[t] = a->x[t] + s->col;
#pragma GCC unroll 2
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 6
        for (int t = 0; t < n; t++)
            acc[0][p][t] = acc[1][p][t] = _mm512_setzero_ps();
    for (uint32_t k = 0; k < s->n_cols; k += 2) {
        if (s->fetch)
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++)
                prefetch(w[p], k * bytes, (k + 2) * bytes, false);
#pragma GCC unroll 2
        for (uint32_t j = 0; j < 2; j++) {
            if (k + j == s->n_cols)
                break;
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++) {
                const uint8_t *c = w[p] + (size_t)bytes * (k + j);
                const __m512 v = type == YK_TYPE_F32 ? _mm512_load_ps(c) : halves(c);
#pragma GCC unroll 6
                for (int t = 0; t < n; t++)
                    acc[j][p][t] = _mm512_fmadd_ps(v, _mm512_set1_ps(x[t][k + j]), acc[j][p][t]);
            }
        }
    }
#pragma GCC unroll 2
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 6
        for (int t = 0; t < n; t++) {
            float *at = s->y[p] + YK_TILE_ROWS * (a->at + (uint32_t)t);
            _mm512_store_ps(at, _mm512_add_ps(_mm512_load_ps(at), _mm512_add_ps(acc[0][p][t], acc[1][p][t])));
        }
}

#define STEP(name, form_fn, type, n, panels)                                                                                   \
    static void name(const step *s)                                                                                            \
    {                                                                                                                          \
        form_fn(&(form){type, n, panels}, s);                                                                                  \
    }

/* The steps of a type: single[n] for n tokens and one panel, pair[n] for two panels; a size that is missing takes the next larger one. */
typedef struct steps {
    step_fn single[GROUP + 1], pair[GROUP + 1];
} steps;

#define STEPS(name, form_fn, type)                                                                                             \
    STEP(name##_1, form_fn, type, 1, 1)                                                                                        \
    STEP(name##_2, form_fn, type, 2, 1)                                                                                        \
    STEP(name##_3, form_fn, type, 3, 1)                                                                                        \
    STEP(name##_4, form_fn, type, 4, 1)                                                                                        \
    STEP(name##_6, form_fn, type, 6, 1)                                                                                        \
    STEP(name##_4x2, form_fn, type, 4, 2)                                                                                      \
    STEP(name##_6x2, form_fn, type, 6, 2)                                                                                      \
    static const steps name = {{NULL, name##_1, name##_2, name##_3, name##_4, name##_6, name##_6},                             \
                               {NULL, NULL, NULL, NULL, name##_4x2, name##_6x2, name##_6x2}};

STEPS(f32, step_float, YK_TYPE_F32)
STEPS(f16, step_float, YK_TYPE_F16)
STEPS(q4_0, step_low, YK_TYPE_Q4_0)
STEPS(q8_0, step_low, YK_TYPE_Q8_0)
STEPS(q4_k, step_low, YK_TYPE_Q4_K)
STEPS(q5_k, step_low, YK_TYPE_Q5_K)
STEPS(q6_k, step_low, YK_TYPE_Q6_K)

/* ---- the walk over tokens, panels and tiles ---- */

/* Tokens of the next group when `left` are left: sixes, and at the end what wastes least. */
static uint32_t group_size(uint32_t left)
{
    return left >= 9 ? GROUP : left == 7 || left == 8 ? 4 : left;
}

static uint32_t make_groups(const yk_matmul_packed *m, bool quantised, uint32_t t0, uint32_t n, group *groups)
{
    uint32_t n_groups = 0;
    for (uint32_t at = 0; at < n; at += groups[n_groups++].n) {
        group *g = groups + n_groups;
        *g = (group){.at = at, .n = group_size(n - at)};
        for (uint32_t i = 0; i < GROUP; i++) {
            const uint32_t t = t0 + at + (i < g->n ? i : g->n - 1);
            const size_t row = m->rows ? m->rows[t] : t;
            if (quantised) {
                const size_t b = row * m->xq->n_blocks;
                g->q[i] = m->xq->q + 32 * b, g->scale[i] = m->xq->scale + b, g->sum[i] = m->xq->sum + 2 * b;
            } else {
                g->x[i] = m->x + row * m->x_stride;
            }
        }
    }
    return n_groups;
}

/* All groups times one panel or two, added to y. */
static void panel_groups(const yk_matmul_packed *m, yk_type type, const steps *st, const uint8_t *first, uint32_t panels,
                         const group *groups, uint32_t n_groups, float *const *y)
{
    const uint8_t *w[2] = {first, first + (panels - 1) * m->panel_bytes};
    for (uint32_t c = 0; c < m->n_cols; c += YK_TILE_COLS) {
        const uint32_t cols = m->n_cols - c < YK_TILE_COLS ? m->n_cols - c : YK_TILE_COLS;
        for (uint32_t i = 0; i < n_groups; i++) {
            const group *g = groups + i;
            if (panels == 2 && st->pair[g->n])
                st->pair[g->n](&(step){w, cols, c, g, y, i == 0});
            else
                for (uint32_t p = 0; p < panels; p++)
                    st->single[g->n](&(step){w + p, cols, c, g, y + p, i == 0});
        }
        const uint64_t bytes = m->tile_stride ? m->tile_stride : yk_tile_of(type, cols).bytes;
        w[0] += bytes, w[1] += bytes;
    }
}

static void matmul_packed(const yk_matmul_packed *m, yk_type type, const steps *st)
{
    group groups[PASS / GROUP + 2];
    _Alignas(64) float sums[2][(PASS + GROUP) * YK_TILE_ROWS]; /* a padded step writes up to GROUP tokens from its first on */
    float *const y[2] = {sums[0], sums[1]};
    for (uint32_t t0 = 0; t0 < m->n_tokens; t0 += PASS) {
        const uint32_t n = m->n_tokens - t0 < PASS ? m->n_tokens - t0 : PASS;
        const uint32_t n_groups = make_groups(m, yk_type_get((uint32_t)type)->quantised, t0, n, groups);
        for (uint32_t r = 0; r < m->n_rows;) {
            const uint32_t panels = n >= PAIR && m->n_rows - r > YK_TILE_ROWS ? 2 : 1;
            for (uint32_t p = 0; p < panels; p++)
                memset(y[p], 0, (n + GROUP) * YK_TILE_ROWS * sizeof(float));
            panel_groups(m, type, st, m->w + r / YK_TILE_ROWS * m->panel_bytes, panels, groups, n_groups, y);
            for (uint32_t p = 0; p < panels; p++, r += YK_TILE_ROWS) {
                const uint32_t rows = m->n_rows - r < YK_TILE_ROWS ? m->n_rows - r : YK_TILE_ROWS;
                for (uint32_t t = 0; t < n; t++)
                    _mm512_mask_storeu_ps(m->y + (t0 + t) * m->y_stride + r, (__mmask16)((1u << rows) - 1),
                                          _mm512_load_ps(y[p] + YK_TILE_ROWS * t));
            }
        }
    }
}

static void matmul_packed_f32_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_F32, &f32);
}
static void matmul_packed_f16_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_F16, &f16);
}
static void matmul_packed_q4_0_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_Q4_0, &q4_0);
}
static void matmul_packed_q8_0_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_Q8_0, &q8_0);
}
static void matmul_packed_q4_k_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_Q4_K, &q4_k);
}
static void matmul_packed_q5_k_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_Q5_K, &q5_k);
}
static void matmul_packed_q6_k_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_Q6_K, &q6_k);
}

void yk_ops_fill_avx512(yk_ops *ops)
{
    ops->matmul_packed[YK_TYPE_F32] = matmul_packed_f32_avx512;
    ops->matmul_packed[YK_TYPE_F16] = matmul_packed_f16_avx512;
    ops->matmul_packed[YK_TYPE_Q4_0] = matmul_packed_q4_0_q8_avx512;
    ops->matmul_packed[YK_TYPE_Q8_0] = matmul_packed_q8_0_q8_avx512;
    ops->matmul_packed[YK_TYPE_Q4_K] = matmul_packed_q4_k_q8_avx512;
    ops->matmul_packed[YK_TYPE_Q5_K] = matmul_packed_q5_k_q8_avx512;
    ops->matmul_packed[YK_TYPE_Q6_K] = matmul_packed_q6_k_q8_avx512;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
