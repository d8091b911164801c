/* Row operations for each instruction set. */
#include "rows.h"

#include <math.h>
#include <string.h>

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef float f32x16 __attribute__((vector_size(64)));

#define SPLAT8(x) ((f32x8){(x), (x), (x), (x), (x), (x), (x), (x)})
#define SPLAT8I(x) ((i32x8){(x), (x), (x), (x), (x), (x), (x), (x)})

static inline float widen(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

static inline float sum_lanes(f32x8 v) {
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

#define NAME(x) x##_generic
#define SUM_OF_FOUR(a, b, c, d) ((f32x4){sum_lanes(a), sum_lanes(b), sum_lanes(c), sum_lanes(d)})
#define FMA8(a, b, c) ((a) * (b) + (c))
#define LOAD8_BF16(at)                                                                                       \
    ((f32x8){widen((at)[0]), widen((at)[1]), widen((at)[2]), widen((at)[3]), widen((at)[4]), widen((at)[5]), \
             widen((at)[6]), widen((at)[7])})
#define W f32x8
#define W_LANES 8
#define W_FMA FMA8
#define W_SPLAT SPLAT8
#define W_LOAD_BF16 LOAD8_BF16
#define W_SUM(v) SUM_OF_FOUR(v, v, v, v)[0]
#define W_SUM_OF_FOUR SUM_OF_FOUR
#define QUERIES 2
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
#define LOAD8_BF16(at) \
    ((f32x8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(at))), 16))
#define W f32x8
#define W_LANES 8
#define W_FMA FMA8
#define W_SPLAT SPLAT8
#define W_LOAD_BF16 LOAD8_BF16
#define W_SUM(v) SUM_OF_FOUR(v, v, v, v)[0]
#define W_SUM_OF_FOUR SUM_OF_FOUR
#define QUERIES 2
#include "rows_impl.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
/* The halves, the quarters, then the lanes of a quarter: even ones and odd ones. */
static inline __attribute__((always_inline)) __m128 quarters_avx512(__m512 v) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
static inline __attribute__((always_inline)) f32x4 sum_of_four_avx512(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m128 x = quarters_avx512(a), y = quarters_avx512(b), z = quarters_avx512(c), w = quarters_avx512(d);
    const __m128 xy = _mm_add_ps(_mm_unpacklo_ps(x, y), _mm_unpackhi_ps(x, y));
    const __m128 zw = _mm_add_ps(_mm_unpacklo_ps(z, w), _mm_unpackhi_ps(z, w));
    return (f32x4)_mm_add_ps(_mm_movelh_ps(xy, zw), _mm_movehl_ps(zw, xy));
}

#define NAME(x) x##_avx512
#define FMA8(a, b, c) ((f32x8)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define SUM_OF_FOUR(a, b, c, d) sum_of_four_avx2((__m256)(a), (__m256)(b), (__m256)(c), (__m256)(d))
#define LOAD8_BF16(at) \
    ((f32x8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(at))), 16))
#define W f32x16
#define W_LANES 16
#define W_FMA(a, b, c) ((f32x16)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define W_SPLAT(x) ((f32x16)_mm512_set1_ps(x))
#define W_LOAD_BF16(at) \
    ((f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(at))), 16))
#define W_SUM(v) sum_of_four_avx512((__m512)(v), (__m512)(v), (__m512)(v), (__m512)(v))[0]
#define W_SUM_OF_FOUR(a, b, c, d) sum_of_four_avx512((__m512)(a), (__m512)(b), (__m512)(c), (__m512)(d))
#define QUERIES 4
#include "rows_impl.h"
#pragma GCC pop_options

/* `name` is that of products: all of AVX-512 go with the same rows. */
const row_kernels *find_row_kernels(const char *name) {
    if (name != NULL && strcmp(name, "generic") == 0) return &rows_generic;
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return &rows_generic;
    const int may_be_wide = name == NULL || strncmp(name, "avx512", 6) == 0;
    return may_be_wide && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
               ? &rows_avx512
               : &rows_avx2;
}
#else
const row_kernels *find_row_kernels(const char *name) {
    (void)name;
    return &rows_generic;
}
#endif
