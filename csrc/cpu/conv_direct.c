/* The direct convolution: the register tiles read x where it lies, one row of the image at a time. The
 * weights of a panel pass over a strip of rows before the next panel does. */
#include "base/sizes.h"
#include "cpu/conv_strip.h"
#include "cpu/conv_tile.h"

/* Only for stride 1, float32, whole channel blocks and no prologue. pad is at most 1, since a tensor has a
 * border of at most one pixel. */
static int fits(const dice_conv *conv)
{
    return conv->parts == 3 && conv->scale == NULL && conv->stride == 1 && conv->pad <= 1 && !conv->narrow
        && conv->aligned;
}

static size_t scratch_bytes(const dice_conv *conv, int32_t height, int32_t width, size_t images)
{
    (void)height, (void)width, (void)images;
    return dice_conv_pointer_bytes(dice_conv_block_count(conv)) + DICE_CONV_TILE_FLOATS * sizeof(float);
}

/* a (taps, blocks) = the inputs of output pixel (0, 0). */
static void point_at_inputs(const dice_conv *conv, const dice_view *x, const float **a)
{
    for (int32_t ky = 0; ky < conv->kernel; ky++) {
        for (int32_t kx = 0; kx < conv->kernel; kx++) {
            const float *p = x->data + (x->offset / DICE_BLOCK) * x->plane + (ky - conv->pad) * x->pitch
                           + (kx - conv->pad) * DICE_BLOCK;
            for (int32_t b = 0; b < conv->blocks; b++, p += x->plane) {
                *a++ = p;
            }
        }
    }
}

static void run(const dice_conv *conv, const dice_conv_tensors *tensors, dice_bundle bundle,
                dice_conv_piece piece, void *scratch)
{
    const dice_view *x = &tensors->x;
    const float **a = scratch;
    float *tile = (float *)(void *)((char *)scratch + dice_conv_pointer_bytes(dice_conv_block_count(conv)));
    const dice_conv_sum sum = {a, conv->taps, conv->blocks, conv->tail};
    /* without a border the pixels of several rows are one span */
    const int joined = conv->kernel == 1 && x->pitch == (ptrdiff_t)x->width * DICE_BLOCK;
    const size_t row_bytes = (size_t)x->pitch * (size_t)conv->blocks * sizeof(float);
    int32_t strip = (int32_t)(DICE_CONV_STRIP_BYTES / row_bytes); /* rows */
    if (bundle.images > 1 || piece.p1 - piece.p0 == 1) {
        strip = piece.y1 - piece.y0;
    } else if (strip < 1) {
        strip = 1;
    }
    for (int32_t top = piece.y0; top < piece.y1; top += strip) {
        const int32_t bottom = dice_least32(top + strip, piece.y1);
        const int32_t step = joined ? bottom - top : 1;
        for (int32_t panel = piece.p0; panel < piece.p1; panel++) {
            for (size_t image = 0; image < bundle.images; image++) {
                const dice_conv_tensors of_image = dice_conv_image(tensors, bundle, image);
                point_at_inputs(conv, &of_image.x, a);
                for (int32_t row = top; row < bottom; row += step) {
                    const dice_conv_span span = {
                        {row, 0}, (size_t)step * (size_t)tensors->y.width, row * x->pitch};
                    dice_conv_multiply(conv, &sum, span, panel, &of_image, tile);
                }
            }
        }
    }
}

const dice_conv_algorithm dice_conv_direct = {
    .name = "direct",
    .row_unit = 1,
    .in_place = 1,
    .fits = fits,
    .pack = dice_conv_pack_taps,
    .scratch = scratch_bytes,
    .run = run,
};
