#include "rowwise.h"

#include <string.h>

#include "threads.h"

typedef void (*row_fn)(const void *op, long row);

typedef struct {
    row_fn fn;
    const void *op;
    long num_rows;
    atomic_long next_row;
} row_job;

static void row_work(void *arg, int thread, int num_threads) {
    (void)thread;
    (void)num_threads;
    row_job *job = arg;
    for (long row; (row = take(&job->next_row, 1)) < job->num_rows;)
        job->fn(job->op, row);
}

static void each_row(row_fn fn, const void *op, long num_rows, int num_threads) {
    row_job job = {.fn = fn, .op = op, .num_rows = num_rows};
    run_parallel(row_work, &job, num_threads);
}

typedef struct {
    const embedding *e;
    const int64_t *ids_T, *positions_T;
    float *x;
} embedding_job;

static void embed_row(const void *op, long row) {
    const embedding_job *job = op;
    const embedding *e = job->e;
    const long width = e->width, at = job->ids_T[row] * width;
    float *x = job->x + row * width;
    if (e->is_bf16) {
        for (long i = 0; i < width; i++) {
            const uint32_t bits = (uint32_t)((const uint16_t *)e->weight_VD)[at + i] << 16;
            memcpy(x + i, &bits, sizeof bits);
        }
    } else {
        memcpy(x, (const float *)e->weight_VD + at, sizeof(float) * width);
    }
    if (e->scale != 1.0f)
        for (long i = 0; i < width; i++) x[i] *= e->scale;
    if (e->positions_SD != NULL) {
        const float *position = e->positions_SD + job->positions_T[row] * width;
        for (long i = 0; i < width; i++) x[i] += position[i];
    }
}

void run_embedding(const embedding *e, const int64_t *ids_T, const int64_t *positions_T, long num_tokens, float *x_TD,
                   int num_threads) {
    const embedding_job job = {e, ids_T, positions_T, x_TD};
    each_row(embed_row, &job, num_tokens, num_threads);
}

static void norm_row(const void *arg, long row) {
    const norm_op *op = arg;
    const long width = op->norm.width;
    for (long head = 0; head < op->num_heads; head++)
        op->rows->normalise(&op->norm, op->x + row * op->x_stride + head * width, width,
                            op->y + row * op->y_stride + head * width, 0);
}

void run_norm(const norm_op *op, int num_threads) { each_row(norm_row, op, op->num_rows, num_threads); }

static void copy_row(const void *arg, long row) {
    const copy_op *op = arg;
    for (long head = 0; head < op->num_heads; head++)
        memcpy(op->y + row * op->y_stride + head * op->y_apart, op->x + row * op->x_stride + head * op->x_apart,
               sizeof(float) * op->width);
}

void run_copy(const copy_op *op, int num_threads) { each_row(copy_row, op, op->num_rows, num_threads); }

typedef struct {
    float *x;
    long width, stride;
    float limit;
} clamp_op;

static void clamp_row(const void *arg, long row) {
    const clamp_op *op = arg;
    float *x = op->x + row * op->stride;
    for (long i = 0; i < op->width; i++) {
        const float low = x[i] < -op->limit ? -op->limit : x[i];
        x[i] = low > op->limit ? op->limit : low;
    }
}

void run_clamp(float *x, long num_rows, long width, long stride, float limit, int num_threads) {
    const clamp_op op = {x, width, stride, limit};
    each_row(clamp_row, &op, num_rows, num_threads);
}

typedef struct {
    const row_kernels *rows;
    float *y;
    const float *gate_T;
    long width;
} gate_op;

static void gate_row(const void *arg, long row) {
    const gate_op *op = arg;
    float *y = op->y + row * op->width, share;
    op->rows->sigmoid(op->gate_T + row, 1, &share);
    op->rows->scale(y, share, op->width, y);
}

void run_gate(const row_kernels *rows, float *y, const float *gate_T, long num_rows, long width, int num_threads) {
    const gate_op op = {rows, y, gate_T, width};
    each_row(gate_row, &op, num_rows, num_threads);
}

static void join_row(const void *arg, long row) {
    const join_op *op = arg;
    const long width = op->width;
    float *x = op->x + row * width, *y = op->y + row * width;
    if (op->also != NULL) op->rows->add(op->also + row * width, width, y);
    if (op->norm.kind != NORM_NONE) op->rows->normalise(&op->norm, y, width, y, 0);
    if (op->scale == 1.0f) op->rows->add(y, width, x);
    else op->rows->add_scaled(y, op->scale, width, x);
}

void run_join(const join_op *op, int num_threads) { each_row(join_row, op, op->num_rows, num_threads); }
