/* Sorting and selection of doubles, by way of unsigned integers of the same order (keys). */
#ifndef DICE_LINALG_ORDER_H
#define DICE_LINALG_ORDER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/status.h"

/* The key of x, which is not NaN: key(x) < key(y) exactly where x < y; -0.0 and 0.0 have the same key. */
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

/* Sorts keys (n) ascending, in O(n); spare (n) is working memory. */
void dice_order_sort(uint64_t *keys, uint64_t *spare, size_t n);

enum { DICE_ORDER_DIGIT = 16, DICE_ORDER_BINS = 1 << DICE_ORDER_DIGIT };

/* The digit of the key at `shift` (48, 32, 16 or 0): the bin that radix selection counts the key in. */
static inline size_t dice_order_digit(uint64_t key, int shift)
{
    return (size_t)(key >> shift) & (DICE_ORDER_BINS - 1);
}

/* The bin that holds the element of rank *rank (from 0), by the sum of histograms (n, DICE_ORDER_BINS); *rank
 * becomes its rank inside the bin. */
size_t dice_order_find_bin(const uint32_t *histograms, size_t n, size_t *rank);

/* *at_rank = the element of rank `rank` (from 0) of keys (n), which must be equal above the digit at `shift`;
 * *at_next = the element of rank + 1, or `above` where there is none. Reorders the keys; histogram
 * (DICE_ORDER_BINS) is working memory. */
void dice_order_select(uint64_t *keys, size_t n, size_t rank, int shift, uint64_t above, uint32_t *histogram,
                       uint64_t *at_rank, uint64_t *at_next);

/* Moves the `count` largest of x (n), 1 <= count <= n, to its front: the least of them last, the others in no
 * order. */
void dice_order_largest(double *x, size_t n, size_t count);

#endif
