/* kernels.h - the arguments of every kernel of gpu/kernels. What each kernel computes: docs/kernels/gpu.md.
 *
 * A call is filled from a struct by the function of the kernel's name; launch(stream, &call.launch) enqueues it. The struct may
 * be forgotten then. Memory that is {0} is absent: optional arguments are marked so. Strides are elements (floats, or blocks of
 * 32 for rounded rows) unless they say bytes; a stride is that of rows (tokens). `n` is the number of tokens; with n 0 nothing
 * is to be launched. No argument may overlap another one's output, except where said. Offsets are multiples of the element's
 * size, 16 for rounded activations, 64 for packed weights. */
#ifndef YK_GPU_KERNELS_H
#define YK_GPU_KERNELS_H

#include "gpu/device.h"
#include "src/model/arch.h"
#include "src/model/types.h"

enum {
    YK_K_GROUP = 64,     /* group_size of every launch */
    YK_K_MAX_HEAD = 512, /* head_dim */
    YK_K_MAX_EXPERTS = 1024,
    YK_K_MAX_USED = 64, /* experts of a token */
    YK_K_KV_BLOCK = 16  /* positions of a KV block */
};

typedef struct yk_k_call {
    yk_gpu_launch launch; /* launch.args points into this struct */
    yk_gpu_arg args[YK_GPU_MAX_ARGS];
} yk_k_call;

/* Activations rounded to int8 as yk_q8 of cpu/ops.h: q [rows][n_blocks * 32] int8, scale [rows][n_blocks] f32, sum
 * [rows][n_blocks * 2] int16; n_blocks is the number of columns / 32, rounded up. */
typedef struct yk_k_q8 {
    yk_gpu_mem q, scale, sum;
} yk_k_q8;

/* "add_norm": x[rows[t]] += sum of rows t * n_y .. of y + y2[t]; out[t] = x / sqrt(mean(x^2) + eps) * w + b; q8 row t = out[t] rounded. */
typedef struct yk_k_add_norm {
    yk_gpu_mem x;     /* f32, changed only when y or y2 is there */
    yk_gpu_mem y, y2; /* optional, f32; x + (the rows of y, in their order) first, then + y2 */
    yk_gpu_mem rows;  /* optional u32 [n]: row of x of token t, each at most once; else t */
    yk_gpu_mem w, b;  /* optional f32 [n_cols] */
    yk_gpu_mem out;   /* optional f32 */
    yk_k_q8 q8;       /* optional */
    uint32_t n, n_cols, x_stride, y_stride, y2_stride, out_stride, n_y; /* n_y 0: 1 */
    float eps;
} yk_k_add_norm;
void yk_k_call_add_norm(yk_k_call *call, yk_gpu_kernel *kernel, const yk_k_add_norm *a);

/* "quantise": q8 row t = x[rows[t]] rounded; the bits of yk_ops.quantise. */
typedef struct yk_k_quantise {
    yk_gpu_mem x, rows; /* rows optional */
    yk_k_q8 q8;
    uint32_t n, n_cols, x_stride;
} yk_k_quantise;
void yk_k_call_quantise(yk_k_call *call, yk_gpu_kernel *kernel, const yk_k_quantise *a);

/* The packed FFN parts of a layer, for kernels that find them by a part's number: YK_PART_WORDS u32 each, as dialect.k.h says. */
enum { YK_K_PART_WORDS = 12, YK_K_PART_ALIGN = 256 };

/* "glu": out[t] = glu(gate[t] + gate_b, up[t] + up_b), q8 row t the same rounded. out may be gate (same offset and stride, up there) or absent. Without up the
 * row of gate has 16 columns of each in turn, n_cols counts those of one. With ids row t has the columns of part ids[t], at most n_cols, and its biases. */
typedef struct yk_k_glu {
    yk_gpu_mem gate, up, out;
    yk_gpu_mem gate_b, up_b; /* optional f32, with ids [parts][n_cols] */
    yk_gpu_mem ids, parts;   /* optional u32 [n], [parts][YK_K_PART_WORDS] */
    yk_k_q8 q8;              /* optional */
    uint32_t n, n_cols, gate_stride, up_stride, out_stride;
    yk_glu kind;
} yk_k_glu;
void yk_k_call_glu(yk_k_call *call, yk_gpu_kernel *kernel, const yk_k_glu *a);

/* "move_rows": y[y_rows[t]] = or += weights[t] * x[rows[t]]; to_f16: y is f16 and nothing is added. y_rows different from each
 * other. */
typedef struct yk_k_move_rows {
    yk_gpu_mem x, rows, weights, y, y_rows; /* rows, weights, y_rows optional */
    uint32_t n, n_cols, x_stride, y_stride;
    bool add, to_f16;
} yk_k_move_rows;
void yk_k_call_move_rows(yk_k_call *call, yk_gpu_kernel *kernel, const yk_k_move_rows *a);

/* "sigmoid": y[i] = 1 / (1 + e^-x[i]), i < n; y may be x. */
void yk_k_call_sigmoid(yk_k_call *call, yk_gpu_kernel *kernel, yk_gpu_mem x, yk_gpu_mem y, uint32_t n);

/* Where keys and values are. Position p of sequence s lies in KV block table[s * table_stride + p / 16]; block i starts at kv +
 * i * block_bytes. At its start K [n_kv_heads][16][head_dim], v_bytes further V, likewise. kv's offset chooses the layer. */
typedef struct yk_k_kv {
    yk_gpu_mem kv, table; /* table u32 */
    uint32_t block_bytes, v_bytes, table_stride;
    bool f16; /* else f32 */
} yk_k_kv;

/* "rope_kv": from rows [q | k | v] of qkv: + bias, norm of q and k, rotation by cs[pos], q to q_out, k and v into the KV
 * blocks. */
typedef struct yk_k_rope_kv {
    yk_gpu_mem qkv;            /* f32 [n][qkv_stride]: n_heads, n_kv_heads, n_kv_heads heads of head_dim */
    yk_gpu_mem q_b, k_b, v_b;  /* optional f32 */
    yk_gpu_mem q_norm, k_norm; /* optional f32, [head_dim] or, full_norm, [heads * head_dim] */
    yk_gpu_mem cs;             /* f32 [context][n_rot / 2][2] */
    yk_gpu_mem pos, seq;       /* u32 [n]: position, row of the block table */
    yk_gpu_mem q_out;          /* f32 [n][q_stride] */
    yk_k_kv kv;
    uint32_t n, qkv_stride, q_stride, n_heads, n_kv_heads, head_dim, n_rot;
    float eps;
    yk_rope_pairing pairing;
    bool full_norm;
} yk_k_rope_kv;
void yk_k_call_rope_kv(yk_k_call *call, yk_gpu_kernel *kernel, const yk_k_rope_kv *a);

/* "attend": rope_kv and attention in one launch, for tokens that each are of another sequence; the bits are theirs. */
typedef struct yk_k_attend {
    yk_k_rope_kv rope;        /* without q_out, q_stride */
    yk_gpu_mem sinks;         /* as attention's */
    yk_gpu_mem out;           /* f32 [n][out_stride] */
    yk_k_q8 q8;               /* optional: out rounded, head_dim a multiple of 32 */
    yk_gpu_mem part, arrived; /* as attention's */
    uint32_t n_splits;        /* the most that a token has */
    uint32_t out_stride, window;
    uint32_t mean_positions; /* for the cost only */
    float scale;
} yk_k_attend;
void yk_k_call_attend(yk_k_call *call, yk_gpu_kernel *kernel, const yk_k_attend *a);

/* "attention": token t sees positions max(0, pos + 1 - window) .. pos (window 0: all) of its sequence; those must have been
 * written. Tokens are grouped to tiles of up to yk_k_attention_tile consecutive ones of a sequence, which read K and V
 * together. With n_splits > 1 the positions of each tile of one token are cut into ranges, computed at the same time, as many
 * as yk_k_attention_splits says; n_splits is the most of them. */
typedef struct yk_k_attention {
    yk_gpu_mem q;        /* f32 [n][q_stride], rotated */
    yk_gpu_mem pos, seq; /* u32 [n] */
    yk_gpu_mem sinks;    /* optional f32 [n_heads] */
    yk_gpu_mem tiles;    /* u32 [n_tiles][2]: first token, tokens */
    yk_gpu_mem out;      /* f32 [n][out_stride] */
    yk_gpu_mem part;     /* with splits: n_tiles times yk_k_attention_part_bytes, 16-byte aligned */
    yk_gpu_mem arrived;  /* with splits: u32 [n_tiles][n_heads], 0 before the launch and behind it */
    yk_k_kv kv;          /* 16-byte aligned */
    uint32_t n, n_tiles, n_splits, q_stride, out_stride, n_heads, n_kv_heads, head_dim, window;
    uint32_t mean_positions; /* for the cost only */
    float scale;
} yk_k_attention;
void yk_k_call_attention(yk_k_call *call, yk_gpu_kernel *kernel, const yk_k_attention *a);
/* Tokens of a tile, at most; those of a sequence, tokens first .. first + n - 1, as tiles: how many, at most n. */
uint32_t yk_k_attention_tile(uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim);
uint32_t yk_k_attention_tiles(uint32_t *tiles, uint32_t first, uint32_t n, uint32_t tokens);
/* Splits of a token at a position: of the depth and head_dim alone. Room that a token's take up to `context` positions. */
uint32_t yk_k_attention_splits(uint32_t pos, uint32_t window, uint32_t head_dim);
uint64_t yk_k_attention_part_bytes(uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim, uint32_t context);

/* The kernel for n tokens: "matvec_TYPE" or, for many, "matmul_TYPE"; both have the same bits. NULL for types that are no weights. */
const char *yk_k_matvec_name(yk_type type, uint32_t n);
bool yk_k_matvec_wide(uint32_t n); /* is it "matmul_TYPE"? */

/* y[y_rows[t]][r] = or += weights[t] * (w[r] . x[rows[t]] + bias[r]), r < n_rows.
 *
 * Packed weights (docs/kernels/layout.md): tiles of 16 rows by 256 columns. Tile j of panel p (rows 16p..) lies at byte
 *   (p / group_panels) * group_bytes + (p % group_panels) * panel_bytes + j * tile_bytes
 * of w, so that one launch covers a whole matrix (group_panels 0: no groups), the gate or up rows of several cut units (a group
 * is a unit), or the `down` columns of several units (panel_bytes one tile, tile_bytes the distance of units). A range of rows
 * starts at a panel. */
typedef struct yk_k_matvec {
    yk_type type;
    yk_gpu_mem w;
    yk_gpu_mem x;               /* F32, F16, BF16: f32 activations */
    yk_k_q8 q8;                 /* other types */
    yk_gpu_mem rows;            /* optional u32 [n] */
    yk_gpu_mem bias;            /* optional f32 [n_rows] */
    yk_gpu_mem weights;         /* optional f32 [n] */
    yk_gpu_mem y, y_rows;       /* f32; y_rows optional u32 [n], different from each other */
    uint32_t n, n_rows, n_cols; /* n_cols a multiple of the type's block */
    uint32_t x_stride;          /* floats, or blocks of 32 of a rounded row */
    uint32_t y_stride, panel_bytes, tile_bytes, group_panels, group_bytes;
    bool add;
} yk_k_matvec;
/* kernel: that of yk_k_matvec_name for type and n. */
void yk_k_call_matvec(yk_k_call *call, yk_gpu_kernel *kernel, const yk_k_matvec *a);

/* "list_TYPE": products of the parts that each token has chosen. Slot j = t * used + s is entry s of token t. down: y[j] = weights[j] * (down of part ids[j] . row j
 * of the activations + bias); else y[j] = gate and up of part ids[j] . row t of the activations, 16 rows of each in turn. Bits as of matvec. */
typedef struct yk_k_list {
    yk_type type;
    yk_gpu_mem w;          /* base of the parts' places */
    yk_gpu_mem parts, ids; /* u32 [parts][YK_K_PART_WORDS], [n * used] */
    yk_gpu_mem x;
    yk_k_q8 q8;
    yk_gpu_mem bias;    /* optional f32 [parts][n_rows], with down */
    yk_gpu_mem weights; /* optional f32 [n * used] */
    yk_gpu_mem y;
    uint32_t n, used;        /* tokens, entries of each */
    uint32_t n_rows, n_cols; /* the most of a part: rows that y has, columns (with down of the widest part) */
    uint32_t x_stride, y_stride;
    uint32_t panel_bytes, tile_bytes; /* gate and up: of a panel of one of them, of a tile */
    bool down;
} yk_k_list;
const char *yk_k_list_name(yk_type type); /* NULL for types that are no weights */
void yk_k_call_list(yk_k_call *call, yk_gpu_kernel *kernel, const yk_k_list *a);

/* "rowmat": y[t][r] = w[r] . x[t] + bias[r] for a plain row-major matrix [n_rows][n_cols] of F32, F16 or BF16 (router), then
 * y[t][n_rows] = w2 . x[t] when w2 is there (shared expert's gate). */
typedef struct yk_k_rowmat {
    yk_gpu_mem w, w2, x, bias, y; /* w2, bias optional */
    uint32_t n, n_rows, n_cols, x_stride, y_stride;
    yk_type type, type2; /* of w, w2 */
} yk_k_rowmat;
void yk_k_call_rowmat(yk_k_call *call, yk_gpu_kernel *kernel, const yk_k_rowmat *a);

/* "route": ids [n][k] u32 and weights [n][k] f32 from logits [n][stride]; as yk_ops.route. k <= n_experts <= 1024, k <= 64. With a shared expert rows have
 * k + 1 entries: the last is n_experts, its weight 1 or, shared_gate, the sigmoid of logit n_experts. */
typedef struct yk_k_route {
    yk_gpu_mem logits, ids, weights;
    uint32_t n, n_experts, k, stride;
    yk_router kind;
    bool renorm, shared, shared_gate;
} yk_k_route;
void yk_k_call_route(yk_k_call *call, yk_gpu_kernel *kernel, const yk_k_route *a);

/* "embed_TYPE": the types of matvec. */
const char *yk_k_embed_name(yk_type type);

/* out[t] = row ids[t] of the table as f32, exactly as its type defines it; an id outside the table gives row 0. */
typedef struct yk_k_embed {
    yk_type type;
    yk_gpu_mem w, ids, out; /* ids u32 [n] */
    uint32_t n, n_rows, n_cols, out_stride;
    uint32_t row_bytes;   /* file layout: bytes between rows */
    uint32_t panel_bytes; /* packed: bytes between panels, tile_bytes between tiles of a panel; 0: file layout */
    uint32_t tile_bytes;
} yk_k_embed;
void yk_k_call_embed(yk_k_call *call, yk_gpu_kernel *kernel, const yk_k_embed *a);

#endif
