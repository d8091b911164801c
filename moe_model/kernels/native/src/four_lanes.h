/* Vectors of any processor: four lanes, in the C that GCC and Clang know for all of them. */
#ifndef EXPERTMESH_FOUR_LANES_H
#define EXPERTMESH_FOUR_LANES_H

#include <stdint.h>
#include <string.h>

typedef float f32x4 __attribute__((vector_size(16)));
typedef uint32_t u32x4 __attribute__((vector_size(16)));

static inline f32x4 load4(const float *at) {
    f32x4 v;
    memcpy(&v, at, sizeof v);
    return v;
}
static inline void store4(float *at, f32x4 v) { memcpy(at, &v, sizeof v); }
static inline f32x4 broadcast4(float x) { return (f32x4){x, x, x, x}; }

#endif
