/* Scores against a bank of training features: KNN, NNGuide, Relation.
 *
 * The bank passes by in blocks of rows, packed as a last layer; the products of a block with the images feed
 * running reductions, so that no more than images x block products exist, and the bank may be a memory-mapped
 * file. Products are float sums; where a decision hangs on them it is taken again in double. On the CPU the
 * same bits for every N. */
#ifndef DICE_OOD_SCORES_BANK_H
#define DICE_OOD_SCORES_BANK_H

#include <stddef.h>

#include "base/status.h"

typedef struct dice_bank {
    const float *rows;   /* (M, D) */
    const double *scale; /* (M): what a row is multiplied by, 1 / its norm or more */
    size_t n, features;  /* M, D */
    const char *device;  /* that computes the products, see dice_backend_find */
} dice_bank;

/* scale (M) = 1 / norm of each row, 0 for a row of zeros. */
dice_status dice_bank_norms(const float *rows, size_t n, size_t features, double *scale);

/* out (N) = the k-th smallest squared distance between h / norm(h) and the rows / norm, in double; k from 1
 * to M. Of candidates closer together than float tells apart, k / 4 + 128 are told apart in double. */
dice_status dice_bank_knn(const dice_bank *bank, const float *h, size_t n, size_t k, double *out);

/* out (N) = the mean of the k largest products of h / norm(h) with the scaled rows; k from 1 to M. */
dice_status dice_bank_guide(const dice_bank *bank, const float *h, size_t n, size_t k, double *out);

/* out (N) = sum over the rows of v^power where v > least, v = max(0, cos(h, row)) (p . p_row); p (N, C),
 * p_row (M, C). */
dice_status dice_bank_relation(const dice_bank *bank, const float *row_p, size_t classes, const float *h,
                               const float *p, size_t n, double least, double power, double *out);

#endif
