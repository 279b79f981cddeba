/* slices.h - into how many rows and units the CPU lane cuts a product; for the engine and for the profiler, which measures the same cuts. Sizes come
 * from shapes and the number of tokens only, never from threads. */
#ifndef YK_CPU_SLICES_H
#define YK_CPU_SLICES_H

#include <stdint.h>

/* Rows of a slice are a multiple of YK_ROWS_MULTIPLE, intermediate units one of YK_UNITS_MULTIPLE; a slice multiplies YK_TOKEN_TILE tokens at a time. */
enum { YK_ROWS_MULTIPLE = 16, YK_ROWS_MAX = 256, YK_ROWS_MANY = 128, YK_UNITS_MULTIPLE = 32, YK_TOKEN_TILE = 128 };

static inline uint32_t yk_ceil_div(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

/* Weight rows of a slice: about 128 KiB of weights for a single token, less when more tokens of the step use them, but YK_ROWS_MANY when many do. */
static inline uint32_t yk_rows_per_slice(uint64_t row_bytes, uint32_t n_tokens, uint32_t multiple)
{
    const uint64_t target = (128u << 10) / (1 + n_tokens / 4);
    uint64_t rows = target / (row_bytes ? row_bytes : 1);
    if (n_tokens >= YK_TOKEN_TILE / 2 &&
        rows < YK_ROWS_MANY) /* what is done once for the tokens, or once for the weights, pays on both sides */
        rows = YK_ROWS_MANY;
    rows -= rows % multiple;
    if (rows < multiple)
        rows = multiple;
    return rows > YK_ROWS_MAX ? YK_ROWS_MAX : (uint32_t)rows;
}

/* Intermediate units of a gate_up slice, whose rows of gate and up have row_bytes together: a power of two times YK_UNITS_MULTIPLE up to a cut unit,
 * so that no slice crosses from one cut unit into the next. */
static inline uint32_t yk_units_per_slice(uint64_t row_bytes, uint32_t n_tokens, uint32_t cut_unit)
{
    const uint32_t most = yk_rows_per_slice(row_bytes, n_tokens, YK_UNITS_MULTIPLE);
    uint32_t units = YK_UNITS_MULTIPLE;
    while (2 * units <= most && units < cut_unit)
        units *= 2;
    return units;
}

#endif
