/* The model loader: what must be refused, what must open, and that every weight is where its role says. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "src/base/half.h"
#include "src/model/model.h"
#include "tests/gguf_build.h"

static const char *fixtures;

static void path_of(char *buf, size_t cap, const char *name)
{
    snprintf(buf, cap, "%s/%s", fixtures, name);
}

static yk_model *open_fixture(const char *name)
{
    char path[512];
    path_of(path, sizeof path, name);
    yk_model *m;
    yk_error err = {0};
    if (yk_model_open(&m, path, NULL, &err) != YK_OK)
        fail_msg("%s", err.text);
    return m;
}

/* A variation of a fixture, kept in memory. */
typedef struct variant {
    yk_gguf from;
    gb_file f;
    gb_buf image;
    yk_model *m;
} variant;

static void variant_start(variant *v, const char *name, const char *const *skip, int n_skip)
{
    char path[512];
    yk_error err = {0};
    *v = (variant){0};
    path_of(path, sizeof path, name);
    if (yk_gguf_open(&v->from, path, false, &err) != YK_OK)
        fail_msg("%s", err.text);
    gb_init(&v->f);
    gb_copy_kvs(&v->f, &v->from, skip, n_skip);
    gb_copy_tensors(&v->f, &v->from, 0, v->from.n_tensors);
}

static yk_status variant_try(variant *v, const yk_model_opts *opts, yk_error *err)
{
    v->image = gb_finish(&v->f);
    return yk_model_open_memory(&v->m, v->image.p, v->image.n, opts, err);
}

static void variant_end(variant *v)
{
    yk_model_close(&v->m);
    free(v->image.p);
    gb_free(&v->f);
    yk_gguf_close(&v->from);
}

static void variant_open(variant *v)
{
    yk_error err = {0};
    if (variant_try(v, NULL, &err) != YK_OK)
        fail_msg("%s", err.text);
}

static void variant_refused(variant *v, const char *word)
{
    yk_error err = {0};
    assert_int_equal(variant_try(v, NULL, &err), YK_ERR_INPUT);
    assert_null(v->m);
    if (!strstr(err.text, word))
        fail_msg("\"%s\" does not name \"%s\"", err.text, word);
    variant_end(v);
}

/* ---- the folder of broken files ---- */

static bool names_one(const char *text, char *words)
{
    for (char *w = strtok(words, ","); w; w = strtok(NULL, ","))
        if (strstr(text, w))
            return true;
    return false;
}

static void test_bad(void **state)
{
    (void)state;
    char path[512], line[1024];
    path_of(path, sizeof path, "bad/expected.tsv");
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    int n = 0, wrong = 0;
    assert_non_null(fgets(line, sizeof line, f));
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        char *why = strchr(line, '\t'), *words = why ? strchr(why + 1, '\t') : NULL;
        assert_non_null(words);
        *why++ = *words++ = 0;
        char file[1600];
        snprintf(file, sizeof file, "%s/bad/%s", fixtures, line);
        yk_model *m = (yk_model *)1;
        yk_error err = {0};
        const yk_status st = yk_model_open(&m, file, NULL, &err);
        const bool ok = st == YK_ERR_INPUT && !m && err.status == st && strlen(err.text) > 0 && !strchr(err.text, '\n');
        const char *base = strstr(err.text, line); /* the file's own name does not count as naming the culprit */
        const char *text = base ? base + strlen(line) : err.text;
        char list[256];
        snprintf(list, sizeof list, "%s", words);
        if (!ok || !names_one(text, list)) {
            printf("%s (%s): %s \"%s\", wanted one of %s\n", line, why, yk_status_name(st), err.text, words);
            wrong++;
        }
        if (st == YK_OK)
            yk_model_close(&m);
        n++;
    }
    fclose(f);
    printf("%d broken files, %d not refused as they should\n", n, wrong);
    assert_true(n >= 80);
    assert_int_equal(wrong, 0);
}

static void test_good(void **state)
{
    (void)state;
    yk_model *m = open_fixture("bad/good.gguf");
    assert_int_equal(m->hp.n_embd, 16);
    assert_false(m->layers[0].moe);
    yk_model_close(&m);
    m = open_fixture("bad/good-moe.gguf");
    assert_true(m->layers[0].moe);
    assert_int_equal(m->layers[0].down.n_mats, 4);
    assert_int_equal(m->hp.n_ff, 0);
    yk_model_close(&m);
    assert_null(m);
}

/* ---- all fixtures ---- */

/* What the README beside the models says of each shape: file names begin with `prefix`. */
static const struct shape {
    const char *prefix, *arch;
    uint32_t n_embd, n_heads, n_kv, head_dim, experts, used, vocab, n_rot;
} shapes[] = {
    {"stories260K", "llama", 64, 8, 4, 8, 0, 0, 512, 8},
    {"w256-llama", "llama", 256, 8, 4, 32, 0, 0, 512, 32},
    {"w128-llama-ropefreqs", "llama", 128, 8, 4, 32, 0, 0, 512, 32},
    {"w128-phi3", "phi3", 128, 8, 4, 16, 0, 0, 512, 16},
    {"w256-mixtral-4x2", "llama", 256, 8, 4, 32, 4, 2, 512, 32},
    {"w128-qwen2", "qwen2", 128, 8, 4, 16, 0, 0, 512, 16},
    {"w64-qwen2moe-8x4", "qwen2moe", 64, 8, 4, 8, 8, 4, 512, 8},
    {"w128-phimoe-4x2", "phimoe", 128, 8, 4, 16, 4, 2, 512, 16},
    {"w128-qwen3", "qwen3", 128, 8, 4, 32, 0, 0, 512, 32},
    {"w64-qwen3moe-4x2", "qwen3moe", 64, 8, 4, 32, 4, 2, 512, 32},
    {"w128-olmoe-4x2", "olmoe", 128, 8, 8, 16, 4, 2, 512, 16},
    {"w64-gpt-oss-4x2", "gpt-oss", 64, 8, 4, 32, 4, 2, 512, 32},
    {"yoke-tiny-mixtral", "llama", 256, 8, 4, 32, 8, 2, 2048, 32},
};

static void check_weight(const yk_weight *w, uint32_t rows, uint32_t cols, uint32_t mats)
{
    assert_non_null(w->data);
    assert_int_equal(w->n_rows, rows);
    assert_int_equal(w->n_cols, cols);
    assert_int_equal(w->n_mats, mats);
    uint64_t bytes;
    assert_true(yk_type_row_bytes(w->type, cols, &bytes));
    assert_int_equal(w->row_bytes, bytes);
}

static void check_layer(const yk_model *m, const yk_layer *l)
{
    const yk_hparams *hp = &m->hp;
    const uint32_t flags = m->arch->flags, nq = hp->n_heads * hp->head_dim, nk = hp->n_kv_heads * hp->head_dim;
    check_weight(&l->q, nq, hp->n_embd, 1);
    check_weight(&l->k, nk, hp->n_embd, 1);
    check_weight(&l->v, nk, hp->n_embd, 1);
    check_weight(&l->o, hp->n_embd, nq, 1);
    assert_non_null(l->attn_norm);
    assert_non_null(l->ffn_norm);
    const uint32_t ff = l->moe ? hp->n_expert_ff : hp->n_ff, n = l->moe ? hp->n_experts : 1;
    check_weight(&l->gate, ff, hp->n_embd, n);
    check_weight(&l->up, ff, hp->n_embd, n);
    check_weight(&l->down, hp->n_embd, ff, n);
    assert_int_equal(l->moe, hp->n_experts > 0);
    if (l->moe)
        check_weight(&l->router, hp->n_experts, hp->n_embd, 1);
    assert_int_equal(l->q_norm != NULL, m->arch->qk_norm != YK_QK_NORM_NONE);
    assert_int_equal(l->k_norm != NULL, m->arch->qk_norm != YK_QK_NORM_NONE);
    assert_int_equal(l->sinks != NULL, (flags & YK_ARCH_SINKS) != 0);
    assert_int_equal(l->attn_norm_b != NULL, (flags & YK_ARCH_NORM_BIAS) != 0);
    assert_int_equal(l->ffn_norm_b != NULL, (flags & YK_ARCH_NORM_BIAS) != 0);
    assert_int_equal(l->down_b != NULL, (flags & YK_ARCH_FFN_BIAS) != 0);
    assert_int_equal(l->router_b != NULL, (flags & YK_ARCH_FFN_BIAS) != 0);
    assert_int_equal(l->sh_up.data != NULL, (flags & YK_ARCH_SHARED_EXPERT) != 0);
    if (l->sh_up.data) {
        check_weight(&l->sh_gate, hp->n_shared_ff, hp->n_embd, 1);
        check_weight(&l->sh_down, hp->n_embd, hp->n_shared_ff, 1);
        check_weight(&l->sh_router, 1, hp->n_embd, 1);
    }
}

static void check_fixture(const char *path, const char *name)
{
    const struct shape *s = NULL;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        if (strncmp(name, shapes[i].prefix, strlen(shapes[i].prefix)) == 0)
            s = &shapes[i];
    if (!s)
        fail_msg("%s: no shape known for this fixture", name);
    yk_model *m;
    yk_error err = {0};
    yk_model_opts opts;
    yk_model_opts_init(&opts);
    opts.check_tensors = true;
    if (yk_model_open(&m, path, &opts, &err) != YK_OK)
        fail_msg("%s", err.text);
    yk_model_info info;
    yk_model_get_info(m, &info);
    assert_string_equal(info.architecture, s->arch);
    assert_int_equal(info.n_embd, s->n_embd);
    assert_int_equal(info.n_heads, s->n_heads);
    assert_int_equal(info.n_kv_heads, s->n_kv);
    assert_int_equal(info.head_dim, s->head_dim);
    assert_int_equal(info.n_experts, s->experts);
    assert_int_equal(info.n_experts_used, s->used);
    assert_int_equal(info.n_vocab, s->vocab);
    assert_int_equal(info.n_ctx_train, 512);
    assert_int_equal(m->hp.n_rot, s->n_rot);
    assert_true(info.n_layers == 5 || info.n_layers == 4);
    assert_true(m->hp.norm_eps > 1e-6f && m->hp.norm_eps < 2e-5f);
    assert_true(m->hp.rope_base > 1000);
    assert_true(info.n_bytes < info.file_bytes && info.n_bytes > info.file_bytes / 2);
    assert_int_equal(m->tied, strstr(name, "tied") != NULL);
    assert_int_equal(m->rope_freqs != NULL, strstr(name, "ropefreqs") != NULL);
    assert_int_equal(m->rope_long != NULL, strstr(name, "phi") != NULL);
    check_weight(&m->token_embd, s->vocab, s->n_embd, 1);
    check_weight(&m->output, s->vocab, s->n_embd, 1);
    assert_int_equal(m->output_b != NULL, (m->arch->required & YK_ARCH_HEAD_BIAS) != 0);
    for (uint32_t i = 0; i < m->hp.n_layers; i++)
        check_layer(m, &m->layers[i]);
    yk_model_close(&m);
}

/* Calls `check` for every GGUF file of a folder; returns how many. */
static int check_folder(const char *dir, void (*check)(const char *path, const char *name))
{
    DIR *d = opendir(dir);
    assert_non_null(d);
    int n = 0;
    for (struct dirent *e; (e = readdir(d));) {
        const size_t len = strlen(e->d_name);
        if (len < 5 || strcmp(e->d_name + len - 5, ".gguf") != 0)
            continue;
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        check(path, e->d_name);
        n++;
    }
    closedir(d);
    return n;
}

static void test_fixtures(void **state)
{
    (void)state;
    char path[512];
    int n = check_folder(fixtures, check_fixture);
    path_of(path, sizeof path, "yoke-tiny-mixtral");
    n += check_folder(path, check_fixture);
    printf("%d fixtures\n", n);
    assert_true(n >= 34);
}

static void test_hparams(void **state)
{
    (void)state;
    yk_model *m = open_fixture("w64-gpt-oss-4x2-f16.gguf");
    assert_int_equal(m->hp.rope_scaling, YK_ROPE_YARN);
    assert_true(fabsf(m->hp.rope_factor - 2.5118864f) < 1e-6f);
    assert_int_equal(m->hp.rope_orig_ctx, 210);
    assert_int_equal(m->hp.window, 48);
    assert_int_equal(m->hp.n_expert_ff, 192);
    assert_int_equal(m->hp.n_ff, 0);
    assert_true(m->hp.rope_attn_factor == 1.0f && m->hp.yarn_beta_fast == 32.0f && m->hp.yarn_beta_slow == 1.0f);
    yk_model_close(&m);
    m = open_fixture("w128-phi3-f16.gguf");
    assert_int_equal(m->hp.rope_scaling, YK_ROPE_NONE);
    assert_true(fabsf(m->hp.rope_attn_factor - 1.19f) < 1e-6f);
    assert_true(m->hp.rope_factor == 1.0f && m->hp.rope_base == 10000.0f);
    assert_int_equal(m->hp.n_ff, 192);
    yk_model_close(&m);
    m = open_fixture("w64-qwen2moe-8x4-f16.gguf");
    assert_int_equal(m->hp.n_expert_ff, 64);
    assert_int_equal(m->hp.n_shared_ff, 128);
    assert_int_equal(m->hp.window, 0);
    yk_model_close(&m);
}

static char archs_left[512];

static void check_seed(const char *path, const char *name)
{
    (void)name;
    yk_model *m;
    yk_error err = {0};
    if (yk_model_open(&m, path, NULL, &err) != YK_OK)
        fail_msg("%s", err.text);
    char word[64];
    snprintf(word, sizeof word, " %s ", m->arch->name);
    char *at = strstr(archs_left, word); /* seen: blank it out, but keep the spaces around it */
    if (at)
        memset(at + 1, '#', strlen(word) - 2);
    yk_model_close(&m);
}

/* The fuzzer's seeds are whole models, one for each architecture and layout. */
static void test_seeds(void **state)
{
    (void)state;
    const char *source = getenv("YOKE_SOURCE");
    if (!source)
        skip();
    char dir[512];
    snprintf(dir, sizeof dir, "%s/tests/fuzz/corpus/gguf", source);
    snprintf(archs_left, sizeof archs_left, " %s ", yk_arch_names());
    assert_true(check_folder(dir, check_seed) >= 13);
    for (const char *c = archs_left; *c; c++)
        if (*c != '#' && *c != ' ')
            fail_msg("no seed for one of the architectures:%s", archs_left);
}

static void check_vocab(const char *path, const char *name)
{
    (void)name;
    yk_model *m;
    yk_error err = {0};
    yk_model_opts opts;
    yk_model_opts_init(&opts);
    opts.vocab_only = true;
    assert_int_equal(yk_model_open(&m, path, NULL, &err), YK_ERR_INPUT);
    if (yk_model_open(&m, path, &opts, &err) != YK_OK)
        fail_msg("%s", err.text);
    yk_model_info info;
    yk_model_get_info(m, &info);
    assert_true(info.n_vocab >= 32000);
    assert_int_equal(info.n_tensors, 0);
    yk_model_close(&m);
}

/* Vocabularies of any architecture open without tensors. */
static void test_vocab_only(void **state)
{
    (void)state;
    char dir[512];
    path_of(dir, sizeof dir, "vocab");
    assert_true(check_folder(dir, check_vocab) >= 9);
}

/* ---- same weights, another file ---- */

static void same_rows(const yk_weight *a, const yk_weight *b)
{
    assert_int_equal(a->type, b->type);
    assert_int_equal(a->n_mats, b->n_mats);
    assert_int_equal(a->n_rows, b->n_rows);
    for (uint32_t i = 0; i < a->n_mats; i++)
        for (uint32_t r = 0; r < a->n_rows; r++)
            assert_memory_equal(yk_weight_row(a, i, r), yk_weight_row(b, i, r), a->row_bytes);
}

static void same_floats(const float *a, const float *b, uint32_t n)
{
    assert_int_equal(a != NULL, b != NULL);
    for (uint32_t i = 0; a && i < n; i++)
        assert_true(a[i] == b[i]);
}

static void same_model(const yk_model *a, const yk_model *b)
{
    const yk_hparams *hp = &a->hp;
    assert_int_equal(hp->n_layers, b->hp.n_layers);
    same_rows(&a->token_embd, &b->token_embd);
    same_rows(&a->output, &b->output);
    same_floats(a->output_norm, b->output_norm, hp->n_embd);
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        const yk_layer *x = &a->layers[i], *y = &b->layers[i];
        const yk_weight *u[] = {&x->q, &x->k, &x->v, &x->o, &x->gate, &x->up, &x->down};
        const yk_weight *v[] = {&y->q, &y->k, &y->v, &y->o, &y->gate, &y->up, &y->down};
        for (int j = 0; j < 7; j++)
            same_rows(u[j], v[j]);
        same_floats(x->attn_norm, y->attn_norm, hp->n_embd);
        same_floats(x->ffn_norm, y->ffn_norm, hp->n_embd);
        same_floats(x->q_b, y->q_b, hp->n_heads * hp->head_dim);
        same_floats(x->k_b, y->k_b, hp->n_kv_heads * hp->head_dim);
        same_floats(x->v_b, y->v_b, hp->n_kv_heads * hp->head_dim);
        if (x->moe)
            same_rows(&x->router, &y->router);
    }
}

static void test_alignments(void **state)
{
    (void)state;
    static const char *const names[] = {"w128-qwen2-f16.gguf", "w256-llama-q2_k.gguf", "w128-llama-ropefreqs-mxfp4-q8_0.gguf",
                                        "stories260K-f32.gguf"};
    static const uint32_t alignments[] = {1, 2, 4, 8, 64, 1024};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        yk_model *m = open_fixture(names[i]);
        for (size_t j = 0; j < sizeof alignments / sizeof alignments[0]; j++) {
            variant v;
            variant_start(&v, names[i], NULL, 0);
            v.f.alignment = alignments[j];
            v.f.version = j % 2 ? 3 : 2;
            variant_open(&v);
            same_model(m, v.m);
            assert_int_equal((uintptr_t)v.m->output_norm % 4, 0);
            variant_end(&v);
        }
        yk_model_close(&m);
    }
}

/* Mixtral files of early 2024 have one tensor for each expert. */
static void test_separate_experts(void **state)
{
    (void)state;
    static const char *const names[] = {"w256-mixtral-4x2-f16.gguf", "w256-mixtral-4x2-q4_k_m.gguf"};
    static const char *const kinds[] = {"gate", "up", "down"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        yk_model *m = open_fixture(names[i]);
        variant v;
        variant_start(&v, names[i], NULL, 0);
        for (uint32_t l = 0; l < m->hp.n_layers; l++)
            for (int k = 0; k < 3; k++) {
                char name[96];
                snprintf(name, sizeof name, "blk.%u.ffn_%s_exps.weight", l, kinds[k]);
                const yk_gguf_tensor *t = yk_gguf_find_tensor(&v.from, name);
                assert_non_null(t);
                gb_tensor_drop(&v.f, name);
                for (uint32_t e = 0; e < 4; e++) {
                    snprintf(name, sizeof name, "blk.%u.ffn_%s.%u.weight", l, kinds[k], e);
                    gb_tensor_add(&v.f, name, (uint32_t)t->type, 2, t->ne, t->data + e * (t->n_bytes / 4), t->n_bytes / 4);
                }
            }
        variant_open(&v);
        assert_non_null(v.m->layers[0].gate.mats);
        same_model(m, v.m);
        variant_end(&v);
        yk_model_close(&m);
    }
    variant v;
    variant_start(&v, names[0], NULL, 0);
    const yk_gguf_tensor *t = yk_gguf_find_tensor(&v.from, "blk.1.ffn_up_exps.weight");
    gb_tensor_drop(&v.f, "blk.1.ffn_up_exps.weight");
    gb_tensor_add(&v.f, "blk.1.ffn_up.0.weight", (uint32_t)t->type, 2, t->ne, t->data, t->n_bytes / 4);
    variant_refused(&v, "blk.1.ffn_up.1.weight is missing");
}

/* Put tensors a, b (and c) of a layer behind each other into one. ne[1] adds up; experts are interleaved. */
static void fuse(variant *v, uint32_t layer, const char *out, const char *const *in, int n, const char *suffix)
{
    char name[96];
    const yk_gguf_tensor *t[3];
    gb_buf data = {0};
    uint64_t rows = 0;
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "blk.%u.%s.%s", layer, in[i], suffix);
        t[i] = yk_gguf_find_tensor(&v->from, name);
        assert_non_null(t[i]);
        gb_tensor_drop(&v->f, name);
        rows += t[i]->n_dims == 1 ? t[i]->ne[0] : t[i]->ne[1];
    }
    for (uint64_t e = 0; e < t[0]->ne[2]; e++)
        for (int i = 0; i < n; i++)
            gb_put(&data, t[i]->data + e * (t[i]->n_bytes / t[i]->ne[2]), t[i]->n_bytes / t[i]->ne[2]);
    uint64_t ne[3] = {t[0]->n_dims == 1 ? rows : t[0]->ne[0], rows, t[0]->ne[2]};
    snprintf(name, sizeof name, "blk.%u.%s.%s", layer, out, suffix);
    gb_tensor_add(&v->f, name, (uint32_t)t[0]->type, t[0]->n_dims, ne, data.p, data.n);
    free(data.p);
}

static void test_fused(void **state)
{
    (void)state;
    static const char *const qkv[] = {"attn_q", "attn_k", "attn_v"}, *const exps[] = {"ffn_gate_exps", "ffn_up_exps"};
    yk_model *m = open_fixture("w128-qwen2-f16.gguf");
    variant v;
    variant_start(&v, "w128-qwen2-f16.gguf", NULL, 0);
    for (uint32_t l = 0; l < m->hp.n_layers; l++) {
        fuse(&v, l, "attn_qkv", qkv, 3, "weight");
        fuse(&v, l, "attn_qkv", qkv, 3, "bias");
    }
    variant_open(&v);
    same_model(m, v.m);
    variant_end(&v);
    yk_model_close(&m);
    m = open_fixture("w64-qwen3moe-4x2-f16.gguf");
    variant_start(&v, "w64-qwen3moe-4x2-f16.gguf", NULL, 0);
    for (uint32_t l = 0; l < m->hp.n_layers; l++)
        fuse(&v, l, "ffn_gate_up_exps", exps, 2, "weight");
    variant_open(&v);
    same_model(m, v.m);
    variant_end(&v);
    yk_model_close(&m);
    /* phi3 as it is: q, k, v rows and gate, up rows follow each other. */
    m = open_fixture("w128-phi3-f16.gguf");
    for (uint32_t l = 0; l < m->hp.n_layers; l++) {
        const yk_layer *x = &m->layers[l];
        char name[64];
        snprintf(name, sizeof name, "blk.%u.attn_qkv.weight", l);
        const yk_gguf_tensor *t = yk_gguf_find_tensor(&m->gguf, name);
        assert_ptr_equal(x->q.data, t->data);
        assert_ptr_equal(x->k.data, t->data + 128 * t->row_bytes);
        assert_ptr_equal(x->v.data, t->data + (128 + 64) * t->row_bytes);
        snprintf(name, sizeof name, "blk.%u.ffn_up.weight", l);
        t = yk_gguf_find_tensor(&m->gguf, name);
        assert_ptr_equal(x->gate.data, t->data);
        assert_ptr_equal(x->up.data, t->data + 192 * t->row_bytes);
    }
    yk_model_close(&m);
}

/* Vectors stored in 16 bits are converted. */
static void test_half_vectors(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        variant v;
        variant_start(&v, "w128-qwen2-f16.gguf", NULL, 0);
        float want[128];
        gb_tensor *t = gb_tensor_find(&v.f, "blk.2.attn_norm.weight");
        for (int i = 0; i < 128; i++) {
            float x;
            memcpy(&x, t->data + 4 * i, 4);
            const uint16_t h = bf16 ? yk_f32_to_bf16(x) : yk_f32_to_f16(x);
            want[i] = bf16 ? yk_bf16_to_f32(h) : yk_f16_to_f32(h);
            assert_true(fabsf(want[i] - x) <= 0.01f * fabsf(x));
            memcpy(t->data + 2 * i, &h, 2);
        }
        t->type = bf16 ? YK_TYPE_BF16 : YK_TYPE_F16;
        t->n_bytes = 256;
        variant_open(&v);
        same_floats(v.m->layers[2].attn_norm, want, 128);
        variant_end(&v);
    }
}

/* ---- refusals beyond the folder ---- */

static void test_unused_tensors(void **state)
{
    (void)state;
    static const float one[512] = {1};
    variant v;
    variant_start(&v, "w128-qwen3-f16.gguf", NULL, 0);
    gb_tensor_add(&v.f, "blk.1.attn_output.bias", YK_TYPE_F32, 1, (uint64_t[]){128}, one, 512);
    variant_refused(&v, "blk.1.attn_output.bias");
    variant_start(&v, "w256-llama-f16.gguf", NULL, 0);
    gb_tensor_add(&v.f, "blk.0.ffn_gate.bias", YK_TYPE_F32, 1, (uint64_t[]){1}, one, 4);
    variant_refused(&v, "blk.0.ffn_gate.bias");
    variant_start(&v, "w256-llama-f16.gguf", NULL, 0);
    gb_tensor_add(&v.f, "output.bias", YK_TYPE_F32, 1, (uint64_t[]){512}, one, 2048);
    variant_refused(&v, "output.bias");
    /* a block count that leaves layers out */
    variant_start(&v, "w256-llama-f16.gguf", (const char *const[]){"llama.block_count"}, 1);
    gb_u32(&v.f, "llama.block_count", 4);
    variant_refused(&v, "blk.4.");
    /* what means nothing is allowed */
    variant_start(&v, "w256-llama-f16.gguf", NULL, 0);
    gb_tensor_add(&v.f, "blk.0.attn_rot_embd.weight", YK_TYPE_F32, 1, (uint64_t[]){16}, one, 64);
    gb_tensor_add(&v.f, "something.else", YK_TYPE_F32, 1, (uint64_t[]){16}, one, 64);
    variant_open(&v);
    variant_end(&v);
    /* required ones */
    static const struct {
        const char *file, *tensor;
    } needed[] = {{"w64-gpt-oss-4x2-f16.gguf", "blk.3.attn_sinks.weight"},
                  {"w64-gpt-oss-4x2-f16.gguf", "blk.1.ffn_down_exps.bias"},
                  {"w64-gpt-oss-4x2-f16.gguf", "blk.0.post_attention_norm.weight"},
                  {"w128-phimoe-4x2-f16.gguf", "output.bias"},
                  {"w128-phimoe-4x2-f16.gguf", "rope_factors_short.weight"},
                  {"w64-qwen2moe-8x4-f16.gguf", "blk.4.ffn_gate_inp_shexp.weight"},
                  {"w128-olmoe-4x2-f16.gguf", "blk.0.attn_k_norm.weight"}};
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        variant_start(&v, needed[i].file, NULL, 0);
        gb_tensor_drop(&v.f, needed[i].tensor);
        variant_refused(&v, needed[i].tensor);
    }
}

static void test_keys(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        float v;
    } floats[] = {
        {"llama.logit_scale", 2},         {"llama.rope.scaling.factor", -1},     {"llama.rope.scaling.factor", NAN},
        {"llama.attention.scale", 0.25f}, {"llama.rope.scaling.attn_factor", 0}, {"llama.rope.scaling.attn_factor", INFINITY},
        {"llama.rope.freq_base_swa", 77}, {"llama.expert_weights_scale", 2.5f}};
    static const struct {
        const char *key;
        uint32_t v;
        const char *named;
    } ints[] = {{"llama.attention.value_length", 4, "llama.attention.value_length"},
                {"llama.attention.key_length", 4, "key_length"},
                {"llama.expert_gating_func", 2, "llama.expert_gating_func"},
                {"llama.expert_used_count", 1, "llama.expert_used_count"},
                {"llama.expert_count", 4, "llama.expert_used_count"},
                {"llama.nextn_predict_layers", 1, "llama.nextn_predict_layers"},
                {"llama.rope.scaling.original_context_length", 0, "llama.rope.scaling.original_context_length"}};
    variant v;
    for (size_t i = 0; i < sizeof floats / sizeof floats[0]; i++) {
        variant_start(&v, "bad/good.gguf", NULL, 0);
        gb_f32(&v.f, floats[i].key, floats[i].v);
        variant_refused(&v, floats[i].key);
    }
    for (size_t i = 0; i < sizeof ints / sizeof ints[0]; i++) {
        variant_start(&v, "bad/good.gguf", NULL, 0);
        gb_u32(&v.f, ints[i].key, ints[i].v);
        variant_refused(&v, ints[i].named);
    }
    variant_start(&v, "bad/good.gguf", NULL, 0);
    gb_str(&v.f, "llama.rope.scaling.type", "dynamic");
    variant_refused(&v, "dynamic");
    variant_start(&v, "bad/good.gguf", NULL, 0);
    gb_str(&v.f, "llama.rope.scaling.type", "linear");
    gb_f32(&v.f, "llama.rope.scaling.factor", 4);
    gb_f32(&v.f, "llama.rope.freq_base", 5e5f);
    gb_f32(&v.f, "llama.logit_scale", 1);
    variant_open(&v);
    assert_int_equal(v.m->hp.rope_scaling, YK_ROPE_LINEAR);
    assert_true(v.m->hp.rope_factor == 4.0f && v.m->hp.rope_base == 5e5f);
    assert_int_equal(v.m->hp.rope_orig_ctx, 64);
    variant_end(&v);
    /* the old name of the factor; a factor without a type is linear */
    variant_start(&v, "bad/good.gguf", NULL, 0);
    gb_f32(&v.f, "llama.rope.scale_linear", 2);
    variant_open(&v);
    assert_int_equal(v.m->hp.rope_scaling, YK_ROPE_LINEAR);
    assert_true(v.m->hp.rope_factor == 2.0f);
    variant_end(&v);
    /* one value for each layer */
    const uint32_t per_layer[5] = {4, 4, 4, 4, 4}, mixed[5] = {4, 4, 2, 4, 4};
    variant_start(&v, "w256-llama-f16.gguf", (const char *const[]){"llama.attention.head_count_kv"}, 1);
    gb_arr(&v.f, "llama.attention.head_count_kv", YK_GGUF_U32, per_layer, 5, sizeof per_layer);
    variant_open(&v);
    assert_int_equal(v.m->hp.n_kv_heads, 4);
    variant_end(&v);
    variant_start(&v, "w256-llama-f16.gguf", (const char *const[]){"llama.attention.head_count_kv"}, 1);
    gb_arr(&v.f, "llama.attention.head_count_kv", YK_GGUF_U32, mixed, 5, sizeof mixed);
    variant_refused(&v, "llama.attention.head_count_kv");
}

/* ---- check_tensors ---- */

typedef struct progress_log {
    uint64_t calls, last, total, stop_at;
} progress_log;

static bool on_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    progress_log *p = user;
    assert_non_null(what);
    assert_true(done >= p->last && done <= total);
    p->last = done;
    p->total = total;
    return ++p->calls != p->stop_at;
}

/* Make the last block of a tensor no number, in the way its type allows. Offsets are those of ggml's block structs. */
static bool poison(gb_tensor *t)
{
    static const struct {
        yk_type type;
        uint32_t at;
        const char *bytes;
        uint32_t n;
    } how[] = {{YK_TYPE_F32, 0, "\0\0\xc0\x7f", 4}, {YK_TYPE_F16, 0, "\0\x7c", 2},    {YK_TYPE_BF16, 0, "\xc0\xff", 2},
               {YK_TYPE_Q4_0, 0, "\0\xfc", 2},      {YK_TYPE_Q4_1, 2, "\0\x7c", 2},   {YK_TYPE_Q5_0, 0, "\0\x7e", 2},
               {YK_TYPE_Q5_1, 2, "\0\x7c", 2},      {YK_TYPE_Q8_0, 0, "\0\x7c", 2},   {YK_TYPE_Q2_K, 82, "\0\x7c", 2},
               {YK_TYPE_Q3_K, 108, "\0\x7c", 2},    {YK_TYPE_Q4_K, 2, "\0\x7c", 2},   {YK_TYPE_Q5_K, 0, "\0\x7c", 2},
               {YK_TYPE_Q6_K, 208, "\0\x7c", 2},    {YK_TYPE_IQ4_NL, 0, "\0\x7c", 2}, {YK_TYPE_IQ4_XS, 0, "\0\x7c", 2},
               {YK_TYPE_MXFP4, 0, "\xff", 1}};
    for (size_t i = 0; i < sizeof how / sizeof how[0]; i++)
        if ((uint32_t)how[i].type == t->type) {
            memcpy(t->data + t->n_bytes - yk_type_get(t->type)->block_bytes + how[i].at, how[i].bytes, how[i].n);
            return true;
        }
    return false;
}

static void test_check_tensors(void **state)
{
    (void)state;
    static const char *const names[] = {
        "stories260K-f32.gguf", "stories260K-bf16.gguf",  "w256-llama-f16.gguf",    "w256-llama-q4_0.gguf",
        "w256-llama-q4_1.gguf", "w256-llama-q5_0.gguf",   "w256-llama-q5_1.gguf",   "w256-llama-q8_0.gguf",
        "w256-llama-q2_k.gguf", "w256-llama-q3_k_m.gguf", "w256-llama-q4_k_m.gguf", "w256-llama-q5_k_m.gguf",
        "w256-llama-q6_k.gguf", "w256-llama-iq4_nl.gguf", "w256-llama-iq4_xs.gguf", "w128-llama-ropefreqs-mxfp4-q8_0.gguf"};
    bool seen[YK_TYPE_LIMIT] = {false};
    int types = 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        variant probe;
        variant_start(&probe, names[i], NULL, 0);
        const uint32_t n = probe.f.n_tensors;
        for (uint32_t j = 0; j < n; j++) {
            const gb_tensor *t = &probe.f.tensors[j];
            if (t->ne[1] == 1 || seen[t->type])
                continue;
            seen[t->type] = true;
            variant v;
            variant_start(&v, names[i], NULL, 0);
            assert_true(poison(&v.f.tensors[j]));
            progress_log log = {0};
            yk_model_opts opts = {.check_tensors = true, .progress = on_progress, .progress_user = &log};
            yk_error err = {0};
            assert_int_equal(variant_try(&v, &opts, &err), YK_ERR_INPUT);
            if (!strstr(err.text, t->name))
                fail_msg("\"%s\" does not name \"%s\"", err.text, t->name);
            assert_true(log.calls > 0 && log.total > 0);
            types++;
            /* without the option only vectors are looked at */
            if (yk_model_open_memory(&v.m, v.image.p, v.image.n, NULL, &err) != YK_OK)
                fail_msg("%s", err.text);
            variant_end(&v);
        }
        variant_end(&probe);
    }
    assert_int_equal(types, 16);
    variant v;
    variant_start(&v, "w256-llama-f16.gguf", NULL, 0);
    progress_log log = {.stop_at = 3};
    yk_model_opts opts = {.check_tensors = true, .progress = on_progress, .progress_user = &log};
    yk_error err = {0};
    assert_int_equal(variant_try(&v, &opts, &err), YK_ERR_CANCELLED);
    assert_int_equal(err.status, YK_ERR_CANCELLED);
    assert_null(v.m);
    log = (progress_log){0};
    free(v.image.p);
    assert_int_equal(variant_try(&v, &opts, &err), YK_OK);
    assert_int_equal(log.last, log.total);
    assert_int_equal(log.total, v.m->n_weight_bytes);
    variant_end(&v);
}

/* ---- public functions ---- */

static void test_info(void **state)
{
    (void)state;
    yk_model *m = open_fixture("w256-mixtral-4x2-q4_k_m.gguf");
    yk_model_info info;
    yk_model_get_info(m, &info);
    assert_string_equal(info.file_type, "Q4_K");
    assert_int_equal(info.n_files, 1);
    assert_int_equal(info.n_tensors, m->gguf.n_tensors);
    assert_int_equal(info.n_expert_ff, m->hp.n_expert_ff);
    assert_int_equal(info.bos, 1);
    assert_int_equal(info.eos, 2);
    assert_null(info.chat_template);
    uint64_t bytes = 0, params = 0;
    yk_tensor_info t;
    for (uint32_t i = 0; i < info.n_tensors; i++) {
        assert_int_equal(yk_model_get_tensor(m, i, &t), YK_OK);
        bytes += t.bytes;
        params += t.dims[0] * t.dims[1] * t.dims[2] * t.dims[3];
        assert_true(t.offset + t.bytes <= info.file_bytes);
        assert_non_null(t.type);
    }
    assert_int_equal(bytes, info.n_bytes);
    assert_int_equal(params, info.n_params);
    assert_int_equal(yk_model_get_tensor(m, info.n_tensors, &t), YK_ERR_USAGE);
    const int64_t i = yk_model_find_meta(m, "llama.expert_count");
    assert_true(i >= 0);
    assert_int_equal(yk_model_find_meta(m, "llama.expert_coun"), -1);
    yk_meta_info meta;
    assert_int_equal(yk_model_get_meta(m, (uint32_t)i, &meta), YK_OK);
    assert_string_equal(meta.key, "llama.expert_count");
    assert_string_equal(meta.type, "u32");
    assert_int_equal(yk_model_get_meta(m, info.n_meta, &meta), YK_ERR_USAGE);
    char text[32];
    size_t n;
    assert_int_equal(yk_model_get_meta_text(m, (uint32_t)i, 0, text, sizeof text, &n), YK_OK);
    assert_string_equal(text, "4");
    assert_int_equal(n, 1);
    assert_int_equal(yk_model_get_meta_text(m, (uint32_t)i, 1, text, sizeof text, &n), YK_ERR_USAGE);
    const uint32_t arch = (uint32_t)yk_model_find_meta(m, "general.architecture");
    assert_int_equal(yk_model_get_meta_text(m, arch, 0, text, 4, &n), YK_OK);
    assert_string_equal(text, "lla");
    assert_int_equal(n, 5);
    assert_int_equal(yk_model_get_meta_text(m, arch, 0, NULL, 0, &n), YK_OK);
    assert_int_equal(n, 5);
    const uint32_t tokens = (uint32_t)yk_model_find_meta(m, "tokenizer.ggml.tokens");
    assert_int_equal(yk_model_get_meta_text(m, tokens, 2, text, sizeof text, NULL), YK_OK);
    assert_true(strstr(text, "/s") != NULL);
    const uint32_t eps = (uint32_t)yk_model_find_meta(m, "llama.attention.layer_norm_rms_epsilon");
    assert_int_equal(yk_model_get_meta_text(m, eps, 0, text, sizeof text, NULL), YK_OK);
    assert_true(strtof(text, NULL) == m->hp.norm_eps);
    yk_model_close(&m);
    yk_model_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_fixtures),
        cmocka_unit_test(test_hparams),
        cmocka_unit_test(test_vocab_only),
        cmocka_unit_test(test_alignments),
        cmocka_unit_test(test_separate_experts),
        cmocka_unit_test(test_fused),
        cmocka_unit_test(test_half_vectors),
        cmocka_unit_test(test_unused_tensors),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_check_tensors),
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_seeds),
    };
    fixtures = gb_fixtures();
    if (!fixtures)
        return 77;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
