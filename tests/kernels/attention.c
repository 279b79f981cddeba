/* attention.c - check of attention of one token: grouped heads, windows, sinks, both cache types. */
#include <math.h>
#include <stdlib.h>

#include "tests/kernels/check.h"

enum { BLOCK = 16, MAX_BLOCKS = 300 };

typedef struct shape {
    uint32_t n_heads, head_dim, first, end, n_kv_heads;
    bool f16, sinks;
    fill how;
} shape;

typedef struct data {
    yk_attention a;
    void *pool; /* both caches, blocks in shuffled order; n_kv_heads side by side, the last one is used */
    const void *k[MAX_BLOCKS], *v[MAX_BLOCKS];
    float *q, *out, *scores, *sinks;
} data;

static void put(void *pool, bool f16, size_t at, float x)
{
    if (f16)
        ((uint16_t *)pool)[at] = yk_f32_to_f16(x);
    else
        ((float *)pool)[at] = x;
}

static void data_open(data *d, const shape *s, rng *r)
{
    const uint32_t n_blocks = (s->end + BLOCK - 1) / BLOCK;
    const size_t elem = s->f16 ? 2 : 4, stride = (size_t)s->n_kv_heads * s->head_dim, block = BLOCK * stride;
    const size_t n = s->end - s->first, n_scores = (n + 15) / 16 * 16;
    d->pool = guarded_new(2 * n_blocks * block * elem, 4);
    for (uint32_t b = 0; b < n_blocks; b++) {
        /* Blocks in reverse order; K and V take turns. */
        const size_t at = 2 * (size_t)(n_blocks - 1 - b) * block;
        d->k[b] = (uint8_t *)d->pool + (at + stride - s->head_dim) * elem;
        d->v[b] = (uint8_t *)d->pool + (at + block + stride - s->head_dim) * elem;
    }
    float *x = malloc(block * sizeof *x);
    for (uint32_t b = 0; x && b < 2 * n_blocks; b++) {
        fill_f32(r, s->how, x, block);
        for (size_t i = 0; i < block; i++)
            put(d->pool, s->f16, b * block + i, x[i]);
    }
    free(x);
    d->q = guarded_new(s->n_heads * (size_t)s->head_dim * sizeof(float), 4);
    d->out = guarded_new(s->n_heads * (size_t)s->head_dim * sizeof(float), 4);
    d->scores = guarded_new(s->n_heads * n_scores * sizeof(float), 4);
    d->sinks = guarded_new(s->n_heads * sizeof(float), 4);
    fill_f32(r, FILL_PLAIN, d->q, s->n_heads * (size_t)s->head_dim);
    fill_f32(r, FILL_PLAIN, d->sinks, s->n_heads);
    d->a = (yk_attention){.q = d->q,
                          .k_blocks = d->k,
                          .v_blocks = d->v,
                          .kv_stride = stride,
                          .n_heads = s->n_heads,
                          .head_dim = s->head_dim,
                          .first = s->first,
                          .end = s->end,
                          .scale = 1.0f / sqrtf((float)s->head_dim),
                          .sinks = s->sinks ? d->sinks : NULL,
                          .kv_f16 = s->f16,
                          .scores = d->scores,
                          .out = d->out};
}

static void data_close(data *d)
{
    guarded_free(d->pool);
    guarded_free(d->q);
    guarded_free(d->out);
    guarded_free(d->scores);
    guarded_free(d->sinks);
}

static double kv_at(const yk_attention *a, const void *const *blocks, uint32_t p, uint32_t i)
{
    const size_t at = (size_t)(p % BLOCK) * a->kv_stride + i;
    if (!a->kv_f16)
        return (double)((const float *)blocks[p / BLOCK])[at];
    return (double)yk_f16_to_f32(((const uint16_t *)blocks[p / BLOCK])[at]);
}

/* One head in double: s is scratch [end - first]. */
static void expected_head(const yk_attention *a, uint32_t h, double *s, double *want, double *size)
{
    double max = a->sinks ? (double)a->sinks[h] : -INFINITY, total = 0, most = 0;
    for (uint32_t p = a->first; p < a->end; p++) {
        double dot = 0, terms = 0;
        for (uint32_t i = 0; i < a->head_dim; i++) {
            const double t = (double)a->q[(size_t)h * a->head_dim + i] * kv_at(a, a->k_blocks, p, i);
            dot += t;
            terms += fabs(t);
        }
        s[p - a->first] = dot * (double)a->scale;
        max = s[p - a->first] > max ? s[p - a->first] : max;
        most = terms * (double)a->scale > most ? terms * (double)a->scale : most;
    }
    for (uint32_t p = a->first; p < a->end; p++)
        total += s[p - a->first] = exp(s[p - a->first] - max);
    if (a->sinks)
        total += exp((double)a->sinks[h] - max);
    for (uint32_t i = 0; i < a->head_dim; i++) {
        double sum = 0, terms = 0;
        for (uint32_t p = a->first; p < a->end; p++) {
            const double t = s[p - a->first] / total * kv_at(a, a->v_blocks, p, i);
            sum += t;
            /* A weight below 2^-126 is rounded to a multiple of 2^-149. */
            terms += fabs(t) + 0x1p-126 * fabs(kv_at(a, a->v_blocks, p, i));
        }
        want[i] = sum;
        size[i] = terms * (1 + most) + 0x1p-126;
    }
}

static void check_shape(check *c, const shape *s, rng *r)
{
    data d;
    data_open(&d, s, r);
    set_params(c, "heads %u head_dim %u positions %u..%u of %u kv heads %s%s %s", s->n_heads, s->head_dim, s->first, s->end,
               s->n_kv_heads, s->f16 ? "f16" : "f32", s->sinks ? " sinks" : "", fill_name(s->how));
    c->ops->attention(&d.a);
    double *room = malloc((s->end + 2 * s->head_dim) * sizeof *room);
    for (uint32_t h = 0; room && h < s->n_heads; h++) {
        expected_head(&d.a, h, room + 2 * s->head_dim, room, room + s->head_dim);
        compare_f32(c, yk_tolerance_find("attention", ""), d.out + (size_t)h * s->head_dim, room, room + s->head_dim,
                    s->head_dim);
    }
    if (!room)
        fail_check(c, "out of memory");
    free(room);
    /* A head alone gives the same bits as within its group. */
    yk_attention one = d.a;
    const uint32_t h = s->n_heads - 1;
    float *out = guarded_new(s->head_dim * sizeof *out, 4);
    one.q += (size_t)h * s->head_dim;
    one.sinks = one.sinks ? one.sinks + h : NULL;
    one.n_heads = 1;
    one.out = out;
    c->ops->attention(&one);
    compare_bits(c, "one head alone", out, d.out + (size_t)h * s->head_dim, s->head_dim * sizeof *out);
    guarded_free(out);
    data_close(&d);
}

void check_attention(check *c, yk_type type)
{
    (void)type;
    static const uint32_t dims[] = {1, 8, 15, 16, 17, 32, 64, 65, 80, 128, 256, 320};
    static const uint32_t spans[][2] = {{0, 1}, {0, 2},   {0, 15},  {0, 16},  {0, 17},
                                        {3, 4}, {15, 17}, {31, 49}, {5, 133}, {0, 700}};
    rng r = {c->seed};
    for (size_t k = 0; k < sizeof dims / sizeof *dims; k++) {
        for (size_t i = 0; i < sizeof spans / sizeof *spans; i++) {
            const shape s = {1 + rng_below(&r, 9), dims[k],     spans[i][0],           spans[i][1],
                             1 + rng_below(&r, 3), (k + i) % 2, rng_below(&r, 2) != 0, (fill)((i + k) % FILL_N)};
            if (!s.f16 || s.how != FILL_DENORMAL) /* as halves these are zeros; FILL_ZERO_RUNS has those */
                check_shape(c, &s, &r);
        }
    }
    /* A sink much larger than all scores takes nearly all the weight. */
    shape s = {2, 64, 0, 40, 1, false, true, FILL_PLAIN};
    data d;
    data_open(&d, &s, &r);
    d.sinks[0] = d.sinks[1] = 300.0f;
    set_params(c, "a sink of 300");
    c->ops->attention(&d.a);
    c->n_compared += 128;
    for (int i = 0; i < 128; i++)
        if (!(fabsf(d.out[i]) < 1e-30f))
            fail_check(c, "element %d is %g", i, (double)d.out[i]);
    data_close(&d);
}

typedef struct arg {
    const yk_ops *ops;
    data d;
} arg;

static void call_attention(void *p)
{
    const arg *a = p;
    a->ops->attention(&a->d.a);
}

void bench_attention(const yk_ops *ops, yk_type type)
{
    (void)type;
    static arg a;
    static check c = {.slot = "bench"};
    c.ops = ops;
    running = &c;
    a.ops = ops;
    for (int f16 = 0; f16 < 2; f16++) {
        const shape s = {4, 128, 0, 4096, 1, f16 != 0, false, FILL_PLAIN};
        rng r = {1};
        data_open(&a.d, &s, &r);
        bench_run("attention", f16 ? "4 heads 128, 4096 pos f16" : "4 heads 128, 4096 pos f32", call_attention, &a,
                  4096.0 * 128 * 2 * (f16 ? 2 : 4), 4096.0 * 128 * 4 * 4);
        data_close(&a.d);
    }
}
