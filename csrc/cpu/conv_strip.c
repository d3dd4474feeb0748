/* Packing of strips. See conv_strip.h. */
#include "cpu/conv_strip.h"
#include "base/sizes.h"

#include <string.h>

size_t dice_conv_strip_length(size_t bytes, size_t each, size_t unit, size_t all)
{
    const size_t room = bytes / each;
    return dice_least(dice_most(room / unit * unit, unit), all);
}

/* to (count, 16) = the inputs of one tap and channel block for `count` output pixels of one row, from column
 * ox on; iy is the row of x. */
static void pack_row(const dice_conv *conv, const dice_view *x, int32_t channel, int32_t iy, int32_t kx,
                     int32_t ox, int32_t count, float *to)
{
    int32_t skip = 0, end = count;
    if (iy < 0 || iy >= x->height) {
        end = 0;
    } else {
        while (skip < count && (ox + skip) * conv->stride + kx - conv->pad < 0) {
            skip++;
        }
        while (end > skip && (ox + end - 1) * conv->stride + kx - conv->pad >= x->width) {
            end--;
        }
    }
    if (end <= skip) {
        memset(to, 0, (size_t)count * DICE_BLOCK * sizeof(float));
        return;
    }
    memset(to, 0, (size_t)skip * DICE_BLOCK * sizeof(float));
    memset(to + end * DICE_BLOCK, 0, (size_t)(count - end) * DICE_BLOCK * sizeof(float));
    const int32_t ix = (ox + skip) * conv->stride + kx - conv->pad;
    const ptrdiff_t spacing = (ptrdiff_t)conv->stride * DICE_BLOCK;
    conv->kernels->conv_pack(to + skip * DICE_BLOCK, x, channel, iy * x->pitch + ix * DICE_BLOCK, spacing,
                             end - skip, (dice_affine){conv->scale, conv->shift});
}

/* One pixel of packed (blocks, strip, 16), which `to` points at = all taps and channels of an output pixel of
 * a narrow tensor, as one list. */
static void pack_narrow(const dice_conv *conv, const dice_view *x, int32_t oy, int32_t ox, size_t strip,
                        float *to)
{
    const int32_t row = conv->kernel * conv->in, ix = ox * conv->stride - conv->pad;
    const int32_t top = oy * conv->stride - conv->pad, bottom = top + conv->kernel;
    if (conv->scale == NULL && ix >= 0 && ix + conv->kernel <= x->width && top >= 0 && bottom <= x->height) {
        conv->kernels->conv_pack_narrow(to, strip * DICE_BLOCK, x->data + top * x->pitch + ix * conv->in,
                                        x->pitch, conv->kernel, row);
        return;
    }
    /* in a row of taps, the values [begin, end) lie inside the image */
    const int32_t begin = ix < 0 ? dice_least32(-ix, conv->kernel) * conv->in : 0;
    const int32_t end = ix < x->width ? dice_least32(x->width - ix, conv->kernel) * conv->in : 0;
    int32_t lane = 0;
    for (int32_t iy = top; iy < bottom; iy++) {
        const int inside = iy >= 0 && iy < x->height;
        const float *from = x->data + iy * x->pitch + ix * conv->in;
        for (int32_t i = 0; i < row; i++) {
            float value = inside && i >= begin && i < end ? from[i] : 0.0f;
            if (conv->scale != NULL && inside && i >= begin && i < end) {
                value = value * conv->scale[i % conv->in] + conv->shift[i % conv->in];
                value = value > 0.0f ? value : 0.0f;
            }
            to[lane] = value;
            if (++lane == DICE_BLOCK) {
                lane = 0;
                to += strip * DICE_BLOCK;
            }
        }
    }
}

void dice_conv_pack_strip(const dice_conv *conv, const dice_view *x, int32_t width, size_t start,
                          size_t count, size_t strip, float *packed)
{
    for (size_t done = 0; done < count;) {
        const int32_t oy = (int32_t)((start + done) / (size_t)width),
                      ox = (int32_t)((start + done) % (size_t)width);
        const int32_t run_length = (int32_t)dice_least(count - done, (size_t)(width - ox));
        float *to = packed + done * DICE_BLOCK;
        if (conv->narrow) {
            for (int32_t i = 0; i < run_length; i++) {
                pack_narrow(conv, x, oy, ox + i, strip, to + i * DICE_BLOCK);
            }
        } else {
            for (int32_t tap = 0; tap < conv->taps; tap++) {
                const int32_t iy = oy * conv->stride + tap / conv->kernel - conv->pad;
                for (int32_t b = 0; b < conv->blocks; b++, to += strip * DICE_BLOCK) {
                    pack_row(conv, x, b * DICE_BLOCK, iy, tap % conv->kernel, ox, run_length, to);
                }
            }
        }
        done += (size_t)run_length;
    }
}
