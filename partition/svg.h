/* svg.h - a plan as a picture: one strip per layer, once as a drawing for a page, once as characters for a terminal. */
#ifndef YK_PARTITION_SVG_H
#define YK_PARTITION_SVG_H

#include "partition/plan.h"

/* A drawing of its own (SVG 1.1, no script, nothing loaded): of each layer what is resident (GG), computed by the CPU (CC) and
 * copied (CG) in decode and in prefill, memory against the budgets, predicted speed, what binds it, the alternatives, the note.
 * machine may be NULL. The plan has passed the checker. *out from yk_alloc; the same plan gives the same bytes. YK_ERR_MEMORY. */
yk_status yk_plan_svg(const yk_plan *plan, const yk_shape *shape, const yk_machine *machine, const yk_plan_limits *limits,
                      char **out, size_t *n_bytes, yk_error *err);

/* The strips as lines of text, at most 100 columns; neighbours that look the same share a line. colour: with ANSI backgrounds,
 * else letters alone (G resident, c CPU, > copied). */
yk_status yk_plan_strips(const yk_plan *plan, const yk_shape *shape, bool colour, char **out, size_t *n_bytes, yk_error *err);

#endif
