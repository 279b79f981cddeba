/* Plan files: the keys of docs/DESIGN.md section 10, one line for each slice. */
#include <stdio.h>
#include <string.h>

#include "partition/json.h"
#include "partition/plan.h"
#include "partition/text.h"

static const char *const class_names[YK_MEM_N_CLASSES] = {"weights", "kv", "activation", "staging", "plan", "runtime"};

enum { MAX_LAYERS = 4096 };

/* ---- reading ---- */

static yk_status read_home(const yk_jv *at, const char *key, yk_json_need need, yk_plan *plan, int8_t *home)
{
    char name[YK_DEVICE_NAME] = "host";
    YK_TRY(yk_json_text(at, key, sizeof name, need, name));
    if (strcmp(name, "host") == 0) {
        *home = YK_HOST;
        return YK_OK;
    }
    const size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz");
    if (n == 0 || name[n] != ':' || !name[n + 1] || strspn(name + n + 1, "0123456789") != strlen(name + n + 1))
        return yk_json_fail_key(at, key, "\"%s\" is no place; \"host\" is one, and a device like \"opencl:0\"", name);
    const int d = yk_plan_device(plan, name);
    if (d < 0)
        return yk_json_fail_key(at, key, "\"%s\" is one device too many, at most %d are possible", name, YK_MAX_DEVICES);
    *home = (int8_t)d;
    return YK_OK;
}

/* {"129-512": "CG"}: 1 + kind by length of the chunk, 0 where nothing is said. */
static yk_status read_chunks(const yk_jv *at, const char *key, uint8_t chunk[YK_N_CHUNKS])
{
    yk_jv kinds;
    YK_TRY(yk_json_member(at, key, JSON_OBJECT, YK_JSON_OPTIONAL, &kinds));
    for (int c = 0; kinds.v && c < YK_N_CHUNKS; c++) {
        uint8_t k = 0;
        char kind[8] = "";
        YK_TRY(yk_json_text(&kinds, yk_chunk_name((yk_chunk)c), sizeof kind, YK_JSON_OPTIONAL, kind));
        while (*kind && k <= YK_KIND_CG && strcmp(yk_kind_name(k), kind) != 0)
            k++;
        if (k > YK_KIND_CG)
            return yk_json_fail_key(&kinds, yk_chunk_name((yk_chunk)c), "\"%s\" is not known; known are GG, CC, CG", kind);
        chunk[c] = *kind ? (uint8_t)(1 + k) : 0;
    }
    return YK_OK;
}

/* {"5-8": true} */
static yk_status read_ahead(const yk_jv *layer, bool ahead[YK_B_PREFILL])
{
    yk_jv at;
    YK_TRY(yk_json_member(layer, "ahead", JSON_OBJECT, YK_JSON_OPTIONAL, &at));
    for (int b = 0; at.v && b < YK_B_PREFILL; b++)
        YK_TRY(yk_json_bool(&at, yk_bucket_name((yk_bucket)b), YK_JSON_OPTIONAL, &ahead[b]));
    return YK_OK;
}

static yk_status read_slice(const yk_jv *at, yk_plan *plan, uint32_t layer)
{
    yk_slice s = {0};
    yk_jv kinds;
    char name[16] = "", kind[8];
    YK_TRY(yk_json_text(at, "tensor_group", sizeof name, YK_JSON_REQUIRED, name));
    while (s.group < YK_PART_N && strcmp(yk_part_group_name(s.group), name) != 0)
        s.group++;
    if (s.group == YK_PART_N)
        return yk_json_fail_key(at, "tensor_group", "\"%s\" is not known; known are ffn, exp, shexp", name);
    YK_TRY(yk_json_u32(at, "expert", 0, UINT32_MAX, s.group == YK_PART_EXP ? YK_JSON_REQUIRED : YK_JSON_OPTIONAL, &s.expert));
    YK_TRY(yk_json_u32(at, "unit0", 0, UINT32_MAX, YK_JSON_REQUIRED, &s.unit0));
    YK_TRY(yk_json_u32(at, "units", 1, UINT32_MAX, YK_JSON_REQUIRED, &s.units));
    YK_TRY(read_home(at, "home", YK_JSON_REQUIRED, plan, &s.home));
    YK_TRY(yk_json_member(at, "kind", JSON_OBJECT, YK_JSON_OPTIONAL, &kinds));
    for (int b = 0; b < YK_N_BUCKETS; b++) {
        snprintf(kind, sizeof kind, "%s", s.home == YK_HOST ? "CC" : "GG");
        if (kinds.v)
            YK_TRY(yk_json_text(&kinds, yk_bucket_name((yk_bucket)b), sizeof kind, YK_JSON_OPTIONAL, kind));
        while (s.kind[b] <= YK_KIND_CG && strcmp(yk_kind_name(s.kind[b]), kind) != 0)
            s.kind[b]++;
        if (s.kind[b] > YK_KIND_CG)
            return yk_json_fail_key(&kinds, yk_bucket_name((yk_bucket)b), "\"%s\" is not known; known are GG, CC, CG", kind);
    }
    YK_TRY(read_chunks(at, "chunks", s.chunk));
    return yk_plan_add(plan, layer, &s, at->err);
}

static yk_status read_assign(const yk_jv *layer, yk_plan_assign *a)
{
    yk_jv at, table;
    YK_TRY(yk_json_member(layer, "assign", JSON_OBJECT, YK_JSON_OPTIONAL, &at));
    a->given = at.v != NULL;
    if (!at.v)
        return YK_OK;
    YK_TRY(yk_json_f64(&at, "break_even_tokens", 0, 1 << 20, YK_JSON_OPTIONAL, &a->break_even_tokens));
    YK_TRY(yk_json_member(&at, "link_share", JSON_OBJECT, YK_JSON_OPTIONAL, &table));
    for (int b = 0; table.v && b < YK_B_PREFILL + YK_N_CHUNKS; b++) {
        const char *name = b < YK_B_PREFILL ? yk_bucket_name((yk_bucket)b) : yk_chunk_name((yk_chunk)(b - YK_B_PREFILL));
        YK_TRY(yk_json_f64(&table, name, 0, 1, YK_JSON_OPTIONAL, &a->link_share[b]));
    }
    YK_TRY(yk_json_member(&at, "cpu_tokens", JSON_OBJECT, YK_JSON_OPTIONAL, &table));
    for (int c = 0; table.v && c < YK_N_CHUNKS; c++)
        YK_TRY(yk_json_f64(&table, yk_chunk_name((yk_chunk)c), 0, 1 << 20, YK_JSON_OPTIONAL, &a->cpu_tokens[c]));
    return YK_OK;
}

static yk_status read_layers(const yk_jv *layers, yk_plan *plan)
{
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        yk_jv layer, slices, slice;
        YK_TRY(yk_json_element(layers, l, JSON_OBJECT, &layer));
        YK_TRY(read_home(&layer, "attn_home", YK_JSON_OPTIONAL, plan, &plan->layers[l].attn_home));
        YK_TRY(read_chunks(&layer, "attn_chunks", plan->layers[l].attn_chunk));
        YK_TRY(read_ahead(&layer, plan->layers[l].ahead));
        YK_TRY(read_assign(&layer, &plan->layers[l].assign));
        YK_TRY(yk_json_member(&layer, "slices", JSON_ARRAY, YK_JSON_REQUIRED, &slices));
        for (size_t i = 0; i < json_array_size(slices.v); i++) {
            YK_TRY(yk_json_element(&slices, i, JSON_OBJECT, &slice));
            YK_TRY(read_slice(&slice, plan, l));
        }
    }
    return YK_OK;
}

static yk_status read_memory(const yk_jv *at, yk_plan *plan)
{
    yk_jv memory, place;
    const char *key;
    json_t *value;
    YK_TRY(yk_json_member(at, "memory", JSON_OBJECT, YK_JSON_OPTIONAL, &memory));
    if (!memory.v)
        return YK_OK;
    json_object_foreach((json_t *)(uintptr_t)memory.v, key, value)
    {
        json_t *name = json_pack("{s:s}", "home", key);
        int8_t home = YK_HOST;
        yk_jv probe = {.v = name, .err = at->err};
        if (!name)
            return yk_fail_memory(at->err, strlen(key), "the name of a device");
        snprintf(probe.path, sizeof probe.path, "%.180s", memory.path);
        const bool full = plan->n_devices == YK_MAX_DEVICES;
        const yk_status st = read_home(&probe, "home", YK_JSON_REQUIRED, plan, &home);
        json_decref(name);
        if (st == YK_ERR_INPUT && full)
            return yk_json_fail(&memory, "\"%.40s\" is one place too many, at most %d devices are possible", key,
                                YK_MAX_DEVICES);
        if (st != YK_OK)
            return st == YK_ERR_MEMORY
                       ? st
                       : yk_json_fail(&memory, "\"%.40s\" is no place; \"host\" is one, and a device like \"opencl:0\"", key);
        YK_TRY(yk_json_member(&memory, key, JSON_OBJECT, YK_JSON_REQUIRED, &place));
        for (int c = 0; c < YK_MEM_N_CLASSES; c++)
            YK_TRY(yk_json_u64(&place, class_names[c], 0, 1ull << 60, YK_JSON_OPTIONAL, &plan->memory[1 + home][c]));
    }
    return YK_OK;
}

/* {"0": 1.5, "4096": 1.2}: keys are numbers of tokens. */
static yk_status read_figures(const yk_jv *at, const char *key, yk_figure *figures, uint32_t *n)
{
    yk_jv table;
    const char *name;
    json_t *value;
    *n = 0;
    YK_TRY(yk_json_member(at, key, JSON_OBJECT, YK_JSON_OPTIONAL, &table));
    if (!table.v)
        return YK_OK;
    json_object_foreach((json_t *)(uintptr_t)table.v, name, value)
    {
        if (*n == YK_PLAN_MAX_FIGURES || !*name || strspn(name, "0123456789") != strlen(name) || strlen(name) > 9)
            return yk_json_fail(&table, "needs at most %d keys that are numbers of tokens, not \"%.40s\"", YK_PLAN_MAX_FIGURES,
                                name);
        yk_figure *f = &figures[(*n)++];
        for (const char *p = name; *p; p++)
            f->at = 10 * f->at + (uint32_t)(*p - '0');
        YK_TRY(yk_json_f64(&table, name, 0, 1e15, YK_JSON_REQUIRED, &f->value));
    }
    return YK_OK;
}

static const char *const phase_names[2] = {"decode", "prefill"}, *const bound_names[YK_PLAN_N_BOUNDS] = {"cpu", "gpu", "link",
                                                                                                         "hand-off"};

static yk_status read_shares(const yk_jv *at, yk_plan_speed *s)
{
    yk_jv shares, table;
    YK_TRY(yk_json_member(at, "binding_shares", JSON_OBJECT, YK_JSON_OPTIONAL, &shares));
    for (int phase = 0; shares.v && phase < 2; phase++) {
        YK_TRY(yk_json_member(&shares, phase_names[phase], JSON_OBJECT, YK_JSON_OPTIONAL, &table));
        for (int k = 0; table.v && k < YK_PLAN_N_BOUNDS; k++)
            YK_TRY(yk_json_f64(&table, bound_names[k], 0, 1, YK_JSON_OPTIONAL, &s->share[phase][k]));
    }
    return YK_OK;
}

static yk_status read_help(const yk_jv *at, yk_plan_speed *s)
{
    yk_jv list, one;
    YK_TRY(yk_json_member(at, "would_help", JSON_ARRAY, YK_JSON_OPTIONAL, &list));
    for (size_t i = 0; list.v && i < json_array_size(list.v) && i < YK_PLAN_MAX_HELP; i++) {
        yk_plan_help *h = &s->help[s->n_help++];
        YK_TRY(yk_json_element(&list, i, JSON_OBJECT, &one));
        YK_TRY(yk_json_text(&one, "name", sizeof h->name, YK_JSON_REQUIRED, h->name));
        YK_TRY(yk_json_f64(&one, "decode_tps", 0, 1e15, YK_JSON_OPTIONAL, &h->decode_tps));
        YK_TRY(yk_json_f64(&one, "prefill_tps", 0, 1e15, YK_JSON_OPTIONAL, &h->prefill_tps));
    }
    return YK_OK;
}

static yk_status read_speed(const yk_jv *at, yk_plan *plan)
{
    yk_plan_speed *s = &plan->speed;
    yk_jv p, batch, list, one;
    uint32_t n;
    YK_TRY(yk_json_member(at, "predicted", JSON_OBJECT, YK_JSON_OPTIONAL, &p));
    plan->predicted = p.v != NULL;
    if (p.v) {
        YK_TRY(read_figures(&p, "decode_tps", s->decode_tps, &s->n_depths));
        YK_TRY(read_figures(&p, "prefill_tps", s->prefill_tps, &s->n_chunks));
        YK_TRY(read_figures(&p, "ttft_ms", s->ttft_ms, &s->n_prompts));
        YK_TRY(yk_json_member(&p, "decode_tps_batch", JSON_OBJECT, YK_JSON_OPTIONAL, &batch));
        for (int b = 0; batch.v && b < YK_B_PREFILL; b++) {
            YK_TRY(read_figures(&batch, yk_bucket_name((yk_bucket)b), s->batch_tps[b], &n));
            if (n != s->n_depths)
                return yk_json_fail_key(&batch, yk_bucket_name((yk_bucket)b), "must have the depths of decode_tps");
        }
    }
    YK_TRY(yk_json_member(at, "binding", JSON_OBJECT, YK_JSON_OPTIONAL, &p));
    for (int i = 0; p.v && i < 2; i++)
        YK_TRY(yk_json_text(&p, i ? "prefill" : "decode", sizeof s->bound[i], YK_JSON_OPTIONAL, s->bound[i]));
    YK_TRY(yk_json_member(at, "bound_share", JSON_OBJECT, YK_JSON_OPTIONAL, &p));
    for (int i = 0; p.v && i < 2; i++)
        YK_TRY(yk_json_f64(&p, i ? "prefill" : "decode", 0, 1, YK_JSON_OPTIONAL, &s->bound_share[i]));
    YK_TRY(read_shares(at, s));
    YK_TRY(read_help(at, s));
    YK_TRY(yk_json_member(at, "alternatives", JSON_ARRAY, YK_JSON_OPTIONAL, &list));
    for (size_t i = 0; list.v && i < json_array_size(list.v) && i < YK_PLAN_MAX_ALTERNATIVES; i++) {
        yk_alternative *a = &plan->alternatives[plan->n_alternatives++];
        YK_TRY(yk_json_element(&list, i, JSON_OBJECT, &one));
        YK_TRY(yk_json_text(&one, "name", sizeof a->name, YK_JSON_REQUIRED, a->name));
        YK_TRY(yk_json_f64(&one, "decode_tps", 0, 1e15, YK_JSON_OPTIONAL, &a->decode_tps));
        YK_TRY(yk_json_f64(&one, "prefill_tps", 0, 1e15, YK_JSON_OPTIONAL, &a->prefill_tps));
    }
    return YK_OK;
}

static yk_status read_plan(const yk_jv *at, yk_plan *plan)
{
    yk_jv layers, model, limits;
    YK_TRY(yk_json_format(at, YK_PLAN_FORMAT));
    YK_TRY(yk_json_member(at, "layers", JSON_ARRAY, YK_JSON_REQUIRED, &layers));
    const size_t n = json_array_size(layers.v);
    if (n < 1 || n > MAX_LAYERS)
        return yk_json_fail(&layers, "has %zu layers, 1 to %d are possible", n, MAX_LAYERS);
    YK_TRY(yk_plan_init(plan, (uint32_t)n, at->err));
    YK_TRY(yk_json_member(at, "model", JSON_OBJECT, YK_JSON_OPTIONAL, &model));
    if (model.v) {
        YK_TRY(yk_json_text(&model, "id", sizeof plan->shape_id, YK_JSON_OPTIONAL, plan->shape_id));
        YK_TRY(yk_json_text(&model, "name", sizeof plan->model_name, YK_JSON_OPTIONAL, plan->model_name));
    }
    YK_TRY(yk_json_member(at, "limits", JSON_OBJECT, YK_JSON_OPTIONAL, &limits));
    if (limits.v) {
        YK_TRY(yk_json_u32(&limits, "context", 0, UINT32_MAX, YK_JSON_OPTIONAL, &plan->context));
        YK_TRY(yk_json_u32(&limits, "max_seqs", 0, UINT32_MAX, YK_JSON_OPTIONAL, &plan->max_seqs));
        YK_TRY(yk_json_u32(&limits, "batch", 0, UINT32_MAX, YK_JSON_OPTIONAL, &plan->batch));
        YK_TRY(yk_json_u32(&limits, "kv_elem_bytes", 0, 16, YK_JSON_OPTIONAL, &plan->kv_elem_bytes));
    }
    YK_TRY(yk_json_text(at, "note", sizeof plan->note, YK_JSON_OPTIONAL, plan->note));
    YK_TRY(read_memory(at, plan)); /* first: its order is the order of devices */
    YK_TRY(read_home(at, "head_home", YK_JSON_OPTIONAL, plan, &plan->head_home));
    YK_TRY(read_home(at, "embd_home", YK_JSON_OPTIONAL, plan, &plan->embd_home));
    YK_TRY(read_speed(at, plan));
    YK_TRY(read_layers(&layers, plan));
    yk_plan_set_id(plan);
    return YK_OK;
}

yk_status yk_plan_read(yk_plan *out, const char *text, size_t n_bytes, yk_error *err)
{
    json_t *root;
    yk_jv at;
    *out = (yk_plan){0};
    YK_TRY(yk_json_parse(&root, &at, text, n_bytes, "plan", err));
    const yk_status st = read_plan(&at, out);
    json_decref(root);
    if (st != YK_OK)
        yk_plan_clear(out);
    return st;
}

/* ---- writing ---- */

static void put_text(yk_text *t, const char *key, const char *s)
{
    yk_text_put(t, " \"%s\": ", key);
    yk_text_put_string(t, s);
    yk_text_put(t, ",\n");
}

static void put_figures(yk_text *t, const yk_figure *figures, uint32_t n)
{
    yk_text_put(t, "{");
    for (uint32_t i = 0; i < n; i++) {
        yk_text_put(t, "%s\"%u\": ", i ? ", " : "", figures[i].at);
        yk_text_put_json(t, json_real(figures[i].value));
    }
    yk_text_put(t, "}");
}

static void put_real(yk_text *t, const char *before, const char *key, double value)
{
    yk_text_put(t, "%s\"%s\": ", before, key);
    yk_text_put_json(t, json_real(value));
}

static void put_shares(yk_text *t, const yk_plan_speed *s)
{
    double any = 0;
    for (int k = 0; k < 2 * YK_PLAN_N_BOUNDS; k++)
        any += s->share[k / YK_PLAN_N_BOUNDS][k % YK_PLAN_N_BOUNDS];
    for (int phase = 0; phase < 2 && any > 0; phase++) {
        yk_text_put(t, "%s\"%s\": {", phase ? ", " : " \"binding_shares\": {", phase_names[phase]);
        for (int k = 0; k < YK_PLAN_N_BOUNDS; k++)
            put_real(t, k ? ", " : "", bound_names[k], s->share[phase][k]);
        yk_text_put(t, "}%s", phase ? "},\n" : "");
    }
}

static void put_help(yk_text *t, const yk_plan_speed *s)
{
    for (uint32_t i = 0; i < s->n_help; i++) {
        const yk_plan_help *h = &s->help[i];
        yk_text_put(t, "%s\n  {\"name\": ", i ? "," : " \"would_help\": [");
        yk_text_put_string(t, h->name);
        put_real(t, ", ", "decode_tps", h->decode_tps);
        put_real(t, ", ", "prefill_tps", h->prefill_tps);
        yk_text_put(t, "}%s", i + 1 == s->n_help ? "\n ],\n" : "");
    }
}

static void put_assign(yk_text *t, const yk_plan_assign *a)
{
    if (!a->given)
        return;
    yk_text_put(t, "\"assign\": {");
    if (a->break_even_tokens > 0) {
        put_real(t, "", "break_even_tokens", a->break_even_tokens);
        yk_text_put(t, ", ");
    }
    yk_text_put(t, "\"link_share\": {");
    for (int b = 0; b < YK_B_PREFILL + YK_N_CHUNKS; b++)
        put_real(t, b ? ", " : "",
                 b < YK_B_PREFILL ? yk_bucket_name((yk_bucket)b) : yk_chunk_name((yk_chunk)(b - YK_B_PREFILL)),
                 a->link_share[b]);
    yk_text_put(t, "}, \"cpu_tokens\": {");
    for (int c = 0; c < YK_N_CHUNKS; c++)
        put_real(t, c ? ", " : "", yk_chunk_name((yk_chunk)c), a->cpu_tokens[c]);
    yk_text_put(t, "}},\n   ");
}

static void put_speed(yk_text *t, const yk_plan *plan)
{
    const yk_plan_speed *s = &plan->speed;
    if (plan->predicted) {
        yk_text_put(t, " \"predicted\": {\n  \"decode_tps\": ");
        put_figures(t, s->decode_tps, s->n_depths);
        yk_text_put(t, ",\n  \"decode_tps_batch\": {");
        for (int b = 0; b < YK_B_PREFILL; b++) {
            yk_text_put(t, "%s\n   \"%s\": ", b ? "," : "", yk_bucket_name((yk_bucket)b));
            put_figures(t, s->batch_tps[b], s->n_depths);
        }
        yk_text_put(t, "\n  },\n  \"prefill_tps\": ");
        put_figures(t, s->prefill_tps, s->n_chunks);
        yk_text_put(t, ",\n  \"ttft_ms\": ");
        put_figures(t, s->ttft_ms, s->n_prompts);
        yk_text_put(t, "\n },\n");
    }
    if (*s->bound[0] || *s->bound[1]) {
        yk_text_put(t, " \"binding\": {\"decode\": ");
        yk_text_put_string(t, s->bound[0]);
        yk_text_put(t, ", \"prefill\": ");
        yk_text_put_string(t, s->bound[1]);
        yk_text_put(t, "},\n \"bound_share\": {\"decode\": ");
        yk_text_put_json(t, json_real(s->bound_share[0]));
        yk_text_put(t, ", \"prefill\": ");
        yk_text_put_json(t, json_real(s->bound_share[1]));
        yk_text_put(t, "},\n");
    }
    put_shares(t, s);
    put_help(t, s);
    if (plan->n_alternatives) {
        yk_text_put(t, " \"alternatives\": [");
        for (uint32_t i = 0; i < plan->n_alternatives; i++) {
            const yk_alternative *a = &plan->alternatives[i];
            yk_text_put(t, "%s\n  {\"name\": ", i ? "," : "");
            yk_text_put_string(t, a->name);
            yk_text_put(t, ", \"decode_tps\": ");
            yk_text_put_json(t, json_real(a->decode_tps));
            yk_text_put(t, ", \"prefill_tps\": ");
            yk_text_put_json(t, json_real(a->prefill_tps));
            yk_text_put(t, "}");
        }
        yk_text_put(t, "\n ],\n");
    }
}

static void put_memory(yk_text *t, const yk_plan *plan)
{
    yk_text_put(t, " \"memory\": {");
    for (uint32_t p = 0; p <= plan->n_devices; p++) {
        bool any = false;
        yk_text_put(t, "%s\n  \"%s\": {", p ? "," : "", yk_plan_home_name(plan, (int)p - 1));
        for (int c = 0; c < YK_MEM_N_CLASSES; c++) {
            if (plan->memory[p][c] == YK_PLAN_NO_CEILING)
                continue;
            yk_text_put(t, "%s\"%s\": %llu", any ? ", " : "", class_names[c], (unsigned long long)plan->memory[p][c]);
            any = true;
        }
        yk_text_put(t, "}");
    }
    yk_text_put(t, "\n },\n");
}

/* `before`"key": {"129-512": "CG"}, or nothing when no chunk has a kind. */
static void put_chunks(yk_text *t, const char *before, const char *key, const uint8_t chunk[YK_N_CHUNKS])
{
    bool any = false;
    for (int c = 0; c < YK_N_CHUNKS; c++)
        if (chunk[c]) {
            if (!any)
                yk_text_put(t, "%s\"%s\": {", before, key);
            yk_text_put(t, "%s\"%s\": \"%s\"", any ? ", " : "", yk_chunk_name((yk_chunk)c), yk_kind_name(chunk[c] - 1));
            any = true;
        }
    if (any)
        yk_text_put(t, "}");
}

static void put_ahead(yk_text *t, const bool ahead[YK_B_PREFILL])
{
    bool any = false;
    for (int b = 0; b < YK_B_PREFILL; b++)
        if (ahead[b]) {
            yk_text_put(t, "%s\"%s\": true", any ? ", " : ", \"ahead\": {", yk_bucket_name((yk_bucket)b));
            any = true;
        }
    if (any)
        yk_text_put(t, "}");
}

static void put_slice(yk_text *t, const yk_plan *plan, const yk_slice *s)
{
    yk_text_put(t, "{\"tensor_group\": \"%s\", \"expert\": %u, \"unit0\": %u, \"units\": %u, \"home\": \"%s\", \"kind\": {",
                yk_part_group_name(s->group), s->expert, s->unit0, s->units, yk_plan_home_name(plan, s->home));
    for (int b = 0; b < YK_N_BUCKETS; b++)
        yk_text_put(t, "%s\"%s\": \"%s\"", b ? ", " : "", yk_bucket_name((yk_bucket)b), yk_kind_name(s->kind[b]));
    yk_text_put(t, "}");
    put_chunks(t, ", ", "chunks", s->chunk);
    yk_text_put(t, "}");
}

yk_status yk_plan_write(const yk_plan *plan, char **out, size_t *n_bytes, yk_error *err)
{
    yk_text t = {0};
    yk_text_put(&t, "{\n \"format\": %d,\n", YK_PLAN_FORMAT);
    put_text(&t, "plan_id", plan->plan_id);
    if (*plan->shape_id) {
        yk_text_put(&t, " \"model\": {\"id\": ");
        yk_text_put_string(&t, plan->shape_id);
        yk_text_put(&t, ", \"name\": ");
        yk_text_put_string(&t, plan->model_name);
        yk_text_put(&t, "},\n");
    }
    if (plan->context)
        yk_text_put(&t, " \"limits\": {\"context\": %u, \"max_seqs\": %u, \"batch\": %u, \"kv_elem_bytes\": %u},\n",
                    plan->context, plan->max_seqs, plan->batch, plan->kv_elem_bytes);
    if (*plan->note)
        put_text(&t, "note", plan->note);
    put_speed(&t, plan);
    put_memory(&t, plan);
    put_text(&t, "head_home", yk_plan_home_name(plan, plan->head_home));
    put_text(&t, "embd_home", yk_plan_home_name(plan, plan->embd_home));
    yk_text_put(&t, " \"layers\": [");
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        const yk_plan_layer *y = &plan->layers[l];
        yk_text_put(&t, "%s\n  {\"attn_home\": \"%s\"", l ? "," : "", yk_plan_home_name(plan, y->attn_home));
        put_chunks(&t, ", ", "attn_chunks", y->attn_chunk);
        put_ahead(&t, y->ahead);
        yk_text_put(&t, ", ");
        put_assign(&t, &y->assign);
        yk_text_put(&t, "\"slices\": [");
        for (uint32_t i = 0; i < y->n_slices; i++) {
            yk_text_put(&t, "%s\n   ", i ? "," : "");
            put_slice(&t, plan, &y->slices[i]);
        }
        yk_text_put(&t, "]}");
    }
    yk_text_put(&t, "\n ]\n}\n");
    return yk_text_take(&t, out, n_bytes, "the text of a plan", err);
}
