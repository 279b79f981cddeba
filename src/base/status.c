#include "src/base/status.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

const char *yk_version(void)
{
    return "0.1.0";
}

const char *yk_status_name(yk_status status)
{
    switch (status) {
    case YK_OK:
        return "YK_OK";
    case YK_ERR_RUNTIME:
        return "YK_ERR_RUNTIME";
    case YK_ERR_USAGE:
        return "YK_ERR_USAGE";
    case YK_ERR_INPUT:
        return "YK_ERR_INPUT";
    case YK_ERR_MEMORY:
        return "YK_ERR_MEMORY";
    case YK_ERR_CANCELLED:
        return "YK_ERR_CANCELLED";
    case YK_ERR_CONTEXT:
        return "YK_ERR_CONTEXT";
    }
    return "unknown status";
}

yk_status yk_fail(yk_error *err, yk_status status, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err->status = status;
        vsnprintf(err->text, sizeof err->text, fmt, ap);
        va_end(ap);
        /* Names from files end up here: keep it one printable line. */
        for (char *p = err->text; *p; p++)
            if ((unsigned char)*p < 0x20 || *p == 0x7f)
                *p = '?';
    }
    return status;
}

yk_status yk_fail_memory(yk_error *err, uint64_t bytes, const char *what)
{
    return yk_fail(err, YK_ERR_MEMORY, "not enough memory: %" PRIu64 " bytes for %s", bytes, what);
}
