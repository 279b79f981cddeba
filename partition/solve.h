/* solve.h - from machine, shape and limits to a plan: greedy by gain per byte over each layer's choices. docs/PLANNER.md says
 * how and how well. */
#ifndef YK_PARTITION_SOLVE_H
#define YK_PARTITION_SOLVE_H

#include "partition/cost.h"

/* Make a plan that keeps to the limits. Devices without a row in limits->devices are not used. limits->device: "" or "auto":
 * the device that promises most, or none when none helps (plan->note says why); "cpu"; or a device by name, which is then used
 * as far as its budget goes. A named device of the same silicon has no speed of its own: its plan is made as for a card five
 * times as fast, so that all kinds are exercised, and the prediction is that of the machine as it is. YK_ERR_USAGE: the named
 * device is not in machine or limits. YK_ERR_MEMORY. The same input gives the same plan. */
yk_status yk_plan_solve(yk_plan *out, const yk_machine *machine, const yk_shape *shape, const yk_plan_limits *limits,
                        yk_error *err);

/* Fill predicted speed and what binds, from the machine and the plan's first device. */
void yk_plan_predict(yk_plan *plan, const yk_machine *machine, const yk_shape *shape, const yk_plan_limits *limits);

/* What the solver makes small: seconds of a request (limits' prompt and generated tokens for each of max_seqs sequences). A chunk
 * from the middle of the prompt stands for all of them. */
double yk_plan_request_s(const yk_plan *plan, const yk_machine *machine, const yk_shape *shape, const yk_plan_limits *limits);

/* One screen of text, at most 100 columns: speed, what limits it, what would help, why not otherwise, bytes, and strips of what is where
 * (in colours where asked for). machine may be NULL. *out from yk_alloc. */
yk_status yk_plan_explain_text(const yk_plan *plan, const yk_shape *shape, const yk_machine *machine,
                               const yk_plan_limits *limits, bool colour, char **out, size_t *n_bytes, yk_error *err);

/* Does the host's part leave the machine too little RAM? Then the note says so, and what would fit. Nothing else changes. */
void yk_plan_note_ram(yk_plan *plan, const yk_shape *shape, const yk_machine *machine, const yk_plan_limits *limits);

#endif
