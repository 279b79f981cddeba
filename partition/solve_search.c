/* Which option for which layer. A multiplier (seconds per byte) makes memory a cost; then the best sequence of sides is a
 * shortest path over the layers, and the sum less the multiplier times the room is a bound no plan is below. The gap to the
 * bound says which options can still be in a better plan; among those, paths over the layers are kept by bytes, seconds and
 * side, as many as there is place for. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "partition/solve_in.h"

enum { MAX_LABELS = 4096, MIN_LABELS = 48, WORK = 6000, NEAR = 48, MAX_CANDIDATES = 1 << 15, MAX_MOVES = 1 << 13, ROUNDS = 64 };
/* A gap to the bound that is not worth closing; with many layers closing costs more and the gap is small. */
enum { FEW_LAYERS = 8 };
#define CLOSE_ENOUGH_FEW 1e-6
#define CLOSE_ENOUGH     3e-3

typedef struct label {
    uint64_t bytes;
    double seconds, bound;   /* so far; with the least the rest can take */
    uint32_t before, option; /* label of the layer before; of the class and side */
    uint8_t side;            /* yk_attn; of the head host or device */
} label;

/* Another option for a layer: bytes more (or fewer) and seconds saved, crossings included. */
typedef struct move {
    int64_t bytes;
    double gain;
    uint32_t layer;
    const yk_option *to;
} move;

typedef struct yk_search {
    double cross[YK_ATTN_N][YK_ATTN_N], head[2];
    uint64_t head_bytes[2];
    double (*rest)[YK_ATTN_N];  /* [n_layers + 1][side of the layer before]: least seconds + price of bytes from here on */
    uint64_t *rest_bytes;       /* [n_layers + 2]: fewest */
    uint8_t (*from)[YK_ATTN_N]; /* [n_layers + 1][side]: side before */
    uint32_t most;              /* labels of a layer */
    label *labels;              /* [n_layers + 2][most] */
    uint32_t *n_labels;
    label *candidates; /* [MAX_CANDIDATES] */
    yk_option *larger; /* [n_layers]: a choice that just does not fit */
    yk_option *own;    /* [n_layers]: the best for the slot of now */
    move *moves;       /* [MAX_MOVES] */
} yk_search;

yk_status yk_search_open(yk_solver *s, yk_error *err)
{
    const size_t n = s->shape->n_layers;
    yk_search *q = s->search = yk_alloc(YK_MEM_PLAN, 1, sizeof *q);
    if (!q)
        return yk_fail_memory(err, sizeof *q, "the planner");
    q->most = WORK / (uint32_t)n;
    q->most = q->most > MAX_LABELS ? MAX_LABELS : q->most < MIN_LABELS ? MIN_LABELS : q->most;
    q->rest = yk_alloc(YK_MEM_PLAN, n + 2, sizeof *q->rest);
    q->rest_bytes = yk_alloc(YK_MEM_PLAN, n + 2, sizeof *q->rest_bytes);
    q->from = yk_alloc(YK_MEM_PLAN, n + 2, sizeof *q->from);
    q->labels = yk_alloc(YK_MEM_PLAN, (n + 2) * q->most, sizeof *q->labels);
    q->n_labels = yk_alloc(YK_MEM_PLAN, n + 2, sizeof *q->n_labels);
    q->larger = yk_alloc(YK_MEM_PLAN, n, sizeof *q->larger);
    q->candidates = yk_alloc(YK_MEM_PLAN, MAX_CANDIDATES, sizeof *q->candidates);
    q->own = yk_alloc(YK_MEM_PLAN, n, sizeof *q->own);
    q->moves = yk_alloc(YK_MEM_PLAN, MAX_MOVES, sizeof *q->moves);
    if (!q->rest || !q->rest_bytes || !q->from || !q->labels || !q->n_labels || !q->larger || !q->candidates || !q->own ||
        !q->moves)
        return yk_fail_memory(err, ((n + 2) * q->most + MAX_CANDIDATES) * sizeof(label), "the planner");
    return YK_OK;
}

void yk_search_close(yk_solver *s)
{
    yk_search *q = s->search;
    if (!q)
        return;
    yk_free(q->rest);
    yk_free(q->rest_bytes);
    yk_free(q->from);
    yk_free(q->labels);
    yk_free(q->n_labels);
    yk_free(q->candidates);
    yk_free(q->larger);
    yk_free(q->own);
    yk_free(q->moves);
    yk_free(q);
    s->search = NULL;
}

static const yk_class *class_of(const yk_solver *s, uint32_t layer)
{
    return &s->classes[s->class_of[layer]];
}

static bool head_allowed(const yk_solver *s, int side)
{
    return (s->rules->head.sides & (side ? YK_ON_DEVICE : YK_ON_HOST)) && !(side && s->shape->head_host_only);
}

/* ---- with a multiplier ---- */

/* The point of each hull that is best at this price of a byte; of two equally good ones the smaller. */
static void price_hulls(yk_solver *s, double price)
{
    for (uint32_t i = 0; i < s->n_classes; i++) {
        yk_class *k = &s->classes[i];
        for (int side = 0; side < YK_ATTN_N; side++) {
            const yk_option *o = k->options[side];
            const uint32_t *h = k->hull[side];
            uint32_t low = 0, high = k->n_hull[side];
            k->at_best[side] = INFINITY;
            if (!high)
                continue;
            while (low + 1 < high) { /* slopes fall along the hull */
                const uint32_t mid = low + (high - low) / 2;
                const yk_option *a = &o[h[mid - 1]], *b = &o[h[mid]];
                if (a->seconds - b->seconds > price * (double)(b->bytes - a->bytes))
                    low = mid;
                else
                    high = mid;
            }
            k->at[side] = h[low];
            k->at_best[side] = o[h[low]].seconds + price * (double)o[h[low]].bytes;
        }
    }
}

typedef struct path {
    double value; /* seconds + price * bytes */
    uint64_t bytes;
} path;

static bool better(path a, path b)
{
    return a.value < b.value || (a.value == b.value && a.bytes < b.bytes);
}

/* What a layer (the head: number n_layers) adds on a side at the price of price_hulls. */
static path own_of(const yk_solver *s, uint32_t l, int side, double price)
{
    const yk_search *q = s->search;
    path own = {INFINITY, 0};
    if (l < s->shape->n_layers && class_of(s, l)->n_hull[side]) {
        own.value = class_of(s, l)->at_best[side];
        own.bytes = class_of(s, l)->options[side][class_of(s, l)->at[side]].bytes;
    } else if (l == s->shape->n_layers && side < 2 && head_allowed(s, side)) {
        own.value = q->head[side] + price * (double)q->head_bytes[side];
        own.bytes = q->head_bytes[side];
    }
    return own;
}

/* The best sequence of sides at a price; its choice is taken when choice is given. */
static path best_path(yk_solver *s, double price, yk_option *choice, bool *head)
{
    yk_search *q = s->search;
    const uint32_t n = s->shape->n_layers;
    const int sides = s->slot.attn ? YK_ATTN_N : 2;
    path at[YK_ATTN_N] = {{0, 0}, {INFINITY, 0}, {INFINITY, 0}};
    price_hulls(s, price);
    for (uint32_t l = 0; l <= n; l++) {
        path next[YK_ATTN_N];
        for (int side = 0; side < sides; side++) {
            const path own = own_of(s, l, side, price);
            next[side] = (path){at[side].value + own.value, at[side].bytes + own.bytes};
            q->from[l][side] = (uint8_t)side;
            for (int from = 0; from < sides; from++) {
                const path cross = {at[from].value + own.value + q->cross[from][side], at[from].bytes + own.bytes};
                if (from != side && better(cross, next[side])) {
                    next[side] = cross;
                    q->from[l][side] = (uint8_t)from;
                }
            }
        }
        memcpy(at, next, (size_t)sides * sizeof *at);
    }
    const int end = better(at[1], at[0]);
    if (choice) {
        int side = end;
        *head = end;
        side = q->from[n][side];
        for (uint32_t l = n; l-- > 0;) {
            choice[l] = class_of(s, l)->options[side][class_of(s, l)->at[side]];
            side = q->from[l][side];
        }
    }
    return at[end];
}

static void keep_if_better(yk_solver *s, bool head, yk_best *best)
{
    const double t = yk_solver_total(s, s->choice, head);
    if (t < best->s) {
        best->s = t;
        best->head = head;
        best->slot = s->slot;
        memcpy(best->choice, s->choice, s->shape->n_layers * sizeof *best->choice);
    }
}

static uint64_t bytes_of(const yk_solver *s, const yk_option *choice)
{
    uint64_t sum = 0;
    for (uint32_t l = 0; l < s->shape->n_layers; l++)
        sum += choice[l].bytes;
    return sum;
}

/* The best option of a layer's side that takes at most so many bytes: the last one of them, for more bytes always give time. */
static const yk_option *best_within(const yk_class *k, int side, uint64_t bytes)
{
    const yk_option *o = k->options[side];
    uint32_t low = 0, high = k->n_options[side];
    while (low < high) {
        const uint32_t mid = low + (high - low) / 2;
        if (o[mid].bytes <= bytes)
            low = mid + 1;
        else
            high = mid;
    }
    return low ? &o[low - 1] : NULL;
}

/* Spend what is left on the layers that gain most. */
static void spend(yk_solver *s, uint64_t left)
{
    enum { TIMES = 8 };
    for (int i = 0; i < TIMES; i++) {
        const yk_option *to = NULL;
        double gain = 0;
        uint32_t at = 0;
        for (uint32_t l = s->shape->n_layers; l-- > 0;) {
            const yk_option *o = best_within(class_of(s, l), s->choice[l].attn, s->choice[l].bytes + left);
            if (o && s->choice[l].seconds - o->seconds > gain) {
                gain = s->choice[l].seconds - o->seconds;
                to = o;
                at = l;
            }
        }
        if (!to)
            return;
        left = left + s->choice[at].bytes - to->bytes;
        s->choice[at] = *to;
    }
}

/* Layers that are alike move together when the price changes, so that the best path that fits may leave much room: from some
 * layer on take what the next larger path takes, and spend the rest. */
static void between(yk_solver *s, uint64_t room, bool head, bool larger_head, yk_best *best)
{
    yk_search *q = s->search;
    const uint32_t n = s->shape->n_layers;
    uint64_t bytes = bytes_of(s, s->choice) + q->head_bytes[head];
    if (larger_head != head && bytes + q->head_bytes[larger_head] - q->head_bytes[head] <= room) {
        bytes += q->head_bytes[larger_head] - q->head_bytes[head];
        head = larger_head;
    }
    for (uint32_t l = n; l-- > 0;) {
        const uint64_t with = bytes - s->choice[l].bytes + q->larger[l].bytes;
        if (with > room)
            break;
        bytes = with;
        s->choice[l] = q->larger[l];
    }
    keep_if_better(s, head, best);
    spend(s, room - bytes);
    keep_if_better(s, head, best);
}

/* Layers before `at` on one side, the others on another. */
typedef struct blocks {
    int first, second;
    bool head;
    uint32_t at;
    double seconds;
} blocks;

/* Where one side gives way to the other best, so that it fits; what each layer takes is the best at the price of price_hulls. */
static void place_blocks(const yk_solver *s, uint64_t room, blocks *b)
{
    const yk_search *q = s->search;
    const uint32_t n = s->shape->n_layers;
    const double cross = q->cross[b->first][b->second], begin = q->cross[YK_ATTN_HOST][b->first];
    uint64_t bytes = q->head_bytes[b->head];
    double seconds = q->head[b->head];
    b->seconds = INFINITY;
    for (uint32_t l = 0; l < n; l++) {
        const yk_class *k = class_of(s, l);
        if (!k->n_hull[b->first] || !k->n_hull[b->second])
            return;
        seconds += k->options[b->second][k->at[b->second]].seconds;
        bytes += k->options[b->second][k->at[b->second]].bytes;
    }
    for (uint32_t l = 0; l <= n; l++) {
        const int last = l < n ? b->second : b->first;
        const double t =
            seconds + (l ? begin : q->cross[YK_ATTN_HOST][b->second]) + (l && l < n ? cross : 0) + q->cross[last][b->head];
        if (bytes <= room && t < b->seconds) {
            b->seconds = t;
            b->at = l;
        }
        if (l == n)
            break;
        const yk_class *k = class_of(s, l);
        const yk_option *to = &k->options[b->first][k->at[b->first]], *from = &k->options[b->second][k->at[b->second]];
        seconds += to->seconds - from->seconds;
        bytes = bytes - from->bytes + to->bytes;
    }
}

/* The best path may change sides with every kind of layer, when one kind gains a little more by a byte than the other. Paths
 * with one change save the others. */
static void in_blocks(yk_solver *s, uint64_t room, double price, yk_best *best)
{
    blocks least = {.seconds = INFINITY};
    price_hulls(s, price);
    for (int first = 0; first < YK_ATTN_N; first++)
        for (int second = 0; second < YK_ATTN_N; second++)
            for (int head = 0; head < 2; head++) {
                blocks b = {.first = first, .second = second, .head = head};
                if (first == second || !head_allowed(s, head))
                    continue;
                place_blocks(s, room, &b);
                least = b.seconds < least.seconds ? b : least;
            }
    if (isinf(least.seconds))
        return;
    for (uint32_t l = 0; l < s->shape->n_layers; l++) {
        const int side = l < least.at ? least.first : least.second;
        s->choice[l] = class_of(s, l)->options[side][class_of(s, l)->at[side]];
    }
    spend(s, room - bytes_of(s, s->choice) - s->search->head_bytes[least.head]);
    keep_if_better(s, least.head, best);
}

/* The price at which the best path just fits: the bound is highest there. Returns the bound; *price: INFINITY nothing fits. */
static double find_price(yk_solver *s, uint64_t room, double *price, yk_best *best)
{
    path p = best_path(s, 0, s->choice, &(bool){false});
    bool head;
    *price = 0;
    if (isinf(p.value)) {
        *price = INFINITY;
        return INFINITY;
    }
    double bound = p.value, low = 0, high = 1e-12;
    if (p.bytes <= room) {
        best_path(s, 0, s->choice, &head);
        keep_if_better(s, head, best);
        return bound;
    }
    while ((p = best_path(s, high, NULL, NULL)).bytes > room) {
        bound = fmax(bound, p.value - high * (double)room);
        low = high;
        high *= 8;
        if (high > 1e12) {
            *price = INFINITY;
            return INFINITY;
        }
    }
    bound = fmax(bound, p.value - high * (double)room);
    for (int i = 0; i < ROUNDS && high - low > 1e-13 * high && bound < best->s; i++) {
        const double mid = low > 0 ? low + (high - low) / 2 : high / 8;
        p = best_path(s, mid, NULL, NULL);
        bound = fmax(bound, p.value - mid * (double)room);
        *(p.bytes > room ? &low : &high) = mid;
        if (low == 0 && high < 1e-30)
            break;
    }
    bool larger_head;
    *price = high;
    best_path(s, low, s->search->larger, &larger_head);
    best_path(s, high, s->choice, &head);
    between(s, room, head, larger_head, best);
    for (int i = -1; i <= 1 && bound < best->s; i++)
        in_blocks(s, room, ldexp(high, i), best);
    return bound;
}

/* ---- exchanging ---- */

static double crossings(const yk_solver *s, const yk_option *choice, uint32_t l, int side, bool head)
{
    const yk_search *q = s->search;
    const int before = l ? choice[l - 1].attn : YK_ATTN_HOST, after = l + 1 < s->shape->n_layers ? choice[l + 1].attn : head;
    return q->cross[before][side] + q->cross[side][after];
}

/* A layer as far as changing it goes. */
typedef struct likeness {
    uint32_t class, seen;
    uint64_t bytes;
    double seconds, cross;
} likeness;

/* What could be chosen instead in each layer. Of layers that are alike, neighbours included, two are enough. all: every option,
 * not only the hull. */
static uint32_t make_moves(const yk_solver *s, const yk_option *choice, bool head, bool all)
{
    enum { KINDS = 64 };
    move *m = s->search->moves;
    likeness kinds[KINDS];
    uint32_t n = 0, n_kinds = 0;
    for (uint32_t l = 0; l < s->shape->n_layers; l++) {
        const yk_class *k = class_of(s, l);
        const yk_option *now = &choice[l];
        const double cross = crossings(s, choice, l, now->attn, head);
        uint32_t i = 0;
        while (i < n_kinds && (kinds[i].class != s->class_of[l] || kinds[i].bytes != now->bytes ||
                               kinds[i].seconds != now->seconds || kinds[i].cross != cross))
            i++;
        if (i == n_kinds && n_kinds < KINDS)
            kinds[n_kinds++] = (likeness){s->class_of[l], 0, now->bytes, now->seconds, cross};
        if (i < n_kinds && kinds[i].seen++ >= 2)
            continue;
        for (int side = 0; side < YK_ATTN_N; side++) {
            const double change = cross - crossings(s, choice, l, side, head);
            const uint32_t count = all ? k->n_options[side] : k->n_hull[side];
            for (uint32_t x = 0; x < count && n < MAX_MOVES; x++) {
                const yk_option *o = &k->options[side][all ? x : k->hull[side][x]];
                if (o->bytes != now->bytes || o->seconds != now->seconds)
                    m[n++] = (move){(int64_t)o->bytes - (int64_t)now->bytes, now->seconds - o->seconds + change, l, o};
            }
        }
    }
    return n;
}

static int by_more_bytes(const void *pa, const void *pb)
{
    const move *a = pa, *b = pb;
    if (a->bytes != b->bytes)
        return a->bytes < b->bytes ? -1 : 1;
    if (a->gain != b->gain)
        return a->gain > b->gain ? -1 : 1;
    return a->layer != b->layer ? (a->layer < b->layer ? -1 : 1) : a->to->attn - b->to->attn;
}

enum { TOP = 4 };

/* The moves of different layers that gain most, the best one first. */
static void keep_top(const move *top[TOP], const move *x)
{
    int i = 0, end = 0;
    while (end < TOP - 1 && top[end] && top[end]->layer != x->layer)
        end++;
    if (top[end] && top[end]->gain >= x->gain)
        return;
    while (i < end && top[i]->gain >= x->gain)
        i++;
    memmove(top + i + 1, top + i, (size_t)(end - i) * sizeof *top);
    top[i] = x;
}

/* The one or two moves that gain most within so many bytes more, by bytes; two not of neighbours, whose crossings depend on each
 * other. */
static double best_moves(move *m, uint32_t n, int64_t left, const move *out[2])
{
    const move *top[TOP] = {NULL}; /* of those that go with m[i] */
    double gain = 0;
    qsort(m, n, sizeof *m, by_more_bytes);
    for (uint32_t i = n, end = 0; i-- > 0;) {
        for (; end < n && m[end].bytes <= left - m[i].bytes; end++)
            keep_top(top, &m[end]);
        if (m[i].bytes <= left && m[i].gain > gain) {
            gain = m[i].gain;
            out[0] = &m[i];
            out[1] = NULL;
        }
        for (int k = 0; k < TOP && top[k]; k++) {
            const uint32_t a = top[k]->layer, b = m[i].layer;
            if (a <= b + 1 && b <= a + 1)
                continue;
            if (top[k]->gain + m[i].gain > gain) {
                gain = top[k]->gain + m[i].gain;
                out[0] = &m[i];
                out[1] = top[k];
            }
            break;
        }
    }
    return gain;
}

/* Options come in lumps (a layer's attention with KV), which leaves room that no single change can use: make one layer smaller
 * and another one larger while that gains anything. */
static void exchange(yk_solver *s, uint64_t room, yk_best *best)
{
    enum { TIMES = 64, OF_ALL = 6 };
    bool all = false;
    for (int i = 0; i < TIMES + OF_ALL; i++) {
        const move *take[2] = {NULL, NULL};
        const double was = best->s;
        const uint64_t used = bytes_of(s, best->choice) + s->search->head_bytes[best->head];
        const uint32_t n = make_moves(s, best->choice, best->head, all);
        if (used <= room && best_moves(s->search->moves, n, (int64_t)(room - used), take) > 1e-9 * was) {
            memcpy(s->choice, best->choice, s->shape->n_layers * sizeof *s->choice);
            for (int k = 0; k < 2 && take[k]; k++)
                s->choice[take[k]->layer] = *take[k]->to;
            keep_if_better(s, best->head, best);
        }
        if (best->s < was)
            continue;
        if (all)
            return;
        all = true;
        i = TIMES - 1;
    }
}

/* ---- what the gap leaves open ---- */

/* Least seconds and bytes from each layer to the end. */
static void make_rest(yk_solver *s, double price)
{
    yk_search *q = s->search;
    const uint32_t n = s->shape->n_layers;
    price_hulls(s, price);
    q->rest_bytes[n + 1] = 0;
    q->rest_bytes[n] = head_allowed(s, 0) ? q->head_bytes[0] : q->head_bytes[1];
    for (uint32_t l = n + 1; l-- > 0;) {
        double own[YK_ATTN_N];
        for (int side = 0; side < YK_ATTN_N; side++)
            own[side] = own_of(s, l, side, price).value + (l < n ? q->rest[l + 1][side] : 0);
        for (int side = 0; side < YK_ATTN_N; side++) {
            q->rest[l][side] = INFINITY;
            for (int to = 0; to < YK_ATTN_N; to++)
                q->rest[l][side] = fmin(q->rest[l][side], own[to] + q->cross[side][to]);
        }
        if (l == n)
            continue;
        uint64_t least = UINT64_MAX;
        for (int side = 0; side < YK_ATTN_N; side++)
            if (class_of(s, l)->n_options[side] && class_of(s, l)->options[side][0].bytes < least)
                least = class_of(s, l)->options[side][0].bytes;
        q->rest_bytes[l] = least + q->rest_bytes[l + 1];
    }
}

/* Options whose price is within the gap of the best one's; when there are many, the nearest. */
static void make_near(yk_class *k, double price, double gap)
{
    for (int side = 0; side < YK_ATTN_N; side++) {
        const yk_option *o = k->options[side];
        uint32_t *near = k->near[side], n = 0;
        double worst = gap;
        for (int again = 0; again < 24; again++, worst /= 2) {
            n = 0;
            for (uint32_t i = 0; i < k->n_options[side]; i++)
                if (o[i].seconds + price * (double)o[i].bytes - k->at_best[side] <= worst)
                    near[n++] = i;
            if (n <= NEAR)
                break;
        }
        k->n_near[side] = n < NEAR ? n : NEAR;
    }
}

static int by_side_and_bytes(const void *pa, const void *pb)
{
    const label *a = pa, *b = pb;
    if (a->side != b->side)
        return a->side - b->side;
    if (a->bytes != b->bytes)
        return a->bytes < b->bytes ? -1 : 1;
    if (a->seconds != b->seconds)
        return a->seconds < b->seconds ? -1 : 1;
    return a->before != b->before ? (a->before < b->before ? -1 : 1) : a->option < b->option ? -1 : a->option > b->option;
}

/* Of labels of one side, by bytes, the one of the lowest bound in each of `parts` equal ranges of bytes: what is left to
 * spend differs, so the ends can be filled. */
static uint32_t spread(label *c, uint32_t n, uint32_t parts)
{
    uint32_t kept = 0, last = UINT32_MAX;
    const uint64_t low = c[0].bytes, range = c[n - 1].bytes - low;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t part = range ? (uint32_t)((double)(c[i].bytes - low) / (double)range * (parts - 1)) : 0;
        if (part == last && c[i].bound < c[kept - 1].bound)
            c[kept - 1] = c[i];
        else if (part != last)
            c[kept++] = c[i];
        last = part;
    }
    return kept;
}

/* Without what another one beats in bytes and seconds; at most `most`. */
static uint32_t thin(label *c, uint32_t n, uint32_t most)
{
    uint32_t kept = 0, to = 0;
    int sides = 2;
    double least[YK_ATTN_N] = {INFINITY, INFINITY, INFINITY};
    qsort(c, n, sizeof *c, by_side_and_bytes);
    for (uint32_t i = 0; i < n; i++)
        if (c[i].seconds < least[c[i].side]) {
            least[c[i].side] = c[i].seconds;
            c[kept++] = c[i];
            sides = c[i].side == YK_ATTN_COPIED ? YK_ATTN_N : sides;
        }
    if (kept <= most)
        return kept;
    for (uint32_t from = 0, end; from < kept; from = end) {
        for (end = from + 1; end < kept && c[end].side == c[from].side;)
            end++;
        const uint32_t m = spread(c + from, end - from, most / (uint32_t)sides);
        memmove(c + to, c + from, m * sizeof *c);
        to += m;
    }
    return to;
}

typedef struct step_to {
    uint32_t layer, n_candidates;
    uint64_t room;
    double price, base, limit; /* base: price of the room */
} step_to;

static void extend(yk_solver *s, step_to *t, uint32_t before, int side, const yk_option *o, uint32_t option)
{
    yk_search *q = s->search;
    const uint32_t n = s->shape->n_layers;
    const label *from = &q->labels[(size_t)t->layer * q->most + before];
    const uint64_t bytes = from->bytes + o->bytes;
    const double seconds = from->seconds + o->seconds + q->cross[from->side][side];
    const double rest = t->layer < n ? q->rest[t->layer + 1][side] : 0;
    const double bound = seconds + t->price * (double)bytes + rest - t->base;
    if (bytes + q->rest_bytes[t->layer + 1] > t->room || !(bound < t->limit) || !(seconds < t->limit))
        return;
    if (t->n_candidates == MAX_CANDIDATES)
        t->n_candidates = thin(q->candidates, t->n_candidates, q->most);
    q->candidates[t->n_candidates++] = (label){bytes, seconds, bound, before, option, (uint8_t)side};
}

/* Paths over all layers, as many as there is place for. */
static void close_gap(yk_solver *s, uint64_t room, double price, double bound, yk_best *best)
{
    yk_search *q = s->search;
    const uint32_t n = s->shape->n_layers;
    const double eps = 1e-12 * best->s;
    make_rest(s, price);
    for (uint32_t i = 0; i < s->n_classes; i++)
        make_near(&s->classes[i], price, best->s - bound + eps);
    step_to t = {.room = room, .price = price, .base = price * (double)room, .limit = best->s - eps};
    q->labels[0] = (label){0};
    q->n_labels[0] = 1;
    for (uint32_t l = 0; l <= n; l++) {
        t.layer = l;
        t.n_candidates = 0;
        for (uint32_t b = 0; b < q->n_labels[l]; b++)
            for (int side = 0; side < (l < n ? YK_ATTN_N : 2); side++) {
                if (l == n) {
                    const yk_option o = {.bytes = q->head_bytes[side], .seconds = q->head[side]};
                    if (head_allowed(s, side))
                        extend(s, &t, b, side, &o, 0);
                    continue;
                }
                const yk_class *k = class_of(s, l);
                for (uint32_t i = 0; i < k->n_near[side]; i++)
                    extend(s, &t, b, side, &k->options[side][k->near[side][i]], k->near[side][i]);
            }
        q->n_labels[l + 1] = thin(q->candidates, t.n_candidates, q->most);
        memcpy(&q->labels[(size_t)(l + 1) * q->most], q->candidates, q->n_labels[l + 1] * sizeof(label));
        if (!q->n_labels[l + 1])
            return;
    }
    const label *end = &q->labels[(size_t)(n + 1) * q->most], *at = end;
    for (uint32_t i = 1; i < q->n_labels[n + 1]; i++)
        if (end[i].seconds < at->seconds)
            at = &end[i];
    const bool head = at->side;
    for (uint32_t l = n; l-- > 0;) {
        at = &q->labels[(size_t)(l + 1) * q->most + at->before];
        s->choice[l] = class_of(s, l)->options[at->side][at->option];
    }
    keep_if_better(s, head, best);
}

bool yk_search_few(const yk_solver *s)
{
    return s->shape->n_layers <= FEW_LAYERS;
}

bool yk_search_open_gap(const yk_solver *s, double bound, const yk_best *best)
{
    return !isinf(bound) && !isinf(best->s) && bound < best->s * (1 - (yk_search_few(s) ? CLOSE_ENOUGH_FEW : CLOSE_ENOUGH));
}

double yk_search_run(yk_solver *s, uint64_t room, bool deep, yk_best *best)
{
    yk_search *q = s->search;
    double price;
    for (int a = 0; a < YK_ATTN_N; a++)
        for (int b = 0; b < YK_ATTN_N; b++)
            q->cross[a][b] = yk_solver_cross(s, a, b);
    for (int side = 0; side < 2; side++) {
        q->head[side] = yk_solver_head(s, side);
        q->head_bytes[side] = side ? s->shape->head.bytes : 0;
    }
    if (!deep)
        return find_price(s, room, &price, best);
    yk_best own = {.s = INFINITY, .choice = q->own};
    const double bound = find_price(s, room, &price, &own);
    if (isinf(own.s))
        return bound;
    exchange(s, room, &own);
    memcpy(s->choice, own.choice, s->shape->n_layers * sizeof *s->choice);
    keep_if_better(s, own.head, best);
    if (yk_search_open_gap(s, bound, best)) {
        close_gap(s, room, price, bound, best);
        if (best->slot.bytes == s->slot.bytes && best->slot.attn == s->slot.attn)
            exchange(s, room, best);
    }
    return bound;
}
