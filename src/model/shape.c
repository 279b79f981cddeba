#include "src/model/shape.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "src/model/model.h"

/* More than any machine holds; sums of bytes stay far below 2^64. */
#define MAX_BYTES 0x1p52

static const char *const group_names[YK_PART_N] = {"ffn", "exp", "shexp"};

const char *yk_part_group_name(yk_part_group group)
{
    return group_names[group];
}

void yk_shape_close(yk_shape *shape)
{
    yk_free(shape->layers);
    *shape = (yk_shape){0};
}

uint64_t yk_shape_units_bytes(const yk_shape_part *part, uint32_t unit0, uint32_t units)
{
    uint64_t sum = 0;
    const bool last = units && unit0 + units == part->cut.n;
    for (int m = 0; m < YK_PART_MATS; m++)
        sum += (units - last) * part->unit_bytes[m] + (last ? part->last_bytes[m] : 0);
    return sum;
}

uint64_t yk_shape_ffn_bytes(const yk_shape_layer *layer)
{
    uint64_t sum = 0;
    for (int g = 0; g < YK_PART_N; g++)
        sum += layer->part[g].n * yk_shape_units_bytes(&layer->part[g], 0, layer->part[g].cut.n);
    return sum;
}

uint64_t yk_shape_attn_bytes(const yk_shape_layer *layer)
{
    uint64_t sum = layer->router.bytes + layer->other_bytes;
    for (int m = 0; m < YK_ATTN_MATS; m++)
        sum += layer->attn[m].bytes;
    return sum;
}

/* ---- identity ---- */

static uint64_t mix_hash(uint64_t h, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        h = (h ^ (v >> (8 * i) & 0xff)) * 0x100000001b3u;
    return h;
}

/* Sizes and types, not bytes: these may grow when packing changes, and the plan still fits. */
static void set_id(yk_shape *s)
{
    const uint32_t dims[] = {s->n_layers, s->n_embd,    s->n_heads, s->n_kv_heads, s->head_dim,
                             s->n_vocab,  s->n_experts, s->n_used,  s->tied};
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        h = mix_hash(h, dims[i]);
    h = mix_hash(mix_hash(h, s->embd.type), s->head.type);
    for (uint32_t l = 0; l < s->n_layers; l++) {
        const yk_shape_layer *y = &s->layers[l];
        h = mix_hash(h, y->window);
        for (int m = 0; m < YK_ATTN_MATS; m++)
            h = mix_hash(h, y->attn[m].type);
        for (int g = 0; g < YK_PART_N; g++) {
            const yk_shape_part *p = &y->part[g];
            h = mix_hash(mix_hash(mix_hash(h, p->n), p->cut.width), p->cut.unit);
            for (int m = 0; p->n && m < YK_PART_MATS; m++)
                h = mix_hash(h, p->type[m]);
        }
    }
    snprintf(s->id, sizeof s->id, "%016" PRIx64, h);
}

/* ---- sizes ---- */

/* Sizes are those of a checked model or below 2^24, so a matrix of them stays far below 2^64. */
static uint64_t file_bytes(yk_type type, uint32_t n_rows, uint32_t n_cols)
{
    const yk_type_traits *t = yk_type_get((uint32_t)type);
    return ((uint64_t)n_cols + t->block_elems - 1) / t->block_elems * t->block_bytes * n_rows;
}

static yk_shape_opts with_defaults(const yk_shape_opts *opts)
{
    yk_shape_opts o = opts ? *opts : (yk_shape_opts){0};
    if (!o.bytes)
        o.bytes = file_bytes;
    if (!o.cut_unit)
        o.cut_unit = YK_CUT_UNIT;
    return o;
}

static void set_part(yk_shape_part *p, const yk_shape_opts *o, uint32_t n, uint32_t width, uint32_t n_embd)
{
    p->n = n;
    p->cut = yk_cut_units_of(width, yk_type_get((uint32_t)p->type[YK_MAT_DOWN])->block_elems, o->cut_unit);
    for (int m = 0; m < YK_PART_MATS; m++)
        for (int last = 0; last < 2; last++) {
            const uint32_t size = yk_cut_size(&p->cut, last ? p->cut.n - 1 : 0);
            *(last ? &p->last_bytes[m] : &p->unit_bytes[m]) =
                m == YK_MAT_DOWN ? o->bytes(p->type[m], n_embd, size) : o->bytes(p->type[m], size, n_embd);
        }
}

/* ---- from a model ---- */

static uint64_t vector_bytes(const void *v, uint64_t n)
{
    return v ? 4 * n : 0;
}

static yk_shape_mat mat_of(const yk_weight *w, const yk_shape_opts *o)
{
    if (!w->data && !w->mats)
        return (yk_shape_mat){0};
    return (yk_shape_mat){w->type, o->bytes(w->type, w->n_rows, w->n_cols) * w->n_mats};
}

/* A matrix that is not there hinders nothing. */
static bool on_device(const yk_weight *w, bool plain, const yk_shape_opts *o)
{
    return !o->device || (!w->data && !w->mats) || o->device(w->type, plain);
}

static void part_of(yk_shape_part *p, const yk_weight *gate, const yk_weight *up, const yk_weight *down, const yk_shape_opts *o)
{
    if (!down->data && !down->mats)
        return;
    p->type[YK_MAT_GATE] = gate->type;
    p->type[YK_MAT_UP] = up->type;
    p->type[YK_MAT_DOWN] = down->type;
    set_part(p, o, down->n_mats, down->n_cols, down->n_rows);
    p->host_only = !on_device(gate, false, o) || !on_device(up, false, o) || !on_device(down, false, o);
}

static void layer_of(yk_shape_layer *y, const yk_model *m, uint32_t l, const yk_shape_opts *o)
{
    const yk_layer *w = &m->layers[l];
    const yk_hparams *hp = &m->hp;
    const uint64_t d = hp->n_embd, q = (uint64_t)hp->n_heads * hp->head_dim, kv = (uint64_t)hp->n_kv_heads * hp->head_dim;
    const bool full = m->arch && m->arch->qk_norm == YK_QK_NORM_FULL;
    const uint64_t e = w->moe ? hp->n_experts : 1, ff = w->moe ? hp->n_expert_ff : hp->n_ff;
    const yk_weight *attn[YK_ATTN_MATS] = {&w->q, &w->k, &w->v, &w->o};
    y->host_only = !on_device(&w->router, true, o) || !on_device(&w->sh_router, true, o);
    for (int i = 0; i < YK_ATTN_MATS; i++) {
        y->attn[i] = mat_of(attn[i], o);
        y->host_only = y->host_only || !on_device(attn[i], false, o);
    }
    y->router = mat_of(&w->router, o);
    y->router.bytes += mat_of(&w->sh_router, o).bytes;
    y->window = !(m->arch && m->arch->flags & YK_ARCH_WINDOW_EVEN) || l % 2 == 0 ? hp->window : 0;
    y->other_bytes = vector_bytes(w->attn_norm, d) + vector_bytes(w->attn_norm_b, d) + vector_bytes(w->ffn_norm, d) +
                     vector_bytes(w->ffn_norm_b, d) + vector_bytes(w->q_b, q) + vector_bytes(w->k_b, kv) +
                     vector_bytes(w->v_b, kv) + vector_bytes(w->o_b, d) + vector_bytes(w->q_norm, full ? q : hp->head_dim) +
                     vector_bytes(w->k_norm, full ? kv : hp->head_dim) + vector_bytes(w->sinks, hp->n_heads) +
                     vector_bytes(w->gate_b, e * ff) + vector_bytes(w->up_b, e * ff) + vector_bytes(w->down_b, e * d) +
                     vector_bytes(w->router_b, e);
    part_of(&y->part[w->moe ? YK_PART_EXP : YK_PART_FFN], &w->gate, &w->up, &w->down, o);
    part_of(&y->part[YK_PART_SHEXP], &w->sh_gate, &w->sh_up, &w->sh_down, o);
}

yk_status yk_shape_from_model(yk_shape *out, const yk_model *model, const yk_shape_opts *opts, yk_error *err)
{
    const yk_hparams *hp = &model->hp;
    const yk_shape_opts o = with_defaults(opts);
    *out = (yk_shape){0};
    YK_FAIL_IF(!model->layers, err, YK_ERR_USAGE,
               "the model was opened for its vocabulary alone; open it with its weights to place it");
    *out = (yk_shape){
        .n_layers = hp->n_layers,
        .n_embd = hp->n_embd,
        .n_heads = hp->n_heads,
        .n_kv_heads = hp->n_kv_heads,
        .head_dim = hp->head_dim,
        .n_vocab = hp->n_vocab,
        .n_experts = hp->n_experts,
        .n_used = hp->n_used,
        .n_ctx_train = hp->n_ctx_train,
        .tied = model->tied,
        .embd = mat_of(&model->token_embd, &o),
        .head = mat_of(&model->output, &o),
        .head_host_only = !on_device(&model->output, false, &o),
    };
    snprintf(out->name, sizeof out->name, "%.63s", model->name ? model->name : "");
    out->layers = yk_alloc(YK_MEM_PLAN, hp->n_layers, sizeof *out->layers);
    if (!out->layers)
        return yk_fail_memory(err, hp->n_layers * sizeof *out->layers, "the shape of the model");
    for (uint32_t l = 0; l < hp->n_layers; l++)
        layer_of(&out->layers[l], model, l, &o);
    set_id(out);
    return YK_OK;
}

/* ---- from sizes ---- */

static void layer_for(yk_shape_layer *y, const yk_shape_dims *d, const yk_mix *mix, uint32_t l, const yk_shape_opts *o)
{
    const uint32_t q = d->n_heads * d->head_dim, kv = d->n_kv_heads * d->head_dim, e = d->n_experts;
    const struct {
        yk_role role;
        uint32_t rows, cols;
    } attn[YK_ATTN_MATS] = {
        {YK_ROLE_Q, q, d->n_embd}, {YK_ROLE_K, kv, d->n_embd}, {YK_ROLE_V, kv, d->n_embd}, {YK_ROLE_ATTN_OUT, d->n_embd, q}};
    for (int i = 0; i < YK_ATTN_MATS; i++) {
        y->attn[i].type = yk_mix_type(mix, attn[i].role, l, d->n_layers, e, attn[i].cols);
        y->attn[i].bytes = o->bytes(y->attn[i].type, attn[i].rows, attn[i].cols);
    }
    y->window = !d->window_even || l % 2 == 0 ? d->window : 0;
    y->other_bytes = 4ull * (2ull * d->n_embd + (d->qk_norm ? 2ull * d->head_dim : 0) + (d->sinks ? d->n_heads : 0));
    if (d->biases)
        y->other_bytes +=
            4ull * (q + 2ull * kv + d->n_embd + (e ? e * (2ull * d->n_expert_ff + d->n_embd + 1) : 2ull * d->n_ff + d->n_embd));
    if (e)
        y->router = (yk_shape_mat){YK_TYPE_F32, o->bytes(YK_TYPE_F32, e + (d->n_shared_ff > 0), d->n_embd)};
    const uint32_t width[YK_PART_N] = {e ? 0 : d->n_ff, d->n_expert_ff, d->n_shared_ff}, n[YK_PART_N] = {1, e, 1};
    for (int g = 0; g < YK_PART_N; g++) {
        if (!width[g])
            continue;
        yk_shape_part *p = &y->part[g];
        p->type[YK_MAT_GATE] = yk_mix_type(mix, YK_ROLE_GATE, l, d->n_layers, e, d->n_embd);
        p->type[YK_MAT_UP] = yk_mix_type(mix, YK_ROLE_UP, l, d->n_layers, e, d->n_embd);
        p->type[YK_MAT_DOWN] = yk_mix_type(mix, YK_ROLE_DOWN, l, d->n_layers, e, width[g]);
        set_part(p, o, n[g], width[g], d->n_embd);
    }
}

yk_status yk_shape_from_dims(yk_shape *out, const yk_shape_dims *d, const yk_mix *mix, const yk_shape_opts *opts, yk_error *err)
{
    const yk_shape_opts o = with_defaults(opts);
    *out = (yk_shape){
        .n_layers = d->n_layers,
        .n_embd = d->n_embd,
        .n_heads = d->n_heads,
        .n_kv_heads = d->n_kv_heads,
        .head_dim = d->head_dim,
        .n_vocab = d->n_vocab,
        .n_experts = d->n_experts,
        .n_used = d->n_used,
        .n_ctx_train = d->n_ctx_train,
        .tied = d->tied,
    };
    memcpy(out->name, d->name, sizeof out->name);
    out->embd.type = yk_mix_type(mix, YK_ROLE_TOKEN_EMBD, 0, d->n_layers, d->n_experts, d->n_embd);
    out->embd.bytes = o.bytes(out->embd.type, d->n_vocab, d->n_embd);
    out->head = out->embd;
    if (!d->tied) {
        out->head.type = yk_mix_type(mix, YK_ROLE_OUTPUT, 0, d->n_layers, d->n_experts, d->n_embd);
        out->head.bytes = o.bytes(out->head.type, d->n_vocab, d->n_embd);
    }
    out->layers = yk_alloc(YK_MEM_PLAN, d->n_layers, sizeof *out->layers);
    if (!out->layers)
        return yk_fail_memory(err, (uint64_t)d->n_layers * sizeof *out->layers, "the shape of the model");
    double total = (double)out->embd.bytes + (double)out->head.bytes;
    for (uint32_t l = 0; l < d->n_layers; l++) {
        layer_for(&out->layers[l], d, mix, l, &o);
        total += (double)yk_shape_attn_bytes(&out->layers[l]);
        for (int g = 0; g < YK_PART_N; g++) {
            const yk_shape_part *p = &out->layers[l].part[g];
            total += (double)p->n * (double)yk_shape_units_bytes(p, 0, p->cut.n);
        }
    }
    if (total > MAX_BYTES) {
        yk_shape_close(out);
        return yk_fail(err, YK_ERR_INPUT, "a model of %.3g bytes: the sizes of the shape cannot be right", total);
    }
    set_id(out);
    return YK_OK;
}
