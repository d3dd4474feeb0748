/* Steps of building: layers with their BatchNorms, the last layer, the depth of a family. See builder.h. */
#include "nn/builder.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/sizes.h"

const float dice_cifar_mean[3] = {0.4914f, 0.4822f, 0.4465f}, dice_cifar_std[3] = {0.2023f, 0.1994f, 0.2010f};
const float dice_imagenet_mean[3] = {0.485f, 0.456f, 0.406f}, dice_imagenet_std[3] = {0.229f, 0.224f, 0.225f};

void dice_builder_normalize(dice_builder *builder, const float mean[3], const float std[3],
                            int32_t image_size)
{
    memcpy(builder->graph->mean, mean, sizeof builder->graph->mean);
    memcpy(builder->graph->std, std, sizeof builder->graph->std);
    builder->graph->image_size = image_size;
}

int32_t dice_builder_axis(const dice_weight *weight, int32_t axis)
{
    return weight == NULL || axis >= weight->ndim ? 0 : weight->shape[axis];
}

/* *out = the weight NAME.FIELD (count). */
static dice_status get_vector(dice_builder *builder, const char *name, const char *field, int32_t count,
                              const float **out)
{
    char full[DICE_WEIGHT_NAME];
    snprintf(full, sizeof full, "%s.%s", name, field);
    return dice_weights_get(builder->weights, full, 1, &count, out);
}

/* scale, shift (count) = those of BatchNorm `name`, which in evaluation is x * scale + shift; eps 1e-5. */
static dice_status batchnorm(dice_builder *builder, const char *name, int32_t count, double *scale,
                             double *shift)
{
    const float *weight, *bias, *mean, *var;
    dice_status status = get_vector(builder, name, "weight", count, &weight);
    if (status == DICE_OK) {
        status = get_vector(builder, name, "bias", count, &bias);
    }
    if (status == DICE_OK) {
        status = get_vector(builder, name, "running_mean", count, &mean);
    }
    if (status == DICE_OK) {
        status = get_vector(builder, name, "running_var", count, &var);
    }
    for (int32_t i = 0; status == DICE_OK && i < count; i++) {
        scale[i] = (double)weight[i] / sqrt((double)var[i] + 1e-5);
        shift[i] = (double)bias[i] - (double)mean[i] * scale[i];
    }
    return status;
}

/* op->pre_scale, pre_shift (C_x) = BatchNorm `name` over the channels of op->x; scratch (2 C_x). */
static dice_status set_pre(dice_builder *builder, const char *name, double *scratch, dice_op *op)
{
    const int32_t count = builder->graph->tensors[op->x].channels;
    float *scale = NULL, *shift = NULL;
    dice_status status = batchnorm(builder, name, count, scratch, scratch + count);
    if (status == DICE_OK) {
        status = dice_graph_floats(builder->graph, (size_t)count, &scale);
    }
    if (status == DICE_OK) {
        status = dice_graph_floats(builder->graph, (size_t)count, &shift);
    }
    for (int32_t i = 0; status == DICE_OK && i < count; i++) {
        scale[i] = (float)scratch[i];
        shift[i] = (float)scratch[count + i];
    }
    op->pre_scale = scale;
    op->pre_shift = shift;
    return status;
}

/* op->weight, bias = those of convolution `conv` with its post_bn folded in; scratch (2 C_y). */
static dice_status set_weight(dice_builder *builder, const dice_conv_spec *conv, double *scratch, dice_op *op)
{
    dice_graph *graph = builder->graph;
    const int32_t cy = graph->tensors[conv->y].channels, cx = graph->tensors[conv->x].channels;
    const size_t row = (size_t)cx * (size_t)conv->kernel * (size_t)conv->kernel;
    const double *scale = scratch, *shift = scratch + cy;
    char name[DICE_WEIGHT_NAME];
    const float *source;
    float *weight = NULL, *bias = NULL;
    snprintf(name, sizeof name, "%s.weight", conv->name);
    dice_status status = dice_weights_get(builder->weights, name, 4,
                                          (const int32_t[]){cy, cx, conv->kernel, conv->kernel}, &source);
    if (status == DICE_OK && conv->post_bn != NULL) {
        status = batchnorm(builder, conv->post_bn, cy, scratch, scratch + cy);
    }
    if (status == DICE_OK) {
        status = dice_graph_floats(graph, (size_t)cy * row, &weight);
    }
    if (status == DICE_OK && conv->post_bn != NULL) {
        status = dice_graph_floats(graph, (size_t)cy, &bias);
    }
    for (int32_t o = 0; status == DICE_OK && o < cy; o++) {
        const double factor = conv->post_bn != NULL ? scale[o] : 1;
        for (size_t i = 0; i < row; i++) {
            weight[(size_t)o * row + i] = (float)((double)source[(size_t)o * row + i] * factor);
        }
        if (bias != NULL) {
            bias[o] = (float)shift[o];
        }
    }
    op->weight = weight;
    op->bias = bias;
    return status;
}

dice_status dice_builder_conv(dice_builder *builder, const dice_conv_spec *conv)
{
    dice_op op = {.kind = DICE_OP_CONV,
                  .x = conv->x,
                  .y = conv->y,
                  .residual = conv->residual,
                  .kernel = conv->kernel,
                  .stride = conv->stride,
                  .pad = conv->pad,
                  .relu = conv->relu};
    const int32_t cx = builder->graph->tensors[conv->x].channels,
                  cy = builder->graph->tensors[conv->y].channels;
    void *scratch;
    snprintf(op.name, sizeof op.name, "%s", conv->name);
    dice_status status = dice_alloc(2 * dice_most((size_t)cx, (size_t)cy), sizeof(double), &scratch);
    if (status == DICE_OK && conv->pre_bn != NULL) {
        status = set_pre(builder, conv->pre_bn, scratch, &op);
    }
    if (status == DICE_OK) {
        status = set_weight(builder, conv, scratch, &op);
    }
    dice_free(scratch);
    return status == DICE_OK ? dice_graph_push(builder->graph, &op) : status;
}

dice_status dice_builder_mean(dice_builder *builder, int32_t x, int32_t y, int32_t kernel, const char *bn)
{
    dice_op op = {.kind = kernel > 0 ? DICE_OP_AVGPOOL : DICE_OP_GLOBAL_MEAN,
                  .x = x,
                  .y = y,
                  .residual = DICE_NONE,
                  .kernel = kernel,
                  .stride = kernel};
    dice_status status = DICE_OK;
    snprintf(op.name, sizeof op.name, "%s", bn == NULL ? "avgpool" : bn);
    if (bn != NULL) {
        void *scratch;
        status = dice_alloc(2 * (size_t)builder->graph->tensors[x].channels, sizeof(double), &scratch);
        if (status == DICE_OK) {
            status = set_pre(builder, bn, scratch, &op);
        }
        dice_free(scratch);
    }
    return status == DICE_OK ? dice_graph_push(builder->graph, &op) : status;
}

dice_status dice_builder_head(dice_builder *builder, const char *name)
{
    dice_graph *graph = builder->graph;
    const int32_t features = graph->tensors[graph->output].channels;
    const int32_t classes = dice_builder_dim(builder, 0, "%s.weight", name);
    char full[DICE_WEIGHT_NAME];
    const float *weight, *bias;
    float *own_weight = NULL, *own_bias = NULL;
    snprintf(full, sizeof full, "%s.weight", name);
    dice_status status = dice_weights_get(builder->weights, full, 2, (const int32_t[]){classes, features},
                                          &weight);
    if (status == DICE_OK) {
        status = get_vector(builder, name, "bias", classes, &bias);
    }
    if (status == DICE_OK) {
        status = dice_graph_floats(graph, (size_t)classes * (size_t)features, &own_weight);
    }
    if (status == DICE_OK) {
        status = dice_graph_floats(graph, (size_t)classes, &own_bias);
    }
    if (status == DICE_OK) {
        memcpy(own_weight, weight, (size_t)classes * (size_t)features * sizeof *weight);
        memcpy(own_bias, bias, (size_t)classes * sizeof *bias);
        graph->classes = classes;
        graph->head_weight = own_weight;
        graph->head_bias = own_bias;
    }
    return status;
}

dice_status dice_builder_depth(dice_builder *builder, const dice_depth *depths, const char *first, int base,
                               const dice_depth **depth)
{
    int blocks[DICE_STAGES] = {0};
    for (int stage = 0; stage < DICE_STAGES; stage++) {
        while (dice_weights_find(builder->weights, first, stage + 1, blocks[stage] + base) != NULL) {
            blocks[stage]++;
        }
    }
    for (*depth = depths; (*depth)->arch != NULL; (*depth)++) {
        if (memcmp((*depth)->blocks, blocks, sizeof blocks) == 0) {
            return DICE_OK;
        }
    }
    char held[320];
    dice_weights_list(builder->weights, 0, held, sizeof held);
    return dice_fail(DICE_E_INPUT,
                     "stages of %d, %d, %d and %d blocks: not a depth of %s and its sisters. Found: %s",
                     blocks[0], blocks[1], blocks[2], blocks[3], depths->arch, held);
}
