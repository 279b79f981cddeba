/* layout.h - the packed weight layout under test: 16 rows side by side in the order [k/4][16 rows][4 k].
 *
 * Panel: 16 rows over all columns, a row of tiles. Tile: 16 rows x up to 256 columns ("blocks" of 32; the last tile of a panel
 * may have fewer). Inside a tile the planes follow each other (codes, high bits, scales, minima), and a tile is a multiple of
 * 64 bytes, so every 64-byte load is aligned. docs/kernels/layout.md has the drawings. */
#ifndef YK_BENCH_LAYOUT_H
#define YK_BENCH_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

typedef enum yk_lay { YK_LAY_Q4_0, YK_LAY_Q4_K, YK_LAY_Q6_K, YK_LAY_Q8_0, YK_LAY_F16, YK_LAY_N } yk_lay;

enum { YK_LAY_ROWS = 16, YK_LAY_COLS = 256, YK_LAY_MAX_TOKENS = 512 };

typedef struct yk_lay_traits {
    const char *name;
    uint32_t block_elems, block_bytes; /* in the file */
} yk_lay_traits;

extern const yk_lay_traits yk_lay_types[YK_LAY_N];

/* Byte offsets of the planes in a tile of `blocks` x 32 columns. */
typedef struct yk_lay_tile {
    uint32_t codes, high, scale, sub, sub_min,
        bytes; /* scale: f16 d (Q4_K: d then dmin); sub: 8-bit scales; bytes: whole tile */
} yk_lay_tile;

static inline yk_lay_tile yk_lay_geometry(yk_lay type, uint32_t blocks)
{
    yk_lay_tile t = {0};
    uint32_t end = 0;
    switch (type) {
    case YK_LAY_Q4_0:
        t.scale = 256 * blocks, end = t.scale + 32 * blocks;
        break;
    case YK_LAY_Q8_0:
        t.scale = 512 * blocks, end = t.scale + 32 * blocks;
        break;
    case YK_LAY_Q4_K:
        t.sub = 2048, t.sub_min = 2176, t.scale = 2304, end = 2368;
        break;
    case YK_LAY_Q6_K:
        t.high = 2048, t.sub = 3072, t.scale = 3328, end = 3360;
        break;
    default:
        end = 1024 * blocks;
        break;
    }
    t.bytes = (end + 63) & ~63u;
    return t;
}

/* Bytes of a panel of 16 rows x cols columns (a multiple of 32). */
static inline size_t yk_lay_panel_bytes(yk_lay type, uint32_t cols)
{
    const size_t whole = (size_t)(cols / YK_LAY_COLS) * yk_lay_geometry(type, 8).bytes;
    return whole + (cols % YK_LAY_COLS ? yk_lay_geometry(type, cols % YK_LAY_COLS / 32).bytes : 0);
}

/* 16 rows of file blocks, row_bytes apart, into a panel, and back; the pair is the identity on file bytes. */
void yk_lay_pack(yk_lay type, const uint8_t *rows, size_t row_bytes, uint32_t cols, uint8_t *panel);
void yk_lay_unpack(yk_lay type, const uint8_t *panel, uint32_t cols, uint8_t *rows, size_t row_bytes);
/* One row of file blocks into doubles, exactly. */
void yk_lay_dequant(yk_lay type, const uint8_t *row, uint32_t cols, double *y);

/* Activations of n tokens. Row t of q starts at q + t * cols; its block b has scale[t * cols/32 + b] and sum[...]. off is minus
 * the offset of the type's codes times the sum of q, what an accumulator starts from; fsum is scale * sum. The _blk forms are
 * for many tokens: what 16 tokens bring to one tile of 256 columns is contiguous, [tile][n/16, rounded up][8 blocks][16
 * tokens][...]; token t of block b is entry yk_lay_blk(b, t, n). */
typedef struct yk_lay_act {
    uint32_t n, cols;
    float *x;         /* [n][cols] */
    int8_t *q;        /* [n][cols] */
    float *scale;     /* [n][cols/32] */
    int32_t *sum;     /* [n][cols/32] */
    int32_t *off;     /* [n][cols/32]; Q6_K: [n][cols/16] */
    float *fsum;      /* [n][cols/32] */
    int8_t *q_blk;    /* [entry][32] */
    float *scale_blk; /* [entry] */
    float *fsum_blk;  /* [entry] */
    int32_t *off_blk; /* [2][entry]: of the block or its first half (Q6_K), of the second half */
    uint16_t *xb_blk; /* bf16 of x, [entry][32] */
} yk_lay_act;

static inline size_t yk_lay_blk(uint32_t b, uint32_t t, uint32_t n)
{
    return (((size_t)(b / 8) * ((n + 15) / 16) + t / 16) * 8 + b % 8) * 16 + t % 16;
}

static inline size_t yk_lay_entries(uint32_t n, uint32_t cols)
{
    return (size_t)((cols + 255) / 256) * ((n + 15) / 16) * 128;
}

/* y[t * 16 + r] for one panel. pf: prefetch distance in bytes, into L1 (low 16 bits) and L2 (high 16 bits); 0 for none. n is 1,
 * 2, 4, 8. */
typedef void (*yk_lay_kernel)(const uint8_t *panel, const yk_lay_act *a, float *y, uint32_t pf);
yk_lay_kernel yk_lay_avx512(yk_lay type, uint32_t n);
/* Q8_0, one token, with the codes taken as already stored + 128: what the exclusive-or of the signed form costs. Timing only.
 */
void yk_lay_q8_0_plain(const uint8_t *panel, const yk_lay_act *a, float *y, uint32_t pf);
/* One tile of 256 columns and one token, y[16] += : the step of a `down` matrix stored in panels of 256 columns. */
yk_lay_kernel yk_lay_avx512_step(yk_lay type);

/* Many tokens: y[t * y_stride + r], any n. scratch: yk_lay_scratch_bytes(), 64-byte aligned. */
typedef void (*yk_lay_batch)(const uint8_t *panel, const yk_lay_act *a, float *y, size_t y_stride, void *scratch);
yk_lay_batch yk_lay_vnni(yk_lay type);
/* Two panels that follow each other, 32 results a token. NULL for F16. */
yk_lay_batch yk_lay_vnni_pair(yk_lay type);
yk_lay_batch yk_lay_amx(yk_lay type);
yk_lay_batch yk_lay_amx_bf16(yk_lay type);
size_t yk_lay_scratch_bytes(void);
/* Ask the kernel for AMX; 0 when there is none. */
int yk_lay_amx_open(void);
/* Peak rates of this core, measured, in 1e9 operations a second (multiply and add count as two). */
double yk_lay_peak_vnni(void);
double yk_lay_peak_amx_int8(uint32_t k); /* k columns in a product, 64 is the full tile */

#endif
