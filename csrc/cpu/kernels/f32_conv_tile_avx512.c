/* Convolution tiles with AVX-512: up to 16 x 1, 14 x 2 and 9 x 3 (see f32_conv_tile.h). */
#include "cpu/kernels/f32_conv_tile.h"

CONV_TILE(1, 1)
CONV_TILE(2, 1)
CONV_TILE(3, 1)
CONV_TILE(4, 1)
CONV_TILE(5, 1)
CONV_TILE(6, 1)
CONV_TILE(7, 1)
CONV_TILE(8, 1)
CONV_TILE(9, 1)
CONV_TILE(10, 1)
CONV_TILE(11, 1)
CONV_TILE(12, 1)
CONV_TILE(13, 1)
CONV_TILE(14, 1)
CONV_TILE(15, 1)
CONV_TILE(16, 1)
CONV_TILE(1, 2)
CONV_TILE(2, 2)
CONV_TILE(3, 2)
CONV_TILE(4, 2)
CONV_TILE(5, 2)
CONV_TILE(6, 2)
CONV_TILE(7, 2)
CONV_TILE(8, 2)
CONV_TILE(9, 2)
CONV_TILE(10, 2)
CONV_TILE(11, 2)
CONV_TILE(12, 2)
CONV_TILE(13, 2)
CONV_TILE(14, 2)
CONV_TILE(1, 3)
CONV_TILE(2, 3)
CONV_TILE(3, 3)
CONV_TILE(4, 3)
CONV_TILE(5, 3)
CONV_TILE(6, 3)
CONV_TILE(7, 3)
CONV_TILE(8, 3)
CONV_TILE(9, 3)

const dice_conv_tiles dice_conv_tiles_avx512 = {
    .max_rows = {16, 14, 9},
    .tile =
        {
            {tile_1x1, tile_2x1, tile_3x1, tile_4x1, tile_5x1, tile_6x1, tile_7x1, tile_8x1, tile_9x1,
             tile_10x1, tile_11x1, tile_12x1, tile_13x1, tile_14x1, tile_15x1, tile_16x1},
            {tile_1x2, tile_2x2, tile_3x2, tile_4x2, tile_5x2, tile_6x2, tile_7x2, tile_8x2, tile_9x2,
             tile_10x2, tile_11x2, tile_12x2, tile_13x2, tile_14x2},
            {tile_1x3, tile_2x3, tile_3x3, tile_4x3, tile_5x3, tile_6x3, tile_7x3, tile_8x3, tile_9x3},
        },
};
