/* One dispatch from its beginning to its end, and what is kept from one to the next. */
#include "dispatcher.h"

#include <string.h>

int grow(memory *m, size_t size) {
    if (m->size >= size && m->at != NULL) return 1;
    void *larger = NULL;
    if (posix_memalign(&larger, 64, size + 64) != 0) return 0;
    free(m->at);
    m->at = larger;
    m->size = size;
    return 1;
}

static double by_size(const double *times, long size) {
    int bits = 0;
    for (; size > 0 && bits < NUM_SIZES - 1; size >>= 1) bits++;
    return times[bits];
}

/* By which its times are kept: its rows, and those that its columns cost beside. */
static long size_of(const dispatcher *d, const call *c) {
    return c->num_pairs + (long)(d->split.fixed_rows * (double)c->num_segments);
}

static int is_ours(const dispatcher *d, const layer_rows *rows) {
    return rows->layer >= 0 && rows->layer < d->table->num_layers && rows->num_tokens > 0 && rows->num_places > 0 &&
           rows->width > 0 && rows->num_tokens <= MAX_PAIRS / rows->num_places &&
           (size_t)rows->num_tokens * (size_t)rows->width <= MAX_ROWS_BYTES / 2;
}

/* A call for each worker that has any rows, by rank. */
static int cut_calls(dispatcher *d, flight *f) {
    const route_table *table = d->table;
    const size_t room = (size_t)table->num_links * 8;
    f->num_calls = 0;
    if (!grow(&f->counts, 4 * (size_t)d->split.num_columns + room)) return 0;
    f->counts_C = (uint32_t *)f->counts.at;
    memcpy(f->counts_C, d->split.counts_C, 4 * (size_t)d->split.num_columns);
    for (long link = 0; link < table->num_links; link++) {
        int has_any = 0;
        for (long c = 0; c < d->split.num_columns && !has_any; c++) has_any = d->split.chosen_C[c] == link;
        if (!has_any) continue;
        call *const c = &f->calls[f->num_calls];
        c->link = link;
        c->id = d->next_call++;
        if (!cut_call(d, f, c)) return 0;
        f->num_calls++;
    }
    return 1;
}

static void send_calls(dispatcher *d, flight *f) {
    long largest = 0;
    f->deadline = 0.0;
    for (long i = 0; i < f->num_calls; i++) {
        call *const c = &f->calls[i];
        c->started = monotonic();
        c->deadline = c->started + by_size(d->timeouts, size_of(d, c));
        if (i == 0 || c->deadline < f->deadline) f->deadline = c->deadline;
        if (size_of(d, c) > largest) largest = size_of(d, c);
        send_call(c, d->table->links[c->link].fd);
        if (c->num_sent != sizeof(frame_header) + c->rows_bytes + c->tail_bytes) d->has_unsent = 1;
    }
    const double hedge_after = by_size(d->hedges, largest);
    const int may_hedge = d->table->layers[f->rows.layer].has_choice && f->num_calls > 0 && hedge_after >= 0;
    f->hedge_at = may_hedge ? monotonic() + hedge_after : -1.0;
}

int begin_flight(dispatcher *d, const layer_rows *rows) {
    const double started = monotonic();
    if (atomic_load_explicit(&d->is_stopped, memory_order_acquire) || d->table == NULL || started >= d->valid_until ||
        d->has_unsent || d->num_flights == MAX_FLIGHTS || d->num_told + d->num_flights >= MAX_RECORDS || !is_ours(d, rows))
        return 0;
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    flight *const f = &d->flights[(d->first + d->num_flights) % MAX_FLIGHTS];
    f->rows = *rows;
    f->started = started;
    f->start_ns = (int64_t)wall.tv_sec * 1000000000 + wall.tv_nsec;
    if (!split_rows(&d->split, rows, d->table, d->split_rows) || !cut_calls(d, f)) return 0;
    f->number = ++d->next_flight;
    d->num_flights++;
    send_calls(d, f);
    return 1;
}

int begin_layer(void *self, const layer_rows *rows) {
    dispatcher *const d = self;
    if (d->num_flights > 0) return 1;
    layer_rows of_slice = *rows;
    for (long slice = 0; slice < d->num_slices; slice++) {
        of_slice.layer = rows->layer * d->num_slices + slice;
        if (!begin_flight(d, &of_slice)) break;
    }
    return d->num_flights == 0;
}

/* Takes the answers in by rank. 0: the flight is Python's, from its beginning. */
static int take_answers(dispatcher *d, flight *f, float *y_TD, const float **row_P, double *combining) {
    const double until = f->hedge_at >= 0 && f->hedge_at < f->deadline ? f->hedge_at : f->deadline;
    const size_t width = (size_t)f->rows.width;
    if (d->has_unsent) return 0;
    for (long i = 0; i < f->num_calls; i++) {
        call *const c = &f->calls[i];
        if (!receive_reply(d, f, i, until)) return 0;
        const double began = monotonic();
        const float *const y_ND = (const float *)(c->reply.at + sizeof(frame_header));
        if (!is_finite(y_ND, (c->reply_bytes - sizeof(frame_header)) / sizeof(float))) return 0;
        if (row_P == NULL) add_sum(f, c, i == 0, y_TD);
        else
            for (long p = 0; p < c->num_pairs; p++) row_P[c->place_P[p]] = y_ND + (size_t)p * width;
        *combining += monotonic() - began;
    }
    return 1;
}

static void tell(dispatcher *d, const flight *f, double seconds, double combining) {
    told_dispatch *const told = &d->told[d->num_told++];
    *told = (told_dispatch){d->table->layers[f->rows.layer].layer, f->num_calls, f->start_ns, seconds, combining, 0, 0};
    for (long i = 0; i < f->num_calls; i++) {
        const call *const c = &f->calls[i];
        told->bytes_sent += c->rows_bytes;
        told->bytes_received += c->reply_bytes - sizeof(frame_header);
        d->told_calls[d->num_told_calls++] = (told_call){
            d->table->links[c->link].rank, c->num_pairs, ((const frame_header *)c->reply.at)->seconds};
    }
}

static int make_room_to_tell(dispatcher *d, long num_calls) {
    if (!d->wants_records || d->num_told_calls + num_calls <= d->told_room) return 1;
    const long room = 2 * (d->told_room + num_calls);
    told_call *const larger = realloc(d->told_calls, sizeof *larger * (size_t)room);
    if (larger == NULL) return 0;
    d->told_calls = larger;
    d->told_room = room;
    return 1;
}

static void count(dispatcher *d, const flight *f, double seconds) {
    layer_table *const layer = &d->table->layers[f->rows.layer];
    pthread_mutex_lock(&d->lock);
    d->num_dispatches++;
    d->dispatch_seconds += seconds;
    for (long c = 0; c < layer->num_columns; c++) layer->loads_C[c] += f->counts_C[c];
    for (long i = 0; i < f->num_calls; i++) {
        const call *const c = &f->calls[i];
        worker_link *const link = &d->table->links[c->link];
        link->num_calls++;
        link->num_pairs += (uint64_t)c->num_pairs;
        link->compute_seconds += ((const frame_header *)c->reply.at)->seconds;
    }
    pthread_mutex_unlock(&d->lock);
    for (long i = 0; i < f->num_calls; i++) {
        const call *const c = &f->calls[i];
        d->samples[d->num_samples++ % MAX_SAMPLES] =
            (sample){d->table->links[c->link].rank, size_of(d, c), c->arrived - c->started};
    }
}

/* Where answers are put together: y itself, or where that is NULL memory beside it; and, for answers by pair, the row of
 * each, which is zeros for an absent one. */
static int make_sums(dispatcher *d, flight *f, float *y_TD, float **sums_TD, const float ***row_P) {
    const size_t width = (size_t)f->rows.width, num_sums = y_TD == NULL ? (size_t)f->rows.num_tokens * width : 0;
    const size_t num_pairs = (size_t)(f->rows.num_tokens * f->rows.num_places);
    const int is_by_pair = d->is_exact && f->rows.num_places > 2;
    *row_P = NULL;
    if (!grow(&f->sums, num_sums * sizeof(float) + 64 + (is_by_pair ? num_pairs * sizeof(float *) : 0))) return 0;
    *sums_TD = y_TD == NULL ? (float *)f->sums.at : y_TD;
    if (!is_by_pair) return 1;
    if (!grow(&d->zeros, width * sizeof(float))) return 0;
    memset(d->zeros.at, 0, width * sizeof(float));
    *row_P = (const float **)(f->sums.at + ((num_sums * sizeof(float) + 63) & ~(size_t)63));
    for (size_t p = 0; p < num_pairs; p++) (*row_P)[p] = (const float *)d->zeros.at;
    return 1;
}

/* What one flight's answers make, in y or where that is NULL beside it. */
static float *take_sums(dispatcher *d, flight *f, float *y_TD) {
    const size_t num_values = (size_t)f->rows.num_tokens * (size_t)f->rows.width;
    float *sums_TD;
    const float **row_P;
    f->combining = 0.0;
    if (!make_sums(d, f, y_TD, &sums_TD, &row_P)) return NULL;
    if (f->num_calls == 0) memset(sums_TD, 0, num_values * sizeof(float));
    if (!take_answers(d, f, sums_TD, row_P, &f->combining)) return NULL;
    const double answered = monotonic();
    if (row_P != NULL) combine_pairs(f, row_P, sums_TD);
    f->ended = monotonic();
    f->combining += f->ended - answered;
    return sums_TD;
}

static flight *flight_at(dispatcher *d, long place) { return &d->flights[(d->first + place) % MAX_FLIGHTS]; }

int finish_flights(dispatcher *d, long num_flights, void *y_TD) {
    if (num_flights < 1 || d->num_flights < num_flights) return 0;
    const layer_rows *const rows = &flight_at(d, 0)->rows;
    const size_t num_values = (size_t)rows->num_tokens * (size_t)rows->width;
    long num_calls = 0;
    for (long i = 0; i < num_flights; i++) num_calls += flight_at(d, i)->num_calls;
    if (!make_room_to_tell(d, num_calls)) return 0;
    float *const all_TD = take_sums(d, flight_at(d, 0), rows->is_bf16 ? NULL : y_TD);
    if (all_TD == NULL) return 0;
    for (long i = 1; i < num_flights; i++) {
        const float *const sums_TD = take_sums(d, flight_at(d, i), NULL);
        if (sums_TD == NULL) return 0;
        add(all_TD, sums_TD, num_values);
    }
    if (rows->is_bf16) narrow(all_TD, num_values, y_TD);
    for (long i = 0; i < num_flights; i++) {
        const flight *const f = flight_at(d, i);
        count(d, f, f->ended - f->started);
        if (d->wants_records) tell(d, f, f->ended - f->started, f->combining);
    }
    d->first = (d->first + num_flights) % MAX_FLIGHTS;
    d->num_flights -= num_flights;
    return 1;
}

int finish_layer(void *self, void *y_TD) {
    dispatcher *const d = self;
    return d->num_flights != d->num_slices || !finish_flights(d, d->num_slices, y_TD);
}

/* For when they have been handed over. */
void forget_flights(dispatcher *d) { d->num_flights = d->has_unsent = 0; }

void free_table(route_table *table) {
    if (table == NULL) return;
    for (long layer = 0; layer < table->num_layers; layer++) {
        free(table->layers[layer].slots_C);
        free(table->layers[layer].first_C);
        free(table->layers[layer].holders);
        free(table->layers[layer].loads_C);
    }
    free(table->layers);
    free(table->links);
    free(table);
}

/* Room for a call with each link, in every flight. None are on their way. */
int make_calls(dispatcher *d, long num_links) {
    for (long i = 0; i < MAX_FLIGHTS; i++) {
        flight *const f = &d->flights[i];
        if (f->room >= num_links) continue;
        call *const larger = realloc(f->calls, sizeof *larger * (size_t)num_links);
        if (larger == NULL) return 0;
        memset(larger + f->room, 0, sizeof *larger * (size_t)(num_links - f->room));
        f->calls = larger;
        f->room = num_links;
    }
    return 1;
}

void free_dispatcher(dispatcher *d) {
    for (long i = 0; i < MAX_FLIGHTS; i++) {
        flight *const f = &d->flights[i];
        for (long c = 0; c < f->room; c++) {
            free(f->calls[c].work.at);
            free(f->calls[c].frame.at);
            free(f->calls[c].reply.at);
        }
        free(f->calls);
        free(f->counts.at);
        free(f->sums.at);
    }
    free_table(d->table);
    free(d->split.work.at);
    free(d->zeros.at);
    free(d->told);
    free(d->told_calls);
    pthread_mutex_destroy(&d->lock);
    free(d);
}
