/* The row kernels, which scores and ranking use, one table for each instruction set: reductions and
 * selections of one row, and products of rows with fixed weights, all in double. Each row is computed on its
 * own and in a fixed order, so that its bits depend neither on the other rows nor on the threads. All but the
 * products have the same bits on every instruction set. */
#ifndef DICE_LINALG_ROW_KERNELS_H
#define DICE_LINALG_ROW_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/cpu.h"

enum { DICE_ROW_PANEL = 24 }; /* outputs of a panel of a product */

typedef struct dice_row_kernels {
    /* The largest of x (n), n at least 1. */
    double (*max)(const double *x, size_t n);
    /* e (n) = exp(scale (x - shift)), which must not exceed 1, and at least 2^-1021; returns the sum of e. */
    double (*exp)(const double *x, size_t n, double shift, double scale, double *e);
    double (*dot)(const double *x, const double *y, size_t n);
    /* The sum of |x - shift|, or of |x - shift| y where y is not NULL. */
    double (*distance)(const double *x, size_t n, double shift, const double *y);
    /* v (n) = x y, value by value, or |x y| where `absolute`. */
    void (*scaled)(const double *x, const float *y, size_t n, int absolute, double *v);
    /* keep (n) = x > threshold, as 1 and 0. */
    void (*over)(const double *x, size_t n, double threshold, uint8_t *keep);
    /* inside (n) = the values of x in [low, end), in their order; returns how many there are. *below = how
     * many values are less than low. */
    size_t (*between)(const double *x, size_t n, double low, double end, double *inside, size_t *below);
    /* out (rows, DICE_ROW_PANEL) += x (rows, depth) w (depth, DICE_ROW_PANEL); rows of x and out are x_stride
     * and out_stride apart. */
    void (*product)(const double *x, size_t x_stride, size_t rows, const double *w, size_t depth, double *out,
                    size_t out_stride);
} dice_row_kernels;

extern const dice_row_kernels dice_row_kernels_scalar, dice_row_kernels_avx2, dice_row_kernels_avx512;

#endif
