/* pretok.h - the patterns that cut a text into words before byte-level BPE.
 *
 * One row per value of tokenizer.ggml.pre. A row has up to six patterns (PCRE2 syntax); each one cuts every piece that the ones
 * before it left into matches and the text between them. A pattern sees only its piece: look-ahead ends there. */
#ifndef YK_MODEL_PRETOK_H
#define YK_MODEL_PRETOK_H

#include "src/model/gguf.h"

enum { YK_PRETOK_MAX_STAGES = 6 };

enum {
    YK_PRETOK_ADD_BOS = 1,      /* the text begins with BOS unless a key says otherwise */
    YK_PRETOK_IGNORE_MERGES = 2 /* a word that is a token needs no merges */
};

typedef struct yk_pretok yk_pretok;

/* Compile the row called `name` (not NUL-terminated). YK_ERR_INPUT: no such row, the text names key and value. */
yk_status yk_pretok_open(yk_pretok **out, const char *name, uint64_t n, yk_error *err);
void yk_pretok_close(yk_pretok **pretok);
uint32_t yk_pretok_flags(const yk_pretok *pretok); /* YK_PRETOK_* */

/* Gets one word; a failure stops the split. */
typedef yk_status (*yk_pretok_fn)(void *user, const char *word, size_t n, yk_error *err);

/* Cut valid UTF-8 text into words, left to right, nothing left out. YK_ERR_MEMORY, YK_ERR_RUNTIME (a limit of PCRE2), or what
 * fn returned. Any number of threads at a time. */
yk_status yk_pretok_split(const yk_pretok *pretok, const char *text, size_t n, yk_pretok_fn fn, void *user, yk_error *err);

/* Names of all rows, separated by spaces, one group per line of the table; static storage. index counts groups; NULL past the
 * last. */
const char *yk_pretok_names(uint32_t index);

#endif
