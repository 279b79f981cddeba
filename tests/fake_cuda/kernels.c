/* kernels.c - launches of the fake driver: the host form of the kernels, with the arguments the CUDA form has. */
#include "tests/fake_cuda/fake.h"

#include <string.h>

#include "gpu/null/null.h"

uint32_t fake_kernel_find(const char *name)
{
    return yk_null_kernel_find(name);
}

void fake_kernel_pack(uint32_t kernel, void *const *params, uint64_t *values)
{
    const char *kinds = yk_null_kernel(kernel)->kinds;
    for (uint32_t at = 0; *kinds; kinds++) {
        if (*kinds == 'm') {
            memcpy(&values[at], params[at], 8);
            memcpy(&values[at + 1], params[at + 1], 8);
            at += 2;
        } else { /* as many bytes as the argument has */
            memcpy(&values[at], params[at], 4);
            at++;
        }
    }
}

void fake_kernel_run(const fake_cmd *c)
{
    yk_host_arg args[FAKE_ARGS] = {0};
    const char *kinds = yk_null_kernel(c->kernel)->kinds;
    for (uint32_t i = 0, at = 0; kinds[i]; i++) {
        if (kinds[i] == 'm') {
            args[i].base = (uint8_t *)(uintptr_t)c->values[at];
            args[i].at = c->values[at + 1];
            at += 2;
        } else {
            memcpy(kinds[i] == 'u' ? (void *)&args[i].u32 : (void *)&args[i].f32, &c->values[at++], 4);
        }
    }
    yk_null_kernel_run(c->kernel, c->groups, args);
}
