/* Products with FP8 weights by one instruction set; included once for each, with its vectors defined: V, LANES, NAME(x), LOAD,
 * STORE, ADD, MUL, FMA, SPLAT, LOAD_E4M3, which gives values times 2^-E4M3_SHIFT, ROWS_AT_ONCE, PANELS_FOR(rows). No include
 * guard: that is the point. */

#define VECS (PANEL / LANES)
#define MAX_ROWS 6

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")

/* `count` inputs, at most a block, of `mr` rows and `np` panels, constants to the compiler, so that the sums are registers. */
INLINE void NAME(tile)(const uint8_t *w, long panel_size, const float *scales, long scale_size, const float *x, long stride,
                       long count, fetching part, float *totals, const int mr, const int np) {
    long left = part.num_tiles * LINE_BYTES;
    V sum[MAX_ROWS * PANELS_PER_TASK * VECS];
    UNROLL for (int i = 0; i < mr * np * VECS; i++) sum[i] = SPLAT(0);
    for (long k = 0; k < count; k++) {
        FETCH(PANEL);
        V weight[PANELS_PER_TASK * VECS];
        UNROLL for (int v = 0; v < np * VECS; v++) weight[v] =
            LOAD_E4M3(w + v / VECS * panel_size + k * PANEL + v % VECS * LANES);
        UNROLL for (int r = 0; r < mr; r++) {
            const V value = SPLAT(x[r * stride + k]);
            UNROLL for (int v = 0; v < np * VECS; v++) sum[r * np * VECS + v] =
                FMA(value, weight[v], sum[r * np * VECS + v]);
        }
    }
    UNROLL for (int v = 0; v < np * VECS; v++) {
        const V scale = MUL(LOAD(scales + v / VECS * scale_size + v % VECS * LANES), SPLAT(1 << E4M3_SHIFT));
        UNROLL for (int r = 0; r < mr; r++) {
            float *at = totals + (r * PANELS_PER_TASK + v / VECS) * PANEL + v % VECS * LANES;
            STORE(at, ADD(LOAD(at), MUL(sum[r * np * VECS + v], scale)));
        }
    }
}

INLINE void NAME(rows)(const uint8_t *w, long panel_size, const float *scales, long scale_size, const float *x, long stride,
                       long count, fetching part, float *totals, const int mr, int panels) {
    const int at_once = PANELS_FOR(mr);
    int p = 0;
    for (; p + at_once <= panels; p += at_once)
        NAME(tile)(w + p * panel_size, panel_size, scales + p * scale_size, scale_size, x, stride, count,
                   from_panel(part, p), totals + p * PANEL, mr, at_once);
    for (; p < panels; p++)
        NAME(tile)(w + p * panel_size, panel_size, scales + p * scale_size, scale_size, x, stride, count,
                   from_panel(part, p), totals + p * PANEL, mr, 1);
}

#define ROWS_OF(mr) \
    NAME(rows)(w, panel_size, scales, scale_size, row, stride, count, part, to, mr, num_panels)

void NAME(gemm_fp8)(const uint8_t *panels, const float *scales, long num_in, const float *x, long stride, int num_rows,
                    int num_panels, upcoming later, float *sums) {
    const long panel_size = num_in * PANEL, scale_size = fp8_blocks_of(num_in) * PANEL;
    const int num_tiles = (num_rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    memset(sums, 0, sizeof(float) * PANELS_PER_TASK * PANEL * num_rows);
    for (long k = 0; k < num_in; k += FP8_INPUTS, scales += PANEL) {
        const long count = num_in - k < FP8_INPUTS ? num_in - k : FP8_INPUTS;
        const uint8_t *w = panels + k * PANEL;
        const upcoming more = {w + count * PANEL, panel_size}, next = k + count < num_in ? more : later;
        for (int t = 0; t < num_tiles; t++) {
            const int r0 = t * num_rows / num_tiles, r1 = (t + 1) * num_rows / num_tiles;
            const float *row = x + r0 * stride + k;
            const fetching part = part_of_tile(next, FP8_INPUTS * PANEL, t, num_tiles);
            float *to = sums + r0 * PANELS_PER_TASK * PANEL;
            switch (r1 - r0) {
                case 1: ROWS_OF(1); break;
                case 2: ROWS_OF(2); break;
                case 3: ROWS_OF(3); break;
                case 4: ROWS_OF(4); break;
                case 5: ROWS_OF(5); break;
                default: ROWS_OF(6); break;
            }
        }
    }
}

#undef ROWS_OF
#undef UNROLL
#undef INLINE
#undef MAX_ROWS
#undef VECS
#undef V
#undef LANES
#undef NAME
#undef LOAD
#undef STORE
#undef ADD
#undef MUL
#undef FMA
#undef SPLAT
#undef LOAD_E4M3
#undef E4M3_SHIFT
#undef ROWS_AT_ONCE
#undef PANELS_FOR
