/* membw.c - how fast this machine reads memory.
 *
 * Each worker owns a part of a buffer larger than the caches (first touched by itself, so on its node) and sums it piece by
 * piece. All workers begin a piece together; the rate of a pass is all bytes over the time from the first begin to the last
 * end. The best of many short passes counts: whatever else the machine does only makes a pass slower. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "cpu/ref/ref.h"
#include "cpu/topology.h"
#include "profiler/membw.h"
#include "src/base/clock.h"

enum { MAX_WORKERS = YK_MAX_CORES, MAX_MS = 600000 };
static const uint64_t PIECE = 8u << 20; /* bytes a worker reads in a pass: about a millisecond */

typedef struct worker {
    struct yk_read_bench *bench;
    pthread_t thread;
    uint32_t index, cpu;
    uint8_t *part;
    uint64_t at, begin_ns, end_ns;
} worker;

struct yk_read_bench {
    worker *workers;
    uint32_t n, started;
    uint32_t active;     /* workers that read in this pass; changed between passes */
    uint64_t part_bytes; /* a multiple of PIECE */
    yk_arena arena;
    bool touch; /* the memory is the bench's own and has to be there */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum { WAIT, RUN, ABORT } state;     /* under lock */
    pthread_barrier_t barrier, finished; /* the workers and the caller of a pass */
    bool stop;
    _Atomic uint64_t sum; /* keeps the sums alive */
};

YK_CLONES static uint64_t sum_words(const uint64_t *p, uint64_t n)
{
    uint64_t s = 0;
    for (uint64_t i = 0; i < n; i++)
        s += p[i];
    return s;
}

static bool told_to_run(yk_read_bench *b)
{
    pthread_mutex_lock(&b->lock);
    while (b->state == WAIT)
        pthread_cond_wait(&b->changed, &b->lock);
    const bool run = b->state == RUN;
    pthread_mutex_unlock(&b->lock);
    return run;
}

static void *work(void *arg)
{
    worker *w = arg;
    yk_read_bench *b = w->bench;
    if (!told_to_run(b))
        return NULL;
    cpu_set_t set;
    CPU_ZERO(&set);
    if (w->cpu < CPU_SETSIZE) {
        CPU_SET(w->cpu, &set);
        pthread_setaffinity_np(pthread_self(), sizeof set, &set); /* refused: measure wherever it runs */
    }
    if (b->touch)
        memset(w->part, 1, b->part_bytes);
    pthread_barrier_wait(&b->finished);
    for (;;) {
        pthread_barrier_wait(&b->barrier);
        if (b->stop)
            return NULL;
        if (w->index < b->active) {
            w->begin_ns = yk_now_ns();
            const uint64_t s = sum_words((const uint64_t *)(const void *)(w->part + w->at), PIECE / 8);
            w->end_ns = yk_now_ns();
            w->at = w->at + PIECE < b->part_bytes ? w->at + PIECE : 0;
            atomic_fetch_add_explicit(&b->sum, s, memory_order_relaxed);
        }
        pthread_barrier_wait(&b->finished);
    }
}

void yk_read_bench_close(yk_read_bench **bench)
{
    yk_read_bench *b = *bench;
    *bench = NULL;
    if (!b)
        return;
    if (b->started) {
        b->stop = true;
        pthread_barrier_wait(&b->barrier);
        for (uint32_t i = 0; i < b->started; i++)
            pthread_join(b->workers[i].thread, NULL);
        pthread_cond_destroy(&b->changed);
        pthread_mutex_destroy(&b->lock);
        pthread_barrier_destroy(&b->barrier);
        pthread_barrier_destroy(&b->finished);
    }
    yk_arena_close(&b->arena);
    yk_free(b->workers);
    yk_free(b);
}

static yk_status start_workers(yk_read_bench *b, yk_error *err)
{
    uint32_t started = 0;
    int rc = pthread_barrier_init(&b->barrier, NULL, b->n + 1);
    if (rc != 0)
        return yk_fail(err, YK_ERR_RUNTIME, "measuring memory: no barrier for %u workers (error %d)", b->n, rc);
    pthread_barrier_init(&b->finished, NULL, b->n + 1);
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->changed, NULL);
    for (; started < b->n && rc == 0; started += rc == 0)
        rc = pthread_create(&b->workers[started].thread, NULL, work, &b->workers[started]);
    pthread_mutex_lock(&b->lock);
    b->state = rc == 0 ? RUN : ABORT;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
    if (rc == 0) {
        b->started = started;
        pthread_barrier_wait(&b->finished); /* memory has been touched */
        return YK_OK;
    }
    for (uint32_t i = 0; i < started; i++)
        pthread_join(b->workers[i].thread, NULL);
    pthread_cond_destroy(&b->changed);
    pthread_mutex_destroy(&b->lock);
    pthread_barrier_destroy(&b->barrier);
    pthread_barrier_destroy(&b->finished);
    return yk_fail(err, YK_ERR_RUNTIME, "measuring memory: thread %u of %u cannot be started (error %d); use fewer threads",
                   started + 1, b->n, rc);
}

yk_status yk_read_bench_open(yk_read_bench **out, const yk_read_bench_opts *o, yk_error *err)
{
    yk_status st;
    yk_read_bench *b = *out = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *b);
    if (!b)
        return yk_fail_memory(err, sizeof *b, "measuring memory");
    b->n = o->n_cpus;
    b->workers = yk_alloc(YK_MEM_RUNTIME, b->n, sizeof *b->workers);
    if (!b->workers) {
        st = yk_fail_memory(err, b->n * sizeof *b->workers, "measuring memory");
        goto out;
    }
    const uint64_t pieces = o->bytes / b->n / PIECE;
    b->part_bytes = (pieces > 1 ? pieces : 1) * PIECE;
    uint8_t *base = o->base;
    b->touch = !base || o->bytes < b->n * b->part_bytes;
    if (b->touch) {
        YK_TRY_GOTO(yk_arena_open(&b->arena, YK_MEM_RUNTIME, b->n * b->part_bytes, o->huge, err), out);
        if (!o->huge)
            madvise(b->arena.base, b->arena.size, MADV_NOHUGEPAGE); /* refused: there are none */
        base = b->arena.base;
    }
    for (uint32_t i = 0; i < b->n; i++)
        b->workers[i] = (worker){.bench = b, .index = i, .cpu = o->cpus[i], .part = base + i * b->part_bytes};
    YK_TRY_GOTO(start_workers(b, err), out);
    return YK_OK;
out:
    yk_read_bench_close(out);
    return st;
}

void yk_read_bench_pass(yk_read_bench *b, uint32_t threads, uint64_t *begin_ns, uint64_t *end_ns, uint64_t *bytes)
{
    b->active = threads && threads < b->n ? threads : b->n;
    pthread_barrier_wait(&b->barrier);
    pthread_barrier_wait(&b->finished);
    *begin_ns = UINT64_MAX;
    *end_ns = 0;
    for (uint32_t i = 0; i < b->active; i++) {
        *begin_ns = b->workers[i].begin_ns < *begin_ns ? b->workers[i].begin_ns : *begin_ns;
        *end_ns = b->workers[i].end_ns > *end_ns ? b->workers[i].end_ns : *end_ns;
    }
    *bytes = PIECE * b->active;
}

/* Twice the last cache, at least 256 MiB, at most a quarter of what is free. */
static uint64_t buffer_bytes(void)
{
    yk_cpu_info info;
    uint64_t bytes = 256u << 20;
    if (yk_topology_info(&info, NULL) != YK_OK)
        return bytes;
    if (info.cache_bytes[2] <= UINT64_MAX / 2 && 2 * info.cache_bytes[2] > bytes)
        bytes = 2 * info.cache_bytes[2];
    if (info.memory_available_bytes && bytes > info.memory_available_bytes / 4)
        bytes = info.memory_available_bytes / 4;
    return bytes;
}

YK_API yk_status yk_measure_read_rate(uint32_t threads, uint32_t ms, double *bytes_per_s, yk_error *err)
{
    YK_FAIL_IF(!bytes_per_s, err, YK_ERR_USAGE, "yk_measure_read_rate: bytes_per_s is NULL");
    *bytes_per_s = 0;
    YK_FAIL_IF(threads > MAX_WORKERS, err, YK_ERR_USAGE, "yk_measure_read_rate: %u threads; at most %d", threads, MAX_WORKERS);
    YK_FAIL_IF(ms == 0 || ms > MAX_MS, err, YK_ERR_USAGE, "yk_measure_read_rate: %u ms; 1 to %d", ms, MAX_MS);
    uint32_t n_cores = 0;
    uint32_t *cpus = yk_alloc(YK_MEM_RUNTIME, YK_MAX_CORES, sizeof *cpus);
    if (!cpus)
        return yk_fail_memory(err, YK_MAX_CORES * sizeof *cpus, "the list of cores");
    yk_status st;
    yk_read_bench *b = NULL;
    YK_TRY_GOTO(yk_topology_cores(cpus, YK_MAX_CORES, &n_cores, err), out);
    n_cores = n_cores < YK_MAX_CORES ? n_cores : YK_MAX_CORES;
    const uint32_t n = threads ? threads : n_cores;
    for (uint32_t i = n_cores; i < n; i++)
        cpus[i] = cpus[i % n_cores];
    const yk_read_bench_opts o = {.cpus = cpus, .n_cpus = n, .bytes = buffer_bytes(), .huge = true};
    YK_TRY_GOTO(yk_read_bench_open(&b, &o, err), out);
    const uint64_t deadline = yk_now_ns() + ms * 1000000ull;
    for (uint64_t begin, end = 0, bytes; end < deadline;) {
        yk_read_bench_pass(b, n, &begin, &end, &bytes);
        const double rate = (double)bytes * 1e9 / (double)(end > begin ? end - begin : 1);
        *bytes_per_s = rate > *bytes_per_s ? rate : *bytes_per_s;
    }
out:
    yk_read_bench_close(&b);
    yk_free(cpus);
    return st;
}
