/* program.c - the kernels: compiled by nvcc when yoke is built, loaded when a device is opened.
 *
 * All of them are loaded at once. Drivers load a kernel late, when it is first launched, and wait for the whole device then; behind a mailbox
 * wait that the same thread is to end, that would be for ever. */
#include "gpu/cuda/internal.h"

#include "gpu_cuda_image.h"
#include "gpu_cuda_rows.h"

enum { N_KERNELS = sizeof kernel_rows / sizeof *kernel_rows, MAX_GROUPS_YZ = 65535 };

/* Products by matrix units: gpu/cuda/mma.k.h. From how many tokens on; ARG_TOKENS: their number among the arguments of a product. */
enum { MMA_THREADS = 128, MMA_PANELS = 4, MMA_TOKENS = 64, MMA_FROM = 16, ARG_SUM = 3, ARG_ROWS = 9, ARG_TOKENS = 11 };

/* Machine code runs on its own and on later cards of its generation, PTX on all later ones. */
bool yk_cu_program_fits(int sm)
{
    for (size_t i = 0; i < sizeof image_sm / sizeof *image_sm; i++)
        if (image_sm[i] / 10 == sm / 10 && image_sm[i] <= sm)
            return true;
    for (size_t i = 0; i < sizeof image_ptx / sizeof *image_ptx; i++)
        if (image_ptx[i] <= sm)
            return true;
    return false;
}

const char *yk_cu_program_archs(void)
{
    return IMAGE_ARCHS;
}

static yk_status load_failed(CUresult e)
{
    switch ((int)e) {
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
        return yk_module_fail(YK_ERR_RUNTIME,
                              "this yoke has no kernels for the card, only " IMAGE_ARCHS ": build it with another -Dnvcc_arch");
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
    case CUDA_ERROR_JIT_COMPILER_NOT_FOUND:
        return yk_module_fail(
            YK_ERR_RUNTIME, "the NVIDIA driver cannot compile kernels of CUDA %d.%d for the card (%s): install a newer driver",
            CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10, yk_cu_error_name(e));
    default:
        return yk_cu_fail(e, "loading the kernels");
    }
}

static bool is_mma(const char *name)
{
    return strncmp(name, "mma_", 4) == 0;
}

/* "matvec_TYPE" and "matmul_TYPE" may be done by "mma_TYPE". */
static void pair_products(yk_gpu *g)
{
    for (uint32_t i = 0; g->mma && i < N_KERNELS; i++) {
        const char *name = g->kernels[i].name;
        if (strncmp(name, "matvec_", 7) != 0 && strncmp(name, "matmul_", 7) != 0)
            continue;
        for (uint32_t j = 0; j < N_KERNELS; j++)
            if (is_mma(g->kernels[j].name) && strcmp(g->kernels[j].name + 4, name + 7) == 0)
                g->kernels[i].mma = &g->kernels[j];
    }
}

/* Context current. */
static yk_status load(yk_gpu *g)
{
    CUresult e = yk_cu.cuModuleLoadData(&g->module, image);
    if (e != CUDA_SUCCESS)
        return load_failed(e);
    for (uint32_t i = 0; i < N_KERNELS && e == CUDA_SUCCESS; i++) {
        struct yk_gpu_kernel *k = &g->kernels[i];
        int threads = 0;
        *k = (struct yk_gpu_kernel){.name = kernel_rows[i].name, .kinds = kernel_rows[i].kinds};
        k->threads = is_mma(k->name) ? MMA_THREADS : YK_KERNEL_GROUP;
        e = yk_cu.cuModuleGetFunction(&k->function, g->module, k->name);
        if (e == CUDA_SUCCESS && yk_cu.load_function)
            e = yk_cu.load_function(k->function);
        if (e == CUDA_SUCCESS) /* asked of the loaded code: loads it where there is no function for that */
            e = yk_cu.cuFuncGetAttribute(&threads, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, k->function);
        if (e != CUDA_SUCCESS)
            return yk_cu_fail(e, k->name);
        if (threads < (int)k->threads)
            return yk_module_fail(YK_ERR_RUNTIME, "kernel %s runs with groups of at most %d on this device, needs %u", k->name,
                                  threads, k->threads);
    }
    pair_products(g);
    return YK_OK;
}

yk_status yk_cu_program_open(yk_gpu *g)
{
    g->kernels = yk_module_host->alloc(N_KERNELS * sizeof *g->kernels);
    if (!g->kernels)
        return yk_module_out_of_memory(N_KERNELS * sizeof *g->kernels, "kernels");
    const CUresult e = yk_cu_enter(g);
    if (e != CUDA_SUCCESS)
        return yk_cu_fail(e, "cuCtxPushCurrent");
    const yk_status st = load(g);
    yk_cu_leave();
    return st;
}

void yk_cu_program_close(yk_gpu *g)
{
    if (g->module && yk_cu_enter(g) == CUDA_SUCCESS) {
        yk_cu.cuModuleUnload(g->module);
        yk_cu_leave();
    }
    yk_module_host->free(g->kernels);
}

yk_status yk_cu_kernel_get(yk_gpu *g, const char *name, yk_gpu_kernel **out)
{
    for (uint32_t i = 0; i < N_KERNELS; i++) { /* those of matrix units stand in for others and are not asked for */
        if (strcmp(g->kernels[i].name, name) == 0 && !is_mma(name)) {
            *out = &g->kernels[i];
            return YK_OK;
        }
    }
    *out = NULL;
    return yk_module_fail(YK_ERR_USAGE, "there is no kernel \"%s\"", name);
}

yk_status yk_cu_launch(yk_gpu_stream *s, const yk_gpu_launch *l)
{
    const yk_gpu_kernel *k = l->kernel;
    const yk_status st = yk_module_check_launch(l, k->name, k->kinds);
    if (st != YK_OK || !l->groups[0] || !l->groups[1] || !l->groups[2])
        return st;
    if (l->groups[0] > INT32_MAX || l->groups[1] > MAX_GROUPS_YZ || l->groups[2] > MAX_GROUPS_YZ)
        return yk_module_fail(YK_ERR_USAGE, "kernel %s: %u x %u x %u groups, at most %d x %d x %d", k->name, l->groups[0],
                              l->groups[1], l->groups[2], INT32_MAX, MAX_GROUPS_YZ, MAX_GROUPS_YZ);
    yk_cu_cmd c = {.op = YK_CU_LAUNCH, .kernel = k};
    memcpy(c.groups, l->groups, sizeof c.groups);
    if (k->mma && l->args[ARG_TOKENS].u32 >= MMA_FROM && l->args[ARG_SUM].mem.offset % 4 == 0) { /* sums are read in pairs */
        c.kernel = k->mma;
        c.groups[0] = (uint32_t)(((uint64_t)l->args[ARG_ROWS].u32 + 16 * MMA_PANELS - 1) / (16 * MMA_PANELS));
        c.groups[1] = (uint32_t)(((uint64_t)l->args[ARG_TOKENS].u32 + MMA_TOKENS - 1) / MMA_TOKENS);
    }
    for (uint32_t i = 0; i < l->n_args; i++) {
        const yk_gpu_arg *a = &l->args[i];
        if (a->kind == YK_ARG_MEM) {
            const yk_cu_mem *m = a->mem.handle;
            c.values[c.n_values++] = m ? m->ptr : 0;
            c.values[c.n_values++] = m ? a->mem.offset : 0;
        } else if (a->kind == YK_ARG_U32) {
            c.values[c.n_values++] = a->u32; /* the driver reads as many bytes as the kernel's argument has: the first four */
        } else {
            memcpy(&c.values[c.n_values++], &a->f32, sizeof a->f32);
        }
    }
    return yk_cu_submit(s, &c);
}
