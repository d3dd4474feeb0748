/* Products of rows with a fixed matrix, in double, for scores. OpenBLAS does not serve here, because the bits
 * of its results depend on the number of rows. Here every output is one sum in the order of the inputs, so
 * that a row's bits do not depend on the other rows. */
#ifndef DICE_LINALG_PRODUCT_H
#define DICE_LINALG_PRODUCT_H

#include "base/status.h"
#include "linalg/rows.h"

typedef struct dice_product {
    const dice_row_kernels *kernels;
    size_t outputs, inputs;
    int triangular; /* output j reads only inputs 0 to j */
    size_t width;   /* outputs rounded up to whole panels: the length of a row of the result */
    double *weight; /* (panels, inputs, DICE_ROW_PANEL) */
} dice_product;

/* *product = the product with w (outputs, inputs), which is copied; both sizes may be 0. */
dice_status dice_product_init(dice_product *product, const double *w, size_t outputs, size_t inputs,
                              int triangular, const dice_row_kernels *kernels);
void dice_product_free(dice_product *product); /* a zeroed product is allowed */

/* out (n, width) = x (n, inputs) w', with 0 in the columns from `outputs` on. On the calling thread. */
void dice_product_run(const dice_product *product, const double *x, size_t n, double *out);

#endif
