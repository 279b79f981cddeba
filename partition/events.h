/* events.h - discrete events over the lanes of a machine: tasks that wait for others, one at a time on each lane, slowed while
 * they share memory with another lane. No clock. */
#ifndef YK_PARTITION_EVENTS_H
#define YK_PARTITION_EVENTS_H

#include "partition/pair.h"
#include "src/base/mem.h"

typedef enum yk_ev_lane {
    YK_EV_CPU,
    YK_EV_GPU,
    YK_EV_UP,   /* weights to the device; waits while rows use the link */
    YK_EV_ROWS, /* activations to the device */
    YK_EV_DOWN, /* to the host */
    YK_EV_HAND, /* waiting for the other side to notice: takes nothing from anybody */
    YK_EV_IDLE, /* weights copied when nothing else uses the link */
    YK_EV_LANES
} yk_ev_lane;

enum { YK_EV_DEPS = 4 };

typedef struct yk_ev_task {
    double work;                /* seconds alone */
    double reads;               /* bytes/s it reads of host memory while it runs alone */
    uint32_t after[YK_EV_DEPS]; /* tasks that must have ended; 0: none (numbers begin at 1) */
    double end;                 /* < 0: not yet */
    uint8_t lane;
} yk_ev_task;

typedef struct yk_events {
    /* What lanes leave each other; the caller fills these. */
    yk_pair pair;       /* CPU and copies */
    double shared_read; /* bytes/s of a memory that CPU and device share; 0: they do not share */
    /* Results. */
    double now, busy[YK_EV_LANES];
    /* Internal. */
    yk_ev_task *task; /* [cap], task 0 is not used */
    uint32_t n, cap;
    uint32_t *queue[YK_EV_LANES], n_queue[YK_EV_LANES], cap_queue[YK_EV_LANES], head[YK_EV_LANES];
    double left[YK_EV_LANES]; /* of the running task; < 0: none runs */
    bool failed;
} yk_events;

void yk_events_open(yk_events *ev);
void yk_events_close(yk_events *ev);
/* Append a task; lanes take their tasks in this order. Returns its number, 0 after a failure (which sticks). after[] may hold 0. */
uint32_t yk_events_add(yk_events *ev, yk_ev_lane lane, double work, double reads, const uint32_t after[YK_EV_DEPS]);
/* Run until the task has ended. YK_ERR_MEMORY: an addition failed. YK_ERR_RUNTIME: it waits for something that never ends. */
yk_status yk_events_run(yk_events *ev, uint32_t task, yk_error *err);
/* Tasks of a lane that have not ended. */
static inline uint32_t yk_events_waiting(const yk_events *ev, yk_ev_lane lane)
{
    return ev->n_queue[lane] - ev->head[lane];
}

#endif
