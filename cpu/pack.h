/* pack.h - the packed layout of weights, the same for every instruction set and device: docs/kernels/layout.md.
 *
 * A panel is 16 rows over all columns; it is a sequence of tiles of 16 rows by 256 columns (the last one may be narrower), each a multiple of 64
 * bytes. A matrix is its panels one after the other; rows missing in the last panel are zero. */
#ifndef YK_CPU_PACK_H
#define YK_CPU_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu/topology.h"
#include "src/model/types.h"

enum { YK_TILE_ROWS = 16, YK_TILE_COLS = 256 };

/* Names the bytes of the layout, that of the cut units of an FFN part included: changed whenever any of them changes, so that a pack cache of before is
 * not read. tests/test_pack_cache.c holds their checksum. */
enum { YK_PACK_LAYOUT = 1 };

/* True for types that have a packed form. */
bool yk_pack_has(yk_type type);
/* Bytes of a tile of n_cols <= 256 columns (a multiple of the type's block and, for float types, any number). */
uint32_t yk_tile_bytes(yk_type type, uint32_t n_cols);
/* Bytes of a panel of n_cols columns; of a matrix of n_rows rows. */
uint64_t yk_panel_bytes(yk_type type, uint32_t n_cols);
uint64_t yk_packed_bytes(yk_type type, uint32_t n_rows, uint32_t n_cols);

/* Pack columns [col0, col0 + n_cols) of n_rows rows in file layout, row_bytes apart, into consecutive panels at `out` (64-byte aligned,
 * yk_packed_bytes long). col0 and n_cols are multiples of the block. Many threads may pack one matrix: a range of panels is a call of its own,
 * from row 16 p on to out + p * yk_panel_bytes. The bytes are seen by other threads after any hand-over that orders stores. */
void yk_pack(yk_type type, const uint8_t *rows, uint64_t row_bytes, uint32_t n_rows, uint32_t col0, uint32_t n_cols,
             uint8_t *out);
/* The same for n_units runs of n_cols columns beside each other, the first at col0: each becomes a matrix of its own, unit u at out + u * unit_stride. One pass over
 * the rows, so that narrow runs do not read each cache line and page of the file again. */
typedef struct yk_pack_run {
    uint32_t col0, n_cols, n_units;
    uint64_t unit_stride;
} yk_pack_run;
void yk_pack_units(yk_type type, const uint8_t *rows, uint64_t row_bytes, uint32_t n_rows, const yk_pack_run *run,
                   uint8_t *out);
/* The same by the vectors of a level, for tests: the bytes are the same. The CPU can do `isa`. */
void yk_pack_units_at(yk_isa isa, yk_type type, const uint8_t *rows, uint64_t row_bytes, uint32_t n_rows,
                      const yk_pack_run *run, uint8_t *out);
/* The inverse for one matrix that was packed with col0 0: the file's bytes again. */
void yk_unpack(yk_type type, const uint8_t *packed, uint32_t n_rows, uint32_t n_cols, uint8_t *rows, uint64_t row_bytes);

#endif
