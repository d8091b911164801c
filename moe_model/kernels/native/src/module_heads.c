/* What is done to the heads of rows, each by itself, as Python functions. */
#include "arguments.h"

PyObject *py_head_linear(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    const matrix *w = read_capsule(&r, MATRIX);
    head_linear_op op = {0};
    op.num_heads = read_long(&r);
    const long num_out = read_long(&r);
    op.x = read_address(&r);
    op.num_rows = read_long(&r);
    op.stride = read_long(&r);
    op.apart = read_long(&r);
    op.y = read_address(&r);
    op.scratch = read_address(&r);
    const int num_threads = (int)read_long(&r);
    if (!is_done(&r)) return NULL;
    op.w = *w;
    op.w.num_out = num_out;
    if (op.num_heads < 1 || num_out < 1 || op.num_heads * num_panels(&op.w) != num_panels(w))
        return PyErr_Format(PyExc_ValueError, "%ld outputs are not %ld heads of %ld", w->num_out, op.num_heads, num_out);
    op.kernels = *set;
    if (op.num_rows * op.num_heads * w->num_in * num_out < WORTH_RELEASING) {
        run_head_linear(&op, 1);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        run_head_linear(&op, num_threads);
        Py_END_ALLOW_THREADS;
    }
    Py_RETURN_NONE;
}

PyObject *py_normalise_heads(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    head_norm_op op = {0};
    op.norm = read_norm(&r);
    op.x = read_address(&r);
    op.num_rows = read_long(&r);
    op.num_heads = read_long(&r);
    op.stride = read_long(&r);
    const int num_threads = (int)read_long(&r);
    if (!is_done(&r)) return NULL;
    op.kernels = *set;
    if (op.num_rows * op.num_heads * op.norm.width < WORTH_RELEASING) {
        run_head_norm(&op, 1);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        run_head_norm(&op, num_threads);
        Py_END_ALLOW_THREADS;
    }
    Py_RETURN_NONE;
}
