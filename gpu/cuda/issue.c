/* issue.c - commands given to the driver.
 *
 * The driver copies page-locked memory without waiting. Copies of other memory make it wait for the stream in the middle of the call, which
 * must not happen behind a mailbox wait that the same thread is to end. So pageable memory goes through a page-locked buffer of the
 * stream, in pieces, and the copy between that and the caller's memory is a host function in the stream's order. */
#include "gpu/cuda/internal.h"

uint32_t yk_cu_calls(const yk_cu_cmd *c)
{
    const bool host = c->op == YK_CU_TO_DEVICE || c->op == YK_CU_TO_HOST;
    if (!host || c->pinned)
        return 1;
    const uint64_t pieces = (c->bytes - 1) / YK_CU_BOUNCE + 1;
    return pieces < UINT32_MAX / 2 ? 2 * (uint32_t)pieces : UINT32_MAX;
}

/* Runs on a thread of the driver, which allows no call of it here. */
static void CUDA_CB run_job(void *arg)
{
    yk_cu_job *j = arg;
    if (j->word)
        atomic_store_explicit(j->word, j->value, memory_order_release);
    else
        memcpy(j->to, j->from, j->bytes);
    yk_gpu_stream *s = j->stream;
    yk_cu_job *top = atomic_load_explicit(&s->finished, memory_order_relaxed);
    do
        j->next = top;
    while (!atomic_compare_exchange_weak_explicit(&s->finished, &top, j, memory_order_release, memory_order_relaxed));
}

yk_status yk_cu_issue_job(yk_gpu_stream *s, const yk_cu_job *job)
{
    if (!s->spare)
        s->spare = atomic_exchange_explicit(&s->finished, NULL, memory_order_acquire);
    yk_cu_job *j = s->spare, *older = NULL;
    if (j) {
        s->spare = j->next;
        older = j->next_of_all;
    } else {
        j = yk_module_host->alloc(sizeof *j);
        if (!j)
            return yk_module_out_of_memory(sizeof *j, "a command");
        older = s->all_jobs;
        s->all_jobs = j;
    }
    *j = *job;
    j->stream = s;
    j->next_of_all = older;
    const CUresult e = yk_cu.cuLaunchHostFunc(s->stream, run_job, j);
    if (e == CUDA_SUCCESS)
        return YK_OK;
    j->next = s->spare;
    s->spare = j;
    return yk_cu_fail(e, "cuLaunchHostFunc");
}

void yk_cu_jobs_close(yk_gpu_stream *s)
{
    while (s->all_jobs) {
        yk_cu_job *j = s->all_jobs;
        s->all_jobs = j->next_of_all;
        yk_module_host->free(j);
    }
}

/* A stream runs in order, so one buffer is enough. */
static yk_status copy_pageable(yk_gpu_stream *s, const yk_cu_cmd *c)
{
    for (uint64_t at = 0; at < c->bytes; at += YK_CU_BOUNCE) {
        const size_t n = c->bytes - at < YK_CU_BOUNCE ? (size_t)(c->bytes - at) : YK_CU_BOUNCE;
        if (c->op == YK_CU_TO_DEVICE) {
            const yk_cu_job job = {.to = s->bounce, .from = (const uint8_t *)c->host_from + at, .bytes = n};
            const yk_status st = yk_cu_issue_job(s, &job);
            if (st != YK_OK)
                return st;
        }
        const CUresult e = c->op == YK_CU_TO_DEVICE ? yk_cu.cuMemcpyHtoDAsync(c->to + at, s->bounce, n, s->stream)
                                                    : yk_cu.cuMemcpyDtoHAsync(s->bounce, c->from + at, n, s->stream);
        if (e != CUDA_SUCCESS)
            return yk_cu_fail(e, c->op == YK_CU_TO_DEVICE ? "cuMemcpyHtoDAsync" : "cuMemcpyDtoHAsync");
        if (c->op == YK_CU_TO_HOST) {
            const yk_cu_job job = {.to = (uint8_t *)c->host_to + at, .from = s->bounce, .bytes = n};
            const yk_status st = yk_cu_issue_job(s, &job);
            if (st != YK_OK)
                return st;
        }
    }
    return YK_OK;
}

static CUresult launch(const yk_gpu_stream *s, const yk_cu_cmd *c)
{
    void *params[2 * YK_GPU_MAX_ARGS];
    for (uint32_t i = 0; i < c->n_values; i++)
        params[i] = (void *)&c->values[i];
    return yk_cu.cuLaunchKernel(c->kernel->function, c->groups[0], c->groups[1], c->groups[2], c->kernel->threads, 1, 1, 0,
                                s->stream, params, NULL);
}

static yk_status issue(yk_gpu_stream *s, const yk_cu_cmd *c)
{
    CUresult e = CUDA_SUCCESS;
    const char *what = "";
    switch (c->op) {
    case YK_CU_LAUNCH:
        e = launch(s, c);
        what = c->kernel->name;
        break;
    case YK_CU_TO_DEVICE:
        if (!c->pinned)
            return copy_pageable(s, c);
        e = yk_cu.cuMemcpyHtoDAsync(c->to, c->host_from, c->bytes, s->stream);
        what = "cuMemcpyHtoDAsync";
        break;
    case YK_CU_TO_HOST:
        if (!c->pinned)
            return copy_pageable(s, c);
        e = yk_cu.cuMemcpyDtoHAsync(c->host_to, c->from, c->bytes, s->stream);
        what = "cuMemcpyDtoHAsync";
        break;
    case YK_CU_DEVICE:
        e = yk_cu.cuMemcpyDtoDAsync(c->to, c->from, c->bytes, s->stream);
        what = "cuMemcpyDtoDAsync";
        break;
    case YK_CU_FILL:
        e = yk_cu.cuMemsetD8Async(c->to, c->byte, c->bytes, s->stream);
        what = "cuMemsetD8Async";
        break;
    case YK_CU_RECORD:
        e = yk_cu.cuEventRecord(c->event->event, s->stream);
        what = "cuEventRecord";
        break;
    case YK_CU_WAIT:
        e = yk_cu.cuStreamWaitEvent(s->stream, c->event->event, 0);
        what = "cuStreamWaitEvent";
        break;
    case YK_CU_SIGNAL:
        return yk_cu_issue_signal(s, c->box, c->value);
    case YK_CU_BOX_WAIT:
        return yk_cu_issue_box_wait(s, c->box, c->value);
    }
    return e == CUDA_SUCCESS ? YK_OK : yk_cu_fail(e, what);
}

yk_status yk_cu_issue(yk_gpu_stream *s, const yk_cu_cmd *c)
{
    const yk_status st = issue(s, c);
    if (c->op == YK_CU_RECORD)
        c->event->issued = c->number; /* a failed one holds nothing up */
    if (s->gpu->n_unsatisfied) {
        const uint32_t n = yk_cu_calls(c);
        s->behind = n < UINT32_MAX - s->behind ? s->behind + n : UINT32_MAX;
    }
    return st;
}
