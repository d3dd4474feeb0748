/* What scores and ranking ask of an instruction set: reductions and selections of one row, and products of
 * rows with fixed weights, all in double and each row on its own, in a fixed order: its bits depend neither
 * on its neighbours nor on the threads. All but the products have the same bits on every set. */
#ifndef DICE_LINALG_ROWS_H
#define DICE_LINALG_ROWS_H

#include <stddef.h>
#include <stdint.h>

#include "base/cpu.h"

enum { DICE_ROW_PANEL = 24 }; /* outputs of a product's tile */

typedef struct dice_row_kernels {
    /* The largest of x (n), n at least 1. */
    double (*max)(const double *x, size_t n);
    /* e (n) = exp(scale (x - shift)), which must not exceed 1; returns their sum. Below 2^-1021 it is that.
     */
    double (*exp)(const double *x, size_t n, double shift, double scale, double *e);
    double (*dot)(const double *x, const double *y, size_t n);
    /* Sum of |x - shift|, times y where it is not NULL. */
    double (*distance)(const double *x, size_t n, double shift, const double *y);
    /* v (n) = x y, or its absolute value. */
    void (*scaled)(const double *x, const float *y, size_t n, int absolute, double *v);
    /* keep (n) = x > threshold, as 1 and 0. */
    void (*over)(const double *x, size_t n, double threshold, uint8_t *keep);
    /* inside (n) = the values of x in [low, end), in their order; returns their number. *below = values under
     * low. */
    size_t (*between)(const double *x, size_t n, double low, double end, double *inside, size_t *below);
    /* out (rows, DICE_ROW_PANEL of out_stride) += x (rows, depth of x_stride) times w (depth,
     * DICE_ROW_PANEL). */
    void (*product)(const double *x, size_t x_stride, size_t rows, const double *w, size_t depth, double *out,
                    size_t out_stride);
} dice_row_kernels;

extern const dice_row_kernels dice_row_kernels_scalar, dice_row_kernels_avx2, dice_row_kernels_avx512;

/* e (n) = exp((x - max) scale), *max the largest of x (n); returns their sum, so that scale max + log(sum) is
 * the logarithm of the sum of exp(scale x), and e / sum its softmax. */
double dice_rows_exp(const dice_row_kernels *kernels, const double *x, size_t n, double scale, double *e,
                     double *max);

/* The best in this build that `isa` can run. */
const dice_row_kernels *dice_row_kernels_for(dice_isa isa);

#endif
