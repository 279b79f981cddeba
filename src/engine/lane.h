/* lane.h - the GPU lane of an engine: the device, its memory, and the order in which a step's work is handed to it.
 *
 * Streams: compute (kernels), up (rows and lists to the device), fill_up (weights of CG slabs to the device), down (copies to the host). A layer whose attention is on the device runs
 *
 *   compute  x += y; norm | q k v | rope, KV append | attention | o | x += y; norm | router, route
 *   down     normalised rows (and chosen experts) to the host; mailbox HOST_GO
 *   compute  gate, up, glu, down of the device's slabs of the FFN (GG from its memory, CG from a staging slot that `fill_up` fills)
 *   host     the CPU's pieces of the FFN as a pool job; mailbox DEVICE_GO
 *   up       waits for DEVICE_GO, copies the CPU's partial sums
 *   compute  waits for that copy and goes on: x + device's sum + CPU's sum, always in this order
 *
 * A layer of the host whose attention the plan has copied in prefill (yk_plan_attn_on_device) is run like that too, from a
 * staging slot and a scratch for KV of one layer that all such layers use in turn:
 *
 *   fill_up  all matrices and vectors of attention to a slot; K and V of committed positions to the scratch, once it is free
 *   compute  as above, and append to the scratch
 *   down     behind the rows for the host: K and V of the blocks with new positions, staged as the virtual worker's; then the
 *            scratch is free
 *
 * They come to the host's KV pool when the step has succeeded, like what the CPU has staged.
 *
 * Where all of a layer is on the device and the step has few tokens (yk_list_on_device), the router's choice stays there: nothing goes down.
 *
 * Everything is enqueued before the host starts its part, the next layer's attention included, so the device never waits for a
 * launch; attention that is copied and the slabs that a dense layer is certain to need are copied from the layer before it on.
 * Experts are copied when the router has chosen them, or, in decode and where the plan says so (yk_plan_ahead), the first ones
 * from the beginning of their layer.
 * A layer whose attention is on the CPU runs the pool's stages up to the FFN, sends the normalised rows up and gets the device's partial sums back.
 *
 * To the pool's stages the device looks like one more worker: its rows in the engine's buffers are those of worker `virtual`. */
#ifndef YK_ENGINE_LANE_H
#define YK_ENGINE_LANE_H

#include "gpu/kernels.h"
#include "gpu/modules.h"
#include "src/engine/trace.h"

enum { YK_BOX_HOST_GO, YK_BOX_DEVICE_GO }; /* mailboxes: device to host, host to device */
enum { YK_LANE_SLOTS = 2, YK_LANE_KERNELS = 40, YK_LANE_RESERVE = 256 << 20, YK_LANE_ALIGN = 256, YK_LANE_MARKS = 8192 };

enum yk_gpulane_event {
    YK_EV_FFN_IN,                              /* normalised rows are there */
    YK_EV_FFN_OUT,                             /* the device's sum is there */
    YK_EV_UP,                                  /* rows or lists from the host are there */
    YK_EV_Y_CPU,                               /* the CPU's sum is there */
    YK_EV_KV_UP,                               /* KV of a layer of the host is in the scratch */
    YK_EV_KV_FREE,                             /* that of its new positions is on the host: the scratch is free */
    YK_EV_LAYER,                               /* the layer before is done */
    YK_EV_STEP,                                /* all of the step before is done: its lists may be overwritten */
    YK_EV_FILLED,                              /* + slot: staging slot holds its slab */
    YK_EV_FREE = YK_EV_FILLED + YK_LANE_SLOTS, /* + slot: its slab has been used */
    YK_EV_N = YK_EV_FREE + YK_LANE_SLOTS
};

/* Chunks of device memory of one class, given out piece by piece. */
typedef struct yk_dev_arena {
    yk_mem_class cls;
    yk_gpu_mem *chunks;
    uint32_t n_chunks;
    uint64_t used;      /* of the last chunk */
    uint64_t remaining; /* bytes still expected, sizes the next chunk */
} yk_dev_arena;

/* A KV block with committed positions that a step reads. */
typedef struct yk_lane_kv {
    uint32_t from, to; /* pool block that holds them, and the one that the sequence has now */
    uint32_t end, pos; /* the position behind the block; first new position of the runs that read it, the least */
} yk_lane_kv;

/* A task for the trace: the device reaches `from` and `to` before and behind it. */
typedef struct yk_lane_mark {
    yk_gpu_event *from, *to; /* opened when first used */
    bool whole;              /* both are recorded */
    yk_trace_rec rec;
} yk_lane_mark;

struct yk_gpulane {
    yk_engine *e;
    yk_modules *modules;
    const yk_device_table *t;
    yk_gpu *gpu;
    char name[YK_DEVICE_NAME];
    yk_gpu_info info;
    uint64_t budget; /* bytes, in force */
    yk_gpu_stream *compute, *up, *fill_up, *down;
    yk_gpu_event *ev[YK_EV_N];
    yk_dev_arena weights, kv, activation, staging;
    struct {
        char name[32];
        yk_gpu_kernel *kernel;
    } kernels[YK_LANE_KERNELS];
    uint32_t n_kernels;
    uint32_t box[2]; /* last value of each mailbox */

    /* device buffers */
    yk_gpu_mem x, norm, qkv, q, att, y_attn, y_dev, y_cpu, gate, h, router, ids, id_weight, logits;
    yk_k_q8 q8, o_q8, h_q8;
    yk_gpu_mem lists, pos, seq, table, logits_rows, tiles; /* the latter parts of lists */
    yk_gpu_mem att_part, att_arrived;                      /* of the splits of attention */
    uint32_t n_tiles;                                      /* of this step; 0: each token is of another sequence */
    yk_gpu_mem slot_token, slot_weight, rope_cs, output_norm, output_norm_b, output_b;
    yk_dev_mat head;
    yk_gpu_mem slot[YK_LANE_SLOTS];
    uint64_t slot_bytes;
    uint32_t next_slot;
    struct {
        const yk_slab *slab;
        uint32_t slot;
    } ahead[YK_LANE_SLOTS]; /* slabs copied before their launches are enqueued, in order of use */
    uint32_t n_ahead;

    /* For layers of the host whose attention is copied: K and V of one layer in all blocks, laid out as where they live on the
     * device, and the blocks that this step copies there. */
    yk_gpu_mem kv_scratch;
    yk_lane_kv *kv_list; /* [n_kv_list] of room for n_blocks */
    uint32_t *kv_listed; /* [n_blocks] 1 + index in kv_list, 0: not in it */
    uint32_t n_kv_list;
    bool kv_locked; /* e->kv is page-locked */

    /* host memory that copies use; page-locked when the device grants it */
    uint8_t *host;
    bool host_locked;
    bool packed_locked;   /* so is e->packed */
    float *host_rows;     /* [n_tokens][max(n_in, n_embd)] rows going up */
    float *host_y;        /* [n_tokens][n_embd] the CPU's sum */
    uint32_t *host_ids;   /* [n_tokens][n_used], one more with a shared expert */
    float *host_weight;   /* likewise */
    uint32_t *host_token; /* [n_layers][n_slots] */
    float *host_slot_weight;
    uint32_t *host_lists; /* pos, seq [n_tokens], logits rows [n_logits], tiles [n_tokens][2], table [n_runs][max_blocks] */

    yk_lane_mark *marks; /* [YK_LANE_MARKS] of this step, with a trace or when statistics want them */
    uint32_t n_marks;
    bool marking, marks_lost;
    uint64_t launched_bytes;       /* read by all launches so far */
    uint64_t up_bytes, down_bytes; /* of all copies of steps so far */
    struct yk_swap *swap;          /* experts that change places (swap.h), or NULL */
    /* For tests with the null device's modelled time: the pool's products are not computed but take the time that their bytes need at this many
     * bytes a second, and experts are chosen in turn. 0: off. Logits mean nothing then. */
    double cpu_rate;

    /* Sums that the next add_norm takes in: rows of y_dev for each token, 0: none; and whether there is one in y_cpu. */
    uint32_t y_pending;
    bool y_cpu_pending;
    uint64_t n_launches, n_head_launches; /* kernels and fills so far; those behind the last layer among them */
};

/* Open the device `name` ("opencl", "opencl:1", ...) with a budget. YK_ERR_USAGE: not there. The engine's dims are known already. */
yk_status yk_gpulane_open(yk_gpulane **out, yk_engine *e, const char *name, uint64_t budget, yk_error *err);
void yk_gpulane_close(yk_gpulane **lane);
/* The budget in force: the one wanted, or (0) all that is free but for what the desktop needs. */
uint64_t yk_gpulane_budget(uint64_t wanted, uint64_t memory_bytes, uint64_t memory_free_bytes);
/* What a lane of this engine (its sizes are known) reserves for activations, and what alignment and expert biases take beside the bytes of a
 * plan, at most. */
uint64_t yk_gpulane_activation_bytes(const yk_engine *e);
uint64_t yk_gpulane_slack_bytes(const yk_engine *e);
/* Place weights by the plan: fills e->places. */
yk_status yk_gpulane_place(yk_gpulane *lane, const yk_plan *plan, const yk_shape *shape, const yk_engine_opts *o,
                           yk_error *err);
/* lane_attn.c: the place of a layer whose attention is in a staging slot, and KV in the scratch. */
yk_layer_place yk_lane_attn_in(const yk_gpulane *lane, uint32_t layer, uint32_t slot);
/* Room for n_blocks KV blocks in kv_list and kv_listed. YK_ERR_MEMORY. */
yk_status yk_lane_kv_open(yk_gpulane *lane, uint32_t n_blocks, yk_error *err);
/* kv_list of a step. */
void yk_lane_kv_collect(yk_gpulane *lane, const yk_step *step);
/* Does a layer that looks back `window` positions (0: all) read the block? */
bool yk_lane_kv_read(const yk_lane_kv *kv, uint32_t window);
/* Compute a step whose job is built. */
yk_status yk_gpulane_step(yk_gpulane *lane, yk_step *step, yk_error *err);

/* The job's stages before `end` with cpu_rate: those that decide what others do are computed, all others only take their
 * time, which ends at absolute moments. */
yk_status yk_lane_model_stages(yk_gpulane *lane, yk_step *step, uint32_t end, yk_error *err);

/* Internal: failures of the device as statuses; a kernel by name. */
yk_status yk_gpulane_check(const yk_gpulane *lane, yk_status st, const char *what, yk_error *err);
yk_status yk_gpulane_kernel(yk_gpulane *lane, const char *name, yk_gpu_kernel **out, yk_error *err);
yk_status yk_gpulane_take(yk_gpulane *lane, yk_dev_arena *a, uint64_t bytes, yk_gpu_mem *out, yk_error *err);
static inline yk_gpu_mem yk_mem_at(yk_gpu_mem m, uint64_t offset)
{
    return (yk_gpu_mem){m.handle, m.offset + offset, m.bytes - offset};
}

#endif
