/* Tokenizers: vectors of real vocabularies, word splits, prompts of the model fixtures, special tokens, round trips, the
 * merging loop against a slow one, refusals. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "src/model/model.h"
#include "src/model/tokenizer_internal.h"
#include "tests/tok_vocab.h"

static const char *fixtures; /* NULL: absent */
static const char *source;

#define NEED_FIXTURES()                                                                                                        \
    do {                                                                                                                       \
        (void)state;                                                                                                           \
        if (!fixtures) {                                                                                                       \
            print_message("skipped: no fixtures (YOKE_FIXTURES)\n");                                                           \
            skip();                                                                                                            \
        }                                                                                                                      \
    } while (0)

static const char *const vocabs[] = {"llama-spm", "phi-3",  "qwen2",     "gpt-2",        "falcon",
                                     "mpt",       "refact", "starcoder", "deepseek-llm", "deepseek-coder"};
enum { N_VOCABS = sizeof vocabs / sizeof vocabs[0], N_VECTORS = 46 };

typedef struct loaded {
    yk_gguf gguf;
    yk_tokenizer *tok;
} loaded;

static loaded load(const char *path)
{
    loaded l = {0};
    yk_error err = {0};
    if (yk_gguf_open(&l.gguf, path, true, &err) != YK_OK || yk_tokenizer_open(&l.tok, &l.gguf, &err) != YK_OK)
        fail_msg("%s: %s", path, err.text);
    return l;
}

static loaded load_vocab(const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/vocab/ggml-vocab-%s.gguf", fixtures, name);
    return load(path);
}

static void unload(loaded *l)
{
    yk_tokenizer_close(&l->tok);
    assert_null(l->tok);
    yk_gguf_close(&l->gguf);
}

static char *read_text(const char *dir, const char *name, size_t *n)
{
    char path[8192];
    char *p = NULL;
    yk_error err = {0};
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (yk_read_file(&p, n, path, 1 << 28, &err) != YK_OK)
        fail_msg("%s", err.text);
    return p;
}

/* Ids of a text, after checking that counting alone and a short buffer give the same. */
static int32_t *encode(const yk_tokenizer *tok, const char *text, size_t n, uint32_t flags, size_t *n_ids)
{
    yk_error err = {0};
    size_t count = 0, again = 0;
    assert_int_equal(yk_tokenizer_encode(tok, text, n, flags, NULL, 0, &count, &err), YK_OK);
    int32_t *ids = calloc(count + 1, sizeof *ids);
    ids[count] = -7;
    assert_int_equal(yk_tokenizer_encode(tok, text, n, flags, ids, count, &again, &err), YK_OK);
    assert_int_equal(again, count);
    assert_int_equal(ids[count], -7);
    if (count) {
        int32_t first[1] = {-1};
        assert_int_equal(yk_tokenizer_encode(tok, text, n, flags, first, 1, &again, &err), YK_OK);
        assert_int_equal(again, count);
        assert_int_equal(first[0], ids[0]);
    }
    for (size_t i = 0; i < count; i++)
        assert_in_range(ids[i], 0, yk_tokenizer_size(tok) - 1);
    *n_ids = count;
    return ids;
}

static void expect_ids(const yk_tokenizer *tok, const char *text, uint32_t flags, const int32_t *want, size_t n_want)
{
    size_t n;
    int32_t *ids = encode(tok, text, strlen(text), flags, &n);
    bool same = n == n_want;
    for (size_t i = 0; same && i < n; i++)
        same = ids[i] == want[i];
    if (!same) {
        print_error("\"%s\": got", text);
        for (size_t i = 0; i < n; i++)
            print_error(" %d", ids[i]);
        print_error(", wanted");
        for (size_t i = 0; i < n_want; i++)
            print_error(" %d", want[i]);
        print_error("\n");
        fail();
    }
    free(ids);
}
#define EXPECT_IDS(tok, text, flags, ...)                                                                                      \
    expect_ids(tok, text, flags, (const int32_t[]){__VA_ARGS__}, sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

/* Every chunk the detokeniser gives ends with a whole character when the text is valid. */
static void check_round_trip(const yk_tokenizer *tok, const char *text, size_t n, bool valid)
{
    yk_model model = {.tok = (yk_tokenizer *)(uintptr_t)tok};
    yk_detok *d = NULL;
    yk_error err = {0};
    size_t n_ids, n_out = 0, k;
    const char *p;
    int32_t *ids = encode(tok, text, n, 0, &n_ids);
    char *out = malloc(n + 64);
    assert_int_equal(yk_detok_open(&d, &model, true, &err), YK_OK);
    for (size_t i = 0; i <= n_ids; i++) {
        if (i < n_ids)
            assert_int_equal(yk_detok_push(d, ids[i], &p, &k), YK_OK);
        else
            yk_detok_flush(d, &p, &k);
        if (n_out + k > n)
            fail_msg("decoding gives more than the %zu bytes of the text", n);
        memcpy(out + n_out, p, k);
        n_out += k;
        for (size_t at = 0; valid && at < k;) {
            const uint32_t len = yk_utf8_len(p + at, k - at);
            assert_int_not_equal(len, 0);
            at += len;
        }
        if (valid && i == n_ids)
            assert_int_equal(k, 0);
    }
    if (n_out != n || memcmp(out, text, n) != 0)
        fail_msg("round trip of %zu bytes ('%.60s') gives %zu bytes ('%.60s')", n, text, n_out, out);
    yk_detok_close(&d);
    assert_null(d);
    free(out);
    free(ids);
}

#define ROUND_TRIP(tok, text, valid) check_round_trip(tok, text, sizeof(text) - 1, valid)

/* ---- vectors -------------------------------------------------------------------------------------------------------- */

static void check_vectors(const char *name)
{
    static const char cut[] = "\n__ggml_vocab_test__\n";
    char file[64];
    size_t n_inp, n_out;
    loaded l = load_vocab(name);
    char path[4096];
    snprintf(path, sizeof path, "%s/vocab", fixtures);
    snprintf(file, sizeof file, "ggml-vocab-%s.gguf.inp", name);
    char *inp = read_text(path, file, &n_inp);
    snprintf(file, sizeof file, "ggml-vocab-%s.gguf.out", name);
    char *out = read_text(path, file, &n_out);
    char *line = out;
    int cases = 0;
    for (char *text = inp, *end; (end = strstr(text, cut)) != NULL; text = end + strlen(cut), cases++) {
        *end = '\0';
        char *eol = strchr(line, '\n');
        assert_non_null(eol);
        *eol = '\0';
        int32_t want[512];
        size_t n_want = 0;
        for (char *p = line, *q; n_want < 512; p = q) {
            const long v = strtol(p, &q, 10);
            if (q == p)
                break;
            want[n_want++] = (int32_t)v;
        }
        expect_ids(l.tok, text, 0, want, n_want);
        check_round_trip(l.tok, text, strlen(text), true);
        line = eol + 1;
    }
    print_message("%s: %d vectors\n", name, cases);
    assert_int_equal(cases, N_VECTORS);
    assert_string_equal(line, "");
    yk_free(inp);
    yk_free(out);
    unload(&l);
}

static void test_vectors(void **state)
{
    NEED_FIXTURES();
    for (int i = 0; i < N_VOCABS; i++)
        check_vectors(vocabs[i]);
}

/* ---- word splits ---------------------------------------------------------------------------------------------------- */

typedef struct split_check {
    const json_t *want;
    size_t n;
} split_check;

static yk_status check_word(void *user, const char *word, size_t n, yk_error *err)
{
    split_check *c = user;
    if (n != (size_t)json_integer_value(json_array_get(c->want, c->n)))
        return yk_fail(err, YK_ERR_INPUT, "word %zu '%.*s' has %zu bytes, should have %lld", c->n, (int)n, word, n,
                       (long long)json_integer_value(json_array_get(c->want, c->n)));
    c->n++;
    return YK_OK;
}

static void test_splits(void **state)
{
    (void)state;
    const char *file = getenv("YOKE_PRETOK_SPLITS"); /* a larger set by hand: an absolute path */
    size_t n;
    char *data = file ? read_text("", file, &n) : read_text(source, "tests/data/pretok_splits.json", &n);
    json_error_t jerr;
    json_t *root = json_loadb(data, n, JSON_ALLOW_NUL, &jerr), *list;
    if (!root)
        fail_msg("splits: %s", jerr.text);
    const json_t *texts = json_object_get(root, "texts");
    const char *name;
    size_t words = 0, sets = 0;
    json_object_foreach(json_object_get(root, "splits"), name, list)
    {
        yk_pretok *p = NULL;
        yk_error err = {0};
        assert_int_equal(yk_pretok_open(&p, name, strlen(name), &err), YK_OK);
        assert_int_equal(json_array_size(list), json_array_size(texts));
        for (size_t i = 0; i < json_array_size(texts); i++) {
            const json_t *t = json_array_get(texts, i);
            split_check c = {json_array_get(list, i), 0};
            if (yk_pretok_split(p, json_string_value(t), json_string_length(t), check_word, &c, &err) != YK_OK)
                fail_msg("%s, text %zu '%s': %s", name, i, json_string_value(t), err.text);
            assert_int_equal(c.n, json_array_size(c.want));
            words += c.n;
        }
        yk_pretok_close(&p);
        sets++;
    }
    print_message("%zu patterns, %zu texts, %zu words\n", sets, json_array_size(texts), words);
    assert_true(sets >= 16 && words > 20000);
    /* every row of the table compiles, and its groups are the ones compared (those with equal patterns once) */
    for (uint32_t i = 0; yk_pretok_names(i); i++)
        for (const char *q = yk_pretok_names(i); *q;) {
            const size_t len = strcspn(q, " ");
            yk_pretok *p = NULL;
            assert_int_equal(yk_pretok_open(&p, q, len, NULL), YK_OK);
            yk_pretok_close(&p);
            q += len + (q[len] == ' ');
        }
    json_decref(root);
    yk_free(data);
}

/* ---- prompts of the models ------------------------------------------------------------------------------------------ */

static json_t *load_json(const char *dir, const char *name)
{
    size_t n;
    char *data = read_text(dir, name, &n);
    json_error_t jerr;
    json_t *root = json_loadb(data, n, 0, &jerr);
    if (!root)
        fail_msg("%s: %s", name, jerr.text);
    yk_free(data);
    return root;
}

static size_t check_prompts(const yk_tokenizer *tok, const json_t *root)
{
    const json_t *prompts = json_object_get(root, "prompts");
    for (size_t i = 0; i < json_array_size(prompts); i++) {
        const json_t *p = json_array_get(prompts, i), *ids = json_object_get(p, "prompt_ids");
        const char *text = json_string_value(json_object_get(p, "prompt"));
        int32_t want[1024];
        assert_true(json_array_size(ids) < 1024);
        for (size_t k = 0; k < json_array_size(ids); k++)
            want[k] = (int32_t)json_integer_value(json_array_get(ids, k));
        expect_ids(tok, text, YK_TOK_SPECIAL, want, json_array_size(ids));
        check_round_trip(tok, text, strlen(text), true);
    }
    return json_array_size(prompts);
}

static void test_prompts(void **state)
{
    NEED_FIXTURES();
    static const char *const names[] = {"stories260K-bf16",         "stories260K-f16",
                                        "stories260K-f32",          "stories260K-tied-f32",
                                        "w128-llama-ropefreqs-f16", "w128-llama-ropefreqs-mxfp4-q8_0",
                                        "w128-olmoe-4x2-f16",       "w128-phi3-f16",
                                        "w128-phimoe-4x2-f16",      "w128-qwen2-f16",
                                        "w128-qwen3-f16",           "w256-llama-f16",
                                        "w256-llama-iq4_nl",        "w256-llama-iq4_xs",
                                        "w256-llama-q2_k",          "w256-llama-q3_k_m",
                                        "w256-llama-q4_0",          "w256-llama-q4_1",
                                        "w256-llama-q4_k_m",        "w256-llama-q5_0",
                                        "w256-llama-q5_1",          "w256-llama-q5_k_m",
                                        "w256-llama-q6_k",          "w256-llama-q8_0",
                                        "w256-mixtral-4x2-f16",     "w256-mixtral-4x2-q4_0",
                                        "w256-mixtral-4x2-q4_k_m",  "w256-mixtral-4x2-q8_0",
                                        "w64-gpt-oss-4x2-f16",      "w64-qwen2moe-8x4-f16",
                                        "w64-qwen2moe-8x4-q4_k_m",  "w64-qwen3moe-4x2-f16"};
    char path[4096];
    size_t prompts = 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "expected/%s.json", names[i]);
        json_t *root = load_json(fixtures, path);
        snprintf(path, sizeof path, "%s/%s.gguf", fixtures, names[i]);
        loaded l = load(path);
        prompts += check_prompts(l.tok, root);
        unload(&l);
        json_decref(root);
    }
    json_t *root = load_json(fixtures, "yoke-tiny-mixtral/expected.json");
    snprintf(path, sizeof path, "%s/yoke-tiny-mixtral/yoke-tiny-mixtral-q4_k_m.gguf", fixtures);
    loaded l = load(path);
    prompts += check_prompts(l.tok, root);
    size_t n, n_ids;
    char *story = read_text(fixtures, "yoke-tiny-mixtral/heldout_story.txt", &n);
    free(encode(l.tok, story, n, YK_TOK_SPECIAL, &n_ids));
    assert_int_equal(n_ids, json_integer_value(json_object_get(root, "heldout_ids")));
    check_round_trip(l.tok, story, n, true);
    yk_free(story);
    /* a story of these models ends with BOS: that is for the program to know */
    assert_true(yk_tokenizer_is_end(l.tok, 2));
    assert_false(yk_tokenizer_is_end(l.tok, 1));
    unload(&l);
    json_decref(root);
    print_message("%zu prompts\n", prompts);
    assert_true(prompts >= 4 * sizeof names / sizeof names[0]);
}

/* ---- special tokens ------------------------------------------------------------------------------------------------- */

static void test_special_spm(void **state)
{
    (void)state;
    tv_file f;
    tv_spm(&f);
    loaded l = {0};
    tv_open(&f, &l.gguf, &l.tok);
    const yk_tokenizer_special s = yk_tokenizer_get_special(l.tok);
    assert_int_equal(s.bos, 1);
    assert_int_equal(s.eos, 2);
    assert_int_equal(s.unk, 0);
    assert_int_equal(s.eot, TV_SPM_END);
    assert_true(s.add_bos);
    assert_false(s.add_eos);
    assert_true(yk_tokenizer_is_end(l.tok, 2) && yk_tokenizer_is_end(l.tok, TV_SPM_END));
    assert_false(yk_tokenizer_is_end(l.tok, 1) || yk_tokenizer_is_end(l.tok, -1) || yk_tokenizer_is_end(l.tok, 100000));
    /* a prefix space before the text and behind each special token, and nothing for no text */
    EXPECT_IDS(l.tok, "ab", 0, TV_SPM_SP_AB);
    EXPECT_IDS(l.tok, "ab ab", YK_TOK_SPECIAL, 1, TV_SPM_SP_AB, TV_SPM_SP_AB);
    EXPECT_IDS(l.tok, "", YK_TOK_SPECIAL, 1);
    expect_ids(l.tok, "", 0, NULL, 0);
    EXPECT_IDS(l.tok, "ab</s>ab", YK_TOK_PARSE_SPECIAL, TV_SPM_SP_AB, 2, TV_SPM_SP_AB);
    EXPECT_IDS(l.tok, "<|end|>", YK_TOK_PARSE_SPECIAL, TV_SPM_END);
    EXPECT_IDS(l.tok, "<unk>", YK_TOK_PARSE_SPECIAL, 0);
    /* user-defined ones always, the longest first even when a shorter one starts earlier */
    EXPECT_IDS(l.tok, "<x>", 0, TV_SPM_X);
    EXPECT_IDS(l.tok, "<x><x><y>", 0, TV_SPM_X, TV_SPM_XXY);
    EXPECT_IDS(l.tok, "<x><x>", 0, TV_SPM_X, TV_SPM_X);
    /* control tokens do not come from plain text, not even by merging, nor do byte tokens */
    size_t n;
    int32_t *ids = encode(l.tok, "</s><0x41>", strlen("</s><0x41>"), 0, &n);
    for (size_t i = 0; i < n; i++)
        assert_true(ids[i] > 2 && ids[i] != 3 + 0x41);
    free(ids);
    /* higher score first, then the left pair */
    EXPECT_IDS(l.tok, "x  ba", 0, TV_SPM_SP, TV_BYTE('x'), TV_SPM_SP, TV_SPM_SP, TV_SPM_B, TV_SPM_A);
    EXPECT_IDS(l.tok, "aaa", 0, TV_SPM_SP, TV_SPM_AA, TV_SPM_A);
    /* bytes for what has no token; U+2581 itself is no space */
    EXPECT_IDS(l.tok, "\xe2\x96\x81", 0, TV_SPM_SP, TV_BYTE(0xe2), TV_BYTE(0x96), TV_BYTE(0x81));
    ROUND_TRIP(l.tok, "\xe2\x96\x81 <x> ab\xff\xe2\x96", false);
    ROUND_TRIP(l.tok, "<x>ab<x> ab <x>  ab ", true);
    tv_close(&f, &l.gguf, &l.tok);
    assert_int_equal(yk_mem_live(YK_MEM_RUNTIME), 0);
}

static void test_special_bpe(void **state)
{
    (void)state;
    tv_file f;
    tv_bpe(&f, "qwen2");
    loaded l = {0};
    tv_open(&f, &l.gguf, &l.tok);
    const yk_tokenizer_special s = yk_tokenizer_get_special(l.tok);
    assert_int_equal(s.bos, -1);
    assert_int_equal(s.eos, TV_BPE_EOS);
    assert_int_equal(s.eot, TV_BPE_EOS);
    assert_false(s.add_bos || s.add_eos);
    EXPECT_IDS(l.tok, "the", YK_TOK_SPECIAL, TV_BPE_THE);
    EXPECT_IDS(l.tok, "the<|im_end|>the", YK_TOK_PARSE_SPECIAL, TV_BPE_THE, TV_BPE_EOS, TV_BPE_THE);
    size_t n;
    int32_t *ids = encode(l.tok, "<|im_end|>", 10, 0, &n);
    assert_int_equal(n, 10);
    free(ids);
    EXPECT_IDS(l.tok, " the", 0, TV_BPE_SP_THE);
    EXPECT_IDS(l.tok, "\xc3(", 0, 0xc3, '(');
    EXPECT_IDS(l.tok, "the\xff\xfethe", 0, TV_BPE_THE, 0xff, 0xfe, TV_BPE_THE);
    assert_false(yk_tokenizer_drops_space(l.tok));
    tv_close(&f, &l.gguf, &l.tok);
    /* llama-bpe: BOS by default when there is one, whole words before merges */
    tv_bpe(&f, "llama-bpe");
    gb_u32(&f.g, "tokenizer.ggml.bos_token_id", TV_BPE_EOS);
    tv_open(&f, &l.gguf, &l.tok);
    EXPECT_IDS(l.tok, "hteh", YK_TOK_SPECIAL, TV_BPE_EOS, TV_BPE_HTEH);
    tv_close(&f, &l.gguf, &l.tok);
    tv_bpe(&f, "llama-bpe");
    gb_u32(&f.g, "tokenizer.ggml.bos_token_id", TV_BPE_EOS);
    gb_bool(&f.g, "tokenizer.ggml.add_bos_token", false);
    gb_bool(&f.g, "tokenizer.ggml.add_eos_token", true);
    tv_open(&f, &l.gguf, &l.tok);
    EXPECT_IDS(l.tok, "the", YK_TOK_SPECIAL, TV_BPE_THE, TV_BPE_EOS);
    tv_close(&f, &l.gguf, &l.tok);
    /* without the rule, merges decide */
    tv_bpe(&f, "gpt-2");
    tv_open(&f, &l.gguf, &l.tok);
    EXPECT_IDS(l.tok, "hteh", 0, 'h', 't', TV_BPE_EH);
    tv_close(&f, &l.gguf, &l.tok);
    assert_int_equal(yk_mem_live(YK_MEM_RUNTIME), 0);
}

static void test_phi3_rstrip(void **state)
{
    NEED_FIXTURES();
    loaded l = load_vocab("phi-3");
    EXPECT_IDS(l.tok, "<|user|>\n Hello<|end|>\n<|assistant|>\n", YK_TOK_PARSE_SPECIAL, 32010, 15043, 32007, 32001);
    EXPECT_IDS(l.tok, "<|endoftext|> Hello", YK_TOK_PARSE_SPECIAL, 32000, 29871, 15043);
    assert_true(yk_tokenizer_is_end(l.tok, 32007) && yk_tokenizer_is_end(l.tok, 32000));
    unload(&l);
}

/* ---- token texts ---------------------------------------------------------------------------------------------------- */

static void test_texts(void **state)
{
    (void)state;
    tv_file f;
    loaded l = {0};
    tv_spm(&f);
    tv_open(&f, &l.gguf, &l.tok);
    yk_model model = {.tok = l.tok};
    char buf[8] = "zzzzzzz";
    size_t n = 99;
    assert_int_equal(yk_token_text(&model, 2, false, buf, sizeof buf, &n), YK_OK);
    assert_int_equal(n, 0);
    assert_string_equal(buf, "");
    assert_int_equal(yk_token_text(&model, 2, true, buf, sizeof buf, &n), YK_OK);
    assert_string_equal(buf, "</s>");
    assert_int_equal(yk_token_text(&model, 2, true, buf, 3, &n), YK_OK);
    assert_string_equal(buf, "</");
    assert_int_equal(n, 4);
    assert_int_equal(yk_token_text(&model, 2, true, NULL, 0, NULL), YK_OK);
    assert_int_equal(yk_token_text(&model, TV_SPM_SP_AB, false, buf, sizeof buf, &n), YK_OK);
    assert_string_equal(buf, " ab");
    assert_int_equal(yk_token_text(&model, TV_BYTE(0), false, buf, sizeof buf, &n), YK_OK);
    assert_int_equal(n, 1);
    assert_int_equal(yk_token_text(&model, -1, false, buf, sizeof buf, &n), YK_ERR_USAGE);
    assert_int_equal(yk_token_text(&model, (int32_t)yk_tokenizer_size(l.tok), false, buf, sizeof buf, &n), YK_ERR_USAGE);
    yk_error err = {0};
    assert_int_equal(yk_tokenize(&model, "a", 1, 4, NULL, 0, &n, &err), YK_ERR_USAGE);
    assert_int_equal(yk_tokenize(&model, NULL, 1, 0, NULL, 0, &n, &err), YK_ERR_USAGE);
    assert_int_equal(yk_tokenize(&model, NULL, 0, 0, NULL, 0, &n, &err), YK_OK);

    yk_detok *d = NULL;
    const char *p;
    assert_int_equal(yk_detok_open(&d, &model, false, &err), YK_OK);
    assert_int_equal(yk_detok_push(d, TV_SPM_SP_AB, &p, &n), YK_OK); /* not at the start: the space stays */
    assert_int_equal(n, 3);
    assert_int_equal(yk_detok_push(d, TV_BYTE(0xe2), &p, &n), YK_OK);
    assert_int_equal(n, 0);
    assert_int_equal(yk_detok_push(d, -1, &p, &n), YK_ERR_USAGE); /* nothing lost by it */
    assert_int_equal(yk_detok_push(d, TV_BYTE(0x82), &p, &n), YK_OK);
    assert_int_equal(n, 0);
    assert_int_equal(yk_detok_push(d, TV_BYTE(0xac), &p, &n), YK_OK);
    assert_int_equal(n, 3);
    assert_memory_equal(p, "\xe2\x82\xac", 3);
    /* a byte that cannot continue lets go of what was held */
    assert_int_equal(yk_detok_push(d, TV_BYTE(0xf0), &p, &n), YK_OK);
    assert_int_equal(n, 0);
    assert_int_equal(yk_detok_push(d, TV_SPM_A, &p, &n), YK_OK);
    assert_int_equal(n, 2);
    assert_memory_equal(p,
                        "\xf0"
                        "a",
                        2);
    assert_int_equal(yk_detok_push(d, TV_BYTE(0xc3), &p, &n), YK_OK);
    yk_detok_flush(d, &p, &n);
    assert_int_equal(n, 1);
    assert_int_equal((uint8_t)*p, 0xc3);
    yk_detok_flush(d, &p, &n);
    assert_int_equal(n, 0);
    assert_int_equal(yk_detok_push(d, TV_SPM_SP_AB, &p, &n), YK_OK); /* a fresh text now */
    assert_int_equal(n, 2);
    yk_detok_close(&d);
    yk_detok_close(&d);
    tv_close(&f, &l.gguf, &l.tok);
}

/* ---- round trips ---------------------------------------------------------------------------------------------------- */

static uint64_t rng_state = 0x243f6a8885a308d3u;

static uint32_t rng(uint32_t below)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((rng_state >> 33) % below);
}

/* Random bytes, or random mixtures of words, spaces, broken and whole characters. */
static size_t random_text(char *buf, size_t cap, bool bytes)
{
    static const char *const parts[] = {" ",
                                        "  ",
                                        "\n",
                                        "the",
                                        " a",
                                        "ing",
                                        "\t",
                                        "\r\n",
                                        "'s",
                                        "12345",
                                        "\xe2\x82\xac",
                                        "\xf0\x9f\x9a\x80",
                                        "\xc3\xa9",
                                        "\xe2\x96\x81",
                                        "\xff",
                                        "\xe2\x82",
                                        "\xed\xa0\x80",
                                        ".",
                                        "</s>",
                                        "<|endoftext|>",
                                        "<0x0A>",
                                        "\xe4\xbd\xa0\xe5\xa5\xbd"};
    const size_t n = rng((uint32_t)cap);
    size_t at = 0;
    while (at < n) {
        const char *p = parts[rng(sizeof parts / sizeof parts[0])];
        const size_t len = strlen(p);
        if (bytes || at + len > n)
            buf[at++] = (char)rng(256);
        else
            memcpy(buf + at, p, len), at += len;
    }
    return n;
}

static void test_round_trip(void **state)
{
    NEED_FIXTURES();
    int trips = 0;
    for (int v = 0; v < N_VOCABS; v++) {
        loaded l = load_vocab(vocabs[v]);
        bool have[256]; /* some byte-level vocabularies lack bytes */
        int lacking = 0;
        for (int b = 0; b < 256; b++) {
            have[b] = l.tok->byte_id[b] >= 0;
            lacking += !have[b];
        }
        if (lacking)
            print_message("%s: %d bytes without a token left out of its texts\n", vocabs[v], lacking);
        assert_true(lacking <= 28);
        for (int i = 0; i < 400; i++, trips++) {
            char text[400];
            size_t n = random_text(text, sizeof text, i & 1);
            for (size_t k = 0; k < n; k++)
                if (!have[(uint8_t)text[k]])
                    text[k] = 'b';
            check_round_trip(l.tok, text, n, false);
        }
        unload(&l);
    }
    assert_int_equal(trips, 400 * N_VOCABS);
}

/* ---- the merging loop against a slow one ---------------------------------------------------------------------------- */

/* All pairs are looked at before each merge; the best, leftmost on ties, is taken. */
static size_t slow_merge(const yk_tokenizer *tok, const char *text, yk_tok_sym *s, size_t n, yk_tok_pair_fn pair)
{
    for (;;) {
        size_t best = n;
        uint32_t best_prio = YK_TOK_NO_PAIR;
        int32_t best_id = -1, id;
        for (size_t i = 0; i + 1 < n; i++) {
            const uint32_t prio = pair(tok, text, &s[i], &s[i + 1], &id);
            if (prio < best_prio) {
                best = i;
                best_prio = prio;
                best_id = id;
            }
        }
        if (best == n)
            return n;
        s[best].len += s[best + 1].len;
        s[best].id = best_id;
        memmove(&s[best + 1], &s[best + 2], (n - best - 2) * sizeof *s);
        n--;
    }
}

/* A grammar without a vocabulary: pairs of ids below 40 merge by a fixed random table. */
static uint32_t table_prio[40][40];

static uint32_t table_pair(const yk_tokenizer *tok, const char *text, const yk_tok_sym *left, const yk_tok_sym *right,
                           int32_t *id)
{
    (void)tok;
    (void)text;
    if (left->id >= 40 || right->id >= 40)
        return YK_TOK_NO_PAIR;
    *id = (int32_t)((left->id * 7 + right->id * 13 + 5) % 44);
    return table_prio[left->id][right->id];
}

static void test_merge_order(void **state)
{
    (void)state;
    yk_tok_work work = {0};
    yk_error err = {0};
    static yk_tok_sym slow[600];
    size_t merges = 0;
    for (int round = 0; round < 300; round++) {
        /* orders with many ties, and pairs that do not merge */
        for (int i = 0; i < 40; i++)
            for (int k = 0; k < 40; k++)
                table_prio[i][k] = rng(10) < 4 ? YK_TOK_NO_PAIR : rng(round % 3 ? 1000000 : 5);
        const size_t n = 1 + rng(round < 290 ? 60 : 600);
        assert_int_equal(yk_tok_work_reserve(&work, n, &err), YK_OK);
        for (size_t i = 0; i < n; i++)
            slow[i] = work.syms[i] = (yk_tok_sym){.off = (uint32_t)i, .len = 1, .id = (int32_t)rng(40)};
        work.n = n;
        yk_tok_merge_all(&work, NULL, NULL, table_pair);
        const size_t left = slow_merge(NULL, NULL, slow, n, table_pair);
        size_t k = 0;
        for (int32_t i = 0; i >= 0; i = work.syms[i].next, k++) {
            assert_true(k < left);
            assert_int_equal(work.syms[i].id, slow[k].id);
            assert_int_equal(work.syms[i].off, slow[k].off);
            assert_int_equal(work.syms[i].len, slow[k].len);
        }
        assert_int_equal(k, left);
        merges += n - left;
    }
    yk_tok_work_free(&work);
    assert_true(merges > 2000);
}

/* ---- long inputs and threads ---------------------------------------------------------------------------------------- */

static void test_long(void **state)
{
    NEED_FIXTURES();
    enum { N = 300000 };
    static const char *const names[] = {"llama-spm", "qwen2", "deepseek-llm", "falcon"};
    char *text = malloc(N);
    for (int v = 0; v < 4; v++) {
        loaded l = load_vocab(names[v]);
        for (int kind = 0; kind < 5; kind++) {
            for (size_t i = 0; i < N; i++)
                text[i] = kind == 0   ? 'a'
                          : kind == 1 ? ' '
                          : kind == 2 ? '<'
                          : kind == 3 ? (char)(0x80 + rng(16))
                                      : " \n"[rng(2)];
            text[N - 1] = 'x';
            size_t n;
            free(encode(l.tok, text, N, YK_TOK_PARSE_SPECIAL, &n));
            assert_true(n > 1000);
        }
        unload(&l);
    }
    free(text);
}

typedef struct thread_job {
    const yk_tokenizer *tok;
    const char *text;
    size_t n, n_ids;
    uint64_t sum;
    yk_status status;
} thread_job;

static void *encode_again(void *arg)
{
    thread_job *j = arg;
    int32_t *ids = calloc(j->n + 2, sizeof *ids);
    j->status = YK_OK;
    for (int round = 0; round < 5 && j->status == YK_OK; round++) {
        j->status = yk_tokenizer_encode(j->tok, j->text, j->n, YK_TOK_PARSE_SPECIAL, ids, j->n + 2, &j->n_ids, NULL);
        j->sum = 0;
        for (size_t i = 0; i < j->n_ids; i++)
            j->sum = j->sum * 31 + (uint64_t)ids[i];
    }
    free(ids);
    return NULL;
}

static void test_threads(void **state)
{
    NEED_FIXTURES();
    size_t n;
    char *story = read_text(fixtures, "yoke-tiny-mixtral/heldout_story.txt", &n);
    for (int v = 0; v < 2; v++) {
        loaded l = load_vocab(v ? "deepseek-llm" : "llama-spm");
        thread_job jobs[4];
        pthread_t threads[4];
        for (int i = 0; i < 4; i++) {
            jobs[i] = (thread_job){.tok = l.tok, .text = story, .n = n};
            assert_int_equal(pthread_create(&threads[i], NULL, encode_again, &jobs[i]), 0);
        }
        for (int i = 0; i < 4; i++) {
            pthread_join(threads[i], NULL);
            assert_int_equal(jobs[i].status, YK_OK);
            assert_int_equal(jobs[i].n_ids, jobs[0].n_ids);
            assert_true(jobs[i].sum == jobs[0].sum);
        }
        unload(&l);
    }
    yk_free(story);
}

/* ---- refusals ------------------------------------------------------------------------------------------------------- */

static void expect_refused(tv_file *f, const char *word)
{
    yk_gguf g;
    yk_tokenizer *tok = NULL;
    yk_error err = {0};
    tv_image(f);
    if (yk_gguf_open_memory(&g, f->image.p, f->image.n, true, &err) != YK_OK)
        fail_msg("%s", err.text);
    const uint64_t live = yk_mem_live(YK_MEM_RUNTIME);
    assert_int_equal(yk_tokenizer_open(&tok, &g, &err), YK_ERR_INPUT);
    assert_null(tok);
    assert_int_equal(yk_mem_live(YK_MEM_RUNTIME), live);
    if (!strstr(err.text, word))
        fail_msg("\"%s\" does not name \"%s\"", err.text, word);
    yk_gguf_close(&g);
    tv_free(f);
}

static void test_refusals(void **state)
{
    (void)state;
    tv_file f;
    const float two[2] = {0, 0};
    const float nan3[3] = {0, __builtin_nanf(""), 0};
    const int32_t types[2] = {1, 1};
    tv_empty(&f, "llama"), expect_refused(&f, "tokenizer.ggml.tokens");
    tv_empty(&f, NULL), expect_refused(&f, "tokenizer.ggml.model");
    tv_empty(&f, "wordle"), expect_refused(&f, "wordle");
    tv_empty(&f, "llama"), tv_strs(&f, "tokenizer.ggml.tokens", NULL, 0), expect_refused(&f, "tokenizer.ggml.tokens");
    tv_empty(&f, "llama"), gb_u32(&f.g, "tokenizer.ggml.tokens", 1), expect_refused(&f, "tokenizer.ggml.tokens");
    static const char *const abc[] = {"a", "b", "c"};
    tv_empty(&f, "llama"), tv_strs(&f, "tokenizer.ggml.tokens", abc, 3), expect_refused(&f, "tokenizer.ggml.scores");
    tv_empty(&f, "llama"), tv_strs(&f, "tokenizer.ggml.tokens", abc, 3);
    gb_arr(&f.g, "tokenizer.ggml.scores", YK_GGUF_F32, two, 2, sizeof two), expect_refused(&f, "tokenizer.ggml.scores");
    tv_empty(&f, "llama"), tv_strs(&f, "tokenizer.ggml.tokens", abc, 3);
    gb_arr(&f.g, "tokenizer.ggml.scores", YK_GGUF_F32, nan3, 3, sizeof nan3), expect_refused(&f, "tokenizer.ggml.scores");
    tv_spm(&f), gb_arr(&f.g, "tokenizer.ggml.x", YK_GGUF_I32, types, 2, sizeof types);
    gb_u32(&f.g, "tokenizer.ggml.padding_token_id", 100000), expect_refused(&f, "tokenizer.ggml.padding_token_id");
    tv_spm(&f), gb_u32(&f.g, "tokenizer.ggml.eot_token_id", UINT32_MAX), expect_refused(&f, "tokenizer.ggml.eot_token_id");
    tv_spm(&f), gb_str(&f.g, "tokenizer.ggml.add_bos_token", "yes"), expect_refused(&f, "tokenizer.ggml.add_bos_token");
    tv_empty(&f, "gpt2"), tv_strs(&f, "tokenizer.ggml.tokens", abc, 3), expect_refused(&f, "tokenizer.ggml.merges");
    tv_empty(&f, "gpt2"), tv_strs(&f, "tokenizer.ggml.tokens", abc, 3);
    gb_arr(&f.g, "tokenizer.ggml.token_type", YK_GGUF_I32, types, 2, sizeof types),
        expect_refused(&f, "tokenizer.ggml.token_type");
    tv_bpe(&f, "nonsense"), expect_refused(&f, "nonsense");
    tv_bpe(&f, "qwen2 "), expect_refused(&f, "tokenizer.ggml.pre");
    static const char *const bad_merges[] = {"ab", "a ", " a", "", " ", "a q", "q a", "b a", "a \xe2\x82\xac"};
    static const char *const tokens[] = {"a", "b", "ab", "c"};
    for (size_t i = 0; i < sizeof bad_merges / sizeof bad_merges[0]; i++) {
        tv_empty(&f, "gpt2"), tv_strs(&f, "tokenizer.ggml.tokens", tokens, 4);
        tv_strs(&f, "tokenizer.ggml.merges", &bad_merges[i], 1), expect_refused(&f, "tokenizer.ggml.merges");
    }
    assert_int_equal(yk_mem_live(YK_MEM_RUNTIME), 0);
}

static void test_bad_files(void **state)
{
    NEED_FIXTURES();
    size_t n;
    char *tsv = read_text(fixtures, "bad/expected.tsv", &n);
    int refused = 0;
    for (char *line = strtok(tsv, "\n"); line; line = strtok(NULL, "\n")) {
        char *what = strchr(line, '\t'), *words = what ? strchr(what + 1, '\t') : NULL;
        if (!words || !strstr(words, "tokenizer.") || strncmp(line, "tokens-short", 12) == 0) /* that one is the loader's */
            continue;
        *what = '\0';
        char path[4096];
        yk_gguf g;
        yk_tokenizer *tok = NULL;
        yk_error err = {0};
        snprintf(path, sizeof path, "%s/bad/%s", fixtures, line);
        yk_status st = yk_gguf_open(&g, path, true, &err);
        if (st == YK_OK) {
            st = yk_tokenizer_open(&tok, &g, &err);
            yk_gguf_close(&g);
        }
        assert_int_equal(st, YK_ERR_INPUT);
        bool named = false;
        char *save = NULL;
        for (char *w = strtok_r(words + 1, ",", &save); w; w = strtok_r(NULL, ",", &save))
            named |= strstr(err.text, w) != NULL;
        if (!named)
            fail_msg("%s: \"%s\" names nothing of what is wrong", line, err.text);
        refused++;
    }
    print_message("%d files refused\n", refused);
    assert_int_equal(refused, 12);
    yk_free(tsv);
}

#ifdef YK_FAULT_INJECTION
/* One failing allocation: success all the same or YK_ERR_MEMORY, and nothing left behind. Runs in a child, as the count starts
 * at its first allocation. */
static int fault_child(const char *pre)
{
    tv_file f;
    yk_gguf g;
    yk_tokenizer *tok = NULL;
    yk_error err = {0};
    if (*pre)
        tv_bpe(&f, pre);
    else
        tv_spm(&f);
    tv_image(&f);
    static const char text[] = "the <x>ab 12\xff</s><|im_end|>";
    size_t n;
    yk_detok *d = NULL;
    yk_status st = yk_gguf_open_memory(&g, f.image.p, f.image.n, true, &err);
    if (st == YK_OK) {
        st = yk_tokenizer_open(&tok, &g, &err);
        if (st == YK_OK)
            st = yk_tokenizer_encode(tok, text, sizeof text - 1, 3, NULL, 0, &n, &err);
        yk_model model = {.tok = tok};
        if (st == YK_OK)
            st = yk_detok_open(&d, &model, true, &err);
        yk_detok_close(&d);
        yk_tokenizer_close(&tok);
        yk_gguf_close(&g);
    }
    tv_free(&f);
    if (yk_mem_live(YK_MEM_RUNTIME) != 0)
        return 3;
    return st == YK_OK ? 0 : st == YK_ERR_MEMORY ? 1 : 2;
}

static void test_faults(void **state)
{
    (void)state;
    static const char *const kinds[] = {"", "qwen2", "deepseek-llm"};
    for (int i = 0; i < 3; i++) {
        int failures = 0, row = 0;
        for (int k = 1; row < 40; k++) {
            char env[32];
            snprintf(env, sizeof env, "%d", k);
            const pid_t pid = fork();
            if (pid == 0) {
                setenv("YOKE_FAIL_ALLOC", env, 1);
                execl("/proc/self/exe", "test_tokenizer", "--fault", kinds[i], (char *)NULL);
                _exit(9);
            }
            int status = 0;
            waitpid(pid, &status, 0);
            if (!WIFEXITED(status) || WEXITSTATUS(status) > 1)
                fail_msg("'%s', allocation %d: status %d", kinds[i], k, status);
            failures += WEXITSTATUS(status) == 1;
            /* some allocations can be done without (JIT code); a row of successes is the end */
            row = WEXITSTATUS(status) == 0 ? row + 1 : 0;
        }
        print_message("'%s': %d failing allocations\n", kinds[i], failures);
        assert_true(failures > 10);
    }
}
#endif

int main(int argc, char **argv)
{
#ifdef YK_FAULT_INJECTION
    if (argc == 3 && strcmp(argv[1], "--fault") == 0)
        return fault_child(argv[2]);
#endif
    (void)argc;
    (void)argv;
    fixtures = getenv("YOKE_FIXTURES");
    if (fixtures && access(fixtures, R_OK) != 0)
        fixtures = NULL;
    source = getenv("YOKE_SOURCE");
    if (!source)
        source = ".";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_special_spm), cmocka_unit_test(test_special_bpe), cmocka_unit_test(test_texts),
        cmocka_unit_test(test_merge_order), cmocka_unit_test(test_splits),      cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_vectors),     cmocka_unit_test(test_prompts),     cmocka_unit_test(test_phi3_rstrip),
        cmocka_unit_test(test_round_trip),  cmocka_unit_test(test_long),        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_bad_files),
#ifdef YK_FAULT_INJECTION
        cmocka_unit_test(test_faults),
#endif
    };
    const int failed = cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
    if (failed)
        return 1;
    if (!fixtures) {
        printf("skipped: no fixtures at YOKE_FIXTURES; only the tests with built-in vocabularies ran\n");
        return 77;
    }
    return 0;
}
