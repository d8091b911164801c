/* A worker's side of a stream without Python: reads a call, computes, answers, until something comes that is not
 * for it. What a frame is, expert_workers/transports/frame.py says; what is not plainly a good call is left to it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "api.h"
#include "frame.h"

#define SERVER "expertmesh.server"
#define MAX_BODY_BYTES ((size_t)1 << 30)
/* A call of more is Python's, and so is one of a layer beyond. */
#define MAX_SEGMENTS 1024
#define MAX_LAYERS 65536
/* Slots up to which looking at one after the other is quicker than halving. */
#define FEW_SLOTS 8
/* Clients that are answered at the same time. */
#define MAX_EPOCHS 64

/* Why the loop gave back the stream. */
enum status {
    STATUS_FRAME = 0, /* what comes next is for Python: a frame that is not a plain call, or one too large */
    STATUS_TICK = 1,  /* nothing came for a tick of the socket */
    STATUS_END = 2,   /* the peer closed */
    STATUS_ERROR = 3, /* errno */
    STATUS_STALLED = 4, /* the peer does not read its answers */
};

/* A layer's modules, and the slot of each place in the table, ascending. Without modules the table is NULL. */
typedef struct {
    const expert_table *table;
    uint32_t *slots;
    long num_slots;
} served_layer;

/* Grows and stays. */
typedef struct {
    char *at;
    size_t size;
} memory;

typedef struct {
    const kernels_api *api;
    atomic_long num_pairs;
    /* One call at a time, of all clients together: they share the scratch. All below is touched with the lock held only. */
    pthread_mutex_t lock;
    memory scratch;
    uint64_t epochs[MAX_EPOCHS];
    long num_epochs;
    kernel_set kernels;
    int num_threads;
    long num_layers;
    served_layer *layers;
} server;

typedef struct {
    const float *x;
    const void *rows;
    const uint32_t *segments;
    const int32_t *index;
    const float *weights;
} call_body;

static int grow(memory *m, size_t size) {
    if (m->size >= size) return 1;
    void *larger = NULL;
    if (posix_memalign(&larger, 64, size) != 0) return 0;
    free(m->at);
    m->at = larger;
    m->size = size;
    return 1;
}

static size_t element_size(const frame_header *h) { return h->dtype == ROWS_BF16 ? 2 : 4; }

/* Where the parts of a body are; 0 when the sizes in the header do not fit together. */
static int find_parts(const frame_header *h, const char *body, call_body *parts) {
    const size_t rows = (size_t)h->num_rows * h->width * element_size(h), segments = (size_t)h->num_segments * 8;
    const size_t at_segments = rows + frame_padding(rows, segments);
    const size_t at_index = at_segments + segments;
    const size_t at_weights = at_index + (h->has_index ? (size_t)h->num_pairs * 4 : 0);
    if (h->body_bytes != at_weights + (h->form == FORM_SUM ? (size_t)h->num_pairs * 4 : 0)) return 0;
    parts->rows = body;
    parts->segments = (const uint32_t *)(body + at_segments);
    parts->index = h->has_index ? (const int32_t *)(body + at_index) : NULL;
    parts->weights = h->form == FORM_SUM ? (const float *)(body + at_weights) : NULL;
    return 1;
}

/* Whether this is a call that a server may answer as it is, whatever it holds. */
static int is_plain(const frame_header *h) {
    return memcmp(h->magic, "EM", 2) == 0 && h->version == FRAME_VERSION && h->kind == FRAME_CALL && h->dtype <= ROWS_BF16 &&
           h->form <= FORM_SUM && h->has_index <= 1 && h->num_segments > 0 && h->num_segments <= MAX_SEGMENTS &&
           h->num_rows > 0;
}

static int is_answered(const server *s, uint64_t epoch) {
    for (long i = 0; i < s->num_epochs; i++)
        if (s->epochs[i] == epoch) return 1;
    return 0;
}

/* Whether the server holds the layer and answers the client. */
static int is_served(const server *s, const frame_header *h) {
    return is_answered(s, h->epoch) && h->layer < s->num_layers && s->layers[h->layer].table != NULL &&
           h->width == (uint32_t)s->layers[h->layer].table->width;
}

/* The place of a slot, or -1. */
static long place_of(const served_layer *layer, uint32_t slot) {
    long low = 0, high = layer->num_slots;
    while (high - low > FEW_SLOTS) {
        const long middle = low + (high - low) / 2;
        if (layer->slots[middle] <= slot) low = middle;
        else high = middle;
    }
    for (; low < high; low++)
        if (layer->slots[low] == slot) return low;
    return -1;
}

/* The segments by place, and the tag of what is there. */
static int read_places(const served_layer *layer, const frame_header *h, const call_body *parts, segment *segments,
                       uint32_t *tag) {
    uint64_t sum = 0;
    *tag = 0;
    for (uint32_t i = 0; i < h->num_segments; i++) {
        const uint32_t count = parts->segments[2 * i + 1];
        const long place = place_of(layer, parts->segments[2 * i]);
        if (place < 0 || count == 0) return 0;
        segments[i] = (segment){place, count};
        sum += count;
        *tag += (layer->slots[place] + 1) * count;
    }
    if (sum != h->num_pairs || (parts->index == NULL && h->num_pairs != h->num_rows)) return 0;
    /* Each expert meets a row at most once: no client gets more computed than it has sent. */
    if (sum > (uint64_t)h->num_rows * h->num_segments) return 0;
    for (uint32_t p = 0; parts->index != NULL && p < h->num_pairs; p++)
        if (parts->index[p] < 0 || (uint32_t)parts->index[p] >= h->num_rows) return 0;
    return 1;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void widen_rows(const uint16_t *from, size_t count, float *to) {
    for (size_t i = 0; i < count; i++) {
        const uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(to + i, &bits, sizeof bits);
    }
}

/* Computes into a reply, header and rows, and returns its size. 0: it is not a call to be computed here. */
static size_t compute(server *s, const frame_header *h, const char *body, memory *reply) {
    if (!is_served(s, h)) return 0;
    const served_layer *layer = &s->layers[h->layer];
    call_body parts;
    segment segments[h->num_segments];
    uint32_t tag;
    if (!find_parts(h, body, &parts) || !read_places(layer, h, &parts, segments, &tag)) return 0;
    const size_t num_out = h->form == FORM_SUM ? h->num_rows : h->num_pairs;
    if (num_out * h->width * 4 > MAX_BODY_BYTES) return 0;
    const size_t size = sizeof(frame_header) + num_out * h->width * 4;
    const size_t widened = h->dtype == ROWS_BF16 ? (size_t)h->num_rows * h->width * 4 : 0;
    const size_t at_work = (widened + 63) & ~(size_t)63;
    const expert_table *table = layer->table;
    const size_t work = s->api->scratch_bytes(table, h->num_pairs);
    if (!grow(reply, size) || !grow(&s->scratch, at_work + work)) return 0;
    const double started = now();
    float *const rows = (float *)s->scratch.at;
    if (widened) widen_rows(parts.rows, (size_t)h->num_rows * h->width, rows);
    experts_op op = {
        .kernels = s->kernels,
        .table = table,
        .x = widened ? rows : parts.rows,
        .num_rows = h->num_rows,
        .num_pairs = h->num_pairs,
        .num_segments = h->num_segments,
        .segments = segments,
        .row_P = parts.index,
        .combination = h->form == FORM_SUM ? COMBINE_ROWS : COMBINE_NOT,
        .weight_P = parts.weights,
        .out = (float *)(reply->at + sizeof(frame_header)),
        .scratch = s->scratch.at + at_work,
    };
    s->api->run_experts(&op, s->num_threads);
    atomic_fetch_add(&s->num_pairs, h->num_pairs);
    *(frame_header *)reply->at = (frame_header){
        .magic = {'E', 'M'},
        .version = FRAME_VERSION,
        .kind = FRAME_REPLY,
        .body_bytes = num_out * h->width * 4,
        .call_id = h->call_id,
        .epoch = h->epoch,
        .layer = h->layer,
        .num_rows = (uint32_t)num_out,
        .num_pairs = tag,
        .width = h->width,
        .seconds = now() - started,
    };
    return size;
}

/* STATUS_FRAME when all is sent. */
static enum status send_all(int fd, const char *from, size_t size, int max_ticks) {
    for (int ticks = 0; size > 0;) {
        const ssize_t sent = send(fd, from, size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) continue;
            if (errno != EAGAIN && errno != EWOULDBLOCK) return STATUS_ERROR;
            if (++ticks >= max_ticks) return STATUS_STALLED;
            continue;
        }
        ticks = 0;
        from += sent;
        size -= (size_t)sent;
    }
    return STATUS_FRAME;
}

typedef struct {
    int fd, tick_ms, max_ticks;
    char *buffer;
    size_t size, start, end;
    memory reply;
} conversation;

/* One read; STATUS_FRAME when something came. Asleep in it, a thread would be woken by each answer that the peer takes
 * from a Unix socket as well. */
static enum status fill(conversation *c) {
    if (c->start == c->end) c->start = c->end = 0;
    struct pollfd one = {.fd = c->fd, .events = POLLIN};
    for (;;) {
        const int num_ready = poll(&one, 1, c->tick_ms);
        if (num_ready == 0) return STATUS_TICK;
        const ssize_t got = num_ready < 0 ? -1 : recv(c->fd, c->buffer + c->end, c->size - c->end, MSG_DONTWAIT);
        if (got > 0) {
            c->end += (size_t)got;
            return STATUS_FRAME;
        }
        if (got == 0) return STATUS_END;
        if (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK) return STATUS_ERROR;
    }
}

/* Answers calls for as long as they are plain and fit the buffer. */
static enum status serve(server *s, conversation *c) {
    for (;;) {
        const size_t have = c->end - c->start;
        frame_header h;
        if (have >= sizeof h) {
            memcpy(&h, c->buffer + c->start, sizeof h);
            const size_t frame = sizeof h + h.body_bytes;
            if (!is_plain(&h) || h.body_bytes > c->size - sizeof h) return STATUS_FRAME;
            if (have >= frame && c->start % sizeof(float) != 0) {
                /* After a frame of odd length, which Python has answered. */
                memmove(c->buffer, c->buffer + c->start, have);
                c->start = 0;
                c->end = have;
            }
            if (have >= frame) {
                pthread_mutex_lock(&s->lock);
                const size_t reply = compute(s, &h, c->buffer + c->start + sizeof h, &c->reply);
                pthread_mutex_unlock(&s->lock);
                if (reply == 0) return STATUS_FRAME;
                c->start += frame;
                const enum status status = send_all(c->fd, c->reply.at, reply, c->max_ticks);
                if (status != STATUS_FRAME) return status;
                continue;
            }
            if (c->start + frame > c->size) {
                memmove(c->buffer, c->buffer + c->start, have);
                c->start = 0;
                c->end = have;
            }
        } else if (have > 0 && c->size - c->start < sizeof h) {
            memmove(c->buffer, c->buffer + c->start, have);
            c->start = 0;
            c->end = have;
        }
        const enum status status = fill(c);
        if (status != STATUS_FRAME) return status;
    }
}

static void free_server(PyObject *capsule) {
    server *s = PyCapsule_GetPointer(capsule, SERVER);
    pthread_mutex_destroy(&s->lock);
    for (long layer = 0; layer < s->num_layers; layer++) free(s->layers[layer].slots);
    free(s->layers);
    free(s->scratch.at);
    free(s);
}

static PyObject *py_server(PyObject *self, PyObject *none) {
    (void)self;
    (void)none;
    const kernels_api *api = PyCapsule_Import(KERNELS_API, 0);
    if (api == NULL) return NULL;
    server *s = calloc(1, sizeof *s);
    if (s == NULL) return PyErr_NoMemory();
    s->api = api;
    pthread_mutex_init(&s->lock, NULL);
    PyObject *capsule = PyCapsule_New(s, SERVER, free_server);
    if (capsule == NULL) {
        pthread_mutex_destroy(&s->lock);
        free(s);
    }
    return capsule;
}

/* The slots of a table's places, which must ascend. NULL, with an error set, for what is no such thing. */
static uint32_t *read_slots(PyObject *tuple, const expert_table *table) {
    const Py_ssize_t num_slots = PyTuple_GET_SIZE(tuple);
    uint32_t *slots = malloc(sizeof *slots * (size_t)(num_slots + 1));
    if (slots == NULL) return (uint32_t *)PyErr_NoMemory();
    int is_good = num_slots == (table == NULL ? 0 : table->num_experts);
    for (Py_ssize_t i = 0; i < num_slots && is_good; i++) {
        const unsigned long slot = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(tuple, i));
        is_good = !PyErr_Occurred() && slot <= UINT32_MAX && (i == 0 || slot > slots[i - 1]);
        slots[i] = (uint32_t)slot;
    }
    if (is_good) return slots;
    free(slots);
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "slots are not those of a table, in ascending order");
    return NULL;
}

/* With the lock held. Returns what the layer was, or, where there is no memory, what it should have been. */
static served_layer put_layer(server *s, long layer, served_layer next) {
    if (layer >= s->num_layers) {
        served_layer *layers = realloc(s->layers, sizeof *layers * (size_t)(layer + 1));
        if (layers == NULL) return next;
        memset(layers + s->num_layers, 0, sizeof *layers * (size_t)(layer + 1 - s->num_layers));
        s->layers = layers;
        s->num_layers = layer + 1;
    }
    const served_layer before = s->layers[layer];
    s->layers[layer] = next;
    return before;
}

/* (server, layer, kernels, number of threads, an experts capsule or None, the slots of its places). The caller
 * keeps the table until the layer is exchanged again. */
static PyObject *py_exchange(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *capsule, *kernels, *handle, *tuple;
    long layer;
    int num_threads;
    if (!PyArg_ParseTuple(args, "OlOiOO!", &capsule, &layer, &kernels, &num_threads, &handle, &PyTuple_Type, &tuple))
        return NULL;
    server *s = PyCapsule_GetPointer(capsule, SERVER);
    const kernel_set *set = s == NULL ? NULL : PyCapsule_GetPointer(kernels, KERNELS_CAPSULE);
    if (set == NULL) return NULL;
    served_layer next = {0};
    if (handle != Py_None && (next.table = PyCapsule_GetPointer(handle, EXPERTS_CAPSULE)) == NULL) return NULL;
    if (layer < 0 || layer >= MAX_LAYERS) return PyErr_Format(PyExc_ValueError, "%ld is no layer", layer);
    next.num_slots = (long)PyTuple_GET_SIZE(tuple);
    if ((next.slots = read_slots(tuple, next.table)) == NULL) return NULL;
    uint32_t *const mine = next.slots;
    served_layer before;
    Py_BEGIN_ALLOW_THREADS;
    pthread_mutex_lock(&s->lock);
    before = put_layer(s, layer, next);
    s->kernels = *set;
    s->num_threads = num_threads;
    pthread_mutex_unlock(&s->lock);
    Py_END_ALLOW_THREADS;
    const int has_failed = before.slots == mine;
    free(before.slots);
    if (has_failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* (server, the epochs whose calls are answered from now on) */
static PyObject *py_answer(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *capsule, *tuple;
    if (!PyArg_ParseTuple(args, "OO!", &capsule, &PyTuple_Type, &tuple)) return NULL;
    server *s = PyCapsule_GetPointer(capsule, SERVER);
    if (s == NULL) return NULL;
    const Py_ssize_t num_epochs = PyTuple_GET_SIZE(tuple);
    if (num_epochs > MAX_EPOCHS) return PyErr_Format(PyExc_ValueError, "%zd epochs at the same time", num_epochs);
    uint64_t epochs[MAX_EPOCHS];
    for (Py_ssize_t i = 0; i < num_epochs; i++) {
        epochs[i] = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(tuple, i));
        if (PyErr_Occurred()) return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    pthread_mutex_lock(&s->lock);
    memcpy(s->epochs, epochs, sizeof *epochs * (size_t)num_epochs);
    s->num_epochs = (long)num_epochs;
    pthread_mutex_unlock(&s->lock);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *py_serve(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *capsule;
    Py_buffer buffer;
    conversation c = {0};
    Py_ssize_t start, end;
    if (!PyArg_ParseTuple(args, "Oiw*nnii", &capsule, &c.fd, &buffer, &start, &end, &c.tick_ms, &c.max_ticks)) return NULL;
    server *s = PyCapsule_GetPointer(capsule, SERVER);
    if (s == NULL || start < 0 || end < start || end > buffer.len) {
        PyBuffer_Release(&buffer);
        if (s != NULL) PyErr_SetString(PyExc_ValueError, "start and end are not within the buffer");
        return NULL;
    }
    c.buffer = buffer.buf;
    c.size = (size_t)buffer.len;
    c.start = (size_t)start;
    c.end = (size_t)end;
    enum status status;
    int error = 0;
    Py_BEGIN_ALLOW_THREADS;
    status = serve(s, &c);
    error = errno;
    Py_END_ALLOW_THREADS;
    free(c.reply.at);
    PyBuffer_Release(&buffer);
    return Py_BuildValue("inni", (int)status, (Py_ssize_t)c.start, (Py_ssize_t)c.end, status == STATUS_ERROR ? error : 0);
}

static PyObject *py_num_pairs(PyObject *self, PyObject *capsule) {
    (void)self;
    server *s = PyCapsule_GetPointer(capsule, SERVER);
    return s == NULL ? NULL : PyLong_FromLong(atomic_load(&s->num_pairs));
}

static PyMethodDef methods[] = {
    {"server", py_server, METH_NOARGS, NULL},
    {"exchange", py_exchange, METH_VARARGS, NULL},
    {"answer", py_answer, METH_VARARGS, NULL},
    {"serve", py_serve, METH_VARARGS, NULL},
    {"num_pairs", py_num_pairs, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_serve", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__serve(void) { return PyModule_Create(&module); }
