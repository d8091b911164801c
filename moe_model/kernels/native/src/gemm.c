/* Products for each instruction set, and which this processor has. */
#include "arm.h"
#include "matrix.h"

#include <errno.h>
#include <string.h>

#include "amx.h"
#include "four_lanes.h"

/* Clang knows other pragmas for a function of another instruction set: plain C there. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_X86 1
#include <cpuid.h>
#include <immintrin.h>
#else
#define HAS_X86 0
#endif

/* Any processor. */
static inline u32x4 load4u(const uint32_t *at) {
    u32x4 v;
    memcpy(&v, at, sizeof v);
    return v;
}

#define V f32x4
#define LANES 4
#define NAME(x) x##_generic
#define LOAD load4
#define STORE store4
#define ADD(a, b) ((a) + (b))
#define FMA(a, b, c) ((a) * (b) + (c))
#define BROADCAST broadcast4
#define ZERO broadcast4(0)
#define LOAD_BF16_EVEN(at) ((f32x4)(load4u(at) << 16))
#define LOAD_BF16_ODD(at) ((f32x4)(load4u(at) & 0xffff0000u))
#define LOAD_I8(at) ((f32x4){(at)[0], (at)[1], (at)[2], (at)[3]})
#define PANELS_FOR(rows) ((rows) == 1 ? 2 : 1)
#define ROWS_AT_ONCE(type) 4
#include "gemm_impl.h"

#if HAS_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define V __m256
#define LANES 8
#define NAME(x) x##_avx2
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define ADD _mm256_add_ps
#define FMA _mm256_fmadd_ps
#define BROADCAST _mm256_set1_ps
#define ZERO _mm256_setzero_ps()
#define LOAD_BF16_EVEN(at) \
    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)(at)), 16))
#define LOAD_BF16_ODD(at)                                                              \
    _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i *)(at)),    \
                                         _mm256_set1_epi32((int)0xffff0000u)))
#define LOAD_I8(at) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(at))))
/* 16 registers: 8 to 12 sums, the rest for weights and a row's value; bfloat16 wants one for its mask. */
#define PANELS_FOR(rows) ((rows) == 1 ? 4 : (rows) == 2 ? 2 : 1)
#define ROWS_f32 6
#define ROWS_bf16 5
#define ROWS_i8 6
#define ROWS_AT_ONCE(type) ROWS_##type
#include "gemm_impl.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#define V __m512
#define LANES 16
#define NAME(x) x##_avx512
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define ADD _mm512_add_ps
#define FMA _mm512_fmadd_ps
#define BROADCAST _mm512_set1_ps
#define ZERO _mm512_setzero_ps()
#define LOAD_BF16_EVEN(at) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(at), 16))
#define LOAD_BF16_ODD(at) \
    _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(at), _mm512_set1_epi32((int)0xffff0000u)))
#define LOAD_I8(at) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(at))))
/* 32 registers: up to 24 sums. */
#define PANELS_FOR(rows) 4
#define ROWS_AT_ONCE(type) 6
#include "gemm_impl.h"
#pragma GCC pop_options

/* Pairs of bfloat16 are 32 bits, and an instruction multiplies and adds a pair as it would one float: this is the
 * float product over half as many inputs. */
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#define V __m512
#define LANES 16
#define NAME(x) x##_avx512bf16
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define ADD _mm512_add_ps
#define FMA(a, b, c) _mm512_dpbf16_ps(c, (__m512bh)(a), (__m512bh)(b))
#define BROADCAST _mm512_set1_ps
#define ZERO _mm512_setzero_ps()
#define PANELS_FOR(rows) 4
#define ROWS_AT_ONCE(type) 6
#define ONLY_F32 1
#define ONE_CHAIN 1
#include "gemm_impl.h"
#undef ONLY_F32
#undef ONE_CHAIN
#pragma GCC pop_options

static void gemm_pairs_avx512bf16(const matrix *m, const void *x, long stride, int num_rows, long first_panel,
                                  int count, upcoming later, float *sums) {
    matrix pairs = *m;
    pairs.num_in = (m->num_in + 1) / 2;
    gemm_f32_avx512bf16(&pairs, x, stride / 2, num_rows, first_panel, count, later, sums);
}
#endif

static const gemm_kernels generic = {"generic", gemm_f32_generic, gemm_bf16_generic, gemm_i8_generic, 0, &blocks_generic, NULL};
#if HAS_X86
static const gemm_kernels avx2 = {"avx2", gemm_f32_avx2, gemm_bf16_avx2, gemm_i8_avx2, 0, &blocks_avx2, NULL};
static const gemm_kernels avx512 = {"avx512", gemm_f32_avx512, gemm_bf16_avx512, gemm_i8_avx512, 0, &blocks_avx2, NULL};
static const gemm_kernels avx512vnni = {
    "avx512vnni", gemm_f32_avx512, gemm_bf16_avx512, gemm_i8_avx512, 0, &blocks_avx512vnni, NULL,
};
static const gemm_kernels avx512bf16 = {
    "avx512bf16", gemm_f32_avx512, gemm_pairs_avx512bf16, gemm_i8_avx512, 1, &blocks_avx512vnni, gemm_bf16_avx512,
};
#ifdef HAS_AMX
static const gemm_kernels amx = {"amx", gemm_f32_avx512, gemm_bf16_amx, gemm_i8_avx512, 1, &blocks_amx, NULL};
#endif

/* Conversions of float16, for which not every compiler has a name: bit 29 of leaf 1. */
static int has_float16(void) {
    unsigned eax, ebx, ecx = 0, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx >> 29 & 1;
}

#ifdef HAS_AVXVNNI
static const gemm_kernels avxvnni = {"avxvnni", gemm_f32_avx2, gemm_bf16_avx2, gemm_i8_avx2, 0, &blocks_avxvnni, NULL};

/* Bit 4 of leaf 7.1. */
static int has_avxvnni(void) {
    unsigned eax = 0, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && eax >> 4 & 1;
}
#endif

/* From the worst to the best. */
static int find_all(const gemm_kernels **found) {
    int count = 0;
    found[count++] = &generic;
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_float16())) return count;
    found[count++] = &avx2;
#ifdef HAS_AVXVNNI
    if (has_avxvnni()) found[count++] = &avxvnni;
#endif
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")))
        return count;
    found[count++] = &avx512;
    if (!__builtin_cpu_supports("avx512vnni")) return count;
    found[count++] = &avx512vnni;
    if (!__builtin_cpu_supports("avx512bf16")) return count;
    found[count++] = &avx512bf16;
#ifdef HAS_AMX
    if (processor_has_tiles()) found[count++] = &amx;
#endif
    return count;
}
#else
static int find_all(const gemm_kernels **found) {
    found[0] = &generic;
#ifdef HAS_NEON
    return 1 + find_arm_kernels(found + 1);
#else
    return 1;
#endif
}
#endif

/* What the system has to grant is asked for when a set is looked for. */
static int ask_for(const gemm_kernels *kernels) {
#ifdef HAS_AMX
    if (kernels == &amx) return ask_for_tiles();
#endif
    (void)kernels;
    return 0;
}

const gemm_kernels *find_gemm_kernels(const char *name) {
    const gemm_kernels *found[7];
    errno = 0;
    for (int i = find_all(found) - 1; i >= 0; i--) {
        if (name != NULL && strcmp(name, found[i]->name) != 0) continue;
        if ((errno = ask_for(found[i])) == 0) return found[i];
    }
    return NULL;
}
