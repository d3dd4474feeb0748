/* Products of rows in double with a fixed matrix: what a score asks of OpenBLAS, were its bits not those of a
 * batch. Every output is one chain of products in the order of the inputs, whatever rows are computed beside
 * it. */
#ifndef DICE_LINALG_PRODUCT_H
#define DICE_LINALG_PRODUCT_H

#include "base/status.h"
#include "linalg/rows.h"

typedef struct dice_product {
    const dice_row_kernels *kernels;
    size_t outputs, inputs;
    int triangular; /* output j reads inputs 0 to j */
    size_t width;   /* outputs up to whole panels: what a row of the result takes */
    double *weight; /* panels of (inputs, DICE_ROW_PANEL) */
} dice_product;

/* From w (outputs, inputs); both may be 0. */
dice_status dice_product_init(dice_product *product, const double *w, size_t outputs, size_t inputs,
                              int triangular, const dice_row_kernels *kernels);
void dice_product_free(dice_product *product); /* a zeroed product is allowed */

/* out (n, width) = x (n, inputs) w'; outputs past the last are 0. On the calling thread. */
void dice_product_run(const dice_product *product, const double *x, size_t n, double *out);

#endif
