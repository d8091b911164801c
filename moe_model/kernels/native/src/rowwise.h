/* What is done to each row by itself, over several threads. Rows are `stride` values apart. Shapes: T tokens, D d_model,
 * V vocabulary, S positions. */
#ifndef EXPERTMESH_ROWWISE_H
#define EXPERTMESH_ROWWISE_H

#include <stdint.h>

#include "rows.h"

/* Rows of the embedding, times `scale`, plus those of a table of positions where there is one. */
typedef struct {
    const void *weight_VD; /* float32, or bfloat16 */
    int is_bf16;
    long num_ids, num_positions, width;
    float scale;
    const float *positions_SD; /* or NULL */
} embedding;

void run_embedding(const embedding *e, const int64_t *ids_T, const int64_t *positions_T, long num_tokens, float *x_TD,
                   int num_threads);

/* Norms of `num_heads` pieces of each row, each by itself; y may be x. */
typedef struct {
    const row_kernels *rows;
    norm norm;
    const float *x;
    float *y;
    long num_rows, num_heads, x_stride, y_stride;
} norm_op;

void run_norm(const norm_op *op, int num_threads);

/* Pieces of rows to another place: `num_heads` of `width` values, whose beginnings are `apart`. */
typedef struct {
    const float *x;
    float *y;
    long num_rows, num_heads, width, x_stride, y_stride, x_apart, y_apart;
} copy_op;

void run_copy(const copy_op *op, int num_threads);

/* Values to within ±limit, in place; NaN stays NaN. */
void run_clamp(float *x, long num_rows, long width, long stride, float limit, int num_threads);

/* Each row times the sigmoid of its own number, in place. */
void run_gate(const row_kernels *rows, float *y, const float *gate_T, long num_rows, long width, int num_threads);

/* x += scale · norm(y + also), row by row; y is spoilt. */
typedef struct {
    const row_kernels *rows;
    float *x, *y;
    const float *also; /* or NULL */
    norm norm;         /* or of NORM_NONE */
    float scale;
    long num_rows, width;
} join_op;

void run_join(const join_op *op, int num_threads);

#endif
