/* The slots of the back end, by file; backend.cu puts them together. backend/backend.h has their shapes and
 * promises. Every array may lie in host or device memory; its address tells which. */
#ifndef DICE_CUDA_SLOTS_CUH
#define DICE_CUDA_SLOTS_CUH

#include "common.cuh"

/* net.cu */
int net_takes(dice_op_kind kind);
dice_status net_create(const dice_graph *graph, const dice_options *options, dice_net **net);
dice_status net_forward(dice_net *net, const dice_images *images, float *features);
void net_info(const dice_net *net, dice_net_info *info);
void net_free(dice_net *net);

/* linear.cu */
dice_status linear_create(const float *weight, const float *bias, const uint8_t *keep, size_t classes,
                          size_t features, const dice_options *options, dice_linear **linear);
dice_status linear_forward(dice_linear *linear, const float *h, size_t n, float clip,
                           const dice_linear_outputs *outputs);
const char *linear_info(const dice_linear *linear, size_t *bytes);
void linear_free(dice_linear *linear);

/* statistics.cu */
dice_status statistics_moments(const float *h, size_t n, size_t features, const dice_options *options,
                               double *mean, double *squares, int *negative);
dice_status statistics_rank(const double *mean, const float *weight, size_t classes, size_t features,
                            int absolute, double p, const dice_options *options, double *threshold,
                            uint8_t *keep);
/* *finite = whether x (count), in device memory, holds neither NaN nor infinity. */
dice_status statistics_finite(const float *x, size_t count, int device, int *finite);

/* distance.cu */
dice_status distance_create(const double *centre, const double *root, const double *means, size_t features,
                            size_t rank, size_t classes, const dice_options *options, dice_distance **out);
dice_status distance_forward(dice_distance *distance, const void *h, int is_double, size_t n, double *out);
void distance_free(dice_distance *distance);

#endif
