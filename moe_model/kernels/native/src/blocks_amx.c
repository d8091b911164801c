/* Products with blocks by tiles: the 32 inputs of a block, of 16 or 8 rows and of a panel. Sums of a block are exact
 * integers, so few rows may go another way. */
#include "amx.h"

#if defined(HAS_AMX) || defined(TILES)
#include <string.h>

#include "tiles.h"

#ifdef TILES
#define BESIDE blocks_generic
#else
#include <immintrin.h>
#define BESIDE blocks_avx512vnni
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,f16c")
#define WIDEN_HALVES(at) ((floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(at))))
#endif

/* Rows that are worth a tile. */
#define FEW_ROWS 8
#define BYTES_q8 Q8_BYTES
#define BYTES_q4 Q4_BYTES

#define INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))
#define UNROLL _Pragma("GCC unroll 16")

typedef float floats __attribute__((vector_size(64)));
typedef int32_t integers __attribute__((vector_size(64)));
typedef uint8_t bytes __attribute__((vector_size(64)));

INLINE const uint8_t *weights_q8(const uint8_t *at, uint8_t *room) {
    (void)room;
    return at + SCALE_BYTES;
}

/* Integers of 4 bits as bytes, in the order of those of 8 bits. */
INLINE const uint8_t *weights_q4(const uint8_t *at, uint8_t *room) {
    UNROLL for (int g = 0; g < 4; g++) {
        bytes both, low, high;
        memcpy(&both, at + SCALE_BYTES + g * TILE_ROW_BYTES, sizeof both);
        low = both & 15;
        high = both >> 4;
        memcpy(room + g * TILE_ROW_BYTES, &low, sizeof low);
        memcpy(room + (4 + g) * TILE_ROW_BYTES, &high, sizeof high);
    }
    return room;
}

/* Sums of a block, by tiles `s` of sums, `a` of rows and `b` of weights. Weights are unsigned by an offset in memory: a
 * second product takes it off again, which costs the instructions that add the sums up nothing. */
#define MULTIPLY(type, s, a, b, at, row, to)                                                                 \
    do {                                                                                                     \
        const uint8_t *weights = weights_##type(at, room[s]);                                                \
        TILE_ZERO(s);                                                                                        \
        TILE_LOAD(a, (row)->values, stride * (long)sizeof(row_block));                                       \
        TILE_LOAD(b, weights, TILE_ROW_BYTES);                                                               \
        TILE_DOT_UNSIGNED(s, a, b);                                                                          \
        TILE_DOT_SIGNED(s, a, 6);                                                                            \
        TILE_STORE(s, to, TILE_ROW_BYTES);                                                                   \
    } while (0)

/* To each row's total: float of the sum, times both scales. */
INLINE void add_block(const uint8_t *at, const row_block *row, long stride, const int32_t *sums, floats *total,
                      const int mr) {
    const floats scale = WIDEN_HALVES(at);
    UNROLL for (int r = 0; r < mr; r++) {
        integers sum;
        memcpy(&sum, sums + r * PANEL, sizeof sum);
        const floats both = scale * row[r * stride].scale;
        total[r] = total[r] + __builtin_convertvector(sum, floats) * both;
    }
}

/* Tiles 0 and 1 are sums, 2 and 3 rows, 4 and 5 weights, 6 is what takes the offset off. */
static void configure(int num_rows, int offset) {
    const uint8_t rows = (uint8_t)num_rows, groups = BLOCK_INPUTS / 4;
    const tile_config config = {
        .palette = 1,
        .row_bytes = {64, 64, BLOCK_INPUTS, BLOCK_INPUTS, 64, 64, 64},
        .num_rows = {rows, rows, rows, rows, groups, groups, groups},
    };
    uint8_t offsets[PANEL * BLOCK_INPUTS];
    memset(offsets, -offset, sizeof offsets);
    configure_tiles(&config);
    TILE_LOAD(6, offsets, TILE_ROW_BYTES);
}

/* `mr` is a constant to the compiler, so that the totals are registers. Two blocks at a time: the processor multiplies one
 * while it adds another. */
#define DEFINE_BLOCK_GEMM(type, offset)                                                                      \
    INLINE void rows_##type(const uint8_t *at, long num_blocks, const row_block *row, long stride, float *to, \
                            const int mr) {                                                                  \
        floats total[TILE_ROWS] = {{0}};                                                                     \
        int32_t sums[2][TILE_ROWS * PANEL] ALIGNED;                                                          \
        uint8_t room[2][PANEL * BLOCK_INPUTS] ALIGNED;                                                       \
        for (; num_blocks > 1; num_blocks -= 2, at += 2 * BYTES_##type, row += 2) {                          \
            MULTIPLY(type, 0, 2, 4, at, row, sums[0]);                                                       \
            MULTIPLY(type, 1, 3, 5, at + BYTES_##type, row + 1, sums[1]);                                    \
            add_block(at, row, stride, sums[0], total, mr);                                                  \
            add_block(at + BYTES_##type, row + 1, stride, sums[1], total, mr);                               \
        }                                                                                                    \
        if (num_blocks > 0) {                                                                                \
            MULTIPLY(type, 0, 2, 4, at, row, sums[0]);                                                       \
            add_block(at, row, stride, sums[0], total, mr);                                                  \
        }                                                                                                    \
        UNROLL for (int r = 0; r < mr; r++) memcpy(to + r * PANELS_PER_TASK * PANEL, &total[r], sizeof total[r]); \
    }                                                                                                        \
    static void gemm_##type##_amx(const uint8_t *panels, long num_blocks, const row_block *x, long stride,   \
                                  int num_rows, int num_panels, upcoming later, float *sums) {               \
        const int mr = num_rows < TILE_ROWS ? FEW_ROWS : TILE_ROWS;                                          \
        const int by_tiles = num_rows % mr < FEW_ROWS ? num_rows - num_rows % mr : num_rows;                 \
        if (by_tiles > 0) configure(mr, offset);                                                             \
        for (int p = 0; p < num_panels; p++)                                                                 \
            for (int r = 0; r < by_tiles; r += mr) {                                                         \
                const int first = r + mr <= by_tiles ? r : by_tiles - mr;                                    \
                const uint8_t *at = panels + p * num_blocks * BYTES_##type;                                  \
                float *to = sums + (first * PANELS_PER_TASK + p) * PANEL;                                    \
                if (mr == TILE_ROWS) rows_##type(at, num_blocks, x + first * stride, stride, to, TILE_ROWS); \
                else rows_##type(at, num_blocks, x + first * stride, stride, to, FEW_ROWS);                  \
            }                                                                                                \
        if (by_tiles > 0) release_tiles();                                                                   \
        if (by_tiles < num_rows)                                                                             \
            BESIDE.type(panels, num_blocks, x + by_tiles * stride, stride, num_rows - by_tiles, num_panels,  \
                        later, sums + by_tiles * PANELS_PER_TASK * PANEL);                                          \
    }

DEFINE_BLOCK_GEMM(q8, Q8_OFFSET)
DEFINE_BLOCK_GEMM(q4, Q4_OFFSET)

const block_kernels blocks_amx = {
    .q8 = gemm_q8_amx, .q4 = gemm_q4_amx, .mxfp4 = gemm_mxfp4_avx512vnni, .fp8 = gemm_fp8_avx512,
};

#ifndef TILES
#pragma GCC pop_options
#endif
#endif
