/* backend.h - whether a device backend can be used here; for tests that are programs of their own. */
#ifndef YK_TESTS_BACKEND_H
#define YK_TESTS_BACKEND_H

#include <stdio.h>
#include <string.h>

#include "gpu/modules.h"

/* 0: it can; else the exit code of the test, after saying why: 77 (skipped) or 1. */
static inline int yk_test_backend(const char *backend)
{
    yk_modules *modules;
    yk_error err = {0};
    if (yk_modules_load(&modules, &(yk_modules_opts){.null_options = "compute"}, &err) != YK_OK) {
        printf("FAILED: yk_modules_load: %s\n", err.text);
        return 1;
    }
    const bool there = yk_modules_find(modules, backend);
    for (int i = 0; !there && i < YK_N_BACKENDS; i++)
        if (modules->backends[i].name && strcmp(modules->backends[i].name, backend) == 0)
            printf("skipped: %s: %s\n", backend, modules->backends[i].why);
    yk_modules_close(&modules);
    return there ? 0 : 77;
}

#endif
