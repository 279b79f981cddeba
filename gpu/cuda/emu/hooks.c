/* hooks.c - what a compiler calls for every access to memory of code that is compiled with -fsanitize=thread. Only programs that test kernels link
 * this; they do not link that sanitizer's own library. */
#include "gpu/cuda/emu/internal.h"

#include <string.h>

#define WHERE ((uintptr_t)__builtin_return_address(0))

#define HOOK(name, n, use)                                                                                                     \
    void name(void *p);                                                                                                        \
    __attribute__((noinline)) void name(void *p)                                                                               \
    {                                                                                                                          \
        yk_emu_access(p, n, use, WHERE);                                                                                       \
    }
#define HOOKS(n)                                                                                                               \
    HOOK(__tsan_read##n, n, YK_EMU_READ)                                                                                       \
    HOOK(__tsan_write##n, n, YK_EMU_WRITE)                                                                                     \
    HOOK(__tsan_unaligned_read##n, n, YK_EMU_READ)                                                                             \
    HOOK(__tsan_unaligned_write##n, n, YK_EMU_WRITE)                                                                           \
    HOOK(__tsan_volatile_read##n, n, YK_EMU_READ)                                                                              \
    HOOK(__tsan_volatile_write##n, n, YK_EMU_WRITE)

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

void __tsan_init(void);
void __tsan_init(void) {}
void __tsan_func_entry(void *pc);
void __tsan_func_entry(void *pc)
{
    (void)pc;
}
void __tsan_func_exit(void);
void __tsan_func_exit(void) {}

void __tsan_read_range(void *p, size_t n);
__attribute__((noinline)) void __tsan_read_range(void *p, size_t n)
{
    yk_emu_access(p, n, YK_EMU_READ, WHERE);
}

void __tsan_write_range(void *p, size_t n);
__attribute__((noinline)) void __tsan_write_range(void *p, size_t n)
{
    yk_emu_access(p, n, YK_EMU_WRITE, WHERE);
}

/* Where the compiler has not taken memcpy and memset apart. */
void *__tsan_memcpy(void *to, const void *from, size_t n);
__attribute__((noinline)) void *__tsan_memcpy(void *to, const void *from, size_t n)
{
    yk_emu_access(from, n, YK_EMU_READ, WHERE);
    yk_emu_access(to, n, YK_EMU_WRITE, WHERE);
    return memcpy(to, from, n);
}

void *__tsan_memset(void *to, int byte, size_t n);
__attribute__((noinline)) void *__tsan_memset(void *to, int byte, size_t n)
{
    yk_emu_access(to, n, YK_EMU_WRITE, WHERE);
    return memset(to, byte, n);
}
