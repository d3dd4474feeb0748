/* The thread pool. See threads.h.
 *
 * The caller publishes a job by raising `generation`. Workers spin briefly for it, because the run of a
 * network is a sequence of short jobs, then sleep on a condition. Threads take tasks from an atomic counter.
 * The pool object is never freed: after a fork the child forgets the parent's and makes its own. */
#define _GNU_SOURCE
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/quota.h"
#include "base/sizes.h"

enum { MAX_THREADS = 256, SPINS = 4000 };

typedef struct job {
    dice_task task;
    void *context;
    size_t count;
    atomic_size_t next;
    /* under the pool's lock: */
    size_t failed;      /* smallest failing index + 1, 0 = none */
    dice_status status; /* of the task of that index, as is the detail */
    char detail[512];
} job;

/* What a new worker is told. */
typedef struct worker_start {
    struct pool *p;
    int thread;
    unsigned seen;
} worker_start;

typedef struct pool {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    int workers; /* started so far */
    int wanted;  /* workers that may join the present job */
    atomic_uint generation;
    atomic_int running; /* workers that joined and have not finished */
    job *current; /* NULL once all its tasks are taken, so that nobody waits for a worker that wakes late */
    worker_start starts[MAX_THREADS];
} pool;

static _Atomic(pool *) the_pool;
static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER; /* held while a job runs */
static atomic_int count_setting;                          /* 0 = use the default */
static atomic_int default_setting;                        /* 0 = not found yet */
static _Thread_local int task_thread = -1; /* the `thread` of the task that runs here, -1 = none */

static void relax(int spin)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
    if (spin % 256 == 255) {
        sched_yield();
    }
}

/* Only the thread that forks exists in the child: the pool has no workers there, and its locks may be held by
 * threads that do not exist. */
static void after_fork_in_child(void)
{
    atomic_store(&the_pool, NULL);
    pthread_mutex_init(&owner, NULL);
    task_thread = -1;
}

static void handle_forks(void)
{
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

static void run_tasks(job *work, pool *p, int thread)
{
    task_thread = thread;
    for (;;) {
        const size_t index = atomic_fetch_add(&work->next, 1);
        if (index >= work->count) {
            break;
        }
        const dice_status status = work->task(work->context, index, thread);
        if (status != DICE_OK) {
            pthread_mutex_lock(&p->lock);
            if (work->failed == 0 || index + 1 < work->failed) {
                work->failed = index + 1;
                work->status = status;
                snprintf(work->detail, sizeof work->detail, "%s", dice_status_detail());
            }
            pthread_mutex_unlock(&p->lock);
            atomic_store(&work->next, work->count); /* tasks under way finish, no new ones start */
        }
    }
    task_thread = -1;
}

static void *worker_main(void *argument)
{
    const worker_start start = *(const worker_start *)argument;
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
        if (work != NULL) {
            atomic_fetch_add(&p->running, 1);
        }
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

/* Called with `owner` held. */
static pool *get_pool(void)
{
    pool *p = atomic_load(&the_pool);
    if (p != NULL) {
        return p;
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

/* Starts workers until there are `wanted`. If fewer can be started, the job is slower but does not fail. */
static void start_workers(pool *p, int wanted)
{
    /* Signals go to the program's own threads, but a fault in a worker must still reach its handler. */
    sigset_t blocked, before;
    sigfillset(&blocked);
    sigdelset(&blocked, SIGSEGV);
    sigdelset(&blocked, SIGBUS);
    sigdelset(&blocked, SIGFPE);
    sigdelset(&blocked, SIGILL);
    sigdelset(&blocked, SIGABRT);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    while (p->workers < wanted) {
        worker_start *start = &p->starts[p->workers];
        *start = (worker_start){p, p->workers + 1, atomic_load(&p->generation)};
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker_main, start) != 0) {
            break;
        }
        pthread_detach(thread);
        p->workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static dice_status run_serially(size_t count, dice_task task, void *context)
{
    const int outer = task_thread;
    task_thread = outer < 0 ? 0 : outer;
    dice_status status = DICE_OK;
    for (size_t i = 0; i < count && status == DICE_OK; i++) {
        status = task(context, i, task_thread);
    }
    task_thread = outer;
    return status;
}

dice_status dice_parallel_for(size_t count, dice_task task, void *context)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, handle_forks); /* before `owner` is first held */
    int helpers = dice_threads_count() - 1;
    if ((size_t)helpers >= count) {
        helpers = count == 0 ? 0 : (int)(count - 1);
    }
    if (helpers <= 0 || task_thread >= 0 || pthread_mutex_trylock(&owner) != 0) {
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
    p->wanted = dice_least32(helpers, p->workers);
    atomic_fetch_add(&p->generation, 1);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);

    run_tasks(&work, p, 0);
    pthread_mutex_lock(&p->lock);
    p->current = NULL;
    pthread_mutex_unlock(&p->lock);

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

static int processors(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        n = CPU_COUNT(&set);
    }
#endif
    const int quota = dice_quota_processors("");
    if (quota > 0 && quota < n) {
        n = quota;
    }
    return n < 1 ? 1 : n < MAX_THREADS ? (int)n : MAX_THREADS;
}

dice_status dice_threads_default(int *count)
{
    const char *text = getenv("DICE_THREADS");
    if (text == NULL || text[0] == '\0') {
        *count = processors();
        return DICE_OK;
    }
    char *end;
    const long value = strtol(text, &end, 10);
    if (*end != '\0' || value < 1 || value > MAX_THREADS) {
        return dice_fail(DICE_E_INPUT, "DICE_THREADS=%s: want a whole number from 1 to %d", text,
                         MAX_THREADS);
    }
    *count = (int)value;
    return DICE_OK;
}

int dice_threads_count(void)
{
    int count = atomic_load(&count_setting);
    if (count == 0) {
        count = atomic_load(&default_setting);
    }
    if (count == 0) {
        if (dice_threads_default(&count) != DICE_OK) {
            count = processors();
        }
        atomic_store(&default_setting, count);
    }
    return count;
}

dice_status dice_threads_set(int count)
{
    if (count < 0 || count > MAX_THREADS) {
        return dice_fail(DICE_E_INPUT, "threads: %d is not in 0 to %d", count, MAX_THREADS);
    }
    atomic_store(&count_setting, count);
    return DICE_OK;
}
