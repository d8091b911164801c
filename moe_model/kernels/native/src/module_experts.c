/* Experts as Python functions. */
#include "arguments.h"

/* Whether an expert is of the sizes and the weights of the table's first, whose types decide how rows are passed on;
 * else a Python error is set. */
static int expert_fits(const expert *e, const expert_table *table) {
    const int has_sizes = e->up.num_in == table->width && e->up.num_out == table->hidden_width &&
                          e->down.num_in == table->hidden_width && e->down.num_out == table->width;
    const int type = table->experts[0].up.type;
    if (!has_sizes) {
        PyErr_Format(PyExc_ValueError, "an expert's matrices are not of %ld and %ld", table->width, table->hidden_width);
    } else if (e->up.type != type || e->down.type != type || e->down.is_gated) {
        PyErr_SetString(PyExc_ValueError, "an expert's matrices are not of the layer's type");
    } else {
        return norm_fits(&e->norm, table->width);
    }
    return 0;
}

/* (D, F, activation, then for each expert: norm or None, up, down) */
PyObject *py_experts(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const long num_experts = (num_args - 3) / 3;
    const size_t size = sizeof(expert_table) + sizeof(expert) * (num_experts > 0 ? num_experts : 0);
    expert_table *table = PyMem_RawCalloc(1, size);
    if (table == NULL) return PyErr_NoMemory();
    table->num_experts = num_experts;
    table->width = read_long(&r);
    table->hidden_width = read_long(&r);
    table->activation = (int)read_long(&r);
    for (long i = 0; i < num_experts && !r.failed; i++) {
        expert *e = &table->experts[i];
        e->norm = read_norm(&r);
        const matrix *up = read_capsule(&r, MATRIX), *down = read_capsule(&r, MATRIX);
        if (!r.failed) {
            e->up = *up;
            e->down = *down;
            r.failed = !expert_fits(e, table);
        }
    }
    PyObject *capsule = is_done(&r) ? to_capsule(table, size, TABLE) : NULL;
    PyMem_RawFree(table);
    return capsule;
}

PyObject *py_experts_scratch_bytes(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const expert_table *table = read_capsule(&r, TABLE);
    const long num_pairs = read_long(&r);
    if (!is_done(&r)) return NULL;
    return PyLong_FromLong(experts_scratch_bytes(table, num_pairs));
}

static void run_released(experts_op *op, int num_threads) {
    if (op->num_pairs * op->table->width * op->table->hidden_width < WORTH_RELEASING) {
        run_experts(op, 1);
        return;
    }
    Py_BEGIN_ALLOW_THREADS;
    run_experts(op, num_threads);
    Py_END_ALLOW_THREADS;
}

PyObject *py_tokens_scratch_bytes(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const expert_table *table = read_capsule(&r, TABLE);
    const long num_tokens = read_long(&r), per_token = read_long(&r);
    if (!is_done(&r)) return NULL;
    return PyLong_FromLong(tokens_scratch_bytes(table, num_tokens, per_token));
}

PyObject *py_run_tokens(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    tokens_op op = {.table = read_capsule(&r, TABLE)};
    op.x = read_address(&r);
    op.num_tokens = read_long(&r);
    op.top_k = read_long(&r);
    op.num_slices = read_long(&r);
    op.ids_TK = read_address(&r);
    op.weights_TK = read_address(&r);
    op.residual = read_address(&r);
    op.out = read_address(&r);
    op.scratch = read_address(&r);
    const int num_threads = (int)read_long(&r);
    if (!is_done(&r)) return NULL;
    op.kernels = *set;
    if (op.num_slices < 1 || op.table->num_experts % op.num_slices)
        return PyErr_Format(PyExc_ValueError, "%ld experts are not in %ld slices", op.table->num_experts, op.num_slices);
    if (op.num_tokens * op.top_k * op.num_slices * op.table->width * op.table->hidden_width < WORTH_RELEASING) {
        run_tokens(&op, 1);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        run_tokens(&op, num_threads);
        Py_END_ALLOW_THREADS;
    }
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

PyObject *py_run_segments(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    const expert_table *table = read_capsule(&r, TABLE);
    PyObject *tuple = read_object(&r);
    if (r.failed) return NULL;
    experts_op op = {.kernels = *set, .table = table};
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
