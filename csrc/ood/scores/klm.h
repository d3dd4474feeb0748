/* KL matching: the divergence between an image's softmax output and the nearest of several typical ones. */
#ifndef DICE_OOD_SCORES_KLM_H
#define DICE_OOD_SCORES_KLM_H

#include "ood/scores/rule.h"

/* out (N) = -min over k of KL(softmax(z) || d_k) with log_typical (K, C) = log d_k; K is n, at least 1. */
dice_status dice_score_klm(const dice_rows *z, const double *log_typical, size_t n, double *out);

#endif
