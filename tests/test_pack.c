/* test_pack.c - the packed layout: every byte against the drawings of docs/kernels/layout.md written out one weight at a time, the way back,
 * and ranges of columns and rows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/ops.h"
#include "cpu/pack.h"
#include "src/base/clock.h"

static uint64_t state = 1;

static uint8_t random_byte(void)
{
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    return (uint8_t)(z >> 56);
}

static const yk_type types[] = {YK_TYPE_F32,  YK_TYPE_F16,    YK_TYPE_BF16,  YK_TYPE_Q4_0,  YK_TYPE_Q4_1, YK_TYPE_Q5_0,
                                YK_TYPE_Q5_1, YK_TYPE_Q8_0,   YK_TYPE_Q2_K,  YK_TYPE_Q3_K,  YK_TYPE_Q4_K, YK_TYPE_Q5_K,
                                YK_TYPE_Q6_K, YK_TYPE_IQ4_NL, YK_TYPE_MXFP4, YK_TYPE_IQ4_XS};
enum { N_TYPES = sizeof types / sizeof *types };

/* ---- the drawings ---- */

/* Where a block of 32 has its fifth bits and its nibbles. */
static uint32_t fifth_at(yk_type type)
{
    return type == YK_TYPE_Q5_1 ? 4 : 2;
}

static uint32_t nibbles_at(yk_type type)
{
    switch (type) {
    case YK_TYPE_MXFP4:
        return 1;
    case YK_TYPE_Q4_1:
        return 4;
    case YK_TYPE_Q5_0:
        return 6;
    case YK_TYPE_Q5_1:
        return 8;
    default:
        return 2; /* Q4_0, IQ4_NL */
    }
}

/* 4-bit code of column k of a block (32 or 256 columns) in the file. */
static int nibble(yk_type type, const uint8_t *f, uint32_t k)
{
    if (type == YK_TYPE_Q6_K) {
        const uint8_t v = f[k / 128 * 64 + k % 64];
        return k % 128 < 64 ? v & 15 : v >> 4;
    }
    if (type == YK_TYPE_Q4_K || type == YK_TYPE_Q5_K) {
        const uint8_t v = f[(type == YK_TYPE_Q5_K ? 48 : 16) + k / 64 * 32 + k % 32];
        return k % 64 < 32 ? v & 15 : v >> 4;
    }
    f += type == YK_TYPE_IQ4_XS ? 8 + k / 32 * 16 : nibbles_at(type);
    k %= 32;
    return k < 16 ? f[k] & 15 : f[k - 16] >> 4;
}

/* Two bits of column k of 256, 64 bytes. */
static int pair(const uint8_t *f, uint32_t k)
{
    return f[k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3;
}

/* Scale (which 0) or minimum (which 1) of block b, Q4_K and Q5_K. */
static int six(const uint8_t *f, uint32_t b, int which)
{
    const uint8_t *s = f + 4;
    if (b < 4)
        return s[b + 4 * which] & 63;
    return (which ? s[b + 4] >> 4 : s[b + 4] & 15) + 16 * (s[b - 4 + 4 * which] >> 6);
}

/* Scale of half block k of Q3_K. */
static int six3(const uint8_t *f, uint32_t k)
{
    const uint8_t *s = f + 96;
    return (k < 8 ? s[k] & 15 : s[k - 8] >> 4) + 16 * (s[8 + k % 4] >> (k / 4 * 2) & 3) - 32;
}

/* Scale of block b of IQ4_XS. */
static int six4(const uint8_t *f, uint32_t b)
{
    return (f[4 + b / 2] >> (b % 2 * 4) & 15) + 16 * (f[2 + b / 4] >> (b % 4 * 2) & 3) - 32;
}

/* Codes of column k of row r, which is column `in` of its block. */
static void put_codes(yk_type type, const uint8_t *block, uint32_t in, uint8_t *tile, uint32_t n_blocks, uint32_t k, uint32_t r)
{
    const uint32_t b = k / 32, g = k % 32 / 4, at = 4 * r + k % 4;
    if (type == YK_TYPE_Q8_0) {
        tile[512 * b + 64 * g + at] = block[2 + in];
        return;
    }
    if (type == YK_TYPE_Q2_K || type == YK_TYPE_Q3_K) {
        tile[128 * b + 64 * (g / 4) + at] |= (uint8_t)(pair(block + (type == YK_TYPE_Q2_K ? 16 : 32), in) << 2 * (g % 4));
        if (type == YK_TYPE_Q3_K)
            tile[1024 + 64 * b + at] |= (uint8_t)((block[in % 32] >> (in / 32) & 1) << g);
        return;
    }
    tile[256 * b + 64 * (g % 4) + at] |= (uint8_t)(nibble(type, block, in) << (g < 4 ? 0 : 4));
    if (type == YK_TYPE_Q5_0 || type == YK_TYPE_Q5_1)
        tile[256 * n_blocks + 64 * b + at] |= (uint8_t)((block[fifth_at(type) + in / 8] >> (in % 8) & 1) << g);
    if (type == YK_TYPE_Q5_K)
        tile[2048 + 64 * b + at] |= (uint8_t)((block[16 + in % 32] >> (in / 32) & 1) << g);
    if (type == YK_TYPE_Q6_K)
        tile[2048 + 128 * b + 64 * (g / 4) + at] |= (uint8_t)(pair(block + 128, in) << 2 * (g % 4));
}

/* f16 of row r, from `from` of the block. */
static void put_half(uint8_t *plane, uint32_t r, const uint8_t *from)
{
    memcpy(plane + 2 * r, from, 2);
}

/* Scales and minima of block b of a tile with n blocks. */
static void put_scales(yk_type type, const uint8_t *block, uint8_t *tile, uint32_t n, uint32_t b, uint32_t r)
{
    const uint32_t high = type == YK_TYPE_Q5_0 || type == YK_TYPE_Q5_1 ? 64 : 0;
    const uint32_t sub = type == YK_TYPE_Q4_K ? 2048 : 2560;
    switch (type) {
    case YK_TYPE_Q8_0:
        put_half(tile + 512 * n + 32 * b, r, block);
        break;
    case YK_TYPE_MXFP4:
        tile[256 * n + 16 * b + r] = block[0];
        break;
    case YK_TYPE_Q4_1:
    case YK_TYPE_Q5_1:
        put_half(tile + (288 + high) * n + 32 * b, r, block + 2);
        put_half(tile + (256 + high) * n + 32 * b, r, block);
        break;
    case YK_TYPE_Q2_K:
        tile[1024 + 32 * b + r] = block[2 * b];
        tile[1024 + 32 * b + 16 + r] = block[2 * b + 1];
        put_half(tile + 1280, r, block + 80);
        put_half(tile + 1312, r, block + 82);
        break;
    case YK_TYPE_Q3_K:
        tile[1536 + 32 * b + r] = (uint8_t)six3(block, 2 * b);
        tile[1536 + 32 * b + 16 + r] = (uint8_t)six3(block, 2 * b + 1);
        put_half(tile + 1792, r, block + 108);
        break;
    case YK_TYPE_Q6_K:
        tile[3072 + 32 * b + r] = block[192 + 2 * b];
        tile[3072 + 32 * b + 16 + r] = block[192 + 2 * b + 1];
        put_half(tile + 3328, r, block + 208);
        break;
    case YK_TYPE_IQ4_XS:
        tile[2048 + 16 * b + r] = (uint8_t)six4(block, b);
        put_half(tile + 2176, r, block);
        break;
    case YK_TYPE_Q4_K:
    case YK_TYPE_Q5_K:
        tile[sub + 16 * b + r] = (uint8_t)six(block, b, 0);
        tile[sub + 128 + 16 * b + r] = (uint8_t)six(block, b, 1);
        put_half(tile + sub + 256, r, block);
        put_half(tile + sub + 288, r, block + 2);
        break;
    default: /* Q4_0, Q5_0, IQ4_NL */
        put_half(tile + (256 + high) * n + 32 * b, r, block);
    }
}

static uint32_t drawn_bytes(yk_type type, uint32_t n_cols)
{
    static const uint32_t per_block[YK_TYPE_LIMIT] = {
        [YK_TYPE_Q4_0] = 288, [YK_TYPE_IQ4_NL] = 288, [YK_TYPE_Q4_1] = 320, [YK_TYPE_Q5_0] = 352,
        [YK_TYPE_Q5_1] = 384, [YK_TYPE_Q8_0] = 544,   [YK_TYPE_MXFP4] = 272};
    static const uint32_t whole[YK_TYPE_LIMIT] = {[YK_TYPE_Q2_K] = 1344, [YK_TYPE_Q3_K] = 1856, [YK_TYPE_Q4_K] = 2368,
                                                  [YK_TYPE_Q5_K] = 2880, [YK_TYPE_Q6_K] = 3392, [YK_TYPE_IQ4_XS] = 2240};
    switch (type) {
    case YK_TYPE_F32:
        return 64 * n_cols;
    case YK_TYPE_F16:
    case YK_TYPE_BF16:
        return (32 * n_cols + 63) / 64 * 64;
    default:
        return whole[type] ? whole[type] : (per_block[type] * (n_cols / 32) + 63) / 64 * 64;
    }
}

static void draw_tile(yk_type type, const uint8_t *rows, uint64_t row_bytes, uint32_t n_rows, uint32_t n_cols, uint8_t *tile)
{
    const yk_type_traits *t = yk_type_get((uint32_t)type);
    memset(tile, 0, drawn_bytes(type, n_cols));
    for (uint32_t r = 0; r < n_rows; r++) {
        for (uint32_t k = 0; k < n_cols; k++) {
            const uint8_t *block = rows + r * row_bytes + (size_t)(k / t->block_elems) * t->block_bytes;
            if (type == YK_TYPE_BF16) {
                memcpy(tile + 64 * (k / 2) + 4 * r + 2 * (k % 2), block, 2);
                continue;
            }
            if (!t->quantised) {
                memcpy(tile + (16 * k + r) * t->block_bytes, block, t->block_bytes);
                continue;
            }
            put_codes(type, block, k % t->block_elems, tile, n_cols / 32, k, r);
            if (k % 32 == 0)
                put_scales(type, block, tile, n_cols / 32, k / 32, r);
        }
    }
}

/* ---- cases ---- */

static uint8_t *bytes_new(uint64_t n, bool random)
{
    uint8_t *p = aligned_alloc(64, (n + 127) / 64 * 64);
    assert_non_null(p);
    for (uint64_t i = 0; i < n; i++)
        p[i] = random ? random_byte() : 0xa5;
    return p;
}

/* Each level this CPU has makes the same bytes. */
static void check_levels(yk_type type, const uint8_t *file, uint64_t row_bytes, uint32_t n_rows, uint32_t n_cols,
                         const uint8_t *packed)
{
    const uint64_t bytes = yk_packed_bytes(type, n_rows, n_cols);
    const yk_pack_run run = {.n_cols = n_cols, .n_units = 1};
    uint8_t *other = bytes_new(bytes + 16, false);
    for (int isa = 0; isa < (int)yk_isa_best(); isa++) {
        memset(other, 0x5a, bytes);
        yk_pack_units_at((yk_isa)isa, type, file, row_bytes, n_rows, &run, other);
        assert_memory_equal(other, packed, bytes);
        for (int i = 0; i < 16; i++)
            assert_int_equal(other[bytes + i], 0xa5);
    }
    free(other);
}

static void check_case(yk_type type, uint32_t n_rows, uint32_t n_cols, uint32_t gap)
{
    uint64_t row_bytes = 0;
    assert_true(yk_type_row_bytes(type, n_cols, &row_bytes));
    row_bytes += gap;
    const uint64_t packed_bytes = yk_packed_bytes(type, n_rows, n_cols);
    uint8_t *file = bytes_new(row_bytes * n_rows, true), *packed = bytes_new(packed_bytes + 16, false);
    yk_pack(type, file, row_bytes, n_rows, 0, n_cols, packed);
    for (int i = 0; i < 16; i++)
        assert_int_equal(packed[packed_bytes + i], 0xa5);

    uint8_t *tile = bytes_new(16384, false);
    const uint8_t *at = packed;
    for (uint32_t r0 = 0; r0 < n_rows; r0 += 16) {
        for (uint32_t k = 0; k < n_cols; k += 256) {
            const uint32_t cols = n_cols - k < 256 ? n_cols - k : 256;
            uint64_t skip = 0;
            assert_true(yk_type_row_bytes(type, k, &skip));
            draw_tile(type, file + r0 * row_bytes + skip, row_bytes, n_rows - r0 < 16 ? n_rows - r0 : 16, cols, tile);
            assert_int_equal(yk_tile_bytes(type, cols), drawn_bytes(type, cols));
            assert_memory_equal(at, tile, drawn_bytes(type, cols));
            at += drawn_bytes(type, cols);
        }
        assert_int_equal(at - packed, (r0 / 16 + 1) * yk_panel_bytes(type, n_cols));
    }
    assert_int_equal(at - packed, packed_bytes);
    check_levels(type, file, row_bytes, n_rows, n_cols, packed);

    uint8_t *back = bytes_new(row_bytes * n_rows, false);
    yk_unpack(type, packed, n_rows, n_cols, back, row_bytes);
    for (uint32_t r = 0; r < n_rows; r++) {
        assert_memory_equal(back + r * row_bytes, file + r * row_bytes, row_bytes - gap);
        for (uint32_t i = 0; i < gap; i++) /* bytes between rows stay */
            assert_int_equal(back[(r + 1) * row_bytes - gap + i], 0xa5);
    }
    free(file);
    free(packed);
    free(tile);
    free(back);
}

static void test_layout(void **s)
{
    (void)s;
    static const uint32_t float_cols[] = {1, 3, 96, 172, 256, 257, 520}, block_cols[] = {32, 64, 96, 256, 288, 512, 2880};
    static const uint32_t k_cols[] = {256, 512, 1024};
    static const uint32_t rows[] = {1, 7, 15, 16, 17, 32, 43};
    for (int t = 0; t < N_TYPES; t++) {
        assert_true(yk_pack_has(types[t]));
        const uint32_t block = yk_type_get((uint32_t)types[t])->block_elems;
        const uint32_t *cols = block == 1 ? float_cols : block == 32 ? block_cols : k_cols;
        const size_t n_cols = block == 256 ? sizeof k_cols / sizeof *k_cols : sizeof float_cols / sizeof *float_cols;
        for (size_t c = 0; c < n_cols; c++)
            for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
                check_case(types[t], rows[r], cols[c], r % 2 ? 3 : 0);
    }
}

/* A range of columns is what the whole matrix would hold if it were cut out of the file first. */
static void test_columns(void **s)
{
    (void)s;
    for (int t = 0; t < N_TYPES; t++) {
        const uint32_t block = yk_type_get((uint32_t)types[t])->block_elems, unit = block == 256 ? 256 : 32;
        const uint32_t n_cols = 11 * unit, n_rows = 19, gap = 5;
        uint64_t row_bytes = 0;
        assert_true(yk_type_row_bytes(types[t], n_cols, &row_bytes));
        uint8_t *file = bytes_new((row_bytes + gap) * n_rows, true);
        for (uint32_t from = 0; from < 11; from += 3) {
            for (uint32_t to = from + 1; to <= 11; to += 4) {
                const uint32_t cols = (to - from) * unit;
                uint64_t cut_bytes = 0, skip = 0;
                assert_true(yk_type_row_bytes(types[t], cols, &cut_bytes) && yk_type_row_bytes(types[t], from * unit, &skip));
                uint8_t *cut = bytes_new(cut_bytes * n_rows, false);
                for (uint32_t r = 0; r < n_rows; r++)
                    memcpy(cut + r * cut_bytes, file + r * (row_bytes + gap) + skip, cut_bytes);
                const uint64_t bytes = yk_packed_bytes(types[t], n_rows, cols);
                uint8_t *a = bytes_new(bytes, false), *b = bytes_new(bytes, true);
                yk_pack(types[t], file, row_bytes + gap, n_rows, from * unit, cols, a);
                yk_pack(types[t], cut, cut_bytes, n_rows, 0, cols, b);
                assert_memory_equal(a, b, bytes);
                yk_unpack(types[t], a, n_rows, cols, b, cut_bytes);
                assert_memory_equal(b, cut, cut_bytes * n_rows);
                free(cut);
                free(a);
                free(b);
            }
        }
        free(file);
    }
}

/* Workers that pack a range of panels each write what one call writes. */
static void test_panels(void **s)
{
    (void)s;
    for (int t = 0; t < N_TYPES; t++) {
        const uint32_t n_rows = 75, n_cols = yk_type_get((uint32_t)types[t])->block_elems == 256
                                                 ? 512
                                                 : 352; /* 5 panels, the last of 11 rows */
        uint64_t row_bytes = 0;
        assert_true(yk_type_row_bytes(types[t], n_cols, &row_bytes));
        const uint64_t panel = yk_panel_bytes(types[t], n_cols), n = yk_packed_bytes(types[t], n_rows, n_cols);
        uint8_t *file = bytes_new(row_bytes * n_rows, true), *whole = bytes_new(n, false), *parts = bytes_new(n, true);
        yk_pack(types[t], file, row_bytes, n_rows, 0, n_cols, whole);
        for (uint32_t p = 5, size = 2; p > 0; p -= size, size = 1) {
            const uint32_t row = 16 * (p - size), rows = n_rows - row < 16 * size ? n_rows - row : 16 * size;
            yk_pack(types[t], file + row * row_bytes, row_bytes, rows, 0, n_cols, parts + (p - size) * panel);
        }
        assert_memory_equal(parts, whole, n);
        free(file);
        free(whole);
        free(parts);
    }
}

static void test_sizes(void **s)
{
    (void)s;
    uint32_t n = 0;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
        n += yk_pack_has((yk_type)t);
        if (!yk_pack_has((yk_type)t))
            assert_int_equal(yk_packed_bytes((yk_type)t, 64, 512), 0);
    }
    assert_int_equal(n, N_TYPES);
    assert_int_equal(yk_packed_bytes(YK_TYPE_Q4_K, 14336, 4096), 896 * 16 * UINT64_C(2368));
    /* Sizes beyond 32 bits. */
    assert_int_equal(yk_packed_bytes(YK_TYPE_F32, 4000000001u, 4096), 250000001 * UINT64_C(16) * 16384);
    assert_int_equal(yk_packed_bytes(YK_TYPE_Q8_0, UINT32_MAX, 256), (UINT64_C(1) << 28) * 4352);
}

/* Every level has a product for every packed type, and a level this CPU has is used. */
static void test_levels(void **s)
{
    (void)s;
    yk_cpu_info info;
    yk_error err;
    assert_int_equal(yk_topology_info(&info, &err), YK_OK);
    for (int isa = 0; isa <= (int)yk_isa_best(); isa++) {
        const yk_ops *ops = yk_ops_get((yk_isa)isa), *lower = yk_ops_get((yk_isa)(isa ? isa - 1 : 0));
        int own = 0;
        for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
            assert_int_equal(ops->matmul_packed[t] != NULL, yk_pack_has((yk_type)t));
            own += ops->matmul_packed[t] && (isa == 0 || ops->matmul_packed[t] != lower->matmul_packed[t]);
        }
        printf("level %-6s kernels of %-6s, %d packed products of its own\n", yk_isa_name((yk_isa)isa), yk_isa_name(ops->isa),
               own);
        assert_true((isa != YK_ISA_AVX2 && isa != YK_ISA_AVX512) || own == N_TYPES);
        if (isa == YK_ISA_AVXVNNI) /* the low-bit types, or, where the CPU lacks it, none */
            assert_int_equal(own, ops->isa == YK_ISA_AVXVNNI ? N_TYPES - 3 : 0);
    }
#ifdef YK_HAVE_AVXVNNI
    assert_int_equal(strstr(info.isa, "avx_vnni") != NULL, yk_ops_get(YK_ISA_AVXVNNI)->isa == YK_ISA_AVXVNNI);
#endif
#ifdef YK_HAVE_AVX512
    assert_int_equal(strstr(info.isa, "avx512_vnni") != NULL, yk_isa_best() >= YK_ISA_AVX512);
#endif
}

/* Units beside each other in one pass are the units one by one; a last one that has a narrower tile. */
static void test_units(void **s)
{
    (void)s;
    enum { ROWS = 35, UNITS = 3 };
    for (int t = 0; t < N_TYPES; t++) {
        const uint32_t block = yk_type_get((uint32_t)types[t])->block_elems;
        for (uint32_t unit = 256; unit <= 288; unit += 32) {
            if (unit % block)
                continue;
            const uint32_t cols = (UNITS + 1) * unit;
            uint64_t row_bytes = 0;
            assert_true(yk_type_row_bytes(types[t], cols, &row_bytes));
            const uint64_t bytes = yk_packed_bytes(types[t], ROWS, unit), stride = bytes + 64;
            uint8_t *file = bytes_new(row_bytes * ROWS, true), *one = bytes_new(bytes, false),
                    *all = bytes_new(stride * UNITS, false);
            memset(all, 0xa5, stride * UNITS);
            const yk_pack_run run = {unit, unit, UNITS, stride};
            yk_pack_units(types[t], file, row_bytes, ROWS, &run, all);
            for (uint32_t u = 0; u < UNITS; u++) {
                yk_pack(types[t], file, row_bytes, ROWS, (u + 1) * unit, unit, one);
                assert_memory_equal(one, all + u * stride, bytes);
                for (uint32_t i = 0; i < 64; i++)
                    assert_int_equal(all[u * stride + bytes + i], 0xa5);
            }
            free(file);
            free(one);
            free(all);
        }
    }
}

/* Prints what packing costs; no limit is tested, because a busy machine would decide. */
static void bench(void)
{
    enum { ROWS = 256, COLS = 4096 };
    for (int t = 0; t < N_TYPES; t++) {
        uint64_t row_bytes = 0, best[2] = {UINT64_MAX, UINT64_MAX};
        if (!yk_type_row_bytes(types[t], COLS, &row_bytes))
            continue;
        uint8_t *file = bytes_new(row_bytes * ROWS, true), *packed = bytes_new(yk_packed_bytes(types[t], ROWS, COLS), false);
        for (int i = 0; i < 20; i++) {
            const uint64_t a = yk_now_ns();
            yk_pack(types[t], file, row_bytes, ROWS, 0, COLS, packed);
            const uint64_t b = yk_now_ns();
            yk_unpack(types[t], packed, ROWS, COLS, file, row_bytes);
            const uint64_t c = yk_now_ns();
            best[0] = b - a < best[0] ? b - a : best[0];
            best[1] = c - b < best[1] ? c - b : best[1];
        }
        const double bytes = (double)(row_bytes * ROWS);
        printf("%-5s pack %6.2f GB/s of file, unpack %6.2f GB/s\n", yk_type_get((uint32_t)types[t])->name,
               bytes / (double)best[0], bytes / (double)best[1]);
        free(file);
        free(packed);
    }
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        bench();
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout), cmocka_unit_test(test_columns), cmocka_unit_test(test_panels),
        cmocka_unit_test(test_sizes),  cmocka_unit_test(test_levels),  cmocka_unit_test(test_units),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
