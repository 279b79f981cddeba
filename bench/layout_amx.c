/* layout_amx.c - many tokens by AMX from the same tiles.
 *
 * A tile in the order [k/4][16 rows][4 k] is the B operand of tdpbssd as it lies: row i of B holds 4 columns of 16 weight rows.
 * A product is cut at 32 columns (Q6_K: 16), because there the scale changes: 8 rows of B, half of what a tile register holds,
 * and the int32 result goes through memory to AVX-512, which scales and adds in f32. The bf16 form has no such cut (scales are
 * multiplied in before rounding) and is there to show what the exact form costs. */
#include <cpuid.h>
#include <immintrin.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bench/layout.h"
#include "bench/layout_expand.h"

typedef struct tile_config {
    uint8_t palette, start_row, zero[14];
    uint16_t col_bytes[16];
    uint8_t rows[16];
} tile_config;

size_t yk_lay_scratch_bytes(void)
{
    return 2 * sizeof(yk_lay_scratch);
}

int yk_lay_amx_open(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    uint32_t a, b, c, d; /* leaf 7, edx: bit 22 AMX-BF16, 24 AMX-TILE, 25 AMX-INT8 */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & 0x3400000) != 0x3400000)
        return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* tmm 0..3: C, 16 x 16 int32; 4, 5: A, 16 tokens x k; 6, 7: B, k/4 x 16 rows x 4. */
static void configure(uint32_t k)
{
    tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.rows[i] = (uint8_t)(i >= 6 ? k / 4 : 16);
        c.col_bytes[i] = (uint16_t)(i == 4 || i == 5 ? k : 64);
    }
    _tile_loadconfig(&c);
}

/* Add 16 tokens' scaled int32 results to their f32 sums. */
INLINE void scale_add(const int32_t *c, const float *token_scale, __m512 d, __m512 *acc)
{
#pragma GCC unroll 16
    for (int t = 0; t < 16; t++)
        acc[t] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(c + 16 * t)), d),
                                 _mm512_set1_ps(token_scale[t]), acc[t]);
}

INLINE void min_add(const float *token_sum, __m512 m, __m512 *acc)
{
#pragma GCC unroll 16
    for (int t = 0; t < 16; t++)
        acc[t] = _mm512_fnmadd_ps(_mm512_set1_ps(token_sum[t]), m, acc[t]);
}

/* Two blocks into two result tiles and on into memory. */
INLINE void two_blocks(const int8_t *a, const uint8_t *q, int32_t (*c)[256])
{
    _tile_loadd(4, a, 32);
    _tile_loadd(6, q, 64);
    _tile_zero(0);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(5, a + 512, 32);
    _tile_loadd(7, q + 512, 64);
    _tile_zero(1);
    _tile_dpbssd(1, 5, 7);
    _tile_stored(0, c[0], 64);
    _tile_stored(1, c[1], 64);
}

/* 16 tokens against a tile of 8 blocks; TMUL works on the next pair of blocks while AVX-512 scales the last. */
INLINE void amx_tokens_32(yk_lay type, yk_lay_scratch *s, const int8_t *a, const float *scale, const float *fsum, __m512 *acc)
{
    two_blocks(a, s->e.q, s->c);
#pragma GCC unroll 4
    for (int b = 0; b < 8; b += 2) {
        if (b < 6)
            two_blocks(a + (b + 2) * 512, s->e.q + 512 * (b + 2), s->c + (b + 2) % 4);
        for (int i = b; i < b + 2; i++) {
            scale_add(s->c[i % 4], scale + i * 16, _mm512_load_ps(s->e.scale + 16 * i), acc);
            if (type == YK_LAY_Q4_K)
                min_add(fsum + i * 16, _mm512_load_ps(s->e.min + 16 * i), acc);
        }
    }
}

/* The same with a new scale every 16 columns: 4 rows of B. */
INLINE void amx_tokens_16(yk_lay_scratch *s, const int8_t *a, const float *scale, __m512 *acc)
{
    for (int b = 0; b < 8; b++) {
        int32_t(*c)[256] = s->c + b % 2 * 2;
        _tile_loadd(4, a + b * 512, 32);
        _tile_loadd(6, s->e.q + 512 * b, 64);
        _tile_zero(0);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(5, a + b * 512 + 16, 32);
        _tile_loadd(7, s->e.q + 512 * b + 256, 64);
        _tile_zero(1);
        _tile_dpbssd(1, 5, 7);
        _tile_stored(0, c[0], 64);
        _tile_stored(1, c[1], 64);
        const __m512 d0 = _mm512_load_ps(s->e.scale + 32 * b), d1 = _mm512_load_ps(s->e.scale + 32 * b + 16);
#pragma GCC unroll 16
        for (int t = 0; t < 16; t++) {
            const __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(c[0] + 16 * t)), d0);
            const __m512 f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(c[1] + 16 * t)), d1, v);
            acc[t] = _mm512_fmadd_ps(f, _mm512_set1_ps(scale[b * 16 + t]), acc[t]);
        }
    }
}

/* Columns must be a multiple of 256. */
INLINE void amx_panel(yk_lay type, const uint8_t *w, const yk_lay_act *act, float *y, size_t y_stride, void *scratch)
{
    yk_lay_scratch *s = scratch;
    const uint32_t n16 = (act->n + 15) & ~15u;
    configure(type == YK_LAY_Q6_K ? 16 : 32);
    for (uint32_t k = 0; k < act->cols; k += YK_LAY_COLS, w += yk_lay_geometry(type, 8).bytes) {
        expand(type, w, 8, 1, &s->e);
        for (uint32_t t = 0; t < n16; t += 16) {
            const size_t at = yk_lay_blk(k / 32, t, act->n);
            const int8_t *a = act->q_blk + 32 * at;
            const float *scale = act->scale_blk + at, *fsum = act->fsum_blk + at;
            __m512 acc[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                acc[i] = k ? _mm512_load_ps(s->y + 16 * (t + i)) : _mm512_setzero_ps();
            if (type == YK_LAY_Q6_K)
                amx_tokens_16(s, a, scale, acc);
            else
                amx_tokens_32(type, s, a, scale, fsum, acc);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                _mm512_store_ps(s->y + 16 * (t + i), acc[i]);
        }
    }
    _tile_release();
    for (uint32_t t = 0; t < act->n; t++)
        _mm512_storeu_ps(y + t * y_stride, _mm512_load_ps(s->y + 16 * t));
}

/* A tile to bf16 in the order [k/2][16 rows][2]: the B operand of tdpbf16ps. */
static void expand_bf16(yk_lay type, const uint8_t *w, yk_lay_scratch *s)
{
    if (type == YK_LAY_F16) {
        for (int k = 0; k < 128; k++) {
            const __m512i v = (__m512i)_mm512_cvtne2ps_pbh(halves(w + 64 * k + 32), halves(w + 64 * k));
            const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                                   21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
            _mm512_store_si512(s->b16 + 32 * k, _mm512_permutexvar_epi16(order, v));
        }
        return;
    }
    expand(type, w, 8, 1, &s->e);
    for (int g = 0; g < 64; g++) { /* a group: 4 columns of 16 rows = two rows of bf16 pairs */
        const __m512i v = _mm512_load_si512(s->e.q + 64 * g);
        const int part = type == YK_LAY_Q6_K ? g / 4 : g / 8;
        const __m512 d = _mm512_load_ps(s->e.scale + 16 * part);
        __m512 f[4];
        for (int i = 0; i < 4; i++) {
            f[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(v, (unsigned)(24 - 8 * i)), 24)), d);
            if (type == YK_LAY_Q4_K)
                f[i] = _mm512_sub_ps(f[i], _mm512_load_ps(s->e.min + 16 * part));
        }
        for (int i = 0; i < 4; i += 2) {
            const __m512i lo = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(f[i]));
            const __m512i hi = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(f[i + 1]));
            _mm512_store_si512(s->b16 + 64 * g + 16 * i, _mm512_or_si512(lo, _mm512_slli_epi32(hi, 16)));
        }
    }
}

INLINE void bf16_panel(yk_lay type, const uint8_t *w, const yk_lay_act *act, float *y, size_t y_stride, void *scratch)
{
    yk_lay_scratch *s = scratch;
    const uint32_t n16 = (act->n + 15) & ~15u;
    tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++)
        c.rows[i] = 16, c.col_bytes[i] = 64;
    _tile_loadconfig(&c);
    memset(s->y, 0, (size_t)n16 * 64);
    for (uint32_t k = 0; k < act->cols; k += YK_LAY_COLS, w += yk_lay_geometry(type, 8).bytes) {
        expand_bf16(type, w, s);
        for (uint32_t t = 0; t < n16; t += 32) {
            const uint16_t *a = act->xb_blk + 32 * yk_lay_blk(k / 32, t, act->n);
            const int two = n16 - t >= 32;
            _tile_loadd(0, s->y + 16 * t, 64);
            if (two)
                _tile_loadd(1, s->y + 16 * t + 256, 64);
            for (int b = 0; b < 8; b++) {
                _tile_loadd(6, s->b16 + 512 * b, 64);
                _tile_loadd(4, a + b * 512, 64);
                _tile_dpbf16ps(0, 4, 6);
                if (two) {
                    _tile_loadd(5, a + 4096 + b * 512, 64);
                    _tile_dpbf16ps(1, 5, 6);
                }
            }
            _tile_stored(0, s->y + 16 * t, 64);
            if (two)
                _tile_stored(1, s->y + 16 * t + 256, 64);
        }
    }
    _tile_release();
    for (uint32_t t = 0; t < act->n; t++)
        _mm512_storeu_ps(y + t * y_stride, _mm512_load_ps(s->y + 16 * t));
}

#define BATCH(name, call, type)                                                                                                \
    static void name(const uint8_t *w, const yk_lay_act *a, float *y, size_t y_stride, void *scratch)                          \
    {                                                                                                                          \
        call(type, w, a, y, y_stride, scratch);                                                                                \
    }
BATCH(amx_q4_0, amx_panel, YK_LAY_Q4_0)
BATCH(amx_q4_k, amx_panel, YK_LAY_Q4_K)
BATCH(amx_q6_k, amx_panel, YK_LAY_Q6_K)
BATCH(amx_q8_0, amx_panel, YK_LAY_Q8_0)
BATCH(bf16_q4_0, bf16_panel, YK_LAY_Q4_0)
BATCH(bf16_q4_k, bf16_panel, YK_LAY_Q4_K)
BATCH(bf16_q6_k, bf16_panel, YK_LAY_Q6_K)
BATCH(bf16_q8_0, bf16_panel, YK_LAY_Q8_0)
BATCH(bf16_f16, bf16_panel, YK_LAY_F16)

yk_lay_batch yk_lay_amx(yk_lay type)
{
    static const yk_lay_batch table[YK_LAY_N] = {amx_q4_0, amx_q4_k, amx_q6_k, amx_q8_0, NULL};
    return table[type];
}

yk_lay_batch yk_lay_amx_bf16(yk_lay type)
{
    static const yk_lay_batch table[YK_LAY_N] = {bf16_q4_0, bf16_q4_k, bf16_q6_k, bf16_q8_0, bf16_f16};
    return table[type];
}

double yk_lay_peak_amx_int8(uint32_t k)
{
    enum { LOOPS = 1000000 };
    static uint8_t zero[1024] __attribute__((aligned(64)));
    double best = 0;
    configure(k);
    _tile_loadd(4, zero, k);
    _tile_loadd(6, zero, 64);
    for (int r = 0; r < 5; r++) {
        struct timespec s, e;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        clock_gettime(CLOCK_MONOTONIC, &s);
        for (int i = 0; i < LOOPS; i++) {
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 6);
            _tile_dpbssd(2, 4, 6);
            _tile_dpbssd(3, 4, 6);
        }
        clock_gettime(CLOCK_MONOTONIC, &e);
        const double ns = (double)(e.tv_sec - s.tv_sec) * 1e9 + (double)(e.tv_nsec - s.tv_nsec),
                     rate = 4.0 * LOOPS * 512 * k / ns;
        best = rate > best ? rate : best;
    }
    _tile_release();
    return best;
}
