/* What the builders of networks share: named weights in, ops of a graph out. */
#ifndef DICE_NN_BUILDER_H
#define DICE_NN_BUILDER_H

#include "nn/graph.h"
#include "nn/weights.h"

/* One network in the making. */
typedef struct dice_builder {
    dice_graph *graph;
    dice_weights *weights;
} dice_builder;

/* A convolution of the checkpoint with the BatchNorms around it. Names are prefixes: "layer1.0.conv1" stands
 * for its ".weight".
 */
typedef struct dice_conv_spec {
    int32_t x, y, residual;
    int32_t kernel, stride, pad;
    int relu;
    const char *name;    /* of the convolution */
    const char *pre_bn;  /* BatchNorm + ReLU before it, or NULL */
    const char *post_bn; /* BatchNorm after it, folded into weight and bias, or NULL */
} dice_conv_spec;

dice_status dice_builder_conv(dice_builder *builder, const dice_conv_spec *conv);

/* Appends AVGPOOL (kernel > 0, stride = kernel) or GLOBAL_MEAN (kernel 0) of relu(bn(x)), or of x where bn is
 * NULL. */
dice_status dice_builder_mean(dice_builder *builder, int32_t x, int32_t y, int32_t kernel, const char *bn);

/* Takes NAME.weight (M, D) and NAME.bias (M) as the last layer; D is the output tensor's channels. */
dice_status dice_builder_head(dice_builder *builder, const char *name);

enum { DICE_STAGES = 4, DICE_LAYER_NAME = 64 };

/* A depth of a family: blocks in each stage. Tables end with arch NULL. */
typedef struct dice_layout {
    const char *arch;
    int blocks[DICE_STAGES];
} dice_layout;

/* *layout = the one whose blocks the weights have. `first` formats the name of a block's first convolution
 * from its stage (from 1) and its index (from `base`). */
dice_status dice_builder_layout(dice_builder *builder, const dice_layout *layouts, const char *first,
                                int base, const dice_layout **layout);

/* Size of axis `axis` of the weight called `format`, 0 where there is none. */
#define dice_builder_dim(builder, axis, ...)                                                                 \
    dice_builder_axis(dice_weights_find((builder)->weights, __VA_ARGS__), axis)
int32_t dice_builder_axis(const dice_weight *weight, int32_t axis);

/* Normalisations that networks were trained with. */
extern const float dice_cifar_mean[3], dice_cifar_std[3], dice_imagenet_mean[3], dice_imagenet_std[3];
void dice_builder_normalize(dice_builder *builder, const float mean[3], const float std[3],
                            int32_t image_size);

#endif
