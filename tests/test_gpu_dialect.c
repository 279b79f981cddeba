/* What the dialect computes with its own means, in its host form: exact division, e^x, rounding, dp4a, sums over a group. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>

#include "cpu/ref/exp.h"
#include "gpu/kernels/dialect.k.h"

static uint64_t seed = 1;

static uint32_t next(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}

/* A quotient that is up to three units off is put right; one that is right stays. */
static void test_division(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 400000; i++) {
        const float max = yk_bits_f32((next() & 0x7fffffu) | (31u + next() % 220u) << 23); /* quantise: 2^-96 up */
        const float a = i & 1 ? max : 127.0f, b = i & 1 ? 127.0f : max, want = a / b;
        const float off = yk_bits_f32(yk_f32_bits(want) + i / 2 % 7 - 3);
        if (yk_div_fix(a, b, off) != want || yk_div_exact(a, b) != want)
            fail_msg("%a / %a from %a: %a, want %a", a, b, off, yk_div_fix(a, b, off), want);
    }
}

static void test_exp(void **state)
{
    (void)state;
    for (uint64_t u = 0; u < 1ull << 32; u += 9973) {
        const float x = yk_bits_f32((uint32_t)u);
        assert_int_equal(yk_f32_bits(yk_exp(x)), yk_f32_bits(yk_ref_exp(x)));
    }
}

static void test_rounding(void **state)
{
    (void)state;
    static const float in[] = {0.5f, -0.5f, 1.5f, -2.5f, 0.49999997f, -0.49999997f, 126.5f, -127.0f, 0.0f, 2.4999998f};
    static const int out[] = {1, -1, 2, -3, 0, 0, 127, -127, 0, 2};
    for (size_t i = 0; i < sizeof in / sizeof *in; i++)
        assert_int_equal(yk_round_away(in[i]), out[i]);
}

static void test_dp4a(void **state)
{
    (void)state;
    for (int i = 0; i < 10000; i++) {
        int8_t a[4], b[4];
        const uint32_t x = i ? next() : 0x80808080u, y = i ? next() : 0x80808080u;
        memcpy(a, &x, 4);
        memcpy(b, &y, 4);
        assert_int_equal(yk_dp4a(x, y, i), i + a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]);
    }
}

static void test_groups(void **state)
{
    (void)state;
    float s[YK_GROUP], sum = 0, top = -1e9f;
    for (uint32_t i = 0; i < YK_GROUP; i++) {
        s[i] = (float)(int)(next() % 2001) - 1000; /* sums of integers are exact in any order */
        sum += s[i];
        top = s[i] > top ? s[i] : top;
    }
    float copy[YK_GROUP];
    memcpy(copy, s, sizeof s);
    assert_true(yk_group_sum(copy) == sum);
    memcpy(copy, s, sizeof s);
    copy[3] = copy[0] = copy[63] = NAN;
    copy[40] = 5000;
    assert_true(yk_group_max(copy) == 5000);
    memcpy(copy, s, sizeof s);
    assert_true(yk_group_max(copy) == top);
}

static void test_stage(void **state)
{
    (void)state;
    assert_int_equal(yk_stage_at(YK_STAGE_COLS - 1), YK_STAGE_SIZE - 2);
    assert_int_equal(yk_stage_at(32), 33);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_division), cmocka_unit_test(test_exp),
                                       cmocka_unit_test(test_rounding), cmocka_unit_test(test_dp4a),
                                       cmocka_unit_test(test_groups),   cmocka_unit_test(test_stage)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
