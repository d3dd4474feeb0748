/* Convolution on the tile unit (AMX), for every shape and every precision, float32 too: each factor is a sum
 * of one to three bfloat16 parts.
 *
 * A strip of pixels is split into parts once, then the weights of all panels of 32 outputs pass over it. The
 * channel blocks of all taps form one list; the unit takes two blocks at a time, a pair. */
#include "base/bf16.h"
#include "base/memory.h"
#include "base/sizes.h"
#include "cpu/conv_strip.h"
#include "cpu/conv_tile.h"

enum {
    ROWS = 32,           /* pixels of a tile */
    PANEL = 32,          /* outputs of a tile */
    LANES = 32,          /* values of a pixel in a pair of blocks */
    PAIR = PANEL * LANES /* bfloat16 weights of a pair, in one part: two registers */
};

static int fits(const dice_conv *conv)
{
    return conv->kernels->amx != NULL;
}

static size_t pair_count(const dice_conv *conv)
{
    return dice_ceil_div(dice_conv_block_count(conv), 2);
}

/* How many channels block `index` of the list has; 0 past the end of the list. */
static int block_lanes(const dice_conv *conv, size_t index)
{
    if (index >= dice_conv_block_count(conv)) {
        return 0;
    }
    return (int32_t)(index % (size_t)conv->blocks) + 1 == conv->blocks ? conv->tail : DICE_BLOCK;
}

/* Weight of output o, block `index` of the list and lane, from weight (out, in, taps). */
static float weight_at(const dice_conv *conv, const float *weight, size_t o, size_t index, int lane)
{
    if (o >= (size_t)conv->out || lane >= block_lanes(conv, index)) {
        return 0.0f;
    }
    const size_t taps = (size_t)conv->kernel * (size_t)conv->kernel, in = (size_t)conv->in;
    size_t tap = index / (size_t)conv->blocks, c = index % (size_t)conv->blocks * DICE_BLOCK + (size_t)lane;
    if (conv->narrow) { /* one sum over (tap, channel) */
        tap = c / in;
        c %= in;
    }
    return weight[(o * in + c) * taps + tap];
}

static uint16_t upper_half(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)(bits >> 16);
}

/* Packs weights as bfloat16 (panels, pairs, parts, 2 registers, 16 lanes, 16 outputs, 2 halves). The two
 * halves are the weights of the same lane in both blocks of the pair, which the unit multiplies at once. */
static dice_status pack_weight(dice_conv *conv, const float *weight)
{
    const size_t pairs = pair_count(conv), parts = (size_t)conv->parts;
    const size_t count = (size_t)conv->panels * pairs * parts * PAIR;
    const dice_status status = dice_alloc(count, sizeof(uint16_t), &conv->weight);
    if (status != DICE_OK) {
        return status;
    }
    conv->weight_bytes = count * sizeof(uint16_t);
    for (size_t panel = 0; panel < (size_t)conv->panels; panel++) {
        for (size_t pair = 0; pair < pairs; pair++) {
            uint16_t *to = (uint16_t *)conv->weight + (panel * pairs + pair) * parts * PAIR;
            for (size_t n = 0; n < PANEL; n++) {
                for (int lane = 0; lane < DICE_BLOCK; lane++) {
                    for (size_t half = 0; half < 2; half++) {
                        /* (2 registers, lanes, outputs of a register, halves) */
                        const size_t at = (n / 16) * (PAIR / 2) + (size_t)lane * LANES + (n % 16) * 2 + half;
                        float rest = weight_at(conv, weight, panel * PANEL + n, 2 * pair + half, lane);
                        for (size_t part = 0; part < parts; part++) {
                            const float rounded = dice_bf16_round(rest);
                            to[part * PAIR + at] = upper_half(rounded);
                            rest -= rounded;
                        }
                    }
                }
            }
        }
    }
    return DICE_OK;
}

/* Whether the inputs of the output pixels are consecutive in x, so that they are split without packing. */
static int reads_in_place(const dice_conv *conv, const dice_view *x)
{
    return conv->kernel == 1 && conv->stride == 1 && conv->pad == 0 && conv->scale == NULL && !conv->narrow
        && x->offset % DICE_BLOCK == 0 && x->pitch == (ptrdiff_t)x->width * DICE_BLOCK;
}

static size_t split_bytes(const dice_conv *conv) /* bytes of a pixel */
{
    return pair_count(conv) * (size_t)conv->parts * LANES * sizeof(uint16_t);
}

static size_t strip_pixels(const dice_conv *conv, size_t pixels)
{
    return dice_conv_strip_length(DICE_CONV_STRIP_BYTES, split_bytes(conv), ROWS,
                                  dice_round_up(pixels, ROWS));
}

static size_t scratch_bytes(const dice_conv *conv, int32_t height, int32_t width, size_t images)
{
    (void)images;
    const size_t strip = strip_pixels(conv, (size_t)height * (size_t)width);
    return strip * (dice_conv_block_count(conv) * DICE_BLOCK * sizeof(float) + split_bytes(conv))
         + ROWS * PANEL * sizeof(float);
}

/* split (pairs, parts, strip, 32) = the bfloat16 parts of the inputs of output pixels [start, start + count).
 * They are packed first, to packed (taps, blocks, strip, 16), unless they can be read in place. */
static void split_strip(const dice_conv *conv, const dice_view *x, int32_t width, size_t start, size_t count,
                        size_t strip, float *packed, uint16_t *split)
{
    const size_t pairs = pair_count(conv), parts = (size_t)conv->parts;
    const float *from = packed;
    ptrdiff_t plane = (ptrdiff_t)strip * DICE_BLOCK;
    if (reads_in_place(conv, x)) {
        from = x->data + (x->offset / DICE_BLOCK) * x->plane + (ptrdiff_t)start * DICE_BLOCK;
        plane = x->plane;
    } else {
        dice_conv_pack_strip(conv, x, width, start, count, strip, packed);
    }
    for (size_t pair = 0; pair < pairs; pair++) {
        const float *a = from + 2 * (ptrdiff_t)pair * plane;
        const int lanes_b = block_lanes(conv, 2 * pair + 1);
        conv->kernels->amx->split(a, block_lanes(conv, 2 * pair), lanes_b > 0 ? a + plane : a, lanes_b,
                                  (int32_t)count, conv->parts, strip, split + pair * parts * strip * LANES);
    }
}

static void run_image(const dice_conv *conv, const dice_conv_tensors *tensors, dice_conv_piece piece,
                      void *scratch)
{
    const dice_amx_kernels *amx = conv->kernels->amx;
    const dice_view *y = &tensors->y;
    const size_t width = (size_t)y->width, end = (size_t)piece.y1 * width;
    const size_t strip = strip_pixels(conv, (size_t)y->height * width);
    float *c = scratch, *packed = c + ROWS * PANEL;
    uint16_t *split = (uint16_t *)(void *)(packed + dice_conv_block_count(conv) * strip * DICE_BLOCK);
    amx->begin();
    for (size_t start = (size_t)piece.y0 * width; start < end; start += strip) {
        const size_t count = dice_least(strip, end - start);
        split_strip(conv, &tensors->x, y->width, start, count, strip, packed, split);
        for (int32_t panel = piece.p0; panel < piece.p1; panel++) {
            const uint16_t *w = dice_conv_panel_weight(conv, panel);
            dice_conv_pixel at = {(int32_t)(start / width), (int32_t)(start % width)};
            for (size_t row = 0; row < count; row += ROWS) {
                const int rows = (int)dice_least(count - row, ROWS);
                amx->tile(split + row * LANES, strip, (int32_t)pair_count(conv), conv->parts, w,
                          conv->bias + panel * PANEL, c);
                dice_conv_store_tile(conv, c, rows, panel, tensors, &at);
            }
        }
    }
    amx->end();
}

static void run(const dice_conv *conv, const dice_conv_tensors *tensors, dice_bundle bundle,
                dice_conv_piece piece, void *scratch)
{
    for (size_t image = 0; image < bundle.images; image++) {
        const dice_conv_tensors of_image = dice_conv_image(tensors, bundle, image);
        run_image(conv, &of_image, piece, scratch);
    }
}

const dice_conv_algorithm dice_conv_amx = {
    .name = "amx",
    .vectors = PANEL / DICE_BLOCK,
    .row_unit = 1,
    .fits = fits,
    .pack = pack_weight,
    .scratch = scratch_bytes,
    .run = run,
};
