/* Which back end serves a device, and which one does the work that it does not offer. */
#include <stdlib.h>
#include <string.h>

#include "backend/plugin.h"

/* The index in "cuda" (0) or "cuda:N" (N); -1 if `device` is neither. */
static int cuda_index(const char *device)
{
    if (strcmp(device, "cuda") == 0) {
        return 0;
    }
    if (strncmp(device, "cuda:", 5) != 0 || device[5] < '0' || device[5] > '9') {
        return -1;
    }
    char *end;
    const long index = strtol(device + 5, &end, 10);
    return *end == '\0' && index < 1024 ? (int)index : -1;
}

/* The back end of the host: the fast one where `isa` and the machine allow it. */
static const dice_backend *host(dice_isa isa)
{
    const int fast = isa != DICE_ISA_SCALAR && dice_backend_cpu.unavailable() == NULL;
    return fast ? &dice_backend_cpu : &dice_backend_reference;
}

dice_status dice_backend_find(const char *device, dice_options *options, const dice_backend **out)
{
    options->device = 0;
    if (strcmp(device, "cpu") == 0) {
        *out = host(options->isa);
        return DICE_OK;
    }
    const int index = cuda_index(device);
    if (index < 0) {
        return dice_fail(DICE_E_INPUT, "device %s: not one of cpu, cuda, cuda:N", device);
    }
    const char *reason, *file;
    const dice_backend *cuda = dice_plugin_cuda(&reason, &file);
    if (cuda == NULL) {
        return dice_fail(DICE_E_DEVICE, "device %s: %s (%s); use device=\"cpu\"", device, reason, file);
    }
    options->device = index;
    *out = cuda;
    return DICE_OK;
}

/* Whether the back end runs every op of the graph. Where it runs networks but not this one, *op = the first
 * op that it does not run; else *op = NULL. */
static int runs(const dice_backend *backend, const dice_graph *graph, const dice_op **op)
{
    *op = NULL;
    for (int32_t i = 0; i < graph->n_ops && backend->net_takes != NULL; i++) {
        if (!backend->net_takes(graph->ops[i].kind)) {
            *op = &graph->ops[i];
            return 0;
        }
    }
    return backend->net_create != NULL;
}

dice_status dice_backend_for_graph(const dice_graph *graph, const dice_options *options,
                                   const dice_backend **backend)
{
    const dice_op *op;
    if (runs(*backend, graph, &op)) {
        return DICE_OK;
    }
    if ((*backend)->arrived != NULL && op != NULL) {
        return dice_fail(DICE_E_DEVICE, "layer %s: %s has no %s; use device=\"cpu\"", op->name,
                         (*backend)->name, dice_op_names[op->kind]);
    }
    const dice_backend *fast = host(options->isa);
    *backend = runs(fast, graph, &op) ? fast : &dice_backend_reference;
    return DICE_OK;
}

const dice_backend *dice_backend_for_linear(const dice_backend *backend, const dice_options *options)
{
    return backend->linear_create != NULL ? backend : host(options->isa);
}
