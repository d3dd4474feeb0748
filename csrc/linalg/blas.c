/* Calls of OpenBLAS. See blas.h. */
#include "linalg/blas.h"

#include <cblas.h>
#include <float.h>
#include <limits.h>
#include <pthread.h>
#include <string.h>

#include "base/memory.h"
#include "base/sizes.h"

#if defined(DICE_BLAS_PREFIXED) /* the scipy-openblas32 wheel prefixes its symbols */
#define BLAS(name) scipy_##name
#else
#define BLAS(name) name
#endif

/* LAPACK by its Fortran names, with the hidden lengths of strings at the end. */
extern void BLAS(dpotrf_)(const char *uplo, const int *n, double *a, const int *lda, int *info, size_t);
extern void BLAS(dpocon_)(const char *uplo, const int *n, const double *a, const int *lda, const double *norm,
                          double *rcond, double *work, int *iwork, int *info, size_t);
extern void BLAS(dtrtri_)(const char *uplo, const char *diag, const int *n, double *a, const int *lda,
                          int *info, size_t, size_t);
extern void BLAS(dsyevd_)(const char *jobz, const char *uplo, const int *n, double *a, const int *lda,
                          double *w, double *work, const int *lwork, int *iwork, const int *liwork, int *info,
                          size_t, size_t);
extern void BLAS(dgelsd_)(const int *m, const int *n, const int *nrhs, double *a, const int *lda, double *b,
                          const int *ldb, double *s, const double *rcond, int *rank, double *work,
                          const int *lwork, int *iwork, int *info);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int users;         /* our calls that are under way */
static int saved_threads; /* the library's number of threads before the first of them */
/* In the child of a fork: whether calls were under way in the parent, so that the library still has the
 * number that they set, one, and saved_threads is the number to restore. */
static int left_alone;

/* The library's number of threads does not change while the process is forked: in a child whose parent was
 * changing it, the library's own lock would be held for ever. */
static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
    left_alone = left_alone || users > 0;
    users = 0;
    pthread_mutex_unlock(&lock);
}

static void handle_forks(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

static void enter(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, handle_forks);
    pthread_mutex_lock(&lock);
    if (users++ == 0) {
        if (!left_alone) {
            saved_threads = BLAS(openblas_get_num_threads)();
        }
        left_alone = 0;
        BLAS(openblas_set_num_threads)(1);
    }
    pthread_mutex_unlock(&lock);
}

static void leave(void)
{
    pthread_mutex_lock(&lock);
    if (--users == 0) {
        BLAS(openblas_set_num_threads)(saved_threads);
    }
    pthread_mutex_unlock(&lock);
}

static dice_status check_side(size_t side)
{
    return side <= INT_MAX ? DICE_OK : dice_fail(DICE_E_INPUT, "a matrix side of %zu is too long", side);
}

/* OpenBLAS wants a leading dimension of at least 1, even of an empty matrix. */
static int leading(size_t side)
{
    return side == 0 ? 1 : (int)side;
}

dice_status dice_blas_gemm(size_t m, size_t n, size_t k, const double *a, int a_transposed, const double *b,
                           int b_transposed, double beta, double *c)
{
    dice_status status;
    if ((status = check_side(m)) != DICE_OK || (status = check_side(n)) != DICE_OK
        || (status = check_side(k)) != DICE_OK) {
        return status;
    }
    enter();
    BLAS(cblas_dgemm)(CblasRowMajor, a_transposed ? CblasTrans : CblasNoTrans,
                      b_transposed ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, 1.0, a,
                      leading(a_transposed ? m : k), b, leading(b_transposed ? k : n), beta, c, leading(n));
    leave();
    return DICE_OK;
}

dice_status dice_blas_syrk(size_t n, size_t k, const double *x, double beta, double *c)
{
    dice_status status;
    if ((status = check_side(n)) != DICE_OK || (status = check_side(k)) != DICE_OK) {
        return status;
    }
    enter();
    BLAS(cblas_dsyrk)(CblasRowMajor, CblasUpper, CblasTrans, (int)n, (int)k, 1.0, x, leading(n), beta, c,
                      leading(n));
    leave();
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < i; j++) {
            c[i * n + j] = c[j * n + i];
        }
    }
    return DICE_OK;
}

dice_status dice_blas_syrk_rows(size_t n, size_t k, const double *x, size_t first, size_t count, double *c)
{
    dice_status status;
    if ((status = check_side(n)) != DICE_OK || (status = check_side(k)) != DICE_OK) {
        return status;
    }
    enter();
    BLAS(cblas_dgemm)(CblasRowMajor, CblasTrans, CblasNoTrans, (int)count, (int)(n - first), (int)k, 1.0,
                      x + first, leading(n), x + first, leading(n), 1.0, c + first * n + first, leading(n));
    leave();
    return DICE_OK;
}

/* LAPACK stores by columns: our lower triangle is its upper one, and it factors U' U = L L' with U = L'. */
dice_status dice_blas_whiten(size_t n, double *a, int *definite)
{
    *definite = 0;
    void *memory = NULL;
    dice_status status = check_side(n);
    if (status != DICE_OK || (status = dice_alloc(n, 4 * sizeof(double), &memory)) != DICE_OK) {
        return status;
    }
    double *work = memory, norm = 0, rcond = 0;
    memset(work, 0, n * sizeof *work);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j <= i; j++) {
            const double size = a[i * n + j] < 0 ? -a[i * n + j] : a[i * n + j];
            work[i] += size;
            work[j] += j < i ? size : 0;
        }
    }
    for (size_t i = 0; i < n; i++) {
        norm = work[i] > norm ? work[i] : norm;
    }
    const int side = (int)n;
    int info;
    enter();
    BLAS(dpotrf_)("U", &side, a, &side, &info, 1);
    if (info == 0) {
        BLAS(dpocon_)("U", &side, a, &side, &norm, &rcond, work, (int *)(void *)(work + 3 * n), &info, 1);
    }
    if (info == 0 && rcond >= (double)n * DBL_EPSILON) {
        BLAS(dtrtri_)("U", "N", &side, a, &side, &info, 1, 1);
        *definite = info == 0;
    }
    leave();
    dice_free(memory);
    return DICE_OK;
}

dice_status dice_blas_eigen(size_t n, double *a, double *values)
{
    dice_status status = check_side(n);
    if (status != DICE_OK || n == 0) {
        return status;
    }
    const int side = (int)n, ask = -1;
    int info, integers;
    double numbers;
    BLAS(dsyevd_)("V", "U", &side, a, &side, values, &numbers, &ask, &integers, &ask, &info, 1, 1);
    const int n_work = (int)numbers;
    void *work = NULL, *iwork = NULL;
    status = dice_alloc((size_t)n_work, sizeof(double), &work);
    if (status == DICE_OK) {
        status = dice_alloc((size_t)integers, sizeof(int), &iwork);
    }
    if (status == DICE_OK) {
        enter();
        BLAS(dsyevd_)("V", "U", &side, a, &side, values, work, &n_work, iwork, &integers, &info, 1, 1);
        leave();
        if (info != 0) {
            status = info > 0
                       ? dice_fail(DICE_E_INPUT, "eigenvectors: the matrix has none that can be found; "
                                                 "its numbers are too large or too small")
                       : dice_fail(DICE_E_INTERNAL, "eigenvectors: LAPACK's dsyevd ended with %d", info);
        }
    }
    dice_free(work);
    dice_free(iwork);
    return status;
}

dice_status dice_blas_least_norm(size_t m, size_t n, const double *a, const double *b, double cut, double *x,
                                 size_t *rank)
{
    dice_status status;
    if ((status = check_side(m)) != DICE_OK || (status = check_side(n)) != DICE_OK) {
        return status;
    }
    if (m == 0 || n == 0) {
        memset(x, 0, n * sizeof *x);
        *rank = 0;
        return DICE_OK;
    }
    const int rows = (int)m, columns = (int)n, one = 1, ask = -1;
    const int longer = (int)dice_most(m, n), shorter = (int)dice_least(m, n);
    int found, info, integers;
    double numbers;
    BLAS(dgelsd_)(&rows, &columns, &one, NULL, &rows, NULL, &longer, NULL, &cut, &found, &numbers, &ask,
                  &integers, &info);
    const int n_work = (int)numbers;
    void *memory = NULL, *iwork = NULL;
    status = dice_alloc(m * n + (size_t)longer + (size_t)shorter + (size_t)n_work, sizeof(double), &memory);
    if (status == DICE_OK) {
        status = dice_alloc((size_t)integers, sizeof(int), &iwork);
    }
    if (status == DICE_OK) {
        double *by_columns = memory, *side = by_columns + m * n, *values = side + longer,
               *work = values + shorter;
        for (size_t i = 0; i < m; i++) {
            for (size_t j = 0; j < n; j++) {
                by_columns[j * m + i] = a[i * n + j];
            }
        }
        memcpy(side, b, m * sizeof *b);
        enter();
        BLAS(dgelsd_)(&rows, &columns, &one, by_columns, &rows, side, &longer, values, &cut, &found, work,
                      &n_work, iwork, &info);
        leave();
        memcpy(x, side, n * sizeof *x);
        *rank = (size_t)found;
        if (info != 0) {
            status = dice_fail(DICE_E_INTERNAL, "least squares: LAPACK's dgelsd ended with %d", info);
        }
    }
    dice_free(memory);
    dice_free(iwork);
    return status;
}

const char *dice_blas_config(void)
{
    return BLAS(openblas_get_config)();
}

int dice_blas_threads(void)
{
    return BLAS(openblas_get_num_threads)();
}
