/* tokenizer.h - text to token ids and back: SentencePiece-style BPE with scores (`llama`) and byte-level BPE (`gpt2`).
 *
 * Immutable after opening, shared by threads. Built from the tokenizer.ggml.* keys of a GGUF.
 *
 * Ids are those of llama.cpp for valid UTF-8, with these deliberate differences: control, unknown and byte tokens never come
 * out of plain text by merging, a literal U+2581 in the text of a `llama` vocabulary is kept as bytes (not turned into a
 * space), and patterns are the ones the models were trained with where llama.cpp narrows them to ASCII (gpt-4o, tekken). */
#ifndef YK_MODEL_TOKENIZER_H
#define YK_MODEL_TOKENIZER_H

#include "src/model/gguf.h"

typedef struct yk_tokenizer yk_tokenizer;

/* Build from metadata; the gguf must outlive the tokenizer. Every wrong key is YK_ERR_INPUT naming it: missing or empty
 * tokens, scores or types of another length, merges that are no pair or name unknown tokens, unknown model or pre-tokenizer,
 * special ids out of range. */
yk_status yk_tokenizer_open(yk_tokenizer **out, const yk_gguf *gguf, yk_error *err);
void yk_tokenizer_close(yk_tokenizer **tok);

uint32_t yk_tokenizer_size(const yk_tokenizer *tok); /* number of tokens */

typedef struct yk_tokenizer_special {
    int32_t bos, eos, eot, unk; /* -1: none */
    bool add_bos, add_eos;
} yk_tokenizer_special;
yk_tokenizer_special yk_tokenizer_get_special(const yk_tokenizer *tok);

/* Flags YK_TOK_*; semantics of yk_tokenize in yoke.h. A byte for which the vocabulary has neither a token nor an unknown token
 * is left out (some byte-level vocabularies lack bytes that their training text did not hold). At most 2^30 bytes of text. */
yk_status yk_tokenizer_encode(const yk_tokenizer *tok, const char *text, size_t n_bytes, uint32_t flags, int32_t *ids,
                              size_t capacity, size_t *n_ids, yk_error *err);
/* Semantics of yk_token_text in yoke.h. */
yk_status yk_tokenizer_text(const yk_tokenizer *tok, int32_t id, bool special, char *buf, size_t capacity, size_t *n_bytes);
bool yk_tokenizer_is_end(const yk_tokenizer *tok, int32_t id);
/* True when encoding puts a space before a text and decoding drops one (SentencePiece with add_space_prefix). */
bool yk_tokenizer_drops_space(const yk_tokenizer *tok);

/* The same bytes as yk_tokenizer_text without a copy, owned by tok. Length 0 for ids out of range. */
const char *yk_tokenizer_piece(const yk_tokenizer *tok, int32_t id, bool special, size_t *n_bytes);
/* True for tokens that stand outside of running text: encoding puts a new leading space behind them (see drops_space). */
bool yk_tokenizer_is_special(const yk_tokenizer *tok, int32_t id);
/* Bytes of the longest piece. */
size_t yk_tokenizer_max_piece(const yk_tokenizer *tok);

#endif
