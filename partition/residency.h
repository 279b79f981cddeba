/* residency.h - which experts live on the device while the routing changes: after each token, which swaps are worth their copies. No device, no
 * clock: times are those of the cost model (cost.h).
 *
 * A layer keeps as many experts on the device as the plan gave it (its slots; all experts of a layer are of one size). A swap puts an expert of the
 * host into the slot of one that is resident, which from then on is computed as the other was. The copy begins behind a token, goes on beside as
 * many following ones as it takes, and the new one is resident behind the last of these; meanwhile neither is.
 *
 * Expected uses. Of each expert four running means of its uses a token are kept, with half-lives of 24, 64, 256 and 1024 tokens (frequency), and
 * whether the last token used it (recency). Of each layer and mean: how far it is off one token ahead, and how much of the distance from its mean a
 * use keeps for the next token, rho (lag-1 autocovariance over variance). The mean that has been off least counts, b; it is drawn to that of the
 * layer by the share of its spread that chance explains (James-Stein), so that even routing gives no order to follow. Within N tokens
 *
 *     uses = N b + (x - b) (rho + rho^2 + ... rho^N)          x: 1 when the last token used the expert, else 0
 *
 * Gain. Seconds of a layer for so many resident, CPU and copied experts of a token are a table (yk_spread_table), so what a use on the device saves
 * is the difference of two cells; `saved` is the running mean of it over a layer's uses. A swap is made when
 *
 *     (uses(in) - uses(out)) saved > max(cost of the copy, 0.35 of its seconds on the link)
 *
 * those first that save most for a second of copying, as far as the link is idle (running mean). A copy costs the step nothing while CPU and link are
 * both idle; beside the CPU what both lose by reading one memory (pair.h); beyond the idle time all of it.
 *
 * Guard. What the static plan would have taken for the same tokens is counted along. When ours is behind it by more than half of the band (1 % of the
 * time of GUARD tokens; what is long past counts less), residents go back to the plan's, and nothing is swapped for HOLD tokens; each time twice as
 * many, so it does not go forth and back. */
#ifndef YK_PARTITION_RESIDENCY_H
#define YK_PARTITION_RESIDENCY_H

#include "partition/cost.h"

enum {
    YK_RESIDENCY_TOKENS = 64, /* a swap pays within so many, when nothing else is said */
    YK_RESIDENCY_MEANS = 4,
    YK_RESIDENCY_GUARD = 1024,
    YK_RESIDENCY_HOLD = 256,
    YK_RESIDENCY_COPIES = 64 /* under way at a time, at most */
};
#define YK_RESIDENCY_BAND 0.02

/* What one layer costs; n_experts 0: nothing of it moves. */
typedef struct yk_resident_layer {
    uint32_t n_experts, n_used; /* n_used <= YK_SPREAD_EXACT */
    double copy_s;              /* the link, for one expert */
    double cpu_s, link_s;       /* how long these are busy for one CC, one CG expert that is chosen */
    double cpu_rest_s;          /* the CPU, whatever is chosen */
    double beside;              /* seconds a step gets longer for a second of copies beside the CPU; 0 to 1 */
    double at[YK_SPREAD_CELLS]; /* seconds: [GG chosen * (n_used + 1) + CC chosen] */
} yk_resident_layer;

/* Of the plan's layer for single tokens at `depth`: kinds [n_experts] of its experts. A layer without experts, with cut ones or more than
 * YK_SPREAD_EXACT used, or one that is all on one side, has n_experts 0. */
void yk_resident_price(yk_resident_layer *out, uint8_t *kinds, const yk_cost *cost, const yk_plan *plan, uint32_t layer,
                       uint32_t depth, uint32_t kv_elem_bytes);
/* Seconds of the layer for a token with these experts. c (may be NULL): how many of each kind they are. */
double yk_resident_seconds(const yk_resident_layer *layer, const uint8_t *kinds, const uint16_t *picks, uint32_t n[3]);

/* The lanes of a step beside copies: how long the link, and CPU and link both, have nothing to do. Added up over layers. */
typedef struct yk_resident_idle {
    double link_s, both_s, beside; /* beside: of yk_resident_layer, mean over the time in which only the link is idle */
} yk_resident_idle;
void yk_resident_idle_add(yk_resident_idle *idle, const yk_resident_layer *layer, double seconds, const uint32_t n[3]);
/* Seconds that so many seconds of copies make a step longer. */
double yk_resident_copy_cost(const yk_resident_idle *idle, double copy_s);

typedef struct yk_residency yk_residency;

/* A part of a swap that goes on beside the next token: bytes [from, to) of the expert, as shares of it. from 0: `out` is not resident from now on;
 * to 1: `in` is when the token is done. */
typedef struct yk_resident_copy {
    uint32_t layer, in, out;
    double from, to;
} yk_resident_copy;

typedef struct yk_residency_opts {
    uint32_t tokens; /* a swap pays within so many; 0: YK_RESIDENCY_TOKENS */
    double rest_s;   /* of a step beside its layers */
} yk_residency_opts;

/* layers [n_layers] and kinds [n_layers][stride] are copied. YK_ERR_MEMORY; YK_ERR_USAGE: tokens above 2^20. */
yk_status yk_residency_open(yk_residency **out, const yk_resident_layer *layers, uint32_t n_layers, const uint8_t *kinds,
                            uint32_t stride, const yk_residency_opts *opts, yk_error *err);
void yk_residency_close(yk_residency **r);
/* Behind a token, with the copies given before it beside it: its experts picks [n_layers][stride] (n_used of a row count). Returns the number of
 * copies that go beside the next one; *copies is valid until the next call. */
uint32_t yk_residency_token(yk_residency *r, const uint16_t *picks, uint32_t stride, const yk_resident_copy **copies);
/* The kind of an expert as it is now. */
yk_kind yk_residency_kind(const yk_residency *r, uint32_t layer, uint32_t expert);

typedef struct yk_residency_sums {
    uint64_t tokens, swaps, returns; /* returns to the static plan */
    double ours_s, static_s;         /* modelled */
    bool held;                       /* on the way back to the plan, or waiting there */
} yk_residency_sums;
yk_residency_sums yk_residency_get(const yk_residency *r);

/* Running means to keep for the next time, and back: [n_layers][stride] uses a token of the longest half-life, from 0 to 1; *weight: over how many
 * tokens, 0: nothing is known, and yk_residency_warm changes nothing. Before the first token. */
void yk_residency_save(const yk_residency *r, float *uses, uint32_t stride, double *weight);
void yk_residency_warm(yk_residency *r, const float *uses, uint32_t stride, double weight);

/* The same as a file (residency_file.c): {"format": 1, "shape_id", "tokens": weight, "uses": [[of each expert] of each layer]}, [] for layers in which
 * nothing moves. Reading changes `r` only when all is well; else YK_ERR_INPUT names the key: not JSON, another format or model, layers or
 * experts that are not as many, uses out of range or that do not add up to n_used. */
enum { YK_RESIDENCY_FORMAT = 1 };
yk_status yk_residency_write(const yk_residency *r, const char *shape_id, char **out, size_t *n_bytes, yk_error *err);
yk_status yk_residency_read(yk_residency *r, const char *shape_id, const char *text, size_t n_bytes, yk_error *err);
/* Layers and experts of a layer (0: nothing of it moves), used of these by a token. */
uint32_t yk_residency_layers(const yk_residency *r);
uint32_t yk_residency_experts(const yk_residency *r, uint32_t layer, uint32_t *n_used);

#endif
