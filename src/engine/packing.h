/* packing.h - weights from the mapped file into packed memory (cpu/pack.h), by all workers, with the file's pages given back as they are done. */
#ifndef YK_ENGINE_PACKING_H
#define YK_ENGINE_PACKING_H

#include "src/engine/engine.h"

/* One FFN part of a layer, and how it is cut. */
typedef struct yk_ffn_part {
    const yk_weight *gate, *up, *down;
    uint32_t mat;   /* matrix in a set of experts */
    uint32_t index; /* of the part in its layer */
    yk_cut cut;
} yk_ffn_part;

/* Part p of a layer: the dense FFN (0), an expert, or behind the experts the shared one. */
yk_ffn_part yk_ffn_part_of(const yk_layer *l, uint32_t p);
/* Parts of a layer. */
uint32_t yk_ffn_parts(const yk_layer *l);
/* True for a matrix that is there and has a packed form. */
bool yk_pack_form(const yk_weight *w);
/* Rows of a matrix that are packed at once, whole panels; from the matrix alone. */
uint32_t yk_pack_rows_at_once(const yk_weight *w);
/* True when all three matrices have a packed form. */
bool yk_ffn_can_pack(const yk_ffn_part *f);
/* Geometry of `units` cut units of equal size from cut unit `unit0` on; no memory yet. */
yk_slab yk_slab_of(const yk_ffn_part *f, uint32_t unit0, uint32_t units);

enum { YK_PACK_ITEMS = 512 };

typedef struct yk_pack_item {
    const yk_weight *w; /* rows of a matrix, or NULL: of cut units */
    uint32_t row0, n_rows;
    yk_ffn_part part;
    bool down;      /* the tiles of `down` of n_units cut units; false: the pairs of panels of one */
    yk_slab unit;   /* u0, unit and n_units of these cut units */
    uint8_t *out;   /* for the first of them */
    uint32_t entry; /* in the pack cache, likewise */
} yk_pack_item;

/* Collects work and lets the engine's workers do it. A flush is at least 64 MiB of work where there is as much, so that few workers wait long. */
typedef struct yk_packer {
    yk_engine *e;
    yk_progress_fn progress;
    void *progress_user;
    uint64_t done, total, bytes; /* bytes: waiting */
    bool keep_source;            /* the file's pages are needed again soon */
    uint32_t n;
    yk_pack_item items[YK_PACK_ITEMS];
} yk_packer;

/* Weights come to `out`, packed or from the engine's pack cache, when yk_packer_flush has returned; add may flush what came before. YK_ERR_CANCELLED: progress said so. */
yk_status yk_packer_add_matrix(yk_packer *p, const yk_weight *w, uint8_t *out, yk_error *err);
yk_status yk_packer_add_slab(yk_packer *p, const yk_ffn_part *f, const yk_slab *slab, uint8_t *out, yk_error *err);
yk_status yk_packer_flush(yk_packer *p, yk_error *err);
/* Give back the file's pages of rows [row0, row0 + n_rows) of matrix `mat`. Weights that the model holds in memory of its own (copies of tensors
 * that were not aligned) stay: the next engine of the model reads them again. */
void yk_pack_release(const yk_model *m, const yk_weight *w, uint32_t mat, uint32_t row0, uint32_t n_rows);

/* Pack what the CPU alone reads: attention, router and head, where they are on the host, and without a placement every FFN part. When memory is short
 * everything stays where the file is mapped, and a line says so. e->pool is open. YK_ERR_MEMORY, YK_ERR_CANCELLED. */
yk_status yk_engine_pack(yk_engine *e, const yk_engine_opts *o, yk_error *err);
/* All is packed: what a new pack cache still lacks is added, and e->cache is closed. */
yk_status yk_engine_pack_finish(yk_engine *e, const yk_engine_opts *o, yk_error *err);
#endif
