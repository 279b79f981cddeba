/* Opening a tokenizer, its tables, special tokens, and the entry points. */
#include "src/model/tokenizer_internal.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <strings.h>

/* ---- bytes -> id ---------------------------------------------------------------------------------------------------- */

static uint32_t hash_bytes(const char *p, size_t n)
{
    uint64_t h = n * 0x9e3779b97f4a7c15u;
    uint64_t v;
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&v, p, 8);
        h = (h ^ v) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    v = 0;
    for (size_t i = 0; i < n; i++)
        v |= (uint64_t)(uint8_t)p[i] << 8 * i;
    h = (h ^ v) * 0xff51afd7ed558ccdu;
    h ^= h >> 32;
    h *= 0xc4ceb9fe1a85ec53u;
    return (uint32_t)(h >> 32);
}

/* The slot of these bytes or the free one where they belong; NULL after too many probes. */
static yk_tok_slot *find_slot(const yk_tokenizer *tok, const char *p, size_t n)
{
    const uint32_t hash = hash_bytes(p, n);
    for (uint32_t k = 0; k < YK_TOK_MAX_PROBES; k++) {
        yk_tok_slot *s = &tok->slots[(hash + k) & tok->slot_mask];
        if (s->id1 == 0)
            return s;
        const yk_tok_entry *e = &tok->tokens[s->id1 - 1];
        if (s->hash == hash && e->len == n && memcmp(tok->blob + e->off, p, n) == 0)
            return s;
    }
    return NULL;
}

int32_t yk_tok_lookup(const yk_tokenizer *tok, const char *p, size_t n)
{
    if (n > tok->max_plain_len)
        return -1;
    const yk_tok_slot *s = find_slot(tok, p, n);
    return s ? (int32_t)s->id1 - 1 : -1;
}

yk_status yk_tok_enter(yk_tokenizer *tok, int32_t id, const char *p, size_t n, yk_error *err)
{
    if (n == 0)
        return YK_OK;
    yk_tok_slot *s = find_slot(tok, p, n);
    YK_FAIL_IF(!s, err, YK_ERR_INPUT, "tokenizer.ggml.tokens: the text of token %" PRId32 " is made to slow the reader down",
               id);
    if (s->id1 == 0)
        *s = (yk_tok_slot){hash_bytes(p, n), (uint32_t)id + 1};
    if (n > tok->max_plain_len)
        tok->max_plain_len = (uint32_t)n;
    return YK_OK;
}

/* ---- opening: the token list ---------------------------------------------------------------------------------------- */

static yk_status read_types(yk_tokenizer *tok, bool *known, yk_error *err)
{
    static const char key[] = "tokenizer.ggml.token_type";
    const yk_gguf_kv *kv = yk_gguf_find(tok->gguf, key);
    *known = kv != NULL;
    if (kv) {
        const yk_gguf_type t = kv->elem_type;
        YK_FAIL_IF(kv->type != YK_GGUF_ARR || t == YK_GGUF_F32 || t == YK_GGUF_F64 || t == YK_GGUF_STR || t == YK_GGUF_BOOL,
                   err, YK_ERR_INPUT, "%s: is %s, must be an array of integers", key, yk_gguf_type_name(kv));
        YK_FAIL_IF(kv->n != tok->n, err, YK_ERR_INPUT, "%s: %" PRIu64 " types for %u tokens", key, kv->n, tok->n);
    }
    for (uint32_t i = 0; i < tok->n; i++) {
        const int64_t t = kv ? yk_gguf_arr_int(kv, i) : YK_TT_NORMAL;
        tok->tokens[i].type = (uint8_t)(t >= YK_TT_UNKNOWN && t <= YK_TT_BYTE ? t : YK_TT_NORMAL);
    }
    return YK_OK;
}

/* Tables whose size the token list alone says. */
static yk_status alloc_tables(yk_tokenizer *tok, const yk_gguf_kv *tokens, yk_error *err)
{
    uint64_t bytes = 1, slots = 16;
    for (uint32_t i = 0; i < tok->n; i++)
        bytes += yk_gguf_arr_str(tokens, i).n;
    YK_FAIL_IF(bytes > INT32_MAX, err, YK_ERR_INPUT, "tokenizer.ggml.tokens: %" PRIu64 " bytes of text are too many", bytes);
    while (slots < (uint64_t)tok->n * 2)
        slots *= 2;
    tok->tokens = yk_alloc(YK_MEM_RUNTIME, tok->n, sizeof *tok->tokens);
    tok->blob = yk_alloc(YK_MEM_RUNTIME, bytes, 1);
    tok->slots = yk_alloc(YK_MEM_RUNTIME, slots, sizeof *tok->slots);
    tok->slot_mask = (uint32_t)(slots - 1);
    if (!tok->tokens || !tok->blob || !tok->slots)
        return yk_fail_memory(err, tok->n * sizeof *tok->tokens + bytes + slots * sizeof *tok->slots, "the tokenizer's tables");
    return YK_OK;
}

static yk_status read_kind(yk_tokenizer *tok, yk_error *err)
{
    yk_str model = {0};
    YK_TRY(yk_gguf_get_str(tok->gguf, "tokenizer.ggml.model", true, &model, err));
    if (model.n == 5 && memcmp(model.p, "llama", 5) == 0)
        tok->kind = YK_TOK_SPM;
    else if (model.n == 4 && memcmp(model.p, "gpt2", 4) == 0)
        tok->kind = YK_TOK_BPE;
    else
        return yk_fail(err, YK_ERR_INPUT, "tokenizer.ggml.model: unknown tokenizer '%.*s'; yoke knows llama and gpt2",
                       (int)(model.n < 64 ? model.n : 64), model.p);
    return YK_OK;
}

/* ---- opening: special tokens ---------------------------------------------------------------------------------------- */

/* Read an id. Absent: the default, when there are so many tokens. */
static yk_status read_id(const yk_tokenizer *tok, const char *key, int32_t fallback, int32_t *out, yk_error *err)
{
    uint32_t id = UINT32_MAX;
    *out = fallback >= 0 && (uint32_t)fallback < tok->n ? fallback : -1;
    YK_TRY(yk_gguf_get_u32(tok->gguf, key, false, &id, err));
    if (!yk_gguf_find(tok->gguf, key))
        return YK_OK;
    YK_FAIL_IF(id >= tok->n, err, YK_ERR_INPUT, "%s: token %" PRIu32 " of %" PRIu32 " tokens", key, id, tok->n);
    *out = (int32_t)id;
    return YK_OK;
}

static yk_status read_ids(yk_tokenizer *tok, yk_error *err)
{
    const bool spm = tok->kind == YK_TOK_SPM;
    yk_tokenizer_special *s = &tok->special;
    int32_t unused;
    YK_TRY(read_id(tok, "tokenizer.ggml.bos_token_id", spm ? 1 : -1, &s->bos, err));
    YK_TRY(read_id(tok, "tokenizer.ggml.eos_token_id", spm ? 2 : -1, &s->eos, err));
    YK_TRY(read_id(tok, "tokenizer.ggml.eot_token_id", -1, &s->eot, err));
    YK_TRY(read_id(tok, "tokenizer.ggml.unknown_token_id", spm ? 0 : -1, &s->unk, err));
    YK_TRY(read_id(tok, "tokenizer.ggml.padding_token_id", -1, &unused, err));
    YK_TRY(yk_gguf_get_bool(tok->gguf, "tokenizer.ggml.add_bos_token", false, &s->add_bos, err));
    YK_TRY(yk_gguf_get_bool(tok->gguf, "tokenizer.ggml.add_eos_token", false, &s->add_eos, err));
    s->add_bos &= s->bos >= 0;
    s->add_eos &= s->eos >= 0;
    return YK_OK;
}

/* Texts that end a turn, in the order in which one is taken for EOT when no key says so (`turn`), and others that end a text.
 * They are found by spelling because few files have keys for them. */
static const struct {
    const char *text;
    bool turn;
} end_texts[] = {
    {"<|eot_id|>", true},
    {"<|im_end|>", true},
    {"<|end|>", true},
    {"<end_of_turn>", true},
    {"<|endoftext|>", true},
    {"<|end_of_text|>", true},
    {"<EOT>", true},
    {"_<EOT>", true},
    {"[EOT]", true},
    {"<\xef\xbd\x9c"
     "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
     true}, /* DeepSeek */
    {"<end_of_utterance>", true},
    {"<|return|>", false}, /* gpt-oss */
    {"<|call|>", false},
    {"<|flush|>", false}, /* solar-open */
    {"<|calls|>", false},
    {"</s>", false},
    {"<|eom_id|>", false},
    {"[EOS]", false},
    {"[e~[", false},        /* minimax */
    {"<|fim_pad|>", false}, /* code models put these behind what they filled in */
    {"<fim_pad>", false},
    {"<|repo_name|>", false},
    {"<|fim_repo|>", false},
    {"<|file_sep|>", false},
};
enum { N_END_TEXTS = sizeof end_texts / sizeof end_texts[0] };

/* Marks of fill-in-the-middle prompts: control tokens as well, whatever the file says. */
static const char *const fill_texts[] = {
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<PRE>",
    "\xe2\x96\x81<PRE>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<SUF>",
    "\xe2\x96\x81<SUF>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<MID>",
    "\xe2\x96\x81<MID>",
    "<\xef\xbd\x9c"
    "fim\xe2\x96\x81"
    "begin\xef\xbd\x9c>",
    "<\xef\xbd\x9c"
    "fim\xe2\x96\x81hole\xef\xbd\x9c>",
    "<\xef\xbd\x9c"
    "fim\xe2\x96\x81"
    "end\xef\xbd\x9c>",
};

static int32_t find_text(const yk_tokenizer *tok, const char *text)
{
    const size_t n = strlen(text);
    for (uint32_t i = 0; i < tok->n; i++)
        if (tok->tokens[i].len == n && memcmp(yk_tok_text(tok, (int32_t)i), text, n) == 0)
            return (int32_t)i;
    return -1;
}

static void mark_ends(yk_tokenizer *tok)
{
    int32_t at[N_END_TEXTS];
    const char *closing[] = {"<|return|>", "<|call|>", "<|flush|>", "<|calls|>"};
    bool has[4] = {false};
    for (uint32_t i = 0; i < N_END_TEXTS; i++) {
        at[i] = find_text(tok, end_texts[i].text);
        /* A normal token that text can become (HTML has </s>) is no end, a normal one that no merge yields is a badly converted
         * one. */
        if (at[i] >= 0 && tok->tokens[at[i]].type == YK_TT_NORMAL && tok->tokens[at[i]].merged)
            at[i] = -1;
        for (int k = 0; k < 4; k++)
            has[k] |= at[i] >= 0 && strcmp(end_texts[i].text, closing[k]) == 0;
    }
    for (size_t i = 0; i < sizeof fill_texts / sizeof fill_texts[0]; i++) {
        const int32_t id = find_text(tok, fill_texts[i]);
        if (id >= 0 && tok->tokens[id].type == YK_TT_USER)
            tok->tokens[id].type = YK_TT_CONTROL;
    }
    /* Where messages have channels, <|end|> ends one of several messages of a turn. */
    const bool channels = (has[0] && has[1]) || (has[2] && (has[1] || has[3]));
    for (uint32_t i = 0; i < N_END_TEXTS; i++) {
        if (at[i] < 0 || (channels && strcmp(end_texts[i].text, "<|end|>") == 0))
            continue;
        tok->tokens[at[i]].type = YK_TT_CONTROL;
        tok->tokens[at[i]].end = true;
        if (end_texts[i].turn && tok->special.eot < 0)
            tok->special.eot = at[i];
    }
    if (tok->special.eos >= 0)
        tok->tokens[tok->special.eos].end = true;
    if (tok->special.eot >= 0)
        tok->tokens[tok->special.eot].end = true;
}

/* Phi-3's tokenizer drops white space behind its special tokens; GGUF files say so only through the model's name. */
static void mark_rstrip(yk_tokenizer *tok)
{
    yk_str name = {0};
    if (yk_gguf_get_str(tok->gguf, "general.name", false, &name, NULL) != YK_OK)
        return;
    bool phi3 = false;
    for (uint64_t i = 0; i + 4 <= name.n && !phi3; i++)
        phi3 = strncasecmp(name.p + i, "phi3", 4) == 0 || (i + 5 <= name.n && strncasecmp(name.p + i, "phi-3", 5) == 0);
    static const char *const keep[] = {"<unk>", "<s>", "<|endoftext|>"};
    for (uint32_t i = 0; phi3 && i < tok->n_specials; i++) {
        yk_tok_entry *e = &tok->tokens[tok->specials[i]];
        e->rstrip = true;
        for (int k = 0; k < 3; k++)
            if (e->len == strlen(keep[k]) && memcmp(tok->blob + e->off, keep[k], e->len) == 0)
                e->rstrip = false;
    }
}

static bool special_type(uint8_t type)
{
    return type == YK_TT_CONTROL || type == YK_TT_USER || type == YK_TT_UNKNOWN;
}

static int compare_specials(const void *a, const void *b, void *ctx)
{
    const yk_tokenizer *tok = ctx;
    const yk_tok_entry *x = &tok->tokens[*(const int32_t *)a], *y = &tok->tokens[*(const int32_t *)b];
    const int c = memcmp(tok->blob + x->off, tok->blob + y->off, x->len < y->len ? x->len : y->len);
    if (c || x->len != y->len)
        return c ? c : x->len < y->len ? -1 : 1;
    return *(const int32_t *)a < *(const int32_t *)b ? -1 : 1;
}

static yk_status collect_specials(yk_tokenizer *tok, yk_error *err)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < tok->n; i++)
        n += special_type(tok->tokens[i].type) && tok->tokens[i].len;
    tok->specials = yk_alloc(YK_MEM_RUNTIME, n, sizeof *tok->specials);
    if (!tok->specials)
        return yk_fail_memory(err, n * sizeof *tok->specials, "special tokens");
    for (uint32_t i = 0; i < tok->n; i++)
        if (special_type(tok->tokens[i].type) && tok->tokens[i].len)
            tok->specials[tok->n_specials++] = (int32_t)i;
    qsort_r(tok->specials, n, sizeof *tok->specials, compare_specials, tok);
    for (uint32_t b = 0, i = 0; b < 256; b++) {
        tok->special_first[b] = i;
        while (i < n && (uint8_t)*yk_tok_text(tok, tok->specials[i]) == b)
            i++;
        tok->special_first[b + 1] = i;
    }
    return YK_OK;
}

/* Without types, tell byte and special tokens by their spelling and the keys. */
static void guess_types(yk_tokenizer *tok, const yk_gguf_kv *tokens)
{
    if (tok->kind != YK_TOK_SPM)
        return;
    for (uint32_t i = 0; i < tok->n; i++) {
        const yk_str s = yk_gguf_arr_str(tokens, i);
        if (s.n == 6 && memcmp(s.p, "<0x", 3) == 0 && s.p[5] == '>')
            tok->tokens[i].type = YK_TT_BYTE;
    }
    if (tok->special.unk >= 0)
        tok->tokens[tok->special.unk].type = YK_TT_UNKNOWN;
    if (tok->special.bos >= 0)
        tok->tokens[tok->special.bos].type = YK_TT_CONTROL;
    if (tok->special.eos >= 0)
        tok->tokens[tok->special.eos].type = YK_TT_CONTROL;
}

static yk_status open_tables(yk_tokenizer *tok, yk_error *err)
{
    static const char key[] = "tokenizer.ggml.tokens";
    YK_TRY(read_kind(tok, err));
    const yk_gguf_kv *tokens = yk_gguf_find(tok->gguf, key);
    YK_FAIL_IF(!tokens, err, YK_ERR_INPUT, "%s: missing; the file has no vocabulary", key);
    YK_FAIL_IF(tokens->type != YK_GGUF_ARR || tokens->elem_type != YK_GGUF_STR, err, YK_ERR_INPUT, "%s: is %s, must be [str]",
               key, yk_gguf_type_name(tokens));
    YK_FAIL_IF(tokens->n == 0, err, YK_ERR_INPUT, "%s: is empty", key);
    YK_FAIL_IF(tokens->n > INT32_MAX / 2, err, YK_ERR_INPUT, "%s: %" PRIu64 " tokens are too many", key, tokens->n);
    tok->n = (uint32_t)tokens->n;
    YK_TRY(alloc_tables(tok, tokens, err));
    bool types_known;
    YK_TRY(read_types(tok, &types_known, err));
    memset(tok->byte_id, 0xff, sizeof tok->byte_id);
    tok->special.add_bos = tok->kind == YK_TOK_SPM;
    tok->space_prefix = tok->kind == YK_TOK_SPM;
    if (tok->kind == YK_TOK_SPM) {
        YK_TRY(read_ids(tok, err));
        if (!types_known)
            guess_types(tok, tokens);
        YK_TRY(yk_gguf_get_bool(tok->gguf, "tokenizer.ggml.add_space_prefix", false, &tok->space_prefix, err));
        YK_TRY(yk_tok_spm_open(tok, tokens, err));
    } else {
        YK_TRY(yk_tok_bpe_open(tok, tokens, err));
        YK_TRY(read_ids(tok, err));
    }
    mark_ends(tok);
    const int32_t unk = tok->special.unk;
    tok->lost_id = unk >= 0 && (tok->kind == YK_TOK_SPM || tok->tokens[unk].type == YK_TT_UNKNOWN) ? unk : -1;
    for (uint32_t i = 0; i < tok->n; i++)
        tok->max_len = tok->tokens[i].len > tok->max_len ? tok->tokens[i].len : tok->max_len;
    YK_TRY(collect_specials(tok, err));
    mark_rstrip(tok);
    return YK_OK;
}

yk_status yk_tokenizer_open(yk_tokenizer **out, const yk_gguf *gguf, yk_error *err)
{
    *out = NULL;
    yk_tokenizer *tok = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *tok);
    if (!tok)
        return yk_fail_memory(err, sizeof *tok, "a tokenizer");
    tok->gguf = gguf;
    tok->special = (yk_tokenizer_special){-1, -1, -1, -1, false, false};
    const yk_status st = open_tables(tok, err);
    if (st != YK_OK)
        yk_tokenizer_close(&tok);
    *out = tok;
    return st;
}

void yk_tokenizer_close(yk_tokenizer **tok)
{
    yk_tokenizer *t = *tok;
    if (!t)
        return;
    yk_pretok_close(&t->pretok);
    yk_free(t->tokens);
    yk_free(t->blob);
    yk_free(t->slots);
    yk_free(t->specials);
    yk_free(t->prio);
    yk_free(t->merges);
    yk_free(t);
    *tok = NULL;
}

uint32_t yk_tokenizer_size(const yk_tokenizer *tok)
{
    return tok->n;
}
yk_tokenizer_special yk_tokenizer_get_special(const yk_tokenizer *tok)
{
    return tok->special;
}
bool yk_tokenizer_drops_space(const yk_tokenizer *tok)
{
    return tok->space_prefix;
}
size_t yk_tokenizer_max_piece(const yk_tokenizer *tok)
{
    return tok->max_len;
}

bool yk_tokenizer_is_end(const yk_tokenizer *tok, int32_t id)
{
    return id >= 0 && (uint32_t)id < tok->n && tok->tokens[id].end;
}

bool yk_tokenizer_is_special(const yk_tokenizer *tok, int32_t id)
{
    return id >= 0 && (uint32_t)id < tok->n && special_type(tok->tokens[id].type);
}

/* ---- special tokens in a text --------------------------------------------------------------------------------------- */

typedef struct special_hit {
    uint32_t pos, len; /* len with white space that belongs to it */
    int32_t id;
} special_hit;

typedef struct hit_list {
    special_hit *hits;
    size_t n, cap;
} hit_list;

static yk_status add_hit(hit_list *list, special_hit hit, yk_error *err)
{
    if (list->n == list->cap) {
        const size_t cap = list->cap ? list->cap * 2 : 64;
        special_hit *p = yk_realloc(YK_MEM_RUNTIME, list->hits, cap, sizeof *p);
        if (!p)
            return yk_fail_memory(err, cap * sizeof *p, "special tokens of a text");
        list->hits = p;
        list->cap = cap;
    }
    list->hits[list->n++] = hit;
    return YK_OK;
}

/* First special in [lo, hi) whose byte at `depth` is at least b; all of them share the bytes before it and are longer than
 * depth. */
static uint32_t lower_bound(const yk_tokenizer *tok, uint32_t lo, uint32_t hi, uint32_t depth, uint32_t b)
{
    while (lo < hi) {
        const uint32_t mid = lo + (hi - lo) / 2;
        if ((uint8_t)yk_tok_text(tok, tok->specials[mid])[depth] < b)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* All specials that start at `pos`: narrow the range of the sorted list byte by byte. */
static yk_status hits_at(const yk_tokenizer *tok, const char *text, size_t n, size_t pos, bool parse, hit_list *list,
                         yk_error *err)
{
    uint32_t lo = tok->special_first[(uint8_t)text[pos]], hi = tok->special_first[(uint8_t)text[pos] + 1];
    for (uint32_t depth = 1; lo < hi; depth++) {
        /* The ones that end here come first; of equal texts the lowest id counts. */
        for (bool first = true; lo < hi && tok->tokens[tok->specials[lo]].len == depth; lo++, first = false) {
            const int32_t id = tok->specials[lo];
            if (first && (parse || tok->tokens[id].type == YK_TT_USER))
                YK_TRY(add_hit(list, (special_hit){(uint32_t)pos, depth, id}, err));
        }
        if (pos + depth >= n)
            break;
        const uint32_t b = (uint8_t)text[pos + depth];
        lo = lower_bound(tok, lo, hi, depth, b);
        hi = lower_bound(tok, lo, hi, depth, b + 1);
    }
    return YK_OK;
}

static int longest_first(const void *a, const void *b)
{
    const special_hit *x = a, *y = b;
    if (x->len != y->len)
        return x->len > y->len ? -1 : 1;
    if (x->id != y->id)
        return x->id < y->id ? -1 : 1;
    return x->pos < y->pos ? -1 : x->pos > y->pos;
}

static int by_position(const void *a, const void *b)
{
    const special_hit *x = a, *y = b;
    return x->pos < y->pos ? -1 : x->pos > y->pos;
}

/* Special tokens of the text in order of position. Longer ones win over shorter ones wherever they overlap, as if each token
 * were searched for in turn, longest first. */
static yk_status find_specials(const yk_tokenizer *tok, const char *text, size_t n, bool parse, hit_list *list, yk_error *err)
{
    for (size_t pos = 0; pos < n && tok->n_specials; pos++)
        if (tok->special_first[(uint8_t)text[pos]] != tok->special_first[(uint8_t)text[pos] + 1])
            YK_TRY(hits_at(tok, text, n, pos, parse, list, err));
    if (list->n == 0)
        return YK_OK;
    qsort(list->hits, list->n, sizeof *list->hits, longest_first);
    uint8_t *taken = yk_alloc(YK_MEM_RUNTIME, n, 1);
    if (!taken)
        return yk_fail_memory(err, n, "special tokens of a text");
    size_t kept = 0;
    for (size_t i = 0; i < list->n; i++) {
        special_hit h = list->hits[i];
        /* What is taken is at least as long, so an overlap covers one of the ends. */
        if (taken[h.pos] || taken[h.pos + h.len - 1])
            continue;
        if (tok->tokens[h.id].rstrip)
            while (h.pos + h.len < n && !taken[h.pos + h.len] && isspace((uint8_t)text[h.pos + h.len]))
                h.len++;
        memset(taken + h.pos, 1, h.len);
        list->hits[kept++] = h;
    }
    yk_free(taken);
    list->n = kept;
    qsort(list->hits, kept, sizeof *list->hits, by_position);
    return YK_OK;
}

/* ---- encoding ------------------------------------------------------------------------------------------------------- */

static yk_status encode_plain(const yk_tokenizer *tok, const char *text, size_t n, bool first, yk_tok_sink *sink, yk_error *err)
{
    if (n == 0)
        return YK_OK;
    if (tok->kind == YK_TOK_SPM)
        return yk_tok_spm_encode(tok, text, n, first && tok->space_prefix, sink, err);
    return yk_tok_bpe_encode(tok, text, n, sink, err);
}

yk_status yk_tokenizer_encode(const yk_tokenizer *tok, const char *text, size_t n_bytes, uint32_t flags, int32_t *ids,
                              size_t capacity, size_t *n_ids, yk_error *err)
{
    if (n_ids)
        *n_ids = 0;
    YK_FAIL_IF(flags & ~(uint32_t)(YK_TOK_SPECIAL | YK_TOK_PARSE_SPECIAL), err, YK_ERR_USAGE, "tokenise: unknown flags 0x%x",
               flags);
    YK_FAIL_IF((!text && n_bytes) || (!ids && capacity), err, YK_ERR_USAGE, "tokenise: NULL text or ids");
    YK_FAIL_IF(n_bytes > YK_TOK_MAX_TEXT, err, YK_ERR_USAGE, "tokenise: %zu bytes of text; at most %u at once", n_bytes,
               YK_TOK_MAX_TEXT);
    yk_tok_sink sink = {ids, capacity, 0};
    hit_list list = {0};
    const bool add = flags & YK_TOK_SPECIAL;
    if (add && tok->special.add_bos)
        yk_tok_push(&sink, tok->special.bos);
    yk_status st = find_specials(tok, text, n_bytes, flags & YK_TOK_PARSE_SPECIAL, &list, err);
    size_t from = 0;
    for (size_t i = 0; i < list.n && st == YK_OK; i++) {
        const special_hit *h = &list.hits[i];
        st = encode_plain(tok, text + from, h->pos - from, true, &sink, err);
        yk_tok_push(&sink, h->id);
        from = h->pos + h->len;
    }
    if (st == YK_OK && from < n_bytes)
        st = encode_plain(tok, text + from, n_bytes - from, true, &sink, err);
    yk_free(list.hits);
    if (st != YK_OK)
        return st;
    if (add && tok->special.add_eos)
        yk_tok_push(&sink, tok->special.eos);
    if (n_ids)
        *n_ids = sink.n;
    return YK_OK;
}

/* ---- decoding ------------------------------------------------------------------------------------------------------- */

const char *yk_tokenizer_piece(const yk_tokenizer *tok, int32_t id, bool special, size_t *n_bytes)
{
    *n_bytes = 0;
    if (id < 0 || (uint32_t)id >= tok->n)
        return "";
    const yk_tok_entry *e = &tok->tokens[id];
    if (special || (e->type != YK_TT_CONTROL && e->type != YK_TT_UNKNOWN))
        *n_bytes = e->len;
    return tok->blob + e->off;
}

yk_status yk_tokenizer_text(const yk_tokenizer *tok, int32_t id, bool special, char *buf, size_t capacity, size_t *n_bytes)
{
    if (n_bytes)
        *n_bytes = 0;
    if (capacity)
        buf[0] = '\0';
    if (id < 0 || (uint32_t)id >= tok->n)
        return YK_ERR_USAGE;
    size_t n;
    const char *p = yk_tokenizer_piece(tok, id, special, &n);
    yk_text_out(p, n, buf, capacity, n_bytes);
    return YK_OK;
}
