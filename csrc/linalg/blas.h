/* The only file that calls OpenBLAS. OpenBLAS serves fitting, in float64; images go through our own kernels,
 * whose bits do not depend on the size of a batch.
 *
 * Every call runs on the calling thread alone. numpy may share the library; its number of threads is restored
 * when the last of our calls has returned. */
#ifndef DICE_LINALG_BLAS_H
#define DICE_LINALG_BLAS_H

#include <stddef.h>

#include "base/status.h"

/* c (m, n) = a (m, k) b (k, n) + beta c, row-major. Where `a_transposed`, a is stored as (k, m); where
 * `b_transposed`, b as (n, k). DICE_E_INPUT where a side is 2^31 or more. */
dice_status dice_blas_gemm(size_t m, size_t n, size_t k, const double *a, int a_transposed, const double *b,
                           int b_transposed, double beta, double *c);

/* c (n, n) = x' x + beta c with x (k, n), row-major, both triangles. c must be symmetric unless beta is 0. */
dice_status dice_blas_syrk(size_t n, size_t k, const double *x, double beta, double *c);

/* The same with beta 1, but only rows [first, first + count) of the upper triangle: the work of one task. */
dice_status dice_blas_syrk_rows(size_t n, size_t k, const double *x, size_t first, size_t count, double *c);

/* *definite = whether a (n, n) is positive definite with a reciprocal condition of at least n eps; a is
 * symmetric, and only its lower triangle is read. If so, the lower triangle of a becomes the inverse of its
 * Cholesky factor L, a = L L'. Everything else in a is garbage afterwards. */
dice_status dice_blas_whiten(size_t n, double *a, int *definite);

/* The rows of a (n, n), symmetric, become its eigenvectors, and values (n) the eigenvalues, ascending. */
dice_status dice_blas_eigen(size_t n, double *a, double *values);

/* x (n) = pinv(a) b, the least-squares solution of least norm of a x = b with a (m, n), b (m). Singular
 * values of at most cut times the largest count as 0; *rank = how many are left. */
dice_status dice_blas_least_norm(size_t m, size_t n, const double *a, const double *b, double cut, double *x,
                                 size_t *rank);

/* OpenBLAS's own words on its version, options and processor. */
const char *dice_blas_config(void);

/* The library's number of threads, for the tests. */
int dice_blas_threads(void);

#endif
