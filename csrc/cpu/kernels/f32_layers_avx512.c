/* The layers around the tile multiply, compiled for avx512 (see f32_layers.h). */
#include "cpu/kernels/f32_layers.h"

LAYERS(avx512);
