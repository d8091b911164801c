/* Replies put together in the order, and so with the bits, of combine.py. */
#include "dispatcher.h"

#include <string.h>

/* The same loops for each processor; elementwise, so their bits are the same. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#define EACH_PROCESSOR __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define EACH_PROCESSOR
#endif

EACH_PROCESSOR
int is_finite(const float *values, size_t count) {
    const uint32_t *const bits = (const uint32_t *)values;
    uint32_t num_bad = 0;
    for (size_t i = 0; i < count; i++) num_bad += (bits[i] & 0x7F800000) == 0x7F800000;
    return num_bad == 0;
}

EACH_PROCESSOR
void narrow(const float *from, size_t count, uint16_t *to) {
    const uint32_t *const bits = (const uint32_t *)from;
    for (size_t i = 0; i < count; i++) {
        const uint32_t rounded = (bits[i] + 0x7FFF + ((bits[i] >> 16) & 1)) >> 16;
        to[i] = (uint16_t)((bits[i] & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
    }
}

EACH_PROCESSOR
void add(float *restrict to, const float *restrict from, size_t count) {
    for (size_t i = 0; i < count; i++) to[i] += from[i];
}

EACH_PROCESSOR
static void scale(float *restrict to, const float *restrict from, float by, size_t count) {
    for (size_t i = 0; i < count; i++) to[i] = by * from[i];
}

/* A product is rounded before it is added. */
EACH_PROCESSOR
static void add_scaled(float *restrict to, const float *restrict from, float by, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const float product = by * from[i];
        to[i] += product;
    }
}

void add_sum(const flight *f, const call *c, int is_first, float *y_TD) {
    const float *const y_ND = (const float *)(c->reply.at + sizeof(frame_header));
    const size_t width = (size_t)f->rows.width, all = (size_t)f->rows.num_tokens * width;
    if (c->token_R == NULL) {
        if (is_first) memcpy(y_TD, y_ND, all * sizeof(float));
        else add(y_TD, y_ND, all);
        return;
    }
    if (is_first) memset(y_TD, 0, all * sizeof(float));
    for (long r = 0; r < c->num_rows; r++) add(y_TD + (size_t)c->token_R[r] * width, y_ND + (size_t)r * width, width);
}

void combine_pairs(const flight *f, const float **row_P, float *y_TD) {
    const size_t width = (size_t)f->rows.width;
    for (long t = 0; t < f->rows.num_tokens; t++)
        for (long k = 0; k < f->rows.num_places; k++) {
            const long place = t * f->rows.num_places + k;
            float *const y_D = y_TD + (size_t)t * width;
            if (k == 0) scale(y_D, row_P[place], f->rows.weights_TK[place], width);
            else add_scaled(y_D, row_P[place], f->rows.weights_TK[place], width);
        }
}
