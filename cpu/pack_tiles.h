/* pack_tiles.h - a tile of each type, from the file's layout and back: docs/kernels/layout.md. Included once by each level, which says how many pieces of
 * 16 bytes its vectors have: YK_PACK_LANES 1 (when not defined), 2 (needs immintrin.h and AVX2) or 4 (AVX-512 BW).
 *
 * The unit that moves is a line: 4 bytes of each of 16 rows, 64 bytes of the tile. 16 bytes of 16 rows in the file are four lines; turning
 * them is all that 8-bit codes need, the other types then exchange bits between lines, inside the bytes, so nothing here depends on the byte
 * order of the machine. Lines are turned in pieces of 16 bytes; a wider vector does the same to two or four pieces. Every exchange works both
 * ways: the same function packs and unpacks. */
#ifndef YK_CPU_PACK_TILES_H
#define YK_CPU_PACK_TILES_H

#include <string.h>

#include "cpu/pack.h"
#include "cpu/tile.h"

#ifndef YK_PACK_LANES
#define YK_PACK_LANES 1 /* 16 bytes is what every 64-bit CPU has */
#endif

/* 16 rows of n_cols columns at f in the file, row_bytes apart, to tile t, which is 64-byte aligned. */
typedef void (*yk_pack_tile)(const uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols);

/* What a level has. */
typedef struct yk_pack_level {
    yk_pack_tile tile[YK_TYPE_LIMIT];
    /* n bytes past the caches, a multiple of 64; both ends 64-byte aligned. */
    void (*leave)(uint8_t *out, const uint8_t *tile, uint32_t n);
} yk_pack_level;

#ifdef YK_HAVE_AVX2
extern const yk_pack_level yk_pack_avx2;
#endif
#ifdef YK_HAVE_AVX512
extern const yk_pack_level yk_pack_avx512;
#endif

#define INLINE static inline __attribute__((always_inline))

typedef uint32_t words __attribute__((vector_size(16)));
typedef uint16_t halves __attribute__((vector_size(16)));
typedef uint8_t bytes __attribute__((vector_size(16)));

/* YK_PACK_LANES pieces of 16 bytes, of rows that lie 4 apart; everything that is done to lines is done inside the pieces. */
typedef uint32_t wide __attribute__((vector_size(16 * YK_PACK_LANES)));
typedef uint64_t wide_pairs __attribute__((vector_size(16 * YK_PACK_LANES)));

enum { LINE = 4 * YK_TILE_ROWS, VECTORS = 4 / YK_PACK_LANES };

/* 4 bytes of 16 rows. */
typedef struct line {
    wide v[VECTORS];
} line;

/* The four bytes apart: [4][16 rows]. */
typedef struct planes {
    words v[4];
} planes;

INLINE words load(const uint8_t *p)
{
    words v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(uint8_t *p, words v)
{
    memcpy(p, &v, sizeof v);
}

INLINE wide all(uint32_t v)
{
    return (wide){0} + v;
}

/* ---- turning: rows of the file to lines of the tile ---- */

#if YK_PACK_LANES == 1
#define PIECES(m) m(0)
#elif YK_PACK_LANES == 2
#define PIECES(m) m(0), m(1)
#else
#define PIECES(m) m(0), m(1), m(2), m(3)
#endif
#define LOW_WORDS(q)  4 * (q), 4 * (q) + 4 * YK_PACK_LANES, 4 * (q) + 1, 4 * (q) + 1 + 4 * YK_PACK_LANES
#define HIGH_WORDS(q) 4 * (q) + 2, 4 * (q) + 2 + 4 * YK_PACK_LANES, 4 * (q) + 3, 4 * (q) + 3 + 4 * YK_PACK_LANES
#define LOW_PAIRS(q)  2 * (q), 2 * (q) + 2 * YK_PACK_LANES
#define HIGH_PAIRS(q) 2 * (q) + 1, 2 * (q) + 1 + 2 * YK_PACK_LANES

/* In each piece: the 4 x 4 words of v, rows for columns. */
INLINE void turn_words(wide *v)
{
    const wide_pairs a = (wide_pairs)__builtin_shufflevector(v[0], v[1], PIECES(LOW_WORDS));
    const wide_pairs b = (wide_pairs)__builtin_shufflevector(v[0], v[1], PIECES(HIGH_WORDS));
    const wide_pairs c = (wide_pairs)__builtin_shufflevector(v[2], v[3], PIECES(LOW_WORDS));
    const wide_pairs d = (wide_pairs)__builtin_shufflevector(v[2], v[3], PIECES(HIGH_WORDS));
    v[0] = (wide)__builtin_shufflevector(a, c, PIECES(LOW_PAIRS));
    v[1] = (wide)__builtin_shufflevector(a, c, PIECES(HIGH_PAIRS));
    v[2] = (wide)__builtin_shufflevector(b, d, PIECES(LOW_PAIRS));
    v[3] = (wide)__builtin_shufflevector(b, d, PIECES(HIGH_PAIRS));
}

/* 16 bytes of rows f, f + step, .. */
INLINE wide load_rows(const uint8_t *f, uint64_t step)
{
#if YK_PACK_LANES == 1
    (void)step;
    return load(f);
#elif YK_PACK_LANES == 2
    return (wide)_mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)load(f)), (__m128i)load(f + step), 1);
#else
    __m512i v = _mm512_castsi128_si512((__m128i)load(f));
    v = _mm512_inserti32x4(v, (__m128i)load(f + step), 1);
    v = _mm512_inserti32x4(v, (__m128i)load(f + 2 * step), 2);
    return (wide)_mm512_inserti32x4(v, (__m128i)load(f + 3 * step), 3);
#endif
}

INLINE void store_rows(uint8_t *f, uint64_t step, wide v)
{
    uint8_t rows[sizeof v];
    memcpy(rows, &v, sizeof v);
    for (uint32_t q = 0; q < YK_PACK_LANES; q++)
        memcpy(f + q * step, rows + 16 * q, 16);
}

/* 16 bytes at f of each row, row_bytes apart, to four lines, and back. */
INLINE void lines_from_file(const uint8_t *f, uint64_t row_bytes, line *l)
{
    for (uint32_t j = 0; j < VECTORS; j++) {
        wide v[4];
        for (uint32_t i = 0; i < 4; i++)
            v[i] = load_rows(f + (4 * YK_PACK_LANES * j + i) * row_bytes, 4 * row_bytes);
        turn_words(v);
        for (uint32_t i = 0; i < 4; i++)
            l[i].v[j] = v[i];
    }
}

INLINE void lines_to_file(uint8_t *f, uint64_t row_bytes, const line *l)
{
    for (uint32_t j = 0; j < VECTORS; j++) {
        wide v[4];
        for (uint32_t i = 0; i < 4; i++)
            v[i] = l[i].v[j];
        turn_words(v);
        for (uint32_t i = 0; i < 4; i++)
            store_rows(f + (4 * YK_PACK_LANES * j + i) * row_bytes, 4 * row_bytes, v[i]);
    }
}

/* A line of a tile, from or to it. */
INLINE void tile_line(uint8_t *t, line *l, bool to_tile)
{
    memcpy(to_tile ? t : (uint8_t *)l, to_tile ? (const uint8_t *)l : t, LINE);
}

/* One step of turning bytes: those of a and b by turns, 32 of them again in a and b. */
INLINE void mix_bytes(words *a, words *b)
{
    const bytes x = (bytes)*a, y = (bytes)*b;
    *a = (words)__builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *b = (words)__builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

/* [16 rows][4] to [4][16 rows]. Bits of a byte's place, vector and then position: r3 r2 | r1 r0 b1 b0. Each step takes a bit of the vector
 * for the lowest of the position, whose highest becomes the vector's; after four b1 b0 | r3 r2 r1 r0 is left. */
INLINE planes line_to_bytes(const line *l)
{
    planes p;
    memcpy(&p, l, sizeof p);
    for (int i = 0; i < 2; i++) {
        mix_bytes(&p.v[0], &p.v[2]);
        mix_bytes(&p.v[1], &p.v[3]);
        mix_bytes(&p.v[0], &p.v[1]);
        mix_bytes(&p.v[2], &p.v[3]);
    }
    return p;
}

/* The way back: b1 b0 | r3 r2 r1 r0 to r3 r2 | r1 r0 b1 b0. */
INLINE line bytes_to_line(planes p)
{
    line l;
    mix_bytes(&p.v[0], &p.v[2]);
    mix_bytes(&p.v[1], &p.v[3]);
    mix_bytes(&p.v[0], &p.v[1]);
    mix_bytes(&p.v[2], &p.v[3]);
    memcpy(&l, &p, sizeof l);
    return l;
}

/* The planes of a line in a tile, from or to it. */
INLINE void tile_planes(uint8_t *t, line *l, bool to_tile)
{
    planes p;
    if (to_tile)
        p = line_to_bytes(l);
    for (uint32_t j = 0; j < 4; j++) {
        if (to_tile)
            store(t + 16 * j, p.v[j]);
        else
            p.v[j] = load(t + 16 * j);
    }
    if (!to_tile)
        *l = bytes_to_line(p);
}

/* The 8 x 8 halves of v, rows for columns, by the same steps. */
INLINE void turn_halves(halves *v)
{
    for (int step = 4; step; step /= 2) {
        for (int i = 0; i < 8; i++) {
            if (i & step)
                continue;
            const halves x = v[i], y = v[i + step];
            v[i] = __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11);
            v[i + step] = __builtin_shufflevector(x, y, 4, 12, 5, 13, 6, 14, 7, 15);
        }
    }
}

/* ---- bits that change places between lines, inside the bytes; each is its own inverse ---- */

/* Bits `low` of *b change with those `by` places higher of *a. */
INLINE void swap_words(words *a, words *b, uint32_t by, uint32_t low)
{
    const words d = (*a >> by ^ *b) & low;
    *a ^= d << by;
    *b ^= d;
}

INLINE void swap_lines(line *a, line *b, uint32_t by, uint32_t low)
{
    for (int j = 0; j < VECTORS; j++) {
        const wide d = (a->v[j] >> by ^ b->v[j]) & low;
        a->v[j] ^= d << by;
        b->v[j] ^= d;
    }
}

/* Low nibbles of *b change with the high ones of *a. */
INLINE void swap_nibbles(line *a, line *b)
{
    swap_lines(a, b, 4, 0x0f0f0f0fu);
}

/* In each byte lane, 2-bit field i of l[k] changes with field k of l[i]. */
INLINE void swap_pairs(line *l)
{
    for (int i = 0; i < 4; i += 2)
        swap_lines(l + i, l + i + 1, 2, 0x33333333u);
    swap_nibbles(l, l + 2);
    swap_nibbles(l + 1, l + 3);
}

/* In each byte lane, bit i of l[k] changes with bit k of l[i]. */
INLINE void swap_bits(line *l)
{
    for (int i = 0; i < 8; i += 2)
        swap_lines(l + i, l + i + 1, 1, 0x55555555u);
    for (int i = 0; i < 8; i += 4)
        for (int k = i; k < i + 2; k++)
            swap_lines(l + k, l + k + 2, 2, 0x33333333u);
    for (int i = 0; i < 4; i++)
        swap_nibbles(l + i, l + i + 4);
}

/* Inside each byte: the bits `low` change with those `by` places higher. */
INLINE words swap_inside(words v, uint32_t by, uint32_t low)
{
    const words d = (v >> by ^ v) & low;
    return v ^ d ^ d << by;
}

/* ---- parts of tiles: f is the part of the first row in the file, t in the tile ---- */

INLINE void copy(uint8_t *f, uint8_t *t, size_t n, bool to_tile)
{
    memcpy(to_tile ? t : f, to_tile ? f : t, n);
}

/* One f16 of each row. */
INLINE void column_of_halves(uint8_t *f, uint64_t row_bytes, uint8_t *t, bool to_tile)
{
    for (uint32_t r = 0; r < YK_TILE_ROWS; r++)
        copy(f + r * row_bytes, t + 2 * r, 2, to_tile);
}

/* 16 bytes a row that stay as they are. */
INLINE void plain_lines(uint8_t *f, uint64_t row_bytes, uint8_t *t, bool to_tile)
{
    line l[4];
    if (to_tile)
        lines_from_file(f, row_bytes, l);
    for (uint32_t i = 0; i < 4; i++)
        tile_line(t + LINE * i, l + i, to_tile);
    if (!to_tile)
        lines_to_file(f, row_bytes, l);
}

/* 64 columns whose low nibbles are block `lo` and whose high ones are block `hi`: 32 bytes of the file. A tile's byte has columns k and
 * k + 16 of one block. */
INLINE void nibble_lines(uint8_t *f, uint64_t row_bytes, uint8_t *lo, uint8_t *hi, bool to_tile)
{
    line a[4], b[4];
    if (to_tile) {
        lines_from_file(f, row_bytes, a);
        lines_from_file(f + 16, row_bytes, b);
    }
    for (uint32_t i = 0; i < 4; i++) {
        if (to_tile)
            swap_nibbles(a + i, b + i);
        tile_line(lo + LINE * i, a + i, to_tile);
        tile_line(hi + LINE * i, b + i, to_tile);
        if (!to_tile)
            swap_nibbles(a + i, b + i);
    }
    if (!to_tile) {
        lines_to_file(f, row_bytes, a);
        lines_to_file(f + 16, row_bytes, b);
    }
}

/* Two-bit fields of 256 columns, 64 bytes. File: byte l of 32, field q: column l of block q of a half. Tile: block q has 4 bytes of 16 columns,
 * field g: group g. */
INLINE void pair_lines(uint8_t *f, uint64_t row_bytes, uint8_t *t, bool to_tile)
{
    for (uint32_t i = 0; i < 4; i++) {
        uint8_t *at = t + 512 * (i / 2) + LINE * (i % 2);
        line l[4];
        if (to_tile) {
            lines_from_file(f + 16 * i, row_bytes, l);
            swap_pairs(l);
        }
        for (uint32_t k = 0; k < 4; k++)
            tile_line(at + 128 * k, l + k, to_tile);
        if (!to_tile) {
            swap_pairs(l);
            lines_to_file(f + 16 * i, row_bytes, l);
        }
    }
}

/* One bit of 256 columns, 32 bytes. File: byte k, bit b: column k of block b. Tile: line b, bit g: columns 4g .. 4g+3 of block b. */
INLINE void bit_lines(uint8_t *f, uint64_t row_bytes, uint8_t *t, bool to_tile)
{
    line l[8];
    if (to_tile) {
        lines_from_file(f, row_bytes, l);
        lines_from_file(f + 16, row_bytes, l + 4);
        swap_bits(l);
    }
    for (uint32_t i = 0; i < 8; i++)
        tile_line(t + LINE * i, l + i, to_tile);
    if (!to_tile) {
        swap_bits(l);
        lines_to_file(f, row_bytes, l);
        lines_to_file(f + 16, row_bytes, l + 4);
    }
}

/* 16 bytes of a row, scales of half blocks. */
INLINE void byte_planes(uint8_t *f, uint64_t row_bytes, uint8_t *t, bool to_tile)
{
    line l[4];
    if (to_tile)
        lines_from_file(f, row_bytes, l);
    for (uint32_t i = 0; i < 4; i++) {
        tile_planes(t + LINE * i, l + i, to_tile);
    }
    if (!to_tile)
        lines_to_file(f, row_bytes, l);
}

/* The fifth bits of a block of 32, 4 bytes: bit i % 8 of byte i / 8 is column i. Tile: bit g of a byte is group g. With the four bytes of the
 * rows apart, a bit's place, byte and then bit, is g2 g1 | g0 c1 c0 of its group and its column in there. After the exchange between bytes it is
 * c1 c0 | g0 g2 g1, and two inside the bytes make that c1 c0 | g2 g1 g0. */
INLINE void fifth_line(uint8_t *f, uint64_t row_bytes, uint8_t *t, bool to_tile)
{
    uint8_t in[LINE];
    line l;
    planes p;
    for (uint32_t r = 0; to_tile && r < YK_TILE_ROWS; r++)
        memcpy(in + 4 * r, f + r * row_bytes, 4);
    tile_line(to_tile ? in : t, &l, false);
    p = line_to_bytes(&l);
    for (int i = 0; !to_tile && i < 4; i++)
        p.v[i] = swap_inside(swap_inside(p.v[i], 1, 0x22222222u), 2, 0x0c0c0c0cu);
    swap_words(&p.v[0], &p.v[1], 1, 0x55555555u);
    swap_words(&p.v[2], &p.v[3], 1, 0x55555555u);
    swap_words(&p.v[0], &p.v[2], 2, 0x33333333u);
    swap_words(&p.v[1], &p.v[3], 2, 0x33333333u);
    for (int i = 0; to_tile && i < 4; i++)
        p.v[i] = swap_inside(swap_inside(p.v[i], 2, 0x0c0c0c0cu), 1, 0x22222222u);
    l = bytes_to_line(p);
    tile_line(to_tile ? t : in, &l, true);
    for (uint32_t r = 0; !to_tile && r < YK_TILE_ROWS; r++)
        memcpy(f + r * row_bytes, in + 4 * r, 4);
}

/* What Q4_K and Q5_K begin with: d, dmin, and eight 6-bit scales and minima in 12 bytes, to one byte each. Words of four bytes:
 *   1: scales 0..3, on top the upper pairs of scales 4..7; 2: the same of the minima; 3: lower nibbles of scales and minima 4..7. */
INLINE void k_scales(uint8_t *f, uint64_t row_bytes, uint8_t *t, const yk_tile *g, bool to_tile)
{
    const wide six = all(0x3f3f3f3fu), four = all(0x0f0f0f0fu), two = all(0x03030303u);
    line l[4] = {0}, out[4]; /* scales 0..3, 4..7, minima 0..3, 4..7 */
    if (to_tile) {
        lines_from_file(f, row_bytes, l);
        for (int j = 0; j < VECTORS; j++) {
            const wide a = l[1].v[j], b = l[2].v[j], c = l[3].v[j];
            out[0].v[j] = a & six;
            out[1].v[j] = (c & four) | (a >> 6 & two) << 4;
            out[2].v[j] = b & six;
            out[3].v[j] = (c >> 4 & four) | (b >> 6 & two) << 4;
        }
    }
    for (uint32_t i = 0; i < 4; i++) {
        tile_planes(t + (i < 2 ? g->sub : g->sub_min) + LINE * (i % 2), out + i, to_tile);
    }
    if (!to_tile) {
        for (int j = 0; j < VECTORS; j++) {
            const wide a = out[1].v[j], b = out[3].v[j];
            l[1].v[j] = out[0].v[j] | (a >> 4 & two) << 6;
            l[2].v[j] = out[2].v[j] | (b >> 4 & two) << 6;
            l[3].v[j] = (a & four) | (b & four) << 4;
        }
        lines_to_file(f, row_bytes, l); /* the first word is written next */
    }
    column_of_halves(f, row_bytes, t + g->scale, to_tile);
    column_of_halves(f + 2, row_bytes, t + g->scale + 2 * YK_TILE_ROWS, to_tile);
}

/* The sixteen 6-bit scales of Q3_K at f + 4, 12 bytes, to one byte each, less 32. Words: 1 and 2: lower nibbles of scales 0..3 and 4..7, on top
 * of them those of 8..11 and 12..15; 3: pair i of a byte belongs to scales 4i .. 4i+3. Unpacking leaves anything in the 4 bytes at f. */
INLINE void q3_scales(uint8_t *f, uint64_t row_bytes, uint8_t *t, bool to_tile)
{
    const wide top = all(0x20202020u), four = all(0x0f0f0f0fu), two = all(0x03030303u);
    line l[4] = {0}, out[4];
    if (to_tile) {
        lines_from_file(f, row_bytes, l);
        for (uint32_t i = 0; i < 4; i++)
            for (int j = 0; j < VECTORS; j++) {
                const wide low = l[1 + i % 2].v[j] >> 4 * (i / 2) & four;
                const wide v = (low | (l[3].v[j] >> 2 * i & two) << 4) ^ top;
                out[i].v[j] = v | (v & top) << 1 | (v & top) << 2;
            }
    }
    for (uint32_t i = 0; i < 4; i++) {
        tile_planes(t + LINE * i, out + i, to_tile);
    }
    if (!to_tile) {
        for (uint32_t i = 0; i < 4; i++)
            for (int j = 0; j < VECTORS; j++) {
                const wide v = out[i].v[j] ^ top;
                l[1 + i % 2].v[j] |= (v & four) << 4 * (i / 2);
                l[3].v[j] |= (v >> 4 & two) << 2 * i;
            }
        lines_to_file(f, row_bytes, l);
    }
}

/* The eight 6-bit scales of IQ4_XS, 6 bytes at f, to one byte each, less 32: two bytes of upper pairs, four bytes of nibbles. */
INLINE void iq4_scales(uint8_t *f, uint64_t row_bytes, uint8_t *t, bool to_tile)
{
    for (uint32_t r = 0; r < YK_TILE_ROWS; r++, f += row_bytes) {
        uint32_t tops = to_tile ? f[0] | (uint32_t)f[1] << 8 : 0;
        for (uint32_t b = 0; b < 8; b++) {
            uint8_t *s = t + YK_TILE_ROWS * b + r, *low = f + 2 + b / 2;
            if (to_tile) {
                *s = (uint8_t)(((*low >> 4 * (b % 2) & 15) | (tops >> 2 * b & 3) << 4) - 32);
            } else {
                const uint32_t v = *s + 32u;
                *low = (uint8_t)(b % 2 ? *low | (v & 15) << 4 : v & 15);
                tops |= (v >> 4 & 3) << 2 * b;
            }
        }
        if (!to_tile)
            f[0] = (uint8_t)tops, f[1] = (uint8_t)(tops >> 8);
    }
}

/* ---- a tile of each type ---- */

INLINE void tile_f32(uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols, bool to_tile)
{
    uint32_t k = 0;
    for (; k + 4 <= n_cols; k += 4)
        plain_lines(f + 4 * k, row_bytes, t + LINE * k, to_tile);
    for (; k < n_cols; k++)
        for (uint32_t r = 0; r < YK_TILE_ROWS; r++)
            copy(f + r * row_bytes + 4 * k, t + LINE * k + 4 * r, 4, to_tile);
}

INLINE void tile_f16(uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols, bool to_tile)
{
    uint32_t k = 0;
    for (; k + 8 <= n_cols; k += 8) {
        for (uint32_t part = 0; part < 2; part++) { /* rows 0..7, 8..15 */
            uint8_t *at = f + 8 * part * row_bytes + 2 * k, *to = t + LINE / 2 * k + 16 * part;
            halves v[8];
            for (uint32_t i = 0; i < 8; i++)
                v[i] = (halves)load(to_tile ? at + i * row_bytes : to + LINE / 2 * i);
            turn_halves(v);
            for (uint32_t i = 0; i < 8; i++)
                store(to_tile ? to + LINE / 2 * i : at + i * row_bytes, (words)v[i]);
        }
    }
    for (; k < n_cols; k++)
        column_of_halves(f + 2 * k, row_bytes, t + LINE / 2 * k, to_tile);
}

INLINE void tile_bf16(uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols, bool to_tile)
{
    uint32_t k = 0;
    for (; k + 8 <= n_cols; k += 8)
        plain_lines(f + 2 * k, row_bytes, t + LINE / 2 * k, to_tile);
    if (to_tile && n_cols % 2)
        memset(t + LINE / 2 * (n_cols - 1), 0, LINE);
    for (; k < n_cols; k++)
        for (uint32_t r = 0; r < YK_TILE_ROWS; r++)
            copy(f + r * row_bytes + 2 * k, t + LINE * (k / 2) + 4 * r + 2 * (k % 2), 2, to_tile);
}

/* Types of 32 columns a block: f16 scale, f16 minimum, fifth bits, then the codes, where the type has them. */
INLINE void tile_blocks(yk_type type, uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols, bool to_tile)
{
    const yk_tile g = yk_tile_of(type, n_cols);
    uint8_t *codes = t;
    for (uint32_t b = 0; b < n_cols / 32; b++) {
        if (g.scale) {
            column_of_halves(f, row_bytes, t + g.scale + 32 * b, to_tile);
            f += 2;
        } else {
            for (uint32_t r = 0; r < YK_TILE_ROWS; r++)
                copy(f + r * row_bytes, t + g.sub + YK_TILE_ROWS * b + r, 1, to_tile);
            f += 1;
        }
        if (g.min) {
            column_of_halves(f, row_bytes, t + g.min + 32 * b, to_tile);
            f += 2;
        }
        if (g.high) {
            fifth_line(f, row_bytes, t + g.high + LINE * b, to_tile);
            f += 4;
        }
        for (uint32_t i = 0; i < (type == YK_TYPE_Q8_0 ? 2 : 1); i++, f += 16, codes += 4 * LINE)
            plain_lines(f, row_bytes, codes, to_tile);
    }
}

#define BLOCKS(name, type)                                                                                                     \
    INLINE void name(uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols, bool to_tile)                                \
    {                                                                                                                          \
        tile_blocks(type, f, row_bytes, t, n_cols, to_tile);                                                                   \
    }

BLOCKS(tile_q4_0, YK_TYPE_Q4_0) /* IQ4_NL too */
BLOCKS(tile_q4_1, YK_TYPE_Q4_1)
BLOCKS(tile_q5_0, YK_TYPE_Q5_0)
BLOCKS(tile_q5_1, YK_TYPE_Q5_1)
BLOCKS(tile_q8_0, YK_TYPE_Q8_0)
BLOCKS(tile_mxfp4, YK_TYPE_MXFP4)

INLINE void tile_q2_k(uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols, bool to_tile)
{
    const yk_tile g = yk_tile_of(YK_TYPE_Q2_K, n_cols);
    byte_planes(f, row_bytes, t + g.sub, to_tile);
    pair_lines(f + 16, row_bytes, t, to_tile);
    column_of_halves(f + 80, row_bytes, t + g.scale, to_tile);
    column_of_halves(f + 82, row_bytes, t + g.scale + 2 * YK_TILE_ROWS, to_tile);
}

INLINE void tile_q3_k(uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols, bool to_tile)
{
    const yk_tile g = yk_tile_of(YK_TYPE_Q3_K, n_cols);
    q3_scales(f + 92, row_bytes, t + g.sub, to_tile); /* first: it writes the last codes too */
    bit_lines(f, row_bytes, t + g.high, to_tile);
    pair_lines(f + 32, row_bytes, t, to_tile);
    column_of_halves(f + 108, row_bytes, t + g.scale, to_tile);
}

INLINE void tile_q4_k(uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols, bool to_tile)
{
    const yk_tile g = yk_tile_of(YK_TYPE_Q4_K, n_cols);
    k_scales(f, row_bytes, t, &g, to_tile);
    for (uint32_t c = 0; c < 4; c++)
        nibble_lines(f + 16 + 32 * c, row_bytes, t + 512 * c, t + 512 * c + 256, to_tile);
}

INLINE void tile_q5_k(uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols, bool to_tile)
{
    const yk_tile g = yk_tile_of(YK_TYPE_Q5_K, n_cols);
    k_scales(f, row_bytes, t, &g, to_tile);
    bit_lines(f + 16, row_bytes, t + g.high, to_tile);
    for (uint32_t c = 0; c < 4; c++)
        nibble_lines(f + 48 + 32 * c, row_bytes, t + 512 * c, t + 512 * c + 256, to_tile);
}

INLINE void tile_q6_k(uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols, bool to_tile)
{
    const yk_tile g = yk_tile_of(YK_TYPE_Q6_K, n_cols);
    for (uint32_t i = 0; i < 4; i++) { /* 32 bytes: low nibbles of a block, high ones of the second after it */
        uint8_t *lo = t + 1024 * (i / 2) + 256 * (i % 2);
        nibble_lines(f + 32 * i, row_bytes, lo, lo + 512, to_tile);
    }
    pair_lines(f + 128, row_bytes, t + g.high, to_tile);
    byte_planes(f + 192, row_bytes, t + g.sub, to_tile);
    column_of_halves(f + 208, row_bytes, t + g.scale, to_tile);
}

INLINE void tile_iq4_xs(uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols, bool to_tile)
{
    const yk_tile g = yk_tile_of(YK_TYPE_IQ4_XS, n_cols);
    column_of_halves(f, row_bytes, t + g.scale, to_tile);
    iq4_scales(f + 2, row_bytes, t + g.sub, to_tile);
    for (uint32_t b = 0; b < 8; b++)
        plain_lines(f + 8 + 16 * b, row_bytes, t + 256 * b, to_tile);
}

/* Functions of one way each, called DIRECTION_TYPE, and their table; IQ4_NL is Q4_0's code. */
#define YK_PACK_EACH(m)                                                                                                        \
    m(f32) m(f16) m(bf16) m(q4_0) m(q4_1) m(q5_0) m(q5_1) m(q8_0) m(q2_k) m(q3_k) m(q4_k) m(q5_k) m(q6_k) m(iq4_xs) m(mxfp4)

#define YK_PACK_ONE(name)                                                                                                      \
    static void pack_##name(const uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols)                                 \
    {                                                                                                                          \
        tile_##name((uint8_t *)(uintptr_t)f, row_bytes, t, n_cols, true);                                                      \
    }

#define YK_PACK_TABLE(way)                                                                                                     \
    {                                                                                                                          \
        [YK_TYPE_F32] = way##_f32, [YK_TYPE_F16] = way##_f16, [YK_TYPE_BF16] = way##_bf16, [YK_TYPE_Q4_0] = way##_q4_0,        \
        [YK_TYPE_Q4_1] = way##_q4_1, [YK_TYPE_Q5_0] = way##_q5_0, [YK_TYPE_Q5_1] = way##_q5_1, [YK_TYPE_Q8_0] = way##_q8_0,    \
        [YK_TYPE_Q2_K] = way##_q2_k, [YK_TYPE_Q3_K] = way##_q3_k, [YK_TYPE_Q4_K] = way##_q4_k, [YK_TYPE_Q5_K] = way##_q5_k,    \
        [YK_TYPE_Q6_K] = way##_q6_k, [YK_TYPE_IQ4_NL] = way##_q4_0, [YK_TYPE_IQ4_XS] = way##_iq4_xs,                           \
        [YK_TYPE_MXFP4] = way##_mxfp4                                                                                          \
    }

YK_PACK_EACH(YK_PACK_ONE)

#endif
