/* Convolution on the CPU. See conv.h. */
#include "cpu/conv.h"

#include <string.h>

#include "base/memory.h"
#include "base/bf16.h"
#include "cpu/bf16_conv.h"
#include "cpu/winograd.h"

enum {
    TILE_FLOATS = 3 * DICE_TILE_PLANE, /* the largest tile */
    L1_BYTES = 20 * 1024,              /* packed pixels beside a short panel */
    STRIP_BYTES = 384 * 1024,          /* inputs kept in L2 while the panels pass over them */
    WIDE_BYTES = 1024 * 1024           /* packed pixels where the weights are larger than the cache */
};

static int choose_vectors(int32_t out, const dice_conv_tiles *tiles)
{
    const int32_t need = (out + DICE_BLOCK - 1) / DICE_BLOCK;
    if (need % 3 == 0 && need % 2 != 0 && tiles->max_rows[2] > 0) {
        return 3;
    }
    return need >= 2 && tiles->max_rows[1] > 0 ? 2 : 1;
}

int dice_conv_panel_vectors(const dice_conv *conv, int32_t panel)
{
    const int32_t left = (conv->out + DICE_BLOCK - 1) / DICE_BLOCK - panel * conv->vectors;
    return left < conv->vectors ? (int)left : conv->vectors;
}

/* Floats from a panel's weights to the next's. */
static size_t panel_floats(const dice_conv *conv)
{
    const size_t products = conv->winograd ? 16 : (size_t)conv->kernel * (size_t)conv->kernel;
    return products * (size_t)conv->in * (size_t)conv->vectors * DICE_BLOCK;
}

/* The factors of one kernel's products: its taps, or the elements of the transformed kernel. */
static void kernel_factors(const dice_conv *conv, const float *kernel, float *to)
{
    if (!conv->winograd) {
        for (int i = 0; i < conv->kernel * conv->kernel; i++) {
            to[i] = dice_bf16_sum(kernel[i], conv->parts);
        }
        return;
    }
    double u[16];
    dice_winograd_weight(kernel, u);
    for (int i = 0; i < 16; i++) {
        to[i] = (float)u[i];
    }
}

static dice_status pack_weight(dice_conv *conv, const float *weight)
{
    const size_t taps = (size_t)conv->kernel * (size_t)conv->kernel, in = (size_t)conv->in;
    const size_t products = conv->winograd ? 16 : taps;
    const size_t count = panel_floats(conv) * (size_t)conv->panels;
    void *memory;
    dice_status status = dice_alloc_zero(count, sizeof(float), &conv->weight);
    if (status == DICE_OK) {
        status = dice_alloc(products, sizeof(float), &memory);
    }
    if (status != DICE_OK) {
        return status;
    }
    float *factors = memory;
    conv->weight_bytes = count * sizeof(float);
    for (int32_t panel = 0; panel < conv->panels; panel++) {
        float *to = (float *)conv->weight + (size_t)panel * panel_floats(conv);
        const size_t width = (size_t)dice_conv_panel_vectors(conv, panel) * DICE_BLOCK;
        const size_t first = (size_t)panel * (size_t)conv->vectors * DICE_BLOCK;
        for (size_t n = 0; n < width && first + n < (size_t)conv->out; n++) {
            for (size_t c = 0; c < in; c++) {
                kernel_factors(conv, weight + ((first + n) * in + c) * taps, factors);
                for (size_t i = 0; i < products; i++) {
                    to[(i * in + c) * width + n] = factors[i];
                }
            }
        }
    }
    dice_free(factors);
    return DICE_OK;
}

/* *out = `count` floats followed by zeros up to `room`. */
static dice_status padded_copy(const float *from, size_t count, size_t room, float **out)
{
    void *memory;
    const dice_status status = dice_alloc_zero(room, sizeof(float), &memory);
    *out = memory;
    if (status == DICE_OK && from != NULL) {
        memcpy(memory, from, count * sizeof(float));
    }
    return status;
}

dice_status dice_conv_init(dice_conv *conv, const dice_op *op, int32_t in, int32_t out, int narrow,
                           int winograd, int parts, const dice_cpu_kernels *kernels)
{
    *conv = (dice_conv){.kernels = kernels,
                        .in = in,
                        .out = out,
                        .kernel = op->kernel,
                        .stride = op->stride,
                        .pad = op->pad,
                        .relu = op->relu,
                        .narrow = narrow};
    const int32_t length = narrow ? op->kernel * op->kernel * in : in;
    conv->taps = narrow ? 1 : op->kernel * op->kernel;
    conv->blocks = (length + DICE_BLOCK - 1) / DICE_BLOCK;
    conv->tail = length - (conv->blocks - 1) * DICE_BLOCK;
    conv->parts = parts;
    conv->amx = kernels->amx != NULL;
    conv->vectors = conv->amx ? 2 : choose_vectors(out, kernels->conv);
    conv->winograd = winograd && op->kernel == 3 && op->stride == 1 && op->pad == 1 && !narrow
                  && op->pre_scale == NULL && parts == 3 && !conv->amx;
    const int32_t width = conv->vectors * DICE_BLOCK;
    conv->panels = (out + width - 1) / width;

    const size_t room = (size_t)conv->blocks * DICE_BLOCK;
    dice_status status = conv->amx ? dice_bf16_conv_pack(conv, op->weight) : pack_weight(conv, op->weight);
    if (status == DICE_OK) {
        status = padded_copy(op->bias, (size_t)out, (size_t)conv->panels * (size_t)width, &conv->bias);
    }
    if (status == DICE_OK && op->pre_scale != NULL) {
        status = padded_copy(op->pre_scale, (size_t)in, room, &conv->scale);
        if (status == DICE_OK) {
            status = padded_copy(op->pre_shift, (size_t)in, room, &conv->shift);
        }
    }
    if (status != DICE_OK) {
        dice_conv_free(conv);
        return status;
    }
    return DICE_OK;
}

void dice_conv_free(dice_conv *conv)
{
    dice_free(conv->weight);
    dice_free(conv->bias);
    dice_free(conv->scale);
    dice_free(conv->shift);
    *conv = (dice_conv){0};
}

int dice_conv_reads_in_place(const dice_conv *conv, int32_t x_offset)
{
    return conv->parts == 3 && !conv->amx && !conv->winograd && conv->scale == NULL && conv->stride == 1
        && !conv->narrow && x_offset % DICE_BLOCK == 0;
}

/* Output pixels that are packed at once. */
static size_t strip_pixels(const dice_conv *conv, size_t pixels)
{
    const size_t each = (size_t)conv->taps * (size_t)conv->blocks * DICE_BLOCK * sizeof(float);
    const size_t room = (conv->weight_bytes > STRIP_BYTES / 2 ? WIDE_BYTES : L1_BYTES) / each;
    const size_t rows = (size_t)conv->kernels->conv->max_rows[conv->vectors - 1];
    const size_t strip = room < rows ? rows : room / rows * rows;
    return strip < pixels ? strip : pixels;
}

typedef struct scratch_parts {
    const float **a; /* (taps, blocks) */
    float *tile;
    float *packed; /* (taps, blocks, strip, 16) */
} scratch_parts;

static size_t pointers_bytes(const dice_conv *conv)
{
    const size_t bytes = (size_t)conv->taps * (size_t)conv->blocks * sizeof(float *);
    return (bytes + DICE_ALIGN - 1) / DICE_ALIGN * DICE_ALIGN;
}

static scratch_parts split_scratch(const dice_conv *conv, void *scratch)
{
    char *at = scratch;
    float *tile = (float *)(void *)(at + pointers_bytes(conv));
    return (scratch_parts){(const float **)scratch, tile, tile + TILE_FLOATS};
}

size_t dice_conv_scratch(const dice_conv *conv, int32_t height, int32_t width, size_t images)
{
    if (conv->winograd) {
        return dice_winograd_scratch(conv, height, width, images);
    }
    if (conv->amx) {
        return dice_bf16_conv_scratch(conv, (size_t)height * (size_t)width);
    }
    const size_t strip = strip_pixels(conv, (size_t)height * (size_t)width);
    const size_t floats = TILE_FLOATS + (size_t)conv->taps * (size_t)conv->blocks * strip * DICE_BLOCK;
    return pointers_bytes(conv) + floats * sizeof(float);
}

/* A run of output pixels in raster order whose inputs are consecutive. */
typedef struct run {
    int32_t y, x; /* the first output pixel */
    size_t count;
    ptrdiff_t shift; /* its inputs, from the pointers */
} run;

void dice_conv_store_tile(const dice_conv *conv, const float *c, int rows, int vectors, int32_t first,
                          const dice_view *y, const dice_view *residual, int32_t *oy, int32_t *ox)
{
    ptrdiff_t y_at[DICE_TILE_ROWS], residual_at[DICE_TILE_ROWS];
    for (int r = 0; r < rows; r++) {
        y_at[r] = *oy * y->pitch + *ox * DICE_BLOCK;
        if (residual != NULL) {
            residual_at[r] = *oy * residual->pitch + *ox * DICE_BLOCK;
        }
        if (++*ox == y->width) {
            *ox = 0;
            ++*oy;
        }
    }
    conv->kernels->conv_store(c, rows, vectors, first, y, y_at, residual, residual_at, conv->relu);
}

int dice_conv_fills_blocks(const dice_view *y, int32_t first, int vectors)
{
    return (y->offset + first) % DICE_BLOCK == 0 && y->channels - first >= vectors * DICE_BLOCK;
}

/* Whether `rows` pixels from column x on are consecutive in memory. */
static int are_one_run(const dice_view *y, int32_t x, int rows)
{
    return x + rows <= y->width || y->border == 0;
}

float *dice_conv_block_at(const dice_view *y, int32_t first, int32_t oy, int32_t ox)
{
    return y->data + (y->offset + first) / DICE_BLOCK * y->plane + oy * y->pitch + ox * DICE_BLOCK;
}

/* One panel of a run, tile by tile; tiles are as equal as can be. */
static void multiply(const dice_conv *conv, const dice_conv_sum *sum, run at, int32_t panel,
                     const dice_view *y, const dice_view *residual, float *c)
{
    const int vectors = dice_conv_panel_vectors(conv, panel);
    const float *w = (const float *)conv->weight + (size_t)panel * panel_floats(conv);
    const int32_t first = panel * conv->vectors * DICE_BLOCK;
    const size_t most = (size_t)conv->kernels->conv->max_rows[vectors - 1];
    const dice_view *r = residual != NULL ? residual : y;
    const int whole = dice_conv_fills_blocks(y, first, vectors) && dice_conv_fills_blocks(r, first, vectors);
    size_t tiles = (at.count + most - 1) / most;
    for (; tiles > 0; tiles--) {
        const int rows = (int)((at.count + tiles - 1) / tiles);
        const dice_conv_tile tile = conv->kernels->conv->tile[vectors - 1][rows - 1];
        dice_conv_out out = {.y = c, .plane = DICE_TILE_PLANE};
        if (whole && are_one_run(y, at.x, rows) && are_one_run(r, at.x, rows)) {
            out = (dice_conv_out){dice_conv_block_at(y, first, at.y, at.x), y->plane,
                                  residual != NULL ? dice_conv_block_at(r, first, at.y, at.x) : NULL,
                                  r->plane, conv->relu};
            tile(sum, at.shift, w, conv->bias + first, &out);
            at.x += rows;
            at.y += at.x / y->width;
            at.x %= y->width;
        } else {
            tile(sum, at.shift, w, conv->bias + first, &out);
            dice_conv_store_tile(conv, c, rows, vectors, first, y, residual, &at.y, &at.x);
        }
        at.shift += rows * DICE_BLOCK;
        at.count -= (size_t)rows;
    }
}

static dice_view image_view(const dice_view *view, size_t image, size_t stride)
{
    dice_view moved = *view;
    moved.data += image * stride;
    return moved;
}

static void run_in_place(const dice_conv *conv, const dice_view *x, const dice_view *y,
                         const dice_view *residual, size_t images, size_t stride, int32_t y0, int32_t y1,
                         int32_t p0, int32_t p1, scratch_parts parts)
{
    const dice_conv_sum sum = {parts.a, conv->taps, conv->blocks, conv->tail};
    /* without a border the pixels of several rows are one run */
    const int joined = conv->kernel == 1 && x->pitch == (ptrdiff_t)x->width * DICE_BLOCK;
    const size_t row_bytes = (size_t)x->pitch * (size_t)conv->blocks * sizeof(float);
    int32_t strip = (int32_t)(STRIP_BYTES / row_bytes);
    if (images > 1 || p1 - p0 == 1) {
        strip = y1 - y0;
    } else if (strip < 1) {
        strip = 1;
    }
    for (int32_t top = y0; top < y1; top += strip) {
        const int32_t bottom = top + strip < y1 ? top + strip : y1;
        for (int32_t panel = p0; panel < p1; panel++) {
            for (size_t image = 0; image < images; image++) {
                const dice_view xi = image_view(x, image, stride), yi = image_view(y, image, stride);
                const dice_view ri = residual != NULL ? image_view(residual, image, stride) : xi;
                const float **a = parts.a;
                for (int32_t ky = 0; ky < conv->kernel; ky++) {
                    for (int32_t kx = 0; kx < conv->kernel; kx++) {
                        const float *p = xi.data + (xi.offset / DICE_BLOCK) * xi.plane
                                       + (ky - conv->pad) * xi.pitch + (kx - conv->pad) * DICE_BLOCK;
                        for (int32_t b = 0; b < conv->blocks; b++, p += xi.plane) {
                            *a++ = p;
                        }
                    }
                }
                const int32_t step = joined ? bottom - top : 1;
                for (int32_t row = top; row < bottom; row += step) {
                    const run at = {row, 0, (size_t)step * (size_t)yi.width, row * xi.pitch};
                    multiply(conv, &sum, at, panel, &yi, residual != NULL ? &ri : NULL, parts.tile);
                }
            }
        }
    }
}

/* One tap and block of output pixels (oy, ox) ... in one row: to (count, 16). */
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
    const ptrdiff_t step = (ptrdiff_t)conv->stride * DICE_BLOCK;
    conv->kernels->conv_pack(to + skip * DICE_BLOCK, x, channel, iy * x->pitch + ix * DICE_BLOCK, step,
                             end - skip, (dice_affine){conv->scale, conv->shift});
}

/* All taps and channels of one output pixel of a narrow tensor, as one run of (blocks, strip, 16). */
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
    /* of a row of taps, the values [begin, end) lie inside */
    const int32_t begin = ix < 0 ? (-ix < conv->kernel ? -ix : conv->kernel) * conv->in : 0;
    const int32_t right = x->width - ix, columns = right < 0            ? 0
                                                 : right < conv->kernel ? right
                                                                        : conv->kernel;
    const int32_t end = columns * conv->in;
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
        const size_t rest = count - done, in_row = (size_t)(width - ox);
        const int32_t run_length = (int32_t)(rest < in_row ? rest : in_row);
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

static void run_packed(const dice_conv *conv, const dice_view *x, const dice_view *y,
                       const dice_view *residual, int32_t y0, int32_t y1, int32_t p0, int32_t p1,
                       scratch_parts parts)
{
    const dice_conv_sum sum = {parts.a, conv->taps, conv->blocks, conv->tail};
    const size_t width = (size_t)y->width, end = (size_t)y1 * width;
    const size_t strip = strip_pixels(conv, (size_t)y->height * width);
    for (int32_t i = 0; i < conv->taps * conv->blocks; i++) {
        parts.a[i] = parts.packed + (size_t)i * strip * DICE_BLOCK;
    }
    for (size_t start = (size_t)y0 * width; start < end; start += strip) {
        const size_t count = start + strip < end ? strip : end - start;
        dice_conv_pack_strip(conv, x, y->width, start, count, strip, parts.packed);
        if (conv->parts < 3) {
            conv->kernels->round(parts.packed, (size_t)conv->taps * (size_t)conv->blocks * strip,
                                 conv->parts);
        }
        const run at = {(int32_t)(start / width), (int32_t)(start % width), count, 0};
        for (int32_t panel = p0; panel < p1; panel++) {
            multiply(conv, &sum, at, panel, y, residual, parts.tile);
        }
    }
}

void dice_conv_run(const dice_conv *conv, const dice_view *x, const dice_view *y, const dice_view *residual,
                   size_t images, size_t stride, int32_t y0, int32_t y1, int32_t p0, int32_t p1,
                   void *scratch)
{
    if (conv->winograd) {
        dice_winograd_run(conv, x, y, residual, images, stride, y0, y1, p0, p1, scratch);
        return;
    }
    const scratch_parts parts = split_scratch(conv, scratch);
    if (dice_conv_reads_in_place(conv, x->offset) && x->border >= conv->pad) {
        run_in_place(conv, x, y, residual, images, stride, y0, y1, p0, p1, parts);
        return;
    }
    for (size_t image = 0; image < images; image++) {
        const dice_view xi = image_view(x, image, stride), yi = image_view(y, image, stride);
        const dice_view ri = residual != NULL ? image_view(residual, image, stride) : xi;
        const dice_view *r = residual != NULL ? &ri : NULL;
        if (conv->amx) {
            dice_bf16_conv_run(conv, &xi, &yi, r, y0, y1, p0, p1, scratch);
        } else {
            run_packed(conv, &xi, &yi, r, y0, y1, p0, p1, parts);
        }
    }
}
