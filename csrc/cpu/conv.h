/* Convolution on the CPU: weights packed once, then any rows of any image.
 *
 * One tile multiply serves every shape: its inputs are pointers to runs of pixels,
 * one a tap and channel block. Where the tensor can be read in place (stride 1, no
 * prologue, a zero border if there is padding) the pointers go there; else a strip of
 * pixels is packed into scratch first, through the prologue. */
#ifndef DICE_CPU_CONV_H
#define DICE_CPU_CONV_H

#include "base/status.h"
#include "cpu/kernels.h"
#include "nn/graph.h"

typedef struct dice_conv {
    const dice_cpu_kernels *kernels;
    int32_t in, out; /* channels */
    int32_t kernel, stride, pad;
    int relu;
    int narrow; /* x has fewer channels than a block and lies pixel by pixel: taps are one sum */
    int32_t taps, blocks, tail;
    int parts;    /* bfloat16 parts of each factor: 1 or 2; 3 = float32 */
    int amx;      /* on the tile unit: weight is in bfloat16, see bf16_conv.c */
    int winograd; /* F(2 x 2, 3 x 3): weight is (panels, 16 elements, channels, vectors, 16) */
    int vectors;  /* outputs of a panel: 16 x vectors, fewer in the last */
    int32_t panels;
    void *weight;         /* float (panels, taps x channels, vectors, 16), zero past the last output */
    float *bias;          /* (panels, vectors, 16) */
    float *scale, *shift; /* prologue, whole blocks, or NULL */
    size_t weight_bytes;
} dice_conv;

/* Packs the weights of op, which maps `in` to `out` channels. `winograd` allows F(2 x 2, 3 x 3) where it
 * fits; `parts` is 1 (bf16), 2 (bf16x3) or 3 (float32). */
dice_status dice_conv_init(dice_conv *conv, const dice_op *op, int32_t in, int32_t out, int narrow,
                           int winograd, int parts, const dice_cpu_kernels *kernels);
void dice_conv_free(dice_conv *conv); /* a zeroed conv is allowed */

/* Whether x is read in place provided it has a border of `pad`. */
int dice_conv_reads_in_place(const dice_conv *conv, int32_t x_offset);

/* Vectors of a panel. */
int dice_conv_panel_vectors(const dice_conv *conv, int32_t panel);

/* Bytes of scratch that dice_conv_run needs for outputs of height x width of that many images. */
size_t dice_conv_scratch(const dice_conv *conv, int32_t height, int32_t width, size_t images);

/* Rows [y0, y1) and panels [p0, p1) of y for `images` images whose tensors lie `stride` floats apart; rows
 * are cut at even ones with Winograd. residual may be NULL. */
void dice_conv_run(const dice_conv *conv, const dice_view *x, const dice_view *y, const dice_view *residual,
                   size_t images, size_t stride, int32_t y0, int32_t y1, int32_t p0, int32_t p1,
                   void *scratch);

/* Shared with bf16_conv.c and winograd.c. */

/* Whether channels [first, first + 16 vectors) are whole blocks of the tensor, all of them the slice's. */
int dice_conv_fills_blocks(const dice_view *y, int32_t first, int vectors);

/* Pixel (oy, ox) of the block that holds channel `first` of the slice. */
float *dice_conv_block_at(const dice_view *y, int32_t first, int32_t oy, int32_t ox);

/* Outputs [start, start + count) in raster order of an image `width` wide: packed (taps, blocks, strip, 16).
 */
void dice_conv_pack_strip(const dice_conv *conv, const dice_view *x, int32_t width, size_t start,
                          size_t count, size_t strip, float *packed);

/* Stores a tile c (vectors, DICE_TILE_ROWS, 16) of outputs from `first` on at the pixels from (*oy, *ox) on,
 * and moves there. */
void dice_conv_store_tile(const dice_conv *conv, const float *c, int rows, int vectors, int32_t first,
                          const dice_view *y, const dice_view *residual, int32_t *oy, int32_t *ox);

#endif
