/* Sampler: each filter against a full sort in double, draws against their distribution, ties, penalties, refusals.
 *
 * Which candidates a chain of filters leaves is seen from outside: with a huge temperature all of them are equally likely, so
 * enough draws show each (and only them). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "src/model/model.h"

enum { MAX_VOCAB = 64, SETS = 200, DRAWS_PER_CANDIDATE = 30 };

static const float flat = 1e30f; /* a temperature that makes candidates equal */

static uint64_t rng_state;
static uint32_t rnd(void)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}
static double rnd_unit(void)
{
    return (double)rnd() / 2147483648.0;
}

static yk_sampler *open_sampler(uint32_t n_vocab, const yk_sampler_opts *opts)
{
    yk_model model = {.hp.n_vocab = n_vocab};
    yk_sampler *s = NULL;
    yk_error err = {0};
    if (yk_sampler_open(&s, &model, opts, &err) != YK_OK)
        fail_msg("open: %s", err.text);
    return s;
}

static yk_sampler_opts plain_opts(void)
{
    yk_sampler_opts o;
    yk_sampler_opts_init(&o);
    o.top_k = 0;
    o.top_p = 1;
    o.min_p = 0;
    o.temperature = 1;
    return o;
}

static int32_t sample(yk_sampler *s, const float *logits)
{
    int32_t t = -1;
    yk_error err = {0};
    if (yk_sampler_sample(s, logits, &t, &err) != YK_OK)
        fail_msg("sample: %s", err.text);
    return t;
}

/* ---- the slow reference ---- */

typedef struct ref_cand {
    int id;
    double logit, p, score;
} ref_cand;

static int by_logit(const void *a, const void *b)
{
    const ref_cand *x = a, *y = b;
    return x->logit != y->logit ? (x->logit < y->logit ? 1 : -1) : x->id - y->id;
}
static int by_score(const void *a, const void *b)
{
    const ref_cand *x = a, *y = b;
    return x->score != y->score ? (x->score > y->score ? 1 : -1) : by_logit(a, b);
}

static void ref_softmax(ref_cand *c, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += exp(c[i].logit - c[0].logit);
    for (uint32_t i = 0; i < n; i++)
        c[i].p = exp(c[i].logit - c[0].logit) / sum;
}

static uint32_t ref_typical(ref_cand *c, uint32_t n, const yk_sampler_opts *o)
{
    ref_softmax(c, n);
    double entropy = 0, cum = 0;
    for (uint32_t i = 0; i < n; i++)
        entropy -= c[i].p > 0 ? c[i].p * log(c[i].p) : 0;
    for (uint32_t i = 0; i < n; i++) /* rounded, so that equal logits are equal here as well */
        c[i].score = round(fabs(-log(c[i].p) - entropy) * 1e9);
    qsort(c, n, sizeof *c, by_score);
    for (uint32_t i = 0; i < n; i++) {
        cum += c[i].p;
        if (cum > (double)o->typical_p && i + 1 >= o->min_keep)
            return i + 1;
    }
    return n;
}

/* Marks in `in` the tokens that remain; returns how many. */
static uint32_t ref_filter(const float *logits, uint32_t n_vocab, const yk_sampler_opts *o, bool *in)
{
    ref_cand c[MAX_VOCAB];
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_vocab; i++)
        if (!isnan(logits[i]) && logits[i] != -INFINITY)
            c[n++] = (ref_cand){.id = (int)i, .logit = (double)logits[i]};
    qsort(c, n, sizeof *c, by_logit);
    if (o->top_k && o->top_k < n)
        n = o->top_k;
    if (o->typical_p < 1)
        n = ref_typical(c, n, o);
    qsort(c, n, sizeof *c, by_logit);
    ref_softmax(c, n);
    if (o->top_p < 1) {
        double cum = 0;
        for (uint32_t i = 0; i < n; i++) {
            cum += c[i].p;
            if (cum >= (double)o->top_p && i + 1 >= o->min_keep)
                n = i + 1;
        }
    }
    if (o->min_p > 0) {
        uint32_t m = 0;
        while (m < n && (c[m].p >= (double)o->min_p * c[0].p || m < o->min_keep))
            m++;
        n = m;
    }
    memset(in, 0, n_vocab * sizeof *in);
    for (uint32_t i = 0; i < n; i++)
        in[c[i].id] = true;
    return n;
}

static uint32_t random_logits(float *logits)
{
    const uint32_t n = rnd() % 8 == 0 ? 1 : 1 + rnd() % MAX_VOCAB;
    const bool ties = rnd() % 3 == 0;
    const double width = 0.5 + 8 * rnd_unit();
    for (uint32_t i = 0; i < n; i++) {
        const double x = width * (rnd_unit() + rnd_unit() - 1);
        logits[i] = (float)(ties ? round(x) : x);
        if (rnd() % 10 == 0)
            logits[i] = rnd() % 2 ? -INFINITY : NAN;
    }
    logits[rnd() % n] = 0.25f;
    return n;
}

static void check_chain(const char *name, bool top_k, bool typical, bool top_p, bool min_p)
{
    for (int set = 0; set < SETS; set++) {
        float logits[MAX_VOCAB];
        bool want[MAX_VOCAB], got[MAX_VOCAB] = {0};
        const uint32_t n_vocab = random_logits(logits);
        yk_sampler_opts o = plain_opts();
        o.temperature = flat;
        o.seed = (uint64_t)set;
        o.min_keep = rnd() % 4 == 0 ? rnd() % 8 : 1;
        o.top_k = top_k ? 1 + rnd() % MAX_VOCAB : 0;
        o.typical_p = typical ? (float)(0.02 + 0.97 * rnd_unit()) : 1;
        o.top_p = top_p ? (float)(0.02 + 0.97 * rnd_unit()) : 1;
        o.min_p = min_p ? (float)(0.001 + 0.9 * rnd_unit()) : 0;
        const uint32_t n = ref_filter(logits, n_vocab, &o, want);
        yk_sampler *s = open_sampler(n_vocab, &o);
        for (uint32_t i = 0; i < n * DRAWS_PER_CANDIDATE; i++)
            got[sample(s, logits)] = true;
        for (uint32_t i = 0; i < n_vocab; i++)
            if (got[i] != want[i])
                fail_msg("%s set %d: token %u of %u (logit %g) %s; k %u typical %g p %g min_p %g keep %u", name, set, i,
                         n_vocab, (double)logits[i], want[i] ? "is missing" : "should be gone", o.top_k, (double)o.typical_p,
                         (double)o.top_p, (double)o.min_p, o.min_keep);
        yk_sampler_close(&s);
        assert_null(s);
    }
}

static void test_filters(void **state)
{
    (void)state;
    rng_state = 1;
    check_chain("no filter", false, false, false, false);
    check_chain("top-k", true, false, false, false);
    check_chain("typical", false, true, false, false);
    check_chain("top-p", false, false, true, false);
    check_chain("min-p", false, false, false, true);
    check_chain("top-k top-p", true, false, true, false);
    check_chain("typical top-p min-p", false, true, true, true);
    check_chain("all", true, true, true, true);
}

/* Vocabularies of real size, where the lazy orders of the filters differ from a full sort: only the outcome may not. */
static void test_large_vocabulary(void **state)
{
    (void)state;
    enum { N = 151936 };
    float *logits = malloc(N * sizeof *logits);
    assert_non_null(logits);
    rng_state = 7;
    for (int i = 0; i < N; i++)
        logits[i] = (float)(-4 + 3 * (rnd_unit() + rnd_unit() + rnd_unit()));
    const int32_t best[5] = {N - 1, 4, 77777, 1, 150000};
    for (int i = 0; i < 5; i++)
        logits[best[i]] = 30.0f - (float)(i / 2) * 0.25f; /* 30 30 29.75 29.75 29.5 */
    yk_sampler_opts o = plain_opts();
    o.temperature = flat;
    for (uint32_t k = 1; k <= 6; k++) {
        for (int use_top_p = 0; use_top_p < 2; use_top_p++) {
            yk_sampler_opts p = o;
            p.top_k = use_top_p ? 0 : k;
            p.top_p = use_top_p ? 1e-9f : 1; /* the mass of the best alone is enough: min_keep decides */
            p.min_keep = k;
            yk_sampler *s = open_sampler(N, &p);
            bool seen[5] = {0};
            uint32_t others = 0;
            for (int d = 0; d < 120; d++) {
                const int32_t t = sample(s, logits);
                int b = 0;
                while (b < 5 && best[b] != t)
                    b++;
                if (b < 5)
                    seen[b] = true;
                else
                    others++;
            }
            const int rank[5] = {1, 0, 3, 2, 4}; /* equal logits: the lower id first */
            for (uint32_t b = 0; b < 5; b++)
                assert_int_equal(seen[b], (uint32_t)rank[b] < k);
            assert_int_equal(others > 0, k > 5);
            yk_sampler_close(&s);
        }
    }
    free(logits);
}

/* ---- draws ---- */

static void check_distribution(const float *logits, uint32_t n_vocab, yk_sampler_opts o, uint64_t seed)
{
    enum { DRAWS = 200000 };
    bool in[MAX_VOCAB];
    double p[MAX_VOCAB], sum = 0, chi2 = 0;
    uint32_t count[MAX_VOCAB] = {0};
    const uint32_t n = ref_filter(logits, n_vocab, &o, in);
    for (uint32_t i = 0; i < n_vocab; i++)
        sum += p[i] = in[i] ? exp((double)logits[i] / (double)o.temperature) : 0;
    o.seed = seed;
    yk_sampler *s = open_sampler(n_vocab, &o);
    for (int d = 0; d < DRAWS; d++)
        count[sample(s, logits)]++;
    for (uint32_t i = 0; i < n_vocab; i++) {
        const double expected = p[i] / sum * DRAWS, diff = (double)count[i] - expected;
        assert_true(in[i] || count[i] == 0);
        chi2 += in[i] ? diff * diff / expected : 0;
    }
    /* Mean n - 1, standard deviation sqrt(2 (n - 1)); 4 of these on the upper side are far beyond one in a thousand. A
     * generator that is too even would be caught below. */
    const double dof = (double)n - 1, dev = sqrt(2 * dof);
    if (!(chi2 < dof + 4 * dev) || !(dof < 10 || chi2 > dof - 3.5 * dev))
        fail_msg("seed %llu: chi-square %g with %g degrees of freedom", (unsigned long long)seed, chi2, dof);
    yk_sampler_close(&s);
}

static void test_distribution(void **state)
{
    (void)state;
    float logits[40];
    for (int i = 0; i < 40; i++)
        logits[i] = (float)((i * 7) % 40) * 0.1f - 2;
    for (uint64_t seed = 0; seed < 4; seed++) {
        yk_sampler_opts o = plain_opts();
        check_distribution(logits, 40, o, seed);
        o.temperature = 0.7f;
        o.top_k = 12;
        check_distribution(logits, 40, o, seed);
        o.top_k = 0;
        o.top_p = 0.8f;
        o.temperature = 1.9f;
        check_distribution(logits, 40, o, seed);
        o.typical_p = 0.6f;
        check_distribution(logits, 40, o, seed);
    }
}

static void test_seeds(void **state)
{
    (void)state;
    float logits[50];
    int32_t first[64], got;
    for (int i = 0; i < 50; i++)
        logits[i] = (float)(i % 5);
    yk_sampler_opts o = plain_opts();
    o.seed = 42;
    yk_sampler *s = open_sampler(50, &o), *t = open_sampler(50, &o);
    for (int i = 0; i < 64; i++) {
        first[i] = sample(s, logits);
        assert_int_equal(sample(t, logits), first[i]);
    }
    /* Values computed from the published xoshiro256** and splitmix64 for seed 42, to hold the generator still. */
    static const int32_t fixed[8] = {4, 19, 34, 48, 49, 39, 38, 44};
    for (int i = 0; i < 8; i++)
        assert_int_equal(first[i], fixed[i]);
    yk_sampler_reset(s);
    for (int i = 0; i < 64; i++)
        assert_int_equal(sample(s, logits), first[i]);
    yk_sampler_close(&t);
    o.seed = 43;
    t = open_sampler(50, &o);
    int same = 0;
    for (int i = 0; i < 64; i++) {
        got = sample(t, logits);
        same += got == first[i];
    }
    assert_true(same < 24);
    yk_sampler_close(&s);
    yk_sampler_close(&t);
}

/* ---- greedy, odd values ---- */

static void test_greedy(void **state)
{
    (void)state;
    yk_sampler_opts o;
    yk_sampler_opts_init(&o);
    o.temperature = 0;
    yk_sampler *s = open_sampler(5, &o);
    assert_int_equal(sample(s, (float[]){1, 3, 2, 3, 3}), 1);
    assert_int_equal(sample(s, (float[]){-5, -6, -4, -4, -7}), 2);
    assert_int_equal(sample(s, (float[]){NAN, -INFINITY, -1e30f, NAN, -2e30f}), 2);
    assert_int_equal(sample(s, (float[]){1, 2, INFINITY, 7, INFINITY}), 2);
    assert_int_equal(sample(s, (float[]){0.0f, -0.0f, 0, 0, 0}), 0);
    yk_sampler_close(&s);
    /* Typical sampling may leave out the best candidate, greedy decoding never does. */
    o.typical_p = 0.1f;
    s = open_sampler(5, &o);
    assert_int_equal(sample(s, (float[]){0, 0, 0.3f, 0, 0}), 2);
    yk_sampler_close(&s);
}

static void test_odd_logits(void **state)
{
    (void)state;
    yk_error err = {0};
    int32_t t = 7;
    yk_sampler_opts o;
    yk_sampler_opts_init(&o);
    o.typical_p = 0.9f;
    for (int greedy = 0; greedy < 2; greedy++) {
        o.temperature = greedy ? 0 : 0.8f;
        yk_sampler *s = open_sampler(4, &o);
        const float bad[3][4] = {
            {NAN, NAN, NAN, NAN}, {-INFINITY, -INFINITY, NAN, -INFINITY}, {INFINITY, INFINITY, NAN, INFINITY}};
        for (int i = 0; i < 3; i++) {
            memset(&err, 0, sizeof err);
            assert_int_equal(yk_sampler_sample(s, bad[i], &t, &err), YK_ERR_RUNTIME);
            assert_int_equal(err.status, YK_ERR_RUNTIME);
            assert_non_null(strstr(err.text, "finite"));
            assert_int_equal(t, -1);
        }
        assert_int_equal(yk_sampler_sample(s, NULL, &t, &err), YK_ERR_USAGE);
        for (int i = 0; i < 50; i++) {
            const int32_t inf = sample(s, (float[]){INFINITY, 3, INFINITY, NAN});
            assert_true(greedy ? inf == 0 : inf == 0 || inf == 2);
            assert_int_equal(sample(s, (float[]){-INFINITY, NAN, NAN, -3e38f}), 3);
            assert_int_equal(sample(s, (float[]){3e38f, -3e38f, -3e38f, 0}), 0);
        }
        yk_sampler_close(&s);
    }
}

static void test_small_temperature(void **state)
{
    (void)state;
    yk_sampler_opts o = plain_opts();
    o.temperature = 1e-40f;
    yk_sampler *s = open_sampler(3, &o);
    for (int i = 0; i < 20; i++)
        assert_int_equal(sample(s, (float[]){1, 1.0000001f, -5}), 1);
    yk_sampler_close(&s);
}

/* ---- penalties ---- */

static void test_penalties(void **state)
{
    (void)state;
    enum { N = 12, LAST = 5 };
    yk_sampler_opts o = plain_opts();
    o.temperature = 0;
    o.repeat_penalty = 1.3f;
    o.frequency_penalty = 0.2f;
    o.presence_penalty = 0.5f;
    o.penalty_last_n = LAST;
    yk_sampler *s = open_sampler(N, &o);
    int32_t text[400];
    rng_state = 3;
    uint32_t differ = 0;
    for (int i = 0; i < 400; i++) {
        float logits[N];
        double want[N];
        int best = 0, plain = 0;
        for (int v = 0; v < N; v++) {
            logits[v] = (float)(4 * rnd_unit() - 2);
            int count = 0;
            for (int j = i - LAST < 0 ? 0 : i - LAST; j < i; j++)
                count += text[j] == v;
            want[v] = (double)logits[v];
            if (count) {
                want[v] = want[v] <= 0 ? want[v] * 1.3 : want[v] / 1.3;
                want[v] -= 0.2 * count + 0.5;
            }
            best = want[v] > want[best] ? v : best;
            plain = logits[v] > logits[plain] ? v : plain;
        }
        differ += best != plain;
        assert_int_equal(sample(s, logits), best);
        text[i] = (int32_t)(rnd() % 3 == 0 ? 2 : rnd() % N);
        yk_sampler_accept(s, text[i]);
        yk_sampler_accept(s, -1); /* no tokens: ignored */
        yk_sampler_accept(s, N);
    }
    assert_true(differ > 50);
    yk_sampler_reset(s);
    assert_int_equal(sample(s, (float[N]){[2] = 0.01f}), 2);
    yk_sampler_close(&s);
}

static void test_penalties_off(void **state)
{
    (void)state;
    yk_sampler_opts o = plain_opts();
    o.temperature = 0;
    o.repeat_penalty = 5;
    o.penalty_last_n = 0;
    yk_sampler *s = open_sampler(3, &o);
    yk_sampler_accept(s, 1);
    assert_int_equal(sample(s, (float[]){1, 2, 0}), 1);
    yk_sampler_close(&s);
}

/* ---- options ---- */

static void check_refused(yk_sampler_opts o, const char *name)
{
    yk_model model = {.hp.n_vocab = 4};
    yk_sampler *s = (yk_sampler *)&model;
    yk_error err = {0};
    if (yk_sampler_open(&s, &model, &o, &err) != YK_ERR_USAGE)
        fail_msg("%s out of range was accepted", name);
    assert_null(s);
    if (!strstr(err.text, name) || !strstr(err.text, "must be in"))
        fail_msg("the message does not name %s and its range: %s", name, err.text);
}

static void test_options(void **state)
{
    (void)state;
    yk_sampler_opts def;
    yk_sampler_opts_init(&def);
    assert_true(def.temperature == 0.8f && def.top_k == 40 && def.top_p == 0.95f && def.min_p == 0.05f && def.typical_p == 1);
    assert_true(def.repeat_penalty == 1 && def.penalty_last_n == 64 && def.min_keep == 1);
#define REFUSED(field, value)                                                                                                  \
    do {                                                                                                                       \
        yk_sampler_opts o = def;                                                                                               \
        o.field = value;                                                                                                       \
        check_refused(o, #field);                                                                                              \
    } while (0)
    REFUSED(temperature, NAN);
    REFUSED(temperature, -0.1f);
    REFUSED(temperature, INFINITY);
    REFUSED(top_p, 0);
    REFUSED(top_p, 1.01f);
    REFUSED(top_p, NAN);
    REFUSED(min_p, -0.01f);
    REFUSED(min_p, 1.5f);
    REFUSED(min_p, NAN);
    REFUSED(typical_p, 0);
    REFUSED(typical_p, 2);
    REFUSED(typical_p, NAN);
    REFUSED(repeat_penalty, 0);
    REFUSED(repeat_penalty, -1);
    REFUSED(repeat_penalty, NAN);
    REFUSED(repeat_penalty, INFINITY);
    REFUSED(frequency_penalty, NAN);
    REFUSED(frequency_penalty, INFINITY);
    REFUSED(presence_penalty, NAN);
    REFUSED(presence_penalty, -INFINITY);
    REFUSED(penalty_last_n, UINT32_MAX);
#undef REFUSED
    yk_sampler *none = NULL;
    yk_sampler_close(&none);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_filters),
        cmocka_unit_test(test_large_vocabulary),
        cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_odd_logits),
        cmocka_unit_test(test_small_temperature),
        cmocka_unit_test(test_penalties),
        cmocka_unit_test(test_penalties_off),
        cmocka_unit_test(test_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
