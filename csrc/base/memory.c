/* Aligned allocation. See memory.h. */
#include "base/memory.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static atomic_long fail_countdown;

void dice_memory_fail_at(long n)
{
    atomic_store(&fail_countdown, n);
}

static int told_to_fail(void)
{
    return atomic_load_explicit(&fail_countdown, memory_order_relaxed) > 0
        && atomic_fetch_sub(&fail_countdown, 1) == 1;
}

dice_status dice_alloc(size_t count, size_t size, void **out)
{
    *out = NULL;
    if (size != 0 && count > (SIZE_MAX - DICE_ALIGN) / size) {
        return dice_fail(DICE_E_MEMORY, "%zu items of %zu bytes do not fit the address space", count, size);
    }
    /* aligned_alloc wants a multiple of the alignment; never ask for zero bytes */
    size_t bytes = (count * size + DICE_ALIGN) / DICE_ALIGN * DICE_ALIGN;
    void *memory = told_to_fail() ? NULL : aligned_alloc(DICE_ALIGN, bytes);
    if (memory == NULL) {
        return dice_fail(DICE_E_MEMORY, "out of memory: %zu bytes", bytes);
    }
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

void dice_free(void *memory)
{
    free(memory);
}
