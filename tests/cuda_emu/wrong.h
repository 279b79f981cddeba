/* wrong.h - kernels for the emulator: one deliberate mistake each, and beside it the same done right. */
#ifndef YK_TESTS_CUDA_EMU_WRONG_H
#define YK_TESTS_CUDA_EMU_WRONG_H

#include "gpu/cuda/emu/emu.h"

enum { EMU_WORDS = 4096 };

typedef struct emu_args {
    const uint32_t *in; /* [EMU_WORDS], may be read */
    uint32_t *out;      /* [EMU_WORDS], may be written */
    uint32_t n;
} emu_args;

typedef struct emu_case {
    const char *name;
    void (*kernel)(const void *args); /* of emu_args */
    uint32_t threads;
    int wrong;      /* the yk_emu_kind that must be found, and no other; -1: none */
    uint32_t worst; /* of bank conflicts; 0: not looked at */
} emu_case;

extern const emu_case emu_cases[];
extern const uint32_t emu_n_cases;

/* Operands of an instruction as registers of lanes: in = a [32][4] b [32][2] c [32][4], out = d [32][4]; n the yk_emu_mma_kind. */
void emu_mma_kernel(const void *args);
/* in: 4 matrices [8][4 words]; out [32][4]; n 1: transposed. */
void emu_ldmatrix_kernel(const void *args);
/* Shuffles, votes, atomics, group numbers: out, see the test. */
void emu_lanes_kernel(const void *args);
/* Copies 64 words by cp.async, of each four only the first two. */
void emu_copy_kernel(const void *args);

#endif
