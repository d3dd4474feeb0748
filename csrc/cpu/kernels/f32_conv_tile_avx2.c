/* Convolution tiles with AVX2: up to 6 x 1, twelve of the sixteen registers (see f32_conv_tile.h). */
#include "cpu/kernels/f32_conv_tile.h"

CONV_TILE(1, 1)
CONV_TILE(2, 1)
CONV_TILE(3, 1)
CONV_TILE(4, 1)
CONV_TILE(5, 1)
CONV_TILE(6, 1)

const dice_conv_tiles dice_conv_tiles_avx2 = {
    .max_rows = {6, 0, 0},
    .tile = {{tile_1x1, tile_2x1, tile_3x1, tile_4x1, tile_5x1, tile_6x1}},
};
