/* Row operations for one instruction set; included once for each, with NAME(x), FMA8(a, b, c), LOAD8_BF16,
 * SUM_OF_FOUR(a, b, c, d) defined. Eight lanes always: with AVX-512 a reduction's order, and so its bits, are those without.
 * No include guard: that is the point. */

#define INLINE static inline __attribute__((always_inline))

INLINE f32x8 NAME(load8)(const float *at) {
    f32x8 v;
    memcpy(&v, at, sizeof v);
    return v;
}

INLINE void NAME(store8)(float *at, f32x8 v) { memcpy(at, &v, sizeof v); }

/* Lane by lane the sums of four vectors, and of one: neighbours first, then the halves. */
INLINE void NAME(sum8_four)(f32x8 a, f32x8 b, f32x8 c, f32x8 d, float *sums) {
    f32x4 four = SUM_OF_FOUR(a, b, c, d);
    memcpy(sums, &four, sizeof four);
}

INLINE float NAME(sum8)(f32x8 v) {
    f32x4 four = SUM_OF_FOUR(v, v, v, v);
    return four[0];
}

/* e^x by 2^n * e^r, |r| <= ln 2 / 2, Taylor to the seventh degree: within 2 ulp; 0 below -87. */
INLINE f32x8 NAME(exp8)(f32x8 x) {
    const f32x8 low = SPLAT8(-87.0f), round = SPLAT8(12582912.0f);
    i32x8 is_low = x < low;
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
    i32x8 is_negative = x < SPLAT8(0.0f);
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

static void NAME(store_row)(const float *x, long n, void *y, long at, int y_is_bf16) {
    if (y_is_bf16) NAME(to_bf16)(x, n, (uint16_t *)y + at);
    else memcpy((float *)y + at, x, sizeof(float) * n);
}

/* x silu'd: x / (1 + e^-x), by e^-|x|, which cannot overflow. */
INLINE f32x8 NAME(silu8)(f32x8 x) {
    const i32x8 sign = SPLAT8I((int32_t)0x80000000);
    f32x8 e = NAME(exp8)((f32x8)((i32x8)x | sign));
    i32x8 is_negative = x < SPLAT8(0.0f);
    f32x8 part = (f32x8)(((i32x8)e & is_negative) | ((i32x8)SPLAT8(1.0f) & ~is_negative));
    return x * (part / (SPLAT8(1.0f) + e));
}

/* Over whole vectors: `row` has room for them. */
INLINE void NAME(activate)(int activation, long n, float *row) {
    if (activation == ACTIVATION_GELU)
        for (long i = 0; i < n; i += 8) NAME(store8)(row + i, NAME(gelu8)(NAME(load8)(row + i)));
    else if (activation == ACTIVATION_SILU)
        for (long i = 0; i < n; i += 8) NAME(store8)(row + i, NAME(silu8)(NAME(load8)(row + i)));
}

static void NAME(layer_norm)(const norm *how, const float *x, long width, void *y, int y_is_bf16) {
    const float *weight = how->weight_D, *bias = how->bias_D;
    f32x8 sum = SPLAT8(0.0f);
    long i = 0;
    for (; i + 8 <= width; i += 8) sum += NAME(load8)(x + i);
    float total = NAME(sum8)(sum);
    for (; i < width; i++) total += x[i];
    const float mean = total / (float)width;
    f32x8 squares = SPLAT8(0.0f);
    for (i = 0; i + 8 <= width; i += 8) {
        f32x8 c = NAME(load8)(x + i) - SPLAT8(mean);
        squares = FMA8(c, c, squares);
    }
    float variance = NAME(sum8)(squares);
    for (; i < width; i++) variance += (x[i] - mean) * (x[i] - mean);
    const float rate = 1.0f / sqrtf(variance / (float)width + how->eps);
    float block[64];
    for (i = 0; i < width; i += 64) {
        long n = width - i < 64 ? width - i : 64;
        for (long j = 0; j < n; j++) block[j] = (x[i + j] - mean) * rate * weight[i + j] + bias[i + j];
        NAME(store_row)(block, n, y, i, y_is_bf16);
    }
}

static void NAME(rms_norm)(const norm *how, const float *x, long width, void *y, int y_is_bf16) {
    f32x8 squares = SPLAT8(0.0f);
    long i = 0;
    for (; i + 8 <= width; i += 8) {
        f32x8 v = NAME(load8)(x + i);
        squares = FMA8(v, v, squares);
    }
    float total = NAME(sum8)(squares);
    for (; i < width; i++) total += x[i] * x[i];
    const float rate = 1.0f / sqrtf(total / (float)width + how->eps);
    float block[64];
    for (i = 0; i < width; i += 64) {
        long n = width - i < 64 ? width - i : 64;
        for (long j = 0; j < n; j++) block[j] = x[i + j] * rate * how->weight_D[i + j];
        NAME(store_row)(block, n, y, i, y_is_bf16);
    }
}

static void NAME(normalise)(const norm *how, const float *x, long width, void *y, int y_is_bf16) {
    if (how->kind == NORM_LAYER) NAME(layer_norm)(how, x, width, y, y_is_bf16);
    else if (how->kind == NORM_RMS) NAME(rms_norm)(how, x, width, y, y_is_bf16);
    else NAME(store_row)(x, width, y, 0, y_is_bf16);
}

/* In place, over whole vectors: what lies beyond the `n` outputs is not kept. */
INLINE void NAME(to_outputs)(const matrix *w, long first, long n, float *row) {
    if (w->scale_O != NULL)
        for (long i = 0; i < n; i++) row[i] *= w->scale_O[first + i];
    if (w->bias_O != NULL)
        for (long i = 0; i < n; i++) row[i] += w->bias_O[first + i];
}

static void NAME(finish_gated)(const epilogue *e, const float *sums, long first_row, int num_rows,
                               long first_panel, int count) {
    const matrix *w = e->w;
    for (int r = 0; r < num_rows; r++) {
        float row[PANELS_PER_TASK * PANEL];
        memcpy(row, sums + (long)r * PANELS_PER_TASK * PANEL, sizeof row);
        NAME(to_outputs)(w, first_panel * PANEL, (long)count * PANEL, row);
        for (int p = 0; p < count; p += 2) {
            const long at = (first_panel + p) / 2 * PANEL;
            const long n = w->num_out - at < PANEL ? w->num_out - at : PANEL;
            float *gate = row + p * PANEL, *gated = gate + PANEL;
            NAME(activate)(e->activation, PANEL, gate);
            for (int i = 0; i < PANEL; i++) gated[i] = gate[i] * gated[i];
            NAME(store_row)(gated, n, e->y, (first_row + r) * e->stride + at, e->y_is_bf16);
        }
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
        memcpy(row, sums + (long)r * PANELS_PER_TASK * PANEL, sizeof row);
        const long at = (first_row + r) * e->stride + first;
        NAME(to_outputs)(w, first, n, row);
        NAME(activate)(e->activation, n, row);
        if (e->residual != NULL)
            for (long i = 0; i < n; i++) row[i] += e->residual[at + i];
        NAME(store_row)(row, n, e->y, at, e->y_is_bf16);
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

/* From scores to weights that still want to be divided by their sum, which is returned. */
INLINE float NAME(soften)(float *scores, long length, float largest) {
    f32x8 sums = SPLAT8(0.0f);
    long i = 0;
    for (; i + 8 <= length; i += 8) {
        f32x8 e = NAME(exp8)(NAME(load8)(scores + i) - SPLAT8(largest));
        NAME(store8)(scores + i, e);
        sums += e;
    }
    if (i < length) {
        f32x8 rest = SPLAT8(-INFINITY);
        for (long j = i; j < length; j++) rest[j - i] = scores[j] - largest;
        rest = NAME(exp8)(rest);
        sums += rest;
        for (long j = i; j < length; j++) scores[j] = rest[j - i];
    }
    return NAME(sum8)(sums);
}

/* The beginning of the next block, which lies anywhere; the processor finds the rest by itself. */
INLINE void NAME(prefetch)(const void *at) {
    for (int line = 0; line < 4; line++) __builtin_prefetch((const char *)at + 64 * line);
}

/* A NaN score must not be lost in a comparison: it makes the whole row NaN, as it should. */
#define DEFINE_ATTEND(type, element, LOADER, WIDEN)                                                          \
    /* q k for `count` keys, 1 or 4: four at once share the loads of q and the adding up. */                 \
    INLINE void NAME(dots_##type)(const float *q, const element *k, long n, float *dots, const int count) {  \
        f32x8 acc[4] = {SPLAT8(0.0f), SPLAT8(0.0f), SPLAT8(0.0f), SPLAT8(0.0f)};                             \
        long i = 0;                                                                                          \
        for (; i + 8 <= n; i += 8) {                                                                         \
            const f32x8 part = NAME(load8)(q + i);                                                           \
            _Pragma("GCC unroll 4") for (int c = 0; c < count; c++) acc[c] =                                 \
                FMA8(part, LOADER(k + c * n + i), acc[c]);                                                   \
        }                                                                                                    \
        if (count == 4) NAME(sum8_four)(acc[0], acc[1], acc[2], acc[3], dots);                               \
        else dots[0] = NAME(sum8)(acc[0]);                                                                   \
        for (; i < n; i++)                                                                                   \
            for (int c = 0; c < count; c++) dots[c] += q[i] * WIDEN(k[c * n + i]);                           \
    }                                                                                                        \
    INLINE void NAME(mix_##type)(const attention_source *s, const element *values, long block_stride,        \
                                 const float *p, long length, float rate, float *out, const int nv) {        \
        f32x8 acc[8];                                                                                        \
        _Pragma("GCC unroll 8") for (int v = 0; v < nv; v++) acc[v] = SPLAT8(0.0f);                          \
        for (long first = 0; first < length; first += s->block_size) {                                       \
            const element *at = values + s->blocks[first / s->block_size] * block_stride;                    \
            const long n = length - first < s->block_size ? length - first : s->block_size;                  \
            if (first + n < length) NAME(prefetch)(values + s->blocks[first / s->block_size + 1] * block_stride); \
            for (long j = 0; j < n; j++, at += s->head_dim) {                                                \
                f32x8 weight = SPLAT8(p[first + j]);                                                         \
                _Pragma("GCC unroll 8") for (int v = 0; v < nv; v++) acc[v] =                                \
                    FMA8(weight, LOADER(at + 8 * v), acc[v]);                                                \
            }                                                                                                \
        }                                                                                                    \
        _Pragma("GCC unroll 8") for (int v = 0; v < nv; v++)                                                 \
            NAME(store8)(out + 8 * v, acc[v] * SPLAT8(rate));                                                \
    }                                                                                                        \
    static void NAME(attend_##type)(const attention_source *s, long row, long head, long length,             \
                                    float *scores, float *out) {                                             \
        const long d = s->head_dim, block_stride = s->block_size * s->num_kv_heads * d;                      \
        const long offset = head / (s->num_heads / s->num_kv_heads) * s->block_size * d;                     \
        const float *q = s->q + row * s->q_stride + head * d;                                                \
        const element *keys = (const element *)s->keys + offset;                                             \
        const element *values = (const element *)s->values + offset;                                         \
        const float factor = 1.0f / sqrtf((float)d);                                                         \
        float largest = -INFINITY;                                                                           \
        for (long first = 0; first < length; first += s->block_size) {                                       \
            const element *at = keys + s->blocks[first / s->block_size] * block_stride;                      \
            const long n = length - first < s->block_size ? length - first : s->block_size;                  \
            if (first + n < length) NAME(prefetch)(keys + s->blocks[first / s->block_size + 1] * block_stride); \
            long j = 0;                                                                                      \
            for (; j + 4 <= n; j += 4) NAME(dots_##type)(q, at + j * d, d, scores + first + j, 4);           \
            for (; j < n; j++) NAME(dots_##type)(q, at + j * d, d, scores + first + j, 1);                   \
        }                                                                                                    \
        for (long j = 0; j < length; j++) {                                                                  \
            const float score = scores[j] *= factor;                                                         \
            largest = score > largest || score != score ? score : largest;                                   \
        }                                                                                                    \
        const float sum = NAME(soften)(scores, length, largest);                                             \
        /* exp8 maps NaN to 0: what is not finite is told here. */                                           \
        const float rate = largest - largest == 0.0f ? 1.0f / sum : NAN;                                     \
        long c = 0;                                                                                          \
        for (; c + 64 <= d; c += 64)                                                                         \
            NAME(mix_##type)(s, values + c, block_stride, scores, length, rate, out + c, 8);                    \
        for (; c + 32 <= d; c += 32)                                                                         \
            NAME(mix_##type)(s, values + c, block_stride, scores, length, rate, out + c, 4);                    \
        for (; c + 8 <= d; c += 8)                                                                           \
            NAME(mix_##type)(s, values + c, block_stride, scores, length, rate, out + c, 1);                    \
        for (; c < d; c++) {                                                                                 \
            float acc = 0.0f;                                                                                \
            for (long j = 0; j < length; j++) {                                                              \
                const element *block = values + s->blocks[j / s->block_size] * block_stride;                 \
                acc += scores[j] * WIDEN(block[j % s->block_size * d + c]);                                  \
            }                                                                                                \
            out[c] = acc * rate;                                                                             \
        }                                                                                                    \
    }

#define IDENTITY(x) (x)
DEFINE_ATTEND(f32, float, NAME(load8), IDENTITY)
DEFINE_ATTEND(bf16, uint16_t, LOAD8_BF16, widen)
#undef IDENTITY
#undef DEFINE_ATTEND

static void NAME(attend)(const attention_source *s, long row, long head, long length, float *scores,
                         float *out) {
    if (s->cache_is_bf16) NAME(attend_bf16)(s, row, head, length, scores, out);
    else NAME(attend_f32)(s, row, head, length, scores, out);
}

static const row_kernels NAME(rows) = {
    NAME(normalise), NAME(finish), NAME(attend), NAME(to_bf16), NAME(scale), NAME(add_scaled), NAME(add),
};

#undef INLINE
#undef NAME
#undef FMA8
#undef LOAD8_BF16
#undef SUM_OF_FOUR
