/* topology.h - what the CPU is: cores to use, caches, NUMA nodes, instruction sets. */
#ifndef YK_CPU_TOPOLOGY_H
#define YK_CPU_TOPOLOGY_H

#include "src/base/status.h"

enum { YK_MAX_CORES = 1024 };

typedef enum yk_isa { YK_ISA_REF = 0, YK_ISA_AVX2, YK_ISA_AVXVNNI, YK_ISA_AVX512, YK_ISA_AMX, YK_ISA_N } yk_isa;

/* Highest level this CPU can run and libyoke has kernels for. */
yk_isa yk_isa_best(void);
const char *yk_isa_name(yk_isa isa);
/* Level by name; YK_ISA_N when unknown. */
yk_isa yk_isa_by_name(const char *name);

/* Logical CPU numbers to pin workers to: one per physical core this process may use, performance cores first (hwloc cpukinds), then by
 * NUMA node. *n receives the count, at least 1; at most `capacity` are written. */
yk_status yk_topology_cores(uint32_t *cpus, uint32_t capacity, uint32_t *n, yk_error *err);
yk_status yk_topology_info(yk_cpu_info *info, yk_error *err);

#endif
