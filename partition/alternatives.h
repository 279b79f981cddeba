/* alternatives.h - what people use today, on the same machine, in the same budget, played through by the same simulator. All
 * figures are modelled. */
#ifndef YK_PARTITION_ALTERNATIVES_H
#define YK_PARTITION_ALTERNATIVES_H

#include "partition/simulate.h"

typedef enum yk_alt {
    YK_ALT_LAYERS,  /* whole layers, the last ones on the device: llama.cpp's best -ngl */
    YK_ALT_CMOE,    /* all experts on the CPU: -cmoe */
    YK_ALT_NCMOE,   /* experts of the first layers on the CPU: the best -ncmoe */
    YK_ALT_CACHE,   /* as many experts as fit, moved by use, every miss copied: --moe-cache-mib */
    YK_ALT_FIDDLER, /* as many experts as fit, for the rest Fiddler's constants, one side after the other */
    YK_ALT_STREAM,  /* every FFN copied for each use, two slots, copies beside the products */
    YK_ALT_CPU,     /* no device */
    YK_ALT_N
} yk_alt;

typedef struct yk_alt_job {
    const yk_machine *machine;
    int device; /* in the machine; -1: none */
    const yk_shape *shape;
    const yk_plan_limits *limits; /* prompt_tokens and gen_tokens as the solver takes them */
    const yk_routing *routing;    /* NULL without experts */
} yk_alt_job;

/* "-ngl", "-cmoe", "-ncmoe", "cache", "Fiddler", "streaming", "CPU". */
const char *yk_alt_short_name(yk_alt which);
/* False: this does not exist for the model (experts) or the machine (device). */
bool yk_alt_applies(yk_alt which, const yk_alt_job *job);
/* Its best setting that fits, and what that reaches: decode of one sequence with half of the context behind it, prefill of the
 * limits' prompt. Both 0: nothing fits. llama.cpp's: one thing at a time, 512 tokens at once, weights of the host copied in
 * prefill where that is faster. YK_ERR_MEMORY. */
yk_status yk_alt_run(yk_alternative *out, yk_alt which, const yk_alt_job *job, yk_error *err);
/* The same for a plan of ours, in chunks of plan->batch. */
yk_status yk_alt_run_plan(yk_alternative *out, const yk_plan *plan, const yk_alt_job *job, yk_error *err);

/* Even routing of a shape's experts for such jobs; empty without experts. Closed with yk_routing_close. */
yk_status yk_alt_routing(yk_routing *out, const yk_shape *shape, yk_error *err);

/* Replace plan->alternatives: the plan itself and everything that applies, simulated. The device is the plan's first, else the
 * machine's first that the limits name. The plan has passed the checker. On failure it has none. */
yk_status yk_plan_alternatives(yk_plan *plan, const yk_machine *machine, const yk_shape *shape, const yk_plan_limits *limits,
                               yk_error *err);

#endif
