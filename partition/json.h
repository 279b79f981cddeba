/* json.h - reading JSON with the key's path in every message. Keys that are not asked for are ignored. */
#ifndef YK_PARTITION_JSON_H
#define YK_PARTITION_JSON_H

#include <jansson.h>

#include "src/base/status.h"

typedef struct yk_jv {
    const json_t *v; /* borrowed; NULL: an optional key that is absent */
    yk_error *err;
    char path[200]; /* "plan.layers[3].slices[2]" */
} yk_jv;

/* Parse a whole text of n_bytes; *root is to be released with json_decref. `what` is the path's beginning: "machine".
 * YK_ERR_INPUT with line and column. */
yk_status yk_json_parse(json_t **root, yk_jv *out, const char *text, size_t n_bytes, const char *what, yk_error *err);

/* "PATH: MESSAGE" as YK_ERR_INPUT; yk_json_fail_key: "PATH.KEY: MESSAGE". */
yk_status yk_json_fail(const yk_jv *at, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
yk_status yk_json_fail_key(const yk_jv *at, const char *key, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Members of an object. Required ones that are absent fail; optional ones leave *out as it is (for yk_json_member: v NULL).
 * null counts as absent. Numbers must lie in [min, max]. */
typedef enum yk_json_need { YK_JSON_OPTIONAL, YK_JSON_REQUIRED } yk_json_need;
yk_status yk_json_member(const yk_jv *at, const char *key, json_type type, yk_json_need need, yk_jv *out);
yk_status yk_json_f64(const yk_jv *at, const char *key, double min, double max, yk_json_need need, double *out);
yk_status yk_json_u64(const yk_jv *at, const char *key, uint64_t min, uint64_t max, yk_json_need need, uint64_t *out);
yk_status yk_json_u32(const yk_jv *at, const char *key, uint32_t min, uint32_t max, yk_json_need need, uint32_t *out);
yk_status yk_json_bool(const yk_jv *at, const char *key, yk_json_need need, bool *out);
/* Copied with a NUL into out[cap]. */
yk_status yk_json_text(const yk_jv *at, const char *key, size_t cap, yk_json_need need, char *out);

/* Element of an array that must have the type. */
yk_status yk_json_element(const yk_jv *at, size_t index, json_type type, yk_jv *out);

/* `format` must be `version`. */
yk_status yk_json_format(const yk_jv *at, uint32_t version);

#endif
