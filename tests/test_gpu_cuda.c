/* The CUDA module on the fake driver (tests/fake_cuda): what it says where it cannot work, refused memory at every place, a lost device, pageable
 * copies and frees behind a mailbox wait, full queues, devices of other architectures. Runs with LD_LIBRARY_PATH at the fake. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/kernels.h"
#include "gpu/modules.h"
#include "src/base/clock.h"
#include "src/engine/auto.h"

static yk_modules *modules;
static const yk_device_table *t;
static void (*set_fake)(const char *settings);

static void must(yk_status st)
{
    if (st != YK_OK)
        fail_msg("%s: %s", yk_status_name(st), t->last_error());
}

static const yk_backend *cuda(void)
{
    for (int i = 0; i < YK_N_BACKENDS; i++)
        if (strcmp(modules->backends[i].name, "cuda") == 0)
            return &modules->backends[i];
    return NULL;
}

/* Loads with these settings and expects the reason to say this. Before the first successful load only. */
static void refused_because(const char *settings, const char *why)
{
    setenv("FAKE_CUDA", settings, 1);
    assert_int_equal(yk_modules_load(&modules, NULL, NULL), YK_OK);
    if (cuda()->usable)
        fail_msg("FAKE_CUDA=%s: the backend is usable", settings);
    if (!strstr(cuda()->why, why) || strchr(cuda()->why, '\n'))
        fail_msg("FAKE_CUDA=%s: \"%s\", want \"%s\" in it", settings, cuda()->why, why);
    yk_modules_close(&modules);
}

static void test_reasons(void **state)
{
    (void)state;
    refused_because("init=100", "finds no device (CUDA_ERROR_NO_DEVICE)");
    refused_because("init=34", "stub");
    refused_because("init=803", "restart the machine");
    refused_because("init=999", "CUDA error 999");
    refused_because("driver=11080", "supports CUDA 11.8");
}

/* The driver stays started from here on; what it has may still change. */
static void test_devices(void **state)
{
    (void)state;
    refused_because("devices=0", "has no device");
    set_fake = NULL;
    void *dl = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    assert_non_null(dl);
    *(void **)&set_fake = dlsym(dl, "fake_cuda_set");
    assert_non_null(set_fake);
    set_fake("sm=61");
    assert_int_equal(yk_modules_load(&modules, NULL, NULL), YK_OK);
    assert_non_null(strstr(cuda()->why, "(sm_61): this yoke has kernels for sm_"));
    yk_modules_close(&modules);
    set_fake("devices=2");
    assert_int_equal(yk_modules_load(&modules, NULL, NULL), YK_OK);
    assert_true(cuda()->usable);
    assert_int_equal(cuda()->n_devices, 2);
    t = &cuda()->table;
    yk_gpu_info info;
    must(t->info(1, &info));
    assert_string_equal(info.name, "fake device 1");
    assert_int_equal(info.memory_free_bytes, info.memory_bytes);
    assert_false(info.same_silicon || info.shared_memory);
}

/* What a step does, in small: work behind a mailbox wait, from and to pageable and page-locked memory. Ends with everything freed. */
static yk_status use(const char *why)
{
    enum { N = 3000 };
    static float in[N], out[N];
    yk_gpu *gpu;
    yk_gpu_stream *a, *b;
    yk_gpu_event *ev;
    yk_gpu_mem m;
    yk_gpu_kernel *k;
    void *pinned;
    for (int i = 0; i < N; i++)
        in[i] = (float)(i % 7);
    memset(out, 0, sizeof out);
    yk_status st = t->open(&gpu, 0, 1 << 20);
    if (st != YK_OK) {
        assert_null(gpu);
        assert_true(strlen(t->last_error()) > 10);
        return st;
    }
    if ((st = t->stream_open(gpu, YK_STREAM_COMPUTE, &a)) == YK_OK &&
        (st = t->stream_open(gpu, YK_STREAM_TO_DEVICE, &b)) == YK_OK && (st = t->event_open(gpu, &ev)) == YK_OK &&
        (st = t->mem_alloc(gpu, YK_MEM_ACTIVATION, sizeof in, &m)) == YK_OK &&
        (st = t->host_alloc(gpu, sizeof in, &pinned)) == YK_OK && (st = t->kernel_get(gpu, "sigmoid", &k)) == YK_OK) {
        yk_k_call c;
        yk_k_call_sigmoid(&c, k, m, m, N);
        const yk_status locked = t->host_register(gpu, in, sizeof in); /* may be refused */
        if ((st = t->box_wait(b, 0, 1)) == YK_OK && (st = t->copy_to_device(b, m, in, sizeof in)) == YK_OK &&
            (st = t->event_record(b, ev)) == YK_OK && (st = t->event_wait(a, ev)) == YK_OK &&
            (st = t->launch(a, &c.launch)) == YK_OK && (st = t->copy_to_host(a, out, m, sizeof out)) == YK_OK &&
            (st = t->copy_to_host(a, pinned, m, sizeof out)) == YK_OK && (st = t->box_signal(a, 1, 5)) == YK_OK &&
            (st = t->box_post(gpu, 0, 1)) == YK_OK && (st = t->stream_sync(b)) == YK_OK)
            st = t->stream_sync(a);
        uint32_t v = 0;
        if (st == YK_OK) {
            must(t->box_value(gpu, 1, &v));
            if (v != 5)
                fail_msg("%s: the signal is %u", why, v);
            if (out[0] != 0.5f || ((float *)pinned)[7] != 0.5f || !(out[6] > 0.997f))
                fail_msg("%s: wrong results: %g %g %g", why, out[0], ((float *)pinned)[7], out[6]);
        }
        if (locked == YK_OK)
            t->host_unregister(gpu, in);
    }
    char line[512];
    snprintf(line, sizeof line, "%s", st == YK_OK ? "" : t->last_error());
    t->close(gpu);
    if (st != YK_OK && (!line[0] || strchr(line, '\n')))
        fail_msg("%s: not one line: \"%s\"", why, line);
    return st;
}

/* Every allocation of the driver is refused in turn: memory, page-locked memory, streams, events, modules, contexts. */
static void test_refusals(void **state)
{
    (void)state;
    static const char *const modes[] = {"", "noops,", "failpin,"};
    for (size_t mode = 0; mode < 3; mode++) {
        int n_failed = 0, n_fine = 0;
        for (int k = 1; k < 60; k++) {
            char settings[64];
            snprintf(settings, sizeof settings, "%sdevices=2,fail=%d", modes[mode], k);
            set_fake(settings);
            const yk_status st = use(settings);
            assert_true(st == YK_OK || st == YK_ERR_MEMORY);
            n_failed += st != YK_OK;
            n_fine += st == YK_OK;
        }
        assert_true(n_failed >= 15 && n_fine >= 20);
    }
    set_fake("devices=2");
}

/* Memory freed while work behind a mailbox wait uses it: the call returns, the memory is counted and stays until the work is done. */
static void test_free_behind_wait(void **state)
{
    (void)state;
    static uint8_t data[4096], back[4096];
    yk_gpu *gpu;
    yk_gpu_stream *s;
    yk_gpu_mem m, more;
    uint64_t used[YK_MEM_N_CLASSES], budget;
    memset(data, 7, sizeof data);
    must(t->open(&gpu, 0, 4096));
    must(t->stream_open(gpu, YK_STREAM_COMPUTE, &s));
    must(t->mem_alloc(gpu, YK_MEM_STAGING, 4096, &m));
    must(t->box_wait(s, 2, 1));
    void *pinned;
    must(t->host_alloc(gpu, sizeof data, &pinned));
    memcpy(pinned, data, sizeof data);
    must(t->copy_to_device(s, m, pinned, sizeof data));
    must(t->copy_to_host(s, back, m, sizeof back));
    t->host_free(gpu, pinned);
    t->mem_free(gpu, YK_MEM_STAGING, &m);
    assert_null(m.handle);
    t->mem_used(gpu, used, &budget);
    assert_int_equal(used[YK_MEM_STAGING], 4096); /* a hard ceiling: it is not free yet */
    assert_int_equal(t->mem_alloc(gpu, YK_MEM_KV, 1, &more), YK_ERR_MEMORY);
    must(t->box_post(gpu, 2, 1));
    must(t->stream_sync(s));
    assert_memory_equal(data, back, sizeof data);
    must(t->mem_alloc(gpu, YK_MEM_KV, 4096, &more));
    t->mem_used(gpu, used, &budget);
    assert_int_equal(used[YK_MEM_STAGING], 0);
    t->close(gpu);
}

/* More behind a wait than a driver's queue holds; then a value that cyclic comparisons get wrong. */
static void test_full_queue(void **state)
{
    (void)state;
    enum { N = 3000 };
    yk_gpu *gpu;
    yk_gpu_stream *s, *other;
    yk_gpu_event *ev;
    yk_gpu_mem m;
    uint8_t back[N / 100];
    must(t->open(&gpu, 0, 1 << 20));
    must(t->stream_open(gpu, YK_STREAM_COMPUTE, &s));
    must(t->stream_open(gpu, YK_STREAM_TO_HOST, &other));
    must(t->event_open(gpu, &ev));
    must(t->mem_alloc(gpu, YK_MEM_STAGING, 4096, &m));
    must(t->box_wait(s, 3, 10));
    for (int i = 0; i < N; i++) {
        must(t->fill(s, m, (uint8_t)(i / 100), 1));
        if (i % 100 == 99) { /* an event that is used again and again: each wait is for its own record */
            must(t->event_record(s, ev));
            must(t->event_wait(other, ev));
            must(t->copy_to_host(other, &back[i / 100], m, 1));
            must(t->event_record(other, ev));
            must(t->event_wait(s, ev));
        }
    }
    must(t->box_signal(s, 4, 1));
    uint32_t v = 9;
    must(t->box_value(gpu, 4, &v));
    assert_int_equal(v, 0);
    must(t->box_post(gpu, 3, UINT32_MAX));
    must(t->stream_sync(s));
    must(t->stream_sync(other));
    must(t->box_value(gpu, 4, &v));
    assert_int_equal(v, 1);
    for (int i = 0; i < N / 100; i++)
        assert_int_equal(back[i], i);
    must(t->box_wait(s, 3, UINT32_MAX));
    must(t->stream_sync(s));
    t->close(gpu);
}

/* Pageable copies larger than the bounce buffer, both ways, on two streams at once. */
static void test_pageable(void **state)
{
    (void)state;
    enum { N = (5 << 20) + 12345 };
    yk_gpu *gpu;
    yk_gpu_stream *s[2];
    yk_gpu_mem m[2];
    uint8_t *in = malloc(N), *out[2] = {calloc(1, N), calloc(1, N)};
    assert_true(in && out[0] && out[1]);
    for (size_t i = 0; i < N; i++)
        in[i] = (uint8_t)(i * 31 + i / 4099);
    must(t->open(&gpu, 0, 16 << 20));
    for (int k = 0; k < 2; k++) {
        must(t->stream_open(gpu, YK_STREAM_COMPUTE, &s[k]));
        must(t->mem_alloc(gpu, YK_MEM_STAGING, N, &m[k]));
        must(t->box_wait(s[k], 0, 1));
        must(t->copy_to_device(s[k], m[k], in, N));
        must(t->copy_to_host(s[k], out[k], m[k], N));
    }
    must(t->box_post(gpu, 0, 1));
    for (int k = 0; k < 2; k++) {
        must(t->stream_sync(s[k]));
        assert_memory_equal(in, out[k], N);
        free(out[k]);
    }
    t->close(gpu);
    free(in);
}

/* The same memory locked by two devices: the first one's end does not unlock it. */
static void test_shared_registration(void **state)
{
    (void)state;
    static uint8_t data[8192];
    yk_gpu *a, *b;
    must(t->open(&a, 0, 1 << 20));
    must(t->open(&b, 1, 1 << 20));
    must(t->host_register(a, data, sizeof data));
    must(t->host_register(b, data, sizeof data));
    t->close(a);
    must(t->open(&a, 0, 1 << 20));
    must(t->host_register(a, data, sizeof data)); /* the driver would refuse it if it were registered anew */
    t->host_unregister(b, data);
    t->host_unregister(a, data);
    must(t->host_register(a, data, sizeof data));
    assert_int_equal(t->host_register(b, data + 1, 100), YK_ERR_MEMORY);
    t->close(b);
    t->close(a);
}

/* A launch that breaks the context: each thing that waits says so, closing works, and a new start of the driver's context too. */
static void test_lost(void **state)
{
    (void)state;
    yk_gpu *gpu;
    yk_gpu_stream *s;
    yk_gpu_mem m;
    yk_gpu_kernel *k;
    set_fake("devices=2,lost=1");
    must(t->open(&gpu, 0, 1 << 20));
    must(t->stream_open(gpu, YK_STREAM_COMPUTE, &s));
    must(t->mem_alloc(gpu, YK_MEM_ACTIVATION, 4096, &m));
    must(t->kernel_get(gpu, "sigmoid", &k));
    yk_k_call c;
    yk_k_call_sigmoid(&c, k, m, m, 16);
    must(t->launch(s, &c.launch));
    yk_status st = t->box_signal(s, 0, 1);
    const uint64_t end = yk_now_ns() + 10000000000u;
    uint32_t v = 0;
    while (st == YK_OK && !v && yk_now_ns() < end) /* as the lane waits */
        st = t->box_value(gpu, 0, &v);
    assert_int_equal(st, YK_ERR_RUNTIME);
    assert_non_null(strstr(t->last_error(), "lost"));
    assert_int_equal(t->stream_sync(s), YK_ERR_RUNTIME);
    assert_non_null(strstr(t->last_error(), "CUDA_ERROR_ILLEGAL_ADDRESS"));
    assert_int_equal(t->fill(s, m, 0, 16), YK_ERR_RUNTIME);
    t->close(gpu);
}

/* The kernel that a product of n tokens is launched as. */
static const char *product_kernel(yk_type type, uint32_t n)
{
    const char *(*launched)(void) = NULL;
    yk_gpu *gpu;
    yk_gpu_stream *s;
    yk_gpu_mem m;
    yk_gpu_kernel *k;
    *(void **)&launched = dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), "fake_cuda_launched");
    assert_non_null(launched);
    must(t->open(&gpu, 0, 1 << 20));
    must(t->stream_open(gpu, YK_STREAM_COMPUTE, &s));
    must(t->mem_alloc(gpu, YK_MEM_ACTIVATION, 1 << 19, &m));
    must(t->fill(s, m, 0, 1 << 19));
    must(t->kernel_get(gpu, yk_k_matvec_name(type, n), &k));
    yk_k_call c;
    yk_k_call_matvec(&c, k,
                     &(yk_k_matvec){.type = type,
                                    .w = m,
                                    .x = m,
                                    .q8 = {m, m, m},
                                    .y = m,
                                    .n = n,
                                    .n_rows = 16,
                                    .n_cols = 256,
                                    .x_stride = type == YK_TYPE_F16 ? 256 : 8,
                                    .y_stride = 16,
                                    .panel_bytes = 8192,
                                    .tile_bytes = 8192});
    must(t->launch(s, &c.launch));
    const char *name = launched();
    must(t->stream_sync(s));
    t->mem_free(gpu, YK_MEM_ACTIVATION, &m);
    t->close(gpu);
    return name;
}

/* Matrix units from 16 tokens on, for types that are rounded; never where the environment says so; not to be asked for by name. */
static void test_mma(void **state)
{
    (void)state;
    static const uint32_t sm[] = {75, 80, 86, 90, 120};
    yk_gpu *gpu;
    yk_gpu_kernel *k;
    for (uint32_t i = 0; i < sizeof sm / sizeof *sm; i++) {
        char settings[32];
        yk_modules_close(&modules);
        snprintf(settings, sizeof settings, "sm=%u", sm[i]);
        setenv("FAKE_CUDA", settings, 1);
        assert_int_equal(yk_modules_load(&modules, NULL, NULL), YK_OK);
        t = &cuda()->table;
        assert_string_equal(product_kernel(YK_TYPE_Q4_0, 15), "matvec_q4_0");
        assert_string_equal(product_kernel(YK_TYPE_Q4_0, 16), "mma_q4_0");
        assert_string_equal(product_kernel(YK_TYPE_Q4_0, 17), "mma_q4_0");
        assert_string_equal(product_kernel(YK_TYPE_Q6_K, 200), "mma_q6_k");
        assert_string_equal(product_kernel(YK_TYPE_F16, 200), "matmul_f16");
    }
    must(t->open(&gpu, 0, 1 << 20));
    assert_int_equal(t->kernel_get(gpu, "mma_q4_0", &k), YK_ERR_USAGE);
    t->close(gpu);
    yk_modules_close(&modules);
    setenv("YOKE_CUDA_MMA", "0", 1);
    assert_int_equal(yk_modules_load(&modules, NULL, NULL), YK_OK);
    t = &cuda()->table;
    assert_string_equal(product_kernel(YK_TYPE_Q4_0, 16), "matvec_q4_0");
    assert_string_equal(product_kernel(YK_TYPE_Q6_K, 200), "matmul_q6_k");
    unsetenv("YOKE_CUDA_MMA");
    yk_modules_close(&modules);
    setenv("FAKE_CUDA", "devices=2", 1);
    assert_int_equal(yk_modules_load(&modules, NULL, NULL), YK_OK);
    t = &cuda()->table;
}

/* Where OpenCL has the same card, `auto` takes CUDA's. */
static void test_doubles(void **state)
{
    (void)state;
    yk_device_info list[] = {
        {.backend = "cuda", .name = "cuda:0", .description = "NVIDIA A", .usable = true},
        {.backend = "cuda", .name = "cuda:1", .description = "NVIDIA A", .usable = true},
        {.backend = "opencl", .name = "opencl:0", .description = "NVIDIA A", .usable = true},
        {.backend = "opencl", .name = "opencl:1", .description = "Intel B", .usable = true},
    };
    static const bool want[] = {false, false, true, false};
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(yk_device_is_double(list, 4, i), want[i]);
    list[0].usable = list[1].usable = false; /* CUDA cannot use it */
    assert_false(yk_device_is_double(list, 4, 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reasons),
        cmocka_unit_test(test_devices),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_pageable),
        cmocka_unit_test(test_free_behind_wait),
        cmocka_unit_test(test_full_queue),
        cmocka_unit_test(test_shared_registration),
        cmocka_unit_test(test_mma),
        cmocka_unit_test(test_lost),
        cmocka_unit_test(test_doubles),
    };
    unsetenv("YOKE_CUDA_HOLD");
    unsetenv("YOKE_CUDA_MMA");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
