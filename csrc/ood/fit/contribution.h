/* DICE's ranking: V = mean * W, its exact percentile t, and the mask V > t (Sun & Li 2022, section 3).
 *
 * V (M, D) is never stored: it is computed in double, from double mean and float W, each time that it is
 * read. For every size, percentile and mask equal those of numpy bit by bit: numpy.percentile(V, p) with
 * linear interpolation. */
#ifndef DICE_OOD_FIT_CONTRIBUTION_H
#define DICE_OOD_FIT_CONTRIBUTION_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct dice_contribution {
    const double *mean;       /* (D), finite */
    const float *weight;      /* (M, D), finite */
    size_t classes, features; /* M, D, both at least 1 */
    int absolute;             /* rank |V| instead, for features that may be negative */
} dice_contribution;

/* *threshold = the p-th percentile of V, p in [0, 100]. */
dice_status dice_contribution_percentile(const dice_contribution *v, double p, double *threshold);

/* keep (M, D) = V > threshold, as 1 and 0. */
dice_status dice_contribution_keep(const dice_contribution *v, double threshold, uint8_t *keep);

#endif
