/* fake.h - a libcuda.so.1 without hardware, for tests of gpu/cuda: the driver calls it uses, on host memory, as strict and as blocking as the
 * real ones are where that matters:
 *   - a call needs a current context, handles must be alive;
 *   - copies of pageable memory wait for the stream in the middle of the call, freeing waits for all of the device;
 *   - a stream's queue is finite: a call waits there for room;
 *   - kernels are executed: the texts of gpu/kernels in their host form, those that only CUDA has in the emulator (gpu/cuda/emu).
 *
 * Environment variable FAKE_CUDA: words separated by commas
 *   driver=N     version the driver says it supports (13000)    devices=N   number of devices (1)      init=N    result of cuInit (0)
 *   sm=N         compute capability (80)                         memory=N    bytes of a device (4 GiB)
 *   noops        stream memory operations are refused            queue=N     commands of a stream (1000)
 *   fail=N       the N-th allocation of any kind is refused      failpin     host memory cannot be locked when it exists
 *   lost=N       the N-th launch makes the context fail          runtime=N   bytes that loading a module takes of the device
 */
#ifndef YK_TESTS_FAKE_H
#define YK_TESTS_FAKE_H

#include <cuda.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct fake_settings {
    uint64_t driver, devices, init, sm, memory, noops, queue, fail, failpin, lost, runtime;
} fake_settings;

/* A piece of memory: of the device, or page-locked of the host. */
typedef struct fake_range {
    struct fake_range *next;
    uintptr_t at;
    uint64_t bytes;
    enum { FAKE_DEVICE, FAKE_HOST, FAKE_REGISTERED } kind;
} fake_range;

enum fake_op { FAKE_COPY, FAKE_SET, FAKE_LAUNCH, FAKE_RECORD, FAKE_WAIT, FAKE_HOSTFN, FAKE_WRITE32, FAKE_WAIT32 };

enum { FAKE_ARGS = 32 };

typedef struct fake_cmd {
    struct fake_cmd *next;
    enum fake_op op;
    uint8_t *to;
    const uint8_t *from;
    uint64_t bytes;
    uint8_t byte;
    CUevent event;
    uint64_t number;
    CUhostFn fn;
    void *user;
    _Atomic uint32_t *word;
    uint32_t value;
    uint32_t kernel, groups[3];
    uint64_t values[2 * FAKE_ARGS];
} fake_cmd;

struct CUevent_st {
    struct CUevent_st *next;
    uint64_t recorded, done, ns; /* numbers of records */
    uint32_t pending;            /* commands that mean it */
    bool timed, destroyed;
};

struct CUstream_st {
    struct CUstream_st *next;
    pthread_t thread;
    fake_cmd *head, **tail;
    uint64_t n;
    bool quit;
};

struct CUmod_st {
    uint64_t bytes;
};

struct CUfunc_st {
    uint32_t index;
};

extern fake_settings fake;
extern pthread_mutex_t fake_lock; /* all below, and what streams and events say */
extern pthread_cond_t fake_changed;
extern struct CUstream_st *fake_streams;
extern struct CUevent_st *fake_events;
extern CUresult fake_sticky; /* of the context */
extern uint64_t fake_taken;  /* bytes of the device */

/* Settings as FAKE_CUDA has them; counting begins anew. For tests, by dlsym. */
void fake_cuda_set(const char *settings);

/* The first thing of each call: a result that ends it, or CUDA_SUCCESS. */
CUresult fake_call(void);
bool fake_alloc_fails(void);
bool fake_range_add(void *p, uint64_t bytes, int kind);
/* Removes the range that begins at p and is of that kind; false: there is none. */
bool fake_range_remove(const void *p, int kind, uint64_t *bytes);
/* All bytes lie in one range of the device, or (host) of page-locked memory. */
bool fake_inside(const void *p, uint64_t bytes, bool host);

bool fake_stream_is(CUstream s);
bool fake_event_is(CUevent e);
/* Frees the event when it is destroyed and no command means it; lock held. */
void fake_event_drop(CUevent e);
/* At the end of the stream's queue, when there is room. */
CUresult fake_enqueue(CUstream s, const fake_cmd *c);
void fake_stream_drain(CUstream s);
void fake_device_drain(void);

/* kernels.c of the null device */
uint32_t fake_kernel_find(const char *name); /* UINT32_MAX: none */
uint32_t fake_kernel_threads(uint32_t kernel);
const char *fake_kernel_name(uint32_t kernel);
/* Name of the kernel launched last. For tests, by dlsym. */
const char *fake_cuda_launched(void);
/* Argument i of the parameters as values; the number of them. */
void fake_kernel_pack(uint32_t kernel, void *const *params, uint64_t *values);
void fake_kernel_run(const fake_cmd *c);

#endif
