/* topology.c - what the CPU is, by hwloc and CPUID. */
#include "cpu/topology.h"

#include <hwloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "src/base/mem.h"

static const char *const isa_names[YK_ISA_N] = {"ref", "avx2", "avxvnni", "avx512", "amx"};

const char *yk_isa_name(yk_isa isa)
{
    return (unsigned)isa < YK_ISA_N ? isa_names[isa] : "unknown";
}

yk_isa yk_isa_by_name(const char *name)
{
    for (int i = 0; name && i < YK_ISA_N; i++)
        if (strcasecmp(name, isa_names[i]) == 0)
            return (yk_isa)i;
    return YK_ISA_N;
}

/* ---- instruction sets -------------------------------------------------------------------------------------------- */

static void add_flag(char *text, size_t capacity, const char *name, bool present)
{
    const size_t n = strlen(text);
    if (present && n + strlen(name) + 2 <= capacity)
        snprintf(text + n, capacity - n, "%s%s", n ? " " : "", name);
}

#if defined(__x86_64__)
/* Register state the system saves: bits 1, 2 for AVX, 5 to 7 for AVX-512, 17 and 18 for AMX. */
static uint64_t saved_state(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

static void isa_flags(char *text, size_t capacity)
{
    unsigned a, b, c, d;
    text[0] = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return;
    const uint64_t state = (c & (1u << 27)) ? saved_state() : 0;
    const bool avx = (state & 6) == 6, avx512 = avx && (state & 0xe0) == 0xe0, amx = (state & 0x60000) == 0x60000;
    const bool fma = avx && (c & (1u << 12)), f16c = avx && (c & (1u << 29));
    unsigned b7 = 0, c7 = 0, d7 = 0, a71 = 0;
    if (__get_cpuid_count(7, 0, &a, &b7, &c7, &d7) && a >= 1)
        __get_cpuid_count(7, 1, &a71, &b, &c, &d);
    add_flag(text, capacity, "avx2", avx && (b7 & (1u << 5)));
    add_flag(text, capacity, "fma", fma);
    add_flag(text, capacity, "f16c", f16c);
    add_flag(text, capacity, "avx_vnni", avx && (a71 & (1u << 4)));
    add_flag(text, capacity, "avx512f", avx512 && (b7 & (1u << 16)));
    add_flag(text, capacity, "avx512_vnni", avx512 && (c7 & (1u << 11)));
    add_flag(text, capacity, "avx512_bf16", avx512 && (a71 & (1u << 5)));
    add_flag(text, capacity, "avx512_fp16", avx512 && (d7 & (1u << 23)));
    add_flag(text, capacity, "amx_int8", amx && (d7 & (1u << 25)));
    add_flag(text, capacity, "amx_bf16", amx && (d7 & (1u << 22)));
}

static void cpu_brand(char *text, size_t capacity)
{
    unsigned r[12] = {0};
    if ((unsigned)__get_cpuid_max(0x80000000u, NULL) < 0x80000004u)
        return;
    for (unsigned i = 0; i < 3; i++)
        __get_cpuid(0x80000002u + i, &r[4 * i], &r[4 * i + 1], &r[4 * i + 2], &r[4 * i + 3]);
    snprintf(text, capacity, "%.48s", (const char *)r);
}
#else
static void isa_flags(char *text, size_t capacity)
{
    if (capacity)
        text[0] = 0;
}

static void cpu_brand(char *text, size_t capacity)
{
    (void)text;
    (void)capacity;
}
#endif

/* ---- cores ------------------------------------------------------------------------------------------------------- */

typedef struct core {
    uint32_t cpu;  /* logical number to pin to */
    int kind;      /* efficiency class: higher is faster */
    uint32_t numa; /* logical index of its first node */
} core;

/* Topology of this machine and the logical processors this process may run on. */
typedef struct machine {
    hwloc_topology_t topology;
    hwloc_bitmap_t allowed;
} machine;

static void machine_close(machine *m)
{
    if (m->allowed)
        hwloc_bitmap_free(m->allowed);
    if (m->topology)
        hwloc_topology_destroy(m->topology);
    *m = (machine){0};
}

static yk_status machine_open(machine *m, yk_error *err)
{
    *m = (machine){0};
    if (hwloc_topology_init(&m->topology) != 0) {
        m->topology = NULL;
        return yk_fail_memory(err, 0, "the CPU topology");
    }
    if (hwloc_topology_load(m->topology) != 0) {
        machine_close(m);
        return yk_fail(err, YK_ERR_RUNTIME, "hwloc cannot read this machine's topology; is /sys mounted?");
    }
    m->allowed = hwloc_bitmap_alloc();
    if (!m->allowed) {
        machine_close(m);
        return yk_fail_memory(err, 0, "the CPU topology");
    }
    /* The process's binding, not the calling thread's: worker 0 is pinned while the question is about the others. */
    if (hwloc_get_cpubind(m->topology, m->allowed, HWLOC_CPUBIND_PROCESS) != 0 || hwloc_bitmap_iszero(m->allowed))
        hwloc_bitmap_copy(m->allowed, hwloc_topology_get_allowed_cpuset(m->topology));
    else
        hwloc_bitmap_and(m->allowed, m->allowed, hwloc_topology_get_allowed_cpuset(m->topology));
    if (hwloc_bitmap_iszero(m->allowed) || hwloc_bitmap_weight(m->allowed) < 0)
        hwloc_bitmap_copy(m->allowed, hwloc_topology_get_topology_cpuset(m->topology));
    return YK_OK;
}

static int by_speed_and_node(const void *a, const void *b)
{
    const core *x = a, *y = b;
    if (x->kind != y->kind)
        return x->kind > y->kind ? -1 : 1;
    if (x->numa != y->numa)
        return x->numa < y->numa ? -1 : 1;
    return x->cpu < y->cpu ? -1 : x->cpu > y->cpu;
}

/* One logical processor of each physical core (or of each processing unit where cores are not reported). */
static yk_status list_cores(const machine *m, core **out, uint32_t *n, yk_error *err)
{
    const int have_cores = hwloc_get_nbobjs_by_type(m->topology, HWLOC_OBJ_CORE);
    const hwloc_obj_type_t type = have_cores > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
    const int count = hwloc_get_nbobjs_by_type(m->topology, type);
    *n = 0;
    *out = NULL;
    YK_FAIL_IF(count <= 0, err, YK_ERR_RUNTIME, "hwloc reports no CPU cores on this machine");
    core *cores = yk_alloc(YK_MEM_RUNTIME, (size_t)count, sizeof *cores);
    if (!cores)
        return yk_fail_memory(err, (uint64_t)count * sizeof *cores, "the list of cores");
    hwloc_bitmap_t set = hwloc_bitmap_alloc();
    if (!set) {
        yk_free(cores);
        return yk_fail_memory(err, 0, "the list of cores");
    }
    for (int i = 0; i < count; i++) {
        const hwloc_obj_t obj = hwloc_get_obj_by_type(m->topology, type, (unsigned)i);
        hwloc_bitmap_and(set, obj->cpuset, m->allowed);
        const int cpu = hwloc_bitmap_first(set);
        if (cpu < 0)
            continue;
        const int node = obj->nodeset ? hwloc_bitmap_first(obj->nodeset) : 0;
        hwloc_bitmap_only(set, (unsigned)cpu);
        const int kind = hwloc_cpukinds_get_by_cpuset(m->topology, set, 0);
        int efficiency = 0;
        if (kind >= 0 && hwloc_cpukinds_get_info(m->topology, (unsigned)kind, NULL, &efficiency, NULL, NULL, 0) != 0)
            efficiency = 0;
        cores[(*n)++] = (core){(uint32_t)cpu, efficiency, node < 0 ? 0 : (uint32_t)node};
    }
    hwloc_bitmap_free(set);
    if (*n == 0) {
        yk_free(cores);
        return yk_fail(err, YK_ERR_RUNTIME, "this process may use no CPU core; check its affinity (taskset, cpuset)");
    }
    qsort(cores, *n, sizeof *cores, by_speed_and_node);
    *out = cores;
    return YK_OK;
}

yk_status yk_topology_cores(uint32_t *cpus, uint32_t capacity, uint32_t *n, yk_error *err)
{
    machine m;
    core *cores;
    *n = 0;
    YK_TRY(machine_open(&m, err));
    const yk_status st = list_cores(&m, &cores, n, err);
    machine_close(&m);
    if (st != YK_OK)
        return st;
    for (uint32_t i = 0; i < *n && i < capacity; i++)
        cpus[i] = cores[i].cpu;
    yk_free(cores);
    return YK_OK;
}

/* ---- facts -------------------------------------------------------------------------------------------------------- */

static uint64_t largest_cache(hwloc_topology_t topology, hwloc_obj_type_t type)
{
    uint64_t most = 0;
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_obj_by_type(topology, type, o));)
        most = o->attr->cache.size > most ? o->attr->cache.size : most;
    return most;
}

/* "MemAvailable" of /proc/meminfo in bytes: free and reclaimable pages. */
static uint64_t memory_available(void)
{
    uint64_t kib = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f)) {
        unsigned long long v;
        if (sscanf(line, "MemAvailable: %llu kB", &v) == 1) {
            kib = v;
            break;
        }
    }
    if (f)
        fclose(f);
    if (kib)
        return kib * 1024;
    const long pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
}

/* The system's count: hwloc's sum over NUMA nodes misses memory added while running. */
static uint64_t memory_total(const machine *m)
{
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    const uint64_t system = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
    const uint64_t nodes = hwloc_get_root_obj(m->topology)->total_memory;
    return system > nodes ? system : nodes;
}

static void cpu_name(const machine *m, char *text, size_t capacity)
{
    cpu_brand(text, capacity);
    const char *hwloc_name = hwloc_obj_get_info_by_name(hwloc_get_root_obj(m->topology), "CPUModel");
    const hwloc_obj_t package = hwloc_get_obj_by_type(m->topology, HWLOC_OBJ_PACKAGE, 0);
    if (!hwloc_name && package)
        hwloc_name = hwloc_obj_get_info_by_name(package, "CPUModel");
    if (!text[0])
        snprintf(text, capacity, "%s", hwloc_name ? hwloc_name : "unknown CPU");
    size_t n = strlen(text);
    while (n && text[n - 1] == ' ')
        text[--n] = 0;
}

yk_status yk_topology_info(yk_cpu_info *info, yk_error *err)
{
    machine m;
    core *cores;
    *info = (yk_cpu_info){0};
    YK_TRY(machine_open(&m, err));
    const yk_status st = list_cores(&m, &cores, &info->n_cores, err);
    if (st != YK_OK) {
        machine_close(&m);
        return st;
    }
    yk_free(cores);
    cpu_name(&m, info->name, sizeof info->name);
    isa_flags(info->isa, sizeof info->isa);
    info->n_threads = (uint32_t)hwloc_bitmap_weight(m.allowed);
    const int numa = hwloc_get_nbobjs_by_type(m.topology, HWLOC_OBJ_NUMANODE);
    info->n_numa = numa > 0 ? (uint32_t)numa : 1;
    info->cache_bytes[0] = largest_cache(m.topology, HWLOC_OBJ_L1CACHE);
    info->cache_bytes[1] = largest_cache(m.topology, HWLOC_OBJ_L2CACHE);
    info->cache_bytes[2] = largest_cache(m.topology, HWLOC_OBJ_L3CACHE);
    info->memory_bytes = memory_total(&m);
    info->memory_available_bytes = memory_available();
    machine_close(&m);
    return YK_OK;
}

YK_API yk_status yk_get_cpu_info(yk_cpu_info *info, yk_error *err)
{
    YK_FAIL_IF(!info, err, YK_ERR_USAGE, "yk_get_cpu_info: info is NULL");
    return yk_topology_info(info, err);
}
