#include "partition/json.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const char *type_name(json_type type)
{
    switch (type) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_TRUE:
    case JSON_FALSE:
        return "true or false";
    default:
        return "a number";
    }
}

static bool is_type(const json_t *v, json_type type)
{
    switch (type) {
    case JSON_TRUE:
    case JSON_FALSE:
        return json_is_boolean(v);
    case JSON_REAL:
    case JSON_INTEGER:
        return json_is_number(v);
    default:
        return json_typeof(v) == type;
    }
}

yk_status yk_json_fail(const yk_jv *at, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return yk_fail(at->err, YK_ERR_INPUT, "%s: %s", at->path, text);
}

yk_status yk_json_fail_key(const yk_jv *at, const char *key, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return yk_fail(at->err, YK_ERR_INPUT, "%s.%s: %s", at->path, key, text);
}

yk_status yk_json_parse(json_t **root, yk_jv *out, const char *text, size_t n_bytes, const char *what, yk_error *err)
{
    json_error_t e;
    *out = (yk_jv){.err = err};
    snprintf(out->path, sizeof out->path, "%s", what);
    *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &e);
    if (!*root && json_error_code(&e) == json_error_out_of_memory)
        return yk_fail_memory(err, n_bytes, "the JSON text");
    YK_FAIL_IF(!*root, err, YK_ERR_INPUT, "%s: line %d, column %d: %s", what, e.line, e.column, e.text);
    out->v = *root;
    if (!json_is_object(*root)) {
        const yk_status st = yk_json_fail(out, "must be an object");
        json_decref(*root);
        *root = NULL;
        return st;
    }
    return YK_OK;
}

/* A path that is too long loses its beginning, which matters least. */
static void set_path(yk_jv *out, const yk_jv *at, const char *tail)
{
    char full[512];
    const size_t n = (size_t)snprintf(full, sizeof full, "%s%s", at->path, tail), cap = sizeof out->path - 1;
    const size_t len = n < sizeof full ? n : sizeof full - 1, from = len > cap ? len - cap : 0;
    memcpy(out->path, full + from, len - from);
    out->path[len - from] = 0;
}

static yk_status check_type(const yk_jv *at, json_type type)
{
    return is_type(at->v, type) ? YK_OK : yk_json_fail(at, "must be %s", type_name(type));
}

yk_status yk_json_member(const yk_jv *at, const char *key, json_type type, yk_json_need need, yk_jv *out)
{
    char tail[160];
    yk_jv r = {.v = json_object_get(at->v, key), .err = at->err};
    snprintf(tail, sizeof tail, ".%s", key);
    set_path(&r, at, tail);
    if (r.v && json_is_null(r.v))
        r.v = NULL;
    if (r.v)
        YK_TRY(check_type(&r, type));
    else if (need == YK_JSON_REQUIRED)
        return yk_json_fail(&r, "is missing; it must be %s", type_name(type));
    *out = r;
    return YK_OK;
}

yk_status yk_json_element(const yk_jv *at, size_t index, json_type type, yk_jv *out)
{
    char tail[32];
    yk_jv r = {.v = json_array_get(at->v, index), .err = at->err};
    snprintf(tail, sizeof tail, "[%zu]", index);
    set_path(&r, at, tail);
    YK_TRY(check_type(&r, type));
    *out = r;
    return YK_OK;
}

yk_status yk_json_f64(const yk_jv *at, const char *key, double min, double max, yk_json_need need, double *out)
{
    yk_jv m;
    YK_TRY(yk_json_member(at, key, JSON_REAL, need, &m));
    if (!m.v)
        return YK_OK;
    const double x = json_number_value(m.v);
    if (!(x >= min && x <= max))
        return yk_json_fail(&m, "%g is out of range, %g to %g is possible", x, min, max);
    *out = x;
    return YK_OK;
}

yk_status yk_json_u64(const yk_jv *at, const char *key, uint64_t min, uint64_t max, yk_json_need need, uint64_t *out)
{
    yk_jv m;
    YK_TRY(yk_json_member(at, key, JSON_INTEGER, need, &m));
    if (!m.v)
        return YK_OK;
    if (!json_is_integer(m.v))
        return yk_json_fail(&m, "must be a whole number");
    const json_int_t x = json_integer_value(m.v);
    if (x < 0 || (uint64_t)x < min || (uint64_t)x > max)
        return yk_json_fail(&m, "%" JSON_INTEGER_FORMAT " is out of range, %" PRIu64 " to %" PRIu64 " is possible", x, min,
                            max);
    *out = (uint64_t)x;
    return YK_OK;
}

yk_status yk_json_u32(const yk_jv *at, const char *key, uint32_t min, uint32_t max, yk_json_need need, uint32_t *out)
{
    uint64_t x = *out;
    YK_TRY(yk_json_u64(at, key, min, max, need, &x));
    *out = (uint32_t)x;
    return YK_OK;
}

yk_status yk_json_bool(const yk_jv *at, const char *key, yk_json_need need, bool *out)
{
    yk_jv m;
    YK_TRY(yk_json_member(at, key, JSON_TRUE, need, &m));
    if (m.v)
        *out = json_is_true(m.v);
    return YK_OK;
}

yk_status yk_json_text(const yk_jv *at, const char *key, size_t cap, yk_json_need need, char *out)
{
    yk_jv m;
    YK_TRY(yk_json_member(at, key, JSON_STRING, need, &m));
    if (!m.v)
        return YK_OK;
    const size_t n = json_string_length(m.v);
    if (n >= cap)
        return yk_json_fail(&m, "has %zu bytes, at most %zu are possible", n, cap - 1);
    memcpy(out, json_string_value(m.v), n + 1);
    for (char *p = out; *p; p++) /* notes and names are shown on a terminal, in one line */
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    return YK_OK;
}

yk_status yk_json_format(const yk_jv *at, uint32_t version)
{
    uint64_t f = 0;
    YK_TRY(yk_json_u64(at, "format", 0, INT64_MAX, YK_JSON_REQUIRED, &f));
    if (f != version)
        return yk_json_fail_key(at, "format", "%" PRIu64 " is not known; this version reads format %u", f, version);
    return YK_OK;
}
