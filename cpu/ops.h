/* ops.h - the CPU's op table: one slot per operation, filled with plain C (cpu/ref), then overridden upward by instruction set.
 *
 * Contracts and layouts: docs/kernels/. All vectors are f32 unless said otherwise; pointers of different arguments do not alias unless
 * said so; sums run in the order the contract gives, so that results do not depend on threads. */
#ifndef YK_CPU_OPS_H
#define YK_CPU_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu/topology.h"
#include "src/model/arch.h"
#include "src/model/types.h"

/* Activations rounded to int8 in blocks of 32: x ~ q * scale. Block b of row t covers columns 32b .. 32b+31; a last block that is not full
 * is padded with zeros.
 *   scale = max|x| / 127, q = round-half-away(x * (127 / max|x|)); scale 0 and q 0 for a block of zeros (all below 2^-96); scale NaN and
 *   q 0 for a block with infinity or NaN. Bit for bit: docs/kernels/quantise.md.
 *   sum[2b], sum[2b+1] = sum of q in columns 0..15 and 16..31 of the block. */
typedef struct yk_q8 {
    int8_t *q;    /* [rows][n_blocks * 32] */
    float *scale; /* [rows][n_blocks] */
    int16_t *sum; /* [rows][n_blocks * 2] */
    uint32_t n_blocks;
} yk_q8;

typedef struct yk_matmul {
    const uint8_t *w;     /* first weight row, file layout */
    uint64_t row_bytes;   /* distance of weight rows */
    uint32_t n_rows;      /* weight rows to compute */
    uint32_t n_cols;      /* a multiple of the type's block */
    const float *x;       /* f32 types: activations [n_tokens][x_stride] */
    size_t x_stride;      /* floats */
    const yk_q8 *xq;      /* quantised types: activations, rows as in x; x is then not read */
    const uint32_t *rows; /* NULL, or [n_tokens]: token t uses activation row rows[t] */
    uint32_t n_tokens;
    float *y;        /* [n_tokens][y_stride]: y[t][r] = sum over columns */
    size_t y_stride; /* floats */
} yk_matmul;

/* The same product on packed weights (cpu/pack.h), 16 rows at a time. */
typedef struct yk_matmul_packed {
    const uint8_t *w;     /* first panel, 64-byte aligned */
    uint64_t panel_bytes; /* distance of panels, a multiple of 64; a panel itself has yk_panel_bytes(type, n_cols) */
    uint64_t tile_stride; /* distance of a panel's tiles, a multiple of 64; 0: they follow each other */
    uint32_t n_rows;      /* rows to compute, from the first row of the first panel on; the last panel may be used in part */
    uint32_t n_cols;      /* a multiple of the type's block */
    const float *x;       /* as in yk_matmul, down to y_stride */
    size_t x_stride;
    const yk_q8 *xq;
    const uint32_t *rows;
    uint32_t n_tokens;
    float *y;
    size_t y_stride;
} yk_matmul_packed;

/* Positions first <= p < end that a token sees; end > first. */
typedef struct yk_seen {
    uint32_t first, end;
} yk_seen;

typedef struct yk_attention {
    const float *q;              /* [n_heads][head_dim], rotated, of one token */
    const void *const *k_blocks; /* [n_blocks] pointers to K of this kv head: [16][head_dim], kv_stride elements apart */
    const void *const *v_blocks;
    size_t kv_stride; /* elements between positions of one block */
    uint32_t n_heads; /* query heads that share this kv head */
    uint32_t head_dim;
    uint32_t first, end; /* positions first <= p < end are seen; end > first */
    float scale;         /* 1 / sqrt(head_dim) */
    const float *sinks;  /* NULL or [n_heads]: one more logit each, with value zero */
    bool kv_f16;         /* else f32 */
    float *scores;       /* scratch [n_heads * round up 16 (end - first)] */
    float *out;          /* [n_heads][head_dim] */
    /* More tokens of the same sequence in one call: they share one pass over K and V. The result of a token does not depend on the others. */
    uint32_t n_tokens;           /* 0 counts as 1; `scores` is needed for one token only */
    const yk_seen *seen;         /* NULL: all see first .. end; else [n_tokens], and first and end are not read */
    size_t q_stride, out_stride; /* floats between tokens */
    /* Positions in parts, of which attention_join makes the whole: then this call's `out` is the sum of e^(score - max) * value. */
    float *
        state; /* NULL: `out` is the result; else [n_tokens][n_heads][2]: max, and the sum of e^(score - max), sinks included */
    uint32_t then; /* positions up to here are wanted after this call, and fetched ahead; 0: none */
} yk_attention;

/* A part of the positions, for n_heads heads of one token; `out` and `state` as yk_attention gives them. */
typedef struct yk_attention_part {
    const float *out, *state;
    uint32_t n_heads, head_dim;
    bool last; /* no part follows */
} yk_attention_part;

typedef struct yk_ops {
    yk_isa isa;

    /* Rows of a weight matrix into f32, exactly as the type defines them. n_elems is a multiple of the block. [by yk_type] */
    void (*dequant[YK_TYPE_LIMIT])(const uint8_t *w, uint64_t n_elems, float *y);
    /* y = W x for a range of rows and a batch of tokens. [by yk_type] */
    void (*matmul[YK_TYPE_LIMIT])(const yk_matmul *m);
    /* The same on packed weights; NULL for types without a packed form (yk_pack_has). [by yk_type] */
    void (*matmul_packed[YK_TYPE_LIMIT])(const yk_matmul_packed *m);

    /* One row of n f32 into the first blocks of q8 row `row` of dst; blocks behind are not touched (dst may be a view into wider rows). */
    void (*quantise)(const float *x, uint32_t n, yk_q8 *dst, uint32_t row);

    /* y = x / sqrt(mean(x^2) + eps) * w (+ b); w NULL means 1; y may be x. */
    void (*rms_norm)(const float *x, const float *w, const float *b, uint32_t n, float eps, float *y);
    /* y += x */
    void (*add)(const float *x, uint32_t n, float *y);
    /* y += a * x */
    void (*add_scaled)(const float *x, float a, uint32_t n, float *y);
    /* Rotate n_heads heads of head_dim in place, the first n_rot dimensions of each; cs: [n_rot/2][2] cos and sin of this position. */
    void (*rope)(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot, const float *cs, yk_rope_pairing pairing);
    /* y = glu(gate, up); y may be gate. */
    void (*glu)(const float *gate, const float *up, uint32_t n, yk_glu kind, float *y);
    /* Attention of one token, or of some tokens of one sequence, for one kv head. */
    void (*attention)(const yk_attention *a);
    /* Add a part to the sum of those before it, in `out` and `state`; after the last one `out` is the result. */
    void (*attention_join)(const yk_attention_part *p, float *out, float *state);
    /* Router: logits [n] -> ids [k] and weights [k]. Always gives k different ids < n, whatever the logits (NaN counts as the lowest);
     * equal logits go to the lower id. */
    void (*route)(const float *logits, uint32_t n, uint32_t k, yk_router kind, bool renorm, uint32_t *ids, float *weights);
    /* f32 to f16, round to nearest even. */
    void (*to_f16)(const float *x, uint32_t n, uint16_t *y);
} yk_ops;

/* The table for an instruction set level; slots without a kernel of that level hold the next lower one's. Static storage. */
const yk_ops *yk_ops_get(yk_isa isa);

/* Layers of the table, lowest first. */
void yk_ops_fill_ref(yk_ops *ops);
#ifdef YK_HAVE_AVX2
void yk_ops_fill_avx2(yk_ops *ops);
void yk_ops_fill_avx2_attention(yk_ops *ops);
void yk_ops_fill_avx2_vector(yk_ops *ops);
#endif
#ifdef YK_HAVE_AVXVNNI
void yk_ops_fill_avxvnni(yk_ops *ops);
#endif
#ifdef YK_HAVE_AVX512
void yk_ops_fill_avx512(yk_ops *ops);
void yk_ops_fill_avx512_attention(yk_ops *ops);
void yk_ops_fill_avx512_vector(yk_ops *ops);
#endif
#ifdef YK_HAVE_AMX
void yk_ops_fill_amx(yk_ops *ops);
#endif

#endif
