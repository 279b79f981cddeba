/* One device: products, launches, copies, hand-off, and both lanes at once. The memory copied is what the engine copies: not page-locked. */
#include <stdio.h>
#include <string.h>

#include "cpu/pack.h"
#include "gpu/kernels.h"
#include "profiler/profile.h"
#include "src/base/clock.h"

enum { BOX_TO_HOST, BOX_TO_DEVICE, N_STREAMS = 3, HAND_OFFS = 20, LAUNCHES = 100, SMALL_COPY = 4096, RESULTS = 4 << 20 };
static const uint64_t MOST_WEIGHTS = 256ull << 20, LEAST_WEIGHTS = 4ull << 20, PATIENCE_NS = 5000000000;

typedef struct bench {
    yk_profile_run *r;
    const yk_device_table *t;
    yk_machine_device *d;
    yk_gpu *gpu;
    yk_gpu_stream *compute, *up, *down;
    yk_gpu_event *begin, *end;
    yk_gpu_mem weights, x, y;
    yk_k_q8 q8;
    uint64_t weight_bytes;
    yk_cpu_bench *cpu;
    yk_error *err;
} bench;

static yk_status check(const bench *b, yk_status st, const char *what)
{
    if (st == YK_OK)
        return YK_OK;
    const char *text = b->t->last_error();
    return yk_fail(b->err, st, "measuring %s: %s: %s", b->d->name, what, text && *text ? text : yk_status_name(st));
}

#define GPU(call, what) YK_TRY(check(b, b->t->call, what))

/* ---- products ----------------------------------------------------------------------------------------------------------------------------- */

typedef struct product {
    yk_k_call call;
    uint64_t bytes;
} product;

static uint64_t row_panel_bytes(yk_type type)
{
    return yk_panel_bytes(type, YK_PROFILE_COLS);
}

/* One launch over about `bytes` of weights. */
static void make_product(const bench *b, yk_type type, yk_gpu_kernel *kernel, uint32_t n_tokens, uint64_t bytes, product *p)
{
    const uint64_t panel = row_panel_bytes(type), most = b->weight_bytes / panel;
    uint64_t panels = bytes / panel;
    const uint64_t rows_most = RESULTS / n_tokens / YK_TILE_ROWS;
    panels = panels < 1 ? 1 : panels > most ? most : panels;
    panels = panels > rows_most ? rows_most : panels;
    const uint32_t rows = (uint32_t)(panels * YK_TILE_ROWS);
    const bool rounded = yk_type_get(type)->quantised;
    const yk_k_matvec a = {.type = type,
                           .w = b->weights,
                           .x = b->x,
                           .q8 = b->q8,
                           .y = b->y,
                           .n = n_tokens,
                           .n_rows = rows,
                           .n_cols = YK_PROFILE_COLS,
                           .x_stride = rounded ? YK_PROFILE_COLS / 32 : YK_PROFILE_COLS,
                           .y_stride = rows,
                           .panel_bytes = (uint32_t)panel,
                           .tile_bytes = yk_tile_bytes(type, YK_TILE_COLS)};
    yk_k_call_matvec(&p->call, kernel, &a);
    p->bytes = panels * panel;
}

static yk_status time_product(const bench *b, const product *p, uint64_t *ns)
{
    const uint64_t begin = yk_now_ns();
    GPU(launch(b->compute, &p->call.launch), "a product");
    GPU(stream_sync(b->compute), "a product");
    *ns = yk_now_ns() - begin;
    *ns = *ns ? *ns : 1;
    return YK_OK;
}

static yk_status product_rate(const bench *b, yk_type type, yk_gpu_kernel *kernel, uint32_t n_tokens, double *rate)
{
    product p;
    yk_samples s = {0};
    uint64_t ns;
    make_product(b, type, kernel, n_tokens, 1 << 20, &p);
    YK_TRY(time_product(b, &p, &ns)); /* warms the code */
    YK_TRY(time_product(b, &p, &ns));
    make_product(b, type, kernel, n_tokens, (uint64_t)((double)p.bytes * (double)b->r->pass_ns / (double)ns), &p);
    while (s.n < b->r->passes) {
        YK_TRY(time_product(b, &p, &ns));
        s.v[s.n++] = (double)p.bytes * 1e9 / (double)ns;
    }
    *rate = yk_samples_median(&s, &b->r->m->noisy);
    return YK_OK;
}

static yk_status products(bench *b)
{
    static const uint32_t tokens[3] = {1, 8, YK_PROFILE_TOKENS};
    bool any = false;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
        any |= b->r->o->types[t] && yk_k_matvec_name((yk_type)t) && yk_pack_has((yk_type)t);
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
        yk_gpu_kernel *kernel;
        double rate[3];
        if (!(any ? b->r->o->types[t] : t == YK_TYPE_Q8_0) || !yk_k_matvec_name((yk_type)t) || !yk_pack_has((yk_type)t))
            continue;
        GPU(kernel_get(b->gpu, yk_k_matvec_name((yk_type)t), &kernel), yk_k_matvec_name((yk_type)t));
        for (int i = 0; i < 3; i++) {
            YK_TRY(yk_profile_tell(b->r, b->err));
            YK_TRY(product_rate(b, (yk_type)t, kernel, tokens[i], &rate[i]));
        }
        yk_profile_fill_buckets(b->d->rates.product[t], rate);
    }
    return YK_OK;
}

/* ---- launches, copies, hand-off ----------------------------------------------------------------------------------------------------------- */

static yk_status launch_cost(bench *b)
{
    yk_samples s = {0};
    yk_gpu_kernel *kernel;
    yk_k_call call;
    GPU(kernel_get(b->gpu, "sigmoid", &kernel), "sigmoid");
    yk_k_call_sigmoid(&call, kernel, b->x, b->y, YK_K_GROUP);
    GPU(launch(b->compute, &call.launch), "a launch");
    GPU(stream_sync(b->compute), "a launch");
    while (s.n < b->r->passes) {
        const uint64_t begin = yk_now_ns();
        for (int i = 0; i < LAUNCHES; i++)
            GPU(launch(b->compute, &call.launch), "a launch");
        GPU(stream_sync(b->compute), "launches");
        s.v[s.n++] = (double)(yk_now_ns() - begin) / LAUNCHES;
    }
    b->d->launch_ns = yk_samples_median(&s, &b->r->m->noisy);
    b->d->rates.fixed_ns = 0; /* launch_ns holds all of a small kernel */
    return YK_OK;
}

static yk_status copy_once(const bench *b, bool up, uint64_t bytes, uint64_t *ns)
{
    yk_gpu_stream *stream = up ? b->up : b->down;
    const uint64_t begin = yk_now_ns();
    if (up)
        GPU(copy_to_device(stream, b->weights, b->cpu->weights.base, bytes), "a copy to the device");
    else
        GPU(copy_to_host(stream, b->cpu->weights.base, b->weights, bytes), "a copy to the host");
    GPU(stream_sync(stream), "a copy");
    *ns = yk_now_ns() - begin;
    *ns = *ns ? *ns : 1;
    return YK_OK;
}

/* Latency from small copies, rate from large ones less that. The device's weights are those of the CPU: copies change nothing. */
static yk_status copy_rate(const bench *b, bool up, double *rate, double *latency_ns)
{
    const uint64_t large = b->weight_bytes < 32ull << 20 ? b->weight_bytes : 32ull << 20;
    yk_samples small = {0}, big = {0};
    uint64_t ns;
    bool ignored = false;
    YK_TRY(copy_once(b, up, large, &ns));
    while (small.n < b->r->passes) {
        YK_TRY(copy_once(b, up, SMALL_COPY, &ns));
        small.v[small.n++] = (double)ns;
    }
    *latency_ns = yk_samples_median(&small, &ignored);
    while (big.n < b->r->passes) {
        YK_TRY(copy_once(b, up, large, &ns));
        const double rest = (double)ns - *latency_ns;
        big.v[big.n++] = (double)large * 1e9 / (rest > 1 ? rest : 1);
    }
    *rate = yk_samples_median(&big, &b->r->m->noisy);
    return YK_OK;
}

static yk_status wait_box(const bench *b, uint32_t box, uint32_t value)
{
    uint32_t now = 0;
    for (const uint64_t begin = yk_now_ns(); now < value;) {
        GPU(box_value(b->gpu, box, &now), "a mailbox");
        if (now < value && yk_now_ns() - begin > PATIENCE_NS)
            return yk_fail(b->err, YK_ERR_RUNTIME, "measuring %s: no answer through the mailbox in %d s", b->d->name,
                           (int)(PATIENCE_NS / 1000000000));
    }
    return YK_OK;
}

static yk_status hand_off(bench *b)
{
    yk_samples s = {0};
    for (uint32_t pass = 0, value = 0; pass < b->r->passes; pass++) {
        for (uint32_t i = 1; i <= HAND_OFFS; i++) {
            GPU(box_signal(b->compute, BOX_TO_HOST, value + i), "a mailbox");
            GPU(box_wait(b->compute, BOX_TO_DEVICE, value + i), "a mailbox");
        }
        const uint64_t begin = yk_now_ns();
        GPU(stream_flush(b->compute), "a mailbox");
        for (uint32_t i = 1; i <= HAND_OFFS; i++) {
            YK_TRY(wait_box(b, BOX_TO_HOST, value + i));
            GPU(box_post(b->gpu, BOX_TO_DEVICE, value + i), "a mailbox");
        }
        GPU(stream_sync(b->compute), "mailboxes");
        s.v[s.n++] = (double)(yk_now_ns() - begin) / HAND_OFFS;
        value += HAND_OFFS;
    }
    bool ignored = false;
    b->d->hand_off_ns = yk_samples_median(&s, &ignored);
    return YK_OK;
}

/* ---- both lanes at once -------------------------------------------------------------------------------------------------------------------- */

static double smaller(double a, double b)
{
    return a < b ? a : b;
}

/* The CPU computes while copies run; both rates over the time that both were busy. */
static yk_status overlap(bench *b)
{
    const uint64_t chunk = b->weight_bytes < 8ull << 20 ? b->weight_bytes : 8ull << 20;
    const double want_s = (double)b->r->pass_ns * b->r->passes / 1e9;
    uint32_t chunks = (uint32_t)smaller(want_s * b->d->to_device_bytes_per_s / (double)chunk + 1, 4096), type = YK_TYPE_LIMIT;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT && type == YK_TYPE_LIMIT; t++)
        type = b->r->m->rates.product[t][0] > 0 ? t : type;
    if (type == YK_TYPE_LIMIT)
        return YK_OK;
    const uint64_t piece = (uint64_t)(b->r->m->rates.product[type][0] * 2e-3); /* passes of two milliseconds */
    uint64_t bytes = 0, ns, done, cpu_ns = 0, t0, t1;
    uint32_t value = 0;
    GPU(event_record(b->up, b->begin), "an event");
    for (uint32_t i = 0; i < chunks; i++)
        GPU(copy_to_device(b->up, b->weights, b->cpu->weights.base, chunk), "a copy to the device");
    GPU(event_record(b->up, b->end), "an event");
    GPU(box_signal(b->up, BOX_TO_HOST + 2, 1), "a mailbox");
    GPU(stream_flush(b->up), "copies");
    for (const uint64_t begin = yk_now_ns(); !value && yk_now_ns() - begin < PATIENCE_NS;) {
        YK_TRY(yk_cpu_bench_pass(b->cpu, (yk_type)type, 1, piece, &ns, &done, b->err));
        bytes += done;
        cpu_ns += ns;
        GPU(box_value(b->gpu, BOX_TO_HOST + 2, &value), "a mailbox");
    }
    GPU(stream_sync(b->up), "copies");
    GPU(event_time(b->begin, &t0), "an event");
    GPU(event_time(b->end, &t1), "an event");
    if (t1 <= t0 || !cpu_ns)
        return YK_OK; /* the device did not work beside the host: nothing to say, the planner's rule holds */
    const double copies = (double)chunk * chunks * 1e9 / (double)(t1 - t0), cpu = (double)bytes * 1e9 / (double)cpu_ns;
    b->d->overlap_to_device_bytes_per_s = smaller(copies, b->d->to_device_bytes_per_s);
    b->d->overlap_cpu_bytes_per_s = smaller(cpu, b->r->m->rates.read_bytes_per_s);
    return YK_OK;
}

/* ---- a device ------------------------------------------------------------------------------------------------------------------------------ */

static yk_status reserve(bench *b)
{
    const uint64_t n = (uint64_t)YK_PROFILE_TOKENS * YK_PROFILE_COLS;
    GPU(mem_alloc(b->gpu, YK_MEM_WEIGHTS, b->weight_bytes, &b->weights), "memory");
    GPU(mem_alloc(b->gpu, YK_MEM_ACTIVATION, n * sizeof(float), &b->x), "memory");
    GPU(mem_alloc(b->gpu, YK_MEM_ACTIVATION, sizeof(float) * RESULTS, &b->y), "memory");
    GPU(mem_alloc(b->gpu, YK_MEM_ACTIVATION, n, &b->q8.q), "memory");
    GPU(mem_alloc(b->gpu, YK_MEM_ACTIVATION, n / 32 * sizeof(float), &b->q8.scale), "memory");
    GPU(mem_alloc(b->gpu, YK_MEM_ACTIVATION, n / 16 * sizeof(int16_t), &b->q8.sum), "memory");
    for (uint64_t at = 0; at < b->weight_bytes; at += b->cpu->weights.size) {
        const uint64_t left = b->weight_bytes - at, part = left < b->cpu->weights.size ? left : b->cpu->weights.size;
        const yk_gpu_mem to = {b->weights.handle, b->weights.offset + at, part};
        GPU(copy_to_device(b->up, to, b->cpu->weights.base, part), "a copy to the device");
    }
    GPU(copy_to_device(b->up, b->x, b->cpu->x, n * sizeof(float)), "a copy to the device");
    GPU(copy_to_device(b->up, b->q8.q, b->cpu->q8.q, n), "a copy to the device");
    GPU(copy_to_device(b->up, b->q8.scale, b->cpu->q8.scale, n / 32 * sizeof(float)), "a copy to the device");
    GPU(copy_to_device(b->up, b->q8.sum, b->cpu->q8.sum, n / 16 * sizeof(int16_t)), "a copy to the device");
    GPU(stream_sync(b->up), "a copy to the device");
    return YK_OK;
}

static yk_status measure(bench *b)
{
    GPU(stream_open(b->gpu, YK_STREAM_COMPUTE, &b->compute), "a stream");
    GPU(stream_open(b->gpu, YK_STREAM_TO_DEVICE, &b->up), "a stream");
    GPU(stream_open(b->gpu, YK_STREAM_TO_HOST, &b->down), "a stream");
    GPU(event_open(b->gpu, &b->begin), "an event");
    GPU(event_open(b->gpu, &b->end), "an event");
    YK_TRY(reserve(b));
    YK_TRY(products(b));
    YK_TRY(yk_profile_tell(b->r, b->err));
    YK_TRY(launch_cost(b));
    YK_TRY(hand_off(b));
    YK_TRY(yk_profile_tell(b->r, b->err));
    YK_TRY(copy_rate(b, true, &b->d->to_device_bytes_per_s, &b->d->to_device_ns));
    YK_TRY(copy_rate(b, false, &b->d->to_host_bytes_per_s, &b->d->to_host_ns));
    if (!b->d->same_silicon && !b->d->shared_memory) /* what is copied is read */
        b->d->to_device_bytes_per_s = smaller(b->d->to_device_bytes_per_s, b->r->m->rates.read_bytes_per_s);
    YK_TRY(yk_profile_tell(b->r, b->err));
    return overlap(b);
}

/* Everything else ends with the device. */
static void close_bench(bench *b)
{
    yk_gpu_stream *const streams[N_STREAMS] = {b->compute, b->up, b->down};
    yk_gpu_mem *const mem[] = {&b->x, &b->y, &b->q8.q, &b->q8.scale, &b->q8.sum};
    if (!b->gpu)
        return;
    b->t->box_post(b->gpu, BOX_TO_DEVICE, UINT32_MAX);
    for (int i = 0; i < N_STREAMS; i++)
        if (streams[i])
            b->t->stream_sync(streams[i]);
    if (b->begin)
        b->t->event_close(b->begin);
    if (b->end)
        b->t->event_close(b->end);
    for (int i = 0; i < N_STREAMS; i++)
        if (streams[i])
            b->t->stream_close(streams[i]);
    for (size_t i = 0; i < sizeof mem / sizeof *mem; i++)
        if (mem[i]->handle)
            b->t->mem_free(b->gpu, YK_MEM_ACTIVATION, mem[i]);
    if (b->weights.handle)
        b->t->mem_free(b->gpu, YK_MEM_WEIGHTS, &b->weights);
    b->t->close(b->gpu);
}

yk_status yk_profile_device(yk_profile_run *r, const yk_backend *backend, uint32_t index, yk_cpu_bench *cpu, yk_error *err)
{
    yk_machine *m = r->m;
    YK_FAIL_IF(m->n_devices == YK_MAX_DEVICES, err, YK_ERR_RUNTIME, "more than %d devices", YK_MAX_DEVICES);
    yk_machine_device *d = &m->devices[m->n_devices];
    bench own = {.r = r, .t = &backend->table, .d = d, .cpu = cpu, .err = err}, *b = &own;
    yk_gpu_info info;
    *d = (yk_machine_device){
        .launch_ns = -1, .hand_off_ns = -1, .to_device_ns = -1, .to_host_ns = -1, .rates = {.fixed_ns = -1}};
    snprintf(d->name, sizeof d->name, "%s:%u", backend->name, index);
    snprintf(d->backend, sizeof d->backend, "%s", backend->name);
    GPU(info(index, &info), "its description");
    snprintf(d->description, sizeof d->description, "%s", info.name);
    snprintf(d->driver, sizeof d->driver, "%s", info.driver);
    d->memory_bytes = info.memory_bytes;
    d->same_silicon = info.same_silicon;
    d->shared_memory = info.shared_memory;
    const uint64_t free_bytes = info.memory_free_bytes ? info.memory_free_bytes : info.memory_bytes;
    uint64_t bytes = info.same_silicon ? cpu->weights.size : MOST_WEIGHTS;
    bytes = bytes > free_bytes / 4 ? free_bytes / 4 : bytes;
    bytes = info.max_alloc_bytes && bytes > info.max_alloc_bytes ? info.max_alloc_bytes : bytes;
    b->weight_bytes = bytes / 4096 * 4096;
    YK_FAIL_IF(b->weight_bytes < LEAST_WEIGHTS, err, YK_ERR_RUNTIME, "measuring %s: it has too little free memory", d->name);
    GPU(open(&b->gpu, index, b->weight_bytes + (64u << 20)), "opening it");
    const yk_status st = measure(b);
    close_bench(b);
    if (st == YK_OK)
        m->n_devices++;
    return st;
}
