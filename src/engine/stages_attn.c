/* The attention half of a layer, and the token stages that feed it. */
#include <math.h>

#include "src/engine/stages.h"

/* Tokens of slice `slice` of a token stage. */
static void token_range(uint32_t slice, uint32_t n, uint32_t *t0, uint32_t *t1)
{
    *t0 = slice * YK_TOKEN_SLICE;
    *t1 = *t0 + YK_TOKEN_SLICE < n ? *t0 + YK_TOKEN_SLICE : n;
}

/* dst += row t of what the row slices of `st` computed. */
static void add_rows(const yk_step *step, const yk_stage *st, uint32_t layer, uint32_t t, float *dst)
{
    const yk_engine *e = step->engine;
    const yk_rows rows = yk_rows_of(&e->model->layers[layer].down, step->n_tokens);
    for (uint32_t s = 0; s < rows.n_slices; s++) {
        const uint32_t r0 = s * rows.per_slice, r1 = r0 + rows.per_slice < rows.n_rows ? r0 + rows.per_slice : rows.n_rows;
        const size_t owner = yk_stage_owner(&step->job, st, s);
        e->ops->add(e->buf.y + (owner * e->d.n_tokens + t) * e->d.n_embd + r0, r1 - r0, dst + r0);
    }
}

static void residual_after(const yk_step *step, uint32_t layer, uint32_t t, float *dst)
{
    const yk_engine *e = step->engine;
    const yk_stage *in = yk_stage_get(step, layer, YK_S_FFN_IN), *down = yk_stage_get(step, layer, YK_S_DOWN);
    const size_t n = e->d.n_tokens, width = e->d.n_embd;
    const float *x = e->buf.xf + (yk_token_owner(step, in, t) * n + t) * width;
    if (step->flow[layer] == YK_FLOW_GIVEN) {
        memcpy(dst, e->buf.xf + (e->virtual_worker * n + t) * width, width * sizeof *dst);
        return;
    }
    if (step->flow[layer] & YK_FLOW_DEV) { /* x + device's sum + CPU's sum, the order of the device */
        memcpy(dst, e->buf.y_dev + t * width, width * sizeof *dst);
        e->ops->add(x, e->d.n_embd, dst);
        if (step->flow[layer] & YK_FLOW_CPU)
            add_rows(step, down, layer, t, dst);
        return;
    }
    const yk_gather g = {step, down, e->buf.y, n, width};
    yk_gather_row(&g, yk_rows_of(&e->model->layers[layer].down, step->n_tokens), 0, 0, t, dst);
    e->ops->add(x, e->d.n_embd, dst);
}

void yk_residual_before(const yk_step *step, uint32_t layer, uint32_t t, float *dst)
{
    const yk_engine *e = step->engine;
    if (layer) {
        residual_after(step, layer - 1, t, dst);
        return;
    }
    const yk_weight *emb = &e->model->token_embd;
    const uint32_t id = (uint32_t)step->tokens[t] < emb->n_rows ? (uint32_t)step->tokens[t] : 0;
    e->ops->dequant[emb->type](yk_weight_row(emb, 0, id), e->d.n_embd, dst);
}

void yk_stage_attn_in(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_layer *l = &e->model->layers[st->layer];
    const bool round = yk_any_quantised((const yk_weight *const[]){&l->q, &l->k, &l->v}, 3);
    uint32_t t0, t1;
    token_range(slice, step->n_tokens, &t0, &t1);
    for (uint32_t t = t0; t < t1; t++) {
        const size_t row = (size_t)w->index * e->d.n_tokens + t;
        float *x = e->buf.xa + row * e->d.n_embd, *norm = e->buf.norm + row * e->d.n_in;
        yk_residual_before(step, st->layer, t, x);
        e->ops->rms_norm(x, l->attn_norm, l->attn_norm_b, e->d.n_embd, e->model->hp.norm_eps, norm);
        if (round)
            e->ops->quantise(norm, e->d.n_embd, &step->engine->buf.q8, (uint32_t)row);
    }
}

/* Where each token's normalised input lies, for the row stage after an "in" stage. */
uint32_t yk_prepare_rows_in(const yk_stage *st, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_stage *in = st - 1;
    const yk_scratch s = yk_scratch_of(step, w);
    for (uint32_t t = 0; t < step->n_tokens; t++)
        s.rows[t] = yk_token_owner(step, in, t) * step->engine->d.n_tokens + t;
    return st->max_slices;
}

void yk_stage_qkv(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_layer *l = &e->model->layers[st->layer];
    const yk_weight *const mats[3] = {&l->q, &l->k, &l->v};
    uint32_t col = 0;
    for (uint32_t i = 0; i < 3; i++) {
        const yk_rows r = yk_rows_of(mats[i], step->n_tokens);
        if (slice >= r.n_slices) {
            slice -= r.n_slices;
            col += r.n_rows;
            continue;
        }
        yk_multiply_slice(step, w, slice,
                          (yk_product){.w = mats[i],
                                       .packed = yk_packed_of(e, st->layer, YK_W_Q + i),
                                       .n = step->n_tokens,
                                       .y = e->buf.qkv + (size_t)w->index * e->d.n_tokens * e->d.n_qkv + col,
                                       .y_stride = e->d.n_qkv});
        return;
    }
}

static void norm_heads(const yk_engine *e, float *x, const float *weight, uint32_t n_heads)
{
    const uint32_t hd = e->model->hp.head_dim;
    if (e->model->arch->qk_norm == YK_QK_NORM_FULL)
        e->ops->rms_norm(x, weight, NULL, n_heads * hd, e->model->hp.norm_eps, x);
    else
        for (uint32_t h = 0; h < n_heads; h++)
            e->ops->rms_norm(x + h * hd, weight, NULL, hd, e->model->hp.norm_eps, x + h * hd);
}

/* Heads [n_kv_heads][head_dim] of one position into a block [n_kv_heads][16][head_dim]. */
static void store_heads(const yk_engine *e, const float *x, uint8_t *block, uint32_t at)
{
    const uint32_t hd = e->model->hp.head_dim;
    for (uint32_t h = 0; h < e->model->hp.n_kv_heads; h++) {
        uint8_t *dst = block + ((size_t)h * YK_KV_BLOCK + at) * hd * e->d.kv_elem;
        if (e->kv_f16)
            e->ops->to_f16(x + (size_t)h * hd, hd, (uint16_t *)(void *)dst);
        else
            memcpy(dst, x + (size_t)h * hd, hd * sizeof *x);
    }
}

/* Committed positions of the block, from the pool. */
static void copy_old(const yk_engine *e, const uint8_t *from, uint32_t old, uint8_t *to)
{
    const size_t head = (size_t)YK_KV_BLOCK * e->model->hp.head_dim * e->d.kv_elem;
    const size_t bytes = (size_t)old * e->model->hp.head_dim * e->d.kv_elem;
    for (uint32_t h = 0; h < 2 * e->model->hp.n_kv_heads; h++) /* K heads, then V heads */
        memcpy(to + h * head, from + h * head, bytes);
}

void yk_stage_rope_kv(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_layer *l = &e->model->layers[st->layer];
    const yk_hparams *hp = &e->model->hp;
    const yk_kv_slice *ks = &step->kv_slices[slice];
    const yk_stage *qkv = yk_stage_get(step, st->layer, YK_S_QKV);
    const yk_gather g = {step, qkv, e->buf.qkv, e->d.n_tokens, e->d.n_qkv};
    const yk_rows rq = yk_rows_of(&l->q, step->n_tokens), rk = yk_rows_of(&l->k, step->n_tokens),
                  rv = yk_rows_of(&l->v, step->n_tokens);
    float *row = yk_scratch_of(step, w).row, *k = row + e->d.n_q, *v = k + e->d.n_kv;
    uint8_t *block = yk_staged_kv(e, w->index, st->layer, slice);
    if (ks->old)
        copy_old(e, yk_kv_layer(&e->kv, step->runs[ks->run].read_first, st->layer), ks->old, block);
    for (uint32_t t = ks->first; t < ks->first + ks->n; t++) {
        yk_gather_row(&g, rq, 0, 0, t, row);
        yk_gather_row(&g, rk, rq.n_slices, e->d.n_q, t, k);
        yk_gather_row(&g, rv, rq.n_slices + rk.n_slices, e->d.n_q + e->d.n_kv, t, v);
        if (l->q_b)
            e->ops->add(l->q_b, e->d.n_q, row);
        if (l->k_b)
            e->ops->add(l->k_b, e->d.n_kv, k);
        if (l->v_b)
            e->ops->add(l->v_b, e->d.n_kv, v);
        if (l->q_norm)
            norm_heads(e, row, l->q_norm, hp->n_heads);
        if (l->k_norm)
            norm_heads(e, k, l->k_norm, hp->n_kv_heads);
        const uint32_t pos = step->pos[t] < e->context ? step->pos[t] : 0;
        const float *cs = e->rope_cs + (size_t)pos * hp->n_rot;
        e->ops->rope(row, hp->n_heads, hp->head_dim, hp->n_rot, cs, e->model->arch->rope);
        e->ops->rope(k, hp->n_kv_heads, hp->head_dim, hp->n_rot, cs, e->model->arch->rope);
        memcpy(e->buf.q + ((size_t)w->index * e->d.n_tokens + t) * e->d.n_q, row, e->d.n_q * sizeof *row);
        store_heads(e, k, block, pos % YK_KV_BLOCK);
        store_heads(e, v, block + e->d.kv_half, pos % YK_KV_BLOCK);
    }
}

/* Pointers to K and V of one kv head, of blocks b0 .. b1. */
static void list_blocks(const yk_step *step, const yk_stage *st, const yk_kv_slice *ks, uint32_t head, uint32_t b0, uint32_t b1,
                        const yk_scratch *s)
{
    const yk_engine *e = step->engine;
    const yk_run *run = &step->runs[ks->run];
    const yk_stage *rope = yk_stage_get(step, st->layer, YK_S_ROPE_KV);
    const size_t head_bytes = (size_t)head * YK_KV_BLOCK * e->model->hp.head_dim * e->d.kv_elem;
    const uint32_t *table = step->tables + (size_t)ks->run * e->d.max_blocks;
    const uint32_t staged0 = run->pos / YK_KV_BLOCK;
    for (uint32_t b = b0; b <= b1 && b < e->d.max_blocks; b++) {
        const uint8_t *k;
        if (b < staged0) {
            k = yk_kv_layer(&e->kv, table[b], st->layer);
        } else {
            const uint32_t i = run->kv_slice0 + b - staged0;
            k = yk_staged_kv(e, yk_stage_owner(&step->job, rope, i), st->layer, i);
        }
        s->k_blocks[b] = k + head_bytes;
        s->v_blocks[b] = k + e->d.kv_half + head_bytes;
    }
}

/* All tokens of `a` over all parts of what they see. Rows of a token: group. */
static void attend(const yk_engine *e, const yk_scratch *s, const yk_attention *a, uint32_t size)
{
    const uint32_t n = a->n_tokens, width = a->n_heads * a->head_dim;
    const uint32_t k0 = a->seen[0].first / size, k1 = (a->seen[n - 1].end - 1) / size;
    if (a->seen[n - 1].first / size != k0) { /* a window's edge: each token has its own first part, where its sink belongs */
        for (uint32_t t = 0; t < n; t++) {
            yk_attention one = *a;
            one.q += t * a->q_stride, one.out += t * a->out_stride, one.seen += t, one.n_tokens = 1;
            attend(e, s, &one, size);
        }
        return;
    }
    if (k0 == k1) {
        e->ops->attention(a);
        return;
    }
    for (uint32_t k = k0; k <= k1; k++) {
        yk_attention part = *a;
        yk_seen seen[YK_KV_BLOCK];
        for (uint32_t t = 0; t < n; t++)
            seen[t] =
                (yk_seen){a->seen[t].first > k * size ? a->seen[t].first : k * size, k < k1 ? (k + 1) * size : a->seen[t].end};
        part.seen = seen, part.state = s->part_state[k > k0], part.then = a->seen[n - 1].end;
        if (k > k0)
            part.out = s->part, part.out_stride = width, part.sinks = NULL;
        e->ops->attention(&part);
        for (uint32_t t = 0; k > k0 && t < n; t++) {
            const size_t at = (size_t)t * a->n_heads * 2;
            e->ops->attention_join(
                &(yk_attention_part){s->part + (size_t)t * width, s->part_state[1] + at, a->n_heads, a->head_dim, k == k1},
                a->out + t * a->out_stride, s->part_state[0] + at);
        }
    }
}

/* The row of buf.att of worker `owner` that has part `part` of token t. */
static size_t att_row(const yk_step *step, uint32_t owner, const yk_kv_slice *ks, bool split, uint32_t part, uint32_t t)
{
    const uint32_t row = split ? ks->row0 + part * ks->n + (t - ks->first) : t;
    return (size_t)owner * step->engine->d.n_att + row;
}

/* A slice: a kv head of all tokens of a block; where slices are parts, over part of their positions. */
void yk_stage_attn(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_hparams *hp = &e->model->hp;
    const yk_layer *l = &e->model->layers[st->layer];
    const uint32_t head = slice % hp->n_kv_heads, group = hp->n_heads / hp->n_kv_heads;
    const bool split = yk_attn_split(step, st->layer);
    uint32_t i = slice / hp->n_kv_heads, k = 0;
    if (split) {
        const uint32_t at = i;
        for (i = 0; i + 1 < step->n_kv_slices && step->kv_slices[i + 1].part0 <= at;)
            i++;
        k = at - step->kv_slices[i].part0;
    }
    const yk_kv_slice *ks = &step->kv_slices[i];
    const yk_scratch s = yk_scratch_of(step, w);
    const uint32_t window = yk_attn_window(e, st->layer), size = yk_attn_part_size(ks->block);
    const uint32_t lowest = window && step->pos[ks->first] + 1 > window ? step->pos[ks->first] + 1 - window : 0;
    const bool part = split && ks->n_parts > 1, tail = part && k + 1 < ks->n_parts;
    list_blocks(step, st, ks, head, (part ? k * size : lowest) / YK_KV_BLOCK,
                tail ? (k + 1) * size / YK_KV_BLOCK - 1 : ks->block, &s);
    yk_seen seen[YK_KV_BLOCK];
    for (uint32_t t = 0; t < ks->n; t++) {
        const uint32_t pos = step->pos[ks->first + t], end = (pos < e->context ? pos : 0) + 1;
        seen[t] = (yk_seen){window && end > window ? end - window : 0, end};
        if (part)
            seen[t] = (yk_seen){k * size, tail ? (k + 1) * size : end};
    }
    const size_t owner = yk_stage_owner(&step->job, yk_stage_get(step, st->layer, YK_S_ROPE_KV), i);
    const size_t col = (size_t)head * group * hp->head_dim, row = att_row(step, w->index, ks, split, k, ks->first);
    const yk_attention a = {
        .q = e->buf.q + (owner * e->d.n_tokens + ks->first) * e->d.n_q + col,
        .k_blocks = s.k_blocks,
        .v_blocks = s.v_blocks,
        .kv_stride = hp->head_dim,
        .n_heads = group,
        .head_dim = hp->head_dim,
        .scale = 1.0f / sqrtf((float)hp->head_dim),
        .sinks = l->sinks && k == 0 ? l->sinks + head * group : NULL,
        .kv_f16 = e->kv_f16,
        .scores = s.scores,
        .out = e->buf.att + row * e->d.n_q + col,
        .n_tokens = ks->n,
        .seen = seen,
        .q_stride = e->d.n_q,
        .out_stride = e->d.n_q,
        .state = part ? s.part_state[0] : NULL,
    };
    if (!part) {
        attend(e, &s, &a, size);
        return;
    }
    e->ops->attention(&a);
    for (uint32_t t = 0; t < ks->n; t++)
        memcpy(e->buf.att_state + ((row + t) * hp->n_heads + head * group) * 2, a.state + (size_t)t * group * 2,
               2 * group * sizeof *a.state);
}

/* Heads of kv head h of token t, joined where their parts were slices. */
static void gather_heads(const yk_step *step, const yk_stage *attn, const yk_scratch *s, uint32_t t, uint32_t h, float *x)
{
    const yk_engine *e = step->engine;
    const yk_hparams *hp = &e->model->hp;
    const bool split = yk_attn_split(step, attn->layer);
    const uint32_t i = step->kv_slice_of[t], group = hp->n_heads / hp->n_kv_heads, width = group * hp->head_dim;
    const yk_kv_slice *ks = &step->kv_slices[i];
    const uint32_t first = split ? ks->part0 : i, n_parts = split ? ks->n_parts : 1;
    for (uint32_t k = 0; k < n_parts; k++) {
        const uint32_t owner = yk_stage_owner(&step->job, attn, (first + k) * hp->n_kv_heads + h);
        const size_t row = att_row(step, owner, ks, split, k, t);
        const float *out = e->buf.att + row * e->d.n_q + h * width,
                    *state = e->buf.att_state + (row * hp->n_heads + h * group) * 2;
        if (k) {
            e->ops->attention_join(&(yk_attention_part){out, state, group, hp->head_dim, k + 1 == n_parts}, x,
                                   s->part_state[0]);
            continue;
        }
        memcpy(x, out, width * sizeof *x);
        if (n_parts > 1)
            memcpy(s->part_state[0], state, 2 * group * sizeof *state);
    }
}

void yk_stage_o_in(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_hparams *hp = &e->model->hp;
    const yk_stage *attn = yk_stage_get(step, st->layer, YK_S_ATTN);
    const yk_scratch s = yk_scratch_of(step, w);
    const bool round = yk_is_quantised(&e->model->layers[st->layer].o);
    const size_t width = (size_t)(hp->n_heads / hp->n_kv_heads) * hp->head_dim;
    uint32_t t0, t1;
    token_range(slice, step->n_tokens, &t0, &t1);
    for (uint32_t t = t0; t < t1; t++) {
        const size_t row = (size_t)w->index * e->d.n_tokens + t;
        float *x = e->buf.norm + row * e->d.n_in;
        for (uint32_t h = 0; h < hp->n_kv_heads; h++)
            gather_heads(step, attn, &s, t, h, x + h * width);
        if (round)
            e->ops->quantise(x, e->d.n_q, &step->engine->buf.q8, (uint32_t)row);
    }
}

void yk_stage_o(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    yk_multiply_slice(step, w, slice,
                      (yk_product){.w = &e->model->layers[st->layer].o,
                                   .packed = yk_packed_of(e, st->layer, YK_W_O),
                                   .n = step->n_tokens,
                                   .y = e->buf.y + (size_t)w->index * e->d.n_tokens * e->d.n_embd,
                                   .y_stride = e->d.n_embd});
}

/* Final norm of the tokens whose logits are wanted; row i of the output is logits row i of the step. */
void yk_stage_head_in(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_model *m = e->model;
    const bool round = yk_is_quantised(&m->output);
    uint32_t i0, i1;
    token_range(slice, step->n_logits, &i0, &i1);
    for (uint32_t i = i0; i < i1; i++) {
        const size_t row = (size_t)w->index * e->d.n_tokens + i;
        float *norm = e->buf.norm + row * e->d.n_in;
        yk_residual_before(step, m->hp.n_layers, step->logits_token[i], norm);
        e->ops->rms_norm(norm, m->output_norm, m->output_norm_b, e->d.n_embd, m->hp.norm_eps, norm);
        if (round)
            e->ops->quantise(norm, e->d.n_embd, &step->engine->buf.q8, (uint32_t)row);
    }
}

uint32_t yk_prepare_head(const yk_stage *st, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_scratch s = yk_scratch_of(step, w);
    for (uint32_t i = 0; i < step->n_logits; i++)
        s.rows[i] = yk_token_owner(step, st - 1, i) * step->engine->d.n_tokens + i;
    return st->max_slices;
}

void yk_stage_head(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const size_t n_vocab = e->model->hp.n_vocab;
    const yk_product m = yk_multiply_slice(step, w, slice,
                                           (yk_product){.w = &e->model->output,
                                                        .packed = e->head.base ? &e->head : NULL,
                                                        .n = step->n_logits,
                                                        .y = e->buf.logits + (size_t)w->index * e->d.n_logits * n_vocab,
                                                        .y_stride = n_vocab});
    if (e->model->output_b)
        for (uint32_t i = 0; i < step->n_logits; i++)
            e->ops->add(e->model->output_b + m.r0, m.r1 - m.r0, m.y + i * n_vocab);
}
