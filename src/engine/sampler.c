/* The filters of llama.cpp's default chain, on candidates that are sorted only as far as a filter asks for. Sums are taken in
 * double and exp is computed here with plain IEEE operations, so that equal logits and an equal seed give equal tokens on every
 * machine.
 *
 * Order of candidates: higher logit first, lower id first among equals; without any filter that sorts, by id. Candidates of
 * probability zero (-inf, NaN) are left out from the start. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "src/base/half.h"
#include "src/base/mem.h"
#include "src/model/model.h"

enum { MAX_LAST_N = 1 << 20 };

typedef struct candidate {
    double key; /* what a heap orders by, highest first */
    float logit;
    int32_t id;
} candidate;

struct yk_sampler {
    yk_sampler_opts opts;
    uint32_t n_vocab;
    double log_min_p;
    uint64_t rng[4];
    float *logits;   /* [n_vocab], with penalties */
    candidate *cand; /* [n_vocab] */
    double *weight;  /* [n_vocab], exp(logit - highest) of the candidates */
    uint32_t n_cand;
    bool sorted; /* by logit */
    /* the last tokens, oldest at ring[head] when full */
    int32_t *ring; /* [penalty_last_n] */
    uint32_t n_ring, head;
    int32_t *seen; /* [penalty_last_n] different tokens of the ring */
    uint32_t n_seen;
    uint32_t *count;   /* [n_vocab] how often each is in the ring */
    uint32_t *seen_at; /* [n_vocab] index in `seen` where count > 0 */
};

/* ---- generator: xoshiro256** (Blackman and Vigna), state from splitmix64 ---- */

static void seed_rng(yk_sampler *s)
{
    uint64_t x = s->opts.seed;
    for (int i = 0; i < 4; i++) {
        x += 0x9e3779b97f4a7c15u;
        uint64_t z = x;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        s->rng[i] = z ^ (z >> 31);
    }
}

static uint64_t rotl(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

/* Uniform in [0, 1), a multiple of 2^-53. */
static double next_uniform(yk_sampler *s)
{
    uint64_t *r = s->rng;
    const uint64_t value = rotl(r[1] * 5, 7) * 9, t = r[1] << 17;
    r[2] ^= r[0];
    r[3] ^= r[1];
    r[1] ^= r[2];
    r[0] ^= r[3];
    r[2] ^= t;
    r[3] = rotl(r[3], 45);
    return (double)(value >> 11) * 0x1p-53;
}

/* exp(x) for x <= 0 with a relative error of some 1e-16; 0 below -700. Taylor series to degree 13 on |r| <= ln(2)/2. */
static double exp_neg(double x)
{
    if (!(x > -700.0))
        return 0.0;
    const int64_t k = (int64_t)(x * 0x1.71547652b82fep+0 - 0.5);
    const double r = (x - (double)k * 0x1.62e42fee00000p-1) - (double)k * 0x1.a39ef35793c76p-33;
    static const double c[] = {1.0 / 6227020800.0,
                               1.0 / 479001600.0,
                               1.0 / 39916800.0,
                               1.0 / 3628800.0,
                               1.0 / 362880.0,
                               1.0 / 40320.0,
                               1.0 / 5040.0,
                               1.0 / 720.0,
                               1.0 / 120.0,
                               1.0 / 24.0,
                               1.0 / 6.0,
                               0.5,
                               1.0,
                               1.0};
    double y = c[0];
    for (size_t i = 1; i < sizeof c / sizeof *c; i++)
        y = y * r + c[i];
    const uint64_t bits = (uint64_t)(k + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return y * scale;
}

/* ---- heaps of candidates ---- */

static bool before(const candidate *a, const candidate *b)
{
    if (a->key != b->key)
        return a->key > b->key;
    if (a->logit != b->logit)
        return a->logit > b->logit;
    return a->id < b->id;
}

/* Restore the heap below node i. first_on_top: the root comes before all others; else after all others. */
static void sift_down(candidate *h, uint32_t n, uint32_t i, bool first_on_top)
{
    const candidate x = h[i];
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && before(&h[child + 1], &h[child]) == first_on_top)
            child++;
        if (before(&h[child], &x) != first_on_top)
            break;
        h[i] = h[child];
        i = child;
    }
    h[i] = x;
}

static void make_heap(candidate *h, uint32_t n, bool first_on_top)
{
    for (uint32_t i = n / 2; i-- > 0;)
        sift_down(h, n, i, first_on_top);
}

static void swap_cand(candidate *a, candidate *b)
{
    const candidate t = *a;
    *a = *b;
    *b = t;
}

static void reverse(candidate *h, uint32_t n)
{
    for (uint32_t i = 0; i < n / 2; i++)
        swap_cand(&h[i], &h[n - 1 - i]);
}

/* ---- loading and penalties ---- */

static void penalise(yk_sampler *s)
{
    const yk_sampler_opts *o = &s->opts;
    for (uint32_t i = 0; i < s->n_seen; i++) {
        const int32_t t = s->seen[i];
        float *l = &s->logits[t];
        *l = *l <= 0 ? *l * o->repeat_penalty : *l / o->repeat_penalty;
        *l -= (float)s->count[t] * o->frequency_penalty + o->presence_penalty;
    }
}

/* logits -> s->logits: NaN to -inf, penalties; where +inf occurs, only those candidates remain, as equals. *top is the highest.
 */
static yk_status load_logits(yk_sampler *s, const float *logits, float *top, yk_error *err)
{
    bool finite = false;
    for (uint32_t i = 0; i < s->n_vocab; i++) {
        const uint32_t a = yk_f32_bits(logits[i]) & 0x7fffffffu;
        finite |= a < 0x7f800000u;
        s->logits[i] = a > 0x7f800000u ? -INFINITY : logits[i];
    }
    YK_FAIL_IF(!finite, err, YK_ERR_RUNTIME,
               "sampling: none of the %" PRIu32 " logits is finite; the model's weights or the computation are damaged",
               s->n_vocab);
    penalise(s);
    float max = -INFINITY;
    for (uint32_t i = 0; i < s->n_vocab; i++)
        max = s->logits[i] > max ? s->logits[i] : max;
    if (max == INFINITY) {
        for (uint32_t i = 0; i < s->n_vocab; i++)
            s->logits[i] = s->logits[i] == INFINITY ? 0.0f : -INFINITY;
        max = 0.0f;
    }
    *top = max;
    return max > -INFINITY ? YK_OK
                           : yk_fail(err, YK_ERR_RUNTIME, "sampling: penalties left no finite logit; use smaller penalties");
}

static candidate make_cand(const yk_sampler *s, uint32_t id)
{
    return (candidate){(double)s->logits[id], s->logits[id], (int32_t)id};
}

static void load_all(yk_sampler *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_vocab; i++)
        if (s->logits[i] > -INFINITY)
            s->cand[n++] = make_cand(s, i);
    s->n_cand = n;
    s->sorted = false;
}

/* The k best, sorted: a heap of k with the last of them on top takes each better one in its place. */
static void load_top_k(yk_sampler *s, uint32_t k)
{
    candidate *h = s->cand;
    uint32_t n = 0, i = 0;
    for (; i < s->n_vocab && n < k; i++)
        if (s->logits[i] > -INFINITY)
            h[n++] = make_cand(s, i);
    make_heap(h, n, false);
    for (; i < s->n_vocab; i++) {
        if (s->logits[i] > h[0].logit) { /* an equal one has a higher id and comes later */
            h[0] = make_cand(s, i);
            sift_down(h, n, 0, false);
        }
    }
    for (uint32_t m = n; m > 1; m--) {
        swap_cand(&h[0], &h[m - 1]);
        sift_down(h, m - 1, 0, false);
    }
    s->n_cand = n;
    s->sorted = true;
}

/* ---- filters ---- */

static float highest(const yk_sampler *s)
{
    float max = s->cand[0].logit;
    for (uint32_t i = 1; i < s->n_cand && !s->sorted; i++)
        max = s->cand[i].logit > max ? s->cand[i].logit : max;
    return max;
}

/* Sum over the candidates of exp(logit - top). */
static double sum_exp(const yk_sampler *s, double top)
{
    double sum = 0;
    for (uint32_t i = 0; i < s->n_cand; i++)
        sum += exp_neg((double)s->cand[i].logit - top);
    return sum;
}

/* Keep the first candidates in the order of their keys until their probabilities reach p (strict: pass it) and min_keep are
 * there. Lazily sorted: only those that are kept are put in order. */
static void keep_mass(yk_sampler *s, double top, double mass, bool strict)
{
    candidate *h = s->cand;
    const uint32_t n = s->n_cand;
    make_heap(h, n, true);
    double cum = 0;
    uint32_t taken = 0;
    while (taken < n) {
        swap_cand(&h[0], &h[n - 1 - taken]);
        const candidate *c = &h[n - 1 - taken];
        taken++;
        sift_down(h, n - taken, 0, true);
        cum += exp_neg((double)c->logit - top);
        if ((strict ? cum > mass : cum >= mass) && taken >= s->opts.min_keep)
            break;
    }
    reverse(h, n); /* they were put at the end, the first one last */
    s->n_cand = taken;
}

/* Locally typical sampling (Meister et al.): candidates whose information is nearest to the entropy. With l relative to the
 * highest logit, -log p - H = sum(p l) - l: the normalising logarithm cancels. */
static void typical(yk_sampler *s)
{
    const double top = (double)highest(s);
    double sum = 0, mean = 0;
    for (uint32_t i = 0; i < s->n_cand; i++) {
        const double l = (double)s->cand[i].logit - top, e = exp_neg(l);
        sum += e;
        mean += e * l;
    }
    mean /= sum;
    for (uint32_t i = 0; i < s->n_cand; i++)
        s->cand[i].key = -fabs(mean - ((double)s->cand[i].logit - top));
    keep_mass(s, top, (double)s->opts.typical_p * sum, true);
    for (uint32_t i = 0; i < s->n_cand; i++)
        s->cand[i].key = (double)s->cand[i].logit;
    s->sorted = false;
}

static void top_p(yk_sampler *s)
{
    const double top = (double)highest(s), mass = (double)s->opts.top_p * sum_exp(s, top);
    if (!s->sorted) {
        keep_mass(s, top, mass, false);
        s->sorted = true;
        return;
    }
    double cum = 0;
    for (uint32_t i = 0; i < s->n_cand; i++) {
        cum += exp_neg((double)s->cand[i].logit - top);
        if (cum >= mass && i + 1 >= s->opts.min_keep) {
            s->n_cand = i + 1;
            return;
        }
    }
}

/* Candidates at least min_p times as likely as the best; if these are fewer than min_keep, the min_keep best. */
static void min_p(yk_sampler *s)
{
    const double top = (double)highest(s), limit = top + s->log_min_p;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_cand; i++)
        n += (double)s->cand[i].logit >= limit;
    if (n < s->opts.min_keep) {
        if (!s->sorted)
            keep_mass(s, top, 0, false);
        s->sorted = true;
        s->n_cand = s->n_cand < s->opts.min_keep ? s->n_cand : s->opts.min_keep;
        return;
    }
    n = 0;
    for (uint32_t i = 0; i < s->n_cand; i++)
        if ((double)s->cand[i].logit >= limit)
            s->cand[n++] = s->cand[i];
    s->n_cand = n;
}

/* One number of the generator for each call, whatever the candidates. */
static int32_t draw(yk_sampler *s)
{
    const double top = (double)highest(s), t = (double)s->opts.temperature;
    double sum = 0;
    for (uint32_t i = 0; i < s->n_cand; i++) {
        s->weight[i] = exp_neg(((double)s->cand[i].logit - top) / t);
        sum += s->weight[i];
    }
    const double target = next_uniform(s) * sum;
    double cum = 0;
    uint32_t last = 0;
    for (uint32_t i = 0; i < s->n_cand; i++) {
        if (s->weight[i] <= 0)
            continue;
        cum += s->weight[i];
        last = i;
        if (cum > target)
            break;
    }
    return s->cand[last].id;
}

yk_status yk_sampler_sample(yk_sampler *s, const float *logits, int32_t *token, yk_error *err)
{
    *token = -1;
    YK_FAIL_IF(!logits, err, YK_ERR_USAGE, "sampling: no logits; ask for them in the batch entry");
    const yk_sampler_opts *o = &s->opts;
    float top = 0;
    YK_TRY(load_logits(s, logits, &top, err));
    if (o->temperature == 0) {
        int32_t i = 0;
        while (s->logits[i] != top)
            i++;
        *token = i;
        return YK_OK;
    }
    if (o->top_k > 0 && o->top_k < s->n_vocab)
        load_top_k(s, o->top_k);
    else
        load_all(s);
    if (o->typical_p < 1)
        typical(s);
    if (o->top_p < 1)
        top_p(s);
    if (o->min_p > 0)
        min_p(s);
    *token = draw(s);
    return YK_OK;
}

/* ---- tokens of the text ---- */

void yk_sampler_accept(yk_sampler *s, int32_t token)
{
    const uint32_t cap = s->opts.penalty_last_n;
    if (cap == 0 || token < 0 || (uint32_t)token >= s->n_vocab)
        return;
    if (s->n_ring == cap) {
        const int32_t old = s->ring[s->head];
        if (--s->count[old] == 0) {
            const int32_t moved = s->seen[--s->n_seen];
            s->seen[s->seen_at[old]] = moved;
            s->seen_at[moved] = s->seen_at[old];
        }
    } else {
        s->n_ring++;
    }
    s->ring[s->head] = token;
    s->head = s->head + 1 == cap ? 0 : s->head + 1;
    if (s->count[token]++ == 0) {
        s->seen_at[token] = s->n_seen;
        s->seen[s->n_seen++] = token;
    }
}

void yk_sampler_reset(yk_sampler *s)
{
    for (uint32_t i = 0; i < s->n_seen; i++)
        s->count[s->seen[i]] = 0;
    s->n_seen = s->n_ring = s->head = 0;
    seed_rng(s);
}

/* ---- opening ---- */

void yk_sampler_opts_init(yk_sampler_opts *opts)
{
    *opts = (yk_sampler_opts){
        .temperature = 0.8f,
        .top_k = 40,
        .top_p = 0.95f,
        .min_p = 0.05f,
        .typical_p = 1.0f,
        .repeat_penalty = 1.0f,
        .penalty_last_n = 64,
        .min_keep = 1,
    };
}

/* low < value (or <=, closed) and value <= high; NaN is out of every range. */
static yk_status check(const char *name, float value, double low, bool closed, double high, const char *range, yk_error *err)
{
    const double v = (double)value;
    const bool ok = (closed ? v >= low : v > low) && v <= high;
    YK_FAIL_IF(!ok, err, YK_ERR_USAGE, "sampler option %s is %g; it must be in %s", name, v, range);
    return YK_OK;
}

static yk_status check_opts(const yk_sampler_opts *o, yk_error *err)
{
    const double max = 0x1.fffffep127; /* the largest finite float */
    YK_TRY(check("temperature", o->temperature, 0, true, max, "[0, infinity)", err));
    YK_TRY(check("top_p", o->top_p, 0, false, 1, "(0, 1]", err));
    YK_TRY(check("min_p", o->min_p, 0, true, 1, "[0, 1]", err));
    YK_TRY(check("typical_p", o->typical_p, 0, false, 1, "(0, 1]", err));
    YK_TRY(check("repeat_penalty", o->repeat_penalty, 0, false, max, "(0, infinity)", err));
    YK_TRY(check("frequency_penalty", o->frequency_penalty, -max, true, max, "(-infinity, infinity)", err));
    YK_TRY(check("presence_penalty", o->presence_penalty, -max, true, max, "(-infinity, infinity)", err));
    YK_FAIL_IF(o->penalty_last_n > MAX_LAST_N, err, YK_ERR_USAGE,
               "sampler option penalty_last_n is %" PRIu32 "; it must be in [0, %d]", o->penalty_last_n, MAX_LAST_N);
    return YK_OK;
}

yk_status yk_sampler_open(yk_sampler **out, const yk_model *model, const yk_sampler_opts *opts, yk_error *err)
{
    *out = NULL;
    yk_sampler_opts o;
    yk_sampler_opts_init(&o);
    if (opts)
        o = *opts;
    YK_TRY(check_opts(&o, err));
    const uint32_t n = model->hp.n_vocab;
    YK_FAIL_IF(n == 0 || n > INT32_MAX, err, YK_ERR_INPUT, "sampler: the model has a vocabulary of %" PRIu32 " tokens", n);
    /* Penalties that do nothing need no memory of the text. */
    if (o.repeat_penalty == 1 && o.frequency_penalty == 0 && o.presence_penalty == 0)
        o.penalty_last_n = 0;
    yk_sampler *s = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *s);
    if (!s)
        return yk_fail_memory(err, sizeof *s, "sampler");
    s->opts = o;
    s->n_vocab = n;
    s->log_min_p = o.min_p > 0 ? log((double)o.min_p) : 0;
    const size_t n_counts = o.penalty_last_n ? n : 0;
    s->logits = yk_alloc(YK_MEM_RUNTIME, n, sizeof *s->logits);
    s->cand = yk_alloc(YK_MEM_RUNTIME, n, sizeof *s->cand);
    s->weight = yk_alloc(YK_MEM_RUNTIME, n, sizeof *s->weight);
    s->ring = yk_alloc(YK_MEM_RUNTIME, o.penalty_last_n, sizeof *s->ring);
    s->seen = yk_alloc(YK_MEM_RUNTIME, o.penalty_last_n, sizeof *s->seen);
    s->count = yk_alloc(YK_MEM_RUNTIME, n_counts, sizeof *s->count);
    s->seen_at = yk_alloc(YK_MEM_RUNTIME, n_counts, sizeof *s->seen_at);
    if (!s->logits || !s->cand || !s->weight || !s->ring || !s->seen || !s->count || !s->seen_at) {
        yk_sampler_close(&s);
        return yk_fail_memory(
            err, n * (sizeof(float) + sizeof(candidate) + sizeof(double)) + n_counts * 8 + o.penalty_last_n * 8ull, "sampler");
    }
    seed_rng(s);
    *out = s;
    return YK_OK;
}

void yk_sampler_close(yk_sampler **sampler)
{
    yk_sampler *s = *sampler;
    if (!s)
        return;
    yk_free(s->logits);
    yk_free(s->cand);
    yk_free(s->weight);
    yk_free(s->ring);
    yk_free(s->seen);
    yk_free(s->count);
    yk_free(s->seen_at);
    yk_free(s);
    *sampler = NULL;
}
