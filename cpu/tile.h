/* tile.h - where the planes of a packed tile lie: docs/kernels/layout.md. Shared by packing and by the kernels of each level. */
#ifndef YK_CPU_TILE_H
#define YK_CPU_TILE_H

#include "cpu/ops.h"
#include "cpu/pack.h"

/* Byte offsets of the planes of a tile; a plane the type does not have is 0. Codes start at 0. */
typedef struct yk_tile {
    uint32_t high;    /* [block][64 or 128]: high bits */
    uint32_t sub;     /* [block or half block][16 rows]: 8-bit scales; Q2_K: scale | minimum << 4; MXFP4: exponents */
    uint32_t sub_min; /* [block][16 rows]: 8-bit minima */
    uint32_t scale;   /* f16: [block][16 rows], or d and then dmin of [16 rows] for the K types and IQ4_XS */
    uint32_t min;     /* f16: [block][16 rows], what is added to every weight of a block (Q4_1, Q5_1) */
    uint32_t bytes;   /* whole tile, a multiple of 64 */
} yk_tile;

/* Tile of n_cols columns, 1 to 256; quantised types: whole blocks of the type. bytes 0: the type has no packed form. */
static inline yk_tile yk_tile_of(yk_type type, uint32_t n_cols)
{
    const uint32_t blocks = n_cols / 32;
    yk_tile t = {0};
    switch (type) {
    case YK_TYPE_F32:
        t.bytes = 64 * n_cols;
        break;
    case YK_TYPE_F16:
        t.bytes = 32 * n_cols;
        break;
    case YK_TYPE_BF16:
        t.bytes = 64 * ((n_cols + 1) / 2);
        break;
    case YK_TYPE_Q4_0:
    case YK_TYPE_IQ4_NL:
        t.scale = 256 * blocks;
        t.bytes = t.scale + 32 * blocks;
        break;
    case YK_TYPE_Q4_1:
        t.scale = 256 * blocks;
        t.min = t.scale + 32 * blocks;
        t.bytes = t.min + 32 * blocks;
        break;
    case YK_TYPE_Q5_0:
        t.high = 256 * blocks;
        t.scale = t.high + 64 * blocks;
        t.bytes = t.scale + 32 * blocks;
        break;
    case YK_TYPE_Q5_1:
        t.high = 256 * blocks;
        t.scale = t.high + 64 * blocks;
        t.min = t.scale + 32 * blocks;
        t.bytes = t.min + 32 * blocks;
        break;
    case YK_TYPE_MXFP4:
        t.sub = 256 * blocks;
        t.bytes = t.sub + 16 * blocks;
        break;
    case YK_TYPE_Q8_0:
        t.scale = 512 * blocks;
        t.bytes = t.scale + 32 * blocks;
        break;
    case YK_TYPE_Q2_K:
        t = (yk_tile){.sub = 1024, .scale = 1280, .bytes = 1344};
        break;
    case YK_TYPE_Q3_K:
        t = (yk_tile){.high = 1024, .sub = 1536, .scale = 1792, .bytes = 1824};
        break;
    case YK_TYPE_IQ4_XS:
        t = (yk_tile){.sub = 2048, .scale = 2176, .bytes = 2208};
        break;
    case YK_TYPE_Q4_K:
        t = (yk_tile){.sub = 2048, .sub_min = 2176, .scale = 2304, .bytes = 2368};
        break;
    case YK_TYPE_Q5_K:
        t = (yk_tile){.high = 2048, .sub = 2560, .sub_min = 2688, .scale = 2816, .bytes = 2880};
        break;
    case YK_TYPE_Q6_K:
        t = (yk_tile){.high = 2048, .sub = 3072, .scale = 3328, .bytes = 3360};
        break;
    default:
        break;
    }
    t.bytes = (t.bytes + 63) & ~63u;
    return t;
}

/* ---- what types differ in, for the kernels of the levels; constants where a step is compiled ---- */

/* Codes of two bits, scales of half blocks that meet as integers. */
static inline bool yk_tile_is_q2(yk_type type)
{
    return type == YK_TYPE_Q2_K || type == YK_TYPE_Q3_K;
}

/* d of a tile, 8-bit scales. */
static inline bool yk_tile_has_super(yk_type type)
{
    return yk_tile_is_q2(type) || type == YK_TYPE_Q4_K || type == YK_TYPE_Q5_K || type == YK_TYPE_Q6_K ||
           type == YK_TYPE_IQ4_XS;
}

static inline bool yk_tile_has_min(yk_type type)
{
    return type == YK_TYPE_Q4_1 || type == YK_TYPE_Q5_1 || type == YK_TYPE_Q2_K || type == YK_TYPE_Q4_K || type == YK_TYPE_Q5_K;
}

static inline bool yk_tile_has_fifth(yk_type type)
{
    return type == YK_TYPE_Q5_0 || type == YK_TYPE_Q5_1 || type == YK_TYPE_Q5_K;
}

/* What stored unsigned codes, or those of the table of MXFP4, are too large by. */
static inline int yk_tile_offset(yk_type type)
{
    switch (type) {
    case YK_TYPE_Q4_0:
        return 8;
    case YK_TYPE_Q5_0:
        return 16;
    case YK_TYPE_Q6_K:
        return 32;
    case YK_TYPE_Q3_K:
        return 4;
    case YK_TYPE_MXFP4:
        return 12;
    default:
        return 0;
    }
}

/* Bytes from a tile at column c to the one that comes `ahead` columns later; behind the last column to the first ones of the panels that follow these, which
 * the next call often begins with. */
static inline int64_t yk_column_ahead(const yk_matmul_packed *m, uint32_t c, uint32_t ahead, uint32_t n_panels)
{
    const uint32_t n = (m->n_cols + YK_TILE_COLS - 1) / YK_TILE_COLS, at = c / YK_TILE_COLS;
    const int64_t stride = (int64_t)m->tile_stride;
    if (at + ahead < n)
        return ahead * stride;
    return n_panels * (int64_t)m->panel_bytes + ((int64_t)((at + ahead) % n) - at) * stride;
}

#endif
