#include "bench/crew.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "profiler/membw.h"
#include "src/base/clock.h"

enum { WINDOWS = 7, MAX_THREADS = 1024 };

void yk_crew_stream(uint8_t *to, const uint8_t *from, uint64_t bytes)
{
#if defined(__SSE2__)
    for (uint64_t i = 0; i < bytes; i += 64)
        for (uint64_t j = i; j < i + 64; j += 16)
            _mm_stream_si128((__m128i *)(void *)(to + j), _mm_load_si128((const __m128i *)(const void *)(from + j)));
    _mm_sfence();
#else
    memcpy(to, from, bytes);
#endif
}

static double copy(const yk_crew_work *w, uint8_t *memory)
{
    const uint64_t bytes = w->bytes / 2;
    yk_crew_stream(memory + bytes, memory, bytes);
    return memory[bytes];
}

yk_crew_work yk_crew_copy(uint64_t bytes)
{
    bytes = bytes / 4096 * 4096;
    return (yk_crew_work){"copy", "", (double)bytes, 1, copy, 2 * bytes};
}

uint64_t yk_crew_memory(const yk_cpu_info *info)
{
    uint64_t bytes = 512u << 20;
    bytes = bytes < 2 * info->cache_bytes[2] ? 2 * info->cache_bytes[2] : bytes;
    return bytes < info->memory_available_bytes / 4 ? bytes : info->memory_available_bytes / 4;
}

typedef struct crew {
    const yk_crew_work *w;
    uint32_t n, ms;
    const uint32_t *cpus;
    uint8_t *memory;
    pthread_barrier_t start;
    double rate[WINDOWS]; /* sums over threads, under lock */
    double sink;
    pthread_mutex_t lock;
} crew;

typedef struct member {
    crew *c;
    uint32_t index;
} member;

static void *crew_main(void *arg)
{
    const member *m = arg;
    crew *c = m->c;
    uint8_t *memory = c->memory + m->index * c->w->bytes;
    cpu_set_t set;
    CPU_ZERO(&set);
    if (c->cpus[m->index] < CPU_SETSIZE) {
        CPU_SET(c->cpus[m->index], &set);
        pthread_setaffinity_np(pthread_self(), sizeof set, &set); /* refused: measured wherever it runs */
    }
    memset(memory, 1, c->w->bytes);
    for (int i = 0; i < WINDOWS; i++) {
        double sink = 0;
        uint64_t calls = 0, now;
        pthread_barrier_wait(&c->start);
        const uint64_t begin = yk_now_ns();
        do {
            sink += c->w->run(c->w, memory);
            calls++;
            now = yk_now_ns();
        } while (now < begin + c->ms * 1000000ull);
        pthread_mutex_lock(&c->lock);
        c->rate[i] += c->w->ops * (double)(c->w->rounds * calls) * 1e9 / (double)(now - begin);
        c->sink += sink;
        pthread_mutex_unlock(&c->lock);
    }
    return NULL;
}

double yk_crew_rate(const yk_crew_work *work, const uint32_t *cpus, uint32_t n, uint32_t ms, bool huge)
{
    static pthread_t threads[MAX_THREADS];
    static member members[MAX_THREADS];
    crew c = {.w = work, .n = n, .ms = ms, .cpus = cpus};
    yk_arena memory;
    double best = 0;
    uint32_t started = 0;
    if (yk_arena_open(&memory, YK_MEM_RUNTIME, n * work->bytes, huge, NULL) != YK_OK)
        return 0;
    if (!huge)
        madvise(memory.base, memory.size, MADV_NOHUGEPAGE);
    c.memory = memory.base;
    pthread_mutex_init(&c.lock, NULL);
    pthread_barrier_init(&c.start, NULL, n);
    for (; started < n; started++) {
        members[started] = (member){&c, started};
        if (pthread_create(&threads[started], NULL, crew_main, &members[started]) != 0) {
            fprintf(stderr, "thread %u cannot be started\n", started);
            exit(1); /* those that run wait at the barrier */
        }
    }
    for (uint32_t i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < WINDOWS; i++)
        best = c.rate[i] > best ? c.rate[i] : best;
    pthread_barrier_destroy(&c.start);
    pthread_mutex_destroy(&c.lock);
    yk_arena_close(&memory);
    return c.sink == c.sink ? best : 0;
}

double yk_crew_read_rate(const uint32_t *cpus, uint32_t n, uint32_t ms, bool huge, uint64_t bytes)
{
    yk_read_bench *b;
    double best = 0;
    if (yk_read_bench_open(&b, &(yk_read_bench_opts){.cpus = cpus, .n_cpus = n, .bytes = bytes, .huge = huge}, NULL) != YK_OK)
        return 0;
    const uint64_t deadline = yk_now_ns() + (uint64_t)WINDOWS * ms * 1000000u;
    for (uint64_t begin, end = 0, n_bytes; end < deadline;) {
        yk_read_bench_pass(b, n, &begin, &end, &n_bytes);
        const double rate = (double)n_bytes * 1e9 / (double)(end - begin);
        best = rate > best ? rate : best;
    }
    yk_read_bench_close(&b);
    return best;
}
