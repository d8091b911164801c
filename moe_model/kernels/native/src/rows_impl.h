/* Row operations for one instruction set; with attend_impl.h included once for each, with its vectors defined: NAME(x),
 * FMA8(a, b, c), LESS8(a, b), and how eight lanes are held from one round of a loop to the next: HELD8, HOLD(v),
 * LANES8(held), LOAD_HELD, STORE_HELD, SPLAT_HELD, FMA_HELD(a, b, c), SUM_OF_FOUR(a, b, c, d). Eight lanes always: with AVX-512 a
 * reduction's order, and so its bits, are those without, but for attention. No include guard: that is the point. */

#define INLINE static inline __attribute__((always_inline))

INLINE f32x8 NAME(load8)(const float *at) {
    f32x8 v;
    memcpy(&v, at, sizeof v);
    return v;
}

INLINE void NAME(store8)(float *at, f32x8 v) { memcpy(at, &v, sizeof v); }

/* Lane by lane the sums of four vectors, and of one: neighbours first, then the halves. */
INLINE void NAME(sum8_four)(HELD8 a, HELD8 b, HELD8 c, HELD8 d, float *sums) {
    f32x4 four = SUM_OF_FOUR(a, b, c, d);
    memcpy(sums, &four, sizeof four);
}

INLINE float NAME(sum8)(HELD8 v) {
    f32x4 four = SUM_OF_FOUR(v, v, v, v);
    return four[0];
}

/* e^x by 2^n * e^r, |r| <= ln 2 / 2, Taylor to the seventh degree: within 2 ulp; 0 below -87. */
INLINE f32x8 NAME(exp8)(f32x8 x) {
    const f32x8 low = SPLAT8(-87.0f), round = SPLAT8(12582912.0f);
    i32x8 is_low = LESS8(x, low);
    x = (f32x8)(((i32x8)low & is_low) | ((i32x8)x & ~is_low));
    f32x8 shifted = x * SPLAT8(1.44269504f) + round;
    f32x8 n = shifted - round;
    f32x8 r = x - n * SPLAT8(0.693359375f);
    r = r - n * SPLAT8(-2.12194440e-4f);
    f32x8 p = SPLAT8(1.0f / 5040);
    p = FMA8(p, r, SPLAT8(1.0f / 720));
    p = FMA8(p, r, SPLAT8(1.0f / 120));
    p = FMA8(p, r, SPLAT8(1.0f / 24));
    p = FMA8(p, r, SPLAT8(1.0f / 6));
    p = FMA8(p, r, SPLAT8(0.5f));
    p = FMA8(p, r, SPLAT8(1.0f));
    p = FMA8(p, r, SPLAT8(1.0f));
    i32x8 exponent = ((i32x8)shifted - (i32x8)round) << 23;
    f32x8 y = (f32x8)((i32x8)p + exponent);
    return (f32x8)((i32x8)y & ~is_low);
}

/* x Φ(x), exact to float32: with e = erfc(|x| / √2), x e / 2 below 0 and x - x e / 2 above.
 * erfc(z) = e^(-z²) P(1 / (1 + 0.35 z)), P fitted to a relative error of 3e-9: scripts/fit_erfcx.py. */
INLINE f32x8 NAME(gelu8)(f32x8 x) {
    const i32x8 sign = SPLAT8I((int32_t)0x80000000);
    f32x8 z = (f32x8)((i32x8)x & ~sign) * SPLAT8(0.70710678f);
    f32x8 t = SPLAT8(1.0f) / (SPLAT8(1.0f) + SPLAT8(0.35f) * z);
    f32x8 p = SPLAT8(0.0276451485139247f);
    p = FMA8(p, t, SPLAT8(-0.0948074499650915f));
    p = FMA8(p, t, SPLAT8(0.013446785035427174f));
    p = FMA8(p, t, SPLAT8(0.22674091590167075f));
    p = FMA8(p, t, SPLAT8(-0.15926205771039167f));
    p = FMA8(p, t, SPLAT8(0.30501291569962263f));
    p = FMA8(p, t, SPLAT8(0.08197134195366318f));
    p = FMA8(p, t, SPLAT8(0.207952533380739f));
    p = FMA8(p, t, SPLAT8(0.19344303498986568f));
    p = FMA8(p, t, SPLAT8(0.1978748855766564f));
    p = FMA8(p, t, SPLAT8(-1.805016454028991e-05f));
    f32x8 tail = SPLAT8(0.5f) * x * (NAME(exp8)(-z * z) * p);
    i32x8 is_negative = LESS8(x, SPLAT8(0.0f));
    f32x8 above = x - tail;
    /* What is not finite becomes NaN. */
    return (f32x8)(((i32x8)tail & is_negative) | ((i32x8)above & ~is_negative));
}

static void NAME(to_bf16)(const float *x, long n, uint16_t *y) {
    for (long i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        y[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded);
    }
}

/* One block of `n` values, filled up with zeros; the largest becomes 127 or -127. The largest is found, and what is not
 * finite with it, by the bits, whose order is that of the numbers: no order of comparing shows. */
INLINE void NAME(to_block)(const float *x, long n, row_block *to) {
    float value[BLOCK_INPUTS] = {0};
    int32_t bits[BLOCK_INPUTS], largest_bits = 0;
    memcpy(value, x, sizeof(float) * n);
    memcpy(bits, value, sizeof bits);
    for (int i = 0; i < BLOCK_INPUTS; i++) {
        const int32_t magnitude = bits[i] & 0x7fffffff;
        largest_bits = magnitude > largest_bits ? magnitude : largest_bits;
    }
    float largest;
    memcpy(&largest, &largest_bits, sizeof largest);
    *to = (row_block){.scale = 0.0f};
    if (largest_bits >= 0x7f800000) to->scale = NAN;
    /* Below, a value over its largest one would be no number any more. */
    if (largest_bits >= 0x7f800000 || largest < 1e-30f) return;
    const float rate = 127.0f / largest;
    for (int i = 0; i < BLOCK_INPUTS; i++) value[i] = value[i] * rate + 12582912.0f; /* to the nearest, of two the even */
    memcpy(bits, value, sizeof bits);
    int32_t sum = 0;
    for (int i = 0; i < BLOCK_INPUTS; i++) {
        const int32_t rounded = bits[i] - 0x4b400000;
        to->values[i] = (int8_t)rounded;
        sum += rounded;
    }
    to->sum = sum;
    to->scale = largest / 127.0f;
}

/* To element `at` of y; of blocks, the first of one. */
static void NAME(store_row)(const float *x, long n, void *y, long at, enum row_form form) {
    if (form == AS_BLOCKS) {
        row_block *to = (row_block *)y + at / BLOCK_INPUTS;
        long i = 0;
        /* Whole ones are of a size that the compiler knows. */
        for (; i + BLOCK_INPUTS <= n; i += BLOCK_INPUTS) NAME(to_block)(x + i, BLOCK_INPUTS, to++);
        if (i < n) NAME(to_block)(x + i, n - i, to);
    } else if (form == AS_BF16) {
        NAME(to_bf16)(x, n, (uint16_t *)y + at);
    } else {
        memcpy((float *)y + at, x, sizeof(float) * n);
    }
}

/* 1 / (1 + e^-x), by e^-|x|, which cannot overflow; of NaN any number. */
INLINE f32x8 NAME(sigmoid8)(f32x8 x) {
    const i32x8 sign = SPLAT8I((int32_t)0x80000000);
    f32x8 e = NAME(exp8)((f32x8)((i32x8)x | sign));
    i32x8 is_negative = LESS8(x, SPLAT8(0.0f));
    f32x8 part = (f32x8)(((i32x8)e & is_negative) | ((i32x8)SPLAT8(1.0f) & ~is_negative));
    return part / (SPLAT8(1.0f) + e);
}

INLINE f32x8 NAME(silu8)(f32x8 x) { return x * NAME(sigmoid8)(x); }

static void NAME(sigmoid)(const float *x, long n, float *y) {
    for (long i = 0; i < n; i += 8) {
        const long count = n - i < 8 ? n - i : 8;
        float part[8] = {0};
        memcpy(part, x + i, sizeof(float) * count);
        const f32x8 v = NAME(load8)(part);
        const i32x8 is_nan = v != v;
        NAME(store8)(part, (f32x8)(((i32x8)v & is_nan) | ((i32x8)NAME(sigmoid8)(v) & ~is_nan)));
        memcpy(y + i, part, sizeof(float) * count);
    }
}

/* Over whole vectors: `row` has room for them. */
INLINE void NAME(activate)(int activation, long n, float *row) {
    if (activation == ACTIVATION_GELU)
        for (long i = 0; i < n; i += 8) NAME(store8)(row + i, NAME(gelu8)(NAME(load8)(row + i)));
    else if (activation == ACTIVATION_SILU)
        for (long i = 0; i < n; i += 8) NAME(store8)(row + i, NAME(silu8)(NAME(load8)(row + i)));
}

static void NAME(layer_norm)(const norm *how, const float *x, long width, void *y, enum row_form form) {
    const float *weight = how->weight_D, *bias = how->bias_D;
    HELD8 sum = SPLAT_HELD(0.0f);
    long i = 0;
    for (; i + 8 <= width; i += 8) sum = HOLD(LANES8(sum) + NAME(load8)(x + i));
    float total = NAME(sum8)(sum);
    for (; i < width; i++) total += x[i];
    const float mean = total / (float)width;
    HELD8 squares = SPLAT_HELD(0.0f);
    for (i = 0; i + 8 <= width; i += 8) {
        f32x8 c = NAME(load8)(x + i) - SPLAT8(mean);
        squares = FMA_HELD(HOLD(c), HOLD(c), squares);
    }
    float variance = NAME(sum8)(squares);
    for (; i < width; i++) variance += (x[i] - mean) * (x[i] - mean);
    const float rate = 1.0f / sqrtf(variance / (float)width + how->eps);
    float block[64];
    for (i = 0; i < width; i += 64) {
        long n = width - i < 64 ? width - i : 64;
        for (long j = 0; j < n; j++) block[j] = (x[i + j] - mean) * rate * weight[i + j] + bias[i + j];
        NAME(store_row)(block, n, y, i, form);
    }
}

static void NAME(rms_norm)(const norm *how, const float *x, long width, void *y, enum row_form form) {
    HELD8 squares = SPLAT_HELD(0.0f);
    long i = 0;
    for (; i + 8 <= width; i += 8) {
        HELD8 v = LOAD_HELD(x + i);
        squares = FMA_HELD(v, v, squares);
    }
    float total = NAME(sum8)(squares);
    for (; i < width; i++) total += x[i] * x[i];
    const float rate = 1.0f / sqrtf(total / (float)width + how->eps);
    float block[64];
    for (i = 0; i < width; i += 64) {
        long n = width - i < 64 ? width - i : 64;
        for (long j = 0; j < n; j++) block[j] = x[i + j] * rate * how->weight_D[i + j];
        NAME(store_row)(block, n, y, i, form);
    }
}

static void NAME(normalise)(const norm *how, const float *x, long width, void *y, enum row_form form) {
    if (how->kind == NORM_LAYER) NAME(layer_norm)(how, x, width, y, form);
    else if (how->kind == NORM_RMS) NAME(rms_norm)(how, x, width, y, form);
    else NAME(store_row)(x, width, y, 0, form);
}

/* By vectors of the width that reads them next: memcpy is free to store narrower ones, and a load that spans two stores
 * waits for both to reach the cache. */
INLINE void NAME(copy)(const float *x, int n, float *y) {
    for (int i = 0; i < n; i += 8) NAME(store8)(y + i, NAME(load8)(x + i));
}

/* In place, over whole vectors: what lies beyond the `n` outputs is not kept. */
INLINE void NAME(to_outputs)(const matrix *w, long first, long n, float *row) {
    if (w->scale_O != NULL)
        for (long i = 0; i < n; i++) row[i] *= w->scale_O[first + i];
    if (w->bias_O != NULL)
        for (long i = 0; i < n; i++) row[i] += w->bias_O[first + i];
}

/* NaN stays NaN. */
INLINE f32x8 NAME(at_most8)(f32x8 x, f32x8 limit) {
    i32x8 is_above = LESS8(limit, x);
    return (f32x8)(((i32x8)limit & is_above) | ((i32x8)x & ~is_above));
}

/* Over one panel: `gated` becomes the results. */
INLINE void NAME(gate_panel)(const epilogue *e, float *gate, float *gated) {
    const f32x8 limit = SPLAT8(e->w->limit), alpha = SPLAT8(e->w->alpha);
    if (e->w->limit == 0.0f) {
        NAME(activate)(e->activation, PANEL, gate);
        for (int i = 0; i < PANEL; i += 8) NAME(store8)(gated + i, NAME(load8)(gate + i) * NAME(load8)(gated + i));
        return;
    }
    for (int i = 0; i < PANEL; i += 8) {
        const f32x8 g = NAME(at_most8)(NAME(load8)(gate + i), limit);
        const f32x8 u = -NAME(at_most8)(-NAME(at_most8)(NAME(load8)(gated + i), limit), limit);
        NAME(store8)(gated + i, (u + SPLAT8(1.0f)) * (NAME(silu8)(alpha * g) / alpha));
    }
}

static void NAME(finish_gated)(const epilogue *e, const float *sums, long first_row, int num_rows,
                               long first_panel, int count) {
    const matrix *w = e->w;
    for (int r = 0; r < num_rows; r++) {
        float row[PANELS_PER_TASK * PANEL];
        NAME(copy)(sums + (long)r * PANELS_PER_TASK * PANEL, count * PANEL, row);
        NAME(to_outputs)(w, first_panel * PANEL, (long)count * PANEL, row);
        /* The results take the place of what has been read. */
        const long at = first_panel / 2 * PANEL, left = w->num_out - at, most = count / 2 * PANEL;
        for (int p = 0; p < count; p += 2) {
            NAME(gate_panel)(e, row + p * PANEL, row + (p + 1) * PANEL);
            NAME(copy)(row + (p + 1) * PANEL, PANEL, row + p / 2 * PANEL);
        }
        NAME(store_row)(row, left < most ? left : most, e->y, (first_row + r) * e->stride + at, e->y_form);
    }
}

static void NAME(finish)(const epilogue *e, const float *sums, long first_row, int num_rows, long first_panel,
                         int count) {
    const matrix *w = e->w;
    if (w->is_gated) {
        NAME(finish_gated)(e, sums, first_row, num_rows, first_panel, count);
        return;
    }
    const long first = first_panel * PANEL;
    const long n = w->num_out - first < (long)count * PANEL ? w->num_out - first : (long)count * PANEL;
    for (int r = 0; r < num_rows; r++) {
        float row[PANELS_PER_TASK * PANEL];
        NAME(copy)(sums + (long)r * PANELS_PER_TASK * PANEL, count * PANEL, row);
        const long at = (first_row + r) * e->stride + first;
        NAME(to_outputs)(w, first, n, row);
        NAME(activate)(e->activation, n, row);
        if (e->residual != NULL)
            for (long i = 0; i < n; i++) row[i] += e->residual[at + i];
        NAME(store_row)(row, n, e->y, at, e->y_form);
    }
}

static void NAME(scale)(const float *x, float w, long n, float *y) {
    for (long i = 0; i < n; i++) y[i] = w * x[i];
}

static void NAME(add_scaled)(const float *x, float w, long n, float *y) {
    for (long i = 0; i < n; i++) {
        float product = w * x[i];
        y[i] = y[i] + product;
    }
}

static void NAME(add)(const float *x, long n, float *y) {
    for (long i = 0; i < n; i++) y[i] += x[i];
}

/* Sines and cosines of float32 angles of up to some millions, in float64: quarter turns are taken off, the rest is
 * Taylor's to 1e-11, so that the float32 they become is the nearest but for a tie. */
static void NAME(sines)(const float *angle, long n, float *sine, float *cosine) {
    const double per_quarter = 0.63661977236758134, quarter = 1.5707963267948966, rest = 6.123233995736766e-17;
    const double round = 6755399441055744.0;
    for (long i = 0; i < n; i++) {
        const double shifted = angle[i] * per_quarter + round;
        const double quarters = shifted - round;
        const double r = angle[i] - quarters * quarter - quarters * rest, z = r * r;
        const double s =
            r + r * z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 + z * (-1.0 / 39916800)))));
        const double c = 1.0 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 + z * (-1.0 / 3628800 +
                                                                                     z * (1.0 / 479001600))))));
        int64_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        const double at_sine = bits & 1 ? c : s, at_cosine = bits & 1 ? s : c;
        sine[i] = (float)(bits & 2 ? -at_sine : at_sine);
        cosine[i] = (float)((bits + 1) & 2 ? -at_cosine : at_cosine);
    }
}

static void NAME(turn)(const rotation *how, int64_t position, long num_heads, long head_dim, float *x) {
    float angle[MAX_ROTARY_DIM / 2], sine[MAX_ROTARY_DIM / 2], cosine[MAX_ROTARY_DIM / 2];
    const long half = how->dim / 2, step = how->is_interleaved ? 2 : 1, apart = how->is_interleaved ? 1 : half;
    for (long i = 0; i < half; i++) angle[i] = (float)position * how->rates[i];
    NAME(sines)(angle, half, sine, cosine);
    if (how->factor != 1.0f)
        for (long i = 0; i < half; i++) {
            sine[i] *= how->factor;
            cosine[i] *= how->factor;
        }
    for (long head = 0; head < num_heads; head++, x += head_dim)
        for (long i = 0; i < half; i++) {
            const float first = x[step * i], second = x[step * i + apart];
            x[step * i] = first * cosine[i] - second * sine[i];
            x[step * i + apart] = second * cosine[i] + first * sine[i];
        }
}

#include "attend_impl.h"

static const row_kernels NAME(rows) = {
    NAME(normalise), NAME(finish), NAME(attend), NAME(to_bf16), NAME(scale), NAME(add_scaled), NAME(add),
    NAME(turn), NAME(soften), NAME(sigmoid),
};

#undef INLINE
#undef NAME
#undef FMA8
#undef LESS8
#undef SUM_OF_FOUR
#undef HELD8
#undef HOLD
#undef LANES8
#undef LOAD_HELD
#undef LOAD_HELD_BF16
#undef STORE_HELD
#undef SPLAT_HELD
#undef FMA_HELD
