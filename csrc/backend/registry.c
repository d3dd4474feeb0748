/* Which back end serves a device. */
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

dice_status dice_backend_find(const char *device, dice_options *options, const dice_backend **out)
{
    options->device = 0;
    if (strcmp(device, "cpu") == 0) {
        const int fast = options->isa != DICE_ISA_SCALAR && dice_backend_cpu.unavailable() == NULL;
        *out = fast ? &dice_backend_cpu : &dice_backend_reference;
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
