#include "src/engine/auto.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "partition/alternatives.h"
#include "src/base/log.h"
#include "src/engine/swap.h"

yk_status yk_auto_shape(yk_shape *out, const yk_model *model, yk_error *err)
{
    return yk_shape_from_model(out, model, &(yk_shape_opts){.bytes = yk_place_bytes, .device = yk_place_can}, err);
}

void yk_auto_limits(yk_plan_limits *limits, const yk_engine *e, const yk_engine_opts *o)
{
    *limits = (yk_plan_limits){.context = e->context,
                               .max_seqs = e->max_seqs,
                               .batch = e->d.n_tokens,
                               .kv_elem_bytes = (uint32_t)e->d.kv_elem,
                               .kv_tokens = yk_engine_kv_blocks(e, o) * YK_KV_BLOCK};
}

void yk_auto_limit_device(yk_plan_limits *limits, const yk_engine *e, const char *name, uint64_t budget_bytes)
{
    if (limits->n_devices == YK_MAX_DEVICES)
        return;
    yk_plan_device_limit *d = &limits->devices[limits->n_devices++];
    snprintf(d->name, sizeof d->name, "%s", name);
    d->budget_bytes = budget_bytes;
    d->runtime_bytes = yk_gpulane_slack_bytes(e);
    d->activation_bytes = yk_gpulane_activation_bytes(e);
}

static const char *wanted(const yk_engine_opts *o)
{
    return o->device && *o->device ? o->device : "auto";
}

static bool is_auto(const yk_engine_opts *o)
{
    return strcmp(wanted(o), "auto") == 0;
}

bool yk_auto_has_wishes(const yk_engine_opts *o)
{
    return o->gpu_layers_given || o->cpu_moe_layers || o->kv_on_host || (o->overrides && *o->overrides);
}

yk_status yk_auto_wishes(yk_plan_wishes *out, const yk_engine_opts *o, yk_error *err)
{
    *out = (yk_plan_wishes){
        .ngl_given = o->gpu_layers_given, .ngl = o->gpu_layers, .ncmoe = o->cpu_moe_layers, .nkvo = o->kv_on_host};
    YK_FAIL_IF(yk_auto_has_wishes(o) && !o->auto_partition, err, YK_ERR_USAGE,
               "-ngl, -ncmoe, -nkvo and -ot bind the planner, and --no-auto-partition switches it off: leave one away");
    return o->overrides && *o->overrides ? yk_plan_add_override(out, o->overrides, err) : YK_OK;
}

/* What is asked of a device where there is none. */
static yk_status refuse_wishes(const yk_engine_opts *o, const char *why, yk_error *err)
{
    yk_plan_wishes w;
    YK_TRY(yk_auto_wishes(&w, o, err));
    YK_FAIL_IF(o->gpu_layers_given && o->gpu_layers, err, YK_ERR_USAGE, "-ngl %u asks for a device: %s", o->gpu_layers, why);
    for (uint32_t i = 0; i < w.n_overrides; i++)
        YK_FAIL_IF(strcasecmp(w.overrides[i].device, "cpu") != 0, err, YK_ERR_USAGE, "-ot %s=%s asks for a device: %s",
                   w.overrides[i].pattern, w.overrides[i].device, why);
    return YK_OK;
}

bool yk_auto_may_retreat(const yk_engine_opts *o, yk_status st)
{
    return is_auto(o) && !yk_auto_has_wishes(o) && (st == YK_ERR_RUNTIME || st == YK_ERR_MEMORY || st == YK_ERR_USAGE);
}

/* ---- everything on one device -------------------------------------------------------------------------------------------------------- */

static yk_status add_all(yk_plan *plan, const yk_shape *shape, yk_error *err)
{
    for (uint32_t l = 0; l < shape->n_layers; l++) {
        plan->layers[l].attn_home = 0;
        for (uint32_t g = 0; g < YK_PART_N; g++) {
            const yk_shape_part *p = &shape->layers[l].part[g];
            for (uint32_t e = 0; e < p->n; e++) {
                const yk_slice s = {.group = (uint8_t)g, .expert = e, .units = p->cut.n}; /* home 0, GG in all buckets */
                YK_TRY(yk_plan_add(plan, l, &s, err));
            }
        }
    }
    return YK_OK;
}

static yk_status plan_all(yk_plan *plan, const yk_shape *shape, const yk_plan_limits *limits, const char *device, yk_error *err)
{
    yk_error inner = {0};
    YK_TRY(yk_plan_init(plan, shape->n_layers, err));
    memcpy(plan->shape_id, shape->id, sizeof plan->shape_id);
    memcpy(plan->model_name, shape->name, sizeof plan->model_name);
    yk_plan_device(plan, device);
    plan->embd_home = YK_HOST;
    plan->head_home = shape->head_host_only ? YK_HOST : 0;
    yk_status st = add_all(plan, shape, &inner);
    plan->context = limits->context;
    plan->max_seqs = limits->max_seqs;
    plan->batch = limits->batch;
    plan->kv_elem_bytes = limits->kv_elem_bytes;
    snprintf(plan->note, sizeof plan->note, "everything on %s but the embedding rows: asked for, without the planner", device);
    memset(plan->memory, 0, sizeof plan->memory);
    yk_plan_memory(plan, shape, limits, plan->memory);
    yk_plan_set_id(plan);
    if (st == YK_OK && (st = yk_plan_check(plan, shape, limits, &inner)) == YK_ERR_INPUT)
        st = YK_ERR_MEMORY;
    if (st == YK_OK)
        return YK_OK;
    yk_plan_clear(plan);
    return yk_fail(err, st, "%s cannot take the whole model, and the planner is switched off: %s", device, inner.text);
}

/* ---- planning ------------------------------------------------------------------------------------------------------------------------ */

typedef struct choice {
    yk_engine *e; /* sizes only */
    const yk_engine_opts *o;
    yk_shape shape;
    yk_plan_limits limits;
    yk_profile_opts need;
    yk_device_info *list;
    uint32_t n_list;
    yk_machine *machine;
} choice;

static void close_choice(choice *c)
{
    yk_shape_close(&c->shape);
    yk_free(c->e);
    yk_free(c->list);
    yk_machine_close(&c->machine);
}

static yk_status open_choice(choice *c, const yk_model *model, const yk_engine_opts *o, yk_error *err)
{
    *c = (choice){.o = o, .need = {.quick = true, .progress = o->progress, .progress_user = o->progress_user}};
    c->e = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *c->e);
    c->list = yk_alloc(YK_MEM_RUNTIME, YK_DEVICE_LIST, sizeof *c->list);
    if (!c->e || !c->list)
        return yk_fail_memory(err, sizeof *c->e + YK_DEVICE_LIST * sizeof *c->list, "choosing a device");
    c->e->model = model;
    YK_TRY(yk_engine_set_sizes(c->e, o, err));
    c->need.isa = c->e->ops->isa;
    c->need.null_options = yk_device_null_options(wanted(o));
    YK_TRY(yk_engine_workers(o->threads, &c->need.threads, err));
    YK_TRY(yk_auto_shape(&c->shape, model, err));
    yk_machine_need_types(&c->need, &c->shape);
    yk_auto_limits(&c->limits, c->e, o);
    return yk_auto_wishes(&c->limits.wishes, o, err);
}

static void add_device(choice *c, const yk_device_info *d)
{
    yk_auto_limit_device(&c->limits, c->e, d->name,
                         yk_gpulane_budget(c->o->vram_budget_bytes, d->memory_bytes, d->memory_free_bytes));
    if (c->need.n_devices < YK_MAX_DEVICES)
        memcpy(c->need.devices[c->need.n_devices++], d->name, YK_DEVICE_NAME);
}

/* Devices to plan for: the named one, or all with silicon of their own, each once. */
static yk_status find_devices(choice *c, yk_error *err)
{
    uint32_t index;
    if (strcmp(wanted(c->o), "cpu") == 0)
        return YK_OK;
    YK_TRY(yk_device_list(c->list, YK_DEVICE_LIST, &c->n_list, c->need.null_options, err));
    c->n_list = c->n_list < YK_DEVICE_LIST ? c->n_list : YK_DEVICE_LIST;
    if (!is_auto(c->o)) {
        YK_TRY(yk_device_find(c->list, c->n_list, wanted(c->o), &index, err));
        add_device(c, &c->list[index]);
        return YK_OK;
    }
    for (uint32_t i = 0; i < c->n_list; i++)
        if (c->list[i].usable && !c->list[i].same_silicon && !yk_device_is_double(c->list, c->n_list, i))
            add_device(c, &c->list[i]);
    return YK_OK;
}

/* Why device "auto" has nothing to choose from. */
static void say_none(const choice *c, char *why, size_t capacity)
{
    snprintf(why, capacity, "CPU only: this machine has no other device that can be used");
    for (uint32_t i = 0; i < c->n_list; i++)
        if (c->list[i].usable && c->list[i].same_silicon) {
            snprintf(why, capacity, "CPU only: %s is the CPU itself; --device %s uses it all the same", c->list[i].name,
                     c->list[i].backend);
            return;
        }
}

static yk_status solve(choice *c, yk_plan *plan, const yk_machine *machine, yk_error *err)
{
    const yk_machine *m = machine ? machine : c->o->machine;
    const char *device = c->limits.n_devices == 1 && !is_auto(c->o) ? c->limits.devices[0].name : wanted(c->o);
    if (!c->o->auto_partition && !is_auto(c->o) && c->limits.n_devices)
        return plan_all(plan, &c->shape, &c->limits, device, err);
    if (!m) {
        YK_TRY(yk_machine_cached(&c->machine, &c->need, err));
        m = c->machine;
    }
    snprintf(c->limits.device, sizeof c->limits.device, "%s", !c->o->auto_partition ? "cpu" : device);
    YK_TRY(yk_plan_solve(plan, m, &c->shape, &c->limits, err));
    if (is_auto(c->o) && !c->limits.n_devices)
        say_none(c, plan->note, sizeof plan->note);
    return YK_OK;
}

/* compare: simulate what else could be done, too. */
static yk_status make(yk_plan **out, choice *c, const yk_machine *machine, bool compare, yk_error *err)
{
    yk_plan *plan = yk_alloc(YK_MEM_PLAN, 1, sizeof *plan);
    if (!plan)
        return yk_fail_memory(err, sizeof *plan, "a plan");
    yk_status st = solve(c, plan, machine, err);
    const yk_machine *m = machine         ? machine
                          : c->o->machine ? c->o->machine
                                          : c->machine; /* NULL: the planner is switched off */
    if (st == YK_OK && m) {
        yk_plan_note_ram(plan, &c->shape, m, &c->limits);
        st = compare ? yk_plan_alternatives(plan, m, &c->shape, &c->limits, err) : YK_OK;
    }
    if (st != YK_OK)
        yk_plan_close(&plan);
    *out = plan;
    return st;
}

yk_status yk_plan_make(yk_plan **out, const yk_machine *machine, const yk_model *model, const yk_engine_opts *opts,
                       yk_error *err)
{
    choice c;
    yk_engine_opts defaults;
    yk_engine_opts_init(&defaults);
    *out = NULL;
    YK_FAIL_IF(!model || model->vocab_only, err, YK_ERR_USAGE, "the model was opened for its vocabulary only");
    yk_status st = open_choice(&c, model, opts ? opts : &defaults, err);
    if (st == YK_OK)
        st = find_devices(&c, err);
    if (st == YK_OK)
        st = make(out, &c, machine, true, err);
    close_choice(&c);
    return st;
}

yk_status yk_auto_choose(yk_plan **out, yk_machine **machine, const yk_model *model, const yk_engine_opts *o, char *why,
                         size_t capacity, yk_error *err)
{
    choice c;
    yk_error inner = {0};
    *out = NULL;
    *machine = NULL;
    if (strcmp(wanted(o), "cpu") == 0 || (is_auto(o) && !o->auto_partition)) {
        snprintf(why, capacity, "CPU only: %s",
                 is_auto(o) ? "the planner is switched off and no device is named" : "asked for");
        return refuse_wishes(o, why, err);
    }
    yk_status st = open_choice(&c, model, o, err);
    if (st == YK_OK) {
        st = find_devices(&c, &inner);
        if (st == YK_OK && !c.limits.n_devices) {
            say_none(&c, why, capacity);
            st = refuse_wishes(o, why, &inner);
        } else if (st == YK_OK && (st = make(out, &c, NULL, false, &inner)) == YK_OK)
            snprintf(why, capacity, "%s", (*out)->note);
        if (st != YK_ERR_MEMORY && yk_auto_may_retreat(o, st)) { /* the host's memory was short, no device's */
            yk_log(YK_LOG_WARN, "going on with the CPU alone: %s", inner.text);
            snprintf(why, capacity, "CPU only: %.200s", inner.text);
            st = YK_OK;
        } else if (st != YK_OK)
            st = yk_fail(err, st, "%s", inner.text);
    }
    *machine = c.machine;
    c.machine = NULL;
    close_choice(&c);
    return st;
}

/* ---- in words ------------------------------------------------------------------------------------------------------------------------- */

/* Devices of the plan that are here become devices of the limits. */
static yk_status add_devices_of(choice *c, const yk_plan *plan, yk_error *err)
{
    YK_TRY(yk_device_list(c->list, YK_DEVICE_LIST, &c->n_list, c->need.null_options ? c->need.null_options : "compute", err));
    c->n_list = c->n_list < YK_DEVICE_LIST ? c->n_list : YK_DEVICE_LIST;
    for (uint32_t i = 0; i < plan->n_devices; i++)
        for (uint32_t k = 0; k < c->n_list; k++)
            if (strcmp(c->list[k].name, plan->devices[i]) == 0)
                add_device(c, &c->list[k]);
    return YK_OK;
}

yk_status yk_auto_plan_limits(yk_plan_limits *out, const yk_plan *plan, const yk_model *model, const yk_engine_opts *o,
                              yk_error *err)
{
    choice c;
    yk_status st = open_choice(&c, model, o, err);
    if (st == YK_OK)
        st = add_devices_of(&c, plan, err);
    *out = c.limits;
    close_choice(&c);
    return st;
}

static yk_status explain(choice *c, const yk_plan *plan, const yk_machine *machine, char **text, size_t *n, yk_error *err)
{
    YK_TRY(add_devices_of(c, plan, err));
    YK_TRY(yk_plan_check(plan, &c->shape, &c->limits, err));
    c->limits.kept_bytes = c->o->policy == YK_POLICY_ADAPTIVE ? yk_swap_bytes(plan, &c->shape) : 0;
    return yk_plan_explain_text(plan, &c->shape, machine ? machine : c->o->machine, &c->limits, false, text, n, err);
}

yk_status yk_plan_explain(const yk_plan *plan, const yk_model *model, const yk_machine *machine, const yk_engine_opts *opts,
                          char *buf, size_t capacity, size_t *n_bytes, yk_error *err)
{
    choice c;
    char *text = NULL;
    size_t n = 0;
    yk_engine_opts defaults;
    yk_engine_opts_init(&defaults);
    YK_FAIL_IF(!model || model->vocab_only, err, YK_ERR_USAGE, "the model was opened for its vocabulary only");
    yk_status st = open_choice(&c, model, opts ? opts : &defaults, err);
    if (st == YK_OK)
        st = explain(&c, plan, machine, &text, &n, err);
    if (st == YK_OK)
        yk_text_out(text, n, buf, capacity, n_bytes);
    yk_free(text);
    close_choice(&c);
    return st;
}

yk_status yk_machine_here(yk_machine **out, const yk_model *model, const yk_engine_opts *opts, yk_error *err)
{
    choice c;
    yk_engine_opts defaults;
    yk_engine_opts_init(&defaults);
    *out = NULL;
    YK_FAIL_IF(!model || model->vocab_only, err, YK_ERR_USAGE, "the model was opened for its vocabulary only");
    yk_status st = open_choice(&c, model, opts ? opts : &defaults, err);
    if (st == YK_OK)
        st = find_devices(&c, err);
    if (st == YK_OK)
        st = yk_machine_cached(out, &c.need, err);
    close_choice(&c);
    return st;
}
