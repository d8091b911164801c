/* Products of several rows with blocks by i8mm on ARM: USMMLA multiplies 8 unsigned inputs of two outputs with 8 signed
 * ones of two rows, twice the products of a dot product. A row alone goes the way of dot products; sums are exact, so no
 * bit shows which way it was. */
#include "arm.h"

#ifdef HAS_I8MM
#include <arm_neon.h>
#include <string.h>

#ifndef __clang__
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")

/* Pairs of rows whose sums, 8 registers each, stay there. */
#define MAX_PAIRS 3
/* Blocks of all rows of a task, and of a panel, that stay in the first level of cache. */
#define BLOCKS_AT_ONCE 8
#define VECS (PANEL / 4)
#define SUMS_PER_PAIR (PANEL / 2)

/* 8 inputs of pairs of rows; an odd last row is its own partner. */
INLINE void load_rows(const row_block *row, long stride, long input, int mr, int8x16_t *x) {
    UNROLL for (int r = 0; r < mr; r += 2) {
        const row_block *first = row + r * stride, *second = r + 1 < mr ? first + stride : first;
        x[r / 2] = vcombine_s8(vld1_s8(first->values + input), vld1_s8(second->values + input));
    }
}

/* Of vector `v` of a panel: inputs 0 to 3 of four outputs, and inputs 4 to 7. */
INLINE void add_eight(uint8x16_t low, uint8x16_t high, const int8x16_t *x, int v, int mr, int32x4_t *sums) {
    const uint32x4_t first = vreinterpretq_u32_u8(low), second = vreinterpretq_u32_u8(high);
    const uint8x16_t w0 = vreinterpretq_u8_u32(vzip1q_u32(first, second));
    const uint8x16_t w2 = vreinterpretq_u8_u32(vzip2q_u32(first, second));
    UNROLL for (int pair = 0; 2 * pair < mr; pair++) {
        int32x4_t *sum = sums + pair * SUMS_PER_PAIR + 2 * v;
        sum[0] = vusmmlaq_s32(sum[0], w0, x[pair]);
        sum[1] = vusmmlaq_s32(sum[1], w2, x[pair]);
    }
}

INLINE void add_block_q8(const uint8_t *at, const row_block *row, long stride, int mr, int32x4_t *sums) {
    UNROLL for (int g = 0; g < BLOCK_INPUTS / 8; g++, at += 8 * PANEL) {
        int8x16_t x[MAX_PAIRS];
        load_rows(row, stride, 8 * g, mr, x);
        UNROLL for (int v = 0; v < VECS; v++)
            add_eight(vld1q_u8(at + 16 * v), vld1q_u8(at + 16 * v + 4 * PANEL), x, v, mr, sums);
    }
}

INLINE void add_block_q4(const uint8_t *at, const row_block *row, long stride, int mr, int32x4_t *sums) {
    const uint8x16_t mask = vdupq_n_u8(15);
    UNROLL for (int g = 0; g < BLOCK_INPUTS / 16; g++, at += 8 * PANEL) {
        int8x16_t x[MAX_PAIRS];
        load_rows(row, stride, 8 * g, mr, x);
        UNROLL for (int v = 0; v < VECS; v++) {
            const uint8x16_t first = vld1q_u8(at + 16 * v), second = vld1q_u8(at + 16 * v + 4 * PANEL);
            add_eight(vandq_u8(first, mask), vandq_u8(second, mask), x, v, mr, sums);
        }
        load_rows(row, stride, BLOCK_INPUTS / 2 + 8 * g, mr, x);
        UNROLL for (int v = 0; v < VECS; v++) {
            const uint8x16_t first = vld1q_u8(at + 16 * v), second = vld1q_u8(at + 16 * v + 4 * PANEL);
            add_eight(vshrq_n_u8(first, 4), vshrq_n_u8(second, 4), x, v, mr, sums);
        }
    }
}

/* `mr` and `is_q4` are constants to the compiler, so that the sums are registers, of two outputs by two rows each. */
INLINE void tile(const uint8_t *at, const row_block *row, long stride, long count, float *totals, const int mr,
                 const int is_q4) {
    for (long b = 0; b < count; b++, row++, at += is_q4 ? Q4_BYTES : Q8_BYTES) {
        int32x4_t sums[MAX_PAIRS * SUMS_PER_PAIR];
        UNROLL for (int pair = 0; 2 * pair < mr; pair++) {
            const row_block *first = row + 2 * pair * stride, *second = 2 * pair + 1 < mr ? first + stride : first;
            const int32x2_t both = vset_lane_s32(second->sum, vdup_n_s32(first->sum), 1);
            const int32x2_t start = vmul_n_s32(both, is_q4 ? -Q4_OFFSET : -Q8_OFFSET);
            UNROLL for (int i = 0; i < SUMS_PER_PAIR; i++) sums[pair * SUMS_PER_PAIR + i] = vcombine_s32(start, start);
        }
        if (is_q4) add_block_q4(at + SCALE_BYTES, row, stride, mr, sums);
        else add_block_q8(at + SCALE_BYTES, row, stride, mr, sums);
        UNROLL for (int v = 0; v < VECS; v++) {
            const float32x4_t scale = vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(at + 8 * v)));
            UNROLL for (int r = 0; r < mr; r++) {
                const int32x4_t *pair = sums + r / 2 * SUMS_PER_PAIR + 2 * v;
                const int32x4_t sum = r % 2 == 0 ? vuzp1q_s32(pair[0], pair[1]) : vuzp2q_s32(pair[0], pair[1]);
                float *total = totals + r * PANELS_PER_TASK * PANEL + 4 * v;
                const float32x4_t both = vmulq_f32(scale, vdupq_n_f32(row[r * stride].scale));
                vst1q_f32(total, vaddq_f32(vld1q_f32(total), vmulq_f32(vcvtq_f32_s32(sum), both)));
            }
        }
    }
}

/* As block_gemm_fn. */
INLINE void gemm(const uint8_t *panels, long num_blocks, const row_block *x, long stride, int num_rows, int num_panels,
                 float *sums, const int is_q4) {
    memset(sums, 0, sizeof(float) * PANELS_PER_TASK * PANEL * num_rows);
    for (long b = 0; b < num_blocks; b += BLOCKS_AT_ONCE) {
        const long count = num_blocks - b < BLOCKS_AT_ONCE ? num_blocks - b : BLOCKS_AT_ONCE;
        for (int r = 0; r < num_rows; r += 2 * MAX_PAIRS)
            for (int p = 0; p < num_panels; p++) {
                const uint8_t *at = panels + (p * num_blocks + b) * (is_q4 ? Q4_BYTES : Q8_BYTES);
                const row_block *row = x + r * stride + b;
                float *to = sums + (r * PANELS_PER_TASK + p) * PANEL;
                switch (num_rows - r) {
                    case 1: tile(at, row, stride, count, to, 1, is_q4); break;
                    case 2: tile(at, row, stride, count, to, 2, is_q4); break;
                    case 3: tile(at, row, stride, count, to, 3, is_q4); break;
                    case 4: tile(at, row, stride, count, to, 4, is_q4); break;
                    case 5: tile(at, row, stride, count, to, 5, is_q4); break;
                    default: tile(at, row, stride, count, to, 6, is_q4); break;
                }
            }
    }
}

static void gemm_q8_i8mm(const uint8_t *panels, long num_blocks, const row_block *x, long stride, int num_rows,
                         int num_panels, upcoming later, float *sums) {
    if (num_rows == 1) blocks_dotprod.q8(panels, num_blocks, x, stride, num_rows, num_panels, later, sums);
    else gemm(panels, num_blocks, x, stride, num_rows, num_panels, sums, 0);
}

static void gemm_q4_i8mm(const uint8_t *panels, long num_blocks, const row_block *x, long stride, int num_rows,
                         int num_panels, upcoming later, float *sums) {
    if (num_rows == 1) blocks_dotprod.q4(panels, num_blocks, x, stride, num_rows, num_panels, later, sums);
    else gemm(panels, num_blocks, x, stride, num_rows, num_panels, sums, 1);
}

const block_kernels blocks_i8mm = {gemm_q8_i8mm, gemm_q4_i8mm, gemm_mxfp4_dotprod, gemm_fp8_generic};

#ifndef __clang__
#pragma GCC pop_options
#endif
#endif
