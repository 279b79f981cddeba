/* wrong.c - compiled so that each access to memory is seen: wrong.h. */
#define YK_EMU 1
#include "gpu/kernels/dialect.k.h"
#include "gpu/cuda/ptx.k.h"

#include "tests/cuda_emu/wrong.h"

#define BEGIN                                                                                                                  \
    const emu_args *a = args;                                                                                                  \
    const u32 t = yk_thread();                                                                                                 \
    (void)a, (void)t;

static void race(const void *args)
{
    BEGIN YK_SHARED(u32, s, 64);
    s[t] = 0;
    yk_barrier();
    s[t] = a->in[t];
    a->out[t] = s[(t + 33) % 64];
}

static void race_ordered(const void *args)
{
    BEGIN YK_SHARED(u32, s, 64);
    s[t] = a->in[t];
    yk_barrier();
    a->out[t] = s[(t + 33) % 64];
}

/* The second round writes what slower threads still read. */
static void race_behind(const void *args)
{
    BEGIN YK_SHARED(u32, s, 64);
    for (u32 i = 0; i < 2; i++) {
        s[t] = a->in[t] + i;
        yk_barrier();
        a->out[64 * i + t] = s[(t + 33) % 64];
    }
}

static void race_behind_ordered(const void *args)
{
    BEGIN YK_SHARED(u32, s, 64);
    for (u32 i = 0; i < 2; i++) {
        s[t] = a->in[t] + i;
        yk_barrier();
        a->out[64 * i + t] = s[(t + 33) % 64];
        yk_barrier();
    }
}

/* Lanes of one warp: a shuffle is no barrier of memory, yk_syncwarp is. */
static void race_warp(const void *args)
{
    BEGIN YK_SHARED(u32, s, 32);
    s[t] = 0;
    yk_syncwarp(0xffffffffu);
    s[t] = a->in[t];
    a->out[32 + t] = yk_shfl(0xffffffffu, t, 0);
    a->out[t] = s[t ^ 1u];
}

static void race_warp_ordered(const void *args)
{
    BEGIN YK_SHARED(u32, s, 32);
    s[t] = a->in[t];
    yk_syncwarp(0xffffffffu);
    a->out[t] = s[t ^ 1u];
    yk_syncwarp(0xffffffffu);
    s[t] = 0;
}

/* A barrier of the warp does not order the block. */
static void race_of_warps(const void *args)
{
    BEGIN YK_SHARED(u32, s, 64);
    s[t] = 0;
    yk_barrier();
    s[t] = a->in[t];
    yk_syncwarp(0xffffffffu);
    a->out[t] = s[t ^ 32u];
}

static void race_sum(const void *args)
{
    BEGIN YK_SHARED(u32, s, 1);
    if (t == 0)
        s[0] = 0;
    yk_barrier();
    s[0] += a->in[t];
    yk_barrier();
    a->out[t] = s[0];
}

static void race_sum_atomic(const void *args)
{
    BEGIN YK_SHARED(u32, s, 1);
    if (t == 0)
        s[0] = 0;
    yk_barrier();
    yk_atomic_add(s, a->in[t]);
    yk_barrier();
    a->out[t] = s[0];
}

static void bounds_global(const void *args)
{
    BEGIN a->out[t] = a->in[EMU_WORDS - 63 + t];
}

static void bounds_shared(const void *args)
{
    BEGIN YK_SHARED(u32, s, 64);
    s[t + 1] = t;
}

static void bounds_read_only(const void *args)
{
    BEGIN((u32 *)(uintptr_t)a->in)[t] = t;
}

static void bounds_wide(const void *args)
{
    BEGIN u32 v[4];
    yk_load4(a->in + EMU_WORDS - 4 * 63 + 4 * t, v);
    a->out[t] = v[0];
}

static void uninit(const void *args)
{
    BEGIN YK_SHARED(u32, s, 128);
    s[t] = a->in[t];
    yk_barrier();
    a->out[t] = s[t + 1];
}

static void uninit_not(const void *args)
{
    BEGIN YK_SHARED(u32, s, 128);
    s[t] = a->in[t];
    s[t + 64] = 0;
    yk_barrier();
    a->out[t] = s[t + 1];
}

static void async_early(const void *args)
{
    BEGIN YK_SHARED(u32, s, 64);
    yk_cp_async4(s + t, a->in + t);
    yk_cp_commit();
    a->out[t] = s[t];
    yk_cp_wait(0);
}

static void async_waited(const void *args)
{
    BEGIN YK_SHARED(u32, s, 64);
    yk_cp_async4(s + t, a->in + t);
    yk_cp_commit();
    yk_cp_wait(0);
    yk_barrier();
    a->out[t] = s[t ^ 33u];
}

/* Each thread waits for its own copies only. */
static void async_race(const void *args)
{
    BEGIN YK_SHARED(u32, s, 64);
    s[t] = 0;
    yk_barrier();
    yk_cp_async4(s + t, a->in + t);
    yk_cp_commit();
    yk_cp_wait(0);
    a->out[t] = s[t ^ 33u];
}

/* Two groups, waits for the first. */
static void async_group(const void *args)
{
    BEGIN YK_SHARED(u32, s, 128);
    yk_cp_async4(s + t, a->in + t);
    yk_cp_commit();
    yk_cp_async4(s + 64 + t, a->in + t);
    yk_cp_commit();
    yk_cp_wait(1);
    yk_barrier();
    a->out[t] = s[t ^ 33u] + s[64 + t];
}

static void async_group_right(const void *args)
{
    BEGIN YK_SHARED(u32, s, 128);
    yk_cp_async4(s + t, a->in + t);
    yk_cp_commit();
    yk_cp_async4(s + 64 + t, a->in + t);
    yk_cp_commit();
    yk_cp_wait(1);
    yk_barrier();
    a->out[t] = s[t ^ 33u];
    yk_cp_wait(0);
    yk_barrier();
    a->out[t] += s[64 + (t ^ 1u)];
}

static void misaligned_wide(const void *args)
{
    BEGIN u32 v[4];
    yk_load4(a->in + t, v);
    a->out[t] = v[0];
}

static void misaligned_word(const void *args)
{
    BEGIN a->out[t] = *(const u32 *)(const void *)((const u8 *)a->in + t);
}

static void misaligned_copy(const void *args)
{
    BEGIN YK_SHARED(u32, s, 256);
    yk_cp_async16(s + 4 * t, a->in + 2 * t);
    yk_cp_commit();
    yk_cp_wait(0);
    a->out[t] = s[4 * t];
}

static void diverged_barrier(const void *args)
{
    BEGIN if (t < 32) yk_barrier();
    else yk_barrier();
    a->out[t] = t;
}

static void diverged_ended(const void *args)
{
    BEGIN if (t == 5) return;
    a->out[t] = yk_shfl(0xffffffffu, t, 0);
}

static void diverged_warp(const void *args)
{
    BEGIN if (t % 2) a->out[t] = yk_ballot(0xffffffffu, 1);
    else yk_syncwarp(0xffffffffu);
}

static void diverged_half(const void *args)
{
    BEGIN if (t % 32 == 0) yk_barrier();
    else a->out[t] = yk_ballot(0xfffffffeu, 1);
}

static void banks_32(const void *args)
{
    BEGIN YK_SHARED(u32, s, 32 * 32);
    s[32 * t] = a->in[t];
    a->out[t] = s[32 * t];
}

static void banks_padded(const void *args)
{
    BEGIN YK_SHARED(u32, s, 33 * 32);
    s[33 * t] = a->in[t];
    a->out[t] = s[33 * t];
}

static void banks_pairs(const void *args)
{
    BEGIN YK_SHARED(u32, s, 64);
    s[2 * t] = a->in[t];
    a->out[t] = s[2 * t];
}

/* One word for all. */
static void banks_one(const void *args)
{
    BEGIN YK_SHARED(u32, s, 32);
    s[t] = a->in[t];
    yk_syncwarp(0xffffffffu);
    a->out[t] = s[7];
}

static void banks_wide(const void *args)
{
    BEGIN YK_SHARED(u32, s, 128);
    u32 v[4];
    yk_load4(a->in + 4 * t, v);
    yk_store4(s + 4 * t, v);
    yk_load4(s + 4 * t, v);
    a->out[t] = v[1];
}

/* Rows of 32 bytes: the first and the fifth of a matrix share their banks. */
static void banks_matrix(const void *args)
{
    BEGIN YK_SHARED(u32, s, 256);
    for (u32 i = 0; i < 8; i++)
        s[32 * i + t] = a->in[32 * i + t];
    yk_syncwarp(0xffffffffu);
    u32 m[4];
    yk_ldmatrix4(m, s + 8 * t);
    a->out[t] = m[0];
}

#define CASE(name, threads, wrong, worst)                                                                                      \
    {                                                                                                                          \
#name, name, threads, wrong, worst                                                                                     \
    }
const emu_case emu_cases[] = {
    CASE(race, 64, YK_EMU_RACE, 0),
    CASE(race_ordered, 64, -1, 1),
    CASE(race_behind, 64, YK_EMU_RACE, 0),
    CASE(race_behind_ordered, 64, -1, 1),
    CASE(race_warp, 32, YK_EMU_RACE, 0),
    CASE(race_warp_ordered, 32, -1, 1),
    CASE(race_of_warps, 64, YK_EMU_RACE, 0),
    CASE(race_sum, 64, YK_EMU_RACE, 0),
    CASE(race_sum_atomic, 64, -1, 0),
    CASE(bounds_global, 64, YK_EMU_BOUNDS, 0),
    CASE(bounds_shared, 64, YK_EMU_BOUNDS, 0),
    CASE(bounds_read_only, 64, YK_EMU_BOUNDS, 0),
    CASE(bounds_wide, 64, YK_EMU_BOUNDS, 0),
    CASE(uninit, 64, YK_EMU_UNINIT, 0),
    CASE(uninit_not, 64, -1, 1),
    CASE(async_early, 64, YK_EMU_ASYNC, 0),
    CASE(async_waited, 64, -1, 1),
    CASE(async_race, 64, YK_EMU_RACE, 0),
    CASE(async_group, 64, YK_EMU_ASYNC, 0),
    CASE(async_group_right, 64, -1, 1),
    CASE(misaligned_wide, 64, YK_EMU_MISALIGNED, 0),
    CASE(misaligned_word, 64, YK_EMU_MISALIGNED, 0),
    CASE(misaligned_copy, 64, YK_EMU_MISALIGNED, 0),
    CASE(diverged_barrier, 64, YK_EMU_DIVERGED, 0),
    CASE(diverged_ended, 32, YK_EMU_DIVERGED, 0),
    CASE(diverged_warp, 32, YK_EMU_DIVERGED, 0),
    CASE(diverged_half, 64, -1, 0),
    CASE(banks_32, 32, -1, 32),
    CASE(banks_padded, 32, -1, 1),
    CASE(banks_pairs, 32, -1, 2),
    CASE(banks_one, 32, -1, 1),
    CASE(banks_wide, 32, -1, 1),
    CASE(banks_matrix, 32, -1, 2),
};
const uint32_t emu_n_cases = sizeof emu_cases / sizeof *emu_cases;

void emu_mma_kernel(const void *args)
{
    BEGIN yk_emu_mma((yk_emu_mma_kind)a->n, a->out + 4 * t, a->in + 4 * t, a->in + 128 + 2 * t, a->in + 192 + 4 * t,
                     YK_EMU_HERE);
}

void emu_ldmatrix_kernel(const void *args)
{
    BEGIN YK_SHARED(u32, s, 128);
    u32 v[4];
    yk_load4(a->in + 4 * t, v);
    yk_store4(s + 4 * t, v);
    yk_syncwarp(0xffffffffu);
    yk_emu_ldmatrix(4, a->n == 1, v, s + 4 * t, YK_EMU_HERE);
    yk_store4(a->out + 4 * t, v);
}

void emu_lanes_kernel(const void *args)
{
    BEGIN u32 *o = a->out + 8 * (64 * (yk_group(0) + yk_groups(0) * yk_group(1)) + t);
    o[0] = yk_shfl(0xffffffffu, a->in[t], 3);
    o[1] = yk_shfl_xor(0xffffffffu, a->in[t], 5);
    o[2] = yk_emu_shfl(YK_EMU_DOWN, 0xffffffffu, a->in[t], 4, YK_EMU_HERE);
    o[3] = yk_emu_shfl(YK_EMU_UP, 0xffffffffu, a->in[t], 4, YK_EMU_HERE);
    o[4] = yk_ballot(0xffffffffu, t % 3 == 0);
    o[5] = t % 32 < 8 ? yk_ballot(0xffu, t % 2) : yk_ballot(0xffffff00u, 1);
    o[6] = yk_group(0) + 16 * yk_group(1) + 256 * yk_group(2);
    o[7] = yk_emu_atomic_cas(o + 4, 0, 1);
}

void emu_copy_kernel(const void *args)
{
    BEGIN YK_SHARED(u32, s, 64);
    if (t < 16) {
        yk_emu_cp_async(s + 4 * t, a->in + 4 * t, 16, 8);
        yk_cp_commit();
        yk_cp_wait(0);
    }
    yk_barrier();
    a->out[t] = s[t];
}
