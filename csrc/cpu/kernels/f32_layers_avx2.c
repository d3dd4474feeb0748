/* The layers around the tile multiply, compiled for AVX2 (see f32_layers.h). */
#include "cpu/kernels/f32_layers.h"

LAYERS(avx2, avx2, NULL);
