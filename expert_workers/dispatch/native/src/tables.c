/* Routes from Python; dispatches, times and counts to it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "tables.h"

#include <sys/socket.h>

/* Of a socket's memory: so much of it a frame may take, so that most are taken at once. */
#define FRAME_SHARE 4

static int has_size(PyObject *item, Py_ssize_t size) {
    if (PyTuple_Check(item) && PyTuple_GET_SIZE(item) == size) return 1;
    PyErr_Format(PyExc_ValueError, "a link or a layer has not %zd parts", size);
    return 0;
}

/* TCP's memory grows with its use. */
static size_t most_bytes(int fd) {
    int family = 0, size = 0;
    socklen_t length = sizeof family;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &length) != 0 || family != AF_UNIX) return MAX_ROWS_BYTES;
    length = sizeof size;
    if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, &length) != 0) return 0;
    return (size_t)size / FRAME_SHARE;
}

static int read_link(PyObject *item, worker_link *link) {
    if (!has_size(item, 2)) return 0;
    link->rank = (uint32_t)PyLong_AsUnsignedLong(PyTuple_GET_ITEM(item, 0));
    link->fd = (int)PyLong_AsLong(PyTuple_GET_ITEM(item, 1));
    if (PyErr_Occurred()) return 0;
    link->most_bytes = most_bytes(link->fd);
    link->cost = -1.0;
    return 1;
}

static int read_number(PyObject *item, unsigned long limit, uint32_t *number) {
    const unsigned long read = PyLong_AsUnsignedLong(item);
    if (PyErr_Occurred()) return 0;
    if (read >= limit) PyErr_Format(PyExc_ValueError, "%lu is not below %lu", read, limit);
    *number = (uint32_t)read;
    return read < limit;
}

static int read_holders(PyObject *holders, layer_table *layer, long num_links) {
    uint32_t next = 0;
    for (long c = 0; c < layer->num_columns; c++) {
        PyObject *const links = PyTuple_GET_ITEM(holders, c);
        layer->first_C[c] = next;
        if (PyTuple_GET_SIZE(links) > 1) layer->has_choice = 1;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(links); i++)
            if (!read_number(PyTuple_GET_ITEM(links, i), (unsigned long)num_links, &layer->holders[next++])) return 0;
    }
    layer->first_C[layer->num_columns] = next;
    return 1;
}

static int read_layer(PyObject *item, layer_table *layer, long num_links) {
    if (!has_size(item, 3)) return 0;
    PyObject *const slots = PyTuple_GET_ITEM(item, 1), *const holders = PyTuple_GET_ITEM(item, 2);
    layer->layer = PyLong_AsLong(PyTuple_GET_ITEM(item, 0));
    if (PyErr_Occurred()) return 0;
    Py_ssize_t num_holders = 0;
    int is_good = PyTuple_Check(slots) && PyTuple_Check(holders) && PyTuple_GET_SIZE(slots) == PyTuple_GET_SIZE(holders);
    for (Py_ssize_t c = 0; is_good && c < PyTuple_GET_SIZE(holders); c++) {
        is_good = PyTuple_Check(PyTuple_GET_ITEM(holders, c));
        if (is_good) num_holders += PyTuple_GET_SIZE(PyTuple_GET_ITEM(holders, c));
    }
    if (!is_good) {
        PyErr_SetString(PyExc_ValueError, "a layer has not holders for each slot");
        return 0;
    }
    layer->num_columns = (long)PyTuple_GET_SIZE(slots);
    const size_t columns = (size_t)layer->num_columns + 1;
    layer->slots_C = calloc(columns, 4);
    layer->first_C = calloc(columns, 4);
    layer->loads_C = calloc(columns, 8);
    layer->holders = calloc((size_t)num_holders + 1, 4);
    if (layer->slots_C == NULL || layer->first_C == NULL || layer->loads_C == NULL || layer->holders == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    for (long c = 0; c < layer->num_columns; c++)
        if (!read_number(PyTuple_GET_ITEM(slots, c), (unsigned long)UINT32_MAX + 1, &layer->slots_C[c])) return 0;
    return read_holders(holders, layer, num_links);
}

route_table *read_table(PyObject *links, PyObject *layers) {
    route_table *const table = calloc(1, sizeof *table);
    if (table == NULL) return (route_table *)PyErr_NoMemory();
    const Py_ssize_t num_links = PyTuple_GET_SIZE(links), num_layers = PyTuple_GET_SIZE(layers);
    table->links = calloc((size_t)num_links + 1, sizeof *table->links);
    table->layers = calloc((size_t)num_layers + 1, sizeof *table->layers);
    int is_good = table->links != NULL && table->layers != NULL;
    if (!is_good) PyErr_NoMemory();
    for (; is_good && table->num_links < num_links; table->num_links++)
        is_good = read_link(PyTuple_GET_ITEM(links, table->num_links), &table->links[table->num_links]);
    while (is_good && table->num_layers < num_layers) {
        layer_table *const layer = &table->layers[table->num_layers];
        is_good = read_layer(PyTuple_GET_ITEM(layers, table->num_layers++), layer, (long)num_links);
    }
    if (is_good) return table;
    free_table(table);
    return NULL;
}

/* As much of a frame as the socket has not taken. */
static PyObject *unsent(const call *c) {
    const struct {
        const void *at;
        size_t size;
    } parts[3] = {{c->header, sizeof(frame_header)}, {c->rows, c->rows_bytes}, {c->tail, c->tail_bytes}};
    size_t skipped = c->num_sent, total = 0;
    for (int i = 0; i < 3; i++) total += parts[i].size;
    PyObject *const bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(total - skipped));
    if (bytes == NULL) return NULL;
    char *to = PyBytes_AS_STRING(bytes);
    for (int i = 0; i < 3; i++) {
        const size_t skip = skipped < parts[i].size ? skipped : parts[i].size;
        memcpy(to, (const char *)parts[i].at + skip, parts[i].size - skip);
        to += parts[i].size - skip;
        skipped -= skip;
    }
    return bytes;
}

/* (rank, id, when it began, deadline, columns, bytes of the reply's rows, what is unsent, what of the reply is read, when all
 * of it was, or 0) */
static PyObject *show_call(const dispatcher *d, const flight *f, const call *c) {
    PyObject *const columns = PyTuple_New(c->num_segments);
    for (long i = 0; columns != NULL && i < c->num_segments; i++) {
        const unsigned long column = c->columns_S[i];
        PyObject *const segment = Py_BuildValue("kk", column, (unsigned long)f->counts_C[column]);
        if (segment == NULL) {
            Py_DECREF(columns);
            return NULL;
        }
        PyTuple_SET_ITEM(columns, i, segment);
    }
    if (columns == NULL) return NULL;
    PyObject *const rest = unsent(c);
    if (rest == NULL) {
        Py_DECREF(columns);
        return NULL;
    }
    return Py_BuildValue("kKddNnNy#d", (unsigned long)d->table->links[c->link].rank, (unsigned long long)c->id, c->started,
                         c->deadline, columns, (Py_ssize_t)(c->reply_bytes - sizeof(frame_header)), rest, c->reply.at,
                         (Py_ssize_t)c->num_got, c->num_got == c->reply_bytes ? c->arrived : 0.0);
}

/* (number, start in nanoseconds, start, when to hedge or None, calls) */
PyObject *show_flight(const dispatcher *d, const flight *f) {
    PyObject *const calls = PyList_New(f->num_calls);
    for (long i = 0; calls != NULL && i < f->num_calls; i++) {
        PyObject *const each = show_call(d, f, &f->calls[i]);
        if (each == NULL) {
            Py_DECREF(calls);
            return NULL;
        }
        PyList_SET_ITEM(calls, i, each);
    }
    if (calls == NULL) return NULL;
    PyObject *const hedge_at = f->hedge_at < 0 ? Py_NewRef(Py_None) : PyFloat_FromDouble(f->hedge_at);
    if (hedge_at == NULL) {
        Py_DECREF(calls);
        return NULL;
    }
    return Py_BuildValue("KLdNN", (unsigned long long)f->number, (long long)f->start_ns, f->started, hedge_at, calls);
}

/* Appends what `item` is, which may be NULL. */
static int append(PyObject *list, PyObject *item) {
    const int is_good = item != NULL && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    return is_good;
}

/* (rank, pairs, seconds) of the last answers since they were last taken. */
PyObject *take_samples(dispatcher *d) {
    const uint64_t num = d->num_samples < MAX_SAMPLES ? d->num_samples : MAX_SAMPLES;
    PyObject *const samples = PyList_New(0);
    int is_good = samples != NULL;
    for (uint64_t i = d->num_samples - num; is_good && i < d->num_samples; i++) {
        const sample *const s = &d->samples[i % MAX_SAMPLES];
        is_good = append(samples, Py_BuildValue("kld", (unsigned long)s->rank, s->size, s->seconds));
    }
    if (is_good) {
        d->num_samples = 0;
        return samples;
    }
    Py_XDECREF(samples);
    return NULL;
}

/* What was counted of a module. */
typedef struct {
    long layer;
    uint32_t slot;
    uint64_t num_pairs;
} module_load;

/* What was counted, taken out of a table; its links are as many as the table's. */
typedef struct {
    long num_links, num_loads;
    worker_link *links;
    module_load *loads;
} counted;

static long count_loads(const route_table *table) {
    long num_loads = 0;
    for (long l = 0; l < table->num_layers; l++)
        for (long c = 0; c < table->layers[l].num_columns; c++) num_loads += table->layers[l].loads_C[c] > 0;
    return num_loads;
}

/* Under the lock. 0 where there is no memory; then nothing is taken. */
static int take_table(route_table *table, counted *to) {
    to->links = malloc(sizeof *to->links * ((size_t)table->num_links + 1));
    to->loads = malloc(sizeof *to->loads * ((size_t)count_loads(table) + 1));
    if (to->links == NULL || to->loads == NULL) return 0;
    for (; to->num_links < table->num_links; to->num_links++) {
        worker_link *const link = &table->links[to->num_links];
        to->links[to->num_links] = *link;
        link->num_calls = link->num_pairs = 0;
        link->compute_seconds = 0.0;
    }
    for (long l = 0; l < table->num_layers; l++) {
        const layer_table *const layer = &table->layers[l];
        for (long c = 0; c < layer->num_columns; c++) {
            if (layer->loads_C[c] == 0) continue;
            to->loads[to->num_loads++] = (module_load){layer->layer, layer->slots_C[c], layer->loads_C[c]};
            layer->loads_C[c] = 0;
        }
    }
    return 1;
}

static int show_counted(const counted *from, PyObject *workers, PyObject *loads) {
    int is_good = 1;
    for (long i = 0; is_good && i < from->num_links; i++) {
        const worker_link *const link = &from->links[i];
        if (link->num_calls == 0) continue;
        is_good = append(workers, Py_BuildValue("kKKd", (unsigned long)link->rank, (unsigned long long)link->num_calls,
                                                (unsigned long long)link->num_pairs, link->compute_seconds));
    }
    for (long i = 0; is_good && i < from->num_loads; i++)
        is_good = append(loads, Py_BuildValue("lkK", from->loads[i].layer, (unsigned long)from->loads[i].slot,
                                              (unsigned long long)from->loads[i].num_pairs));
    return is_good;
}

/* Dispatches, their seconds, (rank, calls, pairs, seconds) of workers, (layer, slot, pairs) of modules, since they were
 * last taken. Any thread. Nothing of Python's is made under the lock: its garbage collector may run then, let others have
 * the interpreter, and these would wait for the lock with it. */
PyObject *take_counts(dispatcher *d) {
    counted found = {0};
    pthread_mutex_lock(&d->lock);
    const int is_taken = d->table == NULL || take_table(d->table, &found);
    const uint64_t num_dispatches = d->num_dispatches;
    const double seconds = d->dispatch_seconds;
    if (is_taken) {
        d->num_dispatches = 0;
        d->dispatch_seconds = 0.0;
    }
    pthread_mutex_unlock(&d->lock);
    PyObject *const workers = PyList_New(0), *const loads = PyList_New(0);
    if (!is_taken) PyErr_NoMemory();
    const int is_good = is_taken && workers != NULL && loads != NULL && show_counted(&found, workers, loads);
    free(found.links);
    free(found.loads);
    if (is_good) return Py_BuildValue("KdNN", (unsigned long long)num_dispatches, seconds, workers, loads);
    Py_XDECREF(workers);
    Py_XDECREF(loads);
    return NULL;
}

/* (layer, start in nanoseconds, seconds, seconds of combining, bytes sent, bytes received, {rank: pairs}, {rank: seconds
 * of computing}) of each dispatch since they were last taken. */
static PyObject *show_record(const told_dispatch *told, const told_call *calls) {
    PyObject *const rows = PyDict_New(), *const seconds = PyDict_New();
    int is_good = rows != NULL && seconds != NULL;
    for (long i = 0; is_good && i < told->num_calls; i++) {
        PyObject *const rank = PyLong_FromUnsignedLong(calls[i].rank), *const num = PyLong_FromLong(calls[i].num_pairs);
        PyObject *const each = PyFloat_FromDouble(calls[i].compute_seconds);
        is_good = rank != NULL && num != NULL && each != NULL && PyDict_SetItem(rows, rank, num) == 0 &&
                  PyDict_SetItem(seconds, rank, each) == 0;
        Py_XDECREF(rank);
        Py_XDECREF(num);
        Py_XDECREF(each);
    }
    if (is_good)
        return Py_BuildValue("lLddKKNN", told->layer, (long long)told->start_ns, told->seconds, told->combine_seconds,
                             (unsigned long long)told->bytes_sent, (unsigned long long)told->bytes_received, rows, seconds);
    Py_XDECREF(rows);
    Py_XDECREF(seconds);
    return NULL;
}

PyObject *take_records(dispatcher *d) {
    PyObject *const records = PyList_New(0);
    const told_call *calls = d->told_calls;
    int is_good = records != NULL;
    for (long i = 0; is_good && i < d->num_told; i++) {
        is_good = append(records, show_record(&d->told[i], calls));
        calls += d->told[i].num_calls;
    }
    d->num_told = d->num_told_calls = 0;
    if (is_good) return records;
    Py_XDECREF(records);
    return NULL;
}
