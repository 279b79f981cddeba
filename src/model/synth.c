/* Random models of a known shape. Weights are scaled so that the computation behaves like that of a trained model: products of
 * a normalised vector are of size one, each layer adds a fraction to the residual stream, attention and routing are neither
 * flat nor fixed on one choice, and the logits have a spread of about three. */
#include "src/model/synth.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "src/model/synth_blocks.h"

enum { MAX_LAYERS = 4096, MAX_SYNTH_THREADS = 4 };

typedef struct plan {
    const yk_synth_shape *shape;
    const yk_mix *mix;
    uint64_t seed;
    uint32_t n_layers, layer;
    yk_gguf_writer w;
    yk_synth_gen *gens; /* [n_tensors] */
    uint32_t n_gens, cap_gens;
} plan;

/* ---- tensors ---- */

static void add(plan *p, const char *name, yk_role role, uint32_t n_dims, const uint64_t *ne, double std, double mean)
{
    const yk_type type = yk_mix_type(p->mix, role, p->layer, p->n_layers, p->shape->n_experts, ne[0]);
    if (p->n_gens == p->cap_gens) {
        const uint32_t cap = p->cap_gens ? 2 * p->cap_gens : 64;
        yk_synth_gen *g = yk_realloc(YK_MEM_RUNTIME, p->gens, cap, sizeof *g);
        if (!g) {
            if (p->w.failure.status == YK_OK)
                yk_fail_memory(&p->w.failure, cap * sizeof *g, "table of tensors");
            return;
        }
        p->gens = g;
        p->cap_gens = cap;
    }
    yk_synth_gen_init(&p->gens[p->n_gens++], type, ne[0], p->seed, name, std, mean);
    yk_gguf_add_tensor(&p->w, name, type, n_dims, ne);
}

/* blk.L.NAME.weight [n_cols, n_rows, n_mats] (n_mats 0: two dimensions); std is that of the product with a vector of size one.
 */
static void add_matrix(plan *p, const char *name, yk_role role, uint64_t n_cols, uint64_t n_rows, uint64_t n_mats, double size)
{
    char full[96];
    snprintf(full, sizeof full, "blk.%" PRIu32 ".%s.weight", p->layer, name);
    add(p, full, role, n_mats ? 3 : 2, (uint64_t[]){n_cols, n_rows, n_mats}, size / sqrt((double)n_cols), 0);
}

/* blk.L.NAME.KIND [n] or [n, n_mats] */
static void add_vector(plan *p, const char *name, const char *kind, uint64_t n, uint64_t n_mats, double std, double mean)
{
    char full[96];
    snprintf(full, sizeof full, "blk.%" PRIu32 ".%s.%s", p->layer, name, kind);
    add(p, full, YK_ROLE_KEEP, n_mats ? 2 : 1, (uint64_t[]){n, n_mats}, std, mean);
}

static void add_norm(plan *p, const char *name, uint64_t n)
{
    add_vector(p, name, "weight", n, 0, 0.1, 1);
}
static void add_bias(plan *p, const char *name, uint64_t n, uint64_t n_mats, double std)
{
    if (p->shape->oss)
        add_vector(p, name, "bias", n, n_mats, std, 0);
}

static void add_attention(plan *p)
{
    const yk_synth_shape *s = p->shape;
    const uint64_t d = s->n_embd, q = (uint64_t)s->n_heads * s->head_dim, kv = (uint64_t)s->n_kv_heads * s->head_dim;
    add_norm(p, "attn_norm", d);
    add_matrix(p, "attn_q", YK_ROLE_Q, d, q, 0, 1.2);
    add_bias(p, "attn_q", q, 0, 0.1);
    add_matrix(p, "attn_k", YK_ROLE_K, d, kv, 0, 1.2);
    add_bias(p, "attn_k", kv, 0, 0.1);
    add_matrix(p, "attn_v", YK_ROLE_V, d, kv, 0, 0.8);
    add_bias(p, "attn_v", kv, 0, 0.1);
    if (s->qk_norm) {
        add_norm(p, "attn_q_norm", s->head_dim);
        add_norm(p, "attn_k_norm", s->head_dim);
    }
    add_matrix(p, "attn_output", YK_ROLE_ATTN_OUT, q, d, 0, 0.8);
    add_bias(p, "attn_output", d, 0, 0.05);
    if (s->oss)
        add_vector(p, "attn_sinks", "weight", s->n_heads, 0, 1, 0);
}

static void add_ffn(plan *p)
{
    const yk_synth_shape *s = p->shape;
    const uint64_t d = s->n_embd, e = s->n_experts;
    const uint64_t ff = e ? s->n_expert_ff : s->n_ff;
    add_norm(p, s->oss ? "post_attention_norm" : "ffn_norm", d);
    if (e) {
        /* Router logits of size two: the best expert takes a good part, and which one it is depends on the token. */
        add_matrix(p, "ffn_gate_inp", YK_ROLE_KEEP, d, e, 0, 2);
        add_bias(p, "ffn_gate_inp", e, 0, 0.2);
    }
    add_matrix(p, e ? "ffn_gate_exps" : "ffn_gate", YK_ROLE_GATE, d, ff, e, 1);
    add_bias(p, "ffn_gate_exps", ff, e, 0.1);
    add_matrix(p, e ? "ffn_up_exps" : "ffn_up", YK_ROLE_UP, d, ff, e, 1);
    add_bias(p, "ffn_up_exps", ff, e, 0.1);
    add_matrix(p, e ? "ffn_down_exps" : "ffn_down", YK_ROLE_DOWN, ff, d, e, 0.7);
    add_bias(p, "ffn_down_exps", d, e, 0.05);
}

static void add_tensors(plan *p)
{
    const yk_synth_shape *s = p->shape;
    const uint64_t d = s->n_embd;
    add(p, "token_embd.weight", YK_ROLE_TOKEN_EMBD, 2, (uint64_t[]){d, s->n_vocab}, 0.5, 0);
    for (p->layer = 0; p->layer < p->n_layers; p->layer++) {
        add_attention(p);
        add_ffn(p);
    }
    p->layer = 0;
    add(p, "output_norm.weight", YK_ROLE_KEEP, 1, &d, 0.1, 1);
    add(p, "output.weight", YK_ROLE_OUTPUT, 2, (uint64_t[]){d, s->n_vocab}, 3 / sqrt((double)d), 0);
}

/* ---- keys ---- */

static void put_arch_u32(plan *p, const char *key, uint32_t value)
{
    char full[96];
    snprintf(full, sizeof full, "%s.%s", p->shape->arch, key);
    yk_gguf_put_u32(&p->w, full, value);
}

static void put_arch_f32(plan *p, const char *key, float value)
{
    char full[96];
    snprintf(full, sizeof full, "%s.%s", p->shape->arch, key);
    yk_gguf_put_f32(&p->w, full, value);
}

static void put_keys(plan *p)
{
    const yk_synth_shape *s = p->shape;
    char text[160];
    yk_gguf_put_str(&p->w, "general.architecture", s->arch);
    yk_gguf_put_str(&p->w, "general.type", "model");
    snprintf(text, sizeof text, "%s synthetic", s->name);
    yk_gguf_put_str(&p->w, "general.name", text);
    snprintf(text, sizeof text, "Random weights, seed %" PRIu64 "; says nothing sensible.", p->seed);
    yk_gguf_put_str(&p->w, "general.description", text);
    yk_gguf_put_u32(&p->w, "general.file_type", p->mix->file_type);
    yk_gguf_put_u32(&p->w, "general.quantization_version", 2);
    put_arch_u32(p, "block_count", p->n_layers);
    put_arch_u32(p, "context_length", s->n_ctx);
    put_arch_u32(p, "embedding_length", s->n_embd);
    put_arch_u32(p, "feed_forward_length", s->n_ff);
    put_arch_u32(p, "attention.head_count", s->n_heads);
    put_arch_u32(p, "attention.head_count_kv", s->n_kv_heads);
    put_arch_u32(p, "attention.key_length", s->head_dim);
    put_arch_u32(p, "attention.value_length", s->head_dim);
    put_arch_f32(p, "attention.layer_norm_rms_epsilon", s->eps);
    put_arch_u32(p, "rope.dimension_count", s->head_dim);
    put_arch_f32(p, "rope.freq_base", s->rope_base);
    put_arch_u32(p, "vocab_size", s->n_vocab);
    if (s->n_experts) {
        put_arch_u32(p, "expert_count", s->n_experts);
        put_arch_u32(p, "expert_used_count", s->n_used);
        put_arch_u32(p, "expert_feed_forward_length", s->n_expert_ff);
    }
    if (s->oss) {
        put_arch_u32(p, "attention.sliding_window", s->window);
        snprintf(text, sizeof text, "%s.rope.scaling.type", s->arch);
        yk_gguf_put_str(&p->w, text, "yarn");
        put_arch_f32(p, "rope.scaling.factor", s->yarn_factor);
        put_arch_u32(p, "rope.scaling.original_context_length", s->orig_ctx);
    }
    yk_synth_put_vocab(&p->w, s->vocab, s->n_vocab);
}

/* ---- writing ---- */

static yk_status fill(void *user, uint32_t thread, uint32_t tensor, uint64_t first_row, uint64_t n_rows, uint8_t *dst,
                      yk_error *err)
{
    const plan *p = user;
    (void)thread;
    (void)err;
    yk_synth_rows(&p->gens[tensor], first_row, n_rows, dst);
    return YK_OK;
}

yk_status yk_synth_write(const char *path, const yk_synth_shape *shape, const yk_synth_opts *opts, uint32_t n_threads,
                         yk_error *err)
{
    plan p = {.shape = shape, .seed = opts->seed};
    p.mix = opts->type ? yk_mix_find(opts->type) : NULL;
    YK_FAIL_IF(!p.mix, err, YK_ERR_USAGE, "synth: unknown type %.60s; types are %s", opts->type ? opts->type : "(none)",
               yk_synth_types());
    p.n_layers = opts->n_layers ? opts->n_layers : shape->n_layers;
    YK_FAIL_IF(p.n_layers > MAX_LAYERS, err, YK_ERR_USAGE, "synth: %" PRIu32 " layers; at most %d are possible", p.n_layers,
               MAX_LAYERS);
    yk_gguf_writer_init(&p.w, 32);
    put_keys(&p);
    add_tensors(&p);
    const yk_gguf_save_opts save = {.fill = fill,
                                    .fill_user = &p,
                                    .n_threads = n_threads,
                                    .what = "writing weights",
                                    .progress = opts->progress,
                                    .progress_user = opts->progress_user};
    const yk_status st = yk_gguf_save(&p.w, path, &save, err);
    yk_gguf_writer_close(&p.w);
    yk_free(p.gens);
    return st;
}

void yk_synth_opts_init(yk_synth_opts *opts)
{
    *opts = (yk_synth_opts){.shape = "llama-1b", .type = "Q4_K_M"};
}

yk_status yk_synth(const char *path, const yk_synth_opts *opts, yk_error *err)
{
    YK_FAIL_IF(!path || !*path, err, YK_ERR_USAGE, "synth: no output file is given");
    const yk_synth_shape *shape = opts->shape ? yk_synth_shape_find(opts->shape) : NULL;
    YK_FAIL_IF(!shape, err, YK_ERR_USAGE, "synth: unknown shape %.60s; shapes are %s", opts->shape ? opts->shape : "(none)",
               yk_synth_shapes());
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    const uint32_t n_threads = cpus < 1 ? 1 : cpus > MAX_SYNTH_THREADS ? MAX_SYNTH_THREADS : (uint32_t)cpus;
    return yk_synth_write(path, shape, opts, n_threads, err);
}
