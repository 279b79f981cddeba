#include "src/engine/kv.h"

yk_status yk_kv_open(yk_kv *kv, uint32_t n_blocks, uint32_t n_layers, size_t layer_bytes, yk_error *err)
{
    *kv = (yk_kv){.n_blocks = n_blocks, .n_free = n_blocks, .layer_bytes = layer_bytes};
    size_t total;
    if (__builtin_mul_overflow(layer_bytes, (size_t)n_layers, &kv->block_bytes) ||
        __builtin_mul_overflow(kv->block_bytes, (size_t)n_blocks, &total))
        return yk_fail_memory(err, UINT64_MAX, "the KV cache");
    kv->free_list = yk_alloc(YK_MEM_KV, n_blocks, sizeof *kv->free_list);
    kv->refs = yk_alloc(YK_MEM_KV, n_blocks, sizeof *kv->refs);
    if (!kv->free_list || !kv->refs) {
        yk_kv_close(kv);
        return yk_fail_memory(err, n_blocks * sizeof *kv->refs, "the KV block table");
    }
    const yk_status st = yk_arena_open(&kv->arena, YK_MEM_KV, total, true, err);
    if (st != YK_OK) {
        yk_kv_close(kv);
        return st;
    }
    for (uint32_t i = 0; i < n_blocks; i++)
        kv->free_list[i] = n_blocks - 1 - i;
    return YK_OK;
}

void yk_kv_close(yk_kv *kv)
{
    yk_free(kv->free_list);
    yk_free(kv->refs);
    yk_arena_close(&kv->arena);
    *kv = (yk_kv){0};
}

bool yk_kv_take(yk_kv *kv, uint32_t *block)
{
    if (!kv->n_free)
        return false;
    *block = kv->free_list[--kv->n_free];
    kv->refs[*block] = 1;
    return true;
}

void yk_kv_share(yk_kv *kv, uint32_t block)
{
    kv->refs[block]++;
}

void yk_kv_drop(yk_kv *kv, uint32_t block)
{
    if (--kv->refs[block] == 0)
        kv->free_list[kv->n_free++] = block;
}
