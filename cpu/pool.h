/* pool.h - the CPU lane's workers.
 *
 * A job is a list of stages run in order; a stage is a number of slices that may run in any order on any worker. All workers walk through the
 * job together: they claim slices of the current stage one by one, and when none is left they go on as soon as every slice has a result.
 * There is no barrier that waits for a worker, only for results: a slice whose worker has been descheduled is computed again by whoever waits.
 *
 * Slices are therefore idempotent: slice i run by worker w reads results of earlier stages and writes only to memory of worker w. The
 * worker that finishes first becomes the slice's owner (one compare-and-swap); consumers ask yk_stage_owner where the result lies. A late
 * worker still writes only to its own memory, and its result is dropped.
 *
 * What a slice may rely on: pointers and sizes it finds are always valid; values may be garbage if (and only if) it is late. So a slice never
 * uses a value as an index without a bound. */
#ifndef YK_CPU_POOL_H
#define YK_CPU_POOL_H

#include <stdatomic.h>

#include "cpu/topology.h"

typedef struct yk_pool yk_pool;
typedef struct yk_stage yk_stage;
typedef struct yk_job yk_job;

typedef struct yk_worker {
    uint32_t index;    /* 0: the thread that called yk_pool_run */
    yk_pool *pool;
    const yk_job *job;
    void *scratch;     /* [scratch_bytes] of this worker, kept between slices of a stage */
} yk_worker;

struct yk_stage {
    const char *name;
    /* Called by each worker once before its first slice of the stage; returns the number of slices, the same for every worker (it may
     * depend on results of earlier stages), at most max_slices. NULL: max_slices. */
    uint32_t (*prepare)(const yk_stage *stage, yk_worker *worker);
    void (*run)(const yk_stage *stage, uint32_t slice, yk_worker *worker);
    void *arg;
    uint32_t layer;      /* for run and traces */
    uint32_t max_slices; /* 0: the stage is skipped */
    uint32_t first_owner; /* index of its slices in the job's owner table */
};

struct yk_job {
    yk_stage *stages;
    uint32_t n_stages;
    _Atomic(uint64_t) *owners; /* [sum of max_slices]: generation << 16 | worker + 1 */
    uint64_t generation;       /* set by yk_pool_run */
    const _Atomic(bool) *cancel; /* looked at between stages; may be NULL */
};

typedef struct yk_pool_opts {
    uint32_t n_workers; /* 0: physical cores */
    size_t scratch_bytes; /* per worker, 64-byte aligned, fault-in by its worker */
    bool pin;
} yk_pool_opts;

/* Start workers (n_workers - 1 threads; the caller of yk_pool_run is worker 0). */
yk_status yk_pool_open(yk_pool **out, const yk_pool_opts *opts, yk_error *err);
void yk_pool_close(yk_pool **pool);
uint32_t yk_pool_size(const yk_pool *pool);
/* Slices computed again so far. */
uint64_t yk_pool_rescued(const yk_pool *pool);

/* Run all stages. Returns when the last slice has its result. YK_ERR_CANCELLED: the flag was seen, the job has ended early. */
yk_status yk_pool_run(yk_pool *pool, yk_job *job, yk_error *err);
/* Wait until no worker is inside a slice, also late ones: needed before memory that slices share is given another meaning. */
void yk_pool_quiesce(yk_pool *pool);

/* The worker whose memory holds the result of a slice of an earlier stage. */
static inline uint32_t yk_stage_owner(const yk_job *job, const yk_stage *stage, uint32_t slice)
{
    const uint64_t v = atomic_load_explicit(&job->owners[stage->first_owner + slice], memory_order_acquire);
    const uint32_t w = (uint32_t)(v & 0xffff);
    return w ? w - 1 : 0;
}

#endif
