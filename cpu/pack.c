/* pack.c - weights from the file's layout to tiles of 16 rows and back: docs/kernels/layout.md.
 *
 * The unit that moves is a word: 4 bytes of one row, codes of 4 columns. Bits are rearranged inside the bytes of several words at once, so
 * nothing here depends on the byte order of the machine. One row of one tile is done at a time; the tile stays in L1. */
#include "cpu/pack.h"

#include <string.h>

#include "cpu/tile.h"

static inline uint32_t get(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static inline void put(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, 4);
}

enum { LINE = 4 * YK_TILE_ROWS }; /* bytes from a word of a row to its next */

static const uint32_t low4 = 0x0f0f0f0fu;

/* ---- bits that change places inside the bytes of words; each is its own inverse ---- */

/* Low nibbles of *b change with the high ones of *a. */
static inline void swap_nibbles(uint32_t *a, uint32_t *b)
{
    const uint32_t d = (*a >> 4 ^ *b) & low4;
    *a ^= d << 4;
    *b ^= d;
}

/* In each byte lane, 2-bit field i of w[k] changes with field k of w[i]. */
static inline void swap_pairs(uint32_t *w)
{
    for (int i = 0; i < 4; i += 2) {
        const uint32_t d = (w[i] >> 2 ^ w[i + 1]) & 0x33333333u;
        w[i] ^= d << 2;
        w[i + 1] ^= d;
    }
    swap_nibbles(w, w + 2);
    swap_nibbles(w + 1, w + 3);
}

/* In each byte lane, bit i of w[k] changes with bit k of w[i]. */
static inline void swap_bits(uint32_t *w)
{
    for (int i = 0; i < 8; i += 2) {
        const uint32_t d = (w[i] >> 1 ^ w[i + 1]) & 0x55555555u;
        w[i] ^= d << 1;
        w[i + 1] ^= d;
    }
    for (int i = 0; i < 8; i += 4) {
        for (int k = i; k < i + 2; k++) {
            const uint32_t d = (w[k] >> 2 ^ w[k + 2]) & 0x33333333u;
            w[k] ^= d << 2;
            w[k + 2] ^= d;
        }
    }
    for (int i = 0; i < 4; i++)
        swap_nibbles(w + i, w + i + 4);
}

/* ---- one row of one tile, both ways: f is the row's part in the file, t the tile plus 4 r (words) ---- */

/* 64 columns whose low nibbles are block `lo` and whose high ones are block `hi`: 32 bytes of the file. A tile's byte has columns k and
 * k + 16 of one block. */
static inline void nibbles_to_tile(const uint8_t *f, uint8_t *lo, uint8_t *hi)
{
    for (uint32_t j = 0; j < 4; j++) {
        uint32_t a = get(f + 4 * j), b = get(f + 16 + 4 * j);
        swap_nibbles(&a, &b);
        put(lo + LINE * j, a);
        put(hi + LINE * j, b);
    }
}

static inline void nibbles_to_file(uint8_t *f, const uint8_t *lo, const uint8_t *hi)
{
    for (uint32_t j = 0; j < 4; j++) {
        uint32_t a = get(lo + LINE * j), b = get(hi + LINE * j);
        swap_nibbles(&a, &b);
        put(f + 4 * j, a);
        put(f + 16 + 4 * j, b);
    }
}

/* The eight 6-bit scales and minima of Q4_K and Q5_K, 12 bytes, to one byte each. */
static inline void scales_to_tile(const uint8_t *f, uint8_t *sc, uint8_t *mn)
{
    for (uint32_t i = 0; i < 4; i++) {
        sc[YK_TILE_ROWS * i] = f[i] & 63;
        mn[YK_TILE_ROWS * i] = f[i + 4] & 63;
        sc[YK_TILE_ROWS * (i + 4)] = (uint8_t)((f[i + 8] & 15) | f[i] >> 6 << 4);
        mn[YK_TILE_ROWS * (i + 4)] = (uint8_t)(f[i + 8] >> 4 | f[i + 4] >> 6 << 4);
    }
}

static inline void scales_to_file(uint8_t *f, const uint8_t *sc, const uint8_t *mn)
{
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t s = sc[YK_TILE_ROWS * (i + 4)], m = mn[YK_TILE_ROWS * (i + 4)];
        f[i] = (uint8_t)(sc[YK_TILE_ROWS * i] | s >> 4 << 6);
        f[i + 4] = (uint8_t)(mn[YK_TILE_ROWS * i] | m >> 4 << 6);
        f[i + 8] = (uint8_t)((s & 15) | (m & 15) << 4);
    }
}

/* A function for each type: pack (to_tile) or unpack row r of tile t; n_cols of the tile. */
typedef void (*row_fn)(uint8_t *f, uint8_t *t, uint32_t r, uint32_t n_cols, bool to_tile);

static inline void copy(uint8_t *f, uint8_t *t, size_t n, bool to_tile)
{
    memcpy(to_tile ? t : f, to_tile ? f : t, n);
}

static void row_f32(uint8_t *f, uint8_t *t, uint32_t r, uint32_t n_cols, bool to_tile)
{
    t += 4 * r;
    for (uint32_t k = 0; k < n_cols; k++)
        copy(f + 4 * k, t + LINE * k, 4, to_tile);
}

static void row_f16(uint8_t *f, uint8_t *t, uint32_t r, uint32_t n_cols, bool to_tile)
{
    t += 2 * r;
    for (uint32_t k = 0; k < n_cols; k++)
        copy(f + 2 * k, t + LINE / 2 * k, 2, to_tile);
}

static void row_q4_0(uint8_t *f, uint8_t *t, uint32_t r, uint32_t n_cols, bool to_tile)
{
    uint8_t *d = t + yk_tile_of(YK_TYPE_Q4_0, n_cols).scale + 2 * r;
    t += 4 * r;
    for (uint32_t b = 0; b < n_cols / 32; b++, f += 18, t += 256, d += 32) {
        copy(f, d, 2, to_tile);
        for (uint32_t j = 0; j < 4; j++)
            copy(f + 2 + 4 * j, t + LINE * j, 4, to_tile);
    }
}

static void row_q8_0(uint8_t *f, uint8_t *t, uint32_t r, uint32_t n_cols, bool to_tile)
{
    uint8_t *d = t + yk_tile_of(YK_TYPE_Q8_0, n_cols).scale + 2 * r;
    t += 4 * r;
    for (uint32_t b = 0; b < n_cols / 32; b++, f += 34, t += 512, d += 32) {
        copy(f, d, 2, to_tile);
        for (uint32_t j = 0; j < 8; j++)
            copy(f + 2 + 4 * j, t + LINE * j, 4, to_tile);
    }
}

/* What Q4_K and Q5_K share: d, dmin, scales, and the low nibbles at f + codes. */
static inline void row_k(uint8_t *f, uint32_t codes, uint8_t *t, const yk_tile *g, uint32_t r, bool to_tile)
{
    copy(f, t + g->scale + 2 * r, 2, to_tile);
    copy(f + 2, t + g->scale + 2 * YK_TILE_ROWS + 2 * r, 2, to_tile);
    (to_tile ? scales_to_tile(f + 4, t + g->sub + r, t + g->sub_min + r)
             : scales_to_file(f + 4, t + g->sub + r, t + g->sub_min + r));
    for (uint32_t c = 0; c < 4; c++) {
        uint8_t *q = f + codes + 32 * c, *lo = t + 512 * c + 4 * r;
        (to_tile ? nibbles_to_tile(q, lo, lo + 256) : nibbles_to_file(q, lo, lo + 256));
    }
}

static void row_q4_k(uint8_t *f, uint8_t *t, uint32_t r, uint32_t n_cols, bool to_tile)
{
    const yk_tile g = yk_tile_of(YK_TYPE_Q4_K, n_cols);
    row_k(f, 16, t, &g, r, to_tile);
}

static void row_q5_k(uint8_t *f, uint8_t *t, uint32_t r, uint32_t n_cols, bool to_tile)
{
    const yk_tile g = yk_tile_of(YK_TYPE_Q5_K, n_cols);
    row_k(f, 48, t, &g, r, to_tile);
    /* File: byte k of 32, bit b: column k of block b. Tile: word b, bit g: columns 4g .. 4g+3 of block b. */
    uint8_t *high = t + g.high + 4 * r;
    uint32_t w[8];
    for (uint32_t i = 0; i < 8; i++)
        w[i] = get(to_tile ? f + 16 + 4 * i : high + LINE * i);
    swap_bits(w);
    for (uint32_t i = 0; i < 8; i++)
        put(to_tile ? high + LINE * i : f + 16 + 4 * i, w[i]);
}

static void row_q6_k(uint8_t *f, uint8_t *t, uint32_t r, uint32_t n_cols, bool to_tile)
{
    const yk_tile g = yk_tile_of(YK_TYPE_Q6_K, n_cols);
    copy(f + 208, t + g.scale + 2 * r, 2, to_tile);
    for (uint32_t i = 0; i < 16; i++)
        copy(f + 192 + i, t + g.sub + YK_TILE_ROWS * i + r, 1, to_tile);
    for (uint32_t half = 0; half < 2; half++) {
        for (uint32_t i = 0; i < 2; i++) { /* 32 bytes: low nibbles of block i, high ones of block i + 2 of this half */
            uint8_t *q = f + 64 * half + 32 * i, *lo = t + 1024 * half + 256 * i + 4 * r;
            (to_tile ? nibbles_to_tile(q, lo, lo + 512) : nibbles_to_file(q, lo, lo + 512));
        }
        /* File: byte l of 32, field q: column l of block q. Tile: block q has 4 bytes of 16 columns, field g: group g. */
        for (uint32_t h = 0; h < 2; h++) {
            uint8_t *in = f + 128 + 32 * half + 16 * h, *high = t + g.high + 512 * half + LINE * h + 4 * r;
            uint32_t w[4];
            for (uint32_t i = 0; i < 4; i++)
                w[i] = get(to_tile ? in + 4 * i : high + 128 * i);
            swap_pairs(w);
            for (uint32_t i = 0; i < 4; i++)
                put(to_tile ? high + 128 * i : in + 4 * i, w[i]);
        }
    }
}

static row_fn row_of(yk_type type)
{
    switch (type) {
    case YK_TYPE_F32:
        return row_f32;
    case YK_TYPE_F16:
        return row_f16;
    case YK_TYPE_Q4_0:
        return row_q4_0;
    case YK_TYPE_Q8_0:
        return row_q8_0;
    case YK_TYPE_Q4_K:
        return row_q4_k;
    case YK_TYPE_Q5_K:
        return row_q5_k;
    case YK_TYPE_Q6_K:
        return row_q6_k;
    default:
        return NULL;
    }
}

/* ---- matrices ---- */

bool yk_pack_has(yk_type type)
{
    return row_of(type) != NULL;
}

uint32_t yk_tile_bytes(yk_type type, uint32_t n_cols)
{
    return yk_tile_of(type, n_cols).bytes;
}

uint64_t yk_panel_bytes(yk_type type, uint32_t n_cols)
{
    const uint32_t rest = n_cols % YK_TILE_COLS;
    return (uint64_t)(n_cols / YK_TILE_COLS) * yk_tile_bytes(type, YK_TILE_COLS) + (rest ? yk_tile_bytes(type, rest) : 0);
}

uint64_t yk_packed_bytes(yk_type type, uint32_t n_rows, uint32_t n_cols)
{
    return ((uint64_t)n_rows + YK_TILE_ROWS - 1) / YK_TILE_ROWS * yk_panel_bytes(type, n_cols);
}

/* Bytes of a row of n columns in the file. */
static uint64_t file_bytes(yk_type type, uint32_t n)
{
    const yk_type_traits *t = yk_type_get((uint32_t)type);
    return (uint64_t)(n / t->block_elems) * t->block_bytes;
}

/* Both directions: `rows` begins at the first column wanted; only one of rows and packed is written. */
static inline void walk(yk_type type, uint8_t *rows, uint64_t row_bytes, uint32_t n_rows, uint32_t n_cols, uint8_t *packed,
                        bool to_tile)
{
    const row_fn row = row_of(type);
    for (uint32_t r0 = 0; r0 < n_rows; r0 += YK_TILE_ROWS) {
        const uint32_t n = n_rows - r0 < YK_TILE_ROWS ? n_rows - r0 : YK_TILE_ROWS;
        for (uint32_t k = 0; k < n_cols; k += YK_TILE_COLS) {
            const uint32_t cols = n_cols - k < YK_TILE_COLS ? n_cols - k : YK_TILE_COLS;
            const uint32_t bytes = yk_tile_bytes(type, cols);
            uint8_t *f = rows + r0 * row_bytes + file_bytes(type, k);
            if (to_tile && n < YK_TILE_ROWS)
                memset(packed, 0, bytes);
            else if (to_tile)
                memset(packed + bytes - 64, 0, 64); /* padding is less than that */
            for (uint32_t r = 0; r < n; r++)
                row(f + r * row_bytes, packed, r, cols, to_tile);
            packed += bytes;
        }
    }
}

void yk_pack(yk_type type, const uint8_t *rows, uint64_t row_bytes, uint32_t n_rows, uint32_t col0, uint32_t n_cols,
             uint8_t *out)
{
    walk(type, (uint8_t *)(uintptr_t)rows + file_bytes(type, col0), row_bytes, n_rows, n_cols, out, true);
}

void yk_unpack(yk_type type, const uint8_t *packed, uint32_t n_rows, uint32_t n_cols, uint8_t *rows, uint64_t row_bytes)
{
    walk(type, rows, row_bytes, n_rows, n_cols, (uint8_t *)(uintptr_t)packed, false);
}
