/* Making a network ready. See steps.h. */
#include "cpu/steps.h"

#include <string.h>

#include "base/memory.h"
#include "base/sizes.h"

/* Whether the input may be stored pixel by pixel: it has fewer channels than a block, and nothing but
 * convolutions, which pack it, reads it. */
static int input_is_narrow(const dice_graph *graph)
{
    if (graph->tensors[graph->input].channels >= DICE_BLOCK || graph->output == graph->input) {
        return 0;
    }
    for (int32_t i = 0; i < graph->n_ops; i++) {
        const dice_op *op = &graph->ops[i];
        if (op->residual == graph->input || op->y == graph->input
            || (op->x == graph->input && op->kind != DICE_OP_CONV)) {
            return 0;
        }
    }
    for (int32_t i = 0; i < graph->n_tensors; i++) {
        if (graph->tensors[i].parent == graph->input) {
            return 0;
        }
    }
    return 1;
}

static dice_status make_conv(dice_steps *steps, const dice_graph *graph, const dice_op *op, int parts,
                             dice_conv *conv)
{
    const dice_tensor *x = &graph->tensors[op->x];
    const dice_conv_setting setting = {.kernels = steps->kernels,
                                       .in = x->channels,
                                       .out = graph->tensors[op->y].channels,
                                       .narrow = steps->narrow_input && op->x == graph->input,
                                       .aligned = x->offset % DICE_BLOCK == 0,
                                       .may_use_winograd = graph->winograd,
                                       .parts = parts};
    const dice_status status = dice_conv_init(conv, op, &setting);
    if (status == DICE_OK) {
        steps->weight_bytes += conv->weight_bytes;
        if (conv->algorithm->in_place && conv->pad > 0) {
            steps->border[dice_tensor_root(graph, op->x)] = conv->pad;
        }
    }
    return status;
}

static dice_status make_layer(const dice_graph *graph, const dice_op *op, dice_step *step)
{
    const int is_norm = op->kind == DICE_OP_GROUPNORM;
    const float *scale = is_norm ? op->weight : op->pre_scale, *shift = is_norm ? op->bias : op->pre_shift;
    const size_t channels = (size_t)graph->tensors[op->x].channels;
    const size_t room = dice_round_up(channels, DICE_BLOCK);
    if (scale == NULL) {
        return DICE_OK;
    }
    const dice_status status = dice_alloc_padded(scale, channels, room, &step->scale);
    return status == DICE_OK ? dice_alloc_padded(shift, channels, room, &step->shift) : status;
}

/* Makes the arrays of `steps`, with a copy of the tensors and ops of `graph` but not of their weights. */
static dice_status make_arrays(dice_steps *steps, const dice_graph *graph)
{
    void *border = NULL, *step = NULL;
    dice_status status = dice_graph_outline(graph, &steps->graph);
    if (status == DICE_OK) {
        status = dice_alloc_zero((size_t)graph->n_tensors, sizeof(int32_t), &border);
    }
    if (status == DICE_OK) {
        status = dice_alloc_zero((size_t)graph->n_ops, sizeof(dice_step), &step);
    }
    steps->border = border;
    steps->step = step;
    for (int32_t i = 0; status == DICE_OK && i < graph->n_ops; i++) {
        steps->step[i].op = &steps->graph->ops[i];
    }
    return status;
}

dice_status dice_steps_init(dice_steps *steps, const dice_graph *graph, const dice_cpu_kernels *kernels,
                            int parts)
{
    *steps = (dice_steps){.kernels = kernels, .narrow_input = input_is_narrow(graph)};
    for (int c = 0; c < 3; c++) {
        for (int v = 0; v < 256; v++) {
            steps->byte_value[c][v] = ((float)v / 255.0f - graph->mean[c]) / graph->std[c];
        }
    }
    dice_status status = make_arrays(steps, graph);
    for (int32_t i = 0; status == DICE_OK && i < graph->n_ops; i++) {
        const dice_op *op = &graph->ops[i];
        status = op->kind == DICE_OP_CONV ? make_conv(steps, graph, op, parts, &steps->step[i].conv)
                                          : make_layer(graph, op, &steps->step[i]);
    }
    for (int32_t t = 0; status == DICE_OK && t < graph->n_tensors; t++) {
        steps->border[t] = steps->border[dice_tensor_root(graph, t)];
    }
    if (status != DICE_OK) {
        dice_steps_free(steps);
    }
    return status;
}

void dice_steps_free(dice_steps *steps)
{
    for (int32_t i = 0; steps->step != NULL && i < steps->graph->n_ops; i++) {
        dice_conv_free(&steps->step[i].conv);
        dice_free(steps->step[i].scale);
        dice_free(steps->step[i].shift);
    }
    dice_free(steps->step);
    dice_free(steps->border);
    dice_graph_free(steps->graph);
    *steps = (dice_steps){0};
}
