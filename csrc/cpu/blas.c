/* Calls of OpenBLAS. See blas.h. */
#include "cpu/blas.h"

#include <cblas.h>
#include <limits.h>
#include <pthread.h>

#if defined(DICE_BLAS_PREFIXED)  /* the scipy-openblas32 wheel prefixes its symbols */
#define BLAS(name) scipy_##name
#else
#define BLAS(name) name
#endif

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int users;          /* our calls under way */
static int saved_threads;  /* the library's setting before the first of them */

static void enter(void)
{
    pthread_mutex_lock(&lock);
    if (users++ == 0) {
        saved_threads = BLAS(openblas_get_num_threads)();
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

/* OpenBLAS wants a leading dimension of 1 or more, also of an empty matrix. */
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
                      b_transposed ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, 1.0,
                      a, leading(a_transposed ? m : k), b, leading(b_transposed ? k : n), beta, c, leading(n));
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

const char *dice_blas_config(void)
{
    return BLAS(openblas_get_config)();
}

int dice_blas_threads(void)
{
    return BLAS(openblas_get_num_threads)();
}
