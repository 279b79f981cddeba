/* program.c - kernel texts compiled when first asked for, kept on disk as the driver's binaries. */
#include "gpu/opencl/opencl.h"

#include <stdlib.h>
#include <unistd.h>

#include "gpu_kernels_text.h"

enum { N_KERNELS = sizeof kernel_rows / sizeof *kernel_rows, N_TEXTS = sizeof kernel_texts / sizeof *kernel_texts };

/* A binary on disk is one of these and `bytes` bytes. It is this machine's own file, but it may be cut short or of another
 * driver: whatever does not fit is compiled again. */
typedef struct cache_head {
    char magic[8];
    uint64_t key[2], bytes, sum;
} cache_head;

static const char cache_magic[8] = {'y', 'k', 'c', 'l', 'b', 'i', 'n', '1'};

uint32_t yk_cl_n_kernels(void)
{
    return N_KERNELS;
}

uint32_t yk_cl_n_texts(void)
{
    return N_TEXTS;
}

void yk_cl_kernel_names(struct yk_gpu_kernel *kernels)
{
    for (uint32_t i = 0; i < N_KERNELS; i++)
        kernels[i] = (struct yk_gpu_kernel){.name = kernel_rows[i].name, .kinds = kernel_rows[i].kinds};
}

/* FNV-1a. */
static uint64_t hash(uint64_t h, const void *data, size_t n)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

static uint64_t hash_device(uint64_t h, cl_device_id device)
{
    static const cl_device_info what[] = {CL_DEVICE_NAME, CL_DEVICE_VENDOR, CL_DEVICE_VERSION, CL_DRIVER_VERSION};
    for (size_t i = 0; i < sizeof what / sizeof *what; i++) {
        char text[512] = "";
        clGetDeviceInfo(device, what[i], sizeof text, text, NULL);
        h = hash(h, text, strlen(text) + 1);
    }
    return h;
}

static void cache_key(const yk_gpu *g, uint32_t text, const char *options, uint64_t key[2])
{
    for (int k = 0; k < 2; k++) {
        uint64_t h = hash_device(k ? 0x9e3779b97f4a7c15u : 0xcbf29ce484222325u, g->device);
        h = hash(h, options, strlen(options) + 1);
        for (uint32_t i = 0; i < kernel_texts[text].n_parts; i++)
            h = hash(h, kernel_texts[text].parts[i], strlen(kernel_texts[text].parts[i]));
        key[k] = h;
    }
}

static bool cache_path(char *buf, size_t size, const uint64_t key[2], const char *tail)
{
    if (!yk_module_host->cache_dir)
        return false;
    const int n = snprintf(buf, size, "%s/opencl-%016" PRIx64 ".bin%s", yk_module_host->cache_dir, key[0], tail);
    return n > 0 && (size_t)n < size;
}

/* Bytes of the file behind its head, or NULL. */
static uint8_t *cache_read(const uint64_t key[2], size_t *n)
{
    char path[4096];
    cache_head head;
    uint8_t *data = NULL;
    FILE *f = cache_path(path, sizeof path, key, "") ? fopen(path, "rb") : NULL;
    if (!f)
        return NULL;
    if (fread(&head, sizeof head, 1, f) == 1 && memcmp(head.magic, cache_magic, 8) == 0 &&
        memcmp(head.key, key, sizeof head.key) == 0 && head.bytes > 0 && head.bytes < 1u << 28)
        data = yk_module_host->alloc(head.bytes);
    if (data && (fread(data, head.bytes, 1, f) != 1 || hash(0, data, head.bytes) != head.sum)) {
        yk_module_host->free(data);
        data = NULL;
    }
    fclose(f);
    *n = data ? head.bytes : 0;
    return data;
}

/* A cache that cannot be written costs time, not results: failures are silent. */
static void cache_write(cl_program program, const uint64_t key[2])
{
    char path[4096], tmp[4096], tail[32];
    size_t n = 0;
    snprintf(tail, sizeof tail, ".tmp-%ld", (long)getpid());
    if (!cache_path(path, sizeof path, key, "") || !cache_path(tmp, sizeof tmp, key, tail) ||
        clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof n, &n, NULL) != CL_SUCCESS || !n)
        return;
    uint8_t *data = yk_module_host->alloc(n);
    if (!data)
        return;
    if (clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof data, &data, NULL) == CL_SUCCESS) {
        cache_head head = {.key = {key[0], key[1]}, .bytes = n, .sum = hash(0, data, n)};
        memcpy(head.magic, cache_magic, 8);
        FILE *f = fopen(tmp, "wb");
        bool ok = f && fwrite(&head, sizeof head, 1, f) == 1 && fwrite(data, n, 1, f) == 1;
        ok = f && fclose(f) == 0 && ok;
        if (f && !(ok && rename(tmp, path) == 0))
            unlink(tmp);
    }
    yk_module_host->free(data);
}

/* The first line of the compiler's log that speaks of an error. */
static yk_status build_failed(const yk_gpu *g, cl_program program, const char *name, cl_int e)
{
    char *log = yk_module_host->alloc(16384), *line = log;
    if (log && clGetProgramBuildInfo(program, g->device, CL_PROGRAM_BUILD_LOG, 16383, log, NULL) == CL_SUCCESS) {
        char *at = strstr(log, "error");
        for (line = at ? at : log; line > log && line[-1] != '\n'; line--)
            ;
        line[strcspn(line, "\n")] = 0;
    }
    const yk_status st =
        yk_module_fail(YK_ERR_RUNTIME, "kernel text %s does not compile: %s: %s", name, yk_cl_error_name(e), log ? line : "");
    yk_module_host->free(log);
    return st;
}

static cl_program from_cache(yk_gpu *g, const uint64_t key[2], const char *options)
{
    size_t n;
    uint8_t *data = cache_read(key, &n);
    if (!data)
        return NULL;
    cl_int e, state = CL_SUCCESS;
    const unsigned char *binary = data;
    cl_program p = clCreateProgramWithBinary(g->context, 1, &g->device, &n, &binary, &state, &e);
    yk_module_host->free(data);
    if (e != CL_SUCCESS)
        return NULL;
    if (state == CL_SUCCESS && clBuildProgram(p, 1, &g->device, options, NULL, NULL) == CL_SUCCESS)
        return p;
    clReleaseProgram(p);
    return NULL;
}

static yk_status program_get(yk_gpu *g, uint32_t text)
{
    const struct kernel_text *t = &kernel_texts[text];
    char options[96];
    snprintf(options, sizeof options, "-cl-std=CL1.2%s%s", g->exact_division ? " -cl-fp32-correctly-rounded-divide-sqrt" : "",
             g->is_cpu ? " -DYK_ROLLED" : "");
    uint64_t key[2];
    cache_key(g, text, options, key);
    g->programs[text] = from_cache(g, key, options);
    if (g->programs[text])
        return YK_OK;
    cl_int e;
    cl_program p = clCreateProgramWithSource(g->context, t->n_parts, (const char **)t->parts, NULL, &e);
    if (e != CL_SUCCESS)
        return yk_cl_fail(e, "clCreateProgramWithSource");
    e = clBuildProgram(p, 1, &g->device, options, NULL, NULL);
    if (e != CL_SUCCESS) {
        const yk_status st = build_failed(g, p, t->name, e);
        clReleaseProgram(p);
        return st;
    }
    cache_write(p, key);
    g->programs[text] = p;
    return YK_OK;
}

yk_status yk_cl_kernel_get(yk_gpu *g, const char *name, yk_gpu_kernel **out)
{
    *out = NULL;
    for (uint32_t i = 0; i < N_KERNELS; i++) {
        yk_gpu_kernel *k = &g->kernels[i];
        if (strcmp(k->name, name) != 0)
            continue;
        if (!k->kernel) {
            const uint32_t text = kernel_rows[i].text;
            const yk_status st = g->programs[text] ? YK_OK : program_get(g, text);
            if (st != YK_OK)
                return st;
            cl_int e;
            k->kernel = clCreateKernel(g->programs[text], name, &e);
            if (e != CL_SUCCESS) {
                k->kernel = NULL;
                return yk_cl_fail(e, name);
            }
        }
        *out = k;
        return YK_OK;
    }
    return yk_module_fail(YK_ERR_USAGE, "there is no kernel \"%s\"", name);
}

yk_status yk_cl_launch(yk_gpu_stream *s, const yk_gpu_launch *l)
{
    const yk_gpu_kernel *k = l->kernel;
    const yk_status st = yk_module_check_launch(l, k->name, k->kinds);
    if (st != YK_OK || !l->groups[0] || !l->groups[1] || !l->groups[2])
        return st;
    cl_uint at = 0;
    cl_int e = CL_SUCCESS;
    for (uint32_t i = 0; i < l->n_args && e == CL_SUCCESS; i++) {
        const yk_gpu_arg *a = &l->args[i];
        if (a->kind == YK_ARG_MEM) {
            const yk_cl_mem *m = a->mem.handle;
            const cl_mem mem = m ? m->mem : NULL;
            const cl_ulong offset = m ? a->mem.offset : 0;
            e = clSetKernelArg(k->kernel, at++, sizeof mem, &mem);
            if (e == CL_SUCCESS)
                e = clSetKernelArg(k->kernel, at++, sizeof offset, &offset);
        } else {
            e = a->kind == YK_ARG_U32 ? clSetKernelArg(k->kernel, at++, sizeof a->u32, &a->u32)
                                      : clSetKernelArg(k->kernel, at++, sizeof a->f32, &a->f32);
        }
    }
    if (e != CL_SUCCESS)
        return yk_module_fail(YK_ERR_RUNTIME, "kernel %s: argument %u: %s", k->name, at, yk_cl_error_name(e));
    const size_t global[3] = {(size_t)l->groups[0] * YK_KERNEL_GROUP, l->groups[1], l->groups[2]},
                 local[3] = {YK_KERNEL_GROUP, 1, 1};
    e = clEnqueueNDRangeKernel(s->queue, k->kernel, 3, NULL, global, local, 0, NULL, NULL);
    return e == CL_SUCCESS ? YK_OK : yk_cl_fail(e, k->name);
}
