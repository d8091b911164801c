/* Products with FP8 weights, for each instruction set: bytes of e4m3 are widened to float32 on their way from memory. */
#include "blocks.h"

#include <string.h>

#include "four_lanes.h"
#include "matrix.h"

/* Any processor. A byte's 7 bits as the first ones of a float32 are its value times 2^-120, also below e4m3's normal numbers. */
static inline f32x4 load4_e4m3(const uint8_t *at) {
    const u32x4 bytes = {at[0], at[1], at[2], at[3]};
    return (f32x4)((bytes & 0x80) << 24 | (bytes & 0x7f) << 20) * 0x1p120f;
}

#define V f32x4
#define LANES 4
#define NAME(x) x##_generic
#define LOAD load4
#define STORE store4
#define ADD(a, b) ((a) + (b))
#define MUL(a, b) ((a) * (b))
#define FMA(a, b, c) ((a) * (b) + (c))
#define SPLAT broadcast4
#define LOAD_E4M3 load4_e4m3
#define E4M3_SHIFT 0
#define PANELS_FOR(rows) 1
#define ROWS_AT_ONCE 4
#include "fp8_impl.h"

/* Clang knows other pragmas for a function of another instruction set: plain C there. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

/* A byte's 7 bits as the first ones of a float16, behind its highest bit of exponent, are its value times 2^-8, which an
 * instruction widens, also below normal numbers. Of a byte with its sign before it, one of the two signs is too much. */
#define WITHOUT_A_SIGN ((short)0xbf80)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define V __m256
#define LANES 8
#define NAME(x) x##_avx2
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define ADD _mm256_add_ps
#define MUL _mm256_mul_ps
#define FMA _mm256_fmadd_ps
#define SPLAT _mm256_set1_ps
#define LOAD_E4M3(at)                                                                                          \
    _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)(at))), 7), \
                                  _mm_set1_epi16(WITHOUT_A_SIGN)))
#define E4M3_SHIFT 8
/* 16 registers: 8 to 12 sums, the rest for weights and a row's value. */
#define PANELS_FOR(rows) ((rows) == 1 ? 4 : (rows) == 2 ? 2 : 1)
#define ROWS_AT_ONCE 5
#include "fp8_impl.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")
#define V __m512
#define LANES 16
#define NAME(x) x##_avx512
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define ADD _mm512_add_ps
#define MUL _mm512_mul_ps
#define FMA _mm512_fmadd_ps
#define SPLAT _mm512_set1_ps
#define LOAD_E4M3(at)                                                                                             \
    _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(at))), 7), \
                                     _mm256_set1_epi16(WITHOUT_A_SIGN)))
#define E4M3_SHIFT 8
/* 32 registers: up to 24 sums. */
#define PANELS_FOR(rows) 4
#define ROWS_AT_ONCE 6
#include "fp8_impl.h"
#pragma GCC pop_options
#endif
