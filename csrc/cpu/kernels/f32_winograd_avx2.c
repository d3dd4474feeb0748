/* Winograd's transforms, compiled for avx2 (see f32_winograd.h). */
#include "cpu/kernels/f32_winograd.h"

WINOGRAD(avx2);
