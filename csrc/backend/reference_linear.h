/* The linear_* slots of the reference back end (backend.h): plain C with double sums. */
#ifndef DICE_BACKEND_REFERENCE_LINEAR_H
#define DICE_BACKEND_REFERENCE_LINEAR_H

#include "backend/backend.h"

dice_status dice_reference_linear_create(const float *weight, const float *bias, const uint8_t *keep,
                                         size_t classes, size_t features, const dice_options *options,
                                         dice_linear **linear);
dice_status dice_reference_linear_forward(dice_linear *linear, const float *h, size_t n, float clip,
                                          const dice_linear_outputs *outputs);
const char *dice_reference_linear_info(const dice_linear *linear, size_t *bytes);
void dice_reference_linear_free(dice_linear *linear);

#endif
