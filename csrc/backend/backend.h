/* The one interface between the core and an implementation (reference, CPU, CUDA).
 *
 * An implementation exports one dice_backend, a table of functions called slots. A slot returns a dice_status
 * and leaves its outputs untouched on failure. All arrays are C-contiguous host memory unless a slot says
 * otherwise. A slot that is NULL is not offered: the core's portable version then does that work on the host.
 * The slots net_* come together, and so do linear_* and distance_*.
 *
 * Letters: N images, C channels, H x W pixels, D features, M classes. */
#ifndef DICE_BACKEND_BACKEND_H
#define DICE_BACKEND_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#include "base/cpu.h"
#include "nn/graph.h"

enum { DICE_BACKEND_ABI = 5 };

/* How a convolution forms its products: each factor is a sum of 3 (FLOAT32), 2 (BF16X3) or 1 (BF16) bfloat16
 * parts (base/bf16.h). */
typedef enum dice_precision { DICE_FLOAT32 = 0, DICE_BF16X3, DICE_BF16 } dice_precision;

static inline int dice_precision_parts(dice_precision precision)
{
    return precision == DICE_BF16 ? 1 : precision == DICE_BF16X3 ? 2 : 3;
}

/* Each of these belongs to the back end that made it. */
typedef struct dice_net dice_net;       /* a network without its head: makes features of images */
typedef struct dice_linear dice_linear; /* W and b, whole or masked: makes logits and scores of features */
typedef struct dice_distance dice_distance; /* means in a whitened space: makes distances of features */

typedef struct dice_options {
    dice_precision precision;
    dice_isa isa; /* CPU: the most capable set that may be used */
    int device;   /* CUDA: the device's index */
    /* linear_create: the products may be a library's; the last bits of a row then depend on N. */
    int plain_products;
} dice_options;

typedef struct dice_images {
    const uint8_t *bytes; /* (N, H, W, 3), not normalised, or NULL */
    const float *floats;  /* (N, C, H, W), normalised, or NULL */
    size_t n;
    int32_t height, width;
} dice_images;

typedef struct dice_net_info {
    size_t arena_bytes;  /* of the activations of all threads at the last image size */
    size_t weight_bytes; /* of the packed weights */
    const char *kernels; /* the kernels that run: "avx512", "reference", ... */
} dice_net_info;

typedef struct dice_linear_outputs { /* each (N) but the logits; NULL = not wanted */
    double *energy;                  /* logsumexp of the logits */
    double *msp;                     /* largest softmax probability */
    double *maxlogit;
    int32_t *label; /* index of the largest logit, the first where several are equal */
    float *logits;  /* (N, M) */
} dice_linear_outputs;

typedef struct dice_backend {
    uint32_t abi;     /* DICE_BACKEND_ABI */
    const char *name; /* "reference", "cpu", "cuda" */

    /* Why the back end cannot run on this machine ("no driver", ...), or NULL if it can. */
    const char *(*unavailable)(void);

    /* Whether net_create takes ops of this kind; NULL = of every kind. */
    int (*net_takes)(dice_op_kind kind);

    /* *net = the graph without its head, with packed copies of its weights; the graph may be freed
     * afterwards. */
    dice_status (*net_create)(const dice_graph *graph, const dice_options *options, dice_net **net);

    /* features (N, D), or (N, D, H', W') where the output tensor has more than one pixel. The bits of an
     * image depend neither on the other images nor on the number of threads. Safe from several threads. */
    dice_status (*net_forward)(dice_net *net, const dice_images *images, float *features);

    void (*net_info)(const dice_net *net, dice_net_info *info);

    /* The algorithm of op `op` of the graph ("winograd", "maxpool", ...), and the name of its *layer; NULL
     * after the last op. Offered by back ends that have several algorithms for an op. */
    const char *(*net_algorithm)(const dice_net *net, int32_t op, const char **layer);
    void (*net_free)(dice_net *net);

    /* *linear = W (M, D) with b (M). keep (M, D) is 1 where a weight stays, NULL = all stay. */
    dice_status (*linear_create)(const float *weight, const float *bias, const uint8_t *keep, size_t classes,
                                 size_t features, const dice_options *options, dice_linear **linear);

    /* Logits W min(h, clip) + b of h (N, D), and their reductions; clip INFINITY = no clip. The same bits for
     * every N unless options->plain_products was set. Safe from several threads. */
    dice_status (*linear_forward)(dice_linear *linear, const float *h, size_t n, float clip,
                                  const dice_linear_outputs *outputs);

    /* The reductions of logits z (N, M) that are there already: the bits that linear_forward gives beside
     * them. outputs->logits is NULL. Safe from several threads. NULL = the caller has them computed anew. */
    dice_status (*linear_reduce)(const dice_linear *linear, const float *z, size_t n,
                                 const dice_linear_outputs *outputs);

    /* How the weights are stored, "dense", "sparse" or "both", and their *bytes. */
    const char *(*linear_info)(const dice_linear *linear, size_t *bytes);
    void (*linear_free)(dice_linear *linear);

    /* mean (D) of the columns of h (N, D), N >= 1, and squares (D), the sums of the squared differences from
     * it, in double; *negative = whether a value is below 0. */
    dice_status (*moments)(const float *h, size_t n, size_t features, const dice_options *options,
                           double *mean, double *squares, int *negative);

    /* *threshold = percentile p of V = mean (D) * W (M, D), or of |V| where `absolute`; keep (M, D) = V >
     * threshold. The same bits as ood/fit/contribution.h. */
    dice_status (*rank)(const double *mean, const float *weight, size_t classes, size_t features,
                        int absolute, double p, const dice_options *options, double *threshold,
                        uint8_t *keep);

    /* *distance holds copies of centre (D), root (R, D) and means (K, R), in double. */
    dice_status (*distance_create)(const double *centre, const double *root, const double *means,
                                   size_t features, size_t rank, size_t classes, const dice_options *options,
                                   dice_distance **distance);

    /* out (N) = the least |root (h - centre) - mean|^2 over the means, in double; h (N, D) is float, or
     * double where `is_double`. The last bits may depend on N, but are the same in every run. Safe from
     * several threads. */
    dice_status (*distance_forward)(dice_distance *distance, const void *h, int is_double, size_t n,
                                    double *out);
    void (*distance_free)(dice_distance *distance);

    /* Waits for the work under way in the caller's `stream` (0: no wait) on the device that holds x; then
     * *finite = whether the first `count` floats of x are neither NaN nor infinity. Offered by back ends
     * whose images, features, weights and outputs may lie in memory of a device; they offer all slots that
     * are given such arrays, since the host cannot read them. */
    dice_status (*arrived)(const dice_options *options, uintptr_t stream, const float *x, size_t count,
                           int *finite);
} dice_backend;

extern const dice_backend dice_backend_reference; /* plain C, double sums: the truth */
extern const dice_backend dice_backend_cpu;

/* *out = the back end that serves `device` ("cpu", "cuda", "cuda:1") at options->isa; for the scalar set that
 * is the reference. Sets options->device. DICE_E_DEVICE, with the reason, where there is none. */
dice_status dice_backend_find(const char *device, dice_options *options, const dice_backend **out);

/* *backend stays where it runs every op of the graph; else it becomes the back end of the host that does.
 * DICE_E_DEVICE, with the layer, where arrays in memory of a device forbid that. */
dice_status dice_backend_for_graph(const dice_graph *graph, const dice_options *options,
                                   const dice_backend **backend);

/* `backend`, or that of the host where `backend` offers no linear. */
const dice_backend *dice_backend_for_linear(const dice_backend *backend, const dice_options *options);

#endif
