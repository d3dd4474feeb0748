/* BiT ResNetV2 (Kolesnikov et al., ECCV 2020): GroupNorm before every convolution, standardised weights, and
 * after the root convolution a max pool over zero padding.
 *
 * Weights come from torch files or from Google's .npz, which has other names and HWIO kernels. They are
 * standardised once, here: (w - mean) / sqrt(var + 1e-10) for each output channel, with biased variance, in
 * double. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "nn/families.h"

static const dice_depth depths[] = {
    {"R50", {3, 4, 6, 3}},
    {"R101", {3, 4, 23, 3}},
    {"R152", {3, 8, 36, 3}},
    {NULL, {0}},
};

/* The names of one kind of file. Those in a unit come after the unit's prefix. */
typedef struct naming {
    int is_hwio;
    const char *root, *unit; /* unit: format of stage and index */
    const char *first_conv;  /* format of stage and index */
    const char *conv[3], *shortcut;
    const char *norm[3], *last_norm;
    const char *gain, *offset; /* of a GroupNorm */
    const char *head_weight, *head_bias;
} naming;

static const naming torch_naming = {
    0,
    "root.conv.weight",
    "body.block%d.unit%02d",
    "body.block%d.unit%02d.conv1.weight",
    {"conv1.weight", "conv2.weight", "conv3.weight"},
    "downsample.weight",
    {"gn1", "gn2", "gn3"},
    "before_head.gn",
    "weight",
    "bias",
    "head.conv.weight",
    "head.conv.bias",
};
static const naming google_naming = {
    1,
    "resnet/root_block/standardized_conv2d/kernel",
    "resnet/block%d/unit%02d",
    "resnet/block%d/unit%02d/a/standardized_conv2d/kernel",
    {"a/standardized_conv2d/kernel", "b/standardized_conv2d/kernel", "c/standardized_conv2d/kernel"},
    "a/proj/standardized_conv2d/kernel",
    {"a/group_norm", "b/group_norm", "c/group_norm"},
    "resnet/group_norm",
    "gamma",
    "beta",
    "resnet/head/conv2d/kernel",
    "resnet/head/conv2d/bias",
};

/* full = prefix + separator + name, as the file writes them. */
static void join(const naming *n, const char *prefix, const char *name, char full[DICE_WEIGHT_NAME])
{
    snprintf(full, DICE_WEIGHT_NAME, "%s%s%s", prefix, n->is_hwio ? "/" : ".", name);
}

/* *out = a copy of the kernel called `name` as (O, I, K, K), which the graph owns. */
static dice_status get_kernel(dice_builder *b, const naming *n, const char *name, int32_t o, int32_t i,
                              int32_t k, float **out)
{
    const int32_t oihw[4] = {o, i, k, k}, hwio[4] = {k, k, i, o};
    const size_t outs = (size_t)o, ins = (size_t)i, taps = (size_t)k * (size_t)k;
    const float *from;
    dice_status status = dice_weights_get(b->weights, name, 4, n->is_hwio ? hwio : oihw, &from);
    if (status == DICE_OK) {
        status = dice_graph_floats(b->graph, outs * ins * taps, out);
    }
    for (size_t y = 0; status == DICE_OK && y < outs; y++) {
        for (size_t x = 0; x < ins * taps; x++) {
            (*out)[y * ins * taps + x] = n->is_hwio ? from[((x % taps) * ins + x / taps) * outs + y]
                                                    : from[y * ins * taps + x];
        }
    }
    return status;
}

static void standardise(float *weight, size_t rows, size_t count)
{
    for (size_t row = 0; row < rows; row++) {
        float *w = weight + row * count;
        double mean = 0, variance = 0;
        for (size_t i = 0; i < count; i++) {
            mean += (double)w[i];
        }
        mean /= (double)count;
        for (size_t i = 0; i < count; i++) {
            variance += ((double)w[i] - mean) * ((double)w[i] - mean);
        }
        const double factor = 1 / sqrt(variance / (double)count + 1e-10);
        for (size_t i = 0; i < count; i++) {
            w[i] = (float)(((double)w[i] - mean) * factor);
        }
    }
}

/* Adds y = convolution of x with standardised weights (+ residual); y is a new tensor of `channels`. */
static dice_status push_conv(dice_builder *b, const naming *n, const char *name, int32_t x, int32_t residual,
                             int32_t channels, int kernel, int stride, int32_t *y)
{
    const int32_t cx = b->graph->tensors[x].channels;
    float *weight;
    dice_status status = dice_graph_tensor(b->graph, channels, y);
    if (status == DICE_OK) {
        status = get_kernel(b, n, name, channels, cx, kernel, &weight);
    }
    if (status != DICE_OK) {
        return status;
    }
    standardise(weight, (size_t)channels, (size_t)cx * (size_t)kernel * (size_t)kernel);
    dice_op op = {.kind = DICE_OP_CONV,
                  .x = x,
                  .y = *y,
                  .residual = residual,
                  .kernel = kernel,
                  .stride = stride,
                  .pad = kernel / 2,
                  .weight = weight};
    snprintf(op.name, sizeof op.name, "%.63s", name);
    return dice_graph_push(b->graph, &op);
}

/* Adds y = relu(groupnorm(x)), a new tensor. */
static dice_status push_norm(dice_builder *b, const naming *n, const char *prefix, int32_t x, int32_t *y)
{
    const int32_t channels = b->graph->tensors[x].channels;
    char gain_name[DICE_WEIGHT_NAME], offset_name[DICE_WEIGHT_NAME];
    join(n, prefix, n->gain, gain_name);
    join(n, prefix, n->offset, offset_name);
    const float *gain, *offset;
    float *weight, *bias;
    dice_status status = dice_weights_get(b->weights, gain_name, 1, &channels, &gain);
    if (status == DICE_OK) {
        status = dice_weights_get(b->weights, offset_name, 1, &channels, &offset);
    }
    if (status == DICE_OK) {
        status = dice_graph_floats(b->graph, (size_t)channels, &weight);
    }
    if (status == DICE_OK) {
        status = dice_graph_floats(b->graph, (size_t)channels, &bias);
    }
    if (status == DICE_OK) {
        status = dice_graph_tensor(b->graph, channels, y);
    }
    if (status != DICE_OK) {
        return status;
    }
    memcpy(weight, gain, (size_t)channels * sizeof *weight);
    memcpy(bias, offset, (size_t)channels * sizeof *bias);
    dice_op op = {.kind = DICE_OP_GROUPNORM,
                  .x = x,
                  .y = *y,
                  .residual = DICE_NONE,
                  .groups = 32,
                  .eps = 1e-5f,
                  .relu = 1,
                  .weight = weight,
                  .bias = bias};
    snprintf(op.name, sizeof op.name, "%.63s", prefix);
    return dice_graph_push(b->graph, &op);
}

/* Adds unit `index` (from 1) of `stage`, with `width` channels in its middle; *x = its input, then its
 * result. */
static dice_status push_unit(dice_builder *b, const naming *n, int stage, int index, int32_t width,
                             int32_t *x)
{
    static const int kernels[3] = {1, 3, 1};
    const int stride = stage > 1 && index == 1 ? 2 : 1;
    char unit[DICE_LAYER_NAME], name[DICE_WEIGHT_NAME];
    int32_t shortcut = *x, y = *x;
    dice_status status = DICE_OK;
    snprintf(unit, sizeof unit, n->unit, stage, index);
    for (int i = 0; status == DICE_OK && i < 3; i++) {
        int32_t normed;
        join(n, unit, n->norm[i], name);
        status = push_norm(b, n, name, y, &normed);
        if (status == DICE_OK && i == 0 && (stride > 1 || b->graph->tensors[*x].channels != 4 * width)) {
            join(n, unit, n->shortcut, name);
            status = push_conv(b, n, name, normed, DICE_NONE, 4 * width, 1, stride, &shortcut);
        }
        if (status == DICE_OK) {
            join(n, unit, n->conv[i], name);
            status = push_conv(b, n, name, normed, i == 2 ? shortcut : DICE_NONE, i == 2 ? 4 * width : width,
                               kernels[i], i == 1 ? stride : 1, &y);
        }
    }
    *x = y;
    return status;
}

/* Adds the input, the root convolution and the pool; *x = the result, of `channels`. */
static dice_status push_root(dice_builder *b, const naming *n, int32_t channels, int32_t *x)
{
    int32_t y;
    dice_status status = dice_graph_tensor(b->graph, 3, &b->graph->input);
    if (status == DICE_OK) {
        status = push_conv(b, n, n->root, b->graph->input, DICE_NONE, channels, 7, 2, &y);
    }
    if (status == DICE_OK) {
        status = dice_graph_tensor(b->graph, channels, x);
    }
    if (status == DICE_OK) {
        status = dice_graph_push(b->graph, &(dice_op){.kind = DICE_OP_MAXPOOL,
                                                      .x = y,
                                                      .y = *x,
                                                      .residual = DICE_NONE,
                                                      .kernel = 3,
                                                      .stride = 2,
                                                      .pad = 1,
                                                      .zero_padded = 1,
                                                      .name = "root.pool"});
    }
    return status;
}

/* Sets the graph's head. BiT stores it as a 1 x 1 convolution over the pooled features. */
static dice_status set_head(dice_builder *b, const naming *n)
{
    dice_graph *graph = b->graph;
    const int32_t classes = dice_builder_dim(b, n->is_hwio ? 3 : 0, "%s", n->head_weight);
    const float *bias;
    float *weight, *own_bias;
    dice_status status = get_kernel(b, n, n->head_weight, classes, graph->tensors[graph->output].channels, 1,
                                    &weight);
    if (status == DICE_OK) {
        status = dice_weights_get(b->weights, n->head_bias, 1, &classes, &bias);
    }
    if (status == DICE_OK) {
        status = dice_graph_floats(graph, (size_t)classes, &own_bias);
    }
    if (status == DICE_OK) {
        memcpy(own_bias, bias, (size_t)classes * sizeof *bias);
        graph->classes = classes;
        graph->head_weight = weight;
        graph->head_bias = own_bias;
    }
    return status;
}

dice_status dice_resnetv2_build(dice_builder *b)
{
    static const float half[3] = {0.5f, 0.5f, 0.5f};
    const naming *n = dice_weights_find(b->weights, "%s", google_naming.root) != NULL ? &google_naming
                                                                                      : &torch_naming;
    const int32_t root = dice_builder_dim(b, n->is_hwio ? 3 : 0, "%s", n->root);
    const dice_depth *depth;
    int32_t x, normed;
    dice_status status = dice_builder_depth(b, depths, n->first_conv, 1, &depth);
    if (status == DICE_OK) {
        snprintf(b->graph->arch, sizeof b->graph->arch, "BiT-%sx%d", depth->arch, root / 64);
        dice_builder_normalize(b, half, half, 480);
        b->graph->winograd = 1;
        status = push_root(b, n, root, &x);
    }
    for (int stage = 1; status == DICE_OK && stage <= DICE_STAGES; stage++) {
        for (int index = 1; status == DICE_OK && index <= depth->blocks[stage - 1]; index++) {
            status = push_unit(b, n, stage, index, root << (stage - 1), &x);
        }
    }
    if (status == DICE_OK) {
        status = push_norm(b, n, n->last_norm, x, &normed);
    }
    if (status == DICE_OK) {
        status = dice_graph_tensor(b->graph, b->graph->tensors[normed].channels, &b->graph->output);
    }
    if (status == DICE_OK) {
        status = dice_builder_mean(b, normed, b->graph->output, 0, NULL);
    }
    return status == DICE_OK ? set_head(b, n) : status;
}
