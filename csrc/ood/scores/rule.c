/* What rules share. See rule.h. */
#include "ood/scores/rule.h"

const double *dice_rows_at(const dice_rows *rows, size_t i, double *to)
{
    if (rows->is_double) {
        return (const double *)rows->data + i * rows->width;
    }
    const float *from = (const float *)rows->data + i * rows->width;
    for (size_t d = 0; d < rows->width; d++) {
        to[d] = (double)from[d];
    }
    return to;
}

size_t dice_score_label(const dice_score_image *image)
{
    const double max = image->kernels->max(image->z, image->classes);
    size_t label = 0;
    while (image->z[label] != max) {
        label++;
    }
    return label;
}

double dice_score_exp(const dice_score_image *image, double scale, double *e, double *max)
{
    return dice_rows_exp(image->kernels, image->z, image->classes, scale, e, max);
}
