/* Fuzz target: any bytes as a GGUF file, through the reader, the tokenizer's keys and the model binder. Whatever is accepted is
 * then read from end to end, so that a wrong pointer or length shows. */
#include <stdlib.h>
#include <string.h>

#include "src/model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink;

static void touch(const void *p, uint64_t n)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < n; i++)
        sum += ((const uint8_t *)p)[i];
    sink += sum;
}

static void touch_weight(const yk_weight *w)
{
    for (uint32_t i = 0; w->data && i < w->n_mats; i++)
        for (uint32_t r = 0; r < w->n_rows; r++)
            touch(yk_weight_row(w, i, r), w->row_bytes);
}

static void touch_vector(const float *v, uint64_t n)
{
    if (v)
        touch(v, n * sizeof *v);
}

static void touch_layer(const yk_hparams *hp, const yk_layer *l)
{
    const yk_weight *w[] = {&l->q,    &l->k,      &l->v,       &l->o,     &l->gate,    &l->up,
                            &l->down, &l->router, &l->sh_gate, &l->sh_up, &l->sh_down, &l->sh_router};
    for (size_t i = 0; i < sizeof w / sizeof w[0]; i++)
        touch_weight(w[i]);
    touch_vector(l->attn_norm, hp->n_embd);
    touch_vector(l->attn_norm_b, hp->n_embd);
    touch_vector(l->ffn_norm, hp->n_embd);
    touch_vector(l->ffn_norm_b, hp->n_embd);
    touch_vector(l->q_b, l->q.n_rows);
    touch_vector(l->k_b, l->k.n_rows);
    touch_vector(l->v_b, l->v.n_rows);
    touch_vector(l->o_b, l->o.n_rows);
    touch_vector(l->q_norm, hp->head_dim);
    touch_vector(l->k_norm, hp->head_dim);
    touch_vector(l->sinks, hp->n_heads);
    touch_vector(l->gate_b, (uint64_t)l->gate.n_mats * l->gate.n_rows);
    touch_vector(l->up_b, (uint64_t)l->up.n_mats * l->up.n_rows);
    touch_vector(l->down_b, (uint64_t)l->down.n_mats * l->down.n_rows);
    touch_vector(l->router_b, l->router.n_rows);
}

static void touch_public(const yk_model *m)
{
    yk_model_info info;
    yk_model_get_info(m, &info);
    touch(info.name, strlen(info.name));
    touch(info.architecture, strlen(info.architecture));
    if (info.chat_template)
        touch(info.chat_template, strlen(info.chat_template));
    for (uint32_t i = 0; i < info.n_meta; i++) {
        yk_meta_info meta;
        char text[16];
        size_t n;
        if (yk_model_get_meta(m, i, &meta) != YK_OK)
            abort();
        for (uint64_t e = 0; e < meta.n_elements; e++)
            if (yk_model_get_meta_text(m, i, e, text, sizeof text, &n) != YK_OK || strlen(text) >= sizeof text)
                abort();
        if (yk_model_find_meta(m, meta.key) != i)
            abort();
    }
    for (uint32_t i = 0; i < info.n_tensors; i++) {
        yk_tensor_info t;
        if (yk_model_get_tensor(m, i, &t) != YK_OK || (!m->vocab_only && t.offset + t.bytes > info.file_bytes))
            abort();
    }
}

static void try_model(const uint8_t *data, size_t size, bool vocab_only)
{
    yk_model *m;
    yk_error err = {0};
    yk_model_opts opts;
    yk_model_opts_init(&opts);
    opts.check_tensors = true;
    opts.vocab_only = vocab_only;
    const yk_status st = yk_model_open_memory(&m, data, size, &opts, &err);
    if (st != YK_OK) {
        if (m || err.status != st || err.text[0] == 0 || strchr(err.text, '\n'))
            abort();
        return;
    }
    touch_public(m);
    if (!vocab_only) {
        touch_weight(&m->token_embd);
        touch_weight(&m->output);
        touch_vector(m->output_norm, m->hp.n_embd);
        touch_vector(m->output_norm_b, m->hp.n_embd);
        touch_vector(m->output_b, m->hp.n_vocab);
        touch_vector(m->rope_freqs, m->hp.n_rot / 2);
        touch_vector(m->rope_long, m->hp.n_rot / 2);
        touch_vector(m->rope_short, m->hp.n_rot / 2);
        for (uint32_t i = 0; i < m->hp.n_layers; i++)
            touch_layer(&m->hp, &m->layers[i]);
    }
    yk_model_close(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t none = 0;
    if (!data || size == 0) {
        data = &none;
        size = 0;
    }
    const uint64_t before = yk_mem_live(YK_MEM_RUNTIME) + yk_mem_live(YK_MEM_WEIGHTS);
    try_model(data, size, false);
    try_model(data, size, true);
    if (yk_mem_live(YK_MEM_RUNTIME) + yk_mem_live(YK_MEM_WEIGHTS) != before)
        abort();
    return 0;
}
