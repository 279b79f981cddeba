/* Residency that follows the routing, against other policies, on drawn traces and the shelf's machines. All times are those of the cost model;
 * what a copy costs is the same for every policy (yk_resident_copy_cost). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "partition/residency.h"
#include "partition/routing.h"
#include "partition_util.h"
#include "src/base/clock.h"

enum { N_TOKENS = 2000, MAX_E = 128, MAX_LAYERS = 64, DEPTH = 1024 };

/* INFORMED knows the law of the routing and when it changes, but not the dice: no policy without foresight can be better than chance makes it.
 * ORACLE knows what will be chosen in its window (the better one of two). Both keep to our rule for swaps and have the same link. */
enum { STATIC, LRU, LFU, OURS, INFORMED, ORACLE, N_POLICIES };

static const struct {
    const char *machine, *shape;
    uint32_t gib;
} cases[] = {{"rtx-3060-ddr4", "mixtral-8x7b", 12},
             {"rtx-4060-laptop", "qwen3-30b-a3b", 7},
             {"rtx-4060-laptop", "gpt-oss-20b", 6},
             {"rtx-3060ti-pcie3x4", "qwen3-30b-a3b", 7},
             {"rtx-4090-desktop", "mixtral-8x7b", 16}};

/* Routing by name; `phase`: tokens after which each layer prefers other experts, 0: never. */
static const struct {
    const char *name;
    double zipf, reuse;
    uint32_t phase;
    int locality; /* 0: nothing to gain; 1: uses last for less than a copy takes to pay on a slow link; 2: longer */
} traces[] = {{"even", 0, 0, 0, 0},
              {"zipf 0.6", 0.6, 0, 0, 2},
              {"zipf 1.2", 1.2, 0, 0, 2},
              {"bursts 0.7", 0, 0.7, 0, 1},
              {"bursts 0.95", 0, 0.95, 0, 2},
              {"zipf 1, change", 1, 0, N_TOKENS / 2, 2},
              {"topics of 250", 1.2, 0, 250, 2}};
enum { N_CASES = sizeof cases / sizeof *cases, N_TRACES = sizeof traces / sizeof *traces };

typedef struct setting {
    yk_shape shape;
    yk_plan plan;
    yk_resident_layer *layers;
    uint8_t *kinds; /* [n_layers][MAX_E] */
    double rest_s;
    uint32_t n_gg, n_experts;
} setting;

static yk_machine machine; /* large */

static void open_setting(setting *s, const char *machine_name, const char *shape, uint32_t gib)
{
    yk_error err = {0};
    yk_cost cost;
    yk_pt_machine(&machine, machine_name);
    yk_pt_shape(&s->shape, shape, NULL);
    const yk_plan_limits limits = yk_pt_limits(&machine, (uint64_t)gib << 30);
    if (yk_plan_solve(&s->plan, &machine, &s->shape, &limits, &err) != YK_OK)
        fail_msg("%s", err.text);
    assert_int_equal(s->plan.n_devices, 1);
    yk_cost_init(&cost, &machine, 0, &s->shape);
    s->layers = calloc(s->shape.n_layers, sizeof *s->layers);
    s->kinds = calloc(s->shape.n_layers, MAX_E);
    assert_non_null(s->layers);
    assert_non_null(s->kinds);
    s->n_gg = s->n_experts = 0;
    double layers_s = 0;
    for (uint32_t l = 0; l < s->shape.n_layers; l++) {
        yk_resident_layer *y = &s->layers[l];
        uint8_t *kinds = s->kinds + (size_t)l * MAX_E;
        yk_resident_price(y, kinds, &cost, &s->plan, l, DEPTH, 2);
        uint32_t n[3] = {0};
        for (uint32_t e = 0; e < y->n_experts; e++)
            n[kinds[e]]++;
        s->n_gg += n[YK_KIND_GG];
        s->n_experts += y->n_experts;
        layers_s += y->n_experts ? yk_spread_mean(y->at, y->n_used, n) : 0;
    }
    s->rest_s =
        fmax(0, yk_cost_plan(&cost, &s->plan, &(yk_step_kind){.n = 1, .depth = DEPTH, .kv_elem_bytes = 2}, NULL) - layers_s);
}

static void close_setting(setting *s)
{
    yk_shape_close(&s->shape);
    yk_plan_clear(&s->plan);
    free(s->layers);
    free(s->kinds);
}

static void draw(yk_routing *out, const setting *s, int trace, uint64_t seed, uint32_t n_tokens)
{
    yk_error err = {0};
    yk_routing_draw d = {.seed = seed,
                         .n_tokens = n_tokens,
                         .n_layers = s->shape.n_layers,
                         .n_experts = s->shape.n_experts,
                         .n_used = s->shape.n_used,
                         .zipf = traces[trace].zipf,
                         .reuse = traces[trace].reuse};
    assert_int_equal(yk_routing_make(out, &d, &err), YK_OK);
    const size_t row = (size_t)d.n_layers * d.n_used;
    for (uint32_t t = traces[trace].phase; t && t < n_tokens; t += traces[trace].phase) {
        yk_routing next;
        d.seed++;
        d.n_tokens = traces[trace].phase < n_tokens - t ? traces[trace].phase : n_tokens - t;
        assert_int_equal(yk_routing_make(&next, &d, &err), YK_OK);
        memcpy(out->pick + t * row, next.pick, d.n_tokens * row * sizeof *next.pick);
        yk_routing_close(&next);
    }
}

/* A policy at work. */
typedef struct player {
    const setting *s;
    const yk_routing *r;
    uint8_t *kinds;     /* [n_layers][MAX_E] */
    uint8_t *moving;    /* [n_layers][MAX_E] */
    uint32_t *last, *n; /* [n_layers][MAX_E] token of the last use, uses */
    yk_resident_copy *copies;
    uint32_t n_copies, token, swaps;
    uint16_t *future;      /* [N_TOKENS + 1][n_layers][MAX_E] uses before a token; oracle */
    uint32_t window;       /* oracle: uses in so many tokens count; 0: the law is known */
    uint32_t phase;        /* of the trace */
    double rho;            /* share of an expert's distance from its mean that the next token keeps */
    double saved, saved_n; /* oracle: what a use saves, running mean */
    yk_resident_idle idle; /* of the last token */
} player;

static bool resident(const player *p, uint32_t l, uint32_t e)
{
    return p->kinds[(size_t)l * MAX_E + e] == YK_KIND_GG;
}

static void begin_copy(player *p, uint32_t l, uint32_t in, uint32_t out, double to)
{
    uint8_t *kinds = p->kinds + (size_t)l * MAX_E;
    kinds[out] = kinds[in];
    p->moving[(size_t)l * MAX_E + in] = p->moving[(size_t)l * MAX_E + out] = 1;
    p->copies[p->n_copies++] = (yk_resident_copy){l, in, out, 0, to};
}

/* Each expert that was missed takes the place of the one used longest ago, or least often. */
static void admit_misses(player *p, bool lfu)
{
    for (uint32_t l = 0; l < p->r->n_layers; l++) {
        const uint32_t *rank = (lfu ? p->n : p->last) + (size_t)l * MAX_E;
        const uint16_t *picks = yk_routing_at(p->r, p->token, l);
        for (uint32_t i = 0; i < p->r->n_used && p->s->layers[l].n_experts; i++) {
            uint32_t out = UINT32_MAX;
            if (resident(p, l, picks[i]))
                continue;
            for (uint32_t e = 0; e < p->s->layers[l].n_experts; e++)
                if (resident(p, l, e) && (out == UINT32_MAX || rank[e] < rank[out]))
                    out = e;
            if (out != UINT32_MAX && rank[out] < rank[picks[i]])
                begin_copy(p, l, picks[i], out, 1);
        }
    }
}

static const uint16_t *future_of(const player *p, uint32_t token, uint32_t l)
{
    return p->future + ((size_t)(token < N_TOKENS ? token : N_TOKENS) * p->r->n_layers + l) * MAX_E;
}

/* Uses that an expert will have once it could be resident (`late`: its copy takes a token), in our horizon or the window. */
static double uses_of(const player *p, uint32_t l, uint32_t e, bool late)
{
    if (p->window) {
        const uint32_t from = p->token + 1 + late;
        return future_of(p, p->token + 2 + p->window, l)[e] - future_of(p, from, l)[e];
    }
    const uint32_t t = p->token + 1 < N_TOKENS ? p->token + 1 : N_TOKENS - 1, begin = p->phase ? t / p->phase * p->phase : 0,
                   end = p->phase && begin + p->phase < N_TOKENS ? begin + p->phase : N_TOKENS;
    const double b = (double)(future_of(p, end, l)[e] - future_of(p, begin, l)[e]) / (end - begin);
    const bool last = future_of(p, p->token + 1, l)[e] > future_of(p, p->token, l)[e];
    return YK_RESIDENCY_TOKENS * b + (last - b) * p->rho / (1 - p->rho);
}

typedef struct foreseen {
    uint32_t in, out;
    double gain; /* uses for each second of the copy */
} foreseen;

static foreseen foresee_layer(const player *p, uint32_t l)
{
    const yk_resident_layer *y = &p->s->layers[l];
    const uint8_t *moving = p->moving + (size_t)l * MAX_E;
    foreseen s = {UINT32_MAX, UINT32_MAX, -1};
    double most = 0, least = 0;
    for (uint32_t e = 0; e < y->n_experts; e++) {
        const bool miss = !resident(p, l, e);
        const double u = moving[e] ? 0 : uses_of(p, l, e, miss);
        if (!moving[e] && !miss && (s.out == UINT32_MAX || u < least))
            s.out = e, least = u;
        if (!moving[e] && miss && (s.in == UINT32_MAX || u > most))
            s.in = e, most = u;
    }
    if (s.in != UINT32_MAX && s.out != UINT32_MAX)
        s.gain = (most - least) / y->copy_s;
    return s;
}

/* The best swaps for those who know more. */
static void foresee(player *p)
{
    const double saved = p->saved_n > 0 ? p->saved / p->saved_n : 0;
    double left = 0.8 * p->idle.link_s;
    const double noisy = left - 0.8 * p->idle.both_s;
    for (uint32_t i = 0; i < p->n_copies; i++) {
        yk_resident_copy *c = &p->copies[i];
        const double all = p->s->layers[c->layer].copy_s, share = fmin(left / all, 1 - c->to);
        c->from = c->to;
        c->to = share >= 1 - c->to ? 1 : c->to + share;
        left -= (c->to - c->from) * all;
    }
    uint32_t n_layers = p->r->n_layers, changed = n_layers;
    foreseen swaps[MAX_LAYERS];
    while (left > 0 && p->n_copies < YK_RESIDENCY_COPIES) {
        uint32_t at = 0;
        for (uint32_t l = 0; l < n_layers; l++) {
            if (changed == n_layers || changed == l)
                swaps[l] = foresee_layer(p, l);
            at = swaps[l].gain > swaps[at].gain ? l : at;
        }
        if (!(swaps[at].gain * saved > fmax(left > noisy ? 0 : p->idle.beside, 0.25)))
            break;
        const double all = p->s->layers[at].copy_s;
        begin_copy(p, at, swaps[at].in, swaps[at].out, fmin(1, left / all));
        left -= all;
        changed = at;
    }
}

/* Time of a token's layers, and of the copies beside them. */
static double token_seconds(player *p)
{
    double s = p->s->rest_s, copies = 0;
    yk_resident_idle idle = {0};
    p->saved *= 0.99, p->saved_n *= 0.99;
    for (uint32_t l = 0; l < p->r->n_layers; l++) {
        const yk_resident_layer *y = &p->s->layers[l];
        const uint32_t k = y->n_used;
        uint32_t n[3];
        if (!y->n_experts)
            continue;
        const double t = yk_resident_seconds(y, p->kinds + (size_t)l * MAX_E, yk_routing_at(p->r, p->token, l), n);
        s += t;
        yk_resident_idle_add(&idle, y, t, n);
        if (n[YK_KIND_CC]) {
            p->saved += n[YK_KIND_CC] * (t - y->at[(n[YK_KIND_GG] + 1) * (k + 1) + n[YK_KIND_CC] - 1]);
            p->saved_n += n[YK_KIND_CC];
        }
        if (n[YK_KIND_GG]) {
            p->saved += n[YK_KIND_GG] * (y->at[(n[YK_KIND_GG] - 1) * (k + 1) + n[YK_KIND_CC] + 1] - t);
            p->saved_n += n[YK_KIND_GG];
        }
    }
    for (uint32_t i = 0; i < p->n_copies; i++)
        copies += (p->copies[i].to - p->copies[i].from) * p->s->layers[p->copies[i].layer].copy_s;
    p->idle = idle;
    return s + yk_resident_copy_cost(&idle, copies);
}

static void land(player *p)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < p->n_copies; i++) {
        const yk_resident_copy c = p->copies[i];
        if (c.to < 1) {
            p->copies[left++] = c;
            continue;
        }
        p->kinds[(size_t)c.layer * MAX_E + c.in] = YK_KIND_GG;
        p->moving[(size_t)c.layer * MAX_E + c.in] = p->moving[(size_t)c.layer * MAX_E + c.out] = 0;
        p->swaps++;
    }
    p->n_copies = left;
}

/* Follow our module: what it says begins is begun, where both must agree about who is resident. */
static void follow(player *p, yk_residency *mine)
{
    const yk_resident_copy *copies;
    const uint32_t n =
        yk_residency_token(mine, p->r->pick + (size_t)p->token * p->r->n_layers * p->r->n_used, p->r->n_used, &copies);
    for (uint32_t i = 0; i < n; i++)
        if (copies[i].from == 0) {
            uint8_t *kinds = p->kinds + (size_t)copies[i].layer * MAX_E;
            assert_int_equal(kinds[copies[i].out], YK_KIND_GG);
            assert_int_not_equal(kinds[copies[i].in], YK_KIND_GG);
            kinds[copies[i].out] = kinds[copies[i].in];
        }
    memcpy(p->copies, copies, n * sizeof *copies);
    p->n_copies = n;
}

/* Seconds of all tokens. Slots are never more than the plan's. */
static double play(player *p, int policy, yk_residency *mine)
{
    const size_t n_cells = (size_t)p->r->n_layers * MAX_E;
    double sum = 0;
    memcpy(p->kinds, p->s->kinds, n_cells);
    memset(p->moving, 0, n_cells);
    memset(p->last, 0, n_cells * sizeof *p->last);
    memset(p->n, 0, n_cells * sizeof *p->n);
    p->n_copies = p->swaps = 0;
    p->saved = p->saved_n = 0;
    for (p->token = 0; p->token < p->r->n_tokens; p->token++) {
        sum += token_seconds(p);
        land(p);
        for (uint32_t l = 0; l < p->r->n_layers; l++)
            for (uint32_t i = 0; i < p->r->n_used; i++) {
                const size_t cell = (size_t)l * MAX_E + yk_routing_at(p->r, p->token, l)[i];
                p->last[cell] = p->token + 1;
                p->n[cell]++;
            }
        if (policy == LRU || policy == LFU)
            admit_misses(p, policy == LFU);
        else if (policy == OURS)
            follow(p, mine);
        else if (policy >= INFORMED)
            foresee(p);
    }
    uint32_t n_gg = 0;
    for (size_t i = 0; i < n_cells; i++)
        n_gg += i % MAX_E < p->s->layers[i / MAX_E].n_experts && p->kinds[i] == YK_KIND_GG;
    assert_true(n_gg <= p->s->n_gg && n_gg + p->n_copies + YK_RESIDENCY_COPIES >= p->s->n_gg);
    return sum;
}

static void open_player(player *p, const setting *s, const yk_routing *r)
{
    const size_t n = (size_t)r->n_layers * MAX_E;
    *p = (player){.s = s,
                  .r = r,
                  .kinds = malloc(n),
                  .moving = malloc(n),
                  .last = malloc(n * sizeof *p->last),
                  .n = malloc(n * sizeof *p->n),
                  .copies = malloc(n * sizeof *p->copies),
                  .future = calloc((N_TOKENS + 1) * n, sizeof *p->future)};
    assert_true(p->kinds && p->moving && p->last && p->n && p->copies && p->future);
    for (uint32_t t = 0; t < r->n_tokens; t++) {
        memcpy(p->future + (t + 1) * n, p->future + t * n, n * sizeof *p->future);
        for (uint32_t l = 0; l < r->n_layers; l++)
            for (uint32_t i = 0; i < r->n_used; i++)
                p->future[(t + 1) * n + (size_t)l * MAX_E + yk_routing_at(r, t, l)[i]]++;
    }
}

static void close_player(player *p)
{
    free(p->kinds);
    free(p->moving);
    free(p->last);
    free(p->n);
    free(p->copies);
    free(p->future);
}

static yk_residency *open_mine(const setting *s)
{
    yk_residency *mine;
    yk_error err = {0};
    assert_int_equal(yk_residency_open(&mine, s->layers, s->shape.n_layers, s->kinds, MAX_E,
                                       &(yk_residency_opts){.rest_s = s->rest_s}, &err),
                     YK_OK);
    return mine;
}

static const uint32_t windows[] = {64, 256};

/* Milliseconds a token of every policy. */
static void play_all(double at[N_POLICIES], const setting *s, int trace, double *swaps)
{
    yk_routing r;
    player p;
    draw(&r, s, trace, 100, N_TOKENS);
    open_player(&p, s, &r);
    p.phase = traces[trace].phase;
    p.rho = traces[trace].reuse;
    yk_residency *mine = open_mine(s);
    for (int i = 0; i <= INFORMED; i++) {
        at[i] = play(&p, i, mine);
        if (i == OURS)
            *swaps = (double)p.swaps / N_TOKENS;
    }
    at[ORACLE] = at[STATIC];
    for (size_t w = 0; w < sizeof windows / sizeof *windows; w++) {
        p.window = windows[w];
        at[ORACLE] = fmin(at[ORACLE], play(&p, ORACLE, NULL));
    }
    /* The module's own sums are those of the player. */
    const yk_residency_sums sums = yk_residency_get(mine);
    assert_true(fabs(sums.ours_s / at[OURS] - 1) < 1e-9);
    assert_true(fabs(sums.static_s / at[STATIC] - 1) < 1e-9);
    for (int i = 0; i < N_POLICIES; i++)
        at[i] *= 1e3 / N_TOKENS;
    yk_residency_close(&mine);
    close_player(&p);
    yk_routing_close(&r);
}

static void check_policies(void **state)
{
    (void)state;
    double worst = 0, far = 0, farther = 0;
    printf("milliseconds a token, modelled, copies included; %d tokens from a plan that knows nothing of the routing\n\n"
           "| machine, model, budget (experts resident) | routing | static | LRU | LFU | ours | informed | oracle | of static "
           "| of informed "
           "| of oracle | swaps a token |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n",
           N_TOKENS);
    for (int c = 0; c < N_CASES; c++) {
        setting s = {0};
        open_setting(&s, cases[c].machine, cases[c].shape, cases[c].gib);
        assert_true(s.n_gg > 0 && s.n_gg < s.n_experts);
        for (int t = 0; t < N_TRACES; t++) {
            double at[N_POLICIES], swaps = 0;
            play_all(at, &s, t, &swaps);
            printf("| %s, %s, %u GiB (%.0f %%) | %s |", cases[c].machine, cases[c].shape, cases[c].gib,
                   100.0 * s.n_gg / s.n_experts, traces[t].name);
            for (int i = 0; i < N_POLICIES; i++)
                printf(" %.2f |", at[i]);
            printf(" %.3f | %.3f | %.3f | %.2f |\n", at[OURS] / at[STATIC], at[OURS] / at[INFORMED], at[OURS] / at[ORACLE],
                   swaps);
            worst = fmax(worst, at[OURS] / at[STATIC]);
            far = fmax(far, traces[t].locality ? at[OURS] / at[INFORMED] : 0);
            farther = fmax(farther, traces[t].locality == 2 ? at[OURS] / at[ORACLE] : 0);
        }
        close_setting(&s);
    }
    printf("\nours of static at most %.4f; where there is locality, of informed at most %.4f; where it lasts, of the oracle "
           "%.4f\n",
           worst, far, farther);
    assert_true(worst <= 1.02);
    assert_true(far <= 1.10);
    assert_true(farther <= 1.10);
}

/* An adversary that sees who is resident: for 40 tokens it asks for experts that are not (so that swaps seem to pay), for 40 for those of the plan
 * that have left. Ours must go back to the plan in time, and must not go on forth and back. */
static void check_guard(void **state)
{
    (void)state;
    enum { TOKENS = 6000 };
    setting s = {0};
    open_setting(&s, "rtx-3060-ddr4", "mixtral-8x7b", 12);
    yk_residency *mine = open_mine(&s);
    const uint32_t n_layers = s.shape.n_layers, k = s.shape.n_used;
    uint16_t picks[64 * 2];
    uint64_t state_ = 7, held = 0;
    assert_true(n_layers <= 64 && k == 2);
    for (uint32_t t = 0; t < TOKENS; t++) {
        const yk_resident_copy *copies;
        for (uint32_t l = 0; l < n_layers; l++) {
            uint16_t *row = picks + (size_t)l * k;
            uint32_t n = 0;
            for (uint32_t e = 0; e < s.layers[l].n_experts && n < k; e++) {
                const bool now = yk_residency_kind(mine, l, e) == YK_KIND_GG,
                           plan = s.kinds[(size_t)l * MAX_E + e] == YK_KIND_GG;
                if (t / 40 % 2 ? plan && !now : !plan && !now)
                    row[n++] = (uint16_t)e;
            }
            while (n < k) {
                row[n] = (uint16_t)(yk_pt_random(&state_) % s.shape.n_experts);
                n += n == 0 || row[1] != row[0];
            }
        }
        yk_residency_token(mine, picks, k, &copies);
        held += yk_residency_get(mine).held;
    }
    const yk_residency_sums sums = yk_residency_get(mine);
    printf("adversary: %.4f of static after %d tokens, %u swaps, back at the plan %u times, there for %u tokens\n",
           sums.ours_s / sums.static_s, TOKENS, (unsigned)sums.swaps, (unsigned)sums.returns, (unsigned)held);
    assert_true(sums.ours_s <= 1.02 * sums.static_s);
    assert_true(sums.returns >= 1 && sums.returns <= 6 && held > TOKENS / 3);
    yk_residency_close(&mine);
    close_setting(&s);
}

/* Slots of a layer stay as many, parts of a copy follow each other, and a copy is never of an expert that is there. */
static void check_rules(void **state)
{
    (void)state;
    setting s = {0};
    yk_routing r;
    open_setting(&s, "rtx-3060ti-pcie3x4", "qwen3-30b-a3b", 7);
    draw(&r, &s, 4, 3, 300);
    yk_residency *mine = open_mine(&s);
    yk_resident_copy before[YK_RESIDENCY_COPIES];
    uint32_t n_before = 0, n_parts = 0;
    uint64_t ns = 0;
    for (uint32_t t = 0; t < r.n_tokens; t++) {
        const yk_resident_copy *copies;
        const uint64_t from = yk_now_ns();
        const uint32_t n = yk_residency_token(mine, r.pick + (size_t)t * r.n_layers * r.n_used, r.n_used, &copies);
        uint32_t left = 0;
        ns += yk_now_ns() - from;
        for (uint32_t i = 0; i < n_before; i++)
            if (before[i].to < 1) {
                assert_true(copies[left].layer == before[i].layer && copies[left].in == before[i].in);
                assert_true(copies[left].from == before[i].to && copies[left].to >= copies[left].from);
                left++;
            }
        for (uint32_t i = left; i < n; i++) {
            assert_true(copies[i].from == 0 && copies[i].to > 0);
            assert_int_not_equal(yk_residency_kind(mine, copies[i].layer, copies[i].in), YK_KIND_GG);
            assert_int_not_equal(yk_residency_kind(mine, copies[i].layer, copies[i].out), YK_KIND_GG);
        }
        for (uint32_t l = 0; l < s.shape.n_layers; l++) {
            uint32_t now = 0, plan = 0;
            for (uint32_t e = 0; e < s.layers[l].n_experts; e++) {
                now += yk_residency_kind(mine, l, e) == YK_KIND_GG;
                plan += s.kinds[(size_t)l * MAX_E + e] == YK_KIND_GG;
            }
            for (uint32_t i = 0; i < n; i++)
                now += copies[i].layer == l;
            assert_int_equal(now, plan);
        }
        memcpy(before, copies, n * sizeof *copies);
        n_parts += left;
        n_before = n;
    }
    printf("deciding takes %.1f us a token with %u experts\n", (double)ns * 1e-3 / r.n_tokens, s.n_experts);
    assert_true(n_parts > 0); /* some copies took more than one token */
    yk_residency_close(&mine);
    yk_routing_close(&r);
    close_setting(&s);
}

/* Kept means make the next start better; with a link on which no copy can pay there are none; wrong options are refused. */
static void check_warm(void **state)
{
    (void)state;
    enum { FIRST = 1000, SECOND = 60 };
    setting s = {0};
    yk_routing r;
    yk_error err = {0};
    yk_residency *cold, *warm, *never;
    const yk_resident_copy *copies;
    double weight;
    yk_resident_layer slow[MAX_LAYERS]; /* on a link so slow that no copy can pay */
    open_setting(&s, "rtx-3060-ddr4", "mixtral-8x7b", 12);
    draw(&r, &s, 2, 5, FIRST + SECOND);
    float *uses = calloc((size_t)s.shape.n_layers * MAX_E, sizeof *uses);
    assert_non_null(uses);
    const size_t row = (size_t)r.n_layers * r.n_used;
    cold = open_mine(&s);
    for (uint32_t l = 0; l < s.shape.n_layers; l++) {
        slow[l] = s.layers[l];
        slow[l].copy_s *= 1000;
    }
    assert_int_equal(yk_residency_open(&never, slow, s.shape.n_layers, s.kinds, MAX_E, &(yk_residency_opts){0}, &err), YK_OK);
    for (uint32_t t = 0; t < FIRST; t++) {
        yk_residency_token(cold, r.pick + t * row, r.n_used, &copies);
        assert_int_equal(yk_residency_token(never, r.pick + t * row, r.n_used, &copies), 0);
    }
    yk_residency_save(cold, uses, MAX_E, &weight);
    assert_true(weight > FIRST / 3 && weight <= FIRST);
    for (uint32_t l = 0; l < s.shape.n_layers; l++) {
        double sum = 0;
        for (uint32_t e = 0; e < s.layers[l].n_experts; e++)
            sum += uses[(size_t)l * MAX_E + e];
        assert_true(fabs(sum - r.n_used) < 1e-3);
    }
    yk_residency_close(&cold);
    cold = open_mine(&s);
    warm = open_mine(&s);
    yk_residency_warm(warm, uses, MAX_E, weight);
    for (uint32_t t = FIRST; t < FIRST + SECOND; t++) {
        yk_residency_token(cold, r.pick + t * row, r.n_used, &copies);
        yk_residency_token(warm, r.pick + t * row, r.n_used, &copies);
    }
    const double c = yk_residency_get(cold).ours_s, w = yk_residency_get(warm).ours_s;
    printf("first %d tokens: cold %.1f ms a token, with the means of an earlier run %.1f\n", SECOND, c / SECOND * 1e3,
           w / SECOND * 1e3);
    assert_true(w < 0.95 * c);
    yk_residency_close(&cold);
    yk_residency_close(&warm);
    yk_residency_close(&never);
    assert_int_equal(yk_residency_open(&never, s.layers, 1, s.kinds, MAX_E, &(yk_residency_opts){.tokens = 2u << 20}, &err),
                     YK_ERR_USAGE);
    assert_null(never);
    free(uses);
    yk_routing_close(&r);
    close_setting(&s);
}

/* The file of an earlier run: the same after reading and writing, and refused by name where anything is wrong; then nothing has changed. */
static void check_file(void **state)
{
    (void)state;
    setting s = {0};
    yk_routing r;
    yk_error err = {0};
    char *text, *again, *empty;
    size_t n, n_again, n_empty;
    const yk_resident_copy *copies;
    open_setting(&s, "rtx-3060-ddr4", "mixtral-8x7b", 12);
    draw(&r, &s, 2, 5, 100);
    yk_residency *one = open_mine(&s), *two = open_mine(&s);
    assert_int_equal(yk_residency_write(one, s.shape.id, &empty, &n_empty, &err), YK_OK);
    assert_int_equal(yk_residency_read(two, s.shape.id, empty, n_empty, &err), YK_OK); /* of no token */
    for (uint32_t t = 0; t < r.n_tokens; t++)
        yk_residency_token(one, r.pick + (size_t)t * r.n_layers * r.n_used, r.n_used, &copies);
    assert_int_equal(yk_residency_write(one, s.shape.id, &text, &n, &err), YK_OK);
    static const struct {
        const char *find, *put, *says;
    } wrong[] = {{"\"format\": 1", "\"format\": 7", "format"},
                 {"\"shape_id\": \"", "\"shape_id\": \"x", "another model"},
                 {"\"tokens\": ", "\"tokens\": -", "tokens"},
                 {"\"uses\": [", "\"uses\": [[],", "layers instead of"},
                 {"[0.", "[0.0, 0.", "experts instead of"},
                 {"[0.", "[1.", "uses"},
                 {"[0.", "[-0.", "uses"},
                 {"[0.", "[9", "uses"},
                 {"\"uses\": [", "\"uses\": ", "experts"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const char *at = strstr(text, wrong[i].find);
        assert_non_null(at);
        const size_t skip = strlen(wrong[i].find), more = strlen(wrong[i].put), before = (size_t)(at - text);
        char *bad = malloc(n + more);
        assert_non_null(bad);
        memcpy(bad, text, before);
        memcpy(bad + before, wrong[i].put, more);
        memcpy(bad + before + more, at + skip, n - before - skip);
        assert_int_equal(yk_residency_read(two, s.shape.id, bad, n - skip + more, &err), YK_ERR_INPUT);
        if (!strstr(err.text, wrong[i].says) || strchr(err.text, '\n'))
            fail_msg("%s instead of %s: %s", wrong[i].put, wrong[i].find, err.text);
        free(bad);
    }
    for (size_t cut = 0; cut + 2 < n; cut += n / 97 + 1)
        assert_int_equal(yk_residency_read(two, s.shape.id, text, cut, &err), YK_ERR_INPUT);
    assert_int_equal(yk_residency_write(two, s.shape.id, &again, &n_again, &err), YK_OK);
    assert_true(n_again == n_empty && memcmp(again, empty, n_empty) == 0);
    yk_free(again);
    assert_int_equal(yk_residency_read(two, s.shape.id, text, n, &err), YK_OK);
    assert_int_equal(yk_residency_write(two, s.shape.id, &again, &n_again, &err), YK_OK);
    assert_true(n_again == n && memcmp(again, text, n) == 0);
    yk_free(text);
    yk_free(again);
    yk_free(empty);
    yk_residency_close(&one);
    yk_residency_close(&two);
    yk_routing_close(&r);
    close_setting(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(check_policies), cmocka_unit_test(check_guard),
                                       cmocka_unit_test(check_rules), cmocka_unit_test(check_warm),
                                       cmocka_unit_test(check_file)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
