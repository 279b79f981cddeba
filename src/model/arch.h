/* arch.h - the architectures yoke runs, one row each. To add one, add a row in arch.c; the engine reads only these fields and
 * never asks for a name. */
#ifndef YK_MODEL_ARCH_H
#define YK_MODEL_ARCH_H

#include <stdbool.h>
#include <stdint.h>

typedef enum yk_rope_pairing {
    YK_ROPE_ADJACENT, /* pairs (0,1) (2,3) ... : LLaMA in GGUF */
    YK_ROPE_HALVES    /* pairs (i, i + n_rot/2): NeoX */
} yk_rope_pairing;

typedef enum yk_qk_norm {
    YK_QK_NORM_NONE,
    YK_QK_NORM_HEAD, /* RMS over each head, weight [head_dim] */
    YK_QK_NORM_FULL  /* RMS over the whole q or k vector before it is cut into heads, weight [n_heads * head_dim] */
} yk_qk_norm;

typedef enum yk_glu {
    YK_GLU_SILU,   /* silu(gate) * up */
    YK_GLU_CLAMPED /* g = min(gate, 7), u = clamp(up, -7, 7): g * sigmoid(1.702 g) * (u + 1); gpt-oss */
} yk_glu;

typedef enum yk_router {
    YK_ROUTER_SOFTMAX_TOPK, /* softmax over all experts, then the best k */
    YK_ROUTER_TOPK_SOFTMAX  /* the best k logits, then softmax over those */
} yk_router;

/* Which optional tensors an architecture may have; a required one that is missing and one that is present but not listed are
 * both refused. */
enum {
    YK_ARCH_QKV_BIAS = 1 << 0,      /* attn_{q,k,v}.bias (or attn_qkv.bias) */
    YK_ARCH_OUT_BIAS = 1 << 1,      /* attn_output.bias */
    YK_ARCH_NORM_BIAS = 1 << 2,     /* attn_norm, ffn_norm, output_norm .bias */
    YK_ARCH_HEAD_BIAS = 1 << 3,     /* output.bias */
    YK_ARCH_FFN_BIAS = 1 << 4,      /* router and expert biases */
    YK_ARCH_SINKS = 1 << 5,         /* attn_sinks.weight [n_heads] */
    YK_ARCH_SHARED_EXPERT = 1 << 6, /* ffn_*_shexp with a sigmoid gate */
    YK_ARCH_FUSED_QKV = 1 << 7,     /* attn_qkv instead of attn_{q,k,v} is accepted */
    YK_ARCH_FUSED_GATE_UP = 1 << 8, /* ffn_up holds gate rows, then up rows */
    YK_ARCH_DENSE = 1 << 9,         /* may be dense */
    YK_ARCH_MOE = 1 << 10,          /* may have experts */
    YK_ARCH_WINDOW_EVEN = 1 << 11   /* attention.sliding_window applies to layers 0, 2, 4, ... */
};

typedef struct yk_arch {
    const char *name; /* general.architecture */
    yk_rope_pairing rope;
    yk_qk_norm qk_norm;
    yk_glu glu;
    yk_router router;
    bool router_renorm;        /* divide the chosen weights by their sum */
    const char *ffn_norm_name; /* "ffn_norm" or "post_attention_norm" */
    uint32_t flags;            /* YK_ARCH_* that are possible */
    uint32_t required;         /* those of flags that must be there */
} yk_arch;

/* Row by name (not NUL-terminated), or NULL. */
const yk_arch *yk_arch_find(const char *name, uint64_t n);
/* Names of all rows, separated by spaces; static storage. */
const char *yk_arch_names(void);

#endif
