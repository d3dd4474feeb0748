/* GEN (Liu, Lochman & Zach, CVPR 2023), negated: -(sum of p^g (1 - p)^g over the M largest p). */
#include <math.h>
#include <string.h>

#include "linalg/order.h"
#include "ood/scores/rule.h"

/* (1 - p)^g; for small p by four terms of its series, which are enough there. */
static double power_of_rest(double p, double g)
{
    if (p > 0x1p-10) {
        return pow(1 - p, g);
    }
    return 1 - g * p * (1 - (g - 1) / 2 * p * (1 - (g - 2) / 3 * p * (1 - (g - 3) / 4 * p)));
}

/* numbers: g, M. The largest p is treated apart: its 1 - p is computed as the sum of the others, which keeps
 * its digits when p is close to 1. */
static void gen(const dice_score_image *image, double *out)
{
    double max, *z = image->scratch, *e = z + image->classes;
    const double sum = dice_score_exp(image, 1, e, &max), g = image->numbers[0];
    const size_t others = image->classes - 1, label = dice_score_label(image);
    const size_t most = (size_t)fmin(fmax(image->numbers[1] - 1, 0), (double)others);
    e[label] = e[others];
    double total = pow(image->kernels->distance(e, others, 0, NULL) / sum / sum, g);
    memcpy(z, image->z, image->classes * sizeof *z);
    z[label] = z[others];
    if (most > 0) {
        dice_order_largest(z, others, most);
    }
    image->kernels->exp(z, most, max + log(sum), g, e); /* p^g */
    for (size_t i = 0; i < most; i++) {
        total += e[i] * power_of_rest(exp(z[i] - max) / sum, g);
    }
    *out = -total;
}

const dice_score_rule dice_score_gen = {
    .name = "gen", .reads = "z", .arrays = "", .numbers = 2, .outputs = 1, .score = gen};
