#include "src/model/mix.h"

#include <stddef.h>
#include <strings.h>

static const yk_mix mixes[] = {
    {"F32", YK_TYPE_F32, false, 0},      {"F16", YK_TYPE_F16, false, 1},        {"BF16", YK_TYPE_BF16, false, 32},
    {"Q4_0", YK_TYPE_Q4_0, false, 2},    {"Q4_1", YK_TYPE_Q4_1, false, 3},      {"Q5_0", YK_TYPE_Q5_0, false, 8},
    {"Q5_1", YK_TYPE_Q5_1, false, 9},    {"Q8_0", YK_TYPE_Q8_0, false, 7},      {"Q2_K", YK_TYPE_Q2_K, false, 10},
    {"Q3_K", YK_TYPE_Q3_K, false, 11},   {"Q4_K", YK_TYPE_Q4_K, false, 14},     {"Q5_K", YK_TYPE_Q5_K, false, 16},
    {"Q6_K", YK_TYPE_Q6_K, false, 18},   {"IQ4_NL", YK_TYPE_IQ4_NL, false, 25}, {"IQ4_XS", YK_TYPE_IQ4_XS, false, 30},
    {"MXFP4", YK_TYPE_MXFP4, false, 38}, {"Q3_K_M", YK_TYPE_Q3_K, true, 12},    {"Q4_K_M", YK_TYPE_Q4_K, true, 15},
    {"Q5_K_M", YK_TYPE_Q5_K, true, 17},
};

const yk_mix *yk_mix_find(const char *name)
{
    for (size_t i = 0; i < sizeof mixes / sizeof *mixes; i++)
        if (strcasecmp(mixes[i].name, name) == 0)
            return &mixes[i];
    return NULL;
}

const char *yk_mix_names(void)
{
    return "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 Q3_K_M Q4_K_M Q5_K_M";
}

/* The first and the last eighth of the layers and every third one between. */
static bool more_bits(uint32_t layer, uint32_t n)
{
    return layer < n / 8 || layer >= 7 * (uint64_t)n / 8 || (layer - n / 8) % 3 == 2;
}

static yk_type medium_type(yk_type base, yk_role role, uint32_t layer, uint32_t n_layers, uint32_t n_experts)
{
    const bool q3 = base == YK_TYPE_Q3_K;
    switch (role) {
    case YK_ROLE_V:
        if (q3)
            return layer < 2 ? YK_TYPE_Q5_K : YK_TYPE_Q4_K;
        return more_bits(layer, n_layers) ? YK_TYPE_Q6_K : base;
    case YK_ROLE_DOWN:
        if (q3)
            return layer < n_layers / 16 ? YK_TYPE_Q5_K : YK_TYPE_Q4_K;
        return more_bits(layer, n_layers) ? YK_TYPE_Q6_K : base;
    case YK_ROLE_ATTN_OUT:
        if (n_experts == 8)
            return YK_TYPE_Q5_K;
        return q3 ? YK_TYPE_Q4_K : base;
    default:
        return base;
    }
}

static yk_type fall_back(yk_type type, uint64_t n_cols)
{
    if (n_cols % yk_type_get((uint32_t)type)->block_elems == 0)
        return type;
    switch (type) {
    case YK_TYPE_IQ4_XS:
        type = YK_TYPE_IQ4_NL;
        break;
    case YK_TYPE_Q2_K:
    case YK_TYPE_Q3_K:
        type = YK_TYPE_Q4_0;
        break;
    case YK_TYPE_Q4_K:
        type = YK_TYPE_Q5_0;
        break;
    case YK_TYPE_Q5_K:
        type = YK_TYPE_Q5_1;
        break;
    case YK_TYPE_Q6_K:
        type = YK_TYPE_Q8_0;
        break;
    default:
        break;
    }
    return n_cols % yk_type_get((uint32_t)type)->block_elems == 0 ? type : YK_TYPE_F16;
}

yk_type yk_mix_type(const yk_mix *mix, yk_role role, uint32_t layer, uint32_t n_layers, uint32_t n_experts, uint64_t n_cols)
{
    yk_type type = mix->base;
    const yk_type_traits *tr = yk_type_get((uint32_t)type);
    if (role == YK_ROLE_KEEP)
        return YK_TYPE_F32;
    if (!tr->quantised)
        return type;
    if (type == YK_TYPE_MXFP4) {
        const bool ffn = role == YK_ROLE_GATE || role == YK_ROLE_UP || role == YK_ROLE_DOWN;
        const bool vocab = role == YK_ROLE_TOKEN_EMBD || role == YK_ROLE_OUTPUT;
        type = (n_experts ? ffn : !vocab) ? YK_TYPE_MXFP4 : YK_TYPE_Q8_0;
    } else if (role == YK_ROLE_OUTPUT) {
        if (n_cols % tr->block_elems != 0)
            type = YK_TYPE_Q8_0;
        else if (type != YK_TYPE_Q8_0)
            type = YK_TYPE_Q6_K;
    } else if (n_experts == 8 && (role == YK_ROLE_K || role == YK_ROLE_V)) {
        type = YK_TYPE_Q8_0; /* small beside eight experts */
    } else if (mix->medium) {
        type = medium_type(type, role, layer, n_layers, n_experts);
    }
    return fall_back(type, n_cols);
}
