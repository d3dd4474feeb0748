/* Locks that survive a fork. See lock.h. */
#include "base/lock.h"

#include <stddef.h>

static pthread_mutex_t list_mutex = PTHREAD_MUTEX_INITIALIZER;
static dice_lock *first;

static void before_fork(void)
{
    pthread_mutex_lock(&list_mutex); /* so that the child finds the list whole */
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&list_mutex);
}

static void after_fork_in_child(void)
{
    for (dice_lock *lock = first; lock != NULL; lock = lock->next) {
        if (pthread_mutex_trylock(&lock->mutex) == 0) {
            pthread_mutex_unlock(&lock->mutex);
        } else { /* its holder does not exist here */
            pthread_mutex_init(&lock->mutex, NULL);
            lock->lost = 1;
        }
    }
    pthread_mutex_init(&list_mutex, NULL);
}

static void handle_forks(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

static void list(dice_lock *lock)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, handle_forks);
    pthread_mutex_lock(&list_mutex);
    if (!atomic_load(&lock->listed)) {
        lock->previous = NULL;
        lock->next = first;
        if (first != NULL) {
            first->previous = lock;
        }
        first = lock;
        atomic_store(&lock->listed, 1);
    }
    pthread_mutex_unlock(&list_mutex);
}

void dice_lock_init(dice_lock *lock)
{
    *lock = (dice_lock){0};
    pthread_mutex_init(&lock->mutex, NULL);
}

void dice_lock_destroy(dice_lock *lock)
{
    if (atomic_load(&lock->listed)) {
        pthread_mutex_lock(&list_mutex);
        *(lock->previous == NULL ? &first : &lock->previous->next) = lock->next;
        if (lock->next != NULL) {
            lock->next->previous = lock->previous;
        }
        pthread_mutex_unlock(&list_mutex);
    }
    pthread_mutex_destroy(&lock->mutex);
}

int dice_lock_take(dice_lock *lock)
{
    if (!atomic_load(&lock->listed)) {
        list(lock);
    }
    pthread_mutex_lock(&lock->mutex);
    const int lost = lock->lost;
    lock->lost = 0;
    return lost;
}

void dice_lock_release(dice_lock *lock)
{
    pthread_mutex_unlock(&lock->mutex);
}
