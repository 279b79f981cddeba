/* layout_data.h - inputs and references of the layout bench. */
#ifndef YK_BENCH_LAYOUT_DATA_H
#define YK_BENCH_LAYOUT_DATA_H

#include "bench/layout.h"

uint32_t yk_lay_random(uint64_t *state);
/* rows x cols weights in file blocks, row after row. */
void yk_lay_random_rows(yk_lay type, uint32_t rows, uint32_t cols, uint64_t *state, uint8_t *out);
/* 0 when memory is short. `type` decides only what `off` holds. */
int yk_lay_act_make(yk_lay_act *a, yk_lay type, uint32_t n, uint32_t cols, uint64_t *state);
void yk_lay_act_free(yk_lay_act *a);
/* Product of a row of file blocks with token t in double, and the sum of absolute products. w: scratch [cols]. */
void yk_lay_reference(yk_lay type, const uint8_t *row, const yk_lay_act *a, uint32_t t, double *w, double *y, double *size);

/* The OpenCL kernels against the CPU's on the same bytes. Returns the number of failures, -1 without a device. */
int yk_lay_check_opencl(const char *source_path);

#endif
