/* warp.c - what the lanes of a warp do together: shuffles, votes, mma, ldmatrix. A lane leaves its operands and waits; the last one computes for all.
 * Fragments: PTX ISA 9.0, sections "Matrix Fragments for mma.m8n8k16", "... m16n8k16 ...", "... m16n8k32 ...", "... m16n8k8", "ldmatrix". */
#include "gpu/cuda/emu/internal.h"

#include <string.h>

enum { OP_SYNC = 100, OP_SHFL = 200, OP_BALLOT = 300, OP_LDMATRIX = 400 };

typedef struct operands {
    const uint32_t *a, *b;
    const void *c;
    void *d;
    uint32_t value, lane;
} operands;

/* Returns when all lanes of the mask have come here. */
static void meet(uint32_t op, uint32_t mask, const operands *in, const char *where)
{
    yk_emu *e = yk_emu_current;
    yk_emu_fibre *f = e->now, *first = &e->fibres[f->thread / 32 * 32];
    f->state = YK_EMU_AT_WARP;
    f->op = op;
    f->mask = mask;
    f->in = in;
    f->where = where;
    if (!(mask >> f->thread % 32 & 1u)) {
        yk_emu_find(e, YK_EMU_DIVERGED, "mask %08x does not hold the lane itself, at %s", mask, where);
        yk_emu_stop(e);
    }
    for (uint32_t i = 0; i < 32; i++) {
        const yk_emu_fibre *o = first + i;
        if (!(mask >> i & 1u))
            continue;
        if (o->state == YK_EMU_DONE ||
            (o->state == YK_EMU_AT_WARP && (o->op != op || o->mask != mask || strcmp(o->where, where) != 0))) {
            yk_emu_find(e, YK_EMU_DIVERGED, "at %s it waits for thread %u: %s", where, o->thread,
                        o->state == YK_EMU_DONE ? "has ended" : o->where);
            yk_emu_stop(e);
        }
        if (o->state != YK_EMU_AT_WARP) {
            yk_emu_yield(e);
            return;
        }
    }
    yk_emu_together(e, first);
    for (uint32_t i = 0; i < 32; i++)
        if (mask >> i & 1u)
            first[i].state = YK_EMU_RUN;
    if (mask == 0xffffffffu)
        yk_emu_flush(e, f->thread / 32);
}

/* ---- mma ---- */

static float half_value(uint32_t h)
{
    const uint32_t sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 1023u;
    uint32_t bits;
    float v;
    if (exponent == 0) {
        v = (float)mantissa * 0x1p-24f;
        return sign ? -v : v;
    }
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
    memcpy(&v, &bits, 4);
    return v;
}

static float bf16_value(uint32_t h)
{
    const uint32_t bits = h << 16;
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

/* Where element i of a lane's registers lies in A [16 or 8][k], B [k][8], C [16 or 8][8]. Four 8-bit or two 16-bit elements a register. */
typedef struct place {
    uint32_t row, col;
} place;

static place place_a(const uint32_t lane, const uint32_t i, const uint32_t per, const bool tall)
{
    const uint32_t group = lane / 4, in_group = lane % 4, reg = i / per;
    return (place){.row = group + (tall && reg % 2 ? 8 : 0),
                   .col = in_group * per + i % per + (tall ? reg / 2 : reg) * 4 * per};
}

static place place_b(const uint32_t lane, const uint32_t i, const uint32_t per)
{
    return (place){.row = lane % 4 * per + i % per + i / per * 4 * per, .col = lane / 4};
}

static place place_c(const uint32_t lane, const uint32_t i)
{
    return (place){.row = lane / 4 + (i / 2) * 8, .col = lane % 4 * 2 + i % 2};
}

static uint32_t half_element(const uint32_t *regs, const uint32_t i)
{
    return regs[i / 2] >> 16 * (i % 2) & 65535u;
}

static void mma_s8(const yk_emu_fibre *first, const uint32_t rows, const uint32_t k)
{
    int8_t a[16][32], b[8][32]; /* b by columns: the four elements of a register follow each other in both */
    uint32_t out[32][4];
    const uint32_t n_a = rows * k / 32, n_b = 8 * k / 32, n_c = rows * 8 / 32;
    for (uint32_t l = 0; l < 32; l++) {
        const operands *o = first[l].in;
        for (uint32_t i = 0; i < n_a; i += 4) {
            const place p = place_a(l, i, 4, rows == 16);
            memcpy(&a[p.row][p.col], &o->a[i / 4], 4);
        }
        for (uint32_t i = 0; i < n_b; i += 4) {
            const place p = place_b(l, i, 4);
            memcpy(&b[p.col][p.row], &o->b[i / 4], 4);
        }
    }
    for (uint32_t l = 0; l < 32; l++) {
        const operands *o = first[l].in;
        memcpy(out[l], o->c, 4 * n_c);
        for (uint32_t i = 0; i < n_c; i++) {
            const place p = place_c(l, i);
            for (uint32_t x = 0; x < k; x++)
                out[l][i] += (uint32_t)(a[p.row][x] * b[p.col][x]);
        }
    }
    for (uint32_t l = 0; l < 32; l++)
        memcpy(((const operands *)first[l].in)->d, out[l], 4 * n_c);
}

static void mma_16(const yk_emu_fibre *first, const uint32_t k, float (*value)(uint32_t))
{
    float a[16][16], b[16][8], out[32][4];
    for (uint32_t l = 0; l < 32; l++) {
        const operands *o = first[l].in;
        for (uint32_t i = 0; i < k / 2; i++) {
            const place p = place_a(l, i, 2, true);
            a[p.row][p.col] = value(half_element(o->a, i));
        }
        for (uint32_t i = 0; i < k / 4; i++) {
            const place p = place_b(l, i, 2);
            b[p.row][p.col] = value(half_element(o->b, i));
        }
    }
    for (uint32_t l = 0; l < 32; l++) {
        const operands *o = first[l].in;
        float c[4];
        memcpy(c, o->c, sizeof c);
        for (uint32_t i = 0; i < 4; i++) {
            const place p = place_c(l, i);
            double sum = c[i];
            for (uint32_t x = 0; x < k; x++)
                sum += (double)a[p.row][x] * (double)b[x][p.col];
            out[l][i] = (float)sum;
        }
    }
    for (uint32_t l = 0; l < 32; l++)
        memcpy(((const operands *)first[l].in)->d, out[l], sizeof out[l]);
}

/* ---- ldmatrix ---- */

/* A matrix is eight rows of 16 bytes; register m of a lane is row lane / 4, columns 2 (lane % 4) and the next; transposed: column lane / 4, rows
 * 2 (lane % 4) and the next. */
static void load_matrices(const yk_emu_fibre *first, const uint32_t n, const bool trans)
{
    for (uint32_t m = 0; m < n; m++) {
        uint16_t cell[8][8];
        for (uint32_t i = 0; i < 8; i++)
            memcpy(cell[i], ((const operands *)first[8 * m + i].in)->c, 16);
        for (uint32_t l = 0; l < 32; l++) {
            const uint32_t r = l / 4, c = l % 4 * 2;
            ((uint32_t *)((const operands *)first[l].in)->d)[m] =
                trans ? cell[c][r] | (uint32_t)cell[c + 1][r] << 16 : cell[r][c] | (uint32_t)cell[r][c + 1] << 16;
        }
    }
}

/* ---- for all ---- */

static void shuffle(yk_emu *e, const yk_emu_fibre *first, const uint32_t kind, const uint32_t mask)
{
    for (uint32_t l = 0; l < 32; l++) {
        if (!(mask >> l & 1u))
            continue;
        const operands *o = first[l].in;
        const uint32_t from = kind == YK_EMU_IDX    ? o->lane % 32
                              : kind == YK_EMU_XOR  ? l ^ o->lane
                              : kind == YK_EMU_DOWN ? l + o->lane
                                                    : l - o->lane;
        uint32_t v = o->value;
        if (from < 32 && !(mask >> from & 1u))
            yk_emu_find(e, YK_EMU_DIVERGED, "a shuffle takes the value of lane %u, which is not in mask %08x, at %s", from,
                        mask, first[l].where);
        else if (from < 32)
            v = ((const operands *)first[from].in)->value;
        *(uint32_t *)o->d = v;
    }
}

static void ballot(const yk_emu_fibre *first, const uint32_t mask)
{
    uint32_t bits = 0;
    for (uint32_t l = 0; l < 32; l++)
        if (mask >> l & 1u && ((const operands *)first[l].in)->value)
            bits |= 1u << l;
    for (uint32_t l = 0; l < 32; l++)
        if (mask >> l & 1u)
            *(uint32_t *)((const operands *)first[l].in)->d = bits;
}

void yk_emu_together(yk_emu *e, yk_emu_fibre *first)
{
    const yk_emu_fibre *f = e->now;
    switch (f->op) {
    case OP_SYNC:
        e->warps[f->thread / 32].epoch++;
        break;
    case OP_BALLOT:
        ballot(first, f->mask);
        break;
    case YK_EMU_M8N8K16_S8:
        mma_s8(first, 8, 16);
        break;
    case YK_EMU_M16N8K16_S8:
        mma_s8(first, 16, 16);
        break;
    case YK_EMU_M16N8K32_S8:
        mma_s8(first, 16, 32);
        break;
    case YK_EMU_M16N8K16_F16:
        mma_16(first, 16, half_value);
        break;
    case YK_EMU_M16N8K16_BF16:
        mma_16(first, 16, bf16_value);
        break;
    case YK_EMU_M16N8K8_F16:
        mma_16(first, 8, half_value);
        break;
    default:
        if (f->op >= OP_LDMATRIX)
            load_matrices(first, (f->op - OP_LDMATRIX) / 2, (f->op - OP_LDMATRIX) % 2);
        else
            shuffle(e, first, f->op - OP_SHFL, f->mask);
    }
}

void yk_emu_syncwarp(uint32_t mask, const char *where)
{
    meet(OP_SYNC, mask, NULL, where);
}

uint32_t yk_emu_shfl(yk_emu_shuffle kind, uint32_t mask, uint32_t value, uint32_t lane, const char *where)
{
    uint32_t out = 0;
    meet(OP_SHFL + kind, mask, &(operands){.value = value, .lane = lane, .d = &out}, where);
    return out;
}

uint32_t yk_emu_ballot(uint32_t mask, uint32_t value, const char *where)
{
    uint32_t out = 0;
    meet(OP_BALLOT, mask, &(operands){.value = value, .d = &out}, where);
    return out;
}

void yk_emu_mma(yk_emu_mma_kind kind, void *d, const uint32_t *a, const uint32_t *b, const void *c, const char *where)
{
    meet(kind, 0xffffffffu, &(operands){.a = a, .b = b, .c = c, .d = d}, where);
}

__attribute__((noinline)) void yk_emu_ldmatrix(uint32_t n, bool trans, uint32_t *out, const void *row, const char *where)
{
    yk_emu *e = yk_emu_current;
    if (e->now->thread % 32 < 8 * n) { /* the addresses of the other lanes are not used */
        if ((uintptr_t)row - (uintptr_t)e->arena >= YK_EMU_ARENA) {
            yk_emu_find(e, YK_EMU_BOUNDS, "ldmatrix of memory that is not shared, at %s", where);
            yk_emu_stop(e);
        }
        yk_emu_access(row, 16, YK_EMU_READ, (uintptr_t)__builtin_return_address(0));
    }
    meet(OP_LDMATRIX + 2 * n + (trans ? 1 : 0), 0xffffffffu, &(operands){.c = row, .d = out}, where);
}
