#include "partition/svg.h"

#include <stdio.h>
#include <string.h>

#include "partition/text.h"

enum { WIDTH = 960, MARGIN = 24, LABEL = 128, STRIP = 380, GAP = 24, CELLS = 36, N_KINDS = 3 };

/* Readable for the colour-blind and in grey. */
static const char *const fills[N_KINDS] = {"#2a78b8", "#e8b33a", "#c8503c"};
static const char *const says[N_KINDS] = {"GG: resident on the device", "CC: in RAM, computed by the CPU",
                                          "CG: in RAM, copied, computed by the device"};
static const char letters[N_KINDS] = {'G', 'c', '>'};
static const char *const ansi[N_KINDS] = {"\x1b[44;97m", "\x1b[43;30m", "\x1b[41;97m"};

/* Shares of the bytes of a layer's FFN by kind. */
static void shares_of(const yk_plan *plan, const yk_shape *shape, uint32_t layer, bool prefill, double share[N_KINDS])
{
    const yk_plan_layer *y = &plan->layers[layer];
    const uint32_t n = !prefill ? 1 : plan->batch ? plan->batch : 512;
    double all = 0;
    memset(share, 0, N_KINDS * sizeof *share);
    for (uint32_t i = 0; i < y->n_slices; i++) {
        const yk_slice *s = &y->slices[i];
        const double b = (double)yk_shape_units_bytes(&shape->layers[layer].part[s->group], s->unit0, s->units);
        share[yk_slice_kind(s, prefill, n)] += b;
        all += b;
    }
    for (int k = 0; k < N_KINDS && all > 0; k++)
        share[k] /= all;
}

/* ---- text ---- */

/* Cells of a strip: whole ones that add up to all. */
static void cells_of(const double share[N_KINDS], char cells[CELLS + 1])
{
    double sum = 0;
    int at = 0;
    for (int k = 0; k < N_KINDS; k++) {
        sum += share[k];
        const int to = k + 1 < N_KINDS ? (int)(sum * CELLS + 0.5) : CELLS;
        for (; at < to && at < CELLS; at++)
            cells[at] = (char)('0' + k);
    }
    cells[CELLS] = 0;
}

static void put_cells(yk_text *t, const char *cells, bool colour)
{
    for (int i = 0; i < CELLS; i++) {
        const int k = cells[i] - '0';
        if (colour && (i == 0 || cells[i] != cells[i - 1]))
            yk_text_put(t, "%s", ansi[k]);
        yk_text_put(t, "%c", letters[k]);
    }
    if (colour)
        yk_text_put(t, "\x1b[0m");
}

yk_status yk_plan_strips(const yk_plan *plan, const yk_shape *shape, bool colour, char **out, size_t *n_bytes, yk_error *err)
{
    yk_text t = {0};
    yk_text_put(&t, "layer    attention  %-*s  %-*s\n", CELLS, "FFN when decoding", CELLS, "FFN in prefill");
    char cells[2][CELLS + 1], next[2][CELLS + 1];
    for (uint32_t l = 0, end; l < plan->n_layers; l = end) {
        double share[N_KINDS];
        shares_of(plan, shape, l, false, share);
        cells_of(share, cells[0]);
        shares_of(plan, shape, l, true, share);
        cells_of(share, cells[1]);
        for (end = l + 1; end < plan->n_layers; end++) {
            shares_of(plan, shape, end, false, share);
            cells_of(share, next[0]);
            shares_of(plan, shape, end, true, share);
            cells_of(share, next[1]);
            if (memcmp(cells, next, sizeof cells) != 0 || plan->layers[end].attn_home != plan->layers[l].attn_home)
                break;
        }
        char range[24];
        snprintf(range, sizeof range, end - l > 1 ? "%u-%u" : "%u", l, end - 1);
        yk_text_put(&t, "%-8s %-10s ", range, yk_plan_home_name(plan, plan->layers[l].attn_home));
        put_cells(&t, cells[0], colour);
        yk_text_put(&t, "  ");
        put_cells(&t, cells[1], colour);
        yk_text_put(&t, "\n");
    }
    for (int k = 0; k < N_KINDS; k++)
        yk_text_put(&t, "%s%s%c%s %s", k ? "   " : "", colour ? ansi[k] : "", letters[k], colour ? "\x1b[0m" : "", says[k]);
    yk_text_put(&t, "\n");
    return yk_text_take(&t, out, n_bytes, "the strips of a plan", err);
}

/* ---- drawing ---- */

/* Text as XML: what has a meaning there is replaced, and so is what is no printable ASCII (names come from files). */
static void put_xml(yk_text *t, const char *s)
{
    for (; *s; s++) {
        const unsigned char c = (unsigned char)*s;
        if (c == '&' || c == '<' || c == '>' || c == '"')
            yk_text_put(t, "&#%u;", c);
        else
            yk_text_put(t, "%c", c >= 0x20 && c < 0x7f ? c : '?');
    }
}

static void put_label(yk_text *t, double x, double y, const char *cls, const char *s)
{
    yk_text_put(t, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">", x, y, cls);
    put_xml(t, s);
    yk_text_put(t, "</text>\n");
}

static void put_box(yk_text *t, double x, double y, double w, double h, const char *fill)
{
    if (w > 0.05)
        yk_text_put(t, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", x, y, w, h, fill);
}

static void put_strip(yk_text *t, double x, double y, double h, const double share[N_KINDS])
{
    double at = x;
    for (int k = 0; k < N_KINDS; k++) {
        put_box(t, at, y, share[k] * STRIP, h, fills[k]);
        if (share[k] * STRIP >= 36 && h >= 11)
            yk_text_put(t, "<text x=\"%.1f\" y=\"%.1f\" class=\"in\">%.0f %%</text>\n", at + 4, y + h - 2.5, 100 * share[k]);
        at += share[k] * STRIP;
    }
}

static double put_layers(yk_text *t, const yk_plan *plan, const yk_shape *shape, double y)
{
    const double h = plan->n_layers > 64 ? 8 : 12, x0 = MARGIN + LABEL, x1 = x0 + STRIP + GAP;
    put_label(t, MARGIN, y, "h", "layer");
    put_label(t, MARGIN + 48, y, "h", "attention");
    put_label(t, x0, y, "h", "FFN when decoding one sequence");
    put_label(t, x1, y, "h", "FFN in prefill");
    y += 8;
    for (uint32_t l = 0; l < plan->n_layers; l++, y += h + 2) {
        char number[16];
        double share[N_KINDS];
        const int home = plan->layers[l].attn_home;
        snprintf(number, sizeof number, "%u", l);
        if (h >= 11 || l % 4 == 0)
            put_label(t, MARGIN, y + h - 1.5, "s", number);
        put_box(t, MARGIN + 48, y, 56, h, fills[home == YK_HOST ? YK_KIND_CC : YK_KIND_GG]);
        if (h >= 11)
            put_label(t, MARGIN + 52, y + h - 2.5, "in", yk_plan_home_name(plan, home));
        shares_of(plan, shape, l, false, share);
        put_strip(t, x0, y, h, share);
        shares_of(plan, shape, l, true, share);
        put_strip(t, x1, y, h, share);
    }
    y += 12;
    for (int k = 0; k < N_KINDS; k++) {
        const double x = MARGIN + k * 300.0;
        put_box(t, x, y, 12, 12, fills[k]);
        put_label(t, x + 18, y + 10, "s", says[k]);
    }
    return y + 24;
}

static double put_memory(yk_text *t, const yk_plan *plan, const yk_shape *shape, const yk_plan_limits *limits, double y)
{
    uint64_t m[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES];
    yk_plan_memory(plan, shape, limits, m);
    static const struct {
        int cls;
        const char *name, *fill;
    } parts[] = {{YK_MEM_WEIGHTS, "weights", "#2a78b8"},
                 {YK_MEM_KV, "KV", "#5aa469"},
                 {YK_MEM_STAGING, "staging", "#c8503c"},
                 {YK_MEM_ACTIVATION, "activations", "#8a6fb0"},
                 {YK_MEM_RUNTIME, "runtime", "#888888"}};
    put_label(t, MARGIN, y, "h", "memory");
    y += 8;
    for (uint32_t p = 0; p <= plan->n_devices; p++, y += 18) {
        double all = 0, budget = 0, x = MARGIN + LABEL;
        char line[256];
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
            all += (double)m[p][parts[i].cls];
        for (uint32_t d = 0; p && d < limits->n_devices; d++)
            if (strcmp(limits->devices[d].name, plan->devices[p - 1]) == 0)
                budget = (double)limits->devices[d].budget_bytes;
        const double full = budget > all ? budget : all;
        put_label(t, MARGIN, y + 11, "s", yk_plan_home_name(plan, (int)p - 1));
        if (budget > 0)
            put_box(t, x, y, STRIP, 14, "#dddddd");
        int n = snprintf(line, sizeof line, "%.2f GiB", all / 0x1p30);
        if (budget > 0)
            n += snprintf(line + n, sizeof line - (size_t)n, " of %.2f", budget / 0x1p30);
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            const double b = (double)m[p][parts[i].cls];
            put_box(t, x, y, full > 0 ? STRIP * b / full : 0, 14, parts[i].fill);
            x += full > 0 ? STRIP * b / full : 0;
            if (b >= 0x1p20)
                n += snprintf(line + n, sizeof line - (size_t)n, ", %s %.2f", parts[i].name, b / 0x1p30);
        }
        put_label(t, MARGIN + LABEL + STRIP + GAP, y + 11, "s", line);
    }
    return y + 18;
}

static double put_speed(yk_text *t, const yk_plan *plan, double y)
{
    const yk_plan_speed *s = &plan->speed;
    char line[256];
    put_label(t, MARGIN, y, "h", plan->predicted ? "predicted" : "speed: not predicted, the plan was given");
    y += 18;
    for (uint32_t i = 0; plan->predicted && i < s->n_depths; i++, y += 16) {
        snprintf(line, sizeof line, "decode %.3g tok/s behind %u tokens", s->decode_tps[i].value, s->decode_tps[i].at);
        put_label(t, MARGIN, y, "s", line);
    }
    for (uint32_t i = 0; plan->predicted && i < s->n_chunks; i++, y += 16) {
        snprintf(line, sizeof line, "prefill %.4g tok/s in chunks of %u", s->prefill_tps[i].value, s->prefill_tps[i].at);
        put_label(t, MARGIN, y, "s", line);
    }
    for (int phase = 0; plan->predicted && phase < 2; phase++, y += 16) {
        snprintf(line, sizeof line, "%s is bound by %s: %.0f %% of the time", phase ? "prefill" : "decode", s->bound[phase],
                 100 * s->bound_share[phase]);
        put_label(t, MARGIN, y, "s", line);
    }
    return y + 8;
}

/* Bars beside each other: decode and prefill of what else could be done. */
static double put_alternatives(yk_text *t, const yk_plan *plan, double y)
{
    double most[2] = {0};
    char line[64];
    if (!plan->n_alternatives)
        return y;
    for (uint32_t i = 0; i < plan->n_alternatives; i++) {
        const yk_alternative *a = &plan->alternatives[i];
        most[0] = a->decode_tps > most[0] ? a->decode_tps : most[0];
        most[1] = a->prefill_tps > most[1] ? a->prefill_tps : most[1];
    }
    const double x[2] = {MARGIN + 220, MARGIN + 580};
    put_label(t, MARGIN, y, "h", "why not otherwise (modelled)");
    put_label(t, x[0], y, "h", "decode, tok/s");
    put_label(t, x[1], y, "h", "prefill, tok/s");
    y += 8;
    for (uint32_t i = 0; i < plan->n_alternatives; i++, y += 18) {
        const yk_alternative *a = &plan->alternatives[i];
        const double v[2] = {a->decode_tps, a->prefill_tps};
        put_label(t, MARGIN, y + 11, "s", a->name);
        for (int phase = 0; phase < 2; phase++) {
            const double w = most[phase] > 0 ? 250 * v[phase] / most[phase] : 0;
            put_box(t, x[phase], y, w, 14, i == 0 ? "#2a78b8" : "#9fb8cc");
            snprintf(line, sizeof line, v[phase] > 0 ? "%.3g" : "does not fit", v[phase]);
            put_label(t, x[phase] + w + 6, y + 11, "s", line);
        }
    }
    return y + 18;
}

yk_status yk_plan_svg(const yk_plan *plan, const yk_shape *shape, const yk_machine *machine, const yk_plan_limits *limits,
                      char **out, size_t *n_bytes, yk_error *err)
{
    yk_text t = {0}, body = {0};
    char line[640];
    double y = 36, all = (double)shape->embd.bytes + (shape->tied ? 0 : (double)shape->head.bytes);
    for (uint32_t l = 0; l < shape->n_layers; l++)
        all += (double)yk_shape_attn_bytes(&shape->layers[l]) + (double)yk_shape_ffn_bytes(&shape->layers[l]);
    snprintf(line, sizeof line, "%s, %.2f GiB of weights, context %u", shape->name, all / 0x1p30, limits->context);
    put_label(&body, MARGIN, y, "t", line);
    y += 20;
    if (machine) {
        int n = snprintf(line, sizeof line, "on %s, reads %.3g GB/s", *machine->cpu ? machine->cpu : "this machine",
                         machine->rates.read_bytes_per_s / 1e9);
        if (plan->n_devices && yk_machine_find(machine, plan->devices[0]) >= 0) {
            const yk_machine_device *d = &machine->devices[yk_machine_find(machine, plan->devices[0])];
            snprintf(line + n, sizeof line - (size_t)n, "; %s %s, link %.3g GB/s", d->name, d->description,
                     d->to_device_bytes_per_s / 1e9);
        }
        put_label(&body, MARGIN, y, "s", line);
        y += 16;
    }
    if (*plan->note) {
        put_label(&body, MARGIN, y, "s", plan->note);
        y += 16;
    }
    y = put_layers(&body, plan, shape, y + 12);
    y = put_memory(&body, plan, shape, limits, y + 12);
    y = put_speed(&body, plan, y + 12);
    y = put_alternatives(&body, plan, y + 12);
    snprintf(line, sizeof line, "plan %s; every speed is modelled from the machine's measured or stated rates", plan->plan_id);
    put_label(&body, MARGIN, y + 8, "f", line);
    yk_text_put(
        &t,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" viewBox=\"0 0 %d %.0f\">\n"
        "<style>text{font-family:sans-serif;fill:#222}.t{font-size:18px;font-weight:bold}.h{font-size:12px;font-weight:bold}"
        ".s{font-size:11px}.in{font-size:9px;fill:#fff}.f{font-size:10px;fill:#666}</style>\n"
        "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
        WIDTH, y + 24, WIDTH, y + 24);
    yk_text_put(&t, "%s</svg>\n", body.p && !body.failed ? body.p : "");
    t.failed = t.failed || body.failed;
    yk_free(body.p);
    return yk_text_take(&t, out, n_bytes, "the picture of a plan", err);
}
