/* Products by matrix units (gpu/cuda/mma.k.h) in the emulator, as compiled for sm_75 and for sm_80 and later: no finding, no bank conflict beyond what is
 * stated, the bits of the dialect's matmul_TYPE, and double precision within the tolerance of `matmul`. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/ops.h"
#include "cpu/pack.h"
#include "gpu/cuda/emu/kernels.h"
#include "gpu/kernels.h"
#include "src/base/half.h"
#include "tests/tolerance.h"

static uint64_t seed = 11;

static uint32_t below(uint32_t n)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((seed >> 32) * n >> 32);
}

static float random_float(void)
{
    return (float)below(1u << 24) * 0x1p-23f - 1.0f;
}

/* Types, and where in a block of the file f16 scales lie; other bytes may be any. */
static const struct {
    yk_type type;
    const char *name;
    int half[2];
} types[] = {{YK_TYPE_Q4_0, "q4_0", {0, -1}},   {YK_TYPE_Q4_1, "q4_1", {0, 2}},      {YK_TYPE_Q5_0, "q5_0", {0, -1}},
             {YK_TYPE_Q5_1, "q5_1", {0, 2}},    {YK_TYPE_Q8_0, "q8_0", {0, -1}},     {YK_TYPE_Q2_K, "q2_k", {80, 82}},
             {YK_TYPE_Q3_K, "q3_k", {108, -1}}, {YK_TYPE_Q4_K, "q4_k", {0, 2}},      {YK_TYPE_Q5_K, "q5_k", {0, 2}},
             {YK_TYPE_Q6_K, "q6_k", {208, -1}}, {YK_TYPE_IQ4_NL, "iq4_nl", {0, -1}}, {YK_TYPE_IQ4_XS, "iq4_xs", {0, -1}},
             {YK_TYPE_MXFP4, "mxfp4", {-1, -1}}};
enum { N_TYPES = sizeof types / sizeof *types, MAX_ROWS = 150, MAX_COLS = 1056, MAX_TOKENS = 140, GAP = 192 };

/* One product: everything in memory of its own, so that a step outside is seen. */
typedef struct product {
    uint32_t ty, n_rows, n_cols, n, panels, units;
    bool extreme; /* all codes and activations at their largest magnitude */
    uint64_t row_bytes, packed_bytes;
    uint8_t *file, *packed;
    float *value, *x, *y[2], *bias, *weights;
    uint32_t *rows, *y_rows;
    yk_q8 q8;
    yk_k_matvec mv;
} product;

static const yk_ops *ops;

static void *piece(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    assert_non_null(p);
    return p;
}

static void fill_weights(product *p)
{
    const yk_type_traits *info = yk_type_get(types[p->ty].type);
    assert_true(yk_type_row_bytes(types[p->ty].type, p->n_cols, &p->row_bytes));
    p->file = piece(p->n_rows * p->row_bytes);
    p->value = piece((size_t)p->n_rows * p->n_cols * 4);
    for (uint32_t r = 0; r < p->n_rows; r++) {
        uint8_t *row = p->file + r * p->row_bytes;
        for (uint64_t i = 0; i < p->row_bytes; i++)
            row[i] = !p->extreme ? (uint8_t)below(256) : types[p->ty].type == YK_TYPE_Q8_0 ? 0x80 : r % 2 ? 0xff : 0;
        for (uint64_t b = 0; b < p->row_bytes; b += info->block_bytes) {
            if (types[p->ty].type == YK_TYPE_MXFP4)
                row[b] = (uint8_t)(120 + below(8));
            for (uint32_t k = 0; k < 2; k++)
                if (types[p->ty].half[k] >= 0) {
                    const uint16_t h = yk_f32_to_f16(0.1f * random_float());
                    memcpy(row + b + types[p->ty].half[k], &h, 2);
                }
        }
        ops->dequant[types[p->ty].type](row, p->n_cols, p->value + (size_t)r * p->n_cols);
    }
}

/* Whole panels, or (units) what gate rows of cut units look like: two panels, then other bytes. */
static void pack_weights(product *p)
{
    const yk_type type = types[p->ty].type;
    const uint64_t panel = yk_panel_bytes(type, p->n_cols), step = 4 * panel + 64;
    uint8_t *whole = piece(p->panels * panel);
    yk_pack(type, p->file, p->row_bytes, p->n_rows, 0, p->n_cols, whole);
    p->mv.tile_bytes = yk_tile_bytes(type, YK_TILE_COLS);
    if (!p->units) {
        p->packed = whole;
        p->packed_bytes = p->panels * panel;
        p->mv.panel_bytes = (uint32_t)panel;
        return;
    }
    p->packed_bytes = (p->panels + 1) / 2 * step;
    p->packed = piece(p->packed_bytes);
    memset(p->packed, 0x7e, p->packed_bytes);
    for (uint32_t i = 0; i < p->panels; i++)
        memcpy(p->packed + i / 2 * step + i % 2 * 2 * panel, whole + i * panel, panel);
    p->mv.panel_bytes = (uint32_t)(2 * panel);
    p->mv.group_panels = 2;
    p->mv.group_bytes = (uint32_t)step;
    free(whole);
}

static void fill_acts(product *p)
{
    const uint32_t blocks = p->n_cols / 32, rows = p->n + 3;
    p->x = piece((size_t)rows * p->n_cols * 4);
    p->q8 = (yk_q8){.q = piece((size_t)rows * p->n_cols),
                    .scale = piece((size_t)rows * blocks * 4),
                    .sum = piece((size_t)rows * blocks * 4),
                    .n_blocks = blocks};
    for (size_t i = 0; i < (size_t)rows * p->n_cols; i++)
        p->x[i] = p->extreme ? (i / p->n_cols % 2 ? 1.0f : -1.0f) : below(50) ? random_float() : 20.0f * random_float();
    for (uint32_t t = 0; t < rows; t++)
        ops->quantise(p->x + (size_t)t * p->n_cols, p->n_cols, &p->q8, t);
}

enum { ROWS = 1, BIAS = 2, WEIGHTS = 4, Y_ROWS = 8, ADD = 16 };

static void product_new(product *p, uint32_t flags)
{
    const uint32_t ys = p->n_rows + 3;
    p->panels = (p->n_rows + 15) / 16;
    p->mv = (yk_k_matvec){.type = types[p->ty].type,
                          .n = p->n,
                          .n_rows = p->n_rows,
                          .n_cols = p->n_cols,
                          .x_stride = p->n_cols / 32,
                          .y_stride = ys,
                          .add = (flags & ADD) != 0};
    fill_weights(p);
    pack_weights(p);
    fill_acts(p);
    p->bias = piece(p->n_rows * 4);
    p->weights = piece(p->n * 4);
    p->rows = piece(p->n * 4);
    p->y_rows = piece(p->n * 4);
    for (uint32_t r = 0; r < p->n_rows; r++)
        p->bias[r] = random_float();
    for (uint32_t t = 0; t < p->n; t++) {
        p->weights[t] = random_float();
        p->rows[t] = flags & ROWS ? below(p->n + 3) : t;
        p->y_rows[t] = flags & Y_ROWS ? p->n - 1 - t : t;
    }
    p->y[0] = piece((size_t)p->n * ys * 4);
    p->y[1] = piece((size_t)p->n * ys * 4);
    for (size_t i = 0; i < (size_t)p->n * ys; i++)
        p->y[0][i] = p->y[1][i] = random_float();
}

static void product_free(product *p)
{
    void *all[] = {p->file,    p->packed, p->value,  p->x,    p->y[0],     p->y[1],  p->bias,
                   p->weights, p->rows,   p->y_rows, p->q8.q, p->q8.scale, p->q8.sum};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* The arguments of the launch with y[which]; memory is told to the emulator. */
static void arguments(product *p, uint32_t flags, int which, yk_k_call *c, yk_host_arg *a, yk_emu *e)
{
    const uint32_t rows = p->n + 3, blocks = p->n_cols / 32;
    const struct {
        const char *name;
        yk_gpu_mem *mem;
        void *data;
        size_t bytes;
        bool given, written;
    } items[] = {{"w", &p->mv.w, p->packed, p->packed_bytes, true, false},
                 {"q", &p->mv.q8.q, p->q8.q, (size_t)rows * p->n_cols, true, false},
                 {"scale", &p->mv.q8.scale, p->q8.scale, (size_t)rows * blocks * 4, true, false},
                 {"sum", &p->mv.q8.sum, p->q8.sum, (size_t)rows * blocks * 4, true, false},
                 {"rows", &p->mv.rows, p->rows, p->n * 4, flags & ROWS, false},
                 {"bias", &p->mv.bias, p->bias, p->n_rows * 4, flags & BIAS, false},
                 {"weights", &p->mv.weights, p->weights, p->n * 4, flags & WEIGHTS, false},
                 {"y", &p->mv.y, p->y[which], ((size_t)p->n * p->mv.y_stride) * 4, true, true},
                 {"y_rows", &p->mv.y_rows, p->y_rows, p->n * 4, flags & Y_ROWS, false}};
    for (size_t i = 0; i < sizeof items / sizeof *items; i++) {
        *items[i].mem = (yk_gpu_mem){.handle = items[i].given ? items[i].data : NULL, .bytes = items[i].bytes};
        if (e && items[i].given)
            assert_true(yk_emu_memory(e, items[i].name, items[i].data, items[i].bytes, items[i].written));
    }
    yk_k_call_matvec(c, NULL, &p->mv);
    for (uint32_t i = 0; i < c->launch.n_args; i++)
        a[i] = (yk_host_arg){.base = c->args[i].kind == YK_ARG_MEM ? c->args[i].mem.handle : NULL,
                             .u32 = c->args[i].kind == YK_ARG_U32 ? c->args[i].u32 : 0};
}

static void check_truth(const product *p, uint32_t flags, const float *before)
{
    const yk_type type = types[p->ty].type;
    const double rel = yk_tolerance_find("matmul", yk_type_get(type)->name)->rel;
    for (uint32_t t = 0; t < p->n; t++) {
        for (uint32_t r = 0; r < p->n_rows; r++) {
            const uint32_t from = p->rows[t];
            double sum = 0, size = 0;
            for (uint32_t k = 0; k < p->n_cols; k++) {
                const double term = (double)p->value[(size_t)r * p->n_cols + k] *
                                    (double)p->q8.scale[from * (p->n_cols / 32) + k / 32] *
                                    p->q8.q[(size_t)from * p->n_cols + k];
                sum += term;
                size += fabs(term);
            }
            const size_t at = (size_t)p->y_rows[t] * p->mv.y_stride + r;
            const double w = flags & WEIGHTS ? (double)p->weights[t] : 1, b = flags & BIAS ? (double)p->bias[r] : 0,
                         old = flags & ADD ? (double)before[at] : 0, want = old + w * (sum + b);
            const double tol = rel * (fabs(w) * (size + fabs(b)) + fabs(old));
            if (!(fabs((double)p->y[1][at] - want) <= tol))
                fail_msg("token %u row %u: %.9g, not %.9g within %.3g", t, r, (double)p->y[1][at], want, tol);
        }
    }
}

/* Passes of the banks for 100 needed, by type. */
static uint32_t most_passes[N_TYPES];

static void run_product(product *p, uint32_t flags, bool sm_75)
{
    char name[32], what[160];
    yk_host_arg args[YK_GPU_MAX_ARGS];
    yk_k_call c;
    product_new(p, flags);
    const size_t y_bytes = (size_t)p->n * p->mv.y_stride * 4;
    float *before = piece(y_bytes);
    memcpy(before, p->y[0], y_bytes);
    snprintf(name, sizeof name, "mma_%s", types[p->ty].name);
    snprintf(what, sizeof what, "%s %ux%u n=%u flags=%u units=%u sm_%d", name, p->n_rows, p->n_cols, p->n, flags, p->units,
             sm_75 ? 75 : 80);
    arguments(p, flags, 0, &c, args, NULL);
    char twin[32];
    snprintf(twin, sizeof twin, "matmul_%s", types[p->ty].name);
    const uint32_t groups[3] = {p->panels, (p->n + 63) / 64, 1}, own[3] = {(p->panels + 3) / 4, (p->n + 63) / 64, 1};
    yk_null_kernel_run(yk_null_kernel_find(twin), groups, args);
    yk_emu *e = yk_emu_open();
    assert_non_null(e);
    arguments(p, flags, 1, &c, args, e);
    yk_emu_kernel_run(e, sm_75 ? yk_emu_find_75(name) : yk_emu_find_80(name), args, own);
    for (int k = 0; k < YK_EMU_KINDS; k++)
        if (yk_emu_count(e, (yk_emu_kind)k))
            fail_msg("%s: %s", what, yk_emu_line(e, (yk_emu_kind)k));
    for (size_t i = 0; i < y_bytes / 4; i++)
        if (yk_f32_bits(p->y[0][i]) != yk_f32_bits(p->y[1][i]))
            fail_msg("%s: y[%zu] is %.9g, by the dialect %.9g", what, i, (double)p->y[1][i], (double)p->y[0][i]);
    check_truth(p, flags, before);
    const yk_emu_banks banks = yk_emu_conflicts(e);
    const uint32_t passes = (uint32_t)(100 * banks.passes / banks.needed);
    if (passes > most_passes[p->ty])
        most_passes[p->ty] = passes;
    if (banks.worst > 1)
        fail_msg("%s: bank conflicts, at worst %u at +0x%lx", what, banks.worst, (unsigned long)banks.where);
    yk_emu_close(e);
    free(before);
    product_free(p);
}

/* Odd shapes: panels and warps that are missing, tiles that are cut short, parts that are empty, tokens of the last group. */
static void test_shapes(void **state)
{
    (void)state;
    static const struct {
        uint32_t rows, cols, n, flags, units;
    } shapes[] = {{1, 32, 16, 0, 0},      {16, 64, 17, BIAS, 0},    {40, 96, 64, WEIGHTS | ADD, 0},
                  {70, 160, 65, ROWS, 0}, {33, 288, 33, Y_ROWS, 0}, {64, 544, 20, ROWS | BIAS | ADD, 0},
                  {96, 256, 48, ROWS, 1}, {17, 1056, 16, 0, 0}};
    for (uint32_t ty = 0; ty < N_TYPES; ty++) {
        const bool k_type = yk_type_get(types[ty].type)->block_elems == 256;
        for (uint32_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            for (int old = 0; old < 2; old++) {
                product p = {
                    .ty = ty, .n_rows = shapes[i].rows, .n_cols = shapes[i].cols, .n = shapes[i].n, .units = shapes[i].units};
                if (k_type)
                    p.n_cols = (p.n_cols + 255) / 256 * 256;
                run_product(&p, shapes[i].flags, old);
            }
        }
    }
}

/* A longer one, with every stage of the pipeline in use many times. */
static void test_long(void **state)
{
    (void)state;
    for (uint32_t ty = 0; ty < N_TYPES; ty++) {
        product p = {.ty = ty, .n_rows = 80, .n_cols = 2560, .n = 70};
        run_product(&p, ROWS | Y_ROWS | WEIGHTS | BIAS | ADD, ty % 2);
    }
}

/* The integers that the floats of the sums have to hold. */
static void test_extremes(void **state)
{
    (void)state;
    for (uint32_t ty = 0; ty < N_TYPES; ty++) {
        product p = {.ty = ty, .n_rows = 20, .n_cols = 256, .n = 18, .extreme = true};
        run_product(&p, 0, ty % 2);
    }
}

/* After all others. */
static void test_banks(void **state)
{
    (void)state;
    for (uint32_t ty = 0; ty < N_TYPES; ty++) {
        print_message("%s: %u passes of the banks for 100 needed\n", types[ty].name, most_passes[ty]);
        assert_true(most_passes[ty] == 100);
    }
}

int main(void)
{
    ops = yk_ops_get(YK_ISA_REF);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes), cmocka_unit_test(test_long),
                                       cmocka_unit_test(test_extremes), cmocka_unit_test(test_banks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
