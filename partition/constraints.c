#include "partition/constraints.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* ---- -ot as text ---- */

yk_status yk_plan_add_override(yk_plan_wishes *w, const char *text, yk_error *err)
{
    for (const char *at = text, *end; at; at = *end ? end + 1 : NULL) {
        end = at + strcspn(at, ",");
        /* A comma may belong to the pattern, as in {1,3}: then what follows has no '=' before the next one. */
        while (*end && !memchr(at, '=', (size_t)(end - at)))
            end += 1 + strcspn(end + 1, ",");
        const char *eq = NULL;
        for (const char *p = at; p < end; p++)
            eq = *p == '=' ? p : eq;
        YK_FAIL_IF(!eq || eq == at || eq + 1 == end, err, YK_ERR_USAGE, "-ot %.100s: must be REGEX=DEVICE, as in exps=CPU",
                   text);
        YK_FAIL_IF(w->n_overrides == YK_PLAN_MAX_OVERRIDES, err, YK_ERR_USAGE, "-ot: at most %d patterns are possible",
                   YK_PLAN_MAX_OVERRIDES);
        yk_plan_override *o = &w->overrides[w->n_overrides];
        YK_FAIL_IF((size_t)(eq - at) >= sizeof o->pattern, err, YK_ERR_USAGE, "-ot %.60s...: a pattern has at most %zu bytes",
                   at, sizeof o->pattern - 1);
        YK_FAIL_IF((size_t)(end - eq - 1) >= sizeof o->device, err, YK_ERR_USAGE, "-ot %.100s: the device's name is too long",
                   at);
        *o = (yk_plan_override){0};
        memcpy(o->pattern, at, (size_t)(eq - at));
        memcpy(o->device, eq + 1, (size_t)(end - eq - 1));
        w->n_overrides++;
    }
    return YK_OK;
}

/* ---- who asked what ---- */

void yk_rules_flag(const yk_rules *r, yk_asked a, char out[160])
{
    const yk_plan_wishes *w = r->wishes;
    switch (a.who) {
    case YK_ASK_NGL:
        snprintf(out, 160, "-ngl %u", w->ngl);
        return;
    case YK_ASK_NKVO:
        snprintf(out, 160, "-nkvo");
        return;
    case YK_ASK_NCMOE:
        snprintf(out, 160, "-ncmoe %u", w->ncmoe);
        return;
    case YK_ASK_OT:
        snprintf(out, 160, "-ot %s=%s", w->overrides[a.index].pattern, w->overrides[a.index].device);
        return;
    case YK_ASK_FIXED:
        snprintf(out, 160, "fixed[%u]", a.index);
        return;
    default:
        snprintf(out, 160, "no flag");
    }
}

static const char *const side_names[] = {"nowhere", "the host", "a device", "anywhere"};

/* A stronger wish takes from a weaker one, and the note says so (the first in full, the others counted). */
static void ask(yk_rules *r, yk_asked *at, yk_asked want, uint32_t layer, const char *what)
{
    if (at->who != YK_ASK_NOBODY && at->sides != want.sides && at->who != want.who && r->n_gave_way++ == 0) {
        char weak[160], strong[160], where[32] = "";
        yk_rules_flag(r, *at, weak);
        yk_rules_flag(r, want, strong);
        if (layer != UINT32_MAX)
            snprintf(where, sizeof where, " of layer %u", layer);
        snprintf(r->gave_way, sizeof r->gave_way, "%.60s gives way to %.60s (%s%s on %s)", weak, strong, what, where,
                 side_names[want.sides & 3]);
    }
    *at = want;
    r->any = true;
}

static yk_status cannot(const yk_rules *r, yk_asked a, const char *what, uint32_t layer, yk_error *err)
{
    char flag[160], where[32] = "";
    yk_rules_flag(r, a, flag);
    if (layer != UINT32_MAX)
        snprintf(where, sizeof where, " of layer %u", layer);
    return yk_fail(err, YK_ERR_USAGE, "%s: no device computes the types of the %s%s; it must stay on the host", flag, what,
                   where);
}

/* ---- -ngl, -nkvo, -ncmoe ---- */

static void ask_plain(yk_rules *r)
{
    const yk_plan_wishes *w = r->wishes;
    const uint32_t n = r->shape->n_layers;
    const uint32_t first = w->ngl > n ? 0 : n + 1 - w->ngl; /* the head is layer n */
    for (uint32_t l = 0; l < n; l++) {
        yk_layer_rule *y = &r->layers[l];
        const yk_shape_layer *sl = &r->shape->layers[l];
        const yk_part_group main = yk_main_part(sl);
        /* What no device computes stays, as it would without the flag. */
        const yk_asked ngl = {YK_ASK_NGL, l >= first ? YK_ON_DEVICE : YK_ON_HOST, 0}, stay = {YK_ASK_NGL, YK_ON_HOST, 0};
        if (w->ngl_given) {
            ask(r, &y->attn, sl->host_only ? stay : ngl, l, "attention");
            ask(r, &y->main, sl->part[main].host_only ? stay : ngl, l, main == YK_PART_EXP ? "experts" : "FFN");
            if (sl->part[YK_PART_SHEXP].n)
                ask(r, &y->shared, sl->part[YK_PART_SHEXP].host_only ? stay : ngl, l, "shared expert");
        }
        if (w->nkvo)
            ask(r, &y->attn, (yk_asked){YK_ASK_NKVO, YK_ON_HOST, 0}, l, "attention");
        if (l < w->ncmoe && main == YK_PART_EXP)
            ask(r, &y->main, (yk_asked){YK_ASK_NCMOE, YK_ON_HOST, 0}, l, "experts");
    }
    if (w->ngl_given)
        r->head = (yk_asked){YK_ASK_NGL, w->ngl && !r->shape->head_host_only ? YK_ON_DEVICE : YK_ON_HOST, 0};
    r->any = r->any || w->ngl_given;
}

/* ---- -ot ---- */

/* "CUDA0" and "cuda:0" are one device, "CPU" and "host" are no device: name becomes "". */
static yk_status device_name(const yk_rules *r, const yk_plan_limits *limits, yk_asked a, const char *given,
                             char name[YK_DEVICE_NAME], yk_error *err)
{
    char flag[160];
    size_t n = 0;
    for (const char *p = given; *p && n + 2 < YK_DEVICE_NAME; p++) {
        if (isdigit((unsigned char)*p) && n && isalpha((unsigned char)name[n - 1]))
            name[n++] = ':';
        name[n++] = (char)tolower((unsigned char)*p);
    }
    name[n] = 0;
    if (strcmp(name, "cpu") == 0 || strcmp(name, "host") == 0) {
        *name = 0;
        return YK_OK;
    }
    for (uint32_t i = 0; i < limits->n_devices; i++)
        if (strcmp(limits->devices[i].name, name) == 0)
            return YK_OK;
    yk_rules_flag(r, a, flag);
    return yk_fail(err, YK_ERR_USAGE, "%s: there is no device \"%s\" here; CPU is one, and what `yoke devices` lists", flag,
                   given);
}

static yk_status name_device(yk_rules *r, yk_asked a, const char *name, yk_error *err)
{
    char flag[160];
    yk_rules_flag(r, a, flag);
    YK_FAIL_IF(*r->device && strcmp(r->device, name) != 0, err, YK_ERR_USAGE,
               "%s lost: %s is asked for already, and a plan made here uses one device", flag, r->device);
    snprintf(r->device, sizeof r->device, "%s", name);
    return YK_OK;
}

typedef struct patterns {
    yk_rules *r;
    const yk_plan_limits *limits;
    pcre2_general_context *general; /* PCRE2 allocates through it */
    pcre2_compile_context *compile;
    pcre2_code *code[YK_PLAN_MAX_OVERRIDES];
    pcre2_match_data *match;
    pcre2_match_context *ctx;
    uint32_t hits[YK_PLAN_MAX_OVERRIDES];
} patterns;

static void *pcre_alloc(size_t n, void *user)
{
    (void)user;
    return yk_alloc(YK_MEM_PLAN, n, 1);
}

static void pcre_free(void *p, void *user)
{
    (void)user;
    yk_free(p);
}

static yk_status open_patterns(patterns *p, yk_error *err)
{
    const yk_plan_wishes *w = p->r->wishes;
    p->general = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    p->compile = pcre2_compile_context_create(p->general);
    p->match = pcre2_match_data_create(1, p->general);
    p->ctx = pcre2_match_context_create(p->general);
    if (!p->general || !p->compile || !p->match || !p->ctx)
        return yk_fail_memory(err, 1024, "patterns of -ot");
    pcre2_set_match_limit(p->ctx, 100000); /* a pattern that backtracks without end is refused, not waited for */
    for (uint32_t i = 0; i < w->n_overrides; i++) {
        int code;
        PCRE2_SIZE at;
        PCRE2_UCHAR text[96] = "";
        p->code[i] = pcre2_compile((PCRE2_SPTR)w->overrides[i].pattern, PCRE2_ZERO_TERMINATED, 0, &code, &at, p->compile);
        if (!p->code[i] && code == PCRE2_ERROR_HEAP_FAILED)
            return yk_fail_memory(err, sizeof w->overrides[i].pattern, "a pattern of -ot");
        if (!p->code[i]) {
            pcre2_get_error_message(code, text, sizeof text);
            return yk_fail(err, YK_ERR_USAGE, "-ot %s=%s: %s (at byte %zu of the pattern)", w->overrides[i].pattern,
                           w->overrides[i].device, (const char *)text, (size_t)at);
        }
    }
    return YK_OK;
}

static void close_patterns(patterns *p)
{
    for (int i = 0; i < YK_PLAN_MAX_OVERRIDES; i++)
        pcre2_code_free(p->code[i]);
    pcre2_match_data_free(p->match);
    pcre2_match_context_free(p->ctx);
    pcre2_compile_context_free(p->compile);
    pcre2_general_context_free(p->general);
}

/* The first pattern that a weight's name matches, as in llama.cpp; sides 0: none does. */
static yk_status match(patterns *p, const char *name, yk_asked *out, yk_error *err)
{
    const yk_plan_wishes *w = p->r->wishes;
    *out = (yk_asked){0};
    for (uint32_t i = 0; i < w->n_overrides && !out->sides; i++) {
        const int rc = pcre2_match(p->code[i], (PCRE2_SPTR)name, strlen(name), 0, 0, p->match, p->ctx);
        if (rc == PCRE2_ERROR_NOMEMORY)
            return yk_fail_memory(err, strlen(name), "a pattern of -ot");
        YK_FAIL_IF(rc < 0 && rc != PCRE2_ERROR_NOMATCH, err, YK_ERR_USAGE, "-ot %s=%s: the pattern takes too long on \"%s\"",
                   w->overrides[i].pattern, w->overrides[i].device, name);
        if (rc < 0)
            continue;
        char device[YK_DEVICE_NAME];
        p->hits[i]++;
        *out = (yk_asked){YK_ASK_OT, YK_ON_HOST, (uint16_t)i};
        YK_TRY(device_name(p->r, p->limits, *out, w->overrides[i].device, device, err));
        if (*device) {
            out->sides = YK_ON_DEVICE;
            YK_TRY(name_device(p->r, *out, device, err));
        }
    }
    return YK_OK;
}

/* A group of weights that lives in one place; names end with NULL. Weights that no pattern matches follow the others. */
static yk_status ask_group(patterns *p, yk_asked *at, uint32_t layer, const char *what, const char *const *names, yk_error *err)
{
    char name[64], first_name[64] = "", a[160], b[160];
    yk_asked one, first = {0};
    for (; *names; names++) {
        if (layer == UINT32_MAX)
            snprintf(name, sizeof name, "%s.weight", *names);
        else
            snprintf(name, sizeof name, "blk.%u.%s.weight", layer, *names);
        YK_TRY(match(p, name, &one, err));
        if (!one.sides)
            continue;
        if (!first.sides) {
            first = one;
            memcpy(first_name, name, sizeof name);
        } else if (first.sides != one.sides) {
            yk_rules_flag(p->r, first, a);
            yk_rules_flag(p->r, one, b);
            return yk_fail(err, YK_ERR_USAGE, "%s lost: it moves %s to %s, %s keeps %s on %s, and both must be in one place", b,
                           name, side_names[one.sides], a, first_name, side_names[first.sides]);
        }
    }
    if (!first.sides)
        return YK_OK;
    YK_FAIL_IF(first.sides == YK_ON_DEVICE && at->who == YK_ASK_NKVO, err, YK_ERR_USAGE,
               "-nkvo lost: -ot %s wants the attention of layer %u on a device, and KV lives where the attention is; leave one "
               "of both out",
               p->r->wishes->overrides[first.index].pattern, layer);
    ask(p->r, at, first, layer, what);
    return YK_OK;
}

static yk_status ask_layer(patterns *p, uint32_t l, yk_error *err)
{
    static const char *const attn[] = {"attn_q", "attn_k", "attn_v", "attn_output", NULL},
                             *const ffn[] = {"ffn_gate", "ffn_up", "ffn_down", NULL},
                             *const exp[] = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", NULL},
                             *const shared[] = {"ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", NULL};
    yk_rules *r = p->r;
    yk_layer_rule *y = &r->layers[l];
    const yk_shape_layer *sl = &r->shape->layers[l];
    const yk_part_group main = yk_main_part(sl);
    YK_TRY(ask_group(p, &y->attn, l, "attention", attn, err));
    YK_TRY(ask_group(p, &y->main, l, main == YK_PART_EXP ? "experts" : "FFN", main == YK_PART_EXP ? exp : ffn, err));
    if (sl->part[YK_PART_SHEXP].n)
        YK_TRY(ask_group(p, &y->shared, l, "shared expert", shared, err));
    const bool at[3] = {y->attn.who == YK_ASK_OT && y->attn.sides == YK_ON_DEVICE && sl->host_only,
                        y->main.who == YK_ASK_OT && y->main.sides == YK_ON_DEVICE && sl->part[main].host_only,
                        y->shared.who == YK_ASK_OT && y->shared.sides == YK_ON_DEVICE && sl->part[YK_PART_SHEXP].host_only};
    if (at[0])
        return cannot(r, y->attn, "attention", l, err);
    return at[1] ? cannot(r, y->main, "FFN", l, err) : at[2] ? cannot(r, y->shared, "shared expert", l, err) : YK_OK;
}

static yk_status ask_overrides(yk_rules *r, const yk_plan_limits *limits, yk_error *err)
{
    static const char *const head[] = {"output", NULL}, *const embd[] = {"token_embd", NULL};
    patterns p = {.r = r, .limits = limits};
    yk_asked e = {0};
    yk_status st = open_patterns(&p, err);
    for (uint32_t l = 0; l < r->shape->n_layers && st == YK_OK; l++)
        st = ask_layer(&p, l, err);
    if (st == YK_OK)
        st = ask_group(&p, &r->head, UINT32_MAX, "head", head, err);
    if (st == YK_OK && r->head.who == YK_ASK_OT && r->head.sides == YK_ON_DEVICE && r->shape->head_host_only)
        st = cannot(r, r->head, "head", UINT32_MAX, err);
    if (st == YK_OK)
        st = ask_group(&p, &e, UINT32_MAX, "embedding", embd, err);
    if (st == YK_OK && e.sides == YK_ON_DEVICE)
        st = yk_fail(
            err, YK_ERR_USAGE,
            "-ot %s=%s lost: the planner keeps the embedding (token_embd.weight) on the host, a row of it is read for a token",
            r->wishes->overrides[e.index].pattern, r->wishes->overrides[e.index].device);
    for (uint32_t i = 0; i < r->wishes->n_overrides && st == YK_OK; i++)
        if (!p.hits[i] && r->n_gave_way++ == 0)
            snprintf(r->gave_way, sizeof r->gave_way, "-ot %.100s matches no weight of this model that can be placed",
                     r->wishes->overrides[i].pattern);
    close_patterns(&p);
    return st;
}

/* ---- fixed slices ---- */

static yk_status ask_fixed(yk_rules *r, const yk_plan_limits *limits, uint16_t i, yk_error *err)
{
    const yk_plan_fixed *f = &r->wishes->fixed[i];
    const yk_asked me = {YK_ASK_FIXED, 0, i};
    char device[YK_DEVICE_NAME];
    YK_FAIL_IF(f->layer >= r->shape->n_layers || f->group >= YK_PART_N, err, YK_ERR_USAGE,
               "fixed[%u]: the model has no layer %u or no such part", i, f->layer);
    const yk_shape_layer *sl = &r->shape->layers[f->layer];
    const yk_shape_part *p = &sl->part[f->group];
    const uint32_t units = f->units ? f->units : p->cut.n;
    YK_FAIL_IF(f->expert >= p->n || f->unit0 >= p->cut.n || units > p->cut.n - f->unit0, err, YK_ERR_USAGE,
               "fixed[%u]: %s %u of layer %u has no units %u to %u", i, yk_part_group_name(f->group), f->expert, f->layer,
               f->unit0, f->unit0 + units - 1);
    YK_FAIL_IF(f->group != YK_PART_FFN && units != p->cut.n, err, YK_ERR_USAGE,
               "fixed[%u]: the planner places experts whole; name all %u units or none", i, p->cut.n);
    YK_TRY(device_name(r, limits, me, f->home, device, err));
    const yk_asked want = {YK_ASK_FIXED, *device ? YK_ON_DEVICE : YK_ON_HOST, i};
    if (*device && p->host_only)
        return cannot(r, want, yk_part_group_name(f->group), f->layer, err);
    if (*device)
        YK_TRY(name_device(r, want, device, err));
    yk_layer_rule *y = &r->layers[f->layer];
    for (uint16_t k = 0; k < i; k++) {
        const yk_plan_fixed *g = &r->wishes->fixed[k];
        const uint32_t g_units = g->units ? g->units : p->cut.n;
        const bool same = g->layer == f->layer && g->group == f->group && g->expert == f->expert &&
                          g->unit0 < f->unit0 + units && f->unit0 < g->unit0 + g_units;
        YK_FAIL_IF(same && strcmp(g->home, f->home) != 0, err, YK_ERR_USAGE,
                   "fixed[%u] lost: fixed[%u] has units of the same %s of layer %u on %s", i, k, yk_part_group_name(f->group),
                   f->layer, g->home);
    }
    if (f->group == YK_PART_SHEXP)
        ask(r, &y->shared, want, f->layer, "shared expert");
    else { /* the rest of the part keeps its rule, so only the loss is said here */
        yk_asked old = y->main;
        ask(r, &old, want, f->layer, "a fixed slice");
    }
    return YK_OK;
}

int yk_rules_unit(const yk_rules *r, uint32_t layer, yk_part_group main, uint32_t unit)
{
    const yk_plan_wishes *w = r->wishes;
    for (uint32_t i = 0; i < w->n_fixed; i++) {
        const yk_plan_fixed *f = &w->fixed[i];
        if (f->layer != layer || f->group != main)
            continue;
        const bool in = main == YK_PART_EXP ? f->expert == unit : unit >= f->unit0 && (!f->units || unit < f->unit0 + f->units);
        if (in)
            return strcasecmp(f->home, "cpu") == 0 || strcasecmp(f->home, "host") == 0 ? YK_ON_HOST : YK_ON_DEVICE;
    }
    return r->layers[layer].main.sides;
}

/* ---- all together ---- */

static void count_units(yk_rules *r, uint32_t l)
{
    yk_layer_rule *y = &r->layers[l];
    const yk_shape_layer *sl = &r->shape->layers[l];
    const yk_part_group main = yk_main_part(sl);
    const uint32_t n = yk_main_units(sl);
    y->least = y->main.sides == YK_ON_DEVICE ? n : 0;
    y->most = y->main.sides == YK_ON_HOST ? 0 : n;
    if (r->wishes->n_fixed) {
        y->least = y->most = 0;
        for (uint32_t u = 0; u < n; u++) {
            const int side = yk_rules_unit(r, l, main, u);
            y->least += side == YK_ON_DEVICE;
            y->most += side != YK_ON_HOST;
        }
    }
    if (sl->part[main].host_only)
        y->most = 0;
    const yk_asked *const all[] = {&y->attn, &y->main, &y->shared};
    for (int i = 0; i < 3 && !r->device_wanted; i++)
        if (all[i]->who && all[i]->sides == YK_ON_DEVICE) {
            r->device_wanted = true;
            r->by = *all[i];
        }
    for (uint32_t i = 0; i < r->wishes->n_fixed && !r->device_wanted && y->least; i++)
        if (r->wishes->fixed[i].layer == l) {
            r->device_wanted = true;
            r->by = (yk_asked){YK_ASK_FIXED, YK_ON_DEVICE, (uint16_t)i};
        }
}

static yk_status make(yk_rules *r, const yk_plan_limits *limits, yk_error *err)
{
    const yk_plan_wishes *w = r->wishes;
    const yk_asked free_side = {YK_ASK_NOBODY, YK_ON_BOTH, 0};
    r->layers = yk_alloc(YK_MEM_PLAN, r->shape->n_layers, sizeof *r->layers);
    if (!r->layers)
        return yk_fail_memory(err, r->shape->n_layers * sizeof *r->layers, "constraints of a plan");
    r->head = free_side;
    for (uint32_t l = 0; l < r->shape->n_layers; l++)
        r->layers[l].attn = r->layers[l].shared = r->layers[l].main = free_side;
    ask_plain(r);
    if (w->n_overrides)
        YK_TRY(ask_overrides(r, limits, err));
    YK_FAIL_IF(w->n_fixed > UINT16_MAX, err, YK_ERR_USAGE, "at most %d fixed slices are possible", UINT16_MAX);
    for (uint32_t i = 0; i < w->n_fixed; i++)
        YK_TRY(ask_fixed(r, limits, (uint16_t)i, err));
    for (uint32_t l = 0; l < r->shape->n_layers; l++)
        count_units(r, l);
    if (r->head.who && r->head.sides == YK_ON_DEVICE && !r->device_wanted) {
        r->device_wanted = true;
        r->by = r->head;
    }
    if (r->n_gave_way > 1) {
        const size_t at = strlen(r->gave_way);
        snprintf(r->gave_way + at, sizeof r->gave_way - at, ", and %u more", r->n_gave_way - 1);
    }
    return YK_OK;
}

yk_status yk_rules_make(yk_rules *r, const yk_shape *shape, const yk_plan_limits *limits, yk_error *err)
{
    *r = (yk_rules){.shape = shape, .wishes = &limits->wishes};
    return make(r, limits, err);
}

void yk_rules_close(yk_rules *r)
{
    yk_free(r->layers);
    r->layers = NULL;
}
