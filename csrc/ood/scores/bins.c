/* Histograms of each image. See bins.h. */
#include "ood/scores/bins.h"

#include "base/sizes.h"
#include "base/threads.h"

enum { IMAGES = 32 }; /* images in a task */

typedef struct count_job {
    const dice_rows *rows;
    double low, high;
    size_t bins;
    double *counts;
} count_job;

static dice_status count_task(void *context, size_t index, int thread)
{
    (void)thread;
    const count_job *job = context;
    const size_t first = index * IMAGES, n = job->rows->n, width = job->rows->width;
    const double scale = (double)job->bins / (job->high - job->low);
    for (size_t i = first; i < n && i < first + IMAGES; i++) {
        double *counts = job->counts + i * job->bins;
        for (size_t d = 0; d < width; d++) {
            const size_t at = i * width + d;
            const double x = job->rows->is_double ? ((const double *)job->rows->data)[at]
                                                  : (double)((const float *)job->rows->data)[at];
            if (x >= job->low && x < job->high) {
                const size_t bin = (size_t)((x - job->low) * scale);
                counts[dice_least(bin, job->bins - 1)] += 1;
            }
        }
    }
    return DICE_OK;
}

dice_status dice_bins_count(const dice_rows *rows, double low, double high, size_t bins, double *counts)
{
    count_job job = {rows, low, high, bins, counts};
    return dice_parallel_for(dice_ceil_div(rows->n, IMAGES), count_task, &job);
}
