/* What NEON's sets have in common, for blocks_impl.h. Weights of 8 bits become signed, and need no offset. */
#define V float32x4_t
#define VI int32x4_t
#define LANES 4
#define LOAD_q8(at) vreinterpretq_s32_u8(veorq_u8(vld1q_u8(at), vdupq_n_u8(0x80)))
#define START_q8 0
#define LOAD_q4(at) vreinterpretq_s32_u8(vld1q_u8(at))
#define DOT_q4 DOT_q8
#define LOW_HALVES(v) vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(v), vdupq_n_u8(15)))
#define HIGH_HALVES(v) vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(v), 4))
#define LOOK_UP(codes) vreinterpretq_s32_u8(vqtbl1q_u8((uint8x16_t){MXFP4_TABLE}, vreinterpretq_u8_s32(codes)))
#define LOAD_SCALES(at) vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(at)))
#define LOAD_POWERS(at)                                                                                          \
    vreinterpretq_f32_u32(vmaxq_u32(                                                                             \
        vshlq_n_u32((uint32x4_t){(at)[0], (at)[1], (at)[2], (at)[3]}, 23), vdupq_n_u32(1 << 22)))
#define GEMM_FP8 gemm_fp8_generic
#define SPLAT_I vdupq_n_s32
#define SPLAT vdupq_n_f32
#define TO_FLOAT vcvtq_f32_s32
#define ADD vaddq_f32
#define MUL vmulq_f32
#define LOAD vld1q_f32
#define STORE vst1q_f32
/* 32 registers: the sums of a block, 4 for a row and panel, its weights and a row's values; totals of more than two rows go
 * to the stack, block by block. */
#define ROWS_AT_ONCE 4
#define PANELS_FOR(rows) ((rows) == 1 ? 2 : 1)
