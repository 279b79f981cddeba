/* synth.c - yoke synth: write a model of a known shape with random weights. */
#include "cli.h"
#include <string.h>
#include <sys/stat.h>

/* One word a line, behind a heading. */
static void print_words(const char *heading, const char *words)
{
    fprintf(yk_cli_out, "%s\n", heading);
    while (*words) {
        size_t n = strcspn(words, " ");
        fprintf(yk_cli_out, "  %.*s\n", (int)n, words);
        words += n;
        words += strspn(words, " ");
    }
}

static bool is_word(const char *words, const char *name)
{
    size_t len = strlen(name);
    while (*words) {
        size_t n = strcspn(words, " ");
        if (n == len && !memcmp(words, name, n))
            return true;
        words += n;
        words += strspn(words, " ");
    }
    return false;
}

/* The two positionals stand for the flags that are not given, in the order shape, type. */
static int take_positionals(yk_cli_opts *opts)
{
    for (uint32_t i = 0; i < opts->n_positional; i++) {
        if (!opts->shape)
            opts->shape = opts->positional[i];
        else if (!opts->type)
            opts->type = opts->positional[i];
        else
            return yk_cli_error(YK_EXIT_USAGE, "argument '%s' is one too many: see yoke synth --help", opts->positional[i]);
    }
    if (!opts->shape)
        return yk_cli_error(YK_EXIT_USAGE, "no shape given: one of %s", yk_synth_shapes());
    if (!is_word(yk_synth_shapes(), opts->shape))
        return yk_cli_error(YK_EXIT_USAGE, "unknown shape '%s': one of %s", opts->shape, yk_synth_shapes());
    if (!opts->type)
        return yk_cli_error(YK_EXIT_USAGE, "no type given: one of %s", yk_synth_types());
    if (!is_word(yk_synth_types(), opts->type))
        return yk_cli_error(YK_EXIT_USAGE, "unknown type '%s': one of %s", opts->type, yk_synth_types());
    if (!opts->output)
        return yk_cli_error(YK_EXIT_USAGE, "no file to write given: -o FILE");
    return YK_EXIT_OK;
}

int yk_cli_synth(yk_cli_opts *opts)
{
    yk_synth_opts synth;
    yk_error err = {0};
    struct stat st;
    char size[32];
    if (opts->list) {
        print_words("shapes", yk_synth_shapes());
        print_words("types", yk_synth_types());
        return YK_EXIT_OK;
    }
    int code = take_positionals(opts);
    if (code)
        return code;
    yk_synth_opts_init(&synth);
    synth.shape = opts->shape;
    synth.type = opts->type;
    synth.n_layers = (uint32_t)opts->layers;
    synth.seed = (uint64_t)opts->seed;
    synth.progress = yk_cli_progress;
    synth.progress_user = opts;
    double start = yk_cli_seconds();
    if (yk_synth(opts->output, &synth, &err))
        return yk_cli_fail(&err);
    double seconds = yk_cli_seconds() - start;
    if (!stat(opts->output, &st))
        yk_cli_note(opts, "%s: %s in %.1f s", opts->output, yk_cli_size_text((uint64_t)st.st_size, size), seconds);
    return YK_EXIT_OK;
}
