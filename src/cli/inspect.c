/* inspect.c - yoke inspect: what a model file holds. */
#include "cli.h"
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SHOWN_ELEMENTS = 8, SHOWN_BYTES = 160 };

/* Element of a metadata value as text, in a buffer that grows and is freed by the caller. NULL: memory is short. */
static const char *element_text(const yk_model *model, uint32_t index, uint64_t element, char **buf, size_t *capacity,
                                size_t *n)
{
    *n = 0;
    for (;;) {
        if (yk_model_get_meta_text(model, index, element, *buf, *capacity, n))
            return NULL;
        if (*n < *capacity)
            return *buf;
        size_t want = *n + 1 < 256 ? 256 : *n + 1;
        char *more = realloc(*buf, want);
        if (!more)
            return NULL;
        *buf = more;
        *capacity = want;
    }
}

/* Type of one element: "f32" for "f32" and for "[f32]". */
static void element_type(const char *type, char *buf, size_t capacity)
{
    snprintf(buf, capacity, "%s", type[0] == '[' ? type + 1 : type);
    buf[strcspn(buf, "]")] = 0;
}

static json_t *element_json(const char *type, const char *text, size_t n)
{
    char *end;
    if (!strcmp(type, "bool"))
        return json_boolean(!strcmp(text, "true"));
    if (type[0] == 'f') {
        double value = strtod(text, &end);
        if (isfinite(value) && end != text)
            return json_real(value);
    } else if (type[0] == 'i' || type[0] == 'u') {
        long long value = strtoll(text, &end, 10);
        if (n < 19 && end != text) /* larger than JSON numbers are safe with: given as text */
            return json_integer(value);
    }
    return yk_cli_json_text(text, n);
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static json_t *meta_json(const yk_model *model, uint32_t index, const yk_meta_info *meta, bool full)
{
    char type[16], *buf = NULL;
    size_t capacity = 0, n;
    bool array = meta->type[0] == '[';
    uint64_t shown = full || meta->n_elements < SHOWN_ELEMENTS ? meta->n_elements : SHOWN_ELEMENTS;
    json_t *values = json_array();
    element_type(meta->type, type, sizeof type);
    for (uint64_t i = 0; values && i < shown; i++) {
        const char *text = element_text(model, index, i, &buf, &capacity, &n);
        if (!text || json_array_append_new(values, element_json(type, text, n))) {
            json_decref(values);
            values = NULL;
        }
    }
    free(buf);
    if (!values || array)
        return json_pack("{s:s, s:I, s:o}", "type", meta->type, "n", (json_int_t)meta->n_elements, "value", values);
    json_t *result = json_pack("{s:s, s:O}", "type", meta->type, "value", json_array_get(values, 0));
    json_decref(values);
    return result;
}

static json_t *tensor_json(const yk_tensor_info *t)
{
    json_t *dims = json_array();
    for (uint32_t i = 0; dims && i < t->n_dims; i++)
        json_array_append_new(dims, json_integer((json_int_t)t->dims[i]));
    return json_pack("{s:o, s:s, s:o, s:I, s:I, s:I}", "name", yk_cli_json_text(t->name, strlen(t->name)), "type", t->type,
                     "dims", dims, "bytes", (json_int_t)t->bytes, "offset", (json_int_t)t->offset, "file", (json_int_t)t->file);
}

static json_t *info_json(const yk_model_info *m)
{
    json_t *info = json_pack("{s:o, s:s, s:s, s:b, s:b, s:b}", "name", yk_cli_json_text(m->name, strlen(m->name)),
                             "architecture", m->architecture, "file_type", m->file_type ? m->file_type : "", "add_bos",
                             m->add_bos, "add_eos", m->add_eos, "chat_template", m->chat_template != NULL);
    const struct {
        const char *key;
        int64_t value;
    } numbers[] = {{"n_layers", m->n_layers},
                   {"n_embd", m->n_embd},
                   {"n_ff", m->n_ff},
                   {"n_heads", m->n_heads},
                   {"n_kv_heads", m->n_kv_heads},
                   {"head_dim", m->head_dim},
                   {"n_vocab", m->n_vocab},
                   {"n_experts", m->n_experts},
                   {"n_experts_used", m->n_experts_used},
                   {"n_expert_ff", m->n_expert_ff},
                   {"n_ctx_train", m->n_ctx_train},
                   {"n_params", (int64_t)m->n_params},
                   {"n_bytes", (int64_t)m->n_bytes},
                   {"file_bytes", (int64_t)m->file_bytes},
                   {"n_files", m->n_files},
                   {"n_meta", m->n_meta},
                   {"n_tensors", m->n_tensors},
                   {"bos", m->bos},
                   {"eos", m->eos},
                   {"eot", m->eot}};
    for (size_t i = 0; info && i < sizeof numbers / sizeof *numbers; i++) {
        if (json_object_set_new(info, numbers[i].key, json_integer(numbers[i].value))) {
            json_decref(info);
            return NULL;
        }
    }
    return info;
}

static int print_json(const yk_cli_session *s, bool full)
{
    json_t *metadata = json_object(), *tensors = json_array();
    bool good = metadata && tensors;
    for (uint32_t i = 0; good && i < s->info.n_meta; i++) {
        yk_meta_info meta;
        json_t *key = NULL;
        good = !yk_model_get_meta(s->model, i, &meta) && (key = yk_cli_json_text(meta.key, strlen(meta.key))) &&
               !json_object_set_new(metadata, json_string_value(key), meta_json(s->model, i, &meta, full));
        json_decref(key);
    }
    for (uint32_t i = 0; good && i < s->info.n_tensors; i++) {
        yk_tensor_info tensor;
        good = !yk_model_get_tensor(s->model, i, &tensor) && !json_array_append_new(tensors, tensor_json(&tensor));
    }
    if (!good) {
        json_decref(metadata);
        json_decref(tensors);
        return yk_cli_json_print(NULL);
    }
    return yk_cli_json_print(json_pack("{s:i, s:o, s:o, s:o, s:o}", "format", 1, "file",
                                       yk_cli_json_text(s->path, strlen(s->path)), "info", info_json(&s->info), "metadata",
                                       metadata, "tensors", tensors));
}

/* ---- text -------------------------------------------------------------------------------------------------------- */

static void print_text_value(const char *text, size_t n, bool full)
{
    size_t shown = full || n <= SHOWN_BYTES ? n : SHOWN_BYTES;
    while (shown < n && shown > 0 && ((unsigned char)text[shown] & 0xc0) == 0x80)
        shown--;                       /* do not cut a character */
    for (size_t at = 0; at < shown;) { /* in pieces that fit into the printable buffer */
        size_t piece = shown - at < 512 ? shown - at : 512;
        fputs(yk_cli_printable(text + at, piece), yk_cli_out);
        at += piece;
    }
    if (shown < n)
        fprintf(yk_cli_out, "... (%zu bytes)", n);
}

static int print_meta(const yk_model *model, uint32_t index, bool full, char **buf, size_t *capacity)
{
    yk_meta_info meta;
    size_t n;
    if (yk_model_get_meta(model, index, &meta))
        return yk_cli_error(YK_EXIT_RUNTIME, "metadata value %u cannot be read", index);
    bool array = meta.type[0] == '[';
    uint64_t shown = full || meta.n_elements < SHOWN_ELEMENTS ? meta.n_elements : SHOWN_ELEMENTS;
    fprintf(yk_cli_out, "  %-44s %-6s ", yk_cli_printable(meta.key, strlen(meta.key)), meta.type);
    if (array)
        fputc('[', yk_cli_out);
    for (uint64_t i = 0; i < shown; i++) {
        const char *text = element_text(model, index, i, buf, capacity, &n);
        if (!text)
            return yk_cli_no_memory(n, "a metadata value");
        if (i)
            fputs(", ", yk_cli_out);
        print_text_value(text, n, full);
    }
    if (array)
        fprintf(yk_cli_out, shown < meta.n_elements ? ", ...] %llu elements\n" : "]\n", (unsigned long long)meta.n_elements);
    else
        fputc('\n', yk_cli_out);
    return YK_EXIT_OK;
}

static void print_summary(const yk_cli_session *s)
{
    const yk_model_info *m = &s->info;
    char size[32];
    fprintf(yk_cli_out, "file          %s", yk_cli_printable(s->path, strlen(s->path)));
    if (m->n_files > 1)
        fprintf(yk_cli_out, " and %u more", m->n_files - 1);
    fprintf(yk_cli_out, "\nname          %s\n", yk_cli_printable(m->name, strlen(m->name)));
    fprintf(yk_cli_out, "architecture  %s, %u layers, width %u", m->architecture, m->n_layers, m->n_embd);
    if (m->n_ff)
        fprintf(yk_cli_out, ", feed-forward %u", m->n_ff);
    fprintf(yk_cli_out, "\nattention     %u heads of %u, %u key/value heads\n", m->n_heads, m->head_dim, m->n_kv_heads);
    if (m->n_experts)
        fprintf(yk_cli_out, "experts       %u, %u used, %u wide\n", m->n_experts, m->n_experts_used, m->n_expert_ff);
    fprintf(yk_cli_out, "vocabulary    %u tokens, bos %d, eos %d, eot %d%s\n", m->n_vocab, m->bos, m->eos, m->eot,
            m->add_bos ? ", BOS is added" : "");
    fprintf(yk_cli_out, "context       %u tokens\n", m->n_ctx_train);
    fprintf(yk_cli_out, "weights       %.2f million, %s, mostly %s\n", (double)m->n_params / 1e6,
            yk_cli_size_text(m->n_bytes, size), m->file_type ? m->file_type : "none");
    fprintf(yk_cli_out, "chat template %s\n", m->chat_template ? "yes" : "no");
}

static int print_text(const yk_cli_session *s, bool full)
{
    char *buf = NULL;
    size_t capacity = 0;
    int code = YK_EXIT_OK;
    print_summary(s);
    fprintf(yk_cli_out, "\nmetadata (%u)\n", s->info.n_meta);
    for (uint32_t i = 0; !code && i < s->info.n_meta && !ferror(yk_cli_out); i++)
        code = print_meta(s->model, i, full, &buf, &capacity);
    free(buf);
    if (code)
        return code;
    fprintf(yk_cli_out, "\ntensors (%u)\n", s->info.n_tensors);
    for (uint32_t i = 0; i < s->info.n_tensors && !ferror(yk_cli_out); i++) {
        yk_tensor_info t;
        char dims[96];
        size_t n = 0;
        if (yk_model_get_tensor(s->model, i, &t))
            return yk_cli_error(YK_EXIT_RUNTIME, "tensor %u cannot be read", i);
        dims[0] = 0;
        for (uint32_t d = 0; d < t.n_dims; d++)
            n += (size_t)snprintf(dims + n, sizeof dims - n, "%s%llu", d ? " x " : "", (unsigned long long)t.dims[d]);
        fprintf(yk_cli_out, "  %-36s %-8s %-26s %llu bytes\n", yk_cli_printable(t.name, strlen(t.name)), t.type, dims,
                (unsigned long long)t.bytes);
    }
    return YK_EXIT_OK;
}

int yk_cli_inspect(yk_cli_opts *opts)
{
    yk_cli_session s = {0};
    int code = yk_cli_open_model(&s, opts, opts->vocab_only);
    if (!code)
        code = !strcmp(opts->output, "json") ? print_json(&s, opts->full) : print_text(&s, opts->full);
    yk_cli_close(&s);
    return code;
}
