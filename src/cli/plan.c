/* plan.c - yoke profile and yoke plan: measure the machine, and show what the planner makes of it. */
#include "cli.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Text of a library object whose function has the buffer rules of yoke.h; freed by the caller. */
typedef yk_status (*text_fn)(const void *object, char *buf, size_t capacity, size_t *n_bytes, yk_error *err);

static yk_status machine_text(const void *object, char *buf, size_t capacity, size_t *n_bytes, yk_error *err)
{
    return yk_machine_text(object, buf, capacity, n_bytes, err);
}

static yk_status plan_text(const void *object, char *buf, size_t capacity, size_t *n_bytes, yk_error *err)
{
    return yk_plan_text(object, buf, capacity, n_bytes, err);
}

static int print_text(text_fn fn, const void *object)
{
    size_t n = 0;
    yk_error err = {0};
    int code = YK_EXIT_OK;
    if (fn(object, NULL, 0, &n, &err))
        return yk_cli_fail(&err);
    char *text = malloc(n + 1);
    if (!text)
        return yk_cli_no_memory(n + 1, "the text");
    if (fn(object, text, n + 1, &n, &err))
        code = yk_cli_fail(&err);
    else
        yk_cli_write(text, n, &code);
    free(text);
    return code;
}

/* ---- profile ----------------------------------------------------------------------------------------------------- */

static int save(const yk_machine *machine, const yk_cli_opts *opts)
{
    yk_error err = {0};
    char path[4096];
    size_t n = 0;
    if (opts->output && !strcmp(opts->output, "-"))
        return print_text(machine_text, machine);
    if (yk_machine_save(machine, opts->output, &err))
        return yk_cli_fail(&err);
    if (opts->output)
        yk_cli_note(opts, "%s", opts->output);
    else if (!yk_machine_cache_path(machine, path, sizeof path, &n, &err) && n < sizeof path)
        yk_cli_note(opts, "%s: used from now on", path);
    return YK_EXIT_OK;
}

int yk_cli_profile(yk_cli_opts *opts)
{
    yk_cli_session s = {0};
    yk_machine_opts o;
    yk_machine *machine = NULL;
    yk_error err = {0};
    int code = YK_EXIT_OK;
    if (opts->model || opts->n_positional)
        code = yk_cli_open_model(&s, opts, false);
    yk_machine_opts_init(&o);
    o.quick = opts->quick;
    o.model = s.model;
    o.device = opts->device;
    o.threads = (uint32_t)opts->threads;
    o.isa = opts->isa;
    o.progress = yk_cli_progress;
    o.progress_user = opts;
    if (!code && yk_machine_profile(&machine, &o, &err))
        code = yk_cli_fail(&err);
    if (!code && yk_machine_is_noisy(machine))
        yk_cli_note(opts, "the measurements did not settle: something else ran; try again when the machine is idle");
    if (!code)
        code = save(machine, opts);
    yk_machine_close(&machine);
    yk_cli_close(&s);
    return code;
}

/* ---- plan -------------------------------------------------------------------------------------------------------- */

int yk_cli_explain(const yk_cli_session *s, const yk_cli_opts *opts, const yk_engine_opts *o, const yk_plan *plan, FILE *out)
{
    size_t n = 0;
    yk_error err = {0};
    if (yk_plan_explain(plan, s->model, s->machine, o, NULL, 0, &n, &err))
        return yk_cli_fail(&err);
    char *text = malloc(n + 1);
    if (!text)
        return yk_cli_no_memory(n + 1, "the explanation");
    int code = YK_EXIT_OK;
    if (yk_plan_explain(plan, s->model, s->machine, o, text, n + 1, &n, &err))
        code = yk_cli_fail(&err);
    else if (out == yk_cli_out)
        yk_cli_write(text, n, &code);
    else if (!opts->quiet) {
        yk_cli_progress_clear();
        fwrite(text, 1, n, out);
    }
    free(text);
    return code;
}

/* What the plan is made and drawn for, in one place. */
typedef struct subject {
    const yk_plan *plan;
    yk_plan_subject of;
    yk_plan_form form;
} subject;

static yk_status drawing(const void *object, char *buf, size_t capacity, size_t *n_bytes, yk_error *err)
{
    const subject *s = object;
    return yk_plan_draw(s->plan, &s->of, s->form, buf, capacity, n_bytes, err);
}

static bool ends_with(const char *s, const char *end)
{
    const size_t n = strlen(s), m = strlen(end);
    return n > m && !strcmp(s + n - m, end);
}

/* The shape file that the flags name; "-m FILE.json" is one as well. */
static const char *shape_path(const yk_cli_opts *opts)
{
    const char *model = opts->model ? opts->model : opts->n_positional ? opts->positional[0] : NULL;
    return opts->shape ? opts->shape : model && ends_with(model, ".json") ? model : NULL;
}

static int make_and_print(yk_cli_session *s, const yk_cli_opts *opts, const char *shape)
{
    yk_engine_opts o;
    yk_plan *plan = NULL;
    yk_error err = {0};
    int code = yk_cli_engine_opts(s, opts, &o);
    if (code)
        return code;
    o.context = (uint32_t)opts->context;
    o.threads = (uint32_t)opts->threads;
    if (shape && !s->machine)
        return yk_cli_error(YK_EXIT_USAGE,
                            "a shape has no weights to measure with: name a machine with --machine FILE (partition/machines)");
    if (!shape && !s->machine && opts->auto_partition && yk_machine_here(&s->machine, s->model, &o, &err))
        return yk_cli_fail(&err);
    subject it = {.of = {.model = s->model, .shape_path = shape, .type = opts->type, .machine = s->machine, .opts = &o}};
    if (yk_plan_make_for(&plan, &it.of, &err))
        return yk_cli_fail(&err);
    it.plan = plan;
    it.form = !strcmp(opts->output, "svg") ? YK_PLAN_SVG : isatty(STDOUT_FILENO) ? YK_PLAN_TERMINAL : YK_PLAN_TEXT;
    code = strcmp(opts->output, "json") ? print_text(drawing, &it) : print_text(plan_text, plan);
    yk_plan_close(&plan);
    return code;
}

int yk_cli_plan(yk_cli_opts *opts)
{
    yk_cli_session s = {0};
    const char *shape = shape_path(opts);
    if (opts->shape && (opts->model || opts->n_positional))
        return yk_cli_error(YK_EXIT_USAGE, "--shape %s and a model are given: keep one", opts->shape);
    if (opts->type && !shape)
        return yk_cli_error(YK_EXIT_USAGE, "--type %s goes with --shape: a model has its types", opts->type);
    int code = shape ? YK_EXIT_OK : yk_cli_open_model(&s, opts, false);
    if (!code)
        code = make_and_print(&s, opts, shape);
    yk_cli_close(&s);
    return code;
}
