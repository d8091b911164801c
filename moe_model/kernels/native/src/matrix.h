/* A packed weight matrix and the product with it. Shapes: R rows, I inputs, O outputs. */
#ifndef EXPERTMESH_MATRIX_H
#define EXPERTMESH_MATRIX_H

#include <stddef.h>
#include <stdint.h>

#include "blocks.h"

/* Outputs are packed in panels of 16: [panel][input][16], the last panel padded with zeros. bfloat16 comes in
 * pairs of inputs, [panel][input / 2][16][2], an odd last one padded with zero; blocks as blocks.h has them.
 *
 * Panels of one task; rows of one task. Their sums, 24 KiB, stay in the first level of cache. The results of a task are
 * whole blocks of BLOCK_INPUTS, also of a gated matrix, so that it can round them. */
#define PANELS_PER_TASK 4
#define ROWS_PER_TASK 96

enum weight_type { WEIGHT_F32, WEIGHT_BF16, WEIGHT_I8, WEIGHT_Q8, WEIGHT_Q4, WEIGHT_MXFP4, WEIGHT_FP8 };
enum activation { ACTIVATION_NONE, ACTIVATION_GELU, ACTIVATION_SILU };

/* What a product reads its rows as. */
enum row_form { AS_F32, AS_BF16, AS_BLOCKS };

/* `num_out` is the number of results. A gated matrix has two panels for 16 results, in turns: what gates, and
 * what is gated; its scales and biases are as long as its panels. With a `limit` that is not 0, what gates, g, is at
 * most the limit, what is gated, u, is within it, and a result is (u + 1) * g * sigmoid(alpha * g). */
typedef struct {
    const void *panels;
    const float *scale_O; /* of int8 weights, else NULL */
    const float *scale_NBp; /* of FP8 weights, else NULL */
    const float *bias_O;  /* or NULL */
    long num_in, num_out;
    int type, is_gated;
    float limit, alpha;
    int wants_exact_rows; /* of bfloat16: rows are not rounded, where a set has a product for that */
} matrix;

/* Fills sums[r][PANELS_PER_TASK * PANEL] with x Wᵀ for up to ROWS_PER_TASK rows and PANELS_PER_TASK panels.
 * One output is one chain of additions whose order depends on nothing but its number of inputs: not on the
 * other rows, not on the thread, and not on the width of the vectors. `x` is of the form that `row_form_of` says, rows
 * padded as `padded_width` says. `stride` is in elements of x. `later` is fetched while the last inputs are multiplied. */
typedef void (*gemm_fn)(const matrix *w, const void *x, long stride, int num_rows, long first_panel,
                        int num_panels, upcoming later, float *sums);

typedef struct {
    const char *name;
    gemm_fn f32, bf16, i8;
    int bf16_wants_bf16_rows;
    const block_kernels *blocks;
    gemm_fn bf16_of_exact_rows; /* or NULL: where `bf16` is that, and of tiles, which are so much faster that they have none */
} gemm_kernels;

/* The best for this processor; `name` picks one by name, NULL the best. NULL: not for this processor, or where errno is not 0,
 * the system does not let this process use them. */
const gemm_kernels *find_gemm_kernels(const char *name);

/* Whether its rows are rounded to blocks. */
static inline int is_of_blocks(const matrix *w) { return w->type >= WEIGHT_Q8 && w->type <= WEIGHT_MXFP4; }

static inline int has_exact_rows(const gemm_kernels *kernels, const matrix *w) {
    return w->wants_exact_rows && kernels->bf16_of_exact_rows != NULL;
}

static inline enum row_form row_form_of(const gemm_kernels *kernels, const matrix *w) {
    if (is_of_blocks(w)) return AS_BLOCKS;
    return w->type == WEIGHT_BF16 && kernels->bf16_wants_bf16_rows && !has_exact_rows(kernels, w) ? AS_BF16 : AS_F32;
}

/* Elements of a row: pairs of bfloat16, or whole blocks. */
static inline long padded_width(enum row_form form, long width) {
    return form == AS_BLOCKS ? blocks_of(width) * BLOCK_INPUTS : (width + 1) & ~1L;
}

/* Of so many elements: whole blocks, where rows are blocks. */
static inline long row_bytes(enum row_form form, long num_elements) {
    return form == AS_BLOCKS ? num_elements / BLOCK_INPUTS * (long)sizeof(row_block)
                               : num_elements * (form == AS_BF16 ? 2 : 4);
}

/* Of a row in any form. */
static inline long most_row_bytes(long width) { return 4 * blocks_of(width) * BLOCK_INPUTS; }

static inline long num_panels(const matrix *w) { return (w->num_out + PANEL - 1) / PANEL * (w->is_gated ? 2 : 1); }

static inline long panel_bytes(const matrix *w) {
    switch (w->type) {
        case WEIGHT_F32: return PANEL * 4 * w->num_in;
        case WEIGHT_I8:
        case WEIGHT_FP8: return PANEL * w->num_in;
        case WEIGHT_Q8: return blocks_of(w->num_in) * Q8_BYTES;
        case WEIGHT_Q4: return blocks_of(w->num_in) * Q4_BYTES;
        case WEIGHT_MXFP4: return blocks_of(w->num_in) * MXFP4_BYTES;
        default: return PANEL * ((w->num_in + 1) / 2 * 4); /* pairs of bfloat16 */
    }
}

#endif
