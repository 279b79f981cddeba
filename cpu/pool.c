#include "cpu/pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "src/base/clock.h"
#include "src/base/mem.h"

/* How long an idle worker looks for a new job before it sleeps, and how long a waiter looks for a result before it gives up its time slice:
 * more than that costs a busy machine more than it saves (docs/SPEED.md, overlap). */
enum { IDLE_SPIN_NS = 20000, WAIT_SPIN_NS = 20000 };
/* A slice is overdue when it takes this much longer than the waiter's own slices of the stage did. */
enum { OVERDUE_MIN_NS = 30000, OVERDUE_UNKNOWN_NS = 100000 };

/* ThreadSanitizer rightly sees a late worker read what others write by now; its values are dropped, but the tool cannot know. */
#if defined(__SANITIZE_THREAD__)
#define YK_RESCUE 0
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define YK_RESCUE 0
#endif
#endif
#ifndef YK_RESCUE
#define YK_RESCUE 1
#endif

typedef struct worker_state {
    _Alignas(64) yk_worker worker;
    _Atomic(const yk_job *) inside; /* job this worker is in, or NULL */
    pthread_t thread;
    bool started;
} worker_state;

struct yk_pool {
    _Alignas(64) _Atomic(uint32_t) ticket; /* counts jobs; idle workers wait for a change */
    _Atomic(yk_job *) job;
    _Atomic(uint32_t) sleepers;
    _Atomic(bool) stop;
    _Alignas(64) _Atomic(uint64_t) rescued;
    uint64_t next_serial;
    uint32_t n, n_cores;
    yk_arena scratch;
    worker_state *workers;
    yk_stage_watch watch; /* is told of stages, or NULL */
    void *watch_user;
};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic(uint32_t) *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic(uint32_t) *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* ---- one worker's way through a job ---------------------------------------------------------------------------------------------- */

typedef struct walk {
    yk_pool *pool;
    yk_job *job;
    yk_worker *worker;
    uint64_t slice_ns; /* mean time of this worker's slices of the stage, 0: unknown */
} walk;

static bool claim(walk *w, uint32_t s, uint64_t serial, uint32_t n, uint32_t *slice)
{
    _Atomic(uint64_t) *c = &w->job->claims[s];
    uint64_t v = atomic_load_explicit(c, memory_order_relaxed);
    while (v >> 16 == serial && (v & 0xffff) < n)
        if (atomic_compare_exchange_weak_explicit(c, &v, v + 1, memory_order_acq_rel, memory_order_relaxed)) {
            *slice = (uint32_t)(v & 0xffff);
            return true;
        }
    return false;
}

/* Publish this worker as the owner of a slice; false when somebody else was first. */
static bool publish(walk *w, const yk_stage *st, uint64_t serial, uint32_t slice)
{
    _Atomic(uint64_t) *o = &w->job->owners[st->first_owner + slice];
    uint64_t v = atomic_load_explicit(o, memory_order_relaxed);
    while (v >> 16 < serial)
        if (atomic_compare_exchange_weak_explicit(o, &v, serial << 16 | (w->worker->index + 1), memory_order_acq_rel,
                                                  memory_order_relaxed))
            return true;
    return false;
}

static bool has_result(const walk *w, const yk_stage *st, uint64_t serial, uint32_t slice)
{
    return atomic_load_explicit(&w->job->owners[st->first_owner + slice], memory_order_acquire) >> 16 >= serial;
}

static uint32_t front_of(const walk *w)
{
    return atomic_load_explicit(&w->job->front, memory_order_acquire);
}

static void advance_front(walk *w, uint32_t s)
{
    uint32_t v = atomic_load_explicit(&w->job->front, memory_order_relaxed);
    while (v < s && !atomic_compare_exchange_weak_explicit(&w->job->front, &v, s, memory_order_acq_rel, memory_order_relaxed))
        ;
}

static uint32_t end_of(const walk *w)
{
    return atomic_load_explicit(&w->job->end, memory_order_acquire);
}

static bool job_is_over(const walk *w)
{
    return atomic_load_explicit(&w->job->cancelled, memory_order_acquire) || front_of(w) >= end_of(w);
}

/* All slices of the stage are claimed: wait for results, and compute overdue ones again. False when the job went on without us. */
static bool wait_stage(walk *w, uint32_t s, uint64_t serial, uint32_t n)
{
    const yk_stage *st = &w->job->stages[s];
    const uint64_t overdue_ns = w->slice_ns ? OVERDUE_MIN_NS + w->slice_ns + w->slice_ns / 2 : OVERDUE_UNKNOWN_NS;
    uint64_t since = 0;
    for (uint32_t c = 0, spins = 0; c < n;) {
        if (has_result(w, st, serial, c)) {
            c++;
            continue;
        }
        if (++spins < 64) {
            relax();
            continue;
        }
        spins = 0;
        if (front_of(w) > s || job_is_over(w))
            return false;
        const uint64_t now = yk_now_ns();
        if (!since)
            since = now;
        if (YK_RESCUE && now - since > overdue_ns) {
            st->run(st, c, w->worker);
            if (publish(w, st, serial, c))
                atomic_fetch_add_explicit(&w->pool->rescued, 1, memory_order_relaxed);
        } else if (now - since > WAIT_SPIN_NS) {
            sched_yield();
        }
    }
    return true;
}

static bool run_stage(walk *w, uint32_t s)
{
    const yk_stage *st = &w->job->stages[s];
    const uint64_t serial = w->job->first_serial + s;
    const uint32_t n = st->prepare ? st->prepare(st, w->worker) : st->max_slices;
    uint64_t start = 0;
    uint32_t slice, mine = 0;
    w->slice_ns = 0;
    while (claim(w, s, serial, n, &slice)) {
        if (has_result(w, st, serial, slice)) /* published from outside */
            continue;
        if (!start)
            start = yk_now_ns();
        st->run(st, slice, w->worker);
        publish(w, st, serial, slice);
        mine++;
    }
    if (mine)
        w->slice_ns = (yk_now_ns() - start) / mine + 1;
    return wait_stage(w, s, serial, n);
}

static void walk_job(yk_pool *pool, yk_job *job, yk_worker *worker)
{
    walk w = {pool, job, worker, 0};
    worker->job = job;
    for (uint32_t s = front_of(&w); s < end_of(&w);) {
        if (job->cancel && atomic_load_explicit(job->cancel, memory_order_relaxed))
            atomic_store_explicit(&job->cancelled, true, memory_order_release);
        if (atomic_load_explicit(&job->cancelled, memory_order_acquire))
            return;
        if (run_stage(&w, s)) {
            uint64_t never = 0;
            if (job->done_ns)
                atomic_compare_exchange_strong(&job->done_ns[s], &never, yk_now_ns());
            advance_front(&w, s + 1);
        }
        const uint32_t f = front_of(&w);
        s = f > s ? f : s;
    }
}

/* ---- threads ------------------------------------------------------------------------------------------------------------------------ */

static void *worker_main(void *arg)
{
    worker_state *ws = arg;
    yk_pool *pool = ws->worker.pool;
    uint32_t seen = 0;
    for (;;) {
        const uint64_t start = yk_now_ns();
        uint32_t now, spins = 0;
        while ((now = atomic_load_explicit(&pool->ticket, memory_order_acquire)) == seen) {
            relax();
            if (++spins < 64)
                continue;
            spins = 0;
            if (yk_now_ns() - start < IDLE_SPIN_NS)
                continue;
            atomic_fetch_add(&pool->sleepers, 1);
            futex_wait(&pool->ticket, seen);
            atomic_fetch_sub(&pool->sleepers, 1);
        }
        seen = now;
        if (atomic_load_explicit(&pool->stop, memory_order_acquire))
            return NULL;
        /* Announce first, then look whether the job is still the current one: yk_pool_wait_job relies on this order. */
        yk_job *job = atomic_load(&pool->job);
        atomic_store(&ws->inside, job);
        if (job && atomic_load(&pool->job) == job)
            walk_job(pool, job, &ws->worker);
        atomic_store(&ws->inside, NULL);
    }
}

static void pin_to(pthread_t thread, uint32_t cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu % CPU_SETSIZE, &set);
    pthread_setaffinity_np(thread, sizeof set, &set); /* a refusal costs speed, not correctness */
}

static yk_status start_workers(yk_pool *pool, const yk_pool_opts *opts, const uint32_t *cpus, uint32_t n_cpus, yk_error *err)
{
    const bool pin = opts->pin && pool->n <= n_cpus && pool->n > 1;
    for (uint32_t i = 0; i < pool->n; i++) {
        worker_state *ws = &pool->workers[i];
        ws->worker = (yk_worker){.index = i, .pool = pool};
        if (opts->scratch_bytes && !(ws->worker.scratch = yk_arena_take(&pool->scratch, opts->scratch_bytes, 1, 4096)))
            return yk_fail_memory(err, opts->scratch_bytes, "a worker's scratch");
        if (i == 0)
            continue;
        const int e = pthread_create(&ws->thread, NULL, worker_main, ws);
        YK_FAIL_IF(e, err, YK_ERR_RUNTIME, "worker thread %u cannot be started: %s; use fewer threads", i, strerror(e));
        ws->started = true;
        if (pin)
            pin_to(ws->thread, cpus[i]);
    }
    return YK_OK;
}

yk_status yk_pool_open(yk_pool **out, const yk_pool_opts *opts, yk_error *err)
{
    *out = NULL;
    uint32_t cpus[YK_MAX_WORKERS], n_cpus = 0;
    YK_TRY(yk_topology_cores(cpus, YK_MAX_WORKERS, &n_cpus, err));
    if (n_cpus > YK_MAX_WORKERS)
        n_cpus = YK_MAX_WORKERS;
    const uint32_t n = opts->n_workers ? opts->n_workers : n_cpus;
    YK_FAIL_IF(n > YK_MAX_WORKERS, err, YK_ERR_USAGE, "%u threads asked for; at most %d are supported", n, YK_MAX_WORKERS);
    yk_pool *pool = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *pool);
    if (!pool)
        return yk_fail_memory(err, sizeof *pool, "the worker pool");
    pool->n = n;
    pool->n_cores = n_cpus;
    pool->next_serial = 1;
    size_t scratch = 0;
    yk_status st = YK_OK;
    pool->workers = yk_alloc(YK_MEM_RUNTIME, n, sizeof *pool->workers);
    if (!pool->workers || __builtin_mul_overflow(opts->scratch_bytes + 4096, (size_t)n, &scratch))
        st = yk_fail_memory(err, n * sizeof *pool->workers, "the worker pool");
    if (st == YK_OK)
        st = yk_arena_open(&pool->scratch, YK_MEM_RUNTIME, scratch, false, err);
    if (st == YK_OK)
        st = start_workers(pool, opts, cpus, n_cpus, err);
    if (st != YK_OK) {
        yk_pool_close(&pool);
        return st;
    }
    *out = pool;
    return YK_OK;
}

void yk_pool_close(yk_pool **pool)
{
    yk_pool *p = *pool;
    if (!p)
        return;
    atomic_store(&p->stop, true);
    atomic_fetch_add(&p->ticket, 1);
    futex_wake_all(&p->ticket);
    for (uint32_t i = 1; p->workers && i < p->n; i++)
        if (p->workers[i].started)
            pthread_join(p->workers[i].thread, NULL);
    yk_arena_close(&p->scratch);
    yk_free(p->workers);
    yk_free(p);
    *pool = NULL;
}

uint32_t yk_pool_size(const yk_pool *pool)
{
    return pool->n;
}
uint32_t yk_pool_cores(const yk_pool *pool)
{
    return pool->n_cores;
}
void yk_pool_watch(yk_pool *pool, yk_stage_watch watch, void *user)
{
    pool->watch = watch;
    pool->watch_user = user;
}

uint64_t yk_pool_rescued(const yk_pool *pool)
{
    return atomic_load(&pool->rescued);
}

void yk_pool_begin(yk_pool *pool, yk_job *job)
{
    yk_pool_wait_job(pool, job);
    job->first_serial = pool->next_serial;
    pool->next_serial += job->n_stages;
    for (uint32_t s = 0; s < job->n_stages; s++) {
        atomic_store_explicit(&job->claims[s], (job->first_serial + s) << 16, memory_order_relaxed);
        if (job->done_ns)
            atomic_store_explicit(&job->done_ns[s], 0, memory_order_relaxed);
    }
    atomic_store(&job->front, 0);
    atomic_store(&job->end, 0);
    atomic_store(&job->cancelled, false);
}

void yk_pool_publish(yk_job *job, uint32_t stage, uint32_t slice, uint32_t owner)
{
    atomic_store_explicit(&job->owners[job->stages[stage].first_owner + slice], (job->first_serial + stage) << 16 | (owner + 1),
                          memory_order_release);
}

static void report_stages(const yk_pool *pool, const yk_job *job, uint32_t first, uint32_t end, uint64_t start_ns)
{
    for (uint32_t s = first; s < end; s++) {
        const uint64_t done = atomic_load(&job->done_ns[s]);
        if (job->stages[s].max_slices && done > start_ns)
            pool->watch(pool->watch_user, &job->stages[s], start_ns, done);
        start_ns = done > start_ns ? done : start_ns;
    }
}

yk_status yk_pool_advance(yk_pool *pool, yk_job *job, uint32_t end, yk_error *err)
{
    const bool watched = pool->watch && job->done_ns;
    const uint64_t start_ns = watched ? yk_now_ns() : 0;
    const uint32_t first = atomic_load(&job->front);
    atomic_store(&job->end, end);
    if (pool->n > 1) {
        atomic_store(&pool->job, job);
        atomic_fetch_add(&pool->ticket, 1);
        if (atomic_load(&pool->sleepers))
            futex_wake_all(&pool->ticket);
    }
    walk_job(pool, job, &pool->workers[0].worker);
    atomic_store(&pool->job, NULL);
    if (watched)
        report_stages(pool, job, first, front_of(&(walk){.job = job}), start_ns);
    YK_FAIL_IF(atomic_load(&job->cancelled) && front_of(&(walk){.job = job}) < end, err, YK_ERR_CANCELLED, "cancelled");
    return YK_OK;
}

yk_status yk_pool_run(yk_pool *pool, yk_job *job, yk_error *err)
{
    yk_pool_begin(pool, job);
    return yk_pool_advance(pool, job, job->n_stages, err);
}

void yk_pool_wait_job(yk_pool *pool, const yk_job *job)
{
    for (uint32_t i = 1; i < pool->n; i++)
        while (atomic_load(&pool->workers[i].inside) == job)
            sched_yield();
}
