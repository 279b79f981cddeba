/* layout.c - does the packed layout reach the read rate of a core, and what do many tokens cost on it?
 *
 *   layout check                      packing, kernels against doubles, OpenCL kernels against the CPU's (default)
 *   layout decode [threads] [MiB] [reps] [small]   1 to 8 tokens and the plain read, interleaved; small: 4 KiB pages
 *   layout cache                      the same from cache: the instruction limit
 *   layout batch [reps]               16 to 512 tokens: AVX-512 VNNI, AMX int8, AMX bf16
 *   layout down [MiB] [reps]          `down` by whole rows and by panels of 256 columns
 *
 * Rows of CSV on stdout. Needs a CPU with AVX-512 VNNI; AMX rows only where there is AMX. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <immintrin.h>

#include "bench/layout_data.h"

enum { MAX_THREADS = 2, MAX_REPS = 64, MAX_CASES = 64, COLS = 2048 };

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* ---- check ---- */

static int compare(const char *what, yk_lay type, uint32_t cols, uint32_t n, double got, double want, double size, double tol,
                   double *worst)
{
    const double diff = fabs(got - want) / (size + 1e-30);
    if (diff > *worst)
        *worst = diff;
    if (diff <= tol)
        return 0;
    printf("FAIL %s %s cols %u tokens %u: %.9g instead of %.9g\n", what, yk_lay_types[type].name, cols, n, got, want);
    return 1;
}

static int check_all(const char *what, yk_lay type, const uint8_t *rows, size_t row_bytes, const yk_lay_act *a, const float *y,
                     size_t stride, double tol, double *worst)
{
    int bad = 0;
    double *w = malloc(a->cols * sizeof *w);
    for (uint32_t t = 0; w && t < a->n; t++)
        for (uint32_t r = 0; r < 16; r++) {
            double want, size;
            yk_lay_reference(type, rows + r * row_bytes, a, t, w, &want, &size);
            bad += compare(what, type, a->cols, a->n, y[t * stride + r], want, size, tol, worst);
        }
    free(w);
    return w ? bad : 1;
}

static int check_shape(yk_lay type, uint32_t cols, double worst[4])
{
    static float y[YK_LAY_MAX_TOKENS * 32];
    static uint8_t scratch[1 << 18] __attribute__((aligned(64)));
    static const uint32_t counts[] = {1, 2, 4, 8, 13, 16, 48};
    uint64_t seed = 88172645463325252ull + cols + (uint64_t)type * 977;
    const size_t row_bytes = (size_t)cols / yk_lay_types[type].block_elems * yk_lay_types[type].block_bytes;
    const size_t panel_bytes = yk_lay_panel_bytes(type, cols);
    uint8_t *rows = malloc(16 * row_bytes), *other = malloc(16 * row_bytes), *back = malloc(16 * row_bytes),
            *panel = aligned_alloc(64, 2 * panel_bytes);
    int bad = !rows || !other || !back || !panel;
    if (!bad) {
        yk_lay_random_rows(type, 16, cols, &seed, rows);
        yk_lay_pack(type, rows, row_bytes, cols, panel);
        yk_lay_random_rows(type, 16, cols, &seed, other);
        yk_lay_pack(type, other, row_bytes, cols, panel + panel_bytes);
        memset(back, 0xa5, 16 * row_bytes);
        yk_lay_unpack(type, panel, cols, back, row_bytes);
        if (memcmp(rows, back, 16 * row_bytes))
            printf("FAIL %s cols %u: unpack(pack) is not the identity\n", yk_lay_types[type].name, cols), bad++;
    }
    for (size_t i = 0; !bad && i < sizeof counts / sizeof *counts; i++) {
        yk_lay_act a;
        const uint32_t n = counts[i];
        if (!yk_lay_act_make(&a, type, n, cols, &seed)) {
            bad++;
            break;
        }
        if (n == 1 || n == 2 || n == 4 || n == 8) {
            yk_lay_avx512(type, n)(panel, &a, y, i % 2 ? 1024 : 0);
            bad += check_all("few", type, rows, row_bytes, &a, y, 16, 1e-6, &worst[0]);
        }
        memset(y, 0xff, sizeof y);
        yk_lay_vnni(type)(panel, &a, y, 16, scratch);
        bad += check_all("many", type, rows, row_bytes, &a, y, 16, 1e-6, &worst[1]);
        if (yk_lay_vnni_pair(type)) {
            memset(y, 0xff, sizeof y);
            yk_lay_vnni_pair(type)(panel, &a, y, 32, scratch);
            bad += check_all("pair", type, rows, row_bytes, &a, y, 32, 1e-6, &worst[1]);
            bad += check_all("pair", type, other, row_bytes, &a, y + 16, 32, 1e-6, &worst[1]);
        }
        if (cols % 256 == 0 && yk_lay_amx_open()) {
            if (yk_lay_amx(type)) {
                memset(y, 0xff, sizeof y);
                yk_lay_amx(type)(panel, &a, y, 16, scratch);
                bad += check_all("amx", type, rows, row_bytes, &a, y, 16, 1e-6, &worst[2]);
            }
            memset(y, 0xff, sizeof y);
            yk_lay_amx_bf16(type)(panel, &a, y, 16, scratch);
            /* two bf16 roundings of 2^-9 each, and the int8 rounding of the reference, up to 1/254 of the largest in the block
             */
            bad += check_all("bf16", type, rows, row_bytes, &a, y, 16, type == YK_LAY_F16 ? 0.004 : 0.05, &worst[3]);
        }
        if (n == 1 && cols == 256) {
            memset(y, 0, sizeof y);
            yk_lay_avx512_step(type)(panel, &a, y, 0);
            bad += check_all("step", type, rows, row_bytes, &a, y, 16, 1e-6, &worst[0]);
        }
        yk_lay_act_free(&a);
    }
    free(rows), free(other), free(back), free(panel);
    return bad;
}

static int check(const char *cl_path)
{
    static const uint32_t cols[] = {32, 96, 256, 768, 2048, 2880};
    int bad = 0;
    printf("type,file_bits,packed_bits,packed_bits_2880,error_few,error_many,error_amx,error_bf16\n");
    for (yk_lay type = 0; type < YK_LAY_N; type++) {
        const yk_lay_traits *t = &yk_lay_types[type];
        double worst[4] = {0, 0, 0, 0};
        for (size_t i = 0; i < sizeof cols / sizeof *cols; i++)
            if (cols[i] % t->block_elems == 0)
                bad += check_shape(type, cols[i], worst);
        printf("%s,%.4f,%.4f,", t->name, 8.0 * t->block_bytes / t->block_elems, (double)yk_lay_panel_bytes(type, 2048) / 4096);
        if (2880 % t->block_elems == 0)
            printf("%.4f", (double)yk_lay_panel_bytes(type, 2880) / 5760);
        printf(",%.1e,%.1e,%.1e,%.1e\n", worst[0], worst[1], worst[2], worst[3]);
    }
    const int cl = yk_lay_check_opencl(cl_path);
    if (cl < 0)
        printf("no OpenCL device: its kernels were not checked\n");
    bad += cl > 0 ? cl : 0;
    printf(bad ? "FAILED: %d\n" : "all equal\n", bad);
    return bad != 0;
}

/* ---- decode ---- */

typedef struct test_case {
    char name[48];
    yk_lay_kernel kernel; /* NULL: plain read */
    uint32_t n, pf;
    double gbs[MAX_REPS];
} test_case;

typedef struct decode {
    yk_lay type;
    uint8_t *w;
    size_t bytes, panel_bytes;
    test_case cases[MAX_CASES];
    int n_cases, reps, threads;
    yk_lay_act act[4]; /* 1, 2, 4, 8 tokens */
    pthread_barrier_t barrier;
    double done[MAX_THREADS];
    _Atomic uint64_t sink;
} decode;

/* Sum of all 64-bit words. pf 1: one stream; 2: two streams; else one stream with prefetch pf bytes ahead. */
static uint64_t read_rate(const uint8_t *p, size_t n, uint32_t pf)
{
    __m512i s[8];
    for (int i = 0; i < 8; i++)
        s[i] = _mm512_setzero_si512();
    const size_t second = pf == 2 ? n / 2 / 512 * 512 : 256, step = pf == 2 ? 256 : 512;
    for (size_t i = 0; i + second + 256 <= n && (pf != 2 || i < second); i += step) {
        if (pf > 2)
            for (int l = 0; l < 512; l += 64)
                _mm_prefetch((const char *)p + i + l + pf, _MM_HINT_T0);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            s[j] = _mm512_add_epi64(s[j], _mm512_load_si512(p + i + 64 * j));
            s[4 + j] = _mm512_add_epi64(s[4 + j], _mm512_load_si512(p + i + second + 64 * j));
        }
    }
    for (int i = 1; i < 8; i++)
        s[0] = _mm512_add_epi64(s[0], s[i]);
    return (uint64_t)_mm512_reduce_add_epi64(s[0]);
}

static void one_pass(decode *d, const test_case *c, const uint8_t *w, size_t bytes)
{
    if (!c->kernel) {
        d->sink += read_rate(w, bytes, c->pf);
        return;
    }
    const yk_lay_act *a = &d->act[c->n == 1 ? 0 : c->n == 2 ? 1 : c->n == 4 ? 2 : 3];
    float y[8 * 16], s = 0;
    for (size_t i = 0; i + d->panel_bytes <= bytes; i += d->panel_bytes) {
        c->kernel(w + i, a, y, c->pf);
        s += y[0];
    }
    d->sink += s > 0;
}

typedef struct decode_thread {
    decode *d;
    int index;
} decode_thread;

static void *decode_run(void *arg)
{
    const decode_thread *me = arg;
    decode *d = me->d;
    const size_t part = d->bytes / (size_t)d->threads / d->panel_bytes * d->panel_bytes;
    for (int r = 0; r < d->reps; r++)
        for (int i = 0; i < d->n_cases; i++) {
            pthread_barrier_wait(&d->barrier);
            const double t = seconds();
            one_pass(d, &d->cases[i], d->w + (size_t)me->index * part, part);
            d->done[me->index] = seconds() - t;
            pthread_barrier_wait(&d->barrier);
            if (me->index == 0) {
                double longest = 0;
                for (int k = 0; k < d->threads; k++)
                    longest = fmax(longest, d->done[k]);
                d->cases[i].gbs[r] = (double)part * d->threads / longest / 1e9;
            }
        }
    return NULL;
}

static void add_case(decode *d, const char *name, yk_lay_kernel kernel, uint32_t n, uint32_t pf)
{
    test_case *c = &d->cases[d->n_cases++];
    snprintf(c->name, sizeof c->name, "%s", name);
    c->kernel = kernel, c->n = n, c->pf = pf;
}

static void add_cases(decode *d, int all_distances)
{
    static const uint32_t pfs[] = {0, 512, 1024, 2048, 4096, 8192};
    const uint32_t two_levels = 2048 | 16384u << 16;
    char name[48];
    d->n_cases = 0;
    add_case(d, "read", NULL, 0, 1);
    add_case(d, "read 2 streams", NULL, 0, 2);
    add_case(d, "read pf 2048", NULL, 0, 2048);
    add_case(d, "read pf 8192", NULL, 0, 8192);
    for (size_t i = 0; i < 6; i++)
        if (all_distances || i == 3) {
            snprintf(name, sizeof name, "n1 pf %u", pfs[i]);
            add_case(d, name, yk_lay_avx512(d->type, 1), 1, pfs[i]);
        }
    if (all_distances) {
        add_case(d, "n1 pf L2 8192", yk_lay_avx512(d->type, 1), 1, 8192u << 16);
        add_case(d, "n1 pf 1024 + L2 8192", yk_lay_avx512(d->type, 1), 1, 1024 | 8192u << 16);
        add_case(d, "n4 pf 2048", yk_lay_avx512(d->type, 4), 4, 2048);
    }
    add_case(d, "n1 pf 2048 + L2 16384", yk_lay_avx512(d->type, 1), 1, two_levels);
    if (d->type == YK_LAY_Q8_0)
        add_case(d, "n1 stored+128 pf 2048 + L2 16384", yk_lay_q8_0_plain, 1, two_levels);
    add_case(d, "n2 pf 2048 + L2 16384", yk_lay_avx512(d->type, 2), 2, two_levels);
    add_case(d, "n4 pf 2048 + L2 16384", yk_lay_avx512(d->type, 4), 4, two_levels);
    add_case(d, "n8 pf 2048 + L2 16384", yk_lay_avx512(d->type, 8), 8, two_levels);
}

static void print_cases(const decode *d, const char *pages)
{
    double read = 0, read_median = 0;
    for (int i = 0; i < d->n_cases; i++) {
        const test_case *c = &d->cases[i];
        double s[MAX_REPS];
        memcpy(s, c->gbs, sizeof s);
        qsort(s, (size_t)d->reps, sizeof *s, by_value);
        const double best = s[d->reps - 1], median = s[d->reps / 2];
        if (!c->kernel)
            read = fmax(read, best), read_median = fmax(read_median, median);
        printf("%s,%d,%s,%s,%.2f,%.2f,%.2f,%.0f,%.0f\n", yk_lay_types[d->type].name, d->threads, pages, c->name, best, median,
               s[0], 100 * best / read, 100 * median / read_median);
    }
    fflush(stdout);
}

/* Fill with copies of 64 random panels. */
static int fill(decode *d, size_t bytes)
{
    uint64_t seed = 1234567 + (uint64_t)d->type;
    const size_t row_bytes = (size_t)COLS / yk_lay_types[d->type].block_elems * yk_lay_types[d->type].block_bytes;
    uint8_t *rows = malloc(16 * row_bytes);
    if (!rows)
        return 0;
    d->panel_bytes = yk_lay_panel_bytes(d->type, COLS);
    d->bytes = bytes / d->panel_bytes * d->panel_bytes;
    for (size_t i = 0; i < d->bytes; i += d->panel_bytes) {
        const size_t k = i / d->panel_bytes;
        if (k < 64) {
            yk_lay_random_rows(d->type, 16, COLS, &seed, rows);
            yk_lay_pack(d->type, rows, row_bytes, COLS, d->w + i);
        } else {
            memcpy(d->w + i, d->w + k % 64 * d->panel_bytes, d->panel_bytes);
        }
    }
    free(rows);
    for (uint32_t i = 0; i < 4; i++) {
        yk_lay_act_free(&d->act[i]);
        if (!yk_lay_act_make(&d->act[i], d->type, 1u << i, COLS, &seed))
            return 0;
    }
    return 1;
}

static int run_threads(decode *d)
{
    pthread_t other[MAX_THREADS];
    decode_thread me[MAX_THREADS];
    int started = 0;
    pthread_barrier_init(&d->barrier, NULL, (unsigned)d->threads);
    for (int i = 0; i < d->threads; i++)
        me[i] = (decode_thread){d, i};
    for (int i = 1; i < d->threads; i++, started++)
        if (pthread_create(&other[i], NULL, decode_run, &me[i]))
            return 0; /* the program ends */
    decode_run(&me[0]);
    for (int i = 1; i <= started; i++)
        pthread_join(other[i], NULL);
    pthread_barrier_destroy(&d->barrier);
    return 1;
}

static uint8_t *map(size_t bytes, int small_pages)
{
    uint8_t *w = mmap(NULL, bytes + (1 << 21), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (w == MAP_FAILED)
        return NULL;
    w = (uint8_t *)(((uintptr_t)w + (1 << 21) - 1) & ~(uintptr_t)((1 << 21) - 1));
    madvise(w, bytes, small_pages ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
    return w;
}

static int decode_main(int threads, size_t mib, int reps, int small_pages)
{
    static decode d;
    d.threads = threads, d.reps = reps;
    d.w = map((mib << 20) + 65536, small_pages);
    if (!d.w)
        return fprintf(stderr, "cannot map %zu MiB\n", mib), 1;
    printf("type,threads,pages,case,best_gbs,median_gbs,worst_gbs,best_share,median_share\n");
    for (yk_lay type = 0; type < YK_LAY_N; type++) {
        d.type = type;
        if (!fill(&d, mib << 20))
            return fprintf(stderr, "out of memory\n"), 1;
        add_cases(&d, threads == 1 && !small_pages);
        if (!run_threads(&d))
            return fprintf(stderr, "cannot start threads\n"), 1;
        print_cases(&d, small_pages ? "4K" : "2M");
    }
    return 0;
}

/* From cache: 8 panels again and again; no prefetch. */
static int cache_main(void)
{
    static decode d;
    d.w = map(1 << 22, 0);
    if (!d.w)
        return fprintf(stderr, "cannot map memory\n"), 1;
    printf("type,tokens,gbs,gops,weights_per_ns\n");
    for (yk_lay type = 0; type < YK_LAY_N; type++) {
        d.type = type;
        if (!fill(&d, 2 * yk_lay_panel_bytes(type, COLS)))
            return fprintf(stderr, "out of memory\n"), 1;
        for (uint32_t i = 0; i < 4; i++) {
            double best = 1e9;
            float y[128];
            for (int r = 0; r < 7; r++) {
                const double t = seconds();
                for (int k = 0; k < 1000; k++)
                    yk_lay_avx512(type, 1u << i)(d.w + (k & 1 ? d.panel_bytes : 0), &d.act[i], y, 0);
                best = fmin(best, (seconds() - t) / 1000);
            }
            printf("%s,%u,%.1f,%.1f,%.2f\n", yk_lay_types[type].name, 1u << i, (double)d.panel_bytes / best / 1e9,
                   2e-9 * 16 * COLS * (1u << i) / best, 16e-9 * COLS / best);
        }
    }
    return 0;
}

/* ---- batch ---- */

static double batch_pass(yk_lay_batch f, const uint8_t *w, size_t panel_bytes, uint32_t panels, uint32_t step,
                         const yk_lay_act *a, float *y, void *scratch, int reps)
{
    double best = 1e9;
    for (int r = 0; r < reps; r++) {
        const double t = seconds();
        for (uint32_t p = 0; p < panels; p += step)
            f(w + p * panel_bytes, a, y + 16 * p, (size_t)16 * panels, scratch);
        best = fmin(best, seconds() - t);
    }
    return best;
}

static int batch_main(int reps)
{
    enum { PANELS = 64 };
    static const uint32_t counts[] = {16, 32, 64, 128, 512};
    static uint8_t scratch[1 << 18] __attribute__((aligned(64)));
    const int amx = yk_lay_amx_open();
    const double peak_vnni = yk_lay_peak_vnni();
    printf("# peak VNNI %.0f Gop/s", peak_vnni);
    if (amx)
        printf(", AMX int8 %.0f (32 columns %.0f, 16 columns %.0f)", yk_lay_peak_amx_int8(64), yk_lay_peak_amx_int8(32),
               yk_lay_peak_amx_int8(16));
    printf("\ntype,tokens,kernel,gops,share_of_vnni_peak\n");
    decode d = {0};
    d.w = map(8 << 20, 0);
    float *y = (float *)(void *)map((size_t)YK_LAY_MAX_TOKENS * PANELS * 16 * 4, 0);
    if (!d.w || !y)
        return fprintf(stderr, "cannot map memory\n"), 1;
    for (yk_lay type = 0; type < YK_LAY_N; type++) {
        d.type = type;
        if (!fill(&d, PANELS * yk_lay_panel_bytes(type, COLS)))
            return fprintf(stderr, "out of memory\n"), 1;
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            uint64_t seed = 99;
            yk_lay_act a;
            if (!yk_lay_act_make(&a, type, counts[i], COLS, &seed))
                return fprintf(stderr, "out of memory\n"), 1;
            const yk_lay_batch f[4] = {yk_lay_vnni(type), yk_lay_vnni_pair(type), amx ? yk_lay_amx(type) : NULL,
                                       amx ? yk_lay_amx_bf16(type) : NULL};
            static const char *const names[] = {"vnni", "vnni pairs", "amx int8", "amx bf16"};
            for (uint32_t k = 0; k < 4; k++)
                if (f[k]) {
                    const double t = batch_pass(f[k], d.w, d.panel_bytes, PANELS, k == 1 ? 2 : 1, &a, y, scratch, reps);
                    const double gops = 2e-9 * 16 * PANELS * COLS * counts[i] / t;
                    printf("%s,%u,%s,%.0f,%.2f\n", yk_lay_types[type].name, counts[i],
                           type == YK_LAY_F16 && k == 0 ? "f32 fma" : names[k], gops, gops / peak_vnni);
                }
            yk_lay_act_free(&a);
        }
        fflush(stdout);
    }
    return 0;
}

/* ---- down ---- */

/* [rows 2048][cols 8192], one token: whole rows (one accumulator over all columns) and 32 panels of 256 columns (y read and
 * written once a panel). Both read the same number of bytes once, from many matrices in a row. */
static int down_main(size_t mib, int reps)
{
    enum { ROWS = 2048, WIDE = 8192, PANELS = ROWS / 16, UNITS = WIDE / 256 };
    static decode d;
    static float y[ROWS];
    d.w = map((mib << 20) + 65536, 0);
    if (!d.w)
        return fprintf(stderr, "cannot map %zu MiB\n", mib), 1;
    printf("type,read_gbs,rows_gbs,panels_gbs,panels_over_rows\n");
    for (yk_lay type = 0; type < YK_LAY_N; type++) {
        d.type = type;
        uint64_t seed = 5;
        yk_lay_act wide, part;
        if (!fill(&d, mib << 20) || !yk_lay_act_make(&wide, type, 1, WIDE, &seed))
            return fprintf(stderr, "out of memory\n"), 1;
        const size_t tile = yk_lay_geometry(type, 8).bytes, row = tile * UNITS, matrix = row * PANELS, n = d.bytes / matrix;
        double rd[MAX_REPS], rows[MAX_REPS], panels[MAX_REPS];
        for (int r = 0; r < reps; r++) {
            double t = seconds();
            d.sink += read_rate(d.w, n * matrix, 2048);
            rd[r] = (double)(n * matrix) / (seconds() - t) / 1e9;
            t = seconds();
            for (size_t m = 0; m < n; m++)
                for (int p = 0; p < PANELS; p++)
                    yk_lay_avx512(type, 1)(d.w + m * matrix + (size_t)p * row, &wide, y + 16 * p, 2048 | 16384u << 16);
            rows[r] = (double)(n * matrix) / (seconds() - t) / 1e9;
            t = seconds();
            for (size_t m = 0; m < n; m++)
                for (int u = 0; u < UNITS; u++) {
                    part = wide;
                    part.cols = 256, part.q += 256 * u, part.x += 256 * u, part.scale += 8 * u, part.fsum += 8 * u,
                    part.sum += 8 * u;
                    part.off += type == YK_LAY_Q6_K ? 16 * u : 8 * u;
                    for (int p = 0; p < PANELS; p++)
                        yk_lay_avx512_step(type)(d.w + m * matrix + (size_t)(u * PANELS + p) * tile, &part, y + 16 * p,
                                                 2048 | 16384u << 16);
                }
            panels[r] = (double)(n * matrix) / (seconds() - t) / 1e9;
        }
        qsort(rd, (size_t)reps, sizeof *rd, by_value), qsort(rows, (size_t)reps, sizeof *rows, by_value);
        qsort(panels, (size_t)reps, sizeof *panels, by_value);
        printf("%s,%.2f,%.2f,%.2f,%.3f\n", yk_lay_types[type].name, rd[reps / 2], rows[reps / 2], panels[reps / 2],
               rows[reps / 2] / panels[reps / 2]);
        fflush(stdout);
        yk_lay_act_free(&wide);
    }
    return 0;
}

static int number(int c, char **v, int i, int otherwise, int low, int high)
{
    const int x = i < c ? atoi(v[i]) : otherwise;
    return x < low ? low : x > high ? high : x;
}

int main(int c, char **v)
{
    const char *mode = c > 1 ? v[1] : "check";
    if (!__builtin_cpu_supports("avx512vnni"))
        return fprintf(stderr, "this CPU has no AVX-512 VNNI\n"), 77;
    if (!strcmp(mode, "check"))
        return check(c > 2 ? v[2] : "bench/layout.cl");
    if (!strcmp(mode, "decode"))
        return decode_main(number(c, v, 2, 1, 1, MAX_THREADS), (size_t)number(c, v, 3, 1024, 8, 16384),
                           number(c, v, 4, 7, 1, MAX_REPS), c > 5 && !strcmp(v[5], "small"));
    if (!strcmp(mode, "cache"))
        return cache_main();
    if (!strcmp(mode, "batch"))
        return batch_main(number(c, v, 2, 5, 1, MAX_REPS));
    if (!strcmp(mode, "down"))
        return down_main((size_t)number(c, v, 2, 1024, 64, 16384), number(c, v, 3, 7, 1, MAX_REPS));
    fprintf(stderr, "usage: layout check|decode|cache|batch|down (see the head of bench/layout.c)\n");
    return 2;
}
