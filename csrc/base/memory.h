/* Aligned memory whose size cannot overflow, and a hook that makes the n-th allocation fail, so that tests
 * reach every cleanup path. */
#ifndef DICE_BASE_MEMORY_H
#define DICE_BASE_MEMORY_H

#include <stddef.h>

#include "base/sizes.h"
#include "base/status.h"

enum { DICE_ALIGN = 64 }; /* bytes: a cache line, an AVX-512 vector, a row of a tile register */

/* `bytes` rounded up to a multiple of DICE_ALIGN. */
static inline size_t dice_align_up(size_t bytes)
{
    return dice_round_up(bytes, DICE_ALIGN);
}

/* *out = `count` * `size` bytes, DICE_ALIGN-aligned and uninitialised; a valid pointer for 0 bytes too. NULL
 * on failure. */
dice_status dice_alloc(size_t count, size_t size, void **out);

/* The same, zero-filled. */
dice_status dice_alloc_zero(size_t count, size_t size, void **out);

/* *out = a copy of `count` floats, then zeros up to `room` floats; all zeros where `from` is NULL. */
dice_status dice_alloc_padded(const float *from, size_t count, size_t room, float **out);

/* Releases what dice_alloc gave; NULL is allowed. */
void dice_free(void *memory);

/* For tests: the number of allocations that are not yet released. */
long dice_memory_live(void);

/* For tests: makes the n-th allocation from now (1 = the next) fail, once; 0 turns this off. Returns how many
 * allocations away the failure asked for before still was, 0 where it has come. */
long dice_memory_fail_at(long n);

#endif
