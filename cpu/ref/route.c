/* route.c - choice of experts. Contract: docs/kernels/route.md. */
#include "cpu/ref/exp.h"

/* Logit a of expert i comes before logit b of expert j. NaN is the lowest; among equals the lower id comes first. */
YK_INLINE bool before(float a, uint32_t i, float b, uint32_t j)
{
    const bool a_nan = a != a, b_nan = b != b;
    if (a_nan != b_nan)
        return b_nan;
    if (a_nan || a == b)
        return i < j;
    return a > b;
}

/* The k experts that come first, in order: each search finds the first one behind the last found, so no marks are needed. */
static void choose(const float *logits, uint32_t n, uint32_t k, uint32_t *ids)
{
    for (uint32_t j = 0; j < k; j++) {
        uint32_t best = n;
        for (uint32_t i = 0; i < n; i++) {
            if (j && !before(logits[ids[j - 1]], ids[j - 1], logits[i], i))
                continue;
            if (best == n || before(logits[i], i, logits[best], best))
                best = i;
        }
        ids[j] = best;
    }
}

/* Sum of e^(logit - max) over all experts: expert i goes to partial sum i % 16. */
YK_INLINE float sum_exp(const float *logits, uint32_t n, float max)
{
    float acc[YK_LANES] = {0}, e[YK_LANES];
    for (uint32_t i = 0; i < n; i += YK_LANES) {
        const uint32_t m = n - i < YK_LANES ? n - i : YK_LANES;
        for (uint32_t j = 0; j < m; j++)
            e[j] = yk_ref_exp(logits[i + j] - max);
        for (uint32_t j = 0; j < m; j++)
            acc[j] += e[j];
    }
    return yk_ref_sum16(acc);
}

/* Of weights that fall, from the smallest on: one large and many small ones do not lose the small ones. */
YK_INLINE float sum_back(const float *w, uint32_t k)
{
    float s = 0.0f;
    for (uint32_t j = k; j > 0; j--)
        s += w[j - 1];
    return s;
}

/* A NaN logit is chosen last but its weight is NaN: a broken model shows in the result instead of being hidden. */
YK_CLONES static void route_ref(const float *logits, uint32_t n, uint32_t k, yk_router kind, bool renorm, uint32_t *ids,
                                float *weights)
{
    choose(logits, n, k, ids);
    const float max = logits[ids[0]];
    for (uint32_t j = 0; j < k; j++)
        weights[j] = yk_ref_exp(logits[ids[j]] - max);
    const float total = kind == YK_ROUTER_TOPK_SOFTMAX ? sum_back(weights, k) : sum_exp(logits, n, max);
    for (uint32_t j = 0; j < k; j++)
        weights[j] /= total;
    if (!renorm)
        return;
    const float chosen = sum_back(weights, k);
    for (uint32_t j = 0; j < k; j++)
        weights[j] /= chosen;
}

void yk_ref_fill_route(yk_ops *ops)
{
    ops->route = route_ref;
}
