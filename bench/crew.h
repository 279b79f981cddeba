/* crew.h - the best rate of a number of threads that all do the same, for bench/peaks.c and bench/load.c. */
#ifndef YK_BENCH_CREW_H
#define YK_BENCH_CREW_H

#include <stdbool.h>
#include <stdint.h>

#include "yoke/yoke.h"

/* What a thread does: rounds of something on memory of its own. */
typedef struct yk_crew_work yk_crew_work;
struct yk_crew_work {
    const char *name, *needs;                                 /* words of yk_cpu_info.isa, separated by spaces */
    double ops;                                               /* of a round */
    uint64_t rounds;                                          /* of a call: at least some 10 us */
    double (*run)(const yk_crew_work *work, uint8_t *memory); /* returns a number that depends on all that was computed */
    uint64_t bytes;                                           /* memory of a thread, whole pages */
};

/* Operations are bytes copied, each read once and written once past the caches, as packing does; `bytes` read and as many written by a thread. */
yk_crew_work yk_crew_copy(uint64_t bytes);
/* One such copy: a multiple of 64 bytes, both ends 64-byte aligned. */
void yk_crew_stream(uint8_t *to, const uint8_t *from, uint64_t bytes);
/* Memory of all threads together that is larger than the caches, and no more than a quarter of what is free. */
uint64_t yk_crew_memory(const yk_cpu_info *info);

/* Operations per second of n threads together, thread i on processor cpus[i]: the best of seven windows of `ms`. huge: in transparent huge pages. 0: no
 * memory. */
double yk_crew_rate(const yk_crew_work *work, const uint32_t *cpus, uint32_t n, uint32_t ms, bool huge);
/* The same of reading `bytes` of memory (profiler/membw.h). */
double yk_crew_read_rate(const uint32_t *cpus, uint32_t n, uint32_t ms, bool huge, uint64_t bytes);

#endif
