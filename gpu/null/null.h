/* null.h - the null device: no hardware. "compute" runs the kernels' own text on the host, "time" computes nothing and lets
 * modelled time pass. */
#ifndef YK_GPU_NULL_H
#define YK_GPU_NULL_H

#include <pthread.h>

#include "gpu/module.h"

void *yk_null_alloc(size_t bytes); /* the host's, but for the one that setting "fail" names */

/* An argument of a kernel as its C form takes it. */
typedef struct yk_host_arg {
    uint8_t *base;
    uint64_t at;
    uint32_t u32;
    float f32;
} yk_host_arg;

typedef struct yk_host_kernel {
    const char *name, *kinds;
    void (*call)(const yk_host_arg *args);
} yk_host_kernel;

uint32_t yk_null_kernel_find(const char *name); /* its number, or UINT32_MAX */
const yk_host_kernel *yk_null_kernel(uint32_t i);
uint32_t yk_null_n_kernels(void);
/* All groups of a launch, one after the other. */
void yk_null_kernel_run(uint32_t i, const uint32_t groups[3], const yk_host_arg *args);

/* What works at the same time in time mode; the streams of a kind share a lane. "host" is the CPU, as far as it disturbs the others and they it. */
enum yk_null_lane { YK_NULL_GPU, YK_NULL_UP, YK_NULL_DOWN, YK_NULL_HOST, YK_NULL_LANES };

/* One configured device; rates in units a second, times in seconds of the modelled machine. */
typedef struct yk_null_config {
    bool time;
    double dilation;                           /* real seconds for a modelled one */
    double vram, flops;                        /* bytes, operations */
    double up, down;                           /* copies to the device and back, bytes */
    double launch, copy;                       /* fixed cost of a launch and of a copy */
    double signal;                             /* until a signal is seen by the host */
    double page;                               /* factor on copies from and to memory that is not page-locked */
    double host, host_fixed;                   /* the CPU's work: bytes, fixed cost of a job (kernel "host") */
    double slow[YK_NULL_LANES][YK_NULL_LANES]; /* [a][b]: factor on the time of a while b works */
    uint64_t memory_bytes;
} yk_null_config;

typedef struct yk_null_mem {
    struct yk_null_mem *next;
    struct yk_gpu *gpu;
    uint8_t *data;
    uint64_t bytes;
    yk_mem_class cls;
} yk_null_mem;

typedef struct yk_null_pinned {
    struct yk_null_pinned *next;
    void *data;
    uint64_t bytes;
    bool registered; /* the caller's memory */
} yk_null_pinned;

struct yk_gpu_kernel {
    uint32_t index;
};

struct yk_gpu_event {
    struct yk_gpu_event *next;
    struct yk_gpu *gpu;
    uint32_t refs;           /* the caller and commands under way */
    uint64_t recorded, done; /* numbers of records */
    uint64_t ns;             /* of the last one done */
};

enum yk_null_op {
    YK_NULL_LAUNCH,
    YK_NULL_TO_DEVICE,
    YK_NULL_TO_HOST,
    YK_NULL_DEVICE,
    YK_NULL_FILL,
    YK_NULL_RECORD,
    YK_NULL_WAIT,
    YK_NULL_SIGNAL,
    YK_NULL_BOX_WAIT
};

typedef struct yk_null_cmd {
    struct yk_null_cmd *next;
    enum yk_null_op op;
    enum yk_null_lane lane;
    uint64_t cost_ns; /* in real (dilated) ns; 0 in compute mode */
    /* launch */
    uint32_t kernel, groups[3], n_args;
    yk_host_arg args[YK_GPU_MAX_ARGS];
    /* copies and fill */
    uint8_t *to;
    const uint8_t *from;
    uint64_t bytes;
    uint8_t byte;
    /* events and boxes */
    struct yk_gpu_event *event;
    uint64_t number; /* record that is waited for or made */
    uint32_t box, value;
} yk_null_cmd;

struct yk_gpu_stream {
    struct yk_gpu_stream *next;
    struct yk_gpu *gpu;
    yk_gpu_stream_kind kind;
    pthread_t thread; /* compute mode */
    yk_null_cmd *head, **tail;
    bool quit;         /* no more commands; waits for boxes are over */
    uint64_t since_ns; /* time mode: when head became the first command */
};

struct yk_gpu {
    const yk_null_config *config;
    pthread_mutex_t lock; /* all below, and streams and events */
    pthread_cond_t changed;
    yk_module_budget budget;
    yk_null_mem *mems;
    yk_null_pinned *pinned;
    struct yk_gpu_stream *streams;
    struct yk_gpu_event *events;
    uint32_t posted[YK_GPU_MAILBOXES], signalled[YK_GPU_MAILBOXES];
    struct yk_gpu_kernel *kernels; /* [yk_null_n_kernels() + 1]: the last one is "host" */
    /* time mode: the moment the simulation has reached, whose command a lane works on, and what is left of its cost */
    uint64_t sim_ns;
    struct yk_gpu_stream *lane[YK_NULL_LANES];
    double left[YK_NULL_LANES];
};

/* What a command waits for has come; lock held. */
bool yk_null_ready(const struct yk_gpu_stream *stream, const yk_null_cmd *cmd);
/* Drop the first command; lock held. */
void yk_null_stream_pop(struct yk_gpu_stream *stream);

/* time.c, lock held. Carry the simulation on to `now` of the monotonic clock; wait until all of a stream's commands are done. */
void yk_null_advance(struct yk_gpu *gpu, uint64_t now);
void yk_null_drain(struct yk_gpu_stream *stream);

/* stream.c: these fill the table. */
yk_status yk_null_stream_open(yk_gpu *gpu, yk_gpu_stream_kind kind, yk_gpu_stream **out);
void yk_null_stream_close(yk_gpu_stream *stream);
yk_status yk_null_stream_flush(yk_gpu_stream *stream);
yk_status yk_null_stream_sync(yk_gpu_stream *stream);
yk_status yk_null_event_open(yk_gpu *gpu, yk_gpu_event **out);
void yk_null_event_close(yk_gpu_event *event);
yk_status yk_null_event_record(yk_gpu_stream *stream, yk_gpu_event *event);
yk_status yk_null_event_wait(yk_gpu_stream *stream, yk_gpu_event *event);
yk_status yk_null_event_time(yk_gpu_event *event, uint64_t *ns);
yk_status yk_null_copy_to_device(yk_gpu_stream *stream, yk_gpu_mem to, const void *from, uint64_t bytes);
yk_status yk_null_copy_to_host(yk_gpu_stream *stream, void *to, yk_gpu_mem from, uint64_t bytes);
yk_status yk_null_copy_device(yk_gpu_stream *stream, yk_gpu_mem to, yk_gpu_mem from, uint64_t bytes);
yk_status yk_null_fill(yk_gpu_stream *stream, yk_gpu_mem mem, uint8_t byte, uint64_t bytes);
yk_status yk_null_launch(yk_gpu_stream *stream, const yk_gpu_launch *launch);
yk_status yk_null_box_signal(yk_gpu_stream *stream, uint32_t box, uint32_t value);
yk_status yk_null_box_wait(yk_gpu_stream *stream, uint32_t box, uint32_t value);
yk_status yk_null_box_post(yk_gpu *gpu, uint32_t box, uint32_t value);
yk_status yk_null_box_value(yk_gpu *gpu, uint32_t box, uint32_t *value);

#endif
