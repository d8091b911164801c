#include "choose.h"

#include <math.h>
#include <string.h>

/* Whether a score comes before another one, of a lower expert: a NaN comes last. */
static int comes_before(float score, float other) { return score > other || (other != other && score == score); }

/* The best K of the allowed experts, in their order; returns how many there are. */
static long best_experts(const float *scores_E, const uint8_t *allowed_E, long num_experts, long top_k, int64_t *ids_K) {
    long num_chosen = 0;
    for (long e = 0; e < num_experts && top_k > 0; e++) {
        if (allowed_E != NULL && !allowed_E[e]) continue;
        if (num_chosen == top_k && !comes_before(scores_E[e], scores_E[ids_K[top_k - 1]])) continue;
        long k = num_chosen < top_k ? num_chosen++ : top_k - 1;
        for (; k > 0 && comes_before(scores_E[e], scores_E[ids_K[k - 1]]); k--) ids_K[k] = ids_K[k - 1];
        ids_K[k] = e;
    }
    return num_chosen;
}

static void softmax_of_chosen(const float *logits_E, long num_chosen, const int64_t *ids_K, float *weights_K) {
    float sum = 0.0f;
    for (long k = 0; k < num_chosen; k++) {
        weights_K[k] = expf(logits_E[ids_K[k]] - logits_E[ids_K[0]]);
        sum += weights_K[k];
    }
    for (long k = 0; k < num_chosen; k++) weights_K[k] /= sum;
}

/* Of the allowed logits; the others get 0. What is not finite makes all scores NaN. */
static void softmax(const row_kernels *rows, const float *logits_E, const uint8_t *allowed_E, long num_experts, float *y_E) {
    float largest = -INFINITY;
    for (long e = 0; e < num_experts; e++) {
        y_E[e] = allowed_E == NULL || allowed_E[e] ? logits_E[e] : -INFINITY;
        if (!(y_E[e] <= largest)) largest = largest == largest ? y_E[e] : largest;
    }
    const float sum = rows->soften(y_E, num_experts, largest);
    const int is_finite = largest - largest == 0.0f;
    for (long e = 0; e < num_experts; e++) y_E[e] = is_finite ? y_E[e] / sum : NAN;
}

/* How good a group is, and how many of its experts may be chosen. */
static float group_score(const expert_groups *groups, const float *scores, const uint8_t *may, long *num_there) {
    float best[MAX_COUNTED];
    long num_best = 0;
    *num_there = 0;
    for (long i = 0; i < groups->size; i++) {
        if (!may[i]) continue;
        ++*num_there;
        long at = num_best < groups->num_counted ? num_best++ : groups->num_counted;
        if (at == groups->num_counted && !(scores[i] > best[--at])) continue;
        for (; at > 0 && scores[i] > best[at - 1]; at--) best[at] = best[at - 1];
        best[at] = scores[i];
    }
    float sum = num_best == 0 ? -INFINITY : 0.0f;
    for (long i = 0; i < num_best; i++) sum += best[i];
    return sum;
}

/* Takes the experts out whose groups a row does not keep. Where the best groups have fewer than K experts, the next groups
 * are kept too. */
static void keep_groups(const expert_groups *groups, long top_k, const float *scores_E, uint8_t *may_E) {
    float score_G[MAX_GROUPS];
    long there_G[MAX_GROUPS], order_G[MAX_GROUPS];
    for (long g = 0; g < groups->num_groups; g++) {
        score_G[g] = group_score(groups, scores_E + g * groups->size, may_E + g * groups->size, &there_G[g]);
        long at = g;
        for (; at > 0 && comes_before(score_G[g], score_G[order_G[at - 1]]); at--) order_G[at] = order_G[at - 1];
        order_G[at] = g;
    }
    long num_before = 0;
    for (long rank = 0; rank < groups->num_groups; rank++) {
        const long g = order_G[rank];
        const int is_kept = rank < groups->num_kept || num_before < top_k;
        num_before += there_G[g];
        if (!is_kept) memset(may_E + g * groups->size, 0, groups->size);
    }
}

static long choose_by_scores(const router_rule *rule, const row_kernels *rows, const float *logits_E,
                             const uint8_t *allowed_E, long num_experts, long top_k, float *scratch, float *weights_K,
                             int64_t *ids_K) {
    float *score_E = scratch, *choice_E = scratch + num_experts;
    uint8_t *may_E = (uint8_t *)(scratch + 2 * num_experts);
    if (rule->scoring == SCORE_SIGMOID) rows->sigmoid(logits_E, num_experts, score_E);
    else softmax(rows, logits_E, allowed_E, num_experts, score_E);
    memcpy(choice_E, score_E, sizeof(float) * num_experts);
    if (rule->correction_E != NULL) rows->add(rule->correction_E, num_experts, choice_E);
    if (allowed_E == NULL) memset(may_E, 1, num_experts);
    else memcpy(may_E, allowed_E, num_experts);
    if (rule->groups.num_groups > 0) keep_groups(&rule->groups, top_k, choice_E, may_E);
    const long num_chosen = best_experts(choice_E, may_E, num_experts, top_k, ids_K);
    float sum = 0.0f;
    for (long k = 0; k < num_chosen; k++) {
        weights_K[k] = score_E[ids_K[k]];
        sum += weights_K[k];
    }
    if (rule->sum_more >= 0.0f) {
        const float with_more = sum + rule->sum_more;
        const float divisor = with_more < rule->sum_least ? rule->sum_least : with_more;
        for (long k = 0; k < num_chosen; k++) weights_K[k] /= divisor;
    }
    for (long k = 0; rule->scale != 1.0f && k < num_chosen; k++) weights_K[k] *= rule->scale;
    return num_chosen;
}

void choose_experts(const router_rule *rule, const row_kernels *rows, const float *logits_E, const uint8_t *allowed_E,
                    long num_experts, long top_k, long num_places, float *scratch, float *weights_K, int64_t *ids_K) {
    long num_chosen;
    if (rule->scoring == SCORE_CHOSEN) {
        num_chosen = best_experts(logits_E, allowed_E, num_experts, top_k, ids_K);
        softmax_of_chosen(logits_E, num_chosen, ids_K, weights_K);
    } else {
        num_chosen = choose_by_scores(rule, rows, logits_E, allowed_E, num_experts, top_k, scratch, weights_K, ids_K);
    }
    for (long k = num_chosen; k < num_places; k++) {
        ids_K[k] = num_experts;
        weights_K[k] = 0.0f;
    }
}
