#include "src/engine/pack_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cpu/pack.h"
#include "src/base/crc32c.h"
#include "src/base/log.h"
#include "src/engine/packing.h"

enum { VERSION = 1, PAGE = 4096, SAMPLE = 4096 };
static const uint64_t PUT = 1ull << 32; /* in `state`, beside the checksum */

_Static_assert(sizeof(yk_cache_header) == 72 && sizeof(yk_cache_entry) == 40, "no padding: the structs are the file");

struct yk_pack_cache {
    const yk_model *model;
    uint32_t n_parts;
    char *path;
    yk_cache_header head;
    yk_cache_entry *entries;
    uint32_t *first; /* [n_layers][YK_CACHE_HEAD + n_parts], then the head: index of the first entry, or YK_CACHE_NONE */
    _Atomic(uint64_t) *state; /* [n_entries] writing: PUT and the checksum */
    int fd;                   /* of the file that is read, or -1 */
    yk_out_file out;          /* of the file that is written; out.f NULL: none */
    _Atomic(bool) dropped;    /* not written after all */
    _Atomic(int) write_errno; /* first failure */
    _Atomic(uint32_t) n_bad;  /* reads that gave something else */
    char why[160];            /* why the file there is was not read; "": there is none */
};

/* ---- what a cache of the model holds -------------------------------------------------------------------------------------------------------- */

static uint32_t *first_of(const yk_pack_cache *c, uint32_t layer, uint32_t index)
{
    return &c->first[(size_t)layer * (YK_CACHE_HEAD + c->n_parts) + index];
}

static uint32_t *first_of_head(const yk_pack_cache *c)
{
    return first_of(c, c->model->hp.n_layers, 0);
}

/* Append an entry, or count it as long as there is no table. */
static void append(yk_pack_cache *c, const yk_cache_entry *e)
{
    if (c->entries) {
        c->entries[c->head.n_entries] = *e;
        c->entries[c->head.n_entries].offset = c->head.file_bytes;
    }
    c->head.n_entries++;
    c->head.file_bytes += e->bytes;
}

static void list_matrix(yk_pack_cache *c, const yk_weight *w, yk_cache_entry e)
{
    const uint32_t rows = yk_pack_rows_at_once(w);
    for (uint32_t r = 0; r < w->n_rows; r += rows) {
        const uint32_t n = w->n_rows - r < rows ? w->n_rows - r : rows;
        e.first = r / YK_TILE_ROWS;
        e.n = (n + YK_TILE_ROWS - 1) / YK_TILE_ROWS;
        e.bytes = yk_packed_bytes(w->type, n, w->n_cols);
        append(c, &e);
    }
}

static void list_part(yk_pack_cache *c, const yk_ffn_part *f, yk_cache_entry e)
{
    for (uint32_t u = 0; u < f->cut.n; u++) {
        e.first = u;
        e.n = 1;
        const yk_slab s = yk_slab_of(f, u, 1);
        e.what = YK_CACHE_PAIRS;
        e.bytes = s.down_at;
        append(c, &e);
        e.what = YK_CACHE_DOWN;
        e.bytes = s.unit_bytes - s.down_at;
        append(c, &e);
    }
}

/* Entries of the whole model, from head.data_at on. */
static void list_all(yk_pack_cache *c)
{
    const yk_model *m = c->model;
    c->head.n_entries = 0;
    c->head.file_bytes = c->head.data_at;
    for (uint32_t i = 0; i < m->hp.n_layers; i++) {
        const yk_layer *l = &m->layers[i];
        const yk_weight *const whole[YK_CACHE_HEAD] = {&l->q, &l->k, &l->v, &l->o, &l->router};
        for (uint32_t k = 0; k < YK_CACHE_HEAD; k++) {
            *first_of(c, i, k) = yk_pack_form(whole[k]) ? c->head.n_entries : YK_CACHE_NONE;
            if (yk_pack_form(whole[k]))
                list_matrix(c, whole[k], (yk_cache_entry){.layer = i, .what = k});
        }
        for (uint32_t p = 0; p < yk_ffn_parts(l); p++) {
            const yk_ffn_part f = yk_ffn_part_of(l, p);
            *first_of(c, i, YK_CACHE_HEAD + p) = yk_ffn_can_pack(&f) ? c->head.n_entries : YK_CACHE_NONE;
            if (yk_ffn_can_pack(&f))
                list_part(c, &f, (yk_cache_entry){.layer = i, .part = p});
        }
    }
    *first_of_head(c) = yk_pack_form(&m->output) ? c->head.n_entries : YK_CACHE_NONE;
    if (yk_pack_form(&m->output))
        list_matrix(c, &m->output, (yk_cache_entry){.layer = m->hp.n_layers, .what = YK_CACHE_HEAD});
}

static uint64_t fnv(uint64_t h, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        h = (h ^ (v >> 8 * i & 0xff)) * 0x100000001b3u; /* FNV-1a */
    return h;
}

/* Sizes and times alone would do for most; archives and package stores give every file the same time, and then two trainings of one model differ in
 * nothing but their weights, in all of them. */
static void identify(yk_pack_cache *c)
{
    const yk_gguf *g = &c->model->gguf;
    c->head.model_bytes = g->file_bytes;
    c->head.model_times = 0xcbf29ce484222325u;
    for (uint32_t i = 0; i < g->n_files; i++) {
        uint64_t data = g->maps[i].size;
        c->head.model_times = fnv(fnv(c->head.model_times, g->maps[i].size), g->maps[i].mtime_ns);
        for (uint32_t t = 0; t < g->n_tensors; t++)
            if (g->tensors[t].file == i && g->tensors[t].offset < data)
                data = g->tensors[t].offset;
        c->head.model_head = yk_crc32c(c->head.model_head, g->maps[i].data, data);
    }
    for (uint32_t t = 0; t < g->n_tensors; t++) {
        const uint64_t bytes = g->tensors[t].n_bytes, n = bytes < SAMPLE ? bytes : SAMPLE;
        c->head.model_samples = yk_crc32c(c->head.model_samples, g->tensors[t].data + (bytes - n) / 2, n);
    }
}

/* FOLDER/NAME-IDENTITY.yokepack; NAME is the model file's, for people. */
static yk_status make_path(yk_pack_cache *c, const char *dir, yk_error *err)
{
    const char *slash = strrchr(c->model->path ? c->model->path : "model", '/');
    const char *name = slash ? slash + 1 : c->model->path ? c->model->path : "model";
    const size_t n = strlen(dir), n_name = strnlen(name, 100);
    uint64_t id =
        fnv(fnv(0xcbf29ce484222325u, c->head.model_times), (uint64_t)c->head.model_head << 32 | c->head.model_samples);
    id = fnv(fnv(id, c->head.model_bytes), YK_PACK_LAYOUT);
    c->path = yk_alloc(YK_MEM_RUNTIME, n + n_name + 64, 1);
    if (!c->path)
        return yk_fail_memory(err, n + n_name + 64, "the pack cache's path");
    snprintf(c->path, n + n_name + 64, "%s/%.*s-%016" PRIx64 ".yokepack", dir, (int)n_name, name, id);
    return YK_OK;
}

static yk_status describe(yk_pack_cache *c, yk_error *err)
{
    const size_t n = (size_t)c->model->hp.n_layers * (YK_CACHE_HEAD + c->n_parts) + 1;
    c->first = yk_alloc(YK_MEM_RUNTIME, n, sizeof *c->first);
    if (!c->first)
        return yk_fail_memory(err, n * sizeof *c->first, "the pack cache's table");
    list_all(c);
    const uint32_t entries = c->head.n_entries;
    c->entries = yk_alloc(YK_MEM_RUNTIME, entries, sizeof *c->entries);
    c->state = yk_alloc(YK_MEM_RUNTIME, entries, sizeof *c->state);
    if (!c->entries || !c->state)
        return yk_fail_memory(err, entries * (sizeof *c->entries + sizeof *c->state), "the pack cache's table");
    memcpy(c->head.magic, "YOKEPACK", 8);
    c->head.version = VERSION;
    c->head.layout = YK_PACK_LAYOUT;
    c->head.entry_bytes = sizeof *c->entries;
    c->head.data_at = (sizeof c->head + (uint64_t)entries * sizeof *c->entries + PAGE - 1) / PAGE * PAGE;
    list_all(c);
    identify(c);
    return YK_OK;
}

/* ---- reading -------------------------------------------------------------------------------------------------------------------------------- */

static bool read_at(int fd, void *to, uint64_t n, uint64_t at)
{
    for (uint64_t done = 0; done < n;) {
        const ssize_t r = pread(fd, (uint8_t *)to + done, n - done, (off_t)(at + done));
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return false;
        done += (uint64_t)r;
    }
    return true;
}

static uint32_t header_crc(const yk_cache_header *h)
{
    return yk_crc32c(0, h, offsetof(yk_cache_header, header_crc));
}

/* Does the file begin as one of this model and layout, and is it whole? Why not goes to c->why. Takes the checksums. */
static bool check_file(yk_pack_cache *c, uint64_t bytes, yk_cache_entry *table)
{
    const size_t n_table = (size_t)c->head.n_entries * sizeof *table;
    yk_cache_header h;
#define REFUSE_IF(cond, ...)                                                                                                   \
    do {                                                                                                                       \
        if (cond) {                                                                                                            \
            snprintf(c->why, sizeof c->why, __VA_ARGS__);                                                                      \
            return false;                                                                                                      \
        }                                                                                                                      \
    } while (0)
    REFUSE_IF(bytes < sizeof h, "it is cut after %" PRIu64 " bytes", bytes);
    REFUSE_IF(!read_at(c->fd, &h, sizeof h, 0), "it cannot be read: %s", strerror(errno));
    REFUSE_IF(memcmp(h.magic, c->head.magic, 8) != 0, "it is no pack cache");
    REFUSE_IF(h.version != VERSION, "it has version %u, not %d", h.version, VERSION);
    REFUSE_IF(h.layout != YK_PACK_LAYOUT, "it has layout %u, not %d", h.layout, YK_PACK_LAYOUT);
    REFUSE_IF(h.header_crc != header_crc(&h), "its header is damaged");
    REFUSE_IF(memcmp(&h.model_bytes, &c->head.model_bytes,
                     offsetof(yk_cache_header, n_entries) - offsetof(yk_cache_header, model_bytes)) != 0,
              "it belongs to another model");
    REFUSE_IF(h.n_entries != c->head.n_entries || h.entry_bytes != c->head.entry_bytes || h.data_at != c->head.data_at ||
                  h.file_bytes != c->head.file_bytes,
              "its table is another one");
    REFUSE_IF(bytes != h.file_bytes, "it has %" PRIu64 " bytes, not %" PRIu64, bytes, h.file_bytes);
    REFUSE_IF(!read_at(c->fd, table, n_table, sizeof h), "its table cannot be read");
    REFUSE_IF(yk_crc32c(0, table, n_table) != h.table_crc, "its table is damaged");
    for (uint32_t i = 0; i < c->head.n_entries; i++) {
        c->entries[i].crc = table[i].crc;
        REFUSE_IF(memcmp(&table[i], &c->entries[i], sizeof *table) != 0, "its table is another one");
    }
#undef REFUSE_IF
    return true;
}

/* Open what is there. False, with c->why where there is something: it has to be written. *other: what is there is no file and stays as it is. */
static bool open_to_read(yk_pack_cache *c, bool *other, yk_error *err, yk_status *st)
{
    struct stat s;
    *other = false;
    c->fd = open(c->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (c->fd < 0) {
        if (errno != ENOENT)
            snprintf(c->why, sizeof c->why, "it cannot be opened: %s", strerror(errno));
        return false;
    }
    yk_cache_entry *table = NULL;
    bool good = false;
    if (fstat(c->fd, &s) != 0 || !S_ISREG(s.st_mode)) {
        *other = true;
        snprintf(c->why, sizeof c->why, "it is no regular file");
    } else if (!(table = yk_alloc(YK_MEM_STAGING, c->head.n_entries, sizeof *table))) {
        *st = yk_fail_memory(err, c->head.n_entries * sizeof *table, "the pack cache's table");
    } else {
        good = check_file(c, (uint64_t)s.st_size, table);
    }
    yk_free(table);
    if (good) {
        posix_fadvise(c->fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* twice the read-ahead; a refusal costs time only */
    } else {
        close(c->fd);
        c->fd = -1;
    }
    return good;
}

bool yk_pack_cache_get(yk_pack_cache *c, uint32_t entry, uint8_t *out)
{
    if (!c || entry == YK_CACHE_NONE || c->fd < 0)
        return false;
    const yk_cache_entry *e = &c->entries[entry];
    if (read_at(c->fd, out, e->bytes, e->offset) && yk_crc32c_block(out, e->bytes) == e->crc)
        return true;
    atomic_fetch_add(&c->n_bad, 1);
    return false;
}

bool yk_pack_cache_reading(const yk_pack_cache *c)
{
    return c && c->fd >= 0 && !atomic_load(&c->n_bad);
}

/* ---- writing -------------------------------------------------------------------------------------------------------------------------------- */

static void write_at(yk_pack_cache *c, const void *from, uint64_t n, uint64_t at)
{
    for (uint64_t done = 0; done < n;) {
        const ssize_t r = pwrite(fileno(c->out.f), (const uint8_t *)from + done, n - done, (off_t)(at + done));
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0) {
            int none = 0;
            atomic_compare_exchange_strong(&c->write_errno, &none, r ? errno : ENOSPC);
            return;
        }
        done += (uint64_t)r;
    }
}

/* Room on the disk now, rather than a half of a file at the end. The limit on a file's size is asked first: going beyond it is a signal. */
static int reserve(const yk_pack_cache *c)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < c->head.file_bytes)
        return EFBIG;
    if (fallocate(fileno(c->out.f), 0, 0, (off_t)c->head.file_bytes) == 0 || errno == EOPNOTSUPP || errno == ENOSYS ||
        errno == EINTR)
        return 0;
    return errno;
}

/* Open a new file; false and `why`: it cannot be written. */
static bool open_to_write(yk_pack_cache *c, yk_error *why)
{
    if (yk_out_open(&c->out, c->path, why) != YK_OK)
        return false;
    const int e = reserve(c);
    if (!e)
        return true;
    yk_out_abort(&c->out);
    yk_fail(why, YK_ERR_RUNTIME, "%s: cannot be written: %s (it has %" PRIu64 " bytes)", c->path, strerror(e),
            c->head.file_bytes);
    return false;
}

bool yk_pack_cache_writing(const yk_pack_cache *c)
{
    return c && c->out.f && !atomic_load(&c->write_errno) && !atomic_load(&c->dropped);
}

void yk_pack_cache_put(yk_pack_cache *c, uint32_t entry, const uint8_t *bytes)
{
    if (entry == YK_CACHE_NONE || !yk_pack_cache_writing(c))
        return;
    const yk_cache_entry *e = &c->entries[entry];
    atomic_store(&c->state[entry], PUT | yk_crc32c_block(bytes, e->bytes));
    write_at(c, bytes, e->bytes, e->offset);
}

void yk_pack_cache_drop(yk_pack_cache *c)
{
    if (c)
        atomic_store(&c->dropped, true);
}

uint32_t yk_pack_cache_missing(const yk_pack_cache *c, uint32_t from)
{
    while (from < c->head.n_entries && atomic_load(&c->state[from]))
        from++;
    return from < c->head.n_entries ? from : YK_CACHE_NONE;
}

/* Table and header, then the name. */
static void commit(yk_pack_cache *c)
{
    yk_error why;
    const size_t n_table = (size_t)c->head.n_entries * sizeof *c->entries;
    for (uint32_t i = 0; i < c->head.n_entries; i++)
        c->entries[i].crc = (uint32_t)atomic_load(&c->state[i]);
    c->head.table_crc = yk_crc32c(0, c->entries, n_table);
    c->head.header_crc = header_crc(&c->head);
    write_at(c, c->entries, n_table, sizeof c->head);
    write_at(c, &c->head, sizeof c->head, 0);
    const int e = atomic_load(&c->write_errno);
    if (e) {
        yk_out_abort(&c->out);
        yk_log(YK_LOG_WARN, "pack cache %s: cannot be written: %s; the weights are packed in memory", c->path, strerror(e));
    } else if (yk_out_commit(&c->out, &why) != YK_OK) {
        yk_log(YK_LOG_WARN, "pack cache %s; the weights are packed in memory", why.text);
    } else {
        yk_log(YK_LOG_INFO, "pack cache %s: written, %" PRIu64 " bytes", c->path, c->head.file_bytes);
    }
}

/* ---- open, find, close ---------------------------------------------------------------------------------------------------------------------- */

static yk_status open_file(yk_pack_cache *c, const char *dir, yk_error *err)
{
    yk_status st = YK_OK;
    yk_error why;
    bool other;
    mkdir(dir, 0777); /* whatever hinders it hinders the file too, and is said then */
    if (open_to_read(c, &other, err, &st) || st != YK_OK)
        return st;
    if (other)
        yk_log(YK_LOG_WARN, "pack cache %s: %s; the weights are packed in memory", c->path, c->why);
    else if (!open_to_write(c, &why))
        yk_log(YK_LOG_WARN, "pack cache %s; the weights are packed in memory", why.text);
    else if (*c->why)
        yk_log(YK_LOG_WARN, "pack cache %s: %s; the weights are packed in memory and it is written anew", c->path, c->why);
    return YK_OK;
}

yk_status yk_pack_cache_open(yk_pack_cache **out, const yk_model *m, uint32_t n_parts, const char *dir, yk_error *err)
{
    yk_pack_cache *c = *out = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *c);
    if (!c)
        return yk_fail_memory(err, sizeof *c, "the pack cache");
    c->model = m;
    c->n_parts = n_parts;
    c->fd = -1;
    yk_status st = describe(c, err);
    if (st == YK_OK)
        st = make_path(c, dir, err);
    if (st == YK_OK)
        st = open_file(c, dir, err);
    if (st != YK_OK)
        yk_pack_cache_close(out);
    return st;
}

/* The layer that a weight of the model belongs to; n_layers or more: none. */
static uint32_t layer_of(const yk_pack_cache *c, const yk_weight *w)
{
    return (uint32_t)((size_t)((const uint8_t *)w - (const uint8_t *)c->model->layers) / sizeof *c->model->layers);
}

uint32_t yk_pack_cache_matrix(const yk_pack_cache *c, const yk_weight *w, uint32_t row0)
{
    const uint32_t *first = NULL;
    if (w == &c->model->output) {
        first = first_of_head(c);
    } else if (layer_of(c, w) < c->model->hp.n_layers) {
        const uint32_t layer = layer_of(c, w);
        const yk_layer *l = &c->model->layers[layer];
        const yk_weight *const whole[YK_CACHE_HEAD] = {&l->q, &l->k, &l->v, &l->o, &l->router};
        for (uint32_t k = 0; k < YK_CACHE_HEAD; k++)
            first = w == whole[k] ? first_of(c, layer, k) : first;
    }
    return first && *first != YK_CACHE_NONE ? *first + row0 / yk_pack_rows_at_once(w) : YK_CACHE_NONE;
}

uint32_t yk_pack_cache_unit(const yk_pack_cache *c, const yk_weight *gate, uint32_t part, uint32_t unit, bool down)
{
    const uint32_t layer = layer_of(c, gate);
    const uint32_t first = layer < c->model->hp.n_layers ? *first_of(c, layer, YK_CACHE_HEAD + part) : YK_CACHE_NONE;
    return first == YK_CACHE_NONE ? YK_CACHE_NONE : first + YK_CACHE_PER_UNIT * unit + down;
}

const yk_cache_entry *yk_pack_cache_entry(const yk_pack_cache *c, uint32_t entry)
{
    return &c->entries[entry];
}

void yk_pack_cache_finish(yk_pack_cache **cache)
{
    yk_pack_cache *c = *cache;
    if (c && c->out.f && !atomic_load(&c->dropped))
        commit(c);
    const uint32_t bad = c ? atomic_load(&c->n_bad) : 0;
    if (bad) {
        const bool gone = unlink(c->path) == 0;
        yk_log(YK_LOG_WARN, "pack cache %s: %u of %u pieces are damaged; they are packed in memory%s", c->path, bad,
               c->head.n_entries, gone ? ", and the file is removed" : "");
    } else if (c && c->fd >= 0) {
        yk_log(YK_LOG_INFO, "pack cache %s: read", c->path);
    }
    yk_pack_cache_close(cache);
}

void yk_pack_cache_close(yk_pack_cache **cache)
{
    yk_pack_cache *c = *cache;
    *cache = NULL;
    if (!c)
        return;
    if (c->fd >= 0)
        close(c->fd);
    yk_out_abort(&c->out);
    yk_free(c->path);
    yk_free(c->entries);
    yk_free(c->first);
    yk_free(c->state);
    yk_free(c);
}
