/* A small pool of threads: one job at a time, whose tasks are taken from counters by the threads that there are. */
#ifndef EXPERTMESH_THREADS_H
#define EXPERTMESH_THREADS_H

#include <stdatomic.h>

#define MAX_THREADS 256

/* Called on the caller's own thread, as number 0 of `num_threads`, and on each other that comes in time, with a number
 * of its own. It returns once there is nothing left to take. */
typedef void (*job_fn)(void *job, int thread, int num_threads);

/* Runs the job on up to `num_threads` threads and returns when all is done. A thread that does not come, as other
 * processes have its core, is not waited for. While another thread of this process has the pool, the job runs on the
 * caller's thread alone: results never depend on the number. */
void run_parallel(job_fn fn, void *job, int num_threads);

/* Tasks of a job that others of its tasks build on. Zero-initialised. */
typedef struct {
    atomic_long next, num_done;
} tasks;

static inline long take(atomic_long *next, long count) {
    return atomic_fetch_add_explicit(next, count, memory_order_relaxed);
}

/* `count` of these were done by this thread; returns when all `total` are, by any threads. */
void finish_tasks(tasks *t, long count, long total);

#endif
