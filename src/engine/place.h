/* place.h - a plan made real: where the bytes of every matrix and cut unit are, in host memory and on the device.
 *
 * An engine without a device has no placement: each FFN part is packed as a whole (yk_whole_part), or read where the model file is mapped. */
#ifndef YK_ENGINE_PLACE_H
#define YK_ENGINE_PLACE_H

#include "gpu/device.h"
#include "partition/plan.h"
#include "src/model/model.h"

/* Consecutive cut units of equal size that the device computes with one launch each of gate, up, glu and down. The bytes of a unit
 * (docs/kernels/layout.md): for every 16 units their panel of gate rows and their panel of up rows, then the tiles of its down columns for every 16 rows of
 * the output. */
typedef struct yk_slab {
    uint32_t u0, unit, n_units;          /* first intermediate unit, intermediate units of a cut unit, cut units */
    uint64_t unit_bytes, up_at, down_at; /* bytes of a unit; where up and down begin in it */
    uint64_t pair_bytes;                 /* a panel of gate and one of up */
    const uint8_t *host;                 /* CC and CG: packed bytes in host memory */
    yk_gpu_mem dev;                      /* GG */
} yk_slab;

/* Consecutive intermediate units of a part that the CPU computes in one job. */
typedef struct yk_piece {
    uint32_t u0, n;
    yk_slab slab; /* where they are packed; slab.host NULL: they are read from the file's layout */
} yk_piece;

/* All units of a part, on the CPU: the equal ones, and the last one where it is smaller. n 0: in the file's layout. */
typedef struct yk_whole_part {
    uint32_t n;
    yk_piece piece[2];
} yk_whole_part;

/* A matrix in packed form in host memory; base NULL: it has none. */
typedef struct yk_packed {
    const uint8_t *base;
    uint64_t panel_bytes;
} yk_packed;

enum { YK_W_Q, YK_W_K, YK_W_V, YK_W_O, YK_W_ROUTER, YK_W_N }; /* matrices of a layer that are packed as a whole */

typedef struct yk_part_place {
    uint32_t n_pieces[YK_N_BUCKETS], n_slabs[YK_N_BUCKETS];
    yk_piece *pieces[YK_N_BUCKETS];
    yk_slab *slabs[YK_N_BUCKETS];
} yk_part_place;

typedef struct yk_dev_mat {
    yk_gpu_mem mem;
    uint64_t panel_bytes;
} yk_dev_mat;

typedef struct yk_layer_place {
    bool attn_dev;      /* attention and its KV live on the device */
    yk_plan_layer attn; /* what the plan says of attention, without slices: yk_plan_attn_on_device */
    /* Attention of the host that is copied in prefill: its bytes there, one slab of one unit. Matrices and vectors up to
     * sh_router are then offsets in it (handle NULL); yk_lane_attn_in says where they are in a slot. */
    yk_slab attn_copy;
    yk_dev_mat q, k, v, o;
    yk_gpu_mem attn_norm, attn_norm_b, q_b, k_b, v_b, o_b, q_norm, k_norm, sinks, ffn_norm, ffn_norm_b;
    yk_gpu_mem router, router_b, sh_router;
    yk_gpu_mem gate_b, up_b, down_b; /* expert biases, where any unit is computed there */
    yk_gpu_mem kv;
    /* Where all parts of a layer with experts are on the device: the router's choice then need not go through the host. parts without memory:
     * it has to. */
    struct {
        yk_gpu_mem base, parts; /* parts: rows of YK_K_PART_WORDS, places from base on */
        uint32_t width;         /* of the widest part */
    } list;
    yk_part_place *parts;                                /* [experts + shared, or 1] */
    bool cpu_part[YK_N_BUCKETS], dev_part[YK_N_BUCKETS]; /* which lanes have FFN work in a bucket */
    bool copied_part[YK_N_BUCKETS];                      /* does some of it need a staging slot? */
} yk_layer_place;

/* Bytes of a matrix where it is placed: packed, for types that have a packed form. For yk_shape_opts. */
uint64_t yk_place_bytes(yk_type type, uint32_t n_rows, uint32_t n_cols);
/* Can the lane multiply with a matrix of this type? For yk_shape_opts. */
bool yk_place_can(yk_type type, bool plain);
void yk_places_close(yk_layer_place **places, uint32_t n_layers, uint32_t n_parts);

#endif
