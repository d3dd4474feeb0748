/* What a convolution on the CPU is, and what an algorithm for one offers.
 *
 * conv_amx.c, conv_winograd.c, conv_direct.c and conv_packed.c fill one dice_conv_algorithm each; conv.c
 * chooses between them. The output channels of a convolution are cut into panels of 16, 32 or 48; the weights
 * of a panel lie together. */
#ifndef DICE_CPU_CONV_ALGORITHM_H
#define DICE_CPU_CONV_ALGORITHM_H

#include "base/status.h"
#include "cpu/kernels.h"

typedef struct dice_conv_algorithm dice_conv_algorithm;

typedef struct dice_conv {
    const dice_cpu_kernels *kernels;
    const dice_conv_algorithm *algorithm;
    int32_t in, out; /* channels */
    int32_t kernel, stride, pad;
    int relu;
    int narrow;           /* x has fewer channels than a block and is stored pixel by pixel, without blocks */
    int aligned;          /* x begins with the first channel of a block */
    int may_use_winograd; /* F(2 x 2, 3 x 3) is accurate enough for the network */
    int parts;            /* bfloat16 parts of each factor: 1 (bf16), 2 (bf16x3) or 3 (float32) */
    /* The sum of one output goes over `taps` taps, `blocks` channel blocks in each tap, and `tail` channels
     * in the last block of a tap. A narrow x counts as one tap of kernel x kernel x in channels. */
    int32_t taps, blocks, tail;
    int vectors;          /* of 16 outputs in a panel; the last panel may have fewer */
    int32_t panels;       /* how many hold all outputs */
    void *weight;         /* packed by the algorithm */
    size_t weight_bytes;  /* of all panels, each of the same size */
    float *bias;          /* (panels, vectors, 16) */
    float *scale, *shift; /* prologue: whole blocks, or NULL */
} dice_conv;

/* The tensors of a convolution, for one image. */
typedef struct dice_conv_tensors {
    dice_view x, y, residual; /* residual.data is NULL where nothing is added */
} dice_conv_tensors;

/* The images of a bundle, which are computed together. The tensors of each lie `stride` floats after those of
 * the image before it. */
typedef struct dice_bundle {
    size_t images, stride;
} dice_bundle;

/* A piece of a convolution: rows [y0, y1) and panels [p0, p1) of y. */
typedef struct dice_conv_piece {
    int32_t y0, y1, p0, p1;
} dice_conv_piece;

struct dice_conv_algorithm {
    const char *name;
    int vectors;      /* in a panel; 0: as many as make the register tiles fastest */
    int32_t row_unit; /* pieces are cut at rows that are multiples of this */
    int in_place;     /* x is read where it lies, with a border of `pad` zero pixels around the image */

    /* Whether the algorithm can compute this convolution. It is called when the members up to `tail` are
     * set, except `algorithm`, and so are `scale` and `shift`. */
    int (*fits)(const dice_conv *conv);

    /* Fills conv->weight and weight_bytes from weight (out, in, kernel, kernel). */
    dice_status (*pack)(dice_conv *conv, const float *weight);

    /* Bytes of scratch that `run` needs for a bundle of `images` images whose y has height x width pixels. */
    size_t (*scratch)(const dice_conv *conv, int32_t height, int32_t width, size_t images);

    /* Computes a piece of y for each image of a bundle; `tensors` are those of the first. */
    void (*run)(const dice_conv *conv, const dice_conv_tensors *tensors, dice_bundle bundle,
                dice_conv_piece piece, void *scratch);
};

extern const dice_conv_algorithm dice_conv_amx, dice_conv_winograd, dice_conv_direct, dice_conv_packed;

/* The number of channel blocks in the sum of one output, over all taps. */
static inline size_t dice_conv_block_count(const dice_conv *conv)
{
    return (size_t)conv->taps * (size_t)conv->blocks;
}

/* The tensors of image `image` of a bundle. */
static inline dice_conv_tensors dice_conv_image(const dice_conv_tensors *tensors, dice_bundle bundle,
                                                size_t image)
{
    dice_conv_tensors moved = *tensors;
    moved.x.data += image * bundle.stride;
    moved.y.data += image * bundle.stride;
    if (moved.residual.data != NULL) {
        moved.residual.data += image * bundle.stride;
    }
    return moved;
}

#endif
