/* Products with blocks, for each instruction set. */
#include "blocks.h"

#include <string.h>

#include "matrix.h"

/* float16, whatever it is, as float32. */
static float widen_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
    uint32_t bits = magnitude >= 0x7c00 ? magnitude << 13 | 0x7f800000 : (magnitude << 13) + (112u << 23);
    float value;
    if (magnitude < 0x0400) {
        value = (float)magnitude * 0x1p-24f;
        memcpy(&bits, &value, sizeof bits);
    }
    bits |= sign;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The definition. A block of 16 outputs, and of one row. */
static void add_q8(const uint8_t *at, const int8_t *x, int32_t *sums) {
    for (int i = 0; i < BLOCK_INPUTS; i += 4, at += 4 * PANEL)
        for (int o = 0; o < PANEL; o++)
            for (int j = 0; j < 4; j++) sums[o] += (at[4 * o + j] - Q8_OFFSET) * x[i + j];
}

static void add_q4(const uint8_t *at, const int8_t *x, int32_t *sums) {
    for (int i = 0; i < BLOCK_INPUTS / 2; i += 4, at += 4 * PANEL)
        for (int o = 0; o < PANEL; o++)
            for (int j = 0; j < 4; j++) {
                const int both = at[4 * o + j];
                sums[o] += ((both & 15) - Q4_OFFSET) * x[i + j] + ((both >> 4) - Q4_OFFSET) * x[i + j + 16];
            }
}

static void add_mxfp4(const uint8_t *at, const int8_t *x, int32_t *sums) {
    static const int8_t table[16] = {MXFP4_TABLE};
    for (int i = 0; i < BLOCK_INPUTS / 2; i += 4, at += 4 * PANEL)
        for (int o = 0; o < PANEL; o++)
            for (int j = 0; j < 4; j++) {
                const int both = at[4 * o + j];
                sums[o] += (table[both & 15] - MXFP4_OFFSET) * x[i + j] + (table[both >> 4] - MXFP4_OFFSET) * x[i + j + 16];
            }
}

static void half_scales(const uint8_t *at, float *scales) {
    uint16_t halves[PANEL];
    memcpy(halves, at, sizeof halves);
    for (int o = 0; o < PANEL; o++) scales[o] = widen_half(halves[o]);
}

/* Half of each power of two, 2^(e - 127), of which the smallest is below float32's normal numbers. */
static void power_scales(const uint8_t *at, float *scales) {
    for (int o = 0; o < PANEL; o++) {
        const uint32_t bits = at[o] ? (uint32_t)at[o] << 23 : 1u << 22;
        memcpy(scales + o, &bits, sizeof bits);
        scales[o] *= 0.5f;
    }
}

typedef struct {
    long bytes, scale_bytes;
    void (*add)(const uint8_t *at, const int8_t *x, int32_t *sums);
    void (*scales)(const uint8_t *at, float *scales);
} block_form;

static void panel_generic(const block_form *form, const uint8_t *at, long num_blocks, const row_block *x, float *totals) {
    memset(totals, 0, sizeof(float) * PANEL);
    for (long b = 0; b < num_blocks; b++, x++, at += form->bytes) {
        int32_t sums[PANEL] = {0};
        float scales[PANEL];
        form->add(at + form->scale_bytes, x->values, sums);
        form->scales(at, scales);
        for (int o = 0; o < PANEL; o++) {
            const float scale = scales[o] * x->scale, product = (float)sums[o] * scale;
            totals[o] = totals[o] + product;
        }
    }
}

#define DEFINE_GENERIC(type, size, size_of_scales, scales_of)                                                \
    static void gemm_##type##_generic(const uint8_t *panels, long num_blocks, const row_block *x, long stride, \
                                      int num_rows, int num_panels, upcoming later, float *sums) {           \
        (void)later;                                                                                         \
        const block_form form = {size, size_of_scales, add_##type, scales_of};                               \
        for (int row = 0; row < num_rows; row++)                                                             \
            for (int p = 0; p < num_panels; p++)                                                             \
                panel_generic(&form, panels + p * num_blocks * form.bytes, num_blocks, x + row * stride,     \
                              sums + (row * PANELS_PER_TASK + p) * PANEL);                                   \
    }

DEFINE_GENERIC(q8, Q8_BYTES, SCALE_BYTES, half_scales)
DEFINE_GENERIC(q4, Q4_BYTES, SCALE_BYTES, half_scales)
DEFINE_GENERIC(mxfp4, MXFP4_BYTES, PANEL, power_scales)

const block_kernels blocks_generic = {gemm_q8_generic, gemm_q4_generic, gemm_mxfp4_generic, gemm_fp8_generic};

/* Clang knows other pragmas for a function of another instruction set: plain C there. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

/* 256 bits. A product of two bytes of 8 bits is one of an unsigned and a signed one, whose pairs must fit 16 bits: weights of
 * 8 bits give their sign to the row's values. */
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
static inline __attribute__((always_inline)) __m256i add_pairs_avx2(__m256i sums, __m256i pairs) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#define NAME(x) x##_avx2
#define V __m256
#define VI __m256i
#define LANES 8
#define LOAD_q8(at) _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(at)), _mm256_set1_epi8((char)0x80))
#define DOT_q8(sums, w, x) add_pairs_avx2(sums, _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)))
#define START_q8 0
#define DOT_q4(sums, w, x) add_pairs_avx2(sums, _mm256_maddubs_epi16(w, x))
#define GEMM_FP8 gemm_fp8_avx2
#include "blocks_256.h"
#include "blocks_impl.h"
#pragma GCC pop_options

#ifdef HAS_AVXVNNI
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#define NAME(x) x##_avxvnni
#define V __m256
#define VI __m256i
#define LANES 8
#define LOAD_q8(at) _mm256_loadu_si256((const __m256i *)(at))
#define DOT_q8 _mm256_dpbusd_avx_epi32
#define START_q8 Q8_OFFSET
#define DOT_q4 _mm256_dpbusd_avx_epi32
#define GEMM_FP8 gemm_fp8_avx2
#include "blocks_256.h"
#include "blocks_impl.h"
#pragma GCC pop_options
#endif

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")
#define NAME(x) x##_avx512vnni
#define V __m512
#define VI __m512i
#define LANES 16
#define LOAD_q8(at) _mm512_loadu_si512(at)
#define DOT_q8 _mm512_dpbusd_epi32
#define START_q8 Q8_OFFSET
#define LOAD_q4(at) _mm512_loadu_si512(at)
#define DOT_q4 _mm512_dpbusd_epi32
#define LOW_HALVES(v) _mm512_and_si512(v, _mm512_set1_epi8(15))
#define HIGH_HALVES(v) _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15))
#define LOOK_UP(codes) _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_setr_epi8(MXFP4_TABLE)), codes)
#define LOAD_SCALES(at) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(at)))
#define LOAD_POWERS(at)                                                                                        \
    _mm512_castsi512_ps(_mm512_max_epi32(                                                                      \
        _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(at))), 23), _mm512_set1_epi32(1 << 22)))
#define GEMM_FP8 gemm_fp8_avx512
#define SPLAT_I _mm512_set1_epi32
#define SPLAT _mm512_set1_ps
#define TO_FLOAT _mm512_cvtepi32_ps
#define ADD _mm512_add_ps
#define MUL _mm512_mul_ps
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
/* 32 registers: a total and a sum for each row and panel. */
#define ROWS_AT_ONCE 6
#define PANELS_FOR(rows) ((rows) <= 3 ? 4 : 2)
#include "blocks_impl.h"
#pragma GCC pop_options
#endif
