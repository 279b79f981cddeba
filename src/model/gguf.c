#include "src/model/gguf.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "src/model/gguf_read.h"

enum {
    MAX_NAME_BYTES = 1023,
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8,
    DEFAULT_ALIGNMENT = 32,
    MAX_FILES = 99999 /* five digits in the names of a split set */
};

/* One file of a set while it is read. */
typedef struct part {
    uint32_t file;
    uint32_t alignment;
    uint32_t version;
    uint64_t n_tensors;
    uint64_t first; /* its first tensor in gguf->tensors */
    bool vocab_only;
    yk_cursor c;
    yk_kv_list kvs;
} part;

static const char *kv_name(const void *items, uint32_t i)
{
    return ((const yk_gguf_kv *)items)[i].key;
}
static const char *tensor_name(const void *items, uint32_t i)
{
    return ((const yk_gguf_tensor *)items)[i].name;
}

const yk_gguf_kv *yk_gguf_find(const yk_gguf *gguf, const char *key)
{
    const int64_t i = yk_index_find(gguf->kv_index, gguf->kv_slots, gguf->kvs, kv_name, key);
    return i < 0 ? NULL : &gguf->kvs[i];
}

const yk_gguf_tensor *yk_gguf_find_tensor(const yk_gguf *gguf, const char *name)
{
    const int64_t i = yk_index_find(gguf->tensor_index, gguf->tensor_slots, gguf->tensors, tensor_name, name);
    return i < 0 ? NULL : &gguf->tensors[i];
}

/* ---- header and tensor table of one file ---- */

static yk_status read_header(part *p, uint64_t *n_kvs, yk_error *err)
{
    yk_cursor *c = &p->c;
    YK_FAIL_IF(c->size == 0, err, YK_ERR_INPUT, "%s: the file is empty; give a GGUF file", c->path);
    YK_FAIL_IF(c->size < 4 || memcmp(c->data, "GGUF", 4) != 0, err, YK_ERR_INPUT,
               "%s: no GGUF magic at offset 0; give a GGUF file", c->path);
    c->pos = 4;
    YK_FAIL_IF(!yk_cursor_u32(c, &p->version), err, YK_ERR_INPUT, "%s: truncated in the header at offset 4 (version)", c->path);
    YK_FAIL_IF(p->version != 0 && (p->version & 0xffff) == 0, err, YK_ERR_INPUT,
               "%s: big-endian GGUF (version field %#" PRIx32 "); convert it to little endian", c->path, p->version);
    YK_FAIL_IF(p->version != 2 && p->version != 3, err, YK_ERR_INPUT,
               "%s: GGUF version %" PRIu32 " is not supported; versions 2 and 3 are", c->path, p->version);
    YK_FAIL_IF(!yk_cursor_u64(c, &p->n_tensors) || !yk_cursor_u64(c, n_kvs), err, YK_ERR_INPUT,
               "%s: truncated in the header at offset %" PRIu64, c->path, c->pos);
    YK_FAIL_IF(p->n_tensors > yk_cursor_left(c) / MIN_TENSOR_BYTES, err, YK_ERR_INPUT,
               "%s: tensor count %" PRIu64 " at offset 8 cannot fit in the %" PRIu64
               " bytes that follow; the count is damaged or the file is truncated",
               c->path, p->n_tensors, yk_cursor_left(c));
    return YK_OK;
}

/* Why a type number is refused, for those that GGUF once had or yoke leaves out. */
static const char *type_hint(uint32_t type)
{
    switch (type) {
    case 4:
        return "Q4_2, removed from GGUF";
    case 5:
        return "Q4_3, removed from GGUF";
    case 9:
        return "Q8_1, not used for weights";
    case 15:
        return "Q8_K, not used for weights";
    case 16:
        return "IQ2_XXS, not supported";
    case 17:
        return "IQ2_XS, not supported";
    case 18:
        return "IQ3_XXS, not supported";
    case 19:
        return "IQ1_S, not supported";
    case 21:
        return "IQ3_S, not supported";
    case 22:
        return "IQ2_S, not supported";
    case 24:
        return "I8, not used for weights";
    case 25:
        return "I16, not used for weights";
    case 26:
        return "I32, not used for weights";
    case 27:
        return "I64, not used for weights";
    case 28:
        return "F64, not supported";
    case 29:
        return "IQ1_M, not supported";
    case 31:
    case 32:
    case 33:
        return "Q4_0 repacked, removed from GGUF; use Q4_0";
    case 34:
        return "TQ1_0, not supported";
    case 35:
        return "TQ2_0, not supported";
    case 36:
    case 37:
    case 38:
        return "IQ4_NL repacked, removed from GGUF; use IQ4_NL";
    default:
        return "unknown";
    }
}

static yk_status check_shape(yk_gguf_tensor *t, const char *path, yk_error *err)
{
    t->n_elems = 1;
    uint64_t rows = 1;
    for (uint32_t d = 0; d < t->n_dims; d++) {
        YK_FAIL_IF(t->ne[d] == 0, err, YK_ERR_INPUT, "%s: tensor %.200s: dimension %" PRIu32 " is 0", path, t->name, d);
        YK_FAIL_IF(!yk_mul_u64(t->n_elems, t->ne[d], &t->n_elems), err, YK_ERR_INPUT,
                   "%s: tensor %.200s: the product of its dimensions overflows", path, t->name);
        if (d > 0)
            rows *= t->ne[d]; /* divides n_elems, so it cannot overflow */
    }
    const yk_type_traits *tr = yk_type_get((uint32_t)t->type);
    YK_FAIL_IF(t->ne[0] % tr->block_elems != 0, err, YK_ERR_INPUT,
               "%s: tensor %.200s: rows of %" PRIu64 " elements are not whole %s blocks of %" PRIu32, path, t->name, t->ne[0],
               tr->name, tr->block_elems);
    YK_FAIL_IF(!yk_type_row_bytes(t->type, t->ne[0], &t->row_bytes) || !yk_mul_u64(t->row_bytes, rows, &t->n_bytes), err,
               YK_ERR_INPUT, "%s: tensor %.200s: its size in bytes overflows", path, t->name);
    return YK_OK;
}

static yk_status read_tensor(yk_gguf_tensor *t, part *p, uint64_t i, yk_error *err)
{
    yk_cursor *c = &p->c;
    yk_str name;
    YK_FAIL_IF(!yk_cursor_str(c, &name), err, YK_ERR_INPUT,
               "%s: truncated: the name of tensor %" PRIu64 " of %" PRIu64 " at offset %" PRIu64 " runs past the end of file",
               c->path, i, p->n_tensors, c->pos);
    YK_FAIL_IF(name.n == 0 || name.n > MAX_NAME_BYTES || memchr(name.p, 0, name.n), err, YK_ERR_INPUT,
               "%s: the name of tensor %" PRIu64 " of %" PRIu64
               " is empty, longer than %d bytes or holds a NUL (offset %" PRIu64 ")",
               c->path, i, p->n_tensors, MAX_NAME_BYTES, c->pos - name.n);
    t->name = yk_strndup(YK_MEM_RUNTIME, name.p, name.n);
    if (!t->name)
        return yk_fail_memory(err, name.n, "a tensor name");
    t->file = p->file;
    bool ok = yk_cursor_u32(c, &t->n_dims);
    YK_FAIL_IF(ok && (t->n_dims < 1 || t->n_dims > 4), err, YK_ERR_INPUT,
               "%s: tensor %.200s: %" PRIu32 " dimensions; from 1 to 4 are allowed", c->path, t->name, t->n_dims);
    for (uint32_t d = 0; d < 4; d++) {
        t->ne[d] = 1;
        if (d < t->n_dims)
            ok = ok && yk_cursor_u64(c, &t->ne[d]);
    }
    uint32_t type = 0;
    ok = ok && yk_cursor_u32(c, &type) && yk_cursor_u64(c, &t->offset);
    YK_FAIL_IF(!ok, err, YK_ERR_INPUT, "%s: tensor %.200s: truncated table entry at offset %" PRIu64 " (end of file)", c->path,
               t->name, c->pos);
    YK_FAIL_IF(!yk_type_get(type), err, YK_ERR_INPUT, "%s: tensor %.200s: type %" PRIu32 " (%s)", c->path, t->name, type,
               type_hint(type));
    t->type = (yk_type)type;
    YK_FAIL_IF(t->offset % p->alignment != 0, err, YK_ERR_INPUT,
               "%s: tensor %.200s: offset %" PRIu64 " is not a multiple of the alignment %" PRIu32, c->path, t->name, t->offset,
               p->alignment);
    return check_shape(t, c->path, err);
}

static yk_status read_tensors(yk_gguf *gguf, part *p, yk_error *err)
{
    p->first = gguf->n_tensors;
    uint64_t cap = gguf->n_tensors;
    for (uint64_t i = 0; i < p->n_tensors; i++) {
        if (gguf->n_tensors == cap) {
            const uint64_t more = cap ? cap * 2 : 64;
            YK_FAIL_IF(more > UINT32_MAX / 4, err, YK_ERR_INPUT, "%s: tensor count %" PRIu64 " is too large", p->c.path,
                       p->n_tensors);
            yk_gguf_tensor *t = yk_realloc(YK_MEM_RUNTIME, gguf->tensors, more, sizeof *t);
            if (!t)
                return yk_fail_memory(err, more * sizeof *t, "the tensor table");
            gguf->tensors = t;
            cap = more;
        }
        gguf->tensors[gguf->n_tensors] = (yk_gguf_tensor){0};
        gguf->n_tensors++;
        YK_TRY(read_tensor(&gguf->tensors[gguf->n_tensors - 1], p, i, err));
    }
    return YK_OK;
}

static int by_offset(const void *a, const void *b)
{
    const yk_gguf_tensor *x = *(yk_gguf_tensor *const *)a, *y = *(yk_gguf_tensor *const *)b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x < y ? -1 : x > y;
}

/* Turn offsets into places in the file: inside it, and no two tensors share a byte. */
static yk_status place_tensors(yk_gguf *gguf, part *p, yk_error *err)
{
    const yk_cursor *c = &p->c;
    const uint64_t n = gguf->n_tensors - p->first;
    if (n == 0 || p->vocab_only)
        return YK_OK;
    uint64_t start = c->pos;
    start += (0 - start) & (p->alignment - 1);
    yk_gguf_tensor *const tensors = gguf->tensors + p->first;
    for (uint64_t i = 0; i < n; i++) {
        yk_gguf_tensor *t = &tensors[i];
        uint64_t end;
        YK_FAIL_IF(!yk_add_u64(t->offset, start, &t->offset) || !yk_add_u64(t->offset, t->n_bytes, &end) || end > c->size, err,
                   YK_ERR_INPUT,
                   "%s: tensor %.200s: its data (%" PRIu64 " bytes at offset %" PRIu64
                   ") runs past the end of the file (%" PRIu64 " bytes); the file is truncated or damaged",
                   c->path, t->name, t->n_bytes, t->offset, c->size);
        t->data = c->data + t->offset;
    }
    yk_gguf_tensor **order = yk_alloc(YK_MEM_RUNTIME, n, sizeof(yk_gguf_tensor *));
    if (!order)
        return yk_fail_memory(err, n * sizeof *order, "checking tensor offsets");
    for (uint64_t i = 0; i < n; i++)
        order[i] = &tensors[i];
    qsort(order, n, sizeof *order, by_offset);
    yk_status st = YK_OK;
    for (uint64_t i = 1; i < n && st == YK_OK; i++)
        if (order[i]->offset - order[i - 1]->offset < order[i - 1]->n_bytes)
            st = yk_fail(err, YK_ERR_INPUT, "%s: tensors %.120s and %.120s overlap at offset %" PRIu64, c->path,
                         order[i - 1]->name, order[i]->name, order[i]->offset);
    yk_free(order);
    return st;
}

/* Integer key of a part's own list; the part's keys have no hash table. Absent: *out is left alone. */
static yk_status part_u32(const part *p, const char *key, uint32_t *out, yk_error *err)
{
    for (uint32_t i = 0; i < p->kvs.n; i++) {
        const yk_gguf_kv *kv = &p->kvs.kvs[i];
        if (strcmp(kv->key, key) != 0)
            continue;
        const bool is_int = kv->type == YK_GGUF_U8 || kv->type == YK_GGUF_I8 || kv->type == YK_GGUF_U16 ||
                            kv->type == YK_GGUF_I16 || kv->type == YK_GGUF_U32 || kv->type == YK_GGUF_I32 ||
                            kv->type == YK_GGUF_U64 || kv->type == YK_GGUF_I64;
        const int64_t v = is_int ? yk_gguf_arr_int(kv, 0) : -1;
        YK_FAIL_IF(v < 0 || v > UINT32_MAX, err, YK_ERR_INPUT, "%s: key %s must be an integer from 0 to %u", p->c.path, key,
                   UINT32_MAX);
        *out = (uint32_t)v;
    }
    return YK_OK;
}

/* Header, keys and tensor table of one file. The keys stay in p->kvs. */
static yk_status read_part(yk_gguf *gguf, part *p, yk_error *err)
{
    uint64_t n_kvs = 0;
    YK_TRY(read_header(p, &n_kvs, err));
    YK_TRY(yk_kvs_read(&p->kvs, &p->c, n_kvs, err));
    p->alignment = DEFAULT_ALIGNMENT;
    YK_TRY(part_u32(p, "general.alignment", &p->alignment, err));
    YK_FAIL_IF(p->alignment == 0 || (p->alignment & (p->alignment - 1)) != 0, err, YK_ERR_INPUT,
               "%s: key general.alignment is %" PRIu32 "; it must be a power of two", p->c.path, p->alignment);
    YK_TRY(read_tensors(gguf, p, err));
    return place_tensors(gguf, p, err);
}

/* ---- split sets ---- */

static yk_status split_range(const part *p, uint32_t count, uint32_t no, yk_error *err)
{
    YK_FAIL_IF(count > MAX_FILES, err, YK_ERR_INPUT, "%s: key split.count is %" PRIu32 "; at most %d are possible", p->c.path,
               count, MAX_FILES);
    YK_FAIL_IF(no >= count, err, YK_ERR_INPUT, "%s: key split.no is %" PRIu32 ", split.count is %" PRIu32, p->c.path, no,
               count);
    return YK_OK;
}

/* Name of part `no` (0-based) into buf, from the name of the first part; false when that is not NAME-00001-of-0000N.gguf. */
static bool part_path(char *buf, size_t cap, const char *first, uint32_t no, uint32_t count)
{
    char tail[64];
    const size_t n = strlen(first);
    const int nt = snprintf(tail, sizeof tail, "-00001-of-%05" PRIu32 ".gguf", count);
    if (nt <= 0 || n < (size_t)nt || strcmp(first + n - nt, tail) != 0)
        return false;
    const int w = snprintf(buf, cap, "%.*s-%05" PRIu32 "-of-%05" PRIu32 ".gguf", (int)(n - (size_t)nt), first, no + 1, count);
    return w > 0 && (size_t)w < cap;
}

static yk_status open_part(yk_gguf *gguf, const char *path, uint32_t no, uint32_t count, yk_error *err)
{
    yk_error why = {0};
    const yk_status opened = yk_map_open(&gguf->maps[no], path, &why);
    YK_FAIL_IF(opened != YK_OK, err, opened, "part %" PRIu32 " of %" PRIu32 " of the split model is missing: %s", no + 1, count,
               why.text);
    gguf->n_files = no + 1;
    YK_FAIL_IF(!yk_add_u64(gguf->file_bytes, gguf->maps[no].size, &gguf->file_bytes), err, YK_ERR_INPUT, "%s: too large", path);
    part p = {.file = no, .c = {gguf->maps[no].data, gguf->maps[no].size, 0, path}};
    uint32_t got_no = UINT32_MAX, got_count = 0;
    yk_status st;
    YK_TRY_GOTO(read_part(gguf, &p, err), done);
    YK_TRY_GOTO(part_u32(&p, "split.no", &got_no, err), done);
    YK_TRY_GOTO(part_u32(&p, "split.count", &got_count, err), done);
    if (got_no != no || got_count != count)
        st =
            yk_fail(err, YK_ERR_INPUT,
                    "%s: its keys split.no and split.count do not say part %" PRIu32 " of %" PRIu32 " (0-based); the parts are "
                    "mixed up",
                    path, no, count);
done:
    yk_kvs_free(&p.kvs);
    return st;
}

static yk_status open_other_parts(yk_gguf *gguf, const char *path, uint32_t count, yk_error *err)
{
    const size_t cap = strlen(path) + 32;
    char *name = yk_alloc(YK_MEM_RUNTIME, cap, 1);
    yk_map *maps = yk_realloc(YK_MEM_RUNTIME, gguf->maps, count, sizeof *maps);
    if (maps)
        gguf->maps = maps;
    if (!name || !maps) {
        yk_free(name);
        return yk_fail_memory(err, count * sizeof *maps + cap, "the files of a split set");
    }
    yk_status st = YK_OK;
    for (uint32_t i = 1; i < count && st == YK_OK; i++) {
        if (!part_path(name, cap, path, i, count))
            st = yk_fail(err, YK_ERR_INPUT,
                         "%s: one of %" PRIu32 " parts, but its name does not end in -00001-of-%05" PRIu32 ".gguf", path, count,
                         count);
        else
            st = open_part(gguf, name, i, count, err);
    }
    yk_free(name);
    return st;
}

/* ---- open, close ---- */

static yk_status finish(yk_gguf *gguf, const part *first, const char *path, bool may_split, yk_error *err)
{
    YK_TRY(yk_index_build(&gguf->kv_index, &gguf->kv_slots, gguf->kvs, gguf->n_kvs, kv_name, "key", path, err));
    uint32_t count = 1, no = 0, total = 0;
    YK_TRY(yk_gguf_get_u32(gguf, "split.count", false, &count, err));
    YK_TRY(yk_gguf_get_u32(gguf, "split.no", false, &no, err));
    if (count > 1 && !first->vocab_only) {
        YK_FAIL_IF(!may_split, err, YK_ERR_INPUT, "%s: key split.count is %" PRIu32 "; a split set needs its files", path,
                   count);
        YK_TRY(split_range(first, count, no, err));
        YK_FAIL_IF(no != 0, err, YK_ERR_INPUT,
                   "%s: this is part %" PRIu32 " of %" PRIu32 "; give the first, ...-00001-of-%05" PRIu32 ".gguf", path, no + 1,
                   count, count);
        YK_TRY(open_other_parts(gguf, path, count, err));
        total = gguf->n_tensors;
        YK_TRY(yk_gguf_get_u32(gguf, "split.tensors.count", false, &total, err));
        YK_FAIL_IF(total != gguf->n_tensors, err, YK_ERR_INPUT,
                   "%s: key split.tensors.count is %" PRIu32 ", but the %" PRIu32 " parts hold %" PRIu32 " tensors", path,
                   total, count, gguf->n_tensors);
    }
    YK_TRY(yk_index_build(&gguf->tensor_index, &gguf->tensor_slots, gguf->tensors, gguf->n_tensors, tensor_name, "tensor", path,
                          err));
    YK_FAIL_IF(gguf->n_tensors == 0 && !first->vocab_only, err, YK_ERR_INPUT,
               "%s: no tensor in the file (tensor count is 0); it holds only a vocabulary", path);
    return YK_OK;
}

/* The first or only file; its keys become those of the set. */
static yk_status open_first(yk_gguf *gguf, const uint8_t *data, uint64_t size, const char *path, bool vocab_only,
                            bool may_split, yk_error *err)
{
    part p = {.vocab_only = vocab_only, .c = {data, size, 0, path}};
    const yk_status st = read_part(gguf, &p, err);
    /* Also on failure, so that closing frees them. */
    gguf->kvs = p.kvs.kvs;
    gguf->n_kvs = p.kvs.n;
    gguf->version = p.version;
    gguf->alignment = p.alignment;
    if (st != YK_OK)
        return st;
    return finish(gguf, &p, path, may_split, err);
}

yk_status yk_gguf_open(yk_gguf *gguf, const char *path, bool vocab_only, yk_error *err)
{
    *gguf = (yk_gguf){0};
    gguf->maps = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *gguf->maps);
    if (!gguf->maps)
        return yk_fail_memory(err, sizeof *gguf->maps, "a file");
    yk_status st;
    YK_TRY_GOTO(yk_map_open(&gguf->maps[0], path, err), fail);
    gguf->n_files = 1;
    gguf->file_bytes = gguf->maps[0].size;
    YK_TRY_GOTO(open_first(gguf, gguf->maps[0].data, gguf->maps[0].size, path, vocab_only, true, err), fail);
    return YK_OK;
fail:
    yk_gguf_close(gguf);
    return st;
}

yk_status yk_gguf_open_memory(yk_gguf *gguf, const uint8_t *data, uint64_t size, bool vocab_only, yk_error *err)
{
    *gguf = (yk_gguf){.file_bytes = size};
    const yk_status st = open_first(gguf, data, size, "(memory)", vocab_only, false, err);
    if (st != YK_OK)
        yk_gguf_close(gguf);
    return st;
}

void yk_gguf_close(yk_gguf *gguf)
{
    for (uint32_t i = 0; i < gguf->n_files; i++)
        yk_map_close(&gguf->maps[i]);
    yk_free(gguf->maps);
    yk_kv_list list = {gguf->kvs, gguf->n_kvs};
    yk_kvs_free(&list);
    for (uint32_t i = 0; i < gguf->n_tensors; i++)
        yk_free(gguf->tensors[i].name);
    yk_free(gguf->tensors);
    yk_free(gguf->kv_index);
    yk_free(gguf->tensor_index);
    *gguf = (yk_gguf){0};
}
