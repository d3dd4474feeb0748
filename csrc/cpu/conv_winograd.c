/* 3 x 3 convolution by F(2 x 2, 3 x 3): 16 products for four outputs in place of 36 (Lavin and Gray, CVPR
 * 2016).
 *
 * The inputs of a strip of patches (4 x 4 inputs, 2 x 2 outputs) are transformed, 16 elements a patch;
 * for each panel of outputs every element is a plain product over the channels, made by the register tiles;
 * then the outputs are transformed back, four pixels a patch.
 *
 * The error against float64 is 1 to 2 times that of the direct sum, so a network must allow it
 * (dice_graph.winograd says that its measured error stays inside the bound). */
#include <string.h>

#include "base/sizes.h"
#include "cpu/conv_strip.h"
#include "cpu/conv_tile.h"

enum {
    ELEMENTS = 16,
    BIASED = 5,                /* the element that counts once in all four outputs: the bias is added to it */
    SMALL_STRIP = 48 * 1024,   /* bytes of transformed inputs, beside weights that fit the caches */
    LARGE_STRIP = 1024 * 1024, /* the same beside weights that do not */
    LARGE_WEIGHTS = 256 * 1024 /* bytes that do not fit */
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

static size_t strip_patches(const dice_conv *conv, int32_t height, int32_t width, size_t images)
{
    const size_t all = dice_ceil_div((size_t)height, 2) * dice_ceil_div((size_t)width, 2) * images;
    const size_t each = (size_t)conv->blocks * ELEMENTS * DICE_BLOCK * sizeof(float);
    const size_t bytes = conv->weight_bytes > LARGE_WEIGHTS ? LARGE_STRIP : SMALL_STRIP;
    const size_t rows = (size_t)conv->kernels->conv->max_rows[conv->vectors - 1];
    return dice_conv_strip_length(bytes, each, rows, all);
}

typedef struct scratch_space {
    size_t strip;    /* patches */
    const float **a; /* (blocks) */
    float *zeros;    /* (vectors, 16): a pixel outside, and the bias of all elements but one */
    float *v;        /* (16 elements, blocks, strip, 16): transformed inputs */
    float *m;        /* (16 elements, vectors, strip, 16): products */
    float *c;        /* (vectors, DICE_TILE_ROWS, 16): the outputs of one patch, four pixels */
} scratch_space;

/* floats (4) = the sizes of zeros, v, m and c. */
static void count_floats(const dice_conv *conv, size_t strip, size_t floats[4])
{
    const size_t outputs = (size_t)conv->vectors * DICE_BLOCK;
    floats[0] = outputs;
    floats[1] = ELEMENTS * (size_t)conv->blocks * strip * DICE_BLOCK;
    floats[2] = ELEMENTS * strip * outputs;
    floats[3] = (size_t)conv->vectors * DICE_TILE_PLANE;
}

static scratch_space divide_scratch(const dice_conv *conv, size_t strip, void *scratch)
{
    size_t floats[4];
    count_floats(conv, strip, floats);
    float *zeros = (float *)(void *)((char *)scratch + dice_conv_pointer_bytes((size_t)conv->blocks));
    float *v = zeros + floats[0], *m = v + floats[1], *c = m + floats[2];
    return (scratch_space){strip, scratch, zeros, v, m, c};
}

static size_t scratch_bytes(const dice_conv *conv, int32_t height, int32_t width, size_t images)
{
    size_t floats[4];
    count_floats(conv, strip_patches(conv, height, width, images), floats);
    return dice_conv_pointer_bytes((size_t)conv->blocks)
         + (floats[0] + floats[1] + floats[2] + floats[3]) * sizeof(float);
}

/* Where the outputs of a patch lie: those of its 2 x 2 pixels that are inside the piece. */
typedef struct place {
    size_t image;
    dice_conv_pixel first;
    int height, width;
} place;

/* Where patch `index` lies. Patches are counted in raster order over the rows of the piece, image after
 * image. */
static place locate(size_t index, const dice_view *y, dice_conv_piece piece)
{
    const size_t columns = dice_ceil_div((size_t)y->width, 2),
                 rows = dice_ceil_div((size_t)(piece.y1 - piece.y0), 2);
    const size_t of_image = index % (rows * columns);
    const dice_conv_pixel first = {piece.y0 + 2 * (int32_t)(of_image / columns),
                                   2 * (int32_t)(of_image % columns)};
    return (place){.image = index / (rows * columns),
                   .first = first,
                   .height = first.y + 1 < piece.y1 ? 2 : 1,
                   .width = first.x + 1 < y->width ? 2 : 1};
}

/* One patch of v (16 elements, blocks, strip, 16) = the transform of the 4 x 4 inputs around the
 * outputs that begin at pixel `at`. */
static void transform_inputs(const dice_conv *conv, const dice_view *x, dice_conv_pixel at,
                             const scratch_space *space, float *v)
{
    const float *pixel[ELEMENTS], *data = dice_conv_block_at(x, 0, (dice_conv_pixel){0, 0});
    for (int32_t i = 0; i < ELEMENTS; i++) {
        const int32_t iy = at.y - 1 + i / 4, ix = at.x - 1 + i % 4;
        const int inside = iy >= 0 && iy < x->height && ix >= 0 && ix < x->width;
        pixel[i] = inside ? data + iy * x->pitch + ix * DICE_BLOCK : space->zeros;
    }
    const size_t plane = space->strip * DICE_BLOCK;
    for (int32_t b = 0; b < conv->blocks; b++) {
        conv->kernels->winograd->input(pixel, b * x->plane, space->zeros, v + (size_t)b * plane,
                                       (size_t)conv->blocks * plane);
    }
}

/* m (16 elements, vectors, strip, 16) = the products of one panel for `count` patches, each computed
 * by the register tiles. */
static void multiply(const dice_conv *conv, int32_t panel, size_t count, const scratch_space *space)
{
    const int vectors = dice_conv_panel_vectors(conv, panel);
    const size_t outputs = (size_t)vectors * DICE_BLOCK, plane = space->strip * DICE_BLOCK;
    const float *w = dice_conv_panel_weight(conv, panel);
    const float *bias = conv->bias + (size_t)panel * (size_t)conv->vectors * DICE_BLOCK;
    const size_t most = (size_t)conv->kernels->conv->max_rows[vectors - 1];
    for (size_t e = 0; e < ELEMENTS; e++, w += (size_t)conv->in * outputs) {
        for (int32_t b = 0; b < conv->blocks; b++) {
            space->a[b] = space->v + (e * (size_t)conv->blocks + (size_t)b) * plane;
        }
        const dice_conv_sum sum = {space->a, 1, conv->blocks, conv->tail};
        size_t done = 0;
        for (size_t tiles = dice_ceil_div(count, most); tiles > 0; tiles--) {
            const size_t rows = dice_ceil_div(count - done, tiles);
            const dice_conv_out out = {.y = space->m + e * (size_t)vectors * plane + done * DICE_BLOCK,
                                       .plane = (ptrdiff_t)plane};
            conv->kernels->conv->tile[vectors - 1][rows - 1](&sum, (ptrdiff_t)(done * DICE_BLOCK), w,
                                                             e == BIASED ? bias : space->zeros, &out);
            done += rows;
        }
    }
}

/* Transforms one panel of one patch of m (16 elements, vectors, strip, 16) back into outputs, and
 * stores them in y. */
static void store_outputs(const dice_conv *conv, const float *m, int32_t panel,
                          const dice_conv_tensors *tensors, place at, const scratch_space *space)
{
    const dice_view *y = &tensors->y, *residual = &tensors->residual;
    const int vectors = dice_conv_panel_vectors(conv, panel), adds = residual->data != NULL;
    const size_t plane = space->strip * DICE_BLOCK;
    const int32_t first = panel * conv->vectors * DICE_BLOCK;
    const int whole = at.height == 2 && at.width == 2 && dice_conv_fills_blocks(conv, panel, tensors);
    for (int v = 0; v < vectors; v++, m += plane) {
        const int32_t channel = first + v * DICE_BLOCK;
        dice_conv_out out = {.y = space->c + v * DICE_TILE_PLANE, .plane = 2 * DICE_BLOCK};
        if (whole) {
            out = (dice_conv_out){.y = dice_conv_block_at(y, channel, at.first),
                                  .plane = y->pitch,
                                  .residual = adds ? dice_conv_block_at(residual, channel, at.first) : NULL,
                                  .residual_plane = residual->pitch,
                                  .relu = conv->relu};
        }
        conv->kernels->winograd->output(m, (size_t)vectors * plane, &out);
    }
    for (int row = 0; !whole && row < at.height; row++) {
        ptrdiff_t y_at[2], residual_at[2];
        for (int column = 0; column < at.width; column++) {
            y_at[column] = (at.first.y + row) * y->pitch + (at.first.x + column) * DICE_BLOCK;
            residual_at[column] = (at.first.y + row) * residual->pitch + (at.first.x + column) * DICE_BLOCK;
        }
        conv->kernels->conv_store(space->c + 2 * row * DICE_BLOCK, at.width, vectors, first, y, y_at,
                                  adds ? residual : NULL, residual_at, conv->relu);
    }
}

static void run(const dice_conv *conv, const dice_conv_tensors *tensors, dice_bundle bundle,
                dice_conv_piece piece, void *scratch)
{
    const dice_view *y = &tensors->y;
    const size_t rows = dice_ceil_div((size_t)(piece.y1 - piece.y0), 2),
                 columns = dice_ceil_div((size_t)y->width, 2);
    const size_t all = rows * columns * bundle.images;
    const size_t strip = strip_patches(conv, y->height, y->width, bundle.images);
    const scratch_space space = divide_scratch(conv, strip, scratch);
    memset(space.zeros, 0, (size_t)conv->vectors * DICE_BLOCK * sizeof(float));
    for (size_t start = 0; start < all; start += strip) {
        const size_t count = dice_least(strip, all - start);
        for (size_t t = 0; t < count; t++) {
            const place at = locate(start + t, y, piece);
            dice_view x = tensors->x;
            x.data += at.image * bundle.stride;
            transform_inputs(conv, &x, at.first, &space, space.v + t * DICE_BLOCK);
        }
        for (int32_t panel = piece.p0; panel < piece.p1; panel++) {
            multiply(conv, panel, count, &space);
            dice_conv_tensors of_image = *tensors;
            for (size_t t = 0, image = 0; t < count; t++) {
                const place at = locate(start + t, y, piece);
                if (at.image != image) {
                    image = at.image;
                    of_image = dice_conv_image(tensors, bundle, image);
                }
                store_outputs(conv, space.m + t * DICE_BLOCK, panel, &of_image, at, &space);
            }
        }
    }
}

const dice_conv_algorithm dice_conv_winograd = {
    .name = "winograd",
    .row_unit = 2,
    .fits = fits,
    .pack = pack_weight,
    .scratch = scratch_bytes,
    .run = run,
};
