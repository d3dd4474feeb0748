/* KL matching (Hendrycks et al. 2022), negated: -min over k of KL(p || d_k) = -(sum p log p - max over k of p . log d_k). */
#include "ood/score_klm.h"

#include <math.h>

#include "base/memory.h"
#include "base/threads.h"
#include "cpu/product.h"

enum { IMAGES = 64 };  /* a task, at most */

typedef struct klm_job {
    const dice_row_kernels *kernels;
    const dice_rows *z;
    dice_product product;
    size_t images, each;
    double *memory;   /* (threads, each) */
    double *out;
} klm_job;

static dice_status klm_task(void *context, size_t index, int thread)
{
    const klm_job *job = context;
    const size_t classes = job->z->width, width = job->product.width, first = index * job->images;
    const size_t n = job->z->n - first < job->images ? job->z->n - first : job->images;
    double *p = job->memory + (size_t)thread * job->each, *overlaps = p + job->images * classes;
    double *scratch = overlaps + job->images * width;
    for (size_t i = 0; i < n; i++) {
        double *row = p + i * classes;
        const double *z = dice_rows_at(job->z, first + i, scratch), max = job->kernels->max(z, classes);
        const double sum = job->kernels->exp(z, classes, max, 1, row);
        for (size_t c = 0; c < classes; c++) {
            row[c] /= sum;
        }
        job->out[first + i] = job->kernels->distance(z, classes, max, row) + log(sum);  /* -sum p log p */
    }
    dice_product_run(&job->product, p, n, overlaps);
    for (size_t i = 0; i < n; i++) {
        job->out[first + i] += job->kernels->max(overlaps + i * width, job->product.outputs);
    }
    return DICE_OK;
}

dice_status dice_score_klm(const dice_rows *z, const double *log_typical, size_t n, double *out)
{
    const size_t threads = (size_t)dice_threads_count(), share = (z->n + threads - 1) / threads;
    klm_job job = {.z = z, .out = out, .images = share < IMAGES ? share : IMAGES};
    dice_isa isa;
    void *memory = NULL;
    dice_status status = dice_isa_select(NULL, &isa);
    if (status != DICE_OK || z->n == 0) {
        return status;
    }
    job.kernels = dice_row_kernels_for(isa);
    status = dice_product_init(&job.product, log_typical, n, z->width, 0, job.kernels);
    job.each = job.images * (z->width + job.product.width) + z->width;
    if (status == DICE_OK && (status = dice_alloc(threads * job.each, sizeof(double), &memory)) == DICE_OK) {
        job.memory = memory;
        status = dice_parallel_for((z->n + job.images - 1) / job.images, klm_task, &job);
    }
    dice_product_free(&job.product);
    dice_free(memory);
    return status;
}
