/* DenseNet and DenseNet-BC for CIFAR, of any depth, growth and reduction (Huang et al., CVPR 2017).
 *
 * Each dense block is one wide tensor: layer j reads its first channels and writes the next `growth`, so that
 * concatenation costs nothing. A transition pools before its 1 x 1 convolution: both are linear, so the
 * result is the same, at a quarter of the work. */
#include <stdio.h>

#include "nn/families.h"

enum { MAX_BLOCKS = 8 };

/* Adds layer `j` of `block`: it reads the first `channels` of `wide` and writes the next `growth`. */
static dice_status dense_layer(dice_builder *b, int block, int j, int32_t wide, int32_t channels,
                               int32_t growth)
{
    char bn1[64], conv1[64], bn2[64], conv2[64];
    snprintf(bn1, sizeof bn1, "block%d.layer.%d.bn1", block, j);
    snprintf(conv1, sizeof conv1, "block%d.layer.%d.conv1", block, j);
    snprintf(bn2, sizeof bn2, "block%d.layer.%d.bn2", block, j);
    snprintf(conv2, sizeof conv2, "block%d.layer.%d.conv2", block, j);
    const int32_t width = dice_builder_dim(b, 0, "%s.weight", conv1);
    const int is_bottleneck = dice_weights_find(b->weights, "%s.weight", conv2) != NULL;
    int32_t x, y, middle;
    dice_status status = dice_graph_slice(b->graph, wide, 0, channels, &x);
    if (status == DICE_OK) {
        status = dice_graph_slice(b->graph, wide, channels, growth, &y);
    }
    if (status != DICE_OK) {
        return status;
    }
    if (!is_bottleneck) {
        return dice_builder_conv(b, &(dice_conv_spec){.x = x,
                                                      .y = y,
                                                      .residual = DICE_NONE,
                                                      .kernel = 3,
                                                      .stride = 1,
                                                      .pad = 1,
                                                      .name = conv1,
                                                      .pre_bn = bn1});
    }
    status = dice_graph_tensor(b->graph, width, &middle);
    if (status == DICE_OK) {
        status = dice_builder_conv(b, &(dice_conv_spec){.x = x,
                                                        .y = middle,
                                                        .residual = DICE_NONE,
                                                        .kernel = 1,
                                                        .stride = 1,
                                                        .relu = 1,
                                                        .name = conv1,
                                                        .pre_bn = bn1,
                                                        .post_bn = bn2});
    }
    if (status == DICE_OK) {
        status = dice_builder_conv(b, &(dice_conv_spec){.x = middle,
                                                        .y = y,
                                                        .residual = DICE_NONE,
                                                        .kernel = 3,
                                                        .stride = 1,
                                                        .pad = 1,
                                                        .name = conv2});
    }
    return status;
}

/* The channels that layer `j` of `block` adds, which are the outputs of its last convolution; 0 where there
 * is no such layer. */
static int32_t growth_of(const dice_builder *b, int block, int j)
{
    const int32_t growth = dice_builder_dim(b, 0, "block%d.layer.%d.conv2.weight", block, j);
    return growth > 0 ? growth : dice_builder_dim(b, 0, "block%d.layer.%d.conv1.weight", block, j);
}

/* Adds the layers of one dense block over `wide`, whose first `channels` are the block's input. */
static dice_status dense_block(dice_builder *b, int block, int32_t wide, int32_t channels)
{
    dice_status status = DICE_OK;
    int32_t growth;
    for (int j = 0; status == DICE_OK && (growth = growth_of(b, block, j)) > 0; j++) {
        status = dense_layer(b, block, j, wide, channels, growth);
        channels += growth;
    }
    return status;
}

/* *wide = a new tensor for `block`: `channels` of input and what its layers add, *total in all. */
static dice_status block_tensor(dice_builder *b, int block, int32_t channels, int32_t *wide, int32_t *total)
{
    int32_t growth;
    *total = channels;
    for (int j = 0; (growth = growth_of(b, block, j)) > 0; j++) {
        *total += growth;
    }
    return dice_graph_tensor(b->graph, *total, wide);
}

/* Adds BatchNorm, ReLU, pool and 1 x 1 convolution of `wide` (total) to y, the tensor of the next block. */
static dice_status transition(dice_builder *b, int block, int32_t wide, int32_t total, int32_t y)
{
    char bn[32], conv[32];
    snprintf(bn, sizeof bn, "trans%d.bn1", block);
    snprintf(conv, sizeof conv, "trans%d.conv1", block);
    int32_t pooled;
    dice_status status = dice_graph_tensor(b->graph, total, &pooled);
    if (status == DICE_OK) {
        status = dice_builder_mean(b, wide, pooled, 2, bn);
    }
    if (status == DICE_OK) {
        status = dice_builder_conv(
            b, &(dice_conv_spec){
                   .x = pooled, .y = y, .residual = DICE_NONE, .kernel = 1, .stride = 1, .name = conv});
    }
    return status;
}

dice_status dice_densenet_build(dice_builder *b)
{
    snprintf(b->graph->arch, sizeof b->graph->arch, "densenet");
    dice_builder_normalize(b, dice_cifar_mean, dice_cifar_std, 32);
    b->graph->winograd = 1;
    int32_t channels = dice_builder_dim(b, 0, "conv1.weight");
    int32_t wide = DICE_NONE, total = 0, start;
    dice_status status = dice_graph_tensor(b->graph, 3, &b->graph->input);
    for (int block = 1; status == DICE_OK && block <= MAX_BLOCKS; block++) {
        if (block > 1) {
            channels = dice_builder_dim(b, 0, "trans%d.conv1.weight", block - 1);
            if (channels == 0) {
                break;
            }
        }
        const int32_t before = wide, before_total = total;
        status = block_tensor(b, block, channels, &wide, &total);
        if (status == DICE_OK) {
            status = dice_graph_slice(b->graph, wide, 0, channels, &start);
        }
        if (status == DICE_OK) {
            status = block > 1 ? transition(b, block - 1, before, before_total, start)
                               : dice_builder_conv(b, &(dice_conv_spec){.x = b->graph->input,
                                                                        .y = start,
                                                                        .residual = DICE_NONE,
                                                                        .kernel = 3,
                                                                        .stride = 1,
                                                                        .pad = 1,
                                                                        .name = "conv1"});
        }
        if (status == DICE_OK) {
            status = dense_block(b, block, wide, channels);
        }
    }
    if (status == DICE_OK) {
        status = dice_graph_tensor(b->graph, total, &b->graph->output);
    }
    if (status == DICE_OK) {
        status = dice_builder_mean(b, wide, b->graph->output, 0, "bn1");
    }
    return status == DICE_OK ? dice_builder_head(b, "fc") : status;
}
