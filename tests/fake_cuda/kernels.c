/* kernels.c - launches of the fake driver: the host form of the kernels, with the arguments the CUDA form has. */
#include "tests/fake_cuda/fake.h"

#include <string.h>

#include <stdio.h>
#include <stdlib.h>

#include "gpu/cuda/emu/kernels.h"

/* Kernels that only CUDA has follow those of the null device, in the order in which they are asked for. */
enum { MAX_OWN = 64 };
static const yk_host_kernel *own[MAX_OWN];
static uint32_t n_own;

static const yk_host_kernel *kernel_at(uint32_t i)
{
    return i < yk_null_n_kernels() ? yk_null_kernel(i) : own[i - yk_null_n_kernels()];
}

uint32_t fake_kernel_find(const char *name)
{
    const uint32_t i = yk_null_kernel_find(name);
    if (i != UINT32_MAX)
        return i;
    const yk_host_kernel *k = yk_emu_find_fake(name);
    for (uint32_t j = 0; j < n_own; j++)
        if (own[j] == k)
            return yk_null_n_kernels() + j;
    if (!k || n_own == MAX_OWN)
        return UINT32_MAX;
    own[n_own] = k;
    return yk_null_n_kernels() + n_own++;
}

const char *fake_kernel_name(uint32_t kernel)
{
    return kernel_at(kernel)->name;
}

uint32_t fake_kernel_threads(uint32_t kernel)
{
    return yk_emu_kernel_threads(kernel_at(kernel));
}

/* In the emulator, which looks at barriers and copies here, but not at each access (tests/test_cuda_mma.c does). */
static void run_own(const yk_host_kernel *k, const uint32_t groups[3], const yk_host_arg *args)
{
    yk_emu *e = yk_emu_open();
    if (!e || !yk_emu_memory(e, "all", NULL, SIZE_MAX, true) || !yk_emu_kernel_run(e, k, args, groups)) {
        fprintf(stderr, "fake driver: kernel %s: %s\n", k->name, e ? "the emulator ended it" : "not enough memory");
        for (int kind = 0; e && kind < YK_EMU_KINDS; kind++)
            fprintf(stderr, "%s\n", yk_emu_line(e, (yk_emu_kind)kind));
        abort();
    }
    yk_emu_close(e);
}

void fake_kernel_pack(uint32_t kernel, void *const *params, uint64_t *values)
{
    const char *kinds = kernel_at(kernel)->kinds;
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
    const yk_host_kernel *k = kernel_at(c->kernel);
    const char *kinds = k->kinds;
    for (uint32_t i = 0, at = 0; kinds[i]; i++) {
        if (kinds[i] == 'm') {
            args[i].base = (uint8_t *)(uintptr_t)c->values[at];
            args[i].at = c->values[at + 1];
            at += 2;
        } else {
            memcpy(kinds[i] == 'u' ? (void *)&args[i].u32 : (void *)&args[i].f32, &c->values[at++], 4);
        }
    }
    if (c->kernel < yk_null_n_kernels())
        yk_null_kernel_run(c->kernel, c->groups, args);
    else
        run_own(k, c->groups, args);
}
