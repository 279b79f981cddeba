#include "profiler/fit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SHARED 1.5
#define STALL  3

void yk_samples_add(yk_samples *s, double x, double ns, uint32_t round)
{
    yk_samples_add_pass(s, x, ns, round, YK_COMPANY_UNKNOWN);
}

void yk_samples_add_pass(yk_samples *s, double x, double ns, uint32_t round, yk_company company)
{
    if (s->n == YK_FIT_SAMPLES) {
        uint32_t first = 0, count[2] = {0, 0};
        for (uint32_t i = 0; i < s->n; i++)
            count[s->v[i].round > 0]++;
        while ((s->v[first].round > 0) != (count[1] > count[0]))
            first++;
        memmove(&s->v[first], &s->v[first + 1], (s->n - 1 - first) * sizeof *s->v);
        s->n--;
    }
    s->v[s->n].x = x;
    s->v[s->n].ns = ns > 1 ? ns : 1;
    s->v[s->n].company = company;
    s->v[s->n++].round = round;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Sorted times of size x; of one round, or of all (UINT32_MAX). Returns how many. */
static uint32_t times_of(const yk_samples *s, double x, uint32_t round, double *out)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n; i++)
        if (s->v[i].x == x && (round == UINT32_MAX || s->v[i].round == round))
            out[n++] = s->v[i].ns;
    qsort(out, n, sizeof *out, by_value);
    return n;
}

static double quantile(const double *sorted, uint32_t n, double p)
{
    return n ? sorted[(uint32_t)(p * (n - 1) + 0.5)] : 0;
}

double yk_samples_quantile(const yk_samples *s, double x, double p)
{
    double t[YK_FIT_SAMPLES];
    const uint32_t n = times_of(s, x, UINT32_MAX, t);
    return quantile(t, n, p);
}

double yk_slowdown(double ns, double alone_ns, double busy_ns)
{
    const double rest = alone_ns - (ns - busy_ns); /* of the work, done while disturbed */
    return rest > 0 && busy_ns > rest ? busy_ns / rest : 1;
}

typedef struct group {
    double x, median, shortest, longest; /* of the times that count */
    double spread;                       /* of all */
    uint32_t n;
    bool alone; /* only times of YK_COMPANY_NONE count */
} group;

/* 1.48 median absolute deviations of n sorted times; the same as a standard deviation when they are normally distributed. */
static double deviation_of(const double *sorted, uint32_t n)
{
    double d[YK_FIT_SAMPLES];
    const double median = quantile(sorted, n, 0.5);
    for (uint32_t i = 0; i < n; i++)
        d[i] = fabs(sorted[i] - median);
    qsort(d, n, sizeof *d, by_value);
    return 1.4826 * quantile(d, n, 0.5);
}

/* The times that count of size x, of which t are all, sorted. */
static group group_of(const yk_samples *s, double x, const double *t, uint32_t n)
{
    group g = {.x = x, .n = n, .spread = deviation_of(t, n) / quantile(t, n, 0.5)};
    double alone[YK_FIT_SAMPLES];
    uint32_t n_alone = 0;
    for (uint32_t i = 0; i < s->n; i++)
        if (s->v[i].x == x && s->v[i].company == YK_COMPANY_NONE)
            alone[n_alone++] = s->v[i].ns;
    if (n_alone >= YK_FIT_LEAST) {
        qsort(alone, n_alone, sizeof *alone, by_value);
        g.alone = true;
        g.longest = STALL * quantile(alone, n_alone, 0.1);
        g.median = quantile(alone, n_alone, 0.5);
        return g;
    }
    uint32_t own = n; /* the others shared their processor with something else */
    while (own > 1 && t[own - 1] > SHARED * quantile(t, n, 0.1))
        own--;
    g.median = quantile(t, own, 0.5);
    const double far = 3 * fmax(deviation_of(t, own), 0.002 * g.median);
    g.shortest = g.median - far;
    g.longest = fmin(g.median + far, SHARED * quantile(t, n, 0.1));
    return g;
}

/* Sizes that occur, the largest last. */
static uint32_t group_sizes(const yk_samples *s, group g[YK_FIT_SIZES])
{
    double t[YK_FIT_SAMPLES];
    uint32_t n = 0, largest = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        uint32_t k = 0;
        while (k < n && g[k].x != s->v[i].x)
            k++;
        if (k < n || n == YK_FIT_SIZES)
            continue;
        const uint32_t m = times_of(s, s->v[i].x, UINT32_MAX, t);
        g[n] = group_of(s, s->v[i].x, t, m);
        largest = g[n].x > g[largest].x ? n : largest;
        n++;
    }
    if (n) {
        const group last = g[largest];
        g[largest] = g[n - 1];
        g[n - 1] = last;
    }
    return n;
}

/* Sums of the weighted regression over the samples that are kept. */
typedef struct sums {
    double w, x, t, xx, xt;
    uint32_t n;
} sums;

static bool keep(const yk_samples *s, uint32_t i, const group *g, uint32_t n_groups, double *weight)
{
    for (uint32_t k = 0; k < n_groups; k++)
        if (g[k].x == s->v[i].x) {
            *weight = 1 / (g[k].median * g[k].median);
            return s->v[i].ns <= g[k].longest && s->v[i].ns >= g[k].shortest &&
                   (!g[k].alone || s->v[i].company == YK_COMPANY_NONE);
        }
    return false;
}

static sums add_up(const yk_samples *s, const group *g, uint32_t n_groups)
{
    sums a = {0};
    for (uint32_t i = 0; i < s->n; i++) {
        double w;
        if (!keep(s, i, g, n_groups, &w))
            continue;
        const double x = s->v[i].x, t = s->v[i].ns;
        a.w += w, a.x += w * x, a.t += w * t, a.xx += w * x * x, a.xt += w * x * t;
        a.n++;
    }
    return a;
}

static double drift_of(const yk_samples *s, double x)
{
    double t[YK_FIT_SAMPLES], low = INFINITY, high = 0;
    for (uint32_t round = 0; round < 2; round++) {
        const uint32_t n = times_of(s, x, round, t);
        if (n < YK_FIT_LEAST)
            continue;
        const double best = quantile(t, n, 0.1);
        low = fmin(low, best);
        high = fmax(high, best);
    }
    return high > 0 ? high / low - 1 : 0;
}

void yk_fit_line(yk_samples *s, bool proportional, yk_line *out)
{
    group g[YK_FIT_SIZES];
    const uint32_t n = group_sizes(s, g);
    *out = (yk_line){.n = s->n, .interval = INFINITY};
    if (!n)
        return;
    const sums a = add_up(s, g, n);
    const double det = a.w * a.xx - a.x * a.x;
    bool line = n > 1 && !proportional && det > 1e-9 * a.w * a.xx;
    double beta = line ? (a.w * a.xt - a.x * a.t) / det : a.xt / a.xx, alpha = line ? (a.t - beta * a.x) / a.w : 0;
    if (alpha < 0 || !(beta > 0)) {
        line = false;
        alpha = 0;
        beta = a.xt / a.xx;
    }
    double error = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        double w;
        if (!keep(s, i, g, n, &w))
            continue;
        const double r = s->v[i].ns - alpha - beta * s->v[i].x;
        error += w * r * r;
    }
    const uint32_t free_n = a.n > 2 ? a.n - (line ? 2 : 1) : 1;
    const double variance = error / free_n, of_beta = variance * (line ? a.w / det : 1 / a.xx);
    const group *last = &g[n - 1];
    bool enough = true;
    for (uint32_t k = 0; k < n; k++)
        enough = enough && g[k].n >= YK_FIT_LEAST;
    const double spread = last->spread, best = yk_samples_quantile(s, last->x, 0.1);
    out->kept = a.n;
    out->interval = 1.96 * sqrt(of_beta) / beta;
    out->drift = drift_of(s, last->x);
    out->ns = alpha;
    out->per_s = 1e9 / beta;
    out->best_per_s = last->x * 1e9 / best;
    out->spread = spread;
    out->settled = enough && out->interval <= YK_FIT_INTERVAL && out->drift <= YK_FIT_DRIFT && spread <= YK_FIT_SPREAD;
}
