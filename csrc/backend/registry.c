/* Which back end serves a device. */
#include <string.h>

#include "backend/backend.h"

dice_status dice_backend_find(const char *device, dice_isa isa, const dice_backend **out)
{
    (void)isa;  /* the reference serves every instruction set until there is a faster one */
    if (strcmp(device, "cuda") == 0) {
        return dice_fail(DICE_E_DEVICE, "device cuda: no plug-in in this build; use device=\"cpu\"");
    }
    if (strcmp(device, "cpu") != 0) {
        return dice_fail(DICE_E_INPUT, "device %s: not one of cpu, cuda", device);
    }
    *out = &dice_backend_reference;
    return DICE_OK;
}
