/* tolerance.h - how far results may be from the truth: one row for each op and type, with the reason.
 *
 * An element passes when |got - want| <= rel * size, where `want` is computed in double precision and `size` is what the
 * rounding errors scale with: the sum of the magnitudes of all terms of a sum, or |want| where there is no cancellation;
 * each check states it. rel 0 means the same bits. u below is 2^-24, half a unit in the last place of 1.0f. */
#ifndef YK_TESTS_TOLERANCE_H
#define YK_TESTS_TOLERANCE_H

#include <math.h>
#include <stddef.h>
#include <string.h>

typedef struct yk_tolerance {
    const char *op;
    const char *type; /* "" for ops without a type */
    double rel;       /* model-level rows: an absolute difference of logits */
    const char *reason;
} yk_tolerance;

static const yk_tolerance yk_tolerances[] = {
    /* ---- single ops ---- */
    {"dequant", "*", 0, "a definition, not an approximation: one f32 product and at most one difference, in a fixed order"},
    {"matmul", "F32", 4e-6,
     "n/16 additions a partial sum, n <= 4352 in the checks: random walk of sqrt(272) roundings u = 1e-6, times 4"},
    {"matmul", "F16", 4e-6, "weights are exact in f32; then as F32"},
    {"matmul", "BF16", 4e-6, "weights are exact in f32; then as F32"},
    {"matmul", "*", 5e-7,
     "against the same int8 activations; integer dots are exact, 5 roundings a block and n/256 additions a partial sum"},
    {"matmul_packed", "F32", 4e-6,
     "one sum for even and one for odd columns of a tile of 256, and n/256 <= 12 tiles: as matmul's F32 or better"},
    {"matmul_packed", "F16", 4e-6, "weights are exact in f32; then as F32"},
    {"matmul_packed", "BF16", 4e-6, "weights are exact in f32; then as F32"},
    {"matmul_packed", "*", 5e-7,
     "against the same int8 activations; integer dots are exact; one sum of n/32 <= 90 terms, three roundings a term"},
    {"quantise", "", 0, "two divisions and one product, each correctly rounded: docs/kernels/quantise.md"},
    {"rms_norm", "", 4e-6,
     "the sum of squares has only positive terms (n/16 roundings, halved by the root), then four roundings"},
    {"add", "", 0, "one rounding"},
    {"add_scaled", "", 0, "two roundings, never fused"},
    {"rope", "", 2e-7, "two products and a sum: three roundings u of |x0 c| + |x1 s|"},
    {"glu", "", 1e-6,
     "|gate| up to 4: exp within 2 units in the last place (4 u), its rounded argument (up to 7 u), four roundings after it"},
    {"glu-large", "", 2e-5, "|gate| above 4: a relative error of u in the exponent is |gate| * 1.702 * u in the result"},
    {"exp", "", 2.4e-7, "degree 6 polynomial and two-word ln 2: below 2 units in the last place"},
    {"attention", "", 2e-6,
     "of sum(weight |v|) * (1 + largest sum |q k| scale): an error of a score is a relative error of its weight"},
    {"attention_join", "", 1e-6,
     "of the sum of magnitudes * (1 + distance of the maxima): exp within 4 u twice, five roundings, a quotient of two such "
     "sums"},
    {"route", "", 2.5e-6,
     "of weight * (1 + distance to the best logit), whose rounding is a relative error of exp; n/16 <= 32 additions beside a "
     "one"},
    {"to_f16", "", 0, "one rounding to nearest even"},

    /* ---- logits of a whole model (docs/DESIGN.md, section 6); rel is an absolute difference ---- */
    {"logits-f64", "quantised", 0.2,
     "int8 activations moved the ten best first-step logits by up to 0.155 in an experiment with every product's input "
     "rounded"},
    {"logits-f64", "float", 1e-3,
     "F32, F16, BF16 weights with f32 activations and f32 KV: the same pass in f32 is within 2.3e-5 of float64"},
    {"logits-f64-kv16", "float", 2e-2,
     "F16 KV was not measured alone; f16 inputs of every product stayed within 0.005, times 4"},
    {"logits-lane", "float", 1e-3, "another lane or ISA differs only in the order of f32 sums; measured 1e-5"},
    {"logits-lane", "quantised", 0.4,
     "the same, but an activation that lies between two int8 values may round to the other one, and that moves others: a "
     "change of one "
     "embedding element by 1e-6 moved logits by 0.064 on one lane alone (docs/SPEED.md); so twice logits-f64"},
    {"logits-f16-units", "float", 1e-2, "a path on 16-bit matrix units (f16): largest difference measured 0.005"},
    {"logits-bf16-units", "float", 1e-1, "a path on 16-bit matrix units (bf16): largest difference measured 0.043"},
};

/* Row of an op and type; a row of type "*" stands for all types that have none. NULL: a test without a row is a mistake in
 * the test. */
static inline const yk_tolerance *yk_tolerance_find(const char *op, const char *type)
{
    const yk_tolerance *any = NULL;
    for (size_t i = 0; i < sizeof yk_tolerances / sizeof *yk_tolerances; i++) {
        const yk_tolerance *t = &yk_tolerances[i];
        if (strcmp(t->op, op) != 0)
            continue;
        if (strcmp(t->type, type) == 0)
            return t;
        if (strcmp(t->type, "*") == 0)
            any = t;
    }
    return any;
}

/* Of n values; NaN stays. */
static inline double yk_largest_difference(const float *a, const float *b, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)a[i] - b[i]);
        if (!(d <= most)) /* NaN stays */
            most = d;
    }
    return most;
}

#endif
