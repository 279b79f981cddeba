/* Synthetic models: statistics of the weights, bytes that depend on the seed only, types as llama-quantize chooses them, files
 * that open, run and are complete or absent. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "cpu/ops.h"
#include "src/model/model.h"
#include "src/model/synth.h"
#include "src/model/synth_blocks.h"

static const yk_type all_types[] = {YK_TYPE_F32,  YK_TYPE_F16,    YK_TYPE_BF16,   YK_TYPE_Q4_0, YK_TYPE_Q4_1, YK_TYPE_Q5_0,
                                    YK_TYPE_Q5_1, YK_TYPE_Q8_0,   YK_TYPE_Q2_K,   YK_TYPE_Q3_K, YK_TYPE_Q4_K, YK_TYPE_Q5_K,
                                    YK_TYPE_Q6_K, YK_TYPE_IQ4_NL, YK_TYPE_IQ4_XS, YK_TYPE_MXFP4};
enum { N_TYPES = sizeof all_types / sizeof *all_types };

static char dir[64]; /* of the files of this test, below the working directory */

static int open_dir(void **state)
{
    (void)state;
    strcpy(dir, "synth-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

/* Files in the folder; all are removed. */
static int empty_dir(void)
{
    char path[400];
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (const struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        unlink(path);
        n++;
    }
    closedir(d);
    return n;
}

static int close_dir(void **state)
{
    (void)state;
    empty_dir();
    return rmdir(dir);
}

static const char *path_of(const char *name)
{
    static char buf[4][128];
    static int next;
    char *p = buf[next++ % 4];
    snprintf(p, sizeof buf[0], "%s/%s", dir, name);
    return p;
}

/* ---- blocks ---- */

enum { COLS = 4096, ROWS = 64 };

static void check_block_statistics(yk_type type, double std, double tolerance)
{
    yk_synth_gen g;
    yk_synth_gen_init(&g, type, COLS, 11, "a.weight", std, 0);
    uint8_t *rows = malloc(ROWS * g.row_bytes);
    float *x = malloc(COLS * sizeof *x);
    assert_true(rows && x);
    yk_synth_rows(&g, 5, ROWS, rows);
    double sum = 0, square = 0, row_mean2 = 0;
    for (int r = 0; r < ROWS; r++) {
        double row = 0;
        yk_ops_get(YK_ISA_REF)->dequant[type](rows + (size_t)r * g.row_bytes, COLS, x);
        for (int i = 0; i < COLS; i++) {
            if (!isfinite(x[i]))
                fail_msg("%s: weight %d of row %d is not finite", yk_type_get(type)->name, i, r);
            row += (double)x[i];
            square += (double)x[i] * (double)x[i];
        }
        sum += row;
        row_mean2 += (row / COLS) * (row / COLS) / ROWS;
    }
    const double n = (double)COLS * ROWS, got = sqrt(square / n), mean = sum / n;
    if (!(fabs(got / std - 1) < tolerance))
        fail_msg("%s: standard deviation %g, wanted %g", yk_type_get(type)->name, got, std);
    if (!(fabs(mean) < 0.02 * std) || !(sqrt(row_mean2) < 0.1 * std)) /* no direction common to all rows, none within a row */
        fail_msg("%s: mean %g, root mean square of the rows' means %g, with standard deviation %g", yk_type_get(type)->name,
                 mean, sqrt(row_mean2), std);
    free(rows);
    free(x);
}

static void test_block_statistics(void **state)
{
    (void)state;
    for (int i = 0; i < N_TYPES; i++) {
        check_block_statistics(all_types[i], 0.5, 0.02);
        check_block_statistics(all_types[i], 1.2 / sqrt(2048), 0.02);
        check_block_statistics(all_types[i], 0.7 / sqrt(14336), 0.05); /* scales of 8-bit types are denormal halves here */
    }
}

static void test_rows(void **state)
{
    (void)state;
    for (int i = 0; i < N_TYPES; i++) {
        const uint32_t block = yk_type_get(all_types[i])->block_elems;
        const uint64_t cols = block == 1 ? 37 : block * 3;
        yk_synth_gen g, other_name, other_seed;
        yk_synth_gen_init(&g, all_types[i], cols, 1, "blk.0.x", 0.1, 0);
        yk_synth_gen_init(&other_name, all_types[i], cols, 1, "blk.1.x", 0.1, 0);
        yk_synth_gen_init(&other_seed, all_types[i], cols, 2, "blk.0.x", 0.1, 0);
        uint8_t whole[8 * 1024] = {0}, part[1024], guard = 0xa5;
        assert_true(8 * g.row_bytes <= sizeof whole && g.row_bytes < sizeof part);
        yk_synth_rows(&g, 0, 8, whole);
        for (uint64_t r = 0; r < 8; r++) {
            const uint8_t *want = whole + r * g.row_bytes;
            part[g.row_bytes] = guard;
            yk_synth_rows(&g, r, 1, part);
            assert_memory_equal(part, want, g.row_bytes);
            assert_int_equal(part[g.row_bytes], guard);
            yk_synth_rows(&g, r + 1, 1, part);
            assert_memory_not_equal(part, want, g.row_bytes);
            yk_synth_rows(&other_name, r, 1, part);
            assert_memory_not_equal(part, want, g.row_bytes);
            yk_synth_rows(&other_seed, r, 1, part);
            assert_memory_not_equal(part, want, g.row_bytes);
        }
    }
}

static void test_codes_of_q8_0(void **state)
{
    (void)state;
    yk_synth_gen g;
    yk_synth_gen_init(&g, YK_TYPE_Q8_0, 32 * 64, 1, "x", 1, 0);
    uint8_t row[34 * 64];
    bool low = false;
    for (uint64_t r = 0; r < 64; r++) {
        yk_synth_rows(&g, r, 1, row);
        for (int b = 0; b < 64; b++) {
            for (int i = 2; i < 34; i++) {
                assert_int_not_equal(row[34 * b + i], 0x80);
                low |= row[34 * b + i] == 0x81;
            }
        }
    }
    assert_true(low);
}

/* ---- types ---- */

static yk_role role_of(const char *name)
{
    static const struct {
        const char *part;
        yk_role role;
    } roles[] = {{"_norm.", YK_ROLE_KEEP},       {".bias", YK_ROLE_KEEP},
                 {"ffn_gate_inp", YK_ROLE_KEEP}, {"token_embd.", YK_ROLE_TOKEN_EMBD},
                 {"attn_q.", YK_ROLE_Q},         {"attn_k.", YK_ROLE_K},
                 {"attn_v.", YK_ROLE_V},         {"attn_output.", YK_ROLE_ATTN_OUT},
                 {"ffn_gate", YK_ROLE_GATE},     {"ffn_up", YK_ROLE_UP},
                 {"ffn_down", YK_ROLE_DOWN},     {"output.weight", YK_ROLE_OUTPUT}};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (strstr(name, roles[i].part))
            return roles[i].role;
    fail_msg("no role for %s", name);
    return YK_ROLE_KEEP;
}

/* Files that llama-quantize has written. Q2_K and IQ4 files of its making are mixes that have no name here. */
static void test_types_of_fixtures(void **state)
{
    (void)state;
    static const char *const files[][2] = {
        {"w256-llama-q4_0", "Q4_0"},       {"w256-llama-q4_1", "Q4_1"},           {"w256-llama-q5_0", "Q5_0"},
        {"w256-llama-q5_1", "Q5_1"},       {"w256-llama-q8_0", "Q8_0"},           {"w256-llama-q6_k", "Q6_K"},
        {"w256-llama-q3_k_m", "Q3_K_M"},   {"w256-llama-q4_k_m", "Q4_K_M"},       {"w256-llama-q5_k_m", "q5_k_m"},
        {"w256-mixtral-4x2-q4_0", "q4_0"}, {"w256-mixtral-4x2-q4_k_m", "Q4_K_M"}, {"w64-qwen2moe-8x4-q4_k_m", "Q4_K_M"}};
    const char *fixtures = getenv("YOKE_FIXTURES");
    if (!fixtures || access(fixtures, R_OK) != 0) {
        print_message("skipped: no fixtures\n");
        skip();
    }
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[512];
        yk_error err = {0};
        yk_model *m;
        snprintf(path, sizeof path, "%s/%s.gguf", fixtures, files[i][0]);
        if (yk_model_open(&m, path, NULL, &err) != YK_OK)
            fail_msg("%s", err.text);
        const yk_mix *mix = yk_mix_find(files[i][1]);
        assert_non_null(mix);
        for (uint32_t t = 0; t < m->gguf.n_tensors; t++) {
            const yk_gguf_tensor *g = &m->gguf.tensors[t];
            unsigned layer = 0;
            sscanf(g->name, "blk.%u.", &layer);
            const yk_type want = yk_mix_type(mix, role_of(g->name), layer, m->hp.n_layers, m->hp.n_experts, g->ne[0]);
            if (g->type != want)
                fail_msg("%s: %s is %s, yk_mix_type says %s", files[i][0], g->name, yk_type_get(g->type)->name,
                         yk_type_get(want)->name);
        }
        yk_model_close(&m);
    }
}

static void test_types_of_mixes(void **state)
{
    (void)state;
    const yk_mix *q4 = yk_mix_find("Q4_K_M"), *q3 = yk_mix_find("Q3_K_M"), *fp4 = yk_mix_find("MXFP4");
    /* The first and last eighth of 32 layers and every third between: 0 .. 3, 6, 9, ..., 27, 28 .. 31. */
    for (uint32_t l = 0; l < 32; l++) {
        const bool more = l < 4 || l >= 28 || l % 3 == 0;
        assert_int_equal(yk_mix_type(q4, YK_ROLE_DOWN, l, 32, 8, 14336), more ? YK_TYPE_Q6_K : YK_TYPE_Q4_K);
        assert_int_equal(yk_mix_type(q4, YK_ROLE_V, l, 32, 0, 4096), more ? YK_TYPE_Q6_K : YK_TYPE_Q4_K);
        assert_int_equal(yk_mix_type(q4, YK_ROLE_V, l, 32, 8, 4096), YK_TYPE_Q8_0);
        assert_int_equal(yk_mix_type(q3, YK_ROLE_DOWN, l, 32, 0, 4096), l < 2 ? YK_TYPE_Q5_K : YK_TYPE_Q4_K);
    }
    assert_int_equal(yk_mix_type(q4, YK_ROLE_K, 9, 32, 8, 4096), YK_TYPE_Q8_0);
    assert_int_equal(yk_mix_type(q4, YK_ROLE_K, 9, 32, 128, 4096), YK_TYPE_Q4_K);
    assert_int_equal(yk_mix_type(q4, YK_ROLE_ATTN_OUT, 9, 32, 8, 4096), YK_TYPE_Q5_K);
    assert_int_equal(yk_mix_type(q4, YK_ROLE_GATE, 9, 24, 32, 2880), YK_TYPE_Q5_0);
    assert_int_equal(yk_mix_type(q4, YK_ROLE_DOWN, 0, 24, 32, 2880), YK_TYPE_Q8_0);
    assert_int_equal(yk_mix_type(q4, YK_ROLE_OUTPUT, 0, 24, 32, 2880), YK_TYPE_Q8_0);
    assert_int_equal(yk_mix_type(yk_mix_find("Q4_0"), YK_ROLE_OUTPUT, 0, 24, 32, 2880), YK_TYPE_Q8_0);
    assert_int_equal(yk_mix_type(yk_mix_find("Q4_0"), YK_ROLE_K, 0, 32, 8, 4096), YK_TYPE_Q8_0);
    assert_int_equal(yk_mix_type(yk_mix_find("Q4_0"), YK_ROLE_K, 0, 32, 4, 4096), YK_TYPE_Q4_0);
    assert_int_equal(yk_mix_type(yk_mix_find("IQ4_XS"), YK_ROLE_UP, 0, 24, 32, 2880), YK_TYPE_IQ4_NL);
    assert_int_equal(yk_mix_type(yk_mix_find("Q5_K"), YK_ROLE_UP, 0, 24, 0, 100), YK_TYPE_F16);
    assert_int_equal(yk_mix_type(fp4, YK_ROLE_UP, 0, 24, 32, 2880), YK_TYPE_MXFP4);
    assert_int_equal(yk_mix_type(fp4, YK_ROLE_Q, 0, 24, 32, 2880), YK_TYPE_Q8_0);
    assert_int_equal(yk_mix_type(fp4, YK_ROLE_Q, 0, 24, 0, 2880), YK_TYPE_MXFP4);
    assert_int_equal(yk_mix_type(fp4, YK_ROLE_OUTPUT, 0, 24, 0, 2880), YK_TYPE_Q8_0);
    assert_int_equal(yk_mix_type(q4, YK_ROLE_KEEP, 0, 24, 0, 2880), YK_TYPE_F32);
    assert_null(yk_mix_find("Q4_K_"));
    /* Every name of the list is found, and nothing is missing from it. */
    char names[512], *save = NULL;
    uint32_t n = 0;
    strcpy(names, yk_synth_types());
    for (const char *p = strtok_r(names, " ", &save); p; p = strtok_r(NULL, " ", &save), n++) {
        const yk_mix *mix = yk_mix_find(p);
        assert_non_null(mix);
        assert_string_equal(mix->name, p);
    }
    assert_int_equal(n, N_TYPES + 3);
}

/* ---- files ---- */

static const yk_synth_shape dense = {.name = "dense",
                                     .arch = "llama",
                                     .n_layers = 3,
                                     .n_embd = 256,
                                     .n_ff = 768,
                                     .n_heads = 8,
                                     .n_kv_heads = 2,
                                     .head_dim = 32,
                                     .n_vocab = 1500,
                                     .n_ctx = 64,
                                     .rope_base = 1e4f,
                                     .eps = 1e-5f,
                                     .vocab = YK_SYNTH_SPM};
static const yk_synth_shape mixtral = {.name = "mixtral",
                                       .arch = "llama",
                                       .n_layers = 2,
                                       .n_embd = 256,
                                       .n_ff = 512,
                                       .n_heads = 8,
                                       .n_kv_heads = 2,
                                       .head_dim = 32,
                                       .n_experts = 8,
                                       .n_used = 2,
                                       .n_expert_ff = 512,
                                       .n_vocab = 1500,
                                       .n_ctx = 64,
                                       .rope_base = 1e6f,
                                       .eps = 1e-5f,
                                       .vocab = YK_SYNTH_SPM};
static const yk_synth_shape qwen3 = {.name = "qwen3",
                                     .arch = "qwen3moe",
                                     .n_layers = 3,
                                     .n_embd = 256,
                                     .n_ff = 512,
                                     .n_heads = 8,
                                     .n_kv_heads = 2,
                                     .head_dim = 64,
                                     .n_experts = 16,
                                     .n_used = 4,
                                     .n_expert_ff = 256,
                                     .n_vocab = 2100,
                                     .n_ctx = 64,
                                     .rope_base = 1e6f,
                                     .eps = 1e-6f,
                                     .qk_norm = true,
                                     .vocab = YK_SYNTH_QWEN2};
static const yk_synth_shape oss = {.name = "oss",
                                   .arch = "gpt-oss",
                                   .n_layers = 3,
                                   .n_embd = 288,
                                   .n_ff = 288,
                                   .n_heads = 8,
                                   .n_kv_heads = 2,
                                   .head_dim = 64,
                                   .n_experts = 8,
                                   .n_used = 4,
                                   .n_expert_ff = 288,
                                   .n_vocab = 3100,
                                   .n_ctx = 256,
                                   .rope_base = 1.5e5f,
                                   .eps = 1e-5f,
                                   .oss = true,
                                   .window = 8,
                                   .yarn_factor = 4,
                                   .orig_ctx = 64,
                                   .vocab = YK_SYNTH_GPT4O};
static const yk_synth_shape *const small_shapes[] = {&dense, &mixtral, &qwen3, &oss};

static void write_shape(const char *path, const yk_synth_shape *shape, const char *type, uint64_t seed, uint32_t layers,
                        uint32_t threads)
{
    yk_synth_opts o;
    yk_error err = {0};
    yk_synth_opts_init(&o);
    o.type = type;
    o.seed = seed;
    o.n_layers = layers;
    if (yk_synth_write(path, shape, &o, threads, &err) != YK_OK)
        fail_msg("%s %s: %s", shape->name, type, err.text);
}

static yk_model *open_model(const char *path)
{
    yk_model_opts o;
    yk_error err = {0};
    yk_model *m;
    yk_model_opts_init(&o);
    o.check_tensors = true;
    if (yk_model_open(&m, path, &o, &err) != YK_OK)
        fail_msg("%s", err.text);
    return m;
}

/* Logits of a prompt's last token: finite, of the spread wanted. */
static void check_logits(const float *l, uint32_t n, const char *what)
{
    double sum = 0, square = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!isfinite(l[i]))
            fail_msg("%s: logit %u is not finite", what, i);
        sum += (double)l[i];
        square += (double)l[i] * (double)l[i];
    }
    const double mean = sum / n, std = sqrt(square / n - mean * mean);
    if (!(std > 2 && std < 4.5) || !(fabs(mean) < 0.6))
        fail_msg("%s: logits have mean %g, standard deviation %g", what, mean, std);
}

static void run_model(const yk_model *m, const char *what)
{
    enum { PROMPT = 24 };
    yk_engine_opts o;
    yk_error err = {0};
    yk_engine *e;
    yk_seq *s;
    yk_engine_opts_init(&o);
    o.threads = 1;
    o.context = 64;
    o.logits_rows = PROMPT;
    if (yk_engine_open(&e, m, &o, &err) != YK_OK || yk_seq_open(&s, e, &err) != YK_OK)
        fail_msg("%s: %s", what, err.text);
    int32_t ids[PROMPT], best[PROMPT];
    for (int i = 0; i < PROMPT; i++)
        ids[i] = (i * 37 + 300) % 1000;
    const yk_batch_entry entry = {.seq = s, .tokens = ids, .n_tokens = PROMPT, .logits = YK_LOGITS_ALL};
    if (yk_decode(e, &entry, 1, &err) != YK_OK)
        fail_msg("%s: %s", what, err.text);
    int different = 0;
    for (uint32_t i = 0; i < PROMPT; i++) {
        const float *l = yk_logits(e, 0, i);
        check_logits(l, m->hp.n_vocab, what);
        best[i] = 0;
        for (uint32_t v = 1; v < m->hp.n_vocab; v++)
            best[i] = l[v] > l[best[i]] ? (int32_t)v : best[i];
        bool seen = false;
        for (uint32_t j = 0; j < i; j++)
            seen |= best[j] == best[i];
        different += !seen;
    }
    if (different < PROMPT / 2) /* the output depends on the input, not on a direction that all tokens share */
        fail_msg("%s: only %d different tokens are best after %d", what, different, PROMPT);
    yk_seq_close(&s);
    yk_engine_close(&e);
}

static void test_small_models_run(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof small_shapes / sizeof *small_shapes; i++) {
        char types[512], what[64], *save = NULL;
        strcpy(types, yk_synth_types());
        for (const char *t = strtok_r(types, " ", &save); t; t = strtok_r(NULL, " ", &save)) {
            snprintf(what, sizeof what, "%s %s", small_shapes[i]->name, t);
            write_shape(path_of("m.gguf"), small_shapes[i], t, 3, 0, 2);
            yk_model *m = open_model(path_of("m.gguf"));
            assert_int_equal(m->hp.n_layers, small_shapes[i]->n_layers);
            assert_int_equal(m->hp.n_vocab, small_shapes[i]->n_vocab);
            run_model(m, what);
            yk_model_close(&m);
            assert_int_equal(empty_dir(), 1);
        }
    }
}

/* The residual stream stays in order through as many layers as the deepest shape has. */
static void test_deep_models_run(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof small_shapes / sizeof *small_shapes; i++) {
        write_shape(path_of("m.gguf"), small_shapes[i], "Q4_K_M", 4, 48, 2);
        yk_model *m = open_model(path_of("m.gguf"));
        assert_int_equal(m->hp.n_layers, 48);
        run_model(m, small_shapes[i]->name);
        yk_model_close(&m);
    }
}

/* How many tokens each expert gets of 512 random normalised vectors: all of them some, none nearly all. */
static void test_routers_spread(void **state)
{
    (void)state;
    write_shape(path_of("m.gguf"), &qwen3, "Q4_0", 5, 0, 1);
    yk_model *m = open_model(path_of("m.gguf"));
    uint64_t rng = 1;
    for (uint32_t l = 0; l < m->hp.n_layers; l++) {
        uint32_t count[16] = {0};
        double first = 0;
        assert_int_equal(m->layers[l].router.type, YK_TYPE_F32);
        for (int t = 0; t < 512; t++) {
            float x[256], logits[16] = {0}, weights[4];
            uint32_t ids[4];
            for (int i = 0; i < 256; i++) {
                rng = rng * 6364136223846793005u + 1442695040888963407u;
                x[i] = ((float)(rng >> 40) / 8388608.0f - 1) * 1.732f;
            }
            for (uint32_t e = 0; e < 16; e++)
                for (int i = 0; i < 256; i++)
                    logits[e] += ((const float *)yk_weight_row(&m->layers[l].router, 0, e))[i] * x[i];
            yk_ops_get(YK_ISA_REF)->route(logits, 16, 4, YK_ROUTER_SOFTMAX_TOPK, true, ids, weights);
            for (int k = 0; k < 4; k++)
                count[ids[k]]++;
            first += (double)weights[0] / 512;
        }
        assert_true(first > 0.4 && first < 0.9); /* of four: neither flat nor alone */
        for (int e = 0; e < 16; e++)
            assert_true(count[e] > 64 && count[e] < 256); /* even would be 128 */
        /* No two experts, and no two layers, share rows. */
        for (uint32_t e = 1; e < 16; e++)
            for (uint32_t f = 0; f < e; f++)
                assert_memory_not_equal(yk_weight_row(&m->layers[l].up, e, 0), yk_weight_row(&m->layers[l].up, f, 0), 144);
        if (l > 0)
            assert_memory_not_equal(yk_weight_row(&m->layers[l].up, 0, 0), yk_weight_row(&m->layers[l - 1].up, 0, 0), 144);
        assert_memory_not_equal(yk_weight_row(&m->layers[l].up, 0, 0), yk_weight_row(&m->layers[l].gate, 0, 0), 144);
    }
    yk_model_close(&m);
}

static void test_same_bytes(void **state)
{
    (void)state;
    char *a, *b;
    size_t na, nb;
    for (size_t i = 0; i < sizeof small_shapes / sizeof *small_shapes; i++) {
        write_shape(path_of("a"), small_shapes[i], "Q4_K_M", 9, 0, 1);
        write_shape(path_of("b"), small_shapes[i], "Q4_K_M", 9, 0, 3);
        assert_int_equal(yk_read_file(&a, &na, path_of("a"), 1 << 30, NULL), YK_OK);
        assert_int_equal(yk_read_file(&b, &nb, path_of("b"), 1 << 30, NULL), YK_OK);
        assert_int_equal(na, nb);
        assert_memory_equal(a, b, na);
        yk_free(b);
        write_shape(path_of("b"), small_shapes[i], "Q4_K_M", 10, 0, 3);
        assert_int_equal(yk_read_file(&b, &nb, path_of("b"), 1 << 30, NULL), YK_OK);
        assert_true(na != nb || memcmp(a, b, na) != 0);
        yk_free(a);
        yk_free(b);
        /* Fewer layers: the same layers, as far as they go and have the same type. */
        write_shape(path_of("b"), small_shapes[i], "Q4_0", 9, 1, 2);
        write_shape(path_of("a"), small_shapes[i], "Q4_0", 9, 2, 2);
        yk_model *one = open_model(path_of("b")), *two = open_model(path_of("a"));
        assert_true(one->gguf.n_tensors < two->gguf.n_tensors);
        for (uint32_t t = 0; t < one->gguf.n_tensors; t++) {
            const yk_gguf_tensor *x = &one->gguf.tensors[t], *y = yk_gguf_find_tensor(&two->gguf, x->name);
            assert_non_null(y);
            assert_int_equal(x->n_bytes, y->n_bytes);
            assert_memory_equal(x->data, y->data, x->n_bytes);
        }
        yk_model_close(&one);
        yk_model_close(&two);
    }
}

static void test_vocabularies(void **state)
{
    (void)state;
    static const char *const texts[] = {"babe kizo", " du duda dudapa", "The quick brown fox\n\t{1, 2}",
                                        "na\xc3\xafve \xf0\x9f\x98\x80 \xff", "ba<|im_end|></s>"};
    for (size_t i = 0; i < sizeof small_shapes / sizeof *small_shapes; i++) {
        write_shape(path_of("m.gguf"), small_shapes[i], "Q4_0", 1, 1, 1);
        yk_model *m = open_model(path_of("m.gguf"));
        for (size_t t = 0; t < sizeof texts / sizeof *texts; t++) {
            int32_t ids[128];
            size_t n, used = 0;
            char back[256], buf[64];
            yk_error err = {0};
            if (yk_tokenize(m, texts[t], strlen(texts[t]), 0, ids, 128, &n, &err) != YK_OK)
                fail_msg("%s: %s", small_shapes[i]->name, err.text);
            for (size_t k = 0; k < n; k++) {
                size_t len;
                assert_int_equal(yk_token_text(m, ids[k], false, buf, sizeof buf, &len), YK_OK);
                assert_true(len < sizeof buf && used + len < sizeof back);
                memcpy(back + used, buf, len);
                used += len;
            }
            const size_t skip = small_shapes[i]->vocab == YK_SYNTH_SPM && texts[t][0] != ' ' ? 1 : 0;
            if (used != strlen(texts[t]) + skip && used != strlen(texts[t]) + 1)
                fail_msg("%s: text %zu comes back with %zu bytes", small_shapes[i]->name, t, used);
            assert_memory_equal(back + used - strlen(texts[t]), texts[t], strlen(texts[t]));
            if (t == 0)
                assert_in_range(n, 2, 5); /* syllables are found */
        }
        int32_t ids[8];
        size_t n;
        const char *end = small_shapes[i]->vocab == YK_SYNTH_SPM     ? "</s>"
                          : small_shapes[i]->vocab == YK_SYNTH_QWEN2 ? "<|im_end|>"
                                                                     : "<|return|>";
        assert_int_equal(yk_tokenize(m, end, strlen(end), YK_TOK_PARSE_SPECIAL, ids, 8, &n, NULL), YK_OK);
        assert_int_equal(n, 1);
        assert_true(yk_token_is_end(m, ids[0]));
        yk_model_close(&m);
    }
}

/* ---- failures ---- */

typedef struct stopper {
    uint32_t calls, stop_at;
    uint64_t last, total;
} stopper;

static bool count_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    stopper *s = user;
    assert_true(what && done <= total && done >= s->last);
    s->last = done;
    s->total = total;
    return ++s->calls != s->stop_at;
}

static void test_progress_and_cancel(void **state)
{
    (void)state;
    empty_dir();
    stopper s = {0};
    yk_error err = {0};
    yk_synth_opts o;
    yk_synth_opts_init(&o);
    o.type = "F32";
    o.progress = count_progress;
    o.progress_user = &s;
    assert_int_equal(yk_synth_write(path_of("m"), &mixtral, &o, 2, &err), YK_OK);
    assert_true(s.calls > 3 && s.last == s.total);
    assert_int_equal(empty_dir(), 1);
    for (uint32_t at = 1; at <= 3; at++) {
        s = (stopper){.stop_at = at};
        assert_int_equal(yk_synth_write(path_of("m"), &mixtral, &o, 2, &err), YK_ERR_CANCELLED);
        assert_non_null(strstr(err.text, "cancelled"));
        assert_int_equal(s.calls, at);
        assert_int_equal(empty_dir(), 0);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    yk_error err = {0};
    yk_synth_opts o;
    yk_synth_opts_init(&o);
    o.shape = "mixtral-9x9b";
    assert_int_equal(yk_synth(path_of("m"), &o, &err), YK_ERR_USAGE);
    assert_true(strstr(err.text, "mixtral-9x9b") && strstr(err.text, "mixtral-8x7b"));
    o.shape = NULL;
    assert_int_equal(yk_synth(path_of("m"), &o, &err), YK_ERR_USAGE);
    o.shape = "llama-1b";
    o.type = "Q9_X";
    assert_int_equal(yk_synth(path_of("m"), &o, &err), YK_ERR_USAGE);
    assert_true(strstr(err.text, "Q9_X") && strstr(err.text, "Q4_K_M"));
    o.type = "Q4_0";
    o.n_layers = 1u << 30;
    assert_int_equal(yk_synth(path_of("m"), &o, &err), YK_ERR_USAGE);
    assert_int_equal(yk_synth("", &o, &err), YK_ERR_USAGE);
    assert_int_equal(empty_dir(), 0);
    o.n_layers = 0;
    assert_int_equal(yk_synth(path_of("no/such/folder"), &o, &err), YK_ERR_RUNTIME);
    assert_non_null(strstr(err.text, "no/such/folder"));
    /* A full disk, as far as a process may make one for itself: files may not grow past 100 kB. */
    struct rlimit old, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = (struct rlimit){100000, old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    const yk_status st = yk_synth_write(path_of("m"), &dense, &o, 2, &err);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(st, YK_ERR_RUNTIME);
    assert_non_null(strstr(err.text, path_of("m")));
    assert_int_equal(empty_dir(), 0);
}

/* ---- the writer ---- */

typedef struct filler {
    atomic_uint rows[3];
    uint32_t fail_tensor;
} filler;

static yk_status fill_rows(void *user, uint32_t thread, uint32_t tensor, uint64_t first, uint64_t n, uint8_t *dst,
                           yk_error *err)
{
    filler *f = user;
    assert_true(thread < 2 && tensor < 3 && n > 0);
    if (tensor == f->fail_tensor)
        return yk_fail(err, YK_ERR_INPUT, "tensor %u is bad", tensor);
    static const size_t row_bytes[3] = {4 * 20, 34 * 3, 1 << 20};
    for (uint64_t r = 0; r < n; r++)
        memset(dst + r * row_bytes[tensor], (int)(1 + (first + r) % 250), row_bytes[tensor]);
    atomic_fetch_add(&f->rows[tensor], (unsigned)n);
    return YK_OK;
}

static void build(yk_gguf_writer *w, const yk_gguf *copy_from)
{
    yk_gguf_writer_init(w, 64);
    yk_gguf_put_str(w, "general.architecture", "none");
    yk_gguf_put_bool(w, "a.bool", true);
    yk_gguf_put_f32(w, "a.float", 1.5f);
    yk_gguf_put_array(w, "a.strings", YK_GGUF_STR, 2);
    yk_gguf_elem_str(w, "", 0);
    yk_gguf_elem_str(w, "two\0words", 9);
    yk_gguf_put_array(w, "a.bytes", YK_GGUF_U8, 3);
    yk_gguf_elem(w, "xyz", 3);
    for (uint32_t i = 0; copy_from && i < copy_from->n_kvs; i++)
        if (strncmp(copy_from->kvs[i].key, "general.", 8) != 0)
            yk_gguf_put_copy(w, &copy_from->kvs[i]);
    yk_gguf_add_tensor(w, "f", YK_TYPE_F32, 2, (uint64_t[]){20, 3});
    yk_gguf_add_tensor(w, "q", YK_TYPE_Q8_0, 3, (uint64_t[]){96, 5000, 7});
    yk_gguf_add_tensor(w, "wide", YK_TYPE_F32, 1, (uint64_t[]){1 << 18});
}

static void check_written(const char *path, const yk_gguf *copied)
{
    yk_gguf g;
    yk_error err = {0};
    if (yk_gguf_open(&g, path, false, &err) != YK_OK)
        fail_msg("%s", err.text);
    assert_int_equal(g.version, 3);
    assert_int_equal(g.alignment, 64);
    const yk_gguf_kv *s = yk_gguf_find(&g, "a.strings"), *b = yk_gguf_find(&g, "a.bytes");
    assert_true(s && b && s->n == 2 && b->n == 3 && memcmp(b->data, "xyz", 3) == 0);
    assert_int_equal(yk_gguf_arr_str(s, 0).n, 0);
    assert_int_equal(yk_gguf_arr_str(s, 1).n, 9);
    assert_memory_equal(yk_gguf_arr_str(s, 1).p, "two\0words", 9);
    const uint64_t rows[3] = {3, 35000, 1};
    for (uint32_t t = 0; t < 3; t++) {
        const yk_gguf_tensor *x = &g.tensors[t];
        assert_int_equal(x->offset % 64, 0);
        for (uint64_t r = 0; r < rows[t]; r++)
            for (uint64_t i = 0; i < x->n_bytes / rows[t]; i += i < 4 ? 1 : 97)
                assert_int_equal(x->data[r * (x->n_bytes / rows[t]) + i], 1 + r % 250);
    }
    assert_int_equal(g.file_bytes % 64, 0); /* padded behind the last tensor as well */
    for (uint32_t i = 0; copied && i < copied->n_kvs; i++) {
        const yk_gguf_kv *x = &copied->kvs[i], *y = yk_gguf_find(&g, x->key);
        if (strncmp(x->key, "general.", 8) == 0)
            continue;
        assert_true(y && x->type == y->type && x->elem_type == y->elem_type && x->n == y->n);
        for (uint64_t k = 0; k < x->n && x->type == YK_GGUF_ARR && x->elem_type == YK_GGUF_STR; k++) {
            const yk_str u = yk_gguf_arr_str(x, k), v = yk_gguf_arr_str(y, k);
            assert_int_equal(u.n, v.n);
            assert_memory_equal(u.p, v.p, u.n);
        }
        if (x->type != YK_GGUF_ARR || x->elem_type != YK_GGUF_STR)
            assert_memory_equal(x->data, y->data, 1);
    }
    yk_gguf_close(&g);
}

static void test_writer(void **state)
{
    (void)state;
    write_shape(path_of("from"), &dense, "Q4_0", 1, 1, 1);
    yk_gguf from;
    assert_int_equal(yk_gguf_open(&from, path_of("from"), false, NULL), YK_OK);
    for (int copy = 0; copy < 2; copy++) {
        for (uint32_t threads = 1; threads <= 2; threads++) {
            filler f = {.fail_tensor = 99};
            yk_gguf_writer w;
            yk_error err = {0};
            build(&w, copy ? &from : NULL);
            const yk_gguf_save_opts o = {.fill = fill_rows, .fill_user = &f, .n_threads = threads, .what = "test"};
            if (yk_gguf_save(&w, path_of("w"), &o, &err) != YK_OK)
                fail_msg("%s", err.text);
            assert_true(f.rows[0] == 3 && f.rows[1] == 35000 && f.rows[2] == 1);
            check_written(path_of("w"), copy ? &from : NULL);
            yk_gguf_writer_close(&w);
        }
    }
    yk_gguf_close(&from);
    empty_dir();
}

static void test_writer_failures(void **state)
{
    (void)state;
    yk_gguf_writer w;
    for (uint32_t bad = 0; bad < 3; bad++) {
        filler f = {.fail_tensor = bad};
        yk_error err = {0};
        const yk_gguf_save_opts o = {.fill = fill_rows, .fill_user = &f, .n_threads = 2, .what = "test"};
        build(&w, NULL);
        assert_int_equal(yk_gguf_save(&w, path_of("w"), &o, &err), YK_ERR_INPUT);
        assert_non_null(strstr(err.text, "is bad"));
        yk_gguf_writer_close(&w);
        assert_int_equal(empty_dir(), 0);
    }
    static const struct {
        yk_type type;
        uint64_t ne[2];
    } wrong[] = {{YK_TYPE_Q4_K, {128, 2}},
                 {YK_TYPE_F32, {0, 2}},
                 {YK_TYPE_F32, {8, 0}},
                 {YK_TYPE_F32, {1ull << 62, 4}},
                 {YK_TYPE_F16, {1ull << 40, 1ull << 40}},
                 {(yk_type)5, {32, 1}}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        filler f = {.fail_tensor = 99};
        yk_error err = {0};
        const yk_gguf_save_opts o = {.fill = fill_rows, .fill_user = &f, .n_threads = 1, .what = "test"};
        yk_gguf_writer_init(&w, 32);
        yk_gguf_add_tensor(&w, "named", wrong[i].type, 2, wrong[i].ne);
        yk_gguf_put_u32(&w, "later", 1);
        assert_int_equal(yk_gguf_save(&w, path_of("w"), &o, &err), YK_ERR_USAGE);
        assert_non_null(strstr(err.text, "named"));
        yk_gguf_writer_close(&w);
    }
    assert_int_equal(empty_dir(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_block_statistics),    cmocka_unit_test(test_rows),
        cmocka_unit_test(test_codes_of_q8_0),       cmocka_unit_test(test_types_of_fixtures),
        cmocka_unit_test(test_types_of_mixes),      cmocka_unit_test(test_writer),
        cmocka_unit_test(test_writer_failures),     cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_vocabularies),        cmocka_unit_test(test_routers_spread),
        cmocka_unit_test(test_progress_and_cancel), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_small_models_run),    cmocka_unit_test(test_deep_models_run),
    };
    return cmocka_run_group_tests(tests, open_dir, close_dir);
}
