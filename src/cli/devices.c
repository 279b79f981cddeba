/* devices.c - yoke devices: what this machine computes with. */
#include "cli.h"
#include <jansson.h>
#include <string.h>

enum { MAX_DEVICES = 32 };

static json_t *device_json(const yk_device_info *d)
{
    json_t *o = json_pack("{s:s, s:s, s:s, s:b}", "name", d->name, "kind", d->usable ? "gpu" : "backend", "backend", d->backend,
                          "usable", d->usable);
    if (!o)
        return NULL;
    if (!d->usable) {
        json_object_set_new(o, "why", yk_cli_json_text(d->why, strlen(d->why)));
        return o;
    }
    json_object_set_new(o, "description", yk_cli_json_text(d->description, strlen(d->description)));
    json_object_set_new(o, "driver", yk_cli_json_text(d->driver, strlen(d->driver)));
    json_object_set_new(o, "memory_bytes", json_integer((json_int_t)d->memory_bytes));
    if (d->memory_free_bytes)
        json_object_set_new(o, "memory_available_bytes", json_integer((json_int_t)d->memory_free_bytes));
    json_object_set_new(o, "compute_units", json_integer((json_int_t)d->compute_units));
    json_object_set_new(o, "same_silicon", json_boolean(d->same_silicon));
    json_object_set_new(o, "shared_memory", json_boolean(d->shared_memory));
    return o;
}

static int print_json(const yk_cpu_info *cpu, const yk_device_info *list, uint32_t n)
{
    json_t *isa = json_array();
    for (const char *at = cpu->isa; isa && *at;) {
        size_t len = strcspn(at, " ");
        if (len)
            json_array_append_new(isa, yk_cli_json_text(at, len));
        at += len;
        at += strspn(at, " ");
    }
    json_t *all = json_pack("{s:i, s:s, s:[{s:s, s:s, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}]}", "format", 1,
                            "version", yk_version(), "devices", "name", "cpu", "kind", "cpu", "description",
                            yk_cli_json_text(cpu->name, strlen(cpu->name)), "isa", isa, "cores", (json_int_t)cpu->n_cores,
                            "threads", (json_int_t)cpu->n_threads, "numa_nodes", (json_int_t)cpu->n_numa, "l1d_bytes",
                            (json_int_t)cpu->cache_bytes[0], "l2_bytes", (json_int_t)cpu->cache_bytes[1], "l3_bytes",
                            (json_int_t)cpu->cache_bytes[2], "memory_bytes", (json_int_t)cpu->memory_bytes,
                            "memory_available_bytes", (json_int_t)cpu->memory_available_bytes);
    json_t *devices = json_object_get(all, "devices");
    for (uint32_t i = 0; devices && i < n; i++)
        json_array_append_new(devices, device_json(&list[i]));
    return yk_cli_json_print(all);
}

static void print_device(const yk_device_info *d)
{
    char a[32], b[32];
    if (!d->usable) {
        fprintf(yk_cli_out, "%-8s not usable: %s\n", d->name, yk_cli_printable(d->why, strlen(d->why)));
        return;
    }
    fprintf(yk_cli_out, "%-8s %s\n", d->name, yk_cli_printable(d->description, strlen(d->description)));
    fprintf(yk_cli_out, "  driver %s\n", yk_cli_printable(d->driver, strlen(d->driver)));
    fprintf(yk_cli_out, "  memory %s", yk_cli_size_text(d->memory_bytes, a));
    if (d->memory_free_bytes)
        fprintf(yk_cli_out, ", %s available", yk_cli_size_text(d->memory_free_bytes, b));
    fprintf(yk_cli_out, "%s\n", d->shared_memory ? ", shared with the CPU" : "");
    if (d->same_silicon)
        fprintf(yk_cli_out, "  note   this is the CPU itself: used only when it is asked for, --device %s\n", d->name);
}

static void print_text(const yk_cpu_info *cpu, const yk_device_info *list, uint32_t n)
{
    static const char *const cache[] = {"L1d", "L2", "L3"};
    char a[32], b[32];
    const char *separator = " ";
    fprintf(yk_cli_out, "cpu      %s\n", yk_cli_printable(cpu->name, strlen(cpu->name)));
    fprintf(yk_cli_out, "  cores  %u physical, %u threads, %u NUMA node%s\n", cpu->n_cores, cpu->n_threads, cpu->n_numa,
            cpu->n_numa == 1 ? "" : "s");
    fprintf(yk_cli_out, "  isa    %s\n", cpu->isa[0] ? cpu->isa : "none of interest");
    fprintf(yk_cli_out, "  cache ");
    for (int i = 0; i < 3; i++) {
        if (cpu->cache_bytes[i]) {
            fprintf(yk_cli_out, "%s%s %s", separator, cache[i], yk_cli_size_text(cpu->cache_bytes[i], a));
            separator = ", ";
        }
    }
    fprintf(yk_cli_out, "%s\n", separator[0] == ' ' ? " unknown" : "");
    fprintf(yk_cli_out, "  memory %s, %s available\n", yk_cli_size_text(cpu->memory_bytes, a),
            yk_cli_size_text(cpu->memory_available_bytes, b));
    for (uint32_t i = 0; i < n; i++)
        print_device(&list[i]);
}

int yk_cli_devices(yk_cli_opts *opts)
{
    yk_cpu_info cpu;
    yk_error err = {0};
    static yk_device_info list[MAX_DEVICES];
    uint32_t n = 0;
    if (yk_get_cpu_info(&cpu, &err))
        return yk_cli_fail(&err);
    if (yk_list_devices(list, MAX_DEVICES, &n, &err))
        return yk_cli_fail(&err);
    n = n < MAX_DEVICES ? n : MAX_DEVICES;
    if (!strcmp(opts->output, "json"))
        return print_json(&cpu, list, n);
    print_text(&cpu, list, n);
    return YK_EXIT_OK;
}
