/* cost.h - how long a step takes: the simple model of docs/PLANNER.md. One device; the CPU; the link between them. */
#ifndef YK_PARTITION_COST_H
#define YK_PARTITION_COST_H

#include "partition/pair.h"
#include "partition/plan.h"

typedef struct yk_cost {
    const yk_shape *shape;
    bool has_device;
    yk_lane cpu, gpu;
    double launch_s, hand_s;
    double link_s_per_byte, link_s, back_s_per_byte;
    yk_pair pair;            /* CPU and link */
    double same_memory_rate; /* > 0: CPU and device read the same memory, together at most so many bytes/s */
} yk_cost;

/* device: index in the machine, or -1. */
void yk_cost_init(yk_cost *cost, const yk_machine *machine, int device, const yk_shape *shape);

/* A step: n tokens at `depth` positions. Decode: of n sequences; prefill: one chunk of one sequence. */
typedef struct yk_step_kind {
    bool prefill;
    uint32_t n, depth, kv_elem_bytes;
} yk_step_kind;

/* The FFN work of one layer, by lane. */
typedef struct yk_load {
    double cpu_s, cpu_bytes;
    double gg_s, cg_s;              /* device seconds of resident and of copied weights */
    double gpu_bytes;               /* what it reads meanwhile */
    double early_bytes, late_bytes; /* link: known before the layer begins (prefetch) or only after its router */
    double early_copies, late_copies;
    bool ahead; /* experts are among the early ones, for this layer: their products follow in it */
} yk_load;

/* Routing is taken as uniform: how likely an instance of a part has tokens in a step of n, and how many it has then on average.
 */
double yk_cost_active(const yk_shape *shape, yk_part_group group, uint32_t n, double *tokens);

/* `instances` times units [unit0, unit0 + units) of a part, as `kind`. */
typedef struct yk_use {
    yk_part_group group;
    yk_kind kind;
    uint32_t unit0, units;
    double instances;
} yk_use;
void yk_cost_add(const yk_cost *cost, yk_load *load, const yk_shape_layer *layer, const yk_step_kind *step, const yk_use *use);

typedef enum yk_bound { YK_BOUND_CPU, YK_BOUND_GPU, YK_BOUND_LINK, YK_BOUND_HAND_OFF, YK_BOUND_N } yk_bound;
const char *yk_bound_name(yk_bound b);

/* Where attention is computed, and where its weights and KV live: copied is prefill only, home the host. */
typedef enum yk_attn { YK_ATTN_HOST, YK_ATTN_DEVICE, YK_ATTN_COPIED, YK_ATTN_N } yk_attn;
/* Of a layer in this kind of step. */
yk_attn yk_cost_attn_of(const yk_plan_layer *layer, const yk_step_kind *step);
/* Seconds of a layer's attention with norms, router and KV, on the device or the CPU. */
double yk_cost_attn(const yk_cost *cost, uint32_t layer, const yk_step_kind *step, bool on_device);
/* Attention as its layer sees it: side, seconds, weights it reads. Copied: bytes and seconds of the link up (weights, then KV of
 * the positions before the chunk), of the KV part of that, of KV of the chunk's own positions going down. */
typedef struct yk_cost_side {
    bool device, copied;
    double s, bytes;
    double up_bytes, up_s, kv_up_s, kv_down_s;
} yk_cost_side;
yk_cost_side yk_cost_side_of(const yk_cost *cost, uint32_t layer, const yk_step_kind *step, yk_attn attn);
/* Seconds of a layer with this attention. bound (may be NULL): seconds by what they wait for are added. */
double yk_cost_join(const yk_cost *cost, const yk_step_kind *step, const yk_cost_side *attn, const yk_load *load,
                    double bound[YK_BOUND_N]);

/* Whole experts in a decode step: a layer has n[kind] of each kind, `chosen` of all these have tokens (on average, any are as
 * likely as any others), one[kind] is the load of one that has. */
typedef struct yk_experts {
    uint32_t n[3];
    double chosen;
    yk_load one[3];
    bool ahead; /* the first CG ones, as many as there are slots, are copied before it is known which are chosen */
} yk_experts;
/* Fill chosen and one from n. */
void yk_cost_experts(const yk_cost *cost, yk_experts *experts, const yk_shape_layer *layer, const yk_step_kind *step);
/* Mean of yk_cost_join over how many experts of each kind are chosen, beside a load that is sure. Exact when `chosen` is a
 * whole number up to YK_SPREAD_EXACT (one token); else at four points of a normal distribution in each direction. */
enum { YK_SPREAD_EXACT = 12, YK_SPREAD_CELLS = (YK_SPREAD_EXACT + 1) * (YK_SPREAD_EXACT + 1) };
double yk_cost_spread(const yk_cost *cost, const yk_step_kind *step, const yk_cost_side *attn, const yk_load *sure,
                      const yk_experts *experts, double bound[YK_BOUND_N]);
/* For many such means with the same loads: 0 when it is not exact, else the number chosen; then seconds for g GG and c CC
 * chosen ones are at[g * (chosen + 1) + c]. The mean of them for other n. */
uint32_t yk_spread_chosen(const yk_experts *experts);
void yk_spread_table(double at[YK_SPREAD_CELLS], const yk_cost *cost, const yk_step_kind *step, const yk_cost_side *attn,
                     const yk_load *sure, const yk_experts *experts);
double yk_spread_mean(const double at[YK_SPREAD_CELLS], uint32_t chosen, const uint32_t n[3]);

/* Attention and FFN. */
double yk_cost_layer(const yk_cost *cost, uint32_t layer, const yk_step_kind *step, yk_attn attn, const yk_load *load,
                     double bound[YK_BOUND_N]);
/* Seconds to move the residual stream of a step to the other side. */
double yk_cost_cross(const yk_cost *cost, const yk_step_kind *step);
/* Seconds of the head, with bringing logits back. */
double yk_cost_head(const yk_cost *cost, const yk_step_kind *step, bool on_device);

/* Seconds of a step under a plan that passed the checker; everything that is not on the host counts as the cost's device. */
double yk_cost_plan(const yk_cost *cost, const yk_plan *plan, const yk_step_kind *step, double bound[YK_BOUND_N]);

/* Are two layers of one shape alike in all that counts here? */
bool yk_cost_same_layer(const yk_shape_layer *a, const yk_shape_layer *b);

/* A plan in short, for pricing many steps: experts that are treated alike are counted, layers that are alike are priced
 * once. The plan must outlive it and stay as it is. The same seconds as yk_cost_plan, but for the rounding of sums. Freed by
 * yk_free(layers). */
enum { YK_DIGEST_RUNS = 8 };
typedef struct yk_digest_layer {
    uint32_t like;                /* a layer before it that takes the same time, or itself */
    uint32_t n;                   /* runs; more than YK_DIGEST_RUNS: look at the plan's slices */
    yk_slice run[YK_DIGEST_RUNS]; /* expert: the first one of it */
    uint32_t count[YK_DIGEST_RUNS];
    double s, bound[YK_BOUND_N]; /* of the step priced last */
} yk_digest_layer;
typedef struct yk_digest {
    const yk_plan *plan;
    yk_digest_layer *layers; /* [n_layers] */
} yk_digest;
yk_status yk_digest_make(yk_digest *out, const yk_plan *plan, const yk_shape *shape, yk_error *err);
double yk_digest_step(yk_digest *digest, const yk_cost *cost, const yk_step_kind *step, double bound[YK_BOUND_N]);

/* Tokens from which copying the whole part instance (an expert; all units of a dense FFN) to the device and computing there
 * is faster than the CPU, both alone; 0: never below 2^20. split (may be NULL): how many of n tokens the CPU should take
 * while the copy and the device's share go on, so that both end together; 0 when n is below the break-even. */
double yk_cost_break_even(const yk_cost *cost, const yk_shape_part *part, uint32_t n, double *split);

#endif
