/* load - how fast weights come into memory, against what the machine can do.
 *
 *   load MODEL.gguf FOLDER [-t N] [-r REPETITIONS]
 *
 * FOLDER takes a pack cache and has to be empty. In turns, each in a process of its own, the model's file in the page cache: opening an engine that packs; one
 * that packs and writes the cache; one that reads it; reading the same file by as many threads into fresh memory (huge pages, as the engine's) and into memory
 * that was there before; copying the mapped model file to fresh memory past the caches, its pages given back as they are done, which is packing without the
 * packing; copying memory. Medians and best of the repetitions; the shares are of the medians. Rates are bytes of packed weights
 * over the whole time of yk_engine_open; peak memory is that of the process, mapped pages of the model included. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/crew.h"
#include "cpu/topology.h"
#include "src/base/clock.h"
#include "src/base/file.h"

enum { MAX_REPS = 31, MAX_THREADS = 256, CHUNK = 256 << 10 };

enum { PACK, WRITE, CACHE, READ_FRESH, READ_WARM, COPY_FILE, COPY, N_WAYS };
static const char *const names[N_WAYS] = {
    "pack",       "pack and write", "read the cache", "file to fresh memory", "file to warm memory", "mapped file to fresh",
    "copy memory"};

typedef struct result {
    double seconds, bytes; /* bytes 0: it failed */
    uint64_t peak_bytes;
} result;

typedef struct job {
    const char *model, *folder;
    char file[4096]; /* of the cache */
    uint32_t threads;
} job;

/* ---- what is measured ---------------------------------------------------------------------------------------------------------------------- */

/* The pack cache in the folder, or false. */
static bool find_file(job *j)
{
    bool found = false;
    DIR *d = opendir(j->folder);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.') {
            snprintf(j->file, sizeof j->file, "%s/%s", j->folder, e->d_name);
            found = true;
        }
    if (d)
        closedir(d);
    return found;
}

static result open_engine(const job *j, const char *cache)
{
    yk_model *m;
    yk_engine *e;
    yk_engine_opts o;
    yk_engine_stats s;
    yk_error err = {0};
    yk_engine_opts_init(&o);
    o.device = "cpu";
    o.context = 64;
    o.batch = 32;
    o.threads = j->threads;
    o.pack_cache = cache;
    if (yk_model_open(&m, j->model, NULL, &err) != YK_OK) {
        fprintf(stderr, "load: %s\n", err.text);
        return (result){0};
    }
    const uint64_t begin = yk_now_ns();
    if (yk_engine_open(&e, m, &o, &err) != YK_OK) {
        fprintf(stderr, "load: %s\n", err.text);
        return (result){0};
    }
    const uint64_t end = yk_now_ns();
    yk_engine_get_stats(e, &s);
    yk_engine_close(&e);
    yk_model_close(&m);
    return (result){.seconds = 1e-9 * (double)(end - begin), .bytes = (double)s.bytes_weights};
}

typedef struct reading {
    int fd;
    const uint8_t *from; /* of a mapped file, or NULL: fd is read */
    uint8_t *to;
    uint64_t bytes;
    _Atomic(uint64_t) next;
    _Atomic(bool) failed;
} reading;

static void *read_main(void *arg)
{
    reading *r = arg;
    for (uint64_t at; (at = atomic_fetch_add(&r->next, CHUNK)) < r->bytes;) {
        const uint64_t n = r->bytes - at < CHUNK ? r->bytes - at : CHUNK;
        if (r->from) {
            yk_crew_stream(r->to + at, r->from + at, n & ~63ull);
            yk_map_release(r->from + at, n);
        } else if (pread(r->fd, r->to + at, n, (off_t)at) != (ssize_t)n)
            atomic_store(&r->failed, true);
    }
    return NULL;
}

/* r->bytes to r->to by the threads; seconds. */
static double read_all(reading *r, uint32_t n_threads)
{
    pthread_t threads[MAX_THREADS];
    uint32_t n = 1;
    const uint64_t begin = yk_now_ns();
    for (; n < n_threads && pthread_create(&threads[n], NULL, read_main, r) == 0; n++)
        ;
    read_main(r);
    for (uint32_t i = 1; i < n; i++)
        pthread_join(threads[i], NULL);
    return 1e-9 * (double)(yk_now_ns() - begin);
}

static result read_file(const job *j, bool warm)
{
    struct stat st;
    yk_arena memory;
    reading r = {.fd = open(j->file, O_RDONLY)};
    if (r.fd < 0 || fstat(r.fd, &st) != 0 || yk_arena_open(&memory, YK_MEM_RUNTIME, (size_t)st.st_size, true, NULL) != YK_OK)
        return (result){0};
    r.bytes = (uint64_t)st.st_size;
    r.to = memory.base;
    if (warm)
        memset(r.to, 1, r.bytes);
    const double seconds = read_all(&r, j->threads);
    yk_arena_close(&memory);
    close(r.fd);
    return (result){.seconds = seconds, .bytes = r.failed ? 0 : (double)r.bytes};
}

static result copy_file(const job *j)
{
    yk_map map;
    yk_arena memory;
    if (yk_map_open(&map, j->model, NULL) != YK_OK || yk_arena_open(&memory, YK_MEM_RUNTIME, map.size, true, NULL) != YK_OK)
        return (result){0};
    reading r = {.from = map.data, .to = memory.base, .bytes = map.size};
    const double seconds = read_all(&r, j->threads);
    yk_arena_close(&memory);
    yk_map_close(&map);
    return (result){.seconds = seconds, .bytes = (double)r.bytes};
}

static result copy_memory(const job *j)
{
    static uint32_t cpus[YK_MAX_CORES];
    uint32_t n;
    yk_cpu_info info;
    if (yk_topology_cores(cpus, YK_MAX_CORES, &n, NULL) != YK_OK || yk_topology_info(&info, NULL) != YK_OK)
        return (result){0};
    for (uint32_t i = n; i < j->threads; i++)
        cpus[i] = cpus[i % n];
    const yk_crew_work copy = yk_crew_copy(yk_crew_memory(&info) / j->threads);
    return (result){.seconds = 1, .bytes = yk_crew_rate(&copy, cpus, j->threads, 50, true)};
}

/* One way, in a process of its own. */
static result measure(job *j, int way)
{
    int ends[2];
    result r = {0};
    struct rusage usage;
    if (way == WRITE && find_file(j))
        unlink(j->file);
    if (pipe(ends) != 0)
        return r;
    const pid_t pid = fork();
    if (pid == 0) {
        find_file(j);
        r = way == COPY        ? copy_memory(j)
            : way == COPY_FILE ? copy_file(j)
            : way < READ_FRESH ? open_engine(j, way == PACK ? NULL : j->folder)
                               : read_file(j, way == READ_WARM);
        _exit(write(ends[1], &r, sizeof r) == (ssize_t)sizeof r ? 0 : 1);
    }
    close(ends[1]);
    if (pid < 0 || read(ends[0], &r, sizeof r) != (ssize_t)sizeof r)
        r = (result){0};
    close(ends[0]);
    int rc = 1;
    if (pid > 0 && wait4(pid, &rc, 0, &usage) == pid && rc == 0)
        r.peak_bytes = 1024ull * (uint64_t)usage.ru_maxrss;
    return r;
}

/* ---- what comes out ------------------------------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int report(result all[][N_WAYS], uint32_t reps, double model_bytes)
{
    double median[N_WAYS];
    printf("%-22s %8s %8s %8s %9s\n", "what", "s", "GB/s", "best", "peak MiB");
    for (int w = 0; w < N_WAYS; w++) {
        double rate[MAX_REPS], bytes = 0;
        uint64_t peak = 0;
        for (uint32_t i = 0; i < reps; i++) {
            if (all[i][w].bytes <= 0) {
                fprintf(stderr, "load: '%s' failed\n", names[w]);
                return 1;
            }
            rate[i] = all[i][w].bytes / all[i][w].seconds / 1e9;
            bytes = all[i][w].bytes;
            peak = all[i][w].peak_bytes > peak ? all[i][w].peak_bytes : peak;
        }
        qsort(rate, reps, sizeof *rate, by_value);
        median[w] = rate[reps / 2];
        printf("%-22s %8.3f %8.2f %8.2f %9.0f\n", names[w], bytes / median[w] / 1e9, median[w], rate[reps - 1],
               (double)peak / 1048576);
    }
    uint64_t peak = 0;
    for (uint32_t i = 0; i < reps; i++)
        for (int w = PACK; w <= CACHE; w++)
            peak = all[i][w].peak_bytes > peak ? all[i][w].peak_bytes : peak;
    printf("packing is %.0f %% of copying, %.0f %% of copying the mapped file to fresh memory; from the cache %.0f %% of "
           "reading the file to fresh memory, %.0f %% of to warm "
           "memory; peak memory %.2f of the model\n",
           100 * median[PACK] / median[COPY], 100 * median[PACK] / median[COPY_FILE], 100 * median[CACHE] / median[READ_FRESH],
           100 * median[CACHE] / median[READ_WARM], (double)peak / model_bytes);
    return 0;
}

int main(int argc, char **argv)
{
    static result all[MAX_REPS][N_WAYS];
    job j = {0};
    long reps = 5, threads = 0;
    yk_error err = {0};
    yk_map map;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-t") == 0 && i + 1 < argc)
            threads = strtol(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "-r") == 0 && i + 1 < argc)
            reps = strtol(argv[++i], NULL, 10);
        else if (!j.model)
            j.model = argv[i];
        else
            j.folder = argv[i];
    }
    if (!j.folder || reps < 1 || reps > MAX_REPS || threads < 0 || threads > MAX_THREADS) {
        fprintf(stderr, "usage: load MODEL.gguf FOLDER [-t THREADS] [-r REPETITIONS]\n");
        return 2;
    }
    if (find_file(&j)) {
        fprintf(stderr, "load: %s is not empty\n", j.folder);
        return 2;
    }
    yk_cpu_info info;
    if (yk_map_open(&map, j.model, &err) != YK_OK || yk_topology_info(&info, &err) != YK_OK) {
        fprintf(stderr, "load: %s\n", err.text);
        return 1;
    }
    const double model_bytes = (double)map.size;
    yk_map_close(&map);
    j.threads = threads ? (uint32_t)threads : info.n_cores < MAX_THREADS ? info.n_cores : MAX_THREADS;
    for (long i = 0; i < reps; i++)
        for (int w = 0; w < N_WAYS; w++)
            all[i][w] = measure(&j, w);
    printf("%s, %u threads, %ld repetitions\n", j.model, j.threads, reps);
    const int rc = report(all, (uint32_t)reps, model_bytes);
    if (find_file(&j))
        unlink(j.file);
    return rc;
}
