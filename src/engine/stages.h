/* stages.h - what the slice functions share: access to a step's stages, gathering results of row slices, products. */
#ifndef YK_ENGINE_STAGES_H
#define YK_ENGINE_STAGES_H

#include <string.h>

#include "cpu/pack.h"
#include "src/engine/engine.h"

static inline const yk_step *yk_step_of(const yk_stage *st)
{
    return st->arg;
}

static inline const yk_stage *yk_stage_get(const yk_step *step, uint32_t layer, enum yk_stage_kind kind)
{
    return &step->job.stages[layer * (uint32_t)YK_S_PER_LAYER + (uint32_t)kind];
}

/* Owner of the slice of a token stage that holds token t. */
static inline uint32_t yk_token_owner(const yk_step *step, const yk_stage *st, uint32_t t)
{
    return yk_stage_owner(&step->job, st, t / YK_TOKEN_SLICE);
}

/* K, then V, of a staged block of one layer in the memory of worker `owner`; the blocks of a layer are one behind the other. */
static inline uint8_t *yk_staged_kv(const yk_engine *e, uint32_t owner, uint32_t layer, uint32_t kv_slice)
{
    return e->buf.kv + (((size_t)owner * e->model->hp.n_layers + layer) * e->d.n_kv_slices + kv_slice) * 2 * e->d.kv_half;
}

/* Row ranges of one matrix in a row stage. */
typedef struct yk_rows {
    uint32_t n_rows, per_slice, n_slices;
} yk_rows;

static inline yk_rows yk_rows_of(const yk_weight *w, uint32_t n_tokens)
{
    yk_rows r = {.n_rows = w->n_rows};
    r.per_slice = yk_rows_per_slice(w->row_bytes, n_tokens, YK_ROWS_MULTIPLE);
    r.n_slices = yk_ceil_div(w->n_rows, r.per_slice);
    return r;
}

/* Copy row t of a buffer whose columns were computed by the row slices slice0.. of stage st: dst[n_rows] from column col0 on. */
typedef struct yk_gather {
    const yk_step *step;
    const yk_stage *st;
    const float *base; /* [workers * n][stride] */
    size_t n, stride;
} yk_gather;

static inline void yk_gather_row(const yk_gather *g, yk_rows rows, uint32_t slice0, uint32_t col0, uint32_t t, float *dst)
{
    for (uint32_t s = 0; s < rows.n_slices; s++) {
        const uint32_t r0 = s * rows.per_slice, r1 = r0 + rows.per_slice < rows.n_rows ? r0 + rows.per_slice : rows.n_rows;
        const size_t owner = yk_stage_owner(&g->step->job, g->st, slice0 + s);
        memcpy(dst + r0, g->base + (owner * g->n + t) * g->stride + col0 + r0, (r1 - r0) * sizeof *dst);
    }
}

/* Worker scratch, laid out by the stages that use it; sizes: yk_scratch_bytes in step.c. */
typedef struct yk_scratch {
    uint32_t *rows;                    /* [max(n_tokens, n_slots)] activation row of each token or slot */
    float *tile;                       /* [YK_TOKEN_TILE][2 * YK_ROWS_MAX]: gate and up, or rows of down */
    uint32_t *tile_rows;               /* [YK_TOKEN_TILE] */
    float *row;                        /* [n_qkv] */
    const void **k_blocks, **v_blocks; /* [max_blocks] */
    float *scores;                     /* [heads per kv head][context rounded up to 16] */
    float *part;                       /* [16 tokens][heads per kv head][head_dim]: attention over a part of the positions */
    float *part_state[2];              /* [16 tokens][heads per kv head][2]: of the parts so far, and of `part` */
} yk_scratch;

/* Pointers into a worker's scratch; with base NULL only the size is returned. */
size_t yk_scratch_map(const yk_engine *e, void *base, yk_scratch *s);

static inline yk_scratch yk_scratch_of(const yk_step *step, const yk_worker *w)
{
    yk_scratch s;
    yk_scratch_map(step->engine, w->scratch, &s);
    return s;
}

/* The same rounded rows, seen from column col on (a multiple of 32). */
static inline yk_q8 yk_q8_from(const yk_q8 *q, uint32_t col)
{
    return (yk_q8){q->q + col, q->scale + col / 32, q->sum + col / 16, q->n_blocks};
}

/* Packed form of matrix `which` of a layer (YK_W_*), or NULL. */
static inline const yk_packed *yk_packed_of(const yk_engine *e, uint32_t layer, uint32_t which)
{
    const yk_packed *p = e->mats ? &e->mats[(size_t)layer * YK_W_N + which] : NULL;
    return p && p->base ? p : NULL;
}

/* Rows [r0, r1) of matrix `mat`, for n tokens whose activations are rows rows[] of x and xq. */
typedef struct yk_product {
    const yk_weight *w;
    const yk_packed *packed; /* NULL: as the file has it. r0 is a multiple of 16 */
    uint32_t mat, r0, r1;
    uint32_t col0, n_cols; /* columns; n_cols 0: all */
    const float *x;
    size_t x_stride;
    const yk_q8 *xq;
    const uint32_t *rows;
    uint32_t n;
    float *y;
    size_t y_stride;
} yk_product;

/* Activations and results of a product with packed weights; the caller adds where the weights lie. */
typedef struct yk_slab_product {
    const yk_slab *slab;
    yk_type type;
    const float *x; /* from the piece's first column on, as xq */
    size_t x_stride;
    const yk_q8 *xq;
    const uint32_t *rows;
    uint32_t n;
    float *y;
    size_t y_stride;
} yk_slab_product;

/* Where packed rows lie: as in yk_matmul_packed. */
typedef struct yk_packed_rows {
    const uint8_t *w;
    uint64_t panel_bytes, tile_stride;
    uint32_t n_rows, n_cols;
} yk_packed_rows;

static inline void yk_multiply_packed(const yk_ops *ops, const yk_slab_product *p, yk_packed_rows r)
{
    ops->matmul_packed[p->type](&(yk_matmul_packed){
        .w = r.w,
        .panel_bytes = r.panel_bytes,
        .tile_stride = r.tile_stride,
        .n_rows = r.n_rows,
        .n_cols = r.n_cols,
        .x = p->x,
        .x_stride = p->x_stride,
        .xq = p->xq,
        .rows = p->rows,
        .n_tokens = p->n,
        .y = p->y,
        .y_stride = p->y_stride,
    });
}

/* Panel pair of intermediate unit u0 in a slab. */
static inline const uint8_t *yk_slab_pair(const yk_slab *s, uint32_t u0)
{
    const uint32_t at = u0 - s->u0;
    return s->host + at / s->unit * s->unit_bytes + at % s->unit / YK_TILE_ROWS * s->pair_bytes;
}

/* Units [u0, u0 + n_units) of gate (or of up); all in one cut unit, u0 a multiple of 16 from its start. */
static inline void yk_multiply_units(const yk_ops *ops, const yk_slab_product *p, bool up, uint32_t n_cols, uint32_t u0,
                                     uint32_t n_units)
{
    const yk_slab *s = p->slab;
    yk_multiply_packed(ops, p, (yk_packed_rows){yk_slab_pair(s, u0) + (up ? s->up_at : 0), s->pair_bytes, 0, n_units, n_cols});
}

/* The same of gate and up together, both of one type: y gets 16 rows of gate, 16 of up, and so on, for a multiple of 16 units or up to the end of the
 * cut unit. One stream of bytes instead of two that skip each other. */
static inline void yk_multiply_pairs(const yk_ops *ops, const yk_slab_product *p, uint32_t n_cols, uint32_t u0,
                                     uint32_t n_units)
{
    const uint32_t n_rows = 2 * yk_ceil_div(n_units, YK_TILE_ROWS) * YK_TILE_ROWS;
    yk_multiply_packed(ops, p, (yk_packed_rows){yk_slab_pair(p->slab, u0), p->slab->up_at, 0, n_rows, n_cols});
}

/* Rows [r0, r1) of down over all units of the slab, r0 a multiple of 16. A unit is not wider than a tile. */
static inline void yk_multiply_down(const yk_ops *ops, const yk_slab_product *p, uint32_t r0, uint32_t r1)
{
    const yk_slab *s = p->slab;
    const uint64_t panel = yk_panel_bytes(p->type, s->unit);
    const uint8_t *w = s->host + s->down_at + r0 / YK_TILE_ROWS * panel;
    yk_multiply_packed(ops, p, (yk_packed_rows){w, panel, s->unit_bytes, r1 - r0, s->unit * s->n_units});
}

static inline void yk_multiply(const yk_ops *ops, const yk_product *p)
{
    if (p->packed) {
        const yk_slab_product s = {NULL, p->w->type, p->x, p->x_stride, p->xq, p->rows, p->n, p->y, p->y_stride};
        const uint64_t panel = p->packed->panel_bytes;
        yk_multiply_packed(
            ops, &s, (yk_packed_rows){p->packed->base + p->r0 / YK_TILE_ROWS * panel, panel, 0, p->r1 - p->r0, p->w->n_cols});
        return;
    }
    const yk_type_traits *t = yk_type_get(p->w->type);
    const yk_q8 part = p->xq ? yk_q8_from(p->xq, p->col0) : (yk_q8){0};
    const yk_matmul m = {
        .w = yk_weight_row(p->w, p->mat, p->r0) + (size_t)(p->col0 / t->block_elems) * t->block_bytes,
        .row_bytes = p->w->row_bytes,
        .n_rows = p->r1 - p->r0,
        .n_cols = p->n_cols ? p->n_cols : p->w->n_cols,
        .x = p->x ? p->x + p->col0 : NULL,
        .x_stride = p->x_stride,
        .xq = &part,
        .rows = p->rows,
        .n_tokens = p->n,
        .y = p->y,
        .y_stride = p->y_stride,
    };
    ops->matmul[p->w->type](&m);
}

/* Slice `slice` of a row stage: its rows of m.w for m.n tokens, whose inputs the prepare function listed in the worker's scratch. m.y is where
 * row 0 goes. */
static inline yk_product yk_multiply_slice(const yk_step *step, const yk_worker *w, uint32_t slice, yk_product m)
{
    const yk_engine *e = step->engine;
    const yk_rows r = yk_rows_of(m.w, m.n);
    m.r0 = slice * r.per_slice;
    m.r1 = m.r0 + r.per_slice < r.n_rows ? m.r0 + r.per_slice : r.n_rows;
    m.x = e->buf.norm;
    m.x_stride = e->d.n_in;
    m.xq = &e->buf.q8;
    m.rows = yk_scratch_of(step, w).rows;
    m.y += m.r0;
    yk_multiply(e->ops, &m);
    return m;
}

static inline bool yk_is_quantised(const yk_weight *w)
{
    return w->data && yk_type_get(w->type)->quantised;
}

/* True when a stage's input has to be rounded for at least one of the matrices (NULL entries are skipped). */
static inline bool yk_any_quantised(const yk_weight *const *w, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (w[i] && yk_is_quantised(w[i]))
            return true;
    return false;
}

#endif
