/* Doubles as unsigned integers of the same order: what selection and sorting work on. */
#ifndef DICE_LINALG_ORDER_H
#define DICE_LINALG_ORDER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/status.h"

/* The key of a number that is not NaN: x < y exactly where key(x) < key(y); -0.0 and 0.0 share one. */
static inline uint64_t dice_order_key(double x)
{
    uint64_t bits;
    x += 0.0;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ ((0 - (bits >> 63)) | (uint64_t)1 << 63);
}

/* The number of a key. */
static inline double dice_order_value(uint64_t key)
{
    const uint64_t bits = key ^ (((key >> 63) - 1) | (uint64_t)1 << 63);
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Sorts ascending in O(n); `spare` has room for n. */
void dice_order_sort(uint64_t *keys, uint64_t *spare, size_t n);

enum { DICE_ORDER_DIGIT = 16, DICE_ORDER_BINS = 1 << DICE_ORDER_DIGIT };

/* Radix selection: keys fall into bins by the digit at `shift` (48, 32, 16, 0). */
static inline size_t dice_order_digit(uint64_t key, int shift)
{
    return (size_t)(key >> shift) & (DICE_ORDER_BINS - 1);
}

/* The bin that holds the element of `*rank` (from 0), counted over histograms (n, DICE_ORDER_BINS); *rank
 * becomes its rank inside the bin. */
size_t dice_order_find_bin(const uint32_t *histograms, size_t n, size_t *rank);

/* The element of `rank` (from 0) among keys that agree above the digit at `shift`, and the one of rank + 1:
 * `above`, the smallest key known beyond these, where there is none. Reorders the keys; `histogram` is
 * scratch for DICE_ORDER_BINS counters. */
void dice_order_select(uint64_t *keys, size_t n, size_t rank, int shift, uint64_t above, uint32_t *histogram,
                       uint64_t *at_rank, uint64_t *at_next);

/* Moves the `count` largest of x (n) to its front, the least of them last, the others in no order; 1 <= count
 * <= n. */
void dice_order_largest(double *x, size_t n, size_t count);

#endif
