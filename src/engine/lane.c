#include "src/engine/swap.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

yk_status yk_gpulane_check(const yk_gpulane *lane, yk_status st, const char *what, yk_error *err)
{
    if (st == YK_OK)
        return YK_OK;
    const char *text = lane->t->last_error();
    return yk_fail(err, st, "%s: %s: %s", lane->name, what, text && *text ? text : yk_status_name(st));
}

yk_status yk_gpulane_kernel(yk_gpulane *lane, const char *name, yk_gpu_kernel **out, yk_error *err)
{
    for (uint32_t i = 0; i < lane->n_kernels; i++)
        if (strcmp(lane->kernels[i].name, name) == 0) {
            *out = lane->kernels[i].kernel;
            return YK_OK;
        }
    YK_FAIL_IF(lane->n_kernels == YK_LANE_KERNELS, err, YK_ERR_RUNTIME, "%s: more than %d kernels", lane->name,
               YK_LANE_KERNELS);
    YK_TRY(yk_gpulane_check(lane, lane->t->kernel_get(lane->gpu, name, out), name, err));
    snprintf(lane->kernels[lane->n_kernels].name, sizeof lane->kernels->name, "%s", name);
    lane->kernels[lane->n_kernels++].kernel = *out;
    return YK_OK;
}

/* The next `bytes` of an arena, in a new chunk when the last one is full. */
yk_status yk_gpulane_take(yk_gpulane *lane, yk_dev_arena *a, uint64_t bytes, yk_gpu_mem *out, yk_error *err)
{
    const uint64_t want = (bytes + YK_LANE_ALIGN - 1) / YK_LANE_ALIGN * YK_LANE_ALIGN;
    *out = (yk_gpu_mem){0};
    if (!bytes)
        return YK_OK;
    yk_gpu_mem *last = a->n_chunks ? &a->chunks[a->n_chunks - 1] : NULL;
    if (!last || last->bytes - a->used < want) {
        yk_gpu_mem *more = yk_realloc(YK_MEM_RUNTIME, a->chunks, a->n_chunks + 1, sizeof *more);
        if (!more)
            return yk_fail_memory(err, (a->n_chunks + 1) * sizeof *more, "a table of device memory");
        a->chunks = more;
        uint64_t chunk = a->remaining > want ? a->remaining : want;
        if (lane->info.max_alloc_bytes && chunk > lane->info.max_alloc_bytes)
            chunk = want > lane->info.max_alloc_bytes ? want : lane->info.max_alloc_bytes;
        YK_TRY(yk_gpulane_check(lane, lane->t->mem_alloc(lane->gpu, a->cls, chunk, &more[a->n_chunks]), "device memory", err));
        last = &more[a->n_chunks++];
        a->used = 0;
    }
    *out = (yk_gpu_mem){last->handle, last->offset + a->used, bytes};
    a->used += want;
    a->remaining -= a->remaining > want ? want : a->remaining;
    return YK_OK;
}

static void arena_close(yk_gpulane *lane, yk_dev_arena *a)
{
    for (uint32_t i = 0; i < a->n_chunks; i++)
        lane->t->mem_free(lane->gpu, a->cls, &a->chunks[i]);
    yk_free(a->chunks);
    *a = (yk_dev_arena){0};
}

/* "opencl:1" to a backend and a device number; the number is 0 when left out. For tests "null:SETTINGS" is device 0 of the null module with the
 * settings of gpu/null/null.c. */
static yk_status find_device(yk_gpulane *l, const char *name, uint32_t *index, yk_error *err)
{
    char backend[16];
    const char *colon = strchr(name, ':');
    const size_t n = colon ? (size_t)(colon - name) : strlen(name);
    *index = 0;
    const bool null = n == 4 && memcmp(name, "null", n) == 0, settings = null && colon && (colon[1] < '0' || colon[1] > '9');
    if (colon && !settings) {
        char *end;
        const unsigned long v = strtoul(colon + 1, &end, 10);
        YK_FAIL_IF(end == colon + 1 || *end || v > 1000, err, YK_ERR_USAGE, "device %s: write BACKEND or BACKEND:NUMBER", name);
        *index = (uint32_t)v;
    }
    YK_FAIL_IF(n == 0 || n >= sizeof backend, err, YK_ERR_USAGE, "device %s: unknown backend; see yoke devices", name);
    memcpy(backend, name, n);
    backend[n] = 0;
    const yk_modules_opts mo = {.null_options = settings ? colon + 1 : null ? "compute" : NULL};
    YK_TRY(yk_modules_load(&l->modules, &mo, err));
    for (uint32_t i = 0; i < YK_N_BACKENDS; i++) {
        const yk_backend *b = &l->modules->backends[i];
        if (!b->name || strcmp(b->name, backend) != 0)
            continue;
        YK_FAIL_IF(!b->usable, err, YK_ERR_USAGE, "device %s cannot be used: %s", name, b->why);
        YK_FAIL_IF(*index >= b->n_devices, err, YK_ERR_USAGE, "device %s is not there; %s has %u", name, backend, b->n_devices);
        l->t = &b->table;
        snprintf(l->name, sizeof l->name, "%.12s:%u", backend, *index);
        return YK_OK;
    }
    return yk_fail(err, YK_ERR_USAGE, "device %s: unknown backend; see yoke devices", name);
}

uint64_t yk_gpulane_budget(uint64_t wanted, uint64_t memory_bytes, uint64_t memory_free_bytes)
{
    const uint64_t free_bytes = memory_free_bytes ? memory_free_bytes : memory_bytes;
    if (wanted) /* a ceiling: more than there is cannot be planned for */
        return wanted < free_bytes ? wanted : free_bytes;
    return free_bytes > 2 * (uint64_t)YK_LANE_RESERVE ? free_bytes - YK_LANE_RESERVE : free_bytes;
}

yk_status yk_gpulane_open(yk_gpulane **out, yk_engine *e, const char *name, uint64_t budget, yk_error *err)
{
    *out = NULL;
    yk_gpulane *l = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *l);
    if (!l)
        return yk_fail_memory(err, sizeof *l, "the GPU lane");
    l->e = e;
    l->weights.cls = YK_MEM_WEIGHTS;
    l->kv.cls = YK_MEM_KV;
    l->activation.cls = YK_MEM_ACTIVATION;
    l->staging.cls = YK_MEM_STAGING;
    uint32_t index;
    yk_status st = find_device(l, name, &index, err);
    if (st == YK_OK)
        st = yk_gpulane_check(l, l->t->info(index, &l->info), "its description", err);
    if (st == YK_OK)
        budget = l->budget = yk_gpulane_budget(budget, l->info.memory_bytes, l->info.memory_free_bytes);
    if (st == YK_OK)
        st = yk_gpulane_check(l, l->t->open(&l->gpu, index, budget), "opening it", err);
    if (st == YK_OK)
        st = yk_gpulane_check(l, l->t->stream_open(l->gpu, YK_STREAM_COMPUTE, &l->compute), "a stream", err);
    if (st == YK_OK)
        st = yk_gpulane_check(l, l->t->stream_open(l->gpu, YK_STREAM_TO_DEVICE, &l->up), "a stream", err);
    if (st == YK_OK)
        st = yk_gpulane_check(l, l->t->stream_open(l->gpu, YK_STREAM_TO_DEVICE, &l->fill_up), "a stream", err);
    if (st == YK_OK)
        st = yk_gpulane_check(l, l->t->stream_open(l->gpu, YK_STREAM_TO_HOST, &l->down), "a stream", err);
    for (uint32_t i = 0; st == YK_OK && i < YK_EV_N; i++)
        st = yk_gpulane_check(l, l->t->event_open(l->gpu, &l->ev[i]), "an event", err);
    if (st == YK_OK && !(l->marks = yk_alloc(YK_MEM_RUNTIME, YK_LANE_MARKS, sizeof *l->marks)))
        st = yk_fail_memory(err, YK_LANE_MARKS * sizeof *l->marks, "a trace");
    if (st != YK_OK) {
        yk_gpulane_close(&l);
        return st;
    }
    *out = l;
    return YK_OK;
}

void yk_gpulane_close(yk_gpulane **lane)
{
    yk_gpulane *l = *lane;
    if (!l)
        return;
    yk_swap_close(&l->swap);
    if (l->gpu) {
        yk_gpu_stream *const streams[] = {l->compute, l->up, l->fill_up, l->down};
        for (int i = 0; i < 4; i++)
            if (streams[i])
                l->t->stream_sync(streams[i]);
        for (uint32_t i = 0; l->marks && i < YK_LANE_MARKS && l->marks[i].from; i++) {
            l->t->event_close(l->marks[i].from);
            if (l->marks[i].to)
                l->t->event_close(l->marks[i].to);
        }
        for (uint32_t i = 0; i < YK_EV_N; i++)
            if (l->ev[i])
                l->t->event_close(l->ev[i]);
        for (int i = 0; i < 4; i++)
            if (streams[i])
                l->t->stream_close(streams[i]);
        arena_close(l, &l->weights);
        arena_close(l, &l->kv);
        arena_close(l, &l->activation);
        arena_close(l, &l->staging);
        if (l->kv_locked)
            l->t->host_unregister(l->gpu, l->e->kv.arena.base);
        if (l->packed_locked)
            l->t->host_unregister(l->gpu, l->e->packed.base);
        if (l->host_locked)
            l->t->host_free(l->gpu, l->host);
        else
            yk_free(l->host);
        l->t->close(l->gpu);
    }
    yk_modules_close(&l->modules);
    yk_free(l->marks);
    yk_free(l->kv_list);
    yk_free(l->kv_listed);
    yk_free(l);
    *lane = NULL;
}
