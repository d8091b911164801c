/* Every instruction set of a processor beside plain C, in a process without Python: what test_arm.py builds for ARM and
 * runs in an emulator. One line a case, `set: case: what the bits of its results add up to`; the exit status is 1 where one
 * is wrong. Numbers are made of whole ones and plain operations, so that every processor has the same cases. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"

#define MOST_ROWS 97
#define MOST_IN 1024
#define MOST_OUT 128

static uint64_t state;
static int num_wrong;

/* A generator of its own: rand() is another one elsewhere. */
static uint32_t next(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}
static float number(float size) { return ((float)(next() % 20001) - 10000.0f) / 10000.0f * size; }
static void fill(float *x, long n, float size) {
    for (long i = 0; i < n; i++) x[i] = number(size);
}
static uint16_t bf16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)(bits >> 16);
}
static void *room(size_t size) {
    void *at = calloc(size, 1);
    if (at == NULL) abort();
    return at;
}

/* Of NaNs any is as good. */
static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fc00000 : bits;
}
static int same(const float *a, const float *b, long n) {
    for (long i = 0; i < n; i++)
        if (bits_of(a[i]) != bits_of(b[i])) return 0;
    return 1;
}
static int close_to(const float *a, const float *b, long n) {
    for (long i = 0; i < n; i++)
        if (!(fabsf(a[i] - b[i]) <= 1e-5f + 1e-5f * fabsf(b[i])) && bits_of(a[i]) != bits_of(b[i])) return 0;
    return 1;
}
static void say(const char *set, const char *what, const float *y, long n, int is_right) {
    uint64_t hash = 14695981039346656037u;
    for (long i = 0; i < n; i++) hash = (hash ^ bits_of(y[i])) * 1099511628211u;
    printf("%s: %s: %016llx%s\n", set, what, (unsigned long long)hash, is_right ? "" : " WRONG");
    num_wrong += !is_right;
}

/* Scales of a block. Of float16: both signs, also below the normal ones. Of MXFP4: every fourth is an edge, 0 stands for a
 * number below float32's normal ones; the others keep sums near 1. */
static void fill_scales(int type, char *at) {
    static const uint8_t edges[] = {0, 1, 200, 254};
    for (int o = 0; o < PANEL; o++) {
        const uint16_t half = (uint16_t)(next() % 0x2400 | (next() & 1) << 15);
        if (type == WEIGHT_MXFP4) at[o] = (char)(o % 4 == 3 ? edges[next() % sizeof edges] : 116 + next() % 6);
        else memcpy(at + 2 * o, &half, sizeof half);
    }
}

/* A byte of e4m3 that is a number. */
static char e4m3(void) {
    const uint32_t bits = next() % 254;
    return (char)(bits < 127 ? bits : bits + 1);
}

/* Panels of a matrix of any type, of numbers of the size that keeps sums near 1. */
static void *make_panels(const matrix *w) {
    const long panels = num_panels(w), num_in = w->num_in;
    const float size = 1.0f / sqrtf((float)num_in);
    char *at = room((size_t)(panels * panel_bytes(w)));
    if (is_of_blocks(w)) {
        const long num_blocks = panels * blocks_of(num_in), block_bytes = panels * panel_bytes(w) / num_blocks;
        for (long i = 0; i < panels * panel_bytes(w); i++) at[i] = (char)next();
        for (long b = 0; b < num_blocks; b++) fill_scales(w->type, at + b * block_bytes);
        return at;
    }
    for (long p = 0; p < panels; p++)
        for (long i = 0; i < num_in; i++)
            for (long o = 0; o < PANEL; o++) {
                const float x = number(size);
                if (w->type == WEIGHT_F32) ((float *)at)[(p * num_in + i) * PANEL + o] = x;
                else if (w->type == WEIGHT_I8) at[(p * num_in + i) * PANEL + o] = (char)(next() % 255 - 127);
                else if (w->type == WEIGHT_FP8) at[(p * num_in + i) * PANEL + o] = e4m3();
                else ((uint16_t *)at)[((p * ((num_in + 1) / 2) + i / 2) * PANEL + o) * 2 + i % 2] = bf16_of(x);
            }
    return at;
}

static const char *const type_names[] = {"float32", "bfloat16", "int8", "q8", "q4", "mxfp4", "fp8"};

/* Whether sums are plain C's to the bit: those of blocks everywhere, those of FP8 on ARM. An activation adds and multiplies
 * in one rounding where it can. */
static int is_exact(const matrix *w) {
#ifdef __aarch64__
    if (w->type == WEIGHT_FP8) return !w->is_gated;
#endif
    return is_of_blocks(w) && !w->is_gated;
}

static void check_product(const kernel_set *set, const kernel_set *plain, int type, long num_in, long num_out, int is_gated) {
    static float x[MOST_ROWS * MOST_IN], y[MOST_ROWS * MOST_OUT], expected[MOST_ROWS * MOST_OUT], alone[MOST_OUT];
    static char scratch[MOST_ROWS * MOST_IN * 4];
    static const int row_counts[] = {1, 2, 3, 4, 5, 6, 7, 13, MOST_ROWS};
    matrix w = {.num_in = num_in, .num_out = num_out, .type = type, .is_gated = is_gated};
    void *panels = make_panels(&w);
    const long num_sums = num_panels(&w) * PANEL, num_scales = num_sums * (type == WEIGHT_FP8 ? fp8_blocks_of(num_in) : 1);
    float *scale = room(sizeof(float) * num_scales), *bias = room(sizeof(float) * num_sums);
    for (long o = 0; o < num_scales; o++) scale[o] = 0.005f / sqrtf((float)num_in) * (1.0f + (float)(next() % 4));
    fill(bias, num_sums, 1.0f);
    w.panels = panels;
    w.scale_O = type == WEIGHT_I8 ? scale : NULL;
    w.scale_NBp = type == WEIGHT_FP8 ? scale : NULL;
    w.bias_O = type == WEIGHT_MXFP4 ? NULL : bias; /* beside one, nothing is seen of the smallest scales */
    fill(x, MOST_ROWS * num_in, 3.0f);
    for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
        const long num_rows = row_counts[i];
        const int activation = is_gated ? ACTIVATION_SILU : ACTIVATION_NONE;
        linear_op op = {*set, w, x, num_rows, num_in, {0}, activation, NULL, y, scratch};
        run_linear(&op, 2);
        linear_op of_plain = op;
        of_plain.kernels = *plain;
        of_plain.y = expected;
        run_linear(&of_plain, 1);
        int is_right = (is_exact(&w) ? same : close_to)(y, expected, num_rows * num_out);
        for (long row = 0; row < num_rows; row += num_rows > 13 ? 32 : 1) {
            linear_op one = op;
            one.x = x + row * num_in;
            one.num_rows = 1;
            one.y = alone;
            run_linear(&one, 1);
            is_right = is_right && same(alone, y + row * num_out, num_out);
        }
        char what[120];
        snprintf(what, sizeof what, "%s product of %s, %ld inputs, %ld outputs, %ld rows", is_gated ? "gated" : "plain",
                 type_names[type], num_in, num_out, num_rows);
        say(set->gemm->name, what, y, num_rows * num_out, is_right);
    }
    free(panels);
    free(scale);
    free(bias);
}

/* What a block stands for, so that it can be compared as a row. */
static void widen_blocks(const row_block *blocks, long n, float *y) {
    for (long i = 0; i < n; i++, blocks += i % BLOCK_INPUTS == 0)
        y[i] = (float)blocks->values[i % BLOCK_INPUTS] * blocks->scale;
}

static void check_norm(const kernel_set *set, const kernel_set *plain, int kind, long width) {
    static float x[MOST_IN], weight[MOST_IN], bias[MOST_IN], y[MOST_IN], expected[MOST_IN], rounded[MOST_IN];
    static row_block blocks[MOST_IN / BLOCK_INPUTS];
    char what[80];
    fill(x, width, 3.0f);
    fill(weight, width, 1.0f);
    fill(bias, width, 1.0f);
    const norm how = {kind, 1e-5f, weight, bias, width};
    set->rows->normalise(&how, x, width, y, AS_F32);
    plain->rows->normalise(&how, x, width, expected, AS_F32);
    snprintf(what, sizeof what, "%s of %ld", kind == NORM_LAYER ? "layer norm" : "rms norm", width);
    say(set->gemm->name, what, y, width, close_to(y, expected, width));
    set->rows->normalise(&how, x, width, blocks, AS_BLOCKS);
    widen_blocks(blocks, width, rounded);
    int is_right = 1;
    for (long i = 0; i < width; i++) is_right = is_right && fabsf(rounded[i] - y[i]) <= 0.51f * blocks[i / BLOCK_INPUTS].scale;
    snprintf(what, sizeof what, "blocks of a row of %ld", width);
    say(set->gemm->name, what, rounded, width, is_right);
}

static void check_activations(const kernel_set *set, const kernel_set *plain) {
    enum { n = MOST_IN };
    static float x[n], y[n], expected[n];
    const float odd[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-40f, 1e30f, -1e30f};
    for (int i = 0; i < n; i++) x[i] = ((float)i - n / 2) / 32;
    memcpy(x, odd, sizeof odd);
    set->rows->sigmoid(x, n, y);
    plain->rows->sigmoid(x, n, expected);
    say(set->gemm->name, "sigmoid", y, n, close_to(y, expected, n));
    for (int activation = ACTIVATION_GELU; activation <= ACTIVATION_SILU; activation++) {
        matrix one = {.num_in = 1, .num_out = 1, .type = WEIGHT_F32};
        float panel[PANEL] = {1.0f};
        one.panels = panel;
        linear_op op = {*set, one, x, n, 1, {0}, activation, NULL, y, NULL};
        linear_op of_plain = {*plain, one, x, n, 1, {0}, activation, NULL, expected, NULL};
        run_linear(&op, 1);
        run_linear(&of_plain, 1);
        say(set->gemm->name, activation == ACTIVATION_GELU ? "gelu" : "silu", y, n, close_to(y, expected, n));
    }
    for (long length = 1; length <= 21; length += 4) {
        char what[40];
        fill(y, length, 9.0f);
        memcpy(expected, y, sizeof(float) * (size_t)length);
        const float sum = set->rows->soften(y, length, 9.0f), of_plain = plain->rows->soften(expected, length, 9.0f);
        y[length] = sum;
        expected[length] = of_plain;
        snprintf(what, sizeof what, "softened scores of %ld", length);
        say(set->gemm->name, what, y, length + 1, close_to(y, expected, length + 1));
    }
}

static void check_rotation(const kernel_set *set, const kernel_set *plain, int is_interleaved) {
    float rates[26], x[3 * 64], expected[3 * 64];
    for (int i = 0; i < 26; i++) rates[i] = 1.0f / (float)(1 + i * i);
    fill(x, 3 * 64, 2.0f);
    memcpy(expected, x, sizeof x);
    const rotation how = {rates, 1.5f, 52, is_interleaved};
    set->rows->turn(&how, 123456, 3, 64, x);
    plain->rows->turn(&how, 123456, 3, 64, expected);
    say(set->gemm->name, is_interleaved ? "interleaved rotation" : "rotation", x, 3 * 64, same(x, expected, 3 * 64));
}

/* Four rows of a sequence together, and one by one, over two blocks of keys and a half. */
static void check_attention(const kernel_set *set, const kernel_set *plain, int is_bf16, long d, long heads) {
    enum { size = 16, length = 40, rows = 4, most = 4 * 3 * 80 };
    static float q[most], keys[3 * size * 80], values[3 * size * 80], y[most], expected[most], alone[most];
    static float scores[rows * 4 * size * 3];
    static uint16_t short_keys[3 * size * 80], short_values[3 * size * 80];
    const int32_t blocks[] = {2, 0, 1};
    fill(q, rows * heads * d, 2.0f);
    fill(keys, 3 * size * d, 1.0f);
    fill(values, 3 * size * d, 1.0f);
    for (long i = 0; i < 3 * size * d; i++) {
        short_keys[i] = bf16_of(keys[i]);
        short_values[i] = bf16_of(values[i]);
    }
    const attention_source source = {
        .q = q, .q_stride = heads * d, .keys = is_bf16 ? (const void *)short_keys : keys,
        .values = is_bf16 ? (const void *)short_values : values, .cache_is_bf16 = is_bf16, .block_size = size,
        .num_heads = heads, .num_kv_heads = 1, .head_dim = d, .value_width = d, .value_stride = d, .scale = 0.125f,
    };
    queries all = {blocks, 0, heads, rows, {{0, 0, length - 3}, {1, 5, length - 2}, {2, 0, length - 1}, {3, 17, length}}};
    set->rows->attend(&source, &all, scores, 3 * size, y);
    plain->rows->attend(&source, &all, scores, 3 * size, expected);
    int is_right = close_to(y, expected, rows * heads * d);
    for (int row = 0; row < rows; row++)
        for (long head = 0; head < heads; head++) {
            const queries one = {blocks, head, 1, 1, {all.rows[row]}};
            set->rows->attend(&source, &one, scores, 3 * size, alone);
        }
    is_right = is_right && same(alone, y, rows * heads * d);
    char what[80];
    snprintf(what, sizeof what, "attention of %ld heads of %ld, keys in %s", heads, d, is_bf16 ? "bfloat16" : "float32");
    say(set->gemm->name, what, y, rows * heads * d, is_right);
}

static void check(const kernel_set *set, const kernel_set *plain) {
    static const long shapes[][2] = {{1, 1}, {16, 5}, {31, 16}, {33, 47}, {130, 64}, {257, 100}, {1000, 70}};
    static const long widths[] = {1, 7, 8, 64, 100, 513};
    state = 1;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int type = WEIGHT_F32; type <= WEIGHT_FP8; type++) {
            /* MXFP4 has whole blocks. */
            const long num_in = type == WEIGHT_MXFP4 ? blocks_of(shapes[i][0]) * BLOCK_INPUTS : shapes[i][0];
            for (int is_gated = 0; is_gated <= 1; is_gated++)
                check_product(set, plain, type, num_in, shapes[i][1], is_gated);
        }
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        for (int kind = NORM_LAYER; kind <= NORM_RMS; kind++) check_norm(set, plain, kind, widths[i]);
    check_activations(set, plain);
    for (int flag = 0; flag <= 1; flag++) {
        check_rotation(set, plain, flag);
        check_attention(set, plain, flag, 5, 1);
        check_attention(set, plain, flag, 64, 3);
        check_attention(set, plain, flag, 80, 2);
    }
}

/* The arguments are the names of instruction sets; those that are not this processor's have no lines. */
int main(int num_arguments, char **arguments) {
    const kernel_set plain = {find_gemm_kernels("generic"), find_row_kernels("generic")};
    for (int i = 1; i < num_arguments; i++) {
        const kernel_set set = {find_gemm_kernels(arguments[i]), find_row_kernels(arguments[i])};
        if (set.gemm != NULL) check(&set, &plain);
    }
    return num_wrong > 0;
}
