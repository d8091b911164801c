/* The operations of a decoder, each over several threads. Shapes: T tokens, R rows, P (row, expert) pairs,
 * D d_model, F hidden size of an expert, E experts, K experts per token. */
#ifndef EXPERTMESH_OPS_H
#define EXPERTMESH_OPS_H

#include <stdint.h>

#include "choose.h"
#include "matrix.h"
#include "rows.h"

typedef struct {
    const gemm_kernels *gemm;
    const row_kernels *rows;
} kernel_set;

/* y_RO = activation(x_RI Wᵀ + b) + residual_RO, or what a gated matrix makes; x first through the norm.
 * `scratch` has room for R rows of most_row_bytes(I) where there is a norm, or where rows go in another form. */
typedef struct {
    kernel_set kernels;
    matrix w;
    const float *x;
    long num_rows, stride;
    norm norm;
    int activation;
    const float *residual;
    float *y;
    void *scratch;
} linear_op;

void run_linear(linear_op *op, int num_threads);

/* Logits of all rows, then each row's experts, as `choose_experts` has them. `scratch` has room for CHOICE_FLOATS of each
 * thread. */
typedef struct {
    kernel_set kernels;
    matrix gate;
    router_rule rule;
    const float *x; /* rows of as many values as the gate has inputs */
    long num_tokens, num_places;
    float *logits_TE;
    const uint8_t *allowed_TE; /* NULL: all */
    const int64_t *top_k_T;    /* NULL: as many as there are places */
    const uint16_t *candidates_PC; /* NULL; else a row chooses among the experts of its row here, instead of `allowed_TE` */
    const int64_t *candidate_row_T;
    long num_candidates;
    float *weights_TK;
    int64_t *ids_TK;
    float *scratch;
} route_op;

void run_route(route_op *op, int num_threads);

/* y_RHO = x_RHI Wᵀ, by a matrix of each head. `w` is that of the first one; the panels of the others follow. `scratch` has
 * room for R · H rows of most_row_bytes(I) where they go in another form. */
typedef struct {
    kernel_set kernels;
    matrix w;
    const float *x; /* rows `stride` apart, whose heads are `apart` */
    long num_rows, num_heads, stride, apart;
    float *y;
    void *scratch;
} head_linear_op;

void run_head_linear(head_linear_op *op, int num_threads);

/* Norms in place, each of the values of a head by itself. */
typedef struct {
    kernel_set kernels;
    norm norm;
    float *x; /* rows `stride` apart, whose heads follow each other */
    long num_rows, num_heads, stride;
} head_norm_op;

void run_head_norm(head_norm_op *op, int num_threads);

/* One expert: down(activation(up(norm(x)))), or with a gated `up`, whose panels are those of gate and up,
 * down(activation(gate(norm(x))) * up(norm(x))). */
typedef struct {
    norm norm;
    matrix up, down;
} expert;

/* The experts of a layer, all of the same sizes and of one activation. */
typedef struct {
    long num_experts, width, hidden_width;
    int activation;
    expert experts[];
} expert_table;

typedef struct {
    long expert, num_pairs;
} segment;

/* How pairs become the result. */
enum combination {
    COMBINE_NOT,     /* out_PD: what each expert said, pair by pair */
    COMBINE_ROWS,    /* out_RD: per row of x, its pairs weighted and added in their order */
    COMBINE_TOKENS,  /* out_TD: per token, its pairs weighted and added in the order of k; then slice by slice */
};

/* Experts over their segments of pairs. Pair p reads row `row_P[p]` of x, or row p where NULL. */
typedef struct {
    kernel_set kernels;
    const expert_table *table;
    const float *x;
    long num_rows, num_pairs, num_segments;
    const segment *segments;
    const int32_t *row_P;
    enum combination combination;
    const float *weight_P; /* COMBINE_ROWS: by pair; COMBINE_TOKENS: [T, K] */
    const int32_t *pair_STK; /* COMBINE_TOKENS: of each slice, the pair of a token's k-th expert, or -1 */
    long num_slices, top_k;
    const float *residual; /* COMBINE_TOKENS: added last, or NULL */
    float *out;
    void *scratch; /* experts_scratch_bytes() */
} experts_op;

long experts_scratch_bytes(const expert_table *table, long num_pairs);
void run_experts(experts_op *op, int num_threads);

/* Experts over the tokens of a router's [T, K] choice; an id that is no expert is absent. A table of `num_slices` slices
 * has the first ones of all experts, then all second ones, and so on. `scratch` is of tokens_scratch_bytes(), which takes
 * the pairs of a token: K of each slice. */
typedef struct {
    kernel_set kernels;
    const expert_table *table;
    const float *x;
    long num_tokens, top_k, num_slices;
    const int64_t *ids_TK;
    const float *weights_TK;
    const float *residual; /* or NULL */
    float *out;
    void *scratch;
} tokens_op;

long tokens_scratch_bytes(const expert_table *table, long num_tokens, long per_token);
void run_tokens(const tokens_op *op, int num_threads);

/* Turns rows of heads by their positions, in place. */
typedef struct {
    kernel_set kernels;
    rotation how;
    float *x; /* rows of [heads, d], `stride` apart */
    long num_rows, stride, num_heads, head_dim;
    const int64_t *position_R;
} rotary_op;

void run_rotary(rotary_op *op, int num_threads);

/* Writes the step's keys and values to their slots, then attends: out [T, H, value_width]. `v` is NULL where values are
 * in the keys. A token sees the last `window` of the first `length_T` tokens of its sequence; 0: all of them. */
typedef struct {
    kernel_set kernels;
    attention_source source;
    const float *k, *v;
    long k_stride, v_stride;
    void *keys, *values;
    long num_tokens;
    const int64_t *slot_T;
    const int32_t *sequence_T, *length_T;
    const int32_t *block_table;
    long num_sequences, table_stride;
    long window, most_seen;
    float *scores; /* [threads, room]: a thread has room for those of one head at least */
    long room;
    float *out;
} attention_op;

void run_attention(attention_op *op, int num_threads);

#endif
