/* gguf_read.h - the two halves of the GGUF reader talk through this; nobody else includes it. */
#ifndef YK_MODEL_GGUF_READ_H
#define YK_MODEL_GGUF_READ_H

#include "src/model/gguf.h"

/* A bounded read position in one file. */
typedef struct yk_cursor {
    const uint8_t *data;
    uint64_t size, pos; /* pos <= size always */
    const char *path;   /* for messages */
} yk_cursor;

static inline uint64_t yk_cursor_left(const yk_cursor *c)
{
    return c->size - c->pos;
}

/* Read a little-endian value, or a string that lies wholly inside the file; false (and nothing moved) at the end of file. */
bool yk_cursor_u32(yk_cursor *c, uint32_t *v);
bool yk_cursor_u64(yk_cursor *c, uint64_t *v);
bool yk_cursor_str(yk_cursor *c, yk_str *s);

typedef struct yk_kv_list {
    yk_gguf_kv *kvs;
    uint32_t n;
} yk_kv_list;

/* Read `count` key-value pairs. On failure the list holds what was read and must be freed as well. */
yk_status yk_kvs_read(yk_kv_list *list, yk_cursor *c, uint64_t count, yk_error *err);
void yk_kvs_free(yk_kv_list *list);

/* Names of a hash table's entries. */
typedef const char *(*yk_name_fn)(const void *items, uint32_t i);

/* Build the open-addressing table of n names, at most half full. YK_ERR_INPUT when a name is there twice; `what` is "key" or
 * "tensor". */
yk_status yk_index_build(uint32_t **index, uint32_t *slots, const void *items, uint32_t n, yk_name_fn name, const char *what,
                         const char *path, yk_error *err);
/* Position of a name, or -1. */
int64_t yk_index_find(const uint32_t *index, uint32_t slots, const void *items, yk_name_fn name, const char *key);

#endif
