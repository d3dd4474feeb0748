/* Shapes and buffers of a graph for one image size.
 *
 * dice_plan_make walks the op list once. It finds H and W of every tensor and places each tensor in ONE
 * arena, such that tensors that live at the same time never overlap. */
#ifndef DICE_NN_PLAN_H
#define DICE_NN_PLAN_H

#include "nn/graph.h"

typedef struct dice_plan {
    int32_t *height, *width; /* (n_tensors) */
    size_t *offset;          /* (n_tensors) in bytes from the start of the arena; a slice has its parent's */
    size_t arena_bytes;
} dice_plan;

/* The bytes that a back end needs for a tensor of C channels and H x W pixels. */
typedef size_t (*dice_tensor_bytes)(int32_t channels, int32_t height, int32_t width);

/* *plan = the plan for images of height x width pixels. DICE_E_INPUT if the network does not allow that size.
 */
dice_status dice_plan_make(const dice_graph *graph, int32_t height, int32_t width, dice_tensor_bytes bytes,
                           dice_plan *plan);
void dice_plan_free(dice_plan *plan); /* a zeroed plan is allowed */

#endif
