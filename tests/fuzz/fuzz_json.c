/* Fuzz target: the readers of JSON files (machine, plan, shape). The first byte chooses the reader. What is read must be written again, and that text be read. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "partition/plan.h"
#include "partition/shape.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
    if (!ok)
        abort();
}

static void fuzz_machine(const char *text, size_t n)
{
    yk_machine m = {0}, again = {0};
    yk_error err;
    char *out = NULL;
    size_t n_out = 0;
    if (yk_machine_read(&m, text, n, &err) != YK_OK)
        return;
    must(yk_machine_write(&m, &out, &n_out, &err) == YK_OK);
    must(yk_machine_read(&again, out, n_out, &err) == YK_OK);
    yk_free(out);
}

static void fuzz_plan(const char *text, size_t n)
{
    yk_plan p = {0}, again = {0};
    yk_error err;
    char *out = NULL;
    size_t n_out = 0;
    if (yk_plan_read(&p, text, n, &err) != YK_OK)
        return;
    must(yk_plan_write(&p, &out, &n_out, &err) == YK_OK);
    must(yk_plan_read(&again, out, n_out, &err) == YK_OK);
    yk_free(out);
    yk_plan_clear(&p);
    yk_plan_clear(&again);
}

static void fuzz_shape(const char *text, size_t n)
{
    yk_shape s;
    yk_error err;
    if (yk_shape_read(&s, text, n, NULL, NULL, &err) == YK_OK)
        yk_shape_close(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const char *text = (const char *)data + 1;
    switch (data[0] % 3) {
    case 0:
        fuzz_machine(text, size - 1);
        break;
    case 1:
        fuzz_plan(text, size - 1);
        break;
    default:
        fuzz_shape(text, size - 1);
        break;
    }
    return 0;
}
