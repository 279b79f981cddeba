/* partition_util.h - what the tests of partition/ share. */
#ifndef YK_TESTS_PARTITION_UTIL_H
#define YK_TESTS_PARTITION_UTIL_H

#include "partition/shape.h"
#include "partition/solve.h"

/* Whole file below the source root; fails the test when it is not there. Freed by yk_free. */
char *yk_pt_file(const char *path, size_t *n_bytes);
void yk_pt_machine(yk_machine *m, const char *name);               /* partition/machines/NAME.json */
void yk_pt_shape(yk_shape *s, const char *name, const char *type); /* partition/shapes/NAME.json */
/* One row for each device of the machine, all with `budget`. */
yk_plan_limits yk_pt_limits(const yk_machine *m, uint64_t budget);

uint64_t yk_pt_random(uint64_t *state); /* splitmix64 */
double yk_pt_uniform(uint64_t *state, double low, double high);
double yk_pt_log_uniform(uint64_t *state, double low, double high);
/* A random machine with one device, a random small shape, dense or with experts. */
void yk_pt_random_machine(yk_machine *m, uint64_t *state);
void yk_pt_random_shape(yk_shape *s, uint64_t *state, uint32_t max_layers, uint32_t max_units);

#endif
