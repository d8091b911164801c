/* One instruction set's products; included once for each, with its vector type defined:
 * V, LANES, NAME(x), LOAD, STORE, ADD, FMA, BROADCAST, ZERO, LOAD_BF16_EVEN, LOAD_BF16_ODD, LOAD_I8;
 * how many rows and how many panels at once keep the sums in registers: ROWS_AT_ONCE(weights), PANELS_FOR(rows).
 * No include guard: that is the point. */

#define VECS (PANEL / LANES)
/* Inputs whose weights, and what is fetched for the next ones, stay in the first level of cache. A multiple of 2, or all. Either
 * they are summed before they are added to the total, as short chains round less; or, with ONE_CHAIN, the total goes on, and
 * how many they are moves no bit: of few rows, all. */
#ifdef ONE_CHAIN
#define BLOCK_FOR(num_rows, num_in) ((num_rows) < ROWS_THAT_FETCH ? (num_in) : (num_rows) <= 16 ? 64 : 128)
#define BEGIN_SUM(at) LOAD(at)
#define END_SUM(at, sum) STORE(at, sum)
#else
#define BLOCK_FOR(num_rows, num_in) 128
#define BEGIN_SUM(at) ZERO
#define END_SUM(at, sum) STORE(at, ADD(LOAD(at), sum))
#endif
#define MAX_TILE 6

#define INLINE static inline __attribute__((always_inline))
/* The vectors of `np` panels at `at`, the panels `panel_size` apart. */
#define VECTOR_OF(at, v) ((at) + (v) / VECS * panel_size + (v) % VECS * LANES)
#define UNROLL _Pragma("GCC unroll 64")

/* One input of all rows of a tile: the weights once, then row by row, which leaves the registers to the sums. */
#define ADD_INPUT(load, at, input)                                                                           \
    do {                                                                                                     \
        V weight[PANELS_PER_TASK * VECS];                                                                    \
        UNROLL for (int v = 0; v < np * VECS; v++) weight[v] = load(VECTOR_OF(at, v));                       \
        UNROLL for (int r = 0; r < mr; r++) {                                                                \
            const V value = BROADCAST(x[r * stride + (input)]);                                              \
            UNROLL for (int v = 0; v < np * VECS; v++) acc[r * np * VECS + v] =                              \
                FMA(value, weight[v], acc[r * np * VECS + v]);                                               \
        }                                                                                                    \
    } while (0)

#define ADD_INPUTS_f32()                                                                                     \
    for (long k = k0; k < k1; k++) {                                                                         \
        FETCH(PANEL * (long)sizeof *w);                                                                      \
        ADD_INPUT(LOAD, w + k * PANEL, k);                                                                   \
    }

#define ADD_INPUTS_i8()                                                                                      \
    for (long k = k0; k < k1; k++) {                                                                         \
        FETCH(PANEL * (long)sizeof *w);                                                                      \
        ADD_INPUT(LOAD_I8, w + k * PANEL, k);                                                                \
    }

#define ADD_INPUTS_bf16()                                                                                    \
    for (long pair = k0 / 2; pair < k1 / 2; pair++) {                                                        \
        FETCH(PANEL * (long)sizeof *w);                                                                      \
        ADD_INPUT(LOAD_BF16_EVEN, w + pair * PANEL, 2 * pair);                                               \
        ADD_INPUT(LOAD_BF16_ODD, w + pair * PANEL, 2 * pair + 1);                                            \
    }                                                                                                        \
    if (k1 & 1) ADD_INPUT(LOAD_BF16_EVEN, w + k1 / 2 * PANEL, k1 - 1)

#define PANEL_SIZE_f32(num_in) ((num_in) * PANEL)
#define PANEL_SIZE_bf16(num_in) (((num_in) + 1) / 2 * PANEL)
#define PANEL_SIZE_i8(num_in) ((num_in) * PANEL)

/* Where the inputs from `k` on begin in a panel. */
#define PLACE_f32(k) ((k) * PANEL)
#define PLACE_bf16(k) ((k) / 2 * PANEL)
#define PLACE_i8(k) ((k) * PANEL)

#define SUM_AT(i) (sums + (i) / (np * VECS) * PANELS_PER_TASK * PANEL + (i) % (np * VECS) * LANES)
#define ROWS_OF(type, mr)                                                                                    \
    NAME(rows_##type)(w, panel_size, x, stride, k0, k1, part, to, mr, count)

/* `mr` and `np` are constants to the compiler, so that the sums are registers. */
#define DEFINE_GEMM(type, weights)                                                                           \
    INLINE void NAME(tile_##type)(const weights *w, long panel_size, const float *x, long stride, long k0,   \
                                  long k1, fetching part, float *sums, const int mr, const int np) {         \
        long left = part.num_tiles * LINE_BYTES;                                                             \
        V acc[MAX_TILE * PANELS_PER_TASK * VECS];                                                            \
        UNROLL for (int i = 0; i < mr * np * VECS; i++) acc[i] = BEGIN_SUM(SUM_AT(i));                       \
        ADD_INPUTS_##type();                                                                                 \
        UNROLL for (int i = 0; i < mr * np * VECS; i++) END_SUM(SUM_AT(i), acc[i]);                          \
    }                                                                                                        \
    INLINE void NAME(rows_##type)(const weights *w, long panel_size, const float *x, long stride, long k0,   \
                                  long k1, fetching part, float *sums, const int mr, int count) {            \
        const int at_once = PANELS_FOR(mr);                                                                  \
        int p = 0;                                                                                           \
        for (; p + at_once <= count; p += at_once)                                                           \
            NAME(tile_##type)(w + p * panel_size, panel_size, x, stride, k0, k1, from_panel(part, p),        \
                              sums + p * PANEL, mr, at_once);                                                \
        for (; p < count; p++)                                                                               \
            NAME(tile_##type)(w + p * panel_size, panel_size, x, stride, k0, k1, from_panel(part, p),        \
                              sums + p * PANEL, mr, 1);                                                      \
    }                                                                                                        \
    static void NAME(gemm_##type)(const matrix *m, const void *x_RI, long stride, int num_rows,              \
                                  long first_panel, int count, upcoming later, float *sums) {                \
        const long panel_size = PANEL_SIZE_##type(m->num_in);                                                \
        const weights *w = (const weights *)m->panels + first_panel * panel_size;                            \
        memset(sums, 0, sizeof(float) * PANELS_PER_TASK * PANEL * num_rows);                                 \
        const int num_tiles = (num_rows + ROWS_AT_ONCE(type) - 1) / ROWS_AT_ONCE(type);                      \
        const long size = BLOCK_FOR(num_rows, m->num_in);                                                    \
        for (long k0 = 0; k0 < m->num_in; k0 += size) {                                                      \
            const long k1 = k0 + size < m->num_in ? k0 + size : m->num_in;                                   \
            const upcoming more = {w + PLACE_##type(k1), panel_size * (long)sizeof *w};                      \
            const upcoming next = k1 < m->num_in ? more : later;                                             \
            for (int t = 0; t < num_tiles; t++) {                                                            \
                const int r0 = t * num_rows / num_tiles, r1 = (t + 1) * num_rows / num_tiles;                \
                const float *x = (const float *)x_RI + r0 * stride;                                          \
                const fetching part = part_of_tile(next, PLACE_##type(size) * (long)sizeof *w, t, num_tiles); \
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

DEFINE_GEMM(f32, float)
#ifndef ONLY_F32
DEFINE_GEMM(bf16, uint32_t)
DEFINE_GEMM(i8, int8_t)
#endif

#undef DEFINE_GEMM
#undef ADD_INPUT
#undef ROWS_OF
#undef PLACE_f32
#undef PLACE_bf16
#undef PLACE_i8
#undef ADD_INPUTS_f32
#undef ADD_INPUTS_bf16
#undef ADD_INPUTS_i8
#undef PANEL_SIZE_f32
#undef PANEL_SIZE_bf16
#undef PANEL_SIZE_i8
#undef VECTOR_OF
#undef UNROLL
#undef INLINE
#undef VECS
#undef BLOCK_FOR
#undef BEGIN_SUM
#undef END_SUM
#undef SUM_AT
#undef MAX_TILE
#undef V
#undef LANES
#undef NAME
#undef LOAD
#undef STORE
#undef ADD
#undef FMA
#undef BROADCAST
#undef ZERO
#undef LOAD_BF16_EVEN
#undef LOAD_BF16_ODD
#undef LOAD_I8
#undef PANELS_FOR
#undef ROWS_AT_ONCE
#undef ROWS_f32
#undef ROWS_bf16
#undef ROWS_i8
