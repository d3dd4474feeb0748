/* 3 x 3 convolution by F(2 x 2, 3 x 3): 16 products for four outputs in place of 36 (Lavin and Gray, CVPR
 * 2016).
 *
 * The inputs of a strip of Winograd tiles (4 x 4 inputs, 2 x 2 outputs) are transformed, 16 elements a tile;
 * for each panel of outputs every element is a plain product over the channels, made by the register tiles;
 * then the outputs are transformed back, four pixels a tile.
 *
 * The error against float64 is 1 to 2 times that of the direct sum, so a network must allow it
 * (dice_graph.winograd says that its measured error stays inside the bound). */
#include <string.h>

#include "cpu/conv_strip.h"
#include "cpu/conv_tile.h"

enum {
    ELEMENTS = 16,
    BIASED = 5,                /* the element that reaches all four outputs with weight 1 */
    SMALL_STRIP = 48 * 1024,   /* bytes of transformed inputs beside weights that fit the caches */
    LARGE_STRIP = 1024 * 1024, /* beside weights that do not */
    LARGE_WEIGHTS = 256 * 1024
};

static int fits(const dice_conv *conv)
{
    return conv->may_use_winograd && conv->kernel == 3 && conv->stride == 1 && conv->pad == 1 && !conv->narrow
        && conv->aligned && conv->scale == NULL && conv->parts == 3;
}

/* u (16) = G w G^T of one 3 x 3 kernel, summed in double. */
static void transform_kernel(const dice_conv *conv, const float *w, float *u)
{
    (void)conv;
    static const double g[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            double sum = 0;
            for (int y = 0; y < 3; y++) {
                for (int x = 0; x < 3; x++) {
                    sum += g[i][y] * g[j][x] * w[3 * y + x];
                }
            }
            u[4 * i + j] = (float)sum;
        }
    }
}

/* Packed as (panels, 16 elements, in, vectors, 16). */
static dice_status pack_weight(dice_conv *conv, const float *weight)
{
    return dice_conv_pack_products(conv, weight, ELEMENTS, transform_kernel);
}

static size_t strip_tiles(const dice_conv *conv, int32_t height, int32_t width, size_t images)
{
    const size_t all = (size_t)((height + 1) / 2) * (size_t)((width + 1) / 2) * images;
    const size_t each = (size_t)conv->blocks * ELEMENTS * DICE_BLOCK * sizeof(float);
    const size_t bytes = conv->weight_bytes > LARGE_WEIGHTS ? LARGE_STRIP : SMALL_STRIP;
    const size_t rows = (size_t)conv->kernels->conv->max_rows[conv->vectors - 1];
    return dice_conv_strip_length(bytes, each, rows, all);
}

typedef struct scratch_space {
    const float **a; /* (blocks) */
    float *zeros;    /* (vectors, 16): a pixel outside, and the bias of all elements but one */
    float *v;        /* (16 elements, blocks, strip, 16): transformed inputs */
    float *m;        /* (16 elements, vectors, strip, 16): products */
    float *c;        /* (vectors, DICE_TILE_ROWS, 16): four pixels */
} scratch_space;

/* Floats of each array, in the order of scratch_space. */
static void scratch_floats(const dice_conv *conv, size_t strip, size_t floats[4])
{
    const size_t width = (size_t)conv->vectors * DICE_BLOCK;
    floats[0] = width;
    floats[1] = ELEMENTS * (size_t)conv->blocks * strip * DICE_BLOCK;
    floats[2] = ELEMENTS * strip * width;
    floats[3] = (size_t)conv->vectors * DICE_TILE_PLANE;
}

static scratch_space divide_scratch(const dice_conv *conv, size_t strip, void *scratch)
{
    size_t floats[4];
    scratch_floats(conv, strip, floats);
    float *zeros = (float *)(void *)((char *)scratch + dice_conv_pointer_bytes((size_t)conv->blocks));
    float *v = zeros + floats[0], *m = v + floats[1];
    return (scratch_space){scratch, zeros, v, m, m + floats[2]};
}

static size_t scratch_bytes(const dice_conv *conv, int32_t height, int32_t width, size_t images)
{
    size_t floats[4];
    scratch_floats(conv, strip_tiles(conv, height, width, images), floats);
    return dice_conv_pointer_bytes((size_t)conv->blocks)
         + (floats[0] + floats[1] + floats[2] + floats[3]) * sizeof(float);
}

/* Where a Winograd tile lies. */
typedef struct place {
    size_t image;
    dice_conv_pixel first; /* output pixel, upper left */
} place;

/* The place of tile `index`, counted in raster order over `rows` x `columns` tiles of each image. */
static place locate(size_t index, int32_t y0, int32_t rows, int32_t columns)
{
    const size_t of_image = index % ((size_t)rows * (size_t)columns);
    return (place){
        index / ((size_t)rows * (size_t)columns),
        {y0 + 2 * (int32_t)(of_image / (size_t)columns), 2 * (int32_t)(of_image % (size_t)columns)}};
}

/* v (16 elements, blocks, strip, 16) of one tile, from the 4 x 4 inputs around its outputs. */
static void transform_inputs(const dice_conv *conv, const dice_view *x, dice_conv_pixel at, size_t strip,
                             const float *zeros, float *v)
{
    const float *pixel[ELEMENTS];
    for (int32_t i = 0; i < ELEMENTS; i++) {
        const dice_conv_pixel in = {at.y - 1 + i / 4, at.x - 1 + i % 4};
        const int inside = in.y >= 0 && in.y < x->height && in.x >= 0 && in.x < x->width;
        pixel[i] = inside ? dice_conv_block_at(x, 0, in) : zeros;
    }
    const size_t step = (size_t)conv->blocks * strip * DICE_BLOCK;
    for (int32_t b = 0; b < conv->blocks; b++) {
        conv->kernels->winograd->input(pixel, b * x->plane, zeros, v + (size_t)b * strip * DICE_BLOCK, step);
    }
}

/* One panel of a strip: 16 products, tile by tile, into m. */
static void multiply(const dice_conv *conv, int32_t panel, size_t count, size_t strip, const scratch_space *p)
{
    const int vectors = dice_conv_panel_vectors(conv, panel);
    const size_t width = (size_t)vectors * DICE_BLOCK, full = (size_t)conv->vectors * DICE_BLOCK;
    const float *w = dice_conv_panel_weight(conv, panel);
    const size_t most = (size_t)conv->kernels->conv->max_rows[vectors - 1];
    for (size_t e = 0; e < ELEMENTS; e++, w += (size_t)conv->in * width) {
        for (int32_t b = 0; b < conv->blocks; b++) {
            p->a[b] = p->v + (e * (size_t)conv->blocks + (size_t)b) * strip * DICE_BLOCK;
        }
        const dice_conv_sum sum = {p->a, 1, conv->blocks, conv->tail};
        const float *bias = e == BIASED ? conv->bias + (size_t)panel * full : p->zeros;
        size_t done = 0;
        for (size_t tiles = (count + most - 1) / most; tiles > 0; tiles--) {
            const size_t rows = (count - done + tiles - 1) / tiles;
            const dice_conv_out out = {.y = p->m + e * strip * width + done * DICE_BLOCK,
                                       .plane = (ptrdiff_t)(strip * DICE_BLOCK)};
            conv->kernels->conv->tile[vectors - 1][rows - 1](&sum, (ptrdiff_t)(done * DICE_BLOCK), w, bias,
                                                             &out);
            done += rows;
        }
    }
}

/* The outputs of one tile and panel, those that lie inside: from m (16 elements, vectors, strip, 16) into y,
 * of which rows up to `y1` are wanted; by way of c unless they are `whole` blocks. */
static void store_outputs(const dice_conv *conv, const float *m, size_t strip, int32_t panel, int whole,
                          const dice_conv_tensors *tensors, dice_conv_pixel at, int32_t y1, float *c)
{
    const dice_view *y = &tensors->y, *residual = &tensors->residual;
    const int vectors = dice_conv_panel_vectors(conv, panel), adds = residual->data != NULL;
    const size_t step = strip * (size_t)vectors * DICE_BLOCK;
    const int32_t right = at.x + 1 < y->width, below = at.y + 1 < y1;
    const int direct = right && below && whole;
    for (int v = 0; v < vectors; v++, m += strip * DICE_BLOCK) {
        const int32_t channel = (panel * conv->vectors + v) * DICE_BLOCK;
        dice_conv_out out = {.y = c + v * DICE_TILE_PLANE, .plane = 2 * DICE_BLOCK};
        if (direct) {
            out = (dice_conv_out){.y = dice_conv_block_at(y, channel, at),
                                  .plane = y->pitch,
                                  .residual = adds ? dice_conv_block_at(residual, channel, at) : NULL,
                                  .residual_plane = residual->pitch,
                                  .relu = conv->relu};
        }
        conv->kernels->winograd->output(m, step, &out);
    }
    for (int32_t row = 0; !direct && row <= below; row++) {
        dice_conv_pixel pixel = {at.y + row, at.x};
        dice_conv_store_tile(conv, c + 2 * row * DICE_BLOCK, right + 1, panel, tensors, &pixel);
    }
}

static void run(const dice_conv *conv, const dice_conv_tensors *tensors, dice_group group,
                dice_conv_piece piece, void *scratch)
{
    const dice_view *y = &tensors->y;
    const int32_t rows = (piece.y1 - piece.y0 + 1) / 2, columns = (y->width + 1) / 2;
    const size_t all = (size_t)rows * (size_t)columns * group.images;
    const size_t strip = strip_tiles(conv, y->height, y->width, group.images);
    const scratch_space space = divide_scratch(conv, strip, scratch);
    memset(space.zeros, 0, (size_t)conv->vectors * DICE_BLOCK * sizeof(float));
    for (size_t start = 0; start < all; start += strip) {
        const size_t count = start + strip < all ? strip : all - start;
        for (size_t t = 0; t < count; t++) {
            const place at = locate(start + t, piece.y0, rows, columns);
            const dice_conv_tensors of_image = dice_conv_image(tensors, group, at.image);
            transform_inputs(conv, &of_image.x, at.first, strip, space.zeros, space.v + t * DICE_BLOCK);
        }
        for (int32_t panel = piece.p0; panel < piece.p1; panel++) {
            const int whole = dice_conv_fills_blocks(conv, panel, tensors);
            multiply(conv, panel, count, strip, &space);
            for (size_t t = 0; t < count; t++) {
                const place at = locate(start + t, piece.y0, rows, columns);
                const dice_conv_tensors of_image = dice_conv_image(tensors, group, at.image);
                store_outputs(conv, space.m + t * DICE_BLOCK, strip, panel, whole, &of_image, at.first,
                              piece.y1, space.c);
            }
        }
    }
}

const dice_conv_method dice_conv_winograd = {
    .name = "winograd",
    .row_unit = 2,
    .fits = fits,
    .pack = pack_weight,
    .scratch = scratch_bytes,
    .run = run,
};
