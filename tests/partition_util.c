#include "partition_util.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "src/base/file.h"

char *yk_pt_file(const char *path, size_t *n_bytes)
{
    char full[4096];
    char *text = NULL;
    const char *root = getenv("YOKE_SOURCE");
    yk_error err = {0};
    snprintf(full, sizeof full, "%s/%s", root ? root : ".", path);
    if (yk_read_file(&text, n_bytes, full, 64u << 20, &err) != YK_OK)
        fail_msg("%s", err.text);
    return text;
}

void yk_pt_machine(yk_machine *m, const char *name)
{
    char path[128];
    size_t n;
    yk_error err = {0};
    snprintf(path, sizeof path, "partition/machines/%s.json", name);
    char *text = yk_pt_file(path, &n);
    if (yk_machine_read(m, text, n, &err) != YK_OK)
        fail_msg("%s: %s", path, err.text);
    yk_free(text);
}

void yk_pt_shape(yk_shape *s, const char *name, const char *type)
{
    char path[128];
    size_t n;
    yk_error err = {0};
    snprintf(path, sizeof path, "partition/shapes/%s.json", name);
    char *text = yk_pt_file(path, &n);
    if (yk_shape_read(s, text, n, type, NULL, &err) != YK_OK)
        fail_msg("%s: %s", path, err.text);
    yk_free(text);
}

yk_plan_limits yk_pt_limits(const yk_machine *m, uint64_t budget)
{
    yk_plan_limits l = {.context = 4096, .max_seqs = 1, .batch = 512, .kv_elem_bytes = 2, .n_devices = m->n_devices};
    for (uint32_t i = 0; i < m->n_devices; i++) {
        snprintf(l.devices[i].name, sizeof l.devices[i].name, "%s", m->devices[i].name);
        l.devices[i].budget_bytes = budget;
    }
    return l;
}

uint64_t yk_pt_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

double yk_pt_uniform(uint64_t *state, double low, double high)
{
    return low + (high - low) * (double)(yk_pt_random(state) >> 11) * 0x1p-53;
}

double yk_pt_log_uniform(uint64_t *state, double low, double high)
{
    return exp(yk_pt_uniform(state, log(low), log(high)));
}

static void random_rates(yk_rates *r, uint64_t *state, double rate, double flops)
{
    const yk_type types[] = {YK_TYPE_F16, YK_TYPE_Q8_0, YK_TYPE_Q4_K};
    for (int i = 0; i < 3; i++) {
        double x = rate * yk_pt_uniform(state, 0.8, 1);
        for (int b = 0; b < YK_B_PREFILL; b++) {
            r->product[types[i]][b] = x;
            x *= yk_pt_uniform(state, 0.5, 1);
        }
        r->product[types[i]][YK_B_PREFILL] = flops / (4 << i);
    }
}

void yk_pt_random_machine(yk_machine *m, uint64_t *state)
{
    *m = (yk_machine){.threads = 8, .memory_bytes = 64ull << 30, .n_devices = 1};
    yk_machine_device *d = &m->devices[0];
    m->rates.read_bytes_per_s = yk_pt_log_uniform(state, 1e10, 2e11);
    m->rates.fixed_ns = yk_pt_uniform(state, 0, 5000);
    double flops = yk_pt_log_uniform(state, 1e11, 1e13);
    random_rates(&m->rates, state, m->rates.read_bytes_per_s, flops);
    strcpy(d->name, "null:0");
    strcpy(d->backend, "null");
    d->memory_bytes = 1ull << 40;
    const double rate = yk_pt_log_uniform(state, 5e10, 2e12);
    flops = yk_pt_log_uniform(state, 5e12, 3e14);
    random_rates(&d->rates, state, rate, flops);
    d->rates.fixed_ns = yk_pt_uniform(state, 0, 5000);
    d->launch_ns = yk_pt_uniform(state, 0, 8000);
    d->hand_off_ns = yk_pt_log_uniform(state, 1e3, 1e5);
    d->to_device_bytes_per_s = m->rates.read_bytes_per_s * yk_pt_uniform(state, 0.1, 1);
    d->to_host_bytes_per_s = d->to_device_bytes_per_s;
    d->to_device_ns = d->to_host_ns = yk_pt_uniform(state, 0, 2e4);
    if (yk_pt_random(state) % 2) {
        d->overlap_cpu_bytes_per_s = m->rates.read_bytes_per_s * yk_pt_uniform(state, 0.3, 1);
        d->overlap_to_device_bytes_per_s = d->to_device_bytes_per_s * yk_pt_uniform(state, 0.5, 1);
    }
}

void yk_pt_random_shape(yk_shape *s, uint64_t *state, uint32_t max_layers, uint32_t max_units)
{
    static const char *const types[] = {"F16", "Q8_0", "Q4_K", "Q4_K_M"};
    yk_error err = {0};
    yk_shape_dims d = {.name = "random", .n_vocab = 4096, .n_ctx_train = 4096};
    d.n_layers = 1 + (uint32_t)(yk_pt_random(state) % max_layers);
    d.head_dim = 64;
    d.n_heads = 4u << yk_pt_random(state) % 4;
    d.n_kv_heads = d.n_heads / (yk_pt_random(state) % 2 ? 4 : 1);
    d.n_embd = d.n_heads * d.head_dim;
    const uint32_t width = 256 * (1 + (uint32_t)(yk_pt_random(state) % max_units));
    if (yk_pt_random(state) % 2) {
        d.n_experts = 2 + (uint32_t)(yk_pt_random(state) % 7);
        d.n_used = 1 + (uint32_t)(yk_pt_random(state) % 2);
        d.n_expert_ff = width;
        d.n_shared_ff = yk_pt_random(state) % 2 ? 256 : 0;
    } else
        d.n_ff = width;
    const yk_mix *mix = yk_mix_find(types[yk_pt_random(state) % 4]);
    if (yk_shape_from_dims(s, &d, mix, NULL, &err) != YK_OK)
        fail_msg("%s", err.text);
}
