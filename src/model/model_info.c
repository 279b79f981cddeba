#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "src/model/model.h"

void yk_model_get_info(const yk_model *model, yk_model_info *info)
{
    const yk_hparams *hp = &model->hp;
    const yk_tokenizer_special sp = yk_tokenizer_get_special(model->tok);
    *info = (yk_model_info){
        .name = model->name,
        .architecture = model->arch_name,
        .file_type = model->file_type,
        .n_layers = hp->n_layers,
        .n_embd = hp->n_embd,
        .n_ff = hp->n_ff,
        .n_heads = hp->n_heads,
        .n_kv_heads = hp->n_kv_heads,
        .head_dim = hp->head_dim,
        .n_vocab = hp->n_vocab,
        .n_experts = hp->n_experts,
        .n_experts_used = hp->n_used,
        .n_expert_ff = hp->n_expert_ff,
        .n_ctx_train = hp->n_ctx_train,
        .n_params = model->n_params,
        .n_bytes = model->n_weight_bytes,
        .file_bytes = model->gguf.file_bytes,
        .n_files = model->gguf.n_files,
        .n_meta = model->gguf.n_kvs,
        .n_tensors = model->gguf.n_tensors,
        .bos = sp.bos,
        .eos = sp.eos,
        .eot = sp.eot,
        .add_bos = sp.add_bos,
        .add_eos = sp.add_eos,
        .chat_template = model->chat_template,
    };
}

yk_status yk_model_get_tensor(const yk_model *model, uint32_t index, yk_tensor_info *info)
{
    if (index >= model->gguf.n_tensors)
        return YK_ERR_USAGE;
    const yk_gguf_tensor *t = &model->gguf.tensors[index];
    *info = (yk_tensor_info){
        .name = t->name,
        .type = yk_type_get((uint32_t)t->type)->name,
        .n_dims = t->n_dims,
        .dims = {t->ne[0], t->ne[1], t->ne[2], t->ne[3]},
        .bytes = t->n_bytes,
        .offset = t->offset,
        .file = t->file,
    };
    return YK_OK;
}

yk_status yk_model_get_meta(const yk_model *model, uint32_t index, yk_meta_info *info)
{
    if (index >= model->gguf.n_kvs)
        return YK_ERR_USAGE;
    const yk_gguf_kv *kv = &model->gguf.kvs[index];
    *info = (yk_meta_info){.key = kv->key, .type = yk_gguf_type_name(kv), .n_elements = kv->n};
    return YK_OK;
}

/* A number as text; 9 and 17 digits bring back the same float. Returns the length. */
static size_t format_number(char *buf, size_t cap, const yk_gguf_kv *kv, uint64_t i)
{
    int n;
    double d;
    float f;
    uint64_t u;
    switch (kv->elem_type) {
    case YK_GGUF_F32:
        memcpy(&f, kv->data + i * sizeof f, sizeof f);
        n = snprintf(buf, cap, "%.9g", (double)f);
        break;
    case YK_GGUF_F64:
        memcpy(&d, kv->data + i * sizeof d, sizeof d);
        n = snprintf(buf, cap, "%.17g", d);
        break;
    case YK_GGUF_BOOL:
        n = snprintf(buf, cap, "%s", kv->data[i] ? "true" : "false");
        break;
    case YK_GGUF_U64:
        memcpy(&u, kv->data + i * sizeof u, sizeof u);
        n = snprintf(buf, cap, "%" PRIu64, u);
        break;
    default:
        n = snprintf(buf, cap, "%" PRId64, yk_gguf_arr_int(kv, i));
        break;
    }
    return n > 0 ? (size_t)n : 0;
}

yk_status yk_model_get_meta_text(const yk_model *model, uint32_t index, uint64_t element, char *buf, size_t capacity,
                                 size_t *n_bytes)
{
    if (index >= model->gguf.n_kvs || element >= model->gguf.kvs[index].n)
        return YK_ERR_USAGE;
    const yk_gguf_kv *kv = &model->gguf.kvs[index];
    char number[64];
    yk_str s = {number, 0};
    if (kv->elem_type != YK_GGUF_STR) {
        s.n = format_number(number, sizeof number, kv, element);
    } else if (kv->type == YK_GGUF_ARR) {
        s = yk_gguf_arr_str(kv, element);
    } else {
        memcpy(&s.n, kv->data, sizeof s.n);
        s.p = (const char *)kv->data + sizeof s.n;
    }
    yk_text_out(s.p, s.n, buf, capacity, n_bytes);
    return YK_OK;
}

int64_t yk_model_find_meta(const yk_model *model, const char *key)
{
    const yk_gguf_kv *kv = yk_gguf_find(&model->gguf, key);
    return kv ? kv - model->gguf.kvs : -1;
}
