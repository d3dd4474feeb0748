/* The head of the reference back end: backend.h's head_* slots in plain C with double sums. */
#ifndef DICE_BACKEND_REFERENCE_HEAD_H
#define DICE_BACKEND_REFERENCE_HEAD_H

#include "backend/backend.h"

dice_status dice_reference_head_create(const float *weight, const float *bias, const uint8_t *keep,
                                       size_t classes, size_t features, const dice_options *options,
                                       dice_head **head);
dice_status dice_reference_head_forward(dice_head *head, const float *h, size_t n, float clip,
                                        const dice_head_outputs *outputs);
const char *dice_reference_head_info(const dice_head *head, size_t *bytes);
void dice_reference_head_free(dice_head *head);

#endif
