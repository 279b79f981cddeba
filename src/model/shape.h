/* shape.h - what placing a model needs to know of it: which matrices there are, their types and bytes, how they are cut; no
 * weights. Filled from a model here, from a shape file in partition/. */
#ifndef YK_MODEL_SHAPE_H
#define YK_MODEL_SHAPE_H

#include "src/base/mem.h"
#include "src/model/cut.h"
#include "src/model/mix.h"
#include "src/model/types.h"

typedef enum yk_part_group {
    YK_PART_FFN,   /* "ffn": the FFN of a dense layer */
    YK_PART_EXP,   /* "exp": routed experts */
    YK_PART_SHEXP, /* "shexp": the shared expert */
    YK_PART_N
} yk_part_group;

enum { YK_MAT_GATE, YK_MAT_UP, YK_MAT_DOWN, YK_PART_MATS };
enum { YK_MAT_Q, YK_MAT_K, YK_MAT_V, YK_MAT_O, YK_ATTN_MATS };

typedef struct yk_shape_mat {
    yk_type type;
    uint64_t bytes; /* 0: there is no such matrix */
} yk_shape_mat;

/* An FFN part; all its instances (experts) are alike. */
typedef struct yk_shape_part {
    uint32_t n;     /* instances: experts; 1 for ffn and shexp; 0: the layer has no such part */
    bool host_only; /* a type that no device computes: home is the host, kind CC */
    yk_cut cut;
    yk_type type[YK_PART_MATS];
    uint64_t unit_bytes[YK_PART_MATS], last_bytes[YK_PART_MATS]; /* of a whole unit and of the last one */
} yk_shape_part;

typedef struct yk_shape_layer {
    yk_shape_mat attn[YK_ATTN_MATS];
    yk_shape_mat router;  /* and the shared expert's gate row; stays where the attention is, as all of other_bytes */
    uint64_t other_bytes; /* norms, biases, sinks */
    uint32_t window;      /* positions attention looks back; 0: all */
    bool host_only;       /* attention, as host_only of parts */
    yk_shape_part part[YK_PART_N];
} yk_shape_layer;

typedef struct yk_shape {
    char name[64];
    char id[17]; /* hash of sizes, types and cut, 16 hex digits: a plan fits every file of this id */
    uint32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_vocab;
    uint32_t n_experts, n_used; /* 0, 0: dense */
    uint32_t n_ctx_train;
    bool tied;               /* head and embedding are one tensor */
    yk_shape_mat embd, head; /* head.bytes > 0 also when tied */
    bool head_host_only;
    yk_shape_layer *layers; /* [n_layers]; freed by yk_shape_close */
} yk_shape;

/* Bytes of a matrix [n_rows][n_cols] as it will lie in memory (packing may take a little more than the file). */
typedef uint64_t (*yk_shape_bytes_fn)(yk_type type, uint32_t n_rows, uint32_t n_cols);

/* Can a device multiply with a matrix of this type? plain: as rows like in the file (routers), else packed. */
typedef bool (*yk_shape_device_fn)(yk_type type, bool plain);

typedef struct yk_shape_opts {
    yk_shape_bytes_fn bytes;   /* NULL: as in the file */
    yk_shape_device_fn device; /* sets the flags host_only of a model's shape; NULL: none is set */
    uint32_t cut_unit;         /* 0: YK_CUT_UNIT; tests cut small models finer */
} yk_shape_opts;

/* The shape of a model with weights. opts may be NULL. YK_ERR_USAGE: opened with vocab_only. YK_ERR_MEMORY. */
struct yk_model;
yk_status yk_shape_from_model(yk_shape *out, const struct yk_model *model, const yk_shape_opts *opts, yk_error *err);

/* The published sizes of a model, to be combined with the types of a mix as `yoke synth` would write them. */
typedef struct yk_shape_dims {
    char name[64];
    uint32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_vocab, n_ctx_train;
    uint32_t n_ff;                                        /* 0: every layer has experts */
    uint32_t n_experts, n_used, n_expert_ff, n_shared_ff; /* 0: dense, or no shared expert */
    uint32_t window;                                      /* sliding window; window_even: of layers 0, 2, 4, ... only */
    bool window_even, tied, qk_norm, biases, sinks;       /* biases: of every matrix, as gpt-oss */
} yk_shape_dims;

/* The caller has checked: sizes that must be there are not 0; n_heads * head_dim, n_vocab < 2^24; widths, n_experts *
 * n_expert_ff < 2^24; blocks fit (yk_mix_type sees to that). YK_ERR_INPUT: more bytes than any machine holds. YK_ERR_MEMORY. */
yk_status yk_shape_from_dims(yk_shape *out, const yk_shape_dims *dims, const yk_mix *mix, const yk_shape_opts *opts,
                             yk_error *err);
void yk_shape_close(yk_shape *shape);

/* "ffn", "exp", "shexp". */
const char *yk_part_group_name(yk_part_group group);

/* Bytes of `units` cut units from unit0; of all instances of all parts of a layer; of its attention with router, norms, biases.
 */
uint64_t yk_shape_units_bytes(const yk_shape_part *part, uint32_t unit0, uint32_t units);
uint64_t yk_shape_ffn_bytes(const yk_shape_layer *layer);
uint64_t yk_shape_attn_bytes(const yk_shape_layer *layer);
/* K and V of a token in one layer. */
static inline uint64_t yk_shape_kv_bytes(const yk_shape *s, uint32_t elem_bytes)
{
    return 2ull * s->n_kv_heads * s->head_dim * elem_bytes;
}

#endif
