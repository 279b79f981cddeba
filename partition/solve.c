#include "partition/solve.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "partition/solve_in.h"

/* A device is used when it makes the request this much faster; below that the simpler plan wins. */
#define WORTH 0.992
/* The card a device of the same silicon stands for. */
#define REHEARSAL_SPEED  5.0
#define REHEARSAL_LINK   0.8
#define REHEARSAL_TOKENS 8.0  /* whose products take as long as reading the weights */
#define REHEARSAL_FLOPS  16.0 /* of attention while a byte is read */
/* What would help: so much more. */
#define MORE_BYTES       (1ull << 30)
#define MORE_BYTES_PER_S 10e9
#define MORE_SPEED       1.1
/* Products at this share of the memory's rate wait for memory, not for cores. */
#define NEAR_MEMORY 0.6

typedef struct job {
    const yk_machine *machine;
    const yk_shape *shape;
    const yk_plan_limits *limits;
    const yk_rules *rules;
    const yk_plan_device_limit *device; /* NULL: none */
    bool forced, rehearsal;
    uint64_t fixed_bytes; /* runtime and activations */
    yk_rules rehearsed;   /* the rules, bound further; owns its layers only */
    yk_cost real;
    yk_solver s;
    yk_best best, more, cpu; /* in the budget, in a larger one, without a device */
} job;

static void note(yk_plan *plan, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void note(yk_plan *plan, const char *fmt, ...)
{
    const size_t at = strlen(plan->note);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(plan->note + at, sizeof plan->note - at, fmt, ap);
    va_end(ap);
}

/* ---- choices by name ---- */

/* Layers from `first` on wholly on the device, the others on the host. Their bytes. */
static uint64_t whole_layers(yk_solver *s, yk_option *choice, uint32_t first)
{
    uint64_t bytes = 0;
    for (uint32_t l = 0; l < s->shape->n_layers; l++) {
        const yk_class *k = &s->classes[s->class_of[l]];
        const bool same = l && s->class_of[l - 1] == s->class_of[l] && (l > first || l < first);
        if (same)
            choice[l] = choice[l - 1];
        else {
            choice[l] = l >= first ? yk_option_all(s, k) : (yk_option){0};
            yk_price_option(s, k, &choice[l]);
        }
        bytes += choice[l].bytes;
    }
    return bytes;
}

static void add_alternative(yk_solver *s, yk_plan *plan, const char *name, const yk_option *choice, bool head)
{
    yk_alternative *a = &plan->alternatives[plan->n_alternatives++];
    snprintf(a->name, sizeof a->name, "%s", name);
    if (choice)
        yk_solver_speed(s, choice, head, &a->decode_tps, &a->prefill_tps);
}

/* What people use today, under the same cost model, in the same budget, without copying weights. */
static void add_alternatives(yk_solver *s, yk_plan *plan, bool device, uint64_t room)
{
    const uint32_t n = s->shape->n_layers;
    const bool head = !s->shape->head_host_only;
    const uint64_t head_bytes = head ? s->shape->head.bytes : 0;
    char name[40];
    s->slot = (yk_slot){0};
    whole_layers(s, s->choice, n);
    add_alternative(s, plan, "CPU only", s->choice, false);
    if (!device)
        return;
    bool all = head && whole_layers(s, s->choice, 0) + head_bytes <= room;
    for (uint32_t i = 0; i < s->n_classes; i++) {
        const yk_shape_layer *y = &s->shape->layers[s->classes[i].layer];
        all = all && !y->host_only && !y->part[s->classes[i].main].host_only && !y->part[YK_PART_SHEXP].host_only;
    }
    add_alternative(s, plan, "all on the device", all ? s->choice : NULL, true);
    if (!all) { /* as llama.cpp counts: the head first, then layers from the last one */
        uint32_t first = 0;
        while (first < n && whole_layers(s, s->choice, first) + head_bytes > room)
            first++;
        if (first == n)
            whole_layers(s, s->choice, n);
        snprintf(name, sizeof name, "whole layers (-ngl %u)", head_bytes <= room ? n - first + 1 : 0);
        add_alternative(s, plan, name, head_bytes <= room ? s->choice : NULL, head);
    }
    if (!s->shape->n_experts)
        return;
    uint64_t bytes = head_bytes;
    for (uint32_t l = 0; l < n; l++) {
        const yk_class *k = &s->classes[s->class_of[l]];
        s->choice[l] = yk_option_all(s, k);
        if (k->main == YK_PART_EXP)
            s->choice[l].resident = 0;
        yk_price_option(s, k, &s->choice[l]);
        bytes += s->choice[l].bytes;
    }
    add_alternative(s, plan, "all experts on the CPU", bytes <= room ? s->choice : NULL, head);
}

/* ---- machines that are not this one ---- */

/* All rates of a lane times `factor`. */
static void scale_lane(yk_lane *l, double factor)
{
    for (int t = 0; t < YK_TYPE_LIMIT; t++) {
        for (int b = 0; b < YK_N_BUCKETS; b++)
            l->s_per_byte[t][b] /= factor;
        for (uint32_t i = 0; i < l->prompt[t].n; i++)
            l->prompt[t].s_per_byte[i] /= factor;
    }
    for (int i = 0; i < YK_HEAD_DIMS; i++) {
        l->head_kv_s_per_byte[i] /= factor;
        l->head_s_per_flop[i] /= factor;
    }
    l->read_s_per_byte /= factor;
    l->attention_s_per_flop /= factor;
    l->stage_s /= factor;
    l->row_s_per_byte /= factor;
    l->fixed_s /= factor;
}

/* A card that a device of the same silicon stands for, beside a CPU of round figures: the CPU reads all types at its read rate and
 * computes from eight tokens on, the card does all of it five times as fast, the link has four fifths of the CPU's rate, nothing
 * disturbs anything, no latency on any side. Only the read rate is measured and all times go with it, so the plan is the same at each
 * measurement. */
static void rehearse(yk_cost *c)
{
    const double read = c->cpu.read_s_per_byte;
    c->cpu = (yk_lane){.read_s_per_byte = read, .attention_s_per_flop = read / REHEARSAL_FLOPS};
    for (int t = 0; t < YK_TYPE_LIMIT; t++) {
        for (int b = 0; b < YK_B_PREFILL; b++)
            c->cpu.s_per_byte[t][b] = read * fmax(1, yk_bucket_tokens((yk_bucket)b) / REHEARSAL_TOKENS);
        c->cpu.s_per_byte[t][YK_B_PREFILL] = read / REHEARSAL_TOKENS;
        for (int i = 0; i < YK_DOWN_POINTS; i++)
            c->cpu.down_factor[t][i] = 1;
    }
    for (int i = 0; i < YK_HEAD_DIMS; i++) {
        c->cpu.head_kv_s_per_byte[i] = read;
        c->cpu.head_s_per_flop[i] = c->cpu.attention_s_per_flop;
    }
    c->gpu = c->cpu;
    scale_lane(&c->gpu, REHEARSAL_SPEED);
    c->launch_s = c->hand_s = c->link_s = 0;
    c->link_s_per_byte = c->back_s_per_byte = c->cpu.read_s_per_byte / REHEARSAL_LINK;
    c->pair = (yk_pair){0};
    c->same_memory_rate = 0;
}

/* The same with more memory bandwidth: products that run near the memory's rate go faster, others do not. */
static void faster_memory(yk_cost *c)
{
    const double read = 1 / c->cpu.read_s_per_byte, factor = read / (read + MORE_BYTES_PER_S);
    for (int t = 0; t < YK_TYPE_LIMIT; t++)
        for (int b = 0; b < YK_B_PREFILL; b++)
            if (c->cpu.s_per_byte[t][b] < c->cpu.read_s_per_byte / NEAR_MEMORY)
                c->cpu.s_per_byte[t][b] *= factor;
    for (int i = 0; i < YK_HEAD_DIMS; i++)
        if (c->cpu.head_kv_s_per_byte[i] < c->cpu.read_s_per_byte / NEAR_MEMORY)
            c->cpu.head_kv_s_per_byte[i] *= factor;
    c->cpu.read_s_per_byte *= factor;
    c->pair.cpu += c->pair.cpu > 0 ? MORE_BYTES_PER_S : 0;
    c->pair.memory += c->pair.memory > 0 ? MORE_BYTES_PER_S : 0;
    c->same_memory_rate += c->same_memory_rate > 0 ? MORE_BYTES_PER_S : 0;
}

/* The same with a faster link, at most as fast as memory. False: it is that already. */
static bool faster_link(yk_cost *c)
{
    const double read = 1 / c->cpu.read_s_per_byte, was = 1 / c->link_s_per_byte, rate = fmin(was + MORE_BYTES_PER_S, read);
    if (rate < 1.01 * was || c->same_memory_rate > 0)
        return false;
    c->link_s_per_byte = 1 / rate;
    c->back_s_per_byte = fmin(c->back_s_per_byte, 1 / rate);
    return true;
}

/* The same with more or faster cores: what runs near the memory's rate does not go faster. */
static void faster_cores(yk_lane *l)
{
    yk_lane fast = *l;
    const double near = l->read_s_per_byte / NEAR_MEMORY;
    scale_lane(&fast, MORE_SPEED);
    for (int t = 0; t < YK_TYPE_LIMIT; t++)
        for (int b = 0; b < YK_B_PREFILL; b++) {
            const double s = l->s_per_byte[t][b];
            fast.s_per_byte[t][b] = s < near ? s : fast.s_per_byte[t][b];
            if (b)
                fast.s_per_byte[t][b] = fmax(fast.s_per_byte[t][b], fast.s_per_byte[t][b - 1]);
        }
    for (int i = 0; i < YK_HEAD_DIMS; i++)
        if (l->head_kv_s_per_byte[i] < near)
            fast.head_kv_s_per_byte[i] = l->head_kv_s_per_byte[i];
    fast.read_s_per_byte = l->read_s_per_byte;
    *l = fast;
}

/* Bytes of all layers and the head on the device. */
static uint64_t all_bytes(const job *j)
{
    uint64_t all = j->shape->head.bytes;
    for (uint32_t l = 0; l < j->shape->n_layers; l++) {
        const yk_class *k = &j->s.classes[j->s.class_of[l]];
        yk_option o = yk_option_all(&j->s, k);
        yk_price_option(&j->s, k, &o);
        all += o.bytes;
    }
    return all;
}

/* ---- one device ---- */

static uint64_t room_of(const job *j)
{
    return j->device && j->device->budget_bytes > j->fixed_bytes ? j->device->budget_bytes - j->fixed_bytes : 0;
}

/* Where the bound of a slot leaves a better plan possible, look closer: everywhere when there are few layers, else at the
 * most promising. */
static void look_closer(job *j, const yk_slot *slots, double *bounds, uint32_t n, yk_best *best)
{
    enum { MOST_OF_MANY = 3 };
    const uint64_t room = room_of(j);
    for (uint32_t times = yk_search_few(&j->s) ? n : MOST_OF_MANY; times-- > 0;) {
        uint32_t at = 0;
        for (uint32_t i = 1; i < n; i++)
            at = bounds[i] < bounds[at] ? i : at;
        if (!n || !yk_search_open_gap(&j->s, bounds[at], best))
            return;
        const uint64_t left = room - yk_solver_staging(&j->s, slots[at]);
        yk_solver_set_slot(&j->s, slots[at], left);
        yk_search_run(&j->s, left, true, best);
        bounds[at] = INFINITY;
    }
}

/* All slots, for the budget and (more not NULL) a larger one. */
static void search(job *j, yk_best *best, yk_best *more)
{
    yk_slot slots[YK_MAX_SLOTS];
    double bounds[YK_MAX_SLOTS];
    const uint64_t room = room_of(j), most = more ? room + MORE_BYTES : room;
    const uint32_t n = room || more ? yk_solver_slots(&j->s, slots) : 0;
    uint32_t used = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t staging = yk_solver_staging(&j->s, slots[i]);
        if (staging > most)
            continue;
        yk_solver_set_slot(&j->s, slots[i], most - staging);
        if (room && staging <= room) {
            bounds[used] = yk_search_run(&j->s, room - staging, false, best);
            slots[used++] = slots[i];
        }
        if (more)
            yk_search_run(&j->s, most - staging, false, more);
    }
    look_closer(j, slots, bounds, used, best);
}

static void search_cpu(job *j, yk_best *cpu)
{
    j->s.slot = (yk_slot){0};
    whole_layers(&j->s, cpu->choice, j->shape->n_layers);
    cpu->s = yk_solver_total(&j->s, cpu->choice, false);
    cpu->head = false;
    cpu->slot = (yk_slot){0};
}

static bool use_device(const job *j, const yk_best *best, const yk_best *cpu)
{
    return best->s < INFINITY && (j->forced || best->s < WORTH * cpu->s);
}

static void add_help(job *j, yk_plan *plan, const char *name, const yk_best *b)
{
    yk_plan_help *h = &plan->speed.help[plan->speed.n_help++];
    snprintf(h->name, sizeof h->name, "%s", name);
    j->s.slot = b->slot;
    yk_solver_speed(&j->s, b->choice, b->head, &h->decode_tps, &h->prefill_tps);
}

/* The plan as it is, with copies chosen anew: near the best plan others gain little more from such a change. */
static void help_of_speed(job *j, yk_plan *plan, const char *name, const yk_cost *cost, bool used)
{
    yk_best b = used ? j->best : j->cpu;
    yk_slot slots[YK_MAX_SLOTS];
    yk_solver_set_cost(&j->s, cost);
    if (used && !b.slot.bytes && yk_solver_slots(&j->s, slots) > 1) /* it copies nothing yet */
        b.slot = slots[1];
    add_help(j, plan, name, &b);
}

static bool bound_by(const yk_plan *plan, yk_bound b)
{
    return strcmp(plan->speed.bound[0], yk_bound_name(b)) == 0 || strcmp(plan->speed.bound[1], yk_bound_name(b)) == 0;
}

/* What more of something would give. used: the plan has the device. */
static void add_helps(job *j, yk_plan *plan, bool used)
{
    char name[48];
    yk_cost cost = j->real;
    if (j->rehearsal)
        return;
    if (j->device) {
        snprintf(name, sizeof name, "1 GiB more of %s", j->device->name);
        add_help(j, plan, name, use_device(j, &j->more, &j->cpu) ? &j->more : &j->cpu);
    }
    faster_memory(&cost);
    yk_solver_set_cost(&j->s, &cost);
    j->more.s = INFINITY;
    search_cpu(j, &j->cpu);
    search(j, &j->more, NULL);
    add_help(j, plan, "10 GB/s more of memory bandwidth", use_device(j, &j->more, &j->cpu) ? &j->more : &j->cpu);
    cost = j->real;
    if (used && faster_link(&cost)) {
        const double gain = (1 / cost.link_s_per_byte - 1 / j->real.link_s_per_byte) / 1e9;
        snprintf(name, sizeof name, "%.3g GB/s more of the link", gain);
        help_of_speed(j, plan, name, &cost, used);
    }
    cost = j->real;
    if (used && bound_by(plan, YK_BOUND_GPU)) {
        scale_lane(&cost.gpu, MORE_SPEED);
        snprintf(name, sizeof name, "a %.0f %% faster %s", 100 * (MORE_SPEED - 1), j->device->name);
        help_of_speed(j, plan, name, &cost, used);
    }
    cost = j->real;
    if (strcmp(plan->speed.bound[1], yk_bound_name(YK_BOUND_CPU)) == 0) {
        faster_cores(&cost.cpu);
        snprintf(name, sizeof name, "%.0f %% more of the CPU's cores", 100 * (MORE_SPEED - 1));
        help_of_speed(j, plan, name, &cost, used);
    }
    yk_solver_set_cost(&j->s, &j->real);
}

/* The smallest budget with which the device is worth using, to 1 %; 0: none is. best: scratch. */
static uint64_t least_budget(job *j, yk_best *best)
{
    yk_slot slots[YK_MAX_SLOTS];
    const uint64_t all = all_bytes(j);
    uint64_t least = 0;
    const uint32_t n = yk_solver_slots(&j->s, slots);
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t staging = yk_solver_staging(&j->s, slots[i]);
        uint64_t low = 0, high = least ? least : all + staging;
        if (staging >= high)
            continue;
        yk_solver_set_slot(&j->s, slots[i], high - staging);
        best->s = INFINITY;
        yk_search_run(&j->s, high - staging, false, best);
        if (!(best->s < WORTH * j->cpu.s))
            continue;
        while (high - low > high / 128 + 1) {
            const uint64_t mid = low + (high - low) / 2;
            best->s = INFINITY;
            if (mid >= staging)
                yk_search_run(&j->s, mid - staging, false, best);
            *(best->s < WORTH * j->cpu.s ? &high : &low) = mid;
        }
        least = high;
    }
    return least ? least + j->fixed_bytes : 0;
}

static void explain_choice(job *j, yk_plan *out, bool used)
{
    const yk_plan_device_limit *d = j->device;
    if (!d)
        return;
    if (used && j->rehearsal)
        note(out, "%s is the CPU itself: used because it was asked for, planned as if it were a card %g times as fast", d->name,
             REHEARSAL_SPEED);
    else if (used)
        note(out, "%s makes a request %.2f times as fast as the CPU alone", d->name, j->cpu.s / j->best.s);
    else {
        const double with = j->best.s;
        if (isinf(with))
            note(out, "CPU only: the budget of %s, %.1f MiB, holds nothing beside runtime and activations (%.1f MiB)", d->name,
                 (double)d->budget_bytes / 0x1p20, (double)j->fixed_bytes / 0x1p20);
        else
            note(out, "CPU only: %s would not be faster in %.1f MiB (a request of %.3g s instead of %.3g s)", d->name,
                 (double)d->budget_bytes / 0x1p20, with, j->cpu.s);
        const uint64_t least = least_budget(j, &j->more);
        if (least > d->budget_bytes)
            note(out, "; from %.0f MiB it would help", ceil((double)least / 0x1p20));
        else if (!least)
            note(out, "; no budget would help");
    }
}

/* Fewest bytes the wishes leave; with the runtime and the activations. */
static uint64_t bytes_wished(const job *j, const yk_rules *r)
{
    uint64_t sum = j->fixed_bytes + (r->head.sides == YK_ON_DEVICE ? j->shape->head.bytes : 0);
    for (uint32_t l = 0; l < j->shape->n_layers; l++) {
        const yk_class *k = &j->s.classes[j->s.class_of[l]];
        const yk_layer_rule *y = &r->layers[l];
        const yk_shape_part *p = &j->shape->layers[l].part[k->main];
        sum += y->attn.sides == YK_ON_DEVICE ? k->attn_bytes : 0;
        sum += y->shared.sides == YK_ON_DEVICE ? k->shared_bytes : 0;
        sum += k->main == YK_PART_EXP ? y->least * yk_shape_units_bytes(p, 0, p->cut.n) : yk_shape_units_bytes(p, 0, y->least);
    }
    return sum;
}

static yk_status refuse(job *j, yk_error *err)
{
    char flag[160], most[64] = "";
    yk_rules_flag(j->rules, j->rules->by, flag);
    if (j->limits->wishes.ngl_given && j->rules->by.who == YK_ASK_NGL) {
        yk_plan_limits fewer = *j->limits;
        const uint32_t n = j->shape->n_layers + 1;
        fewer.wishes.ngl = fewer.wishes.ngl < n ? fewer.wishes.ngl : n;
        while (fewer.wishes.ngl > 0) {
            yk_rules r;
            fewer.wishes.ngl--;
            const yk_status st = yk_rules_make(&r, j->shape, &fewer, err);
            const bool fits = st == YK_OK && bytes_wished(j, &r) <= j->device->budget_bytes;
            yk_rules_close(&r);
            YK_TRY(st);
            if (fits)
                break;
        }
        snprintf(most, sizeof most, "; at most -ngl %u fits", fewer.wishes.ngl);
    }
    return yk_fail(err, YK_ERR_MEMORY,
                   "%s lost: it takes %.1f MiB of %s with runtime and activations, the budget is %.1f MiB%s", flag,
                   (double)bytes_wished(j, j->rules) / 0x1p20, j->device->name, (double)j->device->budget_bytes / 0x1p20, most);
}

/* In a rehearsal each part is computed on both sides, so what nobody asked for is bound: the head and the attention of the first
 * half of the layers stay on the host, which leaves room for FFNs in a small budget too. */
static yk_status bind_rehearsal(job *j, yk_error *err)
{
    const yk_cost cost = j->s.cost;
    const uint32_t n = j->shape->n_layers;
    yk_solver_close(&j->s);
    j->rehearsed = *j->rules;
    j->rehearsed.layers = yk_alloc(YK_MEM_PLAN, n, sizeof *j->rehearsed.layers);
    if (!j->rehearsed.layers)
        return yk_fail_memory(err, n * sizeof *j->rehearsed.layers, "constraints of a plan");
    for (uint32_t l = 0; l < n; l++) {
        j->rehearsed.layers[l] = j->rules->layers[l];
        if (l < n / 2 && j->rules->layers[l].attn.who == YK_ASK_NOBODY)
            j->rehearsed.layers[l].attn.sides = YK_ON_HOST;
    }
    if (j->rules->head.who == YK_ASK_NOBODY)
        j->rehearsed.head.sides = YK_ON_HOST;
    YK_TRY(yk_solver_open(&j->s, j->shape, j->limits, &j->rehearsed, err));
    yk_solver_set_cost(&j->s, &cost);
    return YK_OK;
}

static yk_status open_job(job *j, yk_error *err)
{
    const yk_plan_device_limit *d = j->device;
    const int index = d ? yk_machine_find(j->machine, d->name) : -1;
    const uint32_t n = j->shape->n_layers;
    YK_TRY(yk_solver_open(&j->s, j->shape, j->limits, j->rules, err));
    yk_best *const all[] = {&j->best, &j->more, &j->cpu};
    for (int i = 0; i < 3; i++) {
        all[i]->s = INFINITY;
        all[i]->choice = yk_alloc(YK_MEM_PLAN, n, sizeof *all[i]->choice);
        if (!all[i]->choice)
            return yk_fail_memory(err, n * sizeof *all[i]->choice, "the planner");
    }
    if (d)
        j->fixed_bytes =
            d->runtime_bytes + (d->activation_bytes ? d->activation_bytes : yk_plan_activation_bytes(j->shape, j->limits));
    yk_cost_init(&j->real, j->machine, index, j->shape);
    yk_cost cost = j->real;
    j->rehearsal = d && j->machine->devices[index].same_silicon;
    if (j->rehearsal)
        rehearse(&cost);
    yk_solver_set_cost(&j->s, &cost);
    return j->rehearsal && all_bytes(j) > room_of(j) ? bind_rehearsal(j, err) : YK_OK;
}

static void close_job(job *j)
{
    yk_solver_close(&j->s);
    yk_free(j->rehearsed.layers);
    yk_free(j->best.choice);
    yk_free(j->more.choice);
    yk_free(j->cpu.choice);
}

static yk_status run_job(job *j, yk_plan *out, yk_error *err)
{
    YK_TRY(open_job(j, err));
    if (j->device)
        search(j, &j->best, j->rehearsal ? NULL : &j->more);
    search_cpu(j, &j->cpu);
    if (j->rules->device_wanted && isinf(j->best.s))
        return refuse(j, err);
    const bool used = use_device(j, &j->best, &j->cpu);
    YK_TRY(yk_solver_emit(&j->s, out, used ? j->device->name : NULL, used ? &j->best : &j->cpu, err));
    YK_TRY(yk_plan_predict_with(out, &j->real, j->limits, err));
    if (j->rehearsal)
        yk_solver_set_cost(&j->s, &j->real); /* what is said is of the machine as it is */
    add_alternatives(&j->s, out, room_of(j) > 0, room_of(j));
    const double cpu_s = j->cpu.s;
    add_helps(j, out, used);
    j->cpu.s = cpu_s;
    explain_choice(j, out, used);
    return YK_OK;
}

/* The best plan with a device of the limits (NULL: none). forced: use it when anything fits. */
static yk_status solve_with(yk_plan *out, const job *what, yk_error *err)
{
    job j = *what;
    *out = (yk_plan){0};
    const yk_status st = run_job(&j, out, err);
    close_job(&j);
    if (st != YK_OK)
        yk_plan_clear(out);
    return st;
}

/* ---- all devices ---- */

static const yk_plan_device_limit *limit_of(const yk_plan_limits *limits, const char *name)
{
    for (uint32_t i = 0; i < limits->n_devices; i++)
        if (strcmp(limits->devices[i].name, name) == 0)
            return &limits->devices[i];
    return NULL;
}

/* The file of a machine does not have the device wanted. */
static yk_status fail_absent(const yk_machine *m, const char *want, yk_error *err)
{
    char names[YK_MAX_DEVICES * (YK_DEVICE_NAME + 2) + 1] = "";
    for (uint32_t i = 0; i < m->n_devices; i++)
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "", m->devices[i].name);
    return yk_fail(err, YK_ERR_USAGE,
                   "--device %s: the machine's file describes %s; name one of these, or profile with --device %s", want,
                   *names ? names : "no device but the CPU (cpu)", want);
}

static yk_status solve_named(yk_plan *out, job *j, const char *want, yk_error *err)
{
    char flag[160];
    const int i = yk_machine_find(j->machine, want);
    j->device = i < 0 ? NULL : limit_of(j->limits, j->machine->devices[i].name);
    j->forced = true;
    if (i < 0)
        return fail_absent(j->machine, want, err);
    YK_FAIL_IF(!j->device, err, YK_ERR_USAGE, "device %s: no budget is given for it", want);
    yk_rules_flag(j->rules, j->rules->by, flag);
    YK_FAIL_IF(*j->rules->device && strcmp(j->rules->device, j->device->name) != 0, err, YK_ERR_USAGE,
               "%s lost: it names %s, --device names %s, and a plan made here uses one device", flag, j->rules->device,
               j->device->name);
    return solve_with(out, j, err);
}

/* The plan without a device, and the reason. */
static yk_status solve_cpu(yk_plan *out, job *j, bool asked, yk_error *err)
{
    j->device = NULL;
    YK_TRY(solve_with(out, j, err));
    note(out, "CPU only: %s", asked ? "asked for" : "this machine has no other device");
    return YK_OK;
}

/* Every device of silicon of its own is tried; when a device is wished for, the plan without one does not count. */
static yk_status solve_auto(yk_plan *out, job *j, yk_error *err)
{
    bool any = false, wanted = j->rules->device_wanted;
    double best_s = INFINITY;
    yk_error first = {0};
    yk_status st = YK_OK, failed = YK_OK;
    char why[128] = "";
    *out = (yk_plan){0};
    if (!wanted) {
        YK_TRY(solve_cpu(out, j, false, err));
        best_s = yk_plan_request_s(out, j->machine, j->shape, j->limits);
    }
    for (uint32_t i = 0; i < j->machine->n_devices && st == YK_OK; i++) {
        const yk_machine_device *md = &j->machine->devices[i];
        j->device = limit_of(j->limits, md->name);
        j->forced = wanted;
        if (md->same_silicon && !*why)
            snprintf(why, sizeof why, "%s is the CPU itself; --device %s uses it all the same", md->name, md->backend);
        if (md->same_silicon || !j->device || (*j->rules->device && strcmp(j->rules->device, md->name) != 0))
            continue;
        yk_plan other;
        yk_error inner = {0};
        st = solve_with(&other, j, &inner);
        if (wanted && st == YK_ERR_MEMORY && failed == YK_OK) { /* another device may be larger */
            failed = st;
            first = inner;
            st = YK_OK;
            continue;
        }
        if (st != YK_OK) {
            first = inner;
            failed = st;
            break;
        }
        const double t = yk_plan_request_s(&other, j->machine, j->shape, j->limits);
        if (t < best_s || !any) { /* the first device's plan explains best why not, too */
            best_s = t;
            yk_plan_clear(out);
            *out = other;
        } else
            yk_plan_clear(&other);
        any = true;
    }
    if (!any && st == YK_OK && !wanted) {
        if (*why)
            snprintf(out->note, sizeof out->note, "CPU only: %s", why);
        return YK_OK;
    }
    if (any && st == YK_OK)
        return YK_OK;
    yk_plan_clear(out);
    if (failed != YK_OK)
        return yk_fail(err, failed, "%s", first.text);
    char flag[160];
    yk_rules_flag(j->rules, j->rules->by, flag);
    return yk_fail(err, YK_ERR_USAGE, "%s lost: there is no device to put weights on%s%s", flag, *why ? "; " : "", why);
}

yk_status yk_plan_solve(yk_plan *out, const yk_machine *machine, const yk_shape *shape, const yk_plan_limits *limits,
                        yk_error *err)
{
    const char *want = *limits->device ? limits->device : "auto";
    yk_rules rules;
    char flag[160];
    *out = (yk_plan){0};
    yk_status st = yk_rules_make(&rules, shape, limits, err);
    job j = {.machine = machine, .shape = shape, .limits = limits, .rules = &rules};
    if (st == YK_OK && strcmp(want, "cpu") == 0) {
        yk_rules_flag(&rules, rules.by, flag);
        st = rules.device_wanted ? yk_fail(err, YK_ERR_USAGE, "%s lost: --device cpu leaves no device to put weights on", flag)
                                 : solve_cpu(out, &j, true, err);
    } else if (st == YK_OK)
        st = strcmp(want, "auto") == 0 ? solve_auto(out, &j, err) : solve_named(out, &j, want, err);
    if (st == YK_OK && *rules.gave_way)
        note(out, "%s%s", *out->note ? "; " : "", rules.gave_way);
    yk_rules_close(&rules);
    return st;
}
