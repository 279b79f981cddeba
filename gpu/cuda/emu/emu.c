/* emu.c - fibres for the threads of a block, barriers, findings: emu.h. */
#include "gpu/cuda/emu/internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { STACKS_BYTES = YK_EMU_THREADS * YK_EMU_STACK };

_Thread_local yk_emu *yk_emu_current;

static const char *const kind_names[YK_EMU_KINDS] = {
    "race", "out of bounds", "uninitialised shared memory", "read before cp.async arrived", "misaligned", "diverged"};

/* ---- switching stacks ---- */

static void fibre_main(void);

#if defined(__x86_64__)
/* Saves what a call preserves on the own stack, which is left at *save, and goes on on `load`. */
void yk_emu_switch(void **save, void *load);
__asm__(".text\n"
        ".globl yk_emu_switch\n"
        ".type yk_emu_switch, @function\n"
        "yk_emu_switch:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size yk_emu_switch, . - yk_emu_switch\n");

static bool fibre_start(yk_emu_fibre *f)
{
    void **top = (void **)(void *)(f->stack + YK_EMU_STACK - 64);
    *--top = NULL; /* the return address of fibre_main, which does not return */
    *--top = (void *)(uintptr_t)fibre_main;
    for (int i = 0; i < 6; i++)
        *--top = NULL;
    f->sp = top;
    return true;
}

static void fibre_free(yk_emu_fibre *f)
{
    f->sp = NULL;
}

static bool home_start(yk_emu *e)
{
    (void)e;
    return true;
}

static void home_free(yk_emu *e)
{
    (void)e;
}

static void to_fibre(yk_emu *e, yk_emu_fibre *f)
{
    yk_emu_switch(&e->home, f->sp);
}

static void to_home(yk_emu *e, yk_emu_fibre *f)
{
    yk_emu_switch(&f->sp, e->home);
}
#else
#include <ucontext.h>

static bool fibre_start(yk_emu_fibre *f)
{
    ucontext_t *c = f->sp ? f->sp : calloc(1, sizeof *c);
    if (!c)
        return false;
    f->sp = c;
    getcontext(c);
    c->uc_stack.ss_sp = f->stack;
    c->uc_stack.ss_size = YK_EMU_STACK;
    makecontext(c, fibre_main, 0);
    return true;
}

static void fibre_free(yk_emu_fibre *f)
{
    free(f->sp);
}

static bool home_start(yk_emu *e)
{
    if (!e->home)
        e->home = calloc(1, sizeof(ucontext_t));
    return e->home != NULL;
}

static void home_free(yk_emu *e)
{
    free(e->home);
}

static void to_fibre(yk_emu *e, yk_emu_fibre *f)
{
    swapcontext(e->home, f->sp);
}

static void to_home(yk_emu *e, yk_emu_fibre *f)
{
    swapcontext(f->sp, e->home);
}
#endif

void yk_emu_yield(yk_emu *e)
{
    to_home(e, e->now);
}

static void fibre_main(void)
{
    yk_emu *e = yk_emu_current;
    e->kernel(e->args);
    e->now->state = YK_EMU_DONE;
    yk_emu_yield(e);
}

/* ---- findings ---- */

uintptr_t yk_emu_code(uintptr_t pc)
{
    extern const char __executable_start __attribute__((weak));
    const uintptr_t start = (uintptr_t)&__executable_start;
    return start && pc >= start ? pc - start : pc;
}

void yk_emu_find(yk_emu *e, yk_emu_kind kind, const char *fmt, ...)
{
    if (e->found[kind]++)
        return;
    char *line = e->line[kind];
    int n = snprintf(line, YK_EMU_LINE, "%s: ", kind_names[kind]);
    if (e->now)
        n += snprintf(line + n, (size_t)(YK_EMU_LINE - n), "block %u %u %u thread %u: ", e->group[0], e->group[1], e->group[2],
                      e->now->thread);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line + n, (size_t)(YK_EMU_LINE - n), fmt, ap);
    va_end(ap);
}

void yk_emu_stop(yk_emu *e)
{
    e->ended = true;
    if (e->now)
        yk_emu_yield(e); /* never resumed */
}

/* ---- what threads ask ---- */

uint32_t yk_emu_thread(void)
{
    return yk_emu_current->now->thread;
}

uint32_t yk_emu_group(uint32_t d)
{
    return yk_emu_current->group[d];
}

uint32_t yk_emu_groups(uint32_t d)
{
    return yk_emu_current->groups[d];
}

void *yk_emu_shared(const char *name, size_t bytes)
{
    yk_emu *e = yk_emu_current;
    for (uint32_t i = 0; i < e->n_arrays; i++)
        if (strcmp(e->arrays[i].name, name) == 0 && e->arrays[i].bytes == bytes)
            return e->arena + e->arrays[i].at;
    const uint32_t at = e->arena_used + YK_EMU_GAP, rounded = (uint32_t)(bytes + YK_EMU_GAP - 1) / YK_EMU_GAP * YK_EMU_GAP;
    if (e->n_arrays == YK_EMU_ARRAYS || bytes > YK_EMU_SHARED || at + rounded + YK_EMU_GAP > YK_EMU_ARENA) {
        yk_emu_find(e, YK_EMU_BOUNDS, "shared array %s of %zu bytes: a block has %d, in at most %d arrays", name, bytes,
                    YK_EMU_SHARED, YK_EMU_ARRAYS);
        yk_emu_stop(e);
    }
    e->arrays[e->n_arrays].name = name;
    e->arrays[e->n_arrays].at = at;
    e->arrays[e->n_arrays++].bytes = bytes;
    e->arena_used = at + rounded;
    return e->arena + at;
}

void yk_emu_barrier(const char *where)
{
    yk_emu *e = yk_emu_current;
    e->now->state = YK_EMU_AT_BARRIER;
    e->now->where = where;
    yk_emu_yield(e);
}

/* ---- the scheduler ---- */

static const char *waits_for(const yk_emu_fibre *f)
{
    return f->state == YK_EMU_DONE ? "has ended" : f->where;
}

/* Nobody can go on: the barrier, if all are there; else who waits for whom. False: the block is over or stuck. */
static bool release(yk_emu *e)
{
    const yk_emu_fibre *first = NULL, *other = NULL;
    for (uint32_t i = 0; i < e->threads; i++) {
        const yk_emu_fibre *f = &e->fibres[i];
        if (f->state == YK_EMU_DONE)
            continue;
        if (!first)
            first = f;
        else if (f->state != first->state || strcmp(f->where, first->where) != 0)
            other = f;
    }
    if (!first)
        return false;
    if (other || first->state != YK_EMU_AT_BARRIER) {
        for (uint32_t i = 0; i < e->threads && !other; i++)
            if (e->fibres[i].state == YK_EMU_DONE)
                other = &e->fibres[i];
        yk_emu_find(e, YK_EMU_DIVERGED, "block %u %u %u: thread %u waits at %s, thread %u: %s", e->group[0], e->group[1],
                    e->group[2], first->thread, first->where, other ? other->thread : first->thread,
                    other ? waits_for(other) : "lanes of its mask");
        yk_emu_stop(e);
        return false;
    }
    e->epoch++;
    for (uint32_t w = 0; w < e->threads / 32; w++) {
        e->warps[w].epoch++;
        yk_emu_flush(e, w);
    }
    for (uint32_t i = 0; i < e->threads; i++)
        if (e->fibres[i].state == YK_EMU_AT_BARRIER)
            e->fibres[i].state = YK_EMU_RUN;
    return true;
}

static void run_block(yk_emu *e)
{
    yk_emu_block_begin(e);
    for (uint32_t i = 0; i < e->threads; i++) {
        yk_emu_fibre *f = &e->fibres[i];
        f->thread = i;
        f->state = YK_EMU_RUN;
        f->n_copies = 0;
        f->committed = 0;
        if (!fibre_start(f)) {
            e->no_memory = true;
            e->ended = true;
        }
    }
    while (!e->ended) {
        bool any = false;
        for (uint32_t i = 0; i < e->threads && !e->ended; i++) {
            if (e->fibres[i].state != YK_EMU_RUN)
                continue;
            any = true;
            e->now = &e->fibres[i];
            to_fibre(e, e->now);
            e->now = NULL;
        }
        if (!any && !release(e))
            break;
    }
    for (uint32_t w = 0; w < e->threads / 32; w++)
        yk_emu_flush(e, w);
}

bool yk_emu_run(yk_emu *e, void (*kernel)(const void *args), const void *args, const uint32_t groups[3], uint32_t threads)
{
    if (threads == 0 || threads % 32 || threads > YK_EMU_THREADS || !home_start(e))
        return false;
    yk_emu *before = yk_emu_current;
    yk_emu_current = e;
    e->kernel = kernel;
    e->args = args;
    e->threads = threads;
    memcpy(e->groups, groups, sizeof e->groups);
    e->ended = false;
    for (e->group[2] = 0; e->group[2] < groups[2] && !e->ended; e->group[2]++)
        for (e->group[1] = 0; e->group[1] < groups[1] && !e->ended; e->group[1]++)
            for (e->group[0] = 0; e->group[0] < groups[0] && !e->ended; e->group[0]++)
                run_block(e);
    yk_emu_current = before;
    return !e->ended;
}

yk_emu *yk_emu_open(void)
{
    yk_emu *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->arena = aligned_alloc(YK_EMU_GAP, YK_EMU_ARENA);
    e->cells = calloc(YK_EMU_ARENA, sizeof *e->cells);
    e->fibres = calloc(YK_EMU_THREADS, sizeof *e->fibres);
    /* Pages of stacks that no thread uses are never touched. */
    void *stacks = mmap(NULL, STACKS_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    e->stacks = stacks == MAP_FAILED ? NULL : stacks;
    e->warps = calloc(YK_EMU_THREADS / 32, sizeof *e->warps);
    e->seen = calloc(YK_EMU_SEEN, sizeof *e->seen);
    if (!e->arena || !e->cells || !e->fibres || !e->stacks || !e->warps || !e->seen) {
        yk_emu_close(e);
        return NULL;
    }
    memset(e->arena, 0xe5, YK_EMU_ARENA);
    for (uint32_t i = 0; i < YK_EMU_THREADS; i++)
        e->fibres[i].stack = e->stacks + (size_t)i * YK_EMU_STACK;
    return e;
}

void yk_emu_close(yk_emu *e)
{
    if (!e)
        return;
    for (uint32_t i = 0; e->fibres && i < YK_EMU_THREADS; i++) {
        free(e->fibres[i].copies);
        fibre_free(&e->fibres[i]);
    }
    for (uint32_t w = 0; e->warps && w < YK_EMU_THREADS / 32; w++)
        free(e->warps[w].events);
    home_free(e);
    free(e->arena);
    free(e->cells);
    free(e->fibres);
    if (e->stacks)
        munmap(e->stacks, STACKS_BYTES);
    free(e->warps);
    free(e->seen);
    free(e);
}

bool yk_emu_memory(yk_emu *e, const char *name, const void *p, size_t bytes, bool written)
{
    if (e->n_regions == YK_EMU_REGIONS)
        return false;
    e->regions[e->n_regions].name = name;
    e->regions[e->n_regions].at = (uintptr_t)p;
    e->regions[e->n_regions].bytes = bytes;
    e->regions[e->n_regions++].written = written;
    return true;
}

void yk_emu_forget(yk_emu *e)
{
    e->n_regions = 0;
    e->last_region = 0;
}

uint64_t yk_emu_count(const yk_emu *e, yk_emu_kind kind)
{
    return e->found[kind];
}

const char *yk_emu_line(const yk_emu *e, yk_emu_kind kind)
{
    return e->line[kind];
}

yk_emu_banks yk_emu_conflicts(const yk_emu *e)
{
    return e->banks;
}
