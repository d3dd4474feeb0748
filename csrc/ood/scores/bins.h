/* Histograms of an image's numbers. */
#ifndef DICE_OOD_SCORES_BINS_H
#define DICE_OOD_SCORES_BINS_H

#include "ood/scores/score.h"

/* counts (N, bins) += how many of each row's numbers lie in each of `bins` equal parts of [low, high); others
 * in none. */
dice_status dice_bins_count(const dice_rows *rows, double low, double high, size_t bins, double *counts);

#endif
