/* opencl.c - platforms and devices, opening and closing, the table. */
#include "gpu/opencl/opencl.h"

#include <stdlib.h>

enum { MAX_DEVICES = 32, MIN_LOCAL_BYTES = 16384 };

static cl_device_id devices[MAX_DEVICES];
static uint32_t n_devices;

const char *yk_cl_error_name(cl_int e)
{
    static const struct {
        cl_int e;
        const char *name;
    } names[] = {
#define E(name) {name, #name}
        E(CL_DEVICE_NOT_FOUND),
        E(CL_DEVICE_NOT_AVAILABLE),
        E(CL_COMPILER_NOT_AVAILABLE),
        E(CL_MEM_OBJECT_ALLOCATION_FAILURE),
        E(CL_OUT_OF_RESOURCES),
        E(CL_OUT_OF_HOST_MEMORY),
        E(CL_PROFILING_INFO_NOT_AVAILABLE),
        E(CL_MEM_COPY_OVERLAP),
        E(CL_BUILD_PROGRAM_FAILURE),
        E(CL_MAP_FAILURE),
        E(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST),
        E(CL_INVALID_VALUE),
        E(CL_INVALID_DEVICE),
        E(CL_INVALID_CONTEXT),
        E(CL_INVALID_QUEUE_PROPERTIES),
        E(CL_INVALID_COMMAND_QUEUE),
        E(CL_INVALID_HOST_PTR),
        E(CL_INVALID_MEM_OBJECT),
        E(CL_INVALID_BINARY),
        E(CL_INVALID_BUILD_OPTIONS),
        E(CL_INVALID_PROGRAM),
        E(CL_INVALID_PROGRAM_EXECUTABLE),
        E(CL_INVALID_KERNEL_NAME),
        E(CL_INVALID_KERNEL),
        E(CL_INVALID_ARG_INDEX),
        E(CL_INVALID_ARG_VALUE),
        E(CL_INVALID_ARG_SIZE),
        E(CL_INVALID_KERNEL_ARGS),
        E(CL_INVALID_WORK_GROUP_SIZE),
        E(CL_INVALID_EVENT_WAIT_LIST),
        E(CL_INVALID_EVENT),
        E(CL_INVALID_OPERATION),
        E(CL_INVALID_BUFFER_SIZE),
        E(CL_INVALID_GLOBAL_WORK_SIZE),
        {-1001, "CL_PLATFORM_NOT_FOUND_KHR"},
#undef E
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].e == e)
            return names[i].name;
    static _Thread_local char other[32];
    snprintf(other, sizeof other, "OpenCL error %d", e);
    return other;
}

yk_status yk_cl_fail(cl_int e, const char *what)
{
    const bool memory = e == CL_MEM_OBJECT_ALLOCATION_FAILURE || e == CL_OUT_OF_HOST_MEMORY;
    return yk_module_fail(memory ? YK_ERR_MEMORY : YK_ERR_RUNTIME, "%s: %s", what, yk_cl_error_name(e));
}

/* Numbers the driver does not give stay 0. */
static cl_ulong number(cl_device_id d, cl_device_info what)
{
    union {
        cl_ulong u64;
        cl_uint u32;
    } v = {0};
    size_t n = 0;
    if (clGetDeviceInfo(d, what, sizeof v, &v, &n) != CL_SUCCESS)
        return 0;
    return n == sizeof v.u32 ? v.u32 : v.u64;
}

/* Why a device cannot be used, or NULL. */
static const char *unusable(cl_device_id d)
{
    char version[512] = ""; /* a driver gives all or nothing */
    clGetDeviceInfo(d, CL_DEVICE_VERSION, sizeof version, version, NULL);
    if (strncmp(version, "OpenCL 1.0", 10) == 0 || strncmp(version, "OpenCL 1.1", 10) == 0)
        return "is older than OpenCL 1.2";
    if (!number(d, CL_DEVICE_AVAILABLE) || !number(d, CL_DEVICE_COMPILER_AVAILABLE))
        return "is not available or has no compiler";
    if (!number(d, CL_DEVICE_ENDIAN_LITTLE))
        return "is not little endian";
    if (number(d, CL_DEVICE_MAX_WORK_GROUP_SIZE) < YK_KERNEL_GROUP || number(d, CL_DEVICE_LOCAL_MEM_SIZE) < MIN_LOCAL_BYTES)
        return "has groups or local memory too small for the kernels";
    return NULL;
}

/* GPUs first, CPUs last, else in the platforms' order. */
static void find_devices(void)
{
    static const cl_device_type order[] = {CL_DEVICE_TYPE_GPU, CL_DEVICE_TYPE_ACCELERATOR, CL_DEVICE_TYPE_CPU};
    cl_platform_id platforms[16];
    cl_uint n_platforms = 0;
    n_devices = 0;
    const cl_int e = clGetPlatformIDs(16, platforms, &n_platforms);
    n_platforms = n_platforms < 16 ? n_platforms : 16;
    if (e != CL_SUCCESS || !n_platforms)
        yk_module_fail(YK_ERR_RUNTIME, "no OpenCL driver is installed: %s", yk_cl_error_name(e));
    else
        yk_module_fail(YK_ERR_RUNTIME, "the OpenCL drivers have no device");
    for (size_t t = 0; t < sizeof order / sizeof *order; t++) {
        for (cl_uint p = 0; e == CL_SUCCESS && p < n_platforms; p++) {
            cl_device_id found[MAX_DEVICES];
            cl_uint n = 0;
            if (clGetDeviceIDs(platforms[p], order[t], MAX_DEVICES, found, &n) != CL_SUCCESS)
                continue;
            for (cl_uint i = 0; i < n && i < MAX_DEVICES && n_devices < MAX_DEVICES; i++) {
                const char *why = unusable(found[i]);
                char name[512] = "";
                clGetDeviceInfo(found[i], CL_DEVICE_NAME, sizeof name - 1, name, NULL);
                if (why)
                    yk_module_fail(YK_ERR_RUNTIME, "OpenCL device %s %s", name, why);
                else
                    devices[n_devices++] = found[i];
            }
        }
    }
}

static uint32_t opencl_count(void)
{
    return n_devices;
}

static void one_line(char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f)
            *s = ' ';
}

static yk_status opencl_info(uint32_t index, yk_gpu_info *out)
{
    enum { WARP_SIZE_NV = 0x4003, WAVEFRONT_WIDTH_AMD = 0x4043 };
    *out = (yk_gpu_info){0};
    if (index >= n_devices)
        return yk_module_fail(YK_ERR_USAGE, "OpenCL device %u does not exist, there are %u", index, n_devices);
    const cl_device_id d = devices[index];
    char name[512] = "", driver[512] = "", version[512] = "";
    clGetDeviceInfo(d, CL_DEVICE_NAME, sizeof name - 1, name, NULL);
    clGetDeviceInfo(d, CL_DRIVER_VERSION, sizeof driver - 1, driver, NULL);
    clGetDeviceInfo(d, CL_DEVICE_VERSION, sizeof version - 1, version, NULL);
    snprintf(out->name, sizeof out->name, "%.100s", name);
    snprintf(out->driver, sizeof out->driver, "%.80s, driver %.30s", version, driver);
    one_line(out->name);
    one_line(out->driver);
    out->memory_bytes = number(d, CL_DEVICE_GLOBAL_MEM_SIZE);
    out->max_alloc_bytes = number(d, CL_DEVICE_MAX_MEM_ALLOC_SIZE);
    out->compute_units = (uint32_t)number(d, CL_DEVICE_MAX_COMPUTE_UNITS);
    out->max_group = (uint32_t)number(d, CL_DEVICE_MAX_WORK_GROUP_SIZE);
    out->local_bytes = (uint32_t)number(d, CL_DEVICE_LOCAL_MEM_SIZE);
    out->lanes = (uint32_t)number(d, WARP_SIZE_NV);
    if (!out->lanes)
        out->lanes = (uint32_t)number(d, WAVEFRONT_WIDTH_AMD);
    if (!out->lanes)
        out->lanes = 1;
    out->same_silicon = number(d, CL_DEVICE_TYPE) & CL_DEVICE_TYPE_CPU;
    out->shared_memory = number(d, CL_DEVICE_HOST_UNIFIED_MEMORY);
    return YK_OK;
}

static void opencl_close(yk_gpu *g)
{
    if (!g)
        return;
    if (g->queue)
        yk_cl_streams_close(g);
    for (uint32_t i = 0; g->kernels && i < yk_cl_n_kernels(); i++)
        if (g->kernels[i].kernel)
            clReleaseKernel(g->kernels[i].kernel);
    for (uint32_t i = 0; g->programs && i < yk_cl_n_texts(); i++)
        if (g->programs[i])
            clReleaseProgram(g->programs[i]);
    yk_cl_memory_close(g);
    if (g->queue)
        clReleaseCommandQueue(g->queue);
    if (g->context)
        clReleaseContext(g->context);
    pthread_mutex_destroy(&g->box_lock);
    yk_module_host->free(g->programs);
    yk_module_host->free(g->kernels);
    yk_module_host->free(g);
}

static yk_status opencl_open(yk_gpu **out, uint32_t index, uint64_t budget_bytes)
{
    *out = NULL;
    if (index >= n_devices)
        return yk_module_fail(YK_ERR_USAGE, "OpenCL device %u does not exist, there are %u", index, n_devices);
    yk_gpu *g = yk_module_host->alloc(sizeof *g);
    if (!g)
        return yk_module_out_of_memory(sizeof *g, "a device");
    *g = (yk_gpu){.device = devices[index], .budget = {.limit = budget_bytes}};
    pthread_mutex_init(&g->box_lock, NULL);
    g->max_alloc = number(g->device, CL_DEVICE_MAX_MEM_ALLOC_SIZE);
    cl_device_type kind = 0;
    clGetDeviceInfo(g->device, CL_DEVICE_TYPE, sizeof kind, &kind, NULL);
    g->is_cpu = kind & CL_DEVICE_TYPE_CPU;
    g->exact_division = number(g->device, CL_DEVICE_SINGLE_FP_CONFIG) & CL_FP_CORRECTLY_ROUNDED_DIVIDE_SQRT;
    g->programs = yk_module_host->alloc(yk_cl_n_texts() * sizeof *g->programs);
    g->kernels = yk_module_host->alloc(yk_cl_n_kernels() * sizeof *g->kernels);
    yk_status st = g->programs && g->kernels ? YK_OK : yk_module_out_of_memory(4096, "a device");
    cl_int e;
    if (st == YK_OK) {
        yk_cl_kernel_names(g->kernels);
        g->context = clCreateContext(NULL, 1, &g->device, NULL, NULL, &e);
        if (e != CL_SUCCESS)
            st = yk_cl_fail(e, "clCreateContext");
    }
    if (st == YK_OK) {
        g->queue = clCreateCommandQueue(g->context, g->device, CL_QUEUE_PROFILING_ENABLE, &e);
        if (e != CL_SUCCESS)
            st = yk_cl_fail(e, "clCreateCommandQueue");
    }
    if (st == YK_OK)
        st = yk_cl_clock_measure(g);
    if (st != YK_OK) {
        opencl_close(g);
        return st;
    }
    *out = g;
    return YK_OK;
}

static void opencl_module_close(void)
{
    n_devices = 0;
}

static const yk_device_table opencl_table = {
    .abi = YK_DEVICE_ABI,
    .size = sizeof(yk_device_table),
    .backend = "opencl",
    .last_error = yk_module_last_error,
    .count = opencl_count,
    .info = opencl_info,
    .open = opencl_open,
    .close = opencl_close,
    .module_close = opencl_module_close,
    .mem_alloc = yk_cl_mem_alloc,
    .mem_free = yk_cl_mem_free,
    .mem_used = yk_cl_mem_used,
    .host_alloc = yk_cl_host_alloc,
    .host_free = yk_cl_host_free,
    .host_register = yk_cl_host_register,
    .host_unregister = yk_cl_host_unregister,
    .stream_open = yk_cl_stream_open,
    .stream_close = yk_cl_stream_close,
    .stream_flush = yk_cl_stream_flush,
    .stream_sync = yk_cl_stream_sync,
    .event_open = yk_cl_event_open,
    .event_close = yk_cl_event_close,
    .event_record = yk_cl_event_record,
    .event_wait = yk_cl_event_wait,
    .event_time = yk_cl_event_time,
    .copy_to_device = yk_cl_copy_to_device,
    .copy_to_host = yk_cl_copy_to_host,
    .copy_device = yk_cl_copy_device,
    .fill = yk_cl_fill,
    .kernel_get = yk_cl_kernel_get,
    .launch = yk_cl_launch,
    .box_signal = yk_cl_box_signal,
    .box_wait = yk_cl_box_wait,
    .box_post = yk_cl_box_post,
    .box_value = yk_cl_box_value,
};

yk_status yk_module_open(uint32_t abi, const yk_host_calls *host, yk_device_table *out)
{
    const yk_status fits = yk_module_attach(abi, host, &opencl_table, out);
    if (fits != YK_OK)
        return fits;
    find_devices();
    return YK_OK;
}
