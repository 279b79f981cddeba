/* check.c - every slot of the op table against double precision, and its speed.
 *
 * check [--only NAME] [--seed N] [--list] [--bench] [--isa NAME]
 *
 * Without --bench each slot is checked at each instruction set level there is; exit 1 when one fails or a slot has no check. */
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>

#include "cpu/pack.h"
#include "src/base/clock.h"
#include "tests/kernels/check.h"

check *running;

/* ---- random numbers and inputs ---- */

uint64_t rng_next(rng *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint32_t rng_below(rng *r, uint32_t n)
{
    return (uint32_t)((rng_next(r) >> 32) * n >> 32);
}

float rng_unit(rng *r)
{
    return (float)(int32_t)((rng_next(r) >> 40) - (1 << 23)) * 0x1p-23f;
}

const char *fill_name(fill how)
{
    static const char *const names[FILL_N] = {"plain", "outliers", "denormal", "equal", "zero-runs"};
    return names[how];
}

void fill_f32(rng *r, fill how, float *x, size_t n)
{
    const float same = rng_unit(r);
    for (size_t i = 0; i < n; i++) {
        const float v = rng_unit(r) + rng_unit(r) + rng_unit(r);
        switch (how) {
        case FILL_OUTLIERS:
            x[i] = rng_below(r, 61) == 0 ? 1000.0f * v : v;
            break;
        case FILL_DENORMAL:
            x[i] = rng_below(r, 8) == 0 ? v * 0x1p-120f : v * 0x1p-130f;
            break;
        case FILL_EQUAL:
            x[i] = same;
            break;
        case FILL_ZERO_RUNS:
            x[i] = (i / 48) % 2 ? (i & 1 ? -0.0f : 0.0f) : v;
            break;
        default:
            x[i] = v;
        }
    }
}

/* ---- guarded memory: [64 header][GUARD][skew][bytes][GUARD] ---- */

typedef struct guarded {
    size_t bytes, skew;
} guarded;

static const uint8_t guard_byte = 0xa5;

void *guarded_new(size_t bytes, size_t skew)
{
    const size_t total = 64 + GUARD + skew + bytes + GUARD;
    uint8_t *p = aligned_alloc(64, (total + 63) / 64 * 64);
    if (!p) {
        fprintf(stderr, "check: out of memory\n");
        exit(1);
    }
    memset(p, guard_byte, total);
    *(guarded *)(void *)p = (guarded){bytes, skew};
    memcpy(p + GUARD + skew, &p, sizeof p); /* 64 bytes before what the caller gets, inside the front guard */
    return p + 64 + GUARD + skew;
}

void guarded_free(void *user)
{
    uint8_t *at = (uint8_t *)user - 64, *p;
    memcpy(&p, at, sizeof p);
    const guarded g = *(guarded *)(void *)p;
    for (uint8_t *q = p + 64; q < (uint8_t *)user; q++)
        if ((q < at || q >= at + sizeof p) && *q != guard_byte) {
            fail_check(running, "byte %td before the output was written", (uint8_t *)user - q);
            break;
        }
    for (size_t i = 0; i < GUARD; i++)
        if (((uint8_t *)user)[g.bytes + i] != guard_byte) {
            fail_check(running, "byte %zu behind the output was written", i);
            break;
        }
    free(p);
}

/* ---- comparing ---- */

void set_params(check *c, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(c->params, sizeof c->params, fmt, ap);
    va_end(ap);
}

void fail_check(check *c, const char *fmt, ...)
{
    if (c->n_failed++ >= 10 || c->quiet)
        return;
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "FAIL %s [%s] %s, seed %" PRIu64 ": ", c->slot, yk_isa_name(c->ops->isa), c->params, c->seed);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}

bool is_nan_bits(float x)
{
    return (yk_f32_bits(x) & 0x7fffffffu) > 0x7f800000u;
}

static void digest(check *c, const void *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        c->digest = (c->digest ^ ((const uint8_t *)p)[i]) * 0x100000001b3u;
}

void compare_f32(check *c, const yk_tolerance *tol, const float *got, const double *want, const double *size, size_t n)
{
    digest(c, got, n * sizeof *got);
    for (size_t i = 0; i < n; i++) {
        c->n_compared++;
        if (isnan(want[i]) || is_nan_bits(got[i])) {
            if (!(isnan(want[i]) && is_nan_bits(got[i])))
                fail_check(c, "element %zu of %zu: got %.9g, want %.17g", i, n, (double)got[i], want[i]);
            continue;
        }
        /* 2^-149 is the unit of results below the smallest normal f32, where relative bounds end. */
        const double diff = fabs((double)got[i] - want[i]), limit = tol->rel * size[i] + 0x1p-149;
        const bool ok = isinf(want[i]) ? (double)got[i] == want[i] : diff <= limit;
        if (!ok)
            fail_check(c, "element %zu of %zu: got %.9g, want %.17g, difference %.3g, allowed %.3g (%s)", i, n, (double)got[i],
                       want[i], diff, limit, tol->reason);
        else if (!isinf(want[i]) && diff / limit > c->worst)
            c->worst = diff / limit;
    }
}

void compare_bits(check *c, const char *what, const void *got, const void *want, size_t bytes)
{
    digest(c, got, bytes);
    c->n_compared++;
    const uint8_t *a = got, *b = want;
    for (size_t i = 0; i < bytes; i++)
        if (a[i] != b[i]) {
            fail_check(c, "%s: byte %zu of %zu is 0x%02x, not 0x%02x", what, i, bytes, a[i], b[i]);
            return;
        }
}

/* The comparer must reject what it exists for. */
static bool self_test(void)
{
    static const float good[4] = {1.0f, -2.0f, 0.5f, 3.0f};
    static const double want[4] = {1, -2, 0.5, 3}, size[4] = {1, 2, 0.5, 3};
    const yk_tolerance tol = {"self", "", 1e-6, "self-test"};
    const float bad[][4] = {
        {1.0f, -2.0f, NAN, 3.0f},    {1.0f, -2.0f, 0.5f, INFINITY},  {1.0f, 2.0f, 0.5f, 3.0f},
        {1.0f, -2.0f, 0.5f, 3.001f}, {-INFINITY, -2.0f, 0.5f, 3.0f}, {0, 0, 0, 0},
    };
    const size_t n_bad = sizeof bad / sizeof *bad;
    check c = {.ops = yk_ops_get(YK_ISA_REF), .slot = "self-test", .quiet = true};
    running = &c;
    compare_f32(&c, &tol, good, want, size, 4);
    compare_bits(&c, "bits", good, good, sizeof good);
    if (c.n_failed)
        return false;
    for (size_t i = 0; i < n_bad; i++) {
        c.n_failed = 0;
        compare_f32(&c, &tol, bad[i], want, size, 4);
        if (c.n_failed == 0)
            return false;
        c.n_failed = 0;
        compare_bits(&c, "bits", bad[i], good, sizeof good);
        if (c.n_failed != 1)
            return false;
    }
    /* A wanted NaN is only met by NaN, a wanted infinity only by itself. */
    const double odd[4] = {NAN, INFINITY, 0.5, 3};
    const float met[4] = {NAN, INFINITY, 0.5f, 3.0f};
    c.n_failed = 0;
    compare_f32(&c, &tol, met, odd, size, 4);
    if (c.n_failed)
        return false;
    compare_f32(&c, &tol, good, odd, size, 4);
    if (c.n_failed != 2)
        return false;
    for (int side = 0; side < 2; side++) {
        c.n_failed = 0;
        uint8_t *p = guarded_new(100, 4);
        p[side ? 100 : -1] ^= 1;
        guarded_free(p);
        if (c.n_failed != 1)
            return false;
    }
    return true;
}

/* ---- bench ---- */

void bench_run(const char *name, const char *shape, bench_fn fn, void *arg, double bytes, double flops)
{
    double best = INFINITY;
    const uint64_t end = yk_now_ns() + 150000000u;
    fn(arg);
    for (int runs = 0; runs < 5 || yk_now_ns() < end; runs++) {
        const uint64_t start = yk_now_ns();
        fn(arg);
        const double ns = (double)(yk_now_ns() - start);
        best = ns < best ? ns : best;
    }
    best = best < 1 ? 1 : best;
    printf("%-18s %-26s %12.0f ns %8.2f GB/s %8.2f GFLOP/s\n", name, shape, best, bytes / best, flops / best);
    fflush(stdout);
}

/* ---- slots ---- */

enum { MAX_SLOTS = 3 * YK_TYPE_LIMIT + 16 };

static slot slots[MAX_SLOTS];
static char names[MAX_SLOTS][32];
static int n_slots;

static void add_slot(const char *name, yk_type type, size_t offset, void (*run)(check *, yk_type),
                     void (*bench)(const yk_ops *, yk_type))
{
    if (type < YK_TYPE_LIMIT)
        snprintf(names[n_slots], sizeof names[0], "%s-%s", name, yk_type_get(type)->name);
    else
        snprintf(names[n_slots], sizeof names[0], "%s", name);
    slots[n_slots] = (slot){names[n_slots], offset, type, run, bench};
    n_slots++;
}

static void add_slots(void)
{
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
        if (!yk_type_get(t))
            continue;
        add_slot("dequant", (yk_type)t, offsetof(yk_ops, dequant) + t * sizeof(void *), check_dequant, bench_dequant);
        add_slot("matmul", (yk_type)t, offsetof(yk_ops, matmul) + t * sizeof(void *), check_matmul, bench_matmul);
        if (yk_pack_has((yk_type)t))
            add_slot("matmul_packed", (yk_type)t, offsetof(yk_ops, matmul_packed) + t * sizeof(void *), check_matmul_packed,
                     bench_matmul_packed);
    }
    add_slot("quantise", YK_TYPE_LIMIT, offsetof(yk_ops, quantise), check_quantise, bench_quantise);
    add_slot("rms_norm", YK_TYPE_LIMIT, offsetof(yk_ops, rms_norm), check_rms_norm, bench_rms_norm);
    add_slot("add", YK_TYPE_LIMIT, offsetof(yk_ops, add), check_add, bench_add);
    add_slot("add_scaled", YK_TYPE_LIMIT, offsetof(yk_ops, add_scaled), check_add_scaled, bench_add_scaled);
    add_slot("rope", YK_TYPE_LIMIT, offsetof(yk_ops, rope), check_rope, bench_rope);
    add_slot("glu", YK_TYPE_LIMIT, offsetof(yk_ops, glu), check_glu, bench_glu);
    add_slot("attention", YK_TYPE_LIMIT, offsetof(yk_ops, attention), check_attention, bench_attention);
    add_slot("attention_join", YK_TYPE_LIMIT, offsetof(yk_ops, attention_join), check_attention_join, bench_attention_join);
    add_slot("route", YK_TYPE_LIMIT, offsetof(yk_ops, route), check_route, bench_route);
    add_slot("to_f16", YK_TYPE_LIMIT, offsetof(yk_ops, to_f16), check_to_f16, bench_to_f16);
}

/* All of yk_ops behind `isa` is function pointers: one that is set and not listed has no check; one that is listed must be
 * set. */
static int uncovered(const yk_ops *ops)
{
    int bad = 0;
    for (size_t at = offsetof(yk_ops, dequant); at < sizeof(yk_ops); at += sizeof(void *)) {
        void *p;
        memcpy(&p, (const uint8_t *)ops + at, sizeof p);
        int listed = -1;
        for (int i = 0; i < n_slots; i++)
            listed = slots[i].offset == at ? i : listed;
        if (p && listed < 0) {
            fprintf(stderr, "FAIL slot at byte %zu of yk_ops [%s] has no check\n", at, yk_isa_name(ops->isa));
            bad++;
        }
        if (!p && listed >= 0) {
            fprintf(stderr, "FAIL slot %s [%s] is empty\n", slots[listed].name, yk_isa_name(ops->isa));
            bad++;
        }
    }
    return bad;
}

/* Is the function of a slot another one than in the table of the next lower level? */
static bool is_new(const slot *s, yk_isa isa)
{
    return isa == 0 || memcmp((const uint8_t *)yk_ops_get(isa) + s->offset,
                              (const uint8_t *)yk_ops_get((yk_isa)(isa - 1)) + s->offset, sizeof(void *)) != 0;
}

/* Where AVX2 and AVX-VNNI or AVX-512 have a kernel their results are the same bits (docs/kernels): those of AVX2, 0: it has none. */
static uint64_t avx2_digests[MAX_SLOTS];

static void check_same_bits(check *c, yk_isa isa, int i)
{
    if (isa == YK_ISA_AVX2)
        avx2_digests[i] = c->digest;
    else if ((isa == YK_ISA_AVXVNNI || isa == YK_ISA_AVX512) && avx2_digests[i] && avx2_digests[i] != c->digest)
        fail_check(c, "results are not the bits of level avx2");
}

static int check_level(yk_isa isa, const char *only, uint64_t seed, int *n_run)
{
    const int before = *n_run;
    int bad = 0;
    uint64_t all = 0xcbf29ce484222325u;
    for (int i = 0; i < n_slots; i++) {
        if ((only && !strstr(slots[i].name, only)) || !is_new(&slots[i], isa))
            continue;
        check c = {.ops = yk_ops_get(isa), .slot = slots[i].name, .seed = seed, .digest = 0xcbf29ce484222325u};
        running = &c;
        slots[i].run(&c, slots[i].type);
        check_same_bits(&c, isa, i);
        if (c.n_compared == 0) {
            fprintf(stderr, "FAIL %s [%s]: nothing was compared\n", slots[i].name, yk_isa_name(isa));
            c.n_failed++;
        }
        printf("%-4s %-18s %-7s %9" PRIu64 " compared, worst %.2f of its tolerance\n", c.n_failed ? "FAIL" : "ok",
               slots[i].name, yk_isa_name(isa), c.n_compared, c.worst);
        bad += c.n_failed != 0;
        all = (all ^ c.digest) * 0x100000001b3u;
        (*n_run)++;
    }
    if (*n_run > before)
        printf("bits of all results at level %s: %016" PRIx64 "\n", yk_isa_name(isa), all);
    return bad;
}

static bool has_level(yk_isa isa)
{
    return isa < YK_ISA_N && yk_ops_get(isa)->isa == isa;
}

static int usage(void)
{
    fprintf(stderr, "usage: check [--only NAME] [--seed N] [--list] [--bench] [--isa NAME]\n");
    return 2;
}

int main(int argc, char **argv)
{
    const char *only = NULL;
    uint64_t seed = 1;
    bool list = false, bench = false;
    yk_isa isa = yk_isa_best();
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--list") == 0)
            list = true;
        else if (strcmp(argv[i], "--bench") == 0)
            bench = true;
        else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc)
            only = argv[++i];
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
            seed = strtoull(argv[++i], NULL, 0);
        else if (strcmp(argv[i], "--isa") == 0 && i + 1 < argc && has_level(yk_isa_by_name(argv[i + 1])))
            isa = yk_isa_by_name(argv[++i]);
        else
            return usage();
    }
    add_slots();
    if (list || bench) {
        for (int i = 0; i < n_slots; i++) {
            if (only && !strstr(slots[i].name, only))
                continue;
            if (bench)
                slots[i].bench(yk_ops_get(isa), slots[i].type);
            else
                puts(slots[i].name);
        }
        return 0;
    }
    if (!self_test()) {
        fprintf(stderr, "FAIL the comparer accepts what it must reject\n");
        return 1;
    }
    int bad = 0, n_run = 0;
    for (int level = 0; level < YK_ISA_N; level++) {
        if (has_level((yk_isa)level))
            bad += uncovered(yk_ops_get((yk_isa)level)) + check_level((yk_isa)level, only, seed, &n_run);
        else
            printf("skipped: level %s, which this CPU or program lacks\n", yk_isa_name((yk_isa)level));
    }
    printf("%d checks run, %d failed\n", n_run, bad);
    return bad || n_run == 0;
}
