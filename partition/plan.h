/* plan.h - the plan: where each slice of each FFN part lives and which lane computes it, for each token bucket. Plain data.
 *
 * A file has, beside what docs/DESIGN.md section 10 fixes: "model" {"id", "name"}, "limits" (what the plan was made for),
 * "head_home", "embd_home", "attn_home" of each layer, "bound_share" and "note". A plan written by hand needs `format`,
 * `layers` and `memory` only:
 *   - homes left out are "host"; a kind left out is GG on a device and CC on the host
 *   - figures in memory[device] are ceilings: the checker refuses slices that take more than the class says
 *   - "model" left out: any model whose layers and units fit
 * "attn_chunks" of a layer, {"129-512": "CG"}: attn_chunk below; left out, attention is computed where it lives.
 * "ahead" of a layer, {"5-8": true}: ahead below; left out, false.
 * Keys a plan may have and a reader may ignore: "chunks" of a slice and "assign" of a layer (see the structs), "binding_shares",
 * "would_help".
 *
 * Attention of a layer (its projections, norms, router) lives and runs at attn_home, its KV blocks with it. Slices cover the
 * units (src/model/cut.h) of every instance of every part of the layer exactly once. */
#ifndef YK_PARTITION_PLAN_H
#define YK_PARTITION_PLAN_H

#include "partition/machine.h"
#include "src/model/shape.h"

enum { YK_PLAN_FORMAT = 1, YK_HOST = -1, YK_PLAN_MAX_ALTERNATIVES = 8, YK_PLAN_MAX_FIGURES = 8 };

typedef enum yk_kind { YK_KIND_GG, YK_KIND_CC, YK_KIND_CG } yk_kind;
const char *yk_kind_name(yk_kind kind); /* "GG", "CC", "CG" */

/* Prefill chunks by length; a chunk of 32 tokens or fewer belongs to the first. */
typedef enum yk_chunk { YK_C_128, YK_C_512, YK_C_2048, YK_C_MORE, YK_N_CHUNKS } yk_chunk;
const char *yk_chunk_name(yk_chunk c); /* "33-128", "129-512", "513-2048", "2049-" */
yk_chunk yk_chunk_of(uint32_t n_tokens);
uint32_t yk_chunk_tokens(yk_chunk c); /* the longest of it; 8192 for the last */

typedef struct yk_slice {
    uint8_t group;              /* yk_part_group */
    int8_t home;                /* YK_HOST or index in plan->devices */
    uint8_t kind[YK_N_BUCKETS]; /* yk_kind: GG with a device as home, CC or CG with the host */
    uint8_t chunk[YK_N_CHUNKS]; /* for prefill chunks of this length: 1 + yk_kind; 0: kind[YK_B_PREFILL] */
    uint32_t expert;            /* instance; 0 for ffn and shexp */
    uint32_t unit0, units;
} yk_slice;

/* The kind for a step of n tokens. */
yk_kind yk_slice_kind(const yk_slice *slice, bool prefill, uint32_t n);

/* Which tokens go where when the number of tokens of each expert (dense: of the step) is known. "assign" of a layer; advice,
 * the slices hold without it. link_share: of what is not resident and has tokens, the share that is copied, by decode bucket
 * and then by chunk. break_even_tokens: from so many tokens of an expert copying beats the CPU, 0: never. cpu_tokens: when
 * an expert of the mean number of tokens of a chunk is copied, so many of them are best left to the CPU meanwhile. */
typedef struct yk_plan_assign {
    bool given;
    double break_even_tokens;
    double link_share[YK_B_PREFILL + YK_N_CHUNKS], cpu_tokens[YK_N_CHUNKS];
} yk_plan_assign;

typedef struct yk_plan_layer {
    int8_t attn_home;
    /* For prefill chunks of this length. 1 + YK_KIND_CG, with the host as home only: the layer's attention bytes are copied to
     * a staging slot, KV of the step's sequences is copied up, the device computes all of it (norms, projections, attention,
     * router), and KV of the new positions is copied down. 0: computed at attn_home, as always in decode. */
    uint8_t attn_chunk[YK_N_CHUNKS];
    /* By decode bucket: with the layer, beside its attention, begin the copies of its first CG experts (in the order of
     * slices, as many as there are staging slots), before the router has chosen; one that is not chosen was copied for
     * nothing. false: each copy begins when its expert is known to be needed. */
    bool ahead[YK_B_PREFILL];
    yk_plan_assign assign;
    uint32_t n_slices;
    yk_slice *slices; /* [n_slices], owned by the plan */
} yk_plan_layer;

typedef struct yk_figure {
    uint32_t at; /* depth, chunk or prompt, tokens */
    double value;
} yk_figure;

enum { YK_PLAN_N_BOUNDS = 4, YK_PLAN_MAX_HELP = 6 };

/* What a change of the machine would give: planned anew, or this plan with other copies where that is nearly the same. */
typedef struct yk_plan_help {
    char name[48];                  /* "1 GiB more of cuda:0", "10 GB/s more of memory bandwidth" */
    double decode_tps, prefill_tps; /* one sequence at the first depth; the first chunk */
} yk_plan_help;

typedef struct yk_plan_speed {
    uint32_t n_depths, n_chunks, n_prompts;
    yk_figure decode_tps[YK_PLAN_MAX_FIGURES];              /* [n_depths], one sequence */
    yk_figure batch_tps[YK_B_PREFILL][YK_PLAN_MAX_FIGURES]; /* [bucket][n_depths], all sequences together */
    yk_figure prefill_tps[YK_PLAN_MAX_FIGURES];             /* [n_chunks]; the first is a whole batch */
    yk_figure ttft_ms[YK_PLAN_MAX_FIGURES];                 /* [n_prompts] */
    char bound[2][16];                                      /* decode, prefill: "cpu", "gpu", "link", "hand-off"; "" unknown */
    double bound_share[2];                                  /* of the time */
    double share[2][YK_PLAN_N_BOUNDS]; /* of the time, by cpu, gpu, link, hand-off (yk_bound); all 0 unknown */
    uint32_t n_help;
    yk_plan_help help[YK_PLAN_MAX_HELP];
} yk_plan_speed;

typedef struct yk_alternative {
    char name[40];
    double decode_tps, prefill_tps; /* 0: it does not fit */
} yk_alternative;

struct yk_plan {
    char plan_id[17];  /* hash of the placement: model, homes, slices, kinds; never of predictions */
    char shape_id[17]; /* "" : for any model that fits */
    char model_name[64];
    uint32_t n_devices;
    char devices[YK_MAX_DEVICES][YK_DEVICE_NAME];
    uint32_t n_layers;
    yk_plan_layer *layers;
    int8_t head_home, embd_home;
    uint32_t context, max_seqs, batch, kv_elem_bytes; /* what it was made for; 0: not told */
    /* Bytes by place (0: host, 1 + i: device i) and class; read from a file they are ceilings, YK_PLAN_NO_CEILING where nothing
     * is said. */
    uint64_t memory[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES];
    bool predicted;
    yk_plan_speed speed;
    uint32_t n_alternatives;
    yk_alternative alternatives[YK_PLAN_MAX_ALTERNATIVES];
    char note[512]; /* why it is as it is, one line */
};
typedef struct yk_plan yk_plan;

#define YK_PLAN_NO_CEILING UINT64_MAX

/* What a plan must keep to. Names of devices as in the machine file. */
typedef struct yk_plan_device_limit {
    char name[YK_DEVICE_NAME];
    uint64_t budget_bytes;     /* ceiling of everything on the device, class runtime included */
    uint64_t runtime_bytes;    /* what context and driver take */
    uint64_t activation_bytes; /* what the engine will reserve there; 0: yk_plan_activation_bytes */
} yk_plan_device_limit;

/* -ot REGEX=DEVICE: weights whose name in a GGUF file ("blk.3.ffn_up_exps.weight") the pattern (PCRE2) is found in. */
typedef struct yk_plan_override {
    char pattern[112], device[YK_DEVICE_NAME]; /* device: "CPU", "CUDA0", "cuda:0" */
} yk_plan_override;

/* A slice whose home is given. units 0: all of the instance. */
typedef struct yk_plan_fixed {
    uint32_t layer, expert, unit0, units;
    uint8_t group; /* yk_part_group */
    char home[YK_DEVICE_NAME];
} yk_plan_fixed;

enum { YK_PLAN_MAX_OVERRIDES = 32 };

/* What a user wants of the solver; all zero: nothing. From the weakest to the strongest: -ngl, -nkvo, -ncmoe, -ot, fixed
 * slices; what a stronger one takes from a weaker one is said in the note of the plan. Only homes are bound: what lives on
 * the host may be copied. docs/PLANNER.md, "Constraints". */
typedef struct yk_plan_wishes {
    bool ngl_given;
    uint32_t ngl;   /* llama.cpp's count: the head is the last of n_layers + 1; exactly the last so many are on the device */
    uint32_t ncmoe; /* routed experts of the first so many layers stay on the host */
    bool nkvo;      /* KV stays on the host, and attention with it */
    uint32_t n_overrides;
    yk_plan_override overrides[YK_PLAN_MAX_OVERRIDES];
    uint32_t n_fixed;
    const yk_plan_fixed *fixed; /* [n_fixed], borrowed */
} yk_plan_wishes;

/* Does a device compute the attention of this layer in a step of n tokens? */
bool yk_plan_attn_on_device(const yk_plan_layer *layer, bool prefill, uint32_t n);

/* Are experts of this layer copied ahead in a step of n tokens? */
bool yk_plan_ahead(const yk_plan_layer *layer, bool prefill, uint32_t n);

/* Append the overrides of "REGEX=DEVICE[,REGEX=DEVICE...]". YK_ERR_USAGE names what is wrong. */
yk_status yk_plan_add_override(yk_plan_wishes *wishes, const char *text, yk_error *err);

typedef struct yk_plan_limits {
    uint32_t context, max_seqs, batch, kv_elem_bytes; /* all > 0 */
    uint64_t kv_tokens;                               /* positions of all sequences together; 0: context * max_seqs */
    uint64_t host_bytes;                              /* ceiling of host memory; 0: none */
    uint64_t kept_bytes; /* policy adaptive: experts of the device that the host keeps too; 0: static */
    uint32_t n_devices;
    yk_plan_device_limit devices[YK_MAX_DEVICES];
    char device[YK_DEVICE_NAME];        /* solver: "" or "auto", "cpu", "opencl:0", "opencl" */
    uint32_t prompt_tokens, gen_tokens; /* the request the solver makes fast, per sequence; 0: 512 and 128 */
    yk_plan_wishes wishes;              /* of the solver */
} yk_plan_limits;

/* An empty plan with room for n_layers; freed by yk_plan_clear (the struct itself is the caller's). */
yk_status yk_plan_init(yk_plan *plan, uint32_t n_layers, yk_error *err);
void yk_plan_clear(yk_plan *plan);
/* *out as `from`, with slices of its own; freed by yk_plan_clear. YK_ERR_MEMORY. */
yk_status yk_plan_copy(yk_plan *out, const yk_plan *from, yk_error *err);
/* Append a slice. */
yk_status yk_plan_add(yk_plan *plan, uint32_t layer, const yk_slice *slice, yk_error *err);
/* Index of a device by name, adding it when it is new; -2 when there are too many. */
int yk_plan_device(yk_plan *plan, const char *name);
/* Compute plan_id from the placement. */
void yk_plan_set_id(yk_plan *plan);
/* "host" or the device's name. */
const char *yk_plan_home_name(const yk_plan *plan, int home);

/* Bytes the plan takes by place and class:
 *   weights     slices at home there, attention at attn_home, head and embedding at theirs (a tied head on a device is a copy
 * beside the embedding) kv          of layers whose attention is there: kv_tokens in whole blocks of 16 staging     of a
 * device: two slots, each as large as the largest copy; a copy is what is CG in one bucket of one instance of one part of a
 *               layer (the dense FFN, the shared expert, one expert), or the attention of a layer that is copied in prefill; then
 *               KV of one layer besides. Staging belongs to the device of the plan's first CG reader, see below
 * activation, runtime   as the limits say, on devices the plan uses at all; of the host only the plan's own
 * need is not counted (0) CG slices are computed by the device of their layer's attn_home, or by the plan's first device when
 * that is the host. */
void yk_plan_memory(const yk_plan *plan, const yk_shape *shape, const yk_plan_limits *limits,
                    uint64_t memory[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES]);
/* Device that computes CG slices of a layer; YK_HOST when the plan has no device. */
int yk_plan_cg_device(const yk_plan *plan, uint32_t layer);

/* Rule of thumb for the activations of a device: batch rows of residual, normalised input, queries, keys, values, attention
 * output and one partial sum, the FFN's units for every used part, f32, the int8 copies counted as a quarter; plus logits of
 * max_seqs rows. */
uint64_t yk_plan_activation_bytes(const yk_shape *shape, const yk_plan_limits *limits);

/* Does the plan fit model and limits? YK_ERR_INPUT with the key's path when not. */
yk_status yk_plan_check(const yk_plan *plan, const yk_shape *shape, const yk_plan_limits *limits, yk_error *err);

/* Read and write. A plan read is not checked yet; plan_id is computed, the file's is not believed. Writing gives the same bytes
 * for the same plan. */
yk_status yk_plan_read(yk_plan *out, const char *text, size_t n_bytes, yk_error *err);
yk_status yk_plan_write(const yk_plan *plan, char **out, size_t *n_bytes, yk_error *err);

/* A random plan that is valid for shape and limits: random homes, cuts and kinds, about half of them with a bias (nearly all
 * GG, CC or CG). The same seed gives the same plan. YK_ERR_MEMORY. */
yk_status yk_plan_random(yk_plan *out, uint64_t seed, const yk_shape *shape, const yk_plan_limits *limits, yk_error *err);

#endif
