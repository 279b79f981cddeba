#include "src/model/arch.h"

#include <stddef.h>
#include <string.h>

/* Meaning of each architecture as llama.cpp runs it (https://github.com/ggml-org/llama.cpp/tree/master/src/models). Every row
 * accepts fused attn_qkv, as converters may write it for any of them. */
static const yk_arch archs[] = {
    {.name = "llama",
     .rope = YK_ROPE_ADJACENT,
     .qk_norm = YK_QK_NORM_NONE,
     .glu = YK_GLU_SILU,
     .router = YK_ROUTER_SOFTMAX_TOPK,
     .router_renorm = true,
     .ffn_norm_name = "ffn_norm",
     .flags = YK_ARCH_QKV_BIAS | YK_ARCH_OUT_BIAS | YK_ARCH_FUSED_QKV | YK_ARCH_DENSE | YK_ARCH_MOE},
    {.name = "qwen2",
     .rope = YK_ROPE_HALVES,
     .qk_norm = YK_QK_NORM_NONE,
     .glu = YK_GLU_SILU,
     .router = YK_ROUTER_SOFTMAX_TOPK,
     .ffn_norm_name = "ffn_norm",
     .flags = YK_ARCH_QKV_BIAS | YK_ARCH_HEAD_BIAS | YK_ARCH_FUSED_QKV | YK_ARCH_DENSE},
    {.name = "qwen2moe",
     .rope = YK_ROPE_HALVES,
     .qk_norm = YK_QK_NORM_NONE,
     .glu = YK_GLU_SILU,
     .router = YK_ROUTER_SOFTMAX_TOPK,
     .router_renorm = false,
     .ffn_norm_name = "ffn_norm",
     .flags = YK_ARCH_QKV_BIAS | YK_ARCH_FUSED_QKV | YK_ARCH_SHARED_EXPERT | YK_ARCH_MOE,
     .required = YK_ARCH_SHARED_EXPERT},
    {.name = "qwen3",
     .rope = YK_ROPE_HALVES,
     .qk_norm = YK_QK_NORM_HEAD,
     .glu = YK_GLU_SILU,
     .router = YK_ROUTER_SOFTMAX_TOPK,
     .ffn_norm_name = "ffn_norm",
     .flags = YK_ARCH_QKV_BIAS | YK_ARCH_FUSED_QKV | YK_ARCH_DENSE},
    {.name = "qwen3moe",
     .rope = YK_ROPE_HALVES,
     .qk_norm = YK_QK_NORM_HEAD,
     .glu = YK_GLU_SILU,
     .router = YK_ROUTER_SOFTMAX_TOPK,
     .router_renorm = true,
     .ffn_norm_name = "ffn_norm",
     .flags = YK_ARCH_QKV_BIAS | YK_ARCH_FUSED_QKV | YK_ARCH_MOE},
    {.name = "olmoe",
     .rope = YK_ROPE_HALVES,
     .qk_norm = YK_QK_NORM_FULL,
     .glu = YK_GLU_SILU,
     .router = YK_ROUTER_SOFTMAX_TOPK,
     .router_renorm = false,
     .ffn_norm_name = "ffn_norm",
     .flags = YK_ARCH_FUSED_QKV | YK_ARCH_MOE},
    {.name = "phi3",
     .rope = YK_ROPE_HALVES,
     .qk_norm = YK_QK_NORM_NONE,
     .glu = YK_GLU_SILU,
     .router = YK_ROUTER_SOFTMAX_TOPK,
     .ffn_norm_name = "ffn_norm",
     .flags = YK_ARCH_QKV_BIAS | YK_ARCH_FUSED_QKV | YK_ARCH_FUSED_GATE_UP | YK_ARCH_DENSE,
     .required = YK_ARCH_FUSED_GATE_UP},
    {.name = "phimoe",
     .rope = YK_ROPE_HALVES,
     .qk_norm = YK_QK_NORM_NONE,
     .glu = YK_GLU_SILU,
     .router = YK_ROUTER_SOFTMAX_TOPK,
     .router_renorm = true,
     .ffn_norm_name = "ffn_norm",
     .flags = YK_ARCH_QKV_BIAS | YK_ARCH_OUT_BIAS | YK_ARCH_NORM_BIAS | YK_ARCH_HEAD_BIAS | YK_ARCH_FUSED_QKV | YK_ARCH_MOE,
     .required = YK_ARCH_OUT_BIAS | YK_ARCH_NORM_BIAS | YK_ARCH_HEAD_BIAS},
    {.name = "gpt-oss",
     .rope = YK_ROPE_HALVES,
     .qk_norm = YK_QK_NORM_NONE,
     .glu = YK_GLU_CLAMPED,
     .router = YK_ROUTER_TOPK_SOFTMAX,
     .router_renorm = false,
     .ffn_norm_name = "post_attention_norm",
     .flags = YK_ARCH_QKV_BIAS | YK_ARCH_OUT_BIAS | YK_ARCH_FFN_BIAS | YK_ARCH_SINKS | YK_ARCH_FUSED_QKV | YK_ARCH_MOE |
              YK_ARCH_WINDOW_EVEN,
     .required = YK_ARCH_OUT_BIAS | YK_ARCH_FFN_BIAS | YK_ARCH_SINKS | YK_ARCH_WINDOW_EVEN},
};

const yk_arch *yk_arch_find(const char *name, uint64_t n)
{
    for (size_t i = 0; i < sizeof archs / sizeof archs[0]; i++)
        if (strlen(archs[i].name) == n && memcmp(archs[i].name, name, n) == 0)
            return &archs[i];
    return NULL;
}

const char *yk_arch_names(void)
{
    return "llama qwen2 qwen2moe qwen3 qwen3moe olmoe phi3 phimoe gpt-oss";
}
