/* gguf_write.h - writer of GGUF version 3, little endian: keys, then tensors, then the data by a callback that several threads
 * call.
 *
 * Layout: src/model/gguf.h. Use: init, add keys, add tensors, save, close. Functions that add remember a failure (memory, a row
 * that is not whole blocks, an overflow) and save reports it, so callers need not look after each. */
#ifndef YK_MODEL_GGUF_WRITE_H
#define YK_MODEL_GGUF_WRITE_H

#include "src/model/gguf.h"

typedef struct yk_gguf_buf {
    uint8_t *p;
    size_t n, cap;
} yk_gguf_buf;

typedef struct yk_gguf_out_tensor {
    yk_type type;
    uint64_t n_rows, row_bytes; /* rows of ne[0] elements, over all other dimensions */
    uint64_t offset, n_bytes;   /* offset from the start of the data */
} yk_gguf_out_tensor;

typedef struct yk_gguf_writer {
    yk_gguf_buf keys, table;
    yk_gguf_out_tensor *tensors;
    uint32_t n_kvs, n_tensors, cap_tensors, alignment;
    uint64_t data_bytes; /* with the padding behind each tensor */
    yk_error failure;    /* the first one; YK_OK: none */
} yk_gguf_writer;

/* Fill rows first_row .. first_row + n_rows - 1 of a tensor: n_rows * row_bytes bytes at dst. Called by several threads at a
 * time, each with its own thread number below n_threads; the rows of a call belong to one tensor. */
typedef yk_status (*yk_gguf_fill_fn)(void *user, uint32_t thread, uint32_t tensor, uint64_t first_row, uint64_t n_rows,
                                     uint8_t *dst, yk_error *err);

typedef struct yk_gguf_save_opts {
    yk_gguf_fill_fn fill;
    void *fill_user;
    uint32_t n_threads;      /* 1 .. YK_GGUF_MAX_THREADS, the caller's included; fewer run when threads cannot be had */
    const char *what;        /* for progress */
    yk_progress_fn progress; /* called from the caller's thread, in bytes; may be NULL */
    void *progress_user;
} yk_gguf_save_opts;

enum { YK_GGUF_MAX_THREADS = 16 };

/* alignment: a power of two from 8 to 65536; general.alignment is written when it is not 32. */
void yk_gguf_writer_init(yk_gguf_writer *w, uint32_t alignment);
void yk_gguf_writer_close(yk_gguf_writer *w);

void yk_gguf_put_u32(yk_gguf_writer *w, const char *key, uint32_t value);
void yk_gguf_put_f32(yk_gguf_writer *w, const char *key, float value);
void yk_gguf_put_bool(yk_gguf_writer *w, const char *key, bool value);
void yk_gguf_put_str(yk_gguf_writer *w, const char *key, const char *value);
/* Key and head of an array; n elements must follow by yk_gguf_elem or yk_gguf_elem_str. */
void yk_gguf_put_array(yk_gguf_writer *w, const char *key, yk_gguf_type elem_type, uint64_t n);
void yk_gguf_elem(yk_gguf_writer *w, const void *bytes, size_t n);
void yk_gguf_elem_str(yk_gguf_writer *w, const char *s, size_t n);
/* A key as it is in a file that is open. */
void yk_gguf_put_copy(yk_gguf_writer *w, const yk_gguf_kv *kv);

/* Tensors are numbered and laid out in the order of these calls. ne[0] is contiguous. */
void yk_gguf_add_tensor(yk_gguf_writer *w, const char *name, yk_type type, uint32_t n_dims, const uint64_t *ne);

/* Bytes of the file to be written. */
uint64_t yk_gguf_writer_file_bytes(const yk_gguf_writer *w);

/* Write everything. The file appears under its name only when complete; on failure nothing is left.
 * YK_ERR_RUNTIME: the disk (free space is looked at first); YK_ERR_CANCELLED: progress returned false; what fill returned;
 * YK_ERR_MEMORY; YK_ERR_USAGE: a tensor or key that cannot be written. */
yk_status yk_gguf_save(yk_gguf_writer *w, const char *path, const yk_gguf_save_opts *opts, yk_error *err);

#endif
