/* ref.h - what the plain C kernels share. */
#ifndef YK_CPU_REF_H
#define YK_CPU_REF_H

#include "cpu/ops.h"
#include "src/base/half.h"

/* Compile a function once for each x86-64 level and choose at load time. All copies give the same bits: contraction to FMA
 * is off for the whole project and C does not reorder sums. Sanitizers run before the resolvers can; clang 14 does not know
 * arch= here. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) &&             \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define YK_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define YK_CLONES
#endif

/* gcc 12 takes a cloned static function whose address is stored for a local variable. */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#pragma GCC diagnostic ignored "-Wdangling-pointer"
#endif

/* For helpers of cloned functions: they must become part of each copy. */
#define YK_INLINE static inline __attribute__((always_inline))

/* Before a loop of 16: gcc unrolls it early otherwise, and then cannot make vectors of it. */
#if defined(__GNUC__) && !defined(__clang__)
#define YK_KEEP_LOOP _Pragma("GCC unroll 1")
#else
#define YK_KEEP_LOOP
#endif

/* Partial sums of f32 sums over columns: element i belongs to sum i % 16. */
enum { YK_LANES = 16 };

/* The 16 sums as two vectors, which gcc and clang cut to what the instruction set has. Passed by pointer only. */
typedef float yk_v8 __attribute__((vector_size(32)));

/* acc[0..1] += a * b, 16 elements. */
YK_INLINE void yk_ref_mul_add16(const float *a, const float *b, yk_v8 *acc)
{
    yk_v8 a0, a1, b0, b1;
    memcpy(&a0, a, sizeof a0);
    memcpy(&a1, a + 8, sizeof a1);
    memcpy(&b0, b, sizeof b0);
    memcpy(&b1, b + 8, sizeof b1);
    acc[0] += a0 * b0;
    acc[1] += a1 * b1;
}

/* acc[0..1] += a * b, a the same for 16 elements of b. */
YK_INLINE void yk_ref_scale_add16(float a, const float *b, yk_v8 *acc)
{
    yk_v8 b0, b1;
    memcpy(&b0, b, sizeof b0);
    memcpy(&b1, b + 8, sizeof b1);
    acc[0] += a * b0;
    acc[1] += a * b1;
}

/* The one order in which 16 partial sums become one: halves are added until one is left. */
YK_INLINE float yk_ref_sum16(const float *a)
{
    float s[8];
    for (int i = 0; i < 8; i++)
        s[i] = a[i] + a[i + 8];
    for (int i = 0; i < 4; i++)
        s[i] += s[i + 4];
    return (s[0] + s[2]) + (s[1] + s[3]);
}

/* The last n < 16 elements of a sum of products, then all 16 sums to one. */
YK_INLINE float yk_ref_finish16(const float *a, const float *b, uint32_t n, const yk_v8 *acc)
{
    float s[YK_LANES];
    memcpy(s, acc, sizeof s);
    for (uint32_t i = 0; i < n; i++)
        s[i] += a[i] * b[i];
    return yk_ref_sum16(s);
}

/* Each file of this folder fills its slots. */
void yk_ref_fill_dequant(yk_ops *ops);
void yk_ref_fill_matmul(yk_ops *ops);
void yk_ref_fill_matmul_float(yk_ops *ops);
void yk_ref_fill_packed(yk_ops *ops);
void yk_ref_fill_quantise(yk_ops *ops);
void yk_ref_fill_norm(yk_ops *ops);
void yk_ref_fill_rope(yk_ops *ops);
void yk_ref_fill_glu(yk_ops *ops);
void yk_ref_fill_attention(yk_ops *ops);
void yk_ref_fill_route(yk_ops *ops);

#endif
