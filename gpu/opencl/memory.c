/* memory.c - buffers counted against the budget, pinned host memory, copies. */
#include "gpu/opencl/opencl.h"

/* Drivers allocate when a buffer is first used; a failure in the middle of a step is too late, so it is used at once. */
static cl_int make_real(yk_gpu *g, cl_mem mem)
{
    const cl_int e = clEnqueueMigrateMemObjects(g->queue, 1, &mem, CL_MIGRATE_MEM_OBJECT_CONTENT_UNDEFINED, 0, NULL, NULL);
    return e == CL_SUCCESS ? clFinish(g->queue) : e;
}

yk_status yk_cl_mem_alloc(yk_gpu *g, yk_mem_class cls, uint64_t bytes, yk_gpu_mem *out)
{
    *out = (yk_gpu_mem){0};
    if (!bytes)
        return yk_module_fail(YK_ERR_USAGE, "device memory of 0 bytes");
    if (bytes > g->max_alloc)
        return yk_module_fail(YK_ERR_MEMORY, "%" PRIu64 " bytes in one reservation, the device allows %" PRIu64, bytes,
                              g->max_alloc);
    const yk_status st = yk_module_budget_take(&g->budget, cls, bytes);
    if (st != YK_OK)
        return st;
    yk_cl_mem *m = yk_module_host->alloc(sizeof *m);
    if (!m) {
        yk_module_budget_give(&g->budget, cls, bytes);
        return yk_module_out_of_memory(sizeof *m, "device memory");
    }
    cl_int e;
    cl_mem mem = clCreateBuffer(g->context, CL_MEM_READ_WRITE, bytes, NULL, &e);
    if (e == CL_SUCCESS && (e = make_real(g, mem)) != CL_SUCCESS)
        clReleaseMemObject(mem);
    if (e != CL_SUCCESS) {
        yk_module_host->free(m);
        yk_module_budget_give(&g->budget, cls, bytes);
        return yk_module_fail(YK_ERR_MEMORY, "the device refused %" PRIu64 " bytes: %s", bytes, yk_cl_error_name(e));
    }
    *m = (yk_cl_mem){.next = g->mems, .mem = mem, .bytes = bytes, .cls = cls};
    g->mems = m;
    *out = (yk_gpu_mem){.handle = m, .bytes = bytes};
    return YK_OK;
}

void yk_cl_mem_free(yk_gpu *g, yk_mem_class cls, yk_gpu_mem *mem)
{
    (void)cls; /* the reservation knows its own */
    for (yk_cl_mem **p = &g->mems; *p; p = &(*p)->next) {
        yk_cl_mem *m = *p;
        if (m != mem->handle)
            continue;
        *p = m->next;
        yk_module_budget_give(&g->budget, m->cls, m->bytes);
        clReleaseMemObject(m->mem);
        yk_module_host->free(m);
        break;
    }
    *mem = (yk_gpu_mem){0};
}

void yk_cl_mem_used(const yk_gpu *g, uint64_t used[YK_MEM_N_CLASSES], uint64_t *budget)
{
    memcpy(used, g->budget.used, sizeof g->budget.used);
    *budget = g->budget.limit;
}

/* Pinned memory is a mapped buffer that lives in host memory. */
yk_status yk_cl_host_alloc(yk_gpu *g, uint64_t bytes, void **out)
{
    *out = NULL;
    if (!bytes)
        return yk_module_fail(YK_ERR_USAGE, "pinned memory of 0 bytes");
    yk_cl_pinned *p = yk_module_host->alloc(sizeof *p);
    if (!p)
        return yk_module_out_of_memory(sizeof *p, "pinned memory");
    cl_int e;
    p->mem = clCreateBuffer(g->context, CL_MEM_READ_WRITE | CL_MEM_ALLOC_HOST_PTR, bytes, NULL, &e);
    if (e == CL_SUCCESS) {
        p->data = clEnqueueMapBuffer(g->queue, p->mem, CL_TRUE, CL_MAP_READ | CL_MAP_WRITE, 0, bytes, 0, NULL, NULL, &e);
        if (e != CL_SUCCESS)
            clReleaseMemObject(p->mem);
    }
    if (e != CL_SUCCESS) {
        yk_module_host->free(p);
        return yk_module_fail(YK_ERR_MEMORY, "the driver refused %" PRIu64 " bytes of pinned memory: %s", bytes,
                              yk_cl_error_name(e));
    }
    p->next = g->pinned;
    g->pinned = p;
    *out = p->data;
    return YK_OK;
}

void yk_cl_host_free(yk_gpu *g, void *data)
{
    for (yk_cl_pinned **at = &g->pinned; *at; at = &(*at)->next) {
        yk_cl_pinned *p = *at;
        if (p->data != data)
            continue;
        *at = p->next;
        clEnqueueUnmapMemObject(g->queue, p->mem, p->data, 0, NULL, NULL);
        clFinish(g->queue);
        clReleaseMemObject(p->mem);
        yk_module_host->free(p);
        return;
    }
}

yk_status yk_cl_host_register(yk_gpu *g, void *p, uint64_t bytes)
{
    (void)g;
    (void)p;
    return yk_module_fail(YK_ERR_MEMORY, "OpenCL cannot lock %" PRIu64 " bytes that exist already: copies use pageable memory",
                          bytes);
}

void yk_cl_host_unregister(yk_gpu *g, void *p)
{
    (void)g;
    (void)p;
}

void yk_cl_memory_close(yk_gpu *g)
{
    while (g->pinned)
        yk_cl_host_free(g, g->pinned->data);
    while (g->mems)
        yk_cl_mem_free(g, g->mems->cls, &(yk_gpu_mem){.handle = g->mems});
}

/* The buffer of mem when bytes fit in it, else NULL with a line. */
static cl_mem buffer_of(const yk_gpu_mem *mem, uint64_t bytes, const char *what)
{
    const yk_cl_mem *m = mem->handle;
    if (m && yk_module_inside(mem, bytes, m->bytes))
        return m->mem;
    yk_module_fail(YK_ERR_USAGE, "%s of %" PRIu64 " bytes at %" PRIu64 " leaves the reservation of %" PRIu64, what, bytes,
                   mem->offset, m ? m->bytes : 0);
    return NULL;
}

yk_status yk_cl_copy_to_device(yk_gpu_stream *s, yk_gpu_mem to, const void *from, uint64_t bytes)
{
    const cl_mem mem = buffer_of(&to, bytes, "a copy to the device");
    if (!mem || !bytes)
        return mem ? YK_OK : YK_ERR_USAGE;
    const cl_int e = clEnqueueWriteBuffer(s->queue, mem, CL_FALSE, to.offset, bytes, from, 0, NULL, NULL);
    return e == CL_SUCCESS ? YK_OK : yk_cl_fail(e, "clEnqueueWriteBuffer");
}

yk_status yk_cl_copy_to_host(yk_gpu_stream *s, void *to, yk_gpu_mem from, uint64_t bytes)
{
    const cl_mem mem = buffer_of(&from, bytes, "a copy to the host");
    if (!mem || !bytes)
        return mem ? YK_OK : YK_ERR_USAGE;
    const cl_int e = clEnqueueReadBuffer(s->queue, mem, CL_FALSE, from.offset, bytes, to, 0, NULL, NULL);
    return e == CL_SUCCESS ? YK_OK : yk_cl_fail(e, "clEnqueueReadBuffer");
}

yk_status yk_cl_copy_device(yk_gpu_stream *s, yk_gpu_mem to, yk_gpu_mem from, uint64_t bytes)
{
    const cl_mem a = buffer_of(&to, bytes, "a copy on the device"), b = buffer_of(&from, bytes, "a copy on the device");
    if (!a || !b || !bytes)
        return a && b ? YK_OK : YK_ERR_USAGE;
    const cl_int e = clEnqueueCopyBuffer(s->queue, b, a, from.offset, to.offset, bytes, 0, NULL, NULL);
    return e == CL_SUCCESS ? YK_OK : yk_cl_fail(e, "clEnqueueCopyBuffer");
}

yk_status yk_cl_fill(yk_gpu_stream *s, yk_gpu_mem to, uint8_t byte, uint64_t bytes)
{
    const cl_mem mem = buffer_of(&to, bytes, "a fill");
    if (!mem || !bytes)
        return mem ? YK_OK : YK_ERR_USAGE;
    const cl_int e = clEnqueueFillBuffer(s->queue, mem, &byte, 1, to.offset, bytes, 0, NULL, NULL);
    return e == CL_SUCCESS ? YK_OK : yk_cl_fail(e, "clEnqueueFillBuffer");
}
