/* membw.c - how fast this machine reads memory.
 *
 * Each worker owns a part of a buffer larger than the caches (first touched by itself, so on its node) and sums it piece by
 * piece. All workers begin a piece together; the rate of a pass is all bytes over the time from the first begin to the last
 * end. The best of many short passes counts: whatever else the machine does only makes a pass slower. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "cpu/ref/ref.h"
#include "cpu/topology.h"
#include "src/base/clock.h"
#include "src/base/mem.h"

enum { MAX_WORKERS = YK_MAX_CORES, MAX_MS = 600000 };
static const uint64_t PIECE = 8u << 20; /* bytes a worker reads in a pass: about a millisecond */

typedef struct worker {
    struct bench *bench;
    pthread_t thread;
    uint32_t cpu;
    uint8_t *part;
    uint64_t begin_ns, end_ns;
} worker;

typedef struct bench {
    worker *workers;
    uint32_t n;
    uint64_t part_bytes; /* a multiple of PIECE */
    uint64_t ms;
    double best;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum { WAIT, RUN, ABORT } state; /* under lock */
    pthread_barrier_t barrier;
    _Atomic bool stop;
    _Atomic uint64_t sum; /* keeps the sums alive */
} bench;

YK_CLONES static uint64_t sum_words(const uint64_t *p, uint64_t n)
{
    uint64_t s = 0;
    for (uint64_t i = 0; i < n; i++)
        s += p[i];
    return s;
}

static bool told_to_run(bench *b)
{
    pthread_mutex_lock(&b->lock);
    while (b->state == WAIT)
        pthread_cond_wait(&b->changed, &b->lock);
    const bool run = b->state == RUN;
    pthread_mutex_unlock(&b->lock);
    return run;
}

/* After a pass, by worker 0 while the others wait. */
static void judge_pass(bench *b, uint64_t deadline_ns)
{
    uint64_t begin = UINT64_MAX, end = 0;
    for (uint32_t i = 0; i < b->n; i++) {
        begin = b->workers[i].begin_ns < begin ? b->workers[i].begin_ns : begin;
        end = b->workers[i].end_ns > end ? b->workers[i].end_ns : end;
    }
    const double rate = (double)(PIECE * b->n) * 1e9 / (double)(end > begin ? end - begin : 1);
    b->best = rate > b->best ? rate : b->best;
    if (end >= deadline_ns)
        atomic_store(&b->stop, true);
}

static void *work(void *arg)
{
    worker *w = arg;
    bench *b = w->bench;
    if (!told_to_run(b))
        return NULL;
    cpu_set_t set;
    CPU_ZERO(&set);
    if (w->cpu < CPU_SETSIZE) {
        CPU_SET(w->cpu, &set);
        pthread_setaffinity_np(pthread_self(), sizeof set, &set); /* refused: measure wherever it runs */
    }
    memset(w->part, 1, b->part_bytes);
    pthread_barrier_wait(&b->barrier);
    const uint64_t deadline = yk_now_ns() + b->ms * 1000000u;
    for (uint64_t at = 0;; at = at + PIECE < b->part_bytes ? at + PIECE : 0) {
        pthread_barrier_wait(&b->barrier);
        if (atomic_load(&b->stop))
            return NULL;
        w->begin_ns = yk_now_ns();
        const uint64_t s = sum_words((const uint64_t *)(const void *)(w->part + at), PIECE / 8);
        w->end_ns = yk_now_ns();
        atomic_fetch_add_explicit(&b->sum, s, memory_order_relaxed);
        pthread_barrier_wait(&b->barrier);
        if (w == b->workers)
            judge_pass(b, deadline);
    }
}

static yk_status run_workers(bench *b, yk_error *err)
{
    uint32_t started = 0;
    int rc = pthread_barrier_init(&b->barrier, NULL, b->n);
    if (rc != 0)
        return yk_fail(err, YK_ERR_RUNTIME, "measuring memory: no barrier for %u workers (error %d)", b->n, rc);
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->changed, NULL);
    for (; started < b->n && rc == 0; started += rc == 0)
        rc = pthread_create(&b->workers[started].thread, NULL, work, &b->workers[started]);
    pthread_mutex_lock(&b->lock);
    b->state = rc == 0 ? RUN : ABORT;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(b->workers[i].thread, NULL);
    pthread_cond_destroy(&b->changed);
    pthread_mutex_destroy(&b->lock);
    pthread_barrier_destroy(&b->barrier);
    if (rc != 0)
        return yk_fail(err, YK_ERR_RUNTIME, "measuring memory: thread %u of %u cannot be started (error %d); use fewer threads",
                       started + 1, b->n, rc);
    return YK_OK;
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
    bench b = {.ms = ms};
    yk_arena arena = {0};
    YK_TRY_GOTO(yk_topology_cores(cpus, YK_MAX_CORES, &n_cores, err), out);
    n_cores = n_cores < YK_MAX_CORES ? n_cores : YK_MAX_CORES;
    b.n = threads ? threads : n_cores;
    const uint64_t pieces = buffer_bytes() / b.n / PIECE;
    b.part_bytes = (pieces > 1 ? pieces : 1) * PIECE;
    b.workers = yk_alloc(YK_MEM_RUNTIME, b.n, sizeof *b.workers);
    if (!b.workers) {
        st = yk_fail_memory(err, b.n * sizeof *b.workers, "measuring memory");
        goto out;
    }
    YK_TRY_GOTO(yk_arena_open(&arena, YK_MEM_RUNTIME, b.n * b.part_bytes, true, err), out);
    for (uint32_t i = 0; i < b.n; i++)
        b.workers[i] = (worker){.bench = &b, .cpu = cpus[i % n_cores], .part = arena.base + i * b.part_bytes};
    YK_TRY_GOTO(run_workers(&b, err), out);
    *bytes_per_s = b.best;
out:
    yk_arena_close(&arena);
    yk_free(b.workers);
    yk_free(cpus);
    return st;
}
