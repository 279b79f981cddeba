/* golden_plans - what the planner makes of the shelf, as compact texts that are compared with those of tests/golden/plans.
 *
 *   golden_plans SOURCE_ROOT [--write FOLDER]    compare, or write the texts of now
 *
 * One file per machine and model: homes and kinds with equal neighbours put together (G resident, c CPU, > copied; one letter for
 * each bucket 1, 2-4, 5-8, 9-16, 17-32, then for prefill in chunks of 128, 512, 2048, 8192), predicted speeds with two digits. scripts/plan-diff shows and accepts changes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "partition/shape.h"
#include "partition/solve.h"
#include "partition/text.h"
#include "src/base/file.h"

static const char *const machines[] = {"rtx-3060-ddr4",    "rtx-3060ti-pcie3x4", "rtx-4060-laptop",  "rtx-3090-desktop",
                                       "rtx-4090-desktop", "rtx-5090-desktop",   "rtx-5090-server",  "t4-server",
                                       "epyc-8ch-3090",    "xeon-amx-4090",      "intel-integrated", "ddr4-cpu-only"};
static const char *const shapes[] = {"mixtral-8x7b",    "llama2-13b", "llama2-70b",  "qwen3-30b-a3b",
                                     "qwen3-235b-a22b", "phi3.5-moe", "gpt-oss-120b"};

static void die(const char *what, const yk_error *err)
{
    fprintf(stderr, "golden_plans: %s: %s\n", what, err->text);
    exit(2);
}

static char *read_file(const char *root, const char *folder, const char *name, const char *suffix, size_t *n)
{
    char path[4096], *text = NULL;
    yk_error err = {0};
    snprintf(path, sizeof path, "%s/%s/%s%s", root, folder, name, suffix);
    return yk_read_file(&text, n, path, 8 << 20, &err) == YK_OK ? text : NULL;
}

static void kinds_of(const yk_slice *s, char out[YK_N_BUCKETS + YK_N_CHUNKS + 2])
{
    static const uint32_t tokens[YK_N_CHUNKS] = {128, 512, 2048, 8192};
    char *to = out;
    for (int b = 0; b < YK_B_PREFILL; b++)
        *to++ = "Gc>"[s->kind[b]];
    *to++ = ' ';
    for (int c = 0; c < YK_N_CHUNKS; c++)
        *to++ = "Gc>"[yk_slice_kind(s, true, tokens[c])];
    *to = 0;
}

/* A layer on one line. */
static void put_layer(yk_text *t, const yk_plan *plan, uint32_t layer)
{
    const yk_plan_layer *y = &plan->layers[layer];
    bool copied = false;
    yk_text_put(t, "attn %s", yk_plan_home_name(plan, y->attn_home));
    for (int c = 0; c < YK_N_CHUNKS; c++)
        copied = copied || y->attn_chunk[c];
    for (int c = 0; copied && c < YK_N_CHUNKS; c++)
        yk_text_put(t, "%s%c", c ? "" : " ", y->attn_chunk[c] ? '>' : 'c');
    for (int b = 0; b < YK_B_PREFILL; b++)
        if (y->ahead[b])
            yk_text_put(t, " ahead %s", yk_bucket_name((yk_bucket)b));
    for (uint32_t i = 0, end; i < y->n_slices; i = end) {
        const yk_slice *s = &y->slices[i];
        char kinds[YK_N_BUCKETS + YK_N_CHUNKS + 2];
        for (end = i + 1; end < y->n_slices; end++) {
            const yk_slice *next = &y->slices[end];
            if (next->group != s->group || next->home != s->home || next->unit0 != s->unit0 || next->units != s->units ||
                memcmp(next->kind, s->kind, sizeof s->kind) != 0 || memcmp(next->chunk, s->chunk, sizeof s->chunk) != 0)
                break;
        }
        kinds_of(s, kinds);
        yk_text_put(t, "; %s", yk_part_group_name((yk_part_group)s->group));
        if (s->group == YK_PART_EXP)
            yk_text_put(t, " %u-%u", s->expert, y->slices[end - 1].expert);
        yk_text_put(t, " units %u+%u %s %s", s->unit0, s->units, yk_plan_home_name(plan, s->home), kinds);
    }
}

static char *describe(const yk_plan *plan, const yk_shape *shape, const char *machine, uint64_t budget)
{
    yk_text t = {0};
    yk_error err = {0};
    char *out, **line = calloc(plan->n_layers, sizeof *line);
    uint32_t *kind = calloc(plan->n_layers, sizeof *kind), n = 0;
    if (!line || !kind)
        exit(2);
    yk_text_put(&t, "%s on %s, budget %.1f GiB, context %u, batch %u\n", shape->name, machine, (double)budget / 0x1p30,
                plan->context, plan->batch);
    yk_text_put(&t, "decode %.2g tok/s, bound by %s; prefill %.2g tok/s, bound by %s\n", plan->speed.decode_tps[0].value,
                plan->speed.bound[0], plan->speed.prefill_tps[0].value, plan->speed.bound[1]);
    yk_text_put(&t, "head %s, embedding %s\n", yk_plan_home_name(plan, plan->head_home),
                yk_plan_home_name(plan, plan->embd_home));
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        yk_text text = {0};
        char *now = NULL;
        put_layer(&text, plan, l);
        if (yk_text_take(&text, &now, NULL, "a layer", &err) != YK_OK)
            die(machine, &err);
        while (kind[l] < n && strcmp(line[kind[l]], now) != 0)
            kind[l]++;
        if (kind[l] < n) {
            yk_free(now);
            continue;
        }
        yk_text_put(&t, "layer %u: %s\n", n, now);
        line[n++] = now;
    }
    yk_text_put(&t, "order:");
    for (uint32_t l = 0, end; l < plan->n_layers; l = end) {
        for (end = l + 1; end < plan->n_layers && kind[end] == kind[l];)
            end++;
        yk_text_put(&t, " %u", kind[l]);
        if (end - l > 1)
            yk_text_put(&t, "*%u", end - l);
    }
    yk_text_put(&t, "\n");
    for (uint32_t i = 0; i < n; i++)
        yk_free(line[i]);
    free(line);
    free(kind);
    if (yk_text_take(&t, &out, NULL, "a plan", &err) != YK_OK)
        die(machine, &err);
    return out;
}

/* The card's memory but 1 GiB, as somebody who also looks at a screen has it. */
static char *plan_of(const char *root, const char *machine_name, const char *shape_name)
{
    size_t n;
    yk_shape shape;
    yk_plan plan;
    yk_error err = {0};
    yk_machine *m = calloc(1, sizeof *m);
    char *text = read_file(root, "partition/machines", machine_name, ".json", &n);
    if (!m || !text || yk_machine_read(m, text, n, &err) != YK_OK)
        die(machine_name, &err);
    yk_free(text);
    text = read_file(root, "partition/shapes", shape_name, ".json", &n);
    if (!text || yk_shape_read(&shape, text, n, NULL, NULL, &err) != YK_OK)
        die(shape_name, &err);
    yk_free(text);
    yk_plan_limits l = {.context = 4096, .max_seqs = 1, .batch = 512, .kv_elem_bytes = 2, .n_devices = m->n_devices};
    for (uint32_t d = 0; d < m->n_devices; d++) {
        memcpy(l.devices[d].name, m->devices[d].name, sizeof l.devices[d].name);
        l.devices[d].budget_bytes = m->devices[d].memory_bytes - (1ull << 30);
        l.devices[d].runtime_bytes = 400u << 20;
    }
    if (yk_plan_solve(&plan, m, &shape, &l, &err) != YK_OK || yk_plan_check(&plan, &shape, &l, &err) != YK_OK)
        die(shape_name, &err);
    char *out = describe(&plan, &shape, machine_name, l.n_devices ? l.devices[0].budget_bytes : 0);
    yk_plan_clear(&plan);
    yk_shape_close(&shape);
    free(m);
    return out;
}

static void write_text(const char *folder, const char *name, const char *text)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.txt", folder, name);
    FILE *f = fopen(path, "w");
    if (!f || fputs(text, f) == EOF || fclose(f) != 0) {
        perror(path);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2 && !(argc == 4 && strcmp(argv[2], "--write") == 0)) {
        fprintf(stderr, "usage: golden_plans SOURCE_ROOT [--write FOLDER]\n");
        return 2;
    }
    uint32_t same = 0, other = 0;
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++)
        for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
            char name[128];
            size_t n;
            snprintf(name, sizeof name, "%s--%s", machines[i], shapes[k]);
            char *now = plan_of(argv[1], machines[i], shapes[k]);
            char *want = argc == 2 ? read_file(argv[1], "tests/golden/plans", name, ".txt", &n) : NULL;
            if (argc == 4)
                write_text(argv[3], name, now);
            else if (want && strcmp(want, now) == 0)
                same++;
            else {
                printf("%s: the plan is %s\n", name, want ? "another one" : "not in tests/golden/plans");
                other++;
            }
            yk_free(want);
            yk_free(now);
        }
    if (argc == 2)
        printf("%u plans as expected, %u not%s\n", same, other,
               other ? ": look at them with scripts/plan-diff, then --accept" : "");
    return other > 0;
}
