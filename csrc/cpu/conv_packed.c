/* The convolution that fits everything: a strip of pixels is packed through the prologue and rounded to the
 * precision, then the register tiles of all panels pass over it. */
#include "base/sizes.h"
#include "cpu/conv_strip.h"
#include "cpu/conv_tile.h"

enum {
    SMALL_STRIP = 20 * 1024,  /* bytes of packed pixels that stay in L1 */
    LARGE_STRIP = 1024 * 1024 /* the same where the weights do not fit L2 beside a strip */
};

static int fits(const dice_conv *conv)
{
    (void)conv;
    return 1;
}

/* How many output pixels a strip has, in an image of `pixels`. */
static size_t strip_pixels(const dice_conv *conv, size_t pixels)
{
    const size_t each = dice_conv_block_count(conv) * DICE_BLOCK * sizeof(float);
    const size_t bytes = conv->weight_bytes > DICE_CONV_STRIP_BYTES / 2 ? LARGE_STRIP : SMALL_STRIP;
    const size_t rows = (size_t)conv->kernels->conv->max_rows[conv->vectors - 1];
    return dice_conv_strip_length(bytes, each, rows, pixels);
}

typedef struct scratch_space {
    const float **a; /* (taps, blocks) */
    float *tile;     /* DICE_CONV_TILE_FLOATS */
    float *packed;   /* (taps, blocks, strip, 16) */
} scratch_space;

static scratch_space divide_scratch(const dice_conv *conv, void *scratch)
{
    const size_t pointers = dice_conv_pointer_bytes(dice_conv_block_count(conv));
    float *tile = (float *)(void *)((char *)scratch + pointers);
    return (scratch_space){scratch, tile, tile + DICE_CONV_TILE_FLOATS};
}

static size_t scratch_bytes(const dice_conv *conv, int32_t height, int32_t width, size_t images)
{
    (void)images;
    const size_t strip = strip_pixels(conv, (size_t)height * (size_t)width);
    const size_t blocks = dice_conv_block_count(conv);
    return dice_conv_pointer_bytes(blocks)
         + (DICE_CONV_TILE_FLOATS + blocks * strip * DICE_BLOCK) * sizeof(float);
}

static void run_image(const dice_conv *conv, const dice_conv_tensors *tensors, dice_conv_piece piece,
                      scratch_space space)
{
    const dice_view *y = &tensors->y;
    const dice_conv_sum sum = {space.a, conv->taps, conv->blocks, conv->tail};
    const size_t blocks = dice_conv_block_count(conv);
    const size_t width = (size_t)y->width, end = (size_t)piece.y1 * width;
    const size_t strip = strip_pixels(conv, (size_t)y->height * width);
    for (size_t i = 0; i < blocks; i++) {
        space.a[i] = space.packed + i * strip * DICE_BLOCK;
    }
    for (size_t start = (size_t)piece.y0 * width; start < end; start += strip) {
        const size_t count = dice_least(strip, end - start);
        dice_conv_pack_strip(conv, &tensors->x, y->width, start, count, strip, space.packed);
        if (conv->parts < 3) {
            conv->kernels->round(space.packed, blocks * strip, conv->parts);
        }
        const dice_conv_span span = {{(int32_t)(start / width), (int32_t)(start % width)}, count, 0};
        for (int32_t panel = piece.p0; panel < piece.p1; panel++) {
            dice_conv_multiply(conv, &sum, span, panel, tensors, space.tile);
        }
    }
}

static void run(const dice_conv *conv, const dice_conv_tensors *tensors, dice_bundle bundle,
                dice_conv_piece piece, void *scratch)
{
    const scratch_space space = divide_scratch(conv, scratch);
    for (size_t image = 0; image < bundle.images; image++) {
        const dice_conv_tensors of_image = dice_conv_image(tensors, bundle, image);
        run_image(conv, &of_image, piece, space);
    }
}

const dice_conv_algorithm dice_conv_packed = {
    .name = "packed",
    .row_unit = 1,
    .fits = fits,
    .pack = dice_conv_pack_taps,
    .scratch = scratch_bytes,
    .run = run,
};
