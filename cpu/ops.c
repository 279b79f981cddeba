/* ops.c - the op tables, one for each instruction set level, filled once. */
#include "cpu/ops.h"

#include <pthread.h>

#include "cpu/ref/ref.h"

#ifdef YK_HAVE_AVX2
#include <cpuid.h>
#endif
#ifdef YK_HAVE_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

static bool always(void)
{
    return true;
}

#ifdef YK_HAVE_AVX2
/* clang 14 has no name for F16C here. */
static bool has_avx2(void)
{
    const uint32_t f16c = 1u << 29; /* leaf 1, ecx */
    uint32_t a, b, c, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) && (c & f16c);
}
#endif

#ifdef YK_HAVE_AVXVNNI
/* Its own bit: CPUs with AVX-512 VNNI may lack it, and those it is for have no AVX-512. */
static bool has_avxvnni(void)
{
    const uint32_t avx_vnni = 1u << 4; /* leaf 7.1, eax */
    uint32_t a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) &&
           (a & avx_vnni);
}
#endif

#ifdef YK_HAVE_AVX512
static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

#ifdef YK_HAVE_AMX
/* Linux gives the tile registers to a process that asks, once for all threads; it refuses where a hypervisor or an old
 * system hides them. */
static bool has_amx(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    const uint32_t need = 1u << 22 | 1u << 24; /* leaf 7, edx: AMX-BF16, AMX-TILE */
    uint32_t a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & need) == need &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#endif

/* A new level is one row here: yk_isa_best and all tables follow. Ascending; row 0 fills every slot. */
static const struct level {
    yk_isa isa;
    bool (*supported)(void); /* by this CPU and its system */
    void (*fill)(yk_ops *ops);
} levels[] = {
    {YK_ISA_REF, always, yk_ops_fill_ref},
#ifdef YK_HAVE_AVX2
    {YK_ISA_AVX2, has_avx2, yk_ops_fill_avx2},
    {YK_ISA_AVX2, has_avx2, yk_ops_fill_avx2_attention},
    {YK_ISA_AVX2, has_avx2, yk_ops_fill_avx2_vector},
#endif
#ifdef YK_HAVE_AVXVNNI
    {YK_ISA_AVXVNNI, has_avxvnni, yk_ops_fill_avxvnni},
#endif
#ifdef YK_HAVE_AVX512
    {YK_ISA_AVX512, has_avx512, yk_ops_fill_avx512},
    {YK_ISA_AVX512, has_avx512, yk_ops_fill_avx512_attention},
    {YK_ISA_AVX512, has_avx512, yk_ops_fill_avx512_vector},
#endif
#ifdef YK_HAVE_AMX
    {YK_ISA_AMX, has_amx, yk_ops_fill_amx},
#endif
};

enum { N_LEVELS = sizeof levels / sizeof *levels };

static yk_ops tables[YK_ISA_N];
static yk_isa best;

static void fill_tables(void)
{
    yk_ops ops = {0};
    uint32_t at = 0;
    for (uint32_t isa = 0; isa < YK_ISA_N; isa++) {
        for (; at < N_LEVELS && levels[at].isa <= isa; at++) {
            if (!levels[at].supported())
                continue;
            levels[at].fill(&ops);
            ops.isa = best = levels[at].isa;
        }
        tables[isa] = ops;
    }
}

static void fill_once(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill_tables);
}

const yk_ops *yk_ops_get(yk_isa isa)
{
    fill_once();
    return &tables[(unsigned)isa < YK_ISA_N ? isa : best];
}

yk_isa yk_isa_best(void)
{
    fill_once();
    return best;
}

void yk_ops_fill_ref(yk_ops *ops)
{
    yk_ref_fill_dequant(ops);
    yk_ref_fill_matmul(ops);
    yk_ref_fill_matmul_float(ops);
    yk_ref_fill_packed(ops);
    yk_ref_fill_quantise(ops);
    yk_ref_fill_norm(ops);
    yk_ref_fill_rope(ops);
    yk_ref_fill_glu(ops);
    yk_ref_fill_attention(ops);
    yk_ref_fill_route(ops);
}
