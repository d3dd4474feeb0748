/* Convolution by the register tiles. See conv_tile.h. */
#include "cpu/conv_tile.h"

#include "base/bf16.h"
#include "base/memory.h"
#include "base/sizes.h"

int dice_conv_tile_vectors(const dice_conv *conv)
{
    const int *max_rows = conv->kernels->conv->max_rows;
    const int32_t need = dice_ceil_div32(conv->out, DICE_BLOCK);
    if (need % 3 == 0 && need % 2 != 0 && max_rows[2] > 0) {
        return 3;
    }
    return need >= 2 && max_rows[1] > 0 ? 2 : 1;
}

int dice_conv_panel_vectors(const dice_conv *conv, int32_t panel)
{
    const int32_t left = dice_ceil_div32(conv->out, DICE_BLOCK) - panel * conv->vectors;
    return dice_least32(left, conv->vectors);
}

const void *dice_conv_panel_weight(const dice_conv *conv, int32_t panel)
{
    return (const char *)conv->weight + conv->weight_bytes / (size_t)conv->panels * (size_t)panel;
}

dice_status dice_conv_pack_products(dice_conv *conv, const float *weight, size_t products,
                                    dice_conv_factors factors)
{
    const size_t taps = (size_t)conv->kernel * (size_t)conv->kernel, in = (size_t)conv->in;
    const size_t room = products * in * (size_t)conv->vectors * DICE_BLOCK; /* floats of a panel */
    const size_t count = room * (size_t)conv->panels;
    void *memory;
    dice_status status = dice_alloc_zero(count, sizeof(float), &conv->weight);
    if (status == DICE_OK) {
        status = dice_alloc(products, sizeof(float), &memory);
    }
    if (status != DICE_OK) {
        return status;
    }
    float *of_kernel = memory;
    conv->weight_bytes = count * sizeof(float);
    for (int32_t panel = 0; panel < conv->panels; panel++) {
        float *to = (float *)conv->weight + (size_t)panel * room;
        const size_t width = (size_t)dice_conv_panel_vectors(conv, panel) * DICE_BLOCK;
        const size_t first = (size_t)panel * (size_t)conv->vectors * DICE_BLOCK;
        for (size_t n = 0; n < width && first + n < (size_t)conv->out; n++) {
            for (size_t c = 0; c < in; c++) {
                factors(conv, weight + ((first + n) * in + c) * taps, of_kernel);
                for (size_t i = 0; i < products; i++) {
                    to[(i * in + c) * width + n] = of_kernel[i];
                }
            }
        }
    }
    dice_free(of_kernel);
    return DICE_OK;
}

static void round_taps(const dice_conv *conv, const float *kernel, float *to)
{
    for (int i = 0; i < conv->kernel * conv->kernel; i++) {
        to[i] = dice_bf16_sum(kernel[i], conv->parts);
    }
}

dice_status dice_conv_pack_taps(dice_conv *conv, const float *weight)
{
    return dice_conv_pack_products(conv, weight, (size_t)conv->kernel * (size_t)conv->kernel, round_taps);
}

size_t dice_conv_pointer_bytes(size_t count)
{
    return dice_align_up(count * sizeof(float *));
}

void dice_conv_store_tile(const dice_conv *conv, const float *c, int rows, int32_t panel,
                          const dice_conv_tensors *tensors, dice_conv_pixel *at)
{
    const dice_view *y = &tensors->y, *residual = tensors->residual.data != NULL ? &tensors->residual : NULL;
    ptrdiff_t y_at[DICE_TILE_ROWS], residual_at[DICE_TILE_ROWS];
    for (int r = 0; r < rows; r++) {
        y_at[r] = at->y * y->pitch + at->x * DICE_BLOCK;
        if (residual != NULL) {
            residual_at[r] = at->y * residual->pitch + at->x * DICE_BLOCK;
        }
        if (++at->x == y->width) {
            at->x = 0;
            ++at->y;
        }
    }
    conv->kernels->conv_store(c, rows, dice_conv_panel_vectors(conv, panel),
                              panel * conv->vectors * DICE_BLOCK, y, y_at, residual, residual_at, conv->relu);
}

int dice_conv_fills_blocks(const dice_conv *conv, int32_t panel, const dice_conv_tensors *tensors)
{
    const int vectors = dice_conv_panel_vectors(conv, panel);
    const int32_t first = panel * conv->vectors * DICE_BLOCK;
    return dice_view_has_blocks(&tensors->y, first, vectors)
        && (tensors->residual.data == NULL || dice_view_has_blocks(&tensors->residual, first, vectors));
}

/* Whether `rows` pixels from column x on are consecutive in memory. */
static int are_adjacent(const dice_view *y, int32_t x, int rows)
{
    return x + rows <= y->width || y->border == 0;
}

void dice_conv_multiply(const dice_conv *conv, const dice_conv_sum *sum, dice_conv_span span, int32_t panel,
                        const dice_conv_tensors *tensors, float *c)
{
    const dice_view *y = &tensors->y, *residual = &tensors->residual;
    const int vectors = dice_conv_panel_vectors(conv, panel), adds = residual->data != NULL;
    const float *w = dice_conv_panel_weight(conv, panel);
    const int32_t first = panel * conv->vectors * DICE_BLOCK;
    const size_t most = (size_t)conv->kernels->conv->max_rows[vectors - 1];
    const int whole = dice_conv_fills_blocks(conv, panel, tensors);
    dice_conv_pixel at = span.first;
    for (size_t tiles = dice_ceil_div(span.count, most); tiles > 0; tiles--) { /* as equal as can be */
        const int rows = (int)dice_ceil_div(span.count, tiles);
        const dice_conv_tile tile = conv->kernels->conv->tile[vectors - 1][rows - 1];
        dice_conv_out out = {.y = c, .plane = DICE_TILE_PLANE};
        if (whole && are_adjacent(y, at.x, rows) && (!adds || are_adjacent(residual, at.x, rows))) {
            out = (dice_conv_out){.y = dice_conv_block_at(y, first, at),
                                  .plane = y->plane,
                                  .residual = adds ? dice_conv_block_at(residual, first, at) : NULL,
                                  .residual_plane = residual->plane,
                                  .relu = conv->relu};
            tile(sum, span.shift, w, conv->bias + first, &out);
            at.x += rows;
            at.y += at.x / y->width;
            at.x %= y->width;
        } else {
            tile(sum, span.shift, w, conv->bias + first, &out);
            dice_conv_store_tile(conv, c, rows, panel, tensors, &at);
        }
        span.shift += rows * DICE_BLOCK;
        span.count -= (size_t)rows;
    }
}
