/* amx_check bf16|q8|q4 INPUTS OUTPUTS ROWS...: products by tiles, of each number of rows, are the definition to the bit, and
 * write nothing else. With TILES the tiles are plain C, else this processor's. The last line is "checked N sums"; else a
 * line says what is wrong, and the status is 1. */
#include "blocks.c"

#include "amx.h"
#include "tiles.h"

#include "gemm_amx.c"

#include "blocks_amx.c"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#ifndef TILES
#include "amx.c"

static int tiles_are_released(void) {
    tile_config config;
    __asm__ volatile("sttilecfg %0" : "=m"(config)::"memory");
    return config.palette == 0;
}
#endif

#define UNTOUCHED 1e30f
#define GUARD_ROWS 1
#define ROW (PANELS_PER_TASK * PANEL)

static uint32_t state = 1;

static uint32_t any(void) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static float any_float(void) { return (float)(int32_t)any() / 0x1p31f; }

static void *room(long size) {
    void *at = calloc(1, (size_t)size);
    if (at == NULL) exit(3);
    return at;
}

static uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static float from_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static long num_in, num_out, panels, checked;

static void compare(const char *form, const float *got, const float *expected_RO, int num_rows, long first_panel,
                    int count) {
    for (int row = 0; row < num_rows + GUARD_ROWS; row++)
        for (int column = 0; column < ROW; column++) {
            const int is_wanted = row < num_rows && column < count * PANEL;
            const float sum = is_wanted ? expected_RO[row * panels * PANEL + first_panel * PANEL + column] : UNTOUCHED;
            if (memcmp(&got[row * ROW + column], &sum, sizeof sum) == 0) continue;
            printf("%s, %ld inputs, %ld outputs, %d rows: row %d of panel %ld is %.9g, not %.9g\n", form, num_in, num_out,
                   num_rows, row, first_panel + column / PANEL, got[row * ROW + column], sum);
            exit(1);
        }
    if (!tiles_are_released()) {
        printf("%s, %d rows: tiles are not released\n", form, num_rows);
        exit(1);
    }
    checked += (long)num_rows * count * PANEL;
}

static float *new_sums(int num_rows) {
    float *sums = room((num_rows + GUARD_ROWS) * ROW * (long)sizeof(float));
    for (int i = 0; i < (num_rows + GUARD_ROWS) * ROW; i++) sums[i] = UNTOUCHED;
    return sums;
}

/* What Intel's manual says of 32 inputs, one after the other; and that it is a sum of the products. */
static float sum_bf16(const uint16_t *x_I, const uint16_t *w_I, long padded) {
    float sum = 0;
    double exact = 0, size = 0;
    for (long first = 0; first < padded; first += 32) {
        float parts[2] = {0, 0};
        for (long i = first; i < padded && i < first + 32; i++) {
            const float x = from_bf16(x_I[i]), w = from_bf16(w_I[i]);
            parts[i % 2] = fmaf(x, w, parts[i % 2]);
            exact += (double)x * w;
            size += fabs((double)x * w);
        }
        sum = sum + (parts[0] + parts[1]);
    }
    if (!(fabs(sum - exact) <= 1e-6 * size)) {
        printf("bf16, %ld inputs: the definition's sum is %.9g, and exactly %.9g\n", num_in, sum, exact);
        exit(1);
    }
    return sum;
}

static void check_bf16(int most_rows, const int *rows, int count) {
    /* Rows have something after them that is no input. */
    const long padded = (num_in + 1) / 2 * 2, stride = padded + 6;
    uint16_t *x = room(most_rows * stride * 2);
    uint16_t *w = room(panels * PANEL * padded * 2), *packed = room(panels * PANEL * padded * 2);
    for (long i = 0; i < most_rows * stride; i++) x[i] = to_bf16(i % stride < padded ? any_float() : NAN);
    for (long o = 0; o < num_out; o++)
        for (long i = 0; i < num_in; i++) w[o * padded + i] = to_bf16(any_float());
    for (long row = 0; row < most_rows && num_in % 2; row++) x[row * stride + num_in] = 0;
    for (long o = 0; o < panels * PANEL; o++)
        for (long i = 0; i < padded; i++)
            packed[(o / PANEL * (padded / 2) + i / 2) * PANEL * 2 + o % PANEL * 2 + i % 2] = w[o * padded + i];
    float *expected_RO = room(most_rows * panels * PANEL * (long)sizeof(float));
    for (long row = 0; row < most_rows; row++)
        for (long o = 0; o < panels * PANEL; o++)
            expected_RO[row * panels * PANEL + o] = sum_bf16(x + row * stride, w + o * padded, padded);
    const matrix m = {.panels = packed, .num_in = num_in, .num_out = num_out, .type = WEIGHT_BF16};
    for (int i = 0; i < count; i++)
        for (long first = 0; first < panels; first += PANELS_PER_TASK) {
            const int some = panels - first < PANELS_PER_TASK ? (int)(panels - first) : PANELS_PER_TASK;
            float *sums = new_sums(rows[i]);
            gemm_bf16_amx(&m, x, stride, rows[i], first, some, (upcoming){0}, sums);
            compare("bf16", sums, expected_RO, rows[i], first, some);
            free(sums);
        }
    free(x), free(w), free(packed), free(expected_RO);
}

static void check_blocks(const char *form, int most_rows, const int *rows, int count) {
    const int is_q4 = strcmp(form, "q4") == 0;
    const block_gemm_fn by_tiles = is_q4 ? blocks_amx.q4 : blocks_amx.q8;
    const block_gemm_fn definition = is_q4 ? blocks_generic.q4 : blocks_generic.q8;
    const long num_blocks = blocks_of(num_in), stride = num_blocks + 1, size = is_q4 ? Q4_BYTES : Q8_BYTES;
    row_block *x = room(most_rows * stride * (long)sizeof(row_block));
    uint8_t *w = room(panels * num_blocks * size);
    for (long i = 0; i < most_rows * stride; i++) {
        for (int j = 0; j < BLOCK_INPUTS; j++) {
            x[i].values[j] = (int8_t)(any() % 255 - 127);
            x[i].sum += x[i].values[j];
        }
        x[i].scale = i % 11 == 5 ? 0 : any_float();
    }
    for (long i = 0; i < panels * num_blocks * size; i++) w[i] = (uint8_t)any();
    /* Scales of both signs, of any size, but finite: what is not a number has no bits to compare. */
    for (long block = 0; block < panels * num_blocks; block++)
        for (int o = 0; o < PANEL; o++) w[block * size + 2 * o + 1] &= 0xbb;
    float *expected_RO = room(most_rows * panels * PANEL * (long)sizeof(float));
    float *sums = new_sums(most_rows);
    for (long panel = 0; panel < panels; panel++) {
        definition(w + panel * num_blocks * size, num_blocks, x, stride, most_rows, 1, (upcoming){0}, sums);
        for (int row = 0; row < most_rows; row++)
            memcpy(expected_RO + (row * panels + panel) * PANEL, sums + row * ROW, sizeof(float) * PANEL);
    }
    free(sums);
    for (int i = 0; i < count; i++)
        for (long first = 0; first < panels; first += PANELS_PER_TASK) {
            const int some = panels - first < PANELS_PER_TASK ? (int)(panels - first) : PANELS_PER_TASK;
            sums = new_sums(rows[i]);
            by_tiles(w + first * num_blocks * size, num_blocks, x, stride, rows[i], some, (upcoming){0}, sums);
            /* Few rows go the way of another set, which writes the panels after the last. */
            for (int row = 0; row < rows[i]; row++)
                for (int column = some * PANEL; column < ROW; column++) sums[row * ROW + column] = UNTOUCHED;
            compare(form, sums, expected_RO, rows[i], first, some);
            free(sums);
        }
    free(x), free(w), free(expected_RO);
}

int main(int num_args, char **args) {
    if (num_args < 5) return 2;
    num_in = atol(args[2]);
    num_out = atol(args[3]);
    panels = (num_out + PANEL - 1) / PANEL;
    const int count = num_args - 4;
    int *rows = room(count * (long)sizeof(int)), most_rows = 0;
    for (int i = 0; i < count; i++) most_rows = (rows[i] = atoi(args[4 + i])) > most_rows ? rows[i] : most_rows;
    if (most_rows > ROWS_PER_TASK) return 2;
#ifndef TILES
    const int refused = processor_has_tiles() ? ask_for_tiles() : ENOTSUP;
    if (refused) {
        printf("no tiles: %s\n", strerror(refused));
        return 4;
    }
#endif
    if (strcmp(args[1], "bf16") == 0) check_bf16(most_rows, rows, count);
    else check_blocks(args[1], most_rows, rows, count);
    free(rows);
    printf("checked %ld sums\n", checked);
    return 0;
}
