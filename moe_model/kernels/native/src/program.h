/* A decoder as a program: which operations run on which buffers, for any number of tokens. `run_program` runs it, in one
 * call for all layers, up to what its caller computes. Shapes: T tokens, D d_model, E experts, K experts per token,
 * N sequences, B blocks of the longest. */
#ifndef EXPERTMESH_PROGRAM_H
#define EXPERTMESH_PROGRAM_H

#include "layer_experts.h"
#include "ops.h"
#include "rowwise.h"

/* Where an instruction's rows are: from value `at` on in each row of a buffer. Values have 4 bytes. */
typedef struct {
    int buffer;
    long at;
} place;

/* Stands for no place. */
#define NOWHERE (-1)
/* The residual stream, [T, D], which is what a program returns. */
#define STREAM 0

enum instruction_kind {
    EMBED,       /* the stream begins */
    LINEAR,      /* y = activation(norm(x) Wᵀ + b), plus the stream and to the stream where y is the stream */
    HEAD_LINEAR, /* a matrix of each head */
    NORM,        /* of pieces of rows, each by itself */
    CLAMP,
    ROTATE,
    ATTEND, /* writes what is kept of each token, then attends over the cache of its layer */
    COPY,
    ROUTE,   /* logits, weights and ids of each row's experts */
    EXPERTS, /* rows go to their experts */
    ANSWER,  /* what the experts say is there */
    GATE,    /* y times the sigmoid of its gate */
    JOIN,    /* the stream plus scale · norm(y + also) */
};

typedef struct {
    matrix w;
    norm norm;
    int activation;
    place x, y;
} linear_step;

typedef struct {
    matrix w; /* of all heads; num_out is that of one */
    long num_heads, apart;
    place x, y;
} head_linear_step;

typedef struct {
    norm norm;
    long num_heads;
    place x, y;
} norm_step;

typedef struct {
    float limit;
    long width;
    place x;
} clamp_step;

typedef struct {
    rotation how;
    long num_heads, head_dim;
    place x;
} rotate_step;

typedef struct {
    long layer, num_heads, num_kv_heads, head_dim, value_width, window;
    float scale;
    const float *sinks_H;
    place q, k, v, o; /* v is nowhere where values are in the keys */
} attend_step;

typedef struct {
    long num_heads, width, x_apart, y_apart;
    place x, y;
} copy_step;

/* `order`: which of the program's routers it is. */
typedef struct {
    long layer, top_k, order;
    matrix gate;
    router_rule rule;
    place x, logits, weights, ids;
} route_step;

typedef struct {
    long layer, top_k, num_experts;
    place x, weights, ids, y;
} experts_step;

typedef struct {
    long width;
    place y, gate;
} gate_step;

typedef struct {
    place y, also; /* also may be nowhere */
    norm norm;
    float scale;
} join_step;

typedef struct {
    enum instruction_kind kind;
    union {
        embedding embed;
        linear_step linear;
        head_linear_step head_linear;
        norm_step norm;
        clamp_step clamp;
        rotate_step rotate;
        attend_step attend;
        copy_step copy;
        route_step route;
        experts_step experts;
        gate_step gate;
        join_step join;
    };
} instruction;

/* `width_B`: values of a row of each buffer. `seconds_I`: of each instruction, where they are wanted. */
typedef struct {
    kernel_set kernels;
    long num_buffers, num_layers, num_instructions, num_routers;
    long *width_B;
    instruction *instructions;
    double *seconds_I;
    int is_timed;
} program;

/* What a layer keeps of tokens, and which group of layers shares its blocks. */
typedef struct {
    void *keys, *values;
    int is_bf16;
    long group, num_kv_heads, key_width, value_width;
} layer_cache;

typedef struct {
    long num_layers, num_groups, block_size;
    long *num_blocks_G;
    layer_cache *layers;
} paged_cache;

/* What the tokens of a step write and see in one group of the cache. */
typedef struct {
    const int64_t *slot_T;
    const int32_t *sequence_T, *length_T, *block_table_NB;
    long num_sequences, table_stride, longest;
} group_context;

/* The experts of each layer that are in this process; NULL: a dense layer. */
typedef struct {
    long num_layers;
    const expert_table *tables[];
} layer_tables;

/* Experts that the rows of a step choose among, instead of all: of router r those of `ids_RPC`, at row `row_T` of a
 * token. ids_RPC NULL: routers choose among all. */
typedef struct {
    const uint16_t *ids_RPC;
    const int64_t *row_T;
    long num_rows, num_candidates;
} forced_experts;

/* One step. Of `tables` and `others` at most one is there; with none, a program stops at each layer's experts. */
typedef struct {
    long num_tokens;
    const int64_t *ids_T, *position_T;
    const paged_cache *cache;
    const group_context *groups;
    const layer_tables *tables;
    const layer_experts *others;
    int stops_at_routers;
    forced_experts forced;
    uint16_t *chosen_TRK; /* NULL, or where each router's choice is written */
    char *arena;   /* program_arena_bytes() */
    float *stream; /* [T, D] */
    void *scratch; /* program_scratch_bytes() */
    int num_threads;
} program_step;

/* NULL, or what is wrong with a program over this cache: sizes that do not fit each other. */
const char *check_cache(const program *p, const paged_cache *cache);
/* NULL, or what is wrong with the step: ids, positions and slots that are outside. */
const char *check_step(const program *p, const program_step *s);
long program_arena_bytes(const program *p, long num_tokens);
long program_scratch_bytes(const program *p, const program_step *s);
/* Where a buffer begins in the arena, in bytes. */
long buffer_offset(const program *p, long num_tokens, long buffer);

/* Runs from an instruction on. Returns the number of the one at which it stopped, and which is the caller's to do: a
 * ROUTE, an EXPERTS or an ANSWER; the number of instructions at the end. */
long run_program(program *p, const program_step *s, long first);

#endif
