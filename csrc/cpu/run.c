/* Running the steps of a network. See run.h.
 *
 * Each thread takes bundles of images through the whole network. The images that are left, fewer than there
 * are threads, are run one by one, and the threads share every step. */
#include "cpu/run.h"

#include <stdatomic.h>
#include <string.h>

#include "base/sizes.h"
#include "base/threads.h"

typedef struct job {
    const dice_steps *steps;
    const dice_layout *layout;
    const dice_images *images;
    float *features;
    size_t count, bundles; /* images [0, count) are cut into so many bundles */
    atomic_size_t next_bundle;
    const dice_step *step; /* that the threads share */
} job;

/* A share of a step: one of `count` that are as equal as can be. */
typedef struct share {
    int32_t index, count;
} share;

/* Rows [y0, y1) and channels [c0, c1) of a tensor. */
typedef struct area {
    int32_t y0, y1, c0, c1;
} area;

static void zero_pixels(float *from, ptrdiff_t count)
{
    memset(from, 0, (size_t)count * DICE_BLOCK * sizeof(float));
}

/* Zeroes the border to the left and right of an area of y, and the border above (below) it where the area has
 * the first (last) row. */
static void zero_border(const dice_view *y, area made)
{
    const ptrdiff_t b = y->border, width = y->width + 2 * b;
    if (b == 0 || made.c1 <= made.c0) {
        return;
    }
    for (int32_t block = (y->offset + made.c0) / DICE_BLOCK; block <= (y->offset + made.c1 - 1) / DICE_BLOCK;
         block++) {
        float *origin = y->data + block * y->plane - b * DICE_BLOCK; /* left end of row 0 */
        if (made.y0 == 0) {
            zero_pixels(origin - b * y->pitch, b * width);
        }
        for (int32_t row = made.y0; row < made.y1; row++) {
            zero_pixels(origin + row * y->pitch, b);
            zero_pixels(origin + row * y->pitch + (b + y->width) * DICE_BLOCK, b);
        }
        if (made.y1 == y->height) {
            zero_pixels(origin + made.y1 * y->pitch, b * width);
        }
    }
}

static void load_image(const job *work, size_t image, const float *arena)
{
    const dice_steps *steps = work->steps;
    const dice_images *images = work->images;
    const dice_view x = dice_layout_view(work->layout, steps->graph->input, arena);
    const size_t pixels = (size_t)x.height * (size_t)x.width;
    const ptrdiff_t step = steps->narrow_input ? x.channels : DICE_BLOCK;
    for (int32_t iy = 0; iy < x.height; iy++) {
        for (int32_t ix = 0; ix < x.width; ix++) {
            float *to = x.data + iy * x.pitch + ix * step;
            const size_t pixel = (size_t)iy * (size_t)x.width + (size_t)ix;
            for (int32_t c = 0; c < x.channels; c++) {
                to[(c / DICE_BLOCK) * x.plane + c % DICE_BLOCK] =
                    images->bytes != NULL
                        ? steps->byte_value[c][images->bytes[(image * pixels + pixel) * 3 + (size_t)c]]
                        : images->floats[(image * (size_t)x.channels + (size_t)c) * pixels + pixel];
            }
        }
    }
    zero_border(&x, (area){0, x.height, 0, x.channels});
}

static void store_features(const job *work, size_t image, const float *arena)
{
    const dice_view y = dice_layout_view(work->layout, work->steps->graph->output, arena);
    const size_t pixels = (size_t)y.height * (size_t)y.width;
    float *to = work->features + image * (size_t)y.channels * pixels;
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

/* [from, to) = a share of [0, count), cut at multiples of `unit`. */
static void cut(int32_t count, int32_t unit, share mine, int32_t *from, int32_t *to)
{
    const int64_t units = dice_ceil_div32(count, unit);
    const int64_t a = units * mine.index / mine.count * unit,
                  b = units * (mine.index + 1) / mine.count * unit;
    *from = dice_least32((int32_t)a, count);
    *to = dice_least32((int32_t)b, count);
}

/* Whether a step has more bytes of weights than of input. Then the images of a bundle share one pass over the
 * weights, and threads that share the step divide it by panels, if there are enough, so that each reads
 * weights of its own. */
static int has_large_weights(const dice_step *step, const dice_view *x)
{
    return step->op->kind == DICE_OP_CONV
        && step->conv.weight_bytes > (size_t)x->plane * (size_t)step->conv.blocks * sizeof(float);
}

/* Computes a share of a convolution for each image of a bundle, whose first arena is `arena`. Returns the
 * area of y that it computed. */
static area run_conv(const dice_layout *layout, const dice_step *step, const float *arena, dice_bundle bundle,
                     share mine, void *scratch)
{
    const dice_op *op = step->op;
    const dice_conv *conv = &step->conv;
    dice_conv_tensors tensors = {.x = dice_layout_view(layout, op->x, arena),
                                 .y = dice_layout_view(layout, op->y, arena)};
    if (op->residual != DICE_NONE) {
        tensors.residual = dice_layout_view(layout, op->residual, arena);
    }
    dice_conv_piece piece = {0, tensors.y.height, 0, conv->panels};
    if (mine.count > 1 && conv->panels >= 2 * mine.count && has_large_weights(step, &tensors.x)) {
        cut(conv->panels, 1, mine, &piece.p0, &piece.p1);
    } else {
        cut(tensors.y.height, conv->algorithm->row_unit, mine, &piece.y0, &piece.y1);
    }
    conv->algorithm->run(conv, &tensors, bundle, piece, scratch);
    const int32_t width = conv->vectors * DICE_BLOCK, end = piece.p1 * width;
    return (area){piece.y0, piece.y1, piece.p0 * width, dice_least32(end, conv->out)};
}

/* Computes a share of an op that is no convolution, for one image, whose tensors are x and y. Returns the
 * area of y that it computed. */
typedef area (*layer)(const dice_cpu_kernels *kernels, const dice_step *step, const dice_view *x,
                      const dice_view *y, share mine);

/* A share of the rows of y. */
static area rows_of(const dice_view *y, share mine)
{
    area made = {0, y->height, 0, y->channels};
    cut(y->height, 1, mine, &made.y0, &made.y1);
    return made;
}

/* A share of the channels of y, cut at multiples of `unit`. */
static area channels_of(const dice_view *y, int32_t unit, share mine)
{
    area made = {0, y->height, 0, y->channels};
    cut(y->channels, unit, mine, &made.c0, &made.c1);
    return made;
}

static dice_affine pre_of(const dice_step *step)
{
    return (dice_affine){step->scale, step->shift};
}

static area run_maxpool(const dice_cpu_kernels *kernels, const dice_step *step, const dice_view *x,
                        const dice_view *y, share mine)
{
    const dice_op *op = step->op;
    const area made = rows_of(y, mine);
    kernels->maxpool(x, y, op->kernel, op->stride, op->pad, op->zero_padded, made.y0, made.y1);
    return made;
}

static area run_avgpool(const dice_cpu_kernels *kernels, const dice_step *step, const dice_view *x,
                        const dice_view *y, share mine)
{
    const area made = rows_of(y, mine);
    kernels->avgpool(x, y, step->op->kernel, step->op->stride, pre_of(step), made.y0, made.y1);
    return made;
}

static area run_global_mean(const dice_cpu_kernels *kernels, const dice_step *step, const dice_view *x,
                            const dice_view *y, share mine)
{
    const area made = channels_of(y, DICE_BLOCK, mine);
    kernels->global_mean(x, y, pre_of(step), made.c0, made.c1);
    return made;
}

static area run_groupnorm(const dice_cpu_kernels *kernels, const dice_step *step, const dice_view *x,
                          const dice_view *y, share mine)
{
    const dice_op *op = step->op;
    const area made = channels_of(y, dice_groupnorm_unit(y->channels / op->groups), mine);
    kernels->groupnorm(x, y, op->groups, op->eps, step->scale, step->shift, op->relu, made.c0, made.c1);
    return made;
}

/* By kind; convolutions have run_conv. A network with an op of a missing kind is refused (dice_run_takes). */
static const layer layers[DICE_OP_KINDS] = {
    [DICE_OP_MAXPOOL] = run_maxpool,
    [DICE_OP_AVGPOOL] = run_avgpool,
    [DICE_OP_GLOBAL_MEAN] = run_global_mean,
    [DICE_OP_GROUPNORM] = run_groupnorm,
};

int dice_run_takes(dice_op_kind kind)
{
    return kind == DICE_OP_CONV || layers[kind] != NULL;
}

/* A share of a step for `images` images, in arenas one after the other from `arena` on. */
static void run_step(const job *work, const dice_step *step, const float *arena, size_t images, share mine,
                     void *scratch)
{
    const dice_op *op = step->op;
    const dice_bundle bundle = {images, work->layout->image_floats};
    area made = {0};
    if (op->kind == DICE_OP_CONV) {
        made = run_conv(work->layout, step, arena, bundle, mine, scratch);
    }
    for (size_t image = 0; image < images; image++, arena += bundle.stride) {
        const dice_view x = dice_layout_view(work->layout, op->x, arena);
        const dice_view y = dice_layout_view(work->layout, op->y, arena);
        if (op->kind != DICE_OP_CONV) {
            made = layers[op->kind](work->steps->kernels, step, &x, &y, mine);
        }
        zero_border(&y, made);
    }
}

/* Runs the whole network on images [first, first + images), on one thread, to which arenas and scratch
 * belong. */
static void run_bundle(const job *work, size_t first, size_t images, const float *arena, void *scratch)
{
    const share whole = {0, 1};
    const size_t stride = work->layout->image_floats;
    const int32_t n_steps = work->steps->graph->n_ops;
    const dice_step *step = work->steps->step;
    for (size_t i = 0; i < images; i++) {
        load_image(work, first + i, arena + i * stride);
    }
    for (int32_t s = 0; s < n_steps;) {
        int32_t end = s;
        for (; end < n_steps; end++) {
            const dice_view x = dice_layout_view(work->layout, step[end].op->x, arena);
            if (has_large_weights(&step[end], &x)) {
                break;
            }
        }
        for (size_t i = 0; i < images; i++) { /* what one step writes the next finds in the cache */
            for (int32_t t = s; t < end; t++) {
                run_step(work, &step[t], arena + i * stride, 1, whole, scratch);
            }
        }
        if (end < n_steps) {
            run_step(work, &step[end++], arena, images, whole, scratch);
        }
        s = end;
    }
    for (size_t i = 0; i < images; i++) {
        store_features(work, first + i, arena + i * stride);
    }
}

/* Takes bundles until none is left; the arenas belong to the task, whichever thread runs it. */
static dice_status run_bundles(void *context, size_t index, int thread)
{
    job *work = context;
    const float *arena = dice_layout_arena(work->layout, (int)index);
    (void)thread;
    for (;;) {
        const size_t bundle = atomic_fetch_add(&work->next_bundle, 1);
        if (bundle >= work->bundles) {
            return DICE_OK;
        }
        const size_t from = work->count * bundle / work->bundles,
                     to = work->count * (bundle + 1) / work->bundles;
        run_bundle(work, from, to - from, arena, dice_layout_scratch(work->layout, (int)index));
    }
}

static dice_status run_share(void *context, size_t index, int thread)
{
    const job *work = context;
    const share mine = {(int32_t)index, work->layout->threads};
    (void)thread;
    run_step(work, work->step, dice_layout_arena(work->layout, 0), 1, mine,
             dice_layout_scratch(work->layout, (int)index));
    return DICE_OK;
}

/* Runs the network on one image; the threads share each step. */
static dice_status run_shared(job *work, size_t image)
{
    const float *arena = dice_layout_arena(work->layout, 0);
    load_image(work, image, arena);
    for (int32_t s = 0; s < work->steps->graph->n_ops; s++) {
        work->step = &work->steps->step[s];
        const dice_status status = dice_parallel_for((size_t)work->layout->threads, run_share, work);
        if (status != DICE_OK) {
            return status;
        }
    }
    store_features(work, image, arena);
    return DICE_OK;
}

dice_status dice_run(const dice_steps *steps, const dice_layout *layout, const dice_images *images,
                     float *features)
{
    const size_t threads = (size_t)layout->threads, of_bundle = (size_t)layout->bundle;
    const size_t whole = images->n / threads * threads; /* the rest would leave threads idle */
    job work = {.steps = steps, .layout = layout, .images = images, .features = features, .count = whole};
    dice_status status = DICE_OK;
    if (whole > 0) {
        const size_t bundles = dice_ceil_div(whole, of_bundle);
        work.bundles = dice_round_up(bundles, threads);
        status = dice_parallel_for(threads, run_bundles, &work);
    }
    for (size_t image = whole; image < images->n && status == DICE_OK; image++) {
        status = run_shared(&work, image);
    }
    return status;
}
