/* Programs as Python objects: built of tuples, one for each instruction, whose places are checked to be in their buffers. */
#include "program_arguments.h"

#include <string.h>

static void release(program *p) {
    PyMem_RawFree(p->width_B);
    PyMem_RawFree(p->instructions);
    PyMem_RawFree(p->seconds_I);
    PyMem_RawFree(p);
}

static void free_program(PyObject *capsule) {
    program *p = PyCapsule_GetPointer(capsule, PROGRAM);
    release(p);
}

/* A place with room for `width` values in each row; else a Python error is set. */
static place read_place(reader *r, const program *p, long width) {
    const long buffer = read_long(r);
    const place found = {(int)buffer, read_long(r)};
    if (r->failed) return found;
    if (buffer < 0 || buffer >= p->num_buffers || width < 1 || found.at < 0 || found.at + width > p->width_B[buffer]) {
        PyErr_Format(PyExc_ValueError, "%ld values at %ld of buffer %ld are outside", width, found.at, buffer);
        r->failed = 1;
    }
    return found;
}

/* A whole buffer of rows of `width`. */
static place read_rows_of(reader *r, const program *p, long width) {
    const place found = read_place(r, p, width);
    if (!r->failed && (found.at != 0 || p->width_B[found.buffer] != width)) {
        PyErr_Format(PyExc_ValueError, "buffer %d is not of rows of %ld", found.buffer, width);
        r->failed = 1;
    }
    return found;
}

static const place nowhere = {NOWHERE, 0};

static long read_layer(reader *r, const program *p) {
    const long layer = read_long(r);
    must(r, layer >= 0 && layer < p->num_layers, "a layer too many");
    return layer;
}

static matrix read_matrix(reader *r) {
    const matrix *found = read_capsule(r, MATRIX);
    return found == NULL ? (matrix){.num_in = 1, .num_out = 1} : *found;
}

static void read_embedding(reader *r, const program *p, embedding *e) {
    e->weight_VD = read_address(r);
    e->is_bf16 = (int)read_long(r);
    e->num_ids = read_long(r);
    e->scale = read_float(r);
    e->positions_SD = read_address(r);
    e->num_positions = read_long(r);
    e->width = p->width_B[STREAM];
}

static void read_linear(reader *r, const program *p, linear_step *i) {
    i->w = read_matrix(r);
    i->norm = read_norm(r);
    i->activation = (int)read_long(r);
    i->x = read_place(r, p, i->w.num_in);
    i->y = read_rows_of(r, p, i->w.num_out);
    must(r, r->failed || norm_fits(&i->norm, i->w.num_in), "a norm of another width");
    must(r, i->y.buffer != STREAM || !i->w.is_gated, "a gated product to the stream");
    must(r, i->x.buffer != i->y.buffer, "a product in place");
}

static void read_head_linear(reader *r, const program *p, head_linear_step *i) {
    i->w = read_matrix(r);
    const long num_heads = read_long(r), num_out = read_long(r), all = num_panels(&i->w);
    i->w.num_out = num_out;
    must(r, num_heads >= 1 && num_out >= 1 && num_heads * num_panels(&i->w) == all, "heads of another size");
    i->num_heads = num_heads;
    i->apart = read_long(r);
    must(r, i->apart >= i->w.num_in, "heads that overlap");
    i->x = read_place(r, p, (num_heads - 1) * i->apart + i->w.num_in);
    i->y = read_rows_of(r, p, num_heads * num_out);
}

static void read_norm_step(reader *r, const program *p, norm_step *i) {
    i->norm = read_norm(r);
    must(r, i->norm.kind != NORM_NONE, "a norm that is none");
    i->num_heads = read_long(r);
    i->x = read_place(r, p, i->num_heads * i->norm.width);
    i->y = read_place(r, p, i->num_heads * i->norm.width);
}

static void read_clamp(reader *r, const program *p, clamp_step *i) {
    i->limit = read_float(r);
    i->width = read_long(r);
    i->x = read_place(r, p, i->width);
}

static void read_rotate(reader *r, const program *p, rotate_step *i) {
    i->how.rates = read_address(r);
    i->how.factor = read_float(r);
    i->how.dim = read_long(r);
    i->how.is_interleaved = (int)read_long(r);
    i->num_heads = read_long(r);
    i->head_dim = read_long(r);
    must(r, i->how.dim >= 2 && i->how.dim % 2 == 0 && i->how.dim <= i->head_dim && i->how.dim <= MAX_ROTARY_DIM,
         "values that cannot turn");
    i->x = read_place(r, p, i->num_heads * i->head_dim);
}

static void read_attend(reader *r, const program *p, attend_step *i) {
    i->layer = read_layer(r, p);
    i->num_heads = read_long(r);
    i->num_kv_heads = read_long(r);
    i->head_dim = read_long(r);
    i->value_width = read_long(r);
    i->scale = read_float(r);
    i->window = read_long(r);
    i->sinks_H = read_address(r);
    must(r, i->num_kv_heads >= 1 && i->num_heads >= 1 && i->num_heads % i->num_kv_heads == 0 && i->window >= 0,
         "heads that do not fit each other");
    i->q = read_place(r, p, i->num_heads * i->head_dim);
    i->k = read_place(r, p, i->num_kv_heads * i->head_dim);
    i->v = is_nowhere(r) ? nowhere : read_place(r, p, i->num_kv_heads * i->value_width);
    must(r, i->v.buffer != NOWHERE || i->value_width <= i->head_dim, "values wider than their keys");
    i->o = read_rows_of(r, p, i->num_heads * i->value_width);
}

static void read_copy(reader *r, const program *p, copy_step *i) {
    i->num_heads = read_long(r);
    i->width = read_long(r);
    i->x_apart = read_long(r);
    i->y_apart = read_long(r);
    must(r, i->num_heads >= 1 && i->x_apart >= i->width && i->y_apart >= i->width, "copies that overlap");
    i->x = read_place(r, p, (i->num_heads - 1) * i->x_apart + i->width);
    i->y = read_place(r, p, (i->num_heads - 1) * i->y_apart + i->width);
    must(r, i->x.buffer != i->y.buffer, "a copy in place");
}

static void read_route(reader *r, const program *p, route_step *i) {
    i->layer = read_layer(r, p);
    i->gate = read_matrix(r);
    const router_rule *rule = read_capsule(r, RULE);
    if (rule != NULL) i->rule = *rule;
    i->top_k = read_long(r);
    must(r, i->top_k >= 1 && i->top_k <= i->gate.num_out, "more experts per token than there are");
    must(r, r->failed || rule_fits(&i->rule, i->gate.num_out), "groups of other experts");
    i->x = read_rows_of(r, p, i->gate.num_in);
    i->logits = read_rows_of(r, p, i->gate.num_out);
    i->weights = read_rows_of(r, p, i->top_k);
    i->ids = read_rows_of(r, p, 2 * i->top_k);
}

static void read_experts(reader *r, const program *p, experts_step *i) {
    const long width = p->width_B[STREAM];
    i->layer = read_layer(r, p);
    i->num_experts = read_long(r);
    i->top_k = read_long(r);
    must(r, i->top_k >= 1, "no experts for a token");
    i->x = read_rows_of(r, p, width);
    i->weights = read_rows_of(r, p, i->top_k);
    i->ids = read_rows_of(r, p, 2 * i->top_k);
    i->y = read_rows_of(r, p, width);
    must(r, i->y.buffer != STREAM && i->y.buffer != i->x.buffer, "experts in place");
}

static void read_gate(reader *r, const program *p, gate_step *i) {
    i->width = p->width_B[STREAM];
    i->y = read_rows_of(r, p, i->width);
    i->gate = read_rows_of(r, p, 1);
}

static void read_join(reader *r, const program *p, join_step *i) {
    const long width = p->width_B[STREAM];
    i->y = read_rows_of(r, p, width);
    i->also = is_nowhere(r) ? nowhere : read_rows_of(r, p, width);
    i->norm = read_norm(r);
    i->scale = read_float(r);
    must(r, r->failed || norm_fits(&i->norm, width), "a norm of another width");
    must(r, i->y.buffer != STREAM, "a stream that joins itself");
}

static int read_instruction(PyObject *tuple, const program *p, instruction *i) {
    if (!PyTuple_Check(tuple)) {
        PyErr_SetString(PyExc_TypeError, "an instruction is not a tuple");
        return 0;
    }
    reader r = {((PyTupleObject *)tuple)->ob_item, PyTuple_GET_SIZE(tuple), 0};
    i->kind = (enum instruction_kind)read_long(&r);
    switch (i->kind) {
        case EMBED: read_embedding(&r, p, &i->embed); break;
        case LINEAR: read_linear(&r, p, &i->linear); break;
        case HEAD_LINEAR: read_head_linear(&r, p, &i->head_linear); break;
        case NORM: read_norm_step(&r, p, &i->norm); break;
        case CLAMP: read_clamp(&r, p, &i->clamp); break;
        case ROTATE: read_rotate(&r, p, &i->rotate); break;
        case ATTEND: read_attend(&r, p, &i->attend); break;
        case COPY: read_copy(&r, p, &i->copy); break;
        case ROUTE: read_route(&r, p, &i->route); break;
        case EXPERTS:
        case ANSWER: read_experts(&r, p, &i->experts); break;
        case GATE: read_gate(&r, p, &i->gate); break;
        case JOIN: read_join(&r, p, &i->join); break;
        default: must(&r, 0, "an instruction of no kind");
    }
    return is_done(&r);
}

static int read_program(program *p, PyObject *widths, PyObject *instructions) {
    if (!PyTuple_Check(widths) || !PyTuple_Check(instructions)) {
        PyErr_SetString(PyExc_TypeError, "widths and instructions are tuples");
        return 0;
    }
    p->num_buffers = PyTuple_GET_SIZE(widths);
    p->num_instructions = PyTuple_GET_SIZE(instructions);
    p->width_B = PyMem_RawCalloc(p->num_buffers + 1, sizeof(long));
    p->instructions = PyMem_RawCalloc(p->num_instructions + 1, sizeof(instruction));
    p->seconds_I = PyMem_RawCalloc(p->num_instructions + 1, sizeof(double));
    if (p->width_B == NULL || p->instructions == NULL || p->seconds_I == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    for (long b = 0; b < p->num_buffers; b++) {
        p->width_B[b] = PyLong_AsLong(PyTuple_GET_ITEM(widths, b));
        if (p->width_B[b] < 1) {
            if (!PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "buffer %ld has no width", b);
            return 0;
        }
    }
    for (long n = 0; n < p->num_instructions; n++) {
        if (!read_instruction(PyTuple_GET_ITEM(instructions, n), p, &p->instructions[n])) return 0;
        if (p->instructions[n].kind == ROUTE) p->instructions[n].route.order = p->num_routers++;
    }
    if (p->num_buffers > 0 && p->num_instructions > 0 && p->instructions[0].kind == EMBED) return 1;
    PyErr_SetString(PyExc_ValueError, "a program that does not begin with the embedding");
    return 0;
}

/* (kernels, number of layers, width of each buffer, instructions) */
PyObject *py_program(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const kernel_set *set = read_capsule(&r, KERNELS);
    const long num_layers = read_long(&r);
    PyObject *widths = read_object(&r), *instructions = read_object(&r);
    if (!is_done(&r)) return NULL;
    program *p = PyMem_RawCalloc(1, sizeof(program));
    if (p == NULL) return PyErr_NoMemory();
    p->kernels = *set;
    p->num_layers = num_layers;
    PyObject *capsule = read_program(p, widths, instructions) ? PyCapsule_New(p, PROGRAM, free_program) : NULL;
    if (capsule == NULL) release(p);
    return capsule;
}

/* (program, whether its instructions are timed): seconds of each so far, which begin anew. */
PyObject *py_program_times(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    program *p = read_capsule(&r, PROGRAM);
    const int is_timed = (int)read_long(&r);
    if (!is_done(&r)) return NULL;
    PyObject *times = PyTuple_New(p->num_instructions);
    for (long n = 0; times != NULL && n < p->num_instructions; n++) {
        PyObject *seconds = PyFloat_FromDouble(p->seconds_I[n]);
        if (seconds == NULL) Py_CLEAR(times);
        else PyTuple_SET_ITEM(times, n, seconds);
    }
    p->is_timed = is_timed;
    memset(p->seconds_I, 0, sizeof(double) * p->num_instructions);
    return times;
}
