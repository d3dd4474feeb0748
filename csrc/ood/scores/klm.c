/* KL matching (Hendrycks et al. 2022), negated: -min over k of KL(p || d_k) = max over k of p . log d_k - sum
 * p log p.
 *
 * The products p . log d_k are first computed in float. All their terms have the same sign, so the relative
 * error of a product is at most C roundings. The products that can be the maximum are then computed again in
 * double. */
#include "ood/scores/klm.h"

#include <math.h>

#include "backend/backend.h"
#include "base/memory.h"
#include "base/sizes.h"
#include "base/threads.h"

/* WAVE: images whose products exist at the same time; IMAGES: images in a task; LANES: partial maxima */
enum { WAVE = 512, IMAGES = 16, LANES = 16 };

typedef struct klm_job {
    const dice_row_kernels *kernels;
    const dice_rows *z;
    const double *log_typical; /* (K, C) */
    size_t n_typical;
    size_t first, n;       /* the wave's first image and its size */
    double *scratch;       /* (threads, C) */
    double *p;             /* (WAVE, C) */
    float *short_p;        /* (WAVE, C): p as floats */
    const float *products; /* (WAVE, K) */
    double *out;
} klm_job;

static dice_status softmax_task(void *context, size_t index, int thread)
{
    const klm_job *job = context;
    const size_t classes = job->z->width, end = dice_least((index + 1) * IMAGES, job->n);
    for (size_t i = index * IMAGES; i < end; i++) {
        const double *z = dice_rows_at(job->z, job->first + i, job->scratch + (size_t)thread * classes);
        double *p = job->p + i * classes, max;
        const double sum = dice_rows_exp(job->kernels, z, classes, 1, p, &max);
        for (size_t c = 0; c < classes; c++) {
            p[c] /= sum;
            job->short_p[i * classes + c] = (float)p[c];
        }
        job->out[job->first + i] = job->kernels->distance(z, classes, max, p) + log(sum); /* -sum p log p */
    }
    return DICE_OK;
}

static float largest(const float *x, size_t n)
{
    float best[LANES];
    for (size_t l = 0; l < LANES; l++) {
        best[l] = x[0];
    }
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (size_t l = 0; l < LANES; l++) {
            best[l] = x[i + l] > best[l] ? x[i + l] : best[l];
        }
    }
    for (; i < n; i++) {
        best[0] = x[i] > best[0] ? x[i] : best[0];
    }
    for (size_t l = 1; l < LANES; l++) {
        best[0] = best[l] > best[0] ? best[l] : best[0];
    }
    return best[0];
}

static dice_status best_task(void *context, size_t index, int thread)
{
    (void)thread;
    const klm_job *job = context;
    const size_t classes = job->z->width, end = dice_least((index + 1) * IMAGES, job->n);
    const double doubt = (double)(classes + 3) * 0x1p-24;
    for (size_t i = index * IMAGES; i < end; i++) {
        const float *products = job->products + i * job->n_typical, most = largest(products, job->n_typical);
        const float limit = most - (float)(3 * doubt * fabs((double)most) + 1e-12);
        const double *p = job->p + i * classes;
        double best = -INFINITY;
        for (size_t k = 0; k < job->n_typical; k++) {
            if (products[k] >= limit) {
                best = fmax(best, job->kernels->dot(p, job->log_typical + k * classes, classes));
            }
        }
        job->out[job->first + i] += best;
    }
    return DICE_OK;
}

dice_status dice_score_klm(const dice_rows *z, const double *log_typical, size_t n, double *out)
{
    const size_t classes = z->width, wave = dice_least(z->n, WAVE);
    klm_job job = {.z = z, .log_typical = log_typical, .n_typical = n, .out = out};
    dice_options options = {0};
    const dice_backend *backend = NULL;
    dice_linear *linear = NULL;
    void *floats = NULL, *doubles = NULL;
    dice_status status = dice_isa_select(NULL, &options.isa);
    if (status != DICE_OK || z->n == 0 || (status = dice_backend_find("cpu", &options, &backend)) != DICE_OK
        || (status = dice_alloc(wave * (classes + n) + (classes + 1) * n, sizeof(float), &floats)) != DICE_OK
        || (status = dice_alloc(((size_t)dice_threads_count() + wave) * classes, sizeof(double), &doubles))
               != DICE_OK) {
        goto done;
    }
    float *products = (float *)floats + wave * classes, *typical = products + wave * n,
          *bias = typical + n * classes;
    for (size_t i = 0; i < n * classes; i++) {
        typical[i] = (float)log_typical[i];
    }
    for (size_t k = 0; k < n; k++) {
        bias[k] = 0;
    }
    if ((status = backend->linear_create(typical, bias, NULL, n, classes, &options, &linear)) != DICE_OK) {
        goto done;
    }
    job.kernels = dice_row_kernels_for(options.isa);
    job.p = doubles;
    job.scratch = job.p + wave * classes;
    job.short_p = floats;
    job.products = products;
    for (; job.first < z->n && status == DICE_OK; job.first += job.n) {
        const dice_linear_outputs outputs = {.logits = products};
        job.n = dice_least(z->n - job.first, wave);
        const size_t tasks = dice_ceil_div(job.n, IMAGES);
        if ((status = dice_parallel_for(tasks, softmax_task, &job)) == DICE_OK
            && (status = backend->linear_forward(linear, job.short_p, job.n, INFINITY, &outputs))
                   == DICE_OK) {
            status = dice_parallel_for(tasks, best_task, &job);
        }
    }
done:
    if (linear != NULL) {
        backend->linear_free(linear);
    }
    dice_free(floats);
    dice_free(doubles);
    return status;
}
