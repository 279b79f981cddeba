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
 * what it had beside copies, the link is slowed as far as the CPU really reads. Not measured: each is sure of half of the memory.
 * A CPU that asks for less leaves the rest to the link. One that asks for more loses to a link in proportion to what the link
 * reads, down to half beside a link of half or more: so many bytes of copies cost it the same, however fast they are. */
static inline void yk_pair_speeds(const yk_pair *p, double cpu, double link, double *cpu_speed, double *link_speed)
{
    const double half = p->memory / 2;
    *cpu_speed = *link_speed = 1;
    if (p->cpu > 0) {
        const double demand = cpu / p->cpu;
        *cpu_speed = demand > 1 ? 1 / demand : 1;
        *link_speed = 1 / (1 + (p->link_slow - 1) * (demand < 1 ? demand : 1));
    } else if (cpu > half && half > 0) {
        const double alone = cpu < p->memory ? cpu : p->memory;
        *cpu_speed = (link < half ? alone - (alone - half) * link / half : half) / cpu;
        *link_speed = link < half ? 1 : half / link;
    } else if (half > 0 && cpu + link > p->memory)
        *link_speed = (p->memory - cpu) / link;
}

#endif
