/* tok_fuzz.h - what both tokenizer fuzzers do with their input. */
#ifndef YK_TESTS_TOK_FUZZ_H
#define YK_TESTS_TOK_FUZZ_H

#include "tests/tok_vocab.h"

/* Encode and decode text in all ways. lossless: decoding plain text must give it back. */
void tok_fuzz_text(const yk_tokenizer *tok, const uint8_t *text, size_t n, bool lossless);

/* A vocabulary made of the input: numbers 0xff tokens 0xff merges 0xff text; tokens and merges are lines. The numbers give
 * types, scores and ids of special tokens. Opens it and, when it is accepted, does tok_fuzz_text. */
void tok_fuzz_vocab(const char *model, const char *pre, const uint8_t *data, size_t n);

#endif
