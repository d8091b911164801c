/* Eight lanes of NEON, for rows_impl.h. Compilers compute with vectors of eight well there, but leave one that lives from
 * one round of a loop to the next in memory, piece by piece: it is held as two registers. */
#include <arm_neon.h>

#define NEON_INLINE static inline __attribute__((always_inline))

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define HAS_SHUFFLEVECTOR 1
#endif
#endif
#ifdef HAS_SHUFFLEVECTOR
#define LOW4(v) ((float32x4_t)__builtin_shufflevector(v, v, 0, 1, 2, 3))
#define HIGH4(v) ((float32x4_t)__builtin_shufflevector(v, v, 4, 5, 6, 7))
#define JOIN8(low, high) __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7)
#else
#define LOW4(v) ((float32x4_t){(v)[0], (v)[1], (v)[2], (v)[3]})
#define HIGH4(v) ((float32x4_t){(v)[4], (v)[5], (v)[6], (v)[7]})
#define JOIN8(low, high) ((two_lanes4){.halves = {(f32x4)(low), (f32x4)(high)}}.all)
typedef union {
    f32x4 halves[2];
    f32x8 all;
} two_lanes4;
#endif

typedef struct {
    float32x4_t low, high;
} two_f32x4;

NEON_INLINE two_f32x4 load_two_f32x4(const float *at) { return (two_f32x4){vld1q_f32(at), vld1q_f32(at + 4)}; }

NEON_INLINE two_f32x4 load_two_bf16x4(const uint16_t *at) {
    const uint16x8_t halves = vld1q_u16(at);
    const uint32x4_t low = vshll_n_u16(vget_low_u16(halves), 16), high = vshll_high_n_u16(halves, 16);
    return (two_f32x4){vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high)};
}

NEON_INLINE void store_two_f32x4(float *at, two_f32x4 v) {
    vst1q_f32(at, v.low);
    vst1q_f32(at + 4, v.high);
}

NEON_INLINE two_f32x4 fma_two_f32x4(two_f32x4 a, two_f32x4 b, two_f32x4 c) {
    return (two_f32x4){vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}

/* The additions of AVX2 in their order. */
NEON_INLINE f32x4 sum_of_four_neon(two_f32x4 a, two_f32x4 b, two_f32x4 c, two_f32x4 d) {
    const float32x4_t low = vpaddq_f32(vpaddq_f32(a.low, b.low), vpaddq_f32(c.low, d.low));
    const float32x4_t high = vpaddq_f32(vpaddq_f32(a.high, b.high), vpaddq_f32(c.high, d.high));
    return (f32x4)vaddq_f32(low, high);
}

NEON_INLINE f32x8 fma8_neon(f32x8 a, f32x8 b, f32x8 c) {
    const float32x4_t low = vfmaq_f32(LOW4(c), LOW4(a), LOW4(b)), high = vfmaq_f32(HIGH4(c), HIGH4(a), HIGH4(b));
    return (f32x8)JOIN8(low, high);
}

NEON_INLINE i32x8 less8_neon(f32x8 a, f32x8 b) {
    const uint32x4_t low = vcltq_f32(LOW4(a), LOW4(b)), high = vcltq_f32(HIGH4(a), HIGH4(b));
    return (i32x8)JOIN8(low, high);
}

#define FMA8 fma8_neon
#define LESS8 less8_neon
#define SUM_OF_FOUR sum_of_four_neon
#define HELD8 two_f32x4
#define HOLD(v) ((two_f32x4){LOW4(v), HIGH4(v)})
#define LANES8(held) ((f32x8)JOIN8((held).low, (held).high))
#define LOAD_HELD load_two_f32x4
#define LOAD_HELD_BF16 load_two_bf16x4
#define STORE_HELD store_two_f32x4
#define SPLAT_HELD(x) ((two_f32x4){vdupq_n_f32(x), vdupq_n_f32(x)})
#define FMA_HELD fma_two_f32x4
