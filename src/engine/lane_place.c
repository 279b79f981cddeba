/* A plan made real on one device: matrices packed and uploaded, cut units given their places, buffers reserved. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cpu/pack.h"
#include "src/base/log.h"
#include "src/engine/lane.h"
#include "src/engine/pack_cache.h"
#include "src/engine/packing.h"
#include "src/engine/stages.h"
#include "src/engine/swap.h"

typedef struct placer {
    yk_gpulane *l;
    yk_engine *e;
    const yk_plan *plan;
    const yk_shape *shape;
    yk_error *err;
    uint8_t *pack; /* room for the largest thing that is packed for the device */
    uint64_t pack_bytes;
    uint64_t max_slab; /* CG */
    struct {
        bool on;       /* attention goes there instead of to the device */
        uint8_t *base; /* in e->packed; NULL: its bytes are counted only */
        uint64_t used;
    } blob;
    uint64_t blobs; /* bytes of all attention that is copied */
    bool pack_cc;   /* slices that only the CPU computes are packed too */
    yk_packer *packer;
    uint64_t *count; /* not NULL: activations are counted here instead of taken */
} placer;

static yk_status upload(placer *p, yk_gpu_mem to, const void *from, uint64_t bytes)
{
    YK_TRY(yk_gpulane_check(p->l, p->l->t->copy_to_device(p->l->up, to, from, bytes), "a copy to the device", p->err));
    YK_TRY(yk_gpulane_check(p->l, p->l->t->stream_sync(p->l->up), "a copy to the device", p->err));
    return YK_OK;
}

/* The next place of a blob, aligned as the CPU's kernels want it; NULL while counting. */
static uint8_t *blob_take(placer *p, uint64_t bytes, yk_gpu_mem *out)
{
    const uint64_t at = (p->blob.used + 63) / 64 * 64;
    p->blob.used = at + bytes;
    *out = (yk_gpu_mem){NULL, at, bytes};
    return p->blob.base ? p->blob.base + at : NULL;
}

static yk_status put_bytes(placer *p, const void *from, uint64_t bytes, yk_gpu_mem *out)
{
    if (p->blob.on) {
        uint8_t *to = blob_take(p, bytes, out);
        if (to)
            memcpy(to, from, bytes);
        return YK_OK;
    }
    YK_TRY(yk_gpulane_take(p->l, &p->l->weights, bytes, out, p->err));
    return upload(p, *out, from, bytes);
}

static yk_status put_vector(placer *p, const float *v, uint64_t n, yk_gpu_mem *out)
{
    *out = (yk_gpu_mem){0};
    return v ? put_bytes(p, v, n * sizeof *v, out) : YK_OK;
}

/* Room for packing `bytes`; grows. */
static yk_status pack_room(placer *p, uint64_t bytes)
{
    if (bytes <= p->pack_bytes)
        return YK_OK;
    yk_free(p->pack);
    p->pack_bytes = 0;
    p->pack = yk_alloc(YK_MEM_STAGING, bytes, 1);
    if (!p->pack)
        return yk_fail_memory(p->err, bytes, "packing weights for the device");
    p->pack_bytes = bytes;
    return YK_OK;
}

static yk_status need_packed(const placer *p, const yk_weight *w, const char *what, uint32_t layer)
{
    YK_FAIL_IF(!yk_pack_has(w->type) || !yk_k_matvec_name(w->type, 1), p->err, YK_ERR_INPUT,
               "plan.layers[%u]: %s is of type %s, which %s cannot compute; keep it on the host", layer, what,
               yk_type_get(w->type)->name, p->l->name);
    return YK_OK;
}

/* The file's pages of a matrix that now lives elsewhere. */
static void release(const placer *p, const yk_weight *w)
{
    for (uint32_t i = 0; w->data && i < w->n_mats; i++)
        yk_pack_release(p->e->model, w, i, 0, w->n_rows);
}

static yk_status put_matrix(placer *p, const yk_weight *w, const char *what, uint32_t layer, yk_dev_mat *out)
{
    YK_TRY(need_packed(p, w, what, layer));
    const uint64_t bytes = yk_packed_bytes(w->type, w->n_rows, w->n_cols);
    out->panel_bytes = yk_panel_bytes(w->type, w->n_cols);
    if (p->blob.on) {
        uint8_t *to = blob_take(p, bytes, &out->mem);
        return to ? yk_packer_add_matrix(p->packer, w, to, p->err) : YK_OK;
    }
    YK_TRY(pack_room(p, bytes));
    p->packer->keep_source = w->data == p->e->model->token_embd.data; /* a tied head: rows are still read as embeddings */
    yk_status st = yk_packer_add_matrix(p->packer, w, p->pack, p->err);
    if (st == YK_OK)
        st = yk_packer_flush(p->packer, p->err);
    p->packer->keep_source = false;
    YK_TRY(st);
    if (!out->mem.handle)
        YK_TRY(yk_gpulane_take(p->l, &p->l->weights, bytes, &out->mem, p->err));
    return upload(p, out->mem, p->pack, bytes);
}

/* Router and shared gate: plain rows. */
static yk_status put_rows(placer *p, const yk_weight *w, uint32_t layer, yk_gpu_mem *out)
{
    *out = (yk_gpu_mem){0};
    if (!w->data)
        return YK_OK;
    YK_FAIL_IF(w->type != YK_TYPE_F32 && w->type != YK_TYPE_F16 && w->type != YK_TYPE_BF16, p->err, YK_ERR_INPUT,
               "plan.layers[%u].attn_home: the router is of type %s, which %s cannot compute", layer,
               yk_type_get(w->type)->name, p->l->name);
    return put_bytes(p, w->data, w->row_bytes * w->n_rows, out);
}

/* Room for q, k and v one behind the other, where they are of a type: one product computes them. */
static yk_status take_qkv(placer *p, const yk_layer *w, yk_layer_place *pl)
{
    const yk_weight *const ws[] = {&w->q, &w->k, &w->v};
    yk_dev_mat *const mats[] = {&pl->q, &pl->k, &pl->v};
    if (p->blob.on)
        return YK_OK;
    for (uint32_t i = 0, next; i < 3; i = next) {
        uint64_t bytes = yk_packed_bytes(ws[i]->type, ws[i]->n_rows, ws[i]->n_cols), at = 0;
        for (next = i + 1; next < 3 && ws[next]->type == ws[i]->type && ws[next - 1]->n_rows % YK_TILE_ROWS == 0; next++)
            bytes += yk_packed_bytes(ws[next]->type, ws[next]->n_rows, ws[next]->n_cols);
        yk_gpu_mem all;
        YK_TRY(yk_gpulane_take(p->l, &p->l->weights, bytes, &all, p->err));
        for (uint32_t k = i; k < next; k++) {
            const uint64_t n = yk_packed_bytes(ws[k]->type, ws[k]->n_rows, ws[k]->n_cols);
            mats[k]->mem = (yk_gpu_mem){all.handle, all.offset + at, n};
            at += n;
        }
    }
    return YK_OK;
}

static yk_status put_attention(placer *p, uint32_t layer)
{
    const yk_engine *e = p->e;
    const yk_dims *d = &e->d;
    const yk_layer *w = &e->model->layers[layer];
    const bool full = e->model->arch->qk_norm == YK_QK_NORM_FULL;
    const uint32_t hd = e->model->hp.head_dim;
    yk_layer_place *pl = &p->e->places[layer];
    YK_TRY(take_qkv(p, w, pl));
    YK_TRY(put_matrix(p, &w->q, "attn_q", layer, &pl->q));
    YK_TRY(put_matrix(p, &w->k, "attn_k", layer, &pl->k));
    YK_TRY(put_matrix(p, &w->v, "attn_v", layer, &pl->v));
    YK_TRY(put_matrix(p, &w->o, "attn_output", layer, &pl->o));
    YK_TRY(put_vector(p, w->attn_norm, d->n_embd, &pl->attn_norm));
    YK_TRY(put_vector(p, w->attn_norm_b, d->n_embd, &pl->attn_norm_b));
    YK_TRY(put_vector(p, w->q_b, d->n_q, &pl->q_b));
    YK_TRY(put_vector(p, w->k_b, d->n_kv, &pl->k_b));
    YK_TRY(put_vector(p, w->v_b, d->n_kv, &pl->v_b));
    YK_TRY(put_vector(p, w->o_b, d->n_embd, &pl->o_b));
    YK_TRY(put_vector(p, w->q_norm, full ? d->n_q : hd, &pl->q_norm));
    YK_TRY(put_vector(p, w->k_norm, full ? d->n_kv : hd, &pl->k_norm));
    YK_TRY(put_vector(p, w->sinks, e->model->hp.n_heads, &pl->sinks));
    YK_TRY(put_vector(p, w->ffn_norm, d->n_embd, &pl->ffn_norm));
    YK_TRY(put_vector(p, w->ffn_norm_b, d->n_embd, &pl->ffn_norm_b));
    if (w->moe) {
        YK_TRY(put_rows(p, &w->router, layer, &pl->router));
        YK_TRY(put_vector(p, w->router_b, w->router.n_rows, &pl->router_b));
        YK_TRY(put_rows(p, &w->sh_router, layer, &pl->sh_router));
    }
    return YK_OK;
}

static bool is_copied_attention(const yk_plan_layer *y)
{
    bool any = false;
    for (int c = 0; c < YK_N_CHUNKS; c++)
        any = any || y->attn_chunk[c];
    return any && y->attn_home == YK_HOST;
}

/* Attention of a layer of the host as one run of bytes that a staging slot takes; base NULL: count only. */
static yk_status put_blob(placer *p, uint32_t layer, uint8_t *base, uint64_t *bytes)
{
    p->blob.on = true;
    p->blob.base = base;
    p->blob.used = 0;
    const yk_status st = put_attention(p, layer);
    p->blob.on = false;
    *bytes = p->blob.used;
    return st;
}

static yk_status count_blobs(placer *p)
{
    for (uint32_t layer = 0; layer < p->plan->n_layers; layer++) {
        uint64_t bytes;
        if (!is_copied_attention(&p->plan->layers[layer]))
            continue;
        YK_TRY(put_blob(p, layer, NULL, &bytes));
        p->blobs += bytes + 64;
    }
    return YK_OK;
}

static yk_status place_attention(placer *p, uint32_t layer)
{
    const yk_engine *e = p->e;
    yk_layer_place *pl = &p->e->places[layer];
    uint64_t bytes;
    if (pl->attn.attn_home != YK_HOST) {
        YK_TRY(put_attention(p, layer));
        pl->attn_dev = true;
        return yk_gpulane_take(p->l, &p->l->kv, (uint64_t)e->kv.n_blocks * 2 * e->d.kv_half, &pl->kv, p->err);
    }
    if (!is_copied_attention(&pl->attn))
        return YK_OK;
    YK_TRY(put_blob(p, layer, NULL, &bytes));
    uint8_t *base = yk_arena_take(&p->e->packed, bytes, 1, 64);
    if (!base)
        return yk_fail_memory(p->err, bytes, "packed weights");
    pl->attn_copy = (yk_slab){.n_units = 1, .unit_bytes = bytes, .host = base};
    p->max_slab = bytes > p->max_slab ? bytes : p->max_slab;
    return put_blob(p, layer, base, &bytes);
}

/* ---- FFN --------------------------------------------------------------------------------------------------------------------------------- */

static yk_ffn_part part_of_slice(const placer *p, uint32_t layer, const yk_slice *s, uint32_t *index)
{
    const yk_layer *w = &p->e->model->layers[layer];
    *index = s->group == YK_PART_SHEXP ? w->gate.n_mats : s->expert;
    return yk_ffn_part_of(w, *index);
}

static yk_status append(placer *p, void *array, uint32_t *n, size_t size, const void *item)
{
    uint8_t *more = yk_realloc(YK_MEM_PLAN, *(void **)array, *n + 1, size);
    if (!more)
        return yk_fail_memory(p->err, (*n + 1) * size, "a placement");
    memcpy(more + *n * size, item, size);
    *(void **)array = more;
    (*n)++;
    return YK_OK;
}

static bool is_copied(const yk_slice *s)
{
    for (int b = 0; b < YK_N_BUCKETS; b++)
        if (s->kind[b] == YK_KIND_CG)
            return true;
    return false;
}

/* Is a slice of the host packed there? One that is copied to the device has to be. */
static bool packs_on_host(const placer *p, const yk_ffn_part *f, const yk_slice *s)
{
    return s->home == YK_HOST && (is_copied(s) || (p->pack_cc && yk_ffn_can_pack(f)));
}

static yk_status take_packed(placer *p, uint64_t bytes, uint8_t **out)
{
    *out = yk_arena_take(&p->e->packed, bytes, 1, 64);
    return *out ? YK_OK : yk_fail_memory(p->err, bytes, "packed weights");
}

/* Experts that may change places are packed on the host too. */
static bool keeps_on_host(const placer *p, uint32_t layer, const yk_slice *s)
{
    return s->group == YK_PART_EXP && s->home != YK_HOST && yk_swap_moves(p->l->swap, layer);
}

/* The bytes of a run to their home; slab->host is where they are packed on the host. */
static yk_status place_slab(placer *p, uint32_t layer, const yk_slice *s, const yk_ffn_part *f, yk_slab *slab)
{
    const uint64_t bytes = slab->unit_bytes * slab->n_units;
    if (s->home != YK_HOST || is_copied(s)) {
        YK_TRY(need_packed(p, f->gate, "ffn_gate", layer));
        YK_TRY(need_packed(p, f->up, "ffn_up", layer));
        YK_TRY(need_packed(p, f->down, "ffn_down", layer));
    }
    if (s->home != YK_HOST) {
        uint8_t *room = NULL;
        if (keeps_on_host(p, layer, s))
            YK_TRY(take_packed(p, bytes, &room));
        else
            YK_TRY(pack_room(p, bytes));
        slab->host = room;
        room = room ? room : p->pack;
        YK_TRY(yk_packer_add_slab(p->packer, f, slab, room, p->err));
        YK_TRY(yk_packer_flush(p->packer, p->err));
        YK_TRY(yk_gpulane_take(p->l, &p->l->weights, bytes, &slab->dev, p->err));
        return upload(p, slab->dev, room, bytes);
    }
    if (!packs_on_host(p, f, s))
        return YK_OK;
    uint8_t *host;
    YK_TRY(take_packed(p, bytes, &host));
    slab->host = host;
    if (is_copied(s))
        p->max_slab = bytes > p->max_slab ? bytes : p->max_slab;
    return yk_packer_add_slab(p->packer, f, slab, host, p->err);
}

/* One run of equal units of a slice: bytes to their home, entries in the tables of every bucket. */
static yk_status place_run(placer *p, uint32_t layer, const yk_slice *s, uint32_t unit0, uint32_t units)
{
    uint32_t index;
    const yk_ffn_part f = part_of_slice(p, layer, s, &index);
    yk_part_place *pp = &p->e->places[layer].parts[index];
    yk_slab slab = yk_slab_of(&f, unit0, units);
    YK_TRY(place_slab(p, layer, s, &f, &slab));
    if (s->group == YK_PART_EXP && yk_swap_moves(p->l->swap, layer))
        yk_swap_put(p->l->swap, layer, s, &slab);
    if (s->home != YK_HOST)
        slab.host = NULL;
    for (int b = 0; b < YK_N_BUCKETS; b++) {
        if (s->kind[b] == YK_KIND_CC) {
            const yk_piece piece = {slab.u0, yk_cut_first(&f.cut, unit0 + units) - slab.u0, slab};
            YK_TRY(append(p, &pp->pieces[b], &pp->n_pieces[b], sizeof piece, &piece));
            p->e->places[layer].cpu_part[b] = true;
        } else {
            YK_TRY(append(p, &pp->slabs[b], &pp->n_slabs[b], sizeof slab, &slab));
            p->e->places[layer].dev_part[b] = true;
            p->e->places[layer].copied_part[b] |= slab.host != NULL;
        }
    }
    return YK_OK;
}

/* A slice as runs of equal units: the last unit of a part may be smaller. */
static yk_status place_slice(placer *p, uint32_t layer, const yk_slice *s)
{
    const yk_cut *cut = &p->shape->layers[layer].part[s->group].cut;
    const uint32_t end = s->unit0 + s->units;
    const bool odd = end == cut->n && s->units > 1 && yk_cut_size(cut, end - 1) != cut->unit;
    YK_TRY(place_run(p, layer, s, s->unit0, s->units - odd));
    return odd ? place_run(p, layer, s, end - 1, 1) : YK_OK;
}

/* A part's row of YK_K_PART_WORDS; false when it is not on the device as a whole, or further than a row can say. */
static bool part_row(const yk_part_place *pp, const yk_ffn_part *f, yk_gpu_mem base, uint32_t *row)
{
    const yk_slab *s = pp->slabs[0], *tail = pp->n_slabs[0] > 1 ? &s[1] : NULL;
    if (pp->n_pieces[0] || !pp->n_slabs[0] || pp->n_slabs[0] > 2 || s->u0 || !s->dev.handle)
        return false;
    const uint32_t cols = s->unit * s->n_units;
    if (tail && (tail->u0 != cols || tail->n_units != 1 || s->unit != YK_CUT_UNIT || !tail->dev.handle))
        return false;
    if (cols + (tail ? tail->unit : 0) != f->gate->n_rows || f->gate->type != f->up->type || s->unit_bytes > UINT32_MAX)
        return false;
    const yk_slab *const both[] = {s, tail};
    uint32_t at[2] = {0};
    for (int i = 0; i < 2 && both[i]; i++) {
        const yk_gpu_mem m = both[i]->dev;
        const uint64_t off = m.offset - base.offset;
        if (m.handle != base.handle || m.offset < base.offset || off % YK_K_PART_ALIGN || off / YK_K_PART_ALIGN > UINT32_MAX)
            return false;
        at[i] = (uint32_t)(off / YK_K_PART_ALIGN);
    }
    const uint32_t words[YK_K_PART_WORDS] = {at[0],
                                             at[1],
                                             s->n_units,
                                             s->unit,
                                             tail ? tail->unit : 0,
                                             (uint32_t)s->unit_bytes,
                                             (uint32_t)s->down_at,
                                             tail ? (uint32_t)tail->down_at : 0,
                                             yk_tile_bytes(f->down->type, s->unit),
                                             tail ? yk_tile_bytes(f->down->type, tail->unit) : 0};
    memcpy(row, words, sizeof words);
    return true;
}

/* The table of a layer whose experts are all on the device, attention too. */
static yk_status place_list(placer *p, uint32_t layer)
{
    const yk_layer *w = &p->e->model->layers[layer];
    yk_layer_place *place = &p->e->places[layer];
    const uint32_t n = yk_ffn_parts(w);
    bool all = w->moe && place->attn_dev && place->parts[0].n_slabs[0];
    for (uint32_t i = 0; i < p->plan->layers[layer].n_slices; i++)
        all = all && p->plan->layers[layer].slices[i].home != YK_HOST;
    if (w->sh_gate.data)
        all = all && !w->gate_b && !w->down_b && w->sh_gate.type == w->gate.type && w->sh_down.type == w->down.type;
    if (!all)
        return YK_OK;
    uint32_t *rows = yk_alloc(YK_MEM_PLAN, n, YK_K_PART_WORDS * sizeof *rows);
    if (!rows)
        return yk_fail_memory(p->err, (uint64_t)n * YK_K_PART_WORDS * sizeof *rows, "a placement");
    const yk_gpu_mem base = place->parts[0].slabs[0][0].dev;
    yk_status st = YK_OK;
    for (uint32_t i = 0; all && i < n; i++) {
        const yk_ffn_part f = yk_ffn_part_of(w, i);
        all = part_row(&place->parts[i], &f, base, rows + (size_t)i * YK_K_PART_WORDS);
        place->list.width = f.gate->n_rows > place->list.width ? f.gate->n_rows : place->list.width;
    }
    place->list.base = base;
    if (all)
        st = put_bytes(p, rows, (uint64_t)n * YK_K_PART_WORDS * sizeof *rows, &place->list.parts);
    yk_free(rows);
    return st;
}

static yk_status place_ffn(placer *p, uint32_t layer)
{
    const yk_layer *w = &p->e->model->layers[layer];
    const yk_plan_layer *pl = &p->plan->layers[layer];
    for (uint32_t i = 0; i < pl->n_slices; i++)
        YK_TRY(place_slice(p, layer, &pl->slices[i]));
    yk_layer_place *place = &p->e->places[layer];
    bool dev = false, cpu = false;
    for (int b = 0; b < YK_N_BUCKETS; b++) {
        dev |= place->dev_part[b];
        cpu |= place->cpu_part[b];
    }
    const yk_weight *const all[] = {&w->gate, &w->up, &w->down, &w->sh_gate, &w->sh_up, &w->sh_down};
    for (int i = 0; !cpu && i < 6; i++)
        release(p, all[i]);
    if (!dev || !w->moe)
        return YK_OK;
    YK_TRY(place_list(p, layer));
    YK_TRY(put_vector(p, w->gate_b, (uint64_t)w->gate.n_mats * w->gate.n_rows, &place->gate_b));
    YK_TRY(put_vector(p, w->up_b, (uint64_t)w->up.n_mats * w->up.n_rows, &place->up_b));
    return put_vector(p, w->down_b, (uint64_t)w->down.n_mats * w->down.n_rows, &place->down_b);
}

/* ---- buffers ------------------------------------------------------------------------------------------------------------------------------ */

/* Take from the activations, or count what would be taken. */
static yk_status take_activation(placer *p, uint64_t bytes, yk_gpu_mem *out)
{
    if (!p->count)
        return yk_gpulane_take(p->l, &p->l->activation, bytes, out, p->err);
    *p->count += (bytes + YK_LANE_ALIGN - 1) / YK_LANE_ALIGN * YK_LANE_ALIGN;
    return YK_OK;
}

static yk_status take_q8(placer *p, yk_k_q8 *q, uint64_t rows, uint64_t cols)
{
    const uint64_t blocks = (cols + 31) / 32;
    YK_TRY(take_activation(p, rows * blocks * 32, &q->q));
    YK_TRY(take_activation(p, rows * blocks * 4, &q->scale));
    return take_activation(p, rows * blocks * 4, &q->sum);
}

static yk_status take_activations(placer *p)
{
    yk_gpulane *l = p->l;
    const yk_engine *e = p->e;
    const yk_dims *d = &e->d;
    const yk_hparams *hp = &e->model->hp;
    const uint64_t n = d->n_tokens, runs = e->max_seqs < d->n_tokens ? e->max_seqs : d->n_tokens;
    const uint64_t listed = (n < YK_LIST_TOKENS ? n : YK_LIST_TOKENS) * (hp->n_used + 1), rows = n > listed ? n : listed;
    const struct {
        yk_gpu_mem *mem;
        uint64_t words;
    } take[] = {
        {&l->x, n * d->n_embd},
        {&l->norm, n * d->n_in},
        {&l->qkv, n * d->n_qkv},
        {&l->q, n * d->n_q},
        {&l->att, n * d->n_q},
        {&l->y_attn, n * d->n_embd},
        {&l->y_dev, rows * d->n_embd},
        {&l->y_cpu, n * d->n_embd},
        {&l->gate, rows * 2 * ((d->n_ff + 15) / 16 * 16)},
        {&l->h, rows * d->n_ff},
        {&l->router, n * (hp->n_experts + 1)},
        {&l->ids, n * (hp->n_used + 1)},
        {&l->id_weight, n * (hp->n_used + 1)},
        {&l->lists, 4 * n + d->n_logits + runs * d->max_blocks},
        {&l->att_part, runs * (yk_k_attention_part_bytes(hp->n_heads, hp->n_kv_heads, hp->head_dim, e->context) / 4)},
        {&l->att_arrived, runs * hp->n_heads},
        {&l->slot_token, d->n_slots},
        {&l->slot_weight, d->n_slots},
        {&l->rope_cs, (uint64_t)e->context * hp->n_rot},
        {&l->logits, e->head_dev || p->count ? (uint64_t)d->n_logits * hp->n_vocab : 0},
    };
    for (size_t i = 0; i < sizeof take / sizeof *take; i++)
        YK_TRY(take_activation(p, take[i].words * 4, take[i].mem));
    YK_TRY(take_q8(p, &l->q8, n, d->n_embd));
    YK_TRY(take_q8(p, &l->o_q8, n, d->n_q));
    return take_q8(p, &l->h_q8, rows, d->n_ff);
}

uint64_t yk_gpulane_activation_bytes(const yk_engine *e)
{
    uint64_t bytes = 0;
    yk_gpulane none = {0};
    placer p = {.l = &none, .e = (yk_engine *)(uintptr_t)e, .count = &bytes}; /* counting changes nothing */
    take_activations(&p);
    return bytes;
}

uint64_t yk_gpulane_slack_bytes(const yk_engine *e)
{
    enum { MATS = 32, SLICES = 8 }; /* of a layer: matrices and vectors of attention; slices beside the experts, at most */
    const yk_model *m = e->model;
    uint64_t bytes = 16 * YK_LANE_ALIGN;
    for (uint32_t i = 0; i < m->hp.n_layers; i++) {
        const yk_layer *w = &m->layers[i];
        bytes += (uint64_t)YK_LANE_ALIGN * (MATS + 2 * (w->gate.n_mats + SLICES));
        bytes += 4ull * w->gate.n_mats *
                 ((w->gate_b ? w->gate.n_rows : 0) + (w->up_b ? w->up.n_rows : 0) + (w->down_b ? w->down.n_rows : 0));
    }
    return bytes;
}

static yk_status take_buffers(placer *p)
{
    yk_gpulane *l = p->l;
    const yk_engine *e = p->e;
    const yk_hparams *hp = &e->model->hp;
    YK_TRY(take_activations(p));
    YK_TRY(upload(p, l->rope_cs, e->rope_cs, (uint64_t)e->context * hp->n_rot * sizeof(float)));
    YK_TRY(yk_gpulane_check(l, l->t->fill(l->compute, l->att_arrived, 0, l->att_arrived.bytes), "a fill of memory", p->err));
    l->slot_bytes = p->max_slab;
    for (int i = 0; i < YK_LANE_SLOTS; i++) {
        YK_TRY(yk_gpulane_take(l, &l->staging, l->slot_bytes, &l->slot[i], p->err));
        YK_TRY(yk_gpulane_check(l, l->t->event_record(l->compute, l->ev[YK_EV_FREE + i]), "an event", p->err));
    }
    if (!p->blobs)
        return YK_OK;
    YK_TRY(yk_lane_kv_open(l, e->kv.n_blocks, p->err));
    return yk_gpulane_take(l, &l->staging, (uint64_t)e->kv.n_blocks * 2 * e->d.kv_half, &l->kv_scratch, p->err);
}

/* Host memory that copies use, page-locked where the device can. */
static yk_status take_host(placer *p)
{
    yk_gpulane *l = p->l;
    const yk_engine *e = p->e;
    const yk_dims *d = &e->d;
    const uint32_t k = e->model->hp.n_used;
    const size_t n = d->n_tokens, runs = e->max_seqs < d->n_tokens ? e->max_seqs : d->n_tokens;
    const size_t width = d->n_in > d->n_embd ? d->n_in : d->n_embd, lists = (size_t)e->model->hp.n_layers * d->n_slots;
    const size_t sizes[] = {
        n * width, n * d->n_embd, n * (k + 1), n * (k + 1), lists, lists, 4 * n + d->n_logits + runs * d->max_blocks};
    void **const at[] = {(void **)&l->host_rows,   (void **)&l->host_y,     (void **)&l->host_ids,
                         (void **)&l->host_weight, (void **)&l->host_token, (void **)&l->host_slot_weight,
                         (void **)&l->host_lists};
    size_t total = 0;
    for (size_t i = 0; i < 7; i++)
        total += (sizes[i] * 4 + 63) / 64 * 64;
    void *mem = NULL;
    l->host_locked = l->t->host_alloc(l->gpu, total, &mem) == YK_OK && mem;
    l->host = l->host_locked ? mem : yk_alloc(YK_MEM_STAGING, total, 1);
    if (!l->host)
        return yk_fail_memory(p->err, total, "copy buffers");
    size_t used = 0;
    for (size_t i = 0; i < 7; i++) {
        *at[i] = l->host + used;
        used += (sizes[i] * 4 + 63) / 64 * 64;
    }
    return YK_OK;
}

static yk_status place_head(placer *p)
{
    yk_gpulane *l = p->l;
    const yk_model *m = p->e->model;
    if (p->plan->head_home == YK_HOST)
        return YK_OK;
    YK_TRY(put_matrix(p, &m->output, "output", m->hp.n_layers, &l->head));
    YK_TRY(put_vector(p, m->output_norm, m->hp.n_embd, &l->output_norm));
    YK_TRY(put_vector(p, m->output_norm_b, m->hp.n_embd, &l->output_norm_b));
    YK_TRY(put_vector(p, m->output_b, m->hp.n_vocab, &l->output_b));
    p->e->head_dev = true;
    return YK_OK;
}

/* Bytes of all slices that are packed on the host; what goes to the device is added to its arena's expectation and to the total. */
static uint64_t count_bytes(placer *p)
{
    uint64_t packed = p->blobs;
    p->packer->total += p->blobs;
    for (uint32_t layer = 0; layer < p->plan->n_layers; layer++)
        for (uint32_t i = 0; i < p->plan->layers[layer].n_slices; i++) {
            const yk_slice *s = &p->plan->layers[layer].slices[i];
            uint32_t index;
            const yk_ffn_part f = part_of_slice(p, layer, s, &index);
            if (s->home == YK_HOST && !packs_on_host(p, &f, s))
                continue;
            uint64_t bytes = 0;
            for (uint32_t u = s->unit0; u < s->unit0 + s->units; u++)
                bytes += yk_slab_of(&f, u, 1).unit_bytes;
            p->packer->total += bytes;
            if (s->home == YK_HOST || keeps_on_host(p, layer, s))
                packed += bytes + 2 * 64;
            if (s->home != YK_HOST)
                p->l->weights.remaining += bytes + 2 * 256;
        }
    return packed;
}

/* Page-lock what is copied from, where the device can: copies then go straight from there, one at a time. Locking takes all of
 * the memory, so KV only where the plan counts all of it as the host's. */
static void lock_host(placer *p)
{
    yk_gpulane *l = p->l;
    yk_engine *e = p->e;
    bool all_kv = p->blobs > 0;
    for (uint32_t layer = 0; layer < p->plan->n_layers; layer++)
        all_kv = all_kv && p->plan->layers[layer].attn_home == YK_HOST;
    if (e->packed.size)
        l->packed_locked = l->t->host_register(l->gpu, e->packed.base, e->packed.size) == YK_OK;
    if (all_kv)
        l->kv_locked = l->t->host_register(l->gpu, e->kv.arena.base, e->kv.arena.size) == YK_OK;
}

static void drop_swap(placer *p, const char *why)
{
    yk_log(YK_LOG_WARN, "experts stay where the plan has them (policy static): %s", why);
    yk_swap_close(&p->l->swap);
}

/* Packing for the CPU alone only where memory is at hand; what the device copies has to be packed. */
static yk_status choose_packing(placer *p, const yk_engine_opts *o, uint64_t *packed)
{
    const uint64_t weights = p->l->weights.remaining, total = p->packer->total;
    yk_cpu_info cpu;
    YK_TRY(yk_topology_info(&cpu, p->err));
    p->pack_cc = !o->no_repack;
    if (p->l->swap && !p->pack_cc)
        drop_swap(p, "weights are not packed");
    *packed = count_bytes(p);
    if (p->l->swap && *packed > cpu.memory_available_bytes) {
        drop_swap(p, "RAM is too small for experts of the device to be there too");
        p->l->weights.remaining = weights;
        p->packer->total = total;
        *packed = count_bytes(p);
    }
    if (!p->pack_cc || *packed <= cpu.memory_available_bytes)
        return YK_OK;
    yk_log(YK_LOG_WARN,
           "the CPU's weights stay as the file has them, which is slower: packed they need %" PRIu64
           " bytes, available are %" PRIu64,
           *packed, cpu.memory_available_bytes);
    p->pack_cc = false;
    yk_pack_cache_drop(p->e->cache);
    p->l->weights.remaining = weights;
    p->packer->total = total;
    *packed = count_bytes(p);
    return YK_OK;
}

yk_status yk_gpulane_place(yk_gpulane *lane, const yk_plan *plan, const yk_shape *shape, const yk_engine_opts *o, yk_error *err)
{
    yk_engine *e = lane->e;
    const uint32_t n_layers = e->model->hp.n_layers;
    placer p = {.l = lane, .e = e, .plan = plan, .shape = shape, .err = err};
    for (uint32_t i = 0; i < plan->n_devices; i++)
        YK_FAIL_IF(strcmp(plan->devices[i], lane->name) != 0, err, YK_ERR_INPUT, "plan: device %s is not the open one, %s",
                   plan->devices[i], lane->name);
    uint64_t packed = 0;
    for (uint32_t layer = 0; layer < n_layers; layer++) {
        e->places[layer].parts = yk_alloc(YK_MEM_PLAN, e->d.n_parts, sizeof *e->places->parts);
        if (!e->places[layer].parts)
            return yk_fail_memory(err, e->d.n_parts * sizeof *e->places->parts, "a placement");
        e->places[layer].attn = plan->layers[layer];
        e->places[layer].attn.slices = NULL;
        e->places[layer].attn.n_slices = 0;
        if (plan->layers[layer].attn_home != YK_HOST)
            lane->kv.remaining += (uint64_t)e->kv.n_blocks * 2 * e->d.kv_half + YK_LANE_ALIGN;
        if (plan->layers[layer].attn_home != YK_HOST)
            lane->weights.remaining += yk_shape_attn_bytes(&shape->layers[layer]) + 24 * YK_LANE_ALIGN;
    }
    lane->weights.remaining += plan->head_home != YK_HOST ? shape->head.bytes + 4 * YK_LANE_ALIGN : 0;
    p.packer = yk_alloc(YK_MEM_STAGING, 1, sizeof *p.packer);
    if (!p.packer)
        return yk_fail_memory(err, sizeof *p.packer, "packing weights");
    *p.packer = (yk_packer){.e = e, .progress = o->progress, .progress_user = o->progress_user};
    yk_status st = count_blobs(&p);
    if (st == YK_OK)
        st = choose_packing(&p, o, &packed);
    if (st == YK_OK)
        st = yk_arena_open(&e->packed, YK_MEM_WEIGHTS, packed, true, err);
    for (uint32_t layer = 0; st == YK_OK && layer < n_layers; layer++) {
        st = place_attention(&p, layer);
        if (st == YK_OK)
            st = place_ffn(&p, layer);
    }
    if (st == YK_OK)
        st = yk_packer_flush(p.packer, err);
    if (st == YK_OK)
        lock_host(&p);
    if (st == YK_OK)
        st = place_head(&p);
    if (st == YK_OK)
        st = take_buffers(&p);
    if (st == YK_OK)
        st = take_host(&p);
    if (st == YK_OK && lane->swap)
        st = yk_swap_ready(lane->swap, err);
    yk_free(p.packer);
    yk_free(p.pack);
    return st;
}

uint64_t yk_place_bytes(yk_type type, uint32_t n_rows, uint32_t n_cols)
{
    uint64_t row = 0;
    if (yk_pack_has(type))
        return yk_packed_bytes(type, n_rows, n_cols);
    yk_type_row_bytes(type, n_cols, &row);
    return row * n_rows;
}

bool yk_place_can(yk_type type, bool plain)
{
    if (plain)
        return type == YK_TYPE_F32 || type == YK_TYPE_F16 || type == YK_TYPE_BF16;
    return yk_pack_has(type) && yk_k_matvec_name(type, 1);
}

void yk_places_close(yk_layer_place **places, uint32_t n_layers, uint32_t n_parts)
{
    for (uint32_t l = 0; *places && l < n_layers; l++) {
        yk_part_place *parts = (*places)[l].parts;
        for (uint32_t i = 0; parts && i < n_parts; i++)
            for (int b = 0; b < YK_N_BUCKETS; b++) {
                yk_free(parts[i].pieces[b]);
                yk_free(parts[i].slabs[b]);
            }
        yk_free(parts);
    }
    yk_free(*places);
    *places = NULL;
}
