/* OpenBLAS: the only place that knows it. It serves fitting (float64); images go
 * through kernels of ours, whose bits do not depend on the shape of a batch.
 *
 * Every call runs on the calling thread alone. The library's number of threads,
 * which numpy may share, is put back when the last of our calls has returned. */
#ifndef DICE_LINALG_BLAS_H
#define DICE_LINALG_BLAS_H

#include <stddef.h>

#include "base/status.h"

/* c (m, n) = a (m, k) b (k, n) + beta c, row-major. `a_transposed`: a is stored as (k, m), and so for b.
 * DICE_E_INPUT where a side is 2^31 or more. */
dice_status dice_blas_gemm(size_t m, size_t n, size_t k, const double *a, int a_transposed, const double *b,
                           int b_transposed, double beta, double *c);

/* c (n, n) = x' x + beta c with x (k, n), row-major; both triangles. c must be symmetric where beta is not 0.
 */
dice_status dice_blas_syrk(size_t n, size_t k, const double *x, double beta, double *c);

/* Rows [first, first + count) of the upper triangle of the same, beta 1: a part for a task. */
dice_status dice_blas_syrk_rows(size_t n, size_t k, const double *x, size_t first, size_t count, double *c);

/* a (n, n), symmetric, both triangles or the lower: *definite = whether it is positive definite and its
 * reciprocal condition at least n eps; then the lower triangle of a is the inverse of its Cholesky factor L,
 * a = L L', the rest is garbage. Where it is not, all of a is. */
dice_status dice_blas_whiten(size_t n, double *a, int *definite);

/* a (n, n), symmetric: its rows become the eigenvectors, values (n) the eigenvalues, rising. */
dice_status dice_blas_eigen(size_t n, double *a, double *values);

/* x (n) = the least-norm least-squares solution of a x = b, a (m, n), b (m): pinv(a) b, singular values below
 * max(m, n) eps of the largest left out. */
dice_status dice_blas_least_norm(size_t m, size_t n, const double *a, const double *b, double *x);

/* Version, options and processor as OpenBLAS reports them. */
const char *dice_blas_config(void);

/* The library's number of threads, for the tests. */
int dice_blas_threads(void);

#endif
