/* Kernels that read weights, on one backend (first argument): products with packed weights against double precision and the
 * CPU's op on the file's bytes, embedding rows in both layouts against the CPU's dequantisation. */
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
#include "cpu/pack.h"
#include "src/base/half.h"
#include "tests/gpu_rig.h"
#include "tests/tolerance.h"

enum { MAX_COLS = 1536, MAX_ROWS = 96, MAX_TOKENS = 72 };

static yk_rig rig;
static const yk_ops *ops;

static const yk_type types[] = {YK_TYPE_F32,  YK_TYPE_F16,    YK_TYPE_BF16,   YK_TYPE_Q4_0, YK_TYPE_Q4_1, YK_TYPE_Q5_0,
                                YK_TYPE_Q5_1, YK_TYPE_Q8_0,   YK_TYPE_Q2_K,   YK_TYPE_Q3_K, YK_TYPE_Q4_K, YK_TYPE_Q5_K,
                                YK_TYPE_Q6_K, YK_TYPE_IQ4_NL, YK_TYPE_IQ4_XS, YK_TYPE_MXFP4};
enum { N_TYPES = sizeof types / sizeof *types, N_FLOAT_TYPES = 3 };

/* A matrix in file layout, its values, its panels (rows padded with zero rows). */
typedef struct matrix {
    yk_type type;
    uint32_t n_rows, n_cols, n_panels, tile_bytes;
    uint64_t row_bytes, panel_bytes;
    uint8_t *file, *packed;
    float *value; /* [n_rows][n_cols] */
} matrix;

static void put_half(uint8_t *p)
{
    const uint16_t h = yk_f32_to_f16(yk_rig_float(&rig) * 0.1f);
    memcpy(p, &h, 2);
}

/* Random bytes are valid codes; the scales have to be sane halves. */
static void random_row(yk_type type, uint8_t *row, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i++)
        row[i] = (uint8_t)yk_rig_below(&rig, 256);
    switch (type) {
    case YK_TYPE_F32:
        for (uint64_t i = 0; i < bytes; i += 4) {
            const float v = yk_rig_float(&rig);
            memcpy(row + i, &v, 4);
        }
        break;
    case YK_TYPE_F16:
        for (uint64_t i = 0; i < bytes; i += 2)
            put_half(row + i);
        break;
    case YK_TYPE_BF16:
        for (uint64_t i = 0; i < bytes; i += 2) {
            const uint16_t top = (uint16_t)(yk_f32_bits(yk_rig_float(&rig)) >> 16);
            memcpy(row + i, &top, 2);
        }
        break;
    case YK_TYPE_MXFP4: /* exponents */
        for (uint64_t i = 0; i < bytes; i += 17)
            row[i] = (uint8_t)(120 + yk_rig_below(&rig, 8));
        break;
    case YK_TYPE_Q2_K:
        for (uint64_t i = 0; i < bytes; i += 84)
            put_half(row + i + 80), put_half(row + i + 82);
        break;
    case YK_TYPE_Q3_K:
        for (uint64_t i = 0; i < bytes; i += 110)
            put_half(row + i + 108);
        break;
    case YK_TYPE_Q4_1:
    case YK_TYPE_Q5_1:
    case YK_TYPE_Q4_K:
    case YK_TYPE_Q5_K:
        for (uint64_t i = 0; i < bytes; i += yk_type_get(type)->block_bytes)
            put_half(row + i), put_half(row + i + 2);
        break;
    case YK_TYPE_Q6_K:
        for (uint64_t i = 0; i < bytes; i += 210)
            put_half(row + i + 208);
        break;
    default: {
        const uint32_t block = yk_type_get(type)->block_bytes;
        for (uint64_t i = 0; i < bytes; i += block)
            put_half(row + i);
    }
    }
}

static matrix matrix_new(yk_type type, uint32_t n_rows, uint32_t n_cols)
{
    matrix m = {.type = type, .n_rows = n_rows, .n_cols = n_cols, .n_panels = (n_rows + 15) / 16};
    assert_true(yk_type_row_bytes(type, n_cols, &m.row_bytes));
    m.panel_bytes = yk_panel_bytes(type, n_cols);
    m.tile_bytes = yk_tile_bytes(type, YK_TILE_COLS);
    m.file = calloc(n_rows, m.row_bytes);
    m.packed = aligned_alloc(64, m.n_panels * m.panel_bytes);
    m.value = calloc((size_t)n_rows * n_cols, 4);
    for (uint32_t r = 0; r < n_rows; r++) {
        random_row(type, m.file + r * m.row_bytes, m.row_bytes);
        ops->dequant[type](m.file + r * m.row_bytes, n_cols, m.value + (size_t)r * n_cols);
    }
    assert_true(yk_pack_has(type));
    assert_int_equal(yk_packed_bytes(type, n_rows, n_cols), m.n_panels * m.panel_bytes);
    yk_pack(type, m.file, m.row_bytes, n_rows, 0, n_cols, m.packed);
    return m;
}

static void matrix_free(matrix *m)
{
    free(m->file);
    free(m->packed);
    free(m->value);
}

/* Activations of `rows` rows, f32 and rounded. */
typedef struct acts {
    uint32_t rows, n_cols, n_blocks;
    float *x;
    yk_q8 q8;
} acts;

static acts acts_new(uint32_t rows, uint32_t n_cols)
{
    acts a = {.rows = rows, .n_cols = n_cols, .n_blocks = (n_cols + 31) / 32};
    a.x = malloc((size_t)rows * n_cols * 4);
    yk_rig_floats(&rig, a.x, (size_t)rows * n_cols);
    a.q8 = (yk_q8){.q = malloc((size_t)rows * a.n_blocks * 32),
                   .scale = malloc((size_t)rows * a.n_blocks * 4),
                   .sum = malloc((size_t)rows * a.n_blocks * 4),
                   .n_blocks = a.n_blocks};
    for (uint32_t t = 0; t < rows; t++)
        ops->quantise(a.x + (size_t)t * n_cols, n_cols, &a.q8, t);
    return a;
}

static void acts_free(acts *a)
{
    free(a->x);
    free(a->q8.q);
    free(a->q8.scale);
    free(a->q8.sum);
}

static bool is_rounded(yk_type t)
{
    return yk_type_get(t)->quantised;
}

static void acts_put(const acts *a, yk_k_matvec *mv)
{
    if (is_rounded(mv->type)) {
        mv->q8.q = yk_rig_in(&rig, a->q8.q, (uint64_t)a->rows * a->n_blocks * 32);
        mv->q8.scale = yk_rig_in(&rig, a->q8.scale, (uint64_t)a->rows * a->n_blocks * 4);
        mv->q8.sum = yk_rig_in(&rig, a->q8.sum, (uint64_t)a->rows * a->n_blocks * 4);
        mv->x_stride = a->n_blocks;
    } else {
        mv->x = yk_rig_in(&rig, a->x, (uint64_t)a->rows * a->n_cols * 4);
        mv->x_stride = a->n_cols;
    }
}

/* The product of weight row r and activation row t in double, and the sum of its terms' magnitudes. */
static double product(const matrix *m, const acts *a, uint32_t r, uint32_t t, double *size)
{
    double sum = 0;
    *size = 0;
    for (uint32_t k = 0; k < m->n_cols; k++) {
        const double x = is_rounded(m->type)
                             ? (double)a->q8.scale[t * a->n_blocks + k / 32] * a->q8.q[(size_t)t * a->n_blocks * 32 + k]
                             : a->x[(size_t)t * a->n_cols + k];
        const double term = (double)m->value[(size_t)r * m->n_cols + k] * x;
        sum += term;
        *size += fabs(term);
    }
    return sum;
}

enum { ROWS = 1, BIAS = 2, WEIGHTS = 4, Y_ROWS = 8, ADD = 16 };

/* One launch of mv against the truth; y starts as random values. */
static void run_case(const matrix *m, const acts *a, yk_k_matvec *mv, uint32_t n, uint32_t flags)
{
    const uint32_t ys = m->n_rows + 3, y_rows = MAX_TOKENS + 2;
    uint32_t rows[MAX_TOKENS], out[MAX_TOKENS];
    float bias[MAX_ROWS], weights[MAX_TOKENS], *y = malloc((size_t)y_rows * ys * 4), *cpu = malloc((size_t)n * m->n_rows * 4);
    yk_rig_floats(&rig, y, (size_t)y_rows * ys);
    yk_rig_floats(&rig, bias, MAX_ROWS);
    yk_rig_floats(&rig, weights, MAX_TOKENS);
    for (uint32_t t = 0; t < n; t++) {
        rows[t] = flags & ROWS ? yk_rig_below(&rig, a->rows) : t;
        out[t] = flags & Y_ROWS ? y_rows - 1 - t : t;
    }
    acts_put(a, mv);
    mv->n = n;
    mv->n_rows = m->n_rows;
    mv->n_cols = m->n_cols;
    mv->y_stride = ys;
    mv->add = flags & ADD;
    mv->y = yk_rig_out(&rig, y, (uint64_t)y_rows * ys * 4);
    if (flags & ROWS)
        mv->rows = yk_rig_in(&rig, rows, n * 4);
    if (flags & BIAS)
        mv->bias = yk_rig_in(&rig, bias, m->n_rows * 4);
    if (flags & WEIGHTS)
        mv->weights = yk_rig_in(&rig, weights, n * 4);
    if (flags & Y_ROWS)
        mv->y_rows = yk_rig_in(&rig, out, n * 4);
    yk_k_call c;
    yk_k_call_matvec(&c, yk_rig_kernel(&rig, yk_k_matvec_name(m->type, n)), mv);
    yk_rig_run(&rig, &c, 1);
    ops->matmul[m->type](&(yk_matmul){.w = m->file,
                                      .row_bytes = m->row_bytes,
                                      .n_rows = m->n_rows,
                                      .n_cols = m->n_cols,
                                      .x = a->x,
                                      .x_stride = a->n_cols,
                                      .xq = &a->q8,
                                      .rows = rows,
                                      .n_tokens = n,
                                      .y = cpu,
                                      .y_stride = m->n_rows});
    const double rel = yk_tolerance_find("matmul", yk_type_get(m->type)->name)->rel;
    const float *got = yk_rig_got(&rig, mv->y);
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t r = 0; r < m->n_rows; r++) {
            double size;
            const double sum = product(m, a, r, rows[t], &size), w = flags & WEIGHTS ? weights[t] : 1,
                         b = flags & BIAS ? bias[r] : 0;
            float *at = y + (size_t)out[t] * ys + r;
            const double before = flags & ADD ? *at : 0, want = before + w * (sum + b);
            const double tol = rel * (fabs(w) * (size + fabs(b)) + fabs(before));
            const size_t i = (size_t)out[t] * ys + r;
            yk_rig_near(&rig, "y", i, got[i], want, tol);
            yk_rig_near(&rig, "y against the CPU", i, got[i], before + w * ((double)cpu[(size_t)t * m->n_rows + r] + b),
                        2 * tol);
            *at = got[i];
        }
    }
    assert_memory_equal(got, y, (size_t)y_rows * ys * 4); /* nothing between the rows was touched */
    free(y);
    free(cpu);
}

static void test_matvec(void **state)
{
    (void)state;
    static const uint32_t rows[] = {1, 16, 40};
    static const uint32_t cols[] = {32, 256, 288, 1024};
    static const uint32_t tokens[] = {1, 2, 8, 9, 20, 72};
    for (uint32_t ty = 0; ty < N_TYPES; ty++) {
        for (uint32_t i = 0; i < 3 * 4; i++) {
            const uint32_t n_cols = cols[i % 4];
            if (n_cols % yk_type_get(types[ty])->block_elems)
                continue;
            matrix m = matrix_new(types[ty], rows[i / 4], n_cols);
            acts a = acts_new(MAX_TOKENS, n_cols);
            for (uint32_t k = 0; k < 6; k++) {
                const uint32_t flags = yk_rig_below(&rig, 32);
                yk_rig_case(&rig, "matvec %s %ux%u n=%u flags=%u", yk_type_get(types[ty])->name, m.n_rows, n_cols, tokens[k],
                            flags);
                yk_k_matvec mv = {.type = types[ty], .panel_bytes = (uint32_t)m.panel_bytes, .tile_bytes = m.tile_bytes};
                mv.w = yk_rig_in(&rig, m.packed, m.n_panels * m.panel_bytes);
                run_case(&m, &a, &mv, tokens[k], flags);
            }
            acts_free(&a);
            matrix_free(&m);
        }
    }
}

/* Float matrices may have any number of columns. */
static void test_odd_floats(void **state)
{
    (void)state;
    static const uint32_t cols[] = {1, 31, 33, 257, 300};
    for (uint32_t ty = 0; ty < N_FLOAT_TYPES; ty++) {
        for (uint32_t i = 0; i < 5; i++) {
            matrix m = matrix_new(types[ty], 19, cols[i]);
            acts a = acts_new(3, cols[i]);
            yk_rig_case(&rig, "matvec %s 19x%u", yk_type_get(types[ty])->name, cols[i]);
            yk_k_matvec mv = {.type = types[ty], .panel_bytes = (uint32_t)m.panel_bytes, .tile_bytes = m.tile_bytes};
            mv.w = yk_rig_in(&rig, m.packed, m.n_panels * m.panel_bytes);
            run_case(&m, &a, &mv, 3, BIAS | ADD);
            acts_free(&a);
            matrix_free(&m);
        }
    }
}

/* The result of a token does not depend on how many are computed with it. */
static void test_alone(void **state)
{
    enum { ALL = 20 };
    (void)state;
    for (uint32_t ty = 0; ty < N_TYPES; ty++) {
        matrix m = matrix_new(types[ty], 32, 512);
        acts a = acts_new(ALL, 512);
        float alone[ALL][32];
        for (uint32_t n = 1; n <= ALL + 2; n++) { /* token n - 1 alone; then nine and all */
            const uint32_t one = n - 1, count = n <= ALL ? 1 : n == ALL + 1 ? 9 : ALL;
            yk_rig_case(&rig, "matvec %s, token %u alone", yk_type_get(types[ty])->name, one);
            yk_k_matvec mv = {.type = types[ty],
                              .n = count,
                              .n_rows = 32,
                              .n_cols = 512,
                              .y_stride = 32,
                              .panel_bytes = (uint32_t)m.panel_bytes,
                              .tile_bytes = m.tile_bytes};
            acts_put(&a, &mv);
            mv.w = yk_rig_in(&rig, m.packed, m.n_panels * m.panel_bytes);
            if (n <= ALL)
                mv.rows = yk_rig_in(&rig, &one, 4);
            mv.y = yk_rig_out(&rig, NULL, (uint64_t)count * 32 * 4);
            yk_k_call c;
            yk_k_call_matvec(&c, yk_rig_kernel(&rig, yk_k_matvec_name(types[ty], count)), &mv);
            yk_rig_run(&rig, &c, 1);
            if (n <= ALL)
                memcpy(alone[one], yk_rig_got(&rig, mv.y), sizeof alone[one]);
            else
                assert_memory_equal(yk_rig_got(&rig, mv.y), alone, count * sizeof alone[one]);
        }
        acts_free(&a);
        matrix_free(&m);
    }
}

/* Cut units as one launch: the gate panels of three units with other bytes between them, and the `down` columns of three units,
 * where a unit holds one tile of each panel. */
static void test_units(void **state)
{
    (void)state;
    enum { UNITS = 3, GAP = 640 };
    for (uint32_t ty = 0; ty < N_TYPES; ty++) {
        const char *name = yk_type_get(types[ty])->name;
        matrix m = matrix_new(types[ty], 16 * 2 * UNITS, 512);
        acts a = acts_new(9, 512);
        const uint64_t step = 4 * m.panel_bytes + GAP;
        uint8_t *bytes = malloc(UNITS * step);
        memset(bytes, 0x7e, UNITS * step); /* the other matrix's panels, every other one: NaN or large when read */
        for (uint32_t i = 0; i < m.n_panels; i++)
            memcpy(bytes + i / 2 * step + i % 2 * 2 * m.panel_bytes, m.packed + i * m.panel_bytes, m.panel_bytes);
        yk_rig_case(&rig, "gate units %s", name);
        yk_k_matvec mv = {.type = types[ty],
                          .panel_bytes = (uint32_t)m.panel_bytes * 2,
                          .tile_bytes = m.tile_bytes,
                          .group_panels = 2,
                          .group_bytes = (uint32_t)step};
        mv.w = yk_rig_in(&rig, bytes, UNITS * step);
        run_case(&m, &a, &mv, 9, ROWS);
        free(bytes);
        acts_free(&a);
        matrix_free(&m);

        m = matrix_new(types[ty], 40, 256 * UNITS);
        a = acts_new(3, 256 * UNITS);
        const uint64_t down = (uint64_t)m.n_panels * m.tile_bytes, down_step = down + GAP;
        bytes = calloc(UNITS, down_step);
        for (uint32_t u = 0; u < UNITS; u++)
            for (uint32_t p = 0; p < m.n_panels; p++)
                memcpy(bytes + u * down_step + (uint64_t)p * m.tile_bytes,
                       m.packed + p * m.panel_bytes + (uint64_t)u * m.tile_bytes, m.tile_bytes);
        yk_rig_case(&rig, "down units %s", name);
        mv = (yk_k_matvec){.type = types[ty], .panel_bytes = m.tile_bytes, .tile_bytes = (uint32_t)down_step};
        mv.w = yk_rig_in(&rig, bytes, UNITS * down_step);
        run_case(&m, &a, &mv, 3, WEIGHTS | Y_ROWS | ADD);
        free(bytes);
        acts_free(&a);
        matrix_free(&m);
    }
}

static void test_embed(void **state)
{
    (void)state;
    static const uint32_t cols[] = {32, 256, 544, 768};
    static const uint32_t ids[] = {0, 36, 5, 13, 31, 1000000};
    for (uint32_t ty = 0; ty < N_TYPES; ty++) {
        for (uint32_t i = 0; i < 4; i++) {
            if (cols[i] % yk_type_get(types[ty])->block_elems)
                continue;
            matrix m = matrix_new(types[ty], 37, cols[i]);
            for (int packed = 0; packed < 2; packed++) {
                yk_rig_case(&rig, "embed %s n_cols=%u packed=%d", yk_type_get(types[ty])->name, cols[i], packed);
                yk_k_embed a = {.type = types[ty],
                                .n = 6,
                                .n_rows = 37,
                                .n_cols = cols[i],
                                .out_stride = cols[i] + 1,
                                .row_bytes = (uint32_t)m.row_bytes};
                if (packed) {
                    a.panel_bytes = (uint32_t)m.panel_bytes;
                    a.tile_bytes = m.tile_bytes;
                }
                a.w =
                    packed ? yk_rig_in(&rig, m.packed, m.n_panels * m.panel_bytes) : yk_rig_in(&rig, m.file, 37 * m.row_bytes);
                a.ids = yk_rig_in(&rig, ids, sizeof ids);
                a.out = yk_rig_out(&rig, NULL, 6ull * a.out_stride * 4);
                yk_k_call c;
                yk_k_call_embed(&c, yk_rig_kernel(&rig, yk_k_embed_name(types[ty])), &a);
                yk_rig_run(&rig, &c, 1);
                for (uint32_t t = 0; t < 6; t++) {
                    const uint32_t id = ids[t] < 37 ? ids[t] : 0;
                    assert_memory_equal((const float *)yk_rig_got(&rig, a.out) + (size_t)t * a.out_stride,
                                        m.value + (size_t)id * cols[i], cols[i] * 4);
                }
            }
            matrix_free(&m);
        }
    }
}

/* ---- list_TYPE: parts as the engine packs them, against matvec ---- */

enum { PARTS = 3, USED = 2, LIST_TOKENS = 3, LIST_SLOTS = LIST_TOKENS * USED, PART_BYTES = 8 << 20 };

typedef struct part {
    matrix gate, up, down;
    uint32_t width, unit, n_units, tail;
} part;

static part part_new(yk_type type, uint32_t width, uint32_t d)
{
    part p = {.width = width, .unit = width < 256 ? width : 256};
    p.n_units = width / p.unit;
    p.tail = width % p.unit;
    p.gate = matrix_new(type, width, d);
    p.up = matrix_new(type, width, d);
    p.down = matrix_new(type, d, width);
    return p;
}

/* Cut unit u (docs/kernels/layout.md): pairs of panels, then the tiles of its columns of down. Returns its bytes. */
static uint32_t put_unit(const part *p, uint32_t u, uint8_t *to, uint32_t *down_at, uint32_t *tile)
{
    const uint32_t cols = u < p->n_units ? p->unit : p->tail, first = u * p->unit / 16;
    uint8_t *at = to;
    for (uint32_t i = 0; i < (cols + 15) / 16; i++) {
        memcpy(at, p->gate.packed + (first + i) * p->gate.panel_bytes, p->gate.panel_bytes);
        at += p->gate.panel_bytes;
        memcpy(at, p->up.packed + (first + i) * p->up.panel_bytes, p->up.panel_bytes);
        at += p->up.panel_bytes;
    }
    *down_at = (uint32_t)(at - to);
    *tile = yk_tile_bytes(p->down.type, cols);
    for (uint32_t i = 0; i < p->down.n_panels; i++, at += *tile)
        memcpy(at, p->down.packed + i * p->down.panel_bytes + (uint64_t)u * p->down.tile_bytes, *tile);
    return (uint32_t)(at - to);
}

/* All parts into `arena`, in an order that is not theirs, and their rows. Returns bytes used. */
static uint64_t put_parts(const part *parts, uint8_t *arena, uint32_t *rows)
{
    uint64_t at = 0;
    memset(rows, 0, PARTS * YK_K_PART_WORDS * 4);
    for (uint32_t i = PARTS; i-- > 0;) {
        const part *p = &parts[i];
        uint32_t *row = rows + i * YK_K_PART_WORDS;
        if (p->tail) {
            row[1] = (uint32_t)(at / YK_K_PART_ALIGN);
            at += put_unit(p, p->n_units, arena + at, &row[7], &row[9]);
            at = (at + YK_K_PART_ALIGN - 1) / YK_K_PART_ALIGN * YK_K_PART_ALIGN;
        }
        row[0] = (uint32_t)(at / YK_K_PART_ALIGN);
        for (uint32_t u = 0; u < p->n_units; u++)
            at += row[5] = put_unit(p, u, arena + at, &row[6], &row[8]);
        at = (at + YK_K_PART_ALIGN - 1) / YK_K_PART_ALIGN * YK_K_PART_ALIGN;
        row[2] = p->n_units;
        row[3] = p->unit;
        row[4] = p->tail;
    }
    assert_true(at <= PART_BYTES);
    return at;
}

/* What matvec gives for row `row` of the activations and one matrix. */
static yk_k_call alone(const matrix *m, yk_k_matvec *mv, uint32_t row)
{
    yk_k_call c;
    mv->w = yk_rig_in(&rig, m->packed, m->n_panels * m->panel_bytes);
    mv->rows = yk_rig_in(&rig, &row, 4);
    mv->n = 1;
    mv->n_rows = m->n_rows;
    mv->n_cols = m->n_cols;
    mv->y_stride = m->n_rows;
    mv->panel_bytes = (uint32_t)m->panel_bytes;
    mv->tile_bytes = m->tile_bytes;
    mv->y = yk_rig_out(&rig, NULL, m->n_rows * 4);
    yk_k_call_matvec(&c, yk_rig_kernel(&rig, yk_k_matvec_name(m->type, 1)), mv);
    return c;
}

static void list_case(yk_type type, const uint32_t *widths, uint32_t d, bool down, bool bias)
{
    part parts[PARTS];
    uint32_t width = 0, rows[PARTS * YK_K_PART_WORDS], ids[LIST_SLOTS];
    uint8_t *arena = calloc(PART_BYTES, 1);
    for (uint32_t i = 0; i < PARTS; i++) {
        parts[i] = part_new(type, widths[i], d);
        width = widths[i] > width ? widths[i] : width;
    }
    const uint64_t bytes = put_parts(parts, arena, rows);
    for (uint32_t j = 0; j < LIST_SLOTS; j++)
        ids[j] = (2 * j + j / USED) % PARTS;
    const uint32_t pairs = (width + 15) / 16 * 32, n_rows = down ? d : pairs;
    acts a = acts_new(down ? LIST_SLOTS : LIST_TOKENS, down ? width : d);
    float weights[LIST_SLOTS], *b = malloc((size_t)PARTS * d * 4);
    yk_rig_floats(&rig, weights, LIST_SLOTS);
    yk_rig_floats(&rig, b, (size_t)PARTS * d);
    yk_rig_case(&rig, "list %s %u,%u,%u x %u down=%d", yk_type_get(type)->name, widths[0], widths[1], widths[2], d, down);
    yk_k_matvec mv = {.type = type};
    acts_put(&a, &mv);
    yk_k_list l = {.type = type,
                   .w = yk_rig_in(&rig, arena, bytes),
                   .parts = yk_rig_in(&rig, rows, sizeof rows),
                   .ids = yk_rig_in(&rig, ids, sizeof ids),
                   .x = mv.x,
                   .q8 = mv.q8,
                   .bias = bias ? yk_rig_in(&rig, b, (uint64_t)PARTS * d * 4) : (yk_gpu_mem){0},
                   .weights = down ? yk_rig_in(&rig, weights, sizeof weights) : (yk_gpu_mem){0},
                   .n = LIST_TOKENS,
                   .used = USED,
                   .n_rows = n_rows,
                   .n_cols = down ? width : d,
                   .x_stride = mv.x_stride,
                   .y_stride = n_rows + 5,
                   .panel_bytes = (uint32_t)parts[0].gate.panel_bytes,
                   .tile_bytes = parts[0].gate.tile_bytes,
                   .down = down};
    float *start = calloc((size_t)LIST_SLOTS * l.y_stride, 4);
    l.y = yk_rig_out(&rig, start, (uint64_t)LIST_SLOTS * l.y_stride * 4);
    yk_k_call calls[1 + 2 * LIST_SLOTS];
    yk_gpu_mem want[2 * LIST_SLOTS];
    uint32_t n = 1;
    yk_k_call_list(&calls[0], yk_rig_kernel(&rig, yk_k_list_name(type)), &l);
    for (uint32_t j = 0; j < LIST_SLOTS; j++) {
        const part *p = &parts[ids[j]];
        mv.bias = bias ? yk_rig_in(&rig, b + (size_t)ids[j] * d, d * 4) : (yk_gpu_mem){0};
        mv.weights = down ? yk_rig_in(&rig, &weights[j], 4) : (yk_gpu_mem){0};
        for (int k = 0; k < (down ? 1 : 2); k++, n++) {
            calls[n] = alone(down ? &p->down : k ? &p->up : &p->gate, &mv, down ? j : j / USED);
            want[n - 1] = mv.y;
        }
    }
    for (uint32_t k = 0; k < n; k++)
        calls[k].launch.args = calls[k].args; /* they were copied */
    yk_rig_run(&rig, calls, n);
    const float *got = yk_rig_got(&rig, l.y);
    for (uint32_t j = 0, k = 0; j < LIST_SLOTS; j++) {
        float *row = start + (size_t)j * l.y_stride; /* what has to be there */
        if (down)
            memcpy(row, yk_rig_got(&rig, want[k++]), d * 4);
        for (uint32_t side = 0; !down && side < 2; side++) {
            const part *p = &parts[ids[j]];
            const float *w = yk_rig_got(&rig, want[k++]);
            for (uint32_t c = 0; c < p->width; c++)
                row[c / 16 * 32 + 16 * side + c % 16] = w[c];
        }
        for (uint32_t c = 0; c < l.y_stride; c++) { /* rows of padding are zeros */
            if (got[(size_t)j * l.y_stride + c] != row[c])
                fail_msg("%s: slot %u, column %u: %a, matvec %a", rig.what, j, c, got[(size_t)j * l.y_stride + c], row[c]);
        }
    }
    for (uint32_t i = 0; i < PARTS; i++) {
        matrix_free(&parts[i].gate);
        matrix_free(&parts[i].up);
        matrix_free(&parts[i].down);
    }
    acts_free(&a);
    free(arena);
    free(b);
    free(start);
}

static void test_list(void **state)
{
    (void)state;
    static const uint32_t wide[PARTS] = {512, 256, 768}, odd[PARTS] = {288, 64, 576}, narrow[PARTS] = {37, 21, 5};
    for (uint32_t ty = 0; ty < N_TYPES; ty++) {
        list_case(types[ty], wide, 256, false, false);
        list_case(types[ty], wide, 256, true, true);
        if (yk_type_get(types[ty])->block_elems > 32)
            continue;
        list_case(types[ty], odd, 96, false, false);
        list_case(types[ty], odd, 96, true, ty & 1);
        if (ty >= N_FLOAT_TYPES)
            continue;
        list_case(types[ty], narrow, 44, false, false);
        list_case(types[ty], narrow, 44, true, true);
    }
}

int main(int argc, char **argv)
{
    const int e = yk_rig_open(&rig, argc > 1 ? argv[1] : "null");
    if (e)
        return e;
    ops = yk_ops_get(YK_ISA_REF);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matvec), cmocka_unit_test(test_odd_floats), cmocka_unit_test(test_alone),
        cmocka_unit_test(test_list),   cmocka_unit_test(test_units),      cmocka_unit_test(test_embed),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    yk_rig_close(&rig);
    return failed;
}
