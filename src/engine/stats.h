/* stats.h - what an engine's steps did and took (yk_work of yoke.h): counters that cost a step next to nothing, and device events in a few steps.
 *
 * Bytes of matrices and KV follow from plan and step, those of experts from the router's choice (a hook in stage `group`), those of the device from
 * its launches, those of the link from its copies. How long kernels and copies took needs events on the streams: the tasks of a trace
 * (yk_lane_begin), recorded in so few steps that recording takes at most 1 / YK_STATS_SHARE of the time. */
#ifndef YK_ENGINE_STATS_H
#define YK_ENGINE_STATS_H

#include "partition/solve.h"
#include "src/engine/lane.h"

enum { YK_STATS_SHARE = 400, YK_STATS_EVERY = 4, YK_STATS_SELDOM = 512, YK_STATS_CHUNKS = 8, YK_STATS_DEPTHS = 2 };

/* FFN of a layer in one step. The first worker that has grouped the tokens writes it: late ones may have garbage. */
typedef struct yk_layer_work {
    _Atomic(bool) known;
    _Atomic(uint32_t) choices, resident;
    _Atomic(uint64_t) units[3]; /* intermediate units of the active parts, by yk_kind */
    _Atomic(uint64_t) host_bytes;
} yk_layer_work;

/* Seconds of steps of n tokens, without and with a full context behind them; NAN: not asked for yet. */
typedef struct yk_stats_price {
    uint32_t n;
    double s[YK_STATS_DEPTHS];
} yk_stats_price;

typedef struct yk_stats {
    yk_engine *e;
    yk_work work[YK_N_WORK];

    /* the running step */
    uint64_t start_ns, cpu_ns, wait_ns;
    uint64_t launched, up, down;                   /* the lane's counters at its begin */
    bool sampled;                                  /* its tasks are recorded for us */
    uint64_t record_ns;                            /* what recording has taken of it */
    uint64_t gpu_ns, link_ns;                      /* from its tasks */
    uint64_t weights_ns, weights_bytes, n_weights; /* copies of weights among them */
    bool whole;                                    /* all of them are known */
    uint64_t units[3];          /* intermediate units of FFN parts with tokens, by yk_kind: known at its end */
    const yk_trace_rec **tasks; /* [YK_LANE_MARKS] scratch */
    uint32_t kind;              /* of yk_work */
    uint32_t left[YK_N_WORK];   /* steps until the next one is recorded */
    bool warm[YK_N_WORK];       /* the first recorded one opens events: it does not count */

    /* The planner's view; priced false: the machine is not known. */
    bool priced, has_shape;
    yk_machine *machine; /* as measured */
    int device;          /* in the machine; -1: none */
    yk_shape shape;
    yk_plan plan;
    yk_cost cost;
    yk_digest digest;
    yk_stats_price decode[33], chunk[YK_STATS_CHUNKS];
    uint32_t next_chunk;
    double host_s, device_s, up_s; /* seconds a byte */
} yk_stats;

/* plan NULL: the CPU alone; machine NULL: not known. Both are copied. */
yk_status yk_stats_open(yk_stats **out, yk_engine *e, const yk_plan *plan, const yk_machine *machine, yk_error *err);
void yk_stats_close(yk_stats **stats);

/* Around a step. ok: it has succeeded; else it leaves no trace. */
void yk_stats_begin(yk_stats *s, yk_step *step);
void yk_stats_end(yk_stats *s, const yk_step *step, bool ok);
/* Stage `group` has laid out the tokens of a layer with experts. */
void yk_stats_group(const yk_step *step, uint32_t layer, const yk_group *g);
/* The recorded tasks of the step, with their times; whole: none is missing. */
void yk_stats_tasks(yk_stats *s, const yk_lane_mark *marks, uint32_t n, bool whole);
/* The planner's seconds for such a step; 0: not known. */
double yk_stats_predict(yk_stats *s, const yk_step *step);
/* A part of a layer: intermediate units the CPU computes, units copied, and units at home on the device, by yk_kind. */
void yk_stats_units(const yk_step *step, uint32_t layer, uint32_t part, uint32_t all, uint64_t units[3]);

#endif
