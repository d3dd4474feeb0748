/* The named weights of a checkpoint. A builder asks for each by its name and the shape that it must have. */
#ifndef DICE_NN_WEIGHTS_H
#define DICE_NN_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { DICE_WEIGHT_DIMS = 4, DICE_WEIGHT_NAME = 128 };

typedef struct dice_weight {
    const char *name;
    const float *data; /* C-contiguous */
    int32_t ndim;
    int32_t shape[DICE_WEIGHT_DIMS];
    int used; /* whether a builder has asked for it */
} dice_weight;

typedef struct dice_weights { /* names and data belong to the caller */
    dice_weight *items;
    size_t count;
} dice_weights;

/* The weight whose name is given as to printf, or NULL. */
const dice_weight *dice_weights_find(const dice_weights *weights, const char *format, ...) DICE_PRINTF(2, 3);

/* *data = the weight called `name`, which must have shape (ndim), and marks it as used. Else DICE_E_INPUT
 * with "layer X: got A, want B" or "layer X: missing". */
dice_status dice_weights_get(dice_weights *weights, const char *name, int32_t ndim, const int32_t *shape,
                             const float **data);

/* DICE_E_INPUT that lists the weights that no builder has asked for; num_batches_tracked is ignored. */
dice_status dice_weights_check_used(const dice_weights *weights, const char *arch);

/* text (room) = "conv1.weight (64, 3, 7, 7), bn1.weight (64), ..., 320 in all", or the unused ones only. */
void dice_weights_list(const dice_weights *weights, int unused_only, char *text, size_t room);

#endif
