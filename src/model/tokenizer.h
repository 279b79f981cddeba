/* tokenizer.h - text to token ids and back: SentencePiece-style BPE with scores (`llama`) and byte-level BPE (`gpt2`).
 *
 * Immutable after opening, shared by threads. Built from the tokenizer.ggml.* keys of a GGUF. */
#ifndef YK_MODEL_TOKENIZER_H
#define YK_MODEL_TOKENIZER_H

#include "src/model/gguf.h"

typedef struct yk_tokenizer yk_tokenizer;

/* Build from metadata; the gguf must outlive the tokenizer. Every wrong key is YK_ERR_INPUT naming it: missing or empty
 * tokens, scores or types of another length, merges that are no pair or name unknown tokens, unknown model or pre-tokenizer, special
 * ids out of range. */
yk_status yk_tokenizer_open(yk_tokenizer **out, const yk_gguf *gguf, yk_error *err);
void yk_tokenizer_close(yk_tokenizer **tok);

uint32_t yk_tokenizer_size(const yk_tokenizer *tok); /* number of tokens */

typedef struct yk_tokenizer_special {
    int32_t bos, eos, eot, unk; /* -1: none */
    bool add_bos, add_eos;
} yk_tokenizer_special;
yk_tokenizer_special yk_tokenizer_get_special(const yk_tokenizer *tok);

/* Flags YK_TOK_*; semantics of yk_tokenize in yoke.h. */
yk_status yk_tokenizer_encode(const yk_tokenizer *tok, const char *text, size_t n_bytes, uint32_t flags, int32_t *ids,
                              size_t capacity, size_t *n_ids, yk_error *err);
/* Semantics of yk_token_text in yoke.h. */
yk_status yk_tokenizer_text(const yk_tokenizer *tok, int32_t id, bool special, char *buf, size_t capacity, size_t *n_bytes);
bool yk_tokenizer_is_end(const yk_tokenizer *tok, int32_t id);
/* True when decoding drops one leading space at the start of a text (SentencePiece with add_space_prefix). */
bool yk_tokenizer_drops_space(const yk_tokenizer *tok);

#endif
