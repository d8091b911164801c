/* The dispatcher for Python. What is uncommon needs no speed, and is plain data here. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "tables.h"

#define DISPATCHER "expertmesh.dispatcher"
/* Calls of Python's have lower ids. */
#define FIRST_CALL ((uint64_t)1 << 62)

static dispatcher *of(PyObject *capsule) { return PyCapsule_GetPointer(capsule, DISPATCHER); }

static void free_capsule(PyObject *capsule) { free_dispatcher(of(capsule)); }

/* (epoch, whether float32 rows travel as bfloat16, whether sums of more than two are exact, whether dispatches are told,
 * slices of each expert, rows of a column with a choice from which on it is Python's, or 0, rows that a column costs beside
 * its own) */
static PyObject *py_dispatcher(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long epoch;
    int wire_is_bf16, is_exact, wants_records;
    long num_slices, split_rows;
    double fixed_rows = 0.0;
    if (!PyArg_ParseTuple(args, "Kpppll|d", &epoch, &wire_is_bf16, &is_exact, &wants_records, &num_slices, &split_rows,
                          &fixed_rows))
        return NULL;
    if (num_slices < 1 || split_rows < 0)
        return PyErr_Format(PyExc_ValueError, "%ld slices, %ld rows", num_slices, split_rows);
    dispatcher *const d = calloc(1, sizeof *d);
    if (d == NULL) return PyErr_NoMemory();
    d->experts = (layer_experts){d, begin_layer, finish_layer};
    d->epoch = epoch;
    d->wire_is_bf16 = wire_is_bf16;
    d->is_exact = is_exact;
    d->wants_records = wants_records;
    d->num_slices = num_slices;
    d->split_rows = (uint32_t)split_rows;
    d->split.fixed_rows = fixed_rows;
    d->next_call = FIRST_CALL;
    pthread_mutex_init(&d->lock, NULL);
    d->told = wants_records ? malloc(sizeof *d->told * MAX_RECORDS) : NULL;
    PyObject *const capsule =
        wants_records && d->told == NULL ? PyErr_NoMemory() : PyCapsule_New(d, DISPATCHER, free_capsule);
    if (capsule == NULL) free_dispatcher(d);
    return capsule;
}

static void free_experts(PyObject *capsule) { Py_DECREF((PyObject *)PyCapsule_GetContext(capsule)); }

/* What keeps the dispatcher for as long as it lives. */
static PyObject *py_layer_experts(PyObject *self, PyObject *capsule) {
    (void)self;
    dispatcher *const d = of(capsule);
    if (d == NULL) return NULL;
    PyObject *const experts = PyCapsule_New(&d->experts, LAYER_EXPERTS, NULL);
    if (experts == NULL) return NULL;
    if (PyCapsule_SetContext(experts, capsule) != 0 || PyCapsule_SetDestructor(experts, free_experts) != 0) {
        Py_DECREF(experts);
        return NULL;
    }
    Py_INCREF(capsule);
    return experts;
}

/* (dispatcher, links by rank as (rank, descriptor), tables as (layer, slots, positions of holders of each)), when
 * nothing is on its way. Costs and times are to be set. */
static PyObject *py_route(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *capsule, *links, *layers;
    if (!PyArg_ParseTuple(args, "OO!O!", &capsule, &PyTuple_Type, &links, &PyTuple_Type, &layers)) return NULL;
    dispatcher *const d = of(capsule);
    if (d == NULL) return NULL;
    if (d->num_flights > 0) return PyErr_Format(PyExc_ValueError, "%ld dispatches are on their way", d->num_flights);
    route_table *const table = read_table(links, layers);
    if (table == NULL) return NULL;
    if (!make_calls(d, table->num_links)) {
        free_table(table);
        return PyErr_NoMemory();
    }
    pthread_mutex_lock(&d->lock);
    route_table *const old = d->table;
    d->table = table;
    pthread_mutex_unlock(&d->lock);
    free_table(old);
    d->valid_until = 0.0;
    Py_RETURN_NONE;
}

static int read_doubles(PyObject *tuple, double *values, long num_values) {
    if (PyTuple_GET_SIZE(tuple) != num_values) {
        PyErr_Format(PyExc_ValueError, "%zd values, expected %ld", PyTuple_GET_SIZE(tuple), num_values);
        return 0;
    }
    for (long i = 0; i < num_values; i++) {
        values[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(tuple, i));
        if (PyErr_Occurred()) return 0;
    }
    return 1;
}

/* (dispatcher, cost by link, seconds of a call and seconds to a hedge by size, until when); less than 0 is none. From now
 * on dispatches may begin. */
static PyObject *py_pace(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *capsule, *costs, *timeouts, *hedges;
    double until;
    if (!PyArg_ParseTuple(args, "OO!O!O!d", &capsule, &PyTuple_Type, &costs, &PyTuple_Type, &timeouts, &PyTuple_Type,
                          &hedges, &until))
        return NULL;
    dispatcher *const d = of(capsule);
    if (d == NULL) return NULL;
    if (d->table == NULL) return PyErr_Format(PyExc_ValueError, "there are no routes");
    const long num_links = d->table->num_links;
    double by_link[num_links > 0 ? num_links : 1];
    if (!read_doubles(costs, by_link, num_links) || !read_doubles(timeouts, d->timeouts, NUM_SIZES) ||
        !read_doubles(hedges, d->hedges, NUM_SIZES))
        return NULL;
    for (long link = 0; link < num_links; link++) d->table->links[link].cost = by_link[link];
    d->valid_until = until;
    Py_RETURN_NONE;
}

/* Nothing begins any more, until `go`. Any thread. */
static PyObject *py_stop(PyObject *self, PyObject *capsule) {
    (void)self;
    dispatcher *const d = of(capsule);
    if (d == NULL) return NULL;
    atomic_store_explicit(&d->is_stopped, 1, memory_order_release);
    Py_RETURN_NONE;
}

static PyObject *py_go(PyObject *self, PyObject *capsule) {
    (void)self;
    dispatcher *const d = of(capsule);
    if (d == NULL) return NULL;
    atomic_store_explicit(&d->is_stopped, 0, memory_order_release);
    Py_RETURN_NONE;
}

/* (dispatcher, number of a table, T, D, K, address of rows, whether they are bfloat16, addresses of weights and ids),
 * which stay. The number of the dispatch, or 0 where it is Python's. */
static PyObject *py_begin(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    if (num_args != 9) return PyErr_Format(PyExc_TypeError, "begin takes 9 arguments");
    dispatcher *const d = of(args[0]);
    if (d == NULL) return NULL;
    const layer_rows rows = {
        .layer = PyLong_AsLong(args[1]),
        .num_tokens = PyLong_AsLong(args[2]),
        .width = PyLong_AsLong(args[3]),
        .num_places = PyLong_AsLong(args[4]),
        .x_TD = PyLong_AsVoidPtr(args[5]),
        .is_bf16 = PyObject_IsTrue(args[6]),
        .weights_TK = PyLong_AsVoidPtr(args[7]),
        .ids_TK = PyLong_AsVoidPtr(args[8]),
    };
    if (PyErr_Occurred()) return NULL;
    return PyLong_FromUnsignedLongLong(begin_flight(d, &rows) ? d->next_flight : 0);
}

/* (dispatcher, number, address of y); False where it is Python's: it is handed over next. */
static PyObject *py_finish(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    if (num_args != 3) return PyErr_Format(PyExc_TypeError, "finish takes 3 arguments");
    dispatcher *const d = of(args[0]);
    if (d == NULL) return NULL;
    const unsigned long long number = PyLong_AsUnsignedLongLong(args[1]);
    void *const y_TD = PyLong_AsVoidPtr(args[2]);
    if (PyErr_Occurred()) return NULL;
    if (d->num_flights == 0 || d->flights[d->first].number != number) Py_RETURN_FALSE;
    int is_done;
    Py_BEGIN_ALLOW_THREADS;
    is_done = finish_flights(d, 1, y_TD);
    Py_END_ALLOW_THREADS;
    return PyBool_FromLong(is_done);
}

static PyObject *py_num_flights(PyObject *self, PyObject *capsule) {
    (void)self;
    dispatcher *const d = of(capsule);
    return d == NULL ? NULL : PyLong_FromLong(d->num_flights);
}

/* Everything that is on its way, in its order; it is Python's from now on. */
static PyObject *py_hand_over(PyObject *self, PyObject *capsule) {
    (void)self;
    dispatcher *const d = of(capsule);
    if (d == NULL) return NULL;
    PyObject *const flights = PyList_New(d->num_flights);
    for (long i = 0; flights != NULL && i < d->num_flights; i++) {
        PyObject *const each = show_flight(d, &d->flights[(d->first + i) % MAX_FLIGHTS]);
        if (each == NULL) {
            Py_DECREF(flights);
            return NULL;
        }
        PyList_SET_ITEM(flights, i, each);
    }
    if (flights != NULL) forget_flights(d);
    return flights;
}

static PyObject *py_take_samples(PyObject *self, PyObject *capsule) {
    (void)self;
    dispatcher *const d = of(capsule);
    return d == NULL ? NULL : take_samples(d);
}

static PyObject *py_take_counts(PyObject *self, PyObject *capsule) {
    (void)self;
    dispatcher *const d = of(capsule);
    return d == NULL ? NULL : take_counts(d);
}

static PyObject *py_take_records(PyObject *self, PyObject *capsule) {
    (void)self;
    dispatcher *const d = of(capsule);
    return d == NULL ? NULL : take_records(d);
}

static PyMethodDef methods[] = {
    {"dispatcher", py_dispatcher, METH_VARARGS, NULL},
    {"layer_experts", py_layer_experts, METH_O, NULL},
    {"route", py_route, METH_VARARGS, NULL},
    {"pace", py_pace, METH_VARARGS, NULL},
    {"stop", py_stop, METH_O, NULL},
    {"go", py_go, METH_O, NULL},
    {"begin", (PyCFunction)(void (*)(void))py_begin, METH_FASTCALL, NULL},
    {"finish", (PyCFunction)(void (*)(void))py_finish, METH_FASTCALL, NULL},
    {"num_flights", py_num_flights, METH_O, NULL},
    {"hand_over", py_hand_over, METH_O, NULL},
    {"take_samples", py_take_samples, METH_O, NULL},
    {"take_counts", py_take_counts, METH_O, NULL},
    {"take_records", py_take_records, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_dispatch", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__dispatch(void) {
    PyObject *const made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddIntConstant(made, "NUM_SIZES", NUM_SIZES) != 0) {
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
