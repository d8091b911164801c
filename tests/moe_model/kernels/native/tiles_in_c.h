/* Tiles in plain C, in the place of src/tiles.h's instructions, with what Intel's manual says of each: also its faults.
 * Stands after blocks.c in one file. */
#ifndef EXPERTMESH_TILES_IN_C_H
#define EXPERTMESH_TILES_IN_C_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NUM_TILES 8

static struct {
    tile_config config;
    uint8_t tiles[NUM_TILES][TILE_ROWS][TILE_ROW_BYTES];
} of_thread;

static void expect(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "a processor would fault: %s\n", what);
    exit(2);
}

static void configure_tiles(const tile_config *config) {
    expect(config->palette == 1 && config->start_row == 0, "palette");
    for (int t = 0; t < 16; t++) {
        const int rows = config->num_rows[t], bytes = config->row_bytes[t];
        expect(t < NUM_TILES || (rows == 0 && bytes == 0), "there are eight tiles");
        expect(rows <= TILE_ROWS && bytes <= TILE_ROW_BYTES, "a tile is too large");
        expect((rows == 0) == (bytes == 0), "a tile of rows without bytes");
    }
    memset(&of_thread, 0, sizeof of_thread);
    of_thread.config = *config;
}

static void release_tiles(void) { memset(&of_thread, 0, sizeof of_thread); }

static int tiles_are_released(void) { return of_thread.config.palette == 0; }

static int rows_of(int t) {
    expect(of_thread.config.num_rows[t] > 0, "a tile that is not configured");
    return of_thread.config.num_rows[t];
}

static int bytes_of(int t) { return of_thread.config.row_bytes[t]; }

static void tile_zero(int t) {
    rows_of(t);
    memset(of_thread.tiles[t], 0, TILE_BYTES);
}

static void tile_load(int t, const void *at, long stride) {
    tile_zero(t);
    for (int row = 0; row < rows_of(t); row++)
        memcpy(of_thread.tiles[t][row], (const uint8_t *)at + row * stride, bytes_of(t));
}

static void tile_store(int t, void *at, long stride) {
    for (int row = 0; row < rows_of(t); row++)
        memcpy((uint8_t *)at + row * stride, of_thread.tiles[t][row], bytes_of(t));
}

static void expect_shapes(int sums, int a, int b) {
    expect(sums != a && a != b && sums != b, "one tile twice");
    expect(rows_of(sums) == rows_of(a) && bytes_of(a) == 4 * rows_of(b) && bytes_of(sums) == bytes_of(b), "shapes");
}

/* Denormal numbers are zero, before and after. */
static float flushed(float x) { return fpclassify(x) == FP_SUBNORMAL ? copysignf(0, x) : x; }

static float of_bf16(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, sizeof half);
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return flushed(x);
}

static void tile_dot_bf16(int sums, int a, int b) {
    expect_shapes(sums, a, b);
    for (int row = 0; row < rows_of(sums); row++)
        for (int column = 0; column < bytes_of(sums); column += 4) {
            float parts[2] = {0, 0}, sum;
            for (int k = 0; k < rows_of(b); k++)
                for (int i = 0; i < 2; i++)
                    parts[i] = flushed(fmaf(of_bf16(&of_thread.tiles[a][row][4 * k + 2 * i]),
                                            of_bf16(&of_thread.tiles[b][k][column + 2 * i]), parts[i]));
            memcpy(&sum, &of_thread.tiles[sums][row][column], sizeof sum);
            sum = flushed(flushed(sum) + flushed(parts[0] + parts[1]));
            memcpy(&of_thread.tiles[sums][row][column], &sum, sizeof sum);
        }
}

static void tile_dot_bytes(int sums, int a, int b, int b_is_signed) {
    expect_shapes(sums, a, b);
    for (int row = 0; row < rows_of(sums); row++)
        for (int column = 0; column < bytes_of(sums); column += 4) {
            int32_t sum;
            memcpy(&sum, &of_thread.tiles[sums][row][column], sizeof sum);
            for (int k = 0; k < bytes_of(a); k++) {
                const uint8_t weight = of_thread.tiles[b][k / 4][column + k % 4];
                sum += (int8_t)of_thread.tiles[a][row][k] * (b_is_signed ? (int8_t)weight : weight);
            }
            memcpy(&of_thread.tiles[sums][row][column], &sum, sizeof sum);
        }
}

#define TILE_ZERO(t) tile_zero(t)
#define TILE_LOAD(t, at, stride) tile_load(t, at, stride)
#define TILE_STORE(t, at, stride) tile_store(t, at, stride)
#define TILE_DOT_BF16(sums, a, b) tile_dot_bf16(sums, a, b)
#define TILE_DOT_UNSIGNED(sums, a, b) tile_dot_bytes(sums, a, b, 0)
#define TILE_DOT_SIGNED(sums, a, b) tile_dot_bytes(sums, a, b, 1)

typedef float widened __attribute__((vector_size(64)));

static widened widen_halves(const uint8_t *at) {
    uint16_t halves[PANEL];
    widened scales;
    memcpy(halves, at, sizeof halves);
    for (int o = 0; o < PANEL; o++) scales[o] = widen_half(halves[o]);
    return scales;
}

#define WIDEN_HALVES(at) widen_halves(at)

#endif
