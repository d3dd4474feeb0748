/* A network made ready for the CPU: the steps of its op list, with packed weights. Nothing here depends on
 * the size of the images, and nothing changes once it is made. */
#ifndef DICE_CPU_STEPS_H
#define DICE_CPU_STEPS_H

#include "cpu/conv.h"
#include "cpu/kernels.h"
#include "nn/graph.h"

/* An op made ready. */
typedef struct dice_step {
    const dice_op *op;
    dice_conv conv;       /* CONV */
    float *scale, *shift; /* prologue of pools and means, or weight and bias of GROUPNORM; whole blocks */
} dice_step;

typedef struct dice_steps {
    const dice_cpu_kernels *kernels;
    dice_graph *graph; /* the tensors and the ops, without weights */
    dice_step *step;   /* (graph.n_ops) */
    int32_t *border;  /* (graph.n_tensors) zero pixels to be kept around a tensor; a slice has its parent's */
    int narrow_input; /* the input has fewer channels than a block, so it lies pixel by pixel */
    float byte_value[3][256]; /* what each byte of a channel is after normalisation */
    size_t weight_bytes;
} dice_steps;

/* *steps = the steps of a graph. Convolutions use factors of `parts` bfloat16 parts: see dice_conv. */
dice_status dice_steps_init(dice_steps *steps, const dice_graph *graph, const dice_cpu_kernels *kernels,
                            int parts);
void dice_steps_free(dice_steps *steps); /* zeroed steps are allowed */

#endif
