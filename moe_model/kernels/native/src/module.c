/* The operations as Python functions over addresses. The Python modules beside this folder, which call them, check
 * the shapes and types of tensors; that parts fit each other is checked here. */
#include "arguments.h"

#include <errno.h>
#include <string.h>

void free_capsule(PyObject *capsule) { PyMem_RawFree(PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))); }

PyObject *to_capsule(const void *value, size_t size, const char *name) {
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
    if (set.gemm == NULL && errno != 0) {
        /* Linux's word for it would send its reader to the disks. */
        const char *why = errno == ENOSPC ? "a thread's stack for signals is too small for their state" : strerror(errno);
        return PyErr_Format(PyExc_OSError, "this system does not let a process use kernels %s: %s", name, why);
    }
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
    m.scale_NBp = read_address(&r);
    m.bias_O = read_address(&r);
    m.num_in = read_long(&r);
    m.num_out = read_long(&r);
    m.is_gated = (int)read_long(&r);
    m.limit = read_float(&r);
    m.alpha = read_float(&r);
    m.wants_exact_rows = (int)read_long(&r);
    return is_done(&r) ? to_capsule(&m, sizeof m, MATRIX) : NULL;
}

static PyObject *py_norm(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    norm n = {0};
    n.kind = (int)read_long(&r);
    n.weight_D = read_address(&r);
    n.bias_D = read_address(&r);
    n.eps = read_float(&r);
    n.width = read_long(&r);
    return is_done(&r) ? to_capsule(&n, sizeof n, NORM_CAPSULE) : NULL;
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
    op.norm = read_norm(&r);
    op.activation = (int)read_long(&r);
    op.residual = read_address(&r);
    op.y = read_address(&r);
    op.scratch = read_address(&r);
    const int num_threads = (int)read_long(&r);
    if (!is_done(&r)) return NULL;
    if (!norm_fits(&op.norm, w->num_in)) return NULL;
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

static PyObject *py_normalise(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    const norm how = read_norm(&r);
    const float *x = read_address(&r);
    const long num_rows = read_long(&r);
    float *y = read_address(&r);
    if (!is_done(&r)) return NULL;
    for (long row = 0; row < num_rows; row++)
        set->rows->normalise(&how, x + row * how.width, how.width, y + row * how.width, 0);
    Py_RETURN_NONE;
}

#define FAST(name, fn) {name, (PyCFunction)(void (*)(void))fn, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {
    {"kernels", py_kernels, METH_O, NULL},
    {"name", py_name, METH_O, NULL},
    FAST("matrix", py_matrix),
    FAST("experts", py_experts),
    FAST("linear", py_linear),
    FAST("norm", py_norm),
    FAST("normalise", py_normalise),
    FAST("rule", py_rule),
    FAST("route", py_route),
    FAST("gate_rows", py_gate_rows),
    FAST("experts_scratch_bytes", py_experts_scratch_bytes),
    FAST("tokens_scratch_bytes", py_tokens_scratch_bytes),
    FAST("run_tokens", py_run_tokens),
    FAST("run_segments", py_run_segments),
    FAST("rotate", py_rotate),
    FAST("attention", py_attention),
    FAST("head_linear", py_head_linear),
    FAST("normalise_heads", py_normalise_heads),
    FAST("pack", py_pack),
    FAST("program", py_program),
    FAST("program_times", py_program_times),
    FAST("paged_cache", py_paged_cache),
    FAST("layer_tables", py_layer_tables),
    FAST("program_step", py_program_step),
    FAST("program_bytes", py_program_bytes),
    FAST("buffer_offset", py_buffer_offset),
    FAST("run_program", py_run_program),
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
