/* Between a layer's norm and its experts: which rows go to which. */
#include <string.h>

#include "ops.h"
#include "threads.h"

/* Fewer rows are chosen for sooner than another thread wakes. */
#define MANY_ROWS 16

typedef struct {
    const route_op *op;
    atomic_long next_row;
} route_job;

/* What row `t` may choose from. Where experts are forced, that is written behind what choosing itself works in: it needs a
 * byte of each expert's last four. */
static const uint8_t *allowed_of(const route_op *op, long t, float *scratch) {
    const long num_experts = op->gate.num_out;
    if (op->candidates_PC == NULL) return op->allowed_TE == NULL ? NULL : op->allowed_TE + t * num_experts;
    uint8_t *allowed_E = (uint8_t *)(scratch + 2 * num_experts) + num_experts;
    const uint16_t *ids_C = op->candidates_PC + op->candidate_row_T[t] * op->num_candidates;
    memset(allowed_E, 0, num_experts);
    for (long c = 0; c < op->num_candidates; c++)
        if (ids_C[c] < num_experts) allowed_E[ids_C[c]] = 1;
    return allowed_E;
}

static void choose_work(void *arg, int thread, int num_threads) {
    (void)num_threads;
    route_job *job = arg;
    const route_op *op = job->op;
    const long num_experts = op->gate.num_out, num_places = op->num_places;
    float *scratch = op->scratch + thread * CHOICE_FLOATS(num_experts);
    for (long t; (t = take(&job->next_row, 1)) < op->num_tokens;)
        choose_experts(&op->rule, op->kernels.rows, op->logits_TE + t * num_experts,
                       allowed_of(op, t, scratch), num_experts,
                       op->top_k_T == NULL ? num_places : op->top_k_T[t], num_places, scratch,
                       op->weights_TK + t * num_places, op->ids_TK + t * num_places);
}

void run_route(route_op *op, int num_threads) {
    linear_op logits = {
        .kernels = op->kernels,
        .w = op->gate,
        .x = op->x,
        .num_rows = op->num_tokens,
        .stride = op->gate.num_in,
        .y = op->logits_TE,
    };
    run_linear(&logits, num_threads);
    route_job job = {.op = op};
    run_parallel(choose_work, &job, op->num_tokens < MANY_ROWS ? 1 : num_threads);
}

/* Of what `group` fills: where each expert's pairs begin, segments, the row of a pair, the pair of a place in a slice. */
static long group_bytes(const expert_table *table, long num_pairs) {
    const long bytes = (long)(sizeof(long) + sizeof(segment)) * (table->num_experts + 1) + 8 * num_pairs;
    return (bytes + 63) & ~63L;
}

long tokens_scratch_bytes(const expert_table *table, long num_tokens, long per_token) {
    return group_bytes(table, num_tokens * per_token) + experts_scratch_bytes(table, num_tokens * per_token);
}

/* Sorts the [T, K] places of each slice by expert; a token keeps its order within one. Returns how many experts there
 * are. */
static long group(const tokens_op *op, long *start_E, segment *segments, int32_t *row_P, int32_t *pair_STK,
                  long *num_pairs) {
    const long num_experts = op->table->num_experts, num_places = op->num_tokens * op->top_k;
    const long num_columns = num_experts / op->num_slices;
    memset(start_E, 0, sizeof(long) * (num_experts + 1));
    for (long i = 0; i < num_places; i++) {
        if (op->ids_TK[i] < 0 || op->ids_TK[i] >= num_columns) continue;
        for (long e = op->ids_TK[i]; e < num_experts; e += num_columns) start_E[e + 1]++;
    }
    long num_segments = 0;
    for (long e = 0; e < num_experts; e++) {
        if (start_E[e + 1] > 0) segments[num_segments++] = (segment){e, start_E[e + 1]};
        start_E[e + 1] += start_E[e];
    }
    *num_pairs = start_E[num_experts];
    for (long s = 0; s < op->num_slices; s++)
        for (long i = 0; i < num_places; i++) {
            int32_t *const at = &pair_STK[s * num_places + i];
            *at = -1;
            if (op->ids_TK[i] < 0 || op->ids_TK[i] >= num_columns) continue;
            *at = (int32_t)start_E[s * num_columns + op->ids_TK[i]]++;
            row_P[*at] = (int32_t)(i / op->top_k);
        }
    return num_segments;
}

void run_tokens(const tokens_op *op, int num_threads) {
    const long num_experts = op->table->num_experts, most_pairs = op->num_tokens * op->top_k * op->num_slices;
    long *start_E = op->scratch;
    segment *segments = (segment *)(start_E + num_experts + 1);
    int32_t *row_P = (int32_t *)(segments + num_experts + 1), *pair_STK = row_P + most_pairs;
    experts_op all = {
        .kernels = op->kernels,
        .table = op->table,
        .x = op->x,
        .num_rows = op->num_tokens,
        .segments = segments,
        .row_P = row_P,
        .combination = COMBINE_TOKENS,
        .weight_P = op->weights_TK,
        .pair_STK = pair_STK,
        .num_slices = op->num_slices,
        .top_k = op->top_k,
        .residual = op->residual,
        .out = op->out,
        .scratch = (char *)op->scratch + group_bytes(op->table, most_pairs),
    };
    all.num_segments = group(op, start_E, segments, row_P, pair_STK, &all.num_pairs);
    run_experts(&all, num_threads);
}
