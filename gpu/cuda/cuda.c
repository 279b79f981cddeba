/* cuda.c - devices, opening and closing, the table.
 *
 * Devices are used through their primary context, which a host program's own CUDA code shares. It is kept from its first use until the module
 * is closed: what the context takes is taken before free memory is asked for, and host memory that several devices use stays locked
 * when the device is closed that locked it. */
#include "gpu/cuda/internal.h"

enum { MAX_DEVICES = 32, MIN_LOCAL_BYTES = 16384 };

static struct {
    CUdevice device;
    CUcontext context; /* kept; or NULL */
    int sm;
} devices[MAX_DEVICES];
static uint32_t n_devices;

static int attribute(CUdevice d, CUdevice_attribute what)
{
    int v = 0;
    return yk_cu.cuDeviceGetAttribute(&v, what, d) == CUDA_SUCCESS ? v : 0;
}

static void name_of(CUdevice d, char *name, size_t size)
{
    snprintf(name, size, "unknown");
    yk_cu.cuDeviceGetName(name, (int)size, d);
    name[size - 1] = 0;
    for (; *name; name++)
        if ((unsigned char)*name < 0x20 || *name == 0x7f)
            *name = ' ';
}

/* Why a device cannot be used goes to the line; false then. */
static bool usable(CUdevice d, int sm)
{
    char name[100];
    name_of(d, name, sizeof name);
    if (!yk_cu_program_fits(sm)) {
        yk_module_fail(YK_ERR_RUNTIME, "%s (sm_%d): this yoke has kernels for %s only: build it with -Dnvcc_arch=%d", name, sm,
                       yk_cu_program_archs(), sm);
        return false;
    }
    if (attribute(d, CU_DEVICE_ATTRIBUTE_COMPUTE_MODE) == CU_COMPUTEMODE_PROHIBITED) {
        yk_module_fail(YK_ERR_RUNTIME, "%s: its compute mode is \"prohibited\" (nvidia-smi -c DEFAULT changes it)", name);
        return false;
    }
    if (attribute(d, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK) < MIN_LOCAL_BYTES ||
        !attribute(d, CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING)) {
        yk_module_fail(YK_ERR_RUNTIME, "%s has too little shared memory or no unified addresses", name);
        return false;
    }
    return true;
}

static void find_devices(void)
{
    int n = 0;
    n_devices = 0;
    if (yk_cu_driver_open() != YK_OK)
        return;
    const CUresult e = yk_cu.cuDeviceGetCount(&n);
    if (e != CUDA_SUCCESS)
        yk_cu_fail(e, "looking for devices");
    else if (!n)
        yk_module_fail(YK_ERR_RUNTIME, "the NVIDIA driver has no device");
    for (int i = 0; e == CUDA_SUCCESS && i < n && n_devices < MAX_DEVICES; i++) {
        CUdevice d;
        if (yk_cu.cuDeviceGet(&d, i) != CUDA_SUCCESS)
            continue;
        const int sm = 10 * attribute(d, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) +
                       attribute(d, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
        if (!usable(d, sm))
            continue;
        devices[n_devices].device = d; /* a context that is kept from an earlier opening is of the same device */
        devices[n_devices++].sm = sm;
    }
}

static uint32_t cuda_count(void)
{
    return n_devices;
}

static yk_status no_device(uint32_t index)
{
    return yk_module_fail(YK_ERR_USAGE, "CUDA device %u does not exist, there are %u", index, n_devices);
}

static yk_status keep_context(uint32_t index)
{
    if (devices[index].context)
        return YK_OK;
    const CUresult e = yk_cu.cuDevicePrimaryCtxRetain(&devices[index].context, devices[index].device);
    if (e == CUDA_SUCCESS)
        return YK_OK;
    devices[index].context = NULL;
    return yk_cu_fail(e, "the device's context");
}

static yk_status free_memory(CUcontext context, size_t *free_bytes)
{
    size_t total;
    CUcontext before;
    CUresult e = yk_cu.cuCtxPushCurrent(context);
    if (e == CUDA_SUCCESS) {
        e = yk_cu.cuMemGetInfo(free_bytes, &total);
        yk_cu.cuCtxPopCurrent(&before);
    }
    return e == CUDA_SUCCESS ? YK_OK : yk_cu_fail(e, "cuMemGetInfo");
}

static yk_status cuda_info(uint32_t index, yk_gpu_info *out)
{
    *out = (yk_gpu_info){0};
    if (index >= n_devices)
        return no_device(index);
    const CUdevice d = devices[index].device;
    size_t total = 0, free_bytes = 0;
    yk_status st = keep_context(index);
    if (st == YK_OK)
        st = free_memory(devices[index].context, &free_bytes);
    if (st != YK_OK)
        return st;
    const CUresult e = yk_cu.cuDeviceTotalMem(&total, d);
    if (e != CUDA_SUCCESS)
        return yk_cu_fail(e, "cuDeviceTotalMem");
    name_of(d, out->name, sizeof out->name);
    snprintf(out->driver, sizeof out->driver, "CUDA %d.%d, sm_%d", yk_cu.version / 1000, yk_cu.version % 1000 / 10,
             devices[index].sm);
    out->memory_bytes = total;
    out->memory_free_bytes = free_bytes;
    out->max_alloc_bytes = total;
    out->compute_units = (uint32_t)attribute(d, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    out->lanes = (uint32_t)attribute(d, CU_DEVICE_ATTRIBUTE_WARP_SIZE);
    out->max_group = (uint32_t)attribute(d, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
    out->local_bytes = (uint32_t)attribute(d, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK);
    out->shared_memory = attribute(d, CU_DEVICE_ATTRIBUTE_INTEGRATED);
    return YK_OK;
}

static void cuda_close(yk_gpu *g)
{
    if (!g)
        return;
    yk_cu_streams_close(g);
    yk_cu_memory_close(g);
    yk_cu_boxes_close(g);
    yk_cu_program_close(g);
    yk_cu.cuDevicePrimaryCtxRelease(g->device);
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->changed);
    yk_module_host->free(g);
}

/* What follows the context: kernels, the own stream, mailboxes, the clock. */
static yk_status open_parts(yk_gpu *g)
{
    const char *options = yk_module_host->options;
    size_t before = 0, after = 0;
    yk_status st = free_memory(g->context, &before);
    g->mma = !(options && strstr(options, "nomma")); /* each architecture that is compiled for has them */
    if (st == YK_OK)
        st = yk_cu_program_open(g);
    if (st == YK_OK)
        st = yk_cu_stream_open(g, YK_STREAM_COMPUTE, &g->own);
    if (st == YK_OK)
        st = yk_cu_boxes_open(g, options && strstr(options, "hold"));
    if (st == YK_OK)
        st = yk_cu_clock_measure(g);
    if (st == YK_OK)
        st = free_memory(g->context, &after);
    g->runtime_bytes = before > after ? before - after : 0;
    return st;
}

static yk_status cuda_open(yk_gpu **out, uint32_t index, uint64_t budget_bytes)
{
    *out = NULL;
    if (index >= n_devices)
        return no_device(index);
    const yk_status kept = keep_context(index);
    if (kept != YK_OK)
        return kept;
    yk_gpu *g = yk_module_host->alloc(sizeof *g);
    if (!g)
        return yk_module_out_of_memory(sizeof *g, "a device");
    *g = (yk_gpu){.device = devices[index].device, .budget = {.limit = budget_bytes}};
    const CUresult e = yk_cu.cuDevicePrimaryCtxRetain(&g->context, g->device);
    if (e != CUDA_SUCCESS) {
        yk_module_host->free(g);
        return yk_cu_fail(e, "the device's context");
    }
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
    const yk_status st = open_parts(g);
    if (st != YK_OK) {
        char line[512];
        snprintf(line, sizeof line, "%s", yk_module_last_error());
        cuda_close(g);
        return yk_module_fail(st, "%s", line);
    }
    *out = g;
    return YK_OK;
}

static void cuda_module_close(void)
{
    for (uint32_t i = 0; i < MAX_DEVICES; i++) {
        if (devices[i].context)
            yk_cu.cuDevicePrimaryCtxRelease(devices[i].device);
        devices[i].context = NULL;
    }
    n_devices = 0;
}

static const yk_device_table cuda_table = {
    .abi = YK_DEVICE_ABI,
    .size = sizeof(yk_device_table),
    .backend = "cuda",
    .last_error = yk_module_last_error,
    .count = cuda_count,
    .info = cuda_info,
    .open = cuda_open,
    .close = cuda_close,
    .module_close = cuda_module_close,
    .mem_alloc = yk_cu_mem_alloc,
    .mem_free = yk_cu_mem_free,
    .mem_used = yk_cu_mem_used,
    .host_alloc = yk_cu_host_alloc,
    .host_free = yk_cu_host_free,
    .host_register = yk_cu_host_register,
    .host_unregister = yk_cu_host_unregister,
    .stream_open = yk_cu_stream_open,
    .stream_close = yk_cu_stream_close,
    .stream_flush = yk_cu_stream_flush,
    .stream_sync = yk_cu_stream_sync,
    .event_open = yk_cu_event_open,
    .event_close = yk_cu_event_close,
    .event_record = yk_cu_event_record,
    .event_wait = yk_cu_event_wait,
    .event_time = yk_cu_event_time,
    .copy_to_device = yk_cu_copy_to_device,
    .copy_to_host = yk_cu_copy_to_host,
    .copy_device = yk_cu_copy_device,
    .fill = yk_cu_fill,
    .kernel_get = yk_cu_kernel_get,
    .launch = yk_cu_launch,
    .box_signal = yk_cu_box_signal,
    .box_wait = yk_cu_box_wait,
    .box_post = yk_cu_box_post,
    .box_value = yk_cu_box_value,
};

yk_status yk_module_open(uint32_t abi, const yk_host_calls *host, yk_device_table *out)
{
    const yk_status fits = yk_module_attach(abi, host, &cuda_table, out);
    if (fits != YK_OK)
        return fits;
    find_devices();
    return YK_OK;
}
