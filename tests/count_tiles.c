/* count_tiles.c - instructions that the products with packed weights execute for a tile, one by one.
 *
 *   count_tiles      a line for each level, type and number of tokens: level type tokens instructions products f32 integer moves rest
 *
 * All counts are for one tile (16 rows, 256 columns) and all tokens, rounded to whole instructions. The CPU stops
 * behind each instruction, and a signal handler looks at the next one. Two widths that differ by a tile are counted, so everything outside tiles falls out. No
 * quiet machine is needed and the counts repeat exactly. Levels that this CPU lacks are left out; exit 77 where the system does not let the CPU stop. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "cpu/ops.h"
#include "cpu/pack.h"

enum { MAX_TOKENS = 32, MAX_ROWS = 64, MAX_COLS = 2 * YK_TILE_COLS };

enum { PRODUCT, F32, INTEGER, MOVE, REST, N_KINDS };
typedef struct counts {
    uint64_t n[N_KINDS];
} counts;

/* ---- what an instruction is ---- */

typedef struct opcode {
    uint32_t map, op; /* opcode map 1: 0F, 2: 0F38, 3: 0F3A */
    bool memory;
} opcode;

/* VEX and EVEX instructions; false for all others. */
static bool vector_opcode(const uint8_t *p, opcode *o)
{
    uint32_t at;
    if (p[0] == 0xc5)
        o->map = 1, at = 2;
    else if (p[0] == 0xc4)
        o->map = p[1] & 31, at = 3;
    else if (p[0] == 0x62)
        o->map = p[1] & 7, at = 4;
    else
        return false;
    o->op = p[at];
    o->memory = p[at + 1] >> 6 != 3;
    return true;
}

static bool is_product(const opcode *o)
{
    const bool int8 = o->map == 2 && (o->op == 0x04 || (o->op >= 0x50 && o->op <= 0x53)); /* pmaddubsw, pdpbusd .. pdpwssds */
    const bool tile = o->map == 2 && (o->op == 0x5c || o->op == 0x5e);                    /* tdpbf16ps, tdpbssd and its kind */
    return int8 || tile || (o->map == 1 && o->op == 0xf5);                                /* pmaddwd */
}

static bool is_f32(const opcode *o)
{
    if (o->map == 1)
        return o->op == 0x51 || (o->op >= 0x58 && o->op <= 0x5f) || o->op == 0xe6; /* sqrt, add .. max, conversions */
    const uint32_t low = o->op & 15;
    const bool fma = o->op >= 0x96 && o->op <= 0xbf && low >= 6;
    return (o->map == 2 && (fma || o->op == 0x13 || o->op == 0x72)) || (o->map == 3 && o->op == 0x1d);
}

static bool is_move(const opcode *o)
{
    static const uint8_t moves[] = {0x10, 0x11, 0x28, 0x29, 0x2b, 0x6e, 0x6f, 0x7e, 0x7f, 0xd6, 0xe7};
    if (o->map == 1)
        return memchr(moves, (int)o->op, sizeof moves) != NULL;
    const bool tile = o->op == 0x49 || o->op == 0x4b;
    const bool broadcast =
        (o->op >= 0x18 && o->op <= 0x1b) || (o->op >= 0x58 && o->op <= 0x5b) || o->op == 0x78 || o->op == 0x79;
    return o->map == 2 && (tile || (broadcast && o->memory));
}

static int kind_of(const uint8_t *p)
{
    opcode o;
    if (!vector_opcode(p, &o))
        return REST;
    return is_product(&o) ? PRODUCT : is_f32(&o) ? F32 : is_move(&o) ? MOVE : INTEGER;
}

/* ---- stepping: the CPU's trap flag, which makes a signal behind each instruction ---- */

static volatile counts counted;

static void on_step(int sig, siginfo_t *info, void *context)
{
    (void)sig;
    (void)info;
    const ucontext_t *u = context;
    counted.n[kind_of((const uint8_t *)(uintptr_t)u->uc_mcontext.gregs[REG_RIP])]++;
}

/* The stack below the red zone; what these two instructions add is the same in every count. */
#define TRAP_FLAG(change)                                                                                                      \
    __asm__ volatile("lea -128(%%rsp), %%rsp\n\tpushfq\n\t" change " (%%rsp)\n\tpopfq\n\tlea 128(%%rsp), %%rsp" ::             \
                         : "memory", "cc")

static counts step_through(const yk_ops *ops, yk_type type, const yk_matmul_packed *m)
{
    for (int k = 0; k < N_KINDS; k++)
        counted.n[k] = 0;
    TRAP_FLAG("orq $0x100,");
    ops->matmul_packed[type](m);
    TRAP_FLAG("andq $-0x101,");
    return counted;
}

/* ---- the products ---- */

static bool count(const yk_ops *ops, yk_type type, uint32_t n_rows, uint32_t n_tokens, const yk_matmul_packed *all)
{
    counts c[2], d = {{0}};
    uint64_t sum = 0;
    const uint32_t tiles = n_rows / YK_TILE_ROWS;
    for (uint32_t i = 0; i < 2; i++) {
        yk_matmul_packed m = *all;
        m.n_rows = n_rows, m.n_tokens = n_tokens, m.n_cols = (i + 1) * YK_TILE_COLS;
        m.panel_bytes = yk_panel_bytes(type, MAX_COLS);
        c[i] = step_through(ops, type, &m);
    }
    for (int k = 0; k < N_KINDS; k++)
        d.n[k] = (c[1].n[k] - c[0].n[k] + tiles / 2) / tiles, sum += d.n[k];
    printf("%s %s %u %llu", yk_isa_name(ops->isa), yk_type_get(type)->name, n_tokens, (unsigned long long)sum);
    for (int k = 0; k < N_KINDS; k++)
        printf(" %llu", (unsigned long long)d.n[k]);
    putchar('\n');
    fflush(stdout);
    return sum > 0;
}

int main(void)
{
    const uint32_t n_blocks = MAX_COLS / 32;
    const size_t panels = MAX_ROWS / YK_TILE_ROWS * yk_panel_bytes(YK_TYPE_F32, MAX_COLS);
    uint8_t *w = aligned_alloc(64, panels);
    float *x = malloc(MAX_TOKENS * MAX_COLS * sizeof *x), *y = malloc(MAX_TOKENS * MAX_ROWS * sizeof *y);
    yk_q8 q = {.q = malloc(MAX_TOKENS * MAX_COLS),
               .scale = malloc(MAX_TOKENS * n_blocks * sizeof(float)),
               .sum = malloc(MAX_TOKENS * n_blocks * 2 * sizeof(int16_t)),
               .n_blocks = n_blocks};
    if (!w || !x || !y || !q.q || !q.scale || !q.sum) {
        fprintf(stderr, "count_tiles: out of memory\n");
        return 1;
    }
    memset(w, 0x11, panels);
    for (uint32_t t = 0; t < MAX_TOKENS; t++) {
        for (uint32_t i = 0; i < MAX_COLS; i++)
            x[t * MAX_COLS + i] = (float)((i * 7 + t) % 13) - 6;
        yk_ops_get(YK_ISA_REF)->quantise(x + t * MAX_COLS, MAX_COLS, &q, t);
    }
    const yk_matmul_packed all = {.w = w, .x = x, .x_stride = MAX_COLS, .xq = &q, .y = y, .y_stride = MAX_ROWS};
    const struct sigaction act = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &act, NULL);
    for (int isa = YK_ISA_AVX2; isa <= (int)yk_isa_best(); isa++) {
        const yk_ops *ops = yk_ops_get((yk_isa)isa), *lower = yk_ops_get((yk_isa)(isa - 1));
        for (uint32_t t = 0; ops->isa == (yk_isa)isa && t < YK_TYPE_LIMIT; t++) {
            if (!yk_type_get(t) || !yk_pack_has((yk_type)t) || ops->matmul_packed[t] == lower->matmul_packed[t])
                continue;
            const bool ok = isa == YK_ISA_AMX ? count(ops, (yk_type)t, 64, 32, &all)
                                              : count(ops, (yk_type)t, 16, 1, &all) &&
                                                    count(ops, (yk_type)t, isa < YK_ISA_AVX512 ? 16 : 32, 24, &all);
            if (!ok) {
                fprintf(stderr, "count_tiles: the trap flag does nothing here\n");
                return 77;
            }
        }
    }
    free(w);
    free(x);
    free(y);
    free(q.q);
    free(q.scale);
    free(q.sum);
    return 0;
}
