/* Activation rules. See activation.h. */
#include "ood/scores/activation.h"

#include <math.h>

#include "base/memory.h"
#include "base/sizes.h"
#include "base/threads.h"
#include "linalg/order.h"

enum { IMAGES = 32 }; /* images in a task */

typedef struct run_job {
    dice_activation rule;
    const float *h;
    size_t n, features, kept;
    double *memory; /* (threads, D) */
    float *out;
} run_job;

/* out (D) = h (D) by an ASH rule or SCALE; order (D) is working memory. Returns 0 if one is not finite. */
static int shape(const run_job *job, const float *h, double *order, float *out)
{
    double all = 0, largest = 0;
    for (size_t d = 0; d < job->features; d++) {
        order[d] = (double)h[d];
        all += order[d];
    }
    dice_order_largest(order, job->features, job->kept);
    const double least = order[job->kept - 1];
    size_t ties = 0; /* how many of the kept features equal the least of them */
    for (size_t d = 0; d < job->kept; d++) {
        largest += order[d];
        ties += order[d] == least;
    }
    const int scales = job->rule == DICE_ASH_S || job->rule == DICE_SCALE;
    const double factor = scales && largest != 0 ? exp(all / largest) : 1;
    int finite = 1;
    for (size_t d = 0; d < job->features; d++) {
        const double x = (double)h[d];
        int stays = x > least;
        if (x == least && ties > 0) {
            stays = 1;
            ties--;
        }
        const double y = job->rule == DICE_SCALE ? x * factor
                       : !stays                  ? 0
                       : job->rule == DICE_ASH_B ? all / (double)job->kept
                                                 : x * factor;
        out[d] = (float)y;
        finite &= isfinite(out[d]) != 0;
    }
    return finite;
}

static dice_status run_task(void *context, size_t index, int thread)
{
    const run_job *job = context;
    double *order = job->memory + (size_t)thread * job->features;
    const size_t first = index * IMAGES, end = dice_least(first + IMAGES, job->n);
    for (size_t i = first; i < end; i++) {
        const float *h = job->h + i * job->features;
        float *out = job->out + i * job->features;
        if (!shape(job, h, order, out)) {
            return dice_fail(DICE_E_INPUT,
                             "h: a feature times exp(s1 / s2) leaves the range of float32; scale them");
        }
    }
    return DICE_OK;
}

dice_status dice_activation_run(dice_activation rule, const float *h, size_t n, size_t features,
                                double percentile, float *out)
{
    run_job job = {.rule = rule, .h = h, .n = n, .features = features, .out = out};
    const double pruned = nearbyint((double)features * percentile / 100);
    job.kept = pruned < (double)features ? features - (size_t)fmax(pruned, 0) : 1;
    void *memory;
    dice_status status = dice_alloc((size_t)dice_threads_count() * features, sizeof(double), &memory);
    if (status == DICE_OK) {
        job.memory = memory;
        status = dice_parallel_for(dice_ceil_div(n, IMAGES), run_task, &job);
        dice_free(memory);
    }
    return status;
}

typedef struct cut_job {
    const float *h, *low, *high, *below;
    size_t n, features;
    float *out;
} cut_job;

static dice_status cut_task(void *context, size_t index, int thread)
{
    (void)thread;
    const cut_job *job = context;
    const size_t first = index * IMAGES, end = dice_least(first + IMAGES, job->n);
    for (size_t i = first; i < end; i++) {
        const float *h = job->h + i * job->features;
        float *out = job->out + i * job->features;
        for (size_t d = 0; d < job->features; d++) {
            out[d] = h[d] < job->low[d] ? job->below[d] : h[d] > job->high[d] ? job->high[d] : h[d];
        }
    }
    return DICE_OK;
}

dice_status dice_activation_cut(const float *h, size_t n, size_t features, const float *low,
                                const float *high, const float *below, float *out)
{
    cut_job job = {
        .h = h, .n = n, .features = features, .low = low, .high = high, .below = below, .out = out};
    return dice_parallel_for(dice_ceil_div(n, IMAGES), cut_task, &job);
}
