#include "partition/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static bool reserve(yk_text *t, size_t more)
{
    size_t need, cap = t->cap ? t->cap : 1024;
    if (t->failed || __builtin_add_overflow(t->n, more + 1, &need)) {
        t->failed = true;
        return false;
    }
    if (need <= t->cap)
        return true;
    while (cap < need)
        cap += cap / 2;
    char *p = yk_realloc(YK_MEM_PLAN, t->p, cap, 1);
    if (!p) {
        t->failed = true;
        return false;
    }
    t->p = p;
    t->cap = cap;
    return true;
}

void yk_text_put(yk_text *t, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    const int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0 || !reserve(t, (size_t)n)) {
        t->failed = true;
        return;
    }
    va_start(ap, fmt);
    vsnprintf(t->p + t->n, (size_t)n + 1, fmt, ap);
    va_end(ap);
    t->n += (size_t)n;
}

static int append(const char *buffer, size_t size, void *data)
{
    yk_text *t = data;
    if (!reserve(t, size))
        return -1;
    memcpy(t->p + t->n, buffer, size);
    t->n += size;
    t->p[t->n] = 0;
    return 0;
}

void yk_text_put_json(yk_text *t, json_t *value)
{
    if (!value || json_dump_callback(value, append, t, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)) != 0)
        t->failed = true;
    json_decref(value);
}

void yk_text_put_string(yk_text *t, const char *s)
{
    char clean[1024];
    json_t *v = json_string(s);
    if (!v) {
        snprintf(clean, sizeof clean, "%s", s);
        for (char *p = clean; *p; p++)
            if ((unsigned char)*p >= 0x80)
                *p = '?';
        v = json_string(clean);
    }
    yk_text_put_json(t, v);
}

const char *yk_text_number(char buf[YK_TEXT_NUMBER], double x)
{
    int places = 2;
    for (double y = x; y < 0.9995 && places < 9 && y > 0; y *= 10)
        places++;
    places = x >= 99.95 ? 0 : x >= 9.995 ? 1 : places;
    snprintf(buf, YK_TEXT_NUMBER, "%.*f", x > 0 ? places : 0, x);
    return buf;
}

void yk_text_percents(const double *share, int n, int *percent)
{
    double sum = 0;
    int given = 0;
    for (int i = 0; i < n; i++) {
        sum += share[i];
        percent[i] = (int)(100 * share[i]);
        given += percent[i];
    }
    /* The largest remainders get what is left. */
    for (int left = (int)(100 * sum + 0.5) - given; left > 0; left--) {
        int most = 0;
        for (int i = 1; i < n; i++)
            most = 100 * share[i] - percent[i] > 100 * share[most] - percent[most] ? i : most;
        percent[most]++;
    }
}

void yk_text_wrap(yk_text *t, const char *words, size_t width, int indent)
{
    size_t column = strspn(words, " ");
    bool first = true;
    yk_text_put(t, "%*s", (int)column, "");
    for (words += column; *words; first = false) {
        size_t n = strcspn(words, " ");
        if (strncmp(words + n, " %", 2) == 0) /* a figure keeps its unit */
            n += 1 + strcspn(words + n + 1, " ");
        if (!first && column + 1 + n > width) {
            yk_text_put(t, "\n%*s", indent, "");
            column = (size_t)indent;
        } else if (!first) {
            yk_text_put(t, " ");
            column++;
        }
        yk_text_put(t, "%.*s", (int)n, words);
        column += n;
        words += n;
        words += *words == ' ';
    }
    yk_text_put(t, "\n");
}

yk_status yk_text_take(yk_text *t, char **out, size_t *n_bytes, const char *what, yk_error *err)
{
    if (t->failed || !reserve(t, 0)) {
        const uint64_t n = t->cap + 1024;
        yk_free(t->p);
        *t = (yk_text){0};
        return yk_fail_memory(err, n, what);
    }
    *out = t->p;
    if (n_bytes)
        *n_bytes = t->n;
    *t = (yk_text){0};
    return YK_OK;
}
