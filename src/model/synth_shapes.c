#include "src/model/synth.h"

#include <string.h>
#include <strings.h>

/* Sizes of the published models: their config.json. */
static const yk_synth_shape shapes[] = {
    {.name = "mixtral-8x7b",
     .arch = "llama",
     .n_layers = 32,
     .n_embd = 4096,
     .n_ff = 14336,
     .n_heads = 32,
     .n_kv_heads = 8,
     .head_dim = 128,
     .n_experts = 8,
     .n_used = 2,
     .n_expert_ff = 14336,
     .n_vocab = 32000,
     .n_ctx = 32768,
     .rope_base = 1e6f,
     .eps = 1e-5f,
     .vocab = YK_SYNTH_SPM},
    {.name = "qwen3-30b-a3b",
     .arch = "qwen3moe",
     .n_layers = 48,
     .n_embd = 2048,
     .n_ff = 6144,
     .n_heads = 32,
     .n_kv_heads = 4,
     .head_dim = 128,
     .n_experts = 128,
     .n_used = 8,
     .n_expert_ff = 768,
     .n_vocab = 151936,
     .n_ctx = 40960,
     .rope_base = 1e6f,
     .eps = 1e-6f,
     .qk_norm = true,
     .vocab = YK_SYNTH_QWEN2},
    {.name = "llama-1b",
     .arch = "llama",
     .n_layers = 16,
     .n_embd = 2048,
     .n_ff = 8192,
     .n_heads = 32,
     .n_kv_heads = 8,
     .head_dim = 64,
     .n_vocab = 32000,
     .n_ctx = 8192,
     .rope_base = 5e5f,
     .eps = 1e-5f,
     .vocab = YK_SYNTH_SPM},
    {.name = "llama2-13b",
     .arch = "llama",
     .n_layers = 40,
     .n_embd = 5120,
     .n_ff = 13824,
     .n_heads = 40,
     .n_kv_heads = 40,
     .head_dim = 128,
     .n_vocab = 32000,
     .n_ctx = 4096,
     .rope_base = 1e4f,
     .eps = 1e-5f,
     .vocab = YK_SYNTH_SPM},
    {.name = "gpt-oss-20b",
     .arch = "gpt-oss",
     .n_layers = 24,
     .n_embd = 2880,
     .n_ff = 2880,
     .n_heads = 64,
     .n_kv_heads = 8,
     .head_dim = 64,
     .n_experts = 32,
     .n_used = 4,
     .n_expert_ff = 2880,
     .n_vocab = 201088,
     .n_ctx = 131072,
     .rope_base = 1.5e5f,
     .eps = 1e-5f,
     .oss = true,
     .window = 128,
     .yarn_factor = 32,
     .orig_ctx = 4096,
     .vocab = YK_SYNTH_GPT4O},
};

const yk_synth_shape *yk_synth_shape_find(const char *name)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strcasecmp(shapes[i].name, name) == 0)
            return &shapes[i];
    return NULL;
}

const char *yk_synth_shapes(void)
{
    return "mixtral-8x7b qwen3-30b-a3b llama-1b llama2-13b gpt-oss-20b";
}
const char *yk_synth_types(void)
{
    return yk_mix_names();
}
