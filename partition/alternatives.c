#include "partition/alternatives.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { UBATCH = 512, TRACE_TOKENS = 2048, CACHE_WARM_STEPS = 48, LLAMA_MIN_TOKENS = 32 };
/* Steps of decode: enough to choose so many experts in all. With 16 steps of few large experts the luck of the draw is 5 %. */
enum { MIN_STEPS = 16, MAX_STEPS = 128, DRAWN = 8192 };

/* Where things are: layers from attn_from on have their attention on the device, those from ffn_from on their FFN (without
 * experts: the dense one; shared experts follow the attention), `experts` of each layer before that are resident. */
typedef struct layout {
    uint32_t attn_from, ffn_from, experts;
    bool head;
    yk_kind decode, prefill; /* of what is on the host */
} layout;

const char *yk_alt_short_name(yk_alt which)
{
    static const char *const names[YK_ALT_N] = {"-ngl", "-cmoe", "-ncmoe", "cache", "Fiddler", "streaming", "CPU"};
    return names[which];
}

bool yk_alt_applies(yk_alt which, const yk_alt_job *job)
{
    const bool experts = which == YK_ALT_CMOE || which == YK_ALT_NCMOE || which == YK_ALT_CACHE || which == YK_ALT_FIDDLER;
    return which == YK_ALT_CPU || (job->device >= 0 && (!experts || job->shape->n_experts));
}

static yk_status add_part(yk_plan *plan, const yk_alt_job *job, const layout *o, uint32_t layer, yk_part_group g, yk_error *err)
{
    const yk_shape_part *part = &job->shape->layers[layer].part[g];
    for (uint32_t e = 0; e < part->n; e++) {
        yk_slice s = {.group = (uint8_t)g, .expert = e, .units = part->cut.n};
        const bool there =
            g == YK_PART_SHEXP ? layer >= o->attn_from : layer >= o->ffn_from || (g == YK_PART_EXP && e < o->experts);
        s.home = there && !part->host_only ? 0 : YK_HOST;
        for (int b = 0; b < YK_N_BUCKETS; b++) {
            const yk_kind host = part->host_only ? YK_KIND_CC : b == YK_B_PREFILL ? o->prefill : o->decode;
            s.kind[b] = (uint8_t)(s.home != YK_HOST ? YK_KIND_GG : host);
        }
        YK_TRY(yk_plan_add(plan, layer, &s, err));
    }
    return YK_OK;
}

static yk_status make_plan(yk_plan *plan, const yk_alt_job *job, const layout *o, yk_error *err)
{
    YK_TRY(yk_plan_init(plan, job->shape->n_layers, err));
    if (job->device >= 0)
        yk_plan_device(plan, job->machine->devices[job->device].name);
    plan->head_home = o->head && !job->shape->head_host_only ? 0 : YK_HOST;
    yk_status st = YK_OK;
    for (uint32_t l = 0; l < job->shape->n_layers && st == YK_OK; l++) {
        plan->layers[l].attn_home = l >= o->attn_from && !job->shape->layers[l].host_only ? 0 : YK_HOST;
        for (int g = 0; g < YK_PART_N && st == YK_OK; g++)
            st = add_part(plan, job, o, l, (yk_part_group)g, err);
    }
    if (st != YK_OK)
        yk_plan_clear(plan);
    return st;
}

/* Others' steps are at most 512 tokens. */
static yk_plan_limits their_limits(const yk_alt_job *job)
{
    yk_plan_limits l = *job->limits;
    l.batch = l.batch < UBATCH ? l.batch : UBATCH;
    return l;
}

static uint64_t budget_of(const yk_alt_job *job)
{
    for (uint32_t d = 0; job->device >= 0 && d < job->limits->n_devices; d++)
        if (strcmp(job->limits->devices[d].name, job->machine->devices[job->device].name) == 0)
            return job->limits->devices[d].budget_bytes;
    return 0;
}

/* Staging is charged only where copies run beside products: others need one tensor at a time. */
static yk_status fits(bool *yes, const yk_alt_job *job, const layout *o, bool staging, yk_error *err)
{
    uint64_t m[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES], sum = 0;
    const yk_plan_limits l = their_limits(job);
    yk_plan plan;
    YK_TRY(make_plan(&plan, job, o, err));
    yk_plan_memory(&plan, job->shape, &l, m);
    for (int c = 0; c < YK_MEM_N_CLASSES; c++)
        sum += c == YK_MEM_STAGING && !staging ? 0 : m[1][c];
    *yes = sum <= budget_of(job);
    yk_plan_clear(&plan);
    return YK_OK;
}

/* ---- speed ---- */

static uint32_t prompt_of(const yk_alt_job *job)
{
    return job->limits->prompt_tokens ? job->limits->prompt_tokens : 512;
}

static uint32_t decode_steps(const yk_shape *s)
{
    const uint32_t n = s->n_experts ? DRAWN / (s->n_layers * s->n_used) : 0;
    return n < MIN_STEPS ? MIN_STEPS : n > MAX_STEPS ? MAX_STEPS : n;
}

static yk_status decode(double *tps, const yk_alt_job *job, const yk_plan *plan, yk_sim_opts o, yk_error *err)
{
    const yk_step_kind step = {.n = 1, .depth = job->limits->context / 2, .kv_elem_bytes = job->limits->kv_elem_bytes};
    yk_sim_result r;
    o.routing = job->routing;
    o.steps = decode_steps(job->shape);
    o.warm_steps = o.cache == YK_SIM_STATIC ? 0 : CACHE_WARM_STEPS;
    YK_TRY(yk_simulate(&r, job->machine, plan->n_devices ? job->device : -1, job->shape, plan, &step, &o, err));
    *tps = 1 / r.seconds;
    return YK_OK;
}

/* A chunk in the middle of the prompt stands for all: attention grows evenly with depth. */
static yk_status prefill(double *tps, const yk_alt_job *job, const yk_plan *plan, uint32_t batch, yk_sim_opts o, yk_error *err)
{
    const uint32_t prompt = prompt_of(job), n = batch < prompt ? batch : prompt;
    const yk_step_kind step = {.prefill = true, .n = n, .depth = (prompt - n) / 2, .kv_elem_bytes = job->limits->kv_elem_bytes};
    yk_sim_result r;
    o.routing = job->routing;
    o.steps = 1;
    o.cache = YK_SIM_STATIC; /* nothing moves within a prompt */
    YK_TRY(yk_simulate(&r, job->machine, plan->n_devices ? job->device : -1, job->shape, plan, &step, &o, err));
    *tps = n / r.seconds;
    return YK_OK;
}

/* Speeds of a layout; in prefill both kinds of host weights are tried when `either`, and the better figure counts. */
static yk_status measure(yk_alternative *a, const yk_alt_job *job, layout o, const yk_sim_opts *sim, bool either, yk_error *err)
{
    const yk_plan_limits l = their_limits(job);
    double dec = 0, best = 0;
    for (int copied = 0; copied < 1 + either; copied++) {
        yk_plan plan;
        double tps = 0;
        yk_sim_opts s = *sim;
        if (either)
            o.prefill = copied ? YK_KIND_CG : YK_KIND_CC;
        s.offload = copied && prompt_of(job) >= LLAMA_MIN_TOKENS;
        YK_TRY(make_plan(&plan, job, &o, err));
        yk_status st = copied ? YK_OK : decode(&dec, job, &plan, s, err);
        if (st == YK_OK)
            st = prefill(&tps, job, &plan, l.batch, s, err);
        yk_plan_clear(&plan);
        YK_TRY(st);
        best = fmax(best, tps);
    }
    a->decode_tps = dec;
    a->prefill_tps = best;
    return YK_OK;
}

/* ---- one by one ---- */

static double request_s(const yk_alt_job *job, const yk_alternative *a)
{
    const uint32_t gen = job->limits->gen_tokens ? job->limits->gen_tokens : 128;
    return a->decode_tps > 0 ? gen / a->decode_tps + prompt_of(job) / a->prefill_tps : INFINITY;
}

/* Layers that fit, once with the head and once without; the better one. */
static yk_status run_layers(yk_alternative *a, const yk_alt_job *job, yk_error *err)
{
    const uint32_t n = job->shape->n_layers;
    for (int head = 0; head < 2; head++) {
        uint32_t on = n + 1;
        bool yes = false;
        layout o = {.head = head, .decode = YK_KIND_CC, .prefill = YK_KIND_CG};
        while (!yes && on-- > 0) {
            o.attn_from = o.ffn_from = n - on;
            YK_TRY(fits(&yes, job, &o, false, err));
        }
        yk_alternative it = {0};
        if (!yes)
            continue;
        YK_TRY(measure(&it, job, o, &(yk_sim_opts){.serial = true}, true, err));
        if (request_s(job, &it) >= request_s(job, a))
            continue;
        *a = it;
        snprintf(a->name, sizeof a->name, "whole layers (-ngl %u)", on + head);
    }
    return YK_OK;
}

/* Attention and head on the device, experts of layers from `from` on as well, and some of each other layer. */
static layout experts_layout(uint32_t from, uint32_t experts, yk_kind decode_kind)
{
    return (layout){.ffn_from = from, .experts = experts, .head = true, .decode = decode_kind, .prefill = YK_KIND_CG};
}

static yk_status run_ncmoe(yk_alternative *a, const yk_alt_job *job, yk_error *err)
{
    const uint32_t n = job->shape->n_layers;
    bool yes = false;
    for (uint32_t from = 0; from <= n; from++) {
        const layout o = experts_layout(from, 0, YK_KIND_CC);
        YK_TRY(fits(&yes, job, &o, false, err));
        if (!yes)
            continue;
        snprintf(a->name, sizeof a->name, "best -ncmoe (%u)", from);
        return measure(a, job, o, &(yk_sim_opts){.serial = true}, true, err);
    }
    return YK_OK;
}

/* The most experts of each layer that fit; false: not even the rest does. */
static yk_status most_experts(bool *yes, uint32_t *experts, const yk_alt_job *job, yk_error *err)
{
    uint32_t low = 0, high = job->shape->n_experts;
    const layout none = experts_layout(job->shape->n_layers, 0, YK_KIND_CC);
    YK_TRY(fits(yes, job, &none, false, err));
    while (*yes && low < high) {
        const uint32_t mid = high - (high - low) / 2;
        const layout o = experts_layout(job->shape->n_layers, mid, YK_KIND_CC);
        bool more;
        YK_TRY(fits(&more, job, &o, false, err));
        low = more ? mid : low;
        high = more ? high : mid - 1;
    }
    *experts = low;
    return YK_OK;
}

static yk_status run_experts(yk_alternative *a, yk_alt which, const yk_alt_job *job, yk_error *err)
{
    uint32_t c;
    bool yes;
    YK_TRY(most_experts(&yes, &c, job, err));
    if (!yes)
        return YK_OK;
    if (which == YK_ALT_CMOE)
        return measure(a, job, experts_layout(job->shape->n_layers, 0, YK_KIND_CC), &(yk_sim_opts){.serial = true}, true, err);
    const layout o = experts_layout(job->shape->n_layers, c, YK_KIND_CG);
    snprintf(a->name, sizeof a->name, which == YK_ALT_CACHE ? "cache of %u, misses copied" : "Fiddler's rule, %u experts", c);
    const yk_sim_opts cache = {.cache = c ? YK_SIM_LRU : YK_SIM_STATIC, .miss = YK_SIM_UPLOAD, .serial = true};
    const yk_sim_opts fiddler = {.miss = YK_SIM_FIDDLER, .serial = true};
    return measure(a, job, o, which == YK_ALT_CACHE ? &cache : &fiddler, false, err);
}

static yk_status run_stream(yk_alternative *a, const yk_alt_job *job, yk_error *err)
{
    const layout o = experts_layout(job->shape->n_layers, 0, YK_KIND_CG);
    bool yes;
    YK_TRY(fits(&yes, job, &o, true, err));
    return yes ? measure(a, job, o, &(yk_sim_opts){0}, false, err) : YK_OK;
}

yk_status yk_alt_run(yk_alternative *a, yk_alt which, const yk_alt_job *job, yk_error *err)
{
    static const char *const names[YK_ALT_N] = {
        "whole layers (-ngl)", "all experts on CPU (-cmoe)", "best -ncmoe", "cache, misses copied",
        "Fiddler's rule",      "every FFN streamed",         "CPU only"};
    *a = (yk_alternative){0};
    yk_alt_job alone = *job;
    alone.device = -1;
    const uint32_t n = job->shape->n_layers;
    const layout none = {.attn_from = n, .ffn_from = n, .decode = YK_KIND_CC, .prefill = YK_KIND_CC};
    snprintf(a->name, sizeof a->name, "%s", names[which]);
    switch (which) {
    case YK_ALT_LAYERS:
        return run_layers(a, job, err);
    case YK_ALT_NCMOE:
        return run_ncmoe(a, job, err);
    case YK_ALT_CMOE:
    case YK_ALT_CACHE:
    case YK_ALT_FIDDLER:
        return run_experts(a, which, job, err);
    case YK_ALT_STREAM:
        return run_stream(a, job, err);
    default:
        return measure(a, &alone, none, &(yk_sim_opts){.serial = true}, false, err);
    }
}

yk_status yk_alt_run_plan(yk_alternative *a, const yk_plan *plan, const yk_alt_job *job, yk_error *err)
{
    const yk_sim_opts sim = {0};
    *a = (yk_alternative){.name = "this plan"};
    YK_TRY(decode(&a->decode_tps, job, plan, sim, err));
    return prefill(&a->prefill_tps, job, plan, plan->batch ? plan->batch : job->limits->batch, sim, err);
}

yk_status yk_alt_routing(yk_routing *out, const yk_shape *shape, yk_error *err)
{
    *out = (yk_routing){0};
    const yk_routing_draw draw = {.seed = 1,
                                  .n_tokens = TRACE_TOKENS,
                                  .n_layers = shape->n_layers,
                                  .n_experts = shape->n_experts,
                                  .n_used = shape->n_used};
    return shape->n_experts ? yk_routing_make(out, &draw, err) : YK_OK;
}

yk_status yk_plan_alternatives(yk_plan *plan, const yk_machine *machine, const yk_shape *shape, const yk_plan_limits *limits,
                               yk_error *err)
{
    yk_routing routing;
    yk_alt_job job = {.machine = machine, .device = -1, .shape = shape, .limits = limits};
    plan->n_alternatives = 0;
    if (plan->n_devices)
        job.device = yk_machine_find(machine, plan->devices[0]);
    for (uint32_t d = 0; d < limits->n_devices && job.device < 0; d++)
        job.device = yk_machine_find(machine, limits->devices[d].name);
    YK_TRY(yk_alt_routing(&routing, shape, err));
    job.routing = shape->n_experts ? &routing : NULL;
    yk_status st = yk_alt_run_plan(&plan->alternatives[0], plan, &job, err);
    uint32_t n = 1;
    for (int w = 0; w < YK_ALT_N && st == YK_OK && n < YK_PLAN_MAX_ALTERNATIVES; w++)
        if (yk_alt_applies((yk_alt)w, &job))
            st = yk_alt_run(&plan->alternatives[n++], (yk_alt)w, &job, err);
    plan->n_alternatives = st == YK_OK ? n : 0;
    yk_routing_close(&routing);
    return st;
}
