/* glu.c - checks of the gated activations, and of the exponential they and softmax are made of. */
#include <math.h>

#include "cpu/ref/exp.h"
#include "tests/kernels/check.h"

enum { MOST = 4096 };

static double wanted[MOST], size_of[MOST];

static double sigmoid(double v)
{
    return 1 / (1 + exp(-v));
}

static double expected(double g, double u, yk_glu kind)
{
    if (kind == YK_GLU_SILU)
        return g * sigmoid(g) * u;
    const double gc = g > 7 ? 7 : g, uc = u > 7 ? 7 : u < -7 ? -7 : u;
    return gc * sigmoid((double)1.702f * gc) * (uc + 1);
}

/* gates of one magnitude, so that the two tolerance rows meet what they are for */
static void check_one(check *c, rng *r, uint32_t n, yk_glu kind, float range, bool in_place)
{
    float *gate = guarded_new(n * sizeof *gate, 4), *up = guarded_new(n * sizeof *up, 4);
    float *y = in_place ? gate : guarded_new(n * sizeof *y, 4);
    fill_f32(r, FILL_OUTLIERS, up, n);
    for (uint32_t i = 0; i < n; i++) {
        gate[i] = rng_unit(r) * range;
        wanted[i] = expected((double)gate[i], (double)up[i], kind);
        /* u + 1 may cancel */
        const double u = (double)up[i] > 7 ? 7 : (double)up[i] < -7 ? -7 : (double)up[i];
        size_of[i] = kind == YK_GLU_SILU ? fabs(wanted[i]) : fabs(wanted[i]) + fabs(expected((double)gate[i], 0, kind) * u);
        /* Below g = -88 (-52 with the factor of the clamped kind) the denominator is infinite and the result, less than
         * 1e-33, is zero. */
        size_of[i] += gate[i] < (kind == YK_GLU_SILU ? -85.0f : -50.0f) ? 1e-27 : 0;
    }
    set_params(c, "n %u kind %d gates up to %g%s", n, (int)kind, (double)range, in_place ? " in place" : "");
    c->ops->glu(gate, up, n, kind, y);
    compare_f32(c, yk_tolerance_find(range > 4 ? "glu-large" : "glu", ""), y, wanted, size_of, n);
    guarded_free(gate);
    guarded_free(up);
    if (!in_place)
        guarded_free(y);
}

static void check_specials(check *c)
{
    const float gate[] = {NAN, INFINITY, -INFINITY, 0.0f, -200.0f, 200.0f, 1.0f, 1.0f};
    const float up[] = {1.0f, 2.0f, 1.0f, 5.0f, 3.0f, 3.0f, NAN, INFINITY};
    float y[8];
    set_params(c, "NaN and infinity");
    c->ops->glu(gate, up, 8, YK_GLU_SILU, y);
    c->n_compared += 8;
    if (!is_nan_bits(y[0]) || y[1] != INFINITY || !is_nan_bits(y[2]) || y[3] != 0.0f || y[4] != 0.0f || y[5] != 600.0f ||
        !is_nan_bits(y[6]) || y[7] != INFINITY)
        fail_check(c, "silu: %g %g %g %g %g %g %g %g", (double)y[0], (double)y[1], (double)y[2], (double)y[3], (double)y[4],
                   (double)y[5], (double)y[6], (double)y[7]);
    c->ops->glu(gate, up, 8, YK_GLU_CLAMPED, y);
    if (!is_nan_bits(y[0]) || is_nan_bits(y[1]) || !is_nan_bits(y[6]) || is_nan_bits(y[7]))
        fail_check(c, "clamped: %g %g %g %g", (double)y[0], (double)y[1], (double)y[6], (double)y[7]);
}

typedef void (*exp_fn)(const float *x, float *y);

static void exp16_ref(const float *x, float *y)
{
    for (int i = 0; i < 16; i++)
        y[i] = yk_ref_exp(x[i]);
}

#ifdef YK_HAVE_AVX2
#include <immintrin.h> /* here: its functions get the target that is set where it is included first */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#include "cpu/avx2/exp.h"
static void exp16_avx2(const float *x, float *y)
{
    _mm256_storeu_ps(y, yk_avx2_exp(_mm256_loadu_ps(x)));
    _mm256_storeu_ps(y + 8, yk_avx2_exp(_mm256_loadu_ps(x + 8)));
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#ifdef YK_HAVE_AVX512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f")
#endif
#include "cpu/avx512/exp.h"
static void exp16_avx512(const float *x, float *y)
{
    _mm512_storeu_ps(y, yk_avx512_exp(_mm512_loadu_ps(x)));
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/* The exponential that the level's glu, attention and route use. */
static exp_fn exp_of(yk_isa isa)
{
#ifdef YK_HAVE_AVX512
    if (isa >= YK_ISA_AVX512)
        return exp16_avx512;
#endif
#ifdef YK_HAVE_AVX2
    if (isa >= YK_ISA_AVX2)
        return exp16_avx2;
#endif
    (void)isa;
    return exp16_ref;
}

/* Every 61st float from -104 to 88.7 and past both ends. */
static void check_exp(check *c, exp_fn fn)
{
    const double allowed = yk_tolerance_find("exp", "")->rel;
    const uint32_t top = yk_f32_bits(110.0f);
    float x[16], got[16];
    set_params(c, "exp");
    for (uint32_t u = 0; u < top; u += 8 * 61) {
        for (uint32_t i = 0; i < 16; i++)
            x[i] = yk_bits_f32((u + i / 2 * 61) | i % 2 << 31);
        fn(x, got);
        for (int i = 0; i < 16; i++) {
            const double want = exp((double)x[i]), limit = allowed * want + 0x1p-149;
            c->n_compared++;
            const bool ok = want > 0x1.fffffep127 ? got[i] == INFINITY || (double)got[i] >= 0x1.fffff0p127
                                                  : fabs((double)got[i] - want) <= limit;
            if (!ok)
                fail_check(c, "e^%.9g: got %.9g, want %.17g", (double)x[i], (double)got[i], want);
        }
    }
    const float special[16] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, -3e38f, 3e38f, -1e9f};
    c->n_compared += 8;
    fn(special, got);
    if (got[0] != 1.0f || got[1] != 1.0f || got[2] != INFINITY || got[3] != 0.0f || !is_nan_bits(got[4]) || got[5] != 0.0f ||
        got[6] != INFINITY || got[7] != 0.0f)
        fail_check(c, "e^x at 0, infinity, NaN or large values");
}

void check_glu(check *c, yk_type type)
{
    (void)type;
    static const uint32_t sizes[] = {1, 7, 8, 15, 16, 17, 33, 172, 4096};
    static const float ranges[] = {1e-6f, 0.5f, 4.0f, 30.0f, 120.0f};
    rng r = {c->seed};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
        for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
            for (int kind = YK_GLU_SILU; kind <= YK_GLU_CLAMPED; kind++)
                check_one(c, &r, sizes[k], (yk_glu)kind, ranges[i], (i + k) % 2);
    check_specials(c);
    check_exp(c, exp_of(c->ops->isa));
}

static float bench_gate[4096], bench_up[4096], bench_y[4096];

static void call_silu(void *p)
{
    ((const yk_ops *)p)->glu(bench_gate, bench_up, 4096, YK_GLU_SILU, bench_y);
}
static void call_clamped(void *p)
{
    ((const yk_ops *)p)->glu(bench_gate, bench_up, 4096, YK_GLU_CLAMPED, bench_y);
}

void bench_glu(const yk_ops *ops, yk_type type)
{
    (void)type;
    rng r = {1};
    fill_f32(&r, FILL_PLAIN, bench_gate, 4096);
    fill_f32(&r, FILL_PLAIN, bench_up, 4096);
    bench_run("glu", "4096 silu", call_silu, (void *)(uintptr_t)ops, 4096 * 12, 4096 * 4);
    bench_run("glu", "4096 clamped", call_clamped, (void *)(uintptr_t)ops, 4096 * 12, 4096 * 7);
}
