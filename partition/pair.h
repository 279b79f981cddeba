/* pair.h - what the CPU and the link leave each other: both read the same DIMMs. The one rule that formula (cost.h) and simulator
 * (events.h) share; docs/SIMULATOR.md argues it. */
#ifndef YK_PARTITION_PAIR_H
#define YK_PARTITION_PAIR_H

typedef struct yk_pair {
    double cpu;       /* > 0: measured; bytes/s the CPU can read while the link copies */
    double link_slow; /* measured: >= 1, the link beside a CPU that reads so many */
    double memory;    /* not measured: bytes/s both can read together; 0: they do not disturb each other */
} yk_pair;

/* Speeds (1: as if alone) of a CPU and a link that would read so many bytes/s alone, both > 0. Measured: the CPU gets at most
 * what it had beside copies, the link is slowed as far as the CPU really reads. Not measured: when both ask for more than there
 * is, each is sure of half, and what one does not take of its half is the other's. */
static inline void yk_pair_speeds(const yk_pair *p, double cpu, double link, double *cpu_speed, double *link_speed)
{
    *cpu_speed = *link_speed = 1;
    if (p->cpu > 0) {
        const double demand = cpu / p->cpu;
        *cpu_speed = demand > 1 ? 1 / demand : 1;
        *link_speed = 1 / (1 + (p->link_slow - 1) * (demand < 1 ? demand : 1));
    } else if (p->memory > 0 && cpu + link > p->memory) {
        const double half = p->memory / 2, least = cpu < link ? cpu : link, small = least < half ? least : half;
        *cpu_speed = (cpu <= link ? small : p->memory - small) / cpu;
        *link_speed = (cpu <= link ? p->memory - small : small) / link;
    }
}

#endif
