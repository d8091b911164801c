/* Everything that is done to rows beside the products. Shapes: D d_model, H heads, d head size. */
#ifndef EXPERTMESH_ROWS_H
#define EXPERTMESH_ROWS_H

#include <stdint.h>

#include "matrix.h"

enum norm_kind { NORM_NONE, NORM_LAYER, NORM_RMS };

/* What is done to a row before a product; of NORM_NONE, nothing. */
typedef struct {
    int kind;
    float eps;
    const float *weight_D, *bias_D; /* NORM_RMS has no bias */
    long width;
} norm;

/* What becomes of a product's sums, h = sum * scale + bias: y = activation(h) + residual, or of a gated matrix
 * y = activation(h of what gates) * h of what is gated, or what its limit says, without a residual. */
typedef struct {
    const matrix *w;
    const float *residual; /* of the same stride as y, or NULL */
    void *y;
    long stride; /* in elements; of blocks, whole ones */
    int activation;
    enum row_form y_form;
} epilogue;

/* Rows of a sequence, and heads of them that see one key head, that attend together. */
#define MAX_ROWS_AT_ONCE 4
#define MAX_HEADS_AT_ONCE 16

typedef struct {
    const float *q; /* rows of [H, d], `q_stride` apart */
    long q_stride;
    /* One layer: [block, G, block_size, d], so that a head is read in one piece; of values, `value_stride` in the place of
     * d. Where values are the first numbers of keys, these are the same. */
    const void *keys, *values;
    int cache_is_bf16;
    long block_size, num_heads, num_kv_heads, head_dim, value_width, value_stride;
    float scale;
    const float *sinks_H; /* of each head a logit without a value, or NULL */
} attention_source;

/* A row sees tokens `first` to `end` - 1 of its sequence. */
typedef struct {
    long row, first, end;
} seen;

/* Some heads, of one key head, of rows of the sequence whose blocks these are. Blocks that no row sees are not looked at. */
typedef struct {
    const int32_t *blocks;
    long head, num_heads, num_rows;
    seen rows[MAX_ROWS_AT_ONCE];
} queries;

#define MAX_ROTARY_DIM 1024

/* Rotary positions: the first `dim` values of a head, an even number, turn in pairs by position * rate. Pairs are
 * neighbours where they are interleaved, else half of `dim` apart. */
typedef struct {
    const float *rates; /* [dim / 2], in radians per position */
    float factor; /* of sines and cosines */
    long dim;
    int is_interleaved;
} rotation;

typedef struct {
    /* y may be x where it is float. Where y is blocks, the last one is filled up with zeros. */
    void (*normalise)(const norm *n, const float *x, long width, void *y, enum row_form y_form);
    void (*finish)(const epilogue *e, const float *sums, long first_row, int num_rows, long first_panel,
                   int num_panels);
    /* `scores` has room for `apart` of each head of each row, as many as a row sees at most; out [R, H, value_width]. */
    void (*attend)(const attention_source *s, const queries *q, float *scores, long apart, float *out);
    void (*to_bf16)(const float *x, long n, uint16_t *y);
    /* y = w * x, or y += w * x: two roundings, so that no order of placing experts shows. */
    void (*scale)(const float *x, float w, long n, float *y);
    void (*add_scaled)(const float *x, float w, long n, float *y);
    void (*add)(const float *x, long n, float *y);
    /* The heads of one row, in place. */
    void (*turn)(const rotation *how, int64_t position, long num_heads, long head_dim, float *x);
    /* x becomes e^(x - largest), in place; returns their sum. */
    float (*soften)(float *x, long n, float largest);
    void (*sigmoid)(const float *x, long n, float *y); /* NaN stays NaN */
} row_kernels;

const row_kernels *find_row_kernels(const char *name);

#endif
