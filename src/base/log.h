/* log.h - lines for the host's log receiver. */
#ifndef YK_BASE_LOG_H
#define YK_BASE_LOG_H

#include "yoke/yoke.h"

void yk_log(yk_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
