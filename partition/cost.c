#include "partition/cost.h"

#include <math.h>
#include <string.h>

/* Launches of a layer on a device: norm, qkv, rope and KV append, attention, output, add; norm, gate+up, down, weighted add. */
enum { LAUNCHES_ATTN = 6, LAUNCHES_FFN = 4 };

static double or_default(double ns, double missing_ns)
{
    return 1e-9 * (ns < 0 ? missing_ns : ns);
}

void yk_cost_init(yk_cost *c, const yk_machine *m, int device, const yk_shape *shape)
{
    *c = (yk_cost){.shape = shape, .has_device = device >= 0};
    yk_lane_resolve(&c->cpu, &m->rates, false);
    if (device < 0)
        return;
    const yk_machine_device *d = &m->devices[device];
    yk_lane_resolve(&c->gpu, &d->rates, true);
    c->launch_s = or_default(d->launch_ns, 5e3);
    c->hand_s = or_default(d->hand_off_ns, 20e3);
    c->link_s = or_default(d->to_device_ns, 10e3);
    c->link_s_per_byte = 1 / d->to_device_bytes_per_s;
    c->back_s_per_byte = 1 / (d->to_host_bytes_per_s > 0 ? d->to_host_bytes_per_s : d->to_device_bytes_per_s);
    const double read = 1 / c->cpu.read_s_per_byte;
    c->overlap_cpu_rate =
        d->overlap_cpu_bytes_per_s > 0 ? d->overlap_cpu_bytes_per_s : fmax(read - d->to_device_bytes_per_s, read / 10);
    c->shared_rate = d->overlap_cpu_bytes_per_s > 0 ? 0 : read;
    c->overlap_link_slow =
        d->overlap_to_device_bytes_per_s > 0 ? fmax(1, d->to_device_bytes_per_s / d->overlap_to_device_bytes_per_s) : 1;
}

/* Product of `bytes` of weights with n tokens; never faster with more tokens. */
static double product_s(const yk_lane *lane, yk_type type, double bytes, double n)
{
    const double *s = lane->s_per_byte[type];
    if (n > yk_bucket_tokens(YK_B_32))
        return bytes * fmax(s[YK_B_32], n * s[YK_B_PREFILL]);
    return bytes * s[yk_bucket_of((uint32_t)ceil(n - 1e-9))];
}

double yk_cost_active(const yk_shape *shape, yk_part_group group, uint32_t n, double *tokens)
{
    if (group != YK_PART_EXP) {
        *tokens = n;
        return 1;
    }
    const double share = (double)shape->n_used / shape->n_experts;
    const double active = share >= 1 ? 1 : -expm1(n * log1p(-share));
    *tokens = n * share / active;
    return active;
}

void yk_cost_add(const yk_cost *c, yk_load *load, const yk_shape_layer *layer, const yk_step_kind *step, const yk_use *use)
{
    const yk_shape_part *part = &layer->part[use->group];
    const yk_kind kind = use->kind;
    const uint32_t units = use->units;
    if (!units || !(use->instances > 0))
        return;
    double tokens, s = 0, bytes = 0;
    const double active = use->instances * yk_cost_active(c->shape, use->group, step->n, &tokens);
    const yk_lane *lane = kind == YK_KIND_CC ? &c->cpu : &c->gpu;
    const bool last = use->unit0 + units == part->cut.n;
    for (int m = 0; m < YK_PART_MATS; m++) {
        const double b = (double)(units - last) * (double)part->unit_bytes[m] + (last ? (double)part->last_bytes[m] : 0);
        bytes += b;
        s += product_s(lane, part->type[m], b, tokens);
    }
    if (kind == YK_KIND_CC) {
        load->cpu_s += active * s;
        load->cpu_bytes += active * bytes;
        return;
    }
    *(kind == YK_KIND_GG ? &load->gg_s : &load->cg_s) += active * s;
    if (kind == YK_KIND_GG)
        return;
    /* Which experts a decode step needs is known only after its router; a prefill chunk needs nearly all. */
    const bool early = use->group != YK_PART_EXP || step->prefill;
    *(early ? &load->early_bytes : &load->late_bytes) += active * bytes;
    *(early ? &load->early_copies : &load->late_copies) += active;
}

const char *yk_bound_name(yk_bound b)
{
    static const char *const names[YK_BOUND_N] = {"cpu", "gpu", "link", "hand-off"};
    return names[b];
}

double yk_cost_attn(const yk_cost *c, uint32_t layer, const yk_step_kind *step, bool device)
{
    const yk_shape_layer *y = &c->shape->layers[layer];
    const yk_lane *lane = device ? &c->gpu : &c->cpu;
    double s = 2 * lane->fixed_s + (device ? LAUNCHES_ATTN * c->launch_s : 0);
    for (int m = 0; m < YK_ATTN_MATS; m++)
        if (y->attn[m].bytes)
            s += product_s(lane, y->attn[m].type, (double)y->attn[m].bytes, step->n);
    if (y->router.bytes)
        s += product_s(lane, y->router.type, (double)y->router.bytes, step->n);
    double depth = step->depth + (step->prefill ? step->n / 2.0 : 0);
    if (y->window && depth > y->window)
        depth = y->window;
    const double kv = depth * (double)yk_shape_kv_bytes(c->shape, step->kv_elem_bytes);
    if (!step->prefill)
        return s + step->n * kv * lane->read_s_per_byte;
    const double flops = 4.0 * step->n * depth * c->shape->n_heads * c->shape->head_dim;
    return s + fmax(kv * lane->read_s_per_byte, flops * lane->attention_s_per_flop);
}

static double rows_bytes(const yk_cost *c, const yk_step_kind *step)
{
    return 4.0 * step->n * c->shape->n_embd;
}

double yk_cost_cross(const yk_cost *c, const yk_step_kind *step)
{
    return c->hand_s / 2 + rows_bytes(c, step) * fmax(c->link_s_per_byte, c->back_s_per_byte);
}

double yk_cost_head(const yk_cost *c, const yk_step_kind *step, bool device)
{
    const double rows = step->prefill ? 1 : step->n;
    const yk_lane *lane = device ? &c->gpu : &c->cpu;
    double s = lane->fixed_s + product_s(lane, c->shape->head.type, (double)c->shape->head.bytes, rows);
    if (device)
        s += c->launch_s + c->hand_s / 2 + 4 * rows * c->shape->n_vocab * c->back_s_per_byte;
    return s;
}

/* CPU work of tc and a copy of tl seconds (each alone) begin together; when do they end? While both run, the CPU gets at most
 * the overlapped rate and the link is slowed as far as the CPU really reads. */
static void overlap(const yk_cost *c, double cpu_bytes, double *tc, double *tl)
{
    if (*tc <= 0 || *tl <= 0)
        return;
    const double demand = cpu_bytes / *tc / c->overlap_cpu_rate;
    const double slow_c = fmax(1, demand), slow_l = 1 + (c->overlap_link_slow - 1) * fmin(1, demand);
    const double c_end = *tc * slow_c, l_end = *tl * slow_l;
    if (c_end <= l_end) {
        *tl = c_end + (*tl - c_end / slow_l);
        *tc = c_end;
    } else {
        *tc = l_end + (*tc - l_end / slow_c);
        *tl = l_end;
    }
}

/* So many bytes of RAM, seconds when alone, and seconds that follow. */
typedef struct work {
    double bytes, s, tail;
} work;

/* Two works on the same DIMMs begin together, and each may be slowed for the other: when can both have ended, tails
 * included? The one with the longer tail goes first; what it leaves of the shared rate is the other's. A bound beside each
 * one's own s + tail. */
static double together(double rate, work a, work b)
{
    const work *first = a.tail >= b.tail ? &a : &b, *second = first == &a ? &b : &a;
    const double after = second->bytes / second->s * (first->tail - second->tail);
    return first->tail + (a.bytes + b.bytes - after) / rate;
}

double yk_cost_layer(const yk_cost *c, uint32_t layer, const yk_step_kind *step, bool attn_on_device, const yk_load *load,
                     double bound[YK_BOUND_N])
{
    return yk_cost_join(c, step, attn_on_device, yk_cost_attn(c, layer, step, attn_on_device), load, bound);
}

double yk_cost_join(const yk_cost *c, const yk_step_kind *step, bool attn_on_device, double ta, const yk_load *load,
                    double bound[YK_BOUND_N])
{
    const bool cpu_any = load->cpu_s > 0, gpu_any = load->gg_s + load->cg_s > 0;
    const double hand =
        (attn_on_device ? cpu_any : gpu_any) ? c->hand_s + rows_bytes(c, step) * (c->link_s_per_byte + c->back_s_per_byte) : 0;
    double tc = load->cpu_s + (cpu_any ? 2 * c->cpu.fixed_s : 0);
    const double tg = load->gg_s + load->cg_s + (gpu_any ? 2 * c->gpu.fixed_s + LAUNCHES_FFN * c->launch_s : 0);
    const double cpu_tail = attn_on_device ? hand : 0, gpu_lead = attn_on_device ? 0 : hand;
    /* Prefetch runs from the layer's beginning: beside attention on a device it is alone. */
    const double early = load->early_bytes * c->link_s_per_byte + load->early_copies * c->link_s;
    const double late = load->late_bytes * c->link_s_per_byte + load->late_copies * c->link_s;
    const double alone = attn_on_device ? fmin(early, ta) : 0;
    double tl = early - alone + late, both = 0;
    /* After its end the link's work has so long to go, or (prefetch) that long before the layer's end is soon enough. */
    const double link_tail = late > 0 ? load->cg_s + gpu_lead : alone - ta;
    if (tc > 0 && tl > 0 && c->shared_rate > 0) {
        const double bytes = (load->early_bytes + load->late_bytes) * tl / (early + late);
        both = together(c->shared_rate, (work){load->cpu_bytes, tc, cpu_tail}, (work){bytes, tl, link_tail});
    } else
        overlap(c, load->cpu_bytes, &tc, &tl);
    const double cpu_end = fmax(tc + cpu_tail, both), gpu_end = tg + gpu_lead;
    const double link_end = tl > 0 || late > 0 ? tl + link_tail : 0;
    const double ffn = fmax(cpu_end, gpu_end), total = ta + fmax(ffn, link_end);
    if (bound) {
        bound[link_end > ffn && !(late > 0) ? YK_BOUND_LINK : attn_on_device ? YK_BOUND_GPU : YK_BOUND_CPU] += ta;
        if (link_end > ffn)
            bound[YK_BOUND_LINK] += total - ta;
        else {
            const double wait = cpu_end >= gpu_end ? cpu_tail : gpu_lead;
            bound[YK_BOUND_HAND_OFF] += wait;
            bound[cpu_end >= gpu_end ? YK_BOUND_CPU : YK_BOUND_GPU] += ffn - wait;
        }
    }
    return total;
}

/* Are two slices the same but for the expert? */
static bool alike(const yk_slice *a, const yk_slice *b)
{
    return a->group == b->group && a->home == b->home && a->unit0 == b->unit0 && a->units == b->units &&
           memcmp(a->kind, b->kind, sizeof a->kind) == 0 && memcmp(a->chunk, b->chunk, sizeof a->chunk) == 0;
}

/* Slices of a layer one after the other; those of one instance that follow each other and are treated alike in this step are
 * one, so one copy. */
typedef struct adder {
    const yk_cost *c;
    yk_load *load;
    const yk_shape_layer *layer;
    const yk_step_kind *step;
    yk_use use; /* not added yet; instances 0: nothing */
    uint32_t expert;
} adder;

static void flush(adder *a)
{
    if (a->use.instances > 0)
        yk_cost_add(a->c, a->load, a->layer, a->step, &a->use);
    a->use.instances = 0;
}

static void add_slices(adder *a, const yk_slice *s, uint32_t instances)
{
    const yk_kind kind = yk_slice_kind(s, a->step->prefill, a->step->n);
    yk_use *u = &a->use;
    if (instances == 1 && u->instances == 1 && u->group == (yk_part_group)s->group && a->expert == s->expert &&
        u->kind == kind && u->unit0 + u->units == s->unit0) {
        u->units += s->units;
        return;
    }
    flush(a);
    *u = (yk_use){(yk_part_group)s->group, kind, s->unit0, s->units, instances};
    a->expert = s->expert;
}

static void add_layer(adder *a, const yk_plan_layer *y)
{
    for (uint32_t i = 0, end; i < y->n_slices; i = end) {
        for (end = i + 1; end < y->n_slices && alike(&y->slices[i], &y->slices[end]);)
            end++;
        add_slices(a, &y->slices[i], end - i);
    }
    flush(a);
}

/* What is not in a layer: crossings between sides, and the head. */
typedef struct walk {
    bool side;
    double sum, share[YK_BOUND_N];
} walk;

static void move_to(walk *w, const yk_cost *c, const yk_step_kind *step, bool device)
{
    if (device != w->side) {
        const double cross = yk_cost_cross(c, step);
        w->sum += cross;
        w->share[YK_BOUND_HAND_OFF] += cross;
    }
    w->side = device;
}

static double end_walk(walk *w, const yk_cost *c, const yk_step_kind *step, bool head_on_device, double bound[YK_BOUND_N])
{
    const double head = yk_cost_head(c, step, head_on_device);
    move_to(w, c, step, head_on_device);
    w->share[head_on_device ? YK_BOUND_GPU : YK_BOUND_CPU] += head;
    if (bound)
        memcpy(bound, w->share, sizeof w->share);
    return w->sum + head;
}

double yk_cost_plan(const yk_cost *c, const yk_plan *plan, const yk_step_kind *step, double bound[YK_BOUND_N])
{
    walk w = {.side = plan->embd_home != YK_HOST};
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        const yk_plan_layer *y = &plan->layers[l];
        const bool device = y->attn_home != YK_HOST;
        yk_load load = {0};
        add_layer(&(adder){.c = c, .load = &load, .layer = &c->shape->layers[l], .step = step}, y);
        move_to(&w, c, step, device);
        w.sum += yk_cost_layer(c, l, step, device, &load, w.share);
    }
    return end_walk(&w, c, step, plan->head_home != YK_HOST, bound);
}

/* ---- a plan in short ---- */

bool yk_cost_same_layer(const yk_shape_layer *a, const yk_shape_layer *b)
{
    bool same = a->host_only == b->host_only && a->window == b->window && a->other_bytes == b->other_bytes &&
                a->router.bytes == b->router.bytes && a->router.type == b->router.type;
    for (int m = 0; m < YK_ATTN_MATS; m++)
        same = same && a->attn[m].type == b->attn[m].type && a->attn[m].bytes == b->attn[m].bytes;
    for (int g = 0; g < YK_PART_N; g++) {
        const yk_shape_part *p = &a->part[g], *q = &b->part[g];
        same =
            same && p->n == q->n && p->host_only == q->host_only && p->cut.width == q->cut.width && p->cut.unit == q->cut.unit;
        for (int m = 0; m < YK_PART_MATS; m++)
            same = same && p->type[m] == q->type[m] && p->unit_bytes[m] == q->unit_bytes[m] &&
                   p->last_bytes[m] == q->last_bytes[m];
    }
    return same;
}

static bool same_digest(const yk_digest *d, const yk_shape *shape, uint32_t a, uint32_t b)
{
    const yk_digest_layer *x = &d->layers[a], *y = &d->layers[b];
    const yk_plan_layer *p = &d->plan->layers[a], *q = &d->plan->layers[b];
    if (x->n != y->n || x->n > YK_DIGEST_RUNS || (p->attn_home == YK_HOST) != (q->attn_home == YK_HOST))
        return false;
    for (uint32_t i = 0; i < x->n; i++)
        if (!alike(&x->run[i], &y->run[i]) || x->count[i] != y->count[i])
            return false;
    return yk_cost_same_layer(&shape->layers[a], &shape->layers[b]);
}

yk_status yk_digest_make(yk_digest *d, const yk_plan *plan, const yk_shape *shape, yk_error *err)
{
    enum { LOOK_BACK = 16 };
    uint32_t seen[LOOK_BACK], n_seen = 0;
    *d = (yk_digest){.plan = plan, .layers = yk_alloc(YK_MEM_PLAN, plan->n_layers, sizeof *d->layers)};
    if (!d->layers)
        return yk_fail_memory(err, (uint64_t)plan->n_layers * sizeof *d->layers, "pricing a plan");
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        const yk_plan_layer *y = &plan->layers[l];
        yk_digest_layer *out = &d->layers[l];
        for (uint32_t i = 0; i < y->n_slices && out->n <= YK_DIGEST_RUNS; i++) {
            if (out->n && alike(&out->run[out->n - 1], &y->slices[i]))
                out->count[out->n - 1]++;
            else if (out->n++ < YK_DIGEST_RUNS) {
                out->run[out->n - 1] = y->slices[i];
                out->count[out->n - 1] = 1;
            }
        }
        out->like = l;
        for (uint32_t i = 0; i < n_seen && i < LOOK_BACK && out->like == l; i++)
            if (same_digest(d, shape, seen[i], l))
                out->like = seen[i];
        if (out->like == l)
            seen[n_seen++ % LOOK_BACK] = l;
    }
    return YK_OK;
}

double yk_digest_step(yk_digest *d, const yk_cost *c, const yk_step_kind *step, double bound[YK_BOUND_N])
{
    walk w = {.side = d->plan->embd_home != YK_HOST};
    for (uint32_t l = 0; l < d->plan->n_layers; l++) {
        yk_digest_layer *y = &d->layers[l];
        const bool device = d->plan->layers[l].attn_home != YK_HOST;
        if (y->like == l) {
            yk_load load = {0};
            memset(y->bound, 0, sizeof y->bound);
            adder a = {.c = c, .load = &load, .layer = &c->shape->layers[l], .step = step};
            for (uint32_t i = 0; i < y->n && y->n <= YK_DIGEST_RUNS; i++)
                add_slices(&a, &y->run[i], y->count[i]);
            flush(&a);
            if (y->n > YK_DIGEST_RUNS)
                add_layer(&a, &d->plan->layers[l]);
            y->s = yk_cost_layer(c, l, step, device, &load, y->bound);
        }
        move_to(&w, c, step, device);
        w.sum += d->layers[y->like].s;
        for (int k = 0; k < YK_BOUND_N; k++)
            w.share[k] += d->layers[y->like].bound[k];
    }
    return end_walk(&w, c, step, d->plan->head_home != YK_HOST, bound);
}

/* ---- token assignment ---- */

static double part_s(const yk_lane *lane, const yk_shape_part *p, double n)
{
    double s = 0;
    for (int m = 0; m < YK_PART_MATS && n > 0; m++)
        s += product_s(lane, p->type[m], (double)(p->cut.n - 1) * (double)p->unit_bytes[m] + (double)p->last_bytes[m], n);
    return s;
}

double yk_cost_break_even(const yk_cost *c, const yk_shape_part *p, uint32_t n, double *split)
{
    enum { MOST = 1 << 20 };
    const double copy = c->link_s + (double)yk_shape_units_bytes(p, 0, p->cut.n) * c->link_s_per_byte;
    if (split)
        *split = 0;
    if (!c->has_device || p->host_only)
        return 0;
    uint32_t low = 0, high = 1; /* the CPU wins at low */
    while (high <= MOST && part_s(&c->cpu, p, high) < copy + part_s(&c->gpu, p, high)) {
        low = high;
        high = high < yk_bucket_tokens(YK_B_32) ? high + 1 : 2 * high;
    }
    if (high > MOST)
        return 0;
    while (high - low > 1) {
        const uint32_t mid = low + (high - low) / 2;
        *(part_s(&c->cpu, p, mid) < copy + part_s(&c->gpu, p, mid) ? &low : &high) = mid;
    }
    if (split && n >= high) { /* the CPU's time rises with its tokens, the other side's falls */
        uint32_t k = 0, end = n;
        while (end - k > 1) {
            const uint32_t mid = k + (end - k) / 2;
            *(part_s(&c->cpu, p, mid) <= copy + part_s(&c->gpu, p, n - mid) ? &k : &end) = mid;
        }
        *split = k;
    }
    return high;
}
