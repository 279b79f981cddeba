/* cut.h - how an FFN part (the dense FFN, the shared expert, one expert) is cut along its intermediate dimension. Planner,
 * packing and executor all use this and nothing else, so a slice "units 3..7" means the same bytes everywhere.
 *
 * A unit is 256 consecutive intermediate units: their rows of gate, their rows of up and their columns of down. What a width
 * leaves over is a smaller last unit (2880 = 11 x 256 + 64). 256 is a multiple of every block of weights along a row of down
 * (1, 32, 256), of the tile of 16 rows and of the blocks of 32 in which activations are rounded; should a block ever not divide
 * it, the unit is rounded up to the least common multiple of 32 and the block. A part that is not wider than a unit is one
 * unit, whatever its width. */
#ifndef YK_MODEL_CUT_H
#define YK_MODEL_CUT_H

#include <stdint.h>

enum { YK_CUT_UNIT = 256, YK_CUT_ALIGN = 32 };

typedef struct yk_cut {
    uint32_t width; /* intermediate units of the part */
    uint32_t unit;  /* of every cut unit but the last */
    uint32_t n;     /* cut units; 0 when width is 0 */
} yk_cut;

/* Cut with units of about `target` (> 0). block: weights in a block of down's type, > 0. */
static inline yk_cut yk_cut_units_of(uint32_t width, uint32_t block, uint32_t target)
{
    uint32_t a = YK_CUT_ALIGN, b = block;
    while (b) {
        const uint32_t r = a % b;
        a = b;
        b = r;
    }
    const uint64_t step = (uint64_t)YK_CUT_ALIGN / a * block;
    const uint64_t unit = (target + step - 1) / step * step;
    if (unit >= width)
        return (yk_cut){width, width, width > 0};
    return (yk_cut){width, (uint32_t)unit, (uint32_t)((width + unit - 1) / unit)};
}

static inline yk_cut yk_cut_units(uint32_t width, uint32_t block)
{
    return yk_cut_units_of(width, block, YK_CUT_UNIT);
}

/* First intermediate unit of cut unit i <= n (n: the width) and its size for i < n. */
static inline uint32_t yk_cut_first(const yk_cut *cut, uint32_t i)
{
    return i < cut->n ? i * cut->unit : cut->width;
}
static inline uint32_t yk_cut_size(const yk_cut *cut, uint32_t i)
{
    return i + 1 < cut->n ? cut->unit : cut->width - yk_cut_first(cut, i);
}

#endif
