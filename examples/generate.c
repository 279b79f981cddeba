/* generate.c - the smallest complete program: generate MODEL.gguf "prompt" [max tokens]. Text to stdout, the reason of a failure to stderr. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yoke/yoke.h>

enum { MAX_PROMPT = 2048 };

/* Everything opened is closed by main, whatever happens here. */
static yk_status generate(const yk_model *model, yk_engine *engine, yk_seq *seq, yk_sampler *sampler, yk_detok *detok,
                          const char *prompt, int n, yk_error *err)
{
    int32_t ids[MAX_PROMPT];
    size_t n_ids = 0;
    yk_status st = yk_tokenize(model, prompt, strlen(prompt), YK_TOK_SPECIAL, ids, MAX_PROMPT, &n_ids, err);
    yk_batch_entry entry = {seq, ids, (uint32_t)n_ids, YK_LOGITS_LAST};
    const char *text;
    size_t n_bytes;
    if (st == YK_OK && n_ids > MAX_PROMPT)
        n = snprintf(err->text, sizeof err->text, "the prompt is longer than %d tokens", MAX_PROMPT), st = YK_ERR_USAGE;
    for (int i = 0; i < n && st == YK_OK; i++) {
        int32_t token = 0;
        if ((st = yk_decode(engine, &entry, 1, err)) || (st = yk_sampler_sample(sampler, yk_logits(engine, 0, 0), &token, err)))
            return st;
        yk_sampler_accept(sampler, token);
        if (yk_token_is_end(model, token))
            break;
        st = yk_detok_push(detok, token, &text, &n_bytes);
        if (st == YK_OK)
            fwrite(text, 1, n_bytes, stdout), fflush(stdout);
        ids[0] = token; /* from now on the batch is the one new token */
        entry.n_tokens = 1;
    }
    yk_detok_flush(detok, &text, &n_bytes);
    fwrite(text, 1, n_bytes, stdout);
    return st;
}

int main(int argc, char **argv)
{
    yk_error err = {YK_ERR_USAGE, "usage: generate MODEL.gguf PROMPT [MAX_TOKENS]"};
    yk_model *model = NULL;
    yk_engine *engine = NULL;
    yk_seq *seq = NULL;
    yk_sampler *sampler = NULL;
    yk_detok *detok = NULL;
    yk_status st = argc < 3 ? YK_ERR_USAGE : yk_model_open(&model, argv[1], NULL, &err);
    if (st == YK_OK && (st = yk_engine_open(&engine, model, NULL, &err)) == YK_OK &&
        (st = yk_seq_open(&seq, engine, &err)) == YK_OK && (st = yk_sampler_open(&sampler, model, NULL, &err)) == YK_OK &&
        (st = yk_detok_open(&detok, model, false, &err)) == YK_OK)
        st = generate(model, engine, seq, sampler, detok, argv[2], argc > 3 ? atoi(argv[3]) : 200, &err);
    if (st != YK_OK)
        fprintf(stderr, "generate: %s\n", err.text);
    yk_detok_close(&detok);
    yk_sampler_close(&sampler);
    yk_seq_close(&seq);
    yk_engine_close(&engine);
    yk_model_close(&model);
    return st == YK_OK ? 0 : 1;
}
