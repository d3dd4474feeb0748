/* What the C tests share. They cover what Python cannot reach: each allocation failing once, reads and writes
 * past the end of an array, the promises of the thread pool. */
#ifndef DICE_TESTS_CHECK_H
#define DICE_TESTS_CHECK_H

#include <stddef.h>

#include "base/status.h"

/* Ends the program with status 1 and names the line where `condition` is false. */
#define CHECK(condition) check((condition) != 0, #condition, __FILE__, __LINE__)
void check(int holds, const char *text, const char *file, int line);

/* Runs `scenario` with its 1st, 2nd, ... allocation failing until none fails. Each failure must come out as
 * DICE_E_MEMORY and leave no block behind. The scenario frees what it makes. */
void check_failed_allocations(dice_status (*scenario)(void));

/* `bytes` (a multiple of the element size) that end where an unreadable page starts; never released. */
void *guarded(size_t bytes);

/* The tests of test_*.c. */
void test_base(void);
void test_threads(void);
void test_fork(void);
void test_network(void);

#endif
