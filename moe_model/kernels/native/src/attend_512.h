/* Attention with sixteen lanes of AVX-512. */
typedef float f32x16 __attribute__((vector_size(64)));

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

#define W f32x16
#define W_LANES 16
#define W_LOAD(at) ((f32x16)_mm512_loadu_ps(at))
#define W_STORE(at, v) _mm512_storeu_ps(at, (__m512)(v))
#define W_FMA(a, b, c) ((f32x16)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define W_SPLAT(x) ((f32x16)_mm512_set1_ps(x))
#define W_LOAD_BF16(at) \
    ((f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(at))), 16))
#define W_SUM(v) sum_of_four_avx512((__m512)(v), (__m512)(v), (__m512)(v), (__m512)(v))[0]
#define W_SUM_OF_FOUR(a, b, c, d) sum_of_four_avx512((__m512)(a), (__m512)(b), (__m512)(c), (__m512)(d))
#define QUERIES 4
