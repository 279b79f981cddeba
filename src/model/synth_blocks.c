/* A row is filled with random bytes, then the few bytes of each block that hold scales are replaced: their own random bits
 * choose the scale from a table of 64, so no other random numbers are needed. Codes are therefore uniform, and the variance of
 * a weight is known: that of the codes times the mean square of the scales. Where codes are not centred (-8 .. 7), scales have
 * random signs, so that no direction of the activations is favoured. */
#include "src/model/synth_blocks.h"

#include <math.h>
#include <string.h>

#include "src/base/half.h"

static uint64_t mix64(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* ---- calibration ---- */

/* Values of the IQ4_NL codebook. */
static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static double iq4_mean_square(void)
{
    double sum = 0;
    for (int i = 0; i < 16; i++)
        sum += (double)iq4_values[i] * iq4_values[i];
    return sum / 16;
}

/* Mean square of the integers lo .. hi. */
static double mean_square(int lo, int hi)
{
    double sum = 0;
    for (int i = lo; i <= hi; i++)
        sum += (double)i * i;
    return sum / (hi - lo + 1);
}

/* Relative sizes of the 64 scales: 0.75 .. 1.25. */
static double spread(int i)
{
    return 0.75 + 0.5 * i / 63.0;
}

/* scale[i] = size * spread, with random signs where wanted. */
static void fill_scales(yk_synth_gen *g, double size, bool both_signs)
{
    for (int i = 0; i < 64; i++)
        g->scale[i] = yk_f32_to_f16((float)(both_signs && (i & 1) ? -size * spread(i) : size * spread(i)));
}

/* Types with w = d * sc * q + m (minima): mean of q times the size of the scale, independent of the scale. */
static void fill_minima(yk_synth_gen *g, double size)
{
    for (int i = 0; i < 64; i++)
        g->min[i] = yk_f32_to_f16((float)(size * spread(i)));
}

/* Types without minima: size of the scales for a mean square of codes (block scales of K types included). */
static void plain_scales(yk_synth_gen *g, double std, double code_square)
{
    double s2 = 0;
    for (int i = 0; i < 64; i++)
        s2 += spread(i) * spread(i) / 64;
    fill_scales(g, std / sqrt(code_square * s2), true);
}

/* Types with minima, codes 0 .. n - 1, small scales and minima independent and uniform in lo .. hi (1, 1: none).
 * w = f sc q - g m (n-1)/2 with f, g of equal distribution, so E w = 0 and
 * E w^2 = E(f sc)^2 E q^2 + E(g m)^2 c^2 - 2 (E f E sc)^2 c^2, c = (n-1)/2. */
static void affine_scales(yk_synth_gen *g, double std, int n, int lo, int hi, double min_sign)
{
    double s1 = 0, s2 = 0;
    for (int i = 0; i < 64; i++) {
        s1 += spread(i) / 64;
        s2 += spread(i) * spread(i) / 64;
    }
    const double c = (n - 1) / 2.0, m1 = (lo + hi) / 2.0, m2 = mean_square(lo, hi), cross = s1 * m1 * c;
    const double size = std / sqrt(s2 * m2 * (mean_square(0, n - 1) + c * c) - 2 * cross * cross);
    fill_scales(g, size, false);
    fill_minima(g, min_sign * c * size);
}

/* Low mantissa bits of a value that are random. */
static uint32_t free_bits(yk_type type)
{
    return type == YK_TYPE_F32 ? 0xffff : type == YK_TYPE_F16 ? 0x3f : 0x3;
}

static uint32_t to_bits(yk_type type, float x)
{
    return type == YK_TYPE_F32 ? yk_f32_bits(x) : type == YK_TYPE_F16 ? yk_f32_to_f16(x) : yk_f32_to_bf16(x);
}
static float from_bits(yk_type type, uint32_t b)
{
    return type == YK_TYPE_F32   ? yk_bits_f32(b)
           : type == YK_TYPE_F16 ? yk_f16_to_f32((uint16_t)b)
                                 : yk_bf16_to_f32((uint16_t)b);
}

/* Quantile of the normal distribution for 0.5 <= p < 1: Newton steps on erfc from a crude start. */
static double normal_quantile(double p)
{
    double x = 0;
    for (int i = 0; i < 40; i++) {
        const double f = 0.5 * erfc(-x / sqrt(2)) - p, slope = exp(-x * x / 2) / sqrt(2 * 3.14159265358979323846);
        const double step = f / slope;
        x -= step > 0.5 ? 0.5 : step < -0.5 ? -0.5 : step;
    }
    return x;
}

/* 128 magnitudes of a normal distribution, low bits cleared: those will be random; then the same with a minus sign. */
static void fill_normal(yk_synth_gen *g, double std)
{
    const uint32_t mask = free_bits(g->type);
    double q[128], factor = std;
    for (int i = 0; i < 128; i++)
        q[i] = normal_quantile(0.5 + (i + 0.5) / 256);
    for (int round = 0; round < 3; round++) { /* the random bits and the quantiles move the variance: measure and correct */
        double sum = 0;
        for (int i = 0; i < 128; i++) {
            g->bits[i] = to_bits(g->type, (float)(q[i] * factor)) & ~mask;
            const double lo = (double)from_bits(g->type, g->bits[i]), hi = (double)from_bits(g->type, g->bits[i] | mask);
            sum += (lo * lo + lo * hi + hi * hi) / 3 / 128;
        }
        if (round < 2)
            factor *= std / sqrt(sum);
    }
    const uint32_t sign = g->type == YK_TYPE_F32 ? 0x80000000u : 0x8000u;
    for (int i = 0; i < 128; i++)
        g->bits[128 + i] = g->bits[i] | sign;
}

/* Blocks take 2^e or 2^(e+1) so often that the mean square is right. Codes count in halves. */
static void fill_exponent(yk_synth_gen *g, double std)
{
    const double size = std / sqrt((0 + 1 + 4 + 9 + 16 + 36 + 64 + 144) / 8.0);
    const int e = (int)floor(log2(size));
    const double share = (size * size / exp2(2.0 * e) - 1) / 3;
    g->exponent = (uint8_t)(e + 128 < 2 ? 2 : e + 128 > 253 ? 253 : e + 128);
    g->threshold = (uint8_t)(share * 256);
}

void yk_synth_gen_init(yk_synth_gen *g, yk_type type, uint64_t n_cols, uint64_t seed, const char *name, double std,
                       double offset)
{
    const yk_type_traits *tr = yk_type_get((uint32_t)type);
    *g = (yk_synth_gen){.type = type, .n_blocks = n_cols / tr->block_elems, .offset = (float)offset};
    g->row_bytes = g->n_blocks * tr->block_bytes;
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a of the name */
    for (const char *p = name; *p; p++)
        h = (h ^ (uint8_t)*p) * 0x100000001b3u;
    g->key = mix64(mix64(seed + 0x9e3779b97f4a7c15u) ^ h);
    const double six_bit = (mean_square(-32, -17) + mean_square(16, 31)) / 2; /* scales of Q3_K and IQ4_XS */
    switch (type) {
    case YK_TYPE_Q4_0:
        plain_scales(g, std, mean_square(-8, 7));
        break;
    case YK_TYPE_Q5_0:
        plain_scales(g, std, mean_square(-16, 15));
        break;
    case YK_TYPE_Q8_0:
        plain_scales(g, std, mean_square(-127, 127));
        break;
    case YK_TYPE_IQ4_NL:
        plain_scales(g, std, iq4_mean_square());
        break;
    case YK_TYPE_IQ4_XS:
        plain_scales(g, std, iq4_mean_square() * six_bit);
        break;
    case YK_TYPE_Q3_K:
        plain_scales(g, std, mean_square(-4, 3) * six_bit);
        break;
    case YK_TYPE_Q6_K:
        plain_scales(g, std, mean_square(-32, 31) * (mean_square(-128, -65) + mean_square(64, 127)) / 2);
        break;
    case YK_TYPE_Q4_1:
        affine_scales(g, std, 16, 1, 1, -1);
        break;
    case YK_TYPE_Q5_1:
        affine_scales(g, std, 32, 1, 1, -1);
        break;
    case YK_TYPE_Q2_K:
        affine_scales(g, std, 4, 8, 15, 1);
        break;
    case YK_TYPE_Q4_K:
        affine_scales(g, std, 16, 32, 63, 1);
        break;
    case YK_TYPE_Q5_K:
        affine_scales(g, std, 32, 32, 63, 1);
        break;
    case YK_TYPE_MXFP4:
        fill_exponent(g, std);
        break;
    default:
        fill_normal(g, std);
        break;
    }
}

/* ---- rows ---- */

static void fill_random(uint64_t state, uint8_t *p, uint64_t n)
{
    uint64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        state += 0x9e3779b97f4a7c15u;
        const uint64_t z = mix64(state);
        memcpy(p + i, &z, 8);
    }
    if (i < n) {
        const uint64_t z = mix64(state + 0x9e3779b97f4a7c15u);
        memcpy(p + i, &z, n - i);
    }
}

static void set_half(const uint16_t *table, uint8_t *p)
{
    memcpy(p, &table[*p & 63], 2);
}

/* Two-bit fields to 00 or 11, so that six-bit scales are far from zero: -32 .. -17 and 16 .. 31. */
static void outer_fields(uint8_t *p, int n)
{
    for (int i = 0; i < n; i++)
        p[i] = (uint8_t)((p[i] & 0x55) * 3);
}

static void fix_q8_0(const yk_synth_gen *g, uint8_t *p)
{
    for (uint64_t b = 0; b < g->n_blocks; b++, p += 34) {
        set_half(g->scale, p);
        for (int i = 2; i < 34; i++)
            p[i] = (uint8_t)(p[i] + (p[i] == 0x80)); /* quantisers never give -128, and kernels rely on it */
    }
}

static void fix_q6_k(const yk_synth_gen *g, uint8_t *p)
{
    for (uint64_t b = 0; b < g->n_blocks; b++, p += 210) {
        for (int i = 192; i < 208; i++) /* 64 .. 127 and -128 .. -65: bit 6 is the opposite of the sign */
            p[i] = (uint8_t)((p[i] & 0xbf) | ((~p[i] >> 1) & 0x40));
        set_half(g->scale, p + 208);
    }
}

/* Q4_K and Q5_K: the top bit of each of the eight scales and minima is set: 32 .. 63. */
static void fix_k_affine(const yk_synth_gen *g, uint8_t *p, uint64_t block_bytes)
{
    for (uint64_t b = 0; b < g->n_blocks; b++, p += block_bytes) {
        set_half(g->scale, p);
        set_half(g->min, p + 2);
        for (int i = 4; i < 12; i++)
            p[i] |= 0xa0;
    }
}

static void fix_q2_k(const yk_synth_gen *g, uint8_t *p)
{
    for (uint64_t b = 0; b < g->n_blocks; b++, p += 84) {
        for (int i = 0; i < 16; i++)
            p[i] |= 0x88;
        set_half(g->scale, p + 80);
        set_half(g->min, p + 82);
    }
}

static void fix_scales(const yk_synth_gen *g, uint8_t *p, uint64_t block_bytes, bool minima)
{
    for (uint64_t b = 0; b < g->n_blocks; b++, p += block_bytes) {
        set_half(g->scale, p);
        if (minima)
            set_half(g->min, p + 2);
    }
}

static void fix_row(const yk_synth_gen *g, uint8_t *p)
{
    switch (g->type) {
    case YK_TYPE_Q8_0:
        fix_q8_0(g, p);
        break;
    case YK_TYPE_Q2_K:
        fix_q2_k(g, p);
        break;
    case YK_TYPE_Q3_K:
        for (uint64_t b = 0; b < g->n_blocks; b++, p += 110) {
            outer_fields(p + 104, 4);
            set_half(g->scale, p + 108);
        }
        break;
    case YK_TYPE_Q4_K:
        fix_k_affine(g, p, 144);
        break;
    case YK_TYPE_Q5_K:
        fix_k_affine(g, p, 176);
        break;
    case YK_TYPE_Q6_K:
        fix_q6_k(g, p);
        break;
    case YK_TYPE_IQ4_XS:
        for (uint64_t b = 0; b < g->n_blocks; b++, p += 136) {
            set_half(g->scale, p);
            outer_fields(p + 2, 2);
        }
        break;
    case YK_TYPE_MXFP4:
        for (uint64_t b = 0; b < g->n_blocks; b++, p += 17)
            *p = (uint8_t)(g->exponent + (*p < g->threshold));
        break;
    default:
        fix_scales(g, p, yk_type_get((uint32_t)g->type)->block_bytes, g->type == YK_TYPE_Q4_1 || g->type == YK_TYPE_Q5_1);
        break;
    }
}

/* Of the 16 random bits of a weight 8 choose sign and magnitude; others become its low mantissa bits. */
static void fill_row_16(const yk_synth_gen *g, uint64_t state, uint8_t *p)
{
    const uint64_t mask = free_bits(g->type) * 0x0001000100010001u;
    for (uint64_t i = 0; i < g->n_blocks; i += 4) {
        const uint64_t z = mix64(state += 0x9e3779b97f4a7c15u);
        const uint64_t v = ((z >> 8) & mask) | g->bits[z & 255] | (uint64_t)g->bits[z >> 16 & 255] << 16 |
                           (uint64_t)g->bits[z >> 32 & 255] << 32 | (uint64_t)g->bits[z >> 48 & 255] << 48;
        memcpy(p + 2 * i, &v, g->n_blocks - i < 4 ? 2 * (g->n_blocks - i) : 8);
    }
}

static void fill_row_32(const yk_synth_gen *g, uint64_t state, uint8_t *p)
{
    const uint64_t mask = free_bits(g->type) * 0x0000000100000001u;
    for (uint64_t i = 0; i < g->n_blocks; i += 2) {
        const uint64_t z = mix64(state += 0x9e3779b97f4a7c15u);
        const uint64_t v = ((z >> 8) & mask) | g->bits[z & 255] | (uint64_t)g->bits[z >> 32 & 255] << 32;
        const float x[2] = {yk_bits_f32((uint32_t)v) + g->offset, yk_bits_f32((uint32_t)(v >> 32)) + g->offset};
        memcpy(p + 4 * i, x, g->n_blocks - i < 2 ? 4 : 8);
    }
}

void yk_synth_rows(const yk_synth_gen *g, uint64_t first_row, uint64_t n_rows, uint8_t *dst)
{
    for (uint64_t r = 0; r < n_rows; r++, dst += g->row_bytes) {
        const uint64_t state = mix64(g->key + (first_row + r + 1) * 0xd1342543de82ef95u);
        if (g->type == YK_TYPE_F32) {
            fill_row_32(g, state, dst);
        } else if (g->type == YK_TYPE_F16 || g->type == YK_TYPE_BF16) {
            fill_row_16(g, state, dst);
        } else {
            fill_random(state, dst, g->row_bytes);
            fix_row(g, dst);
        }
    }
}
