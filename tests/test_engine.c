/* The engine through the public API, on the model in models/: results do not depend on threads, on how a prompt is cut into batches, or on what other
 * sequences do; forks, truncation, cancelling and wrong arguments. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "yoke/yoke.h"

/* ThreadSanitizer makes every hand-over between workers slow. */
#if defined(__SANITIZE_THREAD__)
enum { SLOW = 1 };
#else
enum { SLOW = 0 };
#endif
enum { N_PROMPT = 150, N_SEQS = 6 };

static yk_model *model;
static yk_model_info info;
static int32_t prompt[N_SEQS][N_PROMPT];
static float *reference; /* logits after prompt[0], one thread, one batch */

static void open_engine(yk_engine **e, uint32_t threads, uint32_t batch, uint32_t seqs)
{
    yk_engine_opts o;
    yk_error err = {0};
    yk_engine_opts_init(&o);
    o.threads = threads;
    o.batch = batch;
    o.max_seqs = seqs;
    o.context = 400;
    if (yk_engine_open(e, model, &o, &err) != YK_OK)
        fail_msg("%s", err.text);
}

static void feed(yk_engine *e, yk_seq *seq, const int32_t *tokens, uint32_t n)
{
    yk_error err = {0};
    const yk_batch_entry b = {seq, tokens, n, YK_LOGITS_LAST};
    if (yk_decode(e, &b, 1, &err) != YK_OK)
        fail_msg("%s", err.text);
}

static yk_seq *new_seq(yk_engine *e)
{
    yk_seq *s;
    yk_error err = {0};
    if (yk_seq_open(&s, e, &err) != YK_OK)
        fail_msg("%s", err.text);
    return s;
}

static void assert_same(const float *a, const float *b)
{
    assert_non_null(a);
    assert_non_null(b);
    assert_memory_equal(a, b, info.n_vocab * sizeof *a);
}

static int group_setup(void **state)
{
    (void)state;
    char path[4096];
    yk_error err = {0};
    const char *root = getenv("YOKE_SOURCE");
    snprintf(path, sizeof path, "%s/models/yoke-tiny-mixtral-q4_k_m.gguf", root ? root : ".");
    if (yk_model_open(&model, path, NULL, &err) != YK_OK) {
        print_error("%s\n", err.text);
        return -1;
    }
    yk_model_get_info(model, &info);
    uint32_t z = 12345;
    for (int s = 0; s < N_SEQS; s++)
        for (int i = 0; i < N_PROMPT; i++) {
            z = z * 1664525u + 1013904223u;
            prompt[s][i] = i ? (int32_t)(260 + (z >> 8) % (info.n_vocab - 260)) : info.bos;
        }
    yk_engine *e;
    open_engine(&e, 1, 512, 1);
    yk_seq *seq = new_seq(e);
    feed(e, seq, prompt[0], N_PROMPT);
    reference = malloc(info.n_vocab * sizeof *reference);
    memcpy(reference, yk_logits(e, 0, 0), info.n_vocab * sizeof *reference);
    yk_seq_close(&seq);
    yk_engine_close(&e);
    for (uint32_t i = 0; i < info.n_vocab; i++)
        if (!isfinite(reference[i]))
            return -1;
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    free(reference);
    yk_model_close(&model);
    return 0;
}

static void test_threads(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 3; n++) {
        yk_engine *e;
        open_engine(&e, n, 512, 1);
        yk_seq *seq = new_seq(e);
        feed(e, seq, prompt[0], N_PROMPT);
        assert_same(yk_logits(e, 0, 0), reference);
        yk_seq_close(&seq);
        yk_engine_close(&e);
    }
}

/* Beyond 512 positions attention is summed in parts: one worker does them all, or, where heads are few, several do. Logits of a prompt, then of tokens one by
 * one, alone and beside a short sequence. */
enum { N_DEEP = 1200, N_AFTER = 3, N_SHORT = 5 };

static void deep_logits(uint32_t threads, uint32_t batch, bool beside, float *out)
{
    yk_engine_opts o;
    yk_engine *e;
    yk_error err = {0};
    int32_t tokens[N_DEEP + N_AFTER];
    for (int i = 0; i < N_DEEP + N_AFTER; i++)
        tokens[i] = prompt[i / N_PROMPT % N_SEQS][i % N_PROMPT];
    yk_engine_opts_init(&o);
    o.threads = threads;
    o.batch = batch;
    o.max_seqs = 2;
    o.context = 1300;
    if (yk_engine_open(&e, model, &o, &err) != YK_OK)
        fail_msg("%s", err.text);
    yk_seq *seq = new_seq(e), *other = new_seq(e);
    feed(e, other, prompt[1], N_SHORT);
    feed(e, seq, tokens, N_DEEP);
    for (int i = 0; i <= N_AFTER; i++) {
        memcpy(out + (size_t)i * info.n_vocab, yk_logits(e, 0, 0), info.n_vocab * sizeof *out);
        const yk_batch_entry b[2] = {{seq, tokens + N_DEEP + i, 1, YK_LOGITS_LAST}, {other, prompt[1] + N_SHORT + i, 1, 0}};
        if (i < N_AFTER && yk_decode(e, b, beside ? 2 : 1, &err) != YK_OK)
            fail_msg("%s", err.text);
    }
    yk_seq_close(&seq);
    yk_seq_close(&other);
    yk_engine_close(&e);
}

static void test_depth(void **state)
{
    (void)state;
    const size_t bytes = (N_AFTER + 1) * (size_t)info.n_vocab * sizeof(float);
    float *want = malloc(bytes), *got = malloc(bytes);
    assert_non_null(want);
    assert_non_null(got);
    deep_logits(1, 512, false, want);
    for (size_t i = 0; i < bytes / sizeof *want; i++)
        assert_true(isfinite(want[i]));
    static const uint32_t batches[] = {512, 100, 5};
    for (uint32_t threads = 1; threads <= 3; threads++)
        for (int beside = 0; beside < 2; beside++) {
            deep_logits(threads, batches[threads - 1], beside, got);
            assert_memory_equal(got, want, bytes);
        }
    free(want);
    free(got);
}

/* Prompt cut by the engine (option batch) and by the caller. */
static void test_batches(void **state)
{
    (void)state;
    const uint32_t sizes[] = {1, 7, 64, 512};
    for (size_t i = SLOW; i < sizeof sizes / sizeof *sizes; i++) {
        yk_engine *e;
        open_engine(&e, 2, sizes[i], 1);
        yk_seq *seq = new_seq(e);
        feed(e, seq, prompt[0], N_PROMPT);
        assert_same(yk_logits(e, 0, 0), reference);
        assert_int_equal(yk_seq_truncate(seq, 0, NULL), YK_OK);
        for (uint32_t at = 0; at < N_PROMPT; at += sizes[i])
            feed(e, seq, prompt[0] + at, N_PROMPT - at < sizes[i] ? N_PROMPT - at : sizes[i]);
        assert_same(yk_logits(e, 0, 0), reference);
        assert_int_equal(yk_seq_length(seq), N_PROMPT);
        yk_seq_close(&seq);
        yk_engine_close(&e);
    }
}

/* Sequence 0 among five others of other lengths, prompt chunks and single tokens mixed, small steps. */
static void test_among_others(void **state)
{
    (void)state;
    const uint32_t steps[] = {40, 512};
    for (size_t k = SLOW; k < 2; k++) {
        yk_engine *e;
        yk_seq *seqs[N_SEQS];
        uint32_t at[N_SEQS] = {0}, round = 0;
        yk_error err = {0};
        open_engine(&e, 2, steps[k], N_SEQS);
        for (int s = 0; s < N_SEQS; s++)
            seqs[s] = new_seq(e);
        while (at[0] < N_PROMPT) {
            yk_batch_entry b[N_SEQS];
            uint32_t n = 0, mine = 0;
            for (uint32_t s = N_SEQS; s-- > 0;) {
                uint32_t want = 1 + (round * 7 + s * 13) % 29;
                want = s % 2 ? 1 : want;
                want = want < N_PROMPT - at[s] ? want : N_PROMPT - at[s];
                if (!want)
                    continue;
                mine = s ? mine : n;
                b[n++] = (yk_batch_entry){seqs[s], prompt[s] + at[s], want, s % 3 == 2 ? YK_LOGITS_NONE : YK_LOGITS_LAST};
                at[s] += want;
            }
            if (yk_decode(e, b, n, &err) != YK_OK)
                fail_msg("%s", err.text);
            round++;
            if (at[0] == N_PROMPT)
                assert_same(yk_logits(e, mine, 0), reference);
        }
        for (int s = 0; s < N_SEQS; s++)
            yk_seq_close(&seqs[s]);
        yk_engine_close(&e);
    }
}

static void test_all_logits(void **state)
{
    (void)state;
    yk_engine_opts o;
    yk_engine *e;
    yk_error err = {0};
    yk_engine_opts_init(&o);
    o.context = 400;
    o.batch = 33;
    o.logits_rows = N_PROMPT;
    assert_int_equal(yk_engine_open(&e, model, &o, &err), YK_OK);
    yk_seq *seq = new_seq(e);
    const yk_batch_entry b = {seq, prompt[0], N_PROMPT, YK_LOGITS_ALL};
    assert_int_equal(yk_decode(e, &b, 1, &err), YK_OK);
    assert_same(yk_logits(e, 0, N_PROMPT - 1), reference);
    assert_null(yk_logits(e, 0, N_PROMPT));
    assert_null(yk_logits(e, 1, 0));
    float *row = malloc(info.n_vocab * sizeof *row);
    memcpy(row, yk_logits(e, 0, 40), info.n_vocab * sizeof *row);
    assert_int_equal(yk_seq_truncate(seq, 0, &err), YK_OK);
    feed(e, seq, prompt[0], 41);
    assert_same(yk_logits(e, 0, 0), row);
    free(row);
    yk_seq_close(&seq);
    yk_engine_close(&e);
}

/* A fork shares blocks; both sides go on differently, each as if alone. 41 and 48: inside and at the end of a block. */
static void test_fork(void **state)
{
    (void)state;
    const uint32_t cuts[] = {41, 48, 1};
    for (size_t k = 0; k < 3; k++) {
        const uint32_t cut = cuts[k];
        yk_engine *e;
        yk_error err = {0};
        open_engine(&e, 2, 512, 3);
        yk_seq *a = new_seq(e), *b, *alone = new_seq(e);
        int32_t other[N_PROMPT];
        memcpy(other, prompt[0], cut * sizeof *other);
        memcpy(other + cut, prompt[1] + cut, (N_PROMPT - cut) * sizeof *other);
        feed(e, alone, other, N_PROMPT);
        float *want = malloc(info.n_vocab * sizeof *want);
        memcpy(want, yk_logits(e, 0, 0), info.n_vocab * sizeof *want);

        feed(e, a, prompt[0], cut);
        assert_int_equal(yk_seq_fork(&b, a, &err), YK_OK);
        assert_int_equal(yk_seq_length(b), cut);
        feed(e, b, other + cut, 1);
        feed(e, a, prompt[0] + cut, N_PROMPT - cut);
        assert_same(yk_logits(e, 0, 0), reference);
        feed(e, b, other + cut + 1, N_PROMPT - cut - 1);
        assert_same(yk_logits(e, 0, 0), want);
        /* The fork of a fork, cut back into the shared part. */
        yk_seq_close(&a);
        assert_int_equal(yk_seq_fork(&a, b, &err), YK_OK);
        assert_int_equal(yk_seq_truncate(a, cut, &err), YK_OK);
        feed(e, a, prompt[0] + cut, N_PROMPT - cut);
        assert_same(yk_logits(e, 0, 0), reference);
        free(want);
        yk_seq_close(&a);
        yk_seq_close(&b);
        yk_seq_close(&alone);
        yk_engine_close(&e);
    }
}

static void test_pool_full(void **state)
{
    (void)state;
    yk_engine_opts o;
    yk_engine *e;
    yk_error err = {0};
    yk_engine_opts_init(&o);
    o.context = 400;
    o.max_seqs = 2;
    o.kv_tokens = 160;
    assert_int_equal(yk_engine_open(&e, model, &o, &err), YK_OK);
    yk_seq *a = new_seq(e), *b = new_seq(e), *c;
    assert_int_equal(yk_seq_open(&c, e, &err), YK_ERR_USAGE);
    assert_null(c);
    feed(e, a, prompt[0], 70);
    const yk_batch_entry both[] = {{a, prompt[0] + 70, 20, YK_LOGITS_LAST}, {b, prompt[1], 70, YK_LOGITS_LAST}};
    assert_int_equal(yk_decode(e, both, 2, &err), YK_ERR_CONTEXT);
    assert_int_equal(yk_seq_length(a), 70);
    assert_int_equal(yk_seq_length(b), 0);
    assert_null(yk_logits(e, 0, 0));
    feed(e, a, prompt[0] + 70, N_PROMPT - 70); /* 150 tokens: all ten blocks */
    assert_same(yk_logits(e, 0, 0), reference);
    yk_seq_close(&a);
    feed(e, b, prompt[0], N_PROMPT);
    assert_same(yk_logits(e, 0, 0), reference);
    yk_seq_close(&b);
    yk_engine_close(&e);
}

static void test_wrong_arguments(void **state)
{
    (void)state;
    yk_engine *e, *other;
    yk_error err = {0};
    open_engine(&e, 1, 64, 2);
    open_engine(&other, 1, 64, 1);
    yk_seq *a = new_seq(e), *b = new_seq(e), *foreign = new_seq(other);
    const int32_t low = -1, high = (int32_t)info.n_vocab;
    int32_t many[401] = {0};
    const yk_batch_entry wrong[] = {
        {a, &low, 1, YK_LOGITS_LAST},     {a, &high, 1, YK_LOGITS_LAST},        {a, prompt[0], 0, YK_LOGITS_LAST},
        {a, NULL, 1, YK_LOGITS_LAST},     {NULL, prompt[0], 1, YK_LOGITS_LAST}, {foreign, prompt[0], 1, YK_LOGITS_LAST},
        {a, prompt[0], 3, YK_LOGITS_ALL}, {a, prompt[0], 1, (yk_logits_mode)7},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        err.text[0] = 0;
        assert_int_equal(yk_decode(e, &wrong[i], 1, &err), YK_ERR_USAGE);
        assert_true(err.text[0] != 0 && err.status == YK_ERR_USAGE);
    }
    const yk_batch_entry twice[] = {{a, prompt[0], 1, YK_LOGITS_LAST}, {a, prompt[0], 1, YK_LOGITS_LAST}};
    assert_int_equal(yk_decode(e, twice, 2, &err), YK_ERR_USAGE);
    const yk_batch_entry three[] = {twice[0], {b, prompt[0], 1, YK_LOGITS_LAST}, twice[0]};
    assert_int_equal(yk_decode(e, three, 3, &err), YK_ERR_USAGE);
    assert_int_equal(yk_decode(e, twice, 0, &err), YK_ERR_USAGE);
    const yk_batch_entry too_long = {a, many, 401, YK_LOGITS_LAST};
    assert_int_equal(yk_decode(e, &too_long, 1, &err), YK_ERR_CONTEXT);
    assert_int_equal(yk_seq_truncate(a, 1, &err), YK_ERR_USAGE);
    assert_int_equal(yk_seq_length(a), 0);
    yk_seq_close(&a);
    yk_seq_close(&b);
    yk_seq_close(&foreign);
    yk_engine_close(&e);
    yk_engine_close(&other);

    const struct {
        yk_engine_opts o;
        yk_status st;
    } opts[] = {
        {{.device = "cuda:7"}, YK_ERR_USAGE},       {{.isa = "sse9"}, YK_ERR_USAGE},
        {{.threads = 100000}, YK_ERR_USAGE},        {{.context = 1u << 30}, YK_ERR_USAGE},
        {{.batch = 1u << 30}, YK_ERR_USAGE},        {{.max_seqs = 1u << 30}, YK_ERR_USAGE},
        {{.kv_type = (yk_kv_type)5}, YK_ERR_USAGE}, {{.context = 1 << 24, .max_seqs = 4096}, YK_ERR_MEMORY},
    };
    for (size_t i = 0; i < sizeof opts / sizeof *opts; i++) {
        assert_int_equal(yk_engine_open(&e, model, &opts[i].o, &err), opts[i].st);
        assert_null(e);
        assert_true(err.text[0] != 0);
    }
}

typedef struct canceller {
    yk_engine *e;
    atomic_bool stop;
} canceller;

static void *cancel_often(void *arg)
{
    canceller *c = arg;
    while (!atomic_load(&c->stop)) {
        yk_engine_cancel(c->e);
        usleep(300);
    }
    return NULL;
}

/* Cancelled decodes change nothing: after any number of them the result is the reference. */
static void test_cancel(void **state)
{
    (void)state;
    canceller c = {0};
    yk_error err = {0};
    pthread_t t;
    open_engine(&c.e, 2, 16, 2);
    yk_seq *seq = new_seq(c.e);
    yk_engine_cancel(c.e);
    const yk_batch_entry one = {seq, prompt[0], 1, YK_LOGITS_LAST};
    assert_int_equal(yk_decode(c.e, &one, 1, &err), YK_ERR_CANCELLED);
    assert_int_equal(yk_seq_length(seq), 0);
    feed(c.e, seq, prompt[0], 30);
    yk_seq *keep;
    assert_int_equal(yk_seq_fork(&keep, seq, &err), YK_OK); /* so that block copies are undone as well */
    assert_int_equal(pthread_create(&t, NULL, cancel_often, &c), 0);
    int cancelled = 0;
    for (int i = 0; i < (SLOW ? 8 : 60); i++) {
        const yk_batch_entry rest = {seq, prompt[0] + 30, N_PROMPT - 30, YK_LOGITS_LAST};
        const yk_status st = yk_decode(c.e, &rest, 1, &err);
        assert_true(st == YK_OK || st == YK_ERR_CANCELLED);
        cancelled += st == YK_ERR_CANCELLED;
        assert_int_equal(yk_seq_length(seq), st == YK_OK ? N_PROMPT : 30);
        assert_int_equal(yk_seq_truncate(seq, 30, &err), YK_OK);
    }
    atomic_store(&c.stop, true);
    pthread_join(t, NULL);
    yk_engine_cancel_clear(c.e);
    assert_true(cancelled > 0);
    feed(c.e, seq, prompt[0] + 30, N_PROMPT - 30);
    assert_same(yk_logits(c.e, 0, 0), reference);
    feed(c.e, keep, prompt[0] + 30, N_PROMPT - 30);
    assert_same(yk_logits(c.e, 0, 0), reference);
    yk_seq_close(&seq);
    yk_seq_close(&keep);
    yk_engine_close(&c.e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads),      cmocka_unit_test(test_depth),      cmocka_unit_test(test_batches),
        cmocka_unit_test(test_among_others), cmocka_unit_test(test_all_logits), cmocka_unit_test(test_fork),
        cmocka_unit_test(test_pool_full),    cmocka_unit_test(test_cancel),     cmocka_unit_test(test_wrong_arguments),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
