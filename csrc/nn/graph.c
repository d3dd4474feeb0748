/* Building, checking and freeing of graphs. See graph.h. */
#include "nn/graph.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

dice_status dice_graph_new(const char *arch, dice_graph **out)
{
    void *memory;
    const dice_status status = dice_alloc_zero(1, sizeof(dice_graph), &memory);
    *out = memory;
    if (status == DICE_OK) {
        dice_graph *graph = memory;
        snprintf(graph->arch, sizeof graph->arch, "%s", arch);
        graph->input = graph->output = DICE_NONE;
        graph->std[0] = graph->std[1] = graph->std[2] = 1;
    }
    return status;
}

void dice_graph_free(dice_graph *graph)
{
    if (graph == NULL) {
        return;
    }
    for (int32_t i = 0; i < graph->n_blobs; i++) {
        dice_free(graph->blobs[i]);
    }
    dice_free(graph->blobs);
    dice_free(graph->ops);
    dice_free(graph->tensors);
    dice_free(graph);
}

/* Makes room for one more item in *array. */
static dice_status grow(void **array, int32_t *room, int32_t used, size_t size)
{
    if (used < *room) {
        return DICE_OK;
    }
    const int32_t wider = *room == 0 ? 64 : *room * 2;
    void *memory;
    const dice_status status = dice_alloc((size_t)wider, size, &memory);
    if (status != DICE_OK) {
        return status;
    }
    if (used > 0) {
        memcpy(memory, *array, (size_t)used * size);
    }
    dice_free(*array);
    *array = memory;
    *room = wider;
    return DICE_OK;
}

static dice_status push_tensor(dice_graph *graph, dice_tensor tensor, int32_t *id)
{
    void *array = graph->tensors;
    const dice_status status = grow(&array, &graph->tensors_room, graph->n_tensors, sizeof tensor);
    graph->tensors = array;
    if (status == DICE_OK) {
        *id = graph->n_tensors;
        graph->tensors[graph->n_tensors++] = tensor;
    }
    return status;
}

dice_status dice_graph_tensor(dice_graph *graph, int32_t channels, int32_t *id)
{
    return push_tensor(graph, (dice_tensor){.channels = channels, .parent = DICE_NONE}, id);
}

dice_status dice_graph_slice(dice_graph *graph, int32_t parent, int32_t offset, int32_t channels, int32_t *id)
{
    return push_tensor(graph, (dice_tensor){.channels = channels, .parent = parent, .offset = offset}, id);
}

dice_status dice_graph_push(dice_graph *graph, const dice_op *op)
{
    void *array = graph->ops;
    const dice_status status = grow(&array, &graph->ops_room, graph->n_ops, sizeof *op);
    graph->ops = array;
    if (status == DICE_OK) {
        graph->ops[graph->n_ops++] = *op;
    }
    return status;
}

dice_status dice_graph_floats(dice_graph *graph, size_t count, float **out)
{
    void *array = graph->blobs, *memory;
    *out = NULL;
    dice_status status = grow(&array, &graph->blobs_room, graph->n_blobs, sizeof *graph->blobs);
    graph->blobs = array;
    if (status == DICE_OK) {
        status = dice_alloc(count, sizeof(float), &memory);
    }
    if (status == DICE_OK) {
        graph->blobs[graph->n_blobs++] = memory;
        *out = memory;
    }
    return status;
}

dice_status dice_graph_outline(const dice_graph *graph, dice_graph **out)
{
    dice_status status = dice_graph_new(graph->arch, out);
    for (int32_t t = 0; t < graph->n_tensors && status == DICE_OK; t++) {
        int32_t id;
        status = push_tensor(*out, graph->tensors[t], &id);
    }
    for (int32_t i = 0; i < graph->n_ops && status == DICE_OK; i++) {
        dice_op op = graph->ops[i];
        op.weight = op.bias = op.pre_scale = op.pre_shift = NULL;
        status = dice_graph_push(*out, &op);
    }
    if (status != DICE_OK) {
        dice_graph_free(*out);
        *out = NULL;
        return status;
    }
    (*out)->input = graph->input;
    (*out)->output = graph->output;
    return DICE_OK;
}

const char *const dice_op_names[DICE_OP_KINDS] = {"conv", "maxpool", "avgpool", "global_mean", "groupnorm"};

#define KIND(name) (1u << DICE_OP_##name)
enum {
    EVERY = (1u << DICE_OP_KINDS) - 1,
    WINDOWED = KIND(CONV) | KIND(MAXPOOL) | KIND(AVGPOOL),
    WEIGHTED = KIND(CONV) | KIND(GROUPNORM),
    HAS_PRE = KIND(CONV) | KIND(AVGPOOL) | KIND(GLOBAL_MEAN),
};

#define FIELD(name, type, kinds, required)                                                                   \
    {#name, DICE_FIELD_##type, offsetof(dice_op, name), kinds, required}
const dice_op_field dice_op_fields[] = {
    FIELD(x, TENSOR, EVERY, 1),
    FIELD(y, TENSOR, EVERY, 1),
    FIELD(residual, TENSOR, KIND(CONV), 0),
    FIELD(kernel, INT, WINDOWED, 0),
    FIELD(stride, INT, WINDOWED, 0),
    FIELD(pad, INT, WINDOWED, 0),
    FIELD(groups, INT, KIND(GROUPNORM), 0),
    FIELD(eps, REAL, KIND(GROUPNORM), 0),
    FIELD(relu, FLAG, WEIGHTED, 0),
    FIELD(zero_padded, FLAG, KIND(MAXPOOL), 0),
    FIELD(weight, FLOATS, WEIGHTED, 0),
    FIELD(bias, FLOATS, WEIGHTED, 0),
    FIELD(pre_scale, FLOATS, HAS_PRE, 0),
    FIELD(pre_shift, FLOATS, HAS_PRE, 0),
    {NULL, DICE_FIELD_TENSOR, 0, 0, 0},
};

int dice_op_shape(const dice_graph *graph, const dice_op *op, const dice_op_field *field, int32_t shape[4])
{
    const int32_t cx = graph->tensors[op->x].channels, cy = graph->tensors[op->y].channels;
    const int of_x = field->offset == offsetof(dice_op, pre_scale)
                  || field->offset == offsetof(dice_op, pre_shift);
    shape[0] = of_x ? cx : cy;
    shape[1] = cx;
    shape[2] = shape[3] = op->kernel;
    return op->kind == DICE_OP_CONV && field->offset == offsetof(dice_op, weight) ? 4 : 1;
}

int dice_op_size(const dice_op *op, int32_t *height, int32_t *width)
{
    switch (op->kind) {
    case DICE_OP_CONV:
    case DICE_OP_MAXPOOL:
    case DICE_OP_AVGPOOL:
        if (*height + 2 * op->pad < op->kernel || *width + 2 * op->pad < op->kernel) {
            return 0;
        }
        *height = (*height + 2 * op->pad - op->kernel) / op->stride + 1;
        *width = (*width + 2 * op->pad - op->kernel) / op->stride + 1;
        break;
    case DICE_OP_GLOBAL_MEAN:
        *height = *width = 1;
        break;
    case DICE_OP_GROUPNORM:
        break;
    }
    return 1;
}

size_t dice_op_weights(const dice_graph *graph, const dice_op *op)
{
    const size_t channels = (size_t)graph->tensors[op->y].channels;
    switch (op->kind) {
    case DICE_OP_CONV:
        return channels * (size_t)graph->tensors[op->x].channels * (size_t)op->kernel * (size_t)op->kernel;
    case DICE_OP_GROUPNORM:
        return channels;
    case DICE_OP_MAXPOOL:
    case DICE_OP_AVGPOOL:
    case DICE_OP_GLOBAL_MEAN:
        break;
    }
    return 0;
}

static dice_status check_floats(const float *values, size_t count, const char *layer, const char *what)
{
    for (size_t i = 0; values != NULL && i < count; i++) {
        if (!isfinite(values[i])) {
            return dice_fail(DICE_E_INPUT, "layer %s: its %s holds NaN or infinity", layer, what);
        }
    }
    return DICE_OK;
}

/* Far above the sizes of any real network, and small enough that no product of sizes exceeds 64 bits. */
enum { MAX_CHANNELS = 1 << 20, MAX_KERNEL = 64 };

static dice_status check_tensors(const dice_graph *graph)
{
    for (int32_t i = 0; i < graph->n_tensors; i++) {
        const dice_tensor *t = &graph->tensors[i];
        if (t->channels < 1 || t->channels > MAX_CHANNELS) {
            return dice_fail(DICE_E_INPUT, "tensor %d: got %d channels, want 1 to %d", i, t->channels,
                             MAX_CHANNELS);
        }
        if (t->parent == DICE_NONE) {
            continue;
        }
        if (t->parent < 0 || t->parent >= graph->n_tensors || graph->tensors[t->parent].parent != DICE_NONE) {
            return dice_fail(DICE_E_INPUT, "tensor %d: a slice of %d, which is no tensor of its own", i,
                             t->parent);
        }
        if (t->offset < 0 || t->offset > graph->tensors[t->parent].channels - t->channels) {
            return dice_fail(DICE_E_INPUT, "tensor %d: channels %d to %lld of a parent that has %d", i,
                             t->offset, (long long)t->offset + t->channels,
                             graph->tensors[t->parent].channels);
        }
    }
    return DICE_OK;
}

static int is_tensor(const dice_graph *graph, int32_t id)
{
    return id >= 0 && id < graph->n_tensors;
}

/* Whether two tensors share a channel. */
static int overlap(const dice_graph *graph, int32_t a, int32_t b)
{
    const dice_tensor *s = &graph->tensors[a], *t = &graph->tensors[b];
    return dice_tensor_root(graph, a) == dice_tensor_root(graph, b) && s->offset < t->offset + t->channels
        && t->offset < s->offset + s->channels;
}

static dice_status check_shape(const dice_graph *graph, const dice_op *op)
{
    const int32_t cx = graph->tensors[op->x].channels, cy = graph->tensors[op->y].channels;
    const unsigned kind = 1u << op->kind;
    if ((kind & WINDOWED) != 0
        && (op->kernel < 1 || op->kernel > MAX_KERNEL || op->stride < 1 || op->stride > MAX_KERNEL
            || op->pad < 0 || op->pad >= op->kernel)) {
        return dice_fail(DICE_E_INPUT, "layer %s: kernel %d, stride %d, pad %d", op->name, op->kernel,
                         op->stride, op->pad);
    }
    if (op->kind != DICE_OP_CONV && cx != cy) {
        return dice_fail(DICE_E_INPUT, "layer %s: %d channels in, %d out", op->name, cx, cy);
    }
    if (op->kind == DICE_OP_AVGPOOL && op->pad != 0) {
        return dice_fail(DICE_E_INPUT, "layer %s: an average pool has no padding", op->name);
    }
    if (op->kind == DICE_OP_MAXPOOL && 2 * op->pad > op->kernel) {
        return dice_fail(DICE_E_INPUT, "layer %s: pad %d of a pool is more than half of kernel %d", op->name,
                         op->pad, op->kernel);
    }
    if (op->kind == DICE_OP_GROUPNORM && (op->groups < 1 || cx % op->groups != 0 || !(op->eps > 0))) {
        return dice_fail(DICE_E_INPUT, "layer %s: %d channels in %d groups, eps %g", op->name, cx, op->groups,
                         (double)op->eps);
    }
    if (op->residual != DICE_NONE
        && (op->kind != DICE_OP_CONV || graph->tensors[op->residual].channels != cy)) {
        return dice_fail(DICE_E_INPUT, "layer %s: a residual of other shape", op->name);
    }
    if (overlap(graph, op->x, op->y) || (op->residual != DICE_NONE && overlap(graph, op->residual, op->y))) {
        return dice_fail(DICE_E_INPUT, "layer %s: writes over its own input", op->name);
    }
    const int wants_weight = (kind & WEIGHTED) != 0;
    if (wants_weight != (op->weight != NULL) || (op->kind == DICE_OP_GROUPNORM && op->bias == NULL)
        || (!wants_weight && op->bias != NULL) || (op->pre_scale == NULL) != (op->pre_shift == NULL)
        || ((kind & HAS_PRE) == 0 && op->pre_scale != NULL)) {
        return dice_fail(DICE_E_INPUT, "layer %s: a weight is missing or does not belong there", op->name);
    }
    return DICE_OK;
}

static dice_status check_op(const dice_graph *graph, const dice_op *op)
{
    if (!is_tensor(graph, op->x) || !is_tensor(graph, op->y)
        || (op->residual != DICE_NONE && !is_tensor(graph, op->residual))) {
        return dice_fail(DICE_E_INPUT, "layer %s: reads or writes a tensor that is not there", op->name);
    }
    dice_status status = check_shape(graph, op);
    const size_t cx = (size_t)graph->tensors[op->x].channels, cy = (size_t)graph->tensors[op->y].channels;
    if (status == DICE_OK) {
        status = check_floats(op->weight, dice_op_weights(graph, op), op->name, "weight");
    }
    if (status == DICE_OK) {
        status = check_floats(op->bias, cy, op->name, "bias");
    }
    if (status == DICE_OK) {
        status = check_floats(op->pre_scale, cx, op->name, "normalisation");
    }
    return status == DICE_OK ? check_floats(op->pre_shift, cx, op->name, "normalisation") : status;
}

dice_status dice_graph_check(const dice_graph *graph)
{
    dice_status status = check_tensors(graph);
    if (status == DICE_OK && (!is_tensor(graph, graph->input) || !is_tensor(graph, graph->output))) {
        status = dice_fail(DICE_E_INPUT, "the network has no input or no output");
    }
    for (int32_t i = 0; status == DICE_OK && i < graph->n_ops; i++) {
        status = check_op(graph, &graph->ops[i]);
    }
    for (int i = 0; status == DICE_OK && i < 3; i++) {
        if (!isfinite(graph->mean[i]) || !isfinite(graph->std[i]) || graph->std[i] <= 0) {
            status = dice_fail(DICE_E_INPUT,
                               "normalisation: a mean must be finite, a standard deviation positive");
        }
    }
    if (status == DICE_OK && graph->classes > 0) {
        const size_t classes = (size_t)graph->classes,
                     features = (size_t)graph->tensors[graph->output].channels;
        status = check_floats(graph->head_weight, classes * features, "head", "weight");
        if (status == DICE_OK) {
            status = check_floats(graph->head_bias, classes, "head", "bias");
        }
    }
    return status;
}
