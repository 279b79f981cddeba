/* The profiler against machines that are known: a modelled CPU, the null device with modelled time and contention; and this machine under load. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cpu/pack.h"
#include "gpu/kernels.h"
#include "profiler/profile.h"
#include "src/base/clock.h"
#include "src/base/file.h"

#define WITHIN 0.03

static void near(const char *what, double got, double want)
{
    printf("%-34s %12.5g, known %12.5g: %+.2f %%\n", what, got, want, 100 * (got / want - 1));
    if (!(fabs(got / want - 1) <= WITHIN))
        fail_msg("%s is %g, not within 3 %% of %g", what, got, want);
}

/* ---- a modelled CPU ---------------------------------------------------------------------------------------------------------------------- */

static const struct {
    yk_type type;
    double rate, knee; /* bytes/s up to knee tokens, then tokens make it slower */
} model_types[] = {{YK_TYPE_Q8_0, 20e9, 16}, {YK_TYPE_Q4_K, 15e9, 4}};
enum { N_MODEL_TYPES = sizeof model_types / sizeof *model_types };
#define MODEL_FIXED       5e3  /* ns of a product */
#define MODEL_READ        24e9 /* bytes/s of all threads */
#define MODEL_ATTENTION   7e9
#define MODEL_FLOPS       90e9
#define MODEL_NARROW      1.7 /* heads of 64 are slower by this */
#define MODEL_FEW         0.8 /* rate of a product with few tokens of a prompt, as a share of the one in a step of as many */
#define MODEL_DOWN        0.7 /* the rate of down as a share of rows' */
#define MODEL_DOWN_NARROW 0.5 /* with FFNs of two units */
#define MODEL_STAGE       2e3 /* ns */
#define MODEL_ROWS        3e9

typedef struct model {
    yk_profile_cpu lane;
    double wobble;            /* times are longer or shorter by up to this */
    uint32_t outliers;        /* one of so many takes several times as long; 0: none */
    double later;             /* factor on times once `late` passes are over */
    uint64_t passes, late, z; /* z: random */
    yk_type slow;             /* this type is slower by slow_by */
    double slow_by;
    /* a null device whose lane "host" is this CPU, while one is attached */
    const yk_device_table *t;
    yk_gpu *gpu;
    yk_gpu_stream *stream;
    yk_gpu_event *event[2];
    yk_gpu_kernel *kernel;
    uint32_t gate;
} model;

static double uniform(model *m)
{
    m->z = m->z * 6364136223846793005u + 1442695040888963407u;
    return (double)(m->z >> 11) * 0x1p-53;
}

static yk_status model_pass(model *m, double x, double ns, yk_pass *out)
{
    ns *= 1 + m->wobble * (2 * uniform(m) - 1);
    m->passes++;
    if (m->outliers && uniform(m) * m->outliers < 1)
        ns *= 1.3 + 5 * uniform(m);
    if (m->late && m->passes > m->late)
        ns *= m->later;
    *out = (yk_pass){.begin_ns = 1000000000, .end_ns = 1000000000 + (uint64_t)(ns + 0.5), .x = x};
    return YK_OK;
}

static double model_rate(yk_type type, uint32_t n)
{
    for (int i = 0; i < N_MODEL_TYPES; i++)
        if (model_types[i].type == type)
            return model_types[i].rate / fmax(1, n / model_types[i].knee);
    return 0;
}

static bool model_has(void *self, yk_type type)
{
    (void)self;
    return model_rate(type, 1) > 0;
}

static uint64_t model_unit(void *self, yk_type type)
{
    (void)self;
    return 3 * 256 / YK_TILE_ROWS * yk_panel_bytes(type, YK_PROFILE_COLS);
}

static yk_status model_read(void *self, uint32_t which, yk_pass *out, yk_error *err)
{
    (void)err;
    const yk_read_rate *w = &((model *)self)->lane.reads[which];
    const double rate = MODEL_READ / (w->threads == 1 ? 2 : 1) / (w->page_bytes == 4096 ? 1.25 : 1);
    return model_pass(self, 8e6, 8e6 / rate * 1e9, out);
}

/* On the device's "host" lane: what really passes there while copies go on. */
static yk_status device_pass(model *m, double bytes, yk_pass *out)
{
    const yk_gpu_launch l = {.kernel = m->kernel, .groups = {1, 1, 1}, .group_size = YK_K_GROUP, .cost_bytes = (uint64_t)bytes};
    yk_status st = m->t->box_wait(m->stream, 20, ++m->gate);
    st = st ? st : m->t->event_record(m->stream, m->event[0]);
    st = st ? st : m->t->launch(m->stream, &l);
    st = st ? st : m->t->event_record(m->stream, m->event[1]);
    st = st ? st : m->t->box_post(m->gpu, 20, m->gate);
    st = st ? st : m->t->stream_sync(m->stream);
    st = st ? st : m->t->event_time(m->event[0], &out->begin_ns);
    st = st ? st : m->t->event_time(m->event[1], &out->end_ns);
    out->x = bytes;
    return st;
}

static yk_status model_product(void *self, const yk_profile_work *w, uint64_t bytes, yk_pass *out, yk_error *err)
{
    (void)err;
    const double few = w->step_tokens == w->n_tokens ? 1 : MODEL_FEW,
                 down = w->down_units == 2 ? MODEL_DOWN_NARROW : MODEL_DOWN,
                 rate = model_rate(w->type, w->n_tokens) * few * (w->down_units ? down : 1);
    model *m = self;
    if (m->gpu)
        return device_pass(m, (double)bytes, out);
    const double slow = w->type == m->slow && m->slow_by > 0 ? m->slow_by : 1;
    return model_pass(m, (double)bytes, slow * (MODEL_FIXED + (double)bytes * 1e9 / rate), out);
}

static yk_status model_attention(void *self, uint32_t n, uint32_t depth, uint32_t dim, yk_pass *out, yk_error *err)
{
    (void)err;
    const double x = n == 1 ? depth * 32.0 * dim : 4.0 * n * depth * YK_PROFILE_HEADS * dim,
                 slow = dim == 64 ? MODEL_NARROW : 1;
    return model_pass(self, x, MODEL_FIXED + slow * x * 1e9 / (n == 1 ? MODEL_ATTENTION : MODEL_FLOPS), out);
}

static yk_status model_rows(void *self, uint32_t n, yk_pass *out, yk_error *err)
{
    (void)err;
    const double x = 4.0 * YK_PROFILE_ROW_STAGES * YK_PROFILE_COLS * n;
    return model_pass(self, x, n == 1 ? YK_PROFILE_ROW_STAGES * MODEL_STAGE : x * 1e9 / MODEL_ROWS, out);
}

static yk_status model_attach(void *self, const yk_device_table *t, yk_gpu *gpu)
{
    model *m = self;
    if (!gpu) {
        m->t->event_close(m->event[0]);
        m->t->event_close(m->event[1]);
        m->t->stream_close(m->stream);
        m->gpu = NULL;
        return YK_OK;
    }
    m->t = t;
    m->gpu = gpu;
    yk_status st = t->kernel_get(gpu, "host", &m->kernel);
    st = st ? st : t->stream_open(gpu, YK_STREAM_COMPUTE, &m->stream);
    for (int i = 0; i < 2; i++)
        st = st ? st : t->event_open(gpu, &m->event[i]);
    return st;
}

static void model_init(model *m)
{
    *m = (model){.z = 7, .wobble = 0.01, .outliers = 4};
    m->lane = (yk_profile_cpu){.self = m,
                               .n_reads = 3,
                               .reads = {{.threads = 2, .node = YK_ALL_NODES, .page_bytes = 2 << 20},
                                         {.threads = 1, .node = YK_ALL_NODES, .page_bytes = 2 << 20},
                                         {.threads = 2, .node = YK_ALL_NODES, .page_bytes = 4096}},
                               .read = model_read,
                               .has = model_has,
                               .unit_bytes = model_unit,
                               .product = model_product,
                               .attention = model_attention,
                               .rows = model_rows};
}

static yk_profile_opts options(const model *m, uint32_t ms)
{
    yk_profile_opts o = {.threads = 2, .quick = true, .ms = ms, .cpu = m ? &m->lane : NULL};
    for (int i = 0; i < N_MODEL_TYPES; i++)
        o.types[model_types[i].type] = o.few[model_types[i].type] = o.down[model_types[i].type] = true;
    o.narrow[YK_TYPE_Q8_0] = true;
    return o;
}

static void profile(yk_machine *m, const yk_profile_opts *o)
{
    yk_error err = {0};
    if (yk_profile(m, o, &err) != YK_OK)
        fail_msg("%s", err.text);
}

static void check_model(const yk_machine *m, bool quick)
{
    for (int k = 0; k < N_MODEL_TYPES; k++)
        for (uint32_t i = 0; i < YK_FIT_TOKENS; i++) {
            const yk_type t = model_types[k].type;
            const uint32_t n = yk_fit_tokens(i);
            const yk_fit *f = &m->rates.product_fit[t][i];
            char what[64];
            snprintf(what, sizeof what, "cpu %s, %u tokens", yk_type_get(t)->name, n);
            if (quick && n != 1 && n != 8 && n != 64 && n != 512)
                assert_true(f->per_s == 0);
            else
                near(what, f->per_s, model_rate(t, n));
            assert_true(f->spread >= 0 && f->spread < 0.1);
        }
    near("cpu fixed, ns", m->rates.fixed_ns + 1e5,
         MODEL_FIXED + 1e5); /* a twentieth of the smallest product: as a share of that */
    near("cpu read", m->rates.read_bytes_per_s, MODEL_READ);
    near("cpu read, one thread", m->reads[1].fit.per_s, MODEL_READ / 2);
    near("cpu read, small pages", m->reads[2].fit.per_s, MODEL_READ / 1.25);
    near("cpu attention", m->rates.attention_fit.per_s, MODEL_ATTENTION);
    near("cpu attention of a prompt", m->rates.attention_flops_per_s, MODEL_FLOPS);
    near("bucket 5-8 of Q4_K", m->rates.product[YK_TYPE_Q4_K][YK_B_8], model_rate(YK_TYPE_Q4_K, 8));
    near("prefill of Q8_0", m->rates.product[YK_TYPE_Q8_0][YK_B_PREFILL], 512 * model_rate(YK_TYPE_Q8_0, 512));
    near("attention, heads of 64", m->rates.head_kv_bytes_per_s[0], MODEL_ATTENTION / MODEL_NARROW);
    near("attention of a prompt, heads of 64", m->rates.head_flops_per_s[0], MODEL_FLOPS / MODEL_NARROW);
    near("attention, heads of 128", m->rates.head_kv_bytes_per_s[1], MODEL_ATTENTION);
    near("down of Q8_0, one token", m->rates.down[YK_TYPE_Q8_0][0], MODEL_DOWN * model_rate(YK_TYPE_Q8_0, 1));
    near("down of Q8_0, a prompt", m->rates.down[YK_TYPE_Q8_0][1], MODEL_DOWN * model_rate(YK_TYPE_Q8_0, 512));
    near("narrow down of Q8_0, one token", m->rates.down[YK_TYPE_Q8_0][2], MODEL_DOWN_NARROW * model_rate(YK_TYPE_Q8_0, 1));
    near("narrow down of Q8_0, a prompt", m->rates.down[YK_TYPE_Q8_0][3], MODEL_DOWN_NARROW * model_rate(YK_TYPE_Q8_0, 512));
    if (quick)
        assert_true(m->rates.down[YK_TYPE_Q4_K][2] == 0);
    near("a stage, ns", m->rates.stage_ns, MODEL_STAGE);
    near("rows", m->rates.row_bytes_per_s, MODEL_ROWS);
    for (uint32_t i = 0; i < YK_PROMPT_POINTS; i++) {
        const uint32_t n = yk_prompt_tokens(i);
        const double got = m->rates.prompt[YK_TYPE_Q4_K][i], rate = model_rate(YK_TYPE_Q4_K, n);
        if (n == 64)
            assert_true(got == 0);
        else
            near("Q4_K in a prompt", got, n < 512 ? MODEL_FEW * rate : rate);
    }
}

static void test_cpu_model(void **state)
{
    (void)state;
    model c;
    yk_machine m;
    for (int quick = 1; quick >= 0; quick--) {
        model_init(&c);
        yk_profile_opts o = options(&c, 1000);
        o.quick = quick;
        profile(&m, &o);
        check_model(&m, quick);
        if (m.noisy)
            fail_msg("noisy: %s", m.noisy_items);
    }
}

/* What does not settle is said by name. */
static void test_noisy(void **state)
{
    (void)state;
    model c;
    yk_machine m;
    model_init(&c);
    c.wobble = 0.3;
    const yk_profile_opts o = options(&c, 400);
    profile(&m, &o);
    assert_true(m.noisy && strstr(m.noisy_items, "cpu.Q8_0.1 ") && strstr(m.noisy_items, " %"));
    assert_true(m.rates.product_fit[YK_TYPE_Q8_0][0].spread > YK_FIT_SPREAD);
    model_init(&c); /* a machine that changes between the visits */
    profile(&m, &o);
    const uint64_t half = c.passes / 2;
    model_init(&c);
    c.late = half;
    c.later = 1.2;
    profile(&m, &o);
    assert_true(m.noisy);
    printf("did not settle: %s\n", m.noisy_items);
}

/* ---- lines ------------------------------------------------------------------------------------------------------------------------------- */

static void test_fit(void **state)
{
    (void)state;
    model c;
    yk_samples s = {0};
    yk_line l;
    model_init(&c);
    c.outliers = 3;
    for (int i = 0; i < 40; i++)
        for (int k = 0; k < 3; k++) {
            const double x = 1e6 * (1 << 2 * k);
            yk_pass p;
            model_pass(&c, x, 30e3 + x * 0.1, &p);
            yk_samples_add(&s, x, (double)(p.end_ns - p.begin_ns), i > 19);
        }
    yk_fit_line(&s, false, &l);
    near("a line's rate", l.per_s, 1e10);
    near("a line's fixed cost", l.ns, 30e3);
    assert_true(l.settled && l.n == 120 && l.kept < 100 && l.kept > 60 && l.interval < 0.01);
    near("a line's best decile", l.best_per_s, 16e6 / (30e3 + 16e5) * 1e9);
    yk_samples_add(&s, 16e6, 1.7e6, 1);
    for (int i = 0; i < 300; i++) /* more than there is room for: the oldest go, of both rounds */
        yk_samples_add(&s, 16e6, 1.8e6, 1);
    assert_int_equal(s.n, YK_FIT_SAMPLES);
    assert_int_equal(s.v[0].round, 0);
    s = (yk_samples){0}; /* a line that would begin below 0 */
    for (int i = 0; i < 6; i++) {
        yk_samples_add(&s, 1e6, 5e4, 0);
        yk_samples_add(&s, 2e6, 2e5, 0);
    }
    yk_fit_line(&s, false, &l);
    assert_true(l.ns == 0 && l.per_s > 1e13 * 0.9 / 1e3 && l.per_s < 2.1e13 && !l.settled);
    s = (yk_samples){
        0}; /* known to be undisturbed: slow times count as often as they come, stalls do not; nor do disturbed ones, however fast */
    for (int i = 0; i < 60; i++) {
        yk_samples_add_pass(&s, 1e6, i % 3 ? 1e5 : 1.7e5, i % 2, YK_COMPANY_NONE);
        yk_samples_add_pass(&s, 1e6, 1.1e5, i % 2, YK_COMPANY_OTHERS);
    }
    yk_samples_add_pass(&s, 1e6, 4e5, 1, YK_COMPANY_NONE);
    yk_fit_line(&s, true, &l);
    near("a bimodal rate", l.per_s, 1e15 / ((2 * 1e5 + 1.7e5) / 3));
    assert_int_equal(l.kept, 60);
    s = (yk_samples){0}; /* too few of them: the others count too, as if nothing were known */
    for (int i = 0; i < 20; i++)
        yk_samples_add_pass(&s, 1e6, i % 4 ? 1e5 : 1.7e5, i % 2, i < YK_FIT_LEAST - 1 ? YK_COMPANY_NONE : YK_COMPANY_OTHERS);
    yk_fit_line(&s, true, &l);
    near("a disturbed rate", l.per_s, 1e10);
    s = (yk_samples){0};
    yk_fit_line(&s, false, &l);
    assert_true(l.n == 0 && !l.settled && l.per_s == 0);
    near("slowdown", yk_slowdown(130, 100, 130), 1.3);
    near("slowdown for a part of the time", yk_slowdown(115, 100, 65), 1.3);
    assert_true(yk_slowdown(90, 100, 90) == 1 && yk_slowdown(200, 100, 10) == 1);
}

static void test_cpu_list(void **state)
{
    (void)state;
    uint32_t c[8];
    assert_int_equal(yk_cpu_list_parse("0-3,8,10-11\n", c, 8), 7);
    assert_true(c[3] == 3 && c[4] == 8 && c[6] == 11);
    assert_int_equal(yk_cpu_list_parse("\n", c, 8), 0);
    assert_int_equal(yk_cpu_list_parse("0-99", c, 8), 8);
    static const char *const bad[] = {"0-", "3-1", "1,", "a", "-1", "2,1", "0 1", "99999999999999999999", "1-2-3"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(yk_cpu_list_parse(bad[i], c, 8), UINT32_MAX);
}

/* ---- the null device ------------------------------------------------------------------------------------------------------------------- */

#define D      10.0
#define VRAM   100e9
#define FLOPS  10e12
#define LAUNCH 10e-6
#define COPY   20e-6
#define UP     10e9
#define DOWN   8e9
#define SIGNAL 40e-6
#define OPTIONS                                                                                                                \
    "time,d=10,vram=100e9,flops=10e12,launch=10e-6,copy=20e-6,up=10e9,down=8e9,page=2,signal=40e-6,host=200e9,hostfix=0.5e-6," \
    "up_host=1.3,host_up=1.6,gpu_up=1.2,up_down=1.4,down_up=1.25,mem=16e9"

/* Bytes/s of one more panel, as the device's clock counts its costs. */
static double device_rate(yk_type type, uint32_t n)
{
    double s[2];
    const uint64_t panel = yk_panel_bytes(type, YK_PROFILE_COLS);
    for (uint32_t i = 0; i < 2; i++) {
        yk_k_call c;
        const yk_k_matvec a = {.type = type,
                               .n = n,
                               .n_rows = YK_TILE_ROWS * (1000 + i),
                               .n_cols = YK_PROFILE_COLS,
                               .panel_bytes = (uint32_t)panel};
        yk_k_call_matvec(&c, NULL, &a);
        s[i] = fmax((double)c.launch.cost_bytes / VRAM, (double)c.launch.cost_flops / FLOPS);
    }
    return (double)panel / (s[1] - s[0]) / D;
}

static void check_device(const yk_machine_device *d)
{
    for (int k = 0; k < N_MODEL_TYPES; k++)
        for (uint32_t i = 0; i < YK_FIT_TOKENS; i++) {
            const yk_type t = model_types[k].type;
            const yk_fit *f = &d->rates.product_fit[t][i];
            char what[64];
            if (!(f->per_s > 0))
                continue;
            snprintf(what, sizeof what, "device %s, %u tokens", yk_type_get(t)->name, yk_fit_tokens(i));
            near(what, f->per_s, device_rate(t, yk_fit_tokens(i)));
            near("  fixed, ns", f->ns, LAUNCH * D * 1e9);
        }
    near("launch, ns", d->launch_ns, LAUNCH * D * 1e9);
    near("device attention", d->rates.attention_fit.per_s, VRAM / D);
    near("device attention of a prompt", d->rates.attention_flops_per_s, 16 * VRAM / D); /* tiles of 4 tokens */
    near("copy within, bytes read", d->copy_fit.per_s, VRAM / 2 / D);
    near("to device", d->to_device_bytes_per_s, UP / D);
    near("to device, ns", d->to_device_ns, COPY * D * 1e9);
    near("to host", d->to_host_bytes_per_s, DOWN / D);
    near("to host, ns", d->to_host_ns, COPY * D * 1e9);
    near("to device, pageable", d->link_fit[YK_LINK_PAGEABLE_TO_DEVICE].per_s, UP / 2 / D);
    near("to host, pageable", d->link_fit[YK_LINK_PAGEABLE_TO_HOST].per_s, DOWN / 2 / D);
    near("to device, both ways", d->both_to_device_bytes_per_s, UP / D / 1.4);
    near("to host, both ways", d->both_to_host_bytes_per_s, DOWN / D / 1.25);
    near("hand-off, ns", d->hand_off_ns, SIGNAL * D * 1e9);
    assert_true(d->hand_off_p99_ns >= d->hand_off_ns);
    near("copies beside the CPU", d->overlap_to_device_bytes_per_s, UP / D / 1.3);
    near("CPU beside copies", d->overlap_cpu_bytes_per_s, 20e9 / 1.6);
    near("device beside both", d->overlap_device_bytes_per_s, device_rate(YK_TYPE_Q4_K, 1) / 1.2);
}

static void test_null_device(void **state)
{
    (void)state;
    model c;
    yk_machine m, again;
    char *text;
    size_t n;
    yk_error err = {0};
    model_init(&c);
    c.lane.attach = model_attach;
    yk_profile_opts o = options(&c, 4000);
    o.n_devices = 1;
    strcpy(o.devices[0], "null:0");
    o.null_options = OPTIONS;
    /* The device's clock is real: where other programs keep its thread waiting, the profile has to say so, and is taken again. */
    for (int i = 0; i < 4 && (i == 0 || m.noisy); i++)
        profile(&m, &o);
    printf("noisy: %s\n", m.noisy ? m.noisy_items : "no");
    assert_int_equal(m.n_devices, 1);
    check_device(&m.devices[0]);
    /* All of it goes through the file. */
    assert_int_equal(yk_machine_write(&m, &text, &n, &err), YK_OK);
    if (yk_machine_read(&again, text, n, &err) != YK_OK)
        fail_msg("%s", err.text);
    yk_free(text);
    check_device(&again.devices[0]);
    check_model(&again, true);
    assert_string_equal(m.noisy_items, again.noisy_items);
}

/* ---- this machine ------------------------------------------------------------------------------------------------------------------------ */

typedef struct hogs {
    pthread_t thread[64];
    uint32_t n;
    _Atomic bool stop;
} hogs;

/* Computes and sleeps in turn, by random spans of up to 30 ms. */
static void *hog(void *arg)
{
    hogs *h = arg;
    unsigned seed = (unsigned)(uintptr_t)&seed >> 4;
    while (!atomic_load(&h->stop)) {
        const uint64_t end = yk_now_ns() + (uint64_t)(rand_r(&seed) % 30) * 1000000;
        while (yk_now_ns() < end)
            ;
        nanosleep(&(struct timespec){.tv_nsec = (long)(rand_r(&seed) % 10) * 1000000}, NULL);
    }
    return NULL;
}

static double best(const yk_machine *m, yk_type t, uint32_t i)
{
    return m->rates.product_fit[t][i].best_per_s;
}

/* Two profiles of a busy machine agree within 5 %, or say that they do not know. */
static void test_under_load(void **state)
{
    (void)state;
    static yk_machine m[2];
    yk_cpu_info info;
    hogs h = {0};
    assert_int_equal(yk_get_cpu_info(&info, NULL), YK_OK);
    yk_profile_opts o = options(NULL, 1500);
    o.isa = yk_isa_best();
    o.threads = info.n_cores < 16 ? info.n_cores : 16;
    for (; h.n < 2 * o.threads && pthread_create(&h.thread[h.n], NULL, hog, &h) == 0; h.n++)
        ;
    for (int i = 0; i < 2; i++)
        profile(&m[i], &o);
    atomic_store(&h.stop, true);
    for (uint32_t i = 0; i < h.n; i++)
        pthread_join(h.thread[i], NULL);
    for (int k = 0; k < N_MODEL_TYPES; k++)
        for (uint32_t i = 0; i < YK_FIT_TOKENS; i++) {
            const double a = best(&m[0], model_types[k].type, i), b = best(&m[1], model_types[k].type, i);
            if (!(a > 0))
                continue;
            printf("best decile of %s at %u tokens: %.3g and %.3g bytes/s, %+.1f %%\n", yk_type_get(model_types[k].type)->name,
                   yk_fit_tokens(i), a, b, 100 * (b / a - 1));
            if (fabs(b / a - 1) > 0.05 && !m[0].noisy && !m[1].noisy)
                fail_msg("the profiles differ and neither is marked noisy");
        }
    printf("first %s, second %s\n", m[0].noisy ? "noisy" : "settled", m[1].noisy ? "noisy" : "settled");
}

/* Products that sanitizers watch take ten times as long: the time of the quick mode is that of the program as it is shipped. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

/* The quick mode keeps its time, whatever the devices are: here the null device that really computes, which is slow. */
static void test_quick_time(void **state)
{
    (void)state;
    static yk_machine m;
    yk_profile_opts o = options(NULL, 0);
    o.types[YK_TYPE_F16] = true;
    o.isa = yk_isa_best();
    o.threads = 2;
    o.n_devices = 1;
    strcpy(o.devices[0], "null:0");
    o.null_options = "compute";
    const uint64_t begin = yk_now_ns();
    profile(&m, &o);
    const double s = (double)(yk_now_ns() - begin) / 1e9;
    printf("quick profile of CPU and null device: %.2f s\n", s);
    assert_true(m.n_devices == 1 && m.rates.product[YK_TYPE_F16][YK_B_PREFILL] > 0 && m.rates.attention_fit.per_s > 0);
    if (!SANITIZED && s > 4.5) /* 3 s on a machine that has nothing else to do */
        fail_msg("a quick profile took %.2f s", s);
}

/* ---- later ------------------------------------------------------------------------------------------------------------------------------- */

static void test_canary(void **state)
{
    (void)state;
    model c;
    yk_machine m;
    yk_error err = {0};
    char text[128];
    uint32_t n;
    model_init(&c);
    const yk_profile_opts o = options(&c, 300);
    profile(&m, &o);
    const yk_machine before = m;
    assert_int_equal(yk_profile_canary(&m, &o, &n, text, sizeof text, &err), YK_OK);
    assert_int_equal(n, 0);
    assert_string_equal(text, "");
    assert_memory_equal(&m.rates.product, &before.rates.product, sizeof m.rates.product);
    c.slow = YK_TYPE_Q4_K;
    c.slow_by = 1.4;
    assert_int_equal(yk_profile_canary(&m, &o, &n, text, sizeof text, &err), YK_OK);
    assert_int_equal(n, 1);
    printf("canary: %s\n", text);
    assert_non_null(strstr(text, "Q4_K -2"));
    for (int b = 0; b < YK_N_BUCKETS; b++) {
        near("Q4_K after the canary", m.rates.product[YK_TYPE_Q4_K][b], before.rates.product[YK_TYPE_Q4_K][b] / 1.4);
        assert_true(m.rates.product[YK_TYPE_Q8_0][b] == before.rates.product[YK_TYPE_Q8_0][b]);
    }
}

static bool cancel_later(void *user, const char *what, uint64_t done, uint64_t total)
{
    (void)what;
    assert_true(done <= total);
    uint32_t *left = user;
    return (*left)-- > 0;
}

/* A cancelled profile leaves the file of the last one as it was. */
static void test_cancel(void **state)
{
    (void)state;
    char folder[] = "profile-XXXXXX", path[4096], *before, *after;
    size_t n_before, n_after, n;
    yk_error err = {0};
    yk_machine *m = NULL, *none = NULL;
    yk_machine_opts o;
    uint32_t left = UINT32_MAX;
    char cwd[2048], cache[3000];
    assert_non_null(mkdtemp(folder));
    assert_non_null(getcwd(cwd, sizeof cwd));
    snprintf(cache, sizeof cache, "%s/%s", cwd, folder);
    setenv("XDG_CACHE_HOME", cache, 1);
    yk_machine_opts_init(&o);
    o.device = "cpu";
    o.progress = cancel_later;
    o.progress_user = &left;
    if (yk_machine_profile(&m, &o, &err) != YK_OK || yk_machine_save(m, NULL, &err) != YK_OK ||
        yk_machine_cache_path(m, path, sizeof path, &n, &err) != YK_OK)
        fail_msg("%s", err.text);
    assert_int_equal(yk_read_file(&before, &n_before, path, 1 << 20, &err), YK_OK);
    for (left = 0; left < 40; left = left * 3 + 1) {
        uint32_t now = left;
        o.progress_user = &now;
        assert_int_equal(yk_machine_profile(&none, &o, &err), YK_ERR_CANCELLED);
        assert_null(none);
        assert_int_equal(yk_read_file(&after, &n_after, path, 1 << 20, &err), YK_OK);
        assert_int_equal(n_before, n_after);
        assert_memory_equal(before, after, n_after);
        yk_free(after);
    }
    yk_free(before);
    yk_machine_close(&m);
    unlink(path);
    snprintf(path, sizeof path, "%s/yoke", folder);
    rmdir(path);
    assert_int_equal(rmdir(folder), 0); /* nothing else was left there */
}

/* Keys of the profiler in a machine file that are wrong: one line with the key. */
static void test_bad_files(void **state)
{
    (void)state;
    static const struct {
        const char *cpu, *device, *link, *want;
    } rows[] = {
        {"", "", "", NULL},
        {", \"reads\": [{\"threads\": 1, \"page_bytes\": 4096}]", "", "", "machine.cpu.reads[0].bytes_per_s: is missing"},
        {", \"reads\": [{\"threads\": 0}]", "", "", "machine.cpu.reads[0].threads: 0 is out of range"},
        {", \"reads\": 1", "", "", "machine.cpu.reads: must be"},
        {", \"prompt_bytes_per_s\": {\"Q4_0\": {\"64\": 0}}", "", "",
         "machine.cpu.prompt_bytes_per_s.Q4_0.64: 0 is out of range"},
        {", \"attention_by_head\": {\"64\": {\"flops_per_s\": 1e9}}", "", "",
         "machine.cpu.attention_by_head.64.kv_bytes_per_s: is missing"},
        {", \"stage_ns\": -1", "", "", "machine.cpu.stage_ns: -1 is out of range"},
        {", \"row_bytes_per_s\": \"x\"", "", "", "machine.cpu.row_bytes_per_s: must be a number"},
        {", \"product_fits\": {\"Q4_0\": {\"64\": {\"bytes_per_s\": -1}}}", "", "",
         "machine.cpu.product_fits.Q4_0.64.bytes_per_s: -1"},
        {", \"product_fits\": {\"Q4_0\": {\"64\": {\"ns\": 1}}}", "", "",
         "machine.cpu.product_fits.Q4_0.64.bytes_per_s: is missing"},
        {", \"attention_fit\": {\"bytes_per_s\": 1e9, \"spread\": -2}", "", "", "machine.cpu.attention_fit.spread: -2"},
        {"", ", \"hand_off_p99_ns\": -1", "", "machine.devices[0].hand_off_p99_ns: -1"},
        {"", ", \"copy_fit\": {\"bytes_per_s\": 1e99}", "", "machine.devices[0].copy_fit.bytes_per_s: 1e+99"},
        {"", "", ", \"both_to_device_bytes_per_s\": 9e9",
         "machine.devices[0].link.both_to_device_bytes_per_s: 9e+09 is faster"},
        {"", "", ", \"fits\": {\"to_host\": {\"bytes_per_s\": \"x\"}}",
         "machine.devices[0].link.fits.to_host.bytes_per_s: must be"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[2048];
        yk_machine m;
        yk_error err = {0};
        snprintf(
            text, sizeof text,
            "{\"format\": 1, \"cpu\": {\"threads\": 2, \"memory_bytes\": 1000000, \"read_bytes_per_s\": 1e10,"
            "\"product_bytes_per_s\": {\"Q4_0\": {\"1\": 8e9}}%s}, \"devices\": [{\"name\": \"cuda:0\", \"backend\": \"cuda\","
            "\"memory_bytes\": 1000000, \"product_bytes_per_s\": {\"Q4_0\": {\"1\": 8e10}}, \"link\": "
            "{\"to_device_bytes_per_s\": 5e9%s}%s}]}",
            rows[i].cpu, rows[i].link, rows[i].device);
        const yk_status st = yk_machine_read(&m, text, strlen(text), &err);
        if (!rows[i].want && st != YK_OK)
            fail_msg("%s", err.text);
        if (rows[i].want && (st != YK_ERR_INPUT || !strstr(err.text, rows[i].want) || strchr(err.text, '\n')))
            fail_msg("\"%s\" instead of \"%s\"", err.text, rows[i].want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fit),        cmocka_unit_test(test_cpu_list),    cmocka_unit_test(test_cpu_model),
        cmocka_unit_test(test_noisy),      cmocka_unit_test(test_null_device), cmocka_unit_test(test_canary),
        cmocka_unit_test(test_cancel),     cmocka_unit_test(test_bad_files),   cmocka_unit_test(test_quick_time),
        cmocka_unit_test(test_under_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
