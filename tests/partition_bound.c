#include "partition_bound.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "partition/solve_in.h"

/* Least seconds and price of bytes of plans for the slot set, by how many layers have their attention on the device: [n_layers + 1].
 * seconds: scratch, [2][n_layers + 1][YK_ATTN_N]. */
static void priced_by_count(const yk_solver *s, double price, double *out, double (*seconds)[YK_ATTN_N])
{
    const uint32_t n = s->shape->n_layers;
    double(*now)[YK_ATTN_N] = seconds, (*next)[YK_ATTN_N] = seconds + n + 1;
    for (uint32_t k = 0; k <= n; k++)
        for (int side = 0; side < YK_ATTN_N; side++)
            now[k][side] = k == 0 && side == YK_ATTN_HOST ? 0 : INFINITY;
    for (uint32_t l = 0; l < n; l++) {
        const yk_class *c = &s->classes[s->class_of[l]];
        double own[YK_ATTN_N];
        for (int side = 0; side < YK_ATTN_N; side++) {
            own[side] = INFINITY;
            for (uint32_t i = 0; i < c->n_options[side]; i++)
                own[side] = fmin(own[side], c->options[side][i].seconds + price * (double)c->options[side][i].bytes);
        }
        for (uint32_t k = 0; k <= n; k++)
            for (int side = 0; side < YK_ATTN_N; side++) {
                const bool device = side == YK_ATTN_DEVICE;
                next[k][side] = INFINITY;
                for (int from = 0; from < YK_ATTN_N && (k || !device); from++)
                    next[k][side] = fmin(next[k][side], now[k - device][from] + yk_solver_cross(s, from, side) + own[side]);
            }
        double(*swap)[YK_ATTN_N] = now;
        now = next;
        next = swap;
    }
    for (uint32_t k = 0; k <= n; k++) {
        out[k] = INFINITY;
        for (int side = 0; side < YK_ATTN_N; side++)
            for (int head = 0; head < 2; head++)
                out[k] = fmin(out[k], now[k][side] + yk_solver_cross(s, side, head ? YK_ATTN_DEVICE : YK_ATTN_HOST) +
                                          yk_solver_head(s, head) + (head ? price * (double)s->shape->head.bytes : 0));
    }
}

/* A bound for the slot set that knows how large attention with its KV is: the solver's own lets a part of a layer have its
 * attention on the device. The least over the number of such layers, each at the price of a byte that makes it highest. */
static double bound_by_count(const yk_solver *s, uint64_t room, double seconds)
{
    enum { PRICES = 192, FINE = 16, BELOW = 64 };
    const uint32_t n = s->shape->n_layers;
    double *best = malloc((n + 1) * sizeof *best), *at = malloc((n + 1) * sizeof *at), least = INFINITY;
    double(*scratch)[YK_ATTN_N] = malloc(2 * (n + 1) * sizeof *scratch);
    assert_true(best && at && scratch);
    priced_by_count(s, 0, best, scratch);
    for (int i = 0; i < PRICES; i++) {
        const double price = seconds / (double)room * exp2((double)(i - BELOW) / FINE);
        priced_by_count(s, price, at, scratch);
        for (uint32_t k = 0; k <= n; k++)
            best[k] = fmax(best[k], at[k] - price * (double)room);
    }
    for (uint32_t k = 0; k <= n; k++)
        least = fmin(least, best[k]);
    free(best);
    free(at);
    free(scratch);
    return least;
}

/* No plan of this form is below the least bound over the sizes of slots. The solver's bound is looked at more closely where it
 * leaves more than a percent. */
void yk_pt_check_against_bound(void **state)
{
    (void)state;
    static const char *const shapes[] = {"mixtral-8x7b", "llama2-13b", "qwen3-30b-a3b", "gpt-oss-20b"};
    double worst = 0;
    for (int i = 0; i < 4; i++)
        for (int gib = 2; gib <= 16; gib *= 2) {
            yk_machine m;
            yk_shape s;
            yk_plan p;
            yk_rules rules;
            yk_solver solver;
            yk_cost cost;
            yk_error err = {0};
            yk_best best = {.s = INFINITY};
            yk_slot slots[YK_MAX_SLOTS];
            yk_pt_machine(&m, "rtx-4090-desktop");
            yk_pt_shape(&s, shapes[i], NULL);
            const yk_plan_limits l = yk_pt_limits(&m, (uint64_t)gib << 30);
            const uint64_t room = l.devices[0].budget_bytes - yk_plan_activation_bytes(&s, &l);
            assert_int_equal(yk_rules_make(&rules, &s, &l, &err), YK_OK);
            assert_int_equal(yk_solver_open(&solver, &s, &l, &rules, &err), YK_OK);
            best.choice = calloc(s.n_layers, sizeof *best.choice);
            yk_cost_init(&cost, &m, 0, &s);
            yk_solver_set_cost(&solver, &cost);
            double bound = INFINITY;
            if (yk_plan_solve(&p, &m, &s, &l, &err) != YK_OK || yk_plan_check(&p, &s, &l, &err) != YK_OK)
                fail_msg("%s", err.text);
            const double t = yk_plan_request_s(&p, &m, &s, &l);
            for (uint32_t k = 0, n = yk_solver_slots(&solver, slots); k < n; k++) {
                const uint64_t staging = yk_solver_staging(&solver, slots[k]);
                if (staging > room)
                    continue;
                yk_solver_set_slot(&solver, slots[k], room - staging);
                best.s = INFINITY;
                double own = yk_search_run(&solver, room - staging, false, &best);
                if (own < t / 1.01)
                    own = fmax(own, bound_by_count(&solver, room - staging, t));
                bound = fmin(bound, own);
            }
            const double gap = t / bound - 1;
            printf("%-14s in %2d GiB: at most %.2f %% above the best\n", shapes[i], gib, 100 * gap);
            worst = fmax(worst, gap);
            assert_true(gap > -1e-9);
            yk_plan_clear(&p);
            yk_solver_close(&solver);
            yk_rules_close(&rules);
            free(best.choice);
            yk_shape_close(&s);
        }
    assert_true(worst < 0.01);
}
