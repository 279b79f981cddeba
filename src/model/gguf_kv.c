#include "src/model/gguf_read.h"

#include <inttypes.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "GGUF is read in place; this needs a little-endian machine"
#endif

enum {
    MAX_KEY_BYTES = 65535, /* the limit of the format's description */
    MIN_KV_BYTES = 8 + 1 + 4 + 1,
    MAX_PROBES = 1024 /* of a table at most half full; only names made to collide need more */
};

static const uint8_t value_bytes[YK_GGUF_N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

bool yk_cursor_u32(yk_cursor *c, uint32_t *v)
{
    if (yk_cursor_left(c) < sizeof *v)
        return false;
    memcpy(v, c->data + c->pos, sizeof *v);
    c->pos += sizeof *v;
    return true;
}

bool yk_cursor_u64(yk_cursor *c, uint64_t *v)
{
    if (yk_cursor_left(c) < sizeof *v)
        return false;
    memcpy(v, c->data + c->pos, sizeof *v);
    c->pos += sizeof *v;
    return true;
}

bool yk_cursor_str(yk_cursor *c, yk_str *s)
{
    uint64_t n;
    if (!yk_cursor_u64(c, &n))
        return false;
    if (n > yk_cursor_left(c)) {
        c->pos -= sizeof n;
        return false;
    }
    *s = (yk_str){(const char *)c->data + c->pos, n};
    c->pos += n;
    return true;
}

/* Strings of an array: every one is checked before memory for the pointers is taken. */
static yk_status read_strings(yk_gguf_kv *kv, yk_cursor *c, yk_error *err)
{
    const uint64_t start = c->pos;
    yk_str s;
    for (uint64_t i = 0; i < kv->n; i++)
        YK_FAIL_IF(!yk_cursor_str(c, &s), err, YK_ERR_INPUT,
                   "%s: key %.200s: string %" PRIu64 " of %" PRIu64 " at offset %" PRIu64 " runs past the end of file", c->path,
                   kv->key, i, kv->n, c->pos);
    kv->strs = yk_alloc(YK_MEM_RUNTIME, kv->n, sizeof *kv->strs);
    if (!kv->strs)
        return yk_fail_memory(err, kv->n * sizeof *kv->strs, kv->key);
    c->pos = start;
    for (uint64_t i = 0; i < kv->n; i++) {
        kv->strs[i] = c->data + c->pos;
        if (!yk_cursor_str(c, &s))
            return yk_fail(err, YK_ERR_INPUT, "%s: the file changed while it was read", c->path);
    }
    return YK_OK;
}

/* Header of an array: element type and count, with the bytes of fixed-size elements checked against the file. */
static yk_status read_array_head(yk_gguf_kv *kv, yk_cursor *c, yk_error *err)
{
    uint32_t t;
    YK_FAIL_IF(!yk_cursor_u32(c, &t) || !yk_cursor_u64(c, &kv->n), err, YK_ERR_INPUT,
               "%s: key %.200s: truncated array at offset %" PRIu64 " (end of file)", c->path, kv->key, c->pos);
    YK_FAIL_IF(t == YK_GGUF_ARR, err, YK_ERR_INPUT, "%s: key %.200s: nested arrays are not supported", c->path, kv->key);
    YK_FAIL_IF(t >= YK_GGUF_N_TYPES, err, YK_ERR_INPUT, "%s: key %.200s: unknown element type %" PRIu32, c->path, kv->key, t);
    kv->elem_type = (yk_gguf_type)t;
    const uint64_t least = t == YK_GGUF_STR ? 8 : value_bytes[t];
    uint64_t bytes;
    YK_FAIL_IF(!yk_mul_u64(kv->n, least, &bytes) || bytes > yk_cursor_left(c), err, YK_ERR_INPUT,
               "%s: key %.200s: array of %" PRIu64 " elements at offset %" PRIu64 " runs past the end of file", c->path,
               kv->key, kv->n, c->pos);
    return YK_OK;
}

static yk_status read_value(yk_gguf_kv *kv, yk_cursor *c, yk_error *err)
{
    uint32_t t;
    YK_FAIL_IF(!yk_cursor_u32(c, &t), err, YK_ERR_INPUT, "%s: key %.200s: truncated at offset %" PRIu64 " (end of file)",
               c->path, kv->key, c->pos);
    YK_FAIL_IF(t >= YK_GGUF_N_TYPES, err, YK_ERR_INPUT, "%s: key %.200s: unknown value type %" PRIu32, c->path, kv->key, t);
    kv->type = kv->elem_type = (yk_gguf_type)t;
    kv->n = 1;
    if (kv->type == YK_GGUF_ARR)
        YK_TRY(read_array_head(kv, c, err));
    kv->offset = c->pos;
    kv->data = c->data + c->pos;
    if (kv->elem_type != YK_GGUF_STR) {
        const uint64_t bytes = kv->n * value_bytes[kv->elem_type]; /* of arrays checked above, of scalars at most 8 */
        YK_FAIL_IF(bytes > yk_cursor_left(c), err, YK_ERR_INPUT,
                   "%s: key %.200s: truncated at offset %" PRIu64 " (end of file)", c->path, kv->key, c->pos);
        c->pos += bytes;
        return YK_OK;
    }
    if (kv->type == YK_GGUF_ARR)
        return read_strings(kv, c, err);
    yk_str s;
    YK_FAIL_IF(!yk_cursor_str(c, &s), err, YK_ERR_INPUT,
               "%s: key %.200s: string at offset %" PRIu64 " runs past the end of file", c->path, kv->key, c->pos);
    return YK_OK;
}

static yk_status read_kv(yk_gguf_kv *kv, yk_cursor *c, uint64_t i, uint64_t count, yk_error *err)
{
    yk_str key;
    YK_FAIL_IF(!yk_cursor_str(c, &key), err, YK_ERR_INPUT,
               "%s: truncated: the length of key %" PRIu64 " of %" PRIu64 " at offset %" PRIu64 " runs past the end of file",
               c->path, i, count, c->pos);
    YK_FAIL_IF(key.n == 0 || key.n > MAX_KEY_BYTES || memchr(key.p, 0, key.n), err, YK_ERR_INPUT,
               "%s: key %" PRIu64 " before offset %" PRIu64 " is empty, longer than %d bytes or holds a NUL", c->path, i,
               c->pos, MAX_KEY_BYTES);
    kv->key = yk_strndup(YK_MEM_RUNTIME, key.p, key.n);
    if (!kv->key)
        return yk_fail_memory(err, key.n, "a metadata key");
    return read_value(kv, c, err);
}

yk_status yk_kvs_read(yk_kv_list *list, yk_cursor *c, uint64_t count, yk_error *err)
{
    YK_FAIL_IF(count > yk_cursor_left(c) / MIN_KV_BYTES, err, YK_ERR_INPUT,
               "%s: key count %" PRIu64 " at offset 16 cannot fit in the %" PRIu64 " bytes that follow", c->path, count,
               yk_cursor_left(c));
    uint64_t cap = 0;
    for (uint64_t i = 0; i < count; i++) {
        if (list->n == cap) {
            /* Grown with what was really read, so that a large count alone costs nothing. */
            const uint64_t more = cap ? cap * 2 : 64;
            if (more > UINT32_MAX / 4)
                return yk_fail(err, YK_ERR_INPUT, "%s: key count %" PRIu64 " is too large", c->path, count);
            yk_gguf_kv *p = yk_realloc(YK_MEM_RUNTIME, list->kvs, more, sizeof *p);
            if (!p)
                return yk_fail_memory(err, more * sizeof *p, "metadata keys");
            list->kvs = p;
            cap = more;
        }
        list->kvs[list->n] = (yk_gguf_kv){0};
        list->n++; /* counted before it is complete, so that a failure inside frees its parts */
        YK_TRY(read_kv(&list->kvs[list->n - 1], c, i, count, err));
    }
    return YK_OK;
}

void yk_kvs_free(yk_kv_list *list)
{
    for (uint32_t i = 0; i < list->n; i++) {
        yk_free(list->kvs[i].key);
        yk_free(list->kvs[i].strs);
    }
    yk_free(list->kvs);
    *list = (yk_kv_list){0};
}

/* ---- hash tables ---- */

static uint32_t hash_name(const char *s)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (; *s; s++)
        h = (h ^ (uint8_t)*s) * 0x100000001b3u;
    return (uint32_t)(h ^ (h >> 32));
}

yk_status yk_index_build(uint32_t **index, uint32_t *slots, const void *items, uint32_t n, yk_name_fn name, const char *what,
                         const char *path, yk_error *err)
{
    uint64_t want = 16;
    while (want < 2 * (uint64_t)n)
        want *= 2;
    uint32_t *t = yk_alloc(YK_MEM_RUNTIME, want, sizeof *t);
    if (!t)
        return yk_fail_memory(err, want * sizeof *t, "a name table");
    for (uint32_t i = 0; i < n; i++) {
        const char *s = name(items, i);
        uint64_t slot = hash_name(s) & (want - 1);
        uint32_t probes = 0;
        for (; t[slot]; slot = (slot + 1) & (want - 1)) {
            const bool twice = strcmp(name(items, t[slot] - 1), s) == 0;
            if (twice || ++probes > MAX_PROBES) {
                yk_free(t);
                return yk_fail(err, YK_ERR_INPUT,
                               twice ? "%s: %s %.200s is there twice" : "%s: too many colliding names at %s %.200s", path, what,
                               s);
            }
        }
        t[slot] = i + 1;
    }
    *index = t;
    *slots = (uint32_t)want;
    return YK_OK;
}

int64_t yk_index_find(const uint32_t *index, uint32_t slots, const void *items, yk_name_fn name, const char *key)
{
    if (!slots)
        return -1;
    for (uint32_t slot = hash_name(key) & (slots - 1); index[slot]; slot = (slot + 1) & (slots - 1))
        if (strcmp(name(items, index[slot] - 1), key) == 0)
            return (int64_t)index[slot] - 1;
    return -1;
}

/* ---- typed access ---- */

/* Integer element i as a magnitude with a sign. */
static bool int_at(const yk_gguf_kv *kv, uint64_t i, uint64_t *magnitude, bool *negative)
{
    const uint8_t *p = kv->data + i * value_bytes[kv->elem_type];
    uint64_t u = 0;
    memcpy(&u, p, value_bytes[kv->elem_type]);
    int64_t s;
    switch (kv->elem_type) {
    case YK_GGUF_U8:
    case YK_GGUF_U16:
    case YK_GGUF_U32:
    case YK_GGUF_U64:
        *magnitude = u;
        *negative = false;
        return true;
    case YK_GGUF_I8:
        s = (int8_t)(uint8_t)u;
        break;
    case YK_GGUF_I16:
        s = (int16_t)(uint16_t)u;
        break;
    case YK_GGUF_I32:
        s = (int32_t)(uint32_t)u;
        break;
    case YK_GGUF_I64:
        s = (int64_t)u;
        break;
    default:
        return false;
    }
    *negative = s < 0;
    *magnitude = s < 0 ? 0 - (uint64_t)s : (uint64_t)s;
    return true;
}

static yk_status absent(const char *key, bool required, yk_error *err)
{
    return required ? yk_fail(err, YK_ERR_INPUT, "key %.200s is missing", key) : YK_OK;
}

yk_status yk_gguf_get_u32(const yk_gguf *gguf, const char *key, bool required, uint32_t *out, yk_error *err)
{
    const yk_gguf_kv *kv = yk_gguf_find(gguf, key);
    if (!kv)
        return absent(key, required, err);
    uint64_t v = 0;
    bool negative = false;
    YK_FAIL_IF(kv->type == YK_GGUF_ARR || !int_at(kv, 0, &v, &negative), err, YK_ERR_INPUT,
               "key %.200s is of type %s; an integer is needed", key, yk_gguf_type_name(kv));
    YK_FAIL_IF(negative || v > UINT32_MAX, err, YK_ERR_INPUT, "key %.200s is %s%" PRIu64 "; it must be from 0 to %u", key,
               negative ? "-" : "", v, UINT32_MAX);
    *out = (uint32_t)v;
    return YK_OK;
}

yk_status yk_gguf_get_f32(const yk_gguf *gguf, const char *key, bool required, float *out, yk_error *err)
{
    const yk_gguf_kv *kv = yk_gguf_find(gguf, key);
    if (!kv)
        return absent(key, required, err);
    if (kv->type == YK_GGUF_F32) {
        memcpy(out, kv->data, sizeof *out);
        return YK_OK;
    }
    YK_FAIL_IF(kv->type != YK_GGUF_F64, err, YK_ERR_INPUT, "key %.200s is of type %s; a float is needed", key,
               yk_gguf_type_name(kv));
    double d;
    memcpy(&d, kv->data, sizeof d);
    *out = (float)d;
    return YK_OK;
}

yk_status yk_gguf_get_bool(const yk_gguf *gguf, const char *key, bool required, bool *out, yk_error *err)
{
    const yk_gguf_kv *kv = yk_gguf_find(gguf, key);
    if (!kv)
        return absent(key, required, err);
    YK_FAIL_IF(kv->type != YK_GGUF_BOOL, err, YK_ERR_INPUT, "key %.200s is of type %s; a bool is needed", key,
               yk_gguf_type_name(kv));
    *out = *kv->data != 0;
    return YK_OK;
}

static yk_str str_at(const uint8_t *p)
{
    uint64_t n;
    memcpy(&n, p, sizeof n);
    return (yk_str){(const char *)p + sizeof n, n};
}

yk_status yk_gguf_get_str(const yk_gguf *gguf, const char *key, bool required, yk_str *out, yk_error *err)
{
    const yk_gguf_kv *kv = yk_gguf_find(gguf, key);
    if (!kv)
        return absent(key, required, err);
    YK_FAIL_IF(kv->type != YK_GGUF_STR, err, YK_ERR_INPUT, "key %.200s is of type %s; a string is needed", key,
               yk_gguf_type_name(kv));
    *out = str_at(kv->data);
    return YK_OK;
}

yk_str yk_gguf_arr_str(const yk_gguf_kv *kv, uint64_t i)
{
    return str_at(kv->strs[i]);
}

float yk_gguf_arr_f32(const yk_gguf_kv *kv, uint64_t i)
{
    float v;
    memcpy(&v, kv->data + i * sizeof v, sizeof v);
    return v;
}

int64_t yk_gguf_arr_int(const yk_gguf_kv *kv, uint64_t i)
{
    uint64_t v = 0;
    bool negative = false;
    int_at(kv, i, &v, &negative);
    if (negative)
        return (int64_t)(0 - v);
    return v > INT64_MAX ? INT64_MAX : (int64_t)v;
}

const char *yk_gguf_type_name(const yk_gguf_kv *kv)
{
    static const char *const scalar[YK_GGUF_N_TYPES] = {"u8",   "i8",  "u16", "i16", "u32", "i32", "f32",
                                                        "bool", "str", "arr", "u64", "i64", "f64"};
    static const char *const array[YK_GGUF_N_TYPES] = {"[u8]",   "[i8]",  "[u16]", "[i16]", "[u32]", "[i32]", "[f32]",
                                                       "[bool]", "[str]", "[arr]", "[u64]", "[i64]", "[f64]"};
    return kv->type == YK_GGUF_ARR ? array[kv->elem_type] : scalar[kv->type];
}
