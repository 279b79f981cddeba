/* The null device's modelled time: costs, overlap of lanes, dependencies, no drift. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/kernels.h"
#include "gpu/modules.h"
#include "src/base/clock.h"

/* Dilation 10; a launch 10 us and 1 us for 100 kB or 10 MFLOP, a copy 20 us and 1 us for 10 kB: real times are ten times that.
 */
#define OPTIONS "time,d=10,vram=100e9,flops=10e12,link=10e9,launch=10e-6,copy=20e-6,mem=64e9"

enum { COMPUTE_A, COMPUTE_B, UP_A, UP_B, DOWN, N_STREAMS };

static yk_modules *modules;
static const yk_device_table *t;
static yk_gpu *gpu;
static yk_gpu_stream *stream[N_STREAMS];
static yk_gpu_event *event[8];
static yk_gpu_mem mem;
static yk_gpu_kernel *kernel;
static uint32_t gate;

static void must(yk_status st)
{
    if (st != YK_OK)
        fail_msg("%s: %s", yk_status_name(st), t->last_error());
}

/* Everything enqueued before open_gate() starts at the same instant. */
static void hold(uint32_t s)
{
    must(t->box_wait(stream[s], 0, gate + 1));
}

static uint64_t open_gate(void)
{
    must(t->box_post(gpu, 0, ++gate));
    return yk_now_ns();
}

static void launch(uint32_t s, uint64_t bytes, uint64_t flops)
{
    yk_k_call c;
    yk_k_call_sigmoid(&c, kernel, mem, mem, 1);
    c.launch.cost_bytes = bytes;
    c.launch.cost_flops = flops;
    must(t->launch(stream[s], &c.launch));
}

static void record(uint32_t s, uint32_t e)
{
    must(t->event_record(stream[s], event[e]));
}

static uint64_t time_of(uint32_t e)
{
    uint64_t ns;
    must(t->event_time(event[e], &ns));
    return ns;
}

static void sync_all(void)
{
    for (int s = 0; s < N_STREAMS; s++)
        must(t->stream_sync(stream[s]));
}

/* Modelled times are exact; a nanosecond may be lost to rounding for each command. */
static void took(uint32_t from, uint32_t to, uint64_t want_ns)
{
    const int64_t d = (int64_t)(time_of(to) - time_of(from)) - (int64_t)want_ns;
    if (d < -100 || d > 100)
        fail_msg("events %u to %u: %lld ns, want %llu", from, to, (long long)(time_of(to) - time_of(from)),
                 (unsigned long long)want_ns);
}

static void test_costs(void **state)
{
    (void)state;
    uint8_t data[1000];
    memset(data, 7, sizeof data);
    hold(COMPUTE_A);
    record(COMPUTE_A, 0);
    launch(COMPUTE_A, 20000000, 1000000000); /* 200 us by bytes, 100 by operations */
    record(COMPUTE_A, 1);
    launch(COMPUTE_A, 20000000, 5000000000); /* 500 us by operations */
    record(COMPUTE_A, 2);
    must(t->fill(stream[COMPUTE_A], mem, 1, 10000000)); /* 100 us */
    record(COMPUTE_A, 3);
    must(t->copy_device(stream[COMPUTE_A], mem, mem, 10000000)); /* read and write: 200 us */
    record(COMPUTE_A, 4);
    must(t->copy_to_host(stream[COMPUTE_A], data, mem, 1000)); /* 0.1 us */
    record(COMPUTE_A, 5);
    const uint64_t opened = open_gate();
    sync_all();
    const uint64_t end = yk_now_ns();
    took(0, 1, 2100000);
    took(1, 2, 5100000);
    took(2, 3, 1100000);
    took(3, 4, 2100000);
    took(4, 5, 201000);
    assert_true(end >= time_of(5));                                /* nothing is done before its time */
    assert_true(time_of(0) <= opened && end - opened < 100000000); /* 10.6 ms, and waking up */
    for (size_t i = 0; i < sizeof data; i++)
        assert_int_equal(data[i], 0);
}

/* Lanes run at the same time, two streams of one lane after each other, and a dependency adds up. */
static void test_lanes(void **state)
{
    (void)state;
    static uint8_t data[1 << 20];
    for (uint32_t s = 0; s < N_STREAMS; s++)
        hold(s);
    record(COMPUTE_A, 0);
    launch(COMPUTE_A, 99000000, 0); /* 1 ms */
    record(COMPUTE_A, 1);
    must(t->copy_to_device(stream[UP_A], mem, data, 980000)); /* 118 us */
    record(UP_A, 2);
    must(t->copy_to_device(stream[UP_B], mem, data, 980000));
    record(UP_B, 3);
    must(t->copy_to_host(stream[DOWN], data, mem, 980000));
    record(DOWN, 4);
    must(t->event_wait(stream[COMPUTE_B], event[1])); /* the same lane as A, behind it anyway */
    launch(COMPUTE_B, 9000000, 0);                    /* 100 us */
    record(COMPUTE_B, 5);
    must(t->event_wait(stream[DOWN], event[5]));
    must(t->copy_to_host(stream[DOWN], data, mem, 0));
    record(DOWN, 6);
    open_gate();
    sync_all();
    took(0, 1, 10000000);
    took(0, 4, 1180000);
    const uint32_t first = time_of(2) < time_of(3) ? 2 : 3;
    took(0, first, 1180000);
    took(0, 5 - first, 2360000);
    took(1, 5, 1000000);
    took(5, 6, 200000);
}

/* Three hundred short commands end exactly when their costs say, however late threads wake up. */
static void test_no_drift(void **state)
{
    (void)state;
    hold(COMPUTE_A);
    record(COMPUTE_A, 0);
    for (int i = 0; i < 300; i++) {
        launch(COMPUTE_A, 0, 0); /* 10 us */
        must(t->box_signal(stream[COMPUTE_A], 1, (uint32_t)i + 1));
    }
    record(COMPUTE_A, 1);
    const uint64_t opened = open_gate();
    sync_all();
    const uint64_t wall = yk_now_ns() - opened;
    took(0, 1, 300 * 100000);
    assert_true(wall >= 29000000);
    printf("300 commands of 100 us: %.2f ms of 30\n", (double)wall / 1e6);
}

/* A stream that nothing holds starts when its work is enqueued, not earlier. */
static void test_idle(void **state)
{
    (void)state;
    launch(COMPUTE_A, 0, 0);
    record(COMPUTE_A, 0);
    sync_all();
    const uint64_t before = yk_now_ns();
    launch(COMPUTE_A, 0, 0);
    record(COMPUTE_A, 1);
    sync_all();
    assert_true(time_of(1) >= before + 100000);
}

/* Memory is counted but never touched: 40 GB cost nothing. */
static void test_memory(void **state)
{
    (void)state;
    yk_gpu_mem big, more;
    must(t->mem_alloc(gpu, YK_MEM_WEIGHTS, 40000000000u, &big));
    assert_int_equal(t->mem_alloc(gpu, YK_MEM_WEIGHTS, 30000000000u, &more), YK_ERR_MEMORY);
    big.offset = 39000000000u;
    must(t->copy_to_device(stream[UP_A], big, "x", 1));
    must(t->fill(stream[COMPUTE_A], big, 3, 1000));
    sync_all();
    t->mem_free(gpu, YK_MEM_WEIGHTS, &big);
}

int main(void)
{
    yk_error err;
    if (yk_modules_load(&modules, &(yk_modules_opts){.null_options = OPTIONS}, &err) != YK_OK ||
        !yk_modules_find(modules, "null"))
        return 1;
    t = &yk_modules_find(modules, "null")->table;
    if (t->open(&gpu, 0, UINT64_MAX) != YK_OK || t->mem_alloc(gpu, YK_MEM_STAGING, 1 << 26, &mem) != YK_OK ||
        t->kernel_get(gpu, "sigmoid", &kernel) != YK_OK)
        return 1;
    static const yk_gpu_stream_kind kinds[N_STREAMS] = {YK_STREAM_COMPUTE, YK_STREAM_COMPUTE, YK_STREAM_TO_DEVICE,
                                                        YK_STREAM_TO_DEVICE, YK_STREAM_TO_HOST};
    for (int s = 0; s < N_STREAMS; s++)
        if (t->stream_open(gpu, kinds[s], &stream[s]) != YK_OK)
            return 1;
    for (int i = 0; i < 8; i++)
        if (t->event_open(gpu, &event[i]) != YK_OK)
            return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_costs), cmocka_unit_test(test_lanes),
                                       cmocka_unit_test(test_no_drift), cmocka_unit_test(test_idle),
                                       cmocka_unit_test(test_memory)};
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    t->close(gpu);
    yk_modules_close(&modules);
    return failed;
}
