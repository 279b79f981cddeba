/* packed.c - packed weights times activations by AVX-512 VNNI. Layout: docs/kernels/layout.md; contract and order of sums: docs/kernels/packed.md.
 *
 * One lane of a 512-bit register is one row, so a broadcast of four activations meets 16 rows and nothing is added across lanes. Codes are
 * used unsigned; what that adds is a multiple of the block's activation sum and is where the accumulator starts. A step is one tile (or the
 * tiles of two panels, which then share each broadcast) and up to eight tokens; all groups of tokens meet a tile while it lies in L1. Every step
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

#include "cpu/avx512/scales.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    GROUP = 8,  /* most tokens of a step; */
    SIX = 6,    /* usual: with two panels 12 integer and 12 f32 sums, and 4 registers of codes */
    CHUNK = 16, /* panels of which sums are kept at a time where tiles lie apart */
    AHEAD = 4,  /* columns of tiles fetched into L2 there */
    PASS = 60,  /* tokens that meet a tile before the next one comes */
    PAIR = 4,   /* from this many tokens on, two panels a step */
    MANY = 12,  /* from this many tokens on, pairs of tiles are expanded to bytes first */
    NEAR = 2048,
    FAR = 16384 /* prefetch distances into L1 and L2, measured: docs/SPEED.md */
};

typedef struct group {
    uint32_t at, n; /* tokens at .. at + n - 1 of the pass; a step of more tokens repeats the last */
    const int8_t *q[GROUP];
    const float *scale[GROUP], *x[GROUP];
    const int16_t *sum[GROUP];
} group;

/* A tile of low-bit codes with everything made that its products with each group of tokens need. */
typedef struct expanded {
    _Alignas(64) uint8_t code[8][512]; /* [block][group of 4 columns][16 rows][4], unsigned */
    float scale[16][YK_TILE_ROWS];     /* [block or half block][row] */
    float min[8][YK_TILE_ROWS], d[YK_TILE_ROWS], dmin[YK_TILE_ROWS];
} expanded;

/* One step: y[p][16 t + row] += tile w[p] of n_cols columns x activations from column col on, tokens t of the group, panels p. */
typedef struct step {
    const uint8_t *const *w;
    uint32_t n_cols, col;
    const group *a;
    float *const *y;
    bool fetch;        /* what comes NEAR and FAR behind each tile is fetched meanwhile */
    int64_t near, far; /* without `fetch`: what comes so far from each tile, into L1 and L2; near 0: nothing is */
    const expanded *e; /* [panels], for steps that take it instead of w */
} step;
typedef void (*step_fn)(const step *s);

/* What a step is compiled for; constants at each call. */
typedef struct form {
    yk_type type;
    int n, panels;
    bool expanded;
} form;

INLINE __m512i four(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}

/* Lines [at, end) of what the step fetches beside tile p. Addresses past the weights are harmless. */
INLINE void prefetch(const step *s, const uint8_t *p, uint32_t at, uint32_t end, bool far)
{
    const char *near_at = (const char *)p + s->near, *far_at = (const char *)p + s->far;
    if (s->fetch) {
        for (uint32_t l = at & ~63u; l < (end & ~63u); l += 64) {
            _mm_prefetch((const char *)p + NEAR + l, _MM_HINT_T0);
            if (far)
                _mm_prefetch((const char *)p + FAR + l, _MM_HINT_T1);
        }
    } else if (s->near) {
        for (uint32_t l = at & ~63u; l < (end & ~63u); l += 64) {
            _mm_prefetch(near_at + l, _MM_HINT_T0);
            _mm_prefetch(far_at + l, _MM_HINT_T1);
        }
    }
}

/* What unsigned codes are too large by; those of signed values are made unsigned by their sign bit. */
INLINE int offset_of(yk_type type)
{
    return type == YK_TYPE_Q8_0 || type == YK_TYPE_IQ4_NL || type == YK_TYPE_IQ4_XS ? 128 : yk_tile_offset(type);
}

/* Codes of four bits to values plus the offset, for types that have a table; others pass. */
INLINE __m512i values(yk_type type, __m512i c)
{
    const __m128i iq4 = _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, (char)129, (char)141, (char)153, (char)166, (char)181,
                                      (char)197, (char)217, (char)241);
    const __m128i fp4 = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0); /* twice the value */
    if (type == YK_TYPE_IQ4_NL || type == YK_TYPE_IQ4_XS)
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(iq4), c);
    return type == YK_TYPE_MXFP4 ? _mm512_shuffle_epi8(_mm512_broadcast_i32x4(fp4), c) : c;
}

/* (h shifted so that bit or bits `from` come to `to`) & mask | low */
INLINE __m512i put_high(__m512i low, __m512i h, int from, int to, __m512i mask)
{
    const __m512i s = from < to   ? _mm512_slli_epi16(h, (unsigned)(to - from))
                      : from > to ? _mm512_srli_epi16(h, (unsigned)(from - to))
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
    *u = values(type, _mm512_and_si512(c, low));
    *v = values(type, _mm512_and_si512(_mm512_srli_epi16(c, 4), low));
    if (yk_tile_has_fifth(type)) {
        const __m512i h = _mm512_load_si512(w + g->high + 64 * b), bit = _mm512_set1_epi8(0x10);
        *u = put_high(*u, h, j, 4, bit);
        *v = put_high(*v, h, j + 4, 4, bit);
    }
    if (type == YK_TYPE_Q6_K) {
        const uint8_t *h = w + g->high + 128 * b;
        const __m512i two = _mm512_set1_epi8(0x30);
        *u = put_high(*u, _mm512_load_si512(h), 2 * j, 4, two);
        *v = put_high(*v, _mm512_load_si512(h + 64), 2 * j, 4, two);
    }
}

INLINE void expand(yk_type type, const uint8_t *w, uint32_t n_cols, expanded *e)
{
    const bool super = yk_tile_has_super(type), mins = yk_tile_has_min(type);
    const uint32_t blocks = super ? 8 : n_cols / 32;
    const int parts = type == YK_TYPE_Q6_K ? 2 : 1;
    const yk_tile g = yk_tile_of(type, 32 * blocks);
    prefetch(&(step){.fetch = true}, w, 0, g.bytes, true);
    for (uint32_t b = 0; b < blocks; b++) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            __m512i u, v;
            codes(type, w, &g, b, j, &u, &v);
            _mm512_store_si512(e->code[b] + 64 * j, u);
            _mm512_store_si512(e->code[b] + 64 * j + 256, v);
        }
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++)
            _mm512_store_ps(e->scale[(uint32_t)parts * b + (uint32_t)part], yk_avx512_block_scale(type, w, &g, b, part));
        if (mins)
            _mm512_store_ps(e->min[b],
                            super ? yk_avx512_bytes_u(w + g.sub_min + 16 * b) : yk_avx512_halves(w + g.min + 32 * b));
    }
    if (super)
        _mm512_store_ps(e->d, yk_avx512_halves(w + g.scale));
    if (super && mins)
        _mm512_store_ps(e->dmin, yk_avx512_halves(w + g.scale + 2 * YK_TILE_ROWS));
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
        if (type == YK_TYPE_Q6_K || type == YK_TYPE_Q3_K) {
            const __m512i s = _mm512_slli_epi32(_mm512_cvtepi16_epi32(v), type == YK_TYPE_Q6_K ? 5 : 2);
            _mm512_store_si512(st->off[t], _mm512_sub_epi32(_mm512_setzero_si512(), s));
        } else if (!yk_tile_has_min(type)) {
            const __m256i by = _mm256_set1_epi16((short)-offset_of(type));
            _mm256_store_si256((__m256i *)(void *)st->off[t], _mm256_madd_epi16(v, by));
        } else if (!yk_tile_is_q2(type)) {
            const __m256 s = _mm256_cvtepi32_ps(_mm256_madd_epi16(v, _mm256_set1_epi16(1)));
            const __mmask8 whole = (__mmask8)((1u << blocks) - 1);
            _mm256_store_ps(st->fsum[t], _mm256_mul_ps(s, _mm256_maskz_loadu_ps(whole, a->scale[t] + b0)));
        }
    }
}

/* Integer sums of block b, or of its part 0 or 1 where half blocks have scales, for all panels. */
INLINE void dot_block(const form *f, const step *s, const yk_tile *g, uint32_t b, int part, const int8_t *const *q,
                      __m512i sum[2][GROUP])
{
    const int n = f->n, panels = f->panels, parts = f->type == YK_TYPE_Q6_K ? 2 : 1;
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i u[2], v[2];
#pragma GCC unroll 2
        for (int p = 0; p < panels; p++)
            if (f->expanded) {
                u[p] = _mm512_load_si512(s->e[p].code[b] + 64 * j);
                v[p] = _mm512_load_si512(s->e[p].code[b] + 64 * j + 256);
            } else {
                codes(f->type, s->w[p], g, b, j, &u[p], &v[p]);
            }
#pragma GCC unroll 8
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
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        hi[t] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512i c = _mm512_load_si512(w + 256 * b + 64 * j);
#pragma GCC unroll 8
        for (int t = 0; t < n; t++) {
            sum[t] = _mm512_dpbusd_epi32(sum[t], _mm512_and_si512(c, low), four(q[t] + 32 * b + 4 * j));
            hi[t] = _mm512_dpbusd_epi32(hi[t], _mm512_and_si512(c, high), four(q[t] + 32 * b + 4 * j + 16));
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        sum[t] = _mm512_add_epi32(sum[t], _mm512_srai_epi32(hi[t], 4));
}

/* After the last block of a tile: y += d * acc, then y -= dmin * m. */
INLINE void finish(const form *f, const step *s, int p, const uint8_t *scale, const __m512 *acc, const __m512 *m)
{
    const bool mins = yk_tile_has_min(f->type);
    const int n = f->n;
    const __m512 d = f->expanded ? _mm512_load_ps(s->e[p].d) : yk_avx512_halves(scale);
    __m512 dmin = d;
    if (mins)
        dmin = f->expanded ? _mm512_load_ps(s->e[p].dmin) : yk_avx512_halves(scale + 2 * YK_TILE_ROWS);
#pragma GCC unroll 8
    for (int t = 0; t < n; t++) {
        float *y = s->y[p] + YK_TILE_ROWS * (s->a->at + (uint32_t)t);
        __m512 v = _mm512_fmadd_ps(d, acc[t], _mm512_load_ps(y));
        if (mins)
            v = _mm512_fnmadd_ps(dmin, m[t], v);
        _mm512_store_ps(y, v);
    }
}

/* Low-bit types but those of two and three bits. */
INLINE void step_low(const form *f, const step *s)
{
    const yk_type type = f->type;
    const int n = f->n, panels = f->panels;
    const uint8_t *const *w = s->w;
    const group *a = s->a;
    const bool super = yk_tile_has_super(type), mins = yk_tile_has_min(type);
    const bool nibbles = n <= 2 && panels == 1 && (type == YK_TYPE_Q4_0 || type == YK_TYPE_Q4_1 || type == YK_TYPE_Q4_K);
    const int parts = type == YK_TYPE_Q6_K ? 2 : 1;
    const uint32_t blocks = super ? 8 : s->n_cols / 32, b0 = s->col / 32;
    const yk_tile g = yk_tile_of(type, 32 * blocks);
    const int8_t *q[GROUP];
    start st;
    __m512 acc[2][GROUP];
    start_from(type, n, a, b0, blocks, &st);
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        q[t] = a->q[t] + s->col;
#pragma GCC unroll 2
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 8
        for (int t = 0; t < n; t++)
            acc[p][t] = super ? _mm512_setzero_ps() : _mm512_load_ps(s->y[p] + YK_TILE_ROWS * (a->at + (uint32_t)t));
    for (uint32_t b = 0; b < blocks; b++) {
        if (!f->expanded)
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++)
                prefetch(s, w[p], b * (g.bytes / blocks), (b + 1) * (g.bytes / blocks), true);
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++) {
            __m512i sum[2][GROUP];
#pragma GCC unroll 8
            for (int t = 0; t < n; t++)
#pragma GCC unroll 2
                for (int p = 0; p < panels; p++)
                    sum[p][t] = mins ? _mm512_setzero_si512() : _mm512_set1_epi32(st.off[t][parts * b + (uint32_t)part]);
            if (nibbles)
                dot_nibbles(n, w[0], b, q, sum[0]);
            else
                dot_block(f, s, &g, b, part, q, sum);
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++) {
                const __m512 d = f->expanded ? _mm512_load_ps(s->e[p].scale[(uint32_t)parts * b + (uint32_t)part])
                                             : yk_avx512_block_scale(type, w[p], &g, b, part);
#pragma GCC unroll 8
                for (int t = 0; t < n; t++)
                    acc[p][t] = _mm512_fmadd_ps(
                        _mm512_mul_ps(_mm512_cvtepi32_ps(sum[p][t]), _mm512_set1_ps(a->scale[t][b0 + b])), d, acc[p][t]);
            }
        }
        if (mins && !super)
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++) {
                const __m512 mn = f->expanded ? _mm512_load_ps(s->e[p].min[b]) : yk_avx512_halves(w[p] + g.min + 32 * b);
#pragma GCC unroll 8
                for (int t = 0; t < n; t++)
                    acc[p][t] = _mm512_fmadd_ps(mn, _mm512_set1_ps(st.fsum[t][b]), acc[p][t]);
            }
    }
#pragma GCC unroll 2
    for (int p = 0; p < panels; p++) {
        __m512 m[GROUP];
#pragma GCC unroll 8
        for (int t = 0; t < n; t++)
            m[t] = _mm512_setzero_ps();
        if (super && mins)
#pragma GCC unroll 1
            for (uint32_t b = 0; b < 8; b++) { /* unrolled, all its broadcasts would wait in registers for the second panel */
                const __m512 mn = f->expanded ? _mm512_load_ps(s->e[p].min[b]) : yk_avx512_bytes_u(w[p] + g.sub_min + 16 * b);
#pragma GCC unroll 8
                for (int t = 0; t < n; t++)
                    m[t] = _mm512_fmadd_ps(mn, _mm512_set1_ps(st.fsum[t][b]), m[t]);
            }
        if (super)
            finish(f, s, p, f->expanded ? NULL : w[p] + g.scale, acc[p], m);
        else
#pragma GCC unroll 8
            for (int t = 0; t < n; t++)
                _mm512_store_ps(s->y[p] + YK_TILE_ROWS * (a->at + (uint32_t)t), acc[p][t]);
    }
}

/* Q2_K and Q3_K. A half block's sum fits 16 bits, so its scale is applied by one 16-bit product whose upper half is zero, and the second half
 * is added by the same instruction: one conversion and one f32 term a block. Minima meet the two sums of the activations likewise. */
INLINE void step_two(const form *f, const step *s)
{
    const yk_type type = f->type;
    const int n = f->n, panels = f->panels;
    const uint8_t *const *w = s->w;
    const group *a = s->a;
    const bool mins = yk_tile_has_min(type);
    const uint32_t b0 = s->col / 32;
    const yk_tile g = yk_tile_of(type, YK_TILE_COLS);
    const __m512i two = _mm512_set1_epi8(3), third = _mm512_set1_epi8(4), low = _mm512_set1_epi32(15),
                  half = _mm512_set1_epi32(0xffff);
    const int8_t *q[GROUP];
    start st;
    __m512 acc[2][GROUP], m[2][GROUP];
    start_from(type, n, a, b0, 8, &st);
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        q[t] = a->q[t] + s->col;
#pragma GCC unroll 2
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 8
        for (int t = 0; t < n; t++)
            acc[p][t] = m[p][t] = _mm512_setzero_ps();
    for (uint32_t b = 0; b < 8; b++) {
        __m512i all[2][GROUP], min0[2];
#pragma GCC unroll 2
        for (int p = 0; p < panels; p++)
            prefetch(s, w[p], b * (g.bytes / 8), (b + 1) * (g.bytes / 8), true);
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m512i sum[2][GROUP];
#pragma GCC unroll 8
            for (int t = 0; t < n; t++)
#pragma GCC unroll 2
                for (int p = 0; p < panels; p++)
                    sum[p][t] = mins ? _mm512_setzero_si512() : _mm512_set1_epi32(st.off[t][2 * b + (uint32_t)h]);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                __m512i c[2];
#pragma GCC unroll 2
                for (int p = 0; p < panels; p++) {
                    c[p] = _mm512_load_si512(w[p] + 128 * b + 64 * h);
                    c[p] = _mm512_and_si512(j ? _mm512_srli_epi16(c[p], 2 * (unsigned)j) : c[p], two);
                    if (type == YK_TYPE_Q3_K)
                        c[p] = put_high(c[p], _mm512_load_si512(w[p] + g.high + 64 * b), 4 * h + j, 2, third);
                }
#pragma GCC unroll 8
                for (int t = 0; t < n; t++)
#pragma GCC unroll 2
                    for (int p = 0; p < panels; p++)
                        sum[p][t] = _mm512_dpbusd_epi32(sum[p][t], c[p], four(q[t] + 32 * b + 16 * h + 4 * j));
            }
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++) {
                const __m128i one = _mm_load_si128((const __m128i *)(const void *)(w[p] + g.sub + 32 * b + 16 * h));
                const __m512i bytes = mins ? _mm512_cvtepu8_epi32(one) : _mm512_cvtepi8_epi32(one);
                const __m512i sc = _mm512_and_si512(bytes, mins ? low : half);
                if (mins) /* minima of both halves as 16-bit pairs */
                    min0[p] = h ? _mm512_or_si512(min0[p], _mm512_slli_epi32(_mm512_srli_epi32(bytes, 4), 16))
                                : _mm512_srli_epi32(bytes, 4);
#pragma GCC unroll 8
                for (int t = 0; t < n; t++)
                    all[p][t] = h ? _mm512_dpwssd_epi32(all[p][t], sum[p][t], sc) : _mm512_madd_epi16(sum[p][t], sc);
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < n; t++) {
            const __m512 scale = _mm512_set1_ps(a->scale[t][b0 + b]);
            int32_t pair;
            memcpy(&pair, a->sum[t] + 2 * (size_t)(b0 + b), 4);
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++) {
                acc[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all[p][t]), scale, acc[p][t]);
                if (mins)
                    m[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_madd_epi16(min0[p], _mm512_set1_epi32(pair))), scale,
                                              m[p][t]);
            }
        }
    }
#pragma GCC unroll 2
    for (int p = 0; p < panels; p++)
        finish(f, s, p, w[p] + g.scale, acc[p], m[p]);
}

/* F32, F16, BF16: one column of 16 rows meets one broadcast activation; even and odd columns are summed apart. */
INLINE void step_float(const form *f, const step *s)
{
    const yk_type type = f->type;
    const int n = f->n, panels = f->panels;
    const uint8_t *const *w = s->w;
    const group *a = s->a;
    const uint32_t bytes = type == YK_TYPE_F32 ? 64 : 32; /* bytes of a column */
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000u);
    const float *x[GROUP];
    __m512 acc[2][2][GROUP];
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        x[t] = a->x[t] + s->col;
#pragma GCC unroll 2
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 8
        for (int t = 0; t < n; t++)
            acc[0][p][t] = acc[1][p][t] = _mm512_setzero_ps();
    for (uint32_t k = 0; k < s->n_cols; k += 2) {
#pragma GCC unroll 2
        for (int p = 0; p < panels; p++)
            prefetch(s, w[p], k * bytes, (k + 2) * bytes, false);
#pragma GCC unroll 2
        for (uint32_t j = 0; j < 2; j++) {
            if (k + j == s->n_cols)
                break;
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++) {
                const uint8_t *c = w[p] + (size_t)bytes * (type == YK_TYPE_BF16 ? k : k + j);
                __m512 v;
                if (type == YK_TYPE_BF16) {
                    const __m512i both = _mm512_load_si512(c);
                    v = _mm512_castsi512_ps(j ? _mm512_and_si512(both, upper) : _mm512_slli_epi32(both, 16));
                } else {
                    v = type == YK_TYPE_F32 ? _mm512_load_ps(c) : yk_avx512_halves(c);
                }
#pragma GCC unroll 8
                for (int t = 0; t < n; t++)
                    acc[j][p][t] = _mm512_fmadd_ps(v, _mm512_set1_ps(x[t][k + j]), acc[j][p][t]);
            }
        }
    }
#pragma GCC unroll 2
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 8
        for (int t = 0; t < n; t++) {
            float *at = s->y[p] + YK_TILE_ROWS * (a->at + (uint32_t)t);
            _mm512_store_ps(at, _mm512_add_ps(_mm512_load_ps(at), _mm512_add_ps(acc[0][p][t], acc[1][p][t])));
        }
}

#define STEP(name, form_fn, ...)                                                                                               \
    static void name(const step *s)                                                                                            \
    {                                                                                                                          \
        form_fn(&(form){__VA_ARGS__}, s);                                                                                      \
    }

/* The steps of a type: single[n] for n tokens and one panel, pair[n] for two panels, many[n] for two expanded ones (NULL: none); a size that is
 * missing takes the next larger one. */
typedef struct steps {
    step_fn single[GROUP + 1], pair[GROUP + 1], many[GROUP + 1];
    void (*expand)(const uint8_t *w, uint32_t n_cols, expanded *e);
} steps;

#define SMALL_STEPS(name, form_fn, type)                                                                                       \
    STEP(name##_1, form_fn, type, 1, 1)                                                                                        \
    STEP(name##_2, form_fn, type, 2, 1)                                                                                        \
    STEP(name##_3, form_fn, type, 3, 1)                                                                                        \
    STEP(name##_4, form_fn, type, 4, 1)                                                                                        \
    STEP(name##_6, form_fn, type, 6, 1)                                                                                        \
    STEP(name##_4x2, form_fn, type, 4, 2)                                                                                      \
    STEP(name##_6x2, form_fn, type, 6, 2)

/* For types whose eight tokens are better done as twice four. */
#define STEPS(name, form_fn, type)                                                                                             \
    SMALL_STEPS(name, form_fn, type)                                                                                           \
    static const steps name = {{NULL, name##_1, name##_2, name##_3, name##_4, name##_6, name##_6},                             \
                               {NULL, NULL, NULL, NULL, name##_4x2, name##_6x2, name##_6x2}};

/* Eight tokens with two panels: the f32 sums wait in L1, but codes are made and broadcasts shared once. */
#define STEPS8(name, form_fn, type)                                                                                            \
    SMALL_STEPS(name, form_fn, type)                                                                                           \
    STEP(name##_8, form_fn, type, 8, 1)                                                                                        \
    STEP(name##_8x2, form_fn, type, 8, 2)                                                                                      \
    STEP(name##_4e, form_fn, type, 4, 2, true)                                                                                 \
    STEP(name##_6e, form_fn, type, 6, 2, true)                                                                                 \
    STEP(name##_8e, form_fn, type, 8, 2, true)                                                                                 \
    static void name##_expand(const uint8_t *w, uint32_t n_cols, expanded *e)                                                  \
    {                                                                                                                          \
        expand(type, w, n_cols, e);                                                                                            \
    }                                                                                                                          \
    static const steps name = {{NULL, name##_1, name##_2, name##_3, name##_4, name##_6, name##_6, name##_8, name##_8},         \
                               {NULL, NULL, NULL, NULL, name##_4x2, name##_6x2, name##_6x2, name##_8x2, name##_8x2},           \
                               {NULL, NULL, NULL, NULL, name##_4e, name##_6e, name##_6e, name##_8e, name##_8e},                \
                               name##_expand};

STEPS(f32, step_float, YK_TYPE_F32)
STEPS(f16, step_float, YK_TYPE_F16)
STEPS(bf16, step_float, YK_TYPE_BF16)
STEPS8(q4_0, step_low, YK_TYPE_Q4_0)
STEPS8(q4_1, step_low, YK_TYPE_Q4_1)
STEPS8(q5_0, step_low, YK_TYPE_Q5_0)
STEPS8(q5_1, step_low, YK_TYPE_Q5_1)
STEPS8(q8_0, step_low, YK_TYPE_Q8_0)
STEPS(q2_k, step_two, YK_TYPE_Q2_K)
STEPS(q3_k, step_two, YK_TYPE_Q3_K)
STEPS8(q4_k, step_low, YK_TYPE_Q4_K)
STEPS8(q5_k, step_low, YK_TYPE_Q5_K)
STEPS8(q6_k, step_low, YK_TYPE_Q6_K)
STEPS8(iq4_nl, step_low, YK_TYPE_IQ4_NL)
STEPS8(iq4_xs, step_low, YK_TYPE_IQ4_XS)
STEPS8(mxfp4, step_low, YK_TYPE_MXFP4)

/* ---- the walk over tokens, panels and tiles ---- */

/* Tokens of the next group when `left` are left: sixes, and at the end what wastes least. */
static uint32_t group_size(const steps *st, uint32_t left)
{
    return left >= 9 ? SIX : left <= SIX || st->single[left] ? left : 4;
}

static uint32_t make_groups(const yk_matmul_packed *m, bool quantised, const steps *st, uint32_t t0, uint32_t n, group *groups)
{
    uint32_t n_groups = 0;
    for (uint32_t at = 0; at < n; at += groups[n_groups++].n) {
        group *g = groups + n_groups;
        *g = (group){.at = at, .n = group_size(st, n - at)};
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
    const group *last = groups + n_groups - 1;
    const bool many = st->expand && panels == 2 && last->at + last->n >= MANY;
    expanded e[2];
    for (uint32_t c = 0; c < m->n_cols; c += YK_TILE_COLS) {
        const uint32_t cols = m->n_cols - c < YK_TILE_COLS ? m->n_cols - c : YK_TILE_COLS;
        if (many)
            for (uint32_t p = 0; p < panels; p++)
                st->expand(w[p], cols, &e[p]);
        for (uint32_t i = 0; i < n_groups; i++) {
            const group *g = groups + i;
            if (many && st->many[g->n])
                st->many[g->n](&(step){.n_cols = cols, .col = c, .a = g, .y = y, .e = e});
            else if (panels == 2 && st->pair[g->n])
                st->pair[g->n](&(step){w, cols, c, g, y, i == 0, 0, 0, NULL});
            else
                for (uint32_t p = 0; p < panels; p++)
                    st->single[g->n](&(step){w + p, cols, c, g, y + p, i == 0, 0, 0});
        }
        const uint64_t bytes = m->tile_stride ? m->tile_stride : yk_tile_of(type, cols).bytes;
        w[0] += bytes, w[1] += bytes;
    }
}

/* Rows of one panel, for n tokens from t0 on. */
static void store_panel(const yk_matmul_packed *m, uint32_t r, uint32_t t0, uint32_t n, const float *y)
{
    const uint32_t rows = m->n_rows - r < YK_TILE_ROWS ? m->n_rows - r : YK_TILE_ROWS;
    for (uint32_t t = 0; t < n; t++)
        _mm512_mask_storeu_ps(m->y + (t0 + t) * m->y_stride + r, (__mmask16)((1u << rows) - 1),
                              _mm512_load_ps(y + YK_TILE_ROWS * t));
}

/* The same for one group when the tiles of a panel lie far apart but panels follow each other: all panels of a chunk meet a column of tiles before the
 * next one, which is fetched meanwhile. */
static void columns_first(const yk_matmul_packed *m, const steps *st, const group *g)
{
    _Alignas(64) float sums[CHUNK][2 * GROUP * YK_TILE_ROWS];
    for (uint32_t r0 = 0; r0 < m->n_rows; r0 += CHUNK * YK_TILE_ROWS) {
        const uint32_t rows = m->n_rows - r0 < CHUNK * YK_TILE_ROWS ? m->n_rows - r0 : CHUNK * YK_TILE_ROWS;
        const uint32_t n_panels = (rows + YK_TILE_ROWS - 1) / YK_TILE_ROWS;
        const uint8_t *column = m->w + r0 / YK_TILE_ROWS * m->panel_bytes;
        memset(sums, 0, n_panels * sizeof sums[0]);
        for (uint32_t c = 0; c < m->n_cols; c += YK_TILE_COLS, column += m->tile_stride) {
            const uint32_t cols = m->n_cols - c < YK_TILE_COLS ? m->n_cols - c : YK_TILE_COLS;
            for (uint32_t p = 0; p < n_panels;) {
                const uint32_t panels = g->n >= PAIR && n_panels - p >= 2 && st->pair[g->n] ? 2 : 1;
                const uint8_t *first = column + p * m->panel_bytes, *w[2] = {first, first + (panels - 1) * m->panel_bytes};
                float *const y[2] = {sums[p], sums[p + panels - 1]};
                const step s = {
                    w, cols, c, g, y, false, yk_column_ahead(m, c, 1, n_panels), yk_column_ahead(m, c, AHEAD, n_panels)};
                (panels == 2 ? st->pair : st->single)[g->n](&s);
                p += panels;
            }
        }
        for (uint32_t p = 0; p < n_panels; p++)
            store_panel(m, r0 + p * YK_TILE_ROWS, 0, g->n, sums[p]);
    }
}

static void matmul_packed(const yk_matmul_packed *m, yk_type type, const steps *st)
{
    group groups[PASS / SIX + 2];
    _Alignas(64) float sums[2][(PASS + GROUP) * YK_TILE_ROWS]; /* a padded step writes up to GROUP tokens from its first on */
    float *const y[2] = {sums[0], sums[1]};
    for (uint32_t t0 = 0; t0 < m->n_tokens; t0 += PASS) {
        const uint32_t n = m->n_tokens - t0 < PASS ? m->n_tokens - t0 : PASS;
        const uint32_t n_groups = make_groups(m, yk_type_get((uint32_t)type)->quantised, st, t0, n, groups);
        if (m->tile_stride && n_groups == 1 && m->n_tokens == n) {
            columns_first(m, st, groups);
            return;
        }
        for (uint32_t r = 0; r < m->n_rows;) {
            const uint32_t panels = n >= PAIR && m->n_rows - r > YK_TILE_ROWS ? 2 : 1;
            for (uint32_t p = 0; p < panels; p++)
                memset(y[p], 0, (n + GROUP) * YK_TILE_ROWS * sizeof(float));
            panel_groups(m, type, st, m->w + r / YK_TILE_ROWS * m->panel_bytes, panels, groups, n_groups, y);
            for (uint32_t p = 0; p < panels; p++, r += YK_TILE_ROWS)
                store_panel(m, r, t0, n, y[p]);
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
static void matmul_packed_bf16_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_BF16, &bf16);
}
static void matmul_packed_q4_0_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_Q4_0, &q4_0);
}
static void matmul_packed_q4_1_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_Q4_1, &q4_1);
}
static void matmul_packed_q5_0_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_Q5_0, &q5_0);
}
static void matmul_packed_q5_1_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_Q5_1, &q5_1);
}
static void matmul_packed_q8_0_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_Q8_0, &q8_0);
}
static void matmul_packed_q2_k_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_Q2_K, &q2_k);
}
static void matmul_packed_q3_k_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_Q3_K, &q3_k);
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
static void matmul_packed_iq4_nl_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_IQ4_NL, &iq4_nl);
}
static void matmul_packed_iq4_xs_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_IQ4_XS, &iq4_xs);
}
static void matmul_packed_mxfp4_q8_avx512(const yk_matmul_packed *m)
{
    matmul_packed(m, YK_TYPE_MXFP4, &mxfp4);
}

void yk_ops_fill_avx512(yk_ops *ops)
{
    ops->matmul_packed[YK_TYPE_F32] = matmul_packed_f32_avx512;
    ops->matmul_packed[YK_TYPE_F16] = matmul_packed_f16_avx512;
    ops->matmul_packed[YK_TYPE_BF16] = matmul_packed_bf16_avx512;
    ops->matmul_packed[YK_TYPE_Q4_0] = matmul_packed_q4_0_q8_avx512;
    ops->matmul_packed[YK_TYPE_Q4_1] = matmul_packed_q4_1_q8_avx512;
    ops->matmul_packed[YK_TYPE_Q5_0] = matmul_packed_q5_0_q8_avx512;
    ops->matmul_packed[YK_TYPE_Q5_1] = matmul_packed_q5_1_q8_avx512;
    ops->matmul_packed[YK_TYPE_Q8_0] = matmul_packed_q8_0_q8_avx512;
    ops->matmul_packed[YK_TYPE_Q2_K] = matmul_packed_q2_k_q8_avx512;
    ops->matmul_packed[YK_TYPE_Q3_K] = matmul_packed_q3_k_q8_avx512;
    ops->matmul_packed[YK_TYPE_Q4_K] = matmul_packed_q4_k_q8_avx512;
    ops->matmul_packed[YK_TYPE_Q5_K] = matmul_packed_q5_k_q8_avx512;
    ops->matmul_packed[YK_TYPE_Q6_K] = matmul_packed_q6_k_q8_avx512;
    ops->matmul_packed[YK_TYPE_IQ4_NL] = matmul_packed_iq4_nl_q8_avx512;
    ops->matmul_packed[YK_TYPE_IQ4_XS] = matmul_packed_iq4_xs_q8_avx512;
    ops->matmul_packed[YK_TYPE_MXFP4] = matmul_packed_mxfp4_q8_avx512;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
