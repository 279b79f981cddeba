/* Devices of all backends, for yoke.h and for choosing one. */
#include <stdio.h>
#include <string.h>

#include "gpu/modules.h"
#include "partition/machine.h"
#include "src/engine/auto.h"

const char *yk_device_null_options(const char *name)
{
    if (!name || strncmp(name, "null", 4) != 0 || (name[4] && name[4] != ':'))
        return NULL;
    return name[4] && (name[5] < '0' || name[5] > '9') ? name + 5 : "compute";
}

static void describe(yk_device_info *d, const yk_backend *b, uint32_t index)
{
    yk_gpu_info info;
    *d = (yk_device_info){0};
    snprintf(d->backend, sizeof d->backend, "%s", b->name);
    if (!b->usable) {
        snprintf(d->name, sizeof d->name, "%s", b->name);
        snprintf(d->why, sizeof d->why, "%s", b->why);
        return;
    }
    snprintf(d->name, sizeof d->name, "%s:%u", b->name, index);
    if (b->table.info(index, &info) != YK_OK) {
        const char *text = b->table.last_error();
        snprintf(d->why, sizeof d->why, "%s", text && *text ? text : "its driver does not describe it");
        return;
    }
    snprintf(d->description, sizeof d->description, "%s", info.name);
    snprintf(d->driver, sizeof d->driver, "%s", info.driver);
    d->memory_bytes = info.memory_bytes;
    d->memory_free_bytes = info.memory_free_bytes;
    d->compute_units = info.compute_units;
    d->usable = true;
    d->same_silicon = info.same_silicon;
    d->shared_memory = info.shared_memory;
}

yk_status yk_device_list(yk_device_info *out, uint32_t capacity, uint32_t *n, const char *null_options, yk_error *err)
{
    yk_modules *m;
    *n = 0;
    YK_TRY(yk_modules_load(&m, &(yk_modules_opts){.null_options = null_options}, err));
    for (uint32_t i = 0; i < YK_N_BACKENDS; i++) {
        const yk_backend *b = &m->backends[i];
        for (uint32_t k = 0; k < (b->usable ? b->n_devices : 1); k++, ++*n)
            if (*n < capacity)
                describe(&out[*n], b, k);
    }
    yk_modules_close(&m);
    return YK_OK;
}

yk_status yk_list_devices(yk_device_info *out, uint32_t capacity, uint32_t *n, yk_error *err)
{
    YK_FAIL_IF(!n || (capacity && !out), err, YK_ERR_USAGE, "yk_list_devices: n or out is NULL");
    return yk_device_list(out, capacity, n, NULL, err);
}

yk_status yk_device_find(const yk_device_info *list, uint32_t n, const char *name, uint32_t *index, yk_error *err)
{
    const bool settings = yk_device_null_options(name) && name[4] && yk_device_null_options(name) == name + 5;
    const char *wanted = settings ? "null" : name;
    const size_t backend = strcspn(wanted, ":");
    uint32_t in_backend = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (strlen(list[i].backend) != backend || memcmp(list[i].backend, wanted, backend) != 0)
            continue;
        if (!list[i].usable && (!strchr(list[i].name, ':') || strcmp(list[i].name, wanted) == 0))
            return yk_fail(err, YK_ERR_USAGE, "device %s cannot be used: %s", name, list[i].why);
        in_backend++;
        if (list[i].usable && (!wanted[backend] || strcmp(list[i].name, wanted) == 0)) {
            *index = i;
            return YK_OK;
        }
    }
    if (in_backend)
        return yk_fail(err, YK_ERR_USAGE, "device %s is not there; %.*s has %u; see yoke devices", name, (int)backend, wanted,
                       in_backend);
    return yk_fail(err, YK_ERR_USAGE, "device %s: unknown backend; see yoke devices", name);
}

bool yk_device_is_double(const yk_device_info *list, uint32_t n, uint32_t index)
{
    for (uint32_t i = 0; i < n; i++)
        if (list[i].usable && strcmp(list[i].backend, "cuda") == 0 && strcmp(list[index].backend, "opencl") == 0 &&
            strcmp(list[i].description, list[index].description) == 0)
            return true;
    return false;
}
