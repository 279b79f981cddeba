/* pack_cache.h - packed weights in a file, so that the next start reads them instead of packing.
 *
 * A folder holds a file for each state of a model and layout (YK_PACK_LAYOUT), whatever instruction set, plan or device the engine has: always all
 * weights that have a packed form. Native byte order, as all of yoke little endian:
 *
 *   header   yk_cache_header: magic, version, layout, the model's identity, sizes, checksums of table and header
 *   table    yk_cache_entry for each piece: which weights, where, how long, its checksum (yk_crc32c_block)
 *   data     from data_at on, a multiple of 4096; the pieces in the order of the table, without gaps
 *
 * A piece is some panels of a matrix, as many as the packer does at once, the pairs of panels of a cut unit, or its tiles of `down`. Everything but checksums follows from the model, so
 * header and table have to be what the model says to the byte; otherwise, or when a piece has another checksum, the weights are packed from the
 * model. The file is written while the weights are packed and appears under its name when it is complete. Nothing here makes an engine fail, but
 * a lack of memory for the table. */
#ifndef YK_ENGINE_PACK_CACHE_H
#define YK_ENGINE_PACK_CACHE_H

#include "src/model/model.h"

typedef struct yk_cache_header {
    char magic[8]; /* "YOKEPACK" */
    uint32_t version, layout;
    uint64_t model_bytes; /* of all files of the model */
    uint64_t model_times; /* FNV-1a over size and time of change of each file */
    uint32_t model_head,
        model_samples; /* CRC of what precedes the tensor data in each file; of up to 4096 bytes in the middle of each tensor */
    uint32_t n_entries, entry_bytes;
    uint64_t data_at, file_bytes;
    uint32_t table_crc, header_crc; /* header_crc: of all before it */
} yk_cache_header;

enum { YK_CACHE_Q, YK_CACHE_K, YK_CACHE_V, YK_CACHE_O, YK_CACHE_ROUTER, YK_CACHE_HEAD, YK_CACHE_PAIRS, YK_CACHE_DOWN };
enum { YK_CACHE_PER_UNIT = 2 }; /* entries: pairs, down */

typedef struct yk_cache_entry {
    uint32_t layer, what; /* YK_CACHE_*; the head belongs to the layer behind the last */
    uint32_t part;        /* expert; behind the experts the shared one; else 0 */
    uint32_t first, n;    /* panels of a matrix, cut units of a part */
    uint32_t crc;
    uint64_t offset, bytes; /* in the file */
} yk_cache_entry;

typedef struct yk_pack_cache yk_pack_cache;

enum { YK_CACHE_NONE = UINT32_MAX }; /* no entry */

/* Open the cache of a model in folder `dir` (made when there is none) to read it, or to write it anew. n_parts: FFN parts of a layer at most. A line says
 * what is wrong with folder or file. YK_ERR_MEMORY. */
yk_status yk_pack_cache_open(yk_pack_cache **out, const yk_model *m, uint32_t n_parts, const char *dir, yk_error *err);
/* Entry that holds row row0 of a matrix of the model (not a copy of it); its first row. YK_CACHE_NONE: it has none. */
uint32_t yk_pack_cache_matrix(const yk_pack_cache *c, const yk_weight *w, uint32_t row0);
/* Entry of a cut unit of FFN part `part` of the layer whose gate matrix this is; that of the next unit is YK_CACHE_PER_UNIT behind it. */
uint32_t yk_pack_cache_unit(const yk_pack_cache *c, const yk_weight *gate, uint32_t part, uint32_t unit, bool down);
/* From any thread: the bytes of an entry to `out`; false: they are not there or not right, `out` may hold anything. */
bool yk_pack_cache_get(yk_pack_cache *c, uint32_t entry, uint8_t *out);
/* From any thread: write an entry, where the cache is being written. The same bytes may be given again. */
void yk_pack_cache_put(yk_pack_cache *c, uint32_t entry, const uint8_t *bytes);
/* Have all entries that were asked for come from the file so far? */
bool yk_pack_cache_reading(const yk_pack_cache *c);
/* Is the cache being written? */
bool yk_pack_cache_writing(const yk_pack_cache *c);
/* Do not write it after all: the weights are not packed. */
void yk_pack_cache_drop(yk_pack_cache *c);
/* Next entry at or behind `from` that has not been put; YK_CACHE_NONE: none. */
uint32_t yk_pack_cache_missing(const yk_pack_cache *c, uint32_t from);
const yk_cache_entry *yk_pack_cache_entry(const yk_pack_cache *c, uint32_t entry);
/* Everything has been got or put: a new file gets its name, a damaged one is removed, and a line says so. *c becomes NULL. */
void yk_pack_cache_finish(yk_pack_cache **c);
/* Close without that; a file that was being written is removed. */
void yk_pack_cache_close(yk_pack_cache **c);

#endif
