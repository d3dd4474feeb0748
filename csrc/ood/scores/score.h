/* Post-hoc scores: one number for an image, from its logits, its features, or both. Higher = more
 * in-distribution.
 *
 * The runner spreads the images over the threads, turns an image's logits and features into doubles and calls
 * the rule of rule.h. */
#ifndef DICE_OOD_SCORES_SCORE_H
#define DICE_OOD_SCORES_SCORE_H

#include "ood/scores/rule.h"

/* The rule of that name, or NULL. */
const dice_score_rule *dice_score_find(const char *name);

/* out (N, outputs) = the rule's outputs for z (N, C) and h (N, D); NULL for what the rule does not read. C
 * and D are at least 1. */
dice_status dice_score_run(const dice_score_rule *rule, const dice_rows *z, const dice_rows *h,
                           const double *const *arrays, const double *numbers, double *out);

#endif
