/* Turns named weights into a graph: recognises the family of networks and calls its builder. */
#ifndef DICE_NN_BUILD_H
#define DICE_NN_BUILD_H

#include "nn/graph.h"
#include "nn/weights.h"

/* *out = the network `arch` with these weights, checked. Where `arch` is NULL the names and shapes of the
 * weights tell which network it is. The names are those of the table `families` in build.c; BiT's also as
 * BiT-S- and BiT-M-. DICE_E_INPUT names the layer that is missing, has another shape or does not belong
 * to the network, or the weights that fit no network. */
dice_status dice_build(const char *arch, dice_weights *weights, dice_graph **out);

#endif
