/* mem.h - memory with a class, checked sizes, arenas.
 *
 * Every allocation of the library has a class, so a memory report needs no guessing. Fault injection (build option
 * `fault_injection`) makes the k-th yk_alloc fail: YOKE_FAIL_ALLOC=k. */
#ifndef YK_BASE_MEM_H
#define YK_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "src/base/status.h"

typedef enum yk_mem_class {
    YK_MEM_WEIGHTS,
    YK_MEM_KV,
    YK_MEM_ACTIVATION,
    YK_MEM_STAGING,
    YK_MEM_PLAN,
    YK_MEM_RUNTIME, /* everything else: tables, tokenizer, strings */
    YK_MEM_N_CLASSES
} yk_mem_class;

/* a * b and a + b into *out; false on overflow. */
static inline bool yk_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool yk_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

/* Zeroed memory of n * size bytes, 64-byte aligned; NULL when it cannot be had or the product overflows. n * size 0 gives a
 * valid pointer. */
void *yk_alloc(yk_mem_class cls, size_t n, size_t size);
/* Change a block from yk_alloc to n * size bytes, keeping its content; new bytes are not zeroed. On failure NULL and the old
 * block stays. */
void *yk_realloc(yk_mem_class cls, void *p, size_t n, size_t size);
/* p may be NULL. */
void yk_free(void *p);
/* Copy of n bytes plus a NUL. */
char *yk_strndup(yk_mem_class cls, const char *s, size_t n);

/* Text of n bytes into a caller's buffer: as much as fits, always with a NUL when there is room for one. *n_bytes (may be NULL)
 * is n all the same. */
static inline void yk_text_out(const char *text, uint64_t n, char *buf, size_t capacity, size_t *n_bytes)
{
    if (n_bytes)
        *n_bytes = (size_t)n;
    if (!capacity)
        return;
    const size_t part = n < capacity ? (size_t)n : capacity - 1;
    memcpy(buf, text, part);
    buf[part] = 0;
}

/* Live bytes of a class, process-wide. */
uint64_t yk_mem_live(yk_mem_class cls);

/* Arena: one reservation, bump allocation, freed as a whole. */
typedef struct yk_arena {
    uint8_t *base;
    size_t size, used;
    yk_mem_class cls;
    bool huge; /* transparent huge pages were asked for */
} yk_arena;

/* Reserve `size` bytes of anonymous memory (not touched yet, so not resident). huge: ask for transparent huge pages. */
yk_status yk_arena_open(yk_arena *arena, yk_mem_class cls, size_t size, bool huge, yk_error *err);
void yk_arena_close(yk_arena *arena);
/* n * size bytes at the given alignment (power of two, at most 4096; 0: 64), zeroed at first use; NULL when the arena is full. */
void *yk_arena_take(yk_arena *arena, size_t n, size_t size, size_t align);

#endif
