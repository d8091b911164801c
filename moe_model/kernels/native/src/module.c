/* The operations as Python functions over addresses. parts.py and native_kernels.py, which call them, check shapes and types. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>
#include <string.h>

#include "api.h"

#define KERNELS KERNELS_CAPSULE
#define MATRIX MATRIX_CAPSULE
#define TABLE EXPERTS_CAPSULE
/* Multiplications below which letting go of the interpreter costs more than it gives. */
#define WORTH_RELEASING 200000L

/* Arguments are read in order; a failure sets a Python error and is asked for once, at the end. */
typedef struct {
    PyObject *const *next;
    Py_ssize_t num_left;
    int failed;
} reader;

static PyObject *read_object(reader *r) {
    if (r->failed || r->num_left < 1) {
        if (!r->failed) PyErr_SetString(PyExc_TypeError, "too few arguments");
        r->failed = 1;
        return NULL;
    }
    r->num_left--;
    return *r->next++;
}

static long read_long(reader *r) {
    PyObject *object = read_object(r);
    if (object == NULL) return 0;
    long value = PyLong_AsLong(object);
    if (value == -1 && PyErr_Occurred()) r->failed = 1;
    return value;
}

static void *read_address(reader *r) {
    PyObject *object = read_object(r);
    if (object == NULL) return NULL;
    void *value = PyLong_AsVoidPtr(object);
    if (value == NULL && PyErr_Occurred()) r->failed = 1;
    return value;
}

static float read_float(reader *r) {
    PyObject *object = read_object(r);
    if (object == NULL) return 0;
    double value = PyFloat_AsDouble(object);
    if (value == -1 && PyErr_Occurred()) r->failed = 1;
    return (float)value;
}

static void *read_capsule(reader *r, const char *name) {
    PyObject *object = read_object(r);
    void *value = object == NULL ? NULL : PyCapsule_GetPointer(object, name);
    if (value == NULL) r->failed = 1;
    return value;
}

static int is_done(reader *r) {
    if (!r->failed && r->num_left > 0) {
        PyErr_SetString(PyExc_TypeError, "too many arguments");
        r->failed = 1;
    }
    return !r->failed;
}

static void free_capsule(PyObject *capsule) { PyMem_RawFree(PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))); }

static PyObject *to_capsule(const void *value, size_t size, const char *name) {
    void *copy = PyMem_RawMalloc(size);
    if (copy == NULL) return PyErr_NoMemory();
    memcpy(copy, value, size);
    PyObject *capsule = PyCapsule_New(copy, name, free_capsule);
    if (capsule == NULL) PyMem_RawFree(copy);
    return capsule;
}

static PyObject *py_kernels(PyObject *self, PyObject *arg) {
    (void)self;
    const char *name = NULL;
    if (arg != Py_None && (name = PyUnicode_AsUTF8(arg)) == NULL) return NULL;
    kernel_set set = {find_gemm_kernels(name), find_row_kernels(name)};
    if (set.gemm == NULL) return PyErr_Format(PyExc_ValueError, "this processor has no kernels %s", name);
    return to_capsule(&set, sizeof set, KERNELS);
}

static PyObject *py_name(PyObject *self, PyObject *arg) {
    (void)self;
    const kernel_set *set = PyCapsule_GetPointer(arg, KERNELS);
    return set == NULL ? NULL : PyUnicode_FromString(set->gemm->name);
}

static PyObject *py_matrix(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    matrix m = {0};
    m.type = (int)read_long(&r);
    m.panels = read_address(&r);
    m.scale_O = read_address(&r);
    m.bias_O = read_address(&r);
    m.num_in = read_long(&r);
    m.num_out = read_long(&r);
    return is_done(&r) ? to_capsule(&m, sizeof m, MATRIX) : NULL;
}

/* (norm_eps, D, F, then for each expert: norm weight, norm bias, up, down) */
static PyObject *py_experts(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const long num_experts = (num_args - 3) / 4;
    const size_t size = sizeof(expert_table) + sizeof(expert) * (num_experts > 0 ? num_experts : 0);
    expert_table *table = PyMem_RawCalloc(1, size);
    if (table == NULL) return PyErr_NoMemory();
    table->num_experts = num_experts;
    table->norm_eps = read_float(&r);
    table->width = read_long(&r);
    table->hidden_width = read_long(&r);
    for (long i = 0; i < num_experts && !r.failed; i++) {
        expert *e = &table->experts[i];
        e->norm_weight = read_address(&r);
        e->norm_bias = read_address(&r);
        const matrix *up = read_capsule(&r, MATRIX), *down = read_capsule(&r, MATRIX);
        if (!r.failed) {
            e->up = *up;
            e->down = *down;
        }
    }
    PyObject *capsule = is_done(&r) ? to_capsule(table, size, TABLE) : NULL;
    PyMem_RawFree(table);
    return capsule;
}

static PyObject *py_linear(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    const matrix *w = read_capsule(&r, MATRIX);
    linear_op op = {0};
    op.x = read_address(&r);
    op.num_rows = read_long(&r);
    op.stride = read_long(&r);
    op.norm_weight = read_address(&r);
    op.norm_bias = read_address(&r);
    op.norm_eps = read_float(&r);
    op.activation = (int)read_long(&r);
    op.residual = read_address(&r);
    op.y = read_address(&r);
    op.scratch = read_address(&r);
    const int num_threads = (int)read_long(&r);
    if (!is_done(&r)) return NULL;
    op.kernels = *set;
    op.w = *w;
    if (op.num_rows * w->num_in * w->num_out < WORTH_RELEASING) {
        run_linear(&op, 1);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        run_linear(&op, num_threads);
        Py_END_ALLOW_THREADS;
    }
    Py_RETURN_NONE;
}

static PyObject *py_layer_norm(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    const float *x = read_address(&r);
    const long num_rows = read_long(&r), width = read_long(&r);
    const float *weight = read_address(&r), *bias = read_address(&r);
    const float eps = read_float(&r);
    float *y = read_address(&r);
    if (!is_done(&r)) return NULL;
    for (long row = 0; row < num_rows; row++)
        set->rows->layer_norm(x + row * width, weight, bias, eps, width, y + row * width, 0);
    Py_RETURN_NONE;
}

static PyObject *py_route(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    const matrix *gate = read_capsule(&r, MATRIX);
    const float *x = read_address(&r);
    const long num_tokens = read_long(&r), num_places = read_long(&r);
    float *logits_TE = read_address(&r);
    const uint8_t *allowed_TE = read_address(&r);
    const int64_t *top_k_T = read_address(&r);
    float *weights_TK = read_address(&r);
    int64_t *ids_TK = read_address(&r);
    if (!is_done(&r)) return NULL;
    const long num_experts = gate->num_out;
    linear_op op = {.kernels = *set, .w = *gate, .x = x, .num_rows = num_tokens, .stride = gate->num_in, .y = logits_TE};
    run_linear(&op, 1);
    for (long t = 0; t < num_tokens; t++)
        route_row(logits_TE + t * num_experts, allowed_TE == NULL ? NULL : allowed_TE + t * num_experts, num_experts,
                  top_k_T == NULL ? num_places : top_k_T[t], num_places, weights_TK + t * num_places,
                  ids_TK + t * num_places);
    Py_RETURN_NONE;
}

static PyObject *py_experts_scratch_bytes(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const expert_table *table = read_capsule(&r, TABLE);
    const long num_pairs = read_long(&r);
    if (!is_done(&r)) return NULL;
    return PyLong_FromLong(experts_scratch_bytes(num_pairs, table->width, table->hidden_width));
}

static experts_op experts_of(const kernel_set *set, const expert_table *table) {
    experts_op op = {0};
    op.kernels = *set;
    op.experts = table->experts;
    op.norm_eps = table->norm_eps;
    op.width = table->width;
    op.hidden_width = table->hidden_width;
    return op;
}

static void run_released(experts_op *op, int num_threads) {
    if (op->num_pairs * op->width * op->hidden_width < WORTH_RELEASING) {
        run_experts(op, 1);
        return;
    }
    Py_BEGIN_ALLOW_THREADS;
    run_experts(op, num_threads);
    Py_END_ALLOW_THREADS;
}

/* Sorts the [T, K] places by expert; a token keeps its order within one. An id that is no expert is absent. */
static long group(const int64_t *ids_TK, long num_places, long top_k, long num_experts, segment *segments,
                  int32_t *row_P, int32_t *pair_TK, long *num_pairs) {
    long *start_E = PyMem_RawCalloc(num_experts + 1, sizeof(long));
    if (start_E == NULL) return -1;
    for (long i = 0; i < num_places; i++)
        if (ids_TK[i] >= 0 && ids_TK[i] < num_experts) start_E[ids_TK[i] + 1]++;
    long num_segments = 0;
    for (long e = 0; e < num_experts; e++) {
        if (start_E[e + 1] > 0) segments[num_segments++] = (segment){e, start_E[e + 1]};
        start_E[e + 1] += start_E[e];
    }
    *num_pairs = start_E[num_experts];
    for (long i = 0; i < num_places; i++) {
        pair_TK[i] = -1;
        if (ids_TK[i] < 0 || ids_TK[i] >= num_experts) continue;
        const long pair = start_E[ids_TK[i]]++;
        pair_TK[i] = (int32_t)pair;
        row_P[pair] = (int32_t)(i / top_k);
    }
    PyMem_RawFree(start_E);
    return num_segments;
}

static PyObject *py_run_tokens(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    const expert_table *table = read_capsule(&r, TABLE);
    if (r.failed) return NULL;
    experts_op op = experts_of(set, table);
    op.x = read_address(&r);
    op.num_rows = read_long(&r);
    op.top_k = read_long(&r);
    const int64_t *ids_TK = read_address(&r);
    op.weight_P = read_address(&r);
    op.residual = read_address(&r);
    op.out = read_address(&r);
    op.scratch = read_address(&r);
    const int num_threads = (int)read_long(&r);
    if (!is_done(&r)) return NULL;
    const long num_places = op.num_rows * op.top_k;
    segment *segments = PyMem_RawMalloc(sizeof(segment) * (table->num_experts + 1));
    int32_t *places = PyMem_RawMalloc(sizeof(int32_t) * (2 * num_places + 1));
    if (segments != NULL && places != NULL) {
        op.row_P = places;
        op.pair_TK = places + num_places;
        op.segments = segments;
        op.combination = COMBINE_TOKENS;
        op.num_segments = group(ids_TK, num_places, op.top_k, table->num_experts, segments, places,
                                places + num_places, &op.num_pairs);
        if (op.num_segments >= 0) run_released(&op, num_threads);
    }
    const int failed = segments == NULL || places == NULL || op.num_segments < 0;
    PyMem_RawFree(segments);
    PyMem_RawFree(places);
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static int read_segments(PyObject *tuple, const expert_table *table, segment *segments, long num_segments, long num_pairs) {
    long sum = 0;
    for (long i = 0; i < num_segments; i++) {
        PyObject *item = PyTuple_GET_ITEM(tuple, i);
        if (!PyArg_ParseTuple(item, "ll", &segments[i].expert, &segments[i].num_pairs)) return 0;
        const int is_expert = segments[i].expert >= 0 && segments[i].expert < table->num_experts;
        if (!is_expert || segments[i].num_pairs < 1 || segments[i].num_pairs > num_pairs - sum) sum = num_pairs + 1;
        else sum += segments[i].num_pairs;
    }
    if (sum == num_pairs) return 1;
    PyErr_SetString(PyExc_ValueError, "segments are not those of the pairs");
    return 0;
}

static PyObject *py_run_segments(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    const expert_table *table = read_capsule(&r, TABLE);
    PyObject *tuple = read_object(&r);
    if (r.failed) return NULL;
    experts_op op = experts_of(set, table);
    op.x = read_address(&r);
    op.num_rows = read_long(&r);
    op.num_pairs = read_long(&r);
    op.row_P = read_address(&r);
    op.weight_P = read_address(&r);
    op.out = read_address(&r);
    op.scratch = read_address(&r);
    const int num_threads = (int)read_long(&r);
    if (!is_done(&r)) return NULL;
    if (!PyTuple_Check(tuple)) return PyErr_Format(PyExc_TypeError, "segments: not a tuple");
    op.num_segments = PyTuple_GET_SIZE(tuple);
    op.combination = op.weight_P == NULL ? COMBINE_NOT : COMBINE_ROWS;
    segment *segments = PyMem_RawMalloc(sizeof(segment) * (op.num_segments + 1));
    if (segments == NULL) return PyErr_NoMemory();
    const int is_good = read_segments(tuple, table, segments, op.num_segments, op.num_pairs);
    if (is_good) {
        op.segments = segments;
        run_released(&op, num_threads);
    }
    PyMem_RawFree(segments);
    if (!is_good) return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_attention(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    attention_op op = {0};
    op.source.q = read_address(&r);
    op.k = read_address(&r);
    op.v = read_address(&r);
    op.source.q_stride = read_long(&r);
    op.kv_stride = read_long(&r);
    op.keys = read_address(&r);
    op.values = read_address(&r);
    op.source.cache_is_bf16 = (int)read_long(&r);
    op.source.block_size = read_long(&r);
    op.source.num_heads = read_long(&r);
    op.source.num_kv_heads = read_long(&r);
    op.source.head_dim = read_long(&r);
    op.num_tokens = read_long(&r);
    op.slot_T = read_address(&r);
    op.sequence_T = read_address(&r);
    op.length_T = read_address(&r);
    op.block_table = read_address(&r);
    op.table_stride = read_long(&r);
    op.longest = read_long(&r);
    op.scores = read_address(&r);
    op.out = read_address(&r);
    const int num_threads = (int)read_long(&r);
    if (!is_done(&r)) return NULL;
    op.kernels = *set;
    op.source.keys = op.keys;
    op.source.values = op.values;
    if (op.num_tokens * op.longest * op.source.num_heads * op.source.head_dim < WORTH_RELEASING) {
        run_attention(&op, 1);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        run_attention(&op, num_threads);
        Py_END_ALLOW_THREADS;
    }
    Py_RETURN_NONE;
}

#define FAST(name, fn) {name, (PyCFunction)(void (*)(void))fn, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {
    {"kernels", py_kernels, METH_O, NULL},
    {"name", py_name, METH_O, NULL},
    FAST("matrix", py_matrix),
    FAST("experts", py_experts),
    FAST("linear", py_linear),
    FAST("layer_norm", py_layer_norm),
    FAST("route", py_route),
    FAST("experts_scratch_bytes", py_experts_scratch_bytes),
    FAST("run_tokens", py_run_tokens),
    FAST("run_segments", py_run_segments),
    FAST("attention", py_attention),
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, methods, NULL, NULL, NULL, NULL};

static const kernels_api api = {run_experts, experts_scratch_bytes};

PyMODINIT_FUNC PyInit__kernels(void) {
    PyObject *made = PyModule_Create(&module);
    if (made == NULL) return NULL;
    PyObject *capsule = PyCapsule_New((void *)&api, KERNELS_API, NULL);
    if (PyModule_AddObjectRef(made, "api", capsule) < 0) Py_CLEAR(made);
    Py_XDECREF(capsule);
    return made;
}
