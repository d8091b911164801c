/* Attention of a row over its blocks of the cache: the part of rows_impl.h that needs a file of its own. Heads that see
 * the same keys go together, block by block, so that a key is read from memory once for all of them; which ones do
 * shows in no bit. No include guard, as there. */

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

/* How many of the tokens from `at` on are in its block. */
INLINE long NAME(in_block)(long at, long size, long end) {
    const long n = size - at % size;
    return n < end - at ? n : end - at;
}

/* From products q k to weights of a head that still want to be multiplied by what is returned. A NaN score must not be
 * lost in a comparison: it makes the whole row NaN, as it should. */
static float NAME(weigh)(const attention_source *s, long head, float *scores, long length) {
    float largest = -INFINITY;
    for (long j = 0; j < length; j++) {
        const float score = scores[j] *= s->scale;
        largest = score > largest || score != score ? score : largest;
    }
    const float sink = s->sinks_H == NULL ? -INFINITY : s->sinks_H[head];
    if (sink > largest) largest = sink;
    float sum = NAME(soften)(scores, length, largest);
    if (s->sinks_H != NULL) {
        f32x8 share = NAME(exp8)(SPLAT8(sink - largest));
        sum += share[0];
    }
    /* exp8 maps NaN to 0: what is not finite is told here. */
    return largest - largest == 0.0f ? 1.0f / sum : NAN;
}

/* Scores of `count` keys for `heads` heads, 1 or 2: what is loaded once serves all. Scores of a head are `apart`. */
#define DEFINE_ATTEND(type, element, LOADER, WIDEN)                                                                  \
    INLINE void NAME(dots_##type)(const float *q, const element *k, long d, float *scores, long apart,               \
                                  const int heads, const int count) {                                                \
        f32x8 acc[8];                                                                                                \
        _Pragma("GCC unroll 8") for (int a = 0; a < 8; a++) acc[a] = SPLAT8(0.0f);                                   \
        long i = 0;                                                                                                  \
        for (; i + 8 <= d; i += 8) {                                                                                 \
            _Pragma("GCC unroll 4") for (int c = 0; c < count; c++) {                                                \
                const f32x8 key = LOADER(k + c * d + i);                                                             \
                _Pragma("GCC unroll 2") for (int h = 0; h < heads; h++) acc[4 * h + c] =                             \
                    FMA8(NAME(load8)(q + h * d + i), key, acc[4 * h + c]);                                           \
            }                                                                                                        \
        }                                                                                                            \
        _Pragma("GCC unroll 2") for (int h = 0; h < heads; h++) {                                                    \
            float *to = scores + h * apart;                                                                          \
            if (count == 4) NAME(sum8_four)(acc[4 * h], acc[4 * h + 1], acc[4 * h + 2], acc[4 * h + 3], to);         \
            else to[0] = NAME(sum8)(acc[4 * h]);                                                                     \
            for (long j = i; j < d; j++)                                                                             \
                for (int c = 0; c < count; c++) to[c] += q[h * d + j] * WIDEN(k[c * d + j]);                         \
        }                                                                                                            \
    }                                                                                                                \
    INLINE void NAME(score_##type)(const float *q, const element *k, long d, long n, float *scores, long apart,      \
                                   const int heads) {                                                                \
        long j = 0;                                                                                                  \
        for (; j + 4 <= n; j += 4) NAME(dots_##type)(q, k + j * d, d, scores + j, apart, heads, 4);                  \
        for (; j < n; j++) NAME(dots_##type)(q, k + j * d, d, scores + j, apart, heads, 1);                          \
    }                                                                                                                \
    /* `nv` vectors of values, weighted and added to those of `heads` heads. */                                      \
    INLINE void NAME(add_values_##type)(const element *values, long stride, const float *p, long apart, long n,      \
                                        float *out, long width, const int heads, const int nv) {                     \
        f32x8 acc[8];                                                                                                \
        _Pragma("GCC unroll 8") for (int a = 0; a < heads * nv; a++) acc[a] =                                        \
            NAME(load8)(out + a / nv * width + a % nv * 8);                                                          \
        for (long j = 0; j < n; j++) {                                                                               \
            _Pragma("GCC unroll 8") for (int v = 0; v < nv; v++) {                                                   \
                const f32x8 value = LOADER(values + j * stride + 8 * v);                                             \
                _Pragma("GCC unroll 2") for (int h = 0; h < heads; h++) acc[h * nv + v] =                            \
                    FMA8(SPLAT8(p[h * apart + j]), value, acc[h * nv + v]);                                          \
            }                                                                                                        \
        }                                                                                                            \
        _Pragma("GCC unroll 8") for (int a = 0; a < heads * nv; a++)                                                 \
            NAME(store8)(out + a / nv * width + a % nv * 8, acc[a]);                                                 \
    }                                                                                                                \
    INLINE void NAME(mix_##type)(const element *values, long stride, const float *p, long apart, long n, float *out, \
                                 long width, const int heads) {                                                      \
        const int most = 8 / heads;                                                                                  \
        long c = 0;                                                                                                  \
        for (; c + 8 * most <= width; c += 8 * most)                                                                 \
            NAME(add_values_##type)(values + c, stride, p, apart, n, out + c, width, heads, most);                   \
        for (; c + 8 <= width; c += 8)                                                                               \
            NAME(add_values_##type)(values + c, stride, p, apart, n, out + c, width, heads, 1);                      \
        for (; c < width; c++)                                                                                       \
            for (int h = 0; h < heads; h++)                                                                          \
                for (long j = 0; j < n; j++)                                                                         \
                    out[h * width + c] += p[h * apart + j] * WIDEN(values[j * stride + c]);                          \
    }                                                                                                                \
    static void NAME(attend_##type)(const attention_source *s, const heads_of_row *r, float *scores, float *out) {   \
        const long d = s->head_dim, width = s->value_width, stride = s->value_stride, size = s->block_size;          \
        const long apart = r->end - r->first, kv_head = r->head / (s->num_heads / s->num_kv_heads);                  \
        const long key_block = size * s->num_kv_heads * d, value_block = size * s->num_kv_heads * stride;            \
        const float *q = s->q + r->row * s->q_stride + r->head * d;                                                  \
        const element *keys = (const element *)s->keys + kv_head * size * d;                                         \
        const element *values = (const element *)s->values + kv_head * size * stride;                                \
        for (long at = r->first, n; at < r->end; at += n) {                                                          \
            const element *k = keys + r->blocks[at / size] * key_block + at % size * d;                              \
            n = NAME(in_block)(at, size, r->end);                                                                    \
            if (at + n < r->end) NAME(prefetch)(keys + r->blocks[(at + n) / size] * key_block);                      \
            float *to = scores + (at - r->first);                                                                    \
            long h = 0;                                                                                              \
            for (; h + 2 <= r->num_heads; h += 2) NAME(score_##type)(q + h * d, k, d, n, to + h * apart, apart, 2);  \
            if (h < r->num_heads) NAME(score_##type)(q + h * d, k, d, n, to + h * apart, apart, 1);                  \
        }                                                                                                            \
        float rate[MAX_HEADS_AT_ONCE];                                                                               \
        for (long h = 0; h < r->num_heads; h++)                                                                      \
            rate[h] = NAME(weigh)(s, r->head + h, scores + h * apart, apart);                                        \
        memset(out, 0, sizeof(float) * r->num_heads * width);                                                        \
        for (long at = r->first, n; at < r->end; at += n) {                                                          \
            const element *v = values + r->blocks[at / size] * value_block + at % size * stride;                     \
            n = NAME(in_block)(at, size, r->end);                                                                    \
            if (at + n < r->end) NAME(prefetch)(values + r->blocks[(at + n) / size] * value_block);                  \
            const float *p = scores + (at - r->first);                                                               \
            long h = 0;                                                                                              \
            for (; h + 2 <= r->num_heads; h += 2)                                                                    \
                NAME(mix_##type)(v, stride, p + h * apart, apart, n, out + h * width, width, 2);                     \
            if (h < r->num_heads) NAME(mix_##type)(v, stride, p + h * apart, apart, n, out + h * width, width, 1);   \
        }                                                                                                            \
        for (long h = 0; h < r->num_heads; h++)                                                                      \
            for (long c = 0; c < width; c++) out[h * width + c] *= rate[h];                                          \
    }

#define IDENTITY(x) (x)
DEFINE_ATTEND(f32, float, NAME(load8), IDENTITY)
DEFINE_ATTEND(bf16, uint16_t, LOAD8_BF16, widen)
#undef IDENTITY
#undef DEFINE_ATTEND

static void NAME(attend)(const attention_source *s, const heads_of_row *r, float *scores, float *out) {
    if (s->cache_is_bf16) NAME(attend_bf16)(s, r, scores, out);
    else NAME(attend_f32)(s, r, scores, out);
}
