/* stream.c - streams, and the commands that are kept from the driver for a while.
 *
 * Commands go to the driver at once, with three exceptions, which keep a command and all that follow it on its stream in a list:
 *   - a mailbox wait, where the driver has no operation for it (box.c), until it is satisfied;
 *   - a wait for an event whose record is itself in such a list; and a new record of an event while a wait for the old one is;
 *   - while a mailbox wait holds some stream of the device, more than YK_CU_BEHIND driver calls of a stream: the driver's own queues end at
 *     about a thousand, and a call that waits there for room would wait for a post of the thread that makes it.
 * Whatever changes one of these (a post, a command given to the driver) looks at the lists: yk_cu_pump. A command depends only on commands
 * submitted before it and on posts, so the lists empty themselves.
 *
 * Calls of the driver that may wait for the whole device (freeing memory) are made when nothing is held: yk_cu_flows. */
#include "gpu/cuda/internal.h"

#include "src/base/clock.h"

/* Whether a wait for an older record of the event is in a list. */
static bool is_awaited(const yk_gpu *g, const yk_cu_cmd *record)
{
    if (!record->event->waiting)
        return false;
    for (const yk_gpu_stream *s = g->streams; s; s = s->next)
        for (const yk_cu_cmd *c = s->head; c; c = c->next)
            if (c->op == YK_CU_WAIT && c->event == record->event && c->number < record->number)
                return true;
    return false;
}

static bool ready(const yk_gpu_stream *s, const yk_cu_cmd *c)
{
    const yk_gpu *g = s->gpu;
    if (c->op == YK_CU_BOX_WAIT && !g->mem_ops && g->posted[c->box] < c->value && !s->ending)
        return false;
    if (c->op == YK_CU_WAIT && c->event->issued < c->number)
        return false;
    if (c->op == YK_CU_RECORD && is_awaited(g, c))
        return false;
    const uint32_t n = yk_cu_calls(c);
    return !g->n_unsatisfied || (n <= YK_CU_BEHIND && s->behind <= YK_CU_BEHIND - n);
}

static yk_status hold(yk_gpu_stream *s, const yk_cu_cmd *c)
{
    yk_cu_cmd *own = yk_module_host->alloc(sizeof *own);
    if (!own)
        return yk_module_out_of_memory(sizeof *own, "a command");
    *own = *c;
    own->next = NULL;
    *s->tail = own;
    s->tail = &own->next;
    s->gpu->n_held++;
    if (c->event) {
        c->event->refs++;
        c->event->waiting += c->op == YK_CU_WAIT;
    }
    return YK_OK;
}

/* The first command of the list to the driver; what goes wrong is told by stream_sync. */
static void issue_held(yk_gpu_stream *s)
{
    yk_gpu *g = s->gpu;
    yk_cu_cmd *c = s->head;
    s->head = c->next;
    if (!s->head)
        s->tail = &s->head;
    g->n_held--;
    const yk_status st = yk_cu_issue(s, c);
    if (st != YK_OK && s->failed == YK_OK) {
        s->failed = st;
        snprintf(s->failed_line, sizeof s->failed_line, "%s", yk_module_last_error());
        atomic_fetch_add(&g->n_failed, 1);
    }
    if (c->event) {
        c->event->waiting -= c->op == YK_CU_WAIT;
        yk_cu_event_drop(c->event);
    }
    yk_module_host->free(c);
}

void yk_cu_pump(yk_gpu *g)
{
    for (bool moved = true; moved && g->n_held;) {
        moved = false;
        for (yk_gpu_stream *s = g->streams; s; s = s->next)
            while (s->head && ready(s, s->head)) {
                issue_held(s);
                moved = true;
            }
        if (moved)
            pthread_cond_broadcast(&g->changed);
    }
}

yk_status yk_cu_submit(yk_gpu_stream *s, yk_cu_cmd *c)
{
    yk_gpu *g = s->gpu;
    const CUresult e = yk_cu_enter(g);
    if (e != CUDA_SUCCESS)
        return yk_cu_fail(e, "cuCtxPushCurrent");
    yk_status st = YK_OK;
    pthread_mutex_lock(&g->lock);
    if (c->event)
        c->number = c->event->submitted + (c->op == YK_CU_RECORD);
    if (c->op == YK_CU_WAIT && !c->number) {
        /* never recorded: nothing to wait for */
    } else if (s->head || !ready(s, c)) {
        st = hold(s, c);
    } else {
        st = yk_cu_issue(s, c);
    }
    if (c->op == YK_CU_RECORD && (st == YK_OK || c->event->issued == c->number))
        c->event->submitted = c->number;
    if (g->n_held)
        yk_cu_pump(g);
    pthread_mutex_unlock(&g->lock);
    yk_cu_leave();
    return st;
}

bool yk_cu_flows(yk_gpu *g)
{
    pthread_mutex_lock(&g->lock);
    const bool flows = !g->n_unsatisfied && !g->n_held;
    pthread_mutex_unlock(&g->lock);
    return flows;
}

/* What a stream has of the driver; context current. */
static CUresult open_driver_side(yk_gpu_stream *s)
{
    void *bounce = NULL;
    CUresult e = yk_cu.cuStreamCreate(&s->stream, CU_STREAM_NON_BLOCKING);
    if (e == CUDA_SUCCESS)
        e = yk_cu.cuEventCreate(&s->done, CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING);
    if (e == CUDA_SUCCESS)
        e = yk_cu.cuMemHostAlloc(&bounce, YK_CU_BOUNCE, CU_MEMHOSTALLOC_PORTABLE);
    s->bounce = bounce;
    return e;
}

static void close_driver_side(yk_gpu_stream *s)
{
    if (s->stream) {
        yk_cu.cuStreamSynchronize(s->stream);
        yk_cu.cuStreamDestroy(s->stream);
    }
    if (s->done)
        yk_cu.cuEventDestroy(s->done);
    if (s->bounce)
        yk_cu.cuMemFreeHost(s->bounce);
}

yk_status yk_cu_stream_open(yk_gpu *g, yk_gpu_stream_kind kind, yk_gpu_stream **out)
{
    *out = NULL;
    if ((unsigned)kind > YK_STREAM_TO_HOST)
        return yk_module_fail(YK_ERR_USAGE, "stream kind %u does not exist", (unsigned)kind);
    yk_gpu_stream *s = yk_module_host->alloc(sizeof *s);
    if (!s)
        return yk_module_out_of_memory(sizeof *s, "a stream");
    *s = (yk_gpu_stream){.gpu = g, .tail = &s->head};
    CUresult e = yk_cu_enter(g);
    if (e == CUDA_SUCCESS) {
        e = open_driver_side(s);
        if (e != CUDA_SUCCESS)
            close_driver_side(s);
        yk_cu_leave();
    }
    if (e != CUDA_SUCCESS) {
        yk_module_host->free(s);
        return yk_cu_fail(e, "a stream and its page-locked buffer");
    }
    pthread_mutex_lock(&g->lock);
    const bool room = ~g->slots;
    if (room) {
        s->slot = (uint32_t)__builtin_ctzll(~g->slots);
        g->slots |= 1ull << s->slot;
        if (g->words) /* a slot's tickets go on where its last stream ended */
            s->tickets = s->released = atomic_load(&g->words[YK_CU_STREAMS * YK_GPU_MAILBOXES + s->slot * YK_CU_TICKET_WORDS]);
        s->next = g->streams;
        g->streams = s;
    }
    pthread_mutex_unlock(&g->lock);
    if (room) {
        *out = s;
        return YK_OK;
    }
    if (yk_cu_enter(g) == CUDA_SUCCESS) {
        close_driver_side(s);
        yk_cu_leave();
    }
    yk_module_host->free(s);
    return yk_module_fail(YK_ERR_RUNTIME, "a device has at most %d streams", YK_CU_STREAMS);
}

/* Mailbox waits of s (NULL: of all streams) are over; what was held because of them goes to the driver. Context current. */
static void end_waits(yk_gpu *g, yk_gpu_stream *s)
{
    pthread_mutex_lock(&g->lock);
    for (yk_gpu_stream *t = g->streams; t; t = t->next)
        if (!s || t == s)
            t->ending = true;
    yk_cu_boxes_release(g);
    yk_cu_pump(g);
    pthread_mutex_unlock(&g->lock);
}

void yk_cu_stream_close(yk_gpu_stream *s)
{
    if (!s)
        return;
    yk_gpu *g = s->gpu;
    const bool entered = yk_cu_enter(g) == CUDA_SUCCESS;
    end_waits(g, s);
    pthread_mutex_lock(&g->lock);
    while (s->head) /* for events of streams that others must post to */
        pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
    close_driver_side(s);
    pthread_mutex_lock(&g->lock);
    for (yk_gpu_stream **p = &g->streams; *p; p = &(*p)->next) {
        if (*p == s) {
            *p = s->next;
            break;
        }
    }
    g->slots &= ~(1ull << s->slot);
    if (s->failed != YK_OK)
        atomic_fetch_sub(&g->n_failed, 1);
    pthread_mutex_unlock(&g->lock);
    if (entered)
        yk_cu_leave();
    yk_cu_jobs_close(s);
    yk_module_host->free(s->waits);
    yk_module_host->free(s);
}

void yk_cu_streams_close(yk_gpu *g)
{
    const bool entered = yk_cu_enter(g) == CUDA_SUCCESS;
    end_waits(g, NULL); /* of all before one is drained: it may wait for another */
    if (entered)
        yk_cu_leave();
    while (g->streams)
        yk_cu_stream_close(g->streams);
    while (g->events)
        yk_cu_event_close(g->events);
    if (g->base && yk_cu_enter(g) == CUDA_SUCCESS) {
        yk_cu.cuEventDestroy(g->base);
        yk_cu_leave();
    }
    g->base = NULL;
}

yk_status yk_cu_stream_flush(yk_gpu_stream *stream)
{
    (void)stream; /* the driver starts what it is given */
    return YK_OK;
}

/* The failure of a held command, told once; lock held. */
static yk_status take_failure(yk_gpu_stream *s)
{
    const yk_status st = s->failed;
    if (st == YK_OK)
        return YK_OK;
    s->failed = YK_OK;
    atomic_fetch_sub(&s->gpu->n_failed, 1);
    return yk_module_fail(st, "%s", s->failed_line);
}

yk_status yk_cu_stream_sync(yk_gpu_stream *s)
{
    yk_gpu *g = s->gpu;
    CUresult e = yk_cu_enter(g);
    if (e != CUDA_SUCCESS)
        return yk_cu_fail(e, "cuCtxPushCurrent");
    pthread_mutex_lock(&g->lock);
    while (s->head)
        pthread_cond_wait(&g->changed, &g->lock);
    const yk_status st = take_failure(s);
    pthread_mutex_unlock(&g->lock);
    e = yk_cu.cuEventRecord(s->done, s->stream);
    if (e == CUDA_SUCCESS)
        e = yk_cu.cuEventSynchronize(s->done);
    yk_cu_leave();
    if (e != CUDA_SUCCESS)
        return yk_cu_fail(e, "work on the device");
    yk_cu_reap(g);
    if (st == YK_OK && yk_now_ns() - g->base_ns > YK_CU_REBASE_MS * 1000000ull && yk_cu_flows(g))
        return yk_cu_clock_measure(g);
    return st;
}
