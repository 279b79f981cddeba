/* norm.c - checks of rms_norm, add and add_scaled. */
#include <math.h>

#include "tests/kernels/check.h"

static const uint32_t sizes[] = {1, 7, 15, 16, 17, 31, 32, 33, 64, 172, 4096, 4099};
enum { N_SIZES = sizeof sizes / sizeof *sizes, MOST = 4099 };

static double wanted[MOST], size_of[MOST];

static void check_norm(check *c, rng *r, uint32_t n, fill how, int parts, bool in_place)
{
    const float eps = rng_below(r, 2) ? 1e-5f : 1e-6f;
    float *x = guarded_new(n * sizeof *x, 4), *w = guarded_new(n * sizeof *w, 4), *b = guarded_new(n * sizeof *b, 4);
    float *y = in_place ? x : guarded_new(n * sizeof *y, 4);
    double sum = 0;
    fill_f32(r, how, x, n);
    fill_f32(r, FILL_PLAIN, w, n);
    fill_f32(r, FILL_OUTLIERS, b, n);
    set_params(c, "n %u %s%s%s%s eps %g", n, fill_name(how), parts & 1 ? " w" : "", parts & 2 ? " b" : "",
               in_place ? " in place" : "", (double)eps);
    for (uint32_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    for (uint32_t i = 0; i < n; i++) {
        const double v = (double)x[i] / sqrt(sum / n + (double)eps) * (parts & 1 ? (double)w[i] : 1);
        wanted[i] = v + (parts & 2 ? (double)b[i] : 0);
        size_of[i] = fabs(v) + (parts & 2 ? fabs((double)b[i]) : 0);
    }
    c->ops->rms_norm(x, parts & 1 ? w : NULL, parts & 2 ? b : NULL, n, eps, y);
    compare_f32(c, yk_tolerance_find("rms_norm", ""), y, wanted, size_of, n);
    guarded_free(x);
    guarded_free(w);
    guarded_free(b);
    if (!in_place)
        guarded_free(y);
}

void check_rms_norm(check *c, yk_type type)
{
    (void)type;
    rng r = {c->seed};
    for (int k = 0; k < N_SIZES; k++)
        for (int how = 0; how < FILL_N; how++)
            for (int parts = 0; parts < 4; parts++)
                check_norm(c, &r, sizes[k], (fill)how, parts, (parts + k) % 2);
}

/* y += a * x, or y += x when a is NULL: exact, f32 operations one by one. */
static void check_sum(check *c, const float *a)
{
    rng r = {c->seed};
    for (int k = 0; k < N_SIZES; k++) {
        for (int how = 0; how < FILL_N; how++) {
            const uint32_t n = sizes[k];
            float *x = guarded_new(n * sizeof *x, 4), *y = guarded_new(n * sizeof *y, 4),
                  *want = guarded_new(n * sizeof *want, 0);
            fill_f32(&r, (fill)how, x, n);
            fill_f32(&r, FILL_PLAIN, y, n);
            for (uint32_t i = 0; i < n; i++) {
                /* In double, products and sums of two f32 are rounded once to f32 by the cast. */
                const float p = a ? (float)((double)*a * (double)x[i]) : x[i];
                want[i] = (float)((double)y[i] + (double)p);
            }
            set_params(c, "n %u %s", n, fill_name((fill)how));
            if (a)
                c->ops->add_scaled(x, *a, n, y);
            else
                c->ops->add(x, n, y);
            compare_bits(c, "y", y, want, n * sizeof *y);
            guarded_free(x);
            guarded_free(y);
            guarded_free(want);
        }
    }
}

void check_add(check *c, yk_type type)
{
    (void)type;
    check_sum(c, NULL);
}

void check_add_scaled(check *c, yk_type type)
{
    (void)type;
    const float factors[] = {0.3141592f, -1.7f, 0.0f, 1.0f};
    for (size_t i = 0; i < sizeof factors / sizeof *factors; i++)
        check_sum(c, &factors[i]);
}

/* ---- bench ---- */

static float in[4096], out[4096], weight[4096];

static void call_norm(void *p)
{
    ((const yk_ops *)p)->rms_norm(in, weight, NULL, 4096, 1e-5f, out);
}
static void call_add(void *p)
{
    ((const yk_ops *)p)->add(in, 4096, out);
}
static void call_add_scaled(void *p)
{
    ((const yk_ops *)p)->add_scaled(in, 0.5f, 4096, out);
}

static void bench_one(const yk_ops *ops, const char *name, bench_fn fn, double bytes, double flops)
{
    rng r = {1};
    fill_f32(&r, FILL_PLAIN, in, 4096);
    fill_f32(&r, FILL_PLAIN, weight, 4096);
    memset(out, 0, sizeof out);
    bench_run(name, "4096", fn, (void *)(uintptr_t)ops, bytes, flops);
}

void bench_rms_norm(const yk_ops *ops, yk_type type)
{
    (void)type;
    bench_one(ops, "rms_norm", call_norm, 4096 * 12, 4096 * 4);
}

void bench_add(const yk_ops *ops, yk_type type)
{
    (void)type;
    bench_one(ops, "add", call_add, 4096 * 12, 4096);
}

void bench_add_scaled(const yk_ops *ops, yk_type type)
{
    (void)type;
    bench_one(ops, "add_scaled", call_add_scaled, 4096 * 12, 4096 * 2);
}
