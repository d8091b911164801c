/* A small pool of threads: one job at a time, split by its own counters and barriers. */
#ifndef EXPERTMESH_THREADS_H
#define EXPERTMESH_THREADS_H

#include <stdatomic.h>

#define MAX_THREADS 256

/* Called once on each of `num_threads` threads; the caller's own thread is number 0. */
typedef void (*job_fn)(void *job, int thread, int num_threads);

/* Runs the job on up to `num_threads` threads and returns when all are done. While another thread of this
 * process has the pool, the job runs on the caller's thread alone: results never depend on the number. */
void run_parallel(job_fn fn, void *job, int num_threads);

/* All threads of a job wait here for each other. Zero-initialised. */
typedef struct {
    atomic_int num_waiting;
    atomic_uint phase;
} barrier;

void barrier_wait(barrier *b, int num_threads);

#endif
