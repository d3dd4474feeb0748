/* Running mean and variance of D features: one pass, constant memory, mergeable.
 *
 * However the images are split, ordered and merged, mean and variance agree to 1e-12 relative: sums are kept
 * as high + low pairs, and squares are those of differences from the mean (Chan, Golub & LeVeque 1979), never
 * E[x^2] - E[x]^2. */
#ifndef DICE_OOD_FIT_MOMENTS_H
#define DICE_OOD_FIT_MOMENTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { DICE_MOMENTS_ROWS = 4 };

typedef struct dice_moments {
    size_t features; /* D */
    uint64_t count;  /* images seen */
    double *state;   /* (4, D): sum high, sum low, squares high, squares low; all 0 before the first image */
} dice_moments;

/* Adds the images x (n, D). *negative becomes 1 if a feature is below 0, else it stays as it is. */
dice_status dice_moments_add(dice_moments *moments, const double *x, size_t n, int *negative);

/* Adds the images of `other`, which has the same D. */
void dice_moments_merge(dice_moments *moments, const dice_moments *other);

#endif
