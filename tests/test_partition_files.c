/* Machine, shape and plan files: what is shipped reads, writing and reading again gives the same bytes, and wrong files are
 * refused with the key. */
#include <setjmp.h>
#include <stdarg.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "partition_util.h"

#include "src/model/model.h"

static const char *const machines[] = {"rtx-4090-desktop", "rtx-4060-laptop", "ddr4-cpu-only"};
static const char *const shapes[] = {"mixtral-8x7b", "qwen3-30b-a3b", "llama-1b",
                                     "llama2-13b",   "gpt-oss-20b",   "yoke-tiny-mixtral"};

/* TEXT with the first FROM replaced; the caller frees it. */
static char *replaced(const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    if (!at)
        fail_msg("the text has no %s", from);
    char *out = malloc(strlen(text) + strlen(to) + 1);
    assert_non_null(out);
    sprintf(out, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    return out;
}

static void check_cut(void **state)
{
    (void)state;
    static const struct {
        uint32_t width, block, unit, n, last;
    } rows[] = {{14336, 256, 256, 56, 256}, {2880, 32, 256, 12, 64}, {768, 256, 256, 3, 256},
                {256, 1, 256, 1, 256},      {172, 1, 172, 1, 172},   {192, 1, 192, 1, 192},
                {257, 1, 256, 2, 1},        {0, 32, 0, 0, 0},        {960, 96, 288, 4, 96}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const yk_cut c = yk_cut_units(rows[i].width, rows[i].block);
        assert_int_equal(c.unit, rows[i].unit);
        assert_int_equal(c.n, rows[i].n);
        uint32_t sum = 0;
        for (uint32_t u = 0; u < c.n; u++) {
            assert_int_equal(yk_cut_first(&c, u), sum);
            sum += yk_cut_size(&c, u);
        }
        assert_int_equal(sum, rows[i].width);
        if (c.n)
            assert_int_equal(yk_cut_size(&c, c.n - 1), rows[i].last);
    }
    const yk_cut fine = yk_cut_units_of(172, 1, 32);
    assert_int_equal(fine.n, 6);
    assert_int_equal(yk_cut_size(&fine, 5), 12);
}

static void check_machines(void **state)
{
    (void)state;
    yk_error err = {0};
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++) {
        yk_machine m, again;
        char *a, *b;
        size_t na, nb;
        yk_pt_machine(&m, machines[i]);
        assert_int_equal(yk_machine_write(&m, &a, &na, &err), YK_OK);
        if (yk_machine_read(&again, a, na, &err) != YK_OK)
            fail_msg("%s", err.text);
        assert_int_equal(yk_machine_write(&again, &b, &nb, &err), YK_OK);
        assert_int_equal(na, nb);
        assert_memory_equal(a, b, na);
        assert_memory_equal(&m.rates, &again.rates, sizeof m.rates);
        yk_free(a);
        yk_free(b);
    }
    /* What the reader leaves out stays left out. */
    yk_machine m;
    static const char least[] =
        "{\"format\": 1, \"cpu\": {\"threads\": 2, \"memory_bytes\": 1000000, \"read_bytes_per_s\": 1e10,"
        "\"product_bytes_per_s\": {\"Q4_0\": {\"1\": 8e9}, \"Q9_Z\": 1}}, \"later\": [1]}";
    if (yk_machine_read(&m, least, strlen(least), &err) != YK_OK)
        fail_msg("%s", err.text);
    yk_lane lane;
    yk_lane_resolve(&lane, &m.rates, false);
    assert_true(lane.s_per_byte[YK_TYPE_Q4_K][YK_B_1] == 1 / 8e9);
    assert_true(lane.s_per_byte[YK_TYPE_F32][YK_B_8] == 8 / 8e9);
    assert_true(lane.s_per_byte[YK_TYPE_Q4_0][YK_B_PREFILL] == 1 / 8e9);
}

/* Rules for missing rates: nearest bits per weight, the lower number of two; never faster with more tokens. */
static void check_lane(void **state)
{
    (void)state;
    yk_rates r = {.read_bytes_per_s = 1e10};
    r.product[YK_TYPE_F16][YK_B_1] = 4e9;
    r.product[YK_TYPE_Q8_0][YK_B_1] = 5e9;
    r.product[YK_TYPE_Q8_0][YK_B_4] = 6e9; /* measured faster: noise */
    r.product[YK_TYPE_Q8_0][YK_B_PREFILL] = 1e11;
    r.product[YK_TYPE_Q4_0][YK_B_1] = 7e9;
    yk_lane lane;
    yk_lane_resolve(&lane, &r, false);
    assert_true(lane.s_per_byte[YK_TYPE_F32][YK_B_1] == 1 / 4e9);
    assert_true(lane.s_per_byte[YK_TYPE_Q6_K][YK_B_1] == 1 / 5e9); /* 6.56 bits: 4.5 is 2.06 away, 8.5 is 1.94 */
    assert_true(lane.s_per_byte[YK_TYPE_Q4_K][YK_B_1] == 1 / 7e9);
    assert_true(lane.s_per_byte[YK_TYPE_Q8_0][YK_B_4] == 1 / 5e9);
    assert_true(lane.s_per_byte[YK_TYPE_Q8_0][YK_B_PREFILL] == 1 / 1e11);
    assert_true(lane.attention_s_per_flop > 0 && lane.read_s_per_byte == 1e-10);
    /* Down: not measured as rows; the narrower the slower, where that has been measured. */
    assert_true(yk_lane_down(&lane, YK_TYPE_Q4_0, false, 3) == 1);
    r.down[YK_TYPE_Q8_0][0] = 4e9;
    r.down[YK_TYPE_Q4_0][0] = 3.5e9;
    r.down[YK_TYPE_Q4_0][2] = 1.75e9;
    yk_lane_resolve(&lane, &r, false);
    assert_true(yk_lane_down(&lane, YK_TYPE_Q8_0, false, 2) == 5e9 / 4e9);
    assert_true(yk_lane_down(&lane, YK_TYPE_Q4_0, false, 8) == 2 && yk_lane_down(&lane, YK_TYPE_Q4_0, false, 56) == 2);
    assert_true(yk_lane_down(&lane, YK_TYPE_Q4_0, false, 2) == 4 && yk_lane_down(&lane, YK_TYPE_Q4_0, false, 4) < 3);
    assert_true(fabs(yk_lane_down(&lane, YK_TYPE_Q4_0, false, 1) - 20.0 / 3) < 1e-12 &&
                yk_lane_down(&lane, YK_TYPE_Q4_0, true, 1) == 1);
}

static void check_bad_machines(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *want;
    } rows[] = {
        {"\"format\": 1", "\"format\": 2", "machine.format: 2"},
        {"\"format\": 1,", "", "machine.format: is missing"},
        {"\"format\": 1", "\"format\": 1.5", "machine.format: must be a whole number"},
        {"\"cpu\": {", "\"cpus\": {", "machine.cpu: is missing"},
        {"\"threads\": 16", "\"threads\": 0", "machine.cpu.threads: 0 is out of range"},
        {"\"threads\": 16", "\"threads\": -1", "machine.cpu.threads: -1 is out of range"},
        {"\"memory_bytes\": 68719476736", "\"memory_bytes\": 9007199254740992", "machine.cpu.memory_bytes"},
        {"\"read_bytes_per_s\": 63200000000.0", "\"read_bytes_per_s\": -1", "machine.cpu.read_bytes_per_s: -1 is out of range"},
        {"\"read_bytes_per_s\": 63200000000.0", "\"read_bytes_per_s\": 1e99", "machine.cpu.read_bytes_per_s: 1e+99"},
        {"\"read_bytes_per_s\": 63200000000.0", "\"read_bytes_per_s\": \"fast\"",
         "machine.cpu.read_bytes_per_s: must be a number"},
        {"\"read_bytes_per_s\": 63200000000.0", "\"read_bytes_per_s\": 1e9", "machine.cpu.product_bytes_per_s."},
        {"\"read_bytes_per_s\": 63200000000.0,", "", "machine.cpu.read_bytes_per_s: is missing"},
        {"\"1\": 56880000000", "\"1\": 0", "machine.cpu.product_bytes_per_s.F16.1: 0 is out of range"},
        {"\"1\": 56880000000,", "", "machine.cpu.product_bytes_per_s.F16.1: is missing"},
        {"\"name\": \"cuda:0\"", "\"name\": \"gpu\"", "machine.devices[0].name: \"gpu\""},
        {"\"name\": \"cuda:0\",", "", "machine.devices[0].name: is missing"},
        {"\"launch_ns\": 4000", "\"launch_ns\": -4", "machine.devices[0].launch_ns: -4"},
        {"\"hand_off_ns\": 20000", "\"hand_off_ns\": 1e12", "machine.devices[0].hand_off_ns: 1e+12"},
        {"\"to_device_bytes_per_s\": 25100000000.0", "\"to_device_bytes_per_s\": 1e12",
         "machine.devices[0].link.to_device_bytes_per_s: 1e+12 is faster than the memory"},
        {"\"to_device_bytes_per_s\": 25100000000.0,", "", "machine.devices[0].link.to_device_bytes_per_s: is missing"},
        {"\"link\": {", "\"link\": 3, \"x\": {", "machine.devices[0].link: must be an object"},
        {"\"link\": {", "\"overlap\": {\"cpu_bytes_per_s\": 1e9}, \"link\": {",
         "machine.devices[0].overlap.to_device_bytes_per_s: is missing"},
        {"\"link\": {", "\"overlap\": {\"cpu_bytes_per_s\": 1e9, \"to_device_bytes_per_s\": 5e10}, \"link\": {",
         "machine.devices[0].overlap.to_device_bytes_per_s: 5e+10 is faster than the link alone"},
        {"\"link\": {", "\"overlap\": {\"cpu_bytes_per_s\": 1e11, \"to_device_bytes_per_s\": 5e9}, \"link\": {",
         "machine.devices[0].overlap.cpu_bytes_per_s"},
        {"\"devices\": [", "\"devices\": [1, ", "machine.devices[0]: must be an object"},
        {"\"devices\": [", "\"devices\": [[], ", "machine.devices[0]: must be an object"},
        {"{", "", "machine: line 2"},
        {"{", "[{", "machine: line"},
        {"{", "{\"format\": 1,", "machine: line"}, /* twice */
    };
    size_t n;
    char *text = yk_pt_file("partition/machines/rtx-4090-desktop.json", &n);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        yk_machine m = {.threads = 77};
        yk_error err = {0};
        char *bad = replaced(text, rows[i].from, rows[i].to);
        const yk_status st = yk_machine_read(&m, bad, strlen(bad), &err);
        if (st != YK_ERR_INPUT || !strstr(err.text, rows[i].want))
            fail_msg("%s -> %s: status %d, \"%s\" instead of \"%s\"", rows[i].from, rows[i].to, st, err.text, rows[i].want);
        assert_int_equal(m.threads, 77);
        free(bad);
    }
    yk_free(text);
}

static void check_shapes(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        yk_shape a, b;
        yk_pt_shape(&a, shapes[i], NULL);
        yk_pt_shape(&b, shapes[i], "F16");
        assert_int_equal(strlen(a.id), 16);
        assert_string_not_equal(a.id, b.id);
        for (uint32_t l = 0; l < a.n_layers; l++)
            for (int g = 0; g < YK_PART_N; g++)
                for (uint32_t u = 1; u < a.layers[l].part[g].cut.n; u++) {
                    const yk_shape_part *p = &a.layers[l].part[g];
                    assert_true(yk_shape_units_bytes(p, 0, u) + yk_shape_units_bytes(p, u, p->cut.n - u) ==
                                yk_shape_units_bytes(p, 0, p->cut.n));
                }
        yk_shape_close(&a);
        yk_shape_close(&b);
    }
    /* Published size of the file of this shape: 14336 x 4096 x 3 x 8 x 32 weights of experts and so on; 46.7 G parameters of 2
     * bytes. */
    yk_shape s;
    yk_pt_shape(&s, "mixtral-8x7b", "F16");
    uint64_t bytes = s.embd.bytes + s.head.bytes;
    for (uint32_t l = 0; l < s.n_layers; l++)
        bytes += yk_shape_attn_bytes(&s.layers[l]) + yk_shape_ffn_bytes(&s.layers[l]);
    assert_true(bytes > 93400000000u && bytes < 93420000000u);
    yk_shape_close(&s);
}

/* The file of the repository: its shape and the shape file agree where they must. */
static void check_shape_of_model(void **state)
{
    (void)state;
    char path[4096];
    yk_model *m = NULL;
    yk_error err = {0};
    yk_shape a, b;
    snprintf(path, sizeof path, "%s/models/yoke-tiny-mixtral-q4_k_m.gguf", getenv("YOKE_SOURCE") ? getenv("YOKE_SOURCE") : ".");
    if (yk_model_open(&m, path, NULL, &err) != YK_OK)
        fail_msg("%s", err.text);
    if (yk_shape_from_model(&a, m, NULL, &err) != YK_OK)
        fail_msg("%s", err.text);
    yk_pt_shape(&b, "yoke-tiny-mixtral", NULL);
    uint64_t bytes = a.embd.bytes + (a.tied ? 0 : a.head.bytes) + 4ull * a.n_embd; /* output_norm */
    for (uint32_t l = 0; l < a.n_layers; l++)
        bytes += yk_shape_attn_bytes(&a.layers[l]) + yk_shape_ffn_bytes(&a.layers[l]);
    assert_true(bytes == m->n_weight_bytes);
    assert_string_equal(a.id, b.id);
    assert_true(yk_shape_ffn_bytes(&a.layers[3]) == yk_shape_ffn_bytes(&b.layers[3]));
    assert_true(yk_shape_attn_bytes(&a.layers[3]) == yk_shape_attn_bytes(&b.layers[3]));
    const yk_shape_opts fine = {.cut_unit = 64};
    yk_shape c;
    assert_int_equal(yk_shape_from_model(&c, m, &fine, &err), YK_OK);
    assert_int_equal(c.layers[0].part[YK_PART_EXP].cut.unit, 256); /* down is Q4_K or Q6_K: whole blocks */
    yk_shape_close(&a);
    yk_shape_close(&b);
    yk_shape_close(&c);
    yk_model_close(&m);
}

static void check_bad_shapes(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *want;
    } rows[] = {
        {"\"format\": 1", "\"format\": 9", "shape.format: 9"},
        {"\"n_layers\": 32", "\"n_layers\": 0", "shape.n_layers: 0"},
        {"\"n_layers\": 32", "\"n_layers\": 99999999999", "shape.n_layers: 99999999999"},
        {"\"n_layers\": 32,", "", "shape.n_layers: is missing"},
        {"\"n_embd\": 4096", "\"n_embd\": 4097", "multiples of 32"},
        {"\"n_embd\": 4096", "\"n_embd\": -4096", "shape.n_embd: -4096"},
        {"\"n_kv_heads\": 8", "\"n_kv_heads\": 7", "shape.n_kv_heads: 7 does not divide"},
        {"\"n_used\": 2", "\"n_used\": 9", "shape.n_used: 9"},
        {"\"n_expert_ff\": 14336", "\"n_expert_ff\": 0", "shape.n_expert_ff: is missing"},
        {"\"n_experts\": 8", "\"n_experts\": 0", "shape.n_ff: is missing"},
        {"\"n_experts\": 8", "\"n_experts\": 0, \"n_ff\": 64", "shape.n_experts: is missing"},
        {"\"Q4_K_M\"", "\"Q4\"", "shape.type: \"Q4\""},
    };
    size_t n;
    char *text = yk_pt_file("partition/shapes/mixtral-8x7b.json", &n);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        yk_shape s;
        yk_error err = {0};
        char *bad = replaced(text, rows[i].from, rows[i].to);
        const yk_status st = yk_shape_read(&s, bad, strlen(bad), NULL, NULL, &err);
        if (st != YK_ERR_INPUT || !strstr(err.text, rows[i].want))
            fail_msg("%s: status %d, \"%s\" instead of \"%s\"", rows[i].to, st, err.text, rows[i].want);
        assert_null(s.layers);
        yk_shape_close(&s);
        free(bad);
    }
    static const char huge[] =
        "{\"format\": 1, \"name\": \"x\", \"n_layers\": 4096, \"n_embd\": 1048576, \"n_heads\": 4096, \"n_kv_heads\": 4096,"
        "\"head_dim\": 4096, \"n_vocab\": 1, \"n_ctx_train\": 1, \"n_experts\": 4096, \"n_used\": 1, \"n_expert_ff\": 1048576}";
    yk_shape s;
    yk_error err = {0};
    assert_int_equal(yk_shape_read(&s, huge, strlen(huge), "F32", NULL, &err), YK_ERR_INPUT);
    assert_null(s.layers);
    assert_int_equal(yk_shape_read(&s, text, n, "Q17", NULL, &err), YK_ERR_USAGE);
    yk_free(text);
}

static void check_plan_round_trip(void **state)
{
    (void)state;
    yk_error err = {0};
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++)
        for (size_t k = 2; k < sizeof shapes / sizeof *shapes; k++) {
            yk_machine m;
            yk_shape s;
            yk_plan p, q;
            char *a = NULL, *b = NULL;
            size_t na, nb;
            yk_pt_machine(&m, machines[i]);
            yk_pt_shape(&s, shapes[k], NULL);
            const yk_plan_limits l = yk_pt_limits(&m, 4ull << 30);
            if (yk_plan_solve(&p, &m, &s, &l, &err) != YK_OK || yk_plan_write(&p, &a, &na, &err) != YK_OK ||
                yk_plan_read(&q, a, na, &err) != YK_OK)
                fail_msg("%s", err.text);
            assert_string_equal(p.plan_id, q.plan_id);
            if (yk_plan_check(&q, &s, &l, &err) != YK_OK)
                fail_msg("%s", err.text);
            assert_int_equal(yk_plan_write(&q, &b, &nb, &err), YK_OK);
            assert_string_equal(a, b);
            yk_free(a);
            yk_free(b);
            yk_plan_clear(&p);
            yk_plan_clear(&q);
            yk_shape_close(&s);
        }
}

static void check_names_that_are_not_utf8(void **state)
{
    (void)state;
    yk_machine m;
    yk_plan p = {0};
    yk_error err = {0};
    char *text;
    size_t n;
    yk_pt_machine(&m, "ddr4-cpu-only");
    strcpy(m.cpu, "a\xff\"b");
    assert_int_equal(yk_machine_write(&m, &text, &n, &err), YK_OK);
    assert_non_null(strstr(text, "\"a?\\\"b\""));
    yk_free(text);
    assert_int_equal(yk_plan_init(&p, 1, &err), YK_OK);
    strcpy(p.note, "caf\xc3");
    assert_int_equal(yk_plan_write(&p, &text, &n, &err), YK_OK);
    assert_non_null(strstr(text, "caf?"));
    yk_free(text);
    yk_plan_clear(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_cut),
        cmocka_unit_test(check_machines),
        cmocka_unit_test(check_lane),
        cmocka_unit_test(check_bad_machines),
        cmocka_unit_test(check_shapes),
        cmocka_unit_test(check_shape_of_model),
        cmocka_unit_test(check_bad_shapes),
        cmocka_unit_test(check_plan_round_trip),
        cmocka_unit_test(check_names_that_are_not_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
