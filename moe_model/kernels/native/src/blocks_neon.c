/* Products with blocks on ARM: NEON alone, and its dot products of bytes. */
#include "arm.h"

#ifdef HAS_NEON
#include <arm_neon.h>
#include <string.h>

/* Two products of bytes of 8 bits fit 16, also at their ends. */
static inline __attribute__((always_inline)) int32x4_t add_four_neon(int32x4_t sums, int32x4_t w, int32x4_t x) {
    const int8x16_t w8 = vreinterpretq_s8_s32(w), x8 = vreinterpretq_s8_s32(x);
    const int16x8_t low = vmull_s8(vget_low_s8(w8), vget_low_s8(x8)), high = vmull_high_s8(w8, x8);
    return vpadalq_s16(sums, vpaddq_s16(low, high));
}
#define NAME(x) x##_neon
#define DOT_q8 add_four_neon
#include "blocks_128.h"
#include "blocks_impl.h"

#ifdef HAS_DOTPROD
#ifndef __clang__
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define NAME(x) x##_dotprod
#define DOT_q8(sums, w, x) vdotq_s32(sums, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x))
#include "blocks_128.h"
#include "blocks_impl.h"
#ifndef __clang__
#pragma GCC pop_options
#endif
#endif
#endif
