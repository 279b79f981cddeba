/* mix.h - which type each tensor of a quantised file gets. Names and choices are those of llama-quantize, so that files
 * compare.
 *
 * A plain name ("Q4_K") gives that type to every matrix; a mix ("Q4_K_M") gives some tensors more bits. For both, the output
 * matrix of a low-bit file is Q6_K, attn_k and attn_v beside eight experts are Q8_0, rows that are not whole blocks fall back
 * to a type of blocks of 32 (or F16), and norms, biases, routers and sinks stay F32. MXFP4: of a model with experts only these, of others all but the two vocabulary matrices;
 * the rest is Q8_0. */
#ifndef YK_MODEL_MIX_H
#define YK_MODEL_MIX_H

#include "src/model/types.h"

typedef struct yk_mix {
    const char *name;
    yk_type base;
    bool medium;        /* one of the _M mixes */
    uint32_t file_type; /* general.file_type (llama_ftype) */
} yk_mix;

typedef enum yk_role {
    YK_ROLE_KEEP, /* never quantised: F32 */
    YK_ROLE_TOKEN_EMBD,
    YK_ROLE_OUTPUT,
    YK_ROLE_Q,
    YK_ROLE_K,
    YK_ROLE_V,
    YK_ROLE_ATTN_OUT,
    YK_ROLE_GATE,
    YK_ROLE_UP,
    YK_ROLE_DOWN
} yk_role;

/* By name, case-insensitive; NULL when unknown. */
const yk_mix *yk_mix_find(const char *name);
/* All names, separated by spaces. */
const char *yk_mix_names(void);

/* Type of a tensor with rows of n_cols elements in layer `layer` of n_layers. n_experts 0: dense model. */
yk_type yk_mix_type(const yk_mix *mix, yk_role role, uint32_t layer, uint32_t n_layers, uint32_t n_experts, uint64_t n_cols);

#endif
