/* Products with blocks by one instruction set; included once for each, with its vectors defined: V, VI, LANES, NAME(x), LOAD_q8,
 * DOT_q8, START_q8, LOAD_q4, DOT_q4, LOW_HALVES, HIGH_HALVES, LOOK_UP, LOAD_SCALES, LOAD_POWERS, SPLAT_I, SPLAT, TO_FLOAT, ADD,
 * MUL, LOAD, STORE, ROWS_AT_ONCE, PANELS_FOR(rows), GEMM_FP8. No include guard: that is the point.
 *
 * DOT(sums, w, x) adds four products to each of LANES sums. Where weights are multiplied as the unsigned numbers that they are in
 * memory, sums start at -START · (sum of the row's integers), which takes the offset off again. LOOK_UP gives what codes of
 * MXFP4 stand for, with its offset; LOAD_POWERS 2^(e - 127) of scales of a byte. */

#define VECS (PANEL / LANES)
/* Blocks of all rows of a task, and of its panels, that stay in the first level of cache. */
#define BLOCKS_AT_ONCE 8
#define MAX_ROWS 6
#define START_q4 Q4_OFFSET
#define START_mxfp4 MXFP4_OFFSET
#define BYTES_q8 Q8_BYTES
#define BYTES_q4 Q4_BYTES
#define BYTES_mxfp4 MXFP4_BYTES
#define SCALES_q8(panel, v) LOAD_SCALES((panel) + (v) * LANES * 2)
#define SCALES_q4 SCALES_q8
#define SCALES_mxfp4(panel, v) MUL(LOAD_POWERS((panel) + (v) * LANES), SPLAT(0.5f))

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")

INLINE VI NAME(four)(const int8_t *values) {
    int32_t word;
    memcpy(&word, values, sizeof word);
    return SPLAT_I(word);
}

/* The vectors of `np` panels at `offset` of a block, as LOAD has them. */
#define LOAD_WEIGHTS(load, offset)                                                                           \
    VI w[PANELS_PER_TASK * VECS];                                                                            \
    UNROLL for (int v = 0; v < np * VECS; v++) w[v] = load(at + v / VECS * panel_size + (offset) + v % VECS * LANES * 4)

/* Four inputs of all rows. */
#define ADD_FOUR(dot, weight, input)                                                                         \
    UNROLL for (int r = 0; r < mr; r++) {                                                                    \
        const VI value = NAME(four)(row[r * stride].values + (input));                                       \
        UNROLL for (int v = 0; v < np * VECS; v++) sum[r * np * VECS + v] =                                  \
            dot(sum[r * np * VECS + v], weight, value);                                                      \
    }

#define ADD_BLOCK_q8()                                                                                       \
    UNROLL for (int g = 0; g < 8; g++) {                                                                     \
        FETCH(4 * PANEL);                                                                                    \
        LOAD_WEIGHTS(LOAD_q8, SCALE_BYTES + g * 4 * PANEL);                                                  \
        ADD_FOUR(DOT_q8, w[v], 4 * g)                                                                        \
    }

#define ADD_BLOCK_q4()                                                                                       \
    UNROLL for (int g = 0; g < 4; g++) {                                                                     \
        FETCH(4 * PANEL);                                                                                    \
        LOAD_WEIGHTS(LOAD_q4, SCALE_BYTES + g * 4 * PANEL);                                                  \
        ADD_FOUR(DOT_q4, LOW_HALVES(w[v]), 4 * g)                                                            \
        ADD_FOUR(DOT_q4, HIGH_HALVES(w[v]), 16 + 4 * g)                                                      \
    }

#define ADD_BLOCK_mxfp4()                                                                                    \
    UNROLL for (int g = 0; g < 4; g++) {                                                                     \
        FETCH(4 * PANEL);                                                                                    \
        LOAD_WEIGHTS(LOAD_q4, PANEL + g * 4 * PANEL);                                                        \
        ADD_FOUR(DOT_q4, LOOK_UP(LOW_HALVES(w[v])), 4 * g)                                                   \
        ADD_FOUR(DOT_q4, LOOK_UP(HIGH_HALVES(w[v])), 16 + 4 * g)                                             \
    }

#define ROWS_OF(type, mr) NAME(rows_##type)(at, panel_size, row, stride, count, part, to, mr, num_panels)

/* `mr` and `np` are constants to the compiler, so that the sums are registers. */
#define DEFINE_BLOCK_GEMM(type, linkage)                                                                     \
    INLINE void NAME(tile_##type)(const uint8_t *at, long panel_size, const row_block *row, long stride,     \
                                  long count, fetching part, float *totals, const int mr,     \
                                  const int np) {                                                            \
        long left = part.num_tiles * LINE_BYTES;                                                             \
        V total[MAX_ROWS * PANELS_PER_TASK * VECS];                                                          \
        UNROLL for (int i = 0; i < mr * np * VECS; i++) total[i] =                                           \
            LOAD(totals + i / (np * VECS) * PANELS_PER_TASK * PANEL + i % (np * VECS) * LANES);              \
        for (long b = 0; b < count; b++, row++, at += BYTES_##type) {                                        \
            VI sum[MAX_ROWS * PANELS_PER_TASK * VECS];                                                       \
            UNROLL for (int i = 0; i < mr * np * VECS; i++) sum[i] =                                         \
                SPLAT_I(-START_##type * row[i / (np * VECS) * stride].sum);                                  \
            ADD_BLOCK_##type()                                                                               \
            V scale[PANELS_PER_TASK * VECS];                                                                 \
            UNROLL for (int v = 0; v < np * VECS; v++) scale[v] =                                            \
                SCALES_##type(at + v / VECS * panel_size, v % VECS);                                         \
            UNROLL for (int i = 0; i < mr * np * VECS; i++) {                                                \
                const V both = MUL(scale[i % (np * VECS)], SPLAT(row[i / (np * VECS) * stride].scale));      \
                total[i] = ADD(total[i], MUL(TO_FLOAT(sum[i]), both));                                       \
            }                                                                                                \
        }                                                                                                    \
        UNROLL for (int i = 0; i < mr * np * VECS; i++)                                                      \
            STORE(totals + i / (np * VECS) * PANELS_PER_TASK * PANEL + i % (np * VECS) * LANES, total[i]);   \
    }                                                                                                        \
    INLINE void NAME(rows_##type)(const uint8_t *at, long panel_size, const row_block *row, long stride,     \
                                  long count, fetching part, float *totals, const int mr, int panels) {      \
        const int at_once = PANELS_FOR(mr);                                                                  \
        int p = 0;                                                                                           \
        for (; p + at_once <= panels; p += at_once)                                                          \
            NAME(tile_##type)(at + p * panel_size, panel_size, row, stride, count, from_panel(part, p),      \
                              totals + p * PANEL, mr, at_once);                                              \
        for (; p < panels; p++)                                                                              \
            NAME(tile_##type)(at + p * panel_size, panel_size, row, stride, count, from_panel(part, p),      \
                              totals + p * PANEL, mr, 1);                                                    \
    }                                                                                                        \
    linkage void NAME(gemm_##type)(const uint8_t *panels, long num_blocks, const row_block *x, long stride,  \
                                   int num_rows, int num_panels, upcoming later, float *sums) {              \
        const long panel_size = num_blocks * BYTES_##type;                                                   \
        const int num_tiles = (num_rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;                                  \
        memset(sums, 0, sizeof(float) * PANELS_PER_TASK * PANEL * num_rows);                                 \
        for (long b = 0; b < num_blocks; b += BLOCKS_AT_ONCE) {                                              \
            const long count = num_blocks - b < BLOCKS_AT_ONCE ? num_blocks - b : BLOCKS_AT_ONCE;            \
            const uint8_t *at = panels + b * BYTES_##type;                                                   \
            const upcoming more = {at + count * BYTES_##type, panel_size};                                   \
            const upcoming next = b + count < num_blocks ? more : later;                                     \
            for (int t = 0; t < num_tiles; t++) {                                                            \
                const int r0 = t * num_rows / num_tiles, r1 = (t + 1) * num_rows / num_tiles;                \
                const row_block *row = x + r0 * stride + b;                                                  \
                const fetching part = part_of_tile(next, BLOCKS_AT_ONCE * BYTES_##type, t, num_tiles);       \
                float *to = sums + r0 * PANELS_PER_TASK * PANEL;                                             \
                switch (r1 - r0) {                                                                           \
                    case 1: ROWS_OF(type, 1); break;                                                         \
                    case 2: ROWS_OF(type, 2); break;                                                         \
                    case 3: ROWS_OF(type, 3); break;                                                         \
                    case 4: ROWS_OF(type, 4); break;                                                         \
                    case 5: ROWS_OF(type, 5); break;                                                         \
                    default: ROWS_OF(type, 6); break;                                                        \
                }                                                                                            \
            }                                                                                                \
        }                                                                                                    \
    }

DEFINE_BLOCK_GEMM(q8, static)
DEFINE_BLOCK_GEMM(q4, static)
/* Also for sets whose own instructions are for other weights. */
DEFINE_BLOCK_GEMM(mxfp4, extern)

const block_kernels NAME(blocks) = {NAME(gemm_q8), NAME(gemm_q4), NAME(gemm_mxfp4), GEMM_FP8};

#undef DEFINE_BLOCK_GEMM
#undef ADD_BLOCK_q8
#undef ADD_BLOCK_q4
#undef ADD_BLOCK_mxfp4
#undef ROWS_OF
#undef ADD_FOUR
#undef LOAD_WEIGHTS
#undef UNROLL
#undef INLINE
#undef BYTES_q8
#undef BYTES_q4
#undef BYTES_mxfp4
#undef SCALES_q8
#undef SCALES_q4
#undef SCALES_mxfp4
#undef START_q4
#undef START_mxfp4
#undef MAX_ROWS
#undef BLOCKS_AT_ONCE
#undef VECS
#undef NAME
#undef V
#undef VI
#undef LANES
#undef LOAD_q8
#undef DOT_q8
#undef START_q8
#undef LOAD_q4
#undef DOT_q4
#undef LOW_HALVES
#undef HIGH_HALVES
#undef LOOK_UP
#undef LOAD_SCALES
#undef LOAD_POWERS
#undef GEMM_FP8
#undef SPLAT_I
#undef SPLAT
#undef TO_FLOAT
#undef ADD
#undef MUL
#undef LOAD
#undef STORE
#undef ROWS_AT_ONCE
#undef PANELS_FOR
