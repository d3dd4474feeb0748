/* Softmax of a row by the row kernels, and the choice of the kernels at run time. See rows.h. */
#include "linalg/rows.h"

double dice_rows_exp(const dice_row_kernels *kernels, const double *x, size_t n, double scale, double *e,
                     double *max)
{
    *max = kernels->max(x, n);
    return kernels->exp(x, n, *max, scale, e);
}

const dice_row_kernels *dice_row_kernels_for(dice_isa isa)
{
#if defined(DICE_HAVE_AVX512)
    if (isa >= DICE_ISA_AVX512) {
        return &dice_row_kernels_avx512;
    }
#endif
#if defined(DICE_HAVE_AVX2)
    if (isa >= DICE_ISA_AVX2) {
        return &dice_row_kernels_avx2;
    }
#endif
    (void)isa;
    return &dice_row_kernels_scalar;
}
