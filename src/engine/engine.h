/* engine.h - internals of a model placed on the CPU: memory, KV pool, sequences, steps.
 *
 * A step computes a batch of tokens of any sequences. It is one job of the worker pool: for each layer
 *
 *   attn_in   tokens    x = x + y; norm, round                          (first layer: embedding rows)
 *   qkv       rows      q, k, v = W x
 *   rope_kv   blocks    biases, q/k norm, rotation; K and V of whole KV blocks into staging
 *   attn      block x kv head
 *   o_in      tokens    gather heads, round
 *   o         rows      y = W o
 *   ffn_in    tokens    x = x + y; norm, round
 *   router    rows      expert logits                                   (layers with experts)
 *   route     tokens    choose experts                                  (layers with experts)
 *   group     one       tokens of each expert                           (layers with experts)
 *   gate_up   part x units   glu(gate, up)
 *   h_in      slots     gather units, round
 *   down      rows      y = sum over parts of weight * W h
 *
 * and at the end head_in (final norm of the rows whose logits are wanted) and head (rows of the output matrix).
 * "tokens", "rows", ... say how a stage is cut into slices. Slices write only into memory of their worker (cpu/pool.h), so every buffer
 * below exists once per worker; consumers ask who owns a slice. K and V of a step stay in staging until the step has succeeded, then the calling
 * thread copies them into the KV pool: a late worker can never write there, and a cancelled step has changed nothing. */
#ifndef YK_ENGINE_ENGINE_H
#define YK_ENGINE_ENGINE_H

#include "cpu/ops.h"
#include "cpu/pool.h"
#include "cpu/slices.h"
#include "src/engine/kv.h"
#include "src/engine/place.h"
#include "src/model/model.h"

enum {
    YK_TOKEN_SLICE = 16, /* tokens of a slice in token stages */
    YK_N_STEPS = 3       /* step contexts; one more than the steps a late worker may lag behind before we wait for it */
};

struct yk_seq {
    yk_engine *engine;
    uint32_t *blocks;  /* [context / 16] pool block of each 16 positions; room for the whole context */
    uint32_t n_blocks; /* reserved: covers `length`, more while a decode runs */
    uint32_t length;   /* tokens */
    uint32_t index;    /* slot in engine->seqs */
    uint32_t mark;     /* batch serial, finds a sequence given twice */
};

/* Consecutive tokens of one sequence inside one step. */
typedef struct yk_run {
    yk_seq *seq;
    uint32_t pos;       /* position of its first token */
    uint32_t first, n;  /* tokens of the step */
    uint32_t kv_slice0; /* its first staged KV block, the one that holds pos; the others follow */
    uint32_t n_kv_slices;
    uint32_t read_first; /* pool block with the committed positions of the first staged block */
    bool copied;         /* that pool block is shared: the committed positions go to the new block too */
} yk_run;

/* A staged KV block: at most 16 tokens of one run, the unit of rope_kv and attn slices. */
typedef struct yk_kv_slice {
    uint32_t run;
    uint32_t block;    /* block number in the sequence: positions 16 block .. 16 block + 15 */
    uint32_t first, n; /* tokens of the step */
    uint32_t old;      /* positions of the block that are committed already */
    /* Where slices of attention are parts: */
    uint32_t n_parts; /* of its tokens' positions */
    uint32_t part0;   /* parts of those before it */
    uint32_t row0;    /* row of buf.att for its first token and part 0; its tokens follow, then the next part's */
} yk_kv_slice;

/* Which tokens each FFN part (expert; or the whole dense FFN) works on; slots are (part, token) pairs in order. */
typedef struct yk_group {
    uint32_t n_active; /* parts with tokens */
    uint32_t n_slots;
    uint32_t n_units; /* gate_up slices; layers with experts only, as unit0 */
    uint32_t *part;   /* [n_active] */
    uint32_t *slot0;  /* [n_active + 1] */
    uint32_t *unit0;  /* [n_active + 1] first gate_up slice */
    uint32_t *token;  /* [n_slots] */
    float *weight;    /* [n_slots] */
} yk_group;

/* Sizes fixed when the engine opens; all buffers are for these maxima. */
typedef struct yk_dims {
    uint32_t n_tokens;                 /* of a step */
    uint32_t n_embd, n_q, n_kv, n_qkv; /* n_q = heads * head_dim, n_kv = kv heads * head_dim */
    uint32_t n_parts;                  /* FFN parts: 1, or experts + shared */
    uint32_t n_slots;                  /* tokens * used parts */
    uint32_t n_ff;                     /* widest part */
    uint32_t n_in;                     /* widest rounded row: max(n_embd, n_q, n_ff) in whole blocks of 32 */
    uint32_t n_kv_slices;
    uint32_t n_att;      /* rows of buf.att */
    uint32_t n_logits;   /* rows */
    uint32_t max_blocks; /* of a sequence */
    size_t kv_elem;      /* bytes of a K or V element */
    size_t kv_half;      /* bytes of K (or V) of a block in one layer: n_kv * 16 * kv_elem */
} yk_dims;

/* Buffers of all workers: worker w's row t is row w * rows + t. */
typedef struct yk_buffers {
    float *xa, *xf;   /* residual after attn_in and ffn_in [n_tokens][n_embd] */
    float *norm;      /* normalised input, f32 [n_tokens][n_in]; also gathered heads; final norm */
    float *h_row;     /* gathered units [n_slots][n_ff] */
    yk_q8 q8;         /* rounded input [n_tokens], width n_in */
    yk_q8 h_q8;       /* rounded units [n_slots], width n_ff */
    float *qkv;       /* [n_tokens][n_qkv] */
    float *q;         /* rotated queries [n_tokens][n_q] */
    uint8_t *kv;      /* staged blocks [n_layers][n_kv_slices][K, V] kv_half bytes each */
    float *att;       /* [n_att][n_q] */
    float *att_state; /* [n_att][n_heads][2], where slices of attention are parts */
    float *y;         /* output of o and down [n_tokens][n_embd] */
    float *router;    /* [n_tokens][n_experts] */
    uint32_t *ids;    /* [n_tokens][n_used] */
    float *id_weight; /* [n_tokens][n_used + 1], the last for the shared expert */
    float *h;         /* [n_slots][n_ff] */
    float *logits;    /* [n_logits][n_vocab] */
    float *y_dev;     /* [n_tokens][n_embd], one only: the device's FFN sum; NULL without a device */
    yk_group *group;  /* one per worker */
} yk_buffers;

/* The residual behind a layer is x (after attention) plus the sums named here. */
enum {
    YK_FLOW_CPU = 1,  /* stage down */
    YK_FLOW_DEV = 2,  /* buf.y_dev */
    YK_FLOW_GIVEN = 4 /* none: the device's rows of xf hold all of it */
};

/* Stages of a step by layer and kind. */
enum yk_stage_kind {
    YK_S_ATTN_IN,
    YK_S_QKV,
    YK_S_ROPE_KV,
    YK_S_ATTN,
    YK_S_O_IN,
    YK_S_O,
    YK_S_FFN_IN,
    YK_S_ROUTER,
    YK_S_ROUTE,
    YK_S_GROUP,
    YK_S_GATE_UP,
    YK_S_H_IN,
    YK_S_DOWN,
    YK_S_PER_LAYER, /* the number of the above; two more follow the last layer */
    YK_S_HEAD_IN = YK_S_PER_LAYER,
    YK_S_HEAD,
    YK_S_N_KINDS
};

/* One step: its tokens and its job. Late workers may look at it after it has ended, so steps rotate (YK_N_STEPS). */
typedef struct yk_step {
    yk_engine *engine;
    uint32_t n_tokens, n_runs, n_kv_slices, n_logits;
    yk_bucket bucket;           /* of n_tokens */
    int32_t *tokens;            /* [n_tokens] */
    uint32_t *pos;              /* [n_tokens] */
    yk_run *runs;               /* [n_runs] */
    yk_kv_slice *kv_slices;     /* [n_kv_slices] */
    uint32_t *kv_slice_of;      /* [n_tokens] kv slice that holds the token */
    uint32_t *tables;           /* [n_runs][max_blocks] pool blocks of each run's committed positions */
    uint32_t *logits_token;     /* [n_logits] token of the step */
    uint32_t *logits_row;       /* [n_logits] row in engine->logits */
    uint32_t n_attn_parts;      /* of all kv slices */
    bool attn_split;            /* slices of attention are parts of the positions, in layers without a window */
    uint8_t *flow;              /* [n_layers] YK_FLOW_*: where a layer's FFN sum is */
    yk_group dense;             /* layers without experts: all tokens in part 0 */
    struct yk_layer_work *work; /* [n_layers] for statistics (stats.h) */
    yk_job job;
} yk_step;

/* What a decode has reserved for one entry, so that a failure can be undone. */
typedef struct yk_reserve {
    uint32_t length, n_blocks; /* before the call */
    uint32_t old_block;        /* shared last block that was replaced */
    bool replaced, written;    /* written: the new block holds the committed positions already */
} yk_reserve;

typedef struct yk_gpulane yk_gpulane;
typedef struct yk_trace yk_trace;

struct yk_engine {
    const yk_model *model;
    const yk_ops *ops;
    yk_pool *pool;
    yk_dims d;
    yk_kv kv;
    yk_buffers buf;
    yk_arena act;
    yk_gpulane *lane;        /* GPU lane, or NULL */
    yk_trace *trace;         /* timeline, or NULL */
    struct yk_stats *stats;  /* what steps did and took */
    uint32_t virtual_worker; /* the device's rows in the buffers: one behind the pool's */
    yk_arena packed;         /* packed slices of the FFN that a plan keeps on the host */
    bool head_dev;           /* the output matrix is on the device */
    yk_layer_place *places;  /* [n_layers], or NULL: everything on the CPU */
    yk_arena weights;        /* what the following point to: packed weights that only the CPU reads */
    yk_packed *mats;         /* [n_layers][YK_W_N]; NULL: nothing is packed */
    yk_packed head;
    struct yk_pack_cache *cache; /* while weights are packed; NULL: none is asked for */
    yk_whole_part *parts;        /* [n_layers][d.n_parts]; NULL with a placement, or when nothing is packed */
    yk_step steps[YK_N_STEPS];
    uint32_t next_step;
    float *rope_cs;       /* [context][n_rot/2][2] */
    float *logits;        /* [n_logits][n_vocab] */
    uint32_t *entry_row;  /* [max_seqs] first logits row of each entry of the last decode */
    uint32_t *entry_rows; /* [max_seqs] rows */
    uint32_t n_entries;
    yk_reserve *reserves; /* [max_seqs] */
    yk_seq **seqs;        /* [max_seqs] */
    uint32_t batch_mark;
    uint32_t context, max_seqs;
    bool kv_f16;
    _Atomic(bool) cancel;
    uint64_t n_tokens_done, n_steps_done;
    uint64_t weight_bytes_per_token, kv_bytes_per_token;
    char plan_id[32];
    char why[256]; /* for yk_engine_stats */
};

/* ---- engine.c: sizes from model and options, before any memory is taken ---- */

/* e->model is set; sets ops, context, max_seqs, kv_f16 and d. YK_ERR_USAGE. */
yk_status yk_engine_set_sizes(yk_engine *e, const yk_engine_opts *o, yk_error *err);
/* Blocks of the KV pool. */
uint64_t yk_engine_kv_blocks(const yk_engine *e, const yk_engine_opts *o);
/* Workers the options ask for, or the physical cores. */
yk_status yk_engine_workers(uint32_t threads, uint32_t *n, yk_error *err);
/* Instruction set by name; NULL: what the environment says, or the best. */
yk_status yk_engine_isa(const char *name, yk_isa *isa, yk_error *err);

/* ---- step.c: build and run ---- */

/* Memory of a step context, from engine->act. */
yk_status yk_step_open(yk_step *step, yk_engine *engine, yk_error *err);
/* A free step context (waits for late workers if all are taken), emptied. */
yk_step *yk_step_begin(yk_engine *engine);
/* What to add to a step: n tokens of a sequence from position pos; its KV blocks are reserved already. */
typedef struct yk_run_opts {
    yk_seq *seq;
    uint32_t pos, n;
    const int32_t *tokens;
    uint32_t read_first; /* see yk_run */
    bool copied;
    uint32_t logits_first; /* tokens from this one on want logits (n: none) */
    uint32_t row;          /* engine->logits row of the first of them */
} yk_run_opts;
void yk_step_add(yk_step *step, const yk_run_opts *run);
/* Staged KV blocks that n tokens from position pos need. */
static inline uint32_t yk_kv_slices_of(uint32_t pos, uint32_t n)
{
    return (pos + n - 1) / YK_KV_BLOCK - pos / YK_KV_BLOCK + 1;
}
/* Compute; on success K and V are in the pool and the logits in engine->logits. Lengths of sequences are the caller's. */
yk_status yk_step_run(yk_step *step, yk_error *err);

/* Does the device compute the attention of a layer in this step? */
static inline bool yk_attn_on_device(const yk_step *step, uint32_t layer)
{
    const yk_layer_place *places = step->engine->places;
    return places && yk_plan_attn_on_device(&places[layer].attn, step->bucket == YK_B_PREFILL, step->n_tokens);
}

/* Tokens of a step up to which each chosen part is computed for its token alone: more share what is read of the weights, but the choice goes through the host. */
enum { YK_LIST_TOKENS = 4 };

/* Does the router's choice of a layer stay on the device in this step? */
static inline bool yk_list_on_device(const yk_step *step, uint32_t layer)
{
    const yk_layer_place *places = step->engine->places;
    return places && places[layer].list.parts.handle && step->n_tokens <= YK_LIST_TOKENS && yk_attn_on_device(step, layer);
}

/* Attention sums positions in parts, which are joined in their order, so that parts of a row may be slices of different workers. Where parts begin
 * depends on the row's position alone: at multiples of the smallest power of two, from 512 on, that makes them 16 at most. All tokens of a block are alike. */
enum { YK_ATTN_PART = 512, YK_ATTN_PARTS = 16 };

static inline uint32_t yk_attn_part_size(uint32_t block)
{
    uint32_t size = YK_ATTN_PART;
    while (size < UINT32_MAX / 2 && (uint64_t)size * YK_ATTN_PARTS < ((uint64_t)block + 1) * YK_KV_BLOCK)
        size *= 2;
    return size;
}

static inline uint32_t yk_attn_parts(uint32_t block)
{
    return block * YK_KV_BLOCK / yk_attn_part_size(block) + 1;
}

/* Window of a layer's attention, 0: none. */
static inline uint32_t yk_attn_window(const yk_engine *e, uint32_t layer)
{
    return e->model->arch->flags & YK_ARCH_WINDOW_EVEN && layer % 2 == 0 ? e->model->hp.window : 0;
}

static inline bool yk_attn_split(const yk_step *step, uint32_t layer)
{
    return step->attn_split && !yk_attn_window(step->engine, layer);
}

/* Most parts of a step that are slices of their own. */
static inline uint32_t yk_attn_parts_max(const yk_engine *e)
{
    const uint32_t most = YK_MAX_SLICES / e->model->hp.n_kv_heads;
    return most < 256 ? most : 256;
}

/* ---- stages_attn.c, stages_ffn.c, stages_io.c: the slice functions, in the order of the list above ---- */

void yk_stage_attn_in(const yk_stage *st, uint32_t slice, yk_worker *w);
uint32_t yk_prepare_rows_in(const yk_stage *st, yk_worker *w);
void yk_stage_qkv(const yk_stage *st, uint32_t slice, yk_worker *w);
void yk_stage_rope_kv(const yk_stage *st, uint32_t slice, yk_worker *w);
void yk_stage_attn(const yk_stage *st, uint32_t slice, yk_worker *w);
void yk_stage_o_in(const yk_stage *st, uint32_t slice, yk_worker *w);
void yk_stage_o(const yk_stage *st, uint32_t slice, yk_worker *w);
/* Residual of token t before a layer (n_layers: behind the last): embedding row, or the sums of the layer before. */
void yk_residual_before(const yk_step *step, uint32_t layer, uint32_t t, float *dst);
/* The group of dense layers: all tokens of the step in part 0 (its gate_up slices depend on the layer and are not listed). */
void yk_group_dense(const yk_step *step, yk_group *g);
void yk_stage_ffn_in(const yk_stage *st, uint32_t slice, yk_worker *w);
void yk_stage_router(const yk_stage *st, uint32_t slice, yk_worker *w);
void yk_stage_route(const yk_stage *st, uint32_t slice, yk_worker *w);
void yk_stage_group(const yk_stage *st, uint32_t slice, yk_worker *w);
uint32_t yk_prepare_gate_up(const yk_stage *st, yk_worker *w);
/* gate_up slices of part p for each time it is active. */
uint32_t yk_gate_up_chunks(const yk_step *step, uint32_t layer, uint32_t p);
void yk_stage_gate_up(const yk_stage *st, uint32_t slice, yk_worker *w);
uint32_t yk_prepare_h_in(const yk_stage *st, yk_worker *w);
void yk_stage_h_in(const yk_stage *st, uint32_t slice, yk_worker *w);
uint32_t yk_prepare_down(const yk_stage *st, yk_worker *w);
void yk_stage_down(const yk_stage *st, uint32_t slice, yk_worker *w);
void yk_stage_head_in(const yk_stage *st, uint32_t slice, yk_worker *w);
uint32_t yk_prepare_head(const yk_stage *st, yk_worker *w);
void yk_stage_head(const yk_stage *st, uint32_t slice, yk_worker *w);

#endif
