/* A packed weight matrix and the product with it. Shapes: R rows, I inputs, O outputs. */
#ifndef EXPERTMESH_MATRIX_H
#define EXPERTMESH_MATRIX_H

#include <stdint.h>

/* Outputs are packed in panels of 16: [panel][input][16], the last panel padded with zeros. bfloat16 comes in
 * pairs of inputs, [panel][input / 2][16][2], an odd last one padded with zero. */
#define PANEL 16
/* Panels of one task; rows of one task. Their sums, 24 KiB, stay in the first level of cache. */
#define PANELS_PER_TASK 4
#define ROWS_PER_TASK 96

enum weight_type { WEIGHT_F32, WEIGHT_BF16, WEIGHT_I8 };
enum activation { ACTIVATION_NONE, ACTIVATION_GELU, ACTIVATION_SILU };

/* `num_out` is the number of results. A gated matrix has two panels for 16 results, in turns: what gates, and
 * what is gated; its scales and biases are as long as its panels. With a `limit` that is not 0, what gates, g, is at
 * most the limit, what is gated, u, is within it, and a result is (u + 1) * g * sigmoid(alpha * g). */
typedef struct {
    const void *panels;
    const float *scale_O; /* of int8 weights, else NULL */
    const float *bias_O;  /* or NULL */
    long num_in, num_out;
    int type, is_gated;
    float limit, alpha;
} matrix;

/* Fills sums[r][PANELS_PER_TASK * PANEL] with x Wᵀ for up to ROWS_PER_TASK rows and PANELS_PER_TASK panels.
 * One output is one chain of additions whose order depends on nothing but its number of inputs: not on the
 * other rows, not on the thread, and not on the width of the vectors. `x` is float, or bfloat16 where the
 * kernels say `rows_are_bf16`, padded to an even number of inputs. `stride` is in elements of x. */
typedef void (*gemm_fn)(const matrix *w, const void *x, long stride, int num_rows, long first_panel,
                        int num_panels, float *sums);

typedef struct {
    const char *name;
    gemm_fn f32, bf16, i8;
    int bf16_wants_bf16_rows;
} gemm_kernels;

/* The best for this processor; `name` picks one by name, NULL the best. NULL: not for this processor. */
const gemm_kernels *find_gemm_kernels(const char *name);

static inline long num_panels(const matrix *w) { return (w->num_out + PANEL - 1) / PANEL * (w->is_gated ? 2 : 1); }

/* Of one panel; float32, int8, or pairs of bfloat16. */
static inline long panel_bytes(const matrix *w) {
    return PANEL * (w->type == WEIGHT_F32 ? 4 * w->num_in : w->type == WEIGHT_I8 ? w->num_in : (w->num_in + 1) / 2 * 4);
}

#endif
