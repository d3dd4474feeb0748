/* The last layer's kernels, compiled for avx2 (see f32_head.h). */
#include "cpu/kernels/f32_head.h"

HEAD(avx2);
