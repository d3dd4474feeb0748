/* linear in plain C, with double sums and the C library's exp and log. The fast ones are tested against
 * it. */
#include "backend/reference_linear.h"

#include <math.h>

#include "base/memory.h"
#include "base/threads.h"

struct dice_linear {
    size_t classes, features;
    float *weight; /* (M, D), with 0 where `keep` drops a weight */
    float *bias;   /* (M) */
};

void dice_reference_linear_free(dice_linear *linear)
{
    if (linear != NULL) {
        dice_free(linear->weight);
        dice_free(linear->bias);
        dice_free(linear);
    }
}

dice_status dice_reference_linear_create(const float *weight, const float *bias, const uint8_t *keep,
                                         size_t classes, size_t features, const dice_options *options,
                                         dice_linear **out)
{
    (void)options;
    void *memory, *weights, *biases;
    dice_status status = dice_alloc_zero(1, sizeof(dice_linear), &memory);
    if (status != DICE_OK) {
        return status;
    }
    dice_linear *linear = memory;
    if ((status = dice_alloc(classes * features, sizeof *linear->weight, &weights)) == DICE_OK) {
        linear->weight = weights;
        status = dice_alloc(classes, sizeof *linear->bias, &biases);
    }
    if (status != DICE_OK) {
        dice_reference_linear_free(linear);
        return status;
    }
    linear->bias = biases;
    linear->classes = classes;
    linear->features = features;
    for (size_t i = 0; i < classes * features; i++) {
        linear->weight[i] = keep == NULL || keep[i] ? weight[i] : 0;
    }
    for (size_t m = 0; m < classes; m++) {
        linear->bias[m] = bias[m];
    }
    *out = linear;
    return DICE_OK;
}

typedef struct job {
    const dice_linear *linear;
    const float *h;
    float clip;
    const dice_linear_outputs *outputs;
} job;

static dice_status forward_image(void *context, size_t image, int thread)
{
    (void)thread;
    const job *work = context;
    const dice_linear *linear = work->linear;
    const dice_linear_outputs *out = work->outputs;
    const float *h = work->h + image * linear->features;
    void *logits;
    const dice_status status = dice_alloc(linear->classes, sizeof(double), &logits);
    if (status != DICE_OK) {
        return status;
    }
    double *z = logits, sum = 0;
    size_t best = 0;
    for (size_t m = 0; m < linear->classes; m++) {
        const float *weight = linear->weight + m * linear->features;
        double dot = 0;
        for (size_t d = 0; d < linear->features; d++) {
            dot += (double)weight[d] * (double)fminf(h[d], work->clip);
        }
        z[m] = dot + (double)linear->bias[m];
        if (out->logits != NULL) {
            out->logits[image * linear->classes + m] = (float)z[m];
        }
        best = z[m] > z[best] ? m : best;
    }
    for (size_t m = 0; m < linear->classes; m++) {
        sum += exp(z[m] - z[best]);
    }
    if (out->energy != NULL) {
        out->energy[image] = z[best] + log(sum);
    }
    if (out->msp != NULL) {
        out->msp[image] = 1 / sum;
    }
    if (out->maxlogit != NULL) {
        out->maxlogit[image] = z[best];
    }
    if (out->label != NULL) {
        out->label[image] = (int32_t)best;
    }
    dice_free(logits);
    return DICE_OK;
}

dice_status dice_reference_linear_forward(dice_linear *linear, const float *h, size_t n, float clip,
                                          const dice_linear_outputs *outputs)
{
    job work = {.linear = linear, .h = h, .clip = clip, .outputs = outputs};
    return dice_parallel_for(n, forward_image, &work);
}

const char *dice_reference_linear_info(const dice_linear *linear, size_t *bytes)
{
    *bytes = linear->classes * (linear->features + 1) * sizeof(float);
    return "dense";
}
