/* The CPU back end's linear_* slots. See backend.h. */
#ifndef DICE_CPU_LINEAR_H
#define DICE_CPU_LINEAR_H

#include "backend/backend.h"

dice_status dice_linear_create(const float *weight, const float *bias, const uint8_t *keep, size_t classes,
                               size_t features, const dice_options *options, dice_linear **linear);
dice_status dice_linear_forward(dice_linear *linear, const float *h, size_t n, float clip,
                                const dice_linear_outputs *outputs);
dice_status dice_linear_reduce(const dice_linear *linear, const float *z, size_t n,
                               const dice_linear_outputs *outputs);
const char *dice_linear_info(const dice_linear *linear, size_t *bytes);
void dice_linear_free(dice_linear *linear);

#endif
