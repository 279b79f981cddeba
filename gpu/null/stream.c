/* stream.c - streams of the null device: a list of commands each. In compute mode a thread works through it, in time mode time.c does. */
#include "gpu/null/null.h"

#include "src/base/clock.h"

/* Frees an event when the last user is gone; lock held. */
static void event_drop(yk_gpu_event *e)
{
    if (--e->refs)
        return;
    for (yk_gpu_event **p = &e->gpu->events; *p; p = &(*p)->next) {
        if (*p == e) {
            *p = e->next;
            break;
        }
    }
    yk_module_host->free(e);
}

bool yk_null_ready(const yk_gpu_stream *s, const yk_null_cmd *c)
{
    if (c->op == YK_NULL_WAIT)
        return c->event->done >=
               c->number; /* records are made before waits for them, so this ends when mailboxes hold nothing */
    if (c->op == YK_NULL_BOX_WAIT)
        return s->gpu->posted[c->box] >= c->value || s->quit;
    return true;
}

/* The work of compute mode; no lock held. */
static void work(const yk_null_cmd *c)
{
    switch (c->op) {
    case YK_NULL_LAUNCH:
        yk_null_kernel_run(c->kernel, c->groups, c->args);
        break;
    case YK_NULL_TO_DEVICE:
    case YK_NULL_TO_HOST:
    case YK_NULL_DEVICE:
        memmove(c->to, c->from, c->bytes);
        break;
    case YK_NULL_FILL:
        memset(c->to, c->byte, c->bytes);
        break;
    default:
        break;
    }
}

/* Executes c; lock held at entry and exit. */
static void run(yk_gpu_stream *s, const yk_null_cmd *c)
{
    yk_gpu *g = s->gpu;
    while (!yk_null_ready(s, c))
        pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
    work(c);
    const uint64_t end = yk_now_ns();
    pthread_mutex_lock(&g->lock);
    if (c->op == YK_NULL_RECORD) {
        c->event->done = c->number;
        c->event->ns = end;
    }
    if (c->op == YK_NULL_SIGNAL && g->signalled[c->box] < c->value)
        g->signalled[c->box] = c->value;
}

void yk_null_stream_pop(yk_gpu_stream *s)
{
    yk_null_cmd *c = s->head;
    s->head = c->next;
    s->since_ns = s->gpu->sim_ns;
    if (!s->head)
        s->tail = &s->head;
    if (c->event)
        event_drop(c->event);
    yk_module_host->free(c);
}

static void *loop(void *arg)
{
    yk_gpu_stream *s = arg;
    yk_gpu *g = s->gpu;
    pthread_mutex_lock(&g->lock);
    for (;;) {
        while (!s->head && !s->quit)
            pthread_cond_wait(&g->changed, &g->lock);
        if (!s->head)
            break;
        run(s, s->head);
        yk_null_stream_pop(s);
        pthread_cond_broadcast(&g->changed);
    }
    pthread_mutex_unlock(&g->lock);
    return NULL;
}

yk_status yk_null_stream_open(yk_gpu *gpu, yk_gpu_stream_kind kind, yk_gpu_stream **out)
{
    *out = NULL;
    if ((unsigned)kind > YK_STREAM_TO_HOST)
        return yk_module_fail(YK_ERR_USAGE, "stream kind %u does not exist", (unsigned)kind);
    yk_gpu_stream *s = yk_null_alloc(sizeof *s);
    if (!s)
        return yk_module_out_of_memory(sizeof *s, "a stream");
    *s = (yk_gpu_stream){.gpu = gpu, .kind = kind, .tail = &s->head};
    const int e = gpu->config->time ? 0 : pthread_create(&s->thread, NULL, loop, s);
    if (e) {
        yk_module_host->free(s);
        return yk_module_fail(YK_ERR_RUNTIME, "no thread for a stream: %s", strerror(e));
    }
    pthread_mutex_lock(&gpu->lock);
    s->next = gpu->streams;
    gpu->streams = s;
    pthread_mutex_unlock(&gpu->lock);
    *out = s;
    return YK_OK;
}

void yk_null_stream_close(yk_gpu_stream *s)
{
    if (!s)
        return;
    yk_gpu *g = s->gpu;
    pthread_mutex_lock(&g->lock);
    s->quit = true;
    pthread_cond_broadcast(&g->changed);
    if (g->config->time)
        yk_null_drain(s);
    pthread_mutex_unlock(&g->lock);
    if (!g->config->time)
        pthread_join(s->thread, NULL);
    for (yk_gpu_stream **p = &g->streams; *p; p = &(*p)->next) {
        if (*p == s) {
            *p = s->next;
            break;
        }
    }
    yk_module_host->free(s);
}

yk_status yk_null_stream_flush(yk_gpu_stream *stream)
{
    (void)stream; /* commands start when they are enqueued */
    return YK_OK;
}

yk_status yk_null_stream_sync(yk_gpu_stream *s)
{
    pthread_mutex_lock(&s->gpu->lock);
    if (s->gpu->config->time)
        yk_null_drain(s);
    while (s->head)
        pthread_cond_wait(&s->gpu->changed, &s->gpu->lock);
    pthread_mutex_unlock(&s->gpu->lock);
    return YK_OK;
}

/* Puts a copy of c at the end; an event of it gains a user. */
static yk_status enqueue(yk_gpu_stream *s, const yk_null_cmd *c)
{
    yk_null_cmd *own = yk_null_alloc(sizeof *own);
    if (!own)
        return yk_module_out_of_memory(sizeof *own, "a command");
    *own = *c;
    own->next = NULL;
    pthread_mutex_lock(&s->gpu->lock);
    if (s->gpu->config->time) {
        yk_null_advance(s->gpu, yk_now_ns());
        if (!s->head)
            s->since_ns = s->gpu->sim_ns;
    }
    if (own->event) {
        own->event->refs++;
        if (own->op == YK_NULL_RECORD)
            own->event->recorded++;
        own->number = own->event->recorded;
    }
    *s->tail = own;
    s->tail = &own->next;
    pthread_cond_broadcast(&s->gpu->changed);
    pthread_mutex_unlock(&s->gpu->lock);
    return YK_OK;
}

yk_status yk_null_event_open(yk_gpu *gpu, yk_gpu_event **out)
{
    yk_gpu_event *e = *out = yk_null_alloc(sizeof *e);
    if (!e)
        return yk_module_out_of_memory(sizeof *e, "an event");
    *e = (yk_gpu_event){.gpu = gpu, .refs = 1};
    pthread_mutex_lock(&gpu->lock);
    e->next = gpu->events;
    gpu->events = e;
    pthread_mutex_unlock(&gpu->lock);
    return YK_OK;
}

void yk_null_event_close(yk_gpu_event *e)
{
    if (!e)
        return;
    yk_gpu *g = e->gpu;
    pthread_mutex_lock(&g->lock);
    event_drop(e);
    pthread_mutex_unlock(&g->lock);
}

yk_status yk_null_event_record(yk_gpu_stream *s, yk_gpu_event *e)
{
    return enqueue(s, &(yk_null_cmd){.op = YK_NULL_RECORD, .event = e});
}

yk_status yk_null_event_wait(yk_gpu_stream *s, yk_gpu_event *e)
{
    return enqueue(s, &(yk_null_cmd){.op = YK_NULL_WAIT, .event = e});
}

yk_status yk_null_event_time(yk_gpu_event *e, uint64_t *ns)
{
    pthread_mutex_lock(&e->gpu->lock);
    if (e->gpu->config->time)
        yk_null_advance(e->gpu, yk_now_ns());
    const bool done = e->recorded && e->done == e->recorded;
    *ns = done ? e->ns : 0;
    pthread_mutex_unlock(&e->gpu->lock);
    return done ? YK_OK : yk_module_fail(YK_ERR_USAGE, "the event has not been reached: synchronise the stream first");
}

static uint64_t cost(const yk_gpu *g, double seconds)
{
    return g->config->time ? (uint64_t)(seconds * g->config->dilation * 1e9) : 0;
}

/* Factor on a copy from or to host memory: 1 when it is page-locked. */
static double page_factor(yk_gpu *g, const void *host, uint64_t bytes)
{
    const uintptr_t from = (uintptr_t)host;
    double f = g->config->page;
    for (const yk_null_pinned *p = g->pinned; p; p = p->next)
        if (from >= (uintptr_t)p->data && from + bytes <= (uintptr_t)p->data + p->bytes)
            f = 1;
    return f;
}

/* Data of mem, or NULL with a line when bytes do not fit in it. */
static uint8_t *data_of(const yk_gpu_mem *mem, uint64_t bytes, const char *what)
{
    const yk_null_mem *m = mem->handle;
    if (m && yk_module_inside(mem, bytes, m->bytes))
        return m->data + mem->offset;
    yk_module_fail(YK_ERR_USAGE, "%s of %" PRIu64 " bytes at %" PRIu64 " leaves the reservation of %" PRIu64, what, bytes,
                   mem->offset, m ? m->bytes : 0);
    return NULL;
}

yk_status yk_null_copy_to_device(yk_gpu_stream *s, yk_gpu_mem to, const void *from, uint64_t bytes)
{
    const yk_null_config *c = s->gpu->config;
    uint8_t *p = data_of(&to, bytes, "a copy to the device");
    if (!p)
        return YK_ERR_USAGE;
    return enqueue(s,
                   &(yk_null_cmd){.op = YK_NULL_TO_DEVICE,
                                  .lane = YK_NULL_UP,
                                  .to = p,
                                  .from = from,
                                  .bytes = bytes,
                                  .cost_ns = cost(s->gpu, c->copy + page_factor(s->gpu, from, bytes) * (double)bytes / c->up)});
}

yk_status yk_null_copy_to_host(yk_gpu_stream *s, void *to, yk_gpu_mem from, uint64_t bytes)
{
    const yk_null_config *c = s->gpu->config;
    const uint8_t *p = data_of(&from, bytes, "a copy to the host");
    if (!p)
        return YK_ERR_USAGE;
    return enqueue(s,
                   &(yk_null_cmd){.op = YK_NULL_TO_HOST,
                                  .lane = YK_NULL_DOWN,
                                  .to = to,
                                  .from = p,
                                  .bytes = bytes,
                                  .cost_ns = cost(s->gpu, c->copy + page_factor(s->gpu, to, bytes) * (double)bytes / c->down)});
}

yk_status yk_null_copy_device(yk_gpu_stream *s, yk_gpu_mem to, yk_gpu_mem from, uint64_t bytes)
{
    const yk_null_config *c = s->gpu->config;
    uint8_t *p = data_of(&to, bytes, "a copy on the device");
    const uint8_t *q = data_of(&from, bytes, "a copy on the device");
    if (!p || !q)
        return YK_ERR_USAGE;
    return enqueue(s, &(yk_null_cmd){.op = YK_NULL_DEVICE,
                                     .to = p,
                                     .from = q,
                                     .bytes = bytes,
                                     .cost_ns = cost(s->gpu, c->launch + 2 * (double)bytes / c->vram)});
}

yk_status yk_null_fill(yk_gpu_stream *s, yk_gpu_mem mem, uint8_t byte, uint64_t bytes)
{
    const yk_null_config *c = s->gpu->config;
    uint8_t *p = data_of(&mem, bytes, "a fill");
    if (!p)
        return YK_ERR_USAGE;
    return enqueue(s, &(yk_null_cmd){.op = YK_NULL_FILL,
                                     .to = p,
                                     .byte = byte,
                                     .bytes = bytes,
                                     .cost_ns = cost(s->gpu, c->launch + (double)bytes / c->vram)});
}

yk_status yk_null_launch(yk_gpu_stream *s, const yk_gpu_launch *l)
{
    const yk_null_config *c = s->gpu->config;
    const bool host = l->kernel->index == yk_null_n_kernels();
    const yk_host_kernel *k = host ? &(yk_host_kernel){"host", "", NULL} : yk_null_kernel(l->kernel->index);
    const yk_status st = yk_module_check_launch(l, k->name, k->kinds);
    if (st != YK_OK)
        return st;
    if (host)
        return enqueue(s, &(yk_null_cmd){.op = YK_NULL_LAUNCH,
                                         .lane = YK_NULL_HOST,
                                         .cost_ns = cost(s->gpu, c->host_fixed + (double)l->cost_bytes / c->host)});
    yk_null_cmd cmd = {.op = YK_NULL_LAUNCH, .kernel = l->kernel->index, .n_args = l->n_args};
    memcpy(cmd.groups, l->groups, sizeof cmd.groups);
    for (uint32_t i = 0; i < l->n_args; i++) {
        const yk_gpu_arg *a = &l->args[i];
        const yk_null_mem *m = a->kind == YK_ARG_MEM ? a->mem.handle : NULL;
        if (m)
            cmd.args[i] = (yk_host_arg){.base = m->data, .at = a->mem.offset};
        else if (a->kind == YK_ARG_U32)
            cmd.args[i].u32 = a->u32;
        else if (a->kind == YK_ARG_F32)
            cmd.args[i].f32 = a->f32;
    }
    const double bytes = (double)l->cost_bytes / c->vram, flops = (double)l->cost_flops / c->flops;
    cmd.cost_ns = cost(s->gpu, c->launch + (bytes > flops ? bytes : flops));
    return enqueue(s, &cmd);
}

static yk_status check_box(uint32_t box)
{
    return box < YK_GPU_MAILBOXES
               ? YK_OK
               : yk_module_fail(YK_ERR_USAGE, "mailbox %u does not exist, there are %d", box, YK_GPU_MAILBOXES);
}

/* The signal is seen some time after the work before it, which holds nothing up but what follows on the stream. */
static yk_status enqueue_signal(yk_gpu_stream *s, uint32_t box, uint32_t value)
{
    const yk_null_cmd c = {.op = YK_NULL_SIGNAL,
                           .lane = (enum yk_null_lane)s->kind,
                           .box = box,
                           .value = value,
                           .cost_ns = cost(s->gpu, s->gpu->config->signal)};
    return enqueue(s, &c);
}

yk_status yk_null_box_signal(yk_gpu_stream *s, uint32_t box, uint32_t value)
{
    const yk_status st = check_box(box);
    return st == YK_OK ? enqueue_signal(s, box, value) : st;
}

yk_status yk_null_box_wait(yk_gpu_stream *s, uint32_t box, uint32_t value)
{
    const yk_status st = check_box(box);
    return st == YK_OK ? enqueue(s, &(yk_null_cmd){.op = YK_NULL_BOX_WAIT, .box = box, .value = value}) : st;
}

yk_status yk_null_box_post(yk_gpu *g, uint32_t box, uint32_t value)
{
    const yk_status st = check_box(box);
    if (st != YK_OK)
        return st;
    pthread_mutex_lock(&g->lock);
    if (g->config->time)
        yk_null_advance(g, yk_now_ns());
    if (g->posted[box] < value)
        g->posted[box] = value;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
    return YK_OK;
}

yk_status yk_null_box_value(yk_gpu *g, uint32_t box, uint32_t *value)
{
    const yk_status st = check_box(box);
    if (st != YK_OK)
        return st;
    pthread_mutex_lock(&g->lock);
    if (g->config->time)
        yk_null_advance(g, yk_now_ns());
    *value = g->signalled[box];
    pthread_mutex_unlock(&g->lock);
    return YK_OK;
}
