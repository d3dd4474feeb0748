/* Scores that compare images with a bank, the stored features of training images: KNN, NNGuide, Relation.
 *
 * The bank is read in blocks of rows, each packed as a linear. The products of a block with all images go
 * straight into running reductions, so that only images x block products exist at a time, and the bank may be
 * a memory-mapped file. Products are computed in float; where their rounding could change a result they are
 * computed again in double. On the CPU the bits are the same for every N. */
#ifndef DICE_OOD_SCORES_BANK_H
#define DICE_OOD_SCORES_BANK_H

#include <stddef.h>

#include "base/status.h"

typedef struct dice_bank {
    const float *rows;   /* (M, D) */
    const double *scale; /* (M): the factor of each row: 1 / its norm, for NNGuide times its confidence */
    size_t n, features;  /* M, D */
    const char *device;  /* the device that computes the products, see dice_backend_find */
} dice_bank;

/* scale (M) = 1 / norm of each row, 0 for a row of zeros. */
dice_status dice_bank_norms(const float *rows, size_t n, size_t features, double *scale);

/* out (N) = the k-th smallest squared distance between h / norm(h) and the rows divided by their norms, in
 * double; k from 1 to M. Up to k / 4 + 128 rows whose distances float cannot tell apart are compared in
 * double. */
dice_status dice_bank_knn(const dice_bank *bank, const float *h, size_t n, size_t k, double *out);

/* out (N) = the mean of the k largest products of h / norm(h) with the scaled rows; k from 1 to M. */
dice_status dice_bank_guide(const dice_bank *bank, const float *h, size_t n, size_t k, double *out);

/* out (N) = the sum over the rows with v > least of v^power, where v = max(0, cos(h, row)) (p . p_row); p (N,
 * C) are the images' softmax outputs, row_p (M, C) those of the rows. */
dice_status dice_bank_relation(const dice_bank *bank, const float *row_p, size_t classes, const float *h,
                               const float *p, size_t n, double least, double power, double *out);

#endif
