/* A network on the CPU: what net.c (making and planning) and run.c (running) share. */
#ifndef DICE_CPU_NET_H
#define DICE_CPU_NET_H

#include <pthread.h>

#include "backend/backend.h"
#include "cpu/conv.h"
#include "cpu/kernels.h"
#include "nn/plan.h"

/* An op made ready; the geometry comes from the plan. */
typedef struct dice_step {
    dice_op op;           /* pointers into the graph are not kept */
    dice_conv conv;       /* CONV */
    float *scale, *shift; /* prologue of pools and means, or weight and bias of GROUPNORM; whole blocks */
} dice_step;

struct dice_net {
    const dice_cpu_kernels *kernels;
    dice_tensor *tensors;
    int32_t n_tensors;
    dice_step *steps;
    int32_t n_steps;
    int32_t input, output;
    int winograd;             /* allowed */
    int parts;                /* of the precision: see conv.h */
    int narrow_input;         /* the input has fewer channels than a block */
    float byte_value[3][256]; /* normalised */
    size_t weight_bytes;
    int group; /* images that a thread takes through the network together */

    /* for one image size */
    pthread_mutex_t lock;
    int32_t height, width;
    dice_plan plan;
    int32_t *border;      /* (n_tensors) */
    size_t image_floats;  /* arena of one image */
    size_t scratch_bytes; /* of one thread */
    int threads;
    char *memory; /* per thread: group arenas, scratch */
    size_t memory_bytes;
};

/* Plans for this image size and number of threads, unless that is what is planned. Under the lock. */
dice_status dice_net_plan(dice_net *net, int32_t height, int32_t width, int threads);

/* The view of a tensor in the arena at `arena`. */
dice_view dice_net_view(const dice_net *net, int32_t tensor, float *arena);

dice_status dice_net_forward(dice_net *net, const dice_images *images, float *features);

#endif
