/* Wide ResNet-40-2 for CIFAR (Zagoruyko & Komodakis, BMVC 2016), with the weights' names of the code of the
 * outlier-exposure and energy papers. Its blocks are pre-activated; where the width changes, the shortcut
 * reads the activated input. */
#include <stdio.h>

#include "nn/families.h"

static const dice_depth depths[] = {{"wideresnet", {6, 6, 6}}, {NULL, {0}}};

/* Adds block `index` of `stage`, which reads *x; *x becomes its result. */
static dice_status push_block(dice_builder *b, int stage, int index, int32_t channels, int32_t *x)
{
    char bn1[64], conv1[64], bn2[64], conv2[64], shortcut[64];
    snprintf(bn1, sizeof bn1, "block%d.layer.%d.bn1", stage, index);
    snprintf(conv1, sizeof conv1, "block%d.layer.%d.conv1", stage, index);
    snprintf(bn2, sizeof bn2, "block%d.layer.%d.bn2", stage, index);
    snprintf(conv2, sizeof conv2, "block%d.layer.%d.conv2", stage, index);
    snprintf(shortcut, sizeof shortcut, "block%d.layer.%d.convShortcut", stage, index);
    const int stride = stage > 1 && index == 0 ? 2 : 1;
    int32_t residual = *x, middle, y;
    dice_status status = DICE_OK;
    if (b->graph->tensors[*x].channels != channels) {
        status = dice_graph_tensor(b->graph, channels, &residual);
        if (status == DICE_OK) {
            status = dice_builder_conv(b, &(dice_conv_spec){.x = *x,
                                                            .y = residual,
                                                            .residual = DICE_NONE,
                                                            .kernel = 1,
                                                            .stride = stride,
                                                            .name = shortcut,
                                                            .pre_bn = bn1});
        }
    }
    if (status == DICE_OK) {
        status = dice_graph_tensor(b->graph, channels, &middle);
    }
    if (status == DICE_OK) {
        status = dice_builder_conv(b, &(dice_conv_spec){.x = *x,
                                                        .y = middle,
                                                        .residual = DICE_NONE,
                                                        .kernel = 3,
                                                        .stride = stride,
                                                        .pad = 1,
                                                        .relu = 1,
                                                        .name = conv1,
                                                        .pre_bn = bn1,
                                                        .post_bn = bn2});
    }
    if (status == DICE_OK) {
        status = dice_graph_tensor(b->graph, channels, &y);
    }
    if (status == DICE_OK) {
        status = dice_builder_conv(b, &(dice_conv_spec){.x = middle,
                                                        .y = y,
                                                        .residual = residual,
                                                        .kernel = 3,
                                                        .stride = 1,
                                                        .pad = 1,
                                                        .name = conv2});
        *x = y;
    }
    return status;
}

dice_status dice_wideresnet_build(dice_builder *b)
{
    const dice_depth *depth;
    int32_t x;
    dice_status status = dice_builder_depth(b, depths, "block%d.layer.%d.conv1.weight", 0, &depth);
    if (status == DICE_OK) {
        snprintf(b->graph->arch, sizeof b->graph->arch, "%s", depth->arch);
        dice_builder_normalize(b, dice_cifar_mean, dice_cifar_std, 32);
        b->graph->winograd = 1;
        status = dice_graph_tensor(b->graph, 3, &b->graph->input);
    }
    if (status == DICE_OK) {
        status = dice_graph_tensor(b->graph, dice_builder_dim(b, 0, "conv1.weight"), &x);
    }
    if (status == DICE_OK) {
        status = dice_builder_conv(b, &(dice_conv_spec){.x = b->graph->input,
                                                        .y = x,
                                                        .residual = DICE_NONE,
                                                        .kernel = 3,
                                                        .stride = 1,
                                                        .pad = 1,
                                                        .name = "conv1"});
    }
    for (int stage = 1; status == DICE_OK && stage <= 3; stage++) {
        const int32_t channels = dice_builder_dim(b, 0, "block%d.layer.0.conv1.weight", stage);
        for (int index = 0; status == DICE_OK && index < depth->blocks[stage - 1]; index++) {
            status = push_block(b, stage, index, channels, &x);
        }
    }
    if (status == DICE_OK) {
        status = dice_graph_tensor(b->graph, b->graph->tensors[x].channels, &b->graph->output);
    }
    if (status == DICE_OK) {
        status = dice_builder_mean(b, x, b->graph->output, 0, "bn1");
    }
    return status == DICE_OK ? dice_builder_head(b, "fc") : status;
}
