/* Convolution on the tile unit. Same promises as conv.h, which calls it. */
#ifndef DICE_CPU_BF16_CONV_H
#define DICE_CPU_BF16_CONV_H

#include "cpu/conv.h"

/* Fills conv->weight and weight_bytes from weight (out, in, kernel, kernel). */
dice_status dice_bf16_conv_pack(dice_conv *conv, const float *weight);

size_t dice_bf16_conv_scratch(const dice_conv *conv, size_t pixels);

/* As dice_conv_run, for one image. */
void dice_bf16_conv_run(const dice_conv *conv, const dice_view *x, const dice_view *y,
                        const dice_view *residual, int32_t y0, int32_t y1, int32_t p0, int32_t p1,
                        void *scratch);

#endif
