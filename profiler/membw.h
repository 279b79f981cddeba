/* membw.h - passes of reading memory, by workers that are pinned to given processors. */
#ifndef YK_PROFILER_MEMBW_H
#define YK_PROFILER_MEMBW_H

#include "src/base/mem.h"

typedef struct yk_read_bench yk_read_bench;

typedef struct yk_read_bench_opts {
    const uint32_t *cpus; /* [n_cpus] processors, one worker each */
    uint32_t n_cpus;
    uint64_t bytes; /* of all workers together; 8 MiB for each at least */
    uint8_t *base;  /* memory to read, which lives longer; NULL: its own, first touched by the worker that reads it */
    bool huge;      /* own memory: transparent huge pages, or none */
} yk_read_bench_opts;

/* YK_ERR_MEMORY; YK_ERR_RUNTIME: no threads. */
yk_status yk_read_bench_open(yk_read_bench **out, const yk_read_bench_opts *opts, yk_error *err);
void yk_read_bench_close(yk_read_bench **bench);
/* The first `threads` workers (0: all) read 8 MiB each, beginning together: when the first began, when the last ended. */
void yk_read_bench_pass(yk_read_bench *bench, uint32_t threads, uint64_t *begin_ns, uint64_t *end_ns, uint64_t *bytes);

#endif
