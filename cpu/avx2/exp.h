/* exp.h - e^x of 8 floats, the bits of cpu/avx512/exp.h.
 *
 * The same steps; only 2^n, which is one instruction there, is two products here: the first is exact, so a result below 2^-126 is
 * rounded once. Included after the target of the file is set. */
#ifndef YK_CPU_AVX2_EXP_H
#define YK_CPU_AVX2_EXP_H

#include <immintrin.h>

static inline __attribute__((always_inline)) __m256 yk_avx2_exp(__m256 x)
{
    /* The second operand comes through when one is NaN. */
    const __m256 c = _mm256_min_ps(_mm256_set1_ps(89.0f), _mm256_max_ps(_mm256_set1_ps(-104.0f), x));
    const __m256 n =
        _mm256_round_ps(_mm256_mul_ps(c, _mm256_set1_ps(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), c);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
    const __m256i e = _mm256_cvtps_epi32(n), bias = _mm256_set1_epi32(127), e0 = _mm256_srai_epi32(e, 1),
                  e1 = _mm256_sub_epi32(e, e0);
    const __m256 f0 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e0, bias), 23)),
                 f1 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e1, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(_mm256_add_ps(p, _mm256_set1_ps(1.0f)), f0), f1);
}

#endif
