/* module.h - what the modules share: the host's calls, errors of the thread, checks of arguments. */
#ifndef YK_GPU_MODULE_H
#define YK_GPU_MODULE_H

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "gpu/device.h"

enum { YK_KERNEL_GROUP = 64 }; /* work-items of a group of every kernel */

extern const yk_host_calls *yk_module_host; /* set by yk_module_attach */

/* First thing in yk_module_open: gives the module's table to a host of the same ABI. YK_ERR_USAGE: it is another. */
yk_status yk_module_attach(uint32_t abi, const yk_host_calls *host, const yk_device_table *table, yk_device_table *out);

/* Line for last_error; returns the status. */
yk_status yk_module_fail(yk_status status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *yk_module_last_error(void);

static inline yk_status yk_module_out_of_memory(uint64_t bytes, const char *what)
{
    return yk_module_fail(YK_ERR_MEMORY, "not enough host memory: %" PRIu64 " bytes for %s", bytes, what);
}

/* bytes at the start of mem lie inside its reservation of `size` bytes. */
static inline bool yk_module_inside(const yk_gpu_mem *mem, uint64_t bytes, uint64_t size)
{
    uint64_t end;
    return mem->handle && yk_add_u64(mem->offset, bytes, &end) && end <= size;
}

/* A launch against the kinds of arguments its kernel has: 'm', 'u', 'f'. */
static inline yk_status yk_module_check_launch(const yk_gpu_launch *l, const char *name, const char *kinds)
{
    if (l->group_size != YK_KERNEL_GROUP)
        return yk_module_fail(YK_ERR_USAGE, "kernel %s: group size %u, must be %d", name, l->group_size, YK_KERNEL_GROUP);
    if (l->n_args != strlen(kinds))
        return yk_module_fail(YK_ERR_USAGE, "kernel %s: %u arguments, takes %zu", name, l->n_args, strlen(kinds));
    for (uint32_t i = 0; i < l->n_args; i++)
        if (l->args[i].kind != (kinds[i] == 'm' ? YK_ARG_MEM : kinds[i] == 'u' ? YK_ARG_U32 : YK_ARG_F32))
            return yk_module_fail(YK_ERR_USAGE, "kernel %s: argument %u must be %s", name, i,
                                  kinds[i] == 'm'   ? "memory"
                                  : kinds[i] == 'u' ? "u32"
                                                    : "f32");
    return YK_OK;
}

/* Bytes of a class in use against the budget of a device. */
typedef struct yk_module_budget {
    uint64_t used[YK_MEM_N_CLASSES], total, limit;
} yk_module_budget;

/* Counts bytes in; nothing is asked of a driver before. */
yk_status yk_module_budget_take(yk_module_budget *b, yk_mem_class cls, uint64_t bytes);
void yk_module_budget_give(yk_module_budget *b, yk_mem_class cls, uint64_t bytes);

__attribute__((visibility("default"))) yk_status yk_module_open(uint32_t abi, const yk_host_calls *host, yk_device_table *out);

#endif
