/* packed_tiles.h - packed weights times activations in registers of 256 bits, with the bits of cpu/avx512/packed.c. Layout: docs/kernels/layout.md;
 * contract and order of sums: docs/kernels/packed.md. Included by the file of each level that has such registers: cpu/avx2/packed.c, cpu/avxvnni/packed.c.
 *
 * One 32-bit lane is one row: a register is four columns of 8 rows, a tile has two halves of 8 rows, which share each broadcast of four activations.
 * With YK_PACKED_VNNI 1 vpdpbusd adds four products of unsigned codes and signed activations to a lane; signed codes get an offset, which the lane starts
 * with, as in AVX-512. With 0 vpmaddubsw multiplies them and adds pairs in 16 bits; such sums grow over as many groups of columns as cannot
 * overflow (`flush_of`), then one vpmaddwd makes them 32 bits wide. Codes of 8 bits and of the IQ4 table would saturate as unsigned numbers: their sign goes
 * to the activation instead (|w| times sign(a, w), at most 2 x 128 x 127 a pair).
 * Up to eight tokens meet a tile as it lies in memory, four by four. More: it is expanded once to bytes and f32 scales, in L1, which they meet. */
#ifndef YK_CPU_AVX2_PACKED_TILES_H
#define YK_CPU_AVX2_PACKED_TILES_H

#include <immintrin.h>
#include <string.h>

#include "cpu/ops.h"
#include "cpu/tile.h"

#ifndef YK_PACKED_VNNI
#define YK_PACKED_VNNI 0
#endif

#define INLINE static inline __attribute__((always_inline))

enum {
    LANES = 8,   /* rows of a register; a tile has two such halves */
    INTS = 4,    /* most tokens of a step of low-bit types: 8 sums, two registers of codes, a broadcast */
    FLOATS = 6,  /* of a step of float types: 12 sums, two registers of weights, a broadcast */
    CHUNK = 16,  /* panels of which sums are kept at a time where tiles lie apart */
    AHEAD = 4,   /* columns of tiles fetched into L2 there */
    PASS = 60,   /* tokens that meet a tile before the next one comes: their activations and an expanded tile take 25 KiB */
    NEAR = 2048, /* prefetch distances into L1 and L2, as measured for AVX-512: docs/SPEED.md */
    FAR = 16384
};

typedef struct group {
    uint32_t at, n; /* tokens at .. at + n - 1 of the pass */
    const int8_t *q[FLOATS];
    const float *scale[FLOATS], *x[FLOATS];
    const int16_t *sum[FLOATS];
} group;

/* A tile, ready for products. */
typedef struct expanded {
    _Alignas(64) uint8_t q[64 * 64]; /* [group of 4 columns][16 rows][4] */
    union {
        float scale[16][YK_TILE_ROWS];  /* [block or half block][row]; types with d of a tile: the 8-bit scale alone */
        int32_t pair[16][YK_TILE_ROWS]; /* Q2_K, Q3_K: it twice, in 16 bits each */
    };
    union {
        float min[8][YK_TILE_ROWS];        /* Q4_1, Q5_1: what is added; Q4_K, Q5_K: the 8-bit minimum alone */
        int32_t min_pair[8][YK_TILE_ROWS]; /* Q2_K: minima of both half blocks, in 16 bits each */
    };
    float d[2][YK_TILE_ROWS]; /* d and dmin of a tile */
} expanded;

/* One step: y[16 t + row] += tile of n_cols columns x activations from column col on, tokens t of the group. */
typedef struct step {
    const uint8_t *w;
    expanded *e;
    uint32_t n_cols, col;
    const group *a;
    float *y;
    bool fetch;        /* what comes NEAR and FAR behind the tile is fetched meanwhile */
    int64_t near, far; /* without `fetch`: what comes so far from it, into L1 and L2; near 0: nothing is */
} step;
typedef void (*step_fn)(const step *s);

/* What a step is compiled for; constants at each call. */
typedef struct form {
    yk_type type;
    int n;
    bool ready; /* the tile is expanded */
} form;

INLINE __m256i four(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
}

INLINE __m256i load(const uint8_t *p)
{
    return _mm256_load_si256((const __m256i *)(const void *)p);
}

INLINE __m128i eight(const uint8_t *p)
{
    return _mm_loadl_epi64((const __m128i *)(const void *)p);
}

INLINE __m256 halves(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(const void *)p));
}

INLINE __m256 bytes_u(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight(p)));
}

INLINE __m256 bytes_s(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight(p)));
}

/* 2^(e - 128): exponents 0 and 1 need a denormal, 255 is NaN. */
INLINE __m256 exponents(const uint8_t *p)
{
    const __m256i e = _mm256_cvtepu8_epi32(eight(p));
    const __m256i v = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    const __m256i w = _mm256_blendv_epi8(v, small, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e));
    return _mm256_castsi256_ps(
        _mm256_blendv_epi8(w, _mm256_set1_epi32(0x7fc00000), _mm256_cmpeq_epi32(e, _mm256_set1_epi32(255))));
}

/* Part `part` of `parts` of the lines that `bytes` take, of what comes NEAR and FAR behind p: a few at a time, because a burst waits for the
 * few buffers of outstanding lines (docs/SPEED.md, 12). Addresses past the weights are harmless. */
INLINE void prefetch_rows(const uint8_t *p, uint32_t bytes, bool far, int part, int parts)
{
    const int lines = (int)(bytes + 63) / 64, end = (part + 1) * lines / parts;
#pragma GCC unroll 16
    for (int l = part * lines / parts; l < end; l++) {
        _mm_prefetch((const char *)p + NEAR + 64 * l, _MM_HINT_T0);
        if (far)
            _mm_prefetch((const char *)p + FAR + 64 * l, _MM_HINT_T1);
    }
}

/* The lines that `bytes` take, of what comes s->near and s->far behind p: those of a block at once, a branch for every few would cost rows more. */
INLINE void prefetch_apart(const step *s, const uint8_t *p, uint32_t bytes)
{
    const char *near_at = (const char *)p + s->near, *far_at = (const char *)p + s->far;
#pragma GCC unroll 16
    for (uint32_t l = 0; l < bytes; l += 64) {
        _mm_prefetch(near_at + l, _MM_HINT_T0);
        _mm_prefetch(far_at + l, _MM_HINT_T1);
    }
}

/* ---- what types differ in; constants where a step is compiled ---- */

INLINE bool is_signed(yk_type type)
{
    return type == YK_TYPE_Q8_0 || type == YK_TYPE_IQ4_NL || type == YK_TYPE_IQ4_XS;
}

/* What unsigned codes are too large by. */
INLINE int offset_of(yk_type type)
{
    return YK_PACKED_VNNI && is_signed(type) ? 128 : yk_tile_offset(type);
}

/* Groups of columns whose 16-bit sums cannot overflow: 2 * largest code * 127 * groups < 2^15. */
INLINE int flush_of(yk_type type)
{
    if (is_signed(type))
        return 1;
    if (type == YK_TYPE_Q6_K)
        return 2;
    return yk_tile_has_fifth(type) || type == YK_TYPE_MXFP4 ? 4 : 8;
}

/* Bytes of a tile for each of its blocks. */
INLINE uint32_t block_bytes(yk_type type)
{
    return yk_tile_of(type, YK_TILE_COLS).bytes / 8;
}

/* ---- codes and scales ---- */

/* (h shifted so that bit or bits `from` come to `to`) & mask | low */
INLINE __m256i put_high(__m256i low, __m256i h, int from, int to, __m256i mask)
{
    const __m256i s = from < to ? _mm256_slli_epi16(h, to - from) : from > to ? _mm256_srli_epi16(h, from - to) : h;
    return _mm256_or_si256(_mm256_and_si256(s, mask), low);
}

/* Codes of group j of block b, half `half` of the rows; unsigned (with offset_of), or signed where is_signed and the level has no VNNI. */
INLINE __m256i codes(const form *f, const step *s, const yk_tile *g, uint32_t b, int j, int half)
{
    const yk_type type = f->type;
    const uint32_t in = 32 * (uint32_t)half;
    if (f->ready)
        return load(s->e->q + 512 * b + 64 * j + in);
    const __m256i flip = _mm256_set1_epi8(YK_PACKED_VNNI ? (char)0x80 : 0);
    if (type == YK_TYPE_Q8_0)
        return _mm256_xor_si256(load(s->w + 512 * b + 64 * j + in), flip);
    if (yk_tile_is_q2(type)) {
        const __m256i c = load(s->w + 128 * b + 64 * (j / 4) + in);
        const __m256i two = _mm256_and_si256(j % 4 ? _mm256_srli_epi16(c, 2 * (j % 4)) : c, _mm256_set1_epi8(3));
        return type == YK_TYPE_Q3_K ? put_high(two, load(s->w + g->high + 64 * b + in), j, 2, _mm256_set1_epi8(4)) : two;
    }
    const __m256i both = load(s->w + 256 * b + 64 * (j % 4) + in);
    const __m256i c = _mm256_and_si256(j < 4 ? both : _mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
    if (yk_tile_has_fifth(type))
        return put_high(c, load(s->w + g->high + 64 * b + in), j, 4, _mm256_set1_epi8(0x10));
    if (type == YK_TYPE_Q6_K)
        return put_high(c, load(s->w + g->high + 128 * b + 64 * (j / 4) + in), 2 * (j % 4), 4, _mm256_set1_epi8(0x30));
    const __m128i iq4 = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
    const __m128i fp4 = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0); /* twice the value, + 12 */
    if (is_signed(type))
        return _mm256_shuffle_epi8(_mm256_xor_si256(_mm256_broadcastsi128_si256(iq4), flip), c);
    return type == YK_TYPE_MXFP4 ? _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(fp4), c) : c;
}

/* Scales of block b, or of its part, for 8 rows. */
INLINE __m256 scales(const form *f, const step *s, const yk_tile *g, uint32_t b, int part, int half)
{
    const uint32_t in = LANES * (uint32_t)half;
    const uint8_t *w = s->w;
    if (f->ready)
        return _mm256_load_ps(s->e->scale[f->type == YK_TYPE_Q6_K ? 2 * b + (uint32_t)part : b] + in);
    switch (f->type) {
    case YK_TYPE_Q4_K:
    case YK_TYPE_Q5_K:
        return bytes_u(w + g->sub + 16 * b + in);
    case YK_TYPE_Q6_K:
        return bytes_s(w + g->sub + 32 * b + 16 * part + in);
    case YK_TYPE_IQ4_XS:
        return bytes_s(w + g->sub + 16 * b + in);
    case YK_TYPE_MXFP4:
        return exponents(w + g->sub + 16 * b + in);
    default:
        return halves(w + g->scale + 32 * b + 2 * in);
    }
}

INLINE __m256 minima(const form *f, const step *s, const yk_tile *g, uint32_t b, int half)
{
    const uint32_t in = LANES * (uint32_t)half;
    if (f->ready)
        return _mm256_load_ps(s->e->min[b] + in);
    return yk_tile_has_super(f->type) ? bytes_u(s->w + g->sub_min + 16 * b + in) : halves(s->w + g->min + 32 * b + 2 * in);
}

/* Q2_K, Q3_K: scales of half block `part` of block b, twice in each lane; VNNI: once, the upper half is zero. */
INLINE __m256i scale_pairs(const form *f, const step *s, const yk_tile *g, uint32_t b, int part, int half)
{
    if (f->ready)
        return load((const uint8_t *)(s->e->pair[2 * b + (uint32_t)part] + LANES * half));
    const __m128i v = eight(s->w + g->sub + 32 * b + 16 * part + LANES * half);
    if (f->type == YK_TYPE_Q3_K)
        return YK_PACKED_VNNI ? _mm256_and_si256(_mm256_cvtepi8_epi32(v), _mm256_set1_epi32(0xffff))
                              : _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(v, v));
    const __m128i sc = _mm_and_si128(v, _mm_set1_epi8(15));
    return YK_PACKED_VNNI ? _mm256_cvtepi8_epi32(sc) : _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(sc, sc));
}

/* Q2_K: minima of both half blocks of block b in each lane. */
INLINE __m256i min_pairs(const form *f, const step *s, const yk_tile *g, uint32_t b, int half)
{
    if (f->ready)
        return load((const uint8_t *)(s->e->min_pair[b] + LANES * half));
    const uint8_t *at = s->w + g->sub + 32 * b + LANES * half;
    const __m128i v = _mm_unpacklo_epi8(eight(at), eight(at + YK_TILE_ROWS));
    return _mm256_cvtepi8_epi16(_mm_and_si128(_mm_srli_epi16(v, 4), _mm_set1_epi8(15)));
}

/* The whole tile into s->e. */
INLINE void expand(yk_type type, const step *s)
{
    const form f = {type, 0, false};
    const bool super = yk_tile_has_super(type), mins = yk_tile_has_min(type);
    const uint32_t blocks = super ? 8 : s->n_cols / 32;
    const yk_tile g = yk_tile_of(type, 32 * blocks);
    expanded *e = s->e;
    for (uint32_t b = 0; b < blocks; b++) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            prefetch_rows(s->w + b * block_bytes(type), block_bytes(type), true, j, 8);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++)
                _mm256_store_si256((__m256i *)(void *)(e->q + 512 * b + 64 * j + 32 * h), codes(&f, s, &g, b, j, h));
        }
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const int in = LANES * h;
            if (yk_tile_is_q2(type)) {
#pragma GCC unroll 2
                for (int part = 0; part < 2; part++)
                    _mm256_store_si256((__m256i *)(void *)(e->pair[2 * b + (uint32_t)part] + in),
                                       scale_pairs(&f, s, &g, b, part, h));
                if (mins)
                    _mm256_store_si256((__m256i *)(void *)(e->min_pair[b] + in), min_pairs(&f, s, &g, b, h));
                continue;
            }
            if (type == YK_TYPE_Q6_K) {
                _mm256_store_ps(e->scale[2 * b] + in, scales(&f, s, &g, b, 0, h));
                _mm256_store_ps(e->scale[2 * b + 1] + in, scales(&f, s, &g, b, 1, h));
            } else {
                _mm256_store_ps(e->scale[b] + in, scales(&f, s, &g, b, 0, h));
            }
            if (mins)
                _mm256_store_ps(e->min[b] + in, minima(&f, s, &g, b, h));
        }
    }
    const int n_d = !super ? 0 : mins ? 4 : 2;
    for (int i = 0; i < n_d; i++)
        _mm256_store_ps(e->d[0] + LANES * i, halves(s->w + g.scale + 2 * LANES * i));
}

/* ---- products ---- */

/* What a token brings to a tile besides its codes. */
typedef struct start {
    int32_t off[INTS][16]; /* - offset of codes x sum of activations, of each block (or half block) */
    float fsum[INTS][8];   /* types with minima: scale x sum of each block */
} start;

INLINE void start_from(yk_type type, int n, const group *a, uint32_t b0, uint32_t blocks, start *st)
{
    const int offset = offset_of(type);
    if (offset == 0 && (!yk_tile_has_min(type) || yk_tile_is_q2(type)))
        return;
    for (int t = 0; t < n; t++) {
        _Alignas(32) int16_t sums[16] = {0};
        _Alignas(32) float scale[8] = {0};
        if (blocks < 8) {
            memcpy(sums, a->sum[t] + 2 * (size_t)b0, 4 * (size_t)blocks);
            memcpy(scale, a->scale[t] + b0, 4 * (size_t)blocks);
        } else {
            memcpy(sums, a->sum[t] + 2 * (size_t)b0, sizeof sums);
            memcpy(scale, a->scale[t] + b0, sizeof scale);
        }
        const __m256i v = load((const uint8_t *)sums);
        if (type == YK_TYPE_Q3_K && !YK_PACKED_VNNI) { /* in 16 bits, for the lower half of each lane */
            const __m256i by = _mm256_mullo_epi16(v, _mm256_set1_epi16((short)-offset));
            const __m256i low = _mm256_set1_epi32(0xffff);
            const __m256i l = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(by)),
                          u = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(by, 1));
            _mm256_storeu_si256((__m256i *)(void *)st->off[t], _mm256_and_si256(l, low));
            _mm256_storeu_si256((__m256i *)(void *)(st->off[t] + 8), _mm256_and_si256(u, low));
        } else if (type == YK_TYPE_Q6_K || type == YK_TYPE_Q3_K) {
            const __m256i by = _mm256_set1_epi32(-offset);
            const __m256i l = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(v)),
                          u = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(v, 1));
            _mm256_storeu_si256((__m256i *)(void *)st->off[t], _mm256_mullo_epi32(l, by));
            _mm256_storeu_si256((__m256i *)(void *)(st->off[t] + 8), _mm256_mullo_epi32(u, by));
        } else if (!yk_tile_has_min(type)) {
            _mm256_storeu_si256((__m256i *)(void *)st->off[t], _mm256_madd_epi16(v, _mm256_set1_epi16((short)-offset)));
        } else {
            const __m256 both = _mm256_cvtepi32_ps(_mm256_madd_epi16(v, _mm256_set1_epi16(1)));
            _mm256_storeu_ps(st->fsum[t], _mm256_mul_ps(both, _mm256_load_ps(scale)));
        }
    }
}

#if YK_PACKED_VNNI

/* sum + codes times activations, four for each lane. */
INLINE __m256i dot_bytes(__m256i sum, __m256i c, __m256i a)
{
    return _mm256_dpbusd_avx_epi32(sum, c, a);
}

/* Integer sums of block b, or of its part 0 or 1 where half blocks have scales. */
INLINE void dot_block(const form *f, const step *s, const yk_tile *g, uint32_t b, int part, const start *st,
                      __m256i sum[2][INTS])
{
    const yk_type type = f->type;
    const int parts = type == YK_TYPE_Q6_K ? 2 : 1, first = 4 * part, end = first + 8 / parts;
    if (__builtin_expect(s->near && !f->ready && part == 0, 0)) /* out of the way of rows */
        prefetch_apart(s, s->w + b * block_bytes(type), block_bytes(type));
#pragma GCC unroll 4
    for (int t = 0; t < f->n; t++)
        sum[0][t] = sum[1][t] = offset_of(type) ? _mm256_set1_epi32(st->off[t][parts * (int)b + part]) : _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int j = first; j < end; j++) {
        if (s->fetch && !f->ready)
            prefetch_rows(s->w + b * block_bytes(type), block_bytes(type), true, j, 8);
        const __m256i c[2] = {codes(f, s, g, b, j, 0), codes(f, s, g, b, j, 1)};
#pragma GCC unroll 4
        for (int t = 0; t < f->n; t++) {
            const __m256i a = four(s->a->q[t] + s->col + 32 * b + 4 * j);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++)
                sum[h][t] = dot_bytes(sum[h][t], c[h], a);
        }
    }
}

/* Q2_K, Q3_K: sum of the first group of a half block, and what the next ones add. */
INLINE __m256i begin_two(bool mins, int32_t off, __m256i c, __m256i a)
{
    return dot_bytes(mins ? _mm256_setzero_si256() : _mm256_set1_epi32(off), c, a);
}

INLINE __m256i add_two(__m256i sum, __m256i c, __m256i a)
{
    return dot_bytes(sum, c, a);
}

/* all + scale times the sum of a half block, which fits 16 bits. */
INLINE __m256i scale_two(__m256i all, __m256i sum, __m256i scale)
{
    return _mm256_dpwssd_avx_epi32(all, sum, scale);
}

#else

/* Sums are made in the order written: gcc would make trees of them, whose parts do not fit the registers. */
INLINE __m256i add_next(__m256i sum, __m256i v)
{
    sum = _mm256_add_epi16(sum, v);
    __asm__("" : "+x"(sum));
    return sum;
}

INLINE __m256i add_next32(__m256i sum, __m256i v)
{
    sum = _mm256_add_epi32(sum, v);
    __asm__("" : "+x"(sum));
    return sum;
}

/* Codes times activations, in 16 bits for each pair. */
INLINE __m256i product(yk_type type, __m256i c, __m256i a)
{
    return is_signed(type) ? _mm256_maddubs_epi16(_mm256_abs_epi8(c), _mm256_sign_epi8(a, c)) : _mm256_maddubs_epi16(c, a);
}

/* Integer sums of block b, or of its part 0 or 1 where half blocks have scales. Two groups that meet before they are widened (Q6_K) are taken together, so
 * that their narrow sum does not wait in a register. */
INLINE void dot_block(const form *f, const step *s, const yk_tile *g, uint32_t b, int part, const start *st,
                      __m256i sum[2][INTS])
{
    const yk_type type = f->type;
    const int parts = type == YK_TYPE_Q6_K ? 2 : 1, first = 4 * part, end = first + 8 / parts, flush = flush_of(type);
    const int together = flush == 2 ? 2 : 1;
    const __m256i one = _mm256_set1_epi16(1);
    __m256i narrow[2][INTS];
    if (__builtin_expect(s->near && !f->ready && part == 0, 0)) /* out of the way of rows */
        prefetch_apart(s, s->w + b * block_bytes(type), block_bytes(type));
#pragma GCC unroll 8
    for (int j = first; j < end; j += together) {
        __m256i c[2][2];
        if (s->fetch && !f->ready)
            prefetch_rows(s->w + b * block_bytes(type), block_bytes(type), true, j / together, 8 / together);
#pragma GCC unroll 2
        for (int i = 0; i < together; i++)
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++)
                c[i][h] = codes(f, s, g, b, j + i, h);
#pragma GCC unroll 4
        for (int t = 0; t < f->n; t++) {
            const int8_t *q = s->a->q[t] + s->col + 32 * b + 4 * j;
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                __m256i p = product(type, c[0][h], four(q));
                if (together == 2)
                    p = _mm256_add_epi16(p, product(type, c[1][h], four(q + 4)));
                narrow[h][t] = j % flush ? add_next(narrow[h][t], p) : p;
                if ((j + together) % flush)
                    continue;
                const __m256i wide = _mm256_madd_epi16(narrow[h][t], one);
                if (j >= first + flush)
                    sum[h][t] = add_next32(sum[h][t], wide);
                else if (yk_tile_offset(type))
                    sum[h][t] = add_next32(wide, _mm256_set1_epi32(st->off[t][parts * (int)b + part]));
                else
                    sum[h][t] = wide;
            }
        }
    }
}

/* Q2_K, Q3_K: sum of the first group of a half block, and what the next ones add; of pairs, in 16 bits. */
INLINE __m256i begin_two(bool mins, int32_t off, __m256i c, __m256i a)
{
    const __m256i p = _mm256_maddubs_epi16(c, a);
    return mins ? p : _mm256_add_epi16(p, _mm256_set1_epi32(off));
}

INLINE __m256i add_two(__m256i sum, __m256i c, __m256i a)
{
    return add_next(sum, _mm256_maddubs_epi16(c, a));
}

/* all + scale times the sum of a half block. */
INLINE __m256i scale_two(__m256i all, __m256i sum, __m256i scale)
{
    return _mm256_add_epi32(all, _mm256_madd_epi16(sum, scale));
}

#endif

/* After the last block of a tile: y += d * acc, then y -= dmin * m. */
INLINE void finish(const form *f, const step *s, const yk_tile *g, int h, const __m256 *acc, const __m256 *m)
{
    const bool mins = yk_tile_has_min(f->type);
    const uint8_t *d = s->w + g->scale + 2 * LANES * h;
    const __m256 by = f->ready ? _mm256_load_ps(s->e->d[0] + LANES * h) : halves(d);
    __m256 min_by = by;
    if (mins)
        min_by = f->ready ? _mm256_load_ps(s->e->d[1] + LANES * h) : halves(d + 2 * YK_TILE_ROWS);
#pragma GCC unroll 4
    for (int t = 0; t < f->n; t++) {
        float *y = s->y + YK_TILE_ROWS * (s->a->at + (uint32_t)t) + LANES * h;
        __m256 v = _mm256_fmadd_ps(by, acc[t], _mm256_load_ps(y));
        if (mins)
            v = _mm256_fnmadd_ps(min_by, m[t], v);
        _mm256_store_ps(y, v);
    }
}

/* Low-bit types but those of two and three bits. */
INLINE void step_low(const form *f, const step *s)
{
    const yk_type type = f->type;
    const int n = f->n, parts = type == YK_TYPE_Q6_K ? 2 : 1;
    const bool super = yk_tile_has_super(type), mins = yk_tile_has_min(type);
    const uint32_t blocks = super ? 8 : s->n_cols / 32, b0 = s->col / 32;
    const yk_tile g = yk_tile_of(type, 32 * blocks);
    float *y = s->y + YK_TILE_ROWS * s->a->at;
    start st;
    __m256 acc[2][INTS];
    start_from(type, n, s->a, b0, blocks, &st);
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++)
#pragma GCC unroll 4
        for (int t = 0; t < n; t++)
            acc[h][t] = super ? _mm256_setzero_ps() : _mm256_load_ps(y + YK_TILE_ROWS * t + LANES * h);
#pragma GCC unroll 1
    for (uint32_t b = 0; b < blocks; b++) {
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++) {
            __m256i sum[2][INTS];
            dot_block(f, s, &g, b, part, &st, sum);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                const __m256 d = scales(f, s, &g, b, part, h);
#pragma GCC unroll 4
                for (int t = 0; t < n; t++)
                    acc[h][t] = _mm256_fmadd_ps(
                        _mm256_mul_ps(_mm256_cvtepi32_ps(sum[h][t]), _mm256_broadcast_ss(s->a->scale[t] + b0 + b)), d,
                        acc[h][t]);
            }
        }
        if (mins && !super)
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                const __m256 mn = minima(f, s, &g, b, h);
#pragma GCC unroll 4
                for (int t = 0; t < n; t++)
                    acc[h][t] = _mm256_fmadd_ps(mn, _mm256_broadcast_ss(st.fsum[t] + b), acc[h][t]);
            }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        __m256 m[INTS];
#pragma GCC unroll 4
        for (int t = 0; t < n; t++)
            m[t] = _mm256_setzero_ps();
        if (super && mins)
#pragma GCC unroll 1
            for (uint32_t b = 0; b < 8; b++) {
                const __m256 mn = minima(f, s, &g, b, h);
#pragma GCC unroll 4
                for (int t = 0; t < n; t++)
                    m[t] = _mm256_fmadd_ps(mn, _mm256_broadcast_ss(st.fsum[t] + b), m[t]);
            }
        if (super)
            finish(f, s, &g, h, acc[h], m);
        else
#pragma GCC unroll 4
            for (int t = 0; t < n; t++)
                _mm256_store_ps(y + YK_TILE_ROWS * t + LANES * h, acc[h][t]);
    }
}

/* Q2_K and Q3_K. A half block's sums fit 16 bits, so a product of 16-bit numbers (AVX2: that widens pair sums) applies its scale, and the block is one f32 term. Minima
 * meet the two sums of the activations likewise. */
INLINE void step_two(const form *f, const step *s)
{
    const yk_type type = f->type;
    const int n = f->n;
    const group *a = s->a;
    const bool mins = yk_tile_has_min(type);
    const uint32_t b0 = s->col / 32;
    const yk_tile g = yk_tile_of(type, YK_TILE_COLS);
    start st;
    __m256 acc[2][INTS], m[2][INTS];
    start_from(type, n, a, b0, 8, &st);
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++)
#pragma GCC unroll 4
        for (int t = 0; t < n; t++)
            acc[h][t] = m[h][t] = _mm256_setzero_ps();
#pragma GCC unroll 1
    for (uint32_t b = 0; b < 8; b++) {
        __m256i all[2][INTS];
        if (__builtin_expect(s->near && !f->ready, 0))
            prefetch_apart(s, s->w + b * block_bytes(type), block_bytes(type));
#pragma GCC unroll 2
        for (int part = 0; part < 2; part++) {
            __m256i sum[2][INTS];
#pragma GCC unroll 4
            for (int j = 4 * part; j < 4 * part + 4; j++) {
                __m256i c[2];
                if (s->fetch && !f->ready)
                    prefetch_rows(s->w + b * block_bytes(type), block_bytes(type), true, j, 8);
#pragma GCC unroll 2
                for (int h = 0; h < 2; h++)
                    c[h] = codes(f, s, &g, b, j, h);
#pragma GCC unroll 4
                for (int t = 0; t < n; t++) {
                    const __m256i v = four(a->q[t] + s->col + 32 * b + 4 * j);
#pragma GCC unroll 2
                    for (int h = 0; h < 2; h++) {
                        if (j % 4)
                            sum[h][t] = add_two(sum[h][t], c[h], v);
                        else
                            sum[h][t] = begin_two(mins, mins ? 0 : st.off[t][2 * (int)b + part], c[h], v);
                    }
                }
            }
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                const __m256i sc = scale_pairs(f, s, &g, b, part, h);
#pragma GCC unroll 4
                for (int t = 0; t < n; t++)
                    all[h][t] = part ? scale_two(all[h][t], sum[h][t], sc) : _mm256_madd_epi16(sum[h][t], sc);
            }
        }
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const __m256i mn = mins ? min_pairs(f, s, &g, b, h) : _mm256_setzero_si256();
#pragma GCC unroll 4
            for (int t = 0; t < n; t++) {
                const __m256 scale = _mm256_broadcast_ss(a->scale[t] + b0 + b);
                acc[h][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(all[h][t]), scale, acc[h][t]);
                if (mins) {
                    const __m256i sums = four((const int8_t *)(a->sum[t] + 2 * (size_t)(b0 + b)));
                    m[h][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(mn, sums)), scale, m[h][t]);
                }
            }
        }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++)
        finish(f, s, &g, h, acc[h], m[h]);
}

/* The even or odd one of two columns, of 8 rows. */
INLINE __m256 column(yk_type type, const uint8_t *w, int odd, int h)
{
    if (type == YK_TYPE_F32)
        return _mm256_load_ps((const float *)(const void *)(w + 64 * odd + 32 * h));
    if (type == YK_TYPE_F16)
        return halves(w + 32 * odd + 16 * h);
    const __m256i even = _mm256_sll_epi32(load(w + 32 * h), _mm_cvtsi32_si128(odd ? 0 : 16));
    return _mm256_castsi256_ps(_mm256_and_si256(even, _mm256_set1_epi32((int)0xffff0000u)));
}

/* sum[half][token] += one column x activations. */
INLINE void add_column(const form *f, const uint8_t *w, int odd, const float *const *x, size_t k, __m256 (*sum)[FLOATS])
{
    const __m256 v[2] = {column(f->type, w, odd, 0), column(f->type, w, odd, 1)};
#pragma GCC unroll 6
    for (int t = 0; t < f->n; t++) {
        const __m256 a = _mm256_broadcast_ss(x[t] + k + odd);
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++)
            sum[h][t] = _mm256_fmadd_ps(v[h], a, sum[h][t]);
    }
}

/* F32, F16, BF16: one column of 16 rows meets one broadcast activation; even and odd columns are summed apart. From four tokens on they are taken one after
 * the other, because the sums of both do not fit the registers. */
INLINE void step_float(const form *f, const step *s)
{
    const int n = f->n;
    const uint32_t bytes = f->type == YK_TYPE_F32 ? 128 : 64; /* of two columns */
    const float *x[FLOATS];
    __m256 all[2][2][FLOATS]; /* [even, odd][half][token] */
#pragma GCC unroll 6
    for (int t = 0; t < n; t++)
        x[t] = s->a->x[t] + s->col;
    if (n <= 3) {
#pragma GCC unroll 3
        for (int t = 0; t < n; t++)
            all[0][0][t] = all[0][1][t] = all[1][0][t] = all[1][1][t] = _mm256_setzero_ps();
        for (size_t k = 0; k < s->n_cols; k += 2) {
            const uint8_t *w = s->w + k / 2 * bytes;
            if (s->fetch)
                prefetch_rows(w, bytes, false, 0, 1);
            else if (s->near)
                prefetch_apart(s, w, bytes);
            add_column(f, w, 0, x, k, all[0]);
            if (k + 1 < s->n_cols)
                add_column(f, w, 1, x, k, all[1]);
        }
    } else {
#pragma GCC unroll 1
        for (int odd = 0; odd < 2; odd++) {
            __m256 sum[2][FLOATS];
            const uint8_t *w = s->w;
#pragma GCC unroll 6
            for (int t = 0; t < n; t++)
                sum[0][t] = sum[1][t] = _mm256_setzero_ps();
            for (size_t k = 0; k + (size_t)odd < s->n_cols; k += 2, w += bytes) {
                if (s->fetch && !odd)
                    prefetch_rows(w, bytes, false, 0, 1);
                else if (s->near && !odd)
                    prefetch_apart(s, w, bytes);
                add_column(f, w, odd, x, k, sum);
            }
#pragma GCC unroll 6
            for (int t = 0; t < n; t++)
                all[odd][0][t] = sum[0][t], all[odd][1][t] = sum[1][t];
        }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++)
#pragma GCC unroll 6
        for (int t = 0; t < n; t++) {
            float *at = s->y + YK_TILE_ROWS * (s->a->at + (uint32_t)t) + LANES * h;
            _mm256_store_ps(at, _mm256_add_ps(_mm256_load_ps(at), _mm256_add_ps(all[0][h][t], all[1][h][t])));
        }
}

/* The steps of a type: direct[n] for n tokens and a tile as it lies in memory, ready[n] for an expanded one. */
typedef struct steps {
    yk_type type;
    uint32_t most; /* tokens of a step */
    step_fn direct[FLOATS + 1], ready[INTS + 1], expand;
} steps;

#define STEP(name, form_fn, type, n, is_ready)                                                                                 \
    static void name(const step *s)                                                                                            \
    {                                                                                                                          \
        form_fn(&(form){type, n, is_ready}, s);                                                                                \
    }

#define STEPS(name, form_fn, type)                                                                                             \
    STEP(name##_1, form_fn, type, 1, false)                                                                                    \
    STEP(name##_2, form_fn, type, 2, false)                                                                                    \
    STEP(name##_3, form_fn, type, 3, false)                                                                                    \
    STEP(name##_4, form_fn, type, 4, false)                                                                                    \
    STEP(name##_ready_1, form_fn, type, 1, true)                                                                               \
    STEP(name##_ready_2, form_fn, type, 2, true)                                                                               \
    STEP(name##_ready_3, form_fn, type, 3, true)                                                                               \
    STEP(name##_ready_4, form_fn, type, 4, true)                                                                               \
    static void name##_expand(const step *s)                                                                                   \
    {                                                                                                                          \
        expand(type, s);                                                                                                       \
    }                                                                                                                          \
    static const steps name = {type,                                                                                           \
                               INTS,                                                                                           \
                               {NULL, name##_1, name##_2, name##_3, name##_4},                                                 \
                               {NULL, name##_ready_1, name##_ready_2, name##_ready_3, name##_ready_4},                         \
                               name##_expand};

#define FLOAT_STEPS(name, type)                                                                                                \
    STEP(name##_1, step_float, type, 1, false)                                                                                 \
    STEP(name##_2, step_float, type, 2, false)                                                                                 \
    STEP(name##_3, step_float, type, 3, false)                                                                                 \
    STEP(name##_4, step_float, type, 4, false)                                                                                 \
    STEP(name##_5, step_float, type, 5, false)                                                                                 \
    STEP(name##_6, step_float, type, 6, false)                                                                                 \
    static const steps name = {type, FLOATS, {NULL, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6}, {NULL}, NULL};

#if !YK_PACKED_VNNI /* else float types are those of AVX2 */
FLOAT_STEPS(f32, YK_TYPE_F32)
FLOAT_STEPS(f16, YK_TYPE_F16)
FLOAT_STEPS(bf16, YK_TYPE_BF16)
#endif
STEPS(q4_0, step_low, YK_TYPE_Q4_0)
STEPS(q4_1, step_low, YK_TYPE_Q4_1)
STEPS(q5_0, step_low, YK_TYPE_Q5_0)
STEPS(q5_1, step_low, YK_TYPE_Q5_1)
STEPS(q8_0, step_low, YK_TYPE_Q8_0)
STEPS(q2_k, step_two, YK_TYPE_Q2_K)
STEPS(q3_k, step_two, YK_TYPE_Q3_K)
STEPS(q4_k, step_low, YK_TYPE_Q4_K)
STEPS(q5_k, step_low, YK_TYPE_Q5_K)
STEPS(q6_k, step_low, YK_TYPE_Q6_K)
STEPS(iq4_nl, step_low, YK_TYPE_IQ4_NL)
STEPS(iq4_xs, step_low, YK_TYPE_IQ4_XS)
STEPS(mxfp4, step_low, YK_TYPE_MXFP4)

/* ---- the walk over tokens, panels and tiles ---- */

static uint32_t make_groups(const yk_matmul_packed *m, const steps *st, uint32_t t0, uint32_t n, group *groups)
{
    const bool quantised = yk_type_get((uint32_t)st->type)->quantised;
    uint32_t n_groups = 0;
    for (uint32_t at = 0; at < n; at += groups[n_groups++].n) {
        group *g = groups + n_groups;
        *g = (group){.at = at, .n = n - at < st->most ? n - at : st->most};
        for (uint32_t i = 0; i < g->n; i++) {
            const uint32_t t = t0 + at + i;
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

/* All groups times one panel, added to y. */
static void panel_groups(const yk_matmul_packed *m, const steps *st, const uint8_t *w, expanded *e, const group *groups,
                         uint32_t n_groups, float *y)
{
    for (uint32_t c = 0; c < m->n_cols; c += YK_TILE_COLS) {
        const uint32_t cols = m->n_cols - c < YK_TILE_COLS ? m->n_cols - c : YK_TILE_COLS;
        const bool ready = st->expand && n_groups > (yk_tile_is_q2(st->type) ? 1u : 2u);
        step s = {w, e, cols, c, groups, y, !ready, 0, 0};
        if (ready)
            st->expand(&s);
        for (; s.a < groups + n_groups; s.a++, s.fetch = false)
            (ready ? st->ready : st->direct)[s.a->n](&s);
        w += m->tile_stride ? m->tile_stride : yk_tile_of(st->type, cols).bytes;
    }
}

/* Rows of one panel, for n tokens from t0 on. */
static void store_panel(const yk_matmul_packed *m, uint32_t r, uint32_t t0, uint32_t n, const float *y)
{
    const uint32_t rows = m->n_rows - r < YK_TILE_ROWS ? m->n_rows - r : YK_TILE_ROWS;
    float *to = m->y + t0 * m->y_stride + r;
    for (uint32_t t = 0; t < n; t++, to += m->y_stride, y += YK_TILE_ROWS) {
        if (rows == YK_TILE_ROWS)
            memcpy(to, y, YK_TILE_ROWS * sizeof *y);
        else
            memcpy(to, y, rows * sizeof *y);
    }
}

/* The same for one group when the tiles of a panel lie far apart but panels follow each other: all panels of a chunk meet a column of tiles before the
 * next one, which is fetched meanwhile. */
static void columns_first(const yk_matmul_packed *m, const steps *st, const group *g)
{
    _Alignas(64) float sums[CHUNK][FLOATS * YK_TILE_ROWS];
    for (uint32_t r0 = 0; r0 < m->n_rows; r0 += CHUNK * YK_TILE_ROWS) {
        const uint32_t rows = m->n_rows - r0 < CHUNK * YK_TILE_ROWS ? m->n_rows - r0 : CHUNK * YK_TILE_ROWS;
        const uint32_t n_panels = (rows + YK_TILE_ROWS - 1) / YK_TILE_ROWS;
        const uint8_t *column = m->w + r0 / YK_TILE_ROWS * m->panel_bytes;
        memset(sums, 0, n_panels * sizeof sums[0]);
        for (uint32_t c = 0; c < m->n_cols; c += YK_TILE_COLS, column += m->tile_stride) {
            const uint32_t cols = m->n_cols - c < YK_TILE_COLS ? m->n_cols - c : YK_TILE_COLS;
            for (uint32_t p = 0; p < n_panels; p++) {
                const uint8_t *w = column + p * m->panel_bytes;
                const int64_t near = yk_column_ahead(m, c, 1, n_panels), far = yk_column_ahead(m, c, AHEAD, n_panels);
                st->direct[g->n](&(step){w, NULL, cols, c, g, sums[p], false, near, far});
            }
        }
        for (uint32_t p = 0; p < n_panels; p++)
            store_panel(m, r0 + p * YK_TILE_ROWS, 0, g->n, sums[p]);
    }
}

static inline void matmul_packed(const yk_matmul_packed *m, const steps *st)
{
    group groups[PASS / INTS];
    expanded e;
    _Alignas(64) float sums[PASS * YK_TILE_ROWS];
    for (uint32_t t0 = 0; t0 < m->n_tokens; t0 += PASS) {
        const uint32_t n = m->n_tokens - t0 < PASS ? m->n_tokens - t0 : PASS;
        const uint32_t n_groups = make_groups(m, st, t0, n, groups);
        if (m->tile_stride && n_groups == 1 && m->n_tokens == n) {
            columns_first(m, st, groups);
            return;
        }
        for (uint32_t r = 0; r < m->n_rows; r += YK_TILE_ROWS) {
            memset(sums, 0, n * YK_TILE_ROWS * sizeof *sums);
            panel_groups(m, st, m->w + r / YK_TILE_ROWS * m->panel_bytes, &e, groups, n_groups, sums);
            store_panel(m, r, t0, n, sums);
        }
    }
}

#endif
