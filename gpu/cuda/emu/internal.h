/* internal.h - what the files of the emulator share: emu.c (fibres, barriers), check.c (accesses), warp.c (what lanes do together), hooks.c. */
#ifndef YK_CUDA_EMU_INTERNAL_H
#define YK_CUDA_EMU_INTERNAL_H

#include "gpu/cuda/emu/emu.h"

enum {
    YK_EMU_STACK = 64 << 10,
    YK_EMU_REGIONS = 64,
    YK_EMU_ARRAYS = 32,
    YK_EMU_GAP = 128, /* bytes between shared arrays, so that a step behind one is seen */
    YK_EMU_ARENA = YK_EMU_SHARED + YK_EMU_ARRAYS * 2 * YK_EMU_GAP,
    YK_EMU_LINE = 320,
    YK_EMU_SEEN = 4096 /* places of a text that use shared memory between two meetings of a warp */
};

typedef enum yk_emu_state { YK_EMU_RUN, YK_EMU_AT_BARRIER, YK_EMU_AT_WARP, YK_EMU_DONE } yk_emu_state;

/* A copy that cp.async has under way. */
typedef struct yk_emu_copy {
    uint8_t *to;
    const uint8_t *from;
    uint32_t bytes, valid, group;
    uintptr_t where;
} yk_emu_copy;

typedef struct yk_emu_fibre {
    void *sp; /* saved stack pointer, or a ucontext_t */
    uint8_t *stack;
    uint32_t thread;
    yk_emu_state state;
    const char *where; /* it waits there */
    uint32_t op, mask; /* what the warp does together */
    const void *in;
    void *out;
    yk_emu_copy *copies; /* [n_copies] */
    uint32_t n_copies, max_copies, committed;
} yk_emu_fibre;

/* What is known of a byte of shared memory. Epochs count barriers of the block and of the warp. */
typedef struct yk_emu_cell {
    uint32_t w_block, w_warp, r_block, r_warp;
    uint16_t writer, reader;
    uint8_t state; /* 0 never written, 1 written, 2 cp.async is under way */
    bool atomic;   /* the last write */
    bool same,
        more; /* other lanes of the reader's warp read it in that epoch of the warp; other warps did in that epoch of the block */
} yk_emu_cell;

/* An access to shared memory, for bank conflicts. */
typedef struct yk_emu_event {
    uintptr_t where;
    uint32_t lane, at, bytes, number; /* number: the lane's how many-th at that place */
} yk_emu_event;

/* How often each lane used shared memory at a place. */
typedef struct yk_emu_seen {
    uintptr_t where;
    uint32_t n[32];
} yk_emu_seen;

typedef struct yk_emu_warp {
    uint32_t epoch;
    yk_emu_event *events;
    uint32_t n_events, max_events;
} yk_emu_warp;

struct yk_emu {
    struct {
        const char *name;
        uintptr_t at;
        size_t bytes;
        bool written;
    } regions[YK_EMU_REGIONS];
    uint32_t n_regions, last_region;
    struct {
        const char *name;
        uint32_t at;
        size_t bytes;
    } arrays[YK_EMU_ARRAYS];
    uint32_t n_arrays, arena_used;
    uint8_t *arena;     /* [YK_EMU_ARENA] */
    yk_emu_cell *cells; /* [YK_EMU_ARENA] */
    yk_emu_fibre *fibres;
    uint8_t *stacks;
    yk_emu_warp *warps;
    yk_emu_seen *seen; /* [YK_EMU_SEEN] */
    yk_emu_fibre *now; /* NULL: the scheduler runs */
    void *home;        /* the scheduler's stack pointer */
    void (*kernel)(const void *);
    const void *args;
    uint32_t group[3], groups[3], threads, epoch;
    bool ended, no_memory;
    uint64_t found[YK_EMU_KINDS];
    char line[YK_EMU_KINDS][YK_EMU_LINE];
    yk_emu_banks banks;
};

/* The launch under way in this thread, or NULL. */
extern _Thread_local yk_emu *yk_emu_current;

/* emu.c */
void yk_emu_find(yk_emu *e, yk_emu_kind kind, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void yk_emu_stop(yk_emu *e); /* ends the launch; does not return to a fibre */
void yk_emu_yield(yk_emu *e);
uintptr_t yk_emu_code(uintptr_t pc); /* from the start of the program, as addr2line wants it */

/* check.c: an access of the fibre that runs */
typedef enum yk_emu_use { YK_EMU_READ, YK_EMU_WRITE, YK_EMU_ATOMIC } yk_emu_use;
void yk_emu_access(const void *p, size_t bytes, yk_emu_use use, uintptr_t where);
void yk_emu_block_begin(yk_emu *e);
/* Counts the bank conflicts of a warp's accesses since the last time. */
void yk_emu_flush(yk_emu *e, uint32_t warp);

/* warp.c: all lanes of the mask are there */
void yk_emu_together(yk_emu *e, yk_emu_fibre *first);

#endif
