/* rope_kv and attention on one backend (first argument): several sequences with shuffled KV blocks, against double precision
 * and the CPU's ops. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/ops.h"
#include "src/base/half.h"
#include "tests/gpu_rig.h"
#include "tests/tolerance.h"

enum { N_SEQS = 3, MAX_BLOCKS = 320, MAX_TOKENS = 12, DEEP = 3 }; /* DEEP: the token whose position is changed */

static yk_rig rig;
static const yk_ops *ops;
static const uint8_t zeros[4096];
static uint32_t n_pool = 60; /* KV blocks: as many as keep apart those of a case that writes */

typedef struct shape {
    uint32_t n_heads, n_kv, head_dim, n_rot;
    yk_rope_pairing pairing;
    yk_qk_norm norm;
    bool bias, f16;
} shape;

static const shape shapes[] = {
    {4, 2, 64, 64, YK_ROPE_ADJACENT, YK_QK_NORM_NONE, false, true},
    {8, 1, 128, 128, YK_ROPE_HALVES, YK_QK_NORM_HEAD, false, true},
    {6, 3, 80, 40, YK_ROPE_HALVES, YK_QK_NORM_FULL, true, false},
    {2, 2, 34, 20, YK_ROPE_ADJACENT, YK_QK_NORM_FULL, false, true},
    {3, 1, 16, 16, YK_ROPE_HALVES, YK_QK_NORM_HEAD, true, false},
    {5, 5, 31, 20, YK_ROPE_HALVES, YK_QK_NORM_NONE, false, false},
    {36, 2, 64, 64, YK_ROPE_HALVES, YK_QK_NORM_NONE, false, true},
    {6, 1, 512, 64, YK_ROPE_HALVES, YK_QK_NORM_HEAD, false, true},
    {2, 1, 256, 64, YK_ROPE_HALVES, YK_QK_NORM_NONE, true, true},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* A KV pool in which one layer of three lies in the middle of each block, and block tables with no order. */
typedef struct pool {
    uint32_t elem, half, layer, block; /* bytes */
    uint8_t *data;
    uint32_t table[N_SEQS * MAX_BLOCKS];
} pool;

static pool pool_new(const shape *s)
{
    pool p = {.elem = s->f16 ? 2 : 4};
    p.half = s->n_kv * YK_K_KV_BLOCK * s->head_dim * p.elem;
    p.layer = 2 * p.half;
    p.block = 3 * p.layer;
    p.data = malloc((size_t)n_pool * p.block);
    for (size_t i = 0; i < (size_t)n_pool * p.block / p.elem; i++) {
        const float v = yk_rig_float(&rig);
        const uint16_t h = yk_f32_to_f16(v);
        memcpy(p.data + i * p.elem, s->f16 ? (const void *)&h : (const void *)&v, p.elem);
    }
    for (uint32_t i = 0; i < N_SEQS * MAX_BLOCKS; i++)
        p.table[i] = (i * 37 + 11) % n_pool;
    return p;
}

/* Element d of K (which 0) or V (1) of a kv head at a position, in bytes of the pool with the layer's offset. */
static size_t kv_at(const pool *p, const shape *s, uint32_t seq, uint32_t pos, uint32_t which, uint32_t head, uint32_t d)
{
    return (size_t)p->table[seq * MAX_BLOCKS + pos / 16] * p->block + p->layer + which * p->half +
           ((size_t)(head * 16 + pos % 16) * s->head_dim + d) * p->elem;
}

static double kv_value(const uint8_t *data, size_t at, bool f16)
{
    uint16_t h;
    float v;
    memcpy(&h, data + at, 2);
    memcpy(&v, data + at, f16 ? 2 : 4);
    return f16 ? yk_f16_to_f32(h) : v;
}

static yk_k_kv kv_args(const pool *p, const shape *s, yk_gpu_mem mem, yk_gpu_mem table)
{
    mem.offset += p->layer; /* layer 1 of 3 */
    return (yk_k_kv){
        .kv = mem, .table = table, .block_bytes = p->block, .v_bytes = p->half, .table_stride = MAX_BLOCKS, .f16 = s->f16};
}

/* Tokens of one step: positions of a sequence follow each other. */
static const uint32_t seqs[MAX_TOKENS] = {1, 1, 1, 0, 2, 2, 2, 2, 2, 2, 2, 2};
static uint32_t positions[MAX_TOKENS] = {0, 1, 2, 300, 13, 14, 15, 16, 17, 18, 19, 20};

/* One head (vec) of a token as double: bias, norm, rotation. The magnitude that errors scale with goes to *size. */
typedef struct source {
    const float *vec, *bias, *norm; /* whole q, k or v; the last two may be NULL */
    uint32_t heads;
} source;

static void head_truth(const shape *s, const source *src, uint32_t h, const float *cs, double *out, double *size)
{
    const float *vec = src->vec, *bias = src->bias, *norm = src->norm;
    const uint32_t hd = s->head_dim, n = s->norm == YK_QK_NORM_FULL ? src->heads * hd : hd,
                   n0 = s->norm == YK_QK_NORM_FULL ? 0 : h * hd;
    double squares = 0, r = 1;
    for (uint32_t i = 0; i < n; i++)
        squares += pow((double)vec[n0 + i] + (bias ? bias[n0 + i] : 0), 2);
    if (norm)
        r = 1 / sqrt(squares / n + 1e-6f);
    *size = 0;
    for (uint32_t d = 0; d < hd; d++) {
        out[d] = ((double)vec[h * hd + d] + (bias ? bias[h * hd + d] : 0)) * r *
                 (norm ? norm[(s->norm == YK_QK_NORM_FULL ? h * hd : 0) + d] : 1);
        *size = fmax(*size, fabs(out[d]));
    }
    for (uint32_t i = 0; cs && i < s->n_rot / 2; i++) {
        const uint32_t a = s->pairing == YK_ROPE_ADJACENT ? 2 * i : i,
                       b = s->pairing == YK_ROPE_ADJACENT ? 2 * i + 1 : i + s->n_rot / 2;
        const double x = out[a], y = out[b];
        out[a] = x * cs[2 * i] - y * cs[2 * i + 1];
        out[b] = x * cs[2 * i + 1] + y * cs[2 * i];
    }
}

typedef struct rope_data {
    const float *qkv; /* [n][stride] */
    uint32_t stride;
    const float *b, *norm, *cs; /* of q, k and v; of q and k; of `context` positions */
    uint32_t context;
} rope_data;

/* Arguments of the heads of n tokens, but for positions, sequences, KV and the output. */
static yk_k_rope_kv rope_args(const shape *s, uint32_t n, rope_data d, uint32_t q_stride)
{
    const uint32_t n_q = s->n_heads * s->head_dim, n_kv = s->n_kv * s->head_dim;
    yk_k_rope_kv a = {.n = n,
                      .qkv_stride = d.stride,
                      .q_stride = q_stride,
                      .n_heads = s->n_heads,
                      .n_kv_heads = s->n_kv,
                      .head_dim = s->head_dim,
                      .n_rot = s->n_rot,
                      .eps = 1e-6f,
                      .pairing = s->pairing,
                      .full_norm = s->norm == YK_QK_NORM_FULL};
    a.qkv = yk_rig_in(&rig, d.qkv, (uint64_t)n * d.stride * 4);
    if (s->bias) {
        a.q_b = yk_rig_in(&rig, d.b, n_q * 4);
        a.k_b = yk_rig_in(&rig, d.b + n_q, n_kv * 4);
        a.v_b = yk_rig_in(&rig, d.b + n_q + n_kv, n_kv * 4);
    }
    if (s->norm != YK_QK_NORM_NONE) {
        a.q_norm = yk_rig_in(&rig, d.norm, n_q * 4);
        a.k_norm = yk_rig_in(&rig, d.norm + n_q, n_kv * 4);
    }
    a.cs = yk_rig_in(&rig, d.cs, (uint64_t)d.context * s->n_rot * 4);
    return a;
}

static void rope_case(const shape *s)
{
    enum { CONTEXT = 320 };
    const uint32_t n = MAX_TOKENS, hd = s->head_dim, n_q = s->n_heads * hd, n_kv = s->n_kv * hd, stride = n_q + 2 * n_kv + 3;
    float *qkv = malloc((size_t)n * stride * 4), *b = malloc((size_t)(n_q + 2 * n_kv) * 4),
          *norm = malloc((size_t)(n_q + n_kv) * 4);
    float *cs = malloc((size_t)CONTEXT * s->n_rot * 4);
    double *truth = malloc(hd * sizeof *truth), size;
    yk_rig_floats(&rig, qkv, (size_t)n * stride);
    yk_rig_floats(&rig, b, n_q + 2 * n_kv);
    yk_rig_floats(&rig, norm, n_q + n_kv);
    for (uint32_t i = 0; i < CONTEXT * s->n_rot / 2; i++) {
        const double angle = i / (s->n_rot / 2) * pow(10000, -2.0 * (i % (s->n_rot / 2)) / s->n_rot);
        cs[2 * i] = (float)cos(angle);
        cs[2 * i + 1] = (float)sin(angle);
    }
    pool p = pool_new(s);
    yk_rig_case(&rig, "rope_kv heads=%u/%u head_dim=%u norm=%d", s->n_heads, s->n_kv, hd, s->norm);
    yk_k_rope_kv a = rope_args(s, n, (rope_data){qkv, stride, b, norm, cs, CONTEXT}, n_q + 1);
    a.pos = yk_rig_in(&rig, positions, sizeof positions);
    a.seq = yk_rig_in(&rig, seqs, sizeof seqs);
    a.q_out = yk_rig_out(&rig, NULL, (uint64_t)n * a.q_stride * 4);
    const yk_gpu_mem kv = yk_rig_out(&rig, p.data, (uint64_t)n_pool * p.block);
    a.kv = kv_args(&p, s, kv, yk_rig_in(&rig, p.table, sizeof p.table));
    yk_k_call c;
    yk_k_call_rope_kv(&c, yk_rig_kernel(&rig, "rope_kv"), &a);
    yk_rig_run(&rig, &c, 1);

    const uint8_t *got_kv = yk_rig_got(&rig, kv);
    const double rel = yk_tolerance_find("rms_norm", "")->rel + yk_tolerance_find("rope", "")->rel;
    for (uint32_t t = 0; t < n; t++) {
        const float *row = qkv + (size_t)t * stride, *angle = cs + (size_t)positions[t] * s->n_rot;
        for (uint32_t h = 0; h < s->n_heads; h++) {
            head_truth(s, &(source){row, s->bias ? b : NULL, s->norm ? norm : NULL, s->n_heads}, h, angle, truth, &size);
            for (uint32_t d = 0; d < hd; d++)
                yk_rig_near(&rig, "q", h * hd + d, ((const float *)yk_rig_got(&rig, a.q_out))[t * a.q_stride + h * hd + d],
                            truth[d], 2 * rel * size);
        }
        for (uint32_t which = 0; which < 2; which++) {
            for (uint32_t h = 0; h < s->n_kv; h++) {
                const float *vec = row + n_q + which * n_kv, *bias = s->bias ? b + n_q + which * n_kv : NULL;
                const shape plain = {.head_dim = hd};
                head_truth(which ? &plain : s, &(source){vec, bias, which || !s->norm ? NULL : norm + n_q, s->n_kv}, h,
                           which ? NULL : angle, truth, &size);
                for (uint32_t d = 0; d < hd; d++) {
                    const size_t at = kv_at(&p, s, seqs[t], positions[t], which, h, d);
                    const double half = s->f16 ? fabs(truth[d]) * 0x1p-11 + 0x1p-25 : 0;
                    yk_rig_near(&rig, which ? "v" : "k", h * hd + d, kv_value(got_kv, at, s->f16), truth[d],
                                2 * rel * size + half);
                    memcpy(p.data + at, got_kv + at, p.elem);
                }
            }
        }
    }
    assert_memory_equal(got_kv, p.data, (size_t)n_pool * p.block); /* other positions, layers and blocks are as they were */
    free(qkv);
    free(b);
    free(norm);
    free(cs);
    free(truth);
    free(p.data);
}

static void test_rope_kv(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < N_SHAPES; i++)
        rope_case(&shapes[i]);
}

/* Attention of head h of token t in double, and what errors scale with. */
typedef struct view {
    uint32_t window;
    const float *sink; /* of the head, or NULL */
} view;

static void attention_truth(const shape *s, const pool *p, const float *q, uint32_t t, uint32_t h, view see, double *out,
                            double *size)
{
    const uint32_t end = positions[t] + 1, first = see.window && end > see.window ? end - see.window : 0,
                   kv = h / (s->n_heads / s->n_kv);
    const double scale = (double)(1 / sqrtf((float)s->head_dim));
    double *w = malloc((end - first) * sizeof *w), top = see.sink ? *see.sink : -INFINITY, total = 0, largest = 0;
    for (uint32_t i = first; i < end; i++) {
        double dot = 0, magnitude = 0;
        for (uint32_t d = 0; d < s->head_dim; d++) {
            const double k = kv_value(p->data, kv_at(p, s, seqs[t], i, 0, kv, d), s->f16);
            dot += q[d] * k;
            magnitude += fabs(q[d] * k);
        }
        w[i - first] = dot * scale;
        largest = fmax(largest, magnitude * scale);
        top = fmax(top, dot * scale);
    }
    for (uint32_t i = 0; i < end - first; i++)
        total += w[i] = exp(w[i] - top);
    if (see.sink)
        total += exp(*see.sink - top);
    for (uint32_t d = 0; d < s->head_dim; d++) {
        double sum = 0, magnitude = 0;
        for (uint32_t i = first; i < end; i++) {
            const double v = kv_value(p->data, kv_at(p, s, seqs[t], i, 1, kv, d), s->f16) * w[i - first] / total;
            sum += v;
            magnitude += fabs(v);
        }
        out[d] = sum;
        size[d] = magnitude * (1 + largest);
    }
    free(w);
}

/* The CPU's op for the same head. */
static void attention_cpu(const shape *s, const pool *p, const float *q, uint32_t t, uint32_t h, view see, float *out)
{
    const void *k[MAX_BLOCKS], *v[MAX_BLOCKS];
    const uint32_t end = positions[t] + 1, first = see.window && end > see.window ? end - see.window : 0,
                   kv = h / (s->n_heads / s->n_kv);
    float *scores = malloc(((size_t)end - first + 16) * 4);
    for (uint32_t b = 0; b * 16 < end; b++) {
        k[b] = p->data + kv_at(p, s, seqs[t], b * 16, 0, kv, 0);
        v[b] = p->data + kv_at(p, s, seqs[t], b * 16, 1, kv, 0);
    }
    ops->attention(&(yk_attention){.q = q,
                                   .k_blocks = k,
                                   .v_blocks = v,
                                   .kv_stride = s->head_dim,
                                   .n_heads = 1,
                                   .head_dim = s->head_dim,
                                   .first = first,
                                   .end = end,
                                   .scale = 1 / sqrtf((float)s->head_dim),
                                   .sinks = see.sink,
                                   .kv_f16 = s->f16,
                                   .scores = scores,
                                   .out = out});
    free(scores);
}

/* Tiles of the tokens above, of one token each or as many as there may be; the most splits of a token. */
static uint32_t make_tiles(const shape *s, bool single, uint32_t window, uint32_t *tiles, uint32_t *n_splits)
{
    const uint32_t per = single ? 1 : yk_k_attention_tile(s->n_heads, s->n_kv, s->head_dim);
    uint32_t n_tiles = 0;
    assert_true(per > 0 && per <= 16);
    for (uint32_t t = 0, next; t < MAX_TOKENS; t = next) {
        for (next = t + 1; next < MAX_TOKENS && seqs[next] == seqs[t]; next++)
            ;
        n_tiles += yk_k_attention_tiles(tiles + 2 * n_tiles, t, next - t, per);
    }
    *n_splits = 1;
    for (uint32_t t = 0; t < MAX_TOKENS && single; t++) {
        const uint32_t splits = yk_k_attention_splits(positions[t], window, s->head_dim);
        *n_splits = splits > *n_splits ? splits : *n_splits;
    }
    return n_tiles;
}

static bool all_zero(const uint8_t *p, size_t n)
{
    size_t i = 0;
    while (i < n && !p[i])
        i++;
    return i == n;
}

static void attention_case(const shape *s, uint32_t window, bool sinks, bool split)
{
    const uint32_t n = MAX_TOKENS, hd = s->head_dim, n_q = s->n_heads * hd;
    float *q = malloc((size_t)n * n_q * 4), sink[64], *cpu = malloc(hd * 4);
    double *truth = malloc(hd * sizeof *truth), *size = malloc(hd * sizeof *size);
    for (uint32_t i = 0; i < n * n_q; i++)
        q[i] = yk_rig_float(&rig) * 3;
    yk_rig_floats(&rig, sink, 64);
    sink[1] = 30.0f; /* above all scores */
    pool p = pool_new(s);
    uint32_t tiles[2 * MAX_TOKENS], n_splits;
    const uint32_t n_tiles = make_tiles(s, split, window, tiles, &n_splits);
    yk_rig_case(&rig, "attention heads=%u/%u head_dim=%u window=%u sinks=%d tiles=%u splits=%u up to position %u", s->n_heads,
                s->n_kv, hd, window, sinks, n_tiles, n_splits, positions[DEEP]);
    yk_k_attention a = {.n = n,
                        .n_tiles = n_tiles,
                        .n_splits = n_splits,
                        .q_stride = n_q,
                        .out_stride = n_q + 2,
                        .n_heads = s->n_heads,
                        .n_kv_heads = s->n_kv,
                        .head_dim = hd,
                        .window = window,
                        .scale = 1 / sqrtf((float)hd)};
    a.q = yk_rig_in(&rig, q, (uint64_t)n * n_q * 4);
    a.pos = yk_rig_in(&rig, positions, sizeof positions);
    a.seq = yk_rig_in(&rig, seqs, sizeof seqs);
    a.kv = kv_args(&p, s, yk_rig_in(&rig, p.data, (uint64_t)n_pool * p.block), yk_rig_in(&rig, p.table, sizeof p.table));
    if (sinks)
        a.sinks = yk_rig_in(&rig, sink, s->n_heads * 4);
    a.out = yk_rig_out(&rig, NULL, (uint64_t)n * a.out_stride * 4);
    a.tiles = yk_rig_in(&rig, tiles, (uint64_t)n_tiles * 8);
    if (n_splits > 1)
        a.part = yk_rig_out(&rig, NULL, n_tiles * yk_k_attention_part_bytes(s->n_heads, s->n_kv, hd, positions[DEEP] + 1));
    if (n_splits > 1)
        a.arrived = yk_rig_out(&rig, zeros, (uint64_t)n_tiles * s->n_heads * 4);
    yk_k_call c;
    yk_k_call_attention(&c, yk_rig_kernel(&rig, "attention"), &a);
    yk_rig_run(&rig, &c, 1);
    assert_true(n_splits == 1 || all_zero(yk_rig_got(&rig, a.arrived), (size_t)n_tiles * s->n_heads * 4));
    const double rel = yk_tolerance_find("attention", "")->rel;
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t h = 0; h < s->n_heads; h++) {
            const float *qh = q + (size_t)t * n_q + h * hd;
            attention_truth(s, &p, qh, t, h, (view){window, sinks ? &sink[h] : NULL}, truth, size);
            attention_cpu(s, &p, qh, t, h, (view){window, sinks ? &sink[h] : NULL}, cpu);
            for (uint32_t d = 0; d < hd; d++) {
                const double got = ((const float *)yk_rig_got(&rig, a.out))[t * a.out_stride + h * hd + d];
                yk_rig_near(&rig, "out", h * hd + d, got, truth[d], rel * size[d]);
                yk_rig_near(&rig, "out against the CPU", h * hd + d, got, cpu[d], 2 * rel * size[d]);
            }
        }
    }
    free(q);
    free(cpu);
    free(truth);
    free(size);
    free(p.data);
}

static void test_attention(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < N_SHAPES; i++) {
        attention_case(&shapes[i], 0, i & 1, false);
        attention_case(&shapes[i], i & 1 ? 37 : 128, !(i & 1), false);
        attention_case(&shapes[i], i & 1 ? 0 : 141, i & 2, true);
    }
    for (uint32_t i = 0; i < N_SHAPES; i += 3) { /* more than 32 splits of 128 */
        const uint32_t before = positions[DEEP];
        positions[DEEP] = 4100 + 37 * i;
        attention_case(&shapes[i], 0, i & 1, true);
        positions[DEEP] = before;
    }
}

/* attend has the bits of rope_kv and attention, of quantise too, and changes what rope_kv changes. */
static void attend_case(const shape *s, uint32_t window, bool sinks)
{
    enum { CONTEXT = 4608 };
    static const uint32_t last[] = {4, DEEP, 2}; /* tokens whose positions it has */
    const uint32_t n = sizeof last / sizeof *last, hd = s->head_dim, n_q = s->n_heads * hd, n_kv = s->n_kv * hd,
                   stride = n_q + 2 * n_kv + 3;
    float *qkv = malloc((size_t)n * stride * 4), *b = malloc((size_t)(n_q + 2 * n_kv) * 4),
          *norm = malloc((size_t)(n_q + n_kv) * 4), *cs = malloc((size_t)CONTEXT * s->n_rot * 4), sink[64];
    uint32_t pos[3], seq[3];
    for (uint32_t t = 0; t < n; t++) {
        pos[t] = positions[last[t]];
        seq[t] = t; /* of sequences of their own, whatever theirs is elsewhere */
    }
    yk_rig_floats(&rig, qkv, (size_t)n * stride);
    yk_rig_floats(&rig, b, n_q + 2 * n_kv);
    yk_rig_floats(&rig, norm, n_q + n_kv);
    yk_rig_floats(&rig, sink, 64);
    for (uint32_t i = 0; i < CONTEXT * s->n_rot / 2; i++) {
        cs[2 * i] = (float)cos(0.01 * i);
        cs[2 * i + 1] = (float)sin(0.01 * i);
    }
    pool p = pool_new(s);
    yk_rig_case(&rig, "attend heads=%u/%u head_dim=%u norm=%d window=%u sinks=%d, position %u", s->n_heads, s->n_kv, hd,
                s->norm, window, sinks, positions[DEEP]);
    yk_k_rope_kv a = rope_args(s, n, (rope_data){qkv, stride, b, norm, cs, CONTEXT}, n_q);
    a.pos = yk_rig_in(&rig, pos, sizeof pos);
    a.seq = yk_rig_in(&rig, seq, sizeof seq);
    a.q_out = yk_rig_out(&rig, NULL, (uint64_t)n * n_q * 4);
    const yk_gpu_mem table = yk_rig_in(&rig, p.table, sizeof p.table),
                     kv = yk_rig_out(&rig, p.data, (uint64_t)n_pool * p.block),
                     kv2 = yk_rig_out(&rig, p.data, (uint64_t)n_pool * p.block);
    a.kv = kv_args(&p, s, kv, table);
    const uint32_t n_splits = yk_k_attention_splits(pos[1], window, hd);
    const uint64_t part = n * yk_k_attention_part_bytes(s->n_heads, s->n_kv, hd, pos[1] + 1);
    const yk_k_attention two = {.q = a.q_out,
                                .pos = a.pos,
                                .seq = a.seq,
                                .sinks = sinks ? yk_rig_in(&rig, sink, s->n_heads * 4) : (yk_gpu_mem){0},
                                .out = yk_rig_out(&rig, NULL, (uint64_t)n * n_q * 4),
                                .kv = a.kv,
                                .tiles = yk_rig_in(&rig, (const uint32_t[]){0, 1, 1, 1, 2, 1}, 24),
                                .part = yk_rig_out(&rig, NULL, part),
                                .arrived = yk_rig_out(&rig, zeros, n * s->n_heads * 4),
                                .n = n,
                                .n_tiles = n,
                                .n_splits = n_splits,
                                .q_stride = n_q,
                                .out_stride = n_q,
                                .n_heads = s->n_heads,
                                .n_kv_heads = s->n_kv,
                                .head_dim = hd,
                                .window = window,
                                .scale = 1 / sqrtf((float)hd)};
    yk_k_attend one = {
        .rope = a, .sinks = two.sinks, .out_stride = n_q, .window = window, .scale = two.scale, .n_splits = n_splits};
    one.part = yk_rig_out(&rig, NULL, part);
    one.arrived = yk_rig_out(&rig, zeros, n * s->n_heads * 4);
    one.rope.kv = kv_args(&p, s, kv2, table);
    one.out = yk_rig_out(&rig, NULL, (uint64_t)n * n_q * 4);
    const bool q8 = hd % 32 == 0;
    yk_k_quantise q = {.x = two.out, .n = n, .n_cols = n_q, .x_stride = n_q};
    for (yk_k_q8 *o = &q.q8; q8 && o; o = o == &q.q8 ? &one.q8 : NULL)
        *o = (yk_k_q8){yk_rig_out(&rig, NULL, (uint64_t)n * n_q), yk_rig_out(&rig, NULL, (uint64_t)n * n_q / 32 * 4),
                       yk_rig_out(&rig, NULL, (uint64_t)n * n_q / 32 * 4)};
    yk_k_call c[4];
    yk_k_call_rope_kv(&c[0], yk_rig_kernel(&rig, "rope_kv"), &a);
    yk_k_call_attention(&c[1], yk_rig_kernel(&rig, "attention"), &two);
    yk_k_call_attend(&c[2], yk_rig_kernel(&rig, "attend"), &one);
    yk_k_call_quantise(&c[3], yk_rig_kernel(&rig, "quantise"), &q);
    yk_rig_run(&rig, c, q8 ? 4 : 3);
    assert_memory_equal(yk_rig_got(&rig, one.out), yk_rig_got(&rig, two.out), (size_t)n * n_q * 4);
    assert_memory_equal(yk_rig_got(&rig, kv2), yk_rig_got(&rig, kv), (size_t)n_pool * p.block);
    assert_memory_not_equal(yk_rig_got(&rig, kv), p.data, (size_t)n_pool * p.block);
    assert_true(all_zero(yk_rig_got(&rig, one.arrived), n * s->n_heads * 4));
    if (q8) {
        assert_memory_equal(yk_rig_got(&rig, one.q8.q), yk_rig_got(&rig, q.q8.q), (size_t)n * n_q);
        assert_memory_equal(yk_rig_got(&rig, one.q8.scale), yk_rig_got(&rig, q.q8.scale), (size_t)n * n_q / 32 * 4);
        assert_memory_equal(yk_rig_got(&rig, one.q8.sum), yk_rig_got(&rig, q.q8.sum), (size_t)n * n_q / 32 * 4);
    }
    free(qkv);
    free(b);
    free(norm);
    free(cs);
    free(p.data);
}

static void test_attend(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < N_SHAPES; i++) {
        attend_case(&shapes[i], 0, i & 1);
        attend_case(&shapes[i], i & 1 ? 17 : 1, !(i & 1));
    }
    for (uint32_t i = 0; i < 8; i += 4) { /* those with small blocks: each position has its own */
        const uint32_t before = positions[DEEP];
        positions[DEEP] = 4100 + 41 * i;
        n_pool = 701;
        attend_case(&shapes[i], i & 4 ? 0 : 4090, i & 4);
        positions[DEEP] = before;
        n_pool = 60;
    }
}

int main(int argc, char **argv)
{
    const int e = yk_rig_open(&rig, argc > 1 ? argv[1] : "null");
    if (e)
        return e;
    ops = yk_ops_get(YK_ISA_REF);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rope_kv), cmocka_unit_test(test_attention),
                                       cmocka_unit_test(test_attend)};
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    yk_rig_close(&rig);
    return failed;
}
