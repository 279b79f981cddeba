/* driver.c - libcuda.so.1 and its errors. */
#include "gpu/cuda/driver.h"

#include <dlfcn.h>

yk_cu_driver yk_cu;

#define TEXT_OF(x) #x
#define TEXT(x)    TEXT_OF(x)

static yk_status find_functions(void *dl)
{
    static const struct {
        const char *name;
        void **to;
        bool optional;
    } functions[] = {
#define NEEDED(name)   {TEXT(name), (void **)&yk_cu.name, false},
#define OPTIONAL(name) {TEXT(name), (void **)&yk_cu.name, true},
        YK_CU_FUNCTIONS(NEEDED) YK_CU_OPTIONAL(OPTIONAL){"cuFuncLoad", (void **)&yk_cu.load_function, true},
#undef NEEDED
#undef OPTIONAL
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        *functions[i].to = dlsym(dl, functions[i].name);
        if (!*functions[i].to && !functions[i].optional)
            return yk_module_fail(
                YK_ERR_RUNTIME,
                "the NVIDIA driver is older than CUDA %d.%d, which this module was built with (it has no %s): "
                "install a newer driver",
                CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10, functions[i].name);
    }
    return YK_OK;
}

/* What cuInit says is the matter. */
static yk_status start_failed(CUresult e)
{
    const char *name = yk_cu_error_name(e);
    switch ((int)e) {
    case CUDA_ERROR_NO_DEVICE:
        return yk_module_fail(YK_ERR_RUNTIME, "the NVIDIA driver finds no device (%s)", name);
    case CUDA_ERROR_STUB_LIBRARY:
        return yk_module_fail(YK_ERR_RUNTIME, "libcuda.so.1 is the toolkit's stub, not a driver (%s): correct the library path",
                              name);
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
        return yk_module_fail(
            YK_ERR_RUNTIME, "the NVIDIA driver's library and kernel module are of different versions (%s): restart the machine",
            name);
    default:
        return yk_module_fail(YK_ERR_RUNTIME, "the NVIDIA driver does not start: %s", name);
    }
}

yk_status yk_cu_driver_open(void)
{
    static void *dl;
    if (dl)
        return YK_OK;
    void *found = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL); /* never closed: drivers leave threads behind */
    if (!found)
        return yk_module_fail(YK_ERR_RUNTIME, "no NVIDIA driver is installed (%s)", dlerror());
    yk_status st = find_functions(found);
    if (st != YK_OK)
        return st;
    const CUresult e = yk_cu.cuInit(0);
    if (e != CUDA_SUCCESS)
        return start_failed(e);
    if (yk_cu.cuDriverGetVersion(&yk_cu.version) != CUDA_SUCCESS || yk_cu.version / 1000 < CUDA_VERSION / 1000)
        return yk_module_fail(
            YK_ERR_RUNTIME,
            "the NVIDIA driver supports CUDA %d.%d, this module was built with CUDA %d.%d: install a newer driver",
            yk_cu.version / 1000, yk_cu.version % 1000 / 10, CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10);
    dl = found;
    return YK_OK;
}

const char *yk_cu_error_name(CUresult e)
{
    const char *name = NULL;
    static _Thread_local char other[32];
    if (yk_cu.cuGetErrorName && yk_cu.cuGetErrorName(e, &name) == CUDA_SUCCESS && name)
        return name;
    snprintf(other, sizeof other, "CUDA error %d", (int)e);
    return other;
}

bool yk_cu_is_lost(CUresult e)
{
    switch ((int)e) {
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
        return true;
    default:
        return false;
    }
}

yk_status yk_cu_fail(CUresult e, const char *what)
{
    const char *meaning = NULL;
    if (yk_cu_is_lost(e))
        return yk_module_fail(YK_ERR_RUNTIME, "%s: the device is lost to this program (%s): start it again", what,
                              yk_cu_error_name(e));
    yk_cu.cuGetErrorString(e, &meaning);
    return yk_module_fail(e == CUDA_ERROR_OUT_OF_MEMORY ? YK_ERR_MEMORY : YK_ERR_RUNTIME, "%s: %s%s%s", what,
                          yk_cu_error_name(e), meaning ? ": " : "", meaning ? meaning : "");
}
