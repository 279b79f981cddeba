/* json.c - what the commands with -o json share. */
#include "cli.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* Length of the UTF-8 character at text, 0 when it is none. The ranges of table 3-7 of the Unicode standard. */
static size_t utf8_length(const unsigned char *text, size_t n)
{
    unsigned char c = text[0], low = 0x80, high = 0xbf;
    size_t len = c < 0x80 ? 1 : c >= 0xc2 && c <= 0xdf ? 2 : c >= 0xe0 && c <= 0xef ? 3 : c >= 0xf0 && c <= 0xf4 ? 4 : 0;
    if (len < 2)
        return len;
    if (c == 0xe0)
        low = 0xa0;
    else if (c == 0xed)
        high = 0x9f;
    else if (c == 0xf0)
        low = 0x90;
    else if (c == 0xf4)
        high = 0x8f;
    if (n < len || text[1] < low || text[1] > high)
        return 0;
    for (size_t i = 2; i < len; i++)
        if (text[i] < 0x80 || text[i] > 0xbf)
            return 0;
    return len;
}

json_t *yk_cli_json_text(const char *text, size_t n_bytes)
{
    json_t *value = json_stringn(text, n_bytes);
    if (value || n_bytes > SIZE_MAX / 3)
        return value;
    char *clean = malloc(3 * n_bytes);
    size_t n = 0;
    if (!clean)
        return NULL;
    for (size_t i = 0; i < n_bytes;) {
        size_t len = utf8_length((const unsigned char *)text + i, n_bytes - i);
        memcpy(clean + n, len ? text + i : "\xef\xbf\xbd", len ? len : 3);
        n += len ? len : 3;
        i += len ? len : 1;
    }
    value = json_stringn(clean, n);
    free(clean);
    return value;
}

int yk_cli_json_print(json_t *value)
{
    if (!value)
        return yk_cli_no_memory(0, "the JSON text");
    int failed = json_dumpf(value, yk_cli_out, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    json_decref(value);
    fputc('\n', yk_cli_out);
    /* A write that failed is seen by yk_cli_finish; what is left here is a value jansson cannot print. */
    if (failed && !ferror(yk_cli_out))
        return yk_cli_error(YK_EXIT_RUNTIME, "the result cannot be written as JSON");
    return YK_EXIT_OK;
}
