/* 3 x 3 convolution by F(2 x 2, 3 x 3): 16 products for four outputs in place of 36.
 *
 * The error against float64 is 1 to 2 times that of the direct sum, so a network must
 * allow it (dice_graph.winograd says that its measured error stays inside the bound). */
#ifndef DICE_CPU_WINOGRAD_H
#define DICE_CPU_WINOGRAD_H

#include "cpu/conv.h"

/* u (16) = G w G^T of one 3 x 3 kernel, in double. */
void dice_winograd_weight(const float *w, double *u);

size_t dice_winograd_scratch(const dice_conv *conv, int32_t height, int32_t width, size_t images);

/* As dice_conv_run; y0 is even, and y1 too unless it is the last. */
void dice_winograd_run(const dice_conv *conv, const dice_view *x, const dice_view *y,
                       const dice_view *residual, size_t images, size_t stride, int32_t y0, int32_t y1,
                       int32_t p0, int32_t p1, void *scratch);

#endif
