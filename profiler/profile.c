/* profile.c - the order of measurements, and the CPU's part of the machine. */
#include "profiler/profile.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "src/base/clock.h"
#include "src/base/mem.h"

enum {
    QUICK_MS = 3000,
    FULL_MS = 30000,
    CANARY_MS = 130,
    AGAIN_MS = 100,
    CYCLES = 4,
    PREFILL_TOKENS = 64, /* steps of so many are cut as prompts are */
    CANARY_BYTES = 128 << 20
};

/* ---- items --------------------------------------------------------------------------------------------------------------------------- */

yk_item *yk_profile_item(yk_profile_run *r, const char *fmt, ...)
{
    if (r->n_items == r->cap_items) {
        const uint32_t cap = r->cap_items ? 2 * r->cap_items : 32;
        yk_item *more = yk_realloc(YK_MEM_RUNTIME, r->items, cap, sizeof *more);
        if (!more)
            return NULL;
        r->items = more;
        r->cap_items = cap;
    }
    yk_item *it = &r->items[r->n_items++];
    *it = (yk_item){.weight = 1};
    va_list args;
    va_start(args, fmt);
    vsnprintf(it->name, sizeof it->name, fmt, args);
    va_end(args);
    return it;
}

yk_status yk_profile_tell(const yk_profile_run *r, yk_error *err)
{
    if (!r->o->progress)
        return YK_OK;
    const uint64_t now = yk_now_ns(), length = r->deadline_ns - r->stage_begin_ns;
    double share = length ? (double)(now - r->stage_begin_ns) / (double)length : 1;
    share = (r->stage + fmin(share, 1)) / r->n_stages;
    if (!r->o->progress(r->o->progress_user, "measuring the machine", (uint64_t)(1000 * share), 1000))
        return yk_fail(err, YK_ERR_CANCELLED, "cancelled while measuring the machine");
    return YK_OK;
}

/* The first look: sizes that let an item be measured a few times in its time. */
static yk_status open_item(yk_item *it, double budget_ns, yk_error *err)
{
    yk_pass p;
    double cycle = 0, f;
    it->opened = true;
    YK_TRY(it->pass(it, it->fixed || it->drop ? it->x[0] : it->least, &p, err)); /* warms the code */
    if (it->fixed)
        return YK_OK;
    for (uint32_t i = 0; i < it->n_x && it->drop; i++) {
        YK_TRY(it->pass(it, it->x[i], &p, err));
        cycle += (double)(p.end_ns - p.begin_ns);
        if (i >= 2 && cycle * CYCLES > budget_ns)
            it->n_x = i;
    }
    if (it->drop)
        return YK_OK;
    /* From the smallest size up, until it is clear what the others take. */
    for (double x = it->least, sum = 0;; x = fmin(4 * x, it->x[0]), sum = 0) {
        YK_TRY(it->pass(it, x, &p, err));
        for (uint32_t i = 0; i < it->n_x; i++)
            sum += it->x[i] / x;
        cycle = (double)(p.end_ns - p.begin_ns);
        f = budget_ns / (CYCLES * cycle * sum);
        if (f >= 1 || x >= it->x[0] || cycle > budget_ns / 16)
            break;
    }
    f = fmax(f, it->least / it->x[0]);
    for (uint32_t i = 0; i < it->n_x && f < 1; i++)
        it->x[i] *= f;
    return YK_OK;
}

static yk_status visit(const yk_profile_run *r, yk_item *it, double budget_ns, uint32_t round, yk_error *err)
{
    const uint64_t begin = yk_now_ns();
    if (!it->opened)
        YK_TRY(open_item(it, budget_ns, err));
    for (uint32_t cycle = 0;; cycle++) {
        YK_TRY(yk_profile_tell(r, err));
        for (uint32_t i = 0; i < it->n_x; i++) {
            yk_pass p = {.company = YK_COMPANY_UNKNOWN};
            YK_TRY(it->pass(it, it->x[i], &p, err));
            yk_samples_add_pass(&it->s, p.x, (double)(p.end_ns - p.begin_ns), round, p.company);
        }
        yk_fit_line(&it->s, it->proportional, &it->line);
        if ((cycle + 1 >= YK_FIT_LEAST && it->line.settled) || (double)(yk_now_ns() - begin) >= budget_ns)
            return YK_OK;
    }
}

/* One visit to the items (those that have not settled, when `rest`); `rounds`: visits that share the time left. */
static yk_status visit_all(const yk_profile_run *r, uint32_t round, uint32_t rounds, bool rest, yk_error *err)
{
    double weight = 0, all = 0;
    for (uint32_t i = 0; i < r->n_items; i++) {
        all += r->items[i].weight;
        weight += rest && r->items[i].line.settled ? 0 : r->items[i].weight;
    }
    for (uint32_t i = 0; i < r->n_items; i++) {
        yk_item *it = &r->items[i];
        if (rest && it->line.settled)
            continue;
        const uint64_t now = yk_now_ns();
        const double left = r->deadline_ns > now ? (double)(r->deadline_ns - now) : 0;
        if (left == 0 && (it->s.n || it->optional))
            continue;
        YK_TRY(visit(r, it, left * it->weight / (weight + all * (rounds - 1)), round, err));
        weight -= it->weight;
    }
    return YK_OK;
}

yk_status yk_profile_items(yk_profile_run *r, yk_error *err)
{
    YK_TRY(visit_all(r, 0, 2, false, err));
    YK_TRY(visit_all(r, 1, 1, false, err));
    for (bool more = true; more && yk_now_ns() < r->deadline_ns;) {
        more = false;
        for (uint32_t i = 0; i < r->n_items; i++)
            more = more || !r->items[i].line.settled;
        if (more)
            YK_TRY(visit_all(r, 1, 1, true, err));
    }
    for (uint32_t i = 0; i < r->n_items; i++)
        yk_profile_take(r, &r->items[i]);
    return YK_OK;
}

void yk_profile_take(yk_profile_run *r, const yk_item *it)
{
    const yk_line *l = &it->line;
    if (it->to && l->n)
        *it->to = (yk_fit){.ns = l->ns, .per_s = l->per_s, .best_per_s = l->best_per_s, .spread = l->spread};
    if (it->quiet || l->settled)
        return;
    yk_machine *m = r->m;
    const double most = fmax(fmax(l->interval, l->drift), l->spread);
    const size_t at = strlen(m->noisy_items);
    char text[96];
    const int n = snprintf(text, sizeof text, "%s%s %.0f %%", at ? ", " : "", it->name, fmin(100 * most, 999));
    m->noisy = true;
    if (n > 0 && at + (size_t)n < sizeof m->noisy_items)
        memcpy(m->noisy_items + at, text, (size_t)n + 1);
}

bool yk_profile_wants(const yk_profile_opts *o, uint32_t n_tokens)
{
    return !o->quick || n_tokens == 1 || n_tokens == 8 || n_tokens == 64 || n_tokens == YK_PROFILE_TOKENS;
}

/* Seconds per byte at n tokens, off the straight lines between what was measured. */
static double at_tokens(const double *n, const double *s, uint32_t n_points, double x)
{
    uint32_t i = 1;
    while (i < n_points - 1 && x > n[i])
        i++;
    if (n_points == 1 || x <= n[0])
        return s[0];
    return x >= n[i] ? s[i] * x / n[i] : s[i - 1] + (s[i] - s[i - 1]) * (x - n[i - 1]) / (n[i] - n[i - 1]);
}

void yk_profile_fill_buckets(double product[YK_N_BUCKETS], const yk_fit fits[YK_FIT_TOKENS])
{
    double n[YK_FIT_TOKENS], s[YK_FIT_TOKENS];
    uint32_t k = 0;
    for (uint32_t i = 0; i < YK_FIT_TOKENS; i++) {
        if (!(fits[i].per_s > 0))
            continue;
        n[k] = yk_fit_tokens(i);
        s[k] = 1 / fits[i].per_s;
        if (k && s[k] < s[k - 1]) /* more tokens never take less time */
            s[k] = s[k - 1];
        k++;
    }
    if (!k)
        return;
    for (int b = 0; b < YK_B_PREFILL; b++)
        product[b] = 1 / at_tokens(n, s, k, yk_bucket_tokens((yk_bucket)b));
    product[YK_B_PREFILL] = n[k - 1] / s[k - 1];
}

/* ---- the CPU ------------------------------------------------------------------------------------------------------------------------- */

static yk_status pass_read(yk_item *it, double x, yk_pass *out, yk_error *err)
{
    const yk_profile_cpu *cpu = it->lane;
    (void)x;
    return cpu->read(cpu->self, it->which, out, err);
}

static yk_status pass_product(yk_item *it, double x, yk_pass *out, yk_error *err)
{
    const yk_profile_cpu *cpu = it->lane;
    return cpu->product(cpu->self, &(yk_profile_work){it->type, it->n, it->step_tokens, it->down_units}, (uint64_t)x, out, err);
}

static yk_status pass_attention(yk_item *it, double x, yk_pass *out, yk_error *err)
{
    const yk_profile_cpu *cpu = it->lane;
    return cpu->attention(cpu->self, it->n, (uint32_t)(x + 0.5), it->which, out, err);
}

static yk_status pass_rows(yk_item *it, double x, yk_pass *out, yk_error *err)
{
    const yk_profile_cpu *cpu = it->lane;
    YK_TRY(cpu->rows(cpu->self, (uint32_t)(x + 0.5), out, err));
    if (x < 2)
        out->x = YK_PROFILE_ROW_STAGES;
    return YK_OK;
}

/* Where there are many tokens the fixed cost does not count, and one size tells the rate. */
static yk_item *product_item(yk_profile_run *r, const yk_profile_work *w)
{
    char few[24] = "", down[24] = "";
    if (w->step_tokens != w->n_tokens)
        snprintf(few, sizeof few, " of %u", w->step_tokens);
    if (w->down_units)
        snprintf(down, sizeof down, ".down.%u", w->down_units);
    yk_item *it = yk_profile_item(r, "cpu.%s.%u%s%s", yk_type_get(w->type)->name, w->n_tokens, few, down);
    const double unit = (double)r->cpu->unit_bytes(r->cpu->self, w->type);
    const bool many = w->step_tokens >= PREFILL_TOKENS;
    if (!it)
        return NULL;
    it->pass = pass_product;
    it->lane = (void *)r->cpu;
    it->type = w->type;
    it->n = w->n_tokens;
    it->step_tokens = w->step_tokens;
    it->down_units = w->down_units;
    it->n_x = many ? 1 : 2;
    it->proportional = many;
    it->x[0] = many && !w->down_units ? 4 * unit : many ? 8 * unit : w->down_units ? 2 * unit : unit;
    it->x[1] = 8 * unit;
    it->least = unit / 16;
    it->weight = w->n_tokens > 8 ? 2 : 1;
    return it;
}

static bool add_reads(yk_profile_run *r)
{
    yk_machine *m = r->m;
    for (uint32_t i = 0; i < r->cpu->n_reads; i++) {
        const yk_read_rate *way = &r->cpu->reads[i];
        yk_item *it = yk_profile_item(r, "cpu.read.%u.%s", way->threads, way->page_bytes > 4096 ? "huge" : "4K");
        if (!it)
            return false;
        m->reads[i] = *way;
        m->n_reads = i + 1;
        it->pass = pass_read;
        it->lane = (void *)r->cpu;
        it->which = i;
        it->n_x = 1;
        it->x[0] = 1;
        it->fixed = it->proportional = true;
        it->to = &m->reads[i].fit;
    }
    return true;
}

/* For heads of each width, one token and a prompt; [0] of the fits is one token. */
static bool add_attention(yk_profile_run *r, yk_fit fits[2][YK_HEAD_DIMS])
{
    for (uint32_t k = 0; k < 2 * YK_HEAD_DIMS; k++) {
        const uint32_t dim = yk_head_dim(k / 2);
        yk_item *it = yk_profile_item(r, "cpu.attention.%u%s", dim, k % 2 ? ".prefill" : "");
        if (!it)
            return false;
        it->pass = pass_attention;
        it->lane = (void *)r->cpu;
        it->n = k % 2 ? PREFILL_TOKENS : 1;
        it->which = dim;
        it->n_x = r->o->quick ? 2 : 3;
        for (uint32_t i = 0; i < it->n_x; i++)
            it->x[i] = 256u << 2 * i;
        it->least = 16;
        it->to = &fits[k % 2][k / 2];
    }
    return true;
}

/* Stages with one row each, whose time is that of a stage (fit: stages a second), and with many. */
static bool add_rows(yk_profile_run *r, yk_fit *stage, yk_fit *rows)
{
    for (int k = 0; k < 2 && r->cpu->rows; k++) {
        yk_item *it = yk_profile_item(r, k ? "cpu.rows" : "cpu.stage");
        if (!it)
            return false;
        it->pass = pass_rows;
        it->lane = (void *)r->cpu;
        it->n_x = 1;
        it->x[0] = k ? YK_PROFILE_TOKENS : 1;
        it->fixed = it->proportional = true;
        it->to = k ? rows : stage;
    }
    return true;
}

/* What is not taken from fits as they are. */
typedef struct cpu_fits {
    yk_fit few[YK_TYPE_LIMIT][YK_PROMPT_POINTS], down[YK_TYPE_LIMIT][YK_DOWN_POINTS], attention[2][YK_HEAD_DIMS], stage, rows;
} cpu_fits;

static bool wants_down(const yk_profile_opts *o, yk_type type, uint32_t units)
{
    return units < yk_down_units(0) ? o->narrow[type] : o->down[type];
}

static bool add_product(yk_profile_run *r, const yk_profile_work *w, yk_fit *to)
{
    yk_item *it = product_item(r, w);
    if (!it)
        return false;
    it->to = to;
    /* What was asked for is measured, however little time there is: it would be missing at each start. */
    it->optional =
        w->down_units ? !wants_down(r->o, w->type, w->down_units) : w->step_tokens != w->n_tokens && !r->o->few[w->type];
    return true;
}

/* Products of a type in steps of so many tokens. */
static bool add_steps(yk_profile_run *r, yk_type type)
{
    bool room = true;
    for (uint32_t i = 0; i < YK_FIT_TOKENS && room; i++) {
        const uint32_t n = yk_fit_tokens(i);
        if (yk_profile_wants(r->o, n))
            room = add_product(r, &(yk_profile_work){type, n, n, 0}, &r->m->rates.product_fit[type][i]);
    }
    return room;
}

/* Few tokens of a prompt, and down. */
static bool add_parts(yk_profile_run *r, yk_type type, cpu_fits *f)
{
    const yk_profile_opts *o = r->o;
    bool room = true;
    for (uint32_t i = 0; i < YK_DOWN_POINTS && room; i++)
        if (!o->quick || wants_down(o, type, yk_down_units(i)))
            room = add_product(r, &(yk_profile_work){type, yk_down_tokens(i), yk_down_tokens(i), yk_down_units(i)},
                               &f->down[type][i]);
    for (uint32_t i = 0; i < YK_PROMPT_POINTS && room && (o->few[type] || !o->quick); i++)
        if (i != 2 && yk_prompt_tokens(i) < YK_PROFILE_TOKENS)
            room = add_product(r, &(yk_profile_work){type, yk_prompt_tokens(i), YK_PROFILE_TOKENS, 0}, &f->few[type][i]);
    return room;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Rates in prompts: where whole steps have as many tokens, theirs; but 64 are whole groups, which flatters what has 26 and 122. */
static void take_prompt(double prompt[YK_PROMPT_POINTS], const yk_fit few[YK_PROMPT_POINTS], const yk_fit fits[YK_FIT_TOKENS])
{
    for (uint32_t i = 0; i < YK_PROMPT_POINTS; i++) {
        prompt[i] = few[i].per_s;
        for (uint32_t k = 0; k < YK_FIT_TOKENS; k++)
            if (yk_fit_tokens(k) == yk_prompt_tokens(i) && yk_prompt_tokens(i) >= PREFILL_TOKENS &&
                (i > 2 || !(few[1].per_s > 0 && few[3].per_s > 0)))
                prompt[i] = fits[k].per_s;
    }
}

static void take_steps(yk_rates *rates, const cpu_fits *f)
{
    for (uint32_t i = 0; i < YK_HEAD_DIMS; i++) {
        rates->head_kv_bytes_per_s[i] = f->attention[0][i].per_s;
        rates->head_flops_per_s[i] = f->attention[1][i].per_s;
        if (yk_head_dim(i) == YK_PROFILE_HEAD_DIM) {
            rates->attention_fit = f->attention[0][i];
            rates->attention_flops_per_s = f->attention[1][i].per_s;
        }
    }
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
        take_prompt(rates->prompt[t], f->few[t], rates->product_fit[t]);
        for (uint32_t i = 0; i < YK_DOWN_POINTS; i++)
            rates->down[t][i] = f->down[t][i].per_s;
    }
    rates->stage_ns = f->stage.per_s > 0 ? 1e9 / f->stage.per_s : 0;
    rates->row_bytes_per_s = f->rows.per_s;
}

static void take_cpu(yk_machine *m)
{
    yk_rates *rates = &m->rates;
    double fixed[YK_TYPE_LIMIT];
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->n_reads; i++)
        rates->read_bytes_per_s = fmax(rates->read_bytes_per_s, m->reads[i].fit.per_s);
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
        yk_profile_fill_buckets(rates->product[t], rates->product_fit[t]);
        /* products read memory too: the larger of both is what it gives */
        rates->read_bytes_per_s = fmax(rates->read_bytes_per_s, rates->product[t][0]);
        if (rates->product_fit[t][0].per_s > 0)
            fixed[n++] = rates->product_fit[t][0].ns;
    }
    qsort(fixed, n, sizeof *fixed, by_value);
    rates->fixed_ns = n ? fixed[n / 2] : 0;
}

static yk_status measure_cpu(yk_profile_run *r, yk_error *err)
{
    cpu_fits *fits = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *fits);
    bool room = fits && add_reads(r) && add_attention(r, fits->attention) && add_rows(r, &fits->stage, &fits->rows);
    for (uint32_t t = 0; room && t < 2 * YK_TYPE_LIMIT; t++) {
        const yk_type type = (yk_type)(t % YK_TYPE_LIMIT);
        if (r->o->types[type] && r->cpu->has(r->cpu->self, type))
            room = t < YK_TYPE_LIMIT ? add_steps(r, type) : add_parts(r, type, fits);
    }
    yk_status st = room ? YK_OK : yk_fail_memory(err, r->n_items * sizeof *r->items + sizeof *fits, "measuring the CPU");
    if (st == YK_OK)
        st = yk_profile_items(r, err);
    if (st == YK_OK) {
        take_steps(&r->m->rates, fits);
        take_cpu(r->m);
    }
    yk_free(fits);
    return st;
}

/* ---- the machine --------------------------------------------------------------------------------------------------------------------- */

static yk_status identify(yk_machine *m, const yk_profile_opts *o, yk_error *err)
{
    yk_cpu_info cpu;
    *m = (yk_machine){.threads = o->threads};
    YK_TRY(yk_get_cpu_info(&cpu, err));
    snprintf(m->cpu, sizeof m->cpu, "%s", cpu.name);
    snprintf(m->isa, sizeof m->isa, "%s", yk_isa_name(o->isa));
    if (o->build)
        snprintf(m->build, sizeof m->build, "%s", o->build);
    else
        snprintf(m->build, sizeof m->build, "yoke %s", yk_version());
    if (gethostname(m->host, sizeof m->host - 1) != 0)
        m->host[0] = 0;
    const time_t now = time(NULL);
    struct tm utc;
    if (gmtime_r(&now, &utc))
        strftime(m->time, sizeof m->time, "%Y-%m-%dT%H:%M:%SZ", &utc);
    m->memory_bytes = cpu.memory_bytes;
    return YK_OK;
}

/* A stage gets its part of the time that is left; an eighth is kept for what cannot be cut short. */
static void begin_stage(yk_profile_run *r, uint32_t stage, uint64_t end_ns)
{
    const uint64_t now = yk_now_ns();
    r->stage = stage;
    r->stage_begin_ns = now;
    r->deadline_ns = now + (end_ns > now ? (end_ns - now) / (r->n_stages - stage) : 0);
    r->n_items = 0;
}

static yk_status measure_devices(yk_profile_run *r, uint64_t end_ns, yk_error *err)
{
    yk_modules *modules;
    const yk_modules_opts mo = {.null_options = r->o->null_options};
    YK_TRY(yk_modules_load(&modules, &mo, err));
    yk_status st = YK_OK;
    for (uint32_t i = 0; i < r->o->n_devices && st == YK_OK; i++) {
        char backend[YK_DEVICE_NAME];
        snprintf(backend, sizeof backend, "%s", r->o->devices[i]);
        char *colon = strchr(backend, ':');
        const uint32_t index = colon ? (uint32_t)strtoul(colon + 1, NULL, 10) : 0;
        if (colon)
            *colon = 0;
        const yk_backend *found = yk_modules_find(modules, backend);
        begin_stage(r, i + 1, end_ns);
        if (!found || index >= found->n_devices)
            st = yk_fail(err, YK_ERR_USAGE, "device %s is not there; see yoke devices", r->o->devices[i]);
        else
            st = yk_profile_device(r, found, index, err);
    }
    yk_modules_close(&modules);
    return st;
}

yk_status yk_profile(yk_machine *out, const yk_profile_opts *o, yk_error *err)
{
    yk_profile_cpu own;
    yk_cpu_bench *bench = NULL;
    yk_profile_run r = {.o = o, .m = out, .cpu = o->cpu ? o->cpu : &own, .begin_ns = yk_now_ns(), .n_stages = 1 + o->n_devices};
    const uint64_t end_ns = r.begin_ns + (o->ms ? o->ms : o->quick ? QUICK_MS : FULL_MS) * 870000ull;
    yk_status st;
    YK_TRY(identify(out, o, err));
    if (!o->cpu)
        YK_TRY(yk_cpu_bench_open(&bench, &own, o, 0, err));
    begin_stage(&r, 0, end_ns);
    st = measure_cpu(&r, err);
    if (st == YK_OK && o->n_devices)
        st = measure_devices(&r, end_ns, err);
    yk_cpu_bench_close(&bench);
    yk_free(r.items);
    if (o->progress && st == YK_OK)
        o->progress(o->progress_user, "measuring the machine", 1000, 1000);
    return st;
}

/* ---- does it still hold? ------------------------------------------------------------------------------------------------------------- */

static double known_rate(const yk_machine *m, yk_type type)
{
    const yk_fit *f = &m->rates.product_fit[type][0];
    return f->best_per_s > 0 ? f->best_per_s : m->rates.product[type][0];
}

static yk_status look(yk_profile_run *r, yk_error *err)
{
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
        if (!r->o->types[t] || !(r->m->rates.product[t][0] > 0) || !r->cpu->has(r->cpu->self, (yk_type)t))
            continue;
        yk_item *it = product_item(r, &(yk_profile_work){(yk_type)t, 1, 1, false});
        if (!it)
            return yk_fail_memory(err, r->n_items * sizeof *it, "looking at the machine");
        it->n_x = 1;
        it->x[0] = it->x[1];
        it->proportional = true;
    }
    for (uint32_t i = 0; i < r->n_items; i++) {
        const uint64_t now = yk_now_ns();
        const double left = r->deadline_ns > now ? (double)(r->deadline_ns - now) / (r->n_items - i) : 0;
        YK_TRY(visit(r, &r->items[i], left, 0, err));
    }
    return YK_OK;
}

static void scale_type(yk_rates *rates, yk_type type, double f)
{
    for (int b = 0; b < YK_N_BUCKETS; b++)
        rates->product[type][b] *= f;
    for (int i = 0; i < YK_FIT_TOKENS; i++) {
        yk_fit *fit = &rates->product_fit[type][i];
        fit->per_s *= f;
        fit->best_per_s *= f;
        fit->ns /= f;
    }
    for (int i = 0; i < YK_PROMPT_POINTS; i++)
        rates->prompt[type][i] *= f;
    for (int i = 0; i < YK_DOWN_POINTS; i++)
        rates->down[type][i] *= f;
}

/* The items that moved are measured again, longer. */
static yk_status settle_moved(yk_profile_run *r, uint32_t *n_moved, char *text, size_t capacity, yk_error *err)
{
    size_t at = 0;
    double top = 0, memory = 1;
    for (uint32_t i = 0; i < r->n_items; i++) {
        yk_item *it = &r->items[i];
        const double known = known_rate(r->m, it->type), before = r->m->rates.product[it->type][0];
        double f = it->line.best_per_s / known;
        if (fabs(f - 1) > YK_CANARY_MOVED) {
            YK_TRY(visit(r, it, AGAIN_MS * 1e6, 1, err));
            f = it->line.best_per_s / known;
        }
        if (fabs(f - 1) <= YK_CANARY_MOVED)
            f = 1;
        if (before > top) { /* memory moves with what is nearest to it */
            top = before;
            memory = f;
        }
        if (f == 1)
            continue;
        scale_type(&r->m->rates, it->type, f);
        ++*n_moved;
        const int n =
            snprintf(text + at, capacity - at, "%s%s %+.0f %%", at ? ", " : "", yk_type_get(it->type)->name, 100 * (f - 1));
        at = n > 0 && at + (size_t)n < capacity ? at + (size_t)n : at;
    }
    r->m->rates.read_bytes_per_s *= memory;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
        r->m->rates.read_bytes_per_s = fmax(r->m->rates.read_bytes_per_s, r->m->rates.product[t][0]);
    return YK_OK;
}

yk_status yk_profile_canary(yk_machine *m, const yk_profile_opts *o, uint32_t *n_moved, char *text, size_t capacity,
                            yk_error *err)
{
    yk_profile_cpu own;
    yk_cpu_bench *bench = NULL;
    yk_profile_run r = {.o = o, .m = m, .cpu = o->cpu ? o->cpu : &own, .n_stages = 1};
    *n_moved = 0;
    text[0] = 0;
    if (!o->cpu)
        YK_TRY(yk_cpu_bench_open(&bench, &own, o, CANARY_BYTES, err));
    r.begin_ns = r.stage_begin_ns = yk_now_ns();
    r.deadline_ns = r.begin_ns + CANARY_MS * 1000000ull;
    yk_status st = look(&r, err);
    if (st == YK_OK)
        st = settle_moved(&r, n_moved, text, capacity, err);
    yk_cpu_bench_close(&bench);
    yk_free(r.items);
    return st;
}
