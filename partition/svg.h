/* svg.h - a plan as a picture: one strip per layer, once as a drawing for a page, once as characters for a terminal. */
#ifndef YK_PARTITION_SVG_H
#define YK_PARTITION_SVG_H

#include "partition/plan.h"
#include "partition/text.h"

/* A drawing of its own (SVG 1.1, no script, nothing loaded): of each layer what is resident (GG), computed by the CPU (CC) and
 * copied (CG) in decode and in prefill, memory against the budgets, predicted speed, what binds it, the alternatives, the note.
 * machine may be NULL. The plan has passed the checker. *out from yk_alloc; the same plan gives the same bytes. YK_ERR_MEMORY. */
yk_status yk_plan_svg(const yk_plan *plan, const yk_shape *shape, const yk_machine *machine, const yk_plan_limits *limits,
                      char **out, size_t *n_bytes, yk_error *err);

/* Of the text: plan, machine, note; speeds, what binds them and what would help. Lines are broken before column `width`. */
void yk_plan_put_head(yk_text *t, const yk_plan *plan, const yk_shape *shape, const yk_machine *machine,
                      const yk_plan_limits *limits, size_t width);
void yk_plan_put_speed(yk_text *t, const yk_plan *plan, const yk_plan_limits *limits, size_t width);

/* The layers as lines of text, at most 100 columns, then head and embedding and what the letters say: strips and shares in per cent,
 * layers that look alike on one line. colour: with ANSI backgrounds. */
yk_status yk_plan_strips(const yk_plan *plan, const yk_shape *shape, bool colour, char **out, size_t *n_bytes, yk_error *err);

/* Shares of the bytes of a layer's FFN by kind, in decode of one token or prefill of the plan's batch. */
enum { YK_N_KINDS = 3 };
void yk_plan_shares(const yk_plan *plan, const yk_shape *shape, uint32_t layer, bool prefill, double share[YK_N_KINDS]);
/* Is the attention of the layer in RAM, and copied to a device in prefill of the plan's batch? */
bool yk_plan_attn_copied(const yk_plan *plan, uint32_t layer);

#endif
