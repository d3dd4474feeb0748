/* The means of classes and the scatter within them, in one pass over the images, mergeable.
 *
 * The k-th image x of a class adds y y' to the scatter, with y = sqrt((k - 1) / k) (x - the class's mean
 * before x) (Welford 1962). Nothing is ever subtracted from a sum, so any split, order and merging gives the
 * same to 1e-12 relative. */
#ifndef DICE_OOD_FIT_CLASSES_H
#define DICE_OOD_FIT_CLASSES_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct dice_classes {
    size_t classes, features; /* K, D */
    double *count;            /* (K) images seen */
    double *mean;             /* (K, D) */
    /* (D, D), the upper triangle: the sum over all images of (x - m)(x - m)', m the mean of x's class; NULL:
     * not wanted. */
    double *scatter;
} dice_classes;

/* Adds the images x (n, D) of classes label (n); images with a label below 0 are left out. */
dice_status dice_classes_add(dice_classes *classes, const double *x, const int64_t *label, size_t n);

/* Adds the images of `other`, which has the same K and D. */
dice_status dice_classes_merge(dice_classes *classes, const dice_classes *other);

/* to (D, D), both triangles = the scatter within the classes or, with `total`, about the mean of all images;
 * mean (D) = the mean of all images. At least one image must have been added. */
dice_status dice_classes_scatter(const dice_classes *classes, int total, double *to, double *mean);

#endif
