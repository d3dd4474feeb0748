/* The scalar reference: every op as its formula, sums in double, results stored as float32.
 *
 * It is the truth that the fast back ends are tested against, and it runs where none of them can. A tensor is
 * (C, H, W) of one image; each image has an arena of its own while it is computed. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/reference_linear.h"
#include "base/bf16.h"
#include "base/memory.h"
#include "base/sizes.h"
#include "base/threads.h"
#include "nn/plan.h"

struct dice_net {
    dice_graph *graph; /* a copy */
    int parts;         /* bfloat16 parts of a convolution's factors: dice_precision_parts */
    size_t weight_bytes;
    atomic_size_t arena_bytes;
};

/* What the tasks of one forward call share. */
typedef struct run {
    const dice_graph *graph;
    int parts;
    const dice_images *images;
    dice_plan plan;
    size_t scratch; /* doubles of working memory that an op needs, at most */
    float *features;
} run;

static size_t tensor_bytes(int32_t channels, int32_t height, int32_t width)
{
    return (size_t)channels * (size_t)height * (size_t)width * sizeof(float);
}

/* One tensor of one image. */
typedef struct map {
    float *data; /* (channels, height, width) */
    size_t channels, height, width;
} map;

static map map_of(const run *r, char *arena, int32_t id)
{
    const dice_tensor *t = &r->graph->tensors[id];
    const size_t height = (size_t)r->plan.height[id], width = (size_t)r->plan.width[id];
    float *data = (float *)(void *)(arena + r->plan.offset[id]);
    return (map){data + (size_t)t->offset * height * width, (size_t)t->channels, height, width};
}

static double pre(const dice_op *op, size_t channel, float x)
{
    if (op->pre_scale == NULL) {
        return (double)x;
    }
    const double y = (double)x * (double)op->pre_scale[channel] + (double)op->pre_shift[channel];
    return y > 0 ? y : 0;
}

static float act(const dice_op *op, double x)
{
    return op->relu && !(x > 0) ? 0.0f : (float)x;
}

/* padded (C, H + 2 pad, W + 2 pad) = pre(x), rounded to `parts` bfloat16 parts, with zeros around it. */
static void pad_input(const dice_op *op, map x, int parts, double *padded)
{
    const size_t pad = (size_t)op->pad, width = x.width + 2 * pad, height = x.height + 2 * pad;
    memset(padded, 0, x.channels * height * width * sizeof *padded);
    for (size_t c = 0; c < x.channels; c++) {
        for (size_t i = 0; i < x.height; i++) {
            const float *from = x.data + (c * x.height + i) * x.width;
            double *to = padded + (c * height + i + pad) * width + pad;
            for (size_t j = 0; j < x.width; j++) {
                const double value = pre(op, c, from[j]);
                to[j] = parts == 3 ? value : (double)dice_bf16_sum((float)value, parts);
            }
        }
    }
}

enum { CONV_O = 4, CONV_W = 128 }; /* outputs that are summed together: channels, and pixels of a row */

/* sums[o][j] = the sums over input channels and taps for `count` pixels of row `i`, from column `j0` on. */
static void conv_sums(const dice_op *op, map x, const double *padded, size_t o, size_t channels, size_t i,
                      size_t j0, size_t count, double sums[CONV_O][CONV_W])
{
    const size_t kernel = (size_t)op->kernel, stride = (size_t)op->stride, pad = (size_t)op->pad;
    const size_t width = x.width + 2 * pad, height = x.height + 2 * pad, taps = kernel * kernel;
    memset(sums, 0, CONV_O * sizeof sums[0]);
    for (size_t c = 0; c < x.channels; c++) {
        for (size_t tap = 0; tap < taps; tap++) {
            const double *row = padded + (c * height + i * stride + tap / kernel) * width + j0 * stride
                              + tap % kernel;
            for (size_t k = 0; k < channels; k++) {
                const double w = (double)op->weight[((o + k) * x.channels + c) * taps + tap];
                if (stride == 1) {
                    for (size_t j = 0; j < count; j++) {
                        sums[k][j] += w * row[j];
                    }
                } else {
                    for (size_t j = 0; j < count; j++) {
                        sums[k][j] += w * row[j * stride];
                    }
                }
            }
        }
    }
}

static void conv(const dice_op *op, map x, map y, const map *residual, int parts, double *padded)
{
    double sums[CONV_O][CONV_W];
    pad_input(op, x, parts, padded);
    if (op->kernel == 1 && op->stride == 1) { /* taken as one long row, which sums faster */
        x.width *= x.height;
        y.width *= y.height;
        x.height = y.height = 1;
    }
    for (size_t o = 0; o < y.channels; o += CONV_O) {
        const size_t channels = dice_least(y.channels - o, CONV_O);
        for (size_t i = 0; i < y.height; i++) {
            for (size_t j0 = 0; j0 < y.width; j0 += CONV_W) {
                const size_t count = dice_least(y.width - j0, CONV_W);
                conv_sums(op, x, padded, o, channels, i, j0, count, sums);
                for (size_t k = 0; k < channels; k++) {
                    const size_t at = ((o + k) * y.height + i) * y.width + j0;
                    const double bias = op->bias == NULL ? 0 : (double)op->bias[o + k];
                    for (size_t j = 0; j < count; j++) {
                        const double r = residual == NULL ? 0 : (double)residual->data[at + j];
                        y.data[at + j] = act(op, sums[k][j] + bias + r);
                    }
                }
            }
        }
    }
}

/* The largest or the mean value of the window at (top, left), its upper left corner, maybe outside of x. */
static double window(const dice_op *op, map x, size_t c, ptrdiff_t top, ptrdiff_t left)
{
    const int is_max = op->kind == DICE_OP_MAXPOOL;
    double largest = -INFINITY, sum = 0;
    for (ptrdiff_t i = top; i < top + op->kernel; i++) {
        for (ptrdiff_t j = left; j < left + op->kernel; j++) {
            const int inside = i >= 0 && i < (ptrdiff_t)x.height && j >= 0 && j < (ptrdiff_t)x.width;
            if (!inside && !op->zero_padded) {
                continue;
            }
            const double v = inside ? pre(op, c, x.data[(c * x.height + (size_t)i) * x.width + (size_t)j])
                                    : 0;
            largest = v > largest ? v : largest;
            sum += v;
        }
    }
    return is_max ? largest : sum / ((double)op->kernel * (double)op->kernel);
}

static void pool(const dice_op *op, map x, map y)
{
    for (size_t c = 0; c < y.channels; c++) {
        for (size_t i = 0; i < y.height; i++) {
            for (size_t j = 0; j < y.width; j++) {
                y.data[(c * y.height + i) * y.width + j] = (float)window(
                    op, x, c, (ptrdiff_t)i * op->stride - op->pad, (ptrdiff_t)j * op->stride - op->pad);
            }
        }
    }
}

static void global_mean(const dice_op *op, map x, map y)
{
    const size_t pixels = x.height * x.width;
    for (size_t c = 0; c < x.channels; c++) {
        double sum = 0;
        for (size_t i = 0; i < pixels; i++) {
            sum += pre(op, c, x.data[c * pixels + i]);
        }
        y.data[c] = (float)(sum / (double)pixels);
    }
}

static void groupnorm(const dice_op *op, map x, map y)
{
    const size_t pixels = x.height * x.width, channels = x.channels / (size_t)op->groups,
                 n = channels * pixels;
    for (size_t group = 0; group < (size_t)op->groups; group++) {
        const float *from = x.data + group * n;
        double mean = 0, variance = 0;
        for (size_t i = 0; i < n; i++) {
            mean += (double)from[i];
        }
        mean /= (double)n;
        for (size_t i = 0; i < n; i++) {
            variance += ((double)from[i] - mean) * ((double)from[i] - mean);
        }
        const double factor = 1 / sqrt(variance / (double)n + (double)op->eps);
        for (size_t i = 0; i < n; i++) {
            const size_t c = group * channels + i / pixels;
            y.data[group * n + i] = act(op, ((double)from[i] - mean) * factor * (double)op->weight[c]
                                                + (double)op->bias[c]);
        }
    }
}

static void run_op(const run *r, const dice_op *op, char *arena, double *scratch)
{
    const map x = map_of(r, arena, op->x), y = map_of(r, arena, op->y);
    switch (op->kind) {
    case DICE_OP_CONV: {
        const map residual = map_of(r, arena, op->residual == DICE_NONE ? op->y : op->residual);
        conv(op, x, y, op->residual == DICE_NONE ? NULL : &residual, r->parts, scratch);
        break;
    }
    case DICE_OP_MAXPOOL:
    case DICE_OP_AVGPOOL:
        pool(op, x, y);
        break;
    case DICE_OP_GLOBAL_MEAN:
        global_mean(op, x, y);
        break;
    case DICE_OP_GROUPNORM:
        groupnorm(op, x, y);
        break;
    }
}

/* input = image `index`. Bytes are normalised by torchvision's operations in float32, one by one. */
static void read_image(const run *r, size_t index, map input)
{
    const size_t pixels = input.height * input.width;
    if (r->images->floats != NULL) {
        memcpy(input.data, r->images->floats + index * input.channels * pixels,
               input.channels * pixels * sizeof(float));
        return;
    }
    const uint8_t *bytes = r->images->bytes + index * 3 * pixels;
    for (size_t c = 0; c < 3; c++) {
        for (size_t i = 0; i < pixels; i++) {
            const float v = (float)bytes[3 * i + c] / 255.0f;
            input.data[c * pixels + i] = (v - r->graph->mean[c]) / r->graph->std[c];
        }
    }
}

static dice_status run_image(void *context, size_t index, int thread)
{
    (void)thread;
    const run *r = context;
    void *arena, *scratch = NULL;
    dice_status status = dice_alloc(r->plan.arena_bytes, 1, &arena);
    if (status == DICE_OK) {
        status = dice_alloc(r->scratch, sizeof(double), &scratch);
    }
    if (status == DICE_OK) {
        read_image(r, index, map_of(r, arena, r->graph->input));
        for (int32_t i = 0; i < r->graph->n_ops; i++) {
            run_op(r, &r->graph->ops[i], arena, scratch);
        }
        const map output = map_of(r, arena, r->graph->output);
        const size_t count = output.channels * output.height * output.width;
        memcpy(r->features + index * count, output.data, count * sizeof(float));
    }
    dice_free(arena);
    dice_free(scratch);
    return status;
}

/* The number of doubles of the largest padded input of a convolution. */
static size_t scratch_of(const dice_graph *graph, const dice_plan *plan)
{
    size_t most = 0;
    for (int32_t i = 0; i < graph->n_ops; i++) {
        const dice_op *op = &graph->ops[i];
        if (op->kind == DICE_OP_CONV) {
            const size_t height = (size_t)(plan->height[op->x] + 2 * op->pad);
            const size_t width = (size_t)(plan->width[op->x] + 2 * op->pad);
            const size_t count = (size_t)graph->tensors[op->x].channels * height * width;
            most = dice_most(most, count);
        }
    }
    return most;
}

static dice_status net_forward(dice_net *net, const dice_images *images, float *features)
{
    run r = {.graph = net->graph, .parts = net->parts, .images = images, .features = features};
    dice_status status = dice_plan_make(net->graph, images->height, images->width, tensor_bytes, &r.plan);
    if (status == DICE_OK) {
        r.scratch = scratch_of(net->graph, &r.plan);
        atomic_store(&net->arena_bytes, r.plan.arena_bytes * (size_t)dice_threads_count());
        status = dice_parallel_for(images->n, run_image, &r);
    }
    dice_plan_free(&r.plan);
    return status;
}

/* *out = a copy of from (count), rounded to `parts` bfloat16 parts, which `graph` owns; NULL stays NULL. */
static dice_status copy_floats(dice_graph *graph, const float *from, size_t count, int parts,
                               const float **out)
{
    float *to = NULL;
    const dice_status status = from == NULL ? DICE_OK : dice_graph_floats(graph, count, &to);
    for (size_t i = 0; to != NULL && i < count; i++) {
        to[i] = dice_bf16_sum(from[i], parts);
    }
    *out = to;
    return status;
}

/* The weights of *to = those of *from, a convolution's rounded to `parts` bfloat16 parts. */
static dice_status copy_weights(dice_graph *graph, const dice_op *from, int parts, dice_op *to)
{
    const size_t cx = (size_t)graph->tensors[to->x].channels, cy = (size_t)graph->tensors[to->y].channels;
    dice_status status = copy_floats(graph, from->weight, dice_op_weights(graph, from),
                                     from->kind == DICE_OP_CONV ? parts : 3, &to->weight);
    if (status == DICE_OK) {
        status = copy_floats(graph, from->bias, cy, 3, &to->bias);
    }
    if (status == DICE_OK) {
        status = copy_floats(graph, from->pre_scale, cx, 3, &to->pre_scale);
    }
    return status == DICE_OK ? copy_floats(graph, from->pre_shift, cx, 3, &to->pre_shift) : status;
}

/* *out = a copy of the graph without its head, with the weights of convolutions rounded to `parts` bfloat16
 * parts. */
static dice_status copy_graph(const dice_graph *from, int parts, dice_graph **out)
{
    dice_status status = dice_graph_outline(from, out);
    for (int32_t i = 0; status == DICE_OK && i < from->n_ops; i++) {
        status = copy_weights(*out, &from->ops[i], parts, &(*out)->ops[i]);
    }
    if (status == DICE_OK) {
        (*out)->image_size = from->image_size;
        memcpy((*out)->mean, from->mean, sizeof from->mean);
        memcpy((*out)->std, from->std, sizeof from->std);
    }
    return status;
}

static void net_free(dice_net *net)
{
    if (net != NULL) {
        dice_graph_free(net->graph);
        dice_free(net);
    }
}

static dice_status net_create(const dice_graph *graph, const dice_options *options, dice_net **out)
{
    void *memory;
    dice_status status = dice_alloc_zero(1, sizeof(dice_net), &memory);
    dice_net *net = memory;
    if (status == DICE_OK) {
        net->parts = dice_precision_parts(options->precision);
        status = copy_graph(graph, net->parts, &net->graph);
    }
    if (status != DICE_OK) {
        net_free(net);
        return status;
    }
    for (int32_t i = 0; i < graph->n_ops; i++) {
        net->weight_bytes += dice_op_weights(graph, &graph->ops[i]) * sizeof(float);
    }
    *out = net;
    return DICE_OK;
}

static void net_info(const dice_net *net, dice_net_info *info)
{
    *info = (dice_net_info){.arena_bytes = atomic_load(&net->arena_bytes),
                            .weight_bytes = net->weight_bytes,
                            .kernels = "reference"};
}

static const char *unavailable(void)
{
    return NULL;
}

const dice_backend dice_backend_reference = {
    .abi = DICE_BACKEND_ABI,
    .name = "reference",
    .unavailable = unavailable,
    .net_create = net_create,
    .net_forward = net_forward,
    .net_info = net_info,
    .net_free = net_free,
    .linear_create = dice_reference_linear_create,
    .linear_forward = dice_reference_linear_forward,
    .linear_info = dice_reference_linear_info,
    .linear_free = dice_reference_linear_free,
};
