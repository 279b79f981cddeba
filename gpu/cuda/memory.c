/* memory.c - device memory counted against the budget, page-locked host memory, copies. */
#include "gpu/cuda/internal.h"

/* Page-locked memory of all open devices: it is locked for each of them (CU_MEMHOSTALLOC_PORTABLE), and copies of other memory go another
 * way. The same registration may be asked for by several devices. */
typedef struct range {
    struct range *next;
    uint8_t *data;
    uint64_t bytes;
    uint32_t users;
} range;

static range *ranges;
static pthread_mutex_t ranges_lock = PTHREAD_MUTEX_INITIALIZER;

static bool is_pinned(const void *data, uint64_t bytes)
{
    const uintptr_t from = (uintptr_t)data;
    bool found = false;
    pthread_mutex_lock(&ranges_lock);
    for (const range *r = ranges; r && !found; r = r->next)
        found = from >= (uintptr_t)r->data && from - (uintptr_t)r->data <= r->bytes &&
                bytes <= r->bytes - (from - (uintptr_t)r->data);
    pthread_mutex_unlock(&ranges_lock);
    return found;
}

/* The range that begins at data with that size becomes used once more; false: there is none. ranges_lock held. */
static bool range_share(const void *data, uint64_t bytes)
{
    for (range *r = ranges; r; r = r->next)
        if (r->data == data && r->bytes == bytes) {
            r->users++;
            return true;
        }
    return false;
}

/* True when nobody uses the range any more; ranges_lock held. */
static bool range_drop(const void *data)
{
    for (range **p = &ranges; *p; p = &(*p)->next) {
        range *r = *p;
        if (r->data != data)
            continue;
        if (--r->users)
            return false;
        *p = r->next;
        yk_module_host->free(r);
        return true;
    }
    return false;
}

/* Waits for everything on the device's streams, unless some of it waits for the host. */
static void drain(yk_gpu *g)
{
    if (!yk_cu_flows(g) || yk_cu_enter(g) != CUDA_SUCCESS)
        return;
    for (const yk_gpu_stream *s = g->streams; s; s = s->next)
        yk_cu.cuStreamSynchronize(s->stream);
    yk_cu_leave();
}

static void unpin(yk_gpu *g, const void *data, bool registered);

/* ---- device memory ---- */

static void free_memory(yk_gpu *g, yk_cu_mem *m)
{
    if (yk_cu_enter(g) == CUDA_SUCCESS) {
        yk_cu.cuMemFree(m->ptr); /* fails when the device is lost: then its memory is gone with it */
        yk_cu_leave();
    }
    yk_module_budget_give(&g->budget, m->cls, m->bytes);
    yk_module_host->free(m);
}

static yk_cu_pinned *dead_pinned(const yk_gpu *g)
{
    yk_cu_pinned *p = g->pinned;
    while (p && !p->dead)
        p = p->next;
    return p;
}

void yk_cu_reap(yk_gpu *g)
{
    if ((!g->graves && !dead_pinned(g)) || !yk_cu_flows(g))
        return;
    drain(g);
    while (g->graves) {
        yk_cu_mem *m = g->graves;
        g->graves = m->next;
        free_memory(g, m);
    }
    for (yk_cu_pinned *p; (p = dead_pinned(g));)
        unpin(g, p->data, false);
}

yk_status yk_cu_mem_alloc(yk_gpu *g, yk_mem_class cls, uint64_t bytes, yk_gpu_mem *out)
{
    *out = (yk_gpu_mem){0};
    if (!bytes)
        return yk_module_fail(YK_ERR_USAGE, "device memory of 0 bytes");
    yk_cu_reap(g);
    const yk_status st = yk_module_budget_take(&g->budget, cls, bytes);
    if (st != YK_OK)
        return st;
    yk_cu_mem *m = yk_module_host->alloc(sizeof *m);
    if (!m) {
        yk_module_budget_give(&g->budget, cls, bytes);
        return yk_module_out_of_memory(sizeof *m, "device memory");
    }
    CUdeviceptr ptr = 0;
    CUresult e = yk_cu_enter(g);
    if (e == CUDA_SUCCESS) {
        e = yk_cu.cuMemAlloc(&ptr, bytes);
        yk_cu_leave();
    }
    if (e != CUDA_SUCCESS) {
        yk_module_host->free(m);
        yk_module_budget_give(&g->budget, cls, bytes);
        if (e != CUDA_ERROR_OUT_OF_MEMORY)
            return yk_cu_fail(e, "cuMemAlloc");
        return yk_module_fail(YK_ERR_MEMORY, "the device refused %" PRIu64 " bytes: %s", bytes, yk_cu_error_name(e));
    }
    *m = (yk_cu_mem){.next = g->mems, .ptr = ptr, .bytes = bytes, .cls = cls};
    g->mems = m;
    *out = (yk_gpu_mem){.handle = m, .bytes = bytes};
    return YK_OK;
}

/* Work that is under way may still use the memory: it is freed behind that, and counted until then. */
void yk_cu_mem_free(yk_gpu *g, yk_mem_class cls, yk_gpu_mem *mem)
{
    (void)cls; /* the reservation knows its own */
    for (yk_cu_mem **p = &g->mems; *p; p = &(*p)->next) {
        yk_cu_mem *m = *p;
        if (m != mem->handle)
            continue;
        *p = m->next;
        m->next = g->graves;
        g->graves = m;
        yk_cu_reap(g);
        break;
    }
    *mem = (yk_gpu_mem){0};
}

void yk_cu_mem_used(const yk_gpu *g, uint64_t used[YK_MEM_N_CLASSES], uint64_t *budget)
{
    memcpy(used, g->budget.used, sizeof g->budget.used);
    used[YK_MEM_RUNTIME] += g->runtime_bytes;
    *budget = g->budget.limit;
}

/* ---- page-locked host memory ---- */

/* Locks data, or new memory when it is NULL. */
static yk_status pin(yk_gpu *g, void *data, uint64_t bytes, void **out)
{
    yk_cu_pinned *p = yk_module_host->alloc(sizeof *p);
    range *r = p ? yk_module_host->alloc(sizeof *r) : NULL;
    if (!r) {
        yk_module_host->free(p);
        return yk_module_out_of_memory(sizeof *p, "page-locked memory");
    }
    void *got = data;
    pthread_mutex_lock(&ranges_lock);
    const bool shared = data && range_share(data, bytes);
    CUresult e = shared ? CUDA_SUCCESS : yk_cu_enter(g);
    if (e == CUDA_SUCCESS && !shared) {
        e = data ? yk_cu.cuMemHostRegister(data, bytes, CU_MEMHOSTREGISTER_PORTABLE)
                 : yk_cu.cuMemHostAlloc(&got, bytes, CU_MEMHOSTALLOC_PORTABLE);
        yk_cu_leave();
        if (e == CUDA_SUCCESS) {
            *r = (range){.next = ranges, .data = got, .bytes = bytes, .users = 1};
            ranges = r;
            r = NULL;
        }
    }
    pthread_mutex_unlock(&ranges_lock);
    yk_module_host->free(r);
    if (e != CUDA_SUCCESS) {
        yk_module_host->free(p);
        if (yk_cu_is_lost(e))
            return yk_cu_fail(e, "page-locked memory");
        return yk_module_fail(YK_ERR_MEMORY,
                              "the driver refused to lock %" PRIu64 " bytes of host memory (%s): copies use pageable memory",
                              bytes, yk_cu_error_name(e));
    }
    *p = (yk_cu_pinned){.next = g->pinned, .data = got, .bytes = bytes, .registered = data};
    g->pinned = p;
    *out = got;
    return YK_OK;
}

static void unpin(yk_gpu *g, const void *data, bool registered)
{
    for (yk_cu_pinned **at = &g->pinned; *at; at = &(*at)->next) {
        yk_cu_pinned *p = *at;
        if (p->data != data || p->registered != registered)
            continue;
        if (!registered && !yk_cu_flows(g)) { /* the driver would wait for the device */
            p->dead = true;
            return;
        }
        *at = p->next;
        drain(g);
        pthread_mutex_lock(&ranges_lock);
        if (range_drop(p->data) && yk_cu_enter(g) == CUDA_SUCCESS) {
            if (registered)
                yk_cu.cuMemHostUnregister(p->data);
            else
                yk_cu.cuMemFreeHost(p->data);
            yk_cu_leave();
        }
        pthread_mutex_unlock(&ranges_lock);
        yk_module_host->free(p);
        return;
    }
}

yk_status yk_cu_host_alloc(yk_gpu *g, uint64_t bytes, void **out)
{
    *out = NULL;
    if (!bytes)
        return yk_module_fail(YK_ERR_USAGE, "page-locked memory of 0 bytes");
    return pin(g, NULL, bytes, out);
}

void yk_cu_host_free(yk_gpu *g, void *p)
{
    unpin(g, p, false);
}

yk_status yk_cu_host_register(yk_gpu *g, void *p, uint64_t bytes)
{
    void *same;
    if (!p || !bytes)
        return yk_module_fail(YK_ERR_USAGE, "no host memory to lock");
    return pin(g, p, bytes, &same);
}

void yk_cu_host_unregister(yk_gpu *g, void *p)
{
    unpin(g, p, true);
}

void yk_cu_memory_close(yk_gpu *g)
{
    while (g->pinned)
        unpin(g, g->pinned->data, g->pinned->registered);
    while (g->mems)
        yk_cu_mem_free(g, g->mems->cls, &(yk_gpu_mem){.handle = g->mems});
    yk_cu_reap(g);
}

/* ---- copies ---- */

/* Address of mem when bytes fit in it; false with a line. */
static bool address_of(const yk_gpu_mem *mem, uint64_t bytes, const char *what, CUdeviceptr *at)
{
    const yk_cu_mem *m = mem->handle;
    if (m && yk_module_inside(mem, bytes, m->bytes)) {
        *at = m->ptr + mem->offset;
        return true;
    }
    yk_module_fail(YK_ERR_USAGE, "%s of %" PRIu64 " bytes at %" PRIu64 " leaves the reservation of %" PRIu64, what, bytes,
                   mem->offset, m ? m->bytes : 0);
    return false;
}

yk_status yk_cu_copy_to_device(yk_gpu_stream *s, yk_gpu_mem to, const void *from, uint64_t bytes)
{
    yk_cu_cmd c = {.op = YK_CU_TO_DEVICE, .host_from = from, .bytes = bytes, .pinned = is_pinned(from, bytes)};
    if (!address_of(&to, bytes, "a copy to the device", &c.to))
        return YK_ERR_USAGE;
    return bytes ? yk_cu_submit(s, &c) : YK_OK;
}

yk_status yk_cu_copy_to_host(yk_gpu_stream *s, void *to, yk_gpu_mem from, uint64_t bytes)
{
    yk_cu_cmd c = {.op = YK_CU_TO_HOST, .host_to = to, .bytes = bytes, .pinned = is_pinned(to, bytes)};
    if (!address_of(&from, bytes, "a copy to the host", &c.from))
        return YK_ERR_USAGE;
    return bytes ? yk_cu_submit(s, &c) : YK_OK;
}

yk_status yk_cu_copy_device(yk_gpu_stream *s, yk_gpu_mem to, yk_gpu_mem from, uint64_t bytes)
{
    yk_cu_cmd c = {.op = YK_CU_DEVICE, .bytes = bytes};
    if (!address_of(&to, bytes, "a copy on the device", &c.to) || !address_of(&from, bytes, "a copy on the device", &c.from))
        return YK_ERR_USAGE;
    return bytes ? yk_cu_submit(s, &c) : YK_OK;
}

yk_status yk_cu_fill(yk_gpu_stream *s, yk_gpu_mem mem, uint8_t byte, uint64_t bytes)
{
    yk_cu_cmd c = {.op = YK_CU_FILL, .bytes = bytes, .byte = byte};
    if (!address_of(&mem, bytes, "a fill", &c.to))
        return YK_ERR_USAGE;
    return bytes ? yk_cu_submit(s, &c) : YK_OK;
}
