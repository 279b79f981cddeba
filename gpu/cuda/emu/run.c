/* run.c - launches of kernels by name: kernels.h. */
#include "gpu/cuda/emu/kernels.h"

typedef struct kernel_call {
    const yk_host_kernel *kernel;
    const yk_host_arg *args;
} kernel_call;

static void call(const void *args)
{
    const kernel_call *c = args;
    c->kernel->call(c->args);
}

uint32_t yk_emu_kernel_threads(const yk_host_kernel *kernel)
{
    return strncmp(kernel->name, "mma_", 4) == 0 ? 128 : 64;
}

bool yk_emu_kernel_run(yk_emu *e, const yk_host_kernel *kernel, const yk_host_arg *args, const uint32_t groups[3])
{
    const kernel_call c = {.kernel = kernel, .args = args};
    return yk_emu_memory(e, "the arguments", args, strlen(kernel->kinds) * sizeof *args, false) &&
           yk_emu_run(e, call, &c, groups, yk_emu_kernel_threads(kernel));
}
