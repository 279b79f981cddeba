/* attention.c - one token against the cached keys and values of one kv head. Contract: docs/kernels/attention.md.
 *
 * Two passes with all scores in scratch: a block of 16 keys is converted once and met by all query heads that share it, then
 * softmax per head, then values the same way. */
#include <math.h>

#include "cpu/ref/exp.h"

enum { KV_BLOCK = 16, PIECE = 64, HEADS = 8 };

/* n elements of a key or value row from element `at` on: in place, or converted into `room`. */
YK_INLINE const float *piece_of(const void *block, size_t at, uint32_t n, bool f16, float *room)
{
    if (!f16)
        return (const float *)block + at;
    const uint16_t *p = (const uint16_t *)block + at;
    for (uint32_t i = 0; i < n; i++)
        room[i] = yk_f16_to_f32(p[i]);
    return room;
}

/* scores[h][p - first] = scale * (q_h . k_p). A piece is a multiple of 16, so element d always belongs to sum d % 16. */
YK_INLINE void score_keys(const yk_attention *a, size_t stride)
{
    for (uint32_t h0 = 0; h0 < a->n_heads; h0 += HEADS) {
        const uint32_t nh = a->n_heads - h0 < HEADS ? a->n_heads - h0 : HEADS;
        for (uint32_t p = a->first; p < a->end; p++) {
            const void *block = a->k_blocks[p / KV_BLOCK];
            const size_t at = (size_t)(p % KV_BLOCK) * a->kv_stride;
            yk_v8 acc[HEADS][2] = {{{0}}};
            float room[PIECE];
            for (uint32_t d = 0; d < a->head_dim; d += PIECE) {
                const uint32_t n = a->head_dim - d < PIECE ? a->head_dim - d : PIECE;
                const bool last = a->head_dim - d <= PIECE;
                const float *k = piece_of(block, at + d, n, a->kv_f16, room);
                for (uint32_t h = 0; h < nh; h++) {
                    const float *q = a->q + (size_t)(h0 + h) * a->head_dim + d;
                    uint32_t i = 0;
                    for (; n - i >= YK_LANES; i += YK_LANES)
                        yk_ref_mul_add16(q + i, k + i, acc[h]);
                    if (last)
                        a->scores[(h0 + h) * stride + (p - a->first)] = a->scale * yk_ref_finish16(q + i, k + i, n - i, acc[h]);
                }
            }
        }
    }
}

/* Scores of one head to weights, or, with `state`, to e^(score - max); sink adds one logit whose value is zero. */
YK_INLINE void softmax(float *s, uint32_t n, const float *sink, float *state)
{
    float max = sink ? *sink : s[0];
    for (uint32_t i = 0; i < n; i++)
        max = s[i] > max ? s[i] : max;
    float acc[YK_LANES] = {0};
    for (uint32_t i = 0; i < n; i++)
        s[i] = yk_ref_exp(s[i] - max);
    uint32_t i = 0;
    for (; i + YK_LANES <= n; i += YK_LANES)
        YK_KEEP_LOOP
    for (uint32_t j = 0; j < YK_LANES; j++)
        acc[j] += s[i + j];
    for (uint32_t j = 0; i + j < n; j++)
        acc[j] += s[i + j];
    float total = yk_ref_sum16(acc);
    if (sink)
        total += yk_ref_exp(*sink - max);
    if (state) {
        state[0] = max;
        state[1] = total;
        return;
    }
    for (i = 0; i < n; i++)
        s[i] /= total;
}

/* out[h] += sum over positions, in their order, of weight * v_p */
YK_INLINE void add_values(const yk_attention *a, size_t stride)
{
    float room[KV_BLOCK][PIECE];
    const float *v[KV_BLOCK];
    memset(a->out, 0, (size_t)a->n_heads * a->head_dim * sizeof *a->out);
    for (uint32_t p0 = a->first; p0 < a->end;) {
        uint32_t p1 = (p0 / KV_BLOCK + 1) * KV_BLOCK;
        p1 = p1 < a->end ? p1 : a->end;
        const void *block = a->v_blocks[p0 / KV_BLOCK];
        for (uint32_t d = 0; d < a->head_dim; d += PIECE) {
            const uint32_t n = a->head_dim - d < PIECE ? a->head_dim - d : PIECE;
            for (uint32_t p = p0; p < p1; p++)
                v[p - p0] = piece_of(block, (size_t)(p % KV_BLOCK) * a->kv_stride + d, n, a->kv_f16, room[p - p0]);
            for (uint32_t h = 0; h < a->n_heads; h++) {
                const float *s = a->scores + h * stride + (p0 - a->first);
                float *out = a->out + (size_t)h * a->head_dim + d;
                uint32_t i = 0;
                for (; n - i >= YK_LANES; i += YK_LANES) {
                    yk_v8 acc[2];
                    memcpy(acc, out + i, sizeof acc);
                    for (uint32_t p = 0; p < p1 - p0; p++)
                        yk_ref_scale_add16(s[p], v[p] + i, acc);
                    memcpy(out + i, acc, sizeof acc);
                }
                for (; i < n; i++)
                    for (uint32_t p = 0; p < p1 - p0; p++)
                        out[i] += s[p] * v[p][i];
            }
        }
        p0 = p1;
    }
}

YK_INLINE void one_token(const yk_attention *a)
{
    const size_t stride = ((size_t)(a->end - a->first) + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
    score_keys(a, stride);
    for (uint32_t h = 0; h < a->n_heads; h++)
        softmax(a->scores + h * stride, a->end - a->first, a->sinks ? a->sinks + h : NULL, a->state ? a->state + 2 * h : NULL);
    add_values(a, stride);
}

YK_CLONES static void attention_ref(const yk_attention *a)
{
    yk_attention one = *a;
    for (uint32_t t = 0; t < (a->n_tokens ? a->n_tokens : 1); t++) {
        one.q = a->q + t * a->q_stride;
        one.out = a->out + t * a->out_stride;
        one.state = a->state ? a->state + 2 * (size_t)t * a->n_heads : NULL;
        if (a->seen) {
            one.first = a->seen[t].first;
            one.end = a->seen[t].end;
        }
        one_token(&one);
    }
}

/* The same at every level. A NaN in either maximum or sum shows in the sum. */
YK_CLONES static void attention_join_ref(const yk_attention_part *p, float *out, float *state)
{
    for (uint32_t h = 0; h < p->n_heads; h++, out += p->head_dim, state += 2) {
        const float *v = p->out + (size_t)h * p->head_dim, *s = p->state + 2 * h;
        const float max = s[0] > state[0] ? s[0] : state[0];
        const float a = yk_ref_exp(state[0] - max), b = yk_ref_exp(s[0] - max), total = state[1] * a + s[1] * b;
        state[0] = max;
        state[1] = total;
        for (uint32_t i = 0; i < p->head_dim; i++)
            out[i] = out[i] * a + v[i] * b;
        if (p->last)
            for (uint32_t i = 0; i < p->head_dim; i++)
                out[i] /= total;
    }
}

void yk_ref_fill_attention(yk_ops *ops)
{
    ops->attention_join = attention_join_ref;
    ops->attention = attention_ref;
}
