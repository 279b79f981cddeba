/* packed.c - packed weights times many tokens by AMX, with the same bits as cpu/avx512/packed.c. Layout:
 * docs/kernels/layout.md; contract and order of sums: docs/kernels/packed.md; why it is built like this:
 * docs/kernels/prefill.md.
 *
 * Codes and int8 activations are exact in bf16, and so is every sum of their products in f32 (integers below 2^24):
 * tdpbf16ps gives the exact integer of a block already as a float, at the price of a tdpbssd of 32 columns and without its
 * conversion. A product of 16 tokens x 16 rows x 32 columns (16 columns where half blocks have scales) leaves through
 * memory, where AVX-512 scales and adds it in the order of the contract. Both run at the same time: while the blocks of
 * one unit (16 tokens x 16 rows x 256 columns) are scaled, the products of the next unit are made. */
#include <immintrin.h>
#include <string.h>

#include "cpu/ops.h"
#include "cpu/tile.h"

/* The rest of this file, and nothing else, is compiled for this level; ops.c asks the CPU before it uses it. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-bf16"))),                \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-bf16")
#endif

#include "cpu/avx512/scales.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    GROUP = 16, /* tokens of a product */
    PASS = 128, /* tokens that meet an expanded tile: expanding costs as much as about half a group */
    CHUNK = 16, /* panels whose sums are kept while the activations of a tile are in use */
    FEW_ROWS = 64,
    BLOCK = 512, /* bf16 of a block: 16 rows or tokens x 32 columns */
    REST = 8,    /* fewer tokens than this in the last group are left to the level below */
};

/* A tile, ready for products. */
typedef struct expanded {
    _Alignas(64) uint16_t b[8 * BLOCK]; /* [block][16 pairs of columns][16 rows][2] */
    float scale[16][YK_TILE_ROWS];      /* [block or half block][row]; types with d of a tile: the 8-bit scale alone */
    union {
        float min[8][YK_TILE_ROWS];        /* the minimum, of K types the 8-bit one; */
        int32_t min_pair[8][YK_TILE_ROWS]; /* Q2_K: those of both half blocks as 16-bit numbers */
    };
    float d[YK_TILE_ROWS], dmin[YK_TILE_ROWS];
} expanded;

/* Types with minima: what the minimum of a block meets. */
typedef union sums {
    float sum[8];    /* [block]: scale x sum of the activations */
    int32_t pair[8]; /* Q2_K: sums of both half blocks as 16-bit numbers */
} sums;

/* Scratch of a call. */
typedef struct scratch {
    _Alignas(4096) float c[16][GROUP * YK_TILE_ROWS]; /* products of a unit: [block or half block][token][row] */
    expanded e[2];
    uint16_t a[PASS / GROUP][8 * BLOCK]; /* activations of a tile: [block][token][32 columns in the order of b] */
    float scale[PASS][8];                /* their scales: [token][block] */
    sums sum[PASS];
    _Alignas(64) float y[CHUNK][PASS * YK_TILE_ROWS]; /* sums: [panel][token][row] */
} scratch;

typedef struct tile_config {
    uint8_t palette, start_row, zero[14];
    uint16_t col_bytes[16];
    uint8_t rows[16];
} tile_config;

/* Scales of half blocks that meet products as f32: a product is 16 columns wide. */
INLINE bool has_halves(yk_type type)
{
    return type == YK_TYPE_Q6_K;
}

/* ---- expanding weights to bf16 ---- */

/* bf16 of the integers first .. first + 31. */
INLINE __m512i bf16_table(int first)
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512 even = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(lane, 1), _mm512_set1_epi32(first)));
    const __m512 odd = _mm512_add_ps(even, _mm512_set1_ps(1));
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(_mm512_castps_si512(even), 16), _mm512_castps_si512(odd));
}

/* bf16 of 16 integers, twice. */
INLINE __m512i bf16_values(__m128i bytes)
{
    const __m512 f = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    const __m512i t = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(f), 16)));
    return _mm512_shuffle_i64x2(t, t, 0x44);
}

/* The tables of a type: a code's bf16 is entry `code` of 32 or 64. Four bits: the same 16 twice, so that bit 4 of the
 * index may be anything. */
typedef struct tables {
    __m512i low, high;
} tables;

INLINE tables tables_of(yk_type type)
{
    if (type == YK_TYPE_Q2_K) /* code times scale, at most 45 */
        return (tables){bf16_table(0), bf16_table(32)};
    if (type == YK_TYPE_Q6_K)
        return (tables){bf16_table(-32), bf16_table(0)};
    if (type == YK_TYPE_IQ4_NL || type == YK_TYPE_IQ4_XS)
        return (tables){
            .low = bf16_values(_mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))};
    if (type == YK_TYPE_MXFP4) /* twice the value */
        return (tables){.low = bf16_values(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12))};
    const __m512i t = bf16_table(-yk_tile_offset(type));
    return (tables){.low = yk_tile_has_fifth(type) ? t : _mm512_shuffle_i64x2(t, t, 0x44)};
}

/* Columns 0 and 2 of a group of four to out, 1 and 3 four rows of b behind. Bits of the 16-bit lanes above the code
 * may be anything. */
INLINE void put_codes(yk_type type, const tables *t, __m512i even, __m512i odd, uint16_t *out)
{
    if (type == YK_TYPE_Q6_K) {
        _mm512_store_si512(out, _mm512_permutex2var_epi16(t->low, even, t->high));
        _mm512_store_si512(out + 128, _mm512_permutex2var_epi16(t->low, odd, t->high));
    } else {
        _mm512_store_si512(out, _mm512_permutexvar_epi16(even, t->low));
        _mm512_store_si512(out + 128, _mm512_permutexvar_epi16(odd, t->low));
    }
}

/* (h shifted so that bit or bits `from` come to `to`) & mask | low */
INLINE __m512i put_high(__m512i low, __m512i h, int from, int to, __m512i mask)
{
    const __m512i s = from < to   ? _mm512_slli_epi16(h, (unsigned)(to - from))
                      : from > to ? _mm512_srli_epi16(h, (unsigned)(from - to))
                                  : h;
    return _mm512_ternarylogic_epi32(s, mask, low, 0xea);
}

/* Signed bytes, 4 columns of 16 rows: bytes as the low bits of 2^23 + 128 + byte, less that number, and of the f32
 * the upper half. */
INLINE void put_bytes(__m512i v, uint16_t *out)
{
    const __m512i magic = _mm512_set1_epi32(0x4b000000);
    const __m512 bias = _mm512_set1_ps(0x1p23f + 128);
    __m512 f[4];
    v = _mm512_xor_si512(v, _mm512_set1_epi8((char)0x80));
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        const __m512i at = _mm512_broadcast_i32x4(_mm_set_epi32(12 + k, 8 + k, 4 + k, k));
        f[k] = _mm512_sub_ps(_mm512_castsi512_ps(_mm512_mask_shuffle_epi8(magic, 0x1111111111111111, v, at)), bias);
    }
    const __m512i upper = _mm512_broadcast_i32x4(_mm_set_epi32(0x0f0e, 0x0b0a, 0x0706, 0x0302));
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++)
        _mm512_store_si512(out + 128 * k, _mm512_mask_shuffle_epi8(_mm512_castps_si512(f[k + 2]), 0x3333333333333333,
                                                                   _mm512_castps_si512(f[k]), upper));
}

/* Pair of columns p of a block: 0..3 columns 0, 2 of groups 0..3, 4..7 columns 1, 3 of the same, 8..15 the same of
 * groups 4..7. */
INLINE void expand_codes(yk_type type, const uint8_t *w, const yk_tile *g, uint32_t blocks, uint16_t *out)
{
    const tables t = tables_of(type);
    const __m512i low = _mm512_set1_epi8(15);
    for (uint32_t b = 0; b < blocks; b++, out += BLOCK) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            if (type == YK_TYPE_Q8_0) {
                put_bytes(_mm512_load_si512(w + 512 * b + 64 * j), out + 32 * j);
                put_bytes(_mm512_load_si512(w + 512 * b + 64 * j + 256), out + 32 * j + 256);
                continue;
            }
            __m512i u = _mm512_load_si512(w + 256 * b + 64 * j), v = _mm512_srli_epi16(u, 4);
            if (yk_tile_has_fifth(type)) {
                const __m512i h = _mm512_load_si512(w + g->high + 64 * b), bit = _mm512_set1_epi8(0x10);
                u = put_high(_mm512_and_si512(u, low), h, j, 4, bit);
                v = put_high(_mm512_and_si512(v, low), h, j + 4, 4, bit);
            }
            if (type == YK_TYPE_Q6_K) {
                const uint8_t *h = w + g->high + 128 * b;
                const __m512i two = _mm512_set1_epi8(0x30);
                u = put_high(_mm512_and_si512(u, low), _mm512_load_si512(h), 2 * j, 4, two);
                v = put_high(_mm512_and_si512(v, low), _mm512_load_si512(h + 64), 2 * j, 4, two);
            }
            put_codes(type, &t, u, _mm512_srli_epi16(u, 8), out + 32 * j);
            put_codes(type, &t, v, _mm512_srli_epi16(v, 8), out + 32 * j + 256);
        }
    }
}

/* Lines that the next tile to be expanded will need. */
INLINE void prefetch(const uint8_t *p, uint32_t bytes)
{
    for (uint32_t l = 0; l < bytes; l += 64)
        _mm_prefetch((const char *)p + l, _MM_HINT_T0);
}

/* Q2_K and Q3_K: code (with its offset) times scale is an integer of at most 128 in magnitude, exact in bf16, so that a
 * product is 32 columns wide and its sum (below 2^19) meets nothing but the activation's scale. */
INLINE __m512i scaled(yk_type type, const tables *t, __m512i code, __m512i scale)
{
    __m512i v = _mm512_mullo_epi16(code, scale);
    if (type == YK_TYPE_Q2_K)
        return _mm512_permutex2var_epi16(t->low, v, t->high);
    /* 2^14 + value as the low bits of a number of 2^23, less that number; of the f32 the upper half */
    const __m512i magic = _mm512_set1_epi32(0x4b000000), lower = _mm512_set1_epi32(0xffff);
    const __m512 bias = _mm512_set1_ps(0x1p23f + 0x1p14f);
    v = _mm512_add_epi16(v, _mm512_sub_epi16(_mm512_set1_epi16(0x4000), _mm512_slli_epi16(scale, 2)));
    const __m512 lo = _mm512_sub_ps(_mm512_castsi512_ps(_mm512_ternarylogic_epi32(v, lower, magic, 0xea)), bias);
    const __m512 hi = _mm512_sub_ps(_mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32(v, 16), magic)), bias);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(_mm512_castps_si512(lo), 16), _mm512_castps_si512(hi));
}

INLINE void expand_scaled(yk_type type, const uint8_t *w, const yk_tile *g, expanded *e)
{
    const tables t = tables_of(type);
    const __m512i two = _mm512_set1_epi16(3), third = _mm512_set1_epi16(4);
    for (uint32_t b = 0; b < 8; b++) {
        __m512i min = _mm512_setzero_si512();
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const __m512i c = _mm512_load_si512(w + 128 * b + 64 * h);
            const __m128i one = _mm_load_si128((const __m128i *)(const void *)(w + g->sub + 32 * b + 16 * h));
            uint16_t *out = e->b + BLOCK * b + 256 * h;
            __m512i scale = _mm512_cvtepi8_epi32(one);
            if (type == YK_TYPE_Q2_K) { /* scale | minimum << 4 */
                const __m512i m = _mm512_and_si512(_mm512_srli_epi32(scale, 4), _mm512_set1_epi32(15));
                min = _mm512_or_si512(min, h ? _mm512_slli_epi32(m, 16) : m);
                scale = _mm512_and_si512(scale, _mm512_set1_epi32(15));
            }
            scale = _mm512_mask_blend_epi16(0xaaaaaaaa, scale, _mm512_slli_epi32(scale, 16));
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                __m512i u = _mm512_and_si512(_mm512_srli_epi16(c, 2 * (unsigned)j), two);
                __m512i v = _mm512_and_si512(_mm512_srli_epi16(c, 2 * (unsigned)j + 8), two);
                if (type == YK_TYPE_Q3_K) {
                    const __m512i high = _mm512_load_si512(w + g->high + 64 * b);
                    u = put_high(u, high, 4 * h + j, 2, third);
                    v = put_high(v, high, 4 * h + j + 8, 2, third);
                }
                _mm512_store_si512(out + 32 * j, scaled(type, &t, u, scale));
                _mm512_store_si512(out + 32 * j + 128, scaled(type, &t, v, scale));
            }
        }
        _mm512_store_si512(e->min_pair[b], min);
    }
}

INLINE void expand(yk_type type, const uint8_t *w, uint32_t blocks, expanded *e)
{
    const yk_tile g = yk_tile_of(type, 32 * blocks);
    const bool super = yk_tile_has_super(type), mins = yk_tile_has_min(type);
    const int parts = has_halves(type) ? 2 : 1;
    if (super)
        _mm512_store_ps(e->d, yk_avx512_halves(w + g.scale));
    if (super && mins)
        _mm512_store_ps(e->dmin, yk_avx512_halves(w + g.scale + 2 * YK_TILE_ROWS));
    if (yk_tile_is_q2(type)) {
        expand_scaled(type, w, &g, e);
        return;
    }
    expand_codes(type, w, &g, blocks, e->b);
    for (uint32_t b = 0; b < blocks; b++) {
#pragma GCC unroll 2
        for (int h = 0; h < parts; h++)
            _mm512_store_ps(e->scale[parts * b + h], yk_avx512_block_scale(type, w, &g, b, h));
        if (mins)
            _mm512_store_ps(e->min[b], super ? yk_avx512_bytes_u(w + g.sub_min + YK_TILE_ROWS * b)
                                             : yk_avx512_halves(w + g.min + 2 * YK_TILE_ROWS * b));
    }
}

/* ---- activations ---- */

/* 32 int8 to bf16 in the order of the pairs; the same way as put_bytes. */
INLINE void put_activations(const int8_t *q, uint16_t *out)
{
    const __m512i magic = _mm512_set1_epi32(0x4b000000);
    const __m512 bias = _mm512_set1_ps(0x1p23f + 128);
    const __m512i four = _mm512_set_epi32(12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0);
    const __m512i first = _mm512_add_epi32(four, _mm512_set_epi32(1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0));
    const __m512i upper = _mm512_broadcast_i32x4(_mm_set_epi32(0x0f0e, 0x0b0a, 0x0706, 0x0302));
    const __m512i half = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)q));
    const __m512i v = _mm512_xor_si512(_mm512_shuffle_i64x2(half, half, 0x50), _mm512_set1_epi8((char)0x80));
    const __m512i lo = _mm512_mask_shuffle_epi8(magic, 0x1111111111111111, v, first);
    const __m512i hi = _mm512_mask_shuffle_epi8(magic, 0x1111111111111111, v, _mm512_add_epi32(first, _mm512_set1_epi32(2)));
    const __m512 flo = _mm512_sub_ps(_mm512_castsi512_ps(lo), bias), fhi = _mm512_sub_ps(_mm512_castsi512_ps(hi), bias);
    _mm512_store_si512(out,
                       _mm512_mask_shuffle_epi8(_mm512_castps_si512(fhi), 0x3333333333333333, _mm512_castps_si512(flo), upper));
}

/* Activations of tokens t0 .. t0 + n - 1 for the tile that begins at block b0. */
INLINE void take_activations(yk_type type, const yk_matmul_packed *m, uint32_t t0, uint32_t n, uint32_t b0, uint32_t blocks,
                             scratch *s)
{
    const __mmask8 mask = (__mmask8)((1u << blocks) - 1);
    for (uint32_t t = 0; t < n; t++) {
        const size_t at = (m->rows ? m->rows[t0 + t] : t0 + t) * (size_t)m->xq->n_blocks + b0;
        uint16_t *a = s->a[t / GROUP] + 32 * (t % GROUP);
        for (uint32_t b = 0; b < blocks; b++)
            put_activations(m->xq->q + 32 * (at + b), a + BLOCK * b);
        const __m256 scale = _mm256_maskz_loadu_ps(mask, m->xq->scale + at);
        _mm256_store_ps(s->scale[t], scale);
        if (!yk_tile_has_min(type))
            continue;
        const __m256i sum = _mm256_maskz_loadu_epi16((__mmask16)((1u << 2 * blocks) - 1), m->xq->sum + 2 * at);
        const __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
        if (type == YK_TYPE_Q2_K)
            _mm256_store_si256((__m256i *)(void *)s->sum[t].pair, sum);
        else
            _mm256_store_ps(s->sum[t].sum, _mm256_mul_ps(whole, scale));
    }
}

/* ---- products ---- */

/* Registers: 0 to 3 results, 4 and 5 tokens, 6 and 7 rows. */
static void configure(bool halves)
{
    tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.rows[i] = (uint8_t)(i >= 6 && halves ? 8 : 16);
        c.col_bytes[i] = (uint16_t)((i == 4 || i == 5) && halves ? 32 : 64);
    }
    __asm__ volatile("" ::"r"(&c) : "memory"); /* gcc 12 believes that only 8 bytes are read */
    _tile_loadconfig(&c);
}

/* 16 tokens x 16 rows into result i. */
INLINE void multiply(int i, const uint16_t *a, const uint16_t *b)
{
    switch (i) { /* the instructions want literals */
    case 0:
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_zero(0);
        _tile_dpbf16ps(0, 4, 6);
        break;
    case 1:
        _tile_loadd(5, a, 64);
        _tile_loadd(7, b, 64);
        _tile_zero(1);
        _tile_dpbf16ps(1, 5, 7);
        break;
    case 2:
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_zero(2);
        _tile_dpbf16ps(2, 4, 6);
        break;
    default:
        _tile_loadd(5, a, 64);
        _tile_loadd(7, b, 64);
        _tile_zero(3);
        _tile_dpbf16ps(3, 5, 7);
    }
}

INLINE void put_result(int i, float *c)
{
    switch (i) {
    case 0:
        _tile_stored(0, c, 64);
        break;
    case 1:
        _tile_stored(1, c, 64);
        break;
    case 2:
        _tile_stored(2, c, 64);
        break;
    default:
        _tile_stored(3, c, 64);
    }
}

/* 16 tokens x one panel x one tile. */
typedef struct unit {
    const uint16_t *a;
    const expanded *e;
    const float (*scale)[8]; /* [token][block] */
    const sums *sum;
    float *y;
} unit;

/* What the products of block b (its half h) add to the sums of unit u. */
INLINE void scale_add(yk_type type, const unit *u, int b, int h, const float *c, __m512 *acc)
{
    const __m512 d = _mm512_load_ps(u->e->scale[has_halves(type) ? 2 * b + h : b]);
#pragma GCC unroll 16
    for (int t = 0; t < GROUP; t++) {
        const __m512 v = _mm512_load_ps(c + YK_TILE_ROWS * t), scale = _mm512_set1_ps(u->scale[t][b]);
        acc[t] = yk_tile_is_q2(type) ? _mm512_fmadd_ps(v, scale, acc[t]) : _mm512_fmadd_ps(_mm512_mul_ps(v, scale), d, acc[t]);
    }
    if (!yk_tile_has_min(type) || yk_tile_has_super(type))
        return;
    const __m512 min = _mm512_load_ps(u->e->min[b]);
#pragma GCC unroll 16
    for (int t = 0; t < GROUP; t++)
        acc[t] = _mm512_fmadd_ps(min, _mm512_set1_ps(u->sum[t].sum[b]), acc[t]);
}

/* Scales the products of unit u (NULL: there is none) and puts those of `next` (NULL: none) in their place. A result
 * is stored two products after its own, when it is surely there: a store that waits keeps everything behind it
 * waiting. */
INLINE void products(yk_type type, uint32_t blocks, const unit *u, const unit *next, float (*c)[GROUP * YK_TILE_ROWS],
                     __m512 *acc)
{
    const int parts = has_halves(type) ? 2 : 1, lag = 2 / parts;
#pragma GCC unroll 10
    for (int b = 0; b < 8 + lag; b++) {
#pragma GCC unroll 2
        for (int h = 0; h < parts; h++)
            if (next && b < 8 && (uint32_t)b < blocks)
                multiply((parts * b + h) % 4, next->a + BLOCK * b + 16 * h, next->e->b + BLOCK * b + 256 * h);
#pragma GCC unroll 2
        for (int h = 0; h < parts; h++)
            if (u && b < 8 && (uint32_t)b < blocks)
                scale_add(type, u, b, h, c[parts * b + h], acc);
#pragma GCC unroll 2
        for (int h = 0; h < parts; h++)
            if (next && b >= lag && (uint32_t)(b - lag) < blocks)
                put_result((parts * (b - lag) + h) % 4, c[parts * (b - lag) + h]);
    }
}

/* acc -= dmin * sum over blocks of (minimum x the token's sum) */
INLINE void subtract_minima(yk_type type, const unit *u, __m512 *acc)
{
    const __m512 dmin = _mm512_load_ps(u->e->dmin);
    __m512 min[8];
    __m512i pair[8];
#pragma GCC unroll 8
    for (int b = 0; b < 8; b++) {
        min[b] = _mm512_load_ps(u->e->min[b]);
        pair[b] = _mm512_load_si512(u->e->min_pair[b]);
    }
#pragma GCC unroll 16
    for (int t = 0; t < GROUP; t++) {
        __m512 m = _mm512_setzero_ps();
#pragma GCC unroll 8
        for (int b = 0; b < 8; b++)
            m = type == YK_TYPE_Q2_K
                    ? _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_madd_epi16(pair[b], _mm512_set1_epi32(u->sum[t].pair[b]))),
                                      _mm512_set1_ps(u->scale[t][b]), m)
                    : _mm512_fmadd_ps(min[b], _mm512_set1_ps(u->sum[t].sum[b]), m);
        acc[t] = _mm512_fnmadd_ps(dmin, m, acc[t]);
    }
}

/* Scales unit u, whose products are in c, and puts those of `next` there. */
INLINE void step(yk_type type, uint32_t blocks, const unit *u, const unit *next, float (*c)[GROUP * YK_TILE_ROWS])
{
    const bool super = yk_tile_has_super(type);
    __m512 acc[GROUP];
#pragma GCC unroll 16
    for (int t = 0; t < GROUP; t++)
        acc[t] = super ? _mm512_setzero_ps() : _mm512_load_ps(u->y + YK_TILE_ROWS * t);
    products(type, blocks, u, next, c, acc);
    if (super) {
        const __m512 d = _mm512_load_ps(u->e->d);
#pragma GCC unroll 16
        for (int t = 0; t < GROUP; t++)
            acc[t] = _mm512_fmadd_ps(d, acc[t], _mm512_load_ps(u->y + YK_TILE_ROWS * t));
    }
    if (super && yk_tile_has_min(type))
        subtract_minima(type, u, acc);
#pragma GCC unroll 16
    for (int t = 0; t < GROUP; t++)
        _mm512_store_ps(u->y + YK_TILE_ROWS * t, acc[t]);
}

INLINE unit unit_of(scratch *s, uint32_t panels, uint32_t i, float (*y)[PASS * YK_TILE_ROWS])
{
    const uint32_t g = i / panels, p = i % panels;
    return (unit){s->a[g], &s->e[p], s->scale + GROUP * g, s->sum + GROUP * g, y[p] + GROUP * YK_TILE_ROWS * g};
}

/* One tile of one panel or two times all groups. */
INLINE void tile_groups(yk_type type, uint32_t blocks, uint32_t panels, uint32_t n_groups, scratch *s,
                        float (*y)[PASS * YK_TILE_ROWS])
{
    const uint32_t n = n_groups * panels;
    unit u = unit_of(s, panels, 0, y);
    products(type, blocks, NULL, &u, s->c, NULL);
    for (uint32_t i = 1; i < n; i++) {
        const unit next = unit_of(s, panels, i, y);
        step(type, blocks, &u, &next, s->c);
        u = next;
    }
    step(type, blocks, &u, NULL, s->c);
}

/* n tokens from t0 on times the panels of a chunk. */
INLINE void chunk(yk_type type, const yk_matmul_packed *m, uint32_t t0, uint32_t n, const uint8_t *w, uint32_t panels,
                  scratch *s)
{
    const uint32_t n_groups = (n + GROUP - 1) / GROUP;
    for (uint32_t p = 0; p < panels; p++)
        memset(s->y[p], 0, (size_t)n_groups * GROUP * YK_TILE_ROWS * sizeof(float));
    for (uint32_t c = 0; c < m->n_cols; c += YK_TILE_COLS) {
        const uint32_t blocks = (m->n_cols - c < YK_TILE_COLS ? m->n_cols - c : YK_TILE_COLS) / 32;
        const uint32_t bytes = yk_tile_of(type, 32 * blocks).bytes;
        take_activations(type, m, t0, n, c / 32, blocks, s);
        for (uint32_t p = 0; p < panels; p += 2) {
            const uint32_t two = panels - p < 2 ? 1 : 2;
            for (uint32_t i = 0; i < two; i++) {
                if (p + i + 2 < panels)
                    prefetch(w + (p + i + 2) * m->panel_bytes, bytes);
                expand(type, w + (p + i) * m->panel_bytes, blocks, &s->e[i]);
            }
            /* What tile loads read is written by then; the compiler does not know that they read. */
            __asm__ volatile("" ::: "memory");
            if (blocks == 8)
                tile_groups(type, 8, two, n_groups, s, s->y + p);
            else
                tile_groups(type, blocks, two, n_groups, s, s->y + p);
        }
        w += m->tile_stride ? m->tile_stride : bytes;
    }
}

INLINE void matmul_packed(const yk_matmul_packed *m, yk_type type)
{
    scratch s;
    memset(s.a, 0, sizeof s.a); /* tokens behind the last: zeros */
    memset(s.scale, 0, sizeof s.scale);
    memset(s.sum, 0, sizeof s.sum);
    configure(has_halves(type));
    for (uint32_t t0 = 0; t0 < m->n_tokens; t0 += PASS) {
        const uint32_t n = m->n_tokens - t0 < PASS ? m->n_tokens - t0 : PASS;
        for (uint32_t r = 0; r < m->n_rows; r += CHUNK * YK_TILE_ROWS) {
            const uint32_t rows = m->n_rows - r < CHUNK * YK_TILE_ROWS ? m->n_rows - r : CHUNK * YK_TILE_ROWS;
            const uint32_t panels = (rows + YK_TILE_ROWS - 1) / YK_TILE_ROWS;
            chunk(type, m, t0, n, m->w + r / YK_TILE_ROWS * m->panel_bytes, panels, &s);
            for (uint32_t t = 0; t < n; t++)
                for (uint32_t p = 0; p < panels; p++) {
                    const uint32_t left = rows - YK_TILE_ROWS * p;
                    const __mmask16 mask = (__mmask16)(left < YK_TILE_ROWS ? (1u << left) - 1 : 0xffff);
                    _mm512_mask_storeu_ps(m->y + (t0 + t) * m->y_stride + r + YK_TILE_ROWS * p, mask,
                                          _mm512_load_ps(s.y[p] + YK_TILE_ROWS * t));
                }
        }
    }
    _tile_release();
}

/* ---- slots ---- */

static void (*below[YK_TYPE_LIMIT])(const yk_matmul_packed *m); /* of the next lower level; written once, before any call */

/* Tokens [at, at + n) of a call. */
static yk_matmul_packed part_of(const yk_matmul_packed *m, const yk_q8 *xq, uint32_t at, uint32_t n)
{
    yk_matmul_packed part = *m;
    part.n_tokens = n;
    part.y += at * m->y_stride;
    if (m->rows)
        part.rows += at;
    part.xq = xq;
    return part;
}

/* Groups of 16 tokens by AMX; what is left goes below when it is not worth a group, and all of it when there are
 * fewer tokens than `least` or so few rows that converting the activations would cost more than it saves (measured:
 * docs/SPEED.md). */
static void divide(const yk_matmul_packed *m, yk_type type, uint32_t least, void (*tokens)(const yk_matmul_packed *m))
{
    if (m->n_tokens < least || m->n_rows < FEW_ROWS) {
        below[type](m);
        return;
    }
    const uint32_t rest = m->n_tokens % GROUP, many = rest < REST ? m->n_tokens - rest : m->n_tokens;
    yk_q8 xq = *m->xq;
    const yk_matmul_packed first = part_of(m, &xq, 0, many);
    tokens(&first);
    if (many == m->n_tokens)
        return;
    if (!m->rows) {
        const size_t blocks = many * (size_t)xq.n_blocks;
        xq.q += 32 * blocks, xq.scale += blocks, xq.sum += 2 * blocks;
    }
    const yk_matmul_packed last = part_of(m, &xq, many, m->n_tokens - many);
    below[type](&last);
}

#define SLOT(name, type, least)                                                                                                \
    static void tokens_##name(const yk_matmul_packed *m)                                                                       \
    {                                                                                                                          \
        matmul_packed(m, type);                                                                                                \
    }                                                                                                                          \
    static void matmul_packed_##name##_q8_amx(const yk_matmul_packed *m)                                                       \
    {                                                                                                                          \
        divide(m, type, least, tokens_##name);                                                                                 \
    }

SLOT(q4_0, YK_TYPE_Q4_0, 16)
SLOT(q4_1, YK_TYPE_Q4_1, 16)
SLOT(q5_0, YK_TYPE_Q5_0, 16)
SLOT(q5_1, YK_TYPE_Q5_1, 16)
SLOT(q8_0, YK_TYPE_Q8_0, 32)
SLOT(q2_k, YK_TYPE_Q2_K, 16)
SLOT(q3_k, YK_TYPE_Q3_K, 32)
SLOT(q4_k, YK_TYPE_Q4_K, 16)
SLOT(q5_k, YK_TYPE_Q5_K, 16)
SLOT(q6_k, YK_TYPE_Q6_K, 32)
SLOT(iq4_nl, YK_TYPE_IQ4_NL, 16)
SLOT(iq4_xs, YK_TYPE_IQ4_XS, 16)
SLOT(mxfp4, YK_TYPE_MXFP4, 16)

void yk_ops_fill_amx(yk_ops *ops)
{
    memcpy(below, ops->matmul_packed, sizeof below);
    ops->matmul_packed[YK_TYPE_Q4_0] = matmul_packed_q4_0_q8_amx;
    ops->matmul_packed[YK_TYPE_Q4_1] = matmul_packed_q4_1_q8_amx;
    ops->matmul_packed[YK_TYPE_Q5_0] = matmul_packed_q5_0_q8_amx;
    ops->matmul_packed[YK_TYPE_Q5_1] = matmul_packed_q5_1_q8_amx;
    ops->matmul_packed[YK_TYPE_Q8_0] = matmul_packed_q8_0_q8_amx;
    ops->matmul_packed[YK_TYPE_Q2_K] = matmul_packed_q2_k_q8_amx;
    ops->matmul_packed[YK_TYPE_Q3_K] = matmul_packed_q3_k_q8_amx;
    ops->matmul_packed[YK_TYPE_Q4_K] = matmul_packed_q4_k_q8_amx;
    ops->matmul_packed[YK_TYPE_Q5_K] = matmul_packed_q5_k_q8_amx;
    ops->matmul_packed[YK_TYPE_Q6_K] = matmul_packed_q6_k_q8_amx;
    ops->matmul_packed[YK_TYPE_IQ4_NL] = matmul_packed_iq4_nl_q8_amx;
    ops->matmul_packed[YK_TYPE_IQ4_XS] = matmul_packed_iq4_xs_q8_amx;
    ops->matmul_packed[YK_TYPE_MXFP4] = matmul_packed_mxfp4_q8_amx;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
