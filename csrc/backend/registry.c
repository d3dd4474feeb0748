/* Which back end serves a device. */
#include <string.h>

#include "backend/backend.h"

dice_status dice_backend_find(const char *device, dice_isa isa, const dice_backend **out)
{
    if (strcmp(device, "cuda") == 0) {
        return dice_fail(DICE_E_DEVICE, "device cuda: no plug-in in this build; use device=\"cpu\"");
    }
    if (strcmp(device, "cpu") != 0) {
        return dice_fail(DICE_E_INPUT, "device %s: not one of cpu, cuda", device);
    }
    const int fast = isa != DICE_ISA_SCALAR && dice_backend_cpu.unavailable() == NULL;
    *out = fast ? &dice_backend_cpu : &dice_backend_reference;
    return DICE_OK;
}
