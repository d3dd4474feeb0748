/* Where everything lies while a network runs, for one image size and number of threads: an arena of tensors
 * for each image that a thread works on, and scratch. */
#ifndef DICE_CPU_LAYOUT_H
#define DICE_CPU_LAYOUT_H

#include "cpu/steps.h"

typedef struct dice_layout {
    int32_t height, width; /* of the images */
    int threads;
    int bundle;          /* images of a bundle */
    dice_view *view;     /* (tensors) in the first arena */
    size_t image_floats; /* from an image's arena to the next */
    char *memory;        /* (threads): an arena for each image of a bundle, then scratch */
    size_t thread_bytes;
} dice_layout;

/* Makes *layout for images of height x width, unless it is for them already. On failure *layout stays as it
 * was; DICE_E_INPUT for a size that the network does not allow. */
dice_status dice_layout_make(dice_layout *layout, const dice_steps *steps, int32_t height, int32_t width,
                             int threads);
void dice_layout_free(dice_layout *layout); /* a zeroed layout is allowed */

/* The first arena of a thread, and its scratch. */
float *dice_layout_arena(const dice_layout *layout, int thread);
void *dice_layout_scratch(const dice_layout *layout, int thread);

/* The view of a tensor in the arena that begins at `arena`. */
dice_view dice_layout_view(const dice_layout *layout, int32_t tensor, const float *arena);

#endif
