/* What the builders share, and the choice of the builder. See build.h. */
#include "nn/build.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

const float dice_cifar_mean[3] = {0.4914f, 0.4822f, 0.4465f}, dice_cifar_std[3] = {0.2023f, 0.1994f, 0.2010f};
const float dice_imagenet_mean[3] = {0.485f, 0.456f, 0.406f}, dice_imagenet_std[3] = {0.229f, 0.224f, 0.225f};

void dice_build_normalize(dice_builder *builder, const float mean[3], const float std[3], int32_t image_size)
{
    memcpy(builder->graph->mean, mean, sizeof builder->graph->mean);
    memcpy(builder->graph->std, std, sizeof builder->graph->std);
    builder->graph->image_size = image_size;
}

int32_t dice_build_axis(const dice_weight *weight, int32_t axis)
{
    return weight == NULL || axis >= weight->ndim ? 0 : weight->shape[axis];
}

/* The vector NAME.FIELD (count). */
static dice_status get_vector(dice_builder *builder, const char *name, const char *field, int32_t count,
                              const float **out)
{
    char full[DICE_WEIGHT_NAME];
    snprintf(full, sizeof full, "%s.%s", name, field);
    return dice_weights_get(builder->weights, full, 1, &count, out);
}

/* BatchNorm `name` in evaluation is x * scale + shift, (count) each, eps 1e-5. */
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

/* op->pre_scale, pre_shift = BatchNorm `name` over the channels of op->x; `scratch` holds twice as many. */
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

/* op->weight, bias = convolution `conv` with its post_bn folded in; `scratch` holds 2 C_y. */
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

dice_status dice_build_conv(dice_builder *builder, const dice_conv_spec *conv)
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
    dice_status status = dice_alloc(2 * (size_t)(cx > cy ? cx : cy), sizeof(double), &scratch);
    if (status == DICE_OK && conv->pre_bn != NULL) {
        status = set_pre(builder, conv->pre_bn, scratch, &op);
    }
    if (status == DICE_OK) {
        status = set_weight(builder, conv, scratch, &op);
    }
    dice_free(scratch);
    return status == DICE_OK ? dice_graph_push(builder->graph, &op) : status;
}

dice_status dice_build_mean(dice_builder *builder, int32_t x, int32_t y, int32_t kernel, const char *bn)
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

dice_status dice_build_head(dice_builder *builder, const char *name)
{
    dice_graph *graph = builder->graph;
    const int32_t features = graph->tensors[graph->output].channels;
    const int32_t classes = dice_build_dim(builder, 0, "%s.weight", name);
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

dice_status dice_build_layout(dice_builder *builder, const dice_layout *layouts, const char *first, int base,
                              const dice_layout **layout)
{
    int blocks[DICE_STAGES] = {0};
    for (int stage = 0; stage < DICE_STAGES; stage++) {
        while (dice_weights_find(builder->weights, first, stage + 1, blocks[stage] + base) != NULL) {
            blocks[stage]++;
        }
    }
    for (*layout = layouts; (*layout)->arch != NULL; (*layout)++) {
        if (memcmp((*layout)->blocks, blocks, sizeof blocks) == 0) {
            return DICE_OK;
        }
    }
    char held[320];
    dice_weights_list(builder->weights, 0, held, sizeof held);
    return dice_fail(DICE_E_INPUT,
                     "stages of %d, %d, %d and %d blocks: not a depth of %s and its sisters. Found: %s",
                     blocks[0], blocks[1], blocks[2], blocks[3], layouts->arch, held);
}

typedef struct family {
    const char *names;  /* of its members */
    const char *has[2]; /* weights that tell it from the others */
    dice_status (*build)(dice_builder *builder);
} family;

static const family families[] = {
    {"densenet", {"block1.layer.0.bn1.weight", "trans1.conv1.weight"}, dice_build_densenet},
    {"wideresnet", {"block1.layer.0.convShortcut.weight", "fc.weight"}, dice_build_wideresnet},
    {"resnet18 resnet34 resnet50 resnet101 resnet152",
     {"layer4.0.conv1.weight", "fc.weight"},
     dice_build_resnet},
    {"resnet20 resnet32 resnet44 resnet56 resnet110",
     {"layer3.0.conv1.weight", "linear.weight"},
     dice_build_resnet_cifar},
    {"BiT-R50x1 BiT-R50x3 BiT-R101x1 BiT-R101x3 BiT-R152x2 BiT-R152x4",
     {"root.conv.weight", "before_head.gn.weight"},
     dice_build_resnetv2},
    {"", {"resnet/root_block/standardized_conv2d/kernel", "resnet/group_norm/gamma"}, dice_build_resnetv2},
};
enum { FAMILIES = sizeof families / sizeof families[0] };

static int has(const dice_weights *weights, const char *name)
{
    return dice_weights_find(weights, "%s", name) != NULL;
}

static dice_status recognise(const dice_weights *weights, const family **out)
{
    char held[320];
    for (size_t i = 0; i < FAMILIES; i++) {
        if (has(weights, families[i].has[0]) && has(weights, families[i].has[1])) {
            *out = &families[i];
            return DICE_OK;
        }
    }
    dice_weights_list(weights, 0, held, sizeof held);
    if (has(weights, "layer3.0.conv1.weight")) {
        return dice_fail(DICE_E_INPUT,
                         "a ResNet, but names and shapes leave a doubt which; name it (arch). Found: %s",
                         held);
    }
    return dice_fail(DICE_E_INPUT, "no known network has these weights: %s", held);
}

/* Is `name` one of the words of `names`? */
static int is_word(const char *names, const char *name)
{
    const size_t length = strlen(name);
    for (const char *at = names; (at = strstr(at, name)) != NULL; at += length) {
        if ((at == names || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0')) {
            return 1;
        }
    }
    return 0;
}

static dice_status find_family(const char *name, const char *arch, const family **out)
{
    char known[512] = "";
    for (size_t i = 0, used = 0; i < FAMILIES; i++) {
        if (name[0] != '\0' && is_word(families[i].names, name)) {
            *out = &families[i];
            return DICE_OK;
        }
        used += (size_t)snprintf(known + used, sizeof known - used, " %s", families[i].names);
    }
    return dice_fail(DICE_E_INPUT, "arch %.40s: not one of%s", arch, known);
}

/* The name without what size or training data do not tell: "BiT-S-R50x1" and "BiT-M-R50x1" are "BiT-R50x1".
 */
static void canonical(const char *arch, char name[32])
{
    const int is_bit = strncmp(arch, "BiT-S-", 6) == 0 || strncmp(arch, "BiT-M-", 6) == 0;
    snprintf(name, 32, "%s%s", is_bit ? "BiT-" : "", is_bit ? arch + 6 : arch);
}

/* Fills the builder's graph and checks that it is what was asked for. */
static dice_status build(const char *arch, dice_builder *builder)
{
    const family *chosen = NULL;
    char name[32];
    canonical(arch == NULL ? "" : arch, name);
    dice_status status = arch == NULL ? recognise(builder->weights, &chosen)
                                      : find_family(name, arch, &chosen);
    if (status != DICE_OK) {
        return status;
    }
    status = chosen->build(builder);
    char *built = builder->graph->arch;
    if (status == DICE_OK && arch != NULL) {
        if (strcmp(name, built) != 0) {
            return dice_fail(DICE_E_INPUT, "arch %.40s: the weights are those of %s", arch, built);
        }
        snprintf(built, sizeof builder->graph->arch, "%s", arch);
    }
    if (status == DICE_OK) {
        status = dice_weights_check_used(builder->weights, built);
    }
    return status == DICE_OK ? dice_graph_check(builder->graph) : status;
}

dice_status dice_build(const char *arch, dice_weights *weights, dice_graph **out)
{
    dice_builder builder = {.weights = weights};
    *out = NULL;
    dice_status status = dice_graph_new("", &builder.graph);
    if (status != DICE_OK) {
        return status;
    }
    status = build(arch, &builder);
    if (status == DICE_OK) {
        *out = builder.graph;
    } else {
        dice_graph_free(builder.graph);
    }
    return status;
}
