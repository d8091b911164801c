/* Products on ARM. NEON multiplies and adds in one rounding, as AVX2 does, so the bits are AVX2's. bfloat16 is widened too:
 * what BFDOT and BFMMLA give is rounded to odd, without the smallest numbers, and so like no other processor's. Dot
 * products and i8mm are for blocks. */
#include "arm.h"

#ifdef HAS_NEON
#include <arm_neon.h>
#include <string.h>

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

static inline float32x4_t load_i8(const int8_t *at) {
    int32_t four;
    memcpy(&four, at, sizeof four);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}

#define V float32x4_t
#define LANES 4
#define NAME(x) x##_neon
#define LOAD vld1q_f32
#define STORE vst1q_f32
#define ADD vaddq_f32
#define FMA(a, b, c) vfmaq_f32(c, a, b)
#define BROADCAST vdupq_n_f32
#define ZERO vdupq_n_f32(0)
#define LOAD_BF16_EVEN(at) vreinterpretq_f32_u32(vshlq_n_u32(vld1q_u32(at), 16))
#define LOAD_BF16_ODD(at) vreinterpretq_f32_u32(vandq_u32(vld1q_u32(at), vdupq_n_u32(0xffff0000u)))
#define LOAD_I8 load_i8
/* 32 registers: 16 to 24 sums, the rest for weights and a row's value. */
#define PANELS_FOR(rows) ((rows) == 1 ? 4 : (rows) <= 3 ? 2 : 1)
#define ROWS_AT_ONCE(type) 6
#include "gemm_impl.h"

static const gemm_kernels neon = {"neon", gemm_f32_neon, gemm_bf16_neon, gemm_i8_neon, 0, &blocks_neon, NULL};
#ifdef HAS_DOTPROD
static const gemm_kernels dotprod = {"dotprod", gemm_f32_neon, gemm_bf16_neon, gemm_i8_neon, 0, &blocks_dotprod, NULL};
#endif
#ifdef HAS_I8MM
static const gemm_kernels i8mm = {"i8mm", gemm_f32_neon, gemm_bf16_neon, gemm_i8_neon, 0, &blocks_i8mm, NULL};
#endif

/* The bit of a word of the kernel about the processor, for which not every C library has a name, or Apple's name. */
#if defined(__linux__)
#define PROCESSOR_HAS(word, bit, name) (getauxval(word) >> (bit) & 1)
#elif defined(__APPLE__)
#define PROCESSOR_HAS(word, bit, name) says_apple(name)
static inline int says_apple(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value != 0;
}
#else
#define PROCESSOR_HAS(word, bit, name) 0
#endif

int find_arm_kernels(const gemm_kernels **found) {
    int count = 0;
    found[count++] = &neon;
#ifdef HAS_DOTPROD
    if (!PROCESSOR_HAS(AT_HWCAP, 20, "hw.optional.arm.FEAT_DotProd")) return count;
    found[count++] = &dotprod;
#endif
#ifdef HAS_I8MM
    if (PROCESSOR_HAS(AT_HWCAP2, 13, "hw.optional.arm.FEAT_I8MM")) found[count++] = &i8mm;
#endif
    return count;
}
#endif
