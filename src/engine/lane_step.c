/* One step on both lanes. */
#include <math.h>
#include <sched.h>

#include "cpu/pack.h"
#include "src/engine/lane.h"
#include "src/engine/stages.h"

typedef struct run {
    yk_gpulane *l;
    yk_step *step;
    yk_engine *e;
    yk_error *err;
    uint32_t n; /* tokens */
} run;

static const yk_k_q8 no_q8;

#define GPU(call, what) YK_TRY(yk_gpulane_check(r->l, (call), what, r->err))

/* Launch a call that `fill` has filled. */
#define LAUNCH(kernel_name, fill, ...)                                                                                         \
    do {                                                                                                                       \
        yk_gpu_kernel *kernel_;                                                                                                \
        yk_k_call call_;                                                                                                       \
        YK_TRY(yk_gpulane_kernel(r->l, kernel_name, &kernel_, r->err));                                                        \
        fill(&call_, kernel_, __VA_ARGS__);                                                                                    \
        r->l->launched_bytes += call_.launch.cost_bytes;                                                                       \
        GPU(r->l->t->launch(r->l->compute, &call_.launch), kernel_name);                                                       \
    } while (0)

static yk_status after(run *r, yk_gpu_stream *first, yk_gpu_stream *then, enum yk_gpulane_event ev)
{
    GPU(r->l->t->event_record(first, r->l->ev[ev]), "an event");
    GPU(r->l->t->event_wait(then, r->l->ev[ev]), "an event");
    return YK_OK;
}

/* Signal the host from `stream`. */
static yk_status signal_host(run *r, yk_gpu_stream *stream)
{
    GPU(r->l->t->box_signal(stream, YK_BOX_HOST_GO, ++r->l->box[YK_BOX_HOST_GO]), "a mailbox");
    GPU(r->l->t->stream_flush(stream), "a stream");
    GPU(r->l->t->stream_flush(r->l->compute), "a stream");
    return YK_OK;
}

/* Wait on the host for a signal, as numbered by box[YK_BOX_HOST_GO] behind signal_host. */
static yk_status wait_device(run *r, uint32_t go)
{
    for (uint32_t value = 0, spins = 0;; spins++) {
        GPU(r->l->t->box_value(r->l->gpu, YK_BOX_HOST_GO, &value), "a mailbox");
        if (value >= go)
            return YK_OK;
        if (spins > 50)
            sched_yield();
    }
}

/* ---- trace ------------------------------------------------------------------------------------------------------------------------------- */

typedef struct task {
    enum yk_trace_lane lane;
    const char *op, *kernel;
    uint32_t layer;
} task;

enum { NO_LAYER = UINT32_MAX };

/* Begin of a task on a stream, behind all that it waits for; NULL without a trace. */
static yk_lane_mark *mark(run *r, yk_gpu_stream *stream, task t)
{
    yk_gpulane *l = r->l;
    if (!l->marks)
        return NULL;
    yk_lane_mark *m = &l->marks[l->n_marks];
    if (l->n_marks == YK_LANE_MARKS || (!m->from && l->t->event_open(l->gpu, &m->from) != YK_OK) ||
        (!m->to && l->t->event_open(l->gpu, &m->to) != YK_OK) || l->t->event_record(stream, m->from) != YK_OK) {
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
    return m;
}

/* Its end; bytes 0: what the launches in between read. */
static void mark_end(run *r, yk_gpu_stream *stream, yk_lane_mark *m, uint64_t bytes)
{
    if (!m)
        return;
    m->rec.bytes = bytes ? bytes : r->l->launched_bytes - m->rec.bytes;
    m->whole = r->l->t->event_record(stream, m->to) == YK_OK;
}

/* The step's tasks to the trace; its streams have run dry. */
static void collect_marks(run *r)
{
    yk_gpulane *l = r->l;
    for (uint32_t i = 0; i < l->n_marks; i++) {
        yk_lane_mark *m = &l->marks[i];
        uint64_t from, to;
        if (m->whole && l->t->event_time(m->from, &from) == YK_OK && l->t->event_time(m->to, &to) == YK_OK) {
            m->rec.start_ns = from;
            m->rec.dur_ns = to > from ? to - from : 0;
            yk_trace_add(r->e->trace, &m->rec);
        } else {
            yk_trace_lost(r->e->trace, 1);
        }
    }
    l->n_marks = 0;
}

/* ---- copies ------------------------------------------------------------------------------------------------------------------------------ */

typedef struct copy {
    const char *op; /* for the trace */
    uint32_t layer;
    uint64_t bytes;
} copy;

static yk_status copy_on(run *r, yk_gpu_stream *stream, copy c, yk_gpu_mem to, const void *from)
{
    if (!c.bytes)
        return YK_OK;
    yk_lane_mark *m = mark(r, stream, (task){YK_TRACE_UP, c.op, "copy", c.layer});
    GPU(r->l->t->copy_to_device(stream, to, from, c.bytes), "a copy to the device");
    mark_end(r, stream, m, c.bytes);
    return YK_OK;
}

static yk_status copy_up(run *r, copy c, yk_gpu_mem to, const void *from)
{
    return copy_on(r, r->l->up, c, to, from);
}

static yk_status copy_down(run *r, copy c, void *to, yk_gpu_mem from)
{
    yk_lane_mark *m = mark(r, r->l->down, (task){YK_TRACE_DOWN, c.op, "copy", c.layer});
    GPU(r->l->t->copy_to_host(r->l->down, to, from, c.bytes), "a copy to the host");
    mark_end(r, r->l->down, m, c.bytes);
    return YK_OK;
}

/* ---- products --------------------------------------------------------------------------------------------------------------------------- */

typedef struct product {
    const yk_weight *w;
    const yk_dev_mat *mat;
    yk_gpu_mem x, y, bias;
    const yk_k_q8 *q8;
    uint32_t n, x_cols, x_stride, y_stride; /* x_cols: columns of a rounded row */
} product;

static yk_status multiply(run *r, const product *p)
{
    const yk_k_matvec m = {.type = p->w->type,
                           .w = p->mat->mem,
                           .x = p->x,
                           .q8 = *p->q8,
                           .bias = p->bias,
                           .y = p->y,
                           .n = p->n,
                           .n_rows = p->w->n_rows,
                           .n_cols = p->w->n_cols,
                           .x_stride = yk_is_quantised(p->w) ? yk_ceil_div(p->x_cols, 32) : p->x_stride,
                           .y_stride = p->y_stride,
                           .panel_bytes = (uint32_t)p->mat->panel_bytes,
                           .tile_bytes = yk_tile_bytes(p->w->type, p->w->n_cols < YK_TILE_COLS ? p->w->n_cols : YK_TILE_COLS)};
    LAUNCH(yk_k_matvec_name(p->w->type, p->n), yk_k_call_matvec, &m);
    return YK_OK;
}

/* ---- attention on the device ---------------------------------------------------------------------------------------------------------- */

/* x += pending sums; norm (when w is there). */
static yk_status add_norm(run *r, yk_gpu_mem y, yk_gpu_mem y2, yk_gpu_mem w, yk_gpu_mem b, bool q8)
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
                             .eps = r->e->model->hp.norm_eps};
    LAUNCH("add_norm", yk_k_call_add_norm, &a);
    return YK_OK;
}

static yk_status take_pending(run *r, yk_gpu_mem w, yk_gpu_mem b, bool q8)
{
    const yk_gpu_mem none = {0};
    yk_gpu_mem y = r->l->y_pending ? r->l->y_dev : none, y2 = r->l->y_cpu_pending ? r->l->y_cpu : none;
    if (!y.handle) {
        y = y2;
        y2 = none;
    }
    r->l->y_pending = r->l->y_cpu_pending = false;
    if (!y.handle && !w.handle)
        return YK_OK;
    return add_norm(r, y, y2, w, b, q8);
}

static yk_k_kv kv_of(const run *r, const yk_layer_place *pl)
{
    return (yk_k_kv){.kv = pl->kv,
                     .table = r->l->table,
                     .block_bytes = (uint32_t)(2 * r->e->d.kv_half),
                     .v_bytes = (uint32_t)r->e->d.kv_half,
                     .table_stride = r->e->d.max_blocks,
                     .f16 = r->e->kv_f16};
}

/* Positions that attention of a layer looks back; 0: all. */
static uint32_t window_of(const run *r, uint32_t layer)
{
    const yk_model *m = r->e->model;
    return m->arch->flags & YK_ARCH_WINDOW_EVEN && layer % 2 == 0 ? m->hp.window : 0;
}

static yk_status attend(run *r, uint32_t layer, const yk_layer_place *pl)
{
    yk_gpulane *l = r->l;
    const yk_model *m = r->e->model;
    const yk_dims *d = &r->e->d;
    const yk_layer *w = &m->layers[layer];
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
    const yk_k_attention att = {.q = l->q,
                                .pos = l->pos,
                                .seq = l->seq,
                                .sinks = pl->sinks,
                                .out = l->att,
                                .kv = rope.kv,
                                .n = r->n,
                                .n_splits = 1,
                                .q_stride = d->n_q,
                                .out_stride = d->n_q,
                                .n_heads = m->hp.n_heads,
                                .n_kv_heads = m->hp.n_kv_heads,
                                .head_dim = m->hp.head_dim,
                                .window = window_of(r, layer),
                                .mean_positions = r->step->pos[r->n - 1] + 1,
                                .scale = 1.0f / sqrtf((float)m->hp.head_dim)};
    product p = {.w = &w->q,
                 .mat = &pl->q,
                 .x = l->norm,
                 .y = l->qkv,
                 .q8 = &l->q8,
                 .n = r->n,
                 .x_cols = d->n_embd,
                 .x_stride = d->n_in,
                 .y_stride = d->n_qkv};
    YK_TRY(multiply(r, &p));
    p.w = &w->k, p.mat = &pl->k, p.y = yk_mem_at(l->qkv, d->n_q * sizeof(float));
    YK_TRY(multiply(r, &p));
    p.w = &w->v, p.mat = &pl->v, p.y = yk_mem_at(l->qkv, ((size_t)d->n_q + d->n_kv) * sizeof(float));
    YK_TRY(multiply(r, &p));
    if (!r->e->places[layer].attn_dev) {
        GPU(l->t->event_wait(l->compute, l->ev[YK_EV_KV_FREE]), "an event");
        if (l->n_kv_list)
            GPU(l->t->event_wait(l->compute, l->ev[YK_EV_KV_UP]), "an event");
    }
    LAUNCH("rope_kv", yk_k_call_rope_kv, &rope);
    LAUNCH("attention", yk_k_call_attention, &att);
    if (yk_is_quantised(&w->o)) {
        const yk_k_quantise q = {.x = l->att, .q8 = l->o_q8, .n = r->n, .n_cols = d->n_q, .x_stride = d->n_q};
        LAUNCH("quantise", yk_k_call_quantise, &q);
    }
    p = (product){.w = &w->o,
                  .mat = &pl->o,
                  .x = l->att,
                  .y = l->y_attn,
                  .bias = pl->o_b,
                  .q8 = &l->o_q8,
                  .n = r->n,
                  .x_cols = d->n_q,
                  .x_stride = d->n_q,
                  .y_stride = d->n_embd};
    return multiply(r, &p);
}

static yk_status route(run *r, uint32_t layer, const yk_layer_place *pl)
{
    yk_gpulane *l = r->l;
    const yk_model *m = r->e->model;
    const yk_layer *w = &m->layers[layer];
    const uint32_t n_experts = w->router.n_rows;
    yk_k_rowmat mat = {.w = pl->router,
                       .x = l->norm,
                       .bias = pl->router_b,
                       .y = l->router,
                       .n = r->n,
                       .n_rows = n_experts,
                       .n_cols = r->e->d.n_embd,
                       .x_stride = r->e->d.n_in,
                       .y_stride = n_experts,
                       .type = w->router.type};
    const yk_k_route rt = {.logits = l->router,
                           .ids = l->ids,
                           .weights = l->id_weight,
                           .n = r->n,
                           .n_experts = n_experts,
                           .k = m->hp.n_used,
                           .stride = n_experts,
                           .kind = m->arch->router,
                           .renorm = m->arch->router_renorm};
    LAUNCH("rowmat", yk_k_call_rowmat, &mat);
    LAUNCH("route", yk_k_call_route, &rt);
    if (w->sh_router.data) {
        mat.w = pl->sh_router, mat.bias = (yk_gpu_mem){0}, mat.y = l->sh_weight, mat.n_rows = mat.y_stride = 1;
        mat.type = w->sh_router.type;
        LAUNCH("rowmat", yk_k_call_rowmat, &mat);
        LAUNCH("sigmoid", yk_k_call_sigmoid, l->sh_weight, l->sh_weight, r->n);
    }
    return YK_OK;
}

/* What the host needs of a layer whose attention is on the device. */
static yk_status rows_down(run *r, uint32_t layer)
{
    yk_gpulane *l = r->l;
    yk_engine *e = r->e;
    const yk_layer *w = &e->model->layers[layer];
    const uint32_t k = e->model->hp.n_used;
    const bool cpu = e->places[layer].cpu_part[r->step->bucket];
    if (!w->moe && !cpu)
        return YK_OK;
    YK_TRY(after(r, l->compute, l->down, YK_EV_FFN_IN));
    const size_t row0 = (size_t)r->e->virtual_worker * e->d.n_tokens;
    if (cpu)
        YK_TRY(copy_down(r, (copy){"rows", layer, (uint64_t)r->n * e->d.n_in * sizeof(float)}, e->buf.norm + row0 * e->d.n_in,
                         l->norm));
    if (w->moe) {
        YK_TRY(copy_down(r, (copy){"experts", layer, (uint64_t)r->n * k * 4}, l->host_ids, l->ids));
        YK_TRY(copy_down(r, (copy){"experts", layer, (uint64_t)r->n * k * 4}, l->host_weight, l->id_weight));
        if (w->sh_router.data)
            YK_TRY(copy_down(r, (copy){"experts", layer, (uint64_t)r->n * 4}, l->host_weight + (size_t)e->d.n_tokens * k,
                             l->sh_weight));
    }
    return signal_host(r, l->down);
}

static yk_status take_slot(run *r, const yk_slab *slab, uint32_t layer, uint32_t *slot);
static yk_status kv_down(run *r, uint32_t layer, uint32_t slot);
static yk_status fill_ahead(run *r, uint32_t layer, bool attention);
static yk_status fill_experts_ahead(run *r, uint32_t layer);

/* Everything of a layer up to its FFN, for a layer whose attention is on the device, and what the host needs of it. */
static yk_status enqueue_attention(run *r, uint32_t layer)
{
    yk_gpulane *l = r->l;
    const yk_layer *w = &r->e->model->layers[layer];
    const yk_layer_place *pl = &r->e->places[layer];
    const bool copied = !pl->attn_dev;
    yk_layer_place in_slot;
    uint32_t slot = 0;
    YK_TRY(fill_experts_ahead(r, layer));
    if (copied) {
        YK_TRY(take_slot(r, &pl->attn_copy, layer, &slot));
        in_slot = yk_lane_attn_in(l, layer, slot);
        pl = &in_slot;
    }
    const bool q8 = yk_any_quantised((const yk_weight *const[]){&w->q, &w->k, &w->v}, 3);
    const bool ffn_q8 = yk_any_quantised(
        (const yk_weight *const[]){&w->gate, &w->up, w->moe ? &w->sh_gate : NULL, w->moe ? &w->sh_up : NULL}, 4);
    yk_lane_mark *m = mark(r, l->compute, (task){YK_TRACE_GPU, "attention", yk_k_matvec_name(w->q.type, r->n), layer});
    YK_TRY(take_pending(r, pl->attn_norm, pl->attn_norm_b, q8));
    YK_TRY(attend(r, layer, pl));
    YK_TRY(add_norm(r, l->y_attn, (yk_gpu_mem){0}, pl->ffn_norm, pl->ffn_norm_b, ffn_q8));
    mark_end(r, l->compute, m, 0);
    if (w->moe) {
        m = mark(r, l->compute, (task){YK_TRACE_GPU, "route", "route", layer});
        YK_TRY(route(r, layer, pl));
        mark_end(r, l->compute, m, 0);
    }
    if (copied)
        GPU(l->t->event_record(l->compute, l->ev[YK_EV_FREE + slot]), "an event");
    YK_TRY(rows_down(r, layer));
    if (!copied)
        return YK_OK;
    YK_TRY(kv_down(r, layer, slot));
    /* The slots are free for the next layer at once when this one's FFN needs none. */
    const bool next = !pl->copied_part[r->step->bucket];
    return fill_ahead(r, layer + next, next);
}

/* What the device sent becomes the result of the stages that would have computed it. */
static void adopt_device_rows(run *r, uint32_t layer)
{
    yk_gpulane *l = r->l;
    yk_engine *e = r->e;
    const yk_layer *w = &e->model->layers[layer];
    const uint32_t k = e->model->hp.n_used, base = layer * YK_S_PER_LAYER;
    for (uint32_t t = 0; t < r->n; t++) {
        const size_t row = (size_t)r->e->virtual_worker * e->d.n_tokens + t;
        if (e->places[layer].cpu_part[r->step->bucket])
            e->ops->quantise(e->buf.norm + row * e->d.n_in, e->d.n_embd, &e->buf.q8, (uint32_t)row);
        if (!w->moe)
            continue;
        for (uint32_t j = 0; j < k; j++) {
            e->buf.ids[row * k + j] = l->cpu_rate > 0 ? (uint32_t)((e->n_steps_done + layer + t * k + j) % w->gate.n_mats)
                                                      : l->host_ids[(size_t)t * k + j];
            e->buf.id_weight[row * (k + 1) + j] = l->host_weight[(size_t)t * k + j];
        }
        e->buf.id_weight[row * (k + 1) + k] = w->sh_router.data ? l->host_weight[(size_t)e->d.n_tokens * k + t] : 1.0f;
    }
    for (uint32_t s = 0; s < yk_ceil_div(r->n, YK_TOKEN_SLICE); s++) {
        yk_pool_publish(&r->step->job, base + YK_S_FFN_IN, s, r->e->virtual_worker);
        if (w->moe)
            yk_pool_publish(&r->step->job, base + YK_S_ROUTE, s, r->e->virtual_worker);
    }
}

/* ---- FFN on the device ------------------------------------------------------------------------------------------------------------------ */

/* K and V of committed positions to the scratch, once the layer before that used it has done with it. */
static yk_status kv_up(run *r, uint32_t layer)
{
    yk_gpulane *l = r->l;
    const yk_engine *e = r->e;
    const uint64_t block = 2 * e->d.kv_half;
    uint64_t bytes = 0;
    if (!l->n_kv_list)
        return YK_OK;
    GPU(l->t->event_wait(l->fill_up, l->ev[YK_EV_KV_FREE]), "an event");
    yk_lane_mark *m = mark(r, l->fill_up, (task){YK_TRACE_UP, "kv", "copy", layer});
    for (uint32_t i = 0; i < l->n_kv_list; i++) {
        const yk_lane_kv *kv = &l->kv_list[i];
        if (!yk_lane_kv_read(kv, window_of(r, layer)))
            continue;
        GPU(l->t->copy_to_device(l->fill_up, yk_mem_at(l->kv_scratch, kv->to * block), yk_kv_layer(&e->kv, kv->from, layer),
                                 block),
            "a copy to the device");
        bytes += block;
    }
    mark_end(r, l->fill_up, m, bytes);
    GPU(l->t->event_record(l->fill_up, l->ev[YK_EV_KV_UP]), "an event");
    GPU(l->t->stream_flush(l->fill_up), "a stream");
    return YK_OK;
}

/* K and V of the blocks with new positions to where the virtual worker stages them, when the attention in `slot` is done. */
static yk_status kv_down(run *r, uint32_t layer, uint32_t slot)
{
    yk_gpulane *l = r->l;
    const yk_step *s = r->step;
    const uint64_t block = 2 * r->e->d.kv_half;
    GPU(l->t->event_wait(l->down, l->ev[YK_EV_FREE + slot]), "an event");
    yk_lane_mark *m = mark(r, l->down, (task){YK_TRACE_DOWN, "kv", "copy", layer});
    for (uint32_t i = 0, n; i < s->n_kv_slices; i += n) {
        const yk_kv_slice *ks = &s->kv_slices[i];
        const uint32_t first = s->runs[ks->run].seq->blocks[ks->block];
        for (n = 1; i + n < s->n_kv_slices; n++) /* blocks that are neighbours on both sides */
            if (s->runs[ks[n].run].seq->blocks[ks[n].block] != first + n)
                break;
        GPU(l->t->copy_to_host(l->down, yk_staged_kv(r->e, r->e->virtual_worker, layer, i),
                               yk_mem_at(l->kv_scratch, first * block), n * block),
            "a copy to the host");
    }
    mark_end(r, l->down, m, s->n_kv_slices * block);
    GPU(l->t->event_record(l->down, l->ev[YK_EV_KV_FREE]), "an event");
    GPU(l->t->stream_flush(l->compute), "a stream");
    GPU(l->t->stream_flush(l->down), "a stream");
    return YK_OK;
}

/* A CG slab, or attention and its KV, into the next staging slot, when what used that slot before is done. */
static yk_status fill_slot(run *r, const yk_slab *slab, uint32_t layer, uint32_t *slot)
{
    yk_gpulane *l = r->l;
    const bool attention = slab == &r->e->places[layer].attn_copy;
    *slot = l->next_slot;
    l->next_slot = (l->next_slot + 1) % YK_LANE_SLOTS;
    GPU(l->t->event_wait(l->fill_up, l->ev[YK_EV_FREE + *slot]), "an event");
    YK_TRY(copy_on(r, l->fill_up, (copy){attention ? "attn" : "weights", layer, slab->unit_bytes * slab->n_units},
                   l->slot[*slot], slab->host));
    GPU(l->t->event_record(l->fill_up, l->ev[YK_EV_FILLED + *slot]), "an event");
    GPU(l->t->stream_flush(l->fill_up), "a stream");
    return attention ? kv_up(r, layer) : YK_OK;
}

static yk_status fill_one_ahead(run *r, const yk_slab *slab, uint32_t layer)
{
    yk_gpulane *l = r->l;
    for (uint32_t i = 0; i < l->n_ahead; i++)
        if (l->ahead[i].slab == slab)
            return YK_OK;
    YK_TRY(fill_slot(r, slab, layer, &l->ahead[l->n_ahead].slot));
    l->ahead[l->n_ahead++].slab = slab;
    return YK_OK;
}

/* Start the copies of a layer that are certain to be needed first: its attention (unless that has been enqueued), and the CG
 * slabs of a dense layer. All launches that use slots must have been enqueued, those of slabs ahead excepted. */
static yk_status fill_ahead(run *r, uint32_t layer, bool attention)
{
    yk_gpulane *l = r->l;
    const yk_engine *e = r->e;
    if (layer >= e->model->hp.n_layers)
        return YK_OK;
    const yk_layer_place *pl = &e->places[layer];
    if (attention && l->n_ahead < YK_LANE_SLOTS && !pl->attn_dev && yk_attn_on_device(r->step, layer))
        YK_TRY(fill_one_ahead(r, &pl->attn_copy, layer));
    const yk_part_place *pp = &pl->parts[0];
    const uint32_t n = e->model->layers[layer].moe ? 0 : pp->n_slabs[r->step->bucket];
    for (uint32_t s = 0; s < n && l->n_ahead < YK_LANE_SLOTS; s++)
        if (pp->slabs[r->step->bucket][s].host)
            YK_TRY(fill_one_ahead(r, &pp->slabs[r->step->bucket][s], layer));
    return YK_OK;
}

/* With the layer begin the copies of its first CG slabs, where the plan says so (yk_plan_ahead). What the device needs for the
 * layer before must have been enqueued. */
static yk_status fill_experts_ahead(run *r, uint32_t layer)
{
    yk_gpulane *l = r->l;
    const yk_bucket b = r->step->bucket;
    const yk_layer_place *pl = &r->e->places[layer];
    if (!r->e->model->layers[layer].moe || b == YK_B_PREFILL || !pl->attn.ahead[b] || !pl->copied_part[b])
        return YK_OK;
    YK_TRY(after(r, l->compute, l->fill_up, YK_EV_LAYER));
    GPU(l->t->stream_flush(l->compute), "a stream");
    for (uint32_t p = 0; p < r->e->d.n_parts; p++)
        for (uint32_t s = 0; s < pl->parts[p].n_slabs[b] && l->n_ahead < YK_LANE_SLOTS; s++)
            if (pl->parts[p].slabs[b][s].host)
                YK_TRY(fill_one_ahead(r, &pl->parts[p].slabs[b][s], layer));
    return YK_OK;
}

/* The slot that holds (or will hold) a slab; compute waits for it. Slabs ahead that come before it in order have not been chosen:
 * nothing reads their slots. */
static yk_status take_slot(run *r, const yk_slab *slab, uint32_t layer, uint32_t *slot)
{
    yk_gpulane *l = r->l;
    uint32_t i = 0;
    while (i < l->n_ahead && l->ahead[i].slab != slab)
        i++;
    if (i < l->n_ahead) {
        *slot = l->ahead[i++].slot;
        l->n_ahead -= i;
        memmove(l->ahead, l->ahead + i, l->n_ahead * sizeof *l->ahead);
    } else {
        YK_TRY(fill_slot(r, slab, layer, slot));
    }
    GPU(l->t->event_wait(l->compute, l->ev[YK_EV_FILLED + *slot]), "an event");
    return YK_OK;
}

typedef struct part_work {
    uint32_t layer, part, slot0, n; /* slots and tokens */
    const yk_weight *gate, *up, *down;
    uint32_t mat;
    bool listed; /* tokens by list (experts), else all in order */
} part_work;

static yk_gpu_mem bias_at(yk_gpu_mem b, size_t index)
{
    return b.handle ? yk_mem_at(b, index * sizeof(float)) : b;
}

static yk_status run_slab(run *r, const part_work *w, const yk_slab *s)
{
    yk_gpulane *l = r->l;
    const yk_engine *e = r->e;
    const yk_layer_place *pl = &e->places[w->layer];
    const yk_gpu_mem none = {0};
    const uint32_t cols = s->unit * s->n_units, d = e->d.n_embd;
    yk_gpu_mem mem = s->dev;
    uint32_t slot = 0;
    if (s->host) {
        YK_TRY(take_slot(r, s, w->layer, &slot));
        mem = l->slot[slot];
    }
    yk_lane_mark *mk = mark(
        r, l->compute, (task){YK_TRACE_GPU, s->host ? "ffn CG" : "ffn GG", yk_k_matvec_name(w->gate->type, w->n), w->layer});
    const bool expert = w->gate == &e->model->layers[w->layer].gate;
    yk_k_matvec m = {.type = w->gate->type,
                     .w = mem,
                     .x = l->norm,
                     .q8 = l->q8,
                     .rows = w->listed ? yk_mem_at(l->slot_token, w->slot0 * 4ull) : none,
                     .bias = expert ? bias_at(pl->gate_b, (size_t)w->mat * w->gate->n_rows + s->u0) : none,
                     .y = l->gate,
                     .n = w->n,
                     .n_rows = cols,
                     .n_cols = d,
                     .x_stride = yk_is_quantised(w->gate) ? yk_ceil_div(d, 32) : e->d.n_in,
                     .y_stride = cols,
                     .panel_bytes = (uint32_t)s->pair_bytes,
                     .tile_bytes = yk_tile_bytes(w->gate->type, d < YK_TILE_COLS ? d : YK_TILE_COLS),
                     .group_panels = s->n_units > 1 ? yk_ceil_div(s->unit, YK_TILE_ROWS) : 0,
                     .group_bytes = (uint32_t)s->unit_bytes};
    LAUNCH(yk_k_matvec_name(m.type, m.n), yk_k_call_matvec, &m);
    m.type = w->up->type, m.w = yk_mem_at(mem, s->up_at), m.y = l->ups;
    m.bias = expert ? bias_at(pl->up_b, (size_t)w->mat * w->up->n_rows + s->u0) : none;
    m.x_stride = yk_is_quantised(w->up) ? yk_ceil_div(d, 32) : e->d.n_in;
    m.tile_bytes = yk_tile_bytes(w->up->type, d < YK_TILE_COLS ? d : YK_TILE_COLS);
    LAUNCH(yk_k_matvec_name(m.type, m.n), yk_k_call_matvec, &m);
    const bool round = yk_is_quantised(w->down);
    const yk_k_glu g = {.gate = l->gate,
                        .up = l->ups,
                        .out = l->gate,
                        .q8 = round ? l->h_q8 : no_q8,
                        .n = w->n,
                        .n_cols = cols,
                        .gate_stride = cols,
                        .up_stride = cols,
                        .out_stride = cols,
                        .kind = e->model->arch->glu};
    LAUNCH("glu", yk_k_call_glu, &g);
    const yk_gpu_mem list = w->listed ? yk_mem_at(l->slot_token, w->slot0 * 4ull) : none;
    const yk_k_matvec down = {.type = w->down->type,
                              .w = yk_mem_at(mem, s->down_at),
                              .x = l->gate,
                              .q8 = l->h_q8,
                              .bias = expert && s->u0 == 0 ? bias_at(pl->down_b, (size_t)w->mat * w->down->n_rows) : none,
                              .weights = w->listed ? yk_mem_at(l->slot_weight, w->slot0 * 4ull) : none,
                              .y = l->y_dev,
                              .y_rows = list,
                              .n = w->n,
                              .n_rows = d,
                              .n_cols = cols,
                              .x_stride = round ? yk_ceil_div(cols, 32) : cols,
                              .y_stride = d,
                              .panel_bytes = yk_tile_bytes(w->down->type, s->unit),
                              .tile_bytes = (uint32_t)s->unit_bytes,
                              .add = true};
    LAUNCH(yk_k_matvec_name(down.type, down.n), yk_k_call_matvec, &down);
    mark_end(r, l->compute, mk, 0);
    if (s->host)
        GPU(l->t->event_record(l->compute, l->ev[YK_EV_FREE + slot]), "an event");
    return YK_OK;
}

/* The device's slabs of a layer; its sum goes to y_dev. */
static yk_status enqueue_ffn(run *r, uint32_t layer)
{
    yk_gpulane *l = r->l;
    yk_engine *e = r->e;
    const yk_layer *w = &e->model->layers[layer];
    const yk_bucket b = r->step->bucket;
    const yk_group *g = &r->step->dense;
    if (!e->places[layer].dev_part[b])
        return fill_ahead(r, layer + 1, true);
    GPU(l->t->fill(l->compute, l->y_dev, 0, (uint64_t)r->n * e->d.n_embd * sizeof(float)), "a fill");
    if (w->moe) {
        g = &e->buf.group[yk_stage_owner(&r->step->job, yk_stage_get(r->step, layer, YK_S_GROUP), 0)];
        uint32_t *token = l->host_token + (size_t)layer * e->d.n_slots;
        float *weight = l->host_slot_weight + (size_t)layer * e->d.n_slots;
        memcpy(token, g->token, g->n_slots * sizeof *token);
        memcpy(weight, g->weight, g->n_slots * sizeof *weight);
        YK_TRY(after(r, l->compute, l->up, YK_EV_FFN_OUT)); /* the lists of the layer before are in use until here */
        YK_TRY(copy_up(r, (copy){"lists", layer, g->n_slots * 4ull}, l->slot_token, token));
        YK_TRY(copy_up(r, (copy){"lists", layer, g->n_slots * 4ull}, l->slot_weight, weight));
        YK_TRY(after(r, l->up, l->compute, YK_EV_UP));
    }
    for (uint32_t a = 0; a < g->n_active; a++) {
        const uint32_t p = w->moe ? g->part[a] : 0;
        const bool shared = w->moe && p >= w->gate.n_mats;
        const yk_part_place *pp = &e->places[layer].parts[p];
        part_work pw = {.layer = layer,
                        .part = p,
                        .slot0 = g->slot0[a],
                        .n = g->slot0[a + 1] - g->slot0[a],
                        .gate = shared ? &w->sh_gate : &w->gate,
                        .up = shared ? &w->sh_up : &w->up,
                        .down = shared ? &w->sh_down : &w->down,
                        .mat = shared ? 0 : p,
                        .listed = w->moe};
        for (uint32_t s = 0; pw.n && s < pp->n_slabs[b]; s++)
            YK_TRY(run_slab(r, &pw, &pp->slabs[b][s]));
    }
    if (w->moe && b != YK_B_PREFILL && e->places[layer].attn.ahead[b])
        l->n_ahead = 0; /* those not chosen */
    l->y_pending = true;
    return fill_ahead(r, layer + 1, true);
}

/* ---- joins ------------------------------------------------------------------------------------------------------------------------------- */

/* The CPU's sum will come by mailbox: enqueue its copy and let compute wait. */
static yk_status expect_cpu_sum(run *r, uint32_t layer)
{
    yk_gpulane *l = r->l;
    GPU(l->t->box_wait(l->up, YK_BOX_DEVICE_GO, ++l->box[YK_BOX_DEVICE_GO]), "a mailbox");
    YK_TRY(copy_up(r, (copy){"sum", layer, (uint64_t)r->n * r->e->d.n_embd * sizeof(float)}, l->y_cpu, l->host_y));
    YK_TRY(after(r, l->up, l->compute, YK_EV_Y_CPU));
    l->y_cpu_pending = true;
    GPU(l->t->stream_flush(l->up), "a stream");
    GPU(l->t->stream_flush(l->compute), "a stream");
    return YK_OK;
}

static yk_status post_cpu_sum(run *r, uint32_t layer)
{
    const yk_engine *e = r->e;
    const yk_gather g = {r->step, yk_stage_get(r->step, layer, YK_S_DOWN), e->buf.y, e->d.n_tokens, e->d.n_embd};
    for (uint32_t t = 0; t < r->n; t++)
        yk_gather_row(&g, yk_rows_of(&e->model->layers[layer].down, r->n), 0, 0, t, r->l->host_y + (size_t)t * e->d.n_embd);
    GPU(r->l->t->box_post(r->l->gpu, YK_BOX_DEVICE_GO, r->l->box[YK_BOX_DEVICE_GO]), "a mailbox");
    return YK_OK;
}

/* Rows from the host to the device, compute waits. */
static yk_status send_rows(run *r, uint32_t layer, yk_gpu_mem to, uint32_t width)
{
    YK_TRY(after(r, r->l->compute, r->l->up, YK_EV_FFN_OUT)); /* `to` is free when compute has come this far */
    YK_TRY(copy_up(r, (copy){"rows", layer, (uint64_t)r->n * width * sizeof(float)}, to, r->l->host_rows));
    return after(r, r->l->up, r->l->compute, YK_EV_UP);
}

/* The residual of all tokens before layer `layer` to the device. */
static yk_status residual_up(run *r, uint32_t layer)
{
    const yk_engine *e = r->e;
    for (uint32_t t = 0; t < r->n; t++)
        yk_residual_before(r->step, layer, t, r->l->host_rows + (size_t)t * e->d.n_embd);
    YK_TRY(send_rows(r, layer, r->l->x, e->d.n_embd));
    GPU(r->l->t->stream_sync(r->l->up), "a stream"); /* host_rows are used again */
    return YK_OK;
}

/* The residual behind layer `layer` to the host: into the device's rows of xf, which then hold all of it. */
static yk_status residual_down(run *r, uint32_t layer)
{
    yk_gpulane *l = r->l;
    const yk_engine *e = r->e;
    YK_TRY(take_pending(r, (yk_gpu_mem){0}, (yk_gpu_mem){0}, false));
    YK_TRY(after(r, l->compute, l->down, YK_EV_FFN_OUT));
    YK_TRY(copy_down(r, (copy){"rows", layer, (uint64_t)r->n * e->d.n_embd * sizeof(float)},
                     e->buf.xf + (size_t)r->e->virtual_worker * e->d.n_tokens * e->d.n_embd, l->x));
    YK_TRY(signal_host(r, l->down));
    YK_TRY(wait_device(r, l->box[YK_BOX_HOST_GO]));
    r->step->flow[layer] = YK_FLOW_GIVEN;
    return YK_OK;
}

/* ---- a layer ------------------------------------------------------------------------------------------------------------------------------ */

static yk_status advance(run *r, uint32_t layer, uint32_t kind)
{
    const uint32_t end = layer * YK_S_PER_LAYER + kind + 1;
    if (r->l->cpu_rate > 0)
        YK_TRY(yk_lane_model_stages(r->l, r->step, end, r->err));
    return yk_pool_advance(r->e->pool, &r->step->job, end, r->err);
}

/* FFN of a layer whose attention is on the device and enqueued. */
static yk_status ffn_after_device(run *r, uint32_t layer)
{
    yk_engine *e = r->e;
    const yk_layer_place *pl = &e->places[layer];
    const bool cpu = pl->cpu_part[r->step->bucket], moe = e->model->layers[layer].moe;
    const uint32_t go = r->l->box[YK_BOX_HOST_GO]; /* the signal behind this layer's attention; the next layer's comes below */
    if (moe) {
        YK_TRY(wait_device(r, go));
        adopt_device_rows(r, layer);
        YK_TRY(advance(r, layer, YK_S_GROUP));
    }
    YK_TRY(enqueue_ffn(r, layer));
    if (cpu)
        YK_TRY(expect_cpu_sum(r, layer));
    if (layer + 1 < e->model->hp.n_layers && yk_attn_on_device(r->step, layer + 1))
        YK_TRY(enqueue_attention(r, layer + 1));
    if (cpu && !moe) {
        YK_TRY(wait_device(r, go));
        adopt_device_rows(r, layer);
    }
    if (cpu) {
        YK_TRY(advance(r, layer, YK_S_DOWN));
        YK_TRY(post_cpu_sum(r, layer));
    }
    return YK_OK;
}

/* A layer whose attention is on the CPU; the device may have a share of its FFN. */
static yk_status layer_on_cpu(run *r, uint32_t layer)
{
    yk_gpulane *l = r->l;
    yk_engine *e = r->e;
    const yk_layer *w = &e->model->layers[layer];
    const yk_layer_place *pl = &e->places[layer];
    YK_TRY(fill_experts_ahead(r, layer));
    YK_TRY(advance(r, layer, YK_S_GROUP));
    r->step->flow[layer] = pl->cpu_part[r->step->bucket] ? YK_FLOW_CPU : 0;
    if (pl->dev_part[r->step->bucket]) {
        const yk_stage *in = yk_stage_get(r->step, layer, YK_S_FFN_IN);
        for (uint32_t t = 0; t < r->n; t++)
            memcpy(l->host_rows + (size_t)t * e->d.n_in,
                   e->buf.norm + ((size_t)yk_token_owner(r->step, in, t) * e->d.n_tokens + t) * e->d.n_in,
                   e->d.n_in * sizeof(float));
        YK_TRY(send_rows(r, layer, l->norm, e->d.n_in));
        if (yk_any_quantised(
                (const yk_weight *const[]){&w->gate, &w->up, w->moe ? &w->sh_gate : NULL, w->moe ? &w->sh_up : NULL}, 4)) {
            const yk_k_quantise q = {.x = l->norm, .q8 = l->q8, .n = r->n, .n_cols = e->d.n_embd, .x_stride = e->d.n_in};
            LAUNCH("quantise", yk_k_call_quantise, &q);
        }
        YK_TRY(enqueue_ffn(r, layer));
        l->y_pending = false;
        YK_TRY(after(r, l->compute, l->down, YK_EV_FFN_IN));
        YK_TRY(copy_down(r, (copy){"sum", layer, (uint64_t)r->n * e->d.n_embd * sizeof(float)}, e->buf.y_dev, l->y_dev));
        YK_TRY(signal_host(r, l->down));
        r->step->flow[layer] |= YK_FLOW_DEV;
    } else {
        YK_TRY(fill_ahead(r, layer + 1, true));
    }
    YK_TRY(advance(r, layer, YK_S_DOWN));
    return pl->dev_part[r->step->bucket] ? wait_device(r, l->box[YK_BOX_HOST_GO]) : YK_OK;
}

/* ---- the step ------------------------------------------------------------------------------------------------------------------------------ */

static yk_status send_lists(run *r)
{
    yk_gpulane *l = r->l;
    const yk_engine *e = r->e;
    const yk_step *s = r->step;
    uint32_t *pos = l->host_lists, *seq = pos + e->d.n_tokens, *logits = seq + e->d.n_tokens, *table = logits + e->d.n_logits;
    const uint64_t bytes = (uint64_t)(table - pos + s->n_runs * e->d.max_blocks) * sizeof *pos;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        const yk_run *run_ = &s->runs[i];
        for (uint32_t t = 0; t < run_->n; t++)
            seq[run_->first + t] = i;
        memcpy(table + (size_t)i * e->d.max_blocks, run_->seq->blocks,
               yk_ceil_div(run_->pos + run_->n, YK_KV_BLOCK) * sizeof *table);
    }
    memcpy(pos, s->pos, r->n * sizeof *pos);
    memcpy(logits, s->logits_token, s->n_logits * sizeof *logits);
    l->pos = l->lists; /* as on the host: one copy brings them all */
    l->seq = yk_mem_at(l->pos, (uint64_t)(seq - pos) * sizeof *pos);
    l->logits_rows = yk_mem_at(l->pos, (uint64_t)(logits - pos) * sizeof *pos);
    l->table = yk_mem_at(l->pos, (uint64_t)(table - pos) * sizeof *pos);
    YK_TRY(copy_up(r, (copy){"lists", NO_LAYER, bytes}, l->lists, pos));
    YK_TRY(after(r, l->up, l->compute, YK_EV_UP));
    /* A shared block that a run writes to: its committed positions go along. */
    const uint64_t block = 2 * e->d.kv_half;
    for (uint32_t i = 0; i < s->n_runs; i++)
        for (uint32_t layer = 0; s->runs[i].copied && layer < e->model->hp.n_layers; layer++) {
            const yk_gpu_mem kv = e->places[layer].kv;
            if (kv.handle)
                GPU(l->t->copy_device(l->compute, yk_mem_at(kv, s->runs[i].seq->blocks[s->runs[i].pos / YK_KV_BLOCK] * block),
                                      yk_mem_at(kv, s->runs[i].read_first * block), block),
                    "a copy on the device");
        }
    return YK_OK;
}

static yk_status head_on_device(run *r)
{
    yk_gpulane *l = r->l;
    const yk_engine *e = r->e;
    const yk_model *m = e->model;
    const yk_step *s = r->step;
    YK_TRY(take_pending(r, (yk_gpu_mem){0}, (yk_gpu_mem){0}, false));
    if (!s->n_logits)
        return YK_OK;
    yk_lane_mark *mk =
        mark(r, l->compute, (task){YK_TRACE_GPU, "head", yk_k_matvec_name(m->output.type, s->n_logits), NO_LAYER});
    const yk_k_add_norm a = {.x = l->x,
                             .rows = l->logits_rows,
                             .w = l->output_norm,
                             .b = l->output_norm_b,
                             .out = l->norm,
                             .q8 = yk_is_quantised(&m->output) ? l->q8 : no_q8,
                             .n = s->n_logits,
                             .n_cols = e->d.n_embd,
                             .x_stride = e->d.n_embd,
                             .out_stride = e->d.n_in,
                             .eps = m->hp.norm_eps};
    LAUNCH("add_norm", yk_k_call_add_norm, &a);
    YK_TRY(multiply(r, &(product){.w = &m->output,
                                  .mat = &l->head,
                                  .x = l->norm,
                                  .y = l->logits,
                                  .bias = l->output_b,
                                  .q8 = &l->q8,
                                  .n = s->n_logits,
                                  .x_cols = e->d.n_embd,
                                  .x_stride = e->d.n_in,
                                  .y_stride = m->hp.n_vocab}));
    mark_end(r, l->compute, mk, 0);
    YK_TRY(after(r, l->compute, l->down, YK_EV_FFN_OUT));
    const uint64_t row = m->hp.n_vocab * sizeof(float);
    for (uint32_t i = 0; i < s->n_logits; i++)
        YK_TRY(copy_down(r, (copy){"logits", NO_LAYER, row}, e->logits + (size_t)s->logits_row[i] * m->hp.n_vocab,
                         yk_mem_at(l->logits, i * row)));
    return YK_OK;
}

/* The first slabs of the step follow the small copies that the first kernels wait for. */
static yk_status fill_first(run *r)
{
    GPU(r->l->t->event_wait(r->l->fill_up, r->l->ev[YK_EV_UP]), "an event");
    return fill_ahead(r, 0, true);
}

static yk_status run_layers(run *r)
{
    yk_engine *e = r->e;
    const uint32_t n_layers = e->model->hp.n_layers;
    bool enqueued = false; /* this layer's attention is on its way already */
    for (uint32_t layer = 0; layer < n_layers; layer++) {
        const bool dev = yk_attn_on_device(r->step, layer), was_dev = layer && yk_attn_on_device(r->step, layer - 1);
        /* The CPU's workers look too, but have no part in a step that is the device's alone. */
        YK_FAIL_IF(atomic_load_explicit(&e->cancel, memory_order_relaxed), r->err, YK_ERR_CANCELLED, "cancelled");
        if (dev) {
            if (!was_dev)
                YK_TRY(residual_up(r, layer));
            if (layer == 0)
                YK_TRY(fill_first(r));
            if (!enqueued)
                YK_TRY(enqueue_attention(r, layer));
            YK_TRY(ffn_after_device(r, layer));
            enqueued = layer + 1 < n_layers && yk_attn_on_device(r->step, layer + 1);
        } else {
            if (was_dev)
                YK_TRY(residual_down(r, layer - 1));
            if (layer == 0)
                YK_TRY(fill_first(r));
            YK_TRY(layer_on_cpu(r, layer));
        }
    }
    const bool last_dev = yk_attn_on_device(r->step, n_layers - 1);
    if (r->e->head_dev) {
        if (!last_dev)
            YK_TRY(residual_up(r, n_layers));
        return head_on_device(r);
    }
    if (last_dev)
        YK_TRY(residual_down(r, n_layers - 1));
    return advance(r, n_layers, 1);
}

yk_status yk_gpulane_step(yk_gpulane *lane, yk_step *step, yk_error *err)
{
    run state = {lane, step, lane->e, err, step->n_tokens}, *r = &state;
    lane->y_pending = lane->y_cpu_pending = false;
    lane->n_ahead = lane->n_marks = 0;
    memset(step->flow, 0, lane->e->model->hp.n_layers);
    if (lane->kv_list && step->bucket == YK_B_PREFILL)
        yk_lane_kv_collect(lane, step);
    yk_pool_begin(lane->e->pool, &step->job);
    yk_status st = send_lists(r);
    if (st == YK_OK)
        st = run_layers(r);
    if (st != YK_OK) /* let go what waits for the host, so that the streams can run dry */
        lane->t->box_post(lane->gpu, YK_BOX_DEVICE_GO, lane->box[YK_BOX_DEVICE_GO]);
    yk_gpu_stream *const all[] = {lane->fill_up, lane->up, lane->compute, lane->down};
    for (int i = 0; i < 4; i++) {
        const yk_status s = lane->t->stream_sync(all[i]);
        if (st == YK_OK)
            st = yk_gpulane_check(lane, s, "a stream", err);
    }
    collect_marks(r);
    return st;
}
