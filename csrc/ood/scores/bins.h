/* Histograms of the features or logits of each image. */
#ifndef DICE_OOD_SCORES_BINS_H
#define DICE_OOD_SCORES_BINS_H

#include "ood/scores/rule.h"

/* counts (N, bins) += how many numbers of each row lie in each of `bins` equal bins over [low, high); numbers
 * outside are not counted. */
dice_status dice_bins_count(const dice_rows *rows, double low, double high, size_t bins, double *counts);

#endif
