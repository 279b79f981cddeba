/* Checker, random plans, solver and explanation. Seeds are fixed; a failure prints the case. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "partition_util.h"

static uint64_t sum_of(const uint64_t *m)
{
    uint64_t sum = 0;
    for (int c = 0; c < YK_MEM_N_CLASSES; c++)
        sum += m[c];
    return sum;
}

/* A copy by way of its text: what a test spoils is what a user could have written. */
static void copy_plan(yk_plan *to, const yk_plan *from)
{
    char *text = NULL;
    size_t n;
    yk_error err = {0};
    if (yk_plan_write(from, &text, &n, &err) != YK_OK || yk_plan_read(to, text, n, &err) != YK_OK)
        fail_msg("%s", err.text);
    yk_free(text);
}

static void must_check(const yk_plan *p, const yk_shape *s, const yk_plan_limits *l, uint64_t seed)
{
    yk_error err = {0};
    if (yk_plan_check(p, s, l, &err) != YK_OK)
        fail_msg("seed %llu: %s", (unsigned long long)seed, err.text);
}

static void check_written_by_hand(void **state)
{
    (void)state;
    static const char *const files[] = {"tiny-mixtral-least", "tiny-mixtral-three-kinds", "tiny-mixtral-cut-experts"};
    yk_shape s;
    yk_pt_shape(&s, "yoke-tiny-mixtral", NULL);
    yk_plan_limits l = {.context = 512, .max_seqs = 1, .batch = 64, .kv_elem_bytes = 2, .n_devices = 1};
    strcpy(l.devices[0].name, "opencl:0");
    l.devices[0].budget_bytes = 16u << 20;
    for (int i = 0; i < 3; i++) {
        char path[128];
        size_t n;
        yk_plan p;
        yk_error err = {0};
        snprintf(path, sizeof path, "tests/data/plans/%s.json", files[i]);
        char *text = yk_pt_file(path, &n);
        if (yk_plan_read(&p, text, n, &err) != YK_OK)
            fail_msg("%s: %s", path, err.text);
        must_check(&p, &s, &l, (uint64_t)i);
        if (i == 2) {
            assert_int_equal(p.layers[1].attn_home, 0);
            assert_int_equal(p.layers[0].slices[0].kind[YK_B_8], YK_KIND_CC); /* left out */
            assert_int_equal(p.layers[0].slices[0].kind[YK_B_4], YK_KIND_CG);
            l.devices[0].budget_bytes = 1u << 20;
            assert_int_equal(yk_plan_check(&p, &s, &l, &err), YK_ERR_INPUT);
            assert_non_null(strstr(err.text, "plan.memory.opencl:0: the plan takes"));
        }
        yk_free(text);
        yk_plan_clear(&p);
    }
    yk_shape_close(&s);
}

static void check_bad_texts(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *want;
    } rows[] = {
        {"\"format\": 1", "\"format\": 7", "plan.format: 7"},
        {"\"format\": 1,", "", "plan.format: is missing"},
        {"\"layers\"", "\"lairs\"", "plan.layers: is missing"},
        {"\"layers\": [", "\"layers\": [], \"x\": [", "plan.layers: has 0 layers"},
        {"\"layers\": [", "\"layers\": [3, ", "plan.layers[0]: must be an object"},
        {"\"slices\"", "\"slice\"", "plan.layers[0].slices: is missing"},
        {"\"tensor_group\": \"exp\"", "\"tensor_group\": \"attn\"", "plan.layers[0].slices[0].tensor_group: \"attn\""},
        {"\"tensor_group\": \"exp\", ", "", "plan.layers[0].slices[0].tensor_group: is missing"},
        {"\"expert\": 0", "\"expert\": -1", "plan.layers[0].slices[0].expert: -1"},
        {"\"expert\": 0, ", "", "plan.layers[0].slices[0].expert: is missing"},
        {"\"unit0\": 0", "\"unit0\": 0.5", "plan.layers[0].slices[0].unit0: must be a whole number"},
        {"\"units\": 2", "\"units\": 0", "plan.layers[0].slices[0].units: 0"},
        {"\"home\": \"opencl:0\"", "\"home\": \"gpu\"", "plan.layers[0].slices[0].home: \"gpu\" is no place"},
        {"\"home\": \"opencl:0\"", "\"home\": 0", "plan.layers[0].slices[0].home: must be a string"},
        {"\"attn_home\": \"opencl:0\"", "\"attn_home\": \"x:y\"", "plan.layers[0].attn_home: \"x:y\""},
        {"\"head_home\": \"opencl:0\"", "\"head_home\": true", "plan.head_home: must be a string"},
        {"\"1\": \"CG\"", "\"1\": \"GC\"", "plan.layers[0].slices[5].kind.1: \"GC\""},
        {"\"kind\": {", "\"kind\": 1, \"x\": {", "plan.layers[0].slices[5].kind: must be an object"},
        {"\"opencl:0\": {", "\"opencl\": {", "plan.memory: \"opencl\" is no place"},
        {"\"weights\": 4194304", "\"weights\": -4", "plan.memory.opencl:0.weights: -4"},
        {"\"format\": 1,", "\"format\": 1, \"predicted\": {\"decode_tps\": {\"a\": 1}},", "plan.predicted.decode_tps: needs"},
        {"\"format\": 1,", "\"format\": 1, \"predicted\": {\"decode_tps\": {\"0\": -1}},", "plan.predicted.decode_tps.0: -1"},
        {"\"format\": 1,", "\"format\": 1, \"alternatives\": [{}],", "plan.alternatives[0].name: is missing"},
        {"\"format\": 1,", "\"format\": 1, \"model\": {\"id\": \"0123456789abcdef0\"},", "plan.model.id: has 17 bytes"},
        {"{", "", "plan: line"},
    };
    size_t n;
    char *text = yk_pt_file("tests/data/plans/tiny-mixtral-three-kinds.json", &n);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        yk_plan p;
        yk_error err = {0};
        const char *at = strstr(text, rows[i].from);
        assert_non_null(at);
        char *bad = malloc(n + 256);
        assert_non_null(bad);
        sprintf(bad, "%.*s%s%s", (int)(at - text), text, rows[i].to, at + strlen(rows[i].from));
        const yk_status st = yk_plan_read(&p, bad, strlen(bad), &err);
        if (st != YK_ERR_INPUT || !strstr(err.text, rows[i].want))
            fail_msg("%s: status %d, \"%s\" instead of \"%s\"", rows[i].to, st, err.text, rows[i].want);
        assert_null(p.layers);
        free(bad);
    }
    /* Every beginning of the text is refused, none crashes. */
    for (size_t k = 0; k + 2 < n; k += 37) {
        yk_plan p;
        assert_int_equal(yk_plan_read(&p, text, k, NULL), YK_ERR_INPUT);
    }
    yk_free(text);
}

/* Each spoils a valid plan; what the message must say. */
static const char *spoil(yk_plan *p, yk_plan_limits *l, int how)
{
    yk_slice *s = &p->layers[1].slices[2];
    switch (how) {
    case 0:
        s->units = 9;
        return "plan.layers[1].slices[2].units: 9 units";
    case 1:
        s->unit0 = 2;
        return "plan.layers[1].slices[2].units: ";
    case 2:
        s->expert = 8;
        return "plan.layers[1].slices[2].expert: 8";
    case 3:
        s->expert = p->layers[1].slices[1].expert;
        s->unit0 = p->layers[1].slices[1].unit0;
        return "plan.layers[1].slices[2].units: unit 0 of exp 1 is in slices[1] already";
    case 4:
        p->layers[1].n_slices--;
        return "plan.layers[1].slices: unit 0 of exp 7 is in no slice";
    case 5:
        s->group = YK_PART_SHEXP;
        return "plan.layers[1].slices[2].tensor_group: layer 1 of this model has no \"shexp\"";
    case 6:
        s->home = YK_HOST;
        s->kind[YK_B_8] = YK_KIND_GG;
        return "plan.layers[1].slices[2].kind.5-8: GG needs a device as home, not host";
    case 7:
        p->layers[1].slices[0].kind[YK_B_PREFILL] = YK_KIND_CC;
        return "plan.layers[1].slices[0].kind.prefill: CC needs the host as home, not opencl:0";
    case 8:
        strcpy(p->devices[0], "cuda:3");
        return "there is no device \"cuda:3\" here";
    case 9:
        l->devices[0].budget_bytes = 3 << 20;
        return "plan.memory.opencl:0: the plan takes";
    case 10:
        p->memory[1][YK_MEM_STAGING] = 1;
        return "plan.memory.opencl:0.staging: the plan takes";
    case 11:
        p->memory[0][YK_MEM_WEIGHTS] = 1;
        return "plan.memory.host.weights: the plan takes";
    case 12:
        strcpy(p->shape_id, "0123456789abcdef");
        return "plan.model.id: ";
    case 13:
        p->n_layers = 3;
        return "plan.layers: there are 3, the model has 4";
    case 14:
        l->context = 1 << 20;
        return "plan.memory.opencl:0.kv: ";
    case 15:
        l->host_bytes = 100;
        return "plan.memory.host: the plan takes";
    case 16:
        l->devices[0].runtime_bytes = 1ull << 30;
        return "plan.memory.opencl:0: the plan takes";
    default:
        return NULL;
    }
}

static void check_corruptions(void **state)
{
    (void)state;
    yk_shape s;
    size_t n;
    yk_error err = {0};
    yk_plan whole;
    yk_pt_shape(&s, "yoke-tiny-mixtral", NULL);
    char *text = yk_pt_file("tests/data/plans/tiny-mixtral-three-kinds.json", &n);
    assert_int_equal(yk_plan_read(&whole, text, n, &err), YK_OK);
    yk_free(text);
    int how = 0;
    for (const char *want = ""; want; how++) {
        yk_plan_limits l = {.context = 512, .max_seqs = 1, .batch = 64, .kv_elem_bytes = 2, .n_devices = 1};
        strcpy(l.devices[0].name, "opencl:0");
        l.devices[0].budget_bytes = 16u << 20;
        yk_plan p;
        copy_plan(&p, &whole);
        must_check(&p, &s, &l, (uint64_t)how);
        want = spoil(&p, &l, how);
        err = (yk_error){0};
        if (want && (yk_plan_check(&p, &s, &l, &err) != YK_ERR_INPUT || !strstr(err.text, want)))
            fail_msg("corruption %d: \"%s\" instead of \"%s\"", how, err.text, want);
        p.n_layers = 4;
        yk_plan_clear(&p);
    }
    assert_int_equal(how, 18);
    yk_plan_clear(&whole);
    yk_shape_close(&s);
}

/* Without a device there is nothing to copy to. */
static void check_cg_needs_device(void **state)
{
    (void)state;
    yk_shape s;
    yk_plan p;
    yk_error err = {0};
    const yk_plan_limits l = {.context = 512, .max_seqs = 1, .batch = 64, .kv_elem_bytes = 2};
    yk_pt_shape(&s, "yoke-tiny-mixtral", NULL);
    assert_int_equal(yk_plan_random(&p, 1, &s, &l, &err), YK_OK);
    must_check(&p, &s, &l, 1);
    p.layers[2].slices[0].kind[YK_B_16] = YK_KIND_CG;
    assert_int_equal(yk_plan_check(&p, &s, &l, &err), YK_ERR_INPUT);
    assert_non_null(strstr(err.text, "plan.layers[2].slices[0].kind.9-16: CG needs a device"));
    yk_plan_clear(&p);
    yk_shape_close(&s);
}

/* Experts copied ahead of the router: in the file, in the id, in the price, and what a user could have spoiled. */
static void check_ahead(void **state)
{
    (void)state;
    yk_shape s;
    yk_plan p, q;
    yk_error err = {0};
    char *a = NULL, *b = NULL;
    size_t n;
    yk_plan_limits l = {.context = 500, .max_seqs = 1, .batch = 64, .kv_elem_bytes = 2, .n_devices = 1};
    strcpy(l.devices[0].name, "opencl:0");
    l.devices[0].budget_bytes = 16u << 20;
    yk_pt_shape(&s, "yoke-tiny-mixtral", NULL);
    char *text = yk_pt_file("tests/data/plans/tiny-mixtral-three-kinds.json", &n);
    char *with = malloc(n + 128);
    assert_non_null(with);
    const char key[] = "\"attn_home\": \"opencl:0\"", *at = strstr(text, key) + sizeof key - 1;
    sprintf(with, "%.*s, \"ahead\": {\"2-4\": false, \"5-8\": true, \"17-32\": true}%s", (int)(at - text), text, at);
    if (yk_plan_read(&p, with, strlen(with), &err) != YK_OK)
        fail_msg("%s", err.text);
    must_check(&p, &s, &l, 0);
    for (uint32_t tokens = 1; tokens < 100; tokens++) {
        assert_true(yk_plan_ahead(&p.layers[0], false, tokens) ==
                    ((tokens > 4 && tokens <= 8) || (tokens > 16 && tokens <= 32)));
        assert_false(yk_plan_ahead(&p.layers[0], true, tokens) || yk_plan_ahead(&p.layers[1], false, tokens));
    }
    copy_plan(&q, &p);
    if (yk_plan_write(&p, &a, NULL, &err) != YK_OK || yk_plan_write(&q, &b, NULL, &err) != YK_OK)
        fail_msg("%s", err.text);
    assert_string_equal(a, b);
    assert_non_null(strstr(a, "\"attn_home\": \"opencl:0\", \"ahead\": {\"5-8\": true, \"17-32\": true}, "));
    assert_string_equal(p.plan_id, q.plan_id);
    memset(q.layers[0].ahead, 0, sizeof q.layers[0].ahead);
    yk_plan_set_id(&q);
    assert_string_not_equal(p.plan_id, q.plan_id);
    yk_plan_clear(&q);
    yk_plan_clear(&p);
    memcpy(strstr(with, "true,"), "1234,", 5);
    assert_int_equal(yk_plan_read(&p, with, strlen(with), &err), YK_ERR_INPUT);
    assert_non_null(strstr(err.text, "plan.layers[0].ahead.5-8"));
    /* No device to copy to; no experts. */
    const yk_plan_limits none = {.context = 512, .max_seqs = 1, .batch = 64, .kv_elem_bytes = 2};
    assert_int_equal(yk_plan_random(&p, 1, &s, &none, &err), YK_OK);
    p.layers[0].ahead[YK_B_4] = true;
    assert_int_equal(yk_plan_check(&p, &s, &none, &err), YK_ERR_INPUT);
    assert_non_null(strstr(err.text, "plan.layers[0].ahead.2-4: copying needs a device"));
    yk_plan_clear(&p);
    yk_shape_close(&s);
    yk_pt_shape(&s, "llama2-13b", NULL);
    l.devices[0].budget_bytes = 8ull << 30;
    assert_int_equal(yk_plan_random(&p, 1, &s, &l, &err), YK_OK);
    p.layers[3].ahead[YK_B_4] = true;
    assert_int_equal(yk_plan_check(&p, &s, &l, &err), YK_ERR_INPUT);
    assert_non_null(strstr(err.text, "plan.layers[3].ahead.2-4: this layer has no routed experts"));
    yk_plan_clear(&p);
    yk_free(a);
    yk_free(b);
    yk_free(text);
    free(with);
    yk_shape_close(&s);
}

/* Attention copied in prefill: in the file, in the id, in the memory, and what a user could have spoiled. */
static void check_attn_chunks(void **state)
{
    (void)state;
    yk_shape s;
    yk_plan p, q;
    yk_error err = {0};
    char *a = NULL, *b = NULL;
    size_t n;
    uint64_t before[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES], after[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES];
    yk_plan_limits l = {.context = 500, .max_seqs = 1, .batch = 64, .kv_elem_bytes = 2, .n_devices = 1};
    strcpy(l.devices[0].name, "opencl:0");
    l.devices[0].budget_bytes = 16u << 20;
    yk_pt_shape(&s, "yoke-tiny-mixtral", NULL);
    char *text = yk_pt_file("tests/data/plans/tiny-mixtral-three-kinds.json", &n);
    char *with = malloc(n + 64);
    assert_non_null(with);
    const char key[] = "\"attn_home\": \"opencl:0\"", *at = strstr(text, key);
    sprintf(with, "%.*s\"attn_home\": \"host\", \"attn_chunks\": {\"33-128\": \"CG\", \"2049-\": \"CG\"}%s", (int)(at - text),
            text, at + sizeof key - 1);
    if (yk_plan_read(&p, with, strlen(with), &err) != YK_OK)
        fail_msg("%s", err.text);
    must_check(&p, &s, &l, 0);
    for (uint32_t tokens = 1; tokens < 5000; tokens += 7) {
        assert_true(yk_plan_attn_on_device(&p.layers[0], true, tokens) == (tokens <= 128 || tokens > 2048));
        assert_false(yk_plan_attn_on_device(&p.layers[0], false, tokens));
        assert_true(yk_plan_attn_on_device(&p.layers[1], true, tokens) && yk_plan_attn_on_device(&p.layers[1], false, tokens));
    }
    copy_plan(&q, &p);
    if (yk_plan_write(&p, &a, NULL, &err) != YK_OK || yk_plan_write(&q, &b, NULL, &err) != YK_OK)
        fail_msg("%s", err.text);
    assert_string_equal(a, b);
    assert_non_null(strstr(a, "\"attn_home\": \"host\", \"attn_chunks\": {\"33-128\": \"CG\", \"2049-\": \"CG\"}"));
    assert_string_equal(p.plan_id, q.plan_id);
    /* Without it: another id; staging without K and V of 512 positions. An expert is larger than attention here, then smaller. */
    memset(q.layers[0].attn_chunk, 0, sizeof q.layers[0].attn_chunk);
    yk_plan_set_id(&q);
    assert_string_not_equal(p.plan_id, q.plan_id);
    for (int large = 0; large < 2; large++) {
        const uint64_t kv = 512 * yk_shape_kv_bytes(&s, 2);
        uint64_t expert = 0; /* of any layer: types differ */
        for (uint32_t i = 0; i < s.n_layers; i++) {
            const uint64_t e = yk_shape_units_bytes(&s.layers[i].part[YK_PART_EXP], 0, 2);
            expert = e > expert ? e : expert;
        }
        s.layers[0].attn[YK_MAT_Q].bytes += large ? 2 * expert : 0;
        const uint64_t attn = yk_shape_attn_bytes(&s.layers[0]);
        assert_true((attn > expert) == (large == 1));
        yk_plan_memory(&q, &s, &l, before);
        yk_plan_memory(&p, &s, &l, after);
        assert_int_equal(before[1][YK_MEM_STAGING], 2 * expert);
        assert_int_equal(after[1][YK_MEM_STAGING], 2 * (large ? attn : expert) + kv);
        before[1][YK_MEM_STAGING] = after[1][YK_MEM_STAGING];
        assert_memory_equal(before, after, 2 * sizeof *before);
    }
    static const struct {
        int attn_home;
        uint8_t chunk;
        bool host_only;
        const char *want;
    } rows[] = {{YK_HOST, 1 + YK_KIND_CC, false, "plan.layers[0].attn_chunks.33-128: only CG is possible"},
                {YK_HOST, 1 + YK_KIND_GG, false, "plan.layers[0].attn_chunks.33-128: only CG is possible"},
                {0, 1 + YK_KIND_CG, false, "plan.layers[0].attn_chunks.33-128: CG needs the host as attn_home"},
                {YK_HOST, 1 + YK_KIND_CG, true, "plan.layers[0].attn_chunks.33-128: no device computes"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        p.layers[0].attn_home = (int8_t)rows[i].attn_home;
        p.layers[0].attn_chunk[YK_C_128] = rows[i].chunk;
        s.layers[0].host_only = rows[i].host_only;
        assert_int_equal(yk_plan_check(&p, &s, &l, &err), YK_ERR_INPUT);
        if (!strstr(err.text, rows[i].want))
            fail_msg("\"%s\" instead of \"%s\"", err.text, rows[i].want);
    }
    yk_plan_clear(&p);
    yk_plan_clear(&q);
    memcpy(strstr(with, "\"CG\", \"2049-\""), "\"GC\"", 4);
    assert_int_equal(yk_plan_read(&p, with, strlen(with), &err), YK_ERR_INPUT);
    assert_non_null(strstr(err.text, "plan.layers[0].attn_chunks.33-128: \"GC\" is not known"));
    /* No device: nothing to copy to. */
    const yk_plan_limits none = {.context = 512, .max_seqs = 1, .batch = 64, .kv_elem_bytes = 2};
    s.layers[0].host_only = false;
    assert_int_equal(yk_plan_random(&p, 1, &s, &none, &err), YK_OK);
    p.layers[0].attn_chunk[YK_C_MORE] = 1 + YK_KIND_CG;
    assert_int_equal(yk_plan_check(&p, &s, &none, &err), YK_ERR_INPUT);
    assert_non_null(strstr(err.text, "plan.layers[0].attn_chunks.2049-: CG needs a device"));
    yk_plan_clear(&p);
    yk_free(a);
    yk_free(b);
    yk_free(text);
    free(with);
    yk_shape_close(&s);
}

static void check_random_plans(void **state)
{
    (void)state;
    uint64_t rng = 11;
    uint32_t kinds[3] = {0}, attn[2] = {0}, attn_copied = 0, mixed = 0, cut = 0, all_three = 0;
    for (uint64_t seed = 0; seed < 300; seed++) {
        yk_shape s;
        yk_machine m;
        yk_plan p, q;
        yk_error err = {0};
        yk_pt_random_shape(&s, &rng, 6, 6);
        yk_pt_random_machine(&m, &rng);
        yk_plan_limits l = yk_pt_limits(&m, (uint64_t)yk_pt_log_uniform(&rng, 1e7, 1e10));
        if (seed % 3 == 0) {
            l.n_devices = 2;
            l.devices[1] = l.devices[0];
            strcpy(l.devices[1].name, "null:1");
        }
        if (yk_plan_random(&p, seed, &s, &l, &err) != YK_OK || yk_plan_random(&q, seed, &s, &l, &err) != YK_OK)
            fail_msg("seed %llu: %s", (unsigned long long)seed, err.text);
        must_check(&p, &s, &l, seed);
        assert_string_equal(p.plan_id, q.plan_id);
        yk_plan_clear(&q);
        copy_plan(&q, &p);
        assert_string_equal(p.plan_id, q.plan_id);
        must_check(&q, &s, &l, seed);
        uint32_t seen[3] = {0};
        for (uint32_t i = 0; i < p.n_layers; i++) {
            attn[p.layers[i].attn_home != YK_HOST]++;
            attn_copied += p.layers[i].attn_home == YK_HOST && yk_plan_attn_on_device(&p.layers[i], true, 512);
            for (uint32_t k = 0; k < p.layers[i].n_slices; k++) {
                const yk_slice *sl = &p.layers[i].slices[k];
                seen[sl->kind[0]]++;
                mixed += memcmp(sl->kind, sl->kind + 1, YK_N_BUCKETS - 1) != 0;
                cut += sl->units < s.layers[i].part[sl->group].cut.n;
            }
        }
        for (int k = 0; k < 3; k++)
            kinds[k] += seen[k];
        all_three += seen[0] && seen[1] && seen[2];
        yk_plan_clear(&p);
        yk_plan_clear(&q);
        yk_shape_close(&s);
    }
    printf("slices GG %u CC %u CG %u, cut %u, kinds differ by bucket %u; attention host %u (copied in prefill %u) device %u; "
           "plans with "
           "all three %u\n",
           kinds[0], kinds[1], kinds[2], cut, mixed, attn[0], attn_copied, attn[1], all_three);
    assert_true(kinds[0] > 500 && kinds[1] > 500 && kinds[2] > 500 && cut > 500 && mixed > 300);
    assert_true(attn[0] > 100 && attn[1] > 100 && attn_copied > 100 && all_three > 60);
}

/* A few hundred cases: valid, within budget, the same twice, and more memory never slower. */
static void check_solver_properties(void **state)
{
    (void)state;
    uint64_t rng = 5;
    uint32_t used = 0, with_cg = 0, not_used = 0;
    double worst = 0;
    for (uint64_t seed = 0; seed < 300; seed++) {
        yk_shape s;
        yk_machine m;
        yk_error err = {0};
        yk_pt_random_shape(&s, &rng, 8, 12);
        yk_pt_random_machine(&m, &rng);
        const uint64_t budget = (uint64_t)yk_pt_log_uniform(&rng, 1e6, 2e10);
        double last = INFINITY;
        for (int more = 0; more < 3; more++) {
            yk_plan p, again;
            yk_plan_limits l = yk_pt_limits(&m, budget + budget * (uint64_t)more / 3);
            l.context = 256 << seed % 5;
            l.max_seqs = 1 + (uint32_t)seed % 4 * 3;
            if (yk_plan_solve(&p, &m, &s, &l, &err) != YK_OK)
                fail_msg("seed %llu: %s", (unsigned long long)seed, err.text);
            must_check(&p, &s, &l, seed);
            assert_true(p.n_devices == 0 || sum_of(p.memory[1]) <= l.devices[0].budget_bytes);
            const double t = yk_plan_request_s(&p, &m, &s, &l);
            worst = fmax(worst, isinf(last) ? 0 : t / last - 1);
            if (t > 1.01 * last)
                fail_msg("seed %llu: %.4g s with %llu bytes, %.4g s with less", (unsigned long long)seed, t,
                         (unsigned long long)l.devices[0].budget_bytes, last);
            last = t;
            if (more == 0) {
                char *a = NULL, *b = NULL;
                if (yk_plan_solve(&again, &m, &s, &l, &err) != YK_OK || yk_plan_write(&p, &a, NULL, &err) != YK_OK ||
                    yk_plan_write(&again, &b, NULL, &err) != YK_OK)
                    fail_msg("%s", err.text);
                assert_string_equal(a, b);
                yk_free(a);
                yk_free(b);
                yk_plan_clear(&again);
                used += p.n_devices > 0;
                not_used += p.n_devices == 0;
                with_cg += p.memory[1][YK_MEM_STAGING] > 0 && p.n_devices;
                assert_true(*p.note);
            }
            yk_plan_clear(&p);
        }
        yk_shape_close(&s);
    }
    printf("device used in %u plans, with copies in %u, not used in %u; more memory: at worst %.2f %% slower\n", used, with_cg,
           not_used, 100 * worst);
    assert_true(used > 100 && with_cg > 30 && not_used > 5);
}

/* ---- against every plan of the same form ---- */

typedef struct brute {
    yk_plan *p;
    const yk_machine *m;
    const yk_shape *s;
    const yk_plan_limits *l;
    double best;
} brute;

static void try_layer(brute *b, uint32_t l)
{
    if (l == b->s->n_layers) {
        for (int head = 0; head < 2; head++) {
            uint64_t mem[1 + YK_MAX_DEVICES][YK_MEM_N_CLASSES];
            b->p->head_home = head ? 0 : YK_HOST;
            yk_plan_memory(b->p, b->s, b->l, mem);
            if (sum_of(mem[1]) > b->l->devices[0].budget_bytes)
                continue;
            b->best = fmin(b->best, yk_plan_request_s(b->p, b->m, b->s, b->l));
        }
        return;
    }
    yk_plan_layer *y = &b->p->layers[l];
    const uint32_t n = y->n_slices;
    for (int attn = 0; attn < YK_ATTN_N; attn++)
        for (uint32_t g = 0; g <= n; g++)
            for (uint32_t dec = 0; dec <= n - g; dec++)
                for (uint32_t pre = 0; pre <= n - g; pre++) {
                    y->attn_home = attn == YK_ATTN_DEVICE ? 0 : YK_HOST;
                    memset(y->attn_chunk, attn == YK_ATTN_COPIED ? 1 + YK_KIND_CG : 0, sizeof y->attn_chunk);
                    for (uint32_t i = 0; i < n; i++) {
                        y->slices[i].home = i < g ? 0 : YK_HOST;
                        for (int k = 0; k < YK_N_BUCKETS; k++) {
                            const uint32_t copied = k == YK_B_PREFILL ? pre : dec;
                            y->slices[i].kind[k] = i < g ? YK_KIND_GG : i < g + copied ? YK_KIND_CG : YK_KIND_CC;
                        }
                    }
                    try_layer(b, l + 1);
                }
}

static void check_against_brute_force(void **state)
{
    (void)state;
    uint64_t rng = 3;
    uint32_t within_1 = 0, within_5 = 0, cases = 0;
    double worst = 1;
    for (uint64_t seed = 0; seed < 120; seed++) {
        yk_shape s;
        yk_machine m;
        yk_plan p, all;
        yk_error err = {0};
        yk_pt_random_shape(&s, &rng, 2, 3);
        yk_pt_random_machine(&m, &rng);
        const yk_shape_part *part = s.layers[0].part;
        const uint32_t n = part[YK_PART_EXP].n ? part[YK_PART_EXP].n : part[YK_PART_FFN].cut.n;
        uint64_t bytes = s.head.bytes + yk_shape_attn_bytes(&s.layers[0]) + yk_shape_ffn_bytes(&s.layers[0]);
        if (s.n_layers == 2)
            bytes += bytes - s.head.bytes;
        const double share = yk_pt_uniform(&rng, 0.05, 1.2);
        if (part[YK_PART_SHEXP].n || n > (s.n_layers == 2 ? 3 : 6)) {
            yk_shape_close(&s);
            continue;
        }
        yk_plan_limits l = yk_pt_limits(&m, (uint64_t)(share * (double)bytes));
        l.context = 512;
        l.batch = 64;
        l.devices[0].budget_bytes += yk_plan_activation_bytes(&s, &l);
        if (yk_plan_solve(&p, &m, &s, &l, &err) != YK_OK || yk_plan_init(&all, s.n_layers, &err) != YK_OK)
            fail_msg("%s", err.text);
        yk_plan_device(&all, "null:0");
        for (uint32_t i = 0; i < s.n_layers; i++)
            for (uint32_t u = 0; u < n; u++) {
                const bool exp = part[YK_PART_EXP].n > 0;
                const yk_slice sl = {.group = exp ? YK_PART_EXP : YK_PART_FFN,
                                     .expert = exp ? u : 0,
                                     .unit0 = exp ? 0 : u,
                                     .units = exp ? part[YK_PART_EXP].cut.n : 1};
                assert_int_equal(yk_plan_add(&all, i, &sl, &err), YK_OK);
            }
        brute b = {&all, &m, &s, &l, INFINITY};
        try_layer(&b, 0);
        const double ratio = yk_plan_request_s(&p, &m, &s, &l) / b.best;
        cases++;
        within_1 += ratio <= 1.01;
        within_5 += ratio <= 1.05;
        if (ratio > worst && getenv("YOKE_SHOW"))
            printf("seed %u: %.3f, %u layers of %u, share %.2f\n", (unsigned)seed, ratio, s.n_layers, n, share);
        worst = fmax(worst, ratio);
        assert_true(ratio > 0.999999);
        yk_plan_clear(&p);
        yk_plan_clear(&all);
        yk_shape_close(&s);
    }
    printf("%u cases: within 1 %% of the best in %u, within 5 %% in %u, worst %.1f %%\n", cases, within_1, within_5,
           100 * (worst - 1));
    assert_true(cases >= 40);
    assert_true(within_1 >= cases * 0.8 && within_5 >= cases * 0.9 && worst < 1.25);
}

static void check_choice_of_device(void **state)
{
    (void)state;
    yk_machine m;
    yk_shape s;
    yk_plan p;
    yk_error err = {0};
    yk_pt_machine(&m, "rtx-4090-desktop");
    yk_pt_shape(&s, "yoke-tiny-mixtral", NULL);
    m.devices[0].same_silicon = true;
    yk_plan_limits l = yk_pt_limits(&m, 3 << 20);
    l.context = 512;
    l.batch = 64;
    assert_int_equal(yk_plan_solve(&p, &m, &s, &l, &err), YK_OK);
    assert_int_equal(p.n_devices, 0);
    assert_non_null(strstr(p.note, "is the CPU itself"));
    yk_plan_clear(&p);
    strcpy(l.device, "opencl");
    assert_int_equal(yk_plan_solve(&p, &m, &s, &l, &err), YK_ERR_USAGE);
    assert_non_null(strstr(err.text, "opencl"));
    strcpy(l.device, "cuda:0");
    l.n_devices = 0;
    assert_int_equal(yk_plan_solve(&p, &m, &s, &l, &err), YK_ERR_USAGE);
    strcpy(l.device, "cpu");
    assert_int_equal(yk_plan_solve(&p, &m, &s, &l, &err), YK_OK);
    assert_string_equal(p.note, "CPU only: asked for");
    yk_plan_clear(&p);
    /* A budget that holds nothing. */
    m.devices[0].same_silicon = false;
    l = yk_pt_limits(&m, 1000);
    assert_int_equal(yk_plan_solve(&p, &m, &s, &l, &err), YK_OK);
    assert_int_equal(p.n_devices, 0);
    assert_non_null(strstr(p.note, "holds nothing beside"));
    yk_plan_clear(&p);
    yk_shape_close(&s);
}

/* A device of the CPU's silicon, named: a third of the model holds all three kinds, in one decode and one prefill step, however the
 * measurement came out. */
static void check_rehearsal(void **state)
{
    (void)state;
    static const char *const machines[] = {"rtx-4090-desktop", "rtx-3060-ddr4", "rtx-4060-laptop", "xeon-amx-4090"};
    uint64_t rng = 11;
    yk_shape s;
    yk_error err = {0};
    yk_pt_shape(&s, "yoke-tiny-mixtral", NULL);
    for (uint32_t t = 0; t < 60; t++) {
        yk_machine m;
        yk_plan p;
        if (t < 4)
            yk_pt_machine(&m, machines[t]);
        else
            yk_pt_random_machine(&m, &rng);
        m.devices[0].same_silicon = true;
        yk_plan_limits l = yk_pt_limits(&m, 9040672 / 3);
        l.context = 512;
        l.batch = 32;
        strcpy(l.device, m.devices[0].name);
        assert_int_equal(yk_plan_solve(&p, &m, &s, &l, &err), YK_OK);
        assert_int_equal(p.n_devices, 1);
        uint32_t kinds[2][3] = {{0}};
        for (uint32_t i = 0; i < p.n_layers; i++)
            for (uint32_t k = 0; k < p.layers[i].n_slices; k++) {
                kinds[0][p.layers[i].slices[k].kind[YK_B_1]]++;
                kinds[1][p.layers[i].slices[k].kind[YK_B_PREFILL]]++;
            }
        for (int k = 0; k < 6; k++)
            if (!kinds[k / 3][k % 3])
                fail_msg("measurement %u: no slice of kind %s when %s", t, yk_kind_name((yk_kind)(k % 3)),
                         k / 3 ? "prefilling" : "decoding");
        yk_plan_clear(&p);
    }
    yk_shape_close(&s);
}

/* A machine of round numbers and one dense layer: the figures of docs/PLANNER.md's worked example. */
static void check_example_by_hand(void **state)
{
    (void)state;
    static const char shape[] =
        "{\"format\": 1, \"name\": \"example\", \"n_layers\": 1, \"n_embd\": 4096, \"n_heads\": 32, \"n_kv_heads\": 32,"
        "\"head_dim\": 128, \"n_vocab\": 4096, \"n_ctx_train\": 4096, \"n_ff\": 16384}";
    static const char machine[] =
        "{\"format\": 1, \"cpu\": {\"threads\": 8, \"memory_bytes\": 1000000000, \"read_bytes_per_s\": 40e9,"
        "\"product_bytes_per_s\": {\"F16\": {\"1\": 40e9}}}, \"devices\": [{\"name\": \"cuda:0\", \"backend\": \"cuda\","
        "\"memory_bytes\": 1000000000, \"launch_ns\": 0, \"hand_off_ns\": 0, \"fixed_ns\": 0,"
        "\"product_bytes_per_s\": {\"F16\": {\"1\": 400e9}}, \"link\": {\"to_device_bytes_per_s\": 10e9, \"to_device_ns\": "
        "0}}]}";
    yk_shape s;
    yk_machine m;
    yk_plan p;
    yk_error err = {0};
    if (yk_shape_read(&s, shape, strlen(shape), "F16", NULL, &err) != YK_OK ||
        yk_machine_read(&m, machine, strlen(machine), &err) != YK_OK)
        fail_msg("%s", err.text);
    assert_int_equal(yk_plan_init(&p, 1, &err), YK_OK);
    yk_plan_device(&p, "cuda:0");
    p.head_home = p.layers[0].attn_home = 0;
    const yk_slice gg = {.group = YK_PART_FFN, .home = 0, .unit0 = 0, .units = 32}; /* kinds 0: GG */
    yk_slice cc = {.group = YK_PART_FFN, .home = YK_HOST, .unit0 = 32, .units = 32};
    memset(cc.kind, YK_KIND_CC, sizeof cc.kind);
    assert_int_equal(yk_plan_add(&p, 0, &gg, &err), YK_OK);
    assert_int_equal(yk_plan_add(&p, 0, &cc, &err), YK_OK);
    yk_cost c;
    yk_cost_init(&c, &m, 0, &s);
    const yk_step_kind step = {.n = 1, .kv_elem_bytes = 2};
    const double row = 4096 * 4, half = 3.0 * 4096 * 16384 * 2 / 2, attn = 4.0 * 4096 * 4096 * 2 + 0, head = 4096.0 * 4096 * 2;
    /* embedding row over, attention, then the slower of both halves (the CPU with hand-off both ways), head, logits back */
    const double want =
        row / 10e9 + attn / 400e9 + fmax(half / 400e9, half / 40e9 + 2 * row / 10e9) + head / 400e9 + 4 * 4096 / 10e9;
    double bound[YK_BOUND_N];
    const double got = yk_cost_plan(&c, &p, &step, bound);
    if (fabs(got / want - 1) > 1e-9)
        fail_msg("%.9g s instead of %.9g s", got, want);
    assert_true(fabs(1 / got - 183.2) < 0.1);
    assert_true(fabs(bound[YK_BOUND_CPU] / got - 0.922) < 0.001 && fabs(bound[YK_BOUND_GPU] / got - 0.0768) < 0.001);
    /* 10 GB/s more of memory; the other half on the device, too. */
    m.rates.read_bytes_per_s = m.rates.product[YK_TYPE_F16][YK_B_1] = 50e9;
    yk_cost_init(&c, &m, 0, &s);
    assert_true(fabs(1 / yk_cost_plan(&c, &p, &step, NULL) - 224.6) < 0.1);
    memset(p.layers[0].slices[1].kind, YK_KIND_GG, sizeof cc.kind);
    p.layers[0].slices[1].home = 0;
    assert_true(fabs(1 / yk_cost_plan(&c, &p, &step, NULL) - 699.6) < 0.5);
    yk_plan_clear(&p);
    yk_shape_close(&s);
}

/* What only a measured CPU's file has: products in prompts, down, heads, stages and rows. One layer of four experts. */
static void check_cpu_by_hand(void **state)
{
    (void)state;
    static const char shape[] =
        "{\"format\": 1, \"name\": \"example\", \"n_layers\": 1, \"n_embd\": 4096, \"n_heads\": 32, \"n_kv_heads\": 8, "
        "\"head_dim\": 64,"
        "\"n_vocab\": 4096, \"n_ctx_train\": 4096, \"n_experts\": 4, \"n_used\": 2, \"n_expert_ff\": 1024}";
    static const char machine[] =
        "{\"format\": 1, \"cpu\": {\"threads\": 8, \"memory_bytes\": 1000000000, \"read_bytes_per_s\": 50e9, \"fixed_ns\": "
        "3000,"
        "\"attention_flops_per_s\": 1e9, \"product_bytes_per_s\": {\"F16\": {\"1\": 40e9}, \"F32\": {\"1\": 40e9}}, "
        "\"stage_ns\": 2000,"
        "\"row_bytes_per_s\": 3e9, \"attention_by_head\": {\"64\": {\"kv_bytes_per_s\": 20e9, \"flops_per_s\": 100e9}},"
        "\"prompt_bytes_per_s\": {\"F16\": {\"64\": 10e9, \"122\": 8e9, \"512\": 2e9}}, \"down_bytes_per_s\": {\"F16\": "
        "{\"1\": 30e9, \"512\": 1.5e9}}}}";
    const double attn = 2.0 * 4096 * (2048 + 512 + 512 + 2048), router = 4.0 * 4 * 4096, mat = 2.0 * 4096 * 1024,
                 head = 2.0 * 4096 * 4096;
    const double row = 4.0 * (4 * 4096 + 2 * 2048 + 2 * 512) / 3e9, ff_row = 4.0 * 1024 / 3e9, fixed = 4 * 3e-6 + 9 * 2e-6;
    /* 100 positions of K and V; two experts; the head */
    const double decode = fixed + row + attn / 40e9 + router / 40e9 + 100 * 2 * 512 * 2 / 20e9 +
                          2 * (2 * mat / 40e9 + mat / 30e9 + ff_row) + 3e-6 + head / 40e9;
    /* 256 positions on average; 256 tokens for each expert: as often 236, 250.46, 261.54 and 276, that is one or two tiles of 128, with a quarter of
     * the time of 512, and the rest; F32 gains nothing from more tokens; logits of one token */
    const double tile = 1 / 2e9 / 4, at_108 = 1 / 10e9 + 44.0 / 58 * (1 / 8e9 - 1 / 10e9),
                 at_122 = 1 / 8e9 + (0.464 / 390) * (1 / 2e9 - 1 / 8e9), few = 1 / 10e9;
    const double at_256 = ((tile + at_108) + (tile + at_122) + (2 * tile + few) + (2 * tile + few)) / 4;
    const double prefill = fixed + 512 * row + attn / 2e9 + 512 * router / 40e9 + 4.0 * 512 * 256 * 2048 / 100e9 +
                           4 * (mat * at_256 * (2 + 2 / 1.5) + 256 * ff_row) + 3e-6 + head / 40e9;
    yk_shape s;
    yk_machine m;
    yk_plan p;
    yk_cost c;
    yk_error err = {0};
    if (yk_shape_read(&s, shape, strlen(shape), "F16", NULL, &err) != YK_OK ||
        yk_machine_read(&m, machine, strlen(machine), &err) != YK_OK)
        fail_msg("%s", err.text);
    yk_plan_limits l = {.context = 512, .max_seqs = 1, .batch = 512, .kv_elem_bytes = 2, .kv_tokens = 512, .device = "cpu"};
    if (yk_plan_solve(&p, &m, &s, &l, &err) != YK_OK)
        fail_msg("%s", err.text);
    yk_cost_init(&c, &m, -1, &s);
    const yk_step_kind steps[] = {{.n = 1, .depth = 100, .kv_elem_bytes = 2}, {.prefill = true, .n = 512, .kv_elem_bytes = 2}};
    for (int i = 0; i < 2; i++) {
        const double got = yk_cost_plan(&c, &p, &steps[i], NULL), want = i ? prefill : decode;
        if (fabs(got / want - 1) > 1e-9)
            fail_msg("step %d: %.9g s instead of %.9g s", i, got, want);
    }
    yk_plan_clear(&p);
    yk_shape_close(&s);
}

static void check_explanation(void **state)
{
    (void)state;
    static const char *const shapes[] = {"mixtral-8x7b", "llama2-13b", "qwen3-30b-a3b"};
    for (int i = 0; i < 3; i++) {
        yk_machine m;
        yk_shape s;
        yk_plan p;
        yk_error err = {0};
        char *text = NULL;
        size_t n = 0, lines = 0;
        yk_pt_machine(&m, i == 1 ? "rtx-4060-laptop" : "rtx-4090-desktop");
        yk_pt_shape(&s, shapes[i], NULL);
        yk_plan_limits l = yk_pt_limits(&m, 6ull << 30);
        l.devices[0].runtime_bytes = 300u << 20;
        if (yk_plan_solve(&p, &m, &s, &l, &err) != YK_OK ||
            yk_plan_explain_text(&p, &s, &m, &l, false, &text, &n, &err) != YK_OK)
            fail_msg("%s", err.text);
        must_check(&p, &s, &l, (uint64_t)i);
        assert_int_equal(n, strlen(text));
        for (const char *q = text; *q; q++)
            lines += *q == '\n';
        assert_in_range(lines, 15, 40);
        static const char *const must[] = {"cuda:0", "decode", "bound by", "prefill", "does not fit",
                                           "-ngl",   "head",   "CPU only", "budget"};
        for (size_t k = 0; k < sizeof must / sizeof *must; k++)
            if (!strstr(text, must[k]))
                fail_msg("%s is not in:\n%s", must[k], text);
        if (getenv("YOKE_SHOW"))
            printf("%s\n", text);
        /* Under the same model nothing simpler may beat the plan where it counts. */
        const double mine = 128 / p.speed.decode_tps[0].value + 512 / p.speed.prefill_tps[0].value;
        for (uint32_t a = 0; a < p.n_alternatives; a++)
            if (p.alternatives[a].decode_tps > 0)
                assert_true(mine < 1.01 * (128 / p.alternatives[a].decode_tps + 512 / p.alternatives[a].prefill_tps));
        yk_free(text);
        yk_plan_clear(&p);
        yk_shape_close(&s);
    }
}

/* What no device computes stays on the host in every plan, and the checker refuses it elsewhere. */
static void check_host_only(void **state)
{
    (void)state;
    yk_machine m;
    yk_shape s;
    yk_plan p;
    yk_error err = {0};
    yk_pt_machine(&m, "rtx-4090-desktop");
    yk_pt_shape(&s, "mixtral-8x7b", NULL);
    yk_plan_limits l = yk_pt_limits(&m, 6ull << 30);
    snprintf(l.device, sizeof l.device, "%s", m.devices[0].name);
    for (uint64_t seed = 0; seed < 40; seed++) {
        const uint32_t at = (uint32_t)(seed % s.n_layers);
        const bool part = seed & 1, attn = seed & 2, head = seed & 4;
        s.layers[at].part[YK_PART_EXP].host_only = part;
        s.layers[at].host_only = attn;
        s.head_host_only = head;
        if ((seed < 8 ? yk_plan_solve(&p, &m, &s, &l, &err) : yk_plan_random(&p, seed, &s, &l, &err)) != YK_OK)
            fail_msg("%s", err.text);
        must_check(&p, &s, &l, seed);
        yk_plan_layer *y = &p.layers[at];
        assert_true(!attn || y->attn_home == YK_HOST);
        assert_true(!head || p.head_home == YK_HOST);
        for (uint32_t i = 0; part && i < y->n_slices; i++)
            for (int b = 0; b < YK_N_BUCKETS; b++)
                assert_int_equal(y->slices[i].kind[b], YK_KIND_CC);
        if (seed < 8) { /* everything fits; moved to the device against the flags it is refused */
            assert_int_equal(p.n_devices, 1);
            assert_true(p.memory[1][YK_MEM_WEIGHTS] > 0);
            const char *word = attn ? "attn_home" : head ? "head_home" : "kind.1";
            y->attn_home = attn ? 0 : y->attn_home;
            p.head_home = head ? 0 : p.head_home;
            if (part) {
                y->slices[0].home = 0;
                memset(y->slices[0].kind, YK_KIND_GG, sizeof y->slices[0].kind);
            }
            if (attn || head || part) {
                assert_int_equal(yk_plan_check(&p, &s, &l, &err), YK_ERR_INPUT);
                if (!strstr(err.text, head ? "head_home" : word))
                    fail_msg("%s", err.text);
            }
        }
        yk_plan_clear(&p);
        s.layers[at].part[YK_PART_EXP].host_only = s.layers[at].host_only = s.head_host_only = false;
    }
    yk_shape_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_host_only),
        cmocka_unit_test(check_written_by_hand),
        cmocka_unit_test(check_bad_texts),
        cmocka_unit_test(check_corruptions),
        cmocka_unit_test(check_cg_needs_device),
        cmocka_unit_test(check_random_plans),
        cmocka_unit_test(check_solver_properties),
        cmocka_unit_test(check_against_brute_force),
        cmocka_unit_test(check_choice_of_device),
        cmocka_unit_test(check_rehearsal),
        cmocka_unit_test(check_example_by_hand),
        cmocka_unit_test(check_explanation),
        cmocka_unit_test(check_attn_chunks),
        cmocka_unit_test(check_cpu_by_hand),
        cmocka_unit_test(check_ahead),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
