/* Weights as blocks: 32 inputs of an output as integers of 8 or 4 bits with one float16 scale, which are the numbers of
 * GGUF's Q8_0 and Q4_0. Rows are rounded to blocks of 8 bits before a product. The sum of a block's products is an exact
 * integer; it is multiplied by (scale of the weights · scale of the row), and the blocks are added up in their order, each a
 * product that is rounded before it is added: any processor gives the bits of plain C. MXFP4 is multiplied in the same way:
 * twice a value of e2m1 is an integer, of which the scale is half a power of two. FP8 is not: see below. */
#ifndef EXPERTMESH_BLOCKS_H
#define EXPERTMESH_BLOCKS_H

#include <stdint.h>

#include "fetch.h"

/* Outputs of a panel. */
#define PANEL 16
#define BLOCK_INPUTS 32

/* A panel is one block after the other, each of 32 inputs of 16 outputs: the scales [16], then the integers, which are
 * unsigned by an offset. 8 bits: [8][16][4], 4 inputs of each output together. 4 bits: [4][16][4], inputs 0 to 15 in the low
 * halves of the bytes, inputs 16 to 31 in the high ones. MXFP4: as 4 bits, but of codes of e2m1 and with scales of a byte, e8m0.
 * What is beyond the last input or output is 0. */
#define SCALE_BYTES (PANEL * 2)
#define Q8_BYTES (SCALE_BYTES + PANEL * BLOCK_INPUTS)
#define Q4_BYTES (SCALE_BYTES + PANEL * BLOCK_INPUTS / 2)
#define MXFP4_BYTES (PANEL + PANEL * BLOCK_INPUTS / 2)
#define Q8_OFFSET 128
#define Q4_OFFSET 8
/* Of what a code stands for, twice its value, as it is looked up. */
#define MXFP4_OFFSET 12
#define MXFP4_TABLE 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0

/* 32 values of a row: each is an integer of -127 to 127 times the scale. The scale of what is not finite is NaN. */
typedef struct {
    int8_t values[BLOCK_INPUTS];
    int32_t sum; /* of the integers */
    float scale;
} row_block;

/* As gemm_fn. `panels` begins at the first panel, `num_blocks` of each row and panel, `stride` is in blocks. */
typedef void (*block_gemm_fn)(const uint8_t *panels, long num_blocks, const row_block *x, long stride, int num_rows,
                              int num_panels, upcoming later, float *sums);

/* Weights of e4m3, [panel][input][16], each panel with scales [blocks of FP8_INPUTS inputs][16]; rows are float32. The sum of
 * a block's products is multiplied by its scale, and the blocks are added up in their order; additions within one, too, are in
 * the order of inputs. As of other weights in floats, plain C rounds each product, the others do not. */
#define FP8_INPUTS 128
typedef void (*fp8_gemm_fn)(const uint8_t *panels, const float *scales, long num_in, const float *x, long stride,
                            int num_rows, int num_panels, upcoming later, float *sums);

typedef struct {
    block_gemm_fn q8, q4, mxfp4;
    fp8_gemm_fn fp8;
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

/* Of these kernels, the products that other sets may have as well. */
#define DECLARE_MXFP4(set)                                                                                       \
    extern void gemm_mxfp4_##set(const uint8_t *panels, long num_blocks, const row_block *x, long stride,        \
                                 int num_rows, int num_panels, upcoming later, float *sums)
#define DECLARE_FP8(set)                                                                                         \
    extern void gemm_fp8_##set(const uint8_t *panels, const float *scales, long num_in, const float *x, long stride, \
                               int num_rows, int num_panels, upcoming later, float *sums)
DECLARE_MXFP4(avx2);
DECLARE_MXFP4(avxvnni);
DECLARE_MXFP4(avx512vnni);
DECLARE_FP8(generic);
DECLARE_FP8(avx2);
DECLARE_FP8(avx512);

static inline long blocks_of(long num_in) { return (num_in + BLOCK_INPUTS - 1) / BLOCK_INPUTS; }
static inline long fp8_blocks_of(long num_in) { return (num_in + FP8_INPUTS - 1) / FP8_INPUTS; }

#endif
