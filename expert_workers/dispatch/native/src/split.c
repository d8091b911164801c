/* Which worker computes which rows, as assign.py says, and what each is sent, as split.py says. */
#include "dispatcher.h"

#include <string.h>

static void *take(char **at, size_t bytes) {
    void *const here = *at;
    *at += (bytes + 63) & ~(size_t)63;
    return here;
}

static int make_room(split *s, const layer_rows *rows, long num_columns, long num_links) {
    const size_t columns = (size_t)num_columns + 2, pairs = (size_t)(rows->num_tokens * rows->num_places);
    const size_t tokens = (size_t)rows->num_tokens, links = (size_t)num_links;
    if (!grow(&s->work, 4 * 4 * columns + 4 * (pairs + tokens) + 8 * links + 7 * 64)) return 0;
    char *at = s->work.at;
    s->num_columns = num_columns;
    s->counts_C = take(&at, 4 * columns);
    s->starts_C = take(&at, 4 * columns);
    s->chosen_C = take(&at, 4 * columns);
    s->choices_C = take(&at, 4 * columns);
    s->order_P = take(&at, 4 * pairs);
    s->row_of_T = take(&at, 4 * tokens);
    s->spent = take(&at, 8 * links);
    return 1;
}

/* Sorts the pairs by column, within a column by place. The column after the last has those that are absent. */
static int sort_pairs(split *s, const layer_rows *rows) {
    const long num_pairs = rows->num_tokens * rows->num_places, num_columns = s->num_columns;
    memset(s->counts_C, 0, 4 * (size_t)(num_columns + 1));
    for (long p = 0; p < num_pairs; p++) {
        const int64_t column = rows->ids_TK[p];
        if (column < 0 || column > num_columns) return 0;
        s->counts_C[column]++;
    }
    uint32_t next = 0;
    for (long c = 0; c <= num_columns; c++) {
        s->starts_C[c] = next;
        next += s->counts_C[c];
    }
    for (long p = 0; p < num_pairs; p++) s->order_P[s->starts_C[rows->ids_TK[p]]++] = (int32_t)p;
    for (long c = 0; c <= num_columns; c++) s->starts_C[c] -= s->counts_C[c];
    return 1;
}

/* The largest first, of equals the lower column. Choices are few, and mostly in order. */
static void sort_choices(split *s, long num_choices) {
    for (long i = 1; i < num_choices; i++) {
        const uint32_t column = s->choices_C[i];
        long at = i;
        for (; at > 0 && s->counts_C[s->choices_C[at - 1]] < s->counts_C[column]; at--)
            s->choices_C[at] = s->choices_C[at - 1];
        s->choices_C[at] = column;
    }
}

static void choose(split *s, const layer_table *layer, const route_table *table, long num_choices) {
    for (long link = 0; link < table->num_links; link++) s->spent[link] = 0.0;
    for (long c = 0; c < s->num_columns; c++)
        if (s->chosen_C[c] != NO_LINK)
            s->spent[s->chosen_C[c]] += (s->counts_C[c] + s->fixed_rows) * table->links[s->chosen_C[c]].cost;
    sort_choices(s, num_choices);
    for (long i = 0; i < num_choices; i++) {
        const uint32_t column = s->choices_C[i];
        int32_t best = NO_LINK;
        double least = 0.0;
        for (uint32_t h = layer->first_C[column]; h < layer->first_C[column + 1]; h++) {
            const int32_t link = (int32_t)layer->holders[h];
            if (table->links[link].cost < 0) continue;
            const double done = s->spent[link] + (s->counts_C[column] + s->fixed_rows) * table->links[link].cost;
            /* Links are by rank: of equals the lower. */
            if (best == NO_LINK || done < least || (done == least && link < best)) {
                best = link;
                least = done;
            }
        }
        s->chosen_C[column] = best;
        s->spent[best] = least;
    }
}

int split_rows(split *s, const layer_rows *rows, const route_table *table, uint32_t too_many) {
    const layer_table *layer = &table->layers[rows->layer];
    if (!make_room(s, rows, layer->num_columns, table->num_links) || !sort_pairs(s, rows)) return 0;
    long num_choices = 0;
    for (long c = 0; c < layer->num_columns; c++) {
        s->chosen_C[c] = NO_LINK;
        if (s->counts_C[c] == 0) continue;
        int num_usable = 0;
        for (uint32_t h = layer->first_C[c]; h < layer->first_C[c + 1]; h++)
            if (table->links[layer->holders[h]].cost >= 0) {
                num_usable++;
                s->chosen_C[c] = (int32_t)layer->holders[h];
            }
        if (num_usable == 0) return 0;
        if (num_usable > 1) {
            if (too_many > 0 && s->counts_C[c] >= too_many) return 0;
            s->chosen_C[c] = NO_LINK;
            s->choices_C[num_choices++] = (uint32_t)c;
        }
    }
    if (num_choices > 0) choose(s, layer, table, num_choices);
    return 1;
}

/* The pairs of the columns that are the call's, in their order. */
static int gather_pairs(const split *s, call *c, long num_tokens) {
    c->num_segments = c->num_pairs = 0;
    for (long column = 0; column < s->num_columns; column++)
        if (s->chosen_C[column] == c->link) {
            c->num_segments++;
            c->num_pairs += s->counts_C[column];
        }
    const long most_rows = c->num_pairs < num_tokens ? c->num_pairs : num_tokens;
    const size_t segments = 4 * (size_t)c->num_segments, pairs = 4 * (size_t)c->num_pairs;
    if (!grow(&c->work, segments + pairs + 4 * (size_t)most_rows + 3 * 64)) return 0;
    char *at = c->work.at;
    c->columns_S = take(&at, segments);
    c->place_P = take(&at, pairs);
    c->token_R = take(&at, 4 * (size_t)most_rows);
    long segment = 0, pair = 0;
    for (long column = 0; column < s->num_columns; column++) {
        if (s->chosen_C[column] != c->link) continue;
        c->columns_S[segment++] = (uint32_t)column;
        memcpy(c->place_P + pair, s->order_P + s->starts_C[column], 4 * (size_t)s->counts_C[column]);
        pair += s->counts_C[column];
    }
    return 1;
}

/* Which rows are sent, each token's once. Returns whether pairs need an index into them; `row_of_T` then is it. */
static int choose_rows(const split *s, call *c, const layer_rows *rows) {
    const long num_tokens = rows->num_tokens, num_places = rows->num_places;
    c->num_rows = c->num_pairs;
    if (c->num_segments > 1) {
        memset(s->row_of_T, 0, 4 * (size_t)num_tokens);
        for (long p = 0; p < c->num_pairs; p++) s->row_of_T[c->place_P[p] / num_places] = 1;
        c->num_rows = 0;
        for (long t = 0; t < num_tokens; t++) c->num_rows += s->row_of_T[t];
    }
    if (c->num_rows == num_tokens) {
        c->token_R = NULL;
        for (long t = 0; t < num_tokens && c->num_segments > 1; t++) s->row_of_T[t] = (int32_t)t;
        return c->num_segments > 1;
    }
    if (c->num_rows == c->num_pairs) {
        for (long p = 0; p < c->num_pairs; p++) c->token_R[p] = (int32_t)(c->place_P[p] / num_places);
        return 0;
    }
    int32_t next = 0;
    for (long t = 0; t < num_tokens; t++)
        if (s->row_of_T[t]) {
            c->token_R[next] = (int32_t)t;
            s->row_of_T[t] = next++;
        }
    return 1;
}

static void write_rows(const call *c, const layer_rows *rows, int must_narrow, char *to) {
    const size_t width = (size_t)rows->width, element = rows->is_bf16 ? 2 : 4;
    for (long r = 0; r < c->num_rows; r++) {
        const size_t token = (size_t)(c->token_R == NULL ? r : c->token_R[r]);
        const char *from = (const char *)rows->x_TD + token * width * element;
        if (must_narrow) narrow((const float *)from, width, (uint16_t *)to + (size_t)r * width);
        else memcpy(to + (size_t)r * width * element, from, width * element);
    }
}

/* Segments by slot, the index, the weights; and the tag of the modules that are meant. */
static void write_tail(const dispatcher *d, const flight *f, call *c, int has_index, int is_sum) {
    const layer_table *layer = &d->table->layers[f->rows.layer];
    const uint64_t padding = frame_padding(c->rows_bytes, 8 * (uint64_t)c->num_segments);
    memset(c->tail, 0, padding);
    uint32_t *at = (uint32_t *)(c->tail + padding);
    c->tag = 0;
    for (long i = 0; i < c->num_segments; i++) {
        const uint32_t slot = layer->slots_C[c->columns_S[i]], count = d->split.counts_C[c->columns_S[i]];
        *at++ = slot;
        *at++ = count;
        c->tag += (slot + 1) * count;
    }
    for (long p = 0; p < c->num_pairs && has_index; p++)
        *at++ = (uint32_t)d->split.row_of_T[c->place_P[p] / f->rows.num_places];
    float *weight = (float *)at;
    for (long p = 0; p < c->num_pairs && is_sum; p++) *weight++ = f->rows.weights_TK[c->place_P[p]];
}

int cut_call(const dispatcher *d, flight *f, call *c) {
    const layer_rows *rows = &f->rows;
    if (!gather_pairs(&d->split, c, rows->num_tokens)) return 0;
    const int is_sum = !(d->is_exact && rows->num_places > 2), must_narrow = d->wire_is_bf16 && !rows->is_bf16;
    const int has_index = choose_rows(&d->split, c, rows), is_narrow = must_narrow || rows->is_bf16;
    c->rows_bytes = (size_t)c->num_rows * (size_t)rows->width * (is_narrow ? 2 : 4);
    c->tail_bytes = frame_padding(c->rows_bytes, 8 * (uint64_t)c->num_segments) + 8 * (size_t)c->num_segments;
    c->tail_bytes += 4 * (size_t)c->num_pairs * (size_t)(has_index + is_sum);
    const size_t at_rows = (sizeof(frame_header) + 8 + c->tail_bytes + 63) & ~(size_t)63;
    const int is_copied = must_narrow || c->token_R != NULL;
    const size_t num_out = (size_t)(is_sum ? c->num_rows : c->num_pairs), out_bytes = num_out * (size_t)rows->width * 4;
    if (out_bytes > MAX_ROWS_BYTES || at_rows + c->rows_bytes > d->table->links[c->link].most_bytes) return 0;
    if (!grow(&c->frame, at_rows + (is_copied ? c->rows_bytes : 0))) return 0;
    c->reply_bytes = sizeof(frame_header) + out_bytes;
    if (!grow(&c->reply, c->reply_bytes)) return 0;
    c->header = (frame_header *)c->frame.at;
    /* Segments begin at a multiple of 8 here too. */
    c->tail = c->frame.at + sizeof(frame_header) + 8 - frame_padding(c->rows_bytes, 8 * (uint64_t)c->num_segments);
    c->rows = is_copied ? c->frame.at + at_rows : rows->x_TD;
    if (is_copied) write_rows(c, rows, must_narrow, c->frame.at + at_rows);
    write_tail(d, f, c, has_index, is_sum);
    *c->header = (frame_header){
        .magic = {'E', 'M'},
        .version = FRAME_VERSION,
        .kind = FRAME_CALL,
        .dtype = is_narrow ? ROWS_BF16 : ROWS_F32,
        .form = is_sum ? FORM_SUM : FORM_PAIRS,
        .has_index = (uint8_t)has_index,
        .body_bytes = c->rows_bytes + c->tail_bytes,
        .call_id = c->id,
        .epoch = d->epoch,
        .layer = (uint32_t)d->table->layers[rows->layer].layer,
        .num_segments = (uint32_t)c->num_segments,
        .num_rows = (uint32_t)c->num_rows,
        .num_pairs = (uint32_t)c->num_pairs,
        .width = (uint32_t)rows->width,
    };
    c->num_sent = c->num_got = 0;
    return 1;
}
