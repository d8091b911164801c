/* Threads spin between jobs, as the next job of a decode step follows within microseconds: first for themselves, then
 * leaving the core to whatever else can run there (workers and fronts of this machine), and sleep on a futex in the end.
 * A core that is never left idle meanwhile is a core of a virtual machine that need not be woken through its host. */
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

#define SPINS_BEFORE_YIELD 100
#define SPINS_BEFORE_SLEEP 600

/* Of the state: how many others are inside the job, how many may come (none: it is closed), and the job's number. */
#define INSIDE 0xffu
#define WANTED 0xff00u
#define WANTED_SHIFT 8
#define NUMBER_SHIFT 16

static struct {
    pthread_mutex_t owner;
    /* Read, and changed, in one piece: who comes in, comes into a job that is open. */
    _Atomic uint32_t state;
    atomic_int num_sleeping;
    int num_started;
    int num_threads;
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

/* `spin` counts how often, as far as that matters. */
static void wait_a_little(int *spin) {
    if (*spin < SPINS_BEFORE_SLEEP) ++*spin;
    if (*spin < SPINS_BEFORE_YIELD) relax();
    else sched_yield();
}

static uint32_t number_of(uint32_t state) { return state >> NUMBER_SHIFT; }

/* Waits for a job of another number; returns its number. */
static uint32_t next_job(uint32_t seen) {
    uint32_t state;
    for (int spin = 0; spin < SPINS_BEFORE_SLEEP;) {
        state = atomic_load_explicit(&pool.state, memory_order_acquire);
        if (number_of(state) != seen) return number_of(state);
        wait_a_little(&spin);
    }
    atomic_fetch_add(&pool.num_sleeping, 1);
    while (number_of(state = atomic_load(&pool.state)) == seen) sleep_while(&pool.state, state);
    atomic_fetch_sub(&pool.num_sleeping, 1);
    return number_of(state);
}

/* Comes into job `number`, unless it is closed or wants fewer threads. */
static bool enter(uint32_t number, uint32_t thread) {
    uint32_t state = atomic_load(&pool.state);
    do {
        if (number_of(state) != number || thread > (state & WANTED) >> WANTED_SHIFT) return false;
    } while (!atomic_compare_exchange_weak(&pool.state, &state, state + 1));
    return true;
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
        seen = next_job(seen);
        if (!enter(seen, (uint32_t)start->thread)) continue;
        pool.fn(pool.job, start->thread, pool.num_threads);
        atomic_fetch_sub_explicit(&pool.state, 1, memory_order_release);
    }
    return NULL;
}

/* A forked child has none of its parent's threads. */
static void forget_threads(void) {
    pool.num_started = 0;
    atomic_store(&pool.state, 0);
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
        *start = (worker_start){.thread = pool.num_started + 1, .seen = number_of(atomic_load(&pool.state))};
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
    const uint32_t num_others = (uint32_t)start_threads(num_threads - 1);
    pool.fn = fn;
    pool.job = job;
    pool.num_threads = (int)num_others + 1;
    const uint32_t number = number_of(atomic_load(&pool.state)) + 1;
    atomic_store(&pool.state, number << NUMBER_SHIFT | num_others << WANTED_SHIFT);
    if (atomic_load(&pool.num_sleeping) > 0) wake_all(&pool.state);
    fn(job, 0, pool.num_threads);
    atomic_fetch_and(&pool.state, ~WANTED);
    for (int spin = 0; atomic_load_explicit(&pool.state, memory_order_acquire) & INSIDE;) wait_a_little(&spin);
    pthread_mutex_unlock(&pool.owner);
}

void finish_tasks(tasks *t, long count, long total) {
    if (count > 0) atomic_fetch_add_explicit(&t->num_done, count, memory_order_release);
    for (int spin = 0; atomic_load_explicit(&t->num_done, memory_order_acquire) < total;) wait_a_little(&spin);
}
