/* synth.h - what the files of the synthetic-model writer share. A shape is data: tests write small ones of their own. */
#ifndef YK_MODEL_SYNTH_H
#define YK_MODEL_SYNTH_H

#include "src/model/gguf_write.h"
#include "src/model/mix.h"

typedef enum yk_synth_vocab {
    YK_SYNTH_SPM,   /* SentencePiece: byte tokens, syllables; at least 1024 tokens */
    YK_SYNTH_QWEN2, /* byte-level BPE with Qwen's special tokens at the end */
    YK_SYNTH_GPT4O  /* byte-level BPE with gpt-oss's special tokens at the end */
} yk_synth_vocab;

typedef struct yk_synth_shape {
    const char *name, *arch;
    uint32_t n_layers, n_embd, n_ff, n_heads, n_kv_heads, head_dim;
    uint32_t n_experts, n_used, n_expert_ff; /* 0: dense */
    uint32_t n_vocab, n_ctx;
    float rope_base, eps;
    bool qk_norm;
    bool oss;          /* gpt-oss: biases, sinks, ffn norm named post_attention_norm, key_length and YaRN in the keys */
    uint32_t window;   /* oss: sliding window of every second layer */
    float yarn_factor; /* oss */
    uint32_t orig_ctx; /* oss */
    yk_synth_vocab vocab;
} yk_synth_shape;

/* Shape by name, or NULL. */
const yk_synth_shape *yk_synth_shape_find(const char *name);

/* Vocabulary keys. */
void yk_synth_put_vocab(yk_gguf_writer *w, yk_synth_vocab vocab, uint32_t n_vocab);

/* yk_synth for any shape; opts->shape is not read. */
yk_status yk_synth_write(const char *path, const yk_synth_shape *shape, const yk_synth_opts *opts, uint32_t n_threads,
                         yk_error *err);

#endif
