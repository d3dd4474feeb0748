/* The one interface between the core and an implementation (reference, CPU, CUDA).
 *
 * An implementation exports one dice_backend. Slots return a dice_status and
 * leave their outputs untouched on failure. All arrays are C-contiguous host
 * memory unless a slot says otherwise. A slot that is NULL is not offered; the
 * core then uses its portable version.
 *
 * Letters: N images, C channels, H x W pixels, D features, M classes. */
#ifndef DICE_BACKEND_BACKEND_H
#define DICE_BACKEND_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#include "base/cpu.h"
#include "nn/graph.h"

enum { DICE_BACKEND_ABI = 4 };

/* How a convolution's products are formed: each factor is the sum of so many bfloat16 parts (base/bf16.h). */
typedef enum dice_precision { DICE_FLOAT32 = 0, DICE_BF16X3, DICE_BF16 } dice_precision;

static inline int dice_precision_parts(dice_precision precision)
{
    return precision == DICE_BF16 ? 1 : precision == DICE_BF16X3 ? 2 : 3;
}

/* Each made ready by one back end. */
typedef struct dice_net dice_net;           /* a network without its head: images to features */
typedef struct dice_linear dice_linear;     /* W and b, whole or masked: features to logits, scores */
typedef struct dice_distance dice_distance; /* means in a whitened space */

typedef struct dice_options {
    dice_precision precision;
    dice_isa isa;       /* CPU: the set to use at most */
    int device;         /* CUDA: index */
    int plain_products; /* linear_create: products may be a library's, a row's last bits then depend on N */
} dice_options;

typedef struct dice_images {
    const uint8_t *bytes; /* (N, H, W, 3) to be normalised, or NULL */
    const float *floats;  /* (N, C, H, W) already normalised, or NULL */
    size_t n;
    int32_t height, width;
} dice_images;

typedef struct dice_net_info {
    size_t arena_bytes;  /* activations, all threads, for the last image size */
    size_t weight_bytes; /* packed weights */
    const char *kernels; /* "avx512", "reference", ... : what really runs */
} dice_net_info;

typedef struct dice_linear_outputs { /* each (N) unless said; NULL = not wanted */
    double *energy;                  /* logsumexp of the logits */
    double *msp;                     /* largest softmax probability */
    double *maxlogit;
    int32_t *label; /* argmax, the first of equals */
    float *logits;  /* (N, M) */
} dice_linear_outputs;

typedef struct dice_backend {
    uint32_t abi;     /* DICE_BACKEND_ABI */
    const char *name; /* "reference", "cpu", "cuda" */

    /* Why the back end cannot run here ("no driver", ...), or NULL where it can. */
    const char *(*unavailable)(void);

    /* *net = the graph without its head: weights packed, nothing of the graph referred to afterwards. */
    dice_status (*net_create)(const dice_graph *graph, const dice_options *options, dice_net **net);

    /* features (N, D[, H', W']) of the output tensor. Each image's bits do not depend on N, on its
     * neighbours or on the number of threads. Safe from several threads. */
    dice_status (*net_forward)(dice_net *net, const dice_images *images, float *features);

    void (*net_info)(const dice_net *net, dice_net_info *info);

    /* How op `op` of the graph is done ("winograd", "maxpool", ...), and the name of its *layer; NULL past
     * the last op. Offered where there is more than one way. */
    const char *(*net_method)(const dice_net *net, int32_t op, const char **layer);
    void (*net_free)(dice_net *net);

    /* *linear = W (M, D) with b (M). keep (M, D) is 1 where a weight stays, NULL = all stay. */
    dice_status (*linear_create)(const float *weight, const float *bias, const uint8_t *keep, size_t classes,
                                 size_t features, const dice_options *options, dice_linear **linear);

    /* Logits W min(h, clip) + b of h (N, D) (INFINITY = no clip) and their reductions. The same bits for
     * every N unless options->plain_products. Safe from several threads. */
    dice_status (*linear_forward)(dice_linear *linear, const float *h, size_t n, float clip,
                                  const dice_linear_outputs *outputs);

    /* How it is stored, "dense", "sparse" or "both", and its bytes. */
    const char *(*linear_info)(const dice_linear *linear, size_t *bytes);
    void (*linear_free)(dice_linear *linear);

    /* Of the columns of h (N, D), N >= 1: mean (D) and sum of the squares about it (D), in double; *negative
     * = whether a value is below 0. */
    dice_status (*moments)(const float *h, size_t n, size_t features, const dice_options *options,
                           double *mean, double *squares, int *negative);

    /* *threshold = percentile p of V = mean (D) * W (M, D), |V| where absolute; keep (M, D) = V > threshold.
     * The bits of ood/fit/contribution.h. */
    dice_status (*rank)(const double *mean, const float *weight, size_t classes, size_t features,
                        int absolute, double p, const dice_options *options, double *threshold,
                        uint8_t *keep);

    /* *distance = centre (D), root (R, D) and means (K, R), in double. */
    dice_status (*distance_create)(const double *centre, const double *root, const double *means,
                                   size_t features, size_t rank, size_t classes, const dice_options *options,
                                   dice_distance **distance);

    /* out (N) = the least |root (h - centre) - mean|^2, in double; h (N, D) is float, or double where
     * is_double. The last bits may depend on N, not on the run. Safe from several threads. */
    dice_status (*distance_forward)(dice_distance *distance, const void *h, int is_double, size_t n,
                                    double *out);
    void (*distance_free)(dice_distance *distance);

    /* Waits for what `stream` of the caller's (0: nothing) has under way on the device that holds x, then
     * *finite = whether the first `count` floats of x are neither NaN nor infinity. Offered where images,
     * features, weights and outputs may also be memory of a device. */
    dice_status (*arrived)(const dice_options *options, uintptr_t stream, const float *x, size_t count,
                           int *finite);
} dice_backend;

extern const dice_backend dice_backend_reference; /* plain C, double sums: the truth */
extern const dice_backend dice_backend_cpu;

/* *out = the back end that serves `device` ("cpu", "cuda", "cuda:1") at options->isa; scalar means the
 * reference. Sets options->device. DICE_E_DEVICE where there is none, with the reason. */
dice_status dice_backend_find(const char *device, dice_options *options, const dice_backend **out);

#endif
