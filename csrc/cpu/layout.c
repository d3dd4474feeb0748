/* Laying out tensors and scratch. See layout.h. */
#include "cpu/layout.h"

#include "base/memory.h"
#include "base/sizes.h"
#include "nn/plan.h"

enum { LARGE_WEIGHTS = 8 << 20 }; /* bytes that exceed the caches: several images share a pass over them */

/* Bytes of a tensor with a border of one pixel, the widest there is. */
static size_t tensor_bytes(int32_t channels, int32_t height, int32_t width)
{
    const size_t blocks = dice_ceil_div((size_t)channels, DICE_BLOCK);
    return blocks * ((size_t)height + 2) * ((size_t)width + 2) * DICE_BLOCK * sizeof(float);
}

/* The most bytes of scratch that a step needs for a bundle of `bundle` images. */
static size_t scratch_bytes(const dice_steps *steps, const dice_plan *plan, int bundle)
{
    size_t most = 0;
    for (int32_t i = 0; i < steps->graph->n_ops; i++) {
        const dice_step *step = &steps->step[i];
        if (step->op->kind == DICE_OP_CONV) {
            const int32_t y = step->op->y;
            const size_t bytes = step->conv.algorithm->scratch(&step->conv, plan->height[y], plan->width[y],
                                                               (size_t)bundle);
            most = dice_most(most, bytes);
        }
    }
    return dice_align_up(most);
}

/* The view of tensor `id` in the arena that begins at `arena`. */
static dice_view make_view(const dice_steps *steps, const dice_plan *plan, int32_t id, float *arena)
{
    const dice_tensor *tensor = &steps->graph->tensors[id];
    const int32_t border = steps->border[id];
    const int32_t pixel = steps->narrow_input && id == steps->graph->input ? tensor->channels : DICE_BLOCK;
    dice_view view = {.channels = tensor->channels,
                      .offset = tensor->parent == DICE_NONE ? 0 : tensor->offset,
                      .height = plan->height[id],
                      .width = plan->width[id],
                      .border = border};
    view.pitch = (ptrdiff_t)(view.width + 2 * border) * pixel;
    view.plane = (ptrdiff_t)(view.height + 2 * border) * view.pitch;
    view.data = arena + plan->offset[id] / sizeof(float) + border * view.pitch + border * pixel;
    return view;
}

dice_status dice_layout_make(dice_layout *layout, const dice_steps *steps, int32_t height, int32_t width,
                             int threads)
{
    if (layout->memory != NULL && layout->height == height && layout->width == width
        && layout->threads == threads) {
        return DICE_OK;
    }
    dice_layout made = {.height = height,
                        .width = width,
                        .threads = threads,
                        .bundle = steps->weight_bytes > LARGE_WEIGHTS ? 4 : 1};
    dice_plan plan = {0};
    void *memory;
    dice_status status = dice_plan_make(steps->graph, height, width, tensor_bytes, &plan);
    if (status != DICE_OK) {
        return status;
    }
    status = dice_alloc((size_t)steps->graph->n_tensors, sizeof(dice_view), &memory);
    made.view = memory;
    if (status == DICE_OK) {
        const size_t arena = dice_align_up(plan.arena_bytes);
        made.image_floats = arena / sizeof(float);
        made.thread_bytes = arena * (size_t)made.bundle + scratch_bytes(steps, &plan, made.bundle);
        status = dice_alloc((size_t)threads, made.thread_bytes, &memory);
        made.memory = memory;
    }
    if (status == DICE_OK) {
        for (int32_t id = 0; id < steps->graph->n_tensors; id++) {
            made.view[id] = make_view(steps, &plan, id, dice_layout_arena(&made, 0));
        }
        dice_layout_free(layout);
        *layout = made;
    } else {
        dice_layout_free(&made);
    }
    dice_plan_free(&plan);
    return status;
}

void dice_layout_free(dice_layout *layout)
{
    dice_free(layout->view);
    dice_free(layout->memory);
    *layout = (dice_layout){0};
}

float *dice_layout_arena(const dice_layout *layout, int thread)
{
    return (float *)(void *)(layout->memory + layout->thread_bytes * (size_t)thread);
}

void *dice_layout_scratch(const dice_layout *layout, int thread)
{
    return dice_layout_arena(layout, thread) + layout->image_floats * (size_t)layout->bundle;
}

dice_view dice_layout_view(const dice_layout *layout, int32_t tensor, const float *arena)
{
    dice_view view = layout->view[tensor];
    view.data += arena - dice_layout_arena(layout, 0);
    return view;
}
