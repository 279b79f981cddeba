/* synth_blocks.h - random weights of any type, made directly in the packed form.
 *
 * Bytes depend on the seed, the tensor's name and the row alone, so they are the same for any number of threads and any cut in
 * layers. Each value has mean 0 and the standard deviation asked for (within about 2 %; where scales are denormal halves, 5 %).
 */
#ifndef YK_MODEL_SYNTH_BLOCKS_H
#define YK_MODEL_SYNTH_BLOCKS_H

#include "src/model/types.h"

typedef struct yk_synth_gen {
    yk_type type;
    uint64_t key;
    uint64_t n_blocks; /* of a row */
    uint64_t row_bytes;
    float offset;       /* added to F32 values */
    uint16_t scale[64]; /* f16 block scales, chosen by random bits */
    uint16_t min[64];   /* f16 block minima of the types that have them */
    uint32_t bits[256]; /* F32, F16, BF16: values in the bits of the type, low mantissa bits clear */
    uint8_t exponent;   /* MXFP4: the lower of two block exponents */
    uint8_t threshold;  /* and how often, of 256, the higher one is taken */
} yk_synth_gen;

/* n_cols: a multiple of the type's block. offset (F32 only): the mean. */
void yk_synth_gen_init(yk_synth_gen *gen, yk_type type, uint64_t n_cols, uint64_t seed, const char *name, double std,
                       double offset);

/* n_rows rows from first_row on into dst [n_rows][row_bytes]. */
void yk_synth_rows(const yk_synth_gen *gen, uint64_t first_row, uint64_t n_rows, uint8_t *dst);

#endif
