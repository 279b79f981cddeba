/* tile.k.h - the packed weight layout (docs/kernels/layout.md), read one row of one block of 32 columns at a time. The only file of the
 * kernels that knows where a weight lies.
 *
 * A tile is 16 rows by up to 8 blocks of 32 columns; its planes follow each other: codes [k/4][16 rows][4 k], high bits, scales. */

/* Types; the values are those of the file format. */
#define YK_W_F32 0u
#define YK_W_F16 1u
#define YK_W_Q4_0 2u
#define YK_W_Q8_0 8u
#define YK_W_Q4_K 12u
#define YK_W_Q5_K 13u
#define YK_W_Q6_K 14u

YK_FN f32 yk_tile_half(YK_GLOBAL const u8 *p) { return yk_load_half((YK_GLOBAL const u16 *)p, 0); }
YK_FN u32 yk_tile_word(YK_GLOBAL const u8 *p) { return *(YK_GLOBAL const u32 *)p; }

/* Codes of columns 4g..4g+3 to the bytes of c[g] (g < 8); scales of both half blocks to s[0], s[1], minimum to s[2]. n_blocks of this tile. */
YK_FN void yk_tile_codes(const u32 type, YK_GLOBAL const u8 *tile, const u32 n_blocks, const u32 b, const u32 r, u32 *c, f32 *s)
{
    if (type == YK_W_Q8_0) {
        YK_UNROLL
        for (u32 g = 0; g < 8; g++)
            c[g] = yk_tile_word(tile + 512u * b + 64u * g + 4u * r);
        s[0] = yk_tile_half(tile + 512u * n_blocks + 32u * b + 2u * r);
        return;
    }
    YK_UNROLL
    for (u32 g = 0; g < 4; g++) {
        const u32 w = yk_tile_word(tile + 256u * b + 64u * g + 4u * r);
        c[g] = w & 0x0f0f0f0fu;
        c[g + 4] = w >> 4 & 0x0f0f0f0fu;
    }
    if (type == YK_W_Q4_0) {
        s[0] = yk_tile_half(tile + 256u * n_blocks + 32u * b + 2u * r);
    } else if (type == YK_W_Q4_K) {
        s[0] = yk_tile_half(tile + 2304u + 2u * r) * (f32)tile[2048u + 16u * b + r];
        s[2] = yk_tile_half(tile + 2336u + 2u * r) * (f32)tile[2176u + 16u * b + r];
    } else if (type == YK_W_Q5_K) {
        const u32 h = yk_tile_word(tile + 2048u + 64u * b + 4u * r);
        YK_UNROLL
        for (u32 g = 0; g < 8; g++)
            c[g] |= (h >> g & 0x01010101u) << 4;
        s[0] = yk_tile_half(tile + 2816u + 2u * r) * (f32)tile[2560u + 16u * b + r];
        s[2] = yk_tile_half(tile + 2848u + 2u * r) * (f32)tile[2688u + 16u * b + r];
    } else { /* Q6_K */
        const u32 h0 = yk_tile_word(tile + 2048u + 128u * b + 4u * r), h1 = yk_tile_word(tile + 2112u + 128u * b + 4u * r);
        YK_UNROLL
        for (u32 g = 0; g < 4; g++) {
            c[g] |= (h0 >> 2u * g & 0x03030303u) << 4;
            c[g + 4] |= (h1 >> 2u * g & 0x03030303u) << 4;
        }
        const f32 d = yk_tile_half(tile + 3328u + 2u * r);
        s[0] = d * (f32)(i8)tile[3072u + 32u * b + r];
        s[1] = d * (f32)(i8)tile[3088u + 32u * b + r];
    }
}

/* The block's product with rounded activations q[32] and their half sums; the order of operations is that of the CPU's matmul. */
YK_FN f32 yk_tile_dot(const u32 type, const u32 *c, const f32 *s, YK_GLOBAL const u32 *q, YK_GLOBAL const i16 *sum)
{
    i32 lo = 0, hi = 0;
    YK_UNROLL
    for (u32 g = 0; g < 4; g++) {
        lo = yk_dp4a(c[g], q[g], lo);
        hi = yk_dp4a(c[g + 4], q[g + 4], hi);
    }
    if (type == YK_W_Q8_0)
        return s[0] * (f32)(lo + hi);
    if (type == YK_W_Q4_0)
        return s[0] * (f32)(lo + hi - 8 * ((i32)sum[0] + (i32)sum[1]));
    if (type == YK_W_Q4_K || type == YK_W_Q5_K)
        return s[0] * (f32)(lo + hi) - s[2] * (f32)((i32)sum[0] + (i32)sum[1]);
    return s[0] * (f32)(lo - 32 * (i32)sum[0]) + s[1] * (f32)(hi - 32 * (i32)sum[1]);
}

/* Weight (row r, column k) of an f16 or f32 tile: [k][16 rows]. */
YK_FN f32 yk_tile_float(const u32 type, YK_GLOBAL const u8 *tile, const u32 k, const u32 r)
{
    return type == YK_W_F16 ? yk_load_half((YK_GLOBAL const u16 *)tile, 16u * k + r) : ((YK_GLOBAL const f32 *)tile)[16u * k + r];
}

/* Column k < 256 of row r of any tile, exactly as its type defines it. */
YK_FN f32 yk_tile_value(const u32 type, YK_GLOBAL const u8 *tile, const u32 n_blocks, const u32 k, const u32 r)
{
    if (type == YK_W_F16 || type == YK_W_F32)
        return yk_tile_float(type, tile, k, r);
    u32 c[8];
    f32 s[3];
    yk_tile_codes(type, tile, n_blocks, k / 32u, r, c, s);
    const i32 code = (i32)(i8)(c[k % 32u / 4u] >> 8u * (k % 4u));
    if (type == YK_W_Q4_K || type == YK_W_Q5_K)
        return s[0] * (f32)code - s[2];
    if (type == YK_W_Q4_0)
        return s[0] * (f32)(code - 8);
    if (type == YK_W_Q6_K)
        return (k % 32u < 16u ? s[0] : s[1]) * (f32)(code - 32);
    return s[0] * (f32)code;
}

/* ---- File layout: column k of a row of blocks as the file has them. ---- */

YK_FN f32 yk_file_half(YK_GLOBAL const u8 *p) { return yk_load_half((YK_GLOBAL const u16 *)p, 0); }

YK_FN f32 yk_file_value(const u32 type, YK_GLOBAL const u8 *row, const u32 k)
{
    if (type == YK_W_F32)
        return ((YK_GLOBAL const f32 *)row)[k];
    if (type == YK_W_F16)
        return yk_load_half((YK_GLOBAL const u16 *)row, k);
    if (type == YK_W_Q8_0) {
        YK_GLOBAL const u8 *w = row + (u64)(k / 32u) * 34u;
        return yk_file_half(w) * (f32)(i8)w[2u + k % 32u];
    }
    if (type == YK_W_Q4_0) {
        YK_GLOBAL const u8 *w = row + (u64)(k / 32u) * 18u;
        const u32 v = w[2u + k % 16u];
        return yk_file_half(w) * (f32)((i32)(k % 32u < 16u ? v & 15u : v >> 4) - 8);
    }
    const u32 i = k % 256u;
    if (type == YK_W_Q4_K || type == YK_W_Q5_K) {
        const u32 five = type == YK_W_Q5_K ? 1u : 0u; /* 32 bytes of fifth bits lie before the codes */
        YK_GLOBAL const u8 *w = row + (u64)(k / 256u) * (five ? 176u : 144u), *sc = w + 4;
        const u32 j = i / 32u, v = w[(five ? 48u : 16u) + 32u * (i / 64u) + i % 32u];
        const u32 high = five ? (w[16u + i % 32u] >> j & 1u) << 4 : 0u;
        const u32 scale = j < 4u ? sc[j] & 63u : (sc[j + 4u] & 15u) | (u32)(sc[j - 4u] >> 6) << 4;
        const u32 min = j < 4u ? sc[j + 4u] & 63u : (u32)(sc[j + 4u] >> 4) | (u32)(sc[j] >> 6) << 4;
        return yk_file_half(w) * (f32)scale * (f32)((j & 1u ? v >> 4 : v & 15u) | high) - yk_file_half(w + 2) * (f32)min;
    }
    YK_GLOBAL const u8 *w = row + (u64)(k / 256u) * 210u;
    const u32 half_ = i / 128u, j = i % 128u, quarter = j / 32u, l = j % 32u;
    const u32 lo = w[64u * half_ + 32u * (quarter & 1u) + l], hi = w[128u + 32u * half_ + l];
    const i32 code = (i32)((quarter < 2u ? lo & 15u : lo >> 4) | (hi >> 2u * quarter & 3u) << 4) - 32;
    return yk_file_half(w + 208) * (f32)(i8)w[192u + i / 16u] * (f32)code;
}
