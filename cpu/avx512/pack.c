/* pack.c - packing by AVX-512: cpu/pack_tiles.h, four pieces of 16 bytes at a time. */
#include <immintrin.h>
#include <string.h>

#include "cpu/pack.h"
#include "cpu/tile.h"

/* The rest of this file, and nothing else, is compiled for this level; pack.c asks the CPU before it uses it. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl")
#endif

#define YK_PACK_LANES 4
#include "cpu/pack_tiles.h"

static void leave(uint8_t *out, const uint8_t *tile, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 64)
        _mm512_stream_si512((__m512i *)(void *)(out + i), _mm512_load_si512((const __m512i *)(const void *)(tile + i)));
}

const yk_pack_level yk_pack_avx512 = {YK_PACK_TABLE(pack), leave};

#if defined(__clang__)
#pragma clang attribute pop
#endif
