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

void yk_stage_attn(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_hparams *hp = &e->model->hp;
    const yk_layer *l = &e->model->layers[st->layer];
    const uint32_t head = slice % hp->n_kv_heads, group = hp->n_heads / hp->n_kv_heads;
    const yk_kv_slice *ks = &step->kv_slices[slice / hp->n_kv_heads];
    const yk_run *run = &step->runs[ks->run];
    const yk_stage *rope = yk_stage_get(step, st->layer, YK_S_ROPE_KV);
    const yk_scratch s = yk_scratch_of(step, w);
    const size_t head_bytes = (size_t)head * YK_KV_BLOCK * hp->head_dim * e->d.kv_elem;
    const uint32_t *table = step->tables + (size_t)ks->run * e->d.max_blocks;
    const uint32_t staged0 = run->pos / YK_KV_BLOCK;
    const uint32_t window = e->model->arch->flags & YK_ARCH_WINDOW_EVEN && st->layer % 2 == 0 ? hp->window : 0;
    const uint32_t lowest = window && step->pos[ks->first] + 1 > window ? step->pos[ks->first] + 1 - window : 0;

    for (uint32_t b = lowest / YK_KV_BLOCK; b <= ks->block && b < e->d.max_blocks; b++) {
        const uint8_t *k;
        if (b < staged0) {
            k = yk_kv_layer(&e->kv, table[b], st->layer);
        } else {
            const uint32_t i = run->kv_slice0 + b - staged0;
            k = yk_staged_kv(e, yk_stage_owner(&step->job, rope, i), st->layer, i);
        }
        s.k_blocks[b] = k + head_bytes;
        s.v_blocks[b] = k + e->d.kv_half + head_bytes;
    }
    const size_t owner = yk_stage_owner(&step->job, rope, slice / hp->n_kv_heads), col = (size_t)head * group * hp->head_dim;
    yk_seen seen[YK_KV_BLOCK];
    for (uint32_t i = 0; i < ks->n; i++) {
        const uint32_t pos = step->pos[ks->first + i], end = (pos < e->context ? pos : 0) + 1;
        seen[i] = (yk_seen){window && end > window ? end - window : 0, end};
    }
    e->ops->attention(&(yk_attention){
        .q = e->buf.q + (owner * e->d.n_tokens + ks->first) * e->d.n_q + col,
        .k_blocks = s.k_blocks,
        .v_blocks = s.v_blocks,
        .kv_stride = hp->head_dim,
        .n_heads = group,
        .head_dim = hp->head_dim,
        .scale = 1.0f / sqrtf((float)hp->head_dim),
        .sinks = l->sinks ? l->sinks + head * group : NULL,
        .kv_f16 = e->kv_f16,
        .scores = s.scores,
        .out = e->buf.att + ((size_t)w->index * e->d.n_tokens + ks->first) * e->d.n_q + col,
        .n_tokens = ks->n,
        .seen = seen,
        .q_stride = e->d.n_q,
        .out_stride = e->d.n_q,
    });
}

void yk_stage_o_in(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_hparams *hp = &e->model->hp;
    const yk_stage *attn = yk_stage_get(step, st->layer, YK_S_ATTN);
    const bool round = yk_is_quantised(&e->model->layers[st->layer].o);
    const size_t width = (size_t)(hp->n_heads / hp->n_kv_heads) * hp->head_dim;
    uint32_t t0, t1;
    token_range(slice, step->n_tokens, &t0, &t1);
    for (uint32_t t = t0; t < t1; t++) {
        const size_t row = (size_t)w->index * e->d.n_tokens + t;
        float *x = e->buf.norm + row * e->d.n_in;
        for (uint32_t h = 0; h < hp->n_kv_heads; h++) {
            const size_t owner = yk_stage_owner(&step->job, attn, step->kv_slice_of[t] * hp->n_kv_heads + h);
            memcpy(x + h * width, e->buf.att + (owner * e->d.n_tokens + t) * e->d.n_q + h * width, width * sizeof *x);
        }
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
