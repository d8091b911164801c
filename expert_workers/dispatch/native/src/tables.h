/* What goes between the dispatcher and Python as plain data. Each NULL with an error set. */
#ifndef EXPERTMESH_TABLES_H
#define EXPERTMESH_TABLES_H

#include "dispatcher.h"

route_table *read_table(PyObject *links, PyObject *layers);
PyObject *show_flight(const dispatcher *d, const flight *f);
PyObject *take_samples(dispatcher *d);
PyObject *take_counts(dispatcher *d);
PyObject *take_records(dispatcher *d);

#endif
