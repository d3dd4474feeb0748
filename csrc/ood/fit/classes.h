/* Means of classes and the scatter within them, in one pass over the images: centred, mergeable sums.
 *
 * The scatter gains sqrt((k - 1) / k) (x - mean before x) as a row of a sum of squares for the k-th image of
 * a class (Welford 1962): nothing is ever subtracted from it. Any split, order and merging gives the same to
 * 1e-12. */
#ifndef DICE_OOD_FIT_CLASSES_H
#define DICE_OOD_FIT_CLASSES_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct dice_classes {
    size_t classes, features; /* K, D */
    double *count;            /* (K) images seen */
    double *mean;             /* (K, D) */
    double *scatter; /* (D, D), its upper triangle: sum of (x - mean)(x - mean)', or NULL = not wanted */
} dice_classes;

/* Adds x (n, D); label (n) is each row's class, below 0 = leave it out. */
dice_status dice_classes_add(dice_classes *classes, const double *x, const int64_t *label, size_t n);

/* Adds what `other`, of the same K and D, has seen. */
dice_status dice_classes_merge(dice_classes *classes, const dice_classes *other);

/* to (D, D), both triangles = the scatter within the classes or, with `total`, about the mean of all images;
 * mean (D) = that mean. At least one image was seen. */
dice_status dice_classes_scatter(const dice_classes *classes, int total, double *to, double *mean);

#endif
