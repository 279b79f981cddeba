#include "partition/cost.h"

#include <math.h>
#include <string.h>

/* Launches of a layer on a device: norm, qkv, rope and KV append, attention, output, add; norm, gate+up, down, weighted add. */
enum { LAUNCHES_ATTN = 6, LAUNCHES_FFN = 4 };
/* Stages of the CPU beside those of products: input, rope and KV, attention, o's input, FFN's input; router, route, group. */
enum { STAGES_ATTN = 5, STAGES_ROUTER = 3 };

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
    if (d->overlap_cpu_bytes_per_s > 0)
        c->pair = (yk_pair){.cpu = d->overlap_cpu_bytes_per_s, .link_slow = 1};
    else
        c->pair = (yk_pair){.memory = read};
    if (d->overlap_to_device_bytes_per_s > 0)
        c->pair.link_slow = fmax(1, d->to_device_bytes_per_s / d->overlap_to_device_bytes_per_s);
    c->same_memory_rate = d->shared_memory ? fmax(read, 1 / c->gpu.read_s_per_byte) : 0;
}

/* Product of `bytes` of weights with n tokens; never faster with more tokens. Rates are those of the longest step of a bucket;
 * between them straight lines. */
static double product_s(const yk_lane *lane, yk_type type, double bytes, double n)
{
    const double *s = lane->s_per_byte[type];
    if (n > yk_bucket_tokens(YK_B_32))
        return bytes * fmax(s[YK_B_32], n * s[YK_B_PREFILL]);
    if (n <= 1)
        return bytes * s[YK_B_1];
    const yk_bucket b = yk_bucket_of((uint32_t)ceil(n - 1e-9));
    const double low = b ? yk_bucket_tokens((yk_bucket)(b - 1)) : 0, part = fmin(1, (n - low) / (yk_bucket_tokens(b) - low));
    return b ? bytes * (s[b - 1] + part * (s[b] - s[b - 1])) : bytes * s[YK_B_1];
}

/* The same in a step: those of a prompt are cut differently. */
static double step_product_s(const yk_lane *lane, const yk_step_kind *step, yk_type type, double bytes, double n)
{
    return step->prefill && lane->prompt[type].n ? bytes * yk_curve_tiled(&lane->prompt[type], n)
                                                 : product_s(lane, type, bytes, n);
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

/* Four equally likely points of a number that is about normal: mean + spread * at[i] have its mean and its mean distance from
 * it. */
static const double quarter[4] = {-1.25, -0.346, 0.346, 1.25};

/* A product with n tokens on average: an expert has more of them or fewer. */
static double mean_product_s(const yk_lane *lane, const yk_step_kind *step, yk_type type, double bytes, double n, double spread)
{
    double sum = 0;
    if (!(spread > 0))
        return step_product_s(lane, step, type, bytes, n);
    for (int i = 0; i < 4; i++)
        sum += step_product_s(lane, step, type, bytes, n + spread * quarter[i]);
    return sum / 4;
}

void yk_cost_add(const yk_cost *c, yk_load *load, const yk_shape_layer *layer, const yk_step_kind *step, const yk_use *use)
{
    const yk_shape_part *part = &layer->part[use->group];
    const yk_kind kind = use->kind;
    const uint32_t units = use->units;
    if (!units || !(use->instances > 0))
        return;
    double tokens, s = 0, bytes = 0, per_byte = 0;
    const double active = use->instances * yk_cost_active(c->shape, use->group, step->n, &tokens);
    const yk_lane *lane = kind == YK_KIND_CC ? &c->cpu : &c->gpu;
    const bool last = use->unit0 + units == part->cut.n;
    /* At least one token: it is one that has any. */
    const double spread = use->group == YK_PART_EXP ? fmin(sqrt(tokens), (tokens - 1) / quarter[3]) : 0;
    for (int m = 0; m < YK_PART_MATS; m++) {
        const double b = (double)(units - last) * (double)part->unit_bytes[m] + (last ? (double)part->last_bytes[m] : 0);
        bytes += b;
        if (!m || part->type[m] != part->type[m - 1])
            per_byte = mean_product_s(lane, step, part->type[m], 1, tokens, spread);
        s += b * per_byte * (m == YK_MAT_DOWN ? yk_lane_down(lane, part->type[m], step->prefill, units) : 1);
    }
    if (kind == YK_KIND_CC) {
        const double width =
            fmin((double)units * part->cut.unit, (double)part->cut.width - (double)use->unit0 * part->cut.unit);
        s += 4 * tokens * width * lane->row_s_per_byte; /* intermediate rows: gathered and rounded for down */
        load->cpu_s += active * s;
        load->cpu_bytes += active * bytes;
        return;
    }
    *(kind == YK_KIND_GG ? &load->gg_s : &load->cg_s) += active * s;
    load->gpu_bytes += active * bytes;
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

/* What the CPU does between the products of attention and around it: stages, and the rows they pass on (sum and norm before attention and before
 * the FFN, q with k and v, o's input). */
static double between_s(const yk_cost *c, const yk_shape_layer *y, double n)
{
    const yk_shape *p = c->shape;
    const double heads = (2.0 * p->n_heads + 2.0 * p->n_kv_heads) * p->head_dim;
    const int stages = y->router.bytes ? STAGES_ATTN + STAGES_ROUTER : STAGES_ATTN;
    return stages * c->cpu.stage_s + 4 * n * (4.0 * p->n_embd + heads) * c->cpu.row_s_per_byte;
}

double yk_cost_attn(const yk_cost *c, uint32_t layer, const yk_step_kind *step, bool device)
{
    const yk_shape_layer *y = &c->shape->layers[layer];
    const yk_lane *lane = device ? &c->gpu : &c->cpu;
    const uint32_t head = yk_head_of(c->shape->head_dim);
    double s = 2 * lane->fixed_s + (device ? LAUNCHES_ATTN * c->launch_s : between_s(c, y, step->n));
    for (int m = 0; m < YK_ATTN_MATS; m++)
        if (y->attn[m].bytes)
            s += step_product_s(lane, step, y->attn[m].type, (double)y->attn[m].bytes, step->n);
    if (y->router.bytes)
        s += step_product_s(lane, step, y->router.type, (double)y->router.bytes, step->n);
    double depth = step->depth + (step->prefill ? step->n / 2.0 : 0);
    if (y->window && depth > y->window)
        depth = y->window;
    const double kv = depth * (double)yk_shape_kv_bytes(c->shape, step->kv_elem_bytes);
    if (!step->prefill)
        return s + step->n * kv * lane->head_kv_s_per_byte[head];
    const double flops = 4.0 * step->n * depth * c->shape->n_heads * c->shape->head_dim;
    return s + fmax(kv * lane->read_s_per_byte, flops * lane->head_s_per_flop[head]);
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

/* Without the NaN rules of fmax, which cost a call. */
static inline double more_of(double a, double b)
{
    return a > b ? a : b;
}

static inline double less_of(double a, double b)
{
    return a < b ? a : b;
}

/* CPU and device work on the same memory: while both read more than it gives, both are slowed alike. So many more seconds for
 * both; tc and tg: how long they take otherwise. */
static double share_memory(double rate, const yk_load *load, double tc, double tg)
{
    const double gpu_s = load->gg_s + load->cg_s;
    if (!(rate > 0) || !(load->cpu_s > 0) || !(gpu_s > 0))
        return 0;
    const double slow = (load->cpu_bytes / load->cpu_s + load->gpu_bytes / gpu_s) / rate;
    return more_of(0, slow - 1) * less_of(tc, tg);
}

yk_attn yk_cost_attn_of(const yk_plan_layer *layer, const yk_step_kind *step)
{
    if (layer->attn_home != YK_HOST)
        return YK_ATTN_DEVICE;
    return yk_plan_attn_on_device(layer, step->prefill, step->n) ? YK_ATTN_COPIED : YK_ATTN_HOST;
}

yk_cost_side yk_cost_side_of(const yk_cost *c, uint32_t layer, const yk_step_kind *step, yk_attn attn)
{
    const bool device = attn != YK_ATTN_HOST;
    yk_cost_side side = {.device = device,
                         .copied = attn == YK_ATTN_COPIED,
                         .s = yk_cost_attn(c, layer, step, device),
                         .bytes = (double)yk_shape_attn_bytes(&c->shape->layers[layer])};
    if (!side.copied)
        return side;
    const double kv = (double)yk_shape_kv_bytes(c->shape, step->kv_elem_bytes), before = kv * step->depth;
    side.kv_up_s = step->depth ? c->link_s + before * c->link_s_per_byte : 0;
    side.kv_down_s = c->link_s + kv * step->n * c->back_s_per_byte;
    side.up_bytes = side.bytes + before;
    side.up_s = c->link_s + side.bytes * c->link_s_per_byte + side.kv_up_s;
    return side;
}

double yk_cost_layer(const yk_cost *c, uint32_t layer, const yk_step_kind *step, yk_attn place, const yk_load *load,
                     double bound[YK_BOUND_N])
{
    const yk_cost_side attn = yk_cost_side_of(c, layer, step, place);
    return yk_cost_join(c, step, &attn, load, bound);
}

/* Work of one lane in one piece: seconds alone, not before `from` (CPU: after the end of the piece before; link: after the
 * layer's beginning or, if `behind`, after the end of attention). */
typedef struct piece {
    double s, from;
    bool behind;
} piece;

/* CPU and link of a layer side by side. The first piece of the CPU is attention; one on a device reads nothing of the host. */
enum { CPU_PIECES = 2, LINK_PIECES = 3 };
typedef struct score {
    piece cpu[CPU_PIECES], link[LINK_PIECES];
    double cpu_reads[CPU_PIECES], link_reads; /* bytes/s of host memory alone */
    double cpu_ends[CPU_PIECES], link_end;    /* results, from the layer's beginning */
    /* While playing: time; the piece of the CPU that runs or comes next, what is left of it, speeds while copies run beside it. */
    double t, left, cpu_speed, link_speed;
    int next;
} score;

static void begin_piece(const yk_pair *pair, score *s, int i)
{
    s->next = i;
    s->left = i < CPU_PIECES ? s->cpu[i].s : 0;
    s->cpu_speed = s->link_speed = 1;
    if (i < CPU_PIECES && s->cpu_reads[i] > 0)
        yk_pair_speeds(pair, s->cpu_reads[i], s->link_reads, &s->cpu_speed, &s->link_speed);
}

static double piece_from(const score *s)
{
    return s->cpu[s->next].from + (s->next ? s->cpu_ends[s->next - 1] : 0);
}

/* The CPU alone until then. */
static void play_cpu(const yk_pair *pair, score *s, double until)
{
    while (s->next < CPU_PIECES) {
        const double from = more_of(s->t, piece_from(s)), end = from + s->left;
        if (end > until) {
            s->left -= more_of(0, until - from);
            break;
        }
        s->t = s->cpu_ends[s->next] = end;
        begin_piece(pair, s, s->next + 1);
    }
    s->t = more_of(s->t, until);
}

/* So many seconds of copies, from now on. */
static void play_link(const yk_pair *pair, score *s, double link)
{
    while (s->next < CPU_PIECES) {
        const double alone = less_of(link, more_of(0, piece_from(s) - s->t)), cpu_s = s->left / s->cpu_speed;
        s->t += alone;
        link -= alone;
        if (!(link > cpu_s * s->link_speed)) {
            const double both = link / s->link_speed;
            s->t += both;
            s->left -= both * s->cpu_speed;
            s->link_end = s->t;
            return;
        }
        s->t = s->cpu_ends[s->next] = s->t + cpu_s;
        link -= cpu_s * s->link_speed;
        begin_piece(pair, s, s->next + 1);
    }
    s->link_end = s->t += link;
}

static void play(const yk_pair *pair, score *s)
{
    s->t = s->link_end = 0;
    begin_piece(pair, s, 0);
    for (int i = 0; i < LINK_PIECES; i++) {
        const piece *p = &s->link[i];
        if (!(p->s > 0))
            continue;
        if (p->behind && s->next == 0)
            play_cpu(pair, s, more_of(s->t, s->cpu[0].from) + s->left);
        const double from = p->from + (p->behind ? s->cpu_ends[0] : 0);
        if (from > s->t)
            play_cpu(pair, s, from);
        play_link(pair, s, p->s);
    }
    play_cpu(pair, s, INFINITY);
}

/* The copies of a layer: seconds of those known early and of those known after the router, of one and of two (there are two slots);
 * of the last product, with the rows' way back. */
typedef struct copies {
    double early, late, one, two, last, reads, rows;
    bool ahead;
} copies;

static copies copies_of(const yk_cost *c, const yk_cost_side *attn, const yk_load *load, double back)
{
    const double n = load->early_copies + load->late_copies;
    copies p = {.early = load->early_bytes * c->link_s_per_byte + load->early_copies * c->link_s,
                .late = load->late_bytes * c->link_s_per_byte + load->late_copies * c->link_s,
                .ahead = load->ahead};
    p.two = n > 2 ? (p.early + p.late) * 2 / n : p.early + p.late;
    p.last = load->cg_s / more_of(1, n) + back;
    p.one = (p.early + p.late) / more_of(1, n);
    p.reads = (load->early_bytes + load->late_bytes + attn->up_bytes) / (p.early + p.late + attn->up_s);
    return p;
}

/* When all copied weights have been multiplied or, of prefetched ones, the link is free for the next layer; from the layer's
 * beginning. cpu: as in score; afterwards s has the ends of the CPU. resident_end: when the device has come to the copied
 * weights, from the end of attention. */
static double play_copies(const yk_cost *c, const yk_cost_side *attn, const copies *p, score *s, double resident_end)
{
    const double all = p->early + p->late, rest = all - p->two;
    bool product = true;
    if (p->late > 0 || p->ahead) { /* the host starts the late ones when it has heard of the router's choice */
        s->link[0] = (piece){less_of(p->early, p->two), 0, false};
        s->link[1] = (piece){p->two - s->link[0].s, attn->device ? c->hand_s / 2 : 0, true};
    } else {
        product = rest > 0;
        s->link[0] = (piece){product ? more_of(0, p->two - p->last) : all, 0, false};
    }
    /* Copies after the second wait for the first product. */
    s->link[2] = (piece){rest, resident_end + p->last, true};
    play(&c->pair, s);
    /* Rows go first. */
    const double rows = s->link_end > s->cpu_ends[attn->device ? 1 : 0] ? p->rows : 0;
    return s->link_end + rows + (product ? p->last : 0);
}

/* The same with attention that is copied: it has one of the two slots until it has ended, so only the first copy of the FFN goes
 * beside it, the second with its end; the next layer's attention follows the last one. The one place for KV takes turns, too. */
static double play_attn_copies(const yk_cost *c, const yk_cost_side *attn, const copies *p, score *s, double resident_end)
{
    const double rest = p->early - p->two, up = attn->up_s;
    const bool ffn = p->early > 0;
    s->link[0] = (piece){ffn ? p->one : up, 0, false};
    if (rest > 0) {
        s->link[1] = (piece){p->two - p->one, 0, true};
        s->link[2] = (piece){rest + up, resident_end + p->last, true};
    } else if (ffn)
        s->link[1] = (piece){p->early - p->one + up, 0, true};
    play(&c->pair, s);
    /* Rows go first, where they meet copies. */
    const double cpu_end = s->cpu_ends[1], copied = s->link_end - up;
    const double next = s->link_end + (s->link_end > cpu_end ? p->rows : 0);
    const double product = ffn ? copied + (copied > cpu_end ? p->rows : 0) + p->last : 0;
    return more_of(more_of(next, product), attn->s + attn->kv_up_s + attn->kv_down_s);
}

double yk_cost_join(const yk_cost *c, const yk_step_kind *step, const yk_cost_side *attn, const yk_load *load,
                    double bound[YK_BOUND_N])
{
    const bool cpu_any = load->cpu_s > 0, gpu_any = load->gg_s + load->cg_s > 0, device = attn->device;
    const double ta = attn->s, there = c->hand_s / 2 + rows_bytes(c, step) * c->link_s_per_byte,
                 back = c->hand_s / 2 + rows_bytes(c, step) * c->back_s_per_byte;
    const double fixed = gpu_any ? 2 * c->gpu.fixed_s + LAUNCHES_FFN * c->launch_s : 0;
    const double cpu_tail = device && cpu_any ? there : 0, gpu_hand = !device && gpu_any ? there + back : 0;
    const double tc = load->cpu_s + (cpu_any ? 2 * c->cpu.fixed_s + c->cpu.stage_s : 0), tg = load->gg_s + load->cg_s + fixed;
    const double lag = device && cpu_any ? back : 0;
    score s = {.cpu = {{.s = ta}, {.s = tc, .from = lag}}, .cpu_ends = {ta, ta + lag + tc}};
    double link_end = 0;
    const bool early = !(load->late_bytes > 0) && !load->ahead;
    if (load->early_bytes + load->late_bytes > 0 || attn->copied) {
        copies p = copies_of(c, attn, load, device ? 0 : back);
        s.cpu_reads[0] = device || !(ta > 0) ? 0 : attn->bytes / ta;
        s.cpu_reads[1] = cpu_any ? load->cpu_bytes / tc : 0;
        s.link_reads = p.reads;
        p.rows = cpu_any || !device ? rows_bytes(c, step) * c->link_s_per_byte : 0;
        const double resident_end = load->gg_s + fixed + (device ? 0 : there);
        link_end = attn->copied ? play_attn_copies(c, attn, &p, &s, resident_end) : play_copies(c, attn, &p, &s, resident_end);
    }
    const double shared = share_memory(c->same_memory_rate, load, s.cpu_ends[1] - s.cpu_ends[0] - lag, tg);
    const double cpu_end = s.cpu_ends[1] + shared + cpu_tail, gpu_end = s.cpu_ends[0] + tg + shared + gpu_hand;
    const double ffn = more_of(cpu_end, gpu_end), total = more_of(ffn, link_end);
    if (bound) {
        bound[link_end > ffn && early ? YK_BOUND_LINK : device ? YK_BOUND_GPU : YK_BOUND_CPU] += s.cpu_ends[0];
        if (link_end > ffn)
            bound[YK_BOUND_LINK] += total - s.cpu_ends[0];
        else {
            const double wait = cpu_end >= gpu_end ? cpu_tail + lag : gpu_hand;
            bound[YK_BOUND_HAND_OFF] += wait;
            bound[cpu_end >= gpu_end ? YK_BOUND_CPU : YK_BOUND_GPU] += ffn - s.cpu_ends[0] - wait;
        }
    }
    return total;
}

/* ---- which experts are chosen ---- */

static void add_times(yk_load *load, const yk_load *one, double n)
{
    load->cpu_s += n * one->cpu_s;
    load->cpu_bytes += n * one->cpu_bytes;
    load->gg_s += n * one->gg_s;
    load->cg_s += n * one->cg_s;
    load->gpu_bytes += n * one->gpu_bytes;
    load->late_bytes += n * one->late_bytes;
    load->late_copies += n * one->late_copies;
}

uint32_t yk_spread_chosen(const yk_experts *e)
{
    const double near = round(e->chosen);
    return near >= 1 && near <= YK_SPREAD_EXACT && fabs(e->chosen - near) < 1e-9 ? (uint32_t)near : 0;
}

/* Ways to choose 0 to k of n. */
static void ways(double out[YK_SPREAD_EXACT + 1], uint32_t n, uint32_t k)
{
    static const double over[YK_SPREAD_EXACT] = {1,       1.0 / 2, 1.0 / 3, 1.0 / 4,  1.0 / 5,  1.0 / 6,
                                                 1.0 / 7, 1.0 / 8, 1.0 / 9, 1.0 / 10, 1.0 / 11, 1.0 / 12};
    out[0] = 1;
    for (uint32_t i = 0; i < k; i++)
        out[i + 1] = n > i ? out[i] * ((n - i) * over[i]) : 0;
}

/* Seconds with so many of each kind chosen. */
typedef struct spread {
    const yk_cost *c;
    const yk_step_kind *step;
    const yk_cost_side *attn;
    const yk_load *sure;
    const yk_experts *e;
} spread;

/* Of m experts that are CG and of which cg are chosen, the first ones are copied early, chosen or not. */
static void copy_ahead(yk_load *load, const yk_load *one, double m, double cg)
{
    enum { SLOTS = 2 };
    const double first = less_of(m, SLOTS), known = cg * first / m;
    load->ahead = true;
    load->early_bytes += first * one->late_bytes;
    load->early_copies += first * one->late_copies;
    load->late_bytes -= known * one->late_bytes;
    load->late_copies -= known * one->late_copies;
    if (m <= SLOTS) /* without what rounding leaves */
        load->late_bytes = load->late_copies = 0;
}

static double seconds_at(const spread *s, double gg, double cc, double cg, double bound[YK_BOUND_N])
{
    yk_load load = *s->sure;
    add_times(&load, &s->e->one[YK_KIND_GG], gg);
    add_times(&load, &s->e->one[YK_KIND_CC], cc);
    add_times(&load, &s->e->one[YK_KIND_CG], cg);
    if (s->e->ahead && s->e->n[YK_KIND_CG])
        copy_ahead(&load, &s->e->one[YK_KIND_CG], s->e->n[YK_KIND_CG], cg);
    return yk_cost_join(s->c, s->step, s->attn, &load, bound);
}

static double weighted(const spread *s, const double n[3], double weight, double bound[YK_BOUND_N])
{
    double b[YK_BOUND_N] = {0};
    const double t = seconds_at(s, n[YK_KIND_GG], n[YK_KIND_CC], n[YK_KIND_CG], bound ? b : NULL);
    for (int i = 0; i < YK_BOUND_N && bound; i++)
        bound[i] += weight * b[i];
    return weight * t;
}

void yk_spread_table(double at[YK_SPREAD_CELLS], const yk_cost *c, const yk_step_kind *step, const yk_cost_side *attn,
                     const yk_load *sure, const yk_experts *e)
{
    const spread s = {c, step, attn, sure, e};
    const uint32_t k = yk_spread_chosen(e);
    for (uint32_t g = 0; g <= k; g++)
        for (uint32_t x = 0; x + g <= k; x++)
            at[g * (k + 1) + x] = seconds_at(&s, g, x, k - g - x, NULL);
}

double yk_spread_mean(const double at[YK_SPREAD_CELLS], uint32_t k, const uint32_t n[3])
{
    double w[3][YK_SPREAD_EXACT + 1], sum = 0, all = 0;
    for (int i = 0; i < 3; i++)
        ways(w[i], n[i], k);
    for (uint32_t g = 0; g <= k && g <= n[YK_KIND_GG]; g++) {
        double row = 0, row_all = 0;
        for (uint32_t x = k - g > n[YK_KIND_CG] ? k - g - n[YK_KIND_CG] : 0; x + g <= k && x <= n[YK_KIND_CC]; x++) {
            const double p = w[YK_KIND_CC][x] * w[YK_KIND_CG][k - g - x];
            row += p * at[g * (k + 1) + x];
            row_all += p;
        }
        sum += w[YK_KIND_GG][g] * row;
        all += w[YK_KIND_GG][g] * row_all;
    }
    return sum / all;
}

static double spread_exact(const spread *s, uint32_t k, double bound[YK_BOUND_N])
{
    double w[3][YK_SPREAD_EXACT + 1], all[YK_SPREAD_EXACT + 1], sum = 0;
    for (int i = 0; i < 3; i++)
        ways(w[i], s->e->n[i], k);
    ways(all, s->e->n[0] + s->e->n[1] + s->e->n[2], k);
    for (uint32_t g = 0; g <= k; g++)
        for (uint32_t x = 0; x + g <= k; x++) {
            const double p = w[YK_KIND_GG][g] * w[YK_KIND_CC][x] * w[YK_KIND_CG][k - g - x] / all[k];
            const double n[3] = {[YK_KIND_GG] = g, [YK_KIND_CC] = x, [YK_KIND_CG] = k - g - x};
            if (p > 0)
                sum += weighted(s, n, p, bound);
        }
    return sum;
}

/* Points (quarter) of how many are of a kind, when k of n are chosen and m of the n are of this kind. */
static uint32_t points(double out[4], double k, double m, double n)
{
    const double mean = n > 0 ? k * m / n : 0, var = n > 1 ? mean * (1 - m / n) * fmax(0, n - k) / (n - 1) : 0;
    if (!(var > 0)) {
        out[0] = mean;
        return 1;
    }
    const double least = fmax(0, k - (n - m)), most = fmin(k, m),
                 far = fmin(sqrt(var), fmin(mean - least, most - mean) / quarter[3]);
    for (int i = 0; i < 4; i++)
        out[i] = mean + far * quarter[i];
    return 4;
}

double yk_cost_spread(const yk_cost *c, const yk_step_kind *step, const yk_cost_side *attn, const yk_load *sure,
                      const yk_experts *e, double bound[YK_BOUND_N])
{
    const spread s = {c, step, attn, sure, e};
    const uint32_t k = yk_spread_chosen(e);
    if (k)
        return spread_exact(&s, k, bound);
    const double rest = (double)e->n[YK_KIND_CC] + e->n[YK_KIND_CG], all = rest + e->n[YK_KIND_GG];
    double gg[4], cc[4], sum = 0;
    const uint32_t n = points(gg, e->chosen, e->n[YK_KIND_GG], all);
    for (uint32_t i = 0; i < n; i++) {
        const double left = fmax(0, e->chosen - gg[i]);
        const uint32_t m = points(cc, left, e->n[YK_KIND_CC], rest);
        for (uint32_t j = 0; j < m; j++) {
            const double x[3] = {[YK_KIND_GG] = gg[i], [YK_KIND_CC] = cc[j], [YK_KIND_CG] = fmax(0, left - cc[j])};
            sum += weighted(&s, x, 1.0 / (n * m), bound);
        }
    }
    return sum;
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
    yk_experts experts; /* whole ones, in decode: only some of them will have tokens */
} adder;

static void flush(adder *a)
{
    const yk_use *u = &a->use;
    const bool whole = u->group == YK_PART_EXP && u->units == a->layer->part[YK_PART_EXP].cut.n;
    if (u->instances > 0 && whole && !a->step->prefill)
        a->experts.n[u->kind] += (uint32_t)u->instances;
    else if (u->instances > 0)
        yk_cost_add(a->c, a->load, a->layer, a->step, u);
    a->use.instances = 0;
}

void yk_cost_experts(const yk_cost *c, yk_experts *e, const yk_shape_layer *layer, const yk_step_kind *step)
{
    double tokens;
    const double active = yk_cost_active(c->shape, YK_PART_EXP, step->n, &tokens);
    e->chosen = active * (e->n[0] + e->n[1] + e->n[2]);
    for (int kind = 0; kind < 3; kind++) {
        const yk_use one = {YK_PART_EXP, (yk_kind)kind, 0, layer->part[YK_PART_EXP].cut.n, 1 / active};
        e->one[kind] = (yk_load){0};
        if (kind == YK_KIND_CC || c->has_device)
            yk_cost_add(c, &e->one[kind], layer, step, &one);
    }
}

static double finish(adder *a, uint32_t layer, yk_attn place, double bound[YK_BOUND_N])
{
    flush(a);
    const yk_cost_side attn = yk_cost_side_of(a->c, layer, a->step, place);
    if (!(a->experts.n[0] + a->experts.n[1] + a->experts.n[2]))
        return yk_cost_join(a->c, a->step, &attn, a->load, bound);
    yk_cost_experts(a->c, &a->experts, a->layer, a->step);
    return yk_cost_spread(a->c, a->step, &attn, a->load, &a->experts, bound);
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
        const yk_attn attn = yk_cost_attn_of(y, step);
        yk_load load = {0};
        adder a = {.c = c, .load = &load, .layer = &c->shape->layers[l], .step = step};
        a.experts.ahead = yk_plan_ahead(y, step->prefill, step->n);
        add_layer(&a, y);
        move_to(&w, c, step, attn != YK_ATTN_HOST);
        w.sum += finish(&a, l, attn, w.share);
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
    if (x->n != y->n || x->n > YK_DIGEST_RUNS || (p->attn_home == YK_HOST) != (q->attn_home == YK_HOST) ||
        memcmp(p->attn_chunk, q->attn_chunk, sizeof p->attn_chunk) != 0 || memcmp(p->ahead, q->ahead, sizeof p->ahead) != 0)
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
        const yk_attn attn = yk_cost_attn_of(&d->plan->layers[l], step);
        if (y->like == l) {
            yk_load load = {0};
            memset(y->bound, 0, sizeof y->bound);
            adder a = {.c = c, .load = &load, .layer = &c->shape->layers[l], .step = step};
            a.experts.ahead = yk_plan_ahead(&d->plan->layers[l], step->prefill, step->n);
            for (uint32_t i = 0; i < y->n && y->n <= YK_DIGEST_RUNS; i++)
                add_slices(&a, &y->run[i], y->count[i]);
            if (y->n > YK_DIGEST_RUNS)
                add_layer(&a, &d->plan->layers[l]);
            y->s = finish(&a, l, attn, y->bound);
        }
        move_to(&w, c, step, attn != YK_ATTN_HOST);
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
