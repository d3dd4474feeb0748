/* Rules that read the logits alone: MSP, MaxLogit, energy, entropy, the likelihood for fitting a temperature,
 * and KL matching with the predicted class. And Residual, for which z are not logits but coordinates. */
#include <math.h>

#include "ood/scores/rule.h"

/* MSP (Hendrycks & Gimpel 2017), with TempScale's temperature: max softmax(z / T). numbers: 1 / T */
static void msp(const dice_score_image *image, double *out)
{
    double max;
    *out = 1 / dice_score_exp(image, image->numbers[0], image->scratch, &max);
}

const dice_score_rule dice_score_msp = {
    .name = "msp", .reads = "z", .arrays = "", .numbers = 1, .outputs = 1, .score = msp};

/* MaxLogit (Hendrycks et al. 2022): max z */
static void maxlogit(const dice_score_image *image, double *out)
{
    *out = image->kernels->max(image->z, image->classes);
}

const dice_score_rule dice_score_maxlogit = {
    .name = "maxlogit", .reads = "z", .arrays = "", .numbers = 0, .outputs = 1, .score = maxlogit};

/* Energy (Liu et al. 2020): T LSE(z / T). numbers: T */
static void energy(const dice_score_image *image, double *out)
{
    double max;
    const double t = image->numbers[0], sum = dice_score_exp(image, 1 / t, image->scratch, &max);
    *out = max + t * log(sum);
}

const dice_score_rule dice_score_energy = {
    .name = "energy", .reads = "z", .arrays = "", .numbers = 1, .outputs = 1, .score = energy};

/* Entropy, negated: sum p log p = sum p (z - max) - log(sum e), with e = exp(z - max). The largest e, 1, is
 * left out of the sum and log1p is taken of the rest, which keeps its digits when the sum is close to 1. */
static void entropy(const dice_score_image *image, double *out)
{
    double max, *e = image->scratch;
    dice_score_exp(image, 1, e, &max);
    const double below = image->kernels->distance(image->z, image->classes, max, e);
    e[dice_score_label(image)] = 0;
    const double rest = image->kernels->distance(e, image->classes, 0, NULL);
    *out = -below / (1 + rest) - log1p(rest);
}

const dice_score_rule dice_score_entropy = {
    .name = "entropy", .reads = "z", .arrays = "", .numbers = 0, .outputs = 1, .score = entropy};

/* Three outputs, from which a temperature 1 / s is fitted (Guo et al. 2017): LSE(s z) and its first two
 * derivatives with respect to s, which are the mean and the variance of z under softmax(s z). numbers: s */
static void likelihood(const dice_score_image *image, double *out)
{
    double max, *e = image->scratch, *away = e + image->classes;
    const double sum = dice_score_exp(image, image->numbers[0], e, &max);
    const double below = image->kernels->distance(image->z, image->classes, max, e) / sum;
    for (size_t c = 0; c < image->classes; c++) {
        away[c] = (max - image->z[c] - below) * (max - image->z[c] - below);
    }
    out[0] = max * image->numbers[0] + log(sum);
    out[1] = max - below;
    out[2] = image->kernels->dot(away, e, image->classes) / sum;
}

const dice_score_rule dice_score_likelihood = {
    .name = "likelihood", .reads = "z", .arrays = "", .numbers = 1, .outputs = 3, .score = likelihood};

/* KL(p || d_y), negated; d_y is the typical softmax output of the predicted class y. arrays: log d (C, C) */
static void klm_label(const dice_score_image *image, double *out)
{
    double max, *e = image->scratch;
    const double sum = dice_score_exp(image, 1, e, &max), *typical = image->arrays[0];
    const double entropy = image->kernels->distance(image->z, image->classes, max, e) / sum + log(sum);
    *out = entropy
         + image->kernels->dot(e, typical + dice_score_label(image) * image->classes, image->classes) / sum;
}

const dice_score_rule dice_score_klm_label = {
    .name = "klm-label", .reads = "z", .arrays = "CC", .numbers = 0, .outputs = 1, .score = klm_label};

/* Residual: -norm(z), where z are the coordinates of the features outside the principal subspace. */
static void residual(const dice_score_image *image, double *out)
{
    *out = -sqrt(image->kernels->dot(image->z, image->z, image->classes));
}

const dice_score_rule dice_score_residual = {
    .name = "residual", .reads = "z", .arrays = "", .numbers = 0, .outputs = 1, .score = residual};
