/* Arguments of the module's functions, and the names of its capsules. */
#ifndef EXPERTMESH_ARGUMENTS_H
#define EXPERTMESH_ARGUMENTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "api.h"

#define KERNELS KERNELS_CAPSULE
#define MATRIX MATRIX_CAPSULE
#define NORM_CAPSULE "expertmesh.norm"
#define RULE "expertmesh.router_rule"
#define TABLE EXPERTS_CAPSULE
/* Multiplications below which letting go of the interpreter costs more than it gives. */
#define WORTH_RELEASING 200000L

/* Arguments are read in order; a failure sets a Python error and is asked for once, at the end. */
typedef struct {
    PyObject *const *next;
    Py_ssize_t num_left;
    int failed;
} reader;

static inline PyObject *read_object(reader *r) {
    if (r->failed || r->num_left < 1) {
        if (!r->failed) PyErr_SetString(PyExc_TypeError, "too few arguments");
        r->failed = 1;
        return NULL;
    }
    r->num_left--;
    return *r->next++;
}

static inline long read_long(reader *r) {
    PyObject *object = read_object(r);
    if (object == NULL) return 0;
    long value = PyLong_AsLong(object);
    if (value == -1 && PyErr_Occurred()) r->failed = 1;
    return value;
}

static inline void *read_address(reader *r) {
    PyObject *object = read_object(r);
    if (object == NULL) return NULL;
    void *value = PyLong_AsVoidPtr(object);
    if (value == NULL && PyErr_Occurred()) r->failed = 1;
    return value;
}

static inline float read_float(reader *r) {
    PyObject *object = read_object(r);
    if (object == NULL) return 0;
    double value = PyFloat_AsDouble(object);
    if (value == -1 && PyErr_Occurred()) r->failed = 1;
    return (float)value;
}

static inline void *read_capsule(reader *r, const char *name) {
    PyObject *object = read_object(r);
    void *value = object == NULL ? NULL : PyCapsule_GetPointer(object, name);
    if (value == NULL) r->failed = 1;
    return value;
}

static inline int is_done(reader *r) {
    if (!r->failed && r->num_left > 0) {
        PyErr_SetString(PyExc_TypeError, "too many arguments");
        r->failed = 1;
    }
    return !r->failed;
}

/* A norm, or None. */
static inline norm read_norm(reader *r) {
    if (r->num_left > 0 && *r->next == Py_None) {
        read_object(r);
        return (norm){0};
    }
    const norm *found = read_capsule(r, NORM_CAPSULE);
    return found == NULL ? (norm){0} : *found;
}

/* Whether a norm is for rows of this width, or none; else a Python error is set. */
static inline int norm_fits(const norm *n, long width) {
    if (n->kind == NORM_NONE || n->width == width) return 1;
    PyErr_Format(PyExc_ValueError, "a norm of %ld values before a product of %ld", n->width, width);
    return 0;
}

/* Whether a rule chooses from so many experts: groups are ranges of their numbers. */
static inline int rule_fits(const router_rule *rule, long num_experts) {
    const expert_groups *g = &rule->groups;
    if (g->num_groups == 0) return 1;
    if (g->num_groups < 0 || g->num_groups > MAX_GROUPS || g->num_counted < 1 || g->num_counted > MAX_COUNTED) return 0;
    return g->size >= 1 && g->num_groups * g->size == num_experts;
}

/* A copy of the value, freed with the capsule. */
PyObject *to_capsule(const void *value, size_t size, const char *name);
void free_capsule(PyObject *capsule);

typedef PyObject *python_function(PyObject *self, PyObject *const *args, Py_ssize_t num_args);

/* module_experts.c */
python_function py_experts, py_experts_scratch_bytes, py_tokens_scratch_bytes, py_run_tokens, py_run_segments;
python_function py_rule, py_route, py_gate_rows; /* module_router.c */
python_function py_rotate, py_attention; /* module_attention.c */
python_function py_head_linear, py_normalise_heads; /* module_heads.c */
python_function py_pack; /* module_pack.c */
python_function py_program, py_program_times; /* module_program.c */
/* module_step.c */
python_function py_paged_cache, py_layer_tables, py_program_step, py_program_bytes, py_buffer_offset, py_run_program;

#endif
