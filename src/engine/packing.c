#include "src/engine/packing.h"

#include <inttypes.h>

#include "cpu/pack.h"
#include "src/base/log.h"
#include "src/engine/pack_cache.h"
#include "src/engine/stages.h"

enum {
    PANELS = 64 << 10,
    UNITS = 4, /* cut units of `down` at once: their columns of a row lie beside each other, 144 bytes a unit in Q4_K */
    FLUSH_BYTES = 64 << 20,
    RELEASE = 8, /* items whose source is given back at once */
    ALIGN = 64
};

/* ---- geometry ------------------------------------------------------------------------------------------------------------------------ */

yk_ffn_part yk_ffn_part_of(const yk_layer *l, uint32_t p)
{
    yk_ffn_part f = {.gate = &l->gate, .up = &l->up, .down = &l->down, .mat = p};
    if (l->moe && p >= l->gate.n_mats)
        f = (yk_ffn_part){.gate = &l->sh_gate, .up = &l->sh_up, .down = &l->sh_down};
    f.index = p;
    f.cut = yk_cut_units(f.gate->n_rows, yk_type_get(f.down->type)->block_elems);
    return f;
}

bool yk_ffn_can_pack(const yk_ffn_part *f)
{
    return yk_pack_has(f->gate->type) && yk_pack_has(f->up->type) && yk_pack_has(f->down->type);
}

yk_slab yk_slab_of(const yk_ffn_part *f, uint32_t unit0, uint32_t units)
{
    yk_slab s = {.u0 = yk_cut_first(&f->cut, unit0), .unit = yk_cut_size(&f->cut, unit0), .n_units = units};
    s.up_at = yk_panel_bytes(f->gate->type, f->gate->n_cols);
    s.pair_bytes = s.up_at + yk_panel_bytes(f->up->type, f->up->n_cols);
    s.down_at = s.pair_bytes * yk_ceil_div(s.unit, YK_TILE_ROWS);
    s.unit_bytes = s.down_at + yk_packed_bytes(f->down->type, f->down->n_rows, s.unit);
    return s;
}

/* ---- the work of a slice ---------------------------------------------------------------------------------------------------------------- */

static void pack_rows(const yk_pack_item *it)
{
    yk_pack(it->w->type, yk_weight_row(it->w, 0, it->row0), it->w->row_bytes, it->n_rows, 0, it->w->n_cols, it->out);
}

/* The pairs of panels of a cut unit. */
static void pack_pairs(const yk_pack_item *it)
{
    const yk_ffn_part *f = &it->part;
    const yk_slab *s = &it->unit;
    for (uint32_t r = 0; r < s->unit; r += YK_TILE_ROWS) {
        const uint32_t n = s->unit - r < YK_TILE_ROWS ? s->unit - r : YK_TILE_ROWS;
        uint8_t *pair = it->out + s->pair_bytes * (r / YK_TILE_ROWS);
        yk_pack(f->gate->type, yk_weight_row(f->gate, f->mat, s->u0 + r), f->gate->row_bytes, n, 0, f->gate->n_cols, pair);
        yk_pack(f->up->type, yk_weight_row(f->up, f->mat, s->u0 + r), f->up->row_bytes, n, 0, f->up->n_cols, pair + s->up_at);
    }
}

static void pack_downs(const yk_pack_item *it)
{
    const yk_weight *w = it->part.down;
    const yk_pack_run run = {it->unit.u0, it->unit.unit, it->unit.n_units, it->unit.unit_bytes};
    yk_pack_units(w->type, yk_weight_row(w, it->part.mat, 0), w->row_bytes, w->n_rows, &run, it->out);
}

/* ---- giving back -------------------------------------------------------------------------------------------------------------------------- */

static bool in_file(const yk_model *m, const uint8_t *p, uint64_t bytes)
{
    for (uint32_t i = 0; i < m->gguf.n_files; i++) {
        const yk_map *map = &m->gguf.maps[i];
        if (map->data && p >= map->data && p + bytes <= map->data + map->size)
            return true;
    }
    return false;
}

void yk_pack_release(const yk_model *m, const yk_weight *w, uint32_t mat, uint32_t row0, uint32_t n_rows)
{
    const uint64_t bytes = w->row_bytes * n_rows;
    if ((w->data || w->mats) && in_file(m, yk_weight_row(w, mat, row0), bytes))
        yk_map_release(yk_weight_row(w, mat, row0), bytes);
}

static void release_units(const yk_model *m, const yk_pack_item *it)
{
    const yk_ffn_part *f = &it->part;
    if (!it->down) {
        yk_pack_release(m, f->gate, f->mat, it->unit.u0, it->unit.unit);
        yk_pack_release(m, f->up, f->mat, it->unit.u0, it->unit.unit);
    } else if (it->unit.u0 + it->unit.unit * it->unit.n_units == f->cut.width) { /* the last units to read its rows */
        yk_pack_release(m, f->down, f->mat, 0, f->down->n_rows);
    }
}

/* The source of items [i, end); rows that follow each other in one call, because each call interrupts the other processors. */
static void release_items(const yk_packer *p, uint32_t i, uint32_t end)
{
    if (p->keep_source || yk_pack_cache_reading(p->e->cache)) /* what is not read is not there */
        return;
    while (i < end) {
        const yk_pack_item *it = &p->items[i++];
        uint32_t rows = it->n_rows;
        if (!it->w) {
            release_units(p->e->model, it);
            continue;
        }
        for (; i < end && p->items[i].w == it->w && p->items[i].row0 == it->row0 + rows; i++)
            rows += p->items[i].n_rows;
        yk_pack_release(p->e->model, it->w, 0, it->row0, rows);
    }
}

/* ---- a slice ------------------------------------------------------------------------------------------------------------------------------ */

/* A slice that is computed twice writes the same bytes twice; nobody reads them before all workers are out. */
static void make_item(const yk_packer *p, const yk_pack_item *it)
{
    yk_pack_cache *c = p->e->cache;
    const uint32_t n = c && it->down ? it->unit.n_units : 1;
    uint32_t have = 0;
    while (have < n && yk_pack_cache_get(c, it->entry + YK_CACHE_PER_UNIT * have, it->out + have * it->unit.unit_bytes))
        have++;
    if (have == n)
        return;
    if (it->w)
        pack_rows(it);
    else if (it->down)
        pack_downs(it);
    else
        pack_pairs(it);
    for (uint32_t i = 0; c && i < n; i++)
        yk_pack_cache_put(c, it->entry + YK_CACHE_PER_UNIT * i, it->out + i * it->unit.unit_bytes);
}

/* Each worker gives back too: that costs as much as mapping did. The group before the one that is finished here; should one of its items still be in work,
 * its pages are mapped again, and stay. */
static void run_item(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    (void)w;
    const yk_packer *p = st->arg;
    make_item(p, &p->items[slice]);
    if (slice % RELEASE == RELEASE - 1 && slice >= 2 * RELEASE - 1)
        release_items(p, slice - (2 * RELEASE - 1), slice - (RELEASE - 1));
}

/* ---- collecting ----------------------------------------------------------------------------------------------------------------------- */

static yk_status tell(yk_packer *p, uint64_t bytes, yk_error *err)
{
    const char *what = yk_pack_cache_writing(p->e->cache) ? "placing weights and writing the pack cache" : "placing weights";
    p->done += bytes;
    if (p->progress && !p->progress(p->progress_user, what, p->done < p->total ? p->done : p->total, p->total))
        return yk_fail(err, YK_ERR_CANCELLED, "cancelled while placing weights");
    return YK_OK;
}

yk_status yk_packer_flush(yk_packer *p, yk_error *err)
{
    if (!p->n)
        return YK_OK;
    _Atomic(uint64_t) owners[YK_PACK_ITEMS], claims[1];
    yk_stage stage = {.name = "pack", .run = run_item, .arg = p, .max_slices = p->n};
    yk_job job = {.stages = &stage, .n_stages = 1, .owners = owners, .claims = claims};
    for (uint32_t i = 0; i < p->n; i++)
        atomic_init(&owners[i], 0);
    atomic_init(&claims[0], 0);
    const yk_status st = yk_pool_run(p->e->pool, &job, err);
    yk_pool_wait_job(p->e->pool, &job);
    release_items(p, (p->n / RELEASE > 1 ? p->n / RELEASE - 1 : 0) * RELEASE, p->n);
    const uint64_t bytes = p->bytes;
    p->n = 0;
    p->bytes = 0;
    return st == YK_OK ? tell(p, bytes, err) : st;
}

static yk_status add(yk_packer *p, const yk_pack_item *it, uint64_t bytes, yk_error *err)
{
    p->items[p->n++] = *it;
    p->bytes += bytes;
    return p->n == YK_PACK_ITEMS || p->bytes >= FLUSH_BYTES ? yk_packer_flush(p, err) : YK_OK;
}

uint32_t yk_pack_rows_at_once(const yk_weight *w)
{
    return ((uint32_t)(PANELS / yk_panel_bytes(w->type, w->n_cols)) + 1) * YK_TILE_ROWS;
}

yk_status yk_packer_add_matrix(yk_packer *p, const yk_weight *w, uint8_t *out, yk_error *err)
{
    const uint64_t panel = yk_panel_bytes(w->type, w->n_cols);
    const uint32_t rows = yk_pack_rows_at_once(w);
    for (uint32_t r = 0; r < w->n_rows; r += rows) {
        const uint32_t n = w->n_rows - r < rows ? w->n_rows - r : rows;
        yk_pack_item it = {.w = w, .row0 = r, .n_rows = n, .out = out + r / YK_TILE_ROWS * panel};
        it.entry = p->e->cache ? yk_pack_cache_matrix(p->e->cache, w, r) : YK_CACHE_NONE;
        YK_TRY(add(p, &it, yk_packed_bytes(w->type, n, w->n_cols), err));
    }
    return YK_OK;
}

/* n consecutive units of a slab from the i-th on: their `down`, or (one unit) their pairs. */
static yk_status add_units(yk_packer *p, const yk_pack_item *slab, uint32_t i, uint32_t n, bool down, yk_error *err)
{
    yk_pack_item it = *slab;
    const yk_slab *s = &slab->unit;
    it.down = down;
    it.unit.u0 += i * s->unit;
    it.unit.n_units = n;
    it.out += i * s->unit_bytes + (down ? s->down_at : 0);
    it.entry = YK_CACHE_NONE;
    if (p->e->cache)
        it.entry = yk_pack_cache_unit(p->e->cache, it.part.gate, it.part.index, it.unit.u0 / it.part.cut.unit, down);
    return add(p, &it, n * (down ? s->unit_bytes - s->down_at : s->down_at), err);
}

yk_status yk_packer_add_slab(yk_packer *p, const yk_ffn_part *f, const yk_slab *slab, uint8_t *out, yk_error *err)
{
    const yk_pack_item it = {.part = *f, .unit = *slab, .out = out};
    for (uint32_t i = 0; i < slab->n_units; i += UNITS) {
        const uint32_t n = slab->n_units - i < UNITS ? slab->n_units - i : UNITS;
        for (uint32_t k = i; k < i + n; k++)
            YK_TRY(add_units(p, &it, k, 1, false, err));
        YK_TRY(add_units(p, &it, i, n, true, err));
    }
    return YK_OK;
}

/* ---- an engine's own ------------------------------------------------------------------------------------------------------------------ */

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

bool yk_pack_form(const yk_weight *w)
{
    return w->data && yk_pack_has(w->type);
}

/* The matrices of layer `layer` that the CPU reads as a whole. */
static uint32_t whole_matrices(const yk_engine *e, uint32_t layer, const yk_weight *out[YK_W_N])
{
    const yk_layer *l = &e->model->layers[layer];
    const yk_weight *const all[YK_W_N] = {&l->q, &l->k, &l->v, &l->o, &l->router};
    uint32_t n = 0;
    for (uint32_t i = 0; i < YK_W_N; i++) {
        const bool there = e->places && (e->places[layer].attn_dev || (i < YK_W_ROUTER && e->places[layer].attn_copy.host));
        out[i] = !there && yk_pack_form(all[i]) ? all[i] : NULL;
        n += out[i] != NULL;
    }
    return n;
}

uint32_t yk_ffn_parts(const yk_layer *l)
{
    return (l->moe ? l->gate.n_mats : 1) + (l->sh_gate.data ? 1 : 0);
}

/* A part as at most two slabs: the equal units, and the last one where it is smaller. */
static uint32_t slabs_of(const yk_ffn_part *f, yk_slab slabs[2])
{
    const bool odd = f->cut.n > 1 && yk_cut_size(&f->cut, f->cut.n - 1) != f->cut.unit;
    slabs[0] = yk_slab_of(f, 0, f->cut.n - odd);
    if (odd)
        slabs[1] = yk_slab_of(f, f->cut.n - 1, 1);
    return 1 + odd;
}

static uint64_t part_bytes(const yk_ffn_part *f)
{
    yk_slab s[2];
    uint64_t bytes = 0;
    const uint32_t n = yk_ffn_can_pack(f) ? slabs_of(f, s) : 0;
    for (uint32_t i = 0; i < n; i++)
        bytes += aligned(s[i].unit_bytes * s[i].n_units);
    return bytes;
}

static uint64_t matrix_bytes(const yk_weight *w)
{
    return aligned(yk_packed_bytes(w->type, w->n_rows, w->n_cols));
}

static uint64_t pack_bytes(const yk_engine *e)
{
    const yk_model *m = e->model;
    uint64_t bytes = !e->head_dev && yk_pack_form(&m->output) ? matrix_bytes(&m->output) : 0;
    for (uint32_t i = 0; i < m->hp.n_layers; i++) {
        const yk_weight *w[YK_W_N];
        whole_matrices(e, i, w);
        for (uint32_t k = 0; k < YK_W_N; k++)
            bytes += w[k] ? matrix_bytes(w[k]) : 0;
        for (uint32_t p = 0; !e->places && p < yk_ffn_parts(&m->layers[i]); p++) {
            const yk_ffn_part f = yk_ffn_part_of(&m->layers[i], p);
            bytes += part_bytes(&f);
        }
    }
    return bytes;
}

static yk_status pack_whole(yk_packer *p, const yk_weight *w, yk_packed *to, yk_error *err)
{
    uint8_t *out = yk_arena_take(&p->e->weights, matrix_bytes(w), 1, ALIGN);
    if (!out)
        return yk_fail_memory(err, matrix_bytes(w), "packed weights");
    *to = (yk_packed){out, yk_panel_bytes(w->type, w->n_cols)};
    return yk_packer_add_matrix(p, w, out, err);
}

static yk_status pack_part(yk_packer *p, uint32_t layer, uint32_t part, yk_error *err)
{
    const yk_ffn_part f = yk_ffn_part_of(&p->e->model->layers[layer], part);
    yk_slab s[2];
    yk_whole_part *to = &p->e->parts[(size_t)layer * p->e->d.n_parts + part];
    to->n = yk_ffn_can_pack(&f) ? slabs_of(&f, s) : 0;
    for (uint32_t i = 0; i < to->n; i++) {
        uint8_t *out = yk_arena_take(&p->e->weights, s[i].unit_bytes * s[i].n_units, 1, ALIGN);
        if (!out)
            return yk_fail_memory(err, s[i].unit_bytes * s[i].n_units, "packed weights");
        s[i].host = out;
        const uint32_t end = s[i].u0 + s[i].unit * s[i].n_units;
        to->piece[i] = (yk_piece){s[i].u0, end - s[i].u0, s[i]};
        YK_TRY(yk_packer_add_slab(p, &f, &s[i], out, err));
    }
    return YK_OK;
}

static yk_status pack_all(yk_packer *p, yk_error *err)
{
    yk_engine *e = p->e;
    const yk_model *m = e->model;
    for (uint32_t i = 0; i < m->hp.n_layers; i++) {
        const yk_weight *w[YK_W_N];
        if (whole_matrices(e, i, w))
            for (uint32_t k = 0; k < YK_W_N; k++)
                if (w[k])
                    YK_TRY(pack_whole(p, w[k], &e->mats[(size_t)i * YK_W_N + k], err));
        for (uint32_t part = 0; e->parts && part < yk_ffn_parts(&m->layers[i]); part++)
            YK_TRY(pack_part(p, i, part, err));
    }
    if (!e->head_dev && yk_pack_form(&m->output))
        YK_TRY(pack_whole(p, &m->output, &e->head, err));
    return yk_packer_flush(p, err);
}

/* Attention that is copied to the device is packed already: the CPU reads it there too. */
static yk_status adopt_copied(yk_engine *e, yk_error *err)
{
    const uint32_t n = e->model->hp.n_layers;
    for (uint32_t i = 0; e->places && i < n; i++) {
        const yk_layer_place *pl = &e->places[i];
        const yk_dev_mat *const from[YK_W_ROUTER] = {&pl->q, &pl->k, &pl->v, &pl->o};
        if (!pl->attn_copy.host)
            continue;
        if (!e->mats && !(e->mats = yk_alloc(YK_MEM_PLAN, (size_t)n * YK_W_N, sizeof *e->mats)))
            return yk_fail_memory(err, (size_t)n * YK_W_N * sizeof *e->mats, "tables of packed weights");
        for (uint32_t k = 0; k < YK_W_ROUTER; k++)
            e->mats[(size_t)i * YK_W_N + k] = (yk_packed){pl->attn_copy.host + from[k]->mem.offset, from[k]->panel_bytes};
    }
    return YK_OK;
}

static yk_status open_tables(yk_engine *e, uint64_t bytes, yk_error *err)
{
    const size_t n = e->model->hp.n_layers;
    e->mats = e->mats ? e->mats : yk_alloc(YK_MEM_PLAN, n * YK_W_N, sizeof *e->mats);
    e->parts = e->places ? NULL : yk_alloc(YK_MEM_PLAN, n * e->d.n_parts, sizeof *e->parts);
    if (!e->mats || (!e->places && !e->parts))
        return yk_fail_memory(err, n * (YK_W_N * sizeof *e->mats + e->d.n_parts * sizeof *e->parts),
                              "tables of packed weights");
    return yk_arena_open(&e->weights, YK_MEM_WEIGHTS, bytes, true, err);
}

yk_status yk_engine_pack(yk_engine *e, const yk_engine_opts *o, yk_error *err)
{
    const uint64_t bytes = pack_bytes(e);
    yk_cpu_info cpu;
    YK_TRY(adopt_copied(e, err));
    if (o->no_repack || !bytes)
        return YK_OK;
    YK_TRY(yk_topology_info(&cpu, err));
    const uint64_t reserved = e->act.size + e->kv.arena.size + e->packed.size; /* most of it not touched yet */
    if (reserved > cpu.memory_available_bytes || bytes > cpu.memory_available_bytes - reserved) {
        yk_log(YK_LOG_WARN,
               "weights stay as the file has them, which is slower: packed they need %" PRIu64 " bytes beside %" PRIu64
               " for the rest, available are %" PRIu64,
               bytes, reserved, cpu.memory_available_bytes);
        yk_pack_cache_drop(e->cache);
        return YK_OK;
    }
    YK_TRY(open_tables(e, bytes, err));
    yk_packer *p = yk_alloc(YK_MEM_STAGING, 1, sizeof *p);
    if (!p)
        return yk_fail_memory(err, sizeof *p, "packing weights");
    *p = (yk_packer){.e = e, .progress = o->progress, .progress_user = o->progress_user, .total = bytes};
    const yk_status st = pack_all(p, err);
    yk_free(p);
    return st;
}

/* One piece that no placement needed, into memory of its own: the cache is for every plan. */
static yk_status put_missing(yk_packer *p, const yk_cache_entry *c, yk_error *err)
{
    const yk_model *m = p->e->model;
    uint8_t *out = yk_alloc(YK_MEM_STAGING, c->bytes, 1);
    if (!out)
        return yk_fail_memory(err, c->bytes, "a piece of the pack cache");
    yk_pack_item it = {.out = out, .entry = (uint32_t)(c - yk_pack_cache_entry(p->e->cache, 0))};
    if (c->what >= YK_CACHE_PAIRS) {
        it.down = c->what == YK_CACHE_DOWN;
        it.part = yk_ffn_part_of(&m->layers[c->layer], c->part);
        it.unit = yk_slab_of(&it.part, c->first, 1);
    } else {
        const yk_layer *l = c->what == YK_CACHE_HEAD ? NULL : &m->layers[c->layer];
        const yk_weight *const all[] = {l ? &l->q : NULL, l ? &l->k : NULL,      l ? &l->v : NULL,
                                        l ? &l->o : NULL, l ? &l->router : NULL, &m->output};
        it.w = all[c->what];
        it.row0 = c->first * YK_TILE_ROWS;
        it.n_rows = it.w->n_rows - it.row0 < c->n * YK_TILE_ROWS ? it.w->n_rows - it.row0 : c->n * YK_TILE_ROWS;
    }
    yk_status st = add(p, &it, c->bytes, err);
    if (st == YK_OK)
        st = yk_packer_flush(p, err);
    yk_free(out);
    return st;
}

yk_status yk_engine_pack_finish(yk_engine *e, const yk_engine_opts *o, yk_error *err)
{
    if (!e->cache)
        return YK_OK;
    yk_packer *p = yk_alloc(YK_MEM_STAGING, 1, sizeof *p);
    if (!p)
        return yk_fail_memory(err, sizeof *p, "packing weights");
    *p = (yk_packer){.e = e, .progress = o->progress, .progress_user = o->progress_user, .keep_source = true};
    yk_status st = YK_OK;
    for (uint32_t i = 0;
         st == YK_OK && yk_pack_cache_writing(e->cache) && (i = yk_pack_cache_missing(e->cache, i)) != YK_CACHE_NONE; i++) {
        p->total += yk_pack_cache_entry(e->cache, i)->bytes;
        st = put_missing(p, yk_pack_cache_entry(e->cache, i), err);
    }
    yk_free(p);
    if (st == YK_OK)
        yk_pack_cache_finish(&e->cache);
    return st;
}
