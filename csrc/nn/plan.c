/* Shapes, lifetimes and arena offsets. See plan.h.
 *
 * A tensor with storage of its own lives from the first write to the last read of it or of a slice of it.
 * Tensors are placed from the largest down, each into the tightest gap between those that live at the same
 * time. */
#include "nn/plan.h"

#include <stdlib.h>

#include "base/memory.h"
#include "base/sizes.h"

typedef struct storage { /* one tensor with storage of its own */
    int32_t tensor;
    int32_t first, last; /* ops during which it lives, both included */
    size_t bytes, offset;
} storage;

/* Sets the size of the tensor that holds `id`, and with it that of all its slices. */
static dice_status set_size(const dice_graph *graph, int32_t id, int32_t height, int32_t width,
                            const char *layer, dice_plan *plan)
{
    const int32_t root = dice_tensor_root(graph, id);
    if (plan->height[root] != 0 && (plan->height[root] != height || plan->width[root] != width)) {
        return dice_fail(DICE_E_INPUT, "layer %s: writes %d x %d pixels into a tensor of %d x %d", layer,
                         height, width, plan->height[root], plan->width[root]);
    }
    plan->height[root] = height;
    plan->width[root] = width;
    return DICE_OK;
}

static dice_status op_size(const dice_graph *graph, const dice_op *op, dice_plan *plan)
{
    const int32_t x = dice_tensor_root(graph, op->x);
    if (plan->height[x] == 0) {
        return dice_fail(DICE_E_INPUT, "layer %s: reads a tensor that nothing has written", op->name);
    }
    int32_t height = plan->height[x], width = plan->width[x];
    if (!dice_op_size(op, &height, &width)) {
        return dice_fail(DICE_E_INPUT,
                         "images of %d x %d pixels are too small: %d x %d are left before layer %s",
                         plan->height[dice_tensor_root(graph, graph->input)],
                         plan->width[dice_tensor_root(graph, graph->input)], height, width, op->name);
    }
    if (op->residual != DICE_NONE) {
        const int32_t r = dice_tensor_root(graph, op->residual);
        if (plan->height[r] != height || plan->width[r] != width) {
            return dice_fail(DICE_E_INPUT, "layer %s: a residual of %d x %d pixels, want %d x %d", op->name,
                             plan->height[r], plan->width[r], height, width);
        }
    }
    return set_size(graph, op->y, height, width, op->name, plan);
}

/* stored (n_tensors) = when each tensor lives: first > last for slices, which have no storage, and for unused
 * tensors. The input lives from op 0 on, the output past the last op. */
static void find_lives(const dice_graph *graph, storage *stored)
{
    for (int32_t t = 0; t < graph->n_tensors; t++) {
        stored[t] = (storage){.tensor = t, .first = INT32_MAX, .last = -1};
    }
    stored[dice_tensor_root(graph, graph->input)].first = 0;
    for (int32_t i = 0; i < graph->n_ops; i++) {
        const dice_op *op = &graph->ops[i];
        storage *y = &stored[dice_tensor_root(graph, op->y)];
        y->first = dice_least32(i, y->first);
        y->last = i;
        stored[dice_tensor_root(graph, op->x)].last = i;
        if (op->residual != DICE_NONE) {
            stored[dice_tensor_root(graph, op->residual)].last = i;
        }
    }
    stored[dice_tensor_root(graph, graph->output)].last = graph->n_ops;
}

static int larger_first(const void *a, const void *b)
{
    const storage *x = a, *y = b;
    if (x->bytes != y->bytes) {
        return x->bytes < y->bytes ? 1 : -1;
    }
    return x->tensor < y->tensor ? -1 : 1;
}

/* The offset of the tightest gap for `mine` between `neighbours` (count, sorted by offset), which live at the
 * same time. */
static size_t best_offset(const storage *mine, storage *const *neighbours, int32_t count)
{
    size_t end = 0, best = SIZE_MAX, best_gap = SIZE_MAX;
    for (int32_t i = 0; i < count; i++) {
        const storage *other = neighbours[i];
        if (other->first > mine->last || mine->first > other->last) {
            continue;
        }
        if (other->offset > end) {
            const size_t gap = other->offset - end;
            if (gap >= mine->bytes && gap < best_gap) {
                best = end;
                best_gap = gap;
            }
        }
        end = dice_most(end, other->offset + other->bytes);
    }
    return best == SIZE_MAX ? end : best;
}

/* Gives each of stored (count) its offset; placed (count) is working memory. Returns the arena's bytes. */
static size_t place(storage *stored, int32_t count, storage **placed)
{
    size_t arena = 0;
    qsort(stored, (size_t)count, sizeof *stored, larger_first);
    for (int32_t i = 0; i < count; i++) {
        storage *mine = &stored[i];
        mine->offset = best_offset(mine, placed, i);
        int32_t at = i;
        for (; at > 0 && placed[at - 1]->offset > mine->offset; at--) {
            placed[at] = placed[at - 1];
        }
        placed[at] = mine;
        arena = dice_most(arena, mine->offset + mine->bytes);
    }
    return arena;
}

static dice_status make_arena(const dice_graph *graph, dice_tensor_bytes bytes, dice_plan *plan)
{
    void *stored_memory = NULL, *placed_memory = NULL;
    dice_status status = dice_alloc((size_t)graph->n_tensors, sizeof(storage), &stored_memory);
    if (status == DICE_OK) {
        status = dice_alloc((size_t)graph->n_tensors, sizeof(storage *), &placed_memory);
    }
    if (status != DICE_OK) {
        goto done;
    }
    storage *stored = stored_memory;
    find_lives(graph, stored);
    int32_t count = 0;
    for (int32_t t = 0; t < graph->n_tensors; t++) {
        if (stored[t].first > stored[t].last) {
            continue; /* a slice, or unused */
        }
        stored[count] = stored[t];
        size_t size = bytes(graph->tensors[t].channels, plan->height[t], plan->width[t]);
        size = dice_align_up(size);
        /* Tensors that are a multiple of a page apart would compete for the same lines of the L1 cache. */
        stored[count++].bytes = size % 4096 == 0 ? size + 5 * DICE_ALIGN : size;
    }
    plan->arena_bytes = place(stored, count, placed_memory);
    for (int32_t i = 0; i < count; i++) {
        plan->offset[stored[i].tensor] = stored[i].offset;
    }
    for (int32_t t = 0; t < graph->n_tensors; t++) {
        plan->offset[t] = plan->offset[dice_tensor_root(graph, t)];
    }
done:
    dice_free(stored_memory);
    dice_free(placed_memory);
    return status;
}

dice_status dice_plan_make(const dice_graph *graph, int32_t height, int32_t width, dice_tensor_bytes bytes,
                           dice_plan *plan)
{
    enum { MAX_SIDE = 1 << 14 };
    *plan = (dice_plan){0};
    if (height < 1 || width < 1 || height > MAX_SIDE || width > MAX_SIDE) {
        return dice_fail(DICE_E_INPUT, "images of %d x %d pixels: want 1 to %d a side", height, width,
                         MAX_SIDE);
    }
    void *memory = NULL;
    const size_t count = (size_t)graph->n_tensors;
    dice_status status = dice_alloc_zero(count, sizeof(int32_t), &memory);
    plan->height = memory;
    if (status == DICE_OK) {
        status = dice_alloc_zero(count, sizeof(int32_t), &memory);
        plan->width = memory;
    }
    if (status == DICE_OK) {
        status = dice_alloc_zero(count, sizeof(size_t), &memory);
        plan->offset = memory;
    }
    if (status == DICE_OK) {
        status = set_size(graph, graph->input, height, width, "input", plan);
    }
    for (int32_t i = 0; status == DICE_OK && i < graph->n_ops; i++) {
        status = op_size(graph, &graph->ops[i], plan);
    }
    for (int32_t t = 0; status == DICE_OK && t < graph->n_tensors; t++) {
        plan->height[t] = plan->height[dice_tensor_root(graph, t)];
        plan->width[t] = plan->width[dice_tensor_root(graph, t)];
    }
    if (status == DICE_OK && plan->height[graph->output] == 0) {
        status = dice_fail(DICE_E_INPUT, "nothing writes the output of the network");
    }
    if (status == DICE_OK) {
        status = make_arena(graph, bytes, plan);
    }
    if (status != DICE_OK) {
        dice_plan_free(plan);
    }
    return status;
}

void dice_plan_free(dice_plan *plan)
{
    dice_free(plan->height);
    dice_free(plan->width);
    dice_free(plan->offset);
    *plan = (dice_plan){0};
}
