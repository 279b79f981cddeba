/* tokenizer_internal.h - what the files of the tokenizer share. */
#ifndef YK_MODEL_TOKENIZER_INTERNAL_H
#define YK_MODEL_TOKENIZER_INTERNAL_H

#include <string.h>

#include "src/model/pretok.h"
#include "src/model/tokenizer.h"

typedef enum yk_tok_kind { YK_TOK_SPM, YK_TOK_BPE } yk_tok_kind;

/* Values of tokenizer.ggml.token_type; all others count as normal. */
enum { YK_TT_NORMAL = 1, YK_TT_UNKNOWN = 2, YK_TT_CONTROL = 3, YK_TT_USER = 4, YK_TT_UNUSED = 5, YK_TT_BYTE = 6 };

typedef struct yk_tok_entry {
    uint32_t off,
        len;      /* bytes the token stands for, in blob: spaces are spaces, byte tokens one byte; special ones as spelled */
    uint8_t type; /* YK_TT_* */
    bool end;     /* ends a text */
    bool rstrip;  /* white space behind it in the text belongs to it */
    bool merged;  /* a merge yields it */
} yk_tok_entry;

typedef struct yk_tok_slot {
    uint32_t hash;
    uint32_t id1; /* id + 1; 0: free */
} yk_tok_slot;

typedef struct yk_tok_merge {
    uint64_t key; /* left id << 32 | right id; UINT64_MAX: free */
    uint32_t rank;
    int32_t id;
} yk_tok_merge;

struct yk_tokenizer {
    const yk_gguf *gguf;
    yk_tok_kind kind;
    uint32_t n;
    uint32_t max_len; /* of all blob texts */
    yk_tok_entry *tokens;
    char *blob;
    /* bytes -> id for the tokens that merging may reach */
    yk_tok_slot *slots;
    uint32_t slot_mask, max_plain_len;
    int32_t byte_id[256]; /* -1: the vocabulary has no token for this byte */
    int32_t lost_id;      /* given for a byte without a token, -1: none */
    yk_tokenizer_special special;
    int32_t *specials; /* ids of control, user-defined and unknown tokens, sorted by text */
    uint32_t n_specials;
    uint32_t special_first[257]; /* specials that start with byte b: [b] .. [b + 1] */
    /* SPM */
    uint32_t *prio;                  /* [n] order of merging, lowest first: from the scores */
    bool space_prefix, space_inside; /* space_inside: some token has a space behind another character */
    /* BPE */
    yk_tok_merge *merges;
    uint32_t merge_mask;
    yk_pretok *pretok;
    bool ignore_merges; /* a word that is a token is that token, whatever the merges say */
};

static inline const char *yk_tok_text(const yk_tokenizer *tok, int32_t id)
{
    return tok->blob + tok->tokens[id].off;
}

/* Id of a token that merging may reach, -1: none. */
int32_t yk_tok_lookup(const yk_tokenizer *tok, const char *p, size_t n);
/* Enter a token into that table; the first of equal texts stays. YK_ERR_INPUT: texts made to collide. */
yk_status yk_tok_enter(yk_tokenizer *tok, int32_t id, const char *p, size_t n, yk_error *err);

/* Probes of a hash table at most half full; only keys made to collide need more, and such a file must not take hours. */
enum { YK_TOK_MAX_PROBES = 1024 };

/* Where ids go: counts all, keeps those that fit. */
typedef struct yk_tok_sink {
    int32_t *ids;
    size_t capacity, n;
} yk_tok_sink;

static inline void yk_tok_push(yk_tok_sink *sink, int32_t id)
{
    if (sink->n < sink->capacity)
        sink->ids[sink->n] = id;
    sink->n++;
}

static inline void yk_tok_push_byte(const yk_tokenizer *tok, yk_tok_sink *sink, uint8_t byte)
{
    const int32_t id = tok->byte_id[byte] >= 0 ? tok->byte_id[byte] : tok->lost_id;
    if (id >= 0)
        yk_tok_push(sink, id);
}

/* ---- merging: the best pair of neighbours becomes one symbol until no pair is left ---------------------------------- */

#define YK_TOK_NO_PAIR  UINT32_MAX
#define YK_TOK_MAX_TEXT (1u << 30)

typedef struct yk_tok_sym {
    int32_t prev, next; /* -1: none */
    uint32_t off, len;  /* bytes of the text; len 0: swallowed by its left neighbour */
    int32_t id;         /* -1: no token */
    uint32_t prio;      /* order of the pair (this, next), lowest first; YK_TOK_NO_PAIR */
    int32_t pair_id;    /* what the pair becomes */
} yk_tok_sym;

typedef struct yk_tok_work {
    yk_tok_sym *syms; /* [cap] */
    uint64_t *heap;   /* [2 cap]: prio << 32 | left symbol */
    size_t cap, n, n_heap;
} yk_tok_work;

/* Room for n symbols; keeps none. */
yk_status yk_tok_work_reserve(yk_tok_work *work, size_t n, yk_error *err);
void yk_tok_work_free(yk_tok_work *work);

/* Order of a pair of symbols and the token it becomes; YK_TOK_NO_PAIR when it is none. */
typedef uint32_t (*yk_tok_pair_fn)(const yk_tokenizer *tok, const char *text, const yk_tok_sym *left, const yk_tok_sym *right,
                                   int32_t *id);
/* Merge work->syms[0 .. n): off, len and id are set by the caller. Afterwards follow `next` from symbol 0. Equal orders:
 * leftmost first. O(n log n). */
void yk_tok_merge_all(yk_tok_work *work, const yk_tokenizer *tok, const char *text, yk_tok_pair_fn pair);

/* ---- the two kinds -------------------------------------------------------------------------------------------------- */

/* Fill blob, tokens[].off/len and the kind's tables. tokens[].type is set. */
yk_status yk_tok_spm_open(yk_tokenizer *tok, const yk_gguf_kv *tokens, yk_error *err);
yk_status yk_tok_bpe_open(yk_tokenizer *tok, const yk_gguf_kv *tokens, yk_error *err);
/* Encode text without special tokens. prefix: put a space before it (SPM). */
yk_status yk_tok_spm_encode(const yk_tokenizer *tok, const char *text, size_t n, bool prefix, yk_tok_sink *sink, yk_error *err);
yk_status yk_tok_bpe_encode(const yk_tokenizer *tok, const char *text, size_t n, yk_tok_sink *sink, yk_error *err);

/* ---- UTF-8 ---------------------------------------------------------------------------------------------------------- */

/* Length of the valid UTF-8 character at p, 0: not valid or cut. n > 0. */
static inline uint32_t yk_utf8_len(const char *s, size_t n)
{
    const uint8_t *p = (const uint8_t *)s;
    if (p[0] < 0x80)
        return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4)
        return 0;
    if (n < 2)
        return 0;
    /* second byte: narrower after E0 (overlong), ED (surrogates), F0 (overlong), F4 (past 10FFFF) */
    const uint8_t lo = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;
    const uint8_t hi = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;
    if (p[1] < lo || p[1] > hi)
        return 0;
    const uint32_t len = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (n < len)
        return 0;
    for (uint32_t i = 2; i < len; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    return len;
}

#endif
