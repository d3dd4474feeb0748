/* Class means and scatter. See classes.h. */
#include "ood/fit/classes.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/sizes.h"
#include "base/threads.h"
#include "linalg/blas.h"

enum { COLUMNS = 128, SQUARE = 256 }; /* features in a task that updates the means, the scatter */

typedef struct square_job {
    const double *rows; /* (n, D) */
    size_t n, features;
    double *scatter;
} square_job;

static dice_status square_task(void *context, size_t index, int thread)
{
    (void)thread;
    const square_job *job = context;
    const size_t first = index * SQUARE;
    return dice_blas_syrk_rows(job->features, job->n, job->rows, first,
                               dice_least(SQUARE, job->features - first), job->scatter);
}

/* scatter (D, D) += rows' rows, upper triangle only. */
static dice_status add_squares(double *scatter, const double *rows, size_t n, size_t features)
{
    square_job job = {rows, n, features, scatter};
    return dice_parallel_for(dice_ceil_div(features, SQUARE), square_task, &job);
}

typedef struct add_job {
    dice_classes *classes;
    const double *x;
    const int64_t *label;
    size_t n;
    const double *step, *root; /* (n): 1 / k and sqrt((k - 1) / k) for the k-th image of a class */
    double *rows;              /* (n, D), or NULL */
} add_job;

static dice_status add_columns(void *context, size_t index, int thread)
{
    (void)thread;
    const add_job *job = context;
    const size_t features = job->classes->features, first = index * COLUMNS;
    const size_t width = dice_least(COLUMNS, features - first);
    for (size_t i = 0; i < job->n; i++) {
        double *row = job->rows == NULL ? NULL : job->rows + i * features + first;
        if (job->label[i] < 0) {
            if (row != NULL) {
                memset(row, 0, width * sizeof *row);
            }
            continue;
        }
        const double *x = job->x + i * features + first, step = job->step[i], root = job->root[i];
        double *mean = job->classes->mean + (size_t)job->label[i] * features + first;
        for (size_t d = 0; d < width; d++) {
            const double away = x[d] - mean[d];
            mean[d] += away * step;
            if (row != NULL) {
                row[d] = away * root;
            }
        }
    }
    return DICE_OK;
}

dice_status dice_classes_add(dice_classes *classes, const double *x, const int64_t *label, size_t n)
{
    const size_t features = classes->features;
    void *steps = NULL, *rows = NULL;
    dice_status status = dice_alloc(n, 2 * sizeof(double), &steps);
    if (status != DICE_OK
        || (classes->scatter != NULL
            && (status = dice_alloc(n * features, sizeof(double), &rows)) != DICE_OK)) {
        goto done;
    }
    double *step = steps, *root = step + n;
    for (size_t i = 0; i < n; i++) {
        if (label[i] >= 0) {
            const double k = classes->count[label[i]] += 1;
            step[i] = 1 / k;
            root[i] = sqrt((k - 1) / k);
        }
    }
    add_job job = {
        .classes = classes, .x = x, .label = label, .n = n, .step = step, .root = root, .rows = rows};
    status = dice_parallel_for(dice_ceil_div(features, COLUMNS), add_columns, &job);
    if (status == DICE_OK && rows != NULL) {
        status = add_squares(classes->scatter, rows, n, features);
    }
done:
    dice_free(steps);
    dice_free(rows);
    return status;
}

dice_status dice_classes_merge(dice_classes *classes, const dice_classes *other)
{
    const size_t features = classes->features, n = classes->classes;
    void *memory = NULL;
    dice_status status = DICE_OK;
    if (classes->scatter != NULL && (status = dice_alloc(n * features, sizeof(double), &memory)) != DICE_OK) {
        return status;
    }
    double *rows = memory;
    for (size_t c = 0; c < n; c++) {
        const double mine = classes->count[c], theirs = other->count[c], all = mine + theirs;
        const double share = theirs > 0 ? theirs / all : 0, root = sqrt(mine * share);
        for (size_t d = 0; d < features; d++) {
            double *mean = classes->mean + c * features + d;
            const double away = other->mean[c * features + d] - *mean;
            *mean += away * share;
            if (rows != NULL) {
                rows[c * features + d] = away * root;
            }
        }
        classes->count[c] = all;
    }
    if (rows != NULL) {
        for (size_t i = 0; i < features * features; i++) {
            classes->scatter[i] += other->scatter[i];
        }
        status = add_squares(classes->scatter, rows, n, features);
    }
    dice_free(memory);
    return status;
}

dice_status dice_classes_scatter(const dice_classes *classes, int total, double *to, double *mean)
{
    const size_t features = classes->features, n = classes->classes;
    double images = 0;
    memset(mean, 0, features * sizeof *mean);
    for (size_t c = 0; c < n; c++) {
        images += classes->count[c];
        for (size_t d = 0; d < features && images > 0; d++) {
            mean[d] += (classes->mean[c * features + d] - mean[d]) * (classes->count[c] / images);
        }
    }
    memcpy(to, classes->scatter, features * features * sizeof *to);
    dice_status status = DICE_OK;
    if (total) {
        void *memory;
        status = dice_alloc(n * features, sizeof(double), &memory);
        if (status != DICE_OK) {
            return status;
        }
        double *rows = memory;
        for (size_t c = 0; c < n; c++) {
            const double root = sqrt(classes->count[c]);
            for (size_t d = 0; d < features; d++) {
                rows[c * features + d] = root * (classes->mean[c * features + d] - mean[d]);
            }
        }
        status = add_squares(to, rows, n, features);
        dice_free(memory);
    }
    for (size_t i = 0; i < features; i++) {
        for (size_t j = 0; j < i; j++) {
            to[i * features + j] = to[j * features + i];
        }
    }
    return status;
}
