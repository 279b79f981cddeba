/* fake.c - the fake driver's settings, devices, contexts, memory, modules: fake.h. */
#include "tests/fake_cuda/fake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

fake_settings fake;
pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t fake_changed = PTHREAD_COND_INITIALIZER;
CUresult fake_sticky;
uint64_t fake_taken;

struct CUctx_st {
    int device;
};

enum { MAX_DEVICES = 4, MAX_STACK = 8 };

static struct CUctx_st contexts[MAX_DEVICES];
static uint32_t retained[MAX_DEVICES];
static bool started;
static uint64_t n_allocs;
static fake_range *ranges;
static _Thread_local CUcontext stack[MAX_STACK];
static _Thread_local uint32_t depth;

static void read_settings(const char *p)
{
    n_allocs = 0;
    fake = (fake_settings){.driver = 13000, .devices = 1, .sm = 80, .memory = 4ull << 30, .queue = 1000};
    const struct {
        const char *name;
        uint64_t *at;
    } names[] = {{"driver", &fake.driver},   {"devices", &fake.devices}, {"init", &fake.init},      {"sm", &fake.sm},
                 {"memory", &fake.memory},   {"noops", &fake.noops},     {"queue", &fake.queue},    {"fail", &fake.fail},
                 {"failpin", &fake.failpin}, {"lost", &fake.lost},       {"runtime", &fake.runtime}};
    while (p && *p) {
        const size_t n = strcspn(p, ",="), all = strcspn(p, ",");
        bool known = false;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (strlen(names[i].name) == n && memcmp(names[i].name, p, n) == 0) {
                *names[i].at = p[n] == '=' ? strtoull(p + n + 1, NULL, 10) : 1;
                known = true;
            }
        if (!known)
            fprintf(stderr, "FAKE_CUDA: unknown setting at \"%s\"\n", p);
        p += all + (p[all] == ',');
    }
}

void fake_cuda_set(const char *settings)
{
    pthread_mutex_lock(&fake_lock);
    read_settings(settings);
    pthread_mutex_unlock(&fake_lock);
}

CUresult fake_call(void)
{
    if (!started)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (!depth || !retained[stack[depth - 1]->device])
        return CUDA_ERROR_INVALID_CONTEXT;
    return fake_sticky;
}

bool fake_alloc_fails(void)
{
    return ++n_allocs == fake.fail;
}

bool fake_range_add(void *p, uint64_t bytes, int kind)
{
    fake_range *r = malloc(sizeof *r);
    if (!r)
        return false;
    *r = (fake_range){.next = ranges, .at = (uintptr_t)p, .bytes = bytes, .kind = kind};
    ranges = r;
    return true;
}

bool fake_range_remove(const void *p, int kind, uint64_t *bytes)
{
    for (fake_range **at = &ranges; *at; at = &(*at)->next) {
        fake_range *r = *at;
        if (r->at != (uintptr_t)p || (int)r->kind != kind)
            continue;
        *bytes = r->bytes;
        *at = r->next;
        free(r);
        return true;
    }
    return false;
}

bool fake_inside(const void *p, uint64_t bytes, bool host)
{
    const uintptr_t at = (uintptr_t)p;
    for (const fake_range *r = ranges; r; r = r->next)
        if ((r->kind != FAKE_DEVICE) == host && at >= r->at && at - r->at <= r->bytes && bytes <= r->bytes - (at - r->at))
            return true;
    return false;
}

#define BEGIN                                                                                                                  \
    pthread_mutex_lock(&fake_lock);                                                                                            \
    CUresult e = fake_call();                                                                                                  \
    if (e == CUDA_SUCCESS) {
#define END                                                                                                                    \
    }                                                                                                                          \
    pthread_mutex_unlock(&fake_lock);                                                                                          \
    return e;

/* ---- the driver, devices, contexts ---- */

CUresult cuInit(unsigned flags)
{
    pthread_mutex_lock(&fake_lock);
    read_settings(getenv("FAKE_CUDA"));
    started = !fake.init && !flags;
    pthread_mutex_unlock(&fake_lock);
    return (CUresult)fake.init;
}

CUresult cuDriverGetVersion(int *version)
{
    *version = (int)fake.driver;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name)
{
    static const struct {
        CUresult e;
        const char *name;
    } names[] = {
#define N(e) {e, #e}
        N(CUDA_ERROR_INVALID_VALUE),
        N(CUDA_ERROR_OUT_OF_MEMORY),
        N(CUDA_ERROR_NOT_INITIALIZED),
        N(CUDA_ERROR_NO_DEVICE),
        N(CUDA_ERROR_INVALID_CONTEXT),
        N(CUDA_ERROR_INVALID_HANDLE),
        N(CUDA_ERROR_NOT_FOUND),
        N(CUDA_ERROR_NOT_READY),
        N(CUDA_ERROR_ILLEGAL_ADDRESS),
        N(CUDA_ERROR_NOT_SUPPORTED),
        N(CUDA_ERROR_STUB_LIBRARY),
        N(CUDA_ERROR_INVALID_DEVICE),
        N(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED),
        N(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH),
        N(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED),
#undef N
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].e == error) {
            *name = names[i].name;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
    *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "the fake driver says so";
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *n)
{
    *n = (int)fake.devices;
    return started ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

CUresult cuDeviceGet(CUdevice *d, int i)
{
    *d = i;
    return i >= 0 && i < (int)fake.devices && i < MAX_DEVICES ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetName(char *name, int size, CUdevice d)
{
    snprintf(name, (size_t)size, "fake device %d", d);
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice d)
{
    (void)d;
    *bytes = fake.memory;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute what, CUdevice d)
{
    (void)d;
    switch ((int)what) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        *v = (int)fake.sm / 10;
        break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        *v = (int)fake.sm % 10;
        break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
        *v = 4;
        break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
        *v = 32;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *v = 1024;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
        *v = 49152;
        break;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
        *v = 1;
        break;
    default:
        *v = 0;
        break;
    }
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d)
{
    pthread_mutex_lock(&fake_lock);
    const bool fails = fake_alloc_fails();
    if (!fails) {
        contexts[d].device = d;
        retained[d]++;
        *c = &contexts[d];
    }
    pthread_mutex_unlock(&fake_lock);
    return fails ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

/* The last one takes everything with it; what is still there then was leaked. */
CUresult cuDevicePrimaryCtxRelease(CUdevice d)
{
    pthread_mutex_lock(&fake_lock);
    uint32_t all = 0;
    for (int i = 0; i < MAX_DEVICES; i++)
        all += retained[i];
    const bool is = retained[d] > 0, last = is && all == 1;
    if (is)
        retained[d]--;
    if (last && (fake_streams || fake_events || ranges || fake_taken)) {
        fprintf(stderr, "fake driver: the last context was released with streams, events or memory left\n");
        abort();
    }
    if (last)
        fake_sticky = CUDA_SUCCESS;
    pthread_mutex_unlock(&fake_lock);
    return is ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuCtxPushCurrent(CUcontext c)
{
    if (!c || depth == MAX_STACK)
        return CUDA_ERROR_INVALID_CONTEXT;
    stack[depth++] = c;
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext *c)
{
    if (!depth)
        return CUDA_ERROR_INVALID_CONTEXT;
    *c = stack[--depth];
    return CUDA_SUCCESS;
}

/* ---- memory ---- */

CUresult cuMemGetInfo(size_t *free_bytes, size_t *total)
{
    BEGIN
    *total = fake.memory;
    *free_bytes = fake.memory - fake_taken;
    END
}

CUresult cuMemAlloc(CUdeviceptr *out, size_t bytes)
{
    BEGIN
    void *p = !bytes || bytes > fake.memory - fake_taken || fake_alloc_fails() ? NULL : malloc(bytes);
    if (!p) {
        e = CUDA_ERROR_OUT_OF_MEMORY;
    } else {
        memset(p, 0xcd, bytes);
        fake_range_add(p, bytes, FAKE_DEVICE);
        fake_taken += bytes;
        *out = (CUdeviceptr)(uintptr_t)p;
    }
    END
}

CUresult cuMemFree(CUdeviceptr at)
{
    void *p = (void *)(uintptr_t)at;
    uint64_t bytes;
    BEGIN
    fake_device_drain();
    if (fake_range_remove(p, FAKE_DEVICE, &bytes)) {
        fake_taken -= bytes;
        memset(p, 0xdd, bytes);
        free(p);
    } else {
        e = CUDA_ERROR_INVALID_VALUE;
    }
    END
}

CUresult cuMemHostAlloc(void **out, size_t bytes, unsigned flags)
{
    BEGIN
    void *p = NULL;
    if (!(flags & CU_MEMHOSTALLOC_PORTABLE))
        e = CUDA_ERROR_INVALID_VALUE;
    else if (fake_alloc_fails() || posix_memalign(&p, 4096, bytes))
        e = CUDA_ERROR_OUT_OF_MEMORY;
    if (e == CUDA_SUCCESS) {
        memset(p, 0xcd, bytes);
        fake_range_add(p, bytes, FAKE_HOST);
        *out = p;
    }
    END
}

CUresult cuMemFreeHost(void *p)
{
    uint64_t bytes;
    BEGIN
    fake_device_drain();
    if (fake_range_remove(p, FAKE_HOST, &bytes))
        free(p);
    else
        e = CUDA_ERROR_INVALID_VALUE;
    END
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr *out, void *p, unsigned flags)
{
    BEGIN
    if (flags || !fake_inside(p, 1, true))
        e = CUDA_ERROR_INVALID_VALUE;
    else
        *out = (CUdeviceptr)(uintptr_t)p;
    END
}

CUresult cuMemHostRegister(void *p, size_t bytes, unsigned flags)
{
    BEGIN
    if (fake.failpin || fake_alloc_fails())
        e = CUDA_ERROR_OUT_OF_MEMORY;
    else if (!(flags & CU_MEMHOSTREGISTER_PORTABLE))
        e = CUDA_ERROR_INVALID_VALUE;
    else if (fake_inside(p, 1, true))
        e = CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    else
        fake_range_add(p, bytes, FAKE_REGISTERED);
    END
}

CUresult cuMemHostUnregister(void *p)
{
    uint64_t bytes;
    BEGIN
    if (!fake_range_remove(p, FAKE_REGISTERED, &bytes))
        e = CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    END
}

/* ---- copies ---- */

static CUresult copy(CUstream s, void *to, const void *from, size_t bytes, const void *host)
{
    BEGIN
    const bool to_host = host == to, from_host = host == from;
    if (!bytes || (!to_host && !fake_inside(to, bytes, false)) || (!from_host && !fake_inside(from, bytes, false)))
        e = CUDA_ERROR_INVALID_VALUE;
    else
        e = fake_enqueue(s, &(fake_cmd){.op = FAKE_COPY, .to = to, .from = from, .bytes = bytes});
    if (e == CUDA_SUCCESS && host && !fake_inside(host, bytes, true))
        fake_stream_drain(s); /* pageable */
    END
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream s)
{
    return copy(s, (void *)(uintptr_t)to, from, bytes, from);
}

CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream s)
{
    return copy(s, to, (const void *)(uintptr_t)from, bytes, to);
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream s)
{
    return copy(s, (void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes, NULL);
}

CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char byte, size_t bytes, CUstream s)
{
    void *to = (void *)(uintptr_t)at;
    BEGIN
    e = !bytes || !fake_inside(to, bytes, false)
            ? CUDA_ERROR_INVALID_VALUE
            : fake_enqueue(s, &(fake_cmd){.op = FAKE_SET, .to = to, .byte = byte, .bytes = bytes});
    END
}

/* ---- kernels ---- */

CUresult cuModuleLoadData(CUmodule *out, const void *image)
{
    BEGIN
    CUmodule m = fake_alloc_fails() ? NULL : malloc(sizeof *m);
    const uint32_t magic = 0xba55ed50; /* of a fat binary */
    if (!m) {
        e = CUDA_ERROR_OUT_OF_MEMORY;
    } else if (memcmp(image, &magic, 4) != 0 || (uintptr_t)image % 8) {
        free(m);
        e = CUDA_ERROR_INVALID_VALUE;
    } else {
        m->bytes = fake.runtime;
        fake_taken += m->bytes;
        *out = m;
    }
    END
}

/* Of a lost context too: it goes with it. */
CUresult cuModuleUnload(CUmodule m)
{
    pthread_mutex_lock(&fake_lock);
    const CUresult e = fake_call();
    fake_taken -= m->bytes;
    free(m);
    pthread_mutex_unlock(&fake_lock);
    return e;
}

CUresult cuModuleGetFunction(CUfunction *out, CUmodule m, const char *name)
{
    static struct CUfunc_st functions[256];
    (void)m;
    BEGIN
    const uint32_t i = fake_kernel_find(name);
    if (i >= 256) {
        e = CUDA_ERROR_NOT_FOUND;
    } else {
        functions[i].index = i;
        *out = &functions[i];
    }
    END
}

CUresult cuFuncGetAttribute(int *v, CUfunction_attribute what, CUfunction f)
{
    BEGIN
    *v = what == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? (int)fake_kernel_threads(f->index) : 0;
    END
}

static uint32_t launched = UINT32_MAX;

const char *fake_cuda_launched(void)
{
    pthread_mutex_lock(&fake_lock);
    const char *name = launched == UINT32_MAX ? "" : fake_kernel_name(launched);
    pthread_mutex_unlock(&fake_lock);
    return name;
}

CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream s, void **params, void **extra)
{
    BEGIN
    fake_cmd c = {.op = FAKE_LAUNCH, .kernel = f->index, .groups = {gx, gy, gz}};
    if (!gx || !gy || !gz || gx > INT32_MAX || gy > 65535 || gz > 65535 || bx != fake_kernel_threads(f->index) || by != 1 ||
        bz != 1 || shared || extra) {
        e = CUDA_ERROR_INVALID_VALUE;
    } else {
        fake_kernel_pack(f->index, params, c.values);
        launched = f->index;
        e = fake_enqueue(s, &c);
    }
    END
}
