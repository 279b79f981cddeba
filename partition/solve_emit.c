/* From choices to a plan: slices, kinds by bucket and chunk, which tokens go where. */
#include <string.h>

#include "partition/solve_in.h"

enum { N_STEPS = YK_B_PREFILL + YK_N_CHUNKS };

/* What is copied in each kind of step, for one class and option; layers that are alike share it. */
typedef struct kinds {
    bool valid;
    yk_option option;
    uint32_t class;
    yk_copied copied[N_STEPS], prefill; /* prefill: of the request */
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

static void make_kinds(const yk_solver *s, kinds *out, uint32_t class, const yk_option *o)
{
    const yk_class *k = &s->classes[class];
    const yk_shape_part *part = &s->shape->layers[k->layer].part[k->main];
    const uint32_t left = k->n - o->resident;
    double seconds;
    *out = (kinds){.valid = true, .option = *o, .class = class};
    if (!s->cost.has_device)
        return;
    for (int i = 0; i < N_STEPS; i++) {
        yk_price p;
        const yk_step_kind step = step_of(s, i);
        if (i > YK_B_PREFILL + (int)yk_chunk_of(s->limits->batch)) { /* never run: no borders for them */
            out->copied[i] = out->copied[i - 1];
            out->assign.link_share[i] = out->assign.link_share[i - 1];
            continue;
        }
        yk_price_make(&p, s, k, &step);
        out->copied[i] = yk_price_copied(s, k, &p, o, &seconds);
        out->assign.link_share[i] = left ? (double)out->copied[i].n / left : 0;
        if (i < YK_B_PREFILL)
            continue;
        double tokens, split;
        yk_cost_active(s->shape, k->main, step.n, &tokens);
        out->assign.break_even_tokens = yk_cost_break_even(&s->cost, part, (uint32_t)tokens, &split);
        out->assign.cpu_tokens[i - YK_B_PREFILL] = split;
    }
    out->prefill = out->copied[YK_B_PREFILL + yk_chunk_of(s->prefill.n)];
    out->assign.given = left > 0;
}

static uint8_t kind_of(bool copied)
{
    return copied ? YK_KIND_CG : YK_KIND_CC;
}

/* A host slice of which `at` units (experts) of its part precede it: CG in the steps that copy more, CC in the others. */
static void set_kinds(yk_slice *sl, const kinds *k, uint32_t at, bool shared)
{
    const bool prefill = shared ? k->prefill.shared : at < k->prefill.n;
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
    bool any = at == k->prefill.n;
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

static bool same_option(const yk_option *a, const yk_option *b)
{
    return a->attn == b->attn && a->shared == b->shared && a->resident == b->resident;
}

/* Among layers of a class and side it does not matter which has more resident; the later ones get it, so that plans read
 * well. */
static void tidy(const yk_solver *s, yk_option *choice)
{
    const uint32_t n = s->shape->n_layers;
    for (uint32_t i = 0; i < s->n_classes; i++)
        for (int side = 0; side < 2; side++) {
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

static yk_status emit_layers(yk_solver *s, yk_plan *plan, const yk_option *choice, yk_error *err)
{
    kinds k = {0};
    for (uint32_t l = 0; l < s->shape->n_layers; l++) {
        const yk_shape_part *shared = &s->shape->layers[l].part[YK_PART_SHEXP];
        if (!k.valid || k.class != s->class_of[l] || !same_option(&k.option, &choice[l]))
            make_kinds(s, &k, s->class_of[l], &choice[l]);
        plan->layers[l].attn_home = choice[l].attn ? 0 : YK_HOST;
        plan->layers[l].assign = k.assign;
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
    s->slot_bytes = device ? best->slot_bytes : 0;
    tidy(s, best->choice);
    YK_TRY(emit_layers(s, plan, best->choice, err));
    if (!device)
        for (uint32_t l = 0; l < plan->n_layers; l++)
            plan->layers[l].assign = (yk_plan_assign){0};
    memset(plan->memory, 0, sizeof plan->memory);
    yk_plan_memory(plan, s->shape, s->limits, plan->memory);
    yk_plan_set_id(plan);
    return YK_OK;
}
