/* tokenize.c - yoke tokenize: the ids of a text on one line. */
#include "cli.h"
#include <stdlib.h>

int yk_cli_tokenize(yk_cli_opts *opts)
{
    yk_cli_session s = {0};
    char *text = NULL, id[16];
    int32_t *ids = NULL;
    size_t n_bytes = 0, n_ids = 0;
    uint32_t flags = (opts->no_special ? 0 : YK_TOK_SPECIAL) | (opts->no_parse_special ? 0 : YK_TOK_PARSE_SPECIAL);
    int code = yk_cli_one_prompt(opts);
    if (!opts->prompt && !opts->prompt_file)
        opts->prompt_file = "-";
    if (!code)
        code = yk_cli_open_model(&s, opts, true);
    if (!code)
        code = yk_cli_prompt_text(opts, "", &text, &n_bytes);
    if (!code)
        code = yk_cli_tokens(s.model, text, n_bytes, flags, &ids, &n_ids);
    if (!code) {
        bool open = true;
        for (size_t i = 0; open && i < n_ids; i++) {
            int n = snprintf(id, sizeof id, i ? " %d" : "%d", ids[i]);
            open = yk_cli_write(id, (size_t)n, &code);
        }
        if (open)
            yk_cli_write("\n", 1, &code);
    }
    free(ids);
    free(text);
    yk_cli_close(&s);
    return code;
}
