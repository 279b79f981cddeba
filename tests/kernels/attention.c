/* attention.c - check of attention of one token: grouped heads, windows, sinks, both cache types. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>

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

/* Tokens of one call give the bits they give alone, whatever part of the cache each sees; what none of them sees is not a
 * number. */
static void check_tokens(check *c, const shape *s, uint32_t n_tokens, uint32_t window, rng *r)
{
    data d;
    data_open(&d, s, r);
    set_params(c, "%u tokens, window %u, heads %u head_dim %u up to %u %s%s %s", n_tokens, window, s->n_heads, s->head_dim,
               s->end, s->f16 ? "f16" : "f32", s->sinks ? " sinks" : "", fill_name(s->how));
    const size_t n_q = (size_t)s->n_heads * s->head_dim, stride = n_q + 3;
    float *q = guarded_new(n_tokens * stride * sizeof *q, 4), *out = guarded_new(n_tokens * stride * sizeof *out, 4),
          *alone = guarded_new(n_q * sizeof *alone, 4);
    yk_seen *seen = guarded_new(n_tokens * sizeof *seen, 4);
    fill_f32(r, s->how, q, n_tokens * stride);
    for (uint32_t t = 0; t < n_tokens; t++) {
        seen[t].end = s->end - (n_tokens - 1 - t);
        seen[t].first = window && seen[t].end > window ? seen[t].end - window : 0;
    }
    for (uint32_t p = 0; p < seen[0].first; p++)
        for (uint32_t i = 0; i < s->head_dim; i++) {
            const size_t at = (size_t)(p % BLOCK) * d.a.kv_stride + i;
            put((void *)(uintptr_t)d.k[p / BLOCK], s->f16, at, NAN);
            put((void *)(uintptr_t)d.v[p / BLOCK], s->f16, at, NAN);
        }
    yk_attention a = d.a;
    a.q = q, a.out = out, a.q_stride = a.out_stride = stride, a.n_tokens = n_tokens, a.seen = seen;
    c->ops->attention(&a);
    for (uint32_t t = 0; t < n_tokens; t++) {
        a = d.a;
        a.q = q + t * stride, a.out = alone, a.first = seen[t].first, a.end = seen[t].end;
        c->ops->attention(&a);
        compare_bits(c, "a token alone", out + t * stride, alone, n_q * sizeof *alone);
        for (uint32_t i = 0; i < n_q; i++)
            if (is_nan_bits(alone[i])) {
                fail_check(c, "token %u: element %u is NaN", t, i);
                break;
            }
        for (size_t i = n_q; i < stride; i++)
            if (yk_f32_bits(out[t * stride + i]) != 0xa5a5a5a5u)
                fail_check(c, "token %u: the gap behind its output was written", t);
    }
    guarded_free(q);
    guarded_free(out);
    guarded_free(alone);
    guarded_free(seen);
    data_close(&d);
}

/* The sum of two parts, of which the second has `far` larger scores, against double precision. */
void check_attention_join(check *c, yk_type type)
{
    (void)type;
    static const uint32_t dims[] = {1, 3, 8, 16, 17, 64, 100, 128, 257};
    static const float far[] = {0, 0.25f, -3, 20, -60, 103, -FLT_MAX};
    rng r = {c->seed};
    for (uint32_t k = 0; k < sizeof dims / sizeof *dims * (sizeof far / sizeof *far); k++) {
        const uint32_t dim = dims[k / 7], n_heads = 1 + rng_below(&r, 5), n = n_heads * dim;
        const bool last = rng_below(&r, 2);
        float *out = guarded_new(n * sizeof *out, 4), *v = guarded_new(n * sizeof *v, 4);
        float *state = guarded_new(2 * n_heads * sizeof *state, 4), *s = guarded_new(2 * n_heads * sizeof *s, 4);
        double *want = malloc(2 * (n + 2 * n_heads) * sizeof *want), *size = want + n + 2 * n_heads;
        if (!want) {
            fail_check(c, "out of memory");
            return;
        }
        set_params(c, "heads %u head_dim %u, maxima %g apart%s", n_heads, dim, (double)far[k % 7], last ? ", last" : "");
        fill_f32(&r, k % 3 ? FILL_PLAIN : FILL_OUTLIERS, out, n);
        fill_f32(&r, FILL_PLAIN, v, n);
        for (uint32_t h = 0; h < n_heads; h++) {
            state[2 * h] = 10 * rng_unit(&r), state[2 * h + 1] = 1 + 50 * fabsf(rng_unit(&r));
            s[2 * h] = far[k % 7] > -FLT_MAX ? state[2 * h] + far[k % 7] : -FLT_MAX,
                  s[2 * h + 1] = 1 + 50 * fabsf(rng_unit(&r));
            const double d = (double)s[2 * h] - (double)state[2 * h], a = d > 0 ? exp(-d) : 1, b = d > 0 ? 1 : exp(d);
            const double total = (double)state[2 * h + 1] * a + (double)s[2 * h + 1] * b, by = last ? 1 / total : 1;
            const double more = 1 + (fabs(d) < 104 ? fabs(d) : 0);
            for (uint32_t i = h * dim; i < (h + 1) * dim; i++) {
                want[i] = ((double)out[i] * a + (double)v[i] * b) * by;
                size[i] = ((fabs((double)out[i]) * a + fabs((double)v[i]) * b) * by + 0x1p-126) * more;
            }
            want[n + 2 * h] = d > 0 ? (double)s[2 * h] : (double)state[2 * h], size[n + 2 * h] = 0;
            want[n + 2 * h + 1] = total, size[n + 2 * h + 1] = total * more;
        }
        c->ops->attention_join(&(yk_attention_part){v, s, n_heads, dim, last}, out, state);
        compare_f32(c, yk_tolerance_find("attention_join", ""), out, want, size, n);
        compare_f32(c, yk_tolerance_find("attention_join", ""), state, want + n, size + n, 2 * n_heads);
        guarded_free(out);
        guarded_free(v);
        guarded_free(state);
        guarded_free(s);
        free(want);
    }
}

/* Tokens over parts of the positions, joined, against double precision over all; a token's parts are the same bits alone and beside others, whatever is
 * fetched after them. */
static void check_parts(check *c, const shape *s, uint32_t n_tokens, const uint32_t *cuts, uint32_t n_cuts, rng *r)
{
    data d;
    data_open(&d, s, r);
    set_params(c, "%u parts, the first up to %u, heads %u head_dim %u %u..%u, %u tokens %s%s %s", n_cuts + 1, cuts[0],
               s->n_heads, s->head_dim, s->first, s->end, n_tokens, s->f16 ? "f16" : "f32", s->sinks ? " sinks" : "",
               fill_name(s->how));
    const size_t n_q = (size_t)s->n_heads * s->head_dim, stride = n_q + 5, n_state = 2 * s->n_heads;
    float *q = guarded_new(n_tokens * stride * sizeof *q, 4), *out = guarded_new(n_tokens * n_q * sizeof *out, 4),
          *state = guarded_new(n_tokens * n_state * sizeof *state, 4), *part = guarded_new(n_tokens * stride * sizeof *part, 4),
          *part_state = guarded_new(n_tokens * n_state * sizeof *part_state, 4),
          *alone = guarded_new((n_q + n_state) * sizeof *alone, 4);
    double *room = malloc((s->end + 2 * s->head_dim) * sizeof *room);
    fill_f32(r, FILL_PLAIN, q, n_tokens * stride);
    for (uint32_t k = 0; k <= n_cuts; k++) {
        yk_seen *seen = guarded_new(n_tokens * sizeof *seen, 4);
        for (uint32_t t = 0; t < n_tokens; t++)
            seen[t] = (yk_seen){k ? cuts[k - 1] : s->first, k < n_cuts ? cuts[k] : s->end - (n_tokens - 1 - t)};
        yk_attention a = d.a;
        a.q = q, a.out = part, a.q_stride = a.out_stride = stride, a.n_tokens = n_tokens, a.seen = seen;
        a.state = part_state, a.then = s->end;
        a.sinks = k ? NULL : d.a.sinks;
        c->ops->attention(&a);
        for (uint32_t t = 0; t < n_tokens; t++) {
            yk_attention one = a;
            one.q = q + t * stride, one.out = alone, one.state = alone + n_q, one.n_tokens = 0, one.seen = NULL, one.then = 0;
            one.first = seen[t].first, one.end = seen[t].end;
            c->ops->attention(&one);
            compare_bits(c, "a part of a token alone", part + t * stride, alone, n_q * sizeof *alone);
            compare_bits(c, "its state", part_state + t * n_state, alone + n_q, n_state * sizeof *alone);
            if (k)
                c->ops->attention_join(&(yk_attention_part){alone, alone + n_q, s->n_heads, s->head_dim, k == n_cuts},
                                       out + t * n_q, state + t * n_state);
            else
                memcpy(out + t * n_q, alone, n_q * sizeof *out),
                    memcpy(state + t * n_state, alone + n_q, n_state * sizeof *out);
        }
        guarded_free(seen);
    }
    for (uint32_t t = 0; room && t < n_tokens; t++)
        for (uint32_t h = 0; h < s->n_heads; h++) {
            yk_attention a = d.a;
            a.q = q + t * stride, a.end = s->end - (n_tokens - 1 - t);
            expected_head(&a, h, room + 2 * s->head_dim, room, room + s->head_dim);
            compare_f32(c, yk_tolerance_find("attention", ""), out + t * n_q + (size_t)h * s->head_dim, room,
                        room + s->head_dim, s->head_dim);
        }
    free(room);
    guarded_free(q);
    guarded_free(out);
    guarded_free(state);
    guarded_free(part);
    guarded_free(part_state);
    guarded_free(alone);
    data_close(&d);
}

static void check_all_parts(check *c, rng *r)
{
    static const uint32_t dims[] = {8, 17, 64, 128, 65, 256};
    static const uint32_t cuts[][4] = {{512, 1024, 1536, 1700}, {1, 2, 256, 300}, {16, 40, 512, 545}, {300, 301, 303, 700}};
    for (uint32_t i = 0; i < 24; i++) {
        const uint32_t *k = cuts[i % 4], n_tokens = i % 3 ? 1 : 2 + rng_below(r, 10);
        const shape s = {1 + rng_below(r, 9),
                         dims[i % 6],
                         i % 5 == 2 && k[0] > 100 ? 77 : 0,
                         k[3] + n_tokens - 1,
                         1 + i % 2,
                         i % 2,
                         i % 3 == 0,
                         i % 4 ? FILL_PLAIN : FILL_OUTLIERS};
        check_parts(c, &s, n_tokens, k, 3, r);
    }
}

/* A NaN or infinity in a query, or in a key or value that is seen, shows; positions past the end do not matter. */
static void check_odd_values(check *c, rng *r)
{
    static const uint32_t dims[] = {1, 17, 64};
    for (uint32_t i = 0; i < 3 * 6; i++) {
        const uint32_t dim = dims[i / 6], how = i % 6, pos = how == 5 ? 300 : how == 4 ? 299 : 37;
        const shape s = {3, dim, 0, 300, 1, i % 2, false, FILL_PLAIN};
        data d;
        data_open(&d, &s, r);
        set_params(c, "NaN, kind %u, head_dim %u %s", how, dim, s.f16 ? "f16" : "f32");
        const size_t at = pos % BLOCK * d.a.kv_stride + dim - 1;
        if (how == 0)
            d.q[dim + dim - 1] = NAN; /* of head 1 */
        else if (how == 1)
            put((void *)(uintptr_t)d.k[pos / BLOCK], s.f16, at, NAN);
        else if (how == 5)
            put((void *)(uintptr_t)d.k[pos / BLOCK], s.f16, at, NAN), put((void *)(uintptr_t)d.v[pos / BLOCK], s.f16, at, NAN);
        else
            put((void *)(uintptr_t)d.v[pos / BLOCK], s.f16, at, how == 2 ? INFINITY : NAN);
        c->ops->attention(&d.a);
        for (uint32_t h = 0; h < 3; h++)
            for (uint32_t j = 0; j < dim; j++) {
                const bool last = j == dim - 1, nan = is_nan_bits(d.out[h * dim + j]), odd = nan || isinf(d.out[h * dim + j]);
                const bool want = how == 0 ? h == 1 : how == 1 ? true : how == 5 ? false : last;
                c->n_compared++;
                if ((how == 2 ? odd : nan) != want)
                    fail_check(c, "head %u element %u is %g", h, j, (double)d.out[h * dim + j]);
            }
        data_close(&d);
    }
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
    static const uint32_t token_shapes[][4] = {{1, 1, 1, 0}, {2, 17, 40, 0},   {16, 272, 300, 0},  {16, 530, 530, 200},
                                               {5, 5, 5, 1}, {70, 90, 90, 33}, {9, 1030, 1030, 0}, {3, 2, 19, 0}};
    for (uint32_t i = 0; i < 48; i++) {
        const uint32_t *k = token_shapes[i % 8], dim = dims[i * 5 % (sizeof dims / sizeof *dims)];
        const shape t = {1 + rng_below(&r, 9),
                         dim,
                         0,
                         k[1] > k[0] ? k[1] : k[0],
                         1 + i % 2,
                         i % 2,
                         i % 3 == 0,
                         i % 4 ? FILL_PLAIN : FILL_OUTLIERS};
        check_tokens(c, &t, k[0], k[3], &r);
    }
    check_all_parts(c, &r);
    check_odd_values(c, &r);
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

/* ---- bench: caches as the engine lays them out, 512 MiB, each call another layer and head, so that nothing comes from a
 * cache ---- */

enum { KV_HEADS = 8, POOL_MIB = 512 };

typedef struct arg {
    const yk_ops *ops;
    yk_attention a;
    uint8_t *pool;
    size_t head_bytes, layer_bytes;
    uint32_t n_blocks, n_layers, turn;
    const void *k[1024], *v[1024];
} arg;

/* Block b of layer l: pool[b][l][K, V][head][16][head_dim] */
static void next_turn(arg *a)
{
    const uint32_t head = a->turn % KV_HEADS, layer = a->turn / KV_HEADS % a->n_layers;
    a->turn++;
    for (uint32_t b = 0; b < a->n_blocks; b++) {
        const uint8_t *at = a->pool + (b * a->n_layers + layer) * a->layer_bytes + head * a->head_bytes;
        a->k[b] = at;
        a->v[b] = at + a->layer_bytes / 2;
    }
}

static void call_attention(void *p)
{
    arg *a = p;
    next_turn(a);
    a->ops->attention(&a->a);
}

/* The same bytes, read and added up, fetched ahead into the second cache. */
static void call_read(void *p)
{
    arg *a = p;
    typedef uint64_t words __attribute__((vector_size(64)));
    words sum[4] = {{0}};
    next_turn(a);
    for (uint32_t b = 0; b < 2 * a->n_blocks; b++) {
        const uint8_t *at = (b & 1 ? a->v : a->k)[b / 2],
                      *next = b + 8 < 2 * a->n_blocks ? (b & 1 ? a->v : a->k)[b / 2 + 4] : at;
        for (size_t i = 0; i < a->head_bytes; i += sizeof sum) {
            words w[4];
            memcpy(w, at + i, sizeof w);
            for (size_t j = 0; j < sizeof w; j += 64)
                __builtin_prefetch(next + i + j, 0, 2);
            for (int j = 0; j < 4; j++)
                sum[j] += w[j];
        }
    }
    sum[0] += sum[1] + sum[2] + sum[3];
    memcpy(a->a.scores, sum, sizeof sum[0]);
}

static void bench_shape(const yk_ops *ops, const shape *s, uint32_t n_tokens)
{
    static arg a;
    const size_t elem = s->f16 ? 2 : 4, n_q = (size_t)s->n_heads * s->head_dim;
    char what[64];
    rng r = {1};
    a = (arg){.ops = ops, .head_bytes = BLOCK * s->head_dim * elem, .n_blocks = (s->end + BLOCK - 1) / BLOCK};
    a.layer_bytes = 2 * KV_HEADS * a.head_bytes;
    a.n_layers = (uint32_t)(((size_t)POOL_MIB << 20) / a.layer_bytes / a.n_blocks);
    const size_t bytes = a.n_blocks * a.n_layers * a.layer_bytes;
    a.pool = aligned_alloc(1 << 21, bytes);
    if (a.pool)
        (void)madvise(a.pool, bytes, MADV_HUGEPAGE); /* as the engine's arena */
    float *q = malloc(3 * n_q * n_tokens * sizeof *q + s->n_heads * (size_t)a.n_blocks * BLOCK * sizeof *q);
    if (!a.pool || !q) {
        fprintf(stderr, "check: out of memory\n");
        exit(1);
    }
    for (size_t i = 0; i < bytes / elem; i++) {
        if (i < 65536)
            put(a.pool, s->f16, i, rng_unit(&r));
        else
            memcpy(a.pool + i * elem, a.pool + (i - 65536) * elem, elem);
    }
    fill_f32(&r, FILL_PLAIN, q, n_q * n_tokens);
    a.a = (yk_attention){.q = q,
                         .k_blocks = a.k,
                         .v_blocks = a.v,
                         .kv_stride = s->head_dim,
                         .n_heads = s->n_heads,
                         .head_dim = s->head_dim,
                         .end = s->end,
                         .scale = 1.0f / sqrtf((float)s->head_dim),
                         .kv_f16 = s->f16,
                         .out = q + n_q * n_tokens,
                         .scores = q + 2 * n_q * n_tokens,
                         .n_tokens = n_tokens,
                         .q_stride = n_q,
                         .out_stride = n_q};
    snprintf(what, sizeof what, "%ux%u, %u pos %s, %u tok", s->n_heads, s->head_dim, s->end, s->f16 ? "f16" : "f32", n_tokens);
    const double kv = 2.0 * s->end * s->head_dim * (double)elem;
    bench_run("attention", what, call_attention, &a, kv, 4.0 * s->end * s->head_dim * s->n_heads * n_tokens);
    if (n_tokens == 1)
        bench_run("  plain read", what, call_read, &a, kv, 0);
    free(a.pool);
    free(q);
}

typedef struct join_arg {
    const yk_ops *ops;
    float out[8 * 128], part[8 * 128], state[16];
} join_arg;

static void call_join(void *p)
{
    join_arg *a = p;
    a->ops->attention_join(&(yk_attention_part){a->part, a->state, 8, 128, false}, a->out, a->state);
}

void bench_attention_join(const yk_ops *ops, yk_type type)
{
    (void)type;
    static join_arg a;
    a.ops = ops;
    bench_run("attention_join", "8x128", call_join, &a, 3.0 * sizeof a.out, 3 * 8 * 128);
}

void bench_attention(const yk_ops *ops, yk_type type)
{
    (void)type;
    static const shape shapes[] = {
        {1, 128, 0, 4096, 1, true, false, FILL_PLAIN},  {4, 64, 0, 4096, 1, true, false, FILL_PLAIN},
        {4, 128, 0, 4096, 1, true, false, FILL_PLAIN},  {8, 128, 0, 4096, 1, true, false, FILL_PLAIN},
        {4, 128, 0, 16384, 1, true, false, FILL_PLAIN}, {8, 128, 0, 16384, 1, true, false, FILL_PLAIN},
        {4, 128, 0, 4096, 1, false, false, FILL_PLAIN}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        bench_shape(ops, &shapes[i], 1);
    for (uint32_t heads = 1; heads <= 8; heads *= 2)
        bench_shape(ops, &(shape){heads, 128, 0, 2048, 1, true, false, FILL_PLAIN}, 16);
}
