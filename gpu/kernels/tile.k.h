/* tile.k.h - the packed weight layout (docs/kernels/layout.md), read one row of one block of 32 columns at a time. The only file of the
 * kernels that knows where a weight lies.
 *
 * A tile is 16 rows by up to 8 blocks of 32 columns; its planes follow each other: codes [k/4][16 rows][4 k], high bits, scales. */

/* Types; the values are those of the file format. */
#define YK_W_F32 0u
#define YK_W_F16 1u
#define YK_W_Q4_0 2u
#define YK_W_Q4_1 3u
#define YK_W_Q5_0 6u
#define YK_W_Q5_1 7u
#define YK_W_Q8_0 8u
#define YK_W_Q2_K 10u
#define YK_W_Q3_K 11u
#define YK_W_Q4_K 12u
#define YK_W_Q5_K 13u
#define YK_W_Q6_K 14u
#define YK_W_IQ4_NL 20u
#define YK_W_IQ4_XS 23u
#define YK_W_BF16 30u
#define YK_W_MXFP4 39u

/* A text that has a kernel for each type can be compiled for one of them: YK_ONLY is that type. */
#define YK_W_ALL 255u
#ifndef YK_ONLY
#define YK_ONLY YK_W_ALL
#endif

#define yk_is_float_type(t) ((t) == YK_W_F32 || (t) == YK_W_F16 || (t) == YK_W_BF16)
#define yk_is_table_type(t) ((t) == YK_W_IQ4_NL || (t) == YK_W_IQ4_XS || (t) == YK_W_MXFP4)
/* One scale (and minimum) a block of 32, as f16. */
#define yk_has_block_min(t) ((t) == YK_W_Q4_1 || (t) == YK_W_Q5_1)
#define yk_has_block_scale(t) ((t) == YK_W_Q4_0 || (t) == YK_W_Q5_0 || (t) == YK_W_IQ4_NL || yk_has_block_min(t))
#define yk_has_fifth_bit(t) ((t) == YK_W_Q5_0 || (t) == YK_W_Q5_1 || (t) == YK_W_Q5_K)
/* Scales of half blocks. */
#define yk_has_halves(t) ((t) == YK_W_Q2_K || (t) == YK_W_Q3_K || (t) == YK_W_Q6_K)
/* What a code is too large by. */
#define yk_code_offset(t) ((t) == YK_W_Q4_0 ? 8 : (t) == YK_W_Q5_0 ? 16 : (t) == YK_W_Q3_K ? 4 : (t) == YK_W_Q6_K ? 32 : 0)

YK_FN f32 yk_tile_half(YK_GLOBAL const u8 *p) { return yk_load_half((YK_GLOBAL const u16 *)p, 0); }
YK_FN u32 yk_tile_word(YK_GLOBAL const u8 *p) { return *(YK_GLOBAL const u32 *)p; }

YK_FN u32 yk_four(const i32 v) { return ((u32)v & 255u) * 0x01010101u; }
YK_FN u32 yk_pick(const u32 mask, const u32 lo, const u32 hi) { return lo ^ (mask & (lo ^ hi)); }

/* Four 4-bit codes, one in each byte, to the values of their type (MXFP4: twice the value), signed bytes: selections by the codes' bits,
 * which every device does four at a time, where a table would be a load for each. */
YK_FN u32 yk_tile_values(const u32 type, const u32 w)
{
    const u32 b0 = (w & 0x01010101u) * 255u, b1 = (w >> 1 & 0x01010101u) * 255u, b2 = (w >> 2 & 0x01010101u) * 255u,
              b3 = (w >> 3 & 0x01010101u) * 255u;
    u32 p[8];
    if (type == YK_W_MXFP4) {
        p[0] = yk_pick(b0, yk_four(0), yk_four(1));
        p[1] = yk_pick(b0, yk_four(2), yk_four(3));
        p[2] = yk_pick(b0, yk_four(4), yk_four(6));
        p[3] = yk_pick(b0, yk_four(8), yk_four(12));
        p[4] = yk_pick(b0, yk_four(0), yk_four(-1));
        p[5] = yk_pick(b0, yk_four(-2), yk_four(-3));
        p[6] = yk_pick(b0, yk_four(-4), yk_four(-6));
        p[7] = yk_pick(b0, yk_four(-8), yk_four(-12));
    } else {
        p[0] = yk_pick(b0, yk_four(-127), yk_four(-104));
        p[1] = yk_pick(b0, yk_four(-83), yk_four(-65));
        p[2] = yk_pick(b0, yk_four(-49), yk_four(-35));
        p[3] = yk_pick(b0, yk_four(-22), yk_four(-10));
        p[4] = yk_pick(b0, yk_four(1), yk_four(13));
        p[5] = yk_pick(b0, yk_four(25), yk_four(38));
        p[6] = yk_pick(b0, yk_four(53), yk_four(69));
        p[7] = yk_pick(b0, yk_four(89), yk_four(113));
    }
    const u32 lo = yk_pick(b2, yk_pick(b1, p[0], p[1]), yk_pick(b1, p[2], p[3]));
    const u32 hi = yk_pick(b2, yk_pick(b1, p[4], p[5]), yk_pick(b1, p[6], p[7]));
    return yk_pick(b3, lo, hi);
}

/* 2^(e - 128), the scale of MXFP4 values counted in halves; e 255 is NaN (OCP MX). */
YK_FN f32 yk_tile_exponent(const u32 e) { return yk_float(e == 255u ? 0x7fc00000u : e < 2u ? 0x00200000u << e : (e - 1u) << 23); }

/* The value of an MXFP4 code; code 8 is a negative zero, which the integers of products do not have. */
YK_FN f32 yk_tile_fp4(const f32 scale, const u32 code)
{
    const f32 v = scale * (f32)(i8)(yk_tile_values(YK_W_MXFP4, code & 7u) & 255u);
    return code & 8u ? -v : v;
}

/* Codes of columns 4g..4g+3 to the bytes of c[g] (g < 8), as they are stored but for types with a table, which gives values. */
YK_FN void yk_tile_codes(const u32 type, YK_GLOBAL const u8 *tile, const u32 n_blocks, const u32 b, const u32 r, u32 *c)
{
    if (type == YK_W_Q8_0) {
        YK_UNROLL
        for (u32 g = 0; g < 8; g++)
            c[g] = yk_tile_word(tile + 512u * b + 64u * g + 4u * r);
        return;
    }
    if (type == YK_W_Q2_K || type == YK_W_Q3_K) {
        const u32 w0 = yk_tile_word(tile + 128u * b + 4u * r), w1 = yk_tile_word(tile + 64u + 128u * b + 4u * r);
        YK_UNROLL
        for (u32 g = 0; g < 4; g++) {
            c[g] = w0 >> 2u * g & 0x03030303u;
            c[g + 4] = w1 >> 2u * g & 0x03030303u;
        }
    } else {
        YK_UNROLL
        for (u32 g = 0; g < 4; g++) {
            const u32 w = yk_tile_word(tile + 256u * b + 64u * g + 4u * r);
            c[g] = w & 0x0f0f0f0fu;
            c[g + 4] = w >> 4 & 0x0f0f0f0fu;
        }
    }
    if (yk_has_fifth_bit(type) || type == YK_W_Q3_K) {
        const u32 at = type == YK_W_Q3_K ? 1024u : type == YK_W_Q5_K ? 2048u : 256u * n_blocks, shift = type == YK_W_Q3_K ? 2u : 4u;
        const u32 h = yk_tile_word(tile + at + 64u * b + 4u * r);
        YK_UNROLL
        for (u32 g = 0; g < 8; g++)
            c[g] |= (h >> g & 0x01010101u) << shift;
    }
    if (type == YK_W_Q6_K) {
        const u32 h0 = yk_tile_word(tile + 2048u + 128u * b + 4u * r), h1 = yk_tile_word(tile + 2112u + 128u * b + 4u * r);
        YK_UNROLL
        for (u32 g = 0; g < 4; g++) {
            c[g] |= (h0 >> 2u * g & 0x03030303u) << 4;
            c[g + 4] |= (h1 >> 2u * g & 0x03030303u) << 4;
        }
    }
    if (yk_is_table_type(type)) {
        YK_UNROLL
        for (u32 g = 0; g < 8; g++)
            c[g] = yk_tile_values(type, c[g]);
    }
}

/* Scales of both half blocks (or of the block) to s[0], s[1], minima to s[2], s[3]: weight = s * (code - offset) - minimum. */
YK_FN void yk_tile_scales(const u32 type, YK_GLOBAL const u8 *tile, const u32 n_blocks, const u32 b, const u32 r, f32 *s)
{
    if (type == YK_W_Q8_0) {
        s[0] = yk_tile_half(tile + 512u * n_blocks + 32u * b + 2u * r);
    } else if (yk_has_block_scale(type)) {
        YK_GLOBAL const u8 *at = tile + (yk_has_fifth_bit(type) ? 320u : 256u) * n_blocks + 32u * b + 2u * r;
        s[0] = yk_tile_half(at);
        if (yk_has_block_min(type))
            s[2] = -yk_tile_half(at + 32u * n_blocks);
    } else if (type == YK_W_MXFP4) {
        s[0] = yk_tile_exponent(tile[256u * n_blocks + 16u * b + r]);
    } else if (type == YK_W_IQ4_XS) {
        s[0] = yk_tile_half(tile + 2176u + 2u * r) * (f32)(i8)tile[2048u + 16u * b + r];
    } else if (type == YK_W_Q4_K || type == YK_W_Q5_K) {
        YK_GLOBAL const u8 *at = tile + (type == YK_W_Q5_K ? 2560u : 2048u);
        s[0] = yk_tile_half(at + 256u + 2u * r) * (f32)at[16u * b + r];
        s[2] = yk_tile_half(at + 288u + 2u * r) * (f32)at[128u + 16u * b + r];
    } else { /* half blocks */
        YK_GLOBAL const u8 *at = tile + (type == YK_W_Q2_K ? 1024u : type == YK_W_Q3_K ? 1536u : 3072u);
        const f32 d = yk_tile_half(at + 256u + 2u * r), dmin = type == YK_W_Q2_K ? yk_tile_half(at + 288u + 2u * r) : 0.0f;
        YK_UNROLL
        for (u32 h = 0; h < 2; h++) {
            const u32 v = at[32u * b + 16u * h + r];
            s[h] = d * (type == YK_W_Q2_K ? (f32)(v & 15u) : (f32)(i8)v);
            s[2 + h] = dmin * (f32)(v >> 4);
        }
    }
}

/* The block's product with rounded activations (32 bytes in q[8], sums of both halves); the order of operations is that of the CPU's matmul. */
YK_FN f32 yk_tile_dot(const u32 type, const u32 *c, const f32 *s, const u32 *q, const i32 *sum)
{
    const i32 offset = yk_code_offset(type);
    i32 lo = 0, hi = 0;
    YK_UNROLL
    for (u32 g = 0; g < 4; g++) {
        lo = yk_dp4a(c[g], q[g], lo);
        hi = yk_dp4a(c[g + 4], q[g + 4], hi);
    }
    if (yk_has_halves(type)) {
        const f32 v = s[0] * (f32)(lo - offset * sum[0]) + s[1] * (f32)(hi - offset * sum[1]);
        return type == YK_W_Q2_K ? v - (s[2] * (f32)sum[0] + s[3] * (f32)sum[1]) : v;
    }
    if (type == YK_W_Q4_K || type == YK_W_Q5_K || yk_has_block_min(type))
        return s[0] * (f32)(lo + hi) - s[2] * (f32)(sum[0] + sum[1]);
    return s[0] * (f32)(offset ? lo + hi - offset * (sum[0] + sum[1]) : lo + hi);
}

/* Weight (row r, column k) of an f16 or f32 tile: [k][16 rows]; bf16: [k/2][16 rows][2 k]. */
YK_FN f32 yk_tile_float(const u32 type, YK_GLOBAL const u8 *tile, const u32 k, const u32 r)
{
    if (type == YK_W_BF16)
        return yk_float((u32)((YK_GLOBAL const u16 *)tile)[32u * (k / 2u) + 2u * r + k % 2u] << 16);
    return type == YK_W_F16 ? yk_load_half((YK_GLOBAL const u16 *)tile, 16u * k + r) : ((YK_GLOBAL const f32 *)tile)[16u * k + r];
}

/* Column k < 256 of row r of any tile, exactly as its type defines it. */
YK_FN f32 yk_tile_value(const u32 type, YK_GLOBAL const u8 *tile, const u32 n_blocks, const u32 k, const u32 r)
{
    if (yk_is_float_type(type))
        return yk_tile_float(type, tile, k, r);
    u32 c[8];
    f32 s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (type == YK_W_MXFP4) {
        yk_tile_scales(type, tile, n_blocks, k / 32u, r, s);
        return yk_tile_fp4(s[0], (u32)tile[k / 32u * 256u + k % 16u / 4u * 64u + 4u * r + k % 4u] >> (k % 32u < 16u ? 0u : 4u) & 15u);
    }
    yk_tile_codes(type, tile, n_blocks, k / 32u, r, c);
    yk_tile_scales(type, tile, n_blocks, k / 32u, r, s);
    const i32 code = (i32)(i8)(c[k % 32u / 4u] >> 8u * (k % 4u)) - yk_code_offset(type);
    const u32 half_ = yk_has_halves(type) && k % 32u >= 16u ? 1u : 0u;
    const f32 v = s[half_] * (f32)code;
    return yk_has_block_min(type) || type == YK_W_Q2_K || type == YK_W_Q4_K || type == YK_W_Q5_K ? v - s[2u + half_] : v;
}

/* ---- File layout: column k of a row of blocks as the file has them. ---- */

YK_FN f32 yk_file_half(YK_GLOBAL const u8 *p) { return yk_load_half((YK_GLOBAL const u16 *)p, 0); }

/* Types with one scale a block of 32: [scale][minimum][fifth bits][codes]. */
YK_FN f32 yk_file_block(const u32 type, YK_GLOBAL const u8 *w, const u32 i)
{
    const u32 min_at = type == YK_W_MXFP4 ? 1u : 2u, bits_at = min_at + (yk_has_block_min(type) ? 2u : 0u),
              codes_at = bits_at + (yk_has_fifth_bit(type) ? 4u : 0u);
    const f32 d = type == YK_W_MXFP4 ? yk_tile_exponent(w[0]) : yk_file_half(w);
    const u32 v = w[codes_at + i % 16u];
    u32 code = i < 16u ? v & 15u : v >> 4;
    if (yk_has_fifth_bit(type))
        code |= (w[bits_at + i / 8u] >> i % 8u & 1u) << 4;
    if (type == YK_W_MXFP4)
        return yk_tile_fp4(d, code);
    if (yk_is_table_type(type))
        return d * (f32)(i8)(yk_tile_values(type, code) & 255u);
    const f32 x = d * (f32)((i32)code - yk_code_offset(type));
    return yk_has_block_min(type) ? x + yk_file_half(w + 2) : x;
}

YK_FN f32 yk_file_q2_k(YK_GLOBAL const u8 *w, const u32 i)
{
    const u32 sc = w[i / 16u], code = w[16u + 32u * (i / 128u) + i % 32u] >> 2u * (i / 32u % 4u) & 3u;
    return yk_file_half(w + 80) * (f32)(sc & 15u) * (f32)code - yk_file_half(w + 82) * (f32)(sc >> 4);
}

YK_FN f32 yk_file_q3_k(YK_GLOBAL const u8 *w, const u32 i)
{
    YK_GLOBAL const u8 *s = w + 96;
    const u32 h = i / 16u, low = h < 8u ? s[h] & 15u : (u32)(s[h - 8u] >> 4), top = s[8u + h % 4u] >> 2u * (h / 4u) & 3u;
    const u32 code = (w[32u + 32u * (i / 128u) + i % 32u] >> 2u * (i / 32u % 4u) & 3u) | (w[i % 32u] >> i / 32u & 1u) << 2;
    return yk_file_half(w + 108) * (f32)((i32)(low | top << 4) - 32) * (f32)((i32)code - 4);
}

YK_FN f32 yk_file_q4_q5_k(const u32 type, YK_GLOBAL const u8 *w, const u32 i)
{
    const u32 five = type == YK_W_Q5_K ? 1u : 0u; /* 32 bytes of fifth bits lie before the codes */
    YK_GLOBAL const u8 *sc = w + 4;
    const u32 j = i / 32u, v = w[(five ? 48u : 16u) + 32u * (i / 64u) + i % 32u];
    const u32 high = five ? (w[16u + i % 32u] >> j & 1u) << 4 : 0u;
    const u32 scale = j < 4u ? sc[j] & 63u : (sc[j + 4u] & 15u) | (u32)(sc[j - 4u] >> 6) << 4;
    const u32 min = j < 4u ? sc[j + 4u] & 63u : (u32)(sc[j + 4u] >> 4) | (u32)(sc[j] >> 6) << 4;
    return yk_file_half(w) * (f32)scale * (f32)((j & 1u ? v >> 4 : v & 15u) | high) - yk_file_half(w + 2) * (f32)min;
}

YK_FN f32 yk_file_q6_k(YK_GLOBAL const u8 *w, const u32 i)
{
    const u32 half_ = i / 128u, j = i % 128u, quarter = j / 32u, l = j % 32u;
    const u32 lo = w[64u * half_ + 32u * (quarter & 1u) + l], hi = w[128u + 32u * half_ + l];
    const i32 code = (i32)((quarter < 2u ? lo & 15u : lo >> 4) | (hi >> 2u * quarter & 3u) << 4) - 32;
    return yk_file_half(w + 208) * (f32)(i8)w[192u + i / 16u] * (f32)code;
}

YK_FN f32 yk_file_iq4_xs(YK_GLOBAL const u8 *w, const u32 i)
{
    const u32 b = i / 32u, v = w[8u + 16u * b + i % 16u], low = w[4u + b / 2u] >> 4u * (b % 2u) & 15u,
              top = w[2u + b / 4u] >> 2u * (b % 4u) & 3u;
    const u32 code = i % 32u < 16u ? v & 15u : v >> 4;
    return yk_file_half(w) * (f32)((i32)(low | top << 4) - 32) * (f32)(i8)(yk_tile_values(YK_W_IQ4_XS, code) & 255u);
}

YK_FN f32 yk_file_value(const u32 type, YK_GLOBAL const u8 *row, const u32 k)
{
    const u64 block = k / 32u, group = k / 256u;
    const u32 i = k % 256u;
    if (type == YK_W_F32)
        return ((YK_GLOBAL const f32 *)row)[k];
    if (type == YK_W_F16)
        return yk_load_half((YK_GLOBAL const u16 *)row, k);
    if (type == YK_W_BF16)
        return yk_float((u32)((YK_GLOBAL const u16 *)row)[k] << 16);
    if (type == YK_W_Q8_0)
        return yk_file_half(row + block * 34u) * (f32)(i8)row[block * 34u + 2u + k % 32u];
    if (yk_has_block_scale(type) || type == YK_W_MXFP4)
        return yk_file_block(type,
                             row + block * (type == YK_W_MXFP4  ? 17u
                                            : type == YK_W_Q4_1 ? 20u
                                            : type == YK_W_Q5_0 ? 22u
                                            : type == YK_W_Q5_1 ? 24u
                                                                : 18u),
                             k % 32u);
    if (type == YK_W_Q2_K)
        return yk_file_q2_k(row + group * 84u, i);
    if (type == YK_W_Q3_K)
        return yk_file_q3_k(row + group * 110u, i);
    if (type == YK_W_IQ4_XS)
        return yk_file_iq4_xs(row + group * 136u, i);
    if (type == YK_W_Q6_K)
        return yk_file_q6_k(row + group * 210u, i);
    return yk_file_q4_q5_k(type, row + group * (type == YK_W_Q5_K ? 176u : 144u), i);
}
