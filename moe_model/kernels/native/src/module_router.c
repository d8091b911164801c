/* Routers, and what counts by a row's own gate, as Python functions. */
#include "arguments.h"

#include "rowwise.h"

/* (scoring, scale, what is added to the sum or -1, the least sum, correction, groups, kept, size, counted) */
PyObject *py_rule(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    router_rule rule = {0};
    rule.scoring = (int)read_long(&r);
    rule.scale = read_float(&r);
    rule.sum_more = read_float(&r);
    rule.sum_least = read_float(&r);
    rule.correction_E = read_address(&r);
    rule.groups.num_groups = read_long(&r);
    rule.groups.num_kept = read_long(&r);
    rule.groups.size = read_long(&r);
    rule.groups.num_counted = read_long(&r);
    return is_done(&r) ? to_capsule(&rule, sizeof rule, RULE) : NULL;
}

PyObject *py_route(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    const matrix *gate = read_capsule(&r, MATRIX);
    const router_rule *rule = read_capsule(&r, RULE);
    route_op op = {0};
    op.x = read_address(&r);
    op.num_tokens = read_long(&r);
    op.num_places = read_long(&r);
    op.logits_TE = read_address(&r);
    op.allowed_TE = read_address(&r);
    op.top_k_T = read_address(&r);
    op.weights_TK = read_address(&r);
    op.ids_TK = read_address(&r);
    op.scratch = read_address(&r);
    const int num_threads = (int)read_long(&r);
    if (!is_done(&r)) return NULL;
    if (!rule_fits(rule, gate->num_out))
        return PyErr_Format(PyExc_ValueError, "%ld experts are not in these groups", gate->num_out);
    op.kernels = *set;
    op.gate = *gate;
    op.rule = *rule;
    if (op.num_tokens * gate->num_in * gate->num_out < WORTH_RELEASING) {
        run_route(&op, 1);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        run_route(&op, num_threads);
        Py_END_ALLOW_THREADS;
    }
    Py_RETURN_NONE;
}

/* (kernels, rows, number, width, the gate of each row) */
PyObject *py_gate_rows(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    float *y = read_address(&r);
    const long num_rows = read_long(&r), width = read_long(&r);
    const float *gate_T = read_address(&r);
    if (!is_done(&r)) return NULL;
    run_gate(set->rows, y, gate_T, num_rows, width, 1);
    Py_RETURN_NONE;
}
