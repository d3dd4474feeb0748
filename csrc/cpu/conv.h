/* Convolution on the CPU: weights packed once, for the algorithm that suits the shape; then
 * conv.algorithm->run computes any piece of any image. */
#ifndef DICE_CPU_CONV_H
#define DICE_CPU_CONV_H

#include "cpu/conv_algorithm.h"
#include "nn/graph.h"

/* What a convolution must know beside its op: its tensors, and what is chosen for the whole network. */
typedef struct dice_conv_setting {
    const dice_cpu_kernels *kernels;
    int32_t in, out;                       /* channels of x and y */
    int narrow, aligned, may_use_winograd; /* see dice_conv */
    int parts;                             /* of the precision: see dice_conv */
} dice_conv_setting;

/* Chooses the algorithm of a convolution and packs the weights of `op` for it. */
dice_status dice_conv_init(dice_conv *conv, const dice_op *op, const dice_conv_setting *setting);
void dice_conv_free(dice_conv *conv); /* a zeroed conv is allowed */

#endif
