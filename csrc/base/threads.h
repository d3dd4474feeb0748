/* The one thread pool of the process.
 *
 * Workers start at first use and sleep between jobs. A job is cut into numbered tasks, which the threads take
 * in order; which thread runs a task never changes a result. Several threads may call at the same time: one
 * of them gets the pool, the others run their tasks themselves. After a fork the child starts a pool of its
 * own. */
#ifndef DICE_BASE_THREADS_H
#define DICE_BASE_THREADS_H

#include <stddef.h>

#include "base/status.h"

/* One task: `index` is in [0, count), `thread` in [0, dice_threads_count()) as counted when the call began.
 * Tasks of one call that run at the same time have different values of `thread`; tasks of different calls may
 * share one. */
typedef dice_status (*dice_task)(void *context, size_t index, int thread);

/* Runs task(context, i, thread) for every i in [0, count). Returns DICE_OK, or the status of the failing task
 * with the smallest index; after a failure no further tasks start. A call from inside a task runs on that
 * thread alone, with the task's `thread`. */
dice_status dice_parallel_for(size_t count, dice_task task, void *context);

/* *count = the environment's DICE_THREADS, else the number of processors that this process may run on, or
 * the CPU quota of its container where that is smaller (quota.h). DICE_E_INPUT if DICE_THREADS is no such
 * number. */
dice_status dice_threads_default(int *count);

/* The number of threads that dice_parallel_for may use, the caller's included: what dice_threads_set has set,
 * else the default when it was first asked for (a bad DICE_THREADS is then ignored). */
int dice_threads_count(void);

/* Sets that number, 1 to 256; 0 returns to the default. */
dice_status dice_threads_set(int count);

#endif
