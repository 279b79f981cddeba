/* gguf.h - reader of GGUF files, version 2 and 3, little endian, single or split. Nothing in a file is trusted: no size is
 * computed without an overflow check, nothing is allocated because a file only claims it.
 *
 * Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic "GGUF", u32 version, u64 tensor count, u64 key
 * count, keys (string, u32 type, value), tensor table (name, u32 n_dims, u64 dims[], u32 type, u64 offset), padding to
 * general.alignment, data. */
#ifndef YK_MODEL_GGUF_H
#define YK_MODEL_GGUF_H

#include "src/base/file.h"
#include "src/model/types.h"

typedef enum yk_gguf_type {
    YK_GGUF_U8,
    YK_GGUF_I8,
    YK_GGUF_U16,
    YK_GGUF_I16,
    YK_GGUF_U32,
    YK_GGUF_I32,
    YK_GGUF_F32,
    YK_GGUF_BOOL,
    YK_GGUF_STR,
    YK_GGUF_ARR,
    YK_GGUF_U64,
    YK_GGUF_I64,
    YK_GGUF_F64,
    YK_GGUF_N_TYPES
} yk_gguf_type;

/* A string inside the mapping: not NUL-terminated. */
typedef struct yk_str {
    const char *p;
    uint64_t n;
} yk_str;

typedef struct yk_gguf_kv {
    char *key;              /* NUL-terminated copy */
    yk_gguf_type type;      /* YK_GGUF_ARR for arrays */
    yk_gguf_type elem_type; /* of arrays; else equal to type */
    uint64_t n;             /* elements; 1 for scalars */
    const uint8_t *data;    /* in the mapping, unaligned; strings and arrays of strings: at their first length field */
    uint64_t offset;        /* of data in its file, for messages */
    const uint8_t **strs;   /* arrays of strings: [n] pointers to each string's length field, checked; else NULL */
} yk_gguf_kv;

typedef struct yk_gguf_tensor {
    char *name; /* NUL-terminated copy */
    yk_type type;
    uint32_t n_dims;
    uint64_t ne[4]; /* ne[0] contiguous; unused 1 */
    uint64_t n_elems, n_bytes, row_bytes;
    uint64_t offset;     /* of the data in its file */
    uint32_t file;       /* index of the file in the set */
    const uint8_t *data; /* in the mapping; NULL with vocab_only */
} yk_gguf_tensor;

typedef struct yk_gguf {
    yk_map *maps;
    uint32_t n_files, version;
    uint32_t alignment;
    uint64_t file_bytes; /* of all files */
    yk_gguf_kv *kvs;     /* of the first file */
    uint32_t n_kvs;
    yk_gguf_tensor *tensors; /* of all files, file order */
    uint32_t n_tensors;
    uint32_t *kv_index, *tensor_index; /* open-addressing hash tables by name, of index + 1 */
    uint32_t kv_slots, tensor_slots;
} yk_gguf;

/* Check and map. vocab_only: tensors may be absent and their data is not looked at, nor are other files of a split set. Every
 * failure names the key, tensor or byte offset. On failure *gguf is closed. */
yk_status yk_gguf_open(yk_gguf *gguf, const char *path, bool vocab_only, yk_error *err);
/* Check a GGUF image in memory (not split), for tests and fuzzing; data must outlive gguf. */
yk_status yk_gguf_open_memory(yk_gguf *gguf, const uint8_t *data, uint64_t size, bool vocab_only, yk_error *err);
void yk_gguf_close(yk_gguf *gguf);

/* NULL when absent. */
const yk_gguf_kv *yk_gguf_find(const yk_gguf *gguf, const char *key);
const yk_gguf_tensor *yk_gguf_find_tensor(const yk_gguf *gguf, const char *name);

/* Typed access to scalars. Absent key: *out is left alone and YK_OK when `required` is false, else YK_ERR_INPUT naming the key.
 * A value of another type is YK_ERR_INPUT naming the key (any integer type that holds the value is accepted for integers,
 * either float type for floats). */
yk_status yk_gguf_get_u32(const yk_gguf *gguf, const char *key, bool required, uint32_t *out, yk_error *err);
yk_status yk_gguf_get_f32(const yk_gguf *gguf, const char *key, bool required, float *out, yk_error *err);
yk_status yk_gguf_get_bool(const yk_gguf *gguf, const char *key, bool required, bool *out, yk_error *err);
yk_status yk_gguf_get_str(const yk_gguf *gguf, const char *key, bool required, yk_str *out, yk_error *err);

/* Element i of an array kv whose elem_type is known to be right. */
yk_str yk_gguf_arr_str(const yk_gguf_kv *kv, uint64_t i);
float yk_gguf_arr_f32(const yk_gguf_kv *kv, uint64_t i);
int64_t yk_gguf_arr_int(const yk_gguf_kv *kv, uint64_t i); /* any integer elem_type */

/* Name of a value type: "u32", "str", "[f32]" for arrays. */
const char *yk_gguf_type_name(const yk_gguf_kv *kv);

#endif
