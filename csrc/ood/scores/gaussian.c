/* Whitening and distances. See gaussian.h. */
#include "ood/scores/gaussian.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/sizes.h"
#include "base/threads.h"
#include "linalg/blas.h"
#include "linalg/product.h"

enum { IMAGES = 64 }; /* images in a task, at most: they share one pass over the weights */

struct dice_gaussian {
    const dice_row_kernels *kernels;
    size_t features, classes, rank;
    dice_product whiten, means; /* from (D) to (rank), and on to (K) */
    double *centre;             /* (D) */
    double *norms;              /* (K) squares of the whitened means' norms */
    const dice_backend *backend;
    dice_distance *elsewhere; /* computes the distances on the back end; NULL: `whiten` and `means` do */
};

void dice_gaussian_free(dice_gaussian *gaussian)
{
    if (gaussian != NULL) {
        if (gaussian->elsewhere != NULL) {
            gaussian->backend->distance_free(gaussian->elsewhere);
        }
        dice_product_free(&gaussian->whiten);
        dice_product_free(&gaussian->means);
        dice_free(gaussian->centre);
        dice_free(gaussian->norms);
        dice_free(gaussian);
    }
}

size_t dice_gaussian_rank(const dice_gaussian *gaussian)
{
    return gaussian->rank;
}

size_t dice_gaussian_features(const dice_gaussian *gaussian)
{
    return gaussian->features;
}

/* a (n, n) is symmetric. Its first *rank rows become a root R of its pseudo-inverse: R' R = pinv(a). */
static dice_status root_of_singular(double *a, size_t n, size_t *rank)
{
    void *memory;
    dice_status status = dice_alloc(n, sizeof(double), &memory);
    if (status != DICE_OK) {
        return status;
    }
    double *values = memory;
    status = dice_blas_eigen(n, a, values);
    size_t first = n;
    if (status == DICE_OK) {
        const double limit = (double)n * DBL_EPSILON * fmax(fabs(values[0]), fabs(values[n - 1]));
        while (first > 0 && values[first - 1] > limit) {
            first--;
        }
        for (size_t i = first; i < n; i++) {
            const double scale = 1 / sqrt(values[i]);
            for (size_t d = 0; d < n; d++) {
                a[(i - first) * n + d] = scale * a[i * n + d];
            }
        }
    }
    *rank = n - first;
    dice_free(memory);
    return status;
}

/* Sets g->means and g->norms from means (K, D); and, where the back end computes distances, g->elsewhere from
 * the whitened means and root (rank, D). */
static dice_status set_means(dice_gaussian *g, const double *means, const double *root,
                             const dice_options *options)
{
    void *away_memory = NULL, *memory = NULL;
    const size_t width = g->whiten.width;
    dice_status status = dice_alloc(g->classes * g->features, sizeof(double), &away_memory);
    if (status != DICE_OK || (status = dice_alloc(g->classes * width, sizeof(double), &memory)) != DICE_OK) {
        goto done;
    }
    double *away = away_memory, *white = memory;
    for (size_t i = 0; i < g->classes * g->features; i++) {
        away[i] = means[i] - g->centre[i % g->features];
    }
    dice_product_run(&g->whiten, away, g->classes, white);
    for (size_t c = 0; c < g->classes; c++) {
        memmove(white + c * g->rank, white + c * width, g->rank * sizeof *white);
        g->norms[c] = g->kernels->dot(white + c * g->rank, white + c * g->rank, g->rank);
    }
    status = dice_product_init(&g->means, white, g->classes, g->rank, 0, g->kernels);
    if (status == DICE_OK && g->backend->distance_create != NULL) {
        status = g->backend->distance_create(g->centre, root, white, g->features, g->rank, g->classes,
                                             options, &g->elsewhere);
    }
done:
    dice_free(away_memory);
    dice_free(memory);
    return status;
}

dice_status dice_gaussian_create(double *covariance, const double *centre, const double *means,
                                 size_t classes, size_t features, const dice_backend *backend,
                                 const dice_options *options, dice_gaussian **out)
{
    dice_isa isa;
    void *memory = NULL, *copy = NULL;
    dice_gaussian *g = NULL;
    dice_status status = dice_isa_select(NULL, &isa);
    if (status != DICE_OK || (status = dice_alloc_zero(1, sizeof *g, &memory)) != DICE_OK) {
        return status;
    }
    g = memory;
    g->kernels = dice_row_kernels_for(isa);
    g->features = g->rank = features;
    g->classes = classes;
    g->backend = backend;
    if ((status = dice_alloc(features, sizeof *g->centre, &memory)) != DICE_OK) {
        goto done;
    }
    g->centre = memory;
    memcpy(g->centre, centre, features * sizeof *centre);
    if ((status = dice_alloc(classes, sizeof *g->norms, &memory)) != DICE_OK) {
        goto done;
    }
    g->norms = memory;
    if ((status = dice_alloc(features * features, sizeof(double), &copy)) != DICE_OK) {
        goto done;
    }
    memcpy(copy, covariance, features * features * sizeof(double));
    int definite;
    status = dice_blas_whiten(features, covariance, &definite);
    if (status == DICE_OK && !definite) {
        status = root_of_singular(copy, features, &g->rank);
    }
    for (size_t i = 0; i < features && definite; i++) {
        memset(covariance + i * features + i + 1, 0, (features - i - 1) * sizeof *covariance);
    }
    const double *root = definite ? covariance : copy;
    if (status == DICE_OK) {
        status = dice_product_init(&g->whiten, root, g->rank, features, definite, g->kernels);
    }
    if (status == DICE_OK) {
        status = set_means(g, means, root, options);
    }
done:
    dice_free(copy);
    if (status != DICE_OK) {
        dice_gaussian_free(g);
        return status;
    }
    *out = g;
    return DICE_OK;
}

typedef struct distance_job {
    const dice_gaussian *g;
    const dice_rows *h;
    size_t images;  /* a task */
    double *memory; /* (threads, each) */
    size_t each;
    double *out;
} distance_job;

static dice_status distance_task(void *context, size_t index, int thread)
{
    const distance_job *job = context;
    const dice_gaussian *g = job->g;
    const size_t first = index * job->images;
    const size_t n = dice_least(job->h->n - first, job->images);
    double *x = job->memory + (size_t)thread * job->each, *y = x + job->images * g->features;
    double *products = y + job->images * g->whiten.width;
    for (size_t i = 0; i < n; i++) {
        double *row = x + i * g->features;
        const double *h = dice_rows_at(job->h, first + i, row);
        for (size_t d = 0; d < g->features; d++) {
            row[d] = h[d] - g->centre[d];
        }
    }
    dice_product_run(&g->whiten, x, n, y);
    for (size_t i = 0; i < n && g->rank < g->whiten.width; i++) {
        memmove(y + i * g->rank, y + i * g->whiten.width, g->rank * sizeof *y);
    }
    dice_product_run(&g->means, y, n, products);
    for (size_t i = 0; i < n; i++) {
        const double *row = y + i * g->rank, *product = products + i * g->means.width;
        double best = INFINITY;
        for (size_t c = 0; c < g->classes; c++) {
            best = fmin(best, g->norms[c] - 2 * product[c]);
        }
        job->out[first + i] = fmax(0, best + g->kernels->dot(row, row, g->rank));
    }
    return DICE_OK;
}

dice_status dice_gaussian_distance(const dice_gaussian *gaussian, const dice_rows *h, double *out)
{
    if (gaussian->elsewhere != NULL) {
        return gaussian->backend->distance_forward(gaussian->elsewhere, h->data, h->is_double, h->n, out);
    }
    const size_t threads = (size_t)dice_threads_count(), share = dice_ceil_div(h->n, threads);
    distance_job job = {.g = gaussian, .h = h, .images = dice_least(share, IMAGES), .out = out};
    if (h->n == 0) {
        return DICE_OK;
    }
    job.each = job.images * (gaussian->features + gaussian->whiten.width + gaussian->means.width);
    void *memory;
    dice_status status = dice_alloc(threads * job.each, sizeof(double), &memory);
    if (status == DICE_OK) {
        job.memory = memory;
        status = dice_parallel_for(dice_ceil_div(h->n, job.images), distance_task, &job);
        dice_free(memory);
    }
    return status;
}
