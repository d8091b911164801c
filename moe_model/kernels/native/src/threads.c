/* Threads spin for a short time between jobs, as the next job of a decode step follows within microseconds,
 * and sleep on a futex after that, as other processes want the cores too. */
#define _GNU_SOURCE
#include "threads.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define SPINS_BEFORE_SLEEP 4000
#define SPINS_BEFORE_YIELD 2000

static struct {
    pthread_mutex_t owner;
    /* Number of the job in the upper bits, its number of threads in the lower 8: read in one piece. */
    _Atomic uint32_t ticket;
    atomic_int num_sleeping;
    atomic_int num_left;
    int num_started;
    job_fn fn;
    void *job;
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#ifdef __linux__
static void sleep_while(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake_all(_Atomic uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0); }
#else
static void sleep_while(_Atomic uint32_t *word, uint32_t value) {
    (void)word;
    (void)value;
    sched_yield();
}

static void wake_all(_Atomic uint32_t *word) { (void)word; }
#endif

static uint32_t next_ticket(uint32_t seen) {
    uint32_t ticket;
    for (int spin = 0; spin < SPINS_BEFORE_SLEEP; spin++) {
        ticket = atomic_load_explicit(&pool.ticket, memory_order_acquire);
        if (ticket != seen) return ticket;
        relax();
    }
    atomic_fetch_add(&pool.num_sleeping, 1);
    while ((ticket = atomic_load(&pool.ticket)) == seen) sleep_while(&pool.ticket, seen);
    atomic_fetch_sub(&pool.num_sleeping, 1);
    return ticket;
}

typedef struct {
    int thread;
    uint32_t seen;
} worker_start;

static worker_start starts[MAX_THREADS];

static void *work(void *arg) {
    worker_start *start = arg;
    uint32_t seen = start->seen;
    for (;;) {
        seen = next_ticket(seen);
        int num_threads = (int)(seen & 0xff) + 1;
        if (start->thread >= num_threads) continue;
        pool.fn(pool.job, start->thread, num_threads);
        atomic_fetch_sub_explicit(&pool.num_left, 1, memory_order_release);
    }
    return NULL;
}

/* A forked child has none of its parent's threads. */
static void forget_threads(void) {
    pool.num_started = 0;
    atomic_store(&pool.num_sleeping, 0);
    pthread_mutex_init(&pool.owner, NULL);
}

static int start_threads(int num_wanted) {
    static bool is_registered = false;
    if (!is_registered) {
        pthread_atfork(NULL, NULL, forget_threads);
        is_registered = true;
    }
    while (pool.num_started < num_wanted) {
        worker_start *start = &starts[pool.num_started];
        *start = (worker_start){.thread = pool.num_started + 1, .seen = atomic_load(&pool.ticket)};
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, start) != 0) break;
        pthread_detach(thread);
        pool.num_started++;
    }
    return pool.num_started < num_wanted ? pool.num_started : num_wanted;
}

void run_parallel(job_fn fn, void *job, int num_threads) {
    if (num_threads > MAX_THREADS) num_threads = MAX_THREADS;
    if (num_threads < 2 || pthread_mutex_trylock(&pool.owner) != 0) {
        fn(job, 0, 1);
        return;
    }
    int num_helpers = start_threads(num_threads - 1);
    pool.fn = fn;
    pool.job = job;
    atomic_store(&pool.num_left, num_helpers);
    uint32_t number = (atomic_load(&pool.ticket) >> 8) + 1;
    atomic_store(&pool.ticket, number << 8 | (uint32_t)num_helpers);
    if (atomic_load(&pool.num_sleeping) > 0) wake_all(&pool.ticket);
    fn(job, 0, num_helpers + 1);
    for (int spin = 0; atomic_load_explicit(&pool.num_left, memory_order_acquire) > 0; spin++) {
        if (spin < SPINS_BEFORE_YIELD) relax();
        else sched_yield();
    }
    pthread_mutex_unlock(&pool.owner);
}

void barrier_wait(barrier *b, int num_threads) {
    if (num_threads < 2) return;
    unsigned phase = atomic_load_explicit(&b->phase, memory_order_relaxed);
    if (atomic_fetch_add(&b->num_waiting, 1) == num_threads - 1) {
        atomic_store_explicit(&b->num_waiting, 0, memory_order_relaxed);
        atomic_fetch_add_explicit(&b->phase, 1, memory_order_release);
        return;
    }
    for (int spin = 0; atomic_load_explicit(&b->phase, memory_order_acquire) == phase; spin++) {
        if (spin < SPINS_BEFORE_YIELD) relax();
        else sched_yield();
    }
}
