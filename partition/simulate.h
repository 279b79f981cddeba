/* simulate.h - a plan played through event by event: lanes CPU, GPU, link up and down, hand-off; staging slots, prefetch, the
 * experts that each token really chooses, caches. What cost.h sums up in a formula happens here in order. Every figure is
 * modelled. Pure: no device, no clock. docs/SIMULATOR.md has the rules. */
#ifndef YK_PARTITION_SIMULATE_H
#define YK_PARTITION_SIMULATE_H

#include "partition/cost.h"
#include "partition/routing.h"

/* Which experts of a layer are in device memory: */
typedef enum yk_sim_cache {
    YK_SIM_STATIC, /* those the plan puts there */
    YK_SIM_LRU,    /* as many; the one used longest ago goes */
    YK_SIM_LFU,    /* the one used least often since the beginning goes */
    YK_SIM_ORACLE, /* the one needed latest goes: nobody can do better */
    YK_SIM_N_CACHES
} yk_sim_cache;
const char *yk_sim_cache_name(yk_sim_cache c); /* "static", "lru", "lfu", "oracle" */

/* What happens to a chosen expert that is not there: */
typedef enum yk_sim_miss {
    YK_SIM_BY_PLAN, /* the kind of its slice; under a moving cache the CPU computes it, and it is copied when the link is free */
    YK_SIM_UPLOAD,  /* copied, then computed by the device: the cache of llama.cpp */
    YK_SIM_FIDDLER  /* Fiddler's constants: below 10 tokens (7 each against 70 a copy) the CPU, else a copy */
} yk_sim_miss;

typedef struct yk_sim_opts {
    const yk_routing *routing; /* of the shape's experts; NULL only without experts */
    uint64_t token0;           /* where in the trace to begin */
    uint32_t steps;            /* timed steps after one to warm up; 0: 16 */
    uint32_t warm_steps;       /* more of them, for caches */
    uint32_t slots;            /* staging slots; 0: 2 */
    yk_sim_cache cache;
    uint32_t cache_experts; /* of each layer; 0: as many as the plan has resident there */
    yk_sim_miss miss;
    bool serial;  /* one thing at a time, as llama.cpp's scheduler and Fiddler do it */
    bool offload; /* prefill of attention weights on the host: copied, if that is faster than the CPU */
} yk_sim_opts;

typedef struct yk_sim_result {
    double seconds;          /* of a step, mean */
    double busy[YK_BOUND_N]; /* share of the time each lane works; YK_BOUND_HAND_OFF: rows and hand-offs */
    double link_bytes;       /* of weights and KV up, a step */
    uint64_t hits, misses;   /* chosen experts, all timed steps */
} yk_sim_result;

/* device: index in the machine, -1 for none; everything of the plan that is not on the host is there. The plan has passed the
 * checker. YK_ERR_USAGE: routing that is not of this shape. YK_ERR_MEMORY. */
yk_status yk_simulate(yk_sim_result *out, const yk_machine *machine, int device, const yk_shape *shape, const yk_plan *plan,
                      const yk_step_kind *step, const yk_sim_opts *opts, yk_error *err);

#endif
