/* Running a planned network: image by image on each thread, or, where there are fewer
 * images than threads, every step of an image split over the threads. See net.h. */
#include <stdatomic.h>
#include <string.h>

#include "base/memory.h"
#include "base/threads.h"
#include "cpu/net.h"

typedef struct job {
    dice_net *net;
    const dice_images *images;
    float *features;
    size_t count, groups; /* images [0, count) in `groups` groups */
    atomic_size_t next_group;
    /* split steps */
    const dice_step *step;
    float *arena;
} job;

static float *thread_arena(const dice_net *net, int thread)
{
    const size_t each = net->memory_bytes / (size_t)net->threads;
    return (float *)(void *)(net->memory + each * (size_t)thread);
}

static void *thread_scratch(const dice_net *net, int thread)
{
    return thread_arena(net, thread) + net->image_floats * (size_t)net->group;
}

static void zero_pixels(float *from, ptrdiff_t count)
{
    memset(from, 0, (size_t)count * DICE_BLOCK * sizeof(float));
}

/* The border beside rows [y0, y1) of the view's blocks from channel c0 to c1, corners and ends included. */
static void zero_border(const dice_view *y, int32_t y0, int32_t y1, int32_t c0, int32_t c1)
{
    const ptrdiff_t b = y->border, width = y->width + 2 * b;
    if (b == 0 || c1 <= c0) {
        return;
    }
    for (int32_t block = (y->offset + c0) / DICE_BLOCK; block <= (y->offset + c1 - 1) / DICE_BLOCK; block++) {
        float *origin = y->data + block * y->plane - b * DICE_BLOCK; /* left end of row 0 */
        if (y0 == 0) {
            zero_pixels(origin - b * y->pitch, b * width);
        }
        for (int32_t row = y0; row < y1; row++) {
            zero_pixels(origin + row * y->pitch, b);
            zero_pixels(origin + row * y->pitch + (b + y->width) * DICE_BLOCK, b);
        }
        if (y1 == y->height) {
            zero_pixels(origin + y1 * y->pitch, b * width);
        }
    }
}

static void load_image(const dice_net *net, const dice_images *images, size_t image, float *arena)
{
    const dice_view x = dice_net_view(net, net->input, arena);
    const size_t pixels = (size_t)x.height * (size_t)x.width;
    const ptrdiff_t step = net->narrow_input ? x.channels : DICE_BLOCK;
    for (int32_t iy = 0; iy < x.height; iy++) {
        for (int32_t ix = 0; ix < x.width; ix++) {
            float *to = x.data + iy * x.pitch + ix * step;
            const size_t pixel = (size_t)iy * (size_t)x.width + (size_t)ix;
            for (int32_t c = 0; c < x.channels; c++) {
                to[(c / DICE_BLOCK) * x.plane + c % DICE_BLOCK] =
                    images->bytes != NULL
                        ? net->byte_value[c][images->bytes[(image * pixels + pixel) * 3 + (size_t)c]]
                        : images->floats[(image * (size_t)x.channels + (size_t)c) * pixels + pixel];
            }
        }
    }
    zero_border(&x, 0, x.height, 0, x.channels);
}

static void store_features(const dice_net *net, size_t image, float *arena, float *features)
{
    const dice_view y = dice_net_view(net, net->output, arena);
    const size_t pixels = (size_t)y.height * (size_t)y.width;
    float *to = features + image * (size_t)y.channels * pixels;
    for (int32_t c = 0; c < y.channels; c++) {
        const int32_t channel = y.offset + c;
        const float *from = y.data + (channel / DICE_BLOCK) * y.plane + channel % DICE_BLOCK;
        for (int32_t iy = 0; iy < y.height; iy++) {
            for (int32_t ix = 0; ix < y.width; ix++) {
                *to++ = from[iy * y.pitch + ix * DICE_BLOCK];
            }
        }
    }
}

/* Part [part, part + 1) of `parts` of [0, count), cut at multiples of `unit`. */
static void share(int32_t count, int32_t unit, int32_t part, int32_t parts, int32_t *from, int32_t *to)
{
    const int64_t units = (count + unit - 1) / unit;
    const int64_t a = units * part / parts * unit, b = units * (part + 1) / parts * unit;
    *from = (int32_t)(a < count ? a : count);
    *to = (int32_t)(b < count ? b : count);
}

/* Whether a step's weights outweigh its input: then the images of a group pass over them together, and the
 * threads that share an image each read their own part of them. */
static int has_large_weights(const dice_step *step, const dice_view *x)
{
    return step->op.kind == DICE_OP_CONV
        && step->conv.weight_bytes > (size_t)x->plane * (size_t)step->conv.blocks * sizeof(float);
}

/* One of `parts` parts of a step, for `images` images in arenas one after the other. */
static void run_step(const dice_net *net, const dice_step *step, float *arena, size_t images, int32_t part,
                     int32_t parts, void *scratch)
{
    const dice_op *op = &step->op;
    const size_t stride = net->image_floats;
    const dice_affine pre = {step->scale, step->shift};
    int32_t y0 = 0, y1, c0 = 0, c1 = net->tensors[op->y].channels;
    {
        const dice_view y = dice_net_view(net, op->y, arena);
        y1 = y.height;
        if (op->kind == DICE_OP_CONV) {
            const dice_view x = dice_net_view(net, op->x, arena);
            const dice_view residual = dice_net_view(net, op->residual == DICE_NONE ? op->y : op->residual,
                                                     arena);
            int32_t p0 = 0, p1 = step->conv.panels;
            if (parts > 1 && step->conv.panels >= 2 * parts && has_large_weights(step, &x)) {
                share(step->conv.panels, 1, part, parts, &p0, &p1);
                c0 = p0 * step->conv.vectors * DICE_BLOCK;
                c1 = p1 == step->conv.panels ? c1 : p1 * step->conv.vectors * DICE_BLOCK;
            } else {
                share(y.height, step->conv.method->row_unit, part, parts, &y0, &y1);
            }
            dice_conv_tensors tensors = {.x = x, .y = y};
            if (op->residual != DICE_NONE) {
                tensors.residual = residual;
            }
            step->conv.method->run(&step->conv, &tensors, (dice_group){images, stride},
                                   (dice_conv_piece){y0, y1, p0, p1}, scratch);
        } else if (op->kind == DICE_OP_GLOBAL_MEAN) {
            share(c1, DICE_BLOCK, part, parts, &c0, &c1);
        } else if (op->kind == DICE_OP_GROUPNORM) {
            share(c1, dice_groupnorm_span(c1 / op->groups), part, parts, &c0, &c1);
        } else {
            share(y.height, 1, part, parts, &y0, &y1);
        }
    }
    for (size_t image = 0; image < images; image++) {
        const dice_view x = dice_net_view(net, op->x, arena + image * stride);
        const dice_view y = dice_net_view(net, op->y, arena + image * stride);
        switch (op->kind) {
        case DICE_OP_CONV:
            break;
        case DICE_OP_MAXPOOL:
            net->kernels->maxpool(&x, &y, op->kernel, op->stride, op->pad, op->zero_padded, y0, y1);
            break;
        case DICE_OP_AVGPOOL:
            net->kernels->avgpool(&x, &y, op->kernel, op->stride, pre, y0, y1);
            break;
        case DICE_OP_GLOBAL_MEAN:
            net->kernels->global_mean(&x, &y, pre, c0, c1);
            break;
        case DICE_OP_GROUPNORM:
            net->kernels->groupnorm(&x, &y, op->groups, op->eps, step->scale, step->shift, op->relu, c0, c1);
            break;
        }
        zero_border(&y, y0, y1, c0, c1);
    }
}

/* Images [from, from + images) through the whole network on one thread. */
static void run_group(const job *work, size_t from, size_t images, float *arena, void *scratch)
{
    const dice_net *net = work->net;
    const size_t stride = net->image_floats;
    for (size_t i = 0; i < images; i++) {
        load_image(net, work->images, from + i, arena + i * stride);
    }
    for (int32_t s = 0; s < net->n_steps;) {
        int32_t end = s;
        for (; end < net->n_steps; end++) {
            const dice_view x = dice_net_view(net, net->steps[end].op.x, arena);
            if (has_large_weights(&net->steps[end], &x)) {
                break;
            }
        }
        for (size_t i = 0; i < images; i++) { /* what one step writes the next finds in the cache */
            for (int32_t t = s; t < end; t++) {
                run_step(net, &net->steps[t], arena + i * stride, 1, 0, 1, scratch);
            }
        }
        if (end < net->n_steps) {
            run_step(net, &net->steps[end++], arena, images, 0, 1, scratch);
        }
        s = end;
    }
    for (size_t i = 0; i < images; i++) {
        store_features(net, from + i, arena + i * stride, work->features);
    }
}

/* Takes groups until none is left; the arena belongs to the task, whichever thread runs it. */
static dice_status run_groups(void *context, size_t index, int thread)
{
    job *work = context;
    (void)thread;
    for (;;) {
        const size_t group = atomic_fetch_add(&work->next_group, 1);
        if (group >= work->groups) {
            return DICE_OK;
        }
        const size_t from = work->count * group / work->groups, to = work->count * (group + 1) / work->groups;
        run_group(work, from, to - from, thread_arena(work->net, (int)index),
                  thread_scratch(work->net, (int)index));
    }
}

static dice_status run_part(void *context, size_t index, int thread)
{
    const job *work = context;
    (void)thread;
    run_step(work->net, work->step, work->arena, 1, (int32_t)index, work->net->threads,
             thread_scratch(work->net, (int)index));
    return DICE_OK;
}

/* One image, each step split over the threads. */
static dice_status run_split(job *work, size_t image)
{
    dice_net *net = work->net;
    work->arena = thread_arena(net, 0);
    load_image(net, work->images, image, work->arena);
    for (int32_t s = 0; s < net->n_steps; s++) {
        work->step = &net->steps[s];
        const dice_status status = dice_parallel_for((size_t)net->threads, run_part, work);
        if (status != DICE_OK) {
            return status;
        }
    }
    store_features(net, image, work->arena, work->features);
    return DICE_OK;
}

dice_status dice_net_forward(dice_net *net, const dice_images *images, float *features)
{
    const size_t threads = (size_t)net->threads;
    const size_t whole = images->n / threads * threads; /* the rest would leave threads idle */
    job work = {.net = net, .images = images, .features = features, .count = whole};
    dice_status status = DICE_OK;
    if (whole > 0) {
        const size_t groups = (whole + (size_t)net->group - 1) / (size_t)net->group;
        work.groups = (groups + threads - 1) / threads * threads;
        status = dice_parallel_for(threads, run_groups, &work);
    }
    for (size_t image = whole; image < images->n && status == DICE_OK; image++) {
        status = run_split(&work, image);
    }
    return status;
}
