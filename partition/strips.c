/* The layers of a plan as lines of text: a strip of characters and the shares beside it, for decode and for prefill. Layers that look
 * alike share a line, wherever they are; when that leaves too many lines, what differs little counts as alike. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "partition/svg.h"
#include "partition/text.h"

enum { CELLS = 24, MAX_LOOKS = 6 };

static const char letters[YK_N_KINDS] = {'G', 'c', '>'};
static const char *const ansi[YK_N_KINDS] = {"\x1b[44;97m", "\x1b[43;30m", "\x1b[41;97m"};
static const char *const says[YK_N_KINDS] = {"(GG) on the device", "(CC) in RAM, computed by the CPU",
                                             "(CG) in RAM, copied to the device"};

/* How a layer looks; first and last: of the layers that look so, n of them. */
typedef struct look {
    int attn;
    bool attn_copied, mixed; /* mixed: attention is here and there */
    double share[2][YK_N_KINDS];
    uint32_t first, last, n;
} look;

void yk_plan_shares(const yk_plan *plan, const yk_shape *shape, uint32_t layer, bool prefill, double share[YK_N_KINDS])
{
    const yk_plan_layer *y = &plan->layers[layer];
    const uint32_t n = !prefill ? 1 : plan->batch ? plan->batch : 512;
    double all = 0;
    memset(share, 0, YK_N_KINDS * sizeof *share);
    for (uint32_t i = 0; i < y->n_slices; i++) {
        const yk_slice *s = &y->slices[i];
        const double b = (double)yk_shape_units_bytes(&shape->layers[layer].part[s->group], s->unit0, s->units);
        share[yk_slice_kind(s, prefill, n)] += b;
        all += b;
    }
    for (int k = 0; k < YK_N_KINDS && all > 0; k++)
        share[k] /= all;
}

bool yk_plan_attn_copied(const yk_plan *plan, uint32_t layer)
{
    const yk_plan_layer *y = &plan->layers[layer];
    return y->attn_home == YK_HOST && yk_plan_attn_on_device(y, true, plan->batch ? plan->batch : 512);
}

static look look_of(const yk_plan *plan, const yk_shape *shape, uint32_t l)
{
    look k = {.attn = plan->layers[l].attn_home, .attn_copied = yk_plan_attn_copied(plan, l), .first = l, .last = l, .n = 1};
    for (int phase = 0; phase < 2; phase++)
        yk_plan_shares(plan, shape, l, phase, k.share[phase]);
    return k;
}

/* Alike: the shares are the same in steps of so many per cent of the first of them. */
static bool alike(const look *a, const look *b, double step)
{
    bool same = a->attn == b->attn && a->attn_copied == b->attn_copied;
    for (int i = 0; i < 2 * YK_N_KINDS; i++)
        same = same && fabs(a->share[i / YK_N_KINDS][i % YK_N_KINDS] - b->share[i / YK_N_KINDS][i % YK_N_KINDS]) <= step / 100;
    return same;
}

/* Looks of all layers, at most MAX_LOOKS, by their first layer; shares are sums over their layers. 0: there are more of them. */
static uint32_t looks_of(const yk_plan *plan, const yk_shape *shape, double step, bool squeeze, look looks[MAX_LOOKS])
{
    look first[MAX_LOOKS];
    uint32_t n = 0;
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        const look k = look_of(plan, shape, l);
        uint32_t i = 0;
        while (i < n && !alike(&first[i], &k, step))
            i++;
        if (i == MAX_LOOKS && !squeeze)
            return 0;
        i = i < MAX_LOOKS ? i : MAX_LOOKS - 1;
        if (i == n) {
            first[n] = looks[n] = k;
            n++;
            continue;
        }
        looks[i].mixed = looks[i].mixed || first[i].attn != k.attn || first[i].attn_copied != k.attn_copied;
        looks[i].last = l;
        looks[i].n++;
        for (int s = 0; s < 2 * YK_N_KINDS; s++)
            looks[i].share[s / YK_N_KINDS][s % YK_N_KINDS] += k.share[s / YK_N_KINDS][s % YK_N_KINDS];
    }
    return n;
}

/* Cells of a strip: whole ones that add up to all. */
static void put_cells(yk_text *t, const double share[YK_N_KINDS], bool colour)
{
    double sum = 0;
    int at = 0;
    for (int k = 0; k < YK_N_KINDS; k++) {
        sum += share[k];
        const int to = k + 1 < YK_N_KINDS ? (int)(sum * CELLS + 0.5) : CELLS;
        if (colour && at < to)
            yk_text_put(t, "%s", ansi[k]);
        for (; at < to && at < CELLS; at++)
            yk_text_put(t, "%c", letters[k]);
    }
    if (colour)
        yk_text_put(t, "\x1b[0m");
}

static void put_look(yk_text *t, const yk_plan *plan, look *k, bool colour)
{
    char range[24], attn[YK_DEVICE_NAME + 2];
    if (k->last - k->first + 1 == k->n)
        snprintf(range, sizeof range, k->n > 1 ? "%u-%u" : "%u", k->first, k->last);
    else
        snprintf(range, sizeof range, "%u of %u-%u", k->n, k->first, k->last);
    snprintf(attn, sizeof attn, "%s%s", k->mixed ? "differs" : yk_plan_home_name(plan, k->attn), k->attn_copied ? ">" : "");
    yk_text_put(t, "%-11s %-9s", range, attn);
    for (int phase = 0; phase < 2; phase++) {
        int p[YK_N_KINDS];
        for (int i = 0; i < YK_N_KINDS; i++)
            k->share[phase][i] /= k->n;
        yk_text_percents(k->share[phase], YK_N_KINDS, p);
        yk_text_put(t, "%s", phase ? "   " : " ");
        put_cells(t, k->share[phase], colour);
        yk_text_put(t, " %3d %3d %3d", p[YK_KIND_GG], p[YK_KIND_CC], p[YK_KIND_CG]);
    }
    yk_text_put(t, "\n");
}

static void put_legend(yk_text *t, const look *looks, uint32_t n, bool colour)
{
    bool any = false, copied = false;
    for (int k = 0; k < YK_N_KINDS; k++) {
        double sum = 0;
        for (uint32_t i = 0; i < n; i++)
            sum += looks[i].share[0][k] + looks[i].share[1][k];
        if (sum > 0)
            yk_text_put(t, "%s%s%c%s %s", any ? "  " : "", colour ? ansi[k] : "", letters[k], colour ? "\x1b[0m" : "", says[k]);
        any = any || sum > 0;
    }
    for (uint32_t i = 0; i < n; i++)
        copied = copied || looks[i].attn_copied;
    yk_text_put(t, "%s%s\n", any && copied ? "\n" : "",
                copied ? "host> attention in RAM; in prefill copied and computed by the device" : "");
}

yk_status yk_plan_strips(const yk_plan *plan, const yk_shape *shape, bool colour, char **out, size_t *n_bytes, yk_error *err)
{
    static const double steps[] = {0.5, 2, 4, 8, 16, 33};
    enum { N_STEPS = sizeof steps / sizeof *steps };
    look looks[MAX_LOOKS];
    yk_text t = {0};
    uint32_t n = 0;
    int i = 0;
    while (i < N_STEPS && !(n = looks_of(plan, shape, steps[i], i + 1 == N_STEPS, looks)))
        i++;
    yk_text_put(&t, "%-11s %-9s %-*s  GG  CC  CG %%", "layers", "attention", CELLS, "FFN in decode");
    yk_text_put(&t, " %-*s  GG  CC  CG %%\n", CELLS, "FFN in prefill");
    for (uint32_t k = 0; k < n; k++)
        put_look(&t, plan, &looks[k], colour);
    yk_text_put(&t, "head %s, embedding %s%s\n", yk_plan_home_name(plan, plan->head_home),
                yk_plan_home_name(plan, plan->embd_home), i ? "; lines are means of layers that are nearly alike" : "");
    put_legend(&t, looks, n, colour);
    return yk_text_take(&t, out, n_bytes, "the strips of a plan", err);
}
