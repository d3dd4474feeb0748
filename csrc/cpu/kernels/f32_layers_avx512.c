/* The layers around the tile multiply, compiled for AVX-512 (see f32_layers.h); AMX uses them too. */
#include "cpu/kernels/f32_layers.h"

LAYERS(avx512, avx512, NULL);
#if defined(DICE_HAVE_AMX)
LAYERS(amx, avx512, &dice_amx_kernels_amx);
#endif
