/* A lane with cpu_rate: what the pool would compute only takes its time. */
#include <errno.h>
#include <time.h>

#include "src/base/clock.h"
#include "src/engine/lane.h"
#include "src/engine/stages.h"

static void sleep_until(uint64_t ns)
{
    const struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

yk_status yk_lane_model_stages(yk_gpulane *l, yk_step *step, uint32_t end, yk_error *err)
{
    yk_engine *e = l->e;
    yk_job *job = &step->job;
    const uint32_t tail = e->model->hp.n_layers * YK_S_PER_LAYER;
    uint64_t now = yk_now_ns();
    for (uint32_t s = atomic_load(&job->front); s < end; s++) {
        yk_stage *st = &job->stages[s];
        const enum yk_stage_kind kind = s >= tail ? YK_S_HEAD_IN + (s - tail) : s % YK_S_PER_LAYER;
        if (!st->max_slices || kind == YK_S_FFN_IN || kind == YK_S_ROUTE || kind == YK_S_GROUP)
            continue;
        YK_TRY(yk_pool_advance(e->pool, job, s, err));
        st->max_slices = 0;
        st->prepare = NULL;
        const uint64_t ns = (uint64_t)((double)yk_stage_bytes(step, st->layer, kind) / l->cpu_rate * 1e9);
        if (e->trace && ns)
            yk_trace_stage(e, st, now, now + ns);
        now += ns;
        if (ns)
            sleep_until(now);
    }
    return YK_OK;
}
