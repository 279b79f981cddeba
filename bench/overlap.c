/* overlap.c - how close to "as long as the longest lane" does a chain of layers come on this machine, before there is a GPU?
 *
 *   overlap [idle|busy] [reps]   CSV on stdout: wake-up latencies, then layer chains
 *
 * Three threads are the three lanes. A layer ends when all lanes are done with it (join); then the next begins. The gpu and
 * link lanes are modelled: they wait for an absolute deadline, the join's time stamp plus the lane's time, so that being late
 * once does not add up. The cpu lane computes slices of Q4_0 products from L2 (dilation 1) or is modelled as well (dilation D:
 * all times multiplied by D, the figure is still measured over ideal). A lane that waits spins for a bounded time and then
 * sleeps; a lane that waits for a deadline sleeps until `spin` before it. busy: another process takes the last core the whole
 * time. */
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench/layout_data.h"

enum { LANES = 3, CPU = 0, MAX_LAYERS = 512, MAX_REPS = 15, PANELS = 28, SAMPLES = 2000 };

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t cpu_time_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void sleep_until(int64_t ns)
{
    const struct timespec t = {ns / 1000000000, ns % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL))
        ;
}

static void wait_until(int64_t deadline, int64_t spin)
{
    if (now_ns() < deadline - spin)
        sleep_until(deadline - spin);
    while (now_ns() < deadline)
        __builtin_ia32_pause();
}

static void futex(_Atomic uint32_t *word, int op, uint32_t value)
{
    syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

typedef struct layer {
    _Atomic uint32_t left; /* lanes not done */
    _Atomic uint32_t done; /* 1 when all are */
    _Atomic uint32_t sleepers;
    _Atomic int64_t end; /* of the latest lane, its model's time where it has one */
    int64_t cpu_ns;      /* CPU time of the cpu lane when it computes: what it would have taken undisturbed */
} layer;

typedef struct chain {
    layer layers[MAX_LAYERS + 1];
    int n_layers;
    int64_t lane_ns[LANES]; /* modelled, dilation applied; of the cpu lane 0 when it computes */
    int cpu_panels;         /* of a layer when it computes */
    int64_t spin;
    const uint8_t *w;
    size_t panel_bytes;
    const yk_lay_act *act;
} chain;

typedef struct lane {
    chain *c;
    int index;
    float sink;
} lane;

static void wait_layer(layer *l, int64_t spin)
{
    const int64_t give_up = now_ns() + spin;
    while (!atomic_load_explicit(&l->done, memory_order_acquire)) {
        if (now_ns() < give_up) {
            __builtin_ia32_pause();
            continue;
        }
        atomic_fetch_add(&l->sleepers, 1);
        while (!atomic_load(&l->done))
            futex(&l->done, FUTEX_WAIT, 0);
        return;
    }
}

static void finish(layer *l, int64_t end)
{
    int64_t latest = atomic_load(&l->end);
    while (end > latest && !atomic_compare_exchange_weak(&l->end, &latest, end))
        ;
    if (atomic_fetch_sub(&l->left, 1) != 1)
        return;
    atomic_store(&l->done, 1);
    if (atomic_load(&l->sleepers))
        futex(&l->done, FUTEX_WAKE, LANES);
}

static float compute(const chain *c, int panels)
{
    float y[16], s = 0;
    for (int i = 0; i < panels; i++) {
        yk_lay_avx512(YK_LAY_Q4_0, 1)(c->w + (size_t)(i % PANELS) * c->panel_bytes, c->act, y, 0);
        s += y[0];
    }
    return s;
}

static void *lane_run(void *arg)
{
    lane *me = arg;
    chain *c = me->c;
    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0); /* the default lets the kernel be 50 us late on purpose */
    for (int i = 0; i < c->n_layers; i++) {
        wait_layer(&c->layers[i], c->spin);
        const int64_t begin = atomic_load(&c->layers[i].end);
        int64_t end = begin + c->lane_ns[me->index];
        if (c->lane_ns[me->index]) {
            wait_until(end, c->spin);
        } else {
            const int64_t t = cpu_time_ns();
            me->sink += compute(c, c->cpu_panels);
            end = now_ns();
            c->layers[i + 1].cpu_ns = cpu_time_ns() - t;
        }
        finish(&c->layers[i + 1], end);
    }
    return NULL;
}

/* Time of the chain over the sum of its layers' longest lanes; *extra_us: what is over, for a layer. The cpu lane counts with
 * the CPU time it used, so that a slow phase of the machine is not taken for a slow hand-off. */
static double run_chain(chain *c, double *extra_us)
{
    pthread_t t[LANES];
    lane l[LANES];
    memset(c->layers, 0, sizeof c->layers);
    for (int i = 1; i <= c->n_layers; i++)
        c->layers[i].left = LANES;
    for (int i = 0; i < LANES; i++) {
        l[i] = (lane){c, i, 0};
        if (pthread_create(&t[i], NULL, lane_run, &l[i]))
            exit(1);
    }
    sleep_until(now_ns() + 2000000); /* all are waiting */
    const int64_t begin = now_ns();
    c->layers[0].end = begin;
    c->layers[0].left = 1;
    finish(&c->layers[0], begin);
    for (int i = 0; i < LANES; i++)
        pthread_join(t[i], NULL);
    const int64_t took = now_ns() - begin;
    int64_t ideal = 0;
    for (int i = 1; i <= c->n_layers; i++) {
        int64_t longest = c->layers[i].cpu_ns;
        for (int k = 0; k < LANES; k++)
            longest = c->lane_ns[k] > longest ? c->lane_ns[k] : longest;
        ideal += longest;
    }
    *extra_us = 1e-3 * (double)(took - ideal) / c->n_layers;
    return (double)took / (double)ideal;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* ---- latencies ---- */

typedef struct ping {
    _Atomic uint32_t word;
    _Atomic uint32_t seen;
    _Atomic int64_t sent;
    double late[SAMPLES];
    int n;
} ping;

static void *ping_run(void *arg)
{
    ping *p = arg;
    for (int i = 0; i < p->n; i++) {
        while (atomic_load(&p->word) < (uint32_t)i + 1)
            futex(&p->word, FUTEX_WAIT, (uint32_t)i);
        p->late[i] = 1e-3 * (double)(now_ns() - atomic_load(&p->sent));
        atomic_store(&p->seen, (uint32_t)i + 1);
    }
    return NULL;
}

static void print_late(const char *state, const char *what, double *late, int n)
{
    qsort(late, (size_t)n, sizeof *late, by_value);
    printf("%s,%s,%.1f,%.1f,%.1f,%.1f\n", state, what, late[n / 2], late[n * 9 / 10], late[n * 99 / 100], late[n - 1]);
    fflush(stdout);
}

/* The waker goes on computing after the wake, as a lane does. */
static void latencies(const char *state)
{
    static ping p;
    static double late[SAMPLES];
    for (int gap = 50; gap <= 5000; gap *= 10) {
        char name[64];
        pthread_t t;
        p.n = gap > 1000 ? 200 : 1000;
        p.word = p.seen = 0;
        if (pthread_create(&t, NULL, ping_run, &p))
            exit(1);
        for (int i = 0; i < p.n; i++) {
            const int64_t at = now_ns() + gap * 1000;
            while (now_ns() < at)
                __builtin_ia32_pause();
            p.sent = now_ns();
            atomic_store(&p.word, (uint32_t)i + 1);
            futex(&p.word, FUTEX_WAKE, 1);
            while (atomic_load(&p.seen) <= (uint32_t)i)
                __builtin_ia32_pause();
        }
        pthread_join(t, NULL);
        snprintf(name, sizeof name, "futex wake after %d us", gap);
        print_late(state, name, p.late, p.n);
    }
    for (unsigned long slack = 50000; slack; slack = slack > 1 ? 1 : 0) {
        char name[64];
        prctl(PR_SET_TIMERSLACK, slack, 0, 0, 0);
        for (int i = 0; i < 500; i++) {
            const int64_t at = now_ns() + 500000;
            sleep_until(at);
            late[i] = 1e-3 * (double)(now_ns() - at);
        }
        snprintf(name, sizeof name, "clock_nanosleep 500 us slack %lu ns", slack);
        print_late(state, name, late, 500);
    }
}

/* ---- chains ---- */

static const struct {
    const char *name;
    double share[LANES]; /* cpu, gpu, link */
} shapes[] = {{"cpu longest", {1, 0.8, 0.6}}, {"gpu longest", {0.6, 1, 0.8}}, {"equal", {1, 1, 1}}};

/* One row: median of reps. panels_ns: time of one panel on the cpu lane. */
static void row(chain *c, const char *state, int shape, double layer_ms, int dilation, int real, int64_t spin, double panel_ns,
                int reps)
{
    double over[MAX_REPS], extra[MAX_REPS];
    const double layer_ns = layer_ms * 1e6 * dilation;
    c->n_layers = (int)(2e8 / layer_ns);
    c->n_layers = c->n_layers < 4 ? 4 : c->n_layers > MAX_LAYERS ? MAX_LAYERS : c->n_layers;
    c->spin = spin;
    for (int i = 0; i < LANES; i++)
        c->lane_ns[i] = (int64_t)(shapes[shape].share[i] * layer_ns);
    if (real) {
        c->cpu_panels = (int)((double)c->lane_ns[CPU] / panel_ns);
        c->lane_ns[CPU] = 0;
    }
    for (int r = 0; r < reps; r++)
        over[r] = run_chain(c, &extra[r]);
    qsort(over, (size_t)reps, sizeof *over, by_value);
    qsort(extra, (size_t)reps, sizeof *extra, by_value);
    printf("%s,%s,%s,%g,%d,%d,%d,%.3f,%.3f,%.1f\n", state, shapes[shape].name, real ? "computes" : "modelled", layer_ms,
           dilation, (int)(spin / 1000), c->n_layers, over[0], over[reps / 2], extra[reps / 2]);
    fflush(stdout);
}

static void chains(chain *c, const char *state, double panel_ns, int reps)
{
    static const double layers[] = {0.2, 1, 4, 16};
    static const int spins[] = {0, 20, 50, 200};
    static const int modelled_spins[] = {0, 50};
    static const int dilations[] = {1, 5, 20, 50};
    for (int l = 0; l < 4; l++)
        for (int s = 0; s < 4; s++)
            for (int shape = 0; shape < 3; shape++)
                row(c, state, shape, layers[l], 1, 1, spins[s] * 1000, panel_ns, reps);
    for (int l = 0; l < 4; l++)
        for (int d = 0; d < 4; d++)
            if (layers[l] * dilations[d] <= 80)
                for (int s = 0; s < 2; s++)
                    row(c, state, 2, layers[l], dilations[d], 0, modelled_spins[s] * 1000, panel_ns, reps);
}

enum { BUSY_COUNT, BUSY_PAUSE, BUSY_CLOCK };

/* A process on the last core: counts, spins on a pause instruction, or spins as wait_until does. */
static pid_t take_core(int how)
{
    const pid_t pid = fork();
    if (pid)
        return pid;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(sysconf(_SC_NPROCESSORS_ONLN) - 1, &set);
    sched_setaffinity(0, sizeof set, &set);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (volatile uint64_t i = 0;; i++)
        if (how == BUSY_PAUSE)
            __builtin_ia32_pause();
        else if (how == BUSY_CLOCK && now_ns() > 0)
            __builtin_ia32_pause();
}

/* What a slice on the first core costs while the last core does something: are the two cores independent? */
static void neighbours(const chain *c)
{
    static const char *const names[] = {"counts", "pauses", "spins on the clock", "idle"};
    cpu_set_t all, first;
    sched_getaffinity(0, sizeof all, &all);
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    sched_setaffinity(0, sizeof first, &first);
    for (int how = 3; how >= 0; how--) {
        const pid_t pid = how < 3 ? take_core(how) : 0;
        double ns[100];
        float sink = 0;
        for (int r = 0; r < 100; r++) {
            const int64_t t = now_ns();
            sink += compute(c, 2000);
            ns[r] = (double)(now_ns() - t) / 2000;
        }
        qsort(ns, 100, sizeof *ns, by_value);
        printf("# other core %s: slice of 16 x 2048 takes %.0f ns best, %.0f median%s\n", names[how], ns[0], ns[50],
               sink == 0 ? " " : "");
        if (pid)
            kill(pid, SIGKILL), waitpid(pid, NULL, 0);
    }
    sched_setaffinity(0, sizeof all, &all);
}

int main(int argc, char **argv)
{
    static chain c;
    yk_lay_act act;
    uint64_t seed = 1;
    const uint32_t cols = 2048;
    const size_t row_bytes = cols / 32 * 18;
    const char *state = argc > 1 ? argv[1] : "idle";
    int reps = argc > 2 ? atoi(argv[2]) : 3;
    if (!__builtin_cpu_supports("avx512vnni"))
        return fprintf(stderr, "this CPU has no AVX-512 VNNI\n"), 77;
    reps = reps < 1 ? 1 : reps > MAX_REPS ? MAX_REPS : reps;
    c.panel_bytes = yk_lay_panel_bytes(YK_LAY_Q4_0, cols);
    uint8_t *w = aligned_alloc(64, PANELS * c.panel_bytes), *rows = malloc(16 * row_bytes);
    if (!w || !rows || !yk_lay_act_make(&act, YK_LAY_Q4_0, 1, cols, &seed))
        return fprintf(stderr, "out of memory\n"), 1;
    for (int i = 0; i < PANELS; i++) {
        yk_lay_random_rows(YK_LAY_Q4_0, 16, cols, &seed, rows);
        yk_lay_pack(YK_LAY_Q4_0, rows, row_bytes, cols, w + (size_t)i * c.panel_bytes);
    }
    c.w = w, c.act = &act;
    double panel_ns = 1e9;
    float sink = 0;
    for (int r = 0; r < 200; r++) { /* best: the ideal is an undisturbed core */
        const int64_t t = now_ns();
        sink += compute(&c, 1000);
        const double ns = (double)(now_ns() - t) / 1000;
        panel_ns = ns < panel_ns ? ns : panel_ns;
    }
    printf("# a slice of 16 rows x 2048 columns: %.0f ns%s\n", panel_ns, sink == 0 ? " " : "");
    if (!strcmp(state, "idle"))
        neighbours(&c);
    const pid_t pid = strcmp(state, "busy") ? 0 : take_core(BUSY_COUNT);
    printf("state,what,median_us,p90_us,p99_us,worst_us\n");
    latencies(state);
    printf("state,shape,cpu_lane,layer_ms,dilation,spin_us,layers,best_over_ideal,median_over_ideal,median_extra_us_a_layer\n");
    chains(&c, state, panel_ns, reps);
    if (pid)
        kill(pid, SIGKILL), waitpid(pid, NULL, 0);
    yk_lay_act_free(&act);
    free(w), free(rows);
    return 0;
}
