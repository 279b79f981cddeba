/* routing.h - which experts each token chooses: recorded by a model, or drawn with chosen skew and reuse. For the simulator. */
#ifndef YK_PARTITION_ROUTING_H
#define YK_PARTITION_ROUTING_H

#include "src/base/mem.h"

enum { YK_ROUTING_MAX_EXPERTS = 4096, YK_ROUTING_MAX_TOKENS = 1 << 20 };

typedef struct yk_routing {
    uint32_t n_tokens, n_layers, n_experts, n_used;
    uint16_t *pick; /* [n_tokens][n_layers][n_used], distinct in each row; owned */
} yk_routing;

/* Drawn: each layer has an order of its own of the experts, and rank r is chosen with weight r^-zipf (0: all alike), without
 * putting back. Before that each expert of the token before is kept with probability `reuse` (0: none is kept on purpose). */
typedef struct yk_routing_draw {
    uint64_t seed;
    uint32_t n_tokens, n_layers, n_experts, n_used; /* 1 <= n_used <= n_experts <= YK_ROUTING_MAX_EXPERTS */
    double zipf, reuse;                             /* 0 to 8, 0 to 1 */
} yk_routing_draw;

/* The same draw gives the same trace. YK_ERR_USAGE: a number out of range. YK_ERR_MEMORY. *out is empty on failure. */
yk_status yk_routing_make(yk_routing *out, const yk_routing_draw *draw, yk_error *err);

/* Read a recorded trace: {"layers", "experts" (at most 10), "used", "trace": [layers] strings, `used` digits a token}.
 * YK_ERR_INPUT names the key. */
yk_status yk_routing_read(yk_routing *out, const char *text, size_t n_bytes, yk_error *err);
void yk_routing_close(yk_routing *routing);

/* The experts of a token in a layer, [n_used]; layers and tokens beyond the trace begin again at its start. */
static inline const uint16_t *yk_routing_at(const yk_routing *r, uint64_t token, uint32_t layer)
{
    return r->pick + ((size_t)(token % r->n_tokens) * r->n_layers + layer % r->n_layers) * r->n_used;
}

/* Share of a token's experts that the token before had too, over all layers; n_used / n_experts when nothing is kept. */
double yk_routing_reuse(const yk_routing *routing);

#endif
