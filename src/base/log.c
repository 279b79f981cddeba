#include "src/base/log.h"

#include <stdarg.h>
#include <stdio.h>

static yk_log_fn log_fn;
static void *log_user;
static yk_log_level log_max = YK_LOG_WARN;

void yk_log_set(yk_log_fn fn, void *user, yk_log_level max_level)
{
    log_fn = fn;
    log_user = user;
    log_max = max_level;
}

void yk_log(yk_log_level level, const char *fmt, ...)
{
    if (!log_fn || level > log_max)
        return;
    char line[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    log_fn(log_user, level, line);
}
