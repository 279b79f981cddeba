/* model.h - a checked model: hyperparameters, tensors by role, tokenizer. The engine reads only this. */
#ifndef YK_MODEL_MODEL_H
#define YK_MODEL_MODEL_H

#include "src/model/arch.h"
#include "src/model/gguf.h"
#include "src/model/tokenizer.h"

/* A weight matrix [n_rows][n_cols] (one row per output), or a set of n_mats of them (experts), in file layout. A vector is one
 * row. Fused tensors are given as row ranges of the same bytes. data == NULL: the model has no such tensor. */
typedef struct yk_weight {
    const uint8_t *data;
    const uint8_t *const *mats; /* old per-expert files: [n_mats] pointers, each contiguous; else NULL and mat_bytes is used */
    yk_type type;
    uint32_t n_rows, n_cols, n_mats; /* n_mats 1 for a plain matrix */
    uint64_t row_bytes, mat_bytes;   /* mat_bytes: distance of consecutive matrices */
} yk_weight;

static inline const uint8_t *yk_weight_row(const yk_weight *w, uint32_t mat, uint32_t row)
{
    const uint8_t *m = w->mats ? w->mats[mat] : w->data + (uint64_t)mat * w->mat_bytes;
    return m + (uint64_t)row * w->row_bytes;
}

typedef struct yk_hparams {
    uint32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_vocab, n_ctx_train;
    uint32_t n_ff;                                        /* dense FFN width; 0 when all layers have experts */
    uint32_t n_experts, n_used, n_expert_ff, n_shared_ff; /* 0 when dense / no shared expert */
    uint32_t window;                                      /* sliding window in tokens, own position included; 0: none */
    float norm_eps;
    /* rotary positions */
    uint32_t n_rot; /* dimensions of a head that rotate, even */
    float rope_base;
    enum { YK_ROPE_NONE, YK_ROPE_LINEAR, YK_ROPE_YARN, YK_ROPE_LONGROPE } rope_scaling;
    float rope_factor;                    /* > 0; 1: no scaling */
    uint32_t rope_orig_ctx;               /* context before scaling */
    float rope_attn_factor;               /* multiplies cos and sin */
    float yarn_beta_fast, yarn_beta_slow; /* 32, 1 */
} yk_hparams;

/* Vectors (norms, biases, sinks, rope factors) are F32 in file, [n]; NULL when absent. */
typedef struct yk_layer {
    const float *attn_norm, *attn_norm_b;
    yk_weight q, k, v, o;
    const float *q_b, *k_b, *v_b, *o_b;
    const float *q_norm, *k_norm; /* [head_dim] or [heads * head_dim], by arch->qk_norm */
    const float *sinks;           /* [n_heads] */
    const float *ffn_norm, *ffn_norm_b;
    bool moe;
    yk_weight gate, up, down;                     /* dense: n_mats 1; moe: n_mats n_experts */
    const float *gate_b, *up_b, *down_b;          /* moe: [n_experts][rows] */
    yk_weight router;                             /* [n_experts][n_embd]; always F32, F16 or BF16 */
    const float *router_b;                        /* [n_experts] */
    yk_weight sh_gate, sh_up, sh_down, sh_router; /* shared expert; sh_router is one row */
} yk_layer;

struct yk_model {
    yk_gguf gguf;
    char *path, *name;
    const yk_arch *arch;
    yk_hparams hp;
    yk_tokenizer *tok;
    yk_weight token_embd, output; /* output is token_embd when tied */
    const float *output_norm, *output_norm_b, *output_b;
    const float *rope_freqs; /* [n_rot/2] divisors, or NULL */
    const float *rope_long, *rope_short;
    yk_layer *layers; /* [n_layers] */
    bool vocab_only, tied;
    uint64_t n_params, n_weight_bytes;
    char *chat_template; /* NUL-terminated or NULL */
    char file_type[16];
    /* general.architecture; with vocab_only it may be one yoke does not run, then arch is NULL and hp holds only n_vocab */
    char *arch_name;
    /* memory owned for the above (converted vectors, aligned copies, pointer tables) */
    void **owned;
    uint32_t n_owned, cap_owned;
};

/* As yk_model_open, from a GGUF image in memory that outlives the model; for tests and fuzzing. */
yk_status yk_model_open_memory(yk_model **out, const uint8_t *data, uint64_t size, const yk_model_opts *opts, yk_error *err);

/* The steps of opening, in this order; each needs the ones before it. */
yk_status yk_model_read_hparams(yk_model *m, yk_error *err); /* arch, hp except n_vocab; no tensor data is looked at */
yk_status yk_model_bind(yk_model *m, yk_error *err);         /* hp.n_vocab and all weights; every shape checked */
yk_status yk_model_check_tensors(const yk_model *m, const yk_model_opts *opts, yk_error *err); /* every value finite */

/* Zeroed memory freed with the model; NULL when it cannot be had. */
void *yk_model_own(yk_model *m, yk_mem_class cls, uint64_t n, uint64_t size);

#endif
