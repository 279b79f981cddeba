/* The emulator of CUDA kernels: each mistake it is to find, in a kernel that makes it and nothing else; its instructions against their definition;
 * kernels of the dialect through it, with the bits of their host form and without a finding. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/cuda/emu/kernels.h"
#include "gpu/kernels.h"
#include "src/base/half.h"
#include "tests/cuda_emu/wrong.h"

static uint64_t seed = 7;

static uint32_t random32(void)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(seed >> 32);
}

static float random_float(void)
{
    return (float)(random32() >> 8) * 0x1p-23f - 1.0f;
}

/* Nothing follows them that kernels may use. */
static _Alignas(16) uint32_t in_and_gap[EMU_WORDS + 64], out_and_gap[EMU_WORDS + 64];
static uint32_t *const in = in_and_gap, *const out = out_and_gap;
enum { BYTES = EMU_WORDS * 4 };

static yk_emu *emu_new(const emu_args *a)
{
    yk_emu *e = yk_emu_open();
    assert_non_null(e);
    assert_true(yk_emu_memory(e, "args", a, sizeof *a, false));
    assert_true(yk_emu_memory(e, "in", in, BYTES, false));
    assert_true(yk_emu_memory(e, "out", out, BYTES, true));
    return e;
}

static void no_findings(const yk_emu *e, const char *what)
{
    for (int k = 0; k < YK_EMU_KINDS; k++)
        if (yk_emu_count(e, (yk_emu_kind)k))
            fail_msg("%s: %s", what, yk_emu_line(e, (yk_emu_kind)k));
}

static void test_mistakes(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < EMU_WORDS; i++)
        in[i] = random32();
    for (uint32_t i = 0; i < emu_n_cases; i++) {
        const emu_case *c = &emu_cases[i];
        const emu_args a = {in, out, 0};
        yk_emu *e = emu_new(&a);
        yk_emu_run(e, c->kernel, &a, (const uint32_t[3]){2, 1, 1}, c->threads);
        for (int k = 0; k < YK_EMU_KINDS; k++) {
            const bool found = yk_emu_count(e, (yk_emu_kind)k) != 0;
            if (found != (k == c->wrong))
                fail_msg("%s: kind %d %s (%s)", c->name, k, found ? "found" : "not found", yk_emu_line(e, (yk_emu_kind)k));
        }
        if (c->wrong >= 0)
            print_message("%s: %s\n", c->name, yk_emu_line(e, (yk_emu_kind)c->wrong));
        if (c->worst && yk_emu_conflicts(e).worst != c->worst)
            fail_msg("%s: bank conflicts %u, not %u", c->name, yk_emu_conflicts(e).worst, c->worst);
        yk_emu_close(e);
    }
}

/* ---- mma: the ISA's own words for where element i of a lane lies, against the product of whole matrices ---- */

static int8_t byte_of(const uint32_t *regs, uint32_t i)
{
    return (int8_t)(regs[i / 4] >> 8 * (i % 4));
}

static double half_of(const uint32_t *regs, uint32_t i, bool bf16)
{
    const uint16_t h = (uint16_t)(regs[i / 2] >> 16 * (i % 2));
    return bf16 ? (double)yk_bits_f32((uint32_t)h << 16) : (double)yk_f16_to_f32(h);
}

static uint32_t random_half(bool bf16)
{
    const float v = random_float();
    return bf16 ? yk_f32_bits(v) >> 16 : yk_f32_to_f16(v);
}

static void test_mma(void **state)
{
    (void)state;
    static const struct {
        yk_emu_mma_kind kind;
        uint32_t rows, k, bits;
        bool bf16;
    } kinds[] = {{YK_EMU_M8N8K16_S8, 8, 16, 8, false},     {YK_EMU_M16N8K16_S8, 16, 16, 8, false},
                 {YK_EMU_M16N8K32_S8, 16, 32, 8, false},   {YK_EMU_M16N8K16_F16, 16, 16, 16, false},
                 {YK_EMU_M16N8K16_BF16, 16, 16, 16, true}, {YK_EMU_M16N8K8_F16, 16, 8, 16, false}};
    for (uint32_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const uint32_t rows = kinds[i].rows, k = kinds[i].k, per = 32 / kinds[i].bits;
        double a[16][32] = {{0}}, b[32][8] = {{0}}, c[16][8];
        const emu_args args = {in, out, kinds[i].kind};
        yk_emu *e = emu_new(&args);
        for (uint32_t w = 0; w < 320; w++)
            in[w] = per == 4 ? random32() : random_half(kinds[i].bf16) | random_half(kinds[i].bf16) << 16;
        for (uint32_t lane = 0; lane < 32; lane++) {
            const uint32_t group = lane >> 2, in_group = lane % 4;
            for (uint32_t x = 0; x < rows * k / 32; x++) {
                /* 8 bits: groupID for 0 <= x < 4 or 8 <= x < 12, else + 8; column + 16 from 8 on. 16 bits: 0 <= x < 2 or 4 <= x < 6; + 8 from 4 on */
                const bool low = per == 4 ? x < 4 || (x >= 8 && x < 12) : x < 2 || (x >= 4 && x < 6);
                const uint32_t row = low ? group : group + 8, col = in_group * per + x % per + (x >= 2 * per ? 4 * per : 0);
                a[row][col] = per == 4 ? byte_of(in + 4 * lane, x) : half_of(in + 4 * lane, x, kinds[i].bf16);
            }
            for (uint32_t x = 0; x < k / 4; x++)
                b[in_group * per + x % per + (x >= per ? 4 * per : 0)][group] =
                    per == 4 ? byte_of(in + 128 + 2 * lane, x) : half_of(in + 128 + 2 * lane, x, kinds[i].bf16);
            for (uint32_t x = 0; x < rows / 4; x++) {
                uint32_t *w = &in[192 + 4 * lane + x];
                *w = per == 4 ? random32() >> 4 : yk_f32_bits(random_float());
                c[x < 2 ? group : group + 8][in_group * 2 + (x & 1)] = per == 4 ? (double)*w : (double)yk_bits_f32(*w);
            }
        }
        assert_true(yk_emu_run(e, emu_mma_kernel, &args, (const uint32_t[3]){1, 1, 1}, 32));
        no_findings(e, "mma");
        for (uint32_t lane = 0; lane < 32; lane++) {
            for (uint32_t x = 0; x < rows / 4; x++) {
                const uint32_t row = (lane >> 2) + (x < 2 ? 0 : 8), col = lane % 4 * 2 + (x & 1), got = out[4 * lane + x];
                double want = c[row][col];
                for (uint32_t y = 0; y < k; y++)
                    want += a[row][y] * b[y][col];
                if (per == 4)
                    assert_int_equal((int32_t)got, (int32_t)want);
                else
                    assert_true(fabs((double)yk_bits_f32(got) - want) <= 0x1p-23 * fabs(want) + 0x1p-40);
            }
        }
        yk_emu_close(e);
    }
}

static void test_ldmatrix(void **state)
{
    (void)state;
    for (uint32_t trans = 0; trans < 2; trans++) {
        const emu_args args = {in, out, trans};
        yk_emu *e = emu_new(&args);
        uint16_t m[4][8][8];
        for (uint32_t i = 0; i < 128; i++)
            in[i] = random32();
        memcpy(m, in, sizeof m);
        assert_true(yk_emu_run(e, emu_ldmatrix_kernel, &args, (const uint32_t[3]){1, 1, 1}, 32));
        no_findings(e, "ldmatrix");
        for (uint32_t lane = 0; lane < 32; lane++)
            for (uint32_t i = 0; i < 4; i++)
                for (uint32_t j = 0; j < 2; j++) {
                    const uint32_t r = lane / 4, c = 2 * (lane % 4) + j;
                    assert_int_equal(out[4 * lane + i] >> 16 * j & 0xffff, trans ? m[i][c][r] : m[i][r][c]);
                }
        yk_emu_close(e);
    }
}

static void test_lanes(void **state)
{
    (void)state;
    const emu_args args = {in, out, 0};
    yk_emu *e = emu_new(&args);
    for (uint32_t i = 0; i < 64; i++)
        in[i] = random32();
    assert_true(yk_emu_run(e, emu_lanes_kernel, &args, (const uint32_t[3]){3, 2, 1}, 64));
    no_findings(e, "lanes");
    for (uint32_t g = 0; g < 6; g++) {
        for (uint32_t t = 0; t < 64; t++) {
            const uint32_t *o = out + 8 * (64 * g + t), lane = t % 32, *v = in + t / 32 * 32;
            uint32_t thirds = 0;
            for (uint32_t i = 0; i < 32; i++)
                thirds |= (uint32_t)((t / 32 * 32 + i) % 3 == 0) << i;
            assert_int_equal(o[0], v[3]);
            assert_int_equal(o[1], v[lane ^ 5]);
            assert_int_equal(o[2], lane + 4 < 32 ? v[lane + 4] : v[lane]);
            assert_int_equal(o[3], lane >= 4 ? v[lane - 4] : v[lane]);
            assert_int_equal(o[4], thirds);
            assert_int_equal(o[5], lane < 8 ? 0xaau : 0xffffff00u);
            assert_int_equal(o[6], g % 3 + 16 * (g / 3));
            assert_int_equal(o[7], thirds);
        }
    }
    yk_emu_close(e);
}

static void test_copy(void **state)
{
    (void)state;
    const emu_args args = {in, out, 0};
    yk_emu *e = emu_new(&args);
    assert_true(yk_emu_run(e, emu_copy_kernel, &args, (const uint32_t[3]){1, 1, 1}, 64));
    no_findings(e, "copy");
    for (uint32_t t = 0; t < 64; t++)
        assert_int_equal(out[t], t % 4 < 2 ? in[t] : 0);
    yk_emu_close(e);
}

/* ---- kernels of the dialect ---- */

enum { SPACE = 1 << 20 };
static uint8_t *given, *host;

/* A launch on the host form (given is copied first) and in the emulator; the same bytes. */
static void both(const char *name, const yk_k_call *c)
{
    yk_host_arg a[YK_GPU_MAX_ARGS], h[YK_GPU_MAX_ARGS];
    memset(a, 0, sizeof a);
    for (uint32_t i = 0; i < c->launch.n_args; i++) {
        const yk_gpu_arg *from = &c->args[i];
        if (from->kind == YK_ARG_MEM && from->mem.handle)
            a[i] = (yk_host_arg){.base = given, .at = from->mem.offset};
        else if (from->kind == YK_ARG_U32)
            a[i].u32 = from->u32;
        else if (from->kind == YK_ARG_F32)
            a[i].f32 = from->f32;
    }
    memcpy(h, a, sizeof a);
    for (uint32_t i = 0; i < c->launch.n_args; i++)
        h[i].base = a[i].base ? host : NULL;
    memcpy(host, given, SPACE);
    yk_null_kernel_run(yk_null_kernel_find(name), c->launch.groups, h);
    yk_emu *e = yk_emu_open();
    assert_non_null(e);
    assert_true(yk_emu_memory(e, "given", given, SPACE, true));
    if (!yk_emu_kernel_run(e, yk_emu_find_80(name), a, c->launch.groups))
        no_findings(e, name);
    no_findings(e, name);
    assert_memory_equal(given, host, SPACE);
    const yk_emu_banks banks = yk_emu_conflicts(e);
    print_message("%s: %.2f passes of the banks for each needed, at worst %u at +0x%lx\n", name,
                  banks.needed ? (double)banks.passes / (double)banks.needed : 1.0, banks.worst, (unsigned long)banks.where);
    yk_emu_close(e);
}

static uint64_t used;

static yk_gpu_mem floats(uint32_t n)
{
    const yk_gpu_mem m = {.handle = given, .offset = used, .bytes = 4ull * n};
    for (uint32_t i = 0; i < n; i++) {
        const float v = random_float();
        memcpy(given + used + 4 * i, &v, 4);
    }
    used += (4ull * n + 63) / 64 * 64;
    assert_true(used <= SPACE);
    return m;
}

static yk_gpu_mem numbers(uint32_t n, uint32_t step)
{
    const yk_gpu_mem m = floats(n);
    for (uint32_t i = 0; i < n; i++)
        ((uint32_t *)(void *)(given + m.offset))[i] = i * step;
    return m;
}

static void attend_case(void)
{
    enum { N = 2, HEADS = 4, POSITIONS = 144 };
    yk_k_call c;
    used = 0;
    const yk_k_attend one = {.rope = {.qkv = floats(N * 8 * 64),
                                      .q_norm = floats(64),
                                      .k_norm = floats(64),
                                      .cs = floats(POSITIONS * 64),
                                      .pos = numbers(N, 140),
                                      .seq = numbers(N, 1),
                                      .kv = {.kv = floats(N * POSITIONS * 2 * 2 * 64),
                                             .table = numbers(N * POSITIONS / 16, 1),
                                             .block_bytes = 16 * 2 * 2 * 64 * 4,
                                             .v_bytes = 16 * 2 * 64 * 4,
                                             .table_stride = POSITIONS / 16},
                                      .n = N,
                                      .qkv_stride = 8 * 64,
                                      .n_heads = HEADS,
                                      .n_kv_heads = 2,
                                      .head_dim = 64,
                                      .n_rot = 64,
                                      .eps = 1e-5f,
                                      .pairing = YK_ROPE_HALVES},
                             .sinks = floats(HEADS),
                             .out = floats(N * HEADS * 64),
                             .q8 = {.q = floats(N * HEADS * 16), .scale = floats(N * HEADS * 2), .sum = floats(N * HEADS * 2)},
                             .part = floats(N * (uint32_t)yk_k_attention_part_bytes(HEADS, 2, 64, POSITIONS) / 4),
                             .arrived = numbers(N * HEADS, 0),
                             .n_splits = yk_k_attention_splits(140, 0, 64),
                             .out_stride = HEADS * 64,
                             .scale = 0.125f};
    yk_k_call_attend(&c, NULL, &one);
    both("attend", &c);
}

static void test_dialect(void **state)
{
    (void)state;
    enum { COLS = 2112, N = 3, EXPERTS = 60, HEADS = 4, DIM = 40, POSITIONS = 80 };
    given = aligned_alloc(64, SPACE);
    host = aligned_alloc(64, SPACE);
    assert_true(given && host);
    memset(given, 0, SPACE);
    yk_k_call c;
    used = 0;
    const yk_k_q8 q8 = {.q = floats(N * COLS / 4), .scale = floats(N * COLS / 32), .sum = floats(N * COLS / 32)};
    yk_k_call_add_norm(&c, NULL,
                       &(yk_k_add_norm){.x = floats(N * COLS),
                                        .y = floats(N * COLS),
                                        .w = floats(COLS),
                                        .b = floats(COLS),
                                        .out = floats(N * COLS),
                                        .q8 = q8,
                                        .n = N,
                                        .n_cols = COLS,
                                        .x_stride = COLS,
                                        .y_stride = COLS,
                                        .out_stride = COLS,
                                        .eps = 1e-5f});
    both("add_norm", &c);
    used = 0;
    yk_k_call_route(&c, NULL,
                    &(yk_k_route){.logits = floats(N * EXPERTS),
                                  .ids = floats(N * 6),
                                  .weights = floats(N * 6),
                                  .n = N,
                                  .n_experts = EXPERTS,
                                  .k = 6,
                                  .stride = EXPERTS,
                                  .kind = YK_ROUTER_SOFTMAX_TOPK,
                                  .renorm = true});
    both("route", &c);
    used = 0;
    const yk_gpu_mem pair = numbers(4, 0);
    memcpy(given + pair.offset, (const uint32_t[]){0, 1, 1, 2}, 16);
    const yk_k_attention at = {.q = floats(N * HEADS * DIM),
                               .pos = numbers(N, 37),
                               .seq = numbers(N, 0),
                               .sinks = floats(HEADS),
                               .out = floats(N * HEADS * DIM),
                               .tiles = pair,
                               .kv = {.kv = floats(POSITIONS * 2 * 2 * DIM),
                                      .table = numbers(POSITIONS / 16, 1),
                                      .block_bytes = 16 * 2 * 2 * DIM * 4,
                                      .v_bytes = 16 * 2 * DIM * 4,
                                      .table_stride = 5},
                               .n = N,
                               .n_tiles = 2,
                               .q_stride = HEADS * DIM,
                               .out_stride = HEADS * DIM,
                               .n_heads = HEADS,
                               .n_kv_heads = 2,
                               .head_dim = DIM,
                               .scale = 0.2f};
    yk_k_call_attention(&c, NULL, &at);
    both("attention", &c);
    attend_case();
    /* F32 panels: any bytes are weights. */
    used = 0;
    for (uint32_t n = 3; n <= 20; n += 17) {
        const yk_k_matvec mv = {.type = YK_TYPE_F32,
                                .w = floats(32 * 288),
                                .x = floats(n * 288),
                                .y = floats(n * 31),
                                .n = n,
                                .n_rows = 31,
                                .n_cols = 288,
                                .x_stride = 288,
                                .y_stride = 31,
                                .panel_bytes = 16 * 288 * 4,
                                .tile_bytes = 16 * 256 * 4};
        yk_k_call_matvec(&c, NULL, &mv);
        both(yk_k_matvec_name(YK_TYPE_F32, n), &c);
        used = 0;
    }
    free(given);
    free(host);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mistakes), cmocka_unit_test(test_mma),  cmocka_unit_test(test_ldmatrix),
        cmocka_unit_test(test_lanes),    cmocka_unit_test(test_copy), cmocka_unit_test(test_dialect),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
