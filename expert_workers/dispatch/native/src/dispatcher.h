/* A pool's dispatch without the interpreter: one layer's rows cut, framed, sent, waited for, checked and combined.
 * It does what the Python beside it does (dispatch.py, calls.py, assign.py, split.py, combine.py), to the bit, as long
 * as nothing is uncommon; then it hands over what is on its way. One thread, but where it is said.
 *
 * Shapes: T tokens, K experts per token, C columns of a layer's router, P (token, expert) pairs, R rows of a call,
 * N rows of a reply, D d_model. */
#ifndef EXPERTMESH_DISPATCHER_H
#define EXPERTMESH_DISPATCHER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include "frame.h"
#include "layer_experts.h"

/* Dispatches on their way; a further one is Python's. */
#define MAX_FLIGHTS 32
/* Of a dispatch's pairs, and of its rows' bytes: what is larger takes so long that the interpreter does not show. */
#define MAX_PAIRS ((long)1 << 20)
#define MAX_ROWS_BYTES ((size_t)1 << 20)
/* Times by a call's size: the bits of its number of pairs. */
#define NUM_SIZES 22
/* The last answers whose times are told; dispatches that are told of before Python has to take the records. */
#define MAX_SAMPLES 128
#define MAX_RECORDS 4096
/* Calls that are waited for at once: more would cost more than knowing when each is answered is worth. */
#define MAX_POLLED 32
#define NO_LINK (-1)

/* Grows and stays; its start is that of a cache line. */
typedef struct {
    char *at;
    size_t size;
} memory;

int grow(memory *m, size_t size);

/* The columns of one layer, or those of one slice of its experts. The holders of column c are places in the table's links,
 * from first_C[c] to first_C[c + 1], in the order of the routes. */
typedef struct {
    long layer, num_columns;
    int has_choice;
    uint32_t *slots_C, *first_C, *holders;
    uint64_t *loads_C; /* pairs answered since they were last taken; under the lock */
} layer_table;

/* `cost` of a row, relative to the others; less than 0: it gets none. */
typedef struct {
    uint32_t rank;
    int fd;
    size_t most_bytes; /* of a frame */
    double cost;
    /* Of what was answered since it was last taken; under the lock. */
    uint64_t num_calls, num_pairs;
    double compute_seconds;
} worker_link;

/* What current routes say, with links by rank: made anew whenever these change. */
typedef struct {
    long num_links, num_layers;
    worker_link *links;
    layer_table *layers;
} route_table;

/* One worker's part of a flight. Its frame is a header, rows and a tail; the rows are those of the layer where all are
 * sent as they are. Times are of CLOCK_MONOTONIC, in seconds. */
typedef struct {
    long link;
    uint64_t id;
    double started, deadline, arrived;
    long num_segments, num_pairs, num_rows;
    uint32_t tag;
    uint32_t *columns_S; /* the segments' columns */
    int32_t *place_P;    /* t K + k of each pair, in the order of the call */
    int32_t *token_R;    /* of each row; NULL: all tokens in order */
    const char *rows;
    char *tail;
    size_t rows_bytes, tail_bytes, num_sent;
    frame_header *header;
    size_t reply_bytes, num_got; /* of header and rows */
    memory work, frame, reply;
} call;

/* One dispatch on its way. The `layer` of its rows is the number of a table. */
typedef struct {
    uint64_t number;
    layer_rows rows;
    int64_t start_ns; /* time.time_ns() */
    double started, deadline;
    double hedge_at; /* less than 0: never */
    double combining, ended;
    long num_calls, room; /* calls there are, and there is room for */
    call *calls;
    uint32_t *counts_C;
    memory counts, sums;
} flight;

typedef struct {
    uint32_t rank;
    long size;
    double seconds;
} sample;

typedef struct {
    uint32_t rank;
    long num_pairs;
    double compute_seconds;
} told_call;

/* What a DispatchRecord is made of; its calls are the next so many. */
typedef struct {
    long layer, num_calls;
    int64_t start_ns;
    double seconds, combine_seconds;
    uint64_t bytes_sent, bytes_received;
} told_dispatch;

/* What the split of one dispatch is worked out in. */
typedef struct {
    long num_columns;
    uint32_t *counts_C, *starts_C;
    int32_t *chosen_C; /* a place in the table's links */
    int32_t *order_P, *row_of_T;
    uint32_t *choices_C;
    double *spent; /* by link */
    double fixed_rows; /* that a column costs beside its own */
    memory work;
} split;

typedef struct {
    layer_experts experts; /* itself, as steps without the interpreter see it */
    uint64_t epoch;
    int wire_is_bf16, is_exact, wants_records;
    long num_slices; /* tables of a layer */
    uint32_t split_rows; /* a column with a choice that has as many is Python's to cut; 0: none is */
    atomic_int is_stopped; /* any thread: nothing begins until there are routes again */
    route_table *table; /* its layers are tables: of each layer, or of each slice of its experts in turn */
    double valid_until; /* of costs and times */
    double timeouts[NUM_SIZES], hedges[NUM_SIZES];
    uint64_t next_call, next_flight;
    int has_unsent; /* a socket has not taken all: nothing may be sent through it */
    long first, num_flights; /* flights[first], and those after it in turn */
    flight flights[MAX_FLIGHTS];
    split split;
    memory zeros; /* what an absent expert says */
    sample samples[MAX_SAMPLES];
    uint64_t num_samples;
    told_dispatch *told;
    long num_told;
    told_call *told_calls;
    long num_told_calls, told_room;
    /* Any thread may take what was counted. */
    pthread_mutex_t lock;
    uint64_t num_dispatches;
    double dispatch_seconds;
} dispatcher;

static inline double monotonic(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* split.c. Each 0 where the dispatch is Python's. */
int split_rows(split *s, const layer_rows *rows, const route_table *table, uint32_t too_many);
int cut_call(const dispatcher *d, flight *f, call *c);

/* exchange.c */
void send_call(call *c, int fd);
/* Reads until the reply to the flight's call of this number is there, and what comes of later ones meanwhile; 0 where it is
 * Python's: late, closed, or not the one that was asked for. */
int receive_reply(const dispatcher *d, const flight *f, long number, double until);

/* combine.c */
int is_finite(const float *values, size_t count);
void narrow(const float *from, size_t count, uint16_t *to);
void add_sum(const flight *f, const call *c, int is_first, float *y_TD);
void combine_pairs(const flight *f, const float **row_P, float *y_TD);
void add(float *restrict to, const float *restrict from, size_t count);

/* dispatcher.c. Each 0 where it is Python's. `layer` of rows is the number of a table. */
int begin_flight(dispatcher *d, const layer_rows *rows);
/* Of the first of the flights, or the sum of the first ones: then all are finished or none is. */
int finish_flights(dispatcher *d, long num_flights, void *y_TD);
/* As layer_experts has them: all slices of a layer, or what could be begun of them. Python's where a step that failed has
 * left something on its way, for its answer would be taken for that of these rows. */
int begin_layer(void *self, const layer_rows *rows);
int finish_layer(void *self, void *y_TD);
void forget_flights(dispatcher *d);
int make_calls(dispatcher *d, long num_links);
void free_table(route_table *table);
void free_dispatcher(dispatcher *d);

#endif
