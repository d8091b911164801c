/* What an ARM processor has. An instruction set is built where the compiler can give it to some functions (GCC), or gives
 * it to all of them, as Clang does for Apple's processors. Numbers of 16 bits in pairs want a little-endian memory. */
#ifndef EXPERTMESH_ARM_H
#define EXPERTMESH_ARM_H

#include "matrix.h"

#if defined(__aarch64__) && defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define HAS_NEON 1
#if defined(__ARM_FEATURE_DOTPROD) || (!defined(__clang__) && __GNUC__ >= 8)
#define HAS_DOTPROD 1
#endif
#if defined(HAS_DOTPROD) && (defined(__ARM_FEATURE_MATMUL_INT8) || (!defined(__clang__) && __GNUC__ >= 10))
#define HAS_I8MM 1
#endif

DECLARE_MXFP4(neon);
DECLARE_MXFP4(dotprod);

extern const block_kernels blocks_neon, blocks_dotprod, blocks_i8mm;

/* The sets of this processor, from the worst to the best; returns how many. */
int find_arm_kernels(const gemm_kernels **found);
#endif

#endif
