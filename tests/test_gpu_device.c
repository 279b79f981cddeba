/* The device table on one backend (first argument): loading, budget, copies and their order, events, mailboxes, failing
 * allocations, closing with work pending. Second argument: a folder with a module of another ABI named yoke-cuda.so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "src/base/clock.h"
#include "tests/gpu_rig.h"

static yk_rig rig;
static const char *backend, *old_folder;

static void must(yk_status st)
{
    if (st != YK_OK)
        fail_msg("%s: %s", yk_status_name(st), rig.t->last_error());
}

/* The call fails with the status and says why in one line. */
static void refused(yk_status got, yk_status want)
{
    assert_int_equal(got, want);
    assert_true(strlen(rig.t->last_error()) > 10);
    assert_null(strchr(rig.t->last_error(), '\n'));
}

static void test_info(void **state)
{
    (void)state;
    yk_gpu_info info;
    const uint32_t n = rig.t->count();
    assert_true(n >= 1);
    for (uint32_t i = 0; i < n; i++) {
        must(rig.t->info(i, &info));
        assert_true(info.name[0] && info.driver[0] && info.memory_bytes && info.max_alloc_bytes && info.compute_units &&
                    info.lanes);
        assert_true(info.max_group >= YK_K_GROUP && info.local_bytes >= 16384);
    }
    yk_gpu *gpu = rig.gpu;
    refused(rig.t->info(n, &info), YK_ERR_USAGE);
    refused(rig.t->open(&gpu, n, 1 << 20), YK_ERR_USAGE);
    assert_null(gpu);
}

static void test_budget(void **state)
{
    (void)state;
    yk_gpu *gpu;
    yk_gpu_mem a, b;
    uint64_t used[YK_MEM_N_CLASSES], budget;
    must(rig.t->open(&gpu, 0, 1 << 20));
    must(rig.t->mem_alloc(gpu, YK_MEM_WEIGHTS, 600000, &a));
    refused(rig.t->mem_alloc(gpu, YK_MEM_KV, 600000, &b), YK_ERR_MEMORY);
    assert_non_null(strstr(rig.t->last_error(), "budget"));
    assert_null(b.handle);
    refused(rig.t->mem_alloc(gpu, YK_MEM_KV, UINT64_MAX, &b), YK_ERR_MEMORY);
    refused(rig.t->mem_alloc(gpu, YK_MEM_KV, 0, &b), YK_ERR_USAGE);
    must(rig.t->mem_alloc(gpu, YK_MEM_KV, (1 << 20) - 600000, &b));
    rig.t->mem_used(gpu, used, &budget);
    assert_int_equal(used[YK_MEM_WEIGHTS], 600000);
    assert_int_equal(used[YK_MEM_KV], (1 << 20) - 600000);
    assert_int_equal(budget, 1 << 20);
    rig.t->mem_free(gpu, YK_MEM_WEIGHTS, &a);
    assert_null(a.handle);
    rig.t->mem_free(gpu, YK_MEM_KV, &b);
    must(rig.t->mem_alloc(gpu, YK_MEM_STAGING, 1 << 20, &a));
    rig.t->close(gpu); /* takes its memory with it */
}

/* Rounds of upload, two copies on the device and download on three streams, joined by events only; a wrong order shows in the
 * data. */
static void test_copies(void **state)
{
    (void)state;
    enum { ROUNDS = 60, N = 50000, SLOTS = 3 };
    yk_gpu_stream *up, *down;
    yk_gpu_event *sent[SLOTS], *moved[SLOTS], *back[SLOTS];
    void *in, *out;
    must(rig.t->stream_open(rig.gpu, YK_STREAM_TO_DEVICE, &up));
    must(rig.t->stream_open(rig.gpu, YK_STREAM_TO_HOST, &down));
    yk_gpu *pinned_on;
    must(rig.t->open(&pinned_on, 0, 1 << 20)); /* pinned memory is not device memory */
    must(rig.t->host_alloc(pinned_on, ROUNDS * N, &in));
    must(rig.t->host_alloc(pinned_on, ROUNDS * N, &out));
    for (int i = 0; i < SLOTS; i++) {
        must(rig.t->event_open(rig.gpu, &sent[i]));
        must(rig.t->event_open(rig.gpu, &moved[i]));
        must(rig.t->event_open(rig.gpu, &back[i]));
    }
    for (size_t i = 0; i < ROUNDS * N; i++)
        ((uint8_t *)in)[i] = (uint8_t)(i * 7 + i / N);
    const yk_gpu_mem m = {.handle = rig.mem.handle};
    for (uint32_t r = 0; r < ROUNDS; r++) {
        const uint32_t s = r % SLOTS;
        yk_gpu_mem a = m, b = m;
        a.offset = (uint64_t)s * N;
        b.offset = (uint64_t)(SLOTS + s) * N;
        must(rig.t->event_wait(up, moved[s])); /* the slot's earlier round; nothing for the first ones */
        must(rig.t->copy_to_device(up, a, (uint8_t *)in + (size_t)r * N, N));
        must(rig.t->event_record(up, sent[s]));
        must(rig.t->event_wait(rig.stream, sent[s]));
        must(rig.t->event_wait(rig.stream, back[s]));
        must(rig.t->copy_device(rig.stream, b, a, N));
        must(rig.t->fill(rig.stream, b, (uint8_t)r, 10));
        must(rig.t->event_record(rig.stream, moved[s]));
        must(rig.t->event_wait(down, moved[s]));
        must(rig.t->copy_to_host(down, (uint8_t *)out + (size_t)r * N, b, N));
        must(rig.t->event_record(down, back[s]));
    }
    must(rig.t->stream_flush(up));
    must(rig.t->stream_flush(rig.stream));
    must(rig.t->stream_sync(down));
    for (uint32_t r = 0; r < ROUNDS; r++) {
        uint8_t *i = (uint8_t *)in + (size_t)r * N;
        memset(i, (int)r, 10);
        assert_memory_equal(i, (uint8_t *)out + (size_t)r * N, N);
    }
    yk_gpu_mem edge = m;
    edge.offset = YK_RIG_BYTES - 10;
    refused(rig.t->copy_to_device(up, edge, in, 11), YK_ERR_USAGE);
    refused(rig.t->copy_to_host(down, out, edge, 11), YK_ERR_USAGE);
    refused(rig.t->copy_device(up, edge, m, 11), YK_ERR_USAGE);
    edge.offset = UINT64_MAX - 3;
    refused(rig.t->fill(up, edge, 0, 10), YK_ERR_USAGE);
    refused(rig.t->fill(up, (yk_gpu_mem){0}, 0, 1), YK_ERR_USAGE);
    for (int i = 0; i < SLOTS; i++) {
        rig.t->event_close(sent[i]);
        rig.t->event_close(moved[i]);
        rig.t->event_close(back[i]);
    }
    rig.t->host_free(pinned_on, in);
    rig.t->host_free(pinned_on, out);
    rig.t->close(pinned_on);
    rig.t->stream_close(up);
    rig.t->stream_close(down);
}

static void test_register(void **state)
{
    (void)state;
    static uint8_t data[8192];
    const yk_status st = rig.t->host_register(rig.gpu, data, sizeof data);
    if (st == YK_OK)
        rig.t->host_unregister(rig.gpu, data);
    else
        refused(st, YK_ERR_MEMORY);
    must(rig.t->copy_to_device(rig.stream, (yk_gpu_mem){.handle = rig.mem.handle}, data, sizeof data)); /* works all the same */
    must(rig.t->stream_sync(rig.stream));
}

static void test_events(void **state)
{
    (void)state;
    yk_gpu_event *a, *b;
    uint64_t ta, tb;
    must(rig.t->event_open(rig.gpu, &a));
    must(rig.t->event_open(rig.gpu, &b));
    refused(rig.t->event_time(a, &ta), YK_ERR_USAGE);
    const uint64_t before = yk_now_ns();
    must(rig.t->event_record(rig.stream, a));
    must(rig.t->fill(rig.stream, (yk_gpu_mem){.handle = rig.mem.handle}, 1, YK_RIG_BYTES));
    must(rig.t->event_record(rig.stream, b));
    must(rig.t->stream_sync(rig.stream));
    const uint64_t after = yk_now_ns();
    must(rig.t->event_time(a, &ta));
    must(rig.t->event_time(b, &tb));
    assert_true(ta < tb);
    assert_true(ta + 20000000 > before && tb < after + 20000000); /* clocks are matched to a few milliseconds */
    must(rig.t->event_record(rig.stream, a));                     /* an event may be recorded again */
    must(rig.t->stream_sync(rig.stream));
    must(rig.t->event_time(a, &ta));
    assert_true(ta >= tb);
    rig.t->event_close(a);
    rig.t->event_close(b);
}

static uint32_t value_of(uint32_t box)
{
    uint32_t v;
    must(rig.t->box_value(rig.gpu, box, &v));
    return v;
}

static void wait_value(uint32_t box, uint32_t want)
{
    const uint64_t end = yk_now_ns() + 10000000000u;
    while (value_of(box) < want)
        if (yk_now_ns() > end)
            fail_msg("mailbox %u stays at %u, want %u", box, value_of(box), want);
}

static void *post_later(void *arg)
{
    usleep(30000);
    return (void *)(intptr_t)rig.t->box_post(rig.gpu, 3, *(uint32_t *)arg);
}

static void post_from_thread(uint32_t value)
{
    pthread_t t;
    void *st;
    assert_int_equal(pthread_create(&t, NULL, post_later, &value), 0);
    assert_int_equal(pthread_join(t, &st), 0);
    assert_int_equal((intptr_t)st, YK_OK);
}

static void test_boxes(void **state)
{
    (void)state;
    yk_gpu_stream *other;
    const yk_gpu_mem a = {.handle = rig.mem.handle}, b = {.handle = rig.mem.handle, .offset = 4096};
    uint32_t seen[2] = {0};
    must(rig.t->stream_open(rig.gpu, YK_STREAM_TO_HOST, &other));
    must(rig.t->fill(rig.stream, b, 0, 4));
    must(rig.t->stream_sync(rig.stream));
    for (uint32_t v = 1; v <= 2; v++) { /* held twice; each part changes memory that the signal then shows */
        must(rig.t->box_wait(rig.stream, 3, v));
        must(rig.t->fill(rig.stream, a, (uint8_t)v, 4));
        must(rig.t->copy_device(rig.stream, b, a, 4));
        must(rig.t->copy_to_host(rig.stream, &seen[v - 1], b, 4));
        must(rig.t->box_signal(rig.stream, 4, v));
    }
    must(rig.t->stream_flush(rig.stream));
    usleep(30000);
    assert_int_equal(value_of(4), 0);
    assert_int_equal(value_of(3), 0); /* what the host posts is not what the device has signalled */
    post_from_thread(1);
    wait_value(4, 1);
    assert_int_equal(seen[0], 0x01010101);
    usleep(30000);
    assert_int_equal(value_of(4), 1);
    post_from_thread(2);
    wait_value(4, 2);
    assert_int_equal(seen[1], 0x02020202);

    /* Several waits on one box from two streams, released by value, not by order. */
    must(rig.t->box_wait(other, 5, 10));
    must(rig.t->box_signal(other, 6, 10));
    must(rig.t->box_wait(rig.stream, 5, 5));
    must(rig.t->box_signal(rig.stream, 7, 5));
    must(rig.t->box_wait(rig.stream, 5, 9));
    must(rig.t->box_signal(rig.stream, 7, 9));
    must(rig.t->stream_flush(other));
    must(rig.t->stream_flush(rig.stream));
    must(rig.t->box_post(rig.gpu, 5, 7));
    wait_value(7, 5);
    must(rig.t->box_post(rig.gpu, 5, 4)); /* values only grow */
    usleep(30000);
    assert_int_equal(value_of(7), 5);
    assert_int_equal(value_of(6), 0);
    must(rig.t->box_post(rig.gpu, 5, 10));
    wait_value(7, 9);
    wait_value(6, 10);
    must(rig.t->box_wait(rig.stream, 5, 8)); /* long since posted */
    must(rig.t->box_signal(rig.stream, 7, 3));
    must(rig.t->stream_sync(rig.stream));
    assert_int_equal(value_of(7), 9);
    refused(rig.t->box_wait(rig.stream, YK_GPU_MAILBOXES, 1), YK_ERR_USAGE);
    refused(rig.t->box_signal(rig.stream, YK_GPU_MAILBOXES, 1), YK_ERR_USAGE);
    refused(rig.t->box_post(rig.gpu, YK_GPU_MAILBOXES, 1), YK_ERR_USAGE);
    refused(rig.t->box_value(rig.gpu, YK_GPU_MAILBOXES, seen), YK_ERR_USAGE);
    rig.t->stream_close(other);
}

/* Two hundred hand-offs each way, enqueued before the first: the host answers each signal. */
static void test_ping_pong(void **state)
{
    (void)state;
    enum { N = 200 };
    const uint64_t live = yk_mem_live(YK_MEM_RUNTIME);
    for (uint32_t i = 1; i <= N; i++) {
        must(rig.t->box_signal(rig.stream, 8, i));
        must(rig.t->box_wait(rig.stream, 9, i));
    }
    must(rig.t->box_signal(rig.stream, 8, N + 1));
    const uint64_t start = yk_now_ns();
    for (uint32_t i = 1; i <= N; i++) {
        wait_value(8, i);
        assert_int_equal(value_of(8), i);
        must(rig.t->box_post(rig.gpu, 9, i));
    }
    wait_value(8, N + 1);
    printf("%s: hand-off there and back %.1f us\n", backend, (double)(yk_now_ns() - start) / N / 1e3);
    const uint64_t after = yk_mem_live(YK_MEM_RUNTIME);
    for (uint32_t i = N + 2; i <= 2 * N; i++) { /* steady work needs no more memory */
        must(rig.t->box_signal(rig.stream, 8, i));
        must(rig.t->box_wait(rig.stream, 9, i));
        must(rig.t->box_post(rig.gpu, 9, i));
        wait_value(8, i);
    }
    must(rig.t->stream_sync(rig.stream));
    assert_true(after >= live && yk_mem_live(YK_MEM_RUNTIME) <= after);
}

static void test_launch_checks(void **state)
{
    (void)state;
    yk_gpu_kernel *k;
    refused(rig.t->kernel_get(rig.gpu, "matvec_q9_z", &k), YK_ERR_USAGE);
    assert_null(k);
    k = yk_rig_kernel(&rig, "sigmoid");
    yk_k_call c;
    yk_k_call_sigmoid(&c, k, rig.mem, rig.mem, 10);
    c.launch.group_size = 32;
    refused(rig.t->launch(rig.stream, &c.launch), YK_ERR_USAGE);
    c.launch.group_size = YK_K_GROUP;
    c.launch.n_args = 2;
    refused(rig.t->launch(rig.stream, &c.launch), YK_ERR_USAGE);
    c.launch.n_args = 3;
    c.args[2].kind = YK_ARG_F32;
    refused(rig.t->launch(rig.stream, &c.launch), YK_ERR_USAGE);
    c.args[2].kind = YK_ARG_U32;
    must(rig.t->launch(rig.stream, &c.launch));
    c.launch.groups[1] = 0; /* nothing to do is no failure */
    must(rig.t->launch(rig.stream, &c.launch));
    must(rig.t->stream_sync(rig.stream));
}

/* Work held by a mailbox that nobody posts, copies behind it, another stream behind those: closing ends it all. */
static void test_close_pending(void **state)
{
    (void)state;
    static uint8_t data[1 << 16];
    const uint64_t live = yk_mem_live(YK_MEM_RUNTIME);
    for (int i = 0; i < 3; i++) {
        yk_gpu *gpu;
        yk_gpu_stream *s[2];
        yk_gpu_event *e, *unused;
        yk_gpu_mem m;
        void *pinned;
        must(rig.t->open(&gpu, 0, 1 << 20));
        must(rig.t->mem_alloc(gpu, YK_MEM_STAGING, sizeof data, &m));
        must(rig.t->host_alloc(gpu, 4096, &pinned));
        must(rig.t->stream_open(gpu, YK_STREAM_TO_DEVICE, &s[0]));
        must(rig.t->stream_open(gpu, YK_STREAM_COMPUTE, &s[1]));
        must(rig.t->event_open(gpu, &e));
        must(rig.t->event_open(gpu, &unused));
        must(rig.t->box_wait(s[0], 0, 1));
        for (int k = 0; k < 20; k++)
            must(rig.t->copy_to_device(s[0], m, data, sizeof data));
        must(rig.t->event_record(s[0], e));
        must(rig.t->event_wait(s[1], e));
        must(rig.t->fill(s[1], m, 1, sizeof data));
        must(rig.t->box_signal(s[1], 1, 1));
        must(rig.t->stream_flush(s[0]));
        must(rig.t->stream_flush(s[1]));
        if (i == 1)
            rig.t->event_close(e);
        if (i == 2)
            rig.t->stream_close(s[0]);
        rig.t->close(gpu);
    }
    assert_int_equal(yk_mem_live(YK_MEM_RUNTIME), live);
}

/* ---- Allocations that fail: the module is opened with calls of its own. ---- */

static _Atomic long left, blocks;

static void *limited_alloc(size_t bytes)
{
    if (atomic_load(&left) > 0 && atomic_fetch_sub(&left, 1) == 1)
        return NULL;
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (p) {
        memset(p, 0, (bytes + 63) / 64 * 64);
        atomic_fetch_add(&blocks, 1);
    }
    return p;
}

static void counted_free(void *p)
{
    if (p)
        atomic_fetch_sub(&blocks, 1);
    free(p);
}

static void no_log(yk_log_level level, const char *line)
{
    (void)level;
    (void)line;
}

/* Everything that allocates, on a device of its own. */
static yk_status use_all(const yk_device_table *t)
{
    yk_gpu *gpu;
    yk_gpu_stream *s;
    yk_gpu_event *e;
    yk_gpu_kernel *k;
    yk_gpu_mem m;
    void *pinned;
    yk_status st = t->open(&gpu, 0, 1 << 20);
    if (st != YK_OK) {
        assert_null(gpu);
        return st;
    }
    if ((st = t->stream_open(gpu, YK_STREAM_COMPUTE, &s)) == YK_OK && (st = t->event_open(gpu, &e)) == YK_OK &&
        (st = t->mem_alloc(gpu, YK_MEM_PLAN, 4096, &m)) == YK_OK && (st = t->host_alloc(gpu, 4096, &pinned)) == YK_OK &&
        (st = t->fill(s, m, 0, 4096)) == YK_OK && (st = t->kernel_get(gpu, "sigmoid", &k)) == YK_OK) {
        yk_k_call c;
        yk_k_call_sigmoid(&c, k, m, m, 16);
        if ((st = t->launch(s, &c.launch)) == YK_OK && (st = t->event_record(s, e)) == YK_OK &&
            (st = t->box_signal(s, 0, 1)) == YK_OK && (st = t->box_wait(s, 1, 1)) == YK_OK &&
            (st = t->copy_to_host(s, pinned, m, 64)) == YK_OK)
            st = t->box_post(gpu, 1, 1) == YK_OK ? t->stream_sync(s) : YK_ERR_RUNTIME;
        if (st == YK_OK && ((float *)pinned)[3] != 0.5f)
            st = YK_ERR_RUNTIME;
    }
    t->close(gpu);
    return st;
}

static void test_allocations_fail(void **state)
{
    (void)state;
    const yk_backend *b = yk_modules_find(rig.modules, backend);
    const yk_host_calls host = {
        .abi = YK_DEVICE_ABI, .size = sizeof host, .alloc = limited_alloc, .free = counted_free, .log = no_log};
    void *dl = dlopen(b->path, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(dl);
    yk_module_open_fn open_fn;
    *(void **)&open_fn = dlsym(dl, "yk_module_open");
    yk_device_table t;
    assert_int_equal(open_fn(YK_DEVICE_ABI, &host, &t), YK_OK);
    uint32_t n_failed = 0;
    for (long k = 1;; k++) {
        atomic_store(&left, k);
        const yk_status st = use_all(&t);
        assert_int_equal(atomic_load(&blocks), 0);
        if (st == YK_OK && atomic_load(&left) > 0)
            break; /* fewer than k allocations */
        assert_int_equal(st, YK_ERR_MEMORY);
        n_failed++;
    }
    atomic_store(&left, 0);
    assert_true(n_failed >= 8);
    assert_int_equal(open_fn(YK_DEVICE_ABI, &b->host, &t), YK_OK); /* the rig's calls again */
    assert_int_not_equal(open_fn(YK_DEVICE_ABI + 1, &b->host, &t), YK_OK);
    assert_int_equal(t.abi, YK_DEVICE_ABI);
    dlclose(dl);
}

/* ---- The loader ---- */

static const char *why_of(const yk_modules *m, const char *name)
{
    for (int i = 0; i < YK_N_BACKENDS; i++)
        if (strcmp(m->backends[i].name, name) == 0)
            return m->backends[i].why;
    return "";
}

static void test_loader(void **state)
{
    (void)state;
    yk_modules *m;
    char folder[] = "./gpu-test-XXXXXX", path[4096], both[8192];
    assert_non_null(mkdtemp(folder));

    /* A path that leads nowhere: the build folder is next. Without a wish for it, the null backend stays away. */
    setenv("YOKE_MODULE_PATH", "/nonexistent:", 1);
    assert_int_equal(yk_modules_load(&m, NULL, NULL), YK_OK);
    assert_non_null(strstr(why_of(m, "null"), "--device null"));
    assert_null(yk_modules_find(m, "null"));
    yk_modules_close(&m);
    assert_null(m);
    assert_int_equal(yk_modules_load(&m, &(yk_modules_opts){.null_options = "time,d=7;compute"}, NULL), YK_OK);
    assert_non_null(yk_modules_find(m, "null"));
    assert_int_equal(yk_modules_find(m, "null")->n_devices, 2);
    yk_modules_close(&m);

    /* Options that are wrong make the backend unusable, with a reason. */
    static const char *const wrong[] = {
        "",          "fast",           "time,d",   "time,d=",      "time,d=0", "time,vram=-3", "time,speed=3",
        "time,d=2x", "time,flops=nan", "compute;", "compute,mem=0"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(yk_modules_load(&m, &(yk_modules_opts){.null_options = wrong[i]}, NULL), YK_OK);
        assert_null(yk_modules_find(m, "null"));
        assert_non_null(strstr(why_of(m, "null"), "null device"));
        yk_modules_close(&m);
    }

    /* Another ABI; then a file that is no module, found first. */
    setenv("YOKE_MODULE_PATH", old_folder, 1);
    assert_int_equal(yk_modules_load(&m, NULL, NULL), YK_OK);
    assert_null(yk_modules_find(m, "cuda"));
    assert_non_null(strstr(why_of(m, "cuda"), "ABI"));
    yk_modules_close(&m);
    snprintf(path, sizeof path, "%s/yoke-cuda.so", folder);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs("not a library\n", f);
    fclose(f);
    snprintf(both, sizeof both, "%s:%s", folder, old_folder);
    setenv("YOKE_MODULE_PATH", both, 1);
    assert_int_equal(yk_modules_load(&m, NULL, NULL), YK_OK);
    assert_null(yk_modules_find(m, "cuda"));
    assert_non_null(strstr(why_of(m, "cuda"), path));
    yk_modules_close(&m);
    unlink(path);
    rmdir(folder);
    unsetenv("YOKE_MODULE_PATH");
    assert_int_equal(yk_modules_load(&m, NULL, NULL), YK_OK);
    for (int i = 0; i < YK_N_BACKENDS; i++) { /* beside the build, or said to be nowhere */
        const yk_backend *b = &m->backends[i];
        if (!b->path[0] && strcmp(b->name, "null") != 0)
            assert_non_null(strstr(b->why, "not found"));
        assert_true(b->usable || strlen(b->why) > 10);
    }
    yk_modules_close(&m);
    const yk_backend *own = yk_modules_find(rig.modules, backend); /* the rig's host calls and options again */
    yk_module_open_fn open_fn;
    yk_device_table t;
    *(void **)&open_fn = dlsym(own->dl, "yk_module_open");
    assert_int_equal(open_fn(YK_DEVICE_ABI, &own->host, &t), YK_OK);
}

/* ---- Kept binaries ---- */

/* Uses the kernel with a cache folder; returns the number of files in it and the path of one. */
static uint32_t with_cache(const char *folder, char *path, size_t size)
{
    yk_modules *m;
    yk_gpu *gpu;
    yk_gpu_kernel *k;
    assert_int_equal(yk_modules_load(&m, &(yk_modules_opts){.cache_dir = folder}, NULL), YK_OK);
    const yk_device_table *t = &yk_modules_find(m, "opencl")->table;
    must(t->open(&gpu, 0, 1 << 20));
    must(t->kernel_get(gpu, "rowmat", &k));
    t->close(gpu);
    yk_modules_close(&m);
    uint32_t n = 0;
    DIR *d = opendir(folder);
    if (!d)
        return 0;
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.')
            n++, snprintf(path, size, "%s/%s", folder, e->d_name);
    closedir(d);
    return n;
}

static void test_cache(void **state)
{
    (void)state;
    if (strcmp(backend, "opencl") != 0) {
        printf("SKIP: only OpenCL keeps binaries\n");
        return;
    }
    char folder[] = "./gpu-cache-XXXXXX", path[4096], again[4096];
    struct stat a, b;
    assert_non_null(mkdtemp(folder));
    assert_int_equal(with_cache(folder, path, sizeof path), 1);
    assert_int_equal(stat(path, &a), 0);
    assert_int_equal(with_cache(folder, again, sizeof again), 1); /* used, not written again */
    assert_string_equal(path, again);
    assert_int_equal(stat(path, &b), 0);
    assert_true(a.st_ino == b.st_ino && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec);
    for (int i = 0; i < 3; i++) { /* cut short, a byte changed, empty: compiled again and replaced */
        FILE *f = fopen(path, "r+b");
        assert_non_null(f);
        fseek(f, a.st_size / 2, SEEK_SET);
        const int c = fgetc(f);
        fseek(f, a.st_size / 2, SEEK_SET);
        if (i == 1)
            fputc(c ^ 1, f);
        fclose(f);
        if (i != 1)
            assert_int_equal(truncate(path, i ? 0 : a.st_size / 2), 0);
        stat(path, &a);
        assert_int_equal(with_cache(folder, again, sizeof again), 1);
        assert_int_equal(stat(path, &b), 0);
        assert_true(a.st_ino != b.st_ino);
        assert_int_equal(stat(path, &a), 0);
    }
    unlink(path);
    rmdir(folder);
    assert_int_equal(with_cache(folder, path, sizeof path), 0); /* a folder that is not there costs nothing but time */
}

int main(int argc, char **argv)
{
    backend = argc > 1 ? argv[1] : "null";
    old_folder = argc > 2 ? argv[2] : ".";
    const int e = yk_rig_open(&rig, backend);
    if (e)
        return e;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_info),      cmocka_unit_test(test_budget),        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_register),  cmocka_unit_test(test_events),        cmocka_unit_test(test_boxes),
        cmocka_unit_test(test_ping_pong), cmocka_unit_test(test_launch_checks), cmocka_unit_test(test_close_pending),
        cmocka_unit_test(test_loader),    cmocka_unit_test(test_cache),         cmocka_unit_test(test_allocations_fail),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    yk_rig_close(&rig);
    return failed;
}
