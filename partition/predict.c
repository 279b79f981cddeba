/* How fast a plan will be, and what it waits for. */
#include <stdio.h>
#include <string.h>

#include "partition/solve_in.h"

_Static_assert((int)YK_PLAN_N_BOUNDS == (int)YK_BOUND_N, "plan.h and cost.h count what a step waits for");

/* Prices steps of a plan; without memory for the digest the long way. */
typedef struct pricer {
    yk_digest digest; /* layers NULL: none */
    const yk_plan *plan;
    const yk_cost *cost;
} pricer;

static double step_s(pricer *p, const yk_step_kind *step, double bound[YK_BOUND_N])
{
    return p->digest.layers ? yk_digest_step(&p->digest, p->cost, step, bound) : yk_cost_plan(p->cost, p->plan, step, bound);
}

static void predict_decode(yk_plan_speed *v, pricer *p, const yk_plan_limits *limits)
{
    const uint32_t depths[] = {0, limits->context / 2, limits->context};
    for (uint32_t i = 0; i < sizeof depths / sizeof *depths; i++) {
        if (i && depths[i] == depths[i - 1])
            continue;
        const uint32_t at = v->n_depths++;
        for (int b = 0; b < YK_B_PREFILL; b++) {
            const yk_step_kind step = {
                .n = yk_bucket_tokens((yk_bucket)b), .depth = depths[i], .kv_elem_bytes = limits->kv_elem_bytes};
            v->batch_tps[b][at] = (yk_figure){depths[i], step.n / step_s(p, &step, NULL)};
        }
        v->decode_tps[at] = v->batch_tps[0][at];
    }
}

static void predict_bounds(yk_plan_speed *v, pricer *p, const yk_plan_limits *limits)
{
    for (int phase = 0; phase < 2; phase++) {
        const yk_step_kind step = {.prefill = phase,
                                   .n = phase ? limits->batch : 1,
                                   .depth = phase ? 0 : limits->context / 2,
                                   .kv_elem_bytes = limits->kv_elem_bytes};
        double bound[YK_BOUND_N];
        const double t = step_s(p, &step, bound);
        int most = 0;
        for (int k = 0; k < YK_BOUND_N; k++) {
            most = bound[k] > bound[most] ? k : most;
            v->share[phase][k] = bound[k] < t ? bound[k] / t : 1;
        }
        snprintf(v->bound[phase], sizeof v->bound[phase], "%s", yk_bound_name((yk_bound)most));
        v->bound_share[phase] = v->share[phase][most];
        if (phase)
            v->prefill_tps[v->n_chunks++] = (yk_figure){step.n, step.n / t};
    }
}

/* The longest chunk of each kind that is shorter than a batch; the batch is there already. */
static void predict_chunks(yk_plan_speed *v, pricer *p, const yk_plan_limits *limits)
{
    for (int c = 0; c < YK_N_CHUNKS; c++) {
        const yk_step_kind step = {.prefill = true, .n = yk_chunk_tokens((yk_chunk)c), .kv_elem_bytes = limits->kv_elem_bytes};
        if (step.n < limits->batch)
            v->prefill_tps[v->n_chunks++] = (yk_figure){step.n, step.n / step_s(p, &step, NULL)};
    }
}

static void predict_prompts(yk_plan_speed *v, pricer *p, const yk_plan_limits *limits)
{
    const uint32_t prompts[] = {limits->batch, limits->context};
    for (uint32_t i = 0; i < 2; i++) {
        if (prompts[i] > limits->context || (i && prompts[1] <= prompts[0]))
            continue;
        double t = 0;
        for (uint64_t at = 0; at < prompts[i]; at += limits->batch) {
            const uint32_t n = prompts[i] - (uint32_t)at < limits->batch ? prompts[i] - (uint32_t)at : limits->batch;
            const yk_step_kind step = {.prefill = true, .n = n, .depth = (uint32_t)at, .kv_elem_bytes = limits->kv_elem_bytes};
            if (prompts[i] / limits->batch > 64) { /* long prompts: a middle chunk stands for all */
                const yk_step_kind middle = {
                    .prefill = true, .n = limits->batch, .depth = prompts[i] / 2, .kv_elem_bytes = limits->kv_elem_bytes};
                t = step_s(p, &middle, NULL) * prompts[i] / limits->batch;
                break;
            }
            t += step_s(p, &step, NULL);
        }
        v->ttft_ms[v->n_prompts++] = (yk_figure){prompts[i], 1e3 * t};
    }
}

static void predict(yk_plan *plan, pricer *p, const yk_plan_limits *limits)
{
    yk_plan_speed *v = &plan->speed;
    *v = (yk_plan_speed){0};
    predict_decode(v, p, limits);
    predict_bounds(v, p, limits);
    predict_chunks(v, p, limits);
    predict_prompts(v, p, limits);
    plan->predicted = true;
}

yk_status yk_plan_predict_with(yk_plan *plan, const yk_cost *cost, const yk_plan_limits *limits, yk_error *err)
{
    pricer p = {.plan = plan, .cost = cost};
    YK_TRY(yk_digest_make(&p.digest, plan, cost->shape, err));
    predict(plan, &p, limits);
    yk_free(p.digest.layers);
    return YK_OK;
}

static int machine_device(const yk_plan *plan, const yk_machine *machine)
{
    return plan->n_devices ? yk_machine_find(machine, plan->devices[0]) : -1;
}

void yk_plan_predict(yk_plan *plan, const yk_machine *machine, const yk_shape *shape, const yk_plan_limits *limits)
{
    yk_cost cost;
    yk_cost_init(&cost, machine, machine_device(plan, machine), shape);
    if (yk_plan_predict_with(plan, &cost, limits, NULL) == YK_OK)
        return;
    pricer p = {.plan = plan, .cost = &cost};
    predict(plan, &p, limits);
}

double yk_plan_request_s(const yk_plan *plan, const yk_machine *machine, const yk_shape *shape, const yk_plan_limits *limits)
{
    yk_cost cost;
    const uint32_t prompt = limits->prompt_tokens ? limits->prompt_tokens : 512,
                   gen = limits->gen_tokens ? limits->gen_tokens : 128;
    const uint32_t seqs = limits->max_seqs < yk_bucket_tokens(YK_B_32) ? limits->max_seqs : yk_bucket_tokens(YK_B_32);
    const uint32_t chunk = limits->batch < prompt ? limits->batch : prompt;
    const yk_step_kind dec = {.n = seqs, .depth = limits->context / 2, .kv_elem_bytes = limits->kv_elem_bytes};
    const yk_step_kind pre = {
        .prefill = true, .n = chunk, .depth = (prompt - chunk) / 2, .kv_elem_bytes = limits->kv_elem_bytes};
    yk_cost_init(&cost, machine, machine_device(plan, machine), shape);
    return (double)gen * limits->max_seqs / seqs * yk_cost_plan(&cost, plan, &dec, NULL) +
           (double)prompt * limits->max_seqs / chunk * yk_cost_plan(&cost, plan, &pre, NULL);
}
