/* plan_table - our plans against what people use today, on every machine of the shelf. All figures are modelled: both sides are
 * played through by the same simulator with even routing.
 *
 *   plan_table [--subset] [--csv FILE] [--max-losing N] [--max-loss SHARE] [SOURCE_ROOT]
 *
 * Machines x models x budgets x {decode, prefill, request of 512 + 128 tokens}. For each column both sides are set up for that column:
 * our plan is asked for it, an alternative takes its best setting. RAM is taken to be enough, and the budget holds even where the
 * card has less. Exit code 1 when more than N cells lose more than 0.5 %, or one loses more than SHARE (default 0 and 0.005). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "partition/alternatives.h"
#include "partition/shape.h"
#include "partition/solve.h"
#include "src/base/file.h"

enum { DECODE, PREFILL, REQUEST, N_COLUMNS };
enum { MAX_CELLS = 12 * 7 * 5 * N_COLUMNS, N_BUDGETS = 5, N_MACHINES = 12, N_SHAPES = 7, N_BATCHES = 3 };

#define SLACK 0.005

static const char *const columns[N_COLUMNS] = {"decode", "prefill", "request"};
static const char *const machines[N_MACHINES] = {
    "rtx-3060-ddr4",   "rtx-3060ti-pcie3x4", "rtx-4060-laptop", "rtx-3090-desktop", "rtx-4090-desktop", "rtx-5090-desktop",
    "rtx-5090-server", "t4-server",          "epyc-8ch-3090",   "xeon-amx-4090",    "intel-integrated", "ddr4-cpu-only"};
static const char *const shapes[N_SHAPES] = {"mixtral-8x7b",    "llama2-13b", "llama2-70b",  "qwen3-30b-a3b",
                                             "qwen3-235b-a22b", "phi3.5-moe", "gpt-oss-120b"};
static const uint32_t budgets[N_BUDGETS] = {6, 8, 12, 16, 24};
static const uint32_t batches[N_BATCHES] = {512, 2048, 4096};

/* The three requests that plans are made for. */
static const struct {
    uint32_t prompt, gen;
} requests[N_COLUMNS] = {{1, 1024}, {4096, 1}, {512, 128}};

typedef struct cell {
    uint8_t machine, shape, budget, column;
    uint32_t batch;
    bool host_attention;           /* of our plan, in some layer, although there is a device */
    double ours, theirs[YK_ALT_N]; /* tokens/s; 0: does not apply or fit */
} cell;

typedef struct table {
    const char *root;
    FILE *csv;
    yk_machine *machine;
    uint32_t n;
    cell cells[MAX_CELLS];
} table;

static void die(const yk_error *err)
{
    fprintf(stderr, "plan_table: %s\n", err->text);
    exit(2);
}

static char *read_file(const table *t, const char *folder, const char *name, size_t *n)
{
    char path[4096], *text;
    yk_error err = {0};
    snprintf(path, sizeof path, "%s/partition/%s/%s.json", t->root, folder, name);
    if (yk_read_file(&text, n, path, 1 << 20, &err) != YK_OK)
        die(&err);
    return text;
}

/* What a column counts of two speeds: tokens a second. */
static double value_of(int column, const yk_alternative *a)
{
    if (!(a->decode_tps > 0) || column == DECODE)
        return a->decode_tps;
    if (column == PREFILL)
        return a->prefill_tps;
    const double n = requests[REQUEST].prompt + requests[REQUEST].gen;
    return n / (requests[REQUEST].prompt / a->prefill_tps + requests[REQUEST].gen / a->decode_tps);
}

/* Our best chunk length. */
static void run_ours(cell *c, const yk_alt_job *job, yk_plan_limits *limits)
{
    yk_error err = {0};
    for (int b = 0; b < N_BATCHES; b++) {
        yk_plan plan;
        yk_alternative a;
        if (b && (c->column == DECODE || batches[b - 1] >= requests[c->column].prompt))
            break;
        limits->batch = batches[b];
        if (yk_plan_solve(&plan, job->machine, job->shape, limits, &err) != YK_OK ||
            yk_plan_check(&plan, job->shape, limits, &err) != YK_OK || yk_alt_run_plan(&a, &plan, job, &err) != YK_OK)
            die(&err);
        const double v = value_of(c->column, &a);
        if (v > c->ours) {
            c->ours = v;
            c->batch = batches[b];
            c->host_attention = false;
            for (uint32_t l = 0; l < plan.n_layers; l++)
                c->host_attention = c->host_attention || (job->device >= 0 && plan.layers[l].attn_home == YK_HOST);
        }
        yk_plan_clear(&plan);
    }
}

static void run_cell(table *t, cell *c, const yk_shape *shape, const yk_routing *routing)
{
    yk_plan_limits limits = {.context = 8192,
                             .max_seqs = 1,
                             .batch = 512,
                             .kv_elem_bytes = 2,
                             .n_devices = t->machine->n_devices,
                             .prompt_tokens = requests[c->column].prompt,
                             .gen_tokens = requests[c->column].gen};
    const yk_alt_job job = {.machine = t->machine,
                            .device = t->machine->n_devices ? 0 : -1,
                            .shape = shape,
                            .limits = &limits,
                            .routing = routing->pick ? routing : NULL};
    yk_error err = {0};
    if (limits.n_devices) {
        yk_plan_device_limit *d = &limits.devices[0];
        memcpy(d->name, t->machine->devices[0].name, sizeof d->name);
        d->budget_bytes = (uint64_t)budgets[c->budget] << 30;
        d->runtime_bytes = 400u << 20;
    }
    for (int w = 0; w < YK_ALT_N; w++) {
        yk_alternative a = {0};
        if (yk_alt_applies((yk_alt)w, &job) && yk_alt_run(&a, (yk_alt)w, &job, &err) != YK_OK)
            die(&err);
        c->theirs[w] = value_of(c->column, &a);
    }
    run_ours(c, &job, &limits);
}

static double best_of(const cell *c, int *which)
{
    *which = 0;
    for (int w = 1; w < YK_ALT_N; w++)
        *which = c->theirs[w] > c->theirs[*which] ? w : *which;
    return c->theirs[*which];
}

static void write_row(const table *t, const cell *c)
{
    int which;
    const double best = best_of(c, &which);
    if (!t->csv)
        return;
    fprintf(t->csv, "%s,%s,%u,%s,%u,%.4g", machines[c->machine], shapes[c->shape], budgets[c->budget], columns[c->column],
            c->batch, c->ours);
    for (int w = 0; w < YK_ALT_N; w++)
        fprintf(t->csv, c->theirs[w] > 0 ? ",%.4g" : ",", c->theirs[w]);
    fprintf(t->csv, ",%s,%.3f\n", yk_alt_short_name((yk_alt)which), c->ours / best);
}

static void run_shape(table *t, int machine, int s, bool subset)
{
    size_t n;
    yk_shape shape;
    yk_routing routing;
    yk_error err = {0};
    char *text = read_file(t, "shapes", shapes[s], &n);
    if (yk_shape_read(&shape, text, n, NULL, NULL, &err) != YK_OK || yk_alt_routing(&routing, &shape, &err) != YK_OK)
        die(&err);
    yk_free(text);
    for (int b = 0; b < N_BUDGETS; b++)
        for (int column = 0; column < N_COLUMNS; column++) {
            if ((subset && budgets[b] != 8 && budgets[b] != 16) || (!t->machine->n_devices && b))
                continue;
            cell *c = &t->cells[t->n++];
            *c = (cell){.machine = (uint8_t)machine, .shape = (uint8_t)s, .budget = (uint8_t)b, .column = (uint8_t)column};
            run_cell(t, c, &shape, &routing);
            write_row(t, c);
        }
    yk_routing_close(&routing);
    yk_shape_close(&shape);
}

static int compare(const void *pa, const void *pb)
{
    const double *a = pa, *b = pb;
    return *a < *b ? -1 : *a > *b;
}

static void print_gains(const table *t, double *gains)
{
    printf("gain of our plan, modelled      cells   min  median     max\n");
    for (int column = 0; column < N_COLUMNS; column++)
        for (int w = 0; w <= YK_ALT_N; w++) {
            uint32_t n = 0;
            int which;
            for (uint32_t i = 0; i < t->n; i++) {
                const cell *c = &t->cells[i];
                const double theirs = w < YK_ALT_N ? c->theirs[w] : best_of(c, &which);
                if (c->column == column && theirs > 0)
                    gains[n++] = c->ours / theirs;
            }
            if (!n)
                continue;
            qsort(gains, n, sizeof *gains, compare);
            printf("  %-8s against %-12s %6u %6.2f %6.2f %8.2f\n", columns[column],
                   w < YK_ALT_N ? yk_alt_short_name((yk_alt)w) : "best of them", n, gains[0], gains[n / 2], gains[n - 1]);
        }
    printf("ScheInfer over llama.cpp and Fiddler, as published (measured): decode 1.11-1.80, prefill 1.69-6.33, end to end "
           "1.25-2.04\n");
}

/* Cells that lose, with what the plan could not do. */
static uint32_t print_losing(const table *t, double *worst)
{
    uint32_t n = 0;
    *worst = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        const cell *c = &t->cells[i];
        int which;
        const double loss = 1 - c->ours / best_of(c, &which);
        *worst = fmax(*worst, loss);
        if (loss <= SLACK)
            continue;
        printf("%s%-19s %-16s %2u GiB %-8s %.4g tok/s, %s %.4g (%.1f %% slower%s)\n", n++ ? "" : "cells that lose:\n",
               machines[c->machine], shapes[c->shape], budgets[c->budget], columns[c->column], c->ours,
               yk_alt_short_name((yk_alt)which), c->theirs[which], 100 * loss,
               c->host_attention ? "; attention on the host" : "");
    }
    return n;
}

int main(int argc, char **argv)
{
    bool subset = false;
    long max_losing = 0;
    double max_loss = SLACK, worst;
    const char *csv = NULL;
    yk_error err = {0};
    table *t = calloc(1, sizeof *t);
    yk_machine *machine = calloc(1, sizeof *machine);
    double *gains = calloc(MAX_CELLS, sizeof *gains);
    if (!t || !machine || !gains)
        return 2;
    t->root = ".";
    t->machine = machine;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--subset") == 0)
            subset = true;
        else if (strcmp(argv[i], "--csv") == 0 && i + 1 < argc)
            csv = argv[++i];
        else if (strcmp(argv[i], "--max-losing") == 0 && i + 1 < argc)
            max_losing = strtol(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--max-loss") == 0 && i + 1 < argc)
            max_loss = strtod(argv[++i], NULL);
        else
            t->root = argv[i];
    }
    if (csv && !(t->csv = fopen(csv, "w"))) {
        perror(csv);
        return 2;
    }
    if (t->csv) {
        fprintf(t->csv, "machine,model,budget_gib,phase,our_batch,ours_tps_modelled");
        for (int w = 0; w < YK_ALT_N; w++)
            fprintf(t->csv, ",%s", yk_alt_short_name((yk_alt)w));
        fprintf(t->csv, ",best_alternative,gain\n");
    }
    for (int m = 0; m < N_MACHINES; m++) {
        if (subset && m != 2 && m != 4 && m != 8)
            continue;
        size_t n;
        char *text = read_file(t, "machines", machines[m], &n);
        if (yk_machine_read(machine, text, n, &err) != YK_OK)
            die(&err);
        yk_free(text);
        for (int s = 0; s < N_SHAPES; s++)
            if (!subset || (strcmp(shapes[s], "qwen3-235b-a22b") != 0 && strcmp(shapes[s], "llama2-70b") != 0))
                run_shape(t, m, s, subset);
    }
    print_gains(t, gains);
    const uint32_t losing = print_losing(t, &worst);
    printf("%u cells, %u lose more than %.1f %%, the worst %.1f %%\n", t->n, losing, 100 * SLACK, 100 * worst);
    if (t->csv && fclose(t->csv) != 0) {
        perror(csv);
        return 2;
    }
    free(gains);
    free(machine);
    free(t);
    return losing > (uint32_t)max_losing || worst > max_loss;
}
