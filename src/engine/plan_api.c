/* Plan files of yoke.h. Making and explaining a plan: auto.c. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

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
    yk_out_file f;
    YK_FAIL_IF(!path, err, YK_ERR_USAGE, "yk_plan_save: path is NULL");
    YK_TRY(yk_plan_write(plan, &text, &n, err));
    yk_status st = yk_out_open(&f, path, err);
    if (st == YK_OK && fwrite(text, 1, n, f.f) != n) {
        st = yk_fail(err, YK_ERR_RUNTIME, "%s: cannot be written: %s", path, strerror(errno));
        yk_out_abort(&f);
    } else if (st == YK_OK)
        st = yk_out_commit(&f, err);
    yk_free(text);
    return st;
}

yk_status yk_plan_text(const yk_plan *plan, char *buf, size_t capacity, size_t *n_bytes, yk_error *err)
{
    char *text;
    size_t n;
    YK_TRY(yk_plan_write(plan, &text, &n, err));
    if (n_bytes)
        *n_bytes = n;
    if (capacity) {
        const size_t part = n < capacity ? n : capacity - 1;
        memcpy(buf, text, part);
        buf[part] = 0;
    }
    yk_free(text);
    return YK_OK;
}
