/* partition_bound.h - plans of real sizes against a bound that no plan is below. */
#ifndef YK_TESTS_PARTITION_BOUND_H
#define YK_TESTS_PARTITION_BOUND_H

#include "partition_util.h"

void yk_pt_check_against_bound(void **state); /* a test of cmocka */

#endif
