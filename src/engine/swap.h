/* swap.h - experts that change places while the engine runs: what partition/residency.h decides, done.
 *
 * Of a layer with experts on both sides the host keeps all of them packed, those of the device too. A swap copies an expert's packed bytes (the same on both
 * sides) over one that leaves: pieces of it during each of some steps, on a stream of its own, enqueued behind the layer's other copies and spread over the
 * layers. From the first piece on the one that leaves is computed from its bytes on the host, as the plan says for the one that comes (CC or CG, by
 * bucket); the one that comes is resident behind the step with its last piece. Places change between steps only, when the device's streams have run dry and no
 * worker is inside a step any more. Nothing is allocated, on either side: device memory has as many slots as the plan's residents.
 *
 * Who is where follows from the routing and the cost model, never from a clock: a run that is repeated gives the same bits.
 *
 * Steps of up to 32 tokens count as a token each: of several tokens one is looked at, in turn. Prefill is not looked at, and copies nothing.
 *
 * What was learned is kept in the user's cache when the engine closes, beside the machine's measurement, a file for each model, and read by the next start.
 *
 * A copy that fails does not fail its step: it is made again from its beginning with the next one; after some failures in a row experts stay where they are. */
#ifndef YK_ENGINE_SWAP_H
#define YK_ENGINE_SWAP_H

#include "partition/residency.h"
#include "src/engine/lane_run.h"

typedef struct yk_swap yk_swap;

/* For an open lane, before its plan is placed. *out NULL without a failure: no layer has whole experts on both sides. YK_ERR_USAGE: the machine was measured
 * without this device. YK_ERR_MEMORY, YK_ERR_RUNTIME. */
yk_status yk_swap_open(yk_swap **out, yk_gpulane *lane, const yk_plan *plan, const yk_shape *shape, const yk_machine *machine,
                       yk_error *err);
void yk_swap_close(yk_swap **swap);
/* Do experts of this layer change places? swap may be NULL. */
bool yk_swap_moves(const yk_swap *swap, uint32_t layer);
/* While placing: a run of units of an expert of such a layer, packed at slab->host; resident: in slab->dev too. */
void yk_swap_put(yk_swap *swap, uint32_t layer, const yk_slice *slice, const yk_slab *slab);
/* Placing is done. YK_ERR_MEMORY. */
yk_status yk_swap_ready(yk_swap *swap, yk_error *err);

/* During a step; swap may be NULL in all of these. The router's choice of a layer is in the buffers; what the layer copies has been enqueued. */
void yk_swap_note(yk_swap *swap, const yk_step *step, uint32_t layer);
void yk_swap_copy(yk_lane_run *r, uint32_t layer);
/* Behind it: wait for the copies; then, when all other streams have run dry too, change places. ok: the step succeeded. */
void yk_swap_wait(yk_swap *swap);
void yk_swap_step(yk_swap *swap, const yk_step *step, bool ok);

typedef struct yk_swap_sums {
    uint64_t swaps, returns; /* done; decisions to go back to the plan's residents */
    uint64_t kept_bytes;     /* of the host: residents that are packed there too */
    uint32_t n_moving;       /* swaps under way */
    bool stopped;            /* copies failed */
} yk_swap_sums;
yk_swap_sums yk_swap_get(const yk_swap *swap);

/* Bytes that the host keeps of residents under a plan when its experts may change places: an upper bound. */
uint64_t yk_swap_bytes(const yk_plan *plan, const yk_shape *shape);

#endif
