/* Rotary positions and attention as Python functions. */
#include "arguments.h"

PyObject *py_rotate(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    rotary_op op = {0};
    op.how.rates = read_address(&r);
    op.how.factor = read_float(&r);
    op.how.dim = read_long(&r);
    op.how.is_interleaved = (int)read_long(&r);
    op.x = read_address(&r);
    op.num_rows = read_long(&r);
    op.stride = read_long(&r);
    op.num_heads = read_long(&r);
    op.head_dim = read_long(&r);
    op.position_R = read_address(&r);
    const int num_threads = (int)read_long(&r);
    if (!is_done(&r)) return NULL;
    if (op.how.dim < 2 || op.how.dim % 2 || op.how.dim > op.head_dim || op.how.dim > MAX_ROTARY_DIM)
        return PyErr_Format(PyExc_ValueError, "%ld values of a head of %ld cannot turn", op.how.dim, op.head_dim);
    op.kernels = *set;
    if (op.num_rows * op.num_heads * op.how.dim < WORTH_RELEASING) {
        run_rotary(&op, 1);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        run_rotary(&op, num_threads);
        Py_END_ALLOW_THREADS;
    }
    Py_RETURN_NONE;
}

/* Whether the rows' slots, and the blocks of what they see, are in the cache. */
static int is_inside(const attention_op *op, long num_blocks) {
    const long size = op->source.block_size;
    for (long t = 0; t < op->num_tokens; t++) {
        const long sequence = op->sequence_T[t], length = op->length_T[t];
        if (op->slot_T[t] < 0 || op->slot_T[t] >= num_blocks * size) return 0;
        if (sequence < 0 || sequence >= op->num_sequences) return 0;
        if (length < 1 || length > op->table_stride * size) return 0;
        if ((op->window == 0 || length < op->window ? length : op->window) > op->most_seen) return 0;
    }
    for (long i = 0; i < op->num_sequences * op->table_stride; i++)
        if (op->block_table[i] < 0 || op->block_table[i] >= num_blocks) return 0;
    return 1;
}

static int is_form(const attention_op *op) {
    const attention_source *s = &op->source;
    if (s->block_size < 1 || s->num_kv_heads < 1 || s->num_heads % s->num_kv_heads) return 0;
    if (op->window < 0 || op->most_seen < 1 || op->room < op->most_seen) return 0;
    return s->value_width >= 1 && s->value_width <= s->value_stride;
}

static void read_rows(reader *r, attention_op *op) {
    op->source.q = read_address(r);
    op->source.q_stride = read_long(r);
    op->k = read_address(r);
    op->k_stride = read_long(r);
    op->v = read_address(r);
    op->v_stride = read_long(r);
}

static void read_cache(reader *r, attention_op *op) {
    op->source.keys = op->keys = read_address(r);
    op->source.values = op->values = read_address(r);
    op->source.cache_is_bf16 = (int)read_long(r);
}

static void read_form(reader *r, attention_op *op) {
    op->source.num_heads = read_long(r);
    op->source.num_kv_heads = read_long(r);
    op->source.head_dim = read_long(r);
    op->source.value_width = read_long(r);
    /* Values in the keys are as far apart as these. */
    op->source.value_stride = op->v == NULL ? op->source.head_dim : op->source.value_width;
    op->source.scale = read_float(r);
    op->window = read_long(r);
    op->source.sinks_H = read_address(r);
}

PyObject *py_attention(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    attention_op op = {0};
    read_rows(&r, &op);
    read_cache(&r, &op);
    const long num_blocks = read_long(&r);
    op.source.block_size = read_long(&r);
    read_form(&r, &op);
    op.num_tokens = read_long(&r);
    op.slot_T = read_address(&r);
    op.sequence_T = read_address(&r);
    op.length_T = read_address(&r);
    op.block_table = read_address(&r);
    op.num_sequences = read_long(&r);
    op.table_stride = read_long(&r);
    op.most_seen = read_long(&r);
    op.scores = read_address(&r);
    op.room = read_long(&r);
    op.out = read_address(&r);
    const int num_threads = (int)read_long(&r);
    if (!is_done(&r)) return NULL;
    if (!is_form(&op)) return PyErr_Format(PyExc_ValueError, "attention of heads that do not fit each other");
    if (!is_inside(&op, num_blocks))
        return PyErr_Format(PyExc_ValueError, "attention outside of the cache");
    op.kernels = *set;
    if (op.num_tokens * op.most_seen * op.source.num_heads * op.source.head_dim < WORTH_RELEASING) {
        run_attention(&op, 1);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        run_attention(&op, num_threads);
        Py_END_ALLOW_THREADS;
    }
    Py_RETURN_NONE;
}
