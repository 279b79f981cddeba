#include "partition/events.h"

#include <math.h>
#include <string.h>

void yk_events_open(yk_events *ev)
{
    *ev = (yk_events){.n = 1};
    for (int l = 0; l < YK_EV_LANES; l++)
        ev->left[l] = -1;
}

void yk_events_close(yk_events *ev)
{
    yk_free(ev->task);
    for (int l = 0; l < YK_EV_LANES; l++)
        yk_free(ev->queue[l]);
    *ev = (yk_events){0};
}

static bool grow(void **p, uint32_t *cap, uint32_t n, size_t size)
{
    if (n < *cap)
        return true;
    const uint32_t more = *cap ? *cap + *cap / 2 : 256;
    void *q = more > *cap ? yk_realloc(YK_MEM_PLAN, *p, more, size) : NULL;
    if (!q)
        return false;
    *p = q;
    *cap = more;
    return true;
}

uint32_t yk_events_add(yk_events *ev, yk_ev_lane lane, double work, double reads, const uint32_t after[YK_EV_DEPS])
{
    void *tasks = ev->task, *queue = ev->queue[lane];
    const bool ok = !ev->failed && grow(&tasks, &ev->cap, ev->n, sizeof *ev->task);
    ev->task = tasks;
    if (!ok || !grow(&queue, &ev->cap_queue[lane], ev->n_queue[lane], sizeof *ev->queue[lane])) {
        ev->failed = true;
        return 0;
    }
    ev->queue[lane] = queue;
    ev->task[ev->n] = (yk_ev_task){.work = work, .reads = reads, .end = -1, .lane = (uint8_t)lane};
    memcpy(ev->task[ev->n].after, after, sizeof ev->task[ev->n].after);
    ev->queue[lane][ev->n_queue[lane]++] = ev->n;
    return ev->n++;
}

static bool ready(const yk_events *ev, const yk_ev_task *t)
{
    for (int i = 0; i < YK_EV_DEPS; i++)
        if (t->after[i] && ev->task[t->after[i]].end < 0)
            return false;
    return true;
}

static void start(yk_events *ev)
{
    for (int l = 0; l < YK_EV_LANES; l++) {
        if (ev->left[l] >= 0 || ev->head[l] == ev->n_queue[l])
            continue;
        const yk_ev_task *t = &ev->task[ev->queue[l][ev->head[l]]];
        if (ready(ev, t))
            ev->left[l] = t->work;
    }
}

/* Bytes/s of host memory that the running task of a lane reads alone. */
static double reads(const yk_events *ev, int lane)
{
    return ev->task[ev->queue[lane][ev->head[lane]]].reads;
}

/* Speed of each lane now, 1 alone. CPU and copy leave each other what the pair says; a memory that CPU and device share serves
 * both in proportion. */
static void speeds(const yk_events *ev, double speed[YK_EV_LANES])
{
    const bool rows = ev->left[YK_EV_ROWS] >= 0, copy = ev->left[YK_EV_UP] >= 0;
    for (int l = 0; l < YK_EV_LANES; l++)
        speed[l] = ev->left[l] >= 0;
    if (rows)
        speed[YK_EV_UP] = speed[YK_EV_IDLE] = 0;
    if (copy)
        speed[YK_EV_IDLE] = 0;
    const double cpu = speed[YK_EV_CPU] > 0 ? reads(ev, YK_EV_CPU) : 0;
    const double gpu = speed[YK_EV_GPU] > 0 ? reads(ev, YK_EV_GPU) : 0;
    const int up = speed[YK_EV_UP] > 0 ? YK_EV_UP : YK_EV_IDLE;
    if (cpu > 0 && speed[up] > 0 && reads(ev, up) > 0)
        yk_pair_speeds(&ev->pair, cpu, reads(ev, up), &speed[YK_EV_CPU], &speed[up]);
    if (ev->shared_read > 0 && cpu > 0 && gpu > 0 && cpu + gpu > ev->shared_read) {
        speed[YK_EV_CPU] *= ev->shared_read / (cpu + gpu);
        speed[YK_EV_GPU] *= ev->shared_read / (cpu + gpu);
    }
}

yk_status yk_events_run(yk_events *ev, uint32_t task, yk_error *err)
{
    YK_FAIL_IF(ev->failed, err, YK_ERR_MEMORY, "out of memory for the tasks of a simulation (%u so far)", ev->n);
    while (ev->task[task].end < 0) {
        double speed[YK_EV_LANES], dt = INFINITY;
        start(ev);
        speeds(ev, speed);
        for (int l = 0; l < YK_EV_LANES; l++)
            if (speed[l] > 0)
                dt = fmin(dt, ev->left[l] / speed[l]);
        YK_FAIL_IF(!(dt < INFINITY), err, YK_ERR_RUNTIME, "simulation: task %u waits for something that never ends", task);
        ev->now += dt;
        for (int l = 0; l < YK_EV_LANES; l++) {
            if (!(speed[l] > 0))
                continue;
            ev->busy[l] += dt;
            ev->left[l] -= dt * speed[l];
            /* What rounding leaves is as good as done. */
            if (ev->left[l] <= 1e-12 * ev->now) {
                ev->task[ev->queue[l][ev->head[l]++]].end = ev->now;
                ev->left[l] = -1;
            }
        }
    }
    return YK_OK;
}
