/* check.c - every access of a kernel to memory: bounds, alignment, races, bank conflicts, and cp.async: emu.h. */
#include "gpu/cuda/emu/internal.h"

#include <stdlib.h>
#include <string.h>

/* Code and constants of the program lie between them. */
extern const char __executable_start __attribute__((weak));
extern const char __data_start __attribute__((weak));

void yk_emu_block_begin(yk_emu *e)
{
    memset(e->cells, 0, e->arena_used * sizeof *e->cells);
    memset(e->arena, 0xe5, e->arena_used);
    e->n_arrays = 0;
    e->arena_used = 0;
    e->epoch = 1;
    for (uint32_t w = 0; w < e->threads / 32; w++) {
        e->warps[w].epoch = 1;
        e->warps[w].n_events = 0;
    }
}

/* ---- shared memory ---- */

/* Nothing orders what thread `other` did in these epochs before what thread t does now. */
static bool apart(const yk_emu *e, uint32_t t, uint32_t other, uint32_t block, uint32_t warp)
{
    return other != t && block == e->epoch && !(other / 32 == t / 32 && warp != e->warps[t / 32].epoch);
}

static void cell_read(yk_emu *e, yk_emu_cell *c, uint32_t t)
{
    const uint32_t warp = e->warps[t / 32].epoch;
    if (c->r_block != e->epoch) {
        *c = (yk_emu_cell){.w_block = c->w_block,
                           .w_warp = c->w_warp,
                           .r_block = e->epoch,
                           .r_warp = warp,
                           .writer = c->writer,
                           .reader = (uint16_t)t,
                           .state = c->state,
                           .atomic = c->atomic};
    } else if (c->reader / 32 != t / 32) {
        c->more = true;
    } else if (c->r_warp != warp) {
        c->reader = (uint16_t)t;
        c->r_warp = warp;
        c->same = false;
    } else if (c->reader != t) {
        c->same = true;
    }
}

static bool read_by_another(const yk_emu *e, const yk_emu_cell *c, uint32_t t)
{
    if (c->r_block != e->epoch)
        return false;
    return c->more || c->reader / 32 != t / 32 || (c->r_warp == e->warps[t / 32].epoch && (c->same || c->reader != t));
}

/* One finding for each access is enough. */
static void shared_bytes(yk_emu *e, const char *name, uint32_t array_at, uint32_t at, size_t bytes, yk_emu_use use,
                         uintptr_t where)
{
    const uint32_t t = e->now->thread;
    bool race = false, empty = false, flying = false;
    uint32_t other = 0;
    for (size_t i = 0; i < bytes; i++) {
        yk_emu_cell *c = &e->cells[at + i];
        flying |= c->state == 2;
        empty |= c->state == 0 && use != YK_EMU_WRITE;
        if (c->state && apart(e, t, c->writer, c->w_block, c->w_warp) && !(use == YK_EMU_ATOMIC && c->atomic)) {
            race = true;
            other = c->writer;
        }
        if (use != YK_EMU_READ && read_by_another(e, c, t)) {
            race = true;
            other = c->reader;
        }
        if (use == YK_EMU_READ) {
            cell_read(e, c, t);
        } else {
            c->writer = (uint16_t)t;
            c->w_block = e->epoch;
            c->w_warp = e->warps[t / 32].epoch;
            c->atomic = use == YK_EMU_ATOMIC;
            c->state = 1;
        }
    }
    const uint32_t byte = at - array_at;
    const uintptr_t code = yk_emu_code(where);
    if (race)
        yk_emu_find(e, YK_EMU_RACE, "%s byte %u of %s, which thread %u %s, at +0x%lx", use == YK_EMU_READ ? "reads" : "writes",
                    byte, name, other, "used without a barrier between", (unsigned long)code);
    if (empty)
        yk_emu_find(e, YK_EMU_UNINIT, "reads byte %u of %s at +0x%lx", byte, name, (unsigned long)code);
    if (flying)
        yk_emu_find(e, YK_EMU_ASYNC, "byte %u of %s at +0x%lx", byte, name, (unsigned long)code);
}

static void remember(yk_emu *e, uint32_t at, uint32_t bytes, uintptr_t where)
{
    yk_emu_warp *w = &e->warps[e->now->thread / 32];
    if (w->n_events == w->max_events) {
        const uint32_t more = w->max_events ? 2 * w->max_events : 4096;
        yk_emu_event *events = realloc(w->events, more * sizeof *events);
        if (!events) {
            e->no_memory = true;
            yk_emu_stop(e);
            return;
        }
        w->events = events;
        w->max_events = more;
    }
    w->events[w->n_events++] = (yk_emu_event){.where = where, .lane = e->now->thread % 32, .at = at, .bytes = bytes};
}

static void shared_access(yk_emu *e, uint32_t at, size_t bytes, yk_emu_use use, uintptr_t where)
{
    for (uint32_t i = 0; i < e->n_arrays; i++) {
        if (at < e->arrays[i].at || at + bytes > e->arrays[i].at + e->arrays[i].bytes)
            continue;
        shared_bytes(e, e->arrays[i].name, e->arrays[i].at, at, bytes, use, where);
        remember(e, at, (uint32_t)bytes, where);
        return;
    }
    const char *name = "no array";
    uint32_t from = 0;
    for (uint32_t i = 0; i < e->n_arrays; i++)
        if (at >= e->arrays[i].at) {
            name = e->arrays[i].name;
            from = e->arrays[i].at;
        }
    yk_emu_find(e, YK_EMU_BOUNDS, "%zu shared bytes, %u behind the start of %s, at +0x%lx", bytes, at - from, name,
                (unsigned long)yk_emu_code(where));
    yk_emu_stop(e);
}

/* ---- all memory ---- */

static bool region_has(const yk_emu *e, uint32_t i, uintptr_t at, size_t bytes)
{
    return at >= e->regions[i].at && at - e->regions[i].at <= e->regions[i].bytes &&
           bytes <= e->regions[i].bytes - (at - e->regions[i].at);
}

static void global_access(yk_emu *e, uintptr_t at, size_t bytes, yk_emu_use use, uintptr_t where)
{
    const bool write = use != YK_EMU_READ;
    uint32_t i = e->last_region;
    if (i >= e->n_regions || !region_has(e, i, at, bytes) || (write && !e->regions[i].written))
        for (i = 0; i < e->n_regions; i++)
            if (region_has(e, i, at, bytes) && (!write || e->regions[i].written))
                break;
    if (i < e->n_regions) {
        e->last_region = i;
        return;
    }
    if (!write && at >= (uintptr_t)&__executable_start && at + bytes <= (uintptr_t)&__data_start)
        return;
    uint32_t near = 0; /* the piece that begins last before it */
    for (i = 0; i < e->n_regions; i++)
        if (e->regions[i].at <= at && (e->regions[near].at > at || e->regions[i].at > e->regions[near].at))
            near = i;
    yk_emu_find(e, YK_EMU_BOUNDS, "%s %zu bytes, %ld behind the start of %s (%zu bytes), at +0x%lx", write ? "writes" : "reads",
                bytes, e->n_regions ? (long)(at - e->regions[near].at) : (long)at,
                e->n_regions ? e->regions[near].name : "no memory", e->n_regions ? e->regions[near].bytes : 0,
                (unsigned long)yk_emu_code(where));
    yk_emu_stop(e);
}

void yk_emu_access(const void *p, size_t bytes, yk_emu_use use, uintptr_t where)
{
    yk_emu *e = yk_emu_current;
    const uintptr_t at = (uintptr_t)p;
    if (!e || !e->now || at - (uintptr_t)e->now->stack < YK_EMU_STACK)
        return;
    if ((bytes == 2 || bytes == 4 || bytes == 8 || bytes == 16) && at % bytes) {
        yk_emu_find(e, YK_EMU_MISALIGNED, "%zu bytes at an address that is %zu behind a multiple of it, at +0x%lx", bytes,
                    (size_t)(at % bytes), (unsigned long)yk_emu_code(where));
        yk_emu_stop(e);
    }
    const uintptr_t arena = (uintptr_t)e->arena;
    if (at - arena < YK_EMU_ARENA)
        shared_access(e, (uint32_t)(at - arena), bytes, use, where);
    else
        global_access(e, at, bytes, use, where);
}

__attribute__((noinline)) void yk_emu_load(const void *p, uint32_t bytes, void *out)
{
    yk_emu_access(p, bytes, YK_EMU_READ, (uintptr_t)__builtin_return_address(0));
    memcpy(out, p, bytes);
}

__attribute__((noinline)) void yk_emu_store(void *p, uint32_t bytes, const void *in)
{
    yk_emu_access(p, bytes, YK_EMU_WRITE, (uintptr_t)__builtin_return_address(0));
    memcpy(p, in, bytes);
}

__attribute__((noinline)) uint32_t yk_emu_atomic_u32(yk_emu_atomic kind, uint32_t *p, uint32_t value)
{
    yk_emu_access(p, 4, YK_EMU_ATOMIC, (uintptr_t)__builtin_return_address(0));
    const uint32_t before = *p;
    switch (kind) {
    case YK_EMU_ADD:
        *p = before + value;
        break;
    case YK_EMU_MAX:
        *p = before > value ? before : value;
        break;
    case YK_EMU_MIN:
        *p = before < value ? before : value;
        break;
    case YK_EMU_OR:
        *p = before | value;
        break;
    case YK_EMU_EXCH:
        *p = value;
        break;
    }
    return before;
}

__attribute__((noinline)) uint32_t yk_emu_atomic_cas(uint32_t *p, uint32_t compare, uint32_t value)
{
    yk_emu_access(p, 4, YK_EMU_ATOMIC, (uintptr_t)__builtin_return_address(0));
    const uint32_t before = *p;
    if (before == compare)
        *p = value;
    return before;
}

/* ---- cp.async ---- */

__attribute__((noinline)) void yk_emu_cp_async(void *to, const void *from, uint32_t bytes, uint32_t valid)
{
    yk_emu *e = yk_emu_current;
    yk_emu_fibre *f = e->now;
    const uintptr_t where = (uintptr_t)__builtin_return_address(0), arena = (uintptr_t)e->arena;
    if ((uintptr_t)from % bytes || (bytes != 4 && bytes != 8 && bytes != 16) || valid > bytes) {
        yk_emu_find(e, YK_EMU_MISALIGNED,
                    "cp.async of %u bytes (%u valid) from an address that is %zu behind a multiple of it, at +0x%lx", bytes,
                    valid, (size_t)((uintptr_t)from % bytes), (unsigned long)yk_emu_code(where));
        yk_emu_stop(e);
    }
    if ((uintptr_t)to - arena >= YK_EMU_ARENA) {
        yk_emu_find(e, YK_EMU_BOUNDS, "cp.async to memory that is not shared, at +0x%lx", (unsigned long)yk_emu_code(where));
        yk_emu_stop(e);
    }
    for (uint32_t i = 0; i < valid; i++) /* the bytes that are read; their alignment was looked at */
        global_access(e, (uintptr_t)from + i, 1, YK_EMU_READ, where);
    yk_emu_access(to, bytes, YK_EMU_WRITE, where);
    for (uint32_t i = 0; i < bytes; i++)
        e->cells[(uintptr_t)to - arena + i].state = 2;
    if (f->n_copies == f->max_copies) {
        const uint32_t more = f->max_copies ? 2 * f->max_copies : 64;
        yk_emu_copy *copies = realloc(f->copies, more * sizeof *copies);
        if (!copies) {
            e->no_memory = true;
            yk_emu_stop(e);
            return;
        }
        f->copies = copies;
        f->max_copies = more;
    }
    f->copies[f->n_copies++] =
        (yk_emu_copy){.to = to, .from = from, .bytes = bytes, .valid = valid, .group = f->committed, .where = where};
}

void yk_emu_cp_commit(void)
{
    yk_emu_current->now->committed++;
}

void yk_emu_cp_wait(uint32_t but)
{
    yk_emu *e = yk_emu_current;
    yk_emu_fibre *f = e->now;
    uint32_t left = 0;
    for (uint32_t i = 0; i < f->n_copies; i++) {
        const yk_emu_copy *c = &f->copies[i];
        if (c->group + but >= f->committed) {
            f->copies[left++] = *c;
            continue;
        }
        memset(c->to, 0, c->bytes);
        memcpy(c->to, c->from, c->valid);
        for (uint32_t k = 0; k < c->bytes; k++) {
            yk_emu_cell *cell = &e->cells[(size_t)(c->to - e->arena) + k];
            cell->state = 1;
            cell->writer = (uint16_t)f->thread;
            cell->w_block = e->epoch;
            cell->w_warp = e->warps[f->thread / 32].epoch;
        }
    }
    f->n_copies = left;
}

/* ---- bank conflicts ---- */

static int by_instruction(const void *a, const void *b)
{
    const yk_emu_event *x = a, *y = b;
    if (x->where != y->where)
        return x->where < y->where ? -1 : 1;
    if (x->number != y->number)
        return x->number < y->number ? -1 : 1;
    return x->lane < y->lane ? -1 : x->lane > y->lane;
}

/* Passes that n lanes with at most 128 different bytes between them take: words of the busiest bank. */
static uint32_t passes_of(const yk_emu_event *v, uint32_t n)
{
    uint32_t words[128], used = 0, busy[32] = {0}, most = 0;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t w = v[i].at / 4; w <= (v[i].at + v[i].bytes - 1) / 4; w++) {
            bool seen = false;
            for (uint32_t k = 0; k < used; k++)
                seen |= words[k] == w;
            if (!seen && used < 128) {
                words[used++] = w;
                busy[w % 32]++;
                most = busy[w % 32] > most ? busy[w % 32] : most;
            }
        }
    }
    return most;
}

static void count_access(yk_emu *e, const yk_emu_event *v, uint32_t n)
{
    const uint32_t lanes = v->bytes <= 4 ? 32 : v->bytes == 8 ? 16 : 8;
    uint32_t passes = 0, needed = 0;
    for (uint32_t i = 0, k; i < n; i = k) {
        for (k = i; k < n && v[k].lane / lanes == v[i].lane / lanes;)
            k++;
        passes += passes_of(v + i, k - i);
        needed++;
    }
    e->banks.accesses++;
    e->banks.passes += passes;
    e->banks.needed += needed;
    if ((passes + needed - 1) / needed > e->banks.worst) {
        e->banks.worst = (passes + needed - 1) / needed;
        e->banks.where = yk_emu_code(v->where);
    }
}

void yk_emu_flush(yk_emu *e, uint32_t warp)
{
    yk_emu_warp *w = &e->warps[warp];
    /* Number them: the k-th access of a lane at a place meets the k-th of the others. */
    yk_emu_seen *seen = e->seen;
    uint32_t n_seen = 0;
    for (uint32_t i = 0; i < w->n_events; i++) {
        yk_emu_event *v = &w->events[i];
        uint32_t k = 0;
        while (k < n_seen && seen[k].where != v->where)
            k++;
        if (k == n_seen) {
            if (n_seen == YK_EMU_SEEN)
                continue;
            memset(&seen[n_seen], 0, sizeof *seen);
            seen[n_seen++].where = v->where;
        }
        v->number = seen[k].n[v->lane]++;
    }
    if (w->n_events)
        qsort(w->events, w->n_events, sizeof *w->events, by_instruction);
    for (uint32_t i = 0, k; i < w->n_events; i = k) {
        for (k = i + 1;
             k < w->n_events && w->events[k].where == w->events[i].where && w->events[k].number == w->events[i].number;)
            k++;
        count_access(e, w->events + i, k - i);
    }
    w->n_events = 0;
}
