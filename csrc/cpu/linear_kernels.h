/* The kernels that linear needs for each instruction set: products of a bundle of images with packed weights,
 * and reductions of logits.
 *
 * A bundle of 16 or 32 images is packed as ht (D, lanes), an image in each lane; a single image stays h (D).
 * Dense weights are packed as (M / 16, D, 16). Sparse weights are packed by panels of DICE_LINEAR_PANEL
 * classes and, in a panel, by blocks of DICE_LINEAR_BLOCK features. In a block the classes are sorted by how
 * many weights they keep, most first, and cut into quads, four classes each. A quad has as many entries as
 * its first class has weights. An entry holds, for each of the four classes, a weight and the number of its
 * feature in the block, in rising order of features; a class with fewer weights has weights of 0 in its last
 * entries. */
#ifndef DICE_CPU_LINEAR_KERNELS_H
#define DICE_CPU_LINEAR_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum {
    DICE_LINEAR_BLOCK = 256, /* features of a block: a chain of float sums; an index is one byte */
    DICE_LINEAR_PANEL = 128, /* classes of a sparse panel */
    DICE_LINEAR_QUAD = 4,    /* classes of a quad */
    DICE_LINEAR_VECTORS = 4, /* vectors of 16 classes of a dense panel */
    DICE_LINEAR_IMAGES = 32  /* of a bundle, at most */
};

typedef struct dice_linear_quad {
    uint16_t entries;
    uint8_t row[DICE_LINEAR_QUAD]; /* classes, counted within the panel */
} dice_linear_quad;

typedef struct dice_linear_kernels {
    /* ht (D, lanes) = min(h (n, D), clip)'; lanes past n are 0. */
    void (*pack)(float *ht, size_t lanes, const float *h, size_t n, size_t features, float clip);
    /* logits (n, classes), rows `stride` floats apart, = z (classes, lanes)'. */
    void (*unpack)(float *logits, size_t stride, const float *z, size_t lanes, size_t n, size_t classes);
    /* z (classes, lanes) += a block's quads times ht (DICE_LINEAR_BLOCK, lanes), for 1, 16 and 32 lanes; NULL
     * = not offered. */
    void (*sparse[3])(const float *ht, const dice_linear_quad *quads, size_t n_quads, const float *weight,
                      const uint8_t *index, float *z);
    /* z (n, 64) += ht (count, lanes)' w for a block of `count` features; w is (vectors, count, 16), its
     * vectors w_stride floats apart. z has room for n rounded up to a multiple of 4. */
    void (*dense)(const float *ht, size_t lanes, size_t n, const float *w, size_t w_stride, int vectors,
                  size_t count, float *z);
    /* *max = largest of z (m), *sum = sum of exp(z - max). */
    void (*reduce)(const float *z, size_t m, float *max, double *sum);
} dice_linear_kernels;

extern const dice_linear_kernels dice_linear_kernels_avx2, dice_linear_kernels_avx512;

#endif
