/* Instruction sets of this machine, and the override. */
#ifndef DICE_BASE_CPU_H
#define DICE_BASE_CPU_H

#include "base/status.h"

typedef enum dice_isa {
    DICE_ISA_SCALAR = 0, /* plain C: the reference, and all there is off x86-64 */
    DICE_ISA_AVX2,       /* AVX2 + FMA */
    DICE_ISA_AVX512,     /* AVX-512 F, BW, DQ, VL */
    DICE_ISA_AMX         /* the above + AMX tiles with bfloat16, permitted by the kernel */
} dice_isa;

/* The best set that this processor, operating system and build offer; asked once. */
dice_isa dice_isa_native(void);

/* *out = the set named `name` ("scalar", "avx2", "avx512", "amx"); NULL or ""
 * means: the environment's DICE_ISA, else the native one. DICE_E_INPUT for an
 * unknown name or one that this machine or build lacks. */
dice_status dice_isa_select(const char *name, dice_isa *out);

const char *dice_isa_name(dice_isa isa);

#endif
