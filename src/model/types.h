/* types.h - weight types of GGUF tensors: names and block sizes. Values are GGUF's. */
#ifndef YK_MODEL_TYPES_H
#define YK_MODEL_TYPES_H

#include <stdbool.h>
#include <stdint.h>

typedef enum yk_type {
    YK_TYPE_F32 = 0,
    YK_TYPE_F16 = 1,
    YK_TYPE_Q4_0 = 2,
    YK_TYPE_Q4_1 = 3,
    YK_TYPE_Q5_0 = 6,
    YK_TYPE_Q5_1 = 7,
    YK_TYPE_Q8_0 = 8,
    YK_TYPE_Q2_K = 10,
    YK_TYPE_Q3_K = 11,
    YK_TYPE_Q4_K = 12,
    YK_TYPE_Q5_K = 13,
    YK_TYPE_Q6_K = 14,
    YK_TYPE_IQ4_NL = 20,
    YK_TYPE_IQ4_XS = 23,
    YK_TYPE_BF16 = 30,
    YK_TYPE_MXFP4 = 39,
    YK_TYPE_LIMIT = 40 /* array size for tables indexed by type */
} yk_type;

typedef struct yk_type_traits {
    const char *name;     /* "Q4_K"; NULL for values that are no type */
    uint32_t block_elems; /* weights in a block: 1, 32 or 256 */
    uint32_t block_bytes;
    bool quantised; /* meets int8 activations; false: F32 F16 BF16 meet f32 */
} yk_type_traits;

/* NULL for a type yoke does not know. Static storage. */
const yk_type_traits *yk_type_get(uint32_t type);
/* Type by name (case-insensitive), or YK_TYPE_LIMIT. */
yk_type yk_type_by_name(const char *name);
/* Bytes of a row of n elements; false when n is no multiple of the block or the product overflows. */
bool yk_type_row_bytes(yk_type type, uint64_t n, uint64_t *bytes);

#endif
