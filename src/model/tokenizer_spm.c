/* SentencePiece-style BPE: start from characters, join the neighbours whose union is the token with the highest score, until no
 * union is a token; characters without a token become byte tokens. (Kudo and Richardson 2018; the same order as llama.cpp and
 * sentencepiece.)
 *
 * Inside the tables U+2581 of the vocabulary is a plain space, so text needs no escaping. */
#include "src/model/tokenizer_internal.h"

#include <math.h>

static const char META_SPACE[] = "\xe2\x96\x81";
enum { META_BYTES = 3 };

/* "<0x41>" -> 0x41; -1: something else. */
static int parse_byte(yk_str s)
{
    if (s.n != 6 || memcmp(s.p, "<0x", 3) != 0 || s.p[5] != '>')
        return -1;
    int v = 0;
    for (int i = 3; i < 5; i++) {
        const char c = s.p[i];
        const int d = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
        if (d < 0)
            return -1;
        v = v * 16 + d;
    }
    return v;
}

/* Copy a piece with U+2581 turned into spaces; the new length. */
static uint32_t unescape(char *out, yk_str s)
{
    uint32_t n = 0;
    for (uint64_t i = 0; i < s.n;) {
        if (s.n - i >= META_BYTES && memcmp(s.p + i, META_SPACE, META_BYTES) == 0) {
            out[n++] = ' ';
            i += META_BYTES;
        } else {
            out[n++] = s.p[i++];
        }
    }
    return n;
}

static bool plain(uint8_t type)
{
    return type == YK_TT_NORMAL || type == YK_TT_UNUSED;
}

/* Scores as integers whose ascending order is the order of merging: highest score first. */
static uint32_t score_order(float score)
{
    uint32_t u;
    score += 0.0f; /* -0 becomes +0 */
    memcpy(&u, &score, sizeof u);
    u ^= u >> 31 ? UINT32_MAX : 0x80000000u;
    return ~u;
}

static yk_status read_scores(yk_tokenizer *tok, yk_error *err)
{
    static const char key[] = "tokenizer.ggml.scores";
    const yk_gguf_kv *kv = yk_gguf_find(tok->gguf, key);
    YK_FAIL_IF(!kv, err, YK_ERR_INPUT, "%s: missing; a llama tokenizer needs one score for each token", key);
    YK_FAIL_IF(kv->type != YK_GGUF_ARR || kv->elem_type != YK_GGUF_F32, err, YK_ERR_INPUT, "%s: is %s, must be [f32]", key,
               yk_gguf_type_name(kv));
    YK_FAIL_IF(kv->n != tok->n, err, YK_ERR_INPUT, "%s: %llu scores for %u tokens", key, (unsigned long long)kv->n, tok->n);
    tok->prio = yk_alloc(YK_MEM_RUNTIME, tok->n, sizeof *tok->prio);
    if (!tok->prio)
        return yk_fail_memory(err, (uint64_t)tok->n * sizeof *tok->prio, "token scores");
    for (uint32_t i = 0; i < tok->n; i++) {
        const float score = yk_gguf_arr_f32(kv, i);
        YK_FAIL_IF(isnan(score), err, YK_ERR_INPUT, "%s: the score of token %u is not a number", key, i);
        tok->prio[i] = score_order(score);
    }
    return YK_OK;
}

yk_status yk_tok_spm_open(yk_tokenizer *tok, const yk_gguf_kv *tokens, yk_error *err)
{
    YK_TRY(read_scores(tok, err));
    uint32_t used = 0;
    for (uint32_t i = 0; i < tok->n; i++) {
        yk_tok_entry *e = &tok->tokens[i];
        const yk_str s = yk_gguf_arr_str(tokens, i);
        char *out = tok->blob + used;
        e->off = used;
        const int byte = parse_byte(s);
        if (e->type == YK_TT_BYTE && byte < 0)
            e->type = YK_TT_NORMAL;
        if (e->type == YK_TT_BYTE) {
            out[0] = (char)byte;
            e->len = 1;
            if (tok->byte_id[byte] < 0)
                tok->byte_id[byte] = (int32_t)i;
        } else if (plain(e->type)) {
            e->len = unescape(out, s);
            YK_TRY(yk_tok_enter(tok, (int32_t)i, out, e->len, err));
            for (uint32_t k = 1; k < e->len; k++)
                tok->space_inside |= out[k] == ' ' && out[k - 1] != ' ';
        } else {
            e->len = (uint32_t)s.n;
            if (s.n)
                memcpy(out, s.p, s.n);
        }
        used += e->len;
    }
    for (int b = 0; b < 256; b++) {
        const char c = (char)b;
        if (tok->byte_id[b] < 0)
            tok->byte_id[b] = yk_tok_lookup(tok, &c, 1);
    }
    return YK_OK;
}

static uint32_t spm_pair(const yk_tokenizer *tok, const char *text, const yk_tok_sym *left, const yk_tok_sym *right,
                         int32_t *id)
{
    *id = yk_tok_lookup(tok, text + left->off, (size_t)left->len + right->len);
    return *id < 0 ? YK_TOK_NO_PAIR : tok->prio[*id];
}

/* One chunk: nothing outside of it can merge with anything inside. */
static yk_status encode_chunk(const yk_tokenizer *tok, yk_tok_work *work, const char *text, size_t n, yk_tok_sink *sink,
                              yk_error *err)
{
    YK_TRY(yk_tok_work_reserve(work, n, err));
    for (size_t off = 0; off < n; work->n++) {
        const uint32_t valid = yk_utf8_len(text + off, n - off), len = valid ? valid : 1;
        work->syms[work->n] = (yk_tok_sym){.off = (uint32_t)off, .len = len, .id = yk_tok_lookup(tok, text + off, len)};
        off += len;
    }
    yk_tok_merge_all(work, tok, text, spm_pair);
    for (int32_t i = 0; i >= 0; i = work->syms[i].next) {
        const yk_tok_sym *s = &work->syms[i];
        if (s->id >= 0)
            yk_tok_push(sink, s->id);
        else
            for (uint32_t k = 0; k < s->len; k++)
                yk_tok_push_byte(tok, sink, (uint8_t)text[s->off + k]);
    }
    return YK_OK;
}

yk_status yk_tok_spm_encode(const yk_tokenizer *tok, const char *text, size_t n, bool prefix, yk_tok_sink *sink, yk_error *err)
{
    char *copy = NULL;
    if (prefix) {
        copy = yk_alloc(YK_MEM_RUNTIME, n + 1, 1);
        if (!copy)
            return yk_fail_memory(err, n + 1, "text to tokenise");
        copy[0] = ' ';
        memcpy(copy + 1, text, n);
        text = copy;
        n++;
    }
    yk_tok_work work = {0};
    yk_status st = YK_OK;
    for (size_t from = 0; from < n && st == YK_OK;) {
        /* Words merge on their own unless some token has a space behind another character. */
        size_t to = tok->space_inside ? n : from + 1;
        while (to < n && !(text[to] == ' ' && text[to - 1] != ' '))
            to++;
        st = encode_chunk(tok, &work, text + from, to - from, sink, err);
        from = to;
    }
    yk_tok_work_free(&work);
    yk_free(copy);
    return st;
}
