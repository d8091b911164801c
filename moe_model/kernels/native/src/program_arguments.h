/* What is common to the functions that make programs and to those that run them. */
#ifndef EXPERTMESH_PROGRAM_ARGUMENTS_H
#define EXPERTMESH_PROGRAM_ARGUMENTS_H

#include "arguments.h"
#include "program.h"

#define PROGRAM "expertmesh.program"

/* Reads a None, if that is what comes next. */
static inline int is_nowhere(reader *r) {
    if (r->num_left < 1 || *r->next != Py_None) return 0;
    read_object(r);
    return 1;
}

static inline void must(reader *r, int is_right, const char *what) {
    if (r->failed || is_right) return;
    PyErr_Format(PyExc_ValueError, "a program with %s", what);
    r->failed = 1;
}

#endif
