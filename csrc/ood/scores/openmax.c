/* OpenMax (Bendale & Boult, CVPR 2016), negated: -P(unknown). */
#include <math.h>

#include "ood/scores/rule.h"

/* arrays: (C, C) the mean logits of each class; (C, 3) for each class the distance at which its Weibull tail
 * begins, its scale and its shape, 0 for a class without one. numbers: alpha, how many of the largest logits
 * are revised; the translation, which is where the tail's variable begins. */
static void openmax(const dice_score_image *image, double *out)
{
    const double *means = image->arrays[0], *tails = image->arrays[1];
    const size_t classes = image->classes;
    const size_t alpha = (size_t)fmin(fmax(image->numbers[0], 0), (double)classes);
    double *v = image->scratch, *away = v + classes, unknown = 0;
    for (size_t c = 0; c < classes; c++) {
        v[c] = image->z[c];
    }
    /* The last logit taken and its index; equal logits are taken in the order of their indices. */
    double below = INFINITY;
    size_t place = 0;
    for (size_t rank = 0; rank < alpha; rank++) {
        size_t label = classes;
        for (size_t c = 0; c < classes; c++) {
            const double z = image->z[c];
            const int left = z < below || (z == below && c > place);
            if (left && (label == classes || z > image->z[label])) {
                label = c;
            }
        }
        below = image->z[label];
        place = label;
        const double *tail = tails + 3 * label, *mean = means + label * classes;
        for (size_t c = 0; c < classes; c++) {
            away[c] = image->z[c] - mean[c];
        }
        /* the difference first: a large distance would swallow the translation */
        const double x = sqrt(image->kernels->dot(away, away, classes)) - tail[0] + image->numbers[1];
        const double share = tail[2] == 0 ? 1 : x <= 0 ? 0 : -expm1(-pow(x / tail[1], tail[2]));
        const double taken = v[label] * share * ((double)(alpha - rank) / (double)alpha);
        v[label] -= taken;
        unknown += taken;
    }
    double max = image->kernels->max(v, classes);
    max = unknown > max ? unknown : max;
    const double known = image->kernels->exp(v, classes, max, 1, away), e = exp(unknown - max);
    *out = -e / (known + e);
}

const dice_score_rule dice_score_openmax = {
    .name = "openmax", .reads = "z", .arrays = "CC C3", .numbers = 2, .outputs = 1, .score = openmax};
