/* driver.h - the CUDA driver, found at run time: nothing is linked against it, so the module loads on machines without one.
 *
 * Members have the names of the driver's functions as cuda.h spells them (its macros choose the versions, for example
 * cuMemAlloc_v2, here as well as at the calls). */
#ifndef YK_GPU_CUDA_DRIVER_H
#define YK_GPU_CUDA_DRIVER_H

#include <cuda.h>

#include "gpu/module.h"

#define YK_CU_FUNCTIONS(F)                                                                                                     \
    F(cuInit)                                                                                                                  \
    F(cuDriverGetVersion)                                                                                                      \
    F(cuGetErrorName)                                                                                                          \
    F(cuGetErrorString)                                                                                                        \
    F(cuDeviceGetCount)                                                                                                        \
    F(cuDeviceGet)                                                                                                             \
    F(cuDeviceGetName)                                                                                                         \
    F(cuDeviceTotalMem)                                                                                                        \
    F(cuDeviceGetAttribute)                                                                                                    \
    F(cuDevicePrimaryCtxRetain)                                                                                                \
    F(cuDevicePrimaryCtxRelease)                                                                                               \
    F(cuCtxPushCurrent)                                                                                                        \
    F(cuCtxPopCurrent)                                                                                                         \
    F(cuMemGetInfo)                                                                                                            \
    F(cuMemAlloc)                                                                                                              \
    F(cuMemFree)                                                                                                               \
    F(cuMemHostAlloc)                                                                                                          \
    F(cuMemFreeHost)                                                                                                           \
    F(cuMemHostGetDevicePointer)                                                                                               \
    F(cuMemHostRegister)                                                                                                       \
    F(cuMemHostUnregister)                                                                                                     \
    F(cuMemcpyHtoDAsync)                                                                                                       \
    F(cuMemcpyDtoHAsync)                                                                                                       \
    F(cuMemcpyDtoDAsync)                                                                                                       \
    F(cuMemsetD8Async)                                                                                                         \
    F(cuStreamCreate)                                                                                                          \
    F(cuStreamDestroy)                                                                                                         \
    F(cuStreamQuery)                                                                                                           \
    F(cuStreamSynchronize)                                                                                                     \
    F(cuStreamWaitEvent)                                                                                                       \
    F(cuLaunchHostFunc)                                                                                                        \
    F(cuEventCreate)                                                                                                           \
    F(cuEventDestroy)                                                                                                          \
    F(cuEventRecord)                                                                                                           \
    F(cuEventQuery)                                                                                                            \
    F(cuEventSynchronize)                                                                                                      \
    F(cuEventElapsedTime)                                                                                                      \
    F(cuModuleLoadData)                                                                                                        \
    F(cuModuleUnload)                                                                                                          \
    F(cuModuleGetFunction)                                                                                                     \
    F(cuFuncGetAttribute)                                                                                                      \
    F(cuLaunchKernel)

/* NULL where the driver has none. */
#define YK_CU_OPTIONAL(F)                                                                                                      \
    F(cuStreamWaitValue32)                                                                                                     \
    F(cuStreamWriteValue32)

typedef struct yk_cu_driver {
#define YK_CU_MEMBER(name) __typeof__(name) *name;
    YK_CU_FUNCTIONS(YK_CU_MEMBER)
    YK_CU_OPTIONAL(YK_CU_MEMBER)
#undef YK_CU_MEMBER
    CUresult (*load_function)(CUfunction f); /* cuFuncLoad of CUDA 12.4 and later, or NULL */
    int version;                             /* 1000 * major + 10 * minor of the CUDA version it supports */
} yk_cu_driver;

extern yk_cu_driver yk_cu;

/* Finds and starts the driver; again: nothing. YK_ERR_RUNTIME with a line that says what is missing. */
yk_status yk_cu_driver_open(void);

/* "CUDA_ERROR_OUT_OF_MEMORY" and the like; static storage. */
const char *yk_cu_error_name(CUresult e);
/* The context cannot be used any more; every later call fails with the same error. */
bool yk_cu_is_lost(CUresult e);
/* YK_ERR_MEMORY for refused memory, else YK_ERR_RUNTIME; the line is "what: CUDA_ERROR_...: its meaning". */
yk_status yk_cu_fail(CUresult e, const char *what);

#endif
