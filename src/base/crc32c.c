#include "src/base/crc32c.h"

#include <pthread.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* ---- plain C: eight bytes at a time, one table for the place of each ---------------------------------------------------------------------- */

enum { POLYNOMIAL = 0x82f63b78 }; /* 0x1edc6f41, bits reversed */
static uint32_t table[8][256];

static void fill_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c >> 1 ^ (c & 1 ? (uint32_t)POLYNOMIAL : 0);
        table[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
}

uint32_t yk_crc32c_plain(uint32_t crc, const void *p, size_t n)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill_table);
    const uint8_t *b = p;
    uint32_t c = ~crc;
    for (; n >= 8; n -= 8, b += 8) {
        c ^= (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
        c = table[7][c & 255] ^ table[6][c >> 8 & 255] ^ table[5][c >> 16 & 255] ^ table[4][c >> 24] ^ table[3][b[4]] ^
            table[2][b[5]] ^ table[1][b[6]] ^ table[0][b[7]];
    }
    for (; n; n--)
        c = c >> 8 ^ table[0][(c ^ *b++) & 255];
    return ~c;
}

/* ---- by the instruction ------------------------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
static inline uint64_t word(const uint8_t *p)
{
    uint64_t w;
    memcpy(&w, p, sizeof w);
    return w;
}

__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t crc, const uint8_t *p, size_t n)
{
    uint64_t c = (uint32_t)~crc;
    for (; n >= 8; n -= 8, p += 8)
        c = _mm_crc32_u64(c, word(p));
    for (; n; n--)
        c = _mm_crc32_u8((uint32_t)c, *p++);
    return ~(uint32_t)c;
}

__attribute__((target("sse4.2"))) static void four_sse42(const uint8_t *p, size_t far, size_t n, uint32_t crc[4])
{
    uint64_t a = UINT32_MAX, b = a, c = a, d = a;
    for (size_t i = 0; i < n; i += 8) {
        a = _mm_crc32_u64(a, word(p + i));
        b = _mm_crc32_u64(b, word(p + far + i));
        c = _mm_crc32_u64(c, word(p + 2 * far + i));
        d = _mm_crc32_u64(d, word(p + 3 * far + i));
    }
    crc[0] = ~(uint32_t)a;
    crc[1] = ~(uint32_t)b;
    crc[2] = ~(uint32_t)c;
    crc[3] = ~(uint32_t)d;
}

static int have_instruction(void)
{
    return __builtin_cpu_supports("sse4.2");
}

/* ---- by carry-less products: the polynomial of 256 bytes at a time, taken further by what x to the distance leaves of the generator ---------- */

/* x^e mod the generator, as the other factor of a product of 64 bits, bits reversed. Such a product has one bit less than the 128 it is read as, which
 * is why the exponents below are one less than the distance (low bytes come first: they have 64 more to go). */
static uint64_t power(uint32_t e)
{
    uint32_t c = 1u << 31;
    while (e--)
        c = c >> 1 ^ (c & 1 ? (uint32_t)POLYNOMIAL : 0);
    return (uint64_t)c << 32;
}

enum { FOLD_STEP = 256, FAR_BITS = 2048, NEAR_BITS = 512, LANE_BITS = 128 };
static uint64_t fold_by[3][2]; /* FAR, NEAR, LANE: factors of the low and the high half */

static void fill_powers(void)
{
    static const uint32_t bits[3] = {FAR_BITS, NEAR_BITS, LANE_BITS};
    for (int i = 0; i < 3; i++) {
        fold_by[i][0] = power(bits[i] + 63);
        fold_by[i][1] = power(bits[i] - 1);
    }
}

#define FOLDS __attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2")))

FOLDS static inline __m512i fold(__m512i v, __m512i by, __m512i next)
{
    const __m512i low = _mm512_clmulepi64_epi128(v, by, 0x00), high = _mm512_clmulepi64_epi128(v, by, 0x11);
    return _mm512_ternarylogic_epi64(low, high, next, 0x96);
}

FOLDS static inline __m128i fold_lane(__m128i v, __m128i by, __m128i next)
{
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(v, by, 0x00), _mm_clmulepi64_si128(v, by, 0x11)), next);
}

FOLDS static inline __m512i factors(int i)
{
    return _mm512_set_epi64((long long)fold_by[i][1], (long long)fold_by[i][0], (long long)fold_by[i][1],
                            (long long)fold_by[i][0], (long long)fold_by[i][1], (long long)fold_by[i][0],
                            (long long)fold_by[i][1], (long long)fold_by[i][0]);
}

/* CRC of n bytes, a multiple of FOLD_STEP and not 0. */
FOLDS static uint32_t crc_folded(const uint8_t *p, size_t n)
{
    const __m512i far = factors(0), near = factors(1);
    const __m128i lane = _mm512_castsi512_si128(factors(2));
    __m512i v[4];
    for (int i = 0; i < 4; i++)
        v[i] = _mm512_loadu_si512(p + 64 * i);
    v[0] = _mm512_xor_si512(v[0], _mm512_castsi128_si512(_mm_cvtsi32_si128(-1)));
    for (size_t at = FOLD_STEP; at < n; at += FOLD_STEP)
        for (int i = 0; i < 4; i++)
            v[i] = fold(v[i], far, _mm512_loadu_si512(p + at + 64 * (size_t)i));
    for (int i = 1; i < 4; i++)
        v[i] = fold(v[i - 1], near, v[i]);
    __m128i last = _mm512_castsi512_si128(v[3]);
    last = fold_lane(last, lane, _mm512_extracti32x4_epi32(v[3], 1));
    last = fold_lane(last, lane, _mm512_extracti32x4_epi32(v[3], 2));
    last = fold_lane(last, lane, _mm512_extracti32x4_epi32(v[3], 3));
    const uint64_t c = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(last));
    return ~(uint32_t)_mm_crc32_u64(c, (uint64_t)_mm_extract_epi64(last, 1));
}

static int have_folds(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("pclmul") &&
           have_instruction();
}
#endif

/* ---- either -------------------------------------------------------------------------------------------------------------------------------- */

uint32_t yk_crc32c(uint32_t crc, const void *p, size_t n)
{
#if defined(__x86_64__)
    if (have_instruction())
        return crc_sse42(crc, p, n);
#endif
    return yk_crc32c_plain(crc, p, n);
}

/* CRCs of the first n bytes, a multiple of 8, of four places `far` apart. */
static void four(const uint8_t *p, size_t far, size_t n, uint32_t crc[4])
{
#if defined(__x86_64__)
    const size_t folded = n - n % FOLD_STEP;
    if (folded && have_folds()) {
        static pthread_once_t once = PTHREAD_ONCE_INIT;
        pthread_once(&once, fill_powers);
        for (int i = 0; i < 4; i++)
            crc[i] = crc_sse42(crc_folded(p + i * far, folded), p + i * far + folded, n - folded);
        return;
    }
    if (have_instruction()) {
        four_sse42(p, far, n, crc);
        return;
    }
#endif
    for (int i = 0; i < 4; i++)
        crc[i] = yk_crc32c_plain(0, p + i * far, n);
}

uint32_t yk_crc32c_block(const void *p, size_t n)
{
    const size_t quarter = n / 32 * 8;
    const uint8_t *b = p;
    uint32_t crc[4];
    uint8_t text[16];
    four(b, quarter, quarter, crc);
    crc[3] = yk_crc32c(crc[3], b + 4 * quarter, n - 4 * quarter);
    for (int i = 0; i < 16; i++)
        text[i] = (uint8_t)(crc[i / 4] >> 8 * (i % 4));
    return yk_crc32c(0, text, sizeof text);
}
