/* quantise.c - checks of quantise and to_f16. Both are exact: one right answer, bit for bit. */
#include <math.h>

#include "tests/kernels/check.h"

/* From the page of the contract, in double: quotients and products of two f32 rounded twice give the same f32 (53 >= 2 * 24
 * + 2). */
static void expected_block(const float *x, uint32_t n, int8_t *q, float *scale, int16_t *sum)
{
    double max = 0;
    bool odd = false;
    for (uint32_t i = 0; i < n; i++) {
        odd = odd || !isfinite(x[i]);
        max = fabs((double)x[i]) > max ? fabs((double)x[i]) : max;
    }
    memset(q, 0, 32);
    sum[0] = sum[1] = 0;
    *scale = odd ? NAN : 0;
    if (odd || max < 0x1p-96)
        return;
    *scale = (float)(max / 127);
    const float inv = (float)(127 / max);
    for (uint32_t i = 0; i < n; i++) {
        q[i] = (int8_t)lround((double)(float)((double)x[i] * (double)inv)); /* lround: halves away from zero */
        sum[i / 16] = (int16_t)(sum[i / 16] + q[i]);
    }
}

static void check_row(check *c, float *x, uint32_t n, uint32_t extra)
{
    const uint32_t used = (n + 31) / 32, n_blocks = used + extra, rows = 3, row = 1;
    yk_q8 d = {.n_blocks = n_blocks};
    d.q = guarded_new((size_t)rows * n_blocks * 32, 0);
    d.scale = guarded_new((size_t)rows * n_blocks * sizeof(float), 4);
    d.sum = guarded_new((size_t)rows * n_blocks * 2 * sizeof(int16_t), 2);
    c->ops->quantise(x, n, &d, row);
    for (uint32_t b = 0; b < used; b++) {
        int8_t q[32];
        float scale;
        int16_t sum[2];
        const uint32_t from = 32 * b < n ? 32 * b : n, len = n - from < 32 ? n - from : 32;
        expected_block(x + from, len, q, &scale, sum);
        const size_t at = (size_t)row * n_blocks + b;
        compare_bits(c, "q", d.q + 32 * at, q, sizeof q);
        compare_bits(c, "sum", d.sum + 2 * at, sum, sizeof sum);
        if (isnan(scale)) {
            if (!is_nan_bits(d.scale[at]))
                fail_check(c, "block %u: scale %g, not NaN", b, (double)d.scale[at]);
        } else {
            compare_bits(c, "scale", d.scale + at, &scale, sizeof scale);
        }
        for (uint32_t i = 0; i < len && !isnan(scale); i++) {
            const double off = fabs((double)x[from + i] - d.q[32 * at + i] * (double)scale);
            /* The factor 127/max and the product are rounded: of 127 steps, 127 * 2^-23. */
            if (off > 0.50002 * (double)scale + 0x1p-96)
                fail_check(c, "block %u element %u: %g is %g steps away", b, i, (double)x[from + i], off / (double)scale);
        }
    }
    /* The rows before and behind are untouched, and the blocks of this row that n does not reach. */
    for (size_t i = 32 * ((size_t)row * n_blocks + used); i < (size_t)2 * n_blocks * 32; i++)
        if ((uint8_t)d.q[i] != 0xa5) {
            fail_check(c, "a block behind the last one was written");
            break;
        }
    for (size_t i = 0; i < (size_t)n_blocks * 32; i++)
        if ((uint8_t)d.q[i] != 0xa5 || (uint8_t)d.q[(size_t)2 * n_blocks * 32 + i] != 0xa5) {
            fail_check(c, "another row was written");
            break;
        }
    guarded_free(d.q);
    guarded_free(d.scale);
    guarded_free(d.sum);
}

void check_quantise(check *c, yk_type type)
{
    (void)type;
    static const uint32_t sizes[] = {1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 172, 256, 1000};
    rng r = {c->seed};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        for (int how = 0; how < FILL_N; how++) {
            for (int odd = 0; odd < 4; odd++) {
                const uint32_t n = sizes[k];
                float *x = guarded_new(n * sizeof *x, 4);
                fill_f32(&r, (fill)how, x, n);
                if (odd)
                    x[rng_below(&r, n)] = odd == 1 ? NAN : odd == 2 ? INFINITY : -3e38f;
                set_params(c, "n %u %s%s", n, fill_name((fill)how), odd ? " with an odd one" : "");
                check_row(c, x, n, k % 2);
                guarded_free(x);
            }
        }
    }
    /* Halves: x = (k + 1/2) * 2^e with the largest 127 * 2^e, so that inv is a power of two. */
    for (int e = -90; e <= 100; e += 10) {
        float x[32];
        for (int i = 0; i < 32; i++)
            x[i] = ldexpf((float)(i - 16) * 7.0f + (i & 1 ? 0.5f : -0.5f), e);
        x[5] = ldexpf(127.0f, e);
        set_params(c, "halves, exponent %d", e);
        check_row(c, x, 32, 0);
    }
}

/* By the definition: the integer nearest to x in units of the result's last place, ties to even. */
static uint16_t expected_f16(float x)
{
    const uint16_t sign = signbit(x) ? 0x8000 : 0;
    const double a = fabs((double)x);
    int e;
    if (isnan(x))
        return 0x7e00;
    if (a >= 65520)
        return sign | 0x7c00;
    frexp(a, &e);
    const int unit = (e - 11 > -24 ? e - 11 : -24);
    const double n = nearbyint(ldexp(a, -unit)); /* at most 2048; exact steps */
    const double v = ldexp(n, unit);
    if (v < 0x1p-14)
        return (uint16_t)(sign | (uint16_t)ldexp(v, 24));
    frexp(v, &e);
    return (uint16_t)(sign | ((e + 14) << 10) | ((uint16_t)ldexp(v, 11 - e) & 1023));
}

void check_to_f16(check *c, yk_type type)
{
    (void)type;
    static const uint32_t sizes[] = {1, 7, 8, 15, 16, 17, 33, 20000};
    rng r = {c->seed};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        const uint32_t n = sizes[k];
        float *x = guarded_new(n * sizeof *x, 4);
        uint16_t *y = guarded_new(n * sizeof *y, 2);
        for (uint32_t i = 0; i < n; i++) {
            /* Any bits, and exponents around the range of halves, and exact halves and middles between two. */
            uint32_t u = (uint32_t)rng_next(&r);
            if (i % 4)
                u = (u & 0x807fffffu) | (96 + rng_below(&r, 50)) << 23;
            if (i % 4 == 2)
                u &= 0xffffe000u;
            if (i % 4 == 3)
                u = (u & 0xffffe000u) | 0x1000u;
            x[i] = yk_bits_f32(u);
        }
        set_params(c, "n %u", n);
        c->ops->to_f16(x, n, y);
        for (uint32_t i = 0; i < n; i++) {
            const uint16_t want = expected_f16(x[i]);
            c->n_compared++;
            if (isnan(x[i]) ? (y[i] & 0x7c00) != 0x7c00 || !(y[i] & 0x3ff) : y[i] != want)
                fail_check(c, "element %u: %.9g became 0x%04x, not 0x%04x", i, (double)x[i], y[i], want);
        }
        guarded_free(x);
        guarded_free(y);
    }
}

/* ---- bench ---- */

typedef struct arg {
    const yk_ops *ops;
    const float *x;
    yk_q8 q8;
    uint16_t *h;
} arg;

static void call_quantise(void *p)
{
    arg *a = p;
    a->ops->quantise(a->x, 4096, &a->q8, 0);
}

static void call_to_f16(void *p)
{
    arg *a = p;
    a->ops->to_f16(a->x, 4096, a->h);
}

static void bench_both(const yk_ops *ops, bool quantise)
{
    static float x[4096];
    static int8_t q[4096];
    static float scale[128];
    static int16_t sum[256];
    static uint16_t h[4096];
    rng r = {1};
    arg a = {ops, x, {q, scale, sum, 128}, h};
    fill_f32(&r, FILL_PLAIN, x, 4096);
    if (quantise)
        bench_run("quantise", "4096", call_quantise, &a, 4096 * 5, 4096);
    else
        bench_run("to_f16", "4096", call_to_f16, &a, 4096 * 6, 4096);
}

void bench_quantise(const yk_ops *ops, yk_type type)
{
    (void)type;
    bench_both(ops, true);
}

void bench_to_f16(const yk_ops *ops, yk_type type)
{
    (void)type;
    bench_both(ops, false);
}
