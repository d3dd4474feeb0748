/* Making a convolution ready. See conv.h. */
#include "cpu/conv.h"

#include "base/memory.h"
#include "base/sizes.h"
#include "cpu/conv_tile.h"

static const dice_conv_algorithm *choose_algorithm(const dice_conv *conv)
{
    /* the fastest first; the last fits everything */
    static const dice_conv_algorithm *const algorithms[] = {&dice_conv_amx, &dice_conv_winograd,
                                                            &dice_conv_direct, &dice_conv_packed};
    size_t i = 0;
    while (!algorithms[i]->fits(conv)) {
        i++;
    }
    return algorithms[i];
}

dice_status dice_conv_init(dice_conv *conv, const dice_op *op, const dice_conv_setting *setting)
{
    const int32_t in = setting->in, out = setting->out, taps = op->kernel * op->kernel;
    const int32_t length = setting->narrow ? taps * in : in; /* channels of a tap */
    const int32_t blocks = dice_ceil_div32(length, DICE_BLOCK);
    *conv = (dice_conv){.kernels = setting->kernels,
                        .in = in,
                        .out = out,
                        .kernel = op->kernel,
                        .stride = op->stride,
                        .pad = op->pad,
                        .relu = op->relu,
                        .narrow = setting->narrow,
                        .aligned = setting->aligned,
                        .may_use_winograd = setting->may_use_winograd,
                        .parts = setting->parts,
                        .taps = setting->narrow ? 1 : taps,
                        .blocks = blocks,
                        .tail = length - (blocks - 1) * DICE_BLOCK};
    dice_status status = DICE_OK;
    if (op->pre_scale != NULL) {
        const size_t room = (size_t)blocks * DICE_BLOCK;
        status = dice_alloc_padded(op->pre_scale, (size_t)in, room, &conv->scale);
        if (status == DICE_OK) {
            status = dice_alloc_padded(op->pre_shift, (size_t)in, room, &conv->shift);
        }
    }
    if (status == DICE_OK) {
        conv->algorithm = choose_algorithm(conv);
        conv->vectors = conv->algorithm->vectors > 0 ? conv->algorithm->vectors
                                                     : dice_conv_tile_vectors(conv);
        const int32_t width = conv->vectors * DICE_BLOCK;
        conv->panels = dice_ceil_div32(out, width);
        status = dice_alloc_padded(op->bias, (size_t)out, (size_t)conv->panels * (size_t)width, &conv->bias);
    }
    if (status == DICE_OK) {
        status = conv->algorithm->pack(conv, op->weight);
    }
    if (status != DICE_OK) {
        dice_conv_free(conv);
    }
    return status;
}

void dice_conv_free(dice_conv *conv)
{
    dice_free(conv->weight);
    dice_free(conv->bias);
    dice_free(conv->scale);
    dice_free(conv->shift);
    *conv = (dice_conv){0};
}
