/* Steps of a program as Python objects: the cache, the experts and the tokens of one step, checked before they are run. */
#include "program_arguments.h"

#define CACHE "expertmesh.paged_cache"
#define TABLES "expertmesh.layer_tables"
#define STEP "expertmesh.program_step"

static void free_cache(PyObject *capsule) {
    paged_cache *cache = PyCapsule_GetPointer(capsule, CACHE);
    PyMem_RawFree(cache->layers);
    PyMem_RawFree(cache->num_blocks_G);
    PyMem_RawFree(cache);
}

/* A new array of the tuple's length. */
static void *array_for(reader *r, PyObject *tuple, size_t size) {
    if (!r->failed && !PyTuple_Check(tuple)) {
        PyErr_SetString(PyExc_TypeError, "not a tuple");
        r->failed = 1;
    }
    void *made = r->failed ? NULL : PyMem_RawCalloc(PyTuple_GET_SIZE(tuple) + 1, size);
    if (made == NULL && !r->failed) {
        PyErr_NoMemory();
        r->failed = 1;
    }
    return made;
}

static void read_cache_layers(reader *r, PyObject *layers, paged_cache *cache) {
    for (long layer = 0; layer < cache->num_layers && !r->failed; layer++) {
        PyObject *item = PyTuple_GET_ITEM(layers, layer);
        layer_cache *to = &cache->layers[layer];
        reader of_layer = {((PyTupleObject *)item)->ob_item, PyTuple_Check(item) ? PyTuple_GET_SIZE(item) : 0, 0};
        to->keys = read_address(&of_layer);
        to->values = read_address(&of_layer);
        to->is_bf16 = (int)read_long(&of_layer);
        to->group = read_long(&of_layer);
        to->num_kv_heads = read_long(&of_layer);
        to->key_width = read_long(&of_layer);
        to->value_width = read_long(&of_layer);
        r->failed = !is_done(&of_layer);
    }
}

/* (block size, blocks of each group, for each layer: keys, values or 0, is bfloat16, group, heads, widths of both) */
PyObject *py_paged_cache(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    paged_cache cache = {.block_size = read_long(&r)};
    PyObject *blocks = read_object(&r), *layers = read_object(&r);
    if (!is_done(&r)) return NULL;
    cache.num_blocks_G = array_for(&r, blocks, sizeof(long));
    cache.layers = array_for(&r, layers, sizeof(layer_cache));
    if (!r.failed) {
        cache.num_groups = PyTuple_GET_SIZE(blocks);
        cache.num_layers = PyTuple_GET_SIZE(layers);
        reader counts = {((PyTupleObject *)blocks)->ob_item, cache.num_groups, 0};
        for (long g = 0; g < cache.num_groups; g++) cache.num_blocks_G[g] = read_long(&counts);
        r.failed = !is_done(&counts);
        read_cache_layers(&r, layers, &cache);
        must(&r, cache.block_size >= 1, "a cache without blocks");
    }
    paged_cache *made = r.failed ? NULL : PyMem_RawMalloc(sizeof cache);
    if (made == NULL) {
        PyMem_RawFree(cache.num_blocks_G);
        PyMem_RawFree(cache.layers);
        return r.failed ? NULL : PyErr_NoMemory();
    }
    *made = cache;
    return PyCapsule_New(made, CACHE, free_cache);
}

/* (for each layer: its experts or None) */
PyObject *py_layer_tables(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const size_t size = sizeof(layer_tables) + sizeof(expert_table *) * num_args;
    layer_tables *tables = PyMem_RawCalloc(1, size);
    if (tables == NULL) return PyErr_NoMemory();
    tables->num_layers = num_args;
    for (long layer = 0; layer < num_args; layer++)
        tables->tables[layer] = is_nowhere(&r) ? NULL : read_capsule(&r, TABLE);
    PyObject *capsule = is_done(&r) ? to_capsule(tables, size, TABLES) : NULL;
    PyMem_RawFree(tables);
    return capsule;
}

/* A step, then what it sees of each group. */
typedef struct {
    program_step step;
    group_context groups[];
} step_with_groups;

static void read_groups(reader *r, group_context *groups, long num_groups) {
    for (long g = 0; g < num_groups; g++) {
        groups[g].slot_T = read_address(r);
        groups[g].sequence_T = read_address(r);
        groups[g].length_T = read_address(r);
        groups[g].block_table_NB = read_address(r);
        groups[g].num_sequences = read_long(r);
        groups[g].table_stride = read_long(r);
        groups[g].longest = read_long(r);
    }
}

/* None, tables, or what knows other experts. */
static void read_experts_of(reader *r, program_step *s) {
    if (is_nowhere(r)) return;
    PyObject *capsule = read_object(r);
    if (capsule == NULL) return;
    if (PyCapsule_IsValid(capsule, TABLES)) s->tables = PyCapsule_GetPointer(capsule, TABLES);
    else s->others = PyCapsule_GetPointer(capsule, LAYER_EXPERTS);
    r->failed = s->tables == NULL && s->others == NULL;
}

/* (address or 0, and if there is one: rows of the tokens, routers, rows, candidates of each) */
static void read_forced(reader *r, const program *p, forced_experts *forced) {
    forced->ids_RPC = read_address(r);
    forced->row_T = read_address(r);
    const long num_routers = read_long(r);
    forced->num_rows = read_long(r);
    forced->num_candidates = read_long(r);
    must(r, r->failed || forced->ids_RPC == NULL || (num_routers == p->num_routers && forced->row_T != NULL),
         "a table of other routers");
}

/* (program, cache, experts, whether it stops at routers, threads, tokens, ids, positions, the five values of forced
 * experts, where to write what routers choose or 0, for each group of the cache: slots, sequences, lengths, block table,
 * sequences, blocks of each, longest). Checked; ValueError for what is outside. */
PyObject *py_program_step(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const program *p = read_capsule(&r, PROGRAM);
    program_step s = {.cache = read_capsule(&r, CACHE)};
    read_experts_of(&r, &s);
    s.stops_at_routers = (int)read_long(&r);
    s.num_threads = (int)read_long(&r);
    s.num_tokens = read_long(&r);
    s.ids_T = read_address(&r);
    s.position_T = read_address(&r);
    if (!r.failed) read_forced(&r, p, &s.forced);
    s.chosen_TRK = read_address(&r);
    must(&r, s.num_threads >= 1 && s.num_tokens >= 1, "nothing to do");
    if (r.failed) return NULL;
    step_with_groups *made = PyMem_RawCalloc(1, sizeof *made + sizeof(group_context) * s.cache->num_groups);
    if (made == NULL) return PyErr_NoMemory();
    read_groups(&r, made->groups, s.cache->num_groups);
    s.groups = made->groups;
    made->step = s;
    const char *wrong = is_done(&r) ? check_cache(p, s.cache) : NULL;
    if (!r.failed && wrong == NULL) wrong = check_step(p, &s);
    if (wrong != NULL) PyErr_Format(PyExc_ValueError, "a step with %s", wrong);
    PyObject *capsule = PyErr_Occurred() ? NULL : PyCapsule_New(made, STEP, free_capsule);
    if (capsule == NULL) PyMem_RawFree(made);
    return capsule;
}

/* (program, step): bytes of its arena, and of what its operations work in. */
PyObject *py_program_bytes(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const program *p = read_capsule(&r, PROGRAM);
    const step_with_groups *s = read_capsule(&r, STEP);
    if (!is_done(&r)) return NULL;
    return Py_BuildValue("(ll)", program_arena_bytes(p, s->step.num_tokens), program_scratch_bytes(p, &s->step));
}

/* (program, tokens, buffer): where it begins in the arena, in bytes. */
PyObject *py_buffer_offset(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    const program *p = read_capsule(&r, PROGRAM);
    const long num_tokens = read_long(&r), buffer = read_long(&r);
    if (!is_done(&r)) return NULL;
    must(&r, buffer > STREAM && buffer < p->num_buffers, "no such buffer");
    return r.failed ? NULL : PyLong_FromLong(buffer_offset(p, num_tokens, buffer));
}

/* (program, step, arena, scratch, stream, first instruction): the number of the one at which it stopped. */
PyObject *py_run_program(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    program *p = read_capsule(&r, PROGRAM);
    step_with_groups *of = read_capsule(&r, STEP);
    char *arena = read_address(&r);
    void *scratch = read_address(&r);
    float *stream = read_address(&r);
    const long first = read_long(&r);
    must(&r, first >= 0, "no beginning");
    if (!is_done(&r)) return NULL;
    of->step.arena = arena;
    of->step.scratch = scratch;
    of->step.stream = stream;
    long stopped;
    Py_BEGIN_ALLOW_THREADS;
    stopped = run_program(p, &of->step, first);
    Py_END_ALLOW_THREADS;
    return PyLong_FromLong(stopped);
}
