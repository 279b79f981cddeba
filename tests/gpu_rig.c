#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/gpu_rig.h"

enum { GUARD = 0xa5, GAP = 192 };

/* Asked for by leak checking builds: what drivers and their compilers leak is not ours. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libpocl\nleak:libLLVM\nleak:libOpenCL\n";
}

int yk_rig_open(yk_rig *r, const char *backend)
{
    yk_error err;
    memset(r, 0, sizeof *r);
    r->random = 1;
    if (yk_modules_load(&r->modules, &(yk_modules_opts){.null_options = "compute"}, &err) != YK_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    const yk_backend *b = yk_modules_find(r->modules, backend);
    if (!b) {
        for (int i = 0; i < YK_N_BACKENDS; i++)
            if (strcmp(r->modules->backends[i].name, backend) == 0)
                printf("SKIP: %s: %s\n", backend, r->modules->backends[i].why);
        yk_modules_close(&r->modules);
        return 77;
    }
    r->t = &b->table;
    yk_gpu_info info;
    r->sent = malloc(YK_RIG_BYTES);
    r->got = malloc(YK_RIG_BYTES);
    r->again = malloc(YK_RIG_BYTES);
    if (!r->sent || !r->got || !r->again || r->t->info(0, &info) != YK_OK || r->t->open(&r->gpu, 0, YK_RIG_BYTES) != YK_OK ||
        r->t->stream_open(r->gpu, YK_STREAM_COMPUTE, &r->stream) != YK_OK ||
        r->t->mem_alloc(r->gpu, YK_MEM_ACTIVATION, YK_RIG_BYTES, &r->mem) != YK_OK) {
        fprintf(stderr, "%s: %s\n", backend, r->t->last_error());
        return 1;
    }
    printf("%s: %s, %s\n", backend, info.name, info.driver);
    return 0;
}

void yk_rig_close(yk_rig *r)
{
    r->t->mem_free(r->gpu, YK_MEM_ACTIVATION, &r->mem);
    r->t->stream_close(r->stream);
    r->t->close(r->gpu);
    yk_modules_close(&r->modules);
    free(r->sent);
    free(r->got);
    free(r->again);
}

void yk_rig_case(yk_rig *r, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(r->what, sizeof r->what, fmt, ap);
    va_end(ap);
    r->used = 0;
    r->n_outs = 0;
}

static yk_gpu_mem place(yk_rig *r, const void *data, uint64_t bytes)
{
    const uint64_t at = (r->used + GAP + 63) / 64 * 64, end = at + bytes + GAP;
    assert_true(end <= YK_RIG_BYTES);
    memset(r->sent + r->used, GUARD, end - r->used);
    if (data)
        memcpy(r->sent + at, data, bytes);
    r->used = end;
    return (yk_gpu_mem){.handle = r->mem.handle, .offset = at, .bytes = bytes};
}

yk_gpu_mem yk_rig_in(yk_rig *r, const void *data, uint64_t bytes)
{
    return place(r, data, bytes);
}

yk_gpu_mem yk_rig_out(yk_rig *r, const void *data, uint64_t bytes)
{
    const yk_gpu_mem m = place(r, data, bytes);
    assert_true(r->n_outs < YK_RIG_ITEMS);
    r->outs[r->n_outs].at = m.offset;
    r->outs[r->n_outs++].bytes = bytes;
    return m;
}

static void must(yk_rig *r, yk_status st)
{
    if (st != YK_OK)
        fail_msg("%s: %s: %s", r->what, yk_status_name(st), r->t->last_error());
}

static void once(yk_rig *r, yk_k_call *calls, uint32_t n, uint8_t *back)
{
    const yk_gpu_mem all = {.handle = r->mem.handle};
    must(r, r->t->copy_to_device(r->stream, all, r->sent, r->used));
    for (uint32_t i = 0; i < n; i++)
        must(r, r->t->launch(r->stream, &calls[i].launch));
    must(r, r->t->copy_to_host(r->stream, back, all, r->used));
    must(r, r->t->stream_sync(r->stream));
}

void yk_rig_run(yk_rig *r, yk_k_call *calls, uint32_t n)
{
    once(r, calls, n, r->got);
    once(r, calls, n, r->again);
    uint64_t at = 0;
    for (uint32_t i = 0; i <= r->n_outs; i++) {
        const uint64_t end = i < r->n_outs ? r->outs[i].at : r->used;
        for (; at < end; at++)
            if (r->got[at] != r->sent[at])
                fail_msg("%s: byte %llu outside the outputs was written", r->what, (unsigned long long)at);
        if (i < r->n_outs)
            at = end + r->outs[i].bytes;
    }
    if (memcmp(r->got, r->again, r->used) != 0)
        fail_msg("%s: a second run gave other bits", r->what);
}

const void *yk_rig_got(const yk_rig *r, yk_gpu_mem mem)
{
    return r->got + mem.offset;
}

yk_gpu_kernel *yk_rig_kernel(yk_rig *r, const char *name)
{
    yk_gpu_kernel *k;
    if (r->t->kernel_get(r->gpu, name, &k) != YK_OK)
        fail_msg("%s: %s", name, r->t->last_error());
    return k;
}

static uint32_t next(yk_rig *r)
{
    r->random = r->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(r->random >> 33);
}

float yk_rig_float(yk_rig *r)
{
    return (float)(next(r) & 0xffffff) / 8388608.0f - 1.0f;
}

uint32_t yk_rig_below(yk_rig *r, uint32_t n)
{
    return next(r) % n;
}

void yk_rig_floats(yk_rig *r, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const uint32_t k = yk_rig_below(r, 40);
        x[i] = yk_rig_float(r) * (k == 0 ? 20.0f : k == 1 ? 1e-6f : k == 2 ? 0.0f : 1.0f);
        if (k == 3 && i)
            x[i] = x[i - 1];
    }
}

void yk_rig_near(const yk_rig *r, const char *name, size_t i, double got, double want, double tol)
{
    const bool ok = fabs(got - want) <= tol;
    if (!ok)
        fail_msg("%s: %s[%zu] = %.9g, want %.9g, allowed difference %.3g", r->what, name, i, got, want, tol);
}
