/* Squared Mahalanobis distances to the nearest of several means with one shared covariance (Lee et al. 2018).
 *
 * A feature vector h is centred and whitened, y = L^-1 (h - centre), with the Cholesky factor L of the
 * covariance; so is each mean, as y_c. Then |L^-1 (h - mu_c)|^2 = |y|^2 - 2 y . y_c + |y_c|^2. A singular
 * covariance has no L: instead of L^-1 a root of its pseudo-inverse is used, from eigenvectors whose
 * eigenvalues exceed D eps times the largest (as in scipy.linalg.pinvh). */
#ifndef DICE_OOD_SCORES_GAUSSIAN_H
#define DICE_OOD_SCORES_GAUSSIAN_H

#include "backend/backend.h"
#include "ood/scores/rule.h"

typedef struct dice_gaussian dice_gaussian;

/* *out = the distances to means (K, D), K at least 1. covariance (D, D) is overwritten; centre (D) should be
 * near the means, for precision. The distances are computed by `backend` if it offers that. */
dice_status dice_gaussian_create(double *covariance, const double *centre, const double *means,
                                 size_t classes, size_t features, const dice_backend *backend,
                                 const dice_options *options, dice_gaussian **out);
void dice_gaussian_free(dice_gaussian *gaussian); /* NULL is allowed */

size_t dice_gaussian_rank(const dice_gaussian *gaussian);
size_t dice_gaussian_features(const dice_gaussian *gaussian);

/* out (N) = the least squared distance of each row of h (N, D). On the CPU the bits are the same for
 * every N and number of threads; for other devices see distance_forward in backend.h. */
dice_status dice_gaussian_distance(const dice_gaussian *gaussian, const dice_rows *h, double *out);

#endif
