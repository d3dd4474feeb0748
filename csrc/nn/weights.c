/* Looking up weights and saying what is wrong with them. See weights.h. */
#include "nn/weights.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static dice_weight *lookup(const dice_weights *weights, const char *name)
{
    for (size_t i = 0; i < weights->count; i++) {
        if (strcmp(weights->items[i].name, name) == 0) {
            return &weights->items[i];
        }
    }
    return NULL;
}

const dice_weight *dice_weights_find(const dice_weights *weights, const char *format, ...)
{
    char name[DICE_WEIGHT_NAME];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    return lookup(weights, name);
}

static void write_shape(int32_t ndim, const int32_t *shape, char *text, size_t room)
{
    size_t used = 0;
    text[0] = '\0';
    for (int32_t i = 0; i < ndim && used < room; i++) {
        used += (size_t)snprintf(text + used, room - used, "%s%d", i == 0 ? "" : ", ", shape[i]);
    }
}

dice_status dice_weights_get(dice_weights *weights, const char *name, int32_t ndim, const int32_t *shape,
                             const float **data)
{
    char got[64], want[64], held[256];
    dice_weight *found = lookup(weights, name);
    if (found == NULL) {
        dice_weights_list(weights, 1, held, sizeof held);
        return dice_fail(DICE_E_INPUT, "layer %s: missing; not asked for so far: %s", name, held);
    }
    if (found->ndim != ndim || memcmp(found->shape, shape, (size_t)ndim * sizeof *shape) != 0) {
        write_shape(found->ndim, found->shape, got, sizeof got);
        write_shape(ndim, shape, want, sizeof want);
        return dice_fail(DICE_E_INPUT, "layer %s: got (%s), want (%s)", name, got, want);
    }
    found->used = 1;
    *data = found->data;
    return DICE_OK;
}

/* Whether this is num_batches_tracked, which torch stores with every BatchNorm and inference never needs. */
static int is_counter(const dice_weight *weight)
{
    static const char suffix[] = "num_batches_tracked";
    const size_t length = strlen(weight->name);
    return length >= sizeof suffix - 1 && strcmp(weight->name + length - (sizeof suffix - 1), suffix) == 0;
}

void dice_weights_list(const dice_weights *weights, int unused_only, char *text, size_t room)
{
    char shape[64];
    size_t used = 0, listed = 0, count = 0;
    text[0] = '\0';
    for (size_t i = 0; i < weights->count; i++) {
        const dice_weight *weight = &weights->items[i];
        if (is_counter(weight) || (unused_only && weight->used)) {
            continue;
        }
        if (++count <= 4 && used < room) {
            write_shape(weight->ndim, weight->shape, shape, sizeof shape);
            used += (size_t)snprintf(text + used, room - used, "%s%.60s (%s)", listed++ ? ", " : "",
                                     weight->name, shape);
        }
    }
    if (count > listed && used < room) {
        snprintf(text + used, room - used, ", ... (%zu in all)", count);
    }
    if (count == 0) {
        snprintf(text, room, "nothing");
    }
}

dice_status dice_weights_check_used(const dice_weights *weights, const char *arch)
{
    char held[320];
    for (size_t i = 0; i < weights->count; i++) {
        if (!weights->items[i].used && !is_counter(&weights->items[i])) {
            dice_weights_list(weights, 1, held, sizeof held);
            return dice_fail(DICE_E_INPUT, "%s has no layer for %s", arch, held);
        }
    }
    return DICE_OK;
}
