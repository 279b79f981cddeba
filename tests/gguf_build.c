#include "tests/gguf_build.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static _Noreturn void die(const char *what, const char *name)
{
    fprintf(stderr, "gguf_build: %s: %s\n", what, name);
    exit(1);
}

static void *grown(void *p, size_t n)
{
    void *q = realloc(p, n ? n : 1);
    if (!q)
        die("out of memory", "");
    return q;
}

void gb_init(gb_file *f)
{
    *f = (gb_file){.version = 3, .alignment = 32};
}

void gb_free(gb_file *f)
{
    for (uint32_t i = 0; i < f->n_tensors; i++)
        free(f->tensors[i].data);
    free(f->tensors);
    free(f->kvs.p);
    *f = (gb_file){0};
}

void gb_put(gb_buf *b, const void *p, size_t n)
{
    if (b->n + n > b->cap) {
        b->cap = 2 * (b->n + n) + 64;
        b->p = grown(b->p, b->cap);
    }
    if (n)
        memcpy(b->p + b->n, p, n);
    b->n += n;
}

static void put_u32(gb_buf *b, uint32_t v)
{
    gb_put(b, &v, sizeof v);
}
static void put_u64(gb_buf *b, uint64_t v)
{
    gb_put(b, &v, sizeof v);
}

void gb_put_str(gb_buf *b, const char *s)
{
    put_u64(b, strlen(s));
    gb_put(b, s, strlen(s));
}

void gb_kv(gb_file *f, const char *key, yk_gguf_type type, const void *value, size_t n_bytes)
{
    gb_put_str(&f->kvs, key);
    put_u32(&f->kvs, type);
    gb_put(&f->kvs, value, n_bytes);
    f->n_kvs++;
}

void gb_u32(gb_file *f, const char *key, uint32_t v)
{
    gb_kv(f, key, YK_GGUF_U32, &v, sizeof v);
}
void gb_f32(gb_file *f, const char *key, float v)
{
    gb_kv(f, key, YK_GGUF_F32, &v, sizeof v);
}
void gb_bool(gb_file *f, const char *key, bool v)
{
    gb_kv(f, key, YK_GGUF_BOOL, &v, 1);
}

void gb_str(gb_file *f, const char *key, const char *v)
{
    gb_buf b = {0};
    gb_put_str(&b, v);
    gb_kv(f, key, YK_GGUF_STR, b.p, b.n);
    free(b.p);
}

void gb_arr(gb_file *f, const char *key, yk_gguf_type elem, const void *values, uint64_t n, size_t n_bytes)
{
    gb_buf b = {0};
    put_u32(&b, elem);
    put_u64(&b, n);
    gb_put(&b, values, n_bytes);
    gb_kv(f, key, YK_GGUF_ARR, b.p, b.n);
    free(b.p);
}

gb_tensor *gb_tensor_add(gb_file *f, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *ne, const void *data,
                         uint64_t n_bytes)
{
    f->tensors = grown(f->tensors, (f->n_tensors + 1) * sizeof *f->tensors);
    gb_tensor *t = &f->tensors[f->n_tensors++];
    *t = (gb_tensor){.type = type, .n_dims = n_dims, .n_bytes = n_bytes};
    snprintf(t->name, sizeof t->name, "%s", name);
    for (uint32_t d = 0; d < 4; d++)
        t->ne[d] = d < n_dims ? ne[d] : 1;
    t->data = grown(NULL, n_bytes);
    if (n_bytes)
        memcpy(t->data, data, n_bytes);
    return t;
}

gb_tensor *gb_tensor_find(gb_file *f, const char *name)
{
    for (uint32_t i = 0; i < f->n_tensors; i++)
        if (strcmp(f->tensors[i].name, name) == 0)
            return &f->tensors[i];
    die("no such tensor", name);
}

void gb_tensor_drop(gb_file *f, const char *name)
{
    gb_tensor *t = gb_tensor_find(f, name);
    free(t->data);
    memmove(t, t + 1, (size_t)(f->tensors + f->n_tensors - (t + 1)) * sizeof *t);
    f->n_tensors--;
}

/* Bytes of a value behind its type number. */
static size_t value_bytes(const yk_gguf_kv *kv)
{
    static const uint8_t size[YK_GGUF_N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (kv->elem_type != YK_GGUF_STR)
        return kv->n * size[kv->elem_type];
    size_t n = 0;
    for (uint64_t i = 0; i < kv->n; i++) {
        uint64_t len;
        memcpy(&len, kv->data + n, sizeof len);
        n += sizeof len + len;
    }
    return n;
}

void gb_copy_kvs(gb_file *f, const yk_gguf *from, const char *const *skip, int n_skip)
{
    for (uint32_t i = 0; i < from->n_kvs; i++) {
        const yk_gguf_kv *kv = &from->kvs[i];
        bool drop = strcmp(kv->key, "general.alignment") == 0;
        for (int j = 0; j < n_skip; j++)
            drop = drop || strncmp(kv->key, skip[j], strlen(skip[j])) == 0;
        if (drop)
            continue;
        if (kv->type == YK_GGUF_ARR)
            gb_arr(f, kv->key, kv->elem_type, kv->data, kv->n, value_bytes(kv));
        else
            gb_kv(f, kv->key, kv->type, kv->data, value_bytes(kv));
    }
}

void gb_copy_tensors(gb_file *f, const yk_gguf *from, uint32_t first, uint32_t n)
{
    for (uint32_t i = first; i < first + n; i++) {
        const yk_gguf_tensor *t = &from->tensors[i];
        gb_tensor_add(f, t->name, (uint32_t)t->type, t->n_dims, t->ne, t->data, t->n_bytes);
    }
}

static void pad(gb_buf *b, uint64_t alignment)
{
    static const uint8_t zero[4096];
    gb_put(b, zero, (size_t)((0 - (uint64_t)b->n) & (alignment - 1)));
}

gb_buf gb_finish(const gb_file *f)
{
    gb_buf b = {0}, data = {0};
    const bool say = f->alignment != 32;
    gb_put(&b, "GGUF", 4);
    put_u32(&b, f->version);
    put_u64(&b, f->n_tensors);
    put_u64(&b, f->n_kvs + say);
    gb_put(&b, f->kvs.p, f->kvs.n);
    if (say) {
        gb_put_str(&b, "general.alignment");
        put_u32(&b, YK_GGUF_U32);
        put_u32(&b, f->alignment);
    }
    for (uint32_t i = 0; i < f->n_tensors; i++) {
        const gb_tensor *t = &f->tensors[i];
        gb_put_str(&b, t->name);
        put_u32(&b, t->n_dims);
        gb_put(&b, t->ne, t->n_dims * sizeof t->ne[0]);
        put_u32(&b, t->type);
        put_u64(&b, data.n);
        gb_put(&data, t->data, t->n_bytes);
        pad(&data, f->alignment);
    }
    pad(&b, f->alignment);
    gb_put(&b, data.p, data.n);
    free(data.p);
    return b;
}

void gb_save(const gb_file *f, const char *path)
{
    gb_buf b = gb_finish(f);
    FILE *o = fopen(path, "wb");
    if (!o || fwrite(b.p, 1, b.n, o) != b.n || fclose(o) != 0)
        die("cannot write", path);
    free(b.p);
}

const char *gb_fixtures(void)
{
    const char *dir = getenv("YOKE_FIXTURES");
    struct stat st;
    if (dir && stat(dir, &st) == 0 && S_ISDIR(st.st_mode))
        return dir;
    printf("SKIP: no test models at %s (YOKE_FIXTURES, meson option fixtures)\n", dir ? dir : "(unset)");
    return NULL;
}
