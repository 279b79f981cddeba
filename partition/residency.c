#include "partition/residency.h"

#include <math.h>
#include <string.h>

/* A copy that nothing waits for has its price, too: chance would make many. Share of its seconds on the link. */
#define MIN_GAIN 0.35

static const double half_life[YK_RESIDENCY_MEANS] = {24, 64, 256, 1024};

typedef struct swap {
    uint32_t in, out;
    double gain; /* seconds saved for each second of the copy */
} swap;

typedef struct layer_state {
    yk_resident_layer cost;
    size_t cell0; /* of its first expert */
    /* Of each running mean: sums over the experts of it and its square; squared error one token ahead; lag-1 products and squares. */
    double s1[YK_RESIDENCY_MEANS], s2[YK_RESIDENCY_MEANS];
    double error[YK_RESIDENCY_MEANS], lag[YK_RESIDENCY_MEANS], square[YK_RESIDENCY_MEANS];
    uint32_t n_last;
    uint16_t last[YK_SPREAD_EXACT]; /* experts of the last token */
    double saved, saved_weight;     /* by one resident more or less, decayed sums of seconds and of how often */
    bool can;
    swap best; /* while copies are planned; there is one when `can` */
} layer_state;

typedef struct cell {
    uint8_t kind, plan; /* now; the static plan's */
    bool moving;
    bool last, now; /* used by the last token, by this one */
} cell;

struct yk_residency {
    uint32_t n_layers;
    yk_residency_opts opts;
    layer_state *layers;
    cell *cells;                    /* of all experts */
    float *sum[YK_RESIDENCY_MEANS]; /* of their uses, decayed */
    float *uses;                    /* expected, in the next `tokens` */
    double decay[YK_RESIDENCY_MEANS], weight[YK_RESIDENCY_MEANS], weight2[YK_RESIDENCY_MEANS];
    yk_resident_idle idle; /* link_s and both_s are decayed sums */
    double idle_weight;
    double ahead_s; /* ours - static, decayed over GUARD tokens */
    uint64_t hold_until, hold;
    bool returning;
    yk_residency_sums sums;
    uint32_t n_copies;
    yk_resident_copy copies[YK_RESIDENCY_COPIES];
};

/* ---- prices ----------------------------------------------------------------------------------------------------------------------------- */

static bool read_kinds(uint8_t *kinds, const yk_plan_layer *y, const yk_shape_layer *shape, uint32_t n_experts)
{
    uint32_t seen = 0, n_device = 0;
    for (uint32_t i = 0; i < y->n_slices; i++) {
        const yk_slice *s = &y->slices[i];
        if (s->group != YK_PART_EXP)
            continue;
        if (s->expert >= n_experts || s->unit0 || s->units != shape->part[YK_PART_EXP].cut.n)
            return false;
        kinds[s->expert] = s->kind[YK_B_1];
        n_device += s->kind[YK_B_1] == YK_KIND_GG;
        seen++;
    }
    return seen == n_experts && n_device > 0 && n_device < n_experts;
}

/* What is sure to be computed: everything but the experts. Units that follow each other and are treated alike are one copy. */
static void add_sure(const yk_cost *c, yk_load *load, const yk_plan_layer *y, const yk_shape_layer *shape,
                     const yk_step_kind *step)
{
    yk_use use = {0};
    for (uint32_t i = 0; i <= y->n_slices; i++) {
        const yk_slice *s = i < y->n_slices ? &y->slices[i] : NULL;
        if (s && s->group == YK_PART_EXP)
            continue;
        if (s && use.units && use.group == (yk_part_group)s->group && use.kind == (yk_kind)s->kind[YK_B_1] &&
            use.unit0 + use.units == s->unit0) {
            use.units += s->units;
            continue;
        }
        if (use.units)
            yk_cost_add(c, load, shape, step, &use);
        if (s)
            use = (yk_use){(yk_part_group)s->group, (yk_kind)s->kind[YK_B_1], s->unit0, s->units, 1};
    }
}

void yk_resident_price(yk_resident_layer *out, uint8_t *kinds, const yk_cost *c, const yk_plan *plan, uint32_t layer,
                       uint32_t depth, uint32_t kv_elem_bytes)
{
    const yk_shape_layer *shape = &c->shape->layers[layer];
    const yk_plan_layer *y = &plan->layers[layer];
    const yk_step_kind step = {.n = 1, .depth = depth, .kv_elem_bytes = kv_elem_bytes};
    const uint32_t n_experts = shape->part[YK_PART_EXP].n;
    *out = (yk_resident_layer){0};
    if (!n_experts || !c->has_device || c->shape->n_used > YK_SPREAD_EXACT || !read_kinds(kinds, y, shape, n_experts))
        return;
    yk_experts experts = {0};
    for (uint32_t e = 0; e < n_experts; e++)
        experts.n[kinds[e]]++;
    yk_cost_experts(c, &experts, shape, &step);
    if (yk_spread_chosen(&experts) != c->shape->n_used)
        return;
    yk_load sure = {0};
    add_sure(c, &sure, y, shape, &step);
    const yk_cost_side side = yk_cost_side_of(c, layer, &step, yk_cost_attn_of(y, &step));
    yk_spread_table(out->at, c, &step, &side, &sure, &experts);
    const yk_load *cc = &experts.one[YK_KIND_CC], *cg = &experts.one[YK_KIND_CG];
    out->n_experts = n_experts;
    out->n_used = c->shape->n_used;
    out->copy_s = c->link_s + (double)yk_shape_units_bytes(&shape->part[YK_PART_EXP], 0, shape->part[YK_PART_EXP].cut.n) *
                                  c->link_s_per_byte;
    out->cpu_s = cc->cpu_s;
    out->link_s = cg->late_bytes * c->link_s_per_byte + cg->late_copies * c->link_s;
    out->cpu_rest_s = sure.cpu_s + (side.device ? 0 : side.s);
    double cpu_speed = 1, link_speed = 1;
    if (cc->cpu_s > 0)
        yk_pair_speeds(&c->pair, cc->cpu_bytes / cc->cpu_s, 1 / c->link_s_per_byte, &cpu_speed, &link_speed);
    out->beside = (1 - cpu_speed) / link_speed; /* a second of copies lasts 1 / link_speed */
    if (out->beside > 1)
        out->beside = 1;
}

double yk_resident_seconds(const yk_resident_layer *y, const uint8_t *kinds, const uint16_t *picks, uint32_t n[3])
{
    uint32_t count[3] = {0};
    for (uint32_t i = 0; i < y->n_used; i++)
        count[kinds[picks[i]]]++;
    if (n)
        memcpy(n, count, sizeof count);
    return y->at[count[YK_KIND_GG] * (y->n_used + 1) + count[YK_KIND_CC]];
}

void yk_resident_idle_add(yk_resident_idle *idle, const yk_resident_layer *y, double s, const uint32_t n[3])
{
    const double link = fmax(0, s - n[YK_KIND_CG] * y->link_s);
    const double both = fmin(link, fmax(0, s - n[YK_KIND_CG] * y->link_s - n[YK_KIND_CC] * y->cpu_s - y->cpu_rest_s));
    const double old = idle->link_s - idle->both_s, more = link - both;
    if (old + more > 0)
        idle->beside = (idle->beside * old + y->beside * more) / (old + more);
    idle->link_s += link;
    idle->both_s += both;
}

double yk_resident_copy_cost(const yk_resident_idle *idle, double s)
{
    const double beside = fmin(fmax(0, s - idle->both_s), idle->link_s - idle->both_s);
    return beside * idle->beside + fmax(0, s - idle->link_s);
}

/* ---- open and close ------------------------------------------------------------------------------------------------------------------------ */

yk_status yk_residency_open(yk_residency **out, const yk_resident_layer *layers, uint32_t n_layers, const uint8_t *kinds,
                            uint32_t stride, const yk_residency_opts *opts, yk_error *err)
{
    *out = NULL;
    YK_FAIL_IF(opts->tokens > 1u << 20, err, YK_ERR_USAGE, "residency: %u tokens are too many, at most %u are possible",
               opts->tokens, 1u << 20);
    size_t n_cells = 0;
    for (uint32_t l = 0; l < n_layers; l++)
        n_cells += layers[l].n_experts;
    yk_residency *r = yk_alloc(YK_MEM_PLAN, 1, sizeof *r);
    if (r) {
        r->layers = yk_alloc(YK_MEM_PLAN, n_layers, sizeof *r->layers);
        r->cells = yk_alloc(YK_MEM_PLAN, n_cells + 1, sizeof *r->cells);
        r->uses = yk_alloc(YK_MEM_PLAN, (n_cells + 1) * (YK_RESIDENCY_MEANS + 1), sizeof *r->uses);
    }
    if (!r || !r->layers || !r->cells || !r->uses) {
        yk_residency_close(&r);
        return yk_fail_memory(err, sizeof *r + n_layers * sizeof(layer_state) + n_cells * sizeof(cell), "residency of experts");
    }
    r->n_layers = n_layers;
    r->opts = *opts;
    r->opts.tokens = opts->tokens ? opts->tokens : YK_RESIDENCY_TOKENS;
    r->hold = YK_RESIDENCY_HOLD;
    for (int i = 0; i < YK_RESIDENCY_MEANS; i++) {
        r->decay[i] = exp2(-1 / half_life[i]);
        r->sum[i] = r->uses + (n_cells + 1) * (size_t)(i + 1);
    }
    size_t at = 0;
    for (uint32_t l = 0; l < n_layers; l++) {
        r->layers[l].cost = layers[l];
        r->layers[l].cell0 = at;
        for (uint32_t e = 0; e < layers[l].n_experts; e++, at++)
            r->cells[at].kind = r->cells[at].plan = kinds[(size_t)l * stride + e];
    }
    *out = r;
    return YK_OK;
}

void yk_residency_close(yk_residency **r)
{
    if (*r) {
        yk_free((*r)->layers);
        yk_free((*r)->cells);
        yk_free((*r)->uses);
    }
    yk_free(*r);
    *r = NULL;
}

yk_kind yk_residency_kind(const yk_residency *r, uint32_t layer, uint32_t expert)
{
    return (yk_kind)r->cells[r->layers[layer].cell0 + expert].kind;
}

uint32_t yk_residency_layers(const yk_residency *r)
{
    return r->n_layers;
}

uint32_t yk_residency_experts(const yk_residency *r, uint32_t layer, uint32_t *n_used)
{
    *n_used = r->layers[layer].cost.n_used;
    return r->layers[layer].cost.n_experts;
}

yk_residency_sums yk_residency_get(const yk_residency *r)
{
    return r->sums;
}

void yk_residency_save(const yk_residency *r, float *uses, uint32_t stride, double *weight)
{
    enum { LAST = YK_RESIDENCY_MEANS - 1 };
    *weight = r->weight[LAST];
    for (uint32_t l = 0; l < r->n_layers; l++)
        for (uint32_t e = 0; e < r->layers[l].cost.n_experts; e++)
            uses[(size_t)l * stride + e] =
                r->weight[LAST] > 0 ? (float)(r->sum[LAST][r->layers[l].cell0 + e] / r->weight[LAST]) : 0;
}

void yk_residency_warm(yk_residency *r, const float *uses, uint32_t stride, double weight)
{
    const double d = r->decay[YK_RESIDENCY_MEANS - 1], sum = fmin(weight, 1 / (1 - d)), left = 1 - sum * (1 - d);
    const double squares = (1 - left * left) / (1 - d * d); /* of the weights of tokens that add up to `sum` */
    if (!(weight > 0))
        return;
    for (int i = 0; i < YK_RESIDENCY_MEANS; i++) {
        /* All begin with the longest mean, and are as sure as it is. */
        r->weight[i] = fmin(sum, 1 / (1 - r->decay[i]));
        r->weight2[i] = squares / (sum * sum) * r->weight[i] * r->weight[i];
        for (uint32_t l = 0; l < r->n_layers; l++) {
            layer_state *y = &r->layers[l];
            y->s1[i] = y->s2[i] = 0;
            for (uint32_t e = 0; e < y->cost.n_experts; e++) {
                const double u = uses[(size_t)l * stride + e] * r->weight[i];
                r->sum[i][y->cell0 + e] = (float)u;
                y->s1[i] += u;
                y->s2[i] += u * u;
            }
        }
    }
}

/* ---- a token ------------------------------------------------------------------------------------------------------------------------------- */

static double rho_of(const layer_state *y, int i)
{
    return y->square[i] > 0 ? fmin(0.98, fmax(0, y->lag[i] / y->square[i])) : 0;
}

/* Time of the token as it is and by the plan; how much a resident expert more or less would have changed. */
static void account(yk_residency *r, const uint16_t *picks, uint32_t stride)
{
    yk_resident_idle idle = {0};
    double ours = r->opts.rest_s, plan = r->opts.rest_s, copies = 0;
    for (uint32_t l = 0; l < r->n_layers; l++) {
        layer_state *y = &r->layers[l];
        const uint32_t k = y->cost.n_used;
        uint32_t n[3] = {0}, of_plan[3] = {0};
        if (!y->cost.n_experts)
            continue;
        for (uint32_t i = 0; i < k; i++) {
            const cell *c = &r->cells[y->cell0 + picks[(size_t)l * stride + i]];
            n[c->kind]++;
            of_plan[c->plan]++;
        }
        const uint32_t g = n[YK_KIND_GG], c = n[YK_KIND_CC];
        const double s = y->cost.at[g * (k + 1) + c];
        ours += s;
        plan += y->cost.at[of_plan[YK_KIND_GG] * (k + 1) + of_plan[YK_KIND_CC]];
        yk_resident_idle_add(&idle, &y->cost, s, n);
        const double d = r->decay[2];
        y->saved *= d, y->saved_weight *= d;
        if (g < k)
            y->saved += (k - g) * (s - y->cost.at[(g + 1) * (k + 1) + (c ? c - 1 : 0)]);
        if (g) /* one that leaves becomes what the others of the host are */
            y->saved += g * (y->cost.at[(g - 1) * (k + 1) + c + (c || !n[YK_KIND_CG])] - s);
        y->saved_weight += k;
    }
    for (uint32_t i = 0; i < r->n_copies; i++)
        copies += (r->copies[i].to - r->copies[i].from) * r->layers[r->copies[i].layer].cost.copy_s;
    ours += yk_resident_copy_cost(&idle, copies);
    r->idle.link_s = r->idle.link_s * r->decay[0] + idle.link_s;
    r->idle.both_s = r->idle.both_s * r->decay[0] + idle.both_s;
    r->idle.beside = idle.beside;
    r->idle_weight = r->idle_weight * r->decay[0] + 1;
    r->sums.ours_s += ours;
    r->sums.static_s += plan;
    const double keep = 1 - 1.0 / YK_RESIDENCY_GUARD;
    r->ahead_s = r->ahead_s * keep + ours - plan;
}

/* Copies that have reached their end: the experts are resident. Those on the way stay in the list. */
static void land(yk_residency *r)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < r->n_copies; i++) {
        yk_resident_copy *c = &r->copies[i];
        layer_state *y = &r->layers[c->layer];
        if (c->to < 1) {
            r->copies[left++] = *c;
            continue;
        }
        r->cells[y->cell0 + c->in].kind = YK_KIND_GG;
        r->cells[y->cell0 + c->in].moving = r->cells[y->cell0 + c->out].moving = false;
        r->sums.swaps++;
    }
    r->n_copies = left;
}

/* One running mean of a layer. Most experts were used neither by this token nor the last: what they add follows from the sum of squares. */
static void count_mean(yk_residency *r, layer_state *y, int i, const uint16_t *picks)
{
    const cell *cells = r->cells + y->cell0;
    float *sum = r->sum[i] + y->cell0;
    const double d = r->decay[i], over = r->weight[i] > 0 ? 1 / r->weight[i] : 0, rho = rho_of(y, i);
    const double squares = y->s2[i] * over * over;
    double error = squares * (1 - rho) * (1 - rho), lag = squares, square = squares, grown = 0;
    for (uint32_t j = 0; j < y->cost.n_used + y->n_last; j++) {
        const bool now = j < y->cost.n_used;
        const uint32_t e = now ? picks[j] : y->last[j - y->cost.n_used];
        if (!now && cells[e].now)
            continue;
        const double b = sum[e] * over, was = cells[e].last - b, is = now - b, off = is - rho * was;
        error += off * off - b * b * (1 - rho) * (1 - rho);
        lag += was * is - b * b;
        square += was * was - b * b;
        grown += now ? 2 * d * sum[e] + 1 : 0;
    }
    const float f = (float)d;
    for (uint32_t e = 0; e < y->cost.n_experts; e++)
        sum[e] *= f;
    for (uint32_t j = 0; j < y->cost.n_used; j++)
        sum[picks[j]] += 1;
    y->s1[i] = y->s1[i] * d + y->cost.n_used;
    y->s2[i] = y->s2[i] * d * d + grown;
    const double slow = r->decay[YK_RESIDENCY_MEANS - 1];
    y->error[i] = y->error[i] * r->decay[2] + fmax(0, error);
    y->lag[i] = y->lag[i] * slow + lag;
    y->square[i] = y->square[i] * slow + fmax(0, square);
}

/* Running means, their errors, and how long uses last. */
static void count_uses(yk_residency *r, const uint16_t *picks, uint32_t stride)
{
    for (uint32_t l = 0; l < r->n_layers; l++) {
        layer_state *y = &r->layers[l];
        cell *cells = r->cells + y->cell0;
        const uint16_t *row = picks + (size_t)l * stride;
        if (!y->cost.n_experts)
            continue;
        for (uint32_t j = 0; j < y->cost.n_used; j++)
            cells[row[j]].now = true;
        for (int i = 0; i < YK_RESIDENCY_MEANS; i++)
            count_mean(r, y, i, row);
        for (uint32_t j = 0; j < y->n_last; j++)
            cells[y->last[j]].last = false;
        for (uint32_t j = 0; j < y->cost.n_used; j++) {
            cells[row[j]].now = false;
            cells[row[j]].last = true;
            y->last[j] = row[j];
        }
        y->n_last = y->cost.n_used;
    }
    for (int i = 0; i < YK_RESIDENCY_MEANS; i++) {
        r->weight[i] = r->weight[i] * r->decay[i] + 1;
        r->weight2[i] = r->weight2[i] * r->decay[i] * r->decay[i] + 1;
    }
}

/* Expected uses of a layer's experts. */
static void expect(yk_residency *r, layer_state *y)
{
    const uint32_t n = y->cost.n_experts;
    const double mean = (double)y->cost.n_used / n;
    int best = YK_RESIDENCY_MEANS - 1;
    for (int i = best - 1; i >= 0; i--)
        if (y->error[i] < y->error[best])
            best = i;
    const double rho = rho_of(y, best), w = r->weight[best];
    const double spread = fmax(0, y->s2[best] / (w * w * n) - mean * (2 * y->s1[best] / (w * n) - mean));
    /* What chance alone spreads; uses that last are fewer draws. */
    const double chance = mean * (1 - mean) * r->weight2[best] / (w * w) * (1 + rho) / (1 - rho);
    const double keep = spread > chance ? 1 - chance / spread : 0, last = rho * (1 - pow(rho, r->opts.tokens)) / (1 - rho);
    /* b = mean (1 - keep) + keep sum / w; uses = tokens b + (x - b) last */
    const float slope = (float)(keep / w * (r->opts.tokens - last)),
                base = (float)(mean * (1 - keep) * (r->opts.tokens - last));
    const float *sum = r->sum[best] + y->cell0;
    float *uses = r->uses + y->cell0;
    for (uint32_t e = 0; e < n; e++)
        uses[e] = base + slope * sum[e];
    for (uint32_t j = 0; j < y->n_last; j++)
        uses[y->last[j]] += (float)last;
}

/* The best swap of a layer; on the way back: any that brings it nearer to the plan. */
static bool best_swap(const yk_residency *r, const layer_state *y, swap *best)
{
    const cell *cells = r->cells + y->cell0;
    const float *uses = r->uses + y->cell0;
    const double saved = y->saved_weight > 0 ? y->saved / y->saved_weight : 0;
    const uint32_t none = UINT32_MAX;
    uint32_t in = none, out = none;
    for (uint32_t e = 0; e < y->cost.n_experts; e++) {
        const cell *c = &cells[e];
        if (c->moving)
            continue;
        if (c->kind == YK_KIND_GG) {
            if ((!r->returning || c->plan != YK_KIND_GG) && (out == none || uses[e] < uses[out]))
                out = e;
        } else if ((!r->returning || c->plan == YK_KIND_GG) && (in == none || uses[e] > uses[in]))
            in = e;
    }
    if (in == none || out == none)
        return false;
    *best = (swap){in, out, (uses[in] - uses[out]) * saved / y->cost.copy_s};
    return r->returning || best->gain > 0;
}

static void start(yk_residency *r, uint32_t layer, const swap *s)
{
    layer_state *y = &r->layers[layer];
    cell *in = &r->cells[y->cell0 + s->in], *out = &r->cells[y->cell0 + s->out];
    out->kind = in->kind;
    in->moving = out->moving = true;
    r->copies[r->n_copies++] = (yk_resident_copy){layer, s->in, s->out, 0, 0};
}

/* The copies beside the next token. */
static void plan_copies(yk_residency *r)
{
    const double sure = r->idle_weight > 0 ? 0.8 / r->idle_weight : 0; /* steps differ */
    double left = sure * r->idle.link_s;
    const double noisy = left - sure * r->idle.both_s; /* with less left than this, copies go beside the CPU */
    const bool still = !r->returning && r->sums.tokens < r->hold_until;
    uint32_t changed = UINT32_MAX; /* the layer whose best swap is not known, or all */
    for (uint32_t i = 0; i < r->n_copies; i++) {
        yk_resident_copy *c = &r->copies[i];
        const double all = r->layers[c->layer].cost.copy_s, s = fmin(left, (1 - c->to) * all);
        c->from = c->to;
        c->to = s < (1 - c->to) * all ? c->to + s / all : 1;
        left -= s;
    }
    while (left > 0 && !still && r->n_copies < YK_RESIDENCY_COPIES) {
        uint32_t at = UINT32_MAX;
        for (uint32_t l = 0; l < r->n_layers; l++) {
            layer_state *y = &r->layers[l];
            if (changed == UINT32_MAX || changed == l)
                y->can = best_swap(r, y, &y->best);
            if (y->can && (at == UINT32_MAX || y->best.gain > r->layers[at].best.gain))
                at = l;
        }
        const double cost = left > noisy ? 0 : r->idle.beside;
        if (at == UINT32_MAX || (!r->returning && !(r->layers[at].best.gain > fmax(cost, MIN_GAIN))))
            break;
        start(r, at, &r->layers[at].best);
        changed = at;
        yk_resident_copy *c = &r->copies[r->n_copies - 1];
        const double all = r->layers[at].cost.copy_s;
        c->to = fmin(1, left / all);
        left -= c->to * all;
    }
}

/* Are the residents those of the plan? Then what the host computes and what is copied is the plan's again, too. */
static bool back_at_plan(yk_residency *r)
{
    size_t n = 0;
    for (uint32_t l = 0; l < r->n_layers; l++)
        n += r->layers[l].cost.n_experts;
    for (size_t i = 0; i < n; i++)
        if ((r->cells[i].kind == YK_KIND_GG) != (r->cells[i].plan == YK_KIND_GG))
            return false;
    for (size_t i = 0; i < n; i++)
        r->cells[i].kind = r->cells[i].plan;
    return true;
}

static void guard(yk_residency *r)
{
    const double token_s = r->sums.static_s / (double)r->sums.tokens;
    if (r->returning) {
        if (!r->n_copies && back_at_plan(r)) {
            r->returning = false;
            r->hold_until = r->sums.tokens + r->hold;
            r->hold *= 2;
            r->ahead_s = 0;
        }
    } else if (r->sums.tokens >= r->hold_until && r->ahead_s > YK_RESIDENCY_BAND / 2 * YK_RESIDENCY_GUARD * token_s) {
        r->returning = true;
        r->sums.returns++;
    }
    r->sums.held = r->returning || r->sums.tokens < r->hold_until;
}

uint32_t yk_residency_token(yk_residency *r, const uint16_t *picks, uint32_t stride, const yk_resident_copy **copies)
{
    account(r, picks, stride);
    land(r);
    count_uses(r, picks, stride);
    r->sums.tokens++;
    guard(r);
    for (uint32_t l = 0; l < r->n_layers; l++)
        if (r->layers[l].cost.n_experts)
            expect(r, &r->layers[l]);
    plan_copies(r);
    *copies = r->copies;
    return r->n_copies;
}
