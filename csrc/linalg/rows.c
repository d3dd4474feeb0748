/* The row kernels of this build, chosen at run time. See rows.h. */
#include "linalg/rows.h"

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
