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
 * uses a value as an index without a bound. Memory that only one stage kind writes may be used again for the same stage kind of the next
 * layer; memory that a job describes may change only when yk_pool_wait_job has returned for it. */
#ifndef YK_CPU_POOL_H
#define YK_CPU_POOL_H

#include <stdatomic.h>

#include "cpu/topology.h"

enum { YK_MAX_WORKERS = 256 };

typedef struct yk_pool yk_pool;
typedef struct yk_stage yk_stage;
typedef struct yk_job yk_job;

typedef struct yk_worker {
    uint32_t index; /* 0: the thread that called yk_pool_run */
    yk_pool *pool;
    const yk_job *job;
    void *scratch; /* [scratch_bytes] of this worker, kept between the slices of a stage */
} yk_worker;

struct yk_stage {
    const char *name;
    /* Called by each worker before its first slice of the stage; returns the number of slices, the same for every worker (it may
     * depend on results of earlier stages), at most max_slices. NULL: max_slices. */
    uint32_t (*prepare)(const yk_stage *stage, yk_worker *worker);
    void (*run)(const yk_stage *stage, uint32_t slice, yk_worker *worker);
    void *arg;
    uint32_t layer; /* for run and traces */
    uint32_t max_slices;
    uint32_t
        first_owner; /* index of its slices in the job's owner table; stages of one kind in different layers may share a range */
};

struct yk_job {
    yk_stage *stages;
    uint32_t n_stages;
    _Atomic(uint64_t) *owners;   /* stage serial << 16 | worker + 1 */
    _Atomic(uint64_t) *claims;   /* [n_stages]: stage serial << 16 | next slice */
    const _Atomic(bool) *cancel; /* looked at between stages; may be NULL */
    _Atomic(uint64_t) *done_ns;  /* [n_stages] when each had all results; NULL: nobody wants to know */
    uint64_t first_serial;       /* set by yk_pool_begin: serial of stage 0; serials are never used twice by a pool */
    _Atomic(uint32_t) front;     /* stage that the foremost worker has reached */
    _Atomic(uint32_t) end;       /* stages that may run now: 0 .. end - 1 */
    _Atomic(bool) cancelled;
};

enum { YK_MAX_SLICES = 0xfff0 }; /* of one stage */

typedef struct yk_pool_opts {
    uint32_t n_workers;   /* 0: physical cores; at most YK_MAX_WORKERS */
    size_t scratch_bytes; /* per worker, 64-byte aligned */
    bool pin;             /* pin worker i to core i, where there are enough cores */
} yk_pool_opts;

/* Start workers (n_workers - 1 threads; the caller of yk_pool_run is worker 0). */
yk_status yk_pool_open(yk_pool **out, const yk_pool_opts *opts, yk_error *err);
void yk_pool_close(yk_pool **pool);
uint32_t yk_pool_size(const yk_pool *pool);
/* Physical cores this process could use when the pool was opened, at most YK_MAX_WORKERS. */
uint32_t yk_pool_cores(const yk_pool *pool);
/* Slices computed again so far. */
uint64_t yk_pool_rescued(const yk_pool *pool);

/* Make a job ready; the caller then runs it in one or several parts. The job, and all its stages point to, must live on until yk_pool_wait_job or
 * yk_pool_close. Waits for workers that are late in an earlier run of the same job. */
void yk_pool_begin(yk_pool *pool, yk_job *job);
/* Run the stages up to `end` (those before the last call's end have run already). Returns when the last slice has its result.
 * YK_ERR_CANCELLED: the flag was seen, the job ended early. Stages behind `end` may be changed until the call that runs them. */
yk_status yk_pool_advance(yk_pool *pool, yk_job *job, uint32_t end, yk_error *err);
/* Give a slice of a stage its result from outside, before the call that runs it: `owner` is the number that consumers get, of the size of the pool or
 * above. A stage all of whose slices have results costs nothing. */
void yk_pool_publish(yk_job *job, uint32_t stage, uint32_t slice, uint32_t owner);
/* Begin and run all stages. */
yk_status yk_pool_run(yk_pool *pool, yk_job *job, yk_error *err);
/* Have every stage with slices of a job with done_ns reported, by the thread that calls yk_pool_advance: when the stage before had all its results
 * (or the call began) and when it had its own. NULL: off. */
typedef void (*yk_stage_watch)(void *user, const yk_stage *stage, uint64_t start_ns, uint64_t end_ns);
void yk_pool_watch(yk_pool *pool, yk_stage_watch watch, void *user);
/* Wait until no worker is inside the job any more, late ones included. */
void yk_pool_wait_job(yk_pool *pool, const yk_job *job);

/* The worker (or publisher) whose memory holds the result of a slice of an earlier stage. */
static inline uint32_t yk_stage_owner(const yk_job *job, const yk_stage *stage, uint32_t slice)
{
    const uint64_t v = atomic_load_explicit(&job->owners[stage->first_owner + slice], memory_order_acquire);
    const uint32_t w = (uint32_t)(v & 0xffff);
    return w ? w - 1 : 0;
}

#endif
