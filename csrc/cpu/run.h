/* Running the steps of a network. */
#ifndef DICE_CPU_RUN_H
#define DICE_CPU_RUN_H

#include "backend/backend.h"
#include "cpu/layout.h"
#include "cpu/steps.h"

/* Whether a network may have ops of this kind. */
int dice_run_takes(dice_op_kind kind);

/* features (N, D[, H', W']) of N images of the layout's size. One call at a time for each layout, whose
 * memory it works in. */
dice_status dice_run(const dice_steps *steps, const dice_layout *layout, const dice_images *images,
                     float *features);

#endif
