/* profile.h - measures a machine: what partition/ plans by. It measures and decides nothing.
 *
 * Every figure is the median of several short passes over memory larger than the caches; a figure whose middle half spreads by more than a quarter
 * marks the machine as noisy. Rates are measured at 1, 8 and 64 tokens; the buckets between are read off the straight line of seconds over tokens
 * through their neighbours. */
#ifndef YK_PROFILER_PROFILE_H
#define YK_PROFILER_PROFILE_H

#include "cpu/ops.h"
#include "cpu/pool.h"
#include "gpu/modules.h"
#include "partition/machine.h"

typedef struct yk_profile_opts {
    bool types[YK_TYPE_LIMIT]; /* weight types to measure */
    uint32_t n_devices;
    char devices[YK_MAX_DEVICES][YK_DEVICE_NAME]; /* "opencl:0" */
    const char *null_options;                     /* for null devices: gpu/null/null.c; NULL: there is none */
    uint32_t threads;                             /* workers */
    yk_isa isa;
    bool quick;
    yk_progress_fn progress;
    void *progress_user;
} yk_profile_opts;

/* Measure the CPU and the devices named. *out is filled as a machine file would. YK_ERR_RUNTIME: a device failed; YK_ERR_USAGE: one is not there;
 * YK_ERR_MEMORY; YK_ERR_CANCELLED. */
yk_status yk_profile(yk_machine *out, const yk_profile_opts *opts, yk_error *err);

/* ---- shared by the files of the profiler ---- */

enum { YK_PROFILE_COLS = 4096, YK_PROFILE_TOKENS = 64, YK_PROFILE_PASSES = 15 };

/* The CPU lane: workers, weights, activations. */
typedef struct yk_cpu_bench {
    const yk_ops *ops;
    yk_pool *pool;
    yk_arena weights;
    float *x; /* [YK_PROFILE_TOKENS][YK_PROFILE_COLS] */
    yk_q8 q8;
    _Atomic(uint64_t) *owners, *claims;
    uint64_t at; /* where in the weights the next pass begins */
} yk_cpu_bench;

/* One pass: the product of about `bytes` of weights of a type with n tokens. *ns and *done (bytes of weights) are what it took. */
yk_status yk_cpu_bench_pass(yk_cpu_bench *b, yk_type type, uint32_t n_tokens, uint64_t bytes, uint64_t *ns, uint64_t *done,
                            yk_error *err);

/* Passes of one figure. */
typedef struct yk_samples {
    double v[YK_PROFILE_PASSES];
    uint32_t n;
} yk_samples;
/* Median; *noisy is set (never cleared) when the middle half spreads by more than a quarter of it. */
double yk_samples_median(yk_samples *s, bool *noisy);
/* product[] of a type from the rates at 1, 8 and 64 tokens (bytes of weights per second). */
void yk_profile_fill_buckets(double product[YK_N_BUCKETS], const double rate[3]);

/* The run: options, and how far it is. */
typedef struct yk_profile_run {
    const yk_profile_opts *o;
    yk_machine *m;
    uint32_t done, total;
    uint32_t passes;
    uint64_t pass_ns; /* a pass should take this long */
} yk_profile_run;
yk_status yk_profile_tell(yk_profile_run *r, yk_error *err);

/* Measure device number `index` of a backend into r->m->devices. cpu: for what copies and products leave each other. */
yk_status yk_profile_device(yk_profile_run *r, const yk_backend *backend, uint32_t index, yk_cpu_bench *cpu, yk_error *err);

#endif
