/* The plug-in: the CUDA back end as a library of its own, which is opened at first use.
 *
 * It exports one symbol, DICE_PLUGIN_SYMBOL, of type dice_plugin_open. It is not linked with the core, but
 * gets the core's functions in a dice_plugin_core, so that the core finds the detail of its failures. */
#ifndef DICE_BACKEND_PLUGIN_H
#define DICE_BACKEND_PLUGIN_H

#include "backend/backend.h"
#include "nn/plan.h"

typedef struct dice_plugin_core {
    uint32_t abi; /* DICE_BACKEND_ABI of the core */
    dice_status (*fail)(dice_status code, const char *format, ...) DICE_PRINTF(2, 3);
    dice_status (*alloc)(size_t count, size_t size, void **out);
    void (*free)(void *memory);
    dice_status (*plan_make)(const dice_graph *graph, int32_t height, int32_t width, dice_tensor_bytes bytes,
                             dice_plan *plan);
    void (*plan_free)(dice_plan *plan);
} dice_plugin_core;

/* The back end, or NULL where it was built for another ABI. `core` must live as long as the process. */
typedef const dice_backend *(*dice_plugin_open)(const dice_plugin_core *core);

#define DICE_PLUGIN_SYMBOL "dice_plugin"

/* The CUDA back end, or NULL and the *reason why it cannot run on this machine ("no plug-in", "no driver",
 * "no device", ...). *file = the plug-in's path: what the environment's DICE_CUDA_PLUGIN names, else _cuda.so
 * in the extension's folder. */
const dice_backend *dice_plugin_cuda(const char **reason, const char **file);

#endif
