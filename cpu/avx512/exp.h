/* exp.h - e^x of 16 floats.
 *
 * x = n ln 2 + r, |r| <= ln 2 / 2, r in two fused steps; e^r by a polynomial of degree 6 (the coefficients of Cephes'
 * expf) in fused steps, times 2^n in one rounding. Error at most 1.01 units in the last place (every 7th float against
 * double); 0 below -104, infinity above 88.73, NaN for NaN. Included after the target of the file is set. */
#ifndef YK_CPU_AVX512_EXP_H
#define YK_CPU_AVX512_EXP_H

#include <immintrin.h>

static inline __attribute__((always_inline)) __m512 yk_avx512_exp(__m512 x)
{
    /* The second operand comes through when one is NaN. */
    const __m512 c = _mm512_min_ps(_mm512_set1_ps(89.0f), _mm512_max_ps(_mm512_set1_ps(-104.0f), x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(c, _mm512_set1_ps(1.44269504088896341f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), c);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
    return _mm512_scalef_ps(_mm512_add_ps(p, _mm512_set1_ps(1.0f)), n);
}

#endif
