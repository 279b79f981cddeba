/* gguf_build.h - write GGUF images for tests: from nothing, or as variations of a file that yoke has read. */
#ifndef YK_TESTS_GGUF_BUILD_H
#define YK_TESTS_GGUF_BUILD_H

#include "src/model/gguf.h"

/* Tests use short names; the symbols have the prefix of the project. */
#define gb_arr          yk_gb_arr
#define gb_bool         yk_gb_bool
#define gb_copy_kvs     yk_gb_copy_kvs
#define gb_copy_tensors yk_gb_copy_tensors
#define gb_f32          yk_gb_f32
#define gb_finish       yk_gb_finish
#define gb_fixtures     yk_gb_fixtures
#define gb_free         yk_gb_free
#define gb_init         yk_gb_init
#define gb_kv           yk_gb_kv
#define gb_put          yk_gb_put
#define gb_put_str      yk_gb_put_str
#define gb_save         yk_gb_save
#define gb_str          yk_gb_str
#define gb_tensor_add   yk_gb_tensor_add
#define gb_tensor_drop  yk_gb_tensor_drop
#define gb_tensor_find  yk_gb_tensor_find
#define gb_u32          yk_gb_u32

/* Growing buffer; running out of memory ends the test program. */
typedef struct gb_buf {
    uint8_t *p;
    size_t n, cap;
} gb_buf;

typedef struct gb_tensor {
    char name[96];
    uint32_t type, n_dims;
    uint64_t ne[4];
    uint8_t *data; /* owned */
    uint64_t n_bytes;
} gb_tensor;

typedef struct gb_file {
    uint32_t version, alignment; /* 3, 32; general.alignment is written when it is not 32 */
    gb_buf kvs;                  /* encoded key-value pairs */
    uint64_t n_kvs;
    gb_tensor *tensors;
    uint32_t n_tensors;
} gb_file;

void gb_init(gb_file *f);
void gb_free(gb_file *f);

void gb_put(gb_buf *b, const void *p, size_t n);
void gb_put_str(gb_buf *b, const char *s);

/* A key with a raw value; gb_u32 and so on are short for the usual types. Keys are appended, nothing is replaced. */
void gb_kv(gb_file *f, const char *key, yk_gguf_type type, const void *value, size_t n_bytes);
void gb_u32(gb_file *f, const char *key, uint32_t v);
void gb_f32(gb_file *f, const char *key, float v);
void gb_bool(gb_file *f, const char *key, bool v);
void gb_str(gb_file *f, const char *key, const char *v);
/* An array of n fixed-size elements in n_bytes. */
void gb_arr(gb_file *f, const char *key, yk_gguf_type elem, const void *values, uint64_t n, size_t n_bytes);

/* Append a tensor; data is copied. Returns it (valid until the next one is added). */
gb_tensor *gb_tensor_add(gb_file *f, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *ne, const void *data,
                         uint64_t n_bytes);
gb_tensor *gb_tensor_find(gb_file *f, const char *name); /* fails the program when absent */
void gb_tensor_drop(gb_file *f, const char *name);

/* Copy keys (but not those that start with one of the n_skip prefixes, and never general.alignment) and tensors. */
void gb_copy_kvs(gb_file *f, const yk_gguf *from, const char *const *skip, int n_skip);
void gb_copy_tensors(gb_file *f, const yk_gguf *from, uint32_t first, uint32_t n);

/* The whole image; the caller frees p. */
gb_buf gb_finish(const gb_file *f);
void gb_save(const gb_file *f, const char *path);

/* Folder of fixtures, or NULL after printing why the test is skipped. */
const char *gb_fixtures(void);

#endif
