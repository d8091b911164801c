/* Attention of one head of one row over its blocks of the cache: the part of rows_impl.h that needs a file of its own.
 * No include guard, as there. */

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
