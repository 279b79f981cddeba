/* Plans for models and machines that need not be here, and plans as text and pictures. */
#include <stdio.h>
#include <string.h>

#include "partition/alternatives.h"
#include "partition/shape.h"
#include "partition/svg.h"
#include "partition/text.h"
#include "src/base/env.h"
#include "src/base/file.h"
#include "src/engine/auto.h"
#include "src/engine/swap.h"

enum { MAX_SHAPE = 1 << 20, DEFAULT_CONTEXT = 4096, DEFAULT_BATCH = 512 };

/* What context and libraries take of a card that nobody has opened; what it is on a card that is here is measured. */
#define RUNTIME_BYTES (400ull << 20)

static yk_status open_shape(yk_shape *out, const yk_plan_subject *s, yk_error *err)
{
    char *text;
    size_t n;
    yk_error inner = {0};
    *out = (yk_shape){0};
    YK_FAIL_IF(!s->model && !s->shape_path, err, YK_ERR_USAGE, "a plan needs a model or the file of a shape");
    if (s->model)
        return yk_auto_shape(out, s->model, err);
    YK_TRY(yk_read_file(&text, &n, s->shape_path, MAX_SHAPE, err));
    const yk_status st = yk_shape_read(out, text, n, s->type, NULL, &inner);
    yk_free(text);
    return st == YK_OK ? YK_OK : yk_fail_in_file(err, st, s->shape_path, &inner);
}

static const char *wanted(const yk_engine_opts *o)
{
    return o->device && *o->device ? o->device : "auto";
}

/* Limits for the devices of a machine file. */
static void limits_for(yk_plan_limits *l, const yk_shape *shape, const yk_machine *m, const yk_engine_opts *o)
{
    const uint32_t most = shape->n_ctx_train && shape->n_ctx_train < DEFAULT_CONTEXT ? shape->n_ctx_train : DEFAULT_CONTEXT;
    *l = (yk_plan_limits){.context = o->context ? o->context : most,
                          .max_seqs = o->max_seqs ? o->max_seqs : 1,
                          .batch = o->batch ? o->batch : DEFAULT_BATCH,
                          .kv_elem_bytes = o->kv_type == YK_KV_F32 ? 4 : 2,
                          .kv_tokens = o->kv_tokens};
    snprintf(l->device, sizeof l->device, "%s", wanted(o));
    for (uint32_t i = 0; i < m->n_devices; i++) {
        yk_plan_device_limit *d = &l->devices[l->n_devices++];
        memcpy(d->name, m->devices[i].name, sizeof d->name);
        d->budget_bytes = yk_gpulane_budget(o->vram_budget_bytes, m->devices[i].memory_bytes, m->devices[i].memory_bytes);
        d->runtime_bytes = m->devices[i].same_silicon ? 0 : RUNTIME_BYTES;
    }
}

/* The limits a plan was made for, as far as it tells. */
static void limits_of(yk_plan_limits *l, const yk_plan *plan, const yk_shape *shape, const yk_plan_subject *s,
                      const yk_engine_opts *o)
{
    const yk_machine none = {0};
    limits_for(l, shape, s->machine ? s->machine : &none, o);
    l->context = plan->context ? plan->context : l->context;
    l->max_seqs = plan->max_seqs ? plan->max_seqs : l->max_seqs;
    l->batch = plan->batch ? plan->batch : l->batch;
    l->kv_elem_bytes = plan->kv_elem_bytes ? plan->kv_elem_bytes : l->kv_elem_bytes;
    for (uint32_t i = 0; i < plan->n_devices; i++)
        for (uint32_t d = 0; d < l->n_devices; d++)
            if (strcmp(l->devices[d].name, plan->devices[i]) == 0 &&
                plan->memory[1 + i][YK_MEM_ACTIVATION] != YK_PLAN_NO_CEILING) {
                l->devices[d].runtime_bytes = plan->memory[1 + i][YK_MEM_RUNTIME];
                l->devices[d].activation_bytes = plan->memory[1 + i][YK_MEM_ACTIVATION];
            }
}

/* Are all devices of the machine file usable here? Then the engine's own way is taken, with what it really reserves. */
static yk_status all_here(bool *yes, const yk_machine *m, const yk_engine_opts *o, yk_error *err)
{
    uint32_t n = 0;
    *yes = true;
    yk_device_info *list = yk_alloc(YK_MEM_RUNTIME, YK_DEVICE_LIST, sizeof *list);
    if (!list)
        return yk_fail_memory(err, YK_DEVICE_LIST * sizeof *list, "the list of devices");
    const char *null_options = yk_device_null_options(wanted(o));
    const yk_status st = yk_device_list(list, YK_DEVICE_LIST, &n, null_options ? null_options : "compute", err);
    n = n < YK_DEVICE_LIST ? n : YK_DEVICE_LIST;
    for (uint32_t i = 0; st == YK_OK && i < m->n_devices; i++) {
        bool here = false;
        for (uint32_t k = 0; k < n; k++)
            here = here || (list[k].usable && strcmp(list[k].name, m->devices[i].name) == 0);
        *yes = *yes && here;
    }
    yk_free(list);
    return st;
}

static yk_status make_elsewhere(yk_plan **out, const yk_plan_subject *s, const yk_shape *shape, const yk_engine_opts *o,
                                yk_error *err)
{
    yk_plan_limits l;
    limits_for(&l, shape, s->machine, o);
    YK_TRY(yk_auto_wishes(&l.wishes, o, err));
    yk_plan *plan = yk_alloc(YK_MEM_PLAN, 1, sizeof *plan);
    if (!plan)
        return yk_fail_memory(err, sizeof *plan, "a plan");
    yk_status st = yk_plan_solve(plan, s->machine, shape, &l, err);
    if (st == YK_OK) {
        yk_plan_note_ram(plan, shape, s->machine, &l);
        st = yk_plan_alternatives(plan, s->machine, shape, &l, err);
    }
    *out = plan;
    if (st != YK_OK)
        yk_plan_close(out);
    return st;
}

static void options_of(yk_engine_opts *o, const yk_plan_subject *s)
{
    if (s->opts)
        *o = *s->opts;
    else
        yk_engine_opts_init(o);
}

yk_status yk_plan_make_for(yk_plan **out, const yk_plan_subject *s, yk_error *err)
{
    yk_engine_opts o;
    yk_shape shape;
    bool here = s->model != NULL;
    options_of(&o, s);
    *out = NULL;
    YK_FAIL_IF(!s->model && !s->machine, err, YK_ERR_USAGE, "a shape without weights needs the file of a machine");
    if (s->model && s->machine)
        YK_TRY(all_here(&here, s->machine, &o, err));
    YK_TRY(open_shape(&shape, s, err));
    const yk_status st = here ? yk_plan_make(out, s->machine, s->model, &o, err) : make_elsewhere(out, s, &shape, &o, err);
    yk_shape_close(&shape);
    return st;
}

/* Limits to show a plan against: those of the engine where all its devices are here, else as far as plan and machine file tell. */
static yk_status limits_to_show(yk_plan_limits *l, const yk_plan *plan, const yk_shape *shape, const yk_plan_subject *s,
                                const yk_engine_opts *o, yk_error *err)
{
    if (s->model) {
        bool here = true;
        if (s->machine)
            YK_TRY(all_here(&here, s->machine, o, err));
        if (here)
            YK_TRY(yk_auto_plan_limits(l, plan, s->model, o, err));
        if (here && l->n_devices == plan->n_devices)
            return YK_OK;
    }
    limits_of(l, plan, shape, s, o);
    YK_TRY(yk_auto_wishes(&l->wishes, o, err));
    for (uint32_t i = 0; i < plan->n_devices && !s->machine;
         i++) { /* without a machine the plan's own figures are the limits */
        yk_plan_device_limit *d = &l->devices[l->n_devices++];
        const uint64_t *m = plan->memory[1 + i];
        memcpy(d->name, plan->devices[i], sizeof d->name);
        for (int c = 0; c < YK_MEM_N_CLASSES; c++)
            d->budget_bytes += m[c] == YK_PLAN_NO_CEILING ? 1ull << 50 : m[c];
        d->activation_bytes = m[YK_MEM_ACTIVATION] == YK_PLAN_NO_CEILING ? 0 : m[YK_MEM_ACTIVATION];
        d->runtime_bytes = m[YK_MEM_RUNTIME] == YK_PLAN_NO_CEILING ? 0 : m[YK_MEM_RUNTIME];
    }
    return YK_OK;
}

yk_status yk_plan_draw(const yk_plan *plan, const yk_plan_subject *s, yk_plan_form form, char *buf, size_t capacity,
                       size_t *n_bytes, yk_error *err)
{
    yk_engine_opts o;
    yk_shape shape;
    yk_plan_limits l;
    char *text = NULL;
    size_t n = 0;
    options_of(&o, s);
    YK_TRY(open_shape(&shape, s, err));
    const bool colour = form == YK_PLAN_TERMINAL && !(yk_env_no_color() && *yk_env_no_color());
    yk_status st = limits_to_show(&l, plan, &shape, s, &o, err);
    if (st == YK_OK)
        st = yk_plan_check(plan, &shape, &l, err);
    if (st == YK_OK && o.policy == YK_POLICY_ADAPTIVE)
        l.kept_bytes = yk_swap_bytes(plan, &shape);
    if (st == YK_OK)
        st = form == YK_PLAN_SVG ? yk_plan_svg(plan, &shape, s->machine, &l, &text, &n, err)
                                 : yk_plan_explain_text(plan, &shape, s->machine, &l, colour, &text, &n, err);
    if (st == YK_OK)
        yk_text_out(text, n, buf, capacity, n_bytes);
    yk_free(text);
    yk_shape_close(&shape);
    return st;
}
