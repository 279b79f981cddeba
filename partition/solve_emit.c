/* From choices to a plan: slices, kinds by bucket and chunk, which tokens go where. */
#include <math.h>
#include <string.h>

#include "partition/solve_in.h"

enum { N_STEPS = YK_B_PREFILL + YK_N_CHUNKS };

/* What is copied in each kind of step, for one class and option; layers that are alike share it. at: where attention is
 * computed in a prefill chunk, when its home is the host. */
typedef struct kinds {
    bool valid;
    yk_option option;
    uint32_t class;
    yk_copied copied[N_STEPS];
    yk_attn at[YK_N_CHUNKS];
    int prefill; /* the step of the request's prefill */
    yk_plan_assign assign;
} kinds;

static yk_step_kind step_of(const yk_solver *s, int i)
{
    yk_step_kind step = i < YK_B_PREFILL ? s->decode : s->prefill;
    if (i < YK_B_PREFILL)
        step.n = yk_bucket_of(s->decode.n) == (yk_bucket)i ? s->decode.n : yk_bucket_tokens((yk_bucket)i);
    else if (yk_chunk_of(s->prefill.n) != (yk_chunk)(i - YK_B_PREFILL))
        step.n = yk_chunk_tokens((yk_chunk)(i - YK_B_PREFILL));
    return step;
}

static bool same_option(const yk_option *a, const yk_option *b)
{
    return a->attn == b->attn && a->shared == b->shared && a->resident == b->resident;
}

/* Where the attention of each layer is computed in chunks of one length: residency and slots are given, the request's own
 * length is chosen already. A shortest path over the layers. at: [n_layers][YK_N_CHUNKS] */
typedef struct places {
    yk_attn (*at)[YK_N_CHUNKS];
    uint8_t (*from)[2]; /* [n_layers + 1][computed on the device]: whether the layer before was */
} places;

static bool can_copy(const yk_solver *s, uint32_t l)
{
    const yk_shape_layer *y = &s->shape->layers[l];
    return s->slot.attn && s->cost.has_device && !y->host_only && yk_shape_attn_bytes(y) <= s->slot.bytes;
}

static void place_attn(const yk_solver *s, const yk_option *choice, bool head, int chunk, places *p)
{
    const uint32_t n = s->shape->n_layers;
    const yk_step_kind step = step_of(s, YK_B_PREFILL + chunk);
    const double cross = yk_cost_cross(&s->cost, &step);
    double best[2] = {0, INFINITY}, own[2] = {0, 0};
    for (uint32_t l = 0; l < n; l++) {
        const bool same = l && s->class_of[l] == s->class_of[l - 1] && same_option(&choice[l], &choice[l - 1]);
        if (!same) {
            const yk_class *k = &s->classes[s->class_of[l]];
            const bool home = choice[l].attn == YK_ATTN_DEVICE;
            yk_price price;
            yk_price_make(&price, s, k, &step);
            own[0] = own[1] = INFINITY;
            for (int side = home; side < (home || can_copy(s, l) ? 2 : 1); side++) {
                yk_option o = choice[l];
                o.attn = !side ? YK_ATTN_HOST : home ? YK_ATTN_DEVICE : YK_ATTN_COPIED;
                yk_price_copied(s, k, &price, &o, &own[side]);
            }
        }
        double next[2];
        for (int side = 0; side < 2; side++) {
            p->from[l][side] = (uint8_t)(best[!side] + cross < best[side] ? !side : side);
            next[side] = fmin(best[side], best[!side] + cross) + own[side];
        }
        memcpy(best, next, sizeof best);
    }
    int side = best[!head] + cross < best[head] ? !head : head;
    for (uint32_t l = n; l-- > 0;) {
        p->at[l][chunk] = !side ? YK_ATTN_HOST : choice[l].attn == YK_ATTN_DEVICE ? YK_ATTN_DEVICE : YK_ATTN_COPIED;
        side = p->from[l][side];
    }
}

/* Chunks longer than the batch are never run: no borders for them. */
static bool never_run(const yk_solver *s, int chunk)
{
    return chunk > (int)yk_chunk_of(s->limits->batch);
}

static void place_all(const yk_solver *s, const yk_option *choice, bool head, places *p)
{
    const int own = yk_chunk_of(s->prefill.n);
    for (int c = 0; c < YK_N_CHUNKS; c++) {
        if (c != own && !never_run(s, c) && s->slot.attn) {
            place_attn(s, choice, head, c, p);
            continue;
        }
        for (uint32_t l = 0; l < s->shape->n_layers; l++)
            p->at[l][c] = c == own              ? (yk_attn)choice[l].attn
                          : never_run(s, c)     ? p->at[l][c - 1]
                          : choice[l].attn == 1 ? YK_ATTN_DEVICE
                                                : YK_ATTN_HOST;
    }
}

static void make_kinds(const yk_solver *s, kinds *out, uint32_t class, const yk_option *o, const yk_attn at[YK_N_CHUNKS])
{
    const yk_class *k = &s->classes[class];
    const yk_shape_part *part = &s->shape->layers[k->layer].part[k->main];
    const uint32_t left = k->n - o->resident;
    double seconds;
    *out = (kinds){.valid = true, .option = *o, .class = class};
    memcpy(out->at, at, sizeof out->at);
    if (!s->cost.has_device)
        return;
    for (int i = 0; i < N_STEPS; i++) {
        yk_price p;
        yk_option here = *o;
        const yk_step_kind step = step_of(s, i);
        if (i >= YK_B_PREFILL && never_run(s, i - YK_B_PREFILL)) {
            out->copied[i] = out->copied[i - 1];
            out->assign.link_share[i] = out->assign.link_share[i - 1];
            continue;
        }
        if (i >= YK_B_PREFILL)
            here.attn = (uint8_t)at[i - YK_B_PREFILL];
        yk_price_make(&p, s, k, &step);
        out->copied[i] = yk_price_copied(s, k, &p, &here, &seconds);
        out->assign.link_share[i] = left ? (double)out->copied[i].n / left : 0;
        if (i < YK_B_PREFILL)
            continue;
        double tokens, split;
        yk_cost_active(s->shape, k->main, step.n, &tokens);
        out->assign.break_even_tokens = yk_cost_break_even(&s->cost, part, (uint32_t)tokens, &split);
        out->assign.cpu_tokens[i - YK_B_PREFILL] = split;
    }
    out->prefill = YK_B_PREFILL + yk_chunk_of(s->prefill.n);
    out->assign.given = left > 0;
}

static uint8_t kind_of(bool copied)
{
    return copied ? YK_KIND_CG : YK_KIND_CC;
}

/* A host slice of which `at` units (experts) of its part precede it: CG in the steps that copy more, CC in the others. */
static void set_kinds(yk_slice *sl, const kinds *k, uint32_t at, bool shared)
{
    const bool prefill = shared ? k->copied[k->prefill].shared : at < k->copied[k->prefill].n;
    for (int i = 0; i < N_STEPS; i++) {
        const bool copied = shared ? k->copied[i].shared : at < k->copied[i].n;
        if (i < YK_B_PREFILL)
            sl->kind[i] = kind_of(copied);
        else
            sl->chunk[i - YK_B_PREFILL] = copied == prefill ? 0 : (uint8_t)(1 + kind_of(copied));
    }
    sl->kind[YK_B_PREFILL] = kind_of(prefill);
}

/* Does a unit begin a new slice? at: host units before it. */
static bool border(const kinds *k, uint32_t at)
{
    bool any = at == k->copied[k->prefill].n;
    for (int i = 0; i < N_STEPS; i++)
        any = any || at == k->copied[i].n;
    return any;
}

/* Resident are the units fixed to the device, then the first free ones. */
static yk_status emit_main(const yk_solver *s, yk_plan *plan, uint32_t l, const kinds *k, yk_error *err)
{
    const yk_class *c = &s->classes[k->class];
    const bool exp = c->main == YK_PART_EXP, fixed = s->rules->wishes->n_fixed > 0;
    const uint32_t cut_n = s->shape->layers[l].part[c->main].cut.n;
    uint32_t open = k->option.resident - (fixed ? c->rule.least : 0), host = 0;
    yk_slice last = {.units = 0};
    for (uint32_t u = 0; u < c->n; u++) {
        const int side = fixed ? yk_rules_unit(s->rules, l, c->main, u) : YK_ON_BOTH;
        const bool resident = side == YK_ON_DEVICE || (side == YK_ON_BOTH && open > 0);
        open -= side == YK_ON_BOTH && resident;
        yk_slice sl = {.group = (uint8_t)c->main, .home = resident ? 0 : YK_HOST};
        sl.expert = exp ? u : 0;
        sl.unit0 = exp ? 0 : u;
        sl.units = exp ? cut_n : 1;
        if (!resident)
            set_kinds(&sl, k, host, false);
        const bool joins = !exp && last.units && last.home == sl.home && (resident || !border(k, host));
        host += !resident;
        if (joins) {
            last.units++;
            continue;
        }
        if (last.units)
            YK_TRY(yk_plan_add(plan, l, &last, err));
        last = sl;
    }
    return last.units ? yk_plan_add(plan, l, &last, err) : YK_OK;
}

/* Among layers of a class and side it does not matter which has more resident; the later ones get it, so that plans read
 * well. */
static void tidy(const yk_solver *s, yk_option *choice)
{
    const uint32_t n = s->shape->n_layers;
    for (uint32_t i = 0; i < s->n_classes; i++)
        for (int side = 0; side < YK_ATTN_N; side++) {
            uint32_t m = 0;
            for (uint32_t l = 0; l < n; l++) { /* an insertion sort within the layers that count */
                if (s->class_of[l] != i || choice[l].attn != side)
                    continue;
                s->choice[m] = choice[l];
                for (uint32_t a = m++; a > 0 && s->choice[a - 1].bytes > s->choice[a].bytes; a--) {
                    const yk_option o = s->choice[a];
                    s->choice[a] = s->choice[a - 1];
                    s->choice[a - 1] = o;
                }
            }
            for (uint32_t l = 0, at = 0; l < n; l++)
                if (s->class_of[l] == i && choice[l].attn == side)
                    choice[l] = s->choice[at++];
        }
}

static yk_status emit_layers(yk_solver *s, yk_plan *plan, const yk_option *choice, const places *where, yk_error *err)
{
    kinds k = {0};
    for (uint32_t l = 0; l < s->shape->n_layers; l++) {
        const yk_shape_part *shared = &s->shape->layers[l].part[YK_PART_SHEXP];
        yk_plan_layer *y = &plan->layers[l];
        if (!k.valid || k.class != s->class_of[l] || !same_option(&k.option, &choice[l]) ||
            memcmp(k.at, where->at[l], sizeof k.at) != 0)
            make_kinds(s, &k, s->class_of[l], &choice[l], where->at[l]);
        y->attn_home = choice[l].attn == YK_ATTN_DEVICE ? 0 : YK_HOST;
        for (int c = 0; c < YK_N_CHUNKS; c++)
            y->attn_chunk[c] = k.at[c] == YK_ATTN_COPIED ? 1 + YK_KIND_CG : 0;
        for (int b = 0; b < YK_B_PREFILL; b++)
            y->ahead[b] = k.copied[b].ahead;
        y->assign = k.assign;
        YK_TRY(emit_main(s, plan, l, &k, err));
        if (!shared->n)
            continue;
        yk_slice sl = {.group = YK_PART_SHEXP, .home = choice[l].shared ? 0 : YK_HOST, .units = shared->cut.n};
        if (!choice[l].shared)
            set_kinds(&sl, &k, 0, true);
        YK_TRY(yk_plan_add(plan, l, &sl, err));
    }
    return YK_OK;
}

static yk_status emit_choice(yk_solver *s, yk_plan *plan, const yk_best *best, yk_error *err)
{
    const uint64_t n = s->shape->n_layers;
    places p = {.at = yk_alloc(YK_MEM_PLAN, n, sizeof *p.at), .from = yk_alloc(YK_MEM_PLAN, n, sizeof *p.from)};
    yk_status st;
    if (!p.at || !p.from)
        st = yk_fail_memory(err, n * (sizeof *p.at + sizeof *p.from), "the planner");
    else {
        place_all(s, best->choice, best->head, &p);
        st = emit_layers(s, plan, best->choice, &p, err);
    }
    yk_free(p.at);
    yk_free(p.from);
    return st;
}

yk_status yk_solver_emit(yk_solver *s, yk_plan *plan, const char *device, const yk_best *best, yk_error *err)
{
    YK_TRY(yk_plan_init(plan, s->shape->n_layers, err));
    memcpy(plan->shape_id, s->shape->id, sizeof plan->shape_id);
    memcpy(plan->model_name, s->shape->name, sizeof plan->model_name);
    plan->context = s->limits->context;
    plan->max_seqs = s->limits->max_seqs;
    plan->batch = s->limits->batch;
    plan->kv_elem_bytes = s->limits->kv_elem_bytes;
    if (device)
        yk_plan_device(plan, device);
    plan->head_home = best->head ? 0 : YK_HOST;
    s->slot = device ? best->slot : (yk_slot){0};
    tidy(s, best->choice);
    YK_TRY(emit_choice(s, plan, best, err));
    if (!device)
        for (uint32_t l = 0; l < plan->n_layers; l++)
            plan->layers[l].assign = (yk_plan_assign){0};
    memset(plan->memory, 0, sizeof plan->memory);
    yk_plan_memory(plan, s->shape, s->limits, plan->memory);
    yk_plan_set_id(plan);
    return YK_OK;
}
