/* Shapes and buffers of a graph for one image size.
 *
 * dice_plan_make walks the op list once: H and W of every tensor, and for each
 * tensor with storage of its own an offset into ONE arena such that tensors
 * that live at the same time never overlap. */
#ifndef DICE_NN_PLAN_H
#define DICE_NN_PLAN_H

#include "nn/graph.h"

typedef struct dice_plan {
    int32_t *height, *width; /* (n_tensors) */
    size_t *offset;          /* (n_tensors) bytes into the arena; a slice has its parent's */
    size_t arena_bytes;
} dice_plan;

/* Bytes that a back end wants for a tensor of C channels on H x W pixels. */
typedef size_t (*dice_tensor_bytes)(int32_t channels, int32_t height, int32_t width);

/* *plan for images of height x width. DICE_E_INPUT where the network does not allow that size. */
dice_status dice_plan_make(const dice_graph *graph, int32_t height, int32_t width, dice_tensor_bytes bytes,
                           dice_plan *plan);
void dice_plan_free(dice_plan *plan); /* a zeroed plan is allowed */

#endif
