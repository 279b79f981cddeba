/* time.c - the modelled time of the null device.
 *
 * Nothing runs by itself: a device is a simulation that is carried on to the present moment whenever somebody looks at it. Commands enter
 * at the real moment they were enqueued, and everything that follows from them happens at moments computed from that, in the order of
 * those moments. A thread that wakes up late therefore shifts nothing, and figures are exact on a machine that is busy with other things.
 *
 * A command with a cost occupies its lane; its work goes on more slowly while other lanes work, by the factors of the configuration. */
#include <errno.h>
#include <math.h>

#include "gpu/null/null.h"
#include "src/base/clock.h"

static const yk_null_cmd *command_of(const yk_gpu *g, enum yk_null_lane lane)
{
    return g->lane[lane] ? g->lane[lane]->head : NULL;
}

/* What a nanosecond of a lane's work takes now. */
static double slow(const yk_gpu *g, int lane)
{
    double f = 1;
    for (int other = 0; other < YK_NULL_LANES; other++)
        if (other != lane && g->lane[other])
            f *= g->config->slow[lane][other];
    return f;
}

static void complete(yk_gpu *g, yk_gpu_stream *s)
{
    yk_null_cmd *c = s->head;
    if (c->op == YK_NULL_RECORD) {
        c->event->done = c->number;
        c->event->ns = g->sim_ns;
    }
    if (c->op == YK_NULL_SIGNAL && g->signalled[c->box] < c->value)
        g->signalled[c->box] = c->value;
    if (c->op == YK_NULL_TO_HOST)
        memset(c->to, 0, c->bytes);
    yk_null_stream_pop(s);
}

/* The stream whose first command has waited longest for a lane. */
static yk_gpu_stream *first_for(const yk_gpu *g, enum yk_null_lane lane)
{
    yk_gpu_stream *first = NULL;
    for (yk_gpu_stream *s = g->streams; s; s = s->next)
        if (s->head && s->head->cost_ns && s->head->lane == lane && (!first || s->since_ns < first->since_ns))
            first = s;
    return first;
}

/* All that happens at this very moment. */
static void settle(yk_gpu *g)
{
    for (bool more = true; more;) {
        more = false;
        for (yk_gpu_stream *s = g->streams; s; s = s->next)
            while (s->head && !s->head->cost_ns && yk_null_ready(s, s->head)) {
                complete(g, s);
                more = true;
            }
        for (int l = 0; l < YK_NULL_LANES; l++)
            if (!g->lane[l] && (g->lane[l] = first_for(g, (enum yk_null_lane)l)))
                g->left[l] = (double)g->lane[l]->head->cost_ns;
    }
}

/* When the next lane is done, as things are; UINT64_MAX: none works. */
static uint64_t next_end(const yk_gpu *g)
{
    uint64_t first = UINT64_MAX;
    for (int l = 0; l < YK_NULL_LANES; l++) {
        if (!g->lane[l])
            continue;
        const uint64_t end = g->sim_ns + (uint64_t)ceil(g->left[l] * slow(g, l));
        first = end < first ? end : first;
    }
    return first;
}

static void pass(yk_gpu *g, uint64_t to)
{
    double f[YK_NULL_LANES];
    for (int l = 0; l < YK_NULL_LANES; l++)
        f[l] = slow(g, l);
    for (int l = 0; l < YK_NULL_LANES; l++)
        if (g->lane[l])
            g->left[l] -= (double)(to - g->sim_ns) / f[l];
    g->sim_ns = to;
    for (int l = 0; l < YK_NULL_LANES; l++)
        if (command_of(g, (enum yk_null_lane)l) && g->left[l] < 0.01) {
            yk_gpu_stream *s = g->lane[l];
            g->lane[l] = NULL;
            complete(g, s);
        }
}

void yk_null_advance(yk_gpu *g, uint64_t now)
{
    if (now < g->sim_ns)
        return;
    for (;;) {
        settle(g);
        const uint64_t next = next_end(g);
        if (next > now)
            break;
        pass(g, next);
    }
    pass(g, now);
    settle(g);
}

void yk_null_drain(yk_gpu_stream *s)
{
    yk_gpu *g = s->gpu;
    for (;;) {
        yk_null_advance(g, yk_now_ns());
        if (!s->head)
            return;
        const uint64_t next = next_end(g);
        if (next == UINT64_MAX) {
            pthread_cond_wait(&g->changed, &g->lock);
            continue;
        }
        const struct timespec t = {.tv_sec = (time_t)(next / 1000000000u), .tv_nsec = (long)(next % 1000000000u)};
        pthread_cond_timedwait(&g->changed, &g->lock, &t);
    }
}
