/* profile.h - measures a machine: what partition/ plans by. It measures and decides nothing. docs/PROFILER.md says what and how.
 *
 * Every figure is a line t = ns + x / rate through times of several sizes x (fit.h), taken in two visits with all other figures between them, and
 * more while time is left and it has not settled. */
#ifndef YK_PROFILER_PROFILE_H
#define YK_PROFILER_PROFILE_H

#include "cpu/ops.h"
#include "cpu/pool.h"
#include "gpu/modules.h"
#include "partition/machine.h"
#include "profiler/fit.h"

/* One measured piece of work: x is what was done (bytes, operations). Times are of the monotonic clock. */
typedef struct yk_pass {
    uint64_t begin_ns, end_ns;
    double x;
    yk_company company;
} yk_pass;

/* A product of a weight type with n of a step's tokens; down: the columns of tiles that it is made of, of FFNs of so many cut units; 0: rows. */
typedef struct yk_profile_work {
    yk_type type;
    uint32_t n_tokens, step_tokens, down_units;
} yk_profile_work;

/* The CPU lane that is measured: this machine's (cpu.c), or a modelled one in tests. */
typedef struct yk_profile_cpu {
    void *self;
    uint32_t n_reads; /* ways to read memory, [0] all threads with huge pages */
    yk_read_rate reads[YK_MAX_READS];
    yk_status (*read)(void *self, uint32_t which, yk_pass *out, yk_error *err);
    bool (*has)(void *self, yk_type type);
    uint64_t (*unit_bytes)(void *self, yk_type type); /* of the three matrices of one cut unit, 4096 columns wide */
    /* Gate and up, or down, of FFNs of about `bytes` of weights; x: bytes of weights multiplied. */
    yk_status (*product)(void *self, const yk_profile_work *work, uint64_t bytes, yk_pass *out, yk_error *err);
    /* Attention of n tokens over `depth` positions with heads of head_dim (64 or 128); x: bytes of K and V for one token, operations for more. */
    yk_status (*attention)(void *self, uint32_t n_tokens, uint32_t depth, uint32_t head_dim, yk_pass *out, yk_error *err);
    /* YK_PROFILE_ROW_STAGES stages that each gather, add, norm and round rows of n tokens; x: bytes of these rows, as floats. */
    yk_status (*rows)(void *self, uint32_t n_tokens, yk_pass *out, yk_error *err);
    /* NULL, or told which device is measured now; gpu NULL: none any more. */
    yk_status (*attach)(void *self, const yk_device_table *table, yk_gpu *gpu);
} yk_profile_cpu;

typedef struct yk_profile_opts {
    bool types[YK_TYPE_LIMIT]; /* weight types to measure */
    /* Types of experts (products with few of a prompt's tokens), of down, and of down of experts of few cut units; the full mode takes all for such. */
    bool few[YK_TYPE_LIMIT], down[YK_TYPE_LIMIT], narrow[YK_TYPE_LIMIT];
    uint32_t n_devices;
    char devices[YK_MAX_DEVICES][YK_DEVICE_NAME]; /* "opencl:0" */
    const char *null_options;                     /* for null devices: gpu/null/null.c; NULL: there is none */
    uint32_t threads;                             /* workers */
    yk_isa isa;
    bool quick;
    uint32_t ms;               /* time for all of it; 0: 3 s quick, else 30 s */
    const char *build;         /* identity of the kernels; NULL: the version */
    const yk_profile_cpu *cpu; /* NULL: this machine's */
    yk_progress_fn progress;
    void *progress_user;
} yk_profile_opts;

/* Measure the CPU and the devices named. *out is filled as a machine file would. YK_ERR_RUNTIME: a device failed; YK_ERR_USAGE: one is not there;
 * YK_ERR_MEMORY; YK_ERR_CANCELLED. */
yk_status yk_profile(yk_machine *out, const yk_profile_opts *opts, yk_error *err);

/* A quick look (about 200 ms) at whether the CPU figures of `m` still hold: product rates at one token of the types in opts, and memory. Those that have
 * moved by more than 15 % are measured again, their buckets are scaled, and `text` (one line) says what; *n_moved is how many. opts->threads and
 * isa are those of `m`. */
#define YK_CANARY_MOVED 0.15
yk_status yk_profile_canary(yk_machine *m, const yk_profile_opts *opts, uint32_t *n_moved, char *text, size_t capacity,
                            yk_error *err);

/* ---- shared by the files of the profiler ---- */

enum {
    YK_PROFILE_COLS = 4096,
    YK_PROFILE_TOKENS = 512,
    YK_PROFILE_ROW_STAGES = 8,
    YK_PROFILE_HEADS = 32, /* attention: 16-bit K and V */
    YK_PROFILE_KV_HEADS = 8,
    YK_PROFILE_HEAD_DIM = 128
};

/* The CPU lane of this machine. */
typedef struct yk_cpu_bench yk_cpu_bench;
/* `bytes` of weights, 0: by the caches and `quick`. Fills lane. */
yk_status yk_cpu_bench_open(yk_cpu_bench **out, yk_profile_cpu *lane, const yk_profile_opts *opts, uint64_t bytes,
                            yk_error *err);
void yk_cpu_bench_close(yk_cpu_bench **bench);
/* Processors of a list as the system writes it ("0-3,8,10-11"), ascending; at most `capacity` are written. UINT32_MAX: it is no such list. */
uint32_t yk_cpu_list_parse(const char *text, uint32_t *cpus, uint32_t capacity);

/* Something that is measured: passes of sizes x[]. */
typedef struct yk_item yk_item;
struct yk_item {
    char name[48];
    yk_status (*pass)(yk_item *item, double x, yk_pass *out, yk_error *err); /* out->x is what was done for size x */
    void *lane;                                                              /* for pass */
    yk_type type;
    uint32_t n, which; /* tokens; way, direction, head's dimensions */
    uint32_t step_tokens, down_units;
    uint32_t n_x;
    double x[YK_FIT_SIZES], least; /* ascending; made smaller together, not below `least`, when one takes too long */
    bool fixed;                    /* sizes may not be changed */
    bool drop;                     /* sizes are not made smaller: the largest are left out when they take too long */
    bool proportional;             /* no fixed cost */
    bool quiet;                    /* says nothing about the machine's noise */
    double weight;                 /* share of time */
    bool optional;                 /* left out when the time is up before its first visit */
    bool opened;
    yk_fit *to; /* where the result goes; may be NULL */
    yk_samples s;
    yk_line line;
};

typedef struct yk_profile_run {
    const yk_profile_opts *o;
    yk_machine *m;
    const yk_profile_cpu *cpu;
    uint64_t begin_ns, stage_begin_ns, deadline_ns; /* of the stage: CPU, a device */
    uint32_t stage, n_stages;
    yk_item *items; /* of the stage */
    uint32_t n_items, cap_items;
} yk_profile_run;

/* A new item, zeroed but for its name and a weight of 1; NULL: no memory. Pointers to earlier items are invalid then. */
yk_item *yk_profile_item(yk_profile_run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Measure all items until the run's deadline. YK_ERR_CANCELLED and failures of passes. */
yk_status yk_profile_items(yk_profile_run *r, yk_error *err);
/* Show how far the run is. YK_ERR_CANCELLED. */
yk_status yk_profile_tell(const yk_profile_run *r, yk_error *err);
/* The result of an item into the machine: its fit, and its name among those that did not settle. */
void yk_profile_take(yk_profile_run *r, const yk_item *item);
/* product[] of rates from the fits at the token numbers measured. */
void yk_profile_fill_buckets(double product[YK_N_BUCKETS], const yk_fit fits[YK_FIT_TOKENS]);
/* Is this number of tokens measured? */
bool yk_profile_wants(const yk_profile_opts *o, uint32_t n_tokens);

/* Measure device number `index` of a backend into r->m->devices. */
yk_status yk_profile_device(yk_profile_run *r, const yk_backend *backend, uint32_t index, yk_error *err);

#endif
