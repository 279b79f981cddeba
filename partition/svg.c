#include "partition/svg.h"

#include <stdio.h>
#include <string.h>

enum { WIDTH = 960, MARGIN = 24, LABEL = 128, STRIP = 380, GAP = 24, COLUMNS = 130, N_KINDS = YK_N_KINDS };

/* Readable for the colour-blind and in grey. */
static const char *const fills[N_KINDS] = {"#2a78b8", "#e8b33a", "#c8503c"};
static const char *const says[N_KINDS] = {"GG: resident on the device", "CC: in RAM, computed by the CPU",
                                          "CG: in RAM, copied, computed by the device"};

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
    int percent[N_KINDS];
    yk_text_percents(share, N_KINDS, percent);
    for (int k = 0; k < N_KINDS; k++) {
        put_box(t, at, y, share[k] * STRIP, h, fills[k]);
        if (share[k] * STRIP >= 36 && h >= 11)
            yk_text_put(t, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%d %%</text>\n", at + 4, y + h - 2.5,
                        k == YK_KIND_CC ? "on" : "in", percent[k]);
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
        const bool copied = yk_plan_attn_copied(plan, l);
        put_box(t, MARGIN + 48, y, 56, h, fills[home == YK_HOST ? YK_KIND_CC : YK_KIND_GG]);
        if (copied) /* left: when decoding, right: in prefill */
            put_box(t, MARGIN + 80, y, 24, h, fills[YK_KIND_CG]);
        if (h >= 11)
            put_label(t, MARGIN + 52, y + h - 2.5, home == YK_HOST ? "on" : "in", yk_plan_home_name(plan, home));
        yk_plan_shares(plan, shape, l, false, share);
        put_strip(t, x0, y, h, share);
        yk_plan_shares(plan, shape, l, true, share);
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

static double put_memory(yk_text *t, const yk_plan *plan, const yk_shape *shape, const yk_machine *machine,
                         const yk_plan_limits *limits, double y)
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
    put_label(t, MARGIN, y, "h", "memory, GiB");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const double x = MARGIN + LABEL + 84.0 * (double)i;
        put_box(t, x, y - 9, 10, 10, parts[i].fill);
        put_label(t, x + 14, y, "s", parts[i].name);
    }
    y += 8;
    for (uint32_t p = 0; p <= plan->n_devices; p++, y += 6) {
        double all = 0, budget = p || !machine ? 0 : (double)machine->memory_bytes, x = MARGIN + LABEL;
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
        int n = snprintf(line, sizeof line, "%.2f", all / 0x1p30);
        if (budget > 0)
            snprintf(line + n, sizeof line - (size_t)n, " of %.2f%s", budget / 0x1p30, p ? "" : " of RAM");
        put_label(t, MARGIN + LABEL + STRIP + GAP, y + 11, "s", line);
        y += 28;
        n = 0;
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            const double b = (double)m[p][parts[i].cls];
            put_box(t, x, y - 28, full > 0 ? STRIP * b / full : 0, 14, parts[i].fill);
            x += full > 0 ? STRIP * b / full : 0;
            if (b >= 0x1p20)
                n += snprintf(line + n, sizeof line - (size_t)n, "%s%s %.2f", n ? ", " : "", parts[i].name, b / 0x1p30);
        }
        put_label(t, MARGIN + LABEL, y - 2, "s", line);
    }
    return y + 18;
}

/* Lines of a text below each other; leading spaces move to the right. `words` is consumed. The first has a class of its own. */
static double put_lines(yk_text *t, yk_text *words, const char *first, double y)
{
    const char *cls = first;
    for (char *line = words->p, *end; line && (end = strchr(line, '\n')); line = end + 1) {
        const size_t spaces = strspn(line, " ");
        *end = 0;
        put_label(t, MARGIN + 8.0 * (double)spaces, y, cls, line + spaces);
        y += cls == first && *cls != 's' ? 20 : 16;
        cls = "s";
    }
    t->failed = t->failed || words->failed;
    yk_free(words->p);
    return y;
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
    put_label(t, MARGIN, y, "h", "why not (modelled)");
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
            const double of = phase ? plan->alternatives[0].prefill_tps : plan->alternatives[0].decode_tps;
            char b[YK_TEXT_NUMBER];
            if (v[phase] > 0 && i && strcmp(plan->alternatives[0].name, "this plan") == 0)
                snprintf(line, sizeof line, "%s (%.2fx)", yk_text_number(b, v[phase]), v[phase] / of);
            else
                snprintf(line, sizeof line, "%s", v[phase] > 0 ? yk_text_number(b, v[phase]) : "does not fit");
            put_label(t, x[phase] + w + 6, y + 11, "s", line);
        }
    }
    return y + 18;
}

yk_status yk_plan_svg(const yk_plan *plan, const yk_shape *shape, const yk_machine *machine, const yk_plan_limits *limits,
                      char **out, size_t *n_bytes, yk_error *err)
{
    yk_text t = {0}, body = {0};
    char line[128];
    yk_text words = {0};
    yk_plan_put_head(&words, plan, shape, machine, limits, COLUMNS);
    double y = put_lines(&body, &words, "t", 36);
    words = (yk_text){0};
    yk_plan_put_speed(&words, plan, limits, COLUMNS);
    y = put_lines(&body, &words, "s", y + 12);
    y = put_layers(&body, plan, shape, y + 12);
    y = put_memory(&body, plan, shape, machine, limits, y + 12);
    y = put_alternatives(&body, plan, y + 12);
    snprintf(line, sizeof line, "plan %s; every speed is modelled from the machine's measured or stated rates", plan->plan_id);
    put_label(&body, MARGIN, y + 8, "f", line);
    yk_text_put(
        &t,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" viewBox=\"0 0 %d %.0f\">\n"
        "<style>text{font-family:sans-serif;fill:#222}.t{font-size:15px;font-weight:bold}.h{font-size:12px;font-weight:bold}"
        ".s{font-size:11px}.in{font-size:9px;fill:#fff}.on{font-size:9px}.f{font-size:10px;fill:#666}</style>\n"
        "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
        WIDTH, y + 24, WIDTH, y + 24);
    yk_text_put(&t, "%s</svg>\n", body.p && !body.failed ? body.p : "");
    t.failed = t.failed || body.failed;
    yk_free(body.p);
    return yk_text_take(&t, out, n_bytes, "the picture of a plan", err);
}
