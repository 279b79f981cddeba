/* kv.h - KV cache in blocks of 16 positions with reference counts.
 *
 * A block holds K and V of 16 positions in every layer: [layer][K, V][kv head][16][head_dim], f16 or f32. */
#ifndef YK_ENGINE_KV_H
#define YK_ENGINE_KV_H

#include "src/base/mem.h"

enum { YK_KV_BLOCK = 16 };

typedef struct yk_kv {
    yk_arena arena;
    uint32_t n_blocks, n_free;
    uint32_t *free_list; /* [n_free] */
    uint32_t *refs;      /* [n_blocks] sequences that use the block */
    size_t layer_bytes;  /* K and V of one layer in a block */
    size_t block_bytes;
} yk_kv;

yk_status yk_kv_open(yk_kv *kv, uint32_t n_blocks, uint32_t n_layers, size_t layer_bytes, yk_error *err);
void yk_kv_close(yk_kv *kv);

/* A free block with one reference; false when none is left. */
bool yk_kv_take(yk_kv *kv, uint32_t *block);
void yk_kv_share(yk_kv *kv, uint32_t block);
/* Drop one reference. */
void yk_kv_drop(yk_kv *kv, uint32_t block);

/* K and V of a layer: K first, V layer_bytes / 2 behind. */
static inline uint8_t *yk_kv_layer(const yk_kv *kv, uint32_t block, uint32_t layer)
{
    return kv->arena.base + (size_t)block * kv->block_bytes + (size_t)layer * kv->layer_bytes;
}

#endif
