/* The last layer's kernels, compiled for avx512 (see f32_head.h). */
#include "cpu/kernels/f32_head.h"

HEAD(avx512);
