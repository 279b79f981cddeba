/* internal.h - what the files of the CUDA backend share. How streams, mailboxes and pageable copies work: stream.c. */
#ifndef YK_GPU_CUDA_INTERNAL_H
#define YK_GPU_CUDA_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "gpu/cuda/driver.h"

enum {
    YK_CU_STREAMS = 64,     /* of a device at the same time */
    YK_CU_BOUNCE = 1 << 20, /* bytes of a stream's page-locked buffer for copies of pageable memory */
    YK_CU_BEHIND = 400, /* driver calls of a stream while a mailbox wait is under way; a driver's queue ends at about 1000 */
    YK_CU_TICKET_WORDS = 16, /* u32 between the words that streams wait for: a cache line */
    YK_CU_REBASE_MS = 4000   /* event times are floats in ms since a base event: one unit is 0.25 us here */
};

typedef struct yk_cu_mem {
    struct yk_cu_mem *next;
    CUdeviceptr ptr;
    uint64_t bytes;
    yk_mem_class cls;
} yk_cu_mem;

typedef struct yk_cu_pinned {
    struct yk_cu_pinned *next;
    void *data;
    uint64_t bytes;
    bool registered; /* the caller's memory */
    bool dead;       /* free, but for work that may still use it */
} yk_cu_pinned;

struct yk_gpu_kernel {
    CUfunction function;
    const char *name, *kinds;
    const struct yk_gpu_kernel *mma; /* the same product by matrix units (gpu/cuda/mma.k.h), or NULL */
    uint32_t threads;                /* of a group */
};

struct yk_gpu_event {
    struct yk_gpu_event *next;
    struct yk_gpu *gpu;
    CUevent event;
    uint32_t refs;              /* the caller and held commands */
    uint32_t waiting;           /* held waits for it */
    uint64_t submitted, issued; /* numbers of records */
};

enum yk_cu_op {
    YK_CU_LAUNCH,
    YK_CU_TO_DEVICE,
    YK_CU_TO_HOST,
    YK_CU_DEVICE,
    YK_CU_FILL,
    YK_CU_RECORD,
    YK_CU_WAIT,
    YK_CU_SIGNAL,
    YK_CU_BOX_WAIT
};

typedef struct yk_cu_cmd {
    struct yk_cu_cmd *next;
    enum yk_cu_op op;
    /* copies and fill */
    CUdeviceptr to, from;
    void *host_to;
    const void *host_from;
    uint64_t bytes;
    uint8_t byte;
    bool pinned; /* the host's memory is page-locked */
    /* events and boxes */
    struct yk_gpu_event *event;
    uint64_t number; /* record that is made or waited for */
    uint32_t box, value;
    /* launch: memory is two values (base, offset) */
    const struct yk_gpu_kernel *kernel;
    uint32_t groups[3], n_values;
    uint64_t values[2 * YK_GPU_MAX_ARGS];
} yk_cu_cmd;

/* What a host function does: a copy between pageable memory and the bounce buffer, or a signal. */
typedef struct yk_cu_job {
    struct yk_cu_job *next, *next_of_all;
    struct yk_gpu_stream *stream;
    void *to;
    const void *from;
    size_t bytes;
    _Atomic uint32_t *word; /* signal: not NULL */
    uint32_t value;
} yk_cu_job;

typedef struct yk_cu_pending {
    uint32_t box, value;
} yk_cu_pending;

struct yk_gpu_stream {
    struct yk_gpu_stream *next;
    struct yk_gpu *gpu;
    CUstream stream;
    CUevent done; /* for stream_sync: waits for it sleep */
    uint32_t slot;
    uint8_t *bounce;
    /* under the device's lock */
    bool ending;                /* mailbox waits are over */
    yk_cu_cmd *head, **tail;    /* held: not yet given to the driver */
    uint32_t behind;            /* driver calls since a mailbox wait began to hold some stream */
    yk_cu_pending *waits;       /* [n_ring]; wait number t is waits[t % n_ring] */
    uint32_t n_ring;            /* a power of two */
    uint32_t tickets, released; /* numbers of waits given to the driver, and of those that are over */
    yk_cu_job *all_jobs, *spare;
    yk_status failed; /* of a held command; told by stream_sync */
    char failed_line[256];
    _Atomic(yk_cu_job *) finished; /* pushed by host functions */
};

struct yk_gpu {
    CUdevice device;
    CUcontext context;
    CUmodule module;
    bool mma; /* matrix units are used */
    struct yk_gpu_kernel *kernels;
    yk_module_budget budget;
    uint64_t runtime_bytes;
    yk_cu_mem *mems, *graves; /* graves: free, but for work that may still use it */
    yk_cu_pinned *pinned;
    struct yk_gpu_stream *own; /* for what is done at once */
    CUevent base;              /* of event times, reached at base_ns of the host's clock */
    uint64_t base_ns;
    bool mem_ops;            /* mailboxes are stream memory operations */
    bool words_pinned;       /* `words` is page-locked */
    _Atomic uint32_t *words; /* [YK_CU_STREAMS][YK_GPU_MAILBOXES] signals, [YK_CU_STREAMS][YK_CU_TICKET_WORDS] tickets */
    CUdeviceptr words_on_device;
    uint32_t (*last_signal)[YK_GPU_MAILBOXES];     /* [YK_CU_STREAMS]: enqueued */
    _Atomic uint64_t signallers[YK_GPU_MAILBOXES]; /* streams that ever signalled a box, by slot */
    _Atomic uint32_t polls, n_failed;              /* n_failed: streams with `failed` */
    pthread_mutex_t lock;                          /* all below, and what streams and events say */
    pthread_cond_t changed;
    struct yk_gpu_stream *streams;
    struct yk_gpu_event *events;
    uint64_t slots; /* used, as bits */
    uint32_t posted[YK_GPU_MAILBOXES];
    uint32_t n_unsatisfied; /* mailbox waits that hold streams of the device */
    uint32_t n_held;        /* held commands */
};

/* Every call of the driver needs the device's context on the calling thread; what was there before comes back. */
static inline CUresult yk_cu_enter(const yk_gpu *g)
{
    return yk_cu.cuCtxPushCurrent(g->context);
}
static inline void yk_cu_leave(void)
{
    CUcontext c;
    yk_cu.cuCtxPopCurrent(&c);
}

/* program.c */
yk_status yk_cu_program_open(yk_gpu *gpu);
void yk_cu_program_close(yk_gpu *gpu);
/* Whether the module holds code for a compute capability (90 for sm_90), and the list of what it holds. */
bool yk_cu_program_fits(int sm);
const char *yk_cu_program_archs(void);
yk_status yk_cu_kernel_get(yk_gpu *gpu, const char *name, yk_gpu_kernel **out);
yk_status yk_cu_launch(yk_gpu_stream *stream, const yk_gpu_launch *launch);

/* memory.c */
yk_status yk_cu_mem_alloc(yk_gpu *gpu, yk_mem_class cls, uint64_t bytes, yk_gpu_mem *out);
void yk_cu_mem_free(yk_gpu *gpu, yk_mem_class cls, yk_gpu_mem *mem);
void yk_cu_mem_used(const yk_gpu *gpu, uint64_t used[YK_MEM_N_CLASSES], uint64_t *budget);
yk_status yk_cu_host_alloc(yk_gpu *gpu, uint64_t bytes, void **out);
void yk_cu_host_free(yk_gpu *gpu, void *p);
yk_status yk_cu_host_register(yk_gpu *gpu, void *p, uint64_t bytes);
void yk_cu_host_unregister(yk_gpu *gpu, void *p);
yk_status yk_cu_copy_to_device(yk_gpu_stream *stream, yk_gpu_mem to, const void *from, uint64_t bytes);
yk_status yk_cu_copy_to_host(yk_gpu_stream *stream, void *to, yk_gpu_mem from, uint64_t bytes);
yk_status yk_cu_copy_device(yk_gpu_stream *stream, yk_gpu_mem to, yk_gpu_mem from, uint64_t bytes);
yk_status yk_cu_fill(yk_gpu_stream *stream, yk_gpu_mem mem, uint8_t byte, uint64_t bytes);
/* Frees what waits for it, if nothing can use it any more. */
void yk_cu_reap(yk_gpu *gpu);
void yk_cu_memory_close(yk_gpu *gpu);

/* stream.c */
yk_status yk_cu_stream_open(yk_gpu *gpu, yk_gpu_stream_kind kind, yk_gpu_stream **out);
void yk_cu_stream_close(yk_gpu_stream *stream);
yk_status yk_cu_stream_flush(yk_gpu_stream *stream);
yk_status yk_cu_stream_sync(yk_gpu_stream *stream);
/* In the order of calls: to the driver now, or, if something it depends on has not been given to the driver, held. */
yk_status yk_cu_submit(yk_gpu_stream *stream, yk_cu_cmd *cmd);
/* Gives held commands to the driver as far as that goes; lock held, context current. */
void yk_cu_pump(yk_gpu *gpu);
/* No stream is held by a mailbox, no command by the host: waiting for the device ends. */
bool yk_cu_flows(yk_gpu *gpu);
void yk_cu_streams_close(yk_gpu *gpu);

/* issue.c, lock held, context current */
yk_status yk_cu_issue(yk_gpu_stream *stream, const yk_cu_cmd *cmd);
/* Driver calls a command takes. */
uint32_t yk_cu_calls(const yk_cu_cmd *cmd);
void yk_cu_jobs_close(yk_gpu_stream *stream);

/* event.c */
yk_status yk_cu_event_open(yk_gpu *gpu, yk_gpu_event **out);
void yk_cu_event_close(yk_gpu_event *event);
yk_status yk_cu_event_record(yk_gpu_stream *stream, yk_gpu_event *event);
yk_status yk_cu_event_wait(yk_gpu_stream *stream, yk_gpu_event *event);
yk_status yk_cu_event_time(yk_gpu_event *event, uint64_t *ns);
/* Frees an event when the last user is gone; lock held, context current. */
void yk_cu_event_drop(yk_gpu_event *event);
/* Matches the device's clock with the host's; nothing of the device may be held. */
yk_status yk_cu_clock_measure(yk_gpu *gpu);

/* box.c */
yk_status yk_cu_boxes_open(yk_gpu *gpu, bool hold);
void yk_cu_boxes_close(yk_gpu *gpu);
/* Ends waits that what was posted satisfies; lock held. */
void yk_cu_boxes_release(yk_gpu *gpu);
yk_status yk_cu_issue_signal(yk_gpu_stream *stream, uint32_t box, uint32_t value);
yk_status yk_cu_issue_box_wait(yk_gpu_stream *stream, uint32_t box, uint32_t value);
/* Has a job of the stream run by a host function: `job` is copied. */
yk_status yk_cu_issue_job(yk_gpu_stream *stream, const yk_cu_job *job);
yk_status yk_cu_box_signal(yk_gpu_stream *stream, uint32_t box, uint32_t value);
yk_status yk_cu_box_wait(yk_gpu_stream *stream, uint32_t box, uint32_t value);
yk_status yk_cu_box_post(yk_gpu *gpu, uint32_t box, uint32_t value);
yk_status yk_cu_box_value(yk_gpu *gpu, uint32_t box, uint32_t *value);

#endif
