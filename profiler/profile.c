#include "profiler/profile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "src/base/clock.h"
#include "src/base/mem.h"

enum { SLICE_ROWS_MULTIPLE = 16, SLICE_ROWS_MAX = 256, SLICE_BYTES = 128 << 10, MAX_PASS_SLICES = 8192 };

/* ---- figures ----------------------------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double yk_samples_median(yk_samples *s, bool *noisy)
{
    if (!s->n)
        return 0;
    qsort(s->v, s->n, sizeof *s->v, by_value);
    const double median = s->v[s->n / 2];
    if (s->n >= 4 && s->v[s->n - 1 - s->n / 4] - s->v[s->n / 4] > median / 4)
        *noisy = true;
    return median;
}

void yk_profile_fill_buckets(double product[YK_N_BUCKETS], const double rate[3])
{
    static const double at[3] = {1, 8, 64};
    double s[3];
    for (int i = 0; i < 3; i++) { /* more tokens never take less time */
        s[i] = 1 / rate[i];
        if (i && s[i] < s[i - 1])
            s[i] = s[i - 1];
    }
    for (int b = 0; b < YK_B_PREFILL; b++) {
        const double n = yk_bucket_tokens((yk_bucket)b);
        const int i = n > at[1];
        product[b] = 1 / (s[i] + (s[i + 1] - s[i]) * (n - at[i]) / (at[i + 1] - at[i]));
    }
    product[YK_B_PREFILL] = at[2] / s[2];
}

yk_status yk_profile_tell(yk_profile_run *r, yk_error *err)
{
    const uint32_t done = r->done < r->total ? r->done++ : r->total;
    if (r->o->progress && !r->o->progress(r->o->progress_user, "measuring the machine", done, r->total))
        return yk_fail(err, YK_ERR_CANCELLED, "cancelled while measuring the machine");
    return YK_OK;
}

/* ---- the CPU lane -------------------------------------------------------------------------------------------------------------------- */

typedef struct pass {
    const yk_cpu_bench *b;
    yk_type type;
    const uint8_t *w;
    uint64_t row_bytes;
    uint32_t rows, slice_rows, n_tokens;
} pass;

static void run_slice(const yk_stage *stage, uint32_t slice, yk_worker *worker)
{
    const pass *p = stage->arg;
    const uint32_t from = slice * p->slice_rows, left = p->rows - from;
    const yk_matmul m = {.w = p->w + from * p->row_bytes,
                         .row_bytes = p->row_bytes,
                         .n_rows = left < p->slice_rows ? left : p->slice_rows,
                         .n_cols = YK_PROFILE_COLS,
                         .x = p->b->x,
                         .x_stride = YK_PROFILE_COLS,
                         .xq = &p->b->q8,
                         .n_tokens = p->n_tokens,
                         .y = worker->scratch,
                         .y_stride = p->slice_rows};
    p->b->ops->matmul[p->type](&m);
}

yk_status yk_cpu_bench_pass(yk_cpu_bench *b, yk_type type, uint32_t n_tokens, uint64_t bytes, uint64_t *ns, uint64_t *done,
                            yk_error *err)
{
    pass p = {.b = b, .type = type, .n_tokens = n_tokens};
    if (!yk_type_row_bytes(type, YK_PROFILE_COLS, &p.row_bytes))
        return yk_fail(err, YK_ERR_RUNTIME, "weights of type %s have no rows of %d columns", yk_type_get(type)->name,
                       YK_PROFILE_COLS);
    uint64_t slice = SLICE_BYTES / p.row_bytes / SLICE_ROWS_MULTIPLE * SLICE_ROWS_MULTIPLE;
    slice = slice < SLICE_ROWS_MULTIPLE ? SLICE_ROWS_MULTIPLE : slice > SLICE_ROWS_MAX ? SLICE_ROWS_MAX : slice;
    p.slice_rows = (uint32_t)slice;
    const uint64_t slice_bytes = slice * p.row_bytes, fits = b->weights.size / slice_bytes;
    uint64_t n = (bytes + slice_bytes - 1) / slice_bytes, most = fits < MAX_PASS_SLICES ? fits : MAX_PASS_SLICES;
    const uint32_t workers = yk_pool_size(b->pool);
    n = n < workers ? workers : n; /* every worker has something to do */
    n = n > most ? most : n;
    if (b->at + n * slice_bytes > b->weights.size)
        b->at = 0;
    p.w = b->weights.base + b->at;
    p.rows = (uint32_t)(n * slice);
    b->at += (n * slice_bytes + 63) / 64 * 64;
    yk_stage stage = {.name = "product", .run = run_slice, .arg = &p, .max_slices = (uint32_t)n};
    yk_job job = {.stages = &stage, .n_stages = 1, .owners = b->owners, .claims = b->claims};
    const uint64_t begin = yk_now_ns();
    const yk_status st = yk_pool_run(b->pool, &job, err);
    *ns = yk_now_ns() - begin;
    *done = n * slice_bytes;
    yk_pool_wait_job(b->pool, &job);
    return st;
}

/* Bytes whose bits are ordinary numbers in every weight format: scales of f16 are 0.06 to 0.24, floats small but not denormal. */
static void fill_weights(yk_arena *a)
{
    uint64_t z = 1;
    for (size_t i = 0; i + 8 <= a->size; i += 8) {
        z = z * 6364136223846793005u + 1442695040888963407u;
        const uint64_t bytes = 0x2c2c2c2c2c2c2c2cu + ((z ^ z >> 29) & 0x0707070707070707u);
        memcpy(a->base + i, &bytes, 8);
    }
}

/* Twice the last cache, 64 to 256 MiB, at most an eighth of what is free. */
static uint64_t weights_bytes(const yk_cpu_info *cpu)
{
    uint64_t bytes = 2 * cpu->cache_bytes[2];
    bytes = bytes < 64ull << 20 ? 64ull << 20 : bytes > 256ull << 20 ? 256ull << 20 : bytes;
    if (cpu->memory_available_bytes && bytes > cpu->memory_available_bytes / 8)
        bytes = cpu->memory_available_bytes / 8;
    return (bytes > 4ull << 20 ? bytes : 4ull << 20) / 4096 * 4096;
}

static void bench_close(yk_cpu_bench *b)
{
    yk_pool_close(&b->pool);
    yk_arena_close(&b->weights);
    yk_free(b->x);
    yk_free(b->q8.q);
    yk_free(b->q8.scale);
    yk_free(b->q8.sum);
    yk_free((void *)b->owners);
    yk_free((void *)b->claims);
}

static yk_status bench_open(yk_cpu_bench *b, const yk_profile_opts *o, const yk_cpu_info *cpu, yk_error *err)
{
    const size_t n = (size_t)YK_PROFILE_TOKENS * YK_PROFILE_COLS;
    *b = (yk_cpu_bench){.ops = yk_ops_get(o->isa)};
    b->x = yk_alloc(YK_MEM_RUNTIME, n, sizeof *b->x);
    b->q8.n_blocks = YK_PROFILE_COLS / 32;
    b->q8.q = yk_alloc(YK_MEM_RUNTIME, n, 1);
    b->q8.scale = yk_alloc(YK_MEM_RUNTIME, n / 32, sizeof *b->q8.scale);
    b->q8.sum = yk_alloc(YK_MEM_RUNTIME, n / 16, sizeof *b->q8.sum);
    b->owners = yk_alloc(YK_MEM_RUNTIME, MAX_PASS_SLICES, sizeof *b->owners);
    b->claims = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *b->claims);
    if (!b->x || !b->q8.q || !b->q8.scale || !b->q8.sum || !b->owners || !b->claims)
        return yk_fail_memory(err, n * 6 + MAX_PASS_SLICES * sizeof *b->owners, "measuring the CPU");
    for (size_t i = 0; i < n; i++)
        b->x[i] = (float)((int)(i * 2654435761u >> 16 & 0xff) - 128) / 128;
    for (uint32_t t = 0; t < YK_PROFILE_TOKENS; t++)
        b->ops->quantise(b->x + (size_t)t * YK_PROFILE_COLS, YK_PROFILE_COLS, &b->q8, t);
    YK_TRY(yk_arena_open(&b->weights, YK_MEM_RUNTIME, weights_bytes(cpu), true, err));
    fill_weights(&b->weights);
    const yk_pool_opts po = {
        .n_workers = o->threads, .scratch_bytes = (size_t)SLICE_ROWS_MAX * YK_PROFILE_TOKENS * sizeof(float), .pin = true};
    return yk_pool_open(&b->pool, &po, err);
}

/* Bytes per second of a type's products with n tokens. */
static yk_status cpu_rate(yk_profile_run *r, yk_cpu_bench *b, yk_type type, uint32_t n_tokens, double *rate, yk_error *err)
{
    yk_samples s = {0};
    uint64_t bytes = 256 << 10, ns, done;
    YK_TRY(yk_cpu_bench_pass(b, type, n_tokens, bytes, &ns, &done, err)); /* warms the code */
    YK_TRY(yk_cpu_bench_pass(b, type, n_tokens, bytes, &ns, &done, err));
    bytes = (uint64_t)((double)done * (double)r->pass_ns / (double)(ns ? ns : 1));
    while (s.n < r->passes) {
        YK_TRY(yk_cpu_bench_pass(b, type, n_tokens, bytes, &ns, &done, err));
        s.v[s.n++] = (double)done * 1e9 / (double)(ns ? ns : 1);
    }
    *rate = yk_samples_median(&s, &r->m->noisy);
    return YK_OK;
}

static yk_status measure_cpu(yk_profile_run *r, yk_cpu_bench *b, yk_error *err)
{
    static const uint32_t tokens[3] = {1, 8, YK_PROFILE_TOKENS};
    yk_rates *rates = &r->m->rates;
    double best = 0;
    YK_TRY(yk_measure_read_rate(r->o->threads, r->o->quick ? 100 : 1000, &rates->read_bytes_per_s, err));
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
        if (!r->o->types[t] || !yk_type_get(t) || !b->ops->matmul[t])
            continue;
        double rate[3];
        for (int i = 0; i < 3; i++) {
            YK_TRY(yk_profile_tell(r, err));
            YK_TRY(cpu_rate(r, b, (yk_type)t, tokens[i], &rate[i], err));
        }
        best = rate[0] > best ? rate[0] : best;
        yk_profile_fill_buckets(rates->product[t], rate);
    }
    if (best > rates->read_bytes_per_s) /* products read memory too: the larger of both is what it gives */
        rates->read_bytes_per_s = best;
    yk_samples s = {0};
    uint64_t ns, done;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT && !s.n; t++)
        while (rates->product[t][0] > 0 && s.n < r->passes) { /* the smallest job, less what its bytes take */
            YK_TRY(yk_cpu_bench_pass(b, (yk_type)t, 1, 1, &ns, &done, err));
            const double rest = (double)ns - (double)done * 1e9 / rates->product[t][0];
            s.v[s.n++] = rest > 0 ? rest : 0;
        }
    bool ignored = false;
    rates->fixed_ns = yk_samples_median(&s, &ignored);
    return YK_OK;
}

/* ---- the machine ----------------------------------------------------------------------------------------------------------------------- */

static yk_status identify(yk_machine *m, const yk_profile_opts *o, yk_cpu_info *cpu, yk_error *err)
{
    *m = (yk_machine){.threads = o->threads};
    YK_TRY(yk_get_cpu_info(cpu, err));
    snprintf(m->cpu, sizeof m->cpu, "%s", cpu->name);
    snprintf(m->isa, sizeof m->isa, "%s", yk_isa_name(o->isa));
    snprintf(m->build, sizeof m->build, "yoke %s", yk_version());
    if (gethostname(m->host, sizeof m->host - 1) != 0)
        m->host[0] = 0;
    const time_t now = time(NULL);
    struct tm utc;
    if (gmtime_r(&now, &utc))
        strftime(m->time, sizeof m->time, "%Y-%m-%dT%H:%M:%SZ", &utc);
    m->memory_bytes = cpu->memory_bytes;
    return YK_OK;
}

static yk_status measure_devices(yk_profile_run *r, yk_cpu_bench *b, yk_error *err)
{
    yk_modules *modules;
    const yk_modules_opts mo = {.null_options = r->o->null_options};
    YK_TRY(yk_modules_load(&modules, &mo, err));
    yk_status st = YK_OK;
    for (uint32_t i = 0; i < r->o->n_devices && st == YK_OK; i++) {
        char backend[YK_DEVICE_NAME];
        snprintf(backend, sizeof backend, "%s", r->o->devices[i]);
        char *colon = strchr(backend, ':');
        const uint32_t index = colon ? (uint32_t)strtoul(colon + 1, NULL, 10) : 0;
        if (colon)
            *colon = 0;
        const yk_backend *found = yk_modules_find(modules, backend);
        if (!found || index >= found->n_devices)
            st = yk_fail(err, YK_ERR_USAGE, "device %s is not there; see yoke devices", r->o->devices[i]);
        else
            st = yk_profile_device(r, found, index, b, err);
    }
    yk_modules_close(&modules);
    return st;
}

yk_status yk_profile(yk_machine *out, const yk_profile_opts *o, yk_error *err)
{
    yk_cpu_info cpu;
    yk_cpu_bench b;
    uint32_t n_types = 0;
    YK_TRY(identify(out, o, &cpu, err));
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
        n_types += o->types[t];
    yk_profile_run r = {.o = o,
                        .m = out,
                        .total = n_types * 3 * (1 + o->n_devices) + 3 * o->n_devices,
                        .passes = o->quick ? 5 : YK_PROFILE_PASSES,
                        .pass_ns = o->quick ? 10000000 : 40000000};
    yk_status st = bench_open(&b, o, &cpu, err);
    if (st == YK_OK)
        st = measure_cpu(&r, &b, err);
    if (st == YK_OK && o->n_devices)
        st = measure_devices(&r, &b, err);
    bench_close(&b);
    if (o->progress && st == YK_OK)
        o->progress(o->progress_user, "measuring the machine", r.total, r.total);
    return st;
}
