#include "src/model/gguf_write.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* Small enough to stay in the L2 cache between being made and being copied to the page cache. */
enum { CHUNK_BYTES = 512 * 1024, DEFAULT_ALIGNMENT = 32 };

/* ---- keys and tensor table ---- */

static void remember(yk_gguf_writer *w, const yk_error *e)
{
    if (w->failure.status == YK_OK)
        w->failure = *e;
}

static void append(yk_gguf_writer *w, yk_gguf_buf *b, const void *bytes, size_t n)
{
    yk_error e = {0};
    size_t want;
    if (__builtin_add_overflow(b->n, n, &want) || want > SIZE_MAX / 2) {
        yk_fail(&e, YK_ERR_USAGE, "GGUF header: too large");
        remember(w, &e);
        return;
    }
    if (want > b->cap) {
        const size_t cap = want + want / 2 + 4096;
        uint8_t *p = yk_realloc(YK_MEM_RUNTIME, b->p, cap, 1);
        if (!p) {
            yk_fail_memory(&e, cap, "GGUF header");
            remember(w, &e);
            return;
        }
        b->p = p;
        b->cap = cap;
    }
    if (n > 0)
        memcpy(b->p + b->n, bytes, n);
    b->n = want;
}

static void append_u32(yk_gguf_writer *w, yk_gguf_buf *b, uint32_t v)
{
    append(w, b, &v, sizeof v);
}
static void append_u64(yk_gguf_writer *w, yk_gguf_buf *b, uint64_t v)
{
    append(w, b, &v, sizeof v);
}
static void append_str(yk_gguf_writer *w, yk_gguf_buf *b, const char *s, size_t n)
{
    append_u64(w, b, n);
    append(w, b, s, n);
}

static void put_key(yk_gguf_writer *w, const char *key, yk_gguf_type type)
{
    append_str(w, &w->keys, key, strlen(key));
    append_u32(w, &w->keys, (uint32_t)type);
    w->n_kvs++;
}

void yk_gguf_writer_init(yk_gguf_writer *w, uint32_t alignment)
{
    *w = (yk_gguf_writer){.alignment = alignment};
    if (alignment < 8 || alignment > 65536 || (alignment & (alignment - 1)) != 0)
        yk_fail(&w->failure, YK_ERR_USAGE, "GGUF alignment %" PRIu32 " is no power of two from 8 to 65536", alignment);
    if (alignment != DEFAULT_ALIGNMENT)
        yk_gguf_put_u32(w, "general.alignment", alignment);
}

void yk_gguf_writer_close(yk_gguf_writer *w)
{
    yk_free(w->keys.p);
    yk_free(w->table.p);
    yk_free(w->tensors);
    *w = (yk_gguf_writer){0};
}

void yk_gguf_put_u32(yk_gguf_writer *w, const char *key, uint32_t value)
{
    put_key(w, key, YK_GGUF_U32);
    append_u32(w, &w->keys, value);
}

void yk_gguf_put_f32(yk_gguf_writer *w, const char *key, float value)
{
    put_key(w, key, YK_GGUF_F32);
    append(w, &w->keys, &value, sizeof value);
}

void yk_gguf_put_bool(yk_gguf_writer *w, const char *key, bool value)
{
    const uint8_t byte = value;
    put_key(w, key, YK_GGUF_BOOL);
    append(w, &w->keys, &byte, 1);
}

void yk_gguf_put_str(yk_gguf_writer *w, const char *key, const char *value)
{
    put_key(w, key, YK_GGUF_STR);
    append_str(w, &w->keys, value, strlen(value));
}

void yk_gguf_put_array(yk_gguf_writer *w, const char *key, yk_gguf_type elem_type, uint64_t n)
{
    put_key(w, key, YK_GGUF_ARR);
    append_u32(w, &w->keys, (uint32_t)elem_type);
    append_u64(w, &w->keys, n);
}

void yk_gguf_elem(yk_gguf_writer *w, const void *bytes, size_t n)
{
    append(w, &w->keys, bytes, n);
}
void yk_gguf_elem_str(yk_gguf_writer *w, const char *s, size_t n)
{
    append_str(w, &w->keys, s, n);
}

static size_t value_bytes(yk_gguf_type type)
{
    switch (type) {
    case YK_GGUF_U8:
    case YK_GGUF_I8:
    case YK_GGUF_BOOL:
        return 1;
    case YK_GGUF_U16:
    case YK_GGUF_I16:
        return 2;
    case YK_GGUF_U64:
    case YK_GGUF_I64:
    case YK_GGUF_F64:
        return 8;
    default:
        return 4;
    }
}

void yk_gguf_put_copy(yk_gguf_writer *w, const yk_gguf_kv *kv)
{
    if (kv->type == YK_GGUF_ARR)
        yk_gguf_put_array(w, kv->key, kv->elem_type, kv->n);
    else
        put_key(w, kv->key, kv->type);
    if (kv->elem_type != YK_GGUF_STR) {
        append(w, &w->keys, kv->data, kv->n * value_bytes(kv->elem_type)); /* the reader has checked this product */
        return;
    }
    for (uint64_t i = 0; i < kv->n; i++) {
        const uint8_t *p = kv->strs ? kv->strs[i] : kv->data;
        uint64_t n;
        memcpy(&n, p, sizeof n);
        append_str(w, &w->keys, (const char *)p + sizeof n, n);
    }
}

static bool reserve_tensor(yk_gguf_writer *w)
{
    if (w->n_tensors < w->cap_tensors)
        return true;
    const uint32_t cap = w->cap_tensors ? 2 * w->cap_tensors : 256;
    yk_gguf_out_tensor *t = yk_realloc(YK_MEM_RUNTIME, w->tensors, cap, sizeof *t);
    if (!t) {
        yk_error e = {0};
        yk_fail_memory(&e, cap * sizeof *t, "GGUF tensor table");
        remember(w, &e);
        return false;
    }
    w->tensors = t;
    w->cap_tensors = cap;
    return true;
}

void yk_gguf_add_tensor(yk_gguf_writer *w, const char *name, yk_type type, uint32_t n_dims, const uint64_t *ne)
{
    yk_error e = {0};
    yk_gguf_out_tensor t = {.type = type, .n_rows = 1, .offset = w->data_bytes};
    bool ok = n_dims >= 1 && n_dims <= 4 && ne[0] > 0 && yk_type_row_bytes(type, ne[0], &t.row_bytes);
    for (uint32_t d = 1; ok && d < n_dims; d++)
        ok = ne[d] > 0 && yk_mul_u64(t.n_rows, ne[d], &t.n_rows);
    uint64_t end = 0;
    ok = ok && yk_mul_u64(t.n_rows, t.row_bytes, &t.n_bytes) && yk_add_u64(t.offset, t.n_bytes, &end) &&
         end <= (uint64_t)INT64_MAX - w->alignment;
    if (!ok) {
        const yk_type_traits *tr = yk_type_get((uint32_t)type);
        yk_fail(&e, YK_ERR_USAGE, "GGUF tensor %.200s: rows of %" PRIu64 " elements cannot be stored as %s, or it is too large",
                name, n_dims ? ne[0] : 0, tr ? tr->name : "an unknown type");
        remember(w, &e);
        return;
    }
    if (!reserve_tensor(w))
        return;
    w->tensors[w->n_tensors++] = t;
    w->data_bytes = (end + w->alignment - 1) / w->alignment * w->alignment;
    append_str(w, &w->table, name, strlen(name));
    append_u32(w, &w->table, n_dims);
    append(w, &w->table, ne, n_dims * sizeof *ne);
    append_u32(w, &w->table, (uint32_t)type);
    append_u64(w, &w->table, t.offset);
}

static uint64_t header_bytes(const yk_gguf_writer *w)
{
    const uint64_t n = 24 + (uint64_t)w->keys.n + w->table.n;
    return (n + w->alignment - 1) / w->alignment * w->alignment;
}

uint64_t yk_gguf_writer_file_bytes(const yk_gguf_writer *w)
{
    return header_bytes(w) + w->data_bytes;
}

/* ---- data ---- */

typedef struct saver {
    const yk_gguf_writer *w;
    const yk_gguf_save_opts *opts;
    const char *path;
    int fd;
    uint64_t data_start, n_chunks;
    uint64_t *first_chunk; /* [n_tensors + 1] */
    _Atomic(uint64_t) next, done_bytes;
    atomic_bool stop;
    pthread_mutex_t lock; /* for failure */
    yk_error failure;
} saver;

typedef struct saver_thread {
    saver *s;
    uint32_t index;
    uint8_t *buf;
} saver_thread;

static uint64_t rows_per_chunk(const yk_gguf_out_tensor *t)
{
    return t->row_bytes >= CHUNK_BYTES ? 1 : CHUNK_BYTES / t->row_bytes;
}

static yk_status write_at(int fd, const uint8_t *p, uint64_t n, uint64_t offset, const char *path, yk_error *err)
{
    while (n > 0) {
        const ssize_t r = pwrite(fd, p, n, (off_t)offset);
        if (r < 0 && errno == EINTR)
            continue;
        YK_FAIL_IF(r < 0, err, YK_ERR_RUNTIME, "%s: cannot be written at offset %" PRIu64 ": %s", path, offset,
                   strerror(errno));
        YK_FAIL_IF(r == 0, err, YK_ERR_RUNTIME, "%s: cannot be written at offset %" PRIu64 ": the file does not grow", path,
                   offset);
        p += r;
        n -= (uint64_t)r;
        offset += (uint64_t)r;
    }
    return YK_OK;
}

/* Tensor that a chunk belongs to: the last one whose first chunk is not above it. */
static uint32_t chunk_tensor(const saver *s, uint64_t chunk)
{
    uint32_t lo = 0, hi = s->w->n_tensors;
    while (hi - lo > 1) {
        const uint32_t mid = lo + (hi - lo) / 2;
        if (s->first_chunk[mid] <= chunk)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

static yk_status save_chunk(saver_thread *th, uint64_t chunk, yk_error *err)
{
    saver *s = th->s;
    const uint32_t i = chunk_tensor(s, chunk);
    const yk_gguf_out_tensor *t = &s->w->tensors[i];
    const uint64_t per_chunk = rows_per_chunk(t), first = (chunk - s->first_chunk[i]) * per_chunk;
    const uint64_t n = t->n_rows - first < per_chunk ? t->n_rows - first : per_chunk;
    YK_TRY(s->opts->fill(s->opts->fill_user, th->index, i, first, n, th->buf, err));
    YK_TRY(write_at(s->fd, th->buf, n * t->row_bytes, s->data_start + t->offset + first * t->row_bytes, s->path, err));
    atomic_fetch_add(&s->done_bytes, n * t->row_bytes);
    return YK_OK;
}

static void save_chunks(saver_thread *th)
{
    saver *s = th->s;
    yk_error e = {0};
    yk_status st = YK_OK;
    while (st == YK_OK && !atomic_load(&s->stop)) {
        const uint64_t chunk = atomic_fetch_add(&s->next, 1);
        if (chunk >= s->n_chunks)
            break;
        st = save_chunk(th, chunk, &e);
        if (st == YK_OK && th->index == 0 && s->opts->progress &&
            !s->opts->progress(s->opts->progress_user, s->opts->what, atomic_load(&s->done_bytes), s->w->data_bytes))
            st = yk_fail(&e, YK_ERR_CANCELLED, "%s: cancelled; nothing was written", s->path);
    }
    if (st != YK_OK) {
        atomic_store(&s->stop, true);
        pthread_mutex_lock(&s->lock);
        if (s->failure.status == YK_OK)
            s->failure = e;
        pthread_mutex_unlock(&s->lock);
    }
}

static void *thread_main(void *arg)
{
    save_chunks(arg);
    return NULL;
}

/* All chunks, by up to n_threads threads. A thread that cannot be started is done without. */
static yk_status save_data(saver *s, yk_error *err)
{
    saver_thread th[YK_GGUF_MAX_THREADS] = {0};
    pthread_t ids[YK_GGUF_MAX_THREADS];
    uint64_t buf_bytes = CHUNK_BYTES;
    for (uint32_t i = 0; i < s->w->n_tensors; i++)
        buf_bytes = s->w->tensors[i].row_bytes > buf_bytes ? s->w->tensors[i].row_bytes : buf_bytes;
    uint32_t n = s->opts->n_threads, n_started = 1;
    n = n < 1 ? 1 : n > YK_GGUF_MAX_THREADS ? YK_GGUF_MAX_THREADS : n;
    for (uint32_t i = 0; i < n; i++) {
        th[i] = (saver_thread){.s = s, .index = i, .buf = yk_alloc(YK_MEM_STAGING, buf_bytes, 1)};
        if (!th[i].buf) {
            n = i;
            break;
        }
    }
    if (n == 0)
        return yk_fail_memory(err, buf_bytes, "buffer to write a GGUF");
    for (; n_started < n; n_started++)
        if (pthread_create(&ids[n_started], NULL, thread_main, &th[n_started]) != 0)
            break;
    save_chunks(&th[0]);
    for (uint32_t i = 1; i < n_started; i++)
        pthread_join(ids[i], NULL);
    for (uint32_t i = 0; i < n; i++)
        yk_free(th[i].buf);
    if (s->failure.status != YK_OK)
        return yk_fail(err, s->failure.status, "%s", s->failure.text);
    if (s->opts->progress && !s->opts->progress(s->opts->progress_user, s->opts->what, s->w->data_bytes, s->w->data_bytes))
        return yk_fail(err, YK_ERR_CANCELLED, "%s: cancelled; nothing was written", s->path);
    return YK_OK;
}

/* ---- the file ---- */

static yk_status check_space(int fd, const char *path, uint64_t bytes, yk_error *err)
{
    struct statvfs v;
    if (fstatvfs(fd, &v) != 0)
        return YK_OK; /* then writing will tell */
    uint64_t avail;
    if (!yk_mul_u64(v.f_bavail, v.f_frsize, &avail))
        return YK_OK;
    YK_FAIL_IF(bytes > avail, err, YK_ERR_RUNTIME,
               "%s: needs %" PRIu64 " bytes, but its disk has %" PRIu64 " free; make room or write elsewhere", path, bytes,
               avail);
    return YK_OK;
}

static yk_status write_header(const saver *s, yk_error *err)
{
    const yk_gguf_writer *w = s->w;
    uint8_t head[24] = "GGUF";
    const uint32_t version = 3;
    const uint64_t n_tensors = w->n_tensors, n_kvs = w->n_kvs;
    memcpy(head + 4, &version, 4);
    memcpy(head + 8, &n_tensors, 8);
    memcpy(head + 16, &n_kvs, 8);
    YK_TRY(write_at(s->fd, head, sizeof head, 0, s->path, err));
    YK_TRY(write_at(s->fd, w->keys.p, w->keys.n, sizeof head, s->path, err));
    return write_at(s->fd, w->table.p, w->table.n, sizeof head + w->keys.n, s->path, err);
}

static yk_status plan_chunks(saver *s, yk_error *err)
{
    const uint32_t n = s->w->n_tensors;
    s->first_chunk = yk_alloc(YK_MEM_RUNTIME, (size_t)n + 1, sizeof *s->first_chunk);
    if (!s->first_chunk)
        return yk_fail_memory(err, (n + 1ull) * sizeof *s->first_chunk, "table to write a GGUF");
    for (uint32_t i = 0; i < n; i++) {
        const yk_gguf_out_tensor *t = &s->w->tensors[i];
        s->first_chunk[i] = s->n_chunks;
        s->n_chunks += (t->n_rows - 1) / rows_per_chunk(t) + 1;
    }
    s->first_chunk[n] = s->n_chunks;
    return YK_OK;
}

yk_status yk_gguf_save(yk_gguf_writer *w, const char *path, const yk_gguf_save_opts *opts, yk_error *err)
{
    if (w->failure.status != YK_OK)
        return yk_fail(err, w->failure.status, "%s", w->failure.text);
    yk_out_file out;
    YK_TRY(yk_out_open(&out, path, err));
    const uint64_t bytes = yk_gguf_writer_file_bytes(w);
    saver s = {.w = w,
               .opts = opts,
               .path = path,
               .fd = fileno(out.f),
               .data_start = header_bytes(w),
               .lock = PTHREAD_MUTEX_INITIALIZER};
    yk_status st;
    YK_TRY_GOTO(check_space(s.fd, path, bytes, err), fail);
    /* The length first: what no write covers (the padding) is zero. */
    if (ftruncate(s.fd, (off_t)bytes) != 0) {
        st = yk_fail(err, YK_ERR_RUNTIME, "%s: cannot grow to %" PRIu64 " bytes: %s", path, bytes, strerror(errno));
        goto fail;
    }
    YK_TRY_GOTO(plan_chunks(&s, err), fail);
    YK_TRY_GOTO(write_header(&s, err), fail);
    YK_TRY_GOTO(save_data(&s, err), fail);
    yk_free(s.first_chunk);
    pthread_mutex_destroy(&s.lock);
    return yk_out_commit(&out, err);
fail:
    yk_free(s.first_chunk);
    pthread_mutex_destroy(&s.lock);
    yk_out_abort(&out);
    return st;
}
