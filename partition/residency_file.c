/* What a run learned of the routing, kept for the next one. */
#include <math.h>
#include <string.h>

#include "partition/json.h"
#include "partition/residency.h"
#include "partition/text.h"

typedef struct table {
    uint32_t stride; /* most experts of a layer */
    double weight;
    float *uses; /* [n_layers][stride] */
} table;

static yk_status open_table(table *t, const yk_residency *r, yk_error *err)
{
    *t = (table){.stride = 1};
    for (uint32_t l = 0, k; l < yk_residency_layers(r); l++) {
        const uint32_t n = yk_residency_experts(r, l, &k);
        t->stride = n > t->stride ? n : t->stride;
    }
    const size_t n = (size_t)yk_residency_layers(r) * t->stride;
    t->uses = yk_alloc(YK_MEM_PLAN, n, sizeof *t->uses);
    return t->uses ? YK_OK : yk_fail_memory(err, n * sizeof *t->uses, "statistics of experts");
}

yk_status yk_residency_write(const yk_residency *r, const char *shape_id, char **out, size_t *n_bytes, yk_error *err)
{
    table t;
    yk_text text = {0};
    YK_TRY(open_table(&t, r, err));
    yk_residency_save(r, t.uses, t.stride, &t.weight);
    yk_text_put(&text, "{\n \"format\": %d,\n \"shape_id\": ", YK_RESIDENCY_FORMAT);
    yk_text_put_string(&text, shape_id);
    yk_text_put(&text, ",\n \"tokens\": ");
    yk_text_put_json(&text, json_real(t.weight));
    yk_text_put(&text, ",\n \"uses\": [");
    for (uint32_t l = 0, k; l < yk_residency_layers(r); l++) {
        yk_text_put(&text, "%s\n  [", l ? "," : "");
        for (uint32_t e = 0; e < yk_residency_experts(r, l, &k); e++) {
            yk_text_put(&text, "%s", e ? ", " : "");
            yk_text_put_json(&text, json_real(rint(t.uses[(size_t)l * t.stride + e] * 1e6) * 1e-6));
        }
        yk_text_put(&text, "]");
    }
    yk_text_put(&text, "\n ]\n}\n");
    yk_free(t.uses);
    return yk_text_take(&text, out, n_bytes, "statistics of experts", err);
}

static yk_status read_layer(const yk_jv *rows, uint32_t layer, uint32_t n_experts, uint32_t n_used, float *uses, bool some)
{
    yk_jv row;
    double sum = 0;
    YK_TRY(yk_json_element(rows, layer, JSON_ARRAY, &row));
    if (json_array_size(row.v) != n_experts)
        return yk_json_fail(&row, "has %zu experts instead of %u", json_array_size(row.v), n_experts);
    for (uint32_t e = 0; e < n_experts; e++) {
        yk_jv x;
        YK_TRY(yk_json_element(&row, e, JSON_REAL, &x));
        const double u = json_real_value(x.v);
        if (!(u >= 0 && u <= 1))
            return yk_json_fail(&x, "%g uses a token are not from 0 to 1", u);
        uses[e] = (float)u;
        sum += u;
    }
    if (some && n_experts && !(fabs(sum - n_used) < 0.01 * n_used))
        return yk_json_fail(&row, "the uses add up to %g instead of %u", sum, n_used);
    return YK_OK;
}

static yk_status read_table(const yk_jv *at, table *t, const yk_residency *r, const char *shape_id)
{
    char id[64] = "";
    yk_jv rows;
    YK_TRY(yk_json_format(at, YK_RESIDENCY_FORMAT));
    YK_TRY(yk_json_text(at, "shape_id", sizeof id, YK_JSON_REQUIRED, id));
    if (strcmp(id, shape_id) != 0)
        return yk_json_fail_key(at, "shape_id", "\"%s\" is another model, this one is \"%s\"", id, shape_id);
    YK_TRY(yk_json_f64(at, "tokens", 0, 1e12, YK_JSON_REQUIRED, &t->weight));
    YK_TRY(yk_json_member(at, "uses", JSON_ARRAY, YK_JSON_REQUIRED, &rows));
    if (json_array_size(rows.v) != yk_residency_layers(r))
        return yk_json_fail(&rows, "has %zu layers instead of %u", json_array_size(rows.v), yk_residency_layers(r));
    for (uint32_t l = 0; l < yk_residency_layers(r); l++) {
        uint32_t n_used;
        const uint32_t n = yk_residency_experts(r, l, &n_used);
        YK_TRY(read_layer(&rows, l, n, n_used, t->uses + (size_t)l * t->stride, t->weight > 0));
    }
    return YK_OK;
}

yk_status yk_residency_read(yk_residency *r, const char *shape_id, const char *text, size_t n_bytes, yk_error *err)
{
    json_t *root;
    yk_jv at;
    table t;
    YK_TRY(yk_json_parse(&root, &at, text, n_bytes, "experts", err));
    yk_status st = open_table(&t, r, err);
    if (st == YK_OK)
        st = read_table(&at, &t, r, shape_id);
    if (st == YK_OK)
        yk_residency_warm(r, t.uses, t.stride, t.weight);
    yk_free(t.uses);
    json_decref(root);
    return st;
}
