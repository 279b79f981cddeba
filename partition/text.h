/* text.h - a growing text. A failure (no memory) sticks and is seen when the text is taken. */
#ifndef YK_PARTITION_TEXT_H
#define YK_PARTITION_TEXT_H

#include <jansson.h>

#include "src/base/mem.h"

typedef struct yk_text {
    char *p; /* from yk_alloc */
    size_t n, cap;
    bool failed;
} yk_text;

void yk_text_put(yk_text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* A JSON value on one line; `value` is consumed, NULL makes the text fail. Reals have 9 digits, so reading and writing again
 * gives the same bytes. */
void yk_text_put_json(yk_text *t, json_t *value);
/* A string; bytes of one that is not UTF-8 become '?'. */
void yk_text_put_string(yk_text *t, const char *s);
/* Give the text, NUL-terminated, to the caller (yk_free), or fail with YK_ERR_MEMORY; `t` is empty afterwards. */
yk_status yk_text_take(yk_text *t, char **out, size_t *n_bytes, const char *what, yk_error *err);

#endif
