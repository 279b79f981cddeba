/* Kernels of gpu/kernels on one backend (first argument), against double precision and against the CPU's op: norms, rounding,
 * activations, moves, routing. Guard bytes and repeated bits are checked by the rig. */
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
#include "src/base/half.h"
#include "tests/gpu_rig.h"
#include "tests/tolerance.h"

static yk_rig rig;
static const yk_ops *ops;

static double rel_of(const char *op)
{
    return yk_tolerance_find(op, "")->rel;
}

typedef struct rounded {
    yk_gpu_mem q, scale, sum;
    uint32_t n_blocks, rows;
} rounded;

static rounded put_q8(uint32_t rows, uint32_t n_cols)
{
    const uint32_t nb = (n_cols + 31) / 32;
    return (rounded){yk_rig_out(&rig, NULL, (uint64_t)rows * nb * 32), yk_rig_out(&rig, NULL, (uint64_t)rows * nb * 4),
                     yk_rig_out(&rig, NULL, (uint64_t)rows * nb * 4), nb, rows};
}

/* The rounded rows have the bits of the CPU's for row t of x. */
static void check_q8(const rounded *r, const float *x, uint32_t n_cols, uint32_t stride)
{
    const uint32_t nb = r->n_blocks;
    int8_t *q = malloc((size_t)nb * 32);
    float *scale = malloc((size_t)nb * 4);
    int16_t *sum = malloc((size_t)nb * 4);
    for (uint32_t t = 0; t < r->rows; t++) {
        yk_q8 dst = {.q = q, .scale = scale, .sum = sum, .n_blocks = nb};
        ops->quantise(x + (size_t)t * stride, n_cols, &dst, 0);
        if (memcmp(q, (const int8_t *)yk_rig_got(&rig, r->q) + (size_t)t * nb * 32, (size_t)nb * 32) != 0 ||
            memcmp(scale, (const float *)yk_rig_got(&rig, r->scale) + (size_t)t * nb, (size_t)nb * 4) != 0 ||
            memcmp(sum, (const int16_t *)yk_rig_got(&rig, r->sum) + (size_t)t * nb * 2, (size_t)nb * 4) != 0)
            fail_msg("%s: row %u is not rounded as the CPU rounds it", rig.what, t);
    }
    free(q);
    free(scale);
    free(sum);
}

static void test_quantise(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 31, 32, 33, 255, 256, 2047, 2048, 2049, 4500};
    yk_gpu_kernel *k = yk_rig_kernel(&rig, "quantise");
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const uint32_t n = sizes[s], rows = 7, stride = n + 3;
        float *x = malloc((size_t)rows * stride * 4), *picked = malloc(3 * (size_t)stride * 4);
        yk_rig_floats(&rig, x, (size_t)rows * stride);
        for (uint32_t i = 0; i < n; i++) { /* row 3: denormals; row 5: an infinity and a NaN, halves between integers */
            x[3 * stride + i] = yk_rig_float(&rig) * 1e-40f;
            x[5 * stride + i] = i % 7 == 0 ? 127.0f : (float)(i % 253) / 2 - 63;
        }
        if (n > 100)
            x[5 * stride + 40] = INFINITY, x[5 * stride + 97] = NAN;
        const uint32_t list[3] = {5, 3, 0};
        for (int t = 0; t < 3; t++)
            memcpy(picked + (size_t)t * stride, x + (size_t)list[t] * stride, n * 4);
        for (int with_list = 0; with_list < 2; with_list++) {
            yk_rig_case(&rig, "quantise n=%u list=%d", n, with_list);
            const rounded r = put_q8(with_list ? 3 : rows, n);
            yk_k_quantise a = {.q8 = {r.q, r.scale, r.sum}, .n = r.rows, .n_cols = n, .x_stride = stride};
            a.x = yk_rig_in(&rig, x, (uint64_t)rows * stride * 4);
            if (with_list)
                a.rows = yk_rig_in(&rig, list, sizeof list);
            yk_k_call c;
            yk_k_call_quantise(&c, k, &a);
            yk_rig_run(&rig, &c, 1);
            check_q8(&r, with_list ? picked : x, n, stride);
        }
        free(x);
        free(picked);
    }
}

/* Random magnitudes over the whole range: both divisions are exact wherever the scale lies. */
static void test_quantise_scales(void **state)
{
    (void)state;
    enum { N = 32 * 4096 };
    float *x = malloc(N * 4);
    for (uint32_t b = 0; b < N / 32; b++) {
        const int e = (int)yk_rig_below(&rig, 220) - 94;
        for (uint32_t i = 0; i < 32; i++)
            x[32 * b + i] = ldexpf(yk_rig_float(&rig), e);
    }
    yk_rig_case(&rig, "quantise, %d scales", N / 32);
    const rounded r = put_q8(1, N);
    yk_k_call c;
    yk_k_call_quantise(
        &c, yk_rig_kernel(&rig, "quantise"),
        &(yk_k_quantise){.x = yk_rig_in(&rig, x, N * 4), .q8 = {r.q, r.scale, r.sum}, .n = 1, .n_cols = N, .x_stride = N});
    yk_rig_run(&rig, &c, 1);
    check_q8(&r, x, N, N);
    free(x);
}

static void norm_case(uint32_t n_cols, uint32_t n, uint32_t flags)
{
    enum { Y = 1, Y2 = 2, ROWS = 4, W = 8, B = 16, OUT = 32, Q8 = 64, THREE = 128 };
    const uint32_t n_y = flags & THREE ? 3 : 1;
    const uint32_t stride = n_cols + 1, ys = n_cols + 5, x_rows = n + 2;
    const float eps = 1e-5f;
    float *x = malloc((size_t)x_rows * stride * 4), *y = malloc((size_t)n * n_y * ys * 4), *y2 = malloc((size_t)n * ys * 4);
    float *w = malloc(n_cols * 4), *b = malloc(n_cols * 4);
    uint32_t *rows = malloc(n * 4);
    yk_rig_floats(&rig, x, (size_t)x_rows * stride);
    yk_rig_floats(&rig, y, (size_t)n * n_y * ys);
    yk_rig_floats(&rig, y2, (size_t)n * ys);
    yk_rig_floats(&rig, w, n_cols);
    yk_rig_floats(&rig, b, n_cols);
    for (uint32_t t = 0; t < n; t++)
        rows[t] = x_rows - 1 - t;
    yk_rig_case(&rig, "add_norm n_cols=%u n=%u flags=%u", n_cols, n, flags);
    yk_k_add_norm a = {.n = n,
                       .n_cols = n_cols,
                       .x_stride = stride,
                       .y_stride = ys,
                       .y2_stride = ys,
                       .out_stride = n_cols,
                       .n_y = n_y,
                       .eps = eps};
    rounded r = {0};
    a.x = flags & (Y | Y2) ? yk_rig_out(&rig, x, (uint64_t)x_rows * stride * 4)
                           : yk_rig_in(&rig, x, (uint64_t)x_rows * stride * 4);
    if (flags & Y)
        a.y = yk_rig_in(&rig, y, (uint64_t)n * n_y * ys * 4);
    if (flags & Y2)
        a.y2 = yk_rig_in(&rig, y2, (uint64_t)n * ys * 4);
    if (flags & ROWS)
        a.rows = yk_rig_in(&rig, rows, n * 4);
    if (flags & W)
        a.w = yk_rig_in(&rig, w, n_cols * 4);
    if (flags & B)
        a.b = yk_rig_in(&rig, b, n_cols * 4);
    if (flags & OUT)
        a.out = yk_rig_out(&rig, NULL, (uint64_t)n * n_cols * 4);
    if (flags & Q8) {
        r = put_q8(n, n_cols);
        a.q8 = (yk_k_q8){r.q, r.scale, r.sum};
    }
    yk_k_call c;
    yk_k_call_add_norm(&c, yk_rig_kernel(&rig, "add_norm"), &a);
    yk_rig_run(&rig, &c, 1);
    float *cpu = malloc(n_cols * 4);
    for (uint32_t t = 0; t < n; t++) {
        float *xr = x + (size_t)(flags & ROWS ? rows[t] : t) * stride;
        double squares = 0;
        for (uint32_t i = 0; i < n_cols; i++) {
            float sum = y[(size_t)t * n_y * ys + i];
            for (uint32_t k = 1; k < n_y; k++)
                sum += y[((size_t)t * n_y + k) * ys + i];
            if (flags & Y)
                xr[i] += sum;
            if (flags & Y2)
                xr[i] += y2[(size_t)t * ys + i];
            squares += (double)xr[i] * xr[i];
        }
        ops->rms_norm(xr, flags & W ? w : NULL, flags & B ? b : NULL, n_cols, eps, cpu);
        for (uint32_t i = 0; (flags & OUT) && i < n_cols; i++) {
            const double v = xr[i] / sqrt(squares / n_cols + eps) * (flags & W ? w[i] : 1), want = v + (flags & B ? b[i] : 0);
            const double size = fabs(v) + (flags & B ? fabs(b[i]) : 0),
                         got = ((const float *)yk_rig_got(&rig, a.out))[(size_t)t * n_cols + i];
            yk_rig_near(&rig, "out", i, got, want, rel_of("rms_norm") * size);
            yk_rig_near(&rig, "out against the CPU", i, got, cpu[i], 2 * rel_of("rms_norm") * size);
        }
    }
    if (flags & (Y | Y2))
        assert_memory_equal(yk_rig_got(&rig, a.x), x, (size_t)x_rows * stride * 4);
    if ((flags & Q8) && (flags & OUT))
        check_q8(&r, yk_rig_got(&rig, a.out), n_cols, n_cols);
    free(cpu);
    free(x);
    free(y);
    free(y2);
    free(w);
    free(b);
    free(rows);
}

static void test_add_norm(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 33, 64, 257, 2048, 2080, 5000};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        norm_case(sizes[s], 3, 1 | 8 | 32 | 64);
    norm_case(300, 1, 32);
    norm_case(300, 2, 8 | 16 | 32 | 64);
    norm_case(300, 4, 1 | 2 | 4 | 8 | 16 | 32 | 64);
    norm_case(4096, 2, 4 | 8 | 64);
    norm_case(96, 2, 2 | 32);
    norm_case(2080, 3, 1 | 2 | 8 | 32 | 64 | 128);
    norm_case(100, 2, 1 | 128);
}

static void test_glu(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 32, 100, 2048, 2500};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int kind = 0; kind < 2; kind++) {
            const uint32_t n_cols = sizes[s], n = 3, gs = n_cols + 2, us = n_cols;
            float *g = malloc((size_t)n * gs * 4), *u = malloc((size_t)n * us * 4), *cpu = malloc(n_cols * 4);
            yk_rig_floats(&rig, g, (size_t)n * gs);
            yk_rig_floats(&rig, u, (size_t)n * us);
            g[0] = n_cols > 50 ? NAN : 100.0f;
            if (n_cols > 50)
                g[1] = 95.0f, g[2] = -95.0f, u[3] = -30.0f;
            yk_rig_case(&rig, "glu n_cols=%u kind=%d", n_cols, kind);
            const rounded r = put_q8(n, n_cols);
            const yk_k_glu a = {.gate = yk_rig_in(&rig, g, (uint64_t)n * gs * 4),
                                .up = yk_rig_in(&rig, u, (uint64_t)n * us * 4),
                                .out = yk_rig_out(&rig, NULL, (uint64_t)n * n_cols * 4),
                                .q8 = {r.q, r.scale, r.sum},
                                .n = n,
                                .n_cols = n_cols,
                                .gate_stride = gs,
                                .up_stride = us,
                                .out_stride = n_cols,
                                .kind = kind ? YK_GLU_CLAMPED : YK_GLU_SILU};
            yk_k_call c;
            yk_k_call_glu(&c, yk_rig_kernel(&rig, "glu"), &a);
            yk_rig_run(&rig, &c, 1);
            const float *out = yk_rig_got(&rig, a.out);
            for (uint32_t t = 0; t < n; t++) {
                ops->glu(g + (size_t)t * gs, u + (size_t)t * us, n_cols, a.kind, cpu);
                for (uint32_t i = 0; i < n_cols; i++) {
                    const double gv = kind ? fmin(g[t * gs + i], 7) : g[t * gs + i];
                    const double uv = kind ? fmax(fmin(u[t * us + i], 7), -7) + 1 : u[t * us + i];
                    const double want = gv / (1 + exp((kind ? -1.702 : -1) * gv)) * uv;
                    const double tol = rel_of(fabs(gv) > 4 ? "glu-large" : "glu");
                    const float got = out[(size_t)t * n_cols + i];
                    if (isnan(g[t * gs + i])) {
                        assert_true(isnan(got));
                        continue;
                    }
                    yk_rig_near(&rig, "out", i, got, want, tol * fabs(want) + 1e-38);
                    yk_rig_near(&rig, "out against the CPU", i, got, cpu[i], tol * fabs(want) + 1e-38);
                }
            }
            check_q8(&r, out, n_cols, n_cols);
            free(g);
            free(u);
            free(cpu);
        }
    }
}

/* Gate and up in one buffer, with biases; with ids, parts of several widths: the bits of glu on each row alone. */
static void glu_form(bool ids, yk_glu kind)
{
    enum { N = 4, PARTS = 3 };
    static const uint32_t widths[PARTS] = {2112, 96, 37}, part_of[N] = {1, 0, 2, 0};
    const uint32_t most = widths[0], stride = (most + 15) / 16 * 32 + 3;
    float *both = malloc((size_t)N * stride * 4), *b[2] = {malloc((size_t)PARTS * most * 4), malloc((size_t)PARTS * most * 4)};
    float *side[2] = {calloc((size_t)N * most, 4), calloc((size_t)N * most, 4)};
    uint32_t rows[PARTS][YK_K_PART_WORDS] = {{0}};
    yk_rig_floats(&rig, both, (size_t)N * stride);
    yk_rig_floats(&rig, b[0], (size_t)PARTS * most);
    yk_rig_floats(&rig, b[1], (size_t)PARTS * most);
    for (uint32_t p = 0; p < PARTS; p++) { /* words 2 to 4: units, their width, the narrower one's */
        rows[p][2] = widths[p] / 64;
        rows[p][3] = 64;
        rows[p][4] = widths[p] % 64;
    }
    yk_rig_case(&rig, "glu, gate and up in turn, ids=%d kind=%d", ids, (int)kind);
    const rounded r = put_q8(N, most);
    yk_k_call c[1 + N];
    yk_k_glu a = {.gate = yk_rig_in(&rig, both, (uint64_t)N * stride * 4),
                  .gate_b = yk_rig_in(&rig, b[0], (uint64_t)PARTS * most * 4),
                  .up_b = yk_rig_in(&rig, b[1], (uint64_t)PARTS * most * 4),
                  .out = yk_rig_out(&rig, side[0], (uint64_t)N * most * 4),
                  .q8 = {r.q, r.scale, r.sum},
                  .n = N,
                  .n_cols = most,
                  .gate_stride = stride,
                  .out_stride = most,
                  .kind = kind};
    if (ids) {
        a.ids = yk_rig_in(&rig, part_of, sizeof part_of);
        a.parts = yk_rig_in(&rig, rows, sizeof rows);
    }
    yk_k_call_glu(&c[0], yk_rig_kernel(&rig, "glu"), &a);
    yk_gpu_mem want[N];
    for (uint32_t t = 0; t < N; t++) {
        const uint32_t id = ids ? part_of[t] : 0, cols = widths[id];
        for (uint32_t s = 0; s < 2; s++)
            for (uint32_t i = 0; i < cols; i++)
                side[s][(size_t)t * most + i] =
                    both[(size_t)t * stride + i / 16 * 32 + 16 * s + i % 16] + b[s][(size_t)id * cols + i];
        want[t] = yk_rig_out(&rig, NULL, cols * 4);
        yk_k_call_glu(&c[1 + t], yk_rig_kernel(&rig, "glu"),
                      &(yk_k_glu){.gate = yk_rig_in(&rig, side[0] + (size_t)t * most, cols * 4),
                                  .up = yk_rig_in(&rig, side[1] + (size_t)t * most, cols * 4),
                                  .out = want[t],
                                  .n = 1,
                                  .n_cols = cols,
                                  .kind = kind});
    }
    yk_rig_run(&rig, c, 1 + N);
    for (uint32_t t = 0; t < N; t++) {
        const uint32_t cols = widths[ids ? part_of[t] : 0];
        const float *out = (const float *)yk_rig_got(&rig, a.out) + (size_t)t * most;
        assert_memory_equal(out, yk_rig_got(&rig, want[t]), cols * 4);
        for (uint32_t i = cols; i < most; i++)
            assert_true(out[i] == 0); /* as it was */
    }
    if (!ids)
        check_q8(&r, yk_rig_got(&rig, a.out), most, most);
    free(both);
    for (int s = 0; s < 2; s++) {
        free(b[s]);
        free(side[s]);
    }
}

static void test_glu_forms(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++)
        glu_form(i & 1, i & 2 ? YK_GLU_CLAMPED : YK_GLU_SILU);
}

static void test_move_rows(void **state)
{
    (void)state;
    enum { N = 5, X_ROWS = 9, Y_ROWS = 8 };
    static const uint32_t from[N] = {8, 0, 3, 3, 7}, to[N] = {1, 7, 0, 4, 2};
    for (uint32_t flags = 0; flags < 32; flags++) {
        const bool add = flags & 1, f16 = flags & 2, listed = flags & 4, weighted = flags & 8;
        const uint32_t n_cols = flags & 16 ? 1500 : 31, xs = n_cols + 3, ys = n_cols + 1, elem = f16 ? 2 : 4;
        float *x = malloc((size_t)X_ROWS * xs * 4), *y = malloc((size_t)Y_ROWS * ys * 4), w[N];
        yk_rig_floats(&rig, x, (size_t)X_ROWS * xs);
        yk_rig_floats(&rig, y, (size_t)Y_ROWS * ys);
        yk_rig_floats(&rig, w, N);
        yk_rig_case(&rig, "move_rows flags=%u", flags);
        yk_k_move_rows a = {.n = N, .n_cols = n_cols, .x_stride = xs, .y_stride = ys, .add = add, .to_f16 = f16};
        a.x = yk_rig_in(&rig, x, (uint64_t)X_ROWS * xs * 4);
        a.y = yk_rig_out(&rig, y, (uint64_t)Y_ROWS * ys * elem);
        if (listed)
            a.rows = yk_rig_in(&rig, from, sizeof from), a.y_rows = yk_rig_in(&rig, to, sizeof to);
        if (weighted)
            a.weights = yk_rig_in(&rig, w, sizeof w);
        yk_k_call c;
        yk_k_call_move_rows(&c, yk_rig_kernel(&rig, "move_rows"), &a);
        yk_rig_run(&rig, &c, 1);
        for (uint32_t t = 0; t < N; t++) {
            for (uint32_t i = 0; i < n_cols; i++) {
                const float v = x[(size_t)(listed ? from[t] : t) * xs + i], scaled = weighted ? w[t] * v : v;
                const size_t at = (size_t)(listed ? to[t] : t) * ys + i;
                if (f16)
                    ((uint16_t *)(void *)y)[at] = yk_f32_to_f16(scaled);
                else
                    y[at] = add ? y[at] + scaled : scaled;
            }
        }
        assert_memory_equal(yk_rig_got(&rig, a.y), y, (size_t)Y_ROWS * ys * elem);
        free(x);
        free(y);
    }
}

static void test_sigmoid(void **state)
{
    (void)state;
    enum { N = 1100 };
    float x[N];
    yk_rig_floats(&rig, x, N);
    x[0] = -120.0f;
    x[1] = 120.0f;
    yk_rig_case(&rig, "sigmoid");
    const yk_gpu_mem m = yk_rig_in(&rig, x, sizeof x), y = yk_rig_out(&rig, NULL, sizeof x);
    yk_k_call c;
    yk_k_call_sigmoid(&c, yk_rig_kernel(&rig, "sigmoid"), m, y, N);
    yk_rig_run(&rig, &c, 1);
    for (uint32_t i = 0; i < N; i++) {
        const double want = 1 / (1 + exp(-(double)x[i]));
        yk_rig_near(&rig, "y", i, ((const float *)yk_rig_got(&rig, y))[i], want, rel_of("glu") * want + 1e-38);
    }
}

static void test_route(void **state)
{
    (void)state;
    static const uint32_t shapes[][2] = {{1, 1}, {4, 2}, {8, 8}, {60, 4}, {64, 6}, {65, 8}, {128, 8}, {512, 10}, {1024, 64}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (int variant = 0; variant < 12; variant++) { /* from 4 on with a shared expert, from 8 on with a gate of its own */
            const uint32_t n_experts = shapes[s][0], k = shapes[s][1], n = 5, stride = n_experts + 1, used = k + (variant >= 4);
            float *lg = malloc((size_t)n * stride * 4), w[64];
            uint32_t ids[64];
            yk_rig_floats(&rig, lg, (size_t)n * stride);
            for (uint32_t e = 0; e < n_experts; e++) { /* row 1: all equal; row 2: few values; row 3: NaN and infinities */
                lg[stride + e] = 0.25f;
                lg[2 * stride + e] = (float)(e % 3);
                if (e % 5 == 1)
                    lg[3 * stride + e] = NAN;
                if (e % 7 == 2)
                    lg[3 * stride + e] = -INFINITY;
            }
            yk_rig_case(&rig, "route n_experts=%u k=%u variant=%d", n_experts, k, variant);
            const yk_k_route a = {.logits = yk_rig_in(&rig, lg, (uint64_t)n * stride * 4),
                                  .ids = yk_rig_out(&rig, NULL, n * used * 4),
                                  .weights = yk_rig_out(&rig, NULL, n * used * 4),
                                  .n = n,
                                  .n_experts = n_experts,
                                  .k = k,
                                  .stride = stride,
                                  .kind = variant & 1 ? YK_ROUTER_TOPK_SOFTMAX : YK_ROUTER_SOFTMAX_TOPK,
                                  .renorm = variant & 2,
                                  .shared = variant >= 4,
                                  .shared_gate = variant >= 8};
            yk_k_call c;
            yk_k_call_route(&c, yk_rig_kernel(&rig, "route"), &a);
            yk_rig_run(&rig, &c, 1);
            for (uint32_t t = 0; t < n; t++) {
                ops->route(lg + (size_t)t * stride, n_experts, k, a.kind, a.renorm, ids, w);
                assert_memory_equal((const uint32_t *)yk_rig_got(&rig, a.ids) + t * used, ids, k * 4);
                if (used > k) {
                    const double shared = variant < 8 ? 1 : 1 / (1 + exp(-(double)lg[(size_t)t * stride + n_experts]));
                    assert_int_equal(((const uint32_t *)yk_rig_got(&rig, a.ids))[t * used + k], n_experts);
                    yk_rig_near(&rig, "shared", t, ((const float *)yk_rig_got(&rig, a.weights))[t * used + k], shared,
                                rel_of("route") * shared + 1e-38);
                }
                for (uint32_t j = 0; j < k; j++) {
                    const float got = ((const float *)yk_rig_got(&rig, a.weights))[t * used + j];
                    if (isnan(w[j]))
                        assert_true(isnan(got));
                    else
                        yk_rig_near(&rig, "weights", j, got, w[j], rel_of("route") * fabsf(w[j]) + 1e-38);
                }
            }
            free(lg);
        }
    }
}

static void test_rowmat(void **state)
{
    (void)state;
    static const uint32_t shapes[][2] = {{1, 1}, {5, 63}, {8, 64}, {60, 200}, {128, 2049}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (int variant = 0; variant < 6; variant++) {
            const uint32_t n_rows = shapes[s][0], n_cols = shapes[s][1], n = 3, xs = n_cols + 2, ys = n_rows + 1;
            const bool bias = variant & 1;
            const yk_type type = variant < 2 ? YK_TYPE_F32 : variant < 4 ? YK_TYPE_F16 : YK_TYPE_BF16;
            float *x = malloc((size_t)n * xs * 4), *w = malloc((size_t)n_rows * n_cols * 4), *b = malloc(n_rows * 4);
            float *cpu = malloc((size_t)n * n_rows * 4);
            uint16_t *h = malloc((size_t)n_rows * n_cols * 2);
            yk_rig_floats(&rig, x, (size_t)n * xs);
            yk_rig_floats(&rig, w, (size_t)n_rows * n_cols);
            yk_rig_floats(&rig, b, n_rows);
            for (size_t i = 0; type != YK_TYPE_F32 && i < (size_t)n_rows * n_cols; i++) {
                h[i] = type == YK_TYPE_F16 ? yk_f32_to_f16(w[i]) : yk_f32_to_bf16(w[i]);
                w[i] = type == YK_TYPE_F16 ? yk_f16_to_f32(h[i]) : yk_bf16_to_f32(h[i]);
            }
            yk_rig_case(&rig, "rowmat %ux%u variant=%d", n_rows, n_cols, variant);
            yk_k_rowmat a = {.x = yk_rig_in(&rig, x, (uint64_t)n * xs * 4),
                             .y = yk_rig_out(&rig, NULL, (uint64_t)n * ys * 4),
                             .n = n,
                             .n_rows = n_rows,
                             .n_cols = n_cols,
                             .x_stride = xs,
                             .y_stride = ys,
                             .type = type};
            a.w = type != YK_TYPE_F32 ? yk_rig_in(&rig, h, (uint64_t)n_rows * n_cols * 2)
                                      : yk_rig_in(&rig, w, (uint64_t)n_rows * n_cols * 4);
            if (bias)
                a.bias = yk_rig_in(&rig, b, n_rows * 4);
            /* the second matrix: row 0 again, as f32 or as it is */
            a.w2 = variant & 1 ? yk_rig_in(&rig, w, (uint64_t)n_cols * 4) : a.w;
            a.type2 = variant & 1 ? YK_TYPE_F32 : type;
            yk_k_call c;
            yk_k_call_rowmat(&c, yk_rig_kernel(&rig, "rowmat"), &a);
            yk_rig_run(&rig, &c, 1);
            ops->matmul[YK_TYPE_F32](&(yk_matmul){.w = (const uint8_t *)w,
                                                  .row_bytes = (uint64_t)n_cols * 4,
                                                  .n_rows = n_rows,
                                                  .n_cols = n_cols,
                                                  .x = x,
                                                  .x_stride = xs,
                                                  .n_tokens = n,
                                                  .y = cpu,
                                                  .y_stride = n_rows});
            for (uint32_t t = 0; t < n; t++) {
                for (uint32_t i = 0; i < n_rows + 1; i++) {
                    const uint32_t row = i < n_rows ? i : 0;
                    const float plus = bias && i < n_rows ? b[i] : 0;
                    double want = plus, size = fabs(want);
                    for (uint32_t j = 0; j < n_cols; j++) {
                        want += (double)w[(size_t)row * n_cols + j] * x[(size_t)t * xs + j];
                        size += fabs((double)w[(size_t)row * n_cols + j] * x[(size_t)t * xs + j]);
                    }
                    const double got = ((const float *)yk_rig_got(&rig, a.y))[t * ys + i],
                                 tol = yk_tolerance_find("matmul", "F32")->rel * size;
                    yk_rig_near(&rig, "y", i, got, want, tol);
                    yk_rig_near(&rig, "y against the CPU", i, got, (double)cpu[t * n_rows + row] + plus, 2 * tol);
                }
            }
            free(x);
            free(w);
            free(b);
            free(cpu);
            free(h);
        }
    }
}

int main(int argc, char **argv)
{
    const int e = yk_rig_open(&rig, argc > 1 ? argv[1] : "null");
    if (e)
        return e;
    ops = yk_ops_get(YK_ISA_REF);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantise), cmocka_unit_test(test_quantise_scales), cmocka_unit_test(test_add_norm),
        cmocka_unit_test(test_glu),      cmocka_unit_test(test_glu_forms),       cmocka_unit_test(test_move_rows),
        cmocka_unit_test(test_sigmoid),  cmocka_unit_test(test_route),           cmocka_unit_test(test_rowmat),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    yk_rig_close(&rig);
    return failed;
}
