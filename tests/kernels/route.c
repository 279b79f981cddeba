/* route.c - check of the router: ids exactly, weights within tolerance. */
#include <math.h>

#include "tests/kernels/check.h"

enum { MOST = 512 };

/* Selection by counting how many come before each: no loop of the kernel's kind. */
static void expected_ids(const float *logits, uint32_t n, uint32_t k, uint32_t *ids)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t rank = 0;
        for (uint32_t j = 0; j < n; j++) {
            const bool nan_i = isnan(logits[i]), nan_j = isnan(logits[j]);
            const bool equal = (nan_i && nan_j) || logits[i] == logits[j];
            const bool greater = !nan_j && (nan_i || logits[j] > logits[i]);
            rank += greater || (equal && j < i);
        }
        if (rank < k)
            ids[rank] = i;
    }
}

static void check_one(check *c, const float *logits, uint32_t n, uint32_t k, yk_router kind, bool renorm, bool finite)
{
    uint32_t want_ids[MOST];
    double p[MOST], want[MOST], size[MOST], total = 0, chosen = 0;
    uint32_t *ids = guarded_new(k * sizeof *ids, 4);
    float *weights = guarded_new(k * sizeof *weights, 4);
    c->ops->route(logits, n, k, kind, renorm, ids, weights);
    expected_ids(logits, n, k, want_ids);
    compare_bits(c, "ids", ids, want_ids, k * sizeof *ids);
    for (uint32_t i = 0; i < n; i++)
        total += p[i] = exp((double)logits[i] - (double)logits[want_ids[0]]);
    for (uint32_t j = 0; j < k; j++)
        chosen += p[want_ids[j]];
    for (uint32_t j = 0; j < k; j++) {
        want[j] = p[want_ids[j]] / (kind == YK_ROUTER_TOPK_SOFTMAX || renorm ? chosen : total);
        size[j] = want[j] * (1 + fabs((double)logits[want_ids[j]] - (double)logits[want_ids[0]]));
    }
    if (finite)
        compare_f32(c, yk_tolerance_find("route", ""), weights, want, size, k);
    guarded_free(ids);
    guarded_free(weights);
}

void check_route(check *c, yk_type type)
{
    (void)type;
    static const uint32_t sizes[][2] = {{1, 1},  {2, 1},  {2, 2},  {4, 2},   {8, 2},    {16, 4},
                                        {17, 5}, {60, 4}, {64, 8}, {128, 8}, {512, 32}, {32, 32}};
    rng r = {c->seed};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int how = 0; how < FILL_N + 4; how++) {
            const uint32_t n = sizes[s][0], k = sizes[s][1];
            float *logits = guarded_new(n * sizeof *logits, 4);
            fill_f32(&r, how < FILL_N ? (fill)how : FILL_PLAIN, logits, n);
            /* An outlier of 3000 leaves the others e^-3000: fine for ids, no weights to compare but zeros; keep it below
             * e^-80. */
            for (uint32_t i = 0; how == FILL_OUTLIERS && i < n; i++)
                logits[i] *= 0.02f;
            for (uint32_t i = 0; how >= FILL_N && i < n; i++) {
                const uint32_t pick = rng_below(&r, 4);
                if (how == FILL_N + 3 || pick == 0)
                    logits[i] = how == FILL_N ? NAN : how == FILL_N + 1 ? INFINITY : how == FILL_N + 2 ? -INFINITY : NAN;
                else if (pick == 1)
                    logits[i] = 0.25f; /* equals */
            }
            for (int mode = 0; mode < 4; mode++) {
                set_params(c, "n %u k %u filling %d kind %d renorm %d", n, k, how, mode & 1, mode >> 1);
                check_one(c, logits, n, k, (yk_router)(mode & 1), mode >> 1, how < FILL_N);
            }
            guarded_free(logits);
        }
    }
}

static float bench_logits[128];

static void call_route(void *p)
{
    uint32_t ids[8];
    float weights[8];
    ((const yk_ops *)p)->route(bench_logits, 128, 8, YK_ROUTER_SOFTMAX_TOPK, true, ids, weights);
}

void bench_route(const yk_ops *ops, yk_type type)
{
    (void)type;
    rng r = {1};
    fill_f32(&r, FILL_PLAIN, bench_logits, 128);
    bench_run("route", "128 choose 8", call_route, (void *)(uintptr_t)ops, sizeof bench_logits, 128 * 2);
}
