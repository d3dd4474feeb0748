/* Radix sort and radix selection of keys. See order.h. */
#include "linalg/order.h"

void dice_order_sort(uint64_t *keys, uint64_t *spare, size_t n)
{
    enum { DIGIT = 11, BINS = 1 << DIGIT, PASSES = 6 };
    uint64_t *from = keys, *to = spare;
    for (int pass = 0; pass < PASSES; pass++) {
        const int shift = pass * DIGIT;
        size_t start[BINS] = {0};
        for (size_t i = 0; i < n; i++) {
            start[(from[i] >> shift) & (BINS - 1)]++;
        }
        if (n == 0 || start[(from[0] >> shift) & (BINS - 1)] == n) {
            continue; /* all in one bin: nothing to do (scores that were float32 have 29 equal bits) */
        }
        size_t sum = 0;
        for (int bin = 0; bin < BINS; bin++) {
            const size_t count = start[bin];
            start[bin] = sum;
            sum += count;
        }
        for (size_t i = 0; i < n; i++) {
            to[start[(from[i] >> shift) & (BINS - 1)]++] = from[i];
        }
        uint64_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != keys) {
        memcpy(keys, from, n * sizeof *keys);
    }
}

size_t dice_order_find_bin(const uint32_t *histograms, size_t n, size_t *rank)
{
    for (size_t bin = 0;; bin++) {
        size_t count = 0;
        for (size_t i = 0; i < n; i++) {
            count += histograms[i * DICE_ORDER_BINS + bin];
        }
        if (*rank < count) {
            return bin;
        }
        *rank -= count;
    }
}

void dice_order_select(uint64_t *keys, size_t n, size_t rank, int shift, uint64_t above, uint32_t *histogram,
                       uint64_t *at_rank, uint64_t *at_next)
{
    for (; shift >= 0 && n > 1; shift -= DICE_ORDER_DIGIT) {
        memset(histogram, 0, DICE_ORDER_BINS * sizeof *histogram);
        for (size_t i = 0; i < n; i++) {
            histogram[dice_order_digit(keys[i], shift)]++;
        }
        const size_t bin = dice_order_find_bin(histogram, 1, &rank);
        size_t inside = 0;
        for (size_t i = 0; i < n; i++) {
            const size_t digit = dice_order_digit(keys[i], shift);
            if (digit == bin) {
                keys[inside++] = keys[i];
            } else if (digit > bin && keys[i] < above) {
                above = keys[i];
            }
        }
        n = inside;
    }
    /* the keys that are left are equal */
    *at_rank = keys[0];
    *at_next = rank + 1 < n ? keys[0] : above;
}

/* Hoare's FIND (1961). */
void dice_order_largest(double *x, size_t n, size_t count)
{
    ptrdiff_t low = 0, high = (ptrdiff_t)n - 1;
    const ptrdiff_t last = (ptrdiff_t)count - 1;
    while (low < high) {
        const double pivot = x[last];
        ptrdiff_t i = low, j = high;
        while (i <= j) {
            while (x[i] > pivot) {
                i++;
            }
            while (x[j] < pivot) {
                j--;
            }
            if (i <= j) {
                const double swap = x[i];
                x[i++] = x[j];
                x[j--] = swap;
            }
        }
        if (j < last) {
            low = i;
        }
        if (last < i) {
            high = j;
        }
    }
}
