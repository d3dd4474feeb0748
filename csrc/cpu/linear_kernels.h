/* What linear asks of an instruction set: products of a tile of images with packed weights, and
 * reductions.
 *
 * Images are packed by features, ht (D, lanes), 16 or 32 to a tile; one alone stays as it is. Dense weights
 * lie by vectors of 16 classes, (M / 16, D, 16). Sparse weights lie by panels of classes and, within, by
 * blocks of features; a block holds groups of four classes of about equally many weights, sorted so, each a
 * run of slots (weight, feature in the block) by rising feature, filled up with weights of 0. */
#ifndef DICE_CPU_LINEAR_KERNELS_H
#define DICE_CPU_LINEAR_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum {
    DICE_LINEAR_SPAN = 256,  /* features of a block: a chain of float sums; an index is one byte */
    DICE_LINEAR_PANEL = 128, /* classes of a sparse panel */
    DICE_LINEAR_GROUP = 4,   /* classes of a group */
    DICE_LINEAR_VECTORS = 4, /* vectors of 16 classes of a dense panel */
    DICE_LINEAR_IMAGES = 32  /* of a tile, at most */
};

typedef struct dice_linear_group {
    uint16_t slots;
    uint8_t row[DICE_LINEAR_GROUP]; /* classes, counted within the panel */
} dice_linear_group;

typedef struct dice_linear_kernels {
    /* ht (D, lanes) = min(h (n, D), clip)'; lanes past n are 0. */
    void (*pack)(float *ht, size_t lanes, const float *h, size_t n, size_t features, float clip);
    /* logits (n, classes), rows `stride` floats apart, = z (classes, lanes)'. */
    void (*unpack)(float *logits, size_t stride, const float *z, size_t lanes, size_t n, size_t classes);
    /* z (classes, lanes) += a block's groups times ht (DICE_LINEAR_SPAN, lanes), for 1, 16 and 32 lanes; NULL
     * = not offered. */
    void (*sparse[3])(const float *ht, const dice_linear_group *groups, size_t n_groups, const float *weight,
                      const uint8_t *index, float *z);
    /* z (n up to a multiple of 4, 64) += a block of `count` features, w (vectors, .. w_stride, 16). */
    void (*dense)(const float *ht, size_t lanes, size_t n, const float *w, size_t w_stride, int vectors,
                  size_t count, float *z);
    /* *max = largest of z (m), *sum = sum of exp(z - max). */
    void (*reduce)(const float *z, size_t m, float *max, double *sum);
} dice_linear_kernels;

extern const dice_linear_kernels dice_linear_kernels_avx2, dice_linear_kernels_avx512;

#endif
