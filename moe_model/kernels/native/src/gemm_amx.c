/* Products with bfloat16 by tiles: 32 inputs of 16 rows are one as they lie in memory, and so are 32 inputs of a panel. */
#include "amx.h"

#if defined(HAS_AMX) || defined(TILES)
#include <string.h>

#include "tiles.h"

/* Pairs of inputs in a tile. */
#define STEP_PAIRS 16
/* Steps after which sums wait in memory while other rows are multiplied: the weights of two panels stay in the first
 * level of cache. It moves no bit. */
#define STEPS_AT_ONCE 16
_Static_assert(PANELS_PER_TASK <= 4, "one tile of rows goes with all panels of a task");
#define SUMS_APART (PANELS_PER_TASK * PANEL * (long)sizeof(float))

#define INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))

/* Inputs that follow each other, of some rows and of some panels. */
typedef struct {
    const uint8_t *x, *w;
    long row_apart, panel_apart, num_steps;
} inputs;

/* Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 weights. One tile of rows goes with up to four panels, as weights are most
 * of what is loaded then; two go with up to two, so that each tile that is loaded is used twice. Sum i is that of: */
#define PANEL_OF(i) (height == 1 ? (i) : (i) % 2)
#define HAS_SUM(i) (PANEL_OF(i) < np)
#define SUM_AT(i) (sums + (height == 1 ? 0 : (i) / 2) * TILE_ROWS * PANELS_PER_TASK * PANEL + PANEL_OF(i) * PANEL)

#define BEGIN_SUM(i)                                              \
    if (HAS_SUM(i)) {                                             \
        if (is_first) TILE_ZERO(i);                               \
        else TILE_LOAD(i, SUM_AT(i), SUMS_APART);                 \
    }
#define END_SUM(i) \
    if (HAS_SUM(i)) TILE_STORE(i, SUM_AT(i), SUMS_APART)
#define ADD_PANEL(i, weights)                                                    \
    if (HAS_SUM(i)) {                                                            \
        TILE_LOAD(weights, w + PANEL_OF(i) * in->panel_apart, TILE_ROW_BYTES);   \
        TILE_DOT_BF16(i, 4, weights);                                            \
    }

/* `height`, tiles of rows, and `np`, panels, are constants to the compiler. */
INLINE void add_tiles(const inputs *in, int is_first, float *sums, const int height, const int np) {
    const uint8_t *x = in->x, *w = in->w;
    BEGIN_SUM(0)
    BEGIN_SUM(1)
    BEGIN_SUM(2)
    BEGIN_SUM(3)
    for (long step = 0; step < in->num_steps; step++, x += TILE_ROW_BYTES, w += TILE_BYTES) {
        TILE_LOAD(4, x, in->row_apart);
        ADD_PANEL(0, 6)
        ADD_PANEL(1, 7)
        if (height == 1) {
            ADD_PANEL(2, 6)
            ADD_PANEL(3, 7)
        } else {
            TILE_LOAD(5, x + TILE_ROWS * in->row_apart, in->row_apart);
            TILE_DOT_BF16(2, 5, 6);
            if (np > 1) TILE_DOT_BF16(3, 5, 7);
        }
    }
    END_SUM(0);
    END_SUM(1);
    END_SUM(2);
    END_SUM(3);
}

/* Rows from `first` on, all of whose tiles have the same heights: `num_groups` of 32 rows at most, `upper` in a first tile
 * and `lower`, or none, in a second. */
typedef struct {
    int first, num_groups, upper, lower;
} row_groups;

static void add_inputs(const inputs *all, int is_first, const row_groups *rows, int num_panels, float *sums) {
    inputs in = *all;
    in.x += rows->first * in.row_apart;
    sums += rows->first * PANELS_PER_TASK * PANEL;
    if (rows->lower == 0) {
        switch (num_panels) {
            case 1: add_tiles(&in, is_first, sums, 1, 1); break;
            case 2: add_tiles(&in, is_first, sums, 1, 2); break;
            case 3: add_tiles(&in, is_first, sums, 1, 3); break;
            default: add_tiles(&in, is_first, sums, 1, 4); break;
        }
        return;
    }
    for (int panel = 0; panel < num_panels; panel += 2, in.w += 2 * in.panel_apart)
        for (int group = 0; group < rows->num_groups; group++) {
            inputs some = in;
            some.x += group * 2 * TILE_ROWS * in.row_apart;
            float *to = sums + group * 2 * TILE_ROWS * PANELS_PER_TASK * PANEL + panel * PANEL;
            if (panel + 1 < num_panels) add_tiles(&some, is_first, to, 2, 2);
            else add_tiles(&some, is_first, to, 2, 1);
        }
}

/* All of `whole`, then the inputs after its last step. */
static void multiply(const inputs *whole, const inputs *rest, row_groups rows, int num_panels, float *sums) {
    const uint8_t upper = (uint8_t)rows.upper, lower = (uint8_t)(rows.lower == 0 ? rows.upper : rows.lower);
    const tile_config config = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
        .num_rows = {upper, upper, lower, lower, upper, lower, TILE_ROWS, TILE_ROWS},
    };
    configure_tiles(&config);
    const long at_once = rows.num_groups > 1 ? STEPS_AT_ONCE : whole->num_steps;
    for (long step = 0; step < whole->num_steps; step += at_once) {
        inputs in = *whole;
        in.x += step * TILE_ROW_BYTES;
        in.w += step * TILE_BYTES;
        in.num_steps = at_once < in.num_steps - step ? at_once : in.num_steps - step;
        add_inputs(&in, step == 0, &rows, num_panels, sums);
    }
    if (rest->num_steps > 0) add_inputs(rest, whole->num_steps == 0, &rows, num_panels, sums);
}

void gemm_bf16_amx(const matrix *m, const void *x, long stride, int num_rows, long first_panel, int num_panels,
                   upcoming later, float *sums) {
    (void)later;
    const long pairs = (m->num_in + 1) / 2, rest_pairs = pairs % STEP_PAIRS;
    const long panel_size = pairs * TILE_ROW_BYTES;
    const uint8_t *w = (const uint8_t *)m->panels + first_panel * panel_size;
    const inputs whole = {x, w, stride * 2, panel_size, pairs / STEP_PAIRS};
    /* A last step that is not whole is filled up with zeros, which add nothing. */
    uint8_t x_rest[ROWS_PER_TASK * TILE_ROW_BYTES] ALIGNED, w_rest[PANELS_PER_TASK * TILE_BYTES] ALIGNED;
    const inputs rest = {x_rest, w_rest, TILE_ROW_BYTES, TILE_BYTES, rest_pairs > 0};
    if (rest_pairs > 0) {
        memset(x_rest, 0, sizeof x_rest);
        memset(w_rest, 0, sizeof w_rest);
        for (int row = 0; row < num_rows; row++)
            memcpy(x_rest + row * TILE_ROW_BYTES, whole.x + row * whole.row_apart + whole.num_steps * TILE_ROW_BYTES,
                   rest_pairs * 4);
        for (int panel = 0; panel < num_panels; panel++)
            memcpy(w_rest + panel * TILE_BYTES, w + panel * panel_size + whole.num_steps * TILE_BYTES,
                   rest_pairs * TILE_ROW_BYTES);
    }
    const int num_groups = num_rows / (2 * TILE_ROWS), grouped = num_groups * 2 * TILE_ROWS, left = num_rows - grouped;
    if (num_groups > 0) multiply(&whole, &rest, (row_groups){0, num_groups, TILE_ROWS, TILE_ROWS}, num_panels, sums);
    if (left > TILE_ROWS)
        multiply(&whole, &rest, (row_groups){grouped, 1, TILE_ROWS, left - TILE_ROWS}, num_panels, sums);
    else if (left > 0)
        multiply(&whole, &rest, (row_groups){grouped, 1, left, 0}, num_panels, sums);
    release_tiles();
}
#endif
