/* event.c - events and the device's clock. */
#include "gpu/cuda/internal.h"

#include "src/base/clock.h"

yk_status yk_cu_event_open(yk_gpu *g, yk_gpu_event **out)
{
    *out = NULL;
    yk_gpu_event *ev = yk_module_host->alloc(sizeof *ev);
    if (!ev)
        return yk_module_out_of_memory(sizeof *ev, "an event");
    *ev = (yk_gpu_event){.gpu = g, .refs = 1};
    CUresult e = yk_cu_enter(g);
    if (e == CUDA_SUCCESS) {
        e = yk_cu.cuEventCreate(&ev->event, CU_EVENT_DEFAULT);
        yk_cu_leave();
    }
    if (e != CUDA_SUCCESS) {
        yk_module_host->free(ev);
        return yk_cu_fail(e, "cuEventCreate");
    }
    pthread_mutex_lock(&g->lock);
    ev->next = g->events;
    g->events = ev;
    pthread_mutex_unlock(&g->lock);
    *out = ev;
    return YK_OK;
}

void yk_cu_event_drop(yk_gpu_event *ev)
{
    if (--ev->refs)
        return;
    for (yk_gpu_event **p = &ev->gpu->events; *p; p = &(*p)->next) {
        if (*p == ev) {
            *p = ev->next;
            break;
        }
    }
    yk_cu.cuEventDestroy(ev->event); /* the driver keeps what is under way */
    yk_module_host->free(ev);
}

void yk_cu_event_close(yk_gpu_event *ev)
{
    if (!ev)
        return;
    yk_gpu *g = ev->gpu;
    const bool entered = yk_cu_enter(g) == CUDA_SUCCESS;
    pthread_mutex_lock(&g->lock);
    yk_cu_event_drop(ev);
    pthread_mutex_unlock(&g->lock);
    if (entered)
        yk_cu_leave();
}

yk_status yk_cu_event_record(yk_gpu_stream *s, yk_gpu_event *ev)
{
    return yk_cu_submit(s, &(yk_cu_cmd){.op = YK_CU_RECORD, .event = ev});
}

yk_status yk_cu_event_wait(yk_gpu_stream *s, yk_gpu_event *ev)
{
    return yk_cu_submit(s, &(yk_cu_cmd){.op = YK_CU_WAIT, .event = ev});
}

yk_status yk_cu_event_time(yk_gpu_event *ev, uint64_t *ns)
{
    yk_gpu *g = ev->gpu;
    float ms = 0;
    *ns = 0;
    pthread_mutex_lock(&g->lock);
    const bool recorded = ev->submitted > 0, issued = ev->issued == ev->submitted;
    pthread_mutex_unlock(&g->lock);
    if (!recorded)
        return yk_module_fail(YK_ERR_USAGE, "the event was never recorded");
    CUresult e = issued ? yk_cu_enter(g) : CUDA_ERROR_NOT_READY;
    if (e == CUDA_SUCCESS) {
        e = yk_cu.cuEventQuery(ev->event);
        if (e == CUDA_SUCCESS)
            e = yk_cu.cuEventElapsedTime(&ms, g->base, ev->event); /* negative for what was before */
        yk_cu_leave();
    }
    if (e == CUDA_ERROR_NOT_READY)
        return yk_module_fail(YK_ERR_USAGE, "the event has not been reached: synchronise the stream first");
    if (e != CUDA_SUCCESS)
        return yk_cu_fail(e, "cuEventElapsedTime");
    *ns = (uint64_t)((int64_t)g->base_ns + (int64_t)((double)ms * 1e6));
    return YK_OK;
}

/* The try in which the host saw the event soonest after it had recorded it has the least delay in it. */
yk_status yk_cu_clock_measure(yk_gpu *g)
{
    enum { TRIES = 5 };
    CUevent tries[TRIES] = {NULL};
    uint64_t best_ns = UINT64_MAX, at_ns = 0;
    int best = 0;
    CUresult e = yk_cu_enter(g);
    if (e != CUDA_SUCCESS)
        return yk_cu_fail(e, "cuCtxPushCurrent");
    for (int i = 0; i < TRIES && e == CUDA_SUCCESS; i++) {
        e = yk_cu.cuEventCreate(&tries[i], CU_EVENT_DEFAULT);
        const uint64_t before = yk_now_ns();
        if (e == CUDA_SUCCESS)
            e = yk_cu.cuEventRecord(tries[i], g->own->stream);
        if (e == CUDA_SUCCESS)
            e = yk_cu.cuEventSynchronize(tries[i]); /* without CU_EVENT_BLOCKING_SYNC: it spins, for microseconds */
        const uint64_t after = yk_now_ns();
        if (after - before < best_ns) {
            best_ns = after - before;
            at_ns = before + best_ns / 2;
            best = i;
        }
    }
    if (e == CUDA_SUCCESS) {
        if (g->base)
            yk_cu.cuEventDestroy(g->base);
        g->base = tries[best];
        g->base_ns = at_ns;
        tries[best] = NULL;
    }
    for (int i = 0; i < TRIES; i++)
        if (tries[i])
            yk_cu.cuEventDestroy(tries[i]);
    yk_cu_leave();
    return e == CUDA_SUCCESS ? YK_OK : yk_cu_fail(e, "the device's clock");
}
