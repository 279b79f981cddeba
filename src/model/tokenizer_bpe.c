/* Byte-level BPE (GPT-2): the text is cut into words by patterns, a word starts as bytes, and the pair of neighbours that comes
 * first in the list of merges is joined until none is in the list.
 *
 * Vocabularies spell bytes as printable characters; the tables here hold the bytes themselves. */
#include "src/model/tokenizer_internal.h"

/* The character that spells a byte, back to the byte: printable Latin-1 stands for itself, the other 68 bytes are U+0100 and up
 * in order. -1: no such character. */
static int char_to_byte(uint32_t c)
{
    if ((c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff))
        return (int)c;
    if (c < 0x100 || c > 0x143)
        return -1;
    const int k = (int)c - 0x100;
    return k < 33 ? k : k < 67 ? 0x7f + k - 33 : 0xad;
}

/* Decode a spelled piece into out (at most s.n bytes). Characters outside the alphabet are copied as they are and *exact is
 * false. */
static uint32_t decode(char *out, yk_str s, bool *exact)
{
    uint32_t n = 0;
    *exact = true;
    for (uint64_t i = 0; i < s.n;) {
        const uint8_t *p = (const uint8_t *)s.p + i;
        const uint32_t len = yk_utf8_len(s.p + i, s.n - i);
        const int byte = len == 1 ? char_to_byte(p[0]) : len == 2 ? char_to_byte((p[0] & 0x1fu) << 6 | (p[1] & 0x3fu)) : -1;
        if (byte >= 0) {
            out[n++] = (char)byte;
            i += len;
            continue;
        }
        *exact = false;
        for (uint32_t k = 0; k < (len ? len : 1); k++)
            out[n++] = s.p[i++];
    }
    return n;
}

static yk_status read_pieces(yk_tokenizer *tok, const yk_gguf_kv *tokens, yk_error *err)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < tok->n; i++) {
        yk_tok_entry *e = &tok->tokens[i];
        const yk_str s = yk_gguf_arr_str(tokens, i);
        char *out = tok->blob + used;
        bool exact;
        e->off = used;
        e->len = decode(out, s, &exact);
        if (e->type != YK_TT_NORMAL && e->type != YK_TT_UNUSED) {
            /* Special tokens are spelled as they are. Merges may name them all the same where both spellings agree. */
            exact = exact && e->len == s.n && memcmp(out, s.p, s.n) == 0;
            e->len = (uint32_t)s.n;
            if (s.n)
                memcpy(out, s.p, s.n);
        }
        if (exact)
            YK_TRY(yk_tok_enter(tok, (int32_t)i, out, e->len, err));
        used += e->len;
    }
    for (int b = 0; b < 256; b++) {
        const char c = (char)b;
        tok->byte_id[b] = yk_tok_lookup(tok, &c, 1);
    }
    return YK_OK;
}

static uint32_t mix(uint64_t k)
{
    k *= 0x9e3779b97f4a7c15u;
    k ^= k >> 32;
    k *= 0xff51afd7ed558ccdu;
    return (uint32_t)(k >> 32);
}

/* Slot of a pair, or the free one where it belongs; NULL after too many probes. */
static yk_tok_merge *find_merge(const yk_tokenizer *tok, int32_t left, int32_t right)
{
    const uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    const uint32_t at = mix(key);
    for (uint32_t k = 0; k < YK_TOK_MAX_PROBES; k++) {
        yk_tok_merge *m = &tok->merges[(at + k) & tok->merge_mask];
        if (m->key == key || m->key == UINT64_MAX)
            return m;
    }
    return NULL;
}

/* "Ġt he": both halves and the whole must be tokens. buf holds as many bytes as the string. */
static yk_status read_merge(yk_tokenizer *tok, yk_str s, uint32_t rank, char *buf, yk_error *err)
{
    static const char key[] = "tokenizer.ggml.merges";
    const char *space = s.n > 1 ? memchr(s.p + 1, ' ', s.n - 1) : NULL;
    YK_FAIL_IF(!space || space == s.p + s.n - 1, err, YK_ERR_INPUT, "%s: merge %u ('%.*s') is no pair", key, rank,
               (int)(s.n < 100 ? s.n : 100), s.p);
    const uint64_t left_n = (uint64_t)(space - s.p);
    bool exact_l, exact_r;
    const uint32_t l = decode(buf, (yk_str){s.p, left_n}, &exact_l);
    const uint32_t r = decode(buf + l, (yk_str){space + 1, s.n - left_n - 1}, &exact_r);
    const int32_t left = exact_l ? yk_tok_lookup(tok, buf, l) : -1, right = exact_r ? yk_tok_lookup(tok, buf + l, r) : -1;
    const int32_t whole = exact_l && exact_r ? yk_tok_lookup(tok, buf, (size_t)l + r) : -1;
    YK_FAIL_IF(left < 0 || right < 0 || whole < 0, err, YK_ERR_INPUT, "%s: merge %u ('%.*s'): %s is no token", key, rank,
               (int)(s.n < 100 ? s.n : 100), s.p,
               left < 0    ? "the left part"
               : right < 0 ? "the right part"
                           : "the result");
    if (tok->tokens[whole].type == YK_TT_CONTROL || tok->tokens[whole].type == YK_TT_UNKNOWN)
        return YK_OK; /* plain text never becomes one of these */
    yk_tok_merge *m = find_merge(tok, left, right);
    YK_FAIL_IF(!m, err, YK_ERR_INPUT, "%s: merge %u is made to slow the reader down", key, rank);
    if (m->key == UINT64_MAX) /* of equal pairs the first counts */
        *m = (yk_tok_merge){(uint64_t)(uint32_t)left << 32 | (uint32_t)right, rank, whole};
    tok->tokens[whole].merged = true;
    return YK_OK;
}

static yk_status read_merges(yk_tokenizer *tok, yk_error *err)
{
    static const char key[] = "tokenizer.ggml.merges";
    const yk_gguf_kv *kv = yk_gguf_find(tok->gguf, key);
    YK_FAIL_IF(!kv, err, YK_ERR_INPUT, "%s: missing; a gpt2 tokenizer needs it", key);
    YK_FAIL_IF(kv->type != YK_GGUF_ARR || kv->elem_type != YK_GGUF_STR, err, YK_ERR_INPUT, "%s: is %s, must be [str]", key,
               yk_gguf_type_name(kv));
    YK_FAIL_IF(kv->n > INT32_MAX / 2, err, YK_ERR_INPUT, "%s: %llu merges are too many", key, (unsigned long long)kv->n);
    uint64_t longest = 1, slots = 16;
    for (uint64_t i = 0; i < kv->n; i++) {
        const uint64_t n = yk_gguf_arr_str(kv, i).n;
        longest = n > longest ? n : longest;
    }
    while (slots < kv->n * 2)
        slots *= 2;
    tok->merges = yk_alloc(YK_MEM_RUNTIME, slots, sizeof *tok->merges);
    char *buf = yk_alloc(YK_MEM_RUNTIME, longest, 1);
    if (!tok->merges || !buf) {
        yk_free(buf);
        return yk_fail_memory(err, slots * sizeof *tok->merges + longest, "tokenizer merges");
    }
    tok->merge_mask = (uint32_t)(slots - 1);
    for (uint64_t i = 0; i < slots; i++)
        tok->merges[i].key = UINT64_MAX;
    yk_status st = YK_OK;
    for (uint32_t i = 0; i < kv->n && st == YK_OK; i++)
        st = read_merge(tok, yk_gguf_arr_str(kv, i), i, buf, err);
    yk_free(buf);
    return st;
}

yk_status yk_tok_bpe_open(yk_tokenizer *tok, const yk_gguf_kv *tokens, yk_error *err)
{
    yk_str pre = {"default", 7};
    YK_TRY(yk_gguf_get_str(tok->gguf, "tokenizer.ggml.pre", false, &pre, err));
    YK_TRY(yk_pretok_open(&tok->pretok, pre.p, pre.n, err));
    tok->ignore_merges = yk_pretok_flags(tok->pretok) & YK_PRETOK_IGNORE_MERGES;
    tok->special.add_bos = yk_pretok_flags(tok->pretok) & YK_PRETOK_ADD_BOS;
    YK_TRY(read_pieces(tok, tokens, err));
    return read_merges(tok, err);
}

static uint32_t bpe_pair(const yk_tokenizer *tok, const char *text, const yk_tok_sym *left, const yk_tok_sym *right,
                         int32_t *id)
{
    (void)text;
    if (left->id < 0 || right->id < 0)
        return YK_TOK_NO_PAIR;
    const yk_tok_merge *m = find_merge(tok, left->id, right->id);
    if (!m || m->key == UINT64_MAX)
        return YK_TOK_NO_PAIR;
    *id = m->id;
    return m->rank;
}

typedef struct bpe_run {
    const yk_tokenizer *tok;
    yk_tok_work work;
    yk_tok_sink *sink;
} bpe_run;

static yk_status encode_word(void *user, const char *word, size_t n, yk_error *err)
{
    bpe_run *run = user;
    const yk_tokenizer *tok = run->tok;
    if (n == 1) {
        yk_tok_push_byte(tok, run->sink, (uint8_t)word[0]);
        return YK_OK;
    }
    if (tok->ignore_merges) {
        const int32_t id = yk_tok_lookup(tok, word, n);
        if (id >= 0 && tok->tokens[id].type == YK_TT_NORMAL) {
            yk_tok_push(run->sink, id);
            return YK_OK;
        }
    }
    yk_tok_work *w = &run->work;
    YK_TRY(yk_tok_work_reserve(w, n, err));
    for (size_t i = 0; i < n; i++)
        w->syms[i] = (yk_tok_sym){.off = (uint32_t)i, .len = 1, .id = tok->byte_id[(uint8_t)word[i]]};
    w->n = n;
    yk_tok_merge_all(w, tok, word, bpe_pair);
    for (int32_t i = 0; i >= 0; i = w->syms[i].next) {
        if (w->syms[i].id >= 0)
            yk_tok_push(run->sink, w->syms[i].id);
        else
            yk_tok_push_byte(tok, run->sink, (uint8_t)word[w->syms[i].off]);
    }
    return YK_OK;
}

yk_status yk_tok_bpe_encode(const yk_tokenizer *tok, const char *text, size_t n, yk_tok_sink *sink, yk_error *err)
{
    bpe_run run = {.tok = tok, .sink = sink};
    yk_status st = YK_OK;
    for (size_t from = 0; from < n && st == YK_OK;) {
        /* The patterns see valid UTF-8 only; a run of other bytes is a word of its own. */
        size_t to = from;
        uint32_t len;
        while (to < n && (len = yk_utf8_len(text + to, n - to)) != 0)
            to += len;
        if (to > from)
            st = yk_pretok_split(tok->pretok, text + from, to - from, encode_word, &run, err);
        from = to;
        while (to < n && yk_utf8_len(text + to, n - to) == 0)
            to++;
        if (to > from && st == YK_OK)
            st = encode_word(&run, text + from, to - from, err);
        from = to;
    }
    yk_tok_work_free(&run.work);
    return st;
}
