#include "src/base/mem.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "src/base/env.h"

/* Each block is preceded by a header of one cache line, so that freeing knows class and size. */
enum { HEADER = 64, ALIGN = 64 };

typedef struct header {
    size_t bytes; /* without the header */
    yk_mem_class cls;
} header;

static _Atomic uint64_t live[YK_MEM_N_CLASSES];

#ifdef YK_FAULT_INJECTION
static bool fail_now(void)
{
    static _Atomic long left = -1;
    static _Atomic int state; /* 0: not read, 1: being read, 2: read */
    int s = 0;
    if (atomic_compare_exchange_strong(&state, &s, 1)) {
        const char *v = yk_env_fail_alloc();
        atomic_store(&left, v && *v ? atol(v) : 0);
        atomic_store(&state, 2);
    }
    while (atomic_load(&state) != 2)
        ;
    return atomic_load(&left) > 0 && atomic_fetch_sub(&left, 1) == 1;
}
#else
static bool fail_now(void)
{
    return false;
}
#endif

void *yk_alloc(yk_mem_class cls, size_t n, size_t size)
{
    size_t bytes, total;
    if (__builtin_mul_overflow(n, size, &bytes) || __builtin_add_overflow(bytes, HEADER + ALIGN, &total))
        return NULL;
    total -= total % ALIGN; /* aligned_alloc wants a multiple of the alignment */
    if (fail_now())
        return NULL;
    uint8_t *p = aligned_alloc(ALIGN, total);
    if (!p)
        return NULL;
    memset(p, 0, total);
    *(header *)(void *)p = (header){bytes, cls};
    atomic_fetch_add_explicit(&live[cls], bytes, memory_order_relaxed);
    return p + HEADER;
}

void *yk_realloc(yk_mem_class cls, void *p, size_t n, size_t size)
{
    if (!p)
        return yk_alloc(cls, n, size);
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes))
        return NULL;
    void *q = yk_alloc(cls, n, size);
    if (!q)
        return NULL;
    const size_t old = ((header *)(void *)((uint8_t *)p - HEADER))->bytes;
    memcpy(q, p, old < bytes ? old : bytes);
    yk_free(p);
    return q;
}

void yk_free(void *p)
{
    if (!p)
        return;
    header *h = (header *)(void *)((uint8_t *)p - HEADER);
    atomic_fetch_sub_explicit(&live[h->cls], h->bytes, memory_order_relaxed);
    free(h);
}

char *yk_strndup(yk_mem_class cls, const char *s, size_t n)
{
    size_t bytes;
    if (__builtin_add_overflow(n, 1, &bytes))
        return NULL;
    char *p = yk_alloc(cls, bytes, 1);
    if (p && n)
        memcpy(p, s, n);
    return p;
}

uint64_t yk_mem_live(yk_mem_class cls)
{
    return atomic_load_explicit(&live[cls], memory_order_relaxed);
}

yk_status yk_arena_open(yk_arena *arena, yk_mem_class cls, size_t size, bool huge, yk_error *err)
{
    *arena = (yk_arena){.cls = cls};
    if (size == 0)
        return YK_OK;
    const size_t page = 4096;
    size_t total;
    if (__builtin_add_overflow(size, page - 1, &total) || fail_now())
        return yk_fail_memory(err, size, "an arena");
    total -= total % page;
    void *p = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return yk_fail_memory(err, size, "an arena");
    if (huge)
        arena->huge = madvise(p, total, MADV_HUGEPAGE) == 0;
    arena->base = p;
    arena->size = total;
    atomic_fetch_add_explicit(&live[cls], total, memory_order_relaxed);
    return YK_OK;
}

void yk_arena_close(yk_arena *arena)
{
    if (arena->base) {
        munmap(arena->base, arena->size);
        atomic_fetch_sub_explicit(&live[arena->cls], arena->size, memory_order_relaxed);
    }
    *arena = (yk_arena){0};
}

void *yk_arena_take(yk_arena *arena, size_t n, size_t size, size_t align)
{
    size_t bytes, start, end;
    if (align == 0)
        align = 64;
    if (__builtin_mul_overflow(n, size, &bytes) || __builtin_add_overflow(arena->used, align - 1, &start))
        return NULL;
    start -= start % align;
    if (__builtin_add_overflow(start, bytes, &end) || end > arena->size)
        return NULL;
    arena->used = end;
    return arena->base + start;
}
