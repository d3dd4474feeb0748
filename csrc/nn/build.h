/* From named weights to a graph: one builder a family of networks, and what the builders share. */
#ifndef DICE_NN_BUILD_H
#define DICE_NN_BUILD_H

#include "nn/graph.h"
#include "nn/weights.h"

/* *out = the network `arch` with these weights; NULL recognises it by names and shapes. Names: densenet,
 * wideresnet, resnet18, 34, 50, 101, 152, CIFAR's resnet20, 32, 44, 56, 110, and BiT-R50x1, R50x3, R101x1,
 * R101x3, R152x2, R152x4 (BiT-S-, BiT-M- too). The graph is checked. DICE_E_INPUT says which layer is
 * missing, of another shape or too many, and what was found in weights that fit no network. */
dice_status dice_build(const char *arch, dice_weights *weights, dice_graph **out);

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

dice_status dice_build_conv(dice_builder *builder, const dice_conv_spec *conv);

/* Appends AVGPOOL (kernel > 0, stride = kernel) or GLOBAL_MEAN (kernel 0) of relu(bn(x)), or of x where bn is
 * NULL. */
dice_status dice_build_mean(dice_builder *builder, int32_t x, int32_t y, int32_t kernel, const char *bn);

/* Takes NAME.weight (M, D) and NAME.bias (M) as the last layer; D is the output tensor's channels. */
dice_status dice_build_head(dice_builder *builder, const char *name);

enum { DICE_STAGES = 4, DICE_LAYER_NAME = 64 };

/* A depth of a family: blocks in each stage. Tables end with arch NULL. */
typedef struct dice_layout {
    const char *arch;
    int blocks[DICE_STAGES];
} dice_layout;

/* *layout = the one whose blocks the weights have. `first` formats the name of a block's first convolution
 * from its stage (from 1) and its index (from `base`). */
dice_status dice_build_layout(dice_builder *builder, const dice_layout *layouts, const char *first, int base,
                              const dice_layout **layout);

/* Size of axis `axis` of the weight called `format`, 0 where there is none. */
#define dice_build_dim(builder, axis, ...)                                                                   \
    dice_build_axis(dice_weights_find((builder)->weights, __VA_ARGS__), axis)
int32_t dice_build_axis(const dice_weight *weight, int32_t axis);

/* Normalisations that networks were trained with. */
extern const float dice_cifar_mean[3], dice_cifar_std[3], dice_imagenet_mean[3], dice_imagenet_std[3];
void dice_build_normalize(dice_builder *builder, const float mean[3], const float std[3], int32_t image_size);

/* Each fills the builder's graph and sets its `arch`, or says which layer does not fit. */
dice_status dice_build_densenet(dice_builder *builder);
dice_status dice_build_resnet(dice_builder *builder);       /* torchvision's, ImageNet */
dice_status dice_build_resnet_cifar(dice_builder *builder); /* 3 stages, option A shortcuts */
dice_status dice_build_resnetv2(dice_builder *builder);     /* BiT */
dice_status dice_build_wideresnet(dice_builder *builder);

#endif
