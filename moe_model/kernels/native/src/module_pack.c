/* Weights into panels, as matrix.h has them. */
#include "arguments.h"

#include <string.h>

/* Panels of `which` matrices in turns: of one, or of what gates and what is gated. */
typedef struct {
    const char *rows[2]; /* [O, I], rows `stride` bytes apart */
    int num_matrices;
    long num_out, num_in, stride, value_bytes;
    char *out;
} pack_job;

/* 16 rows of units become units of 16, tile by tile: a line of each row is read once. NULL: a row of zeros. */
#define DEFINE_PACK(unit)                                                                                    \
    static void pack_##unit(const char *const *row, long num_units, unit *out) {                             \
        for (long first = 0; first < num_units; first += PANEL) {                                            \
            const long n = num_units - first < PANEL ? num_units - first : PANEL;                            \
            for (int r = 0; r < PANEL; r++) {                                                                \
                unit values[PANEL] = {0};                                                                    \
                if (row[r] != NULL) memcpy(values, row[r] + first * sizeof(unit), n * sizeof(unit));         \
                for (long i = 0; i < n; i++) out[(first + i) * PANEL + r] = values[i];                       \
            }                                                                                                \
        }                                                                                                    \
    }
DEFINE_PACK(uint32_t)
DEFINE_PACK(uint8_t)
#undef DEFINE_PACK

/* An odd last bfloat16 of each row, and a zero beside it. */
static void pack_last(const char *const *row, long num_in, uint16_t *out) {
    for (int r = 0; r < PANEL; r++) {
        out[2 * r] = out[2 * r + 1] = 0;
        if (row[r] != NULL) memcpy(out + 2 * r, row[r] + 2 * (num_in - 1), 2);
    }
}

static void pack_panel(const pack_job *job, long panel, char *out) {
    const char *matrix = job->rows[panel % job->num_matrices], *row[PANEL];
    const long first = panel / job->num_matrices * PANEL;
    for (int r = 0; r < PANEL; r++) row[r] = first + r < job->num_out ? matrix + (first + r) * job->stride : NULL;
    if (job->value_bytes == 1) {
        pack_uint8_t(row, job->num_in, (uint8_t *)out);
    } else if (job->value_bytes == 4) {
        pack_uint32_t(row, job->num_in, (uint32_t *)out);
    } else {
        const long num_pairs = job->num_in / 2;
        pack_uint32_t(row, num_pairs, (uint32_t *)out);
        if (job->num_in % 2) pack_last(row, job->num_in, (uint16_t *)out + num_pairs * 2 * PANEL);
    }
}

PyObject *py_pack(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    reader r = {args, num_args, 0};
    pack_job job = {0};
    job.rows[0] = read_address(&r);
    job.rows[1] = read_address(&r);
    job.num_out = read_long(&r);
    job.num_in = read_long(&r);
    job.value_bytes = read_long(&r);
    job.stride = read_long(&r) * job.value_bytes;
    job.out = read_address(&r);
    if (!is_done(&r)) return NULL;
    job.num_matrices = job.rows[1] == NULL ? 1 : 2;
    const long size = job.value_bytes;
    if (size != 1 && size != 2 && size != 4)
        return PyErr_Format(PyExc_ValueError, "values of %ld bytes cannot be packed", size);
    const long num_panels = (job.num_out + PANEL - 1) / PANEL * job.num_matrices;
    const long panel_size = PANEL * (size == 2 ? (job.num_in + 1) / 2 * 4 : job.num_in * size);
    Py_BEGIN_ALLOW_THREADS;
    for (long panel = 0; panel < num_panels; panel++) pack_panel(&job, panel, job.out + panel * panel_size);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}
