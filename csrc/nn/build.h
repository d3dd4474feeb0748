/* From named weights to a graph: the choice among the families of networks. */
#ifndef DICE_NN_BUILD_H
#define DICE_NN_BUILD_H

#include "nn/graph.h"
#include "nn/weights.h"

/* *out = the network `arch` with these weights; NULL recognises it by names and shapes. Names: densenet,
 * wideresnet, resnet18, 34, 50, 101, 152, CIFAR's resnet20, 32, 44, 56, 110, and BiT-R50x1, R50x3, R101x1,
 * R101x3, R152x2, R152x4 (BiT-S-, BiT-M- too). The graph is checked. DICE_E_INPUT says which layer is
 * missing, of another shape or too many, and what was found in weights that fit no network. */
dice_status dice_build(const char *arch, dice_weights *weights, dice_graph **out);

#endif
