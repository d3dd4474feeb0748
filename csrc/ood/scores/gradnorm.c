/* GradNorm (Huang, Geng & Li, NeurIPS 2021): the L1 norm of the gradient of the cross-entropy with uniform
 * targets, with respect to the weights of the last layer. The gradient is (C p - 1) h', so its norm is that
 * of h times that of C p - 1, and no backward pass is needed. */
#include "ood/scores/rule.h"

/* numbers: 1 / T */
static void gradnorm(const dice_score_image *image, double *out)
{
    double max, *e = image->scratch;
    const double classes = (double)image->classes, sum = dice_score_exp(image, image->numbers[0], e, &max);
    *out = image->kernels->distance(image->h, image->features, 0, NULL) * classes
         * (image->kernels->distance(e, image->classes, sum / classes, NULL) / sum);
}

const dice_score_rule dice_score_gradnorm = {
    .name = "gradnorm", .reads = "zh", .arrays = "", .numbers = 1, .outputs = 1, .score = gradnorm};
