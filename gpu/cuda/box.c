/* box.c - mailboxes.
 *
 * Signal: each stream has a row of words, one a box, in page-locked memory of the host; the stream writes the value there (a stream memory
 * operation) and box_value takes the largest of a box. Rows are of slots and outlive their streams: values only grow.
 *
 * Wait: each stream has one more word, its ticket. Wait number t of a stream holds it until the word has reached t, and the host, which keeps
 * what the waits are for, raises it past all that are satisfied. So the driver's comparison, which is cyclic, sees differences
 * of a few only, closing a stream can end its waits, and a wait whose value is there already costs nothing.
 *
 * A driver gives more than eight streams of a context the same hardware queues (CUDA_DEVICE_MAX_CONNECTIONS), and a stream that is held then holds
 * others: the engine has five, and a host program with many of its own sets that variable or YOKE_CUDA_HOLD.
 *
 * Where the driver has no stream memory operations (or the module was opened with option "hold"), a signal is a host function that stores
 * the value, and a wait keeps what follows it on the stream from the driver until it is over: yk_cu_submit. Neither can block a thread of
 * the driver, and no kernel spins; what it costs is that the commands behind a wait are given to the driver when it is over. */
#include "gpu/cuda/internal.h"

enum { N_SIGNALS = YK_CU_STREAMS * YK_GPU_MAILBOXES, WORD_BYTES = (N_SIGNALS + YK_CU_STREAMS * YK_CU_TICKET_WORDS) * 4 };

static _Atomic uint32_t *signal_word(const yk_gpu *g, uint32_t slot, uint32_t box)
{
    return g->words + slot * YK_GPU_MAILBOXES + box;
}

static uint32_t ticket_index(uint32_t slot)
{
    return N_SIGNALS + slot * YK_CU_TICKET_WORDS;
}

/* Both operations on the own stream, satisfied at once; context current. */
static bool mem_ops_work(yk_gpu *g)
{
    const uint32_t last = ticket_index(YK_CU_STREAMS - 1) + YK_CU_TICKET_WORDS - 1; /* a word that is nobody's */
    const CUdeviceptr at = g->words_on_device + 4ull * last;
    return yk_cu.cuStreamWriteValue32(g->own->stream, at, 1, CU_STREAM_WRITE_VALUE_DEFAULT) == CUDA_SUCCESS &&
           yk_cu.cuStreamWaitValue32(g->own->stream, at, 1, CU_STREAM_WAIT_VALUE_GEQ) == CUDA_SUCCESS &&
           yk_cu.cuStreamSynchronize(g->own->stream) == CUDA_SUCCESS && atomic_load(&g->words[last]) == 1;
}

yk_status yk_cu_boxes_open(yk_gpu *g, bool hold)
{
    g->last_signal = yk_module_host->alloc(YK_CU_STREAMS * sizeof *g->last_signal);
    if (!g->last_signal)
        return yk_module_out_of_memory(YK_CU_STREAMS * sizeof *g->last_signal, "mailboxes");
    void *p = NULL;
    if (!hold && yk_cu.cuStreamWriteValue32 && yk_cu.cuStreamWaitValue32 && yk_cu_enter(g) == CUDA_SUCCESS) {
        if (yk_cu.cuMemHostAlloc(&p, WORD_BYTES, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP) == CUDA_SUCCESS) {
            g->words_pinned = true;
            g->words = p;
            memset(p, 0, WORD_BYTES);
            g->mem_ops = yk_cu.cuMemHostGetDevicePointer(&g->words_on_device, p, 0) == CUDA_SUCCESS && mem_ops_work(g);
        }
        yk_cu_leave();
    }
    if (!g->words)
        g->words = yk_module_host->alloc(WORD_BYTES);
    if (!g->words)
        return yk_module_out_of_memory(WORD_BYTES, "mailboxes");
    if (!g->mem_ops && !hold)
        yk_module_host->log(YK_LOG_INFO, "cuda: the driver has no stream memory operations; mailboxes go through the host");
    return YK_OK;
}

void yk_cu_boxes_close(yk_gpu *g)
{
    if (!g->words_pinned) {
        yk_module_host->free((void *)g->words);
    } else if (yk_cu_enter(g) == CUDA_SUCCESS) {
        yk_cu.cuMemFreeHost((void *)g->words);
        yk_cu_leave();
    }
    yk_module_host->free(g->last_signal);
    g->words = NULL;
    g->last_signal = NULL;
}

void yk_cu_boxes_release(yk_gpu *g)
{
    for (yk_gpu_stream *s = g->streams; s; s = s->next) {
        const uint32_t before = s->released;
        while (s->released != s->tickets) {
            const yk_cu_pending *w = &s->waits[s->released & (s->n_ring - 1)];
            if (!s->ending && g->posted[w->box] < w->value)
                break;
            s->released++;
            g->n_unsatisfied--;
        }
        if (s->released != before)
            atomic_store_explicit(&g->words[ticket_index(s->slot)], s->released, memory_order_release);
    }
    if (!g->n_unsatisfied)
        for (yk_gpu_stream *s = g->streams; s; s = s->next)
            s->behind = 0;
}

/* Room for one more wait in the ring of a stream. */
static yk_status grow_ring(yk_gpu_stream *s)
{
    if (s->n_ring && s->tickets - s->released < s->n_ring)
        return YK_OK;
    const uint32_t n = s->n_ring ? 2 * s->n_ring : 64;
    yk_cu_pending *ring = yk_module_host->alloc((size_t)n * sizeof *ring);
    if (!ring)
        return yk_module_out_of_memory((uint64_t)n * sizeof *ring, "a mailbox wait");
    for (uint32_t t = s->released; t != s->tickets; t++)
        ring[t & (n - 1)] = s->waits[t & (s->n_ring - 1)];
    yk_module_host->free(s->waits);
    s->waits = ring;
    s->n_ring = n;
    return YK_OK;
}

yk_status yk_cu_issue_box_wait(yk_gpu_stream *s, uint32_t box, uint32_t value)
{
    yk_gpu *g = s->gpu;
    if (g->posted[box] >= value || s->ending || !g->mem_ops) /* without memory operations it was held until now */
        return YK_OK;
    const yk_status st = grow_ring(s);
    if (st != YK_OK)
        return st;
    const CUdeviceptr at = g->words_on_device + 4ull * ticket_index(s->slot);
    const CUresult e = yk_cu.cuStreamWaitValue32(s->stream, at, s->tickets + 1, CU_STREAM_WAIT_VALUE_GEQ);
    if (e != CUDA_SUCCESS)
        return yk_cu_fail(e, "cuStreamWaitValue32");
    s->waits[s->tickets++ & (s->n_ring - 1)] = (yk_cu_pending){.box = box, .value = value};
    g->n_unsatisfied++;
    return YK_OK;
}

yk_status yk_cu_issue_signal(yk_gpu_stream *s, uint32_t box, uint32_t value)
{
    yk_gpu *g = s->gpu;
    if (value <= g->last_signal[s->slot][box]) /* the stream is in order: the larger one comes first */
        return YK_OK;
    if (g->mem_ops) {
        const CUdeviceptr at = g->words_on_device + 4ull * (s->slot * YK_GPU_MAILBOXES + box);
        const CUresult e = yk_cu.cuStreamWriteValue32(s->stream, at, value, CU_STREAM_WRITE_VALUE_DEFAULT);
        if (e != CUDA_SUCCESS)
            return yk_cu_fail(e, "cuStreamWriteValue32");
    } else {
        const yk_status st = yk_cu_issue_job(s, &(yk_cu_job){.word = signal_word(g, s->slot, box), .value = value});
        if (st != YK_OK)
            return st;
    }
    g->last_signal[s->slot][box] = value;
    atomic_fetch_or(&g->signallers[box], 1ull << s->slot);
    return YK_OK;
}

static yk_status check_box(uint32_t box)
{
    return box < YK_GPU_MAILBOXES
               ? YK_OK
               : yk_module_fail(YK_ERR_USAGE, "mailbox %u does not exist, there are %d", box, YK_GPU_MAILBOXES);
}

yk_status yk_cu_box_signal(yk_gpu_stream *s, uint32_t box, uint32_t value)
{
    const yk_status st = check_box(box);
    return st == YK_OK ? yk_cu_submit(s, &(yk_cu_cmd){.op = YK_CU_SIGNAL, .box = box, .value = value}) : st;
}

yk_status yk_cu_box_wait(yk_gpu_stream *s, uint32_t box, uint32_t value)
{
    const yk_status st = check_box(box);
    return st == YK_OK ? yk_cu_submit(s, &(yk_cu_cmd){.op = YK_CU_BOX_WAIT, .box = box, .value = value}) : st;
}

yk_status yk_cu_box_post(yk_gpu *g, uint32_t box, uint32_t value)
{
    const yk_status st = check_box(box);
    if (st != YK_OK)
        return st;
    CUresult e = CUDA_SUCCESS;
    pthread_mutex_lock(&g->lock);
    if (g->posted[box] < value)
        g->posted[box] = value;
    yk_cu_boxes_release(g);
    if (g->n_held && (e = yk_cu_enter(g)) == CUDA_SUCCESS) {
        yk_cu_pump(g);
        yk_cu_leave();
    }
    pthread_mutex_unlock(&g->lock);
    return e == CUDA_SUCCESS ? YK_OK : yk_cu_fail(e, "cuCtxPushCurrent");
}

/* Work that failed never signals: now and then the streams are asked. Lock held. */
static CUresult look(const yk_gpu *g)
{
    CUresult e = yk_cu_enter(g);
    if (e != CUDA_SUCCESS)
        return e;
    for (const yk_gpu_stream *s = g->streams; s && (e == CUDA_SUCCESS || e == CUDA_ERROR_NOT_READY); s = s->next)
        e = yk_cu.cuStreamQuery(s->stream);
    yk_cu_leave();
    return e == CUDA_ERROR_NOT_READY ? CUDA_SUCCESS : e;
}

yk_status yk_cu_box_value(yk_gpu *g, uint32_t box, uint32_t *value)
{
    enum { LOOK = 4096 }; /* polls */
    const yk_status st = check_box(box);
    if (st != YK_OK)
        return st;
    *value = 0;
    for (uint64_t m = atomic_load_explicit(&g->signallers[box], memory_order_acquire); m; m &= m - 1) {
        const uint32_t v = atomic_load_explicit(signal_word(g, (uint32_t)__builtin_ctzll(m), box), memory_order_acquire);
        *value = v > *value ? v : *value;
    }
    if (atomic_load_explicit(&g->n_failed, memory_order_relaxed)) {
        pthread_mutex_lock(&g->lock);
        for (const yk_gpu_stream *s = g->streams; s; s = s->next)
            if (s->failed != YK_OK) {
                const yk_status failed = yk_module_fail(s->failed, "%s", s->failed_line);
                pthread_mutex_unlock(&g->lock);
                return failed;
            }
        pthread_mutex_unlock(&g->lock);
    }
    if (atomic_fetch_add_explicit(&g->polls, 1, memory_order_relaxed) % LOOK != LOOK - 1 ||
        pthread_mutex_trylock(&g->lock) != 0)
        return YK_OK;
    const CUresult e = look(g);
    pthread_mutex_unlock(&g->lock);
    return e == CUDA_SUCCESS ? YK_OK : yk_cu_fail(e, "work before a mailbox signal");
}
