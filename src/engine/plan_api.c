/* Plan files of yoke.h. Making and explaining a plan: auto.c. */
#include "partition/plan.h"
#include "src/base/file.h"

enum { MAX_FILE = 64 << 20 };

void yk_plan_close(yk_plan **plan)
{
    if (*plan)
        yk_plan_clear(*plan);
    yk_free(*plan);
    *plan = NULL;
}

const char *yk_plan_note(const yk_plan *plan)
{
    return plan->note;
}

yk_status yk_plan_load(yk_plan **out, const char *path, yk_error *err)
{
    char *text;
    size_t n;
    yk_error inner = {0};
    *out = NULL;
    YK_FAIL_IF(!path, err, YK_ERR_USAGE, "yk_plan_load: path is NULL");
    YK_TRY(yk_read_file(&text, &n, path, MAX_FILE, err));
    yk_plan *plan = yk_alloc(YK_MEM_PLAN, 1, sizeof *plan);
    const yk_status st = plan ? yk_plan_read(plan, text, n, &inner) : yk_fail_memory(&inner, sizeof *plan, "a plan");
    yk_free(text);
    if (st != YK_OK) {
        yk_free(plan);
        return yk_fail_in_file(err, st, path, &inner);
    }
    *out = plan;
    return YK_OK;
}

yk_status yk_plan_save(const yk_plan *plan, const char *path, yk_error *err)
{
    char *text;
    size_t n;
    YK_FAIL_IF(!path, err, YK_ERR_USAGE, "yk_plan_save: path is NULL");
    YK_TRY(yk_plan_write(plan, &text, &n, err));
    const yk_status st = yk_write_file(path, text, n, err);
    yk_free(text);
    return st;
}

yk_status yk_plan_text(const yk_plan *plan, char *buf, size_t capacity, size_t *n_bytes, yk_error *err)
{
    char *text;
    size_t n;
    YK_TRY(yk_plan_write(plan, &text, &n, err));
    yk_text_out(text, n, buf, capacity, n_bytes);
    yk_free(text);
    return YK_OK;
}
