/* Arithmetic of sizes: the smaller and the larger of two, and division and rounding that go up. The names
 * that end in 32 are for int32_t, the others for size_t. No sum or product here may exceed its type. */
#ifndef DICE_BASE_SIZES_H
#define DICE_BASE_SIZES_H

#include <stddef.h>
#include <stdint.h>

static inline size_t dice_least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline int32_t dice_least32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline size_t dice_most(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* How many times `unit` is needed to hold n: n / unit, rounded up. n >= 0, unit > 0. */
static inline size_t dice_ceil_div(size_t n, size_t unit)
{
    return (n + unit - 1) / unit;
}

static inline int32_t dice_ceil_div32(int32_t n, int32_t unit)
{
    return (n + unit - 1) / unit;
}

/* The least multiple of `unit` that is not below n. */
static inline size_t dice_round_up(size_t n, size_t unit)
{
    return dice_ceil_div(n, unit) * unit;
}

#endif
