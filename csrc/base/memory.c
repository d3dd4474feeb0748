/* Aligned allocation. See memory.h. */
#define _GNU_SOURCE
#include "base/memory.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

enum { HUGE_PAGE = 2 << 20 };

static atomic_long fail_countdown;
static atomic_long live;

long dice_memory_fail_at(long n)
{
    const long left = atomic_exchange(&fail_countdown, n);
    return left > 0 ? left : 0;
}

long dice_memory_live(void)
{
    return atomic_load(&live);
}

static int told_to_fail(void)
{
    return atomic_load_explicit(&fail_countdown, memory_order_relaxed) > 0
        && atomic_fetch_sub(&fail_countdown, 1) == 1;
}

dice_status dice_alloc(size_t count, size_t size, void **out)
{
    *out = NULL;
    if (size != 0 && count > SIZE_MAX / size) {
        return dice_fail(DICE_E_MEMORY, "%zu items of %zu bytes do not fit the address space", count, size);
    }
    const size_t bytes = count * size;
    void *memory = NULL;
    const size_t align = bytes < HUGE_PAGE ? DICE_ALIGN : HUGE_PAGE;
    if (told_to_fail() || posix_memalign(&memory, align, bytes == 0 ? 1 : bytes) != 0) {
        return dice_fail(DICE_E_MEMORY, "out of memory: %zu bytes", bytes);
    }
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    /* The blocks of a large tensor lie far apart, and huge pages spare misses of the address cache. A refusal
     * is harmless. */
    if (bytes >= HUGE_PAGE) {
        madvise(memory, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    }
#endif
    atomic_fetch_add(&live, 1);
    *out = memory;
    return DICE_OK;
}

dice_status dice_alloc_zero(size_t count, size_t size, void **out)
{
    dice_status status = dice_alloc(count, size, out);
    if (status == DICE_OK) {
        memset(*out, 0, count * size);
    }
    return status;
}

dice_status dice_alloc_padded(const float *from, size_t count, size_t room, float **out)
{
    void *memory;
    const dice_status status = dice_alloc_zero(room, sizeof(float), &memory);
    *out = memory;
    if (status == DICE_OK && from != NULL) {
        memcpy(memory, from, count * sizeof(float));
    }
    return status;
}

void dice_free(void *memory)
{
    if (memory != NULL) {
        atomic_fetch_sub(&live, 1);
        free(memory);
    }
}
