/* Scores in one pass over a bank. See bank.h. */
#include "ood/scores/bank.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "base/memory.h"
#include "base/sizes.h"
#include "base/threads.h"
#include "linalg/rows.h"
#include "linalg/order.h"

enum { ROWS = 1024, IMAGES = 16 }; /* rows in a block of the bank; images in a task */
static const double DOUBT = 2e-6;  /* a float product of unit vectors has a smaller error */

typedef struct candidate {
    float product;
    uint32_t row;
} candidate;

typedef struct pass {
    const dice_bank *bank;
    const dice_row_kernels *kernels;
    const float *h, *p, *row_p;
    size_t n, classes, k;
    size_t room, slack; /* how many candidates an image has room for; how many are kept beyond k */
    double least, power;
    float *unit;                        /* (N, D) h / norm */
    candidate *candidates;              /* (N, room) */
    size_t *count;                      /* (N) */
    float *bound;                       /* (N) smaller products cannot change the result */
    double *scratch;                    /* (threads, 2 D + room) */
    size_t first, rows;                 /* the block's first row and its size */
    const float *products, *p_products; /* (N, rows) */
    float *block;                       /* (rows, D) scaled rows */
    float *bias;                        /* (rows) added to the products */
    /* The bias of a row of zeros: KNN ranks a row by 1 - |q - row|^2 / 2, which is 0.5 for such a row. */
    float zero_bias;
    double *out;
} pass;

static double inverse_norm(const dice_row_kernels *kernels, const float *x, size_t n, double *scratch)
{
    for (size_t d = 0; d < n; d++) {
        scratch[d] = (double)x[d];
    }
    const double square = kernels->dot(scratch, scratch, n);
    return square > 0 ? 1 / sqrt(square) : 0;
}

typedef struct norms_job {
    const dice_row_kernels *kernels;
    const float *rows;
    size_t n, features;
    double *scratch, *scale;
} norms_job;

static dice_status norms_task(void *context, size_t index, int thread)
{
    const norms_job *job = context;
    for (size_t i = index * IMAGES; i < dice_least(job->n, (index + 1) * IMAGES); i++) {
        job->scale[i] = inverse_norm(job->kernels, job->rows + i * job->features, job->features,
                                     job->scratch + (size_t)thread * job->features);
    }
    return DICE_OK;
}

static dice_status choose_kernels(const dice_row_kernels **kernels, dice_options *options)
{
    const dice_status status = dice_isa_select(NULL, &options->isa);
    if (status == DICE_OK) {
        *kernels = dice_row_kernels_for(options->isa);
    }
    return status;
}

dice_status dice_bank_norms(const float *rows, size_t n, size_t features, double *scale)
{
    norms_job job = {.rows = rows, .n = n, .features = features, .scale = scale};
    dice_options options = {0};
    void *memory = NULL;
    dice_status status = choose_kernels(&job.kernels, &options);
    if (status == DICE_OK
        && (status = dice_alloc((size_t)dice_threads_count() * features, sizeof(double), &memory))
               == DICE_OK) {
        job.scratch = memory;
        status = dice_parallel_for(dice_ceil_div(n, IMAGES), norms_task, &job);
    }
    dice_free(memory);
    return status;
}

/* job->unit = h / norm(h). */
static dice_status unit_task(void *context, size_t index, int thread)
{
    const pass *job = context;
    const size_t features = job->bank->features;
    for (size_t i = index * IMAGES; i < dice_least(job->n, (index + 1) * IMAGES); i++) {
        const float *h = job->h + i * features;
        const double scale = inverse_norm(job->kernels, h, features,
                                          job->scratch + (size_t)thread * (2 * features + job->room));
        for (size_t d = 0; d < features; d++) {
            job->unit[i * features + d] = (float)((double)h[d] * scale);
        }
    }
    return DICE_OK;
}

static dice_status scale_task(void *context, size_t index, int thread)
{
    (void)thread;
    const pass *job = context;
    const size_t features = job->bank->features;
    for (size_t i = index * IMAGES; i < dice_least(job->rows, (index + 1) * IMAGES); i++) {
        const float *row = job->bank->rows + (job->first + i) * features;
        const double scale = job->bank->scale[job->first + i];
        for (size_t d = 0; d < features; d++) {
            job->block[i * features + d] = (float)((double)row[d] * scale);
        }
        job->bias[i] = scale == 0 ? job->zero_bias : 0;
    }
    return DICE_OK;
}

/* Moves the `count` largest of c (n) to its front, in no order (Hoare's FIND). */
static void largest_first(candidate *c, size_t n, size_t count)
{
    ptrdiff_t low = 0, high = (ptrdiff_t)n - 1;
    const ptrdiff_t last = (ptrdiff_t)count - 1;
    while (low < high) {
        const float pivot = c[last].product;
        ptrdiff_t i = low, j = high;
        while (i <= j) {
            while (c[i].product > pivot) {
                i++;
            }
            while (c[j].product < pivot) {
                j--;
            }
            if (i <= j) {
                const candidate swap = c[i];
                c[i++] = c[j];
                c[j--] = swap;
            }
        }
        low = j < last ? i : low;
        high = last < i ? j : high;
    }
}

/* Keeps the block's products that are among the largest of each image. */
static dice_status keep_task(void *context, size_t index, int thread)
{
    (void)thread;
    const pass *job = context;
    for (size_t i = index * IMAGES; i < dice_least(job->n, (index + 1) * IMAGES); i++) {
        const float *products = job->products + i * job->rows;
        candidate *candidates = job->candidates + i * job->room;
        size_t count = job->count[i];
        float bound = job->bound[i];
        for (size_t r = 0; r < job->rows; r++) {
            if (products[r] < bound) {
                continue;
            }
            candidates[count++] = (candidate){products[r], (uint32_t)(job->first + r)};
            if (count == job->room) {
                count = job->k + job->slack;
                largest_first(candidates, job->room, count);
                bound = candidates[count - 1].product;
            }
        }
        job->count[i] = count;
        job->bound[i] = bound;
    }
    return DICE_OK;
}

/* The squared distance between q, the unit vector of an image, and the unit vector of a row. */
static double distance(const pass *job, const double *q, uint32_t row, double *scratch)
{
    const size_t features = job->bank->features;
    const float *b = job->bank->rows + (size_t)row * features;
    const double scale = job->bank->scale[row];
    for (size_t d = 0; d < features; d++) {
        scratch[d] = q[d] - (double)b[d] * scale;
    }
    return job->kernels->dot(scratch, scratch, features);
}

/* q (D) = h / norm(h) of image i, in double. */
static void unit_of(const pass *job, size_t i, double *q)
{
    const size_t features = job->bank->features;
    const float *h = job->h + i * features;
    const double scale = inverse_norm(job->kernels, h, features, q);
    for (size_t d = 0; d < features; d++) {
        q[d] = (double)h[d] * scale;
    }
}

static dice_status knn_task(void *context, size_t index, int thread)
{
    const pass *job = context;
    const size_t features = job->bank->features;
    double *q = job->scratch + (size_t)thread * (2 * features + job->room), *scratch = q + features;
    double *nearness = scratch + features;
    for (size_t i = index * IMAGES; i < dice_least(job->n, (index + 1) * IMAGES); i++) {
        candidate *c = job->candidates + i * job->room;
        largest_first(c, job->count[i], job->k);
        const double kth = (double)c[job->k - 1].product;
        unit_of(job, i, q);
        size_t nearer = 0, doubtful = 0; /* rows surely nearer than the k-th, and rows that may be the k-th */
        for (size_t j = 0; j < job->count[i]; j++) {
            const double product = (double)c[j].product;
            if (product > kth + DOUBT) {
                nearer++;
            } else if (product >= kth - DOUBT) {
                nearness[doubtful++] = -distance(job, q, c[j].row, scratch);
            }
        }
        if (nearer >= job->k || nearer + doubtful < job->k) { /* products without an order */
            return dice_fail(DICE_E_INPUT, "bank: a row or a scale is NaN or infinite");
        }
        dice_order_largest(nearness, doubtful, job->k - nearer);
        job->out[i] = -nearness[job->k - nearer - 1];
    }
    return DICE_OK;
}

static int falling(const void *a, const void *b)
{
    const float x = ((const candidate *)a)->product, y = ((const candidate *)b)->product;
    return (x < y) - (x > y);
}

/* Adds the k largest from the largest down, so that the sum does not depend on their order in memory. */
static dice_status guide_task(void *context, size_t index, int thread)
{
    (void)thread;
    const pass *job = context;
    for (size_t i = index * IMAGES; i < dice_least(job->n, (index + 1) * IMAGES); i++) {
        candidate *c = job->candidates + i * job->room;
        largest_first(c, job->count[i], job->k);
        qsort(c, job->k, sizeof *c, falling);
        double sum = 0;
        for (size_t j = 0; j < job->k; j++) {
            sum += (double)c[j].product;
        }
        job->out[i] = sum / (double)job->k;
    }
    return DICE_OK;
}

static dice_status relation_task(void *context, size_t index, int thread)
{
    const pass *job = context;
    const size_t features = job->bank->features, classes = job->classes;
    double *q = job->scratch + (size_t)thread * (2 * features + job->room), *scratch = q + features;
    for (size_t i = index * IMAGES; i < dice_least(job->n, (index + 1) * IMAGES); i++) {
        const float *products = job->products + i * job->rows, *p_products = job->p_products + i * job->rows;
        double sum = job->out[i];
        int have_unit = 0;
        for (size_t r = 0; r < job->rows; r++) {
            double v = products[r] > 0 ? (double)products[r] * (double)p_products[r] : 0;
            if (fabs(v - job->least) < DOUBT) { /* too close to tell in float */
                const size_t row = job->first + r;
                if (!have_unit) {
                    unit_of(job, i, q);
                    have_unit = 1;
                }
                double overlap = 0;
                for (size_t c = 0; c < classes; c++) {
                    overlap += (double)job->p[i * classes + c] * (double)job->row_p[row * classes + c];
                }
                v = (1 - distance(job, q, (uint32_t)row, scratch) / 2) * overlap;
            }
            if (v > job->least) {
                sum += job->power == 1 ? v : pow(v, job->power);
            }
        }
        job->out[i] = sum;
    }
    return DICE_OK;
}

/* to (N, rows) = x (N, width) times the rows of a block (rows, width)'. */
static dice_status multiply(const dice_backend *backend, const dice_options *options, const float *rows,
                            size_t n_rows, size_t width, const float *bias, const float *x, size_t n,
                            float *to)
{
    dice_linear *linear;
    dice_status status = backend->linear_create(rows, bias, NULL, n_rows, width, options, &linear);
    if (status == DICE_OK) {
        const dice_linear_outputs outputs = {.logits = to};
        status = backend->linear_forward(linear, x, n, INFINITY, &outputs);
        backend->linear_free(linear);
    }
    return status;
}

/* The whole pass: runs `take` after every block and `finish`, unless it is NULL, at the end, each as tasks of
 * IMAGES images. */
static dice_status run(pass *job, dice_task take, dice_task finish)
{
    const size_t features = job->bank->features, n = job->n, tasks = dice_ceil_div(n, IMAGES);
    const size_t products = n * ROWS * (job->row_p != NULL ? 2 : 1);
    dice_options options = {.plain_products = 1};
    const dice_backend *backend;
    void *floats = NULL, *doubles = NULL, *candidates = NULL, *counts = NULL;
    dice_status status = choose_kernels(&job->kernels, &options);
    if (status != DICE_OK || (status = dice_backend_find(job->bank->device, &options, &backend)) != DICE_OK
        || (status = dice_alloc(n * (features + 1) + products + ROWS * (features + 2), sizeof(float),
                                &floats))
               != DICE_OK
        || (status = dice_alloc((size_t)dice_threads_count() * (2 * features + job->room), sizeof(double),
                                &doubles))
               != DICE_OK
        || (status = dice_alloc(n * job->room, sizeof(candidate), &candidates)) != DICE_OK
        || (status = dice_alloc_zero(n, sizeof *job->count, &counts)) != DICE_OK) {
        goto done;
    }
    float *product = (float *)floats + n * features, *zeros = product + products;
    job->unit = floats;
    job->bias = zeros + ROWS;
    job->block = job->bias + ROWS;
    job->bound = job->block + ROWS * features;
    job->products = product;
    job->p_products = product + n * ROWS;
    job->scratch = doubles;
    job->candidates = candidates;
    job->count = counts;
    memset(zeros, 0, ROWS * sizeof *zeros);
    for (size_t i = 0; i < n; i++) {
        job->bound[i] = -INFINITY;
    }
    backend = dice_backend_for_linear(backend, &options);
    status = dice_parallel_for(tasks, unit_task, job);
    for (job->first = 0; job->first < job->bank->n && status == DICE_OK; job->first += ROWS) {
        job->rows = dice_least(ROWS, job->bank->n - job->first);
        status = dice_parallel_for(dice_ceil_div(job->rows, IMAGES), scale_task, job);
        if (status == DICE_OK) {
            status = multiply(backend, &options, job->block, job->rows, features, job->bias, job->unit, n,
                              product);
        }
        if (status == DICE_OK && job->row_p != NULL) {
            status = multiply(backend, &options, job->row_p + job->first * job->classes, job->rows,
                              job->classes, zeros, job->p, n, product + n * ROWS);
        }
        if (status == DICE_OK) {
            status = dice_parallel_for(tasks, take, job);
        }
    }
    if (status == DICE_OK && finish != NULL) {
        status = dice_parallel_for(tasks, finish, job);
    }
done:
    dice_free(floats);
    dice_free(doubles);
    dice_free(candidates);
    dice_free(counts);
    return status;
}

dice_status dice_bank_knn(const dice_bank *bank, const float *h, size_t n, size_t k, double *out)
{
    const size_t slack = k / 4 + 128;
    pass job = {.bank = bank,
                .h = h,
                .n = n,
                .k = k,
                .slack = slack,
                .room = 2 * (k + slack),
                .zero_bias = 0.5F,
                .out = out};
    return run(&job, keep_task, knn_task);
}

dice_status dice_bank_guide(const dice_bank *bank, const float *h, size_t n, size_t k, double *out)
{
    pass job = {.bank = bank, .h = h, .n = n, .k = k, .room = 2 * k + 128, .out = out};
    return run(&job, keep_task, guide_task);
}

dice_status dice_bank_relation(const dice_bank *bank, const float *row_p, size_t classes, const float *h,
                               const float *p, size_t n, double least, double power, double *out)
{
    pass job = {.bank = bank,
                .h = h,
                .p = p,
                .row_p = row_p,
                .classes = classes,
                .n = n,
                .least = least,
                .power = power,
                .out = out};
    memset(out, 0, n * sizeof *out);
    return run(&job, relation_task, NULL);
}
