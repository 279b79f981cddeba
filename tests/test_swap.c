/* Experts that change places while the engine runs (src/engine/swap.h), on a real pipeline.
 *
 *   test_swap BACKEND WORK_FOLDER [fault | soak STEPS]     "null" (computes on the host) or "opencl"; fault: allocations of the null module fail;
 *                                                          soak: many steps, with sequences that end and begin, and cancels
 *
 * Tokens are repeated, so a layer chooses the same experts again and again, and the machine's figures make the CPU slow: experts of the host are worth
 * their copies. Logits are compared with those of the CPU alone (tests/tolerance.h, rows logits-lane; models with quantised weights run with plain C, see
 * test_hybrid.c; there a choice of experts that is nearly a tie may fall the other way: one row of 176, where the second and third of the router's logits
 * are 0.0005 apart. MAX_FLIPS such rows are allowed, none with float weights). Behind every step that moves something each expert has to be in one place,
 * with its own bytes. */
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/engine/swap.h"
#include "tests/backend.h"
#include "tests/tolerance.h"

enum {
    CONTEXT = 320,
    N_SEQS = 3,
    N_STEPS = 150,
    PROMPT = 40,
    SAME = 50,
    BATCH = 64,
    MAX_FLIPS = 5,
    MAX_ROWS = N_STEPS * N_SEQS
};

static const struct {
    const char *path; /* below YOKE_FIXTURES, or "models/" below YOKE_SOURCE */
    bool quantised;
} models[] = {{"models/yoke-tiny-mixtral-q4_k_m.gguf", true},
              {"w256-mixtral-4x2-f16.gguf", false},
              {"w64-qwen3moe-4x2-f16.gguf", false},
              {"w64-qwen2moe-8x4-f16.gguf", false},
              {"w64-gpt-oss-4x2-f16.gguf", false}};
/* Texts that end as soon as an expert has come to the device for them. */
#define SPITE UINT32_MAX
enum { N_MODELS = sizeof models / sizeof *models, SOAK_MODEL = 3 };

static int fail(const char *what, const char *text)
{
    printf("FAILED: %s: %s\n", what, text);
    return 1;
}

typedef struct test_case {
    yk_model *m;
    yk_model_info info;
    yk_shape shape;
    yk_plan plan;
    yk_machine *machine;
    const char *isa, *name;
    char device[32];
    double limit;     /* of differences to the CPU alone */
    uint32_t allowed; /* rows beyond it */
} test_case;

/* What a run does beside its steps. */
typedef struct test_run {
    const char *device; /* NULL: as the plan says; "cpu" */
    yk_policy policy;
    uint32_t cancel; /* every so many steps one is cancelled first; 0: none */
    bool retry;      /* a step may fail; then it is run again */
    bool no_repack;
    uint32_t n_steps, same; /* 0: N_STEPS, SAME; or SPITE */
    bool keep;              /* what earlier runs learned is there */
    uint32_t refuse;        /* every so many copies of a swap are refused; 0: none */
    float *logits;          /* [MAX_ROWS][n_vocab] */
    /* out */
    uint32_t n_rows, n_failed, first_swap; /* first_swap: step behind which an expert had changed its place */
    bool stopped;
    yk_engine_stats stats;
} test_run;

/* ---- models, plans, machines -------------------------------------------------------------------------------------------------------------- */

/* The first half of the experts is on the device. Of the others each has kinds of its own; attention is on either side in turn. */
static yk_status make_plan(yk_plan *p, const yk_shape *s, const char *device, yk_error *err)
{
    YK_TRY(yk_plan_init(p, s->n_layers, err));
    memset(p->memory, 0xff, sizeof p->memory);
    yk_plan_device(p, device);
    p->head_home = 0;
    for (uint32_t l = 0; l < s->n_layers; l++) {
        const yk_shape_layer *y = &s->layers[l];
        const bool all = l + 1 == s->n_layers; /* the last layer is the device's alone: nothing of it moves */
        p->layers[l].attn_home = l % 2 && !all ? YK_HOST : 0;
        for (uint32_t g = 0; g < YK_PART_N; g++)
            for (uint32_t e = 0; e < y->part[g].n; e++) {
                const bool host = g == YK_PART_EXP && e >= y->part[g].n / 2 && !all;
                yk_slice sl = {.group = (uint8_t)g, .home = host ? YK_HOST : 0, .expert = e, .units = y->part[g].cut.n};
                for (int b = 0; b < YK_N_BUCKETS; b++)
                    sl.kind[b] = !host ? YK_KIND_GG : b && (e + (uint32_t)b) % 2 ? YK_KIND_CG : YK_KIND_CC;
                if (host && l % 3 == 2 && e + 1 == y->part[g].n)
                    sl.kind[YK_B_1] = YK_KIND_CG;
                YK_TRY(yk_plan_add(p, l, &sl, err));
            }
    }
    return YK_OK;
}

/* Slow: the CPU; a copy takes about two tokens. */
static void fill_machine(yk_machine *m, const char *device, const yk_shape *s)
{
    const double rate = 1e9;
    *m = (yk_machine){.threads = 2, .memory_bytes = 1ull << 34, .n_devices = 1};
    m->rates.read_bytes_per_s = 2 * rate;
    yk_machine_device *d = &m->devices[0];
    snprintf(d->name, sizeof d->name, "%.23s", device);
    d->memory_bytes = 1ull << 34;
    d->rates.read_bytes_per_s = 1000 * rate;
    d->rates.attention_flops_per_s = m->rates.attention_flops_per_s = 1e15;
    d->to_device_bytes_per_s = d->to_host_bytes_per_s = rate / (2 * s->n_layers);
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
        for (int b = 0; b < YK_N_BUCKETS; b++) {
            m->rates.product[t][b] = rate;
            d->rates.product[t][b] = 1000 * rate;
        }
}

static int open_case(test_case *c, size_t index, const char *backend, bool *there)
{
    char path[4096];
    yk_error err = {0};
    const char *fixtures = getenv("YOKE_FIXTURES"), *source = getenv("YOKE_SOURCE");
    const bool own = strncmp(models[index].path, "models/", 7) == 0;
    *c = (test_case){.name = models[index].path, .isa = models[index].quantised ? "ref" : NULL};
    snprintf(path, sizeof path, "%s/%s", own ? (source ? source : ".") : (fixtures ? fixtures : "../shared/models"), c->name);
    snprintf(c->device, sizeof c->device, "%s:0", backend);
    c->limit = yk_tolerance_find("logits-lane", models[index].quantised ? "quantised" : "float")->rel;
    c->allowed = models[index].quantised ? MAX_FLIPS : 0;
    *there = own || access(path, R_OK) == 0;
    if (!*there) {
        printf("skipped: %s is not there\n", path);
        return 0;
    }
    c->machine = calloc(1, sizeof *c->machine);
    if (!c->machine || yk_model_open(&c->m, path, NULL, &err) != YK_OK ||
        yk_shape_from_model(&c->shape, c->m, &(yk_shape_opts){.bytes = yk_place_bytes}, &err) != YK_OK ||
        make_plan(&c->plan, &c->shape, c->device, &err) != YK_OK)
        return fail(path, err.text);
    yk_model_get_info(c->m, &c->info);
    fill_machine(c->machine, c->device, &c->shape);
    return 0;
}

static void close_case(test_case *c)
{
    yk_plan_clear(&c->plan);
    yk_shape_close(&c->shape);
    yk_model_close(&c->m);
    free(c->machine);
}

/* ---- where experts are -------------------------------------------------------------------------------------------------------------------- */

/* The packed bytes of an expert, from where it is in bucket b. */
static yk_status read_expert(const yk_engine *e, uint32_t layer, uint32_t p, int b, uint8_t *out)
{
    const yk_gpulane *l = e->lane;
    const yk_part_place *pp = &e->places[layer].parts[p];
    for (uint32_t i = 0; i < pp->n_pieces[b] + pp->n_slabs[b]; i++) {
        const yk_slab *s = i < pp->n_pieces[b] ? &pp->pieces[b][i].slab : &pp->slabs[b][i - pp->n_pieces[b]];
        const uint64_t n = s->unit_bytes * s->n_units;
        if (s->host)
            memcpy(out, s->host, n);
        else
            YK_TRY(l->t->copy_to_host(l->down, out, s->dev, n));
        out += n;
    }
    return l->t->stream_sync(l->down);
}

static uint64_t place_bytes(const yk_part_place *pp, int b)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < pp->n_pieces[b]; i++)
        n += pp->pieces[b][i].slab.unit_bytes * pp->pieces[b][i].slab.n_units;
    for (uint32_t i = 0; i < pp->n_slabs[b]; i++)
        n += pp->slabs[b][i].unit_bytes * pp->slabs[b][i].n_units;
    return n;
}

typedef struct bytes_of {
    uint64_t n;    /* of an expert, the most */
    uint8_t *all;  /* [n_layers][n_experts][n] as placed first */
    uint8_t *now;  /* [n] */
    uint64_t used; /* device memory, all classes */
} bytes_of;

static uint64_t device_bytes(const yk_engine *e, uint64_t *budget)
{
    uint64_t used[YK_MEM_N_CLASSES], sum = 0;
    e->lane->t->mem_used(e->lane->gpu, used, budget);
    for (int c = 0; c < YK_MEM_N_CLASSES; c++)
        sum += used[c];
    return sum;
}

static int remember(bytes_of *b, const test_case *c, const yk_engine *e)
{
    uint64_t budget;
    *b = (bytes_of){.used = device_bytes(e, &budget)};
    for (uint32_t l = 0; l < c->shape.n_layers; l++)
        for (uint32_t p = 0; p < c->shape.n_experts; p++)
            b->n = place_bytes(&e->places[l].parts[p], 0) > b->n ? place_bytes(&e->places[l].parts[p], 0) : b->n;
    b->all = calloc((size_t)c->shape.n_layers * c->shape.n_experts, b->n);
    b->now = calloc(1, b->n);
    for (uint32_t l = 0; l < c->shape.n_layers; l++)
        for (uint32_t p = 0; p < c->shape.n_experts; p++)
            if (!b->all || !b->now || read_expert(e, l, p, 0, b->all + ((size_t)l * c->shape.n_experts + p) * b->n) != YK_OK)
                return fail(c->name, "cannot read experts");
    return 0;
}

/* Each expert whole, in one place, the same in every bucket, with its bytes; no more residents than the plan has; device memory as it was. */
static int check_places(const bytes_of *b, const test_case *c, const yk_engine *e)
{
    uint64_t budget;
    const uint64_t used = device_bytes(e, &budget);
    if (used != b->used || used > budget)
        return fail(c->name, "other device memory than at the start, or more than the budget");
    for (uint32_t l = 0; l < c->shape.n_layers; l++) {
        uint32_t residents = 0, planned = 0;
        for (uint32_t i = 0; i < c->plan.layers[l].n_slices; i++)
            planned += c->plan.layers[l].slices[i].group == YK_PART_EXP && c->plan.layers[l].slices[i].home != YK_HOST;
        for (uint32_t p = 0; p < c->shape.n_experts; p++) {
            const yk_part_place *pp = &e->places[l].parts[p];
            const bool dev = pp->n_slabs[0] && !pp->slabs[0][0].host;
            const uint8_t *want = b->all + ((size_t)l * c->shape.n_experts + p) * b->n;
            residents += dev;
            for (int k = 0; k < YK_N_BUCKETS; k++) {
                const bool here = pp->n_slabs[k] && !pp->slabs[k][0].host;
                if ((pp->n_pieces[k] != 0) == (pp->n_slabs[k] != 0) || here != dev || place_bytes(pp, k) != place_bytes(pp, 0))
                    return fail(c->name, "an expert is not in one place");
                for (uint32_t i = 0; i < pp->n_slabs[k]; i++)
                    if (dev == !pp->slabs[k][i].dev.handle || dev == (pp->slabs[k][i].host != NULL))
                        return fail(c->name, "an expert is on both sides, or on none");
            }
            /* the allocation that is made to fail may be one of these copies */
            if ((read_expert(e, l, p, 0, b->now) != YK_OK && read_expert(e, l, p, 0, b->now) != YK_OK) ||
                memcmp(want, b->now, place_bytes(pp, 0)) != 0)
                return fail(c->name, "an expert has other bytes");
            for (uint32_t q = 0; dev && q < p; q++) {
                const yk_part_place *o = &e->places[l].parts[q];
                if (o->n_slabs[0] && o->slabs[0][0].dev.handle && o->slabs[0][0].dev.handle == pp->slabs[0][0].dev.handle &&
                    o->slabs[0][0].dev.offset == pp->slabs[0][0].dev.offset)
                    return fail(c->name, "two experts have the same device memory");
            }
        }
        if (residents > planned)
            return fail(c->name, "more residents than the plan has");
    }
    return 0;
}

/* ---- what is kept ------------------------------------------------------------------------------------------------------------------------- */

static char cache[4000];    /* XDG_CACHE_HOME */
static uint32_t n_warnings; /* of statistics that are not used */

static void count_warnings(void *user, yk_log_level level, const char *text)
{
    (void)user;
    n_warnings += level == YK_LOG_WARN && strstr(text, "learned of experts is not used") != NULL;
}

enum { COUNT, REMOVE, DAMAGE };

/* The files with statistics; how many there were. */
static size_t files(int what)
{
    char pattern[4096];
    glob_t g;
    snprintf(pattern, sizeof pattern, "%s/yoke/experts-*.json", cache);
    if (glob(pattern, 0, NULL, &g) != 0)
        return 0;
    for (size_t i = 0; i < g.gl_pathc && what != COUNT; i++) {
        FILE *f = what == DAMAGE ? fopen(g.gl_pathv[i], "w") : NULL;
        if (f) {
            fputs("{\"format\": 1, \"shape_id\": \"", f);
            fclose(f);
        } else
            remove(g.gl_pathv[i]);
    }
    const size_t n = g.gl_pathc;
    globfree(&g);
    return n;
}

/* ---- runs --------------------------------------------------------------------------------------------------------------------------------- */

/* Tokens of each sequence in a step: a goes on token by token; b joins now and then, once with a prompt; c is a fork of a. */
static uint32_t tokens_of(uint32_t step, uint32_t seq)
{
    step %= N_STEPS;
    if (seq == 0)
        return step ? 1 : PROMPT;
    if (seq == 1)
        return step == 30 ? PROMPT : step % 10 == 9;
    return step > 80 && step % 7 == 0;
}

static int one_step(const test_case *c, test_run *t, yk_engine *e, yk_seq **seqs, uint32_t step)
{
    yk_batch_entry entries[N_SEQS];
    int32_t tokens[N_SEQS][PROMPT];
    yk_error err = {0};
    uint32_t n = 0;
    for (uint32_t q = 0; step && step % N_STEPS == 0 && q < N_SEQS; q++) {
        yk_seq_close(&seqs[q]);
        t->n_rows = 0;
        if (q < 2 && yk_seq_open(&seqs[q], e, &err) != YK_OK)
            return fail(c->name, err.text);
    }
    if (step % N_STEPS == 80 && yk_seq_fork(&seqs[2], seqs[0], &err) != YK_OK)
        return fail(c->name, err.text);
    for (uint32_t q = 0; q < N_SEQS; q++) {
        const uint32_t count = tokens_of(step, q);
        const uint32_t text = t->same == SPITE ? (uint32_t)t->stats.swaps : step / (t->same ? t->same : SAME);
        for (uint32_t i = 0; i < count; i++) /* the same one for a while, then another */
            tokens[q][i] = (int32_t)(260 + (37 * text + (count > 1 ? 11 * i : 0) + 5 * q) % (c->info.n_vocab - 260));
        if (count && seqs[q])
            entries[n++] = (yk_batch_entry){seqs[q], tokens[q], count, YK_LOGITS_LAST};
    }
    yk_status st;
    if (t->cancel && step % t->cancel == t->cancel - 1) {
        yk_engine_cancel(e);
        if ((st = yk_decode(e, entries, n, &err)) != YK_ERR_CANCELLED)
            return fail("a cancelled step", yk_status_name(st));
    }
    st = yk_decode(e, entries, n, &err);
    if (st != YK_OK && t->retry) {
        t->n_failed++;
        st = yk_decode(e, entries, n, &err);
    }
    if (st != YK_OK)
        return fail("yk_decode", err.text);
    for (uint32_t i = 0; i < n; i++)
        memcpy(t->logits + (size_t)t->n_rows++ * c->info.n_vocab, yk_logits(e, i, 0), c->info.n_vocab * sizeof(float));
    return 0;
}

/* The device's table with copies that are refused: those to the device that are on none of the lane's own streams. */
static const yk_gpulane *refuse_on;
static const yk_device_table *real_table;
static uint32_t refuse_every, n_swap_copies;

static yk_status copy_or_refuse(yk_gpu_stream *stream, yk_gpu_mem to, const void *from, uint64_t bytes)
{
    const bool mine = stream == refuse_on->up || stream == refuse_on->fill_up;
    if (!mine && ++n_swap_copies % refuse_every == 0)
        return YK_ERR_RUNTIME;
    return real_table->copy_to_device(stream, to, from, bytes);
}

static void refuse_copies(yk_engine *e, uint32_t every, yk_device_table *table)
{
    *table = *e->lane->t;
    real_table = e->lane->t;
    table->copy_to_device = copy_or_refuse;
    refuse_on = e->lane;
    refuse_every = every;
    n_swap_copies = 0;
    e->lane->t = table;
}

static yk_status open_run(yk_engine **e, const test_case *c, const test_run *t, yk_error *err)
{
    yk_engine_opts o;
    const bool cpu = t->device && strcmp(t->device, "cpu") == 0;
    yk_engine_opts_init(&o);
    o.plan = cpu ? NULL : &c->plan;
    o.machine = c->machine;
    o.device = t->device;
    o.isa = c->isa;
    o.threads = 2;
    o.context = CONTEXT;
    o.max_seqs = N_SEQS;
    o.batch = BATCH;
    o.kv_type = YK_KV_F32;
    o.policy = t->policy;
    o.no_repack = t->no_repack;
    return yk_engine_open(e, c->m, &o, err);
}

static int run(const test_case *c, test_run *t)
{
    yk_error err = {0};
    yk_engine *e;
    yk_seq *seqs[N_SEQS] = {NULL};
    bytes_of bytes = {0};
    yk_device_table table;
    uint64_t last = 0;
    t->n_rows = t->n_failed = 0;
    if (!t->keep)
        files(REMOVE);
    t->first_swap = N_STEPS;
    if (open_run(&e, c, t, &err) != YK_OK)
        return fail(c->name, err.text);
    if (t->refuse)
        refuse_copies(e, t->refuse, &table);
    int bad = yk_seq_open(&seqs[0], e, &err) || yk_seq_open(&seqs[1], e, &err) || (e->lane && remember(&bytes, c, e));
    const uint32_t n_steps = t->n_steps ? t->n_steps : N_STEPS;
    for (uint32_t s = 0; !bad && s < n_steps; s++) {
        bad = one_step(c, t, e, seqs, s);
        yk_engine_get_stats(e, &t->stats);
        if (t->stats.swaps && t->first_swap == N_STEPS)
            t->first_swap = s;
        const bool moving = e->lane && e->lane->swap && yk_swap_get(e->lane->swap).n_moving;
        t->stopped = e->lane && e->lane->swap && yk_swap_get(e->lane->swap).stopped;
        if (!bad && e->lane && (t->stats.swaps != last || moving || s + 1 == n_steps))
            bad = check_places(&bytes, c, e);
        last = t->stats.swaps;
    }
    for (uint32_t q = 0; q < N_SEQS; q++)
        yk_seq_close(&seqs[q]);
    yk_engine_close(&e);
    free(bytes.all);
    free(bytes.now);
    return bad;
}

/* Rows that differ by more than the limit, and the largest difference of the others. */
static uint32_t difference(const test_case *c, const test_run *a, const test_run *b, double *most)
{
    uint32_t n = 0;
    *most = 0;
    for (uint32_t i = 0; i < a->n_rows; i++) {
        const double d = yk_largest_difference(a->logits + (size_t)i * c->info.n_vocab, b->logits + (size_t)i * c->info.n_vocab,
                                               c->info.n_vocab);
        n += !(d <= c->limit);
        *most = d <= c->limit && d > *most ? d : *most;
    }
    return n;
}

static bool same_bits(const test_case *c, const test_run *a, const test_run *b)
{
    return a->n_rows == b->n_rows && memcmp(a->logits, b->logits, (size_t)a->n_rows * c->info.n_vocab * sizeof(float)) == 0;
}

static bool open_logits(test_run *t, size_t n, const test_case *c)
{
    bool ok = true;
    for (size_t i = 0; i < n; i++)
        ok = (t[i].logits = calloc((size_t)MAX_ROWS * c->info.n_vocab, sizeof(float))) && ok;
    return ok;
}

/* ---- the tests ---------------------------------------------------------------------------------------------------------------------------- */

static int test_model(size_t index, const char *backend, uint64_t *n_swaps, uint32_t *n_earlier)
{
    test_case c;
    bool there;
    enum { CPU, PLAIN, STATIC, UNPACKED, AGAIN, CANCELLED, ADAPTIVE, WARM, DAMAGED, N };
    test_run t[N] = {[CPU] = {.device = "cpu"},
                     [STATIC] = {.policy = YK_POLICY_STATIC},
                     [ADAPTIVE] = {.policy = YK_POLICY_ADAPTIVE},
                     [AGAIN] = {.policy = YK_POLICY_ADAPTIVE},
                     [CANCELLED] = {.policy = YK_POLICY_ADAPTIVE, .cancel = 3},
                     [WARM] = {.policy = YK_POLICY_ADAPTIVE, .keep = true},
                     [DAMAGED] = {.policy = YK_POLICY_ADAPTIVE, .keep = true},
                     [UNPACKED] = {.policy = YK_POLICY_ADAPTIVE, .no_repack = true}};
    int bad = open_case(&c, index, backend, &there);
    if (bad || !there)
        return bad;
    if (!open_logits(t, N, &c))
        bad = fail(c.name, "no memory");
    for (int i = 0; !bad && i < N; i++) {
        n_warnings = 0;
        if (i == WARM && files(COUNT) != 1)
            bad = fail(c.name, "one file of what was learned has to be there");
        if (!bad && i == DAMAGED)
            files(DAMAGE);
        bad = bad || run(&c, &t[i]);
        if (!bad && n_warnings != (i == DAMAGED))
            bad = fail(c.name, "a warning for a damaged file, and no other");
    }
    double d[2];
    const uint32_t other[2] = {difference(&c, &t[CPU], &t[PLAIN], &d[0]), difference(&c, &t[CPU], &t[ADAPTIVE], &d[1])};
    if (!bad)
        printf("%s: %u rows, %llu swaps, the first behind step %u (warm: %u), %llu returns, %llu bytes kept; static %u rows "
               "with other "
               "experts, the rest within %.2g, adaptive %u and %.2g\n",
               c.name, t[CPU].n_rows, (unsigned long long)t[ADAPTIVE].stats.swaps, t[ADAPTIVE].first_swap, t[WARM].first_swap,
               (unsigned long long)t[ADAPTIVE].stats.returns, (unsigned long long)t[ADAPTIVE].stats.kept_bytes, other[0], d[0],
               other[1], d[1]);
    if (!bad && (other[0] > c.allowed || other[1] > c.allowed))
        bad = fail(c.name, "logits differ from the CPU's");
    if (!bad &&
        (!same_bits(&c, &t[PLAIN], &t[STATIC]) || t[STATIC].stats.swaps || strcmp(t[STATIC].stats.policy, "static") != 0))
        bad = fail(c.name, "policy static is not what it was without a policy");
    if (!bad &&
        (!t[ADAPTIVE].stats.swaps || !t[ADAPTIVE].stats.kept_bytes || strcmp(t[ADAPTIVE].stats.policy, "adaptive") != 0))
        bad = fail(c.name, "no expert changed its place");
    if (!bad && (!same_bits(&c, &t[ADAPTIVE], &t[AGAIN]) || t[ADAPTIVE].stats.swaps != t[AGAIN].stats.swaps))
        bad = fail(c.name, "the same run gave other bits the second time");
    if (!bad && (!same_bits(&c, &t[ADAPTIVE], &t[CANCELLED]) || t[ADAPTIVE].stats.swaps != t[CANCELLED].stats.swaps))
        bad = fail(c.name, "cancelled steps changed what followed");
    if (!bad && (t[UNPACKED].stats.swaps || strcmp(t[UNPACKED].stats.policy, "static") != 0))
        bad = fail(c.name, "swaps of experts that are not packed");
    if (!bad && t[WARM].first_swap > t[ADAPTIVE].first_swap)
        bad = fail(c.name, "the first swap came later when statistics were there");
    if (!bad && !same_bits(&c, &t[ADAPTIVE], &t[DAMAGED]))
        bad = fail(c.name, "a damaged file has changed something");
    *n_earlier += t[WARM].first_swap < t[ADAPTIVE].first_swap;
    *n_swaps += t[ADAPTIVE].stats.swaps;
    for (int i = 0; i < N; i++)
        free(t[i].logits);
    close_case(&c);
    return bad;
}

/* A device that fails while experts move: the step that fails can be made again, or nothing but the swap fails. */
static int test_faults(void)
{
    test_case c;
    bool there;
    char device[64];
    double most;
    uint32_t failed = 0;
    test_run t[] = {{.policy = YK_POLICY_ADAPTIVE},
                    {.policy = YK_POLICY_ADAPTIVE, .retry = true, .device = device},
                    {.policy = YK_POLICY_ADAPTIVE, .refuse = 7},
                    {.policy = YK_POLICY_ADAPTIVE, .refuse = 1}};
    int bad = open_case(&c, 0, "null", &there) || !open_logits(t, 4, &c) || run(&c, &t[0]) || run(&c, &t[2]) || run(&c, &t[3]);
    if (!bad && (!t[2].stats.swaps || t[2].stopped || t[3].stats.swaps || !t[3].stopped || t[0].stopped))
        bad = fail(c.name, "some copies of swaps fail: others go on; all of them: nothing is swapped any more");
    if (!bad && (difference(&c, &t[0], &t[2], &most) > c.allowed || difference(&c, &t[0], &t[3], &most) > c.allowed))
        bad = fail(c.name, "logits differ when copies of swaps fail");
    for (uint32_t k = 2000, runs = 0; !bad && runs < 24; k += 1 + k / 5 + k % 7, runs++) {
        snprintf(device, sizeof device, "null:compute,fail=%u", k);
        bad = run(&c, &t[1]);
        failed += t[1].n_failed;
        if (!bad && difference(&c, &t[0], &t[1], &most) > c.allowed)
            bad = fail(device, "logits differ");
    }
    printf("failures: %u steps; swaps: %llu, when each 7th copy fails %llu\n", failed, (unsigned long long)t[0].stats.swaps,
           (unsigned long long)t[2].stats.swaps);
    if (!bad && !failed)
        bad = fail("the run as a whole", "nothing failed: is the setting in force?");
    for (int i = 0; i < 4; i++)
        free(t[i].logits);
    close_case(&c);
    return bad;
}

/* Many steps, with texts that last for different times. */
static int test_soak(const char *backend, uint32_t n_steps)
{
    test_case c;
    bool there;
    static const uint32_t same[] = {50, 7, 20, SPITE};
    uint64_t n_swaps = 0;
    int bad = open_case(&c, SOAK_MODEL, backend, &there);
    for (size_t i = 0; !bad && there && i < sizeof same / sizeof *same; i++) {
        test_run t = {.policy = YK_POLICY_ADAPTIVE, .cancel = 11, .n_steps = n_steps / 4, .same = same[i]};
        bad = !open_logits(&t, 1, &c) || run(&c, &t);
        printf(same[i] == SPITE ? "%u steps, texts end with a swap (%u): %llu swaps, %llu returns\n"
                                : "%u steps, texts of %u tokens: %llu swaps, %llu returns\n",
               t.n_steps, same[i], (unsigned long long)t.stats.swaps, (unsigned long long)t.stats.returns);
        n_swaps += t.stats.swaps;
        free(t.logits);
    }
    if (there && !bad && !n_swaps)
        bad = fail(c.name, "nothing was swapped");
    close_case(&c);
    return there ? bad : 77;
}

int main(int argc, char **argv)
{
    const char *backend = argc > 1 ? argv[1] : "null";
    uint64_t n_swaps = 0;
    uint32_t n_earlier = 0;
    if (argc < 3)
        return fail("arguments", "test_swap BACKEND WORK_FOLDER [fault]");
    snprintf(cache, sizeof cache, "%s/swap-cache-%s-%ld", argv[2], argv[argc - 1], (long)getpid());
    setenv("XDG_CACHE_HOME", cache, 1);
    yk_log_set(count_warnings, NULL, YK_LOG_WARN);
    const int missing = yk_test_backend(backend);
    if (missing)
        return missing;
    if (argc > 4)
        return test_soak(backend, (uint32_t)atoi(argv[4]));
    if (argc > 3)
        return test_faults();
    for (size_t i = 0; i < N_MODELS; i++)
        if (test_model(i, backend, &n_swaps, &n_earlier))
            return 1;
    files(REMOVE);
    return n_swaps && n_earlier ? 0 : fail("the run as a whole", "nothing was swapped, or never earlier with statistics");
}
