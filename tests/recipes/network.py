"""A family of networks, stamp: two convolutions and a last layer, with a resize of its own."""

from recipes.addition import Addition, Edit, tests

SOURCE = r"""/* Stamp: two convolutions with their BatchNorms, and the mean of what they give. */
#include <stdio.h>

#include "nn/families.h"

dice_status dice_stamp_build(dice_builder *b)
{
    static const char *const convs[2] = {"press", "ink"}, *const norms[2] = {"dry", "fix"};
    dice_graph *graph = b->graph;
    snprintf(graph->arch, sizeof graph->arch, "stamp");
    dice_builder_normalize(b, dice_cifar_mean, dice_cifar_std, 32);
    dice_status status = dice_graph_tensor(graph, 3, &graph->input);
    int32_t x = graph->input;
    for (int i = 0; status == DICE_OK && i < 2; i++) {
        const int kernel = i == 0 ? 3 : 1;
        int32_t y = x;
        status = dice_graph_tensor(graph, dice_builder_dim(b, 0, "%s.weight", convs[i]), &y);
        if (status == DICE_OK) {
            status = dice_builder_conv(b, &(dice_conv_spec){.x = x,
                                                            .y = y,
                                                            .residual = DICE_NONE,
                                                            .kernel = kernel,
                                                            .stride = 2 - i,
                                                            .pad = kernel / 2,
                                                            .relu = 1,
                                                            .name = convs[i],
                                                            .post_bn = norms[i]});
        }
        x = y;
    }
    if (status == DICE_OK) {
        status = dice_graph_tensor(graph, graph->tensors[x].channels, &graph->output);
    }
    if (status == DICE_OK) {
        status = dice_builder_mean(b, x, graph->output, 0, NULL);
    }
    return status == DICE_OK ? dice_builder_head(b, "fc") : status;
}
"""

ADDITION = Addition(
    recipe="A network",
    names={"<family>": "stamp"},
    new={"csrc/nn/stamp.c": SOURCE},
    edits=[
        Edit(
            "csrc/nn/families.h",
            "dice_status dice_wideresnet_build(dice_builder *builder);\n",
            after="dice_status dice_stamp_build(dice_builder *builder);\n",
        ),
        Edit(
            "csrc/nn/build.c",
            '    {"", {"resnet/root_block',
            before='    {"stamp", {"press.weight", "ink.weight"}, dice_stamp_build},\n',
        ),
        Edit(
            "dice/images/preprocess.py",
            '    (r"bit(-.*)?|resnetv2.*",',
            before='    (r"stamp", Transform("stamp", 36, 32)),\n',
        ),
        Edit(
            "tests/networks.py",
            "# name -> (formula, side of the images to try it with).",
            before="""def stamp(width=5, classes=6):
    def run(net, x):
        x = net.relu(net.norm(net.conv(x, "press", width, 3, 2), "dry"))
        x = net.relu(net.norm(net.conv(x, "ink", 2 * width, 1), "fix"))
        return net.head(x, "fc", classes)

    return run


""",
        ),
        Edit(
            "tests/networks.py",
            '    "wideresnet": (wideresnet(), 18),\n',
            after='    "stamp": (stamp(), 18),\n',
        ),
    ],
    checks=[
        tests("test_backbone.py", "stamp or refuses_names"),
        [
            "-c",
            """
from networks import NETWORKS
from test_backbone import drawn
from dice import load_backbone
from dice.images.preprocess import transform_for
net = load_backbone("stamp", drawn(*NETWORKS["stamp"]))
assert transform_for(net.arch).name == "stamp"
""",
        ],
    ],
)
