/* The feed-forward half of a layer. A dense FFN is one part that all tokens use with weight 1; with experts, each expert is a part, and a
 * shared expert is one more. A slot is a (part, token) pair; the slots of a part are consecutive, in token order. */
#include <math.h>

#include "src/engine/stages.h"
#include "src/engine/stats.h"

/* The three matrices of part p. */
typedef struct part {
    const yk_weight *gate, *up, *down;
    uint32_t mat;
    const float *gate_b, *up_b, *down_b;
} part;

static part part_of(const yk_layer *l, uint32_t n_experts, uint32_t p)
{
    if (l->moe && p >= n_experts)
        return (part){.gate = &l->sh_gate, .up = &l->sh_up, .down = &l->sh_down};
    return (part){.gate = &l->gate,
                  .up = &l->up,
                  .down = &l->down,
                  .mat = p,
                  .gate_b = l->gate_b ? l->gate_b + (size_t)p * l->gate.n_rows : NULL,
                  .up_b = l->up_b ? l->up_b + (size_t)p * l->up.n_rows : NULL,
                  .down_b = l->down_b ? l->down_b + (size_t)p * l->down.n_rows : NULL};
}

/* What the CPU computes of a part: pieces of consecutive units (the whole part when nothing is placed elsewhere), each cut into chunks for the
 * gate_up slices: whole blocks of 32, gate and up rows together about 128 KiB. */
typedef struct pieces {
    uint32_t n;
    const yk_piece *piece;
    yk_piece whole;
    uint32_t per_slice;
} pieces;

static void pieces_of(const yk_step *step, uint32_t layer, uint32_t p, const part *pt, pieces *s)
{
    const yk_engine *e = step->engine;
    s->whole = (yk_piece){.n = pt->gate->n_rows};
    s->n = 1;
    s->piece = &s->whole;
    if (e->places) {
        s->n = e->places[layer].parts[p].n_pieces[step->bucket];
        s->piece = e->places[layer].parts[p].pieces[step->bucket];
    } else if (e->parts && e->parts[(size_t)layer * e->d.n_parts + p].n) {
        s->n = e->parts[(size_t)layer * e->d.n_parts + p].n;
        s->piece = e->parts[(size_t)layer * e->d.n_parts + p].piece;
    }
    s->per_slice = yk_units_per_slice(pt->gate->row_bytes + pt->up->row_bytes, step->n_tokens, YK_CUT_UNIT);
}

static uint32_t n_chunks(const pieces *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n; i++)
        n += yk_ceil_div(s->piece[i].n, s->per_slice);
    return n;
}

/* Units of chunk number `chunk` and its piece; NULL when there is no such chunk (late workers only). */
static const yk_piece *chunk_units(const pieces *s, uint32_t chunk, uint32_t *u0, uint32_t *u1)
{
    for (uint32_t i = 0; i < s->n; i++) {
        const uint32_t n = yk_ceil_div(s->piece[i].n, s->per_slice);
        if (chunk < n) {
            *u0 = s->piece[i].u0 + chunk * s->per_slice;
            const uint32_t end = s->piece[i].u0 + s->piece[i].n;
            *u1 = *u0 + s->per_slice < end ? *u0 + s->per_slice : end;
            return &s->piece[i];
        }
        chunk -= n;
    }
    return NULL;
}

uint32_t yk_gate_up_chunks(const yk_step *step, uint32_t layer, uint32_t p)
{
    const yk_layer *l = &step->engine->model->layers[layer];
    const part pt = part_of(l, l->gate.n_mats, p);
    pieces s;
    pieces_of(step, layer, p, &pt, &s);
    return n_chunks(&s);
}

void yk_stage_ffn_in(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_layer *l = &e->model->layers[st->layer];
    const yk_stage *in = yk_stage_get(step, st->layer, YK_S_ATTN_IN);
    const yk_gather g = {step, yk_stage_get(step, st->layer, YK_S_O), e->buf.y, e->d.n_tokens, e->d.n_embd};
    const yk_rows ro = yk_rows_of(&l->o, step->n_tokens);
    const bool round = yk_any_quantised(
        (const yk_weight *const[]){&l->gate, &l->up, l->moe ? &l->sh_gate : NULL, l->moe ? &l->sh_up : NULL}, 4);
    const uint32_t t0 = slice * YK_TOKEN_SLICE;
    for (uint32_t t = t0; t < t0 + YK_TOKEN_SLICE && t < step->n_tokens; t++) {
        const size_t row = (size_t)w->index * e->d.n_tokens + t;
        float *x = e->buf.xf + row * e->d.n_embd, *norm = e->buf.norm + row * e->d.n_in;
        yk_gather_row(&g, ro, 0, 0, t, x);
        if (l->o_b)
            e->ops->add(l->o_b, e->d.n_embd, x);
        e->ops->add(e->buf.xa + ((size_t)yk_token_owner(step, in, t) * e->d.n_tokens + t) * e->d.n_embd, e->d.n_embd, x);
        e->ops->rms_norm(x, l->ffn_norm, l->ffn_norm_b, e->d.n_embd, e->model->hp.norm_eps, norm);
        if (round)
            e->ops->quantise(norm, e->d.n_embd, &step->engine->buf.q8, (uint32_t)row);
    }
}

void yk_stage_router(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_weight *m = &e->model->layers[st->layer].router;
    yk_multiply_slice(step, w, slice,
                      (yk_product){.w = m,
                                   .packed = yk_packed_of(e, st->layer, YK_W_ROUTER),
                                   .n = step->n_tokens,
                                   .y = e->buf.router + (size_t)w->index * e->d.n_tokens * m->n_rows,
                                   .y_stride = m->n_rows});
}

void yk_stage_route(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_layer *l = &e->model->layers[st->layer];
    const yk_arch *arch = e->model->arch;
    const uint32_t n_experts = l->router.n_rows, k = e->model->hp.n_used;
    const yk_stage *in = yk_stage_get(step, st->layer, YK_S_FFN_IN);
    const yk_gather g = {step, yk_stage_get(step, st->layer, YK_S_ROUTER), e->buf.router, e->d.n_tokens, n_experts};
    const yk_rows r = yk_rows_of(&l->router, step->n_tokens);
    float *logits = yk_scratch_of(step, w).row;
    const uint32_t t0 = slice * YK_TOKEN_SLICE;
    for (uint32_t t = t0; t < t0 + YK_TOKEN_SLICE && t < step->n_tokens; t++) {
        const size_t row = (size_t)w->index * e->d.n_tokens + t;
        float *weights = e->buf.id_weight + row * (k + 1);
        yk_gather_row(&g, r, 0, 0, t, logits);
        if (l->router_b)
            e->ops->add(l->router_b, n_experts, logits);
        e->ops->route(logits, n_experts, k, arch->router, arch->router_renorm, e->buf.ids + row * k, weights);
        if (l->sh_router.data) { /* qwen2moe: the shared expert's weight is a sigmoid of its own */
            const uint32_t src = yk_token_owner(step, in, t) * e->d.n_tokens + t;
            float y;
            yk_multiply(e->ops, &(yk_product){.w = &l->sh_router,
                                              .r1 = 1,
                                              .x = e->buf.norm,
                                              .x_stride = e->d.n_in,
                                              .xq = &e->buf.q8,
                                              .rows = &src,
                                              .n = 1,
                                              .y = &y,
                                              .y_stride = 1});
            weights[k] = 1.0f / (1.0f + expf(-y));
        } else {
            weights[k] = 1.0f;
        }
    }
}

/* Lists of a group when part p of the layer has counts[p] tokens: active parts, first slots and gate_up slices. */
static void lay_out_group(const yk_step *step, uint32_t layer, const uint32_t *counts, uint32_t n_parts, yk_group *g)
{
    uint32_t a = 0, slot = 0, unit = 0;
    for (uint32_t p = 0; p < n_parts; p++) {
        if (!counts[p])
            continue;
        g->part[a] = p;
        g->slot0[a] = slot;
        g->unit0[a] = unit;
        slot += counts[p];
        unit += yk_gate_up_chunks(step, layer, p);
        a++;
    }
    g->slot0[a] = slot;
    g->unit0[a] = unit;
    g->n_active = a;
    g->n_slots = slot;
    g->n_units = unit;
}

void yk_group_dense(const yk_step *step, yk_group *g)
{
    g->n_active = 1;
    g->n_slots = g->slot0[1] = step->n_tokens;
    for (uint32_t t = 0; t < step->n_tokens; t++) {
        g->token[t] = t;
        g->weight[t] = 1.0f;
    }
}

void yk_stage_group(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    (void)slice;
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_layer *l = &e->model->layers[st->layer];
    const yk_stage *route = yk_stage_get(step, st->layer, YK_S_ROUTE);
    const uint32_t n_experts = l->gate.n_mats, k = e->model->hp.n_used;
    const bool shared = l->sh_gate.data != NULL;
    const uint32_t n_parts = n_experts + (shared ? 1 : 0);
    yk_group *g = &e->buf.group[w->index];
    uint32_t *counts = yk_scratch_of(step, w).rows, *fill = counts + n_parts;

    memset(counts, 0, n_parts * sizeof *counts);
    for (uint32_t t = 0; t < step->n_tokens; t++) {
        const uint32_t *ids = e->buf.ids + ((size_t)yk_token_owner(step, route, t) * e->d.n_tokens + t) * k;
        for (uint32_t j = 0; j < k; j++)
            counts[ids[j]]++;
    }
    if (shared)
        counts[n_experts] = step->n_tokens;
    lay_out_group(step, st->layer, counts, n_parts, g);
    yk_stats_group(step, st->layer, g);
    for (uint32_t a = 0; a < g->n_active; a++)
        fill[g->part[a]] = g->slot0[a];
    for (uint32_t t = 0; t < step->n_tokens; t++) {
        const size_t row = (size_t)yk_token_owner(step, route, t) * e->d.n_tokens + t;
        for (uint32_t j = 0; j < k + (shared ? 1 : 0); j++) {
            const uint32_t p = j < k ? e->buf.ids[row * k + j] : n_experts, slot = fill[p]++;
            if (slot >= e->d.n_slots) /* only a late worker, whose values are garbage, gets here */
                return;
            g->token[slot] = t;
            g->weight[slot] = e->buf.id_weight[row * (k + 1) + j];
        }
    }
}

static const yk_group *group_of(const yk_step *step, uint32_t layer)
{
    if (!step->engine->model->layers[layer].moe)
        return &step->dense;
    return &step->engine->buf.group[yk_stage_owner(&step->job, yk_stage_get(step, layer, YK_S_GROUP), 0)];
}

/* Largest a with first[a] <= i: the active part that slice or slot i belongs to. */
static uint32_t find_part(const uint32_t *first, uint32_t n, uint32_t i)
{
    uint32_t lo = 0;
    while (n > 1) {
        const uint32_t half = n / 2;
        if (first[lo + half] <= i)
            lo += half, n -= half;
        else
            n = half;
    }
    return lo;
}

/* Slots of active part a; empty when the group is garbage (late workers only). */
static void slots_of(const yk_engine *e, const yk_group *g, uint32_t a, uint32_t *s0, uint32_t *s1)
{
    *s0 = g->slot0[a];
    *s1 = g->slot0[a + 1];
    if (*s1 > e->d.n_slots || *s0 > *s1)
        *s0 = *s1 = 0;
}

uint32_t yk_prepare_gate_up(const yk_stage *st, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_group *g = group_of(step, st->layer);
    const yk_stage *in = yk_stage_get(step, st->layer, YK_S_FFN_IN);
    const yk_scratch s = yk_scratch_of(step, w);
    for (uint32_t i = 0; i < g->n_slots && i < step->engine->d.n_slots; i++)
        s.rows[i] = yk_token_owner(step, in, g->token[i]) * step->engine->d.n_tokens + g->token[i];
    if (!step->engine->model->layers[st->layer].moe)
        return st->max_slices;
    return g->n_units < st->max_slices ? g->n_units : st->max_slices;
}

/* Rows m->r0 .. m->r1 of gate and up into m->y, [n][y_stride]. Returns units in a run: each run of a token has that many values of gate, then of up. */
static uint32_t gate_up(const yk_engine *e, const part *p, const yk_piece *piece, const yk_product *m)
{
    const yk_weight *const w[2] = {p->gate, p->up};
    const uint32_t n = m->r1 - m->r0;
    yk_slab_product s = {&piece->slab, p->gate->type, m->x, m->x_stride, m->xq, m->rows, m->n, m->y, m->y_stride};
    if (piece->slab.host && p->gate->type == p->up->type) {
        yk_multiply_pairs(e->ops, &s, p->gate->n_cols, m->r0, n);
        return YK_TILE_ROWS;
    }
    for (int i = 0; i < 2; i++) {
        yk_product one = *m;
        one.w = w[i];
        one.mat = p->mat;
        one.y = s.y = m->y + i * n;
        s.type = w[i]->type;
        if (piece->slab.host)
            yk_multiply_units(e->ops, &s, i == 1, w[i]->n_cols, m->r0, n);
        else
            yk_multiply(e->ops, &one);
    }
    return n;
}

void yk_stage_gate_up(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_layer *l = &e->model->layers[st->layer];
    const yk_group *g = group_of(step, st->layer);
    const yk_scratch s = yk_scratch_of(step, w);
    const uint32_t a = find_part(g->unit0, g->n_active, slice);
    const part p = part_of(l, l->gate.n_mats, g->part[a]);
    uint32_t s0, s1, u0, u1;
    pieces mine;
    pieces_of(step, st->layer, g->part[a], &p, &mine);
    slots_of(e, g, a, &s0, &s1);
    const yk_piece *piece = chunk_units(&mine, slice - g->unit0[a], &u0, &u1);
    if (!piece)
        return;
    const uint32_t n = u1 - u0, stride = 2 * yk_ceil_div(n, YK_TILE_ROWS) * YK_TILE_ROWS;
    for (uint32_t i = s0; i < s1; i += YK_TOKEN_TILE) {
        const uint32_t tile = s1 - i < YK_TOKEN_TILE ? s1 - i : YK_TOKEN_TILE;
        const uint32_t run = gate_up(e, &p, piece,
                                     &(yk_product){.r0 = u0,
                                                   .r1 = u1,
                                                   .x = e->buf.norm,
                                                   .x_stride = e->d.n_in,
                                                   .xq = &e->buf.q8,
                                                   .rows = s.rows + i,
                                                   .n = tile,
                                                   .y = s.tile,
                                                   .y_stride = stride});
        for (uint32_t t = 0; t < tile; t++) {
            float *h = e->buf.h + ((size_t)w->index * e->d.n_slots + i + t) * e->d.n_ff + u0;
            for (uint32_t u = 0; u < n; u += run) {
                const uint32_t some = n - u < run ? n - u : run;
                float *gate = s.tile + (size_t)t * stride + 2 * u, *up = gate + run;
                if (p.gate_b)
                    e->ops->add(p.gate_b + u0 + u, some, gate);
                if (p.up_b)
                    e->ops->add(p.up_b + u0 + u, some, up);
                e->ops->glu(gate, up, some, e->model->arch->glu, h + u);
            }
        }
    }
}

uint32_t yk_prepare_h_in(const yk_stage *st, yk_worker *w)
{
    (void)w;
    const uint32_t n = yk_ceil_div(group_of(yk_step_of(st), st->layer)->n_slots, YK_TOKEN_SLICE);
    return n < st->max_slices ? n : st->max_slices;
}

void yk_stage_h_in(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_layer *l = &e->model->layers[st->layer];
    const yk_group *g = group_of(step, st->layer);
    const yk_gather from = {step, yk_stage_get(step, st->layer, YK_S_GATE_UP), e->buf.h, e->d.n_slots, e->d.n_ff};
    const uint32_t s0 = slice * YK_TOKEN_SLICE;
    for (uint32_t i = s0; i < s0 + YK_TOKEN_SLICE && i < g->n_slots && i < e->d.n_slots; i++) {
        const uint32_t a = find_part(g->slot0, g->n_active, i);
        const part p = part_of(l, l->gate.n_mats, g->part[a]);
        const size_t row = (size_t)w->index * e->d.n_slots + i;
        float *h = e->buf.h_row + row * e->d.n_ff;
        pieces mine;
        pieces_of(step, st->layer, g->part[a], &p, &mine);
        for (uint32_t k = 0, chunk = g->unit0[a]; k < mine.n; k++) {
            const yk_rows r = {mine.piece[k].n, mine.per_slice, yk_ceil_div(mine.piece[k].n, mine.per_slice)};
            const uint32_t u0 = mine.piece[k].u0;
            if (chunk + r.n_slices > st[-1].max_slices) /* late workers only */
                return;
            yk_gather_row(&from, r, chunk, u0, i, h + u0);
            if (yk_is_quantised(p.down)) {
                yk_q8 q = yk_q8_from(&e->buf.h_q8, u0);
                e->ops->quantise(h + u0, r.n_rows, &q, (uint32_t)row);
            }
            chunk += r.n_slices;
        }
    }
}

uint32_t yk_prepare_down(const yk_stage *st, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_group *g = group_of(step, st->layer);
    const yk_scratch s = yk_scratch_of(step, w);
    for (uint32_t i = 0; i < g->n_slots && i < step->engine->d.n_slots; i++)
        s.rows[i] = yk_token_owner(step, st - 1, i) * step->engine->d.n_slots + i;
    return st->max_slices;
}

/* Rows m->r0 .. m->r1 of down over the units of a piece. */
static void down_rows(const yk_engine *e, const part *p, const yk_piece *piece, const yk_product *m)
{
    if (piece->slab.host) {
        const yk_q8 xq = yk_q8_from(m->xq, piece->u0);
        const yk_slab_product s = {&piece->slab, p->down->type, m->x + piece->u0, m->x_stride, &xq, m->rows,
                                   m->n,         m->y,          m->y_stride};
        yk_multiply_down(e->ops, &s, m->r0, m->r1);
        return;
    }
    yk_product one = *m;
    one.w = p->down;
    one.mat = p->mat;
    one.col0 = piece->u0;
    one.n_cols = piece->n;
    yk_multiply(e->ops, &one);
}

void yk_stage_down(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    const yk_step *step = yk_step_of(st);
    const yk_engine *e = step->engine;
    const yk_layer *l = &e->model->layers[st->layer];
    const yk_group *g = group_of(step, st->layer);
    const yk_scratch s = yk_scratch_of(step, w);
    const yk_rows r = yk_rows_of(&l->down, step->n_tokens);
    const uint32_t r0 = slice * r.per_slice, r1 = r0 + r.per_slice < r.n_rows ? r0 + r.per_slice : r.n_rows, n = r1 - r0;
    float *y = e->buf.y + (size_t)w->index * e->d.n_tokens * e->d.n_embd + r0;
    for (uint32_t t = 0; t < step->n_tokens; t++)
        memset(y + (size_t)t * e->d.n_embd, 0, n * sizeof *y);
    for (uint32_t a = 0; a < g->n_active; a++) {
        const part p = part_of(l, l->gate.n_mats, g->part[a]);
        uint32_t s0, s1;
        pieces mine;
        pieces_of(step, st->layer, g->part[a], &p, &mine);
        slots_of(e, g, a, &s0, &s1);
        for (uint32_t i = s0; i < s1; i += YK_TOKEN_TILE) {
            const uint32_t tile = s1 - i < YK_TOKEN_TILE ? s1 - i : YK_TOKEN_TILE;
            for (uint32_t k = 0; k < mine.n; k++) {
                const yk_piece *piece = &mine.piece[k];
                down_rows(e, &p, piece,
                          &(yk_product){.r0 = r0,
                                        .r1 = r1,
                                        .x = e->buf.h_row,
                                        .x_stride = e->d.n_ff,
                                        .xq = &e->buf.h_q8,
                                        .rows = s.rows + i,
                                        .n = tile,
                                        .y = s.tile,
                                        .y_stride = n});
                for (uint32_t t = 0; t < tile; t++) {
                    float *out = s.tile + (size_t)t * n;
                    if (p.down_b && piece->u0 == 0) /* who has the first unit adds the bias */
                        e->ops->add(p.down_b + r0, n, out);
                    e->ops->add_scaled(out, g->weight[i + t], n, y + (size_t)g->token[i + t] * e->d.n_embd);
                }
            }
        }
    }
}
