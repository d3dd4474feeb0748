/* The head, scalar: the truth that faster ones are tested against. See reference_head.h. */
#include "backend/reference_head.h"

#include <math.h>

#include "base/memory.h"
#include "base/threads.h"

struct dice_head {
    size_t classes, features;
    float *weight; /* (M, D), dropped weights as 0 */
    float *bias;   /* (M) */
};

void dice_reference_head_free(dice_head *head)
{
    if (head != NULL) {
        dice_free(head->weight);
        dice_free(head->bias);
        dice_free(head);
    }
}

dice_status dice_reference_head_create(const float *weight, const float *bias, const uint8_t *keep,
                                       size_t classes, size_t features, const dice_options *options,
                                       dice_head **out)
{
    (void)options;
    void *memory, *weights, *biases;
    dice_status status = dice_alloc_zero(1, sizeof(dice_head), &memory);
    if (status != DICE_OK) {
        return status;
    }
    dice_head *head = memory;
    if ((status = dice_alloc(classes * features, sizeof *head->weight, &weights)) == DICE_OK) {
        head->weight = weights;
        status = dice_alloc(classes, sizeof *head->bias, &biases);
    }
    if (status != DICE_OK) {
        dice_reference_head_free(head);
        return status;
    }
    head->bias = biases;
    head->classes = classes;
    head->features = features;
    for (size_t i = 0; i < classes * features; i++) {
        head->weight[i] = keep == NULL || keep[i] ? weight[i] : 0;
    }
    for (size_t m = 0; m < classes; m++) {
        head->bias[m] = bias[m];
    }
    *out = head;
    return DICE_OK;
}

typedef struct job {
    const dice_head *head;
    const float *h;
    float clip;
    const dice_head_outputs *outputs;
} job;

static dice_status forward_image(void *context, size_t image, int thread)
{
    (void)thread;
    const job *work = context;
    const dice_head *head = work->head;
    const dice_head_outputs *out = work->outputs;
    const float *h = work->h + image * head->features;
    void *logits;
    const dice_status status = dice_alloc(head->classes, sizeof(double), &logits);
    if (status != DICE_OK) {
        return status;
    }
    double *z = logits, sum = 0;
    size_t best = 0;
    for (size_t m = 0; m < head->classes; m++) {
        const float *weight = head->weight + m * head->features;
        double dot = 0;
        for (size_t d = 0; d < head->features; d++) {
            dot += (double)weight[d] * (double)fminf(h[d], work->clip);
        }
        z[m] = dot + (double)head->bias[m];
        if (out->logits != NULL) {
            out->logits[image * head->classes + m] = (float)z[m];
        }
        best = z[m] > z[best] ? m : best;
    }
    for (size_t m = 0; m < head->classes; m++) {
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

dice_status dice_reference_head_forward(dice_head *head, const float *h, size_t n, float clip,
                                        const dice_head_outputs *outputs)
{
    job work = {.head = head, .h = h, .clip = clip, .outputs = outputs};
    return dice_parallel_for(n, forward_image, &work);
}

const char *dice_reference_head_info(const dice_head *head, size_t *bytes)
{
    *bytes = head->classes * (head->features + 1) * sizeof(float);
    return "dense";
}
