/* From a row's logits to its experts and their weights. Shapes: E experts, K experts per token. */
#ifndef EXPERTMESH_CHOOSE_H
#define EXPERTMESH_CHOOSE_H

#include <stdint.h>

#include "rows.h"

/* What an expert's score is: the softmax of the chosen logits alone, of all logits, or the sigmoid of its own. */
enum scoring { SCORE_CHOSEN, SCORE_SOFTMAX, SCORE_SIGMOID };

/* Experts lie in `num_groups` groups of `size`, by number; a row chooses among those of its `num_kept` best groups. A
 * group is as good as its `num_counted` best experts together. */
typedef struct {
    long num_groups, num_kept, size, num_counted; /* no groups: 0 */
} expert_groups;

#define MAX_GROUPS 256
#define MAX_COUNTED 8

/* The K experts whose scores and corrections are largest together, the lower expert first among equals. Their weights
 * are the scores, divided by their sum and `sum_more`, where that is not negative, or by `sum_least` where the sum is
 * less; times `scale`. */
typedef struct {
    int scoring;
    float scale, sum_more, sum_least;
    const float *correction_E; /* or NULL */
    expert_groups groups;
} router_rule;

#define CHOICE_FLOATS(num_experts) (3 * (num_experts))

/* Places beyond a row's K get expert id E and weight 0. `scratch` has room for CHOICE_FLOATS; `allowed_E` NULL: all are. */
void choose_experts(const router_rule *rule, const row_kernels *rows, const float *logits_E, const uint8_t *allowed_E,
                    long num_experts, long top_k, long num_places, float *scratch, float *weights_K, int64_t *ids_K);

#endif
