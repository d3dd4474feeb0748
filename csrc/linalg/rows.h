/* The choice of row kernels at run time, and the softmax of a row by them. */
#ifndef DICE_LINALG_ROWS_H
#define DICE_LINALG_ROWS_H

#include "linalg/row_kernels.h"

/* e (n) = exp((x - max) scale) with *max = the largest of x (n); returns the sum of e. So scale max +
 * log(sum) is the logsumexp of scale x, and e / sum its softmax. */
double dice_rows_exp(const dice_row_kernels *kernels, const double *x, size_t n, double scale, double *e,
                     double *max);

/* The best row kernels of this build that a processor with `isa` can run. */
const dice_row_kernels *dice_row_kernels_for(dice_isa isa);

#endif
