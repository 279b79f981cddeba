/* kernels.c - the kernel texts for the emulator. */
#include "gpu/cuda/emu/kernels.h"

#define YK_EMU 1
#include "gpu_kernels_emu.h"

enum { N_KERNELS = sizeof host_kernels / sizeof *host_kernels, GROUP = 64 };

const yk_host_kernel *yk_emu_kernel_find(const char *name)
{
    for (size_t i = 0; i < N_KERNELS; i++)
        if (strcmp(host_kernels[i].name, name) == 0)
            return &host_kernels[i];
    return NULL;
}

static void call(const void *args)
{
    const yk_emu_call *c = args;
    c->kernel->call(c->args);
}

bool yk_emu_kernel_run(yk_emu *e, const yk_host_kernel *kernel, const yk_host_arg *args, const uint32_t groups[3])
{
    const yk_emu_call c = {.kernel = kernel, .args = args};
    return yk_emu_memory(e, "the arguments", args, strlen(kernel->kinds) * sizeof *args, false) &&
           yk_emu_memory(e, "the call", &c, sizeof c, false) && yk_emu_memory(e, "the kernel", kernel, sizeof *kernel, false) &&
           yk_emu_run(e, call, &c, groups, GROUP);
}
