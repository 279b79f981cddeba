/* dialect.k.h - the language of the kernels: OpenCL C 1.2, CUDA and C on the host accept the same text.
 *
 * A kernel is a sequence of phases. Code between phases is the same for all work-items of a group ("uniform": it runs in each of them on a
 * device and once on the host), code inside `yk_items(i)` runs for each work-item i < YK_GROUP, and yk_barrier() stands between phases that
 * exchange values. What has to live from one phase to the next is in shared memory, never in a private variable. Barriers stand in uniform
 * control flow only. No kernel waits for another group.
 *
 * Memory comes as base and byte offset, so that one reservation holds many things: YK_IN(x) and YK_OUT(x) declare the pair, YK_CPTR(type, x)
 * and YK_PTR(type, x) make the pointer; it is null when the caller gave no memory.
 *
 * yk_load4 reads four words from a multiple of 16 bytes, yk_load_f32x4 and yk_local_load4 four floats, yk_load_half4 four
 * halves from one of 8.
 *
 * Groups that share a result: each writes its part and calls yk_publish in the same phase; behind a barrier one work-item calls
 * yk_arrive, and the group that arrives last reads all parts by yk_peek4.
 *
 * The order of f32 operations is that of the text: contraction is off (CUDA: -fmad=false), sums run in one fixed order. */
#ifndef YK_DIALECT_K_H
#define YK_DIALECT_K_H

#define YK_GROUP 64u
#define YK_MAX_HEAD 512u    /* largest head_dim */
#define YK_MAX_EXPERTS 1024u
#define YK_MAX_USED 64u

#if defined(__OPENCL_VERSION__) /* ------------------------------------------------------------------------------------- OpenCL */

#pragma OPENCL FP_CONTRACT OFF

typedef uint u32;
typedef int i32;
typedef uchar u8;
typedef char i8;
typedef short i16;
typedef ushort u16;
typedef ulong u64;
typedef float f32;

#define YK_KERNEL(name) __kernel __attribute__((reqd_work_group_size(64, 1, 1))) void name
#define YK_FN static inline __attribute__((always_inline))
#define YK_GLOBAL __global
#define YK_LOCAL __local
#define YK_SHARED(type, name, n) __local type name[n] __attribute__((aligned(16)))
#define YK_IN(p) __global const uchar *p##_base, const ulong p##_at
#define YK_OUT(p) __global uchar *p##_base, const ulong p##_at
#define yk_items(i) for (u32 i = (u32)get_local_id(0), yk_once = 1; yk_once; yk_once = 0)
#define yk_barrier() barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE)
#define yk_group(d) ((u32)get_group_id(d))
#define yk_groups(d) ((u32)get_num_groups(d))
#define yk_bits(x) as_uint(x)
#define yk_float(u) as_float(u)
#define yk_fma(a, b, c) fma(a, b, c)
#define yk_sqrt(x) sqrt(x)
#define yk_abs(x) fabs(x)
#ifdef YK_ROLLED /* a CPU: private arrays are memory, and compilers take long over unrolled work-items */
#define YK_UNROLL
#define YK_UNROLL_4
#define YK_EVEN 1 /* barriers stand outside of branches: PoCL copies all that follows such a branch */
#else
#define YK_UNROLL _Pragma("unroll")
#define YK_UNROLL_4 _Pragma("unroll 4")
#define YK_EVEN 0
#endif

YK_FN f32 yk_load_half(YK_GLOBAL const u16 *p, const u64 i) { return vload_half(i, (YK_GLOBAL const half *)p); }
YK_FN void yk_store_half(YK_GLOBAL u16 *p, const u64 i, const f32 v) { vstore_half_rte(v, i, (YK_GLOBAL half *)p); }
YK_FN f32 yk_round_half(const f32 v)
{
    u16 h;
    vstore_half_rte(v, 0, (half *)&h);
    return vload_half(0, (const half *)&h);
}

YK_FN void yk_load4(YK_GLOBAL const u32 *p, u32 *v)
{
    const uint4 w = *(YK_GLOBAL const uint4 *)p;
    v[0] = w.x;
    v[1] = w.y;
    v[2] = w.z;
    v[3] = w.w;
}

YK_FN void yk_spread4(const float4 w, f32 *v)
{
    v[0] = w.x;
    v[1] = w.y;
    v[2] = w.z;
    v[3] = w.w;
}

YK_FN void yk_load_half4(YK_GLOBAL const u16 *p, f32 *v) { yk_spread4(vload_half4(0, (YK_GLOBAL const half *)p), v); }
YK_FN void yk_load_f32x4(YK_GLOBAL const f32 *p, f32 *v) { yk_spread4(*(YK_GLOBAL const float4 *)p, v); }
YK_FN void yk_local_load4(YK_LOCAL const f32 *p, f32 *v) { yk_spread4(*(YK_LOCAL const float4 *)p, v); }
YK_FN void yk_local_store4(YK_LOCAL f32 *p, const f32 *v) { *(YK_LOCAL float4 *)p = (float4)(v[0], v[1], v[2], v[3]); }
YK_FN void yk_peek4(YK_GLOBAL const f32 *p, f32 *v) { yk_spread4(*(volatile YK_GLOBAL const float4 *)p, v); }
YK_FN void yk_publish(void) { mem_fence(CLK_GLOBAL_MEM_FENCE); }
YK_FN u32 yk_arrive(YK_GLOBAL u32 *n)
{
    mem_fence(CLK_GLOBAL_MEM_FENCE);
    const u32 before = atomic_inc((volatile YK_GLOBAL u32 *)n);
    mem_fence(CLK_GLOBAL_MEM_FENCE);
    return before;
}

YK_FN i32 yk_dp4a(const u32 a, const u32 b, const i32 c)
{
    const char4 x = as_char4(a), y = as_char4(b);
    return c + (i32)x.x * (i32)y.x + (i32)x.y * (i32)y.y + (i32)x.z * (i32)y.z + (i32)x.w * (i32)y.w;
}

#elif defined(__CUDACC__) /* -------------------------------------------------------------------------------------------- CUDA */

#include <cuda_fp16.h>

typedef unsigned int u32;
typedef int i32;
typedef unsigned char u8;
typedef signed char i8;
typedef short i16;
typedef unsigned short u16;
typedef unsigned long long u64;
typedef float f32;

#define YK_KERNEL(name) extern "C" __global__ void __launch_bounds__(YK_THREADS, YK_MIN_GROUPS) name
#define YK_THREADS 64   /* of a group; kernels that only CUDA has may have more */
#define YK_MIN_GROUPS 1 /* that a multiprocessor must hold: bounds the registers; texts set their own */
#define YK_FN static __device__ __forceinline__
#define YK_GLOBAL
#define YK_LOCAL
#define YK_SHARED(type, name, n) __shared__ __align__(16) type name[n]
#define YK_IN(p) const u8 *__restrict__ p##_base, const u64 p##_at
#define YK_OUT(p) u8 *p##_base, const u64 p##_at
#define yk_items(i) for (u32 i = threadIdx.x, yk_once = 1; yk_once; yk_once = 0)
#define yk_barrier() __syncthreads()
#define yk_group(d) ((d) == 0 ? blockIdx.x : (d) == 1 ? blockIdx.y : blockIdx.z)
#define yk_groups(d) ((d) == 0 ? gridDim.x : (d) == 1 ? gridDim.y : gridDim.z)
#define yk_bits(x) __float_as_uint(x)
#define yk_float(u) __uint_as_float(u)
#define yk_fma(a, b, c) fmaf(a, b, c)
#define yk_sqrt(x) sqrtf(x)
#define yk_abs(x) fabsf(x)
#define YK_UNROLL _Pragma("unroll")
#define YK_UNROLL_4 _Pragma("unroll 4")
#define YK_EVEN 0

YK_FN f32 yk_load_half(const u16 *p, const u64 i) { return __half2float(__ushort_as_half(p[i])); }
YK_FN void yk_store_half(u16 *p, const u64 i, const f32 v) { p[i] = __half_as_ushort(__float2half_rn(v)); }
YK_FN f32 yk_round_half(const f32 v) { return __half2float(__float2half_rn(v)); }
YK_FN void yk_load4(const u32 *p, u32 *v)
{
    const uint4 w = *(const uint4 *)p;
    v[0] = w.x;
    v[1] = w.y;
    v[2] = w.z;
    v[3] = w.w;
}
YK_FN void yk_store4(u32 *p, const u32 *v) { *(uint4 *)p = make_uint4(v[0], v[1], v[2], v[3]); }
YK_FN void yk_spread4(const float4 w, f32 *v)
{
    v[0] = w.x;
    v[1] = w.y;
    v[2] = w.z;
    v[3] = w.w;
}
YK_FN void yk_load_half4(const u16 *p, f32 *v)
{
    const uint2 w = *(const uint2 *)p;
    v[0] = __half2float(__ushort_as_half((u16)w.x));
    v[1] = __half2float(__ushort_as_half((u16)(w.x >> 16)));
    v[2] = __half2float(__ushort_as_half((u16)w.y));
    v[3] = __half2float(__ushort_as_half((u16)(w.y >> 16)));
}
YK_FN void yk_load_f32x4(const f32 *p, f32 *v) { yk_spread4(*(const float4 *)p, v); }
YK_FN void yk_local_load4(const f32 *p, f32 *v) { yk_spread4(*(const float4 *)p, v); }
YK_FN void yk_local_store4(f32 *p, const f32 *v) { *(float4 *)p = make_float4(v[0], v[1], v[2], v[3]); }
YK_FN void yk_peek4(const f32 *p, f32 *v) { yk_spread4(__ldcg((const float4 *)p), v); } /* past L1, which is not coherent */
YK_FN void yk_publish(void) { __threadfence(); }
YK_FN u32 yk_arrive(u32 *n)
{
    __threadfence();
    const u32 before = atomicAdd(n, 1u);
    __threadfence();
    return before;
}
YK_FN i32 yk_dp4a(const u32 a, const u32 b, const i32 c) { return __dp4a((i32)a, (i32)b, c); }

#else /* ---------------------------------------------------------------------------------------------------------------- host */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "src/base/half.h"

typedef uint32_t u32;
typedef int32_t i32;
typedef uint8_t u8;
typedef int8_t i8;
typedef int16_t i16;
typedef uint16_t u16;
typedef uint64_t u64;
typedef float f32;

#define YK_KERNEL(name) static void name
#define YK_FN static inline __attribute__((unused))
#define YK_GLOBAL
#define YK_LOCAL
#define YK_IN(p) const u8 *p##_base, const u64 p##_at
#define YK_OUT(p) u8 *p##_base, const u64 p##_at
#define yk_bits(x) yk_f32_bits(x)
#define yk_float(u) yk_bits_f32(u)
#define yk_fma(a, b, c) fmaf(a, b, c)
#define yk_sqrt(x) sqrtf(x)
#define yk_abs(x) fabsf(x)
#define YK_UNROLL
#define YK_UNROLL_4
#define YK_EVEN 0

YK_FN f32 yk_load_half(const u16 *p, const u64 i) { return yk_f16_to_f32(p[i]); }
YK_FN void yk_store_half(u16 *p, const u64 i, const f32 v) { p[i] = yk_f32_to_f16(v); }
YK_FN f32 yk_round_half(const f32 v) { return yk_f16_to_f32(yk_f32_to_f16(v)); }

#ifdef YK_EMU /* each work-item is a thread of the emulator, which looks at what they do */

#include "gpu/cuda/emu/emu.h"

#define YK_SHARED(type, name, n) type *const name = (type *)yk_emu_shared(#name, (n) * sizeof(type))
#define yk_items(i) for (u32 i = yk_emu_thread(), yk_once = 1; yk_once; yk_once = 0)
#define yk_barrier() yk_emu_barrier(YK_EMU_HERE)
#define yk_group(d) yk_emu_group(d)
#define yk_groups(d) yk_emu_groups(d)

YK_FN void yk_load4(const u32 *p, u32 *v) { yk_emu_load(p, 16, v); }
YK_FN void yk_store4(u32 *p, const u32 *v) { yk_emu_store(p, 16, v); }
YK_FN void yk_load_half4(const u16 *p, f32 *v)
{
    u16 h[4];
    yk_emu_load(p, 8, h);
    for (u32 i = 0; i < 4; i++)
        v[i] = yk_f16_to_f32(h[i]);
}
YK_FN void yk_load_f32x4(const f32 *p, f32 *v) { yk_emu_load(p, 16, v); }
YK_FN void yk_local_load4(const f32 *p, f32 *v) { yk_emu_load(p, 16, v); }
YK_FN void yk_local_store4(f32 *p, const f32 *v) { yk_emu_store(p, 16, v); }
YK_FN u32 yk_arrive(u32 *n) { return yk_emu_atomic_u32(YK_EMU_ADD, n, 1); }

#else

/* The group that this thread computes, and how many there are. */
static _Thread_local __attribute__((unused)) u32 yk_host_group[3], yk_host_groups[3];

#define YK_SHARED(type, name, n) type name[n] __attribute__((aligned(16)))
#define yk_items(i) for (u32 i = 0; i < YK_GROUP; i++)
#define yk_barrier() ((void)0)
#define yk_group(d) (yk_host_group[d])
#define yk_groups(d) (yk_host_groups[d])

/* Aligned as on devices, where another address is a fault: sanitizers see it. */
typedef struct yk_words4 {
    u32 w[4];
} __attribute__((aligned(16), may_alias)) yk_words4;
typedef struct yk_halves4 {
    u16 h[4];
} __attribute__((aligned(8), may_alias)) yk_halves4;

YK_FN void yk_load4(const u32 *p, u32 *v)
{
    const yk_words4 four = *(const yk_words4 *)(const void *)p;
    memcpy(v, four.w, 16);
}
YK_FN void yk_load_half4(const u16 *p, f32 *v)
{
    const yk_halves4 four = *(const yk_halves4 *)(const void *)p;
    for (u32 i = 0; i < 4; i++)
        v[i] = yk_f16_to_f32(four.h[i]);
}
YK_FN void yk_load_f32x4(const f32 *p, f32 *v)
{
    const yk_words4 four = *(const yk_words4 *)(const void *)p;
    memcpy(v, four.w, 16);
}
YK_FN void yk_local_load4(const f32 *p, f32 *v) { yk_load_f32x4(p, v); }
YK_FN void yk_local_store4(f32 *p, const f32 *v)
{
    yk_words4 four;
    memcpy(four.w, v, 16);
    *(yk_words4 *)(void *)p = four;
}
YK_FN u32 yk_arrive(u32 *n) { return (*n)++; } /* groups run one after the other */

#endif

YK_FN void yk_peek4(const f32 *p, f32 *v) { yk_load_f32x4(p, v); }
YK_FN void yk_publish(void) {}

YK_FN i32 yk_dp4a(const u32 a, const u32 b, const i32 c)
{
    i32 s = c;
    for (u32 k = 0; k < 32; k += 8)
        s += (i32)(i8)(a >> k) * (i32)(i8)(b >> k);
    return s;
}

#endif /* --------------------------------------------------------------------------------------------------------- for all */

#define YK_PTR(type, p) (p##_base ? (YK_GLOBAL type *)(p##_base + p##_at) : (YK_GLOBAL type *)0)
#define YK_CPTR(type, p) (p##_base ? (YK_GLOBAL const type *)(p##_base + p##_at) : (YK_GLOBAL const type *)0)

YK_FN u32 yk_min(const u32 a, const u32 b) { return a < b ? a : b; }

/* Where the packed FFN parts of a layer (experts, shared expert) are: a row of words for each. Places are bytes / 256 from the weights' base; a part is
 * UNITS equal cut units and, where TAIL_UNIT is not 0, a narrower one that lies elsewhere (docs/kernels/layout.md, "The cut unit"). */
#define YK_PART_WORDS 12u
#define YK_PART_AT 0u        /* first unit */
#define YK_PART_TAIL_AT 1u   /* the narrower unit */
#define YK_PART_UNITS 2u
#define YK_PART_UNIT 3u      /* intermediate units of a cut unit */
#define YK_PART_TAIL_UNIT 4u
#define YK_PART_BYTES 5u     /* of a cut unit */
#define YK_PART_DOWN 6u      /* bytes from a cut unit's begin to its down tiles; then of the narrower one */
#define YK_PART_TAIL_DOWN 7u
#define YK_PART_TILE 8u      /* bytes of a down tile; then of the narrower unit */
#define YK_PART_TAIL_TILE 9u
YK_FN u32 yk_part_cols(YK_GLOBAL const u32 *part) { return part[YK_PART_UNITS] * part[YK_PART_UNIT] + part[YK_PART_TAIL_UNIT]; }

/* s[YK_GROUP]: the sum or maximum of what the work-items have just written, in a fixed order; s may be written again at once. */
YK_FN f32 yk_group_sum(YK_LOCAL f32 *s)
{
    for (u32 h = YK_GROUP / 2; h > 0; h >>= 1) {
        yk_barrier();
        yk_items(i)
        {
            if (i < h)
                s[i] += s[i + h];
        }
    }
    yk_barrier();
    const f32 total = s[0];
    yk_barrier();
    return total;
}

/* NaN is never chosen. */
YK_FN f32 yk_group_max(YK_LOCAL f32 *s)
{
    for (u32 h = YK_GROUP / 2; h > 0; h >>= 1) {
        yk_barrier();
        yk_items(i)
        {
            if (i < h && !(s[i] >= s[i + h]) && s[i + h] == s[i + h])
                s[i] = s[i + h];
        }
    }
    yk_barrier();
    const f32 top = s[0];
    yk_barrier();
    return top;
}

/* e^x: the operations of the CPU's (polynomial of degree 6, Cephes' coefficients, times 2^n in two steps), so that all lanes agree. */
YK_FN f32 yk_exp(const f32 x)
{
    const f32 magic = 12582912.0f; /* 1.5 * 2^23 */
    f32 c = x < -104.0f ? -104.0f : x;
    c = c > 89.0f ? 89.0f : c;
    const f32 t = c * 1.44269504088896341f + magic;
    const f32 n = t - magic;
    const f32 r = (c - n * 0.693359375f) - n * -2.12194440e-4f;
    f32 p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * (r * r) + r) + 1.0f;
    const i32 e = (i32)(yk_bits(t) - yk_bits(magic));
    const i32 e0 = e >> 1, e1 = (i32)((u32)e - (u32)e0);
    return (p * yk_float((u32)(e0 + 127) << 23)) * yk_float(((u32)e1 + 127u) << 23);
}

/* a / b rounded to nearest, from a quotient q0 that is at most three units in the last place off: of those around it, the one with the smallest
 * remainder (exact by fma). a, b and the quotient normal, remainders above 2^-149. */
YK_FN f32 yk_div_fix(const f32 a, const f32 b, const f32 q0)
{
    f32 best = q0, rest = yk_abs(yk_fma(-q0, b, a));
    for (u32 k = 0; k < 7; k++) {
        const f32 q = yk_float(yk_bits(q0) + k - 3u);
        const f32 r = yk_abs(yk_fma(-q, b, a));
        if (r < rest) {
            rest = r;
            best = q;
        }
    }
    return best;
}

/* OpenCL allows 2.5 units in the last place for a division. */
YK_FN f32 yk_div_exact(const f32 a, const f32 b) { return yk_div_fix(a, b, a / b); }

/* Nearest integer, halves away from zero; |v| < 2^31. */
YK_FN i32 yk_round_away(const f32 v)
{
    const i32 t = (i32)v;
    const f32 rest = v - (f32)t; /* exact */
    return t + (rest >= 0.5f ? 1 : 0) - (rest <= -0.5f ? 1 : 0);
}

/* A block of 32 f32 to int8: the bits of the CPU's quantise (docs/kernels/quantise.md). q 4-byte aligned. */
YK_FN void yk_quantise_block(YK_LOCAL const f32 *x, YK_GLOBAL u32 *q, YK_GLOBAL f32 *scale, YK_GLOBAL i16 *sum)
{
    u32 top = 0; /* as bits, so that NaN wins */
    for (u32 i = 0; i < 32; i++) {
        const u32 a = yk_bits(x[i]) & 0x7fffffffu;
        top = a > top ? a : top;
    }
    if (top < 0x0f800000u || top >= 0x7f800000u) { /* below 2^-96, or infinity or NaN among them */
        for (u32 i = 0; i < 8; i++)
            q[i] = 0;
        *scale = top < 0x0f800000u ? 0.0f : yk_float(0x7fc00000u);
        sum[0] = 0;
        sum[1] = 0;
        return;
    }
    const f32 max = yk_float(top), inv = yk_div_exact(127.0f, max);
    i32 s0 = 0, s1 = 0;
    for (u32 i = 0; i < 8; i++) {
        u32 word = 0;
        i32 s = 0;
        for (u32 j = 0; j < 4; j++) {
            const i32 v = yk_round_away(x[4 * i + j] * inv);
            word |= ((u32)v & 255u) << (8 * j);
            s += v;
        }
        q[i] = word;
        s0 += i < 4 ? s : 0;
        s1 += i < 4 ? 0 : s;
    }
    *scale = yk_div_exact(max, 127.0f);
    sum[0] = (i16)s0;
    sum[1] = (i16)s1;
}

/* Stage of 64 blocks of 32 columns in shared memory: 33 apart, so that work-items with a block each meet different banks. */
#define YK_STAGE_COLS 2048u
#define YK_STAGE_SIZE 2112u
YK_FN u32 yk_stage_at(const u32 c) { return c / 32u * 33u + c % 32u; }

/* Block c0/32 + i of row `row` from the stage, if it is one of n_blocks; for each work-item i. */
YK_FN void yk_stage_quantise(YK_LOCAL const f32 *stage, const u32 block, const u32 i, const u64 first, YK_GLOBAL u8 *q,
                             YK_GLOBAL f32 *scale, YK_GLOBAL i16 *sum)
{
    const u64 at = first + block;
    yk_quantise_block(stage + 33u * i, (YK_GLOBAL u32 *)(q + 32u * at), scale + at, sum + 2u * at);
}

#endif
