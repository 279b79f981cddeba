/* attention.h - attention of one kv head as levels with vectors do it: the walk over rows, spans and blocks, and what is fetched meanwhile.
 * Contract and order of sums: docs/kernels/attention.md.
 *
 * Included once by a level's attention.c, after its instruction set is named. That file brings the functions of `level`,
 * which do the work on a block or a span. */
#ifndef YK_CPU_ATTENTION_H
#define YK_CPU_ATTENTION_H

#include <float.h>
#include <string.h>

#include "cpu/ops.h"

enum {
    BLOCK = 16,        /* positions of a block */
    SPAN = 256,        /* positions between two looks at the maximum; spans start at multiples of it */
    FAR = 16384,       /* bytes, prefetch distance into L2: docs/SPEED.md */
    ROWS = 64,         /* rows that share a pass */
    S_ROW = SPAN + 16, /* not a power of two: rows in different cache sets */
    V_ROW = 256 + 16,
    PIECE = 256 /* dimensions that are turned or converted at a time */
};

typedef struct row {
    const float *q;
    float *out;
    uint32_t first, end;
    float max, total; /* of the spans so far; out is the sum of e^(score - max) * value */
    float *state;     /* NULL, or where they go at the end */
} row;

typedef struct pass {
    const yk_attention *a;
    uint32_t n;
    uint32_t first, end; /* positions that any row sees */
    row rows[ROWS];
    _Alignas(64) float s[ROWS][S_ROW];      /* scores, then weights, of one span */
    _Alignas(64) float k[PIECE / 2][2][16]; /* [pair of dimensions][positions 0-7, 8-15][position, dimension] */
    _Alignas(64) float v[BLOCK][V_ROW];
} pass;

/* What a level brings. */
typedef struct level {
    void (*score_block)(pass *p, uint32_t block); /* scores of all rows; minus infinity where a row does not see */
    void (*weigh)(pass *p, uint32_t i, uint32_t lo, uint32_t hi); /* scores of positions lo .. hi - 1 of row i become weights */
    void (*value_block)(pass *p, uint32_t block);                 /* rows' out += weights x values */
    void (*scale_out)(const row *r, uint32_t n, float by, bool divide); /* out *= by, or out /= by */
    float (*exp)(float x);
} level;

/* ---- what comes next, for prefetching ---- */

/* The pass reads span after span, its K blocks and then its V blocks. A block is taken to be contiguous. `near`, the next
 * block, is fetched into L1; `far`, FAR bytes later, into L2, evenly while the first rows meet this one: a burst waits
 * for the few buffers of outstanding lines. Behind the last block: that block again. */
typedef struct ahead {
    const char *near, *far;
    uint32_t lines;             /* of a block */
    size_t near_line, far_line; /* how far they move: one line, far of f32 two (the machine fetches the other); 0: not at all */
} ahead;

/* out of n rows from row r on, dimensions d0 .. d0 + n_dims - 1, += weights x values of n_pos positions from `pos` on,
 * which are in one block. v: those values, rows `pitch` elements apart. */
typedef struct part {
    uint32_t r, d0, n_dims, pos, n_pos;
    const void *v;
    size_t pitch;
} part;
typedef void (*value_fn)(const pass *p, const part *at, ahead *f);

static inline const char *block_ahead(const pass *p, uint32_t block, bool values, uint32_t n)
{
    const uint32_t per_span = SPAN / BLOCK, end = p->end > p->a->then ? p->end : p->a->then, last = (end - 1) / BLOCK;
    for (; n; n--) {
        const uint32_t next = block + 1;
        if (next <= last && next % per_span) {
            block = next;
        } else if (!values) {
            const uint32_t start = block / per_span * per_span, first = p->first / BLOCK;
            values = true;
            block = start > first ? start : first;
        } else if (next <= last) {
            values = false;
            block = next;
        } else {
            break;
        }
    }
    return (values ? p->a->v_blocks : p->a->k_blocks)[block];
}

static inline ahead ahead_of(const pass *p, uint32_t block, bool values)
{
    const uint32_t bytes = BLOCK * p->a->head_dim * (p->a->kv_f16 ? 2 : 4);
    const uint32_t blocks = bytes < FAR / 2 ? FAR / bytes : 2;
    return (ahead){block_ahead(p, block, values, 1), block_ahead(p, block, values, blocks), (bytes + 63) / 64, 64,
                   p->a->kv_f16 ? 64 : 128};
}

/* Positions of the block that a row sees: lo .. hi - 1. */
static inline void range_of(const row *r, uint32_t at, uint32_t *lo, uint32_t *hi)
{
    *lo = r->first > at ? r->first - at : 0;
    *hi = r->end > at ? (r->end - at < BLOCK ? r->end - at : BLOCK) : 0;
}

/* ---- the pass ---- */

static inline void run_pass(pass *p, const level *l)
{
    for (uint32_t at = p->first / SPAN * SPAN; at < p->end; at += SPAN) {
        const uint32_t lo = p->first > at ? p->first : at, hi = p->end - at < SPAN ? p->end : at + SPAN;
        for (uint32_t b = lo / BLOCK; b * BLOCK < hi; b++)
            l->score_block(p, b);
        for (uint32_t i = 0; i < p->n; i++) {
            const row *r = &p->rows[i];
            const uint32_t r_lo = r->first > lo ? r->first : lo, r_hi = r->end < hi ? r->end : hi;
            if (r_lo < r_hi)
                l->weigh(p, i, r_lo, r_hi);
        }
        for (uint32_t b = lo / BLOCK; b * BLOCK < hi; b++)
            l->value_block(p, b);
    }
    for (uint32_t i = 0; i < p->n; i++) {
        const row *r = &p->rows[i];
        if (r->state)
            r->state[0] = r->max, r->state[1] = r->total;
        else
            l->scale_out(r, p->a->head_dim, r->total, true);
    }
}

static inline void row_open(row *r, const yk_attention *a, uint32_t token, uint32_t head, const level *l)
{
    const size_t at = (size_t)head * a->head_dim;
    *r = (row){.q = a->q + token * a->q_stride + at,
               .out = a->out + token * a->out_stride + at,
               .first = a->seen ? a->seen[token].first : a->first,
               .end = a->seen ? a->seen[token].end : a->end,
               .max = -FLT_MAX,
               .state = a->state ? a->state + 2 * ((size_t)token * a->n_heads + head) : NULL};
    if (a->sinks) { /* a logit whose value is zero */
        r->max = a->sinks[head] < -FLT_MAX ? -FLT_MAX : a->sinks[head];
        r->total = l->exp(a->sinks[head] - r->max);
    }
    memset(r->out, 0, a->head_dim * sizeof *r->out);
}

static inline void attention_rows(const yk_attention *a, const level *l)
{
    const uint32_t n_tokens = a->n_tokens ? a->n_tokens : 1, n_rows = n_tokens * a->n_heads;
    pass p;
    p.a = a;
    for (uint32_t r = 0; r < n_rows; r += p.n) {
        p.n = n_rows - r < ROWS ? n_rows - r : ROWS;
        for (uint32_t i = 0; i < p.n; i++) {
            row_open(&p.rows[i], a, (r + i) / a->n_heads, (r + i) % a->n_heads, l);
            p.first = i && p.first < p.rows[i].first ? p.first : p.rows[i].first;
            p.end = i && p.end > p.rows[i].end ? p.end : p.rows[i].end;
        }
        run_pass(&p, l);
    }
}

#endif
