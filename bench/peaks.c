/* peaks - what this machine can do at most: reading and copying memory, and the products of each instruction set it has.
 *
 *   peaks [--ms N] [--csv FILE]
 *
 * Read rate: the library's (profiler/membw.h), 1 to n threads, each pinned to a core, with 4 KiB and with transparent huge pages. Copy rate: bytes
 * copied (each is read once and written once, past the caches, as packing does). Products: chains of one instruction on registers, enough of them
 * that their latency is hidden; a multiplication and an addition are two operations. Every figure is the best of several windows of N ms (default 100):
 * what else runs makes a window slower, never faster. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "bench/crew.h"
#include "cpu/topology.h"
#include "src/base/file.h"

/* ---- products ------------------------------------------------------------------------------------------------------------------------------ */

#if defined(__x86_64__)

enum {
    CHAINS = 16,
    CHAINS_AVX = 12
}; /* at least latency times ports; they fit into 32 and 16 registers. All loops unrolled: none is in memory */

__attribute__((target("avx2,fma"))) static double fma_avx2(const yk_crew_work *w, uint8_t *memory)
{
    const __m256 x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps((float)memory[0] + 1);
    __m256 acc[CHAINS_AVX], sum = _mm256_setzero_ps();
    float out[8];
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS_AVX; i++)
        acc[i] = _mm256_set1_ps((float)i);
    for (uint64_t n = w->rounds; n; n--)
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS_AVX; i++)
            acc[i] = _mm256_fmadd_ps(acc[i], x, y);
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS_AVX; i++)
        sum = _mm256_add_ps(sum, acc[i]);
    _mm256_storeu_ps(out, sum);
    return (double)out[0];
}

__attribute__((target("avx512f"))) static double fma_avx512(const yk_crew_work *w, uint8_t *memory)
{
    const __m512 x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps((float)memory[0] + 1);
    __m512 acc[CHAINS], sum = _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++)
        acc[i] = _mm512_set1_ps((float)i);
    for (uint64_t n = w->rounds; n; n--)
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++)
            acc[i] = _mm512_fmadd_ps(acc[i], x, y);
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++)
        sum = _mm512_add_ps(sum, acc[i]);
    return (double)_mm512_cvtss_f32(sum);
}

__attribute__((target("avx2,avxvnni"))) static double vnni_avx2(const yk_crew_work *w, uint8_t *memory)
{
    const __m256i a = _mm256_set1_epi8((char)(memory[0] + 1)), b = _mm256_set1_epi8((char)(memory[1] + 1));
    __m256i acc[CHAINS_AVX], sum = _mm256_setzero_si256();
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS_AVX; i++)
        acc[i] = _mm256_set1_epi32(i);
    for (uint64_t n = w->rounds; n; n--)
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS_AVX; i++) {
            acc[i] = _mm256_dpbusd_avx_epi32(acc[i], a, b);
            __asm__("" : "+x"(acc[i])); /* gcc 12 moves the sums about otherwise */
        }
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS_AVX; i++)
        sum = _mm256_add_epi32(sum, acc[i]);
    return _mm256_extract_epi32(sum, 0);
}

__attribute__((target("avx512f,avx512vnni"))) static double vnni_avx512(const yk_crew_work *w, uint8_t *memory)
{
    const __m512i a = _mm512_set1_epi8((char)(memory[0] + 1)), b = _mm512_set1_epi8((char)(memory[1] + 1));
    __m512i acc[CHAINS], sum = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++)
        acc[i] = _mm512_set1_epi32(i);
    for (uint64_t n = w->rounds; n; n--)
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++)
            __asm__("vpdpbusd %2, %1, %0" : "+v"(acc[i]) : "v"(a), "v"(b));
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++)
        sum = _mm512_add_epi32(sum, acc[i]);
    return _mm512_cvtsi512_si32(sum);
}

__attribute__((target("avx512f,avx512bw,avx512bf16"))) static double bf16_avx512(const yk_crew_work *w, uint8_t *memory)
{
    const __m512bh a = (__m512bh)_mm512_set1_epi16((short)(0x3c00 + memory[0]));
    __m512 acc[CHAINS], sum = _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++)
        acc[i] = _mm512_set1_ps((float)i);
    for (uint64_t n = w->rounds; n; n--)
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++)
            acc[i] = _mm512_dpbf16_ps(acc[i], a, a);
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++)
        sum = _mm512_add_ps(sum, acc[i]);
    return (double)_mm512_cvtss_f32(sum);
}

#if defined(YK_HAVE_AMX)
typedef struct tile_config {
    uint8_t palette, start_row, zero[14];
    uint16_t col_bytes[16];
    uint8_t rows[16];
} tile_config;

/* Four sums of two by two operands, tiles of 16 rows of 64 bytes; loaded once, nothing else than the product is in the loop. */
__attribute__((target("amx-tile"))) static void open_tiles(const uint8_t *memory)
{
    tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.col_bytes[i] = 64;
        c.rows[i] = 16;
    }
    _tile_loadconfig(&c);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, memory, 64);
    _tile_loadd(5, memory + 1024, 64);
    _tile_loadd(6, memory + 2048, 64);
    _tile_loadd(7, memory + 3072, 64);
}

__attribute__((target("amx-tile"))) static double close_tiles(uint8_t *memory)
{
    int32_t first;
    _tile_stored(0, memory + 4096, 64);
    _tile_release();
    memcpy(&first, memory + 4096, sizeof first);
    return first;
}

__attribute__((target("amx-tile,amx-int8"))) static double int8_amx(const yk_crew_work *w, uint8_t *memory)
{
    open_tiles(memory);
    for (uint64_t n = w->rounds; n; n--) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    return close_tiles(memory);
}

__attribute__((target("amx-tile,amx-bf16"))) static double bf16_amx(const yk_crew_work *w, uint8_t *memory)
{
    open_tiles(memory);
    for (uint64_t n = w->rounds; n; n--) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    return close_tiles(memory);
}
#endif
#endif

static const yk_crew_work products[] = {
#if defined(__x86_64__)
    {"f32 fma, 256 bits", "avx2 fma", CHAINS_AVX * 16, 4096, fma_avx2, 8192},
    {"f32 fma, 512 bits", "avx512f", CHAINS * 32, 2048, fma_avx512, 8192},
    {"int8 vnni, 256 bits", "avx2 avx_vnni", CHAINS_AVX * 64, 4096, vnni_avx2, 8192},
    {"int8 vnni, 512 bits", "avx512_vnni", CHAINS * 128, 2048, vnni_avx512, 8192},
    {"bf16 dot, 512 bits", "avx512_bf16", CHAINS * 64, 1024, bf16_avx512, 8192},
#if defined(YK_HAVE_AMX)
    {"int8 amx", "amx_int8", 4 * 2 * 16 * 16 * 64, 512, int8_amx, 8192},
    {"bf16 amx", "amx_bf16", 4 * 2 * 16 * 16 * 32, 512, bf16_amx, 8192},
#endif
#endif
    {0},
};

/* ---- what comes out ------------------------------------------------------------------------------------------------------------------------- */

static void row(FILE *csv, const char *what, const char *detail, uint32_t threads, double value, const char *unit)
{
    printf("%-20s %-8s %3u  %10.1f %s\n", what, detail, threads, value, unit);
    fflush(stdout);
    if (csv)
        fprintf(csv, "\"%s\",%s,%u,%.1f,%s\n", what, detail, threads, value, unit);
}

static bool has_all(const char *isa, const char *needs)
{
    char have[160], word[40];
    snprintf(have, sizeof have, " %s ", isa);
    for (int n; sscanf(needs, "%30s%n", word + 1, &n) == 1; needs += n) {
        word[0] = ' ';
        strcat(word, " ");
        if (!strstr(have, word))
            return false;
    }
    return true;
}

/* Linux gives the tile registers to a process that asks. */
static bool may_use(const yk_crew_work *p)
{
#if defined(__x86_64__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    if (strstr(p->needs, "amx"))
        return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#endif
    return p->run;
}

static void table(FILE *csv, const yk_cpu_info *info, const uint32_t *cpus, uint32_t n, uint32_t ms)
{
    const uint64_t bytes = yk_crew_memory(info);
    for (int huge = 0; huge < 2; huge++)
        for (uint32_t t = 1; t <= n; t++)
            row(csv, "read", huge ? "huge" : "4K", t, yk_crew_read_rate(cpus, t, ms, huge, bytes) / 1e9, "GB/s");
    for (int huge = 0; huge < 2; huge++)
        for (uint32_t t = 1; t <= n; t++) {
            const yk_crew_work copy = yk_crew_copy(bytes / t);
            row(csv, "copy", huge ? "huge" : "4K", t, yk_crew_rate(&copy, cpus, t, ms, huge) / 1e9, "GB/s");
        }
    for (const yk_crew_work *p = products; p->run; p++) {
        if (!has_all(info->isa, p->needs) || !may_use(p)) {
            printf("%-20s not on this machine (%s)\n", p->name, p->needs);
            continue;
        }
        for (uint32_t t = 1; t <= n; t = t < n && 2 * t > n ? n : 2 * t) /* cores do not share what these need */
            row(csv, p->name, "-", t, yk_crew_rate(p, cpus, t, ms, false) / 1e9, "Gop/s");
    }
}

int main(int argc, char **argv)
{
    static uint32_t cpus[YK_MAX_CORES];
    const char *path = NULL;
    uint32_t n = 0;
    long ms = 100;
    yk_cpu_info info;
    yk_error err = {0};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--csv") == 0 && i + 1 < argc) {
            path = argv[++i];
        } else if (strcmp(argv[i], "--ms") == 0 && i + 1 < argc && (ms = strtol(argv[i + 1], NULL, 10)) >= 1 && ms <= 60000) {
            i++;
        } else {
            fprintf(stderr, "usage: peaks [--ms N] [--csv FILE]\n");
            return 2;
        }
    }
    if (yk_topology_cores(cpus, YK_MAX_CORES, &n, &err) != YK_OK || yk_topology_info(&info, &err) != YK_OK) {
        fprintf(stderr, "peaks: %s\n", err.text);
        return 1;
    }
    yk_out_file out = {0};
    if (path && yk_out_open(&out, path, &err) != YK_OK) {
        fprintf(stderr, "peaks: %s\n", err.text);
        return 1;
    }
    printf("%s, %u cores, %s\n\n%-20s %-8s %s\n", info.name, n, info.isa, "what", "pages", "threads");
    if (path)
        fprintf(out.f, "what,pages,threads,value,unit\n");
    table(out.f, &info, cpus, n, (uint32_t)ms);
    if (path && yk_out_commit(&out, &err) != YK_OK) {
        fprintf(stderr, "peaks: %s\n", err.text);
        return 1;
    }
    return 0;
}
