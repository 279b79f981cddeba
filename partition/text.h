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
/* A figure as people write it: three digits before or behind the point at least, never an exponent ("0.741", "41.6", "3360"). */
enum { YK_TEXT_NUMBER = 32 };
const char *yk_text_number(char buf[YK_TEXT_NUMBER], double x);
/* Shares as whole per cent that add up to what the shares add up to; n at most 8. */
void yk_text_percents(const double *share, int n, int *percent);
/* Words of one line, broken before column `width`; lines after the first begin with `indent` spaces, the first with its own. Ends the
 * line. */
void yk_text_wrap(yk_text *t, const char *words, size_t width, int indent);
/* Give the text, NUL-terminated, to the caller (yk_free), or fail with YK_ERR_MEMORY; `t` is empty afterwards. */
yk_status yk_text_take(yk_text *t, char **out, size_t *n_bytes, const char *what, yk_error *err);

#endif
