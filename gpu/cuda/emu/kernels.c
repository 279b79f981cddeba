/* kernels.c - the kernel texts for the emulator, of gpu/kernels and of CUDA: compiled once for each compute capability (YK_SM) that texts ask for;
 * YK_EMU_FIND is the name of the one function. */
#include "gpu/cuda/emu/kernels.h"

#define YK_EMU 1
#include "gpu_kernels_emu.h"

const yk_host_kernel *YK_EMU_FIND(const char *name)
{
    for (size_t i = 0; i < sizeof host_kernels / sizeof *host_kernels; i++)
        if (strcmp(host_kernels[i].name, name) == 0)
            return &host_kernels[i];
    return NULL;
}
