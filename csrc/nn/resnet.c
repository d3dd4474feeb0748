/* ResNets (He et al., CVPR 2016).
 *
 * torchvision's for ImageNet have a 7 x 7 stem and a pool, four stages of basic or bottleneck blocks, and the
 * stride on the 3 x 3 convolution. Those for CIFAR have a 3 x 3 stem, three stages of basic blocks, and
 * shortcuts without weights ("option A": every second pixel, with zero channels added on both sides), which
 * are built here as a 1 x 1 convolution with weights 0 and 1. */
#include <stdio.h>

#include "nn/families.h"

static const dice_depth basic_depths[] = {
    {"resnet18", {2, 2, 2, 2}}, {"resnet34", {3, 4, 6, 3}}, {NULL, {0}}};
static const dice_depth bottleneck_depths[] = {
    {"resnet50", {3, 4, 6, 3}},
    {"resnet101", {3, 4, 23, 3}},
    {"resnet152", {3, 8, 36, 3}},
    {NULL, {0}},
};
static const dice_depth cifar_depths[] = {
    {"resnet20", {3, 3, 3}}, {"resnet32", {5, 5, 5}},     {"resnet44", {7, 7, 7}},
    {"resnet56", {9, 9, 9}}, {"resnet110", {18, 18, 18}}, {NULL, {0}},
};

/* One convolution of a block, with its BatchNorm, into a new tensor *y. */
typedef struct layer {
    const char *block;     /* "layer1.0" */
    const char *conv, *bn; /* "conv1", "bn1" */
    int32_t x, residual, channels;
    int kernel, stride, relu;
} layer;

static dice_status push_layer(dice_builder *b, const layer *p, int32_t *y)
{
    char conv[DICE_LAYER_NAME], bn[DICE_LAYER_NAME];
    snprintf(conv, sizeof conv, "%s.%s", p->block, p->conv);
    snprintf(bn, sizeof bn, "%s.%s", p->block, p->bn);
    const dice_status status = dice_graph_tensor(b->graph, p->channels, y);
    return status != DICE_OK ? status
                             : dice_builder_conv(b, &(dice_conv_spec){.x = p->x,
                                                                      .y = *y,
                                                                      .residual = p->residual,
                                                                      .kernel = p->kernel,
                                                                      .stride = p->stride,
                                                                      .pad = p->kernel / 2,
                                                                      .relu = p->relu,
                                                                      .name = conv,
                                                                      .post_bn = bn});
}

/* Adds an option A shortcut: *y (channels) = every second pixel of x, between zero channels. */
static dice_status push_option_a(dice_builder *b, const char *block, int32_t x, int32_t channels, int32_t *y)
{
    const int32_t cx = b->graph->tensors[x].channels, before = (channels - cx) / 2;
    float *weight = NULL;
    dice_status status = dice_graph_tensor(b->graph, channels, y);
    if (status == DICE_OK) {
        status = dice_graph_floats(b->graph, (size_t)channels * (size_t)cx, &weight);
    }
    if (status != DICE_OK) {
        return status;
    }
    for (int32_t o = 0; o < channels; o++) {
        for (int32_t i = 0; i < cx; i++) {
            weight[(size_t)o * (size_t)cx + (size_t)i] = o == i + before ? 1.0f : 0.0f;
        }
    }
    dice_op op = {.kind = DICE_OP_CONV,
                  .x = x,
                  .y = *y,
                  .residual = DICE_NONE,
                  .kernel = 1,
                  .stride = 2,
                  .weight = weight};
    snprintf(op.name, sizeof op.name, "%s.shortcut", block);
    return dice_graph_push(b->graph, &op);
}

/* *shortcut = what `block` adds to its result: x itself, or x brought to `channels` and `stride`. */
static dice_status push_shortcut(dice_builder *b, const char *block, int32_t x, int32_t channels, int stride,
                                 int is_cifar, int32_t *shortcut)
{
    *shortcut = x;
    if (stride == 1 && b->graph->tensors[x].channels == channels) {
        return DICE_OK;
    }
    if (is_cifar) {
        return push_option_a(b, block, x, channels, shortcut);
    }
    return push_layer(
        b, &(layer){block, "downsample.0", "downsample.1", x, DICE_NONE, channels, 1, stride, 0}, shortcut);
}

/* Adds block `index` of `stage`, which reads *x; *x becomes its result. */
static dice_status push_block(dice_builder *b, int stage, int index, int is_cifar, int32_t *x)
{
    char block[32];
    snprintf(block, sizeof block, "layer%d.%d", stage, index);
    const int stride = stage > 1 && index == 0 ? 2 : 1;
    /* The first block of a stage tells how wide the stage is and whether its blocks are bottlenecks. */
    const int32_t width = dice_builder_dim(b, 0, "layer%d.0.conv1.weight", stage);
    const int32_t expanded = is_cifar ? 0 : dice_builder_dim(b, 0, "layer%d.0.conv3.weight", stage);
    const int32_t channels = expanded > 0 ? expanded : width;
    int32_t shortcut, y = *x;
    dice_status status = push_shortcut(b, block, *x, channels, stride, is_cifar, &shortcut);
    if (status == DICE_OK && expanded > 0) {
        status = push_layer(b, &(layer){block, "conv1", "bn1", y, DICE_NONE, width, 1, 1, 1}, &y);
        if (status == DICE_OK) {
            status = push_layer(b, &(layer){block, "conv2", "bn2", y, DICE_NONE, width, 3, stride, 1}, &y);
        }
        if (status == DICE_OK) {
            status = push_layer(b, &(layer){block, "conv3", "bn3", y, shortcut, channels, 1, 1, 1}, &y);
        }
    } else if (status == DICE_OK) {
        status = push_layer(b, &(layer){block, "conv1", "bn1", y, DICE_NONE, width, 3, stride, 1}, &y);
        if (status == DICE_OK) {
            status = push_layer(b, &(layer){block, "conv2", "bn2", y, shortcut, width, 3, 1, 1}, &y);
        }
    }
    *x = y;
    return status;
}

/* Adds the input, conv1 and bn1 and, for ImageNet, the pool; *x = the result. */
static dice_status push_stem(dice_builder *b, int is_cifar, int32_t *x)
{
    const int32_t channels = dice_builder_dim(b, 0, "conv1.weight");
    const int kernel = is_cifar ? 3 : 7;
    int32_t y;
    dice_status status = dice_graph_tensor(b->graph, 3, &b->graph->input);
    if (status == DICE_OK) {
        status = dice_graph_tensor(b->graph, channels, x);
    }
    if (status == DICE_OK) {
        status = dice_builder_conv(b, &(dice_conv_spec){.x = b->graph->input,
                                                        .y = *x,
                                                        .residual = DICE_NONE,
                                                        .kernel = kernel,
                                                        .stride = is_cifar ? 1 : 2,
                                                        .pad = kernel / 2,
                                                        .relu = 1,
                                                        .name = "conv1",
                                                        .post_bn = "bn1"});
    }
    if (status != DICE_OK || is_cifar) {
        return status;
    }
    status = dice_graph_tensor(b->graph, channels, &y);
    if (status == DICE_OK) {
        status = dice_graph_push(b->graph, &(dice_op){.kind = DICE_OP_MAXPOOL,
                                                      .x = *x,
                                                      .y = y,
                                                      .residual = DICE_NONE,
                                                      .kernel = 3,
                                                      .stride = 2,
                                                      .pad = 1,
                                                      .name = "maxpool"});
    }
    *x = y;
    return status;
}

static dice_status build(dice_builder *b, const dice_depth *depths, int is_cifar)
{
    const dice_depth *depth;
    int32_t x;
    dice_status status = dice_builder_depth(b, depths, "layer%d.%d.conv1.weight", 0, &depth);
    if (status == DICE_OK) {
        snprintf(b->graph->arch, sizeof b->graph->arch, "%s", depth->arch);
        dice_builder_normalize(b, dice_imagenet_mean, dice_imagenet_std, is_cifar ? 32 : 224);
        b->graph->winograd = 1;
        status = push_stem(b, is_cifar, &x);
    }
    for (int stage = 1; status == DICE_OK && stage <= DICE_STAGES; stage++) {
        for (int index = 0; status == DICE_OK && index < depth->blocks[stage - 1]; index++) {
            status = push_block(b, stage, index, is_cifar, &x);
        }
    }
    if (status == DICE_OK) {
        status = dice_graph_tensor(b->graph, b->graph->tensors[x].channels, &b->graph->output);
    }
    if (status == DICE_OK) {
        status = dice_builder_mean(b, x, b->graph->output, 0, NULL);
    }
    if (status != DICE_OK) {
        return status;
    }
    const int is_linear = is_cifar && dice_weights_find(b->weights, "linear.weight") != NULL;
    return dice_builder_head(b, is_linear ? "linear" : "fc");
}

dice_status dice_resnet_build(dice_builder *b)
{
    const int is_bottleneck = dice_weights_find(b->weights, "layer1.0.conv3.weight") != NULL;
    return build(b, is_bottleneck ? bottleneck_depths : basic_depths, 0);
}

dice_status dice_resnet_build_cifar(dice_builder *b)
{
    return build(b, cifar_depths, 1);
}
