/* The builders of the families of networks, each in the file of its name. build.c chooses among them. */
#ifndef DICE_NN_FAMILIES_H
#define DICE_NN_FAMILIES_H

#include "nn/builder.h"

/* Each fills the builder's graph and sets its `arch`. DICE_E_INPUT names a layer that does not fit. */
dice_status dice_densenet_build(dice_builder *builder);
dice_status dice_resnet_build(dice_builder *builder);       /* torchvision's, ImageNet */
dice_status dice_resnet_build_cifar(dice_builder *builder); /* 3 stages, option A shortcuts */
dice_status dice_resnetv2_build(dice_builder *builder);     /* BiT */
dice_status dice_wideresnet_build(dice_builder *builder);

#endif
