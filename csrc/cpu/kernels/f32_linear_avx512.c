/* The last layer's kernels, compiled for avx512 (see f32_linear.h). */
#include "cpu/kernels/f32_linear.h"

LINEAR(avx512);
