/* Attention over blocks of the cache: the part of rows_impl.h that needs a file of its own. Heads and rows that see the
 * same keys go together, block by block, so that a key is read from memory once for all of them; which ones do shows in
 * no bit. No include guard, as there. */

/* From scores to weights that still want to be divided by their sum, which is returned. */
static float NAME(soften)(float *scores, long length, float largest) {
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

INLINE seen NAME(seen_by_any)(const queries *q) {
    seen all = q->rows[0];
    for (long r = 1; r < q->num_rows; r++) {
        if (q->rows[r].first < all.first) all.first = q->rows[r].first;
        if (q->rows[r].end > all.end) all.end = q->rows[r].end;
    }
    return all;
}

/* What a row sees of the `n` tokens from `at` on; of nothing, the end is not behind the first. */
INLINE seen NAME(part_of)(const seen *row, long at, long n) {
    const long first = row->first > at ? row->first : at;
    return (seen){row->row, first, row->end < at + n ? row->end : at + n};
}

INLINE float *NAME(out_of)(const attention_source *s, const queries *q, long r, float *out) {
    return out + (q->rows[r].row * s->num_heads + q->head) * s->value_width;
}

/* From products q k to weights of a head that still want to be multiplied by what is returned. A NaN score or sink must
 * not be lost in a comparison: it makes the whole row NaN, as it should. */
static float NAME(weigh)(const attention_source *s, long head, float *scores, long length) {
    float largest = -INFINITY;
    for (long j = 0; j < length; j++) {
        const float score = scores[j] *= s->scale;
        largest = score > largest || score != score ? score : largest;
    }
    const float sink = s->sinks_H == NULL ? -INFINITY : s->sinks_H[head];
    if (sink > largest || sink != sink) largest = sink;
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
    INLINE void NAME(score_some_##type)(const float *q, const element *k, long d, long n, float *scores, long apart, \
                                        const int heads) {                                                           \
        long j = 0;                                                                                                  \
        for (; j + 4 <= n; j += 4) NAME(dots_##type)(q, k + j * d, d, scores + j, apart, heads, 4);                  \
        for (; j < n; j++) NAME(dots_##type)(q, k + j * d, d, scores + j, apart, heads, 1);                          \
    }                                                                                                                \
    /* Scores of `n` keys that follow each other, for all heads. */                                                  \
    INLINE void NAME(score_##type)(const float *q, long num_heads, const element *k, long d, long n, float *scores,  \
                                   long apart) {                                                                     \
        long h = 0;                                                                                                  \
        for (; h + 2 <= num_heads; h += 2)                                                                           \
            NAME(score_some_##type)(q + h * d, k, d, n, scores + h * apart, apart, 2);                               \
        if (h < num_heads) NAME(score_some_##type)(q + h * d, k, d, n, scores + h * apart, apart, 1);                \
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
    INLINE void NAME(mix_some_##type)(const element *values, long stride, const float *p, long apart, long n,        \
                                      float *out, long width, const int heads) {                                     \
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
    /* Adds `n` values that follow each other, weighted, for all heads. */                                           \
    INLINE void NAME(mix_##type)(const element *values, long stride, long num_heads, const float *p, long apart,     \
                                 long n, float *out, long width) {                                                   \
        long h = 0;                                                                                                  \
        for (; h + 2 <= num_heads; h += 2)                                                                           \
            NAME(mix_some_##type)(values, stride, p + h * apart, apart, n, out + h * width, width, 2);               \
        if (h < num_heads) NAME(mix_some_##type)(values, stride, p + h * apart, apart, n, out + h * width, width, 1);\
    }                                                                                                                \
    static void NAME(attend_##type)(const attention_source *s, const queries *q, float *scores, long apart,          \
                                    float *out) {                                                                    \
        const long d = s->head_dim, width = s->value_width, stride = s->value_stride, size = s->block_size;          \
        const long kv_head = q->head / (s->num_heads / s->num_kv_heads), in_row = q->num_heads * apart;              \
        const long key_block = size * s->num_kv_heads * d, value_block = size * s->num_kv_heads * stride;            \
        const element *keys = (const element *)s->keys + kv_head * size * d;                                         \
        const element *values = (const element *)s->values + kv_head * size * stride;                                \
        const seen all = NAME(seen_by_any)(q);                                                                       \
        for (long at = all.first, n; at < all.end; at += n) {                                                        \
            const element *k = keys + q->blocks[at / size] * key_block + at % size * d;                              \
            n = NAME(in_block)(at, size, all.end);                                                                   \
            if (at + n < all.end) NAME(prefetch)(keys + q->blocks[(at + n) / size] * key_block);                     \
            for (long r = 0; r < q->num_rows; r++) {                                                                 \
                const seen *row = &q->rows[r], part = NAME(part_of)(row, at, n);                                     \
                if (part.first >= part.end) continue;                                                                \
                NAME(score_##type)(s->q + row->row * s->q_stride + q->head * d, q->num_heads,                        \
                                   k + (part.first - at) * d, d, part.end - part.first,                              \
                                   scores + r * in_row + (part.first - row->first), apart);                          \
            }                                                                                                        \
        }                                                                                                            \
        float rate[MAX_ROWS_AT_ONCE][MAX_HEADS_AT_ONCE];                                                             \
        for (long r = 0; r < q->num_rows; r++) {                                                                     \
            for (long h = 0; h < q->num_heads; h++)                                                                  \
                rate[r][h] = NAME(weigh)(s, q->head + h, scores + r * in_row + h * apart,                            \
                                         q->rows[r].end - q->rows[r].first);                                         \
            memset(NAME(out_of)(s, q, r, out), 0, sizeof(float) * q->num_heads * width);                             \
        }                                                                                                            \
        for (long at = all.first, n; at < all.end; at += n) {                                                        \
            const element *v = values + q->blocks[at / size] * value_block + at % size * stride;                     \
            n = NAME(in_block)(at, size, all.end);                                                                   \
            if (at + n < all.end) NAME(prefetch)(values + q->blocks[(at + n) / size] * value_block);                 \
            for (long r = 0; r < q->num_rows; r++) {                                                                 \
                const seen *row = &q->rows[r], part = NAME(part_of)(row, at, n);                                     \
                if (part.first >= part.end) continue;                                                                \
                NAME(mix_##type)(v + (part.first - at) * stride, stride, q->num_heads,                               \
                                 scores + r * in_row + (part.first - row->first), apart, part.end - part.first,      \
                                 NAME(out_of)(s, q, r, out), width);                                                 \
            }                                                                                                        \
        }                                                                                                            \
        for (long r = 0; r < q->num_rows; r++)                                                                       \
            for (long h = 0; h < q->num_heads; h++)                                                                  \
                for (long c = 0; c < width; c++) NAME(out_of)(s, q, r, out)[h * width + c] *= rate[r][h];            \
    }

#define IDENTITY(x) (x)
DEFINE_ATTEND(f32, float, NAME(load8), IDENTITY)
DEFINE_ATTEND(bf16, uint16_t, LOAD8_BF16, widen)
#undef IDENTITY
#undef DEFINE_ATTEND

static void NAME(attend)(const attention_source *s, const queries *q, float *scores, long apart, float *out) {
    if (s->cache_is_bf16) NAME(attend_bf16)(s, q, scores, apart, out);
    else NAME(attend_f32)(s, q, scores, apart, out);
}
