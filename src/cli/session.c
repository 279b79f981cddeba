/* session.c - opens the model, the engine and a sequence as the flags ask for. */
#include "cli.h"
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_LAST_N = 1 << 20 };

#define SHIPPED_MODEL "yoke-tiny-mixtral-q4_k_m.gguf"

/* Look for the model that comes with yoke: beside the program as it lies in a build folder or an installed tree, then in the
 * current folder. */
static bool find_shipped(char *path, size_t capacity)
{
    static const char *const places[] = {"models",          "../models",          "../../models",
                                         "../../../models", "../../../../models", "../share/yoke/models"};
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n > 0) {
        exe[n] = 0;
        char *slash = strrchr(exe, '/');
        *(slash ? slash : exe) = 0;
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            int len = snprintf(path, capacity, "%s/%s/%s", exe, places[i], SHIPPED_MODEL);
            if (len > 0 && (size_t)len < capacity && !access(path, R_OK))
                return true;
        }
    }
    snprintf(path, capacity, "models/%s", SHIPPED_MODEL);
    return !access(path, R_OK);
}

int yk_cli_open_model(yk_cli_session *s, const yk_cli_opts *opts, bool vocab_only)
{
    yk_model_opts model_opts;
    yk_error err = {0};
    const char *path = opts->model;
    if (path && opts->n_positional)
        return yk_cli_error(YK_EXIT_USAGE, "two models given, -m %s and %s: keep one", path, opts->positional[0]);
    if (!path && opts->n_positional)
        path = opts->positional[0];
    if (path) {
        int n = snprintf(s->path, sizeof s->path, "%s", path);
        if (n < 0 || (size_t)n >= sizeof s->path)
            return yk_cli_error(YK_EXIT_INPUT, "the model's path has %zu bytes, more than the system takes", strlen(path));
    } else if (!find_shipped(s->path, sizeof s->path)) {
        return yk_cli_error(YK_EXIT_USAGE, "no model given and %s was not found in models/: give one with -m FILE",
                            SHIPPED_MODEL);
    }
    s->shipped = !path;
    yk_model_opts_init(&model_opts);
    model_opts.check_tensors = opts->check_tensors;
    model_opts.vocab_only = vocab_only;
    model_opts.progress = yk_cli_progress;
    model_opts.progress_user = (void *)opts;
    if (yk_model_open(&s->model, s->path, &model_opts, &err))
        return yk_cli_fail(&err);
    yk_model_get_info(s->model, &s->info);
    return YK_EXIT_OK;
}

int yk_cli_engine_opts(yk_cli_session *s, const yk_cli_opts *opts, yk_engine_opts *out)
{
    yk_error err = {0};
    yk_engine_opts_init(out);
    if (strcmp(opts->cache_k, opts->cache_v))
        return yk_cli_error(YK_EXIT_USAGE, "-ctk %s and -ctv %s differ: give both the same type", opts->cache_k, opts->cache_v);
    if (opts->machine && !s->machine && yk_machine_load(&s->machine, opts->machine, &err))
        return yk_cli_fail(&err);
    if (opts->plan && !s->plan && yk_plan_load(&s->plan, opts->plan, &err))
        return yk_cli_fail(&err);
    out->auto_partition = opts->auto_partition;
    out->vram_budget_bytes = opts->vram_budget;
    out->device = opts->device;
    out->isa = opts->isa;
    out->no_repack = opts->no_repack;
    out->pack_cache = opts->pack_cache;
    out->gpu_layers_given = opts->gpu_layers >= 0;
    out->gpu_layers = opts->gpu_layers >= 0 ? (uint32_t)opts->gpu_layers : 0;
    out->cpu_moe_layers = (uint32_t)opts->cpu_moe;
    out->kv_on_host = opts->kv_on_host;
    out->overrides = opts->overrides;
    out->policy = strcmp(opts->policy, "adaptive") ? YK_POLICY_STATIC : YK_POLICY_ADAPTIVE;
    out->machine = s->machine;
    out->plan = s->plan;
    out->kv_type = strcmp(opts->cache_k, "f32") ? YK_KV_F16 : YK_KV_F32;
    /* As in llama.cpp a step is never larger than what is handed over at once. 0 keeps the library's default. */
    out->batch = (uint32_t)opts->ubatch;
    if (opts->batch < (opts->ubatch ? opts->ubatch : 512))
        out->batch = (uint32_t)opts->batch;
    out->progress = yk_cli_progress;
    out->progress_user = (void *)opts;
    return YK_EXIT_OK;
}

/* With --explain the plan is made here, so that it can be shown; the engine would make the same. */
static int explain(yk_cli_session *s, const yk_cli_opts *opts, yk_engine_opts *o)
{
    yk_error err = {0};
    if (!s->plan) {
        if (!s->machine && opts->auto_partition && yk_machine_here(&s->machine, s->model, o, &err))
            return yk_cli_fail(&err);
        o->machine = s->machine;
        if (yk_plan_make(&s->plan, s->machine, s->model, o, &err))
            return yk_cli_fail(&err);
        o->gpu_layers_given = false; /* the plan keeps to the wishes already */
        o->cpu_moe_layers = 0;
        o->kv_on_host = false;
        o->overrides = NULL;
    }
    o->plan = s->plan;
    s->explained = true;
    return yk_cli_explain(s, opts, o, s->plan, stderr);
}

int yk_cli_open_engine(yk_cli_session *s, const yk_cli_opts *opts, uint32_t context, uint32_t threads, uint32_t logits_rows)
{
    yk_engine_opts engine_opts;
    yk_error err = {0};
    int code = yk_cli_engine_opts(s, opts, &engine_opts);
    if (code)
        return code;
    engine_opts.threads = threads;
    engine_opts.context = context;
    engine_opts.logits_rows = logits_rows;
    engine_opts.trace_path = opts->trace;
    if (opts->explain && !s->explained && (code = explain(s, opts, &engine_opts)))
        return code;
    if (yk_engine_open(&s->engine, s->model, &engine_opts, &err))
        return yk_cli_fail(&err);
    yk_cli_cancel_target(s->engine);
    if (yk_seq_open(&s->seq, s->engine, &err))
        return yk_cli_fail(&err);
    yk_engine_get_stats(s->engine, &s->stats);
    if (opts->verbose)
        yk_cli_note(opts, "on %s: %s", s->stats.device, s->stats.why);
    if (opts->verbose && !strcmp(s->stats.policy, "adaptive"))
        yk_cli_note(opts, "policy adaptive: experts of the device are kept in RAM too, %.1f MiB",
                    (double)s->stats.kept_bytes / 0x1p20);
    if (s->info.n_ctx_train && s->stats.context > s->info.n_ctx_train)
        yk_cli_note(opts, "warning: the context of %u tokens is longer than the %u the model was trained for", s->stats.context,
                    s->info.n_ctx_train);
    return YK_EXIT_OK;
}

int yk_cli_open_sampler(yk_cli_session *s, const yk_cli_opts *opts)
{
    yk_sampler_opts sampler_opts;
    yk_error err = {0};
    yk_sampler_opts_init(&sampler_opts);
    sampler_opts.temperature = (float)opts->temperature;
    sampler_opts.top_k = (uint32_t)opts->top_k;
    sampler_opts.top_p = (float)opts->top_p;
    sampler_opts.min_p = (float)opts->min_p;
    sampler_opts.typical_p = (float)opts->typical;
    sampler_opts.repeat_penalty = (float)opts->repeat_penalty;
    sampler_opts.frequency_penalty = (float)opts->frequency_penalty;
    sampler_opts.presence_penalty = (float)opts->presence_penalty;
    sampler_opts.penalty_last_n = (uint32_t)opts->repeat_last_n;
    if (opts->repeat_last_n < 0) /* the context, or as much of it as a sampler looks back */
        sampler_opts.penalty_last_n = s->stats.context < MAX_LAST_N ? s->stats.context : MAX_LAST_N;
    sampler_opts.seed = opts->seed < 0 ? yk_cli_random() >> 11 : (uint64_t)opts->seed; /* 53 bits: -s takes it back */
    if (opts->verbose)
        yk_cli_note(opts, "seed %llu", (unsigned long long)sampler_opts.seed);
    if (yk_sampler_open(&s->sampler, s->model, &sampler_opts, &err))
        return yk_cli_fail(&err);
    return YK_EXIT_OK;
}

void yk_cli_close(yk_cli_session *s)
{
    yk_cli_cancel_target(NULL);
    yk_detok_close(&s->detok);
    yk_sampler_close(&s->sampler);
    yk_seq_close(&s->seq);
    yk_engine_close(&s->engine);
    yk_plan_close(&s->plan);
    yk_machine_close(&s->machine);
    yk_model_close(&s->model);
}

int yk_cli_feed(yk_cli_session *s, const yk_cli_opts *opts, const int32_t *ids, size_t n_ids)
{
    yk_error err = {0};
    for (size_t done = 0; done < n_ids;) {
        size_t n = n_ids - done < (size_t)opts->batch ? n_ids - done : (size_t)opts->batch;
        yk_batch_entry entry = {s->seq, ids + done, (uint32_t)n, done + n == n_ids ? YK_LOGITS_LAST : YK_LOGITS_NONE};
        if (yk_cli_interrupted())
            return 128 + yk_cli_interrupted();
        if (yk_decode(s->engine, &entry, 1, &err))
            return yk_cli_fail(&err);
        done += n;
        yk_cli_stats_live(s, opts);
        if (n_ids > (size_t)opts->batch)
            yk_cli_progress((void *)opts, "reading the prompt", done, n_ids);
    }
    return YK_EXIT_OK;
}

bool yk_cli_is_end(const yk_cli_session *s, int32_t token)
{
    return yk_token_is_end(s->model, token) || (s->info.bos >= 0 && token == s->info.bos);
}

/* ---- prompts ----------------------------------------------------------------------------------------------------- */

size_t yk_cli_unescape(char *text, size_t n)
{
    static const char from[] = "nrt\"'\\", to[] = "\n\r\t\"'\\";
    size_t out = 0;
    for (size_t i = 0; i < n; i++) {
        const char *at = text[i] == '\\' && i + 1 < n ? memchr(from, text[i + 1], sizeof from - 1) : NULL;
        if (at) {
            text[out++] = to[at - from];
            i++;
        } else if (text[i] == '\\' && i + 3 < n && text[i + 1] == 'x' && isxdigit((unsigned char)text[i + 2]) &&
                   isxdigit((unsigned char)text[i + 3])) {
            char hex[3] = {text[i + 2], text[i + 3], 0};
            text[out++] = (char)strtoul(hex, NULL, 16);
            i += 3;
        } else {
            text[out++] = text[i];
        }
    }
    return out;
}

static int parse_ids(const yk_cli_session *s, const char *text, int32_t **ids, size_t *n_ids)
{
    size_t n = 0;
    *ids = malloc((strlen(text) / 2 + 1) * sizeof **ids);
    if (!*ids)
        return yk_cli_no_memory(strlen(text), "--ids");
    for (const char *at = text + strspn(text, " ,\t\n"); *at;) {
        char *end;
        errno = 0;
        long id = strtol(at, &end, 10);
        if (errno || end == at || *at == '+' || (*end && !strchr(" ,\t\n", *end)) || id < 0 || id >= (long)s->info.n_vocab) {
            int width = (int)strcspn(at, " ,\t\n");
            free(*ids);
            *ids = NULL;
            return yk_cli_error(YK_EXIT_USAGE, "--ids: '%.*s' is not a token id from 0 to %u", width, at, s->info.n_vocab - 1);
        }
        (*ids)[n++] = (int32_t)id;
        at = end + strspn(end, " ,\t\n");
    }
    *n_ids = n;
    return YK_EXIT_OK;
}

int yk_cli_prompt_text(const yk_cli_opts *opts, const char *fallback, char **text, size_t *n_bytes)
{
    if (opts->prompt_file)
        return yk_cli_read_file(opts->prompt_file, text, n_bytes);
    const char *given = opts->prompt ? opts->prompt : fallback;
    *n_bytes = strlen(given);
    if (!(*text = strdup(given)))
        return yk_cli_no_memory(*n_bytes, "the prompt");
    if (opts->escape)
        *n_bytes = yk_cli_unescape(*text, *n_bytes);
    return YK_EXIT_OK;
}

int yk_cli_prompt_ids(const yk_cli_session *s, const yk_cli_opts *opts, const char *fallback, int32_t **ids, size_t *n_ids)
{
    char *text = NULL;
    size_t n_bytes = 0;
    *ids = NULL;
    if (opts->ids)
        return parse_ids(s, opts->ids, ids, n_ids);
    int code = yk_cli_prompt_text(opts, fallback, &text, &n_bytes);
    if (!code && opts->prompt_file && n_bytes && text[n_bytes - 1] == '\n')
        n_bytes--; /* editors end a file with a newline that is not part of the prompt; llama.cpp drops it too */
    if (!code)
        code = yk_cli_tokens(s->model, text, n_bytes, YK_TOK_SPECIAL | YK_TOK_PARSE_SPECIAL, ids, n_ids);
    free(text);
    return code;
}

int yk_cli_one_prompt(const yk_cli_opts *opts)
{
    const char *given[3];
    int n = 0;
    if (opts->prompt)
        given[n++] = "-p";
    if (opts->prompt_file)
        given[n++] = "-f";
    if (opts->ids)
        given[n++] = "--ids";
    if (n > 1)
        return yk_cli_error(YK_EXIT_USAGE, "%s and %s both give the text: keep one", given[0], given[1]);
    return YK_EXIT_OK;
}
