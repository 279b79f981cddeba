/* layout_pack.c - file blocks to tiles and back, and the exact values of file blocks. Plain C, one weight at a time: this is
 * the definition of the layout. */
#include "bench/layout.h"

#include <string.h>

#include "src/base/half.h"

const yk_lay_traits yk_lay_types[YK_LAY_N] = {
    {"Q4_0", 32, 18}, {"Q4_K", 256, 144}, {"Q6_K", 256, 210}, {"Q8_0", 32, 34}, {"F16", 1, 2},
};

/* Position of column k (0..31) of row r among the 256 bytes of a block of 4-bit codes: group k/4 of 4 columns; groups 0..3 are
 * the low nibbles, 4..7 the high ones. */
static uint32_t nibble_at(uint32_t k, uint32_t r)
{
    return 64 * (k / 4 % 4) + 4 * r + k % 4;
}

static uint8_t nibble_get(const uint8_t *p, uint32_t k, uint32_t r)
{
    return (uint8_t)(k < 16 ? p[nibble_at(k, r)] & 15 : p[nibble_at(k, r)] >> 4);
}

static void nibble_put(uint8_t *p, uint32_t k, uint32_t r, uint8_t v)
{
    p[nibble_at(k, r)] |= (uint8_t)(k < 16 ? v : v << 4);
}

/* 2-bit high parts: 128 bytes a block; group g in byte plane g/4, bits 2 (g%4). */
static uint32_t pair_at(uint32_t k, uint32_t r)
{
    return 64 * (k / 16) + 4 * r + k % 4;
}
static uint32_t pair_shift(uint32_t k)
{
    return 2 * (k / 4 % 4);
}

/* The eight 6-bit scales and minima of a Q4_K block (12 bytes). */
static void k4_scales_get(const uint8_t *s, uint8_t *sc, uint8_t *mn)
{
    for (int i = 0; i < 4; i++) {
        sc[i] = s[i] & 63;
        mn[i] = s[i + 4] & 63;
        sc[i + 4] = (uint8_t)((s[i + 8] & 15) | (s[i] >> 6) << 4);
        mn[i + 4] = (uint8_t)((s[i + 8] >> 4) | (s[i + 4] >> 6) << 4);
    }
}

static void k4_scales_put(const uint8_t *sc, const uint8_t *mn, uint8_t *s)
{
    for (int i = 0; i < 4; i++) {
        s[i] = (uint8_t)(sc[i] | (sc[i + 4] >> 4) << 6);
        s[i + 4] = (uint8_t)(mn[i] | (mn[i + 4] >> 4) << 6);
        s[i + 8] = (uint8_t)((sc[i + 4] & 15) | (mn[i + 4] & 15) << 4);
    }
}

/* Code of column k (0..255) in a Q6_K block. */
static uint8_t k6_get(const uint8_t *w, uint32_t k)
{
    const uint32_t half = k / 128, j = k % 128, q = j / 32, l = j % 32;
    const uint8_t lo = w[64 * half + 32 * (q & 1) + l], hi = w[128 + 32 * half + l];
    return (uint8_t)((q < 2 ? lo & 15 : lo >> 4) | ((hi >> (2 * q)) & 3) << 4);
}

static void k6_put(uint8_t *w, uint32_t k, uint8_t v)
{
    const uint32_t half = k / 128, j = k % 128, q = j / 32, l = j % 32;
    w[64 * half + 32 * (q & 1) + l] |= (uint8_t)(q < 2 ? v & 15 : (v & 15) << 4);
    w[128 + 32 * half + l] |= (uint8_t)((v >> 4) << (2 * q));
}

/* One row's part of a tile, both ways. */
static void q4_0_row(uint8_t *f, uint8_t *t, uint32_t r, uint32_t blocks, int pack)
{
    const yk_lay_tile g = yk_lay_geometry(YK_LAY_Q4_0, blocks);
    for (uint32_t b = 0; b < blocks; b++, f += 18) {
        uint8_t *c = t + 256 * b, *d = t + g.scale + 32 * b + 2 * r;
        memcpy(pack ? d : f, pack ? f : d, 2);
        for (uint32_t k = 0; k < 32; k++) {
            uint8_t *v = f + 2 + k % 16;
            if (pack)
                nibble_put(c, k, r, (uint8_t)(k < 16 ? *v & 15 : *v >> 4));
            else
                *v = (uint8_t)(k < 16 ? nibble_get(c, k, r) : *v | nibble_get(c, k, r) << 4);
        }
    }
}

static void q8_0_row(uint8_t *f, uint8_t *t, uint32_t r, uint32_t blocks, int pack)
{
    const yk_lay_tile g = yk_lay_geometry(YK_LAY_Q8_0, blocks);
    for (uint32_t b = 0; b < blocks; b++, f += 34) {
        uint8_t *d = t + g.scale + 32 * b + 2 * r;
        memcpy(pack ? d : f, pack ? f : d, 2);
        for (uint32_t k = 0; k < 32; k += 4) {
            uint8_t *c = t + 512 * b + 64 * (k / 4) + 4 * r;
            memcpy(pack ? c : f + 2 + k, pack ? f + 2 + k : c, 4);
        }
    }
}

static void q4_k_row(uint8_t *f, uint8_t *t, uint32_t r, int pack)
{
    const yk_lay_tile g = yk_lay_geometry(YK_LAY_Q4_K, 8);
    uint8_t sc[8], mn[8], *d = t + g.scale + 2 * r, *dm = d + 32;
    memcpy(pack ? d : f, pack ? f : d, 2);
    memcpy(pack ? dm : f + 2, pack ? f + 2 : dm, 2);
    if (pack)
        k4_scales_get(f + 4, sc, mn);
    for (uint32_t b = 0; b < 8; b++) {
        uint8_t *s = t + g.sub + 16 * b + r, *m = t + g.sub_min + 16 * b + r;
        if (pack)
            *s = sc[b], *m = mn[b];
        else
            sc[b] = *s, mn[b] = *m;
    }
    if (!pack)
        k4_scales_put(sc, mn, f + 4);
    for (uint32_t k = 0; k < 256; k++) { /* file: blocks 2i and 2i+1 share the bytes 32i..32i+31 */
        uint8_t *v = f + 16 + 32 * (k / 64) + k % 32, *c = t + 256 * (k / 32);
        const int high = k / 32 & 1;
        if (pack)
            nibble_put(c, k % 32, r, (uint8_t)(high ? *v >> 4 : *v & 15));
        else
            *v = (uint8_t)(high ? *v | nibble_get(c, k % 32, r) << 4 : nibble_get(c, k % 32, r));
    }
}

static void q6_k_row(uint8_t *f, uint8_t *t, uint32_t r, int pack)
{
    const yk_lay_tile g = yk_lay_geometry(YK_LAY_Q6_K, 8);
    uint8_t *d = t + g.scale + 2 * r;
    memcpy(pack ? d : f + 208, pack ? f + 208 : d, 2);
    for (uint32_t i = 0; i < 16; i++) {
        uint8_t *s = t + g.sub + 16 * i + r;
        *(pack ? s : f + 192 + i) = *(pack ? f + 192 + i : s);
    }
    if (!pack)
        memset(f, 0, 192);
    for (uint32_t k = 0; k < 256; k++) {
        uint8_t *c = t + 256 * (k / 32), *h = t + g.high + 128 * (k / 32) + pair_at(k % 32, r);
        if (pack) {
            const uint8_t v = k6_get(f, k);
            nibble_put(c, k % 32, r, v & 15);
            *h |= (uint8_t)((v >> 4) << pair_shift(k % 32));
        } else {
            k6_put(f, k, (uint8_t)(nibble_get(c, k % 32, r) | ((*h >> pair_shift(k % 32)) & 3) << 4));
        }
    }
}

static void f16_row(uint8_t *f, uint8_t *t, uint32_t r, uint32_t blocks, int pack)
{
    for (uint32_t k = 0; k < 32 * blocks; k++) {
        uint8_t *c = t + 32 * k + 2 * r;
        memcpy(pack ? c : f + 2 * k, pack ? f + 2 * k : c, 2);
    }
}

static void row_both(yk_lay type, uint8_t *f, uint8_t *panel, uint32_t r, uint32_t cols, int pack)
{
    for (uint32_t k = 0; k < cols; k += YK_LAY_COLS) {
        const uint32_t blocks = cols - k < YK_LAY_COLS ? (cols - k) / 32 : 8;
        switch (type) {
        case YK_LAY_Q4_0:
            q4_0_row(f, panel, r, blocks, pack);
            break;
        case YK_LAY_Q8_0:
            q8_0_row(f, panel, r, blocks, pack);
            break;
        case YK_LAY_Q4_K:
            q4_k_row(f, panel, r, pack);
            break;
        case YK_LAY_Q6_K:
            q6_k_row(f, panel, r, pack);
            break;
        default:
            f16_row(f, panel, r, blocks, pack);
            break;
        }
        f += (size_t)32 * blocks / yk_lay_types[type].block_elems * yk_lay_types[type].block_bytes;
        panel += yk_lay_geometry(type, blocks).bytes;
    }
}

void yk_lay_pack(yk_lay type, const uint8_t *rows, size_t row_bytes, uint32_t cols, uint8_t *panel)
{
    memset(panel, 0, yk_lay_panel_bytes(type, cols));
    for (uint32_t r = 0; r < YK_LAY_ROWS; r++)
        row_both(type, (uint8_t *)rows + r * row_bytes, panel, r, cols, 1); /* only read */
}

void yk_lay_unpack(yk_lay type, const uint8_t *panel, uint32_t cols, uint8_t *rows, size_t row_bytes)
{
    for (uint32_t r = 0; r < YK_LAY_ROWS; r++)
        row_both(type, rows + r * row_bytes, (uint8_t *)panel, r, cols, 0); /* only read */
}

static double half_at(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return yk_f16_to_f32(h);
}

void yk_lay_dequant(yk_lay type, const uint8_t *row, uint32_t cols, double *y)
{
    const yk_lay_traits *t = &yk_lay_types[type];
    for (uint32_t k = 0; k < cols; k++) {
        const uint8_t *w = row + (size_t)(k / t->block_elems) * t->block_bytes;
        const uint32_t i = k % t->block_elems;
        switch (type) {
        case YK_LAY_Q4_0:
            y[k] = half_at(w) * ((i < 16 ? w[2 + i] & 15 : w[2 + i % 16] >> 4) - 8);
            break;
        case YK_LAY_Q8_0:
            y[k] = half_at(w) * (int8_t)w[2 + i];
            break;
        case YK_LAY_Q4_K: {
            uint8_t sc[8], mn[8];
            k4_scales_get(w + 4, sc, mn);
            const uint8_t v = w[16 + 32 * (i / 64) + i % 32];
            y[k] = half_at(w) * sc[i / 32] * (i / 32 & 1 ? v >> 4 : v & 15) - half_at(w + 2) * mn[i / 32];
            break;
        }
        case YK_LAY_Q6_K:
            y[k] = half_at(w + 208) * (int8_t)w[192 + i / 16] * (k6_get(w, i) - 32);
            break;
        default:
            y[k] = half_at(w);
            break;
        }
    }
}
