/* A mutex that works in the child of a fork. Only the thread that forks lives on in the child; a plain mutex
 * that another thread held is locked there for ever. */
#ifndef DICE_BASE_LOCK_H
#define DICE_BASE_LOCK_H

#include <pthread.h>
#include <stdatomic.h>

typedef struct dice_lock {
    pthread_mutex_t mutex;
    int lost;          /* see dice_lock_take */
    atomic_int listed; /* whether it is in the list of all locks, through which a fork finds it */
    struct dice_lock *next, *previous;
} dice_lock;

#define DICE_LOCK_INIT {.mutex = PTHREAD_MUTEX_INITIALIZER}

void dice_lock_init(dice_lock *lock);
void dice_lock_destroy(dice_lock *lock); /* not while it is held */

/* Waits for the lock and holds it. Returns 1 where another thread held it when this process was forked, and
 * nobody has taken it since: what it guards may be half changed, and must be made anew. Else 0. */
int dice_lock_take(dice_lock *lock);
void dice_lock_release(dice_lock *lock);

#endif
