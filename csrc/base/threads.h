/* The one thread pool of the process.
 *
 * Workers start at first use and sleep between jobs. A job splits into
 * numbered tasks that threads take in order; which thread runs a task never
 * changes a result. Safe from several caller threads: one owns the pool, the
 * others run their tasks themselves. Safe after fork: the child starts anew. */
#ifndef DICE_BASE_THREADS_H
#define DICE_BASE_THREADS_H

#include <stddef.h>

#include "base/status.h"

/* One task: `index` in [0, count); `thread` in [0, dice_threads_count()), as that was when the call began.
 * Tasks of one call that run at the same time have different `thread`s; two calls may use the same. */
typedef dice_status (*dice_task)(void *context, size_t index, int thread);

/* Runs task(context, i, thread) for every i in [0, count) and returns the
 * status of the failing task with the smallest index, else DICE_OK; after a failure no further tasks
 * start. A call from inside a task runs serially, with that task's `thread`. */
dice_status dice_parallel_for(size_t count, dice_task task, void *context);

/* *count = DICE_THREADS, else the processors this process may run on. DICE_E_INPUT for a bad DICE_THREADS. */
dice_status dice_threads_default(int *count);

/* Threads that dice_parallel_for may use, the caller's included: what was set, else the default as first
 * found, where a bad DICE_THREADS counts as none. */
int dice_threads_count(void);

/* Sets that number (1 to 256); 0 returns to the default. */
dice_status dice_threads_set(int count);

#endif
