/* module.c - linked into each module: errors of the thread, the budget. */
#include "gpu/module.h"

const yk_host_calls *yk_module_host;

yk_status yk_module_attach(uint32_t abi, const yk_host_calls *host, const yk_device_table *table, yk_device_table *out)
{
    if (abi != YK_DEVICE_ABI || host->abi != YK_DEVICE_ABI || host->size < sizeof *host) {
        out->abi = YK_DEVICE_ABI; /* all that another ABI can be told */
        out->size = sizeof *out;
        return YK_ERR_USAGE;
    }
    *out = *table;
    yk_module_host = host;
    return YK_OK;
}

static _Thread_local char error_line[512];

const char *yk_module_last_error(void)
{
    return error_line;
}

yk_status yk_module_fail(yk_status status, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(error_line, sizeof error_line, fmt, ap);
    va_end(ap);
    for (char *p = error_line; *p; p++) /* names from drivers end up here */
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = ' ';
    return status;
}

static const char *class_name(yk_mem_class cls)
{
    static const char *const names[YK_MEM_N_CLASSES] = {"weights", "kv", "activation", "staging", "plan", "runtime"};
    return names[cls];
}

yk_status yk_module_budget_take(yk_module_budget *b, yk_mem_class cls, uint64_t bytes)
{
    if ((unsigned)cls >= YK_MEM_N_CLASSES)
        return yk_module_fail(YK_ERR_USAGE, "memory class %u does not exist", (unsigned)cls);
    if (bytes > b->limit - b->total)
        return yk_module_fail(YK_ERR_MEMORY,
                              "device memory budget: %" PRIu64 " bytes (%s) wanted, %" PRIu64 " of %" PRIu64 " left", bytes,
                              class_name(cls), b->limit - b->total, b->limit);
    b->used[cls] += bytes;
    b->total += bytes;
    return YK_OK;
}

void yk_module_budget_give(yk_module_budget *b, yk_mem_class cls, uint64_t bytes)
{
    b->used[cls] -= bytes;
    b->total -= bytes;
}
