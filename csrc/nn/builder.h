/* What the builders of all families share: each step takes named weights and adds ops to a graph. */
#ifndef DICE_NN_BUILDER_H
#define DICE_NN_BUILDER_H

#include "nn/graph.h"
#include "nn/weights.h"

/* A network that is being built. */
typedef struct dice_builder {
    dice_graph *graph;
    dice_weights *weights;
} dice_builder;

/* A convolution of the checkpoint with the BatchNorms around it. Names are those of modules: the weight of
 * "layer1.0.conv1" is "layer1.0.conv1.weight". */
typedef struct dice_conv_spec {
    int32_t x, y, residual;
    int32_t kernel, stride, pad;
    int relu;
    const char *name;    /* the convolution */
    const char *pre_bn;  /* the BatchNorm, with a ReLU, before it, or NULL */
    const char *post_bn; /* the BatchNorm after it, which is folded into weight and bias, or NULL */
} dice_conv_spec;

dice_status dice_builder_conv(dice_builder *builder, const dice_conv_spec *conv);

/* Appends AVGPOOL (stride = kernel) or, for kernel 0, GLOBAL_MEAN of relu(bn(x)), or of x if bn is NULL. */
dice_status dice_builder_mean(dice_builder *builder, int32_t x, int32_t y, int32_t kernel, const char *bn);

/* Takes NAME.weight (M, D) and NAME.bias (M) as the head; D must be the channels of the output tensor. */
dice_status dice_builder_head(dice_builder *builder, const char *name);

enum { DICE_STAGES = 4, DICE_LAYER_NAME = 64 };

/* One depth of a family: the number of blocks in each stage. A table of them ends with arch NULL. */
typedef struct dice_depth {
    const char *arch;
    int blocks[DICE_STAGES];
} dice_depth;

/* *depth = the one of `depths` that has as many blocks as the weights. `first` is a printf format that
 * makes the name of a block's first convolution of the stage (from 1) and the block's index (from `base`). */
dice_status dice_builder_depth(dice_builder *builder, const dice_depth *depths, const char *first, int base,
                               const dice_depth **depth);

/* The size of axis `axis` of the weight whose name is given as to printf; 0 if there is no such axis. */
#define dice_builder_dim(builder, axis, ...)                                                                 \
    dice_builder_axis(dice_weights_find((builder)->weights, __VA_ARGS__), axis)
int32_t dice_builder_axis(const dice_weight *weight, int32_t axis);

/* The means and standard deviations of RGB in [0, 1] that networks are trained with. */
extern const float dice_cifar_mean[3], dice_cifar_std[3], dice_imagenet_mean[3], dice_imagenet_std[3];
void dice_builder_normalize(dice_builder *builder, const float mean[3], const float std[3],
                            int32_t image_size);

#endif
