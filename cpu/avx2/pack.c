/* pack.c - packing by AVX2: cpu/pack_tiles.h, two pieces of 16 bytes at a time. */
#include <immintrin.h>
#include <string.h>

#include "cpu/pack.h"
#include "cpu/tile.h"

/* The rest of this file, and nothing else, is compiled for this level; pack.c asks the CPU before it uses it. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif

#define YK_PACK_LANES 2
#include "cpu/pack_tiles.h"

static void leave(uint8_t *out, const uint8_t *tile, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 32)
        _mm256_stream_si256((__m256i *)(void *)(out + i), _mm256_load_si256((const __m256i *)(const void *)(tile + i)));
}

const yk_pack_level yk_pack_avx2 = {YK_PACK_TABLE(pack), leave};

#if defined(__clang__)
#pragma clang attribute pop
#endif
