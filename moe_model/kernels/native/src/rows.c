/* Row operations for each instruction set. */
#include "rows.h"

#include <math.h>
#include <string.h>

#include "arm.h"

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));

#define SPLAT8(x) ((f32x8){(x), (x), (x), (x), (x), (x), (x), (x)})
#define SPLAT8I(x) ((i32x8){(x), (x), (x), (x), (x), (x), (x), (x)})

static inline float widen(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

static inline __attribute__((always_inline)) f32x8 load_f32x8(const float *at) {
    f32x8 v;
    memcpy(&v, at, sizeof v);
    return v;
}

static inline float sum_lanes(f32x8 v) {
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

#define NAME(x) x##_generic
#define SUM_OF_FOUR(a, b, c, d) ((f32x4){sum_lanes(a), sum_lanes(b), sum_lanes(c), sum_lanes(d)})
#define FMA8(a, b, c) ((a) * (b) + (c))
#define LOAD_HELD_BF16(at)                                                                                       \
    ((f32x8){widen((at)[0]), widen((at)[1]), widen((at)[2]), widen((at)[3]), widen((at)[4]), widen((at)[5]), \
             widen((at)[6]), widen((at)[7])})
#include "rows_256.h"
#include "attend_256.h"
#include "rows_impl.h"

/* Clang knows other pragmas for a function of another instruction set: plain C there. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx2,fma")
static inline __attribute__((always_inline)) f32x4 sum_of_four_avx2(__m256 a, __m256 b, __m256 c, __m256 d) {
    __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return (f32x4)_mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

#define NAME(x) x##_avx2
#define FMA8(a, b, c) ((f32x8)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define SUM_OF_FOUR(a, b, c, d) sum_of_four_avx2((__m256)(a), (__m256)(b), (__m256)(c), (__m256)(d))
#define LOAD_HELD_BF16(at) \
    ((f32x8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(at))), 16))
#include "rows_256.h"
#include "attend_256.h"
#include "rows_impl.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define NAME(x) x##_avx512
#define FMA8(a, b, c) ((f32x8)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define SUM_OF_FOUR(a, b, c, d) sum_of_four_avx2((__m256)(a), (__m256)(b), (__m256)(c), (__m256)(d))
#include "rows_256.h"
#include "attend_512.h"
#include "rows_impl.h"
#pragma GCC pop_options

/* `name` is that of products: all of AVX-512, and tiles, go with the same rows. */
const row_kernels *find_row_kernels(const char *name) {
    if (name != NULL && strcmp(name, "generic") == 0) return &rows_generic;
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return &rows_generic;
    const int may_be_wide = name == NULL || (strcmp(name, "avx2") != 0 && strcmp(name, "avxvnni") != 0);
    return may_be_wide && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
               ? &rows_avx512
               : &rows_avx2;
}
#elif defined(HAS_NEON)
#define NAME(x) x##_neon
#include "rows_neon.h"
#include "attend_256.h"
#include "rows_impl.h"

const row_kernels *find_row_kernels(const char *name) {
    return name == NULL || strcmp(name, "generic") != 0 ? &rows_neon : &rows_generic;
}
#else
const row_kernels *find_row_kernels(const char *name) {
    (void)name;
    return &rows_generic;
}
#endif
