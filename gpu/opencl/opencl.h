/* opencl.h - the OpenCL backend: any vendor's devices, through OpenCL 1.2. */
#ifndef YK_GPU_OPENCL_H
#define YK_GPU_OPENCL_H

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <pthread.h>

#include "gpu/module.h"

/* "CL_OUT_OF_RESOURCES" and the like. */
const char *yk_cl_error_name(cl_int e);
/* YK_ERR_MEMORY for failed allocations, else YK_ERR_RUNTIME; the line is "what: CL_...". */
yk_status yk_cl_fail(cl_int e, const char *what);

typedef struct yk_cl_mem {
    struct yk_cl_mem *next;
    cl_mem mem;
    uint64_t bytes;
    yk_mem_class cls;
} yk_cl_mem;

typedef struct yk_cl_pinned {
    struct yk_cl_pinned *next;
    cl_mem mem;
    void *data;
} yk_cl_pinned;

struct yk_gpu_event {
    struct yk_gpu_event *next;
    struct yk_gpu *gpu;
    cl_event event; /* marker of the last record, or NULL */
};

struct yk_gpu_stream {
    struct yk_gpu_stream *next;
    struct yk_gpu *gpu;
    cl_command_queue queue;
};

struct yk_gpu_kernel {
    cl_kernel kernel; /* NULL until it is asked for */
    const char *name, *kinds;
};

/* A mailbox operation under way: a marker that has not been seen complete, or a user event that holds a stream. */
typedef struct yk_cl_box_op {
    struct yk_cl_box_op *next;
    cl_event event;
    uint32_t box, value;
    const struct yk_gpu_stream *stream;
} yk_cl_box_op;

struct yk_gpu {
    cl_device_id device;
    cl_context context;
    cl_command_queue queue; /* for what is done at once */
    cl_program *programs;   /* by text */
    struct yk_gpu_kernel *kernels;
    yk_module_budget budget;
    uint64_t max_alloc;
    int64_t clock_offset; /* host clock - device clock, ns */
    bool exact_division;  /* the compiler takes the option for correctly rounded division */
    bool is_cpu;
    yk_cl_mem *mems;
    yk_cl_pinned *pinned;
    struct yk_gpu_stream *streams;
    struct yk_gpu_event *events;
    pthread_mutex_t box_lock; /* all below */
    uint32_t posted[YK_GPU_MAILBOXES], signalled[YK_GPU_MAILBOXES];
    yk_cl_box_op *signals, *waits, *spare;
};

/* program.c */
uint32_t yk_cl_n_kernels(void);
uint32_t yk_cl_n_texts(void);
void yk_cl_kernel_names(struct yk_gpu_kernel *kernels);
yk_status yk_cl_kernel_get(yk_gpu *gpu, const char *name, yk_gpu_kernel **out);
yk_status yk_cl_launch(yk_gpu_stream *stream, const yk_gpu_launch *launch);

/* memory.c */
yk_status yk_cl_mem_alloc(yk_gpu *gpu, yk_mem_class cls, uint64_t bytes, yk_gpu_mem *out);
void yk_cl_mem_free(yk_gpu *gpu, yk_mem_class cls, yk_gpu_mem *mem);
void yk_cl_mem_used(const yk_gpu *gpu, uint64_t used[YK_MEM_N_CLASSES], uint64_t *budget);
yk_status yk_cl_host_alloc(yk_gpu *gpu, uint64_t bytes, void **out);
void yk_cl_host_free(yk_gpu *gpu, void *p);
yk_status yk_cl_host_register(yk_gpu *gpu, void *p, uint64_t bytes);
void yk_cl_host_unregister(yk_gpu *gpu, void *p);
yk_status yk_cl_copy_to_device(yk_gpu_stream *stream, yk_gpu_mem to, const void *from, uint64_t bytes);
yk_status yk_cl_copy_to_host(yk_gpu_stream *stream, void *to, yk_gpu_mem from, uint64_t bytes);
yk_status yk_cl_copy_device(yk_gpu_stream *stream, yk_gpu_mem to, yk_gpu_mem from, uint64_t bytes);
yk_status yk_cl_fill(yk_gpu_stream *stream, yk_gpu_mem mem, uint8_t byte, uint64_t bytes);
void yk_cl_memory_close(yk_gpu *gpu);

/* stream.c */
yk_status yk_cl_stream_open(yk_gpu *gpu, yk_gpu_stream_kind kind, yk_gpu_stream **out);
void yk_cl_stream_close(yk_gpu_stream *stream);
yk_status yk_cl_stream_flush(yk_gpu_stream *stream);
yk_status yk_cl_stream_sync(yk_gpu_stream *stream);
yk_status yk_cl_event_open(yk_gpu *gpu, yk_gpu_event **out);
void yk_cl_event_close(yk_gpu_event *event);
yk_status yk_cl_event_record(yk_gpu_stream *stream, yk_gpu_event *event);
yk_status yk_cl_event_wait(yk_gpu_stream *stream, yk_gpu_event *event);
yk_status yk_cl_event_time(yk_gpu_event *event, uint64_t *ns);
yk_status yk_cl_box_signal(yk_gpu_stream *stream, uint32_t box, uint32_t value);
yk_status yk_cl_box_wait(yk_gpu_stream *stream, uint32_t box, uint32_t value);
yk_status yk_cl_box_post(yk_gpu *gpu, uint32_t box, uint32_t value);
yk_status yk_cl_box_value(yk_gpu *gpu, uint32_t box, uint32_t *value);
yk_status yk_cl_clock_measure(yk_gpu *gpu);
/* Waits end, streams are drained and gone. */
void yk_cl_streams_close(yk_gpu *gpu);

#endif
