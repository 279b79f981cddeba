/* The GGUF reader: every value type, both versions, alignments, split sets, and refusals with the offender's name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/gguf_build.h"

static const char *fixtures;

static void open_ok(yk_gguf *g, gb_file *f, gb_buf *image, bool vocab_only)
{
    yk_error err = {0};
    *image = gb_finish(f);
    if (yk_gguf_open_memory(g, image->p, image->n, vocab_only, &err) != YK_OK)
        fail_msg("%s", err.text);
}

/* The image must be refused with a message that holds `word`. */
static void refused_image(const uint8_t *p, size_t n, const char *word)
{
    yk_gguf g;
    yk_error err = {0};
    const uint64_t live = yk_mem_live(YK_MEM_RUNTIME);
    assert_int_equal(yk_gguf_open_memory(&g, p, n, false, &err), YK_ERR_INPUT);
    if (!strstr(err.text, word))
        fail_msg("\"%s\" does not name \"%s\"", err.text, word);
    assert_int_equal(yk_mem_live(YK_MEM_RUNTIME), live);
}

static void refused(gb_file *f, const char *word)
{
    gb_buf b = gb_finish(f);
    refused_image(b.p, b.n, word);
    free(b.p);
    gb_free(f);
}

static void small_file(gb_file *f)
{
    static const float data[64] = {1, 2, 3};
    gb_init(f);
    gb_str(f, "general.architecture", "llama");
    gb_tensor_add(f, "a", YK_TYPE_F32, 2, (uint64_t[]){8, 4}, data, 128);
    gb_tensor_add(f, "b", YK_TYPE_F16, 1, (uint64_t[]){3}, data, 6);
}

static void test_types(void **state)
{
    (void)state;
    assert_string_equal(yk_type_get(YK_TYPE_Q4_K)->name, "Q4_K");
    assert_null(yk_type_get(4));
    assert_null(yk_type_get(4000000000u));
    assert_int_equal(yk_type_by_name("mxfp4"), YK_TYPE_MXFP4);
    assert_int_equal(yk_type_by_name("Q4_2"), YK_TYPE_LIMIT);
    uint64_t n;
    assert_true(yk_type_row_bytes(YK_TYPE_Q6_K, 512, &n));
    assert_int_equal(n, 420);
    assert_false(yk_type_row_bytes(YK_TYPE_Q6_K, 511, &n));
    assert_false(yk_type_row_bytes(YK_TYPE_F32, UINT64_MAX / 2, &n));
    assert_false(yk_type_row_bytes(YK_TYPE_LIMIT, 32, &n));
}

static void test_scalars(void **state)
{
    (void)state;
    gb_file f;
    small_file(&f);
    const uint8_t u8 = 200;
    const int8_t i8 = -3;
    const uint16_t u16 = 65535;
    const int16_t i16 = 300;
    const int32_t i32 = INT32_MIN;
    const uint64_t u64 = 1ull << 40;
    const int64_t i64 = INT64_MIN;
    const double f64 = 2.5;
    gb_kv(&f, "u8", YK_GGUF_U8, &u8, 1);
    gb_kv(&f, "i8", YK_GGUF_I8, &i8, 1);
    gb_kv(&f, "u16", YK_GGUF_U16, &u16, 2);
    gb_kv(&f, "i16", YK_GGUF_I16, &i16, 2);
    gb_u32(&f, "u32", UINT32_MAX);
    gb_kv(&f, "i32", YK_GGUF_I32, &i32, 4);
    gb_kv(&f, "u64", YK_GGUF_U64, &u64, 8);
    gb_kv(&f, "i64", YK_GGUF_I64, &i64, 8);
    gb_f32(&f, "f32", -1.25f);
    gb_kv(&f, "f64", YK_GGUF_F64, &f64, 8);
    gb_bool(&f, "yes", true);
    gb_str(&f, "str", "h\xc3\xa4");
    yk_gguf g;
    gb_buf b;
    open_ok(&g, &f, &b, false);
    yk_error err;
    uint32_t u = 7;
    float x = 0;
    bool flag = false;
    yk_str s = {0};
    assert_int_equal(yk_gguf_get_u32(&g, "u8", true, &u, &err), YK_OK);
    assert_int_equal(u, 200);
    assert_int_equal(yk_gguf_get_u32(&g, "u16", true, &u, &err), YK_OK);
    assert_int_equal(u, 65535);
    assert_int_equal(yk_gguf_get_u32(&g, "i16", true, &u, &err), YK_OK);
    assert_int_equal(u, 300);
    assert_int_equal(yk_gguf_get_u32(&g, "u32", true, &u, &err), YK_OK);
    assert_int_equal(u, UINT32_MAX);
    static const char *const out_of_range[] = {"i8", "i32", "u64", "i64", "f32", "yes", "str"};
    for (size_t i = 0; i < sizeof out_of_range / sizeof out_of_range[0]; i++) {
        assert_int_equal(yk_gguf_get_u32(&g, out_of_range[i], false, &u, &err), YK_ERR_INPUT);
        assert_non_null(strstr(err.text, out_of_range[i]));
    }
    assert_int_equal(u, UINT32_MAX);
    assert_int_equal(yk_gguf_get_u32(&g, "none", false, &u, &err), YK_OK);
    assert_int_equal(yk_gguf_get_u32(&g, "none", true, &u, &err), YK_ERR_INPUT);
    assert_non_null(strstr(err.text, "none"));
    assert_int_equal(yk_gguf_get_f32(&g, "f32", true, &x, &err), YK_OK);
    assert_true(x == -1.25f);
    assert_int_equal(yk_gguf_get_f32(&g, "f64", true, &x, &err), YK_OK);
    assert_true(x == 2.5f);
    assert_int_equal(yk_gguf_get_f32(&g, "u8", true, &x, &err), YK_ERR_INPUT);
    assert_int_equal(yk_gguf_get_bool(&g, "yes", true, &flag, &err), YK_OK);
    assert_true(flag);
    assert_int_equal(yk_gguf_get_bool(&g, "u8", true, &flag, &err), YK_ERR_INPUT);
    assert_int_equal(yk_gguf_get_str(&g, "str", true, &s, &err), YK_OK);
    assert_int_equal(s.n, 3);
    assert_memory_equal(s.p, "h\xc3\xa4", 3);
    assert_int_equal(yk_gguf_arr_int(yk_gguf_find(&g, "i64"), 0), INT64_MIN);
    assert_int_equal(yk_gguf_arr_int(yk_gguf_find(&g, "i32"), 0), INT32_MIN);
    assert_string_equal(yk_gguf_type_name(yk_gguf_find(&g, "i8")), "i8");
    yk_gguf_close(&g);
    free(b.p);
    gb_free(&f);
}

static void test_arrays(void **state)
{
    (void)state;
    gb_file f;
    small_file(&f);
    const int16_t ints[3] = {-5, 0, 7};
    const float floats[2] = {0.5f, -2};
    gb_buf strs = {0};
    gb_put_str(&strs, "one");
    gb_put_str(&strs, "");
    gb_put_str(&strs, "three");
    gb_arr(&f, "ints", YK_GGUF_I16, ints, 3, sizeof ints);
    gb_arr(&f, "floats", YK_GGUF_F32, floats, 2, sizeof floats);
    gb_arr(&f, "strs", YK_GGUF_STR, strs.p, 3, strs.n);
    gb_arr(&f, "nothing", YK_GGUF_STR, NULL, 0, 0);
    yk_gguf g;
    gb_buf b;
    open_ok(&g, &f, &b, false);
    const yk_gguf_kv *kv = yk_gguf_find(&g, "ints");
    assert_int_equal(kv->n, 3);
    assert_int_equal(yk_gguf_arr_int(kv, 0), -5);
    assert_int_equal(yk_gguf_arr_int(kv, 2), 7);
    assert_string_equal(yk_gguf_type_name(kv), "[i16]");
    assert_true(yk_gguf_arr_f32(yk_gguf_find(&g, "floats"), 1) == -2.0f);
    kv = yk_gguf_find(&g, "strs");
    assert_int_equal(yk_gguf_arr_str(kv, 1).n, 0);
    assert_int_equal(yk_gguf_arr_str(kv, 2).n, 5);
    assert_memory_equal(yk_gguf_arr_str(kv, 2).p, "three", 5);
    assert_int_equal(yk_gguf_find(&g, "nothing")->n, 0);
    uint32_t u;
    assert_int_equal(yk_gguf_get_u32(&g, "ints", true, &u, NULL), YK_ERR_INPUT);
    yk_gguf_close(&g);
    free(b.p);
    free(strs.p);
    gb_free(&f);
}

/* Both versions and every alignment give the same tensors. */
static void test_alignments(void **state)
{
    (void)state;
    for (uint32_t alignment = 1; alignment <= 4096; alignment *= 2)
        for (uint32_t version = 2; version <= 3; version++) {
            gb_file f;
            small_file(&f);
            f.alignment = alignment;
            f.version = version;
            yk_gguf g;
            gb_buf b;
            open_ok(&g, &f, &b, false);
            assert_int_equal(g.version, version);
            assert_int_equal(g.alignment, alignment);
            const yk_gguf_tensor *t = yk_gguf_find_tensor(&g, "b");
            assert_int_equal(t->offset % alignment, 0);
            assert_int_equal(t->n_elems, 3);
            assert_int_equal(t->n_bytes, 6);
            assert_memory_equal(t->data, f.tensors[1].data, 6);
            assert_memory_equal(yk_gguf_find_tensor(&g, "a")->data, f.tensors[0].data, 128);
            assert_null(yk_gguf_find_tensor(&g, "c"));
            yk_gguf_close(&g);
            free(b.p);
            gb_free(&f);
        }
}

static void test_refusals(void **state)
{
    (void)state;
    gb_file f;
    small_file(&f);
    gb_u32(&f, "general.architecture", 1);
    refused(&f, "key general.architecture is there twice");
    small_file(&f);
    gb_tensor_add(&f, "a", YK_TYPE_F32, 1, (uint64_t[]){1}, "abcd", 4);
    refused(&f, "tensor a is there twice");
    small_file(&f);
    f.tensors[1].type = 36;
    refused(&f, "IQ4_NL repacked");
    small_file(&f);
    f.tensors[0].type = YK_TYPE_Q8_0;
    refused(&f, "tensor a: rows of 8 elements are not whole Q8_0 blocks");
    small_file(&f);
    f.tensors[1].ne[0] = 1000;
    refused(&f, "tensor b: its data");
    small_file(&f);
    f.tensors[1].n_dims = 0;
    refused(&f, "tensor b: 0 dimensions");
    small_file(&f);
    gb_u32(&f, "general.alignment", 33);
    refused(&f, "general.alignment is 33");
    small_file(&f);
    gb_str(&f, "general.alignment", "32");
    refused(&f, "general.alignment");
    small_file(&f);
    gb_u32(&f, "", 1);
    refused(&f, "key 1");
    small_file(&f);
    gb_u32(&f, "split.count", 2);
    refused(&f, "split.count is 2");
    gb_init(&f);
    gb_str(&f, "general.architecture", "llama");
    refused(&f, "no tensor");
}

/* Tensors may lie in any order and with gaps, but may not share a byte. */
static void test_overlap(void **state)
{
    (void)state;
    gb_file f;
    small_file(&f);
    gb_buf b = gb_finish(&f);
    uint8_t *last = b.p + b.n - 128 - 32 - 8; /* near the end of the table: offset of tensor b */
    while (memcmp(last, "\x80\0\0\0\0\0\0\0", 8) != 0)
        last--;
    const uint64_t inside = 96;
    memcpy(last, &inside, sizeof inside);
    refused_image(b.p, b.n, "tensors a and b overlap");
    free(b.p);
    gb_free(&f);
}

/* Every prefix of a file is refused, and every byte changed one at a time does no harm. */
static void test_damage(void **state)
{
    (void)state;
    gb_file f;
    small_file(&f);
    const float floats[2] = {0.5f, -2};
    gb_buf strs = {0};
    gb_put_str(&strs, "one");
    gb_put_str(&strs, "two");
    gb_arr(&f, "floats", YK_GGUF_F32, floats, 2, sizeof floats);
    gb_arr(&f, "strs", YK_GGUF_STR, strs.p, 2, strs.n);
    gb_buf b = gb_finish(&f);
    const size_t data_end = b.n - 26; /* padding behind tensor b */
    for (size_t n = 0; n < data_end; n++) {
        uint8_t *cut = malloc(n ? n : 1); /* its own block, so that the sanitizer sees a read behind it */
        memcpy(cut, b.p, n);
        refused_image(cut, n, "(memory)");
        free(cut);
    }
    static const uint8_t values[] = {0, 1, 2, 8, 9, 32, 127, 128, 255};
    for (size_t i = 0; i < b.n; i++)
        for (size_t v = 0; v < sizeof values; v++) {
            const uint8_t old = b.p[i];
            b.p[i] = values[v];
            yk_gguf g;
            if (yk_gguf_open_memory(&g, b.p, b.n, false, NULL) == YK_OK)
                yk_gguf_close(&g);
            b.p[i] = old;
        }
    free(b.p);
    free(strs.p);
    gb_free(&f);
}

static void test_vocab_only(void **state)
{
    (void)state;
    gb_file f;
    gb_init(&f);
    gb_str(&f, "general.architecture", "falcon");
    yk_gguf g;
    gb_buf b;
    open_ok(&g, &f, &b, true);
    assert_int_equal(g.n_tensors, 0);
    assert_null(yk_gguf_find_tensor(&g, "a"));
    yk_gguf_close(&g);
    free(b.p);
    gb_free(&f);
}

/* ---- split sets ---- */

enum { PARTS = 3 };

static void part_name(char *buf, size_t cap, const char *dir, int no)
{
    snprintf(buf, cap, "%s/m-%05d-of-%05d.gguf", dir, no + 1, PARTS);
}

static void write_parts(const yk_gguf *from, const char *dir, int total_off)
{
    uint32_t first = 0;
    for (int i = 0; i < PARTS; i++) {
        gb_file f;
        gb_init(&f);
        if (i == 0)
            gb_copy_kvs(&f, from, NULL, 0);
        f.alignment = i == 1 ? 64 : 32; /* each part has its own */
        const uint16_t no = (uint16_t)i, count = PARTS;
        const int32_t total = (int32_t)from->n_tensors + total_off;
        gb_kv(&f, "split.no", YK_GGUF_U16, &no, 2);
        gb_kv(&f, "split.count", YK_GGUF_U16, &count, 2);
        gb_kv(&f, "split.tensors.count", YK_GGUF_I32, &total, 4);
        const uint32_t n = i + 1 < PARTS ? from->n_tensors / PARTS : from->n_tensors - first;
        gb_copy_tensors(&f, from, first, n);
        first += n;
        char path[512];
        part_name(path, sizeof path, dir, i);
        gb_save(&f, path);
        gb_free(&f);
    }
}

static void refused_set(const char *path, const char *word)
{
    yk_gguf g;
    yk_error err = {0};
    assert_int_equal(yk_gguf_open(&g, path, false, &err), YK_ERR_INPUT);
    if (!strstr(err.text, word))
        fail_msg("\"%s\" does not name \"%s\"", err.text, word);
}

static void test_split(void **state)
{
    (void)state;
    char path[512], other[512], third[512], dir[] = "split-XXXXXX";
    if (!fixtures)
        skip();
    yk_gguf whole, g;
    yk_error err = {0};
    snprintf(path, sizeof path, "%s/w256-llama-f16.gguf", fixtures);
    assert_int_equal(yk_gguf_open(&whole, path, false, &err), YK_OK);
    assert_non_null(mkdtemp(dir));
    write_parts(&whole, dir, 0);
    part_name(path, sizeof path, dir, 0);
    part_name(other, sizeof other, dir, 1);
    part_name(third, sizeof third, dir, 2);
    if (yk_gguf_open(&g, path, false, &err) != YK_OK)
        fail_msg("%s", err.text);
    assert_int_equal(g.n_files, PARTS);
    assert_int_equal(g.n_tensors, whole.n_tensors);
    uint32_t seen[PARTS] = {0};
    for (uint32_t i = 0; i < g.n_tensors; i++) {
        const yk_gguf_tensor *t = yk_gguf_find_tensor(&g, whole.tensors[i].name);
        assert_non_null(t);
        assert_ptr_equal(t, &g.tensors[i]);
        assert_memory_equal(t->data, whole.tensors[i].data, t->n_bytes);
        assert_memory_equal(t->data, g.maps[t->file].data + t->offset, t->n_bytes);
        seen[t->file]++;
    }
    for (int i = 0; i < PARTS; i++)
        assert_true(seen[i] > 0);
    yk_gguf_close(&g);
    refused_set(other, "part 2 of 3");
    write_parts(&whole, dir, 1);
    refused_set(path, "split.tensors.count");
    write_parts(&whole, dir, 0);
    rename(third, other); /* part 3 under the name of part 2 */
    refused_set(path, "m-00002-of-00003.gguf: its keys split.no");
    unlink(other);
    refused_set(path, "m-00002-of-00003.gguf");
    char renamed[512];
    snprintf(renamed, sizeof renamed, "%s/first.gguf", dir);
    rename(path, renamed);
    refused_set(renamed, "-00001-of-00003.gguf");
    unlink(renamed);
    rmdir(dir);
    yk_gguf_close(&whole);
}

static void test_files(void **state)
{
    (void)state;
    refused_set("/nonexistent/x.gguf", "/nonexistent/x.gguf");
    refused_set("/", "directory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),      cmocka_unit_test(test_scalars),    cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_alignments), cmocka_unit_test(test_refusals),   cmocka_unit_test(test_overlap),
        cmocka_unit_test(test_damage),     cmocka_unit_test(test_vocab_only), cmocka_unit_test(test_split),
        cmocka_unit_test(test_files),
    };
    fixtures = gb_fixtures();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
