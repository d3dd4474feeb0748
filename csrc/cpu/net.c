/* Making and planning a network on the CPU. See net.h. */
#include "cpu/net.h"

#include <string.h>

#include "base/memory.h"
#include "base/threads.h"
#include "cpu/linear.h"

enum { LARGE_WEIGHTS = 8 << 20 }; /* bytes; past the caches several images share a pass over the weights */

static void net_free(dice_net *net)
{
    if (net == NULL) {
        return;
    }
    for (int32_t i = 0; i < net->n_steps; i++) {
        dice_conv_free(&net->steps[i].conv);
        dice_free(net->steps[i].scale);
        dice_free(net->steps[i].shift);
    }
    dice_free(net->steps);
    dice_free(net->tensors);
    dice_free(net->border);
    dice_free(net->memory);
    dice_plan_free(&net->plan);
    pthread_mutex_destroy(&net->lock);
    dice_free(net);
}

static dice_status block_copy(const float *from, int32_t count, float **out)
{
    void *memory;
    const size_t room = ((size_t)count + DICE_BLOCK - 1) / DICE_BLOCK * DICE_BLOCK;
    const dice_status status = dice_alloc_zero(room, sizeof(float), &memory);
    *out = memory;
    if (status == DICE_OK) {
        memcpy(memory, from, (size_t)count * sizeof(float));
    }
    return status;
}

static dice_status make_step(dice_net *net, const dice_op *op, dice_step *step)
{
    const int32_t in = net->tensors[op->x].channels, out = net->tensors[op->y].channels;
    dice_status status = DICE_OK;
    step->op = *op;
    if (op->kind == DICE_OP_CONV) {
        const dice_conv_setting setting = {.kernels = net->kernels,
                                           .in = in,
                                           .out = out,
                                           .narrow = net->narrow_input && op->x == net->input,
                                           .aligned = net->tensors[op->x].offset % DICE_BLOCK == 0,
                                           .may_use_winograd = net->winograd,
                                           .parts = net->parts};
        status = dice_conv_init(&step->conv, op, &setting);
        net->weight_bytes += step->conv.weight_bytes;
    } else {
        const int is_norm = op->kind == DICE_OP_GROUPNORM;
        const float *scale = is_norm ? op->weight : op->pre_scale,
                    *shift = is_norm ? op->bias : op->pre_shift;
        if (scale != NULL) {
            status = block_copy(scale, in, &step->scale);
            if (status == DICE_OK) {
                status = block_copy(shift, in, &step->shift);
            }
        }
    }
    step->op.weight = step->op.bias = step->op.pre_scale = step->op.pre_shift = NULL;
    return status;
}

/* A narrow input lies pixel by pixel, which only packing convolutions read. */
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

static dice_status net_create(const dice_graph *graph, const dice_options *options, dice_net **out)
{
    *out = NULL;
    const dice_cpu_kernels *kernels = dice_cpu_kernels_for(options->isa);
    if (kernels == NULL) {
        return dice_fail(DICE_E_INTERNAL, "no fast kernels for %s in this build",
                         dice_isa_name(options->isa));
    }
    void *memory;
    dice_status status = dice_alloc_zero(1, sizeof(dice_net), &memory);
    if (status != DICE_OK) {
        return status;
    }
    dice_net *net = memory;
    pthread_mutex_init(&net->lock, NULL);
    net->kernels = kernels;
    net->input = graph->input;
    net->output = graph->output;
    net->n_tensors = graph->n_tensors;
    net->winograd = graph->winograd;
    net->parts = dice_precision_parts(options->precision);
    net->narrow_input = input_is_narrow(graph);
    for (int c = 0; c < 3; c++) {
        for (int v = 0; v < 256; v++) {
            net->byte_value[c][v] = ((float)v / 255.0f - graph->mean[c]) / graph->std[c];
        }
    }
    status = dice_alloc((size_t)graph->n_tensors, sizeof(dice_tensor), &memory);
    net->tensors = memory;
    if (status != DICE_OK) {
        goto done;
    }
    memcpy(net->tensors, graph->tensors, (size_t)graph->n_tensors * sizeof(dice_tensor));
    status = dice_alloc_zero((size_t)graph->n_ops, sizeof(dice_step), &memory);
    net->steps = memory;
    for (int32_t i = 0; i < graph->n_ops && status == DICE_OK; i++) {
        net->n_steps = i + 1;
        status = make_step(net, &graph->ops[i], &net->steps[i]);
    }
    net->group = net->weight_bytes > LARGE_WEIGHTS ? 4 : 1;
done:
    if (status != DICE_OK) {
        net_free(net);
        return status;
    }
    *out = net;
    return DICE_OK;
}

static int32_t root_of(const dice_net *net, int32_t tensor)
{
    const int32_t parent = net->tensors[tensor].parent;
    return parent == DICE_NONE ? tensor : parent;
}

dice_view dice_net_view(const dice_net *net, int32_t tensor, float *arena)
{
    const int32_t root = root_of(net, tensor), border = net->border[root];
    dice_view view = {.channels = net->tensors[tensor].channels,
                      .offset = net->tensors[tensor].offset,
                      .height = net->plan.height[root],
                      .width = net->plan.width[root],
                      .border = border};
    if (tensor == root) {
        view.offset = 0;
    }
    const int32_t pixel = net->narrow_input && tensor == net->input ? view.channels : DICE_BLOCK;
    view.pitch = (ptrdiff_t)(view.width + 2 * border) * pixel;
    view.plane = (ptrdiff_t)(view.height + 2 * border) * view.pitch;
    view.data = arena + net->plan.offset[root] / sizeof(float) + border * view.pitch + border * pixel;
    return view;
}

/* Room for any tensor with a border of one pixel, the most that is kept. */
static size_t tensor_bytes(int32_t channels, int32_t height, int32_t width)
{
    const size_t blocks = ((size_t)channels + DICE_BLOCK - 1) / DICE_BLOCK;
    return blocks * ((size_t)height + 2) * ((size_t)width + 2) * DICE_BLOCK * sizeof(float);
}

static void choose_borders(dice_net *net)
{
    for (int32_t i = 0; i < net->n_tensors; i++) {
        net->border[i] = 0;
    }
    for (int32_t i = 0; i < net->n_steps; i++) {
        const dice_step *step = &net->steps[i];
        if (step->op.kind == DICE_OP_CONV && step->conv.method->in_place && step->conv.pad > 0) {
            net->border[root_of(net, step->op.x)] = step->conv.pad;
        }
    }
}

dice_status dice_net_plan(dice_net *net, int32_t height, int32_t width, int threads)
{
    if (net->memory != NULL && net->height == height && net->width == width && net->threads == threads) {
        return DICE_OK;
    }
    dice_graph shape = {.tensors = net->tensors,
                        .n_tensors = net->n_tensors,
                        .input = net->input,
                        .output = net->output,
                        .n_ops = net->n_steps};
    void *memory, *ops = NULL;
    dice_plan plan = {0};
    dice_status status = dice_alloc((size_t)net->n_steps, sizeof(dice_op), &ops);
    if (status != DICE_OK) {
        return status;
    }
    shape.ops = ops;
    for (int32_t i = 0; i < net->n_steps; i++) {
        shape.ops[i] = net->steps[i].op;
    }
    status = dice_plan_make(&shape, height, width, tensor_bytes, &plan);
    if (status == DICE_OK && net->border == NULL) {
        status = dice_alloc((size_t)net->n_tensors, sizeof(int32_t), &memory);
        net->border = memory;
    }
    if (status != DICE_OK) {
        goto done;
    }
    choose_borders(net);
    size_t scratch = 0;
    for (int32_t i = 0; i < net->n_steps; i++) {
        if (net->steps[i].op.kind == DICE_OP_CONV) {
            const int32_t y = root_of(net, net->steps[i].op.y);
            const dice_conv *conv = &net->steps[i].conv;
            const size_t bytes = conv->method->scratch(conv, plan.height[y], plan.width[y],
                                                       (size_t)net->group);
            scratch = bytes > scratch ? bytes : scratch;
        }
    }
    const size_t arena = dice_align_up(plan.arena_bytes);
    scratch = dice_align_up(scratch);
    const size_t each = arena * (size_t)net->group + scratch;
    status = dice_alloc((size_t)threads, each, &memory);
    if (status != DICE_OK) {
        goto done;
    }
    dice_free(net->memory);
    dice_plan_free(&net->plan);
    net->memory = memory;
    net->memory_bytes = (size_t)threads * each;
    net->plan = plan;
    plan = (dice_plan){0};
    net->image_floats = arena / sizeof(float);
    net->scratch_bytes = scratch;
    net->height = height;
    net->width = width;
    net->threads = threads;
done:
    dice_plan_free(&plan);
    dice_free(ops);
    return status;
}

static dice_status net_forward(dice_net *net, const dice_images *images, float *features)
{
    pthread_mutex_lock(&net->lock);
    dice_status status = dice_net_plan(net, images->height, images->width, dice_threads_count());
    if (status == DICE_OK) {
        status = dice_net_forward(net, images, features);
    }
    pthread_mutex_unlock(&net->lock);
    return status;
}

static void net_info(const dice_net *net, dice_net_info *info)
{
    *info = (dice_net_info){net->memory_bytes, net->weight_bytes, net->kernels->name};
}

static const char *unavailable(void)
{
    return dice_cpu_kernels_for(dice_isa_native()) == NULL ? "no fast kernels for this processor" : NULL;
}

const dice_backend dice_backend_cpu = {
    .abi = DICE_BACKEND_ABI,
    .name = "cpu",
    .unavailable = unavailable,
    .net_create = net_create,
    .net_forward = net_forward,
    .net_info = net_info,
    .net_free = net_free,
    .linear_create = dice_linear_create,
    .linear_forward = dice_linear_forward,
    .linear_info = dice_linear_info,
    .linear_free = dice_linear_free,
};
