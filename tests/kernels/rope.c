/* rope.c - check of rotary positions, both pairings. */
#include <math.h>

#include "tests/kernels/check.h"

enum { MOST = 8 * 256 };

static double wanted[MOST], size_of[MOST];

static void check_one(check *c, rng *r, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot, yk_rope_pairing pairing, fill how)
{
    const uint32_t n = n_heads * head_dim, n_pairs = n_rot / 2;
    float *x = guarded_new(n * sizeof *x, 4), *cs = guarded_new(n_rot * sizeof *cs, 4);
    fill_f32(r, how, x, n);
    for (uint32_t i = 0; i < n_pairs; i++) {
        const double angle = (double)rng_unit(r) * 1000;
        cs[2 * i] = (float)cos(angle);
        cs[2 * i + 1] = (float)sin(angle);
    }
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t d = i % head_dim, h = i - d;
        wanted[i] = (double)x[i]; /* dimensions from n_rot on stay */
        size_of[i] = 0;
        if (d >= n_rot)
            continue;
        const uint32_t pair = pairing == YK_ROPE_ADJACENT ? d / 2 : d % n_pairs;
        const bool first = pairing == YK_ROPE_ADJACENT ? d % 2 == 0 : d < n_pairs;
        const uint32_t i0 = h + (pairing == YK_ROPE_ADJACENT ? 2 * pair : pair);
        const uint32_t i1 = pairing == YK_ROPE_ADJACENT ? i0 + 1 : i0 + n_pairs;
        const double a = (double)x[i0], b = (double)x[i1], co = (double)cs[2 * pair], si = (double)cs[2 * pair + 1];
        wanted[i] = first ? a * co - b * si : a * si + b * co;
        size_of[i] = first ? fabs(a * co) + fabs(b * si) : fabs(a * si) + fabs(b * co);
    }
    set_params(c, "heads %u head_dim %u n_rot %u %s %s", n_heads, head_dim, n_rot,
               pairing == YK_ROPE_ADJACENT ? "adjacent" : "halves", fill_name(how));
    c->ops->rope(x, n_heads, head_dim, n_rot, cs, pairing);
    compare_f32(c, yk_tolerance_find("rope", ""), x, wanted, size_of, n);
    guarded_free(x);
    guarded_free(cs);
}

void check_rope(check *c, yk_type type)
{
    (void)type;
    static const uint32_t dims[][2] = {{8, 8},   {2, 2},     {16, 8},   {64, 64},  {80, 32},
                                       {96, 96}, {128, 128}, {128, 64}, {256, 256}};
    rng r = {c->seed};
    for (size_t k = 0; k < sizeof dims / sizeof *dims; k++)
        for (uint32_t heads = 1; heads <= 8; heads += 1 + heads * 3 / 2)
            for (int how = 0; how < FILL_N; how++) {
                check_one(c, &r, heads, dims[k][0], dims[k][1], YK_ROPE_ADJACENT, (fill)how);
                check_one(c, &r, heads, dims[k][0], dims[k][1], YK_ROPE_HALVES, (fill)how);
            }
}

static float bench_x[32 * 128], bench_cs[128];

static void call_adjacent(void *p)
{
    ((const yk_ops *)p)->rope(bench_x, 32, 128, 128, bench_cs, YK_ROPE_ADJACENT);
}
static void call_halves(void *p)
{
    ((const yk_ops *)p)->rope(bench_x, 32, 128, 128, bench_cs, YK_ROPE_HALVES);
}

void bench_rope(const yk_ops *ops, yk_type type)
{
    (void)type;
    rng r = {1};
    fill_f32(&r, FILL_PLAIN, bench_x, 32 * 128);
    for (int i = 0; i < 64; i++) {
        bench_cs[2 * i] = cosf((float)i);
        bench_cs[2 * i + 1] = sinf((float)i);
    }
    bench_run("rope", "32x128 adjacent", call_adjacent, (void *)(uintptr_t)ops, sizeof bench_x * 2, 32 * 128 * 3);
    bench_run("rope", "32x128 halves", call_halves, (void *)(uintptr_t)ops, sizeof bench_x * 2, 32 * 128 * 3);
}
