/* device.h - the table every GPU backend fills. Backends are modules (yoke-opencl.so, yoke-cuda.so, yoke-null.so) loaded at run
 * time; a module exports only
 *
 *     yk_status yk_module_open(uint32_t abi, const yk_host_calls *host, yk_device_table *out);
 *
 * and imports nothing from libyoke. The table begins with abi and size. All functions return yk_status values of yoke.h; after
 * a failure `last_error` holds one line. Handles are opaque; a device and what belongs to it are used by one thread at a time,
 * except where said.
 *
 * Memory is a handle plus a byte offset, so that one reservation can hold many things on backends without device pointers. A
 * device is opened with a budget: mem_alloc beyond it fails with YK_ERR_MEMORY before anything is asked of the driver, so the
 * budget is a hard ceiling.
 *
 * Work is enqueued on streams, which run in order; different streams run at the same time and are joined by events. Nothing
 * waits on the host except the functions that say so. Hand-off between host and device goes through mailboxes: `signal` is
 * enqueued on a stream and becomes visible to the host when the work before it is done; `wait` is enqueued and holds its stream
 * until the host posts. No kernel ever spins. */
#ifndef YK_GPU_DEVICE_H
#define YK_GPU_DEVICE_H

#include "src/base/mem.h"

#define YK_DEVICE_ABI 1u

typedef struct yk_host_calls {
    uint32_t abi, size;
    void *(*alloc)(size_t bytes); /* zeroed, 64-byte aligned, or NULL */
    void (*free)(void *p);
    void (*log)(yk_log_level level, const char *line);
    const char *cache_dir; /* where compiled kernels may be kept; NULL: nowhere */
    const char *options;   /* what a backend wants to know before it looks for devices (null: gpu/null/null.c); NULL: nothing */
} yk_host_calls;

typedef struct yk_gpu yk_gpu; /* an open device */
typedef struct yk_gpu_stream yk_gpu_stream;
typedef struct yk_gpu_event yk_gpu_event;
typedef struct yk_gpu_kernel yk_gpu_kernel;

typedef struct yk_gpu_info {
    char name[128], driver[128];
    uint64_t memory_bytes, memory_free_bytes; /* free 0: the backend cannot tell */
    uint64_t max_alloc_bytes;                 /* of one mem_alloc */
    uint32_t compute_units, lanes;            /* lanes that run in lock step (warp, sub-group); 1: unknown */
    uint32_t max_group;                       /* work-items of a group */
    uint32_t local_bytes;                     /* shared memory of a group */
    bool same_silicon;                        /* the "device" is this host's CPU: no memory or bandwidth of its own */
    bool shared_memory;                       /* integrated: host memory is its memory */
} yk_gpu_info;

typedef struct yk_gpu_mem {
    void *handle; /* NULL: no memory */
    uint64_t offset, bytes;
} yk_gpu_mem;

typedef enum yk_gpu_stream_kind { YK_STREAM_COMPUTE, YK_STREAM_TO_DEVICE, YK_STREAM_TO_HOST } yk_gpu_stream_kind;

typedef struct yk_gpu_arg {
    enum { YK_ARG_MEM, YK_ARG_U32, YK_ARG_F32 } kind;
    union {
        yk_gpu_mem mem;
        uint32_t u32;
        float f32;
    };
} yk_gpu_arg;

enum { YK_GPU_MAX_ARGS = 32, YK_GPU_MAILBOXES = 64 };

typedef struct yk_gpu_launch {
    yk_gpu_kernel *kernel;
    uint32_t groups[3], group_size; /* group_size work-items in one dimension */
    const yk_gpu_arg *args;
    uint32_t n_args;
    uint64_t cost_bytes, cost_flops; /* what it reads and computes: for the null device's clock and for traces */
} yk_gpu_launch;

typedef struct yk_device_table {
    uint32_t abi, size; /* YK_DEVICE_ABI, sizeof the table the module was built with */
    char backend[16];   /* "opencl", "cuda", "null" */

    const char *(*last_error)(void); /* of this thread; static storage of the module */
    uint32_t (*count)(void);         /* devices of the backend, found when the module was opened */
    yk_status (*info)(uint32_t index, yk_gpu_info *out);

    yk_status (*open)(yk_gpu **out, uint32_t index, uint64_t budget_bytes);
    /* Waits for mailboxes end as if posted, work under way is finished, then everything that belongs to the device is freed
     * with it. */
    void (*close)(yk_gpu *gpu);
    void (*module_close)(void);

    /* Device memory of a class, counted against the budget. */
    yk_status (*mem_alloc)(yk_gpu *gpu, yk_mem_class cls, uint64_t bytes, yk_gpu_mem *out);
    void (*mem_free)(yk_gpu *gpu, yk_mem_class cls, yk_gpu_mem *mem);
    /* Bytes in use by class; YK_MEM_RUNTIME includes what the driver took when the device was opened, where that can be
     * measured. */
    void (*mem_used)(const yk_gpu *gpu, uint64_t used[YK_MEM_N_CLASSES], uint64_t *budget);
    /* Page-locked host memory; or lock memory that exists. YK_ERR_MEMORY: refused, copies then work from pageable memory. */
    yk_status (*host_alloc)(yk_gpu *gpu, uint64_t bytes, void **out);
    void (*host_free)(yk_gpu *gpu, void *p);
    yk_status (*host_register)(yk_gpu *gpu, void *p, uint64_t bytes);
    void (*host_unregister)(yk_gpu *gpu, void *p);

    yk_status (*stream_open)(yk_gpu *gpu, yk_gpu_stream_kind kind, yk_gpu_stream **out);
    void (*stream_close)(yk_gpu_stream *stream);      /* as close, for one stream: its own mailbox waits end */
    yk_status (*stream_flush)(yk_gpu_stream *stream); /* hand what is enqueued to the device now */
    yk_status (*stream_sync)(yk_gpu_stream *stream);  /* host waits; also reports asynchronous failures */

    yk_status (*event_open)(yk_gpu *gpu, yk_gpu_event **out);
    void (*event_close)(yk_gpu_event *event);
    yk_status (*event_record)(yk_gpu_stream *stream, yk_gpu_event *event);
    /* Enqueued: the stream waits for the last record made before this call; an event never recorded holds nothing. */
    yk_status (*event_wait)(yk_gpu_stream *stream, yk_gpu_event *event);
    /* Device time the event was reached, ns of the host's monotonic clock (converted); after stream_sync. */
    yk_status (*event_time)(yk_gpu_event *event, uint64_t *ns);

    /* Enqueued copies; host memory must stay as it is until they are done. */
    yk_status (*copy_to_device)(yk_gpu_stream *stream, yk_gpu_mem to, const void *from, uint64_t bytes);
    yk_status (*copy_to_host)(yk_gpu_stream *stream, void *to, yk_gpu_mem from, uint64_t bytes);
    yk_status (*copy_device)(yk_gpu_stream *stream, yk_gpu_mem to, yk_gpu_mem from, uint64_t bytes);
    yk_status (*fill)(yk_gpu_stream *stream, yk_gpu_mem mem, uint8_t byte, uint64_t bytes);

    /* A kernel of gpu/kernels by name, for example "matvec_q4_0"; compiled when first asked for; owned by the device. */
    yk_status (*kernel_get)(yk_gpu *gpu, const char *name, yk_gpu_kernel **out);
    /* YK_ERR_USAGE when number or kinds of arguments are not the kernel's; groups of which one number is 0 are no work and no
     * failure. */
    yk_status (*launch)(yk_gpu_stream *stream, const yk_gpu_launch *launch);

    /* Mailbox `box` < YK_GPU_MAILBOXES: values only grow. signal/wait are enqueued; post/value are for the host, any thread. */
    yk_status (*box_signal)(yk_gpu_stream *stream, uint32_t box, uint32_t value);
    yk_status (*box_wait)(yk_gpu_stream *stream, uint32_t box, uint32_t value);
    yk_status (*box_post)(yk_gpu *gpu, uint32_t box, uint32_t value);
    yk_status (*box_value)(yk_gpu *gpu, uint32_t box, uint32_t *value); /* highest value signalled so far; never blocks */
} yk_device_table;

typedef yk_status (*yk_module_open_fn)(uint32_t abi, const yk_host_calls *host, yk_device_table *out);

#endif
