/* The thread pool. See threads.h.
 *
 * A job is published by bumping `generation`; workers spin briefly for it (a
 * network run is a train of short jobs), then sleep on a condition. Tasks are
 * taken by an atomic counter. The pool object is never freed: after fork the
 * child drops the parent's and makes its own at next use. */
#define _GNU_SOURCE
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/memory.h"

enum { MAX_THREADS = 256, SPINS = 4000 };

typedef struct job {
    dice_task task;
    void *context;
    size_t count;
    atomic_size_t next;
    atomic_size_t failed;  /* smallest failing index + 1, 0 = none */
    dice_status status;    /* of that index, under the pool's lock */
    char detail[512];
} job;

typedef struct pool {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    int workers;             /* started so far */
    int wanted;              /* workers that take part in the present job */
    atomic_uint generation;
    atomic_int running;      /* workers that have not finished the present job */
    job *current;
} pool;

static _Atomic(pool *) the_pool;
static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER;  /* held while a job runs */
static atomic_int count_setting;                           /* 0 = default */
static _Thread_local int inside_task;

static void relax(int spin)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (spin % 256 == 255) {
        sched_yield();
    }
}

/* In the child only the forking thread lives: its pool has no workers and its locks may be held. */
static void after_fork_in_child(void)
{
    atomic_store(&the_pool, NULL);
    pthread_mutex_init(&owner, NULL);
    inside_task = 0;
}

static void run_tasks(job *work, pool *p, int thread)
{
    const int outer = inside_task;
    inside_task = 1;
    for (;;) {
        const size_t index = atomic_fetch_add(&work->next, 1);
        if (index >= work->count) {
            break;
        }
        const dice_status status = work->task(work->context, index, thread);
        if (status != DICE_OK) {
            pthread_mutex_lock(&p->lock);
            const size_t known = atomic_load(&work->failed);
            if (known == 0 || index + 1 < known) {
                atomic_store(&work->failed, index + 1);
                work->status = status;
                const char *text = dice_status_detail();
                size_t i = 0;
                for (; text[i] != '\0' && i + 1 < sizeof work->detail; i++) {
                    work->detail[i] = text[i];
                }
                work->detail[i] = '\0';
            }
            pthread_mutex_unlock(&p->lock);
            atomic_store(&work->next, work->count);  /* those under way finish, no new ones start */
        }
    }
    inside_task = outer;
}

typedef struct worker_start {
    pool *p;
    int thread;
    unsigned seen;
} worker_start;

static void *worker_main(void *argument)
{
    worker_start start = *(worker_start *)argument;
    dice_free(argument);
    pool *p = start.p;
    unsigned seen = start.seen;
    for (;;) {
        int spin = 0;
        while (atomic_load(&p->generation) == seen && spin < SPINS) {
            relax(spin++);
        }
        pthread_mutex_lock(&p->lock);
        while (atomic_load(&p->generation) == seen) {
            pthread_cond_wait(&p->wake, &p->lock);
        }
        seen = atomic_load(&p->generation);
        job *work = start.thread <= p->wanted ? p->current : NULL;
        pthread_mutex_unlock(&p->lock);
        if (work == NULL) {
            continue;
        }
        run_tasks(work, p, start.thread);
        if (atomic_fetch_sub(&p->running, 1) == 1) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
    }
    return NULL;
}

static pool *get_pool(void)  /* under `owner` */
{
    static atomic_int fork_handler_set;
    pool *p = atomic_load(&the_pool);
    if (p != NULL) {
        return p;
    }
    if (atomic_exchange(&fork_handler_set, 1) == 0) {
        pthread_atfork(NULL, NULL, after_fork_in_child);
    }
    void *memory;
    if (dice_alloc_zero(1, sizeof *p, &memory) != DICE_OK) {
        return NULL;
    }
    p = memory;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    atomic_store(&the_pool, p);
    return p;
}

/* Starts workers up to `wanted`; fewer is no error, only slower. */
static void start_workers(pool *p, int wanted)
{
    while (p->workers < wanted) {
        void *memory;
        if (dice_alloc(1, sizeof(worker_start), &memory) != DICE_OK) {
            return;
        }
        worker_start *start = memory;
        *start = (worker_start){p, p->workers + 1, atomic_load(&p->generation)};
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker_main, start) != 0) {
            dice_free(start);
            return;
        }
        pthread_detach(thread);
        p->workers++;
    }
}

static dice_status run_serially(size_t count, dice_task task, void *context)
{
    for (size_t i = 0; i < count; i++) {
        const dice_status status = task(context, i, 0);
        if (status != DICE_OK) {
            return status;
        }
    }
    return DICE_OK;
}

dice_status dice_parallel_for(size_t count, dice_task task, void *context)
{
    int helpers = dice_threads_count() - 1;
    if ((size_t)helpers >= count) {
        helpers = count == 0 ? 0 : (int)(count - 1);
    }
    if (helpers <= 0 || inside_task || pthread_mutex_trylock(&owner) != 0) {
        return run_serially(count, task, context);
    }
    pool *p = get_pool();
    if (p != NULL) {
        start_workers(p, helpers);
    }
    if (p == NULL || p->workers == 0) {
        pthread_mutex_unlock(&owner);
        return run_serially(count, task, context);
    }
    job work = {.task = task, .context = context, .count = count};
    pthread_mutex_lock(&p->lock);
    p->current = &work;
    p->wanted = helpers < p->workers ? helpers : p->workers;
    atomic_store(&p->running, p->wanted);
    atomic_fetch_add(&p->generation, 1);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);

    run_tasks(&work, p, 0);

    for (int spin = 0; atomic_load(&p->running) != 0 && spin < SPINS; spin++) {
        relax(spin);
    }
    pthread_mutex_lock(&p->lock);
    while (atomic_load(&p->running) != 0) {
        pthread_cond_wait(&p->done, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    if (work.status != DICE_OK) {
        dice_status_set_detail(work.detail);
    }
    const dice_status status = work.status;
    pthread_mutex_unlock(&owner);
    return status;
}

static int default_count(void)
{
    const char *text = getenv("DICE_THREADS");
    if (text != NULL && text[0] != '\0') {
        char *end;
        const long value = strtol(text, &end, 10);
        if (*end == '\0' && value >= 1 && value <= MAX_THREADS) {
            return (int)value;
        }
    }
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        const int n = CPU_COUNT(&set);
        return n < 1 ? 1 : n < MAX_THREADS ? n : MAX_THREADS;
    }
#endif
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n < MAX_THREADS ? (int)n : MAX_THREADS;
}

int dice_threads_count(void)
{
    const int set = atomic_load(&count_setting);
    return set > 0 ? set : default_count();
}

dice_status dice_threads_set(int count)
{
    if (count < 0 || count > MAX_THREADS) {
        return dice_fail(DICE_E_INPUT, "threads: %d is not in 0 to %d", count, MAX_THREADS);
    }
    atomic_store(&count_setting, count);
    return DICE_OK;
}
