#include "src/model/model.h"

#include <inttypes.h>
#include <string.h>

void yk_model_opts_init(yk_model_opts *opts)
{
    *opts = (yk_model_opts){0};
}

/* Totals of all tensors and the type that holds most of their bytes. */
static void count_weights(yk_model *m)
{
    uint64_t bytes[YK_TYPE_LIMIT] = {0};
    uint32_t most = YK_TYPE_F32;
    for (uint32_t i = 0; i < m->gguf.n_tensors; i++) {
        const yk_gguf_tensor *t = &m->gguf.tensors[i];
        /* Tensors lie in files without overlap, so the bytes cannot overflow; elements are at most 8 per byte. */
        m->n_params += t->n_elems;
        m->n_weight_bytes += t->n_bytes;
        bytes[t->type] += t->n_bytes;
        if (bytes[t->type] > bytes[most])
            most = t->type;
    }
    const char *name = m->gguf.n_tensors ? yk_type_get(most)->name : "none";
    strncpy(m->file_type, name, sizeof m->file_type - 1);
}

/* Copy of a string key, or of `fallback` when the key is absent (NULL stays NULL). */
static yk_status copy_str(char **out, const yk_gguf *gguf, const char *key, const char *fallback, yk_error *err)
{
    yk_str s = {fallback, fallback ? strlen(fallback) : 0};
    YK_TRY(yk_gguf_get_str(gguf, key, false, &s, err));
    if (!s.p)
        return YK_OK;
    *out = yk_strndup(YK_MEM_RUNTIME, s.p, s.n);
    return *out ? YK_OK : yk_fail_memory(err, s.n, key);
}

/* One token for each row of the embedding. Checked before the tokenizer reads its keys: of several lengths that do not fit
 * together, the embedding says which is the wrong one. */
static yk_status check_vocabulary(const yk_model *m, yk_error *err)
{
    const yk_gguf_kv *kv = yk_gguf_find(&m->gguf, "tokenizer.ggml.tokens");
    const yk_gguf_tensor *t = yk_gguf_find_tensor(&m->gguf, "token_embd.weight");
    YK_FAIL_IF(!t, err, YK_ERR_INPUT, "tensor token_embd.weight is missing");
    YK_FAIL_IF(!kv || kv->type != YK_GGUF_ARR || kv->elem_type != YK_GGUF_STR, err, YK_ERR_INPUT,
               "key tokenizer.ggml.tokens is %s; a list of strings is needed", kv ? yk_gguf_type_name(kv) : "missing");
    YK_FAIL_IF(kv->n != t->ne[1], err, YK_ERR_INPUT,
               "key tokenizer.ggml.tokens holds %" PRIu64 " tokens, but tensor token_embd.weight has %" PRIu64 " rows", kv->n,
               t->ne[1]);
    return YK_OK;
}

static yk_status load(yk_model *m, const yk_model_opts *opts, yk_error *err)
{
    const char *slash = strrchr(m->path, '/');
    YK_TRY(copy_str(&m->name, &m->gguf, "general.name", slash ? slash + 1 : m->path, err));
    YK_TRY(copy_str(&m->chat_template, &m->gguf, "tokenizer.chat_template", NULL, err));
    YK_TRY(yk_model_read_hparams(m, err));
    if (!m->vocab_only)
        YK_TRY(check_vocabulary(m, err));
    YK_TRY(yk_tokenizer_open(&m->tok, &m->gguf, err));
    count_weights(m);
    if (m->vocab_only) {
        m->hp.n_vocab = yk_tokenizer_size(m->tok);
        return YK_OK;
    }
    YK_TRY(yk_model_bind(m, err));
    return opts->check_tensors ? yk_model_check_tensors(m, opts, err) : YK_OK;
}

/* data NULL: the file at `path`; else an image in memory, and `path` is only a name. */
static yk_status open_any(yk_model **out, const char *path, const uint8_t *data, uint64_t size, const yk_model_opts *opts,
                          yk_error *err)
{
    yk_model_opts o;
    yk_model_opts_init(&o);
    if (opts)
        o = *opts;
    *out = NULL;
    yk_model *m = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *m);
    if (!m)
        return yk_fail_memory(err, sizeof *m, "a model");
    m->vocab_only = o.vocab_only;
    m->path = yk_strndup(YK_MEM_RUNTIME, path, strlen(path));
    yk_status st = m->path ? YK_OK : yk_fail_memory(err, strlen(path), "a path");
    yk_error why = {0};
    if (st == YK_OK)
        st = data ? yk_gguf_open_memory(&m->gguf, data, size, o.vocab_only, err)
                  : yk_gguf_open(&m->gguf, path, o.vocab_only, err);
    if (st == YK_OK) {
        st = load(m, &o, &why);
        if (st == YK_ERR_INPUT)
            yk_fail(err, st, "%s: %s", path, why.text); /* the reader's messages have the path already */
        else if (st != YK_OK)
            yk_fail(err, st, "%s", why.text);
    }
    if (st != YK_OK)
        yk_model_close(&m);
    *out = m;
    return st;
}

yk_status yk_model_open(yk_model **out, const char *path, const yk_model_opts *opts, yk_error *err)
{
    return open_any(out, path, NULL, 0, opts, err);
}

yk_status yk_model_open_memory(yk_model **out, const uint8_t *data, uint64_t size, const yk_model_opts *opts, yk_error *err)
{
    return open_any(out, "(memory)", data, size, opts, err);
}

void yk_model_close(yk_model **model)
{
    yk_model *m = *model;
    if (!m)
        return;
    yk_tokenizer_close(&m->tok);
    for (uint32_t i = 0; i < m->n_owned; i++)
        yk_free(m->owned[i]);
    yk_free(m->owned);
    yk_free(m->layers);
    yk_free(m->chat_template);
    yk_free(m->arch_name);
    yk_free(m->name);
    yk_free(m->path);
    yk_gguf_close(&m->gguf);
    yk_free(m);
    *model = NULL;
}
