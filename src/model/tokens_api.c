/* Section 3 of yoke.h: tokens of a model, and the streaming detokeniser. */
#include <string.h>

#include "src/model/model.h"

yk_status yk_tokenize(const yk_model *model, const char *text, size_t n_bytes, uint32_t flags, int32_t *ids, size_t capacity,
                      size_t *n_ids, yk_error *err)
{
    return yk_tokenizer_encode(model->tok, text, n_bytes, flags, ids, capacity, n_ids, err);
}

yk_status yk_token_text(const yk_model *model, int32_t token, bool special, char *buf, size_t capacity, size_t *n_bytes)
{
    return yk_tokenizer_text(model->tok, token, special, buf, capacity, n_bytes);
}

bool yk_token_is_end(const yk_model *model, int32_t token)
{
    return yk_tokenizer_is_end(model->tok, token);
}

struct yk_detok {
    const yk_tokenizer *tok;
    char *buf; /* bytes given out by the last call, then the held back ones */
    size_t given, held;
    bool skip_space; /* the next bytes begin a text: one space is the encoder's */
};

enum { MAX_HELD = 3 }; /* an unfinished UTF-8 character */

yk_status yk_detok_open(yk_detok **out, const yk_model *model, bool at_start, yk_error *err)
{
    *out = NULL;
    yk_detok *d = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *d);
    const size_t bytes = yk_tokenizer_max_piece(model->tok) + MAX_HELD;
    char *buf = yk_alloc(YK_MEM_RUNTIME, bytes, 1);
    if (!d || !buf) {
        yk_free(d);
        yk_free(buf);
        return yk_fail_memory(err, sizeof *d + bytes, "a detokeniser");
    }
    *d = (yk_detok){.tok = model->tok, .buf = buf, .skip_space = at_start && yk_tokenizer_drops_space(model->tok)};
    *out = d;
    return YK_OK;
}

void yk_detok_close(yk_detok **detok)
{
    yk_detok *d = *detok;
    if (!d)
        return;
    yk_free(d->buf);
    yk_free(d);
    *detok = NULL;
}

/* Bytes at the end of p that may yet become one character: at most MAX_HELD. */
static size_t unfinished(const char *text, size_t n)
{
    const uint8_t *p = (const uint8_t *)text;
    for (size_t back = 1; back <= MAX_HELD && back <= n; back++) {
        const uint8_t c = p[n - back];
        if ((c & 0xc0) == 0x80)
            continue;
        const size_t want = c >= 0xc2 && c <= 0xdf ? 2 : c >= 0xe0 && c <= 0xef ? 3 : c >= 0xf0 && c <= 0xf4 ? 4 : 0;
        if (back >= want)
            return 0;
        if (back > 1) {
            /* no overlong forms, surrogates or values past U+10FFFF */
            const uint8_t d = p[n - back + 1], lo = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
            const uint8_t hi = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
            if (d < lo || d > hi)
                return 0;
        }
        return back;
    }
    return 0;
}

yk_status yk_detok_push(yk_detok *detok, int32_t token, const char **text, size_t *n_bytes)
{
    yk_detok *d = detok;
    memmove(d->buf, d->buf + d->given, d->held);
    d->given = 0;
    *text = d->buf;
    *n_bytes = 0;
    if (token < 0 || (uint32_t)token >= yk_tokenizer_size(d->tok))
        return YK_ERR_USAGE;
    size_t n;
    const char *p = yk_tokenizer_piece(d->tok, token, false, &n);
    if (yk_tokenizer_is_special(d->tok, token)) {
        d->skip_space = yk_tokenizer_drops_space(d->tok);
    } else if (n) {
        const bool skip = d->skip_space && p[0] == ' ';
        p += skip;
        n -= skip;
        d->skip_space = false;
    }
    if (n)
        memcpy(d->buf + d->held, p, n);
    const size_t total = d->held + n;
    d->held = unfinished(d->buf, total);
    d->given = total - d->held;
    *n_bytes = d->given;
    return YK_OK;
}

void yk_detok_flush(yk_detok *detok, const char **text, size_t *n_bytes)
{
    yk_detok *d = detok;
    *text = d->buf + d->given;
    *n_bytes = d->held;
    d->given += d->held;
    d->held = 0;
    d->skip_space = yk_tokenizer_drops_space(d->tok);
}
