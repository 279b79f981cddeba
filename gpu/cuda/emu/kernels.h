/* kernels.h - the kernels of gpu/kernels in the emulator. */
#ifndef YK_CUDA_EMU_KERNELS_H
#define YK_CUDA_EMU_KERNELS_H

#include "gpu/cuda/emu/emu.h"
#include "gpu/null/null.h"

typedef struct yk_emu_call {
    const yk_host_kernel *kernel;
    const yk_host_arg *args;
} yk_emu_call;

const yk_host_kernel *yk_emu_kernel_find(const char *name); /* NULL: there is none */
/* One launch; the memory it uses was given before (yk_emu_memory). */
bool yk_emu_kernel_run(yk_emu *e, const yk_host_kernel *kernel, const yk_host_arg *args, const uint32_t groups[3]);

#endif
