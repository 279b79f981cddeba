#include "tests/fuzz/tok_fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/model/model.h"

#define MUST(cond)                                                                                                             \
    do {                                                                                                                       \
        if (!(cond)) {                                                                                                         \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                                                         \
            abort();                                                                                                           \
        }                                                                                                                      \
    } while (0)

static void decode(const yk_tokenizer *tok, const int32_t *ids, size_t n_ids, const uint8_t *want, size_t n_want, bool lossless)
{
    yk_model model = {.tok = (yk_tokenizer *)(uintptr_t)tok};
    yk_detok *d = NULL;
    const char *p;
    size_t k, at = 0;
    MUST(yk_detok_open(&d, &model, true, NULL) == YK_OK);
    for (size_t i = 0; i <= n_ids; i++) {
        if (i < n_ids)
            MUST(yk_detok_push(d, ids[i], &p, &k) == YK_OK);
        else
            yk_detok_flush(d, &p, &k);
        for (size_t j = 0; j < k && lossless; j++)
            MUST(at + j < n_want && (uint8_t)p[j] == want[at + j]);
        at += k;
    }
    MUST(!lossless || at == n_want);
    yk_detok_close(&d);
}

void tok_fuzz_text(const yk_tokenizer *tok, const uint8_t *text, size_t n, bool lossless)
{
    for (uint32_t flags = 0; flags < 4; flags++) {
        size_t count = 0, again = 0;
        MUST(yk_tokenizer_encode(tok, (const char *)text, n, flags, NULL, 0, &count, NULL) == YK_OK);
        MUST(count <= 2 * n + 2);
        int32_t *ids = malloc((count + !count) * sizeof *ids);
        MUST(ids != NULL);
        MUST(yk_tokenizer_encode(tok, (const char *)text, n, flags, ids, count, &again, NULL) == YK_OK && again == count);
        for (size_t i = 0; i < count; i++) {
            char buf[16];
            MUST(ids[i] >= 0 && (uint32_t)ids[i] < yk_tokenizer_size(tok));
            MUST(yk_tokenizer_text(tok, ids[i], true, buf, sizeof buf, NULL) == YK_OK);
        }
        decode(tok, ids, count, text, n, lossless && flags == 0);
        free(ids);
    }
    /* the text's bytes as ids */
    int32_t *ids = malloc((n + !n) * sizeof *ids);
    MUST(ids != NULL);
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)((text[i] + i * 7) % yk_tokenizer_size(tok));
    decode(tok, ids, n, NULL, 0, false);
    free(ids);
}

/* The part of *data up to 0xff (or the end); *data moves behind it. */
static yk_str field(const uint8_t **data, size_t *n)
{
    const uint8_t *end = memchr(*data, 0xff, *n);
    const yk_str f = {(const char *)*data, end ? (uint64_t)(end - *data) : *n};
    const size_t used = f.n + (end != NULL);
    *data += used;
    *n -= used;
    return f;
}

static void lines(tv_file *f, const char *key, yk_str s, size_t *n_lines)
{
    yk_str list[512];
    size_t n = 0;
    for (const char *p = s.p, *end = s.p + s.n; p < end && n < 512; n++) {
        const char *eol = memchr(p, '\n', (size_t)(end - p));
        list[n] = (yk_str){p, (uint64_t)((eol ? eol : end) - p)};
        p = eol ? eol + 1 : end;
    }
    tv_strs_n(f, key, list, n);
    *n_lines = n;
}

void tok_fuzz_vocab(const char *model, const char *pre, const uint8_t *data, size_t n)
{
    const yk_str numbers = field(&data, &n), tokens = field(&data, &n), merges = field(&data, &n);
    tv_file f;
    size_t n_tokens, n_merges;
    tv_empty(&f, model);
    if (pre)
        gb_str(&f.g, "tokenizer.ggml.pre", pre);
    lines(&f, "tokenizer.ggml.tokens", tokens, &n_tokens);
    float scores[512];
    int32_t types[512];
    for (size_t i = 0; i < n_tokens; i++) {
        const uint8_t v = numbers.n ? (uint8_t)numbers.p[i % numbers.n] : 0;
        scores[i] = v == 254 ? __builtin_inff() : v == 253 ? -__builtin_inff() : -(float)(v >> 3) / 4;
        types[i] = v & 7;
    }
    gb_arr(&f.g, "tokenizer.ggml.scores", YK_GGUF_F32, scores, n_tokens, n_tokens * sizeof *scores);
    if (numbers.n % 4)
        gb_arr(&f.g, "tokenizer.ggml.token_type", YK_GGUF_I32, types, n_tokens, n_tokens * sizeof *types);
    if (numbers.n > 3) {
        gb_u32(&f.g, "tokenizer.ggml.bos_token_id", (uint8_t)numbers.p[0] % 64u);
        gb_u32(&f.g, "tokenizer.ggml.unknown_token_id", (uint8_t)numbers.p[1] % 64u);
        gb_bool(&f.g, "tokenizer.ggml.add_eos_token", numbers.p[2] & 1);
        gb_bool(&f.g, "tokenizer.ggml.add_space_prefix", numbers.p[2] & 2);
        if (numbers.p[3] & 1)
            gb_str(&f.g, "general.name", "a Phi-3");
    }
    lines(&f, "tokenizer.ggml.merges", merges, &n_merges);
    tv_image(&f);
    yk_gguf gguf;
    yk_tokenizer *tok = NULL;
    MUST(yk_gguf_open_memory(&gguf, f.image.p, f.image.n, true, NULL) == YK_OK);
    const yk_status st = yk_tokenizer_open(&tok, &gguf, NULL);
    MUST(st == YK_OK || (st == YK_ERR_INPUT && !tok));
    if (tok)
        tok_fuzz_text(tok, data, n, false);
    tv_close(&f, &gguf, &tok);
    MUST(!tok);
}
