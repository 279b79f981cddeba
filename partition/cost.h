/* cost.h - how long a step takes: the simple model of docs/PLANNER.md. One device; the CPU; the link between them. */
#ifndef YK_PARTITION_COST_H
#define YK_PARTITION_COST_H

#include "partition/plan.h"

typedef struct yk_cost {
    const yk_shape *shape;
    bool has_device;
    yk_lane cpu, gpu;
    double launch_s, hand_s;
    double link_s_per_byte, link_s, back_s_per_byte;
    double overlap_cpu_rate;  /* bytes/s the CPU can read while the link copies */
    double overlap_link_slow; /* factor >= 1 on the link while the CPU reads at that rate */
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
    double early_bytes, late_bytes; /* link: known before the layer begins (prefetch) or only after its router */
    double early_copies, late_copies;
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

/* Seconds of a layer. bound (may be NULL): seconds by what they wait for are added. */
double yk_cost_layer(const yk_cost *cost, uint32_t layer, const yk_step_kind *step, bool attn_on_device, const yk_load *load,
                     double bound[YK_BOUND_N]);
/* Seconds to move the residual stream of a step to the other side. */
double yk_cost_cross(const yk_cost *cost, const yk_step_kind *step);
/* Seconds of the head, with bringing logits back. */
double yk_cost_head(const yk_cost *cost, const yk_step_kind *step, bool on_device);

/* Seconds of a step under a plan that passed the checker; everything that is not on the host counts as the cost's device. */
double yk_cost_plan(const yk_cost *cost, const yk_plan *plan, const yk_step_kind *step, double bound[YK_BOUND_N]);

#endif
