/* device.c - one device: products, attention, launches, copies, hand-off, and what the lanes leave each other.
 *
 * Work is enqueued behind a mailbox wait and timed by the device's own events, so that neither the host's enqueueing nor a late thread of it is in the
 * figures; what enqueueing costs is measured with the launches. */
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/pack.h"
#include "gpu/kernels.h"
#include "profiler/profile.h"
#include "src/base/clock.h"

enum { BOX_TO_HOST, BOX_TO_DEVICE, BOX_GATE, BOX_DONE };
enum { COMPUTE, UP, DOWN, N_STREAMS };
enum {
    HAND_OFFS = 20,
    MAX_HAND_OFFS = 2000,
    LAUNCHES = 100,
    RESULTS = 4 << 20,
    KV_BYTES = 4096,
    MAX_PASSES = 256,
    MAX_REPEATS = 20,
    PREFILL_TOKENS = 64
};
#define MIB (1ull << 20)
static const uint64_t LEAST_WEIGHTS = 4 * MIB, PATIENCE_NS = 5000000000;

typedef struct bench {
    yk_profile_run *r;
    const yk_device_table *t;
    yk_machine_device *d;
    yk_gpu *gpu;
    yk_gpu_stream *stream[N_STREAMS];
    yk_gpu_event *event[N_STREAMS][2];
    yk_gpu_mem weights, x, y, pos, table, tiles, part, arrived; /* the last three of attention */
    yk_k_q8 q8;
    yk_gpu_kernel *kernel[2][YK_TYPE_LIMIT], *attention, *sigmoid; /* products: for few and for many tokens */
    uint64_t weight_bytes, host_bytes;
    uint8_t *pinned, *pageable; /* pinned NULL: the device locks no memory */
    uint32_t depth;             /* in pos */
    uint32_t gate, box, done;   /* values so far */
    double hand_off_ns[MAX_HAND_OFFS];
    uint32_t n_hand_offs;
    yk_error *err;
} bench;

static yk_status check(const bench *b, yk_status st, const char *what)
{
    if (st == YK_OK)
        return YK_OK;
    const char *text = b->t->last_error();
    return yk_fail(b->err, st, "measuring %s: %s: %s", b->d->name, what, text && *text ? text : yk_status_name(st));
}

#define GPU(call, what) YK_TRY(check(b, b->t->call, what))

/* ---- timing ---------------------------------------------------------------------------------------------------------------------------- */

/* What is enqueued on a stream between start and stop begins when the gate is opened. */
static yk_status start(const bench *b, int s)
{
    GPU(box_wait(b->stream[s], BOX_GATE, b->gate + 1), "a mailbox");
    GPU(event_record(b->stream[s], b->event[s][0]), "an event");
    return YK_OK;
}

static yk_status stop(const bench *b, int s)
{
    GPU(event_record(b->stream[s], b->event[s][1]), "an event");
    GPU(stream_flush(b->stream[s]), "a stream");
    return YK_OK;
}

static yk_status open_gate(bench *b)
{
    GPU(box_post(b->gpu, BOX_GATE, ++b->gate), "a mailbox");
    return YK_OK;
}

static yk_status finish(const bench *b, int s, uint64_t *begin_ns, uint64_t *end_ns)
{
    GPU(stream_sync(b->stream[s]), "waiting for its work");
    GPU(event_time(b->event[s][0], begin_ns), "an event");
    GPU(event_time(b->event[s][1], end_ns), "an event");
    *end_ns = *end_ns > *begin_ns ? *end_ns : *begin_ns + 1;
    return YK_OK;
}

/* ---- products and attention -------------------------------------------------------------------------------------------------------------- */

typedef struct work {
    yk_k_call call;
    double x;
} work;

static void make_product(const bench *b, yk_type type, uint32_t n_tokens, double bytes, work *w)
{
    const uint64_t panel = yk_panel_bytes(type, YK_PROFILE_COLS), most = b->weight_bytes / panel;
    const uint64_t rows_most = RESULTS / n_tokens / YK_TILE_ROWS;
    uint64_t panels = (uint64_t)(bytes / (double)panel + 0.5);
    panels = panels < 1 ? 1 : panels > most ? most : panels;
    panels = panels > rows_most ? rows_most : panels;
    const uint32_t rows = (uint32_t)(panels * YK_TILE_ROWS);
    const yk_k_matvec a = {.type = type,
                           .w = b->weights,
                           .x = b->x,
                           .q8 = b->q8,
                           .y = b->y,
                           .n = n_tokens,
                           .n_rows = rows,
                           .n_cols = YK_PROFILE_COLS,
                           .x_stride = yk_type_get(type)->quantised ? YK_PROFILE_COLS / 32 : YK_PROFILE_COLS,
                           .y_stride = rows,
                           .panel_bytes = (uint32_t)panel,
                           .tile_bytes = yk_tile_bytes(type, YK_TILE_COLS)};
    yk_k_call_matvec(&w->call, b->kernel[yk_k_matvec_wide(n_tokens)][type], &a);
    w->x = (double)(panels * panel);
}

static yk_status pass_work(bench *b, const work *w, yk_pass *out)
{
    YK_TRY(start(b, COMPUTE));
    GPU(launch(b->stream[COMPUTE], &w->call.launch), "a kernel");
    YK_TRY(stop(b, COMPUTE));
    YK_TRY(open_gate(b));
    out->x = w->x;
    return finish(b, COMPUTE, &out->begin_ns, &out->end_ns);
}

static yk_status pass_product(yk_item *it, double x, yk_pass *out, yk_error *err)
{
    (void)err; /* the bench has it */
    work w;
    make_product(it->lane, it->type, it->n, x, &w);
    return pass_work(it->lane, &w, out);
}

static uint32_t tile_tokens(void)
{
    return yk_k_attention_tile(YK_PROFILE_HEADS, YK_PROFILE_KV_HEADS, YK_PROFILE_HEAD_DIM);
}

static yk_status pass_attention(yk_item *it, double x, yk_pass *out, yk_error *err)
{
    (void)err;
    bench *b = it->lane;
    work w;
    const uint64_t most = b->weight_bytes / KV_BYTES / YK_K_KV_BLOCK * YK_K_KV_BLOCK;
    const uint32_t depth = x < (double)most ? (uint32_t)(x + 0.5) : (uint32_t)most;
    if (depth != b->depth) {
        uint32_t pos[PREFILL_TOKENS];
        for (int i = 0; i < PREFILL_TOKENS; i++)
            pos[i] = depth - 1;
        GPU(copy_to_device(b->stream[UP], b->pos, pos, sizeof pos), "a copy to the device");
        GPU(stream_sync(b->stream[UP]), "a copy to the device");
        b->depth = depth;
    }
    const uint64_t one = 2 * PREFILL_TOKENS * sizeof(uint32_t); /* behind the tiles of a prompt: one of one token */
    const yk_k_attention a = {
        .q = b->x,
        .pos = b->pos,
        .seq = {b->pos.handle, b->pos.offset + sizeof(uint32_t) * PREFILL_TOKENS, sizeof(uint32_t) * PREFILL_TOKENS},
        .out = b->y,
        .kv = {.kv = b->weights,
               .table = b->table,
               .block_bytes = KV_BYTES * YK_K_KV_BLOCK,
               .v_bytes = KV_BYTES * YK_K_KV_BLOCK / 2,
               .table_stride = (uint32_t)(most / YK_K_KV_BLOCK),
               .f16 = true},
        .tiles = it->n == 1 ? (yk_gpu_mem){b->tiles.handle, b->tiles.offset + one, b->tiles.bytes - one} : b->tiles,
        .part = b->part,
        .arrived = b->arrived,
        .n = it->n,
        .n_tiles = (it->n + tile_tokens() - 1) / tile_tokens(),
        .n_splits = it->n == 1 ? yk_k_attention_splits(depth - 1, 0, YK_PROFILE_HEAD_DIM) : 1,
        .q_stride = YK_PROFILE_COLS,
        .out_stride = YK_PROFILE_COLS,
        .n_heads = YK_PROFILE_HEADS,
        .n_kv_heads = YK_PROFILE_KV_HEADS,
        .head_dim = YK_PROFILE_HEAD_DIM,
        .mean_positions = depth,
        .scale = 0.0884f};
    yk_k_call_attention(&w.call, b->attention, &a);
    w.x = it->n == 1 ? (double)depth * KV_BYTES : 4.0 * it->n * depth * YK_PROFILE_HEADS * YK_PROFILE_HEAD_DIM;
    return pass_work(b, &w, out);
}

/* The longer of what the host takes to enqueue launches and what the device takes to run them. */
static yk_status pass_launches(yk_item *it, double x, yk_pass *out, yk_error *err)
{
    (void)err;
    bench *b = it->lane;
    yk_k_call call;
    yk_k_call_sigmoid(&call, b->sigmoid, b->x, b->y, YK_K_GROUP);
    YK_TRY(start(b, COMPUTE));
    const uint64_t begin = yk_now_ns();
    for (int i = 0; i < (int)x; i++)
        GPU(launch(b->stream[COMPUTE], &call.launch), "a launch");
    const uint64_t enqueue_ns = yk_now_ns() - begin;
    YK_TRY(stop(b, COMPUTE));
    YK_TRY(open_gate(b));
    YK_TRY(finish(b, COMPUTE, &out->begin_ns, &out->end_ns));
    if (out->end_ns - out->begin_ns < enqueue_ns)
        out->end_ns = out->begin_ns + enqueue_ns;
    out->x = x;
    return YK_OK;
}

/* ---- copies and hand-off ----------------------------------------------------------------------------------------------------------------- */

static yk_status enqueue_copy(const bench *b, int s, uint8_t *host, uint64_t bytes)
{
    if (s == UP)
        GPU(copy_to_device(b->stream[UP], b->weights, host, bytes), "a copy to the device");
    else if (s == DOWN)
        GPU(copy_to_host(b->stream[DOWN], host, b->weights, bytes), "a copy to the host");
    else {
        const yk_gpu_mem to = {b->weights.handle, b->weights.offset + b->weight_bytes / 2, b->weight_bytes / 2};
        GPU(copy_device(b->stream[COMPUTE], to, b->weights, bytes), "a copy on the device");
    }
    return YK_OK;
}

static yk_status pass_copy(yk_item *it, double x, yk_pass *out, yk_error *err)
{
    (void)err;
    bench *b = it->lane;
    const bool up = it->which == YK_LINK_TO_DEVICE || it->which == YK_LINK_PAGEABLE_TO_DEVICE;
    const int s = it->which == YK_LINK_FITS ? COMPUTE : up ? UP : DOWN;
    uint8_t *host = it->which == YK_LINK_TO_DEVICE || it->which == YK_LINK_TO_HOST ? b->pinned : b->pageable;
    YK_TRY(start(b, s));
    YK_TRY(enqueue_copy(b, s, host, (uint64_t)x));
    YK_TRY(stop(b, s));
    YK_TRY(open_gate(b));
    out->x = x;
    return finish(b, s, &out->begin_ns, &out->end_ns);
}

static yk_status wait_box(const bench *b, uint32_t box, uint32_t value, uint64_t *when)
{
    uint32_t now = 0, spins = 0;
    for (const uint64_t begin = yk_now_ns(); now < value; spins++) {
        if (spins > 50) /* as the engine waits */
            sched_yield();
        GPU(box_value(b->gpu, box, &now), "a mailbox");
        *when = yk_now_ns();
        if (now<value && * when - begin> PATIENCE_NS)
            return yk_fail(b->err, YK_ERR_RUNTIME, "measuring %s: no answer through the mailbox in %d s", b->d->name,
                           (int)(PATIENCE_NS / 1000000000));
    }
    return YK_OK;
}

/* Signal, host, answer: from one signal that the host sees to the next. */
static yk_status pass_hand_off(yk_item *it, double x, yk_pass *out, yk_error *err)
{
    (void)err;
    bench *b = it->lane;
    const uint32_t n = (uint32_t)x;
    uint64_t before = 0, now = 0;
    for (uint32_t i = 1; i <= n + 1; i++) {
        GPU(box_signal(b->stream[COMPUTE], BOX_TO_HOST, b->box + i), "a mailbox");
        GPU(box_wait(b->stream[COMPUTE], BOX_TO_DEVICE, b->box + i), "a mailbox");
    }
    GPU(stream_flush(b->stream[COMPUTE]), "a mailbox");
    for (uint32_t i = 1; i <= n + 1; i++) {
        YK_TRY(wait_box(b, BOX_TO_HOST, b->box + i, &now));
        GPU(box_post(b->gpu, BOX_TO_DEVICE, b->box + i), "a mailbox");
        if (i > 1 && b->n_hand_offs < MAX_HAND_OFFS)
            b->hand_off_ns[b->n_hand_offs++] = (double)(now - before);
        out->begin_ns = i == 1 ? now : out->begin_ns;
        before = out->end_ns = now;
    }
    b->box += n + 1;
    GPU(stream_sync(b->stream[COMPUTE]), "mailboxes");
    out->x = x;
    return YK_OK;
}

/* ---- both at once ------------------------------------------------------------------------------------------------------------------------ */

/* The same work again and again on one stream. */
typedef struct train {
    int s;
    uint8_t *host;
    uint64_t bytes; /* of a copy */
    const work *w;  /* NULL: copies */
    uint32_t n;
} train;

static yk_status enqueue_train(const bench *b, const train *t)
{
    YK_TRY(start(b, t->s));
    for (uint32_t i = 0; i < t->n; i++)
        if (t->w)
            GPU(launch(b->stream[t->s], &t->w->call.launch), "a kernel");
        else
            YK_TRY(enqueue_copy(b, t->s, t->host, t->bytes));
    return stop(b, t->s);
}

static yk_status run_alone(bench *b, const train *t, double *ns)
{
    uint64_t begin, end;
    YK_TRY(enqueue_train(b, t));
    YK_TRY(open_gate(b));
    YK_TRY(finish(b, t->s, &begin, &end));
    *ns = (double)(end - begin);
    return YK_OK;
}

/* A train of about `want_ns`. */
static yk_status size_train(bench *b, train *t, double want_ns)
{
    double ns;
    t->n = 1;
    YK_TRY(run_alone(b, t, &ns));
    YK_TRY(run_alone(b, t, &ns));
    t->n = (uint32_t)fmin(want_ns / ns + 1, 1000);
    return YK_OK;
}

static double overlap_of(uint64_t a0, uint64_t a1, uint64_t b0, uint64_t b1)
{
    const uint64_t from = a0 > b0 ? a0 : b0, to = a1 < b1 ? a1 : b1;
    return to > from ? (double)(to - from) : 0;
}

/* Median of factors; says so when they do not agree. */
static double settle(bench *b, yk_samples *s, const char *name)
{
    yk_item it = {.s = *s};
    snprintf(it.name, sizeof it.name, "%s.%s", b->d->name, name);
    yk_fit_line(&it.s, true, &it.line);
    it.line.settled = it.line.interval <= YK_FIT_INTERVAL || it.line.spread <= YK_FIT_SPREAD;
    yk_profile_take(b->r, &it);
    return yk_samples_quantile(s, 1, 0.5) / 1e6;
}

static bool time_left(const bench *b, uint32_t done, double share, uint64_t begin)
{
    const uint64_t now = yk_now_ns();
    const double length = b->r->deadline_ns > begin ? (double)(b->r->deadline_ns - begin) : 0;
    return done < 3 || (done < MAX_REPEATS && (double)(now - begin) < share * length);
}

static yk_status both_ways(bench *b, double want_ns)
{
    uint8_t *host = b->pinned ? b->pinned : b->pageable;
    const uint64_t bytes = b->host_bytes / 2 < 4 * MIB ? b->host_bytes / 2 : 4 * MIB, begin = yk_now_ns();
    train up = {.s = UP, .host = host, .bytes = bytes}, down = {.s = DOWN, .host = host + b->host_bytes / 2, .bytes = bytes};
    yk_samples f_up = {0}, f_down = {0};
    YK_TRY(size_train(b, &up, want_ns));
    YK_TRY(size_train(b, &down, want_ns));
    for (uint32_t i = 0; time_left(b, i, 0.3, begin); i++) {
        double a_up, a_down;
        uint64_t u0, u1, d0, d1;
        YK_TRY(yk_profile_tell(b->r, b->err));
        YK_TRY(run_alone(b, &up, &a_up));
        YK_TRY(run_alone(b, &down, &a_down));
        YK_TRY(enqueue_train(b, &up));
        YK_TRY(enqueue_train(b, &down));
        YK_TRY(open_gate(b));
        YK_TRY(finish(b, UP, &u0, &u1));
        YK_TRY(finish(b, DOWN, &d0, &d1));
        const double busy = overlap_of(u0, u1, d0, d1);
        yk_samples_add(&f_up, 1, 1e6 * yk_slowdown((double)(u1 - u0), a_up, busy), 0);
        yk_samples_add(&f_down, 1, 1e6 * yk_slowdown((double)(d1 - d0), a_down, busy), 0);
    }
    b->d->both_to_device_bytes_per_s = b->d->to_device_bytes_per_s / settle(b, &f_up, "both.to_device");
    b->d->both_to_host_bytes_per_s = b->d->to_host_bytes_per_s / settle(b, &f_down, "both.to_host");
    return YK_OK;
}

typedef struct cpu_work {
    const yk_profile_cpu *cpu;
    yk_type type;
    uint64_t bytes;
    yk_pass pass[MAX_PASSES];
    uint32_t n;
} cpu_work;

static yk_status cpu_pass(bench *b, cpu_work *c)
{
    if (c->n == MAX_PASSES) /* the first ones are enough */
        c->n--;
    return c->cpu->product(c->cpu->self, &(yk_profile_work){c->type, 1, 1, false}, c->bytes, &c->pass[c->n++], b->err);
}

/* Nanoseconds a byte, over passes inside [from, to]; 0: there are none. */
static double cpu_ns_per_byte(const cpu_work *c, uint64_t from, uint64_t to, double *busy_ns)
{
    double ns = 0, x = 0;
    *busy_ns = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        const yk_pass *p = &c->pass[i];
        *busy_ns += overlap_of(p->begin_ns, p->end_ns, from, to);
        if (p->begin_ns < from || p->end_ns > to)
            continue;
        ns += (double)(p->end_ns - p->begin_ns);
        x += p->x;
    }
    return x > 0 ? ns / x : 0;
}

/* The CPU computes from the opening of the gate until the copies are done. */
static yk_status compute_beside(bench *b, const train *up, const train *gpu, cpu_work *c)
{
    uint32_t value = 0;
    const uint64_t begin = yk_now_ns();
    if (gpu)
        YK_TRY(enqueue_train(b, gpu));
    YK_TRY(enqueue_train(b, up));
    GPU(box_signal(b->stream[UP], BOX_DONE, ++b->done), "a mailbox");
    GPU(stream_flush(b->stream[UP]), "copies");
    YK_TRY(open_gate(b));
    for (c->n = 0; value < b->done && yk_now_ns() - begin < PATIENCE_NS;) {
        YK_TRY(cpu_pass(b, c));
        GPU(box_value(b->gpu, BOX_DONE, &value), "a mailbox");
    }
    return YK_OK;
}

typedef struct factors {
    yk_samples cpu, up, gpu;
} factors;

static yk_status overlap_once(bench *b, const train *up, const train *gpu, cpu_work *c, factors *f)
{
    double a_up, a_gpu, busy;
    uint64_t u0, u1, g0, g1;
    YK_TRY(run_alone(b, up, &a_up));
    YK_TRY(run_alone(b, gpu, &a_gpu));
    for (c->n = 0; c->n < 5;)
        YK_TRY(cpu_pass(b, c));
    const double alone = cpu_ns_per_byte(c, 0, UINT64_MAX, &busy);
    YK_TRY(compute_beside(b, up, NULL, c));
    YK_TRY(finish(b, UP, &u0, &u1));
    const double beside = cpu_ns_per_byte(c, u0, u1, &busy);
    if (beside > 0)
        yk_samples_add(&f->cpu, 1, 1e6 * fmax(beside / alone, 1), 0);
    if (busy > 0)
        yk_samples_add(&f->up, 1, 1e6 * yk_slowdown((double)(u1 - u0), a_up, busy), 0);
    YK_TRY(compute_beside(b, up, gpu, c));
    YK_TRY(finish(b, UP, &u0, &u1));
    YK_TRY(finish(b, COMPUTE, &g0, &g1));
    yk_samples_add(&f->gpu, 1, 1e6 * yk_slowdown((double)(g1 - g0), a_gpu, overlap_of(g0, g1, u0, u1)), 0);
    return YK_OK;
}

static yk_type fastest(const yk_rates *rates, yk_gpu_kernel *const *kernels)
{
    uint32_t best = YK_TYPE_LIMIT;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
        if (rates->product[t][0] > 0 && (!kernels || kernels[t]) &&
            (best == YK_TYPE_LIMIT || rates->product[t][0] > rates->product[best][0]))
            best = t;
    return (yk_type)best;
}

static yk_status overlap(bench *b, double want_ns)
{
    const uint64_t bytes = b->host_bytes < 4 * MIB ? b->host_bytes : 4 * MIB, begin = yk_now_ns();
    const yk_rates *cpu = &b->r->m->rates;
    cpu_work c = {.cpu = b->r->cpu, .type = fastest(cpu, NULL)};
    const yk_type type = fastest(&b->d->rates, b->kernel[0]);
    work w;
    factors f = {0};
    train up = {.s = UP, .host = b->pinned ? b->pinned : b->pageable, .bytes = bytes}, gpu = {.s = COMPUTE, .w = &w};
    if ((uint32_t)c.type == YK_TYPE_LIMIT || (uint32_t)type == YK_TYPE_LIMIT)
        return YK_OK;
    c.bytes = (uint64_t)fmax(cpu->product[c.type][0] * want_ns / 8 / 1e9, 1); /* eight passes in the time of the copies */
    make_product(b, type, 1, b->d->rates.product[type][0] * want_ns / 8 / 1e9, &w);
    YK_TRY(size_train(b, &up, want_ns));
    YK_TRY(size_train(b, &gpu, want_ns / 2));
    for (uint32_t i = 0; time_left(b, i, 1, begin); i++) {
        YK_TRY(yk_profile_tell(b->r, b->err));
        YK_TRY(overlap_once(b, &up, &gpu, &c, &f));
    }
    if (f.up.n && f.cpu.n) {
        b->d->overlap_to_device_bytes_per_s = b->d->to_device_bytes_per_s / settle(b, &f.up, "overlap.to_device");
        b->d->overlap_cpu_bytes_per_s = cpu->product[c.type][0] / settle(b, &f.cpu, "overlap.cpu");
        b->d->overlap_device_bytes_per_s = b->d->rates.product[type][0] / settle(b, &f.gpu, "overlap.device");
    }
    return YK_OK;
}

/* ---- a device ---------------------------------------------------------------------------------------------------------------------------- */

static yk_item *add(bench *b, bool quiet, yk_status (*pass)(yk_item *, double, yk_pass *, yk_error *), const char *what)
{
    yk_item *it = yk_profile_item(b->r, "%s.%s", b->d->name, what);
    if (!it)
        return NULL;
    it->lane = b;
    it->pass = pass;
    it->quiet = quiet;
    it->n_x = 1;
    return it;
}

static bool add_products(bench *b)
{
    const bool *types = b->r->o->types;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
        for (uint32_t i = 0; i < YK_FIT_TOKENS && b->kernel[0][t]; i++) {
            char name[32];
            const double unit = 3 * 256.0 / YK_TILE_ROWS * (double)yk_panel_bytes((yk_type)t, YK_PROFILE_COLS);
            if (!yk_profile_wants(b->r->o, yk_fit_tokens(i)))
                continue;
            snprintf(name, sizeof name, "%s.%u", yk_type_get((yk_type)t)->name, yk_fit_tokens(i));
            yk_item *it = add(b, !types[t], pass_product, name);
            if (!it)
                return false;
            it->type = (yk_type)t;
            it->n = yk_fit_tokens(i);
            it->n_x = 2;
            it->x[0] = unit;
            it->x[1] = 8 * unit;
            it->least = unit / 48;
            it->to = &b->d->rates.product_fit[t][i];
        }
    return true;
}

static bool add_attention(bench *b, yk_fit *prefill)
{
    for (int k = 0; k < 2; k++) {
        yk_item *it = add(b, false, pass_attention, k ? "attention.prefill" : "attention");
        if (!it)
            return false;
        it->n = k ? PREFILL_TOKENS : 1;
        it->n_x = b->r->o->quick ? 2 : 3;
        for (uint32_t i = 0; i < it->n_x; i++)
            it->x[i] = 256u << 2 * i;
        it->least = 16;
        it->to = k ? prefill : &b->d->rates.attention_fit;
    }
    return true;
}

static bool add_copies(bench *b)
{
    static const char *const names[] = {"to_device", "to_host", "pageable.to_device", "pageable.to_host", "copy"};
    for (uint32_t k = 0; k <= YK_LINK_FITS; k++) {
        if (!b->pinned && k < YK_LINK_PAGEABLE_TO_DEVICE)
            continue;
        yk_item *it = add(b, false, pass_copy, names[k]);
        if (!it)
            return false;
        const uint64_t most = k == YK_LINK_FITS ? b->weight_bytes / 2 : b->host_bytes;
        it->which = k;
        it->n_x = 0;
        for (uint64_t x = 4096; x <= most && it->n_x < YK_FIT_SIZES; x *= b->r->o->quick ? 64 : 4)
            it->x[it->n_x++] = (double)x;
        it->drop = true;
        it->to = k == YK_LINK_FITS ? &b->d->copy_fit : &b->d->link_fit[k];
    }
    return true;
}

static bool add_others(bench *b, yk_fit *launch)
{
    yk_item *it = add(b, false, pass_launches, "launch");
    if (!it)
        return false;
    it->x[0] = LAUNCHES;
    it->fixed = it->proportional = true;
    it->to = launch;
    it = add(b, true, pass_hand_off, "hand_off");
    if (!it)
        return false;
    it->x[0] = HAND_OFFS;
    it->fixed = it->proportional = true;
    return true;
}

static int by_value(const void *p, const void *q)
{
    const double x = *(const double *)p, y = *(const double *)q;
    return x < y ? -1 : x > y;
}

static void take(bench *b, const yk_fit *launch, const yk_fit *prefill)
{
    yk_machine_device *d = b->d;
    const yk_fit *up = &d->link_fit[b->pinned ? YK_LINK_TO_DEVICE : YK_LINK_PAGEABLE_TO_DEVICE];
    const yk_fit *down = &d->link_fit[b->pinned ? YK_LINK_TO_HOST : YK_LINK_PAGEABLE_TO_HOST];
    double fixed[YK_TYPE_LIMIT];
    uint32_t n = 0;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
        yk_profile_fill_buckets(d->rates.product[t], d->rates.product_fit[t]);
        if (d->rates.product_fit[t][0].per_s > 0)
            fixed[n++] = d->rates.product_fit[t][0].ns;
    }
    qsort(fixed, n, sizeof *fixed, by_value);
    d->launch_ns = launch->per_s > 0 ? 1e9 / launch->per_s : -1;
    d->rates.fixed_ns = n ? fmax(fixed[n / 2] - d->launch_ns, 0) : 0;
    d->rates.attention_flops_per_s = prefill->per_s;
    qsort(b->hand_off_ns, b->n_hand_offs, sizeof *b->hand_off_ns, by_value);
    if (b->n_hand_offs) {
        d->hand_off_ns = b->hand_off_ns[b->n_hand_offs / 2];
        d->hand_off_p99_ns = b->hand_off_ns[(uint32_t)(0.99 * (b->n_hand_offs - 1) + 0.5)];
    }
    d->to_device_bytes_per_s = up->per_s;
    d->to_device_ns = up->ns;
    d->to_host_bytes_per_s = down->per_s;
    d->to_host_ns = down->ns;
    if (!d->same_silicon && !d->shared_memory) /* what is copied is read */
        d->to_device_bytes_per_s = fmin(up->per_s, b->r->m->rates.read_bytes_per_s);
}

static yk_status upload(const bench *b, yk_gpu_mem to, const void *from, uint64_t bytes)
{
    GPU(copy_to_device(b->stream[UP], to, from, bytes), "a copy to the device");
    GPU(stream_sync(b->stream[UP]), "a copy to the device");
    return YK_OK;
}

/* Bytes whose bits are ordinary numbers in every format. */
static void fill_host(uint8_t *p, uint64_t bytes)
{
    uint64_t z = 1;
    for (uint64_t i = 0; i + 8 <= bytes; i += 8) {
        z = z * 6364136223846793005u + 1442695040888963407u;
        const uint64_t v = 0x2c2c2c2c2c2c2c2cu + ((z ^ z >> 29) & 0x0707070707070707u);
        memcpy(p + i, &v, 8);
    }
}

static yk_status reserve_host(bench *b)
{
    void *p = NULL;
    b->pageable = yk_alloc(YK_MEM_RUNTIME, b->host_bytes, 1);
    if (!b->pageable)
        return yk_fail_memory(b->err, b->host_bytes, "measuring copies");
    fill_host(b->pageable, b->host_bytes);
    if (b->t->host_alloc(b->gpu, b->host_bytes, &p) == YK_OK) {
        b->pinned = p;
        memcpy(b->pinned, b->pageable, b->host_bytes);
    }
    return YK_OK;
}

static yk_status reserve(bench *b)
{
    uint32_t tiles[2 * (PREFILL_TOKENS + 1)] = {[2 * PREFILL_TOKENS + 1] = 1};
    const uint64_t n = (uint64_t)YK_PROFILE_TOKENS * YK_PROFILE_COLS, blocks = b->weight_bytes / KV_BYTES / YK_K_KV_BLOCK;
    const struct {
        yk_gpu_mem *mem;
        uint64_t bytes;
    } parts[] = {{&b->x, n * sizeof(float)},
                 {&b->y, sizeof(float) * RESULTS},
                 {&b->q8.q, n},
                 {&b->q8.scale, n / 32 * sizeof(float)},
                 {&b->q8.sum, n / 16 * sizeof(int16_t)},
                 {&b->pos, 2 * PREFILL_TOKENS * sizeof(uint32_t)},
                 {&b->table, blocks * sizeof(uint32_t)},
                 {&b->tiles, sizeof tiles},
                 {&b->part, yk_k_attention_part_bytes(YK_PROFILE_HEADS, YK_PROFILE_KV_HEADS, YK_PROFILE_HEAD_DIM, UINT32_MAX)},
                 {&b->arrived, YK_PROFILE_HEADS * sizeof(uint32_t)}};
    YK_TRY(reserve_host(b));
    GPU(mem_alloc(b->gpu, YK_MEM_WEIGHTS, b->weight_bytes, &b->weights), "memory");
    for (uint64_t at = 0; at < b->weight_bytes; at += b->host_bytes) {
        const uint64_t left = b->weight_bytes - at, part = left < b->host_bytes ? left : b->host_bytes;
        YK_TRY(upload(b, (yk_gpu_mem){b->weights.handle, b->weights.offset + at, part}, b->pageable, part));
    }
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        GPU(mem_alloc(b->gpu, YK_MEM_ACTIVATION, parts[i].bytes, parts[i].mem), "memory");
        GPU(fill(b->stream[COMPUTE], *parts[i].mem, parts[i].mem == &b->pos || parts[i].mem == &b->arrived ? 0 : 0x3c,
                 parts[i].bytes),
            "a fill");
    }
    GPU(stream_sync(b->stream[COMPUTE]), "a fill");
    uint32_t *ids = yk_alloc(YK_MEM_RUNTIME, blocks, sizeof *ids);
    if (!ids)
        return yk_fail_memory(b->err, blocks * sizeof *ids, "a block table");
    for (uint32_t i = 0; i < blocks; i++)
        ids[i] = i;
    const yk_status st = upload(b, b->table, ids, blocks * sizeof *ids);
    yk_free(ids);
    yk_k_attention_tiles(tiles, 0, PREFILL_TOKENS, tile_tokens());
    return st == YK_OK ? upload(b, b->tiles, tiles, sizeof tiles) : st;
}

/* The types asked for that the device has; Q8_0 when it has none of them. */
static yk_status find_kernels(bench *b)
{
    bool any = false;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
        any |= b->r->o->types[t] && yk_k_matvec_name((yk_type)t, 1) && yk_pack_has((yk_type)t);
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
        for (int many = 0; (any ? b->r->o->types[t] : t == YK_TYPE_Q8_0) && many < 2; many++) {
            const char *name = yk_k_matvec_name((yk_type)t, many ? yk_fit_tokens(YK_FIT_TOKENS - 1) : 1);
            if (name && yk_pack_has((yk_type)t))
                GPU(kernel_get(b->gpu, name, &b->kernel[many][t]), name);
        }
    GPU(kernel_get(b->gpu, "attention", &b->attention), "attention");
    GPU(kernel_get(b->gpu, "sigmoid", &b->sigmoid), "sigmoid");
    return YK_OK;
}

static yk_status measure(bench *b)
{
    static const yk_gpu_stream_kind kinds[N_STREAMS] = {YK_STREAM_COMPUTE, YK_STREAM_TO_DEVICE, YK_STREAM_TO_HOST};
    yk_profile_run *r = b->r;
    yk_fit launch = {0}, prefill = {0};
    for (int s = 0; s < N_STREAMS; s++) {
        GPU(stream_open(b->gpu, kinds[s], &b->stream[s]), "a stream");
        for (int i = 0; i < 2; i++)
            GPU(event_open(b->gpu, &b->event[s][i]), "an event");
    }
    YK_TRY(reserve(b));
    YK_TRY(find_kernels(b));
    if (!add_products(b) || !add_attention(b, &prefill) || !add_copies(b) || !add_others(b, &launch))
        return yk_fail_memory(b->err, r->n_items * sizeof *r->items, "measuring a device");
    if (r->cpu->attach)
        YK_TRY(r->cpu->attach(r->cpu->self, b->t, b->gpu));
    const uint64_t now = yk_now_ns(), end = r->deadline_ns;
    r->deadline_ns = now + (end > now ? (end - now) / 4 * 3 : 0);
    yk_status st = yk_profile_items(r, b->err);
    if (st == YK_OK)
        take(b, &launch, &prefill);
    r->deadline_ns = end;
    const double left = end > yk_now_ns() ? (double)(end - yk_now_ns()) : 0, want = fmin(fmax(left / 40, 2e6), 50e6);
    if (st == YK_OK)
        st = both_ways(b, want / 2);
    if (st == YK_OK)
        st = overlap(b, want);
    if (r->cpu->attach)
        r->cpu->attach(r->cpu->self, NULL, NULL);
    return st;
}

/* Everything else ends with the device. */
static void close_bench(bench *b)
{
    yk_gpu_mem *const mem[] = {&b->x,   &b->y,     &b->q8.q,  &b->q8.scale, &b->q8.sum,
                               &b->pos, &b->table, &b->tiles, &b->part,     &b->arrived};
    if (!b->gpu)
        return;
    b->t->box_post(b->gpu, BOX_TO_DEVICE, UINT32_MAX);
    b->t->box_post(b->gpu, BOX_GATE, UINT32_MAX);
    for (int s = 0; s < N_STREAMS; s++)
        if (b->stream[s])
            b->t->stream_sync(b->stream[s]);
    for (int s = 0; s < N_STREAMS; s++)
        for (int i = 0; i < 2; i++)
            if (b->event[s][i])
                b->t->event_close(b->event[s][i]);
    for (int s = 0; s < N_STREAMS; s++)
        if (b->stream[s])
            b->t->stream_close(b->stream[s]);
    for (size_t i = 0; i < sizeof mem / sizeof *mem; i++)
        if (mem[i]->handle)
            b->t->mem_free(b->gpu, YK_MEM_ACTIVATION, mem[i]);
    if (b->weights.handle)
        b->t->mem_free(b->gpu, YK_MEM_WEIGHTS, &b->weights);
    if (b->pinned)
        b->t->host_free(b->gpu, b->pinned);
    b->t->close(b->gpu);
    yk_free(b->pageable);
}

/* Room for weights and copies: beyond the device's caches where there is as much. */
static yk_status choose_sizes(bench *b, const yk_gpu_info *info)
{
    const bool quick = b->r->o->quick;
    const uint64_t free_bytes = info->memory_free_bytes ? info->memory_free_bytes : info->memory_bytes;
    uint64_t bytes = quick ? 64 * MIB : 256 * MIB;
    bytes = bytes > free_bytes / 4 ? free_bytes / 4 : bytes;
    bytes = info->max_alloc_bytes && bytes > info->max_alloc_bytes ? info->max_alloc_bytes : bytes;
    b->weight_bytes = bytes / 65536 * 65536;
    b->host_bytes = quick && b->weight_bytes > 16 * MIB ? 16 * MIB : b->weight_bytes;
    return b->weight_bytes < LEAST_WEIGHTS
               ? yk_fail(b->err, YK_ERR_RUNTIME, "measuring %s: it has too little free memory", b->d->name)
               : YK_OK;
}

yk_status yk_profile_device(yk_profile_run *r, const yk_backend *backend, uint32_t index, yk_error *err)
{
    yk_machine *m = r->m;
    YK_FAIL_IF(m->n_devices == YK_MAX_DEVICES, err, YK_ERR_RUNTIME, "more than %d devices", YK_MAX_DEVICES);
    yk_machine_device *d = &m->devices[m->n_devices];
    bench *b = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *b);
    if (!b)
        return yk_fail_memory(err, sizeof *b, "measuring a device");
    *b = (bench){.r = r, .t = &backend->table, .d = d, .err = err};
    yk_gpu_info info;
    *d = (yk_machine_device){
        .launch_ns = -1, .hand_off_ns = -1, .to_device_ns = -1, .to_host_ns = -1, .rates = {.fixed_ns = -1}};
    snprintf(d->name, sizeof d->name, "%s:%u", backend->name, index);
    snprintf(d->backend, sizeof d->backend, "%s", backend->name);
    yk_status st = check(b, b->t->info(index, &info), "its description");
    if (st == YK_OK) {
        snprintf(d->description, sizeof d->description, "%s", info.name);
        snprintf(d->driver, sizeof d->driver, "%s", info.driver);
        d->memory_bytes = info.memory_bytes;
        d->same_silicon = info.same_silicon;
        d->shared_memory = info.shared_memory;
        st = choose_sizes(b, &info);
    }
    if (st == YK_OK)
        st = check(b, b->t->open(&b->gpu, index, b->weight_bytes + 64 * MIB), "opening it");
    if (st == YK_OK)
        st = measure(b);
    close_bench(b);
    yk_free(b);
    if (st == YK_OK)
        m->n_devices++;
    return st;
}
