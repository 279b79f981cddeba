#include "partition/routing.h"

#include <math.h>
#include <string.h>

#include "partition/json.h"

/* splitmix64 */
static uint64_t next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static double uniform(uint64_t *state)
{
    return (double)(next(state) >> 11) * 0x1p-53;
}

static yk_status open_routing(yk_routing *r, uint32_t n_tokens, uint32_t n_layers, uint32_t n_experts, uint32_t n_used,
                              yk_error *err)
{
    const uint64_t n = (uint64_t)n_tokens * n_layers;
    *r = (yk_routing){.n_tokens = n_tokens, .n_layers = n_layers, .n_experts = n_experts, .n_used = n_used};
    r->pick = yk_alloc(YK_MEM_PLAN, n, n_used * sizeof *r->pick);
    if (r->pick)
        return YK_OK;
    *r = (yk_routing){0};
    return yk_fail_memory(err, n * n_used * sizeof *r->pick, "a routing trace");
}

void yk_routing_close(yk_routing *r)
{
    yk_free(r->pick);
    *r = (yk_routing){0};
}

static bool has(const uint16_t *row, uint32_t n, uint32_t expert)
{
    for (uint32_t i = 0; i < n; i++)
        if (row[i] == expert)
            return true;
    return false;
}

/* First rank whose cumulated weight is above x. */
static uint32_t rank_of(const double *cumulated, uint32_t n, double x)
{
    uint32_t low = 0, high = n - 1;
    while (low < high) {
        const uint32_t mid = low + (high - low) / 2;
        if (cumulated[mid] > x)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

static void draw_layer(yk_routing *r, const yk_routing_draw *d, uint32_t layer, const double *cumulated, uint16_t *order,
                       uint64_t *state)
{
    const uint32_t n = d->n_experts, k = d->n_used;
    for (uint32_t e = 0; e < n; e++)
        order[e] = (uint16_t)e;
    for (uint32_t e = n - 1; e > 0; e--) {
        const uint32_t other = (uint32_t)(next(state) % (e + 1));
        const uint16_t swap = order[e];
        order[e] = order[other];
        order[other] = swap;
    }
    for (uint32_t t = 0; t < d->n_tokens; t++) {
        uint16_t *row = r->pick + ((size_t)t * r->n_layers + layer) * k;
        uint32_t m = 0;
        for (uint32_t i = 0; t && i < k; i++)
            if (uniform(state) < d->reuse)
                row[m++] = row[i - (ptrdiff_t)r->n_layers * k];
        for (uint32_t tries = 0; m < k; tries++) {
            uint16_t e = order[rank_of(cumulated, n, uniform(state) * cumulated[n - 1])];
            /* With a steep law the rare ranks are hardly ever drawn: take the best one that is free. */
            for (uint32_t i = 0; tries > 64 * k && i < n; i++)
                if (!has(row, m, order[i])) {
                    e = order[i];
                    break;
                }
            if (!has(row, m, e))
                row[m++] = e;
        }
    }
}

yk_status yk_routing_make(yk_routing *out, const yk_routing_draw *d, yk_error *err)
{
    *out = (yk_routing){0};
    YK_FAIL_IF(!d->n_tokens || d->n_tokens > YK_ROUTING_MAX_TOKENS || !d->n_layers || d->n_layers > 4096 || !d->n_used ||
                   d->n_used > d->n_experts || d->n_experts > YK_ROUTING_MAX_EXPERTS,
               err, YK_ERR_USAGE, "routing: %u tokens, %u layers, %u of %u experts cannot be drawn", d->n_tokens, d->n_layers,
               d->n_used, d->n_experts);
    YK_FAIL_IF(!(d->zipf >= 0 && d->zipf <= 8) || !(d->reuse >= 0 && d->reuse <= 1), err, YK_ERR_USAGE,
               "routing: zipf %g or reuse %g is out of range, 0 to 8 and 0 to 1 are possible", d->zipf, d->reuse);
    double *cumulated = yk_alloc(YK_MEM_PLAN, d->n_experts, sizeof *cumulated);
    uint16_t *order = yk_alloc(YK_MEM_PLAN, d->n_experts, sizeof *order);
    yk_status st = cumulated && order
                       ? open_routing(out, d->n_tokens, d->n_layers, d->n_experts, d->n_used, err)
                       : yk_fail_memory(err, d->n_experts * (sizeof *cumulated + sizeof *order), "a routing trace");
    uint64_t state = d->seed;
    for (uint32_t e = 0; st == YK_OK && e < d->n_experts; e++)
        cumulated[e] = (e ? cumulated[e - 1] : 0) + pow(e + 1, -d->zipf);
    for (uint32_t l = 0; st == YK_OK && l < d->n_layers; l++)
        draw_layer(out, d, l, cumulated, order, &state);
    yk_free(cumulated);
    yk_free(order);
    return st;
}

static yk_status read_layer(const yk_jv *rows, yk_routing *r, uint32_t layer, size_t length)
{
    yk_jv row;
    YK_TRY(yk_json_element(rows, layer, JSON_STRING, &row));
    const char *s = json_string_value(row.v);
    if (json_string_length(row.v) != length)
        return yk_json_fail(&row, "has %zu digits, %zu are expected", json_string_length(row.v), length);
    for (uint32_t t = 0; t < r->n_tokens; t++) {
        uint16_t *to = r->pick + ((size_t)t * r->n_layers + layer) * r->n_used;
        for (uint32_t i = 0; i < r->n_used; i++) {
            const unsigned e = (unsigned)s[(size_t)t * r->n_used + i] - '0';
            if (e >= r->n_experts || has(to, i, e))
                return yk_json_fail(&row, "token %u: '%c' is no expert below %u that comes once", t,
                                    s[(size_t)t * r->n_used + i], r->n_experts);
            to[i] = (uint16_t)e;
        }
    }
    return YK_OK;
}

static yk_status read_trace(const yk_jv *at, yk_routing *out, yk_error *err)
{
    uint32_t layers = 0, experts = 0, used = 0;
    yk_jv rows, first;
    YK_TRY(yk_json_u32(at, "layers", 1, 4096, YK_JSON_REQUIRED, &layers));
    YK_TRY(yk_json_u32(at, "experts", 1, 10, YK_JSON_REQUIRED, &experts));
    YK_TRY(yk_json_u32(at, "used", 1, experts, YK_JSON_REQUIRED, &used));
    YK_TRY(yk_json_member(at, "trace", JSON_ARRAY, YK_JSON_REQUIRED, &rows));
    if (json_array_size(rows.v) != layers)
        return yk_json_fail(&rows, "has %zu layers instead of %u", json_array_size(rows.v), layers);
    YK_TRY(yk_json_element(&rows, 0, JSON_STRING, &first));
    const size_t length = json_string_length(first.v);
    if (length < used || length % used || length / used > YK_ROUTING_MAX_TOKENS)
        return yk_json_fail(&first, "%zu digits are no whole tokens of %u", length, used);
    YK_TRY(open_routing(out, (uint32_t)(length / used), layers, experts, used, err));
    for (uint32_t l = 0; l < layers; l++)
        YK_TRY(read_layer(&rows, out, l, length));
    return YK_OK;
}

yk_status yk_routing_read(yk_routing *out, const char *text, size_t n_bytes, yk_error *err)
{
    json_t *root;
    yk_jv at;
    *out = (yk_routing){0};
    YK_TRY(yk_json_parse(&root, &at, text, n_bytes, "routing", err));
    const yk_status st = read_trace(&at, out, err);
    json_decref(root);
    if (st != YK_OK)
        yk_routing_close(out);
    return st;
}

double yk_routing_reuse(const yk_routing *r)
{
    uint64_t kept = 0;
    for (uint32_t t = 1; t < r->n_tokens; t++)
        for (uint32_t l = 0; l < r->n_layers; l++)
            for (uint32_t i = 0; i < r->n_used; i++)
                kept += has(yk_routing_at(r, t - 1, l), r->n_used, yk_routing_at(r, t, l)[i]);
    return r->n_tokens > 1 ? (double)kept / ((double)(r->n_tokens - 1) * r->n_layers * r->n_used) : 0;
}
