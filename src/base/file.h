/* file.h - read-only mappings, whole small files, and output files that appear only when complete. */
#ifndef YK_BASE_FILE_H
#define YK_BASE_FILE_H

#include <stdio.h>

#include "src/base/mem.h"

typedef struct yk_map {
    const uint8_t *data; /* NULL for an empty file */
    uint64_t size;
    uint64_t mtime_ns; /* last change of the file when it was opened, since 1970 */
} yk_map;

/* Map a regular file. YK_ERR_INPUT with the path in the text: missing, a directory, not readable. */
yk_status yk_map_open(yk_map *map, const char *path, yk_error *err);
void yk_map_close(yk_map *map);

/* Bytes of a mapping that will not be read again soon: their pages need not stay in memory (they are read from the file when needed after all). */
void yk_map_release(const void *p, uint64_t bytes);

/* Read a whole file of at most max_bytes; *out is NUL-terminated, from yk_alloc. path "-" reads standard input. */
yk_status yk_read_file(char **out, size_t *n_bytes, const char *path, uint64_t max_bytes, yk_error *err);

/* Pass on the failure `inner` of reading what a file holds: with its path when the content is to blame. Returns st. */
yk_status yk_fail_in_file(yk_error *err, yk_status st, const char *path, const yk_error *inner);

/* An output file: written to PATH.tmp-PID-N beside it, renamed by commit. Abort (or close without commit) removes it. A link stays and
 * its target is written; a device or a pipe is written directly (tmp_path is NULL). */
typedef struct yk_out_file {
    FILE *f;
    char *path, *tmp_path;
} yk_out_file;

yk_status yk_out_open(yk_out_file *out, const char *path, yk_error *err);
/* Flush, sync, rename. On failure the temporary file is gone. */
yk_status yk_out_commit(yk_out_file *out, yk_error *err);
void yk_out_abort(yk_out_file *out);

/* Write a whole file in this way. */
yk_status yk_write_file(const char *path, const char *text, size_t n_bytes, yk_error *err);

#endif
