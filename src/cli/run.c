/* run.c - yoke run: generate text after a prompt. */
#include "cli.h"
#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The file of --logits. It is written under another name and appears when all steps are in it. A device or a pipe is written
 * directly (temporary is empty): a rename would destroy it. */
typedef struct logits_file {
    const char *path;
    char target[PATH_MAX], temporary[PATH_MAX + 16];
    FILE *file;
    uint32_t n_vocab;
} logits_file;

typedef struct run_state {
    yk_cli_session session;
    logits_file logits;
    bool mute; /* stdout's reader has gone, but --logits is still being written */
    bool context_full;
    uint64_t n_prompt, n_generated, n_decoded; /* the last generated token need not be decoded */
    double prompt_s, generate_s;
} run_state;

static int logits_failed(logits_file *l)
{
    return yk_cli_error(YK_EXIT_RUNTIME, "--logits %s: %s; nothing is kept", l->path, strerror(errno));
}

static int logits_open(logits_file *l, const char *path, uint32_t n_vocab)
{
    struct stat st;
    l->path = path;
    l->n_vocab = n_vocab;
    if (!lstat(path, &st)) {
        if (S_ISLNK(st.st_mode) && realpath(path, l->target))
            l->path = l->target; /* the link stays */
        bool link = S_ISLNK(st.st_mode) && l->path == path;
        if (stat(path, &st))
            return logits_failed(l);
        if (S_ISDIR(st.st_mode)) {
            errno = EISDIR;
            return logits_failed(l);
        }
        if (link || !S_ISREG(st.st_mode)) {
            l->file = fopen(path, "wb");
            return l->file ? YK_EXIT_OK : logits_failed(l);
        }
    }
    int n = snprintf(l->temporary, sizeof l->temporary, "%s.%d.tmp", l->path, (int)getpid());
    if (n < 0 || (size_t)n >= sizeof l->temporary) {
        errno = ENAMETOOLONG;
        return logits_failed(l);
    }
    unlink(l->temporary); /* left behind by a killed process that had the same number, as in containers */
    l->file = fopen(l->temporary, "wbx");
    return l->file ? YK_EXIT_OK : logits_failed(l);
}

static int logits_add(logits_file *l, const float *row)
{
    uint32_t buf[1024];
    for (uint32_t done = 0; done < l->n_vocab;) {
        uint32_t n = l->n_vocab - done < 1024 ? l->n_vocab - done : 1024;
        memcpy(buf, row + done, n * sizeof *buf);
        for (uint32_t i = 0; i < n; i++)
            buf[i] = htole32(buf[i]);
        if (fwrite(buf, sizeof *buf, n, l->file) != n)
            return logits_failed(l);
        done += n;
    }
    return YK_EXIT_OK;
}

/* Keep the file under its name when code is 0, else remove it. Returns the code to go on with. */
static int logits_close(logits_file *l, int code)
{
    if (!l->file)
        return code;
    bool failed = fclose(l->file) != 0;
    l->file = NULL;
    if (!code && (failed || (l->temporary[0] && rename(l->temporary, l->path))))
        code = logits_failed(l);
    if (code)
        unlink(l->temporary);
    return code;
}

/* Print a generated token. Returns false when the run ends here with *code. */
static bool show_token(run_state *r, const yk_cli_opts *opts, int32_t token, bool end, int *code)
{
    char id[16];
    const char *text = id;
    size_t n_bytes = 0;
    if (opts->print_ids) {
        n_bytes = (size_t)snprintf(id, sizeof id, r->n_generated ? " %d" : "%d", token);
    } else if (!end || opts->ignore_eos) {
        if (yk_detok_push(r->session.detok, token, &text, &n_bytes)) {
            *code = yk_cli_error(YK_EXIT_RUNTIME, "token %d cannot be turned into text", token);
            return false;
        }
    }
    if (r->mute || n_bytes == 0)
        return true;
    if (yk_cli_write(text, n_bytes, code) && yk_cli_flush(code))
        return true;
    r->mute = *code == YK_EXIT_OK && r->logits.file;
    return r->mute;
}

static int generate(run_state *r, const yk_cli_opts *opts)
{
    yk_cli_session *s = &r->session;
    yk_error err = {0};
    int code = YK_EXIT_OK;
    while (opts->n_predict < 0 || r->n_generated < (uint64_t)opts->n_predict) {
        const float *logits = yk_logits(s->engine, 0, 0);
        int32_t token;
        if (yk_cli_interrupted())
            return 128 + yk_cli_interrupted();
        if (!logits)
            return yk_cli_error(YK_EXIT_RUNTIME, "the engine gave no logits");
        if (r->logits.file && (code = logits_add(&r->logits, logits)))
            return code;
        if (yk_sampler_sample(s->sampler, logits, &token, &err))
            return yk_cli_fail(&err);
        yk_sampler_accept(s->sampler, token);
        bool end = yk_cli_is_end(s, token);
        if (!show_token(r, opts, token, end, &code))
            return code;
        r->n_generated++;
        if ((end && !opts->ignore_eos) || (opts->n_predict >= 0 && r->n_generated == (uint64_t)opts->n_predict))
            break;
        if (yk_seq_length(s->seq) >= s->stats.context) {
            r->context_full = true;
            break;
        }
        yk_batch_entry entry = {s->seq, &token, 1, YK_LOGITS_LAST};
        double start = yk_cli_seconds();
        if (yk_decode(s->engine, &entry, 1, &err))
            return yk_cli_fail(&err);
        r->generate_s += yk_cli_seconds() - start;
        r->n_decoded++;
        yk_cli_stats_live(s, opts);
    }
    return code;
}

/* Bytes of an unfinished character, and the newline that ends a line of ids or keeps a terminal tidy. */
static int finish_text(run_state *r, const yk_cli_opts *opts, bool story, int code)
{
    const char *text = "";
    size_t n_bytes = 0;
    int write_code = YK_EXIT_OK;
    if (r->mute)
        return code;
    if (r->session.detok)
        yk_detok_flush(r->session.detok, &text, &n_bytes);
    bool newline = opts->print_ids || story || (isatty(STDOUT_FILENO) && r->n_generated);
    if (!yk_cli_write(text, n_bytes, &write_code) || (newline && !yk_cli_write("\n", 1, &write_code)) ||
        !yk_cli_flush(&write_code))
        return code ? code : write_code;
    return code;
}

static void report(const run_state *r, const yk_cli_opts *opts)
{
    const yk_cli_session *s = &r->session;
    const char *slash = strrchr(s->path, '/');
    char speed[64] = "", prompt[64] = "", moved[96] = "";
    yk_engine_stats now;
    yk_engine_get_stats(s->engine, &now);
    if (now.swaps)
        snprintf(moved, sizeof moved, "; %llu experts changed places, %llu times back to the plan",
                 (unsigned long long)now.swaps, (unsigned long long)now.returns);
    if (r->prompt_s > 0)
        snprintf(prompt, sizeof prompt, " at %.1f tokens/s", (double)r->n_prompt / r->prompt_s);
    if (r->n_decoded && r->generate_s > 0)
        snprintf(speed, sizeof speed, " at %.1f tokens/s", (double)r->n_decoded / r->generate_s);
    yk_cli_note(opts, "%s on %s, %u thread%s, %s: prompt %llu tokens%s, generated %llu%s%s%s; %s", slash ? slash + 1 : s->path,
                s->stats.device, s->stats.threads, s->stats.threads == 1 ? "" : "s", s->stats.isa,
                (unsigned long long)r->n_prompt, prompt, (unsigned long long)r->n_generated, speed,
                r->context_full ? "; the context is full (-c N gives more)" : "", moved, s->stats.why);
}

/* Sequence, sampler and detokeniser for a prompt, and the prompt decoded. */
static int start(run_state *r, const yk_cli_opts *opts, const int32_t *ids, size_t n_ids)
{
    yk_cli_session *s = &r->session;
    yk_error err = {0};
    int code = yk_cli_open_engine(s, opts, (uint32_t)opts->context, (uint32_t)opts->threads, 0);
    if (code)
        return code;
    if (n_ids > s->stats.context)
        return yk_cli_error(YK_EXIT_USAGE, "the prompt has %zu tokens and the context %u: shorten it or raise -c", n_ids,
                            s->stats.context);
    if ((code = yk_cli_open_sampler(s, opts)))
        return code;
    if (opts->logits && (code = logits_open(&r->logits, opts->logits, s->info.n_vocab)))
        return code;
    /* Only a text without a beginning is at its start: then a SentencePiece vocabulary's leading space is dropped. */
    bool at_start = n_ids == 1 && ids[0] == s->info.bos;
    if (yk_detok_open(&s->detok, s->model, at_start, &err))
        return yk_cli_fail(&err);
    for (size_t i = 0; i < n_ids; i++)
        yk_sampler_accept(s->sampler, ids[i]);
    double begin = yk_cli_seconds();
    code = yk_cli_feed(s, opts, ids, n_ids);
    r->prompt_s = yk_cli_seconds() - begin;
    r->n_prompt = n_ids;
    return code;
}

int yk_cli_run(yk_cli_opts *opts)
{
    static const char story_prompt[] = "Once upon a time";
    run_state r = {0};
    int32_t *ids = NULL;
    size_t n_ids = 0;
    int code = yk_cli_one_prompt(opts);
    if (!code)
        code = yk_cli_open_model(&r.session, opts, false);
    /* Without a model and a prompt the shipped model tells a story, which is printed whole; with a model alone the text begins
     * at the beginning, as with llama.cpp. */
    bool story = r.session.shipped && !opts->prompt && !opts->prompt_file && !opts->ids;
    if (!code)
        code = yk_cli_prompt_ids(&r.session, opts, story ? story_prompt : "", &ids, &n_ids);
    if (!code && !n_ids)
        code = yk_cli_error(YK_EXIT_USAGE,
                            "the prompt is empty and this model adds no BOS token: give a prompt with -p, -f or --ids");
    if (!code)
        code = start(&r, opts, ids, n_ids);
    if (!code) {
        story = story && !opts->print_ids;
        if (!story || (yk_cli_write(story_prompt, sizeof story_prompt - 1, &code) && yk_cli_flush(&code)))
            code = generate(&r, opts);
        code = finish_text(&r, opts, story, code);
        if (!code || code > 128)
            report(&r, opts);
        yk_cli_stats_report(&r.session, opts);
    }
    code = logits_close(&r.logits, code);
    free(ids);
    yk_cli_close(&r.session);
    return code;
}
