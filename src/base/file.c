#include "src/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

yk_status yk_map_open(yk_map *map, const char *path, yk_error *err)
{
    *map = (yk_map){0};
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO is refused below, not waited for */
    YK_FAIL_IF(fd < 0, err, YK_ERR_INPUT, "%s: %s", path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        const bool dir = S_ISDIR(st.st_mode);
        close(fd);
        return yk_fail(err, YK_ERR_INPUT, dir ? "%s: is a directory; give a file" : "%s: is not a regular file", path);
    }
    map->mtime_ns = (uint64_t)st.st_mtim.tv_sec * 1000000000u + (uint64_t)st.st_mtim.tv_nsec;
    if (st.st_size == 0) {
        close(fd);
        return YK_OK;
    }
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    const int e = errno;
    close(fd);
    YK_FAIL_IF(p == MAP_FAILED, err, e == ENOMEM ? YK_ERR_MEMORY : YK_ERR_INPUT, "%s: cannot be mapped: %s", path, strerror(e));
    map->data = p;
    map->size = (uint64_t)st.st_size;
    return YK_OK;
}

void yk_map_close(yk_map *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, map->size);
    *map = (yk_map){0};
}

void yk_map_release(const void *p, uint64_t bytes)
{
    const uintptr_t page = 4096, first = ((uintptr_t)p + page - 1) & ~(page - 1), end = ((uintptr_t)p + bytes) & ~(page - 1);
    if (end > first)
        madvise((void *)first, end - first, MADV_DONTNEED); /* a refusal costs memory, not correctness */
}

static yk_status read_stream(char **out, size_t *n_bytes, FILE *f, const char *path, uint64_t max_bytes, yk_error *err)
{
    size_t n = 0, cap = 1 << 16;
    char *buf = yk_alloc(YK_MEM_RUNTIME, cap, 1);
    if (!buf)
        return yk_fail_memory(err, cap, path);
    for (;;) {
        n += fread(buf + n, 1, cap - 1 - n, f);
        if (ferror(f)) {
            yk_free(buf);
            return yk_fail(err, YK_ERR_INPUT, "%s: %s", path, strerror(errno));
        }
        if (n > max_bytes) {
            yk_free(buf);
            return yk_fail(err, YK_ERR_INPUT, "%s: larger than %" PRIu64 " bytes", path, max_bytes);
        }
        if (n < cap - 1)
            break;
        char *more = yk_realloc(YK_MEM_RUNTIME, buf, cap, 2);
        if (!more) {
            yk_free(buf);
            return yk_fail_memory(err, 2 * (uint64_t)cap, path);
        }
        buf = more;
        cap *= 2;
    }
    buf[n] = 0;
    *out = buf;
    *n_bytes = n;
    return YK_OK;
}

yk_status yk_read_file(char **out, size_t *n_bytes, const char *path, uint64_t max_bytes, yk_error *err)
{
    *out = NULL;
    *n_bytes = 0;
    if (strcmp(path, "-") == 0)
        return read_stream(out, n_bytes, stdin, "standard input", max_bytes, err);
    FILE *f = fopen(path, "rbe");
    YK_FAIL_IF(!f, err, YK_ERR_INPUT, "%s: %s", path, strerror(errno));
    const yk_status st = read_stream(out, n_bytes, f, path, max_bytes, err);
    fclose(f);
    return st;
}

yk_status yk_fail_in_file(yk_error *err, yk_status st, const char *path, const yk_error *inner)
{
    return st == YK_ERR_INPUT ? yk_fail(err, st, "%.200s: %s", path, inner->text) : yk_fail(err, st, "%s", inner->text);
}

/* Where the file of `path` is put: *real is the target of a link, so that the link stays. *direct: no regular file but a device or
 * a pipe, which a rename would destroy (/dev/null, /dev/stdout). */
static yk_status out_target(const char *path, char *buf, const char **real, bool *direct, yk_error *err)
{
    struct stat st;
    *real = path;
    *direct = false;
    if (lstat(path, &st) != 0)
        return YK_OK; /* a new file; what hinders it is found when it is opened */
    if (S_ISLNK(st.st_mode) && realpath(path, buf))
        *real = buf;
    const bool link = S_ISLNK(st.st_mode) && *real == path; /* to nothing, or to a pipe, which has no path */
    YK_FAIL_IF(stat(path, &st) != 0, err, YK_ERR_RUNTIME, "%s: cannot be written: %s", path, strerror(errno));
    YK_FAIL_IF(S_ISDIR(st.st_mode), err, YK_ERR_RUNTIME, "%s: cannot be written: %s", path, strerror(EISDIR));
    *direct = link || !S_ISREG(st.st_mode);
    return YK_OK;
}

yk_status yk_out_open(yk_out_file *out, const char *path, yk_error *err)
{
    char buf[PATH_MAX];
    bool direct;
    *out = (yk_out_file){0};
    YK_TRY(out_target(path, buf, &path, &direct, err));
    const size_t n = strlen(path);
    out->path = yk_strndup(YK_MEM_RUNTIME, path, n);
    out->tmp_path = yk_alloc(YK_MEM_RUNTIME, n + 48, 1);
    if (!out->path || !out->tmp_path) {
        yk_out_abort(out);
        return yk_fail_memory(err, n + 48, path);
    }
    static _Atomic(unsigned) serial; /* threads of one process may write the same path */
    snprintf(out->tmp_path, n + 48, "%s.tmp-%ld-%u", path, (long)getpid(), atomic_fetch_add(&serial, 1));
    if (direct) {
        yk_free(out->tmp_path);
        out->tmp_path = NULL;
    }
    out->f = fopen(direct ? path : out->tmp_path, "wbe");
    if (!out->f) {
        const int e = errno;
        yk_free(out->tmp_path);
        out->tmp_path = NULL;
        yk_out_abort(out);
        return yk_fail(err, YK_ERR_RUNTIME, "%s: cannot be written: %s", path, strerror(e));
    }
    return YK_OK;
}

yk_status yk_out_commit(yk_out_file *out, yk_error *err)
{
    const bool ok = fflush(out->f) == 0 && (!out->tmp_path || fsync(fileno(out->f)) == 0);
    int e = errno;
    const bool closed = fclose(out->f) == 0;
    if (ok && !closed)
        e = errno;
    out->f = NULL;
    if (ok && closed) {
        if (!out->tmp_path || rename(out->tmp_path, out->path) == 0) {
            yk_free(out->tmp_path);
            yk_free(out->path);
            *out = (yk_out_file){0};
            return YK_OK;
        }
        e = errno;
    }
    const yk_status st = yk_fail(err, YK_ERR_RUNTIME, "%s: cannot be written: %s", out->path, strerror(e));
    yk_out_abort(out);
    return st;
}

void yk_out_abort(yk_out_file *out)
{
    if (out->f)
        fclose(out->f);
    if (out->tmp_path)
        unlink(out->tmp_path);
    yk_free(out->tmp_path);
    yk_free(out->path);
    *out = (yk_out_file){0};
}

yk_status yk_write_file(const char *path, const char *text, size_t n_bytes, yk_error *err)
{
    yk_out_file f;
    YK_TRY(yk_out_open(&f, path, err));
    if (fwrite(text, 1, n_bytes, f.f) == n_bytes)
        return yk_out_commit(&f, err);
    const yk_status st = yk_fail(err, YK_ERR_RUNTIME, "%s: cannot be written: %s", path, strerror(errno));
    yk_out_abort(&f);
    return st;
}
