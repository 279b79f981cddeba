#include <inttypes.h>
#include <string.h>

#include "src/model/model.h"

/* Where a block keeps values that can be no number. Codes and 6-bit scales are integers and cannot. */
typedef struct scale_places {
    yk_type type;
    uint8_t n, at[2]; /* byte offsets of f16 values in the block */
} scale_places;

static const scale_places places[] = {
    {YK_TYPE_Q4_0, 1, {0}},    {YK_TYPE_Q4_1, 2, {0, 2}},   {YK_TYPE_Q5_0, 1, {0}},   {YK_TYPE_Q5_1, 2, {0, 2}},
    {YK_TYPE_Q8_0, 1, {0}},    {YK_TYPE_Q2_K, 2, {80, 82}}, {YK_TYPE_Q3_K, 1, {108}}, {YK_TYPE_Q4_K, 2, {0, 2}},
    {YK_TYPE_Q5_K, 2, {0, 2}}, {YK_TYPE_Q6_K, 1, {208}},    {YK_TYPE_IQ4_NL, 1, {0}}, {YK_TYPE_IQ4_XS, 1, {0}},
};

static bool half_is_finite(const uint8_t *p, uint32_t exponent_mask)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return (h & exponent_mask) != exponent_mask;
}

/* Index of the first block of n that holds NaN or infinity, or n. A block of F32, F16 and BF16 is one value. */
static uint64_t first_bad_block(yk_type type, const uint8_t *p, uint64_t n)
{
    uint64_t i = 0;
    switch (type) {
    case YK_TYPE_F32:
        for (; i < n; i++) {
            uint32_t u;
            memcpy(&u, p + 4 * i, sizeof u);
            if ((u & 0x7f800000u) == 0x7f800000u)
                break;
        }
        return i;
    case YK_TYPE_F16:
        while (i < n && half_is_finite(p + 2 * i, 0x7c00))
            i++;
        return i;
    case YK_TYPE_BF16:
        while (i < n && half_is_finite(p + 2 * i, 0x7f80))
            i++;
        return i;
    case YK_TYPE_MXFP4: /* E8M0 scale: only 255 is no number */
        while (i < n && p[17 * i] != 255)
            i++;
        return i;
    default:
        break;
    }
    const uint64_t block = yk_type_get((uint32_t)type)->block_bytes;
    for (size_t j = 0; j < sizeof places / sizeof places[0]; j++) {
        if (places[j].type != type)
            continue;
        for (; i < n; i++)
            for (uint32_t k = 0; k < places[j].n; k++)
                if (!half_is_finite(p + i * block + places[j].at[k], 0x7c00))
                    return i;
    }
    return n;
}

yk_status yk_model_check_tensors(const yk_model *m, const yk_model_opts *opts, yk_error *err)
{
    enum { CHUNK = 4 << 20 }; /* bytes between two calls of the progress callback, about a millisecond */
    uint64_t done = 0;
    for (uint32_t i = 0; i < m->gguf.n_tensors; i++) {
        const yk_gguf_tensor *t = &m->gguf.tensors[i];
        const yk_type_traits *tr = yk_type_get((uint32_t)t->type);
        const uint64_t n = t->n_bytes / tr->block_bytes, step = CHUNK / tr->block_bytes;
        for (uint64_t b = 0; b < n; b += step) {
            const uint64_t count = n - b < step ? n - b : step;
            YK_FAIL_IF(opts->progress && !opts->progress(opts->progress_user, "checking weights", done, m->n_weight_bytes), err,
                       YK_ERR_CANCELLED, "checking weights was cancelled");
            const uint64_t bad = first_bad_block(t->type, t->data + b * tr->block_bytes, count);
            YK_FAIL_IF(bad < count, err, YK_ERR_INPUT,
                       "tensor %s: NaN or infinity in its %s data at element %" PRIu64 " (offset %" PRIu64 ")", t->name,
                       tr->name, (b + bad) * tr->block_elems, t->offset + (b + bad) * tr->block_bytes);
            done += count * tr->block_bytes;
        }
    }
    YK_FAIL_IF(opts->progress && !opts->progress(opts->progress_user, "checking weights", done, m->n_weight_bytes), err,
               YK_ERR_CANCELLED, "checking weights was cancelled");
    return YK_OK;
}
