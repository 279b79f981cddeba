/* lane_run.h - one step on the lane: what the order of its work (lane_step.c) and the launches of a layer (lane_layer.c) share. */
#ifndef YK_ENGINE_LANE_RUN_H
#define YK_ENGINE_LANE_RUN_H

#include "src/engine/lane.h"

typedef struct yk_lane_run {
    yk_gpulane *l;
    yk_step *step;
    yk_engine *e;
    yk_error *err;
    uint32_t n; /* tokens */
} yk_lane_run;

#define YK_GPU(call, what) YK_TRY(yk_gpulane_check(r->l, (call), what, r->err))

/* Launch a call that `fill` has filled. */
#define YK_LAUNCH(kernel_name, fill, ...)                                                                                      \
    do {                                                                                                                       \
        yk_gpu_kernel *kernel_;                                                                                                \
        yk_k_call call_;                                                                                                       \
        YK_TRY(yk_gpulane_kernel(r->l, kernel_name, &kernel_, r->err));                                                        \
        fill(&call_, kernel_, __VA_ARGS__);                                                                                    \
        r->l->launched_bytes += call_.launch.cost_bytes;                                                                       \
        r->l->n_launches++;                                                                                                    \
        YK_GPU(r->l->t->launch(r->l->compute, &call_.launch), kernel_name);                                                    \
    } while (0)

enum { YK_NO_LAYER = UINT32_MAX };

typedef struct yk_lane_task {
    enum yk_trace_lane lane;
    const char *op, *kernel;
    uint32_t layer; /* or YK_NO_LAYER */
} yk_lane_task;

/* Begin of a task on a stream, behind all that it waits for; NULL without a trace. */
yk_lane_mark *yk_lane_begin(yk_lane_run *r, yk_gpu_stream *stream, yk_lane_task t);
/* Its end; bytes 0: what the launches in between read. */
void yk_lane_end(yk_lane_run *r, yk_gpu_stream *stream, yk_lane_mark *m, uint64_t bytes);

typedef struct yk_lane_product {
    const yk_weight *w;
    const yk_dev_mat *mat;
    yk_gpu_mem x, y, bias;
    const yk_k_q8 *q8;
    uint32_t n_rows;                        /* 0: those of w */
    uint32_t n, x_cols, x_stride, y_stride; /* x_cols: columns of a rounded row */
} yk_lane_product;
yk_status yk_lane_multiply(yk_lane_run *r, const yk_lane_product *p);

/* x += sums that are pending; norm of x to l->norm (when w is there), and rounded (q8). Nothing to do: nothing is launched. */
yk_status yk_lane_take_pending(yk_lane_run *r, yk_gpu_mem w, yk_gpu_mem b, bool q8);
/* Positions that attention of a layer looks back; 0: all. */
uint32_t yk_lane_window(const yk_lane_run *r, uint32_t layer);
/* From l->norm to x + attention, its norm, and rounded (ffn_q8): all of attention but its input. */
yk_status yk_lane_attend(yk_lane_run *r, uint32_t layer, const yk_layer_place *pl, bool ffn_q8);
/* The experts of every token and their weights: l->ids, l->id_weight [n][yk_lane_used]. */
yk_status yk_lane_route(yk_lane_run *r, uint32_t layer, const yk_layer_place *pl);
/* FFN parts of a token, the shared expert among them. */
uint32_t yk_lane_used(const yk_engine *e, uint32_t layer);

/* Tokens of an FFN part. */
typedef struct yk_lane_part {
    uint32_t layer, part, slot0, n; /* slots and tokens */
    const yk_weight *gate, *up, *down;
    uint32_t mat;
    bool listed; /* tokens by list (experts), else all in order */
} yk_lane_part;
/* A slab at `mem` for these tokens: y_dev of theirs = or += its sum. */
yk_status yk_lane_slab(yk_lane_run *r, const yk_lane_part *w, const yk_slab *s, yk_gpu_mem mem, bool add);
/* The chosen parts of a layer with yk_list_on_device, as the router left them on the device: yk_lane_used rows of y_dev for each token. */
yk_status yk_lane_list(yk_lane_run *r, uint32_t layer);

#endif
