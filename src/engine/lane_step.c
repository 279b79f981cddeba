/* One step on both lanes. */
#include <sched.h>

#include "cpu/pack.h"
#include "src/base/clock.h"
#include "src/engine/lane_run.h"
#include "src/engine/stages.h"
#include "src/engine/stats.h"
#include "src/engine/swap.h"

typedef yk_lane_run run;

static yk_status after(run *r, yk_gpu_stream *first, yk_gpu_stream *then, enum yk_gpulane_event ev)
{
    YK_GPU(r->l->t->event_record(first, r->l->ev[ev]), "an event");
    YK_GPU(r->l->t->event_wait(then, r->l->ev[ev]), "an event");
    return YK_OK;
}

/* Signal the host from `stream`. */
static yk_status signal_host(run *r, yk_gpu_stream *stream)
{
    YK_GPU(r->l->t->box_signal(stream, YK_BOX_HOST_GO, ++r->l->box[YK_BOX_HOST_GO]), "a mailbox");
    YK_GPU(r->l->t->stream_flush(stream), "a stream");
    YK_GPU(r->l->t->stream_flush(r->l->compute), "a stream");
    return YK_OK;
}

/* Wait on the host for a signal, as numbered by box[YK_BOX_HOST_GO] behind signal_host. */
static yk_status wait_device(run *r, uint32_t go)
{
    const uint64_t from = yk_now_ns();
    for (uint32_t value = 0, spins = 0;; spins++) {
        YK_GPU(r->l->t->box_value(r->l->gpu, YK_BOX_HOST_GO, &value), "a mailbox");
        if (value >= go)
            break;
        if (spins > 50)
            sched_yield();
    }
    r->e->stats->wait_ns += yk_now_ns() - from;
    return YK_OK;
}

/* ---- trace ------------------------------------------------------------------------------------------------------------------------------- */

/* The step's tasks to the trace; its streams have run dry. */
static void collect_marks(run *r)
{
    yk_gpulane *l = r->l;
    const uint64_t begin = yk_now_ns();
    for (uint32_t i = 0; i < l->n_marks; i++) {
        yk_lane_mark *m = &l->marks[i];
        uint64_t from, to;
        if (m->whole && l->t->event_time(m->from, &from) == YK_OK && l->t->event_time(m->to, &to) == YK_OK) {
            m->rec.start_ns = from;
            m->rec.dur_ns = to > from ? to - from : 0;
            if (r->e->trace)
                yk_trace_add(r->e->trace, &m->rec);
        } else {
            l->marks_lost = true;
            if (r->e->trace)
                yk_trace_lost(r->e->trace, 1);
        }
    }
    if (r->e->stats->sampled) {
        yk_stats_tasks(r->e->stats, l->marks, l->n_marks, !l->marks_lost);
        r->e->stats->record_ns += yk_now_ns() - begin;
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
    yk_lane_mark *m = yk_lane_begin(r, stream, (yk_lane_task){YK_TRACE_UP, c.op, "copy", c.layer});
    YK_GPU(r->l->t->copy_to_device(stream, to, from, c.bytes), "a copy to the device");
    yk_lane_end(r, stream, m, c.bytes);
    r->l->up_bytes += c.bytes;
    return YK_OK;
}

static yk_status copy_up(run *r, copy c, yk_gpu_mem to, const void *from)
{
    return copy_on(r, r->l->up, c, to, from);
}

static yk_status copy_down(run *r, copy c, void *to, yk_gpu_mem from)
{
    yk_lane_mark *m = yk_lane_begin(r, r->l->down, (yk_lane_task){YK_TRACE_DOWN, c.op, "copy", c.layer});
    YK_GPU(r->l->t->copy_to_host(r->l->down, to, from, c.bytes), "a copy to the host");
    yk_lane_end(r, r->l->down, m, c.bytes);
    r->l->down_bytes += c.bytes;
    return YK_OK;
}

/* What the host needs of a layer whose attention is on the device. */
static yk_status rows_down(run *r, uint32_t layer)
{
    yk_gpulane *l = r->l;
    yk_engine *e = r->e;
    const yk_layer *w = &e->model->layers[layer];
    const bool cpu = e->places[layer].cpu_part[r->step->bucket];
    if (!cpu && (!w->moe || yk_list_on_device(r->step, layer)))
        return YK_OK;
    YK_TRY(after(r, l->compute, l->down, YK_EV_FFN_IN));
    const size_t row0 = (size_t)r->e->virtual_worker * e->d.n_tokens;
    if (cpu)
        YK_TRY(copy_down(r, (copy){"rows", layer, (uint64_t)r->n * e->d.n_in * sizeof(float)}, e->buf.norm + row0 * e->d.n_in,
                         l->norm));
    if (w->moe) {
        const uint64_t bytes = (uint64_t)r->n * yk_lane_used(e, layer) * 4;
        YK_TRY(copy_down(r, (copy){"experts", layer, bytes}, l->host_ids, l->ids));
        YK_TRY(copy_down(r, (copy){"experts", layer, bytes}, l->host_weight, l->id_weight));
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
    yk_lane_mark *m =
        yk_lane_begin(r, l->compute, (yk_lane_task){YK_TRACE_GPU, "attention", yk_k_matvec_name(w->q.type, r->n), layer});
    YK_TRY(yk_lane_take_pending(r, pl->attn_norm, pl->attn_norm_b, q8));
    YK_TRY(yk_lane_attend(r, layer, pl, ffn_q8));
    yk_lane_end(r, l->compute, m, 0);
    if (w->moe) {
        m = yk_lane_begin(r, l->compute, (yk_lane_task){YK_TRACE_GPU, "route", "route", layer});
        YK_TRY(yk_lane_route(r, layer, pl));
        yk_lane_end(r, l->compute, m, 0);
    }
    if (copied)
        YK_GPU(l->t->event_record(l->compute, l->ev[YK_EV_FREE + slot]), "an event");
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
    const uint32_t k = e->model->hp.n_used, used = w->moe ? yk_lane_used(e, layer) : 0, base = layer * YK_S_PER_LAYER;
    for (uint32_t t = 0; t < r->n; t++) {
        const size_t row = (size_t)r->e->virtual_worker * e->d.n_tokens + t;
        if (e->places[layer].cpu_part[r->step->bucket])
            e->ops->quantise(e->buf.norm + row * e->d.n_in, e->d.n_embd, &e->buf.q8, (uint32_t)row);
        if (!w->moe)
            continue;
        for (uint32_t j = 0; j < k; j++) {
            e->buf.ids[row * k + j] = l->cpu_rate > 0 ? (uint32_t)((e->n_steps_done + layer + t * k + j) % w->gate.n_mats)
                                                      : l->host_ids[(size_t)t * used + j];
            e->buf.id_weight[row * (k + 1) + j] = l->host_weight[(size_t)t * used + j];
        }
        e->buf.id_weight[row * (k + 1) + k] = used > k ? l->host_weight[(size_t)t * used + k] : 1.0f;
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
    YK_GPU(l->t->event_wait(l->fill_up, l->ev[YK_EV_KV_FREE]), "an event");
    yk_lane_mark *m = yk_lane_begin(r, l->fill_up, (yk_lane_task){YK_TRACE_UP, "kv", "copy", layer});
    for (uint32_t i = 0; i < l->n_kv_list; i++) {
        const yk_lane_kv *kv = &l->kv_list[i];
        if (!yk_lane_kv_read(kv, yk_lane_window(r, layer)))
            continue;
        YK_GPU(l->t->copy_to_device(l->fill_up, yk_mem_at(l->kv_scratch, kv->to * block), yk_kv_layer(&e->kv, kv->from, layer),
                                    block),
               "a copy to the device");
        bytes += block;
    }
    yk_lane_end(r, l->fill_up, m, bytes);
    l->up_bytes += bytes;
    YK_GPU(l->t->event_record(l->fill_up, l->ev[YK_EV_KV_UP]), "an event");
    YK_GPU(l->t->stream_flush(l->fill_up), "a stream");
    return YK_OK;
}

/* K and V of the blocks with new positions to where the virtual worker stages them, when the attention in `slot` is done. */
static yk_status kv_down(run *r, uint32_t layer, uint32_t slot)
{
    yk_gpulane *l = r->l;
    const yk_step *s = r->step;
    const uint64_t block = 2 * r->e->d.kv_half;
    YK_GPU(l->t->event_wait(l->down, l->ev[YK_EV_FREE + slot]), "an event");
    yk_lane_mark *m = yk_lane_begin(r, l->down, (yk_lane_task){YK_TRACE_DOWN, "kv", "copy", layer});
    for (uint32_t i = 0, n; i < s->n_kv_slices; i += n) {
        const yk_kv_slice *ks = &s->kv_slices[i];
        const uint32_t first = s->runs[ks->run].seq->blocks[ks->block];
        for (n = 1; i + n < s->n_kv_slices; n++) /* blocks that are neighbours on both sides */
            if (s->runs[ks[n].run].seq->blocks[ks[n].block] != first + n)
                break;
        YK_GPU(l->t->copy_to_host(l->down, yk_staged_kv(r->e, r->e->virtual_worker, layer, i),
                                  yk_mem_at(l->kv_scratch, first * block), n * block),
               "a copy to the host");
    }
    yk_lane_end(r, l->down, m, s->n_kv_slices * block);
    l->down_bytes += s->n_kv_slices * block;
    YK_GPU(l->t->event_record(l->down, l->ev[YK_EV_KV_FREE]), "an event");
    YK_GPU(l->t->stream_flush(l->compute), "a stream");
    YK_GPU(l->t->stream_flush(l->down), "a stream");
    return YK_OK;
}

/* A CG slab, or attention and its KV, into the next staging slot, when what used that slot before is done. */
static yk_status fill_slot(run *r, const yk_slab *slab, uint32_t layer, uint32_t *slot)
{
    yk_gpulane *l = r->l;
    const bool attention = slab == &r->e->places[layer].attn_copy;
    *slot = l->next_slot;
    l->next_slot = (l->next_slot + 1) % YK_LANE_SLOTS;
    YK_GPU(l->t->event_wait(l->fill_up, l->ev[YK_EV_FREE + *slot]), "an event");
    YK_TRY(copy_on(r, l->fill_up, (copy){attention ? "attn" : "weights", layer, slab->unit_bytes * slab->n_units},
                   l->slot[*slot], slab->host));
    YK_GPU(l->t->event_record(l->fill_up, l->ev[YK_EV_FILLED + *slot]), "an event");
    YK_GPU(l->t->stream_flush(l->fill_up), "a stream");
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
    YK_GPU(l->t->stream_flush(l->compute), "a stream");
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
    YK_GPU(l->t->event_wait(l->compute, l->ev[YK_EV_FILLED + *slot]), "an event");
    return YK_OK;
}

/* A slab of the device, from its memory or from a staging slot. */
static yk_status run_slab(run *r, const yk_lane_part *w, const yk_slab *s, bool add)
{
    yk_gpulane *l = r->l;
    yk_gpu_mem mem = s->dev;
    uint32_t slot = 0;
    if (s->host) {
        YK_TRY(take_slot(r, s, w->layer, &slot));
        mem = l->slot[slot];
    }
    yk_lane_mark *mk = yk_lane_begin(
        r, l->compute,
        (yk_lane_task){YK_TRACE_GPU, s->host ? "ffn CG" : "ffn GG", yk_k_matvec_name(w->gate->type, w->n), w->layer});
    YK_TRY(yk_lane_slab(r, w, s, mem, add));
    yk_lane_end(r, l->compute, mk, 0);
    if (s->host)
        YK_GPU(l->t->event_record(l->compute, l->ev[YK_EV_FREE + slot]), "an event");
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
    if (yk_list_on_device(r->step, layer)) {
        YK_TRY(yk_lane_list(r, layer));
        return fill_ahead(r, layer + 1, true);
    }
    if (w->moe) {
        YK_GPU(l->t->fill(l->compute, l->y_dev, 0, (uint64_t)r->n * e->d.n_embd * sizeof(float)), "a fill");
        l->n_launches++; /* for the device it is one */
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
        yk_lane_part pw = {.layer = layer,
                           .part = p,
                           .slot0 = g->slot0[a],
                           .n = g->slot0[a + 1] - g->slot0[a],
                           .gate = shared ? &w->sh_gate : &w->gate,
                           .up = shared ? &w->sh_up : &w->up,
                           .down = shared ? &w->sh_down : &w->down,
                           .mat = shared ? 0 : p,
                           .listed = w->moe};
        for (uint32_t s = 0; pw.n && s < pp->n_slabs[b]; s++)
            YK_TRY(run_slab(r, &pw, &pp->slabs[b][s], w->moe || s > 0));
    }
    if (w->moe && b != YK_B_PREFILL && e->places[layer].attn.ahead[b])
        l->n_ahead = 0; /* those not chosen */
    l->y_pending = 1;
    return fill_ahead(r, layer + 1, true);
}

/* ---- joins ------------------------------------------------------------------------------------------------------------------------------- */

/* The CPU's sum will come by mailbox: enqueue its copy and let compute wait. */
static yk_status expect_cpu_sum(run *r, uint32_t layer)
{
    yk_gpulane *l = r->l;
    YK_GPU(l->t->box_wait(l->up, YK_BOX_DEVICE_GO, ++l->box[YK_BOX_DEVICE_GO]), "a mailbox");
    YK_TRY(copy_up(r, (copy){"sum", layer, (uint64_t)r->n * r->e->d.n_embd * sizeof(float)}, l->y_cpu, l->host_y));
    YK_TRY(after(r, l->up, l->compute, YK_EV_Y_CPU));
    l->y_cpu_pending = true;
    YK_GPU(l->t->stream_flush(l->up), "a stream");
    YK_GPU(l->t->stream_flush(l->compute), "a stream");
    return YK_OK;
}

static yk_status post_cpu_sum(run *r, uint32_t layer)
{
    const yk_engine *e = r->e;
    const yk_gather g = {r->step, yk_stage_get(r->step, layer, YK_S_DOWN), e->buf.y, e->d.n_tokens, e->d.n_embd};
    for (uint32_t t = 0; t < r->n; t++)
        yk_gather_row(&g, yk_rows_of(&e->model->layers[layer].down, r->n), 0, 0, t, r->l->host_y + (size_t)t * e->d.n_embd);
    YK_GPU(r->l->t->box_post(r->l->gpu, YK_BOX_DEVICE_GO, r->l->box[YK_BOX_DEVICE_GO]), "a mailbox");
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
    YK_GPU(r->l->t->stream_sync(r->l->up), "a stream"); /* host_rows are used again */
    return YK_OK;
}

/* The residual behind layer `layer` to the host: into the device's rows of xf, which then hold all of it. */
static yk_status residual_down(run *r, uint32_t layer)
{
    yk_gpulane *l = r->l;
    const yk_engine *e = r->e;
    YK_TRY(yk_lane_take_pending(r, (yk_gpu_mem){0}, (yk_gpu_mem){0}, false));
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
    const uint64_t from = yk_now_ns();
    if (r->l->cpu_rate > 0)
        YK_TRY(yk_lane_model_stages(r->l, r->step, end, r->err));
    const yk_status st = yk_pool_advance(r->e->pool, &r->step->job, end, r->err);
    r->e->stats->cpu_ns += yk_now_ns() - from;
    return st;
}

/* FFN of a layer whose attention is on the device and enqueued. */
static yk_status ffn_after_device(run *r, uint32_t layer)
{
    yk_engine *e = r->e;
    const yk_layer_place *pl = &e->places[layer];
    const bool cpu = pl->cpu_part[r->step->bucket], moe = e->model->layers[layer].moe;
    const uint32_t go = r->l->box[YK_BOX_HOST_GO]; /* the signal behind this layer's attention; the next layer's comes below */
    if (moe && !yk_list_on_device(r->step, layer)) {
        YK_TRY(wait_device(r, go));
        adopt_device_rows(r, layer);
        YK_TRY(advance(r, layer, YK_S_GROUP));
        yk_swap_note(r->l->swap, r->step, layer);
    }
    YK_TRY(enqueue_ffn(r, layer));
    if (cpu)
        YK_TRY(expect_cpu_sum(r, layer));
    if (layer + 1 < e->model->hp.n_layers && yk_attn_on_device(r->step, layer + 1))
        YK_TRY(enqueue_attention(r, layer + 1));
    yk_swap_copy(r, layer);
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
    if (w->moe)
        yk_swap_note(l->swap, r->step, layer);
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
            YK_LAUNCH("quantise", yk_k_call_quantise, &q);
        }
        YK_TRY(enqueue_ffn(r, layer));
        l->y_pending = 0;
        YK_TRY(after(r, l->compute, l->down, YK_EV_FFN_IN));
        YK_TRY(copy_down(r, (copy){"sum", layer, (uint64_t)r->n * e->d.n_embd * sizeof(float)}, e->buf.y_dev, l->y_dev));
        YK_TRY(signal_host(r, l->down));
        r->step->flow[layer] |= YK_FLOW_DEV;
    } else {
        YK_TRY(fill_ahead(r, layer + 1, true));
    }
    yk_swap_copy(r, layer);
    YK_TRY(advance(r, layer, YK_S_DOWN));
    return pl->dev_part[r->step->bucket] ? wait_device(r, l->box[YK_BOX_HOST_GO]) : YK_OK;
}

/* ---- the step ------------------------------------------------------------------------------------------------------------------------------ */

static yk_status send_lists(run *r)
{
    yk_gpulane *l = r->l;
    const yk_engine *e = r->e;
    const yk_step *s = r->step;
    uint32_t *pos = l->host_lists, *seq = pos + e->d.n_tokens, *logits = seq + e->d.n_tokens, *tiles = logits + e->d.n_logits,
             *table = tiles + 2 * (size_t)e->d.n_tokens;
    const yk_hparams *hp = &e->model->hp;
    const uint32_t per = yk_k_attention_tile(hp->n_heads, hp->n_kv_heads, hp->head_dim);
    const uint64_t bytes = (uint64_t)(table - pos + s->n_runs * e->d.max_blocks) * sizeof *pos;
    l->n_tiles = 0;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        const yk_run *run_ = &s->runs[i];
        if (s->n_runs < r->n)
            l->n_tiles += yk_k_attention_tiles(tiles + 2 * (size_t)l->n_tiles, run_->first, run_->n, per);
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
    l->tiles = yk_mem_at(l->pos, (uint64_t)(tiles - pos) * sizeof *pos);
    l->table = yk_mem_at(l->pos, (uint64_t)(table - pos) * sizeof *pos);
    YK_TRY(copy_up(r, (copy){"lists", YK_NO_LAYER, bytes}, l->lists, pos));
    YK_TRY(after(r, l->up, l->compute, YK_EV_UP));
    /* A shared block that a run writes to: its committed positions go along. */
    const uint64_t block = 2 * e->d.kv_half;
    for (uint32_t i = 0; i < s->n_runs; i++)
        for (uint32_t layer = 0; s->runs[i].copied && layer < e->model->hp.n_layers; layer++) {
            const yk_gpu_mem kv = e->places[layer].kv;
            if (kv.handle)
                YK_GPU(l->t->copy_device(l->compute,
                                         yk_mem_at(kv, s->runs[i].seq->blocks[s->runs[i].pos / YK_KV_BLOCK] * block),
                                         yk_mem_at(kv, s->runs[i].read_first * block), block),
                       "a copy on the device");
        }
    return YK_OK;
}

static yk_status head_on_device(run *r)
{
    yk_gpulane *l = r->l;
    const uint64_t before = l->n_launches;
    const yk_engine *e = r->e;
    const yk_model *m = e->model;
    const yk_step *s = r->step;
    YK_TRY(yk_lane_take_pending(r, (yk_gpu_mem){0}, (yk_gpu_mem){0}, false));
    if (!s->n_logits) {
        l->n_head_launches += l->n_launches - before;
        return YK_OK;
    }
    yk_lane_mark *mk = yk_lane_begin(
        r, l->compute, (yk_lane_task){YK_TRACE_GPU, "head", yk_k_matvec_name(m->output.type, s->n_logits), YK_NO_LAYER});
    const yk_k_add_norm a = {.x = l->x,
                             .rows = l->logits_rows,
                             .w = l->output_norm,
                             .b = l->output_norm_b,
                             .out = l->norm,
                             .q8 = yk_is_quantised(&m->output) ? l->q8 : (yk_k_q8){{0}, {0}, {0}},
                             .n = s->n_logits,
                             .n_cols = e->d.n_embd,
                             .x_stride = e->d.n_embd,
                             .out_stride = e->d.n_in,
                             .eps = m->hp.norm_eps};
    YK_LAUNCH("add_norm", yk_k_call_add_norm, &a);
    YK_TRY(yk_lane_multiply(r, &(yk_lane_product){.w = &m->output,
                                                  .mat = &l->head,
                                                  .x = l->norm,
                                                  .y = l->logits,
                                                  .bias = l->output_b,
                                                  .q8 = &l->q8,
                                                  .n = s->n_logits,
                                                  .x_cols = e->d.n_embd,
                                                  .x_stride = e->d.n_in,
                                                  .y_stride = m->hp.n_vocab}));
    l->n_head_launches += l->n_launches - before;
    yk_lane_end(r, l->compute, mk, 0);
    YK_TRY(after(r, l->compute, l->down, YK_EV_FFN_OUT));
    const uint64_t row = m->hp.n_vocab * sizeof(float);
    for (uint32_t i = 0; i < s->n_logits; i++)
        YK_TRY(copy_down(r, (copy){"logits", YK_NO_LAYER, row}, e->logits + (size_t)s->logits_row[i] * m->hp.n_vocab,
                         yk_mem_at(l->logits, i * row)));
    return YK_OK;
}

/* The first slabs of the step follow the small copies that the first kernels wait for. */
static yk_status fill_first(run *r)
{
    YK_GPU(r->l->t->event_wait(r->l->fill_up, r->l->ev[YK_EV_UP]), "an event");
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
    lane->y_pending = 0;
    lane->y_cpu_pending = false;
    lane->n_ahead = lane->n_marks = 0;
    lane->marking = lane->e->trace || lane->e->stats->sampled;
    lane->marks_lost = false;
    memset(step->flow, 0, lane->e->model->hp.n_layers);
    if (lane->kv_list && step->bucket == YK_B_PREFILL)
        yk_lane_kv_collect(lane, step);
    yk_pool_begin(lane->e->pool, &step->job);
    yk_status st = send_lists(r);
    if (st == YK_OK)
        st = run_layers(r);
    if (st != YK_OK) /* let go what waits for the host, so that the streams can run dry */
        lane->t->box_post(lane->gpu, YK_BOX_DEVICE_GO, lane->box[YK_BOX_DEVICE_GO]);
    const uint64_t from = yk_now_ns();
    yk_gpu_stream *const all[] = {lane->fill_up, lane->up, lane->compute, lane->down};
    for (int i = 0; i < 4; i++) {
        const yk_status s = lane->t->stream_sync(all[i]);
        if (st == YK_OK)
            st = yk_gpulane_check(lane, s, "a stream", err);
    }
    lane->e->stats->wait_ns += yk_now_ns() - from;
    yk_swap_wait(lane->swap);
    collect_marks(r);
    yk_swap_step(lane->swap, step, st == YK_OK);
    return st;
}
