/* stream.c - in-order queues, events as markers, mailboxes.
 *
 * signal is a marker whose state is looked at when the host asks; wait is a barrier on a user event that box_post completes. */
#include "gpu/opencl/opencl.h"

#include "src/base/clock.h"

yk_status yk_cl_stream_open(yk_gpu *gpu, yk_gpu_stream_kind kind, yk_gpu_stream **out)
{
    *out = NULL;
    if ((unsigned)kind > YK_STREAM_TO_HOST)
        return yk_module_fail(YK_ERR_USAGE, "stream kind %u does not exist", (unsigned)kind);
    yk_gpu_stream *s = yk_module_host->alloc(sizeof *s);
    if (!s)
        return yk_module_out_of_memory(sizeof *s, "a stream");
    cl_int e;
    s->gpu = gpu;
    s->queue = clCreateCommandQueue(gpu->context, gpu->device, CL_QUEUE_PROFILING_ENABLE, &e);
    if (e != CL_SUCCESS) {
        yk_module_host->free(s);
        return yk_cl_fail(e, "clCreateCommandQueue");
    }
    s->next = gpu->streams;
    gpu->streams = s;
    *out = s;
    return YK_OK;
}

/* Ends waits of a stream (NULL: of all). */
static void end_waits(yk_gpu *g, const yk_gpu_stream *s)
{
    pthread_mutex_lock(&g->box_lock);
    for (yk_cl_box_op **p = &g->waits; *p;) {
        yk_cl_box_op *op = *p;
        if (s && op->stream != s) {
            p = &op->next;
            continue;
        }
        clSetUserEventStatus(op->event, CL_COMPLETE);
        clReleaseEvent(op->event);
        *p = op->next;
        op->next = g->spare;
        g->spare = op;
    }
    pthread_mutex_unlock(&g->box_lock);
}

void yk_cl_stream_close(yk_gpu_stream *s)
{
    if (!s)
        return;
    end_waits(s->gpu, s);
    clFinish(s->queue);
    clReleaseCommandQueue(s->queue);
    for (yk_gpu_stream **p = &s->gpu->streams; *p; p = &(*p)->next) {
        if (*p == s) {
            *p = s->next;
            break;
        }
    }
    yk_module_host->free(s);
}

static void free_ops(yk_cl_box_op *op, bool release)
{
    while (op) {
        yk_cl_box_op *next = op->next;
        if (release)
            clReleaseEvent(op->event);
        yk_module_host->free(op);
        op = next;
    }
}

void yk_cl_streams_close(yk_gpu *g)
{
    end_waits(g, NULL);
    for (yk_gpu_stream *s = g->streams; s;
         s = s->next) /* one may wait for another: all are handed over before one is drained */
        clFlush(s->queue);
    while (g->streams)
        yk_cl_stream_close(g->streams);
    free_ops(g->signals, true);
    free_ops(g->spare, false);
    g->signals = g->spare = NULL;
    while (g->events)
        yk_cl_event_close(g->events);
}

yk_status yk_cl_stream_flush(yk_gpu_stream *s)
{
    const cl_int e = clFlush(s->queue);
    return e == CL_SUCCESS ? YK_OK : yk_cl_fail(e, "clFlush");
}

yk_status yk_cl_stream_sync(yk_gpu_stream *s)
{
    cl_event last;
    cl_int e = clEnqueueMarkerWithWaitList(s->queue, 0, NULL, &last);
    if (e != CL_SUCCESS)
        return yk_cl_fail(e, "clEnqueueMarkerWithWaitList");
    e = clFinish(s->queue);
    cl_int state = CL_COMPLETE;
    if (e == CL_SUCCESS)
        clGetEventInfo(last, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof state, &state, NULL);
    clReleaseEvent(last);
    if (e != CL_SUCCESS)
        return yk_cl_fail(e, "clFinish");
    return state >= 0 ? YK_OK : yk_cl_fail(state, "work on the device");
}

yk_status yk_cl_event_open(yk_gpu *gpu, yk_gpu_event **out)
{
    yk_gpu_event *e = *out = yk_module_host->alloc(sizeof *e);
    if (!e)
        return yk_module_out_of_memory(sizeof *e, "an event");
    *e = (yk_gpu_event){.gpu = gpu, .next = gpu->events};
    gpu->events = e;
    return YK_OK;
}

void yk_cl_event_close(yk_gpu_event *ev)
{
    if (!ev)
        return;
    if (ev->event)
        clReleaseEvent(ev->event);
    for (yk_gpu_event **p = &ev->gpu->events; *p; p = &(*p)->next) {
        if (*p == ev) {
            *p = ev->next;
            break;
        }
    }
    yk_module_host->free(ev);
}

/* A marker behind everything on the stream, handed to the device, so that other streams and the host may wait for it. */
static yk_status marker(yk_gpu_stream *s, cl_event *out)
{
    cl_int e = clEnqueueMarkerWithWaitList(s->queue, 0, NULL, out);
    if (e != CL_SUCCESS)
        return yk_cl_fail(e, "clEnqueueMarkerWithWaitList");
    e = clFlush(s->queue);
    if (e == CL_SUCCESS)
        return YK_OK;
    clReleaseEvent(*out);
    return yk_cl_fail(e, "clFlush");
}

static yk_status wait_for(yk_gpu_stream *s, cl_event event)
{
    const cl_int e = clEnqueueBarrierWithWaitList(s->queue, 1, &event, NULL);
    return e == CL_SUCCESS ? YK_OK : yk_cl_fail(e, "clEnqueueBarrierWithWaitList");
}

yk_status yk_cl_event_record(yk_gpu_stream *s, yk_gpu_event *ev)
{
    cl_event m;
    const yk_status st = marker(s, &m);
    if (st != YK_OK)
        return st;
    if (ev->event)
        clReleaseEvent(ev->event);
    ev->event = m;
    return YK_OK;
}

yk_status yk_cl_event_wait(yk_gpu_stream *s, yk_gpu_event *ev)
{
    return ev->event ? wait_for(s, ev->event) : YK_OK;
}

yk_status yk_cl_event_time(yk_gpu_event *ev, uint64_t *ns)
{
    cl_ulong t = 0;
    *ns = 0;
    if (!ev->event)
        return yk_module_fail(YK_ERR_USAGE, "the event was never recorded");
    const cl_int e = clGetEventProfilingInfo(ev->event, CL_PROFILING_COMMAND_END, sizeof t, &t, NULL);
    if (e == CL_PROFILING_INFO_NOT_AVAILABLE)
        return yk_module_fail(YK_ERR_USAGE, "the event has not been reached: synchronise the stream first");
    if (e != CL_SUCCESS)
        return yk_cl_fail(e, "clGetEventProfilingInfo");
    *ns = (uint64_t)((int64_t)t + ev->gpu->clock_offset);
    return YK_OK;
}

/* The smallest difference seen is the one with the least delay in it. */
yk_status yk_cl_clock_measure(yk_gpu *g)
{
    for (int i = 0; i < 5; i++) {
        cl_event ev;
        cl_ulong t = 0;
        cl_int e = clEnqueueMarkerWithWaitList(g->queue, 0, NULL, &ev);
        if (e != CL_SUCCESS)
            return yk_cl_fail(e, "clEnqueueMarkerWithWaitList");
        e = clFinish(g->queue);
        const int64_t now = (int64_t)yk_now_ns();
        if (e == CL_SUCCESS)
            e = clGetEventProfilingInfo(ev, CL_PROFILING_COMMAND_END, sizeof t, &t, NULL);
        clReleaseEvent(ev);
        if (e != CL_SUCCESS)
            return yk_cl_fail(e, "the device's clock");
        if (i == 0 || now - (int64_t)t < g->clock_offset)
            g->clock_offset = now - (int64_t)t;
    }
    return YK_OK;
}

/* ---- Mailboxes ---- */

static yk_status check_box(uint32_t box)
{
    return box < YK_GPU_MAILBOXES
               ? YK_OK
               : yk_module_fail(YK_ERR_USAGE, "mailbox %u does not exist, there are %d", box, YK_GPU_MAILBOXES);
}

/* A record for an operation; used again and again, so that steady work allocates nothing. Lock held. */
static yk_cl_box_op *take_op(yk_gpu *g)
{
    yk_cl_box_op *op = g->spare;
    if (op)
        g->spare = op->next;
    else
        op = yk_module_host->alloc(sizeof *op);
    return op;
}

/* Looks at all signals under way; lock held. False when one has failed. */
static bool look(yk_gpu *g, cl_int *failed)
{
    for (yk_cl_box_op **p = &g->signals; *p;) {
        yk_cl_box_op *op = *p;
        cl_int state = CL_QUEUED;
        const cl_int e = clGetEventInfo(op->event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof state, &state, NULL);
        *failed = e != CL_SUCCESS ? e : state;
        if (*failed < 0)
            return false;
        if (state != CL_COMPLETE) {
            p = &op->next;
            continue;
        }
        if (g->signalled[op->box] < op->value)
            g->signalled[op->box] = op->value;
        clReleaseEvent(op->event);
        *p = op->next;
        op->next = g->spare;
        g->spare = op;
    }
    return true;
}

yk_status yk_cl_box_signal(yk_gpu_stream *s, uint32_t box, uint32_t value)
{
    yk_gpu *g = s->gpu;
    cl_event m;
    yk_status st = check_box(box);
    if (st != YK_OK || (st = marker(s, &m)) != YK_OK)
        return st;
    cl_int failed;
    pthread_mutex_lock(&g->box_lock);
    look(g, &failed); /* takes back records of signals that nobody asks for; a failure is told by box_value */
    yk_cl_box_op *op = take_op(g);
    if (op) {
        *op = (yk_cl_box_op){.next = g->signals, .event = m, .box = box, .value = value, .stream = s};
        g->signals = op;
    }
    pthread_mutex_unlock(&g->box_lock);
    if (op)
        return YK_OK;
    clReleaseEvent(m);
    return yk_module_out_of_memory(sizeof *op, "a mailbox signal");
}

yk_status yk_cl_box_wait(yk_gpu_stream *s, uint32_t box, uint32_t value)
{
    yk_gpu *g = s->gpu;
    yk_status st = check_box(box);
    if (st != YK_OK)
        return st;
    pthread_mutex_lock(&g->box_lock);
    if (g->posted[box] >= value) {
        pthread_mutex_unlock(&g->box_lock);
        return YK_OK;
    }
    cl_int e = CL_SUCCESS;
    yk_cl_box_op *op = take_op(g);
    const cl_event user = op ? clCreateUserEvent(g->context, &e) : NULL;
    if (!op) {
        st = yk_module_out_of_memory(sizeof *op, "a mailbox wait");
    } else if (e != CL_SUCCESS) {
        st = yk_cl_fail(e, "clCreateUserEvent");
    } else if ((st = wait_for(s, user)) != YK_OK) {
        clReleaseEvent(user);
    } else {
        *op = (yk_cl_box_op){.next = g->waits, .event = user, .box = box, .value = value, .stream = s};
        g->waits = op;
        op = NULL;
    }
    if (op) {
        op->next = g->spare;
        g->spare = op;
    }
    pthread_mutex_unlock(&g->box_lock);
    return st;
}

yk_status yk_cl_box_post(yk_gpu *g, uint32_t box, uint32_t value)
{
    const yk_status st = check_box(box);
    if (st != YK_OK)
        return st;
    cl_int failed = CL_SUCCESS;
    pthread_mutex_lock(&g->box_lock);
    if (g->posted[box] < value)
        g->posted[box] = value;
    for (yk_cl_box_op **p = &g->waits; *p;) {
        yk_cl_box_op *op = *p;
        if (op->box != box || op->value > g->posted[box]) {
            p = &op->next;
            continue;
        }
        const cl_int e = clSetUserEventStatus(op->event, CL_COMPLETE);
        failed = failed == CL_SUCCESS ? e : failed;
        clReleaseEvent(op->event);
        *p = op->next;
        op->next = g->spare;
        g->spare = op;
    }
    pthread_mutex_unlock(&g->box_lock);
    return failed == CL_SUCCESS ? YK_OK : yk_cl_fail(failed, "clSetUserEventStatus");
}

yk_status yk_cl_box_value(yk_gpu *g, uint32_t box, uint32_t *value)
{
    const yk_status st = check_box(box);
    if (st != YK_OK)
        return st;
    cl_int failed = 0;
    pthread_mutex_lock(&g->box_lock);
    const bool ok = look(g, &failed);
    *value = g->signalled[box];
    pthread_mutex_unlock(&g->box_lock);
    return ok ? YK_OK : yk_cl_fail(failed, "work before a mailbox signal");
}
