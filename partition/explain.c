/* The plan in words, one screen: how fast it will be, what limits it, what would help, why nothing else was done, and what is where. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "partition/solve.h"
#include "partition/svg.h"
#include "partition/text.h"

enum { WIDTH = 100, DEFAULT_PROMPT = 512, DEFAULT_GEN = 128 };

/* Effects below this are none. */
#define FELT 0.005
/* So much faster without a flag is worth a line; formula and simulator may differ by less. */
#define WORTH_SAYING 0.05
/* RAM that is not the model's. */
#define ELSE_BYTES (2ull << 30)

static const char *number(char buf[YK_TEXT_NUMBER], double x)
{
    return yk_text_number(buf, x);
}

/* Words collected on one line, to be broken where the screen ends. */
typedef struct words {
    char text[1024];
    size_t n;
} words;

static void say(words *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(words *w, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    const int n = vsnprintf(w->text + w->n, sizeof w->text - w->n, fmt, ap);
    va_end(ap);
    w->n = n < 0 || (size_t)n >= sizeof w->text - w->n ? sizeof w->text - 1 : w->n + (size_t)n;
}

static void put_words(yk_text *t, const words *w, size_t width, int indent)
{
    yk_text_wrap(t, w->text, width, indent);
}

/* ---- RAM ---- */

static double weight_bytes(const yk_shape *shape)
{
    double all = (double)shape->embd.bytes + (shape->tied ? 0 : (double)shape->head.bytes);
    for (uint32_t l = 0; l < shape->n_layers; l++)
        all += (double)yk_shape_attn_bytes(&shape->layers[l]) + (double)yk_shape_ffn_bytes(&shape->layers[l]);
    return all;
}

static double all_classes(const uint64_t m[YK_MEM_N_CLASSES])
{
    double sum = 0;
    for (int c = 0; c < YK_MEM_N_CLASSES; c++)
        sum += (double)m[c];
    return sum;
}

void yk_plan_note_ram(yk_plan *plan, const yk_shape *shape, const yk_machine *machine, const yk_plan_limits *limits)
{
    uint64_t m[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES];
    const size_t at = strlen(plan->note);
    const double ram = (double)machine->memory_bytes, room = ram - (ram / 8 < ELSE_BYTES ? ram / 8 : (double)ELSE_BYTES);
    yk_plan_memory(plan, shape, limits, m);
    double need = all_classes(m[0]);
    for (uint32_t i = 0; i < plan->n_devices; i++) {
        const int d = yk_machine_find(machine, plan->devices[i]);
        if (d >= 0 && (machine->devices[d].shared_memory || machine->devices[d].same_silicon))
            need += all_classes(m[1 + i]);
    }
    if (ram <= 0 || need <= room)
        return;
    const double all = weight_bytes(shape), most = all - (need - room);
    char a[64] = "a smaller model";
    if (most > 0.1 * all)
        snprintf(a, sizeof a, "weights of at most %.1f GiB (these: %.1f)", most / 0x1p30, all / 0x1p30);
    snprintf(plan->note + at, sizeof plan->note - at,
             "%sRAM is too small: it has %.1f GiB, this takes %.1f and other programs some; what is missing comes from disk "
             "for every "
             "token, far slower than modelled here: use %s or %.0f GiB of RAM",
             at ? "; " : "", ram / 0x1p30, need / 0x1p30, a, (need + (double)ELSE_BYTES) / 0x1p30 + 0.5);
}

/* ---- speed ---- */

static void put_decode(yk_text *t, const yk_plan_speed *s, uint32_t seqs, size_t width)
{
    char b[YK_TEXT_NUMBER];
    words w = {.n = 0};
    for (uint32_t i = 0; i < s->n_depths; i++) {
        say(&w, i ? ", %s" : "decode   %s tok/s (modelled)", number(b, s->decode_tps[i].value));
        say(&w, i ? " at %u" : " at depth %u", s->decode_tps[i].at);
    }
    for (int k = 1; k < YK_B_PREFILL && s->n_depths && seqs > 1; k++) {
        say(&w, k > 1 ? ", %s" : "; together %s", number(b, s->batch_tps[k][0].value));
        say(&w, k > 1 ? " with %u" : " with %u sequences", yk_bucket_tokens((yk_bucket)k));
    }
    if (w.n)
        put_words(t, &w, width, 9);
}

static void put_prefill(yk_text *t, const yk_plan_speed *s, size_t width)
{
    char b[YK_TEXT_NUMBER];
    words w = {.n = 0};
    for (uint32_t i = 0; i < s->n_chunks; i++) {
        say(&w, i ? ", %s" : "prefill  %s tok/s (modelled)", number(b, s->prefill_tps[i].value));
        say(&w, i ? " of %u" : " in chunks of %u", s->prefill_tps[i].at);
    }
    for (uint32_t i = 0; i < s->n_prompts; i++) {
        say(&w, i ? ", %u" : "; prompt of %u", s->ttft_ms[i].at);
        const double ms = s->ttft_ms[i].value;
        say(&w, ms < 999.5 ? ": %s ms" : ": %s s", number(b, ms < 999.5 ? ms : ms / 1e3));
    }
    if (w.n)
        put_words(t, &w, width, 9);
}

/* Does more memory bandwidth help this phase more than a faster link? Then copies wait for memory, which the CPU reads, too. */
static bool link_waits_for_memory(const yk_plan_speed *s, bool prefill)
{
    double memory = 0, link = 0;
    for (uint32_t i = 0; i < s->n_help; i++) {
        const double v = prefill ? s->help[i].prefill_tps : s->help[i].decode_tps;
        memory = strstr(s->help[i].name, "memory bandwidth") ? v : memory;
        link = strstr(s->help[i].name, "of the link") ? v : link;
    }
    return link > 0 && memory > link;
}

static void put_bound(yk_text *t, const yk_plan_speed *s, bool prefill, size_t width)
{
    static const struct {
        const char *name, *decode, *prefill, *shown;
    } lanes[YK_PLAN_N_BOUNDS] = {{"cpu", "CPU reads", "the CPU", "CPU"},
                                 {"gpu", "the GPU", "the GPU", "GPU"},
                                 {"link", "the link", "the link", "link"},
                                 {"hand-off", "handing over", "handing over", "hand-off"}};
    const char *word = s->bound[prefill],
               *why = strcmp(word, "link") == 0 && link_waits_for_memory(s, prefill) ? " and RAM" : "";
    int percent[YK_PLAN_N_BOUNDS], most = (int)(100 * s->bound_share[prefill] + 0.5);
    words w = {.n = 0};
    bool any = false;
    if (!*word)
        return;
    yk_text_percents(s->share[prefill], YK_PLAN_N_BOUNDS, percent);
    for (int k = 0; k < YK_PLAN_N_BOUNDS; k++)
        if (strcmp(s->bound[prefill], lanes[k].name) == 0) {
            word = prefill ? lanes[k].prefill : lanes[k].decode;
            most = s->share[prefill][k] > 0 ? percent[k] : most;
        }
    say(&w, "  %s is bound by %s%s: %d %% of the %s", prefill ? "prefill" : "decode", word, why, most,
        prefill ? "time" : "token");
    for (int k = 0; k < YK_PLAN_N_BOUNDS; k++)
        if (strcmp(s->bound[prefill], lanes[k].name) != 0 && percent[k] > 0) {
            say(&w, "%s%s %d %%", any ? ", " : " (", lanes[k].shown, percent[k]);
            any = true;
        }
    say(&w, "%s", any ? ")" : "");
    put_words(t, &w, width, 4);
}

/* What helps this phase, most first; what does not when nothing does. */
static void put_help(yk_text *t, const yk_plan_speed *s, bool prefill, size_t width)
{
    double gain[YK_PLAN_MAX_HELP];
    uint32_t order[YK_PLAN_MAX_HELP], felt = 0;
    char b[YK_TEXT_NUMBER];
    words w = {.n = 0};
    const double now = prefill ? s->prefill_tps[0].value : s->decode_tps[0].value;
    for (uint32_t i = 0; i < s->n_help; i++) {
        uint32_t at = i;
        gain[i] = (prefill ? s->help[i].prefill_tps : s->help[i].decode_tps) / now - 1;
        for (; at > 0 && gain[order[at - 1]] < gain[i]; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    for (; felt < s->n_help && gain[order[felt]] >= FELT; felt++) {
        say(&w, felt ? ", %s" : "  %s would give", s->help[order[felt]].name);
        say(&w, felt ? " %s (%+.0f %%)" : " %s tok/s (%+.0f %%)", number(b, (1 + gain[order[felt]]) * now),
            100 * gain[order[felt]]);
    }
    for (uint32_t i = 0; i < s->n_help && !felt; i++)
        say(&w, "%s%s", !i ? "  no more with " : i + 1 < s->n_help ? ", " : " or ", s->help[order[i]].name);
    if (w.n)
        put_words(t, &w, width, 4);
}

static double request_s(const yk_alternative *a, const yk_plan_limits *limits)
{
    return (limits->prompt_tokens ? limits->prompt_tokens : DEFAULT_PROMPT) / a->prefill_tps +
           (limits->gen_tokens ? limits->gen_tokens : DEFAULT_GEN) / a->decode_tps;
}

/* Flags that bind the plan cost speed when something else makes a request faster. */
static void put_wishes(yk_text *t, const yk_plan *plan, const yk_plan_limits *limits)
{
    const yk_plan_wishes *wishes = &limits->wishes;
    const yk_alternative *a = plan->alternatives;
    const char *flags[4];
    uint32_t n = 0;
    bool faster = false;
    words w = {.n = 0};
    for (uint32_t i = 1; i < plan->n_alternatives; i++)
        faster = faster || (a[i].decode_tps > 0 && request_s(&a[i], limits) < (1 - WORTH_SAYING) * request_s(&a[0], limits));
    if (wishes->ngl_given)
        flags[n++] = "-ngl";
    if (wishes->ncmoe)
        flags[n++] = "-ncmoe";
    if (wishes->nkvo)
        flags[n++] = "-nkvo";
    if (wishes->n_overrides)
        flags[n++] = "-ot";
    for (uint32_t i = 0; i < n && faster; i++)
        say(&w, "%s%s", i ? i + 1 < n ? ", " : " and " : "  ", flags[i]);
    if (w.n) {
        say(&w, " %s this plan slower than it could be: leave %s out", n > 1 ? "make" : "makes", n > 1 ? "them" : "it");
        put_words(t, &w, WIDTH, 4);
    }
}

static void put_alternatives(yk_text *t, const yk_plan *plan, const yk_plan_limits *limits)
{
    char head[96], b[2][YK_TEXT_NUMBER];
    const yk_alternative *a = plan->alternatives;
    const bool simulated = plan->n_alternatives && strcmp(a->name, "this plan") == 0;
    const double decode = simulated ? a->decode_tps : plan->speed.decode_tps[0].value,
                 prefill = simulated ? a->prefill_tps : plan->speed.prefill_tps[0].value;
    if (!plan->n_alternatives)
        return;
    snprintf(head, sizeof head, simulated ? "simulated, depth %u, prompt %u" : "same model of the machine, depth 0",
             limits->context / 2, limits->prompt_tokens ? limits->prompt_tokens : DEFAULT_PROMPT);
    yk_text_put(t, "\nwhy not (modelled, tok/s)       decode           prefill          %s\n", head);
    for (uint32_t i = 0; i < plan->n_alternatives; i++) {
        if (i == 0 && simulated) {
            yk_text_put(t, "  %-28s %7s %17s\n", a[i].name, number(b[0], a[i].decode_tps), number(b[1], a[i].prefill_tps));
            continue;
        }
        if (!(a[i].decode_tps > 0)) {
            yk_text_put(t, "  %-28s does not fit\n", a[i].name);
            continue;
        }
        yk_text_put(t, "  %-28s %7s  %4.2fx %10s  %4.2fx\n", a[i].name, number(b[0], a[i].decode_tps), a[i].decode_tps / decode,
                    number(b[1], a[i].prefill_tps), a[i].prefill_tps / prefill);
    }
}

void yk_plan_put_speed(yk_text *t, const yk_plan *plan, const yk_plan_limits *limits, size_t width)
{
    const yk_plan_speed *s = &plan->speed;
    if (!plan->predicted) {
        yk_text_put(t, "speed not predicted: the plan was given, not made\n");
        return;
    }
    put_decode(t, s, limits->max_seqs, width);
    if (s->n_depths) {
        put_bound(t, s, false, width);
        put_help(t, s, false, width);
    }
    put_prefill(t, s, width);
    if (s->n_chunks) {
        put_bound(t, s, true, width);
        put_help(t, s, true, width);
    }
}

/* ---- what is where ---- */

static void put_assign(yk_text *t, const yk_plan *plan, const yk_shape *shape)
{
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        const yk_plan_assign *a = &plan->layers[l].assign;
        if (!a->given || !(a->break_even_tokens > 0))
            continue;
        yk_text_put(t, "copying to the device pays from %.0f tokens%s\n", a->break_even_tokens,
                    shape->layers[l].part[YK_PART_EXP].n ? " of an expert" : "");
        return;
    }
}

static void put_memory(yk_text *t, const yk_plan *plan, const yk_shape *shape, const yk_machine *machine,
                       const yk_plan_limits *limits)
{
    uint64_t m[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES];
    yk_plan_memory(plan, shape, limits, m);
    yk_text_put(t, "\nMiB          weights      KV  staging  activations  runtime    total   budget\n");
    for (uint32_t p = 0; p <= plan->n_devices; p++) {
        double v[YK_MEM_N_CLASSES];
        for (int c = 0; c < YK_MEM_N_CLASSES; c++)
            v[c] = (double)m[p][c] / 0x1p20;
        yk_text_put(t, "%-11s %8.0f %7.0f %8.0f %12.0f %8.0f %8.0f", yk_plan_home_name(plan, (int)p - 1), v[YK_MEM_WEIGHTS],
                    v[YK_MEM_KV], v[YK_MEM_STAGING], v[YK_MEM_ACTIVATION], v[YK_MEM_RUNTIME], all_classes(m[p]) / 0x1p20);
        for (uint32_t d = 0; p && d < limits->n_devices; d++)
            if (strcmp(limits->devices[d].name, plan->devices[p - 1]) == 0)
                yk_text_put(t, " %8.0f", (double)limits->devices[d].budget_bytes / 0x1p20);
        if (!p && machine && machine->memory_bytes)
            yk_text_put(t, " %8.0f (RAM)", (double)machine->memory_bytes / 0x1p20);
        yk_text_put(t, "\n");
    }
    if (limits->kept_bytes)
        yk_text_put(t, "policy adaptive: experts of the device may change, the host keeps these too, %.1f MiB more\n",
                    (double)limits->kept_bytes / 0x1p20);
}

void yk_plan_put_head(yk_text *t, const yk_plan *plan, const yk_shape *shape, const yk_machine *machine,
                      const yk_plan_limits *limits, size_t width)
{
    char b[YK_TEXT_NUMBER];
    words w = {.n = 0};
    const double all = weight_bytes(shape);
    say(&w, all < 0x1p30 ? "plan %s: %s, %u layers, %.1f MiB" : "plan %s: %s, %u layers, %.2f GiB", plan->plan_id, shape->name,
        shape->n_layers, all < 0x1p30 ? all / 0x1p20 : all / 0x1p30);
    say(&w, "; context %u, %u sequence%s, KV %s", limits->context, limits->max_seqs, limits->max_seqs == 1 ? "" : "s",
        limits->kv_elem_bytes == 4 ? "F32" : "F16");
    put_words(t, &w, width, 2);
    if (machine) {
        w = (words){.n = 0};
        say(&w, "on %s: CPU reads %s GB/s", *machine->cpu ? machine->cpu : "this machine",
            number(b, machine->rates.read_bytes_per_s / 1e9));
        for (uint32_t i = 0; i < machine->n_devices; i++)
            say(&w, "; %s %s, link %s GB/s", machine->devices[i].name, machine->devices[i].description,
                number(b, machine->devices[i].to_device_bytes_per_s / 1e9));
        say(&w, "%s", machine->noisy ? " (noisy: the measurements did not settle)" : "");
        put_words(t, &w, width, 2);
    }
    if (*plan->note)
        yk_text_wrap(t, plan->note, width, 2);
}

yk_status yk_plan_explain_text(const yk_plan *plan, const yk_shape *shape, const yk_machine *machine,
                               const yk_plan_limits *limits, bool colour, char **out, size_t *n_bytes, yk_error *err)
{
    yk_text t = {0};
    char *strips = NULL;
    YK_TRY(yk_plan_strips(plan, shape, colour, &strips, NULL, err));
    yk_plan_put_head(&t, plan, shape, machine, limits, WIDTH);
    yk_text_put(&t, "\n");
    yk_plan_put_speed(&t, plan, limits, WIDTH);
    put_alternatives(&t, plan, limits);
    put_wishes(&t, plan, limits);
    put_memory(&t, plan, shape, machine, limits);
    yk_text_put(&t, "\n%s", strips);
    put_assign(&t, plan, shape);
    yk_free(strips);
    return yk_text_take(&t, out, n_bytes, "the explanation of a plan", err);
}
