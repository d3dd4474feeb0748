/* The kernels of linear, compiled for avx2 (see f32_linear.h). */
#include "cpu/kernels/f32_linear.h"

LINEAR(avx2);
