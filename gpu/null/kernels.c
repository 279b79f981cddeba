/* kernels.c - the kernel texts as C (gpu/kernels/dialect.k.h, host form): work-items are loops between barriers. */
#include "gpu/null/null.h"

#include "gpu_kernels_host.h"

enum { N_KERNELS = sizeof host_kernels / sizeof *host_kernels };

uint32_t yk_null_n_kernels(void)
{
    return N_KERNELS;
}

const yk_host_kernel *yk_null_kernel(uint32_t i)
{
    return &host_kernels[i];
}

uint32_t yk_null_kernel_find(const char *name)
{
    for (uint32_t i = 0; i < N_KERNELS; i++)
        if (strcmp(host_kernels[i].name, name) == 0)
            return i;
    return UINT32_MAX;
}

void yk_null_kernel_run(uint32_t k, const uint32_t groups[3], const yk_host_arg *args)
{
    memcpy(yk_host_groups, groups, sizeof yk_host_groups);
    for (uint32_t z = 0; z < groups[2]; z++) {
        for (uint32_t y = 0; y < groups[1]; y++) {
            for (uint32_t x = 0; x < groups[0]; x++) {
                yk_host_group[0] = x;
                yk_host_group[1] = y;
                yk_host_group[2] = z;
                host_kernels[k].call(args);
            }
        }
    }
}
