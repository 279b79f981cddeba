/* packed.c - packed weights times activations by AVX-VNNI (256 bits, without AVX-512); float types stay with AVX2: cpu/avx2/packed_tiles.h. */
#include <immintrin.h>
#include <string.h>

#include "cpu/ops.h"
#include "cpu/tile.h"

/* The rest of this file, and nothing else, is compiled for this level; ops.c asks the CPU before it uses it. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

#define YK_PACKED_VNNI 1
#include "cpu/avx2/packed_tiles.h"

static void matmul_packed_q4_0_q8_avxvnni(const yk_matmul_packed *m)
{
    matmul_packed(m, &q4_0);
}
static void matmul_packed_q4_1_q8_avxvnni(const yk_matmul_packed *m)
{
    matmul_packed(m, &q4_1);
}
static void matmul_packed_q5_0_q8_avxvnni(const yk_matmul_packed *m)
{
    matmul_packed(m, &q5_0);
}
static void matmul_packed_q5_1_q8_avxvnni(const yk_matmul_packed *m)
{
    matmul_packed(m, &q5_1);
}
static void matmul_packed_q8_0_q8_avxvnni(const yk_matmul_packed *m)
{
    matmul_packed(m, &q8_0);
}
static void matmul_packed_q2_k_q8_avxvnni(const yk_matmul_packed *m)
{
    matmul_packed(m, &q2_k);
}
static void matmul_packed_q3_k_q8_avxvnni(const yk_matmul_packed *m)
{
    matmul_packed(m, &q3_k);
}
static void matmul_packed_q4_k_q8_avxvnni(const yk_matmul_packed *m)
{
    matmul_packed(m, &q4_k);
}
static void matmul_packed_q5_k_q8_avxvnni(const yk_matmul_packed *m)
{
    matmul_packed(m, &q5_k);
}
static void matmul_packed_q6_k_q8_avxvnni(const yk_matmul_packed *m)
{
    matmul_packed(m, &q6_k);
}
static void matmul_packed_iq4_nl_q8_avxvnni(const yk_matmul_packed *m)
{
    matmul_packed(m, &iq4_nl);
}
static void matmul_packed_iq4_xs_q8_avxvnni(const yk_matmul_packed *m)
{
    matmul_packed(m, &iq4_xs);
}
static void matmul_packed_mxfp4_q8_avxvnni(const yk_matmul_packed *m)
{
    matmul_packed(m, &mxfp4);
}

void yk_ops_fill_avxvnni(yk_ops *ops)
{
    ops->matmul_packed[YK_TYPE_Q4_0] = matmul_packed_q4_0_q8_avxvnni;
    ops->matmul_packed[YK_TYPE_Q4_1] = matmul_packed_q4_1_q8_avxvnni;
    ops->matmul_packed[YK_TYPE_Q5_0] = matmul_packed_q5_0_q8_avxvnni;
    ops->matmul_packed[YK_TYPE_Q5_1] = matmul_packed_q5_1_q8_avxvnni;
    ops->matmul_packed[YK_TYPE_Q8_0] = matmul_packed_q8_0_q8_avxvnni;
    ops->matmul_packed[YK_TYPE_Q2_K] = matmul_packed_q2_k_q8_avxvnni;
    ops->matmul_packed[YK_TYPE_Q3_K] = matmul_packed_q3_k_q8_avxvnni;
    ops->matmul_packed[YK_TYPE_Q4_K] = matmul_packed_q4_k_q8_avxvnni;
    ops->matmul_packed[YK_TYPE_Q5_K] = matmul_packed_q5_k_q8_avxvnni;
    ops->matmul_packed[YK_TYPE_Q6_K] = matmul_packed_q6_k_q8_avxvnni;
    ops->matmul_packed[YK_TYPE_IQ4_NL] = matmul_packed_iq4_nl_q8_avxvnni;
    ops->matmul_packed[YK_TYPE_IQ4_XS] = matmul_packed_iq4_xs_q8_avxvnni;
    ops->matmul_packed[YK_TYPE_MXFP4] = matmul_packed_mxfp4_q8_avxvnni;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
