/* Weights as blocks: 32 inputs of an output as integers of 8 or 4 bits with one float16 scale, which are the numbers of
 * GGUF's Q8_0 and Q4_0. Rows are rounded to blocks of 8 bits before a product. The sum of a block's products is an exact
 * integer; it is multiplied by (scale of the weights · scale of the row), and the blocks are added up in their order, each a
 * product that is rounded before it is added: any processor gives the bits of plain C. */
#ifndef EXPERTMESH_BLOCKS_H
#define EXPERTMESH_BLOCKS_H

#include <stdint.h>

/* Outputs of a panel. */
#define PANEL 16
#define BLOCK_INPUTS 32

/* A panel is one block after the other, each of 32 inputs of 16 outputs: the scales [16], then the integers, which are
 * unsigned by an offset. 8 bits: [8][16][4], 4 inputs of each output together. 4 bits: [4][16][4], inputs 0 to 15 in the low
 * halves of the bytes, inputs 16 to 31 in the high ones. What is beyond the last input or output is 0. */
#define SCALE_BYTES (PANEL * 2)
#define Q8_BYTES (SCALE_BYTES + PANEL * BLOCK_INPUTS)
#define Q4_BYTES (SCALE_BYTES + PANEL * BLOCK_INPUTS / 2)
#define Q8_OFFSET 128
#define Q4_OFFSET 8

/* 32 values of a row: each is an integer of -127 to 127 times the scale. The scale of what is not finite is NaN. */
typedef struct {
    int8_t values[BLOCK_INPUTS];
    int32_t sum; /* of the integers */
    float scale;
} row_block;

/* As gemm_fn. `panels` begins at the first panel, `num_blocks` of each row and panel, `stride` is in blocks. */
typedef void (*block_gemm_fn)(const uint8_t *panels, long num_blocks, const row_block *x, long stride, int num_rows,
                              int num_panels, float *sums);

typedef struct {
    block_gemm_fn q8, q4;
} block_kernels;

/* The first is the definition. */
extern const block_kernels blocks_generic;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
extern const block_kernels blocks_avx2, blocks_avx512vnni;
#if __GNUC__ >= 11
#define HAS_AVXVNNI 1
extern const block_kernels blocks_avxvnni;
#endif
#endif

static inline long blocks_of(long num_in) { return (num_in + BLOCK_INPUTS - 1) / BLOCK_INPUTS; }

#endif
