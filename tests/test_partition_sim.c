/* Shelf, routing traces, simulator, alternatives and pictures. Figures are printed; every speed is modelled. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "partition/alternatives.h"
#include "partition/events.h"
#include "partition/svg.h"
#include "partition_util.h"

static const char *const machines[] = {"rtx-3060-ddr4",    "rtx-3060ti-pcie3x4", "rtx-4060-laptop",  "rtx-3090-desktop",
                                       "rtx-4090-desktop", "rtx-5090-desktop",   "rtx-5090-server",  "t4-server",
                                       "epyc-8ch-3090",    "xeon-amx-4090",      "intel-integrated", "ddr4-cpu-only"};
static const char *const shapes[] = {"mixtral-8x7b",    "llama2-13b", "llama2-70b",  "qwen3-30b-a3b",
                                     "qwen3-235b-a22b", "phi3.5-moe", "gpt-oss-120b"};
enum { N_MACHINES = sizeof machines / sizeof *machines, N_SHAPES = sizeof shapes / sizeof *shapes };

static yk_machine machine; /* large */

/* Weights of the published models in units of 1e9, head and embedding included. */
static const double parameters[N_SHAPES] = {46.7, 13.0, 69.0, 30.5, 235.1, 41.9, 116.8};

static void check_shelf(void **state)
{
    (void)state;
    yk_error err = {0};
    for (int i = 0; i < N_MACHINES; i++) {
        yk_machine *again = malloc(sizeof *again);
        char *text;
        size_t n;
        assert_non_null(again);
        yk_pt_machine(&machine, machines[i]);
        assert_string_equal(machine.host, machines[i]);
        if (!strstr(machine.source, "Synthetic") || strlen(machine.source) < 60)
            fail_msg("%s does not say where its figures come from", machines[i]);
        assert_int_equal(machine.n_devices, strcmp(machines[i], "ddr4-cpu-only") != 0);
        assert_int_equal(yk_machine_write(&machine, &text, &n, &err), YK_OK);
        if (yk_machine_read(again, text, n, &err) != YK_OK)
            fail_msg("%s: %s", machines[i], err.text);
        assert_memory_equal(&machine.rates, &again->rates, sizeof machine.rates);
        yk_free(text);
        free(again);
    }
    for (int k = 0; k < N_SHAPES; k++) {
        yk_shape s;
        yk_pt_shape(&s, shapes[k], "F16");
        double bytes = (double)s.embd.bytes + (double)s.head.bytes;
        for (uint32_t l = 0; l < s.n_layers; l++) /* routers, norms and biases are F32 */
            bytes += (double)yk_shape_ffn_bytes(&s.layers[l]) + (double)yk_shape_attn_bytes(&s.layers[l]) -
                     (double)(s.layers[l].router.bytes + s.layers[l].other_bytes) / 2;
        if (!(fabs(bytes / 2e9 / parameters[k] - 1) < 0.01))
            fail_msg("%s has %.1f G parameters instead of %.1f", shapes[k], bytes / 2e9, parameters[k]);
        yk_shape_close(&s);
    }
}

/* ---- routing ---- */

static void check_recorded_routing(void **state)
{
    (void)state;
    const char *fixtures = getenv("YOKE_FIXTURES");
    static const double reuse[] = {0.2453, 0.2486, 0.295, 0.3617}; /* of the whole text, as its file says */
    char path[4096];
    yk_routing r;
    yk_error err = {0};
    snprintf(path, sizeof path, "%s/yoke-tiny-mixtral/routing.json", fixtures ? fixtures : "");
    FILE *f = fopen(path, "rb");
    if (!f) {
        printf("skipped: %s is not there (YOKE_FIXTURES)\n", path);
        skip();
    }
    static char text[1 << 16];
    const size_t n = fread(text, 1, sizeof text, f);
    fclose(f);
    if (yk_routing_read(&r, text, n, &err) != YK_OK)
        fail_msg("%s", err.text);
    assert_int_equal(r.n_tokens, 2000);
    assert_int_equal(r.n_layers, 4);
    assert_int_equal(r.n_experts, 8);
    assert_int_equal(r.n_used, 2);
    double mean = 0;
    for (int l = 0; l < 4; l++)
        mean += reuse[l] / 4;
    const double got = yk_routing_reuse(&r);
    printf("recorded trace: %.3f of the experts come again, %.3f in the whole text, 0.250 by chance\n", got, mean);
    assert_true(fabs(got - mean) < 0.02);
    yk_routing_close(&r);
}

static void check_bad_routing(void **state)
{
    (void)state;
    static const struct {
        const char *text, *want;
    } rows[] = {
        {"{\"layers\": 1, \"experts\": 8, \"used\": 2}", "routing.trace: is missing"},
        {"{\"layers\": 2, \"experts\": 8, \"used\": 2, \"trace\": [\"0123\"]}", "routing.trace: has 1 layers"},
        {"{\"layers\": 2, \"experts\": 8, \"used\": 2, \"trace\": [\"0123\", \"01\"]}", "routing.trace[1]: has 2 digits"},
        {"{\"layers\": 1, \"experts\": 8, \"used\": 2, \"trace\": [\"012\"]}", "routing.trace[0]: 3 digits"},
        {"{\"layers\": 1, \"experts\": 8, \"used\": 2, \"trace\": [\"0129\"]}", "routing.trace[0]: token 1: '9'"},
        {"{\"layers\": 1, \"experts\": 8, \"used\": 2, \"trace\": [\"0133\"]}", "routing.trace[0]: token 1: '3'"},
        {"{\"layers\": 1, \"experts\": 11, \"used\": 2, \"trace\": [\"0133\"]}", "routing.experts: 11"},
        {"{\"layers\": 0, \"experts\": 8, \"used\": 2, \"trace\": []}", "routing.layers: 0"},
        {"[", "routing: line"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        yk_routing r;
        yk_error err = {0};
        const yk_status st = yk_routing_read(&r, rows[i].text, strlen(rows[i].text), &err);
        if (st != YK_ERR_INPUT || !strstr(err.text, rows[i].want))
            fail_msg("%s: status %d, \"%s\" instead of \"%s\"", rows[i].text, st, err.text, rows[i].want);
        assert_null(r.pick);
    }
}

static void draw(yk_routing *r, uint32_t tokens, uint32_t layers, uint32_t experts, uint32_t used, double zipf, double reuse)
{
    yk_error err = {0};
    const yk_routing_draw d = {
        .seed = 7, .n_tokens = tokens, .n_layers = layers, .n_experts = experts, .n_used = used, .zipf = zipf, .reuse = reuse};
    if (yk_routing_make(r, &d, &err) != YK_OK)
        fail_msg("%s", err.text);
}

/* Share of all choices that go to the most chosen tenth of the experts of layer 0. */
static double top_share(const yk_routing *r)
{
    uint32_t count[128] = {0}, top = 0;
    for (uint32_t t = 0; t < r->n_tokens; t++)
        for (uint32_t i = 0; i < r->n_used; i++)
            count[yk_routing_at(r, t, 0)[i]]++;
    for (uint32_t k = 0; k < r->n_experts / 10; k++) {
        uint32_t best = 0;
        for (uint32_t e = 1; e < r->n_experts; e++)
            best = count[e] > count[best] ? e : best;
        top += count[best];
        count[best] = 0;
    }
    return (double)top / ((double)r->n_tokens * r->n_used);
}

static void check_drawn_routing(void **state)
{
    (void)state;
    yk_routing even, skewed, sticky, again;
    draw(&even, 2000, 4, 64, 8, 0, 0);
    draw(&again, 2000, 4, 64, 8, 0, 0);
    draw(&skewed, 2000, 4, 64, 8, 1, 0);
    draw(&sticky, 2000, 4, 64, 8, 0, 0.6);
    assert_memory_equal(even.pick, again.pick, 2000 * 4 * 8 * sizeof *even.pick);
    assert_true(fabs(yk_routing_reuse(&even) - 0.125) < 0.01);
    /* Kept with 0.6, else one of 64 of which 8 x 0.6 are taken: 0.6 + 0.4 x (share of the old ones among the free). */
    assert_true(yk_routing_reuse(&sticky) > 0.6 && yk_routing_reuse(&sticky) < 0.66);
    assert_true(top_share(&even) < 0.12);
    assert_true(top_share(&skewed) > 0.3);
    for (uint32_t t = 0; t < sticky.n_tokens; t++)
        for (uint32_t i = 0; i < 8; i++)
            for (uint32_t k = 0; k < i; k++)
                assert_true(yk_routing_at(&sticky, t, 2)[i] != yk_routing_at(&sticky, t, 2)[k]);
    yk_routing steep; /* the rarest ranks are practically never drawn: it must end all the same */
    draw(&steep, 8, 1, 128, 128, 8, 0);
    yk_error err = {0};
    yk_routing_close(&again);
    const yk_routing_draw wrong = {.n_tokens = 1, .n_layers = 1, .n_experts = 2, .n_used = 3};
    assert_int_equal(yk_routing_make(&again, &wrong, &err), YK_ERR_USAGE);
    yk_routing_close(&even);
    yk_routing_close(&skewed);
    yk_routing_close(&sticky);
    yk_routing_close(&steep);
}

/* ---- events ---- */

/* CPU and link beside each other: a pair that was measured, and one that was not. */
static void check_pair(void **state)
{
    (void)state;
    static const struct {
        yk_pair pair;
        double cpu, link, want_cpu, want_link; /* bytes/s alone and together */
    } rows[] = {
        {{.memory = 60}, 50, 40, 30, 30},              /* both want more than half */
        {{.memory = 60}, 60, 20, 40, 20},              /* the link is content with less, and the CPU has the rest */
        {{.memory = 60}, 45, 20, 35, 20},              /* a CPU that cannot use all of it loses half a byte by each of a copy */
        {{.memory = 60}, 90, 15, 45, 15},              /* more than there is */
        {{.memory = 60}, 10, 55, 10, 50},              /* the other way round */
        {{.memory = 60}, 30, 20, 30, 20},              /* there is enough */
        {{.memory = 0}, 50, 40, 50, 40},               /* they do not meet */
        {{.cpu = 25, .link_slow = 2}, 50, 40, 25, 20}, /* measured */
        {{.cpu = 25, .link_slow = 2}, 12.5, 30, 12.5, 20}, /* half of what was measured slows the link half as much */
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        double cpu = -1, link = -1;
        yk_pair_speeds(&rows[i].pair, rows[i].cpu, rows[i].link, &cpu, &link);
        if (!(fabs(cpu * rows[i].cpu - rows[i].want_cpu) < 1e-9 && fabs(link * rows[i].link - rows[i].want_link) < 1e-9))
            fail_msg("row %zu: CPU %g, link %g", i, cpu * rows[i].cpu, link * rows[i].link);
    }
    /* Not measured: what copies cost the CPU is as much for each byte at any speed of the link, so a faster one never makes a
     * plan slower. */
    for (double cpu = 5; cpu < 100; cpu += 5)
        for (double slow = 2; slow < 60; slow *= 1.3) {
            const yk_pair p = {.memory = 60};
            double a, b, c, d;
            yk_pair_speeds(&p, cpu, slow, &a, &b);
            yk_pair_speeds(&p, cpu, slow * 1.3, &c, &d);
            assert_true(cpu > 60 || fabs((1 - a) / (b * slow) - (1 - c) / (d * slow * 1.3)) < 1e-9);
            assert_true(d * slow * 1.3 >= b * slow - 1e-9 && a * cpu + b * slow <= 60 + 1e-9);
        }
    /* The pair that is published: the rule is not far from it where the file has not told. */
    yk_machine m;
    double cpu, link;
    yk_pt_machine(&m, "epyc-8ch-3090");
    const yk_machine_device *d = &m.devices[0];
    const double alone = m.rates.product[YK_TYPE_F16][YK_B_1];
    yk_pair_speeds(&(yk_pair){.memory = m.rates.read_bytes_per_s}, alone, d->to_device_bytes_per_s, &cpu, &link);
    assert_true(fabs(cpu * alone / d->overlap_cpu_bytes_per_s - 1) < 0.05);
    assert_true(fabs(link * d->to_device_bytes_per_s / d->overlap_to_device_bytes_per_s - 1) < 0.05);
}

static void check_events(void **state)
{
    (void)state;
    yk_events ev;
    yk_error err = {0};
    yk_events_open(&ev);
    ev.pair = (yk_pair){.cpu = 25, .link_slow = 2};
    /* CPU 4 s reading 50/s, copy 1 s from the start. Together: CPU at 1/2, copy at 1/2: the copy ends at 2, the CPU has done 1 of 4
     * and ends at 5. Rows of 1 s after it hold up the second copy. */
    const uint32_t none[YK_EV_DEPS] = {0};
    const uint32_t cpu = yk_events_add(&ev, YK_EV_CPU, 4, 50, none), copy = yk_events_add(&ev, YK_EV_UP, 1, 10, none);
    const uint32_t rows = yk_events_add(&ev, YK_EV_ROWS, 1, 0, (const uint32_t[YK_EV_DEPS]){cpu});
    const uint32_t second = yk_events_add(&ev, YK_EV_UP, 2, 10, (const uint32_t[YK_EV_DEPS]){cpu, copy});
    assert_int_equal(yk_events_run(&ev, second, &err), YK_OK);
    assert_true(fabs(ev.task[copy].end - 2) < 1e-9 && fabs(ev.task[cpu].end - 5) < 1e-9);
    assert_true(fabs(ev.task[rows].end - 6) < 1e-9 && fabs(ev.task[second].end - 8) < 1e-9);
    assert_true(fabs(ev.busy[YK_EV_UP] - 4) < 1e-9);
    /* A shared memory of 60: CPU 40 and device 40 run at 3/4. */
    ev.shared_read = 60;
    const uint32_t a = yk_events_add(&ev, YK_EV_CPU, 3, 40, none), b = yk_events_add(&ev, YK_EV_GPU, 3, 40, none);
    assert_int_equal(yk_events_run(&ev, a, &err), YK_OK);
    assert_true(fabs(ev.task[a].end - 12) < 1e-9 && fabs(ev.task[b].end - 12) < 1e-9);
    /* Two tasks that wait for each other by their lane's order. */
    const uint32_t last = yk_events_add(&ev, YK_EV_GPU, 1, 0, (const uint32_t[YK_EV_DEPS]){ev.n + 1});
    const uint32_t behind = yk_events_add(&ev, YK_EV_GPU, 1, 0, none);
    assert_int_equal(behind, last + 1);
    assert_int_equal(yk_events_run(&ev, last, &err), YK_ERR_RUNTIME);
    yk_events_close(&ev);
}

/* End of a CPU's work of 16 slices, 1 s each at 50 bytes/s alone, beside 220 bytes that a link copies in `pieces`. paced: a piece
 * begins when the CPU has ended as large a share of its slices. */
static double end_beside(double link, uint32_t pieces, bool paced)
{
    enum { SLICES = 16, BYTES = 220 };
    const uint32_t none[YK_EV_DEPS] = {0};
    yk_events ev;
    yk_error err = {0};
    uint32_t slice[SLICES], copy = 0;
    yk_events_open(&ev);
    ev.pair = (yk_pair){.memory = 60};
    for (int i = 0; i < SLICES; i++)
        slice[i] = yk_events_add(&ev, YK_EV_CPU, 1, 50, none);
    for (uint32_t i = 0; i < pieces; i++)
        copy = yk_events_add(&ev, YK_EV_UP, BYTES / link / pieces, link,
                             (const uint32_t[YK_EV_DEPS]){paced && i ? slice[i * SLICES / pieces - 1] : 0});
    assert_int_equal(yk_events_run(&ev, slice[SLICES - 1], &err), YK_OK);
    const double end = ev.task[slice[SLICES - 1]].end;
    assert_true(ev.task[copy].end >= 0 && ev.task[copy].end <= end); /* all of it was copied meanwhile */
    yk_events_close(&ev);
    return end;
}

/* Where the pair is not measured, a faster link costs the CPU nothing more, and copies that wait for it give nothing back. */
static void check_pace(void **state)
{
    (void)state;
    const double whole = end_beside(55, 1, false);
    assert_true(whole > 16 && fabs(end_beside(20, 1, false) / whole - 1) < 1e-9);
    for (uint32_t pieces = 2; pieces <= 16; pieces *= 2)
        assert_true(fabs(end_beside(55, pieces, true) / whole - 1) < 1e-9);
}

/* ---- simulator ---- */

static void solve(yk_plan *p, const yk_shape *s, const yk_plan_limits *l)
{
    yk_error err = {0};
    if (yk_plan_solve(p, &machine, s, l, &err) != YK_OK)
        fail_msg("%s", err.text);
}

static yk_sim_result simulate(const yk_shape *s, const yk_plan *p, const yk_step_kind *step, yk_sim_opts o)
{
    yk_sim_result r;
    yk_error err = {0};
    if (yk_simulate(&r, &machine, p->n_devices ? 0 : -1, s, p, step, &o, &err) != YK_OK)
        fail_msg("%s", err.text);
    return r;
}

/* What makes a step hard to sum up (docs/SIMULATOR.md); NONE: nothing of these. */
enum cause { NONE, SHARED_MEMORY, TURNS, ATTN_COPIED, HOST_COPIES, ROUTING_SPREAD, SMALL_COPIES, BUCKET_EDGE, N_CAUSES };
static const struct {
    const char *name;
    double median, worst; /* ceilings: they only go down */
} causes[N_CAUSES] = {{"none of these", 0.01, 0.04},
                      {"a memory that CPU and device share", 0.01, 0.03},
                      {"copies, attention here and there in turns", 0.01, 0.09},
                      {"prefill: attention is copied", 0.01, 0.03},
                      {"copies beside attention on the host", 0.01, 0.02},
                      {"decode: some experts are copied", 0.01, 0.04},
                      {"prefill: copies expert by expert", 0.01, 0.02},
                      {"prefill: experts, none copied", 0.01, 0.01}};

static enum cause cause_of(const yk_plan *p, const yk_step_kind *step)
{
    bool copies = false, experts = false, expert_copies = false, host = false, attn = false;
    uint32_t turns = 0; /* a layer is priced as if its neighbours were like it */
    for (uint32_t l = 0; l < p->n_layers; l++) {
        const yk_attn place = yk_cost_attn_of(&p->layers[l], step);
        turns += l && place != yk_cost_attn_of(&p->layers[l - 1], step);
        host = host || place == YK_ATTN_HOST;
        attn = attn || place == YK_ATTN_COPIED;
        for (uint32_t i = 0; i < p->layers[l].n_slices; i++) {
            const yk_slice *sl = &p->layers[l].slices[i];
            const yk_kind kind = yk_slice_kind(sl, step->prefill, step->n);
            copies = copies || kind == YK_KIND_CG;
            experts = experts || sl->group == YK_PART_EXP;
            expert_copies = expert_copies || (kind == YK_KIND_CG && sl->group == YK_PART_EXP);
        }
    }
    if (p->n_devices && machine.devices[0].shared_memory)
        return SHARED_MEMORY;
    if ((copies || attn) && 8 * turns > p->n_layers)
        return TURNS;
    if (attn)
        return ATTN_COPIED;
    if (copies && host)
        return HOST_COPIES;
    if (expert_copies)
        return step->prefill ? SMALL_COPIES : ROUTING_SPREAD;
    return experts && step->prefill ? BUCKET_EDGE : NONE;
}

typedef struct differences {
    double off[N_CAUSES][6 * N_MACHINES * N_SHAPES];
    uint32_t n[N_CAUSES];
} differences;

/* Decode of 1 and of 8, prefill of 512. */
static void compare_plan(differences *d, const yk_plan *p, const yk_shape *s, const yk_routing *r)
{
    yk_cost cost;
    yk_cost_init(&cost, &machine, p->n_devices ? 0 : -1, s);
    for (int x = 0; x < 3; x++) {
        const yk_step_kind step = {.prefill = x == 2,
                                   .n = x == 0   ? 1
                                        : x == 1 ? 8
                                                 : 512,
                                   .depth = x == 2 ? 0 : 2048,
                                   .kv_elem_bytes = 2};
        const yk_sim_opts o = {.routing = r->pick ? r : NULL, .steps = x == 2 ? 1 : 12};
        const double formula = yk_cost_plan(&cost, p, &step, NULL), sim = simulate(s, p, &step, o).seconds;
        const enum cause c = cause_of(p, &step);
        d->off[c][d->n[c]++] = fabs(formula / sim - 1);
        if (fabs(formula / sim - 1) > 0.05)
            printf("  %s, %s, %s of %u: formula %.4g ms, simulated %.4g ms\n", machine.host, s->name,
                   step.prefill ? "prefill" : "decode", step.n, 1e3 * formula, 1e3 * sim);
    }
}

static int by_value(const void *pa, const void *pb)
{
    const double *a = pa, *b = pb;
    return *a < *b ? -1 : *a > *b;
}

/* The formula against the simulator on the shelf, with even routing: the solver's plans, and the same without copies of experts in
 * decode. */
static void check_cost_model(void **state)
{
    (void)state;
    static differences d;
    static double all[6 * N_MACHINES * N_SHAPES];
    uint32_t n = 0;
    for (int k = 0; k < N_SHAPES; k++) {
        yk_shape s;
        yk_routing r;
        yk_error err = {0};
        yk_pt_shape(&s, shapes[k], NULL);
        assert_int_equal(yk_alt_routing(&r, &s, &err), YK_OK);
        for (int i = 0; i < N_MACHINES; i++) {
            yk_plan p;
            yk_pt_machine(&machine, machines[i]);
            const yk_plan_limits l = yk_pt_limits(&machine, 8ull << 30);
            solve(&p, &s, &l);
            compare_plan(&d, &p, &s, &r);
            for (uint32_t y = 0; y < p.n_layers && s.n_experts; y++)
                for (uint32_t z = 0; z < p.layers[y].n_slices; z++)
                    for (int b = 0; b < YK_B_PREFILL; b++)
                        if (p.layers[y].slices[z].kind[b] == YK_KIND_CG)
                            p.layers[y].slices[z].kind[b] = YK_KIND_CC;
            if (s.n_experts)
                compare_plan(&d, &p, &s, &r);
            yk_plan_clear(&p);
        }
        yk_routing_close(&r);
        yk_shape_close(&s);
    }
    printf("formula against simulator, modelled        cells  median   worst\n");
    for (int c = 0; c < N_CAUSES; c++) {
        qsort(d.off[c], d.n[c], sizeof **d.off, by_value);
        memcpy(all + n, d.off[c], d.n[c] * sizeof *all);
        n += d.n[c];
        if (d.n[c])
            printf("  %-40s %5u %5.1f %% %5.1f %%\n", causes[c].name, d.n[c], 100 * d.off[c][d.n[c] / 2],
                   100 * d.off[c][d.n[c] - 1]);
    }
    qsort(all, n, sizeof *all, by_value);
    printf("  %-40s %5u %5.1f %% %5.1f %%\n", "all", n, 100 * all[n / 2], 100 * all[n - 1]);
    assert_true(all[n / 2] <= 0.01);
    assert_true(d.n[NONE] >= 60);
    for (int c = 0; c < N_CAUSES; c++)
        if (d.n[c] && (d.off[c][d.n[c] / 2] > causes[c].median || d.off[c][d.n[c] - 1] > causes[c].worst))
            fail_msg("%s: median %.3f, worst %.3f", causes[c].name, d.off[c][d.n[c] / 2], d.off[c][d.n[c] - 1]);
}

/* The example of docs/PLANNER.md: one dense layer, half of it resident, no latencies. */
static void check_by_hand(void **state)
{
    (void)state;
    const yk_mix *mix = yk_mix_find("F16");
    const yk_shape_dims d = {.name = "hand",
                             .n_layers = 1,
                             .n_embd = 4096,
                             .n_heads = 32,
                             .n_kv_heads = 32,
                             .head_dim = 128,
                             .n_vocab = 4096,
                             .n_ctx_train = 4096,
                             .n_ff = 16384};
    const yk_step_kind step = {.n = 1, .depth = 0, .kv_elem_bytes = 2};
    yk_shape s;
    yk_plan p;
    yk_error err = {0};
    machine = (yk_machine){.threads = 1, .memory_bytes = 1ull << 36, .n_devices = 1};
    yk_machine_device *g = &machine.devices[0];
    machine.rates.read_bytes_per_s = machine.rates.product[YK_TYPE_F16][YK_B_1] = 4e10;
    strcpy(g->name, "null:0");
    g->rates.product[YK_TYPE_F16][YK_B_1] = 4e11;
    g->rates.read_bytes_per_s = 4e11;
    g->to_device_bytes_per_s = g->to_host_bytes_per_s = 1e10;
    assert_int_equal(yk_shape_from_dims(&s, &d, mix, NULL, &err), YK_OK);
    assert_int_equal(yk_plan_init(&p, 1, &err), YK_OK);
    yk_plan_device(&p, "null:0");
    p.head_home = p.layers[0].attn_home = 0;
    yk_slice sl = {.home = 0, .units = 32};
    assert_int_equal(yk_plan_add(&p, 0, &sl, &err), YK_OK);
    sl = (yk_slice){.home = YK_HOST, .unit0 = 32, .units = 32};
    memset(sl.kind, YK_KIND_CC, sizeof sl.kind);
    assert_int_equal(yk_plan_add(&p, 0, &sl, &err), YK_OK);
    const double rows = 4.0 * 4096 / 1e10, attn = 4.0 * 4096 * 4096 * 2 / 4e11, half = 3.0 * 4096 * 16384 / 4e10;
    const double head = 4096.0 * 4096 * 2 / 4e11 + 4.0 * 4096 / 1e10;
    const double layer = attn + 2 * rows + half;
    yk_sim_result r = simulate(&s, &p, &step, (yk_sim_opts){.steps = 2});
    assert_true(fabs(r.seconds / (rows + layer + head) - 1) < 1e-9);
    assert_true(fabs(r.busy[YK_BOUND_CPU] - half / r.seconds) < 1e-9);
    /* One thing at a time: the device's half, 503 us, is no longer hidden. */
    r = simulate(&s, &p, &step, (yk_sim_opts){.steps = 2, .serial = true});
    assert_true(fabs(r.seconds / (rows + layer + half / 10 + head) - 1) < 1e-9);
    /* The host's half copied instead, 20.1 ms a step: the only copy of the model may begin with the head of the step before. */
    memset(p.layers[0].slices[1].kind, YK_KIND_CG, sizeof sl.kind);
    r = simulate(&s, &p, &step, (yk_sim_opts){.steps = 4});
    assert_true(fabs(r.link_bytes - 3.0 * 4096 * 16384) < 1);
    assert_true(r.seconds > 4 * half && r.seconds < 4 * half + layer + head);
    yk_plan_clear(&p);
    yk_shape_close(&s);
}

/* Every FFN copied: with one slot copies and products take turns, with two they do not. */
static void check_slots(void **state)
{
    (void)state;
    yk_shape s;
    yk_plan p;
    yk_error err = {0};
    const yk_step_kind step = {.prefill = true, .n = 128, .kv_elem_bytes = 2};
    yk_pt_machine(&machine, "rtx-3060-ddr4");
    yk_pt_shape(&s, "llama2-13b", NULL);
    assert_int_equal(yk_plan_init(&p, s.n_layers, &err), YK_OK);
    yk_plan_device(&p, "cuda:0");
    p.head_home = 0;
    for (uint32_t l = 0; l < s.n_layers; l++) {
        yk_slice sl = {.home = YK_HOST, .units = s.layers[l].part[YK_PART_FFN].cut.n};
        memset(sl.kind, YK_KIND_CG, sizeof sl.kind);
        p.layers[l].attn_home = 0;
        assert_int_equal(yk_plan_add(&p, l, &sl, &err), YK_OK);
    }
    double t[4];
    for (uint32_t slots = 1; slots < 4; slots++)
        t[slots] = simulate(&s, &p, &step, (yk_sim_opts){.steps = 2, .slots = slots}).seconds;
    const double serial = simulate(&s, &p, &step, (yk_sim_opts){.steps = 2, .serial = true}).seconds;
    printf("llama2-13b, all FFNs copied, 128 tokens, modelled: serial %.0f ms, 1 slot %.0f, 2 slots %.0f, 3 slots %.0f\n",
           1e3 * serial, 1e3 * t[1], 1e3 * t[2], 1e3 * t[3]);
    assert_true(t[1] <= serial * (1 + 1e-9) && t[2] < 0.9 * t[1] && t[3] <= t[2] * (1 + 1e-9));
    yk_error no = {0};
    yk_sim_result r;
    const yk_sim_opts many = {.slots = 99};
    assert_int_equal(yk_simulate(&r, &machine, 0, &s, &p, &step, &many, &no), YK_ERR_USAGE);
    yk_plan_clear(&p);
    yk_shape_close(&s);
}

/* Layers that copy experts ahead of the router in a step of n tokens; set: all of them from now on. */
static uint32_t ahead_layers(yk_plan *p, uint32_t n, int set)
{
    uint32_t any = 0;
    for (uint32_t l = 0; l < p->n_layers; l++) {
        bool *ahead = &p->layers[l].ahead[yk_bucket_of(n)];
        if (set >= 0)
            *ahead = set;
        any += *ahead;
    }
    return any;
}

/* Decode of 4 to 32 sequences with experts copied ahead of the router: formula against simulator, where the planner chose it and
 * everywhere else; and where it chose it the simulator finds it faster, too. */
static void check_copied_ahead(void **state)
{
    (void)state;
    static const uint32_t tokens[] = {4, 8, 16, 32};
    static double off[N_MACHINES * N_SHAPES * 8];
    double gain = 0;
    uint32_t n = 0, chosen = 0, slower = 0;
    for (int k = 0; k < N_SHAPES; k++) {
        yk_shape s;
        yk_routing r;
        yk_error err = {0};
        yk_pt_shape(&s, shapes[k], NULL);
        assert_int_equal(yk_alt_routing(&r, &s, &err), YK_OK);
        for (int i = 0; i < N_MACHINES && s.n_experts; i++) {
            yk_plan p;
            yk_pt_machine(&machine, machines[i]);
            if (machine.n_devices && machine.devices[0].shared_memory) /* the planner never chooses it there */
                continue;
            yk_plan_limits l = yk_pt_limits(&machine, 8ull << 30);
            l.max_seqs = 32;
            l.context = 512;
            solve(&p, &s, &l);
            for (int t = 0; t < 4 && p.n_devices; t++) {
                const yk_step_kind step = {.n = tokens[t], .depth = 256, .kv_elem_bytes = 2};
                const yk_sim_opts o = {.routing = &r, .steps = 12};
                const bool wanted = ahead_layers(&p, step.n, -1) > 0;
                yk_cost cost;
                yk_cost_init(&cost, &machine, 0, &s);
                const double as_is = simulate(&s, &p, &step, o).seconds, formula = yk_cost_plan(&cost, &p, &step, NULL);
                ahead_layers(&p, step.n, wanted ? 0 : 1);
                const double other = simulate(&s, &p, &step, o).seconds, formula_other = yk_cost_plan(&cost, &p, &step, NULL);
                off[n] = fabs((wanted ? formula / as_is : formula_other / other) - 1);
                if (off[n] > 0.05)
                    printf("  %s, %s, decode of %u, ahead %d: formula %.4g ms, simulated %.4g ms\n", machine.host, s.name,
                           step.n, wanted, 1e3 * (wanted ? formula : formula_other), 1e3 * (wanted ? as_is : other));
                n++;
                chosen += wanted;
                slower += wanted && as_is > 1.005 * other;
                gain = wanted ? fmax(gain, other / as_is - 1) : gain;
            }
            yk_plan_clear(&p);
        }
        yk_routing_close(&r);
        yk_shape_close(&s);
    }
    qsort(off, n, sizeof *off, by_value);
    printf("experts copied ahead of the router, modelled: %u cells, median %.1f %%, worst %.1f %%; chosen in %u, slower in %u, "
           "up to %.1f %% "
           "faster\n",
           n, 100 * off[n / 2], 100 * off[n - 1], chosen, slower, 100 * gain);
    assert_true(off[n / 2] <= 0.01 && off[n - 1] <= 0.05);
    assert_true(chosen > 10 && slower == 0 && gain > 0.01);
}

/* Caches of 32 of 128 experts, every miss copied: without locality nobody wins but the one who knows what comes; with it the order
 * is static, by use, oracle. */
static void check_caches(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        double zipf, reuse;
    } traces[] = {{"even", 0, 0}, {"skewed (zipf 1)", 1, 0}, {"sticky (reuse 0.6)", 0, 0.6}};
    const yk_step_kind step = {.n = 1, .depth = 1024, .kv_elem_bytes = 2};
    double hit[3][YK_SIM_N_CACHES];
    yk_shape s;
    yk_plan p;
    yk_pt_machine(&machine, "rtx-4090-desktop");
    yk_pt_shape(&s, "qwen3-30b-a3b", NULL);
    const yk_plan_limits l = yk_pt_limits(&machine, 8ull << 30);
    solve(&p, &s, &l);
    for (int t = 0; t < 3; t++) {
        yk_routing r;
        draw(&r, 1024, s.n_layers, 128, 8, traces[t].zipf, traces[t].reuse);
        printf("%-20s modelled:", traces[t].what);
        for (int c = 0; c < YK_SIM_N_CACHES; c++) {
            const yk_sim_opts o = {.routing = &r,
                                   .steps = 32,
                                   .warm_steps = 96,
                                   .cache = (yk_sim_cache)c,
                                   .cache_experts = 32,
                                   .miss = YK_SIM_UPLOAD};
            const yk_sim_result q = simulate(&s, &p, &step, o);
            hit[t][c] = (double)q.hits / (double)(q.hits + q.misses);
            printf(" %s %.0f %% hits, %.1f tok/s;", yk_sim_cache_name((yk_sim_cache)c), 100 * hit[t][c], 1 / q.seconds);
        }
        printf("\n");
        assert_true(hit[t][YK_SIM_ORACLE] > hit[t][YK_SIM_LRU] && hit[t][YK_SIM_ORACLE] > hit[t][YK_SIM_LFU]);
        yk_routing_close(&r);
    }
    assert_true(fabs(hit[0][YK_SIM_LRU] - 0.25) < 0.03);
    assert_true(hit[1][YK_SIM_LFU] > hit[0][YK_SIM_LFU] + 0.1);
    assert_true(hit[2][YK_SIM_LRU] > 0.6 && hit[2][YK_SIM_LRU] > hit[2][YK_SIM_LFU]);
    /* Misses on the CPU, and copied when the link has nothing else to do: sticky routing must gain from that as well. */
    yk_routing r;
    draw(&r, 1024, s.n_layers, 128, 8, 0, 0.6);
    yk_sim_opts o = {.routing = &r, .steps = 32, .warm_steps = 96, .cache = YK_SIM_LRU, .cache_experts = 32};
    const double moved = simulate(&s, &p, &step, o).seconds;
    assert_true(simulate(&s, &p, &step, o).seconds == moved); /* the same input, the same figure */
    o.cache = YK_SIM_ORACLE;
    assert_true(simulate(&s, &p, &step, o).hits > 0);
    yk_routing_close(&r);
    draw(&r, 16, s.n_layers, 64, 8, 0, 0);
    yk_sim_result q;
    yk_error err = {0};
    assert_int_equal(yk_simulate(&q, &machine, 0, &s, &p, &step, &o, &err), YK_ERR_USAGE);
    assert_non_null(strstr(err.text, "8 of 128 experts, the routing trace 8 of 64"));
    yk_routing_close(&r);
    yk_plan_clear(&p);
    yk_shape_close(&s);
}

/* The mean over the experts that are chosen, against every choice there is (one token), and against drawn ones (8 tokens). */
static void check_spread(void **state)
{
    (void)state;
    enum { E = 8, DRAWS = 20000 };
    static const uint32_t split[][3] = {{8, 0, 0}, {0, 8, 0}, {3, 5, 0}, {0, 6, 2}, {2, 3, 3}, {7, 0, 1}};
    yk_shape s;
    yk_cost c;
    yk_pt_machine(&machine, "rtx-4090-desktop");
    yk_pt_shape(&s, "mixtral-8x7b", NULL);
    assert_true(s.n_experts == E && s.n_used == 2);
    yk_cost_init(&c, &machine, 0, &s);
    for (uint32_t n = 1; n <= 8; n += 7)
        for (uint32_t i = 0; i < sizeof split / sizeof *split; i++) {
            const yk_step_kind step = {.n = n, .depth = 100, .kv_elem_bytes = 2};
            const yk_cost_side attn = yk_cost_side_of(&c, 0, &step, true);
            const yk_load none = {0};
            yk_experts e = {0};
            double sum = 0, mean_load[3] = {0};
            uint32_t sets = 0;
            uint64_t rng = 7;
            memcpy(e.n, split[i], sizeof e.n);
            yk_cost_experts(&c, &e, &s.layers[0], &step);
            for (uint32_t draw = 0; draw < (n == 1 ? 1u << E : DRAWS); draw++) {
                uint32_t set = draw;
                for (uint32_t t = 0; t < n && n > 1; t++) {
                    const uint32_t x = (uint32_t)(yk_pt_random(&rng) % E), y = (uint32_t)(yk_pt_random(&rng) % (E - 1));
                    set = (t ? set : 0) | 1u << x | 1u << (y + (y >= x));
                }
                uint32_t of[3] = {0};
                for (uint32_t x = 0; x < E; x++)
                    if (set >> x & 1)
                        of[x < e.n[0] ? 0 : x < e.n[0] + e.n[1] ? 1 : 2]++;
                if (n == 1 && of[0] + of[1] + of[2] != s.n_used)
                    continue;
                yk_load load = {0};
                for (int k = 0; k < 3; k++) {
                    const double m = of[k];
                    mean_load[k] += m;
                    load.cpu_s += m * e.one[k].cpu_s, load.cpu_bytes += m * e.one[k].cpu_bytes;
                    load.gg_s += m * e.one[k].gg_s, load.cg_s += m * e.one[k].cg_s;
                    load.gpu_bytes += m * e.one[k].gpu_bytes;
                    load.late_bytes += m * e.one[k].late_bytes, load.late_copies += m * e.one[k].late_copies;
                }
                sum += yk_cost_join(&c, &step, &attn, &load, NULL);
                sets++;
            }
            double bound[YK_BOUND_N] = {0};
            const double mean = sum / sets, t = yk_cost_spread(&c, &step, &attn, &none, &e, bound);
            const double bounds = bound[0] + bound[1] + bound[2] + bound[3];
            assert_true(fabs(bounds / t - 1) < 1e-9);
            assert_true(fabs(t / mean - 1) < (n == 1 ? 1e-9 : 0.03));
            if (n == 1) {
                double at[YK_SPREAD_CELLS];
                assert_int_equal(yk_spread_chosen(&e), 2);
                assert_int_equal(sets, 28);
                yk_spread_table(at, &c, &step, &attn, &none, &e);
                assert_true(fabs(yk_spread_mean(at, 2, e.n) / t - 1) < 1e-12);
            } else
                assert_int_equal(yk_spread_chosen(&e), 0);
            assert_true(fabs((mean_load[0] + mean_load[1] + mean_load[2]) / sets / e.chosen - 1) < 0.01);
        }
    yk_shape_close(&s);
}

/* ---- alternatives and pictures ---- */

static const yk_alternative *find(const yk_plan *p, const char *name)
{
    for (uint32_t i = 0; i < p->n_alternatives; i++)
        if (strncmp(p->alternatives[i].name, name, strlen(name)) == 0)
            return &p->alternatives[i];
    fail_msg("no alternative is called %s", name);
    return NULL;
}

static void check_alternatives(void **state)
{
    (void)state;
    yk_shape s;
    yk_plan p;
    yk_error err = {0};
    yk_pt_machine(&machine, "rtx-4090-desktop");
    yk_pt_shape(&s, "qwen3-30b-a3b", NULL);
    yk_plan_limits l = yk_pt_limits(&machine, 8ull << 30);
    solve(&p, &s, &l);
    if (yk_plan_alternatives(&p, &machine, &s, &l, &err) != YK_OK)
        fail_msg("%s", err.text);
    assert_int_equal(p.n_alternatives, 8);
    for (uint32_t i = 0; i < p.n_alternatives; i++) {
        printf("%-28s decode %6.3g, prefill %6.4g tok/s, modelled\n", p.alternatives[i].name, p.alternatives[i].decode_tps,
               p.alternatives[i].prefill_tps);
        assert_true(p.alternatives[i].decode_tps > 0 && p.alternatives[i].prefill_tps > 0);
    }
    assert_true(find(&p, "this plan")->decode_tps > find(&p, "cache of")->decode_tps);
    assert_true(find(&p, "this plan")->prefill_tps > find(&p, "all experts")->prefill_tps);
    assert_true(find(&p, "best -ncmoe")->decode_tps >= find(&p, "all experts")->decode_tps);
    yk_plan_clear(&p);
    /* A budget for nothing: what needs the attention on the device does not fit, the CPU always does. */
    l = yk_pt_limits(&machine, 700ull << 20);
    solve(&p, &s, &l);
    assert_int_equal(yk_plan_alternatives(&p, &machine, &s, &l, &err), YK_OK);
    assert_true(find(&p, "all experts")->decode_tps == 0 && find(&p, "every FFN")->decode_tps == 0);
    assert_true(find(&p, "CPU only")->decode_tps > 0);
    yk_plan_clear(&p);
    yk_shape_close(&s);
    yk_pt_machine(&machine, "ddr4-cpu-only");
    yk_pt_shape(&s, "llama2-13b", NULL);
    l = yk_pt_limits(&machine, 0);
    solve(&p, &s, &l);
    assert_int_equal(yk_plan_alternatives(&p, &machine, &s, &l, &err), YK_OK);
    assert_int_equal(p.n_alternatives, 2);
    assert_true(fabs(p.alternatives[0].decode_tps / p.alternatives[1].decode_tps - 1) < 1e-9);
    yk_plan_clear(&p);
    yk_shape_close(&s);
}

static uint32_t count(const char *text, const char *what)
{
    uint32_t n = 0;
    for (const char *at = text; (at = strstr(at, what)); at++)
        n++;
    return n;
}

static void check_pictures(void **state)
{
    (void)state;
    for (int i = 0; i < N_MACHINES; i++)
        for (int k = 0; k < N_SHAPES; k += 3) {
            yk_shape s;
            yk_plan p;
            yk_error err = {0};
            char *svg, *again, *plain, *coloured;
            size_t n;
            yk_pt_machine(&machine, machines[i]);
            strcpy(machine.cpu, "a <b> & \"c\" \x1b\xff");
            yk_pt_shape(&s, shapes[k], NULL);
            const yk_plan_limits l = yk_pt_limits(&machine, 8ull << 30);
            solve(&p, &s, &l);
            assert_int_equal(yk_plan_svg(&p, &s, &machine, &l, &svg, &n, &err), YK_OK);
            assert_int_equal(yk_plan_svg(&p, &s, &machine, &l, &again, NULL, &err), YK_OK);
            assert_string_equal(svg, again);
            assert_int_equal(strlen(svg), n);
            assert_int_equal(count(svg, "<text"), count(svg, "</text>"));
            assert_int_equal(count(svg, "<svg"), 1);
            assert_non_null(strstr(svg, "</svg>\n"));
            assert_null(strstr(svg, "<b>"));
            assert_null(strchr(svg, '\x1b'));
            assert_true(count(svg, "<rect") >= 3 * s.n_layers);
            assert_int_equal(yk_plan_strips(&p, &s, false, &plain, NULL, &err), YK_OK);
            assert_int_equal(yk_plan_strips(&p, &s, true, &coloured, NULL, &err), YK_OK);
            assert_null(strchr(plain, '\x1b'));
            assert_non_null(strstr(coloured, "\x1b[0m"));
            for (const char *line = plain; *line; line = strchr(line, '\n') + 1)
                assert_true(strchr(line, '\n') - line <= 112);
            yk_free(svg);
            yk_free(again);
            yk_free(plain);
            yk_free(coloured);
            yk_plan_clear(&p);
            yk_shape_close(&s);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_shelf),         cmocka_unit_test(check_recorded_routing), cmocka_unit_test(check_bad_routing),
        cmocka_unit_test(check_drawn_routing), cmocka_unit_test(check_events),           cmocka_unit_test(check_pair),
        cmocka_unit_test(check_pace),          cmocka_unit_test(check_by_hand),          cmocka_unit_test(check_slots),
        cmocka_unit_test(check_caches),        cmocka_unit_test(check_cost_model),       cmocka_unit_test(check_alternatives),
        cmocka_unit_test(check_pictures),      cmocka_unit_test(check_spread),           cmocka_unit_test(check_copied_ahead),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
