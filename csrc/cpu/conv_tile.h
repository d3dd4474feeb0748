/* Convolution by the register tiles of an instruction set: packs weights in panels, multiplies spans of
 * pixels tile by tile, and stores the tiles. */
#ifndef DICE_CPU_CONV_TILE_H
#define DICE_CPU_CONV_TILE_H

#include "cpu/conv_algorithm.h"

enum { DICE_CONV_TILE_FLOATS = 3 * DICE_TILE_PLANE }; /* the largest tile */

/* How many vectors a panel should have for the tiles to be fastest. */
int dice_conv_tile_vectors(const dice_conv *conv);

/* How many vectors a panel has: conv->vectors, or fewer in the last one. */
int dice_conv_panel_vectors(const dice_conv *conv, int32_t panel);

/* The packed weights of a panel. */
const void *dice_conv_panel_weight(const dice_conv *conv, int32_t panel);

/* to (products) = the factors by which the inputs are multiplied, made from one kernel (kernel, kernel): its
 * weights or, for Winograd, their transform. */
typedef void (*dice_conv_factors)(const dice_conv *conv, const float *kernel, float *to);

/* Packs weight (out, in, kernel, kernel) as float (panels, products, in, vectors, 16), with zeros past the
 * last output; a panel of fewer vectors leaves the end of its room unused. */
dice_status dice_conv_pack_products(dice_conv *conv, const float *weight, size_t products,
                                    dice_conv_factors factors);

/* The same with one product for each tap, whose factor is the sum of the first conv->parts bfloat16 parts of
 * the weight. */
dice_status dice_conv_pack_taps(dice_conv *conv, const float *weight);

/* Bytes of scratch for an array of `count` pointers. */
size_t dice_conv_pointer_bytes(size_t count);

/* An output pixel of an image. */
typedef struct dice_conv_pixel {
    int32_t y, x;
} dice_conv_pixel;

/* A span of `count` output pixels in raster order, from `first` on. The inputs of the first pixel lie `shift`
 * floats after the pointers of a dice_conv_sum; those of the others follow. */
typedef struct dice_conv_span {
    dice_conv_pixel first;
    size_t count;
    ptrdiff_t shift;
} dice_conv_span;

/* Computes one panel of a span of y and stores it. c (DICE_CONV_TILE_FLOATS) is working memory. */
void dice_conv_multiply(const dice_conv *conv, const dice_conv_sum *sum, dice_conv_span span, int32_t panel,
                        const dice_conv_tensors *tensors, float *c);

/* Stores a tile c (vectors, DICE_TILE_ROWS, 16) of a panel at `rows` pixels from *at on, and moves *at past
 * them. */
void dice_conv_store_tile(const dice_conv *conv, const float *c, int rows, int32_t panel,
                          const dice_conv_tensors *tensors, dice_conv_pixel *at);

/* Whether the outputs of a panel are whole blocks of y's tensor, and of the residual's. */
int dice_conv_fills_blocks(const dice_conv *conv, int32_t panel, const dice_conv_tensors *tensors);

/* Pixel `at` of the block that holds channel `channel` of the slice. */
static inline float *dice_conv_block_at(const dice_view *view, int32_t channel, dice_conv_pixel at)
{
    return view->data + (view->offset + channel) / DICE_BLOCK * view->plane + at.y * view->pitch
         + at.x * DICE_BLOCK;
}

#endif
