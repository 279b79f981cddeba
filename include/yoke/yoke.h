/* yoke.h - run large language models on the machine at hand.
 *
 * The whole public interface of libyoke. In order of need: statuses, model, tokens, engine, sequences, sampling,
 * machine and statistics, tools. A complete program is examples/generate.c.
 *
 * Rules that hold everywhere
 *   status    every function that can fail returns yk_status; YK_OK is 0. The last parameter `err` may be NULL; when it is
 *             given and the call fails, it receives the status again and one line of text: what, where, what to do.
 *             The library never prints, never calls exit or abort.
 *   owners    X_open gives the caller an object; X_close(&x) frees it and sets the pointer to NULL; closing NULL is
 *             allowed. When X_open fails, *out is NULL and nothing has to be freed. Pointers returned by other functions
 *             belong to the object they came from.
 *   order     close samplers, detokenisers and sequences before their engine, engines before their model.
 *   threads   a yk_model is read-only after opening and may be shared by threads. An engine, and all sequences of it, may
 *             be used by one thread at a time; only yk_engine_cancel may be called from any thread at any moment.
 *   options   every options struct is filled by its X_opts_init first; zero in a size or count then means "default".
 *   text      UTF-8, given by pointer and length in bytes; need not be valid UTF-8 and may contain NUL.
 */
#ifndef YOKE_YOKE_H
#define YOKE_YOKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define YK_VERSION_MAJOR 0
#define YK_VERSION_MINOR 1
#define YK_VERSION_PATCH 0

#if defined(__GNUC__)
#define YK_API __attribute__((visibility("default")))
#else
#define YK_API
#endif

/* "0.1.0"; static storage. */
YK_API const char *yk_version(void);

/* ---- 1. Statuses ------------------------------------------------------------------------------------------------ */

/* Stable values: new ones are added, none is ever renumbered. The program's exit code is in brackets. */
typedef enum yk_status {
    YK_OK = 0,
    YK_ERR_RUNTIME = -1,   /* [1] the system or a device refused something */
    YK_ERR_USAGE = -2,     /* [2] an argument is out of its range */
    YK_ERR_INPUT = -3,     /* [3] a model or another input file is wrong or missing */
    YK_ERR_MEMORY = -4,    /* [4] not enough memory */
    YK_ERR_CANCELLED = -5, /* [1] yk_engine_cancel was called or a progress callback returned false */
    YK_ERR_CONTEXT = -6    /* [2] a sequence would grow past its context, or the KV pool is exhausted */
} yk_status;

typedef struct yk_error {
    yk_status status;
    char text[512]; /* one line, NUL-terminated, no newline; cut at the end when longer */
} yk_error;

/* Name of a status, for example "YK_ERR_INPUT"; static storage; "unknown status" for other values. */
YK_API const char *yk_status_name(yk_status status);

typedef enum yk_log_level { YK_LOG_ERROR = 0, YK_LOG_WARN = 1, YK_LOG_INFO = 2, YK_LOG_DEBUG = 3 } yk_log_level;

/* Receives one line without a newline. May be called from any thread of the library. */
typedef void (*yk_log_fn)(void *user, yk_log_level level, const char *text);

/* Set the process-wide log receiver and the highest level it gets. fn NULL (the initial state) drops all lines.
 * Call it before other functions, not concurrently with them. */
YK_API void yk_log_set(yk_log_fn fn, void *user, yk_log_level max_level);

/* Called from time to time during long work with 0 <= done <= total (bytes or steps, `what` says which work it is).
 * Returning false stops the work: the call that does it returns YK_ERR_CANCELLED and leaves nothing behind. */
typedef bool (*yk_progress_fn)(void *user, const char *what, uint64_t done, uint64_t total);

/* ---- 2. Model: a GGUF file, checked and mapped ------------------------------------------------------------------- */

typedef struct yk_model yk_model;

typedef struct yk_model_opts {
    bool check_tensors; /* read every weight and refuse NaN and infinity; default false (norms are always checked) */
    bool vocab_only;    /* only metadata and tokenizer: no tensor needs to be there; such a model cannot open an engine */
    yk_progress_fn progress;
    void *progress_user;
} yk_model_opts;

YK_API void yk_model_opts_init(yk_model_opts *opts);

/* Open a GGUF file (version 2 or 3, little endian). For a split set give the first file, NAME-00001-of-0000N.gguf.
 * The files stay mapped until yk_model_close. opts may be NULL.
 * YK_ERR_INPUT: missing, not GGUF, damaged, or of an unknown architecture, type or tokenizer. YK_ERR_MEMORY. */
YK_API yk_status yk_model_open(yk_model **out, const char *path, const yk_model_opts *opts, yk_error *err);
YK_API void yk_model_close(yk_model **model);

typedef struct yk_model_info {
    const char *name;         /* general.name or the file's name; owned by the model */
    const char *architecture; /* "llama", "qwen3moe", ... */
    const char *file_type;    /* type of most weight bytes, for example "Q4_K" */
    uint32_t n_layers, n_embd, n_ff, n_heads, n_kv_heads, head_dim, n_vocab;
    uint32_t n_experts, n_experts_used, n_expert_ff; /* 0 for dense models */
    uint32_t n_ctx_train;                            /* context the model was trained for, tokens */
    uint64_t n_params;                               /* elements of all weights */
    uint64_t n_bytes;                                /* bytes of all weights in the file */
    uint64_t file_bytes;                             /* bytes of all files of the set */
    uint32_t n_files;
    uint32_t n_meta, n_tensors;
    int32_t bos, eos, eot;     /* special tokens, -1 where the model has none */
    bool add_bos, add_eos;     /* what YK_TOK_SPECIAL adds */
    const char *chat_template; /* Jinja text or NULL; owned by the model */
} yk_model_info;

YK_API void yk_model_get_info(const yk_model *model, yk_model_info *info);

typedef struct yk_tensor_info {
    const char *name, *type; /* owned by the model */
    uint32_t n_dims;         /* 1..4 */
    uint64_t dims[4];        /* dims[0] is the contiguous one (GGUF order); unused ones are 1 */
    uint64_t bytes, offset;  /* offset from the start of its file */
    uint32_t file;           /* 0-based index in the split set */
} yk_tensor_info;

/* index < n_tensors of yk_model_info, in file order. YK_ERR_USAGE when out of range. */
YK_API yk_status yk_model_get_tensor(const yk_model *model, uint32_t index, yk_tensor_info *info);

typedef struct yk_meta_info {
    const char *key;     /* NUL-terminated, owned by the model */
    const char *type;    /* "u32", "str", "[f32]", ... */
    uint64_t n_elements; /* 1, or the length of an array */
} yk_meta_info;

YK_API yk_status yk_model_get_meta(const yk_model *model, uint32_t index, yk_meta_info *info);

/* Print element `element` of a metadata value as text into buf (always NUL-terminated when capacity > 0; strings keep
 * their bytes). *n_bytes (may be NULL) receives the full length without the NUL, which may exceed the capacity. */
YK_API yk_status yk_model_get_meta_text(const yk_model *model, uint32_t index, uint64_t element, char *buf, size_t capacity,
                                        size_t *n_bytes);

/* Index of a metadata key, or -1. */
YK_API int64_t yk_model_find_meta(const yk_model *model, const char *key);

/* ---- 3. Tokens --------------------------------------------------------------------------------------------------- */

enum {
    YK_TOK_SPECIAL = 1,      /* add BOS/EOS as the model's metadata says */
    YK_TOK_PARSE_SPECIAL = 2 /* recognise special tokens written out in the text, for example "</s>" */
};

/* Tokenise n_bytes of text. Writes at most `capacity` ids; *n_ids receives the number of ids of the whole text, so a call
 * with capacity 0 measures. Bytes that are not valid UTF-8 are kept (byte tokens), none is lost.
 * YK_ERR_USAGE: unknown flags. YK_ERR_MEMORY. */
YK_API yk_status yk_tokenize(const yk_model *model, const char *text, size_t n_bytes, uint32_t flags, int32_t *ids,
                             size_t capacity, size_t *n_ids, yk_error *err);

/* The raw bytes one token stands for in the middle of a text (a piece may be part of a UTF-8 character; special tokens
 * give no bytes unless `special`). Same buffer rules as yk_model_get_meta_text. YK_ERR_USAGE: token out of range. */
YK_API yk_status yk_token_text(const yk_model *model, int32_t token, bool special, char *buf, size_t capacity, size_t *n_bytes);

/* True for tokens that end a text: EOS, EOT and the like. */
YK_API bool yk_token_is_end(const yk_model *model, int32_t token);

/* Streaming detokeniser: holds back incomplete UTF-8 characters and the leading space a SentencePiece model adds. */
typedef struct yk_detok yk_detok;

/* at_start: the next token begins a text (a SentencePiece vocabulary's leading space is dropped). */
YK_API yk_status yk_detok_open(yk_detok **out, const yk_model *model, bool at_start, yk_error *err);
YK_API void yk_detok_close(yk_detok **detok);
/* Add one token; *text (owned by detok, valid until the next call) gets the bytes that are complete now, maybe none. */
YK_API yk_status yk_detok_push(yk_detok *detok, int32_t token, const char **text, size_t *n_bytes);
/* The bytes still held back (an unfinished character is given as it is); the state is that of a fresh text afterwards. */
YK_API void yk_detok_flush(yk_detok *detok, const char **text, size_t *n_bytes);

/* Where what lives and runs: made by the planner or read from a file. Section 7. */
typedef struct yk_plan yk_plan;
/* What a machine can do, as measured: what the planner decides by. Section 7. */
typedef struct yk_machine yk_machine;

/* ---- 4. Engine: a model placed on a machine ---------------------------------------------------------------------- */

typedef struct yk_engine yk_engine;
typedef struct yk_seq yk_seq;

typedef enum yk_kv_type { YK_KV_F16 = 0, YK_KV_F32 = 1 } yk_kv_type;

/* What becomes of the plan's choice of experts for the device while the engine runs. */
typedef enum yk_policy {
    YK_POLICY_DEFAULT = 0, /* static */
    YK_POLICY_STATIC = 1,  /* they stay: the same bits on every run and for any number of threads */
    YK_POLICY_ADAPTIVE =
        2 /* experts that are chosen often take the place of others where that pays for their copies. The host keeps all of them
                                 * (yk_engine_stats.kept_bytes). Where no layer has experts on both sides, or RAM is short: as static */
} yk_policy;

typedef struct yk_engine_opts {
    bool auto_partition; /* let the planner place weights and work; default true. false: everything on the named device, or
                                 * on the CPU when none is named */
    uint64_t vram_budget_bytes; /* ceiling of device memory; 0: what is free */
    const char *device;         /* "auto" (NULL means the same), "cpu", "opencl[:N]", "cuda[:N]", "null[:N]" */
    uint32_t threads;           /* CPU workers; 0: one for each physical core this process may use */
    uint32_t context;           /* tokens a sequence may hold; 0: the model's training context, at most 4096 */
    uint32_t max_seqs;          /* sequences alive at a time; 0: 1 */
    uint64_t kv_tokens;         /* tokens the KV pool holds for all sequences together; 0: context * max_seqs */
    uint32_t batch;             /* tokens computed at once; larger yk_decode calls are cut into such steps; 0: 512 */
    uint32_t logits_rows;       /* logits rows a yk_decode call may ask for; 0: max_seqs */
    yk_kv_type kv_type;
    const yk_plan
        *plan; /* NULL: the engine makes one; else used as it is, on the device it names; read during yk_engine_open only */
    const yk_machine *machine; /* what to plan by; NULL: the cached measurement, made now when there is none; read during
                                 * yk_engine_open only */
    const char *isa;           /* highest instruction set to use: "ref", "avx2", ...; NULL: the best there is */
    yk_progress_fn progress;
    void *progress_user;
    /* What the planner must keep to; anything that cannot be is YK_ERR_USAGE naming it by llama.cpp's flag. A given plan leaves nothing to say. */
    bool gpu_layers_given;   /* -ngl; false: the planner decides */
    uint32_t gpu_layers;     /* -ngl: exactly the last so many layers on the device, the head is the last of them */
    uint32_t cpu_moe_layers; /* -ncmoe: experts of the first so many layers stay on the host */
    bool kv_on_host;         /* -nkvo: the KV cache stays on the host, and attention with it */
    const char *overrides;   /* -ot: "REGEX=DEVICE[,...]" over tensor names, CPU for the host; NULL: none */
    bool no_repack; /* compute from the weights as the file has them (mapped, slower) instead of a packed copy in memory */
    const char *trace_path; /* file for a timeline of the lanes (Chrome trace format), written by yk_engine_close; NULL: none */
    const char *
        pack_cache; /* folder (made when there is none, not its parents) of packed weights: a file for each model, read by later opens instead of
                                 * packing again, written by the first one. It knows the model's files by size, time of change, metadata and samples of
                                 * every tensor. One that cannot be used, or a full disk, is a warning in the log, and the weights are packed in
                                 * memory. Files in there may be removed at any time. NULL: none; not used with no_repack */
    yk_policy policy; /* adaptive with a plan and no machine: the machine is measured, as without a plan */
} yk_engine_opts;

YK_API void yk_engine_opts_init(yk_engine_opts *opts);

/* Place the model and reserve all memory that later calls need. The model must outlive the engine. opts may be NULL.
 * Without a plan, device "auto" takes the device that makes a request faster, or the CPU alone when none does, when there is none,
 * or when the only one is the CPU under another name; a device given by name is used as far as its budget goes, and one that is not
 * there is an error. yk_engine_stats.why says what was chosen. A machine that was never measured is measured first (seconds).
 * YK_ERR_MEMORY: does not fit; the text has the bytes needed and available. YK_ERR_USAGE: an option out of range or a device
 * or ISA that is not there. YK_ERR_CANCELLED. */
YK_API yk_status yk_engine_open(yk_engine **out, const yk_model *model, const yk_engine_opts *opts, yk_error *err);
YK_API void yk_engine_close(yk_engine **engine);

/* Ask the running yk_decode to stop soon, from any thread or a signal handler. That call returns YK_ERR_CANCELLED with all
 * sequences as they were before it. When none is running, the next one is stopped. */
YK_API void yk_engine_cancel(yk_engine *engine);
/* Forget a request to cancel that has not been seen yet. */
YK_API void yk_engine_cancel_clear(yk_engine *engine);

/* ---- 5. Sequences and decoding ----------------------------------------------------------------------------------- */

/* A new empty sequence. YK_ERR_USAGE when max_seqs are alive. */
YK_API yk_status yk_seq_open(yk_seq **out, yk_engine *engine, yk_error *err);
/* A sequence with the same tokens; KV blocks are shared and copied only when one of both writes to them. */
YK_API yk_status yk_seq_fork(yk_seq **out, const yk_seq *from, yk_error *err);
YK_API void yk_seq_close(yk_seq **seq);
/* Tokens in the sequence. */
YK_API uint32_t yk_seq_length(const yk_seq *seq);
/* Drop tokens from the end until `length` remain; length <= yk_seq_length. */
YK_API yk_status yk_seq_truncate(yk_seq *seq, uint32_t length, yk_error *err);

typedef enum yk_logits_mode {
    YK_LOGITS_NONE = 0,
    YK_LOGITS_LAST = 1, /* a row for the last token */
    YK_LOGITS_ALL = 2   /* a row for each token of the entry */
} yk_logits_mode;

typedef struct yk_batch_entry {
    yk_seq *seq;           /* each sequence at most once in a batch */
    const int32_t *tokens; /* [n_tokens], appended to the sequence */
    uint32_t n_tokens;     /* 1 or more */
    yk_logits_mode logits;
} yk_batch_entry;

/* Append tokens to any number of sequences and compute them together. Prompt chunks and single tokens may be mixed.
 * On any failure no sequence has changed. YK_ERR_USAGE: empty entry, token out of range, sequence twice, too many logits rows;
 * YK_ERR_CONTEXT: a sequence would pass its context or the pool is full; YK_ERR_CANCELLED; YK_ERR_RUNTIME. */
YK_API yk_status yk_decode(yk_engine *engine, const yk_batch_entry *entries, uint32_t n_entries, yk_error *err);

/* Logits of the last yk_decode: f32 [n_vocab] for token `index` of entry `entry` (index counts the entry's rows: 0 for
 * YK_LOGITS_LAST). NULL when that row was not asked for. Valid until the next yk_decode. */
YK_API const float *yk_logits(const yk_engine *engine, uint32_t entry, uint32_t index);

/* ---- 6. Sampling ------------------------------------------------------------------------------------------------- */

typedef struct yk_sampler yk_sampler;

/* Applied in this order: penalties, top-k, typical, top-p, min-p, temperature, then a draw with the seeded generator. */
typedef struct yk_sampler_opts {
    float temperature;                         /* >= 0; 0: greedy, the lowest id among equals; default 0.8 */
    uint32_t top_k;                            /* 0: off; default 40 */
    float top_p;                               /* (0, 1]; 1: off; default 0.95 */
    float min_p;                               /* [0, 1]; 0: off; default 0.05 */
    float typical_p;                           /* (0, 1]; 1: off; default 1 */
    float repeat_penalty;                      /* > 0; 1: off; default 1 */
    float frequency_penalty, presence_penalty; /* 0: off; default 0 */
    uint32_t penalty_last_n;                   /* tokens the penalties look back; 0: off; default 64 */
    uint32_t min_keep;                         /* candidates top-p, min-p and typical leave at least; default 1 */
    uint64_t seed;
} yk_sampler_opts;

YK_API void yk_sampler_opts_init(yk_sampler_opts *opts);
/* YK_ERR_USAGE: NaN or a value out of its range, named in the text. */
YK_API yk_status yk_sampler_open(yk_sampler **out, const yk_model *model, const yk_sampler_opts *opts, yk_error *err);
YK_API void yk_sampler_close(yk_sampler **sampler);
/* Choose a token from logits [n_vocab] (not changed). YK_ERR_RUNTIME when no logit is finite. Does not call accept. */
YK_API yk_status yk_sampler_sample(yk_sampler *sampler, const float *logits, int32_t *token, yk_error *err);
/* Tell the sampler that a token (chosen or given) is part of the text, for the penalties. */
YK_API void yk_sampler_accept(yk_sampler *sampler, int32_t token);
/* Forget accepted tokens and start the generator again from the seed. */
YK_API void yk_sampler_reset(yk_sampler *sampler);

/* ---- 7. Machine and statistics ------------------------------------------------------------------------------------ */

typedef struct yk_cpu_info {
    char name[128];     /* model name as the system tells it */
    char isa[128];      /* instruction sets of interest, separated by spaces, for example "avx2 avx512f vnni" */
    uint32_t n_cores;   /* physical cores this process may use */
    uint32_t n_threads; /* logical processors this process may use */
    uint32_t n_numa;
    uint64_t cache_bytes[3]; /* largest L1d, L2, L3 instance; 0 when unknown */
    uint64_t memory_bytes, memory_available_bytes;
} yk_cpu_info;

YK_API yk_status yk_get_cpu_info(yk_cpu_info *info, yk_error *err);

/* Highest read rate seen in `ms` milliseconds of summing a buffer larger than the caches with `threads` workers (0: one for each
 * physical core), bytes per second. YK_ERR_MEMORY when the buffer cannot be had. */
YK_API yk_status yk_measure_read_rate(uint32_t threads, uint32_t ms, double *bytes_per_s, yk_error *err);

/* A device that is not the CPU, or a backend that cannot be used here. */
typedef struct yk_device_info {
    char name[24];    /* "opencl:0", what yk_engine_opts.device takes; of a backend that cannot be used its name alone */
    char backend[16]; /* "cuda", "opencl", "null" */
    char description[128], driver[128];
    uint64_t memory_bytes, memory_free_bytes; /* free 0: unknown */
    uint32_t compute_units;
    bool usable;
    bool same_silicon;  /* the CPU under another name: used only when it is named */
    bool shared_memory; /* integrated: its memory is the host's */
    char why[512];      /* one line: why it is not usable; "" when it is */
} yk_device_info;

/* Look for devices of all backends. Writes at most `capacity` rows; *n receives the number of all. YK_ERR_MEMORY. */
YK_API yk_status yk_list_devices(yk_device_info *out, uint32_t capacity, uint32_t *n, yk_error *err);

typedef struct yk_machine_opts {
    bool quick;            /* one to three seconds for each lane instead of about ten; default true */
    const yk_model *model; /* its weight types are measured; NULL: Q4_K, Q8_0 and F16 */
    const char *device;    /* NULL or "auto": all usable ones; "cpu": none; else this one */
    uint32_t threads;      /* CPU workers; 0: one for each physical core */
    const char *isa;       /* as yk_engine_opts.isa */
    yk_progress_fn progress;
    void *progress_user;
} yk_machine_opts;

YK_API void yk_machine_opts_init(yk_machine_opts *opts);
/* Measure this machine: product rates by weight type and number of tokens, memory, copies both ways, hand-off, and what copies
 * and products leave each other. Nothing else should run meanwhile. opts may be NULL. YK_ERR_USAGE: device or instruction set is
 * not there. YK_ERR_MEMORY, YK_ERR_CANCELLED, YK_ERR_RUNTIME: a device failed. */
YK_API yk_status yk_machine_profile(yk_machine **out, const yk_machine_opts *opts, yk_error *err);
/* Read a machine file. YK_ERR_INPUT names file and key: "FILE: machine.cpu.threads: ...". */
YK_API yk_status yk_machine_load(yk_machine **out, const char *path, yk_error *err);
/* Write a machine file; it appears under its name only when complete. path NULL: the file in the user's cache where
 * yk_engine_open looks. YK_ERR_RUNTIME: disk. */
YK_API yk_status yk_machine_save(const yk_machine *machine, const char *path, yk_error *err);
YK_API void yk_machine_close(yk_machine **machine);
/* The text of its file, by the buffer rules of yk_model_get_meta_text. */
YK_API yk_status yk_machine_text(const yk_machine *machine, char *buf, size_t capacity, size_t *n_bytes, yk_error *err);
/* True when the measurements did not settle: something else ran. */
YK_API bool yk_machine_is_noisy(const yk_machine *machine);
/* Path of the file that yk_machine_save writes with path NULL. YK_ERR_RUNTIME: the user has no home folder. */
YK_API yk_status yk_machine_cache_path(const yk_machine *machine, char *buf, size_t capacity, size_t *n_bytes, yk_error *err);

/* The measurement yk_engine_open would plan by for the same options: the cached one, checked quickly; made now, in seconds, when there
 * is none. Closed with yk_machine_close. opts may be NULL; opts->machine is not looked at. Failures as of yk_machine_profile. */
YK_API yk_status yk_machine_here(yk_machine **out, const yk_model *model, const yk_engine_opts *opts, yk_error *err);

/* The plan yk_engine_open would make for the same options (opts->plan is not looked at), with what else could be done simulated beside
 * it. machine NULL: opts->machine, else yk_machine_here. opts may be NULL. Failures as of yk_engine_open. */
YK_API yk_status yk_plan_make(yk_plan **out, const yk_machine *machine, const yk_model *model, const yk_engine_opts *opts,
                              yk_error *err);
/* Read a plan file; yk_engine_open checks whether it fits. YK_ERR_INPUT names file and key: "FILE: plan.layers[3].slices: ...". */
YK_API yk_status yk_plan_load(yk_plan **out, const char *path, yk_error *err);
/* Write a plan file; it appears under its name only when complete. YK_ERR_RUNTIME: disk. */
YK_API yk_status yk_plan_save(const yk_plan *plan, const char *path, yk_error *err);
YK_API void yk_plan_close(yk_plan **plan);
/* The text of its file, by the buffer rules of yk_model_get_meta_text. */
YK_API yk_status yk_plan_text(const yk_plan *plan, char *buf, size_t capacity, size_t *n_bytes, yk_error *err);
/* Why the planner did what it did, one line; "" for plans not made by it. Owned by the plan. */
YK_API const char *yk_plan_note(const yk_plan *plan);
/* One screen of text: speed, what limits it, what would help, why not otherwise, bytes, what lives and runs where; buffer rules as
 * above. machine NULL: opts->machine, which may be NULL. YK_ERR_INPUT: the plan does not fit model and options. */
YK_API yk_status yk_plan_explain(const yk_plan *plan, const yk_model *model, const yk_machine *machine,
                                 const yk_engine_opts *opts, char *buf, size_t capacity, size_t *n_bytes, yk_error *err);

/* Whose plan: a model, or the shape of one without its weights; on this machine, or on one that is somewhere else. */
typedef struct yk_plan_subject {
    const yk_model *model;
    const char *shape_path; /* with model NULL: a file of partition/shapes */
    const char *type;       /* weight types of the shape, as yoke synth names them; NULL: the file's own */
    const yk_machine
        *machine; /* NULL (with a model): as yk_plan_make. Else its devices are planned for, whether they are here or not */
    const yk_engine_opts *opts; /* may be NULL; devices have the memory that the machine's file says when no budget is given */
} yk_plan_subject;

/* A plan for a subject, with what else could be done simulated beside it. YK_ERR_USAGE: neither model nor shape, or a shape without a machine. YK_ERR_INPUT: a shape file that is wrong. Otherwise as yk_plan_make. */
YK_API yk_status yk_plan_make_for(yk_plan **out, const yk_plan_subject *subject, yk_error *err);

typedef enum yk_plan_form {
    YK_PLAN_TEXT = 0,     /* what yk_plan_explain says */
    YK_PLAN_TERMINAL = 1, /* the same with colours, unless NO_COLOR is set */
    YK_PLAN_SVG = 2       /* a picture */
} yk_plan_form;
/* A plan drawn for its subject; buffer rules of yk_model_get_meta_text. YK_ERR_INPUT: the plan does not fit. */
YK_API yk_status yk_plan_draw(const yk_plan *plan, const yk_plan_subject *subject, yk_plan_form form, char *buf,
                              size_t capacity, size_t *n_bytes, yk_error *err);

/* What the steps of one kind did and took: sums since the engine was opened, so the difference of two readings is what happened between them.
 * "Busy" is defined for each lane; the lane's stall is the rest of the steps' time. */
enum { YK_WORK_DECODE = 6, YK_WORK_PROMPT = YK_WORK_DECODE, YK_N_WORK };

typedef struct yk_work {
    uint64_t n_steps, n_tokens;
    uint64_t ns; /* from the begin of a step to its results */
    /* Bytes read or moved. host: weights and KV that products of the CPU read (a matrix counts once a step, as large as in the file).
     * device: what its kernels read from its memory, weights, KV and activations. up, down: copies to the device and back. */
    uint64_t host_bytes, device_bytes, up_bytes, down_bytes;
    /* Choices of the routers (a token's choice of one expert, the shared one not counted), and those of experts that lie in device memory as a
     * whole. Models without experts: 0. */
    uint64_t experts, experts_resident;
    uint64_t cpu_ns;  /* the pool was busy: from the begin of its stages to their last result */
    uint64_t wait_ns; /* the host waited for the device; the rest of a step is the host's own work: launches, lists, sums */
    /* Some steps are looked at with device events: how many, their time, and how much of it kernels (gpu) and copies up (link) were under way. So
     * many steps are left out that recording takes at most 1/400 of the time. 0: none yet, or no device. */
    uint64_t n_sampled, sampled_ns, gpu_ns, link_ns;
    /* What the slowest of host_bytes, device_bytes and up_bytes would have taken alone at the machine's rates (reading, reading, copying), step by
     * step. 0: the machine was not measured. */
    uint64_t roof_ns;
    uint64_t predicted_ns, predicted_of_ns; /* the planner's time for these steps; ns of the steps it has one for */
} yk_work;

typedef struct yk_engine_stats {
    uint64_t n_tokens; /* tokens computed since the engine was opened */
    uint64_t n_steps;
    uint32_t threads, context, max_seqs, batch; /* in force */
    uint64_t weight_bytes_per_token;            /* weight bytes a single decoded token reads (chosen experts only) */
    uint64_t kv_bytes_per_token;
    uint64_t bytes_weights, bytes_kv, bytes_activation,
        bytes_runtime;       /* reserved host memory by class; mapped files not counted */
    uint64_t rescued_slices; /* slices computed again because their worker had been descheduled */
    char device[64];         /* for example "cpu" */
    char isa[32];            /* kernels in use, for example "ref" */
    char plan_id[32];        /* which plan the engine runs */
    char why[256];           /* why it runs where it does, one line */
    /* Steps with one token of each sequence, by their number: 1, 2-4, 5-8, 9-16, 17-32, more; last (YK_WORK_PROMPT) steps in which a sequence has more
     * than one token. */
    yk_work work[YK_N_WORK];
    char policy[16]; /* in force: "static" or "adaptive" */
    uint64_t swaps,
        returns; /* adaptive: experts that took another one's place; times the plan's were brought back because they did better */
    uint64_t kept_bytes; /* adaptive: host memory, among bytes_weights, of experts that the device has too */
} yk_engine_stats;

/* At any time but during a yk_decode of this engine in another thread. Costs a microsecond. */
YK_API void yk_engine_get_stats(const yk_engine *engine, yk_engine_stats *stats);
/* "1", "2-4", ..., "33-", "prompt"; NULL when there is no such kind of step. */
YK_API const char *yk_work_name(uint32_t kind);

/* ---- 8. Tools ------------------------------------------------------------------------------------------------------ */

typedef struct yk_synth_opts {
    const char *shape; /* "mixtral-8x7b", "qwen3-30b-a3b", "llama-1b", "llama2-13b", "gpt-oss-20b" */
    const char *type;  /* "F32", "F16", "BF16", "Q4_0", ..., or a mix: "Q4_K_M", "Q5_K_M" */
    uint32_t n_layers; /* 0: as the shape says */
    uint64_t seed;
    yk_progress_fn progress;
    void *progress_user;
} yk_synth_opts;

YK_API void yk_synth_opts_init(yk_synth_opts *opts);
/* Write a GGUF with the shape of a known model and random but well-conditioned weights: routers spread tokens, every expert
 * differs. The file appears under its name only when complete. YK_ERR_USAGE: unknown shape or type; YK_ERR_RUNTIME: disk. */
YK_API yk_status yk_synth(const char *path, const yk_synth_opts *opts, yk_error *err);
/* Names of the shapes and types yk_synth knows, separated by spaces; static storage. */
YK_API const char *yk_synth_shapes(void);
YK_API const char *yk_synth_types(void);

#ifdef __cplusplus
}
#endif

#endif /* YOKE_YOKE_H */
