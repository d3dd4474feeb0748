/* Winograd convolution. See winograd.h.
 *
 * A strip of tiles is transformed; for each panel of outputs the 16 elements are 16 plain
 * products over the channels, done by the convolution's tile multiply; then the outputs are
 * transformed back, four pixels a tile. */
#include "cpu/winograd.h"

#include <string.h>

#include "base/memory.h"

enum {
    ELEMENTS = 16,
    BIASED = 5,                /* the element that reaches all four outputs with weight 1 */
    SMALL_STRIP = 48 * 1024,   /* bytes of transformed inputs beside weights that fit the caches */
    LARGE_STRIP = 1024 * 1024, /* beside weights that do not */
    LARGE_WEIGHTS = 256 * 1024
};

void dice_winograd_weight(const float *w, double *u)
{
    static const double g[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            double sum = 0;
            for (int y = 0; y < 3; y++) {
                for (int x = 0; x < 3; x++) {
                    sum += g[i][y] * g[j][x] * w[3 * y + x];
                }
            }
            u[4 * i + j] = sum;
        }
    }
}

static size_t strip_tiles(const dice_conv *conv, int32_t height, int32_t width, size_t images)
{
    const size_t all = (size_t)((height + 1) / 2) * (size_t)((width + 1) / 2) * images;
    const size_t each = (size_t)conv->blocks * ELEMENTS * DICE_BLOCK * sizeof(float);
    const size_t room = (conv->weight_bytes > LARGE_WEIGHTS ? LARGE_STRIP : SMALL_STRIP) / each;
    const size_t rows = (size_t)conv->kernels->conv->max_rows[conv->vectors - 1];
    const size_t strip = room < rows ? rows : room / rows * rows;
    return strip < all ? strip : all;
}

typedef struct parts {
    const float **a; /* (blocks) */
    float *zeros;    /* (vectors, 16): a pixel outside, and the bias of all elements but one */
    float *v;        /* (16 elements, blocks, strip, 16) */
    float *m;        /* (16 elements, vectors, strip, 16) */
    float *c;        /* (vectors, DICE_TILE_ROWS, 16): four pixels */
} parts;

static parts split(const dice_conv *conv, size_t strip, void *scratch, size_t *bytes)
{
    const size_t pointers = ((size_t)conv->blocks * sizeof(float *) + DICE_ALIGN - 1) / DICE_ALIGN
                          * DICE_ALIGN;
    const size_t width = (size_t)conv->vectors * DICE_BLOCK;
    const size_t v = ELEMENTS * (size_t)conv->blocks * strip * DICE_BLOCK, m = ELEMENTS * strip * width;
    if (bytes != NULL) {
        *bytes = pointers + (width + v + m + (size_t)conv->vectors * DICE_TILE_PLANE) * sizeof(float);
        return (parts){0};
    }
    float *at = (float *)(void *)((char *)scratch + pointers);
    return (parts){scratch, at, at + width, at + width + v, at + width + v + m};
}

size_t dice_winograd_scratch(const dice_conv *conv, int32_t height, int32_t width, size_t images)
{
    size_t bytes;
    split(conv, strip_tiles(conv, height, width, images), NULL, &bytes);
    return bytes;
}

/* The image, row and column of tile `index`, counted in raster order over the images' rows [y0, y1). */
typedef struct place {
    size_t image;
    int32_t y, x; /* the tile's first output pixel */
} place;

static place locate(size_t index, int32_t y0, int32_t rows, int32_t columns)
{
    const size_t of_image = index % ((size_t)rows * (size_t)columns);
    return (place){index / ((size_t)rows * (size_t)columns), y0 + 2 * (int32_t)(of_image / (size_t)columns),
                   2 * (int32_t)(of_image % (size_t)columns)};
}

static void transform_tile(const dice_conv *conv, const dice_view *x, place at, size_t stride, size_t strip,
                           const float *zeros, float *v)
{
    const float *pixel[ELEMENTS];
    const float *data = x->data + at.image * stride + (x->offset / DICE_BLOCK) * x->plane;
    for (int32_t i = 0; i < ELEMENTS; i++) {
        const int32_t iy = at.y - 1 + i / 4, ix = at.x - 1 + i % 4;
        const int inside = iy >= 0 && iy < x->height && ix >= 0 && ix < x->width;
        pixel[i] = inside ? data + iy * x->pitch + ix * DICE_BLOCK : zeros;
    }
    const size_t step = (size_t)conv->blocks * strip * DICE_BLOCK;
    for (int32_t b = 0; b < conv->blocks; b++) {
        conv->kernels->winograd->input(pixel, b * x->plane, zeros, v + (size_t)b * strip * DICE_BLOCK, step);
    }
}

/* One panel of a strip: 16 products, tile by tile, into m. */
static void multiply(const dice_conv *conv, int32_t panel, size_t count, size_t strip, const parts *p)
{
    const int vectors = dice_conv_panel_vectors(conv, panel);
    const size_t width = (size_t)vectors * DICE_BLOCK, full = (size_t)conv->vectors * DICE_BLOCK;
    const float *w = (const float *)conv->weight + (size_t)panel * ELEMENTS * (size_t)conv->in * full;
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

/* The pixels of one tile and panel, those that lie inside: from m (16 elements, vectors, strip, 16) into y.
 */
static void store_tile(const dice_conv *conv, const parts *p, const float *m, size_t strip, int32_t panel,
                       place at, int32_t y1, const dice_view *y, const dice_view *residual)
{
    const int vectors = dice_conv_panel_vectors(conv, panel);
    const size_t step = strip * (size_t)vectors * DICE_BLOCK;
    const int32_t first = panel * conv->vectors * DICE_BLOCK;
    const int32_t right = at.x + 1 < y->width, below = at.y + 1 < y1;
    const dice_view *r = residual != NULL ? residual : y;
    const int direct = right && below && dice_conv_fills_blocks(y, first, vectors)
                    && dice_conv_fills_blocks(r, first, vectors);
    for (int v = 0; v < vectors; v++, m += strip * DICE_BLOCK) {
        dice_conv_out out = {.y = p->c + v * DICE_TILE_PLANE, .plane = 2 * DICE_BLOCK};
        if (direct) {
            const int32_t channel = first + v * DICE_BLOCK;
            out = (dice_conv_out){dice_conv_block_at(y, channel, at.y, at.x), y->pitch,
                                  residual != NULL ? dice_conv_block_at(r, channel, at.y, at.x) : NULL,
                                  r->pitch, conv->relu};
        }
        conv->kernels->winograd->output(m, step, &out);
    }
    for (int32_t row = 0; !direct && row <= below; row++) {
        ptrdiff_t y_at[2], residual_at[2];
        for (int32_t column = 0; column <= right; column++) {
            y_at[column] = (at.y + row) * y->pitch + (at.x + column) * DICE_BLOCK;
            residual_at[column] = (at.y + row) * r->pitch + (at.x + column) * DICE_BLOCK;
        }
        conv->kernels->conv_store(p->c + 2 * row * DICE_BLOCK, right + 1, vectors, first, y, y_at, residual,
                                  residual_at, conv->relu);
    }
}

void dice_winograd_run(const dice_conv *conv, const dice_view *x, const dice_view *y,
                       const dice_view *residual, size_t images, size_t stride, int32_t y0, int32_t y1,
                       int32_t p0, int32_t p1, void *scratch)
{
    const int32_t rows = (y1 - y0 + 1) / 2, columns = (y->width + 1) / 2;
    const size_t all = (size_t)rows * (size_t)columns * images;
    const size_t strip = strip_tiles(conv, y->height, y->width, images);
    const parts p = split(conv, strip, scratch, NULL);
    memset(p.zeros, 0, (size_t)conv->vectors * DICE_BLOCK * sizeof(float));
    for (size_t start = 0; start < all; start += strip) {
        const size_t count = start + strip < all ? strip : all - start;
        for (size_t t = 0; t < count; t++) {
            transform_tile(conv, x, locate(start + t, y0, rows, columns), stride, strip, p.zeros,
                           p.v + t * DICE_BLOCK);
        }
        for (int32_t panel = p0; panel < p1; panel++) {
            multiply(conv, panel, count, strip, &p);
            for (size_t t = 0; t < count; t++) {
                const place at = locate(start + t, y0, rows, columns);
                dice_view yi = *y, ri = residual != NULL ? *residual : *y;
                yi.data += at.image * stride;
                ri.data += at.image * stride;
                store_tile(conv, &p, p.m + t * DICE_BLOCK, strip, panel, at, y1, &yi,
                           residual != NULL ? &ri : NULL);
            }
        }
    }
}
