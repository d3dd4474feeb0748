/* Scores that compare the features with a property of the predicted class y: fDBD, NCI, SHE, CADRef. */
#include <math.h>

#include "ood/scores/rule.h"

/* *away (D) = h - mean, in the scratch after the first 2 C numbers; returns its norm. */
static double centre(const dice_score_image *image, const double *mean, double **away)
{
    *away = image->scratch + 2 * image->classes;
    for (size_t d = 0; d < image->features; d++) {
        (*away)[d] = image->h[d] - mean[d];
    }
    return sqrt(image->kernels->dot(*away, *away, image->features));
}

/* fDBD (Liu & Qin, ICML 2024): sum over c of |z_y - z_c| / norm(w_y - w_c), the distances to the decision
 * boundaries, divided by norm(h - mean), which counts as at least half a float32 step of norm(h): so an image
 * at the mean gets a large finite score, and 0 where h is 0 too. arrays: mean (D); 1 / norm(w_y - w_c) (C, C)
 * as floats */
static void fdbd(const dice_score_image *image, double *out)
{
    double *away;
    double norm = centre(image, image->arrays[0], &away);
    norm = fmax(norm, 0x1p-24 * sqrt(image->kernels->dot(image->h, image->h, image->features)));
    const size_t label = dice_score_label(image), classes = image->classes;
    const float *inverse = (const float *)(const void *)image->arrays[1] + label * classes;
    for (size_t c = 0; c < classes; c++) {
        image->scratch[c] = (double)inverse[c];
    }
    const double apart = image->kernels->distance(image->z, classes, image->z[label], image->scratch);
    *out = norm > 0 ? apart / norm : 0;
}

const dice_score_rule dice_score_fdbd = {
    .name = "fdbd", .reads = "zh", .arrays = "D fCC", .numbers = 0, .outputs = 1, .score = fdbd};

/* NCI (Liu & Qin, 2023): w_y . (h - mean) / norm(h - mean) + a norm1(h). arrays: mean, W; numbers: a */
static void nci(const dice_score_image *image, double *out)
{
    double *away;
    const double norm = centre(image, image->arrays[0], &away);
    const double *weight = image->arrays[1] + dice_score_label(image) * image->features;
    const double cosine = norm > 0 ? image->kernels->dot(weight, away, image->features) / norm : 0;
    *out = cosine + image->numbers[0] * image->kernels->distance(image->h, image->features, 0, NULL);
}

const dice_score_rule dice_score_nci = {
    .name = "nci", .reads = "zh", .arrays = "D CD", .numbers = 1, .outputs = 1, .score = nci};

/* SHE (Zhang et al., ICLR 2023): <h, pattern of the predicted class>. arrays: patterns */
static void she(const dice_score_image *image, double *out)
{
    const double *pattern = image->arrays[0] + dice_score_label(image) * image->features;
    *out = image->kernels->dot(image->h, pattern, image->features);
}

const dice_score_rule dice_score_she = {
    .name = "she", .reads = "zh", .arrays = "CD", .numbers = 0, .outputs = 1, .score = she};

/* CADRef (Ling et al., CVPR 2025), two numbers: the sums of the positive and of the negative parts of
 * sign(w_y) (h - mean of y), over norm1(h); 0 where h is 0. arrays: means, W */
static void cadref(const dice_score_image *image, double *out)
{
    const size_t label = dice_score_label(image);
    const double *mean = image->arrays[0] + label * image->features;
    const double *weight = image->arrays[1] + label * image->features;
    const double norm = image->kernels->distance(image->h, image->features, 0, NULL);
    double parts[2] = {0, 0};
    for (size_t d = 0; d < image->features; d++) {
        const double away = image->h[d] - mean[d];
        if (weight[d] != 0) {
            parts[(away > 0) != (weight[d] > 0)] += fabs(away);
        }
    }
    out[0] = norm > 0 ? parts[0] / norm : 0;
    out[1] = norm > 0 ? parts[1] / norm : 0;
}

const dice_score_rule dice_score_cadref = {
    .name = "cadref", .reads = "zh", .arrays = "CD CD", .numbers = 0, .outputs = 2, .score = cadref};
