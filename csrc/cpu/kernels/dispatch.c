/* The kernels of this build, chosen at run time. */
#include <stddef.h>

#include "cpu/kernels.h"

const dice_cpu_kernels *dice_cpu_kernels_for(dice_isa isa)
{
#if defined(DICE_HAVE_AMX)
    if (isa >= DICE_ISA_AMX) {
        return &dice_cpu_kernels_amx;
    }
#endif
#if defined(DICE_HAVE_AVX512)
    if (isa >= DICE_ISA_AVX512) {
        return &dice_cpu_kernels_avx512;
    }
#endif
#if defined(DICE_HAVE_AVX2)
    if (isa >= DICE_ISA_AVX2) {
        return &dice_cpu_kernels_avx2;
    }
#endif
    (void)isa;
    return NULL;
}
