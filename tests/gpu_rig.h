/* gpu_rig.h - runs kernels on a backend with all memory in one guarded reservation. */
#ifndef YK_TESTS_GPU_RIG_H
#define YK_TESTS_GPU_RIG_H

#include "gpu/kernels.h"
#include "gpu/modules.h"

enum { YK_RIG_BYTES = 48 << 20, YK_RIG_ITEMS = 64 };

typedef struct yk_rig {
    yk_modules *modules;
    const yk_device_table *t;
    yk_gpu *gpu;
    yk_gpu_stream *stream;
    yk_gpu_mem mem;
    uint8_t *sent, *got, *again; /* [YK_RIG_BYTES] */
    uint64_t used;
    struct {
        uint64_t at, bytes;
    } outs[YK_RIG_ITEMS];
    uint32_t n_outs;
    uint64_t random;
    char what[200]; /* the case, for messages */
} yk_rig;

/* 0, or 77 with a printed reason when the backend is not usable here. */
int yk_rig_open(yk_rig *r, const char *backend);
void yk_rig_close(yk_rig *r);

/* A new case: no items. */
void yk_rig_case(yk_rig *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* An item that kernels read; data copied. */
yk_gpu_mem yk_rig_in(yk_rig *r, const void *data, uint64_t bytes);
/* An item that kernels may write; data NULL: filled with guard bytes. */
yk_gpu_mem yk_rig_out(yk_rig *r, const void *data, uint64_t bytes);
/* Upload, launch the calls, download; twice: the bits must be the same, and nothing outside the outs may change. */
void yk_rig_run(yk_rig *r, yk_k_call *calls, uint32_t n);
const void *yk_rig_got(const yk_rig *r, yk_gpu_mem mem);
yk_gpu_kernel *yk_rig_kernel(yk_rig *r, const char *name);

/* Uniform in [-1, 1), and below n. */
float yk_rig_float(yk_rig *r);
uint32_t yk_rig_below(yk_rig *r, uint32_t n);
/* n floats, some of them large, tiny, zero or equal. */
void yk_rig_floats(yk_rig *r, float *x, size_t n);

/* |got - want| <= tol, NaN fails; prints the case and the element. */
void yk_rig_near(const yk_rig *r, const char *name, size_t i, double got, double want, double tol);

#endif
