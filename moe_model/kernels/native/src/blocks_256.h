/* What vectors of 256 bits have in common, for blocks_impl.h. */
#define LOAD_q4(at) _mm256_loadu_si256((const __m256i *)(at))
#define LOW_HALVES(v) _mm256_and_si256(v, _mm256_set1_epi8(15))
#define HIGH_HALVES(v) _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15))
#define LOOK_UP(codes) _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_setr_epi8(MXFP4_TABLE)), codes)
#define LOAD_SCALES(at) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(at)))
#define LOAD_POWERS(at)                                                                                       \
    _mm256_castsi256_ps(_mm256_max_epi32(                                                                     \
        _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(at))), 23), _mm256_set1_epi32(1 << 22)))
#define SPLAT_I _mm256_set1_epi32
#define SPLAT _mm256_set1_ps
#define TO_FLOAT _mm256_cvtepi32_ps
#define ADD _mm256_add_ps
#define MUL _mm256_mul_ps
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
/* 16 registers: the sums of a block, 2 for a row, its weights, and constants; totals may go to the stack, block by block. */
#define ROWS_AT_ONCE 4
#define PANELS_FOR(rows) ((rows) == 1 ? 2 : 1)
