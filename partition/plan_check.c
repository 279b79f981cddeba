/* Checker: each failure one line that begins with the key's path. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "partition/plan.h"

static const char *const class_names[YK_MEM_N_CLASSES] = {"weights", "kv", "activation", "staging", "plan", "runtime"};

static yk_status bad(yk_error *err, const char *path, const char *what)
{
    return yk_fail(err, YK_ERR_INPUT, "plan.%s: %s", path, what);
}

static yk_status check_slice(const yk_plan *plan, const yk_shape_layer *sl, uint32_t l, uint32_t i, yk_error *err)
{
    const yk_slice *s = &plan->layers[l].slices[i];
    const yk_shape_part *p = s->group < YK_PART_N ? &sl->part[s->group] : NULL;
    char path[64], what[160];
    snprintf(path, sizeof path, "layers[%u].slices[%u].", l, i);
    char *key = path + strlen(path);
    const size_t left = sizeof path - strlen(path);
    if (!p || !p->n) {
        snprintf(key, left, "tensor_group");
        snprintf(what, sizeof what, "layer %u of this model has no \"%s\"", l, p ? yk_part_group_name(s->group) : "?");
        return bad(err, path, what);
    }
    if (s->expert >= p->n) {
        snprintf(key, left, "expert");
        snprintf(what, sizeof what, "%u is out of range, 0 to %u is possible", s->expert, p->n - 1);
        return bad(err, path, what);
    }
    if (s->unit0 >= p->cut.n || s->units == 0 || s->units > p->cut.n - s->unit0) {
        snprintf(key, left, "units");
        snprintf(what, sizeof what, "%" PRIu64 " units from unit %u do not fit: the part has %u of %u", (uint64_t)s->units,
                 s->unit0, p->cut.n, p->cut.unit);
        return bad(err, path, what);
    }
    for (int b = 0; b < YK_N_BUCKETS; b++) {
        const bool fits = s->home == YK_HOST ? s->kind[b] == YK_KIND_CC || s->kind[b] == YK_KIND_CG : s->kind[b] == YK_KIND_GG;
        snprintf(key, left, "kind.%s", yk_bucket_name((yk_bucket)b));
        if (!fits) {
            snprintf(what, sizeof what, "%s needs %s as home, not %s",
                     s->kind[b] <= YK_KIND_CG ? yk_kind_name(s->kind[b]) : "?",
                     s->kind[b] == YK_KIND_GG ? "a device" : "the host", yk_plan_home_name(plan, s->home));
            return bad(err, path, what);
        }
        if (p->host_only && s->kind[b] != YK_KIND_CC) {
            snprintf(what, sizeof what, "no device computes the types of this part (gate %s, up %s, down %s); keep it CC",
                     yk_type_get(p->type[YK_MAT_GATE])->name, yk_type_get(p->type[YK_MAT_UP])->name,
                     yk_type_get(p->type[YK_MAT_DOWN])->name);
            return bad(err, path, what);
        }
        if (s->kind[b] == YK_KIND_CG && yk_plan_cg_device(plan, l) == YK_HOST)
            return bad(err, path, "CG needs a device to copy to and the plan names none; give one in \"memory\"");
    }
    for (int c = 0; c < YK_N_CHUNKS; c++) {
        const int kind = s->chunk[c] - 1;
        const bool fits = s->home != YK_HOST ? kind == YK_KIND_GG : kind == YK_KIND_CC || (kind == YK_KIND_CG && !p->host_only);
        snprintf(key, left, "chunks.%s", yk_chunk_name((yk_chunk)c));
        if (kind >= 0 && !fits)
            return bad(err, path, "the kind does not go with home and types, as for \"kind\"");
        if (kind == YK_KIND_CG && yk_plan_cg_device(plan, l) == YK_HOST)
            return bad(err, path, "CG needs a device to copy to and the plan names none; give one in \"memory\"");
    }
    return YK_OK;
}

static yk_status check_attention(const yk_plan *plan, const yk_shape_layer *sl, uint32_t l, yk_error *err)
{
    const yk_plan_layer *y = &plan->layers[l];
    YK_FAIL_IF(
        sl->host_only && y->attn_home != YK_HOST, err, YK_ERR_INPUT,
        "plan.layers[%u].attn_home: no device computes the types of this layer's attention or router; keep it on the host", l);
    for (int c = 0; c < YK_N_CHUNKS; c++) {
        if (!y->attn_chunk[c])
            continue;
        char path[64];
        snprintf(path, sizeof path, "layers[%u].attn_chunks.%s", l, yk_chunk_name((yk_chunk)c));
        if (y->attn_chunk[c] != 1 + YK_KIND_CG)
            return bad(err, path, "only CG is possible; leave the chunk out where attention is computed at its home");
        if (y->attn_home != YK_HOST)
            return bad(err, path, "CG needs the host as attn_home; attention that lives on a device is computed there");
        if (sl->host_only)
            return bad(err, path, "no device computes the types of this layer's attention or router; leave the chunk out");
        if (yk_plan_cg_device(plan, l) == YK_HOST)
            return bad(err, path, "CG needs a device to copy to and the plan names none; give one in \"memory\"");
    }
    return YK_OK;
}

static yk_status check_ahead(const yk_plan *plan, const yk_shape_layer *sl, uint32_t l, yk_error *err)
{
    for (int b = 0; b < YK_B_PREFILL; b++) {
        if (!plan->layers[l].ahead[b])
            continue;
        char path[64];
        snprintf(path, sizeof path, "layers[%u].ahead.%s", l, yk_bucket_name((yk_bucket)b));
        if (!sl->part[YK_PART_EXP].n)
            return bad(err, path, "this layer has no routed experts to copy; leave it out");
        if (yk_plan_cg_device(plan, l) == YK_HOST)
            return bad(err, path, "copying needs a device and the plan names none; give one in \"memory\"");
    }
    return YK_OK;
}

static yk_status check_assign(const yk_plan *plan, uint32_t l, yk_error *err)
{
    const yk_plan_assign *a = &plan->layers[l].assign;
    for (int b = 0; a->given && b < YK_B_PREFILL + YK_N_CHUNKS; b++) {
        const char *name = b < YK_B_PREFILL ? yk_bucket_name((yk_bucket)b) : yk_chunk_name((yk_chunk)(b - YK_B_PREFILL));
        YK_FAIL_IF(!(a->link_share[b] >= 0 && a->link_share[b] <= 1), err, YK_ERR_INPUT,
                   "plan.layers[%u].assign.link_share.%s: must be from 0 to 1", l, name);
        YK_FAIL_IF(a->link_share[b] > 0 && yk_plan_cg_device(plan, l) == YK_HOST, err, YK_ERR_INPUT,
                   "plan.layers[%u].assign.link_share.%s: copying needs a device and the plan names none", l, name);
    }
    return YK_OK;
}

/* Every unit of every instance of every part once. owner holds 1 + the slice that has a unit. */
static yk_status check_units(const yk_plan *plan, const yk_shape_layer *sl, uint32_t l, uint32_t *owner, yk_error *err)
{
    const yk_plan_layer *y = &plan->layers[l];
    uint32_t first[YK_PART_N], n = 0;
    for (int g = 0; g < YK_PART_N; g++) {
        first[g] = n;
        n += sl->part[g].n * sl->part[g].cut.n;
    }
    memset(owner, 0, n * sizeof *owner);
    for (uint32_t i = 0; i < y->n_slices; i++) {
        YK_TRY(check_slice(plan, sl, l, i, err));
        const yk_slice *s = &y->slices[i];
        uint32_t *o = owner + first[s->group] + s->expert * sl->part[s->group].cut.n;
        for (uint32_t u = s->unit0; u < s->unit0 + s->units; u++) {
            YK_FAIL_IF(o[u], err, YK_ERR_INPUT, "plan.layers[%u].slices[%u].units: unit %u of %s %u is in slices[%u] already",
                       l, i, u, yk_part_group_name(s->group), s->expert, o[u] - 1);
            o[u] = i + 1;
        }
    }
    for (int g = 0; g < YK_PART_N; g++)
        for (uint32_t u = 0; u < sl->part[g].n * sl->part[g].cut.n; u++)
            YK_FAIL_IF(!owner[first[g] + u], err, YK_ERR_INPUT, "plan.layers[%u].slices: unit %u of %s %u is in no slice", l,
                       u % sl->part[g].cut.n, yk_part_group_name((yk_part_group)g), u / sl->part[g].cut.n);
    return YK_OK;
}

static const yk_plan_device_limit *limit_of(const yk_plan_limits *limits, const char *name)
{
    for (uint32_t d = 0; d < limits->n_devices; d++)
        if (strcmp(limits->devices[d].name, name) == 0)
            return &limits->devices[d];
    return NULL;
}

/* A device that is not there: the first key that names it. */
static yk_status check_devices(const yk_plan *plan, const yk_plan_limits *limits, yk_error *err)
{
    bool known[1 + YK_MAX_DEVICES] = {true};
    for (uint32_t i = 0; i < plan->n_devices; i++)
        known[1 + i] = limit_of(limits, plan->devices[i]) != NULL;
    char path[64] = "";
    int home = YK_HOST;
    if (!known[1 + plan->head_home])
        snprintf(path, sizeof path, "head_home"), home = plan->head_home;
    else if (!known[1 + plan->embd_home])
        snprintf(path, sizeof path, "embd_home"), home = plan->embd_home;
    for (uint32_t l = 0; l < plan->n_layers && !*path; l++) {
        const yk_plan_layer *y = &plan->layers[l];
        if (!known[1 + y->attn_home])
            snprintf(path, sizeof path, "layers[%u].attn_home", l), home = y->attn_home;
        for (uint32_t i = 0; i < y->n_slices && !*path; i++)
            if (!known[1 + y->slices[i].home])
                snprintf(path, sizeof path, "layers[%u].slices[%u].home", l, i), home = y->slices[i].home;
    }
    for (uint32_t i = 0; i < plan->n_devices && !*path; i++)
        if (!known[1 + i])
            snprintf(path, sizeof path, "memory.%s", plan->devices[i]), home = (int)i;
    YK_FAIL_IF(*path, err, YK_ERR_INPUT, "plan.%s: there is no device \"%s\" here", path, yk_plan_home_name(plan, home));
    return YK_OK;
}

static yk_status check_memory(const yk_plan *plan, const yk_shape *shape, const yk_plan_limits *limits, yk_error *err)
{
    uint64_t need[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES];
    yk_plan_memory(plan, shape, limits, need);
    for (uint32_t p = 0; p <= plan->n_devices; p++) {
        const char *name = yk_plan_home_name(plan, (int)p - 1);
        uint64_t sum = 0;
        for (int c = 0; c < YK_MEM_N_CLASSES; c++) {
            const bool stated = c == YK_MEM_WEIGHTS || c == YK_MEM_KV || c == YK_MEM_STAGING;
            YK_FAIL_IF(stated && need[p][c] > plan->memory[p][c], err, YK_ERR_INPUT,
                       "plan.memory.%s.%s: the plan takes %" PRIu64 " bytes, more than the %" PRIu64 " it states", name,
                       class_names[c], need[p][c], plan->memory[p][c]);
            sum += need[p][c];
        }
        const uint64_t ceiling =
            p == 0 ? (limits->host_bytes ? limits->host_bytes : UINT64_MAX) : limit_of(limits, name)->budget_bytes;
        YK_FAIL_IF(sum > ceiling, err, YK_ERR_INPUT,
                   "plan.memory.%s: the plan takes %" PRIu64 " bytes (weights %" PRIu64 ", kv %" PRIu64 ", activation %" PRIu64
                   ", staging %" PRIu64 ", runtime %" PRIu64 "), %" PRIu64 " more than the budget of %" PRIu64,
                   name, sum, need[p][YK_MEM_WEIGHTS], need[p][YK_MEM_KV], need[p][YK_MEM_ACTIVATION], need[p][YK_MEM_STAGING],
                   need[p][YK_MEM_RUNTIME], sum - ceiling, ceiling);
    }
    return YK_OK;
}

yk_status yk_plan_check(const yk_plan *plan, const yk_shape *shape, const yk_plan_limits *limits, yk_error *err)
{
    YK_FAIL_IF(*plan->shape_id && strcmp(plan->shape_id, shape->id) != 0, err, YK_ERR_INPUT,
               "plan.model.id: the plan was made for %s (%s), this model is %s (%s); make a new plan", plan->model_name,
               plan->shape_id, shape->name, shape->id);
    YK_FAIL_IF(plan->n_layers != shape->n_layers, err, YK_ERR_INPUT, "plan.layers: there are %u, the model has %u",
               plan->n_layers, shape->n_layers);
    YK_TRY(check_devices(plan, limits, err));
    YK_FAIL_IF(shape->head_host_only && plan->head_home != YK_HOST, err, YK_ERR_INPUT,
               "plan.head_home: no device computes the head's type, %s; keep it on the host",
               yk_type_get(shape->head.type)->name);
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        YK_TRY(check_attention(plan, &shape->layers[l], l, err));
        YK_TRY(check_ahead(plan, &shape->layers[l], l, err));
    }
    uint64_t n = 1;
    for (uint32_t l = 0; l < shape->n_layers; l++) {
        uint64_t k = 0;
        for (int g = 0; g < YK_PART_N; g++)
            k += (uint64_t)shape->layers[l].part[g].n * shape->layers[l].part[g].cut.n;
        n = k > n ? k : n;
    }
    uint32_t *owner = yk_alloc(YK_MEM_PLAN, n, sizeof *owner);
    yk_status st = owner ? YK_OK : yk_fail_memory(err, n * sizeof *owner, "checking a plan");
    for (uint32_t l = 0; l < shape->n_layers && st == YK_OK; l++) {
        st = check_units(plan, &shape->layers[l], l, owner, err);
        if (st == YK_OK)
            st = check_assign(plan, l, err);
    }
    yk_free(owner);
    return st == YK_OK ? check_memory(plan, shape, limits, err) : st;
}
