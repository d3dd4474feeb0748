/* Squared Mahalanobis distances to the nearest of several means with one shared covariance (Lee et al. 2018).
 *
 * A feature is centred, whitened by the inverse Cholesky factor L^-1 and compared there: |L^-1 (h - mu_c)|^2
 * = |y|^2 - 2 y . y_c + |y_c|^2. A singular covariance has no L: its pseudo-inverse's root serves, from the
 * eigenvectors, eigenvalues up to D eps of the largest left out (as scipy.linalg.pinvh does). */
#ifndef DICE_OOD_SCORES_GAUSSIAN_H
#define DICE_OOD_SCORES_GAUSSIAN_H

#include "backend/backend.h"
#include "ood/scores/score.h"

typedef struct dice_gaussian dice_gaussian;

/* covariance (D, D) is overwritten; centre (D) is near the means (K, D), K at least 1. `backend` computes the
 * distances where it offers them. */
dice_status dice_gaussian_create(double *covariance, const double *centre, const double *means,
                                 size_t classes, size_t features, const dice_backend *backend,
                                 const dice_options *options, dice_gaussian **out);
void dice_gaussian_free(dice_gaussian *gaussian); /* NULL is allowed */

size_t dice_gaussian_rank(const dice_gaussian *gaussian);
size_t dice_gaussian_features(const dice_gaussian *gaussian);

/* out (N) = the least squared distance of h (N, D). The same bits for every N and number of threads, by the
 * core's own kernels; a back end says what it promises. */
dice_status dice_gaussian_distance(const dice_gaussian *gaussian, const dice_rows *h, double *out);

#endif
