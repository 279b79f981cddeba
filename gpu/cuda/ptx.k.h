/* ptx.k.h - the special instructions of kernels that only CUDA has: one name for each, inline PTX for nvcc, a call of the emulator
 * (gpu/cuda/emu/emu.h) on the host. Behind gpu/kernels/dialect.k.h. Fragments: docs/kernels/mma.md.
 *
 * YK_SM: compute capability that is compiled for, 75 for sm_75. Below 80 there is no cp.async: yk_cp_async copies at once through registers; and the
 * integer mma are made of m8n8k16. */

#if defined(__CUDACC__)

#ifdef __CUDA_ARCH__
#define YK_SM (__CUDA_ARCH__ / 10)
#else
#define YK_SM 80 /* nvcc's pass for the host, which makes no code of kernels */
#endif

#define yk_thread()              ((u32)threadIdx.x)
#define yk_syncwarp(mask)        __syncwarp(mask)
#define yk_shfl(mask, v, l)      __shfl_sync(mask, v, l)
#define yk_shfl_xor(mask, v, l)  __shfl_xor_sync(mask, v, l)
#define yk_ballot(mask, v)       __ballot_sync(mask, v)
#define yk_atomic_add(p, v)      atomicAdd(p, v)
#define YK_ALIGNED16             __align__(16)
#define YK_SHARED_BYTES(name, n) __shared__ __align__(16) u8 name[n]

YK_FN u32 yk_shared_at(const void *p)
{
    return (u32)__cvta_generic_to_shared(p);
}

/* Half of an integer mma on sm_75: rows 0 to 7 or 8 to 15, sixteen columns of A. */
YK_FN void yk_mma_8816(i32 *d, const u32 a, const u32 b)
{
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(d[0]), "+r"(d[1])
        : "r"(a), "r"(b));
}

/* d[4] += A [16][16] * B [16][8], signed bytes. */
YK_FN void yk_mma_s8_k16(i32 *d, const u32 *a, const u32 b)
{
#if YK_SM >= 80
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
#else
    yk_mma_8816(d, a[0], b);
    yk_mma_8816(d + 2, a[1], b);
#endif
}

/* d[4] += A [16][32] * B [32][8], signed bytes. */
YK_FN void yk_mma_s8_k32(i32 *d, const u32 *a, const u32 *b)
{
#if YK_SM >= 80
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    yk_mma_s8_k16(d, a, b[0]);
    yk_mma_s8_k16(d, a + 2, b[1]);
#endif
}

/* Four matrices of 8 x 8 16-bit elements: lane 8 m + i gives the address of row i of matrix m. */
YK_FN void yk_ldmatrix4(u32 *out, const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(yk_shared_at(row))
                 : "memory");
}

#if YK_SM >= 80
YK_FN void yk_cp_async16(void *to, const void *from) /* past L1: what many blocks read stays in L2 */
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(yk_shared_at(to)), "l"(from) : "memory");
}
YK_FN void yk_cp_async4(void *to, const void *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(yk_shared_at(to)), "l"(from) : "memory");
}
YK_FN void yk_cp_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Until at most n of this thread's groups are under way; n a constant. */
#define yk_cp_wait(n) asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory")
#endif

#else /* ------------------------------------------------------------------------------------------------------------ the emulator */

#ifndef YK_EMU
#error "kernels that only CUDA has run on the host in the emulator: YK_EMU"
#endif
#ifndef YK_SM
#define YK_SM 80
#endif

#define yk_thread()              yk_emu_thread()
#define yk_syncwarp(mask)        yk_emu_syncwarp(mask, YK_EMU_HERE)
#define yk_shfl(mask, v, l)      yk_emu_shfl(YK_EMU_IDX, mask, v, l, YK_EMU_HERE)
#define yk_shfl_xor(mask, v, l)  yk_emu_shfl(YK_EMU_XOR, mask, v, l, YK_EMU_HERE)
#define yk_ballot(mask, v)       yk_emu_ballot(mask, v, YK_EMU_HERE)
#define yk_atomic_add(p, v)      yk_emu_atomic_u32(YK_EMU_ADD, p, v)
#define YK_SHARED_BYTES(name, n) u8 *const name = (u8 *)yk_emu_shared(#name, n)

#if YK_SM >= 80
#define yk_mma_s8_k16(d, a, b)  yk_emu_mma(YK_EMU_M16N8K16_S8, d, a, (const u32[1]){b}, d, YK_EMU_HERE)
#define yk_mma_s8_k32(d, a, b)  yk_emu_mma(YK_EMU_M16N8K32_S8, d, a, b, d, YK_EMU_HERE)
#define yk_cp_async16(to, from) yk_emu_cp_async(to, from, 16, 16)
#define yk_cp_async4(to, from)  yk_emu_cp_async(to, from, 4, 4)
#define yk_cp_commit()          yk_emu_cp_commit()
#define yk_cp_wait(n)           yk_emu_cp_wait(n)
#else
YK_FN void yk_mma_s8_k16(i32 *d, const u32 *a, const u32 b)
{
    yk_emu_mma(YK_EMU_M8N8K16_S8, d, a, &b, d, YK_EMU_HERE);
    yk_emu_mma(YK_EMU_M8N8K16_S8, d + 2, a + 1, &b, d + 2, YK_EMU_HERE);
}
YK_FN void yk_mma_s8_k32(i32 *d, const u32 *a, const u32 *b)
{
    yk_mma_s8_k16(d, a, b[0]);
    yk_mma_s8_k16(d, a + 2, b[1]);
}
#endif
#define yk_ldmatrix4(out, row) yk_emu_ldmatrix(4, false, out, row, YK_EMU_HERE)

#endif /* ---------------------------------------------------------------------------------------------------------------- for all */

#if YK_SM < 80
YK_FN void yk_cp_async16(void *to, const void *from)
{
    u32 v[4];
    yk_load4((const u32 *)from, v);
    yk_store4((u32 *)to, v);
}
YK_FN void yk_cp_async4(void *to, const void *from)
{
    *(u32 *)to = *(const u32 *)from;
}
YK_FN void yk_cp_commit(void) {}
#define yk_cp_wait(n) ((void)0)
#endif
