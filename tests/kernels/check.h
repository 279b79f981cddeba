/* check.h - what the kernel checks share. One file for each family; check.c has the list of slots and main. */
#ifndef YK_TESTS_KERNELS_CHECK_H
#define YK_TESTS_KERNELS_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "cpu/ops.h"
#include "src/base/half.h"
#include "src/model/types.h"
#include "tests/tolerance.h"

/* ---- random numbers: splitmix64, so that a seed gives the same inputs everywhere ---- */

typedef struct rng {
    uint64_t state;
} rng;

uint64_t rng_next(rng *r);
uint32_t rng_below(rng *r, uint32_t n);
/* [-1, 1), a multiple of 2^-23 */
float rng_unit(rng *r);

/* How a vector is filled. */
typedef enum fill {
    FILL_PLAIN,     /* sum of uniforms: bell-shaped, about 1 */
    FILL_OUTLIERS,  /* plain, every 61st or so is 1000 times larger */
    FILL_DENORMAL,  /* mostly below 2^-126 */
    FILL_EQUAL,     /* one value */
    FILL_ZERO_RUNS, /* plain with runs of 48 zeros, some of them negative */
    FILL_N
} fill;

void fill_f32(rng *r, fill how, float *x, size_t n);
const char *fill_name(fill how);

/* ---- memory with guard bytes on both sides, 64-byte aligned plus `skew` ---- */

enum { GUARD = 256 };

void *guarded_new(size_t bytes, size_t skew);
/* Fails the running check when a guard byte has changed; frees. */
void guarded_free(void *p);

/* ---- comparing ---- */

typedef struct check {
    const yk_ops *ops;
    const char *slot; /* for messages */
    char params[256]; /* of the case that runs now */
    uint64_t seed;
    uint64_t n_compared, n_failed;
    uint64_t digest; /* of the bits of all results: equal for any compiler and machine at the ref level */
    double worst;    /* largest diff / tol of rows with rel > 0 */
    bool quiet;      /* the self-test expects failures */
} check;

extern check *running;

void set_params(check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void fail_check(check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Elements of got against want; size as in tolerance.h. Infinite or NaN want: got must be the same infinity, or NaN. */
void compare_f32(check *c, const yk_tolerance *tol, const float *got, const double *want, const double *size, size_t n);
void compare_bits(check *c, const char *what, const void *got, const void *want, size_t bytes);
bool is_nan_bits(float x);

/* ---- bench: print time of fn(arg); bytes and flops of one call ---- */

typedef void (*bench_fn)(void *arg);
void bench_run(const char *name, const char *shape, bench_fn fn, void *arg, double bytes, double flops);

/* ---- slots ---- */

typedef struct slot {
    const char *name; /* "matmul", with "-TYPE" added for slots by type */
    size_t offset;    /* in yk_ops */
    yk_type type;     /* YK_TYPE_LIMIT: none */
    void (*run)(check *c, yk_type type);
    void (*bench)(const yk_ops *ops, yk_type type);
} slot;

void check_dequant(check *c, yk_type type);
void check_matmul(check *c, yk_type type);
void check_matmul_packed(check *c, yk_type type);
void check_quantise(check *c, yk_type type);
void check_to_f16(check *c, yk_type type);
void check_rms_norm(check *c, yk_type type);
void check_add(check *c, yk_type type);
void check_add_scaled(check *c, yk_type type);
void check_rope(check *c, yk_type type);
void check_glu(check *c, yk_type type);
void check_attention(check *c, yk_type type);
void check_attention_join(check *c, yk_type type);
void check_route(check *c, yk_type type);

void bench_dequant(const yk_ops *ops, yk_type type);
void bench_matmul(const yk_ops *ops, yk_type type);
void bench_matmul_packed(const yk_ops *ops, yk_type type);
void bench_quantise(const yk_ops *ops, yk_type type);
void bench_to_f16(const yk_ops *ops, yk_type type);
void bench_rms_norm(const yk_ops *ops, yk_type type);
void bench_add(const yk_ops *ops, yk_type type);
void bench_add_scaled(const yk_ops *ops, yk_type type);
void bench_rope(const yk_ops *ops, yk_type type);
void bench_glu(const yk_ops *ops, yk_type type);
void bench_attention(const yk_ops *ops, yk_type type);
void bench_attention_join(const yk_ops *ops, yk_type type);
void bench_route(const yk_ops *ops, yk_type type);

/* ---- weights (weights.c): written from the format drawings, one element at a time, in double ---- */

/* Random blocks with sane scales; some scales zero, some denormal. */
void random_weights(rng *r, yk_type type, uint8_t *w, uint64_t n_elems);
/* Element i of a row; *min receives the part that is subtracted (0 for types without), *scale what the integer is multiplied
 * with. */
double weight_at(yk_type type, const uint8_t *w, uint64_t i, double *scaled, double *min);

#endif
