/* What other extensions may use of the kernels: PyCapsule_Import(KERNELS_API, 0). */
#ifndef EXPERTMESH_API_H
#define EXPERTMESH_API_H

#include "ops.h"

#define KERNELS_API "moe_model.kernels.native._kernels.api"
#define KERNELS_CAPSULE "expertmesh.kernels"
#define MATRIX_CAPSULE "expertmesh.matrix"
#define EXPERTS_CAPSULE "expertmesh.experts"

typedef struct {
    void (*run_experts)(experts_op *op, int num_threads);
    long (*scratch_bytes)(const expert_table *table, long num_pairs);
} kernels_api;

#endif
