#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "src/base/half.h"
#include "src/model/model.h"

enum { GLOBAL = -1 };

/* State of binding: tensors that got a role are marked, the rest is looked at in the end. */
typedef struct binder {
    yk_model *m;
    bool *used;    /* [n_tensors] */
    int64_t layer; /* or GLOBAL */
    yk_error *err;
} binder;

/* What a tensor must look like: n_mats matrices [rows][cols]; of vectors only cols is not 1 (biases of experts: rows too). */
typedef struct spec {
    const char *stem, *suffix; /* "attn_q", "weight" */
    uint64_t cols, rows, mats;
    const char *keys; /* the hyperparameters its shape follows from */
} spec;

typedef struct tensor_name {
    char s[128];
} tensor_name;

void *yk_model_own(yk_model *m, yk_mem_class cls, uint64_t n, uint64_t size)
{
    if (m->n_owned == m->cap_owned) {
        const uint32_t cap = m->cap_owned ? m->cap_owned * 2 : 16;
        void **owned = yk_realloc(YK_MEM_RUNTIME, m->owned, cap, sizeof *owned);
        if (!owned)
            return NULL;
        m->owned = owned;
        m->cap_owned = cap;
    }
    void *p = yk_alloc(cls, n, size);
    if (p)
        m->owned[m->n_owned++] = p;
    return p;
}

static tensor_name name_of(const binder *b, const char *stem, const char *suffix)
{
    tensor_name n;
    if (b->layer == GLOBAL)
        snprintf(n.s, sizeof n.s, "%s.%s", stem, suffix);
    else
        snprintf(n.s, sizeof n.s, "blk.%" PRId64 ".%s.%s", b->layer, stem, suffix);
    return n;
}

static bool has(const binder *b, const char *stem, const char *suffix)
{
    return yk_gguf_find_tensor(&b->m->gguf, name_of(b, stem, suffix).s) != NULL;
}

/* Find a tensor by role, check its shape and mark it. *out is NULL when it is absent and not required. */
static yk_status take(binder *b, const spec *s, bool required, const yk_gguf_tensor **out)
{
    const tensor_name name = name_of(b, s->stem, s->suffix);
    const yk_gguf_tensor *t = yk_gguf_find_tensor(&b->m->gguf, name.s);
    *out = t;
    YK_FAIL_IF(!t && required, b->err, YK_ERR_INPUT, "tensor %s is missing; architecture %s needs it", name.s,
               b->m->arch->name);
    if (!t)
        return YK_OK;
    YK_FAIL_IF(t->ne[0] != s->cols || t->ne[1] != s->rows || t->ne[2] != s->mats || t->ne[3] != 1, b->err, YK_ERR_INPUT,
               "tensor %s has shape [%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 "], but [%" PRIu64 ", %" PRIu64
               ", %" PRIu64 ", 1] follows from the keys %s.{%s}",
               name.s, t->ne[0], t->ne[1], t->ne[2], t->ne[3], s->cols, s->rows, s->mats, b->m->arch->name, s->keys);
    b->used[t - b->m->gguf.tensors] = true;
    return YK_OK;
}

/* Data of a tensor at an address fit for its type. Files with an alignment of 1 or 2 may need a copy. */
static yk_status aligned_data(binder *b, const yk_gguf_tensor *t, const uint8_t **out)
{
    const uintptr_t align = t->type == YK_TYPE_F32 ? 4 : t->type == YK_TYPE_MXFP4 ? 1 : 2;
    *out = t->data;
    if ((uintptr_t)t->data % align == 0)
        return YK_OK;
    uint8_t *copy = yk_model_own(b->m, YK_MEM_WEIGHTS, t->n_bytes, 1);
    if (!copy)
        return yk_fail_memory(b->err, t->n_bytes, t->name);
    memcpy(copy, t->data, t->n_bytes);
    *out = copy;
    return YK_OK;
}

/* A tensor of F32 values, all finite. F16 and BF16 are converted into memory of the model. */
static yk_status bind_vector(binder *b, const spec *s, bool required, const float **out)
{
    const yk_gguf_tensor *t;
    YK_TRY(take(b, s, required, &t));
    if (!t)
        return YK_OK;
    const uint8_t *data;
    YK_TRY(aligned_data(b, t, &data));
    if (t->type == YK_TYPE_F32) {
        *out = (const float *)(const void *)data;
    } else {
        YK_FAIL_IF(t->type != YK_TYPE_F16 && t->type != YK_TYPE_BF16, b->err, YK_ERR_INPUT,
                   "tensor %s is of type %s; it must be F32, F16 or BF16", t->name, yk_type_get((uint32_t)t->type)->name);
        float *v = yk_model_own(b->m, YK_MEM_WEIGHTS, t->n_elems, sizeof *v);
        if (!v)
            return yk_fail_memory(b->err, t->n_elems * sizeof *v, t->name);
        const uint16_t *h = (const uint16_t *)(const void *)data;
        for (uint64_t i = 0; i < t->n_elems; i++)
            v[i] = t->type == YK_TYPE_F16 ? yk_f16_to_f32(h[i]) : yk_bf16_to_f32(h[i]);
        *out = v;
    }
    for (uint64_t i = 0; i < t->n_elems; i++)
        YK_FAIL_IF(!isfinite((*out)[i]), b->err, YK_ERR_INPUT, "tensor %s: element %" PRIu64 " is not finite (%g)", t->name, i,
                   (double)(*out)[i]);
    return YK_OK;
}

static yk_status bind_matrix(binder *b, const spec *s, bool required, yk_weight *w)
{
    const yk_gguf_tensor *t;
    YK_TRY(take(b, s, required, &t));
    if (!t)
        return YK_OK;
    *w = (yk_weight){.type = t->type,
                     .n_rows = (uint32_t)s->rows,
                     .n_cols = (uint32_t)s->cols,
                     .n_mats = (uint32_t)s->mats,
                     .row_bytes = t->row_bytes,
                     .mat_bytes = t->row_bytes * s->rows};
    return aligned_data(b, t, &w->data);
}

/* Rows [first, first + n) of every matrix of a fused tensor. */
static yk_weight rows_of(const yk_weight *w, uint32_t first, uint32_t n)
{
    yk_weight v = *w;
    v.data += (uint64_t)first * w->row_bytes;
    v.n_rows = n;
    return v;
}

/* The router must keep its precision: a quantised one is refused. */
static yk_status bind_router(binder *b, const spec *s, yk_weight *w)
{
    YK_TRY(bind_matrix(b, s, true, w));
    YK_FAIL_IF(yk_type_get((uint32_t)w->type)->quantised, b->err, YK_ERR_INPUT,
               "tensor %s is of type %s; a router must be F32, F16 or BF16", name_of(b, s->stem, s->suffix).s,
               yk_type_get((uint32_t)w->type)->name);
    return YK_OK;
}

/* A norm with its bias where the architecture has one. */
static yk_status bind_norm(binder *b, const char *stem, const float **weight, const float **bias)
{
    const yk_arch *a = b->m->arch;
    spec s = {stem, "weight", b->m->hp.n_embd, 1, 1, "embedding_length"};
    YK_TRY(bind_vector(b, &s, true, weight));
    s.suffix = "bias";
    if (a->flags & YK_ARCH_NORM_BIAS)
        YK_TRY(bind_vector(b, &s, (a->required & YK_ARCH_NORM_BIAS) != 0, bias));
    return YK_OK;
}

/* ---- attention ---- */

static const char *const head_keys = "embedding_length, attention.head_count, head_count_kv, key_length";

static yk_status bind_fused_qkv(binder *b, yk_layer *l, uint32_t nq, uint32_t nk)
{
    const yk_arch *a = b->m->arch;
    spec s = {"attn_qkv", "weight", b->m->hp.n_embd, (uint64_t)nq + 2 * (uint64_t)nk, 1, head_keys};
    yk_weight w = {0};
    YK_TRY(bind_matrix(b, &s, true, &w));
    l->q = rows_of(&w, 0, nq);
    l->k = rows_of(&w, nq, nk);
    l->v = rows_of(&w, nq + nk, nk);
    if (!(a->flags & YK_ARCH_QKV_BIAS))
        return YK_OK;
    s = (spec){"attn_qkv", "bias", (uint64_t)nq + 2 * (uint64_t)nk, 1, 1, head_keys};
    YK_TRY(bind_vector(b, &s, (a->required & YK_ARCH_QKV_BIAS) != 0, &l->q_b));
    if (l->q_b) {
        l->k_b = l->q_b + nq;
        l->v_b = l->k_b + nk;
    }
    return YK_OK;
}

static yk_status bind_qkv(binder *b, yk_layer *l, uint32_t nq, uint32_t nk)
{
    const yk_arch *a = b->m->arch;
    if ((a->flags & YK_ARCH_FUSED_QKV) && has(b, "attn_qkv", "weight"))
        return bind_fused_qkv(b, l, nq, nk);
    const struct {
        const char *stem;
        uint32_t rows;
        yk_weight *w;
        const float **bias;
    } parts[3] = {{"attn_q", nq, &l->q, &l->q_b}, {"attn_k", nk, &l->k, &l->k_b}, {"attn_v", nk, &l->v, &l->v_b}};
    for (int i = 0; i < 3; i++) {
        spec s = {parts[i].stem, "weight", b->m->hp.n_embd, parts[i].rows, 1, head_keys};
        YK_TRY(bind_matrix(b, &s, true, parts[i].w));
        s = (spec){parts[i].stem, "bias", parts[i].rows, 1, 1, head_keys};
        if (a->flags & YK_ARCH_QKV_BIAS)
            YK_TRY(bind_vector(b, &s, (a->required & YK_ARCH_QKV_BIAS) != 0, parts[i].bias));
    }
    return YK_OK;
}

static yk_status bind_attention(binder *b, yk_layer *l)
{
    const yk_hparams *hp = &b->m->hp;
    const yk_arch *a = b->m->arch;
    const uint32_t nq = hp->n_heads * hp->head_dim, nk = hp->n_kv_heads * hp->head_dim;
    YK_TRY(bind_norm(b, "attn_norm", &l->attn_norm, &l->attn_norm_b));
    YK_TRY(bind_qkv(b, l, nq, nk));
    spec s = {"attn_output", "weight", nq, hp->n_embd, 1, head_keys};
    YK_TRY(bind_matrix(b, &s, true, &l->o));
    s = (spec){"attn_output", "bias", hp->n_embd, 1, 1, head_keys};
    if (a->flags & YK_ARCH_OUT_BIAS)
        YK_TRY(bind_vector(b, &s, (a->required & YK_ARCH_OUT_BIAS) != 0, &l->o_b));
    if (a->qk_norm != YK_QK_NORM_NONE) {
        const bool full = a->qk_norm == YK_QK_NORM_FULL;
        s = (spec){"attn_q_norm", "weight", full ? nq : hp->head_dim, 1, 1, head_keys};
        YK_TRY(bind_vector(b, &s, true, &l->q_norm));
        s = (spec){"attn_k_norm", "weight", full ? nk : hp->head_dim, 1, 1, head_keys};
        YK_TRY(bind_vector(b, &s, true, &l->k_norm));
    }
    s = (spec){"attn_sinks", "weight", hp->n_heads, 1, 1, head_keys};
    if (a->flags & YK_ARCH_SINKS)
        YK_TRY(bind_vector(b, &s, (a->required & YK_ARCH_SINKS) != 0, &l->sinks));
    return YK_OK;
}

/* ---- feed-forward ---- */

static yk_status bind_dense(binder *b, yk_layer *l)
{
    const yk_hparams *hp = &b->m->hp;
    static const char *const keys = "embedding_length, feed_forward_length";
    spec s = {"ffn_down", "weight", hp->n_ff, hp->n_embd, 1, keys};
    YK_TRY(bind_matrix(b, &s, true, &l->down));
    if (b->m->arch->flags & YK_ARCH_FUSED_GATE_UP) {
        yk_weight w = {0};
        s = (spec){"ffn_up", "weight", hp->n_embd, 2 * (uint64_t)hp->n_ff, 1, keys};
        YK_TRY(bind_matrix(b, &s, true, &w));
        l->gate = rows_of(&w, 0, hp->n_ff);
        l->up = rows_of(&w, hp->n_ff, hp->n_ff);
        return YK_OK;
    }
    s = (spec){"ffn_gate", "weight", hp->n_embd, hp->n_ff, 1, keys};
    YK_TRY(bind_matrix(b, &s, true, &l->gate));
    s.stem = "ffn_up";
    return bind_matrix(b, &s, true, &l->up);
}

static const char *const expert_keys = "embedding_length, feed_forward_length, expert_feed_forward_length, expert_count";

/* Experts as one tensor each (ffn_gate.E.weight), as Mixtral files were written before April 2024. */
static yk_status bind_separate_experts(binder *b, const char *stem, uint32_t cols, uint32_t rows, yk_weight *w)
{
    const uint32_t n = b->m->hp.n_experts;
    const uint8_t **mats = yk_model_own(b->m, YK_MEM_RUNTIME, n, sizeof *mats);
    if (!mats)
        return yk_fail_memory(b->err, n * sizeof *mats, "a table of experts");
    for (uint32_t e = 0; e < n; e++) {
        char one[64];
        snprintf(one, sizeof one, "%s.%" PRIu32, stem, e);
        const spec s = {one, "weight", cols, rows, 1, expert_keys};
        yk_weight x = {0};
        YK_TRY(bind_matrix(b, &s, true, &x));
        YK_FAIL_IF(e > 0 && x.type != w->type, b->err, YK_ERR_INPUT,
                   "tensor %s is of type %s, expert 0 of type %s; experts of one "
                   "layer must have one type",
                   name_of(b, one, "weight").s, yk_type_get((uint32_t)x.type)->name, yk_type_get((uint32_t)w->type)->name);
        mats[e] = x.data;
        if (e == 0)
            *w = x;
    }
    w->mats = mats;
    w->n_mats = n;
    return YK_OK;
}

static yk_status bind_experts(binder *b, const char *kind, uint32_t cols, uint32_t rows, yk_weight *w)
{
    char stem[32], first[48];
    snprintf(stem, sizeof stem, "ffn_%s_exps", kind);
    snprintf(first, sizeof first, "ffn_%s.0", kind);
    if (!has(b, stem, "weight") && has(b, first, "weight")) {
        snprintf(stem, sizeof stem, "ffn_%s", kind);
        return bind_separate_experts(b, stem, cols, rows, w);
    }
    const spec s = {stem, "weight", cols, rows, b->m->hp.n_experts, expert_keys};
    return bind_matrix(b, &s, true, w);
}

static yk_status bind_expert_biases(binder *b, yk_layer *l)
{
    const yk_hparams *hp = &b->m->hp;
    const bool required = (b->m->arch->required & YK_ARCH_FFN_BIAS) != 0;
    if (!(b->m->arch->flags & YK_ARCH_FFN_BIAS))
        return YK_OK;
    spec s = {"ffn_gate_inp", "bias", hp->n_experts, 1, 1, expert_keys};
    YK_TRY(bind_vector(b, &s, required, &l->router_b));
    s = (spec){"ffn_gate_exps", "bias", hp->n_expert_ff, hp->n_experts, 1, expert_keys};
    YK_TRY(bind_vector(b, &s, required, &l->gate_b));
    s.stem = "ffn_up_exps";
    YK_TRY(bind_vector(b, &s, required, &l->up_b));
    s = (spec){"ffn_down_exps", "bias", hp->n_embd, hp->n_experts, 1, expert_keys};
    return bind_vector(b, &s, required, &l->down_b);
}

static yk_status bind_shared_expert(binder *b, yk_layer *l)
{
    const yk_hparams *hp = &b->m->hp;
    static const char *const keys = "embedding_length, expert_shared_feed_forward_length";
    const bool required = (b->m->arch->required & YK_ARCH_SHARED_EXPERT) != 0;
    if (!(b->m->arch->flags & YK_ARCH_SHARED_EXPERT) || (!required && !has(b, "ffn_down_shexp", "weight")))
        return YK_OK;
    spec s = {"ffn_gate_shexp", "weight", hp->n_embd, hp->n_shared_ff, 1, keys};
    YK_TRY(bind_matrix(b, &s, true, &l->sh_gate));
    s.stem = "ffn_up_shexp";
    YK_TRY(bind_matrix(b, &s, true, &l->sh_up));
    s = (spec){"ffn_down_shexp", "weight", hp->n_shared_ff, hp->n_embd, 1, keys};
    YK_TRY(bind_matrix(b, &s, true, &l->sh_down));
    s = (spec){"ffn_gate_inp_shexp", "weight", hp->n_embd, 1, 1, keys};
    return bind_router(b, &s, &l->sh_router);
}

static yk_status bind_moe(binder *b, yk_layer *l)
{
    const yk_hparams *hp = &b->m->hp;
    spec s = {"ffn_gate_inp", "weight", hp->n_embd, hp->n_experts, 1, "embedding_length, expert_count"};
    YK_TRY(bind_router(b, &s, &l->router));
    if (has(b, "ffn_gate_up_exps", "weight")) {
        yk_weight w = {0};
        s = (spec){"ffn_gate_up_exps", "weight", hp->n_embd, 2 * (uint64_t)hp->n_expert_ff, hp->n_experts, expert_keys};
        YK_TRY(bind_matrix(b, &s, true, &w));
        l->gate = rows_of(&w, 0, hp->n_expert_ff);
        l->up = rows_of(&w, hp->n_expert_ff, hp->n_expert_ff);
    } else {
        YK_TRY(bind_experts(b, "gate", hp->n_embd, hp->n_expert_ff, &l->gate));
        YK_TRY(bind_experts(b, "up", hp->n_embd, hp->n_expert_ff, &l->up));
    }
    YK_TRY(bind_experts(b, "down", hp->n_expert_ff, hp->n_embd, &l->down));
    YK_TRY(bind_expert_biases(b, l));
    return bind_shared_expert(b, l);
}

static yk_status bind_layer(binder *b, yk_layer *l)
{
    const yk_arch *a = b->m->arch;
    YK_TRY(bind_attention(b, l));
    YK_TRY(bind_norm(b, a->ffn_norm_name, &l->ffn_norm, &l->ffn_norm_b));
    /* A model with experts may have dense layers where its architecture may be dense as well. */
    l->moe = b->m->hp.n_experts > 0 && !((a->flags & YK_ARCH_DENSE) && has(b, "ffn_down", "weight"));
    return l->moe ? bind_moe(b, l) : bind_dense(b, l);
}

/* ---- the rest ---- */

static yk_status bind_rope_factors(binder *b)
{
    yk_model *m = b->m;
    const struct {
        const char *stem;
        const float **out;
    } sets[3] = {{"rope_freqs", &m->rope_freqs}, {"rope_factors_long", &m->rope_long}, {"rope_factors_short", &m->rope_short}};
    for (int i = 0; i < 3; i++) {
        const spec s = {sets[i].stem, "weight", m->hp.n_rot / 2, 1, 1, "rope.dimension_count"};
        YK_TRY(bind_vector(b, &s, false, sets[i].out));
        const float *v = *sets[i].out;
        for (uint32_t j = 0; v && j < m->hp.n_rot / 2; j++)
            YK_FAIL_IF(!(v[j] > 0.0f), b->err, YK_ERR_INPUT,
                       "tensor %s.weight: element %" PRIu32 " is %g; it divides, so it must "
                       "be positive",
                       sets[i].stem, j, (double)v[j]);
    }
    YK_FAIL_IF(!m->rope_long != !m->rope_short, b->err, YK_ERR_INPUT,
               "tensor rope_factors_%s.weight is missing; the long and the short one go together",
               m->rope_long ? "short" : "long");
    return YK_OK;
}

/* Rows of the embedding decide the vocabulary; that the tokenizer agrees was checked before. */
static yk_status bind_embedding(binder *b)
{
    yk_model *m = b->m;
    const yk_gguf_tensor *t = yk_gguf_find_tensor(&m->gguf, "token_embd.weight");
    YK_FAIL_IF(!t, b->err, YK_ERR_INPUT, "tensor token_embd.weight is missing");
    YK_FAIL_IF(t->ne[1] > INT32_MAX, b->err, YK_ERR_INPUT,
               "tensor token_embd.weight has %" PRIu64 " rows; at most %d are possible", t->ne[1], INT32_MAX);
    const spec s = {"token_embd", "weight", m->hp.n_embd, t->ne[1], 1, "embedding_length"};
    YK_FAIL_IF(t->ne[0] != m->hp.n_embd, b->err, YK_ERR_INPUT,
               "key %s.embedding_length is %" PRIu32 ", but the rows of tensor token_embd.weight have %" PRIu64 " elements",
               m->arch->name, m->hp.n_embd, t->ne[0]);
    YK_TRY(bind_matrix(b, &s, true, &m->token_embd));
    m->hp.n_vocab = (uint32_t)t->ne[1];
    char key[64];
    snprintf(key, sizeof key, "%s.vocab_size", m->arch->name);
    uint32_t n = m->hp.n_vocab;
    YK_TRY(yk_gguf_get_u32(&m->gguf, key, false, &n, b->err));
    YK_FAIL_IF(n != m->hp.n_vocab, b->err, YK_ERR_INPUT,
               "key %s is %" PRIu32 ", but tensor token_embd.weight has %" PRIu32 " rows", key, n, m->hp.n_vocab);
    return YK_OK;
}

static yk_status bind_head(binder *b)
{
    yk_model *m = b->m;
    const yk_arch *a = m->arch;
    YK_TRY(bind_norm(b, "output_norm", &m->output_norm, &m->output_norm_b));
    spec s = {"output", "weight", m->hp.n_embd, m->hp.n_vocab, 1, "embedding_length"};
    YK_TRY(bind_matrix(b, &s, false, &m->output));
    m->tied = m->output.data == NULL;
    if (m->tied)
        m->output = m->token_embd;
    s = (spec){"output", "bias", m->hp.n_vocab, 1, 1, "vocab_size"};
    if (a->flags & YK_ARCH_HEAD_BIAS)
        YK_TRY(bind_vector(b, &s, (a->required & YK_ARCH_HEAD_BIAS) != 0, &m->output_b));
    return YK_OK;
}

/* Tensors without a role are harmless, unless they belong to a layer or to the way in or out: then the model is another one
 * than its keys say. Precomputed rotary tables of old converters are known and not needed. */
static yk_status check_unused(const binder *b)
{
    const yk_gguf *g = &b->m->gguf;
    static const char *const parts[] = {"blk.", "output", "token_", "position_", "cls", "dense_"};
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        const char *name = g->tensors[i].name;
        if (b->used[i] || strstr(name, ".attn_rot_embd") || strstr(name, ".rope_freqs"))
            continue;
        for (size_t j = 0; j < sizeof parts / sizeof parts[0]; j++)
            YK_FAIL_IF(strncmp(name, parts[j], strlen(parts[j])) == 0, b->err, YK_ERR_INPUT,
                       "tensor %.200s is not part of architecture %s with %" PRIu32
                       " layers as yoke knows it; the text would be wrong "
                       "without it",
                       name, b->m->arch->name, b->m->hp.n_layers);
    }
    return YK_OK;
}

static yk_status bind_all(binder *b)
{
    yk_model *m = b->m;
    YK_TRY(bind_embedding(b));
    YK_TRY(bind_head(b));
    YK_TRY(bind_rope_factors(b));
    YK_FAIL_IF(m->hp.n_layers > m->gguf.n_tensors, b->err, YK_ERR_INPUT,
               "key %s.block_count is %" PRIu32 ", but the file holds only %" PRIu32 " tensors", m->arch->name, m->hp.n_layers,
               m->gguf.n_tensors);
    m->layers = yk_alloc(YK_MEM_RUNTIME, m->hp.n_layers, sizeof *m->layers);
    if (!m->layers)
        return yk_fail_memory(b->err, (uint64_t)m->hp.n_layers * sizeof *m->layers, "the layer table");
    bool dense = false;
    for (uint32_t i = 0; i < m->hp.n_layers; i++) {
        b->layer = i;
        YK_TRY(bind_layer(b, &m->layers[i]));
        dense = dense || !m->layers[i].moe;
    }
    if (!dense)
        m->hp.n_ff = 0;
    return check_unused(b);
}

yk_status yk_model_bind(yk_model *m, yk_error *err)
{
    binder b = {.m = m, .layer = GLOBAL, .err = err};
    b.used = yk_alloc(YK_MEM_RUNTIME, m->gguf.n_tensors, sizeof *b.used);
    if (!b.used)
        return yk_fail_memory(err, m->gguf.n_tensors * sizeof *b.used, "binding tensors");
    const yk_status st = bind_all(&b);
    yk_free(b.used);
    return st;
}
