/* kernels.h - the kernels of gpu/kernels and gpu/cuda in the emulator. */
#ifndef YK_CUDA_EMU_KERNELS_H
#define YK_CUDA_EMU_KERNELS_H

#include "gpu/cuda/emu/emu.h"
#include "gpu/null/null.h"

/* By name, as compiled for sm_75 and for sm_80 and later; NULL: there is none. */
const yk_host_kernel *yk_emu_find_75(const char *name);
const yk_host_kernel *yk_emu_find_80(const char *name);
/* The same without the compiler's calls for each access: for tests/fake_cuda. */
const yk_host_kernel *yk_emu_find_fake(const char *name);
/* Threads of a group. */
uint32_t yk_emu_kernel_threads(const yk_host_kernel *kernel);
/* One launch; the memory it uses was given before (yk_emu_memory). */
bool yk_emu_kernel_run(yk_emu *e, const yk_host_kernel *kernel, const yk_host_arg *args, const uint32_t groups[3]);

#endif
