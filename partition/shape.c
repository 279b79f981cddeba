#include "partition/shape.h"

#include <string.h>

#include "partition/json.h"

enum { MAX_WIDTH = 1 << 20, MAX_HEADS = 1 << 12, MAX_EXPERTS = 1 << 12, MAX_SIZE = (1 << 24) - 1 };

static yk_status read_dims(const yk_jv *at, yk_shape_dims *d)
{
    YK_TRY(yk_json_format(at, YK_SHAPE_FORMAT));
    YK_TRY(yk_json_text(at, "name", sizeof d->name, YK_JSON_REQUIRED, d->name));
    const struct {
        const char *key;
        uint32_t min, max;
        yk_json_need need;
        uint32_t *out;
    } sizes[] = {
        {"n_layers", 1, 1 << 12, YK_JSON_REQUIRED, &d->n_layers},
        {"n_embd", 32, MAX_WIDTH, YK_JSON_REQUIRED, &d->n_embd},
        {"n_heads", 1, MAX_HEADS, YK_JSON_REQUIRED, &d->n_heads},
        {"n_kv_heads", 1, MAX_HEADS, YK_JSON_REQUIRED, &d->n_kv_heads},
        {"head_dim", 2, 1 << 12, YK_JSON_REQUIRED, &d->head_dim},
        {"n_vocab", 1, MAX_SIZE, YK_JSON_REQUIRED, &d->n_vocab},
        {"n_ctx_train", 1, 1 << 30, YK_JSON_REQUIRED, &d->n_ctx_train},
        {"n_ff", 0, MAX_WIDTH, YK_JSON_OPTIONAL, &d->n_ff},
        {"n_experts", 0, MAX_EXPERTS, YK_JSON_OPTIONAL, &d->n_experts},
        {"n_used", 0, MAX_EXPERTS, YK_JSON_OPTIONAL, &d->n_used},
        {"n_expert_ff", 0, MAX_WIDTH, YK_JSON_OPTIONAL, &d->n_expert_ff},
        {"n_shared_ff", 0, MAX_WIDTH, YK_JSON_OPTIONAL, &d->n_shared_ff},
        {"window", 0, 1 << 30, YK_JSON_OPTIONAL, &d->window},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        YK_TRY(yk_json_u32(at, sizes[i].key, sizes[i].min, sizes[i].max, sizes[i].need, sizes[i].out));
    YK_TRY(yk_json_bool(at, "window_even", YK_JSON_OPTIONAL, &d->window_even));
    YK_TRY(yk_json_bool(at, "tied", YK_JSON_OPTIONAL, &d->tied));
    YK_TRY(yk_json_bool(at, "qk_norm", YK_JSON_OPTIONAL, &d->qk_norm));
    YK_TRY(yk_json_bool(at, "biases", YK_JSON_OPTIONAL, &d->biases));
    YK_TRY(yk_json_bool(at, "sinks", YK_JSON_OPTIONAL, &d->sinks));
    if (d->n_heads % d->n_kv_heads != 0)
        return yk_json_fail_key(at, "n_kv_heads", "%u does not divide n_heads (%u)", d->n_kv_heads, d->n_heads);
    if (!d->n_experts && !d->n_ff)
        return yk_json_fail_key(at, "n_ff", "is missing; a model without experts needs it");
    if (d->n_experts && !d->n_expert_ff)
        return yk_json_fail_key(at, "n_expert_ff", "is missing; a model with experts needs it");
    if (d->n_experts && (d->n_used < 1 || d->n_used > d->n_experts))
        return yk_json_fail_key(at, "n_used", "%u is out of range, 1 to n_experts (%u) is possible", d->n_used, d->n_experts);
    if (!d->n_experts && (d->n_used || d->n_expert_ff || d->n_shared_ff))
        return yk_json_fail_key(at, "n_experts", "is missing although there are sizes of experts");
    if (d->n_embd % 32 || d->n_ff % 32 || d->n_expert_ff % 32 || d->n_shared_ff % 32)
        return yk_json_fail(at, "n_embd, n_ff, n_expert_ff and n_shared_ff must be multiples of 32");
    return YK_OK;
}

yk_status yk_shape_read(yk_shape *out, const char *text, size_t n_bytes, const char *type, const yk_shape_opts *opts,
                        yk_error *err)
{
    json_t *root;
    yk_jv at;
    yk_shape_dims d = {0};
    char own_type[16] = "";
    *out = (yk_shape){0};
    YK_TRY(yk_json_parse(&root, &at, text, n_bytes, "shape", err));
    yk_status st = read_dims(&at, &d);
    if (st == YK_OK)
        st = yk_json_text(&at, "type", sizeof own_type, YK_JSON_OPTIONAL, own_type);
    json_decref(root);
    YK_TRY(st);
    const yk_mix *mix = yk_mix_find(type ? type : *own_type ? own_type : "Q4_K_M");
    YK_FAIL_IF(!mix && !type, err, YK_ERR_INPUT, "shape.type: \"%s\" is not known; known are: %s", own_type, yk_mix_names());
    YK_FAIL_IF(!mix, err, YK_ERR_USAGE, "weight type \"%s\" is not known; known are: %s", type, yk_mix_names());
    return yk_shape_from_dims(out, &d, mix, opts, err);
}
