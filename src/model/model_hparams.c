#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "src/model/model.h"

/* Upper limits: far above any model, low enough that products of two of them fit 64 bits and sums fit 32. */
enum {
    MAX_LAYERS = 4096,
    MAX_EMBD = 1 << 20,
    MAX_HEADS = 1 << 14,
    MAX_HEAD_DIM = 1 << 12,
    MAX_FF = 1 << 24,
    MAX_EXPERTS = 1 << 14,
    MAX_CTX = 1 << 30
};

typedef struct key_name {
    char s[128];
} key_name;

static key_name key_of(const yk_model *m, const char *suffix)
{
    key_name k;
    snprintf(k.s, sizeof k.s, "%s.%s", m->arch->name, suffix);
    return k;
}

/* Integer key ARCH.suffix, also as an array with one equal value for each layer (some converters write that). */
static yk_status get_u32(const yk_model *m, const char *suffix, bool required, uint32_t *out, yk_error *err)
{
    const key_name k = key_of(m, suffix);
    const yk_gguf_kv *kv = yk_gguf_find(&m->gguf, k.s);
    const bool ints = kv && kv->type == YK_GGUF_ARR && kv->n > 0 && kv->elem_type != YK_GGUF_STR &&
                      kv->elem_type != YK_GGUF_BOOL && kv->elem_type != YK_GGUF_F32 && kv->elem_type != YK_GGUF_F64;
    if (!ints)
        return yk_gguf_get_u32(&m->gguf, k.s, required, out, err);
    const int64_t v = yk_gguf_arr_int(kv, 0);
    for (uint64_t i = 1; i < kv->n; i++)
        YK_FAIL_IF(yk_gguf_arr_int(kv, i) != v, err, YK_ERR_INPUT,
                   "key %s: %" PRId64 " for layer 0 and %" PRId64 " for layer %" PRIu64 "; layers of different shape are not "
                   "supported",
                   k.s, v, yk_gguf_arr_int(kv, i), i);
    YK_FAIL_IF(v < 0 || v > UINT32_MAX, err, YK_ERR_INPUT, "key %s is %" PRId64 "; it must be from 0 to %u", k.s, v,
               UINT32_MAX);
    *out = (uint32_t)v;
    return YK_OK;
}

/* The same with a range. An absent key leaves *out, which is not checked then. */
static yk_status get_range(const yk_model *m, const char *suffix, bool required, uint32_t lo, uint32_t hi, uint32_t *out,
                           yk_error *err)
{
    const key_name k = key_of(m, suffix);
    YK_TRY(get_u32(m, suffix, required, out, err));
    if (yk_gguf_find(&m->gguf, k.s))
        YK_FAIL_IF(*out < lo || *out > hi, err, YK_ERR_INPUT, "key %s is %" PRIu32 "; it must be from %" PRIu32 " to %" PRIu32,
                   k.s, *out, lo, hi);
    return YK_OK;
}

/* Float key in (lo, hi); NaN is outside. An absent key leaves *out. */
static yk_status get_float(const yk_model *m, const char *suffix, bool required, float lo, float hi, float *out, yk_error *err)
{
    const key_name k = key_of(m, suffix);
    YK_TRY(yk_gguf_get_f32(&m->gguf, k.s, required, out, err));
    YK_FAIL_IF(!(*out > lo && *out < hi), err, YK_ERR_INPUT, "key %s is %g; it must be larger than %g and less than %g", k.s,
               (double)*out, (double)lo, (double)hi);
    return YK_OK;
}

/* ---- keys that would change the result ---- */

/* A float key that must be absent or have the one value that changes nothing. */
static yk_status refuse_float(const yk_model *m, const char *suffix, float neutral, yk_error *err)
{
    const key_name k = key_of(m, suffix);
    const yk_gguf_kv *kv = yk_gguf_find(&m->gguf, k.s);
    float v = neutral;
    if (kv)
        YK_TRY(yk_gguf_get_f32(&m->gguf, k.s, false, &v, err));
    YK_FAIL_IF(v != neutral && v != 0.0f, err, YK_ERR_INPUT, "key %s is %g; yoke does not support it for architecture %s", k.s,
               (double)v, m->arch->name);
    return YK_OK;
}

static yk_status refuse_u32(const yk_model *m, const char *suffix, uint32_t neutral, yk_error *err)
{
    const key_name k = key_of(m, suffix);
    uint32_t v = neutral;
    YK_TRY(yk_gguf_get_u32(&m->gguf, k.s, false, &v, err));
    YK_FAIL_IF(v != neutral && v != 0, err, YK_ERR_INPUT, "key %s is %" PRIu32 "; yoke does not support it for architecture %s",
               k.s, v, m->arch->name);
    return YK_OK;
}

/* Refuse what the engine would silently compute otherwise. 0 means "not set" for all of them. */
static yk_status refuse_unsupported(const yk_model *m, yk_error *err)
{
    static const struct {
        const char *suffix;
        float neutral;
    } floats[] = {{"logit_scale", 1},
                  {"embedding_scale", 1},
                  {"residual_scale", 1},
                  {"attention.clamp_kqv", 0},
                  {"attention.max_alibi_bias", 0},
                  {"expert_weights_scale", 1},
                  {"attn_logit_softcapping", 0},
                  {"final_logit_softcapping", 0},
                  {"rope.scaling.alpha", 0},
                  {"rope.scaling.yarn_ext_factor", 1},
                  {"rope.scaling.yarn_attn_factor", 1},
                  {"rope.scaling.yarn_log_multiplier", 0}};
    for (size_t i = 0; i < sizeof floats / sizeof floats[0]; i++)
        YK_TRY(refuse_float(m, floats[i].suffix, floats[i].neutral, err));
    const float usual = (float)(1.0 / sqrt((double)m->hp.head_dim));
    float scale = 0;
    YK_TRY(yk_gguf_get_f32(&m->gguf, key_of(m, "attention.scale").s, false, &scale, err));
    YK_FAIL_IF(scale != 0.0f && !(fabsf(scale - usual) <= 1e-6f * usual), err, YK_ERR_INPUT,
               "key %s.attention.scale is %g; yoke supports only 1/sqrt(head size), %g", m->arch->name, (double)scale,
               (double)usual);
    YK_TRY(refuse_u32(m, "expert_group_count", 1, err));
    YK_TRY(refuse_u32(m, "leading_dense_block_count", 0, err));
    YK_TRY(refuse_u32(m, "nextn_predict_layers", 0, err));
    /* 1: softmax of all logits, 3: softmax of the chosen ones (llama.cpp's numbers). */
    YK_TRY(refuse_u32(m, "expert_gating_func", m->arch->router == YK_ROUTER_TOPK_SOFTMAX ? 3 : 1, err));
    bool causal = true, renorm = m->arch->router_renorm;
    YK_TRY(yk_gguf_get_bool(&m->gguf, key_of(m, "attention.causal").s, false, &causal, err));
    YK_FAIL_IF(!causal, err, YK_ERR_INPUT, "key %s.attention.causal is false; yoke runs only causal models", m->arch->name);
    YK_TRY(yk_gguf_get_bool(&m->gguf, key_of(m, "expert_weights_norm").s, false, &renorm, err));
    YK_FAIL_IF(renorm != m->arch->router_renorm && m->hp.n_experts, err, YK_ERR_INPUT,
               "key %s.expert_weights_norm is %s; architecture %s needs %s", m->arch->name, renorm ? "true" : "false",
               m->arch->name, renorm ? "false" : "true");
    return YK_OK;
}

/* ---- groups of hyperparameters ---- */

static yk_status read_arch(yk_model *m, yk_error *err)
{
    yk_str name = {0};
    YK_TRY(yk_gguf_get_str(&m->gguf, "general.architecture", true, &name, err));
    m->arch_name = yk_strndup(YK_MEM_RUNTIME, name.p, name.n);
    if (!m->arch_name)
        return yk_fail_memory(err, name.n, "the name of the architecture");
    m->arch = yk_arch_find(name.p, name.n);
    YK_FAIL_IF(!m->arch && !m->vocab_only, err, YK_ERR_INPUT,
               "key general.architecture: unknown architecture %.100s; yoke runs %s", m->arch_name, yk_arch_names());
    return YK_OK;
}

static yk_status read_heads(yk_model *m, yk_error *err)
{
    yk_hparams *hp = &m->hp;
    const char *arch = m->arch->name;
    YK_TRY(get_range(m, "attention.head_count", true, 1, MAX_HEADS, &hp->n_heads, err));
    hp->n_kv_heads = hp->n_heads;
    YK_TRY(get_range(m, "attention.head_count_kv", false, 1, hp->n_heads, &hp->n_kv_heads, err));
    YK_FAIL_IF(hp->n_heads % hp->n_kv_heads != 0, err, YK_ERR_INPUT,
               "key %s.attention.head_count_kv is %" PRIu32 ", which does not divide %s.attention.head_count, %" PRIu32, arch,
               hp->n_kv_heads, arch, hp->n_heads);
    uint32_t v = 0;
    YK_TRY(get_range(m, "attention.key_length", false, 1, MAX_HEAD_DIM, &hp->head_dim, err));
    YK_TRY(get_range(m, "attention.value_length", false, 1, MAX_HEAD_DIM, &v, err));
    if (hp->head_dim == 0 || v == 0) {
        /* The one that is not given is width / heads. */
        YK_FAIL_IF(hp->n_embd % hp->n_heads != 0, err, YK_ERR_INPUT,
                   "key %s.attention.head_count is %" PRIu32 ", which does not divide %s.embedding_length, %" PRIu32, arch,
                   hp->n_heads, arch, hp->n_embd);
        const uint32_t even = hp->n_embd / hp->n_heads;
        hp->head_dim = hp->head_dim ? hp->head_dim : even;
        v = v ? v : even;
    }
    YK_FAIL_IF(hp->head_dim > MAX_HEAD_DIM, err, YK_ERR_INPUT,
               "key %s.attention.head_count is %" PRIu32 ": heads of %" PRIu32 " are larger than %d", arch, hp->n_heads,
               hp->head_dim, MAX_HEAD_DIM);
    YK_FAIL_IF(v != hp->head_dim, err, YK_ERR_INPUT,
               "key %s.attention.value_length is %" PRIu32 " and key_length %" PRIu32 "; they must be equal", arch, v,
               hp->head_dim);
    return YK_OK;
}

/* Width of one expert when no key says it: feed_forward_length, or, in early Qwen files, that divided by the experts used; the
 * tensor decides. */
static uint32_t guess_expert_ff(const yk_model *m, uint32_t n_ff)
{
    const yk_gguf_tensor *t = yk_gguf_find_tensor(&m->gguf, "blk.0.ffn_gate_exps.weight");
    const uint32_t share = n_ff / m->hp.n_used;
    return t && share > 0 && t->ne[1] == share && n_ff % m->hp.n_used == 0 ? share : n_ff;
}

static yk_status read_ffn(yk_model *m, yk_error *err)
{
    yk_hparams *hp = &m->hp;
    const char *arch = m->arch->name;
    YK_TRY(get_range(m, "expert_count", false, 0, MAX_EXPERTS, &hp->n_experts, err));
    YK_TRY(get_range(m, "expert_used_count", hp->n_experts > 0, hp->n_experts > 0, hp->n_experts, &hp->n_used, err));
    YK_FAIL_IF(hp->n_experts == 0 && !(m->arch->flags & YK_ARCH_DENSE), err, YK_ERR_INPUT,
               "key %s.expert_count is missing or 0, but architecture %s has experts", arch, arch);
    YK_FAIL_IF(hp->n_experts > 0 && !(m->arch->flags & YK_ARCH_MOE), err, YK_ERR_INPUT,
               "key %s.expert_count is %" PRIu32 ", but architecture %s has no experts", arch, hp->n_experts, arch);
    uint32_t n_ff = 0;
    const bool own_width = yk_gguf_find(&m->gguf, key_of(m, "expert_feed_forward_length").s) != NULL;
    YK_TRY(get_range(m, "feed_forward_length", hp->n_experts == 0 || !own_width, 1, MAX_FF, &n_ff, err));
    hp->n_ff = n_ff; /* binding sets it to 0 when no layer is dense */
    if (hp->n_experts == 0)
        return YK_OK;
    hp->n_expert_ff = guess_expert_ff(m, n_ff);
    YK_TRY(get_range(m, "expert_feed_forward_length", false, 1, MAX_FF, &hp->n_expert_ff, err));
    if (m->arch->flags & YK_ARCH_SHARED_EXPERT) {
        hp->n_shared_ff = n_ff;
        YK_TRY(get_range(m, "expert_shared_feed_forward_length", n_ff == 0, 1, MAX_FF, &hp->n_shared_ff, err));
    }
    return YK_OK;
}

static yk_status read_scaling_type(yk_model *m, bool has_factor, yk_error *err)
{
    static const char *const names[] = {"none", "linear", "yarn", "longrope"};
    yk_hparams *hp = &m->hp;
    yk_str type = {0};
    const key_name k = key_of(m, "rope.scaling.type");
    YK_TRY(yk_gguf_get_str(&m->gguf, k.s, false, &type, err));
    hp->rope_scaling = has_factor ? YK_ROPE_LINEAR : YK_ROPE_NONE;
    if (!type.p)
        return YK_OK;
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strlen(names[i]) == type.n && memcmp(names[i], type.p, type.n) == 0) {
            hp->rope_scaling = i;
            return YK_OK;
        }
    return yk_fail(err, YK_ERR_INPUT, "key %s is %.*s; yoke knows none, linear, yarn and longrope", k.s,
                   (int)(type.n < 60 ? type.n : 60), type.p);
}

static yk_status read_rope(yk_model *m, yk_error *err)
{
    yk_hparams *hp = &m->hp;
    const char *arch = m->arch->name;
    hp->n_rot = hp->head_dim;
    YK_TRY(get_range(m, "rope.dimension_count", false, 2, hp->head_dim, &hp->n_rot, err));
    YK_FAIL_IF(hp->n_rot % 2 != 0, err, YK_ERR_INPUT,
               "key %s.rope.dimension_count: %" PRIu32 " rotating dimensions are not even", arch, hp->n_rot);
    hp->rope_base = 10000.0f;
    YK_TRY(get_float(m, "rope.freq_base", false, 1.0f, 1e20f, &hp->rope_base, err));
    float swa_base = hp->rope_base;
    YK_TRY(yk_gguf_get_f32(&m->gguf, key_of(m, "rope.freq_base_swa").s, false, &swa_base, err));
    YK_FAIL_IF(swa_base != hp->rope_base, err, YK_ERR_INPUT,
               "key %s.rope.freq_base_swa is %g, %s.rope.freq_base %g; yoke needs them equal", arch, (double)swa_base, arch,
               (double)hp->rope_base);
    float factor = 0;
    const bool new_key = yk_gguf_find(&m->gguf, key_of(m, "rope.scaling.factor").s) != NULL;
    const key_name fk = key_of(m, new_key ? "rope.scaling.factor" : "rope.scale_linear");
    YK_TRY(yk_gguf_get_f32(&m->gguf, fk.s, false, &factor, err));
    YK_FAIL_IF(!(factor >= 0.0f && factor < 1e6f), err, YK_ERR_INPUT, "key %s is %g; it must be from 0 to 1000000", fk.s,
               (double)factor);
    YK_TRY(read_scaling_type(m, factor != 0.0f, err));
    YK_FAIL_IF(hp->rope_scaling == YK_ROPE_LONGROPE && factor != 0.0f && factor != 1.0f, err, YK_ERR_INPUT,
               "key %s.rope.scaling.factor is %g; with longrope only 1 is supported", arch, (double)factor);
    YK_FAIL_IF(hp->rope_scaling == YK_ROPE_YARN && factor != 0.0f && factor < 1.0f, err, YK_ERR_INPUT,
               "key %s.rope.scaling.factor is %g; with yarn it must be at least 1", arch, (double)factor);
    hp->rope_factor = factor == 0.0f || hp->rope_scaling == YK_ROPE_NONE ? 1.0f : factor;
    hp->rope_orig_ctx = hp->n_ctx_train;
    YK_TRY(get_range(m, "rope.scaling.original_context_length", false, 1, MAX_CTX, &hp->rope_orig_ctx, err));
    hp->rope_attn_factor = 1.0f;
    YK_TRY(get_float(m, "rope.scaling.attn_factor", false, 0.0f, 1e6f, &hp->rope_attn_factor, err));
    hp->yarn_beta_fast = 32.0f;
    hp->yarn_beta_slow = 1.0f;
    YK_TRY(get_float(m, "rope.scaling.yarn_beta_fast", false, 0.0f, 1e6f, &hp->yarn_beta_fast, err));
    return get_float(m, "rope.scaling.yarn_beta_slow", false, 0.0f, 1e6f, &hp->yarn_beta_slow, err);
}

/* The window of the architectures that have one; others ignore the key, as their training or their peers do. */
static yk_status read_window(yk_model *m, yk_error *err)
{
    if (!(m->arch->flags & YK_ARCH_WINDOW_EVEN))
        return YK_OK;
    const bool required = (m->arch->required & YK_ARCH_WINDOW_EVEN) != 0;
    YK_TRY(get_range(m, "attention.sliding_window", required, 0, MAX_CTX, &m->hp.window, err));
    return refuse_u32(m, "attention.sliding_window_pattern", 2, err);
}

yk_status yk_model_read_hparams(yk_model *m, yk_error *err)
{
    yk_hparams *hp = &m->hp;
    YK_TRY(read_arch(m, err));
    if (m->vocab_only)
        return YK_OK;
    YK_TRY(get_range(m, "context_length", true, 1, MAX_CTX, &hp->n_ctx_train, err));
    YK_TRY(get_range(m, "embedding_length", true, 1, MAX_EMBD, &hp->n_embd, err));
    YK_TRY(get_range(m, "block_count", true, 1, MAX_LAYERS, &hp->n_layers, err));
    YK_TRY(read_heads(m, err));
    YK_TRY(read_ffn(m, err));
    YK_TRY(get_float(m, "attention.layer_norm_rms_epsilon", true, 0.0f, 1.0f, &hp->norm_eps, err));
    YK_TRY(read_rope(m, err));
    YK_TRY(read_window(m, err));
    return refuse_unsupported(m, err);
}
