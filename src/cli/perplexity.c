/* perplexity.c - yoke perplexity: how well a model predicts a text, by llama-perplexity's rule.
 *
 * The ids of the whole text (with BOS where the model adds it) are cut into whole chunks of n_ctx; the rest is dropped. Each
 * chunk starts a new sequence and its first id is replaced by BOS. Position p predicts id p + 1; positions n_ctx/2 .. n_ctx-2
 * are scored. Perplexity is exp of the mean negative log-likelihood (natural logarithm, double precision). */
#include "cli.h"
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct score {
    double sum, sum_sq; /* of the negative log-likelihoods */
    uint64_t n;
} score;

/* Negative log-likelihood of `id`; NaN when a logit is. */
static double surprise(const float *logits, uint32_t n_vocab, int32_t id)
{
    double max = logits[0], sum = 0;
    for (uint32_t i = 1; i < n_vocab; i++)
        if (logits[i] > max)
            max = logits[i];
    for (uint32_t i = 0; i < n_vocab; i++)
        sum += exp((double)logits[i] - max);
    return log(sum) + max - (double)logits[id];
}

/* Rows of logits asked for at a time: as many as half a chunk needs, but no more than 64 MiB of them. */
static uint32_t rows_at_once(uint32_t n_ctx, uint32_t n_vocab)
{
    uint64_t rows = (64ull << 20) / (4ull * n_vocab), need = n_ctx - 1 - n_ctx / 2;
    rows = rows < need ? rows : need;
    return rows ? (uint32_t)rows : 1;
}

static int score_chunk(yk_cli_session *s, const yk_cli_opts *opts, const int32_t *ids, uint32_t rows, score *total)
{
    uint32_t n_ctx = (uint32_t)opts->context, first = n_ctx / 2;
    yk_error err = {0};
    if (yk_seq_truncate(s->seq, 0, &err))
        return yk_cli_fail(&err);
    int code = yk_cli_feed(s, opts, ids, first);
    for (uint32_t done = first; !code && done < n_ctx - 1;) {
        uint32_t n = n_ctx - 1 - done < rows ? n_ctx - 1 - done : rows;
        yk_batch_entry entry = {s->seq, ids + done, n, YK_LOGITS_ALL};
        if (yk_cli_interrupted())
            return 128 + yk_cli_interrupted();
        if (yk_decode(s->engine, &entry, 1, &err))
            return yk_cli_fail(&err);
        for (uint32_t i = 0; i < n; i++) {
            const float *logits = yk_logits(s->engine, 0, i);
            if (!logits)
                return yk_cli_error(YK_EXIT_RUNTIME, "the engine gave no logits");
            double nll = surprise(logits, s->info.n_vocab, ids[done + i + 1]);
            if (!isfinite(nll))
                return yk_cli_error(YK_EXIT_RUNTIME, "the logits at token %u of a chunk are not finite", done + i);
            total->sum += nll;
            total->sum_sq += nll * nll;
            total->n++;
        }
        done += n;
    }
    return code;
}

static int print_result(const yk_cli_session *s, const yk_cli_opts *opts, const score *total, size_t n_ids, int64_t chunks)
{
    double mean = total->sum / (double)total->n, ppl = exp(mean);
    double variance = total->sum_sq / (double)total->n - mean * mean;
    double error = total->n > 1 && variance > 0 ? ppl * sqrt(variance / (double)(total->n - 1)) : 0;
    if (!isfinite(ppl))
        return yk_cli_error(YK_EXIT_RUNTIME, "the perplexity is not finite: mean negative log-likelihood %g", mean);
    if (!strcmp(opts->output, "json"))
        return yk_cli_json_print(json_pack("{s:f, s:I, s:I, s:I, s:I, s:f, s:o, s:s, s:s, s:i}", "ppl", ppl, "n_tokens",
                                           (json_int_t)n_ids, "chunks", (json_int_t)chunks, "n_ctx", (json_int_t)opts->context,
                                           "n_scored", (json_int_t)total->n, "ppl_stderr", error, "model_filename",
                                           yk_cli_json_text(s->path, strlen(s->path)), "device", s->stats.device, "isa",
                                           s->stats.isa, "n_threads", (int)s->stats.threads));
    fprintf(yk_cli_out, "perplexity %.4f +/- %.4f: %lld chunk%s of %lld tokens, %llu of %zu tokens scored\n", ppl, error,
            (long long)chunks, chunks == 1 ? "" : "s", (long long)opts->context, (unsigned long long)total->n, n_ids);
    return YK_EXIT_OK;
}

static int measure(yk_cli_session *s, const yk_cli_opts *opts, int32_t *ids, size_t n_ids)
{
    int64_t n_ctx = opts->context, chunks = (int64_t)n_ids / n_ctx;
    uint32_t rows = rows_at_once((uint32_t)n_ctx, s->info.n_vocab);
    score total = {0};
    if (chunks == 0)
        return yk_cli_error(YK_EXIT_USAGE,
                            "the text has %zu tokens, less than one chunk of %lld: give a longer text or a smaller -c", n_ids,
                            (long long)n_ctx);
    if (opts->chunks >= 0 && chunks > opts->chunks)
        chunks = opts->chunks;
    if (chunks == 0)
        return yk_cli_error(YK_EXIT_USAGE, "--chunks 0 leaves nothing to measure; give 1 or more, or -1 for all");
    int code = yk_cli_open_engine(s, opts, (uint32_t)n_ctx, (uint32_t)opts->threads, rows);
    for (int64_t c = 0; !code && c < chunks; c++) {
        int32_t *chunk = ids + c * n_ctx;
        if (s->info.add_bos && s->info.bos >= 0)
            chunk[0] = s->info.bos;
        code = score_chunk(s, opts, chunk, rows, &total);
        if (!code && !yk_cli_progress((void *)opts, "perplexity", (uint64_t)c + 1, (uint64_t)chunks))
            code = 128 + yk_cli_interrupted();
    }
    return code ? code : print_result(s, opts, &total, n_ids, chunks);
}

int yk_cli_perplexity(yk_cli_opts *opts)
{
    yk_cli_session s = {0};
    char *text = NULL;
    int32_t *ids = NULL;
    size_t n_bytes = 0, n_ids = 0;
    if (!opts->prompt_file)
        return yk_cli_error(YK_EXIT_USAGE, "no text given: -f FILE, - for stdin");
    int code = yk_cli_open_model(&s, opts, false);
    if (!code)
        code = yk_cli_read_file(opts->prompt_file, &text, &n_bytes);
    if (!code)
        code = yk_cli_tokens(s.model, text, n_bytes, YK_TOK_SPECIAL, &ids, &n_ids);
    if (!code)
        code = measure(&s, opts, ids, n_ids);
    free(ids);
    free(text);
    yk_cli_close(&s);
    return code;
}
