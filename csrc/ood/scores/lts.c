/* LTS (Djurisic, Liu & Nikolic, 2024): the energy of the logits times the square of s, the sum of the
 * positive features over that of the k largest. */
#include <math.h>

#include "linalg/order.h"
#include "ood/scores/rule.h"

/* numbers: k, how many features count as large, 1 to D. Where no feature is positive s is 1. */
static void lts(const dice_score_image *image, double *out)
{
    double *positive = image->scratch + 2 * image->classes, all = 0, largest = 0, max;
    const size_t k = (size_t)fmin(fmax(image->numbers[0], 1), (double)image->features);
    for (size_t d = 0; d < image->features; d++) {
        positive[d] = fmax(image->h[d], 0);
        all += positive[d];
    }
    dice_order_largest(positive, image->features, k);
    for (size_t d = 0; d < k; d++) {
        largest += positive[d];
    }
    const double s = largest > 0 ? all / largest : 1;
    const double sum = dice_score_exp(image, s * s, image->scratch, &max);
    *out = s * s * max + log(sum);
}

const dice_score_rule dice_score_lts = {
    .name = "lts", .reads = "zh", .arrays = "", .numbers = 1, .outputs = 1, .score = lts};
