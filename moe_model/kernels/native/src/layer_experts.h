/* The experts of a layer, wherever they are, for steps that run without the interpreter.
 * PyCapsule_GetPointer(capsule, LAYER_EXPERTS). Shapes: T tokens, D d_model, K experts per token. */
#ifndef EXPERTMESH_LAYER_EXPERTS_H
#define EXPERTMESH_LAYER_EXPERTS_H

#include <stdint.h>

#define LAYER_EXPERTS "expertmesh.layer_experts"

/* One layer's rows and their routing: contiguous, and left as they are until the layer is finished. A token with
 * fewer than K experts has the id E, one beyond the layer's columns, of weight 0, in the places that are left. */
typedef struct {
    long layer;
    long num_tokens, width, num_places; /* T, D, K */
    const void *x_TD;                   /* float32, or bfloat16 where `is_bf16` */
    int is_bf16;
    const float *weights_TK;
    const int64_t *ids_TK;
} layer_rows;

/* Both belong to the thread that dispatches, need no interpreter and may wait in `finish` only. What is begun is
 * finished before the next is begun.
 *
 * Not 0, of `begin`: nothing is on its way; the layer is the ordinary way's, ExpertBackend's begin and finish.
 * Not 0, of `finish`: the rows are on their way and y is not written; ExpertPool.take_over(layer, x, routing)
 * gives what ExpertBackend.finish takes. */
typedef struct {
    void *self;
    int (*begin)(void *self, const layer_rows *rows);
    int (*finish)(void *self, void *y_TD); /* in the rows' own type */
} layer_experts;

#endif
