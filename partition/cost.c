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

static double attn_s(const yk_cost *c, uint32_t layer, const yk_step_kind *step, bool device)
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

double yk_cost_layer(const yk_cost *c, uint32_t layer, const yk_step_kind *step, bool attn_on_device, const yk_load *load,
                     double bound[YK_BOUND_N])
{
    const double ta = attn_s(c, layer, step, attn_on_device);
    const bool cpu_any = load->cpu_s > 0, gpu_any = load->gg_s + load->cg_s > 0;
    const double hand =
        (attn_on_device ? cpu_any : gpu_any) ? c->hand_s + rows_bytes(c, step) * (c->link_s_per_byte + c->back_s_per_byte) : 0;
    double tc = load->cpu_s + (cpu_any ? 2 * c->cpu.fixed_s : 0);
    const double tg = load->gg_s + load->cg_s + (gpu_any ? 2 * c->gpu.fixed_s + LAUNCHES_FFN * c->launch_s : 0);
    /* Prefetch runs from the layer's beginning: beside attention on a device it is alone. */
    double early = load->early_bytes * c->link_s_per_byte + load->early_copies * c->link_s;
    const double late = load->late_bytes * c->link_s_per_byte + load->late_copies * c->link_s;
    const double alone = attn_on_device ? fmin(early, ta) : 0;
    double tl = early - alone + late;
    overlap(c, load->cpu_bytes, &tc, &tl);
    early = alone + (late > 0 ? 0 : tl);
    const double cpu_end = tc + (attn_on_device ? hand : 0), gpu_end = tg + (attn_on_device ? 0 : hand);
    const double late_end = late > 0 ? tl + load->cg_s + (attn_on_device ? 0 : hand) : 0;
    const double ffn = fmax(fmax(cpu_end, gpu_end), late_end);
    const double total = fmax(ta + ffn, early);
    if (bound) {
        const bool link = early > ta + ffn || (late_end >= cpu_end && late_end >= gpu_end && late_end > 0);
        bound[early > ta + ffn ? YK_BOUND_LINK : attn_on_device ? YK_BOUND_GPU : YK_BOUND_CPU] += ta;
        if (link)
            bound[YK_BOUND_LINK] += total - ta;
        else {
            const double wait = cpu_end >= gpu_end ? (attn_on_device ? hand : 0) : attn_on_device ? 0 : hand;
            bound[YK_BOUND_HAND_OFF] += wait;
            bound[cpu_end >= gpu_end ? YK_BOUND_CPU : YK_BOUND_GPU] += ffn - wait;
        }
    }
    return total;
}

double yk_cost_plan(const yk_cost *c, const yk_plan *plan, const yk_step_kind *step, double bound[YK_BOUND_N])
{
    double sum = 0;
    double shares[YK_BOUND_N] = {0};
    const yk_bucket b = step->prefill ? YK_B_PREFILL : yk_bucket_of(step->n);
    bool side = plan->embd_home != YK_HOST;
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        const yk_plan_layer *y = &plan->layers[l];
        const bool dev = y->attn_home != YK_HOST;
        yk_load load = {0};
        for (uint32_t i = 0; i < y->n_slices; i++) {
            const yk_slice *s = &y->slices[i];
            const yk_use use = {(yk_part_group)s->group, (yk_kind)s->kind[b], s->unit0, s->units, 1};
            yk_cost_add(c, &load, &c->shape->layers[l], step, &use);
        }
        if (dev != side) {
            const double cross = yk_cost_cross(c, step);
            sum += cross;
            shares[YK_BOUND_HAND_OFF] += cross;
        }
        side = dev;
        sum += yk_cost_layer(c, l, step, dev, &load, shares);
    }
    const bool dev = plan->head_home != YK_HOST;
    const double head = yk_cost_head(c, step, dev);
    if (dev != side) {
        shares[YK_BOUND_HAND_OFF] += yk_cost_cross(c, step);
        sum += yk_cost_cross(c, step);
    }
    shares[dev ? YK_BOUND_GPU : YK_BOUND_CPU] += head;
    if (bound)
        memcpy(bound, shares, sizeof shares);
    return sum + head;
}
