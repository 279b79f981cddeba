/* pack.c - weights from the file's layout to tiles of 16 rows and back: docs/kernels/layout.md.
 *
 * Tiles are made by cpu/pack_tiles.h, compiled for each level. A tile is built in a buffer that stays in L1 and then leaves in whole cache lines past
 * the caches: nobody reads it soon, and stores through the caches would first read what they replace. */
#include "cpu/pack.h"

#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "cpu/ops.h"
#include "cpu/pack_tiles.h"

#define UNPACK_ONE(name)                                                                                                       \
    static void unpack_##name(uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols)                                     \
    {                                                                                                                          \
        tile_##name(f, row_bytes, t, n_cols, false);                                                                           \
    }
YK_PACK_EACH(UNPACK_ONE)

/* From tile t to 16 rows of the file: the way back needs no speed, so it has no levels. */
typedef void (*unpack_fn)(uint8_t *f, uint64_t row_bytes, uint8_t *t, uint32_t n_cols);
static const unpack_fn unpack_fns[YK_TYPE_LIMIT] = YK_PACK_TABLE(unpack);

static void leave(uint8_t *out, const uint8_t *tile, uint32_t n)
{
#if defined(__SSE2__)
    for (uint32_t i = 0; i < n; i += 64)
        for (uint32_t j = i; j < i + 64; j += 16)
            _mm_stream_si128((__m128i *)(void *)(out + j), _mm_load_si128((const __m128i *)(const void *)(tile + j)));
#else
    memcpy(out, tile, n);
#endif
}

static const yk_pack_level plain = {YK_PACK_TABLE(pack), leave};

/* The level for a CPU that can do `isa`. */
static const yk_pack_level *level_of(yk_isa isa)
{
#ifdef YK_HAVE_AVX512
    if (isa >= YK_ISA_AVX512)
        return &yk_pack_avx512;
#endif
#ifdef YK_HAVE_AVX2
    if (isa >= YK_ISA_AVX2)
        return &yk_pack_avx2;
#endif
    (void)isa;
    return &plain;
}

/* ---- matrices ---- */

bool yk_pack_has(yk_type type)
{
    return (uint32_t)type < YK_TYPE_LIMIT && plain.tile[type] != NULL;
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

/* A tile on its way: the largest one, and rows of it for panels that have fewer than 16. */
typedef struct scratch {
    _Alignas(64) uint8_t tile[64 * YK_TILE_COLS], rows[YK_TILE_ROWS * 4 * YK_TILE_COLS];
    const yk_pack_level *level;
} scratch;

/* Part of 16 rows, soon needed: 16 streams are more than some prefetchers follow. */
static void fetch(const uint8_t *f, uint64_t row_bytes, uint64_t part)
{
    for (uint32_t r = 0; r < YK_TILE_ROWS; r++)
        for (uint64_t i = 0; i < part; i += 64)
            __builtin_prefetch(f + r * row_bytes + i);
}

static void pack_tile(yk_type type, const uint8_t *f, uint64_t row_bytes, uint32_t n_rows, uint32_t n_cols, scratch *s,
                      uint8_t *out)
{
    const yk_tile g = yk_tile_of(type, n_cols);
    const uint64_t part = file_bytes(type, n_cols);
    memset(s->tile + g.bytes - 64, 0, 64); /* padding is less than that */
    if (n_rows < YK_TILE_ROWS) {
        memset(s->rows, 0, part * YK_TILE_ROWS);
        for (uint32_t r = 0; r < n_rows; r++)
            memcpy(s->rows + part * r, f + r * row_bytes, part);
        s->level->tile[type](s->rows, part, s->tile, n_cols);
        for (uint32_t i = g.sub; g.sub && i < g.sub + 16 * YK_TILE_ROWS && i < (g.scale ? g.scale : g.bytes); i += YK_TILE_ROWS)
            memset(s->tile + i + n_rows, 0, YK_TILE_ROWS - n_rows); /* a scale of 0 is not stored as 0 by every type */
    } else {
        s->level->tile[type](f, row_bytes, s->tile, n_cols);
    }
    s->level->leave(out, s->tile, g.bytes);
}

static void unpack_tile(yk_type type, const uint8_t *tile, uint8_t *f, uint64_t row_bytes, uint32_t n_rows, uint32_t n_cols,
                        scratch *s)
{
    const uint64_t part = file_bytes(type, n_cols);
    uint8_t *t = (uint8_t *)(uintptr_t)tile;
    if (n_rows == YK_TILE_ROWS) {
        unpack_fns[type](f, row_bytes, t, n_cols);
        return;
    }
    unpack_fns[type](s->rows, part, t, n_cols);
    for (uint32_t r = 0; r < n_rows; r++)
        memcpy(f + r * row_bytes, s->rows + part * r, part);
}

/* A unit's tiles of the panel whose first row is f, at the unit's first column; `next`: what is read behind the last one. */
static void pack_panel(yk_type type, const uint8_t *f, uint64_t row_bytes, uint32_t n_rows, uint32_t n_cols,
                       const uint8_t *next, scratch *s, uint8_t *out)
{
    for (uint32_t k = 0; k < n_cols; k += YK_TILE_COLS) {
        const uint32_t cols = n_cols - k < YK_TILE_COLS ? n_cols - k : YK_TILE_COLS;
        const uint64_t part = file_bytes(type, cols);
        fetch(k + YK_TILE_COLS < n_cols ? f + part : next, row_bytes, part);
        pack_tile(type, f, row_bytes, n_rows, cols, s, out);
        f += part;
        out += yk_tile_bytes(type, cols);
    }
}

void yk_pack_units(yk_type type, const uint8_t *rows, uint64_t row_bytes, uint32_t n_rows, const yk_pack_run *run, uint8_t *out)
{
    yk_pack_units_at(yk_isa_best(), type, rows, row_bytes, n_rows, run, out);
}

void yk_pack_units_at(yk_isa isa, yk_type type, const uint8_t *rows, uint64_t row_bytes, uint32_t n_rows,
                      const yk_pack_run *run, uint8_t *out)
{
    scratch s;
    s.level = level_of(isa);
    const uint64_t width = file_bytes(type, run->n_cols), panel = yk_panel_bytes(type, run->n_cols);
    rows += file_bytes(type, run->col0);
    for (uint32_t r = 0; r < n_rows; r += YK_TILE_ROWS, rows += YK_TILE_ROWS * row_bytes, out += panel) {
        const uint32_t n = n_rows - r < YK_TILE_ROWS ? n_rows - r : YK_TILE_ROWS;
        for (uint32_t u = 0; u < run->n_units; u++) {
            const uint8_t *next = u + 1 < run->n_units ? rows + (u + 1) * width : rows + YK_TILE_ROWS * row_bytes;
            pack_panel(type, rows + u * width, row_bytes, n, run->n_cols, next, &s, out + u * run->unit_stride);
        }
    }
#if defined(__SSE2__)
    _mm_sfence(); /* streamed bytes are seen by whoever sees what is stored after this */
#endif
}

void yk_pack(yk_type type, const uint8_t *rows, uint64_t row_bytes, uint32_t n_rows, uint32_t col0, uint32_t n_cols,
             uint8_t *out)
{
    const yk_pack_run run = {.col0 = col0, .n_cols = n_cols, .n_units = 1};
    yk_pack_units(type, rows, row_bytes, n_rows, &run, out);
}

void yk_unpack(yk_type type, const uint8_t *packed, uint32_t n_rows, uint32_t n_cols, uint8_t *rows, uint64_t row_bytes)
{
    scratch s;
    for (uint32_t r = 0; r < n_rows; r += YK_TILE_ROWS) {
        const uint32_t n = n_rows - r < YK_TILE_ROWS ? n_rows - r : YK_TILE_ROWS;
        for (uint32_t k = 0; k < n_cols; k += YK_TILE_COLS) {
            const uint32_t cols = n_cols - k < YK_TILE_COLS ? n_cols - k : YK_TILE_COLS;
            unpack_tile(type, packed, rows + r * row_bytes + file_bytes(type, k), row_bytes, n, cols, &s);
            packed += yk_tile_bytes(type, cols);
        }
    }
}
