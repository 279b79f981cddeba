/* emu.h - executes CUDA kernels on the host, and finds what is wrong with them: a tool of tests, not part of any module.
 *
 * Kernel texts reach it through gpu/kernels/dialect.k.h and gpu/cuda/ptx.k.h, compiled with YK_EMU. Threads of a block are fibres that run one
 * after the other until they meet: barriers for the block, votes, shuffles, mma and ldmatrix for the warp, in lock step. Blocks run one after the other.
 *
 * Where the text was also compiled with -fsanitize=thread, the compiler calls __tsan_readN and __tsan_writeN (hooks.c) for every access to memory,
 * and each is checked:
 *   race        shared memory written by one thread and used by another without a barrier between (of the warp: yk_syncwarp; votes and shuffles
 *               order nothing)
 *   bounds      outside of what the launch was given, outside of a shared array, or a write where only reading is allowed
 *   uninit      shared bytes read that nobody has written in this block
 *   async       shared bytes used that cp.async has not brought yet: it writes when its thread waits for it, not before
 *   misaligned  2, 4, 8 or 16 bytes at an address that is no multiple of it
 *   diverged    threads that wait for each other in different places, or for one that has left
 * and bank conflicts are counted: accesses of a warp's lanes by one instruction, in as many passes as the busiest of 32 banks has words; 8 bytes
 * are two passes of half a warp, 16 bytes four of a quarter.
 *
 * After bounds and misaligned the launch ends, as on a device; the others are counted and it goes on. One launch at a time in a thread. */
#ifndef YK_CUDA_EMU_H
#define YK_CUDA_EMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum yk_emu_kind {
    YK_EMU_RACE,
    YK_EMU_BOUNDS,
    YK_EMU_UNINIT,
    YK_EMU_ASYNC,
    YK_EMU_MISALIGNED,
    YK_EMU_DIVERGED,
    YK_EMU_KINDS
} yk_emu_kind;

enum { YK_EMU_THREADS = 1024, YK_EMU_SHARED = 48 << 10 };

typedef struct yk_emu yk_emu;

/* How shared memory was used. A pass serves 32 banks of 4 bytes. */
typedef struct yk_emu_banks {
    uint64_t accesses, passes, needed; /* of warps; passes they took, and would have taken without conflicts */
    uint32_t worst;                    /* most passes of an access for each that it needed */
    uintptr_t where;                   /* the code of that access, from the start of the program */
} yk_emu_banks;

/* NULL: not enough memory. Owned by the caller. */
yk_emu *yk_emu_open(void);
void yk_emu_close(yk_emu *e);
/* Memory that kernels may read, or also write. Must stay until the next yk_emu_forget. False: too many pieces. */
bool yk_emu_memory(yk_emu *e, const char *name, const void *p, size_t bytes, bool written);
void yk_emu_forget(yk_emu *e);
/* Runs kernel(args) in groups[0] x groups[1] x groups[2] blocks of `threads` threads (a multiple of 32, at most YK_EMU_THREADS). False: memory
 * was not enough, or the launch was ended by a finding. */
bool yk_emu_run(yk_emu *e, void (*kernel)(const void *args), const void *args, const uint32_t groups[3], uint32_t threads);
/* Findings since yk_emu_open; the first of a kind in words, "" when there is none. */
uint64_t yk_emu_count(const yk_emu *e, yk_emu_kind kind);
const char *yk_emu_line(const yk_emu *e, yk_emu_kind kind);
yk_emu_banks yk_emu_conflicts(const yk_emu *e);

/* ---- What kernel texts call, through the names of dialect.k.h and ptx.k.h. `where` is the place in the text. ---- */

#define YK_EMU_TEXT(x)  #x
#define YK_EMU_PLACE(x) YK_EMU_TEXT(x)
#define YK_EMU_HERE     __FILE__ ":" YK_EMU_PLACE(__LINE__)

uint32_t yk_emu_thread(void); /* of the block */
uint32_t yk_emu_group(uint32_t d);
uint32_t yk_emu_groups(uint32_t d);
/* The block's array of that name; aligned to 128 bytes. */
void *yk_emu_shared(const char *name, size_t bytes);
void yk_emu_barrier(const char *where);
void yk_emu_syncwarp(uint32_t mask, const char *where);

/* Vector loads and stores of `bytes`, checked as one access. */
void yk_emu_load(const void *p, uint32_t bytes, void *out);
void yk_emu_store(void *p, uint32_t bytes, const void *in);

typedef enum yk_emu_shuffle { YK_EMU_IDX, YK_EMU_XOR, YK_EMU_DOWN, YK_EMU_UP } yk_emu_shuffle;
/* The value of lane `lane` (IDX), own lane ^ lane, + lane or - lane; of the own lane where there is no such one. */
uint32_t yk_emu_shfl(yk_emu_shuffle kind, uint32_t mask, uint32_t value, uint32_t lane, const char *where);
/* Bit i: lane i of the mask gave a value that is not 0. */
uint32_t yk_emu_ballot(uint32_t mask, uint32_t value, const char *where);

/* On shared or global memory: the value before. */
typedef enum yk_emu_atomic { YK_EMU_ADD, YK_EMU_MAX, YK_EMU_MIN, YK_EMU_OR, YK_EMU_EXCH } yk_emu_atomic;
uint32_t yk_emu_atomic_u32(yk_emu_atomic kind, uint32_t *p, uint32_t value);
uint32_t yk_emu_atomic_cas(uint32_t *p, uint32_t compare, uint32_t value);

/* cp.async: 4, 8 or 16 bytes to shared memory, of which the first `valid` come from `from` and the others are zeros. Arrives when its thread waits. */
void yk_emu_cp_async(void *to, const void *from, uint32_t bytes, uint32_t valid);
void yk_emu_cp_commit(void);
void yk_emu_cp_wait(uint32_t but); /* until at most `but` of the committed groups are under way */

/* d = a * b + c with the fragments of the PTX ISA (version 9.0, "Matrix fragments for mma"): A by rows, B by columns. Integers wrap. Float products are
 * exact, a sum of 16 or 8 products is added to c in double and rounded once (devices may lose more; how is not documented). */
typedef enum yk_emu_mma_kind {
    YK_EMU_M8N8K16_S8,   /* a 1, b 1, c and d 2 words */
    YK_EMU_M16N8K16_S8,  /* 2, 1, 4 */
    YK_EMU_M16N8K32_S8,  /* 4, 2, 4 */
    YK_EMU_M16N8K16_F16, /* 4, 2, 4 (f32) */
    YK_EMU_M16N8K16_BF16,
    YK_EMU_M16N8K8_F16 /* 2, 1, 4 (f32) */
} yk_emu_mma_kind;
void yk_emu_mma(yk_emu_mma_kind kind, void *d, const uint32_t *a, const uint32_t *b, const void *c, const char *where);
/* ldmatrix.xN(.trans).b16: row i of matrix m lies at the address that lane 8 m + i gives. */
void yk_emu_ldmatrix(uint32_t n, bool trans, uint32_t *out, const void *row, const char *where);

#endif
