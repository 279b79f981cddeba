/* test_dequant.c - dequantised values of every fixture in expected/dequant, bit for bit, at every instruction set level; f16
 * conversions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <jansson.h>

#include "cpu/ops.h"
#include "src/base/half.h"
#include "src/model/types.h"

static char folder[4096];

static int nibble(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Bytes of a string of hex digits; the caller frees. */
static uint8_t *from_hex(const char *text, size_t *n)
{
    const size_t len = strlen(text);
    assert_true(len % 2 == 0 && len > 0);
    uint8_t *out = malloc(len / 2);
    assert_non_null(out);
    for (*n = 0; *n < len / 2; (*n)++) {
        const int hi = nibble(text[2 * *n]), lo = nibble(text[2 * *n + 1]);
        assert_true(hi >= 0 && lo >= 0);
        out[*n] = (uint8_t)(hi << 4 | lo);
    }
    return out;
}

static void check_type(const char *path, bool *seen)
{
    json_error_t why;
    json_t *j = json_load_file(path, 0, &why);
    if (!j)
        fail_msg("%s: %s", path, why.text);
    const yk_type type = yk_type_by_name(json_string_value(json_object_get(j, "type")));
    assert_true(type < YK_TYPE_LIMIT);
    const yk_type_traits *traits = yk_type_get(type);
    assert_int_equal(traits->block_elems, json_integer_value(json_object_get(j, "block_elements")));
    assert_int_equal(traits->block_bytes, json_integer_value(json_object_get(j, "block_bytes")));
    size_t n_raw, n_values;
    uint8_t *raw = from_hex(json_string_value(json_object_get(j, "raw_hex")), &n_raw);
    uint8_t *values = from_hex(json_string_value(json_object_get(j, "values_f32_hex_le")), &n_values);
    const size_t n_blocks = n_raw / traits->block_bytes;
    assert_int_equal(n_values, n_blocks * traits->block_elems * 4);
    for (int isa = 0; isa < YK_ISA_N; isa++) {
        const yk_ops *ops = yk_ops_get((yk_isa)isa);
        /* All blocks at once and one by one: where a call begins must not matter. */
        float *y = malloc(n_values);
        assert_non_null(y);
        memset(y, 0xee, n_values);
        ops->dequant[type](raw, n_blocks * traits->block_elems, y);
        assert_memory_equal(y, values, n_values);
        memset(y, 0xee, n_values);
        for (size_t b = 0; b < n_blocks; b++)
            ops->dequant[type](raw + b * traits->block_bytes, traits->block_elems, y + b * traits->block_elems);
        assert_memory_equal(y, values, n_values);
        free(y);
    }
    seen[type] = true;
    free(raw);
    free(values);
    json_decref(j);
}

static void fixtures_match(void **state)
{
    (void)state;
    bool seen[YK_TYPE_LIMIT] = {false};
    DIR *d = opendir(folder);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        const size_t n = strlen(e->d_name);
        char path[8192];
        if (n < 6 || strcmp(e->d_name + n - 5, ".json") != 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        check_type(path, seen);
    }
    closedir(d);
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
        if (yk_type_get(t) && yk_type_get(t)->quantised && !seen[t])
            fail_msg("no fixture for %s in %s", yk_type_get(t)->name, folder);
}

/* Scales of MXFP4 at the ends of the exponent: powers of two below the smallest normal f32 are exact, 255 is NaN. */
static void mxfp4_extremes(void **state)
{
    (void)state;
    const float twice[16] = {0, 1, 2, 3, 4, 6, 8, 12, -0.0f, -1, -2, -3, -4, -6, -8, -12};
    uint8_t block[17];
    float y[32];
    for (int i = 0; i < 16; i++)
        block[1 + i] = (uint8_t)(i | (15 - i) << 4);
    for (int e = 0; e < 255; e++) {
        block[0] = (uint8_t)e;
        yk_ops_get(YK_ISA_REF)->dequant[YK_TYPE_MXFP4](block, 32, y);
        for (int i = 0; i < 32; i++) {
            const int code = i < 16 ? i : 15 - (i - 16);
            const float want = (float)__builtin_ldexp((double)twice[code], e - 128);
            assert_int_equal(yk_f32_bits(y[i]), yk_f32_bits(want));
        }
    }
    block[0] = 255;
    yk_ops_get(YK_ISA_REF)->dequant[YK_TYPE_MXFP4](block, 32, y);
    for (int i = 0; i < 32; i++)
        assert_true((yk_f32_bits(y[i]) & 0x7fffffff) > 0x7f800000);
}

/* All 65536 halves against their definition, and back. */
static void f16_exact(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        const uint32_t e = h >> 10 & 31, m = h & 1023;
        const float f = yk_f16_to_f32((uint16_t)h);
        if (e == 31 && m) {
            assert_true(f != f);
            const uint16_t back = yk_f32_to_f16(f);
            assert_true((back & 0x7c00) == 0x7c00 && (back & 0x3ff) != 0);
            continue;
        }
        const double size = e == 31 ? (double)__builtin_inff()
                            : e     ? __builtin_ldexp(1024.0 + m, (int)e - 25)
                                    : __builtin_ldexp(m, -24);
        assert_int_equal(yk_f32_bits(f), yk_f32_bits((float)((h & 0x8000) ? -size : size)));
        assert_int_equal(yk_f32_to_f16(f), h);
    }
}

/* Between two neighbouring halves: below, at and above the middle; ties go to the even one. */
static void f16_rounds_to_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        const double lo = yk_f16_to_f32((uint16_t)h);
        const double hi = h == 0x7bff ? 65536.0 : yk_f16_to_f32((uint16_t)(h + 1));
        const float mid = (float)((lo + hi) / 2); /* exact: one bit more than a half has */
        const uint32_t even = h & 1 ? h + 1 : h;
        assert_int_equal(yk_f32_to_f16(mid), even);
        assert_int_equal(yk_f32_to_f16(-mid), even | 0x8000);
        assert_int_equal(yk_f32_to_f16(yk_bits_f32(yk_f32_bits(mid) - 1)), h);
        assert_int_equal(yk_f32_to_f16(yk_bits_f32(yk_f32_bits(mid) + 1)), h + 1);
    }
    assert_int_equal(yk_f32_to_f16(1e30f), 0x7c00);
    assert_int_equal(yk_f32_to_f16(-__builtin_inff()), 0xfc00);
    assert_int_equal(yk_f32_to_f16(0x1p-140f), 0);
}

static void bf16_rounds_to_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7f80; h++) {
        const uint32_t f = h << 16;
        assert_int_equal(yk_f32_bits(yk_bf16_to_f32((uint16_t)h)), f);
        assert_int_equal(yk_f32_to_bf16(yk_bits_f32(f)), h);
        assert_int_equal(yk_f32_to_bf16(yk_bits_f32(f | 0x7fff)), h);
        assert_int_equal(yk_f32_to_bf16(yk_bits_f32(f | 0x8000)), h & 1 ? h + 1 : h);
        assert_int_equal(yk_f32_to_bf16(yk_bits_f32(f | 0x8001)), h + 1);
    }
    const uint16_t nan = yk_f32_to_bf16(yk_bits_f32(0x7f800001));
    assert_true((nan & 0x7f80) == 0x7f80 && (nan & 0x7f));
}

int main(void)
{
    const struct CMUnitTest always[] = {cmocka_unit_test(f16_exact), cmocka_unit_test(f16_rounds_to_even),
                                        cmocka_unit_test(bf16_rounds_to_even), cmocka_unit_test(mxfp4_extremes)};
    const struct CMUnitTest fixtures[] = {cmocka_unit_test(fixtures_match)};
    const int failed = cmocka_run_group_tests(always, NULL, NULL);
    if (failed)
        return 1;
    const char *root = getenv("YOKE_FIXTURES");
    snprintf(folder, sizeof folder, "%s/expected/dequant", root ? root : "");
    DIR *d = root ? opendir(folder) : NULL;
    if (!d) {
        printf("SKIP: no fixtures in '%s' (meson option `fixtures`)\n", folder);
        return 77;
    }
    closedir(d);
    return cmocka_run_group_tests(fixtures, NULL, NULL) ? 1 : 0;
}
