/* The kernels that the CPU back end needs for each instruction set.
 *
 * Activations lie in channel blocks of 16: (C / 16, H x W pixels, 16). So one pixel of one block is one cache
 * line, and a K x K convolution reads shifted rows. Lanes past the last channel may hold anything. */
#ifndef DICE_CPU_KERNELS_H
#define DICE_CPU_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/cpu.h"
#include "cpu/linear_kernels.h"

enum { DICE_BLOCK = 16 };

/* One image's tensor, or a slice of its channels. */
typedef struct dice_view {
    float *data;              /* pixel (0, 0) of block 0 of the whole tensor */
    int32_t channels, offset; /* the slice is channels [offset, offset + channels) */
    int32_t height, width;
    int32_t border;  /* zero pixels kept around the image */
    ptrdiff_t pitch; /* floats from a row to the next; a pixel is DICE_BLOCK floats */
    ptrdiff_t plane; /* floats from a block to the next */
} dice_view;

/* Whether channels [first, first + 16 count) are `count` blocks of the tensor, and the slice has all of
 * them. */
static inline int dice_view_has_blocks(const dice_view *view, int32_t first, int count)
{
    return (view->offset + first) % DICE_BLOCK == 0 && view->channels - first >= count * DICE_BLOCK;
}

/* Where the inputs of a convolution's sums lie: for each tap and channel block a pointer to consecutive
 * pixels. */
typedef struct dice_conv_sum {
    const float *const *a; /* (taps, blocks) */
    int32_t taps, blocks;
    int32_t tail; /* channels in the last block, 1 to 16 */
} dice_conv_sum;

/* Where a tile is stored: R consecutive pixels of V blocks, to which a residual is added first, then the ReLU
 * is applied. */
typedef struct dice_conv_out {
    float *y;              /* (V blocks, R, 16) */
    ptrdiff_t plane;       /* floats from a block to the next */
    const float *residual; /* (V blocks, R, 16); NULL: nothing is added */
    ptrdiff_t residual_plane;
    int relu;
} dice_conv_out;

/* out (V, R, 16) = bias (V, 16) + the sum over taps and channels of R pixels, which begin `shift` floats
 * after the pointers of `sum`, times w (taps x channels, V, 16). */
typedef void (*dice_conv_tile)(const dice_conv_sum *sum, ptrdiff_t shift, const float *w, const float *bias,
                               const dice_conv_out *out);

/* A tile in working memory, not yet in a tensor: float c (V, DICE_TILE_ROWS, 16). Its rows are pixels, of
 * which the first R are filled. */
enum { DICE_TILE_ROWS = 32, DICE_TILE_PLANE = DICE_TILE_ROWS * DICE_BLOCK };

typedef struct dice_conv_tiles {
    int max_rows[3];            /* largest R for V = 1, 2, 3; 0 = V is not offered */
    dice_conv_tile tile[3][16]; /* [V - 1][R - 1] */
} dice_conv_tiles;

/* Convolution on the tile unit (AMX), whose factors are sums of `parts` bfloat16 parts, 1 to 3. Channel
 * blocks are taken in pairs: a pixel of a pair is 32 values, lane 0 of both blocks, then lane 1 of both, and
 * so on. */
typedef struct dice_amx_kernels {
    void (*begin)(void); /* before `tile` is used on a thread, and after */
    void (*end)(void);
    /* to (parts, room, 32) = the parts of the pixels of two blocks, a (rows, 16) and b (rows, 16). Lanes from
     * lanes_a on in a, and from lanes_b on in b, count as zero. */
    void (*split)(const float *a, int lanes_a, const float *b, int lanes_b, int32_t rows, int parts,
                  size_t room, uint16_t *to);
    /* c (2, DICE_TILE_ROWS, 16) = bias (32) + a (pairs, parts, room, 32) times w (pairs, parts, 2, 16,
     * 32). */
    void (*tile)(const uint16_t *a, size_t room, int32_t pairs, int parts, const uint16_t *w,
                 const float *bias, float *c);
} dice_amx_kernels;

/* The transforms of F(2 x 2, 3 x 3): a patch of 4 x 4 inputs gives 2 x 2 outputs. */
typedef struct dice_winograd_kernels {
    /* One patch and block: v (16 elements, spacing floats apart, 16) from the pixels at[i] + shift, i = 4 y +
     * x; at[i] == zeros is a pixel outside. */
    void (*input)(const float *const *at, ptrdiff_t shift, const float *zeros, float *v, size_t spacing);
    /* The 2 x 2 output pixels from m (16 elements, spacing floats apart, 16), which go to out->y; their two
     * rows are out->plane floats apart. */
    void (*output)(const float *m, size_t spacing, const dice_conv_out *out);
} dice_winograd_kernels;

/* The prologue of an op: max(x * scale + shift, 0) for each channel, or x where scale is NULL. Both arrays
 * are padded to whole blocks. */
typedef struct dice_affine {
    const float *scale, *shift;
} dice_affine;

typedef struct dice_cpu_kernels {
    const char *name;
    const dice_conv_tiles *conv;
    const dice_winograd_kernels *winograd;
    const dice_linear_kernels *linear;
    const dice_amx_kernels *amx; /* NULL without the tile unit */

    /* Each of x (count, 16) becomes the sum of its first `parts` bfloat16 parts, 1 or 2. */
    void (*round)(float *x, size_t count, int parts);

    /* Stores a tile c (vectors, DICE_TILE_ROWS, 16) of outputs [first, first + 16 vectors) in y: adds the
     * residual (NULL: none), then applies the ReLU. Row r goes to the pixel at[r] floats into a block of y;
     * its residual lies residual_at[r] floats into a block of `residual`. */
    void (*conv_store)(const float *c, int rows, int vectors, int32_t first, const dice_view *y,
                       const ptrdiff_t *at, const dice_view *residual, const ptrdiff_t *residual_at,
                       int relu);

    /* The inputs of one output pixel from a narrow tensor: `rows` rows of `length` floats, `pitch` floats
     * apart, as one list in blocks of 16 that begin `spacing` floats apart, with zeros at the end of the
     * last. */
    void (*conv_pack_narrow)(float *to, size_t spacing, const float *from, ptrdiff_t pitch, int32_t rows,
                             int32_t length);

    /* to (count, 16) = pre(channels [channel, channel + 16)) of the pixels that lie from, from + spacing, ...
     * floats into a block of x. */
    void (*conv_pack)(float *to, const dice_view *x, int32_t channel, ptrdiff_t from, ptrdiff_t spacing,
                      int32_t count, dice_affine pre);

    /* Compute rows [y0, y1) of y. */
    void (*maxpool)(const dice_view *x, const dice_view *y, int32_t kernel, int32_t stride, int32_t pad,
                    int zero_padded, int32_t y0, int32_t y1);
    void (*avgpool)(const dice_view *x, const dice_view *y, int32_t kernel, int32_t stride, dice_affine pre,
                    int32_t y0, int32_t y1);

    /* Computes channels [c0, c1) of the one pixel of y; both ends are multiples of a block, or C. */
    void (*global_mean)(const dice_view *x, const dice_view *y, dice_affine pre, int32_t c0, int32_t c1);

    /* Computes channels [c0, c1) of y; both ends are multiples of dice_groupnorm_unit, or C, so that no group
     * is cut. */
    void (*groupnorm)(const dice_view *x, const dice_view *y, int32_t groups, float eps, const float *weight,
                      const float *bias, int relu, int32_t c0, int32_t c1);
} dice_cpu_kernels;

/* The least number of channels that makes whole groups of `size` channels and whole blocks; at most 16
 * groups. */
static inline int32_t dice_groupnorm_unit(int32_t size)
{
    int32_t unit = size;
    while (unit % DICE_BLOCK != 0) {
        unit += size;
    }
    return unit;
}

extern const dice_conv_tiles dice_conv_tiles_avx2, dice_conv_tiles_avx512;
extern const dice_winograd_kernels dice_winograd_kernels_avx2, dice_winograd_kernels_avx512;
extern const dice_amx_kernels dice_amx_kernels_amx;
extern const dice_cpu_kernels dice_cpu_kernels_avx2, dice_cpu_kernels_avx512, dice_cpu_kernels_amx;

/* The best kernels in this build that `isa` can run, or NULL. */
const dice_cpu_kernels *dice_cpu_kernels_for(dice_isa isa);

#endif
