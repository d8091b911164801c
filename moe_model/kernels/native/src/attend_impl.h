/* Attention over blocks of the cache: the part of rows_impl.h that needs a file of its own. Heads and rows that see the
 * same keys go together, block by block, so that a key is read from memory once for all of them; which ones do shows in
 * no bit. No include guard, as there. Vectors are W, of W_LANES, with W_LOAD, W_STORE, W_LOAD_BF16, W_SPLAT, W_FMA, and W_SUM(v)
 * and W_SUM_OF_FOUR(a, b, c, d), which add the lanes of one and of four in the same order; QUERIES go together, 2 or 4. */

/* From scores to weights that still want to be divided by their sum, which is returned. */
static float NAME(soften)(float *scores, long length, float largest) {
    HELD8 sums = SPLAT_HELD(0.0f);
    long i = 0;
    for (; i + 8 <= length; i += 8) {
        f32x8 e = NAME(exp8)(NAME(load8)(scores + i) - SPLAT8(largest));
        NAME(store8)(scores + i, e);
        sums = HOLD(LANES8(sums) + e);
    }
    if (i < length) {
        f32x8 rest = SPLAT8(-INFINITY);
        for (long j = i; j < length; j++) rest[j - i] = scores[j] - largest;
        rest = NAME(exp8)(rest);
        sums = HOLD(LANES8(sums) + rest);
        for (long j = i; j < length; j++) scores[j] = rest[j - i];
    }
    return NAME(sum8)(sums);
}

/* Of the next block, which lies anywhere. */
INLINE void NAME(prefetch)(const void *at, long num_bytes) {
    for (long i = 0; i < num_bytes; i += 64) __builtin_prefetch((const char *)at + i);
}

/* How many of the tokens from `at` on are in its block. */
INLINE long NAME(in_block)(long at, long size, long end) {
    const long n = size - at % size;
    return n < end - at ? n : end - at;
}

/* A row's head: what it asks for, where its scores and its answer are, and which tokens it sees. */
typedef struct {
    const float *q;
    float *scores, *out;
    long first, end;
} NAME(query);

/* All heads of all rows, row by row. */
INLINE int NAME(list_queries)(const attention_source *s, const queries *q, float *scores, long apart, float *out,
                              NAME(query) *list) {
    int count = 0;
    for (long r = 0; r < q->num_rows; r++) {
        const seen *row = &q->rows[r];
        for (long h = 0; h < q->num_heads; h++, count++)
            list[count] = (NAME(query)){
                s->q + row->row * s->q_stride + (q->head + h) * s->head_dim,
                scores + count * apart,
                out + (row->row * s->num_heads + q->head + h) * s->value_width,
                row->first,
                row->end,
            };
    }
    return count;
}

INLINE seen NAME(seen_by_any)(const NAME(query) *list, int count) {
    seen all = {0, list[0].first, list[0].end};
    for (int i = 1; i < count; i++) {
        if (list[i].first < all.first) all.first = list[i].first;
        if (list[i].end > all.end) all.end = list[i].end;
    }
    return all;
}

INLINE long NAME(larger)(long a, long b) { return a > b ? a : b; }
INLINE long NAME(smaller)(long a, long b) { return a < b ? a : b; }

/* From products q k to weights of a head that still want to be multiplied by what is returned. A NaN score or sink must
 * not be lost in a comparison: it makes the whole row NaN, as it should. */
static float NAME(weigh)(const attention_source *s, long head, float *scores, long length) {
    /* The largest by lanes, whose order shows in no bit. */
    f32x8 most = SPLAT8(-INFINITY);
    long i = 0;
    for (; i + 8 <= length; i += 8) {
        const f32x8 score = NAME(load8)(scores + i) * SPLAT8(s->scale);
        NAME(store8)(scores + i, score);
        const i32x8 is_more = LESS8(most, score) | (score != score);
        most = (f32x8)(((i32x8)score & is_more) | ((i32x8)most & ~is_more));
    }
    float largest = -INFINITY;
    for (int lane = 0; lane < 8; lane++) largest = most[lane] > largest || most[lane] != most[lane] ? most[lane] : largest;
    for (; i < length; i++) {
        const float score = scores[i] *= s->scale;
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

/* Scores of `count` keys, 4 or 1, for `nq` queries: what is loaded once serves all. `from` is the place of the first. */
#define DEFINE_ATTEND(type, element, LOADER, WIDEN)                                                                    \
    INLINE void NAME(dots_##type)(const NAME(query) *list, const element *k, long d, long from, const int nq,          \
                                  const int count) {                                                                   \
        W acc[QUERIES * 4];                                                                                            \
        _Pragma("GCC unroll 16") for (int a = 0; a < nq * count; a++) acc[a] = W_SPLAT(0.0f);                          \
        long i = 0;                                                                                                    \
        for (; i + W_LANES <= d; i += W_LANES) {                                                                       \
            W key[4];                                                                                                  \
            _Pragma("GCC unroll 4") for (int c = 0; c < count; c++) key[c] = LOADER(k + c * d + i);                    \
            _Pragma("GCC unroll 4") for (int q = 0; q < nq; q++) {                                                     \
                const W value = W_LOAD(list[q].q + i);                                                                 \
                _Pragma("GCC unroll 4") for (int c = 0; c < count; c++) acc[q * count + c] =                           \
                    W_FMA(value, key[c], acc[q * count + c]);                                                          \
            }                                                                                                          \
        }                                                                                                              \
        _Pragma("GCC unroll 4") for (int q = 0; q < nq; q++) {                                                         \
            float *to = list[q].scores + (from - list[q].first);                                                       \
            const W *of = acc + q * count;                                                                             \
            if (count == 4) {                                                                                          \
                const f32x4 four = W_SUM_OF_FOUR(of[0], of[1], of[2], of[3]);                                          \
                memcpy(to, &four, sizeof four);                                                                        \
            } else {                                                                                                   \
                to[0] = W_SUM(of[0]);                                                                                  \
            }                                                                                                          \
            for (long j = i; j < d; j++)                                                                               \
                for (int c = 0; c < count; c++) to[c] += list[q].q[j] * WIDEN(k[c * d + j]);                           \
        }                                                                                                              \
    }                                                                                                                  \
    INLINE void NAME(score_##type)(const NAME(query) *list, const element *k, long d, long from, long n, const int nq) { \
        long j = 0;                                                                                                    \
        for (; j + 4 <= n; j += 4) NAME(dots_##type)(list, k + j * d, d, from + j, nq, 4);                             \
        for (; j < n; j++) NAME(dots_##type)(list, k + j * d, d, from + j, nq, 1);                                     \
    }                                                                                                                  \
    /* `nv` vectors of `n` values, weighted and added to those of `nq` queries, from column `at` on. */                \
    INLINE void NAME(add_values_##type)(const NAME(query) *list, const element *values, long stride, long from, long n, \
                                        long at, const int nq, const int nv) {                                         \
        W acc[QUERIES * 4];                                                                                            \
        const float *p[QUERIES];                                                                                       \
        _Pragma("GCC unroll 4") for (int q = 0; q < nq; q++) p[q] = list[q].scores + (from - list[q].first);           \
        _Pragma("GCC unroll 16") for (int a = 0; a < nq * nv; a++) acc[a] =                                            \
            W_LOAD(list[a / nv].out + at + a % nv * W_LANES);                                                          \
        for (long j = 0; j < n; j++) {                                                                                 \
            W value[8];                                                                                                \
            _Pragma("GCC unroll 8") for (int v = 0; v < nv; v++) value[v] =                                            \
                LOADER(values + j * stride + at + W_LANES * v);                                                        \
            _Pragma("GCC unroll 4") for (int q = 0; q < nq; q++) {                                                     \
                const W share = W_SPLAT(p[q][j]);                                                                      \
                _Pragma("GCC unroll 8") for (int v = 0; v < nv; v++) acc[q * nv + v] =                                 \
                    W_FMA(share, value[v], acc[q * nv + v]);                                                           \
            }                                                                                                          \
        }                                                                                                              \
        _Pragma("GCC unroll 16") for (int a = 0; a < nq * nv; a++)                                                     \
            W_STORE(list[a / nv].out + at + a % nv * W_LANES, acc[a]);                                                 \
    }                                                                                                                  \
    INLINE void NAME(mix_##type)(const NAME(query) *list, const element *values, long stride, long width, long from,   \
                                 long n, const int nq) {                                                               \
        const int most = nq == QUERIES ? 4 : 8;                                                                        \
        long c = 0;                                                                                                    \
        for (; c + W_LANES * most <= width; c += W_LANES * most)                                                       \
            NAME(add_values_##type)(list, values, stride, from, n, c, nq, most);                                       \
        for (; c + W_LANES <= width; c += W_LANES) NAME(add_values_##type)(list, values, stride, from, n, c, nq, 1);   \
        for (; c < width; c++)                                                                                         \
            for (int q = 0; q < nq; q++)                                                                               \
                for (long j = 0; j < n; j++)                                                                           \
                    list[q].out[c] += list[q].scores[from + j - list[q].first] * WIDEN(values[j * stride + c]);        \
    }                                                                                                                  \
    /* Tokens `from` to `end` - 1 of the block that begins at `at`, for `nq` queries that see them all. */             \
    INLINE void NAME(part_##type)(const NAME(query) *list, const element *block, long at, long size, long width, long from, \
                                  long end, int is_score, const int nq) {                                              \
        if (from >= end) return;                                                                                       \
        const element *first = block + (from - at) * size;                                                             \
        if (is_score) NAME(score_##type)(list, first, size, from, end - from, nq);                                     \
        else NAME(mix_##type)(list, first, size, width, from, end - from, nq);                                         \
    }                                                                                                                  \
    /* One block for all queries: for QUERIES together what they all see, and before and after it for each what it does. */ \
    INLINE void NAME(block_##type)(const NAME(query) *list, int count, const element *block, long at, long n, long size, \
                                   long width, int is_score) {                                                         \
        int i = 0;                                                                                                     \
        for (; i + QUERIES <= count; i += QUERIES) {                                                                   \
            long from = at, end = at + n;                                                                              \
            for (int q = i; q < i + QUERIES; q++) {                                                                    \
                from = NAME(larger)(from, list[q].first);                                                              \
                end = NAME(smaller)(end, list[q].end);                                                                 \
            }                                                                                                          \
            if (from >= end) end = from = at + n;                                                                      \
            for (int q = i; q < i + QUERIES; q++)                                                                      \
                NAME(part_##type)(list + q, block, at, size, width, NAME(larger)(at, list[q].first),                   \
                                  NAME(smaller)(from, list[q].end), is_score, 1);                                      \
            NAME(part_##type)(list + i, block, at, size, width, from, end, is_score, QUERIES);                         \
            for (int q = i; q < i + QUERIES; q++)                                                                      \
                NAME(part_##type)(list + q, block, at, size, width, end, NAME(smaller)(at + n, list[q].end), is_score, 1); \
        }                                                                                                              \
        for (; i < count; i++)                                                                                         \
            NAME(part_##type)(list + i, block, at, size, width, NAME(larger)(at, list[i].first),                       \
                              NAME(smaller)(at + n, list[i].end), is_score, 1);                                        \
    }                                                                                                                  \
    /* All blocks of keys, or of values. */                                                                            \
    static void NAME(blocks_##type)(const attention_source *s, const queries *q, const NAME(query) *list, int count,   \
                                    int is_score) {                                                                    \
        const long size = is_score ? s->head_dim : s->value_stride, per_block = s->block_size * s->num_kv_heads * size; \
        const long kv_head = q->head / (s->num_heads / s->num_kv_heads);                                               \
        const element *of_head = (const element *)(is_score ? s->keys : s->values) + kv_head * s->block_size * size;   \
        const seen all = NAME(seen_by_any)(list, count);                                                               \
        for (long at = all.first, n; at < all.end; at += n) {                                                          \
            const element *block = of_head + q->blocks[at / s->block_size] * per_block + at % s->block_size * size;    \
            n = NAME(in_block)(at, s->block_size, all.end);                                                            \
            if (at + n < all.end)                                                                                      \
                NAME(prefetch)(of_head + q->blocks[(at + n) / s->block_size] * per_block,                              \
                               NAME(smaller)(s->block_size, all.end - at - n) * size * (long)sizeof(element));         \
            NAME(block_##type)(list, count, block, at, n, size, s->value_width, is_score);                             \
        }                                                                                                              \
    }

#define IDENTITY(x) (x)
DEFINE_ATTEND(f32, float, W_LOAD, IDENTITY)
DEFINE_ATTEND(bf16, uint16_t, W_LOAD_BF16, widen)
#undef IDENTITY
#undef DEFINE_ATTEND

static void NAME(attend)(const attention_source *s, const queries *q, float *scores, long apart, float *out) {
    NAME(query) list[MAX_ROWS_AT_ONCE * MAX_HEADS_AT_ONCE];
    float rate[MAX_ROWS_AT_ONCE * MAX_HEADS_AT_ONCE];
    const int count = NAME(list_queries)(s, q, scores, apart, out, list);
    if (s->cache_is_bf16) NAME(blocks_bf16)(s, q, list, count, 1);
    else NAME(blocks_f32)(s, q, list, count, 1);
    for (int i = 0; i < count; i++) {
        rate[i] = NAME(weigh)(s, q->head + i % q->num_heads, list[i].scores, list[i].end - list[i].first);
        memset(list[i].out, 0, sizeof(float) * s->value_width);
    }
    if (s->cache_is_bf16) NAME(blocks_bf16)(s, q, list, count, 0);
    else NAME(blocks_f32)(s, q, list, count, 0);
    for (int i = 0; i < count; i++)
        for (long c = 0; c < s->value_width; c++) list[i].out[c] *= rate[i];
}

#undef W
#undef W_LANES
#undef W_FMA
#undef W_SPLAT
#undef W_LOAD_BF16
#undef W_LOAD
#undef W_STORE
#undef W_SUM
#undef W_SUM_OF_FOUR
#undef QUERIES
