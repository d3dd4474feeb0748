/* The kernels of linear, compiled for avx512 (see f32_linear.h). */
#include "cpu/kernels/f32_linear.h"

LINEAR(avx512);
