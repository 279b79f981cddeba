/* stream.c - streams of the fake driver: a thread and a finite queue each; events; host functions run on the stream's thread. */
#include "tests/fake_cuda/fake.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct CUstream_st *fake_streams;
struct CUevent_st *fake_events;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

bool fake_stream_is(CUstream s)
{
    struct CUstream_st *p = fake_streams;
    while (p && p != s)
        p = p->next;
    return p;
}

bool fake_event_is(CUevent e)
{
    struct CUevent_st *p = fake_events;
    while (p && p != e)
        p = p->next;
    return p && !p->destroyed;
}

void fake_event_drop(CUevent e)
{
    if (!e->destroyed || e->pending)
        return;
    for (struct CUevent_st **p = &fake_events; *p; p = &(*p)->next) {
        if (*p == e) {
            *p = e->next;
            break;
        }
    }
    free(e);
}

/* No lock held. */
static void work(const fake_cmd *c)
{
    switch (c->op) {
    case FAKE_COPY:
        memmove(c->to, c->from, c->bytes);
        break;
    case FAKE_SET:
        memset(c->to, c->byte, c->bytes);
        break;
    case FAKE_LAUNCH:
        fake_kernel_run(c);
        break;
    case FAKE_HOSTFN:
        c->fn(c->user);
        break;
    case FAKE_WRITE32:
        atomic_store_explicit(c->word, c->value, memory_order_release);
        break;
    case FAKE_WAIT32: /* the device looks at the word again and again */
        while ((int32_t)(atomic_load_explicit(c->word, memory_order_acquire) - c->value) < 0)
            usleep(20);
        break;
    case FAKE_RECORD:
    case FAKE_WAIT:
        break;
    }
}

static void *loop(void *arg)
{
    CUstream s = arg;
    pthread_mutex_lock(&fake_lock);
    for (;;) {
        while (!s->head && !s->quit)
            pthread_cond_wait(&fake_changed, &fake_lock);
        if (!s->head)
            break;
        fake_cmd *c = s->head;
        while (c->op == FAKE_WAIT && c->event->done < c->number)
            pthread_cond_wait(&fake_changed, &fake_lock);
        const bool skip =
            fake_sticky != CUDA_SUCCESS && (c->op == FAKE_LAUNCH || c->op == FAKE_HOSTFN || c->op == FAKE_WRITE32);
        pthread_mutex_unlock(&fake_lock);
        if (!skip)
            work(c);
        const uint64_t end = now_ns();
        pthread_mutex_lock(&fake_lock);
        if (c->op == FAKE_LAUNCH && fake.lost && !--fake.lost)
            fake_sticky = CUDA_ERROR_ILLEGAL_ADDRESS;
        if (c->op == FAKE_RECORD) {
            c->event->done = c->number;
            c->event->ns = end;
        }
        s->head = c->next;
        if (!s->head)
            s->tail = &s->head;
        s->n--;
        if (c->event) {
            c->event->pending--;
            fake_event_drop(c->event);
        }
        free(c);
        pthread_cond_broadcast(&fake_changed);
    }
    pthread_mutex_unlock(&fake_lock);
    return NULL;
}

/* Lock held. */
void fake_stream_drain(CUstream s)
{
    while (s->head)
        pthread_cond_wait(&fake_changed, &fake_lock);
}

void fake_device_drain(void)
{
    for (struct CUstream_st *s = fake_streams; s; s = s->next)
        fake_stream_drain(s);
}

CUresult fake_enqueue(CUstream s, const fake_cmd *c)
{
    if (!fake_stream_is(s))
        return CUDA_ERROR_INVALID_HANDLE;
    while (s->n >= fake.queue)
        pthread_cond_wait(&fake_changed, &fake_lock);
    fake_cmd *own = malloc(sizeof *own);
    if (!own)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *own = *c;
    own->next = NULL;
    *s->tail = own;
    s->tail = &own->next;
    s->n++;
    if (own->event)
        own->event->pending++;
    pthread_cond_broadcast(&fake_changed);
    return CUDA_SUCCESS;
}

#define BEGIN                                                                                                                  \
    pthread_mutex_lock(&fake_lock);                                                                                            \
    CUresult e = fake_call();                                                                                                  \
    if (e == CUDA_SUCCESS) {
#define END                                                                                                                    \
    }                                                                                                                          \
    pthread_mutex_unlock(&fake_lock);                                                                                          \
    return e;

CUresult cuStreamCreate(CUstream *out, unsigned flags)
{
    BEGIN
    CUstream s = flags != CU_STREAM_NON_BLOCKING ? NULL : calloc(1, sizeof *s);
    if (!s) {
        e = CUDA_ERROR_INVALID_VALUE;
    } else if (fake_alloc_fails()) {
        free(s);
        e = CUDA_ERROR_OUT_OF_MEMORY;
    } else {
        s->tail = &s->head;
        s->next = fake_streams;
        fake_streams = s;
        pthread_create(&s->thread, NULL, loop, s);
        *out = s;
    }
    END
}

CUresult cuStreamDestroy(CUstream s)
{
    pthread_mutex_lock(&fake_lock);
    if (!fake_stream_is(s)) {
        pthread_mutex_unlock(&fake_lock);
        return CUDA_ERROR_INVALID_HANDLE;
    }
    s->quit = true;
    pthread_cond_broadcast(&fake_changed);
    pthread_mutex_unlock(&fake_lock);
    pthread_join(s->thread, NULL);
    pthread_mutex_lock(&fake_lock);
    for (struct CUstream_st **p = &fake_streams; *p; p = &(*p)->next) {
        if (*p == s) {
            *p = s->next;
            break;
        }
    }
    pthread_mutex_unlock(&fake_lock);
    free(s);
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream s)
{
    BEGIN
    if (!fake_stream_is(s))
        e = CUDA_ERROR_INVALID_HANDLE;
    else
        fake_stream_drain(s);
    if (e == CUDA_SUCCESS)
        e = fake_sticky;
    END
}

CUresult cuStreamQuery(CUstream s)
{
    BEGIN
    e = !fake_stream_is(s) ? CUDA_ERROR_INVALID_HANDLE : s->head ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
    END
}

CUresult cuStreamWaitEvent(CUstream s, CUevent event, unsigned flags)
{
    (void)flags;
    BEGIN
    e = !fake_event_is(event) ? CUDA_ERROR_INVALID_HANDLE
                              : fake_enqueue(s, &(fake_cmd){.op = FAKE_WAIT, .event = event, .number = event->recorded});
    END
}

CUresult cuLaunchHostFunc(CUstream s, CUhostFn fn, void *user)
{
    BEGIN
    e = fake_enqueue(s, &(fake_cmd){.op = FAKE_HOSTFN, .fn = fn, .user = user});
    END
}

CUresult cuStreamWriteValue32(CUstream s, CUdeviceptr addr, cuuint32_t value, unsigned flags)
{
    _Atomic uint32_t *word = (void *)(uintptr_t)addr;
    BEGIN
    e = fake.noops ? CUDA_ERROR_NOT_SUPPORTED
        : flags || addr % 4 || !fake_inside((void *)word, 4, true)
            ? CUDA_ERROR_INVALID_VALUE
            : fake_enqueue(s, &(fake_cmd){.op = FAKE_WRITE32, .word = word, .value = value});
    END
}

CUresult cuStreamWaitValue32(CUstream s, CUdeviceptr addr, cuuint32_t value, unsigned flags)
{
    _Atomic uint32_t *word = (void *)(uintptr_t)addr;
    BEGIN
    e = fake.noops ? CUDA_ERROR_NOT_SUPPORTED
        : flags || addr % 4 || !fake_inside((void *)word, 4, true)
            ? CUDA_ERROR_INVALID_VALUE
            : fake_enqueue(s, &(fake_cmd){.op = FAKE_WAIT32, .word = word, .value = value});
    END
}

CUresult cuEventCreate(CUevent *out, unsigned flags)
{
    BEGIN
    CUevent ev = fake_alloc_fails() ? NULL : calloc(1, sizeof *ev);
    if (!ev) {
        e = CUDA_ERROR_OUT_OF_MEMORY;
    } else {
        ev->timed = !(flags & CU_EVENT_DISABLE_TIMING);
        ev->next = fake_events;
        fake_events = ev;
        *out = ev;
    }
    END
}

CUresult cuEventDestroy(CUevent event)
{
    pthread_mutex_lock(&fake_lock);
    const bool is = fake_event_is(event);
    if (is) {
        event->destroyed = true;
        fake_event_drop(event);
    }
    pthread_mutex_unlock(&fake_lock);
    return is ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuEventRecord(CUevent event, CUstream s)
{
    BEGIN
    if (!fake_event_is(event))
        e = CUDA_ERROR_INVALID_HANDLE;
    else
        e = fake_enqueue(s, &(fake_cmd){.op = FAKE_RECORD, .event = event, .number = event->recorded + 1});
    if (e == CUDA_SUCCESS)
        event->recorded++;
    END
}

CUresult cuEventQuery(CUevent event)
{
    BEGIN
    e = !fake_event_is(event)            ? CUDA_ERROR_INVALID_HANDLE
        : event->done != event->recorded ? CUDA_ERROR_NOT_READY
                                         : CUDA_SUCCESS;
    END
}

CUresult cuEventSynchronize(CUevent event)
{
    BEGIN
    if (!fake_event_is(event))
        e = CUDA_ERROR_INVALID_HANDLE;
    else
        for (const uint64_t number = event->recorded; event->done < number;)
            pthread_cond_wait(&fake_changed, &fake_lock);
    if (e == CUDA_SUCCESS)
        e = fake_sticky;
    END
}

CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to)
{
    BEGIN
    if (!fake_event_is(from) || !fake_event_is(to) || !from->timed || !to->timed || !from->recorded || !to->recorded)
        e = CUDA_ERROR_INVALID_HANDLE;
    else if (from->done != from->recorded || to->done != to->recorded)
        e = CUDA_ERROR_NOT_READY;
    else
        *ms = (float)((double)((int64_t)to->ns - (int64_t)from->ns) * 1e-6);
    END
}
