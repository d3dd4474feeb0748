/* The families of networks and the choice among them. See build.h. */
#include "nn/build.h"

#include <stdio.h>
#include <string.h>

#include "nn/families.h"

typedef struct family {
    const char *names;  /* the networks of this family, with spaces between them */
    const char *has[2]; /* two weights that together only this family has */
    dice_status (*build)(dice_builder *builder);
} family;

static const family families[] = {
    {"densenet", {"block1.layer.0.bn1.weight", "trans1.conv1.weight"}, dice_densenet_build},
    {"wideresnet", {"block1.layer.0.convShortcut.weight", "fc.weight"}, dice_wideresnet_build},
    {"resnet18 resnet34 resnet50 resnet101 resnet152",
     {"layer4.0.conv1.weight", "fc.weight"},
     dice_resnet_build},
    {"resnet20 resnet32 resnet44 resnet56 resnet110",
     {"layer3.0.conv1.weight", "linear.weight"},
     dice_resnet_build_cifar},
    {"BiT-R50x1 BiT-R50x3 BiT-R101x1 BiT-R101x3 BiT-R152x2 BiT-R152x4",
     {"root.conv.weight", "before_head.gn.weight"},
     dice_resnetv2_build},
    {"", {"resnet/root_block/standardized_conv2d/kernel", "resnet/group_norm/gamma"}, dice_resnetv2_build},
};
enum { FAMILIES = sizeof families / sizeof families[0] };

static int has(const dice_weights *weights, const char *name)
{
    return dice_weights_find(weights, "%s", name) != NULL;
}

/* known = the names of all networks, separated by blanks. */
static void list_networks(char known[512])
{
    known[0] = '\0';
    for (size_t i = 0, used = 0; i < FAMILIES; i++) {
        const char *gap = used > 0 && families[i].names[0] != '\0' ? " " : "";
        used += (size_t)snprintf(known + used, 512 - used, "%s%s", gap, families[i].names);
    }
}

static dice_status recognise(const dice_weights *weights, const family **out)
{
    char held[320], known[512];
    for (size_t i = 0; i < FAMILIES; i++) {
        if (has(weights, families[i].has[0]) && has(weights, families[i].has[1])) {
            *out = &families[i];
            return DICE_OK;
        }
    }
    dice_weights_list(weights, 0, held, sizeof held);
    list_networks(known);
    if (has(weights, "layer3.0.conv1.weight") && has(weights, "fc.weight")) {
        return dice_fail(DICE_E_INPUT,
                         "a ResNet, but names and shapes leave a doubt which; name it (arch). Found: %s",
                         held);
    }
    return dice_fail(DICE_E_INPUT,
                     "no known network has these weights: %s. Known are %s. Of another network, compute "
                     "features by its own framework and give them, with its last layer W and b, to "
                     "dice.fit_and_score; a later version of dice reads ONNX",
                     held, known);
}

/* Is `name` one of the words of `names`? */
static int is_word(const char *names, const char *name)
{
    const size_t length = strlen(name);
    for (const char *at = names; (at = strstr(at, name)) != NULL; at += length) {
        if ((at == names || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0')) {
            return 1;
        }
    }
    return 0;
}

static dice_status find_family(const char *name, const char *arch, const family **out)
{
    for (size_t i = 0; i < FAMILIES; i++) {
        if (name[0] != '\0' && is_word(families[i].names, name)) {
            *out = &families[i];
            return DICE_OK;
        }
    }
    char known[512];
    list_networks(known);
    return dice_fail(DICE_E_INPUT, "arch %.40s: not one of %s", arch, known);
}

/* The name without the training data, which the weights do not tell: "BiT-S-R50x1" becomes "BiT-R50x1". */
static void canonical(const char *arch, char name[32])
{
    const int is_bit = strncmp(arch, "BiT-S-", 6) == 0 || strncmp(arch, "BiT-M-", 6) == 0;
    snprintf(name, 32, "%s%s", is_bit ? "BiT-" : "", is_bit ? arch + 6 : arch);
}

/* Fills the builder's graph. DICE_E_INPUT if the weights are not those of `arch` (NULL = any). */
static dice_status build(const char *arch, dice_builder *builder)
{
    const family *chosen = NULL;
    char name[32];
    canonical(arch == NULL ? "" : arch, name);
    dice_status status = arch == NULL ? recognise(builder->weights, &chosen)
                                      : find_family(name, arch, &chosen);
    if (status != DICE_OK) {
        return status;
    }
    status = chosen->build(builder);
    char *built = builder->graph->arch;
    if (status == DICE_OK && arch != NULL) {
        if (strcmp(name, built) != 0) {
            return dice_fail(DICE_E_INPUT, "arch %.40s: the weights are those of %s", arch, built);
        }
        snprintf(built, sizeof builder->graph->arch, "%s", arch);
    }
    if (status == DICE_OK) {
        status = dice_weights_check_used(builder->weights, built);
    }
    return status == DICE_OK ? dice_graph_check(builder->graph) : status;
}

dice_status dice_build(const char *arch, dice_weights *weights, dice_graph **out)
{
    dice_builder builder = {.weights = weights};
    *out = NULL;
    dice_status status = dice_graph_new("", &builder.graph);
    if (status != DICE_OK) {
        return status;
    }
    status = build(arch, &builder);
    if (status == DICE_OK) {
        *out = builder.graph;
    } else {
        dice_graph_free(builder.graph);
    }
    return status;
}
