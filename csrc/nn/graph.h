/* A network as data: tensors and a list of ops over them.
 *
 * A builder (densenet.c, resnet.c, ...) turns named weights into a graph; a back end turns the graph into
 * what it runs. Letters: N images, C channels, H x W pixels, K kernel side, D features, M classes.
 *
 * A tensor has only channels: its H and W follow from those of the input, so that one graph serves every
 * image size. A tensor may be a slice of another's channels; DenseNet concatenates by ops that write into
 * slices. */
#ifndef DICE_NN_GRAPH_H
#define DICE_NN_GRAPH_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { DICE_NONE = -1 }; /* "no tensor" */

typedef struct dice_tensor {
    int32_t channels;
    int32_t parent; /* the tensor this is a slice of, or DICE_NONE; never a slice itself */
    int32_t offset; /* first channel in the parent */
} dice_tensor;

typedef enum dice_op_kind {
    /* y[o] = act(bias[o] + sum over i, tap of weight[o][i][tap] * pre(x)[i] (+ residual[o])); the padding is
     * 0 and is added after pre. */
    DICE_OP_CONV,
    /* y = max over the K x K window; padding counts as -inf, or as 0 with `zero_padded`. */
    DICE_OP_MAXPOOL,
    /* y = mean of pre(x) over the K x K window; pad must be 0. */
    DICE_OP_AVGPOOL,
    /* y[c] = mean over all pixels of pre(x)[c]; y is 1 x 1. */
    DICE_OP_GLOBAL_MEAN,
    /* y = act((x - mean) / sqrt(variance + eps) * weight[c] + bias[c]); mean and biased variance are those of
     * each of `groups` groups of channels. */
    DICE_OP_GROUPNORM
} dice_op_kind;

enum { DICE_OP_KINDS = DICE_OP_GROUPNORM + 1 };
extern const char *const dice_op_names[DICE_OP_KINDS];

typedef struct dice_op {
    dice_op_kind kind;
    int32_t x, y;     /* tensors read and written */
    int32_t residual; /* CONV: tensor added before act, or DICE_NONE */
    int32_t kernel, stride, pad;
    int32_t groups;      /* GROUPNORM */
    float eps;           /* GROUPNORM */
    int relu;            /* act(x) = max(x, 0) if 1, x if 0 */
    int zero_padded;     /* MAXPOOL */
    const float *weight; /* CONV: (C_y, C_x, K, K); GROUPNORM: (C) */
    const float *bias;   /* CONV: (C_y) or NULL; GROUPNORM: (C) */
    /* CONV, AVGPOOL, GLOBAL_MEAN: (C_x), then pre(x) = max(x * pre_scale + pre_shift, 0); NULL: pre(x) = x */
    const float *pre_scale, *pre_shift;
    char name[64]; /* of the layer in the checkpoint, for messages and profiles */
} dice_op;

/* The fields of dice_op beside kind and name, as data: for whoever makes ops from names and values. */
typedef enum dice_field_type {
    DICE_FIELD_TENSOR, /* int32_t: the id of a tensor, or DICE_NONE */
    DICE_FIELD_INT,    /* int32_t */
    DICE_FIELD_FLAG,   /* int: 0 or 1 */
    DICE_FIELD_REAL,   /* float */
    DICE_FIELD_FLOATS  /* const float *: an array of the shape that dice_op_shape gives, or NULL */
} dice_field_type;

typedef struct dice_op_field {
    const char *name;
    dice_field_type type;
    size_t offset;  /* in dice_op */
    unsigned kinds; /* bit k is set where ops of kind k read it */
    int required;
} dice_op_field;

extern const dice_op_field dice_op_fields[]; /* the last one has no name */

typedef struct dice_graph {
    char arch[32];
    dice_tensor *tensors;
    int32_t n_tensors;
    dice_op *ops;
    int32_t n_ops;
    int32_t input;                        /* the tensor that holds the normalised image */
    int32_t output;                       /* the tensor of the features; 1 x 1 pixel in a whole network */
    int32_t classes;                      /* M; 0 = no head */
    const float *head_weight, *head_bias; /* (M, D), (M) */
    float mean[3], std[3]; /* normalisation of uint8 input: (v / 255 - mean) / std, in float32 */
    int32_t image_size;    /* pixels of a side of the images that the network is trained on: 32, 224, 480 */
    /* Whether Winograd's F(2 x 2, 3 x 3) may be used: the error of this network, measured with it, stays
     * inside the bound of the precision float32. */
    int winograd;
    /* How many items the arrays above and `blobs` have room for; blobs (n_blobs) are the arrays of weights
     * that the graph owns. */
    int32_t tensors_room, ops_room, blobs_room, n_blobs;
    void **blobs;
} dice_graph;

/* *out = an empty graph. */
dice_status dice_graph_new(const char *arch, dice_graph **out);
void dice_graph_free(dice_graph *graph); /* NULL is allowed */

/* *id = a new tensor of `channels`, or a new slice [offset, offset + channels) of `parent`. */
dice_status dice_graph_tensor(dice_graph *graph, int32_t channels, int32_t *id);
dice_status dice_graph_slice(dice_graph *graph, int32_t parent, int32_t offset, int32_t channels,
                             int32_t *id);

/* Appends a copy of *op; its weight pointers must be owned by the graph (dice_graph_floats) or outlive it. */
dice_status dice_graph_push(dice_graph *graph, const dice_op *op);

/* *out = `count` floats owned by the graph, uninitialised. */
dice_status dice_graph_floats(dice_graph *graph, size_t count, float **out);

/* The tensor whose storage tensor `id` lies in: its own, or its parent's. */
static inline int32_t dice_tensor_root(const dice_graph *graph, int32_t id)
{
    const int32_t parent = graph->tensors[id].parent;
    return parent == DICE_NONE ? id : parent;
}

/* shape = that of the array `field` of *op, whose x and y are there; returns the number of dimensions. */
int dice_op_shape(const dice_graph *graph, const dice_op *op, const dice_op_field *field, int32_t shape[4]);

/* Floats at op->weight: C_y C_x K K of a CONV, C of a GROUPNORM, else 0. */
size_t dice_op_weights(const dice_graph *graph, const dice_op *op);

/* *out = a new graph of the same tensors and ops without any array of weights, or NULL on failure: enough for
 * a plan, and for a back end that packs the weights in its own way. */
dice_status dice_graph_outline(const dice_graph *graph, dice_graph **out);

/* Turns the height and width of x into those of y and returns 1. Returns 0, and changes nothing, where x is
 * smaller than the window. */
int dice_op_size(const dice_op *op, int32_t *height, int32_t *width);

/* DICE_E_INPUT if a tensor's id, channels, a kernel or a slice is wrong, or if a weight is NaN or infinite.
 * Back ends take only graphs that pass. */
dice_status dice_graph_check(const dice_graph *graph);

#endif
