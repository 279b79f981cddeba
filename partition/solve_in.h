/* solve_in.h - what the files of the solver share. docs/PLANNER.md says what they do. */
#ifndef YK_PARTITION_SOLVE_IN_H
#define YK_PARTITION_SOLVE_IN_H

#include "partition/constraints.h"
#include "partition/solve.h"

enum { YK_MAX_SLOTS = 80 };

/* Staging: bytes of each of the two slots; whether attention may be copied, which also takes a place for KV of one layer. */
typedef struct yk_slot {
    uint64_t bytes;
    bool attn;
} yk_slot;

/* What a layer can choose: side of attention (or its home is the host, and the request's prefill copies it), of the shared
 * expert, and how much of its main part (units of the dense FFN, whole experts) is resident. */
typedef struct yk_option {
    uint8_t attn; /* yk_attn */
    bool shared;
    uint32_t resident;
    uint64_t bytes; /* on the device */
    double seconds; /* of a request */
} yk_option;

/* A kind of layer in one kind of step: everything a choice costs is a sum of these. */
typedef struct yk_price {
    const yk_cost *cost;
    yk_step_kind step;
    uint32_t n;          /* units or experts of the main part */
    bool experts, early; /* early: copies are known before the layer begins */
    yk_cost_side attn[YK_ATTN_N];
    double active;
    yk_load cpu, gpu, cpu_last, gpu_last; /* one unit or expert as CC and as CG; the last unit of a dense FFN is smaller */
    bool shared;
    yk_load shared_cpu, shared_gpu;
    bool spread; /* experts in decode: only some are chosen */
    yk_experts chosen;
    uint32_t exact;                   /* chosen of a table; 0: there is none */
    double at[2][3][YK_SPREAD_CELLS]; /* by side and kind of the shared expert (GG when there is none) */
} yk_price;

/* How much of the host's share is copied in a step. */
typedef struct yk_copied {
    uint32_t n;
    bool shared;
    bool ahead; /* of decode: the first experts before the router's choice (plan.h) */
} yk_copied;

/* Layers that are alike, and of which the same is asked, share their options. */
typedef struct yk_class {
    uint32_t layer; /* the first one of it */
    yk_part_group main;
    uint32_t n; /* units or experts of the main part */
    yk_layer_rule rule;
    uint64_t attn_bytes, shared_bytes; /* attn: with KV */
    yk_price decode, prefill;
    /* Seconds of a step priced already, NAN: not yet: decode (host, device) and prefill (yk_attn), by shared expert and resident
     * [2 * (n + 1)]; for slots that can hold what `holds` says. */
    double *priced[2 + YK_ATTN_N];
    uint32_t holds;
    /* Options by side of the attention that nothing dominates, by bytes; hull: which are on the lower convex hull; near:
     * which can be in a better plan than the best so far. */
    yk_option *options[YK_ATTN_N];
    uint32_t *hull[YK_ATTN_N], *near[YK_ATTN_N], n_options[YK_ATTN_N], n_hull[YK_ATTN_N], n_near[YK_ATTN_N];
    double at_best[YK_ATTN_N]; /* of the hull, at the multiplier being tried */
    uint32_t at[YK_ATTN_N];
} yk_class;

typedef struct yk_best {
    double s;
    bool head;
    yk_slot slot;
    yk_option *choice; /* [n_layers] */
} yk_best;

typedef struct yk_solver {
    const yk_shape *shape;
    const yk_plan_limits *limits;
    const yk_rules *rules;
    yk_cost cost;
    yk_step_kind decode, prefill; /* of the request */
    double n_decode, n_prefill;   /* how many of them */
    uint64_t kv_bytes;            /* of a layer */
    uint32_t n_classes;
    yk_class *classes;
    uint32_t *class_of; /* [n_layers] */
    yk_option *choice;  /* [n_layers], being made */
    yk_slot slot;
    struct yk_search *search; /* scratch */
} yk_solver;

/* ---- solve_price.c ---- */

yk_status yk_solver_open(yk_solver *s, const yk_shape *shape, const yk_plan_limits *limits, const yk_rules *rules,
                         yk_error *err);
void yk_solver_close(yk_solver *s);
/* Price with this machine from now on. */
void yk_solver_set_cost(yk_solver *s, const yk_cost *cost);
/* Copies may take these slots from now on; options anew, none that takes more than room. */
void yk_solver_set_slot(yk_solver *s, yk_slot slot, uint64_t room);
/* Slots worth trying, by size, the first is none at all. */
uint32_t yk_solver_slots(const yk_solver *s, yk_slot slots[YK_MAX_SLOTS]);
/* Bytes that slots take of a device. */
uint64_t yk_solver_staging(const yk_solver *s, yk_slot slot);

void yk_price_make(yk_price *p, const yk_solver *s, const yk_class *k, const yk_step_kind *step);
double yk_price_layer(const yk_price *p, const yk_option *o, yk_copied copied);
/* The best copying for an option under the solver's slot. */
yk_copied yk_price_copied(const yk_solver *s, const yk_class *k, const yk_price *p, const yk_option *o, double *seconds);
/* Fill bytes and seconds of an option. */
void yk_price_option(const yk_solver *s, const yk_class *k, yk_option *o);
/* All that a device can hold of a layer, whatever is asked. */
yk_option yk_option_all(const yk_solver *s, const yk_class *k);

/* Seconds of a request: of the head, of moving to the other side. */
double yk_solver_head(const yk_solver *s, bool on_device);
double yk_solver_cross(const yk_solver *s, int from, int to); /* yk_attn */
double yk_solver_total(const yk_solver *s, const yk_option *choice, bool head);
/* Tokens per second of decode (one sequence, depth 0) and prefill (a batch) under a choice. */
void yk_solver_speed(yk_solver *s, const yk_option *choice, bool head, double *decode_tps, double *prefill_tps);

/* ---- solve_search.c ---- */

yk_status yk_search_open(yk_solver *s, yk_error *err);
void yk_search_close(yk_solver *s);
/* The best choice for the slot set, in so many bytes (staging taken off already); *best is replaced when it is better.
 * Returns a bound no choice for this slot is below; INFINITY: nothing fits. deep: close the gap to it as far as that pays. */
double yk_search_run(yk_solver *s, uint64_t room, bool deep, yk_best *best);
/* Is the gap between a bound and the best worth closing? Are there so few layers that it is closed altogether? */
bool yk_search_open_gap(const yk_solver *s, double bound, const yk_best *best);
bool yk_search_few(const yk_solver *s);

/* ---- solve_emit.c ---- */

/* device NULL: a plan for the CPU. */
yk_status yk_solver_emit(yk_solver *s, yk_plan *plan, const char *device, const yk_best *best, yk_error *err);

/* ---- predict.c ---- */
yk_status yk_plan_predict_with(yk_plan *plan, const yk_cost *cost, const yk_plan_limits *limits, yk_error *err);

#endif
