/* layout_ocl.c - the kernels of layout.cl on any OpenCL device, compared with the AVX-512 kernels on the same bytes. */
#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/layout_data.h"

enum { PANELS = 3 };

typedef struct ocl {
    cl_device_id device;
    cl_context context;
    cl_command_queue queue;
    cl_program program[2]; /* 1 and 4 tokens */
} ocl;

static char *read_text(const char *path)
{
    FILE *f = fopen(path, "rb");
    char *s = f ? malloc(1 << 16) : NULL;
    if (s)
        s[fread(s, 1, (1 << 16) - 1, f)] = 0;
    if (f)
        fclose(f);
    return s;
}

static int ocl_open(ocl *o, const char *path)
{
    cl_platform_id platform;
    cl_int e;
    char *text = NULL;
    memset(o, 0, sizeof *o);
    if (clGetPlatformIDs(1, &platform, NULL) || clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 1, &o->device, NULL))
        return 0;
    o->context = clCreateContext(NULL, 1, &o->device, NULL, NULL, &e);
    o->queue = e ? NULL : clCreateCommandQueue(o->context, o->device, 0, &e);
    text = e ? NULL : read_text(path);
    if (!text)
        return 0;
    for (int i = 0; i < 2; i++) {
        o->program[i] = clCreateProgramWithSource(o->context, 1, (const char **)&text, NULL, &e);
        if (e || clBuildProgram(o->program[i], 1, &o->device, i ? "-DN=4" : "-DN=1", NULL, NULL)) {
            char log[4096] = "";
            clGetProgramBuildInfo(o->program[i], o->device, CL_PROGRAM_BUILD_LOG, sizeof log - 1, log, NULL);
            printf("FAIL %s does not compile: %s\n", path, log);
            free(text);
            return 0;
        }
    }
    free(text);
    return 1;
}

static int launch(ocl *o, const char *name, uint32_t n, size_t lanes, const uint8_t *w, size_t panel_bytes, const yk_lay_act *a,
                  float *y)
{
    cl_int e;
    const cl_mem_flags in = CL_MEM_READ_ONLY | CL_MEM_COPY_HOST_PTR;
    const size_t nb = a->cols / 32, global = PANELS * lanes;
    cl_kernel k = clCreateKernel(o->program[n == 4], name, &e);
    if (e)
        return 0;
    cl_mem m[5] = {clCreateBuffer(o->context, in, PANELS * panel_bytes, (void *)w, &e),
                   clCreateBuffer(o->context, in, (size_t)n * a->cols, a->q, &e),
                   clCreateBuffer(o->context, in, n * nb * 4, a->scale, &e),
                   clCreateBuffer(o->context, in, n * nb * 4, a->sum, &e),
                   clCreateBuffer(o->context, CL_MEM_WRITE_ONLY, (size_t)n * PANELS * 16 * 4, NULL, &e)};
    const cl_uint v[3] = {a->cols, PANELS * 16, (cl_uint)panel_bytes};
    for (cl_uint i = 0; i < 8; i++)
        e |= i < 5 ? clSetKernelArg(k, i, sizeof m[i], &m[i]) : clSetKernelArg(k, i, 4, &v[i - 5]);
    e |= clEnqueueNDRangeKernel(o->queue, k, 1, NULL, &global, &lanes, 0, NULL, NULL);
    e |= clEnqueueReadBuffer(o->queue, m[4], CL_TRUE, 0, (size_t)n * PANELS * 16 * 4, y, 0, NULL, NULL);
    for (int i = 0; i < 5; i++)
        clReleaseMemObject(m[i]);
    clReleaseKernel(k);
    return e == CL_SUCCESS;
}

/* One kernel, one shape, one number of tokens. flat: all scales of the activations 1 and all of the weights 2^-6, so that every
 * sum is an integer below 2^24 times a power of two: then f32 sums are exact in any order and the results must be the same
 * bits. */
static int check_kernel(ocl *o, const char *name, yk_lay type, size_t lanes, uint32_t cols, uint32_t n, int flat, double *worst)
{
    uint64_t seed = 4242 + cols + n;
    const size_t row_bytes = (size_t)cols / yk_lay_types[type].block_elems * yk_lay_types[type].block_bytes;
    const size_t panel_bytes = yk_lay_panel_bytes(type, cols);
    uint8_t *rows = malloc(16 * row_bytes), *w = aligned_alloc(64, PANELS * panel_bytes);
    float y[4 * PANELS * 16], want[4 * 16];
    double *scratch = malloc(cols * sizeof *scratch);
    yk_lay_act a = {0};
    int bad = !rows || !w || !scratch || !yk_lay_act_make(&a, type, n, cols, &seed);
    if (!bad && flat)
        for (size_t i = 0; i < (size_t)n * cols / 32; i++)
            a.scale[i] = 1, a.fsum[i] = (float)a.sum[i];
    for (int p = 0; !bad && p < PANELS; p++) {
        yk_lay_random_rows(type, 16, cols, &seed, rows);
        for (size_t i = 0; flat && i < 16 * row_bytes; i += yk_lay_types[type].block_bytes) {
            rows[i] = 0, rows[i + 1] = 0x24; /* 2^-6 */
            if (type == YK_LAY_Q4_K)
                rows[i + 2] = 0, rows[i + 3] = 0x24;
        }
        yk_lay_pack(type, rows, row_bytes, cols, w + p * panel_bytes);
    }
    if (!bad && !launch(o, name, n, lanes, w, panel_bytes, &a, y))
        printf("FAIL %s could not run\n", name), bad++;
    for (int p = 0; !bad && p < PANELS; p++) {
        yk_lay_avx512(type, n)(w + p * panel_bytes, &a, want, 0);
        yk_lay_unpack(type, w + p * panel_bytes, cols, rows, row_bytes);
        for (uint32_t t = 0; t < n; t++)
            for (uint32_t r = 0; r < 16; r++) {
                double ref, size;
                yk_lay_reference(type, rows + r * row_bytes, &a, t, scratch, &ref, &size);
                const float g = y[t * PANELS * 16 + 16 * (uint32_t)p + r], c = want[16 * t + r];
                const double diff = fabs((double)g - c) / (size + 1e-30);
                *worst = fmax(*worst, diff);
                if (!(flat ? memcmp(&g, &c, 4) == 0 : diff <= 1e-6)) {
                    if (bad++ < 4)
                        printf("FAIL %s cols %u tokens %u flat %d row %u: %.9g, CPU %.9g\n", name, cols, n, flat, r, g, c);
                }
            }
    }
    yk_lay_act_free(&a);
    free(rows), free(w), free(scratch);
    return bad;
}

int yk_lay_check_opencl(const char *source_path)
{
    static const struct {
        const char *name;
        yk_lay type;
        size_t lanes;
    } kernels[] = {{"q4_0_row", YK_LAY_Q4_0, 16},
                   {"q4_0_wide", YK_LAY_Q4_0, 32},
                   {"q8_0_row", YK_LAY_Q8_0, 16},
                   {"q4_k_row", YK_LAY_Q4_K, 16}};
    ocl o;
    int bad = 0;
    if (!ocl_open(&o, source_path))
        return -1;
    printf("opencl_kernel,largest_difference_to_cpu\n");
    for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++) {
        double worst = 0;
        for (uint32_t n = 1; n <= 4; n += 3)
            for (int flat = 0; flat < 2; flat++) {
                bad += check_kernel(&o, kernels[k].name, kernels[k].type, kernels[k].lanes, 256, n, flat, &worst);
                bad += check_kernel(&o, kernels[k].name, kernels[k].type, kernels[k].lanes,
                                    kernels[k].type == YK_LAY_Q4_K ? 2048 : 2880, n, flat, &worst);
            }
        printf("%s,%.1e\n", kernels[k].name, worst);
    }
    for (int i = 0; i < 2; i++)
        clReleaseProgram(o.program[i]);
    clReleaseCommandQueue(o.queue);
    clReleaseContext(o.context);
    return bad;
}
