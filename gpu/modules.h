/* modules.h - finds and loads the GPU backends (modules of gpu/device.h) at run time. */
#ifndef YK_GPU_MODULES_H
#define YK_GPU_MODULES_H

#include "gpu/device.h"

enum { YK_N_BACKENDS = 3 }; /* "cuda", "opencl", "null" */

typedef struct yk_backend {
    const char *name;
    bool usable;           /* table is filled and has at least one device */
    char why[512];         /* one line: why it is not usable; empty when it is */
    char path[4096];       /* of the module, empty when it was not found */
    yk_device_table table; /* valid when usable */
    uint32_t n_devices;
    void *dl; /* dlopen handle */
    yk_host_calls host;
} yk_backend;

typedef struct yk_modules {
    yk_backend backends[YK_N_BACKENDS];
    char *cache_dir, *null_options;
} yk_modules;

typedef struct yk_modules_opts {
    const char *cache_dir;    /* where compiled kernels may be kept; must exist; NULL: nowhere */
    const char *null_options; /* devices of the null backend (gpu/null/null.c); NULL: that backend is not loaded */
} yk_modules_opts;

/* Look for each backend's module in YOKE_MODULE_PATH (folders separated by ':'), beside the build, in LIBDIR/yoke; the first
 * file found is the one that is loaded. A backend that cannot be used is no failure: its `why` says what is the matter. opts
 * may be NULL. YK_ERR_MEMORY. */
yk_status yk_modules_load(yk_modules **out, const yk_modules_opts *opts, yk_error *err);
/* All devices must be closed. */
void yk_modules_close(yk_modules **modules);
/* A usable backend by name, or NULL. */
const yk_backend *yk_modules_find(const yk_modules *modules, const char *name);

#endif
