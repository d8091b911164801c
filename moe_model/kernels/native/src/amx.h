/* Products by tiles, for processors that have Intel's AMX: bfloat16, and blocks of 8 and 4 bits. */
#ifndef EXPERTMESH_AMX_H
#define EXPERTMESH_AMX_H

#include "matrix.h"

/* Older compilers come with assemblers that do not know tiles; only Linux is asked for them here. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 11
#define HAS_AMX 1
#endif
#endif

/* Whether the processor says that it has tiles as large as these products want, of bfloat16 and of bytes. */
int processor_has_tiles(void);

/* Linux keeps 8 KiB more for each thread of a process with tiles, so a process must ask. 0, or an errno: where a tile is
 * used all the same, the process dies. */
int ask_for_tiles(void);

/* As gemm_fn, over rows of bfloat16. A tile's sums are not those of AVX-512: 32 inputs are summed at a time, even ones and
 * odd ones each by itself, and both together are added to the sum of the inputs before. All numbers of rows go this way. */
void gemm_bf16_amx(const matrix *w, const void *x, long stride, int num_rows, long first_panel, int num_panels,
                   upcoming later, float *sums);

/* Few rows go the way of AVX-512: the bits are the same. */
extern const block_kernels blocks_amx;

#endif
