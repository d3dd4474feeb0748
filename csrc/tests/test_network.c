/* A network from weights to logits on every instruction set: each allocation may fail, and no array is read
 * or written past its end. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "backend/backend.h"
#include "base/memory.h"
#include "base/threads.h"
#include "nn/build.h"
#include "tests/check.h"

enum { SIDE = 8, FEATURES = 5, CLASSES = 3, IMAGES = 3, MAX_WEIGHTS = 64 };

/* The smallest DenseNet-BC with a transition, weights and shapes. */
static dice_weight weights[MAX_WEIGHTS];
static char names[MAX_WEIGHTS][48];
static size_t n_weights;

static void add_weight(const char *name, int32_t ndim, int32_t a, int32_t b, int32_t side)
{
    CHECK(n_weights < MAX_WEIGHTS);
    dice_weight *w = &weights[n_weights];
    snprintf(names[n_weights], sizeof names[n_weights], "%s", name);
    *w = (dice_weight){.name = names[n_weights], .ndim = ndim, .shape = {a, b, side, side}};
    n_weights++;
    const size_t count = (size_t)a * (ndim > 1 ? (size_t)b : 1) * (ndim > 2 ? (size_t)(side * side) : 1);
    float *data = guarded(count * sizeof *data);
    for (size_t i = 0; i < count; i++) {
        data[i] = 0.1f * (float)(i % 7 + 1); /* positive: some are variances */
    }
    w->data = data;
}

static void add_conv(const char *name, int32_t out, int32_t in, int32_t side)
{
    char full[48];
    snprintf(full, sizeof full, "%s.weight", name);
    add_weight(full, 4, out, in, side);
}

static void add_bn(const char *name, int32_t channels)
{
    static const char *const fields[] = {"weight", "bias", "running_mean", "running_var"};
    for (int i = 0; i < 4; i++) {
        char full[48];
        snprintf(full, sizeof full, "%s.%s", name, fields[i]);
        add_weight(full, 1, channels, 0, 0);
    }
}

static void make_weights(void)
{
    add_conv("conv1", 4, 3, 3);
    add_bn("block1.layer.0.bn1", 4);
    add_conv("block1.layer.0.conv1", 8, 4, 1);
    add_bn("block1.layer.0.bn2", 8);
    add_conv("block1.layer.0.conv2", 2, 8, 3);
    add_bn("trans1.bn1", 6);
    add_conv("trans1.conv1", 3, 6, 1);
    add_bn("block2.layer.0.bn1", 3);
    add_conv("block2.layer.0.conv1", 8, 3, 1);
    add_bn("block2.layer.0.bn2", 8);
    add_conv("block2.layer.0.conv2", 2, 8, 3);
    add_bn("bn1", FEATURES);
    add_weight("fc.weight", 2, CLASSES, FEATURES, 0);
    add_weight("fc.bias", 1, CLASSES, 0, 0);
}

static uint8_t *bytes;
static float *features, *logits;
static const dice_backend *backend;
static dice_options options;

static dice_status scenario(void)
{
    dice_graph *graph = NULL;
    dice_net *net = NULL;
    dice_linear *linear = NULL;
    const dice_images images = {.bytes = bytes, .n = IMAGES, .height = SIDE, .width = SIDE};
    dice_status status = dice_build("densenet", &(dice_weights){weights, n_weights}, &graph);
    if (status == DICE_OK) {
        status = backend->net_create(graph, &options, &net);
    }
    if (status == DICE_OK) {
        status = backend->linear_create(graph->head_weight, graph->head_bias, NULL, CLASSES, FEATURES,
                                        &options, &linear);
    }
    dice_graph_free(graph); /* neither refers to anything of it */
    if (status == DICE_OK) {
        status = backend->net_forward(net, &images, features);
    }
    if (status == DICE_OK) {
        const dice_linear_outputs outputs = {.logits = logits};
        status = backend->linear_forward(linear, features, IMAGES, INFINITY, &outputs);
    }
    backend->linear_free(linear);
    backend->net_free(net);
    return status;
}

void test_network(void)
{
    make_weights();
    bytes = guarded(IMAGES * SIDE * SIDE * 3);
    memset(bytes, 90, IMAGES * SIDE * SIDE * 3);
    features = guarded(IMAGES * FEATURES * sizeof *features);
    logits = guarded(IMAGES * CLASSES * sizeof *logits);
    for (int threads = 1; threads <= 2; threads++) {
        CHECK(dice_threads_set(threads) == DICE_OK);
        for (int isa = DICE_ISA_SCALAR; isa <= (int)dice_isa_native(); isa++) {
            options.isa = (dice_isa)isa;
            CHECK(dice_backend_find("cpu", &options, &backend) == DICE_OK);
            CHECK(scenario() == DICE_OK); /* starts the pool, whose own blocks stay */
            memset(features, 0, IMAGES * FEATURES * sizeof *features);
            check_failed_allocations(scenario);
            CHECK(features[0] > 0);
            CHECK(memcmp(features, features + FEATURES, FEATURES * sizeof *features) == 0); /* equal images */
        }
    }
}
