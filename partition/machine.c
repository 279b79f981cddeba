#include "partition/machine.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "partition/json.h"
#include "partition/text.h"

#define RATE_MIN  1e3
#define RATE_MAX  1e15
#define FLOPS_MAX 1e18
#define NS_MAX    1e10
#define BYTES_MAX (1ull << 50)
/* Measured figures of one thing may differ by this much before they contradict each other. */
#define SLACK 1.25

static const char *const bucket_names[YK_N_BUCKETS] = {"1", "2-4", "5-8", "9-16", "17-32", "prefill"};
static const uint32_t bucket_tokens[YK_B_PREFILL] = {1, 4, 8, 16, 32};
static const uint32_t fit_tokens[YK_FIT_TOKENS] = {1, 4, 8, 16, 32, 64, 128, 256, 512};
static const char *const fit_names[YK_FIT_TOKENS] = {"1", "4", "8", "16", "32", "64", "128", "256", "512"};
static const uint32_t prompt_tokens[YK_PROMPT_POINTS] = {8, 26, 64, 122, 512};
static const char *const prompt_names[YK_PROMPT_POINTS] = {"8", "26", "64", "122", "512"};
static const uint32_t down_tokens[YK_DOWN_POINTS] = {1, 512, 1, 512}, down_units[YK_DOWN_POINTS] = {8, 8, 2, 2};
static const char *const down_names[YK_DOWN_POINTS] = {"1", "512", "1_narrow", "512_narrow"};
static const uint32_t head_dims[YK_HEAD_DIMS] = {64, 128};
static const char *const head_names[YK_HEAD_DIMS] = {"64", "128"};
static const char *const link_names[YK_LINK_FITS] = {"to_device", "to_host", "pageable_to_device", "pageable_to_host"};

uint32_t yk_fit_tokens(uint32_t i)
{
    return fit_tokens[i];
}

uint32_t yk_prompt_tokens(uint32_t i)
{
    return prompt_tokens[i];
}

uint32_t yk_down_units(uint32_t i)
{
    return down_units[i];
}

uint32_t yk_down_tokens(uint32_t i)
{
    return down_tokens[i];
}

uint32_t yk_head_dim(uint32_t i)
{
    return head_dims[i];
}

uint32_t yk_head_of(uint32_t head_dim)
{
    return head_dim > (head_dims[0] + head_dims[1]) / 2;
}

const char *yk_bucket_name(yk_bucket b)
{
    return bucket_names[b];
}

yk_bucket yk_bucket_by_name(const char *name)
{
    for (int b = 0; b < YK_N_BUCKETS; b++)
        if (strcmp(bucket_names[b], name) == 0)
            return (yk_bucket)b;
    return YK_N_BUCKETS;
}

yk_bucket yk_bucket_of(uint32_t n_tokens)
{
    int b = 0;
    while (b < YK_B_PREFILL && n_tokens > bucket_tokens[b])
        b++;
    return (yk_bucket)b;
}

uint32_t yk_bucket_tokens(yk_bucket b)
{
    return bucket_tokens[b];
}

int yk_machine_find(const yk_machine *machine, const char *name)
{
    for (uint32_t i = 0; i < machine->n_devices; i++)
        if (strcmp(machine->devices[i].name, name) == 0)
            return (int)i;
    for (uint32_t i = 0; i < machine->n_devices; i++)
        if (strcmp(machine->devices[i].backend, name) == 0)
            return (int)i;
    return -1;
}

/* ---- reading ---- */

/* Member `key`, a fit of bytes over time; stays as it is when it is absent. */
static yk_status read_fit(const yk_jv *at, const char *key, yk_fit *f)
{
    yk_jv v;
    YK_TRY(yk_json_member(at, key, JSON_OBJECT, YK_JSON_OPTIONAL, &v));
    if (!v.v)
        return YK_OK;
    YK_TRY(yk_json_f64(&v, "bytes_per_s", RATE_MIN, RATE_MAX, YK_JSON_REQUIRED, &f->per_s));
    YK_TRY(yk_json_f64(&v, "ns", 0, NS_MAX, YK_JSON_OPTIONAL, &f->ns));
    YK_TRY(yk_json_f64(&v, "best_bytes_per_s", RATE_MIN, RATE_MAX, YK_JSON_OPTIONAL, &f->best_per_s));
    return yk_json_f64(&v, "spread", 0, 1e6, YK_JSON_OPTIONAL, &f->spread);
}

static yk_status read_fits(const yk_jv *at, yk_rates *r)
{
    yk_jv fits, row;
    YK_TRY(read_fit(at, "attention_fit", &r->attention_fit));
    YK_TRY(yk_json_member(at, "product_fits", JSON_OBJECT, YK_JSON_OPTIONAL, &fits));
    for (uint32_t t = 0; t < YK_TYPE_LIMIT && fits.v; t++) {
        if (!yk_type_get(t))
            continue;
        YK_TRY(yk_json_member(&fits, yk_type_get(t)->name, JSON_OBJECT, YK_JSON_OPTIONAL, &row));
        for (int i = 0; i < YK_FIT_TOKENS && row.v; i++)
            YK_TRY(read_fit(&row, fit_names[i], &r->product_fit[t][i]));
    }
    return YK_OK;
}

/* Rates of a type at some numbers of tokens; those that are not there stay 0. */
static yk_status read_points(const yk_jv *at, const char *type, const char *const *names, double *rates, int n)
{
    yk_jv row;
    YK_TRY(yk_json_member(at, type, JSON_OBJECT, YK_JSON_OPTIONAL, &row));
    for (int i = 0; i < n && row.v; i++)
        YK_TRY(yk_json_f64(&row, names[i], RATE_MIN, RATE_MAX, YK_JSON_OPTIONAL, &rates[i]));
    return YK_OK;
}

/* What only steps of the engine show: products in prompts, heads, the stages between products. */
static yk_status read_steps(const yk_jv *at, yk_rates *r)
{
    yk_jv prompt, down, heads, row;
    YK_TRY(yk_json_f64(at, "stage_ns", 0, NS_MAX, YK_JSON_OPTIONAL, &r->stage_ns));
    YK_TRY(yk_json_f64(at, "row_bytes_per_s", RATE_MIN, RATE_MAX, YK_JSON_OPTIONAL, &r->row_bytes_per_s));
    YK_TRY(yk_json_member(at, "attention_by_head", JSON_OBJECT, YK_JSON_OPTIONAL, &heads));
    for (int i = 0; i < YK_HEAD_DIMS && heads.v; i++) {
        YK_TRY(yk_json_member(&heads, head_names[i], JSON_OBJECT, YK_JSON_OPTIONAL, &row));
        if (!row.v)
            continue;
        YK_TRY(yk_json_f64(&row, "kv_bytes_per_s", RATE_MIN, RATE_MAX, YK_JSON_REQUIRED, &r->head_kv_bytes_per_s[i]));
        YK_TRY(yk_json_f64(&row, "flops_per_s", RATE_MIN, FLOPS_MAX, YK_JSON_REQUIRED, &r->head_flops_per_s[i]));
    }
    YK_TRY(yk_json_member(at, "prompt_bytes_per_s", JSON_OBJECT, YK_JSON_OPTIONAL, &prompt));
    YK_TRY(yk_json_member(at, "down_bytes_per_s", JSON_OBJECT, YK_JSON_OPTIONAL, &down));
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
        if (!yk_type_get(t))
            continue;
        if (prompt.v)
            YK_TRY(read_points(&prompt, yk_type_get(t)->name, prompt_names, r->prompt[t], YK_PROMPT_POINTS));
        if (down.v)
            YK_TRY(read_points(&down, yk_type_get(t)->name, down_names, r->down[t], YK_DOWN_POINTS));
    }
    return YK_OK;
}

static yk_status read_reads(const yk_jv *cpu, yk_machine *m)
{
    yk_jv list, v;
    YK_TRY(yk_json_member(cpu, "reads", JSON_ARRAY, YK_JSON_OPTIONAL, &list));
    const size_t n = list.v ? json_array_size(list.v) : 0;
    if (n > YK_MAX_READS)
        return yk_json_fail(&list, "has %zu entries, at most %d are possible", n, YK_MAX_READS);
    for (size_t i = 0; i < n; i++) {
        yk_read_rate *r = &m->reads[i];
        YK_TRY(yk_json_element(&list, i, JSON_OBJECT, &v));
        YK_TRY(yk_json_u32(&v, "threads", 1, 65536, YK_JSON_REQUIRED, &r->threads));
        r->node = YK_ALL_NODES;
        YK_TRY(yk_json_u32(&v, "node", 0, 65535, YK_JSON_OPTIONAL, &r->node));
        YK_TRY(yk_json_u64(&v, "page_bytes", 1, BYTES_MAX, YK_JSON_REQUIRED, &r->page_bytes));
        YK_TRY(yk_json_f64(&v, "bytes_per_s", RATE_MIN, RATE_MAX, YK_JSON_REQUIRED, &r->fit.per_s));
        YK_TRY(yk_json_f64(&v, "best_bytes_per_s", RATE_MIN, RATE_MAX, YK_JSON_OPTIONAL, &r->fit.best_per_s));
        YK_TRY(yk_json_f64(&v, "spread", 0, 1e6, YK_JSON_OPTIONAL, &r->fit.spread));
    }
    m->n_reads = (uint32_t)n;
    return YK_OK;
}

static yk_status read_rates(const yk_jv *at, bool is_device, yk_rates *r)
{
    yk_jv products, prefill, row;
    YK_TRY(yk_json_f64(at, "read_bytes_per_s", RATE_MIN, RATE_MAX, is_device ? YK_JSON_OPTIONAL : YK_JSON_REQUIRED,
                       &r->read_bytes_per_s));
    YK_TRY(yk_json_f64(at, "fixed_ns", 0, NS_MAX, YK_JSON_OPTIONAL, &r->fixed_ns));
    YK_TRY(yk_json_f64(at, "attention_flops_per_s", RATE_MIN, FLOPS_MAX, YK_JSON_OPTIONAL, &r->attention_flops_per_s));
    YK_TRY(yk_json_member(at, "product_bytes_per_s", JSON_OBJECT, YK_JSON_REQUIRED, &products));
    YK_TRY(yk_json_member(at, "prefill_byte_tokens_per_s", JSON_OBJECT, YK_JSON_OPTIONAL, &prefill));
    uint32_t n = 0;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
        const yk_type_traits *tr = yk_type_get(t);
        if (!tr)
            continue;
        YK_TRY(yk_json_member(&products, tr->name, JSON_OBJECT, YK_JSON_OPTIONAL, &row));
        if (!row.v)
            continue;
        for (int b = 0; b < YK_B_PREFILL; b++)
            YK_TRY(yk_json_f64(&row, bucket_names[b], RATE_MIN, RATE_MAX, b ? YK_JSON_OPTIONAL : YK_JSON_REQUIRED,
                               &r->product[t][b]));
        if (prefill.v)
            YK_TRY(yk_json_f64(&prefill, tr->name, RATE_MIN, FLOPS_MAX, YK_JSON_OPTIONAL, &r->product[t][YK_B_PREFILL]));
        for (int b = 0; b < YK_B_PREFILL; b++)
            if (r->read_bytes_per_s > 0 && r->product[t][b] > 2 * r->read_bytes_per_s)
                return yk_json_fail_key(&row, bucket_names[b],
                                        "%g is more than twice read_bytes_per_s (%g): a product cannot outrun memory",
                                        r->product[t][b], r->read_bytes_per_s);
        n++;
    }
    YK_TRY(read_fits(at, r));
    return n ? YK_OK : yk_json_fail(&products, "has no weight type; at least one is needed, for example \"Q4_0\"");
}

/* The most that was read of host memory in any way: with one thread it may be less than a link carries. */
static double host_rate(const yk_machine *m)
{
    double rate = m->rates.read_bytes_per_s;
    for (uint32_t i = 0; i < m->n_reads; i++)
        rate = fmax(rate, m->reads[i].fit.per_s);
    return rate;
}

/* Is a link faster than the memory at its end, or both ways at once than one? */
static yk_status check_link(const yk_jv *link, const yk_machine *m, const yk_machine_device *d)
{
    const struct {
        const char *key;
        double rate, alone;
    } ways[] = {{"both_to_device_bytes_per_s", d->both_to_device_bytes_per_s, d->to_device_bytes_per_s},
                {"both_to_host_bytes_per_s", d->both_to_host_bytes_per_s,
                 d->to_host_bytes_per_s > 0 ? d->to_host_bytes_per_s : d->to_device_bytes_per_s}};
    const double host = host_rate(m);
    if (!d->same_silicon && !d->shared_memory && d->to_device_bytes_per_s > SLACK * host)
        return yk_json_fail_key(link, "to_device_bytes_per_s",
                                "%g is faster than the memory it reads (machine.cpu.read_bytes_per_s %g)",
                                d->to_device_bytes_per_s, host);
    if (!d->same_silicon && !d->shared_memory && d->to_host_bytes_per_s > SLACK * host)
        return yk_json_fail_key(link, "to_host_bytes_per_s",
                                "%g is faster than the memory it writes (machine.cpu.read_bytes_per_s %g)",
                                d->to_host_bytes_per_s, host);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (ways[i].rate > SLACK * ways[i].alone)
            return yk_json_fail_key(link, ways[i].key, "%g is faster than copies one way (%g)", ways[i].rate, ways[i].alone);
    return YK_OK;
}

static yk_status read_link(const yk_jv *at, const yk_machine *m, yk_machine_device *d)
{
    yk_jv link, overlap, fits;
    YK_TRY(yk_json_member(at, "link", JSON_OBJECT, YK_JSON_REQUIRED, &link));
    YK_TRY(yk_json_f64(&link, "to_device_bytes_per_s", RATE_MIN, RATE_MAX, YK_JSON_REQUIRED, &d->to_device_bytes_per_s));
    YK_TRY(yk_json_f64(&link, "to_host_bytes_per_s", RATE_MIN, RATE_MAX, YK_JSON_OPTIONAL, &d->to_host_bytes_per_s));
    YK_TRY(yk_json_f64(&link, "to_device_ns", 0, NS_MAX, YK_JSON_OPTIONAL, &d->to_device_ns));
    YK_TRY(yk_json_f64(&link, "to_host_ns", 0, NS_MAX, YK_JSON_OPTIONAL, &d->to_host_ns));
    YK_TRY(
        yk_json_f64(&link, "both_to_device_bytes_per_s", RATE_MIN, RATE_MAX, YK_JSON_OPTIONAL, &d->both_to_device_bytes_per_s));
    YK_TRY(yk_json_f64(&link, "both_to_host_bytes_per_s", RATE_MIN, RATE_MAX, YK_JSON_OPTIONAL, &d->both_to_host_bytes_per_s));
    YK_TRY(yk_json_member(&link, "fits", JSON_OBJECT, YK_JSON_OPTIONAL, &fits));
    for (int i = 0; i < YK_LINK_FITS && fits.v; i++)
        YK_TRY(read_fit(&fits, link_names[i], &d->link_fit[i]));
    YK_TRY(check_link(&link, m, d));
    YK_TRY(yk_json_member(at, "overlap", JSON_OBJECT, YK_JSON_OPTIONAL, &overlap));
    if (!overlap.v)
        return YK_OK;
    YK_TRY(yk_json_f64(&overlap, "cpu_bytes_per_s", RATE_MIN, RATE_MAX, YK_JSON_REQUIRED, &d->overlap_cpu_bytes_per_s));
    YK_TRY(yk_json_f64(&overlap, "to_device_bytes_per_s", RATE_MIN, RATE_MAX, YK_JSON_REQUIRED,
                       &d->overlap_to_device_bytes_per_s));
    YK_TRY(yk_json_f64(&overlap, "device_bytes_per_s", RATE_MIN, RATE_MAX, YK_JSON_OPTIONAL, &d->overlap_device_bytes_per_s));
    if (d->overlap_to_device_bytes_per_s > SLACK * d->to_device_bytes_per_s)
        return yk_json_fail_key(&overlap, "to_device_bytes_per_s", "%g is faster than the link alone (%g)",
                                d->overlap_to_device_bytes_per_s, d->to_device_bytes_per_s);
    const double host = host_rate(m);
    if (d->overlap_cpu_bytes_per_s > SLACK * host)
        return yk_json_fail_key(&overlap, "cpu_bytes_per_s", "%g is faster than memory is read without copies (%g)",
                                d->overlap_cpu_bytes_per_s, host);
    return YK_OK;
}

static bool is_device_name(const char *s)
{
    const size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyz");
    return n > 0 && s[n] == ':' && strspn(s + n + 1, "0123456789") == strlen(s + n + 1) && s[n + 1];
}

static yk_status read_device(const yk_jv *at, yk_machine *m, uint32_t index)
{
    yk_machine_device *d = &m->devices[index];
    d->launch_ns = d->hand_off_ns = -1; /* left out, unlike 0 */
    d->to_device_ns = d->to_host_ns = d->rates.fixed_ns = -1;
    YK_TRY(yk_json_text(at, "name", sizeof d->name, YK_JSON_REQUIRED, d->name));
    if (!is_device_name(d->name))
        return yk_json_fail_key(at, "name", "\"%s\" is no device name; they look like \"opencl:0\"", d->name);
    for (uint32_t i = 0; i < index; i++)
        if (strcmp(m->devices[i].name, d->name) == 0)
            return yk_json_fail_key(at, "name", "\"%s\" is the name of devices[%u] already", d->name, i);
    YK_TRY(yk_json_text(at, "backend", sizeof d->backend, YK_JSON_REQUIRED, d->backend));
    const size_t n = strlen(d->backend);
    if (strncmp(d->name, d->backend, n) != 0 || d->name[n] != ':')
        return yk_json_fail_key(at, "backend", "\"%s\" is not the backend of \"%s\"", d->backend, d->name);
    YK_TRY(yk_json_text(at, "description", sizeof d->description, YK_JSON_OPTIONAL, d->description));
    YK_TRY(yk_json_text(at, "driver", sizeof d->driver, YK_JSON_OPTIONAL, d->driver));
    YK_TRY(yk_json_u64(at, "memory_bytes", 1, BYTES_MAX, YK_JSON_REQUIRED, &d->memory_bytes));
    YK_TRY(yk_json_bool(at, "same_silicon", YK_JSON_OPTIONAL, &d->same_silicon));
    YK_TRY(yk_json_bool(at, "shared_memory", YK_JSON_OPTIONAL, &d->shared_memory));
    YK_TRY(yk_json_f64(at, "launch_ns", 0, NS_MAX, YK_JSON_OPTIONAL, &d->launch_ns));
    YK_TRY(yk_json_f64(at, "hand_off_ns", 0, NS_MAX, YK_JSON_OPTIONAL, &d->hand_off_ns));
    YK_TRY(yk_json_f64(at, "hand_off_p99_ns", 0, NS_MAX, YK_JSON_OPTIONAL, &d->hand_off_p99_ns));
    YK_TRY(read_fit(at, "copy_fit", &d->copy_fit));
    YK_TRY(read_rates(at, true, &d->rates));
    return read_link(at, m, d);
}

static yk_status read_machine(const yk_jv *at, yk_machine *m)
{
    yk_jv cpu, devices, device;
    uint64_t threads = 0;
    YK_TRY(yk_json_format(at, YK_MACHINE_FORMAT));
    YK_TRY(yk_json_text(at, "host", sizeof m->host, YK_JSON_OPTIONAL, m->host));
    YK_TRY(yk_json_text(at, "build", sizeof m->build, YK_JSON_OPTIONAL, m->build));
    YK_TRY(yk_json_text(at, "time", sizeof m->time, YK_JSON_OPTIONAL, m->time));
    YK_TRY(yk_json_text(at, "source", sizeof m->source, YK_JSON_OPTIONAL, m->source));
    YK_TRY(yk_json_bool(at, "noisy", YK_JSON_OPTIONAL, &m->noisy));
    YK_TRY(yk_json_text(at, "noisy_items", sizeof m->noisy_items, YK_JSON_OPTIONAL, m->noisy_items));
    YK_TRY(yk_json_member(at, "cpu", JSON_OBJECT, YK_JSON_REQUIRED, &cpu));
    YK_TRY(yk_json_text(&cpu, "name", sizeof m->cpu, YK_JSON_OPTIONAL, m->cpu));
    YK_TRY(yk_json_text(&cpu, "isa", sizeof m->isa, YK_JSON_OPTIONAL, m->isa));
    YK_TRY(yk_json_u64(&cpu, "threads", 1, 65536, YK_JSON_REQUIRED, &threads));
    YK_TRY(yk_json_u64(&cpu, "memory_bytes", 1, BYTES_MAX, YK_JSON_REQUIRED, &m->memory_bytes));
    m->threads = (uint32_t)threads;
    YK_TRY(read_rates(&cpu, false, &m->rates));
    YK_TRY(read_steps(&cpu, &m->rates));
    YK_TRY(read_reads(&cpu, m));
    YK_TRY(yk_json_member(at, "devices", JSON_ARRAY, YK_JSON_OPTIONAL, &devices));
    const size_t n = devices.v ? json_array_size(devices.v) : 0;
    if (n > YK_MAX_DEVICES)
        return yk_json_fail(&devices, "has %zu devices, at most %d are possible", n, YK_MAX_DEVICES);
    for (size_t i = 0; i < n; i++) {
        YK_TRY(yk_json_element(&devices, i, JSON_OBJECT, &device));
        YK_TRY(read_device(&device, m, (uint32_t)i));
    }
    m->n_devices = (uint32_t)n;
    return YK_OK;
}

yk_status yk_machine_read(yk_machine *out, const char *text, size_t n_bytes, yk_error *err)
{
    json_t *root;
    yk_jv at;
    YK_TRY(yk_json_parse(&root, &at, text, n_bytes, "machine", err));
    yk_machine *m = yk_alloc(YK_MEM_PLAN, 1, sizeof *m);
    const yk_status st = m ? read_machine(&at, m) : yk_fail_memory(err, sizeof *m, "a machine");
    json_decref(root);
    if (st == YK_OK)
        *out = *m;
    yk_free(m);
    return st;
}

/* ---- writing ---- */

typedef struct object {
    yk_text *t;
    const char *indent;
    bool any;
} object;

static void put_key(object *o, const char *key)
{
    yk_text_put(o->t, "%s\n%s\"%s\": ", o->any ? "," : "", o->indent, key);
    o->any = true;
}

static void put_text(object *o, const char *key, const char *s)
{
    if (!*s)
        return;
    put_key(o, key);
    yk_text_put_string(o->t, s);
}

static void put_u64(object *o, const char *key, uint64_t x)
{
    put_key(o, key);
    yk_text_put_json(o->t, json_integer((json_int_t)x));
}

/* Below `from`: left out. */
static void put_f64(object *o, const char *key, double x, double from)
{
    if (x < from)
        return;
    put_key(o, key);
    yk_text_put_json(o->t, json_real(x));
}

static void put_flag(object *o, const char *key, bool x)
{
    if (!x)
        return;
    put_key(o, key);
    yk_text_put(o->t, "true");
}

static void set_real(yk_text *t, json_t *o, const char *key, double x)
{
    if (json_object_set_new(o, key, json_real(x)) != 0)
        t->failed = true;
}

static json_t *fit_json(yk_text *t, const yk_fit *f, bool fixed)
{
    json_t *o = json_object();
    if (fixed)
        set_real(t, o, "ns", f->ns);
    set_real(t, o, "bytes_per_s", f->per_s);
    if (f->best_per_s >= RATE_MIN)
        set_real(t, o, "best_bytes_per_s", f->best_per_s);
    set_real(t, o, "spread", f->spread);
    return o;
}

static void put_fit(object *o, const char *key, const yk_fit *f)
{
    if (!(f->per_s >= RATE_MIN))
        return;
    put_key(o, key);
    yk_text_put_json(o->t, fit_json(o->t, f, true));
}

static void put_fits(object *o, const yk_rates *r)
{
    bool first = true;
    put_fit(o, "attention_fit", &r->attention_fit);
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
        for (int i = 0, any = 0; i < YK_FIT_TOKENS; i++) {
            const yk_fit *f = &r->product_fit[t][i];
            if (!(f->per_s >= RATE_MIN) || !yk_type_get(t))
                continue;
            if (first)
                put_key(o, "product_fits");
            if (!any)
                yk_text_put(o->t, "%s\n%s \"%s\": {", first ? "{" : "},", o->indent, yk_type_get(t)->name);
            yk_text_put(o->t, "%s\n%s  \"%s\": ", any ? "," : "", o->indent, fit_names[i]);
            yk_text_put_json(o->t, fit_json(o->t, f, true));
            first = false;
            any = 1;
        }
    if (!first)
        yk_text_put(o->t, "}}");
}

static void put_reads(object *o, const yk_machine *m)
{
    if (!m->n_reads)
        return;
    put_key(o, "reads");
    for (uint32_t i = 0; i < m->n_reads; i++) {
        const yk_read_rate *r = &m->reads[i];
        json_t *v = fit_json(o->t, &r->fit, false);
        if (json_object_set_new(v, "threads", json_integer(r->threads)) != 0 ||
            json_object_set_new(v, "page_bytes", json_integer((json_int_t)r->page_bytes)) != 0 ||
            (r->node != YK_ALL_NODES && json_object_set_new(v, "node", json_integer(r->node)) != 0))
            o->t->failed = true;
        yk_text_put(o->t, "%s\n%s ", i ? "," : "[", o->indent);
        yk_text_put_json(o->t, v);
    }
    yk_text_put(o->t, "]");
}

static void put_rates(object *o, const yk_rates *r, bool is_device)
{
    put_f64(o, "read_bytes_per_s", r->read_bytes_per_s, RATE_MIN);
    put_f64(o, "fixed_ns", r->fixed_ns, is_device ? 0 : 0x1p-1000);
    put_f64(o, "attention_flops_per_s", r->attention_flops_per_s, RATE_MIN);
    put_key(o, "product_bytes_per_s");
    bool first = true;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
        if (!(r->product[t][0] > 0))
            continue;
        json_t *row = json_object();
        for (int b = 0; b < YK_B_PREFILL; b++)
            if (r->product[t][b] > 0)
                set_real(o->t, row, bucket_names[b], r->product[t][b]);
        yk_text_put(o->t, "%s\n%s \"%s\": ", first ? "{" : ",", o->indent, yk_type_get(t)->name);
        yk_text_put_json(o->t, row);
        first = false;
    }
    yk_text_put(o->t, "}");
    json_t *prefill = json_object();
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
        if (r->product[t][0] > 0 && r->product[t][YK_B_PREFILL] > 0)
            set_real(o->t, prefill, yk_type_get(t)->name, r->product[t][YK_B_PREFILL]);
    if (prefill && json_object_size(prefill) == 0) {
        json_decref(prefill);
        return;
    }
    put_key(o, "prefill_byte_tokens_per_s");
    yk_text_put_json(o->t, prefill);
}

/* A row of rates for each type that has any: rates is [YK_TYPE_LIMIT][n]. */
static void put_points(object *o, const char *key, const char *const *names, const double *rates, int n)
{
    bool any = false;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++, rates += n) {
        json_t *row = json_object();
        for (int i = 0; i < n; i++)
            if (rates[i] >= RATE_MIN)
                set_real(o->t, row, names[i], rates[i]);
        if (row && json_object_size(row) == 0) {
            json_decref(row);
            continue;
        }
        if (!any)
            put_key(o, key);
        yk_text_put(o->t, "%s\n%s \"%s\": ", any ? "," : "{", o->indent, yk_type_get(t)->name);
        yk_text_put_json(o->t, row);
        any = true;
    }
    yk_text_put(o->t, any ? "}" : "");
}

static void put_steps(object *o, const yk_rates *r)
{
    put_f64(o, "stage_ns", r->stage_ns, 0x1p-1000);
    put_f64(o, "row_bytes_per_s", r->row_bytes_per_s, RATE_MIN);
    bool any = false;
    for (int i = 0; i < YK_HEAD_DIMS; i++) {
        if (!(r->head_kv_bytes_per_s[i] >= RATE_MIN && r->head_flops_per_s[i] >= RATE_MIN))
            continue;
        json_t *v = json_object();
        set_real(o->t, v, "kv_bytes_per_s", r->head_kv_bytes_per_s[i]);
        set_real(o->t, v, "flops_per_s", r->head_flops_per_s[i]);
        if (!any)
            put_key(o, "attention_by_head");
        yk_text_put(o->t, "%s\n%s \"%s\": ", any ? "," : "{", o->indent, head_names[i]);
        yk_text_put_json(o->t, v);
        any = true;
    }
    yk_text_put(o->t, any ? "}" : "");
    put_points(o, "prompt_bytes_per_s", prompt_names, r->prompt[0], YK_PROMPT_POINTS);
    put_points(o, "down_bytes_per_s", down_names, r->down[0], YK_DOWN_POINTS);
}

static void put_link(yk_text *t, const yk_machine_device *d)
{
    object link = {t, "    ", false}, fits = {t, "     ", false};
    yk_text_put(t, "{");
    put_f64(&link, "to_device_bytes_per_s", d->to_device_bytes_per_s, RATE_MIN);
    put_f64(&link, "to_device_ns", d->to_device_ns, 0);
    put_f64(&link, "to_host_bytes_per_s", d->to_host_bytes_per_s, RATE_MIN);
    put_f64(&link, "to_host_ns", d->to_host_ns, 0);
    put_f64(&link, "both_to_device_bytes_per_s", d->both_to_device_bytes_per_s, RATE_MIN);
    put_f64(&link, "both_to_host_bytes_per_s", d->both_to_host_bytes_per_s, RATE_MIN);
    for (int i = 0; i < YK_LINK_FITS; i++)
        if (d->link_fit[i].per_s >= RATE_MIN) {
            if (!fits.any) {
                put_key(&link, "fits");
                yk_text_put(t, "{");
            }
            put_fit(&fits, link_names[i], &d->link_fit[i]);
        }
    yk_text_put(t, fits.any ? "}}" : "}");
}

static void put_device(yk_text *t, const yk_machine_device *d)
{
    object o = {t, "   ", false};
    yk_text_put(t, "\n  {");
    put_text(&o, "name", d->name);
    put_text(&o, "backend", d->backend);
    put_text(&o, "description", d->description);
    put_text(&o, "driver", d->driver);
    put_u64(&o, "memory_bytes", d->memory_bytes);
    put_flag(&o, "same_silicon", d->same_silicon);
    put_flag(&o, "shared_memory", d->shared_memory);
    put_f64(&o, "launch_ns", d->launch_ns, 0);
    put_f64(&o, "hand_off_ns", d->hand_off_ns, 0);
    put_f64(&o, "hand_off_p99_ns", d->hand_off_p99_ns, 0x1p-1000);
    put_rates(&o, &d->rates, true);
    put_fit(&o, "copy_fit", &d->copy_fit);
    put_fits(&o, &d->rates);
    put_key(&o, "link");
    put_link(t, d);
    if (d->overlap_cpu_bytes_per_s > 0) {
        put_key(&o, "overlap");
        yk_text_put(t, "{");
        object overlap = {t, "    ", false};
        put_f64(&overlap, "cpu_bytes_per_s", d->overlap_cpu_bytes_per_s, RATE_MIN);
        put_f64(&overlap, "to_device_bytes_per_s", d->overlap_to_device_bytes_per_s, RATE_MIN);
        put_f64(&overlap, "device_bytes_per_s", d->overlap_device_bytes_per_s, RATE_MIN);
        yk_text_put(t, "}");
    }
    yk_text_put(t, "\n  }");
}

yk_status yk_machine_write(const yk_machine *m, char **out, size_t *n_bytes, yk_error *err)
{
    yk_text t = {0};
    object top = {&t, " ", false}, cpu = {&t, "  ", false};
    yk_text_put(&t, "{");
    put_u64(&top, "format", YK_MACHINE_FORMAT);
    put_text(&top, "source", m->source);
    put_text(&top, "host", m->host);
    put_text(&top, "build", m->build);
    put_text(&top, "time", m->time);
    put_flag(&top, "noisy", m->noisy);
    put_text(&top, "noisy_items", m->noisy_items);
    put_key(&top, "cpu");
    yk_text_put(&t, "{");
    put_text(&cpu, "name", m->cpu);
    put_text(&cpu, "isa", m->isa);
    put_u64(&cpu, "threads", m->threads);
    put_u64(&cpu, "memory_bytes", m->memory_bytes);
    put_rates(&cpu, &m->rates, false);
    put_steps(&cpu, &m->rates);
    put_reads(&cpu, m);
    put_fits(&cpu, &m->rates);
    yk_text_put(&t, "\n }");
    put_key(&top, "devices");
    yk_text_put(&t, "[");
    for (uint32_t i = 0; i < m->n_devices; i++) {
        yk_text_put(&t, "%s", i ? "," : "");
        put_device(&t, &m->devices[i]);
    }
    yk_text_put(&t, "]\n}\n");
    return yk_text_take(&t, out, n_bytes, "the text of a machine file", err);
}

/* ---- holes ---- */

static double bits_of(uint32_t type)
{
    const yk_type_traits *t = yk_type_get(type);
    return 8.0 * t->block_bytes / t->block_elems;
}

static uint32_t nearest_type(const yk_rates *r, uint32_t type)
{
    uint32_t best = YK_TYPE_LIMIT;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
        if (r->product[t][0] > 0 &&
            (best == YK_TYPE_LIMIT || fabs(bits_of(t) - bits_of(type)) < fabs(bits_of(best) - bits_of(type))))
            best = t;
    return best;
}

double yk_curve_at(const yk_curve *c, double tokens)
{
    uint32_t i = 0;
    while (i < c->n && tokens > c->tokens[i])
        i++;
    if (!i)
        return c->s_per_byte[0];
    if (i == c->n)
        return c->s_per_byte[i - 1] * tokens / c->tokens[i - 1];
    const double part = (tokens - c->tokens[i - 1]) / (c->tokens[i] - c->tokens[i - 1]);
    return c->s_per_byte[i - 1] + part * (c->s_per_byte[i] - c->s_per_byte[i - 1]);
}

double yk_lane_down(const yk_lane *lane, yk_type type, bool prefill, uint32_t units)
{
    const double wide = lane->down_factor[type][prefill], narrow = lane->down_factor[type][prefill + 2];
    if (units >= down_units[0] || !(narrow > wide))
        return wide;
    const double from = 1.0 / down_units[0], to = 1.0 / down_units[2];
    return wide + (narrow - wide) * (1.0 / units - from) / (to - from);
}

double yk_curve_tiled(const yk_curve *c, double tokens)
{
    const double tiles = floor(tokens / YK_PROMPT_TILE), rest = tokens - tiles * YK_PROMPT_TILE, last = c->tokens[c->n - 1];
    if (tiles < 1)
        return yk_curve_at(c, tokens);
    const double tile =
        last > YK_PROMPT_TILE ? c->s_per_byte[c->n - 1] * YK_PROMPT_TILE / last : yk_curve_at(c, YK_PROMPT_TILE);
    return tiles * tile + (rest > 0 ? yk_curve_at(c, rest) * fmin(rest, 1) : 0);
}

static void add_point(yk_curve *c, double tokens, double s)
{
    c->tokens[c->n] = tokens;
    c->s_per_byte[c->n] = c->n ? fmax(s, c->s_per_byte[c->n - 1]) : s;
    c->n++;
}

/* One token, then what was measured in prompts; below the first of that the token buckets. bucket: seconds per byte. */
static void resolve_prompt(yk_curve *c, const double prompt[YK_PROMPT_POINTS], const double bucket[YK_N_BUCKETS])
{
    int first = 0;
    while (first < YK_PROMPT_POINTS && !(prompt[first] > 0))
        first++;
    if (first == YK_PROMPT_POINTS)
        return;
    add_point(c, 1, bucket[YK_B_1]);
    for (int b = YK_B_4; b < YK_B_PREFILL && bucket_tokens[b] < prompt_tokens[first]; b++)
        if (first > 1)
            add_point(c, bucket_tokens[b], fmin(bucket[b], 1 / prompt[first])); /* a bucket may be a guess */
    for (int i = first; i < YK_PROMPT_POINTS; i++)
        if (prompt[i] > 0)
            add_point(c, prompt_tokens[i], 1 / prompt[i]);
}

void yk_lane_resolve(yk_lane *lane, const yk_rates *r, bool is_device)
{
    *lane = (yk_lane){0};
    double best = 0, flops = 0;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
        const uint32_t from = !yk_type_get(t) ? YK_TYPE_LIMIT : r->product[t][0] > 0 ? t : nearest_type(r, t);
        if (from == YK_TYPE_LIMIT)
            continue;
        const double *rate = r->product[from];
        double *s = lane->s_per_byte[t];
        s[YK_B_1] = 1 / rate[YK_B_1];
        for (int b = YK_B_4; b < YK_B_PREFILL; b++) {
            s[b] = rate[b] > 0 ? 1 / rate[b] : s[b - 1] * bucket_tokens[b] / bucket_tokens[b - 1];
            s[b] = fmax(s[b], s[b - 1]);
        }
        s[YK_B_PREFILL] = rate[YK_B_PREFILL] > 0 ? 1 / rate[YK_B_PREFILL] : s[YK_B_32] / bucket_tokens[YK_B_32];
        best = fmax(best, rate[YK_B_1]);
        flops = fmax(flops, 16 / bits_of(t) / s[YK_B_PREFILL]);
        resolve_prompt(&lane->prompt[t], r->prompt[from], s);
        const double prompt = lane->prompt[t].n ? 1 / yk_curve_at(&lane->prompt[t], down_tokens[1]) : 0;
        for (int i = 0; i < YK_DOWN_POINTS; i++) {
            const double rows = down_tokens[i] == 1 ? rate[YK_B_1] : prompt, down = r->down[from][i];
            lane->down_factor[t][i] = down > 0 && rows > 0 ? rows / down : i < 2 ? 1 : lane->down_factor[t][i - 2];
        }
    }
    lane->read_s_per_byte = 1 / (r->read_bytes_per_s > 0 ? r->read_bytes_per_s : best);
    lane->fixed_s = 1e-9 * (is_device && r->fixed_ns < 0 ? 10e3 : r->fixed_ns);
    lane->attention_s_per_flop = 1 / (r->attention_flops_per_s > 0 ? r->attention_flops_per_s : flops);
    for (int i = 0; i < YK_HEAD_DIMS; i++) {
        lane->head_kv_s_per_byte[i] = r->head_kv_bytes_per_s[i] > 0 ? 1 / r->head_kv_bytes_per_s[i] : lane->read_s_per_byte;
        lane->head_s_per_flop[i] = r->head_flops_per_s[i] > 0 ? 1 / r->head_flops_per_s[i] : lane->attention_s_per_flop;
    }
    lane->stage_s = 1e-9 * r->stage_ns;
    lane->row_s_per_byte = r->row_bytes_per_s > 0 ? 1 / r->row_bytes_per_s : 0;
}
