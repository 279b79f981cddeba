/* The plan in words, one screen: the reader wants to know what is where, how fast it will be, what limits it and why nothing
 * else was done. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "partition/solve.h"
#include "partition/text.h"

enum { MAX_ROWS = 10 };

/* Share of a layer by kind in decode and prefill; layers with the same row are shown together. */
typedef struct row {
    int attn;
    bool attn_copied;   /* in some chunk of prefill */
    double share[2][3]; /* [decode, prefill][kind] of the FFN's bytes */
} row;

static row row_of(const yk_plan *plan, const yk_shape *shape, uint32_t l)
{
    const yk_plan_layer *y = &plan->layers[l];
    row r = {.attn = y->attn_home};
    double all = 0;
    for (int c = 0; c < YK_N_CHUNKS; c++)
        r.attn_copied = r.attn_copied || y->attn_chunk[c];
    for (uint32_t i = 0; i < y->n_slices; i++) {
        const yk_slice *s = &y->slices[i];
        const double b = (double)yk_shape_units_bytes(&shape->layers[l].part[s->group], s->unit0, s->units);
        r.share[0][s->kind[YK_B_1]] += b;
        r.share[1][s->kind[YK_B_PREFILL]] += b;
        all += b;
    }
    for (int k = 0; k < 6; k++) /* whole per cent: what is shown is what is compared */
        r.share[k / 3][k % 3] = all > 0 ? (double)(int)(100 * r.share[k / 3][k % 3] / all + 0.5) : 0;
    return r;
}

static bool same_row(const row *a, const row *b)
{
    bool same = a->attn == b->attn && a->attn_copied == b->attn_copied;
    for (int k = 0; k < 6; k++)
        same = same && (int)a->share[k / 3][k % 3] == (int)b->share[k / 3][k % 3];
    return same;
}

static void put_layers(yk_text *t, const yk_plan *plan, const yk_shape *shape)
{
    uint32_t rows = 0;
    bool copied = false;
    yk_text_put(t, "\nlayers     attention  FFN when decoding          FFN in prefill\n");
    for (uint32_t l = 0; l < plan->n_layers;) {
        const row r = row_of(plan, shape, l);
        uint32_t end = l + 1;
        for (; end < plan->n_layers; end++) {
            const row next = row_of(plan, shape, end);
            if (!same_row(&r, &next) && rows + 1 < MAX_ROWS)
                break;
        }
        char range[24], cells[2][64];
        snprintf(range, sizeof range, end - l > 1 ? "%u-%u" : "%u", l, end - 1);
        for (int phase = 0; phase < 2; phase++)
            snprintf(cells[phase], sizeof cells[phase], "GG %3.0f  CC %3.0f  CG %3.0f %%", r.share[phase][YK_KIND_GG],
                     r.share[phase][YK_KIND_CC], r.share[phase][YK_KIND_CG]);
        copied = copied || r.attn_copied;
        yk_text_put(t, "%-10s %-10s %-26s %s%s\n", range, r.attn_copied ? "host, CG" : yk_plan_home_name(plan, r.attn),
                    cells[0], cells[1], rows + 1 == MAX_ROWS && end - l > 1 ? "  (first of several)" : "");
        rows++;
        l = end;
    }
    yk_text_put(t, "head       %s\nembedding  %s\n", yk_plan_home_name(plan, plan->head_home),
                yk_plan_home_name(plan, plan->embd_home));
    yk_text_put(t, "GG resident on the device, CC computed by the CPU in RAM, CG copied from RAM and computed by the device\n");
    if (copied)
        yk_text_put(t, "host, CG: attention is computed by the CPU when decoding, copied with its KV and computed by the "
                       "device in prefill\n");
}

static void put_memory(yk_text *t, const yk_plan *plan, const yk_shape *shape, const yk_plan_limits *limits)
{
    uint64_t m[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES];
    yk_plan_memory(plan, shape, limits, m);
    yk_text_put(t, "\nMiB        weights        kv  staging  activation  runtime     total   budget\n");
    for (uint32_t p = 0; p <= plan->n_devices; p++) {
        double v[YK_MEM_N_CLASSES], sum = 0;
        for (int c = 0; c < YK_MEM_N_CLASSES; c++) {
            v[c] = (double)m[p][c] / 0x1p20;
            sum += v[c];
        }
        yk_text_put(t, "%-10s %7.0f %9.0f %8.0f %11.0f %8.0f %9.0f", yk_plan_home_name(plan, (int)p - 1), v[YK_MEM_WEIGHTS],
                    v[YK_MEM_KV], v[YK_MEM_STAGING], v[YK_MEM_ACTIVATION], v[YK_MEM_RUNTIME], sum);
        for (uint32_t d = 0; p && d < limits->n_devices; d++)
            if (strcmp(limits->devices[d].name, plan->devices[p - 1]) == 0)
                yk_text_put(t, " %8.0f", (double)limits->devices[d].budget_bytes / 0x1p20);
        yk_text_put(t, "\n");
    }
}

static void put_bounds(yk_text *t, const yk_plan_speed *s)
{
    static const struct {
        const char *name, *decode, *prefill;
    } words[YK_PLAN_N_BOUNDS] = {{"cpu", "CPU reads", "the CPU"},
                                 {"gpu", "the GPU", "the GPU"},
                                 {"link", "the link", "the link"},
                                 {"hand-off", "handing over", "handing over"}};
    yk_text_put(t, "\n");
    for (int phase = 0; phase < 2; phase++) {
        const char *word = s->bound[phase];
        bool any = false;
        for (int k = 0; k < YK_PLAN_N_BOUNDS; k++)
            if (strcmp(s->bound[phase], words[k].name) == 0)
                word = phase ? words[k].prefill : words[k].decode;
        if (!*word)
            continue;
        yk_text_put(t, "%s is bound by %s: %.0f %% of the %s", phase ? "prefill" : "decode", word, 100 * s->bound_share[phase],
                    phase ? "time" : "token");
        for (int k = 0; k < YK_PLAN_N_BOUNDS; k++)
            if (strcmp(s->bound[phase], words[k].name) != 0 && s->share[phase][k] >= 0.005) {
                yk_text_put(t, "%s%s %.0f %%", any ? ", " : " (", words[k].name, 100 * s->share[phase][k]);
                any = true;
            }
        yk_text_put(t, "%s\n", any ? ")" : "");
    }
}

static void put_help(yk_text *t, const yk_plan_speed *s)
{
    for (uint32_t i = 0; i < s->n_help; i++) {
        const yk_plan_help *h = &s->help[i];
        const double d = h->decode_tps / s->decode_tps[0].value, p = h->prefill_tps / s->prefill_tps[0].value;
        yk_text_put(t, "%s would give decode %.3g tok/s (%+.1f %%), prefill %.4g (%+.1f %%)\n", h->name, h->decode_tps,
                    100 * (d - 1), h->prefill_tps, 100 * (p - 1));
    }
}

static void put_assign(yk_text *t, const yk_plan *plan, const yk_plan_limits *limits)
{
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        const yk_plan_assign *a = &plan->layers[l].assign;
        if (!a->given)
            continue;
        const int c = yk_chunk_of(limits->batch);
        yk_text_put(t, "layer %u: over the link go %.0f %% of the misses at 1 token, %.0f %% at 17-32, %.0f %% in prefill", l,
                    100 * a->link_share[YK_B_1], 100 * a->link_share[YK_B_32], 100 * a->link_share[YK_B_PREFILL + c]);
        if (a->break_even_tokens > 0)
            yk_text_put(t, "; copying pays from %.0f tokens", a->break_even_tokens);
        yk_text_put(t, "\n");
        return;
    }
}

static void put_speed(yk_text *t, const yk_plan *plan)
{
    const yk_plan_speed *s = &plan->speed;
    if (!plan->predicted) {
        yk_text_put(t, "\nspeed      not predicted: the plan was given, not made\n");
        return;
    }
    yk_text_put(t, "\npredicted  decode");
    for (uint32_t i = 0; i < s->n_depths; i++)
        yk_text_put(t, "%s %.3g tok/s at %u", i ? "," : "", s->decode_tps[i].value, s->decode_tps[i].at);
    if (s->n_depths) {
        yk_text_put(t, "; together");
        for (int b = 1; b < YK_B_PREFILL; b++)
            yk_text_put(t, "%s %.3g with %u", b > 1 ? "," : "", s->batch_tps[b][0].value, yk_bucket_tokens((yk_bucket)b));
        yk_text_put(t, " sequences\n");
    } else
        yk_text_put(t, "\n");
    for (uint32_t i = 0; i < s->n_chunks; i++)
        yk_text_put(t, "%s %.4g tok/s in chunks of %u", i ? "," : "           prefill", s->prefill_tps[i].value,
                    s->prefill_tps[i].at);
    yk_text_put(t, "%s", s->n_chunks ? "\n" : "");
    for (uint32_t i = 0; i < s->n_prompts; i++)
        yk_text_put(t, "%s of %u after %.3g s", i ? "," : "           first token: prompt", s->ttft_ms[i].at,
                    s->ttft_ms[i].value / 1e3);
    yk_text_put(t, "%s", s->n_prompts ? "\n" : "");
    put_bounds(t, s);
    put_help(t, s);
    if (plan->n_alternatives)
        yk_text_put(t, "\nwhy not                        decode   prefill tok/s   (same model of the machine, same budget)\n");
    for (uint32_t i = 0; i < plan->n_alternatives; i++) {
        const yk_alternative *a = &plan->alternatives[i];
        if (a->decode_tps > 0)
            yk_text_put(t, "  %-26s %8.3g %10.4g\n", a->name, a->decode_tps, a->prefill_tps);
        else
            yk_text_put(t, "  %-26s does not fit\n", a->name);
    }
}

yk_status yk_plan_explain_text(const yk_plan *plan, const yk_shape *shape, const yk_machine *machine,
                               const yk_plan_limits *limits, char **out, size_t *n_bytes, yk_error *err)
{
    yk_text t = {0};
    double all = (double)shape->embd.bytes + (shape->tied ? 0 : (double)shape->head.bytes);
    for (uint32_t l = 0; l < shape->n_layers; l++)
        all += (double)yk_shape_attn_bytes(&shape->layers[l]) + (double)yk_shape_ffn_bytes(&shape->layers[l]);
    yk_text_put(&t, "plan %s: %s, %u layers, %.2f GiB of weights; context %u, %u sequence%s, KV %u bytes an element\n",
                plan->plan_id, shape->name, shape->n_layers, all / 0x1p30, limits->context, limits->max_seqs,
                limits->max_seqs == 1 ? "" : "s", limits->kv_elem_bytes);
    if (machine) {
        yk_text_put(&t, "on %s: CPU reads %.3g GB/s", *machine->cpu ? machine->cpu : "this machine",
                    machine->rates.read_bytes_per_s / 1e9);
        for (uint32_t i = 0; i < machine->n_devices; i++)
            yk_text_put(&t, "; %s %s, link %.3g GB/s", machine->devices[i].name, machine->devices[i].description,
                        machine->devices[i].to_device_bytes_per_s / 1e9);
        yk_text_put(&t, "%s\n", machine->noisy ? " (noisy: the measurements did not settle)" : "");
    }
    if (*plan->note)
        yk_text_put(&t, "%s\n", plan->note);
    put_layers(&t, plan, shape);
    put_assign(&t, plan, limits);
    put_memory(&t, plan, shape, limits);
    put_speed(&t, plan);
    return yk_text_take(&t, out, n_bytes, "the explanation of a plan", err);
}
