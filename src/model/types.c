#include "src/model/types.h"

#include <stddef.h>
#include <strings.h>

#include "src/base/mem.h"

static const yk_type_traits traits[YK_TYPE_LIMIT] = {
    [YK_TYPE_F32] = {"F32", 1, 4, false},      [YK_TYPE_F16] = {"F16", 1, 2, false},
    [YK_TYPE_BF16] = {"BF16", 1, 2, false},    [YK_TYPE_Q4_0] = {"Q4_0", 32, 18, true},
    [YK_TYPE_Q4_1] = {"Q4_1", 32, 20, true},   [YK_TYPE_Q5_0] = {"Q5_0", 32, 22, true},
    [YK_TYPE_Q5_1] = {"Q5_1", 32, 24, true},   [YK_TYPE_Q8_0] = {"Q8_0", 32, 34, true},
    [YK_TYPE_Q2_K] = {"Q2_K", 256, 84, true},  [YK_TYPE_Q3_K] = {"Q3_K", 256, 110, true},
    [YK_TYPE_Q4_K] = {"Q4_K", 256, 144, true}, [YK_TYPE_Q5_K] = {"Q5_K", 256, 176, true},
    [YK_TYPE_Q6_K] = {"Q6_K", 256, 210, true}, [YK_TYPE_IQ4_NL] = {"IQ4_NL", 32, 18, true},
    [YK_TYPE_MXFP4] = {"MXFP4", 32, 17, true}, [YK_TYPE_IQ4_XS] = {"IQ4_XS", 256, 136, true},
};

const yk_type_traits *yk_type_get(uint32_t type)
{
    return type < YK_TYPE_LIMIT && traits[type].name ? &traits[type] : NULL;
}

yk_type yk_type_by_name(const char *name)
{
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
        if (traits[t].name && strcasecmp(traits[t].name, name) == 0)
            return (yk_type)t;
    return YK_TYPE_LIMIT;
}

bool yk_type_row_bytes(yk_type type, uint64_t n, uint64_t *bytes)
{
    const yk_type_traits *t = yk_type_get((uint32_t)type);
    if (!t || n % t->block_elems != 0)
        return false;
    return yk_mul_u64(n / t->block_elems, t->block_bytes, bytes);
}
