/* layout_avx512.c - products with tiles [k/4][16 rows][4 k] by AVX-512 VNNI.
 *
 * One lane of a 512-bit register is one row, so a broadcast of four activations meets 16 rows and nothing is added across
 * lanes. Codes are used unsigned; what that adds is a multiple of the block's activation sum and goes into the start value of
 * the accumulator. Two forms: few tokens straight from the packed bytes (each expanded register meets all tokens), and many
 * tokens from a tile expanded once into 4 KiB of L1. */
#include <immintrin.h>
#include <string.h>
#include <time.h>

#include "bench/layout.h"
#include "bench/layout_expand.h"

/* The tokens of one tile: row t is `step` (codes), step/32 (scales, ...) further on. */
typedef struct few {
    const int8_t *q;
    const float *scale, *fsum;
    const int32_t *off;
    size_t step;
} few;

INLINE __m512i four(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}

/* The lines that block b of a tile brings in, `bytes` for each block. */
INLINE void prefetch(const uint8_t *p, uint32_t b, uint32_t bytes, uint32_t pf)
{
    const uint32_t near = pf & 0xffff, far = pf >> 16;
    if (pf)
        for (uint32_t l = (b * bytes) & ~63u; l < (((b + 1) * bytes) & ~63u); l += 64) {
            if (near)
                _mm_prefetch((const char *)p + near + l, _MM_HINT_T0);
            if (far)
                _mm_prefetch((const char *)p + far + l, _MM_HINT_T1);
        }
}

/* The sums of a block of 4-bit codes over 32 columns for n tokens. With one or two tokens high nibbles stay where they are and
 * the sum is shifted instead of the codes: three instructions less for 512 weights. */
INLINE void dot_nibbles(const uint8_t *w, const few *a, uint32_t b, int n, const __m512i *start, __m512i *sum)
{
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8((char)0xf0);
    if (n <= 2) {
        __m512i lo[2], hi[2];
        for (int t = 0; t < n; t++)
            lo[t] = start[t], hi[t] = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __m512i v = _mm512_load_si512(w + 64 * j);
            for (int t = 0; t < n; t++) {
                const int8_t *q = a->q + t * a->step + 32 * b + 4 * j;
                lo[t] = _mm512_dpbusd_epi32(lo[t], _mm512_and_si512(v, low), four(q));
                hi[t] = _mm512_dpbusd_epi32(hi[t], _mm512_and_si512(v, high), four(q + 16));
            }
        }
        for (int t = 0; t < n; t++)
            sum[t] = _mm512_add_epi32(lo[t], _mm512_srai_epi32(hi[t], 4));
        return;
    }
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        sum[t] = start[t];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512i v = _mm512_load_si512(w + 64 * j);
        const __m512i lo = _mm512_and_si512(v, low), hi = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
#pragma GCC unroll 8
        for (int t = 0; t < n; t++) {
            const int8_t *q = a->q + t * a->step + 32 * b + 4 * j;
            sum[t] = _mm512_dpbusd_epi32(sum[t], lo, four(q));
            sum[t] = _mm512_dpbusd_epi32(sum[t], hi, four(q + 16));
        }
    }
}

INLINE void tile_q4_0(const uint8_t *w, uint32_t blocks, const few *a, int n, __m512 *acc, uint32_t pf)
{
    const yk_lay_tile g = yk_lay_geometry(YK_LAY_Q4_0, blocks);
    for (uint32_t b = 0; b < blocks; b++) {
        __m512i start[8], sum[8];
        prefetch(w, b, 288, pf);
#pragma GCC unroll 8
        for (int t = 0; t < n; t++)
            start[t] = _mm512_set1_epi32(a->off[t * a->step / 32 + b]);
        dot_nibbles(w + 256 * b, a, b, n, start, sum);
        const __m512 d = halves(w + g.scale + 32 * b);
#pragma GCC unroll 8
        for (int t = 0; t < n; t++)
            acc[t] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[t]), _mm512_set1_ps(a->scale[t * a->step / 32 + b])),
                                     d, acc[t]);
    }
}

INLINE void tile_q8_0(const uint8_t *w, uint32_t blocks, const few *a, int n, __m512 *acc, uint32_t pf, int is_signed)
{
    const yk_lay_tile g = yk_lay_geometry(YK_LAY_Q8_0, blocks);
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    for (uint32_t b = 0; b < blocks; b++) {
        __m512i sum[8];
        prefetch(w, b, 544, pf);
#pragma GCC unroll 8
        for (int t = 0; t < n; t++)
            sum[t] = _mm512_set1_epi32(a->off[t * a->step / 32 + b]);
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            const __m512i c = _mm512_load_si512(w + 512 * b + 64 * j), v = is_signed ? _mm512_xor_si512(c, flip) : c;
#pragma GCC unroll 8
            for (int t = 0; t < n; t++)
                sum[t] = _mm512_dpbusd_epi32(sum[t], v, four(a->q + t * a->step + 32 * b + 4 * j));
        }
        const __m512 d = halves(w + g.scale + 32 * b);
#pragma GCC unroll 8
        for (int t = 0; t < n; t++)
            acc[t] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[t]), _mm512_set1_ps(a->scale[t * a->step / 32 + b])),
                                     d, acc[t]);
    }
}

INLINE void tile_q4_k(const uint8_t *w, const few *a, int n, __m512 *acc, uint32_t pf)
{
    const yk_lay_tile g = yk_lay_geometry(YK_LAY_Q4_K, 8);
    const __m512 d = halves(w + g.scale), dmin = halves(w + g.scale + 32);
    const __m512i zero[8] = {0};
    __m512 s[8], m[8];
    for (int t = 0; t < n; t++)
        s[t] = m[t] = _mm512_setzero_ps();
    for (uint32_t b = 0; b < 8; b++) {
        __m512i sum[8];
        prefetch(w, b, 296, pf);
        dot_nibbles(w + 256 * b, a, b, n, zero, sum);
        const __m512 sc = bytes_u(w + g.sub + 16 * b), mn = bytes_u(w + g.sub_min + 16 * b);
#pragma GCC unroll 8
        for (int t = 0; t < n; t++) {
            const size_t i = t * a->step / 32 + b;
            s[t] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[t]), _mm512_set1_ps(a->scale[i])), sc, s[t]);
            m[t] = _mm512_fmadd_ps(mn, _mm512_set1_ps(a->fsum[i]), m[t]);
        }
    }
    for (int t = 0; t < n; t++)
        acc[t] = _mm512_fnmadd_ps(dmin, m[t], _mm512_fmadd_ps(d, s[t], acc[t]));
}

INLINE void tile_q6_k(const uint8_t *w, const few *a, int n, __m512 *acc, uint32_t pf)
{
    const yk_lay_tile g = yk_lay_geometry(YK_LAY_Q6_K, 8);
    const __m512 d = halves(w + g.scale);
    __m512 s[8];
    for (int t = 0; t < n; t++)
        s[t] = _mm512_setzero_ps();
    for (uint32_t b = 0; b < 8; b++) {
        __m512i lo[8], hi[8];
        prefetch(w, b, 424, pf);
#pragma GCC unroll 8
        for (int t = 0; t < n; t++) {
            lo[t] = _mm512_set1_epi32(a->off[t * a->step / 16 + 2 * b]);
            hi[t] = _mm512_set1_epi32(a->off[t * a->step / 16 + 2 * b + 1]);
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            __m512i u, v;
            six_bits(w + 256 * b, w + g.high + 128 * b, j, &u, &v);
#pragma GCC unroll 8
            for (int t = 0; t < n; t++) {
                const int8_t *q = a->q + t * a->step + 32 * b + 4 * j;
                lo[t] = _mm512_dpbusd_epi32(lo[t], u, four(q));
                hi[t] = _mm512_dpbusd_epi32(hi[t], v, four(q + 16));
            }
        }
        const __m512 s0 = bytes_s(w + g.sub + 32 * b), s1 = bytes_s(w + g.sub + 32 * b + 16);
#pragma GCC unroll 8
        for (int t = 0; t < n; t++) { /* below 2^24: exact */
            const __m512 f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(hi[t]), s1, _mm512_mul_ps(_mm512_cvtepi32_ps(lo[t]), s0));
            s[t] = _mm512_fmadd_ps(f, _mm512_set1_ps(a->scale[t * a->step / 32 + b]), s[t]);
        }
    }
    for (int t = 0; t < n; t++)
        acc[t] = _mm512_fmadd_ps(d, s[t], acc[t]);
}

/* F16 weights meet f32 activations: [k][16 rows], one broadcast of one activation. */
INLINE void tile_f16(const uint8_t *w, uint32_t blocks, const float *x, size_t step, int n, __m512 *acc, uint32_t pf)
{
    const int ways = n == 1 ? 8 : n == 2 ? 4 : n == 4 ? 2 : 1;
    __m512 s[8];
    for (int i = 0; i < 8; i++)
        s[i] = _mm512_setzero_ps();
    for (uint32_t k = 0; k < 32 * blocks; k += 8) {
        prefetch(w, k / 8, 256, pf);
#pragma GCC unroll 8
        for (uint32_t j = 0; j < 8; j++) {
            const __m512 v = halves(w + 32 * (k + j));
#pragma GCC unroll 8
            for (int t = 0; t < n; t++) {
                const int i = t * ways + (int)j % ways;
                s[i] = _mm512_fmadd_ps(v, _mm512_set1_ps(x[t * step + k + j]), s[i]);
            }
        }
    }
    for (int t = 0; t < n; t++)
        for (int i = 0; i < ways; i++)
            acc[t] = _mm512_add_ps(acc[t], s[t * ways + i]);
}

INLINE void panel(yk_lay type, const uint8_t *w, const yk_lay_act *act, int n, float *y, uint32_t pf, int is_signed)
{
    few a = {act->q, act->scale, act->fsum, act->off, act->cols};
    const float *x = act->x;
    __m512 acc[8];
    for (int t = 0; t < n; t++)
        acc[t] = _mm512_setzero_ps();
    for (uint32_t k = 0; k < act->cols; k += YK_LAY_COLS) {
        const uint32_t blocks = act->cols - k < YK_LAY_COLS ? (act->cols - k) / 32 : 8;
        switch (type) {
        case YK_LAY_Q4_0:
            tile_q4_0(w, blocks, &a, n, acc, pf);
            break;
        case YK_LAY_Q8_0:
            tile_q8_0(w, blocks, &a, n, acc, pf, is_signed);
            break;
        case YK_LAY_Q4_K:
            tile_q4_k(w, &a, n, acc, pf);
            break;
        case YK_LAY_Q6_K:
            tile_q6_k(w, &a, n, acc, pf);
            break;
        default:
            tile_f16(w, blocks, x, act->cols, n, acc, pf);
            break;
        }
        w += yk_lay_geometry(type, blocks).bytes;
        a.q += 32 * blocks, a.scale += blocks, a.fsum += blocks, x += 32 * blocks;
        a.off += type == YK_LAY_Q6_K ? 2 * blocks : blocks;
    }
    for (int t = 0; t < n; t++)
        _mm512_storeu_ps(y + 16 * t, acc[t]);
}

#define KERNEL(name, type, n)                                                                                                  \
    static void name(const uint8_t *w, const yk_lay_act *a, float *y, uint32_t pf)                                             \
    {                                                                                                                          \
        panel(type, w, a, n, y, pf, 1);                                                                                        \
    }
#define KERNELS(name, type)                                                                                                    \
    KERNEL(name##_1, type, 1)                                                                                                  \
    KERNEL(name##_2, type, 2)                                                                                                  \
    KERNEL(name##_4, type, 4)                                                                                                  \
    KERNEL(name##_8, type, 8)
KERNELS(q4_0, YK_LAY_Q4_0)
KERNELS(q4_k, YK_LAY_Q4_K)
KERNELS(q6_k, YK_LAY_Q6_K)
KERNELS(q8_0, YK_LAY_Q8_0)
KERNELS(f16, YK_LAY_F16)

yk_lay_kernel yk_lay_avx512(yk_lay type, uint32_t n)
{
    static const yk_lay_kernel table[YK_LAY_N][4] = {
        {q4_0_1, q4_0_2, q4_0_4, q4_0_8}, {q4_k_1, q4_k_2, q4_k_4, q4_k_8}, {q6_k_1, q6_k_2, q6_k_4, q6_k_8},
        {q8_0_1, q8_0_2, q8_0_4, q8_0_8}, {f16_1, f16_2, f16_4, f16_8},
    };
    return table[type][n == 1 ? 0 : n == 2 ? 1 : n == 4 ? 2 : 3];
}

void yk_lay_q8_0_plain(const uint8_t *w, const yk_lay_act *a, float *y, uint32_t pf)
{
    panel(YK_LAY_Q8_0, w, a, 1, y, pf, 0);
}

#define TILE(name, call)                                                                                                       \
    static void name(const uint8_t *w, const yk_lay_act *act, float *y, uint32_t pf)                                           \
    {                                                                                                                          \
        const few a = {act->q, act->scale, act->fsum, act->off, act->cols};                                                    \
        __m512 acc = _mm512_loadu_ps(y);                                                                                       \
        call;                                                                                                                  \
        _mm512_storeu_ps(y, acc);                                                                                              \
    }
TILE(step_q4_0, tile_q4_0(w, 8, &a, 1, &acc, pf))
TILE(step_q4_k, tile_q4_k(w, &a, 1, &acc, pf))
TILE(step_q6_k, tile_q6_k(w, &a, 1, &acc, pf))
TILE(step_q8_0, tile_q8_0(w, 8, &a, 1, &acc, pf, 1))
TILE(step_f16, (void)a; tile_f16(w, 8, act->x, act->cols, 1, &acc, pf))

yk_lay_kernel yk_lay_avx512_step(yk_lay type)
{
    static const yk_lay_kernel table[YK_LAY_N] = {step_q4_0, step_q4_k, step_q6_k, step_q8_0, step_f16};
    return table[type];
}

/* Many tokens: one expanded tile against n tokens of the block-major activations; y: [n][16], contiguous. */
INLINE void vnni_tokens(yk_lay type, const yk_lay_expanded *e, uint32_t blocks, const yk_lay_act *act, uint32_t k, uint32_t t0,
                        int n, float *y)
{
    const uint32_t parts = type == YK_LAY_Q6_K ? 2 : 1, groups = 8 / parts;
    const size_t second = yk_lay_entries(act->n, act->cols);
    __m512 acc[8];
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        acc[t] = _mm512_load_ps(y + 16 * t);
    for (uint32_t b = 0; b < blocks; b++) {
        const size_t i = yk_lay_blk(k / 32 + b, t0, act->n);
        const int8_t *q = act->q_blk + 32 * i;
        for (uint32_t p = 0; p < parts; p++) {
            const int32_t *off = act->off_blk + p * second + i;
            __m512i sum[8];
#pragma GCC unroll 8
            for (int t = 0; t < n; t++)
                sum[t] = type == YK_LAY_Q4_K ? _mm512_setzero_si512() : _mm512_set1_epi32(off[t]);
#pragma GCC unroll 8
            for (uint32_t j = 0; j < groups; j++) {
                const __m512i v = _mm512_load_si512(e->q + 512 * b + 64 * (groups * p + j));
#pragma GCC unroll 8
                for (int t = 0; t < n; t++)
                    sum[t] = _mm512_dpbusd_epi32(sum[t], v, four(q + 32 * t + 4 * (groups * p + j)));
            }
            const __m512 d = _mm512_load_ps(e->scale + 16 * (parts * b + p));
#pragma GCC unroll 8
            for (int t = 0; t < n; t++)
                acc[t] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[t]), _mm512_set1_ps(act->scale_blk[i + t])), d,
                                         acc[t]);
        }
        if (type == YK_LAY_Q4_K) {
            const __m512 m = _mm512_load_ps(e->min + 16 * b);
#pragma GCC unroll 8
            for (int t = 0; t < n; t++)
                acc[t] = _mm512_fnmadd_ps(m, _mm512_set1_ps(act->fsum_blk[i + t]), acc[t]);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        _mm512_store_ps(y + 16 * t, acc[t]);
}

/* The same for two panels: each broadcast meets both. y: [n][16] of each panel. */
INLINE void pair_tokens(yk_lay type, const yk_lay_expanded *const e[2], uint32_t blocks, const yk_lay_act *act, uint32_t k,
                        uint32_t t0, int n, float *const y[2])
{
    const uint32_t parts = type == YK_LAY_Q6_K ? 2 : 1, groups = 8 / parts;
    const size_t second = yk_lay_entries(act->n, act->cols);
    __m512 acc[2][6];
#pragma GCC unroll 6
    for (int t = 0; t < n; t++)
        acc[0][t] = _mm512_load_ps(y[0] + 16 * t), acc[1][t] = _mm512_load_ps(y[1] + 16 * t);
    for (uint32_t b = 0; b < blocks; b++) {
        const size_t i = yk_lay_blk(k / 32 + b, t0, act->n);
        const int8_t *q = act->q_blk + 32 * i;
        for (uint32_t p = 0; p < parts; p++) {
            const int32_t *off = act->off_blk + p * second + i;
            __m512i sum[2][6];
#pragma GCC unroll 6
            for (int t = 0; t < n; t++)
                sum[0][t] = sum[1][t] = type == YK_LAY_Q4_K ? _mm512_setzero_si512() : _mm512_set1_epi32(off[t]);
#pragma GCC unroll 8
            for (uint32_t j = 0; j < groups; j++) {
                const __m512i v = _mm512_load_si512(e[0]->q + 512 * b + 64 * (groups * p + j));
                const __m512i w = _mm512_load_si512(e[1]->q + 512 * b + 64 * (groups * p + j));
#pragma GCC unroll 6
                for (int t = 0; t < n; t++) {
                    const __m512i a = four(q + 32 * t + 4 * (groups * p + j));
                    sum[0][t] = _mm512_dpbusd_epi32(sum[0][t], v, a);
                    sum[1][t] = _mm512_dpbusd_epi32(sum[1][t], w, a);
                }
            }
            for (int h = 0; h < 2; h++) {
                const __m512 d = _mm512_load_ps(e[h]->scale + 16 * (parts * b + p));
#pragma GCC unroll 6
                for (int t = 0; t < n; t++)
                    acc[h][t] = _mm512_fmadd_ps(
                        _mm512_mul_ps(_mm512_cvtepi32_ps(sum[h][t]), _mm512_set1_ps(act->scale_blk[i + t])), d, acc[h][t]);
            }
        }
        if (type == YK_LAY_Q4_K)
            for (int h = 0; h < 2; h++) {
                const __m512 m = _mm512_load_ps(e[h]->min + 16 * b);
#pragma GCC unroll 6
                for (int t = 0; t < n; t++)
                    acc[h][t] = _mm512_fnmadd_ps(m, _mm512_set1_ps(act->fsum_blk[i + t]), acc[h][t]);
            }
    }
#pragma GCC unroll 6
    for (int t = 0; t < n; t++)
        _mm512_store_ps(y[0] + 16 * t, acc[0][t]), _mm512_store_ps(y[1] + 16 * t, acc[1][t]);
}

INLINE void f16_tokens(const uint8_t *w, uint32_t blocks, const float *x, size_t step, int n, float *y, size_t y_stride)
{
    __m512 acc[8];
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        acc[t] = _mm512_loadu_ps(y + t * y_stride);
    for (uint32_t k = 0; k < 32 * blocks; k++) {
        const __m512 v = halves(w + 32 * k);
#pragma GCC unroll 8
        for (int t = 0; t < n; t++)
            acc[t] = _mm512_fmadd_ps(v, _mm512_set1_ps(x[t * step + k]), acc[t]);
    }
#pragma GCC unroll 8
    for (int t = 0; t < n; t++)
        _mm512_storeu_ps(y + t * y_stride, acc[t]);
}

/* y is gathered in a contiguous array: rows of a matrix with 2^n columns apart would share a few sets of L1. */
INLINE void vnni_panel(yk_lay type, const uint8_t *w, const yk_lay_act *act, float *y, size_t y_stride, void *scratch)
{
    yk_lay_scratch *s = scratch;
    memset(s->y, 0, (size_t)act->n * 64);
    for (uint32_t k = 0; k < act->cols; k += YK_LAY_COLS) {
        const uint32_t blocks = act->cols - k < YK_LAY_COLS ? (act->cols - k) / 32 : 8;
        if (type != YK_LAY_F16)
            expand(type, w, blocks, 0, &s->e);
        for (uint32_t t = 0; t < act->n;) {
            const float *x = act->x + (size_t)t * act->cols + k;
            const uint32_t left = act->n - t;
            float *out = s->y + 16 * t;
            if (type == YK_LAY_F16 && left >= 8)
                f16_tokens(w, blocks, x, act->cols, 8, out, 16), t += 8;
            else if (type == YK_LAY_F16)
                f16_tokens(w, blocks, x, act->cols, 1, out, 16), t++;
            else if (left >= 8)
                vnni_tokens(type, &s->e, blocks, act, k, t, 8, out), t += 8;
            else if (left >= 4)
                vnni_tokens(type, &s->e, blocks, act, k, t, 4, out), t += 4;
            else
                vnni_tokens(type, &s->e, blocks, act, k, t, 1, out), t++;
        }
        w += yk_lay_geometry(type, blocks).bytes;
    }
    for (uint32_t t = 0; t < act->n; t++)
        _mm512_storeu_ps(y + t * y_stride, _mm512_load_ps(s->y + 16 * t));
}

INLINE void pair_panels(yk_lay type, const uint8_t *w, const yk_lay_act *act, float *y, size_t y_stride, void *scratch)
{
    yk_lay_scratch *s[2] = {scratch, (yk_lay_scratch *)scratch + 1};
    const yk_lay_expanded *const e[2] = {&s[0]->e, &s[1]->e};
    const uint8_t *second = w + yk_lay_panel_bytes(type, act->cols);
    for (int h = 0; h < 2; h++)
        memset(s[h]->y, 0, (size_t)act->n * 64);
    for (uint32_t k = 0; k < act->cols; k += YK_LAY_COLS) {
        const uint32_t blocks = act->cols - k < YK_LAY_COLS ? (act->cols - k) / 32 : 8;
        expand(type, w, blocks, 0, &s[0]->e);
        expand(type, second, blocks, 0, &s[1]->e);
        for (uint32_t t = 0; t < act->n;) {
            float *const out[2] = {s[0]->y + 16 * t, s[1]->y + 16 * t};
            const uint32_t left = (act->n - t) < 16 - t % 16 ? act->n - t : 16 - t % 16; /* stay inside 16 tokens */
            if (left >= 6)
                pair_tokens(type, e, blocks, act, k, t, 6, out), t += 6;
            else if (left >= 4)
                pair_tokens(type, e, blocks, act, k, t, 4, out), t += 4;
            else
                pair_tokens(type, e, blocks, act, k, t, 1, out), t++;
        }
        w += yk_lay_geometry(type, blocks).bytes, second += yk_lay_geometry(type, blocks).bytes;
    }
    for (uint32_t t = 0; t < act->n; t++)
        for (int h = 0; h < 2; h++)
            _mm512_storeu_ps(y + t * y_stride + 16 * h, _mm512_load_ps(s[h]->y + 16 * t));
}

#define BATCH(name, type)                                                                                                      \
    static void name(const uint8_t *w, const yk_lay_act *a, float *y, size_t y_stride, void *scratch)                          \
    {                                                                                                                          \
        vnni_panel(type, w, a, y, y_stride, scratch);                                                                          \
    }
BATCH(vnni_q4_0, YK_LAY_Q4_0)
BATCH(vnni_q4_k, YK_LAY_Q4_K)
BATCH(vnni_q6_k, YK_LAY_Q6_K)
BATCH(vnni_q8_0, YK_LAY_Q8_0)
BATCH(fma_f16, YK_LAY_F16)

#define PAIR(name, type)                                                                                                       \
    static void name(const uint8_t *w, const yk_lay_act *a, float *y, size_t y_stride, void *scratch)                          \
    {                                                                                                                          \
        pair_panels(type, w, a, y, y_stride, scratch);                                                                         \
    }
PAIR(pair_q4_0, YK_LAY_Q4_0)
PAIR(pair_q4_k, YK_LAY_Q4_K)
PAIR(pair_q6_k, YK_LAY_Q6_K)
PAIR(pair_q8_0, YK_LAY_Q8_0)

yk_lay_batch yk_lay_vnni_pair(yk_lay type)
{
    static const yk_lay_batch table[YK_LAY_N] = {pair_q4_0, pair_q4_k, pair_q6_k, pair_q8_0, NULL};
    return table[type];
}

yk_lay_batch yk_lay_vnni(yk_lay type)
{
    static const yk_lay_batch table[YK_LAY_N] = {vnni_q4_0, vnni_q4_k, vnni_q6_k, vnni_q8_0, fma_f16};
    return table[type];
}

double yk_lay_peak_vnni(void)
{
    enum { LOOPS = 4000000 };
    __m512i a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, aa, ab;
    const __m512i w = _mm512_set1_epi8(3), x = _mm512_set1_epi8(1);
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = a8 = a9 = aa = ab = _mm512_setzero_si512();
    double best = 0;
    for (int r = 0; r < 5; r++) {
        struct timespec s, e;
        clock_gettime(CLOCK_MONOTONIC, &s);
        for (int i = 0; i < LOOPS; i++) {
#define STEP(a) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(a) : "v"(w), "v"(x))
            STEP(a0);
            STEP(a1);
            STEP(a2);
            STEP(a3);
            STEP(a4);
            STEP(a5);
            STEP(a6);
            STEP(a7);
            STEP(a8);
            STEP(a9);
            STEP(aa);
            STEP(ab);
#undef STEP
        }
        clock_gettime(CLOCK_MONOTONIC, &e);
        const double ns = (double)(e.tv_sec - s.tv_sec) * 1e9 + (double)(e.tv_nsec - s.tv_nsec), rate = 128.0 * 12 * LOOPS / ns;
        best = rate > best ? rate : best;
    }
    return best;
}
