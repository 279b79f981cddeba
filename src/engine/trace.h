/* trace.h - a timeline of what each lane does: tasks in a ring that is allocated once, written in Chrome's trace format when the engine closes.
 *
 * One thread at a time adds records (the caller of yk_decode). Without a trace the pointer is NULL and nothing is measured. */
#ifndef YK_ENGINE_TRACE_H
#define YK_ENGINE_TRACE_H

#include "src/engine/engine.h"

enum yk_trace_lane { YK_TRACE_CPU, YK_TRACE_GPU, YK_TRACE_UP, YK_TRACE_DOWN, YK_TRACE_LANES };
enum { YK_TRACE_RECORDS = 1 << 16 };

typedef struct yk_trace_rec {
    uint64_t start_ns, dur_ns; /* of the host's monotonic clock */
    uint64_t bytes;            /* weights and activations read, or bytes copied */
    const char *op, *kernel;   /* static strings; kernel may be NULL */
    const char *type;          /* of the weights, or NULL */
    uint32_t layer, step;      /* layer: UINT32_MAX where a task belongs to none */
    enum yk_trace_lane lane;
} yk_trace_rec;

/* Records for `path`, which is tried at once: YK_ERR_RUNTIME when no file can be made there. YK_ERR_MEMORY. */
yk_status yk_trace_open(yk_trace **out, const char *path, yk_error *err);
/* With `keep` the file appears at its path, else nothing is left of it. A failure to write it is logged. */
void yk_trace_close(yk_trace **trace, bool keep);
void yk_trace_add(yk_trace *trace, const yk_trace_rec *rec);
/* Tasks that were seen but could not be recorded. */
void yk_trace_lost(yk_trace *trace, uint64_t n);
/* Records so far (the ring keeps the last YK_TRACE_RECORDS), oldest first. */
uint32_t yk_trace_count(const yk_trace *trace);
const yk_trace_rec *yk_trace_get(const yk_trace *trace, uint32_t index);

/* Bytes of weights that the pool reads in a stage; those behind `group` after it has run. */
uint64_t yk_stage_bytes(const yk_step *step, uint32_t layer, enum yk_stage_kind kind);
/* For yk_pool_watch; user is the engine. */
void yk_trace_stage(void *user, const yk_stage *stage, uint64_t start_ns, uint64_t end_ns);

#endif
