/* The launches of a layer on the device. */
#include <math.h>

#include "cpu/pack.h"
#include "src/base/clock.h"
#include "src/engine/lane_run.h"
#include "src/engine/stages.h"
#include "src/engine/stats.h"

static const yk_k_q8 no_q8;

/* ---- trace ------------------------------------------------------------------------------------------------------------------------------- */

yk_lane_mark *yk_lane_begin(yk_lane_run *r, yk_gpu_stream *stream, yk_lane_task t)
{
    yk_gpulane *l = r->l;
    if (!l->marking)
        return NULL;
    const uint64_t now = yk_now_ns();
    yk_lane_mark *m = &l->marks[l->n_marks];
    if (l->n_marks == YK_LANE_MARKS || (!m->from && l->t->event_open(l->gpu, &m->from) != YK_OK) ||
        (!m->to && l->t->event_open(l->gpu, &m->to) != YK_OK) || l->t->event_record(stream, m->from) != YK_OK) {
        l->marks_lost = true;
        if (r->e->trace)
            yk_trace_lost(r->e->trace, 1);
        return NULL;
    }
    l->n_marks++;
    m->whole = false;
    m->rec = (yk_trace_rec){.lane = t.lane,
                            .op = t.op,
                            .kernel = t.kernel,
                            .layer = t.layer,
                            .bytes = l->launched_bytes,
                            .step = (uint32_t)r->e->n_steps_done};
    r->e->stats->record_ns += yk_now_ns() - now;
    return m;
}

void yk_lane_end(yk_lane_run *r, yk_gpu_stream *stream, yk_lane_mark *m, uint64_t bytes)
{
    if (!m)
        return;
    const uint64_t now = yk_now_ns();
    m->rec.bytes = bytes ? bytes : r->l->launched_bytes - m->rec.bytes;
    m->whole = r->l->t->event_record(stream, m->to) == YK_OK;
    r->e->stats->record_ns += yk_now_ns() - now;
}

/* ---- products --------------------------------------------------------------------------------------------------------------------------- */

yk_status yk_lane_multiply(yk_lane_run *r, const yk_lane_product *p)
{
    const yk_k_matvec m = {.type = p->w->type,
                           .w = p->mat->mem,
                           .x = p->x,
                           .q8 = *p->q8,
                           .bias = p->bias,
                           .y = p->y,
                           .n = p->n,
                           .n_rows = p->n_rows ? p->n_rows : p->w->n_rows,
                           .n_cols = p->w->n_cols,
                           .x_stride = yk_is_quantised(p->w) ? yk_ceil_div(p->x_cols, 32) : p->x_stride,
                           .y_stride = p->y_stride,
                           .panel_bytes = (uint32_t)p->mat->panel_bytes,
                           .tile_bytes = yk_tile_bytes(p->w->type, p->w->n_cols < YK_TILE_COLS ? p->w->n_cols : YK_TILE_COLS)};
    YK_LAUNCH(yk_k_matvec_name(p->w->type, p->n), yk_k_call_matvec, &m);
    return YK_OK;
}

/* ---- attention -------------------------------------------------------------------------------------------------------------------------- */

/* x += sums, n_y rows of y for each token; norm (when w is there). */
static yk_status add_norm(yk_lane_run *r, yk_gpu_mem y, yk_gpu_mem y2, uint32_t n_y, yk_gpu_mem w, yk_gpu_mem b, bool q8)
{
    const uint32_t d = r->e->d.n_embd;
    const yk_k_add_norm a = {.x = r->l->x,
                             .y = y,
                             .y2 = y2,
                             .w = w,
                             .b = b,
                             .out = w.handle ? r->l->norm : (yk_gpu_mem){0},
                             .q8 = q8 ? r->l->q8 : no_q8,
                             .n = r->n,
                             .n_cols = d,
                             .x_stride = d,
                             .y_stride = d,
                             .y2_stride = d,
                             .out_stride = r->e->d.n_in,
                             .n_y = n_y,
                             .eps = r->e->model->hp.norm_eps};
    YK_LAUNCH("add_norm", yk_k_call_add_norm, &a);
    return YK_OK;
}

yk_status yk_lane_take_pending(yk_lane_run *r, yk_gpu_mem w, yk_gpu_mem b, bool q8)
{
    yk_gpulane *l = r->l;
    const yk_gpu_mem none = {0};
    yk_gpu_mem y = l->y_pending ? l->y_dev : none, y2 = l->y_cpu_pending ? l->y_cpu : none;
    const uint32_t n_y = l->y_pending ? l->y_pending : 1;
    if (!y.handle) {
        y = y2;
        y2 = none;
    }
    l->y_pending = 0;
    l->y_cpu_pending = false;
    if (!y.handle && !w.handle)
        return YK_OK;
    return add_norm(r, y, y2, n_y, w, b, q8);
}

static yk_k_kv kv_of(const yk_lane_run *r, const yk_layer_place *pl)
{
    return (yk_k_kv){.kv = pl->kv,
                     .table = r->l->table,
                     .block_bytes = (uint32_t)(2 * r->e->d.kv_half),
                     .v_bytes = (uint32_t)r->e->d.kv_half,
                     .table_stride = r->e->d.max_blocks,
                     .f16 = r->e->kv_f16};
}

uint32_t yk_lane_window(const yk_lane_run *r, uint32_t layer)
{
    const yk_model *m = r->e->model;
    return m->arch->flags & YK_ARCH_WINDOW_EVEN && layer % 2 == 0 ? m->hp.window : 0;
}

/* q, k and v of l->norm to l->qkv; matrices of a type that lie one behind the other are one product. */
static yk_status qkv(yk_lane_run *r, uint32_t layer, const yk_layer_place *pl)
{
    yk_gpulane *l = r->l;
    const yk_dims *d = &r->e->d;
    const yk_layer *w = &r->e->model->layers[layer];
    const yk_weight *const ws[] = {&w->q, &w->k, &w->v};
    const yk_dev_mat *const mats[] = {&pl->q, &pl->k, &pl->v};
    for (uint32_t i = 0, next, row = 0; i < 3; i = next) {
        uint32_t rows = ws[i]->n_rows;
        for (next = i + 1; next < 3 && ws[next]->type == ws[i]->type && rows % YK_TILE_ROWS == 0; next++) {
            const uint64_t end = mats[i]->mem.offset + mats[i]->panel_bytes * (rows / YK_TILE_ROWS);
            if (mats[next]->mem.handle != mats[i]->mem.handle || mats[next]->mem.offset != end)
                break;
            rows += ws[next]->n_rows;
        }
        YK_TRY(yk_lane_multiply(r, &(yk_lane_product){.w = ws[i],
                                                      .mat = mats[i],
                                                      .x = l->norm,
                                                      .y = yk_mem_at(l->qkv, row * sizeof(float)),
                                                      .q8 = &l->q8,
                                                      .n_rows = rows,
                                                      .n = r->n,
                                                      .x_cols = d->n_embd,
                                                      .x_stride = d->n_in,
                                                      .y_stride = d->n_qkv}));
        row += rows;
    }
    return YK_OK;
}

/* The most splits of attention that a token of the step has. */
static uint32_t splits(const yk_lane_run *r, uint32_t window)
{
    uint32_t most = 1;
    for (uint32_t t = 0; t < r->n; t++) {
        const uint32_t n = yk_k_attention_splits(r->step->pos[t], window, r->e->model->hp.head_dim);
        most = n > most ? n : most;
    }
    return most;
}

/* From q, k and v to the heads' values in l->att, and rounded where o wants them so. One launch when the tokens are of different sequences. */
static yk_status heads(yk_lane_run *r, uint32_t layer, const yk_layer_place *pl)
{
    yk_gpulane *l = r->l;
    const yk_model *m = r->e->model;
    const yk_dims *d = &r->e->d;
    const bool round = yk_is_quantised(&m->layers[layer].o), whole = m->hp.head_dim % 32 == 0;
    const yk_k_rope_kv rope = {.qkv = l->qkv,
                               .q_b = pl->q_b,
                               .k_b = pl->k_b,
                               .v_b = pl->v_b,
                               .q_norm = pl->q_norm,
                               .k_norm = pl->k_norm,
                               .cs = l->rope_cs,
                               .pos = l->pos,
                               .seq = l->seq,
                               .q_out = l->q,
                               .kv = kv_of(r, pl),
                               .n = r->n,
                               .qkv_stride = d->n_qkv,
                               .q_stride = d->n_q,
                               .n_heads = m->hp.n_heads,
                               .n_kv_heads = m->hp.n_kv_heads,
                               .head_dim = m->hp.head_dim,
                               .n_rot = m->hp.n_rot,
                               .eps = m->hp.norm_eps,
                               .pairing = m->arch->rope,
                               .full_norm = m->arch->qk_norm == YK_QK_NORM_FULL};
    const uint32_t window = yk_lane_window(r, layer), mean = r->step->pos[r->n - 1] + 1;
    const float scale = 1.0f / sqrtf((float)m->hp.head_dim);
    if (r->step->n_runs == r->n) {
        const yk_k_attend a = {.rope = rope,
                               .sinks = pl->sinks,
                               .out = l->att,
                               .q8 = round && whole ? l->o_q8 : no_q8,
                               .part = l->att_part,
                               .arrived = l->att_arrived,
                               .n_splits = splits(r, window),
                               .out_stride = d->n_q,
                               .window = window,
                               .mean_positions = mean,
                               .scale = scale};
        YK_LAUNCH("attend", yk_k_call_attend, &a);
    } else {
        const yk_k_attention a = {.q = l->q,
                                  .pos = l->pos,
                                  .seq = l->seq,
                                  .sinks = pl->sinks,
                                  .tiles = l->tiles,
                                  .out = l->att,
                                  .kv = rope.kv,
                                  .n = r->n,
                                  .n_tiles = l->n_tiles,
                                  .q_stride = d->n_q,
                                  .out_stride = d->n_q,
                                  .n_heads = m->hp.n_heads,
                                  .n_kv_heads = m->hp.n_kv_heads,
                                  .head_dim = m->hp.head_dim,
                                  .window = window,
                                  .mean_positions = mean,
                                  .scale = scale};
        YK_LAUNCH("rope_kv", yk_k_call_rope_kv, &rope);
        YK_LAUNCH("attention", yk_k_call_attention, &a);
    }
    if (round && (r->step->n_runs != r->n || !whole)) {
        const yk_k_quantise q = {.x = l->att, .q8 = l->o_q8, .n = r->n, .n_cols = d->n_q, .x_stride = d->n_q};
        YK_LAUNCH("quantise", yk_k_call_quantise, &q);
    }
    return YK_OK;
}

yk_status yk_lane_attend(yk_lane_run *r, uint32_t layer, const yk_layer_place *pl, bool ffn_q8)
{
    yk_gpulane *l = r->l;
    const yk_dims *d = &r->e->d;
    YK_TRY(qkv(r, layer, pl));
    if (!r->e->places[layer].attn_dev) {
        YK_GPU(l->t->event_wait(l->compute, l->ev[YK_EV_KV_FREE]), "an event");
        if (l->n_kv_list)
            YK_GPU(l->t->event_wait(l->compute, l->ev[YK_EV_KV_UP]), "an event");
    }
    YK_TRY(heads(r, layer, pl));
    YK_TRY(yk_lane_multiply(r, &(yk_lane_product){.w = &r->e->model->layers[layer].o,
                                                  .mat = &pl->o,
                                                  .x = l->att,
                                                  .y = l->y_attn,
                                                  .bias = pl->o_b,
                                                  .q8 = &l->o_q8,
                                                  .n = r->n,
                                                  .x_cols = d->n_q,
                                                  .x_stride = d->n_q,
                                                  .y_stride = d->n_embd}));
    return add_norm(r, l->y_attn, (yk_gpu_mem){0}, 1, pl->ffn_norm, pl->ffn_norm_b, ffn_q8);
}

/* ---- experts ---------------------------------------------------------------------------------------------------------------------------- */

uint32_t yk_lane_used(const yk_engine *e, uint32_t layer)
{
    return e->model->hp.n_used + (e->model->layers[layer].sh_gate.data ? 1 : 0);
}

yk_status yk_lane_route(yk_lane_run *r, uint32_t layer, const yk_layer_place *pl)
{
    yk_gpulane *l = r->l;
    const yk_model *m = r->e->model;
    const yk_layer *w = &m->layers[layer];
    const uint32_t n_experts = w->router.n_rows, stride = n_experts + 1;
    const yk_k_rowmat mat = {.w = pl->router,
                             .w2 = pl->sh_router,
                             .x = l->norm,
                             .bias = pl->router_b,
                             .y = l->router,
                             .n = r->n,
                             .n_rows = n_experts,
                             .n_cols = r->e->d.n_embd,
                             .x_stride = r->e->d.n_in,
                             .y_stride = stride,
                             .type = w->router.type,
                             .type2 = w->sh_router.type};
    const yk_k_route rt = {.logits = l->router,
                           .ids = l->ids,
                           .weights = l->id_weight,
                           .n = r->n,
                           .n_experts = n_experts,
                           .k = m->hp.n_used,
                           .stride = stride,
                           .kind = m->arch->router,
                           .renorm = m->arch->router_renorm,
                           .shared = w->sh_gate.data,
                           .shared_gate = w->sh_router.data};
    YK_LAUNCH("rowmat", yk_k_call_rowmat, &mat);
    YK_LAUNCH("route", yk_k_call_route, &rt);
    return YK_OK;
}

/* ---- FFN -------------------------------------------------------------------------------------------------------------------------------- */

static yk_gpu_mem bias_at(yk_gpu_mem b, size_t index)
{
    return b.handle ? yk_mem_at(b, index * sizeof(float)) : b;
}

/* Bytes of a tile as wide as a row of the weights' columns has it. */
static uint32_t tile_of(const yk_weight *w)
{
    return yk_tile_bytes(w->type, w->n_cols < YK_TILE_COLS ? w->n_cols : YK_TILE_COLS);
}

/* Gate and up of a slab to l->gate: in one product, 16 rows of each in turn, where they are of a type; else up behind gate. true: one. */
static yk_status gate_up(yk_lane_run *r, const yk_lane_part *w, const yk_slab *s, yk_gpu_mem mem, bool *one)
{
    yk_gpulane *l = r->l;
    const yk_engine *e = r->e;
    const uint32_t d = e->d.n_embd, cols = s->unit * s->n_units, pairs = yk_ceil_div(s->unit, YK_TILE_ROWS);
    *one = w->gate->type == w->up->type;
    const uint32_t out = *one ? 2 * YK_TILE_ROWS * pairs * s->n_units : cols;
    yk_k_matvec m = {.type = w->gate->type,
                     .w = mem,
                     .x = l->norm,
                     .q8 = l->q8,
                     .rows = w->listed ? yk_mem_at(l->slot_token, w->slot0 * 4ull) : (yk_gpu_mem){0},
                     .y = l->gate,
                     .n = w->n,
                     .n_rows = out,
                     .n_cols = d,
                     .x_stride = yk_is_quantised(w->gate) ? yk_ceil_div(d, 32) : e->d.n_in,
                     .y_stride = out,
                     .panel_bytes = (uint32_t)(*one ? s->up_at : s->pair_bytes),
                     .tile_bytes = tile_of(w->gate),
                     .group_panels = s->n_units > 1 ? pairs * (*one ? 2 : 1) : 0,
                     .group_bytes = (uint32_t)s->unit_bytes};
    YK_LAUNCH(yk_k_matvec_name(m.type, m.n), yk_k_call_matvec, &m);
    if (*one)
        return YK_OK;
    m.type = w->up->type, m.w = yk_mem_at(mem, s->up_at), m.y = yk_mem_at(l->gate, (uint64_t)w->n * cols * sizeof(float));
    m.x_stride = yk_is_quantised(w->up) ? yk_ceil_div(d, 32) : e->d.n_in;
    m.tile_bytes = tile_of(w->up);
    YK_LAUNCH(yk_k_matvec_name(m.type, m.n), yk_k_call_matvec, &m);
    return YK_OK;
}

yk_status yk_lane_slab(yk_lane_run *r, const yk_lane_part *w, const yk_slab *s, yk_gpu_mem mem, bool add)
{
    yk_gpulane *l = r->l;
    const yk_engine *e = r->e;
    const yk_layer_place *pl = &e->places[w->layer];
    const yk_gpu_mem none = {0};
    const uint32_t cols = s->unit * s->n_units, d = e->d.n_embd;
    const bool expert = w->gate == &e->model->layers[w->layer].gate, round = yk_is_quantised(w->down);
    bool one;
    YK_TRY(gate_up(r, w, s, mem, &one));
    const yk_k_glu g = {.gate = l->gate,
                        .up = one ? none : yk_mem_at(l->gate, (uint64_t)w->n * cols * sizeof(float)),
                        .gate_b = expert ? bias_at(pl->gate_b, (size_t)w->mat * w->gate->n_rows + s->u0) : none,
                        .up_b = expert ? bias_at(pl->up_b, (size_t)w->mat * w->up->n_rows + s->u0) : none,
                        .out = round ? none : l->h,
                        .q8 = round ? l->h_q8 : no_q8,
                        .n = w->n,
                        .n_cols = cols,
                        .gate_stride = one ? 2 * YK_TILE_ROWS * yk_ceil_div(s->unit, YK_TILE_ROWS) * s->n_units : cols,
                        .up_stride = cols,
                        .out_stride = cols,
                        .kind = e->model->arch->glu};
    YK_LAUNCH("glu", yk_k_call_glu, &g);
    const yk_k_matvec down = {.type = w->down->type,
                              .w = yk_mem_at(mem, s->down_at),
                              .x = l->h,
                              .q8 = l->h_q8,
                              .bias = expert && s->u0 == 0 ? bias_at(pl->down_b, (size_t)w->mat * w->down->n_rows) : none,
                              .weights = w->listed ? yk_mem_at(l->slot_weight, w->slot0 * 4ull) : none,
                              .y = l->y_dev,
                              .y_rows = w->listed ? yk_mem_at(l->slot_token, w->slot0 * 4ull) : none,
                              .n = w->n,
                              .n_rows = d,
                              .n_cols = cols,
                              .x_stride = round ? yk_ceil_div(cols, 32) : cols,
                              .y_stride = d,
                              .panel_bytes = yk_tile_bytes(w->down->type, s->unit),
                              .tile_bytes = (uint32_t)s->unit_bytes,
                              .add = add};
    YK_LAUNCH(yk_k_matvec_name(down.type, down.n), yk_k_call_matvec, &down);
    return YK_OK;
}

yk_status yk_lane_list(yk_lane_run *r, uint32_t layer)
{
    yk_gpulane *l = r->l;
    const yk_engine *e = r->e;
    const yk_layer *w = &e->model->layers[layer];
    const yk_layer_place *pl = &e->places[layer];
    const uint32_t used = yk_lane_used(e, layer), d = e->d.n_embd, width = pl->list.width;
    const uint32_t pairs = 2 * YK_TILE_ROWS * yk_ceil_div(width, YK_TILE_ROWS);
    const bool round = yk_is_quantised(&w->down);
    const yk_k_list in = {.type = w->gate.type,
                          .w = pl->list.base,
                          .parts = pl->list.parts,
                          .ids = l->ids,
                          .x = l->norm,
                          .q8 = l->q8,
                          .y = l->gate,
                          .n = r->n,
                          .used = used,
                          .n_rows = pairs,
                          .n_cols = d,
                          .x_stride = yk_is_quantised(&w->gate) ? yk_ceil_div(d, 32) : e->d.n_in,
                          .y_stride = pairs,
                          .panel_bytes = (uint32_t)yk_panel_bytes(w->gate.type, d),
                          .tile_bytes = tile_of(&w->gate)};
    const yk_k_glu g = {.gate = l->gate,
                        .gate_b = pl->gate_b,
                        .up_b = pl->up_b,
                        .ids = l->ids,
                        .parts = pl->list.parts,
                        .out = round ? (yk_gpu_mem){0} : l->h,
                        .q8 = round ? l->h_q8 : no_q8,
                        .n = r->n * used,
                        .n_cols = width,
                        .gate_stride = pairs,
                        .out_stride = width,
                        .kind = e->model->arch->glu};
    const yk_k_list out = {.type = w->down.type,
                           .w = pl->list.base,
                           .parts = pl->list.parts,
                           .ids = l->ids,
                           .x = l->h,
                           .q8 = l->h_q8,
                           .bias = pl->down_b,
                           .weights = l->id_weight,
                           .y = l->y_dev,
                           .n = r->n,
                           .used = used,
                           .n_rows = d,
                           .n_cols = width,
                           .x_stride = round ? yk_ceil_div(width, 32) : width,
                           .y_stride = d,
                           .down = true};
    yk_lane_mark *mk =
        yk_lane_begin(r, l->compute, (yk_lane_task){YK_TRACE_GPU, "ffn GG", yk_k_list_name(w->gate.type), layer});
    YK_LAUNCH(yk_k_list_name(in.type), yk_k_call_list, &in);
    YK_LAUNCH("glu", yk_k_call_glu, &g);
    YK_LAUNCH(yk_k_list_name(out.type), yk_k_call_list, &out);
    yk_lane_end(r, l->compute, mk, 0);
    l->y_pending = used;
    return YK_OK;
}
