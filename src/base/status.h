/* status.h - the one error rule: yk_status, message in the caller's yk_error, three macros. */
#ifndef YK_BASE_STATUS_H
#define YK_BASE_STATUS_H

#include "yoke/yoke.h"

/* Fill *err (may be NULL) and return the status. fmt makes one line: what, where (key, tensor, offset), what to do. */
yk_status yk_fail(yk_error *err, yk_status status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Out of memory with the bytes that were wanted and what for. */
yk_status yk_fail_memory(yk_error *err, uint64_t bytes, const char *what);

/* Forward a failure: the callee has filled err. */
#define YK_TRY(expr)                                                                                                           \
    do {                                                                                                                       \
        const yk_status yk_try_status_ = (expr);                                                                               \
        if (yk_try_status_ != YK_OK)                                                                                           \
            return yk_try_status_;                                                                                             \
    } while (0)

/* Return with a message when cond holds. */
#define YK_FAIL_IF(cond, err, status, ...)                                                                                     \
    do {                                                                                                                       \
        if (cond)                                                                                                              \
            return yk_fail(err, status, __VA_ARGS__);                                                                          \
    } while (0)

/* Forward a failure through a clean-up label; needs `yk_status st` in scope. */
#define YK_TRY_GOTO(expr, label)                                                                                               \
    do {                                                                                                                       \
        if ((st = (expr)) != YK_OK)                                                                                            \
            goto label;                                                                                                        \
    } while (0)

#endif
