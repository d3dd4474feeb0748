/* The promises of the thread pool. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/lock.h"
#include "base/memory.h"
#include "base/threads.h"
#include "tests/check.h"

enum { THREADS = 4, MOST = 1000 };

typedef struct tally {
    atomic_int seen[MOST];    /* how often each task ran */
    atomic_int busy[THREADS]; /* tasks that run with this `thread` now */
} tally;

static dice_status count_task(void *context, size_t index, int thread)
{
    tally *t = context;
    CHECK(thread >= 0 && thread < THREADS);
    CHECK(atomic_fetch_add(&t->busy[thread], 1) == 0);
    atomic_fetch_add(&t->seen[index], 1);
    atomic_fetch_sub(&t->busy[thread], 1);
    return DICE_OK;
}

static void check_all_run_once(size_t count)
{
    tally t = {0};
    CHECK(dice_parallel_for(count, count_task, &t) == DICE_OK);
    for (size_t i = 0; i < MOST; i++) {
        CHECK(atomic_load(&t.seen[i]) == (i < count));
    }
}

static void test_every_task_runs_once(void)
{
    static const size_t counts[] = {0, 1, 2, THREADS - 1, THREADS, THREADS + 1, 97, MOST};
    for (int threads = 1; threads <= THREADS; threads++) {
        CHECK(dice_threads_set(threads) == DICE_OK);
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            check_all_run_once(counts[i]);
        }
    }
    for (int i = 0; i < 2000; i++) { /* short jobs in a train: workers spin or sleep in between */
        check_all_run_once(3);
        if (i % 500 == 0) {
            usleep(2000);
        }
    }
}

static dice_status fail_from(void *context, size_t index, int thread)
{
    (void)thread;
    const size_t first = *(const size_t *)context;
    if (index < first) {
        return DICE_OK;
    }
    return dice_fail(index % 2 ? DICE_E_DEVICE : DICE_E_INPUT, "task %zu", index);
}

static void test_smallest_failing_index(void)
{
    for (size_t first = 0; first < 40; first++) {
        const dice_status status = dice_parallel_for(64, fail_from, &first);
        CHECK(status == (first % 2 ? DICE_E_DEVICE : DICE_E_INPUT));
        CHECK(strncmp(dice_status_detail(), "task ", 5) == 0);
        CHECK(strtoul(dice_status_detail() + 5, NULL, 10) == first);
    }
}

/* Waits for its twin, so that both run at once; then the one on a worker fails. */
static dice_status meet(void *context, size_t index, int thread)
{
    (void)index;
    atomic_int *arrived = context;
    atomic_fetch_add(arrived, 1);
    for (int i = 0; i < 20000 && atomic_load(arrived) < 2; i++) {
        usleep(1000);
    }
    CHECK(atomic_load(arrived) == 2);
    return thread == 0 ? DICE_OK : dice_fail(DICE_E_INPUT, "worker %d", thread);
}

static void check_two_threads_work(void)
{
    atomic_int arrived = 0;
    dice_fail(DICE_E_INTERNAL, "before");
    CHECK(dice_parallel_for(2, meet, &arrived) == DICE_E_INPUT);
    CHECK(strcmp(dice_status_detail(), "worker 1") == 0);
}

typedef struct nest {
    atomic_int *ran; /* inner tasks */
    int thread;      /* of the outer task */
} nest;

static dice_status inner_task(void *context, size_t index, int thread)
{
    (void)index;
    const nest *n = context;
    CHECK(thread == n->thread);
    atomic_fetch_add(n->ran, 1);
    return DICE_OK;
}

static dice_status outer_task(void *context, size_t index, int thread)
{
    (void)index;
    nest n = {context, thread};
    return dice_parallel_for(5, inner_task, &n);
}

static void test_nested(void)
{
    atomic_int ran = 0;
    CHECK(dice_parallel_for(40, outer_task, &ran) == DICE_OK);
    CHECK(atomic_load(&ran) == 200);
    CHECK(dice_threads_set(1) == DICE_OK);
    CHECK(dice_parallel_for(40, outer_task, &ran) == DICE_OK);
    CHECK(dice_threads_set(THREADS) == DICE_OK);
    CHECK(atomic_load(&ran) == 400);
}

static void *caller(void *argument)
{
    (void)argument;
    for (int i = 0; i < 200; i++) {
        check_all_run_once(17);
        size_t first = 3;
        CHECK(dice_parallel_for(9, fail_from, &first) == DICE_E_DEVICE);
        CHECK(strcmp(dice_status_detail(), "task 3") == 0);
        atomic_int ran = 0;
        CHECK(dice_parallel_for(4, outer_task, &ran) == DICE_OK && atomic_load(&ran) == 20);
    }
    return NULL;
}

static void test_several_callers(void)
{
    pthread_t callers[3];
    for (int i = 0; i < 3; i++) {
        CHECK(pthread_create(&callers[i], NULL, caller, NULL) == 0);
    }
    for (int i = 0; i < 3; i++) {
        CHECK(pthread_join(callers[i], NULL) == 0);
    }
}

static void check_child(void)
{
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(20); /* a deadlock ends here, with a status that is not 0 */
        check_two_threads_work();
        check_all_run_once(97);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static atomic_int stop;

static void *keep_busy(void *argument)
{
    (void)argument;
    while (!atomic_load(&stop)) {
        check_all_run_once(17);
    }
    return NULL;
}

static void test_fork_under_way(void)
{
    check_child(); /* the pool is idle */
    pthread_t busy;
    CHECK(pthread_create(&busy, NULL, keep_busy, NULL) == 0);
    for (int i = 0; i < 20; i++) {
        check_child(); /* another thread holds the pool */
    }
    atomic_store(&stop, 1);
    CHECK(pthread_join(busy, NULL) == 0);
    check_all_run_once(97); /* the parent's pool goes on */
}

static dice_status run_here(void *context, size_t index, int thread)
{
    (void)index;
    atomic_fetch_add((atomic_int *)context, 1);
    CHECK(thread == 0);
    return DICE_OK;
}

/* In a child, which has no pool yet: without memory for one, tasks run all the same. */
static void test_no_memory_for_workers(void)
{
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        for (long n = 1; n <= 2; n++) { /* the pool; its first worker */
            atomic_int runs = 0;
            dice_memory_fail_at(n);
            CHECK(dice_parallel_for(8, run_here, &runs) == DICE_OK);
            CHECK(atomic_load(&runs) == 8);
        }
        dice_memory_fail_at(0);
        check_all_run_once(97);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_counts(void)
{
    CHECK(dice_threads_set(-1) == DICE_E_INPUT);
    CHECK(dice_threads_set(257) == DICE_E_INPUT);
    int count;
    CHECK(setenv("DICE_THREADS", "3", 1) == 0);
    CHECK(dice_threads_default(&count) == DICE_OK && count == 3);
    static const char *const bad[] = {"0", "-1", "257", "two", "2x", "99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(setenv("DICE_THREADS", bad[i], 1) == 0);
        CHECK(dice_threads_default(&count) == DICE_E_INPUT);
        CHECK(strstr(dice_status_detail(), bad[i]) != NULL);
    }
    CHECK(unsetenv("DICE_THREADS") == 0);
    CHECK(dice_threads_default(&count) == DICE_OK && count >= 1);
    CHECK(dice_threads_set(0) == DICE_OK && dice_threads_count() >= 1);
}

void test_threads(void)
{
    test_counts();
    test_every_task_runs_once();
    check_two_threads_work();
    test_smallest_failing_index();
    test_nested();
    test_several_callers();
}

static dice_lock held = DICE_LOCK_INIT, idle = DICE_LOCK_INIT;

static void *hold_until_stop(void *argument)
{
    CHECK(dice_lock_take(&held) == 0);
    atomic_store((atomic_int *)argument, 1);
    while (!atomic_load(&stop)) {
        usleep(100);
    }
    dice_lock_release(&held);
    return NULL;
}

static void check_take(dice_lock *lock, int lost)
{
    CHECK(dice_lock_take(lock) == lost);
    dice_lock_release(lock);
}

static void test_locks(void)
{
    dice_lock before;
    dice_lock_init(&before); /* a neighbour in the list that goes */
    check_take(&before, 0);
    check_take(&idle, 0);
    atomic_int holds = 0;
    atomic_store(&stop, 0);
    pthread_t holder;
    CHECK(pthread_create(&holder, NULL, hold_until_stop, &holds) == 0);
    while (!atomic_load(&holds)) {
        usleep(100);
    }
    dice_lock_destroy(&before);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(20);
        check_take(&idle, 0);
        check_take(&held, 1); /* what it guards is to be made anew, once */
        check_take(&held, 0);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    atomic_store(&stop, 1);
    CHECK(pthread_join(holder, NULL) == 0);
    check_take(&held, 0); /* nothing has changed in the parent */
}

/* Apart from the above: a sanitizer's own locks may be held in the child of a fork with threads. */
void test_fork(void)
{
    CHECK(dice_threads_set(THREADS) == DICE_OK);
    check_all_run_once(97);
    test_fork_under_way();
    test_no_memory_for_workers();
    test_locks();
}
